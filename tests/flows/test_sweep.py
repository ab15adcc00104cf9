"""A sweep on a real Prefect server: a task run per trial, failed ones in sight, and nothing run twice."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import State

from flows.sweep import sweep
from mgm_lora.sweeping.results import read_sweep

from ..mlflow_store import forget_store
from ..sweep_project import add_sweep, make_sweep_project, trained_rates

RATES = """
about: one rate too high
arms: [lora]
search: grid
vary:
  rate: {entry: arm.learning_rate, values: [0.9, 0.1]}
"""
TRIALS = ["lora, rate 0.9", "lora, rate 0.1"]


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project as the working directory, with a sweep of which one trial fails."""
    store = tmp_path / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{store}").search_experiments()  # makes its tables
    root = make_sweep_project(tmp_path / "project", store=store)
    add_sweep(root, "high", RATES)
    monkeypatch.chdir(root)
    yield root
    forget_store()


def test_each_trial_is_a_task_run_and_is_run_once(project: Path, client: SyncPrefectClient) -> None:
    first = sweep("high", return_state=True)

    assert first.is_completed(), first.message
    assert "lora: Best: rate 0.1, with a held-out loss of 2" in str(first.message)
    assert states_of_trials(first, client) == dict(zip(TRIALS, ["Failed", "Completed"], strict=True))
    filter = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id(first)]))
    shown = {artifact.key: str(artifact.data) for artifact in client.read_artifacts(artifact_filter=filter)}
    assert "the loss is no number at step 3" in shown["sweep-high"]
    assert [trial.state for trial in read_sweep(Path("sweeps/results/high.json")).trials] == ["failed", "done"]

    again = sweep("high", return_state=True)

    assert states_of_trials(again, client) == dict(zip(TRIALS, ["Failed", "Cached"], strict=True))
    assert trained_rates(project) == [0.9, 0.1]


def test_trouble_of_the_machine_fails_the_flow_and_begins_no_further_trial(
    project: Path, client: SyncPrefectClient
) -> None:
    (project / "full-disk").touch()

    state = sweep("high", return_state=True)

    assert state.is_failed()
    assert "no space left" in str(state.message)
    assert states_of_trials(state, client, num=1) == {TRIALS[0]: "Interrupted"}
    assert not Path("sweeps/results/high.json").exists()


def states_of_trials(state: State[Any], client: SyncPrefectClient, *, num: int = 2) -> dict[str, str]:
    """Of the flow run's task runs, in order; the server hears of them by and by."""
    filter = FlowRunFilter(id=FlowRunFilterId(any_=[run_id(state)]))
    end = time.monotonic() + 60
    while True:
        runs = client.read_task_runs(flow_run_filter=filter)
        if len(runs) == num and all(run.state and run.state.is_final() for run in runs):
            return {run.name: str(run.state_name) for run in sorted(runs, key=lambda run: run.id.int)}
        assert time.monotonic() < end, f"waited a minute for {num} task runs to end, found {runs}"
        time.sleep(0.05)


def run_id(state: State[Any]) -> Any:
    return state.state_details.flow_run_id
