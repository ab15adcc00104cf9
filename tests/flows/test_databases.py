"""The services' record on PostgreSQL, by one setting."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from flows.databases import NAMES, VARIABLE, find_databases, make_databases
from mgm_lora.errors import ServiceError

from ..postgresql import needs_postgresql, postgresql

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql() as address:
        yield address


def test_without_the_setting_they_are_files_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    found = find_databases({})

    assert found.prefect == f"sqlite+aiosqlite:///{tmp_path}/prefect.db"
    assert found.mlflow == "sqlite:///mlflow.db"


@pytest.mark.parametrize(
    "wrong", ["mysql://u:hush@h", "postgresql://u:hush@h/some_database", "hush", "/hush/file.db"], ids=range(4)
)
def test_setting_that_is_no_postgresql_server_is_refused_without_showing_it(wrong: str) -> None:
    with pytest.raises(ServiceError, match=r"postgresql://USER:PASSWORD@HOST:5432") as error:
        find_databases({VARIABLE: wrong})
    assert "hush" not in str(error.value)


def test_server_that_is_away_is_one_error_without_the_password() -> None:
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:9 that MGM_LORA_DATABASE names can't be used") as error:
        make_databases({VARIABLE: "postgresql://team:hush@127.0.0.1:9"})
    assert "hush" not in str(error.value)


@needs_postgresql
def test_databases_are_made_once_and_wrong_passwords_are_told(server: str) -> None:
    make_databases({VARIABLE: server})
    make_databases({VARIABLE: server})

    with psycopg.connect(f"{server}/postgres") as connection:
        names = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
    assert set(NAMES) <= names
    password = server.split(":")[2].partition("@")[0]
    with pytest.raises(ServiceError, match="password authentication failed"):
        make_databases({VARIABLE: server.replace(password, "hush")})


@needs_postgresql
def test_services_keep_their_record_there_and_nowhere_show_the_password(server: str, tmp_path: Path) -> None:
    project = make_project(tmp_path / "team")
    ports = [str(port) for port in free_ports()]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW"))}
    environment = {
        **kept,
        VARIABLE: server,
        "PREFECT_HOME": str(tmp_path / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{ports[0]}/api",
    }

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, timeout=900, check=False
        )

    try:
        up = run("flows.services", "up", "--prefect-port", ports[0], "--mlflow-port", ports[1])
        assert up.returncode == 0, up.stderr
        ran = run("prefect", "deployment", "run", "validation/data", "--watch")
        assert ran.returncode == 0, ran.stdout
        make = "import mlflow, sys; mlflow.MlflowClient(sys.argv[1]).create_experiment('ours')"
        subprocess.run([sys.executable, "-c", make, f"http://127.0.0.1:{ports[1]}"], check=True, timeout=300)
        shown = [up.stdout, up.stderr, *(path.read_text() for path in (project / "build" / "services").iterdir())]
        started = json.loads((project / "build" / "services" / "started.json").read_text())
        for entry in started.values():
            process = psutil.Process(entry["pid"])
            shown += [" ".join(each.cmdline()) for each in (process, *process.children(recursive=True))]
    finally:
        down = run("flows.services", "down")

    assert down.returncode == 0, down.stderr
    with psycopg.connect(f"{server}/{NAMES[0]}") as prefect:
        assert prefect.execute("SELECT count(*) FROM flow_run WHERE state_type = 'COMPLETED'").fetchone() == (1,)
    with psycopg.connect(f"{server}/{NAMES[1]}") as mlflow:
        assert mlflow.execute("SELECT count(*) FROM experiments WHERE name = 'ours'").fetchone() == (1,)
    assert not list(project.glob("*.db"))
    password = server.split(":")[2].partition("@")[0]
    assert not [text for text in shown if password in text]


def make_project(folder: Path) -> Path:
    """Our flows over a pipeline of one quick stage."""
    for name in ("flows", "tasks", "mgm_lora"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "prefect.yaml", folder)
    (folder / "dvc.yaml").write_text("stages:\n  validate:\n    cmd: echo fine > checked\n    outs: [checked]\n")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    return folder


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]
