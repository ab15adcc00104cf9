import base64
import hashlib
import tarfile
from pathlib import Path

import pytest

from mgm_lora.errors import DataError
from recipes.sources import NpmPackage, fetch_npm_package


def test_an_archive_that_lies_there_is_checked_and_unpacked(tmp_path: Path) -> None:
    package = _pack(tmp_path, name="@scope/thing", content="hello")
    assert (fetch_npm_package(package, folder=tmp_path) / "file.txt").read_text() == "hello"


def test_an_archive_with_other_content_is_refused(tmp_path: Path) -> None:
    package = _pack(tmp_path, name="thing", content="hello")
    _pack(tmp_path, name="thing", content="changed")
    with pytest.raises(DataError, match=r"should be thing@1.0.0 with sha512 .* Remove it"):
        fetch_npm_package(package, folder=tmp_path)


def test_missing_npm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm is needed to fetch thing"):
        fetch_npm_package(NpmPackage("thing", "1.0.0", "x"), folder=tmp_path / "sources")


def _pack(folder: Path, *, name: str, content: str) -> NpmPackage:
    (folder / "file.txt").write_text(content)
    archive = folder / NpmPackage(name, "1.0.0", "").archive_name
    with tarfile.open(archive, "w:gz") as members:
        members.add(folder / "file.txt", "package/file.txt")
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    return NpmPackage(name, "1.0.0", digest)
