"""All of an import in its place, or nothing changed: parts are made in a folder beside, and renamed; a rename that fails undoes those before it.

It doesn't know what the parts are.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mgm_lora.artifacts import storage_error
from mgm_lora.errors import DataError, MgmLoraError


def refuse_existing(paths: Sequence[Path]) -> None:
    """Raises DataError where one is there."""
    found = [f"'{path}'" for path in paths if os.path.lexists(path)]
    if found:
        raise DataError(
            f"{' and '.join(found)} {'is' if len(found) == 1 else 'are'} there: take another --name, or --force to replace"
        )


@contextmanager
def staging(parent: Path, *, name: str) -> Iterator[Path]:
    """A folder below the parent that vanishes; raises StorageError where there is no space or permission."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".import-{name}-", suffix=".part", dir=parent))
    except OSError as error:
        raise storage_error(error, parent) from error
    try:
        folder.chmod(0o755)
        yield folder
    except MgmLoraError:
        raise
    except OSError as error:
        raise storage_error(error, parent) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def install(parts: Mapping[Path, Path], *, backup: Path) -> None:
    """Renames each part to its place; what was there goes into the folder `backup`, and comes back where anything fails."""
    undo: list[tuple[Path, Path]] = []
    try:
        for number, (part, place) in enumerate(parts.items()):
            place.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(place):
                old = backup / f"old-{number}"
                place.rename(old)
                undo.append((old, place))
            part.rename(place)
            undo.append((place, part))
    except BaseException:
        for now, before in reversed(undo):
            with suppress(OSError):
                now.rename(before)
        raise
