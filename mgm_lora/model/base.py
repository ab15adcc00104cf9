"""The base model as every stage finds it: its folder, its identity, its precision. It doesn't know what is made of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mgm_lora.model.checkpoint import digest_checkpoint, load_model, resolve_checkpoint
from mgm_lora.model.mgm import MGMForConditionalGeneration
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

    def load(self, *, quantization: Quantization = "none") -> MGMForConditionalGeneration:
        """The model, on the card if there is one, its language model in 4 bit if asked; raises SettingsError where that can't run."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(self.folder, dtype=self.dtype)
        if quantization == "nf4":
            from mgm_lora.model.quantization import quantize_language_model_  # bitsandbytes takes a second to import

            quantize_language_model_(model, device=device)
        return model.to(device)


def find_base(settings: BaseSettings) -> Base:
    """The base of the settings; raises CheckpointError where it isn't there."""
    folder = resolve_checkpoint(settings.model, revision=settings.revision)
    digest = digest_checkpoint(folder)
    identity = {"model": settings.model, "revision": settings.revision, "digest": digest}
    return Base(folder=folder, digest=digest, dtype=DTYPES[settings.dtype], identity=identity)
