"""Where each weight of a checkpoint comes from: files, and how they name what they hold.

Keys are checked before anything is loaded, each in exactly one file, and a key that is left out is counted and told.
A model is filled file by file in the target precision, so that it and one mapped file are the most that is held. It doesn't know where
the files were found.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mgm_lora.errors import CheckpointError
from mgm_lora.model.keys import HEAD_KEY, FileNames, published_places
from mgm_lora.model.weight_files import describe_weights, open_weights

_MOST_TOLD = 40

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Files that name the weights in one way, and the part of the model that they hold."""

    files: tuple[Path, ...]
    names: FileNames
    within: tuple[str, ...] = ("",)
    """Prefixes of the published keys that are looked for here."""
    without: tuple[str, ...] = ()
    """Prefixes of those that are not."""

    def covers(self, published: str) -> bool:
        """Whether a published key is looked for here."""
        return published.startswith(self.within) and not (self.without and published.startswith(self.without))


@dataclass(frozen=True)
class Weight:
    """A published weight as it lies in a file; `described` is on the meta device."""

    file: Path
    key: str
    described: Tensor


def has_part(files: Sequence[Path], *, prefix: str) -> bool:
    """Whether any of a checkpoint's files holds a key of this part (VISION_PREFIX, AUX_PREFIX)."""
    return any(key.startswith(prefix) for file in files for key in describe_weights(file))


def list_weights(sources: Sequence[Source], *, expected: Mapping[str, Sequence[int]], tied: bool) -> dict[str, Weight]:
    """Every published weight with its file, for published keys and their shapes.

    Raises:
        CheckpointError: a source lacks keys, has others, or they have other shapes or no floating-point numbers (all are named).
    """
    weights: dict[str, Weight] = {}
    for source in sources:
        found = _weights_of(source, tied=tied)
        wanted = {key: tuple(shape) for key, shape in expected.items() if source.covers(key)}
        shapes = {key: tuple(weight.described.shape) for key, weight in found.items()}
        check_keys(shapes, wanted, where=_where(source))
        _check_precision(found, where=_where(source))
        weights |= found
    return weights


def check_keys(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, where: str) -> None:
    """Raises CheckpointError naming every missing key, every unexpected one, and every wrong shape."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    shapes = sorted(key for key in expected.keys() & found.keys() if expected[key] != found[key])
    lines = [
        *_told([f"missing: {key}" for key in missing]),
        *_told([f"unexpected: {key}" for key in unexpected]),
        *_told(
            [f"shape of {key}: {list(found[key])} in the file, {list(expected[key])} by config.json" for key in shapes]
        ),
    ]
    if lines:
        raise CheckpointError(
            f"{where} has {len(missing)} missing and {len(unexpected)} unexpected keys and {len(shapes)} of another shape:\n  - "
            + "\n  - ".join(lines)
        )


def fill_model_(model: nn.Module, *, sources: Sequence[Source], tied: bool, dtype: torch.dtype) -> None:
    """In place: gives a model without memory its weights; tied ones are left to it."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    places = published_places(shapes)
    weights = list_weights(sources, expected=expected_shapes(model, tied=tied), tied=tied)
    state: dict[str, Tensor] = {}
    for key, tensor in read_weights(weights):
        place = places[key]
        if not place.part:
            state[place.name] = tensor.to(dtype, copy=True)
        else:
            if place.name not in state:
                state[place.name] = torch.empty(shapes[place.name], dtype=dtype)
            state[place.name][place.part].copy_(tensor)
        del tensor  # else the last one of a file would be held while the next file is read
    model.load_state_dict(state, strict=False, assign=True)
    for name, parameter in model.named_parameters():
        if name in state:
            parameter.requires_grad_(True)


def expected_shapes(model: nn.Module, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Published keys of a model, without a tied head's, and their shapes."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    places = {key: place for key, place in published_places(shapes).items() if not (tied and key == HEAD_KEY)}
    return {key: _part_shape(shapes[place.name], place.part) for key, place in places.items()}


def read_weights(weights: Mapping[str, Weight]) -> Iterator[tuple[str, Tensor]]:
    """Published keys and tensors, file by file; each tensor lies in its file: copy what is to be kept."""
    by_file: dict[Path, list[str]] = {}
    for key, weight in weights.items():
        by_file.setdefault(weight.file, []).append(key)
    for file, keys in by_file.items():
        with open_weights(file) as get:
            for key in keys:
                yield key, get(weights[key].key)


def _weights_of(source: Source, *, tied: bool) -> dict[str, Weight]:
    found: dict[str, Weight] = {}
    left_out: list[str] = []
    for file in source.files:
        for key, described in describe_weights(file).items():
            published = source.names.to_published(key)
            if source.names.leaves_out(key) or (tied and published == HEAD_KEY):
                left_out.append(key)
            elif published in found:
                raise CheckpointError(f"'{file}' and '{found[published].file}' both hold {key}: which is meant?")
            else:
                found[published] = Weight(file=file, key=key, described=described)
    if left_out:
        logger.info("%s: %d keys that MGM has no use for left out", _where(source), len(left_out))
        logger.debug("left out: %s", ", ".join(sorted(left_out)))
    return found


def _check_precision(weights: Mapping[str, Weight], *, where: str) -> None:
    others = {
        key: weight.described.dtype for key, weight in weights.items() if not weight.described.is_floating_point()
    }
    if others:
        lines = _told([f"{key} holds {dtype}" for key, dtype in sorted(others.items())])
        raise CheckpointError(
            f"{where} has {len(others)} weights that are no floating-point numbers (a quantized checkpoint is not read):\n  - "
            + "\n  - ".join(lines)
        )


def _where(source: Source) -> str:
    return f"{source.names.kind} checkpoint '{source.files[0].parent}'"


def _told(lines: list[str]) -> list[str]:
    more = len(lines) - _MOST_TOLD
    return lines if more <= 0 else [*lines[:_MOST_TOLD], f"... and {more:,} more like the last"]


def _part_shape(shape: tuple[int, ...], part: tuple[int | slice, ...]) -> tuple[int, ...]:
    return tuple(torch.empty(shape, device="meta")[part].shape) if part else shape
