"""Has an order run by the worker of a work pool, and waits for it.

It waits as long as the stage takes, and through a restart of the server. It knows Prefect and orders, not DVC: what the
stage makes goes by the remote (`tasks.delivery`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling
from prefect.utilities.urls import url_for

from mgm_lora.errors import ServiceError
from tasks.order import Order
from tasks.showing import Log

FLOW = "card-stage"
"""The flow that a worker of the pool runs; its deployment is named as the pool."""
_PATIENCE_SECONDS = 600.0  # without an answer of the server
_POLL_SECONDS = 1.0
_GOING_ON = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]


def check_pool(pool: str) -> None:
    """That a worker was set up for it once. Raises ServiceError."""
    with _client() as client:
        try:
            client.read_deployment_by_name(f"{FLOW}/{pool}")
        except ObjectNotFound as error:
            raise ServiceError(
                f"no worker was ever set up for the work pool '{pool}' (no deployment {FLOW}/{pool} on {client.api_url}):"
                f" on the machine with the card, run `python -m flows.card_worker --pool {pool}`"
            ) from error


def run_in_pool(order: Order, *, pool: str, log: Log) -> FlowRun:
    """The flow run that has ended, well or not. One that goes on for an equal order is waited for, and none is begun beside it.

    Raises:
        ServiceError: the server is away for long, or the worker's clone is of another version.
    """
    with _client() as client:
        _tell_of_workers(pool, client=client, log=log)
        going_on = _find(order, pool=pool, client=client)
        if going_on and not order.force:
            log.info("'%s' is being run already: %s", order.stage, url_for(going_on))
            ended = _wait(going_on, client=client, log=log)
            if ended.state and not (ended.state.is_crashed() or ended.state.is_cancelled()):
                return ended
        run = _begin(order, pool=pool)
        log.info("'%s' goes to the work pool '%s': %s", order.stage, pool, url_for(run))
        with _cancelled_with_us(run.id):
            return _wait(run, client=client, log=log)


@contextmanager
def _client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        assert isinstance(client, SyncPrefectClient)
        yield client


def _find(order: Order, *, pool: str, client: SyncPrefectClient) -> FlowRun | None:
    deployment = client.read_deployment_by_name(f"{FLOW}/{pool}")
    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        flow_run_filter=FlowRunFilter(
            tags=FlowRunFilterTags(all_=[_tag(order)]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_GOING_ON)),
        ),
    )
    return runs[0] if runs else None


def _begin(order: Order, *, pool: str) -> FlowRun:
    parameters: dict[str, Any] = {"order": order.model_dump(mode="json")}
    try:
        run = run_deployment(
            f"{FLOW}/{pool}", parameters=parameters, flow_run_name=order.stage, tags=[_tag(order)], timeout=0
        )
    except PrefectHTTPStatusError as error:
        if error.response.status_code != httpx.codes.CONFLICT:
            raise
        raise ServiceError(
            f"the worker of the pool '{pool}' doesn't take such orders; its clone is of another version of mgm-lora than this one:"
            f" there, `git pull`, `make install`, and start it again. {error.response.text}"
        ) from error
    assert isinstance(run, FlowRun)
    return run


def _tag(order: Order) -> str:
    return f"order {order.key[:16]}"


def _tell_of_workers(pool: str, *, client: SyncPrefectClient, log: Log) -> None:
    if not any(worker.status == "ONLINE" for worker in client.read_workers_for_work_pool(pool)):
        log.warning("no worker of the pool '%s' is at work now: the stage waits for one", pool)


def _wait(run: FlowRun, *, client: SyncPrefectClient, log: Log) -> FlowRun:
    name, answered = "", time.monotonic()
    while True:
        try:
            run = client.read_flow_run(run.id)
            answered = time.monotonic()
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            if time.monotonic() - answered > _PATIENCE_SECONDS:
                raise ServiceError(
                    f"Prefect's server hasn't answered for {_PATIENCE_SECONDS / 60:.0f} minutes: {error}. The worker goes on without it:"
                    " what it makes is found by a later run"
                ) from error
        if run.state and run.state.name != name:
            name = run.state.name or ""
            log.info("'%s' on the worker: %s", run.name, name)
        if run.state and run.state.is_final():
            return run
        time.sleep(_POLL_SECONDS)


@contextmanager
def _cancelled_with_us(run: UUID) -> Iterator[None]:
    """Who cancels the pipeline cancels its stage. A pipeline that ends otherwise leaves it running: a later run takes what it made."""
    try:
        yield
    except BaseException:
        context = FlowRunContext.get()
        with suppress(httpx.HTTPError), _client() as client:
            if context and context.flow_run and _is_cancelled(client.read_flow_run(context.flow_run.id).state):
                client.set_flow_run_state(run, Cancelling())
        raise


def _is_cancelled(state: State[Any] | None) -> bool:
    return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)
