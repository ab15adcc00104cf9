"""What a worker on the machine with the card runs: one stage, for a pipeline on another machine.

`python -m flows.card_worker` deploys it and starts the worker, in a clone of the repository. The stage runs in a worktree
beside that clone's files (`tasks.workplace`), at the commit that the order names.
"""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Failed

from flows.worker_process import end_with_worker
from mgm_lora.errors import MgmLoraError
from tasks.fulfilling import fulfil
from tasks.order import Order
from tasks.pool import FLOW
from tasks.workplace import workplace


@flow(name=FLOW, flow_run_name="{order.stage}", persist_result=False)
def card_stage(order: Order) -> State[Any]:
    """Runs one stage for a pipeline on another machine, which sends the order; not to be started by hand.

    Args:
        order: The stage, its commit, and what it depends on.
    """
    end_with_worker()
    try:
        with workplace(Path.cwd(), commit=order.commit) as root:
            return fulfil(order, root=root, run=str(flow_run.id))
    except MgmLoraError as error:
        return Failed(message=str(error))
