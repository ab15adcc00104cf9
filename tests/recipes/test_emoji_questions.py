import random
from collections import Counter

import pytest
from PIL import Image

from recipes.emoji import EmojiPicture, Thing
from recipes.emoji_questions import ask_all, ask_some, derange

_GROUPS = ("symbol", "food", "food", "nature")
_PICTURES = [
    EmojiPicture(Thing(f"{n:x}", f"thing {chr(97 + n)}", group, "arrow"), "noto", Image.new("RGBA", (64, 64), colour))
    for n, (group, colour) in enumerate(zip(_GROUPS * 3, ("red", "blue", "green") * 4, strict=True))
]


def test_each_value_is_as_often_right_as_wrong_in_the_yes_no_forms() -> None:
    asked = [s for s in ask_all(_PICTURES, num_phrasings=1, seed=1) if s.question_type == "emoji_yes_no"]
    for value in ("red", "blue", "green", "symbol", "food", "nature"):
        answers = Counter(sample.answer for sample in asked if value in sample.question)
        assert answers["yes"] == answers["no"] > 0


def test_yes_and_no_are_true_of_the_picture() -> None:
    by_name = {picture.file_name: picture.thing.group for picture in _PICTURES}
    asked = [
        s for s in ask_all(_PICTURES, num_phrasings=1, seed=1) if "group?" in s.question and s.answer in ("yes", "no")
    ]
    assert asked
    assert all((by_name[s.image] in s.question) == (s.answer == "yes") for s in asked)


def test_questions_are_the_same_for_a_seed_and_their_ids_unique() -> None:
    asked = ask_all(_PICTURES, num_phrasings=2, seed=1)
    assert asked == ask_all(_PICTURES, num_phrasings=2, seed=1)
    assert len({sample.id for sample in asked}) == len(asked)
    assert len({(sample.image, sample.question) for sample in asked}) == len(asked)


def test_asking_some_gives_the_counts_or_says_what_is_short() -> None:
    asked = ask_some(_PICTURES, part="new", counts={"emoji_group": 5, "emoji_colour": 3}, seed=1)
    assert Counter(sample.question_type for sample in asked) == {"emoji_group": 5, "emoji_colour": 3}
    with pytest.raises(ValueError, match="asked for 13 emoji_group questions, found 12"):
        ask_some(_PICTURES, part="new", counts={"emoji_group": 13}, seed=1)


@pytest.mark.parametrize("seed", range(20))
def test_deranged_values_are_the_same_ones_elsewhere(seed: int) -> None:
    values = ["a"] * 5 + ["b"] * 3 + ["c"] * 2
    moved = derange(values, random.Random(seed))
    assert Counter(moved) == Counter(values)
    assert all(old != new for old, new in zip(values, moved, strict=True))
