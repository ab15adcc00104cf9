"""What `mgm-lora health` looks at of DVC: whether the remote takes and gives, and locks that nobody holds any more. It knows no Prefect."""

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from dvc.config import NoRemoteError, RemoteConfigError
from dvc.exceptions import DvcException
from dvc.lock import LockError

from mgm_lora.errors import RemoteError
from mgm_lora.stages.health import Finding
from tasks.remote import SharedRemote
from tasks.repository import open_repository


def check_dvc(root: Path) -> Iterator[Finding]:
    """The remote first, then the locks."""
    yield check_remote(root)
    yield check_locks(root)


def check_remote(root: Path) -> Finding:
    """Whether the default remote keeps a small document, and gives it back; it is removed again."""
    try:
        with open_repository(root) as repo:
            try:
                store = repo.cloud.get_remote_odb(None, "health", hash_name="md5-dos2unix")
            except (NoRemoteError, RemoteConfigError) as error:
                advice = "data and models are on this machine alone: `dvc remote add --default NAME URL`, `dvc push`"
                return Finding("DVC remote", "note", f"none to be used: {error}", advice)
            remote = SharedRemote(fs=store.fs, root=store.path)
    except LockError:
        return Finding(
            "DVC remote", "note", "another dvc is at work, so it was not looked at", "ask again when that has ended"
        )
    except (DvcException, ImportError) as error:  # the latter: a package for that kind of remote
        return Finding(
            "DVC remote",
            "wrong",
            str(error),
            "install what it names; `dvc doctor`, `dvc config --list` and `dvc status` say more",
        )
    return _try_remote(remote)


def check_locks(root: Path) -> Finding:
    """DVC's rwlock names processes by number and outlives them; its other locks are the kernel's, and don't."""
    path = root / ".dvc" / "tmp" / "rwlock"
    remove = f"when no dvc is at work here: `rm {path.relative_to(root)}`"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        holders = [
            *entries.get("write", {}).values(),
            *(each for some in entries.get("read", {}).values() for each in some),
        ]
    except FileNotFoundError:
        return Finding("DVC locks", "ok", "none")
    except (ValueError, AttributeError):
        found = f"{path.relative_to(root)} is broken: a dvc was killed while it wrote it, and all others fail now"
        return Finding("DVC locks", "wrong", found, remove)
    left = {each["pid"]: each["cmd"] for each in holders if not _is_held(each)}
    if left:
        named = ", ".join(f"process {pid} (`{command}`)" for pid, command in sorted(left.items()))
        return Finding(
            "DVC locks",
            "wrong",
            f"left by {named}, which has ended: another program that gets the number blocks",
            remove,
        )
    working = len({each["pid"] for each in holders})
    return Finding("DVC locks", "ok", f"held by {working} dvc at work" if working else "none")


def _try_remote(remote: SharedRemote) -> Finding:
    name, where = f"health/{uuid.uuid4().hex}", str(remote.fs.unstrip_protocol(remote.root))
    advice = "until then runs go on with what is here, but `dvc push` and stages on another machine fail"
    try:
        remote.write(name, "asked by mgm-lora health")
        kept = remote.read(name)
    except RemoteError as error:
        return Finding("DVC remote", "wrong", str(error), f"look at network, space and permission; {advice}")
    finally:
        with suppress(Exception):  # nothing more is lost by a document that stays
            remote.remove(name)
    if kept is None:
        return Finding("DVC remote", "wrong", f"{where} doesn't give back what it took", advice)
    return Finding("DVC remote", "ok", f"{where} takes and gives")


def _is_held(holder: Mapping[str, Any]) -> bool:
    """Whether the process of that number is still the one that took the lock: it was told with its arguments."""
    try:
        arguments = " ".join(psutil.Process(int(holder["pid"])).cmdline())
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    return str(holder["cmd"]).partition(" ")[2] in arguments
