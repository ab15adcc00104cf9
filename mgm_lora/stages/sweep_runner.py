"""A sweep that is going on: which trials wait, running one, and writing down what came of it after each.

What is done is asked of the experiments that the project has; what failed, of the sweep's own report. So a sweep that is killed at any moment goes on
where it was, and a trial that ran to its end is not run again. It doesn't know who calls it: the command line or a flow.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mgm_lora.artifacts import MANIFEST_NAME
from mgm_lora.errors import RegistryError, SweepError, TrialInterruptedError
from mgm_lora.registry.store import open_store, telling_store_errors
from mgm_lora.registry.sweep_runs import History, write_sweep_runs
from mgm_lora.run_names import trained_params
from mgm_lora.settings import SeededTraining, read_entries, read_settings
from mgm_lora.stages import paths
from mgm_lora.stages.experiments import (
    ExperimentEnd,
    Project,
    ProjectCopy,
    find_experiments,
    open_project,
    read_committed,
)
from mgm_lora.stages.pipeline_inputs import changed_data, changed_since_commit, committed_inputs
from mgm_lora.sweeping.definition import SweepDefinition, find_definitions, read_definition
from mgm_lora.sweeping.report import write_report
from mgm_lora.sweeping.results import Asked, AxisInfo, SweepResult, TrialResult, judge, read_sweep, write_sweep
from mgm_lora.sweeping.trials import Trial, make_trials

logger = logging.getLogger(__name__)
_OF_A_TRIAL = ("plan", "train", "evaluate")
_MACHINE = 4  # the exit code of a full disk, a missing permission, a card that is taken


@dataclass(frozen=True)
class PlannedSweep:
    """A definition and its trials in this project, before anything is run."""

    name: str
    definition: SweepDefinition
    project: Project
    trials: tuple[Trial, ...]
    result: SweepResult
    """As far as earlier runs have come."""


def plan_sweep(name: str, *, evaluate: bool = False, retry: bool = False) -> PlannedSweep:
    """Reads and checks all that a sweep of the current folder's project needs.

    Args:
        name: of a file under sweeps/, without its ending.
        evaluate: ask trials the questions too, also where the definition doesn't say so.
        retry: let trials that failed by themselves wait again.

    Raises:
        SweepError: there is no such sweep, or it can't be run here; all reasons that are of one kind are named.
        SettingsError: params.yaml isn't valid.
    """
    definition = _find(name)
    if evaluate:
        definition = SweepDefinition.model_validate({**dict(definition), "evaluate": True})
    project = open_project(Path.cwd())
    inputs = committed_inputs(project.root, stage=_stage(definition))
    _check_committed(project, inputs=inputs)
    entries = read_entries(paths.PARAMS)
    trials = make_trials(definition, sweep=name, entries=entries, code=inputs)
    result = _found(name, definition=definition, project=project, trials=trials, retry=retry)
    return PlannedSweep(name, definition, project, tuple(trials), result)


@contextmanager
def open_sweep(name: str, *, evaluate: bool = False, retry: bool = False) -> Iterator["SweepRunner"]:
    """A sweep that nobody else runs during the block; raises as `plan_sweep` does, and where another process runs it."""
    planned = plan_sweep(name, evaluate=evaluate, retry=retry)
    folder = paths.SWEEP_COPIES / name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            copy = ProjectCopy(planned.project, folder=folder / "project")
            copy.make_ready(base=read_settings(paths.PARAMS).base)
            copy.hand_over([trial.name for trial in planned.trials])
            # again: what a killed sweep had finished and not handed over is there now
            yield SweepRunner(plan_sweep(name, evaluate=evaluate, retry=retry), copy=copy, logs=folder / "logs")
    except Timeout as error:
        raise SweepError(f"the sweep '{name}' is being run by another process: wait until it has ended") from error


class SweepRunner:
    """Runs the trials that wait, one at a time."""

    def __init__(self, planned: PlannedSweep, *, copy: ProjectCopy, logs: Path) -> None:
        self.name = planned.name
        self.trials = planned.trials
        self.result = planned.result
        """As it stands."""
        self._planned = planned
        self._copy = copy
        self._logs = logs
        self._histories: dict[str, History] = {}

    def waiting(self) -> list[Trial]:
        """The trials that are still to be run, in order."""
        states = {trial.name: trial.state for trial in self.result.trials}
        return [trial for trial in self.trials if states[trial.name] == "waiting"]

    def run(self, trial: Trial, *, on_line: Callable[[str], None]) -> TrialResult:
        """Runs one trial and writes down what came of it; one that fails by itself is a result too.

        Raises:
            TrialInterruptedError: it ended for a reason of the machine's, or before its own stages; it waits still.
        """
        definition = self._planned.definition
        with self._logged(trial, on_line=on_line) as take:
            target = f"{_stage(definition)}@{paths.run_name(trial.arm, trial.seed)}"
            end = self._copy.run(trial.name, entries=trial.entries, targets=[target], on_line=take)
        result = self._judged(trial, end=end)
        if result.state == "done":
            history = paths.TRAINED / paths.run_name(trial.arm, trial.seed) / "history.json"
            self._histories[trial.name] = self._copy.read_json(history)
        trials = [result if each.name == trial.name else each for each in self.result.trials]
        asked = self._asked(trial) if result.scores else self.result.asked
        self.result = _result(
            self.name, definition=definition, project=self._planned.project, trials=trials, asked=asked
        )
        self.write()
        return result

    def write(self) -> None:
        """Writes the report and MLflow's runs, and where no trial waits the result that the comparison reads.

        A store that can't be reached is told, and costs nothing else.
        """
        files = report_files(self.name)
        write_sweep(self.result, files["json"])
        write_report(self.result, markdown=files["md"], picture=files["png"])
        if not self.result.count("waiting"):
            write_sweep(self.result, result_file(self.name))
        try:
            registry = read_settings(paths.PARAMS).registry
            with telling_store_errors("write the sweep's runs", registry=registry):
                write_sweep_runs(
                    open_store(registry),
                    result=self.result,
                    params={trial.name: _params(trial) for trial in self.trials},
                    histories=self._histories,
                    files=list(files.values()),
                )
        except RegistryError as error:
            logger.warning(
                "the sweep's runs are not in MLflow: %s. `mgm-lora sweep %s` writes them when run again",
                error,
                self.name,
            )

    def _asked(self, trial: Trial) -> Asked:
        """As the scores that the trial has just left say it."""
        manifest = self._copy.read_json(paths.SCORES / paths.run_name(trial.arm, trial.seed) / MANIFEST_NAME)
        return Asked(
            samples=manifest["parents"]["samples"],
            base=manifest["base"]["digest"],
            evaluation=manifest["settings"]["evaluation"],
        )

    def _judged(self, trial: Trial, *, end: ExperimentEnd) -> TrialResult:
        if end.failed_stage is None:
            commit = find_experiments(self._planned.project.root)[trial.name]
            return _done(
                trial, commit=commit, root=self._planned.project.root, evaluate=self._planned.definition.evaluate
            )
        if end.failed_stage not in _OF_A_TRIAL or end.exit_code == _MACHINE:
            of = f"stage '{end.failed_stage}'" if end.failed_stage else "dvc"
            raise TrialInterruptedError(
                f"the trial '{trial}' was ended by {of}, for no reason of its own, so the sweep stops here; what is done is kept."
                f" Mend it, and run the same again. Its last words:\n{end.words}"
            )
        return _of(trial, state="failed", exit_code=end.exit_code, words=end.words)

    @contextmanager
    def _logged(self, trial: Trial, *, on_line: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
        self._logs.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"{trial.name}.log").open("w", encoding="utf-8") as log:

            def take(line: str) -> None:
                print(line, file=log, flush=True)
                on_line(line)

            yield take


def report_files(name: str) -> dict[str, Path]:
    """Where a sweep's report lies, by kind of file: json, md, png."""
    return {kind: paths.SWEEP_REPORTS / f"{name}.{kind}" for kind in ("json", "md", "png")}


