"""What a sweep has found, as `reports/sweeps/NAME.json` holds it: every trial with its settings, figures and state, and who is best.

The file is the place to read a sweep from (`read_sweep`): `trial.figures` bears the names of metrics/train, `trial.scores` those of
metrics/scores. It holds no clock time, and is written anew after every trial. Once no trial waits it is in `sweeps/results` too, which git tracks
and the comparison reads. It doesn't know how trials are run.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mgm_lora.artifacts import new_file, write_json
from mgm_lora.errors import SweepError
from mgm_lora.sweeping.trials import Choice

LOSS = "heldout_loss"
_OWN_VERDICT = (2, 3, 5)
"""Exit codes of a stage that speak of the settings (bad input, a proof that didn't hold, too much memory), not of the machine."""


class TrialResult(BaseModel):
    """One training of a sweep, and what came of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Of its DVC experiment: `dvc exp show` lists it where it is done, `dvc exp apply` takes it over."""
    arm: str
    seed: int
    choices: dict[str, Choice]
    """What each axis was given."""
    entries: dict[str, Any]
    """What differs from params.yaml, by dotted path."""
    state: Literal["waiting", "done", "failed"] = "waiting"
    exit_code: int | None = None
    """Of the stage that failed; below 0: the signal that ended it."""
    words: str = ""
    """The last words of a trial that failed."""
    figures: dict[str, float] = {}
    """metrics/train of a trial that is done: heldout_loss, minutes, step_memory_gib, trainable_parameters, and so on."""
    scores: dict[str, float] = {}
    """metrics/scores, where the sweep evaluates: score with score_low and score_high, known, and so on."""
    commit: str | None = None
    """The experiment's."""

    @property
    def loss(self) -> float:
        """The held-out loss of a trial that is done."""
        return self.figures[LOSS]

    @property
    def is_final(self) -> bool:
        """Whether running it again would tell nothing new; what was killed, or met a full disk, is tried again."""
        return self.state == "done" or (self.state == "failed" and self.exit_code in _OWN_VERDICT)


class AxisInfo(BaseModel):
    """What was varied."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    entry: str | None
    """As the definition names it; none where an option changes several."""


class ArmOutcome(BaseModel):
    """What a sweep says of one arm."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    best: str | None
    """The name of the trial with the lowest held-out loss; none while there is none. Of equals the one with the fewest parameters, then the first."""
    ties: tuple[str, ...]
    """Others with the same loss."""
    at_the_edge: dict[str, Literal["lowest", "highest"]]
    """Axes of numbers on which the best trial lies at an end of what was tried: better ones may lie beyond."""


class Asked(BaseModel):
    """What all trials of a sweep that evaluates were asked, and what they began with: only with others of the same can their scores be compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: str
    """Digest of the `SampleTable`: what was learned from, and the questions."""
    base: str
    """Digest of the base model."""
    evaluation: dict[str, Any]
    """The section `evaluation` of the settings."""


class SweepResult(BaseModel):
    """A sweep as far as it has come."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    about: str
    search: Literal["grid", "random"]
    evaluate: bool
    commit: str
    """Of the project that the trials start from."""
    axes: tuple[AxisInfo, ...]
    trials: tuple[TrialResult, ...]
    arms: tuple[ArmOutcome, ...]
    asked: Asked | None = None
    """None where no trial was asked anything yet."""

    def of_arm(self, arm: str) -> tuple[TrialResult, ...]:
        """The arm's trials."""
        return tuple(trial for trial in self.trials if trial.arm == arm)

    def trial(self, name: str) -> TrialResult:
        """The trial of that name."""
        return next(trial for trial in self.trials if trial.name == name)

    def count(self, state: str) -> int:
        """How many trials are in a state."""
        return sum(trial.state == state for trial in self.trials)


def judge(arms: Sequence[str], trials: Sequence[TrialResult]) -> tuple[ArmOutcome, ...]:
    """Who is best of each arm, as far as trials are done."""
    return tuple(_judge(arm, [trial for trial in trials if trial.arm == arm]) for arm in arms)


def write_sweep(result: SweepResult, path: Path) -> None:
    """Writes the file."""
    with new_file(path) as temporary:
        write_json(temporary, result.model_dump(mode="json"))


def read_sweep(path: Path) -> SweepResult:
    """Reads the file; raises SweepError where it is none."""
    try:
        return SweepResult.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise SweepError(f"'{path}' holds no sweep's result ({error}): `mgm-lora sweep` writes it anew") from error


def _judge(arm: str, trials: Sequence[TrialResult]) -> ArmOutcome:
    done = [trial for trial in trials if trial.state == "done"]
    if not done:
        return ArmOutcome(arm=arm, best=None, ties=(), at_the_edge={})
    best = min(done, key=lambda trial: (trial.loss, trial.figures.get("trainable_parameters", 0)))
    ties = tuple(trial.name for trial in done if trial.loss == best.loss and trial is not best)
    return ArmOutcome(arm=arm, best=best.name, ties=ties, at_the_edge=dict(_edges(best, trials)))


def _edges(best: TrialResult, trials: Sequence[TrialResult]) -> Iterator[tuple[str, Literal["lowest", "highest"]]]:
    """Axes of at least two numbers; trials that failed count too: there is no better one beyond these."""
    for axis, choice in best.choices.items():
        values = sorted({value for trial in trials if (value := _number(trial.choices, axis)) is not None})
        if len(values) < 2 or _number(best.choices, axis) is None:
            continue
        if choice == values[0]:
            yield axis, "lowest"
        elif choice == values[-1]:
            yield axis, "highest"


def _number(choices: Mapping[str, Choice], axis: str) -> float | None:
    value = choices[axis]
    return None if isinstance(value, bool | str) else float(value)
