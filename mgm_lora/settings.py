"""The settings: `params.yaml`, typed and frozen, every mistake of the file named in one error.

A section here = a section of `params.yaml` = a `params:` entry of `dvc.yaml` = the argument that a library function
takes. Everything that changes a result is in here, in a tracked file, or in the lock. It knows no model and no data: a
value that can only be judged against those (does a point match a module?) is judged there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mgm_lora.arm_settings import ArmSettings, FullSettings, SharedPart
from mgm_lora.errors import SettingsError
from mgm_lora.sections import Address, LearningRate, RelativePath, SecretInAddressError, Section, Share

SUBJECT = "lora"
"""The arm that is merged, registered and judged."""
REFERENCE = "full"
"""The arm that it is judged against."""
ArmName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
ConversationName = Literal["gemma", "vicuna_v1", "llama_2", "llama_3", "mixtral", "chatml"]


def read_settings(path: Path) -> "Settings":
    """Reads and checks a `params.yaml`.

    Raises:
        SettingsError: the file is missing or no YAML, or has unknown, missing or wrong entries (all are named).
    """
    return check_settings(read_entries(path), source=str(path))


def read_entries(path: Path) -> dict[str, Any]:
    """What a `params.yaml` says, unchecked; raises SettingsError where it is missing, or no YAML with sections."""
    if not path.is_file():
        raise SettingsError(f"no settings at '{path}': run from the project's root, or name the file with --params")
    try:
        entries = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"'{path}' is not YAML: {error}") from error
    if not isinstance(entries, dict):
        raise SettingsError(f"'{path}' must hold sections (base, data, lora, ...), found {type(entries).__name__}")
    return entries


def check_settings(entries: Mapping[str, Any], *, source: str) -> "Settings":
    """The settings that entries are; raises SettingsError, which names `source` and all mistakes."""
    try:
        return Settings.model_validate(entries)
    except ValidationError as error:
        raise SettingsError(_explain(error, source=source)) from error


class BaseSettings(Section):
    """Which model is taught."""

    model: str = Field(min_length=1)
    """A folder, or a hub id (`owner/name`) that is in the user's hub cache."""
    revision: str | None = None
    """The hub's commit; a folder has none."""
    vision_tower: str | None = Field(default=None, min_length=1)
    """Where the CLIP tower of a published checkpoint lies, a folder or a hub id; none: where its config.json says."""
    vision_tower_aux: str | None = Field(default=None, min_length=1)
    """Where its OpenCLIP ConvNeXt lies, likewise."""
    dtype: Literal["float32", "bfloat16", "float16"]
    """Precision of the frozen weights in memory."""
    conversation: ConversationName | None = None
    """The template that it was trained with; none: as its config.json says."""
    image_grid: int | None = Field(default=None, ge=1)
    """Squares along a side of a picture, each seen by CLIP on its own; none: as its config.json says, and so below."""
    image_global: bool | None = None
    """Whether CLIP sees the whole picture beside its squares."""
    image_size_aux: int | None = Field(default=None, ge=1)
    """Side of the high-resolution view, in pixels."""
    max_length: int | None = Field(default=None, ge=8)
    """Tokens after which it cuts a sequence."""

    def changes(self) -> dict[str, Any]:
        """What is not to be as its config.json says."""
        names = ("conversation", "image_grid", "image_global", "image_size_aux", "max_length")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class DataSettings(Section):
    """Where the data lies; all in LLaVA's conversation form."""

    pictures: RelativePath
    """The folder that the `image` entries are relative to."""
    train: RelativePath
    """What is learned."""
    heldout: RelativePath
    """What is scored; shares no picture with `train`."""
    known: RelativePath | None = None
    """What the base already knows, to measure forgetting; none: forgetting is not measured."""
    max_length: int = Field(ge=8)
    """Tokens of a sample with its picture tokens; a longer training sample is rejected, not cut."""


