"""The invariants of the LoRA methods, measured on one model: one table for the tests, which hold it, and for docs/methods.md, which shows it.

A figure is a largest absolute difference over the largest absolute logit (or weight), unless it is a count. Where a method can't hold an invariant
as the others do, its own bound stands in `EXCEPTIONS` with the reason; nothing is left out. It knows no trainer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from mgm_lora.arm_settings import LoraSettings
from mgm_lora.artifacts import Manifest, write_manifest
from mgm_lora.lora.adapter import KIND, load_adapter, merge_adapter_, plain_name, save_adapter, stored_name
from mgm_lora.lora.injection import TrainableModel, inject_adapter_
from mgm_lora.lora.optimizer import make_optimizer
from mgm_lora.model.base import DTYPES
from mgm_lora.model.checkpoint import load_model
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.quantization import dequantize_language_model_, dequantized, quantize_language_model_

Batch = dict[str, Tensor]
DIGEST = "0" * 64
NUM_STEPS = 10
LEARNING_RATE = 1e-2
_LANGUAGE = ("language_attention", "language_mlp")
_POINTS = (*_LANGUAGE, "vision_attention", "projector", "mining")


@dataclass(frozen=True)
class Method:
    """A method as the settings ask for it."""

    name: str
    point: Mapping[str, Any]
    quantization: str = "none"
    others: Mapping[str, Any] | None = None
    """Of the points outside the language model, where those can't have the method."""

    def settings(self) -> LoraSettings:
        """All five points."""
        common = {"mode": "lora", "rank": 4, "alpha": 8.0}
        points = {name: common | dict(self.point) for name in _LANGUAGE}
        points |= {name: common | dict(self.point if self.others is None else self.others) for name in _POINTS[2:]}
        budget = {"adalora": {"target_rank": 2}} if self.point.get("method") == "adalora" else {}
        step = {"quantization": self.quantization}
        return LoraSettings.model_validate({"learning_rate": LEARNING_RATE, "step": step, **points, **budget})


METHODS = {
    method.name: method
    for method in (
        Method("LoRA", {}),
        Method("rsLoRA", {"method": "rslora"}),
        Method("DoRA", {"method": "dora"}),
        Method("PiSSA", {"method": "pissa"}),
        Method("OLoRA", {"method": "olora"}),
        Method("LoRA+", {"loraplus_ratio": 4.0}),
        Method("AdaLoRA", {"method": "adalora"}),
        Method("QLoRA", {}, quantization="nf4"),
        Method("LoftQ", {"method": "loftq"}, quantization="nf4", others={}),
        Method("DoRA, 4 bit", {"method": "dora"}, quantization="nf4"),
        Method("AdaLoRA, 4 bit", {"method": "adalora"}, quantization="nf4"),
    )
}


@dataclass(frozen=True)
class Invariant:
    """What is measured, in a line, and how large it may be."""

    about: str
    bound: float


INVARIANTS = {
    "fresh": Invariant("a fresh adapter changes nothing", 2e-6),
    "gradients": Invariant("parameters that get a gradient and should not, or should and don't", 0),
    "disabled": Invariant("disabled, it answers as the base", 1e-6),
    "frozen": Invariant("frozen weights that differ from the base's in any bit", 0),
    "merged float32": Invariant("merged answers as the adapter, float32", 1e-5),
    "merged bfloat16": Invariant("the same merged into bfloat16", 0.1),
    "merged float16": Invariant("the same merged into float16", 1e-2),
    "saved": Invariant("trained tensors that are not bit-equal in the files", 0),
    "loaded": Invariant("saved and loaded, it answers otherwise by", 0),
    "beside": Invariant("with a second adapter beside it, its answers differ by", 0),
    "unmerged": Invariant("merged and unmerged, the weights differ from the base's by", 1e-6),
}

_TWICE = "saved as one adapter of twice the rank: the same sum, added up in another order"
_FEWER = "saved without the ranks that were taken away, whose zeros are no longer added"
EXCEPTIONS: dict[tuple[str, str], tuple[float, str]] = {
    ("PiSSA", "loaded"): (2e-6, _TWICE),
    ("OLoRA", "loaded"): (2e-6, _TWICE),
    ("AdaLoRA", "loaded"): (2e-6, _FEWER),
    ("AdaLoRA, 4 bit", "loaded"): (2e-6, _FEWER),
    ("LoftQ", "fresh"): (
        1e-3,
        "it begins with what 4 bit lost: the figure is how much more of that it leaves than the best update of its rank, the worst of all maps",
    ),
}


