"""A small disk of its own for tests of full and read-only ones: a tmpfs, which takes the right to mount (root in CI has it)."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest


def _mount(folder: Path, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], check=True, capture_output=True)


def _can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            _mount(Path(folder))
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", folder], check=True)
        return True


needs_mount = pytest.mark.skipif(not _can_mount(), reason="may not mount a small disk here")


@dataclass(frozen=True)
class Disk:
    """Where it lies. What is done to it, all processes see that have it."""

    folder: Path

    @contextmanager
    def full(self) -> Iterator[None]:
        """Without a free byte, in the block."""
        with self.nearly_full(kib=0):
            yield

    @contextmanager
    def nearly_full(self, *, kib: int) -> Iterator[None]:
        """With so much left, in the block."""
        filler = self.folder / ".filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        os.truncate(filler, filler.stat().st_size - 1024 * kib)
        try:
            yield
        finally:
            filler.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """In the block."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(self.folder)], check=True)


@contextmanager
def small_disk(folder: Path, *, kib: int) -> Iterator[Disk]:
    """A new disk at `folder`, gone after the block."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount(folder, "-o", f"size={kib}k")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
