"""MGM's published `config.json` <-> our `MGMConfig`.

The published file is flat: the language model's entries, and beside them those of pictures and projector (`mm_...`,
`image_...`). Which language model it is follows from its `model_type`, by a table; no path is looked at. It knows no
weights, and takes the towers' shapes from its caller.
"""

import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from mgm_lora.errors import CheckpointError
from mgm_lora.model.config import MGMConfig

VISION_ENTRY, AUX_ENTRY = "mm_vision_tower", "mm_vision_tower_aux"

LANGUAGE_MODELS = {
    "mgm_gemma": "gemma",
    "mgm": "llama",
    "mgm_mixtral": "mixtral",
    "mgm_mistral": "mistral",
    "mgm_llama": "llama",
    "mini_gemini": "llama",
    "mini_gemini_gemma": "gemma",
    "mini_gemini_mixtral": "mixtral",
}
"""The published `model_type` and the language model's of transformers; the first row of a language model is the one that is written."""

_ACTIVATION = "hidden_activation"

_TAKEN = {
    "image_size_aux": "image_size_aux",
    "image_aspect_ratio": "image_aspect_ratio",
    "image_grid": "image_grid",
    "image_global": "image_global",
    "mm_vision_select_layer": "select_layer",
    "tokenizer_model_max_length": "max_length",
}
_NEEDED = (VISION_ENTRY, AUX_ENTRY, "mm_projector_type", "mm_vision_select_layer", "image_size_aux")
_ONLY: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": ("patch",),
    "mm_use_im_start_end": (False,),
    "mm_use_im_patch_token": (False,),
    "tokenizer_padding_side": ("right", "left"),
}
"""Entries of which only these values are built."""

# What training and saving left in the file; it changes no answer.
_LEFTOVERS = (
    "_name_or_path",
    "architectures",
    "drop_path",
    "dtype",
    "freeze_mm_mlp_adapter",
    "image_grid_pinpoints",
    "mm_hidden_size",
    "mm_hidden_size_aux",
    "mm_projector_lr",
    "model_path",
    "model_type",
    "optimize_vision_tower",
    "optimize_vision_tower_aux",
    "pretraining_tp",
    "torch_dtype",
    "transformers_version",
    "tune_mm_mlp_adapter",
    "use_mm_proj",
)

logger = logging.getLogger(__name__)


def is_published(entries: Mapping[str, Any]) -> bool:
    """Whether these are a published file's; ours may share its `model_type`, but holds its parts' configurations inside."""
    inside = ("text_config", "vision_config", "aux_config")
    return str(entries.get("model_type")) in LANGUAGE_MODELS and not any(name in entries for name in inside)


def read_published(
    entries: Mapping[str, Any], *, vision: Mapping[str, Any], aux: Mapping[str, Any], where: str
) -> MGMConfig:
    """Our configuration of a published file, with the towers' shapes beside it.

    Raises:
        CheckpointError: entries are missing, ask for what isn't built, or don't fit each other (all are named).
    """
    problems = [f"{name} is missing" for name in _NEEDED if entries.get(name) is None]
    problems += [
        f"{name} is {entries[name]!r}, built is {' or '.join(map(repr, values))}"
        for name, values in _ONLY.items()
        if entries.get(name) is not None and entries[name] not in values
    ]
    if problems:
        raise CheckpointError(f"{where}:\n  - " + "\n  - ".join(problems))
    taken = {**_TAKEN, **{name: name for name in _own_fields()}}
    ours = {name: entries[theirs] for theirs, name in taken.items() if entries.get(theirs) is not None}
    try:
        config = MGMConfig(
            text_config=_text_entries(entries),
            vision_config=dict(vision),
            aux_config=dict(aux),
            **ours,
        )
    except CheckpointError:
        raise
    except Exception as error:  # transformers checks types and values with errors of many kinds
        raise CheckpointError(f"{where} makes no configuration: {error}") from error
    _check_widths(entries, config=config, where=where)
    return config


