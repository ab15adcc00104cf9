"""Ranks start as planned, their failure comes through, and they end with whoever started them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mgm_lora.errors import SettingsError, TrainingError
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.training.launch import (
    is_first_rank,
    is_launched_rank,
    launch_command,
    of_first_rank,
    run_under_deepspeed,
)

ROOT = Path(__file__).parents[3]
Program = Callable[[str], list[str]]


def knobs(num_cards: int) -> StepKnobs:
    return StepKnobs(micro_batch_size=1, engine="deepspeed", num_cards=num_cards)


@pytest.fixture(autouse=True)
def _import_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """A program for the ranks; `rank` and `folder` are set in it."""

    def write(body: str) -> list[str]:
        path = tmp_path / "program.py"
        head = f"import os, pathlib, sys, time\nrank = os.environ['RANK']\nfolder = pathlib.Path({str(tmp_path)!r})\n"
        path.write_text(head + body, encoding="utf-8")
        return [str(path)]

    return write


def test_every_rank_of_a_hostfile_with_this_machine_gets_the_arguments(program: Program, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# ours\nlocalhost slots=3\n", encoding="utf-8")
    body = "(folder / f'rank-{rank}').write_text(' '.join([os.environ['WORLD_SIZE'], *sys.argv[1:]]))"
    run_under_deepspeed(["--arm", "lora"], knobs=knobs(2), hostfile=tmp_path / "hosts", program=program(body))
    assert [path.read_text() for path in sorted(tmp_path.glob("rank-*"))] == ["2 --arm lora"] * 2


def test_ranks_wait_for_the_first_and_know_what_it_found(program: Program, tmp_path: Path) -> None:
    body = """
import torch
from mgm_lora.training.launch import is_first_rank, is_launched_rank, of_first_rank
torch.distributed.init_process_group("gloo")
found = of_first_rank(lambda: {"by": rank})
(folder / f"rank-{rank}").write_text(f"{found['by']} {is_first_rank()} {is_launched_rank()}")
torch.distributed.destroy_process_group()
"""
    run_under_deepspeed([], knobs=knobs(2), program=program(body))
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == ["0 True True", "0 False True"]


def test_process_that_nobody_launched_is_the_first() -> None:
    assert is_first_rank()
    assert not is_launched_rank()
    assert of_first_rank(lambda: 5) == 5


def test_failing_rank_ends_the_others_and_its_code_and_words_come_through(
    program: Program, capfd: pytest.CaptureFixture[str]
) -> None:
    body = "if rank == '0': time.sleep(120)\nprint('mgm-lora: rank one is unwell', file=sys.stderr)\nsys.exit(3)"
    started = time.monotonic()
    with pytest.raises(TrainingError, match=r"exit code 3; its last words:\nmgm-lora: rank one is unwell") as raised:
        run_under_deepspeed([], knobs=knobs(2), program=program(body))
    assert raised.value.exit_code == 3
    assert time.monotonic() - started < 60
    assert "rank one is unwell" in capfd.readouterr().err


def test_killed_rank_is_no_success(program: Program) -> None:
    with pytest.raises(TrainingError, match="exit code 137"):
        run_under_deepspeed([], knobs=knobs(1), program=program("os.kill(os.getpid(), 9)"))


def test_ranks_of_a_stage_started_by_hand_end_with_it(program: Program, tmp_path: Path, pids: list[int]) -> None:
    body = """
