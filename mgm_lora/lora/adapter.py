"""The trained adapter on disk: PEFT's own files, and the points that were trained in full beside them.

Both belong together: the published code saved the latter apart and never read them again. It doesn't know how the
adapter was trained.
"""

import re
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgm_lora.artifacts import Manifest, read_manifest
from mgm_lora.errors import ArtifactError, BaseChangedError
from mgm_lora.lora.injection import ADAPTER_NAME
from mgm_lora.model.base import Quantization
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.sources import check_keys

KIND = "TrainedAdapter"
CONFIG_NAME = "adapter_config.json"
FULL_PARTS_NAME = "full_parts.safetensors"


def save_adapter(model: nn.Module, *, folder: Path) -> None:
    """Writes the LoRA tensors as PEFT does, and every other trained parameter to `full_parts.safetensors`."""
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's card is an empty form; the manifest says what it is
    full_parts = _full_parts(model)
    if full_parts:
        save_file({name: value.detach().contiguous() for name, value in full_parts.items()}, folder / FULL_PARTS_NAME)


def adapter_quantization(folder: Path) -> Quantization:
    """How the base was kept in memory when the adapter was trained; raises ArtifactError where there is no whole adapter."""
    return _quantization_of(read_manifest(folder, kind=KIND))


def load_adapter(model: MGMForConditionalGeneration, *, folder: Path, base_digest: str) -> nn.Module:
    """The model with the adapter on it, frozen, in eval mode; the given model is changed.

    An adapter that was trained over a 4-bit language model is put on such a one: it has learned to make up for that rounding too.

    Raises:
        ArtifactError: there is no whole adapter.
        BaseChangedError: it was trained on another base, or on one that was not in 4 bit, as this one is.
    """
    manifest = read_manifest(folder, kind=KIND)
    if manifest.base.get("digest") != base_digest:
        raise BaseChangedError(
            f"the adapter '{folder}' was trained on the base '{manifest.base.get('model')}' with digest"
            f" {str(manifest.base.get('digest'))[:12]}, found a base with digest {base_digest[:12]}:"
            " use the base it was trained on, or train again on this one"
        )
    _match_quantization_(model, _quantization_of(manifest), folder=folder)
    full_parts = load_file(folder / FULL_PARTS_NAME) if (folder / FULL_PARTS_NAME).is_file() else {}
    _load_full_parts_(model, full_parts)
    if not (folder / CONFIG_NAME).is_file():
        if not full_parts:
            raise ArtifactError(f"'{folder}' holds neither {CONFIG_NAME} nor {FULL_PARTS_NAME}: train again")
        return model.eval()
    adapted = PeftModel.from_pretrained(model, str(folder), adapter_name=ADAPTER_NAME)
    return adapted.train(False)


def merge_adapter_(model: nn.Module) -> MGMForConditionalGeneration:
    """In place: folds every update (alpha/r) B A into its weight; the plain model, with nothing of PEFT or of 4 bit left."""
    if isinstance(model, PeftModel):
        _fold_into_4bit_(model)
    merged = model.merge_and_unload(safe_merge=True) if isinstance(model, PeftModel) else model
    if not isinstance(merged, MGMForConditionalGeneration):
        raise ArtifactError(f"asked to merge an adapted MGM, found {type(merged).__name__}")
    if _is_4bit(merged):
        from mgm_lora.model.quantization import dequantize_language_model_

        dequantize_language_model_(merged)
    return merged


def plain_name(name: str) -> str:
    """A parameter's name in the model that is not wrapped."""
    return re.sub(r"\.base_layer(?=\.)", "", name.removeprefix("base_model.model."))


def stored_name(name: str) -> str:
    """What the adapter's files call a trained parameter, by its name in the adapted model or in those files: without PEFT's levels."""
    name = re.sub(rf"\.{ADAPTER_NAME}(?=\.|$)", "", plain_name(name))
    return name.removesuffix(".weight") if name.endswith(".lora_magnitude_vector.weight") else name


def _quantization_of(manifest: Manifest) -> Quantization:
    return "nf4" if manifest.details.get("quantization", "none") == "nf4" else "none"


def _match_quantization_(model: MGMForConditionalGeneration, asked: Quantization, *, folder: Path) -> None:
    if asked == "none" and _is_4bit(model):
        raise BaseChangedError(
            f"the adapter '{folder}' was trained on a base that was not quantised, found one in 4 bit: load the base without quantization"
        )
    if asked == "nf4" and not _is_4bit(model):
        from mgm_lora.model.quantization import quantize_language_model_  # bitsandbytes takes a second to import

        quantize_language_model_(model)


def _is_4bit(model: nn.Module) -> bool:
    return bool(getattr(model, "is_loaded_in_4bit", False))


def _fold_into_4bit_(model: PeftModel) -> None:
    """In place: adapted 4-bit maps become plain ones with their update. PEFT would round the sum to 4 bit again, and lose most of the update."""
    if not _is_4bit(model):
        return
    from mgm_lora.model.quantization import dequantized, is_quantized

    layers: list[tuple[str, Any]] = [
        (name, part) for name, part in model.named_modules() if isinstance(part, LoraLayer)
    ]
    for name, layer in layers:
        if is_quantized(layer.get_base_layer()):
            plain = dequantized(layer.get_base_layer())
            update = layer.get_delta_weight(ADAPTER_NAME).to(plain.weight.device)
            plain.weight.data = (plain.weight.data.float() + update).to(plain.weight.dtype)
            model.set_submodule(name, plain)


def _full_parts(model: nn.Module) -> dict[str, Tensor]:
    return {
        plain_name(name): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".lora_" not in name
    }


def _load_full_parts_(model: MGMForConditionalGeneration, full_parts: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    expected = {name: tuple(parameters[name].shape) for name in full_parts if name in parameters}
    check_keys({name: tuple(value.shape) for name, value in full_parts.items()}, expected, where=FULL_PARTS_NAME)
    with torch.no_grad():
        for name, value in full_parts.items():
            parameters[name].data = value
