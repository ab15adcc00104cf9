"""Pictures to pixels: opened safely, padded to a square, and seen twice, by CLIP and in high resolution.

The low-resolution view is the normalised high-resolution tensor shrunk (bilinear, no antialias), not CLIP's own resize
of the picture: so was MGM trained. It doesn't know the model's configuration, only sizes.
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
    """[3, image_size, image_size]: CLIP's."""
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
    picture: Image.Image, *, image_size: int, image_size_aux: int, aspect_ratio: Literal["pad", "square"]
) -> Pixels:
    """Both views of an RGB picture.

    Args:
        picture: RGB.
        image_size: side of CLIP's view, pixels.
        image_size_aux: side of the high-resolution view, pixels.
        aspect_ratio: `pad` adds bars to a square; `square` shrinks the shorter side to fit and cuts the longer one in the middle.
    """
    square = _pad_to_square(picture) if aspect_ratio == "pad" else picture
    resized = _resize_and_crop(square, size=image_size_aux)
    rescaled = (np.asarray(resized, dtype=np.float64) * RESCALE).astype(np.float32)
    normalised = (rescaled - np.asarray(MEAN, dtype=np.float32)) / np.asarray(STD, dtype=np.float32)
    images_aux = torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))
    images = F.interpolate(images_aux[None], size=(image_size, image_size), mode="bilinear", align_corners=False)[0]
    return Pixels(images=images, images_aux=images_aux)


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
