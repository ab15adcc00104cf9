"""The settings of the arms: what is trained, by which method, how fast, and how a step is run; what can't stand together is told here.

It knows no model: whether a point matches a module is judged where the model is.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mgm_lora.sections import Auto, LearningRate, RelativePath, Section, Share

POINT_NAMES = ("language_attention", "language_mlp", "vision_attention", "projector", "mining")
_SHARED_BY_POINTS = ("rank", "alpha", "dropout", "method", "loraplus_ratio")
SHARED_PARTS = ("projector", "mining")
_LANGUAGE_POINTS = ("language_attention", "language_mlp")
PART_NAMES = ("language_model", "vision_tower", "vision_tower_aux", "projector", "mining")

SharedPart = Literal["projector", "mining"]
PartName = Literal["language_model", "vision_tower", "vision_tower_aux", "projector", "mining"]
CheckpointedPart = Literal["language_model", "vision_tower", "vision_tower_aux", "mining"]
OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
MethodName = Literal["lora", "rslora", "dora", "pissa", "olora", "adalora", "loftq"]


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
    method: MethodName = "lora"
    """How the update is scaled, begun and spread (docs/methods.md says each in a line); needs mode lora."""
    loraplus_ratio: float = Field(default=1.0, gt=0.0)
    """LoRA+ (arXiv 2402.12354): the learning rate of B is this many times that of A; needs mode lora."""
    layers: tuple[int, int] | None = Field(default=None, strict=False)
    """First and last layer, counted from 0, both included; none: all. For the three points that lie in layers; read when mode is not off."""
    learning_rate: LearningRate | None = None
    """The point's own learning rate; none: the arm's."""

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        if self.mode != "lora" and (self.method != "lora" or self.loraplus_ratio != 1.0):
            asked = f"method {self.method}" if self.method != "lora" else f"loraplus_ratio {self.loraplus_ratio:g}"
            raise ValueError(f"{asked} needs mode lora, found mode {self.mode}: set the mode to lora, or leave it out")
        if self.method == "adalora" and self.loraplus_ratio != 1.0:
            raise ValueError(
                f"loraplus_ratio is {self.loraplus_ratio:g}, but in adalora A and B are singular vectors alike: leave it out, or take another method"
            )
        if self.layers is not None and not 0 <= self.layers[0] <= self.layers[1]:
            raise ValueError(f"layers must be [first, last] with 0 <= first <= last, found {list(self.layers)}")
        return self


class AdaLoraSettings(Section):
    """The rank budget that the points with method adalora share (arXiv 2303.10512): it falls from their rank to the target."""

    target_rank: int = Field(default=8, ge=1)
    """Mean rank of an adapted module in the end."""
    tinit_share: Share = 0.1
    """Share of the steps before the first rank is taken away."""
    tfinal_share: Share = 0.3
    """Share of the steps after the last one."""
    interval: int = Field(default=1, ge=1)
    """Steps from one taking to the next."""
    orthogonal_weight: float = Field(default=0.5, ge=0.0)
    """Weight of the penalty that keeps A's rows and B's columns orthogonal."""

    @model_validator(mode="after")
    def _leaves_steps(self) -> Self:
        if self.tinit_share + self.tfinal_share >= 1.0:
            raise ValueError(
                f"tinit_share {self.tinit_share:g} and tfinal_share {self.tfinal_share:g} leave no step in which ranks are taken away:"
                " their sum must be below 1"
            )
        return self


class StepSettings(Section):
    """How an arm's training step is run on a card. The plan fills in what is `auto`: the largest micro batch, then the cheapest of the rest."""

    micro_batch_size: Auto | Annotated[int, Field(ge=1)] = "auto"
    """Samples per forward pass on a card."""
    checkpointing: Auto | Annotated[tuple[CheckpointedPart, ...], Field(strict=False)] = "auto"
    """Parts whose activations are computed again in the backward pass instead of kept."""
    offload_activations: Auto | bool = "auto"
    """Keep the checkpointed layers' inputs in the machine's memory; auto: only if nothing else fits."""
    loss_chunk: Auto | Annotated[int, Field(ge=1)] = "auto"
    """Labelled tokens whose logits exist at once."""
    quantization: Literal["none", "nf4", "auto"] = "none"
    """The frozen language model in 4 bit (QLoRA, arXiv 2305.14314); auto: only if nothing else fits, since it changes the result."""
    optimizer: OptimizerName = "adamw"
    """AdamW with 32-bit or 8-bit moments (arXiv 2110.02861); paged: its state may leave the card when memory is short."""
    engine: Literal["torch", "deepspeed"] = "torch"
    """What runs the step."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed's ZeRO stage (arXiv 1910.02054): 1 shares the optimizer's state among the cards, 2 the gradients too, 3 the weights too."""
    offload_optimizer: bool = False
    """DeepSpeed keeps the optimizer's state, and steps, in the machine's memory."""
    offload_parameters: bool = False
    """DeepSpeed keeps the weights in the machine's memory (ZeRO-3)."""
    num_cards: int = Field(default=1, ge=1)
    """Cards (or, without one, processes) over all hosts."""
    hostfile: RelativePath | None = None
    """DeepSpeed's list of hosts, a line `name slots=cards` each; none: this machine alone."""

    @model_validator(mode="after")
    def _knobs_fit(self) -> Self:
        problems = []
        if self.engine == "torch":
            unused = ("zero_stage", "offload_optimizer", "offload_parameters", "hostfile")
            asked = [name for name in unused if getattr(self, name)] + (["num_cards"] if self.num_cards > 1 else [])
            if asked:
                problems.append(f"{', '.join(asked)} need engine deepspeed: set it, or leave them out")
        elif self.optimizer != "adamw":
            problems.append(
                f"engine deepspeed has its own AdamW, found optimizer {self.optimizer}: set adamw, or engine torch"
            )
        if self.zero_stage == 3 and self.quantization != "none":
            problems.append(
                f"ZeRO-3 can't share 4-bit weights, found quantization {self.quantization}: set zero_stage to 2 or less, or quantization to none"
            )
        if self.offload_parameters and self.zero_stage != 3:
            problems.append(f"offload_parameters needs zero_stage 3, found {self.zero_stage}")
        if self.offload_optimizer and self.zero_stage == 0:
            problems.append("offload_optimizer needs zero_stage 1, 2 or 3, found 0")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class LoraSettings(Section):
    """An arm that is an adapter: what is adapted, and how fast.

    Beside its own entries it takes those of a point (rank, alpha, dropout, method, loraplus_ratio): they hold for every point with mode lora
    that doesn't say its own. Once read they are in the points alone.
    """

    kind: Literal["lora"] = "lora"
    """An adapter."""
    learning_rate: LearningRate
    """Of all points that have none of their own."""
    step: StepSettings = StepSettings()
    """How its training step is run."""
    language_attention: PointSettings
    """q, k, v, o of the language model's attention."""
    language_mlp: PointSettings
    """gate, up, down of the language model's MLP."""
    vision_attention: PointSettings
    """q, k, v, out of CLIP's attention, the last (unused) layer left out."""
    projector: PointSettings | None = None
    """The two linear maps of `mm_projector`; none: as training.shared_parts says."""
    mining: PointSettings | None = None
    """The three linear maps of patch-info-mining, in full with their norms; none: as training.shared_parts says."""
    adalora: AdaLoraSettings | None = None
    """How ranks are spread where the points' method is adalora; none: as the defaults say."""

    def points(self) -> dict[str, PointSettings]:
        """The points that are not off, by name."""
        points: dict[str, PointSettings | None] = {name: getattr(self, name) for name in POINT_NAMES}
        return {name: point for name, point in points.items() if point is not None and point.mode != "off"}

    def with_shared(self, parts: Sequence[SharedPart], *, learning_rate: float | None) -> Self:
        """The arm where `parts` that it says nothing of are trained in full, as in every arm, and others are left alone."""
        silent = [name for name in SHARED_PARTS if getattr(self, name) is None]
        points = {
            name: PointSettings(mode="full", learning_rate=learning_rate)
            if name in parts
            else PointSettings(mode="off")
            for name in silent
        }
        return type(self)(**{**dict(self), **points})

    @model_validator(mode="before")
    @classmethod
    def _share_among_points(cls, entries: Any) -> Any:
        if not isinstance(entries, Mapping):
            return entries
        shared = {name: entries[name] for name in _SHARED_BY_POINTS if name in entries}
        own = {name: entry for name, entry in entries.items() if name not in shared}
        points = {name: own[name] for name in POINT_NAMES if _is_low_rank(own.get(name))}
        unused = [name for name in shared if points and all(name in point for point in points.values())]
        if unused:
            raise ValueError(
                f"{_listed(unused)} of the arm changes nothing, since every point with mode lora has its own:"
                " leave it out of the arm, or of the points"
            )
        return own | {name: {**shared, **point} for name, point in points.items()}

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if not self.points():
            raise ValueError("every application point is off, so nothing would be trained: set one to lora or full")
        return self

    def points_with(self, *methods: MethodName) -> dict[str, PointSettings]:
        """The points with mode lora and one of these methods, by name."""
        return {
            name: point for name, point in self.points().items() if point.mode == "lora" and point.method in methods
        }

    @model_validator(mode="after")
    def _methods_fit(self) -> Self:
        problems = [*_mixing_problems(self), *_quantization_problems(self), *_engine_problems(self)]
        flat = [name for name in SHARED_PARTS if (point := getattr(self, name)) and point.layers is not None]
        if flat:
            problems.append(f"layers is set for {_listed(flat)}, which lies in no layers: leave it out")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _packed_weights_stay_frozen(self) -> Self:
        whole = [
            name
            for name in ("language_attention", "language_mlp")
            if name in self.points() and self.points()[name].mode == "full"
        ]
        if whole and self.step.quantization != "none":
            raise ValueError(
                f"step.quantization is {self.step.quantization}, but 4-bit weights can't be trained in full, and {' and '.join(whole)} should be:"
                " set quantization to none, or their mode to lora"
            )
        return self


