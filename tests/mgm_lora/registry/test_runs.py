"""The runs of one way through the pipeline, as MLflow's own pages read them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mgm_lora.artifacts import read_manifest
from mgm_lora.errors import ArtifactError
from mgm_lora.registry.records import RegistrationSources
from mgm_lora.registry.store import open_store
from mgm_lora.registry.versions import RegisteredVersion
from mgm_lora.settings import RegistrySettings
from mgm_lora.training.tracking import Tracker, track_training

Register = Callable[[], RegisteredVersion]


def children(parent: str) -> dict[str, Run]:
    client = MlflowClient()
    runs = client.search_runs([client.get_run(parent).info.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    return {run.info.run_name: run for run in runs}


def curve(run: Run, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient().get_metric_history(run.info.run_id, name)]


@contextmanager
def training_of_the_adapter(registry: RegistrySettings, sources: RegistrationSources) -> Iterator[Tracker]:
    key = read_manifest(sources.trained / "lora-5", kind="TrainedAdapter").details["training_key"]
    with track_training(
        "lora-5",
        open_experiment=lambda: open_store(registry).experiment_id,
        sections={"registry": registry},
        key=key,
        resume=False,
    ) as tracker:
        yield tracker


def test_every_arm_is_a_child_with_its_scores(registered: RegisteredVersion, sources: RegistrationSources) -> None:
    arms = children(registered.parent_run_id)
    assert sorted(arms) == ["base", "full-5", "lora-5", "merged"]
    assert all(run.info.status == "FINISHED" for run in arms.values())
    for name, run in arms.items():
        scores = json.loads((sources.metrics / "scores" / f"{name}.json").read_text(encoding="utf-8"))
        assert run.data.metrics["score"] == scores["score"]
        assert run.data.metrics["score_what_"] == scores["score_what?"]
    assert arms["full-5"].data.metrics["training/minutes"] == 0.5
    assert arms["lora-5"].data.params["arm.language_attention.rank"] == "4"
    assert "training/minutes" not in arms["base"].data.metrics


def test_curve_comes_from_the_history_where_the_store_has_no_training_run(registered: RegisteredVersion) -> None:
    run = children(registered.parent_run_id)["lora-5"]
    assert curve(run, "train_loss") == [(1, 3.0), (2, 1.5), (3, 1.0)]
    assert curve(run, "heldout_loss") == [(2, 1.75), (3, 3.5 / 3)]
    assert curve(run, "learning_rate") == [(1, 1e-3), (2, 5e-4), (3, 1e-3 / 3)]


def test_training_run_becomes_the_child_and_keeps_its_curve(
    register: Register, registry: RegistrySettings, sources: RegistrationSources
) -> None:
    with training_of_the_adapter(registry, sources) as tracker:
        tracker.log({"train_loss": 9.0}, step=1)
    registered = register()
    run = children(registered.parent_run_id)["lora-5"]
    assert run.info.run_id == tracker.run_id == registered.run_id
    assert curve(run, "train_loss") == [(1, 9.0)]
    assert run.data.params["arm.language_attention.rank"] == "4"
    assert run.data.params["registry.model_name"] == "demo"


def test_unfinished_training_run_is_not_taken(
    register: Register, registry: RegistrySettings, sources: RegistrationSources
) -> None:
    with pytest.raises(KeyboardInterrupt), training_of_the_adapter(registry, sources) as tracker:
        raise KeyboardInterrupt
    run = children(register().parent_run_id)["lora-5"]
    assert run.info.run_id != tracker.run_id
    assert len(curve(run, "train_loss")) == 3


def test_curves_have_the_same_names_from_training_and_from_history(
    register: Register, registry: RegistrySettings, sources: RegistrationSources, tmp_path: Path
) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    with training_of_the_adapter(registry, sources) as tracker:
        [reporter] = tracker.callbacks
        arguments = TrainingArguments(output_dir=str(tmp_path / "checkpoints"), use_cpu=True, report_to=[])
        logs = {"loss": 1.0, "learning_rate": 0.1, "eval_loss": 1.0}
        reporter.on_log(arguments, TrainerState(global_step=1), TrainerControl(), logs=logs)
    sent = set(mlflow.MlflowClient().get_run(str(tracker.run_id)).data.metrics)
    written = set(children(register().parent_run_id)["full-5"].data.metrics)
    assert {"train_loss", "heldout_loss", "learning_rate"} <= sent & written


def test_parent_has_data_report_checks_lock_and_comparison(
    registered: RegisteredVersion, sources: RegistrationSources
) -> None:
    parent = MlflowClient().get_run(registered.parent_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["retention"] == 0.97
    assert parent.data.metrics["arms/lora/score"] == 0.5
    datasets = {entry.dataset.name: entry.dataset for entry in parent.inputs.dataset_inputs}
    assert sorted(datasets) == ["heldout", "known", "train"]
    assert json.loads(datasets["train"].profile)["num_rows"] == 8
    folder = Path(mlflow.artifacts.download_artifacts(run_id=parent.info.run_id))
    assert (folder / "comparison.html").read_bytes() == sources.report.read_bytes()
    assert (folder / "data_docs" / "index.html").is_file()
    assert (folder / "dvc.lock").read_bytes() == sources.lock.read_bytes()


def test_arm_without_training_saw_no_training_data(registered: RegisteredVersion) -> None:
    arms = children(registered.parent_run_id)
    names = {arm: {entry.dataset.name for entry in run.inputs.dataset_inputs} for arm, run in arms.items()}
    assert names == {
        "base": {"heldout", "known"},
        "merged": {"heldout", "known"},
        "lora-5": {"heldout", "known", "train"},
        "full-5": {"heldout", "known", "train"},
    }


def test_predictions_of_every_arm_are_kept(registered: RegisteredVersion, sources: RegistrationSources) -> None:
    for arm, run in children(registered.parent_run_id).items():
        path = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="scores/predictions.parquet")
        assert Path(path).read_bytes() == (sources.scores / arm / "predictions.parquet").read_bytes()


def test_lock_that_is_not_there_is_left_out(register: Register, project: Path) -> None:
    (project / "dvc.lock").unlink()
    registered = register()
    artifacts = {file.path for file in MlflowClient().list_artifacts(registered.parent_run_id)}
    assert "comparison.html" in artifacts
    assert "dvc.lock" not in artifacts
    assert "dvc_lock_digest" not in MlflowClient().get_model_version("demo", "1").tags


def test_failing_registration_leaves_the_training_run_with_its_parent(
    register: Register, registry: RegistrySettings, sources: RegistrationSources, project: Path
) -> None:
    with training_of_the_adapter(registry, sources) as tracker:
        pass
    (project / "data/pictures").rename(project / "data/elsewhere")  # the example's picture, needed after the runs
    with pytest.raises(ArtifactError):
        register()
    assert "mlflow.parentRunId" not in MlflowClient().get_run(str(tracker.run_id)).data.tags
    (project / "data/elsewhere").rename(project / "data/pictures")
    first = register()
    sources.report.write_text("another")
    MlflowClient().delete_model_version("demo", "1")
    (project / "data/pictures").rename(project / "data/elsewhere")
    with pytest.raises(ArtifactError):
        register()
    assert MlflowClient().get_run(str(tracker.run_id)).data.tags["mlflow.parentRunId"] == first.parent_run_id
