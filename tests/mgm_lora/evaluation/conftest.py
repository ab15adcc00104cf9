"""A small finished run on disk: 60 pictures with two questions each, 40 known ones, and four arms that answered."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser

from mgm_lora.arm_settings import FullSettings
from mgm_lora.artifacts import Manifest, write_json, write_manifest
from mgm_lora.data.llava import Turn
from mgm_lora.data.table import Sample, read_samples, write_samples
from mgm_lora.evaluation.learned import WeightUpdate
from mgm_lora.evaluation.predictions import SET_NAMES, Prediction, make_predictions
from mgm_lora.evaluation.scoring import write_scores
from mgm_lora.evaluation.sources import ComparisonSources
from mgm_lora.settings import ComparisonSettings, EvaluationSettings

from ...browser import open_browser

NUM_HELDOUT = 60
NUM_KNOWN = 40
LOSS_IF_RIGHT, LOSS_IF_WRONG = (0.5, 2), (4.0, 2)
"""Nats and tokens of a true answer."""
COLOURS = ("red", "green", "blue", "black")
SHAPES = ("circle", "square", "triangle")
MakeRun = Callable[..., ComparisonSources]

# Right on how many of 60 held-out pictures and of 40 known ones.
NAMES = {"base": "base", "lora": "lora-17", "merged": "merged", "full": "full-17"}
NUM_RIGHT = {"base": (6, 30), "lora": (54, 28), "merged": (54, 28), "full": (57, 18)}

UPDATES = [
    WeightUpdate(module=module, point=point, norm=0.1 * size, relative_norm=0.01 * size, effective_rank=2.0 + size)
    for size, (module, point) in enumerate(
        [
            *((f"language_model.model.layers.{layer}.mlp.up_proj", "language_mlp") for layer in range(18)),
            ("mm_projector.0", "projector"),
        ],
        start=1,
    )
]
"""What an arm has learned: more in each layer."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def evaluation() -> EvaluationSettings:
    return EvaluationSettings(
        batch_size=8, max_new_tokens=4, score_types=("colour", "shape"), confidence=0.95, num_resamples=500, seed=3
    )


@pytest.fixture
def comparison_settings() -> ComparisonSettings:
    return ComparisonSettings(arms=("lora", "full"), seeds=(17,), retention_target=0.95, num_gallery_samples=12)


@pytest.fixture
def make_prediction() -> Callable[..., Prediction]:
    def make(id: str, **fields: Any) -> Prediction:
        defaults: dict[str, Any] = {
            "set": "heldout",
            "question_type": "colour",
            "question": "which colour?",
            "answer": "red",
            "prediction": "red",
            "score": float(fields.pop("correct", True)),
            "loss": 0.5,
            "num_loss_tokens": 2,
            "pictures": (f"{id}.png",),
        }
        return Prediction(id=id, **(defaults | fields))

    return make


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in [*(f"h{index}" for index in range(NUM_HELDOUT)), *(f"k{index}" for index in range(NUM_KNOWN))]:
        index = int(name[1:])
        picture = Image.new("RGB", (24, 24), "white")
        ImageDraw.Draw(picture).ellipse((4, 4, 8 + index % 12, 20), fill=COLOURS[index % 4])
        picture.save(folder / f"{name}.png")
    return folder


@pytest.fixture
def make_run(tmp_path: Path, evaluation: EvaluationSettings) -> MakeRun:
    """Writes the run; `num_right` says on how many pictures of (heldout, known) an arm is right."""

    def make(
        *,
        num_right: Mapping[str, tuple[int, int]] | None = None,
        with_known: bool = True,
        more_arms: Sequence[str] = (),
        scored_by: EvaluationSettings = evaluation,
    ) -> ComparisonSources:
        sources = ComparisonSources(
            samples=tmp_path / "artifacts/samples",
            scores=tmp_path / "artifacts/scores",
            trained=tmp_path / "artifacts/trained",
            merged=tmp_path / "artifacts/merged",
            metrics=tmp_path / "metrics",
            sweeps=tmp_path / "sweeps/results",
        )
        _write_samples(sources.samples, with_known=with_known)
        for arm, name in NAMES.items():
            write_answers(name, sources, scored_by, (NUM_RIGHT | dict(num_right or {}))[arm])
        write_trained("lora-17", "TrainedAdapter", sources, share=0.031)
        write_trained("full-17", "TrainedModel", sources, share=0.9)
        for number, arm in enumerate(more_arms):
            write_answers(f"{arm}-17", sources, scored_by, (40 + number, 25))
            write_trained(f"{arm}-17", "TrainedAdapter", sources, share=0.01 * (1 + number))
        sources.merged.mkdir()
        (sources.merged / "model.safetensors").write_bytes(bytes(2 * 2**20))
        write_manifest(sources.merged, _manifest("MergedModel"))
        return sources

    return make


