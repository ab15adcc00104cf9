import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from recipes.easy_vqa import EasyVqa, select_easy_vqa


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve train pictures of which two look the same, eight test pictures of which two are train's."""
    for split, shades in (("train", [0, *range(11)]), ("test", [3, 4, *range(50, 56)])):
        (tmp_path / split / "images").mkdir(parents=True)
        rows = []
        for number, shade in enumerate(shades):
            Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / split / "images" / f"{number}.png")
            rows += [["what color?", "red", number], ["what shape?", "circle", number], ["is it red?", "yes", number]]
        (tmp_path / split / "questions.json").write_text(json.dumps(rows))
    return tmp_path


def test_test_pictures_that_train_has_and_repeated_ones_are_left_out(folder: Path) -> None:
    drawn = _select(folder, num_train=11, num_heldout=6)
    assert (drawn.num_leaked_pictures, drawn.num_repeated_pictures) == (2, 1)
    names = {sample.image for sample in drawn.heldout}
    assert not names & {"easy_vqa/heldout/0.png", "easy_vqa/heldout/1.png"}
    pixels = [Image.open(path).tobytes() for path in drawn.pictures.values()]
    assert len(set(pixels)) == len(pixels)


def test_counts_are_as_asked_and_pictures_are_the_source_split(folder: Path) -> None:
    drawn = _select(folder, num_train=8, num_heldout=5)
    assert Counter(sample.question_type for sample in drawn.train) == {"colour": 4, "shape": 3, "yes_no": 2}
    assert all(drawn.pictures[sample.image].parent.parent.name == "test" for sample in drawn.heldout)
    assert drawn == _select(folder, num_train=8, num_heldout=5)


def test_asking_for_too_many_questions_says_so(folder: Path) -> None:
    with pytest.raises(ValueError, match="asked for 4 samples of type 'colour', found 2"):
        _select(folder, num_train=2, num_heldout=5)


def _select(folder: Path, *, num_train: int, num_heldout: int) -> EasyVqa:
    return select_easy_vqa(
        folder,
        num_train_pictures=num_train,
        num_heldout_pictures=num_heldout,
        train_counts={"colour": 4, "shape": 3, "yes_no": 2},
        heldout_counts={"colour": 3, "shape": 3},
        seed=5,
    )
