"""Any model of the comparison, ready to answer: the base, the base with an adapter on it, or a whole checkpoint."""

from pathlib import Path
from typing import Any

import torch

from mgm_lora.artifacts import digest_folder
from mgm_lora.lora.adapter import adapter_quantization, is_adapter, load_adapter
from mgm_lora.model.base import Base
from mgm_lora.model.checkpoint import load_model
from mgm_lora.stages import paths


def load_named(name: str, *, base: Base) -> tuple[Any, dict[str, str]]:
    """The model `base`, `merged` or that of a training (`lora-17`), and the digest of what it was read from, by noun."""
    if name == "base":
        return base.load(), {}
    folder = paths.model_folder(name)
    if is_adapter(folder):
        return load_adapted(folder, base=base), {"adapter": digest_folder(folder)}
    model = load_model(folder, dtype=base.dtype)
    return (model.to("cuda") if torch.cuda.is_available() else model), {"model": digest_folder(folder)}


def load_adapted(folder: Path, *, base: Base) -> Any:
    """The base, in 4 bit where the adapter was trained so, with the adapter of a folder on it; raises BaseChangedError if it is of another base."""
    model = base.load(quantization=adapter_quantization(folder))
    return load_adapter(model, folder=folder, base_digest=base.digest)