@dataclass
class Tried:
    """A method on its own model, trained for a few steps."""

    method: Method
    base: Path
    batch: Batch
    fresh: float
    gradients: int
    trainable: TrainableModel
    logits: Tensor
    of_base: Tensor
    folder: Path


def try_method(method: Method, *, base: Path, batch: Batch, folder: Path) -> Tried:
    """Trains a method from the base for some steps as the trainer does, and saves it to `folder`."""
    model = base_model(base, method=method)
    of_base = logits(model, batch)
    trainable = inject_adapter_(model, lora=method.settings(), seed=1)
    fresh = difference(logits(trainable.model, batch), of_base)
    if method.point.get("method") == "loftq":
        fresh = _error_left_beyond_the_least(trainable, base=base)
    gradients = _train(trainable, batch)
    answers = logits(trainable.model, batch)
    save(trainable, folder=folder, method=method)
    return Tried(method, base, batch, fresh, gradients, trainable, answers, of_base, folder)


def figures(tried: Tried, *, second: Path, names: tuple[str, ...] = tuple(INVARIANTS)) -> dict[str, float]:
    """Every invariant's figure.

    Args:
        second: the folder of another adapter of the same method.
        names: which invariants.
    """
    measures: dict[str, Callable[[], float]] = {
        "fresh": lambda: tried.fresh,
        "gradients": lambda: tried.gradients,
        "disabled": lambda: _disabled(tried),
        "frozen": lambda: _frozen(tried),
        "saved": lambda: _saved(tried),
        "loaded": lambda: difference(logits(_loaded(tried), tried.batch), tried.logits),
        "beside": lambda: _beside(tried, second=second),
        "unmerged": lambda: _unmerged(tried),
        **{f"merged {name}": partial(_merged, tried, dtype=dtype) for name, dtype in DTYPES.items()},
    }
    return {name: float(measures[name]()) for name in names}


def bound(method: str, invariant: str) -> float:
    """What a figure may be."""
    return EXCEPTIONS.get((method, invariant), (INVARIANTS[invariant].bound, ""))[0]


def base_model(base: Path, *, method: Method, plain: bool = False) -> MGMForConditionalGeneration:
    """The base as the method is trained on; plain: its 4-bit weights as the values they stand for."""
    model = load_model(base, dtype=torch.float32)
    if method.quantization == "nf4":
        quantize_language_model_(model, keep_originals=method.point.get("method") == "loftq" and not plain)
        if plain:
            dequantize_language_model_(model)
    return model


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """All of a batch, in float32."""
    model.eval()
    with torch.no_grad():
        found: Tensor = model(**batch, logits_at="all").logits
    return found.float()


def difference(found: Tensor, reference: Tensor) -> float:
    """The largest, over the reference's largest."""
    return float((found - reference).abs().max() / reference.abs().max())


def save(trainable: TrainableModel, *, folder: Path, method: Method) -> None:
    """A whole TrainedAdapter."""
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(trainable.model, folder=folder)
    base = {"model": "tiny", "revision": None, "digest": DIGEST}
    details = {"quantization": method.quantization}
    write_manifest(folder, Manifest.make(KIND, settings={}, parents={}, base=base, details=details))


def _train(trainable: TrainableModel, batch: Batch) -> int:
    """In place; how many parameters got a gradient in the first steps and should not have, or should and didn't."""
    optimizer = make_optimizer(trainable, name="adamw", weight_decay=0.0)
    allocation = trainable.allocation
    if allocation is not None:
        allocation.begin_(num_steps=NUM_STEPS)
    received: set[str] = set()
    trainable.model.train()
    for step in range(1, NUM_STEPS + 1):
        loss = trainable.model(**batch).loss
        if allocation is not None:
            loss = loss + allocation.penalty()
        loss.backward()
        received |= {n for n, p in trainable.model.named_parameters() if p.grad is not None and bool(p.grad.any())}
        optimizer.step()
        if allocation is not None:
            allocation.step_(step)
        optimizer.zero_grad(set_to_none=True)
    wanted = {name for group in trainable.groups for name in group.parameter_names}
    return len(received ^ wanted)


