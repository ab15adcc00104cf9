"""Steps at MGM-2B's real size, really run in bfloat16 with random weights, beside what the trace says of the same shape.

On a CPU the process's resident memory is looked at, libraries' workspaces and the interpreter included; on a card, what torch's allocator handed out.
First our step, then the plain way over the same weights: the peak of a process only rises. Then they take turns by the clock.
"""

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from benchmarks.findings import GIB, Findings, Table, gib, median_and_range
from benchmarks.machine import keep_freed_blocks, peak_resident_bytes, resident_bytes
from benchmarks.plain import PlainMGM, share_weights
from benchmarks.sizes import (
    EVERY_PART,
    empty_model,
    fill_,
    lora_settings,
    mgm_2b,
    random_batch,
    samples,
    training_settings,
)
from benchmarks.step import PreparedStep, prepare_lean, prepare_plain
from benchmarks.traced import trace_plain_step
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.tracing import Device, trace_step

SHAPE = samples(1, 704)
KNOBS = StepKnobs(1, checkpointing=EVERY_PART, loss_chunk=256)
NEEDED_BYTES = 14 * GIB

NUM_ROUNDS = 3


@dataclass(frozen=True)
class _Peak:
    traced_bytes: int
    held_bytes: int
    """Without what the process held before the weights."""
    absolute_bytes: int
    loss: float


def measure() -> Findings:
    """Both ways' peaks and seconds."""
    _check_memory()
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    peaks, seconds = _run_ways(device)
    share = [ours / plain for ours, plain in zip(seconds["ours"], seconds["plain way"], strict=True)]
    return Findings(
        title="A step of MGM-2B's real size, really run",
        tables=(
            Table(
                "1 x 704 tokens, 96 labelled, one picture, LoRA rank 16 at four points, bfloat16, all parts recomputed:",
                (
                    "",
                    "traced, GiB",
                    "really held, GiB",
                    "held / traced",
                    "with the process itself, GiB",
                    "seconds",
                    "loss",
                ),
                tuple(_row(name, peak, seconds=seconds[name]) for name, peak in peaks.items()),
            ),
        ),
        notes=(
            f"Ours takes {median_and_range(share)} of the plain way's time ({NUM_ROUNDS} interleaved rounds) and"
            f" {peaks['ours'].traced_bytes / peaks['plain way'].traced_bytes:.2f} of its traced peak at this shape, a single short row.",
            "Really held: what the card's allocator had handed out."
            if device == "cuda"
            else "Really held: the growth of resident memory since before the weights, at its largest, the optimizer's state included; meanwhile the"
            " C library was told to give freed blocks back at once, else it keeps up to a GiB of them.",
        ),
    )


def _row(name: str, peak: _Peak, *, seconds: list[float]) -> tuple[str, ...]:
    return (
        name,
        gib(peak.traced_bytes),
        gib(peak.held_bytes),
        f"{peak.held_bytes / peak.traced_bytes:.3f}",
        gib(peak.absolute_bytes),
        median_and_range(seconds, digits=0),
        f"{peak.loss:.3f}",
    )


def _check_memory() -> None:
    available = psutil.virtual_memory().available
    if not torch.cuda.is_available() and available < NEEDED_BYTES:
        raise MemoryError(
            f"needs {NEEDED_BYTES / GIB:.0f} GiB of free memory, found {available / GIB:.1f}: close what else runs"
        )


def _run_ways(device: Device) -> tuple[dict[str, _Peak], dict[str, list[float]]]:
    """The peak of a first step and the seconds of each later one, by way."""
    lora, training, config = lora_settings(), training_settings(SHAPE.num_rows), mgm_2b()
    traced = _traced_bytes(device)
    model = empty_model(config)
    gc.collect()
    before = resident_bytes() if device == "cpu" else 0
    fill_(model, dtype=torch.bfloat16, device=device, seed=1)
    batch = random_batch(SHAPE, config=config, device=device, dtype=torch.bfloat16, seed=2)
    twin = share_weights(model, kind=PlainMGM)
    ways, peaks = {}, {}
    keep_freed_blocks(of_up_to=2**18)
    ways["ours"] = prepare_lean(model, lora=lora, training=training, knobs=KNOBS)
    peaks["ours"] = _peak(ways["ours"], batch, traced_bytes=traced["ours"], before=before)
    ways["plain way"] = prepare_plain(twin, lora=lora, training=training)
    peaks["plain way"] = _peak(ways["plain way"], batch, traced_bytes=traced["plain way"], before=before)
    keep_freed_blocks(of_up_to=2**25)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(NUM_ROUNDS):
        for name, step in ways.items():
            started = time.perf_counter()
            step.run(batch)
            seconds[name].append(time.perf_counter() - started)
    return peaks, seconds


def _traced_bytes(device: Device) -> dict[str, int]:
    lora, training, config = lora_settings(), training_settings(SHAPE.num_rows), mgm_2b()
    ours = trace_step(
        config, dtype=torch.bfloat16, arm=lora, knobs=KNOBS, shape=SHAPE, training=training, device=device
    )
    plain = trace_plain_step(config, dtype=torch.bfloat16, lora=lora, shape=SHAPE, training=training, device=device)
    return {"ours": ours.peak_bytes, "plain way": sum(plain.values())}


def _peak(step: PreparedStep, batch: Mapping[str, Tensor], *, traced_bytes: int, before: int) -> _Peak:
    on_card = batch["input_ids"].is_cuda
    step.make_state()
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    loss = step.run(batch)
    absolute = torch.cuda.max_memory_allocated() if on_card else peak_resident_bytes()
    return _Peak(traced_bytes, absolute - before, absolute, loss)
