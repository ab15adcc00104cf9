"""Runs `dvc` in a child process, and hands on its lines and those of the stages while they run.

A child and not DVC's Python API: `dvc` gives a stage its terminal, signals and lock, and so does a hand that types the same command. The child
has a process group of its own, which ends with the call, however that ends; if this process is killed, the kernel ends the child. It knows no
stage by name.
"""

import codecs
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mgm_lora.stages.process import tied_to_this_process

_NUM_LAST_LINES = 12
_PROGRESS_SECONDS = 10.0  # how often a line that redraws itself, as progress bars do, is handed on
_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.5
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class DvcEnd:
    """How `dvc` ended."""

    exit_code: int
    last_lines: tuple[str, ...]


def run_dvc(
    arguments: Sequence[str],
    *,
    root: Path,
    on_line: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> DvcEnd:
    """Runs `dvc` with these arguments in a repository's root.

    Args:
        on_line: gets each line of `dvc` and of the stages as it comes.
        environment: variables beside this process's own.
    """
    last_lines: deque[str] = deque(maxlen=_NUM_LAST_LINES)
    with _child(arguments, root=root, environment=environment or {}) as child:
        for line in _lines(child):
            last_lines.append(line)
            on_line(line)
        return DvcEnd(exit_code=child.wait(), last_lines=tuple(last_lines))


@contextmanager
def _child(
    arguments: Sequence[str], *, root: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    # -P: the repository's folders must not stand for dvc's modules
    command = [sys.executable, "-P", "-m", "dvc", *arguments]
    process = subprocess.Popen(
        tied_to_this_process(command),
        cwd=root,
        env={**_environment(), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end_group(process)
        if process.stdout:
            process.stdout.close()


def _environment() -> dict[str, str]:
    """This process's, so that the stages' `python` is this Python, and its lines aren't held back."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends the child, if it hasn't ended, and whatever it left running."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """The child's lines, until it has ended. Not until its output is closed: something that it left running could hold it open."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    cutter = _LineCutter()
    for chunk in _chunks(process):
        yield from cutter.feed(decoder.decode(chunk))
    yield from cutter.feed(decoder.decode(b"", final=True) + "\n")


def _chunks(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            has_ended = process.poll() is not None
            if selector.select(0 if has_ended else _POLL_SECONDS):
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    return
                yield chunk
            elif has_ended:
                return


class _LineCutter:
    """Cuts text into lines without terminal codes; of a line that redraws itself only its newest state, and that not too often."""

    def __init__(self) -> None:
        self._rest = ""
        self._last_progress = time.monotonic()

    def feed(self, text: str) -> Iterator[str]:
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            if shown := _newest(line):
                yield shown
        if "\r" in self._rest and time.monotonic() - self._last_progress >= _PROGRESS_SECONDS:
            self._last_progress = time.monotonic()
            if shown := _newest(self._rest):
                yield shown
        if "\r" in self._rest:
            self._rest = "\r" + self._rest.rstrip("\r").rpartition("\r")[2]


def _newest(line: str) -> str:
    states = [_TERMINAL_CODES.sub("", state).rstrip() for state in line.split("\r")]
    return next((state for state in reversed(states) if state.strip()), "")