class ValidationSettings(Section):
    """What stops a sample (it becomes a reject) and what stops the run."""

    max_reject_share: Share
    """Above this share of rejects in one file the stage fails."""
    min_picture_side: int = Field(ge=1)
    """Pixels of the shorter side; a smaller picture is rejected."""
    max_picture_pixels: int = Field(ge=1)
    """Pixels of a picture; a larger one is rejected unread (decompression bombs)."""
    min_label_share: Share
    """Labelled tokens over all tokens of a sample, below which a warning is given."""
    warn_only: tuple[str, ...] = Field(default=(), strict=False)
    """Names of checks whose failing rows are kept and only warned of."""
    num_workers: int = Field(ge=0)
    """Threads that decode pictures; 0: one per core."""


class MemorySettings(Section):
    """What a card holds, and what of it a step must leave free."""

    budget_gib: float = Field(gt=0.0)
    """The card's memory; on a machine without one, the memory that training may take."""
    context_gib: float = Field(ge=0.0)
    """What the driver, its kernels and their workspaces take before the first tensor."""
    overhead_share: Share
    """Of the step's own bytes: the allocator's rounding and gaps."""
    try_worst_batch: bool
    """Run one step on the largest batch of the data before training, compare it with the plan, and undo it."""
    step_down: bool
    """Where that step doesn't fit, take the next smaller plan (half the micro batch, more checkpointing) instead of stopping."""


class TrainingSettings(Section):
    """What all arms share, so that they can be compared."""

    num_epochs: float = Field(gt=0.0)
    """Passes over the training samples."""
    global_batch_size: int = Field(ge=1)
    """Samples per optimizer step, over all cards."""
    group_by_length: bool
    """Samples of about one length, and with pictures or without, share a batch: less padding."""
    packing: bool
    """Several samples in one row of up to data.max_length tokens, each seeing itself alone; global_batch_size then counts rows."""
    warmup_share: Share
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant_with_warmup"]
    """How the learning rate falls after the warm-up."""
    weight_decay: float = Field(ge=0.0)
    """AdamW's decay, on matrices only."""
    max_grad_norm: float = Field(gt=0.0)
    """Gradients are clipped to this norm."""
    precision: Literal["float32", "bfloat16"]
    """Arithmetic of the forward pass: bfloat16 is autocast over the weights."""
    evaluations: int = Field(ge=1)
    """How often the held-out loss is taken, evenly spread."""
    num_evaluation_samples: int = Field(ge=1)
    """Held-out samples in that loss: the first ones of the file."""
    shared_parts: tuple[SharedPart, ...] = Field(default=(), strict=False)
    """Trained in full by every arm that says nothing else of them, so that arms differ in what they are named for."""
    shared_learning_rate: LearningRate | None = None
    """Of these parts; none: that of the arm."""
    checkpoints: int = Field(ge=0)
    """How many checkpoints are written on the way; an interrupted run goes on from the newest."""


class SeededTraining(TrainingSettings):
    """One training of an arm: what all share, and its seed."""

    seed: Seed
    """Seeds adapters, order of samples and dropout."""


class GuardSettings(Section):
    """What ends or holds up a training and changes nothing of what it ends in: no stage runs anew when it is changed."""

    busy_card: Literal["wait", "fail"]
    """What a trainer does whose card another one holds."""
    max_loss_spike: float | None = Field(default=None, gt=1.0)
    """Ends the training at a step whose loss is above this many times the median of the last 50; none: only where it is no number."""


class PrecisionBounds(Section):
    """A bound for each precision that weights are kept in."""

    float32: float = Field(gt=0.0)
    bfloat16: float = Field(gt=0.0)
    float16: float = Field(gt=0.0)


class MergingSettings(Section):
    """The proof that merged weights answer as the adapter does."""

    num_probe_samples: int = Field(ge=1)
    """Held-out samples that base, adapter and merged model are compared on."""
    max_logit_difference: PrecisionBounds
    """Largest absolute difference of merged and adapted logits, over the largest logit; of base and merged weights the coarser precision counts."""
    min_base_difference: float = Field(gt=0.0)
    """Smallest such difference between merged and base: below it the adapter did nothing."""


