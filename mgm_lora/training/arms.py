"""An arm of the comparison, trained and written: the LoRA adapter, or the full fine-tune beside it; same data, same order,
same budget.

Each leaves a folder with its weights, the losses on the way and a manifest, and hands back its figures (which no two
runs share). It doesn't know how an arm will be scored.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback

from mgm_lora.artifacts import Manifest, new_artifact, size_on_disk, write_json, write_manifest
from mgm_lora.errors import TrainingError
from mgm_lora.lora.adapter import KIND as ADAPTER_KIND
from mgm_lora.lora.adapter import save_adapter
from mgm_lora.lora.injection import TrainableModel
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.plan import GIB
from mgm_lora.model.checkpoint import save_model
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.settings import SeededTraining
from mgm_lora.training.batches import ConversationDataset
from mgm_lora.training.contract import Contract
from mgm_lora.training.deepspeed import deepspeed_config
from mgm_lora.training.determinism import deterministic
from mgm_lora.training.first_step import WorstBatch
from mgm_lora.training.launch import of_first_rank
from mgm_lora.training.meter import StepMeter
from mgm_lora.training.packing import PackedDataset
from mgm_lora.training.peak import peak_memory_gib
from mgm_lora.training.trainer import run_training

logger = logging.getLogger(__name__)
MODEL_KIND = "TrainedModel"
HISTORY_NAME = "history.json"
ENGINE_NAME = "deepspeed.json"


@dataclass(frozen=True)
class TrainingData:
    """What is learned, and what the held-out loss is taken on."""

    processor: MGMProcessor
    train: ConversationDataset | PackedDataset
    heldout: ConversationDataset


@dataclass(frozen=True)
class Origin:
    """What the manifest says of where a training came from."""

    settings: Mapping[str, BaseModel]
    parents: Mapping[str, str]
    base: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Digest of all of it: names the checkpoints and the tracked run, so that a run of other inputs doesn't go on from them."""
        settings = {name: section.model_dump(mode="json") for name, section in self.settings.items()}
        inputs = json.dumps([settings, dict(self.parents), dict(self.base)], sort_keys=True)
        return hashlib.sha256(inputs.encode()).hexdigest()


@dataclass(frozen=True)
class Weights:
    """How the trained weights are written, and the noun that they are."""

    kind: str
    write: Callable[[Path], None]


@dataclass(frozen=True)
class TrainingFigures:
    """What a training cost, and its last losses."""

    train_loss: float
    heldout_loss: float
    minutes: float
    peak_memory_gib: float
    step_memory_gib: float | None
    """What a step on the largest batch held, where it was tried."""
    seconds_per_step: float | None
    """An optimizer step of the process that ended the training, without evaluations and checkpoints; none where that one made no step."""
    samples_per_second: float | None
    """Likewise."""
    energy_wh: float | None
    """What the first rank's card took for those steps, in watt-hours; none where no card tells."""
    trainable_parameters: int
    trainable_share: float
    size_on_disk_mib: float


