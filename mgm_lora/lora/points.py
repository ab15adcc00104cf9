"""The application points: which modules of an MGM each one names, by full path.

Never a suffix: `q_proj` alone would hit CLIP too, and the projector's `0` and `2` decoder layers. Resolved and counted
per point, since PEFT raises only if no pattern at all matches. It knows the module tree, not the weights.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from mgm_lora.arm_settings import PointSettings
from mgm_lora.errors import NoMatchingModuleError, SettingsError
from mgm_lora.model.families import fused_experts
from mgm_lora.model.mgm import MGMForConditionalGeneration

_PATTERNS = {
    "language_attention": r"language_model\.model\.layers\.{layers}\.self_attn\.(q|k|v|o)_proj",
    "language_mlp": r"language_model\.model\.layers\.{layers}\.mlp\.(gate|up|down)_proj",
    "vision_attention": r"vision_tower\.encoder\.layers\.{layers}\.self_attn\.(q_proj|k_proj|v_proj|out_proj)",
    "projector": r"mm_projector\.(0|2)",
    "mining": r"vlm_uni_(query|aux|val)_projector\.1",
}


@dataclass(frozen=True)
class ResolvedPoint:
    """A point and the modules it names in one model."""

    name: str
    settings: PointSettings
    pattern: str
    """Matches the full paths, and nothing else of the model."""
    module_names: tuple[str, ...]


def resolve_points(
    model: MGMForConditionalGeneration,
    *,
    points: Mapping[str, PointSettings],
    patterns: Mapping[str, str] | None = None,
) -> list[ResolvedPoint]:
    """The linear modules of every point.

    Args:
        model: not yet wrapped.
        points: those that are not off, by name.
        patterns: full-path patterns by point, where a model family has other names than the table above; `{layers}` stands for the
            point's layers.

    Raises:
        NoMatchingModuleError: a point names no linear module; all such points are told, with the nearest names.
        SettingsError: a rank is larger than a layer that it is for, or a layer range goes beyond the last one.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    _check_layers(points, model=model)
    table = {**_PATTERNS, **(patterns or {})}
    resolved, problems = [], []
    for name, settings in points.items():
        pattern = table[name].replace("{layers}", _layers(name, settings=settings, model=model))
        module_names = tuple(path for path in linears if re.fullmatch(pattern, path))
        if not module_names:
            problems.append(_explain_nothing(name, pattern=pattern, linears=list(linears), model=model))
        resolved.append(ResolvedPoint(name=name, settings=settings, pattern=pattern, module_names=module_names))
    if problems:
        raise NoMatchingModuleError("; ".join(problems))
    _check_ranks(resolved, linears=linears)
    return resolved


def point_of(module_name: str) -> str | None:
    """The point that a module lies at, by its full path in a model that is not wrapped; none for any other module."""
    for name, pattern in _PATTERNS.items():
        if re.fullmatch(pattern.replace("{layers}", r"\d+"), module_name):
            return name
    return None


def _layers(name: str, *, settings: PointSettings, model: MGMForConditionalGeneration) -> str:
    # CLIP layers behind select_layer left out: their output is not used, an adapter there would be dead weight.
    if settings.layers is None and name != "vision_attention":
        return r"\d+"
    first, last = settings.layers or (0, _num_layers(name, model=model) - 1)
    return "(" + "|".join(str(number) for number in range(first, last + 1)) + ")"


def _num_layers(name: str, *, model: MGMForConditionalGeneration) -> int:
    vision = name == "vision_attention"
    return model.config.num_used_vision_layers if vision else int(model.config.text_config.num_hidden_layers)


def _check_layers(points: Mapping[str, PointSettings], *, model: MGMForConditionalGeneration) -> None:
    problems = []
    for name, settings in points.items():
        if settings.layers is not None and settings.layers[1] >= _num_layers(name, model=model):
            unused = ", since the layers behind are not used" if name == "vision_attention" else ""
            problems.append(
                f"{name}.layers is {list(settings.layers)}, but the last layer is {_num_layers(name, model=model) - 1}{unused}"
            )
    if problems:
        raise SettingsError("; ".join(problems) + ". Layers are counted from 0, and first and last are both adapted")


def _explain_nothing(name: str, *, pattern: str, linears: list[str], model: MGMForConditionalGeneration) -> str:
    experts = fused_experts(model.language_model)
    if name == "language_mlp" and experts:
        return (
            f"point 'language_mlp' matched no module: in a {model.config.text_config.model_type} the experts' weights of a layer are one"
            f" parameter (language_model.{experts[0]}), which can be neither adapted nor trained as a point: set language_mlp.mode to"
            " off; language_attention, vision_attention, projector and mining work"
        )
    return (
        f"point '{name}' matched no module (pattern {pattern}; nearest: {_nearest(pattern, linears)}): switch the point off, or give the"
        " family's pattern in mgm_lora/lora/points.py"
    )


def _nearest(pattern: str, names: list[str]) -> str:
    plain = re.sub(r"\\d\+", "0", pattern).replace("\\", "")
    return ", ".join(difflib.get_close_matches(plain, names, n=3, cutoff=0.0))


def _check_ranks(points: list[ResolvedPoint], *, linears: Mapping[str, nn.Linear]) -> None:
    problems = []
    for point in points:
        smallest = min(point.module_names, key=lambda name: min(linears[name].in_features, linears[name].out_features))
        limit = min(linears[smallest].in_features, linears[smallest].out_features)
        if point.settings.mode == "lora" and point.settings.rank > limit:
            problems.append(f"{point.name}.rank is {point.settings.rank}, but {smallest} has only rank {limit}")
    if problems:
        raise SettingsError(
            "; ".join(problems) + ". A rank above the layer's own saves nothing: lower it, or set the mode to full"
        )
