"""The files beside the weights of a published checkpoint and of towers kept apart: what `published_towers` and the published code read.

Towers of the published shapes get the folders that MGM calls them by; others are named for what they are. It writes no
weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgm_lora.artifacts import write_json
from mgm_lora.model.config import CLIP_L_14_336, ConvNextConfig, MGMConfig
from mgm_lora.model.pictures import MEAN, STD
from mgm_lora.model.published_config import write_published
from mgm_lora.model.published_towers import CLIP_ENTRIES, TIMM_ENTRIES, TIMM_SHAPES

_ZOO = "model_zoo/OpenAI"
_CLIP_L = f"{_ZOO}/clip-vit-large-patch14-336"
_CONVNEXT_L = f"{_ZOO}/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup"
_BICUBIC = 3


@dataclass(frozen=True)
class TowerFolders:
    """Where the towers' folders lie, relative to the checkpoint's, as its config.json names them."""

    vision: str
    aux: str


def tower_folders(config: MGMConfig) -> TowerFolders:
    """The names of a configuration's tower folders."""
    is_clip_l = all(getattr(config.vision_config, name) == value for name, value in CLIP_L_14_336.items())
    is_convnext_l = _timm_name(config.aux_config) == "convnext_large"
    return TowerFolders(
        vision=_CLIP_L if is_clip_l else f"{_ZOO}/clip",
        aux=_CONVNEXT_L if is_convnext_l else f"{_ZOO}/openclip-convnext",
    )


def write_configs(config: MGMConfig, *, folder: Path, dtype: str) -> None:
    """Writes the checkpoint's config.json and the towers' own configurations."""
    towers = tower_folders(config)
    entries = write_published(config, vision_name=towers.vision, aux_name=towers.aux, dtype=dtype)
    write_json(folder / "config.json", entries)
    write_json(folder / towers.vision / "config.json", _clip_config(config))
    write_json(folder / towers.vision / "preprocessor_config.json", _clip_preprocessor(config))
    write_json(folder / towers.aux / "open_clip_config.json", _openclip_config(config.aux_config))


def _clip_config(config: MGMConfig) -> dict[str, Any]:
    entries = {name: getattr(config.vision_config, name) for name in CLIP_ENTRIES}
    return {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", **entries}


def _clip_preprocessor(config: MGMConfig) -> dict[str, Any]:
    side = config.vision_config.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "resample": _BICUBIC,
        "size": {"shortest_edge": side},
    }


def _openclip_config(aux: ConvNextConfig) -> dict[str, Any]:
    name = _timm_name(aux)
    explicit = {"timm_model_name": "convnext", **{timm: getattr(aux, ours) for timm, ours in TIMM_ENTRIES.items()}}
    vision = {"timm_model_name": name} if name is not None else explicit
    return {"model_cfg": {"vision_cfg": vision}, "preprocess_cfg": {"mean": list(MEAN), "std": list(STD)}}


def _timm_name(aux: ConvNextConfig) -> str | None:
    """timm's name of a shape, if it has one."""
    for name, shape in TIMM_SHAPES.items():
        meant = ConvNextConfig(**shape)
        if all(getattr(meant, ours) == getattr(aux, ours) for ours in TIMM_ENTRIES.values()):
            return name
    return None
