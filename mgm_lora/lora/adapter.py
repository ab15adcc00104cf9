"""The trained adapter on disk: PEFT's own files, and the points that were trained in full beside them.

Both belong together: the published code saved the latter apart and never read them again. It doesn't know how the
adapter was trained.
"""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgm_lora.artifacts import Manifest, read_manifest, write_json
from mgm_lora.errors import ArtifactError, BaseChangedError
from mgm_lora.lora.methods import ADAPTER_NAME, saved_form
from mgm_lora.model.base import Quantization
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.sources import check_keys

KIND = "TrainedAdapter"
CONFIG_NAME = "adapter_config.json"
FULL_PARTS_NAME = "full_parts.safetensors"
_TENSORS_NAME = "adapter_model.safetensors"
_LANGUAGE_MODEL = "language_model"


def save_adapter(model: nn.Module, *, folder: Path) -> None:
    """Writes the LoRA tensors as PEFT does, and every other trained parameter to `full_parts.safetensors`.

    What of the LoRA tensors is the language model's lies once more in `language_model/`, by the names of a model that is nothing else: a plain
    `PeftModel.from_pretrained(language_model, folder / "language_model")` reads it, without mgm-lora.
    """
    if isinstance(model, PeftModel):
        with saved_form(model) as state, _without_false_alarms():
            only = [ADAPTER_NAME]
            model.save_pretrained(str(folder), selected_adapters=only, save_embedding_layers=False, state_dict=state)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's card is an empty form; the manifest says what it is
        _save_language_part(folder)
    full_parts = _full_parts(model)
    if full_parts:
        save_file({name: value.detach().contiguous() for name, value in full_parts.items()}, folder / FULL_PARTS_NAME)


def is_adapter(folder: Path) -> bool:
    """Whether a folder of trained weights is an adapter (or, if not, a whole model); raises ArtifactError where it is neither."""
    return read_manifest(folder, kind=(KIND, "TrainedModel", "MergedModel")).kind == KIND


def adapter_quantization(folder: Path) -> Quantization:
    """How the base was kept in memory when the adapter was trained; raises ArtifactError where there is no whole adapter."""
    return _quantization_of(read_manifest(folder, kind=KIND))


def load_adapter(
    model: MGMForConditionalGeneration,
    *,
    folder: Path,
    base_digest: str,
    over: Literal["as trained", "these weights"] = "as trained",
) -> nn.Module:
    """The model with the adapter on it, frozen, in eval mode; the given model is changed.

    An adapter that was trained over a 4-bit language model is put on such a one: it has learned to make up for that rounding too. Over
    these weights: it is put on the model as it is, to be merged with it.

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
    if over == "as trained":
        _match_quantization_(model, _quantization_of(manifest), folder=folder)
    full_parts = load_file(folder / FULL_PARTS_NAME) if (folder / FULL_PARTS_NAME).is_file() else {}
    _load_full_parts_(model, full_parts, keep_wide=over == "these weights")
    if not (folder / CONFIG_NAME).is_file():
        if not full_parts:
            raise ArtifactError(f"'{folder}' holds neither {CONFIG_NAME} nor {FULL_PARTS_NAME}: train again")
        return model.eval()
    with _without_false_alarms():
        adapted = PeftModel.from_pretrained(model, str(folder), adapter_name=ADAPTER_NAME)
    return adapted.train(False)


def merge_adapter_(model: nn.Module, *, dtype: torch.dtype) -> MGMForConditionalGeneration:
    """In place: folds every update into its weight; the plain model in `dtype`, with nothing of PEFT left.

    Each sum is taken in float32 and rounded once. PEFT would round the update and then the sum, which loses a small update in bfloat16.

    Raises:
        ArtifactError: it is no adapted MGM, it is in 4 bit, or a merged weight is no number.
    """
    if _is_4bit(model.get_base_model() if isinstance(model, PeftModel) else model):
        raise ArtifactError(
            "asked to merge into 4-bit weights, which would round the update away: dequantise them before the adapter is put on"
        )
    if isinstance(model, PeftModel):
        for layer in [part for part in model.modules() if isinstance(part, LoraLayer)]:
            _fold_(layer, dtype=dtype)
    merged = model.unload() if isinstance(model, PeftModel) else model
    if not isinstance(merged, MGMForConditionalGeneration):
        raise ArtifactError(f"asked to merge an adapted MGM, found {type(merged).__name__}")
    return merged.to(dtype)


def plain_name(name: str) -> str:
    """A parameter's name in the model that is not wrapped."""
    return re.sub(r"\.base_layer(?=\.)", "", name.removeprefix("base_model.model."))


