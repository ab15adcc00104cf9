"""Samples with their questions and answers as one picture, to see at a glance whether an import is what it should be. It judges nothing."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from mgm_lora.artifacts import new_file
from mgm_lora.data.importing.overview import ShownSample
from mgm_lora.data.llava import PICTURE_MARKER
from mgm_lora.data.picture_facts import PictureFacts
from mgm_lora.data.picture_scan import FORMATS
from mgm_lora.data.structure import FINE
from mgm_lora.decoding import to_rgb

_COLUMNS = 6
_CELL = (2.4, 3.1)  # inches
_SIDE = 220
_GREY = (190, 190, 190)
_LINE, _LINES = 34, 4
_MOST_PICTURES = 4


def draw_contact_sheet(
    samples: Sequence[ShownSample], *, facts: Mapping[str, PictureFacts], pictures: Path, path: Path
) -> None:
    """Writes a PNG.

    Args:
        samples: the ones to show.
        facts: on their pictures; those that weren't decoded aren't now.
        pictures: the folder that the names are relative to.
        path: where to.
    """
    num_rows = max(1, -(-len(samples) // _COLUMNS))
    figure = Figure(figsize=(_CELL[0] * _COLUMNS, _CELL[1] * num_rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(num_rows, _COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, sample in zip(grid, samples, strict=False):
        _draw(axes, sample, facts=facts, pictures=pictures)
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw(axes: Axes, sample: ShownSample, *, facts: Mapping[str, PictureFacts], pictures: Path) -> None:
    shown = [_shrunk(pictures / name, facts[name]) for name in sample.pictures[:_MOST_PICTURES]]
    if shown:
        axes.imshow(np.hstack([np.asarray(picture) for picture in shown]))
    else:
        axes.text(0.5, 0.5, "(no picture)", ha="center", va="center", color="grey", transform=axes.transAxes)
    lines = [sample.file + (f", {len(sample.pictures)} pictures" if len(sample.pictures) > 1 else "")]
    for role, text in sample.turns[:2]:
        said = text.replace(PICTURE_MARKER, "").strip() if len(sample.pictures) == 1 else text
        lines += _wrap(f"{'Q' if role == 'human' else 'A'}: {said}")
    axes.set_title("\n".join(lines), fontsize=7, loc="left", parse_math=False)


def _shrunk(path: Path, fact: PictureFacts) -> Image.Image:
    """As large as fits on a square; a grey one stands for what can't be decoded."""
    if fact.broken != FINE:
        return Image.new("RGB", (_SIDE, _SIDE), _GREY)
    with Image.open(path, formats=FORMATS) as opened:
        return ImageOps.pad(to_rgb(opened), (_SIDE, _SIDE), color=(255, 255, 255))


def _wrap(text: str) -> list[str]:
    lines = [line for paragraph in text.split("\n") for line in textwrap.wrap(paragraph, _LINE)]
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], f"{lines[_LINES - 1][: _LINE - 4]} ..."]
