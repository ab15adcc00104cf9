"""Prefect's server is lost while a stage runs on another machine: the stage goes on, and what it makes is not lost."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from ..two_machines import Team, kill_all, make_team, wait_for

Server = subprocess.Popen[bytes]
POOL = "card"


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start_server(port: int, tmp_path: Path) -> Iterator[Callable[[], Server]]:
    """Each time with the same address and record."""
    started: list[Server] = []
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    own = {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }

    def start() -> Server:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        with (tmp_path / "server.log").open("ab") as log:
            started.append(subprocess.Popen(command, env=kept | own, stdout=log, stderr=log))
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/api/health"))
        return started[-1]

    yield start
    for server in started:
        server.terminate()
        server.wait(60)


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (URLError, OSError):
        return False


@pytest.fixture
def team(port: int, tmp_path: Path) -> Team:
    return make_team(tmp_path / "team", PREFECT_API_URL=f"http://127.0.0.1:{port}/api")


def test_server_that_is_lost_in_the_middle_and_comes_back_loses_nothing(
    team: Team, start_server: Callable[[], Server]
) -> None:
    server = start_server()
    worker = team.box.start_worker(POOL)
    hold = team.box.hold()
    wait_for(lambda: "started!" in (team.box.folder / "worker.log").read_text())
    desk = team.desk.start("python", "-m", "flows.pipeline", "--card-pool", POOL, "--stage", "train@lora", log="log")
    try:
        wait_for(team.box.has_run)
        kill_all(server)
        hold.unlink()
        wait_for(lambda: list(team.remote.glob("mgm-lora/stages/*/*.json")))  # the box is done, and nobody can be told
        start_server()
        desk.wait(180)

        later = team.desk.pipeline(POOL, "--stage", "train@lora")
        assert later.returncode == 0, later.stdout + later.stderr
        assert team.box.has_run() == ["lora"]
        assert (team.desk.clone / "lora.txt").read_text() == "lora 1 "
    finally:
        for process in (desk, worker):
            process.terminate()
            process.wait(60)