def _disabled(tried: Tried) -> float:
    assert isinstance(tried.trainable.model, PeftModel)
    with tried.trainable.model.disable_adapter():
        return difference(logits(tried.trainable.model, tried.batch), tried.of_base)


def _loaded(tried: Tried, *, dtype: torch.dtype | None = None) -> nn.Module:
    """On a fresh base; with a dtype, on plain weights, to be merged into it."""
    model = base_model(tried.base, method=tried.method, plain=dtype is not None)
    over: Any = "as trained" if dtype is None else "these weights"
    return load_adapter(model, folder=tried.folder, base_digest=DIGEST, over=over)


def _merged(tried: Tried, *, dtype: torch.dtype) -> float:
    merged = merge_adapter_(_loaded(tried, dtype=dtype), dtype=dtype)
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tried.batch.items()}
    return difference(logits(merged, inputs), tried.logits)


def _saved(tried: Tried) -> float:
    """By name and number; of adalora what has kept its rank, of pissa and olora the half that was trained."""
    stored = {stored_name(name): value for name, value in load_file(tried.folder / "adapter_model.safetensors").items()}
    parameters = dict(tried.trainable.model.named_parameters())
    trained = {
        stored_name(name): parameters[name] for group in tried.trainable.groups for name in group.parameter_names
    }
    allocation = tried.trainable.allocation
    kept = allocation.kept() if allocation else {}
    wrong = len(stored.keys() ^ trained.keys())
    for name in stored.keys() & trained.keys():
        value, mask = trained[name].detach(), kept.get(name.partition(".lora_")[0])
        column = ".lora_B" in name
        if mask is not None:
            value = value[:, mask] if column else value[mask]
        found = stored[name]
        if found.shape != value.shape and value.ndim == 2:
            found = found[:, : value.shape[1]] if column else found[: len(value)]
        wrong += not torch.equal(found, value)
    return wrong


def _frozen(tried: Tried) -> float:
    """Counted over every parameter of the base, 4-bit ones as they are packed."""
    base = dict(base_model(tried.base, method=tried.method).named_parameters())
    trained = tried.trainable.model.named_parameters()
    now = {plain_name(name): value for name, value in trained if ".lora_" not in name and ".ranknum." not in name}
    return len(base.keys() ^ now.keys()) + sum(
        not torch.equal(base[name], now[name]) for name in base.keys() & now.keys()
    )


def _error_left_beyond_the_least(trainable: TrainableModel, *, base: Path) -> float:
    """Of what 4 bit lost, as a share; the least is what the leading singular values leave (Eckart and Young). The largest over the adapted maps."""
    model, shares = load_model(base, dtype=torch.float32), []
    for point in trainable.points:
        for name in point.module_names if point.settings.method == "loftq" else ():
            layer: Any = trainable.model.get_submodule(f"base_model.model.{name}")
            weight, rounded = model.get_parameter(f"{name}.weight"), dequantized(layer.get_base_layer()).weight
            lost = (weight - rounded).detach()
            left = (lost - layer.get_delta_weight("default").detach()).norm()
            least = torch.linalg.svdvals(lost)[point.settings.rank :].norm()
            shares.append(float((left - least).abs() / lost.norm()))
    return max(shares)


def _beside(tried: Tried, *, second: Path) -> float:
    """The larger of what either adapter answers otherwise when both are loaded."""
    alone, other = _loaded(tried), _loaded(_moved(tried, second))
    expected = logits(alone, tried.batch), logits(other, tried.batch)
    assert isinstance(alone, PeftModel)
    alone.load_adapter(str(second), adapter_name="second")
    found = []
    for name in ("default", "second"):
        alone.set_adapter(name)
        found.append(logits(alone, tried.batch))
    assert difference(*expected) > 1e-3  # else there is nothing to mix
    return max(difference(a, b) for a, b in zip(found, expected, strict=True))


def _moved(tried: Tried, folder: Path) -> Tried:
    return Tried(**{**vars(tried), "folder": folder})


def _unmerged(tried: Tried) -> float:
    model = _loaded(tried, dtype=torch.float32)
    assert isinstance(model, PeftModel)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if ".base_layer.weight" in name}
    model.merge_adapter()
    moved = max(difference(p.detach(), before[name]) for name, p in model.named_parameters() if name in before)
    assert moved > 1e-3  # else nothing was merged
    model.unmerge_adapter()
    return max(difference(p.detach(), before[name]) for name, p in model.named_parameters() if name in before)
