"""Registering: what a version is made of, that it answers as its adapter, and that nothing half is left."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from mgm_lora.artifacts import digest_file, read_manifest, write_json
from mgm_lora.errors import ArtifactError, ContractError, MergeProofError, RegistryError
from mgm_lora.registry.records import RegistrationSources
from mgm_lora.registry.versions import RegisteredVersion, register_adapter
from mgm_lora.settings import RegistrySettings

Register = Callable[[], RegisteredVersion]


def active_runs() -> list[str]:
    experiment = MlflowClient().get_experiment_by_name("mgm-lora")
    return [run.info.run_id for run in MlflowClient().search_runs([experiment.experiment_id])] if experiment else []


def test_challenger_answers_as_the_adapter_does(
    registered: RegisteredVersion, questions: pd.DataFrame, adapter_answers: list[str]
) -> None:
    model = mlflow.pyfunc.load_model("models:/demo@challenger")
    assert model.predict(questions) == adapter_answers
    assert len(set(adapter_answers)) > 1


def test_version_tells_what_it_is(registered: RegisteredVersion, sources: RegistrationSources) -> None:
    version = MlflowClient().get_model_version_by_alias("demo", "challenger")
    manifest = read_manifest(sources.trained / "lora-5", kind="TrainedAdapter")
    assert version.version == registered.version == 1
    assert version.run_id == registered.run_id
    assert version.tags["adapter_digest"] == registered.adapter_digest
    assert version.tags["base_digest"] == manifest.base["digest"]
    assert version.tags["points"] == "language_attention,language_mlp,projector"
    assert version.tags["rank"] == "language_attention=4,language_mlp=4,projector=4"
    assert version.tags["retention"] == "0.97"
    assert version.tags["dvc_lock_digest"] == digest_file(sources.lock)
    assert version.tags["parent_run"] == registered.parent_run_id


def test_logged_model_has_the_scores_and_is_its_runs_output(
    registered: RegisteredVersion, sources: RegistrationSources
) -> None:
    run = MlflowClient().get_run(registered.run_id)
    [output] = run.outputs.model_outputs
    model = MlflowClient().get_logged_model(output.model_id)
    assert model.source_run_id == registered.run_id
    scores = json.loads((sources.metrics / "scores/lora-5.json").read_text(encoding="utf-8"))
    assert {metric.key: metric.value for metric in model.metrics}["score"] == scores["score"]
    assert run.data.metrics["score"] == scores["score"]


def test_artifact_names_the_version_and_what_it_is_made_of(registered: RegisteredVersion) -> None:
    manifest = read_manifest(Path("artifacts/registered"), kind="RegisteredVersion")
    assert manifest.details["uri"] == registered.uri == "models:/demo/1"
    assert manifest.parents["adapter"] == registered.adapter_digest


def test_same_adapter_keeps_its_version_and_its_runs(register: Register) -> None:
    first, runs = register(), active_runs()
    first_bytes = Path("artifacts/registered/manifest.json").read_bytes()
    second = register()
    assert second == first
    assert active_runs() == runs
    assert Path("artifacts/registered/manifest.json").read_bytes() == first_bytes
    assert len(MlflowClient().search_model_versions("name = 'demo'")) == 1


def test_same_adapter_with_new_figures_keeps_its_version_in_a_new_comparison(
    register: Register, sources: RegistrationSources
) -> None:
    first = register()
    sources.report.write_text("<h1>another report</h1>")
    write_json(sources.metrics / "comparison.json", {"retention": 0.5})
    second = register()
    assert second.version == first.version
    assert second.parent_run_id != first.parent_run_id
    assert MlflowClient().get_model_version("demo", "1").tags["retention"] == "0.5"


def test_other_adapter_becomes_the_next_version_and_the_challenger(
    register: Register, train_again: Callable[[int], None]
) -> None:
    first = register()
    train_again(6)
    second = register()
    assert (first.version, second.version) == (1, 2)
    assert MlflowClient().get_model_version_by_alias("demo", "challenger").version == 2


def test_earlier_adapter_registered_again_is_the_challenger_again(
    register: Register, train_again: Callable[[int], None]
) -> None:
    register()
    train_again(6)
    register()
    train_again(5)
    assert register().version == 1
    assert MlflowClient().get_model_version_by_alias("demo", "challenger").version == 1


def test_adapter_whose_merge_proof_did_not_pass_is_refused(
    register: Register, merge_again: Callable[..., None]
) -> None:
    merge_again(passed=False)
    with pytest.raises(MergeProofError, match="does not hold"):
        register()
    assert not active_runs()
    assert not Path("artifacts/registered").exists()


def test_figures_of_the_proof_count_and_are_told_with_the_version(
    register: Register, sources: RegistrationSources
) -> None:
    register()
    tags = MlflowClient().get_model_version("demo", "1").tags
    assert (tags["merge_precision"], tags["merge_difference"], tags["merge_bound"]) == (
        "float32",
        "1.00e-06",
        "1.00e-04",
    )
    manifest = json.loads((sources.merged / "manifest.json").read_text(encoding="utf-8"))
    manifest["details"]["proof"]["max_logit_difference"] = 0.5  # whoever wrote `passed`
    write_json(sources.merged / "manifest.json", manifest)
    with pytest.raises(MergeProofError, match=r"difference 0\.5, bound 0\.0001"):
        register()


def test_adapter_whose_training_kept_no_contract_is_refused(register: Register, sources: RegistrationSources) -> None:
    path = sources.trained / "lora-5" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["details"]["contract"]["held"].remove("frozen")
    write_json(path, manifest)
    with pytest.raises(ContractError, match="missing: frozen"):
        register()
    assert not active_runs()


def test_proof_of_another_adapter_is_refused(
    register: Register, train_again: Callable[[int], None], sources: RegistrationSources
) -> None:
    proof = (sources.merged / "manifest.json").read_bytes()
    train_again(6)
    (sources.merged / "manifest.json").write_bytes(proof)
    with pytest.raises(ArtifactError, match="merged from another adapter"):
        register()


@pytest.mark.parametrize(
    "missing", ["reports/comparison.html", "metrics/comparison.json", "artifacts/scores/full-5", "artifacts/samples"]
)
def test_missing_part_is_named_before_the_store_is_touched(register: Register, project: Path, missing: str) -> None:
    path = project / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ArtifactError, match=missing):
        register()
    assert not active_runs()


def test_failure_midway_leaves_no_run_no_version_and_the_alias_where_it_was(
    register: Register, train_again: Callable[[int], None], project: Path
) -> None:
    register()
    runs = active_runs()
    train_again(6)
    shutil.move("data/pictures", "data/elsewhere")  # the example's picture, needed after all runs are written
    with pytest.raises(ArtifactError, match="example's picture"):
        register()
    assert active_runs() == runs
    assert [version.version for version in MlflowClient().search_model_versions("name = 'demo'")] == [1]
    assert MlflowClient().get_model_version_by_alias("demo", "challenger").version == 1
    assert read_manifest(Path("artifacts/registered"), kind="RegisteredVersion").details["version"] == 1
    shutil.move("data/elsewhere", "data/pictures")
    assert register().version == 2


def test_store_without_space_for_artifacts_is_one_clear_error(register: Register, project: Path) -> None:
    (project / "mlartifacts").mkdir()
    (project / "mlartifacts" / "models").write_text("a file where MLflow needs a folder")
    with pytest.raises(RegistryError, match="can't register the adapter"):
        register()
    assert not active_runs()


def test_artifact_that_cannot_be_written_takes_everything_back(
    project: Path, registry: RegistrySettings, sources: RegistrationSources
) -> None:
    with pytest.raises(RegistryError, match="can't register the adapter"):
        register_adapter(
            sources, registry=registry, arms=("base", "lora-5"), destination=project / "dvc.lock" / "registered"
        )
    assert not active_runs()
    assert not MlflowClient().search_model_versions("name = 'demo'")


def test_registration_that_was_killed_is_cleared_away_by_the_next(register: Register) -> None:
    killed = register()
    MlflowClient().update_run(killed.parent_run_id, status="RUNNING")  # as a killed process leaves it
    MlflowClient().delete_model_version("demo", "1")
    registered = register()
    assert registered.parent_run_id != killed.parent_run_id
    assert killed.parent_run_id not in active_runs()
    assert len(active_runs()) == 5
