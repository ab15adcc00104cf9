"""From an opened picture to RGB, one way for all: what the checks look at is what the model sees and the pages show.

PIL alone would take a picture as it lies in the file (not as EXIF turns it), and clip 16 bits to white. It opens no file and judges no size.
"""

import numpy as np
from PIL import Image, ImageOps

_WIDE = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def to_rgb(picture: Image.Image) -> Image.Image:
    """The first frame, turned as its EXIF says, in RGB; of 16 bits the upper eight, as PIL reads 16-bit colour. May change the given one in place.

    Raises:
        ValueError: its values have no known range (floating point, 32 bits).
    """
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode in _WIDE:
        return _upper_byte(picture).convert("RGB")
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers of no known range: save it with 8 or 16 bits")
    picture.load()
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _upper_byte(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture)
    if values.size and not 0 <= values.min() <= values.max() < 2**16:
        raise ValueError("its pixels are 32-bit numbers of no known range: save it with 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))
