"""Runs trials as DVC experiments, one after the other, in a copy of the project, and finds what such experiments have left.

Why a copy, and not the project itself or `dvc exp run --queue`: DVC stashes and resets the folder that an experiment is made in, so a kill at the
wrong moment leaves a user's changes in a stash and HEAD detached; what the user edits meanwhile gets into the next trial; and a worker of the queue
that is killed leaves a trial that DVC calls Running until a person tells it to end it, and that no other worker takes up (docs/sweeps.md has
what was seen). The copy is a clone at the commit, with the project's own DVC cache: data are links, checkpoints and unchanged stages stay from
trial to trial, and a finished experiment is fetched into the project, where `dvc exp show` lists it. It doesn't know how trials are chosen.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgm_lora.errors import SweepError
from mgm_lora.registry.store import FOLDER_VARIABLE
from mgm_lora.settings import BaseSettings
from mgm_lora.stages import paths
from mgm_lora.stages.dvc_child import run_dvc
from mgm_lora.stages.params_file import with_entries_apart
from mgm_lora.stages.pipeline_inputs import run_git, versioned_path

_REFS = "refs/exps"
_LEFT_BY_A_KILL = ("refs/exps/stash", "refs/exps/exec/EXEC_BASELINE", "refs/exps/exec/EXEC_MERGE", "refs/stash")
_FAILED = re.compile(r"failed to reproduce '([^'@]+)(@[^']*)?'(.*exited with (-?\d+))?")
_OURS = re.compile(r"^mgm-lora: ")


@dataclass(frozen=True)
class ExperimentEnd:
    """How a `dvc exp run` ended."""

    failed_stage: str | None
    """Without its `@...`; none where all went well."""
    exit_code: int | None
    """Of the stage that failed; none where it didn't come to that."""
    words: str
    """The last ones."""


@dataclass(frozen=True)
class Project:
    """The project that a sweep is of."""

    root: Path
    commit: str
    folder_in_git: str
    """Where the root lies in its git repository; empty for its top."""


def open_project(root: Path) -> Project:
    """Looks that experiments can be kept here; raises SweepError where not."""
    try:
        top = run_git(root, "rev-parse", "--show-toplevel")
    except SweepError as error:
        raise SweepError(
            f"a sweep's trials are DVC experiments, which are kept in git, and '{root}' is in no repository ({error})"
        ) from error
    if not (root / ".dvc").is_dir():
        raise SweepError(f"'{root}' is no DVC project: run from the project's root, where `dvc init` was")
    try:
        commit = run_git(root, "rev-parse", "--verify", "HEAD")
    except SweepError as error:
        raise SweepError(f"'{root}' has no commit yet, and trials start from one: `git commit` first") from error
    folder = root.resolve().relative_to(Path(top).resolve()).as_posix()
    return Project(root=root.resolve(), commit=commit, folder_in_git="" if folder == "." else folder)


def find_experiments(root: Path) -> dict[str, str]:
    """The commits of all experiments that the project has, whatever commit they started from, by name; of several the newest."""
    told = run_git(root, "for-each-ref", "--sort=committerdate", "--format=%(objectname) %(refname)", _REFS)
    found = (line.split(" ", 1) for line in told.splitlines())
    return {ref.rpartition("/")[2]: commit for commit, ref in found if _is_experiment(ref)}


def read_committed(root: Path, *, commit: str, path: Path) -> dict[str, Any] | None:
    """A JSON file of a commit; none where that doesn't have it."""
    if not run_git(root, "ls-tree", commit, "--", path.as_posix()):
        return None
    content: dict[str, Any] = json.loads(run_git(root, "show", f"{commit}:./{path.as_posix()}"))
    return content


