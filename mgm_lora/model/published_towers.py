"""The towers of a published checkpoint: where they lie, and what shape they have.

`config.json` names each by a path (`model_zoo/OpenAI/clip-vit-large-patch14-336`). It is looked for where the settings
say, else as given, in the checkpoint's folder, in the current one, then in the hub's cache, then at the hub. Its shape is read from
its own configuration, or is the known one of the published names. It doesn't read weights.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgm_lora.errors import CheckpointError
from mgm_lora.model.config import CLIP_L_14_336
from mgm_lora.model.hub import download_command, find_in_cache, find_in_hub, looks_like_id
from mgm_lora.model.keys import AUX_PREFIX, CLIP_NAMES, OPENCLIP_NAMES, VISION_PREFIX, FileNames
from mgm_lora.model.published_config import AUX_ENTRY, VISION_ENTRY
from mgm_lora.model.weight_files import BIN, SAFETENSORS, find_weights

OPENCLIP_BIN = "open_clip_pytorch_model.bin"
_GAMMA = re.compile(re.escape(AUX_PREFIX) + r"vision_stages\.(\d{1,3})\.blocks\.(\d{1,3})\.gamma")


@dataclass(frozen=True)
class TowerPlaces:
    """Where the settings say that the towers lie: a folder or a hub id each; none: as `config.json` says."""

    vision_tower: str | None = None
    vision_tower_aux: str | None = None


@dataclass(frozen=True)
class KnownTower:
    """A tower that published checkpoints name, which has a place at the hub."""

    repository: str
    shape: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TowerKind:
    """CLIP, or OpenCLIP's ConvNeXt: how its folder looks, and how MGM calls it."""

    setting: str
    """Its entry in `base` of the settings."""
    entry: str
    """Its entry in the published config.json."""
    prefix: str
    """Of its published keys, where it lies inside the checkpoint."""
    names: FileNames
    weights: tuple[str, ...]
    config_name: str
    known: Mapping[str, KnownTower]
    """By the last part of the name that config.json gives."""


@dataclass(frozen=True)
class TowerQuery:
    """A tower that is looked for."""

    kind: TowerKind
    said: str
    """The name that config.json gives."""
    checkpoint: Path
    place: str | None
    """Where the settings say that it lies."""

    @property
    def known(self) -> KnownTower | None:
        """What is known of a tower of this name."""
        return self.kind.known.get(Path(self.said).name)


_CLIP_L = KnownTower("openai/clip-vit-large-patch14-336", CLIP_L_14_336)
_CONVNEXT_L = KnownTower("laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup", {})

CLIP = TowerKind(
    setting="vision_tower",
    entry=VISION_ENTRY,
    prefix=VISION_PREFIX,
    names=CLIP_NAMES,
    weights=(SAFETENSORS, BIN),
    config_name="config.json",
    known={"clip-vit-large-patch14-336": _CLIP_L},
)
OPENCLIP = TowerKind(
    setting="vision_tower_aux",
    entry=AUX_ENTRY,
    prefix=AUX_PREFIX,
    names=OPENCLIP_NAMES,
    weights=("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", OPENCLIP_BIN),
    config_name="open_clip_config.json",
    known={
        "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup": _CONVNEXT_L,
        "CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup": _CONVNEXT_L,
    },
)

TIMM_SHAPES: dict[str, dict[str, Any]] = {
    "convnext_base": {"depths": [3, 3, 27, 3], "dims": [128, 256, 512, 1024]},
    "convnext_large": {"depths": [3, 3, 27, 3], "dims": [192, 384, 768, 1536]},
    "convnext_xxlarge": {"depths": [3, 4, 30, 3], "dims": [384, 768, 1536, 3072], "layer_norm_eps": 1e-5},
}
"""The shapes that OpenCLIP's `timm_model_name` stands for, of those that MGM was published with."""

TIMM_ENTRIES = {
    "depths": "depths",
    "dims": "dims",
    "norm_eps": "layer_norm_eps",
    "ls_init_value": "layer_scale_init_value",
}
"""timm's names and ours of what says a ConvNeXt's shape."""

CLIP_ENTRIES = (
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
)


def find_tower_weights(queries: Sequence[TowerQuery]) -> dict[TowerKind, tuple[Path, ...]]:
    """The files with the weights of towers that are kept apart.

    Raises:
        CheckpointError: towers can't be found; one message says of each where it was looked for and the command that gets it.
    """
    found: dict[TowerKind, tuple[Path, ...]] = {}
    problems: list[str] = []
    for query in queries:
        try:
            found[query.kind] = tower_weights(query)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(
            f"the checkpoint '{queries[0].checkpoint}' holds no weights of {len(problems)} tower{'s' * (len(problems) > 1)}"
            " that its config.json names:\n  - " + "\n  - ".join(problems)
        )
    return found


def tower_weights(query: TowerQuery) -> tuple[Path, ...]:
    """The files with a tower's weights; raises CheckpointError, saying how to get them."""
    names = query.kind.weights
    return find_weights(find_tower(query, is_whole=lambda folder: bool(find_weights(folder, names=names))), names=names)


