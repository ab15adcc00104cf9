"""The whole pipeline as a Prefect flow: what `dvc repro` does, one task run per stage.

`python -m flows.pipeline` runs it here and now. Where no server is configured (PREFECT_API_URL), Prefect starts one for
the time of the run. The flow asks DVC for the stages and their order, so a stage that is added to `dvc.yaml` appears
with no change here. It knows no stage by name.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State, StateDetails
from prefect.context import FlowRunContext
from prefect.settings import get_current_settings
from prefect.states import Completed, Failed
from prefect.utilities.urls import url_for

from flows.worker_process import MLFLOW_PAGES, end_with_worker
from mgm_lora.errors import ServiceError
from tasks.dag import Plan, Stage, make_plan
from tasks.elsewhere import check_elsewhere, run_stage_elsewhere
from tasks.showing import show_mlflow
from tasks.stages import leave_out_stage, run_stage


@flow(persist_result=False)
def pipeline(
    stages: tuple[str, ...] = (), force: bool = False, pull: bool = True, card_pool: str | None = None
) -> State[Any]:
    """Brings the stages of dvc.yaml up to date, in the order that DVC gives.

    Args:
        stages: Only these stages and what they need; empty for all. A matrix's name stands for all of its stages.
        force: Run each of them, also where nothing changed.
        pull: Get missing data from the DVC remote, where one is configured.
        card_pool: The work pool of another machine that has the card: stages that ask for it are run there. Empty: all run here.
    """
    return run_stages(stages, force=force, pull=pull, card_pool=card_pool)


def run_stages(targets: Sequence[str], *, force: bool, pull: bool, card_pool: str | None = None) -> State[Any]:
    """The body of every flow here: plans, runs each stage as a task, and says how it went. To be called in a flow."""
    end_with_worker()
    plan = make_plan(Path.cwd(), targets=targets)
    get_run_logger().info("stages, in order: %s", ", ".join(stage.name for stage in plan.stages))
    run = _runner(plan, force=force, pull=pull, card_pool=card_pool)
    states: dict[str, State[Any]] = {}
    causes: dict[str, str] = {}  # of the stages that are not up to date: which one failed, itself or one that it needs
    for stage in plan.stages:
        cause = next((causes[need] for need in stage.needs if need in causes), None)
        wait_for = [_edge_from(states[need]) for need in stage.needs]
        if cause:
            state = leave_out_stage(stage, because_of=cause, wait_for=wait_for, return_state=True)
        else:
            state = run(stage, wait_for)
        states[stage.name] = state
        if not state.is_completed():
            causes[stage.name] = cause or stage.name
    if address := os.environ.get(MLFLOW_PAGES):
        show_mlflow(address)
    return _conclude(states)


def _runner(
    plan: Plan, *, force: bool, pull: bool, card_pool: str | None
) -> Callable[[Stage, Sequence[State[Any]]], State[Any]]:
    """How each stage is run: here, or, where it asks for the card and the card is elsewhere, there."""
    pool = _elsewhere(card_pool)
    if pool and any(stage.card for stage in plan.stages):
        check_elsewhere(plan, pool=pool, may_pull=pull)

    def run(stage: Stage, wait_for: Sequence[State[Any]]) -> State[Any]:
        if pool and stage.card:
            return run_stage_elsewhere(
                stage, root=plan.root, pool=pool, force=force, wait_for=wait_for, return_state=True
            )
        pull_here = pull and plan.has_remote
        return run_stage(stage, root=plan.root, force=force, pull=pull_here, wait_for=wait_for, return_state=True)

    return run


def _elsewhere(card_pool: str | None) -> str | None:
    """The pool, unless this very run was taken from it: then the card is here, and to wait for the pool would be for ever."""
    context = FlowRunContext.get()
    is_here = context and context.flow_run and context.flow_run.work_pool_name == card_pool
    return None if is_here else card_pool or None


def _edge_from(state: State[Any]) -> State[Any]:
    """Lets Prefect draw the DAG without judging by it: of its own it would leave what follows on NotRun waiting for ever."""
    return Completed(data="edge", state_details=StateDetails(task_run_id=state.state_details.task_run_id))


def _conclude(states: Mapping[str, State[Any]]) -> State[Any]:
    counts = ", ".join(f"{count} {name}" for name, count in Counter(state.name for state in states.values()).items())
    failed = {name: state for name, state in states.items() if not state.is_completed() and not state.is_cancelled()}
    if not failed:
        return Completed(message=counts or "no stages")
    words = "\n\n".join(str(state.message) for state in failed.values())
    return Failed(message=f"{', '.join(failed)} failed ({counts})\n\n{words}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: runs the pipeline in this process; 0 where it ended well, 4 where there is no server, else 1."""
    options = _parse(arguments)
    try:
        _check_server()
    except ServiceError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    state = pipeline(
        tuple(options.stage), force=options.force, pull=options.pull, card_pool=options.card_pool, return_state=True
    )
    print(f"\npipeline: {state.name}. {state.message}\n{_where_to_look(state)}")
    return 0 if state.is_completed() else 1


def _check_server() -> None:
    """That the server which is configured is there; of its own Prefect says so in a hundred lines."""
    address = get_current_settings().api.url
    if not address:
        return
    try:
        httpx.get(f"{address}/health", timeout=30).raise_for_status()
    except httpx.HTTPError as error:
        raise ServiceError(
            f"Prefect's server at {address} (PREFECT_API_URL) doesn't answer: {error}. Start it (`mgm-lora up`), or unset PREFECT_API_URL:"
            " a server is started for the time of the run then. `dvc repro` needs none"
        ) from error


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.pipeline",
        description="Does what `dvc repro` does, as a Prefect flow: a task run per stage of dvc.yaml, with its lines, metrics and reports. "
        "Unchanged stages are Cached. Run it in the repository's root.",
        epilog="Shown in the UI of the server that PREFECT_API_URL names. Without one, Prefect starts its own for the time of the run, and "
        "keeps the record: `prefect server start` shows it later. Ends with 0 where all stages are up to date, else with 1.",
    )
    parser.add_argument(
        "--stage",
        action="append",
        default=[],
        metavar="NAME",
        help="only this stage and what it needs, e.g. validate, train@lora-17, or train for all arms and seeds; can be given several times",
    )
    parser.add_argument("--force", action="store_true", help="run every stage of them, also where nothing changed")
    parser.add_argument(
        "--pull",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="get missing data from the DVC remote, if one is configured (default: %(default)s)",
    )
    parser.add_argument(
        "--card-pool",
        metavar="POOL",
        help="have stages that ask for the card run by the worker of this work pool, on another machine (default: all run here)",
    )
    return parser.parse_args(arguments)


def _where_to_look(state: State[Any]) -> str:
    run_id = state.state_details.flow_run_id
    if run_id is None:
        return "The run could not be recorded: see the lines above."
    if get_current_settings().api.url:
        return f"Look at it: {url_for('flow-run', run_id)}"
    return (
        f"Look at it: prefect flow-run logs {run_id}\n"
        f"or `prefect server start`, then {url_for('flow-run', run_id, default_base_url='http://127.0.0.1:4200')}"
    )


if __name__ == "__main__":
    sys.exit(main())
