"""The plain way's peak, counted as the plan counts ours: over fake tensors, at any size, as a card or the CPU would hold it."""

from contextlib import nullcontext

import torch

from benchmarks.plain import PlainMGM
from benchmarks.step import prepare_plain
from mgm_lora.arm_settings import LoraSettings
from mgm_lora.memory.counting import BATCH, OPTIMIZER_STEP, LiveBytes
from mgm_lora.memory.fakes import FakeFloats, card_autocast, fake_weights_
from mgm_lora.memory.shapes import BatchShape, make_batch
from mgm_lora.memory.tracing import Device
from mgm_lora.model.config import MGMConfig
from mgm_lora.settings import SeededTraining


def trace_plain_step(
    config: MGMConfig,
    *,
    dtype: torch.dtype,
    lora: LoraSettings,
    shape: BatchShape,
    training: SeededTraining,
    device: Device = "cuda",
) -> dict[str, int]:
    """Bytes by part at the peak of a plain step, from its second on, when the optimizer has its state; their sum is the peak."""
    with torch.device("meta"):
        model = PlainMGM(config)
        model.tie_weights()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        step = prepare_plain(model, lora=lora, training=training)
    fake_weights_(step.trainable.model)
    counter = LiveBytes(step.trainable.model)
    with FakeFloats():
        step = step.over_its_parameters(training)
        step.make_state()
        counter.name_optimizer(step.optimizer)
        batch = make_batch(shape, config=config, device="cpu", dtype=torch.float32)
        counter.track(batch.values(), part=BATCH)
        with card_autocast() if device == "cuda" else nullcontext(), counter:
            torch.autograd.backward(step.forward(batch))
            counter.name_gradients()
            with counter.naming(OPTIMIZER_STEP):
                step.update()
    return counter.parts_at_peak()
