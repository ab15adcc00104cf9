"""The table of everything: its rows end at the first size that does not fit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from mgm_lora.arm_settings import LoraSettings
from mgm_lora.memory.plan import GIB
from mgm_lora.memory.search import PlanRequest
from mgm_lora.memory.table import as_table, draw_all, trace_all
from mgm_lora.model.config import MGMConfig
from mgm_lora.settings import MemorySettings, SeededTraining


@dataclass(frozen=True)
class Size:
    num_tokens: int
    num_labels: int
    pictures: tuple[str, ...] = ("a.png",)


def test_table_shows_what_fits_up_to_the_first_that_does_not(
    small_config: MGMConfig,
    make_lora: Callable[..., LoraSettings],
    make_training: Callable[..., SeededTraining],
    tmp_path: Path,
) -> None:
    memory = MemorySettings(budget_gib=1.0, context_gib=0.0, overhead_share=0.0, try_worst_batch=True, step_down=True)
    request = PlanRequest(
        arm_name="lora",
        arm=make_lora("language_mlp"),
        config=small_config,
        base_digest="b",
        dtype=torch.float32,
        memory=memory,
        training=make_training(global_batch_size=4),
        samples=[Size(96, 30)],
        packed_to=None,
        device="cpu",
    )
    peaks = [outcome.peak_bytes for outcome in trace_all(request)]
    memory = memory.model_copy(update={"budget_gib": (min(peaks) + max(peaks)) / 2 / GIB})
    outcomes = list(trace_all(replace(request, memory=memory)))
    ways = {(o.knobs.checkpointing, o.knobs.quantization) for o in outcomes}
    assert ways == {(parts, kind) for parts in ((), ("language_model",)) for kind in ("none", "nf4")}
    for way in ways:
        row = [o for o in outcomes if (o.knobs.checkpointing, o.knobs.quantization) == way]
        assert all(o.fits for o in row[:-1])
        assert [o.knobs.micro_batch_size for o in row] == [1, 2, 4][: len(row)]
        assert not row[-1].fits or row[-1].knobs.micro_batch_size == 4
    assert {o.fits for o in outcomes} == {True, False}
    console = Console(width=120, record=True, file=(tmp_path / "table.txt").open("w"))
    console.print(as_table(outcomes, budget_gib=memory.budget_gib))
    told = console.export_text()
    assert "4 bit" in told
    assert "(0.0" in told
    draw_all(outcomes, budget_gib=memory.budget_gib, path=tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 5000
