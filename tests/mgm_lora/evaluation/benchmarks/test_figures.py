"""Figures and their intervals: by picture, within [0, 1], and over groups that count alike."""

import numpy as np
import pytest

from mgm_lora.evaluation.benchmarks.figures import Figure, mean_of_groups_figure, ratio_figure, share_figure
from mgm_lora.settings import EvaluationSettings

PICTURES = [f"{number // 2}" for number in range(200)]
RIGHT = [float(number % 5 > 0) for number in range(200)]


def mean_of_groups(values: list[float], groups: list[str], evaluation: EvaluationSettings) -> Figure:
    return mean_of_groups_figure(
        values,
        groups=groups,
        pictures=[str(number) for number in range(len(values))],
        group="perception",
        metric="score",
        out_of=400.0,
        evaluation=evaluation,
    )


def test_share_is_bootstrapped_by_picture(evaluation: EvaluationSettings) -> None:
    figure = share_figure(RIGHT, pictures=PICTURES, group="all", metric="accuracy", evaluation=evaluation)
    alone = share_figure(
        RIGHT, pictures=[str(i) for i in range(200)], group="all", metric="accuracy", evaluation=evaluation
    )
    assert figure.value == alone.value == 0.8
    assert (figure.num_questions, figure.num_pictures, alone.num_pictures) == (200, 100, 200)
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low < 0.8 < figure.high


def test_ratio_stays_below_one_and_has_no_interval_of_few_pictures(evaluation: EvaluationSettings) -> None:
    wholes = [1.0] * 200
    figure = ratio_figure(RIGHT, wholes, pictures=PICTURES, group="all", metric="recall", evaluation=evaluation)
    assert figure.value == 0.8
    assert figure.high is not None
    assert 0.8 < figure.high <= 1.0
    whole = ratio_figure(wholes, wholes, pictures=PICTURES, group="all", metric="recall", evaluation=evaluation)
    assert whole.high == 1.0
    assert whole.low is not None
    assert whole.low < 1.0
    few = ratio_figure([1.0, 0.0], [1.0, 1.0], pictures=["a", "b"], group="all", metric="F1", evaluation=evaluation)
    assert (few.value, few.low, few.high, few.num_pictures) == (0.5, None, None, 2)
    none = ratio_figure([0.0], [0.0], pictures=["a"], group="all", metric="F1", evaluation=evaluation)
    assert none.value == 0.0


def test_groups_count_alike_however_large_they_are(evaluation: EvaluationSettings) -> None:
    values = [1.0] * 30 + [0.0] * 30 + [1.0] * 9 + [0.0]
    figure = mean_of_groups(values, ["large"] * 60 + ["small"] * 10, evaluation)
    assert figure.value == pytest.approx(400 * (0.5 + 0.9) / 2)


def test_what_varies_between_groups_is_not_in_the_interval(evaluation: EvaluationSettings) -> None:
    """The width is that of drawing within each group: 1.96 standard errors of a stratified mean to either side."""
    rng = np.random.default_rng(5)
    values = [*rng.binomial(1, 0.95, 100).astype(float), *rng.binomial(1, 0.3, 300).astype(float)]
    figure = mean_of_groups(values, ["easy"] * 100 + ["hard"] * 300, evaluation)
    parts = [np.var(values[:100]) / 100, np.var(values[100:]) / 300]
    expected = 2 * 1.96 * 400 * np.sqrt(sum(parts)) / 2
    assert figure.low is not None
    assert figure.high is not None
    assert figure.high - figure.low == pytest.approx(expected, rel=0.2)


def test_perfect_groups_leave_room(evaluation: EvaluationSettings) -> None:
    figure = mean_of_groups([1.0] * 50, ["a"] * 25 + ["b"] * 25, evaluation)
    assert figure.value == figure.high == 400.0
    assert figure.low is not None
    assert figure.low < 400.0
