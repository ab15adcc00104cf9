"""Any arm's model, ready to answer: the base, the base with the adapter on it, or a whole checkpoint."""

from pathlib import Path
from typing import Any

import torch

from mgm_lora.artifacts import digest_folder
from mgm_lora.lora.adapter import adapter_quantization, load_adapter
from mgm_lora.model.base import Base
from mgm_lora.model.checkpoint import load_model
from mgm_lora.stages import paths


def load_arm(arm: str, *, base: Base) -> tuple[Any, dict[str, str]]:
    """The model of `base`, `lora`, `merged` or `full`, and the digest of what it was read from, by name."""
    if arm == "base":
        return base.load(), {}
    if arm == "lora":
        folder = paths.TRAINED / "lora"
        return load_adapted(folder, base=base), {"adapter": digest_folder(folder)}
    folder = paths.MERGED if arm == "merged" else paths.TRAINED / "full"
    model = load_model(folder, dtype=base.dtype)
    return (model.to("cuda") if torch.cuda.is_available() else model), {"model": digest_folder(folder)}


def load_adapted(folder: Path, *, base: Base) -> Any:
    """The base, in 4 bit where the adapter was trained so, with the adapter of a folder on it; raises BaseChangedError if it is of another base."""
    model = base.load(quantization=adapter_quantization(folder))
    return load_adapter(model, folder=folder, base_digest=base.digest)
