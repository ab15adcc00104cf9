"""The published models of the family: their names at the hub, their language models' shapes, the templates they were trained with.

Plans, presets and parameter counts at real size need shapes and no download. A checkpoint's own `config.json` is what is
loaded by; these are for where there is none. It knows no weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import nn

from mgm_lora.errors import CheckpointError
from mgm_lora.model.config import MGMConfig

HD_SIZES: Mapping[str, Any] = MappingProxyType(
    {"image_grid": 2, "image_global": True, "image_size_aux": 1536, "max_length": 4096}
)
"""How the models named -HD look: four crops and the whole picture, in twice the resolution."""


@dataclass(frozen=True)
class PublishedModel:
    """One size of the family."""

    hub_id: str
    language_model: str
    """What it was made from."""
    conversation: str
    text_config: Mapping[str, Any]
    hd_hub_id: str | None = None
    """The same size trained in high resolution; none was published of MGM-2B."""


PUBLISHED: Mapping[str, PublishedModel] = MappingProxyType(
    {
        "MGM-2B": PublishedModel(
            hub_id="YanweiLi/MGM-2B",
            language_model="google/gemma-2b-it",
            conversation="gemma",
            text_config={
                "model_type": "gemma",
                "vocab_size": 256000,
                "hidden_size": 2048,
                "intermediate_size": 16384,
                "num_hidden_layers": 18,
                "num_attention_heads": 8,
                "num_key_value_heads": 1,
                "head_dim": 256,
            },
        ),
        "MGM-7B": PublishedModel(
            hub_id="YanweiLi/MGM-7B",
            hd_hub_id="YanweiLi/MGM-7B-HD",
            language_model="lmsys/vicuna-7b-v1.5",
            conversation="vicuna_v1",
            text_config={
                "model_type": "llama",
                "vocab_size": 32000,
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
            },
        ),
        "MGM-8B": PublishedModel(
            hub_id="YanweiLi/MGM-8B",
            hd_hub_id="YanweiLi/MGM-8B-HD",
            language_model="meta-llama/Meta-Llama-3-8B-Instruct",
            conversation="llama_3",
            text_config={
                "model_type": "llama",
                "vocab_size": 128256,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-5,
                "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
                "bos_token_id": 128000,
                "eos_token_id": 128009,
            },
        ),
        "MGM-13B": PublishedModel(
            hub_id="YanweiLi/MGM-13B",
            hd_hub_id="YanweiLi/MGM-13B-HD",
            language_model="lmsys/vicuna-13b-v1.5",
            conversation="vicuna_v1",
            text_config={
                "model_type": "llama",
                "vocab_size": 32000,
                "hidden_size": 5120,
                "intermediate_size": 13824,
                "num_hidden_layers": 40,
                "num_attention_heads": 40,
                "num_key_value_heads": 40,
                "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
            },
        ),
        "MGM-8x7B": PublishedModel(
            hub_id="YanweiLi/MGM-8x7B",
            hd_hub_id="YanweiLi/MGM-8x7B-HD",
            language_model="mistralai/Mixtral-8x7B-Instruct-v0.1",
            conversation="mixtral",
            text_config={
                "model_type": "mixtral",
                "vocab_size": 32000,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 32768,
                "num_local_experts": 8,
                "num_experts_per_tok": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            },
        ),
        "MGM-34B": PublishedModel(
            hub_id="YanweiLi/MGM-34B",
            hd_hub_id="YanweiLi/MGM-34B-HD",
            language_model="NousResearch/Nous-Hermes-2-Yi-34B",
            conversation="chatml",
            text_config={
                "model_type": "llama",
                "vocab_size": 64000,
                "hidden_size": 7168,
                "intermediate_size": 20480,
                "num_hidden_layers": 60,
                "num_attention_heads": 56,
                "num_key_value_heads": 8,
                "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0},
                "eos_token_id": 7,
            },
        ),
    }
)


def published_config(name: str, **changes: Any) -> MGMConfig:
    """The configuration of a published size (`MGM-7B`), with entries of your own; raises CheckpointError where there is none of that name."""
    if name not in PUBLISHED:
        raise CheckpointError(f"no published model '{name}', known are {', '.join(PUBLISHED)}")
    model = PUBLISHED[name]
    return MGMConfig(**{"text_config": dict(model.text_config), "conversation": model.conversation} | changes)


def mixes_experts(config: MGMConfig) -> bool:
    """Whether the language model is a mixture of experts."""
    return bool(getattr(config.text_config, "num_local_experts", 0))


def fused_experts(language_model: nn.Module) -> list[str]:
    """The names of parameters that hold all experts of a layer, [experts, out, in], as transformers 5 keeps Mixtral's: no linear maps."""
    return [name for name, parameter in language_model.named_parameters() if parameter.dim() == 3]
