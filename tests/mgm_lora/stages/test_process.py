"""Real processes under a real `dvc`, ended by signals: what must end ends, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from dvc.repo import Repo

from mgm_lora.stages import process

REPOSITORY = Path(__file__).parents[3]
ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
STAGE = """
import os, pathlib, time
from mgm_lora.stages.process import die_with_parent
pathlib.Path('begun').touch()
die_with_parent()
pathlib.Path('pid.new').write_text(str(os.getpid()))
os.rename('pid.new', 'pid')
time.sleep(300)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with Repo.init(no_scm=True) as repo, repo.config.edit() as config:
        config["core"]["analytics"] = False
        config["core"]["check_update"] = False
    (tmp_path / "wait.py").write_text(STAGE)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("exec python wait.py", id="nothing-between"),
        pytest.param("true && python wait.py && true", id="shell-between"),
        pytest.param("timeout 300 python wait.py", id="launcher-with-own-group"),
        pytest.param("true; sh -c 'setsid --wait python wait.py; true'", id="launchers-with-own-session"),
    ],
)
def test_stage_ends_with_dvc_whatever_stands_between(project: Path, command: str) -> None:
    with running_dvc(project, command) as dvc:
        stage = stage_of(project)
        time.sleep(0.3)
        assert is_alive(stage)

        dvc.kill()

        wait_for(lambda: not is_alive(stage))


def test_stage_that_starts_after_dvc_was_killed_ends_at_once(project: Path) -> None:
    command = "touch waiting; while [ ! -e go ]; do sleep 0.05; done; python wait.py; touch after"
    with running_dvc(project, command) as dvc:
        wait_for(lambda: (project / "waiting").exists())
        dvc.kill()
        dvc.wait()

        (project / "go").touch()
        wait_for(lambda: (project / "after").exists())

    assert (project / "begun").exists()
    assert not (project / "pid").exists()


@pytest.mark.parametrize("number", ENDINGS)
def test_stage_ends_with_dvc_however_it_is_ended(project: Path, number: signal.Signals) -> None:
    """SIGINT goes to the group, as a terminal sends it: by itself dvc leaves that to the command that it runs."""
    with running_dvc(project, "true && python wait.py && true", start_new_session=True) as dvc:
        below = [stage_of(project), *psutil.Process(dvc.pid).children(recursive=True)]

        os.killpg(dvc.pid, number) if number == signal.SIGINT else dvc.send_signal(number)

        wait_for(lambda: not any(is_alive(process) for process in below))
        assert dvc.wait(20) != 0


@pytest.mark.parametrize("number", ENDINGS)
def test_stage_ends_with_a_launcher_however_that_is_ended(project: Path, number: signal.Signals) -> None:
    """Not a shell: by itself that puts SIGINT off until its command has ended."""
    with running_dvc(project, "true; timeout 300 python wait.py") as dvc:
        stage = stage_of(project)
        launcher = stage.parent()
        assert launcher is not None

        launcher.send_signal(number)

        wait_for(lambda: not is_alive(stage))
        dvc.wait(20)


def test_stage_started_by_hand_outlives_its_shell(project: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    shell = subprocess.Popen(["sh", "-c", f"{sys.executable} wait.py; true"], env=environment)
    stage = stage_of(project)
    try:
        shell.kill()
        shell.wait()
        time.sleep(0.3)
        assert is_alive(stage)
    finally:
        stage.kill()


def test_tied_command_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; from mgm_lora.stages.process import tied_to_this_process as tied\n"
         "child = subprocess.Popen(tied(['sleep', '300'])); print(child.pid, flush=True); child.wait()"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert starter.stdout is not None
    child = psutil.Process(int(starter.stdout.readline()))
    wait_for(lambda: child.name() == "sleep")

    starter.kill()
    starter.wait()
    starter.stdout.close()

    wait_for(lambda: not is_alive(child))


def test_tied_command_is_not_begun_where_its_starter_has_ended(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()

    late = subprocess.run(
        [sys.executable, "-I", str(process.__file__), str(ended.pid), "touch", str(tmp_path / "begun")]
    )

    assert late.returncode == -9
    assert not (tmp_path / "begun").exists()


def test_tied_command_gives_its_exit_code(tmp_path: Path) -> None:
    assert subprocess.run(process.tied_to_this_process(["sh", "-c", "exit 7"])).returncode == 7


@contextmanager
def running_dvc(project: Path, command: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`dvc repro` of a stage with this command; ends what is left of it."""
    (project / "dvc.yaml").write_text(
        f'stages:\n  wait:\n    cmd: "{command}"\n    deps: [wait.py]\n    outs: [never]\n'
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": path, "SHELL": "/bin/sh"}
    dvc = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"], env=environment, stdout=subprocess.DEVNULL, **options
    )
    try:
        yield dvc
    finally:
        for left in [*psutil.Process(dvc.pid).children(recursive=True)] if dvc.poll() is None else []:
            left.kill()
        dvc.kill()
        dvc.wait()


def stage_of(project: Path) -> psutil.Process:
    wait_for(lambda: (project / "pid").exists())
    return psutil.Process(int((project / "pid").read_text()))


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(happened: Callable[[], bool], *, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it didn't happen in time"
        time.sleep(0.02)
