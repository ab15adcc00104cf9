"""Whether a task that failed is tried again: where it may pass (network, a lock that is held), not where it won't (data, settings, a proof).

An error of ours says it by its exit code, and so does a stage, whose exit code DVC tells; of DVC itself a few words say it. It knows no stage.
"""

import re
from collections.abc import Sequence
from typing import Any

import httpx
from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed

from mgm_lora.errors import MgmLoraError

NUM_RETRIES = 2
DELAYS_SECONDS = [10.0, 60.0]
_MACHINE = 4
"""The exit code of what lies at the machine, its network or another process's lock, and not in what was asked (`mgm_lora.errors`)."""
_EXIT_CODE = re.compile(r"ERROR: failed to reproduce .*, exited with (\d+)$")
# dvc ends with 255 for everything. An unreachable remote and missing data read the same: "Unable to pull".
_DVC_MAY_PASS = re.compile(
    r"Unable to pull data for stage|Unable to acquire lock|is being blocked by|failed to (pull|push) data (from|to) the cloud"
    r"|(Could not|Cannot|Failed to) connect|[Cc]onnection (error|refused|reset|timed out)|timed out|[Nn]ame resolution"
)


class StageError(MgmLoraError, RuntimeError):
    """A stage ended badly; the message tells its last words."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def failed_stage(words: str, *, last_lines: Sequence[str]) -> State[Any]:
    """The state of a stage that `dvc` gave up on, whose last lines these are."""
    return failed(StageError(words, exit_code=_exit_code(last_lines)))


def failed(error: MgmLoraError, *, message: str | None = None) -> State[Any]:
    """The state that an error of ours makes; the error itself goes along, so that `may_pass` can ask it."""
    return Failed(message=message or str(error), data=error)


def may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Prefect's question (`retry_condition_fn`) after each failure."""
    error = state.data
    if isinstance(error, MgmLoraError):
        return error.exit_code == _MACHINE
    return isinstance(error, httpx.TransportError)  # Prefect's server, or its limits, didn't answer


def _exit_code(last_lines: Sequence[str]) -> int:
    """The stage's own, where it was run and ended; of dvc's own failures 4 for those that may pass, else 1."""
    told = [match for match in map(_EXIT_CODE.match, last_lines) if match]
    if told:
        return int(told[-1].group(1))
    return _MACHINE if any(_DVC_MAY_PASS.search(line) for line in last_lines) else 1
