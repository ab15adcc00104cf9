"""Files of weights, safetensors and `.bin`: which ones a folder has, what they hold, and one tensor after another.

A `.bin` is read with `weights_only`: it may hold tensors and nothing that runs. Both kinds are mapped into memory, not
read at once, so that what is kept is decided by who copies. It doesn't know what the keys mean.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mgm_lora.errors import CheckpointError

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"
CHECKPOINT_FILES = (SAFETENSORS, BIN)

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_BROKEN = (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError, KeyError)


def find_weights(folder: Path, *, names: tuple[str, ...] = CHECKPOINT_FILES) -> tuple[Path, ...]:
    """The files that hold a folder's weights: of the first name that is there, as shards with an index or as one file; none: an empty tuple.

    Raises:
        CheckpointError: the index is broken, or names a file that is not in the folder.
    """
    for name in names:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
        if (folder / name).is_file():
            return (folder / name,)
    return ()


def describe_weights(path: Path) -> dict[str, Tensor]:
    """Every key of a file with a tensor on the meta device: its shape and precision; raises CheckpointError where it is broken."""
    with _broken_told(path):
        if path.suffix != ".safetensors":
            return dict(_load_bin(path, map_location="meta"))
        with safe_open(path, framework="pt") as file:
            found = {}
            for key in file.keys():  # noqa: SIM118
                piece = file.get_slice(key)
                found[key] = torch.empty(piece.get_shape(), dtype=_DTYPES[piece.get_dtype()], device="meta")
            return found


@contextmanager
def open_weights(path: Path) -> Iterator[Callable[[str], Tensor]]:
    """A file's tensors by key, each once. They lie in the file as it is mapped, or vanish with it: copy what is to be kept."""
    if path.suffix == ".safetensors":
        with _broken_told(path):
            file = safe_open(path, framework="pt")
        with file as opened:
            yield opened.get_tensor
    else:
        with _broken_told(path):
            state = dict(_load_bin(path, map_location="cpu"))
        yield state.pop  # so that nothing of this file is left when the next one is opened


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"'{index}' is no index of shards (a table 'weight_map' is needed): {error}") from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"'{index}' names files outside of its folder: {outside}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"'{index.parent}' should hold {', '.join(missing)}, which is not there: was the download whole?"
        )
    return tuple(index.parent / name for name in names)


def _load_bin(path: Path, *, map_location: str) -> Mapping[str, Tensor]:
    # files from before torch 1.6 are no zip archives, and can't be mapped
    state = torch.load(path, map_location=map_location, weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("it holds no table of tensors")
    return state


@contextmanager
def _broken_told(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise CheckpointError(f"'{path.parent}' should hold {path.name}, which is not there: was the download whole?")
    try:
        yield
    except _BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"'{path}' can't be read ({reason}): was it cut short? Its size is {path.stat().st_size:,} bytes"
        ) from error
