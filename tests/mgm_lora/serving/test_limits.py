"""The environment's limits: defaults, what is asked for, and every mistake at once."""

from pathlib import Path

import pytest

from mgm_lora.errors import SettingsError
from mgm_lora.serving.limits import ServingLimits, read_limits


def test_an_environment_that_says_nothing_allows_no_paths_and_no_hosts() -> None:
    limits = read_limits({"PATH": "/bin", "MGM_LORA_BASE": "base"})
    assert limits == ServingLimits()
    assert (limits.pictures, limits.hosts, limits.private_addresses) == (None, (), False)


def test_what_the_environment_says_is_read(tmp_path: Path) -> None:
    limits = read_limits(
        {
            "MGM_LORA_SERVE_MAX_ROWS": "3",
            "MGM_LORA_SERVE_PICTURES": str(tmp_path),
            "MGM_LORA_SERVE_HOSTS": "Pictures.example.org, 10.0.0.7:8080",
            "MGM_LORA_SERVE_PRIVATE_ADDRESSES": "yes",
        }
    )
    assert (limits.max_rows, limits.pictures, limits.private_addresses) == (3, tmp_path, True)
    assert limits.hosts == ("pictures.example.org", "10.0.0.7:8080")


def test_every_mistake_is_told_by_its_variable(tmp_path: Path) -> None:
    wrong = {
        "MGM_LORA_SERVE_MAX_ROW": "3",
        "MGM_LORA_SERVE_MAX_PIXELS": "0",
        "MGM_LORA_SERVE_MAX_REQUESTS": "many",
        "MGM_LORA_SERVE_HOSTS": "*.example.org",
        "MGM_LORA_SERVE_PRIVATE_ADDRESSES": "perhaps",
        "MGM_LORA_SERVE_PICTURES": str(tmp_path / "none"),
    }
    with pytest.raises(SettingsError) as told:
        read_limits(wrong)
    lines = str(told.value).splitlines()[1:]
    assert sorted(line.removeprefix("  - ").split(":")[0].split(" ")[0] for line in lines) == sorted(wrong)
