"""The task to learn: questions of easy-VQA, trained and held out along its authors' own split.

Mostly open questions (colour, shape), since a guess without the picture gets most yes/no questions right; some
yes/no ones so that the answer's form isn't forgotten. It doesn't know the model.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from recipes.conversations import Sample, pick_balanced, pixels_key

Split = Literal["train", "test"]
_SHAPES = {"circle", "rectangle", "triangle"}


@dataclass(frozen=True)
class EasyVqa:
    """Both splits' samples, the pictures that they show by name, and what was left out."""

    train: list[Sample]
    heldout: list[Sample]
    pictures: dict[str, Path]
    """Source file by `Sample.image`."""
    num_leaked_pictures: int
    """Pictures of the authors' test split that look exactly like one of their train split: left out."""
    num_repeated_pictures: int
    """Pictures that look exactly like another one of their own split: left out."""


def select_easy_vqa(
    folder: Path,
    *,
    num_train_pictures: int,
    num_heldout_pictures: int,
    train_counts: Mapping[str, int],
    heldout_counts: Mapping[str, int],
    seed: int,
) -> EasyVqa:
    """Draws pictures of each split, and of their questions so many of each type."""
    train_pictures = {pixels_key(Image.open(path)): path for path in reversed(_picture_paths(folder, "train"))}
    test_pictures = {pixels_key(Image.open(path)): path for path in reversed(_picture_paths(folder, "test"))}
    leaked = train_pictures.keys() & test_pictures.keys()
    num_all = len(_picture_paths(folder, "train")) + len(_picture_paths(folder, "test"))
    fresh = [path for key, path in test_pictures.items() if key not in leaked]
    rng = random.Random(seed)
    train = _draw(folder, "train", list(train_pictures.values()), num_train_pictures, train_counts, rng)
    heldout = _draw(folder, "test", fresh, num_heldout_pictures, heldout_counts, rng)
    return EasyVqa(
        train=train,
        heldout=heldout,
        pictures={sample.image: _source(folder, sample.image) for sample in train + heldout},
        num_leaked_pictures=len(leaked),
        num_repeated_pictures=num_all - len(train_pictures) - len(test_pictures),
    )


def question_type(answer: str) -> str:
    """colour, shape or yes_no."""
    if answer in ("yes", "no"):
        return "yes_no"
    return "shape" if answer in _SHAPES else "colour"


def _draw(
    folder: Path, split: Split, paths: list[Path], num_pictures: int, counts: Mapping[str, int], rng: random.Random
) -> list[Sample]:
    drawn = {int(path.stem) for path in rng.sample(sorted(paths), num_pictures)}
    rows = json.loads((folder / split / "questions.json").read_text(encoding="utf-8"))
    name = _our_name(split)
    samples = [
        Sample(
            id=f"easy_vqa-{name}-{number:06d}",
            image=f"easy_vqa/{name}/{picture}.png",
            question_type=question_type(answer),
            question=question,
            answer=answer,
        )
        for number, (question, answer, picture) in enumerate(rows)
        if picture in drawn
    ]
    return pick_balanced(samples, counts=dict(counts), rng=rng)


def _picture_paths(folder: Path, split: Split) -> list[Path]:
    return sorted((folder / split / "images").glob("*.png"))


def _source(folder: Path, image: str) -> Path:
    _, name, file_name = image.split("/")
    return folder / ("train" if name == "train" else "test") / "images" / file_name


def _our_name(split: Split) -> str:
    return "train" if split == "train" else "heldout"
