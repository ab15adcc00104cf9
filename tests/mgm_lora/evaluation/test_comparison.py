"""The comparison's figures, computed by hand: 60 pictures with two questions, 40 known ones."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mgm_lora.evaluation.comparison import compare, comparison_metrics, write_comparison
from mgm_lora.evaluation.sources import ComparisonSources
from mgm_lora.evaluation.verdict import Outcome
from mgm_lora.settings import ComparisonSettings, EvaluationSettings

MakeRun = Callable[..., ComparisonSources]


def test_rows_hold_what_the_arms_scored_kept_and_forgot(
    make_run: MakeRun, evaluation: EvaluationSettings, comparison_settings: ComparisonSettings
) -> None:
    comparison = compare(make_run(), evaluation=evaluation, comparison=comparison_settings)
    rows = {row.name: row for row in comparison.rows}
    assert [row.score.value for row in comparison.rows] == [0.1, 0.9, 0.9, 0.95]
    assert rows["lora"].retention is not None
    assert rows["lora"].retention.value == round(54 / 57, 6)
    assert rows["lora"].retention.num_pictures == 60
    assert rows["merged"].retention == rows["lora"].retention
    assert rows["base"].retention is rows["full"].retention is None
    assert {name: item.value for name, item in rows["lora"].retention_by_type.items()} == {
        "colour": round(54 / 57, 6),
        "shape": round(54 / 57, 6),
    }
    assert rows["base"].forgetting is rows["base"].loss_rise is None
    per_token = [row.known_loss.value for row in comparison.rows if row.known_loss]
    assert per_token == pytest.approx([(0.5 * right + 4.0 * (40 - right)) / 80 for right in (30, 28, 28, 18)])
    rises = [row.loss_rise.value for row in comparison.rows if row.loss_rise]
    assert rises == pytest.approx([value - per_token[0] for value in per_token[1:]])
    assert [row.forgetting.value for row in comparison.rows if row.forgetting] == [0.05, 0.05, 0.3]
    assert (rows["lora"].cost.trainable_share, rows["lora"].cost.minutes, rows["merged"].cost.minutes) == (
        0.031,
        1.5,
        None,
    )
    # 20 training pictures: black is the first of four equally frequent colours, circle of two shapes
    assert comparison.question_only.value == round((15 + 20) / 120, 6)


@pytest.mark.parametrize("num_right, outcome", [(60, Outcome.SHOWN), (57, Outcome.NOT_SHOWN), (40, Outcome.REFUTED)])
def test_verdict_follows_the_interval(
    make_run: MakeRun,
    evaluation: EvaluationSettings,
    comparison_settings: ComparisonSettings,
    num_right: int,
    outcome: Outcome,
) -> None:
    sources = make_run(num_right={"lora": (num_right, 20), "full": (57, 20)})
    comparison = compare(sources, evaluation=evaluation, comparison=comparison_settings)
    assert comparison.verdict.outcome == outcome


def test_a_full_fine_tune_that_is_never_right_shows_nothing(
    make_run: MakeRun, evaluation: EvaluationSettings, comparison_settings: ComparisonSettings
) -> None:
    sources = make_run(num_right={"full": (0, 0)})
    comparison = compare(sources, evaluation=evaluation, comparison=comparison_settings)
    assert comparison.verdict.outcome == Outcome.NOT_SHOWN
    assert "retention" not in comparison_metrics(comparison)


def test_without_known_samples_forgetting_is_left_out(
    make_run: MakeRun, evaluation: EvaluationSettings, comparison_settings: ComparisonSettings
) -> None:
    comparison = compare(make_run(with_known=False), evaluation=evaluation, comparison=comparison_settings)
    assert all(row.forgetting is None for row in comparison.rows)


def test_metrics_and_plots_are_written_for_dvc(
    make_run: MakeRun, evaluation: EvaluationSettings, comparison_settings: ComparisonSettings, tmp_path: Path
) -> None:
    comparison = compare(make_run(), evaluation=evaluation, comparison=comparison_settings)
    write_comparison(comparison, metrics=tmp_path / "metrics/comparison.json", plots=tmp_path / "reports/plots")
    metrics = json.loads((tmp_path / "metrics/comparison.json").read_text())
    assert metrics["outcome"] == str(comparison.verdict.outcome)
    assert metrics["retention"] == metrics["arms"]["lora"]["retention"] == round(54 / 57, 6)
    assert metrics["arms"]["lora"]["forgetting"] == 0.05
    assert metrics["arms"]["base"].keys() == {
        *("score", "score_low", "score_high"),
        *("difference", "difference_low", "difference_high", "p_value"),
        *("loss", "loss_low", "loss_high", "known_loss", "known_loss_low", "known_loss_high"),
    }
    plots = {path.name: json.loads(path.read_text()) for path in (tmp_path / "reports/plots").iterdir()}
    assert [row["arm"] for row in plots["scores.json"]] == ["base", "lora", "merged", "full", "question-only"]
    assert len(plots["train-loss.json"]) == 2 * 29
    assert plots["heldout-loss.json"][0] == {"arm": "lora", "seed": 17, "step": 1, "samples": 8, "loss": 4.0}
    assert len(plots["confusion-lora.json"]) == 120
    assert plots["confusion-lora.json"][0].keys() == {"truth", "answer"}
    assert len(plots) == 5
