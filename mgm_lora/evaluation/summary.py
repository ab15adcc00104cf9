"""The table that a run ends with, in the terminal, and the places to look.

It reads the metrics that the comparison wrote, so it can be printed again at any time. In a terminal it is drawn by
rich; into a pipe or a file goes plain text, one line per arm.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from mgm_lora.errors import ArtifactError
from mgm_lora.evaluation.formatting import (
    MISSING,
    arm_label,
    count,
    percent,
    percent_range,
    points,
    points_range,
    quantity,
)

COLUMNS = ("arm", "score", "forgetting", "trained parameters", "step memory", "time", "on disk")
_WHOLE = ("arm", "trained parameters")
_PLAIN_WIDTH = 200
"""Columns of the plain form, so that no line of it is broken."""


def print_summary(metrics: Path, *, places: Mapping[str, str], file: TextIO | None = None) -> None:
    """Prints the comparison's table and where to look.

    Args:
        metrics: `metrics/comparison.json`.
        places: what there is to see, by name: a path or a command.
        file: where to; none: standard output.

    Raises:
        ArtifactError: there is no comparison yet.
    """
    try:
        figures = json.loads(metrics.read_text(encoding="utf-8"))
        rows = [_row(arm, entry) for arm, entry in _entries(figures).items()]  # [arm][column], each cell in parts
        sentence = str(figures["verdict"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"no comparison at '{metrics}': run `dvc repro compare`. {error!r}") from error
    console = Console(file=file, highlight=False)
    if console.is_terminal:
        console.print(_table(rows), Padding(sentence, (1, 0)), _places(places))
    else:
        lines = [
            *_aligned([COLUMNS, *(_joined(row, " ") for row in rows)]),
            "",
            sentence,
            "",
            *_aligned(list(places.items())),
        ]
        console.print("\n".join(lines), markup=False, soft_wrap=True, width=_PLAIN_WIDTH)


def _entries(figures: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    guess = {f"score{part}": figures[f"question_only{part}"] for part in ("", "_low", "_high")}
    return {**figures["arms"], "question-only": guess}


def _row(arm: str, entry: Mapping[str, Any]) -> list[list[str]]:
    forgetting = [MISSING]
    if "forgetting" in entry:
        forgetting = [points(entry["forgetting"]), points_range(entry["forgetting_low"], entry["forgetting_high"])]
    share = [f"({percent(entry['trainable_share'])})"] if "trainable_share" in entry else []
    return [
        arm_label(arm).split(),
        [percent(entry["score"]), percent_range(entry["score_low"], entry["score_high"])],
        forgetting,
        [count(entry.get("trainable_parameters")), *share],
        [quantity(entry.get("step_memory_gib", entry.get("planned_memory_gib")), unit="GiB")],
        [quantity(entry.get("minutes"), unit="min")],
        [quantity(entry.get("size_on_disk_mib"), unit="MiB")],
    ]


def _joined(row: Sequence[Sequence[str]], separator: str) -> list[str]:
    return [separator.join(cell) for cell in row]


def _table(rows: Sequence[Sequence[Sequence[str]]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    for index, name in enumerate(COLUMNS):
        justify: Literal["left", "right"] = "right" if index else "left"
        # in a narrow terminal intervals go to two lines, a count of parameters is never cut
        table.add_column(name.replace(" ", "\n"), justify=justify, no_wrap=name in _WHOLE, overflow="fold")
    for row in rows:
        table.add_row(*_joined(row, "\n"))
    return table


def _places(places: Mapping[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    for name, place in places.items():
        grid.add_row(name, place)
    return grid


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
