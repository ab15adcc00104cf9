"""One small training as train_arm does it, in a process of its own that tests kill, starve and lie to.

A module of its own, since a forkserver imports it once and forks every training from there: quick, and each a real process. It asserts
nothing: what it leaves on disk is looked at.
"""

import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from mgm_lora.arm_settings import LoraSettings, PointSettings
from mgm_lora.errors import MgmLoraError
from mgm_lora.lora.injection import inject_adapter_
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.model.checkpoint import load_model
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.model.quantization import quantize_language_model_
from mgm_lora.settings import SeededTraining
from mgm_lora.training.arms import Origin, TrainingData, adapter_weights, train_arm
from mgm_lora.training.batches import ConversationDataset
from mgm_lora.training.grouping import EpochToOrder, GroupedOrder
from mgm_lora.training.packing import PackedDataset

ORIGIN = Origin(settings={}, parents={}, base={"model": "tiny", "revision": None, "digest": "d" * 64})
NUM_STEPS = 8
TRAINING = {
    "seed": 3,
    "num_epochs": 2,
    "global_batch_size": 8,
    "group_by_length": True,
    "packing": False,
    "warmup_share": 0.1,
    "schedule": "cosine",
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "precision": "float32",
    "evaluations": 2,
    "num_evaluation_samples": 8,
    "checkpoints": 3,  # every second step
}


@dataclass(frozen=True)
class Row:
    id: str
    turns: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...]


class AtStep(TrainerCallback):  # type: ignore[misc]
    """What befalls the process before a step."""

    def __init__(self, wish: dict[str, Any]) -> None:
        self.wish = wish

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, wish = state.global_step, self.wish
        if step == wish.get("kill_at"):
            os.kill(os.getpid(), 9)
        if step == wish.get("full_at"):
            fill_disk(wish["file_bytes"])
        if step == wish.get("lose_permission_at"):
            lose_permission()
        if step == wish.get("clock_back_at"):
            real = time.time
            time.time = lambda: real() - 86_400.0
        if step == wish.get("poison_at"):
            parameter = next(p for name, p in wish["model"].named_parameters() if "lora_B" in name)
            parameter.data[0, 0] = float("nan")

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.wish.get("kill_within"):
            os.kill(os.getpid(), 9)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.wish.get("full_at") == "end":
            fill_disk(self.wish["file_bytes"])


def fill_disk(file_bytes: int) -> None:
    """As on a full disk, no file grows any further: here beyond so many bytes."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what is printed may go to a file too
        os.dup2(nowhere, stream)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))


def lose_permission() -> None:
    """Root may write anywhere, so it becomes nobody; what the training still needs is readable for all."""
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    else:
        for folder in Path("checkpoints"), Path():
            folder.chmod(0o555)


def kill_at_event(number: int) -> None:
    """Kills this process at its n-th opening, syncing or renaming of a file of an unfinished checkpoint."""
    left = [number]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.rmdir", "shutil.rmtree") and ".part" in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), 9)

    sys.addaudithook(watch)


def main(folder: str, base: str, wish: dict[str, Any]) -> None:
    """Trains in `folder`, which has the pictures; an error becomes error.json.

    Args:
        wish: settings of the training, the knobs, the points, and what befalls it.
    """
    os.chdir(folder)
    torch.set_num_threads(1)
    if "kill_at_event" in wish:
        kill_at_event(wish["kill_at_event"])
    try:
        train(Path(base), wish)
    except MgmLoraError as error:
        told = json.dumps({"type": type(error).__name__, "text": str(error), "code": error.exit_code})
        Path("error.json").write_text(told)
        raise SystemExit(error.exit_code) from None


def train(base: Path, wish: dict[str, Any]) -> None:
    training = SeededTraining.model_validate(TRAINING | wish.get("training", {}))
    knobs = StepKnobs(**{"micro_batch_size": 4, **wish.get("knobs", {})})
    model = load_model(base, dtype=torch.float32)
    if knobs.quantization == "nf4":
        quantize_language_model_(model)
    trainable = inject_adapter_(model, lora=lora(**wish.get("points", {})), seed=training.seed)
    processor = MGMProcessor.from_pretrained(base)
    data = make_data(processor, training=training)
    order = GroupedOrder(data.train.sizes, global_batch_size=training.global_batch_size, seed=training.seed)
    callbacks = [AtStep(wish | {"model": trainable.model}), EpochToOrder(order)]
    train_arm(
        trainable,
        training=training,
        knobs=knobs,
        data=data,
        weights=adapter_weights(trainable),
        origin=ORIGIN,
        checkpoints=Path("checkpoints"),
        destination=Path("adapter"),
        callbacks=callbacks,
        order=order if training.group_by_length else None,
        max_loss_spike=wish.get("max_loss_spike"),
    )


def lora(**points: Any) -> LoraSettings:
    """Dropout, so that the bytes hang on every random number; a point trained in full."""
    low_rank = PointSettings(mode="lora", rank=4, alpha=8, dropout=0.1)
    settings = {
        "language_attention": low_rank,
        "language_mlp": PointSettings(mode="off"),
        "vision_attention": low_rank,
        "projector": PointSettings(mode="full", learning_rate=1e-3),
        "mining": PointSettings(mode="off"),
    }
    return LoraSettings.model_validate({"learning_rate": 1e-2, **settings, **points})


def make_data(processor: MGMProcessor, *, training: SeededTraining) -> TrainingData:
    words = ("red", "green", "blue", "grey")
    rows = [
        Row(
            id=f"sample-{number}",
            turns=(("human", "<image>\nwhat?"), ("gpt", words[number % 4] * (1 + number % 3))),
            pictures=(f"{number % 4}.png",),
        )
        for number in range(32)
    ]

    def dataset(part: list[Row]) -> ConversationDataset:
        return ConversationDataset(part, processor=processor, pictures=Path("pictures"))

    train_rows = dataset(rows)
    packed = PackedDataset(train_rows, max_length=128, seed=3) if training.packing else train_rows
    return TrainingData(processor=processor, train=packed, heldout=dataset(rows[:8]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
