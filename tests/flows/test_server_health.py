"""What the health check finds on a real Prefect server, each thing really broken, and mended by what it advises."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.states import Crashed

from flows.pipeline import pipeline
from flows.server_health import (
    check_automation,
    check_clock,
    check_deployments,
    check_limit,
    check_pool,
    check_server,
    check_worker,
)
from flows.services_setup import set_up, zombie_automation

REPOSITORY = Path(__file__).parents[2]
POOL = "health"


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        assert isinstance(client, SyncPrefectClient)
        set_up(POOL)
        yield client


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: SyncPrefectClient) -> Iterator[UUID]:
    """The only one that prefect.yaml wants here, of version one."""
    shutil.copytree(REPOSITORY / "flows", tmp_path / "flows")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefect.yaml").write_text(
        "deployments:\n  - {name: health, entrypoint: 'flows/pipeline.py:pipeline', tags: [mgm-lora]}\n"
    )
    made = client.create_deployment(
        flow_id=UUID(str(client.create_flow(pipeline))), name="health", tags=["mgm-lora"], version="one"
    )
    yield made
    with suppress(PrefectHTTPStatusError, ObjectNotFound):
        client.delete_deployment(made)


def test_server_that_is_away_is_all_that_is_told(prefect_server: None) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        (found,) = check_server(POOL, version="")
    assert (found.subject, found.state) == ("Prefect", "wrong")
    assert "http://127.0.0.1:9/api doesn't answer" in found.found
    assert "mgm-lora up" in found.advice


def test_everything_is_looked_at_where_the_server_answers(deployment: UUID) -> None:
    found = {each.subject: each.state for each in check_server(POOL, version="one")}
    wanted = ("Prefect", "clock", "work pool", "limit", "automation", "deployments")
    assert found == {**dict.fromkeys(wanted, "ok"), "worker": "wrong"}


@pytest.mark.parametrize("seconds, state", [(0, "ok"), (3600, "wrong"), (-120, "wrong")])
def test_clock_is_compared_with_the_servers(seconds: int, state: str) -> None:
    told = format_datetime(datetime.now(UTC) - timedelta(seconds=seconds), usegmt=True)
    found = check_clock(told)
    assert found.state == state
    assert state == "ok" or ("ahead of" if seconds > 0 else "behind") in found.found


def test_pool_that_is_missing_paused_or_wide_is_wrong(client: SyncPrefectClient) -> None:
    assert check_pool(POOL, client=client).state == "ok"
    assert "no work pool" in check_pool("nowhere", client=client).found
    client.update_work_pool(POOL, WorkPoolUpdate(is_paused=True))
    assert "paused" in check_pool(POOL, client=client).found
    client.update_work_pool(POOL, WorkPoolUpdate(is_paused=False, concurrency_limit=3))
    assert "3 runs at a time" in check_pool(POOL, client=client).found
    set_up(POOL)
    assert check_pool(POOL, client=client).state == "ok"


def test_worker_is_there_while_it_says_so(client: SyncPrefectClient) -> None:
    assert check_worker("nowhere", client=client).state == "wrong"
    assert check_worker(POOL, client=client).state == "wrong"
    beat = {"name": "box", "heartbeat_interval_seconds": 30}
    address = f"{get_current_settings().api.url}/work_pools/{POOL}/workers/heartbeat"
    httpx.post(address, json=beat, timeout=30).raise_for_status()
    found = check_worker(POOL, client=client)
    assert (found.state, "box" in found.found) == ("ok", True)


def test_slot_that_is_left_over_is_told_and_opened_by_what_is_advised(client: SyncPrefectClient) -> None:
    end_runs_that_other_tests_left(client)
    assert check_limit(client).state == "ok"
    client.increment_concurrency_slots(names=["gpu"], slots=1, mode="concurrency")
    try:
        left = check_limit(client)
        assert (left.state, "1 slot of 'gpu' is held, but no flow runs" in left.found) == ("wrong", True)
        command = left.advice.rpartition("`prefect ")[2].rstrip("`").split()
        subprocess.run(
            [sys.executable, "-m", "prefect", *command],
            check=True,
            env=environment(),
            capture_output=True,
            timeout=300,
        )
        assert check_limit(client).state == "ok"
    finally:  # tests after this one share the server, and would wait for the slot for ever
        if client.read_global_concurrency_limit_by_name("gpu").active_slots:
            client.release_concurrency_slots(names=["gpu"], slots=1, occupancy_seconds=0)


def test_automation_that_is_off_or_gone_is_wrong(client: SyncPrefectClient) -> None:
    (automation,) = client.read_automations_by_name(zombie_automation().name)
    client.pause_automation(automation.id)
    assert "is off" in check_automation(client).found
    client.delete_automation(automation.id)
    assert check_automation(client).state == "wrong"
    set_up(POOL)
    assert check_automation(client).state == "ok"


def test_deployment_that_is_missing_paused_or_of_an_older_commit_is_told(
    deployment: UUID, client: SyncPrefectClient
) -> None:
    assert [each.state for each in check_deployments("one", client=client)] == ["ok"]
    (older,) = check_deployments("two", client=client)
    assert (older.state, "(two): pipeline/health of one" in older.found) == ("wrong", True)
    client.update_deployment(deployment, DeploymentUpdate(paused=True))
    assert [each.state for each in check_deployments("one", client=client)] == ["note"]
    client.delete_deployment(deployment)
    (missing,) = check_deployments("one", client=client)
    assert (missing.state, missing.found) == ("wrong", "missing: pipeline/health")


def end_runs_that_other_tests_left(client: SyncPrefectClient) -> None:
    """Flow runs whose process was killed stay Running where no automation is at work."""
    running = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING]))
    )
    for run in client.read_flow_runs(flow_run_filter=running):
        client.set_flow_run_state(run.id, Crashed(), force=True)


def environment() -> dict[str, str]:
    return {**os.environ, "PREFECT_API_URL": str(get_current_settings().api.url)}
