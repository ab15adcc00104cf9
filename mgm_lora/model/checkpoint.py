"""Reads and writes MGM checkpoints: safetensors under the published key names, strictly.

A checkpoint is a folder with `config.json`, weights (one file, or shards with an index) and the processor's files.
Weights are read shard by shard in the target precision, into a model that was built without memory for them. It doesn't
know what a model is used for.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from huggingface_hub import save_torch_state_dict, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from mgm_lora.artifacts import digest_folder
from mgm_lora.errors import CheckpointError
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.keys import to_ours, to_published
from mgm_lora.model.mgm import MGMForConditionalGeneration

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja")


def load_model(name: str | Path, *, dtype: torch.dtype, revision: str | None = None) -> MGMForConditionalGeneration:
    """A model with the weights of a folder or of a hub id, in eval mode.

    Raises:
        CheckpointError: it can't be found, or its keys or shapes are not the configuration's (all are named).
    """
    folder = resolve_checkpoint(name, revision=revision)
    config = read_config(folder)
    with init_empty_weights(include_buffers=False):
        model = MGMForConditionalGeneration(config)
    shards = _shards(folder)
    _check_keys(model, shards=shards, folder=folder)
    for path in sorted(set(shards.values())):
        _load_shard_(model, path=path, dtype=dtype)
    model.tie_weights()
    return model.eval()


def save_model(model: MGMForConditionalGeneration, *, folder: Path) -> None:
    """Writes configuration and weights under the published names; tied weights once. `load_model` reads them back bit-equal."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    tied = _tied_names(model)
    state = {
        to_published(name): value.detach().contiguous()
        for name, value in model.state_dict().items()
        if name not in tied
    }
    save_torch_state_dict(state, folder, max_shard_size="5GB")


def read_config(folder: Path) -> MGMConfig:
    """The configuration of a checkpoint folder; raises CheckpointError where it is not an MGM's."""
    path = folder / CONFIG_NAME
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{path}' is not JSON: {error}") from error
    if entries.get("model_type") != MGMConfig.model_type:
        raise CheckpointError(
            f"'{path}' says model_type {entries.get('model_type')!r}, asked for {MGMConfig.model_type!r}: is this an MGM checkpoint?"
        )
    return MGMConfig.from_dict(entries)


def resolve_checkpoint(name: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a checkpoint: the folder itself, or the snapshot in the hub cache (fetched where the hub can be reached)."""
    folder = Path(name)
    if (folder / CONFIG_NAME).is_file():
        return folder
    if folder.is_dir():
        raise CheckpointError(f"'{folder}' holds no {CONFIG_NAME}: is it a checkpoint folder?")
    if folder.is_absolute() or str(name).count("/") != 1 or str(name).startswith("."):
        raise CheckpointError(
            f"no checkpoint at '{name}': run `dvc pull`, or set base.model to a folder or a hub id (owner/name)"
        )
    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=list(_CHECKPOINT_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"no folder '{name}', and no such model in the hub cache or at the hub ({type(error).__name__}):"
            f" run `dvc pull` for a folder, or `hf download {name}` for a hub id"
        ) from error


def digest_checkpoint(folder: Path) -> str:
    """SHA-256 over configuration, weights and processor files: the identity of a base model."""
    return digest_folder(folder, pattern="*")


def check_keys(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, where: str) -> None:
    """Raises CheckpointError naming every missing key, every unexpected one, and every wrong shape."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    shapes = sorted(key for key in expected.keys() & found.keys() if expected[key] != found[key])
    lines = [
        *(f"missing: {key}" for key in missing),
        *(f"unexpected: {key}" for key in unexpected),
        *(f"shape of {key}: {list(found[key])} in the file, {list(expected[key])} by {CONFIG_NAME}" for key in shapes),
    ]
    if lines:
        raise CheckpointError(
            f"{where} has {len(missing)} missing and {len(unexpected)} unexpected keys and {len(shapes)} of another shape:\n  - "
            + "\n  - ".join(lines)
        )


def _shards(folder: Path) -> dict[str, Path]:
    """Published key to the file that holds it."""
    index = folder / INDEX_NAME
    files = [folder / WEIGHTS_NAME]
    if index.is_file():
        files = [
            folder / file for file in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        ]
    return {key: file for file in files for key in _open_keys(file)}


def _open_keys(path: Path) -> list[str]:
    if not path.is_file():
        raise CheckpointError(f"'{path.parent}' should hold {path.name}, which is not there: was the download whole?")
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise CheckpointError(f"'{path}' can't be read ({error}): was it cut short?") from error


def _check_keys(model: MGMForConditionalGeneration, *, shards: Mapping[str, Path], folder: Path) -> None:
    tied = _tied_names(model)
    expected = {
        to_published(name): tuple(value.shape) for name, value in model.state_dict().items() if name not in tied
    }
    optional = {to_published(name) for name in tied}
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(set(shards.values())):
        with safe_open(path, framework="pt") as file:
            found |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys() if key not in optional}  # noqa: SIM118
    check_keys(found, expected, where=f"checkpoint '{folder}'")


def _load_shard_(model: MGMForConditionalGeneration, *, path: Path, dtype: torch.dtype) -> None:
    """In place."""
    tied = _tied_names(model)
    with safe_open(path, framework="pt") as file:
        state = {to_ours(key): file.get_tensor(key).to(dtype) for key in file.keys() if to_ours(key) not in tied}  # noqa: SIM118
    model.load_state_dict(state, strict=False, assign=True)
    for name, parameter in model.named_parameters():
        if name in state:
            parameter.requires_grad_(True)


def _tied_names(model: MGMForConditionalGeneration) -> frozenset[str]:
    return frozenset({"language_model.lm_head.weight"}) if model.config.tie_word_embeddings else frozenset()
