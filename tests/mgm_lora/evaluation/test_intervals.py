"""Intervals against hand-computed and exact cases, and against what a 95 % interval promises."""

from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from mgm_lora.evaluation.intervals import (
    MIN_PICTURES_RIGHT,
    Estimate,
    Indices,
    estimate_difference,
    estimate_ratio,
    estimate_share,
    picture_clusters,
)
from mgm_lora.settings import EvaluationSettings


def _alone(number: int) -> Indices:
    return np.arange(number)


def test_samples_that_share_a_picture_are_one_cluster() -> None:
    clusters = picture_clusters([("a",), ("b",), ("a",), (), ("b", "c"), ("c",), ()])
    assert clusters.tolist() == [0, 1, 0, 2, 1, 1, 3]


def test_share_is_the_right_over_all(evaluation: EvaluationSettings) -> None:
    estimate = estimate_share([True, True, False, True], clusters_S=np.array([0, 0, 1, 2]), evaluation=evaluation)
    assert estimate.value == 0.75
    assert (estimate.num_samples, estimate.num_pictures) == (4, 3)
    assert 0.0 <= estimate.low < 0.75 < estimate.high <= 1.0


def test_with_one_question_a_picture_it_is_scipys_bca_of_the_mean(evaluation: EvaluationSettings) -> None:
    correct = np.random.default_rng(0).random(80) < 0.8
    expected = bootstrap(
        (correct.astype(float),),
        np.mean,
        n_resamples=evaluation.num_resamples,
        confidence_level=evaluation.confidence,
        rng=np.random.default_rng(evaluation.seed),
    ).confidence_interval
    estimate = estimate_share(correct.tolist(), clusters_S=_alone(80), evaluation=evaluation)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_asking_the_same_question_again_adds_no_certainty(evaluation: EvaluationSettings) -> None:
    correct = np.random.default_rng(1).random(60) < 0.7
    once = estimate_share(correct.tolist(), clusters_S=_alone(60), evaluation=evaluation)
    often = estimate_share(np.repeat(correct, 5).tolist(), clusters_S=np.repeat(_alone(60), 5), evaluation=evaluation)
    assert (often.value, often.low, often.high) == (once.value, once.low, once.high)
    naive = estimate_share(np.repeat(correct, 5).tolist(), clusters_S=_alone(300), evaluation=evaluation)
    assert naive.high - naive.low < 0.6 * (once.high - once.low)


@pytest.mark.parametrize("is_right", [True, False])
@pytest.mark.parametrize("number", [1, 7, 200])
def test_all_alike_gives_clopper_and_pearsons_interval(
    evaluation: EvaluationSettings, is_right: bool, number: int
) -> None:
    exact = binomtest(number if is_right else 0, number).proportion_ci(0.95, method="exact")
    estimate = estimate_share([is_right] * number, clusters_S=_alone(number), evaluation=evaluation)
    assert (estimate.low, estimate.high) == pytest.approx((exact.low, exact.high), abs=1e-6)


def test_interval_covers_the_truth_as_often_as_it_says(evaluation: EvaluationSettings) -> None:
    rng, truth, clusters = np.random.default_rng(4), 0.8, np.repeat(_alone(100), 4)
    hits = naive_hits = 0
    for _ in range(100):
        easiness = 0.8 * rng.normal(size=100)[clusters] + 0.6 * rng.normal(size=400)
        correct = (easiness < NormalDist().inv_cdf(truth)).tolist()
        estimate = estimate_share(correct, clusters_S=clusters, evaluation=evaluation)
        naive = estimate_share(correct, clusters_S=_alone(400), evaluation=evaluation)
        hits += estimate.low <= truth <= estimate.high
        naive_hits += naive.low <= truth <= naive.high
    assert hits >= 90
    assert naive_hits < hits


def test_difference_is_first_minus_second(evaluation: EvaluationSettings) -> None:
    first, second = [True] * 30 + [False] * 10, [True] * 20 + [False] * 20
    estimate = estimate_difference(first, second, clusters_S=_alone(40), evaluation=evaluation)
    opposite = estimate_difference(second, first, clusters_S=_alone(40), evaluation=evaluation)
    assert estimate.value == 0.25
    assert estimate.low > 0.0
    assert opposite.value == -0.25
    assert opposite.high < 0.0


