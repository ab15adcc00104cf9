"""What does LoRA cost me? Every arm's score, what it keeps of the full fine-tune's, what it forgot, and what it took.

All arms answered the same samples, and every difference and ratio is paired on them. It reads artifacts and writes
figures; how they look is the report's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgm_lora.artifacts import Manifest, new_artifact, new_file, read_manifest, write_json
from mgm_lora.data.table import read_samples
from mgm_lora.evaluation.answers import Answers
from mgm_lora.evaluation.baseline import guess_from_questions
from mgm_lora.evaluation.intervals import Estimate
from mgm_lora.evaluation.metrics import METRICS, RIGHT_OR_WRONG
from mgm_lora.evaluation.pairs import Pair, compare_pairs
from mgm_lora.evaluation.plots import write_plots
from mgm_lora.evaluation.predictions import Prediction
from mgm_lora.evaluation.rows import ArmRow, answers_in_score, flat, make_row
from mgm_lora.evaluation.scoring import scored
from mgm_lora.evaluation.sources import BASELINE, MERGED, Arm, ComparisonSources, FailedArm, read_arms
from mgm_lora.evaluation.trials import Trials, read_trials
from mgm_lora.evaluation.verdict import Verdict, judge
from mgm_lora.settings import REFERENCE, SUBJECT, ComparisonSettings, EvaluationSettings
from mgm_lora.sweeping.results import Asked


@dataclass(frozen=True)
class Comparison:
    """All that the report shows."""

    verdict: Verdict
    rows: tuple[ArmRow, ...]
    pairs: tuple[Pair, ...]
    """Every two arms but the merged one, which is another's."""
    question_only: Estimate
    arms: Mapping[str, Arm]
    failed: tuple[FailedArm, ...]
    trials: Trials
    """Of sweeps, beside the arms: one training each."""
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
        SweepError: a sweep's result can't be read.
    """
    manifest = read_manifest(sources.samples, kind="SampleTable")
    arms, failed = read_arms(sources, evaluation=evaluation, comparison=comparison, allow_failed=allow_failed)
    rows = {name: make_row(arm, arms=arms, evaluation=evaluation) for name, arm in arms.items()}
    verdict = judge(
        rows[SUBJECT].retention,
        score=rows[SUBJECT].score,
        reference=rows[REFERENCE].score,
        share=rows[SUBJECT].cost.trainable_share or 0.0,
        target=comparison.retention_target,
        confidence=evaluation.confidence,
        is_right_or_wrong=evaluation.metric in RIGHT_OR_WRONG,
    )
    return Comparison(
        verdict=verdict,
        rows=tuple(rows.values()),
        pairs=compare_pairs(
            {name: answers_in_score(arm, evaluation) for name, arm in arms.items() if name != MERGED},
            evaluation=evaluation,
        ),
        question_only=_question_only(sources.samples, arms[BASELINE].first.predictions, evaluation),
        arms=arms,
        failed=failed,
        trials=read_trials(sources.sweeps, arms=tuple(arms), asked=_asked(arms[BASELINE])),
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
        **flat("retention", retention),
        "retention_target": comparison.settings.retention_target,
        "confidence": comparison.evaluation.confidence,
        **flat("question_only", comparison.question_only),
        "num_seeds": len(comparison.settings.seeds),
        "arms": {row.name: row.metrics() for row in comparison.rows},
        **({"failed": {arm.name: arm.reason for arm in comparison.failed}} if comparison.failed else {}),
    }


def _asked(baseline: Arm) -> Asked:
    """What the arms were asked; `read_arms` has seen that all answered the same."""
    manifest = baseline.first.manifests[f"scores/{BASELINE}"]
    return Asked(
        samples=manifest.parents.get("samples", ""),
        base=str(manifest.base.get("digest", "")),
        evaluation=manifest.settings["evaluation"],
    )


def _question_only(samples: Path, predictions: Sequence[Prediction], evaluation: EvaluationSettings) -> Estimate:
    questions = scored(predictions, evaluation=evaluation)
    guesses = guess_from_questions(
        questions, train=read_samples(samples / "train.parquet"), metric=METRICS[evaluation.metric]
    )
    return Answers([guesses]).share(evaluation)
