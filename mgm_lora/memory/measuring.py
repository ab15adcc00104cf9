"""What real optimizer steps hold, to hold a plan against: the same steps as are traced, over real tensors.

Counted as the plan counts, and on a card also by torch's allocator. It doesn't know the plan.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from mgm_lora.lora.injection import TrainableModel
from mgm_lora.lora.optimizer import make_optimizer
from mgm_lora.memory.counting import BATCH, OPTIMIZER, OPTIMIZER_STEP, LiveBytes
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.shapes import BatchShape, make_batch
from mgm_lora.model.config import MGMConfig
from mgm_lora.settings import TrainingSettings

_NUM_STEPS = 2  # the optimizer's state is there from the second one on


@dataclass(frozen=True)
class MeasuredStep:
    """What the steps held at most."""

    counted_bytes: int
    """Of live tensors."""
    parts: dict[str, int]
    """The counted bytes by part, largest first."""
    allocated_bytes: int | None
    """On a card, by torch's allocator, since `measure_steps` was called; what was there before is included."""


def measure_steps(
    trainable: TrainableModel, *, config: MGMConfig, knobs: StepKnobs, shape: BatchShape, training: TrainingSettings
) -> MeasuredStep:
    """In place: trains a few steps on a made-up batch; the model must be as `make_trainable_` leaves it."""
    device = next(trainable.model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    optimizer = make_optimizer(trainable, name=knobs.optimizer, weight_decay=training.weight_decay)
    counter = LiveBytes(trainable.model)
    with counter:
        for _ in range(_NUM_STEPS):
            _step(trainable, optimizer, counter, config=config, knobs=knobs, shape=shape, training=training)
    pages = knobs.optimizer.startswith("paged") and device.type == "cuda"
    parts = counter.parts_at_peak(without={OPTIMIZER} if pages else ())
    allocated = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return MeasuredStep(counted_bytes=sum(parts.values()), parts=parts, allocated_bytes=allocated)


def _step(
    trainable: TrainableModel,
    optimizer: torch.optim.Optimizer,
    counter: LiveBytes,
    *,
    config: MGMConfig,
    knobs: StepKnobs,
    shape: BatchShape,
    training: TrainingSettings,
) -> None:
    device = next(trainable.model.parameters()).device
    reduced = training.precision == "bfloat16"
    with counter.naming(BATCH):
        batches = [
            make_batch(shape, config=config, device=device, dtype=torch.float32)
            for _ in range(knobs.num_accumulated(training.global_batch_size))
        ]
    for batch in batches:
        with torch.autocast(device.type, dtype=torch.bfloat16) if reduced else nullcontext():
            loss = trainable.model(**batch).loss / len(batches)
            if trainable.allocation is not None:
                loss = loss + trainable.allocation.penalty() / len(batches)
        loss.backward()
        del loss
        counter.name_gradients()
    with counter.naming(OPTIMIZER_STEP):
        parameters = [parameter for parameter in trainable.model.parameters() if parameter.requires_grad]
        nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        optimizer.step()
        if trainable.allocation is not None:
            trainable.allocation.follow_()
            counter.track(trainable.allocation.state().values(), part=OPTIMIZER)
    counter.name_optimizer(optimizer)
    optimizer.zero_grad(set_to_none=True)