def test_ratio_is_paired_on_the_same_pictures(evaluation: EvaluationSettings) -> None:
    second = (np.random.default_rng(2).random(400) < 0.6).tolist()
    first = [*second[:-8], *[False] * 8]
    paired = estimate_ratio(first, second, clusters_S=_alone(400), evaluation=evaluation)
    shuffled = np.random.default_rng(3).permutation(first).tolist()
    unpaired = estimate_ratio(shuffled, second, clusters_S=_alone(400), evaluation=evaluation)
    assert paired is not None
    assert unpaired is not None
    assert paired.value == unpaired.value == round(sum(first) / sum(second), 6)
    assert paired.high - paired.low < 0.4 * (unpaired.high - unpaired.low)


@pytest.mark.parametrize("num_different", [0, 1])
def test_arms_that_hardly_differ_get_no_certainty(evaluation: EvaluationSettings, num_different: int) -> None:
    second = [True] * 60
    first = [False] * num_different + [True] * (60 - num_different)
    unseen = 1 - 0.025 ** (1 / 60)
    ratio = estimate_ratio(first, second, clusters_S=_alone(60), evaluation=evaluation)
    difference = estimate_difference(first, second, clusters_S=_alone(60), evaluation=evaluation)
    assert ratio is not None
    assert ratio.low <= ratio.value - unseen + 1e-6
    assert ratio.high >= ratio.value + unseen - 1e-6
    assert difference.low <= difference.value - unseen + 1e-6


def test_no_ratio_to_something_that_is_hardly_ever_right(evaluation: EvaluationSettings) -> None:
    few = [True] * (MIN_PICTURES_RIGHT - 1) + [False] * 40
    enough = [True] * MIN_PICTURES_RIGHT + [False] * 39
    clusters = _alone(len(few))
    assert estimate_ratio(enough, few, clusters_S=clusters, evaluation=evaluation) is None
    assert estimate_ratio(few, enough, clusters_S=clusters, evaluation=evaluation) is not None


def test_the_seed_fixes_the_interval(evaluation: EvaluationSettings) -> None:
    correct = (np.random.default_rng(5).random(50) < 0.5).tolist()
    first, again = (estimate_share(correct, clusters_S=_alone(50), evaluation=evaluation) for _ in range(2))
    other = EvaluationSettings(**(evaluation.model_dump() | {"seed": 99}))
    assert first == again
    assert estimate_share(correct, clusters_S=_alone(50), evaluation=other) != first


def test_interval_over_seeds_covers_the_truth_of_all_seeds(evaluation: EvaluationSettings) -> None:
    """Three trainings whose scores lie 3 points apart: one of them alone knows nothing of that."""
    rng = np.random.default_rng(5)
    seed_spread, own_spread, num_trials = 0.1, 0.5, 150
    truth = NormalDist().cdf(0.6 / (1.0 + seed_spread**2 + own_spread**2) ** 0.5)
    covered = np.zeros(2)
    for _ in range(num_trials):
        pictures_S, seeds_K = rng.normal(0.6, 1.0, 200), rng.normal(0.0, seed_spread, (3, 1))
        right_KS = (pictures_S + seeds_K + rng.normal(0.0, own_spread, (3, 200)) > 0).astype(float)
        both = (
            estimate_share(rows, clusters_S=np.arange(200), evaluation=evaluation) for rows in (right_KS, right_KS[0])
        )
        covered += [estimate.low <= truth <= estimate.high for estimate in both]
    assert covered[0] >= 0.92 * num_trials
    assert covered[1] <= 0.90 * num_trials


def test_seeds_that_differ_widen_the_interval_and_are_told(evaluation: EvaluationSettings) -> None:
    def wide(shares: tuple[float, ...]) -> Estimate:
        rows = [[index < share * 100 for index in range(100)] for share in shares]
        return estimate_share(np.array(rows, dtype=float), clusters_S=np.arange(100), evaluation=evaluation)

    alike, apart = wide((0.6, 0.6, 0.6)), wide((0.4, 0.6, 0.8))
    assert alike.value == apart.value == pytest.approx(0.6)
    assert apart.high - apart.low > 1.5 * (alike.high - alike.low)
    assert apart.num_seeds == 3


def test_arms_are_paired_by_seed(evaluation: EvaluationSettings) -> None:
    """A seed that lifts both arms alike says nothing of their difference."""
    first = np.array([[index < limit for index in range(100)] for limit in (40, 60, 80)], dtype=float)
    second = np.array([[index < limit for index in range(100)] for limit in (50, 70, 90)], dtype=float)
    paired = estimate_difference(first, second, clusters_S=np.arange(100), evaluation=evaluation)
    crossed = estimate_difference(first, second[::-1], clusters_S=np.arange(100), evaluation=evaluation)
    assert paired.value == crossed.value == pytest.approx(-0.1)
    assert paired.high - paired.low < 0.6 * (crossed.high - crossed.low)
