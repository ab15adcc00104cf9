"""Tables for people: drawn by rich in a terminal, plain lines with aligned columns into a pipe or a file. It knows no figures."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

NOTHING = "–"
_PLAIN_WIDTH = 10_000
"""Columns of the plain form, so that no line of it is broken."""


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Prints to standard output; a title stands above."""
    console = Console(highlight=False)
    if console.is_terminal:
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False, title=title or None)
        table.title_justify = "left"
        for name in columns:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table, "")
        return
    lines = [*([title] if title else []), *_aligned([columns, *rows])]
    console.print("\n".join(lines) + "\n", markup=False, soft_wrap=True, width=_PLAIN_WIDTH)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    flat = [[" ".join(cell.split()) for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in flat) for index in range(len(flat[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in flat]
