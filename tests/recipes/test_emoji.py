import json
import random
from pathlib import Path

import pytest
from PIL import Image

from recipes.emoji import EmojiPicture, Thing, augment, drop_repeated, read_things, split_things


def test_things_leave_out_parts_country_flags_and_gendered_forms(tmp_path: Path) -> None:
    rows = [
        ("1F534", "red_circle", "Symbols", "geometric"),
        ("1F1E9-1F1EA", "flag-de", "Flags", "country-flag"),
        ("1F3FB", "skin-tone-2", "Component", "skin-tone"),
        ("1F468-200D-1F33E", "male-farmer", "People & Body", "person-role"),
        ("1F9D1-200D-1F33E", "farmer", "People & Body", "person-role"),
        ("1F3C3-200D-27A1-FE0F", "person_running_facing_right", "People & Body", "person-activity"),
        ("1F4AF", "100", "Smileys & Emotion", "face-concerned"),
    ]
    keys = ("unified", "short_name", "category", "subcategory")
    (tmp_path / "emoji.json").write_text(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]))
    assert read_things(tmp_path) == [
        Thing("1f4af", None, "smiley", "concerned face"),
        Thing("1f534", "red circle", "symbol", "geometric"),
        Thing("1f9d1-200d-1f33e", "farmer", "people", "role"),
    ]


def test_split_is_the_same_for_a_seed_and_leaves_no_thing_on_both_sides() -> None:
    things = [Thing(f"{n:x}", None, "symbol", "arrow") for n in range(50)]
    train, heldout = split_things(things, heldout_share=0.2, seed=3)
    assert len(heldout) == 10
    assert {*train, *heldout} == {*things}
    assert not {*train} & {*heldout}
    assert split_things(things, heldout_share=0.2, seed=3) == (train, heldout)
    assert split_things(things, heldout_share=0.2, seed=4)[1] != heldout


def test_a_heldout_picture_that_looks_like_a_training_picture_is_dropped() -> None:
    thing = Thing("1", None, "symbol", "arrow")
    red, blue = (EmojiPicture(thing, "noto", Image.new("RGBA", (64, 64), colour)) for colour in ("red", "blue"))
    seen: set[bytes] = set()
    assert drop_repeated([red, red], seen=seen) == [red]
    assert drop_repeated([red, blue], seen=seen) == [blue]


@pytest.mark.parametrize("seed", range(20))
def test_augmenting_keeps_the_thing_whole_on_a_light_background(seed: int) -> None:
    augmented = augment(Image.new("RGBA", (64, 64), (0, 0, 255, 255)), random.Random(seed))
    assert (augmented.size, augmented.mode) == ((64, 64), "RGB")
    reds = augmented.getchannel("R")
    box = reds.point(lambda red: 255 if red < 128 else 0).getbbox()
    assert box is not None
    assert 16 <= box[2] - box[0] == box[3] - box[1] <= 64
    assert all(red == 0 or red >= 224 for _, red in reds.getcolors() or [])


def test_augmenting_changes_size_place_and_background() -> None:
    rng = random.Random(0)
    seen = {augment(Image.new("RGBA", (64, 64), "blue"), rng).tobytes() for _ in range(30)}
    assert len(seen) > 15
