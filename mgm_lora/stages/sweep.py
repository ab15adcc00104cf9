"""`mgm-lora sweep`: runs what waits of a sweep, tells where it stands, and writes the best into params.yaml where that is asked for."""

import json
import time

from rich.console import Console
from rich.table import Table

from mgm_lora.errors import PlanError, SweepError
from mgm_lora.memory.plan import GIB
from mgm_lora.memory.search import make_plan
from mgm_lora.settings import read_entries
from mgm_lora.stages import paths
from mgm_lora.stages.params_file import difference, with_entries, write_checked
from mgm_lora.stages.plan import request_of
from mgm_lora.stages.sweep_runner import PlannedSweep, SweepRunner, open_sweep, plan_sweep, report_files, result_file
from mgm_lora.sweeping.definition import find_definitions, read_definition
from mgm_lora.sweeping.report import outcome_lines
from mgm_lora.sweeping.results import SweepResult, TrialResult
from mgm_lora.sweeping.trials import Trial, choice_text

_NOT_OF_MEMORY = ("learning_rate", "alpha", "dropout", "weight_decay", "warmup_share", "num_epochs", "schedule")


def run(name: str, *, evaluate: bool, retry: bool, apply: bool) -> SweepResult:
    """Runs the trials that wait and prints what was found.

    Raises:
        SweepError: it can't be run, or an arm ends with no trial done.
    """
    with open_sweep(name, evaluate=evaluate, retry=retry) as sweep:
        waiting = sweep.waiting()
        print(_standing(sweep.result), flush=True)
        started = time.monotonic()
        for number, trial in enumerate(waiting):
            _run_one(sweep, trial, started=started, num_before=number, num_left=len(waiting) - number - 1)
        sweep.write()
        print("\n".join(["", *summary_lines(sweep.result)]))
    check_winners(sweep.result)
    if apply:
        print("\n".join(["", *apply_best(sweep.result)]))
    return sweep.result


def show(name: str, *, evaluate: bool, retry: bool) -> None:
    """Prints the trials of a sweep, where each stands, and what the waiting ones will take; runs nothing."""
    planned = plan_sweep(name, evaluate=evaluate, retry=retry)
    print(_standing(planned.result))
    axes = list(planned.definition.vary)
    table = Table("arm", *axes, "state", "planned memory", box=None)
    memory = _PlannedMemory()
    for trial, result in zip(planned.trials, planned.result.trials, strict=True):
        choices = [choice_text(trial.choices[axis]) for axis in axes]
        table.add_row(trial.arm, *choices, result.state, memory.of(trial) if result.state == "waiting" else "")
    Console().print(table)
    print("\n".join(_expected_minutes(planned)))


def list_all() -> None:
    """Prints what sweeps there are."""
    there = {name: read_definition(path).about for name, path in find_definitions(paths.SWEEPS).items()}
    if not there:
        raise SweepError(f"there is no sweep in {paths.SWEEPS}/: docs/sweeps.md says how one is written")
    width = max(map(len, there))
    print("\n".join(f"{name:{width}}  {about}" for name, about in there.items()))


def summary_lines(result: SweepResult) -> list[str]:
    """What was found, for a terminal."""
    lines = [_standing(result)]
    for outcome in result.arms:
        lines += [f"{outcome.arm}: {line}" for line in outcome_lines(outcome, trials=result.of_arm(outcome.arm))]
    failed = [trial for trial in result.trials if trial.state == "failed"]
    if failed:
        lines.append(
            f"{len(failed)} failed, each with its last words in the report; `mgm-lora sweep {result.name} --retry` runs them again"
        )
    files = report_files(result.name)
    return [
        *lines,
        f"report  {files['md']}",
        f"figures {files['json']}",
        *([f"picture {files['png']}"] if files["png"].is_file() else []),
        *([] if result.count("waiting") else [f"result  {result_file(result.name)}, which `dvc repro compare` reads"]),
    ]


