"""Worst batch first: one real step on the largest batch that the data can give, measured, held against the plan, undone.

So a run that will not fit says so in its first minute and not at its longest batch. The step is the trainer's own, on
the model and the engine that it has prepared. To leave no trace it is divided by infinitely many labels: the loss and
all gradients are zero, as many as ever and in the same memory. With a learning rate of zero the weights then stay as they
are, bit by bit (which is checked), and the optimizer's moments stay zero; its count of steps is set back. It doesn't
know how a plan is made, nor what to try when this one doesn't fit.
"""

import gc
import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from mgm_lora.artifacts import new_file, write_json
from mgm_lora.errors import DoesNotFitError, TrainingError
from mgm_lora.memory.counting import LiveBytes
from mgm_lora.memory.plan import size_text
from mgm_lora.memory.shapes import BatchShape, make_batch
from mgm_lora.model.config import MGMConfig

logger = logging.getLogger(__name__)
_NAME = "first-step.json"
_OF_ENGINE = ("global_steps", "global_samples", "micro_steps", "skipped_steps", "lr_scheduler")


@dataclass(frozen=True)
class WorstBatch:
    """What is tried, and what it may take."""

    shape: BatchShape
    config: MGMConfig
    planned_bytes: int
    """What the plan says that the step takes."""
    allowed_bytes: int
    """What it may take: the budget less its margins."""
    budget_gib: float
    """For the messages."""


@dataclass(frozen=True)
class FirstStep:
    """What the largest batch took."""

    measured_bytes: int
    """On a card what torch allocated at most, without one the tensors that were alive at most; of all cards the most."""
    planned_bytes: int
    seconds: float

    @property
    def ratio(self) -> float:
        """Measured over planned."""
        return self.measured_bytes / self.planned_bytes


