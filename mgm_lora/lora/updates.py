"""What a training has written into the weights: of every linear map at an application point, how large the update is and how many directions it has.

An adapter and a full fine-tune are measured alike, as the difference of effective weights, so that they can be laid side by side. The effective
rank is exp(entropy) of the normalised singular values (Roy and Vetterli 2007): r equal directions give r, one that outweighs the rest gives
nearly 1. Embeddings, norms and the head are left out. It doesn't know how the weights were trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from mgm_lora.lora.adapter import FULL_PARTS_NAME, is_adapter, load_adapter, plain_name
from mgm_lora.lora.points import point_of
from mgm_lora.model.base import Base
from mgm_lora.model.checkpoint import load_model


@dataclass(frozen=True)
class WeightUpdate:
    """Of one linear map."""

    module: str
    """Its path in the model that is not wrapped."""
    point: str
    norm: float
    """Frobenius norm of what was added."""
    relative_norm: float
    """Over that of the base's weight."""
    effective_rank: float
    """0 where nothing was added."""


def measure_updates(folder: Path, *, base: Base) -> list[WeightUpdate]:
    """Of a TrainedAdapter or a whole trained model, every map that is no longer the base's, in the model's order.

    One map at a time is brought to double precision, on the card if there is one.

    Raises:
        ArtifactError: the folder holds neither.
        BaseChangedError: an adapter of another base.
    """
    with torch.no_grad():
        pairs = _of_adapter(folder, base=base) if is_adapter(folder) else _of_model(folder, base=base)
        found = [_measure(name, before=before, added=added) for name, before, added in pairs]
    return [update for update in found if update.norm > 0.0]


def _of_adapter(folder: Path, *, base: Base) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, weight before, and what was added, in double precision."""
    plain = base.load()
    full_parts = load_file(folder / FULL_PARTS_NAME) if (folder / FULL_PARTS_NAME).is_file() else {}
    for name, module in _maps(plain):
        after = full_parts.get(f"{name}.weight")
        if after is not None:
            before = module.weight.detach().double()
            yield name, before, after.to(before) - before
    adapted = load_adapter(plain, folder=folder, base_digest=base.digest, over="these weights")
    for path, layer in [(path, part) for path, part in adapted.named_modules() if isinstance(part, LoraLayer)]:
        yield plain_name(path), *_folded(layer)


def _folded(layer: Any) -> tuple[Tensor, Tensor]:
    weight = layer.get_base_layer().weight
    kept = weight.data
    before = weight.data = kept.double()
    layer.merge(safe_merge=True)  # whatever the method: what the layer computes with
    added = weight.data - before
    weight.data = kept
    return before, added


def _of_model(folder: Path, *, base: Base) -> Iterator[tuple[str, Tensor, Tensor]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = dict(_maps(load_model(folder, dtype=base.dtype)))
    for name, module in _maps(load_model(base.folder, dtype=base.dtype, towers=base.towers)):
        before = module.weight.detach().to(device, torch.float64)
        yield name, before, trained[name].weight.detach().to(before) - before


def _maps(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and point_of(name) is not None:
            yield name, module


def _measure(name: str, *, before: Tensor, added: Tensor) -> WeightUpdate:
    norm = float(torch.linalg.matrix_norm(added))
    return WeightUpdate(
        module=name,
        point=str(point_of(name)),
        norm=_rounded(norm),
        relative_norm=_rounded(norm / float(torch.linalg.matrix_norm(before))),
        effective_rank=_rounded(effective_rank(added)),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")  # beyond that sums in another order differ


def effective_rank(matrix: Tensor) -> float:
    """exp(-sum p log p) with p the singular values over their sum; 0 for a matrix of zeros.

    Args:
        matrix: [d, k], in double precision: singular values come from the smaller Gram matrix, which is fast and exact to 1e-8 of the largest.
    """
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    values = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt()
    total = float(values.sum())
    if total == 0.0:
        return 0.0
    shares = values[values > 1e-8 * values.max()] / total
    return float(torch.exp(-(shares * shares.log()).sum()))
