"""Links the models of a comparison to the runs that made them, so that MLflow's pages lead from one to the other and set the models side by side.

The registered adapter lies in MLflow. The others' weights are DVC's: MLflow has an entry of each that says where they are (an external model), with
parameters and scores. A run that is linked already stays as it is.
"""

from contextlib import ExitStack, suppress

from mlflow.entities import LoggedModelInput, LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

from mgm_lora.registry.datasets import HELDOUT, to_mlflow
from mgm_lora.registry.records import MERGED, ArmRecord, PipelineRecord
from mgm_lora.registry.run_contents import model_figures, model_params
from mgm_lora.registry.runs import Runs, quietly
from mgm_lora.registry.store import Store
from mgm_lora.registry.writing import as_metrics, log_in_batches

ADAPTER_TYPE, WHOLE_TYPE = "lora-adapter", "full-fine-tune"
KEY_TAG, PLACE_TAG = "training_key", "dvc_path"


def link_models(store: Store, *, record: PipelineRecord, runs: Runs, registered: str, undo: ExitStack) -> None:
    """Makes each training's model the output of its run, the run's scores the model's own, and the adapter what the merged model is from.

    Args:
        registered: the logged model that is the subject's version.
    """
    for name, arm in record.arms.items():
        if arm.trained_manifest is None:
            continue
        run_id = runs.arms[name]
        linked = _linked(store, run_id=run_id)
        if name == record.sources.subject:
            if registered not in linked:
                _link(store, record=record, name=name, run_id=run_id, model_id=registered)
        elif not linked:
            model_id = _create_external(store, record=record, arm=arm, run_id=run_id)
            undo.callback(quietly, store.client.delete_logged_model, model_id)
            _link(store, record=record, name=name, run_id=run_id, model_id=model_id)
    if MERGED in runs.arms:
        store.client.log_inputs(runs.arms[MERGED], models=[LoggedModelInput(registered)])


def _linked(store: Store, *, run_id: str) -> set[str]:
    """The models that are there still: one that a failed registration took back has left its link."""
    there = set()
    outputs = store.client.get_run(run_id).outputs
    for output in outputs.model_outputs if outputs else ():
        with suppress(MlflowException):
            there.add(store.client.get_logged_model(output.model_id).model_id)
    return there


def _create_external(store: Store, *, record: PipelineRecord, arm: ArmRecord, run_id: str) -> str:
    assert arm.trained is not None
    assert arm.trained_manifest is not None
    model = store.client.create_logged_model(
        store.experiment_id,
        name=arm.name,
        source_run_id=run_id,
        model_type=ADAPTER_TYPE if arm.trained_manifest.kind == "TrainedAdapter" else WHOLE_TYPE,
        params=model_params(record, arm.name),
        tags={
            PLACE_TAG: arm.trained.as_posix(),
            KEY_TAG: str(arm.trained_manifest.details["training_key"]),
            MLFLOW_MODEL_IS_EXTERNAL: "true",
        },
    )
    store.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def _link(store: Store, *, record: PipelineRecord, name: str, run_id: str, model_id: str) -> None:
    store.client.log_outputs(run_id, models=[LoggedModelOutput(model_id, step=0)])
    heldout = next(to_mlflow(dataset) for dataset in record.datasets if dataset.name == HELDOUT)
    figures = as_metrics(model_figures(record, name), model_id=model_id, dataset=heldout)
    log_in_batches(store.client, run_id, metrics=figures)
