"""Documents in real DVC remotes, and remotes that two machines can't share."""

from pathlib import Path

import pytest
from dvc.repo import Repo

from mgm_lora.errors import RemoteError
from tasks.remote import SharedRemote

from ..small_disk import needs_mount, small_disk


def remote_at(url: Path) -> SharedRemote:
    with Repo() as repo, repo.config.edit() as config:
        config["remote"]["team"] = {"url": str(url)}
        config["core"]["remote"] = "team"
    with Repo() as repo:
        return SharedRemote.of(repo)


def test_document_is_read_as_it_was_written_last(project: Path, tmp_path: Path) -> None:
    remote = remote_at(tmp_path / "remote")

    assert remote.read("a/b.json") is None
    remote.write("a/b.json", "first")
    remote.write("a/b.json", "zweite, größer")
    assert remote.read("a/b.json") == "zweite, größer"
    assert remote.where("a/b.json") == str(tmp_path / "remote" / "mgm-lora" / "a" / "b.json")
    assert [path.name for path in (tmp_path / "remote").rglob("*") if path.is_file()] == ["b.json"]


def test_no_remote_is_told(project: Path) -> None:
    with (
        Repo() as repo,
        pytest.raises(RemoteError, match=r"(?s)takes its data by the DVC remote.*`dvc remote add --default"),
    ):
        SharedRemote.of(repo)


def test_remote_in_the_clone_is_refused(project: Path) -> None:
    with pytest.raises(RemoteError, match="lies in this clone"):
        remote_at(project / "dvc-remote")


@needs_mount
def test_remote_that_is_full_or_read_only_is_told_and_keeps_what_it_had(project: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=64) as disk:
        remote = remote_at(disk.folder)
        remote.write("a.json", "first")
        with disk.full(), pytest.raises(RemoteError, match=r"can't write .*a\.json: OSError.*No space left"):
            remote.write("a.json", "second" * 4096)
        assert remote.read("a.json") == "first"
        with disk.read_only(), pytest.raises(RemoteError, match=r"can't write .*a\.json: OSError.*Read-only"):
            remote.write("a.json", "third")
        assert remote.read("a.json") == "first"


def test_remote_that_cannot_be_read_is_told(project: Path, tmp_path: Path) -> None:
    remote = remote_at(tmp_path / "remote")
    (tmp_path / "remote" / "mgm-lora" / "a.json").mkdir(parents=True)

    with pytest.raises(RemoteError, match=r"can't read .*a\.json: IsADirectoryError"):
        remote.read("a.json")
