"""Pictures to pixels: opened safely, padded to a square, and seen twice, by CLIP and in high resolution.

The low-resolution view is the normalised high-resolution tensor shrunk (bilinear, no antialias), not CLIP's own resize
of the picture: so was MGM trained. In high definition it is larger by a grid, whose squares CLIP sees one by one, and
perhaps the whole, shrunk once more. It doesn't know the model's configuration, only sizes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from mgm_lora.decoding import to_rgb
from mgm_lora.errors import PictureError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PAD_COLOUR = (122, 116, 104)
RESCALE = 0.00392156862745098


@dataclass(frozen=True)
class Pixels:
    """The two views of one picture, float32, normalised."""

    images: Tensor
    """[3, image_size, image_size], or [views, 3, image_size, image_size] where there are several: CLIP's."""
    images_aux: Tensor
    """[3, image_size_aux, image_size_aux]: ConvNeXt's."""


def open_picture(path: Path, *, max_pixels: int | None = None) -> Image.Image:
    """A picture as RGB, turned as its EXIF says.

    Raises:
        PictureError: it is missing, no picture, broken, or larger than `max_pixels`.
    """
    if not path.is_file():
        raise PictureError(f"no picture at '{path}': is data.pictures right, and was `dvc pull` run?")
    try:
        with Image.open(path) as picture:
            if max_pixels is not None and picture.width * picture.height > max_pixels:
                raise PictureError(f"'{path}' has {picture.width} x {picture.height} pixels, allowed are {max_pixels}")
            return to_rgb(picture)
    except UnidentifiedImageError as error:
        raise PictureError(
            f"'{path}' is no picture (asked for PNG, JPEG, WebP, ...; found {_first_bytes(path)})"
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"'{path}' can't be decoded: {error}") from error


def picture_pixels(
    picture: Image.Image,
    *,
    image_size: int,
    image_size_aux: int,
    aspect_ratio: Literal["pad", "square"],
    image_grid: int = 1,
    image_global: bool = False,
) -> Pixels:
    """Both views of an RGB picture.

    Args:
        picture: RGB.
        image_size: side of a view of CLIP's, pixels.
        image_size_aux: side of the high-resolution view, pixels.
        aspect_ratio: `pad` adds bars to a square; `square` shrinks the shorter side to fit and cuts the longer one in the middle.
        image_grid: CLIP sees so many squares along a side, row by row.
        image_global: and behind them the whole.
    """
    square = _pad_to_square(picture) if aspect_ratio == "pad" else picture
    resized = _resize_and_crop(square, size=image_size_aux)
    rescaled = (np.asarray(resized, dtype=np.float64) * RESCALE).astype(np.float32)
    normalised = (rescaled - np.asarray(MEAN, dtype=np.float32)) / np.asarray(STD, dtype=np.float32)
    images_aux = torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))
    images = _views(images_aux, size=image_size, grid=image_grid, with_whole=image_global)
    return Pixels(images=images[0] if len(images) == 1 else images, images_aux=images_aux)


def _views(images_aux: Tensor, *, size: int, grid: int, with_whole: bool) -> Tensor:
    """CLIP's, [views, 3, size, size]."""
    shrunk = _shrink(images_aux, size=grid * size)
    squares = shrunk.view(3, grid, size, grid, size).permute(1, 3, 0, 2, 4).reshape(-1, 3, size, size)
    # the whole is the shrunk picture shrunk again, not the high-resolution one: so it was trained
    return torch.cat([squares, _shrink(shrunk, size=size)[None]]) if with_whole else squares


def _shrink(pixels: Tensor, *, size: int) -> Tensor:
    return F.interpolate(pixels[None], size=(size, size), mode="bilinear", align_corners=False)[0]


def _pad_to_square(picture: Image.Image) -> Image.Image:
    side = max(picture.size)
    if picture.size == (side, side):
        return picture
    square = Image.new("RGB", (side, side), PAD_COLOUR)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _resize_and_crop(picture: Image.Image, *, size: int) -> Image.Image:
    shorter = min(picture.size)
    width, height = (int(size * side / shorter) for side in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return resized.crop((left, top, left + size, top + size))


def _first_bytes(path: Path) -> str:
    with path.open("rb") as file:
        return repr(file.read(16)) if path.stat().st_size else "an empty file"