class FullSettings(Section):
    """An arm that trains whole weights: the fine-tune that LoRA is compared with."""

    kind: Literal["full"] = "full"
    """Whole weights, and a whole model as its result."""
    learning_rate: LearningRate
    """Of all trained parts that have none of their own."""
    parts: tuple[PartName, ...] = Field(strict=False)
    """What is trained beside training.shared_parts; the published recipe trains language_model, projector and mining."""
    leave_out: tuple[SharedPart, ...] = Field(default=(), strict=False)
    """Of training.shared_parts, what this arm leaves alone."""
    learning_rates: dict[PartName, LearningRate] = Field(default_factory=dict)
    """Of single parts."""
    step: StepSettings = StepSettings()
    """How its training step is run."""

    def with_shared(self, parts: Sequence[SharedPart], *, learning_rate: float | None) -> Self:
        """The arm with `parts` that it says nothing of trained too, as in every arm."""
        added = [name for name in parts if name not in (*self.parts, *self.leave_out)]
        rates = {} if learning_rate is None else dict.fromkeys(added, learning_rate)
        return type(self)(
            **{**dict(self), "parts": (*self.parts, *added), "learning_rates": self.learning_rates | rates}
        )

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        both = [name for name in self.leave_out if name in self.parts]
        if both:
            raise ValueError(f"{_listed(both)} stands in parts and in leave_out: take it out of one of them")
        return self

    @model_validator(mode="after")
    def _trains_whole_weights(self) -> Self:
        if self.step.quantization != "none":
            raise ValueError(
                f"step.quantization is {self.step.quantization}, but 4-bit weights can't be trained in full: set it to none,"
                " and take engine deepspeed with zero_stage 2 and offload_optimizer, or optimizer adamw_8bit, to save memory"
            )
        return self


