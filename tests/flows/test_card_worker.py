"""What the worker's command refuses before it becomes a worker, and what it leaves on the server."""

import json
import subprocess
from pathlib import Path
from uuid import UUID

import pytest
from dvc.repo import Repo
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.card_stage import card_stage
from flows.card_worker import main, prepare
from tasks.order import Order

from ..two_machines import Team, make_team

POOL = "card-refusals"


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Team:
    return make_team(tmp_path_factory.mktemp("team"))


@pytest.fixture
def box(team: Team, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(team.box.clone)
    return team.box.clone


def refusal(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["--pool", POOL])
    return code, capsys.readouterr().err


def test_clone_of_nothing_is_refused(box: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["git", "remote", "rename", "origin", "other"], check=True)
    try:
        code, told = refusal(capsys)
    finally:
        subprocess.run(["git", "remote", "rename", "other", "origin"], check=True)

    assert code == 2
    assert "has no git remote `origin`" in told


def test_remote_that_nobody_else_sees_is_refused(box: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Repo() as repo, repo.config.edit("local") as config:
        config["remote"]["team"] = {"url": str(box / "dvc-remote")}
    try:
        code, told = refusal(capsys)
    finally:
        (box / ".dvc" / "config.local").unlink()

    assert code == 4
    assert "lies in this clone" in told


@pytest.mark.parametrize(
    "address, told", [(None, "export PREFECT_API_URL"), ("http://127.0.0.1:9/api", "doesn't answer")]
)
def test_server_that_is_not_there_is_told(
    box: Path, capsys: pytest.CaptureFixture[str], address: str | None, told: str
) -> None:
    with temporary_settings({PREFECT_API_URL: address}):
        code, words = refusal(capsys)

    assert code == 4
    assert told in words


def test_pool_and_deployment_are_there_afterwards_once(box: Path, prefect_server: None) -> None:
    prepare(box, pool=POOL)
    prepare(box, pool=POOL)

    with get_client(sync_client=True) as client:
        assert isinstance(client, SyncPrefectClient)
        assert client.read_work_pool(POOL).concurrency_limit == 1
        deployment = client.read_deployment_by_name(f"card-stage/{POOL}")
    assert deployment.work_pool_name == POOL
    assert set(json.loads(json.dumps(deployment.parameter_openapi_schema))["definitions"]["Order"]["required"]) == {
        name for name, field in Order.model_fields.items() if field.is_required()
    }


def test_worker_of_another_version_is_told_at_the_desk(team: Team, prefect_server: None) -> None:
    pool = "card-older"
    prepare(team.box.clone, pool=pool)
    with get_client(sync_client=True) as client:
        assert isinstance(client, SyncPrefectClient)
        client.create_deployment(
            flow_id=UUID(str(client.create_flow(card_stage))),
            name=pool,
            work_pool_name=pool,
            parameter_openapi_schema={
                "type": "object",
                "required": ["stage"],
                "properties": {"stage": {"type": "string"}},
            },
        )
    done = team.desk.pipeline(pool, "--stage", "train@lora")

    assert done.returncode == 1
    assert "its clone is of another version of mgm-lora" in done.stdout
    assert "no worker of the pool 'card-older' is at work now" in done.stderr
