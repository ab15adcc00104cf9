"""Settings: typed, frozen, and every mistake of a file in one error."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from mgm_lora.errors import SettingsError
from mgm_lora.settings import PointSettings, read_settings

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
    assert set(settings.lora.points()) == {"language_attention", "language_mlp", "vision_attention", "projector"}


def test_four_mistakes_are_four_lines_of_one_error(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        lora__language_attention__rank=0,
        training__learning_rat=1.0e-4,
        full__learning_rate="1e-4",
        data__heldout=None,
    )
    with pytest.raises(SettingsError) as error:
        read_settings(path)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("has 4 mistakes:")
    assert len(lines) == 5
    told = "\n".join(lines)
    assert "lora.language_attention.rank: Input should be greater than or equal to 1; found 0" in told
    assert "training.learning_rat: is no setting of mgm-lora" in told
    assert "full.learning_rate: Input should be a valid number; found '1e-4'" in told
    assert "data.heldout: is missing" in told


def test_batches_that_do_not_divide_are_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="global_batch_size 32 is no multiple of micro_batch_size 5"):
        read_settings(write(tmp_path, training__micro_batch_size=5))


def test_all_points_off_is_told(tmp_path: Path) -> None:
    off = {"mode": "off"}
    points = ("language_attention", "language_mlp", "vision_attention", "projector")
    with pytest.raises(SettingsError, match="every application point is off"):
        read_settings(write(tmp_path, **{f"lora__{point}": off for point in points}))


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
