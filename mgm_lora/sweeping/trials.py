"""Turns a sweep's definition and the settings into trials: what each one changes, checked before any is run.

A trial's name holds a digest of everything that its training is made from, so that the same training has the same name, today and after a
restart, and another one has another. It doesn't know how trials are run.
"""

import copy
import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from mgm_lora.errors import SettingsError, SweepError
from mgm_lora.settings import Settings, check_settings
from mgm_lora.sweeping.definition import Axis, SweepDefinition, Value

_OF_TRAINING = ("base", "data", "validation", "memory", "training")
_NUM_DRAWS_PER_TRIAL = 20
_DIGITS = 3  # of a drawn value: more tell nothing, and can't be read

Choice = str | float | int | bool
"""What an axis was given, as people read it: a value, or the name of an option."""


@dataclass(frozen=True)
class Trial:
    """One training of a sweep."""

    name: str
    """Of its DVC experiment."""
    arm: str
    seed: int
    choices: Mapping[str, Choice]
    """By axis."""
    entries: Mapping[str, Value]
    """What it changes in params.yaml, by dotted path."""
    settings: Settings
    """All settings with these changes."""

    def __str__(self) -> str:
        return f"{self.arm}, {', '.join(f'{axis} {choice_text(choice)}' for axis, choice in self.choices.items())}"


def make_trials(
    definition: SweepDefinition, *, sweep: str, entries: Mapping[str, Any], code: Mapping[str, str]
) -> list[Trial]:
    """The trials of all arms, in the order that they are run in.

    Args:
        sweep: the definition's name.
        entries: what params.yaml says.
        code: identities of the code and data that a training is made from, by path.

    Raises:
        SweepError: an arm or entry isn't there, or trials are not valid settings (all are named), or change nothing.
    """
    settings = check_settings(entries, source="params.yaml")
    seed = _training_seed(definition, settings=settings)
    problems: list[str] = []
    trials: list[Trial] = []
    for arm in definition.arms:
        if arm not in settings.comparison.arms:
            found = ", ".join(settings.comparison.arms)
            problems.append(f"no arm '{arm}' in comparison.arms ({found}): name it there, or take one of these")
            continue
        try:
            made = _trials_of(definition, sweep=sweep, arm=arm, seed=seed, entries=entries, code=code)
        except SweepError as error:
            problems.append(str(error))
            continue
        trials += made
    if problems:
        raise SweepError("\n".join([f"the sweep '{sweep}' can't be run:", *(f"  - {line}" for line in problems)]))
    return trials


def _training_seed(definition: SweepDefinition, *, settings: Settings) -> int:
    seeds = settings.comparison.seeds
    seed = seeds[0] if definition.training_seed is None else definition.training_seed
    if seed not in seeds:
        raise SweepError(f"training_seed {seed} is none of comparison.seeds ({', '.join(map(str, seeds))})")
    return seed


def _trials_of(
    definition: SweepDefinition,
    *,
    sweep: str,
    arm: str,
    seed: int,
    entries: Mapping[str, Any],
    code: Mapping[str, str],
) -> list[Trial]:
    problems: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    trials: list[Trial] = []
    for picks in _picks(definition, arm=arm):
        changed, changes, choices = _with_picks(picks, arm=arm, entries=entries)
        told = ", ".join(f"{axis} {choice_text(choice)}" for axis, choice in choices.items())
        try:
            settings = check_settings(changed, source="params.yaml with it")
            _check_rate_counts(settings, arm=arm, changes=changes)
        except (SettingsError, SweepError) as error:
            problems.setdefault(str(error), []).append(told)
            continue
        name = f"{sweep}-{arm}-{_digest(settings, arm=arm, seed=seed, evaluate=definition.evaluate, code=code)}"
        if name in seen and definition.search == "grid":
            raise SweepError(f"arm {arm}: '{told}' and '{seen[name]}' are the same training: leave one out")
        if name not in seen:
            seen[name] = told
            trials.append(Trial(name, arm, seed, choices, changes, settings))
        if len(trials) == definition.num_trials:
            break
    if problems:
        raise SweepError("\n".join(f"arm {arm}, {'; '.join(told)}: {why}" for why, told in problems.items()))
    if definition.num_trials is not None and len(trials) < definition.num_trials:
        raise SweepError(
            f"arm {arm}: {definition.num_trials} different trials were asked for, found {len(trials)}: ask for fewer, or vary more"
        )
    return trials


def _picks(definition: SweepDefinition, *, arm: str) -> Iterator[list[tuple[str, Axis, Any]]]:
    """What each axis is given in one trial: an index of its list, or a drawn number."""
    axes = list(definition.vary.items())
    if definition.search == "grid":
        for indices in product(*(range(_size(axis)) for _, axis in axes)):
            yield [(name, axis, index) for (name, axis), index in zip(axes, indices, strict=True)]
        return
    draws = random.Random(f"{definition.search_seed} {arm}")
    assert definition.num_trials is not None
    for _ in range(_NUM_DRAWS_PER_TRIAL * definition.num_trials):
        yield [(name, axis, _draw(axis, draws)) for name, axis in axes]


