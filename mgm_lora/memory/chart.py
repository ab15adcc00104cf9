"""A picture of peaks against micro batch sizes, with the card's line. It doesn't know how peaks are found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Curve:
    """Peaks of one way to run the step."""

    name: str
    points: tuple[tuple[int, float], ...]
    """Micro batch size and GiB."""
    is_choice: bool = False
    """Drawn as a ring around the point that was chosen."""


def draw_peaks(curves: Sequence[Curve], *, budget_gib: float, path: Path) -> None:
    """Writes a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second, and only here
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve in curves:
        sizes, peaks = [size for size, _ in curve.points], [peak for _, peak in curve.points]
        if curve.is_choice:
            axes.plot(
                sizes, peaks, "o", markersize=15, fillstyle="none", markeredgewidth=2, color="black", label=curve.name
            )
        else:
            axes.plot(sizes, peaks, "o-", label=curve.name)
    axes.axhline(budget_gib, color="firebrick", linestyle="--", label=f"the card: {budget_gib:g} GiB")
    ticks = sorted({size for curve in curves for size, _ in curve.points})
    if ticks[-1] > 4:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("samples per forward pass (micro batch)")
    axes.set_ylabel("peak with margins, GiB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Software": None})
