"""A user's clone in small: our code and dvc.yaml, their own pictures and a tiny base. What tests of the whole pipeline run in."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "grey": (120, 120, 120)}


def make_project(folder: Path, *, base: Path) -> Path:
    """The folder, with all that `dvc repro` needs; nothing has been run in it."""
    for name in ("mgm_lora", "tasks", "flows"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "requirements.lock", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "sweeps" / "results").mkdir(parents=True)
    shutil.copy(ROOT / "sweeps/results/README.md", folder / "sweeps/results/README.md")
    shutil.copytree(base, folder / "data" / "base")
    for number, part in enumerate(("train", "heldout", "known")):
        _write_samples(folder / "data", part, num_samples=(48, 24, 16)[number], shade=number)
    write_params(folder)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "add", "-q", "data"]):
        run_in(folder, command)
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
    run_in(folder, ["dvc", "config", "plots.html_template", "plots/offline.html"])
    return folder


def write_params(folder: Path, change: dict[str, Any] | None = None) -> None:
    """Our params.yaml made small, with sections of `change` on top."""
    entries = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    small: dict[str, dict[str, Any]] = {
        "training": {
            "num_epochs": 2,
            "global_batch_size": 8,
            "evaluations": 2,
            "checkpoints": 1,
        },
        "merging": {"num_probe_samples": 4},
        "evaluation": {"score_types": ["colour"], "num_resamples": 200},
        "registry": {"model_name": "demo"},
    }
    for name, section in [*small.items(), *(change or {}).items()]:
        entries[name] = _merged(entries[name], section)
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(entries, file)


def _merged(entries: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Arms are changed entry by entry, the entries of other sections as a whole."""
    arms = {name: entries[name] | change[name] for name in change if "kind" in _entries_of(entries, name)}
    return entries | change | arms


def _entries_of(entries: dict[str, Any], name: str) -> dict[str, Any]:
    entry = entries.get(name)
    return entry if isinstance(entry, dict) else {}


def run_in(folder: Path, command: list[str]) -> str:
    """What a command says; it must end well."""
    done = try_in(folder, command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def try_in(folder: Path, command: list[str]) -> "subprocess.CompletedProcess[str]":
    """How a command ends."""
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=900, check=False
    )


def environment() -> dict[str, str]:
    """This Python's programs, one thread, and nothing of what MLflow sets for child processes when another test opens a store of its own."""
    inherited = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**inherited, "PATH": path, "OMP_NUM_THREADS": "1"}


def _write_samples(data: Path, part: str, *, num_samples: int, shade: int) -> None:
    rows = []
    names = list(COLOURS)
    folder = data / "pictures" / part
    folder.mkdir(parents=True)
    for number in range(num_samples):
        name = names[number % 4]
        picture = Image.new("RGB", (32, 32), COLOURS[name])
        picture.paste((250, 250, 250 - shade), (1 + number % 11, 1 + number // 11, 6 + number % 11, 6 + number // 11))
        picture.save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nwhat color is it?"}, {"from": "gpt", "value": name}]
        rows.append(
            {
                "id": f"{part}-{number}",
                "image": f"{part}/{number}.png",
                "question_type": "colour",
                "conversations": turns,
            }
        )
    (data / "instructions").mkdir(exist_ok=True)
    (data / "instructions" / f"{part}.json").write_text(json.dumps(rows), encoding="utf-8")
