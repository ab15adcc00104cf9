"""The folder in which a worker runs stages for other machines: a git worktree that belongs to the worker alone.

It stays from run to run, and with it DVC's cache and half-finished trainings. The clone that the worker was started in
lends it commits, git's access to the remote, and DVC's remotes with their passwords; nobody's work there is touched. In
the worktree everything that git doesn't ignore is made as the commit says. It knows no Prefect.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc.config import Config, merge
from filelock import FileLock

from mgm_lora.errors import WorkplaceError

FOLDER = Path("build") / "card"
"""Relative to the worker's clone."""
_ENVIRONMENT = "requirements.lock"


@contextmanager
def workplace(clone: Path, *, commit: str) -> Iterator[Path]:
    """The worktree at `commit`, for this process alone: another waits.

    Raises:
        WorkplaceError: the commit isn't there, or the environment is of another one.
    """
    folder = clone / FOLDER
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # the kernel opens it when the process ends
        _fetch(commit, clone=clone)
        _check_environment(commit, clone=clone)
        _check_out(commit, clone=clone, folder=folder)
        _lend_remotes(clone, folder=folder)
        yield folder


def _fetch(commit: str, *, clone: Path) -> None:
    if _has(commit, clone=clone):
        return
    _git("fetch", "--quiet", "origin", cwd=clone)
    if not _has(commit, clone=clone):
        raise WorkplaceError(
            f"commit {commit} isn't on the git remote of the worker's clone '{clone}': push it (`git push`), and run it again"
        )


def _has(commit: str, *, clone: Path) -> bool:
    command = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    return subprocess.run(command, cwd=clone, stderr=subprocess.DEVNULL, check=False).returncode == 0


def _check_environment(commit: str, *, clone: Path) -> None:
    """The installed packages are those of the clone's lock file; another commit's stages must not run on them."""
    installed = clone / _ENVIRONMENT
    if not installed.is_file() or not _git("ls-tree", commit, "--", _ENVIRONMENT, cwd=clone):
        return
    if _git("show", f"{commit}:{_ENVIRONMENT}", cwd=clone) != installed.read_text(encoding="utf-8"):
        raise WorkplaceError(
            f"commit {commit[:10]} wants other packages ({_ENVIRONMENT}) than are installed for the worker in '{clone}':"
            f" there, `git checkout` a commit with that {_ENVIRONMENT}, `make install`, and start the worker again"
        )


def _check_out(commit: str, *, clone: Path, folder: Path) -> None:
    if not (folder / ".git").is_file():
        # --force: it may be known to git from before somebody removed the folder
        _git("worktree", "add", "--quiet", "--force", "--detach", str(folder), commit, cwd=clone)
    _remove_locks(folder)
    _git("checkout", "--quiet", "--force", "--detach", commit, cwd=folder)
    _git("clean", "--quiet", "--force", "-d", cwd=folder)


def _remove_locks(folder: Path) -> None:
    """Those of git and DVC that name a process and outlive it. We alone work here, so whoever holds one is dead, even if its number lives."""
    git = Path(_git("rev-parse", "--absolute-git-dir", cwd=folder).strip())
    for left in (git / "index.lock", folder / ".dvc" / "tmp" / "rwlock"):
        left.unlink(missing_ok=True)


def _lend_remotes(clone: Path, *, folder: Path) -> None:
    """What the clone's configuration says of remotes, its private part included, and from where the clone lies."""
    lent = Config(str(clone / ".dvc"))
    merged = lent.read("repo")
    merge(merged, lent.read("local"))
    with Config(str(folder / ".dvc")).edit("local") as own:
        own.update({section: merged.get(section, {}) for section in ("core", "remote")})


def _git(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise WorkplaceError(f"`git {' '.join(arguments)}` in '{cwd}' failed: {done.stderr.strip()}")
    return done.stdout