from mgm_lora.stages.process import die_with_parent
die_with_parent()
(folder / f"pid-{rank}").write_text(str(os.getpid()))
time.sleep(120)
"""
    stage = (
        "from mgm_lora.memory.knobs import StepKnobs; from mgm_lora.training.launch import run_under_deepspeed;"
        "run_under_deepspeed([], knobs=StepKnobs(micro_batch_size=1, engine='deepspeed', num_cards=2),"
        f" program={program(body)!r})"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    parent = subprocess.Popen([sys.executable, "-c", stage], env=environment)
    pids.append(parent.pid)
    _wait_until(lambda: all(_is_written(tmp_path / f"pid-{rank}") for rank in (0, 1)), seconds=90)
    ranks = [int((tmp_path / f"pid-{rank}").read_text()) for rank in (0, 1)]
    pids += ranks
    assert all(psutil.pid_exists(rank) for rank in ranks)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _wait_until(lambda: not any(_is_running(rank) for rank in ranks), seconds=20)


@pytest.mark.parametrize("victim", ["dvc", "stage", "launcher"])
def test_two_ranks_end_with_whoever_started_them_however_that_is_ended(
    victim: str, program: Program, tmp_path: Path, pids: list[int]
) -> None:
    """Three runs at a time, one for each signal; SIGINT goes to dvc's group, as a terminal sends it."""
    body = """
from mgm_lora.stages.process import die_with_parent
die_with_parent()
pathlib.Path(f'pid-{rank}').write_text(str(os.getpid()))
time.sleep(300)
"""
    ranks = program(body)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
    runs = {number: _start_dvc(tmp_path / number.name, ranks=ranks) for number in numbers}
    pids += [run.pid for run in runs.values()]
    below: list[psutil.Process] = []
    for number, dvc in runs.items():
        files = [tmp_path / number.name / f"pid-{rank}" for rank in (0, 1)]
        _wait_until(lambda files=files: all(_is_written(file) for file in files), seconds=120)  # type: ignore[misc]
        mine = psutil.Process(dvc.pid).children(recursive=True)
        assert {int(file.read_text()) for file in files} <= {process.pid for process in mine}
        below += mine
        pids += [process.pid for process in mine]
    for number, dvc in runs.items():
        if victim == "dvc":
            os.killpg(dvc.pid, number) if number == signal.SIGINT else dvc.send_signal(number)
            continue
        launcher = psutil.Process(int((tmp_path / number.name / "pid-0").read_text())).parent()
        stage = launcher.parent() if launcher else None
        assert launcher is not None
        assert stage is not None
        (stage if victim == "stage" else launcher).send_signal(number)
    _wait_until(lambda: not any(_is_running(process.pid) for process in below), seconds=30)
    assert all(run.wait(30) != 0 for run in runs.values())


def _start_dvc(folder: Path, *, ranks: list[str]) -> "subprocess.Popen[bytes]":
    """`dvc repro` of a stage that starts two ranks under DeepSpeed's launcher."""
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    (folder / "stage.py").write_text(
        "from mgm_lora.stages.process import die_with_parent\ndie_with_parent()\n"
        "from mgm_lora.memory.knobs import StepKnobs\nfrom mgm_lora.training.launch import run_under_deepspeed\n"
        f"run_under_deepspeed([], knobs=StepKnobs(micro_batch_size=1, engine='deepspeed', num_cards=2), program={ranks!r})\n"
    )
    (folder / "dvc.yaml").write_text(
        f"stages:\n  train:\n    cmd: true && {sys.executable} stage.py && true\n    deps: [stage.py]\n    outs: [never]\n"
    )
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=folder, start_new_session=True, **quiet)


def test_fewer_cards_than_planned_is_one_error_before_anything_starts(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hosts").write_text("one slots=1\ntwo slots=2\n", encoding="utf-8")
    write = program("(folder / 'started').touch()")
    with pytest.raises(SettingsError, match=r"for 4 cards, found 3 on '.*hosts'"):
        run_under_deepspeed([], knobs=knobs(4), hostfile=tmp_path / "hosts", program=write)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with pytest.raises(SettingsError, match="for 2 cards, found 1 on this machine"):
        run_under_deepspeed([], knobs=knobs(2), program=write)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("content", ["one", "one slots=two", "one slots=1\none slots=1", "one slots=1 2"])
def test_broken_hostfile_is_named_with_its_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"hosts' must hold a line `name slots=cards`.*found 'one"):
        run_under_deepspeed([], knobs=knobs(1), hostfile=tmp_path / "hosts")


def test_missing_hostfile_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no hostfile at"):
        run_under_deepspeed([], knobs=knobs(1), hostfile=tmp_path / "hosts")


def test_several_hosts_are_taken_in_order_as_far_as_needed(tmp_path: Path) -> None:
    """The command is DeepSpeed's own runner's, which goes over ssh: only what it is asked is looked at here."""
    (tmp_path / "hosts").write_text("one slots=2\ntwo slots=4\nthree slots=1\n", encoding="utf-8")
    command = launch_command(knobs(4), hostfile=tmp_path / "hosts")
    assert command[1:3] == ["-m", "deepspeed.launcher.runner"]
    assert command[3:] == [f"--hostfile={tmp_path / 'hosts'}", "--include=one:0,1@two:0,1"]


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Processes that must be gone after the test, whatever happens."""
    started: list[int] = []
    yield started
    for pid in started:
        if _is_running(pid):
            os.kill(pid, signal.SIGKILL)


def _is_written(path: Path) -> bool:
    return path.is_file() and bool(path.read_text())


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_until(condition: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
