"""`mgm-lora registry reproduce`: makes a version's adapter again, from its commit, data and settings, and compares the digests.

It is done as a hand would do it, in a clone of its own, so that nothing of the working directory is read or changed: git checks out the commit, what
differed from it when the version was made comes from the version itself, DVC restores the data, and `dvc repro` runs every stage up to the training,
none taken from its cache. The clone's training is tracked nowhere else. On the same machine, with the same libraries, the digest is the same; where
it isn't, what differs is told.
"""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mgm_lora.artifacts import Manifest, read_manifest
from mgm_lora.errors import ArtifactError, NotReproducedError, RegistryError, StorageError
from mgm_lora.registry.lookup import VersionFiles, fetch_version, find_version, version_uri
from mgm_lora.registry.records import digest_adapter
from mgm_lora.registry.store import open_store, telling_store_errors
from mgm_lora.settings import Settings
from mgm_lora.stages import paths
from mgm_lora.stages.params_file import rewritten
from mgm_lora.stages.process import tied_to_this_process

logger = logging.getLogger(__name__)
_OWN_STORE = "sqlite:///mlflow.db"
_GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")  # a hook's, which would lead back here


@dataclass(frozen=True)
class Reproduction:
    """A version made again."""

    version: int
    folder: Path
    """The project that it was made in."""
    digest: str
    """Of the adapter, the registered one and the one made again."""


def run(settings: Settings, *, version: str, folder: Path | None, keep: bool) -> Reproduction:
    """Makes a version's adapter again.

    Args:
        version: a number, an alias, or a `models:/` address.
        folder: where; none: build/reproduced/<name>-<version>.
        keep: leave the folder also where all went well.

    Raises:
        RegistryError: there is no such version, its commit isn't here, or it was registered without one.
        ArtifactError: its data can't be restored, or a stage failed.
        NotReproducedError: the digest is another one; the folder is left to look at.
        StorageError: the folder is there already, or can't be made.
    """
    with telling_store_errors(f"reproduce '{version}'", registry=settings.registry):
        store = open_store(settings.registry)
        found = find_version(version_uri(version, model_name=settings.registry.model_name), store=store)
        files = fetch_version(found, store=store)
    number = int(found.version)
    commit = _commit_of(files, number=number)
    if folder is None:
        folder = paths.REPRODUCED / f"{settings.registry.model_name}-{number}"
    _tell_libraries(files)
    project = _clone(folder, commit=commit)
    _restore_source(project, files=files)
    _restore_data(project, number=number)
    _train(project, stage=f"train@{files.evidence.subject}")
    again = project / paths.TRAINED / files.evidence.subject
    digest, asked = digest_adapter(again), digest_adapter(files.adapter)
    if digest != asked:
        raise NotReproducedError(_explain(files, again=again, digest=digest, asked=asked, number=number))
    if not keep:
        shutil.rmtree(folder)
    return Reproduction(number, project, digest)


def _commit_of(files: VersionFiles, *, number: int) -> str:
    commit = files.evidence.source.commit
    if commit is None:
        raise RegistryError(
            f"version {number} was registered outside of git, or before the first commit, so nothing says from which source it was made: commit,"
            " and run `dvc repro --force register`"
        )
    if subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True, check=False).returncode:
        raise RegistryError(
            f"version {number} was made from the commit {commit[:12]}, which this repository doesn't have: `git fetch --all`, or run this in the"
            " clone that it was registered from"
        )
    return commit


