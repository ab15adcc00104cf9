"""Predictions are kept whole, and only for the samples of the truth."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mgm_lora.data.table import Sample, read_samples
from mgm_lora.errors import ArtifactError, DataError
from mgm_lora.evaluation.metrics import METRICS
from mgm_lora.evaluation.predictions import (
    Prediction,
    check_same_samples,
    make_predictions,
    of_set,
    question_text,
    read_predictions,
    write_predictions,
)
from mgm_lora.evaluation.sources import ComparisonSources


@pytest.fixture
def samples(make_run: Callable[..., ComparisonSources]) -> list[Sample]:
    return read_samples(make_run().samples / "heldout.parquet")[:4]


def test_predictions_come_back_as_they_were_written(tmp_path: Path, make_prediction: Callable[..., Prediction]) -> None:
    written = [make_prediction("a", pictures=()), make_prediction("b", correct=False, pictures=("1.png", "2.png"))]
    write_predictions(tmp_path / "predictions.parquet", written)
    assert read_predictions(tmp_path / "predictions.parquet") == written


def test_answers_are_joined_with_samples_and_judged(samples: list[Sample]) -> None:
    answers = [samples[0].answer.upper() + ".", "wrong", samples[2].answer, ""]
    predictions = make_predictions(samples, answers=answers, losses=[(1.5, 3)] * 4, set_name="heldout")
    assert [item.correct for item in predictions] == [True, False, True, False]
    assert [item.score for item in predictions] == [1.0, 0.0, 1.0, 0.0]
    assert (predictions[0].loss, predictions[0].num_loss_tokens) == (1.5, 3)
    assert predictions[0].question == "which colour?"
    assert [item.pictures for item in predictions] == [tuple(sample.pictures) for sample in samples]


def test_answers_are_worth_what_the_metric_says(samples: list[Sample]) -> None:
    nearly = [samples[0].answer + "s", *(sample.answer for sample in samples[1:])]
    losses = [(1.0, 1)] * 4
    found = make_predictions(samples, answers=nearly, losses=losses, set_name="heldout", metric=METRICS["anls"])
    longer = len(nearly[0])
    assert found[0].score == pytest.approx(1 - 1 / longer)
    assert found[0].correct
    assert make_predictions(samples, answers=nearly, losses=losses, set_name="heldout")[0].score == 0.0


def test_answers_for_fewer_samples_are_an_error(samples: list[Sample]) -> None:
    with pytest.raises(DataError, match="4 samples, but 3 answers and 4 losses"):
        make_predictions(samples, answers=["x"] * 3, losses=[(1.0, 1)] * 4, set_name="known")


def test_question_of_a_longer_conversation_names_the_roles(samples: list[Sample]) -> None:
    sample = samples[0]
    longer = replace(sample, turns=(*sample.turns, *samples[1].turns))
    assert question_text(longer) == f"human: which colour?\ngpt: {sample.answer}\nhuman: which shape?"


def test_predictions_for_other_samples_are_named(samples: list[Sample]) -> None:
    predictions = make_predictions(samples, answers=["x"] * 4, losses=[(1.0, 1)] * 4, set_name="heldout")
    check_same_samples(list(reversed(predictions)), truth={"heldout": samples})
    changed = [
        replace(predictions[0], answer="another"),
        predictions[1],
        predictions[1],
        replace(predictions[2], id="unknown"),
        replace(predictions[3], set="known"),
    ]
    with pytest.raises(DataError) as caught:
        check_same_samples(changed, truth={"heldout": samples})
    message = str(caught.value)
    assert f"2 not answered in 'heldout' ({samples[2].id}, {samples[3].id})" in message
    assert "1 answered but not in the truth in 'heldout' (unknown)" in message
    assert f"1 with another true answer in 'heldout' ({samples[0].id})" in message
    assert f"1 answered twice in 'heldout' ({samples[1].id})" in message
    assert f"1 answered but not in the truth in 'known' ({samples[3].id})" in message


def test_a_set_is_sorted_by_id(make_prediction: Callable[..., Prediction]) -> None:
    predictions = [make_prediction("b"), make_prediction("c", set="known"), make_prediction("a")]
    assert [item.id for item in of_set(predictions, "heldout")] == ["a", "b"]


def test_a_file_that_holds_no_predictions_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    with pytest.raises(ArtifactError, match="no predictions at"):
        read_predictions(path)
    path.write_text("no Parquet")
    with pytest.raises(ArtifactError, match="no predictions at"):
        read_predictions(path)
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(ArtifactError, match=r"has columns \['id'\]"):
        read_predictions(path)
