"""Sends what a training reports to one MLflow run: losses, learning rate, speed, the machine's load, by optimizer step.

Tracking never stops a training. A server that can't be reached costs a warning and nothing else: what wasn't sent is
sent at the end, or, if that fails too, registration writes the run from the training's `history.json`. It doesn't know
where the store is: opening it is passed in.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlflow
from mlflow.entities import DatasetInput, Metric, Param, RunStatus
from pydantic import BaseModel
from transformers import TrainerCallback

from mgm_lora.run_names import (
    ARM,
    EXPERIMENT_TAG,
    GRADIENT_NORM,
    HELDOUT_LOSS,
    KEY_TAG,
    LEARNING_RATE,
    SETTINGS_FILE,
    SPEED,
    TRAIN_LOSS,
    TRIAL,
    name_tags,
)

logger = logging.getLogger(__name__)

_EXPERIMENT_VARIABLE = "DVC_EXP_NAME"  # `dvc exp run` sets it for its stages
_METRIC_NAMES = {
    "loss": TRAIN_LOSS,
    "eval_loss": HELDOUT_LOSS,
    "learning_rate": LEARNING_RATE,
    "grad_norm": GRADIENT_NORM,
}
_FAIL_FAST = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_MAX_METRICS = 1000  # what MLflow takes at once


@contextmanager
def track_training(
    model: str,
    *,
    open_experiment: Callable[[], str],
    params: Mapping[str, str],
    sections: Mapping[str, BaseModel],
    key: str,
    resume: bool,
    datasets: Sequence[DatasetInput] = (),
) -> Iterator["Tracker"]:
    """A run that is open during the block, and ends FINISHED, FAILED or KILLED as the block does.

    Args:
        model: the run's name: `lora-17`.
        open_experiment: points MLflow at its store and returns the experiment's id; may fail.
        params: what the run is told apart by, of `run_names.trained_params`.
        sections: settings, kept in the run as a file.
        key: digest of all that the training is made from. Its manifest has it too, as `training_key`, so that
            registration finds the run; MLflow's own id can't be in a manifest, since it differs each time.
        resume: go on in the newest unfinished run with this key; for a training that goes on from a checkpoint.
        datasets: what it learns from and is measured on.
    """
    tracker = Tracker()
    settings = {name: section.model_dump(mode="json") for name, section in sections.items()}
    tracker.open(
        model,
        open_experiment=open_experiment,
        params=params,
        settings=settings,
        key=key,
        resume=resume,
        datasets=datasets,
    )
    status = RunStatus.KILLED
    try:
        yield tracker
        status = RunStatus.FINISHED
    except Exception:
        status = RunStatus.FAILED
        raise
    finally:
        tracker.close(RunStatus.to_string(status))


class Tracker:
    """One run. Every call returns, whatever happens to the server."""

    def __init__(self) -> None:
        self.run_id: str | None = None
        """None where the run could not be opened."""
        self._is_online = True
        self._has_warned = False
        self._unsent: list[Metric] = []

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """What the Trainer reports to."""
        return [_Reporter(self)]

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Sends figures, or keeps them for the end where the server was lost."""
        now = int(time.time() * 1000)
        self._unsent += [Metric(name, float(value), now, step) for name, value in metrics.items()]
        if self._is_online:
            self._guard(self._send)

    def open(
        self,
        model: str,
        *,
        open_experiment: Callable[[], str],
        params: Mapping[str, str],
        settings: Mapping[str, Any],
        key: str,
        resume: bool,
        datasets: Sequence[DatasetInput],
    ) -> None:
        """Opens the run."""
        for name, value in _FAIL_FAST.items():
            os.environ.setdefault(name, value)

        def start() -> None:
            trial = _experiment_tag()
            experiment_id = open_experiment()
            run = mlflow.start_run(
                run_id=_unfinished_run(experiment_id, key=key) if resume else None,
                experiment_id=experiment_id,
                run_name=model,
                tags={KEY_TAG: key, **name_tags(params, model=model, role=TRIAL if trial else ARM), **trial},
                log_system_metrics=True,
            )
            self.run_id = run.info.run_id
            client = mlflow.MlflowClient()
            client.log_batch(run.info.run_id, params=[Param(name, value) for name, value in params.items()])
            client.log_inputs(run.info.run_id, datasets=list(datasets))
            client.log_dict(run.info.run_id, dict(settings), SETTINGS_FILE)

        self._guard(start)

    def close(self, status: str) -> None:
        """Sends what is left and ends the run; a run whose figures are not all there doesn't end as FINISHED."""
        if self.run_id is None:
            return
        self._is_online = True
        self._guard(self._send)
        self._guard(lambda: mlflow.end_run("FAILED" if self._unsent else status))

    def _send(self) -> None:
        while self._unsent:
            mlflow.MlflowClient().log_batch(str(self.run_id), metrics=self._unsent[:_MAX_METRICS])
            del self._unsent[:_MAX_METRICS]

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever it is: the training is worth more than its curve
            self._is_online = False
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "MLFLOW CAN'T BE REACHED (%s). The training goes on without it; its history.json keeps every"
                    " figure, and `mgm-lora register` writes the run from it. Look at registry.tracking_uri, and"
                    " whether the server runs.",
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                )


class _Reporter(TrainerCallback):
    """Names the Trainer's figures as we do, and measures speed over the time spent in steps, evaluations left out."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._busy_seconds = 0.0
        self._num_steps = 0
        self._mark = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._mark = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()
        self._busy_seconds += now - self._mark
        self._num_steps += 1
        self._mark = now

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._mark = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._mark = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        metrics = {_METRIC_NAMES[name]: value for name, value in (logs or {}).items() if name in _METRIC_NAMES}
        if TRAIN_LOSS in metrics and self._busy_seconds:
            num_samples = self._num_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            metrics[SPEED] = num_samples / self._busy_seconds
            self._busy_seconds, self._num_steps = 0.0, 0
        if metrics and state.is_world_process_zero:
            self._tracker.log(metrics, step=state.global_step)


def _experiment_tag() -> dict[str, str]:
    name = os.environ.get(_EXPERIMENT_VARIABLE)
    return {EXPERIMENT_TAG: name} if name else {}


def _unfinished_run(experiment_id: str, *, key: str) -> str | None:
    runs = mlflow.MlflowClient().search_runs(
        [experiment_id], f"tags.`{KEY_TAG}` = '{key}'", order_by=["attributes.start_time DESC"], max_results=1
    )
    return runs[0].info.run_id if runs and runs[0].info.status != "FINISHED" else None
