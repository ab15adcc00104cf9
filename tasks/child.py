"""Runs one stage as `dvc repro -s`, or another command of `dvc`, in a child process, and hands on its lines while it runs.

A child and not DVC's Python API: `dvc` gives the stage its terminal, signals and lock, and so does a hand that types
the same command. The child has a process group of its own, which ends with the call, however that ends; if this process
is killed, the kernel ends the child. It knows no Prefect.
"""

import codecs
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mgm_lora.errors import RemoteError
from mgm_lora.stages.process import tied_to_this_process

_NUM_LAST_LINES = 12
_PROGRESS_SECONDS = 10.0  # how often a line that redraws itself, as progress bars do, is handed on
_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.5
# What dvc says before it runs a command, takes up changed data, or imports. Without one of these it skipped or restored the stage.
_WORKS = re.compile(r"(Running stage|Verifying (data sources|outputs)|Importing) ")
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Reproduction:
    """How a command of `dvc` ended."""

    exit_code: int
    ran: bool
    """Whether work was done; False where DVC skipped the stage, pulled what it makes, or restored it from its run cache."""
    last_lines: tuple[str, ...]


def reproduce(name: str, *, root: Path, force: bool, pull: bool, on_line: Callable[[str], None]) -> Reproduction:
    """Runs a stage where DVC finds that it must be run; `on_line` gets each line of `dvc` and of the stage as it comes."""
    return _run(_arguments(name, force=force, pull=pull), root=root, on_line=on_line)


def push(names: Sequence[str], *, root: Path, on_line: Callable[[str], None]) -> None:
    """Gives the outputs of stages to the DVC remote. Raises RemoteError where it doesn't take all of them."""
    _exchange(["push", *names], root=root, on_line=on_line)


def pull(names: Sequence[str], *, root: Path, on_line: Callable[[str], None]) -> None:
    """Gets the outputs of stages from the DVC remote, in place of what lies there. Raises RemoteError where one is missing."""
    _exchange(["pull", "--force", *names], root=root, on_line=on_line)


def _exchange(arguments: Sequence[str], *, root: Path, on_line: Callable[[str], None]) -> None:
    ended = _run(arguments, root=root, on_line=on_line)
    if ended.exit_code != 0:
        raise RemoteError(
            "\n".join([f"`{shlex.join(['dvc', *arguments])}` failed. Its last lines:", "", *ended.last_lines])
            + f"\n\nTo try by hand: cd {shlex.quote(str(root))} && {shlex.join(['dvc', *arguments])}"
        )


def _run(arguments: Sequence[str], *, root: Path, on_line: Callable[[str], None]) -> Reproduction:
    ran = False
    last_lines: deque[str] = deque(maxlen=_NUM_LAST_LINES)
    # -P: the repository's folders must not stand for dvc's modules
    with _child([sys.executable, "-P", "-m", "dvc", "--wait-for-lock", *arguments], root=root) as child:
        for line in _lines(child):
            ran = ran or _WORKS.match(line) is not None
            last_lines.append(line)
            on_line(line)
        return Reproduction(exit_code=child.wait(), ran=ran, last_lines=tuple(last_lines))


def command_by_hand(name: str, *, force: bool, pull: bool) -> str:
    """What to type in the repository's root to do the same."""
    return shlex.join(["dvc", *_arguments(name, force=force, pull=pull)])


def words_on_failure(name: str, ended: Reproduction, *, root: Path, by_hand: str) -> str:
    """What to tell people of a stage that failed: its last words, and how to try it."""
    return (
        f"stage '{name}' failed with exit code {ended.exit_code}. Its last lines:\n\n"
        + "\n".join(ended.last_lines)
        + f"\n\nTo try by hand: cd {shlex.quote(str(root))} && {by_hand}"
    )


def _arguments(name: str, *, force: bool, pull: bool) -> list[str]:
    return ["repro", *(["--force"] if force else []), *(["--pull"] if pull else []), "-s", name]


@contextmanager
def _child(command: Sequence[str], *, root: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        tied_to_this_process(command),
        cwd=root,
        env=_environment(),
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
