"""Writes one way through the pipeline as MLflow runs: a parent, and a child per model with parameters, curves and scores.

The run that a training opened becomes its model's child. Where the store doesn't have it (another machine trained, the
server was down), the child is written from the training's `history.json`, under the same names. It knows no versions.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Param, Run, RunTag
from mlflow.exceptions import MlflowException

from mgm_lora.registry.datasets import dataset_inputs
from mgm_lora.registry.records import ArmRecord, PipelineRecord
from mgm_lora.registry.run_contents import arms_table, comparison_figures, model_figures, model_params
from mgm_lora.registry.store import Store
from mgm_lora.registry.writing import as_metrics, curve_metrics, log_in_batches, search_runs
from mgm_lora.run_names import (
    ARM,
    EXPERIMENT_TAG,
    KEY_TAG,
    MODEL_TAG,
    PARENT_TAG,
    PIPELINE,
    ROLE_TAG,
    SETTINGS_FILE,
    name_tags,
)

IDENTITY_TAG = "mgm_lora.identity"
ARMS_FILE, COMPARISON_FILE = "arms.json", "comparison.json"


@dataclass(frozen=True)
class Runs:
    """Ids of the runs of one way through the pipeline."""

    parent: str
    arms: Mapping[str, str]


def write_runs(store: Store, *, record: PipelineRecord, undo: ExitStack) -> Runs:
    """Finds the parent with the record's identity, or writes it with its children.

    Args:
        store: where.
        record: what.
        undo: gets what takes back each step, in case a later one fails.
    """
    client = store.client
    for run in search_runs(store, IDENTITY_TAG, record.identity):
        children = search_runs(store, PARENT_TAG, run.info.run_id)
        arms = {str(child.data.tags.get(MODEL_TAG)): child.info.run_id for child in children}
        if run.info.status == "FINISHED" and arms.keys() >= record.arms.keys():
            return Runs(run.info.run_id, arms)
        _discard(client, run, children=children)
    parent = str(client.create_run(store.experiment_id, run_name="pipeline", tags=_parent_tags(record)).info.run_id)
    undo.callback(quietly, client.delete_run, parent)
    arms = {
        name: _write_arm(store, arm=arm, parent=parent, record=record, undo=undo) for name, arm in record.arms.items()
    }
    client.log_batch(parent, metrics=as_metrics(comparison_figures(record.comparison)))
    client.log_dict(parent, dict(record.comparison), COMPARISON_FILE)
    client.log_table(parent, arms_table(record.comparison), ARMS_FILE)
    client.log_inputs(parent, datasets=dataset_inputs(record.datasets, is_trained=True))
    client.log_artifact(parent, str(record.sources.report))
    client.log_artifacts(parent, str(record.sources.data_docs), "data_docs")
    if record.sources.lock.is_file():
        client.log_artifact(parent, str(record.sources.lock))
    client.log_dict(parent, record.merged_manifest.model_dump(mode="json"), "merged.json")
    client.set_terminated(parent)
    return Runs(parent, arms)


def _discard(client: MlflowClient, run: Run, *, children: Sequence[Run]) -> None:
    """A registration that was killed, or whose training runs went to a newer one."""
    for child in children:
        if KEY_TAG not in child.data.tags:
            client.delete_run(child.info.run_id)
    client.delete_run(run.info.run_id)


def _parent_tags(record: PipelineRecord) -> dict[str, str]:
    commit = {"mlflow.source.git.commit": record.source.commit} if record.source.commit else {}
    return {IDENTITY_TAG: record.identity, ROLE_TAG: PIPELINE, **commit}


def _write_arm(store: Store, *, arm: ArmRecord, parent: str, record: PipelineRecord, undo: ExitStack) -> str:
    client = store.client
    wanted = model_params(record, arm.name)
    tags = {PARENT_TAG: parent, **name_tags(wanted, model=arm.name, role=ARM)}
    run = _training_run(store, arm)
    if run is None:
        run = client.create_run(store.experiment_id, run_name=arm.name, tags=tags)
        undo.callback(quietly, client.delete_run, run.info.run_id)
        log_in_batches(client, run.info.run_id, metrics=curve_metrics(arm.history))
        client.set_terminated(run.info.run_id)
    else:
        _adopt(client, run, tags=tags, undo=undo)
    run_id = str(run.info.run_id)
    params = [Param(name, value) for name, value in wanted.items() if name not in run.data.params]
    log_in_batches(client, run_id, metrics=as_metrics(model_figures(record, arm.name)), params=params)
    client.log_inputs(run_id, datasets=dataset_inputs(record.datasets, is_trained=arm.trained is not None))
    client.log_dict(run_id, arm.settings, SETTINGS_FILE)
    client.log_artifacts(run_id, str(arm.scores), "scores")
    if arm.trained_manifest:
        client.log_dict(run_id, arm.trained_manifest.model_dump(mode="json"), "trained.json")
    return run_id


def _adopt(client: MlflowClient, run: Run, *, tags: Mapping[str, str], undo: ExitStack) -> None:
    before = run.data.tags.get(PARENT_TAG)
    client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    if before is None:
        undo.callback(quietly, client.delete_tag, run.info.run_id, PARENT_TAG)
    else:
        undo.callback(quietly, client.set_tag, run.info.run_id, PARENT_TAG, before)


def _training_run(store: Store, arm: ArmRecord) -> Run | None:
    """The finished run that the arm's training opened, if it is in this store."""
    if arm.trained_manifest is None:
        return None
    key = arm.trained_manifest.details.get("training_key")
    runs = search_runs(store, KEY_TAG, key) if key else []
    ended = (run for run in runs if run.info.status == "FINISHED")
    return next((run for run in ended if EXPERIMENT_TAG not in run.data.tags), None)  # a sweep keeps its children


def quietly(work: Callable[..., object], *arguments: str) -> None:
    """Takes a step back; what stopped the registration is the error to tell, not this one."""
    try:
        work(*arguments)
    except (MlflowException, OSError):
        return
