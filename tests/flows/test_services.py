"""The team's services, really started: two servers, a worker, and flows run through them."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.request import urlopen

import psutil
import pytest

from ..small_disk import needs_mount, small_disk
from ..small_project import write_params

REPOSITORY = Path(__file__).parents[2]
T = TypeVar("T")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our flows over a pipeline of one quick stage, which waits while there is a file `hold`; committed."""
    folder = tmp_path_factory.mktemp("team")
    for name in ("flows", "tasks", "mgm_lora"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("prefect.yaml", ".gitignore"):
        shutil.copy(REPOSITORY / name, folder)
    (folder / "dvc.yaml").write_text(
        "stages:\n  validate:\n    cmd: echo ran >> ran; while [ -e hold ]; do sleep 0.1; done; echo fine > checked\n"
        "    deps: [source]\n    outs: [checked]\n"
    )
    (folder / "source").write_text("first")
    write_params(folder)
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=folder, check=True)
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    who = ("-c", "user.name=team", "-c", "user.email=team@localhost")
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    subprocess.run(["git", *who, "commit", "--quiet", "--message", "as it is"], cwd=folder, check=True)


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
    start("mgm_lora", "down")


@pytest.fixture(scope="module")
def up(run: Run, ports: tuple[int, int]) -> Callable[[], "subprocess.CompletedProcess[str]"]:
    where = ("--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1]))
    return lambda: run("mgm_lora", "up", *where)


def started(project: Path) -> dict[str, int]:
    entries = json.loads((project / "build" / "services" / "started.json").read_text(encoding="utf-8"))
    return {name: entry["pid"] for name, entry in entries.items()}


def test_up_runs_flows_starts_what_has_ended_and_down_leaves_nothing(
    project: Path, run: Run, ports: tuple[int, int], up: Callable[[], "subprocess.CompletedProcess[str]"]
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
        "promotion/by-hand",
        "sweep/by-hand",
    ):
        assert name in listed
    watched = run("prefect", "deployment", "run", "validation/data", "--watch")
    assert watched.returncode == 0, watched.stdout
    assert (project / "checked").read_text() == "fine\n"

    well = run("mgm_lora", "health")
    assert well.returncode == 0, well.stdout
    assert "WRONG" not in well.stdout

    # of the same schedule, twice: the stage is run once
    (project / "source").write_text("second")
    (project / "hold").touch()
    before = (project / "ran").read_text().count("ran")
    runs = [start_run(run, "validation/data") for _ in range(2)]
    wait_for(lambda: (project / "ran").read_text().count("ran") > before)
    (project / "hold").unlink()
    ended = [wait_for(lambda each=each: final_state(ports, each)) for each in runs]
    assert "Completed" in ended
    assert set(ended) <= {"Completed", "Cancelled"}
    assert (project / "ran").read_text().count("ran") == before + 1

    # deployments of an older commit
    with (project / "flows" / "parts.py").open("a") as file:
        file.write("# newer\n")
    commit(project)
    older = run("mgm_lora", "health")
    assert older.returncode == 1
    assert "WRONG deployments: of another commit than the files here" in older.stdout

    again = up()
    assert again.returncode == 0, again.stderr
    newer = run("mgm_lora", "health")
    assert newer.returncode == 0, newer.stdout
    assert "nothing, all of it runs already" in again.stderr
    assert started(project) == ids
    assert run("prefect", "automation", "ls").stdout.count("Crash flow runs") == 1

    worker = psutil.Process(ids["worker"])
    worker.kill()
    worker.wait(30)
    told = run("mgm_lora", "services")
    assert told.returncode == 1
    assert "ended" in told.stdout
    unwell = run("mgm_lora", "health")
    assert unwell.returncode == 1
    assert "WRONG worker: ended" in unwell.stdout
    assert up().returncode == 0
    assert {name: pid for name, pid in started(project).items() if pid != ids[name]}.keys() == {"worker"}

    ours = [psutil.Process(pid) for pid in started(project).values()]
    assert run("mgm_lora", "down").returncode == 0
    assert not [each for each in (*ours, *below) if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert run("mgm_lora", "services").stdout.strip() == "nothing was started here"


def start_run(run: Run, deployment: str) -> str:
    """Its id."""
    done = run("prefect", "deployment", "run", deployment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"UUID:? *([0-9a-f-]{36})", done.stdout)
    assert found, done.stdout
    return found.group(1)


def final_state(ports: tuple[int, int], flow_run: str) -> str:
    """Empty while it goes on."""
    with urlopen(f"http://127.0.0.1:{ports[0]}/api/flow_runs/{flow_run}", timeout=60) as reply:
        state = json.loads(reply.read())["state"]
    return str(state["name"]) if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else ""


def wait_for(happened: Callable[[], T], *, seconds: float = 240.0) -> T:
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, "it didn't happen in time"
        time.sleep(0.1)
    return found


@needs_mount
def test_full_disk_is_one_error(tmp_path: Path, run: Run, ports: tuple[int, int]) -> None:
    with small_disk(tmp_path / "disk", kib=64) as disk, disk.full():
        failed = subprocess.run(
            [sys.executable, "-m", "flows.services", "up", "--prefect-port", str(ports[0])],
            cwd=disk.folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert failed.returncode == 4
    assert "can't write in 'build/services'" in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


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
