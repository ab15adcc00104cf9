"""Arms by knobs by micro batch for a card: what fits and what doesn't, as a table and a picture. It chooses nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from mgm_lora.memory.chart import Curve, draw_peaks
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.plan import GIB, allowed_bytes, with_margins
from mgm_lora.memory.search import PlanRequest, knob_choices
from mgm_lora.memory.tracing import trace_step


@dataclass(frozen=True)
class Outcome:
    """One arm, run one way, at one micro batch size."""

    arm: str
    knobs: StepKnobs
    peak_bytes: int
    total_bytes: int
    """With the margins."""
    fits: bool


def trace_all(request: PlanRequest) -> Iterator[Outcome]:
    """Of an arm: every set of recomputed parts, plain and (LoRA) in 4 bit, from one sample upwards to the first size that doesn't fit.

    A trace takes some seconds: outcomes come as they are found.
    """
    sizes = _doubling(request.training.global_batch_size // request.arm.step.num_cards)
    training = request.training.model_copy(update={"global_batch_size": sizes[-1] * request.arm.step.num_cards})
    for choice in knob_choices(request):
        for size in sizes:
            knobs = replace(choice, micro_batch_size=size)
            step = trace_step(
                request.config,
                dtype=request.dtype,
                arm=request.arm,
                knobs=knobs,
                shape=request.shape(size),
                training=training,
                device=request.device,
            )
            fits = step.peak_bytes <= allowed_bytes(request.memory)
            total = with_margins(step.peak_bytes, memory=request.memory)
            yield Outcome(request.arm_name, knobs, step.peak_bytes, total, fits)
            if not fits:
                break


def as_table(outcomes: Sequence[Outcome], *, budget_gib: float) -> Table:
    """A row per way to run an arm, a column per micro batch size; what doesn't fit stands in brackets."""
    sizes = sorted({outcome.knobs.micro_batch_size for outcome in outcomes})
    table = Table(title=f"Peaks with margins in GiB, for {budget_gib:g} GiB; in brackets: does not fit")
    for heading in ("arm", "recomputed", "weights"):
        table.add_column(heading)
    for size in sizes:
        table.add_column(str(size), justify="right")
    for (arm, recomputed, weights), row in _by_way(outcomes).items():
        cells = (
            (f"{o.total_bytes / GIB:.2f}" if o.fits else f"({o.total_bytes / GIB:.2f})") if o else ""
            for o in map(row.get, sizes)
        )
        table.add_row(arm, recomputed, weights, *cells)
    return table


def draw_all(outcomes: Sequence[Outcome], *, budget_gib: float, path: Path) -> None:
    """Writes a PNG: a curve per way to run an arm."""
    curves = [
        Curve(
            f"{arm}, {weights}; recomputed: {recomputed}", tuple((size, o.total_bytes / GIB) for size, o in row.items())
        )
        for (arm, recomputed, weights), row in _by_way(outcomes).items()
    ]
    draw_peaks(curves, budget_gib=budget_gib, path=path)


def _by_way(outcomes: Sequence[Outcome]) -> dict[tuple[str, str, str], dict[int, Outcome]]:
    ways: dict[tuple[str, str, str], dict[int, Outcome]] = {}
    for outcome in outcomes:
        recomputed = ", ".join(outcome.knobs.checkpointing) or "nothing"
        weights = "4 bit" if outcome.knobs.quantization == "nf4" else "plain"
        ways.setdefault((outcome.arm, recomputed, weights), {})[outcome.knobs.micro_batch_size] = outcome
    return ways


def _doubling(limit: int) -> list[int]:
    sizes = [1]
    while 2 * sizes[-1] <= limit:
        sizes.append(2 * sizes[-1])
    return sizes