def _clone(folder: Path, *, commit: str) -> Path:
    """The project's root in a new clone, with DVC's cache, remotes and own settings of this one."""
    if folder.exists():
        raise StorageError(f"'{folder}' is there already: remove it, or name another one with --folder")
    top, prefix = (_say(["git", "rev-parse", option]) for option in ("--show-toplevel", "--show-prefix"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    _say(["git", "clone", "--quiet", "--no-checkout", top, str(folder)])
    _say(["git", "checkout", "--quiet", "--detach", commit], folder=folder)
    project = folder / prefix
    own = Path(".dvc/config.local")
    if own.is_file():
        shutil.copy(own, project / own)
    cache = Path(_say(_dvc("cache", "dir"))).resolve()
    remotes = [line.split("\t", 1) for line in _say(_dvc("remote", "list")).splitlines() if "\t" in line]
    _say(_dvc("cache", "dir", "--local", str(cache)), folder=project)
    for name, url in remotes:
        if Path(
            url.split()[0]
        ).is_absolute():  # a folder; an address in the commit's own settings leads there from anywhere
            _say(_dvc("remote", "add", "--local", "--force", name, url.split()[0]), folder=project)
    return project


def _restore_source(project: Path, *, files: VersionFiles) -> None:
    source = files.evidence.source
    for name in source.changed:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files.evidence.changed / name, project / name)
    for name in source.removed:
        (project / name).unlink(missing_ok=True)
    if files.evidence.lock.is_file():
        shutil.copy(files.evidence.lock, project / paths.LOCK)
    if source.changed or source.removed:
        names = ", ".join([*source.changed, *(f"{name} (removed)" for name in source.removed)])
        logger.info("not as in the commit when it was made, so taken from the version: %s", names)
    params = project / paths.PARAMS
    _, text = rewritten(params, changes={"registry": {"tracking_uri": _OWN_STORE}})
    params.write_text(text, encoding="utf-8")


def _restore_data(project: Path, *, number: int) -> None:
    if _try(_dvc("checkout", "--quiet"), folder=project) == "":
        return
    problem = _try(_dvc("pull", "--quiet"), folder=project)
    names = _say(["git", "ls-files", "*.dvc"], folder=project).split()
    missing = [name for name in names if _try(_dvc("status", "--quiet", name), folder=project)]
    if missing:
        raise ArtifactError(
            f"the data of version {number} can't be restored ({', '.join(missing)}): it is neither in DVC's cache here nor in a remote that answers."
            f" Run this where it is, or `dvc push` there first. DVC says: {problem or 'nothing'}"
        )


def _train(project: Path, *, stage: str) -> None:
    # -P: the project's folders must not stand for dvc's modules. Nothing goes into the cache, which is the other project's too
    command = _dvc("repro", "--force", "--no-run-cache", "--no-commit", stage)
    done = subprocess.run(
        tied_to_this_process(command), cwd=project, env=_environment(), stdout=sys.stderr.fileno(), check=False
    )
    if done.returncode:
        raise ArtifactError(
            f"`dvc repro {stage}` ended with exit code {done.returncode} in '{project}': its words are above; the folder is left to look at"
        )


def _explain(files: VersionFiles, *, again: Path, digest: str, asked: str, number: int) -> str:
    lines = [f"  - {line}" for line in _differences(_manifest(files.adapter), _manifest(again))]
    lead = f"version {number} was not reproduced: its adapter has the digest {asked[:12]}, the one made again {digest[:12]} ('{again}')."
    if not lines:
        return f"{lead} By their manifests settings, data, libraries and machine are the same: look for kernels that don't repeat themselves"
    return "\n".join([f"{lead} What differs:", *lines])


def _differences(first: Manifest, second: Manifest) -> Iterator[str]:
    parts = {
        "base": (first.base, second.base),
        "settings": (first.settings, second.settings),
        "data": (first.parents, second.parents),
        "libraries": (first.versions, second.versions),
        "machine": tuple(manifest.details.get("determinism", {}) for manifest in (first, second)),
        "how a step is run": tuple(manifest.details.get("step", {}) for manifest in (first, second)),
    }
    for part, (one, other) in parts.items():
        for name in dict.fromkeys([*one, *other]):
            if one.get(name) != other.get(name):
                yield f"{part}, {name}: {one.get(name)} then, {other.get(name)} now"


def _tell_libraries(files: VersionFiles) -> None:
    """Before the work: what is other already."""
    now = Manifest.make("", settings={}, parents={}).versions
    for name, version in _manifest(files.adapter).versions.items():
        if now.get(name) != version:
            logger.warning(
                "it was made with %s %s, here is %s: the digest may differ by that alone", name, version, now.get(name)
            )


def _manifest(folder: Path) -> Manifest:
    return read_manifest(folder, kind="TrainedAdapter")


def _say(command: Sequence[str], *, folder: Path | None = None) -> str:
    """What a command says, which must end well."""
    try:
        done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False)
    except OSError as error:
        raise RegistryError(f"'{command[0]}' can't be run ({error}): is it installed?") from error
    if done.returncode:
        raise RegistryError(f"`{' '.join(command[:4])} ...` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def _try(command: Sequence[str], *, folder: Path) -> str:
    """Nothing where a command ends well, else its last words."""
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False)
    return (done.stderr or done.stdout).strip() or f"exit code {done.returncode}" if done.returncode else ""


def _dvc(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "dvc", *arguments]


def _environment() -> dict[str, str]:
    """This process's, so that the stages' `python` is this Python."""
    inherited = {name: value for name, value in os.environ.items() if name not in _GIT_VARIABLES}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**inherited, "PATH": path}