def write_published(config: MGMConfig, *, vision_name: str, aux_name: str, dtype: str) -> dict[str, Any]:
    """The published entries of a configuration, `read_published`'s inverse; raises CheckpointError for another language model."""
    family = config.text_config.model_type
    model_type = next((theirs for theirs, ours in LANGUAGE_MODELS.items() if ours == family), None)
    if model_type is None:
        raise CheckpointError(
            f"a {family} has no published layout; it has for {', '.join(sorted(set(LANGUAGE_MODELS.values())))}"
        )
    return {
        "model_type": model_type,
        "torch_dtype": dtype,
        **_flat_text(config.text_config),
        VISION_ENTRY: vision_name,
        AUX_ENTRY: aux_name,
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_hidden_size_aux": sum(config.aux_config.dims),
        "optimize_vision_tower": False,
        "optimize_vision_tower_aux": False,
        "tokenizer_padding_side": "right",
        "use_mm_proj": True,
        **{name: values[0] for name, values in _ONLY.items()},
        **{theirs: getattr(config, name) for theirs, name in _TAKEN.items()},
        **{name: getattr(config, name) for name in _own_fields() if getattr(config, name) is not None},
    }


def _text_entries(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's entries; what is neither its nor known to be of no account is told."""
    model_type = LANGUAGE_MODELS[entries["model_type"]]
    beside = {*_TAKEN, *_ONLY, *_LEFTOVERS, *_own_fields(), VISION_ENTRY, AUX_ENTRY}
    text = {name: value for name, value in entries.items() if name not in beside}
    known = {field.name for field in fields(AutoConfig.for_model(model_type))} | {"rope_theta", "rope_scaling"}
    unknown = sorted(text.keys() - known - {_ACTIVATION})
    if unknown:
        logger.info("entries of the published config.json that are not read: %s", ", ".join(unknown))
    kept = {name: value for name, value in text.items() if name in known}
    return {"model_type": model_type, **kept, **_activation(text, model_type=model_type)}


def _activation(text: Mapping[str, Any], *, model_type: str) -> dict[str, str]:
    # transformers 4.38, by which MGM-2B was trained, did as `hidden_act` says ("gelu": exact). Later versions read
    # `hidden_activation` and, where it is null, take the tanh form whatever `hidden_act` says.
    if model_type != "gemma" or _ACTIVATION not in text:
        return {}
    return {"hidden_act": text[_ACTIVATION] or "gelu_pytorch_tanh"}


def _check_widths(entries: Mapping[str, Any], *, config: MGMConfig, where: str) -> None:
    found = {"mm_hidden_size": config.vision_config.hidden_size, "mm_hidden_size_aux": sum(config.aux_config.dims)}
    problems = [
        f"{name} is {entries[name]}, but the tower's features are {width} wide: is it another tower?"
        for name, width in found.items()
        if entries.get(name) is not None and entries[name] != width
    ]
    if problems:
        raise CheckpointError(f"{where} and its towers don't fit:\n  - " + "\n  - ".join(problems))


def _flat_text(text: Any) -> dict[str, Any]:
    own = {field.name for field in fields(text)} - {field.name for field in fields(PreTrainedConfig)}
    entries = {name: value for name, value in text.to_dict().items() if name in own - {"rope_parameters"}}
    rope = dict(text.rope_parameters or {})
    if "rope_theta" in rope:
        entries["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type", "default") != "default":
        entries["rope_scaling"] = rope
    if text.model_type == "gemma":
        entries[_ACTIVATION] = entries["hidden_act"]
    return entries


def _own_fields() -> list[str]:
    """What `MGMConfig` has and the published file knows nothing of; read and written under our name."""
    inherited = {field.name for field in fields(PreTrainedConfig)}
    told = {*_TAKEN.values(), *inherited, "text_config", "vision_config", "aux_config", "tie_word_embeddings"}
    return [field.name for field in fields(MGMConfig) if field.name not in told]
