"""What a Prefect server must know before flows run: the pool for the card, the card's limit, the automation against dead runs.

Flow runs whose process is gone become Crashed by it: else they would run for ever in the UI, and hold slots. A process of its own
(`python -m flows.services_setup POOL`), since Prefect reads the server's address once, when it is imported. Run again, it changes nothing.
"""

import sys
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists

from tasks.dag import CARD

WINDOW_SECONDS = 90
"""Without a heartbeat, after which a run is taken for dead."""
_NAME = "Crash flow runs that are gone"


def set_up(pool: str) -> None:
    """On the server that PREFECT_API_URL names."""
    with get_client(sync_client=True) as client:
        assert isinstance(client, SyncPrefectClient)
        try:
            client.create_work_pool(WorkPoolCreate(name=pool, type="process", concurrency_limit=1))
        except ObjectAlreadyExists:
            client.update_work_pool(pool, WorkPoolUpdate(concurrency_limit=1))
        client.upsert_global_concurrency_limit_by_name(CARD, 1)
        wanted = zombie_automation()
        there = client.read_automations_by_name(wanted.name)
        if there:
            client.update_automation(there[0].id, wanted)
        else:
            client.create_automation(wanted)


def zombie_automation() -> AutomationCore:
    """Not yet on a server."""
    alive = {f"prefect.flow-run.{event}" for event in ("heartbeat", "Completed", "Failed", "Cancelled", "Crashed")}
    return AutomationCore(
        name=_NAME,
        description=f"No heartbeat for {WINDOW_SECONDS} s: the process is gone, or its machine.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect=alive,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=WINDOW_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, name=None, message="no heartbeat: its process is gone", force=False
            )
        ],
    )


if __name__ == "__main__":
    set_up(sys.argv[1])
