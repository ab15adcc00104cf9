"""Scores: computed by hand, written whole, refused for other samples."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mgm_lora.artifacts import read_manifest
from mgm_lora.errors import ArtifactError, DataError
from mgm_lora.evaluation.predictions import Prediction
from mgm_lora.evaluation.scoring import read_scores, read_table, score_predictions, write_scores
from mgm_lora.evaluation.sources import ComparisonSources
from mgm_lora.settings import EvaluationSettings

MakePrediction = Callable[..., Prediction]
MakeRun = Callable[..., ComparisonSources]


@pytest.fixture
def predictions(make_prediction: MakePrediction) -> list[Prediction]:
    rows = [
        ("1", "colour", True),
        ("2", "colour", False),
        ("3", "colour", True),
        ("4", "shape", True),
        ("5", "yes_no", False),
        ("6", "yes_no", False),
    ]
    heldout = [make_prediction(name, question_type=kind, correct=correct) for name, kind, correct in rows]
    return [*heldout, make_prediction("7", set="known"), make_prediction("8", set="known", correct=False)]


def test_score_counts_the_scored_types_only(predictions: list[Prediction], evaluation: EvaluationSettings) -> None:
    scores = score_predictions(predictions, arm="lora", evaluation=evaluation)
    assert (scores.score.value, scores.score.num_samples) == (0.75, 4)
    assert {name: item.value for name, item in scores.by_type.items()} == {
        "colour": pytest.approx(2 / 3, abs=1e-6),
        "shape": 1.0,
        "yes_no": 0.0,
    }
    assert scores.forgetting_score is not None
    assert (scores.forgetting_score.value, scores.forgetting_score.num_samples) == (0.5, 2)


def test_without_score_types_all_are_scored(predictions: list[Prediction], evaluation: EvaluationSettings) -> None:
    everything = EvaluationSettings(**(evaluation.model_dump() | {"score_types": ()}))
    scores = score_predictions(predictions, arm="lora", evaluation=everything)
    assert (scores.score.value, scores.score.num_samples) == (0.5, 6)


def test_order_of_answering_changes_nothing(predictions: list[Prediction], evaluation: EvaluationSettings) -> None:
    forwards = score_predictions(predictions, arm="lora", evaluation=evaluation)
    assert score_predictions(predictions[::-1], arm="lora", evaluation=evaluation) == forwards


def test_unknown_score_type_names_those_there_are(
    predictions: list[Prediction], evaluation: EvaluationSettings
) -> None:
    wrong = EvaluationSettings(**(evaluation.model_dump() | {"score_types": ("colour", "color")}))
    with pytest.raises(DataError, match=r"names color, .* there are: colour, shape, yes_no"):
        score_predictions(predictions, arm="lora", evaluation=wrong)


def test_data_without_types_is_scored_as_untyped(
    make_prediction: MakePrediction, evaluation: EvaluationSettings
) -> None:
    untyped = EvaluationSettings(**(evaluation.model_dump() | {"score_types": ()}))
    scores = score_predictions([make_prediction("1", question_type="")], arm="base", evaluation=untyped)
    assert list(scores.by_type) == ["untyped"]
    assert scores.forgetting_score is None


def test_nothing_to_score_is_an_error(make_prediction: MakePrediction, evaluation: EvaluationSettings) -> None:
    everything = EvaluationSettings(**(evaluation.model_dump() | {"score_types": ()}))
    with pytest.raises(DataError, match="no held-out prediction"):
        score_predictions([make_prediction("1", set="known")], arm="base", evaluation=everything)


def test_scores_come_back_as_they_were_written(make_run: MakeRun, evaluation: EvaluationSettings) -> None:
    sources = make_run()
    scores, predictions, manifest = read_scores(sources.scores / "lora-17")
    assert scores.score.value == 0.9
    assert scores == score_predictions(predictions, arm="lora-17", evaluation=evaluation)
    assert manifest.details == {"arm": "lora-17", "num_answers": 160}
    assert manifest.settings == {"evaluation": evaluation.model_dump(mode="json")}
    assert manifest.seed == evaluation.seed


def test_metrics_are_flat_numbers(make_run: MakeRun) -> None:
    metrics = json.loads((make_run().metrics / "scores" / "lora-17.json").read_text())
    assert metrics["score"] == 0.9
    assert metrics["known"] == 0.7
    assert metrics["score_low"] < 0.9 < metrics["score_high"]
    assert metrics["score_colour"] == metrics["score_shape"] == 0.9
    assert all(isinstance(value, int | float) for value in metrics.values())


def test_predictions_for_other_samples_write_nothing(
    make_run: MakeRun, evaluation: EvaluationSettings, tmp_path: Path
) -> None:
    sources = make_run()
    predictions = read_scores(sources.scores / "lora-17")[1]
    with pytest.raises(DataError, match="1 not answered in 'heldout'"):
        write_scores(
            predictions[1:],
            arm="lora",
            samples=sources.samples,
            evaluation=evaluation,
            parents={},
            base={},
            destination=tmp_path / "new/lora",
            metrics=tmp_path / "new/lora-scores.json",
        )
    assert not (tmp_path / "new").exists()


def test_scores_that_are_not_whole_are_an_error(make_run: MakeRun) -> None:
    folder = make_run().scores / "lora-17"
    (folder / "scores.json").write_text('{"arm": "lora"}')
    with pytest.raises(ArtifactError, match="holds no scores"):
        read_scores(folder)


def test_table_holds_known_only_where_there_is_one(make_run: MakeRun) -> None:
    sources = make_run(with_known=False)
    assert list(read_table(sources.samples)) == ["heldout"]
    assert read_manifest(sources.scores / "base", kind="Scores").details["num_answers"] == 120
