"""What a cut-out picture looks like, measured from its pixels: its main colour and its outline.

Colours are named in OKLCH (Ottosson 2020: lightness, chroma, hue as people see them) with Berlin and Kay's eleven basic
colour terms and teal. Outlines are found by overlap with a circle, a rectangle and a triangle of the same extent. Where
no name clearly fits there is none. It doesn't know what the picture shows.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOURS = (
    "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "black", "gray", "white",
)  # fmt: skip
OUTLINES = ("circle", "rectangle", "triangle")

_DOMINANT_SHARE = 0.6
_MIN_PIXELS = 200
_MIN_OVERLAP = {"circle": 0.94, "rectangle": 0.93, "triangle": 0.88}
_ROUND_ASPECT = 1.15
# upper end of hue in degrees, name; red goes on beyond 345
_HUES = ((40.0, "red"), (77.0, "orange"), (118.0, "yellow"), (168.0, "green"), (218.0, "teal"),
         (280.0, "blue"), (330.0, "purple"), (352.0, "pink"), (361.0, "red"))  # fmt: skip

Floats = NDArray[np.float64]


def main_colour(cutout: Image.Image) -> str | None:
    """The name of the colour of at least 60 % of the opaque pixels, or None."""
    pixels = np.asarray(cutout.convert("RGBA"))
    opaque = pixels[pixels[..., 3] >= 128][:, :3]
    if len(opaque) < _MIN_PIXELS:
        return None
    names = name_colours(opaque)
    values, counts = np.unique(names, return_counts=True)
    best = int(counts.argmax())
    return str(values[best]) if counts[best] >= _DOMINANT_SHARE * len(opaque) else None


def name_colours(pixels_N3: NDArray[np.uint8]) -> NDArray[np.str_]:
    """One of COLOURS for each sRGB pixel (0 to 255)."""
    lightness, chroma, hue = _to_oklch(pixels_N3.astype(np.float64) / 255)
    bounds = np.array([bound for bound, _ in _HUES])
    names = np.array([name for _, name in _HUES])[np.searchsorted(bounds, hue, side="right")].astype("<U8")
    reddish = (names == "red") | (names == "pink")
    names[reddish & ((lightness > 0.70) | (lightness > 0.64) & ((hue < 22) | (hue > 330)))] = "pink"
    names[reddish & (lightness <= 0.62)] = "red"
    # dark or dull orange is brown, so is dark yellow, and red where it is dull as well
    names[(names == "orange") & ((lightness < 0.62) | (chroma < 0.095) & (lightness < 0.8))] = "brown"
    names[(names == "yellow") & (lightness < 0.6)] = "brown"
    names[(names == "red") & (hue > 15) & (hue < 345) & (lightness < 0.63) & (chroma < 0.16)] = "brown"
    neutral = chroma < 0.045
    names[neutral] = "gray"
    names[neutral & (lightness > 0.92)] = "white"
    names[(neutral & (lightness < 0.38)) | (lightness < 0.25)] = "black"
    return names


def outline(cutout: Image.Image) -> str | None:
    """circle, rectangle (a square is one) or triangle, or None where no one clearly fits."""
    mask = np.asarray(cutout.convert("RGBA"))[..., 3] >= 128
    if mask.sum() < _MIN_PIXELS:
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    overlaps = _overlaps(mask)
    best = max(overlaps, key=lambda name: overlaps[name])
    return best if overlaps[best] >= _MIN_OVERLAP[best] else None


def _overlaps(mask: NDArray[np.bool_]) -> dict[str, float]:
    """Intersection over union of the mask with each outline of the same extent."""
    height, width = mask.shape
    y = ((np.arange(height) + 0.5) / height)[:, None]
    x = ((np.arange(width) + 0.5) / width)[None, :]
    ideal = {"rectangle": np.ones_like(mask), "up": 2 * abs(x - 0.5) <= y, "down": 2 * abs(x - 0.5) <= 1 - y}
    if 1 / _ROUND_ASPECT <= height / width <= _ROUND_ASPECT:
        ideal["circle"] = (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25
    found = {name: float((mask & shape).sum() / (mask | shape).sum()) for name, shape in ideal.items()}
    found["triangle"] = max(found.pop("up"), found.pop("down"))
    return found


def _to_oklch(rgb_N3: Floats) -> tuple[Floats, Floats, Floats]:
    linear = np.where(rgb_N3 <= 0.04045, rgb_N3 / 12.92, ((rgb_N3 + 0.055) / 1.055) ** 2.4)
    to_cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    lab = np.cbrt(linear @ to_cones.T) @ to_lab.T
    hue = np.degrees(np.arctan2(lab[:, 2], lab[:, 1])) % 360
    return lab[:, 0], np.hypot(lab[:, 1], lab[:, 2]), hue
