"""What `mgm-lora health` asks Prefect's server: the clock, pool, limit, automation, deployments and worker that flows need. It changes nothing."""

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings
from ruamel.yaml import YAML

from flows.services_setup import zombie_automation
from mgm_lora.stages.health import Finding
from tasks.dag import CARD

_MAX_CLOCK_SECONDS = 30.0  # heartbeats come so often: further apart, a healthy run can be taken for dead
_UP = "`mgm-lora up` brings it back"


def check_server(pool: str, *, version: str) -> Iterator[Finding]:
    """On the server that PREFECT_API_URL names.

    Args:
        pool: the work pool of the card.
        version: of what should be deployed, as prefect.yaml is told it; empty: not compared.
    """
    address = str(get_current_settings().api.url)
    try:
        reply = httpx.get(f"{address}/health", timeout=5)
        reply.raise_for_status()
    except httpx.HTTPError as error:
        yield Finding(
            "Prefect",
            "wrong",
            f"{address} doesn't answer: {error}",
            "`mgm-lora up` starts it; else see PREFECT_API_URL",
        )
        return
    yield Finding("Prefect", "ok", f"{address} answers")
    yield check_clock(reply.headers.get("date"))
    with get_client(sync_client=True) as client:
        assert isinstance(client, SyncPrefectClient)
        yield check_pool(pool, client=client)
        yield check_worker(pool, client=client)
        yield check_limit(client)
        yield check_automation(client)
        yield from check_deployments(version, client=client)


def check_clock(date: str | None) -> Finding:
    """Against the server's, by its answer's header; that has whole seconds."""
    if date is None:
        return Finding("clock", "note", "the server doesn't tell the time")
    ahead = time.time() - parsedate_to_datetime(date).timestamp()
    if abs(ahead) <= _MAX_CLOCK_SECONDS:
        return Finding("clock", "ok", "as the server's")
    return Finding(
        "clock",
        "wrong",
        f"this machine's is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's",
        "set both by a time server (`timedatectl set-ntp true`): schedules fire at other times than shown, and healthy runs may be taken for dead",
    )


def check_pool(pool: str, *, client: SyncPrefectClient) -> Finding:
    """Whether it is there, takes runs, and gives one at a time."""
    try:
        found = client.read_work_pool(pool)
    except ObjectNotFound:
        return Finding("work pool", "wrong", f"no work pool '{pool}'", _UP)
    if found.is_paused:
        return Finding("work pool", "wrong", f"'{pool}' is paused", f"`prefect work-pool resume {pool}`")
    if found.concurrency_limit != 1:
        return Finding(
            "work pool", "wrong", f"'{pool}' gives {found.concurrency_limit or 'any number of'} runs at a time", _UP
        )
    return Finding("work pool", "ok", f"'{pool}' gives one run at a time")


def check_worker(pool: str, *, client: SyncPrefectClient) -> Finding:
    """Whether one is at work: without, runs wait for ever."""
    try:
        workers = client.read_workers_for_work_pool(pool)
    except (ObjectNotFound, PrefectHTTPStatusError):  # the pool isn't there, which check_pool tells
        workers = []
    online = [worker.name for worker in workers if worker.status == "ONLINE"]
    if online:
        return Finding("worker", "ok", f"{', '.join(online)} of the pool '{pool}'")
    start = "`mgm-lora up`, or on the machine with the card `python -m flows.card_worker`"
    return Finding("worker", "wrong", f"none of the pool '{pool}' is at work: its runs wait", start)


def check_limit(client: SyncPrefectClient) -> Finding:
    """Whether the card's limit is there, and no slot of it is held while nothing runs."""
    try:
        limit = client.read_global_concurrency_limit_by_name(CARD)
    except ObjectNotFound:
        return Finding("limit", "wrong", f"no concurrency limit '{CARD}': two stages could be given the card", _UP)
    if limit.active_slots and not _num_running(client):
        advice = (
            f"it opens by itself within 5 minutes of the loss; at once: `prefect gcl update {CARD} --active-slots 0`"
        )
        return Finding("limit", "wrong", f"{limit.active_slots} slot of '{CARD}' is held, but no flow runs", advice)
    return Finding("limit", "ok", f"'{CARD}': {limit.active_slots} of {limit.limit} held")


def check_automation(client: SyncPrefectClient) -> Finding:
    """Whether runs whose process is gone are ended."""
    name = zombie_automation().name
    found = client.read_automations_by_name(name)
    if not found:
        return Finding("automation", "wrong", f"no '{name}': a killed run would stay Running and hold the pool", _UP)
    if not found[0].enabled:
        return Finding("automation", "wrong", f"'{name}' is off", f"`prefect automation resume '{name}'`")
    return Finding("automation", "ok", f"'{name}' is on")


def check_deployments(version: str, *, client: SyncPrefectClient) -> Iterator[Finding]:
    """Whether all of prefect.yaml's are there, as the files here say, and their schedules are on."""
    tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=["mgm-lora"]))
    flows = {flow.id: flow.name for flow in client.read_flows(deployment_filter=tagged)}
    there = {f"{flows[each.flow_id]}/{each.name}": each for each in client.read_deployments(deployment_filter=tagged)}
    missing = sorted(_wanted() - there.keys())
    if missing:
        yield Finding("deployments", "wrong", f"missing: {', '.join(missing)}", _UP)
    other = {
        name: each.version for name, each in there.items() if name in _wanted() and version and each.version != version
    }
    if other:
        named = ", ".join(f"{name} of {found or 'no commit'}" for name, found in sorted(other.items()))
        advice = "`mgm-lora up` deploys what is here; were the files to be older, `git checkout` them first"
        yield Finding("deployments", "wrong", f"of another commit than the files here ({version}): {named}", advice)
    paused = sorted(name for name, each in there.items() if name in _wanted() and each.paused)
    if paused:
        yield Finding(
            "deployments", "note", f"schedules are paused: {', '.join(paused)}", "`prefect deployment schedule resume`"
        )
    if not missing and not other and not paused:
        yield Finding("deployments", "ok", f"{len(_wanted())} of {version or 'these files'}")


def _wanted() -> set[str]:
    """`flow/name` of each: the flows' names are their functions'."""
    with open("prefect.yaml", encoding="utf-8") as file:
        entries = YAML(typ="safe").load(file)["deployments"]
    return {f"{each['entrypoint'].rpartition(':')[2]}/{each['name']}" for each in entries}


def _num_running(client: SyncPrefectClient) -> int:
    running = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING])
    return len(client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=running)), limit=1))
