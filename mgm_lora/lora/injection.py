"""Makes a model trainable in exactly what the settings say: LoRA at the points (PEFT), or parts in full.

Every other parameter is frozen. What is trained is kept in float32, whatever the base's precision, since Adam's small
steps vanish in bfloat16. It knows names, not optimizers or data.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import set_seed

from mgm_lora.arm_settings import AdaLoraSettings, FullSettings, LoraSettings
from mgm_lora.errors import SettingsError, TrainingError
from mgm_lora.lora.allocation import RankAllocation
from mgm_lora.lora.methods import ADAPTER_NAME, INITIAL_NAME, begin_from_weights_, peft_config
from mgm_lora.lora.points import ResolvedPoint, resolve_points
from mgm_lora.model.mgm import MGMForConditionalGeneration

OF_B = ".B"
"""Ends the name of a group that holds a point's B alone."""
_PARTS = {
    "language_model": r"language_model\..*",
    "vision_tower": r"vision_tower\.(embeddings|pre_layrnorm|encoder\.layers\.{used_vision_layers})\..*",
    "vision_tower_aux": r"vision_tower_aux\..*",
    "projector": r"mm_projector\..*",
    # Offset and bias on the keys' side move all scores of a query alike: the softmax drops them, so they can't learn.
    "mining": r"vlm_uni_(query|val)_projector\..*|vlm_uni_aux_projector\.(0|1)\.weight",
}


@dataclass(frozen=True)
class TrainableGroup:
    """Parameters with one learning rate."""

    name: str
    learning_rate: float
    parameter_names: tuple[str, ...]


@dataclass(frozen=True)
class TrainableModel:
    """A model ready for training and what is trained in it."""

    model: nn.Module
    groups: tuple[TrainableGroup, ...]
    points: tuple[ResolvedPoint, ...]
    allocation: RankAllocation | None = None
    """Who takes ranks away on the way; none: nobody does."""

    @property
    def mgm(self) -> MGMForConditionalGeneration:
        """The plain model inside."""
        plain = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        assert isinstance(plain, MGMForConditionalGeneration)
        return plain

    @property
    def num_trainable(self) -> int:
        """Parameters that are trained."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def method_state(self) -> dict[str, Tensor]:
        """What a training must keep, beside the trained parameters and the optimizer's state, to go on from where it was."""
        initial = {name: p.detach() for name, p in self.model.named_parameters() if f".{INITIAL_NAME}." in name}
        return initial | (self.allocation.state() if self.allocation else {})

    def load_method_state_(self, state: Mapping[str, Tensor]) -> None:
        """In place: goes on from a `method_state`; raises TrainingError where it is that of other methods."""
        parameters = dict(self.model.named_parameters())
        initial = {name for name in parameters if f".{INITIAL_NAME}." in name}
        rest = {name: value for name, value in state.items() if name not in initial}
        if not initial <= state.keys() or (rest and self.allocation is None):
            raise TrainingError(
                "the checkpoint's state is that of other methods: delete the checkpoint and train again"
            )
        with torch.no_grad():
            for name in initial:
                parameters[name].copy_(state[name])
        if self.allocation is not None:
            self.allocation.load_state_(rest)


def inject_adapter_(model: MGMForConditionalGeneration, *, lora: LoraSettings, seed: int) -> TrainableModel:
    """In place: freezes the base and puts LoRA (or full training) at the points.

    Raises:
        NoMatchingModuleError: a point names no module.
        SettingsError: a rank is larger than a layer that it is for, or 4-bit weights are to be trained in full.
        TrainingError: PEFT adapted other modules than those resolved.
    """
    points = resolve_points(model, points=lora.points())
    _check_full_points(model, points)
    model.requires_grad_(False)
    low_rank = [point for point in points if point.settings.mode == "lora"]
    set_seed(seed)  # before the adapters are built, not when the trainer starts
    wrapped: nn.Module = model
    allocation = None
    if low_rank:
        config = peft_config(low_rank, base_name=model.name_or_path or None, budget=lora.adalora)
        adapted = wrapped = get_peft_model(model, config)
        _check_adapted(adapted, low_rank)
        begin_from_weights_(adapted, low_rank)
        if lora.points_with("adalora"):
            _freeze_rank_counts_(adapted)
            allocation = RankAllocation(adapted, budget=lora.adalora or AdaLoraSettings())
    _set_dropouts_(wrapped, low_rank)
    groups = [group for point in points for group in _trainable_groups_(wrapped, point, default=lora.learning_rate)]
    return TrainableModel(model=wrapped, groups=tuple(groups), points=tuple(points), allocation=allocation)


