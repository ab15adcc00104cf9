"""Every arm is there and whole, or the error says which stage to run."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mgm_lora.errors import ArtifactError, DataError
from mgm_lora.evaluation.predictions import read_predictions, write_predictions
from mgm_lora.evaluation.sources import ARMS, ComparisonSources, read_arms
from mgm_lora.settings import EvaluationSettings

MakeRun = Callable[..., ComparisonSources]


def test_all_arms_are_read_in_order(make_run: MakeRun, evaluation: EvaluationSettings) -> None:
    sources = make_run()
    arms = read_arms(replace(sources, base=sources.merged), evaluation=evaluation)
    assert tuple(arms) == ARMS
    assert arms["lora"].cost is not None
    assert arms["lora"].cost.minutes == 1.5
    assert arms["lora"].history is not None
    assert len(arms["lora"].history.train) == 29
    assert arms["merged"].cost is None
    assert arms["merged"].size_on_disk_mib == pytest.approx(2.0, abs=0.01)
    assert arms["base"].size_on_disk_mib == arms["merged"].size_on_disk_mib


@pytest.mark.parametrize(
    "missing, stage",
    [
        ("artifacts/scores/full", "evaluate@full"),
        ("artifacts/scores/base/predictions.parquet", "evaluate@base"),
        ("artifacts/trained/lora", "train@lora"),
        ("artifacts/trained/full/history.json", "train@full"),
        ("artifacts/merged", "merge"),
        ("metrics/train-lora.json", "train@lora"),
    ],
)
def test_what_is_missing_names_the_stage_to_run(
    make_run: MakeRun, evaluation: EvaluationSettings, tmp_path: Path, missing: str, stage: str
) -> None:
    sources = make_run()
    path = tmp_path / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ArtifactError, match=f"dvc repro {stage}`"):
        read_arms(sources, evaluation=evaluation)


def test_a_training_without_a_finite_record_is_an_error(make_run: MakeRun, evaluation: EvaluationSettings) -> None:
    sources = make_run()
    path = sources.metrics / "train-full.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"minutes": float("nan")}))
    with pytest.raises(ArtifactError, match=r"arm 'full' has no whole record .* `dvc repro train@full`"):
        read_arms(sources, evaluation=evaluation)


def test_scores_under_other_settings_are_an_error(make_run: MakeRun, evaluation: EvaluationSettings) -> None:
    sources = make_run()
    other = EvaluationSettings(**(evaluation.model_dump() | {"confidence": 0.9}))
    with pytest.raises(ArtifactError, match=r"'confidence': 0.9.* `dvc repro evaluate@base`"):
        read_arms(sources, evaluation=other)


def test_arms_that_answered_other_samples_cannot_be_paired(make_run: MakeRun, evaluation: EvaluationSettings) -> None:
    sources = make_run()
    path = sources.scores / "full" / "predictions.parquet"
    first, *others = read_predictions(path)
    write_predictions(path, [replace(first, id="another"), *others])
    with pytest.raises(DataError, match=r"'full' and 'base' answered different samples .*2 rows.*another"):
        read_arms(sources, evaluation=evaluation)
