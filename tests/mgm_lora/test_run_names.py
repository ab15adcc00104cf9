"""The parameters that runs are compared by: the same names for every arm, and numbers where MLflow shall draw an axis."""

from mgm_lora.arm_settings import FullSettings, LoraSettings, PointSettings
from mgm_lora.run_names import ARM, PARAM_NAMES, name_tags, trained_params, untrained_params
from mgm_lora.settings import Settings, read_settings

from ..conftest import ROOT


def own_settings() -> Settings:
    return read_settings(ROOT / "params.yaml")


def params_of(arm: LoraSettings | FullSettings, **step: object) -> dict[str, str]:
    return trained_params("it", arm=arm, training=own_settings().seeded_training(17), step=step)


def test_every_arm_of_the_project_has_the_same_names() -> None:
    settings = own_settings()
    for name in settings.arms:
        assert params_of(settings.arm(name)).keys() == set(PARAM_NAMES)
    assert untrained_params("base").keys() == set(PARAM_NAMES)


def test_arm_and_its_variant_differ_in_what_they_are_named_for() -> None:
    settings = own_settings()
    plain = params_of(settings.arm("lora"))

    def differing(name: str) -> set[str]:
        return {entry for entry, value in params_of(settings.arm(name)).items() if value != plain[entry]}

    assert differing("rank-4") == {"rank", "alpha"}
    assert differing("dora") == {"method"}
    assert differing("attention-only") == {"points"}
    assert differing("all-points") == {"points", "whole_parts", "other_learning_rates"}


def test_values_are_short_and_numbers_are_numbers() -> None:
    params = params_of(own_settings().arm("lora"), micro_batch_size=8, checkpointing=[])
    assert (params["rank"], params["alpha"], params["learning_rate"], params["epochs"]) == ("16", "32", "0.003", "1")
    assert (params["micro_batch_size"], params["checkpointing"]) == ("8", "none")
    assert params["points"] == "language_attention, language_mlp, vision_attention"
    assert params["whole_parts"] == "projector, mining"
    assert params["other_learning_rates"] == "projector=0.0005, mining=0.0005"
    assert params_of(own_settings().arm("full"))["rank"] == "0"


def test_points_that_differ_are_named() -> None:
    off = PointSettings(mode="off")
    arm = LoraSettings(
        learning_rate=1e-3,
        language_attention=PointSettings(mode="lora", rank=16, layers=(0, 3)),
        language_mlp=PointSettings(mode="lora", rank=8),
        vision_attention=off,
        projector=off,
        mining=off,
    )
    params = params_of(arm)
    assert params["rank"] == "language_attention=16, language_mlp=8"
    assert params["alpha"] == "32"
    assert params["points"] == "language_attention[0-3], language_mlp"


def test_what_the_plan_has_not_told_stays_as_the_settings_say() -> None:
    assert params_of(own_settings().arm("lora"))["micro_batch_size"] == "auto"


def test_tags_say_arm_seed_and_kind() -> None:
    tags = name_tags(params_of(own_settings().arm("full")), model="full-17", role=ARM)
    assert {name: tags[name] for name in ("arm", "seed", "kind", "role")} == {
        "arm": "it",
        "seed": "17",
        "kind": "full",
        "role": "arm",
    }
