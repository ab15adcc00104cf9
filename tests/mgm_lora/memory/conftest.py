"""A model small enough to run and large enough that its tensors, not the bookkeeping, are what is counted."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mgm_lora.arm_settings import LoraSettings, PointSettings
from mgm_lora.model.config import MGMConfig
from mgm_lora.settings import SeededTraining

OFF = PointSettings(mode="off")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The steps here are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_config() -> MGMConfig:
    """About a million parameters, a head 3,000 wide, 16 picture tokens."""
    return MGMConfig(
        text_config={
            "model_type": "gemma",
            "vocab_size": 3000,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
        },
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "projection_dim": 16,
        },
        aux_config={"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "layer_scale_init_value": 0.5},
        image_size_aux=128,
        max_length=512,
    )


@pytest.fixture(scope="session")
def make_training() -> Callable[..., SeededTraining]:
    """Training settings; arguments change single ones."""

    def make(**changes: Any) -> SeededTraining:
        settings: dict[str, Any] = {
            "seed": 3,
            "num_epochs": 1,
            "global_batch_size": 2,
            "group_by_length": False,
            "packing": False,
            "warmup_share": 0.1,
            "schedule": "cosine",
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
            "precision": "float32",
            "evaluations": 2,
            "num_evaluation_samples": 8,
            "checkpoints": 0,
        }
        return SeededTraining(**settings | changes)

    return make


@pytest.fixture(scope="session")
def make_lora() -> Callable[..., LoraSettings]:
    """The arm `lora`: the named points with one rank, the others off; keywords give a point or a step by hand."""

    def make(*points: str, rank: int = 8, **others: Any) -> LoraSettings:
        names = ("language_attention", "language_mlp", "vision_attention", "projector", "mining")
        sections = {name: PointSettings(mode="lora", rank=rank) if name in points else OFF for name in names}
        return LoraSettings(**{"learning_rate": 1e-3, **sections, **others})

    return make
