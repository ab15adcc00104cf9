"""What deploy/ and compose.yaml say, as far as it can be checked without a running systemd or Docker."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("change", ["", "nonsense"], ids=["as it is", "broken"])
def test_units_are_such_as_systemd_takes(tmp_path: Path, change: str) -> None:
    programs = tmp_path / "mgm-lora" / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("mgm-lora", "python"):
        (programs / name).symlink_to(sys.executable)
    (tmp_path / "mgm-lora" / "docs").mkdir()
    units = []
    for unit in sorted((ROOT / "deploy").iterdir()):
        text = unit.read_text(encoding="utf-8").replace("%h", str(tmp_path))
        units.append(tmp_path / unit.name)
        units[-1].write_text(text.replace("Type=oneshot", f"Type=oneshot{change}"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--recursive-errors=no", *units],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = checked.stdout + checked.stderr
    assert ("Failed to parse" in complaints) is bool(change), complaints
    assert bool(change) or checked.returncode == 0, complaints


def test_containers_are_reached_from_this_machine_alone_and_hold_no_password() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    services: dict[str, dict[str, Any]] = YAML(typ="safe").load(text)["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert set(re.findall(r"(?<=team:)[^@]+(?=@)|(?<=POSTGRES_PASSWORD: ).+", text)) == {
        "${MGM_LORA_PASSWORD}",
        '"${MGM_LORA_PASSWORD:?set it in .env}"',
    }


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_containers_start_the_servers_by_options_that_these_have(name: str) -> None:
    services = YAML(typ="safe").load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    program, *arguments = services[name]["command"]
    words = arguments[:2] if program == "prefect" else arguments[:1]
    told = subprocess.run(
        [sys.executable, "-m", program, *words, "--help"], capture_output=True, text=True, timeout=300, check=True
    ).stdout
    assert [argument for argument in arguments if argument.startswith("--") and argument not in told] == []