def train_arm(
    trainable: TrainableModel,
    *,
    training: SeededTraining,
    knobs: StepKnobs,
    data: TrainingData,
    weights: Weights,
    origin: Origin,
    checkpoints: Path,
    destination: Path,
    callbacks: Sequence[TrainerCallback] = (),
    order: Sampler[int] | None = None,
    worst: WorstBatch | None = None,
    max_loss_spike: float | None = None,
) -> TrainingFigures:
    """Trains and writes the artifact to `destination`; checkpoints are removed when it is whole.

    Under DeepSpeed every rank calls it; the first one writes, and all return its figures.
    """
    contract = Contract(trainable)
    summary = _summary(trainable, training=training, knobs=knobs, key=origin.key)
    meter = StepMeter()
    started = time.monotonic()
    with deterministic(training.seed, knobs=knobs) as determinism:
        history = run_training(
            trainable,
            training=training,
            knobs=knobs,
            processor=data.processor,
            train_rows=data.train,
            heldout_rows=data.heldout,
            checkpoints=checkpoints,
            callbacks=[contract.callback(), meter, *callbacks],
            order=order,
            worst=worst,
            max_loss_spike=max_loss_spike,
        )
    seconds = time.monotonic() - started

    def write() -> TrainingFigures:
        _check_finite(trainable.model)
        contract.check_end(num_steps=history.num_steps, warmup_share=training.warmup_share)
        with new_artifact(destination) as folder:
            weights.write(folder)
            contract.check_saved(folder, whole_model=weights.kind == MODEL_KIND)
            write_json(folder / HISTORY_NAME, {"train": list(history.train), "heldout": list(history.heldout)})
            if knobs.engine == "deepspeed":
                write_json(folder / ENGINE_NAME, deepspeed_config(training, knobs=knobs))
            details = {
                **summary,
                "num_steps": history.num_steps,
                "metrics": {"train_loss": history.train[-1]["loss"], "heldout_loss": history.heldout[-1]["loss"]},
                "contract": contract.table(),
                "determinism": determinism.details(),
                **_final_ranks(trainable),
            }
            write_manifest(folder, _manifest(weights.kind, training=training, origin=origin, details=details))
        shutil.rmtree(checkpoints, ignore_errors=True)
        return TrainingFigures(
            train_loss=history.train[-1]["loss"],
            heldout_loss=history.heldout[-1]["loss"],
            minutes=seconds / 60,
            peak_memory_gib=peak_memory_gib(),
            step_memory_gib=history.first_step.measured_bytes / GIB if history.first_step else None,
            seconds_per_step=meter.seconds_per_step,
            samples_per_second=training.global_batch_size / meter.seconds_per_step if meter.seconds_per_step else None,
            energy_wh=meter.energy_wh,
            trainable_parameters=summary["trainable_parameters"],
            trainable_share=summary["trainable_parameters"] / summary["all_parameters"],
            size_on_disk_mib=size_on_disk(destination) / 2**20,
        )

    return of_first_rank(write)


def adapter_weights(trainable: TrainableModel) -> Weights:
    """A TrainedAdapter: PEFT's files and the points trained in full."""
    return Weights(kind=ADAPTER_KIND, write=lambda folder: save_adapter(trainable.model, folder=folder))


def model_weights(trainable: TrainableModel, *, processor: MGMProcessor, dtype: torch.dtype) -> Weights:
    """A TrainedModel: a whole checkpoint in `dtype`."""
    model = trainable.model
    assert isinstance(model, MGMForConditionalGeneration)

    def write(folder: Path) -> None:
        save_model(model.to(dtype), folder=folder)
        processor.save_pretrained(folder)

    return Weights(kind=MODEL_KIND, write=write)


def _summary(trainable: TrainableModel, *, training: SeededTraining, knobs: StepKnobs, key: str) -> dict[str, Any]:
    """What the manifest says of a training; taken before it, while the model is whole on every rank."""
    num_parameters = {name: parameter.numel() for name, parameter in trainable.model.named_parameters()}
    groups = {
        group.name: {
            "parameters": sum(num_parameters[name] for name in group.parameter_names),
            "tensors": len(group.parameter_names),
            "learning_rate": group.learning_rate,
        }
        for group in trainable.groups
    }
    return {
        "trainable_parameters": trainable.num_trainable,
        "all_parameters": trainable.mgm.num_parameters(),  # two in a byte where they are packed
        "points": groups,
        "step": asdict(knobs) | {"num_accumulated": knobs.num_accumulated(training.global_batch_size)},
        "quantization": knobs.quantization,
        "training_key": key,
    }


def _final_ranks(trainable: TrainableModel) -> dict[str, Any]:
    """What adalora has left, by module; nothing where no ranks are taken away."""
    if trainable.allocation is None:
        return {}
    ranks = trainable.allocation.ranks()
    logger.info("ranks by module: %s", ", ".join(f"{name} {rank}" for name, rank in ranks.items()))
    return {"final_ranks": ranks}


def _manifest(kind: str, *, training: SeededTraining, origin: Origin, details: Mapping[str, Any]) -> Manifest:
    return Manifest.make(
        kind,
        settings=origin.settings,
        parents=origin.parents,
        base=origin.base,
        seed=training.seed,
        details=details,
    )


def _check_finite(model: nn.Module) -> None:
    broken = [name for name, p in model.named_parameters() if p.requires_grad and not torch.isfinite(p).all()]
    if broken:
        raise TrainingError(
            f"{len(broken)} trained tensors hold values that are no numbers, first {broken[0]}: nothing was written"
        )
