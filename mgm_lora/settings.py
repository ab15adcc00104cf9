"""The settings: `params.yaml`, typed and frozen, every mistake of the file named in one error.

A section here = a section of `params.yaml` = a `params:` entry of `dvc.yaml` = the argument that a library function
takes. Everything that changes a result is in here, in a tracked file, or in the lock. It knows no model and no data: a
value that can only be judged against those (does a point match a module?) is judged there.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mgm_lora.errors import SettingsError

POINT_NAMES = ("language_attention", "language_mlp", "vision_attention", "projector", "mining")
PART_NAMES = ("language_model", "vision_tower", "vision_tower_aux", "projector", "mining")

PartName = Literal["language_model", "vision_tower", "vision_tower_aux", "projector", "mining"]
RelativePath = Annotated[Path, Field(strict=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
LearningRate = Annotated[float, Field(gt=0.0, le=1.0)]


def read_settings(path: Path) -> "Settings":
    """Reads and checks a `params.yaml`.

    Raises:
        SettingsError: the file is missing or no YAML, or has unknown, missing or wrong entries (all are named).
    """
    if not path.is_file():
        raise SettingsError(f"no settings at '{path}': run from the project's root, or name the file with --params")
    try:
        entries = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"'{path}' is not YAML: {error}") from error
    if not isinstance(entries, dict):
        raise SettingsError(f"'{path}' must hold sections (base, data, lora, ...), found {type(entries).__name__}")
    try:
        return Settings.model_validate(entries)
    except ValidationError as error:
        raise SettingsError(_explain(error, path=path)) from error


class Section(BaseModel):
    """A frozen section: unknown entries are errors, text is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class BaseSettings(Section):
    """Which model is taught."""

    model: str = Field(min_length=1)
    """A folder, or a hub id (`owner/name`) that is in the user's hub cache."""
    revision: str | None = None
    """The hub's commit; a folder has none."""
    dtype: Literal["float32", "bfloat16", "float16"]
    """Precision of the frozen weights in memory."""


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


class PointSettings(Section):
    """One application point."""

    mode: Literal["off", "lora", "full"]
    """Left alone, given a low-rank update, or trained in full."""
    rank: int = Field(default=16, ge=1)
    """Rank r of the update (alpha/r) B A; read when mode is lora."""
    alpha: float = Field(default=32.0, gt=0.0)
    """Scale of the update; read when mode is lora."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the update's input; read when mode is lora."""
    method: Literal["lora", "rslora"] = "lora"
    """Scale alpha/r, or alpha/sqrt(r) (rsLoRA, arXiv 2312.03732); read when mode is lora."""
    learning_rate: LearningRate | None = None
    """The point's own learning rate; none: the arm's."""


class LoraSettings(Section):
    """The arm `lora`: what is adapted, and how fast."""

    learning_rate: LearningRate
    """Of all points that have none of their own."""
    language_attention: PointSettings
    """q, k, v, o of the language model's attention."""
    language_mlp: PointSettings
    """gate, up, down of the language model's MLP."""
    vision_attention: PointSettings
    """q, k, v, out of CLIP's attention, the last (unused) layer left out."""
    projector: PointSettings
    """The two linear maps of `mm_projector`."""
    mining: PointSettings
    """The three linear maps of patch-info-mining."""

    def points(self) -> dict[str, PointSettings]:
        """The points that are not off, by name."""
        points = {name: getattr(self, name) for name in POINT_NAMES}
        return {name: point for name, point in points.items() if point.mode != "off"}

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if not self.points():
            raise ValueError("every application point is off, so nothing would be trained: set one to lora or full")
        return self


class FullSettings(Section):
    """The arm `full`: the fine-tune that LoRA is compared with."""

    learning_rate: LearningRate
    """Of all trained parts."""
    parts: tuple[PartName, ...] = Field(strict=False, min_length=1)
    """What is trained; the published recipe trains language_model, projector and mining."""


