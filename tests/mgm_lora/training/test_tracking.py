"""What a training sends to MLflow, and that no trouble with MLflow reaches the training."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.entities import Dataset, DatasetInput, Run
from transformers import TrainerControl, TrainerState, TrainingArguments
from werkzeug.serving import make_server

from mgm_lora.lora.injection import TrainableModel
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.settings import SeededTraining
from mgm_lora.training.arms import TrainingData
from mgm_lora.training.tracking import Tracker, track_training
from mgm_lora.training.trainer import TrainingHistory, run_training

PARAMS = {"arm": "lora", "seed": "3", "kind": "lora", "rank": "4"}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for all tests here, since MLflow takes seconds to make its tables; each test has keys of its own."""
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture
def store(database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A SQLite store's address; nothing of it stays in this process."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    before = mlflow.get_tracking_uri()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two of them on busy cores wait for each other
    yield f"sqlite:///{database}"
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(before)
    torch.set_num_threads(num_threads)


@pytest.fixture
def train(
    make_trainable: Callable[[], TrainableModel], training: SeededTraining, data: TrainingData, tmp_path: Path
) -> Callable[..., TrainingHistory]:
    """Trains a fresh adapter under a tracker."""

    def run(tracker: Tracker, *callbacks: Any) -> TrainingHistory:
        return run_training(
            make_trainable(),
            training=training,
            knobs=StepKnobs(micro_batch_size=4),
            processor=data.processor,
            train_rows=data.train,
            heldout_rows=data.heldout,
            checkpoints=tmp_path / "checkpoints",
            callbacks=[*callbacks, *tracker.callbacks],
        )

    return run


def opener(uri: str) -> Callable[[], str]:
    def open_experiment() -> str:
        mlflow.set_tracking_uri(uri)
        found = mlflow.MlflowClient().get_experiment_by_name("test")
        return str(found.experiment_id if found else mlflow.MlflowClient().create_experiment("test", _artifacts(uri)))

    return open_experiment


def _artifacts(uri: str) -> str | None:
    """Beside the file; a server has a place of its own."""
    return f"{uri.rpartition('/')[0].removeprefix('sqlite:///')}/artifacts" if uri.startswith("sqlite") else None


def curve(run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in mlflow.MlflowClient().get_metric_history(run_id, name)]


def get_run(tracker: Tracker) -> Run:
    assert tracker.run_id is not None
    return mlflow.MlflowClient().get_run(tracker.run_id)


def test_run_has_the_history_the_settings_and_the_machines_load(
    store: str, train: Callable[..., TrainingHistory], training: SeededTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.3")
    read = DatasetInput(Dataset("train", "abc", "local", "{}"), [])
    with track_training(
        "lora-3",
        open_experiment=opener(store),
        params=PARAMS,
        sections={"training": training},
        key="k",
        resume=False,
        datasets=[read],
    ) as tracker:
        history = train(tracker)
    run = get_run(tracker)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "lora-3"
    assert run.data.params == PARAMS
    tags = {name: run.data.tags[name] for name in ("arm", "seed", "kind", "role", "mgm_lora.model")}
    assert tags == {"arm": "lora", "seed": "3", "kind": "lora", "role": "arm", "mgm_lora.model": "lora-3"}
    settings = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/settings.json")
    assert settings["training"] == training.model_dump(mode="json")
    [read] = run.inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == ("train", "abc")
    assert curve(run.info.run_id, "train/loss") == [(row["step"], row["loss"]) for row in history.train]
    assert curve(run.info.run_id, "heldout/loss") == [(row["step"], row["loss"]) for row in history.heldout]
    assert curve(run.info.run_id, "train/learning_rate") == [
        (row["step"], row["learning_rate"]) for row in history.train
    ]
    assert len(curve(run.info.run_id, "train/samples_per_second")) == len(history.train)
    assert any(name.startswith("system/cpu") for name in run.data.metrics)


def test_speed_leaves_out_the_time_of_evaluations(store: str, tmp_path: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        use_cpu=True,
        report_to=[],
    )
    state, control = TrainerState(global_step=2), TrainerControl()
    with track_training(
        "lora", open_experiment=opener(store), params=PARAMS, sections={}, key="speed", resume=False
    ) as tracker:
        [reporter] = tracker.callbacks
        reporter.on_train_begin(arguments, state, control)
        for _ in range(2):
            time.sleep(0.05)
            reporter.on_step_end(arguments, state, control)
            time.sleep(0.4)
            reporter.on_evaluate(arguments, state, control)
        reporter.on_log(arguments, state, control, logs={"loss": 1.0})
    [(step, speed)] = curve(str(tracker.run_id), "train/samples_per_second")
    assert step == 2
    assert 16 / 0.5 < speed <= 16 / 0.1


def test_unreachable_server_costs_one_warning_and_no_training(
    store: str, train: Callable[..., TrainingHistory], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    started = time.monotonic()
    with track_training(
        "lora", open_experiment=opener(address), params=PARAMS, sections={}, key="k", resume=False
    ) as tracker:
        waited = time.monotonic() - started
        history = train(tracker)
    assert waited < 10
    assert tracker.run_id is None
    assert len(history.heldout) == 2
    warnings = [record for record in caplog.records if record.name == "mgm_lora.training.tracking"]
    assert [record.levelno for record in warnings] == [logging.WARNING]
    assert "MLFLOW CAN'T BE REACHED" in warnings[0].getMessage()


def test_default_patience_with_a_closed_port_is_seconds_not_minutes(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MAX_RETRIES", "BACKOFF_FACTOR", "TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "")  # so that what is set below is taken back
        del os.environ[f"MLFLOW_HTTP_REQUEST_{name}"]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    started = time.monotonic()
    with track_training("lora", open_experiment=opener(address), params=PARAMS, sections={}, key="k", resume=False):
        pass
    assert time.monotonic() - started < 10


def test_figures_of_a_lost_server_are_sent_when_it_is_back(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = _Server(store, monkeypatch)
    server.start()
    with track_training(
        "lora", open_experiment=opener(server.address), params=PARAMS, sections={}, key="k", resume=False
    ) as tracker:
        tracker.log({"train/loss": 3.0}, step=1)
        server.stop()
        tracker.log({"train/loss": 2.0}, step=2)
        tracker.log({"train/loss": 1.0}, step=3)
        server.start()
    assert get_run(tracker).info.status == "FINISHED"
    assert curve(str(tracker.run_id), "train/loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    server.stop()


def test_run_whose_figures_are_not_all_there_is_not_called_finished(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = _Server(store, monkeypatch)
    server.start()
    with track_training(
        "lora", open_experiment=opener(server.address), params=PARAMS, sections={}, key="k", resume=False
    ) as tracker:
        server.stop()
        tracker.log({"train/loss": 2.0}, step=2)
    server.start()
    assert get_run(tracker).info.status != "FINISHED"
    server.stop()


def test_failing_training_fails_its_run_and_its_error_passes(store: str) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        track_training(
            "lora", open_experiment=opener(store), params=PARAMS, sections={}, key="k", resume=False
        ) as tracker,
    ):
        raise ZeroDivisionError
    assert get_run(tracker).info.status == "FAILED"


def test_resumed_training_goes_on_in_its_run(store: str) -> None:
    def track(key: str, *, resume: bool) -> Any:
        return track_training("lora", open_experiment=opener(store), params=PARAMS, sections={}, key=key, resume=resume)

    with pytest.raises(KeyboardInterrupt), track("k", resume=False) as first:  # noqa: PT012
        first.log({"train/loss": 3.0}, step=1)
        raise KeyboardInterrupt
    assert get_run(first).info.status == "KILLED"
    with track("other", resume=True) as other:
        pass
    with track("k", resume=True) as second:
        second.log({"train/loss": 2.0}, step=2)
    with track("k", resume=True) as third:
        pass
    assert second.run_id == first.run_id
    assert curve(str(first.run_id), "train/loss") == [(1, 3.0), (2, 2.0)]
    assert get_run(second).info.status == "FINISHED"
    assert len({first.run_id, other.run_id, third.run_id}) == 3


class _Server:
    """MLflow's own server in a thread, which can go away and come back at the same address."""

    def __init__(self, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", store)
        monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        from mlflow.server import app

        self._server = make_server("127.0.0.1", self._port, app, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
