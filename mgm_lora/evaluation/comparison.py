"""What does LoRA cost me? Every arm's score, what it keeps of the full fine-tune's, what it forgot, and what it took.

All arms answered the same samples, and every difference and ratio is paired on them. It reads artifacts and writes
figures; how they look is the report's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean

from mgm_lora.artifacts import Manifest, new_artifact, new_file, read_manifest, write_json
from mgm_lora.data.table import read_samples
from mgm_lora.evaluation.baseline import guess_from_questions
from mgm_lora.evaluation.intervals import (
    Estimate,
    Indices,
    estimate_difference,
    estimate_ratio,
    estimate_share,
    p_value_of_difference,
    picture_clusters,
)
from mgm_lora.evaluation.plots import write_plots
from mgm_lora.evaluation.predictions import Prediction, of_set
from mgm_lora.evaluation.scoring import scored, type_name
from mgm_lora.evaluation.sources import BASELINE, Arm, ComparisonSources, FailedArm, read_arms
from mgm_lora.evaluation.verdict import Verdict, judge
from mgm_lora.settings import REFERENCE, SUBJECT, ComparisonSettings, EvaluationSettings


@dataclass(frozen=True)
class ArmRow:
    """One row of the table."""

    name: str
    score: Estimate
    """Mean over the arm's trainings."""
    by_type: Mapping[str, Estimate]
    """On held-out samples, every question type, scored or not."""
    seed_scores: tuple[float, ...]
    """Of each training."""
    retention: Estimate | None
    """Score over the full fine-tune's; none for the base and the full fine-tune, or where that is right too rarely."""
    retention_by_type: Mapping[str, Estimate]
    difference: Estimate | None
    """Score minus the full fine-tune's; none for that itself."""
    p_value: float | None
    """Of "the arm and the full fine-tune are right equally often", paired on the same pictures."""
    forgetting: Estimate | None
    """Score on `known` of the base minus the arm's; none for the base, or where nothing is known."""
    trainable_parameters: int | None
    trainable_share: float | None
    planned_memory_gib: float | None
    step_memory_gib: float | None
    minutes: float | None
    """Of one training, the mean."""
    samples_per_second: float | None
    """Likewise."""
    size_on_disk_mib: float | None


@dataclass(frozen=True)
class Comparison:
    """All that the report shows."""

    verdict: Verdict
    rows: tuple[ArmRow, ...]
    question_only: Estimate
    arms: Mapping[str, Arm]
    failed: tuple[FailedArm, ...]
    samples: Manifest
    """The `SampleTable`'s manifest."""
    evaluation: EvaluationSettings
    settings: ComparisonSettings


def compare(
    sources: ComparisonSources,
    *,
    evaluation: EvaluationSettings,
    comparison: ComparisonSettings,
    allow_failed: bool = False,
) -> Comparison:
    """Compares all arms.

    Args:
        sources: where they lie.
        evaluation: how they were scored, and how intervals are taken.
        comparison: which they are.
        allow_failed: tell arms that are missing or not whole among the results, instead of stopping.

    Raises:
        ArtifactError: an arm is missing or not whole; the message names the stage to run.
        DataError: the arms answered different samples.
    """
    manifest = read_manifest(sources.samples, kind="SampleTable")
    arms, failed = read_arms(sources, evaluation=evaluation, comparison=comparison, allow_failed=allow_failed)
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
        question_only=_question_only(sources.samples, arms[BASELINE].first.predictions, evaluation),
        arms=arms,
        failed=failed,
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
        "num_seeds": len(comparison.settings.seeds),
        "arms": {row.name: _row_metrics(row) for row in comparison.rows},
        **({"failed": {arm.name: arm.reason for arm in comparison.failed}} if comparison.failed else {}),
    }