def _is_low_rank(entry: object) -> bool:
    return isinstance(entry, Mapping) and entry.get("mode") == "lora"


ArmSettings = Annotated[LoraSettings | FullSettings, Field(discriminator="kind")]


def _mixing_problems(lora: LoraSettings) -> Iterator[str]:
    low_rank = {name: point for name, point in lora.points().items() if point.mode == "lora"}
    for method in ("dora", "adalora"):
        alike = [name for name, point in low_rank.items() if point.method == method]
        others = [f"{name} ({point.method})" for name, point in low_rank.items() if point.method != method]
        if alike and others:
            yield (
                f"method {method} of {_listed(alike)} can't stand beside {_listed(others)}: PEFT has it for all adapted modules or for none;"
                f" set the method of all points with mode lora to {method}, or of none"
            )
    yield from _budget_problems(lora)


def _budget_problems(lora: LoraSettings) -> Iterator[str]:
    points = lora.points_with("adalora")
    if lora.adalora is not None and not points:
        yield "the section adalora is set, but no point has method adalora: leave it out"
    shapes = {name: f"rank {point.rank}, alpha {point.alpha:g}" for name, point in points.items()}
    if len(set(shapes.values())) > 1:
        found = _listed([f"{name} ({shape})" for name, shape in shapes.items()])
        yield f"method adalora spreads one budget from one rank and alpha, found {found}: give these points the same"
    target = (lora.adalora or AdaLoraSettings()).target_rank
    low = [f"{name} ({point.rank})" for name, point in points.items() if point.rank <= target]
    if low:
        yield f"adalora.target_rank is {target}, but the rank of {_listed(low)} is not above it: raise the rank, or lower the target"


def _quantization_problems(lora: LoraSettings) -> Iterator[str]:
    found = lora.step.quantization
    whole = [name for name in lora.points_with("pissa", "olora") if name in _LANGUAGE_POINTS]
    if whole and found != "none":
        yield (
            f"step.quantization is {found}, but pissa and olora ({_listed(whole)}) begin with parts of the unrounded weights:"
            " set quantization to none, or the method to loftq, which begins with what 4 bit lose"
        )
    loftq = list(lora.points_with("loftq"))
    if loftq and found != "nf4":
        yield f"method loftq ({_listed(loftq)}) begins with what 4 bit lose, but step.quantization is {found}: set it to nf4, or the method to lora"
    outside = [name for name in loftq if name not in _LANGUAGE_POINTS]
    if outside:
        yield f"method loftq needs 4-bit weights, and only the language model's are: set another method for {_listed(outside)}"


def _engine_problems(lora: LoraSettings) -> Iterator[str]:
    adalora, dora = list(lora.points_with("adalora")), list(lora.points_with("dora"))
    if adalora and lora.step.engine != "torch":
        yield f"method adalora ({_listed(adalora)}) reads gradients after the step, which engine deepspeed has given up by then: set engine to torch"
    if dora and lora.step.zero_stage == 3:
        yield f"method dora ({_listed(dora)}) reads weights beside their layers' own passes, which ZeRO-3 shares out: set zero_stage to 2 or less"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
