"""What a stage of `dvc.yaml` is made from, all the way up, as git knows it: code and data by their object ids.

For saying whether two commits make the same of it without running anything. It asks no stage by name, and knows nothing of parameters.
"""

import json
import logging
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML

from mgm_lora.errors import SweepError
from mgm_lora.stages.dvc_child import run_dvc

logger = logging.getLogger(__name__)
_PIPELINE = "dvc.yaml"


def run_git(root: Path, *arguments: str) -> str:
    """What git says; raises SweepError with its words where it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise SweepError("git is not installed, and DVC experiments are kept in it: install it") from error
    if done.returncode != 0:
        raise SweepError(
            f"`git {' '.join(arguments)}` failed in '{root}': {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout.strip()


def committed_inputs(root: Path, *, stage: str) -> dict[str, str]:
    """Object ids in HEAD of what a stage and those before it depend on, by path; for data under DVC, of its `.dvc` file.

    Raises:
        SweepError: a dependency is neither in git nor under DVC.
    """
    stages = YAML(typ="safe", pure=True).load((root / _PIPELINE).read_text(encoding="utf-8"))["stages"]
    found, missing = {}, []
    for path in _source_paths(stage, stages=stages):
        versioned = versioned_path(root, path)
        if versioned is None:
            missing.append(path)
        else:
            found[versioned] = run_git(root, "rev-parse", f"HEAD:./{versioned}")
    if missing:
        raise SweepError(
            f"{', '.join(missing)} is in no commit, neither by itself nor as a .dvc file: `git add` or `dvc add` it, then commit"
        )
    return dict(sorted(found.items()))


def versioned_path(root: Path, path: str) -> str | None:
    """The path itself where HEAD has it, else the `.dvc` file in HEAD that has it or a folder above it; none where there is none."""
    names = [path, f"{path}.dvc", *(f"{parent}.dvc" for parent in PurePosixPath(path).parents if str(parent) != ".")]
    return next((name for name in names if run_git(root, "ls-tree", "HEAD", "--", name)), None)


def _source_paths(stage: str, *, stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Dependencies of the stage, and of those that make its others, that no stage makes."""
    outs = {name: [_whatever(path) for path in _outs(entry)] for name, entry in stages.items()}
    sources: dict[str, None] = {}
    waiting, seen = [stage], {stage}
    while waiting:
        for dep in stages[waiting.pop()].get("deps", ()):
            path = _whatever(_path(dep))
            makers = [name for name, made in outs.items() if any(_overlap(path, out) for out in made)]
            waiting += [maker for maker in makers if maker not in seen]
            seen.update(makers)
            if not makers:
                sources[path] = None
    return list(sources)


def _outs(entry: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("outs", "metrics", "plots"):
        yield from (_path(out) for out in entry.get(kind, ()))


def _path(entry: str | Mapping[str, Any]) -> str:
    return entry if isinstance(entry, str) else next(iter(entry))


def _whatever(path: str) -> str:
    """A template's path up to its first placeholder: artifacts/plans/${item.arm}/plan.json is somewhere in artifacts/plans."""
    return path.split("${")[0].rpartition("/")[0] if "${" in path else path


def _overlap(one: str, other: str) -> bool:
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)


def changed_since_commit(root: Path, paths: Sequence[str]) -> list[str]:
    """Those files at these paths that are not as HEAD has them, new ones included."""
    lines = run_git(root, "status", "--porcelain", "--untracked-files=all", "--", *paths).splitlines()
    return [line[2:].strip() for line in lines]


def changed_data(root: Path, dvc_files: Sequence[str]) -> list[str]:
    """Those `.dvc` files whose data in this folder are not what they name; data that is not there at all has not changed."""
    if not dvc_files:
        return []
    lines: list[str] = []
    run_dvc(["status", "--json", *dvc_files], root=root, on_line=lines.append)
    try:
        told = json.loads(lines[-1])
    except (IndexError, ValueError):  # another dvc is at work here
        logger.warning("can't see whether data changed since `dvc add`: %s", " ".join(lines))
        return []
    return [
        name
        for name, found in told.items()
        if any("modified" in of.get("changed outs", {}).values() for of in found if isinstance(of, Mapping))
    ]
