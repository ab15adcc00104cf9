"""The same bytes: from two processes, and from a training that was killed, at any step or while it wrote a checkpoint, and started again."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgm_lora.artifacts import digest_file, digest_folder

ROOT = Path(__file__).parents[3]
WALK = Path(__file__).with_name("exact_walk.py")
NUM_STEPS = 8
KILLED = -signal.SIGKILL
Train = Callable[..., int]


def _points(**changes: Any) -> dict[str, Any]:
    point = {"mode": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.1, **changes}
    return {"language_attention": point, "vision_attention": point}


EIGHT_BIT = {"knobs": {"optimizer": "adamw_8bit"}, "points": {"language_mlp": {"mode": "full"}}, "wide": True}
WISHES: dict[str, dict[str, Any]] = {
    "packed": {
        "training": {"packing": True, "global_batch_size": 2, "num_epochs": 2},
        "knobs": {"micro_batch_size": 1},
    },
    "8bit": EIGHT_BIT,
    "nf4": {"knobs": {"quantization": "nf4"}},
    "adalora": {"points": {**_points(method="adalora"), "adalora": {"target_rank": 2}}},
    "pissa": {"points": _points(method="pissa")},
    "dora": {"points": _points(method="dora", loraplus_ratio=4.0, layers=(0, 0))},
}


def test_two_processes_give_the_same_bytes_and_the_manifest_says_by_what(
    tiny_base: Path, make_folder: Callable[[str], Path]
) -> None:
    digests = []
    for name, seed in (("one", "1"), ("two", "2")):
        folder = make_folder(name)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, str(WALK), str(folder), str(tiny_base), "{}"], check=True, env=environment)
        files = sorted(
            str(path.relative_to(folder / "adapter")) for path in (folder / "adapter").rglob("*") if path.is_file()
        )
        assert {"adapter_model.safetensors", "full_parts.safetensors", "manifest.json", "history.json"} <= {*files}
        digests.append({name: digest_file(folder / "adapter" / name) for name in files})
    assert digests[0] == digests[1]
    details = json.loads((folder / "adapter" / "manifest.json").read_text(encoding="utf-8"))["details"]
    assert details["determinism"] | {"threads": 1} == {
        "seed": 3,
        "device": "cpu",
        "threads": 1,
        "deterministic_algorithms": "warn_only",
        "cudnn": {"deterministic": True, "benchmark": False},
        "cublas_workspace": ":4096:8",
        "matmul_precision": "highest",
        "not_deterministic": [],
        "not_checked": [],
    }


@pytest.mark.parametrize("name", ["8bit", "nf4"])
def test_bitsandbytes_gives_the_same_bytes_twice(
    name: str, train_apart: Train, make_folder: Callable[[str], Path], undisturbed: Callable[..., str]
) -> None:
    folder = make_folder("again")
    assert train_apart(folder, **WISHES[name]) == 0
    assert digest_folder(folder / "adapter") == undisturbed(**WISHES[name])


@pytest.mark.parametrize("step", range(NUM_STEPS))
def test_killed_at_any_step_it_ends_in_the_same_bytes(
    step: int, train_apart: Train, make_folder: Callable[[str], Path], undisturbed: Callable[..., str]
) -> None:
    folder = make_folder("killed")
    moment = {"kill_at": step} if step % 2 else {"kill_within": step}
    assert train_apart(folder, **moment) == KILLED
    assert train_apart(folder) == 0
    assert digest_folder(folder / "adapter") == undisturbed()
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("name", list(WISHES))
def test_killed_twice_it_ends_in_the_same_bytes_whatever_the_step_is(
    name: str, train_apart: Train, make_folder: Callable[[str], Path], undisturbed: Callable[..., str]
) -> None:
    folder = make_folder("killed")
    for step in (3, 5):
        assert train_apart(folder, **WISHES[name], kill_at=step) == KILLED
    assert train_apart(folder, **WISHES[name]) == 0
    assert digest_folder(folder / "adapter") == undisturbed(**WISHES[name])


@pytest.mark.parametrize("event", [1, 9, 19, 29])
def test_killed_while_it_writes_a_checkpoint_it_ends_in_the_same_bytes(
    event: int, train_apart: Train, make_folder: Callable[[str], Path], undisturbed: Callable[..., str]
) -> None:
    folder = make_folder("killed")
    assert train_apart(folder, kill_at_event=event) == KILLED
    assert all((path / "digests.json").is_file() for path in (folder / "checkpoints").glob("checkpoint-*"))
    assert train_apart(folder) == 0
    assert digest_folder(folder / "adapter") == undisturbed()


def test_losses_between_two_entries_of_the_history_survive_a_kill(
    train_apart: Train, make_folder: Callable[[str], Path]
) -> None:
    """With 80 steps every second one is told, and a checkpoint falls between two."""
    short = {"global_batch_size": 2, "num_epochs": 5, "checkpoints": 8, "evaluations": 1}  # a checkpoint at step 9
    wish = {"training": short, "knobs": {"micro_batch_size": 2}}
    one, two = make_folder("one"), make_folder("two")
    assert train_apart(one, **wish) == 0
    assert train_apart(two, **wish, kill_at=10) == KILLED
    assert train_apart(two, **wish) == 0
    history = json.loads((one / "adapter" / "history.json").read_text(encoding="utf-8"))
    assert [entry["step"] for entry in history["train"][:6]] == [2, 4, 6, 8, 10, 12]
    assert digest_folder(one / "adapter") == digest_folder(two / "adapter")


def test_trained_adalora_tells_its_final_ranks(train_apart: Train, make_folder: Callable[[str], Path]) -> None:
    folder = make_folder("adalora")
    assert train_apart(folder, **WISHES["adalora"]) == 0
    details = json.loads((folder / "adapter" / "manifest.json").read_text(encoding="utf-8"))["details"]
    ranks = details["final_ranks"]
    assert len(set(ranks.values())) > 1
    assert sum(ranks.values()) == 2 * len(ranks)
