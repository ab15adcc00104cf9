import random
from pathlib import Path

import pytest
from PIL import Image

from recipes.conversations import (
    Sample,
    guess_by_question,
    guess_by_type,
    on_white,
    pick_balanced,
    pixels_key,
    read_samples,
    write_samples,
)


def _sample(number: int, question: str, answer: str, question_type: str = "colour") -> Sample:
    return Sample(f"s-{number:03d}", f"{number}.png", question_type, question, answer)


def test_file_is_read_back_and_is_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    samples = [_sample(n, "what color?\nsay", "größe") for n in range(3)]
    write_samples(tmp_path / "a.json", samples)
    write_samples(tmp_path / "b.json", samples[::-1])
    assert read_samples(tmp_path / "a.json") == samples
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_bytes().endswith(b"]\n")


def test_guess_uses_the_question_where_train_has_it_and_its_type_elsewhere() -> None:
    train = [_sample(n, "a?", "red") for n in range(2)] + [_sample(n, "b?", "blue") for n in range(3)]
    heldout = [_sample(0, "a?", "red"), _sample(1, "b?", "blue"), _sample(2, "new?", "blue"), _sample(3, "a?", "blue")]
    assert guess_by_question(train, heldout) == 0.75
    assert guess_by_type(train, heldout) == 0.75
    assert guess_by_type(train, heldout[:1]) == 0


def test_asking_for_more_than_there_is_names_the_type() -> None:
    with pytest.raises(ValueError, match="asked for 2 samples of type 'colour', found 1"):
        pick_balanced([_sample(0, "a?", "red")], counts={"colour": 2}, rng=random.Random(0))


def test_what_is_transparent_becomes_white_and_counts_as_white() -> None:
    clear = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    white = Image.new("RGB", (4, 4), "white")
    assert on_white(clear).getpixel((0, 0)) == (255, 255, 255)
    assert pixels_key(clear) == pixels_key(white)
    assert pixels_key(white) != pixels_key(Image.new("RGB", (2, 8), "white"))
