"""Looks at every picture once: is it there, of a sane size, whole, and does it show anything?

Threads, not processes: PIL decodes without Python's lock, and threads can't outlive a killed stage. Only findings and
digests are kept, so memory doesn't grow with the pictures' pixels. It knows no samples.
"""

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from mgm_lora.data.structure import FINE

# Named, so that no plugin starts a program (EPS: Ghostscript) or waits for a network.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_BATCH = 4096


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What was found on one picture; None: not looked at, since an earlier finding stood in the way."""

    missing: str
    wrong_size: str | None = None
    broken: str | None = None
    blank: str | None = None
    sha256: str | None = None
    """Of the decoded pixels, in RGB and as EXIF turns them; the file's bytes don't matter."""
    width: int | None = None
    height: int | None = None


def scan_pictures(
    names: Iterable[str], *, folder: Path, min_side: int, max_pixels: int, num_workers: int
) -> dict[str, PictureFacts]:
    """The facts on each distinct name, with a progress bar where it takes more than two seconds.

    Args:
        names: relative to the folder.
        min_side: pixels of the shorter side.
        max_pixels: pixels of a picture; a larger one isn't decoded.
        num_workers: threads; 0: one per core.
    """
    distinct = list(dict.fromkeys(names))
    look = partial(_look_at, folder=folder, min_side=min_side, max_pixels=max_pixels)
    facts: dict[str, PictureFacts] = {}
    workers = num_workers or len(os.sched_getaffinity(0))
    with (
        _own_size_limit(),
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(distinct), desc="decoding pictures", unit="picture", mininterval=1.0, delay=2.0) as progress,
    ):
        remaining = iter(distinct)
        while batch := list(islice(remaining, _BATCH)):  # so many futures at a time
            for name, found in zip(batch, pool.map(look, batch), strict=True):
                facts[name] = found
                progress.update()
    return facts


@contextmanager
def _own_size_limit() -> Iterator[None]:
    """Takes PIL's limit away: the settings' one is kept, before anything is decoded. PIL has one limit per process."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            # What transparent pixels look like in RGB is the model's business too: it takes them as they are.
            warnings.filterwarnings("ignore", message="Palette images with Transparency")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _look_at(name: str, *, folder: Path, min_side: int, max_pixels: int) -> PictureFacts:
    missing = _judge_path(name, folder=folder)
    if missing != FINE:
        return PictureFacts(missing=missing)
    try:
        with Image.open(folder / name, formats=FORMATS) as picture:
            wrong_size = _judge_size(*picture.size, min_side=min_side, max_pixels=max_pixels)
            if wrong_size != FINE:
                return PictureFacts(missing=FINE, wrong_size=wrong_size, width=picture.width, height=picture.height)
            pixels = ImageOps.exif_transpose(picture).convert("RGB")
    except MemoryError:
        raise
    except UnidentifiedImageError:
        return PictureFacts(missing=FINE, broken=f"{_describe(folder / name)} is none of {', '.join(FORMATS)}")
    except Exception as error:  # decoders meet a broken file with errors of any kind
        return PictureFacts(missing=FINE, broken=f"can't be decoded: {str(error) or type(error).__name__}")
    return PictureFacts(
        missing=FINE,
        wrong_size=FINE,
        broken=FINE,
        blank=_judge_colours(pixels),
        sha256=_digest(pixels),
        width=pixels.width,
        height=pixels.height,
    )


def _judge_path(name: str, *, folder: Path) -> str:
    # By name alone: DVC may lay data out as links into its cache, which lies elsewhere.
    if os.path.isabs(name):
        return "the name is an absolute path, asked for one inside the pictures folder"
    if os.path.normpath(name).split(os.sep)[0] in ("..", "."):
        return "the name leads to no file inside the pictures folder"
    try:
        return FINE if (folder / name).is_file() else f"no such file in '{folder}'"
    except (OSError, ValueError) as error:  # a name that no file can have
        return f"no file can have this name: {error}"


def _judge_size(width: int, height: int, *, min_side: int, max_pixels: int) -> str:
    if min(width, height) < min_side:
        return f"{width} x {height} pixels, allowed are sides from {min_side}"
    if width * height > max_pixels:
        return f"{width} x {height} pixels, allowed are {max_pixels} in all"
    return FINE


def _describe(path: Path) -> str:
    with path.open("rb") as file:
        first = file.read(16)
    return f"a file that starts with {first!r}" if first else "an empty file"


def _judge_colours(pixels: Image.Image) -> str:
    lows, highs = zip(*pixels.getextrema(), strict=True)
    return f"every pixel has the colour {lows}" if lows == highs else FINE


def _digest(pixels: Image.Image) -> str:
    digest = hashlib.sha256(f"{pixels.width}x{pixels.height}".encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()
