"""The worker's side of a stage that another machine ordered: get what it needs, run it, give what it made to the remote.

To be called in a flow run. Each step leaves things so that a run which is killed there is taken up by the next: what has
been run lies in this machine's DVC cache, what has been pushed is in the remote, and the delivery comes last.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from mgm_lora.errors import RemoteError
from tasks.child import pull, push
from tasks.dag import make_plan
from tasks.delivery import leave_delivery
from tasks.order import Order, check_inputs, write_files
from tasks.showing import Log
from tasks.stages import run_stage


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
    stage = next(stage for stage in make_plan(root, targets=[order.stage]).stages if stage.name == order.stage)
    # No slot of the server's limit for the card: the card is this machine's own, one run at a time has the folder, and a slot of
    # a worker that was killed is only freed when its lease ends, after 5 minutes.
    state = run_stage(replace(stage, card=""), root=root, force=order.force, pull=False, return_state=True)
    if not state.is_completed():
        return Failed(message=str(state.message))
    where = _give(order, root=root, run=run, log=log)
    return Completed(name=str(state.name), message=f"{state.message}; given to {where}")


def _give(order: Order, *, root: Path, run: str, log: Log) -> str:
    try:
        push([order.stage], root=root, on_line=log.info)
        return leave_delivery(order.stage, root=root, key=order.key, run=run)
    except RemoteError as error:
        raise RemoteError(
            f"'{order.stage}' has been run, and lies in the cache of this worker, but the DVC remote doesn't take it. Mend that and run"
            f" it again: it is given then, and not run anew. {error}"
        ) from error
