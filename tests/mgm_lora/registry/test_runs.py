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
from mgm_lora.registry.datasets import dataset_inputs, read_datasets
from mgm_lora.registry.records import RegistrationSources
from mgm_lora.registry.store import open_store
from mgm_lora.registry.versions import RegisteredVersion
from mgm_lora.run_names import PARAM_NAMES
from mgm_lora.settings import RegistrySettings
from mgm_lora.training.tracking import Tracker, track_training

from ...conftest import ROOT

Register = Callable[[], RegisteredVersion]
FILTERS = {
    "tags.arm = 'lora'": ["lora-5"],
    "tags.arm = 'lora' AND tags.seed = '17'": ["lora-5"],
    "tags.kind = 'full'": ["full-5"],
    "tags.role = 'pipeline'": ["pipeline"],
    "tags.role = 'arm'": ["base", "full-5", "lora-5", "merged"],
    "tags.role = 'arm' AND params.rank = '16'": ["lora-5", "merged"],
    "tags.role = 'arm' AND params.points LIKE '%language_mlp%'": ["lora-5", "merged"],
    "tags.role = 'arm' AND metrics.retention >= 0.95": [],
    "metrics.`cost/trainable_parameters` < 1000000": ["full-5", "lora-5"],
    "metrics.`heldout/loss` < 2": ["full-5", "lora-5"],
    "dataset.name = 'train' AND tags.role = 'arm'": ["full-5", "lora-5"],
}
"""Those of docs/mlflow.md, and what they find in the registered project."""


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
        params={"arm": "lora", "seed": "5", "kind": "lora", "rank": "4"},
        sections={"registry": registry},
        key=key,
        datasets=dataset_inputs(read_datasets(sources.samples, names=("train", "heldout")), is_trained=True),
        resume=False,
    ) as tracker:
        yield tracker


def test_every_model_is_a_child_with_its_scores(registered: RegisteredVersion, sources: RegistrationSources) -> None:
    arms = children(registered.parent_run_id)
    assert sorted(arms) == ["base", "full-5", "lora-5", "merged"]
    assert all(run.info.status == "FINISHED" for run in arms.values())
    for name, run in arms.items():
        scores = json.loads((sources.metrics / "scores" / f"{name}.json").read_text(encoding="utf-8"))
        assert run.data.metrics["score"] == scores["score"]
        assert run.data.metrics["score_what_"] == scores["score_what?"]
        assert run.data.metrics["forgetting"] == pytest.approx(arms["base"].data.metrics["known"] - scores["known"])
    assert arms["full-5"].data.metrics["cost/minutes"] == 0.5
    assert not any(name.startswith("cost/") for name in arms["base"].data.metrics)


def test_children_can_be_compared_since_all_have_the_same_parameters(registered: RegisteredVersion) -> None:
    params = {name: run.data.params for name, run in children(registered.parent_run_id).items()}
    assert all(found.keys() == set(PARAM_NAMES) for found in params.values())
    numbers = ("rank", "alpha", "dropout", "learning_rate", "epochs", "global_batch_size", "micro_batch_size")
    for found in params.values():
        assert all(float(found[name]) >= 0 for name in numbers)
    differing = {name for name in PARAM_NAMES if params["lora-5"][name] != params["full-5"][name]}
    assert differing == {"arm", "kind", "method", "rank", "alpha", "points", "whole_parts", "learning_rate"}
    assert params["lora-5"]["rank"] == params["merged"]["rank"] == "4"
    assert params["full-5"]["whole_parts"] == "language_model, projector"
    assert params["base"]["learning_rate"] == "0"


def test_trained_children_have_the_same_figures(registered: RegisteredVersion) -> None:
    arms = children(registered.parent_run_id)
    metrics = {name: set(arms[name].data.metrics) for name in ("lora-5", "full-5")}
    assert metrics["lora-5"] == metrics["full-5"]
    named = {"train/loss", "heldout/loss", "train/learning_rate", "score", "forgetting", "known", "loss"}
    assert named | {"cost/minutes", "cost/peak_memory_gib", "cost/trainable_parameters"} <= metrics["lora-5"]


def test_retention_is_over_the_full_fine_tune_of_the_seed(register: Register, sources: RegistrationSources) -> None:
    def score(name: str, value: float) -> None:
        path = sources.metrics / "scores" / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "score": value}))

    for name, value in {"full-5": 0.5, "lora-5": 0.4}.items():
        score(name, value)
    arms = children(register().parent_run_id)
    kept = {name: run.data.metrics.get("retention") for name, run in arms.items()}
    assert kept["lora-5"] == pytest.approx(0.8)
    assert kept["full-5"] == 1.0
    assert kept["base"] is None  # no seed, so no full fine-tune of the same one
    score("full-5", 0.0)
    sources.report.write_text("another")
    assert "retention" not in children(register().parent_run_id)["lora-5"].data.metrics


@pytest.mark.parametrize("asked", FILTERS)
def test_filter_finds_what_it_should(registered: RegisteredVersion, asked: str) -> None:
    client = MlflowClient()
    experiment = client.get_run(registered.parent_run_id).info.experiment_id
    here = asked.replace("'17'", "'5'").replace("'16'", "'4'")  # the seed and the rank of this project
    assert sorted(run.info.run_name for run in client.search_runs([experiment], here)) == FILTERS[asked]


def test_page_names_the_filters_that_are_tried_here_and_every_parameter() -> None:
    page = (ROOT / "docs/mlflow.md").read_text(encoding="utf-8")
    lines = [line.split(" # ")[0].strip() for block in page.split("```")[1::2] for line in block.splitlines()]
    assert {line for line in lines if line.startswith(("tags.", "params.", "metrics.", "dataset."))} == FILTERS.keys()
    assert [name for name in PARAM_NAMES if f"`{name}`" not in page] == []


