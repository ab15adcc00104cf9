"""What a comparison reads: the scores, training records and artifacts of every arm, checked to be whole and about the
same samples.

An arm that is missing is an error that names the stage to run, never a row left out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mgm_lora.artifacts import Manifest, read_manifest, size_on_disk
from mgm_lora.errors import ArtifactError, DataError
from mgm_lora.evaluation.predictions import Prediction
from mgm_lora.evaluation.scoring import Scores, read_scores
from mgm_lora.settings import EvaluationSettings

BASELINE = "base"
REFERENCE = "full"
SUBJECT = "lora"
MERGED = "merged"
ARMS = (BASELINE, SUBJECT, MERGED, REFERENCE)
_TRAINED_KINDS = {SUBJECT: "TrainedAdapter", REFERENCE: "TrainedModel"}
_BYTES_PER_MIB = 2**20

_Record = TypeVar("_Record", bound=BaseModel)


@dataclass(frozen=True)
class ComparisonSources:
    """Where things lie."""

    samples: Path
    """The `SampleTable`."""
    scores: Path
    """Holds a folder of `Scores` per arm."""
    trained: Path
    """Holds a folder per trained arm."""
    merged: Path
    """The `MergedModel`."""
    metrics: Path
    """Holds `train-<arm>.json`."""
    base: Path | None = None
    """The base's checkpoint, for its size; none: the size is not shown."""


class LossPoint(BaseModel):
    """One point of a loss curve."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    samples: int
    """Training samples seen so far."""
    loss: float


class History(BaseModel):
    """A training's loss curves."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    train: tuple[LossPoint, ...]
    heldout: tuple[LossPoint, ...]


class TrainingCost(BaseModel):
    """What a training took."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    trainable_parameters: int
    trainable_share: float
    """Of all parameters, 0 to 1."""
    peak_memory_gib: float
    """Of the whole process, libraries and all; on a card what torch allocated."""
    planned_memory_gib: float
    """What the plan says that a step on the largest batch holds."""
    step_memory_gib: float | None = None
    """What such a step held; none where it was not tried."""
    minutes: float
    size_on_disk_mib: float
    device: str = ""
    """What it was trained on, where the training says so."""


@dataclass(frozen=True)
class Arm:
    """All that is known of one arm."""

    name: str
    scores: Scores
    predictions: tuple[Prediction, ...]
    manifests: Mapping[str, Manifest]
    """By the artifact's name."""
    cost: TrainingCost | None
    """None where the arm has no training of its own."""
    history: History | None
    size_on_disk_mib: float | None


def read_arms(sources: ComparisonSources, *, evaluation: EvaluationSettings) -> dict[str, Arm]:
    """Reads every arm, in the order of `ARMS`.

    Raises:
        ArtifactError: an arm's scores, model or training record is missing, not whole, or scored with other settings.
        DataError: two arms answered different samples.
    """
    arms = {name: _read_arm(name, sources, evaluation) for name in ARMS}
    for name, arm in arms.items():
        _check_paired(arm.predictions, arms[BASELINE].predictions, arm=name)
    return arms


def _read_arm(name: str, sources: ComparisonSources, evaluation: EvaluationSettings) -> Arm:
    try:
        scores, predictions, manifest = read_scores(sources.scores / name)
    except ArtifactError as error:
        message = f"arm '{name}' has no scores to compare: run `dvc repro evaluate@{name}`"
        raise ArtifactError(f"{message}. {error}") from error
    if scores.arm != name or manifest.settings.get("evaluation") != evaluation.model_dump(mode="json"):
        raise ArtifactError(
            f"asked for scores of arm '{name}' under {evaluation.model_dump(mode='json')}, found in "
            f"'{sources.scores / name}' arm '{scores.arm}' under {manifest.settings.get('evaluation')}: "
            f"run `dvc repro evaluate@{name}`"
        )
    manifests = {f"scores/{name}": manifest}
    if name == BASELINE:
        size = size_on_disk(sources.base) / _BYTES_PER_MIB if sources.base else None
        return Arm(name, scores, tuple(predictions), manifests, None, None, size)
    if name == MERGED:
        merged = _read_model(sources.merged, kind="MergedModel", arm=name, stage="merge")
        size = size_on_disk(sources.merged) / _BYTES_PER_MIB
        return Arm(name, scores, tuple(predictions), manifests | {"merged": merged}, None, None, size)
    stage = f"train@{name}"
    folder = sources.trained / name
    trained = _read_model(folder, kind=_TRAINED_KINDS[name], arm=name, stage=stage)
    cost = _read_record(sources.metrics / f"train-{name}.json", TrainingCost, arm=name, stage=stage)
    history = _read_record(folder / "history.json", History, arm=name, stage=stage)
    manifests |= {f"trained/{name}": trained}
    return Arm(name, scores, tuple(predictions), manifests, cost, history, cost.size_on_disk_mib)


def _read_model(folder: Path, *, kind: str, arm: str, stage: str) -> Manifest:
    try:
        return read_manifest(folder, kind=kind)
    except ArtifactError as error:
        raise ArtifactError(f"arm '{arm}' has no model: run `dvc repro {stage}`. {error}") from error


def _read_record(path: Path, model: type[_Record], *, arm: str, stage: str) -> _Record:
    try:
        return model.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, ValidationError) as error:
        raise ArtifactError(f"arm '{arm}' has no whole record '{path}': run `dvc repro {stage}`. {error}") from error


def _check_paired(first: Sequence[Prediction], second: Sequence[Prediction], *, arm: str) -> None:
    keys, others = ({(item.set, item.id, item.answer, item.pictures) for item in items} for items in (first, second))
    if keys == others:
        return
    ids = sorted(key[1] for key in keys ^ others)
    raise DataError(
        f"arms '{arm}' and '{BASELINE}' answered different samples ({len(ids)} rows differ, the first are of "
        f"{', '.join(dict.fromkeys(ids[:6]))}), so they can't be paired. "
        f"Run `dvc repro evaluate@{arm} evaluate@{BASELINE}`"
    )
