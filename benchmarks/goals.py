"""What the project promises of MGM-2B's real size: peaks traced as the plan traces them, the largest micro batch, and how long a trace takes.

The goals are of the traced bytes. What a plan puts on top of them (the driver's context, the allocator's gaps) is shown apart, with the settings that
this repository starts with, and decides the largest micro batch. Nothing here needs a card, and no weight is made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.findings import GIB, Findings, Goal, Table, gib, part_rows
from benchmarks.sizes import EVERY_PART, full_settings, lora_settings, mgm_2b, samples, training_settings
from mgm_lora.arm_settings import FullSettings, LoraSettings
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.plan import with_margins
from mgm_lora.memory.shapes import BatchShape
from mgm_lora.memory.tracing import TracedStep, trace_step
from mgm_lora.settings import MemorySettings, read_settings

CARD_GIB = 24.0
LENGTH = 2048
LOSS_CHUNK = 256
MAX_SECONDS = 10.0


@dataclass(frozen=True)
class _Case:
    name: str
    arm: LoraSettings | FullSettings
    shape: BatchShape
    knobs: StepKnobs
    goal_gib: float
    below: bool = False

    def trace(self) -> TracedStep:
        return trace_step(
            mgm_2b(),
            dtype=torch.bfloat16,
            arm=self.arm,
            knobs=self.knobs,
            shape=self.shape,
            training=training_settings(self.knobs.micro_batch_size),
        )


def measure() -> Findings:
    """The table of promises, the parts of each peak, and the largest micro batch."""
    memory = read_settings(Path(__file__).parents[1] / "params.yaml").memory
    cases = _cases()
    traced = {case.name: case.trace() for case in cases}
    largest, beside = _largest_micro_batch(memory)
    seconds = [step.seconds for step in (*traced.values(), *beside.values())]
    return Findings(
        title="Peaks of MGM-2B, traced",
        goals=(
            *(Goal(case.name, traced[case.name].peak_bytes / GIB, case.goal_gib, "GiB", case.below) for case in cases),
            Goal(f"a plan's trace, the longest of {len(seconds)}", max(seconds), MAX_SECONDS, "s"),
        ),
        tables=(
            Table(
                f"With what a plan adds: context {memory.context_gib:g} GiB, {100 * memory.overhead_share:g} % for the allocator:",
                ("", "traced, GiB", "with margins, GiB", "in the machine's memory, GiB", "trace, s"),
                tuple(_margin_row(name, step, memory=memory) for name, step in traced.items()),
            ),
            Table(
                f"LoRA at length {LENGTH:,}: the largest micro batch for {CARD_GIB:g} GiB, margins included, is **{largest}**:",
                ("", "traced, GiB", "with margins, GiB", "in the machine's memory, GiB", "trace, s"),
                tuple(_margin_row(f"{rows} x {LENGTH:,}", beside[rows], memory=memory) for rows in sorted(beside)),
            ),
            Table(
                "Where the bytes are at the peak, GiB:", ("", *traced), part_rows(*(s.parts for s in traced.values()))
            ),
        ),
        notes=(
            "96 labelled tokens and one picture a sample, bfloat16, no packing; language model, CLIP and mining recomputed in the backward pass;"
            f" {LOSS_CHUNK} positions' logits at once; no accumulation.",
        ),
    )


def _cases() -> tuple[_Case, ...]:
    lora, long, short = lora_settings(), samples(8, LENGTH), samples(1, 1024)
    full = full_settings(engine="deepspeed", zero_stage=2, offload_optimizer=True)
    return (
        _Case("LoRA, 8 x 2,048", lora, long, _knobs(8), 13.0),
        _Case("LoRA, 1 x 1,024", lora, short, _knobs(1), 6.8),
        _Case("QLoRA (NF4), 1 x 1,024", lora, short, _knobs(1, quantization="nf4"), 4.0),
        _Case(
            "full, ZeRO-2 with offload, 1 x 2,048",
            full,
            samples(1, LENGTH),
            _knobs(1, engine="deepspeed", zero_stage=2, offload_optimizer=True),
            22.0,
            below=True,
        ),
    )


def _knobs(micro_batch_size: int, **knobs: Any) -> StepKnobs:
    return StepKnobs(micro_batch_size, checkpointing=EVERY_PART, loss_chunk=LOSS_CHUNK, **knobs)


def _largest_micro_batch(memory: MemorySettings) -> tuple[int, dict[int, TracedStep]]:
    """Rows of the largest LoRA batch that fits with margins, and every trace that was needed: it and the next one are among them."""
    traced: dict[int, TracedStep] = {}

    def fits(rows: int) -> bool:
        if rows not in traced:
            case = _Case("", lora_settings(), samples(rows, LENGTH), _knobs(rows), CARD_GIB)
            traced[rows] = case.trace()
        return with_margins(traced[rows].peak_bytes, memory=memory) <= CARD_GIB * GIB

    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    return _bisect(fits, low=low, high=high), traced


def _bisect(fits: Callable[[int], bool], *, low: int, high: int) -> int:
    """The largest number that fits, between one that does and one that doesn't."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _margin_row(name: str, step: TracedStep, *, memory: MemorySettings) -> tuple[str, ...]:
    margins = gib(with_margins(step.peak_bytes, memory=memory))
    return name, gib(step.peak_bytes), margins, gib(step.host_bytes), f"{step.seconds:.1f}"
