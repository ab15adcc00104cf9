"""Settings: typed, frozen, and every mistake of a file in one error."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from mgm_lora.arm_settings import FullSettings, LoraSettings, PointSettings
from mgm_lora.errors import SettingsError
from mgm_lora.settings import read_settings

from ..conftest import ROOT


def write(folder: Path, **changes: Any) -> Path:
    """The project's own params.yaml with dotted entries changed (None takes one away)."""
    entries = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for name, value in changes.items():
        *sections, last = name.split("__")
        section = entries
        for part in sections:
            section = section[part]
        if value is None:
            del section[last]
        else:
            section[last] = value
    path = folder / "params.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(entries, file)
    return path


def test_the_projects_own_file_is_right() -> None:
    settings = read_settings(ROOT / "params.yaml")
    lora = settings.arm("lora")
    assert isinstance(lora, LoraSettings)
    assert {name: point.mode for name, point in lora.points().items()} == {
        "language_attention": "lora",
        "language_mlp": "lora",
        "vision_attention": "lora",
        "projector": "full",
        "mining": "full",
    }


def test_arms_share_what_they_do_not_say_themselves() -> None:
    settings = read_settings(ROOT / "params.yaml")
    lora, own, full, projector = (settings.arm(name) for name in ("lora", "four-points", "full", "projector"))
    assert isinstance(lora, LoraSettings)
    assert isinstance(own, LoraSettings)
    assert isinstance(full, FullSettings)
    assert isinstance(projector, FullSettings)
    rate = settings.training.shared_learning_rate
    assert [lora.points()[name].learning_rate for name in ("projector", "mining")] == [rate, rate]
    assert full.parts == ("language_model", "projector", "mining")
    assert full.learning_rates == {"projector": rate, "mining": rate}
    assert projector.parts == ("projector", "mining")
    assert own.points()["projector"].mode == "lora"
    assert "mining" not in own.points()


def test_an_arm_may_leave_out_what_others_share(tmp_path: Path) -> None:
    full = read_settings(write(tmp_path, arms__full__leave_out=["mining"])).arm("full")
    assert isinstance(full, FullSettings)
    assert full.parts == ("language_model", "projector")
    with pytest.raises(SettingsError, match=r"arms\.projector trains nothing"):
        read_settings(write(tmp_path, training__shared_parts=[]))
    with pytest.raises(SettingsError, match=r"projector stands in parts and in leave_out"):
        read_settings(write(tmp_path, arms__full__parts=["projector"], arms__full__leave_out=["projector"]))


def test_four_mistakes_are_four_lines_of_one_error(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        arms__lora__language_attention__rank=0,
        training__learning_rat=1.0e-4,
        arms__full__learning_rate="1e-4",
        data__heldout=None,
    )
    with pytest.raises(SettingsError) as error:
        read_settings(path)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("has 4 mistakes:")
    assert len(lines) == 5
    told = "\n".join(lines)
    assert ".language_attention.rank: Input should be greater than or equal to 1; found 0 (the same in " in told
    assert "training.learning_rat: is no setting of mgm-lora" in told
    assert "arms.full.learning_rate: Input should be a valid number; found '1e-4'" in told
    assert "data.heldout: is missing" in told


@pytest.mark.parametrize(
    "step, product", [({"micro_batch_size": 5}, "5"), ({"engine": "deepspeed", "num_cards": 3}, "1 x")]
)
def test_batches_that_do_not_divide_are_told(tmp_path: Path, step: dict[str, Any], product: str) -> None:
    with pytest.raises(
        SettingsError, match=rf"global_batch_size 32 is no multiple of arms\.full\.step\.micro_batch_size {product}"
    ):
        read_settings(write(tmp_path, arms__full__step=step))


@pytest.mark.parametrize(
    "step, told",
    [
        (
            {"optimizer": "sgd"},
            "Input should be 'adamw', 'adamw_8bit', 'paged_adamw' or 'paged_adamw_8bit'; found 'sgd'",
        ),
        (
            {"engine": "deepspeed", "zero_stage": 3, "quantization": "nf4"},
            "set zero_stage to 2 or less, or quantization to none",
        ),
        ({"zero_stage": 2, "offload_optimizer": True}, "zero_stage, offload_optimizer need engine deepspeed"),
        ({"num_cards": 2}, "num_cards need engine deepspeed"),
        ({"engine": "deepspeed", "optimizer": "adamw_8bit"}, "set adamw, or engine torch"),
        (
            {"engine": "deepspeed", "zero_stage": 2, "offload_parameters": True},
            "offload_parameters needs zero_stage 3, found 2",
        ),
        ({"engine": "deepspeed", "offload_optimizer": True}, "offload_optimizer needs zero_stage 1, 2 or 3, found 0"),
        ({"checkpointing": ["projector"]}, "arms.lora.step.checkpointing"),
        ({"micro_batch_size": 0}, "arms.lora.step.micro_batch_size"),
    ],
)
def test_a_step_that_can_not_be_is_told(tmp_path: Path, step: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as error:
        read_settings(write(tmp_path, arms__lora__step=step))
    assert told in str(error.value)


def test_whole_weights_in_4_bit_are_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="4-bit weights can't be trained in full"):
        read_settings(write(tmp_path, arms__full__step={"quantization": "nf4"}))


