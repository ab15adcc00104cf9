"""Points name what they should, by full path, and say so when they name nothing."""

import json

import pytest

from mgm_lora.arm_settings import POINT_NAMES, LoraSettings, PointSettings
from mgm_lora.errors import NoMatchingModuleError, SettingsError
from mgm_lora.lora.points import resolve_points
from mgm_lora.model.mgm import MGMForConditionalGeneration

from ...conftest import GOLDENS


def test_points_name_only_their_own_part(model: MGMForConditionalGeneration, all_points: LoraSettings) -> None:
    resolved = {point.name: set(point.module_names) for point in resolve_points(model, points=all_points.points())}
    assert {name: len(names) for name, names in resolved.items()} == {
        "language_attention": 2 * 4,
        "language_mlp": 2 * 3,
        "vision_attention": 2 * 4,  # of three layers the last is not used
        "projector": 2,
        "mining": 3,
    }
    assert all(name.startswith("language_model.") for name in resolved["language_attention"] | resolved["language_mlp"])
    assert not any(".layers.2." in name for name in resolved["vision_attention"])
    assert resolved["projector"] == {"mm_projector.0", "mm_projector.2"}


def test_point_that_names_nothing_is_told_with_the_nearest(
    model: MGMForConditionalGeneration, all_points: LoraSettings
) -> None:
    patterns = {"projector": r"mm_projektor\.(0|2)"}
    with pytest.raises(
        NoMatchingModuleError, match=r"point 'projector' matched no module .*nearest: .*mm_projector"
    ) as error:
        resolve_points(model, points=all_points.points(), patterns=patterns)
    assert "language_attention" not in str(error.value)


def test_rank_above_the_layers_own_is_refused(model: MGMForConditionalGeneration) -> None:
    points = {"projector": PointSettings(mode="lora", rank=64)}
    with pytest.raises(SettingsError, match=r"^projector\.rank is 64, but mm_projector\.0 has only rank 24"):
        resolve_points(model, points=points)


def test_real_size_counts_are_the_published_ones(mgm_2b: MGMForConditionalGeneration) -> None:
    recorded = json.loads((GOLDENS / "param_counts.json").read_text(encoding="utf-8"))["lora_r16"]
    points = {name: PointSettings(mode="lora", rank=16) for name in POINT_NAMES}
    counts = {
        point.name: sum(_lora_parameters(mgm_2b, name) for name in point.module_names)
        for point in resolve_points(mgm_2b, points=points)
    }
    assert counts == {
        "language_attention": recorded["gemma all attention (q,k,v,o)"],
        "language_mlp": recorded["gate+up+down"],
        "vision_attention": recorded[
            "CLIP attention alone, first 23 layers (layer 24 gets no gradient at select_layer -2)"
        ],
        "projector": recorded["mm_projector alone (2 linears)"],
        "mining": recorded["vlm_uni alone (3 linears)"],
    }


def _lora_parameters(model: MGMForConditionalGeneration, name: str) -> int:
    module = model.get_submodule(name)
    return 16 * (module.in_features + module.out_features)
