"""The question-only guess, computed by hand."""

from collections.abc import Callable

import pytest

from mgm_lora.data.table import read_samples
from mgm_lora.evaluation.baseline import guess_from_questions
from mgm_lora.evaluation.predictions import Prediction
from mgm_lora.evaluation.sources import ComparisonSources


@pytest.mark.parametrize(
    "question, question_type, guess",
    [
        ("Which shape?", "colour", "circle"),  # the same question goes before the type
        ("which colour?", "colour", "black"),  # five of each: the first by alphabet
        ("what form has it?", "shape", "circle"),  # 7 of 20 circles, 7 squares, 6 triangles
        ("who is it?", "person", "circle"),  # neither question nor type: 7 of 40
    ],
)
def test_guess_is_the_most_frequent_answer(
    make_run: Callable[..., ComparisonSources],
    make_prediction: Callable[..., Prediction],
    question: str,
    question_type: str,
    guess: str,
) -> None:
    train = read_samples(make_run().samples / "train.parquet")
    asked = [make_prediction("1", question=question, question_type=question_type, answer="circle", prediction="?")]
    guessed = guess_from_questions(asked, train=train)
    assert [item.prediction for item in guessed] == [guess]
    assert [item.correct for item in guessed] == [guess == "circle"]


def test_without_training_samples_nothing_is_guessed_right(make_prediction: Callable[..., Prediction]) -> None:
    assert not guess_from_questions([make_prediction("1")], train=[])[0].correct
