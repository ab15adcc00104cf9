"""What a benchmark found, and how it reads in RESULTS.md. It measures nothing and knows no benchmark.

A benchmark is a module of this package with a function `measure() -> Findings`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Goal:
    """A bound that was set beforehand, and what was found."""

    what: str
    found: float
    bound: float
    unit: str
    below: bool = False
    """The bound itself is too much."""

    @property
    def reached(self) -> bool:
        """Whether the figure keeps to the bound."""
        return self.found < self.bound if self.below else self.found <= self.bound


@dataclass(frozen=True)
class Table:
    """Rows of figures."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Findings:
    """Everything of one benchmark."""

    title: str
    goals: tuple[Goal, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences on what was measured, how, and what it doesn't show."""


def as_markdown(findings: Findings) -> str:
    """The goals, the tables and the notes."""
    blocks = [_goals(findings.goals)] if findings.goals else []
    blocks += [f"{table.caption}\n\n{_table(table.columns, table.rows)}" for table in findings.tables]
    if findings.notes:
        blocks.append("\n".join(f"- {note}" for note in findings.notes))
    return "\n\n".join(blocks)


def gib(num_bytes: float) -> str:
    """Bytes as GiB, two digits after the point."""
    return f"{num_bytes / GIB:.2f}"


def median_and_range(values: Iterable[float], *, digits: int = 2) -> str:
    """`1.23 (1.19–1.31)`."""
    ordered = sorted(values)
    return f"{median(ordered):.{digits}f} ({ordered[0]:.{digits}f}–{ordered[-1]:.{digits}f})"


def part_rows(*columns: dict[str, int]) -> tuple[tuple[str, ...], ...]:
    """One row per part in GiB, the largest of the first column first, and their sum."""
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, *(gib(column.get(name, 0)) for column in columns)) for name in names]
    return (*rows, ("**sum**", *(f"**{gib(sum(column.values()))}**" for column in columns)))


def _goals(goals: Sequence[Goal]) -> str:
    rows = [
        (
            goal.what,
            f"{goal.found:.2f} {goal.unit}".strip(),
            f"{'<' if goal.below else '≤'} {goal.bound:g} {goal.unit}".strip(),
            "reached" if goal.reached else "**not reached**",
        )
        for goal in goals
    ]
    return _table(("", "found", "goal", ""), rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
