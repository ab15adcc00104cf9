"""What a training step of a configuration holds at most, found by running one over fake tensors: no weight is read, nothing is computed.

The real configuration is built on the meta device, made trainable by the same functions as in training, and goes through one optimizer step
as the trainer does it: batch, forward (autocast), backward, clipping, optimizer. The optimizer's state is there before, since it is from
the second step on; where several batches are accumulated, the gradients are too, and all the step's batches are alive, as the trainer
fetches them together. Mixed data may leave out a part of the model in a step (no picture, no gradient in the tower): then the plan counts
an optimizer state too many.

Fake tensors of a card can't be had with a torch built for the CPU, so the step is traced as the CPU's, and made like a card's in what was
found to differ: autocast's float32 list, AdamW over all parameters at once, and paged state. Not in the trace: the card's context and
libraries' workspaces (`memory.context_gib`), rounding and gaps of the allocator (`memory.overhead_share`). What DeepSpeed adds or takes
away is in `engines.py`. It doesn't know which knobs are good.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from mgm_lora.arm_settings import FullSettings, LoraSettings
from mgm_lora.lora.injection import TrainableModel, inject_adapter_, keep_inputs_reduced_, thaw_parts_
from mgm_lora.lora.methods import unpacking_fakes
from mgm_lora.memory.counting import BATCH, OPTIMIZER, LiveBytes
from mgm_lora.memory.engines import Engine, make_engine
from mgm_lora.memory.fakes import FakeFloats, card_autocast, fake_weights_
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.shapes import BatchShape, make_batch
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.lean import make_lean_
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.quantization import quantize_language_model_
from mgm_lora.settings import TrainingSettings

Device = Literal["cpu", "cuda"]
_ANY_SEED = 0  # of weights that no one reads


@dataclass(frozen=True)
class TracedStep:
    """What a step holds."""

    peak_bytes: int
    """On the card; paged optimizer state is left out, since it leaves the card when memory is short."""
    parts: dict[str, int]
    """Bytes by part at the peak, largest first; their sum is the peak."""
    host_bytes: int
    """In the machine's memory: offloaded activations, optimizer state and weights."""
    paged_bytes: int
    """Optimizer state that may leave the card."""
    seconds: float
    """That the trace took."""


def trace_step(
    config: MGMConfig,
    *,
    dtype: torch.dtype,
    arm: LoraSettings | FullSettings,
    knobs: StepKnobs,
    shape: BatchShape,
    training: TrainingSettings,
    device: Device = "cuda",
) -> TracedStep:
    """The peak of one optimizer step.

    Args:
        config: the real model's.
        dtype: of the frozen weights.
        arm: what is trained.
        knobs: how the step is run.
        shape: of the largest batch; `num_rows` is the micro batch.
        training: precision and global batch size count.
        device: `cuda` traces what a card holds, `cpu` what a run without one does.
    """
    started = time.monotonic()
    with _no_collections():
        trainable = _built(config, dtype=dtype, arm=arm, knobs=knobs, training=training)
        fake_weights_(trainable.model)
        with FakeFloats():
            engine = make_engine(trainable, knobs=knobs, training=training, on_card=device == "cuda")
            counter = LiveBytes(trainable.model)
            _step(
                trainable,
                engine=engine,
                counter=counter,
                config=config,
                shape=shape,
                num_accumulated=knobs.num_accumulated(training.global_batch_size),
                on_card=device == "cuda",
            )
    pages = knobs.optimizer.startswith("paged") and device == "cuda"
    parts = engine.shared(counter.parts_at_peak(without={OPTIMIZER} if pages else ()))
    return TracedStep(
        peak_bytes=sum(parts.values()),
        parts=parts,
        host_bytes=counter.host_peak_bytes + engine.host_bytes,
        paged_bytes=counter.parts_now().get(OPTIMIZER, 0) if pages else 0,
        seconds=time.monotonic() - started,
    )


def make_trainable_(
    model: MGMForConditionalGeneration,
    *,
    arm: LoraSettings | FullSettings,
    knobs: StepKnobs,
    training: TrainingSettings,
) -> TrainableModel:
    """In place: what training does to a model before its first step."""
    if isinstance(arm, LoraSettings):
        trainable = inject_adapter_(model, lora=arm, seed=_ANY_SEED)
    else:
        trainable = thaw_parts_(model, full=arm, seed=_ANY_SEED)
    make_lean_(
        trainable.mgm, checkpointing=knobs.checkpointing, offload=knobs.offload_activations, loss_chunk=knobs.loss_chunk
    )
    if training.precision == "bfloat16":
        keep_inputs_reduced_(trainable.model)
    trainable.model.train()
    return trainable


def _built(
    config: MGMConfig,
    *,
    dtype: torch.dtype,
    arm: LoraSettings | FullSettings,
    knobs: StepKnobs,
    training: TrainingSettings,
) -> TrainableModel:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = MGMForConditionalGeneration(config)
        model.tie_weights()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        if knobs.quantization == "nf4":
            quantize_language_model_(model)
        return make_trainable_(model, arm=arm, knobs=knobs, training=training)


def _step(
    trainable: TrainableModel,
    *,
    engine: Engine,
    counter: LiveBytes,
    config: MGMConfig,
    shape: BatchShape,
    num_accumulated: int,
    on_card: bool,
) -> None:
    engine.hold(counter)
    images = torch.float32 if engine.autocasts else next(trainable.mgm.vision_tower.parameters()).dtype
    batches = [make_batch(shape, config=config, device="cpu", dtype=images) for _ in range(num_accumulated)]
    for batch in batches:
        counter.track(batch.values(), part=BATCH)
    with card_autocast() if on_card else nullcontext(), unpacking_fakes(), counter:
        with torch.autocast("cpu", dtype=torch.bfloat16) if engine.autocasts else nullcontext():
            loss = trainable.model(**batches[-1]).loss
            if trainable.allocation is not None:
                loss = loss + trainable.allocation.penalty()
        loss.backward()
        del loss
        counter.name_gradients()
        engine.step(counter)


@contextmanager
def _no_collections() -> Iterator[None]:
    """A block without the garbage collector, which would take a quarter of a trace's time to find nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