def thaw_parts_(model: MGMForConditionalGeneration, *, full: FullSettings, seed: int) -> TrainableModel:
    """In place: freezes the model but for the named parts, which are trained in full."""
    set_seed(seed)
    model.requires_grad_(False)
    used_layers = "(" + "|".join(str(i) for i in range(model.config.num_used_vision_layers)) + ")"
    groups = []
    for part in full.parts:
        pattern = _PARTS[part].replace("{used_vision_layers}", used_layers)
        names = [name for name, _ in model.named_parameters() if re.fullmatch(pattern, name)]
        _thaw_(model, names)
        rate = full.learning_rates.get(part, full.learning_rate)
        groups.append(TrainableGroup(name=part, learning_rate=rate, parameter_names=tuple(names)))
    return TrainableModel(model=model, groups=tuple(groups), points=())


def keep_inputs_reduced_(model: nn.Module) -> None:
    """In place: autocast casts the small adapter weights down, instead of PEFT the wide inputs up to float32.

    From then on the adapters of a reduced base run under autocast only.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False


def _check_full_points(model: nn.Module, points: Sequence[ResolvedPoint]) -> None:
    def is_packed(point: ResolvedPoint) -> bool:
        return any(not model.get_parameter(f"{name}.weight").is_floating_point() for name in point.module_names)

    packed = [point.name for point in points if point.settings.mode == "full" and is_packed(point)]
    if packed:
        raise SettingsError(
            f"{', '.join(f'{name}.mode' for name in packed)} is full, but 4-bit weights can't be trained in full:"
            " set the mode to lora, or step.quantization to none"
        )


def _freeze_rank_counts_(model: PeftModel) -> None:
    """In place: PEFT freezes the numbers that AdaLoRA divides by, and thaws them again where it casts them to a reduced base's precision."""
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)


def _set_dropouts_(model: nn.Module, points: Sequence[ResolvedPoint]) -> None:
    """In place: PEFT has one dropout for all modules; here each point has its own."""
    for point in points:
        for name in point.module_names:
            if point.settings.dropout:
                module: Any = model.get_submodule(f"base_model.model.{name}")
                module.lora_dropout[ADAPTER_NAME] = nn.Dropout(point.settings.dropout)


def _check_adapted(model: PeftModel, points: Sequence[ResolvedPoint]) -> None:
    wanted = {name for point in points for name in point.module_names}
    adapted = set(model.targeted_module_names)
    if adapted != wanted:
        raise TrainingError(
            f"PEFT adapted {len(adapted)} modules, resolved were {len(wanted)};"
            f" not adapted: {sorted(wanted - adapted)[:5]}; not asked for: {sorted(adapted - wanted)[:5]}"
        )


def _trainable_groups_(model: nn.Module, point: ResolvedPoint, *, default: float) -> list[TrainableGroup]:
    """In place: thaws a point that is trained in full; the parameters of the point, B's apart where they learn at another rate."""
    prefix = "base_model.model." if isinstance(model, PeftModel) else ""
    starts = tuple(f"{prefix}{name}." for name in point.module_names)
    names = [name for name, _ in model.named_parameters() if name.startswith(starts)]
    if point.settings.mode == "lora":
        names = [name for name in names if ".lora_" in name and f".{INITIAL_NAME}." not in name]
    elif point.name in _PARTS:  # the whole part, as the full fine-tune trains it, norms and all
        pattern = re.escape(prefix) + f"({_PARTS[point.name]})"
        names = [name for name, _ in model.named_parameters() if re.fullmatch(pattern, name)]
    _thaw_(model, names)
    rate = default if point.settings.learning_rate is None else point.settings.learning_rate
    faster = [name for name in names if ".lora_B." in name] if point.settings.loraplus_ratio != 1.0 else []
    rest = tuple(name for name in names if name not in set(faster))
    groups = [TrainableGroup(name=point.name, learning_rate=rate, parameter_names=rest)]
    if faster:
        rate_of_b = rate * point.settings.loraplus_ratio
        groups.append(TrainableGroup(f"{point.name}{OF_B}", learning_rate=rate_of_b, parameter_names=tuple(faster)))
    return groups


def _thaw_(model: nn.Module, names: Sequence[str]) -> None:
    parameters = dict(model.named_parameters())
    for name in names:
        parameters[name].data = parameters[name].data.to(torch.float32)
        parameters[name].requires_grad_(True)
