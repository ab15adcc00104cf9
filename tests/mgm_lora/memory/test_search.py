"""What is chosen under budgets between too small and plenty."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mgm_lora.arm_settings import FullSettings, LoraSettings, StepSettings
from mgm_lora.errors import PlanError
from mgm_lora.memory.plan import GIB, MemoryPlan, read_plan
from mgm_lora.memory.search import PlanRequest, make_plan, plan_arm, smaller_plan
from mgm_lora.model.config import MGMConfig
from mgm_lora.settings import MemorySettings, SeededTraining

MIB = 2**20
POINTS = ("language_attention", "language_mlp", "vision_attention", "projector")


@dataclass(frozen=True)
class Size:
    num_tokens: int
    num_labels: int
    pictures: tuple[str, ...] = ("a.png",)


Ask = Callable[..., PlanRequest]


@pytest.fixture
def ask(
    small_config: MGMConfig, make_lora: Callable[..., LoraSettings], make_training: Callable[..., SeededTraining]
) -> Ask:
    """A request for the arm `lora` under a budget in MiB, without margins; keywords are its step's settings."""

    def request(budget_mib: float, **step: Any) -> PlanRequest:
        return PlanRequest(
            arm_name="lora",
            arm=make_lora(*POINTS, step=StepSettings(**step)),
            config=small_config,
            base_digest="b" * 64,
            dtype=torch.float32,
            memory=MemorySettings(
                budget_gib=budget_mib / 1024, context_gib=0.0, overhead_share=0.0, try_worst_batch=True, step_down=True
            ),
            training=make_training(global_batch_size=4),
            samples=[Size(64, 12), Size(96, 30), Size(80, 90)],
            packed_to=None,
            device="cpu",
        )

    return request


@pytest.fixture
def peak(ask: Ask) -> Callable[..., float]:
    """MiB of one way to run the step."""

    def peak_mib(micro_batch_size: int, **step: Any) -> float:
        fixed = {"checkpointing": (), "loss_chunk": 1024, "offload_activations": False} | step
        plan = make_plan(ask(1024, micro_batch_size=micro_batch_size, **fixed))
        assert len(plan.tried) == 1
        return plan.peak_bytes / MIB

    return peak_mib


def test_plenty_costs_one_trace_and_recomputes_nothing(ask: Ask) -> None:
    plan = make_plan(ask(1024))
    assert len(plan.tried) == 1
    assert (plan.knobs.micro_batch_size, plan.knobs.checkpointing, plan.knobs.loss_chunk) == (4, (), 1024)
    assert plan.fits
    assert plan.shape.num_rows == 4
    assert sum(plan.parts.values()) == plan.peak_bytes


def test_just_too_little_recomputes_before_the_batch_shrinks(ask: Ask, peak: Callable[..., float]) -> None:
    plan = make_plan(ask(peak(4) - 0.001))
    assert plan.knobs.micro_batch_size == 4
    assert plan.knobs.checkpointing or plan.knobs.loss_chunk < 1024
    assert plan.fits


def test_largest_batch_that_fits_is_chosen_with_the_cheapest_recomputation(
    ask: Ask, peak: Callable[..., float]
) -> None:
    lean = {"checkpointing": ("mining", "vision_tower", "language_model"), "loss_chunk": 64}
    budget = peak(2, **lean) + 0.01
    assert budget < peak(4, **lean)
    plan = make_plan(ask(budget))
    assert plan.knobs.micro_batch_size == 2
    assert plan.peak_bytes <= budget * MIB


def test_offload_and_4_bit_come_last(ask: Ask, peak: Callable[..., float]) -> None:
    lean = {"checkpointing": ("mining", "vision_tower", "language_model"), "loss_chunk": 64}
    plain, offloaded = peak(1, **lean), peak(1, **lean, offload_activations=True)
    in_4_bit = peak(1, **lean, quantization="nf4")
    assert in_4_bit < offloaded < plain
    assert make_plan(ask((plain + offloaded) / 2)).knobs.offload_activations
    assert make_plan(ask((in_4_bit + offloaded) / 2, quantization="auto")).knobs.quantization == "nf4"
    with pytest.raises(PlanError, match="the least needs"):
        make_plan(ask((in_4_bit + offloaded) / 2))


def test_explicit_settings_are_kept(ask: Ask) -> None:
    plan = make_plan(ask(1024, micro_batch_size=2, checkpointing=("mining",), loss_chunk=17, offload_activations=True))
    knobs = plan.knobs
    assert (knobs.micro_batch_size, knobs.checkpointing, knobs.loss_chunk) == (2, ("mining",), 17)
    assert knobs.offload_activations


