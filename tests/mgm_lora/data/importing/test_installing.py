from pathlib import Path

import pytest

from mgm_lora.data.importing.installing import install, staging
from mgm_lora.errors import StorageError


def _part(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_parts_come_into_their_places(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with staging(tmp_path, name="x") as folder:
        parts = {_part(folder, "1", "new"): tmp_path / "a", _part(folder, "2", "new"): tmp_path / "sub/b"}
        install(parts, backup=folder)
    assert [(tmp_path / name).read_text() for name in ("a", "sub/b")] == ["new", "new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "sub"]


def test_where_one_part_fails_all_is_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with staging(tmp_path, name="x") as folder:
        parts = {_part(folder, "1", "new"): tmp_path / "a", folder / "nowhere": tmp_path / "b"}
        with pytest.raises(FileNotFoundError):
            install(parts, backup=folder)
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_is_told_as_such_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No space left on device"), staging(tmp_path, name="x"):
        Path("/dev/full").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []
