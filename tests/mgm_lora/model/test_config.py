"""A configuration says what the model's shapes are, and survives being written down."""

from typing import Any

import pytest
import torch

from mgm_lora.model.config import MGMConfig
from mgm_lora.model.mgm import MGMForConditionalGeneration


@pytest.mark.parametrize(
    "grid, with_whole, num_views, shape",
    [
        (1, False, 1, (3, 336, 336)),
        (1, True, 2, (2, 3, 336, 336)),
        (2, False, 4, (4, 3, 336, 336)),
        (2, True, 5, (5, 3, 336, 336)),
        (3, True, 10, (10, 3, 336, 336)),
    ],
)
def test_a_picture_takes_576_tokens_a_view(grid: int, with_whole: bool, num_views: int, shape: tuple[int, ...]) -> None:
    config = MGMConfig(image_grid=grid, image_global=with_whole, image_size_aux=768 * grid)
    assert config.num_views == num_views
    assert config.num_picture_tokens == 576 * num_views
    assert config.images_shape == shape
    assert config.images_aux_shape == (3, 768 * grid, 768 * grid)


@pytest.mark.parametrize(
    "changes", [{"rope_theta": 500.0}, {"num_attention_heads": 4}, {"num_key_value_heads": 2}, {"head_dim": 8}]
)
def test_language_model_computes_what_its_configuration_says_also_when_read_back(
    changes: dict[str, Any], tiny_config: MGMConfig
) -> None:
    plain = tiny_config.text_config.to_dict()
    config = MGMConfig.from_dict(tiny_config.to_dict() | {"text_config": _without_rope(plain) | changes})
    built = MGMForConditionalGeneration(MGMConfig.from_dict(config.to_dict())).language_model
    said = {"rope_theta": 10_000.0} | plain | changes
    steps = torch.arange(0, said["head_dim"], 2) / said["head_dim"]
    assert torch.allclose(built.model.rotary_emb.inv_freq, said["rope_theta"] ** -steps)
    attention = built.model.layers[0].self_attn
    assert attention.q_proj.out_features == said["num_attention_heads"] * said["head_dim"]
    assert attention.k_proj.out_features == said["num_key_value_heads"] * said["head_dim"]


def _without_rope(entries: dict[str, Any]) -> dict[str, Any]:
    """As published configurations are: `rope_theta` stands by itself."""
    return {name: value for name, value in entries.items() if name != "rope_parameters"}
