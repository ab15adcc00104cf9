"""The team's services, really started: two servers, a worker, and a flow run through them."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).parents[2]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our flows over a pipeline of one quick stage."""
    folder = tmp_path_factory.mktemp("team")
    for name in ("flows", "tasks", "mgm_lora"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "prefect.yaml", folder)
    (folder / "dvc.yaml").write_text("stages:\n  validate:\n    cmd: echo fine > checked\n    outs: [checked]\n")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@pytest.fixture(scope="module")
def run(project: Path, ports: tuple[int, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a module in the project, as a user's shell would: nothing of this session's servers in its environment."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW"))}
    environment = inherited | {
        "PREFECT_HOME": str(tmp_path_factory.mktemp("home")),
        "PREFECT_API_URL": f"http://127.0.0.1:{ports[0]}/api",
        "DO_NOT_TRACK": "1",
    }

    def start(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    yield start
    start("flows.services", "down")


@pytest.fixture(scope="module")
def up(run: Run, ports: tuple[int, int]) -> Callable[[], "subprocess.CompletedProcess[str]"]:
    where = ("--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1]))
    return lambda: run("flows.services", "up", *where)


def started(project: Path) -> dict[str, int]:
    entries = json.loads((project / "build" / "services" / "started.json").read_text(encoding="utf-8"))
    return {name: entry["pid"] for name, entry in entries.items()}


def test_up_runs_flows_starts_what_has_ended_and_down_leaves_nothing(
    project: Path, run: Run, up: Callable[[], "subprocess.CompletedProcess[str]"]
) -> None:
    first = up()
    assert first.returncode == 0, first.stderr
    assert "started: prefect, mlflow, worker" in first.stderr
    ids = started(project)
    below = [each for pid in ids.values() for each in psutil.Process(pid).children(recursive=True)]

    listed = run("prefect", "deployment", "ls").stdout
    for name in (
        "pipeline/nightly",
        "validation/data",
        "training/by-hand",
        "evaluation/by-hand",
        "registration/by-hand",
    ):
        assert name in listed
    watched = run("prefect", "deployment", "run", "validation/data", "--watch")
    assert watched.returncode == 0, watched.stdout
    assert (project / "checked").read_text() == "fine\n"

    again = up()
    assert again.returncode == 0, again.stderr
    assert "nothing, all of it runs already" in again.stderr
    assert started(project) == ids
    assert run("prefect", "automation", "ls").stdout.count("Crash flow runs") == 1

    worker = psutil.Process(ids["worker"])
    worker.kill()
    worker.wait(30)
    told = run("flows.services", "status")
    assert told.returncode == 1
    assert "ended" in told.stdout
    assert up().returncode == 0
    assert {name: pid for name, pid in started(project).items() if pid != ids[name]}.keys() == {"worker"}

    ours = [psutil.Process(pid) for pid in started(project).values()]
    assert run("flows.services", "down").returncode == 0
    assert not [each for each in (*ours, *below) if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert run("flows.services", "status").stdout.strip() == "nothing was started here"


def test_port_of_another_program_is_one_error(
    run: Run, ports: tuple[int, int], up: Callable[[], "subprocess.CompletedProcess[str]"]
) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port was just let go of
        other.bind(("127.0.0.1", ports[0]))
        other.listen()
        refused = up()
    assert refused.returncode == 4
    assert "another program does" in refused.stderr
    assert "--prefect-port" in refused.stderr


def test_server_that_does_not_start_is_told_with_its_last_lines(
    run: Run, project: Path, ports: tuple[int, int]
) -> None:
    (project / "prefect.db").unlink(missing_ok=True)
    (project / "prefect.db").mkdir()  # no database can be there
    try:
        failed = run("flows.services", "up", "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1]))
    finally:
        (project / "prefect.db").rmdir()
    assert failed.returncode == 4
    assert "prefect has ended. The last lines of build/services/prefect.log" in failed.stderr
