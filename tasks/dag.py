"""Asks DVC what is to be done: which stages `dvc.yaml` holds, in which order, what they make, and which of them are
unchanged.

DVC's own Python API answers, so that there is one DAG and one judge of what is up to date. Nothing is remembered
between two questions: each opens the repository anew, hence an answer is never older than the question. It knows no
Prefect, and runs no stage.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dvc.lock import LockError
from dvc.repo.reproduce import get_active_graph, plan_repro

from mgm_lora.errors import UnknownStageError
from tasks.repository import PIPELINE_FILE, name_of, open_repository

logger = logging.getLogger(__name__)

CARD = "gpu"


@dataclass(frozen=True)
class Stage:
    """What a flow has to know of a stage of `dvc.yaml`, or of data that DVC tracks (`data.dvc`)."""

    name: str
    """As `dvc repro` takes it: `validate`, `train@lora-17`, `data.dvc`."""
    needs: tuple[str, ...]
    """The names of the stages that it depends on directly."""
    card: str
    """The card that its `meta: {card: ...}` asks for: "gpu" where that says `true`, or the name there; "" for none."""
    metrics: tuple[Path, ...]
    """Its metrics files, relative to the repository's root, as the next ones."""
    plots: tuple[Path, ...]
    outs: tuple[Path, ...]
    """Its other outputs: files and folders."""


@dataclass(frozen=True)
class Plan:
    """The stages that a run goes through, those that others need first."""

    root: Path
    stages: tuple[Stage, ...]
    has_remote: bool
    """Whether there is a default DVC remote to pull from."""


def make_plan(folder: Path, *, targets: Sequence[str] = ()) -> Plan:
    """What `dvc repro TARGET...` would go through; without targets, what `dvc repro` would.

    A target is a stage's name, or that of a whole matrix (`train` for `train@lora-17` and `train@full-17`). Another `dvc` that is at work
    is waited for.

    Raises:
        UnknownStageError: a target is no stage.
    """
    with open_repository(folder, wait=True) as repo:
        graph = get_active_graph(repo.index.graph)
        names = {name_of(stage): stage for stage in graph}
        wanted = (
            _find(targets, list(names)) if targets else [n for n, s in names.items() if s.path_in_repo == PIPELINE_FILE]
        )
        order = plan_repro(graph, [names[name] for name in wanted]) if wanted else []
        return Plan(
            root=Path(repo.root_dir),
            stages=tuple(_describe(stage, needs=graph.successors(stage), root=Path(repo.root_dir)) for stage in order),
            has_remote="remote" in repo.config["core"],
        )


def is_unchanged(name: str, *, root: Path, but_for_missing: bool = False, wait: bool = False) -> bool:
    """Whether `dvc repro` would skip this stage: its command, what it depends on and what it made are as they were.

    False also where that can't be told now, since another `dvc` is at work: the one that is started then waits, and looks again.
    With `wait`, it is waited for here, and the answer can be relied on.
    With `but_for_missing`, true also where all is as it was but files are missing, which `dvc pull` brings.
    """
    try:
        with open_repository(root, wait=wait) as repo:
            stage = next((stage for stage in repo.index.stages if name_of(stage) == name), None)
            return stage is not None and not stage.changed(but_for_missing)
    except LockError as error:
        logger.info("can't look at '%s' while another dvc is at work: %s", name, error)
        return False


def _find(targets: Sequence[str], names: Sequence[str]) -> list[str]:
    found = {target: [name for name in names if name == target or name.startswith(f"{target}@")] for target in targets}
    unknown = [target for target, matches in found.items() if not matches]
    if unknown:
        near = [match for target in unknown for match in get_close_matches(target, names)]
        raise UnknownStageError(
            f"no such stage: {', '.join(unknown)}. Stages are: {', '.join(names)}."
            + (f" Did you mean {' or '.join(near)}?" if near else "")
        )
    return [name for matches in found.values() for name in matches]


def _describe(stage: Any, *, needs: Iterator[Any], root: Path) -> Stage:
    card = (stage.meta or {}).get("card") or ""
    others = [out for out in stage.outs if not out.metric and not out.plot]
    return Stage(
        name=name_of(stage),
        needs=tuple(name_of(need) for need in needs),
        card=CARD if card is True else str(card),
        metrics=_paths([out for out in stage.outs if out.metric], root=root),
        plots=_paths([out for out in stage.outs if out.plot and not out.metric], root=root),
        outs=_paths(others, root=root),
    )


def _paths(outs: Sequence[Any], *, root: Path) -> tuple[Path, ...]:
    return tuple(Path(out.fs_path).relative_to(root) for out in outs if out.is_in_repo)