class EvaluationSettings(Section):
    """How answers are made and scored."""

    batch_size: int = Field(ge=1)
    """Questions answered at once."""
    max_new_tokens: int = Field(ge=1)
    """Longest answer, in tokens."""
    metric: Literal["exact", "vqa", "anls", "choice"] = "exact"
    """What an answer is worth: 1 or 0 where it is the truth (exact) or names its option (choice), or in between (VQA's soft accuracy, ANLS)."""
    score_types: tuple[str, ...] = Field(strict=False)
    """Question types in the score; empty: all of them."""
    confidence: float = Field(gt=0.5, lt=1.0)
    """Of every interval."""
    num_resamples: int = Field(ge=100)
    """Bootstrap resamples."""
    seed: int = Field(ge=0, lt=2**32)
    """Seeds the resampling."""


class ComparisonSettings(Section):
    """Who is compared, how often each is trained, and what the report asks of the figures."""

    arms: tuple[ArmName, ...] = Field(strict=False)
    """Names of the arms that are trained; `lora` and `full` must be among them."""
    seeds: tuple[Seed, ...] = Field(strict=False, min_length=1)
    """A training of every arm for each; the first one's adapter is merged and registered."""
    retention_target: float = Field(gt=0.0)
    """The share of the full fine-tune's score that LoRA is expected to keep."""
    num_gallery_samples: int = Field(ge=0)
    """Pictures shown with every arm's answer."""

    @model_validator(mode="after")
    def _names_are_whole(self) -> Self:
        for name, entries in (("arms", self.arms), ("seeds", self.seeds)):
            twice = sorted({str(entry) for entry in entries if entries.count(entry) > 1})
            if twice:
                raise ValueError(f"comparison.{name} names {', '.join(twice)} twice: leave one out")
        missing = [name for name in (SUBJECT, REFERENCE) if name not in self.arms]
        if missing:
            raise ValueError(
                f"comparison.arms must name {SUBJECT} (what is merged, registered and judged) and {REFERENCE} (what it is judged"
                f" against), found {', '.join(self.arms) or 'none'}: add {' and '.join(missing)}"
            )
        return self


class RegistrySettings(Section):
    """Where runs and versions go."""

    tracking_uri: Address
    """MLflow's store: `sqlite:///mlflow.db`, or a server's address. No password: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD say it."""
    experiment: str = Field(min_length=1)
    """MLflow's experiment."""
    model_name: str = Field(min_length=1, pattern=r"^[^/:.%\"']+$")
    """The registered model's name."""


class PromotionSettings(Section):
    """What a version must keep to become the champion; a rule that is null is not asked. No stage depends on it."""

    confidence: float = Field(gt=0.75, lt=1.0)
    """Of what is shown about differences of scores, one-sided: better than the base, not worse than the champion."""
    champion_margin: Share
    """How much of the score it may lose against the champion on the same questions: 0.02 is two percentage points."""
    min_retention: float | None = Field(gt=0.0)
    """Of the full fine-tune's score, as it was registered."""
    max_forgetting: float | None = Field(ge=-1.0, le=1.0)
    """What the base knew and it doesn't, as a share of the questions of `known`."""
    max_adapter_mib: float | None = Field(gt=0.0)
    """The adapter's files."""
    max_seconds_per_answer: float | None = Field(gt=0.0)
    """Median over single questions on the machine that promotes."""
    num_timed_questions: int = Field(ge=1)
    """Held-out questions that are timed."""


