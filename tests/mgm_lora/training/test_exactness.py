"""The same bytes: from two processes, and from a training that was killed, at any step or while it wrote a checkpoint, and started again."""

import copy
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import set_seed

from mgm_lora.artifacts import digest_file, digest_folder
from mgm_lora.model.checkpoint import save_model
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.processor import MGMProcessor

ROOT = Path(__file__).parents[3]
WALK = Path(__file__).with_name("exact_walk.py")
sys.path.insert(0, str(WALK.parent))  # the forked processes find it by its name
import exact_walk  # noqa: E402

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["exact_walk"])
KILLED = -signal.SIGKILL
Train = Callable[..., int]

EIGHT_BIT = {"knobs": {"optimizer": "adamw_8bit"}, "points": {"language_mlp": {"mode": "full"}}, "wide": True}
WISHES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "packed": {
        "training": {"packing": True, "global_batch_size": 2, "num_epochs": 2},
        "knobs": {"micro_batch_size": 1},
    },
    "8bit": EIGHT_BIT,
    "nf4": {"knobs": {"quantization": "nf4"}},
}


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: with_pictures(tmp_path / name)


def with_pictures(folder: Path) -> Path:
    (folder / "pictures").mkdir(parents=True)
    for number, colour in enumerate(("red", "green", "blue", "grey")):
        Image.new("RGB", (32, 32), colour).save(folder / "pictures" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def bases(tiny_base: Path, tiny_config: MGMConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The tiny base, and one whose MLP is wide enough for moments of 8 bit (4,096 numbers)."""
    config = copy.deepcopy(tiny_config)
    config.text_config.intermediate_size = 256
    wide = tmp_path_factory.mktemp("wide") / "base"
    set_seed(1)
    save_model(MGMForConditionalGeneration(config), folder=wide)
    MGMProcessor.from_pretrained(tiny_base).save_pretrained(wide)
    return {False: tiny_base, True: wide}


@pytest.fixture(scope="module")
def train(bases: dict[bool, Path]) -> Train:
    """Trains in a folder in a process of its own; its exit code, negative where a signal ended it."""

    def run(folder: Path, **wish: Any) -> int:
        base = bases[wish.get("wide", False)]
        process = FORKS.Process(target=exact_walk.main, args=(str(folder), str(base), wish))
        process.start()
        process.join(120)
        assert process.exitcode is not None, "it didn't end"
        return process.exitcode

    return run


@pytest.fixture(scope="module")
def undisturbed(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The artifact's digest of a training of one of the wishes that nothing befell."""
    found: dict[str, str] = {}

    def digest(name: str) -> str:
        if name not in found:
            folder = with_pictures(tmp_path_factory.mktemp(name) / "it")
            assert train(folder, **WISHES[name]) == 0
            found[name] = digest_folder(folder / "adapter")
        return found[name]

    return digest


def test_two_processes_give_the_same_bytes_and_the_manifest_says_by_what(
    tiny_base: Path, make_folder: Callable[[str], Path]
) -> None:
    digests = []
    for name, seed in (("one", "1"), ("two", "2")):
        folder = make_folder(name)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, str(WALK), str(folder), str(tiny_base), "{}"], check=True, env=environment)
        files = sorted(path.name for path in (folder / "adapter").iterdir())
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
    name: str, train: Train, make_folder: Callable[[str], Path], undisturbed: Callable[[str], str]
) -> None:
    folder = make_folder("again")
    assert train(folder, **WISHES[name]) == 0
    assert digest_folder(folder / "adapter") == undisturbed(name)


@pytest.mark.parametrize("step", range(exact_walk.NUM_STEPS))
def test_killed_at_any_step_it_ends_in_the_same_bytes(
    step: int, train: Train, make_folder: Callable[[str], Path], undisturbed: Callable[[str], str]
) -> None:
    folder = make_folder("killed")
    moment = {"kill_at": step} if step % 2 else {"kill_within": step}
    assert train(folder, **moment) == KILLED
    assert train(folder) == 0
    assert digest_folder(folder / "adapter") == undisturbed("grouped")
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("name", ["packed", "8bit", "nf4"])
def test_killed_twice_it_ends_in_the_same_bytes_whatever_the_step_is(
    name: str, train: Train, make_folder: Callable[[str], Path], undisturbed: Callable[[str], str]
) -> None:
    folder = make_folder("killed")
    for step in (3, 5):
        assert train(folder, **WISHES[name], kill_at=step) == KILLED
    assert train(folder, **WISHES[name]) == 0
    assert digest_folder(folder / "adapter") == undisturbed(name)


@pytest.mark.parametrize("event", [1, 4, 9, 14, 19, 24, 29])
def test_killed_while_it_writes_a_checkpoint_it_ends_in_the_same_bytes(
    event: int, train: Train, make_folder: Callable[[str], Path], undisturbed: Callable[[str], str]
) -> None:
    folder = make_folder("killed")
    assert train(folder, kill_at_event=event) == KILLED
    assert all((path / "digests.json").is_file() for path in (folder / "checkpoints").glob("checkpoint-*"))
    assert train(folder) == 0
    assert digest_folder(folder / "adapter") == undisturbed("grouped")


def test_losses_between_two_entries_of_the_history_survive_a_kill(
    train: Train, make_folder: Callable[[str], Path]
) -> None:
    """With 88 steps every second one is told, and a checkpoint falls between two."""
    wish = {"training": {"num_epochs": 22, "checkpoints": 7, "evaluations": 1}}  # a checkpoint at step 11
    one, two = make_folder("one"), make_folder("two")
    assert train(one, **wish) == 0
    assert train(two, **wish, kill_at=12) == KILLED
    assert train(two, **wish) == 0
    history = json.loads((one / "adapter" / "history.json").read_text(encoding="utf-8"))
    assert [entry["step"] for entry in history["train"][:6]] == [2, 4, 6, 8, 10, 12]
    assert digest_folder(one / "adapter") == digest_folder(two / "adapter")
