"""Draws plain forms, so that the base's towers learn to tell forms apart: what they are, how large, where.

One form in one colour on a light background, anti-aliased. None of them is a circle, a rectangle or a triangle: those are
the task's (easy-VQA), which the base never sees. It doesn't know what is asked about them.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from recipes.looks import name_colours

SIDE = 64
SIZES = ("small", "medium", "large")
PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "center", "right"))

Point = tuple[float, float]

_FINER = 4
_SMALLEST, _LARGEST = 10, 36
_MIN_CONTRAST = 90.0


@dataclass(frozen=True)
class Form:
    """A drawn form, with what is true of it."""

    kind: str
    """One of KINDS."""
    size: str
    """One of SIZES: a third of the range of its longer side each."""
    place: str
    """One of PLACES: the ninth of the picture that its middle lies in."""
    colour: str
    """One of looks.COLOURS."""
    picture: Image.Image
    """RGB, 64 x 64."""


def draw_form(rng: random.Random) -> Form:
    """A form of any kind, size, place and colour, whole within the picture."""
    kind = rng.choice(KINDS)
    side = rng.uniform(_SMALLEST, _LARGEST)
    x, y = rng.uniform(0, SIDE - side), rng.uniform(0, SIDE - side)
    background, fill = _colours(rng)
    picture = Image.new("RGB", (SIDE * _FINER, SIDE * _FINER), background)
    draw = ImageDraw.Draw(picture)
    outer, holes = _DRAWINGS[kind](rng)
    for points, colour in [(outer, fill), *((hole, background) for hole in holes)]:
        draw.polygon([((x + side * u) * _FINER, (y + side * v) * _FINER) for u, v in points], fill=colour)
    return Form(
        kind=kind,
        size=SIZES[min(int(3 * (side - _SMALLEST) / (_LARGEST - _SMALLEST)), 2)],
        place=PLACES[3 * int(3 * (y + side / 2) / SIDE) + int(3 * (x + side / 2) / SIDE)],
        colour=str(name_colours(np.array([fill], dtype=np.uint8))[0]),
        picture=picture.resize((SIDE, SIDE), Image.Resampling.BOX),
    )


def _colours(rng: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A light background, and a fill that stands out from it."""
    background = tuple(rng.randint(224, 255) for _ in range(3))
    while True:
        fill = tuple(rng.randint(0, 255) for _ in range(3))
        if math.dist(fill, background) >= _MIN_CONTRAST:
            return background, fill


# --- each in a unit square: the outer border, and holes ---------------------------------------------------------------


def _arc(centre: Point, radii: Point, start: float, end: float) -> list[Point]:
    """Points of an ellipse from one angle to another, degrees."""
    angles = [math.radians(start + (end - start) * step / 48) for step in range(49)]
    return [(centre[0] + radii[0] * math.cos(angle), centre[1] + radii[1] * math.sin(angle)) for angle in angles]


def _polygon(corners: int, *, start: float, inner: float | None = None) -> list[Point]:
    """A regular polygon, or a star whose inner corners lie at `inner` of the radius."""
    radii = [0.5] if inner is None else [0.5, 0.5 * inner]
    count = corners * len(radii)
    angles = [math.radians(start + 360 * number / count) for number in range(count)]
    return [
        (0.5 + radii[number % len(radii)] * math.cos(angle), 0.5 + radii[number % len(radii)] * math.sin(angle))
        for number, angle in enumerate(angles)
    ]


def _turned(points: list[Point], rng: random.Random) -> list[Point]:
    """By a random multiple of a quarter."""
    for _ in range(rng.randrange(4)):
        points = [(1 - v, u) for u, v in points]
    return points


def _ellipse(rng: random.Random) -> tuple[list[Point], list[list[Point]]]:
    return _turned(_arc((0.5, 0.5), (0.5, rng.uniform(0.2, 0.34)), 0, 360), rng), []


def _ring(rng: random.Random) -> tuple[list[Point], list[list[Point]]]:
    inner = rng.uniform(0.2, 0.34)
    return _arc((0.5, 0.5), (0.5, 0.5), 0, 360), [_arc((0.5, 0.5), (inner, inner), 0, 360)]


def _half(rng: random.Random) -> tuple[list[Point], list[list[Point]]]:
    return _turned(_arc((0.5, 0.75), (0.5, 0.5), 180, 360), rng), []


def _cross(rng: random.Random) -> tuple[list[Point], list[list[Point]]]:
    near = rng.uniform(0.3, 0.4)
    far = 1 - near
    return [
        (near, 0), (far, 0), (far, near), (1, near), (1, far), (far, far),
        (far, 1), (near, 1), (near, far), (0, far), (0, near), (near, near),
    ], []  # fmt: skip


def _star(rng: random.Random) -> tuple[list[Point], list[list[Point]]]:
    return _polygon(5, start=-90, inner=rng.uniform(0.38, 0.5)), []


def _arrow(rng: random.Random) -> tuple[list[Point], list[list[Point]]]:
    points = [(0.0, 0.35), (0.5, 0.35), (0.5, 0.05), (1.0, 0.5), (0.5, 0.95), (0.5, 0.65), (0.0, 0.65)]
    return _turned(points, rng), []


def _diamond(rng: random.Random) -> tuple[list[Point], list[list[Point]]]:
    half = rng.uniform(0.3, 0.5)
    return _turned([(0.5, 0.0), (0.5 + half, 0.5), (0.5, 1.0), (0.5 - half, 0.5)], rng), []


def _hexagon(rng: random.Random) -> tuple[list[Point], list[list[Point]]]:
    return _polygon(6, start=rng.choice((0.0, 30.0))), []


def _trapezoid(rng: random.Random) -> tuple[list[Point], list[list[Point]]]:
    short = rng.uniform(0.2, 0.32)
    top, bottom = (0.2, 0.8) if rng.random() < 0.5 else (0.8, 0.2)
    return [(short, top), (1 - short, top), (1.0, bottom), (0.0, bottom)], []


def _heart(rng: random.Random) -> tuple[list[Point], list[list[Point]]]:
    width = rng.uniform(0.85, 1.0)
    angles = [2 * math.pi * step / 64 for step in range(64)]
    xs = [16 * math.sin(angle) ** 3 for angle in angles]
    ys = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in angles]
    return [(0.5 + width * x / 32, (12 - y) / 30) for x, y in zip(xs, ys, strict=True)], []


_DRAWINGS: Mapping[str, Callable[[random.Random], tuple[list[Point], list[list[Point]]]]] = {
    "arrow": _arrow,
    "cross": _cross,
    "diamond": _diamond,
    "ellipse": _ellipse,
    "half circle": _half,
    "heart": _heart,
    "hexagon": _hexagon,
    "ring": _ring,
    "star": _star,
    "trapezoid": _trapezoid,
}
KINDS = tuple(_DRAWINGS)
