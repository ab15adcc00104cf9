"""One optimizer step of LoRA over one batch, ours or the plain way, as the trainer runs it; real or traced. It doesn't know who compares."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.plain import PlainMGM, make_plain_
from mgm_lora.arm_settings import LoraSettings
from mgm_lora.lora.injection import TrainableModel, inject_adapter_
from mgm_lora.lora.optimizer import make_optimizer
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.tracing import make_trainable_
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.settings import SeededTraining


@dataclass(frozen=True)
class PreparedStep:
    """A model with its adapters and their optimizer."""

    trainable: TrainableModel
    optimizer: torch.optim.Optimizer
    max_grad_norm: float

    def run(self, batch: Mapping[str, Tensor]) -> float:
        """In place: a whole step; the loss before it."""
        loss = self.forward(batch)
        torch.autograd.backward(loss)
        self.update()
        return loss.item()

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss, in bfloat16 arithmetic."""
        with torch.autocast(batch["input_ids"].device.type, dtype=torch.bfloat16):
            loss: Tensor = self.trainable.model(**batch).loss
        return loss

    def update(self) -> None:
        """In place: clips, steps, and forgets the gradients."""
        nn.utils.clip_grad_norm_(self.trained(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def make_state(self) -> None:
        """In place: the optimizer's state, which a first step would make; gradients of zero change nothing."""
        for parameter in self.trained():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def trained(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [parameter for parameter in self.trainable.model.parameters() if parameter.requires_grad]

    def over_its_parameters(self, training: SeededTraining) -> "PreparedStep":
        """The step with a new optimizer, for a model whose parameters were replaced."""
        return replace(self, optimizer=make_optimizer(self.trainable, name="adamw", weight_decay=training.weight_decay))


def prepare_lean(
    model: MGMForConditionalGeneration, *, lora: LoraSettings, training: SeededTraining, knobs: StepKnobs
) -> PreparedStep:
    """In place: our step."""
    return _with_optimizer(make_trainable_(model, arm=lora, knobs=knobs, training=training), training=training)


def prepare_plain(model: PlainMGM, *, lora: LoraSettings, training: SeededTraining) -> PreparedStep:
    """In place: the plain step."""
    trainable = inject_adapter_(model, lora=lora, seed=training.seed)
    make_plain_(model)
    trainable.model.train()
    return _with_optimizer(trainable, training=training)


def _with_optimizer(trainable: TrainableModel, *, training: SeededTraining) -> PreparedStep:
    optimizer = make_optimizer(trainable, name="adamw", weight_decay=training.weight_decay)
    return PreparedStep(trainable, optimizer, max_grad_norm=training.max_grad_norm)