def _write_samples(folder: Path, *, with_known: bool) -> None:
    folder.mkdir(parents=True)
    write_samples(list(_samples("t", 20)), path=folder / "train.parquet")
    write_samples(list(_samples("h", NUM_HELDOUT)), path=folder / "heldout.parquet")
    if with_known:
        known = [replace(sample, question_type="emoji") for sample in _samples("k", NUM_KNOWN, kinds=("colour",))]
        write_samples(known, path=folder / "known.parquet")
    write_manifest(folder, _manifest("SampleTable"))


def _samples(prefix: str, number: int, *, kinds: Sequence[str] = ("colour", "shape")) -> Iterator[Sample]:
    for index in range(number):
        for kind in kinds:
            answers = COLOURS if kind == "colour" else SHAPES
            yield Sample(
                id=f"{prefix}{index}-{kind}",
                pictures=(f"{prefix}{index}.png",),
                turns=(Turn("human", f"<image>\nwhich {kind}?"), Turn("gpt", answers[index % len(answers)])),
                question_type=kind,
                picture_sha256=("0" * 64,),
                width=24,
                height=24,
                num_tokens=30,
                num_labels=2,
            )


def write_answers(
    arm: str, sources: ComparisonSources, evaluation: EvaluationSettings, num_right: tuple[int, int]
) -> None:
    predictions: list[Prediction] = []
    for set_name, limit in zip(SET_NAMES, num_right, strict=True):
        path = sources.samples / f"{set_name}.parquet"
        if path.is_file():
            samples = read_samples(path)
            is_right = [_picture_index(item.id) < limit for item in samples]
            answers = [item.answer if right else "wrong" for item, right in zip(samples, is_right, strict=True)]
            losses = [LOSS_IF_RIGHT if right else LOSS_IF_WRONG for right in is_right]
            predictions += make_predictions(samples, answers=answers, losses=losses, set_name=set_name)
    write_scores(
        predictions,
        arm=arm,
        samples=sources.samples,
        evaluation=evaluation,
        parents={"model": "ab" * 32, "samples": "ab" * 32},
        base={"model": "data/base", "revision": None, "digest": "cd" * 32},
        updates=[] if arm in ("base", "merged") else UPDATES,
        destination=sources.scores / arm,
        metrics=sources.metrics / "scores" / f"{arm}.json",
    )


def _picture_index(sample_id: str) -> int:
    return int(sample_id.partition("-")[0][1:])


def write_trained(arm: str, kind: str, sources: ComparisonSources, *, share: float) -> None:
    folder = sources.trained / arm
    folder.mkdir(parents=True)
    curve = [{"step": step, "samples": 8 * step, "loss": 4.0 / step, "learning_rate": 1.0e-3} for step in range(1, 30)]
    write_json(folder / "history.json", {"train": curve, "heldout": curve[::7]})
    write_manifest(folder, _manifest(kind))
    record = {
        "train_loss": 0.1,
        "heldout_loss": 0.2,
        "minutes": 1.5,
        "peak_memory_gib": 2.25,
        "planned_memory_gib": 1.75,
        "step_memory_gib": 1.5,
        "seconds_per_step": 0.1,
        "samples_per_second": 80.0,
        "trainable_parameters": int(1_000_000 * share),
        "trainable_share": share,
        "size_on_disk_mib": 3.5,
    }
    (sources.metrics / "train").mkdir(parents=True, exist_ok=True)
    write_json(sources.metrics / "train" / f"{arm}.json", record)


def _manifest(kind: str) -> Manifest:
    full = FullSettings(learning_rate=1.0e-3, parts=("projector",))
    return Manifest.make(kind, settings={"arm": full}, parents={"data": "ef" * 32}, seed=17, details={"num_steps": 29})
