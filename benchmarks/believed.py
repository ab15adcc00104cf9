"""What plans say against what real steps hold, setting by setting, each in a process of its own: traced, counted, and really taken.

Counted are the live tensors of two real steps, in the way of the trace. Really taken is the growth of resident memory since before the weights,
or on a card what torch's allocator handed out: there the trace is of a card, and its error is against the allocator.
"""

import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from benchmarks.findings import Findings, Goal, Table
from benchmarks.machine import keep_freed_blocks, peak_resident_bytes, resident_bytes
from benchmarks.sizes import (
    EVERY_PART,
    FOUR_POINTS,
    full_settings,
    middle_size,
    random_model,
    samples,
    training_settings,
)
from mgm_lora.arm_settings import FullSettings, LoraSettings
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.measuring import measure_steps
from mgm_lora.memory.shapes import BatchShape
from mgm_lora.memory.tracing import Device, make_trainable_, trace_step
from mgm_lora.model.quantization import quantize_language_model_
from mgm_lora.settings import SeededTraining

_MIB = 2**20


@dataclass(frozen=True)
class _Setting:
    """One way to train the middle size."""

    points: tuple[str, ...] = FOUR_POINTS
    rank: int = 16
    full: bool = False
    shape: BatchShape = field(default_factory=lambda: samples(2, 256, labels_each=32))
    knobs: dict[str, Any] = field(default_factory=dict)
    accumulated: int = 1
    precision: str = "bfloat16"

    def arm(self) -> LoraSettings | FullSettings:
        if self.full:
            return full_settings()
        names = ("language_attention", "language_mlp", "vision_attention", "projector", "mining")
        low_rank = {"mode": "lora", "rank": self.rank, "alpha": 2.0 * self.rank}
        points = {name: low_rank if name in self.points else {"mode": "off"} for name in names}
        return LoraSettings.model_validate({"learning_rate": 1.0e-4, **points})


_LEAN: dict[str, Any] = {"checkpointing": EVERY_PART}
_SETTINGS = {
    "LoRA": _Setting(),
    "rank 4": _Setting(rank=4),
    "rank 64": _Setting(rank=64),
    "rank 128, recomputed": _Setting(rank=128, knobs=_LEAN),
    "language attention only": _Setting(points=("language_attention",)),
    "language MLP only": _Setting(points=("language_mlp",)),
    "vision attention only": _Setting(points=("vision_attention",)),
    "projector only": _Setting(points=("projector",)),
    "mining too": _Setting(points=(*FOUR_POINTS, "mining")),
    "1 row": _Setting(shape=samples(1, 256, labels_each=32)),
    "4 rows": _Setting(shape=samples(4, 256, labels_each=32)),
    "8 rows, recomputed": _Setting(shape=samples(8, 256, labels_each=32), knobs=_LEAN),
    "1 row of 1,024": _Setting(shape=samples(1, 1024)),
    "1 row of 1,024, recomputed": _Setting(shape=samples(1, 1024), knobs=_LEAN),
    "no pictures": _Setting(shape=BatchShape(2, 256, 64, 0)),
    "packed": _Setting(shape=BatchShape(1, 1024, 96, 4, packed=True)),
    "language model recomputed": _Setting(knobs={"checkpointing": ("language_model",)}),
    "recomputed": _Setting(knobs=_LEAN),
    "recomputed and offloaded": _Setting(knobs={**_LEAN, "offload_activations": True}),
    "1,024 logits at once": _Setting(shape=samples(2, 704, labels_each=512), knobs={**_LEAN, "loss_chunk": 1024}),
    "64 logits at once": _Setting(shape=samples(2, 704, labels_each=512), knobs={**_LEAN, "loss_chunk": 64}),
    "accumulated": _Setting(accumulated=2, knobs=_LEAN),
    "float32": _Setting(precision="float32", knobs=_LEAN),
    "4 bit": _Setting(knobs={**_LEAN, "quantization": "nf4"}),
    "8-bit AdamW": _Setting(rank=128, knobs={**_LEAN, "optimizer": "adamw_8bit"}),
    "paged AdamW": _Setting(rank=128, knobs={**_LEAN, "optimizer": "paged_adamw"}),
    "full": _Setting(full=True, knobs=_LEAN),
    "full, 8-bit AdamW": _Setting(full=True, knobs={**_LEAN, "optimizer": "adamw_8bit"}),
}