def test_training_run_leads_to_its_model_and_the_model_to_its_figures(registered: RegisteredVersion) -> None:
    client = MlflowClient()
    arms = children(registered.parent_run_id)
    models = {
        name: [client.get_logged_model(output.model_id) for output in run.outputs.model_outputs]
        for name, run in arms.items()
    }
    assert {name: [model.name for model in found] for name, found in models.items()} == {
        "base": [],
        "merged": [],
        "lora-5": ["lora-5"],
        "full-5": ["full-5"],
    }
    for name in ("lora-5", "full-5"):
        [model] = models[name]
        assert model.source_run_id == arms[name].info.run_id
        assert model.params == arms[name].data.params
        scores = {metric.key: (metric.value, metric.dataset_name) for metric in model.metrics or []}
        assert scores["score"] == (arms[name].data.metrics["score"], "heldout")
    [adapter], [whole] = models["lora-5"], models["full-5"]
    assert client.get_model_version("demo", "1").source == f"models:/{adapter.model_id}"
    assert whole.tags["dvc_path"] == "artifacts/trained/full-5"
    merged = client.get_run(arms["merged"].info.run_id)  # a search doesn't tell models that were read
    assert [model.model_id for model in merged.inputs.model_inputs] == [adapter.model_id]


def test_registered_again_nothing_is_linked_twice(register: Register) -> None:
    first = register()
    assert register() == first
    Path("reports/comparison.html").write_text("another")
    second = register()  # a new parent, with children of its own; the version stays
    assert (second.version, second.parent_run_id == first.parent_run_id) == (1, False)
    for run in children(second.parent_run_id).values():
        assert len(run.outputs.model_outputs) == (run.data.params["kind"] in ("lora", "full"))


def test_model_that_was_taken_back_is_linked_anew(register: Register) -> None:
    first = register()
    [taken] = children(first.parent_run_id)["full-5"].outputs.model_outputs
    MlflowClient().delete_logged_model(taken.model_id)
    register()
    register()
    [left] = [
        each.model_id
        for each in children(first.parent_run_id)["full-5"].outputs.model_outputs
        if each.model_id != taken.model_id
    ]
    assert MlflowClient().get_logged_model(left).name == "full-5"


def test_curve_comes_from_the_history_where_the_store_has_no_training_run(registered: RegisteredVersion) -> None:
    run = children(registered.parent_run_id)["lora-5"]
    assert curve(run, "train/loss") == [(1, 3.0), (2, 1.5), (3, 1.0)]
    assert curve(run, "heldout/loss") == [(2, 1.75), (3, 3.5 / 3)]
    assert curve(run, "train/learning_rate") == [(1, 1e-3), (2, 5e-4), (3, 1e-3 / 3)]


def test_training_run_becomes_the_child_and_keeps_its_curve(
    register: Register, registry: RegistrySettings, sources: RegistrationSources
) -> None:
    with training_of_the_adapter(registry, sources) as tracker:
        tracker.log({"train/loss": 9.0}, step=1)
    registered = register()
    run = children(registered.parent_run_id)["lora-5"]
    assert run.info.run_id == tracker.run_id == registered.run_id
    assert curve(run, "train/loss") == [(1, 9.0)]
    assert run.data.params.keys() == set(PARAM_NAMES)
    assert run.data.params["rank"] == "4"
    assert sorted(entry.dataset.name for entry in run.inputs.dataset_inputs) == ["heldout", "known", "train"]


def test_unfinished_training_run_is_not_taken(
    register: Register, registry: RegistrySettings, sources: RegistrationSources
) -> None:
    with pytest.raises(KeyboardInterrupt), training_of_the_adapter(registry, sources) as tracker:
        raise KeyboardInterrupt
    run = children(register().parent_run_id)["lora-5"]
    assert run.info.run_id != tracker.run_id
    assert len(curve(run, "train/loss")) == 3


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
    assert {"train/loss", "heldout/loss", "train/learning_rate"} <= sent & written


def test_parent_has_data_report_checks_lock_and_comparison(
    registered: RegisteredVersion, sources: RegistrationSources
) -> None:
    parent = MlflowClient().get_run(registered.parent_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["retention"] == 0.97
    assert (parent.data.metrics["score"], parent.data.metrics["score_low"]) == (0.5, 0.4)
    assert not any(name.startswith("arms/") for name in parent.data.metrics)  # a section of charts each: in the table
    table = MlflowClient().load_table(parent.info.experiment_id, "arms.json", run_ids=[parent.info.run_id])
    assert table.loc[0, ["arm", "score", "score_low"]].to_list() == ["lora", 0.5, 0.4]
    assert parent.data.tags["role"] == "pipeline"
    datasets = {entry.dataset.name: entry.dataset for entry in parent.inputs.dataset_inputs}
    assert sorted(datasets) == ["heldout", "known", "train"]
    assert json.loads(datasets["train"].profile)["num_rows"] == 8
    folder = Path(mlflow.artifacts.download_artifacts(run_id=parent.info.run_id))
    assert (folder / "comparison.html").read_bytes() == sources.report.read_bytes()
    assert (folder / "data_docs" / "index.html").is_file()
    assert (folder / "dvc.lock").read_bytes() == sources.lock.read_bytes()


def test_pages_are_those_for_models(registered: RegisteredVersion) -> None:
    experiment = MlflowClient().get_experiment_by_name("mgm-lora")
    assert experiment is not None
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


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