def find_tower(query: TowerQuery, *, is_whole: Callable[[Path], bool]) -> Path:
    """A tower's folder; raises CheckpointError, saying how to get it."""
    tried = _candidates(query)
    local = next((folder for folder in tried if folder.is_dir() and is_whole(folder)), None)
    if local is not None:
        return local
    repository = _repository(query)
    try:
        if repository is not None:
            return find_in_hub(repository, revision=None, patterns=_patterns(query.kind), is_whole=is_whole)
        reason = "and its name is none that the hub is asked for:"
    except CheckpointError as error:
        gated = " (it is gated: accept its licence there and run `hf auth login`)" if "gated" in str(error) else ""
        reason = (
            f"nor in the hub cache or at the hub as {repository}{gated}: run {download_command(repository or '')}, or"
        )
    places = " or ".join(f"'{folder}'" for folder in tried)
    said = query.place if query.place is not None else query.said
    entry = f"base.{query.kind.setting}" if query.place is not None else query.kind.entry
    raise CheckpointError(
        f"{entry} '{said}': {' or '.join(query.kind.weights)} is not at {places}, {reason}"
        f" set base.{query.kind.setting} to its folder or hub id"
    )


def clip_shape(query: TowerQuery) -> dict[str, Any]:
    """CLIP's entries, of its folder's config.json or of its known name; raises CheckpointError where there is neither."""
    path = tower_config_file(query)
    if path is None:
        if query.known is not None:
            return dict(query.known.shape)
        path = find_tower(query, is_whole=lambda folder: (folder / query.kind.config_name).is_file()) / "config.json"
    entries = read_json(path)
    inner = entries.get("vision_config") if entries.get("model_type") == "clip" else entries
    if entries.get("model_type") not in ("clip", "clip_vision_model") or not isinstance(inner, dict):
        raise CheckpointError(
            f"'{path}' says model_type {entries.get('model_type')!r}, asked for CLIP's: is it the picture tower's folder?"
        )
    return {name: inner[name] for name in CLIP_ENTRIES if name in inner}


def convnext_shape(query: TowerQuery, *, shapes: Callable[[], Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """ConvNeXt's entries, of its folder's open_clip_config.json, of its known name, or of its weights' shapes by published key."""
    path = tower_config_file(query)
    said = _vision_cfg(path) if path is not None else {}
    if str(said.get("timm_model_name")) in TIMM_SHAPES:
        return dict(TIMM_SHAPES[said["timm_model_name"]])
    if "depths" in said and "dims" in said:
        return {ours: said[timm] for timm, ours in TIMM_ENTRIES.items() if timm in said}
    if path is None and query.known is not None:
        return dict(query.known.shape)
    return _convnext_of_weights(shapes())


def tower_config_file(query: TowerQuery) -> Path | None:
    """The file that says a tower's shape, where there is one on this machine."""
    name = query.kind.config_name
    folders = _candidates(query)
    repository = _repository(query)
    if repository is not None:
        cached = find_in_cache(repository, revision=None, is_whole=lambda folder: (folder / name).is_file())
        folders += [cached] if cached is not None else []
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file with a table; raises CheckpointError where it is none."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"'{path}' must hold a table, found {type(entries).__name__}")
    return entries


def _candidates(query: TowerQuery) -> list[Path]:
    if query.place is not None:
        return [Path(query.place).expanduser()]
    said = Path(query.said).expanduser()
    return [said] if said.is_absolute() else [query.checkpoint / said, said]


def _repository(query: TowerQuery) -> str | None:
    if query.place is not None:
        return query.place if looks_like_id(query.place) else None
    if query.known is not None:
        return query.known.repository
    return query.said if looks_like_id(query.said) else None


def _patterns(kind: TowerKind) -> list[list[str]]:
    """Safetensors where there are any, else what else there is."""
    configs = [kind.config_name, "preprocessor_config.json"]
    best = [name for name in kind.weights if name.endswith(".safetensors")]
    rest = [name for name in kind.weights if not name.endswith(".safetensors")]
    return [[*configs, *names] for names in (best, rest)]


def _vision_cfg(path: Path) -> dict[str, Any]:
    model = read_json(path).get("model_cfg")
    said = model.get("vision_cfg") if isinstance(model, dict) else None
    if not isinstance(said, dict):
        raise CheckpointError(f"'{path}' has no model_cfg.vision_cfg: is it OpenCLIP's?")
    for name in ("depths", "dims"):
        value = said.get(name, [1, 1, 1, 1])
        if not (isinstance(value, list) and len(value) == 4 and all(type(v) is int and v > 0 for v in value)):
            raise CheckpointError(f"'{path}' says {name} {value!r}, asked for four positive numbers")
    return said


def _convnext_of_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    depths: dict[int, int] = {}
    dims: dict[int, int] = {}
    for key, shape in shapes.items():
        found = _GAMMA.fullmatch(key)
        if found is not None and len(shape) == 1:
            stage, block = int(found[1]), int(found[2])
            depths[stage] = max(depths.get(stage, 0), block + 1)
            dims[stage] = int(shape[0])
    if sorted(depths) != [0, 1, 2, 3]:
        raise CheckpointError(
            f"the auxiliary tower's weights hold the ConvNeXt stages {sorted(depths)}, asked for 0 to 3:"
            " is it OpenCLIP's ConvNeXt?"
        )
    return {"depths": [depths[stage] for stage in range(4)], "dims": [dims[stage] for stage in range(4)]}
