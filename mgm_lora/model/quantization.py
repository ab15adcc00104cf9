"""The frozen language model in 4 bit: NF4 with double quantisation (QLoRA, arXiv 2305.14314), by bitsandbytes.

Every linear map of the language model's layers; embeddings, head, norms, towers, mining and projector stay as they are. A weight takes 4.13 bits:
4 of its own, and per block of 64 a scale of 8, the scales in blocks of 256 with one of 32 each. Works on a CPU too, where each product unpacks its
weight first, and on the meta device, where it gives the shapes alone. It knows no adapters.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import Tensor, nn

from mgm_lora.errors import SettingsError
from mgm_lora.model.families import fused_experts
from mgm_lora.model.mgm import MGMForConditionalGeneration

logger = logging.getLogger(__name__)
_TYPE = "nf4"
_BLOCK_SIZES = (64, 32)


def quantize_language_model_(
    model: MGMForConditionalGeneration, *, device: torch.device | None = None, keep_originals: bool = False
) -> None:
    """In place: the language model's linear maps become 4-bit ones that compute in the dtype that they had.

    Args:
        model: real, or on the meta device; not wrapped.
        device: where each weight is quantised and then stays; none: where it is.
        keep_originals: keep each weight as it was beside the 4-bit one, where it is, for `pop_original`.

    Raises:
        SettingsError: bitsandbytes has no kernel for the device, or none for a layer's width, or the weights are mostly no linear maps.
    """
    _check_experts(model)
    _fill_code_table()
    layers = model.language_model.get_decoder().layers
    linears = {name: module for name, module in layers.named_modules() if type(module) is nn.Linear}
    _check_widths(linears)
    for name, linear in linears.items():
        packed: Any = _quantized(linear, device=device or linear.weight.device)
        if keep_originals:
            packed.original = linear.weight.data
        layers.set_submodule(name, packed)
    _mark_(model, quantized=True)
    if any(weight.device.type == "cpu" for _, weight in quantized_weights(model)):
        logger.warning(
            "4 bit on a CPU: there is no kernel for training, so every product unpacks its weight first; slow"
        )


def dequantize_language_model_(model: MGMForConditionalGeneration) -> None:
    """In place: plain linear maps again, with the values that the 4-bit ones stood for."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit):
            model.set_submodule(name, dequantized(module))
    _mark_(model, quantized=False)


def is_quantized(module: nn.Module) -> bool:
    """Whether a model has 4-bit weights, or a linear map is a 4-bit one."""
    return any(isinstance(part, Linear4bit) for part in module.modules())


def dequantized(linear: nn.Module) -> nn.Linear:
    """A plain linear map with a 4-bit one's values, in the dtype that it was quantised from."""
    assert isinstance(linear, Linear4bit)
    plain = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    plain.weight = nn.Parameter(functional.dequantize_4bit(linear.weight.data, linear.quant_state), requires_grad=False)
    plain.bias = linear.bias
    return plain.train(linear.training)


def pop_original(linear: nn.Module) -> Tensor | None:
    """In place: takes the weight that a 4-bit map keeps as it was, to the map's device; none where it keeps none, or that of other 4-bit numbers."""
    kept: Tensor | None = linear.__dict__.pop("original", None)
    if kept is None:
        return None
    assert isinstance(linear, Linear4bit)
    original = kept.to(linear.weight.device)
    state: Any = linear.quant_state
    packed, _ = functional.quantize_4bit(
        original, blocksize=state.blocksize, compress_statistics=True, quant_type=_TYPE
    )
    return original if torch.equal(packed, linear.weight.data) else None


def quantized_weights(model: nn.Module) -> Iterator[tuple[Linear4bit, Tensor]]:
    """The 4-bit linear maps, each with its packed weight."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            yield module, module.weight


def replace_quantized_(model: nn.Module, convert: Callable[[Tensor], Tensor]) -> None:
    """In place: packed weights and all that unpacks them become what `convert` makes of them, such as fake tensors of a trace."""
    for linear, weight in quantized_weights(model):
        state: Any = linear.quant_state
        for owner, name in (
            (state, "absmax"),
            (state, "code"),
            (state, "offset"),
            (state.state2, "absmax"),
            (state.state2, "code"),
        ):
            setattr(owner, name, convert(getattr(owner, name)))
        replaced: Any = nn.Parameter(convert(weight.data), requires_grad=False)
        replaced.quant_state = state
        linear.weight = replaced


def _check_experts(model: MGMForConditionalGeneration) -> None:
    experts = fused_experts(model.language_model)
    if experts:
        left = sum(model.language_model.get_parameter(name).numel() for name in experts)
        share = left / sum(parameter.numel() for parameter in model.language_model.parameters())
        raise SettingsError(
            f"quantization nf4 reaches linear maps alone, but {100 * share:.0f} % of this language model are experts' weights in one parameter"
            f" per layer ({experts[0]}): set step.quantization to none, and take engine deepspeed with zero_stage 3 and offload_parameters"
        )


def _check_widths(linears: Mapping[str, nn.Linear]) -> None:
    odd = [f"{name} ({linear.in_features})" for name, linear in linears.items() if _block_size(linear) is None]
    if odd:
        raise SettingsError(
            f"quantization nf4 needs input widths that are multiples of {_BLOCK_SIZES[-1]}, found {len(odd)} others, first {odd[0]}:"
            " set step.quantization to none"
        )


def _block_size(linear: nn.Linear) -> int | None:
    # bitsandbytes 0.50 on a CPU begins a block with every row, and reads others' scales where the width is no multiple of the block
    return next((size for size in _BLOCK_SIZES if linear.in_features % size == 0), None)


def _mark_(model: nn.Module, *, quantized: bool) -> None:
    flagged: Any = model
    flagged.is_loaded_in_4bit = quantized  # PEFT and transformers look for it


def _quantized(linear: nn.Linear, *, device: torch.device) -> Linear4bit:
    result = Linear4bit(  # type: ignore[no-untyped-call]
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        quant_type=_TYPE,
        device="meta",
    )
    try:
        packed, state = functional.quantize_4bit(
            linear.weight.data.to(device), blocksize=_block_size(linear), compress_statistics=True, quant_type=_TYPE
        )
    except (RuntimeError, NotImplementedError) as error:
        last_words = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise SettingsError(
            f"quantization nf4 was asked for, but bitsandbytes has no kernel for it on {device} ({last_words}):"
            " set step.quantization to none, or install a bitsandbytes that fits this torch (`python -m bitsandbytes` tells)"
        ) from error
    # its `module` is left empty: a weight that points to its owner is freed only when the garbage collector comes by
    result.weight = Params4bit(
        packed, quant_state=state, quant_type=_TYPE, blocksize=state.blocksize, bnb_quantized=True
    )
    result.quant_state = state
    result.bias = linear.bias
    # On CPUs with bfloat16 it would repack weights in eval mode, in place, for a product without a gradient, and training would go on with that one.
    result.support_avx512bf16_for_cpu = False
    return result.train(linear.training)


def _fill_code_table() -> None:
    """bitsandbytes keeps the table of its first call: made on the meta device it would be empty for everybody after."""
    if "dynamic" not in functional.name2qmap:
        with torch.device("cpu"):
            functional.name2qmap["dynamic"] = functional.create_dynamic_map()  # type: ignore[no-untyped-call]
