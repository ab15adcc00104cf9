"""Arms in a line each, and what tells them apart."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mgm_lora.arm_settings import FullSettings, LoraSettings, PointSettings
from mgm_lora.artifacts import Manifest
from mgm_lora.evaluation.descriptions import describe_arm, settings_difference
from mgm_lora.evaluation.palette import colours
from mgm_lora.evaluation.sources import Arm, ComparisonSources, read_arms
from mgm_lora.settings import ComparisonSettings, EvaluationSettings, read_settings

ROOT = Path(__file__).parents[3]


@pytest.fixture
def arms(
    make_run: Callable[..., ComparisonSources], evaluation: EvaluationSettings, comparison_settings: ComparisonSettings
) -> Mapping[str, Arm]:
    """Of the small run, with the settings of the project's own file."""
    names = ("four-points", "dora")
    settings = comparison_settings.model_copy(update={"arms": ("lora", "full", *names)})
    read, _ = read_arms(make_run(more_arms=names), evaluation=evaluation, comparison=settings)
    own = read_settings(ROOT / "params.yaml")
    for name, arm in read.items():
        key = f"trained/{name}-17"
        if key in arm.first.manifests:
            manifest = Manifest.make("TrainedAdapter", settings={"arm": own.arm(name)}, parents={})
            arm.first.manifests[key] = manifest  # type: ignore[index]
    return read


def test_arms_are_told_in_a_line(arms: Mapping[str, Arm]) -> None:
    assert {name: describe_arm(arm) for name, arm in arms.items()} == {
        "base": "",
        "lora": "rank 16, alpha 32 at language attention, language MLP and vision attention; projector and mining in full",
        "merged": "LoRA's first training, folded into the base",
        "full": "language model, projector and mining in full",
        "four-points": "rank 16, alpha 32 at language attention, language MLP, vision attention and projector",
        "dora": "dora rank 16, alpha 32 at language attention, language MLP and vision attention; projector and mining in full",
    }


def test_only_what_tells_arms_apart_is_listed(arms: Mapping[str, Arm]) -> None:
    difference = settings_difference(arms)
    assert difference.arms == ("lora", "full", "four-points", "dora")
    rows = dict(difference.rows)
    assert rows["kind"] == ("lora", "full", "lora", "lora")
    assert rows["language_mlp.method"] == ("lora", "–", "lora", "dora")
    assert rows["mining.mode"] == ("full", "–", "off", "full")
    assert "language_mlp.rank" not in rows, "the same in all that have it"
    assert "mining.rank" not in rows, "nothing reads it"


def test_every_arm_has_a_colour_and_known_ones_their_own() -> None:
    found = colours(["base", "lora", "full", *(f"arm-{number}" for number in range(12))])
    assert found["lora"] == colours(["lora"])["lora"]
    assert len({found[name] for name in list(found)[:13]}) == 13
    assert found["arm-10"] == found["arm-0"]


def test_settings_of_each_kind_can_be_told() -> None:
    point = PointSettings(mode="lora")
    lora = LoraSettings(learning_rate=1e-3, language_attention=point, language_mlp=point, vision_attention=point)
    assert lora.with_shared((), learning_rate=None).points().keys() == {
        "language_attention",
        "language_mlp",
        "vision_attention",
    }
    assert FullSettings(learning_rate=1e-3, parts=()).with_shared(("mining",), learning_rate=None).parts == ("mining",)