def _row(arm: Arm, *, arms: Mapping[str, Arm], evaluation: EvaluationSettings) -> ArmRow:
    is_trained = arm.name not in (BASELINE, REFERENCE)
    mine, theirs = _answers(arm, evaluation), _answers(arms[REFERENCE], evaluation)
    costs = [run.cost for run in arm.runs if run.cost]
    speeds = [cost.samples_per_second for cost in costs if cost.samples_per_second is not None]
    first = arm.first.cost
    return ArmRow(
        name=arm.name,
        score=mine.share(evaluation),
        by_type=_by_type(arm, evaluation),
        seed_scores=tuple(run.scores.score.value for run in arm.runs),
        retention=mine.over(theirs, evaluation) if is_trained else None,
        retention_by_type=_retention_by_type(mine, theirs, evaluation) if is_trained else {},
        difference=mine.minus(theirs, evaluation) if arm.name != REFERENCE else None,
        p_value=mine.p_value(theirs, evaluation) if arm.name != REFERENCE else None,
        forgetting=_forgetting(arm, arms[BASELINE], evaluation) if arm.name != BASELINE else None,
        trainable_parameters=first.trainable_parameters if first else None,
        trainable_share=first.trainable_share if first else None,
        planned_memory_gib=first.planned_memory_gib if first else None,
        step_memory_gib=first.step_memory_gib if first else None,
        minutes=mean(cost.minutes for cost in costs) if costs else None,
        samples_per_second=mean(speeds) if speeds else None,
        size_on_disk_mib=arm.first.size_on_disk_mib,
    )


@dataclass(frozen=True)
class _Answers:
    """The same questions, answered by each of an arm's trainings."""

    items: Sequence[Sequence[Prediction]]
    """[K][S], each row sorted by id."""

    @cached_property
    def correct_KS(self) -> list[list[bool]]:
        return [[item.correct for item in row] for row in self.items]

    @cached_property
    def clusters_S(self) -> Indices:
        return picture_clusters([item.pictures for item in self.items[0]])

    def share(self, evaluation: EvaluationSettings) -> Estimate:
        return estimate_share(self.correct_KS, clusters_S=self.clusters_S, evaluation=evaluation)

    def over(self, other: "_Answers", evaluation: EvaluationSettings) -> Estimate | None:
        return estimate_ratio(self.correct_KS, other.correct_KS, clusters_S=self.clusters_S, evaluation=evaluation)

    def minus(self, other: "_Answers", evaluation: EvaluationSettings) -> Estimate:
        return estimate_difference(self.correct_KS, other.correct_KS, clusters_S=self.clusters_S, evaluation=evaluation)

    def p_value(self, other: "_Answers", evaluation: EvaluationSettings) -> float:
        return p_value_of_difference(
            self.correct_KS, other.correct_KS, clusters_S=self.clusters_S, evaluation=evaluation
        )

    def types(self) -> list[str]:
        return sorted({type_name(item) for item in self.items[0]})

    def of_type(self, name: str) -> "_Answers":
        return _Answers([[item for item in row if type_name(item) == name] for row in self.items])


def _answers(arm: Arm, evaluation: EvaluationSettings) -> _Answers:
    return _Answers([scored(run.predictions, evaluation=evaluation) for run in arm.runs])


def _by_type(arm: Arm, evaluation: EvaluationSettings) -> dict[str, Estimate]:
    heldout = _Answers([of_set(run.predictions, "heldout") for run in arm.runs])
    return {name: heldout.of_type(name).share(evaluation) for name in heldout.types()}


def _retention_by_type(mine: _Answers, theirs: _Answers, evaluation: EvaluationSettings) -> dict[str, Estimate]:
    ratios = {name: mine.of_type(name).over(theirs.of_type(name), evaluation) for name in mine.types()}
    return {name: ratio for name, ratio in ratios.items() if ratio is not None}


def _forgetting(arm: Arm, baseline: Arm, evaluation: EvaluationSettings) -> Estimate | None:
    before, after = (_Answers([of_set(run.predictions, "known") for run in item.runs]) for item in (baseline, arm))
    return before.minus(after, evaluation) if before.items[0] else None


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
        "samples_per_second": row.samples_per_second,
        "p_value": row.p_value,
        "size_on_disk_mib": row.size_on_disk_mib,
    }
    return {
        **_flat("score", row.score),
        **_flat("retention", row.retention),
        **_flat("difference", row.difference),
        **_flat("forgetting", row.forgetting),
        **{name: value for name, value in figures.items() if value is not None},
    }


def _flat(name: str, estimate: Estimate | None) -> dict[str, float]:
    if estimate is None:
        return {}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
