"""What the services' `up` has started: process ids, in build/services/started.json. A process is known again after the clock was set, and is never
taken for another one that got its number. It knows no service."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

FOLDER = Path("build/services")
"""Logs, and what was started; relative to the project's root."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Started:
    """A process of ours."""

    pid: int
    birth: str
    """Of this boot of the machine, and how long after it: another process that gets the same id later has another, whatever the clock says."""
    address: str

    @classmethod
    def of(cls, pid: int, *, address: str) -> "Started":
        """A process that runs now."""
        return cls(pid, _birth(pid), address)

    def process(self) -> psutil.Process | None:
        """None where it has ended."""
        with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            process = psutil.Process(self.pid)
            if _birth(self.pid) == self.birth and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


def read_started() -> dict[str, Started]:
    """By the services' names, in the order in which they were started."""
    try:
        entries = json.loads((FOLDER / "started.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {name: Started(**entry) for name, entry in entries.items()}


def write_started(started: Mapping[str, Started]) -> None:
    """Whole or not at all."""
    unfinished = FOLDER / ".started.json.part"
    text = json.dumps({name: asdict(each) for name, each in started.items()}, indent=1)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(FOLDER / "started.json")


def _birth(pid: int) -> str:
    # not psutil's create_time: that counts from the clock, which may be set
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    return f"{_BOOT.read_text(encoding='ascii').strip()}:{after_name.split()[19]}"