def check_winners(result: SweepResult) -> None:
    """Raises SweepError where all trials of an arm failed."""
    without = [outcome.arm for outcome in result.arms if outcome.best is None]
    if without:
        raise SweepError(
            f"no trial of {', '.join(without)} came to its end: {report_files(result.name)['md']} has the last words of each"
        )


def apply_best(result: SweepResult) -> list[str]:
    """Writes the best trial of each arm into params.yaml, comments and anchors kept, and returns what changed; raises as `write_checked` does."""
    check_winners(result)
    best = [result.trial(outcome.best) for outcome in result.arms if outcome.best]
    entries = {entry: value for trial in best for entry, value in trial.entries.items()}
    arms_before = read_entries(paths.PARAMS)["arms"]
    before, after = with_entries(paths.PARAMS, entries=entries)
    if before == after:
        return [f"{paths.PARAMS} is as the best trials say already"]
    write_checked(paths.PARAMS, text=after)
    arms = read_entries(paths.PARAMS)["arms"]
    named = {trial.arm for trial in best}
    followers = [name for name, entry in arms.items() if entry != arms_before[name] and name not in named]
    lines = [
        *difference(before, after),
        f"written to {paths.PARAMS}; `dvc repro` restores these trainings, it doesn't run them again",
    ]
    if followers:
        lines.append(f"these take entries from them, and changed too: {', '.join(followers)}")
    return lines


def _run_one(sweep: SweepRunner, trial: Trial, *, started: float, num_before: int, num_left: int) -> None:
    place = f"[{len(sweep.result.trials) - sweep.result.count('waiting') + 1}/{len(sweep.result.trials)}]"
    print(f"\n{place} {trial}", flush=True)
    result = sweep.run(trial, on_line=lambda line: print(f"  {line}", flush=True))
    seconds_each = (time.monotonic() - started) / (num_before + 1)
    left = f"; about {seconds_each * num_left / 60:.0f} min left" if num_left else ""
    print(f"{place} {_outcome(result, sweep.result)}{left}", flush=True)


def _outcome(trial: TrialResult, result: SweepResult) -> str:
    if trial.state == "failed":
        return f"failed: {trial.words}"
    is_best = any(outcome.best == trial.name for outcome in result.arms)
    return f"held-out loss {trial.loss:.4g}{f', the best of {trial.arm} so far' if is_best else ''}"


def _standing(result: SweepResult) -> str:
    counts = ", ".join(f"{result.count(state)} {state}" for state in ("done", "failed", "waiting"))
    return f"sweep {result.name}: {len(result.trials)} trials, {counts}"


class _PlannedMemory:
    """Plans of trials, each traced once: rates don't change what a step holds."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, trial: Trial) -> str:
        of_memory = {name: v for name, v in trial.entries.items() if name.rpartition(".")[2] not in _NOT_OF_MEMORY}
        key = json.dumps([trial.arm, of_memory], sort_keys=True)
        if key not in self._known:
            self._known[key] = _planned_memory(trial)
        return self._known[key]


def _planned_memory(trial: Trial) -> str:
    if not (paths.SAMPLES / "train.parquet").is_file():
        return "after `dvc repro validate`"
    try:
        return f"{make_plan(request_of(trial.settings, arm=trial.arm)).total_bytes / GIB:.2f} GiB"
    except PlanError as error:
        return f"doesn't fit: {error}"


def _expected_minutes(planned: PlannedSweep) -> list[str]:
    """From the last training of each arm, where there is one."""
    lines = []
    for arm in planned.definition.arms:
        num_waiting = sum(trial.state == "waiting" for trial in planned.result.of_arm(arm))
        path = paths.TRAIN_METRICS / f"{paths.run_name(arm, planned.trials[0].seed)}.json"
        if num_waiting and path.is_file():
            minutes = json.loads(path.read_text(encoding="utf-8"))["minutes"]
            lines.append(
                f"{arm} trained for {minutes:.1f} min: {num_waiting} trials will train for about {minutes * num_waiting:.0f} min"
            )
        elif num_waiting:
            lines.append(
                f"{arm}: {num_waiting} trials; how long each takes isn't known before {path} is there (`dvc repro`)"
            )
    return lines