def result_file(name: str) -> Path:
    """Where the result of a sweep lies in which no trial waits."""
    return paths.SWEEP_RESULTS / f"{name}.json"


def _params(trial: Trial) -> dict[str, str]:
    """What its run is told apart by; a step's choices that are the plan's stay `auto` where its training didn't tell them."""
    training = SeededTraining(**dict(trial.settings.training), seed=trial.seed)
    return trained_params(trial.arm, arm=trial.settings.arm(trial.arm), training=training, step={})


def _find(name: str) -> SweepDefinition:
    there = find_definitions(paths.SWEEPS)
    if name not in there:
        raise SweepError(
            f"no sweep '{name}', {paths.SWEEPS}/ has {', '.join(there) or 'none'}: docs/sweeps.md says how one is written"
        )
    return read_definition(there[name])


def _stage(definition: SweepDefinition) -> str:
    return "evaluate" if definition.evaluate else "train"


def _check_committed(project: Project, *, inputs: Mapping[str, str]) -> None:
    changed = changed_since_commit(project.root, [*inputs, str(paths.PARAMS), "dvc.yaml"])
    if changed:
        shown = ", ".join(changed[:8]) + (f" and {len(changed) - 8} more" if len(changed) > 8 else "")
        raise SweepError(
            f"trials start from the last commit, and what they are made from differs from it: {shown}. Commit it, or take it back, then run again"
        )
    data = changed_data(project.root, [path for path in inputs if path.endswith(".dvc")])
    if data:
        raise SweepError(
            f"the data of {', '.join(data)} changed since `dvc add`, and trials learn from what was added: `dvc add` and commit it, or `dvc checkout`"
        )