class ProjectCopy:
    """A clone that trials run in. Nothing in it is of worth: it can be deleted between two sweeps."""

    def __init__(self, project: Project, *, folder: Path) -> None:
        self._project = project
        self._folder = folder
        self.root = folder.resolve() / project.folder_in_git
        """Where the project's files lie in the clone."""

    def make_ready(self, *, base: BaseSettings) -> None:
        """Makes the clone where there is none, and brings it to the project's commit, whatever a kill has left in it.

        Args:
            base: names folders of weights; those that are in no commit are linked, since the clone doesn't have them.
        """
        if not (self._folder / ".git").is_dir():
            shutil.rmtree(self._folder, ignore_errors=True)
            self._clone()
        else:
            for lock in (self._folder / ".git").rglob("*.lock"):  # left by a git that was killed
                lock.unlink()
            (self.root / ".dvc/tmp/rwlock").unlink(
                missing_ok=True
            )  # DVC killed while it writes it leaves it empty, and reads it no more
        self._git("fetch", "--quiet", "--no-tags", str(self._top), "HEAD")
        self.reset()
        self._share_cache()
        self._link_weights(base)

    def reset(self) -> None:
        """Back to the commit, and rid of experiments that a kill has left half begun: DVC would take them up with the next one."""
        self._git("checkout", "--quiet", "--force", "--detach", self._project.commit)
        for ref in _LEFT_BY_A_KILL:
            self._git("update-ref", "-d", ref)

    def run(
        self, name: str, *, entries: Mapping[str, Any], targets: Sequence[str], on_line: Callable[[str], None]
    ) -> ExperimentEnd:
        """Runs one experiment, and fetches it into the project where it went well.

        Args:
            name: of the experiment.
            entries: what differs from the commit's params.yaml, by dotted path.
            targets: stages, as `dvc repro` takes them; those before them are brought up to date too.
            on_line: gets every line of DVC and the stages.
        """
        self.reset()
        params = self.root / paths.PARAMS
        params.write_text(with_entries_apart(params, entries=entries), encoding="utf-8")
        lines: list[str] = []

        def take(line: str) -> None:
            lines.append(line)
            on_line(line)

        end = run_dvc(
            ["exp", "run", "--name", name, *targets],
            root=self.root,
            on_line=take,
            environment={FOLDER_VARIABLE: str(self._project.root), "DVC_NO_ANALYTICS": "1"},
        )
        if end.exit_code != 0:
            return _failure(lines)
        self.hand_over([name])
        return ExperimentEnd(failed_stage=None, exit_code=0, words="")

    def hand_over(self, names: Sequence[str]) -> None:
        """Fetches those of the named experiments that the clone has into the project."""
        refs = run_git(self._folder, "for-each-ref", "--format=%(refname)", _REFS).splitlines()
        wanted = [ref for ref in refs if _is_experiment(ref) and ref.rpartition("/")[2] in names]
        if wanted:
            run_git(
                self._top,
                "fetch",
                "--quiet",
                "--no-tags",
                str(self._folder.resolve()),
                *(f"+{ref}:{ref}" for ref in wanted),
            )

    def read_json(self, path: Path) -> dict[str, Any]:
        """A file that the last experiment has left; empty where there is none."""
        file = self.root / path
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return content

    @property
    def _top(self) -> Path:
        """The top of the project's git repository."""
        return Path(run_git(self._project.root, "rev-parse", "--show-toplevel"))

    def _git(self, *arguments: str) -> str:
        return run_git(self._folder, *arguments)

    def _clone(self) -> None:
        unfinished = self._folder.with_name(f".{self._folder.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        run_git(self._project.root, "clone", "--quiet", "--no-checkout", str(self._top), str(unfinished.resolve()))
        for name, value in _identity(self._project.root).items():
            run_git(unfinished, "config", name, value)
        unfinished.rename(self._folder)

    def _share_cache(self) -> None:
        """The project's cache, and links out of it instead of copies: a data set can be larger than the disk's rest."""
        lines: list[str] = []
        run_dvc(["cache", "dir"], root=self._project.root, on_line=lines.append)
        folder = self._project.root / (lines[-1] if lines else ".dvc/cache")
        text = f'[cache]\n    dir = {folder}\n    type = "reflink,hardlink,symlink,copy"\n'
        (self.root / ".dvc" / "config.local").write_text(text, encoding="utf-8")

    def _link_weights(self, base: BaseSettings) -> None:
        for name in (base.model, base.vision_tower, base.vision_tower_aux):
            if name is None or Path(name).is_absolute() or not (self._project.root / name).exists():
                continue
            link = self.root / name
            if versioned_path(self._project.root, name) is None and not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self._project.root / name)


def _is_experiment(ref: str) -> bool:
    """refs/exps/ab/cdef.../NAME; others are DVC's own."""
    return re.fullmatch(rf"{_REFS}/[0-9a-f]{{2}}/[0-9a-f]{{38,62}}/[^/]+", ref) is not None


def _identity(root: Path) -> Mapping[str, str]:
    """Who commits: DVC asks git, and a machine that runs schedules often has nobody."""
    told = dict(line.split(" ", 1) for line in _config(root) if " " in line)
    return {"user.name": told.get("user.name", "mgm-lora"), "user.email": told.get("user.email", "mgm-lora@localhost")}


def _config(root: Path) -> list[str]:
    try:
        return run_git(root, "config", "--get-regexp", r"^user\.(name|email)$").splitlines()
    except SweepError:  # there is none
        return []


def _failure(lines: Sequence[str]) -> ExperimentEnd:
    found = next((match for line in reversed(lines) if (match := _FAILED.search(line))), None)
    ours = next((number for number in range(len(lines) - 1, -1, -1) if _OURS.match(lines[number])), None)
    last = lines[ours:] if ours is not None else lines[-6:]
    words = "\n".join(line for line in last if not line.startswith(("ERROR: failed to reproduce", "Reproducing")))
    return ExperimentEnd(
        failed_stage=found.group(1) if found else "",
        exit_code=int(found.group(4)) if found and found.group(4) else None,
        words=words.strip() or "\n".join(lines[-6:]),
    )
