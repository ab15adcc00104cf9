"""Figures as they are read."""

import pytest

from mgm_lora.evaluation.formatting import (
    count,
    percent,
    percent_interval,
    points,
    points_interval,
    quantity,
    unbroken,
)
from mgm_lora.evaluation.intervals import Estimate


def test_figures_carry_their_unit_and_a_dash_where_there_is_none() -> None:
    assert percent(0.9123) == "91.2 %"
    assert points(0.031) == "+3.1 pp"
    assert points(-0.031) == "−3.1 pp"
    assert points(-0.0001) == "0.0 pp"
    assert count(1234567) == "1,234,567"
    assert percent(None) == points(None) == count(None) == quantity(None, unit="GiB") == "–"
    assert percent_interval(None) == points_interval(None) == "–"


def test_intervals_follow_their_value() -> None:
    estimate = Estimate(value=0.012, low=-0.04, high=0.07, num_samples=9, num_pictures=3)
    assert percent_interval(estimate) == "1.2 % [-4.0, 7.0]"
    assert points_interval(estimate) == "+1.2 pp [−4.0, +7.0]"


@pytest.mark.parametrize(
    "value, text", [(0.74, "0.74 GiB"), (1.234, "1.23 GiB"), (12.34, "12.3 GiB"), (1234.5, "1,234 GiB")]
)
def test_quantities_have_three_digits(value: float, text: str) -> None:
    assert quantity(value, unit="GiB") == text


def test_figures_are_held_together() -> None:
    text = unbroken("retention 98.1 % [95.3, 101.0], so ≥ 95 % is shown")
    assert text == "retention 98.1\u00a0%\u00a0[95.3,\u00a0101.0], so ≥\u00a095\u00a0% is shown"
