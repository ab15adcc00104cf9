"""Checkpoints on disk: whole and unchanged, or passed over.

One is written into a hidden folder, synced, sealed with the digests of its files and renamed, so a process that is killed at any moment leaves
the checkpoint or none. Reading goes by the digests, and by the step in the name: never by a clock. The last two are kept, so that there is one
to fall back on. It doesn't know what is in them.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mgm_lora.artifacts import digest_file, storage_error, write_json
from mgm_lora.errors import StorageError

logger = logging.getLogger(__name__)
SEAL_NAME = "digests.json"
_NUM_KEPT = 2
_PREFIX = "checkpoint-"


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are those that were written; each newer one is named with what is wrong with it."""
    for path in sorted(folder.glob(f"{_PREFIX}*"), key=_step_of, reverse=True):
        flaw = find_flaw(path)
        if flaw is None:
            return path
        logger.warning(
            "checkpoint '%s' is passed over: %s; the one before it is taken, or training starts over", path, flaw
        )
    return None


def has_checkpoints(folder: Path) -> bool:
    """Whether there is one, whole or not."""
    return any(folder.glob(f"{_PREFIX}*"))


def find_flaw(checkpoint: Path) -> str | None:
    """What makes a checkpoint unusable; none where its files are, byte by byte, what was written."""
    try:
        digests = json.loads((checkpoint / SEAL_NAME).read_text(encoding="utf-8"))
        for name, digest in digests.items():
            if digest_file(checkpoint / name) != digest:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"it can't be read ({error})"
    return None


@contextmanager
def new_checkpoint(folder: Path, *, step: int, is_first: bool, meet: Callable[[], None]) -> Iterator[Path]:
    """A hidden folder whose `checkpoint-STEP` becomes one of `folder` when the block ends well. All ranks call it together.

    Args:
        meet: returns when all ranks have called it.

    Raises:
        StorageError: no space, or no permission; the checkpoints before are kept.
    """
    name = f"{_PREFIX}{step}"
    unfinished = folder / f".{name}.part"
    try:
        if is_first:
            for left in folder.glob(f".{_PREFIX}*.part"):  # of processes that were killed
                shutil.rmtree(left)
            unfinished.mkdir(parents=True)
        meet()
        yield unfinished
        meet()
        if is_first:
            _seal(unfinished / name)
            _put_in_place(unfinished, folder / name)
            _remove_others(folder, step=step)
        meet()
    except (OSError, SafetensorError, RuntimeError) as error:
        if is_first:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise _explained(error, folder / name) from error


def _seal(checkpoint: Path) -> None:
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    digests = {path.relative_to(checkpoint).as_posix(): digest_file(path) for path in files}
    write_json(checkpoint / SEAL_NAME, digests)
    for path in [*checkpoint.rglob("*"), checkpoint]:
        _sync(path)


def _put_in_place(unfinished: Path, checkpoint: Path) -> None:
    if checkpoint.exists():  # one that was passed over
        shutil.rmtree(checkpoint)
    (unfinished / checkpoint.name).rename(checkpoint)
    _sync(checkpoint.parent)
    unfinished.rmdir()


def _remove_others(folder: Path, *, step: int) -> None:
    """All but the newest: older ones, and newer ones that were passed over."""
    paths = sorted(folder.glob(f"{_PREFIX}*"), key=_step_of)
    kept = [path for path in paths if _step_of(path) <= step][-_NUM_KEPT:]
    for path in paths:
        if path not in kept:
            shutil.rmtree(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def _explained(error: OSError | SafetensorError | RuntimeError, checkpoint: Path) -> Exception:
    if isinstance(error, RuntimeError):
        # torch.save writes in C++, and says of a disk's error that writing failed, not why
        if not re.search(r"PytorchStreamWriter|iostream|unexpected pos|Parent directory|cannot be opened", str(error)):
            return error
        why = f"writing failed ({str(error).splitlines()[0]})"
    elif isinstance(storage_error(error, checkpoint), StorageError):
        why = str(error)
    else:
        return error
    before = sorted(checkpoint.parent.glob(f"{_PREFIX}*"), key=_step_of)
    rest = (
        f"it goes on from '{before[-1].name}', which is kept" if before else "it starts over, there is no earlier one"
    )
    return StorageError(f"can't write '{checkpoint}': {why}. Free space or permission, and run again: {rest}")
