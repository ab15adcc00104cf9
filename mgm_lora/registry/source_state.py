"""Which source a pipeline ran from: git's commit, and what differs from it among the files that DVC's lock says it read.

Only those: a file that no stage reads (notes, keys, an `.env`) is none of a version's business, and the lock itself is kept anyway. It changes
nothing in git.
"""

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mgm_lora.errors import ArtifactError


@dataclass(frozen=True)
class SourceState:
    """A commit and the changes on top of it."""

    commit: str | None
    """None outside of git, or before its first commit."""
    changed: tuple[str, ...] = ()
    """Files, relative to the project's root, that differ from the commit or aren't in it."""
    removed: tuple[str, ...] = ()
    """Files of the commit that aren't there."""


def read_source_state(lock: Path) -> SourceState:
    """Of the working directory, a project's root.

    Args:
        lock: `dvc.lock`; where it isn't there, only the pipeline's own files are looked at.

    Raises:
        ArtifactError: the lock is not one of DVC's.
    """
    commit = _git("rev-parse", "--verify", "--quiet", "HEAD")
    if not commit:
        return SourceState(commit=None)
    paths = ["dvc.yaml", "params.yaml", "*.dvc", *sorted(set(_read_by_stages(lock)))]
    pathspecs = [path if path == "*.dvc" else f":(literal){path}" for path in paths]
    differing = _git("diff", "--name-only", "--no-renames", "--relative", "-z", "HEAD", "--", *pathspecs)
    new = _git("ls-files", "--others", "--exclude-standard", "-z", "--", *pathspecs)
    names = sorted({name for name in f"{differing}\0{new}".split("\0") if name})
    return SourceState(
        commit=commit,
        changed=tuple(name for name in names if Path(name).is_file()),
        removed=tuple(name for name in names if not Path(name).exists()),
    )


def _read_by_stages(lock: Path) -> Iterator[str]:
    if not lock.is_file():
        return
    try:
        stages: dict[str, Any] = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8")).get("stages") or {}
        read = [PurePosixPath(entry["path"]) for stage in stages.values() for entry in stage.get("deps", ())]
        made = [PurePosixPath(entry["path"]) for stage in stages.values() for entry in stage.get("outs", ())]
    except (YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"'{lock}' is no lock of DVC's ({error!r}): take it from git, or remove it and run `dvc repro`"
        ) from error
    for path in read:
        is_made = any(path == other or path in other.parents or other in path.parents for other in made)
        if not is_made and not path.is_absolute() and ".." not in path.parts:
            yield path.as_posix()


def _git(*arguments: str) -> str:
    """What git says; nothing where it says no."""
    command: Sequence[str] = ("git", *arguments)
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip("\n")
    except (OSError, subprocess.CalledProcessError):
        return ""
