"""What does LoRA cost me? Every arm's score, what it keeps of the full fine-tune's, what it forgot, and what it took.

All arms answered the same samples, and every difference and ratio is paired on them. It reads artifacts and writes
figures; how they look is the report's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgm_lora.artifacts import Manifest, new_artifact, new_file, read_manifest, write_json
from mgm_lora.data.table import read_samples
from mgm_lora.evaluation.baseline import guess_from_questions
from mgm_lora.evaluation.intervals import (
    Estimate,
    estimate_difference,
    estimate_ratio,
    estimate_share,
    picture_clusters,
)
from mgm_lora.evaluation.plots import write_plots
from mgm_lora.evaluation.predictions import Prediction, of_set
from mgm_lora.evaluation.scoring import scored, type_name
from mgm_lora.evaluation.sources import BASELINE, REFERENCE, SUBJECT, Arm, ComparisonSources, read_arms
from mgm_lora.evaluation.verdict import Verdict, judge
from mgm_lora.settings import ComparisonSettings, EvaluationSettings


@dataclass(frozen=True)
class ArmRow:
    """One row of the table."""

    name: str
    score: Estimate
    retention: Estimate | None
    """Score over the full fine-tune's; none for the base and the full fine-tune, or where that is right too rarely."""
    retention_by_type: Mapping[str, Estimate]
    forgetting: Estimate | None
    """Score on `known` of the base minus the arm's; none for the base, or where nothing is known."""
    trainable_parameters: int | None
    trainable_share: float | None
    planned_memory_gib: float | None
    step_memory_gib: float | None
    minutes: float | None
    size_on_disk_mib: float | None


@dataclass(frozen=True)
class Comparison:
    """All that the report shows."""

    verdict: Verdict
    rows: tuple[ArmRow, ...]
    question_only: Estimate
    arms: Mapping[str, Arm]
    samples: Manifest
    """The `SampleTable`'s manifest."""
    evaluation: EvaluationSettings
    settings: ComparisonSettings


def compare(
    sources: ComparisonSources, *, evaluation: EvaluationSettings, comparison: ComparisonSettings
) -> Comparison:
    """Compares all arms.

    Raises:
        ArtifactError: an arm is missing or not whole; the message names the stage to run.
        DataError: the arms answered different samples.
    """
    manifest = read_manifest(sources.samples, kind="SampleTable")
    arms = read_arms(sources, evaluation=evaluation)
    rows = {name: _row(arm, arms=arms, evaluation=evaluation) for name, arm in arms.items()}
    verdict = judge(
        rows[SUBJECT].retention,
        score=rows[SUBJECT].score,
        reference=rows[REFERENCE].score,
        share=rows[SUBJECT].trainable_share or 0.0,
        target=comparison.retention_target,
        confidence=evaluation.confidence,
    )
    return Comparison(
        verdict=verdict,
        rows=tuple(rows.values()),
        question_only=_question_only(sources.samples, arms[BASELINE].predictions, evaluation),
        arms=arms,
        samples=manifest,
        evaluation=evaluation,
        settings=comparison,
    )


def write_comparison(comparison: Comparison, *, metrics: Path, plots: Path) -> None:
    """Writes the figures for `dvc metrics` (one file) and `dvc plots` (a folder of files)."""
    with new_file(metrics) as file:
        write_json(file, comparison_metrics(comparison))
    with new_artifact(plots) as folder:
        write_plots(
            folder,
            arms=comparison.arms,
            evaluation=comparison.evaluation,
            scores={row.name: row.score for row in comparison.rows} | {"question-only": comparison.question_only},
        )


def comparison_metrics(comparison: Comparison) -> dict[str, object]:
    """The figures as nested JSON; what an arm doesn't have is left out of its entry."""
    retention = {row.name: row for row in comparison.rows}[SUBJECT].retention
    return {
        "verdict": comparison.verdict.sentence,
        "claim": comparison.verdict.claim,
        "outcome": str(comparison.verdict.outcome),
        **_flat("retention", retention),
        "retention_target": comparison.settings.retention_target,
        "confidence": comparison.evaluation.confidence,
        **_flat("question_only", comparison.question_only),
        "arms": {row.name: _row_metrics(row) for row in comparison.rows},
    }