def _found(
    name: str, *, definition: SweepDefinition, project: Project, trials: Sequence[Trial], retry: bool
) -> SweepResult:
    experiments = find_experiments(project.root)
    before = _read_before(name)
    failed = {} if retry or before is None else _failed_before(before)
    found = []
    for trial in trials:
        if trial.name in experiments:
            found.append(_done(trial, commit=experiments[trial.name], root=project.root, evaluate=definition.evaluate))
        else:
            found.append(failed.get(trial.name, _of(trial)))
    asked = _asked_before(before, trials=found) if before else None
    return _result(name, definition=definition, project=project, trials=found, asked=asked)


def _read_before(name: str) -> SweepResult | None:
    """What an earlier run has written down."""
    path = report_files(name)["json"]
    if not path.is_file():
        return None
    try:
        return read_sweep(path)
    except SweepError as error:
        logger.warning("%s; trials that failed are run again", error)
        return None


def _failed_before(before: SweepResult) -> dict[str, TrialResult]:
    """Trials that failed by themselves, as the report says; what was killed waits again."""
    return {trial.name: trial for trial in before.trials if trial.state == "failed" and trial.is_final}


def _asked_before(before: SweepResult, *, trials: Sequence[TrialResult]) -> Asked | None:
    """A trial's name stands for its data, base and evaluation: where one is there still, what it was asked holds for all."""
    names = {trial.name for trial in before.trials if trial.scores}
    return before.asked if any(trial.name in names for trial in trials) else None


def _result(
    name: str,
    *,
    definition: SweepDefinition,
    project: Project,
    trials: Sequence[TrialResult],
    asked: Asked | None = None,
) -> SweepResult:
    return SweepResult(
        name=name,
        about=definition.about,
        search=definition.search,
        evaluate=definition.evaluate,
        commit=project.commit,
        axes=tuple(AxisInfo(name=axis, entry=of.entry) for axis, of in definition.vary.items()),
        trials=tuple(trials),
        arms=judge(definition.arms, trials),
        asked=asked,
    )


def _of(trial: Trial, **found: Any) -> TrialResult:
    """The trial as a result: waiting, or with what was found."""
    return TrialResult(
        name=trial.name,
        arm=trial.arm,
        seed=trial.seed,
        choices=dict(trial.choices),
        entries=dict(trial.entries),
        **found,
    )


def _done(trial: Trial, *, commit: str, root: Path, evaluate: bool) -> TrialResult:
    run = f"{paths.run_name(trial.arm, trial.seed)}.json"
    figures = read_committed(root, commit=commit, path=paths.TRAIN_METRICS / run)
    scores = read_committed(root, commit=commit, path=paths.SCORE_METRICS / run) if evaluate else {}
    if figures is None or scores is None:
        raise SweepError(
            f"the experiment '{trial.name}' of an earlier run has no metrics of its training: `dvc exp remove {trial.name}`, then run again"
        )
    return _of(trial, state="done", figures=figures, scores=_flat(scores), commit=commit)


def _flat(scores: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}
