"""One trainer per card: real processes, which wait, fail, are killed, and leave no lock behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgm_lora.errors import BusyCardError, StorageError
from mgm_lora.training import card_lock
from mgm_lora.training.card_lock import FOLDER_VARIABLE, hold_card, hold_cards, lock_folder

ROOT = Path(__file__).parents[3]
HOLDS = """
import multiprocessing, sys, time
from mgm_lora.training.card_lock import hold_cards
with hold_cards("lora", when_taken="wait"):
    if len(sys.argv) > 1:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,)); child.start()
        print(child.pid, flush=True)
    print("holds", flush=True)
    time.sleep(300)
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "locks"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that trains the arm lora in the folder `theirs`."""
    (tmp_path / "theirs").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True, cwd=tmp_path / "theirs"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_second_trainer_fails_by_setting_and_names_the_holder(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(BusyCardError) as error, hold_cards("full", when_taken="fail"):
        pass
    assert f"is held by process {holder.pid}, which trains the arm 'lora' of '{tmp_path / 'theirs'}' since 2" in str(
        error.value
    )
    assert "set guards.busy_card to wait" in str(error.value)
    assert error.value.exit_code == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_second_trainer_waits_until_the_first_has_ended_however_it_ended(
    holder: subprocess.Popen[str],
    number: signal.Signals,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(card_lock, "_TOLD_AGAIN_SECONDS", 0.4)
    monkeypatch.setattr(card_lock, "_POLL_SECONDS", 0.1)
    subprocess.Popen(["sh", "-c", f"sleep 1; kill -{int(number)} {holder.pid}"])
    started = time.monotonic()
    with hold_cards("full", when_taken="wait"):
        waited = time.monotonic() - started
    assert waited >= 0.9
    told = [record.message for record in caplog.records if "waiting for" in record.message]
    assert len(told) >= 2
    assert all(f"held by process {holder.pid}, which trains the arm 'lora'" in line for line in told)
    assert "is free after" in caplog.records[-1].message


def test_lock_is_not_inherited_by_a_worker_that_outlives_its_killed_trainer(tmp_path: Path) -> None:
    trainer = subprocess.Popen([sys.executable, "-c", HOLDS, "fork"], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    worker = int(trainer.stdout.readline())
    assert trainer.stdout.readline() == "holds\n"
    try:
        trainer.kill()
        trainer.wait()
        os.kill(worker, 0)
        with hold_cards("full", when_taken="fail"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        trainer.stdout.close()


def test_cards_are_held_each_for_itself_and_again_after_they_were_let_go(holder: subprocess.Popen[str]) -> None:
    with hold_card("gpu-1", arm="lora", when_taken="fail"):
        written = json.loads((lock_folder() / "gpu-1.lock").read_text())
    assert (written["pid"], written["arm"], written["project"]) == (os.getpid(), "lora", str(Path.cwd()))
    with hold_card("gpu-1", arm="a", when_taken="fail"):
        assert json.loads((lock_folder() / "gpu-1.lock").read_text())["arm"] == "a"  # nothing left of the longer entry


def test_ranks_on_the_processor_share_the_first_ones_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on only when it has it."""
    code = (
        "import sys, time; from mgm_lora.training.card_lock import hold_cards\n"
        "with hold_cards('lora', when_taken='fail'): print('in', time.monotonic(), flush=True); sys.stdin.read()"
    )
    ranks = []
    for rank in ("1", "0"):
        environment = {**os.environ, "LOCAL_RANK": rank, "LOCAL_SIZE": "2"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        ranks.append(subprocess.Popen([sys.executable, "-c", code], **pipes))  # type: ignore[call-overload]
        time.sleep(0.1)
    assert ranks[1].stdout is not None
    assert ranks[0].stdout is not None
    first, second = (float(rank.stdout.readline().split()[1]) for rank in (ranks[1], ranks[0]))
    for rank in ranks:
        rank.communicate()
        assert rank.returncode == 0
    assert first < second


def test_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() != 0:
        monkeypatch.setenv(FOLDER_VARIABLE, "/")
    else:
        lock_folder().mkdir()
        os.chown(lock_folder(), 65534, 65534)
    with pytest.raises(StorageError, match="is another user's"), hold_cards("lora", when_taken="fail"):
        pass
