"""Opens DVC's repository under its lock, and names its stages as `dvc repro` takes them. It runs nothing and asks nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc.repo import Repo, lock_repo

from mgm_lora.errors import UnknownStageError

PIPELINE_FILE = "dvc.yaml"


@contextmanager
def open_repository(folder: Path, *, wait: bool = False) -> Iterator[Any]:
    """A fresh `dvc.repo.Repo`, locked; `wait` for another `dvc` as long as it takes, else DVC's LockError after 3 seconds."""
    with Repo(str(folder), _wait_for_lock=wait) as repo, lock_repo(repo):
        yield repo


def name_of(stage: Any) -> str:
    """As `stage.addressing`, but seen from the repository's root and not from the current folder."""
    own_name = getattr(stage, "name", None)
    if own_name is None:
        return str(stage.path_in_repo)
    if stage.path_in_repo == PIPELINE_FILE:
        return str(own_name)
    return f"{stage.path_in_repo}:{own_name}"


def find_stage(repo: Any, name: str) -> Any:
    """DVC's own object for a stage.

    Raises:
        UnknownStageError: the commit that lies here has no such stage.
    """
    for stage in repo.index.stages:
        if name_of(stage) == name:
            return stage
    raise UnknownStageError(f"no such stage: {name}. Stages are: {', '.join(map(name_of, repo.index.stages))}.")
