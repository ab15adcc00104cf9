"""The flow `promotion` on a real Prefect server: what it does when the registry is away, or has no such version."""

import time
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun

from flows import promotion as promotion_module
from flows.promotion import promotion

from ..mlflow_store import forget_store
from ..small_project import write_params


@pytest.fixture
def project(prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With settings alone; what is tried again is so at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(promotion_module, "promote", promotion_module.promote.with_options(retry_delay_seconds=0))
    return tmp_path


def test_registry_that_is_away_is_tried_again_and_told(project: Path) -> None:
    write_params(project, {"registry": {"tracking_uri": "http://127.0.0.1:9", "model_name": "demo"}})

    state = promotion(return_state=True)
    forget_store()

    run = task_run(state)
    assert state.is_failed()
    assert (run.name, run.run_count) == ("promote challenger", 3)
    assert "doesn't answer" in str(state.message)


def test_version_that_is_not_there_is_told_at_once(project: Path, empty_store: Path) -> None:
    write_params(project)
    (project / "mlflow.db").write_bytes(empty_store.read_bytes())

    state = promotion("7", return_state=True)
    forget_store()

    assert state.is_failed()
    assert task_run(state).run_count == 1


def task_run(state: State[Any]) -> TaskRun:
    """The only one, once the server knows that it has ended."""
    run = state.state_details.flow_run_id
    assert run
    end = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
            if found and found[0].state and found[0].state.is_final():
                return found[0]
            assert time.monotonic() < end
            time.sleep(0.1)
