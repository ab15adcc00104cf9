"""Counts of truth by answer."""

from collections.abc import Callable

from mgm_lora.evaluation.confusion import OTHER, confusable_types, confuse
from mgm_lora.evaluation.predictions import Prediction

MakePrediction = Callable[..., Prediction]


def _pair(make: MakePrediction, truth: str, answer: str, **fields: str) -> Prediction:
    return make(f"{truth}-{answer}", answer=truth, prediction=answer, correct=truth == answer, **fields)


def test_every_question_is_counted_once(make_prediction: MakePrediction) -> None:
    pairs = [("red", "red"), ("red", "Red."), ("red", "blue"), ("blue", "blue"), ("blue", "a banana")]
    confusion = confuse([_pair(make_prediction, *pair) for pair in pairs])
    assert confusion.truths == ("blue", "red")
    assert confusion.answers == ("blue", "red", OTHER)
    assert confusion.counts == ((1, 0, 1), (1, 2, 0))
    assert confusion.row_totals == (2, 3)


def test_rare_truths_are_folded_but_not_lost(make_prediction: MakePrediction) -> None:
    frequent = [_pair(make_prediction, f"name{index}", f"name{index}") for index in range(10) for _ in range(2)]
    rare = [_pair(make_prediction, "rare", "rare"), _pair(make_prediction, "seldom", "name1")]
    confusion = confuse([*frequent, *rare])
    assert confusion.truths == confusion.answers
    assert confusion.truths[-1] == OTHER
    assert sum(confusion.row_totals) == 22
    assert confusion.row_totals[-1] == 2


def test_types_with_most_mistakes_come_first(make_prediction: MakePrediction) -> None:
    predictions = [
        _pair(make_prediction, "red", "red", question_type="colour"),
        _pair(make_prediction, "blue", "red", question_type="colour"),
        _pair(make_prediction, "circle", "square", question_type="shape"),
        _pair(make_prediction, "square", "circle", question_type="shape"),
        _pair(make_prediction, "yes", "no", question_type="constant"),
    ]
    assert confusable_types({"lora": predictions, "full": predictions}) == ["shape", "colour"]
    assert confusable_types({"lora": predictions}, limit=1) == ["shape"]
