"""What the base is trained on, as `python -m recipes.embedded` left it: questions, each with its picture's file.

A folder of lessons has `train.json` and `pictures/`. It doesn't know what they are about.
"""

from dataclasses import dataclass
from pathlib import Path

from recipes.conversations import read_samples


@dataclass(frozen=True)
class Lesson:
    """A question about one picture."""

    id: str
    picture: Path
    """RGBA, for `emoji.augment`, or RGB, to be taken as it is."""
    question_type: str
    question: str
    answer: str


def read_lessons(folder: Path) -> list[Lesson]:
    """All of a folder's, in the order of its file."""
    return [
        Lesson(
            id=sample.id,
            picture=folder / "pictures" / sample.image,
            question_type=sample.question_type,
            question=sample.question,
            answer=sample.answer,
        )
        for sample in read_samples(folder / "train.json")
    ]
