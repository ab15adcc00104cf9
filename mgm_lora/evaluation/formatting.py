"""How figures read, in the report and in the terminal alike: with their unit, as many digits as they are worth, a dash
where there is none.
"""

import re
from collections.abc import Callable

from mgm_lora.evaluation.intervals import Estimate

MISSING = "–"
Write = Callable[[float], str]
"""Writes a figure."""
_FIGURE = re.compile(r"(≥ )?[\d.]+ %( \[[^]]*])?")
ARM_LABELS = {"base": "base", "lora": "LoRA", "merged": "merged", "full": "full", "question-only": "question only"}


def arm_label(name: str) -> str:
    """An arm's name as people write it."""
    return ARM_LABELS.get(name, name)


def percent(value: float | None) -> str:
    """0.9123 -> `91.2 %`."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def percent_range(low: float, high: float) -> str:
    """0.88, 0.941 -> `[88.0, 94.1]`."""
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def percent_interval(estimate: Estimate | None) -> str:
    """`91.2 % [88.0, 94.1]`."""
    return MISSING if estimate is None else f"{percent(estimate.value)} {percent_range(estimate.low, estimate.high)}"


def points(value: float | None) -> str:
    """Percentage points with their sign: 0.031 -> `+3.1 pp`."""
    return MISSING if value is None else f"{_signed(value)} pp"


def points_range(low: float, high: float) -> str:
    """-0.01, 0.031 -> `[−1.0, +3.1]`."""
    return f"[{_signed(low)}, {_signed(high)}]"


def points_interval(estimate: Estimate | None) -> str:
    """`+3.1 pp [−1.0, +7.2]`."""
    return MISSING if estimate is None else f"{points(estimate.value)} {points_range(estimate.low, estimate.high)}"


def nats(value: float | None) -> str:
    """Nats with their sign: 0.031 -> `+0.031`."""
    return MISSING if value is None else f"{value:+.3f}".replace("-", "−")


def nats_range(low: float, high: float) -> str:
    """-0.01, 0.031 -> `[−0.010, +0.031]`."""
    return f"[{nats(low)}, {nats(high)}]"


def nats_interval(estimate: Estimate | None) -> str:
    """`+0.031 [−0.010, +0.072]`."""
    return MISSING if estimate is None else f"{nats(estimate.value)} {nats_range(estimate.low, estimate.high)}"


def p_value(value: float | None) -> str:
    """0.0312 -> `0.031`; what ten thousand permutations can't tell from less -> `< 0.001`."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def memory(gib: float | None) -> str:
    """GiB, or MiB where that reads better: 1.234 -> `1.23 GiB`, 0.1285 -> `132 MiB`."""
    if gib is None or gib >= 1.0:
        return quantity(gib, unit="GiB")
    return quantity(1024 * gib, unit="MiB")


def seconds(value: float | None) -> str:
    """0.183 -> `183 ms`, 2.5 -> `2.50 s`."""
    if value is None or value >= 1.0:
        return quantity(value, unit="s")
    return quantity(1000 * value, unit="ms")


def short_count(value: float | None) -> str:
    """483616 -> `484 k`, 2041056 -> `2.04 M`."""
    if value is None:
        return MISSING
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return quantity(value / limit, unit=unit)
    return f"{value:,.0f}"


def count(value: int | None) -> str:
    """1234567 -> `1,234,567`."""
    return MISSING if value is None else f"{value:,}"


def quantity(value: float | None, *, unit: str) -> str:
    """Three significant digits, or all before the point: 1.234 -> `1.23 GiB`, 1234.5 -> `1,234 GiB`."""
    if value is None:
        return MISSING
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f} {unit}"


def unbroken(text: str) -> str:
    """The text with its figures, units and intervals held together on a line."""
    return _FIGURE.sub(lambda found: found.group().replace(" ", "\N{NO-BREAK SPACE}"), text)


def _signed(value: float) -> str:
    rounded = round(100 * value, 1)
    return f"{abs(rounded):.1f}" if rounded == 0 else f"{rounded:+.1f}".replace("-", "−")
