"""The lock on a registered model: between real processes, at a SQLite file and at a server, and when its holder is gone."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mgm_lora.errors import BusyRegistryError
from mgm_lora.registry.lock import StoreLock, _acquire, _break, hold_lock, is_lock, who
from mgm_lora.registry.store import Store, open_store
from mgm_lora.settings import RegistrySettings

ROOT = Path(__file__).parents[3]
_COUNT = """
import sys
from mgm_lora.registry.lock import hold_lock
from mgm_lora.registry.store import open_store
from mgm_lora.settings import RegistrySettings
store = open_store(RegistrySettings(tracking_uri=sys.argv[1], experiment="mgm-lora", model_name="demo"))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    with hold_lock(store, model_name="demo") as lock:
        lock.check()
        count = int(store.client.get_registered_model("counted").tags["count"])
        store.client.set_registered_model_tag("counted", "count", str(count + 1))
"""
_HOLD = (
    _COUNT.partition("for _ in")[0]
    + """
with hold_lock(store, model_name="demo"):
    print("held", flush=True)
    sys.stdin.readline()
"""
)
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=["SQLite", "server"])
def settings(request: pytest.FixtureRequest) -> RegistrySettings:
    """A registry of either kind."""
    chosen: RegistrySettings = request.getfixturevalue("served" if request.param == "server" else "registry")
    return chosen


@pytest.fixture
def store(project: Path, settings: RegistrySettings) -> Store:
    return open_store(settings)


@pytest.fixture
def start(settings: RegistrySettings, project: Path) -> Iterator[Start]:
    """Starts a script with a store of its own, and waits until it is ready."""
    processes = []

    def begin(script: str, *arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", script, settings.tracking_uri, *arguments],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_never_hold_it_together(store: Store, start: Start) -> None:
    store.client.create_registered_model("counted", tags={"count": "0"})
    processes = [start(_COUNT, "8") for _ in range(2)]
    for process in processes:
        go(process)
    assert [process.wait(120) for process in processes] == [0, 0]
    assert store.client.get_registered_model("counted").tags["count"] == "16"
    assert [model.name for model in store.client.search_registered_models()] == ["counted"]


def test_lock_of_a_killed_process_is_broken_by_the_next(
    store: Store, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    process = start(_HOLD)
    go(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(BusyRegistryError, match=f"'demo-lock' is held by {who()}"),
        hold_lock(store, model_name="demo", patience_seconds=0.5),
    ):
        pass
    process.kill()
    process.wait()
    with caplog.at_level(logging.WARNING), hold_lock(store, model_name="demo", lease_seconds=0.5) as lock:
        lock.check()
    assert "breaking it" in caplog.text


@pytest.mark.parametrize("settings", ["SQLite"], indirect=True)
class TestBreaking:
    """What two do who find the same lock left."""

    def test_slower_one_does_not_break_the_lock_that_the_quicker_one_made(self, store: Store) -> None:
        left = StoreLock(store, "demo-lock", token="left")
        _acquire(left, lease_seconds=30, patience_seconds=30)
        with hold_lock(store, model_name="demo", lease_seconds=0.3) as quicker:
            _break(StoreLock(store, "demo-lock", token="slower"), token="left")  # it had seen the one that was left
            quicker.check()

    def test_holder_that_was_taken_for_dead_is_told_before_it_writes(self, store: Store) -> None:
        with hold_lock(store, model_name="demo") as sleeper:
            with (
                hold_lock(store, model_name="demo", lease_seconds=0.3),
                pytest.raises(BusyRegistryError, match="another one took it for dead"),
            ):
                sleeper.check()
            with pytest.raises(BusyRegistryError):
                sleeper.check()

    def test_what_was_broken_is_forgotten_a_day_later(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        _acquire(StoreLock(store, "demo-lock", token="left"), lease_seconds=30, patience_seconds=30)
        with hold_lock(store, model_name="demo", lease_seconds=0.3):
            assert any(is_lock(model) and "broken" in model.name for model in store.client.search_registered_models())
        later = time.time() + 25 * 60 * 60
        monkeypatch.setattr(
            "mlflow.store.model_registry.sqlalchemy_store.get_current_time_millis", lambda: int(1000 * later)
        )
        with hold_lock(store, model_name="demo"):
            pass
        assert store.client.search_registered_models() == []
