"""Artifacts are whole or not there."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mgm_lora.artifacts import Manifest, digest_folder, new_artifact, new_file, read_manifest, write_manifest
from mgm_lora.errors import ArtifactError, StorageError


def test_a_whole_artifact_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    destination = tmp_path / "artifacts" / "thing"
    for text in ("old", "new"):
        with new_artifact(destination) as folder:
            (folder / "file").write_text(text)
    assert (destination / "file").read_text() == "new"
    assert [path.name for path in destination.parent.iterdir()] == ["thing"]


def test_a_failure_leaves_the_old_artifact_and_nothing_else(tmp_path: Path) -> None:
    destination = tmp_path / "thing"
    with new_artifact(destination) as folder:
        (folder / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), new_artifact(destination) as folder:
        (folder / "file").write_text(str(1 // len("")))
    assert (destination / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_no_space_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A real full device: /dev/full answers every write with ENOSPC."""
    destination = tmp_path / "thing"
    with (
        pytest.raises(StorageError, match=r"can't write .*No space left on device.*Nothing was left"),
        new_artifact(destination),
        open("/dev/full", "w") as full,
    ):
        full.write("x" * 100_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "write",
    [
        "(folder / 'weights').write_bytes(bytes(1_000_000))",
        "save_file({'w': torch.zeros(250_000)}, folder / 'w.safetensors')",
    ],
)
def test_no_space_while_a_stage_writes_its_weights_leaves_nothing(tmp_path: Path, write: str) -> None:
    """A child process that may not write files over 64 KiB, as a full disk would have it."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from mgm_lora.artifacts import new_artifact\n"
        "import torch; from safetensors.torch import save_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        f"with new_artifact(Path(sys.argv[1])) as folder: {write}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "thing")], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "StorageError: can't write" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 65536


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_place_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"), new_file(tmp_path / "file") as path:
        path.write_text("x")


def test_manifest_of_another_kind_is_refused(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "thing") as folder:
        write_manifest(folder, Manifest.make("SampleTable", settings={}, parents={}))
    with pytest.raises(ArtifactError, match=r"asked for a TrainedAdapter .* found a SampleTable"):
        read_manifest(tmp_path / "thing", kind="TrainedAdapter")
    with pytest.raises(ArtifactError, match="no SampleTable at"):
        read_manifest(tmp_path / "other", kind="SampleTable")


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with new_artifact(tmp_path / name) as folder:
            write_manifest(folder, Manifest.make("SampleTable", settings={}, parents={"x": "1"}, seed=3))
    assert digest_folder(tmp_path / "a") == digest_folder(tmp_path / "b")


def test_digest_follows_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    first = digest_folder(tmp_path)
    (tmp_path / "one").rename(tmp_path / "two")
    second = digest_folder(tmp_path)
    (tmp_path / "two").write_text("2")
    assert len({first, second, digest_folder(tmp_path)}) == 3
