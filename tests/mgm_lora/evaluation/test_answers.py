"""An arm's answers beside another's: scores may be fractions, and losses are weighed by tokens."""

from collections.abc import Callable

import pytest

from mgm_lora.evaluation.answers import Answers
from mgm_lora.evaluation.predictions import Prediction
from mgm_lora.settings import EvaluationSettings

Make = Callable[..., Prediction]


def test_a_score_may_be_a_fraction(make_prediction: Make, evaluation: EvaluationSettings) -> None:
    answers = Answers([[make_prediction(f"{index:02}", score=index % 3 / 3) for index in range(60)]])
    assert answers.share(evaluation).value == pytest.approx(1 / 3, abs=1e-6)
    assert [item.correct for item in answers.items[0][:3]] == [False, False, True]


def test_loss_is_per_token_and_not_per_answer(make_prediction: Make, evaluation: EvaluationSettings) -> None:
    long = [make_prediction(f"a{index}", loss=30.0, num_loss_tokens=10) for index in range(20)]
    short = [make_prediction(f"b{index}", loss=1.0, num_loss_tokens=1) for index in range(20)]
    loss = Answers([[*long, *short]]).loss(evaluation)
    assert loss is not None
    assert loss.value == pytest.approx(20 * 31 / (20 * 11))
    assert loss.low < loss.value < loss.high


def test_a_rise_that_is_the_same_everywhere_is_certain(make_prediction: Make, evaluation: EvaluationSettings) -> None:
    def answers(extra: float) -> Answers:
        return Answers(
            [[make_prediction(f"{i:02}", loss=i + 2 * extra, num_loss_tokens=2) for i in range(40)] for _ in range(2)]
        )

    rise = answers(0.25).loss_minus(answers(0.0), evaluation)
    assert rise is not None
    assert (rise.low, rise.value, rise.high) == pytest.approx((0.25, 0.25, 0.25))
    assert rise.num_seeds == 2


def test_what_was_not_taken_is_not_there(make_prediction: Make, evaluation: EvaluationSettings) -> None:
    none = Answers([[make_prediction("a", loss=0.0, num_loss_tokens=0)]])
    some = Answers([[make_prediction("a")]])
    assert none.loss(evaluation) is None
    assert some.loss_minus(none, evaluation) is None
