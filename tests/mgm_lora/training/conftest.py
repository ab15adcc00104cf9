"""A few dozen conversations about coloured pictures, and settings to train on them in seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mgm_lora.lora.injection import TrainableModel, inject_adapter_
from mgm_lora.model.checkpoint import load_model
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.settings import LoraSettings, PointSettings, TrainingSettings
from mgm_lora.training.arms import TrainingData
from mgm_lora.training.batches import ConversationDataset

_WORDS = ("red", "green", "blue", "grey")


@dataclass(frozen=True)
class Row:
    turns: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...]


@pytest.fixture
def training() -> TrainingSettings:
    return TrainingSettings(
        seed=3,
        num_epochs=2,
        global_batch_size=8,
        group_by_length=False,
        packing=False,
        warmup_share=0.1,
        schedule="cosine",
        weight_decay=0.01,
        max_grad_norm=1.0,
        precision="float32",
        evaluations=2,
        num_evaluation_samples=8,
        checkpoints=3,
    )


@pytest.fixture
def lora() -> LoraSettings:
    point = PointSettings(mode="lora", rank=4, alpha=8)
    return LoraSettings(
        learning_rate=1e-2,
        language_attention=point,
        language_mlp=point,
        vision_attention=point,
        projector=point,
        mining=PointSettings(mode="off"),
    )


@pytest.fixture
def data(tiny_base: Path, tmp_path: Path, make_picture: Callable[..., Path]) -> TrainingData:
    rows = [
        Row(
            turns=(("human", "<image>\nwhat?"), ("gpt", _WORDS[number % 4])),
            pictures=(make_picture(number % 4, folder=tmp_path / "pictures").name,),
        )
        for number in range(32)
    ]
    processor = MGMProcessor.from_pretrained(tiny_base)

    def dataset(part: list[Row]) -> ConversationDataset:
        return ConversationDataset(part, processor=processor, pictures=tmp_path / "pictures")

    return TrainingData(processor=processor, train=dataset(rows), heldout=dataset(rows[:8]))


@pytest.fixture
def make_trainable(tiny_base: Path, lora: LoraSettings) -> Callable[[], TrainableModel]:
    """A fresh adapter on a fresh base."""

    def make() -> TrainableModel:
        return inject_adapter_(load_model(tiny_base, dtype=torch.float32), lora=lora, seed=3)

    return make
