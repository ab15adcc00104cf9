"""Figures lie where they belong on a chart."""

import math

import pytest

from mgm_lora.evaluation.charts import Bar, Curve, interval_chart, line_charts
from mgm_lora.evaluation.intervals import Estimate


def _bar(low: float, value: float, high: float) -> Bar:
    estimate = Estimate(value=value, low=low, high=high, num_samples=10, num_pictures=5)
    return Bar(label="LoRA", arm="lora", estimate=estimate)


def test_bars_and_marks_share_one_axis() -> None:
    chart = interval_chart(
        [_bar(0.2, 0.5, 0.9), _bar(0.0, 0.1, 0.3)],
        text=lambda estimate: f"{estimate.value}",
        tick=lambda value: f"{value:g}",
        marks=[(0.5, "half")],
        limits=(0.0, 1.0),
    )
    assert chart.axis.low == 0.0
    assert chart.rows[0].low < chart.rows[0].value < chart.rows[0].high < 100.0
    assert chart.rows[0].value == chart.marks[0].position
    assert chart.rows[1].low == 0.0
    assert [tick.label for tick in chart.axis.ticks] == ["0", "0.2", "0.4", "0.6", "0.8"]
    assert all(0.0 <= tick.position <= 100.0 for tick in chart.axis.ticks)


def test_a_single_value_without_width_still_has_an_axis() -> None:
    chart = interval_chart([_bar(0.5, 0.5, 0.5)], text=lambda _: "", tick=lambda value: f"{value:g}")
    assert chart.rows[0].value == pytest.approx(50.0)
    assert chart.axis.ticks


def test_losses_over_decades_get_a_logarithmic_axis_that_both_panels_share() -> None:
    steep = Curve("LoRA", "lora", [(10.0 * step, 10.0 ** (1 - step)) for step in range(4)])
    flat = Curve("full", "full", [(0.0, 1.0), (30.0, 0.1)])
    first, second = line_charts({"Training loss": [steep], "Held-out loss": [flat]})
    assert first.y_axis is second.y_axis
    assert first.y_axis.is_log
    assert [y for _, y in first.lines[0].points] == pytest.approx([0.0, 100 / 3, 200 / 3, 100.0], abs=0.01)
    assert [x for x, _ in first.lines[0].points] == pytest.approx([0.0, 100 / 3, 200 / 3, 100.0], abs=0.01)
    assert "0.1" in [tick.label for tick in first.y_axis.ticks]


def test_losses_of_one_size_start_at_zero() -> None:
    (chart,) = line_charts({"Training loss": [Curve("LoRA", "lora", [(0.0, 2.0), (5.0, 1.0)])]})
    assert not chart.y_axis.is_log
    assert chart.lines[0].points == ((0.0, 0.0), (100.0, 50.0))
    assert chart.lines[0].text == "1"


def test_long_curves_are_thinned_to_means() -> None:
    points = [(float(step), 1.0 + (step % 2)) for step in range(3000)]
    (chart,) = line_charts({"Training loss": [Curve("LoRA", "lora", points)]})
    assert len(chart.lines[0].points) == 300
    assert {y for _, y in chart.lines[0].points} == {25.0}
    assert not chart.has_dots
    assert not math.isnan(chart.x_axis.high)
