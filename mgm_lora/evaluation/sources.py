"""What a comparison reads: the scores, training records and artifacts of every arm, checked to be whole and about the
same samples.

An arm is trained once for each seed. One that is missing is an error that names the stage to run, or, where that is asked for, told as failed;
never a row left out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mgm_lora.artifacts import Manifest, read_manifest, size_on_disk
from mgm_lora.errors import ArtifactError, DataError
from mgm_lora.evaluation.learned import WeightUpdate, read_updates
from mgm_lora.evaluation.predictions import Prediction
from mgm_lora.evaluation.scoring import Scores, read_scores
from mgm_lora.settings import REFERENCE, SUBJECT, ComparisonSettings, EvaluationSettings

BASELINE = "base"
MERGED = "merged"
_TRAINED_KINDS = ("TrainedAdapter", "TrainedModel")
_BYTES_PER_MIB = 2**20

_Record = TypeVar("_Record", bound=BaseModel)


@dataclass(frozen=True)
class ComparisonSources:
    """Where things lie."""

    samples: Path
    """The `SampleTable`."""
    scores: Path
    """Holds a folder of `Scores` per model: `base`, `merged`, `<arm>-<seed>`."""
    trained: Path
    """Holds a folder `<arm>-<seed>` per training."""
    merged: Path
    """The `MergedModel`."""
    metrics: Path
    """Holds `train/<arm>-<seed>.json`."""
    base: Path | None = None
    """The base's checkpoint, for its size; none: the size is not shown."""
    sweeps: Path | None = None
    """Holds a result per sweep that has come to its end; none: there are no sweeps."""


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
    seconds_per_step: float | None = None
    samples_per_second: float | None = None
    energy_wh: float | None = None
    """What the cards took; none where they don't tell."""
    size_on_disk_mib: float
    device: str = ""
    """What it was trained on, where the training says so."""


@dataclass(frozen=True, kw_only=True)
class ArmRun:
    """An arm as one seed made it; of the base and the merged model, which no training of their own made, there is one."""

    seed: int | None
    """None where no training of its own made it, and so below."""
    scores: Scores
    predictions: tuple[Prediction, ...]
    manifests: Mapping[str, Manifest]
    """By the artifact's name."""
    cost: TrainingCost | None = None
    history: History | None = None
    updates: tuple[WeightUpdate, ...] = ()
    """What it has learned, map by map."""
    size_on_disk_mib: float | None = None


@dataclass(frozen=True)
class Arm:
    """All that is known of one arm."""

    name: str
    runs: tuple[ArmRun, ...]
    """By seed, in the settings' order; never empty."""

    @property
    def first(self) -> ArmRun:
        """That of the first seed, whose adapter is merged and registered."""
        return self.runs[0]


@dataclass(frozen=True)
class FailedArm:
    """An arm that is asked for and not whole."""

    name: str
    reason: str


def read_arms(
    sources: ComparisonSources,
    *,
    evaluation: EvaluationSettings,
    comparison: ComparisonSettings,
    allow_failed: bool = False,
) -> tuple[dict[str, Arm], tuple[FailedArm, ...]]:
    """Reads every arm: the base, `lora`, the merged model, then the others as the settings name them.

    Args:
        sources: where.
        evaluation: what they must have been scored with.
        comparison: which arms and seeds.
        allow_failed: tell arms that are not whole instead of stopping; base, `lora` and `full` must be whole all the same.

    Raises:
        ArtifactError: an arm's scores, model or training record is missing, not whole, scored with other settings, or of another base.
        DataError: two arms answered different samples.
    """
    others = [name for name in comparison.arms if name != SUBJECT]
    arms: dict[str, Arm] = {}
    failed: list[FailedArm] = []
    for name in (BASELINE, SUBJECT, MERGED, *others):
        try:
            seeds = (None,) if name in (BASELINE, MERGED) else comparison.seeds
            arms[name] = Arm(name, tuple(_read_run(name, seed, sources, evaluation) for seed in seeds))
        except ArtifactError as error:
            if not allow_failed or name in (BASELINE, SUBJECT, REFERENCE):
                raise
            failed.append(FailedArm(name, str(error)))
    for name, arm in arms.items():
        for run in arm.runs:
            _check_same_base(run, arms[BASELINE].first, name=_run_name(name, run.seed))
            _check_paired(run.predictions, arms[BASELINE].first.predictions, name=_run_name(name, run.seed))
    return arms, tuple(failed)


