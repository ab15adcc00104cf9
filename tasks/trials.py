"""The Prefect task of a sweep: one run of `run_trial` is one trial. What is done already, and how to run what isn't, the sweep's runner knows."""

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from mgm_lora.errors import TrialInterruptedError
from mgm_lora.stages.sweep_runner import SweepRunner, report_files
from mgm_lora.sweeping.report import sweep_lines
from mgm_lora.sweeping.results import SweepResult, TrialResult
from mgm_lora.sweeping.trials import Trial
from tasks.card import holding_card
from tasks.dag import CARD
from tasks.showing import Log, show_output

INTERRUPTED = "Interrupted"
"""The state of a trial that ended for no reason of its own: the next one would too."""


@task(task_run_name="{label}", cache_policy=NO_CACHE, persist_result=False)
def run_trial(sweep: SweepRunner, trial: Trial, *, label: str) -> State[Any]:
    """Runs one trial on the card, where it has not been run already."""
    result = sweep.result.trial(trial.name)
    if result.state != "waiting":
        return _state_of(result, is_new=False)
    log = get_run_logger()
    with holding_card(CARD, of=label, log=log):
        try:
            result = sweep.run(trial, on_line=log.info)
        except TrialInterruptedError as error:
            return Failed(name=INTERRUPTED, message=str(error))
    return _state_of(result, is_new=True)


def show_sweep(result: SweepResult, *, log: Log) -> None:
    """Makes the artifacts of a sweep in the run that is going on: its table, and its picture."""
    lines = sweep_lines(result, picture=None)
    create_markdown_artifact("\n".join(lines), key=f"sweep-{result.name}", description=f"sweep {result.name}")
    picture = report_files(result.name)["png"]
    if picture.is_file():
        show_output(picture, root=Path.cwd(), log=log)


def _state_of(result: TrialResult, *, is_new: bool) -> State[Any]:
    if result.state == "failed":
        told = result.words if is_new else f"failed before, and is run again by `retry`: {result.words}"
        return Failed(message=told)
    return Completed(name=None if is_new else "Cached", message=f"held-out loss {result.loss:.4g}")
