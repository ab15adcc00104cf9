"""Questions about pictures in LLaVA's conversation form, and what guessing without the picture gets.

One turn each way, one picture a sample. Files are the same byte for byte for the same samples. It doesn't know
where a sample comes from.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

IMAGE_PREFIX = "<image>\n"


@dataclass(frozen=True)
class Sample:
    """A question about a picture, with its answer."""

    id: str
    image: str
    """Path below the folder of pictures, with forward slashes."""
    question_type: str
    question: str
    answer: str


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Writes a LLaVA conversation file, sorted by id."""
    rows = [_to_row(sample) for sample in sorted(samples, key=lambda sample: sample.id)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_samples(path: Path) -> list[Sample]:
    """Reads what `write_samples` wrote."""
    return [_from_row(row) for row in json.loads(path.read_text(encoding="utf-8"))]


def count_types(samples: Iterable[Sample]) -> dict[str, int]:
    """Samples per question type, by name."""
    return dict(sorted(Counter(sample.question_type for sample in samples).items()))


def pick_balanced(samples: Sequence[Sample], *, counts: dict[str, int], rng: random.Random) -> list[Sample]:
    """Draws so many samples of each question type.

    Raises ValueError where there are fewer.
    """
    picked: list[Sample] = []
    for question_type, count in counts.items():
        candidates = [sample for sample in samples if sample.question_type == question_type]
        if len(candidates) < count:
            raise ValueError(
                f"asked for {count} samples of type {question_type!r}, found {len(candidates)}. "
                "Ask for fewer, or take more pictures."
            )
        picked += rng.sample(candidates, count)
    return picked


def guess_by_question(train: Sequence[Sample], heldout: Sequence[Sample]) -> float:
    """Share of held-out answers that the question's own most frequent answer in train gets, without a picture.

    A question that train doesn't have is answered with its type's most frequent answer.
    """
    by_question = _most_frequent(train, lambda sample: sample.question)
    by_type = _most_frequent(train, lambda sample: sample.question_type)
    hits = [sample.answer == by_question.get(sample.question, by_type.get(sample.question_type)) for sample in heldout]
    return sum(hits) / len(hits)


def guess_by_type(train: Sequence[Sample], heldout: Sequence[Sample]) -> float:
    """Share of held-out answers that the question type's most frequent answer in train gets."""
    by_type = _most_frequent(train, lambda sample: sample.question_type)
    return sum(sample.answer == by_type.get(sample.question_type) for sample in heldout) / len(heldout)


def pixels_key(picture: Image.Image) -> bytes:
    """What two pictures share exactly if they look the same: size and decoded pixels over white."""
    return repr(picture.size).encode() + on_white(picture).tobytes()


def on_white(picture: Image.Image) -> Image.Image:
    """The picture in RGB, what is transparent in white."""
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture.convert("RGBA"))
    return canvas.convert("RGB")


def _most_frequent(samples: Iterable[Sample], key: Callable[[Sample], Hashable]) -> dict[Hashable, str]:
    counts: dict[Hashable, Counter[str]] = {}
    for sample in samples:
        counts.setdefault(key(sample), Counter())[sample.answer] += 1
    # ties go to the first answer by name, so that the figure doesn't depend on the order of the file
    return {name: min(counter, key=lambda answer: (-counter[answer], answer)) for name, counter in counts.items()}


def _to_row(sample: Sample) -> dict[str, object]:
    turns = [
        {"from": "human", "value": IMAGE_PREFIX + sample.question},
        {"from": "gpt", "value": sample.answer},
    ]
    return {"id": sample.id, "image": sample.image, "question_type": sample.question_type, "conversations": turns}


def _from_row(row: dict[str, object]) -> Sample:
    turns = row["conversations"]
    assert isinstance(turns, list)
    question = str(turns[0]["value"]).removeprefix(IMAGE_PREFIX)
    return Sample(
        id=str(row["id"]),
        image=str(row["image"]),
        question_type=str(row["question_type"]),
        question=question,
        answer=str(turns[1]["value"]),
    )
