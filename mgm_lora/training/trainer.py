"""The training loop of both arms: transformers' Trainer, with a learning rate per group and checkpoints of what is
trained.

It overrides four things: the optimizer's groups, what a checkpoint holds (the trained parameters, not the frozen base),
how it is read again, and which checkpoint counts as whole. It doesn't know LoRA from full training.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from mgm_lora.artifacts import new_file
from mgm_lora.errors import TrainingError
from mgm_lora.lora.injection import TrainableGroup, TrainableModel
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.settings import TrainingSettings
from mgm_lora.training.batches import BatchMaker

logger = logging.getLogger(__name__)
TRAINED_NAME = "trained.safetensors"


@dataclass(frozen=True)
class TrainingHistory:
    """Losses on the way: `{step, samples, loss, learning_rate}` for training, `{step, samples, loss}` held out."""

    train: tuple[dict[str, float], ...]
    heldout: tuple[dict[str, float], ...]
    num_steps: int


def run_training(
    trainable: TrainableModel,
    *,
    training: TrainingSettings,
    processor: MGMProcessor,
    train_rows: Dataset[Any],
    heldout_rows: Dataset[Any],
    checkpoints: Path,
    callbacks: Sequence[TrainerCallback] = (),
    make_batch: Callable[[Sequence[Any]], dict[str, Tensor]] | None = None,
) -> TrainingHistory:
    """In place: trains, and goes on from the newest whole checkpoint in `checkpoints`, if there is one.

    Raises:
        TrainingError: the loss is not a number.
    """
    arguments = training_arguments(training, num_samples=len(train_rows), folder=checkpoints)  # type: ignore[arg-type]
    trainer = GroupedTrainer(
        model=trainable.model,
        args=arguments,
        data_collator=make_batch or BatchMaker(processor),
        train_dataset=train_rows,
        eval_dataset=heldout_rows,
        callbacks=[StopAtBrokenLoss(), *callbacks],
        groups=trainable.groups,
    )
    newest = newest_checkpoint(checkpoints)
    if newest is not None:
        logger.warning("going on from %s", newest)
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    return _history(trainer.state.log_history, training=training, num_steps=trainer.state.global_step)


def training_arguments(training: TrainingSettings, *, num_samples: int, folder: Path) -> TrainingArguments:
    """transformers' arguments for these settings."""
    on_gpu = torch.cuda.is_available()
    world_size = max(torch.cuda.device_count(), 1) if torch.distributed.is_initialized() else 1
    steps = max(1, math.ceil(math.ceil(num_samples / training.global_batch_size) * training.num_epochs))
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=training.num_epochs,
        per_device_train_batch_size=training.micro_batch_size,
        per_device_eval_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=max(1, training.global_batch_size // (training.micro_batch_size * world_size)),
        warmup_steps=math.ceil(training.warmup_share * steps),
        lr_scheduler_type=training.schedule,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=training.precision == "bfloat16",
        use_cpu=not on_gpu,
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        optim="adamw_torch",
        seed=training.seed,
        data_seed=training.seed,
        logging_steps=max(1, steps // 40),
        eval_strategy="steps",
        eval_steps=max(1, steps // training.evaluations),
        prediction_loss_only=True,
        save_strategy="steps" if training.checkpoints else "no",
        save_steps=max(1, math.ceil(steps / (training.checkpoints + 1))),
        save_total_limit=2,
        remove_unused_columns=False,
        label_names=["labels"],
        logging_nan_inf_filter=False,  # a broken loss must be seen
        report_to=[],
        dataloader_num_workers=2 if on_gpu else 0,
    )


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: the trainer's state is the last file of one."""
    whole = [path for path in folder.glob("checkpoint-*") if _is_whole(path)]
    return max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


class GroupedTrainer(Trainer):
    """A Trainer whose optimizer has a learning rate per group and whose checkpoints hold the trained parameters only."""

    def __init__(self, *, model: nn.Module, groups: Sequence[TrainableGroup], **arguments: Any) -> None:
        super().__init__(model=model, **arguments)
        self._trained_model = model
        self._groups = tuple(groups)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the groups; matrices decay, norms and biases don't."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                parameter_groups(self._trained_model, groups=self._groups, weight_decay=self.args.weight_decay)
            )
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        trained = {
            name: p.detach().contiguous() for name, p in self._trained_model.named_parameters() if p.requires_grad
        }
        with new_file(folder / TRAINED_NAME) as path:
            save_file(trained, path)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        stored = load_file(Path(resume_from_checkpoint) / TRAINED_NAME)
        parameters = {name: p for name, p in (model or self._trained_model).named_parameters() if p.requires_grad}
        if stored.keys() != parameters.keys():
            raise TrainingError(
                f"checkpoint '{resume_from_checkpoint}' holds {len(stored)} parameters, {len(parameters)} are trained now:"
                " it is of other settings; delete it and train again"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(stored[name])


class StopAtBrokenLoss(TrainerCallback):
    """Ends a training whose loss is no number any more."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Raises TrainingError at the first logged loss that is not finite."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {state.global_step}: lower the learning rate, or look at the data"
            )


def parameter_groups(
    model: nn.Module, *, groups: Sequence[TrainableGroup], weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW's groups: per trainable group one with decay and one without."""
    parameters = dict(model.named_parameters())
    result = []
    for group in groups:
        for decays in (True, False):
            members = [parameters[name] for name in group.parameter_names if (parameters[name].ndim >= 2) == decays]
            if members:
                decay = weight_decay if decays else 0.0
                result.append({"params": members, "lr": group.learning_rate, "weight_decay": decay, "name": group.name})
    return result


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return (checkpoint / TRAINED_NAME).is_file()


def _history(log: Sequence[dict[str, float]], *, training: TrainingSettings, num_steps: int) -> TrainingHistory:
    def entry(row: dict[str, float], loss: str) -> dict[str, float]:
        return {"step": row["step"], "samples": row["step"] * training.global_batch_size, "loss": row[loss]}

    train = [entry(row, "loss") | {"learning_rate": row["learning_rate"]} for row in log if "loss" in row]
    heldout = [entry(row, "eval_loss") for row in log if "eval_loss" in row]
    return TrainingHistory(train=tuple(train), heldout=tuple(heldout), num_steps=num_steps)
