"""What `mgm-lora health` looks at on this machine: disk, git, settings, the cards' locks, MLflow's store. Of services and schedules it knows nothing.

Each check says what it found, and what to do where that is wrong. Nothing is changed.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from ruamel.yaml import YAML
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from mgm_lora.errors import MgmLoraError
from mgm_lora.registry.lock import hold_lock
from mgm_lora.registry.store import open_store, telling_store_errors
from mgm_lora.settings import RegistrySettings, read_settings
from mgm_lora.stages import paths
from mgm_lora.training.card_lock import read_holders

_MIN_FREE_GIB = 5.0
_GIB = 1024**3
_LOCK = "mgm-lora-health"
_PASSWORD_IN_ADDRESS = re.compile(r"://[^/@\s:]*:[^/@\s]+@")
_SECRET_NAME = re.compile(
    r"(^|_)(password|passwd|secret|api_key|access_key|access_token|auth_token)($|_)", re.IGNORECASE
)


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    subject: str
    state: Literal["ok", "note", "wrong"]
    """A note is worth a look, and nothing to be alarmed by."""
    found: str
    advice: str = ""


Check = Callable[[], Iterator[Finding]]


def check_machine(root: Path) -> Iterator[Finding]:
    """All of them, one after the other, for the project at `root`, which is the current folder."""
    yield check_disk(root)
    yield check_git(root)
    yield from check_secrets(root)
    yield from check_cards()
    yield check_store(root)


def check_disk(root: Path, *, min_free_gib: float = _MIN_FREE_GIB) -> Finding:
    """Whether there is room for another run."""
    free = shutil.disk_usage(root).free / _GIB
    if free >= min_free_gib:
        return Finding("disk", "ok", f"{free:.1f} GiB free")
    return Finding(
        "disk",
        "wrong",
        f"{free:.1f} GiB free at '{root}', less than {min_free_gib:g}",
        "`dvc gc --workspace` drops what no file here needs (push first), `rm -r build/checkpoints` half-finished trainings",
    )


def check_git(root: Path) -> Finding:
    """Whether what runs is a commit's."""
    done = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return Finding(
            "git", "note", "no git repository", "without commits no registered version can be made again: `git init`"
        )
    changed = [line[3:] for line in done.stdout.splitlines()]
    if not changed:
        return Finding("git", "ok", "everything is committed")
    named = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
    return Finding(
        "git",
        "note",
        f"not committed: {named}",
        "`git commit`: what is registered from it can't be made again otherwise",
    )


def check_secrets(root: Path) -> Iterator[Finding]:
    """Whether passwords lie where git, logs and the registry take them along: params.yaml, .dvc/config."""
    told = list(_secrets(root))
    yield from told
    if not told:
        yield Finding("secrets", "ok", "none in params.yaml and .dvc/config")


def check_cards() -> Iterator[Finding]:
    """Who trains now, and whether that goes on."""
    holders = read_holders()
    for card, holder in holders.items():
        try:
            stopped = psutil.Process(holder.pid).status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            continue  # it has just ended, and its lock with it
        if stopped:
            advice = f"`kill -CONT {holder.pid}` lets it go on, `kill -KILL {holder.pid}` ends it: it goes on from its checkpoint then"
            yield Finding(f"card {card}", "wrong", f"held by {holder}, and stopped", advice)
        else:
            yield Finding(f"card {card}", "ok", f"in use by {holder}")
    if not holders:
        yield Finding("card", "ok", "nobody trains")


def check_store(root: Path) -> Finding:
    """Whether MLflow's store answers, and lets a registered model be made: it is one of a health check's own, and deleted again."""
    try:
        registry = read_settings(root / paths.PARAMS).registry
        if _is_file_to_be_made(registry.tracking_uri):
            return Finding(
                "registry", "note", f"no {registry.tracking_uri} yet", "the stage register makes it: `dvc repro`"
            )
        _try_to_write(registry)
    except MgmLoraError as error:
        return Finding(
            "registry", "wrong", str(error), "see there: until then the stage register fails, and nothing is lost"
        )
    return Finding("registry", "ok", f"{registry.tracking_uri} answers and takes what it is given")


def _try_to_write(registry: RegistrySettings) -> None:
    store = open_store(registry)
    with telling_store_errors("write into MLflow's store", registry=registry), hold_lock(store, model_name=_LOCK):
        pass


def _is_file_to_be_made(tracking_uri: str) -> bool:
    try:
        url = make_url(tracking_uri)
    except ArgumentError:
        return False
    return url.get_backend_name() == "sqlite" and not Path(url.database or "").exists()


def _secrets(root: Path) -> Iterator[Finding]:
    params = root / paths.PARAMS
    if params.is_file():
        for name, value in _entries(YAML(typ="safe").load(params.read_text(encoding="utf-8"))):
            if value and (_SECRET_NAME.search(name.rpartition(".")[2]) or _PASSWORD_IN_ADDRESS.search(value)):
                advice = "git, logs and the registry take it along: put it into the environment (MLFLOW_TRACKING_PASSWORD), and change it"
                yield Finding("secrets", "wrong", f"{paths.PARAMS}: {name} looks like a password", advice)
    config = root / ".dvc" / "config"
    if config.is_file():
        for number, line in enumerate(config.read_text(encoding="utf-8").splitlines(), start=1):
            name, _, value = (part.strip() for part in line.partition("="))
            if value and (_SECRET_NAME.search(name) or _PASSWORD_IN_ADDRESS.search(value)):
                advice = "`dvc remote modify --local` keeps it in .dvc/config.local, which git leaves out; change the password"
                yield Finding("secrets", "wrong", f".dvc/config, line {number}: {name} looks like a password", advice)


def _entries(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _entries(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner, name)
    elif isinstance(value, str):
        yield name, value