@dataclass(frozen=True)
class _Found:
    traced_bytes: int
    counted_bytes: int
    taken_bytes: int
    on_card: bool

    @property
    def error(self) -> float:
        """Of the trace, against what was allocated; below zero it said too little."""
        return self.traced_bytes / (self.taken_bytes if self.on_card else self.counted_bytes) - 1


def measure() -> Findings:
    """Every setting's figures, and the errors' median and extremes."""
    found = {name: _in_a_process(name) for name in _SETTINGS}
    errors = [each.error for each in found.values()]
    sizes = [abs(error) for error in errors]
    taken = "handed out by the allocator" if torch.cuda.is_available() else "growth of resident memory"
    return Findings(
        title="What plans say against what steps hold",
        goals=(
            Goal(f"median error over {len(found)} settings", 100 * median(sizes), 2.0, "%"),
            Goal("largest error", 100 * max(sizes), 5.0, "%"),
            Goal("said too little, at most", 100 * max(0.0, -min(errors)), 2.0, "%"),
        ),
        tables=(
            Table(
                "A middle size (head 256,000 wide, a picture of 144 tokens), bfloat16 where not said otherwise, MiB:",
                ("", "traced", "counted", "error", taken, "taken / traced"),
                tuple(_row(name, each) for name, each in found.items()),
            ),
        ),
        notes=(
            "Errors are the trace's, against the live tensors of real steps; on a card against torch's allocator.",
            "Resident memory holds what no trace sees too: the libraries' workspaces, threads' stacks, and blocks that the C library keeps.",
        ),
    )


def _row(name: str, found: _Found) -> tuple[str, ...]:
    figures = (found.traced_bytes, found.counted_bytes)
    return (
        name,
        *(f"{size / _MIB:.0f}" for size in figures),
        f"{found.error:+.2%}",
        f"{found.taken_bytes / _MIB:.0f}",
        f"{found.taken_bytes / found.traced_bytes:.3f}",
    )


def _in_a_process(name: str) -> _Found:
    """Since resident memory's peak is of a whole process."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_find, name).result()


def _find(name: str) -> _Found:
    setting = _SETTINGS[name]
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if setting.precision == "bfloat16" else torch.float32
    config, arm, rows = middle_size(), setting.arm(), setting.shape.num_rows
    knobs = StepKnobs(**{"micro_batch_size": rows, "loss_chunk": 256, **setting.knobs})
    training = _training(rows * setting.accumulated, precision=setting.precision)
    keep_freed_blocks(of_up_to=2**18)
    gc.collect()
    before = resident_bytes()
    model = random_model(config, dtype=dtype, device=device, seed=1)
    if knobs.quantization == "nf4":
        quantize_language_model_(model)
    trainable = make_trainable_(model, arm=arm, knobs=knobs, training=training)
    measured = measure_steps(trainable, config=config, knobs=knobs, shape=setting.shape, training=training)
    taken = measured.allocated_bytes or peak_resident_bytes() - before
    del model, trainable
    traced = trace_step(
        config, dtype=dtype, arm=arm, knobs=knobs, shape=setting.shape, training=training, device=device
    )
    return _Found(traced.peak_bytes, measured.counted_bytes, taken, on_card=device == "cuda")


def _training(global_batch_size: int, *, precision: str) -> SeededTraining:
    entries = training_settings(global_batch_size).model_dump() | {"precision": precision}
    return SeededTraining.model_validate(entries)
