"""What lies on disk between stages: folders that are whole or not there, each with a manifest of what made it.

A folder is written under a temporary name beside its destination, synced, and renamed, so a reader never meets half of
one. The manifest holds no clock time: the same inputs give the same bytes. It doesn't know what is in the folders.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError

from mgm_lora.errors import ArtifactError, StorageError

MANIFEST_NAME = "manifest.json"
CONTRACT_CHECKS = ("requires_grad", "optimizer", "gradients", "changed", "saved", "frozen")
"""What a training's manifest says that held, under `contract`: training writes it, registration asks for it."""
_VERSIONED = ("torch", "transformers", "peft", "safetensors", "numpy")
_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


class Manifest(BaseModel):
    """What made an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """The noun: SampleTable, TrainedAdapter, TrainedModel, MergedModel, Scores, RegisteredVersion."""
    settings: dict[str, Any]
    """The sections of params.yaml that it depends on."""
    parents: dict[str, str]
    """Digests of the artifacts and files that it was made from, by name."""
    base: dict[str, Any]
    """The base model: name, revision, digest; empty where none was used."""
    seed: int | None
    versions: dict[str, str]
    details: dict[str, Any]
    """What the kind adds: counts, proofs, figures."""

    @classmethod
    def make(
        cls,
        kind: str,
        *,
        settings: Mapping[str, BaseModel],
        parents: Mapping[str, str],
        base: Mapping[str, Any] | None = None,
        seed: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> Self:
        """A manifest of this process's versions."""
        return cls(
            kind=kind,
            settings={name: section.model_dump(mode="json") for name, section in settings.items()},
            parents=dict(parents),
            base=dict(base or {}),
            seed=seed,
            versions={name: version(name) for name in _VERSIONED},
            details=dict(details or {}),
        )


def read_manifest(folder: Path, *, kind: str | Sequence[str]) -> Manifest:
    """The manifest of an artifact.

    Args:
        folder: where it lies.
        kind: the noun that it must be, or those that it may be.

    Raises:
        ArtifactError: no artifact is there, it is not whole, or it is of another kind.
    """
    path = folder / MANIFEST_NAME
    kinds = (kind,) if isinstance(kind, str) else tuple(kind)
    asked = " or ".join(kinds)
    if not path.is_file():
        raise ArtifactError(
            f"no {asked} at '{folder}' (no {MANIFEST_NAME}): run `dvc repro`, or the stage that makes it"
        )
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ArtifactError(f"'{path}' is no manifest: {error}") from error
    if manifest.kind not in kinds:
        raise ArtifactError(f"asked for a {asked} at '{folder}', found a {manifest.kind}")
    return manifest


@contextmanager
def new_artifact(destination: Path) -> Iterator[Path]:
    """A temporary folder that becomes `destination` when the block ends well, and vanishes when it doesn't.

    Raises:
        StorageError: no space, or no permission to write there.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", suffix=".part", dir=destination.parent))
    except OSError as error:
        raise storage_error(error, destination) from error
    try:
        yield folder
        _sync(folder)
        folder.chmod(0o755)
        _replace(folder, destination)
    except (OSError, SafetensorError) as error:
        raise storage_error(error, destination) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new_file(destination: Path) -> Iterator[Path]:
    """A temporary file name that becomes `destination` when the block ends well; raises as `new_artifact` does."""
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.part")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync_file(temporary)
        temporary.replace(destination)
    except (OSError, SafetensorError) as error:
        raise storage_error(error, destination) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest into an artifact that is being made."""
    write_json(folder / MANIFEST_NAME, manifest.model_dump(mode="json"))


def write_json(path: Path, value: object) -> None:
    """Writes JSON that people read and git diffs: indented, keys in the given order, a newline at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path, *, pattern: str = "**/*") -> str:
    """SHA-256 over the names and bytes of the files under a folder, in hex; hidden files are left out."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob(pattern)):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()}\0{digest_file(path)}\n".encode())
    return digest.hexdigest()


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files under a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _replace(folder: Path, destination: Path) -> None:
    if not destination.exists():
        folder.rename(destination)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", suffix=".old", dir=destination.parent))
    destination.rename(old / destination.name)
    folder.rename(destination)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)  # some writers leave files that only their owner reads
            _sync_file(path)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(error: OSError | SafetensorError, destination: Path) -> Exception:
    """StorageError where the error is of space or permission; else the error itself."""
    number = error.errno if isinstance(error, OSError) else _errno_told_by(error)
    if number is None or number not in _STORAGE_ERRORS:
        return error
    return StorageError(
        f"can't write '{destination}': {os.strerror(number)}. Nothing was left there; free space or permission, and run again"
    )


def _errno_told_by(error: SafetensorError) -> int | None:
    # safetensors writes in Rust, and its error has the number in its text alone
    told = re.search(r"os error (\d+)", str(error))
    return int(told.group(1)) if told else None
