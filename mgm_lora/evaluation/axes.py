"""Axes: a range of values laid over 0 to 100 percent, with round labelled places on it."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    position: float
    """Percent of the axis."""
    label: str


@dataclass(frozen=True)
class Axis:
    """A range of values laid over 0 to 100 percent."""

    low: float
    high: float
    is_log: bool
    ticks: tuple[Tick, ...]

    def position(self, value: float) -> float:
        """Percent along the axis; a value outside is put on its end."""
        return _position(value, self.low, self.high, is_log=self.is_log)


def make_axis(low: float, high: float, *, is_log: bool, tick: Callable[[float], str]) -> Axis:
    """An axis from `low` to `high`, with up to six labels that `tick` writes; fewer, where it would write two the same."""
    values = _log_ticks(low, high) if is_log else _linear_ticks(low, high, tick=tick)
    ticks = (Tick(_position(value, low, high, is_log=is_log), tick(value)) for value in values)
    return Axis(low, high, is_log, tuple(ticks))


def _position(value: float, low: float, high: float, *, is_log: bool) -> float:
    if is_log:
        value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
    share = (value - low) / (high - low) if high > low else 0.5
    return round(100 * min(max(share, 0.0), 1.0), 2)


def _linear_ticks(low: float, high: float, *, tick: Callable[[float], str]) -> list[float]:
    """At most six multiples of 1, 2 or 5 times a power of ten."""
    for num_steps in range(5, 0, -1):
        rough = (high - low) / num_steps or 1.0
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * (1 - 1e-9))
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        values = [round(index * step, 12) for index in range(first, last + 1)]
        if len({tick(value) for value in values}) == len(values):
            break
    return values


def _log_ticks(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [
        value for exponent in exponents for factor in (1, 2, 5) if low <= (value := factor * 10.0**exponent) <= high
    ]
