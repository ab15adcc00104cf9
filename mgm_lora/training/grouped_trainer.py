"""transformers' Trainer with what it lacks for us: a learning rate per group, an order of samples that is given, checkpoints of what is
trained, and a held-out loss that doesn't depend on the batches.

A checkpoint holds the trained parameters, not the frozen base, and all that the loop needs to go on to the same bytes. It doesn't know engines:
DeepSpeed's Trainer stands on this one.
"""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback

from mgm_lora.artifacts import new_file
from mgm_lora.errors import TrainingError
from mgm_lora.lora.allocation import RankAllocation
from mgm_lora.lora.injection import TrainableModel
from mgm_lora.lora.optimizer import make_optimizer
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.model.sequence import IGNORE_INDEX
from mgm_lora.training.checkpoints import new_checkpoint
from mgm_lora.training.contract import check_optimizer
from mgm_lora.training.guards import ROW_NUMBERS, LossGuard, NumberedBatches, NumberedRows

TRAINED_NAME = "trained.safetensors"
METHOD_NAME = "method.safetensors"


class GroupedTrainer(Trainer):
    """Trains what is trainable as the knobs say."""

    def __init__(
        self,
        *,
        trainable: TrainableModel,
        knobs: StepKnobs,
        order: Sampler[int] | None,
        train_dataset: Any,
        eval_dataset: Any,
        data_collator: Any,
        max_loss_spike: float | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            model=trainable.model,
            train_dataset=NumberedRows(train_dataset),
            eval_dataset=NumberedRows(eval_dataset),
            data_collator=NumberedBatches(data_collator),
            **arguments,
        )
        self._guard = LossGuard(train_dataset, max_spike=max_loss_spike)
        self._unfinished: Path | None = None
        self._trainable = trainable
        self._knobs = knobs
        self._order = order
        self._heldout = torch.zeros(2, dtype=torch.float64)

    def gather_(self) -> None:
        """In place: makes the trained model whole where an engine has shared it out."""

    def release_(self) -> None:
        """Lets go of what the training held: batches, optimizer, engine."""
        self.optimizer = None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The knobs' optimizer over the groups."""
        if self.optimizer is None:
            name, decay = self._knobs.optimizer, self.args.weight_decay
            self.optimizer = make_optimizer(self._trainable, name=name, weight_decay=decay)
            check_optimizer(self.optimizer, trainable=self._trainable)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Tensor:
        """As Trainer's; remembers the loss and whose it is."""
        numbers = inputs.pop(ROW_NUMBERS, None)
        loss = super().training_step(model, inputs, *arguments, **options)
        if numbers is not None:  # a trial step's batch is made up
            self._guard.saw(loss, numbers)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As Trainer's; in training with the gradients of the method's penalty, once per optimizer step. The loss that is told is without it."""
        result: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._trainable.allocation is None or return_outputs or not model.training:
            return result
        share = 1.0 / self.args.gradient_accumulation_steps
        if num_items_in_batch is not None and math.isinf(num_items_in_batch):
            share = 0.0  # the trial on the worst batch: no trace is to be left
        penalty = share * self._trainable.allocation.penalty()
        return result + penalty - penalty.detach()

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any
    ) -> tuple[Tensor | None, Any, Any]:
        """As Trainer's; adds up loss and labelled tokens."""
        inputs.pop(ROW_NUMBERS, None)
        loss, logits, labels = super().prediction_step(model, inputs, *arguments, **options)
        num_labels = (inputs["labels"] != IGNORE_INDEX).sum()
        # Trainer divides a rank's sum by the ranks' mean number of labels
        divisor = self._over_ranks(num_labels).item() / self.args.world_size
        assert loss is not None
        self._heldout += torch.tensor([loss.item() * divisor, num_labels.item()], dtype=torch.float64)
        return loss, logits, labels

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """As Trainer's, with the loss as the mean over labelled tokens: Trainer's mean over batches changes with their size."""
        self._heldout.zero_()
        output: Any = super().evaluation_loop(*arguments, **options)
        total, num_labels = self._over_ranks(self._heldout).tolist()
        output.metrics[f"{options.get('metric_key_prefix', 'eval')}_loss"] = total / num_labels
        return output

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        return super()._get_train_sampler(train_dataset) if self._order is None else self._order

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        self._guard.check(step=self.state.global_step + 1, grad_norm=norm, add_up=self._over_ranks)
        return norm

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, step = Path(str(self.args.output_dir)), self.state.global_step
        with new_checkpoint(folder, step=step, is_first=self.args.process_index == 0, meet=self._meet) as unfinished:
            self._unfinished = unfinished
            super()._save_checkpoint(model, trial)
        self._unfinished = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._unfinished or self.args.output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        torch.save(self._loop_state(), self._loop_path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self._load_loop_state(torch.load(self._loop_path(checkpoint), weights_only=True))

    def _loop_state(self) -> dict[str, Any]:
        """What Trainer leaves out of its checkpoints: losses not yet told, other cards' randomness, what a method remembers."""
        return {
            "untold_loss": self._tr_loss.item(),
            "last_told_step": self._globalstep_last_logged,
            "recent_losses": list(self._guard.recent),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def _load_loop_state(self, state: dict[str, Any]) -> None:
        self._tr_loss = torch.tensor(state["untold_loss"], device=self.args.device)
        self._globalstep_last_logged = state["last_told_step"]
        self._guard.recent.extend(state["recent_losses"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])

    def _loop_path(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"loop-{self.args.process_index}.pt"

    def _meet(self) -> None:
        if self.args.world_size > 1:
            torch.distributed.barrier()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        trained = {name: p.detach().contiguous() for name, p in self._trained_parameters().items()}
        state = self._trainable.method_state()
        if state:
            with new_file(Path(output_dir or str(self.args.output_dir)) / METHOD_NAME) as path:
                save_file({name: value.contiguous() for name, value in state.items()}, path)
        with new_file(Path(output_dir or str(self.args.output_dir)) / TRAINED_NAME) as path:
            save_file(trained, path)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        stored = load_file(Path(resume_from_checkpoint) / TRAINED_NAME)
        parameters = self._trained_parameters()
        if stored.keys() != parameters.keys():
            raise TrainingError(
                f"checkpoint '{resume_from_checkpoint}' holds {len(stored)} parameters, {len(parameters)} are trained now:"
                " it is of other settings; delete it and train again"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(stored[name])
        method = Path(resume_from_checkpoint) / METHOD_NAME
        self._trainable.load_method_state_(load_file(method) if method.is_file() else {})

    def _over_ranks(self, tensor: Tensor) -> Tensor:
        summed = tensor.to(self.args.device, copy=True)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(summed)
        return summed

    def _trained_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._trainable.model.named_parameters() if p.requires_grad}


class AllocateRanks(TrainerCallback):
    """Drives AdaLoRA's allocation at each optimizer step."""

    def __init__(self, allocation: RankAllocation) -> None:
        self._allocation = allocation

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises SettingsError where there are too few steps."""
        self._allocation.begin_(num_steps=state.max_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After the step, before its gradients go; the step is counted afterwards."""
        self._allocation.step_(state.global_step + 1)