def test_error_tells_what_was_tried_and_the_least_that_would_fit(ask: Ask, peak: Callable[..., float]) -> None:
    with pytest.raises(PlanError) as caught:
        make_plan(ask(peak(1, checkpointing=("mining", "vision_tower", "language_model"), loss_chunk=64) * 0.9))
    told = str(caught.value)
    assert "1 row; recomputed: mining vision_tower language_model; 64 labels at once; activations offloaded" in told
    assert "4 rows; recomputed: nothing" in told
    assert "the least needs " in told


def test_budget_below_the_weights_is_said_at_once(ask: Ask) -> None:
    with pytest.raises(PlanError, match="weights alone take") as caught:
        make_plan(ask(4))
    assert "nf4" in str(caught.value)


def test_micro_batch_that_does_not_divide_is_refused(ask: Ask) -> None:
    with pytest.raises(PlanError, match="set one of 1, 2, 4"):
        make_plan(ask(1024, micro_batch_size=3))


def test_global_batch_that_cards_cannot_share_is_refused(ask: Ask) -> None:
    with pytest.raises(PlanError, match="spread evenly over 3 cards"):
        make_plan(ask(1024, engine="deepspeed", num_cards=3))


def test_smaller_plans_go_down_to_an_error(ask: Ask) -> None:
    request = ask(1024)
    plan = make_plan(request)
    seen = [plan]
    with pytest.raises(PlanError, match="nothing smaller than 1 row"):  # noqa: PT012 - the last of them raises
        while True:
            seen.append(smaller_plan(seen[-1], request=request))
    sizes = [step.knobs.micro_batch_size for step in seen]
    assert sizes[:3] == [4, 2, 1]
    assert [step.peak_bytes for step in seen] == sorted((step.peak_bytes for step in seen), reverse=True)
    assert seen[-1].tried[0].knobs == plan.knobs


def test_margins_are_taken_off_the_budget(ask: Ask, peak: Callable[..., float]) -> None:
    request = ask(peak(4) + 3)
    assert make_plan(request).knobs.checkpointing == ()
    margins = request.memory.model_copy(update={"context_gib": 2 / 1024, "overhead_share": 0.1})
    plan = make_plan(replace(request, memory=margins))
    assert plan.knobs.checkpointing != () or plan.knobs.loss_chunk < 1024
    assert plan.total_bytes == pytest.approx(plan.peak_bytes * 1.1 + 2 * MIB, abs=1)
    assert plan.total_bytes <= margins.budget_gib * GIB


def test_plan_is_read_back_and_refused_for_other_settings(ask: Ask, tmp_path: Path) -> None:
    request = ask(1024)
    written = plan_arm(request, destination=tmp_path / "lora", parents={"samples": "s"})
    assert read_plan(tmp_path / "lora", made_for=request.digest, memory=request.memory) == written
    assert (tmp_path / "lora" / "plan.png").stat().st_size > 5000
    others = (
        replace(request, base_digest="c" * 64),
        replace(request, arm=request.arm.model_copy(update={"learning_rate": 1e-2})),
        replace(request, training=request.training.model_copy(update={"global_batch_size": 2})),
        replace(request, samples=[Size(97, 12)]),
        replace(request, dtype=torch.bfloat16),
    )
    for other in others:
        with pytest.raises(PlanError, match="made for other settings"):
            read_plan(tmp_path / "lora", made_for=other.digest, memory=request.memory)


def test_plan_is_the_same_for_every_card_that_it_fits_and_refused_for_a_smaller_one(ask: Ask, tmp_path: Path) -> None:
    for budget in (512, 1024):
        plan = plan_arm(ask(budget), destination=tmp_path / str(budget), parents={})
    assert (tmp_path / "512" / "plan.json").read_bytes() == (tmp_path / "1024" / "plan.json").read_bytes()
    smaller = ask(plan.peak_bytes / MIB - 1)
    with pytest.raises(PlanError, match=r"made for a card of 1 GiB, and memory\.budget_gib is 0\.0"):
        read_plan(tmp_path / "1024", made_for=smaller.digest, memory=smaller.memory)


def test_same_request_gives_the_same_bytes(ask: Ask, tmp_path: Path) -> None:
    for name in ("one", "two"):
        plan_arm(ask(1024), destination=tmp_path / name, parents={})
    for name in ("plan.json", "search.json", "manifest.json", "plan.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_arms_of_full_training_are_planned(ask: Ask) -> None:
    full = FullSettings(learning_rate=1e-4, parts=("language_model", "projector", "mining"))
    plan: MemoryPlan = make_plan(replace(ask(1024), arm_name="full", arm=full))
    assert "adapters" not in plan.parts
    assert plan.knobs.micro_batch_size == 4
