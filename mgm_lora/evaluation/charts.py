"""Figures -> positions on a chart, in percent of its width and height, for the SVG that the report's template draws.

The template draws rather than a plotting library, so that text stays text, colours follow the reader's light or dark
mode, and a phone gets charts of its own width. It doesn't know what the figures mean.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mgm_lora.evaluation.axes import Axis, Tick, make_axis
from mgm_lora.evaluation.intervals import Estimate

_MAX_POINTS = 300
_LOG_FROM_RATIO = 20.0


@dataclass(frozen=True)
class IntervalRow:
    """A value with its interval, drawn as a dot on a bar."""

    group: str
    """Heading above the row where it differs from the row before; empty: none."""
    label: str
    arm: str
    text: str
    low: float
    value: float
    high: float


@dataclass(frozen=True)
class IntervalChart:
    """Rows over a common axis; `low`, `value`, `high` and `marks` are positions in percent."""

    axis: Axis
    rows: tuple[IntervalRow, ...]
    marks: tuple[Tick, ...]
    """Lines across all rows: a target, zero."""


@dataclass(frozen=True)
class Bar:
    """What `interval_chart` is given for a row."""

    label: str
    arm: str
    estimate: Estimate
    group: str = ""


@dataclass(frozen=True)
class Line:
    """A curve: its points, and what the legend says."""

    label: str
    arm: str
    text: str
    points: tuple[tuple[float, float], ...]
    """(x, y) in percent; y counts from the top."""


@dataclass(frozen=True)
class LineChart:
    """Curves over common axes."""

    title: str
    x_axis: Axis
    y_axis: Axis
    lines: tuple[Line, ...]
    has_dots: bool
    """Few points: each is a measurement to see."""


@dataclass(frozen=True)
class Curve:
    """What `line_charts` is given for a curve."""

    label: str
    arm: str
    points: Sequence[tuple[float, float]]


def interval_chart(
    bars: Sequence[Bar],
    *,
    text: Callable[[Estimate], str],
    tick: Callable[[float], str],
    marks: Sequence[tuple[float, str]] = (),
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> IntervalChart:
    """Lays bars over an axis that holds all of them and the marks, within `limits`."""
    values = [bound for bar in bars for bound in (bar.estimate.low, bar.estimate.high)] + [value for value, _ in marks]
    low, high = _padded(values, limits=limits)
    axis = make_axis(low, high, is_log=False, tick=tick)
    rows = [
        IntervalRow(
            group=bar.group,
            label=bar.label,
            arm=bar.arm,
            text=text(bar.estimate),
            low=axis.position(bar.estimate.low),
            value=axis.position(bar.estimate.value),
            high=axis.position(bar.estimate.high),
        )
        for bar in bars
    ]
    return IntervalChart(axis, tuple(rows), tuple(Tick(axis.position(value), label) for value, label in marks))


def line_charts(panels: dict[str, Sequence[Curve]]) -> list[LineChart]:
    """One chart per panel, all over the same axes; y is logarithmic where values span more than a factor of 20."""
    everything = [point for curves in panels.values() for curve in curves for point in curve.points]
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    is_log = min(ys) > 0 and max(ys) / min(ys) > _LOG_FROM_RATIO
    x_axis = make_axis(0.0, max(xs), is_log=False, tick=lambda value: f"{value:,.0f}")
    y_axis = make_axis(min(ys) if is_log else 0.0, max(ys) or 1.0, is_log=is_log, tick=lambda value: f"{value:g}")
    return [_line_chart(title, curves, x_axis=x_axis, y_axis=y_axis) for title, curves in panels.items()]


def _line_chart(title: str, curves: Sequence[Curve], *, x_axis: Axis, y_axis: Axis) -> LineChart:
    lines = [
        Line(
            label=curve.label,
            arm=curve.arm,
            text=f"{curve.points[-1][1]:.3g}",
            points=tuple((x_axis.position(x), 100 - y_axis.position(y)) for x, y in _thinned(curve.points)),
        )
        for curve in curves
    ]
    return LineChart(title, x_axis, y_axis, tuple(lines), has_dots=all(len(curve.points) <= 40 for curve in curves))


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbours, where there are more points than a screen can show."""
    size = math.ceil(len(points) / _MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _padded(values: Iterable[float], *, limits: tuple[float, float]) -> tuple[float, float]:
    finite = list(values)
    low, high = min(finite), max(finite)
    margin = 0.06 * (high - low) or 0.01
    return max(low - margin, limits[0]), min(high + margin, limits[1])