def _read_run(arm: str, seed: int | None, sources: ComparisonSources, evaluation: EvaluationSettings) -> ArmRun:
    name = _run_name(arm, seed)
    stage = f"evaluate-{name}" if seed is None else f"evaluate@{name}"
    try:
        scores, predictions, manifest = read_scores(sources.scores / name)
    except ArtifactError as error:
        raise ArtifactError(f"'{name}' has no scores to compare: run `dvc repro {stage}`. {error}") from error
    if scores.arm != name or manifest.settings.get("evaluation") != evaluation.model_dump(mode="json"):
        raise ArtifactError(
            f"asked for scores of '{name}' under {evaluation.model_dump(mode='json')}, found in "
            f"'{sources.scores / name}' those of '{scores.arm}' under {manifest.settings.get('evaluation')}: "
            f"run `dvc repro {stage}`"
        )
    run = ArmRun(seed=seed, scores=scores, predictions=tuple(predictions), manifests={f"scores/{name}": manifest})
    if arm == BASELINE:
        return replace(run, size_on_disk_mib=size_on_disk(sources.base) / _BYTES_PER_MIB if sources.base else None)
    if arm == MERGED:
        merged = _read_model(sources.merged, kind="MergedModel", name=name, stage="merge")
        manifests = {**run.manifests, "merged": merged}
        return replace(run, manifests=manifests, size_on_disk_mib=size_on_disk(sources.merged) / _BYTES_PER_MIB)
    return _with_training(run, name, sources)


def _with_training(run: ArmRun, name: str, sources: ComparisonSources) -> ArmRun:
    folder = sources.trained / name
    trained = _read_model(folder, kind=_TRAINED_KINDS, name=name, stage=f"train@{name}")
    cost = _read_record(sources.metrics / "train" / f"{name}.json", TrainingCost, name=name)
    return replace(
        run,
        manifests={**run.manifests, f"trained/{name}": trained},
        cost=cost,
        history=_read_record(folder / "history.json", History, name=name),
        size_on_disk_mib=cost.size_on_disk_mib,
        updates=read_updates(sources.scores / name),
    )


def _run_name(arm: str, seed: int | None) -> str:
    return arm if seed is None else f"{arm}-{seed}"


def _read_model(folder: Path, *, kind: str | Sequence[str], name: str, stage: str) -> Manifest:
    try:
        return read_manifest(folder, kind=kind)
    except ArtifactError as error:
        raise ArtifactError(f"'{name}' has no model: run `dvc repro {stage}`. {error}") from error


def _read_record(path: Path, model: type[_Record], *, name: str) -> _Record:
    try:
        return model.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, ValidationError) as error:
        raise ArtifactError(f"'{name}' has no whole record '{path}': run `dvc repro train@{name}`. {error}") from error


def _check_same_base(run: ArmRun, baseline: ArmRun, *, name: str) -> None:
    """What an arm has learned, and forgotten, is told beside the base that it began with, and no other."""
    theirs, ours = (run.manifests[f"scores/{name}"].base, baseline.manifests[f"scores/{BASELINE}"].base)
    if theirs.get("digest") != ours.get("digest"):
        raise ArtifactError(
            f"'{name}' stands on the base {theirs.get('model')} with digest {theirs.get('digest')}, and the baseline that was asked is"
            f" {ours.get('model')} with digest {ours.get('digest')}: run `dvc repro`, which makes all anew that is of another base"
        )


def _check_paired(first: Sequence[Prediction], second: Sequence[Prediction], *, name: str) -> None:
    keys, others = ({(item.set, item.id, item.answer, item.pictures) for item in items} for items in (first, second))
    if keys == others:
        return
    ids = sorted(key[1] for key in keys ^ others)
    raise DataError(
        f"'{name}' and '{BASELINE}' answered different samples ({len(ids)} rows differ, the first are of "
        f"{', '.join(dict.fromkeys(ids[:6]))}), so they can't be paired. Run `dvc repro evaluate evaluate-{BASELINE}`"
    )
