"""What a sweep is: a file under `sweeps/` that names arms, the entries of `params.yaml` to vary, and how they are searched.

Typed, every mistake of the file named in one error. It doesn't know the settings: whether an arm has such an entry is seen when the trials are made.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mgm_lora.errors import SweepError
from mgm_lora.sections import Section

_ENTRY = r"^(arm|training)(\.[a-z][a-z0-9_]*)+$"
_MEASURES = {"training.num_evaluation_samples": "the held-out loss would be taken on other samples in each trial"}
EntryPath = Annotated[str, Field(pattern=_ENTRY)]
"""Dotted, as in params.yaml; `arm` stands for the arm that is searched: arm.learning_rate, arm.language_mlp.rank, training.warmup_share."""
Value = float | int | str | bool | list[Any] | dict[str, Any] | None
Bounds = Annotated[tuple[float, float], Field(strict=False)]


class Axis(Section):
    """One thing that is varied. Exactly one of `values`, `times`, `options`, `uniform` and `log_uniform` says how."""

    entry: EntryPath | None = None
    """What is varied; options name their entries themselves."""
    values: tuple[Value, ...] | None = Field(default=None, strict=False, min_length=1)
    """What the entry is given."""
    times: tuple[float, ...] | None = Field(default=None, strict=False, min_length=1)
    """Multiples that it is given, of itself as params.yaml says it, or of what `of` names."""
    of: EntryPath | None = None
    """Another entry, as the axes before this one left it: arm.alpha at 1 and 2 times arm.rank."""
    options: dict[str, dict[EntryPath, Value]] | None = Field(default=None, min_length=1)
    """Entries that belong together, by the name of the choice."""
    uniform: Bounds | None = None
    """Lowest and highest value; drawn at random."""
    log_uniform: Bounds | None = None
    """Likewise, evenly in the logarithm: for rates."""

    @property
    def is_drawn(self) -> bool:
        """Whether it has no finite list of values."""
        return self.uniform is not None or self.log_uniform is not None

    @property
    def entries(self) -> tuple[str, ...]:
        """Every entry that it may change."""
        named = {entry for option in (self.options or {}).values() for entry in option}
        return (*([self.entry] if self.entry else []), *sorted(named))

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        kinds = ("values", "times", "options", "uniform", "log_uniform")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        problems = []
        if len(given) != 1:
            problems.append(f"must have exactly one of {', '.join(kinds)}, found {' and '.join(given) or 'none'}")
        if (self.entry is None) != (self.options is not None):
            problems.append("options name their entries themselves, everything else needs `entry`")
        if self.of is not None and self.times is None:
            problems.append("`of` says what `times` multiplies: leave it out")
        problems += [
            f"{kind} must be [lowest, highest], found {list(bounds)}"
            for kind, bounds in (("uniform", self.uniform), ("log_uniform", self.log_uniform))
            if bounds and not bounds[0] < bounds[1]
        ]
        if self.log_uniform and self.log_uniform[0] <= 0:
            problems.append("log_uniform needs bounds above 0")
        problems += [f"{entry} can't be varied: {_MEASURES[entry]}" for entry in self.entries if entry in _MEASURES]
        if problems:
            raise ValueError("; ".join(problems))
        return self


class SweepDefinition(Section):
    """A file under `sweeps/`."""

    about: str = Field(min_length=1)
    """What it is for, in one line."""
    arms: tuple[str, ...] = Field(strict=False, min_length=1)
    """Names of arms of params.yaml; each is searched for itself."""
    search: Literal["grid", "random"]
    """Every combination, or `num_trials` draws."""
    num_trials: int | None = Field(default=None, ge=1)
    """Of a random search, for each arm."""
    search_seed: int = Field(default=17, ge=0, lt=2**32)
    """Of a random search: the same seed draws the same trials."""
    training_seed: int | None = None
    """Which of comparison.seeds every trial is trained with; none: the first."""
    evaluate: bool = False
    """Ask each trained trial the questions too: scores beside the held-out loss, at the price of their time. What is picked is by the loss."""
    vary: dict[str, Axis] = Field(min_length=1)
    """By a name for people; a later axis may multiply what an earlier one has set."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [*self._search_problems(), *self._entry_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _search_problems(self) -> Iterator[str]:
        drawn = [name for name, axis in self.vary.items() if axis.is_drawn]
        if self.search == "grid" and drawn:
            yield f"a grid needs lists of values, but {', '.join(drawn)} is drawn: set search to random, or name values"
        if self.search == "grid" and self.num_trials is not None:
            yield "num_trials is of a random search, and a grid runs every combination: leave it out"
        if self.search == "random" and self.num_trials is None:
            yield "a random search needs num_trials"

    def _entry_problems(self) -> Iterator[str]:
        entries = [entry for axis in self.vary.values() for entry in axis.entries]
        for entry in sorted({entry for entry in entries if entries.count(entry) > 1}):
            yield f"{entry} is varied by two axes: leave one out"
        shared = sorted({entry for entry in entries if entry.startswith("training.")})
        if shared and len(self.arms) > 1:
            yield f"{', '.join(shared)} is the same for all arms, so that only one arm can decide it: name one arm"
        if len(set(self.arms)) < len(self.arms):
            yield "an arm is named twice: leave one out"


def read_definition(path: Path) -> SweepDefinition:
    """Reads and checks a file; raises SweepError, which names all mistakes."""
    try:
        entries = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, YAMLError, UnicodeDecodeError) as error:
        raise SweepError(f"the sweep '{path}' can't be read: {error}") from error
    try:
        return SweepDefinition.model_validate(entries)
    except ValidationError as error:
        raise SweepError(_explain(error, path=path)) from error


def find_definitions(folder: Path) -> dict[str, Path]:
    """The files of sweeps in a folder, by name; raises SweepError where a name can't be that of an experiment."""
    paths = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    odd = [str(path) for name, path in paths.items() if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)]
    if odd:
        raise SweepError(f"a sweep's file is named by small letters, digits and single hyphens, found {', '.join(odd)}")
    return paths


def _explain(error: ValidationError, *, path: Path) -> str:
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"]) or "the file"
        message = problem["msg"].removeprefix("Value error, ")
        unknown = problem["type"] == "extra_forbidden"
        lines.append(f"  - {place}: {'is nothing that a sweep has (misspelt?)' if unknown else message}")
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return "\n".join([f"the sweep '{path}' has {count}:", *dict.fromkeys(lines)])
