"""What a machine or the data does to a training: it ends in one clear error and goes on from its last good checkpoint, to the same bytes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgm_lora.artifacts import digest_folder
from mgm_lora.training.checkpoints import find_flaw, newest_checkpoint

Train = Callable[..., int]
Make = Callable[[str], Path]


def error_in(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "error.json").read_text())
    return told


def checkpoints_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("file_bytes", [1_000, 48_000])
def test_full_disk_ends_the_training_and_it_goes_on_when_there_is_room(
    file_bytes: int, train_apart: Train, make_folder: Make, undisturbed: Callable[..., str]
) -> None:
    """A limit on the size of files, met by safetensors, and by torch.save, which says otherwise that writing failed."""
    folder = make_folder("full")
    assert train_apart(folder, full_at=3, file_bytes=file_bytes) == 4
    error = error_in(folder)
    assert error["type"] == "StorageError"
    assert "can't write 'checkpoints/checkpoint-4'" in error["text"]
    assert "run again: it goes on from 'checkpoint-2', which is kept" in error["text"]
    assert checkpoints_in(folder) == ["checkpoint-2"]
    assert train_apart(folder) == 0
    assert digest_folder(folder / "adapter") == undisturbed()


def test_full_disk_at_the_end_leaves_no_adapter_and_no_work_is_lost(
    train_apart: Train, make_folder: Make, undisturbed: Callable[..., str]
) -> None:
    folder = make_folder("full")
    assert train_apart(folder, full_at="end", file_bytes=1_000) == 4
    assert not (folder / "adapter").exists()
    assert not list(folder.glob(".*.part"))
    assert checkpoints_in(folder) == ["checkpoint-6", "checkpoint-8"]
    assert train_apart(folder) == 0
    assert digest_folder(folder / "adapter") == undisturbed()


def test_permission_lost_on_the_way_is_told_and_the_training_goes_on_when_it_is_back(
    train_apart: Train, make_folder: Make, undisturbed: Callable[..., str]
) -> None:
    folder = make_folder("lost")
    for_anyone(folder / "error.json")
    assert train_apart(folder, lose_permission_at=3) == 4
    assert error_in(folder)["text"].startswith("can't write 'checkpoints/checkpoint-4': ")
    assert "Permission denied" in error_in(folder)["text"]
    assert checkpoints_in(folder) == ["checkpoint-2"]
    writable_again(folder)
    assert train_apart(folder) == 0
    assert digest_folder(folder / "adapter") == undisturbed()


def test_read_only_output_is_told_and_nothing_half_written_is_left(train_apart: Train, make_folder: Make) -> None:
    folder = make_folder("read-only")
    for_anyone(folder / "error.json")
    wish = {"training": {"checkpoints": 0}}
    assert train_apart(folder, **wish, lose_permission_at=3) == 4
    assert error_in(folder)["type"] == "StorageError"
    assert "can't write 'adapter': Permission denied" in error_in(folder)["text"]
    assert {path.name for path in folder.iterdir()} <= {"error.json", "pictures", "checkpoints"}
    assert not list((folder / "checkpoints").iterdir())


def test_clock_that_goes_back_a_day_changes_nothing(
    train_apart: Train, make_folder: Make, undisturbed: Callable[..., str]
) -> None:
    """By the files' times the older checkpoint is the newer one."""
    folder = make_folder("clock")
    assert train_apart(folder, clock_back_at=3, kill_at=5) < 0
    newest = newest_checkpoint(folder / "checkpoints")
    assert newest is not None
    os.utime(newest, (1, 1))
    assert newest_checkpoint(folder / "checkpoints") == newest == folder / "checkpoints" / "checkpoint-4"
    assert train_apart(folder, clock_back_at=6) == 0
    assert digest_folder(folder / "adapter") == undisturbed()


@pytest.mark.parametrize("harm", ["bit", "half", "missing", "seal", "other"])
def test_corrupted_checkpoint_is_told_in_a_line_and_the_one_before_is_taken(
    harm: str,
    train_apart: Train,
    make_folder: Make,
    undisturbed: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = make_folder("corrupted")
    assert train_apart(folder, kill_at=5) < 0
    assert checkpoints_in(folder) == ["checkpoint-2", "checkpoint-4"]
    told = do_harm(folder / "checkpoints" / "checkpoint-4", harm)
    assert newest_checkpoint(folder / "checkpoints") == folder / "checkpoints" / "checkpoint-2"
    assert caplog.messages == [
        f"checkpoint '{folder / 'checkpoints' / 'checkpoint-4'}' is passed over: {told};"
        " the one before it is taken, or training starts over"
    ]
    if harm in ("bit", "seal"):
        assert train_apart(folder) == 0
        assert digest_folder(folder / "adapter") == undisturbed()


def test_training_starts_over_where_every_checkpoint_is_corrupted(
    train_apart: Train, make_folder: Make, undisturbed: Callable[..., str]
) -> None:
    folder = make_folder("corrupted")
    assert train_apart(folder, kill_at=5) < 0
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        do_harm(path, "half")
    assert train_apart(folder) == 0
    assert digest_folder(folder / "adapter") == undisturbed()


def test_loss_that_is_no_number_stops_at_its_step_with_its_samples_and_keeps_the_last_good_checkpoint(
    train_apart: Train, make_folder: Make
) -> None:
    folder = make_folder("poisoned")
    assert train_apart(folder, poison_at=5) == 3
    error = error_in(folder)
    assert error["type"] == "BrokenLossError"
    assert error["text"].startswith("the loss is nan at step 6; its samples: sample-")
    assert len(set(error["text"].split("samples: ")[1].split(". ")[0].split(", "))) == 8
    assert "lower the learning rate" in error["text"]
    newest = newest_checkpoint(folder / "checkpoints")
    assert newest == folder / "checkpoints" / "checkpoint-4"
    assert find_flaw(newest) is None
    assert not (folder / "adapter").exists()


def test_packed_rows_name_all_of_their_samples(train_apart: Train, make_folder: Make) -> None:
    folder = make_folder("packed")
    packed = {"packing": True, "global_batch_size": 2}
    assert train_apart(folder, training=packed, knobs={"micro_batch_size": 1}, poison_at=1) == 3
    named = error_in(folder)["text"].split("samples: ")[1].split(". ")[0].split(", ")
    assert len(named) > 2
    assert all(name.startswith("sample-") for name in named)


def do_harm(checkpoint: Path, harm: str) -> str:
    """Damages a checkpoint; what is to be said of it."""
    path = checkpoint / "optimizer.pt"
    if harm == "bit":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif harm == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif harm == "missing":
        path.unlink()
        return "optimizer.pt is missing"
    elif harm == "seal":
        (checkpoint / "digests.json").unlink()
        return "digests.json is missing"
    else:
        path.write_bytes((checkpoint / "scheduler.pt").read_bytes())
    return "optimizer.pt is not what was written"


def for_anyone(path: Path) -> None:
    path.write_text("{}")
    path.chmod(0o666)


def writable_again(folder: Path) -> None:
    for path in (folder, folder / "checkpoints"):
        path.chmod(0o755)
