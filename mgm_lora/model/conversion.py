"""Writes a checkpoint anew in either layout, a file at a time: never the whole model in memory, bit for bit what was read.

Both layouts use the published keys, so that a weight is copied without knowing what it is; only separately kept towers
have other names. It doesn't build the model.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from mgm_lora.artifacts import new_artifact
from mgm_lora.errors import CheckpointError
from mgm_lora.model.checkpoint import Checkpoint, build_empty
from mgm_lora.model.keys import CLIP_NAMES, MGM_NAMES, OPENCLIP_NAMES, FileNames
from mgm_lora.model.published_folders import tower_folders, write_configs
from mgm_lora.model.published_towers import CLIP, OPENCLIP, OPENCLIP_BIN
from mgm_lora.model.sources import Weight, expected_shapes, list_weights, read_weights
from mgm_lora.model.weight_files import SAFETENSORS

Layout = Literal["ours", "published"]
TowersWritten = Literal["inside", "apart"]

# Tokenizer and generation settings, which belong to the checkpoint whatever its layout.
_KEPT_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
    "generation_config.json",
)
_SHARD_BYTES = 2 * 10**9


@dataclass(frozen=True)
class _File:
    """A file that will be written."""

    path: Path
    names: FileNames
    keys: tuple[str, ...]
    """Published ones."""


def convert_checkpoint(
    checkpoint: Checkpoint,
    *,
    destination: Path,
    layout: Layout,
    towers: TowersWritten = "inside",
    dtype: torch.dtype | None = None,
    shard_bytes: int = _SHARD_BYTES,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Writes a checkpoint to a new folder, which is there when it is whole and not before.

    Args:
        checkpoint: what is read.
        destination: a folder that doesn't exist.
        layout: ours, or the published one.
        towers: for the published layout: in the checkpoint's files, or in CLIP's and OpenCLIP's own.
        dtype: the weights' precision; none: as they are.
        shard_bytes: of the largest file, and so what is held of the weights at once.
        progress: is told the bytes of every weight that was read.

    Raises:
        CheckpointError: the destination exists, or a key or shape is not the configuration's (all are named).
        StorageError: it can't be written.
    """
    if destination.exists():
        raise CheckpointError(f"'{destination}' exists already: remove it, or name another folder")
    if layout == "ours" and towers == "apart":
        raise CheckpointError("our layout keeps the towers inside: towers are written apart in the published one")
    weights = find_all_weights(checkpoint)
    described = {key: _as_written(weight.described, dtype) for key, weight in weights.items()}
    with new_artifact(destination) as folder:
        _write_beside(checkpoint, folder=folder, layout=layout, described=described)
        for file in _files(checkpoint, described=described, folder=folder, apart=towers == "apart", most=shard_bytes):
            chosen = {key: weights[key] for key in file.keys}
            _write_weights(file, dict(_read(chosen, file=file, dtype=dtype, progress=progress)))


def find_all_weights(checkpoint: Checkpoint) -> dict[str, Weight]:
    """Every weight of a checkpoint by published key, checked against its configuration."""
    tied = checkpoint.config.tie_word_embeddings
    model = build_empty(checkpoint.config, where=checkpoint.folder)
    return list_weights(checkpoint.sources, expected=expected_shapes(model, tied=tied), tied=tied)


def _as_written(described: Tensor, dtype: torch.dtype | None) -> Tensor:
    return described if dtype is None else described.to(dtype)


def _write_beside(checkpoint: Checkpoint, *, folder: Path, layout: Layout, described: Mapping[str, Tensor]) -> None:
    if layout == "ours":
        checkpoint.config.save_pretrained(folder)
    else:
        ((dtype, _),) = Counter(value.dtype for value in described.values()).most_common(1)
        write_configs(checkpoint.config, folder=folder, dtype=str(dtype).removeprefix("torch."))
    for pattern in _KEPT_FILES:
        for path in sorted(checkpoint.folder.glob(pattern)):
            shutil.copyfile(path, folder / path.name)


def _files(
    checkpoint: Checkpoint, *, described: Mapping[str, Tensor], folder: Path, apart: bool, most: int
) -> Iterator[_File]:
    """Every file of weights; writes the index of the shards."""
    prefixes = (CLIP.prefix, OPENCLIP.prefix) if apart else ()
    inside = {key: value for key, value in described.items() if not (prefixes and key.startswith(prefixes))}
    split = split_torch_state_dict_into_shards(inside, max_shard_size=most)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{SAFETENSORS}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name, keys in split.filename_to_tensors.items():
        yield _File(folder / name, MGM_NAMES, tuple(keys))
    if apart:
        towers = tower_folders(checkpoint.config)
        vision = tuple(key for key in described if key.startswith(CLIP.prefix))
        aux = tuple(key for key in described if key.startswith(OPENCLIP.prefix))
        yield _File(folder / towers.vision / SAFETENSORS, CLIP_NAMES, vision)
        yield _File(folder / towers.aux / OPENCLIP_BIN, OPENCLIP_NAMES, aux)


def _read(
    weights: Mapping[str, Weight],
    *,
    file: _File,
    dtype: torch.dtype | None,
    progress: Callable[[int], object] | None,
) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in read_weights(weights):
        yield file.names.from_published(key), tensor.to(dtype or tensor.dtype, copy=True).contiguous()
        if progress is not None:
            progress(tensor.nbytes)


def _write_weights(file: _File, state: dict[str, Tensor]) -> None:
    file.path.parent.mkdir(parents=True, exist_ok=True)
    if file.path.suffix == ".safetensors":
        save_file(state, file.path, metadata={"format": "pt"})
        return
    with file.path.open("wb") as opened:
        try:
            torch.save(state, opened)
        except RuntimeError as error:  # torch hides behind its own error why a disk refused
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
