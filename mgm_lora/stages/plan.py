"""The stage `plan`: one arm's memory plan, from the settings, the base's configuration and the samples' sizes. No weight is read."""

from pathlib import Path

import torch
from rich.console import Console

from mgm_lora.artifacts import digest_folder
from mgm_lora.data.table import read_samples
from mgm_lora.memory.plan import MemoryPlan, describe_knobs, read_plan, size_text
from mgm_lora.memory.search import PlanRequest, make_plan, plan_arm
from mgm_lora.memory.table import as_table, draw_all, trace_all
from mgm_lora.model.base import DTYPES, check_base, find_config
from mgm_lora.settings import MemorySettings, Settings
from mgm_lora.stages import paths


def run(settings: Settings, *, arm: str) -> MemoryPlan:
    """Writes artifacts/plans/<arm>, and prints what was chosen and what it holds; a base whose weights are not what it says is refused."""
    check_base(settings.base)
    parents = {"samples": digest_folder(paths.SAMPLES)}
    plan = plan_arm(request_of(settings, arm=arm), destination=paths.PLANS / arm, parents=parents)
    print(describe(plan))
    return plan


def what_if(settings: Settings, *, arm: str, budget_gib: float) -> MemoryPlan:
    """Prints the plan for a card of another size; writes nothing."""
    plan = make_plan(request_of(_with_budget(settings, budget_gib), arm=arm))
    print(describe(plan))
    return plan


def show_all(settings: Settings, *, budget_gib: float | None) -> None:
    """Prints the compared arms x knobs x micro batch for the card, and draws it to reports/plan.png."""
    settings = settings if budget_gib is None else _with_budget(settings, budget_gib)
    budget = settings.memory.budget_gib
    outcomes = [outcome for arm in settings.comparison.arms for outcome in trace_all(request_of(settings, arm=arm))]
    Console().print(as_table(outcomes, budget_gib=budget))
    paths.PLAN_PICTURE.parent.mkdir(parents=True, exist_ok=True)
    draw_all(outcomes, budget_gib=budget, path=paths.PLAN_PICTURE)
    print(f"picture  {paths.PLAN_PICTURE}")


def planned(settings: Settings, *, arm: str, folder: Path | None = None) -> MemoryPlan:
    """The plan that the stage left, or that of a folder; raises PlanError where it is of other settings, data or another base."""
    made_for = request_of(settings, arm=arm).digest
    return read_plan(folder or paths.PLANS / arm, made_for=made_for, memory=settings.memory)


def request_of(settings: Settings, *, arm: str) -> PlanRequest:
    """What an arm's plan follows from."""
    config, digest = find_config(settings.base)
    return PlanRequest(
        arm_name=arm,
        arm=settings.arm(arm),
        config=config,
        base_digest=digest,
        dtype=DTYPES[settings.base.dtype],
        memory=settings.memory,
        training=settings.training,
        samples=read_samples(paths.SAMPLES / "train.parquet"),
        packed_to=settings.data.max_length if settings.training.packing else None,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )


def describe(plan: MemoryPlan) -> str:
    """What was chosen and what it holds, for a terminal."""
    lines = [
        f"{plan.arm}: {size_text(plan.total_bytes)} of {plan.memory.budget_gib:g} GiB with margins,"
        f" {size_text(plan.peak_bytes)} of the step's own, rows of {plan.shape.length} tokens",
        f"  {describe_knobs(plan.knobs)}",
    ]
    return "\n".join([*lines, *(f"  {size_text(size):>10}  {part}" for part, size in plan.parts.items())])


def _with_budget(settings: Settings, budget_gib: float) -> Settings:
    memory = MemorySettings.model_validate({**settings.memory.model_dump(), "budget_gib": budget_gib})
    return Settings.model_validate({**dict(settings), "memory": memory})
