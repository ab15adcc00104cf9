"""Looks at every picture once: is it there, of a sane size, whole, still, and does it show anything?

Threads, not processes: PIL decodes without Python's lock, and threads can't outlive a killed stage. Beside the decoding
next to nothing may be done, or a million pictures take twice their time: so a picture is told from others by its file's
bytes and by points of it, and all pixels are compared only where those points are alike and the files aren't. It knows no samples.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from mgm_lora.data.picture_facts import FactStore, PictureFacts
from mgm_lora.data.structure import FINE
from mgm_lora.decoding import to_rgb

# Named, so that no plugin starts a program (EPS: Ghostscript) or waits for a network.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_BATCH = 4096
_TASK = 16
_POINTS = (64, 48)
_Found = TypeVar("_Found")


def scan_store(store: FactStore, *, folder: Path, min_side: int, max_pixels: int, num_workers: int) -> None:
    """Finds the facts on every name of the store that has none, with a progress bar where it takes more than two seconds. Fills the store in place.

    Args:
        store: names are relative to the folder.
        folder: of the pictures.
        min_side: pixels of the shorter side.
        max_pixels: pixels of a picture; a larger one isn't decoded.
        num_workers: threads; 0: one per core.
    """
    look = partial(_look_at, folder=folder, min_side=min_side, max_pixels=max_pixels)
    with _own_size_limit(), ThreadPoolExecutor(num_workers or len(os.sched_getaffinity(0))) as pool:
        for found in _in_batches(pool, look, store.unknown(), total=len(store), what="decoding pictures"):
            store.put(found)
        doubtful = store.doubtful()
        digest = partial(_digest_pixels, folder=folder)
        for pixels in _in_batches(pool, digest, doubtful, total=len(doubtful), what="comparing pictures"):
            store.put_pixels(pixels)


def _in_batches(
    pool: ThreadPoolExecutor, function: Callable[[str], _Found], names: Iterable[str], *, total: int, what: str
) -> Iterator[list[tuple[str, _Found]]]:
    """What the function finds, in the names' order; a thread takes some names at a time, and hands them over at once."""

    def run(some: Sequence[str]) -> list[tuple[str, _Found]]:
        return [(name, function(name)) for name in some]

    remaining = iter(names)
    with tqdm(total=total, desc=what, unit="picture", mininterval=1.0, delay=2.0) as progress:
        while batch := list(islice(remaining, _BATCH)):  # so many futures at a time
            for found in pool.map(run, [batch[start : start + _TASK] for start in range(0, len(batch), _TASK)]):
                yield found
                progress.update(len(found))


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
            animated = _judge_frames(picture)
            rgb = to_rgb(picture)
            points = rgb.resize(_POINTS, Image.Resampling.NEAREST).tobytes()
        data = (folder / name).read_bytes()
    except MemoryError:
        raise
    except UnidentifiedImageError:
        return PictureFacts(missing=FINE, broken=f"{_describe(folder / name)} is none of {', '.join(FORMATS)}")
    except Exception as error:  # decoders meet a broken file with errors of any kind
        return PictureFacts(missing=FINE, broken=f"can't be decoded: {str(error) or type(error).__name__}")
    return PictureFacts(
        missing=FINE,
        wrong_size=FINE,
        animated=animated,
        broken=FINE,
        blank=_judge_colours(rgb, points),
        sha256=hashlib.sha256(data).hexdigest(),
        pixels=_digest(rgb, points)[:16],
        width=rgb.width,
        height=rgb.height,
    )


def _judge_path(name: str, *, folder: Path) -> str:
    # By name alone: DVC may lay data out as links into its cache, which lies elsewhere.
    if os.path.isabs(name):
        return "the name is an absolute path, asked for one inside the pictures folder"
    if os.path.normpath(name).split(os.sep)[0] in ("..", "."):
        return "the name leads to no file inside the pictures folder"
    try:
        return FINE if (folder / name).is_file() else "no such file in the pictures folder"
    except (OSError, ValueError) as error:  # a name that no file can have
        return f"no file can have this name: {error}"


def _judge_size(width: int, height: int, *, min_side: int, max_pixels: int) -> str:
    if min(width, height) < min_side:
        return f"{width} x {height} pixels, allowed are sides from {min_side}"
    if width * height > max_pixels:
        return f"{width} x {height} pixels, allowed are {max_pixels} in all"
    return FINE


def _judge_frames(picture: Image.Image) -> str:
    # MPO, the JPEG of many phones, has a preview or a depth map for its further frames.
    if picture.format == "MPO" or not getattr(picture, "is_animated", False):
        return FINE
    kind = "pages" if picture.format == "TIFF" else "frames"
    picture.seek(0)
    return f"several {kind} ({picture.format}), of which a model would see the first alone"


def _describe(path: Path) -> str:
    with path.open("rb") as file:
        first = file.read(16)
    return f"a file that starts with {first!r}" if first else "an empty file"


def _judge_colours(rgb: Image.Image, points: bytes) -> str:
    if points != points[:3] * (len(points) // 3):
        return FINE
    lows, highs = zip(*rgb.getextrema(), strict=True)
    return f"every pixel has the colour {lows}" if lows == highs else FINE


def _digest_pixels(name: str, *, folder: Path) -> bytes:
    with Image.open(folder / name, formats=FORMATS) as picture:
        rgb = to_rgb(picture)
        return _digest(rgb, rgb.tobytes())


def _digest(rgb: Image.Image, pixels: bytes) -> bytes:
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}".encode())
    digest.update(pixels)
    return digest.digest()