def _row(arm: Arm, *, arms: Mapping[str, Arm], evaluation: EvaluationSettings) -> ArmRow:
    is_trained = arm.name not in (BASELINE, REFERENCE)
    return ArmRow(
        name=arm.name,
        score=arm.scores.score,
        retention=_retention(arm, arms[REFERENCE], evaluation) if is_trained else None,
        retention_by_type=_retention_by_type(arm, arms[REFERENCE], evaluation) if is_trained else {},
        forgetting=_forgetting(arm, arms[BASELINE], evaluation) if arm.name != BASELINE else None,
        trainable_parameters=arm.cost.trainable_parameters if arm.cost else None,
        trainable_share=arm.cost.trainable_share if arm.cost else None,
        planned_memory_gib=arm.cost.planned_memory_gib if arm.cost else None,
        step_memory_gib=arm.cost.step_memory_gib if arm.cost else None,
        minutes=arm.cost.minutes if arm.cost else None,
        size_on_disk_mib=arm.size_on_disk_mib,
    )


def _retention(arm: Arm, reference: Arm, evaluation: EvaluationSettings) -> Estimate | None:
    mine, theirs = (scored(item.predictions, evaluation=evaluation) for item in (arm, reference))
    return _ratio(mine, theirs, evaluation)


def _retention_by_type(arm: Arm, reference: Arm, evaluation: EvaluationSettings) -> dict[str, Estimate]:
    mine, theirs = (scored(item.predictions, evaluation=evaluation) for item in (arm, reference))
    ratios = {
        name: _ratio(
            [item for item in mine if type_name(item) == name],
            [item for item in theirs if type_name(item) == name],
            evaluation,
        )
        for name in sorted({type_name(item) for item in mine})
    }
    return {name: ratio for name, ratio in ratios.items() if ratio is not None}


def _ratio(mine: Sequence[Prediction], theirs: Sequence[Prediction], evaluation: EvaluationSettings) -> Estimate | None:
    return estimate_ratio(
        [item.correct for item in mine],
        [item.correct for item in theirs],
        clusters_S=picture_clusters([item.pictures for item in mine]),
        evaluation=evaluation,
    )


def _forgetting(arm: Arm, baseline: Arm, evaluation: EvaluationSettings) -> Estimate | None:
    before, after = (of_set(item.predictions, "known") for item in (baseline, arm))
    if not before:
        return None
    return estimate_difference(
        [item.correct for item in before],
        [item.correct for item in after],
        clusters_S=picture_clusters([item.pictures for item in before]),
        evaluation=evaluation,
    )


def _question_only(samples: Path, predictions: Sequence[Prediction], evaluation: EvaluationSettings) -> Estimate:
    questions = scored(predictions, evaluation=evaluation)
    guesses = guess_from_questions(questions, train=read_samples(samples / "train.parquet"))
    return estimate_share(
        [item.correct for item in guesses],
        clusters_S=picture_clusters([item.pictures for item in guesses]),
        evaluation=evaluation,
    )


def _row_metrics(row: ArmRow) -> dict[str, float]:
    figures = {
        "trainable_parameters": row.trainable_parameters,
        "trainable_share": row.trainable_share,
        "planned_memory_gib": row.planned_memory_gib,
        "step_memory_gib": row.step_memory_gib,
        "minutes": row.minutes,
        "size_on_disk_mib": row.size_on_disk_mib,
    }
    return {
        **_flat("score", row.score),
        **_flat("retention", row.retention),
        **_flat("forgetting", row.forgetting),
        **{name: value for name, value in figures.items() if value is not None},
    }


def _flat(name: str, estimate: Estimate | None) -> dict[str, float]:
    if estimate is None:
        return {}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