@pytest.mark.parametrize("quantization", ["nf4", "auto"])
def test_point_in_full_over_4_bit_weights_is_told(tmp_path: Path, quantization: str) -> None:
    changes = {"arms__lora__language_mlp": {"mode": "full"}, "arms__lora__step": {"quantization": quantization}}
    with pytest.raises(SettingsError, match="language_mlp should be: set quantization to none"):
        read_settings(write(tmp_path, **changes))


def test_all_points_off_is_told(tmp_path: Path) -> None:
    off = {"mode": "off"}
    points = ("language_attention", "language_mlp", "vision_attention", "projector")
    with pytest.raises(SettingsError, match="every application point is off"):
        read_settings(write(tmp_path, **{f"arms__lora__{point}": off for point in points}))


def test_reduced_weights_in_full_arithmetic_are_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"base\.dtype bfloat16 needs training\.precision bfloat16"):
        read_settings(write(tmp_path, base__dtype="bfloat16"))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [", "\xff"])
def test_what_is_no_settings_file_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"params\.yaml"):
        read_settings(path)


def test_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="run from the project's root"):
        read_settings(tmp_path / "params.yaml")


def test_settings_are_frozen() -> None:
    point = PointSettings(mode="lora")
    with pytest.raises(ValidationError):
        point.rank = 3  # type: ignore[misc]


def test_points_take_what_the_arm_says_unless_they_say_their_own(tmp_path: Path) -> None:
    own = {"mode": "lora", "rank": 3}
    lora = read_settings(write(tmp_path, arms__lora__language_mlp=own, arms__lora__rank=5)).arms["lora"]
    assert isinstance(lora, LoraSettings)
    assert {name: (point.rank, point.alpha) for name, point in lora.points().items()} == {
        "language_attention": (5, 32.0),
        "language_mlp": (3, 32.0),
        "vision_attention": (5, 32.0),
    }
    assert LoraSettings.model_validate(lora.model_dump()) == lora


def test_an_entry_that_no_point_takes_is_told(tmp_path: Path) -> None:
    own = {"mode": "lora", "rank": 3}
    points = ("language_attention", "language_mlp", "vision_attention")
    changes = {f"arms__lora__{point}": own for point in points}
    with pytest.raises(SettingsError, match=r"arms\.lora: rank of the arm changes nothing"):
        read_settings(write(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"comparison__arms": ["lora"]}, "comparison.arms must name lora .* and full .*, found lora: add full"),
        ({"comparison__arms": ["lora", "full", "dorra"]}, "comparison.arms names dorra, but arms has "),
        ({"comparison__arms": ["lora", "full", "lora"]}, "comparison.arms names lora twice"),
        ({"comparison__seeds": []}, "comparison.seeds: Tuple should have at least 1 item"),
        ({"comparison__seeds": [3, 3]}, "comparison.seeds names 3 twice"),
        ({"arms__full": {"kind": "sparse"}}, "arms.full: Input tag 'sparse' found using 'kind' does not match"),
        ({"arms__Big": {"kind": "full", "learning_rate": 1e-4, "parts": ["mining"]}}, "arms.Big"),
        ({"arms__base": {"kind": "full", "learning_rate": 1e-4, "parts": ["mining"]}}, "can't be named base or merged"),
        ({"arms__lora": {"kind": "full", "learning_rate": 1e-4, "parts": ["mining"]}}, "arms.lora.kind must be lora"),
    ],
)
def test_arms_and_seeds_that_can_not_be_compared_are_told(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        read_settings(write(tmp_path, **changes))


def test_a_seed_or_an_arm_that_is_not_asked_for_is_told() -> None:
    settings = read_settings(ROOT / "params.yaml")
    assert settings.seeded_training(17).seed == 17
    with pytest.raises(SettingsError, match=r"seed 18 is none of comparison\.seeds \(17\)"):
        settings.seeded_training(18)
    with pytest.raises(SettingsError, match=r"no arm 'qlora': params\.yaml has lora, full, "):
        settings.arm("qlora")
