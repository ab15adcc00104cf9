"""The Prefect tasks: one run of `run_stage` is one stage of `dvc.yaml`.

DVC judges what is up to date, so Prefect's own result cache stays off: it can't see the files (it served stale results
for a changed file at the same path). The states say how it went: Completed, Cached (DVC found nothing to do, or
restored it), Failed, NotRun. A task knows one stage; which ones there are, and their order, the flow asks of
`tasks.dag`.
"""

import time
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed

from tasks.card import holding_card
from tasks.child import command_by_hand, reproduce, words_on_failure
from tasks.dag import Stage, is_unchanged
from tasks.progress import ProgressArtifact
from tasks.retrying import DELAYS_SECONDS, NUM_RETRIES, failed_stage, may_pass
from tasks.showing import show_products


@task(
    task_run_name="{stage.name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=NUM_RETRIES,
    retry_delay_seconds=DELAYS_SECONDS,
    retry_condition_fn=may_pass,
)
def run_stage(stage: Stage, *, root: Path, force: bool, pull: bool) -> State[Any]:
    """Brings one stage up to date, and shows what it made."""
    log = get_run_logger()
    if not force and is_unchanged(stage.name, root=root):
        log.info("'%s' didn't change, skipping", stage.name)
        show_products(stage, root=root, log=log)
        return Completed(name="Cached", message="unchanged")
    progress = ProgressArtifact(stage.name, log=log)

    def take(line: str) -> None:
        log.info(line)
        progress.take(line)

    with holding_card(stage.card, of=stage.name, log=log):
        started = time.monotonic()
        reproduction = reproduce(stage.name, root=root, force=force, pull=pull, on_line=take)
    seconds = time.monotonic() - started
    if reproduction.exit_code != 0:
        by_hand = command_by_hand(stage.name, force=force, pull=pull)
        words = words_on_failure(stage.name, reproduction, root=root, by_hand=by_hand)
        return failed_stage(words, last_lines=reproduction.last_lines)
    progress.end(seconds=seconds)
    show_products(stage, root=root, log=log)
    if not reproduction.ran:
        return Completed(name="Cached", message=f"restored in {seconds:.1f} s: it has been made before")
    return Completed(message=f"ran in {seconds:.1f} s")


@task(task_run_name="{stage.name}", cache_policy=NO_CACHE, persist_result=False)
def leave_out_stage(stage: Stage, *, because_of: str) -> State[Any]:
    """Makes it visible that a stage was not run, and why."""
    return Cancelled(name="NotRun", message=f"not run: it needs '{because_of}', which failed")
