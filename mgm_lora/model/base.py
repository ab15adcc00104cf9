"""The base model as every stage finds it: its folder, its identity, its precision. It doesn't know what is made of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mgm_lora.model.checkpoint import digest_checkpoint, load_model, resolve_checkpoint
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.published_towers import TowerPlaces
from mgm_lora.settings import BaseSettings

Quantization = Literal["none", "nf4"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Base:
    """Found, not yet loaded."""

    folder: Path
    digest: str
    dtype: torch.dtype
    identity: dict[str, Any]
    """What manifests say of it."""
    towers: TowerPlaces | None = None
    """Where the settings say that a published checkpoint's towers lie."""

    def load(self, *, quantization: Quantization = "none") -> MGMForConditionalGeneration:
        """The model, on the card if there is one, its language model in 4 bit if asked; raises SettingsError where that can't run."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(self.folder, dtype=self.dtype, towers=self.towers)
        if quantization == "nf4":
            from mgm_lora.model.quantization import quantize_language_model_  # bitsandbytes takes a second to import

            quantize_language_model_(model, device=device)
        return model.to(device)


def find_base(settings: BaseSettings) -> Base:
    """The base of the settings; raises CheckpointError where it, or a tower of it, isn't there."""
    folder = resolve_checkpoint(settings.model, revision=settings.revision)
    towers = tower_places(settings)
    digest = digest_checkpoint(folder, towers=towers)
    identity = {"model": settings.model, "revision": settings.revision, "digest": digest}
    return Base(folder=folder, digest=digest, dtype=DTYPES[settings.dtype], identity=identity, towers=towers)


def tower_places(settings: BaseSettings) -> TowerPlaces:
    """Where the settings say that the towers lie."""
    return TowerPlaces(vision_tower=settings.vision_tower, vision_tower_aux=settings.vision_tower_aux)
