"""Every two arms are tested on the same pictures, and looking at many is paid for."""

from collections.abc import Callable

import pytest

from mgm_lora.evaluation.answers import Answers
from mgm_lora.evaluation.pairs import compare_pairs
from mgm_lora.evaluation.predictions import Prediction
from mgm_lora.settings import EvaluationSettings


@pytest.fixture
def answer(make_prediction: Callable[..., Prediction]) -> Callable[[int], Answers]:
    """Right on the first `num_right` of 60 pictures."""

    def make(num_right: int) -> Answers:
        return Answers([[make_prediction(f"{index:02}", correct=index < num_right) for index in range(60)]])

    return make


def test_pairs_are_in_order_and_paired(answer: Callable[[int], Answers], evaluation: EvaluationSettings) -> None:
    arms = {"base": answer(20), "lora": answer(50), "full": answer(52)}
    pairs = compare_pairs(arms, evaluation=evaluation)
    assert [(pair.first, pair.second) for pair in pairs] == [("base", "lora"), ("base", "full"), ("lora", "full")]
    assert [pair.difference.value for pair in pairs] == pytest.approx([-0.5, -32 / 60, -2 / 60], abs=1e-6)
    assert [pair.is_different for pair in pairs] == [True, True, False]
    # two pictures, both for the same side: 2 of 4 exchanges are as extreme
    assert pairs[2].p_value == pytest.approx(0.5, abs=0.02)


def test_adjusted_values_are_benjamini_and_yekutielis(
    answer: Callable[[int], Answers], evaluation: EvaluationSettings
) -> None:
    pairs = compare_pairs({"a": answer(20), "b": answer(26), "c": answer(31)}, evaluation=evaluation)
    harmonic = 1 + 1 / 2 + 1 / 3
    ordered = sorted(pair.p_value for pair in pairs)
    raw = [p * 3 / rank * harmonic for rank, p in enumerate(ordered, start=1)]
    by_hand = [min(1.0, *raw[index:]) for index in range(3)]
    assert sorted(pair.adjusted for pair in pairs) == pytest.approx(by_hand, abs=1e-5)


def test_one_arm_makes_no_pair(answer: Callable[[int], Answers], evaluation: EvaluationSettings) -> None:
    assert compare_pairs({"base": answer(3)}, evaluation=evaluation) == ()
