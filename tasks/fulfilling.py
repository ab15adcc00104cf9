"""The worker's side of a stage that another machine ordered: get what it needs, run it, give what it made to the remote.

To be called in a flow run. Each step leaves things so that a run which is killed there is taken up by the next: what has
been run lies in this machine's DVC cache, what has been pushed is in the remote, and the delivery comes last. Prefect's
server isn't asked for anything, so it may be away meanwhile: no slot of a limit (the card is this machine's own, and a
killed worker's slot stays taken for minutes), and no artifacts (the machine that ordered shows them).
"""

from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from mgm_lora.errors import RemoteError
from tasks.child import command_by_hand, pull, push, reproduce, words_on_failure
from tasks.delivery import leave_delivery
from tasks.order import Order, check_inputs, write_files
from tasks.showing import Log


def fulfil(order: Order, *, root: Path, run: str) -> State[Any]:
    """Runs the order's stage in the repository at `root`, which is at the order's commit and is nobody else's; `run` names this flow run.

    Raises:
        OrderError: the stage depends on something else here.
        RemoteError: what it needs can't be got, or what it made not be given.
    """
    log = get_run_logger()
    write_files(order, root=root)
    if order.needs:
        pull(order.needs, root=root, on_line=log.info)
    check_inputs(order, root=root)
    ended = reproduce(order.stage, root=root, force=order.force, pull=False, on_line=log.info)
    if ended.exit_code != 0:
        by_hand = command_by_hand(order.stage, force=order.force, pull=False)
        return Failed(message=words_on_failure(order.stage, ended, root=root, by_hand=by_hand))
    where = _give(order, root=root, run=run, log=log)
    return Completed(name=None if ended.ran else "Cached", message=f"given to {where}")


def _give(order: Order, *, root: Path, run: str, log: Log) -> str:
    try:
        push([order.stage], root=root, on_line=log.info)
        return leave_delivery(order.stage, root=root, key=order.key, run=run)
    except RemoteError as error:
        raise RemoteError(
            f"'{order.stage}' has been run, and lies in the cache of this worker, but the DVC remote doesn't take it. Mend that and run"
            f" it again: it is given then, and not run anew. {error}"
        ) from error
