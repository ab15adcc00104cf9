"""One trainer per card: whoever trains holds a file's lock, and the file says who that is.

The lock is POSIX's (`fcntl.lockf`): the kernel lets go of it when its process ends, however that ends, and children don't inherit it, as
they would flock's, so a data worker that lives a moment longer holds nothing. The file itself stays and means nothing. It lies in one place
for all of a user's projects on a machine, whatever their environments say. It keeps no other user's, and no other program's, work off a card,
and knows nothing of what is trained.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch

from mgm_lora.errors import BusyCardError, StorageError

logger = logging.getLogger(__name__)
FOLDER_VARIABLE = "MGM_LORA_LOCKS"
"""Names another folder for the locks; all trainers of a machine must be given the same."""
_POLL_SECONDS = 0.5
_TOLD_AGAIN_SECONDS = 60.0


@dataclass(frozen=True)
class Holder:
    """Who trains on a card."""

    pid: int
    arm: str
    project: str
    since: str
    """UTC, ISO 8601."""
    started_by: int
    """Process id of the parent: the ranks of one run have the same."""

    def __str__(self) -> str:
        return f"process {self.pid}, which trains the arm '{self.arm}' of '{self.project}' since {self.since}"


@contextmanager
def hold_cards(arm: str, *, when_taken: Literal["wait", "fail"]) -> Iterator[None]:
    """Holds this process's cards (without one, the processor) during the block.

    Ranks take theirs one after the other, and go on when all of them have theirs: so two runs never wait for each other.

    Raises:
        BusyCardError: another process holds one, and `when_taken` is fail.
    """
    mine, before, after = _cards()
    with ExitStack() as held:
        for name in before:
            _wait_until(lambda name=name: _is_siblings(name))  # type: ignore[misc]
        for name in mine:
            held.enter_context(hold_card(name, arm=arm, when_taken=when_taken))
        for name in after:
            _wait_until(lambda name=name: _is_siblings(name))  # type: ignore[misc]
        yield


@contextmanager
def hold_card(name: str, *, arm: str, when_taken: Literal["wait", "fail"]) -> Iterator[None]:
    """Holds one card during the block; within a process a card is held once."""
    path = _lock_path(name)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(descriptor, name=name, when_taken=when_taken)
        holder = Holder(
            os.getpid(), arm, str(Path.cwd()), datetime.now(UTC).isoformat(timespec="seconds"), os.getppid()
        )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def read_holders() -> dict[str, Holder]:
    """Who holds which card now, by the card's name. Only other processes' are seen."""
    found: dict[str, Holder] = {}
    for path in sorted(lock_folder().glob("*.lock")):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            holder = None if _try(descriptor) else _read_holder(descriptor)
        finally:
            os.close(descriptor)
        if holder:
            found[path.stem] = holder
    return found


def _take(descriptor: int, *, name: str, when_taken: Literal["wait", "fail"]) -> None:
    started, told = time.monotonic(), -_TOLD_AGAIN_SECONDS
    while not _try(descriptor):
        waited = time.monotonic() - started
        who = _read_holder(descriptor) or "a process that has just taken it"
        if when_taken == "fail":
            raise BusyCardError(
                f"{_called(name)} is held by {who}: wait until it has ended, end it, give this one another card"
                " (CUDA_VISIBLE_DEVICES), or set guards.busy_card to wait"
            )
        if waited - told >= _TOLD_AGAIN_SECONDS:
            logger.warning("waiting for %s (%.0f s so far): it is held by %s", _called(name), waited, who)
            told = waited
        time.sleep(_POLL_SECONDS)
    if told >= 0:
        logger.warning("%s is free after %.0f s", _called(name), time.monotonic() - started)


def _try(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _read_holder(descriptor: int) -> Holder | None:
    """None while whoever took the lock has not written yet."""
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _cards() -> tuple[list[str], list[str], list[str]]:
    """Names of this process's cards, of those of the ranks that take theirs before it on this machine, and after it."""
    names = [_card_name(number) for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if not names:
        return (["cpu"], [], []) if rank == 0 else ([], ["cpu"], [])
    if "LOCAL_RANK" not in os.environ:
        return sorted(names), [], []
    order = sorted(names[: int(os.environ.get("LOCAL_SIZE", "1"))])  # DeepSpeed's launcher sets it
    place = order.index(names[rank])
    return [names[rank]], order[:place], order[place + 1 :]


def _card_name(number: int) -> str:
    return f"gpu-{torch.cuda.get_device_properties(number).uuid}"


def _called(name: str) -> str:
    return "this machine's processor" if name == "cpu" else f"card {name}"


def _is_siblings(name: str) -> bool:
    """Whether a rank that the same launcher started holds the card. Only asked of cards that this process doesn't hold."""
    descriptor = os.open(_lock_path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        holder = _read_holder(descriptor)
        return holder is not None and holder.started_by == os.getppid() and not _try(descriptor)
    finally:
        os.close(descriptor)


def _wait_until(happened: Callable[[], bool]) -> None:
    while not happened():
        time.sleep(_POLL_SECONDS)


def _lock_path(name: str) -> Path:
    folder = lock_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise StorageError(f"can't make the folder of the cards' locks '{folder}': {error.strerror}") from error
    if owner != os.getuid():
        raise StorageError(
            f"the folder of the cards' locks '{folder}' is another user's: remove it, or set {FOLDER_VARIABLE}"
        )
    return folder / f"{name}.lock"


def lock_folder() -> Path:
    """Where the locks lie: not in TMPDIR or XDG_RUNTIME_DIR, which a scheduler's environment has otherwise than a shell's."""
    return Path(os.environ.get(FOLDER_VARIABLE) or f"/tmp/mgm-lora-{os.getuid()}")
