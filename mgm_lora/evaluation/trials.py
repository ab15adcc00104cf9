"""Trials of sweeps beside the arms: which of them can be set beside these, and which can't, each with its reason.

A trial stands beside the arms only where it began with the same base, learned from the same samples, and was asked the same questions in the same
way. It reads the results that sweeps have left, and doesn't know how trials are run or drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from mgm_lora.evaluation.formatting import arm_label, memory
from mgm_lora.sweeping.report import choices_text
from mgm_lora.sweeping.results import LOSS, Asked, SweepResult, TrialResult, read_sweep

_FAILED = "failed"
_MAX_WORDS = 300
_NOT_OF_SCORES = ("batch_size",)  # of evaluation: how many questions are asked at once


@dataclass(frozen=True)
class ShownTrial:
    """One training of a sweep, beside the arms."""

    sweep: str
    arm: str
    choices: str
    """What it differs in: `rank 8, points all`."""
    seed: int
    is_best: bool
    """Of its sweep and arm, by held-out loss."""
    heldout_loss: float
    score: float
    low: float
    high: float
    """The ends of the score's interval."""
    trainable_parameters: int | None
    step_memory_gib: float | None
    """What a step on the largest batch held; none where it was not tried."""
    planned_memory_gib: float | None
    """What the plan says of it."""
    minutes: float | None

    @property
    def label(self) -> str:
        """`LoRA, rank 8, points all`."""
        return f"{arm_label(self.arm)}, {self.choices}"


@dataclass(frozen=True)
class LeftOut:
    """Trials of one sweep that are not shown, for one reason."""

    sweep: str
    reason: str
    trials: tuple[str, ...]
    """As they are labelled, each followed by what is its own."""


@dataclass(frozen=True)
class Trials:
    """All trials of all sweeps that have come to their end."""

    shown: tuple[ShownTrial, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def num_left_out(self) -> int:
        """How many trials are not shown."""
        return sum(len(group.trials) for group in self.left_out)


def read_trials(folder: Path | None, *, arms: Sequence[str], asked: Asked) -> Trials:
    """Reads every sweep's result in a folder; none, or a folder that isn't there, has no trials.

    Args:
        folder: holds a file per sweep.
        arms: what is compared.
        asked: what these began with, learned from, and were asked.

    Raises:
        SweepError: a file there is no sweep's result.
    """
    shown: list[ShownTrial] = []
    left_out: list[LeftOut] = []
    for path in sorted(folder.glob("*.json")) if folder else ():
        result = read_sweep(path)
        groups: dict[str, list[str]] = {}
        for trial in result.trials:
            reason, words = _why_not(trial, result=result, arms=arms, asked=asked)
            if reason:
                label = f"{arm_label(trial.arm)}, {choices_text(trial)}"
                groups.setdefault(reason, []).append(f"{label}: {words}" if words else label)
            else:
                shown.append(_shown(trial, result=result))
        left_out += [LeftOut(result.name, reason, tuple(trials)) for reason, trials in groups.items()]
    return Trials(tuple(sorted(shown, key=_order)), tuple(left_out))


def _order(trial: ShownTrial) -> tuple[str, str, float]:
    """Each sweep's arms together, the best by loss first."""
    return trial.sweep, trial.arm, trial.heldout_loss


def trials_told(trials: Trials) -> str:
    """How many are shown, and how many not, in a sentence or two."""
    of = " and ".join(dict.fromkeys(trial.sweep for trial in trials.shown))
    seeds = " and ".join(str(seed) for seed in sorted({trial.seed for trial in trials.shown}))
    lines = []
    if trials.shown:
        lines.append(
            f"{_counted(len(trials.shown))} of {of}, trained with seed {seeds}: the same base, samples and questions as the arms."
        )
    if trials.left_out:
        lines.append(f"{_counted(trials.num_left_out)} left out:")
    return " ".join(lines)


def group_told(group: LeftOut) -> str:
    """`2 trials of ranks: failed (LoRA, rank 64: out of memory; ...)`; trials are named where each has words of its own."""
    told = f"{_counted(len(group.trials))} of {group.sweep}: {group.reason}"
    return f"{told} ({'; '.join(group.trials)})" if group.reason == _FAILED else told


def trial_memory(trial: ShownTrial) -> str:
    """`132 MiB`, or `140 MiB, planned` where no such step was tried."""
    if trial.step_memory_gib is None and trial.planned_memory_gib is not None:
        return f"{memory(trial.planned_memory_gib)}, planned"
    return memory(trial.step_memory_gib)


def _counted(number: int) -> str:
    return f"{number} trial{'' if number == 1 else 's'}"


def _why_not(trial: TrialResult, *, result: SweepResult, arms: Sequence[str], asked: Asked) -> tuple[str, str]:
    """Why a trial isn't shown, and its own words to it; two empty texts where it is."""
    if trial.state == "failed":
        return _FAILED, shorten(trial.words, _MAX_WORDS, placeholder="…")
    if trial.state == "waiting":
        return "not run yet", ""
    if "score" not in trial.scores:
        how = f"mgm-lora sweep {result.name} --evaluate asks them"
        return f"no score, only a loss, since the sweep asked no questions ({how})", ""
    if trial.arm not in arms:
        return "its arm is not compared here", ""
    return "; ".join(_differences(result.asked, asked)), ""


def _differences(theirs: Asked | None, ours: Asked) -> Iterator[str]:
    if theirs is None:
        yield (
            "its file doesn't say what was asked"
            " (take one trial away by dvc exp remove and run the sweep again: DVC restores it, and it is written)"
        )
        return
    if theirs.base != ours.base:
        yield "began with another base"
    if theirs.samples != ours.samples:
        yield "learned from other samples, or was asked other questions"
    names = dict.fromkeys([*ours.evaluation, *theirs.evaluation])
    differing = [
        name
        for name in names
        if name not in _NOT_OF_SCORES and theirs.evaluation.get(name) != ours.evaluation.get(name)
    ]
    if differing:
        yield f"was scored in another way (evaluation.{', evaluation.'.join(differing)})"


def _shown(trial: TrialResult, *, result: SweepResult) -> ShownTrial:
    score, figures = trial.scores["score"], trial.figures
    parameters = figures.get("trainable_parameters")
    return ShownTrial(
        sweep=result.name,
        arm=trial.arm,
        choices=choices_text(trial),
        seed=trial.seed,
        is_best=any(outcome.best == trial.name for outcome in result.arms),
        heldout_loss=figures[LOSS],
        score=score,
        low=trial.scores.get("score_low", score),
        high=trial.scores.get("score_high", score),
        trainable_parameters=None if parameters is None else int(parameters),
        step_memory_gib=figures.get("step_memory_gib"),
        planned_memory_gib=figures.get("planned_memory_gib"),
        minutes=figures.get("minutes"),
    )
