"""Rounds of killing: a stage of a small project is run anew and killed at a random moment, the pipeline started again, and all looked at.

One round knows one stage. After each kill nothing that was started may live, no card may be held, and whatever lies under an artifact's own
name must be whole; after `dvc repro` every artifact must be, byte by byte, what an undisturbed run makes. Reports, metrics and registered
versions are left out of that, since they hold durations and MLflow's ids.
"""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
from ruamel.yaml import YAML

from mgm_lora.artifacts import digest_folder
from mgm_lora.errors import BusyCardError
from mgm_lora.training.card_lock import hold_card, lock_folder

from .small_project import environment

VICTIMS: tuple["Victim", ...] = ("dvc", "stage", "group")
Victim = Literal["dvc", "stage", "group"]
_GRACE_SECONDS = 30.0
_MOST_KILLS = 3


@dataclass
class Round:
    """What happened to one stage."""

    stage: str
    kills: list[tuple[Victim, float]] = field(default_factory=list)
    """Who was killed, and after how many seconds."""
    outlived: int = 0
    """How often the stage had ended before it was to be killed; it is run anew until it was killed once."""
    resumed: int = 0
    """Trainings that went on from a checkpoint."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: what it made, and how long each stage took, with `dvc` around it."""

    digests: dict[str, str]
    seconds: dict[str, float]


def measure(project: Path) -> Reference:
    """Runs every stage anew, undisturbed."""
    process = subprocess.Popen(
        ["dvc", "repro", "--force", "--no-run-cache"], cwd=project, env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    begun: list[tuple[str, float]] = []
    for line in process.stdout:
        if found := re.match(r"Running stage '(.+)'", line):
            begun.append((found[1], time.monotonic()))
    assert process.wait() == 0
    process.stdout.close()
    ends = [*(at for _, at in begun[1:]), time.monotonic()]
    return Reference(
        digests=artifacts(project), seconds={name: end - at for (name, at), end in zip(begun, ends, strict=True)}
    )


def run_round(project: Path, stage: str, *, reference: Reference, rng: random.Random) -> Round:
    """Kills the stage once to three times, and ends with an undisturbed `dvc repro`; asserts all that the docstring above says."""
    result = Round(stage)
    started = time.monotonic()
    forget(project, stage)
    num_kills = rng.randint(1, _MOST_KILLS)
    while len(result.kills) < num_kills and (not result.outlived or not result.kills):
        victim = rng.choice(VICTIMS)
        latest = (reference.seconds[stage] + 1.5) * 0.95 * 0.8**result.outlived  # a quieter machine is quicker too
        moment = rng.uniform(0.0, latest)
        if kill_during(stage, project=project, victim=victim, seconds=moment):
            result.kills.append((victim, round(moment, 2)))
        else:
            result.outlived += 1
        forget(project, stage)
        assert_nothing_held()
        assert_whole(project, reference=reference)
    done = subprocess.run(
        ["dvc", "repro", "--no-run-cache"], cwd=project, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert f"Running stage '{stage}'" in done.stdout
    result.resumed = done.stderr.count("going on from build/checkpoints")
    assert artifacts(project) == reference.digests
    assert not list((project / "build").glob("checkpoints/*/checkpoint-*")), (
        "checkpoints are left of a finished training"
    )
    result.seconds = time.monotonic() - started
    return result


def forget(project: Path, stage: str) -> None:
    """In place: DVC no longer knows that the stage has run, and would neither skip it nor take what it made from the cache."""
    yaml = YAML()
    lock = yaml.load((project / "dvc.lock").read_text(encoding="utf-8"))
    lock["stages"].pop(stage, None)  # a killed one is not there, unless dvc was killed after it had written it down
    with (project / "dvc.lock").open("w", encoding="utf-8") as file:
        yaml.dump(lock, file)


def kill_during(stage: str, *, project: Path, victim: Victim, seconds: float) -> bool:
    """SIGKILL to dvc, to the stage, or to dvc's whole process group, after so long; False where the stage had ended before."""
    process = subprocess.Popen(
        ["dvc", "repro", "--no-run-cache", "-s", stage],
        cwd=project,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return False
    below = psutil.Process(process.pid).children(recursive=True)
    stages = [child for child in below if _is_stage(child)]
    if victim == "stage" and stages:
        with suppress(psutil.NoSuchProcess):
            stages[-1].kill()
    elif victim == "group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait(_GRACE_SECONDS)
    _wait_until(lambda: not any(_is_alive(child) for child in below), f"left running: {below}")
    return True


def artifacts(project: Path) -> dict[str, str]:
    """Digests of all artifacts, by folder."""
    manifests = sorted((project / "artifacts").rglob("manifest.json"))
    folders = [path.parent for path in manifests if path.parent.name != "registered"]
    return {folder.relative_to(project).as_posix(): digest_folder(folder) for folder in folders}


def assert_whole(project: Path, *, reference: Reference) -> None:
    """Whatever lies under an artifact's own name is what it should be in the end."""
    found = artifacts(project)
    assert found.items() <= reference.digests.items(), f"half an artifact among {sorted(found)}"


def assert_nothing_held() -> None:
    """Every card can be had. A killed process is a zombie to others while its last threads end, and lets go with the last of them."""
    for path in lock_folder().glob("*.lock"):
        _wait_until(lambda name=path.stem: _can_be_had(name), f"{path.stem} is still held")  # type: ignore[misc]


def _can_be_had(card: str) -> bool:
    try:
        with hold_card(card, arm="test", when_taken="fail"):
            return True
    except BusyCardError:
        return False


def _is_stage(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "mgm_lora" in process.cmdline()
    return False


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_until(happened: Callable[[], bool], told: str) -> None:
    end = time.monotonic() + _GRACE_SECONDS
    while not happened():
        assert time.monotonic() < end, told
        time.sleep(0.05)
