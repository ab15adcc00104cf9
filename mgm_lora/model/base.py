"""The base model as every stage finds it: its folder, its identity, its precision. It doesn't know what is made of it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from mgm_lora.model.checkpoint import (
    check_weights,
    digest_checkpoint,
    digest_config,
    load_model,
    read_config,
    resolve_checkpoint,
)
from mgm_lora.model.config import MGMConfig, changed_config
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.processor import MGMProcessor
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
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What of its configuration the settings change."""

    def load(self, *, quantization: Quantization = "none", keep_originals: bool = False) -> MGMForConditionalGeneration:
        """The model, on the card if there is one, its language model in 4 bit if asked; raises SettingsError where that can't run.

        Args:
            keep_originals: keep the weights before 4 bit too, in the machine's memory, for who begins with what was lost.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(self.folder, dtype=self.dtype, towers=self.towers)
        model.config = changed_config(model.config, self.changes)
        if quantization == "nf4":
            from mgm_lora.model.quantization import quantize_language_model_  # bitsandbytes takes a second to import

            quantize_language_model_(model, device=device, keep_originals=keep_originals)
        return model.to(device)

    def processor(self) -> MGMProcessor:
        """Its processor; raises CheckpointError where it has none that can be read."""
        return MGMProcessor.from_pretrained(self.folder, towers=self.towers, changes=self.changes)


def find_base(settings: BaseSettings) -> Base:
    """The base of the settings; raises CheckpointError where it, or a tower of it, isn't there."""
    folder = resolve_checkpoint(settings.model, revision=settings.revision)
    towers = tower_places(settings)
    changes = settings.changes()
    digest = _with_changes(digest_checkpoint(folder, towers=towers), changes)
    identity = {"model": settings.model, "revision": settings.revision, "digest": digest, **changes}
    return Base(
        folder=folder, digest=digest, dtype=DTYPES[settings.dtype], identity=identity, towers=towers, changes=changes
    )


def check_base(settings: BaseSettings) -> None:
    """Raises CheckpointError where the base's weights are cut short or not what its configuration says; reads no weight, and needs none."""
    check_weights(resolve_checkpoint(settings.model, revision=settings.revision), towers=tower_places(settings))


def find_processor(settings: BaseSettings) -> MGMProcessor:
    """The processor of the base of the settings; its weights need not be there."""
    folder = resolve_checkpoint(settings.model, revision=settings.revision)
    return MGMProcessor.from_pretrained(folder, towers=tower_places(settings), changes=settings.changes())


def find_config(settings: BaseSettings) -> tuple[MGMConfig, str]:
    """The configuration of the base of the settings, and the digest of what says its shapes; its weights need not be there."""
    folder = resolve_checkpoint(settings.model, revision=settings.revision)
    towers, changes = tower_places(settings), settings.changes()
    digest = _with_changes(digest_config(folder, towers=towers), changes)
    return changed_config(read_config(folder, towers=towers), changes), digest


def tower_places(settings: BaseSettings) -> TowerPlaces:
    """Where the settings say that the towers lie."""
    return TowerPlaces(vision_tower=settings.vision_tower, vision_tower_aux=settings.vision_tower_aux)


def _with_changes(digest: str, changes: Mapping[str, Any]) -> str:
    """A base that looks or speaks otherwise is another base: an adapter of the one is not one of the other."""
    if not changes:
        return digest
    return hashlib.sha256(f"{digest}\n{json.dumps(changes, sort_keys=True)}".encode()).hexdigest()
