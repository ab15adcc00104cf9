"""Reads and writes MGM checkpoints, in our layout and in the one that MGM was published in, strictly.

Ours is one folder: `config.json` with its parts' configurations inside, safetensors under the published key names, the
processor's files. The published one has a flat `config.json`, safetensors or `.bin`, and may keep the towers in folders of their own.
It doesn't know what a model is used for.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import save_torch_state_dict

from mgm_lora.artifacts import digest_file, digest_folder
from mgm_lora.errors import CheckpointError
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.hub import find_in_hub, looks_like_id
from mgm_lora.model.keys import HEAD_KEY, MGM_NAMES, published_places
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.published_config import LANGUAGE_MODELS, is_published, read_published
from mgm_lora.model.published_towers import (
    CLIP,
    OPENCLIP,
    TowerKind,
    TowerPlaces,
    TowerQuery,
    clip_shape,
    convnext_shape,
    find_tower_weights,
    read_json,
    tower_config_file,
    tower_weights,
)
from mgm_lora.model.sources import Source, expected_shapes, fill_model_, has_part, list_weights
from mgm_lora.model.weight_files import describe_weights, find_weights

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_BESIDE = ("*.json", "*.model", "*.jinja", "*.txt")
_FETCHED = ((*_BESIDE, "*.safetensors"), (*_BESIDE, "pytorch_model*.bin"))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found and not yet read: its configuration, and the files with its weights."""

    folder: Path
    config: MGMConfig
    sources: tuple[Source, ...]
    tower_configs: tuple[Path, ...] = ()
    """Files with the shapes of towers, outside of the folder."""

    def digest(self) -> str:
        """SHA-256 over configuration, weights and processor files, those of towers kept apart too: the identity of a base model."""
        inside = digest_folder(self.folder, pattern="*")
        weights = [file for source in self.sources for file in source.files if file.parent != self.folder]
        apart = [*self.tower_configs, *weights]
        if not apart:
            return inside
        lines = [inside, *(f"{file.name}\0{digest_file(file)}" for file in apart)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def load_model(
    name: str | Path, *, dtype: torch.dtype, revision: str | None = None, towers: TowerPlaces | None = None
) -> MGMForConditionalGeneration:
    """A model with the weights of a folder or of a hub id, in eval mode.

    Raises:
        CheckpointError: it or one of its towers can't be found, or its keys or shapes are not the configuration's (all are named).
    """
    checkpoint = open_checkpoint(resolve_checkpoint(name, revision=revision), towers=towers)
    model = build_empty(checkpoint.config, where=checkpoint.folder)
    fill_model_(model, sources=checkpoint.sources, tied=checkpoint.config.tie_word_embeddings, dtype=dtype)
    model.tie_weights()
    return model.eval()


def check_weights(folder: Path, *, towers: TowerPlaces | None = None) -> None:
    """Holds keys, shapes and precisions that the files tell against the configuration; no weight is read.

    A folder without weights passes: what is only planned needs none.

    Raises:
        CheckpointError: a file is cut short, or its keys or shapes are not the configuration's (all are named).
    """
    if not find_weights(folder):
        return
    checkpoint = open_checkpoint(folder, towers=towers)
    tied = checkpoint.config.tie_word_embeddings
    expected = expected_shapes(build_empty(checkpoint.config, where=folder), tied=tied)
    list_weights(checkpoint.sources, expected=expected, tied=tied)


def save_model(model: MGMForConditionalGeneration, *, folder: Path) -> None:
    """Writes configuration and weights in our layout; tied weights once. `load_model` reads them back bit-equal."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    values = {name: value.detach() for name, value in model.state_dict().items()}
    state = {}
    for key, place in published_places({name: value.shape for name, value in values.items()}).items():
        if not (model.config.tie_word_embeddings and key == HEAD_KEY):
            value = values[place.name]
            state[key] = value[place.part].clone() if place.part else value.contiguous()
    save_torch_state_dict(state, folder, max_shard_size="5GB")


def open_checkpoint(folder: Path, *, towers: TowerPlaces | None = None) -> Checkpoint:
    """The checkpoint of a folder; raises CheckpointError where its files, or a tower's, are not all there."""
    config = read_config(folder, towers=towers)
    files = find_weights(folder)
    if not files:
        raise CheckpointError(
            f"'{folder}' holds no weights ({WEIGHTS_NAME} or pytorch_model.bin, one file or shards with an index): was the download whole?"
        )
    entries = read_json(folder / CONFIG_NAME)
    if not is_published(entries):
        return Checkpoint(folder=folder, config=config, sources=(Source(files=files, names=MGM_NAMES),))
    queries = _tower_queries(entries, folder=folder, towers=towers)
    apart = find_tower_weights([query for query in queries if not has_part(files, prefix=query.kind.prefix)])
    main = Source(files=files, names=MGM_NAMES, without=tuple(kind.prefix for kind in apart))
    return Checkpoint(
        folder=folder,
        config=config,
        sources=(
            main,
            *(Source(files=found, names=kind.names, within=(kind.prefix,)) for kind, found in apart.items()),
        ),
        tower_configs=tuple(path for path in map(tower_config_file, queries) if path is not None),
    )


def read_config(folder: Path, *, towers: TowerPlaces | None = None) -> MGMConfig:
    """The configuration of a checkpoint folder of either layout; raises CheckpointError where it is not an MGM's."""
    path = folder / CONFIG_NAME
    entries = read_json(path)
    if is_published(entries):
        vision, aux = _tower_shapes(_tower_queries(entries, folder=folder, towers=towers))
        return read_published(entries, vision=vision, aux=aux, where=f"'{path}'")
    if entries.get("model_type") != MGMConfig.model_type:
        raise CheckpointError(
            f"'{path}' says model_type {entries.get('model_type')!r}, asked for {MGMConfig.model_type!r} or a published one"
            f" ({', '.join(LANGUAGE_MODELS)}): is this an MGM checkpoint?"
        )
    try:
        return MGMConfig.from_dict(entries)
    except CheckpointError:
        raise
    except Exception as error:  # transformers checks types and values with errors of many kinds
        raise CheckpointError(f"'{path}' makes no configuration: {error}") from error


def build_empty(config: MGMConfig, *, where: Path) -> MGMForConditionalGeneration:
    """A model without memory for its weights, its buffers real; raises CheckpointError where the configuration makes none."""
    try:
        with init_empty_weights(include_buffers=False):
            return MGMForConditionalGeneration(config)
    except (ValueError, TypeError, KeyError, ZeroDivisionError, RuntimeError, AssertionError) as error:
        raise CheckpointError(f"'{where / CONFIG_NAME}' makes no model: {type(error).__name__}: {error}") from error


def resolve_checkpoint(name: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a checkpoint: the folder itself, or the snapshot in the hub cache (fetched where it is not whole there)."""
    folder = Path(name)
    if (folder / CONFIG_NAME).is_file():
        return folder
    if folder.is_dir():
        raise CheckpointError(f"'{folder}' holds no {CONFIG_NAME}: is it a checkpoint folder?")
    if folder.is_absolute() or not looks_like_id(str(name)):
        raise CheckpointError(
            f"no checkpoint at '{name}': run `dvc pull`, or set base.model to a folder or a hub id (owner/name)"
        )
    return find_in_hub(str(name), revision=revision, patterns=_FETCHED, is_whole=_is_whole)


def digest_checkpoint(folder: Path, *, towers: TowerPlaces | None = None) -> str:
    """SHA-256 over all that a base model is read from: its identity."""
    return open_checkpoint(folder, towers=towers).digest()


def digest_config(folder: Path, *, towers: TowerPlaces | None = None) -> str:
    """SHA-256 over the files that say a checkpoint's shape; its weights need not be there."""
    files = [folder / CONFIG_NAME]
    entries = read_json(files[0])
    if is_published(entries):
        beside = map(tower_config_file, _tower_queries(entries, folder=folder, towers=towers))
        files += [path for path in beside if path is not None]
    digests = [digest_file(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _is_whole(folder: Path) -> bool:
    try:
        return (folder / CONFIG_NAME).is_file() and bool(find_weights(folder))
    except CheckpointError:  # an index without all of its shards
        return False


def _tower_queries(
    entries: Mapping[str, Any], *, folder: Path, towers: TowerPlaces | None
) -> tuple[TowerQuery, TowerQuery]:
    def query(kind: TowerKind) -> TowerQuery:
        said = entries.get(kind.entry)
        if not isinstance(said, str) or not said:
            raise CheckpointError(f"'{folder / CONFIG_NAME}' must name the tower {kind.entry}, found {said!r}")
        place = getattr(towers or TowerPlaces(), kind.setting)
        return TowerQuery(kind=kind, said=said, checkpoint=folder, place=place)

    return query(CLIP), query(OPENCLIP)


def _tower_shapes(queries: tuple[TowerQuery, TowerQuery]) -> list[dict[str, Any]]:
    """CLIP's entries and ConvNeXt's; what is wrong with either is told at once."""
    vision, aux = queries
    readers: list[Callable[[], dict[str, Any]]] = [
        lambda: clip_shape(vision),
        lambda: convnext_shape(aux, shapes=lambda: _aux_shapes(aux)),
    ]
    found, problems = [], []
    for read in readers:
        try:
            found.append(read())
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    return found


def _aux_shapes(query: TowerQuery) -> dict[str, tuple[int, ...]]:
    """The shapes of the auxiliary tower's weights, of the checkpoint or of the tower's folder, by published key."""
    files, names = find_weights(query.checkpoint), MGM_NAMES
    if not has_part(files, prefix=query.kind.prefix):
        files, names = tower_weights(query), query.kind.names
    return {
        names.to_published(key): tuple(value.shape) for file in files for key, value in describe_weights(file).items()
    }
