"""The `MemoryPlan`: how an arm's step will be run and what it will take; made before training, obeyed by it.

It names what it was made for, so that a plan of other settings, data or base is refused. It doesn't know how it was found.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mgm_lora.arm_settings import FullSettings, LoraSettings
from mgm_lora.artifacts import Manifest, new_artifact, read_manifest, write_json, write_manifest
from mgm_lora.errors import ArtifactError, PlanError
from mgm_lora.memory.chart import Curve, draw_peaks
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.shapes import BatchShape
from mgm_lora.settings import MemorySettings, TrainingSettings

KIND = "MemoryPlan"
PLAN_NAME = "plan.json"
SEARCH_NAME = "search.json"
PICTURE_NAME = "plan.png"
GIB = 2**30
_OF_SEARCH = {"memory", "tried"}


class TriedStep(BaseModel):
    """One way to run the step that was traced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    knobs: StepKnobs
    peak_bytes: int
    total_bytes: int
    """With the margins."""


class MemoryPlan(BaseModel):
    """What was chosen, what it takes, and what else was tried."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    knobs: StepKnobs
    shape: BatchShape
    """Of the largest batch that the data can give."""
    peak_bytes: int
    """Of the step's own tensors."""
    parts: dict[str, int]
    """Those by what they are for."""
    host_bytes: int
    """In the machine's memory."""
    paged_bytes: int
    """Optimizer state that may leave the card."""
    made_for: str
    """Digest of all that the step's bytes follow from."""
    memory: MemorySettings
    """The card that it was made for."""
    tried: tuple[TriedStep, ...]

    @property
    def total_bytes(self) -> int:
        """With the margins."""
        return with_margins(self.peak_bytes, memory=self.memory)

    @property
    def fits(self) -> bool:
        """Whether it keeps to the budget."""
        return self.peak_bytes <= allowed_bytes(self.memory)


def with_margins(peak_bytes: int, *, memory: MemorySettings) -> int:
    """A step's own bytes, what the allocator wastes beside them, and the card's context."""
    return int(peak_bytes * (1 + memory.overhead_share) + memory.context_gib * GIB)


def allowed_bytes(memory: MemorySettings) -> int:
    """What of the budget is left for a step's own bytes."""
    return max(0, int((memory.budget_gib - memory.context_gib) * GIB / (1 + memory.overhead_share)))


def plan_digest(
    *,
    base_digest: str,
    arm: LoraSettings | FullSettings,
    training: TrainingSettings,
    shape: BatchShape,
    dtype: str,
    device: str,
) -> str:
    """SHA-256 of all that a step's bytes follow from; `shape` is the largest batch of as many rows as a card ever gets: so the data's."""
    sections = [section.model_dump(mode="json") for section in (arm, training)]
    inputs = [base_digest, type(arm).__name__, *sections, vars(shape), dtype, device]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def write_plan(
    plan: MemoryPlan, *, destination: Path, settings: Mapping[str, BaseModel], parents: Mapping[str, str]
) -> None:
    """Writes plan.json (what training follows from: the same for every card that it fits), search.json (for which card, and what else was tried),
    plan.png and the manifest.
    """
    with new_artifact(destination) as folder:
        write_json(folder / PLAN_NAME, plan.model_dump(mode="json", exclude=_OF_SEARCH))
        write_json(folder / SEARCH_NAME, plan.model_dump(mode="json", include=_OF_SEARCH))
        draw_peaks(_curves(plan), budget_gib=plan.memory.budget_gib, path=folder / PICTURE_NAME)
        details = {"made_for": plan.made_for, "total_gib": round(plan.total_bytes / GIB, 3)}
        write_manifest(folder, Manifest.make(KIND, settings=settings, parents=parents, details=details))


def read_plan(folder: Path, *, made_for: str, memory: MemorySettings) -> MemoryPlan:
    """The plan of an artifact.

    Raises:
        ArtifactError: there is none, or it is not whole.
        PlanError: it was made for other settings, data or base, or for a larger card than `memory` says.
    """
    read_manifest(folder, kind=KIND)
    try:
        plan = MemoryPlan.model_validate(_read_json(folder / PLAN_NAME) | _read_json(folder / SEARCH_NAME))
    except (OSError, TypeError, ValueError) as error:  # pydantic's and JSON's errors are ValueErrors
        raise ArtifactError(
            f"'{folder}' holds no plan ({error}): run `dvc repro --force plan@{folder.name}`"
        ) from error
    if plan.made_for != made_for:
        raise PlanError(
            f"the plan '{folder}' was made for other settings, data or base than this run's (digest {plan.made_for[:12]},"
            f" the run's is {made_for[:12]}): run `dvc repro`, or `mgm-lora plan`, first"
        )
    if plan.peak_bytes > allowed_bytes(memory):
        raise PlanError(
            f"the plan '{folder}' takes {size_text(with_margins(plan.peak_bytes, memory=memory))} with margins, made for a card of"
            f" {plan.memory.budget_gib:g} GiB, and memory.budget_gib is {memory.budget_gib:g}: run `dvc repro`, or `mgm-lora plan`, first"
        )
    return plan


def size_text(num_bytes: float) -> str:
    """`11.32 GiB`, and for what is less than a tenth of one `3.4 MiB`."""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= 0.1 * GIB else f"{num_bytes / 2**20:.1f} MiB"


def describe_knobs(knobs: StepKnobs) -> str:
    """A short line: `8 rows, recomputed: language_model, mining; 256 logits at once`."""
    words = [f"{knobs.micro_batch_size} row{'s' if knobs.micro_batch_size > 1 else ''}"]
    words.append(f"recomputed: {' '.join(knobs.checkpointing) or 'nothing'}")
    words.append(f"{knobs.loss_chunk} labels at once")
    words += ["activations offloaded"] if knobs.offload_activations else []
    words += ["4 bit"] if knobs.quantization != "none" else []
    words += [knobs.optimizer] if knobs.optimizer != "adamw" else []
    if knobs.engine == "deepspeed":
        offloaded = [name for name in ("optimizer", "parameters") if getattr(knobs, f"offload_{name}")]
        words.append(
            f"ZeRO-{knobs.zero_stage} on {knobs.num_cards}" + "".join(f", {name} offloaded" for name in offloaded)
        )
    return "; ".join(words)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _curves(plan: MemoryPlan) -> list[Curve]:
    """One per set of recomputed parts: of each micro batch the smallest total that was tried."""
    totals: dict[str, dict[int, float]] = {}
    for step in plan.tried:
        knobs = step.knobs
        name = "recomputed: " + (", ".join(knobs.checkpointing) or "nothing")
        name += "; offloaded" if knobs.offload_activations else ""
        name += "; 4 bit" if knobs.quantization != "none" else ""
        points = totals.setdefault(name, {})
        total = step.total_bytes / GIB
        points[knobs.micro_batch_size] = min(total, points.get(knobs.micro_batch_size, total))
    curves = [Curve(name, tuple(sorted(points.items()))) for name, points in totals.items()]
    return [*curves, Curve("chosen", ((plan.knobs.micro_batch_size, plan.total_bytes / GIB),), is_choice=True)]
