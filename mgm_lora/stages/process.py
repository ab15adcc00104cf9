"""Ties a process to the one that started it, so that a killed `dvc` or flow leaves no trainer running.

The kernel ends a process with its direct parent (PR_SET_PDEATHSIG). Under `dvc` that parent may be a shell or a
launcher, which outlives a killed `dvc`: those are watched, up to `dvc` itself. The signal is SIGKILL: no handler of a
library can hold it up, and nothing is lost, since artifacts are written under temporary names. It doesn't know what the
processes do; off Linux it does nothing.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

import psutil

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_SECONDS = 0.5
_STARTED_BY_DVC = "DVC_STAGE"  # dvc sets it for the commands that it starts, and for nothing else


def die_with_parent() -> None:
    """Ends this process, a stage, as soon as `dvc` or anything between `dvc` and it has ended.

    A stage that was started by hand is left alone, so that `nohup` keeps its meaning. Call it first of all in the main thread; a process
    that the stage starts can call it too.
    """
    if sys.platform != "linux" or _STARTED_BY_DVC not in os.environ:
        return
    die_with(os.getppid())
    threading.Thread(target=_die_after_first_of, args=(_ancestors_up_to_dvc(),), name="ancestors", daemon=True).start()


def die_with(parent: int) -> None:
    """Ends this process with its direct parent, whose process id is `parent`, or at once where that has ended already.

    To the kernel the parent is the thread that started this process: that thread must stay until this process ends.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refused PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        _die(f"its parent {parent} has ended")


def tied_to_this_process(command: Sequence[str]) -> list[str]:
    """`command`, to be started by this process, so that it ends with it.

    A launcher in between and not `preexec_fn`: the latter runs Python between fork and exec, where another thread's lock can hang it.
    """
    return [sys.executable, "-I", __file__, str(os.getpid()), *command]


def _ancestors_up_to_dvc() -> list[psutil.Process]:
    """The processes from the parent up to `dvc`, which is the first that `dvc` didn't start."""
    found: list[psutil.Process] = []
    child = os.getpid()
    for ancestor in psutil.Process().parents():
        found.append(ancestor)
        if not _is_started_by_dvc(ancestor):
            if _is_adopted(child, parent=ancestor.pid):
                _die("dvc has ended")
            break
        child = ancestor.pid
    return found


def _is_started_by_dvc(process: psutil.Process) -> bool:
    try:
        return _STARTED_BY_DVC in process.environ()
    except (psutil.AccessDenied, psutil.NoSuchProcess):  # another user's, which dvc's own child can't be; or gone
        return False


def _is_adopted(child: int, *, parent: int) -> bool:
    """Whether `parent` took over `child` from a `dvc` that ended: a child of `dvc` is in its process group, or leads its own."""
    try:
        group = os.getpgid(child)
        return group != child and group != os.getpgid(parent)
    except ProcessLookupError:
        return True


def _die_after_first_of(ancestors: Sequence[psutil.Process]) -> None:
    while all(_is_alive(ancestor) for ancestor in ancestors):
        time.sleep(_POLL_SECONDS)
    _die("dvc, or a process between dvc and this stage, has ended")


def _is_alive(process: psutil.Process) -> bool:
    try:
        # A killed process stays a zombie where nobody asks for its exit code; psutil's own `wait` would wait for that.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _die(reason: str) -> None:
    logger.error("ending process %d: %s", os.getpid(), reason)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":  # process.py PARENT COMMAND...: becomes the command, tied to PARENT
    die_with(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
