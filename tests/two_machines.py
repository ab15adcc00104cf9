"""Two machines on one: two clones of a small project that share a bare git repository and a DVC remote, and nothing else.

Each has a home, a clone and caches of its own. Its processes run in a mount namespace of their own in which the other's
folder is empty, where this machine lets us make one. The desk plans and has no card; the box has it.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from prefect.settings import get_current_settings

REPOSITORY = Path(__file__).parents[1]
_CAN_HIDE = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0

_PIPELINE = """
stages:
  prepare:
    cmd: python stage.py prepare prepared.txt
    deps: [source.txt, stage.py]
    outs: [prepared.txt]
    metrics: [prepare.json: {cache: false}]
  train:
    matrix:
      arm: [lora, full]
    cmd: python stage.py ${item.arm} ${item.arm}.txt
    deps: [prepared.txt, prepare.json, stage.py]
    params: ["${item.arm}"]
    outs: ["${item.arm}.txt"]
    metrics: ["${item.arm}.json": {cache: false}]
    meta: {card: true}
  report:
    cmd: python stage.py report report.txt
    deps: [lora.txt, full.txt, lora.json, full.json]
    outs: [report.txt]
    metrics: [report.json: {cache: false}]
"""
_STAGE = """
import json, os, pathlib, signal, sys, time
from mgm_lora.stages.process import die_with_parent
die_with_parent()
name, out = sys.argv[1:]
print(f'hello from {name}')
home = pathlib.Path.home()
with (home / 'has-run').open('a') as file:
    file.write(name + '\\n')
(home / f'{name}.pid').write_text(str(os.getpid()))
while (home / 'hold').exists():
    time.sleep(0.05)
if (home / 'loses').exists():  # the process that the DVC remote lives in
    os.kill(int((home / 'loses').read_text()), signal.SIGKILL)
    (home / 'loses').unlink()