class Settings(Section):
    """All of `params.yaml`."""

    base: BaseSettings
    data: DataSettings
    validation: ValidationSettings
    arms: dict[ArmName, ArmSettings]
    """By name: each that `comparison.arms` may name."""
    memory: MemorySettings
    training: TrainingSettings
    guards: GuardSettings
    merging: MergingSettings
    evaluation: EvaluationSettings
    comparison: ComparisonSettings
    registry: RegistrySettings
    promotion: PromotionSettings

    def arm(self, name: str) -> ArmSettings:
        """The arm of that name, with what all arms share; raises SettingsError where there is none."""
        if name not in self.arms:
            raise SettingsError(
                f"no arm '{name}': params.yaml has {', '.join(self.arms)}; name one of these, or add it there"
            )
        shared, rate = self.training.shared_parts, self.training.shared_learning_rate
        return self.arms[name].with_shared(shared, learning_rate=rate)

    def seeded_training(self, seed: int) -> SeededTraining:
        """The training section, for one seed; raises SettingsError where `comparison.seeds` doesn't name it."""
        if seed not in self.comparison.seeds:
            found = ", ".join(map(str, self.comparison.seeds))
            raise SettingsError(
                f"seed {seed} is none of comparison.seeds ({found}): name it there, or take one of these"
            )
        return SeededTraining(**dict(self.training), seed=seed)

    @model_validator(mode="after")
    def _arms_are_there(self) -> Self:
        unknown = [name for name in self.comparison.arms if name not in self.arms]
        if unknown:
            raise ValueError(
                f"comparison.arms names {', '.join(unknown)}, but arms has {', '.join(self.arms)}: name some of these, or add it there"
            )
        for name, kind in ((SUBJECT, "lora"), (REFERENCE, "full")):
            if self.arms[name].kind != kind:
                raise ValueError(
                    f"arms.{name}.kind must be {kind}, found {self.arms[name].kind}: give this arm another name"
                )
        idle = [name for name, arm in self.arms.items() if arm.kind == "full" and not self._parts_of(arm)]
        if idle:
            raise ValueError(
                f"{', '.join(f'arms.{name}' for name in idle)} trains nothing: name a part, or training.shared_parts"
            )
        if "base" in self.arms or "merged" in self.arms:
            raise ValueError(
                "an arm can't be named base or merged: these are the untrained model and the merged one; give it another name"
            )
        return self

    def _parts_of(self, arm: FullSettings) -> tuple[str, ...]:
        return arm.with_shared(self.training.shared_parts, learning_rate=None).parts

    @model_validator(mode="after")
    def _precisions_fit(self) -> Self:
        # what is trained is float32; without autocast it would meet reduced weights in one product
        if self.base.dtype != "float32" and self.training.precision != self.base.dtype:
            raise ValueError(
                f"base.dtype {self.base.dtype} needs training.precision bfloat16 (and float16 weights are for answering only):"
                f" found {self.training.precision}; set both to bfloat16, or base.dtype to float32"
            )
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        for name, step in ((f"arms.{name}", arm.step) for name, arm in self.arms.items()):
            micro = 1 if step.micro_batch_size == "auto" else step.micro_batch_size
            if self.training.global_batch_size % (micro * step.num_cards):
                raise ValueError(
                    f"training.global_batch_size {self.training.global_batch_size} is no multiple of {name}.step.micro_batch_size {micro}"
                    f" x {name}.step.num_cards {step.num_cards}"
                )
        return self


def _explain(error: ValidationError, *, source: str) -> str:
    problems: dict[tuple[str, str], list[str]] = {}  # arms that take an entry from another have its mistakes too
    for problem in error.errors():
        place = tuple(str(part) for part in problem["loc"])
        arm, place = (place[1], place[3:]) if place[:1] == ("arms",) and len(place) > 1 else ("", place)
        problems.setdefault((".".join(place), _message(dict(problem))), []).append(arm)
    lines = [_line(place, message, arms) for (place, message), arms in problems.items()]
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return "\n".join([f"'{source}' has {count}:", *(f"  - {line}" for line in lines)])


def _line(place: str, message: str, arms: Sequence[str]) -> str:
    if not arms[0]:
        return f"{place or 'the file'}: {message}"
    others = f" (the same in {', '.join(arms[1:])})" if arms[1:] else ""
    return f"arms.{arms[0]}{place and '.'}{place}: {message}{others}"


def _message(problem: dict[str, object]) -> str:
    if problem["type"] == "missing":
        return "is missing"
    if problem["type"] == "extra_forbidden":
        return "is no setting of mgm-lora (misspelt?)"
    message = str(problem["msg"]).removeprefix("Value error, ")
    found = problem.get("input")
    is_secret = isinstance(cast(dict[str, object], problem.get("ctx", {})).get("error"), SecretInAddressError)
    return message if isinstance(found, dict) or is_secret else f"{message}; found {found!r}"
