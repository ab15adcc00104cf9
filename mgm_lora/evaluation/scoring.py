"""Predictions -> `Scores`: the share of right answers with its interval, over all scored types and by question type.

The score is taken on the held-out samples of the types that the settings name; the forgetting score on all of
`known`, which the base knew before. It doesn't know which model answered.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mgm_lora.artifacts import Manifest, new_artifact, new_file, read_manifest, write_json, write_manifest
from mgm_lora.data.table import Sample, read_samples
from mgm_lora.errors import ArtifactError, DataError
from mgm_lora.evaluation.answers import Answers
from mgm_lora.evaluation.intervals import Estimate
from mgm_lora.evaluation.learned import WeightUpdate, write_updates
from mgm_lora.evaluation.predictions import (
    SET_NAMES,
    Prediction,
    SetName,
    check_same_samples,
    of_set,
    read_predictions,
    type_name,
    write_predictions,
)
from mgm_lora.settings import EvaluationSettings

KIND = "Scores"
PREDICTIONS_NAME = "predictions.parquet"
SCORES_NAME = "scores.json"

logger = logging.getLogger(__name__)


class Scores(BaseModel):
    """An arm's scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    score: Estimate
    """On held-out samples of the scored types."""
    by_type: dict[str, Estimate]
    """On held-out samples, every type, scored or not."""
    forgetting_score: Estimate | None
    """On `known`; none where the data names no known set."""
    forgetting_by_type: dict[str, Estimate]
    loss: Estimate | None
    """Mean loss of a token of the true answers, in nats, where the score was taken; none where it was not taken."""
    known_loss: Estimate | None
    """Likewise on `known`."""
    score_types: tuple[str, ...]
    confidence: float


def read_table(samples: Path) -> dict[SetName, list[Sample]]:
    """The sets of a `SampleTable` that are scored; `known` only where it is there."""
    read_manifest(samples, kind="SampleTable")
    paths = {name: samples / f"{name}.parquet" for name in SET_NAMES}
    return {name: read_samples(path) for name, path in paths.items() if name == "heldout" or path.is_file()}


def score_predictions(predictions: Sequence[Prediction], *, arm: str, evaluation: EvaluationSettings) -> Scores:
    """Scores an arm's predictions; their order doesn't matter.

    Raises:
        DataError: there is nothing to score, or no sample of a type that `evaluation.score_types` names.
    """
    known = of_set(predictions, "known")
    in_score = Answers([scored(predictions, evaluation=evaluation)])
    return Scores(
        arm=arm,
        score=in_score.share(evaluation),
        by_type=_by_type(of_set(predictions, "heldout"), evaluation),
        forgetting_score=Answers([known]).share(evaluation) if known else None,
        forgetting_by_type=_by_type(known, evaluation),
        loss=in_score.loss(evaluation),
        known_loss=Answers([known]).loss(evaluation) if known else None,
        score_types=evaluation.score_types,
        confidence=evaluation.confidence,
    )


def scored(predictions: Sequence[Prediction], *, evaluation: EvaluationSettings) -> list[Prediction]:
    """The held-out predictions that are in the score, sorted by id; raises as `score_predictions` does."""
    heldout = of_set(predictions, "heldout")
    types = sorted({type_name(item) for item in heldout})
    unknown = [name for name in evaluation.score_types if name not in types]
    if unknown:
        raise DataError(
            f"evaluation.score_types names {', '.join(unknown)}, but no held-out sample is of that type; there are: "
            f"{', '.join(types) or 'none'}. Name some of these, or none to score all"
        )
    if not heldout:
        raise DataError("there is no held-out prediction to score: is the held-out file empty?")
    return [item for item in heldout if not evaluation.score_types or type_name(item) in evaluation.score_types]


def write_scores(
    predictions: Sequence[Prediction],
    *,
    arm: str,
    samples: Path,
    evaluation: EvaluationSettings,
    parents: Mapping[str, str],
    base: Mapping[str, Any],
    destination: Path,
    updates: Sequence[WeightUpdate] = (),
    metrics: Path,
) -> Scores:
    """Scores predictions of the `SampleTable` at `samples`, and writes the artifact (with what the model has learned) and the metrics for DVC.

    Raises:
        DataError: the predictions are for other samples, or the settings name a question type that isn't there.
    """
    check_same_samples(predictions, truth=read_table(samples))
    scores = score_predictions(predictions, arm=arm, evaluation=evaluation)
    manifest = Manifest.make(
        KIND,
        settings={"evaluation": evaluation},
        parents=parents,
        base=base,
        seed=evaluation.seed,
        details={"arm": arm, "num_answers": len(predictions)},
    )
    with new_artifact(destination) as folder:
        ordered = [item for name in SET_NAMES for item in of_set(predictions, name)]
        write_predictions(folder / PREDICTIONS_NAME, ordered)
        write_json(folder / SCORES_NAME, scores.model_dump(mode="json"))
        write_updates(folder, updates)
        write_manifest(folder, manifest)
    with new_file(metrics) as file:
        write_json(file, _metrics(scores))
    logger.info("%s: score %s on %d questions", arm, scores.score.value, scores.score.num_samples)
    return scores


def read_scores(folder: Path) -> tuple[Scores, list[Prediction], Manifest]:
    """Reads what `write_scores` wrote.

    Raises:
        ArtifactError: the artifact is missing, of another kind, or not whole.
    """
    manifest = read_manifest(folder, kind=KIND)
    path = folder / SCORES_NAME
    try:
        scores = Scores.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"'{path}' holds no scores: {error}. Run the stage `evaluate` that makes it") from error
    return scores, read_predictions(folder / PREDICTIONS_NAME), manifest


def _by_type(predictions: Sequence[Prediction], evaluation: EvaluationSettings) -> dict[str, Estimate]:
    answers = Answers([predictions])
    return {name: answers.of_type(name).share(evaluation) for name in answers.types()}


def _metrics(scores: Scores) -> dict[str, float]:
    by_type = {f"score_{name}": estimate.value for name, estimate in scores.by_type.items()}
    found = {
        "score": scores.score,
        "known": scores.forgetting_score,
        "loss": scores.loss,
        "known_loss": scores.known_loss,
    }
    estimates = {name: estimate for name, estimate in found.items() if estimate is not None}
    return {f"{name}{part}": value for name, item in estimates.items() for part, value in _parts(item)} | by_type


def _parts(estimate: Estimate) -> list[tuple[str, float]]:
    return [("", estimate.value), ("_low", estimate.low), ("_high", estimate.high), ("_samples", estimate.num_samples)]
