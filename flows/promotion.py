"""The promotion of a registered version as a Prefect flow: judged by today's held-out questions, each rule shown, refused with those that it breaks.

It does what `mgm-lora promote` does, and is no part of the pipeline: nothing is promoted because it was trained. It knows no rules.
"""

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.worker_process import end_with_worker
from mgm_lora.errors import PromotionRefusedError
from mgm_lora.settings import read_settings
from mgm_lora.stages import paths
from mgm_lora.stages import promote as stage
from tasks.retrying import DELAYS_SECONDS, NUM_RETRIES, may_pass


@flow(persist_result=False)
def promotion(version: str = "challenger", reason: str = "", dry_run: bool = False) -> State[Any]:
    """Makes a registered version the champion, if it keeps the rules of the section promotion of params.yaml.

    Args:
        version: Which: a number, an alias, or an address like models:/NAME/3.
        reason: Why; kept in the history. With a reason it is promoted also where it breaks a rule.
        dry_run: Judge it, show how it stands, and change nothing.
    """
    end_with_worker()
    state = promote(version, reason=reason, dry_run=dry_run, return_state=True)
    # of its own: Prefect would count a task's state instead of telling it
    return State(type=state.type, name=state.name, message=state.message)


@task(
    task_run_name="promote {version}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=NUM_RETRIES,
    retry_delay_seconds=DELAYS_SECONDS,
    retry_condition_fn=may_pass,
)
def promote(version: str, *, reason: str, dry_run: bool) -> State[Any]:
    """Judges a version, and makes it the champion."""
    settings = read_settings(Path.cwd() / paths.PARAMS)
    try:
        entry = stage.run(settings, version=version, reason=reason, dry_run=dry_run, show=_show)
    except PromotionRefusedError as error:
        return Failed(name="Refused", message=str(error))
    if entry is None:
        return Completed(
            message="nothing was changed: a dry run" if dry_run else f"'{version}' is the champion already"
        )
    replaced = "nobody" if entry.replaced is None else f"version {entry.replaced}"
    overruled = f"; overruled: {', '.join(entry.overruled)}" if entry.overruled else ""
    return Completed(message=f"version {entry.version} is the champion, in the place of {replaced}{overruled}")


def _show(judgement: stage.Judgement) -> None:
    """In the run's log and as a table artifact."""
    log = get_run_logger()
    rows = [
        {"rule": rule.rule, "asked": rule.asked, "found": rule.found, "kept": "yes" if rule.passed else "NO"}
        for rule in judgement.rules
    ]
    for row in rows:
        log.info("%(rule)s: %(found)s (asked: %(asked)s; kept: %(kept)s)", row)
    against = "nobody" if judgement.champion is None else f"version {judgement.champion}"
    description = f"version {judgement.version} of {judgement.model_name} against the champion, {against}"
    create_table_artifact(table=rows, key="promotion", description=description)