class TrainingSettings(Section):
    """What both arms share, so that they can be compared."""

    seed: int = Field(ge=0, lt=2**32)
    """Seeds adapters, order of samples and dropout."""
    num_epochs: float = Field(gt=0.0)
    """Passes over the training samples."""
    global_batch_size: int = Field(ge=1)
    """Samples per optimizer step, over all cards."""
    micro_batch_size: int = Field(ge=1)
    """Samples per forward pass on a card."""
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
    gradient_checkpointing: bool
    """Compute the language model's activations again in the backward pass instead of keeping them."""
    evaluations: int = Field(ge=1)
    """How often the held-out loss is taken, evenly spread."""
    num_evaluation_samples: int = Field(ge=1)
    """Held-out samples in that loss: the first ones of the file."""
    checkpoints: int = Field(ge=0)
    """How many checkpoints are written on the way; an interrupted run goes on from the newest."""

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is no multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self


class MergingSettings(Section):
    """The proof that merged weights answer as the adapter does."""

    num_probe_samples: int = Field(ge=1)
    """Held-out samples that base, adapter and merged model are compared on."""
    max_logit_difference: float = Field(gt=0.0)
    """Largest absolute difference of merged and adapted logits, over the largest logit."""
    min_base_difference: float = Field(gt=0.0)
    """Smallest such difference between merged and base: below it the adapter did nothing."""


class EvaluationSettings(Section):
    """How answers are made and scored."""

    batch_size: int = Field(ge=1)
    """Questions answered at once."""
    max_new_tokens: int = Field(ge=1)
    """Longest answer, in tokens."""
    score_types: tuple[str, ...] = Field(strict=False)
    """Question types in the score; empty: all of them."""
    confidence: float = Field(gt=0.5, lt=1.0)
    """Of every interval."""
    num_resamples: int = Field(ge=100)
    """Bootstrap resamples."""
    seed: int = Field(ge=0, lt=2**32)
    """Seeds the resampling."""


class ComparisonSettings(Section):
    """What the report asks of the figures."""

    retention_target: float = Field(gt=0.0)
    """The share of the full fine-tune's score that LoRA is expected to keep."""
    num_gallery_samples: int = Field(ge=0)
    """Pictures shown with every arm's answer."""


class RegistrySettings(Section):
    """Where runs and versions go."""

    tracking_uri: str = Field(min_length=1)
    """MLflow's store: `sqlite:///mlflow.db`, or a server's address."""
    experiment: str = Field(min_length=1)
    """MLflow's experiment."""
    model_name: str = Field(min_length=1, pattern=r"^[^/:.%\"']+$")
    """The registered model's name."""


class Settings(Section):
    """All of `params.yaml`."""

    base: BaseSettings
    data: DataSettings
    validation: ValidationSettings
    lora: LoraSettings
    full: FullSettings
    training: TrainingSettings
    merging: MergingSettings
    evaluation: EvaluationSettings
    comparison: ComparisonSettings
    registry: RegistrySettings

    @model_validator(mode="after")
    def _precisions_fit(self) -> Self:
        # what is trained is float32; without autocast it would meet reduced weights in one product
        if self.base.dtype != "float32" and self.training.precision != self.base.dtype:
            raise ValueError(
                f"base.dtype {self.base.dtype} needs training.precision bfloat16 (and float16 weights are for answering only):"
                f" found {self.training.precision}; set both to bfloat16, or base.dtype to float32"
            )
        return self


def _explain(error: ValidationError, *, path: Path) -> str:
    problems = [_explain_one(dict(problem)) for problem in error.errors()]
    count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    return "\n".join([f"'{path}' has {count}:", *(f"  - {problem}" for problem in problems)])


def _explain_one(problem: dict[str, object]) -> str:
    location = problem["loc"]
    name = ".".join(str(part) for part in location) if isinstance(location, tuple) and location else "the file"
    if problem["type"] == "missing":
        return f"{name}: is missing"
    if problem["type"] == "extra_forbidden":
        return f"{name}: is no setting of mgm-lora (misspelt?)"
    message = str(problem["msg"]).removeprefix("Value error, ")
    found = problem.get("input")
    return f"{name}: {message}" if isinstance(found, dict) else f"{name}: {message}; found {found!r}"
