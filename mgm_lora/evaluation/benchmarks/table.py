"""A benchmark's scores in the terminal. It knows no benchmark."""

from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from mgm_lora.evaluation.benchmarks.figures import EVERYTHING, Figure
from mgm_lora.evaluation.benchmarks.results import BenchmarkScores
from mgm_lora.evaluation.formatting import MISSING, count, percent, percent_range

_PLAIN_WIDTH = 160


def print_scores(scores: BenchmarkScores, *, title: str, file: TextIO | None = None) -> None:
    """Prints the figures with their intervals, then what is not in them."""
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=_PLAIN_WIDTH)
    limit = "" if scores.limit is None else f", the first {count(scores.limit)} only: no figure to compare with others'"
    console.print(f"{title}, {scores.model}: {count(scores.num_questions)} questions{limit}", markup=False)
    if scores.figures:
        console.print(_table(scores))
    for note in scores.notes:
        console.print(f"({note})", markup=False)


def value_text(figure: Figure) -> str:
    """`61.2 %`, or `1341.0 of 2000`."""
    return percent(figure.value) if figure.out_of == 1.0 else f"{figure.value:.1f} of {figure.out_of:.0f}"


def interval_text(figure: Figure) -> str:
    """`[58.0, 64.4]`; a dash where there are too few pictures for one."""
    if figure.low is None or figure.high is None:
        return MISSING
    if figure.out_of == 1.0:
        return percent_range(figure.low, figure.high)
    return f"[{figure.low:.1f}, {figure.high:.1f}]"


def _table(scores: BenchmarkScores) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False)
    table.add_column("of", no_wrap=True)
    table.add_column("figure", no_wrap=True)
    for name in ("value", f"{percent(scores.confidence).replace('.0', '')} interval", "questions", "pictures"):
        table.add_column(name, justify="right", no_wrap=True)
    for figure in scores.figures:
        group = "" if figure.group == EVERYTHING else figure.group
        table.add_row(
            group,
            figure.metric,
            value_text(figure),
            interval_text(figure),
            count(figure.num_questions),
            count(figure.num_pictures),
        )
    return table
