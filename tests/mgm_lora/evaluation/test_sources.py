"""Every arm is there and whole, or the error says which stage to run."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mgm_lora.errors import ArtifactError, DataError
from mgm_lora.evaluation.predictions import read_predictions, write_predictions
from mgm_lora.evaluation.sources import Arm, ComparisonSources, read_arms
from mgm_lora.settings import ComparisonSettings, EvaluationSettings

MakeRun = Callable[..., ComparisonSources]
SETTINGS = ComparisonSettings(arms=("full", "lora"), seeds=(17,), retention_target=0.95, num_gallery_samples=12)


def read(sources: ComparisonSources, evaluation: EvaluationSettings) -> dict[str, Arm]:
    arms, failed = read_arms(sources, evaluation=evaluation, comparison=SETTINGS)
    assert failed == ()
    return arms


def test_all_arms_are_read_in_order(make_run: MakeRun, evaluation: EvaluationSettings) -> None:
    sources = make_run()
    arms = read(replace(sources, base=sources.merged), evaluation)
    assert tuple(arms) == ("base", "lora", "merged", "full")
    assert arms["lora"].first.cost is not None
    assert arms["lora"].first.cost.minutes == 1.5
    assert arms["lora"].first.history is not None
    assert len(arms["lora"].first.history.train) == 29
    assert arms["merged"].first.cost is None
    assert arms["merged"].first.size_on_disk_mib == pytest.approx(2.0, abs=0.01)
    assert arms["base"].first.size_on_disk_mib == arms["merged"].first.size_on_disk_mib


@pytest.mark.parametrize(
    "missing, stage",
    [
        ("artifacts/scores/full-17", "evaluate@full-17"),
        ("artifacts/scores/base/predictions.parquet", "evaluate-base"),
        ("artifacts/scores/merged", "evaluate-merged"),
        ("artifacts/trained/lora-17", "train@lora-17"),
        ("artifacts/trained/full-17/history.json", "train@full-17"),
        ("artifacts/merged", "merge"),
        ("metrics/train/lora-17.json", "train@lora-17"),
    ],
)
def test_what_is_missing_names_the_stage_to_run(
    make_run: MakeRun, evaluation: EvaluationSettings, tmp_path: Path, missing: str, stage: str
) -> None:
    sources = make_run()
    path = tmp_path / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ArtifactError, match=f"dvc repro {stage}`"):
        read(sources, evaluation)


@pytest.mark.parametrize("name", ["base", "lora-17", "full-17"])
def test_no_arm_is_told_without_base_lora_and_full(
    make_run: MakeRun, evaluation: EvaluationSettings, comparison_settings: ComparisonSettings, name: str
) -> None:
    """Others may have failed; nothing can be said of any arm without these."""
    sources = make_run()
    shutil.rmtree(sources.scores / name)
    with pytest.raises(ArtifactError, match=f"'{name}' has no scores to compare"):
        read_arms(sources, evaluation=evaluation, comparison=comparison_settings, allow_failed=True)


def test_an_arm_of_another_base_has_no_baseline(make_run: MakeRun, evaluation: EvaluationSettings) -> None:
    sources = make_run()
    path = sources.scores / "full-17" / "manifest.json"
    path.write_text(path.read_text().replace("cd" * 32, "ef" * 32))
    with pytest.raises(
        ArtifactError, match=f"'full-17' stands on the base data/base with digest {'ef' * 32}, and the "
    ):
        read(sources, evaluation)


def test_a_training_without_a_finite_record_is_an_error(make_run: MakeRun, evaluation: EvaluationSettings) -> None:
    sources = make_run()
    path = sources.metrics / "train" / "full-17.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"minutes": float("nan")}))
    with pytest.raises(ArtifactError, match=r"'full-17' has no whole record .* `dvc repro train@full-17`"):
        read(sources, evaluation)


def test_scores_under_other_settings_are_an_error(make_run: MakeRun, evaluation: EvaluationSettings) -> None:
    sources = make_run()
    other = EvaluationSettings(**(evaluation.model_dump() | {"confidence": 0.9}))
    with pytest.raises(ArtifactError, match=r"'confidence': 0.9.* `dvc repro evaluate-base`"):
        read(sources, other)


def test_arms_that_answered_other_samples_cannot_be_paired(make_run: MakeRun, evaluation: EvaluationSettings) -> None:
    sources = make_run()
    path = sources.scores / "full-17" / "predictions.parquet"
    first, *others = read_predictions(path)
    write_predictions(path, [replace(first, id="another"), *others])
    with pytest.raises(DataError, match=r"'full-17' and 'base' answered different samples .*2 rows.*another"):
        read(sources, evaluation)
