"""A training of either arm, from rows to losses: transformers' Trainer, run as the knobs say.

It goes on from the newest whole checkpoint. It doesn't know LoRA from full training, nor where the knobs come from.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback, TrainingArguments

from mgm_lora.errors import SettingsError
from mgm_lora.lora.injection import TrainableModel, keep_inputs_reduced_
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.model.lean import make_lean_
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.settings import SeededTraining
from mgm_lora.training.batches import BatchMaker
from mgm_lora.training.checkpoints import newest_checkpoint
from mgm_lora.training.deepspeed import ZeroTrainer, check_deepspeed, deepspeed_config, rank_environment
from mgm_lora.training.first_step import FirstStep, WorstBatch, WorstBatchFirst, recall_first_step
from mgm_lora.training.grouped_trainer import AllocateRanks, GroupedTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingHistory:
    """Losses on the way: `{step, samples, loss, learning_rate}` for training, `{step, samples, loss}` held out."""

    train: tuple[dict[str, float], ...]
    heldout: tuple[dict[str, float], ...]
    num_steps: int
    first_step: FirstStep | None = None
    """What the largest batch took; none where it was not tried."""


def run_training(
    trainable: TrainableModel,
    *,
    training: SeededTraining,
    knobs: StepKnobs,
    processor: MGMProcessor,
    train_rows: Dataset[Any],
    heldout_rows: Dataset[Any],
    checkpoints: Path,
    callbacks: Sequence[TrainerCallback] = (),
    make_batch: Callable[[Sequence[Any]], dict[str, Tensor]] | None = None,
    order: Sampler[int] | None = None,
    worst: WorstBatch | None = None,
    max_loss_spike: float | None = None,
) -> TrainingHistory:
    """In place: trains, and goes on from the newest whole checkpoint in `checkpoints`, if there is one.

    Under DeepSpeed every rank calls it; afterwards the first rank's model is whole, with what was trained in float32.

    Args:
        order: which row comes when; none: shuffled by the seed.
        worst: tried before the first step.
        max_loss_spike: a step's loss over the running median that ends the training.

    Raises:
        DoesNotFitError: the worst batch takes more than is allowed; nothing of the training is left.
        SettingsError: the machine can't run these knobs.
        BrokenLossError: the loss is not a number, or has jumped too far.
        StorageError: a checkpoint can't be written.
    """
    _check_precision(training)
    _make_ready_(trainable, training=training, knobs=knobs)
    with _engine(knobs) as trainer_class:
        trainer = trainer_class(
            trainable=trainable,
            knobs=knobs,
            order=order,
            args=training_arguments(training, knobs=knobs, num_samples=len(train_rows), folder=checkpoints),  # type: ignore[arg-type]
            data_collator=make_batch or BatchMaker(processor),
            train_dataset=train_rows,
            eval_dataset=heldout_rows,
            callbacks=list(callbacks),
            max_loss_spike=max_loss_spike,
        )
        if trainable.allocation is not None:
            trainer.add_callback(AllocateRanks(trainable.allocation))
        if worst is not None:
            trainer.add_callback(WorstBatchFirst(trainer, worst, remember_in=checkpoints))
        newest = newest_checkpoint(checkpoints)
        if newest is not None:
            logger.warning("going on from %s", newest)
        try:
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
            trainer.gather_()
        finally:
            trainer.release_()
    history = _history(trainer.state.log_history, training=training, num_steps=trainer.state.global_step)
    return replace(history, first_step=recall_first_step(checkpoints) if worst else None)


def training_arguments(
    training: SeededTraining, *, knobs: StepKnobs, num_samples: int, folder: Path
) -> TrainingArguments:
    """transformers' arguments for these settings."""
    on_gpu = torch.cuda.is_available()
    steps = max(1, math.ceil(math.ceil(num_samples / training.global_batch_size) * training.num_epochs))
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=training.num_epochs,
        per_device_train_batch_size=knobs.micro_batch_size,
        per_device_eval_batch_size=knobs.micro_batch_size,
        gradient_accumulation_steps=knobs.num_accumulated(training.global_batch_size),
        warmup_steps=math.ceil(training.warmup_share * steps),
        lr_scheduler_type=training.schedule,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=training.precision == "bfloat16",
        use_cpu=not on_gpu,
        optim="adamw_torch",
        seed=training.seed,
        data_seed=training.seed,
        logging_steps=max(1, steps // 40),
        eval_strategy="steps",
        eval_steps=max(1, steps // training.evaluations),
        prediction_loss_only=True,
        save_strategy="steps" if training.checkpoints else "no",
        save_steps=max(1, math.ceil(steps / (training.checkpoints + 1))),
        remove_unused_columns=False,
        label_names=["labels"],
        logging_nan_inf_filter=False,  # a broken loss must be seen
        report_to=[],
        dataloader_num_workers=2 if on_gpu else 0,
        deepspeed=deepspeed_config(training, knobs=knobs) if knobs.engine == "deepspeed" else None,
    )


def _check_precision(training: SeededTraining) -> None:
    """Raises SettingsError where bfloat16 is asked of a processor or card that has none: torch would emulate it, a hundred times slower."""
    if training.precision == "bfloat16" and not _has_bfloat16():
        where = "this card" if torch.cuda.is_available() else "this machine's processor (no card was found)"
        raise SettingsError(
            f"training.precision is bfloat16, but {where} has no bfloat16 instructions:"
            " set training.precision and base.dtype to float32, or train on a card of 2020 or later"
        )


def _has_bfloat16() -> bool:
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _make_ready_(trainable: TrainableModel, *, training: SeededTraining, knobs: StepKnobs) -> None:
    make_lean_(
        trainable.mgm,
        checkpointing=knobs.checkpointing,
        offload=knobs.offload_activations,
        loss_chunk=knobs.loss_chunk,
    )
    if training.precision == "bfloat16":
        keep_inputs_reduced_(trainable.model)
    if knobs.engine == "deepspeed":
        check_deepspeed(trainable, training=training, knobs=knobs)


@contextmanager
def _engine(knobs: StepKnobs) -> Iterator[type[GroupedTrainer]]:
    if knobs.engine == "torch":
        yield GroupedTrainer
    else:
        with rank_environment():
            yield ZeroTrainer


def _history(log: Sequence[dict[str, float]], *, training: SeededTraining, num_steps: int) -> TrainingHistory:
    def entry(row: dict[str, float], loss: str) -> dict[str, float]:
        return {"step": row["step"], "samples": row["step"] * training.global_batch_size, "loss": row[loss]}

    train = [entry(row, "loss") | {"learning_rate": row["learning_rate"]} for row in log if "loss" in row]
    heldout = [entry(row, "eval_loss") for row in log if "eval_loss" in row]
    return TrainingHistory(train=tuple(train), heldout=tuple(heldout), num_steps=num_steps)
