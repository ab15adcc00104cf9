"""Writes a sweep as MLflow runs: a parent, and a child for each trial that has been run, so that MLflow's own pages compare them.

The run that a trial's training opened becomes its child. Where the store doesn't have it (the training was restored, or the server was down), the
child is written from the trial's figures, under the same names. Called again, it brings what is there up to date.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunStatus, RunTag

from mgm_lora.registry.store import Store
from mgm_lora.registry.writing import (
    as_metrics,
    cost_figures,
    curve_metrics,
    last_losses,
    log_in_batches,
    search_runs,
)
from mgm_lora.run_names import EXPERIMENT_TAG, PARENT_TAG, ROLE_TAG, SWEEP, TRIAL, name_tags
from mgm_lora.sweeping.results import SweepResult, TrialResult
from mgm_lora.sweeping.trials import choice_text

SWEEP_TAG = "mgm_lora.sweep"
IDENTITY_TAG = "mgm_lora.sweep_identity"
WORDS_TAG = "mgm_lora.words"
"""The last words of a trial that failed."""
_MAX_WORDS = 500
_STATUS = {"done": "FINISHED", "failed": "FAILED"}

History = Mapping[str, Sequence[Mapping[str, float]]]
Params = Mapping[str, str]


def write_sweep_runs(
    store: Store,
    *,
    result: SweepResult,
    params: Mapping[str, Params],
    histories: Mapping[str, History],
    files: Sequence[Path],
) -> str:
    """Brings the sweep's runs up to date, and returns the parent's id.

    Args:
        params: what each trial's run is told apart by, by trial's name.
        histories: losses on the way, by trial's name, as far as they are known; for children that have to be written.
        files: what is kept with the parent.

    Raises:
        MlflowException: the store didn't take it.
    """
    client = store.client
    run = _parent(store, result)
    parent = str(run.info.run_id)
    for trial in result.trials:
        if trial.state != "waiting":
            history = histories.get(trial.name, {})
            _write_trial(store, trial, params=params[trial.name], parent=parent, history=history)
    log_in_batches(client, parent, metrics=as_metrics(_new_figures(_summary(result), run=run)))
    for file in files:
        if file.is_file():
            client.log_artifact(parent, str(file))
    is_whole = result.count("waiting") == 0
    client.update_run(parent, status="FINISHED" if is_whole else "RUNNING")
    return parent


def _parent(store: Store, result: SweepResult) -> Run:
    names = json.dumps([trial.name for trial in result.trials])
    identity = hashlib.sha256(names.encode()).hexdigest()
    found = search_runs(store, IDENTITY_TAG, identity)
    if found:
        return found[0]
    tags = {SWEEP_TAG: result.name, ROLE_TAG: SWEEP, IDENTITY_TAG: identity, "mlflow.source.git.commit": result.commit}
    run = store.client.create_run(store.experiment_id, run_name=f"sweep {result.name}", tags=tags)
    params = {"about": result.about, "search": result.search, "trials": len(result.trials)}
    params |= {f"vary.{axis.name}": axis.entry or "options" for axis in result.axes}
    log_in_batches(store.client, run.info.run_id, metrics=[], params=_params(params))
    return run


def _write_trial(store: Store, trial: TrialResult, *, params: Params, parent: str, history: History) -> None:
    client = store.client
    runs = _own_runs(store, trial, parent=parent)
    run = runs[0] if runs else _new_run(store, trial, params=params, history=history)
    _end_dead_runs(client, runs[1:])
    run_id = str(run.info.run_id)
    tags = {PARENT_TAG: parent} | ({WORDS_TAG: trial.words[-_MAX_WORDS:]} if trial.words else {})
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    metrics = as_metrics(_new_figures(cost_figures(trial.figures) | trial.scores, run=run))
    log_in_batches(client, run_id, metrics=metrics, params=_missing_params(trial, params=params, run=run))


def _new_run(store: Store, trial: TrialResult, *, params: Params, history: History) -> Run:
    name = f"{trial.arm}-{trial.seed}"
    tags = {EXPERIMENT_TAG: trial.name, **name_tags(params, model=name, role=TRIAL)}
    run = store.client.create_run(store.experiment_id, run_name=name, tags=tags)
    log_in_batches(store.client, run.info.run_id, metrics=_losses(trial, history=history))
    store.client.set_terminated(run.info.run_id, _STATUS[trial.state])
    return run


def _own_runs(store: Store, trial: TrialResult, *, parent: str) -> list[Run]:
    """The runs of the trial's training that are nobody else's children: first the one that ended as the trial did, else the newest."""
    runs = [
        run for run in search_runs(store, EXPERIMENT_TAG, trial.name) if run.data.tags.get(PARENT_TAG, parent) == parent
    ]
    return sorted(runs, key=lambda run: run.info.status != _STATUS[trial.state])


def _end_dead_runs(client: MlflowClient, runs: Sequence[Run]) -> None:
    """Runs of trainings that were killed, and taken up in another: nobody else will end them."""
    for run in runs:
        if run.info.status == RunStatus.to_string(RunStatus.RUNNING):
            client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))


def _new_figures(figures: Mapping[str, float], *, run: Run) -> dict[str, float]:
    return {name: value for name, value in figures.items() if run.data.metrics.get(name) != value}


def _losses(trial: TrialResult, *, history: History) -> list[Metric]:
    """The curves, or where they aren't known the last losses."""
    return curve_metrics(history) or as_metrics(last_losses(trial.figures))


def _missing_params(trial: TrialResult, *, params: Params, run: Run) -> list[Param]:
    """What every training's run has, and the trial's choices by axis: what MLflow's charts are drawn over."""
    wanted = {**params, **{f"sweep.{axis}": choice_text(choice) for axis, choice in trial.choices.items()}}
    return _params({name: value for name, value in wanted.items() if name not in run.data.params})


def _params(values: Mapping[str, object]) -> list[Param]:
    return [Param(name, str(value)) for name, value in values.items()]


def _summary(result: SweepResult) -> dict[str, float]:
    counts = {state: float(result.count(state)) for state in ("done", "failed", "waiting")}
    best = {
        f"best/{outcome.arm}/heldout_loss": result.trial(outcome.best).loss for outcome in result.arms if outcome.best
    }
    return {f"trials/{state}": count for state, count in counts.items()} | best
