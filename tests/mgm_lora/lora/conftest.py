"""A tiny model and settings of the arms."""

from pathlib import Path

import pytest
import torch

from mgm_lora.arm_settings import LoraSettings, PointSettings
from mgm_lora.model.checkpoint import load_model
from mgm_lora.model.mgm import MGMForConditionalGeneration


@pytest.fixture
def model(tiny_base: Path) -> MGMForConditionalGeneration:
    return load_model(tiny_base, dtype=torch.float32)


@pytest.fixture
def all_points() -> LoraSettings:
    """Every point, each with another rank."""
    return LoraSettings(
        learning_rate=1e-3,
        language_attention=PointSettings(mode="lora", rank=4, alpha=8),
        language_mlp=PointSettings(mode="lora", rank=2, alpha=4, dropout=0.1, learning_rate=5e-4),
        vision_attention=PointSettings(mode="lora", rank=3, alpha=3, method="rslora"),
        projector=PointSettings(mode="full"),
        mining=PointSettings(mode="lora", rank=2, alpha=2),
    )


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two rows with a picture each, the second shorter."""
    torch.manual_seed(9)
    input_ids = torch.randint(6, 70, (2, 12))
    input_ids[:, 2] = -200
    labels = torch.full_like(input_ids, -100)
    labels[:, -4:] = input_ids[:, -4:]
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 10:] = 0
    labels[1, 10:] = -100
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "images": torch.randn(2, 3, 16, 16),
        "images_aux": torch.randn(2, 3, 32, 32),
    }
