"""The methods of LoRA: how each is asked of PEFT, how it begins, and in which form it is saved.

- lora (arXiv 2106.09685): W + (alpha/r) B A, B begins at zero. QLoRA is this over 4-bit weights.
- rslora (2312.03732): the same with alpha/sqrt(r).
- dora (2402.09353): direction by LoRA, length of each output's weights trained apart.
- pissa (2404.02948), olora (2406.01775): A and B begin as the leading part of W, by SVD or by QR, and W without that part is frozen.
- adalora (2303.10512): B E A, whose ranks are taken away on the way (`allocation.py`).
- loftq (2310.08659): over 4-bit weights; A and B begin as the leading part of what 4 bit lost.

PEFT takes the part that pissa and olora begin with out of the frozen weight, so that the base on disk is none any more, a disabled adapter is
not the base, and in bfloat16 the rest is rounded anew. Here the base stays as it is, and a second, frozen adapter takes the same part
away: the same function and the same gradients, and W comes back to the last bit. Saved, both are one adapter of twice the rank, as PEFT's own
conversion makes it (`subtract_mutated_init`), which any PEFT loads on the unchanged base. It knows no optimizer, and doesn't decide who has which
method.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, cast

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel
from peft.tuners.lora import dora
from torch import Tensor, nn

from mgm_lora.arm_settings import AdaLoraSettings
from mgm_lora.errors import BaseChangedError
from mgm_lora.lora.points import ResolvedPoint
from mgm_lora.model.quantization import dequantized, is_quantized, pop_original

ADAPTER_NAME = "default"
INITIAL_NAME = "initial"
"""The frozen adapter that takes away what pissa and olora begin with."""
_FROM_WEIGHTS = {"pissa": "pissa", "olora": "olora"}


def peft_config(
    points: Sequence[ResolvedPoint], *, base_name: str | None, budget: AdaLoraSettings | None = None
) -> LoraConfig:
    """PEFT's configuration of the points: one full-path pattern, with rank and alpha per point.

    Args:
        budget: of adalora; none: the defaults. Its numbers of steps are set when they are known.
    """
    first = points[0].settings
    common: dict[str, Any] = {
        "lora_alpha": first.alpha,
        "target_modules": "|".join(point.pattern for point in points),
        "alpha_pattern": {point.pattern: _effective_alpha(point) for point in points},
        "base_model_name_or_path": base_name,
    }
    if first.method == "adalora":
        budget = budget or AdaLoraSettings()
        return AdaLoraConfig(
            init_r=first.rank,
            target_r=budget.target_rank,
            deltaT=budget.interval,
            orth_reg_weight=budget.orthogonal_weight,
            total_step=1,
            **common,
        )
    ranks = {point.pattern: point.settings.rank for point in points}
    return LoraConfig(r=first.rank, rank_pattern=ranks, use_dora=first.method == "dora", **common)


def begin_from_weights_(model: PeftModel, points: Sequence[ResolvedPoint]) -> None:
    """In place: A and B of pissa, olora and loftq begin with a part of the weights. On the meta device nothing is decomposed.

    Raises:
        BaseChangedError: the weights that loftq's 4-bit ones were made from are not there, or are others.
    """
    from_weights = [point for point in points if point.settings.method in _FROM_WEIGHTS]
    if from_weights:
        _add_initial_(model, from_weights)
    for point in points:
        for name in point.module_names:
            layer: Any = model.get_submodule(f"base_model.model.{name}")
            if layer.get_base_layer().weight.is_meta:
                continue
            if point.settings.method in _FROM_WEIGHTS:
                _begin_with_leading_part_(layer, by=_FROM_WEIGHTS[point.settings.method])
            elif point.settings.method == "loftq":
                _begin_with_what_4_bit_lost_(layer, name=name)


@contextmanager
def saved_form(model: PeftModel) -> Iterator[dict[str, Tensor] | None]:
    """The tensors that PEFT is to save, by their names in the model; none: as they are. Within the block the configuration is theirs.

    What pissa and olora begin with goes into their adapters: A over A0 and B beside -B0, of twice the rank at the same scale.
    """
    if INITIAL_NAME not in model.peft_config:
        yield None
        return
    config = cast(LoraConfig, model.peft_config[ADAPTER_NAME])
    doubled = cast(LoraConfig, model.peft_config[INITIAL_NAME]).rank_pattern or {}
    model.peft_config[ADAPTER_NAME] = twice = copy(config)
    for field in ("rank_pattern", "alpha_pattern"):
        values = getattr(config, field).items()
        setattr(twice, field, {key: (2 if key in doubled else 1) * value for key, value in values})
    try:
        yield _joined(model.state_dict())
    finally:
        model.peft_config[ADAPTER_NAME] = config


@contextmanager
def unpacking_fakes() -> Iterator[None]:
    """A block in which DoRA unpacks 4-bit weights that are fake tensors too: PEFT knows them by their class's name alone, which fakes don't have."""
    plain = vars(dora)["dequantize_module_weight"]

    def unpacked(layer: nn.Module) -> Any:
        return dequantized(layer).weight if is_quantized(layer) else plain(layer)

    vars(dora)["dequantize_module_weight"] = unpacked
    try:
        yield
    finally:
        vars(dora)["dequantize_module_weight"] = plain


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    joined = dict(state)
    for name, value in state.items():
        initial = state.get(name.replace(f".{ADAPTER_NAME}.", f".{INITIAL_NAME}."), value)
        if initial is not value:
            joined[name] = torch.cat([value, initial.to(value.dtype)], dim=0 if ".lora_A." in name else 1)
    return joined


def _effective_alpha(point: ResolvedPoint) -> float:
    # rsLoRA scales by alpha/sqrt(r) instead of alpha/r; PEFT's own switch is for all modules at once.
    settings = point.settings
    return settings.alpha * settings.rank**0.5 if settings.method == "rslora" else settings.alpha


def _add_initial_(model: PeftModel, points: Sequence[ResolvedPoint]) -> None:
    """In place: the second adapter, frozen and always on, in the base's precision as what it takes away."""
    model.add_adapter(INITIAL_NAME, peft_config(points, base_name=None), autocast_adapter_dtype=False)
    cast(Any, model.base_model).set_adapter([ADAPTER_NAME, INITIAL_NAME])
    for point in points:
        for name in point.module_names:
            layer: Any = model.get_submodule(f"base_model.model.{name}")
            dtype = layer.get_base_layer().weight.dtype
            for part in (layer.lora_A[INITIAL_NAME], layer.lora_B[INITIAL_NAME]):
                part.weight.data = part.weight.data.to(dtype)
                part.requires_grad_(False)