def stored_name(name: str) -> str:
    """What the adapter's files call a trained parameter, by its name in the adapted model or in those files: without PEFT's levels."""
    name = re.sub(rf"\.{ADAPTER_NAME}(?=\.|$)", "", plain_name(name))
    return name.removesuffix(".weight") if name.endswith(".lora_magnitude_vector.weight") else name


@contextmanager
def _without_false_alarms() -> Iterator[None]:
    """A block in which PEFT is silent about AdaLoRA's modules without a rank, which it takes for shares of ZeRO-3's, and about its own rank names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Adapter '.*': \d+ LoRA tensor\(s\) have invalid shape: .*\(0, ")
        warnings.filterwarnings("ignore", message=r"The following rank_pattern keys did not match .*\.lora_E'")
        yield


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


def _save_language_part(folder: Path) -> None:
    head = f"base_model.model.{_LANGUAGE_MODEL}."
    tensors = load_file(folder / _TENSORS_NAME)
    part = {
        f"base_model.model.{key.removeprefix(head)}": value for key, value in tensors.items() if key.startswith(head)
    }
    if not part:
        return
    config: dict[str, Any] = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    pattern_head = rf"{_LANGUAGE_MODEL}\."
    for name, heads in (("rank_pattern", (pattern_head, f"{_LANGUAGE_MODEL}.")), ("alpha_pattern", (pattern_head,))):
        of_points = (
            config[name] or {}
        ).items()  # adalora's ranks are by name, not by pattern; none where none were taken away
        found = {head: {k.removeprefix(head): v for k, v in of_points if k.startswith(head)} for head in heads}
        config[name] = {key: value for head in heads for key, value in found[head].items()} or None
    config["target_modules"] = "|".join(config["alpha_pattern"])
    config["auto_mapping"] = None  # names the whole MGM's class
    (folder / _LANGUAGE_MODEL).mkdir(exist_ok=True)
    write_json(folder / _LANGUAGE_MODEL / CONFIG_NAME, config)
    save_file(part, folder / _LANGUAGE_MODEL / _TENSORS_NAME, metadata={"format": "pt"})


def _fold_(layer: Any, *, dtype: torch.dtype) -> None:
    weight = layer.get_base_layer().weight
    weight.data = weight.data.float()
    try:
        layer.merge(safe_merge=True)
    except ValueError as error:
        raise ArtifactError(f"the adapter can't be merged: {error}; train again") from error
    weight = layer.get_base_layer().weight
    weight.data = weight.data.to(dtype)


def _full_parts(model: nn.Module) -> dict[str, Tensor]:
    return {
        plain_name(name): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".lora_" not in name
    }


def _load_full_parts_(model: MGMForConditionalGeneration, full_parts: dict[str, Tensor], *, keep_wide: bool) -> None:
    """In place. In the model's own precision, as autocast rounded them when they were trained; wide, to be rounded once by a merge."""
    parameters = dict(model.named_parameters())
    expected = {name: tuple(parameters[name].shape) for name in full_parts if name in parameters}
    check_keys({name: tuple(value.shape) for name, value in full_parts.items()}, expected, where=FULL_PARTS_NAME)
    for name, value in full_parts.items():
        parameter = parameters[name]
        parameter.data = value.to(parameter.device, value.dtype if keep_wide else parameter.dtype)
