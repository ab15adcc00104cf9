"""A few dozen conversations about coloured pictures, and settings to train on them in seconds."""

import copy
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import set_seed

from mgm_lora.arm_settings import LoraSettings, PointSettings
from mgm_lora.artifacts import digest_folder
from mgm_lora.lora.injection import TrainableModel, inject_adapter_
from mgm_lora.model.checkpoint import load_model, save_model
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.settings import SeededTraining
from mgm_lora.training.arms import TrainingData
from mgm_lora.training.batches import ConversationDataset

from ...conftest import ROOT

sys.path.insert(0, str(Path(__file__).parent))  # the forked processes find it by its name
import exact_walk

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["exact_walk"])
_WORDS = ("red", "green", "blue", "grey")


@dataclass(frozen=True)
class Row:
    turns: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...]


@pytest.fixture
def training() -> SeededTraining:
    return SeededTraining(
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


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[[str], Path]:
    """A folder with the pictures for `train_apart`, by name."""
    return lambda name: with_pictures(tmp_path / name)


def with_pictures(folder: Path) -> Path:
    (folder / "pictures").mkdir(parents=True)
    for number, colour in enumerate(("red", "green", "blue", "grey")):
        Image.new("RGB", (32, 32), colour).save(folder / "pictures" / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def bases(tiny_base: Path, tiny_config: MGMConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The tiny base, and one whose MLP is wide enough for moments of 8 bit (4,096 numbers)."""
    config = copy.deepcopy(tiny_config)
    config.text_config.intermediate_size = 256
    wide = tmp_path_factory.mktemp("wide") / "base"
    set_seed(1)
    save_model(MGMForConditionalGeneration(config), folder=wide)
    MGMProcessor.from_pretrained(tiny_base).save_pretrained(wide)
    return {False: tiny_base, True: wide}


@pytest.fixture(scope="session")
def train_apart(bases: dict[bool, Path]) -> Callable[..., int]:
    """Trains in a folder as exact_walk.py does, in a process of its own; its exit code, negative where a signal ended it."""

    def run(folder: Path, **wish: Any) -> int:
        with pytest.MonkeyPatch.context() as patch:  # the server imports by it what it forks from: once, at its start
            patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
            ensure_running()
        base = bases[wish.get("wide", False)]
        process = _FORKS.Process(target=exact_walk.main, args=(str(folder), str(base), wish))
        process.start()
        process.join(120)
        assert process.exitcode is not None, "it didn't end"
        return process.exitcode

    return run


@pytest.fixture(scope="session")
def undisturbed(train_apart: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """The artifact's digest of such a training that nothing befell."""
    found: dict[str, str] = {}

    def digest(**wish: Any) -> str:
        name = json.dumps(wish)
        if name not in found:
            folder = with_pictures(tmp_path_factory.mktemp("undisturbed") / "it")
            assert train_apart(folder, **wish) == 0
            found[name] = digest_folder(folder / "adapter")
        return found[name]

    return digest
