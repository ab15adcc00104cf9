"""The gallery shows disagreements, and says what it leaves out."""

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgm_lora.errors import PictureError
from mgm_lora.evaluation.gallery import KINDS, make_gallery
from mgm_lora.evaluation.predictions import Prediction

MakePrediction = Callable[..., Prediction]
ARMS = ("base", "lora", "merged", "full")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(12):
        Image.new("RGB", (20, 10), (20 * index, 0, 0)).save(tmp_path / f"{index}.png")
    return tmp_path


def _answered(make: MakePrediction, index: int, right: str, **fields: object) -> dict[str, Prediction]:
    """One sample; `right` names the arms that are right."""
    pictures = fields.pop("pictures", (f"{index}.png",))
    return {
        arm: make(f"{index}", pictures=pictures, correct=arm in right.split(), prediction=f"{arm} said", **fields)
        for arm in ARMS
    }


def _by_arm(samples: list[dict[str, Prediction]]) -> dict[str, list[Prediction]]:
    return {arm: [sample[arm] for sample in samples] for arm in ARMS}


@pytest.fixture
def predictions(make_prediction: MakePrediction) -> dict[str, list[Prediction]]:
    rights = ["lora full", "lora full", "lora full", "full", "lora", "", "lora full"]
    samples = [_answered(make_prediction, index, right) for index, right in enumerate(rights)]
    samples.append(_answered(make_prediction, 7, "base full", set="known"))
    samples.append(_answered(make_prediction, 8, "base lora", set="known"))
    samples.append(_answered(make_prediction, 9, "base lora full", set="known"))
    samples.append(_answered(make_prediction, 10, "", set="known"))
    return _by_arm(samples)


def test_kinds_take_turns_and_disagreements_come_first(predictions: dict[str, list[Prediction]], folder: Path) -> None:
    gallery = make_gallery(predictions, pictures=folder, num_samples=6, seed=1)
    assert [item.kind for item in gallery.items] == [KINDS[0], KINDS[1], KINDS[2], KINDS[2], KINDS[3], KINDS[4]]
    assert gallery.num_by_kind == dict(zip(KINDS, (1, 1, 2, 1, 4), strict=True))
    assert gallery.num_left_out == 0


def test_tags_say_what_the_filter_shows(predictions: dict[str, list[Prediction]], folder: Path) -> None:
    gallery = make_gallery(predictions, pictures=folder, num_samples=100, seed=1)
    assert len(gallery.items) == 9
    tags = {item.kind: set(item.tags) for item in gallery.items if item.kind != KINDS[2]}
    assert tags == {
        KINDS[0]: {"lora-wrong", "disagree"},
        KINDS[1]: {"disagree"},
        KINDS[3]: {"lora-wrong"},
        KINDS[4]: set(),
    }
    forgotten = sorted(sorted(item.tags) for item in gallery.items if item.kind == KINDS[2])
    assert forgotten == [["disagree", "forgotten"], ["disagree", "forgotten", "lora-wrong"]]
    first = gallery.items[0]
    assert [(answer.arms, answer.text, answer.correct) for answer in first.answers] == [
        (("full",), "full said", True),
        (("base",), "base said", False),
        (("lora",), "lora said", False),
        (("merged",), "merged said", False),
    ]
    assert first.right == ("full",)


def test_arms_that_said_the_same_are_told_together(make_prediction: MakePrediction, folder: Path) -> None:
    answers = {
        "base": make_prediction("1", correct=False, prediction="blue"),
        **{arm: make_prediction("1", prediction="red") for arm in ("lora", "full")},
    }
    by_arm = {arm: [answer] for arm, answer in answers.items()}
    [item] = make_gallery(by_arm, pictures=folder, num_samples=1, seed=1).items
    assert [answer.arms for answer in item.answers] == [("lora", "full"), ("base",)]


def test_another_picture_is_preferred_to_another_question(make_prediction: MakePrediction, folder: Path) -> None:
    same = [_answered(make_prediction, index, "full", pictures=("1.png",)) for index in range(5)]
    other = [_answered(make_prediction, 6, "full", pictures=("2.png",))]
    gallery = make_gallery(_by_arm([*same, *other]), pictures=folder, num_samples=2, seed=1)
    assert len({item.pictures for item in gallery.items}) == 2


def test_pictures_are_shrunk_into_the_page(make_prediction: MakePrediction, folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 1000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.png")
    samples = [
        _answered(make_prediction, 1, "full", pictures=("photo.png",)),
        _answered(make_prediction, 2, "full", pictures=("1.png", "2.png")),
        _answered(make_prediction, 3, "full", pictures=()),
    ]
    gallery = make_gallery(_by_arm(samples), pictures=folder, num_samples=3, seed=1)
    uris = {len(item.pictures): item.pictures for item in gallery.items}
    assert uris[0] == ()
    assert all(uri.startswith("data:image/png;base64,") for uri in uris[2])
    kind, _, data = uris[1][0].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(BytesIO(base64.b64decode(data))).size == (224, 112)


def test_a_page_that_would_get_too_large_says_what_is_missing(
    make_prediction: MakePrediction, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [_answered(make_prediction, index, "full") for index in range(6)]
    one = make_gallery(_by_arm(samples[:1]), pictures=folder, num_samples=1, seed=1)
    monkeypatch.setattr("mgm_lora.evaluation.gallery._MAX_TOTAL_BYTES", int(3.5 * len(one.items[0].pictures[0])))
    gallery = make_gallery(_by_arm(samples), pictures=folder, num_samples=6, seed=1)
    assert (len(gallery.items), gallery.num_left_out) == (3, 3)


def test_a_missing_picture_is_named(make_prediction: MakePrediction, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"can't show .*5\.png.*data\.pictures"):
        make_gallery(_by_arm([_answered(make_prediction, 5, "")]), pictures=tmp_path, num_samples=1, seed=1)
