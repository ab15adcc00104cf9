"""The hyper-parameters of an MGM: two towers, patch-info-mining, a projector and a language model of any family.

`text_config` is a configuration of transformers' own (Gemma for MGM-2B); whatever `AutoModelForCausalLM` builds from it
takes the language model's place, and `conversation` names the template that it was trained with: Vicuna, Llama 3 and Yi
are all Llamas, so that the one does not tell the other. It knows no weights and no names of weights.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal

from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig

from mgm_lora.errors import CheckpointError
from mgm_lora.model.template import TEMPLATES

CLIP_L_14_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_CONVERSATION_OF = {"gemma": "gemma", "mixtral": "mixtral"}  # where an architecture has one template alone


class ConvNextConfig(PreTrainedConfig):
    """The auxiliary tower: four stages, each half the resolution of the one before."""

    model_type = "mgm_convnext"

    depths: list[int] | None = None
    dims: list[int] | None = None
    layer_norm_eps: float = 1e-6
    layer_scale_init_value: float = 1e-6

    def __post_init__(self, **kwargs: Any) -> None:
        """ConvNeXt-L where nothing is given."""
        self.depths = list(self.depths or (3, 3, 27, 3))
        self.dims = list(self.dims or (192, 384, 768, 1536))
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]


class MGMConfig(PreTrainedConfig):
    """An MGM; the defaults are those of the published family at `image_grid` 1.

    In high definition CLIP sees a picture `image_grid` x `image_grid` times, a square at a time, and with `image_global` once more as a whole.
    """

    model_type = "mgm"
    sub_configs = {"text_config": AutoConfig, "vision_config": CLIPVisionConfig, "aux_config": ConvNextConfig}  # noqa: RUF012

    # given as a mapping, a configuration or not at all; a configuration from __post_init__ on
    text_config: Any = None
    vision_config: Any = None
    aux_config: Any = None
    image_size_aux: int = 768
    image_aspect_ratio: Literal["pad", "square"] = "pad"
    image_grid: int = 1
    image_global: bool = False
    select_layer: int = -2
    max_length: int = 2048
    conversation: str | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Builds the three parts' configurations from mappings and checks that they fit each other."""
        self.text_config = _text_config(self.text_config)
        self.vision_config = _part(self.vision_config or CLIP_L_14_336, CLIPVisionConfig)
        self.aux_config = _part(self.aux_config, ConvNextConfig)
        self.conversation = self.conversation or _CONVERSATION_OF.get(self.text_config.model_type)
        self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        _check_fit(self)

    @property
    def num_patches_side(self) -> int:
        """Patches along one side of a view of CLIP's."""
        return int(self.vision_config.image_size) // int(self.vision_config.patch_size)

    @property
    def num_picture_tokens(self) -> int:
        """Tokens that a picture takes in the language model's sequence, all views together."""
        return self.num_views * self.num_patches_side**2

    @property
    def num_views(self) -> int:
        """Times that CLIP looks at a picture."""
        return self.image_grid**2 + int(self.image_global)

    @property
    def images_shape(self) -> tuple[int, ...]:
        """A picture's shape in `images`: [3, h, w], or [views, 3, h, w] where there are several."""
        side = int(self.vision_config.image_size)
        return (3, side, side) if self.num_views == 1 else (self.num_views, 3, side, side)

    @property
    def images_aux_shape(self) -> tuple[int, ...]:
        """A picture's shape in `images_aux`."""
        return (3, self.image_size_aux, self.image_size_aux)

    @property
    def num_used_vision_layers(self) -> int:
        """CLIP layers whose output is used: features come from `hidden_states[select_layer]`, the first of which is the embedding."""
        return int(self.vision_config.num_hidden_layers) + 1 + self.select_layer


def changed_config(config: MGMConfig, changes: Mapping[str, Any]) -> MGMConfig:
    """The configuration with other entries, none of which changes a weight's shape; raises CheckpointError where they don't fit."""
    changed = copy.copy(config)
    for name, value in changes.items():
        setattr(changed, name, value)
    _check_fit(changed)
    return changed


def _text_config(value: dict[str, Any] | PreTrainedConfig | None) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    entries = dict(value or {"model_type": "gemma"})
    # set afterwards: transformers takes Gemma's "gelu" for the tanh form, here it is what it says
    activation = entries.pop("hidden_activation", None) or entries.pop("hidden_act", None)
    config = AutoConfig.for_model(entries.pop("model_type"), **entries)
    if activation is not None:
        config.hidden_act = activation
    return config


def _part(value: Any, kind: type[PreTrainedConfig]) -> Any:
    return value if isinstance(value, kind) else kind(**(value or {}))


def _check_fit(config: MGMConfig) -> None:
    problems = []
    if config.image_grid < 1:
        problems.append(f"image_grid {config.image_grid} must be 1 or more: squares along a side of the picture")
    elif config.image_size_aux % (4 * config.image_grid * config.num_patches_side):
        problems.append(
            f"image_size_aux {config.image_size_aux} must be a multiple of 4 x image_grid {config.image_grid} x"
            f" {config.num_patches_side} patches, so that every patch has its own square of the high-resolution features"
        )
    if not 0 < config.num_used_vision_layers <= config.vision_config.num_hidden_layers:
        problems.append(
            f"select_layer {config.select_layer} is not among CLIP's {config.vision_config.num_hidden_layers} layers"
        )
    if config.conversation is not None and config.conversation not in TEMPLATES:
        problems.append(f"conversation '{config.conversation}' is no template, known are {', '.join(TEMPLATES)}")
    if problems:
        raise CheckpointError("the model's configuration does not fit together:\n  - " + "\n  - ".join(problems))
