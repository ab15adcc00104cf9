"""Chooses how an arm's step is run: the largest micro batch that fits the budget, then the cheapest knobs at that size.

What the settings say is never changed; what they leave `auto` is filled in. Few traces are made: first the step that one would wish for,
and only if it doesn't fit the leanest one, by bisection over the sizes, and from there back towards cheaper knobs. It doesn't know what a
step holds: tracing does.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from mgm_lora.arm_settings import CheckpointedPart, FullSettings, LoraSettings
from mgm_lora.errors import PlanError
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.plan import (
    MemoryPlan,
    TriedStep,
    allowed_bytes,
    describe_knobs,
    plan_digest,
    size_text,
    with_margins,
    write_plan,
)
from mgm_lora.memory.shapes import BatchShape, SampleSize, largest_batch
from mgm_lora.memory.tracing import Device, TracedStep, trace_step
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.families import mixes_experts
from mgm_lora.settings import MemorySettings, TrainingSettings

logger = logging.getLogger(__name__)
_LOSS_CHUNKS = (1024, 256, 64)
_PARTS_BY_COST: tuple[CheckpointedPart, ...] = ("mining", "vision_tower", "vision_tower_aux", "language_model")


@dataclass(frozen=True)
class PlanRequest:
    """What a plan follows from."""

    arm_name: str
    arm: LoraSettings | FullSettings
    config: MGMConfig
    base_digest: str
    dtype: torch.dtype
    memory: MemorySettings
    training: TrainingSettings
    samples: Sequence[SampleSize]
    """Of the training set."""
    packed_to: int | None
    """Tokens of a packed row; none: rows aren't packed."""
    device: Device

    @property
    def digest(self) -> str:
        """What the plan is made for; `read_plan` asks for it."""
        return plan_digest(
            base_digest=self.base_digest,
            arm=self.arm,
            training=self.training,
            shape=self.shape(max(1, self.training.global_batch_size // self.arm.step.num_cards)),
            dtype=str(self.dtype),
            device=self.device,
        )

    def shape(self, micro_batch_size: int) -> BatchShape:
        """Of the largest batch of so many rows."""
        return largest_batch(
            self.samples, micro_batch_size=micro_batch_size, packed_to=self.packed_to, config=self.config
        )


def plan_arm(request: PlanRequest, *, destination: Path, parents: dict[str, str]) -> MemoryPlan:
    """Makes the plan of an arm and writes it; raises as `make_plan` does."""
    plan = make_plan(request)
    settings = {"arm": request.arm, "memory": request.memory, "training": request.training}
    write_plan(plan, destination=destination, settings=settings, parents=parents)
    return plan


def make_plan(request: PlanRequest) -> MemoryPlan:
    """The best step that fits.

    Raises:
        PlanError: nothing that the settings allow fits; the message holds a table of what was tried.
    """
    search = _Search(request)
    sizes = _micro_batch_sizes(request)
    for rescue in _rescues(request):
        knobs = search.best(sizes, rescue=rescue)
        if knobs is not None:
            return search.plan(knobs)
    raise PlanError(search.explain())


def smaller_plan(plan: MemoryPlan, *, request: PlanRequest) -> MemoryPlan:
    """The next step down, for where the largest batch took more than was planned: a smaller micro batch, then more that is computed
    again, fewer logits at once, offloaded activations, 4 bit; as far as the settings leave it open.

    Raises:
        PlanError: the settings allow nothing smaller.
    """
    search = _Search(request)
    for knobs in _steps_down(plan.knobs, request):
        smaller = search.plan(knobs)
        if smaller.peak_bytes < plan.peak_bytes:
            return smaller.model_copy(update={"tried": (*plan.tried, *smaller.tried)})
    raise PlanError(
        f"arm {plan.arm}: the settings allow nothing smaller than {describe_knobs(plan.knobs)}: set its step's"
        " micro_batch_size, checkpointing, loss_chunk or offload_activations to auto, or memory.budget_gib to a larger card's"
    )


def knob_choices(request: PlanRequest) -> Iterator[StepKnobs]:
    """Every set of recomputed parts, plain and (LoRA, without ZeRO-3) in 4 bit, with the smallest loss chunk and one sample a pass."""
    step = request.arm.step
    in_4_bit = isinstance(request.arm, LoraSettings) and step.zero_stage < 3 and not mixes_experts(request.config)
    quantizations: tuple[Literal["none", "nf4"], ...] = ("none", "nf4") if in_4_bit else ("none",)
    for quantization in quantizations:
        rescue = _Rescue(offload_activations=step.offload_activations is True, quantization=quantization)
        for checkpointing in _ladder(request.arm):
            yield _knobs(request, 1, rescue, checkpointing=checkpointing, loss_chunk=_loss_chunks(request, 8)[-1])


class _Search:
    """Traces, each way to run the step once."""

    def __init__(self, request: PlanRequest) -> None:
        self._request = request
        self._traced: dict[StepKnobs, TracedStep] = {}
        self._allowed = allowed_bytes(request.memory)

    def best(self, sizes: Sequence[int], *, rescue: "_Rescue") -> StepKnobs | None:
        """The largest size that fits, with the cheapest knobs; none where even the smallest size doesn't."""
        wish = next(self._from_cheap(sizes[-1], rescue))
        if self._fits(wish):
            return wish
        self._check_weights(wish, rescue=rescue)
        size = self._largest(sizes, rescue=rescue)
        if size is None:
            return None
        return self._with_large_chunk(next(k for k in self._from_cheap(size, rescue, lean=True) if self._fits(k)))

    def plan(self, knobs: StepKnobs) -> MemoryPlan:
        """The plan to run the step so."""
        step = self._trace(knobs)
        return MemoryPlan(
            arm=self._request.arm_name,
            knobs=knobs,
            shape=self._request.shape(knobs.micro_batch_size),
            peak_bytes=step.peak_bytes,
            parts=step.parts,
            host_bytes=step.host_bytes,
            paged_bytes=step.paged_bytes,
            memory=self._request.memory,
            made_for=self._request.digest,
            tried=tuple(self._tried()),
        )

    def explain(self) -> str:
        """What was tried, and the least that anything takes."""
        tried = sorted(self._tried(), key=lambda step: step.total_bytes)
        memory, least = self._request.memory, tried[0]
        rows = "\n".join(f"  {size_text(step.total_bytes):>10}  {describe_knobs(step.knobs)}" for step in tried)
        return (
            f"arm {self._request.arm_name}: nothing that the settings allow fits {memory.budget_gib:g} GiB; the least needs"
            f" {size_text(least.total_bytes)} ({size_text(least.peak_bytes)} of its own, {100 * memory.overhead_share:g} % overhead,"
            f" {memory.context_gib:g} GiB context). Tried:\n{rows}\n"
            f"Leave more of {self._request.arm_name}.step to auto, or set quantization to auto, optimizer to adamw_8bit, or engine to deepspeed"
            " with zero_stage 2 and offload_optimizer; or train less, on shorter samples, or set memory.budget_gib to a larger card's"
        )

    def _largest(self, sizes: Sequence[int], *, rescue: "_Rescue") -> int | None:
        low, high = -1, len(sizes)
        while high - low > 1:
            # the smallest first: it decides whether there is a plan at all
            middle = (low + high) // 2 if low >= 0 else 0
            if self._fits(self._leanest(sizes[middle], rescue)):
                low = middle
            else:
                high = middle
        return sizes[low] if low >= 0 else None

    def _leanest(self, size: int, rescue: "_Rescue") -> StepKnobs:
        return list(self._from_cheap(size, rescue, lean=True))[-1]

    def _from_cheap(self, size: int, rescue: "_Rescue", *, lean: bool = False) -> Iterator[StepKnobs]:
        """Knobs at a size, from computing nothing again to all that may be; with the smallest or the largest loss chunk."""
        chunks = _loss_chunks(self._request, size)
        for checkpointing in _ladder(self._request.arm):
            if checkpointing or not rescue.offload_activations:  # without recomputation there is nothing to offload
                yield _knobs(
                    self._request, size, rescue, checkpointing=checkpointing, loss_chunk=chunks[-1 if lean else 0]
                )

    def _with_large_chunk(self, knobs: StepKnobs) -> StepKnobs:
        """The largest loss chunk that doesn't raise the peak."""
        for chunk in _loss_chunks(self._request, knobs.micro_batch_size):
            candidate = replace(knobs, loss_chunk=chunk)
            if self._trace(candidate).peak_bytes <= self._trace(knobs).peak_bytes:
                return candidate
        return knobs

    def _fits(self, knobs: StepKnobs) -> bool:
        return self._trace(knobs).peak_bytes <= self._allowed

    def _trace(self, knobs: StepKnobs) -> TracedStep:
        if knobs not in self._traced:
            request = self._request
            step = trace_step(
                request.config,
                dtype=request.dtype,
                arm=request.arm,
                knobs=knobs,
                shape=request.shape(knobs.micro_batch_size),
                training=request.training,
                device=request.device,
            )
            logger.info("traced in %.1f s: %s, %s", step.seconds, size_text(step.peak_bytes), describe_knobs(knobs))
            self._traced[knobs] = step
        return self._traced[knobs]

    def _tried(self) -> Iterator[TriedStep]:
        for knobs, step in self._traced.items():
            total = with_margins(step.peak_bytes, memory=self._request.memory)
            yield TriedStep(knobs=knobs, peak_bytes=step.peak_bytes, total_bytes=total)

    def _check_weights(self, knobs: StepKnobs, *, rescue: "_Rescue") -> None:
        if self._request.arm.step.quantization == "auto" and rescue.quantization == "none":
            return
        weights = sum(size for part, size in self._trace(knobs).parts.items() if part.startswith("weights."))
        if weights > self._allowed:
            memory = self._request.memory
            raise PlanError(
                f"arm {self._request.arm_name}: memory.budget_gib is {memory.budget_gib:g}, of which {size_text(self._allowed)} are left"
                f" after the margins, but the weights alone take {size_text(weights)}: take a larger card, set step.quantization to nf4,"
                " or engine to deepspeed with zero_stage 3 and offload_parameters"
            )


@dataclass(frozen=True)
class _Rescue:
    """What is done only where nothing else fits."""

    offload_activations: bool
    quantization: Literal["none", "nf4"]


def _rescues(request: PlanRequest) -> Iterator[_Rescue]:
    step = request.arm.step
    quantizations: tuple[Literal["none", "nf4"], ...] = (
        ("none", "nf4") if step.quantization == "auto" else (step.quantization,)
    )
    if step.quantization == "auto" and mixes_experts(request.config):
        quantizations = ("none",)  # 4 bit would reach a thirtieth of the weights
    offloads = (False, True) if step.offload_activations == "auto" else (step.offload_activations,)
    for quantization in quantizations:
        for offload in offloads:
            yield _Rescue(offload_activations=offload, quantization=quantization)


def _micro_batch_sizes(request: PlanRequest) -> list[int]:
    """Those that divide a card's samples of a step, smallest first."""
    step, num_samples = request.arm.step, request.training.global_batch_size
    per_card, rest = divmod(num_samples, step.num_cards)
    if rest:
        raise PlanError(
            f"training.global_batch_size {num_samples} can't be spread evenly over {step.num_cards} cards:"
            f" set it to a multiple, such as {max(1, per_card) * step.num_cards}"
        )
    sizes = [size for size in range(1, per_card + 1) if per_card % size == 0]
    if step.micro_batch_size == "auto":
        return sizes
    if step.micro_batch_size not in sizes:
        raise PlanError(
            f"{request.arm_name}.step.micro_batch_size {step.micro_batch_size} doesn't divide the {per_card} samples that a card gets per step:"
            f" set one of {', '.join(map(str, sizes))}, or auto"
        )
    return [step.micro_batch_size]


def _ladder(arm: LoraSettings | FullSettings) -> list[tuple[CheckpointedPart, ...]]:
    """What is computed again, from nothing to all that keeps activations; the cheapest to compute again first."""
    if arm.step.checkpointing != "auto":
        return [arm.step.checkpointing]
    keeps = _parts_with_activations(arm)
    parts = [part for part in _PARTS_BY_COST if part in keeps]
    return [tuple(parts[:count]) for count in range(len(parts) + 1)]


def _parts_with_activations(arm: LoraSettings | FullSettings) -> set[CheckpointedPart]:
    """Parts that a gradient goes through; the others run without a graph."""
    trained = set(arm.points() if isinstance(arm, LoraSettings) else arm.parts)
    parts: set[CheckpointedPart] = {"language_model"}
    if trained & {"vision_attention", "vision_tower"}:
        parts |= {"vision_tower", "mining"}
    if "vision_tower_aux" in trained:
        parts |= {"vision_tower_aux", "mining"}
    if "mining" in trained:
        parts.add("mining")
    return parts


def _loss_chunks(request: PlanRequest, size: int) -> list[int]:
    """Largest first; those that hold all of a batch's labels are one."""
    if request.arm.step.loss_chunk != "auto":
        return [request.arm.step.loss_chunk]
    num_labels = request.shape(size).num_labels
    return [_LOSS_CHUNKS[0], *(chunk for chunk in _LOSS_CHUNKS[1:] if chunk < num_labels)]


def _knobs(
    request: PlanRequest, size: int, rescue: _Rescue, *, checkpointing: tuple[CheckpointedPart, ...], loss_chunk: int
) -> StepKnobs:
    step = request.arm.step
    return StepKnobs(
        micro_batch_size=size,
        checkpointing=checkpointing,
        offload_activations=rescue.offload_activations,
        loss_chunk=loss_chunk,
        quantization=rescue.quantization,
        optimizer=step.optimizer,
        engine=step.engine,
        zero_stage=step.zero_stage,
        offload_optimizer=step.offload_optimizer,
        offload_parameters=step.offload_parameters,
        num_cards=step.num_cards,
    )


def _steps_down(knobs: StepKnobs, request: PlanRequest) -> Iterator[StepKnobs]:
    step = request.arm.step
    smaller = [size for size in _micro_batch_sizes(request) if size < knobs.micro_batch_size]
    if smaller:
        yield replace(knobs, micro_batch_size=smaller[-1])
    for checkpointing in _ladder(request.arm):
        if set(checkpointing) > set(knobs.checkpointing):
            yield replace(knobs, checkpointing=checkpointing)
    leanest = replace(knobs, checkpointing=_ladder(request.arm)[-1])
    for chunk in _loss_chunks(request, knobs.micro_batch_size):
        if chunk < knobs.loss_chunk:
            yield replace(leanest, loss_chunk=chunk)
    leanest = replace(leanest, loss_chunk=min(knobs.loss_chunk, _loss_chunks(request, knobs.micro_batch_size)[-1]))
    if step.offload_activations == "auto" and not knobs.offload_activations and leanest.checkpointing:
        yield replace(leanest, offload_activations=True)
    if step.quantization == "auto" and knobs.quantization == "none":
        yield replace(leanest, quantization="nf4")