def _begin_with_leading_part_(layer: Any, *, by: str) -> None:
    """In place: A, B and, negated, their frozen likeness are what PEFT takes from the weight; the weight stays."""
    base = layer.get_base_layer()
    weight = base.weight.data
    base.weight.data = weight.clone()  # PEFT writes into it
    layer.olora_init(ADAPTER_NAME) if by == "olora" else layer.pissa_init(ADAPTER_NAME, by)
    base.weight.data = weight
    for part, sign in ((layer.lora_A, 1), (layer.lora_B, -1)):
        rounded = part[ADAPTER_NAME].weight.data.to(weight.dtype)  # else a bfloat16 base would not begin as the base
        part[ADAPTER_NAME].weight.data = rounded.float().contiguous()
        part[INITIAL_NAME].weight.data = (sign * rounded).contiguous()


def _begin_with_what_4_bit_lost_(layer: Any, *, name: str) -> None:
    """In place. One round: more would change the 4-bit weights, and with them what the adapter can be loaded on."""
    base: nn.Module = layer.get_base_layer()
    original = pop_original(base) if is_quantized(base) else None
    if original is None:
        raise BaseChangedError(
            f"method loftq begins with what 4 bit lost of {name}, but the weight before is not there, or not the one that was quantised:"
            " load the base with keep_originals"
        )
    lost = original.float() - dequantized(base).weight.float()
    rank = layer.r[ADAPTER_NAME]
    left, values, right = torch.linalg.svd(lost, full_matrices=False)  # its spectrum is too flat for a randomised one
    root = (values[:rank] / layer.scaling[ADAPTER_NAME]).sqrt()
    layer.lora_A[ADAPTER_NAME].weight.data = (root[:, None] * right[:rank]).contiguous()
    layer.lora_B[ADAPTER_NAME].weight.data = (left[:, :rank] * root).contiguous()
