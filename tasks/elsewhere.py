"""The Prefect task for a stage that asks for the card where the card is in another machine: the pool's worker runs it.

This side gives the remote what the stage needs, sends the order, waits, and takes the delivery. What has been made
before, here or there, is taken and not made again. A stage that runs here is `tasks.stages`' matter.
"""

import time
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Failed

from mgm_lora.errors import MgmLoraError, OrderError, RemoteError
from tasks.child import pull, push
from tasks.dag import Plan, Stage, is_unchanged
from tasks.delivery import Delivery, accept_, find_delivery
from tasks.order import Order, make_order
from tasks.pool import check_pool, run_in_pool
from tasks.remote import SharedRemote
from tasks.repository import open_repository
from tasks.showing import Log, show_products


def check_elsewhere(plan: Plan, *, pool: str, may_pull: bool) -> None:
    """That the plan's stages can be run by another machine.

    Raises:
        RemoteError: no DVC remote that both machines reach, or it must not be used.
        ServiceError: no worker was ever set up for the pool.
    """
    if not may_pull:
        raise RemoteError(f"stages go to the work pool '{pool}', and come back by the DVC remote: that needs pull=True")
    with open_repository(plan.root, wait=True) as repo:
        SharedRemote.of(repo)
    check_pool(pool)


@task(task_run_name="{stage.name}", cache_policy=NO_CACHE, persist_result=False)
def run_stage_elsewhere(stage: Stage, *, root: Path, pool: str, force: bool) -> State[Any]:
    """Brings one stage up to date by the worker of a pool, and shows what it made."""
    log = get_run_logger()
    started = time.monotonic()
    try:
        cached = None if force else _taken_as_it_is(stage, root=root, log=log)
        order = None if cached else make_order(stage.name, root=root, force=force)
        if order and not force and _take_earlier(order, root=root, log=log):
            cached = "taken from the remote"
        if order and not cached:
            _have_run(order, root=root, pool=pool, log=log)
    except MgmLoraError as error:
        return Failed(message=f"stage '{stage.name}' failed: {error}")
    show_products(stage, root=root, log=log)
    if cached:
        return Completed(name="Cached", message=cached)
    return Completed(message=f"run by the pool '{pool}' and taken in {time.monotonic() - started:.1f} s")


def _taken_as_it_is(stage: Stage, *, root: Path, log: Log) -> str | None:
    """How, where nothing had to be made; None where it must be."""
    if is_unchanged(stage.name, root=root):
        log.info("'%s' didn't change, skipping", stage.name)
        return "unchanged"
    if is_unchanged(stage.name, root=root, but_for_missing=True):
        try:
            pull([stage.name], root=root, on_line=log.info)
            return "pulled: it has been made before"
        except RemoteError as error:
            log.warning("'%s' has been made before, but isn't in the remote: %s", stage.name, error)
    return None


def _take_earlier(order: Order, *, root: Path, log: Log) -> bool:
    delivery = find_delivery(order.key, root=root)
    if delivery is None:
        return False
    try:
        _take(delivery, root=root, log=log)
    except RemoteError as error:  # the remote was cleaned of the outputs
        log.warning("'%s' has been made before, but can't be taken: %s", order.stage, error)
        return False
    return True


def _have_run(order: Order, *, root: Path, pool: str, log: Log) -> None:
    if order.needs:
        push(order.needs, root=root, on_line=log.info)
    run = run_in_pool(order, pool=pool, log=log)
    delivery = find_delivery(order.key, root=root)
    if delivery is None or (order.force and delivery.run != str(run.id)):
        raise RemoteError(_words_on_failure(run, pool=pool))
    _take(delivery, root=root, log=log)


def _words_on_failure(run: FlowRun, *, pool: str) -> str:
    state = run.state
    if state and state.is_crashed():
        return (
            f"the worker of the pool '{pool}', or its machine, was lost: {state.message}\n"
            "What it had begun isn't lost: run it again, and it goes on"
        )
    if state and state.is_completed():
        return f"the worker of the pool '{pool}' has run it, but there is no delivery in this clone's DVC remote: does it use another?"
    return f"on the worker of the pool '{pool}': {state.message if state else 'no state'}"


def _take(delivery: Delivery, *, root: Path, log: Log) -> None:
    accept_(delivery, root=root)
    pull([delivery.stage], root=root, on_line=log.info)
    if not is_unchanged(delivery.stage, root=root, wait=True):
        raise OrderError(f"what '{delivery.stage}' depends on has changed here while the worker ran it: run it again")
