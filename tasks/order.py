"""What a worker on another machine must know to run a stage as it would run here, the order.

The commit brings the code, the DVC remote the data. The order brings what a run may change without a commit: settings,
and what `dvc.lock`, `.dvc` files and outputs that git tracks say of the stages before. Both sides reckon what the stage
depends on, and must find the same, so that work on another state of the code is refused and not done. It knows no Prefect.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dvc.dependency.param import ParamsDependency
from dvc.repo.reproduce import get_active_graph
from dvc.scm import NoSCM
from dvc.stage import PipelineStage
from dvc.stage.serialize import to_single_stage_lockfile
from dvc.utils.serialize import dumps_yaml, load_yaml
from pydantic import BaseModel, ConfigDict, Field
from scmrepo.exceptions import SCMError

from mgm_lora.errors import OrderError
from tasks.repository import find_stage, name_of, open_repository

_LOCK_FILE = "dvc.lock"
_MAX_BYTES = 400_000  # Prefect takes 524,288 bytes of parameters
_CHANGES_NOTHING = {"size", "nfiles"}  # of an entry of dvc.lock, beside the digest


class Order(BaseModel):
    """One stage, to be run elsewhere."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str = Field(description="As `dvc repro` takes it.")
    commit: str = Field(description="The commit whose code is to run; it must be on the git remote.")
    inputs: dict[str, str] = Field(description="Digests of all that the stage depends on, by name.")
    files: dict[str, str] = Field(
        description="Small files by their path in the repository: settings, dvc.lock, metrics."
    )
    needs: tuple[str, ...] = Field(description="The stages whose outputs it depends on, as `dvc pull` takes them.")
    force: bool = Field(default=False, description="Run it also where it has been run before.")

    @property
    def key(self) -> str:
        """Two orders of one key ask for the same."""
        return _digest(self.inputs)


def make_order(name: str, *, root: Path, force: bool) -> Order:
    """The order for a stage of the repository at `root`, whose needs must be up to date.

    Raises:
        OrderError: no commit, or files that can't go along.
    """
    with open_repository(root, wait=True) as repo:
        stage = find_stage(repo, name)
        needs = list(get_active_graph(repo.index.graph).successors(stage))
        return Order(
            stage=name,
            commit=_commit(repo),
            inputs=_inputs(stage),
            files=_files(stage, needs=needs, root=Path(repo.root_dir)),
            needs=tuple(name_of(need) for need in needs if any(out.use_cache for out in need.outs)),
            force=force,
        )


def write_files(order: Order, *, root: Path) -> None:
    """Puts the order's files in their places in another clone of the repository."""
    for path, text in order.files.items():
        target = (root / path).resolve()
        if not target.is_relative_to(root.resolve()) or ".git" in Path(path).parts:
            raise OrderError(f"the order for '{order.stage}' brings a file that lies outside of the repository: {path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def check_inputs(order: Order, *, root: Path) -> None:
    """That the stage would depend on the same here.

    Raises:
        OrderError: what differs is named.
    """
    with open_repository(root, wait=True) as repo:
        found = _inputs(find_stage(repo, order.stage), allow_missing=True)
    if differing := sorted(name for name in order.inputs.keys() | found if order.inputs.get(name) != found.get(name)):
        raise OrderError(
            f"'{order.stage}' at commit {order.commit[:10]} depends on something else than where it was asked for: "
            f"{', '.join(differing)} differ. Commit and push there what has changed, and run it again"
        )


def _commit(repo: Any) -> str:
    try:
        if isinstance(repo.scm, NoSCM):
            raise SCMError("no git repository")
        return str(repo.scm.get_rev())
    except SCMError as error:
        raise OrderError(
            f"a worker on another machine takes the code from a commit, but '{repo.root_dir}' has none: {error}. Commit and push it"
        ) from error


def _inputs(stage: Any, *, allow_missing: bool = False) -> dict[str, str]:
    """By names that say something to people: what DVC judges a stage by, but for what it made."""
    stage.save_deps(allow_missing=allow_missing)  # in memory
    entry = to_single_stage_lockfile(stage)
    found = {
        "its command": _digest(entry["cmd"]),
        "the paths of its outputs": _digest([o["path"] for o in entry["outs"]]),
    }
    for dependency in entry.get("deps", ()):
        described = {name: value for name, value in dependency.items() if name not in _CHANGES_NOTHING}
        found[str(dependency["path"])] = _digest(described)
    for file, values in entry.get("params", {}).items():
        found |= {f"{name} in {file}": _digest(value) for name, value in values.items()}
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _files(stage: Any, *, needs: list[Any], root: Path) -> dict[str, str]:
    paths = {path for path in _settings(stage) if path.is_file()}
    for need in needs:
        if not isinstance(need, PipelineStage):
            paths.add(Path(need.path))
        for out in need.outs:
            if not out.use_cache:
                paths |= set(_all_files(Path(out.fs_path)))
    texts = {str(path.relative_to(root)): _text(path) for path in sorted(paths)}
    texts |= {str(path.relative_to(root)): text for path, text in _lock_files(needs, own=stage).items()}
    size = sum(len(path) + len(text) for path, text in texts.items())
    if size > _MAX_BYTES:
        largest = sorted(texts, key=lambda path: -len(texts[path]))[:3]
        raise OrderError(
            f"what git alone tracks of the stages before '{stage.name}' has {size:,} bytes and can't go along to a worker"
            f" ({_MAX_BYTES:,} at most; largest: {', '.join(largest)}). Let DVC cache those outputs: no `cache: false` in dvc.yaml"
        )
    return texts


def _settings(stage: Any) -> Iterator[Path]:
    yield Path(stage.path).parent / ParamsDependency.DEFAULT_PARAMS_FILE  # dvc.yaml itself may be filled in from it
    for dependency in stage.deps:
        if isinstance(dependency, ParamsDependency):
            yield Path(dependency.fs_path)


def _all_files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OrderError(
            f"'{path}' is no text, so it can't go along to a worker: let DVC cache that output (no `cache: false`)"
        ) from error


def _lock_files(needs: list[Any], *, own: Any) -> Mapping[Path, str]:
    """For each dvc.lock its entries of the needed stages alone, which say what to pull; of the stage itself nothing is known."""
    entries: dict[Path, dict[str, Any]] = {Path(own.path).parent / _LOCK_FILE: {}}
    for need in needs:
        if isinstance(need, PipelineStage):
            path = Path(need.path).parent / _LOCK_FILE
            stages = load_yaml(str(path)).get("stages", {}) if path.is_file() else {}
            entries.setdefault(path, {}).update({need.name: stages[need.name]} if need.name in stages else {})
    return {path: dumps_yaml({"schema": "2.0", "stages": stages}) for path, stages in entries.items()}
