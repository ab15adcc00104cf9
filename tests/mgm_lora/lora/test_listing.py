"""The table before training: what is trained, counted."""

import copy
import json

from mgm_lora.arm_settings import POINT_NAMES, FullSettings, LoraSettings, PointSettings
from mgm_lora.lora.injection import inject_adapter_, thaw_parts_
from mgm_lora.lora.listing import list_trainable
from mgm_lora.model.mgm import MGMForConditionalGeneration

from ...conftest import GOLDENS


def test_every_point_has_its_modules_parameters_and_rate(
    model: MGMForConditionalGeneration, all_points: LoraSettings
) -> None:
    trainable = inject_adapter_(model, lora=all_points, seed=1)
    lines = [line.split() for line in list_trainable(trainable).splitlines()]
    by_name = {words[0]: words for words in lines}
    assert by_name["language_mlp"][1:7] == ["lora,", "rank", "2,", "alpha", "4", "6"]
    assert by_name["language_mlp"][-1] == "0.0005"
    assert by_name["projector"][1:4] == ["in", "full", "2"]
    told = [int(words[-3].replace(",", "")) for name, words in by_name.items() if name in POINT_NAMES]
    assert sum(told) == trainable.num_trainable == int(by_name["all"][1].replace(",", ""))


def test_at_real_size_the_table_tells_the_published_counts(mgm_2b: MGMForConditionalGeneration) -> None:
    recorded = json.loads((GOLDENS / "param_counts.json").read_text(encoding="utf-8"))["lora_r16"]
    points = {name: PointSettings(mode="lora", rank=16) for name in POINT_NAMES}
    table = list_trainable(
        inject_adapter_(copy.deepcopy(mgm_2b), lora=LoraSettings(learning_rate=2e-4, **points), seed=1)
    )
    told = {line.split()[0]: line.split()[-3].replace(",", "") for line in table.splitlines()[1:-1]}
    assert {name: int(count) for name, count in told.items()} == {
        "language_attention": recorded["gemma all attention (q,k,v,o)"],
        "language_mlp": recorded["gate+up+down"],
        "vision_attention": recorded[
            "CLIP attention alone, first 23 layers (layer 24 gets no gradient at select_layer -2)"
        ],
        "projector": recorded["mm_projector alone (2 linears)"],
        "mining": recorded["vlm_uni alone (3 linears)"],
    }


def test_parts_in_full_are_told_too(model: MGMForConditionalGeneration) -> None:
    full = FullSettings(learning_rate=1e-4, parts=("projector", "mining"))
    table = list_trainable(thaw_parts_(model, full=full, seed=1))
    assert [line.split()[0] for line in table.splitlines()] == ["trained", "projector", "mining", "all"]
    assert "in full" in table