def _size(axis: Axis) -> int:
    return len(axis.values or axis.times or axis.options or ())


def _draw(axis: Axis, draws: random.Random) -> float | int:
    if axis.uniform:
        return _rounded(draws.uniform(*axis.uniform))
    if axis.log_uniform:
        return _rounded(math.exp(draws.uniform(*map(math.log, axis.log_uniform))))
    return draws.randrange(_size(axis))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _with_picks(
    picks: Sequence[tuple[str, Axis, Any]], *, arm: str, entries: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Value], dict[str, Choice]]:
    """The settings' entries with a trial's changes, these changes, and what they are called."""
    # a copy of the arm alone: arms that take entries from it share them in memory, and must stay as they are
    changed = {
        **entries,
        "arms": {**entries["arms"], arm: copy.deepcopy(entries["arms"][arm])},
        "training": copy.deepcopy(entries["training"]),
    }
    changes: dict[str, Value] = {}
    choices: dict[str, Choice] = {}
    for name, axis, pick in picks:
        given = _given(axis, pick, arm=arm, changed=changed)
        for entry, value in given.items():
            _set(changed, entry, value)
        changes.update(given)
        choices[name] = _choice(axis, pick, given=given)
    return changed, changes, choices


def _given(axis: Axis, pick: Any, *, arm: str, changed: Mapping[str, Any]) -> dict[str, Value]:
    if axis.options is not None:
        chosen = axis.options[list(axis.options)[pick]]
        return {_path(entry, arm=arm): value for entry, value in chosen.items()}
    assert axis.entry is not None
    entry = _path(axis.entry, arm=arm)
    if axis.values is not None:
        return {entry: axis.values[pick]}
    if axis.times is not None:
        of = _path(axis.of, arm=arm) if axis.of else entry
        unit = _get(changed, of)
        if isinstance(unit, bool) or not isinstance(unit, int | float):
            raise SweepError(
                f"{of} is to be multiplied, but params.yaml says {unit!r} there: write a number, or give `values`"
            )
        value = unit * axis.times[pick]
        return {entry: int(value) if isinstance(unit, int) and value == int(value) else _rounded(value)}
    return {entry: pick}


def _path(entry: str, *, arm: str) -> str:
    return f"arms.{arm}.{entry.removeprefix('arm.')}" if entry.startswith("arm.") else entry


def _get(entries: Mapping[str, Any], path: str) -> Any:
    value: Any = entries
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _set(entries: dict[str, Any], path: str, value: Value) -> None:
    *folders, name = path.split(".")
    for folder in folders:
        entries = entries.setdefault(folder, {})
        if not isinstance(entries, dict):
            raise SweepError(f"{path} can't be set: {folder} is no section of params.yaml, but {entries!r}")
    entries[name] = copy.deepcopy(value)


def _choice(axis: Axis, pick: Any, *, given: Mapping[str, Value]) -> Choice:
    if axis.options is not None:
        return str(list(axis.options)[pick])
    if axis.times is not None and axis.of is not None:
        return f"{axis.times[pick]:g}x"
    (value,) = given.values()
    return value if isinstance(value, str | float | int) else json.dumps(value)


def _check_rate_counts(settings: Settings, *, arm: str, changes: Mapping[str, Value]) -> None:
    """A setting without effect is an error, and a sweep over it hours of nothing."""
    if f"arms.{arm}.learning_rate" not in changes:
        return
    of = settings.arm(arm)
    if of.kind == "full":
        has_effect = any(part not in of.learning_rates for part in of.parts)
    else:
        has_effect = any(point.learning_rate is None for point in of.points().values())
    if not has_effect:
        raise SweepError(
            f"arms.{arm}.learning_rate changes nothing, since all that this arm trains has a rate of its own"
            " (training.shared_learning_rate is one): vary that"
        )


def _digest(settings: Settings, *, arm: str, seed: int, evaluate: bool, code: Mapping[str, str]) -> str:
    sections = {name: getattr(settings, name).model_dump(mode="json") for name in _OF_TRAINING}
    sections |= {"arm": settings.arm(arm).model_dump(mode="json")}
    if evaluate:
        sections |= {"evaluation": settings.evaluation.model_dump(mode="json")}
    inputs = json.dumps([arm, seed, sections, dict(code)], sort_keys=True)
    return hashlib.sha256(inputs.encode()).hexdigest()[:12]


def choice_text(choice: Choice) -> str:
    """0.003, 8, all."""
    return f"{choice:g}" if isinstance(choice, float) else str(choice)
