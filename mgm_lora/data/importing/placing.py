"""Brings a source's pictures into the data folder: copied or linked, or written from the bytes that a row holds.

Nothing from outside the source's picture folder is taken: a name may not climb out of it, nor a link lead out. A file
that isn't there is left for the checks to tell. It opens no picture.
"""

import errno
import hashlib
import os
import shutil
from functools import lru_cache
from pathlib import Path

from mgm_lora.data.importing.drafts import HeldPicture, RowError
from mgm_lora.data.importing.picture_folder import ENDINGS
from mgm_lora.errors import DataError

_KNOWN_NAMES = 16_384
_ENDING_OF = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\x00": ".tiff",
    b"MM\x00*": ".tiff",
}


class PicturePlacer:
    """Puts pictures into one folder."""

    def __init__(self, source: Path, *, destination: Path, link: bool) -> None:
        """Takes them from the folder `source`; `link` makes hard links instead of copies."""
        self._source = Path(os.path.abspath(source))
        self._real_source = os.path.realpath(source)
        self._destination = destination
        self._link = link
        self._place_name = lru_cache(maxsize=_KNOWN_NAMES)(self._place_new_name)

    def place(self, picture: str | HeldPicture) -> str:
        """The name in the destination, of which the file may be missing; raises RowError where it isn't to be taken."""
        return self._place_held(picture) if isinstance(picture, HeldPicture) else self._place_name(picture)

    def _place_held(self, picture: HeldPicture) -> str:
        digest = hashlib.sha256(picture.data).hexdigest()
        name = f"{digest[:2]}/{digest[2:34]}{_ending(picture)}"
        path = self._destination / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture.data)
        return name

    def _place_new_name(self, given: str) -> str:
        name = self._judge(given)
        path = self._destination / name
        try:
            if not path.exists() and (self._source / name).is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._bring(Path(self._real_source, os.path.realpath(self._source / name)), path)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
        return name

    def _judge(self, given: str) -> str:
        """The name below the source folder, in its shortest form."""
        if "\0" in given:
            raise RowError(f"no file can have the name {given!r}")
        if "://" in given:
            raise RowError(f"{given!r} is an address: download the pictures first")
        name = os.path.relpath(given, self._source) if os.path.isabs(given) else os.path.normpath(given)
        if name.split(os.sep)[0] in ("..", "."):
            raise RowError(f"{given!r} climbs out of the picture folder '{self._source}'")
        real = os.path.realpath(self._source / name)
        if os.path.commonpath([real, self._real_source]) != self._real_source:
            raise RowError(f"{given!r} is a link that leads out of the picture folder '{self._source}'")
        return name

    def _bring(self, source: Path, path: Path) -> None:
        if not self._link:
            shutil.copyfile(source, path)
            return
        try:
            os.link(source, path)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                raise
            raise DataError(
                f"'{source}' can't be linked into '{path.parent}' ({error.strerror}): leave --link out"
            ) from error


def _ending(picture: HeldPicture) -> str:
    named = Path(picture.name).suffix.lower()
    by_bytes = next((ending for start, ending in _ENDING_OF.items() if picture.data.startswith(start)), "")
    return by_bytes or (named if named in ENDINGS else ".bin")