class WorstBatchFirst(TrainerCallback):
    """Tries the worst batch when the trainer has prepared everything, before its first step. Add it to the trainer that it is given."""

    def __init__(self, trainer: Trainer, worst: WorstBatch, *, remember_in: Path) -> None:
        self._trainer = trainer
        self._worst = worst
        self._folder = remember_in

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises DoesNotFitError where it does not fit."""
        if state.global_step:
            logger.info("the largest batch was tried when this run began: it goes on from step %d", state.global_step)
            return
        first_step = try_worst_batch(self._trainer, self._worst)
        if state.is_world_process_zero:
            with new_file(self._folder / _NAME) as path:
                write_json(path, asdict(first_step))


def recall_first_step(folder: Path) -> FirstStep | None:
    """What the largest batch took when the run with these checkpoints began; none where it was not tried."""
    path = folder / _NAME
    return FirstStep(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def try_worst_batch(trainer: Trainer, worst: WorstBatch) -> FirstStep:
    """One step on the worst batch, with what the trainer has prepared; nothing of it remains.

    Raises:
        DoesNotFitError: memory ran out, or more was taken than is allowed. Nothing is left of the step then either.
        TrainingError: the step could not be undone.
    """
    started = time.monotonic()
    model, optimizer = trainer.model, _bare(trainer.optimizer)
    assert isinstance(model, nn.Module)
    before = _fingerprints(model)
    with _same_randomness(), _as_before(trainer, optimizer):
        measured = _measured_step(trainer, worst)
    if _fingerprints(model) != before:
        raise TrainingError(
            "the trial step on the largest batch changed the weights, so it can't be undone: report this"
        )
    if math.isfinite(
        measured
    ):  # else another rank may wait for this one within its step: this one's end, and not its word, ends it
        measured = _over_all_cards(measured, device=trainer.args.device)
    if math.isinf(measured) or measured > worst.allowed_bytes:
        _free(model, optimizer)
        raise DoesNotFitError(_explain(worst, measured=measured))
    result = FirstStep(int(measured), worst.planned_bytes, seconds=time.monotonic() - started)
    logger.info(
        "the largest batch takes %s, planned were %s (budget %g GiB)",
        size_text(result.measured_bytes),
        size_text(result.planned_bytes),
        worst.budget_gib,
    )
    return result


def _measured_step(trainer: Trainer, worst: WorstBatch) -> float:
    """Bytes at most in a step from the second on (the first makes the optimizer's state); infinite where memory ran out."""
    few = BatchShape(
        num_rows=1,
        length=worst.config.num_picture_tokens + 8,
        num_labels=1,
        num_pictures=min(1, worst.shape.num_pictures),
    )
    num_batches = trainer.args.gradient_accumulation_steps
    try:
        _step(trainer, [_batch(few, trainer=trainer, worst=worst)], num_passes=1)
        with _measuring(trainer) as measured:
            # the trainer fetches all batches of a step together; of the passes, the second and all after it hold the same
            batches = [_batch(worst.shape, trainer=trainer, worst=worst) for _ in range(num_batches)]
            _step(trainer, batches, num_passes=min(2, num_batches))
        return float(measured())
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    return (
        math.inf
    )  # not from within the handler, whose error holds on to all frames of the step, and they to its tensors


def _batch(shape: BatchShape, *, trainer: Trainer, worst: WorstBatch) -> dict[str, Tensor]:
    return make_batch(shape, config=worst.config, device=trainer.args.device, dtype=torch.float32)


def _step(trainer: Trainer, batches: list[dict[str, Tensor]], *, num_passes: int) -> None:
    """As the trainer's loop does it, by its own functions; an engine steps within its backward pass."""
    num_labels = torch.tensor(math.inf, device=trainer.args.device)
    model = trainer.model_wrapped
    for number, batch in enumerate(batches[-num_passes:], start=1):
        trainer.accelerator.gradient_state._set_sync_gradients(number == num_passes)
        trainer.training_step(model, batch, num_labels)
    trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
    cast(torch.optim.Optimizer, trainer.optimizer).step()
    model.zero_grad()


@contextmanager
def _measuring(trainer: Trainer) -> Iterator[Callable[[], int]]:
    if trainer.args.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        yield torch.cuda.max_memory_allocated
        return
    counter = LiveBytes(cast(nn.Module, trainer.model))
    counter.name_optimizer(_bare(trainer.optimizer))
    with counter:
        yield lambda: counter.peak_bytes


@contextmanager
def _as_before(trainer: Trainer, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Learning rates and decay are zero within; afterwards gradients, the optimizer's state and all counters are as before."""
    rates = [(group["lr"], group["weight_decay"], group.get("step")) for group in optimizer.param_groups]
    counts = {parameter: _copy_of(state.get("step")) for parameter, state in optimizer.state.items()}
    gradient_state = trainer.accelerator.gradient_state
    syncs = gradient_state.sync_gradients
    engine = getattr(trainer, "deepspeed", None)
    counters = {name: getattr(engine, name) for name in _OF_ENGINE if engine is not None}
    if engine is not None:
        engine.lr_scheduler = None  # it would be moved on, and set the rates anew
    for group in optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0
    try:
        yield
    finally:
        for group, (rate, decay, step) in zip(optimizer.param_groups, rates, strict=True):
            group["lr"], group["weight_decay"] = rate, decay
            if step is not None or "step" in group:
                group["step"] = step or 0
        _set_back_(optimizer, counts=counts)
        for name, value in counters.items():
            setattr(engine, name, value)
        gradient_state._set_sync_gradients(syncs)
        cast(nn.Module, trainer.model).zero_grad(set_to_none=True)


def _set_back_(optimizer: torch.optim.Optimizer, *, counts: dict[Tensor, Any]) -> None:
    """In place: state that is new goes; of what was there, whose moments a zero gradient left zero, the count of steps is set back."""
    for parameter, state in list(optimizer.state.items()):
        if parameter in counts:
            state["step"] = counts[parameter]
        elif getattr(optimizer, "is_paged", False):
            state["step"] = 0  # bitsandbytes never gives pages back: what it has made is used again, and is zero
        else:
            del optimizer.state[parameter]


def _copy_of(step: Any) -> Any:
    return step.clone() if isinstance(step, Tensor) else step


def _bare(optimizer: Any) -> torch.optim.Optimizer:
    """Without what accelerate and DeepSpeed put around it."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


@contextmanager
def _same_randomness() -> Iterator[None]:
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def _fingerprints(model: nn.Module) -> list[int]:
    """Of what is trained: a change of one bit changes one."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    held = [getattr(parameter, "ds_tensor", parameter).detach() for parameter in parameters]  # ZeRO-3's share
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return [int(tensor.view(kinds[tensor.element_size()]).sum(dtype=torch.int64)) for tensor in held]


def _over_all_cards(measured: float, *, device: torch.device) -> float:
    if not torch.distributed.is_initialized():
        return measured
    most = torch.tensor(measured, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return most.item()


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _free(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.zero_grad(set_to_none=True)
    optimizer.state.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _explain(worst: WorstBatch, *, measured: float) -> str:
    taken = "ran out of memory" if math.isinf(measured) else f"took {size_text(measured)}"
    shape = worst.shape
    return (
        f"one step on the largest batch of the data ({shape.num_rows} rows of {shape.length} tokens, {shape.num_labels} labels,"
        f" {shape.num_pictures} pictures) {taken}: planned were {size_text(worst.planned_bytes)}, and it may take"
        f" {size_text(worst.allowed_bytes)} of the budget's {worst.budget_gib:g} GiB. Set memory.step_down to true to take the next"
        " smaller plan by itself; or set a smaller step.micro_batch_size, more step.checkpointing, or a larger memory.overhead_share"
    )
