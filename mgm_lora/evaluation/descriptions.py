"""What arms are, in a line each, and in which settings they differ; both from the manifests of what was trained."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mgm_lora.arm_settings import POINT_NAMES
from mgm_lora.artifacts import Manifest
from mgm_lora.evaluation.formatting import arm_label
from mgm_lora.evaluation.sources import MERGED, Arm
from mgm_lora.settings import SUBJECT

_READABLE = {
    "language_attention": "language attention",
    "language_mlp": "language MLP",
    "vision_attention": "vision attention",
    "language_model": "language model",
    "vision_tower": "vision tower",
    "vision_tower_aux": "ConvNeXt",
}
_NOTHING = "–"
_OF_LOW_RANK = ("rank", "alpha", "dropout", "method", "loraplus_ratio")


@dataclass(frozen=True)
class SettingsDifference:
    """A table: settings that are not the same in all arms."""

    arms: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """The setting's name, and its value in each arm; a dash where the arm's kind doesn't have it."""


def describe_arm(arm: Arm) -> str:
    """`rank 16, alpha 32 at language attention and language mlp; projector and mining in full`; empty where nothing was trained."""
    manifest = _trained(arm)
    if arm.name == MERGED:
        return f"{arm_label(SUBJECT)}'s first training, folded into the base"
    if manifest is None:
        return ""
    settings = manifest.settings["arm"]
    if settings.get("kind") == "full":
        return f"{_listed(settings['parts'])} in full"
    points = {name: settings[name] for name in POINT_NAMES if settings.get(name)}
    groups: dict[str, list[str]] = {}
    for name, point in points.items():
        if point["mode"] != "off":
            groups.setdefault(_how(point), []).append(name)
    return "; ".join(
        f"{_listed(names)} in full" if how == "full" else f"{how} at {_listed(names)}" for how, names in groups.items()
    )


def settings_difference(arms: Mapping[str, Arm]) -> SettingsDifference:
    """Of all arms that were trained."""
    manifests = {name: manifest for name, arm in arms.items() if (manifest := _trained(arm))}
    values = {name: dict(_flatten(_without_effect(manifest.settings["arm"]))) for name, manifest in manifests.items()}
    keys = dict.fromkeys(key for entries in values.values() for key in entries)
    rows = [
        (key, tuple(_text(entries[key]) if key in entries else _NOTHING for entries in values.values())) for key in keys
    ]
    return SettingsDifference(tuple(values), tuple(row for row in rows if len({*row[1]} - {_NOTHING}) > 1))


def _trained(arm: Arm) -> Manifest | None:
    return next((manifest for name, manifest in arm.first.manifests.items() if name.startswith("trained/")), None)


def _without_effect(arm: Mapping[str, Any]) -> dict[str, Any]:
    """The arm's settings without those of a point that nothing reads: a rank where the point is off."""
    kept = dict(arm)
    for name in POINT_NAMES:
        point = arm.get(name)
        if point and point["mode"] != "lora":
            unread = set(point) - {"mode"} if point["mode"] == "off" else set(_OF_LOW_RANK)
            kept[name] = {key: value for key, value in point.items() if key not in unread}
    return kept


def _how(point: Mapping[str, Any]) -> str:
    if point["mode"] == "full":
        return "full"
    method = "" if point["method"] == "lora" else f"{point['method']} "
    return f"{method}rank {point['rank']}, alpha {point['alpha']:g}"


def _listed(names: list[str]) -> str:
    readable = [_READABLE.get(name, name) for name in names]
    return " and ".join([", ".join(readable[:-1]), readable[-1]]) if len(readable) > 1 else readable[0]


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            yield from _flatten(entry, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", entry


def _text(value: object) -> str:
    if value is None or value in ({}, [], ()):
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
