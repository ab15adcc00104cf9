"""Processes that `up` started are known again, and not mixed up with others."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from flows.started import Started


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    yield process
    process.kill()
    process.wait()


def test_process_is_known_again_after_the_clock_was_set(
    sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Started.of(sleeper.pid, address="here")
    clock = psutil.Process(sleeper.pid).create_time()
    # a clock that is set moves the time at which the machine began, from which psutil counts
    began = psutil.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: began + 3600.0)
    assert psutil.Process(sleeper.pid).create_time() != clock  # by this it would be another process

    found = started.process()

    assert found is not None
    assert found.pid == sleeper.pid


def test_ended_process_and_another_of_its_number_are_not_it(sleeper: "subprocess.Popen[bytes]") -> None:
    started = Started.of(sleeper.pid, address="here")
    assert replace(started, birth=started.birth + "0").process() is None
    sleeper.kill()
    assert replace(started, pid=2**22 + 1).process() is None
    sleeper.wait()
    assert started.process() is None
