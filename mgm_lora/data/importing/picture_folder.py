"""A folder of pictures as rows: a text file beside each picture is its caption; without any, the picture's subfolder is its label.

It knows endings, and opens no picture. The names of one folder at a time are held in memory.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from mgm_lora.data.importing.rows import Row
from mgm_lora.data.text_stream import read_text
from mgm_lora.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


def read_picture_folder(folder: Path, *, encoding: str) -> Iterator[Row]:
    """Rows of `image` and `caption`, or of `image` and `label`; raises DataError where there are neither captions nor subfolders."""
    first = next(_pictures(folder), None)
    if first is None:
        raise DataError(f"no picture lies in '{folder}' (asked for files that end in {', '.join(ENDINGS)})")
    has_captions = any(path.with_suffix(".txt").is_file() for path in _pictures(folder))
    if not has_captions and all(path.parent == folder for path in _pictures(folder)):
        raise DataError(
            f"the pictures of '{folder}' have no captions: asked for metadata.csv or metadata.jsonl with a column file_name,"
            f" a text file beside each picture ('{first.with_suffix('.txt').name}'), or a subfolder per label"
        )
    for path in _pictures(folder):
        place = str(path.relative_to(folder))
        if not place.isprintable():
            yield Row(repr(place), {}, problem="the file name is no text that can be written")
        elif has_captions:
            yield _captioned(path, place=place, encoding=encoding)
        elif path.parent == folder:
            yield Row(place, {}, problem="lies in no subfolder, whose name would be its label")
        else:
            yield Row(place, {"image": place, "label": path.parent.name})


def _captioned(path: Path, *, place: str, encoding: str) -> Row:
    caption = path.with_suffix(".txt")
    if not caption.is_file():
        return Row(place, {}, problem=f"has no caption beside it ('{caption.name}')")
    return Row(place, {"image": place, "caption": "".join(read_text(caption, encoding=encoding)).strip()})


def _pictures(folder: Path) -> Iterator[Path]:
    """In order of their names; hidden ones are left out."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                yield Path(parent, name)