value = pathlib.Path('params.yaml').read_text().split(f'{name}:')[-1].split()[0]
pathlib.Path(out).write_text(f'{name} {value} ' + 'x' * int((home / 'size').read_text() if (home / 'size').exists() else 0))
pathlib.Path(f'{name}.json').write_text(json.dumps({'score': value}))
"""
_IGNORED = "/prepared.txt\n/lora.txt\n/full.txt\n/report.txt\n/source.txt\n/build/\n"


@dataclass(frozen=True)
class Machine:
    """A clone, a home, and what runs there."""

    folder: Path
    hides: Path
    """The other machine's folder."""
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def clone(self) -> Path:
        return self.folder / "clone"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def moved_to(self, folder: Path) -> "Machine":
        """Another machine of the same kind, with whatever lies there."""
        return replace(self, folder=folder)

    def run(self, *command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """As a user would type it in the clone."""
        return subprocess.run(
            self._alone(command),
            cwd=self.clone,
            env=self._environment(variables),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def start(self, *command: str, log: str, **variables: str) -> "subprocess.Popen[bytes]":
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(
                self._alone(command), cwd=self.clone, env=self._environment(variables), stdout=file, stderr=file
            )

    def pipeline(self, pool: str, *options: str) -> "subprocess.CompletedProcess[str]":
        return self.run("python", "-m", "flows.pipeline", "--card-pool", pool, *options)

    def start_worker(self, pool: str) -> "subprocess.Popen[bytes]":
        return self.start("python", "-m", "flows.card_worker", "--pool", pool, log="worker.log")

    def commit(self, message: str) -> None:
        for command in (["add", "--all"], ["commit", "--quiet", "-m", message]):
            assert self.run("git", *command).returncode == 0

    def has_run(self) -> list[str]:
        """The stages that ran here, in order."""
        path = self.home / "has-run"
        return path.read_text().split() if path.exists() else []

    def hold(self) -> Path:
        """Stages that run here go on when the file is removed."""
        path = self.home / "hold"
        path.touch()
        return path

    def _alone(self, command: tuple[str, ...]) -> list[str]:
        program = [sys.executable, *command[1:]] if command[0] == "python" else list(command)
        if not _CAN_HIDE:
            return program
        hide = 'mount -t tmpfs none "$1" && shift && exec "$@"'
        return ["unshare", "-m", "sh", "-c", hide, "sh", str(self.hides), *program]

    def _environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        kept = {name: os.environ[name] for name in ("LANG", "TMPDIR", "MGM_LORA_LOCKS") if name in os.environ}
        own = {
            "PATH": path,
            "HOME": str(self.home),
            "PREFECT_HOME": str(self.home / ".prefect"),
            "PREFECT_API_URL": str(get_current_settings().api.url),
            "DVC_SITE_CACHE_DIR": str(self.home / ".dvc-site"),
            "PYTHONPATH": str(REPOSITORY),
            "DO_NOT_TRACK": "1",
            "DVC_NO_ANALYTICS": "1",
            "GIT_AUTHOR_NAME": "someone",
            "GIT_AUTHOR_EMAIL": "someone@example.invalid",
            "GIT_COMMITTER_NAME": "someone",
            "GIT_COMMITTER_EMAIL": "someone@example.invalid",
        }
        return {**kept, **own, **self.variables, **variables}


@dataclass(frozen=True)
class Team:
    """A desk and a box, each a machine, and what they share."""

    desk: Machine
    box: Machine
    origin: Path
    remote: Path

    def publish(self, message: str) -> str:
        """The commit of all that lies at the desk, pushed."""
        self.desk.commit(message)
        assert self.desk.run("git", "push", "--quiet").returncode == 0
        return self.desk.run("git", "rev-parse", "HEAD").stdout.strip()

    def copied_to(self, folder: Path) -> "Team":
        """Both machines anew, with the same origin and remote."""
        for machine in (self.desk, self.box):
            shutil.copytree(machine.folder, folder / machine.folder.name, symlinks=True)
        desk, box = folder / "desk", folder / "box"
        return replace(
            self, desk=replace(self.desk, folder=desk, hides=box), box=replace(self.box, folder=box, hides=desk)
        )


def make_team(
    folder: Path,
    *,
    url: str | None = None,
    endpoint: str | None = None,
    fill: Callable[[Path], object] | None = None,
    **variables: str,
) -> Team:
    """Both cloned; nothing has been run.

    Args:
        folder: where all of it comes to lie.
        url: the DVC remote's, instead of a folder's.
        endpoint: of S3.
        fill: makes the project at the desk, with git and DVC, instead of the small one.
        variables: both machines'.
    """
    desk = Machine(folder / "desk", hides=folder / "box", variables=variables)
    box = Machine(folder / "box", hides=folder / "desk", variables=variables)
    origin, remote = folder / "origin.git", folder / "remote"
    for each in (desk.home, box.home, box.clone, remote):
        each.mkdir(parents=True)
    _run("git", "init", "--quiet", "--bare", str(origin))
    (fill or _fill)(desk.clone)
    _run("dvc", "remote", "add", "--quiet", "--default", "team", url or str(remote), cwd=desk.clone)
    if endpoint:
        _run("dvc", "remote", "modify", "--quiet", "team", "endpointurl", endpoint, cwd=desk.clone)
    desk.commit("Begin")
    _run("git", "remote", "add", "origin", str(origin), cwd=desk.clone)
    _run("git", "push", "--quiet", "-u", "origin", "HEAD", cwd=desk.clone)
    _run("git", "clone", "--quiet", str(origin), str(box.clone))
    return Team(desk, box, origin, remote)


def _fill(clone: Path) -> None:
    clone.mkdir()
    (clone / "dvc.yaml").write_text(_PIPELINE)
    (clone / "stage.py").write_text(_STAGE)
    (clone / "source.txt").write_text("source")
    (clone / "params.yaml").write_text("lora: 1\nfull: 1\n")
    (clone / ".gitignore").write_text(_IGNORED)
    for command in (["git", "init"], ["dvc", "init"], ["dvc", "add", "source.txt"]):
        _run(*command, "--quiet", cwd=clone)


def _run(*command: str, cwd: Path | None = None) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def wait_for(happened: Callable[[], object], *, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it didn't happen in time"
        time.sleep(0.05)


def kill_all(worker: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to a process and all that it has started, at once, as when the power goes."""
    everything = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    for process in everything:
        process.send_signal(signal.SIGSTOP)
    for process in everything:
        process.kill()
    worker.wait(30)
