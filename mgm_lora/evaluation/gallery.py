"""Pictures with every arm's answer, so that a reader can judge with their own eyes: disagreements first, but not only
those.

The kinds of outcome take turns, so the gallery shows some of each; the report says how many there are of each.
Pictures are shrunk and put into the page.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from mgm_lora.decoding import to_rgb
from mgm_lora.errors import PictureError
from mgm_lora.evaluation.predictions import Prediction, type_name
from mgm_lora.evaluation.sources import BASELINE
from mgm_lora.settings import REFERENCE, SUBJECT

KINDS = ("LoRA wrong, full right", "LoRA right, full wrong", "forgotten", "both wrong", "both right")
"""Of outcomes, in the order shown; the third is of known samples, the others of held-out ones."""
_MAX_SIDE = 224
_MAX_PNG_BYTES = 24_000
_JPEG_QUALITY = 82
_MAX_TOTAL_BYTES = 3_000_000

Pair = tuple[str, str]  # set and id of a sample


@dataclass(frozen=True)
class Answer:
    """What one or more arms said."""

    text: str
    correct: bool
    arms: tuple[str, ...]


@dataclass(frozen=True)
class GalleryItem:
    """One question as the report shows it."""

    kind: str
    question_type: str
    question: str
    truth: str
    answers: tuple[Answer, ...]
    """Different ones, right ones first."""
    pictures: tuple[str, ...]
    """Data URIs."""
    tags: tuple[str, ...]
    """What the filter asks for: `lora-wrong`, `disagree`, `forgotten`."""

    @property
    def right(self) -> tuple[str, ...]:
        """The arms that were right."""
        return tuple(arm for answer in self.answers if answer.correct for arm in answer.arms)


@dataclass(frozen=True)
class Gallery:
    """The items, and how many samples there are of each kind."""

    items: tuple[GalleryItem, ...]
    num_by_kind: Mapping[str, int]
    num_left_out: int
    """Asked for and left out, since the page would get too large."""


def make_gallery(
    predictions: Mapping[str, Sequence[Prediction]], *, pictures: Path, num_samples: int, seed: int
) -> Gallery:
    """Chooses samples and reads their pictures.

    Args:
        predictions: by arm, of the same samples; held-out ones in the score, and known ones.
        pictures: the folder that picture names are relative to.
        num_samples: how many are shown, if there are as many.
        seed: of the choice within a kind.

    Raises:
        PictureError: a picture can't be read.
    """
    by_sample = _by_sample(predictions)
    kinds = {pair: _kind(answers) for pair, answers in by_sample.items()}
    chosen = _choose(by_sample, kinds=kinds, num_samples=num_samples, seed=seed)
    items: list[GalleryItem] = []
    num_bytes = 0
    for pair in chosen:
        item = _item(by_sample[pair], kind=kinds[pair], folder=pictures)
        num_bytes += sum(len(uri) for uri in item.pictures)
        if num_bytes > _MAX_TOTAL_BYTES:
            break
        items.append(item)
    return Gallery(
        items=tuple(sorted(items, key=lambda item: KINDS.index(item.kind))),
        num_by_kind={kind: sum(found == kind for found in kinds.values()) for kind in KINDS},
        num_left_out=len(chosen) - len(items),
    )


def _by_sample(predictions: Mapping[str, Sequence[Prediction]]) -> dict[Pair, dict[str, Prediction]]:
    by_sample: dict[Pair, dict[str, Prediction]] = {}
    for arm, items in predictions.items():
        for item in items:
            by_sample.setdefault((item.set, item.id), {})[arm] = item
    return by_sample


def _kind(answers: Mapping[str, Prediction]) -> str:
    """One of `KINDS`; empty for a known sample that nobody forgot."""
    mine, theirs = answers[SUBJECT].correct, answers[REFERENCE].correct
    if answers[SUBJECT].set == "known":
        return KINDS[2] if answers[BASELINE].correct and not (mine and theirs) else ""
    if mine != theirs:
        return KINDS[1] if mine else KINDS[0]
    return KINDS[4] if mine else KINDS[3]


def _choose(
    by_sample: Mapping[Pair, Mapping[str, Prediction]], *, kinds: Mapping[Pair, str], num_samples: int, seed: int
) -> list[Pair]:
    """Takes from each kind in turn, a picture that isn't shown yet where there is one."""
    order = np.random.default_rng(seed).permutation(len(by_sample))
    pairs = [list(by_sample)[index] for index in order]
    waiting = {kind: [pair for pair in pairs if kinds[pair] == kind] for kind in KINDS}
    chosen: list[Pair] = []
    shown: set[tuple[str, ...]] = set()
    while len(chosen) < num_samples and any(waiting.values()):
        for queue in [queue for queue in waiting.values() if queue][: num_samples - len(chosen)]:
            pair = next((pair for pair in queue if by_sample[pair][SUBJECT].pictures not in shown), queue[0])
            queue.remove(pair)
            shown.add(by_sample[pair][SUBJECT].pictures)
            chosen.append(pair)
    return chosen


def _item(answers: Mapping[str, Prediction], *, kind: str, folder: Path) -> GalleryItem:
    sample = answers[SUBJECT]
    tags = {
        "lora-wrong": not sample.correct,
        "disagree": sample.correct != answers[REFERENCE].correct,
        "forgotten": kind == KINDS[2],
    }
    return GalleryItem(
        kind=kind,
        question_type=type_name(sample),
        question=sample.question,
        truth=sample.answer,
        answers=_said(answers),
        pictures=tuple(_data_uri(folder / name) for name in sample.pictures),
        tags=tuple(tag for tag, holds in tags.items() if holds),
    )


def _said(answers: Mapping[str, Prediction]) -> tuple[Answer, ...]:
    arms: dict[tuple[bool, str], list[str]] = {}
    for arm, item in answers.items():
        arms.setdefault((item.correct, item.prediction), []).append(arm)
    said = [Answer(text, correct, tuple(names)) for (correct, text), names in arms.items()]
    return tuple(sorted(said, key=lambda answer: not answer.correct))


def _data_uri(path: Path) -> str:
    """The picture, shrunk: as PNG, or as JPEG where that is much smaller (photographs)."""
    try:
        with Image.open(path) as opened:
            picture = to_rgb(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"the gallery can't show '{path}': {error}. Is data.pictures right?") from error
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE))
    data, kind = _encode(picture, format="PNG", optimize=True), "png"
    if len(data) > _MAX_PNG_BYTES:
        data, kind = _encode(picture, format="JPEG", quality=_JPEG_QUALITY), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _encode(picture: Image.Image, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()
