"""`mgm-lora backup FOLDER` and `mgm-lora restore FOLDER`: what the services have written down, and MLflow's artifacts with it.

A backup is a folder with a manifest, which comes last: a folder without one is none. The databases are copied by their own means, so that servers may
go on meanwhile, and before the artifacts: whatever a record names is then among these. Data, models and code have remotes of their own.
"""

import argparse
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from flows.databases import NAMES, make_databases, postgresql_server
from flows.started import read_started
from mgm_lora.artifacts import digest_file, size_on_disk
from mgm_lora.errors import ArtifactError, MgmLoraError, ServiceError, StorageError

MANIFEST = "backup.json"
FILES = ("prefect.db", "mlflow.db")
ARTIFACTS = "mlartifacts"

logger = logging.getLogger(__name__)


def back_up(folder: Path) -> None:
    """Makes `folder`; where that fails nothing of that name is left.

    Raises:
        ServiceError: there is something already, nothing to copy, or PostgreSQL's own programs are missing or refuse.
    """
    if folder.exists():
        raise ServiceError(f"'{folder}' is there already: name a folder that isn't")
    unfinished = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        server = postgresql_server()
        if server:
            _dump(server, unfinished)
        else:
            _copy_files(unfinished)
        if "MLFLOW_ARTIFACTS_DESTINATION" in os.environ:
            logger.info("MLflow's artifacts lie elsewhere (MLFLOW_ARTIFACTS_DESTINATION), and aren't copied")
        elif Path(ARTIFACTS).is_dir():
            shutil.copytree(ARTIFACTS, unfinished / ARTIFACTS)
        _write_manifest(unfinished)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    logger.info("%s holds %d files, %.1f MiB", folder, len(_files(folder)), size_on_disk(folder) / 1024**2)


def restore(folder: Path) -> None:
    """Puts a whole backup where the services look; what lies there is set aside in build/before-restore-TIME.

    Raises:
        ServiceError: the services run.
        ArtifactError: it is no whole backup.
    """
    running = [name for name, each in read_started().items() if each.process()]
    if running:
        raise ServiceError(f"{', '.join(running)} still runs: `mgm-lora down` first")
    _check(folder)
    aside = Path("build") / f"before-restore-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    server = postgresql_server()
    if server:
        _load(server, folder)
    for name in (ARTIFACTS, *(() if server else FILES)):
        _set_aside(name, aside=aside)
        if (folder / name).is_dir():
            shutil.copytree(folder / name, name)
        elif (folder / name).is_file():
            shutil.copy2(folder / name, name)
    logger.info(
        "restored from %s; what lay here is in %s. `mgm-lora up`",
        folder,
        aside if aside.exists() else "no folder: nothing did",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, or the error's exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _parse(arguments)
    command: Callable[[Path], None] = back_up if options.command == "backup" else restore
    try:
        command(options.folder)
    except MgmLoraError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (OSError, sqlite3.Error, shutil.Error) as error:
        print(
            f"{options.command} of '{options.folder}' failed: {error}. Is there space and permission?", file=sys.stderr
        )
        return StorageError.exit_code
    return 0


def _copy_files(folder: Path) -> None:
    found = [name for name in FILES if Path(name).is_file()]
    if not found:
        raise ServiceError(f"nothing to back up: neither {' nor '.join(FILES)} lies in '{Path.cwd()}'")
    for name in found:
        with closing(sqlite3.connect(name)) as source, closing(sqlite3.connect(folder / name)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, whatever the server uses


def _dump(server: URL, folder: Path) -> None:
    for name in NAMES:
        _run_postgresql("pg_dump", "--format=custom", f"--file={folder / name}.dump", f"--dbname={name}", server=server)


def _load(server: URL, folder: Path) -> None:
    make_databases()
    for name in NAMES:
        ask = ("--clean", "--if-exists", "--no-owner", "--exit-on-error", "--single-transaction")
        _run_postgresql("pg_restore", *ask, f"--dbname={name}", str(folder / f"{name}.dump"), server=server)


def _run_postgresql(program: str, *arguments: str, server: URL) -> None:
    where = {"PGHOST": server.host, "PGPORT": server.port, "PGUSER": server.username, "PGPASSWORD": server.password}
    told: Mapping[str, str] = {name: str(value) for name, value in where.items() if value}
    try:
        done = subprocess.run(
            [program, *arguments], env={**os.environ, **told}, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise ServiceError(
            f"{program} isn't installed (Debian, Ubuntu: postgresql-client), as new as the server or newer"
        ) from error
    if done.returncode != 0:
        raise ServiceError(f"`{program}` failed: {done.stderr.strip()}")


def _write_manifest(folder: Path) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    manifest = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "files": {str(path.relative_to(folder)): digest_file(path) for path in _files(folder)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _check(folder: Path) -> None:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wanted: dict[str, str] = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"'{folder}' is no backup: no {MANIFEST} that can be read ({error})") from error
    found = {str(path.relative_to(folder)): digest_file(path) for path in _files(folder) if path.name != MANIFEST}
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        raise ArtifactError(
            f"the backup '{folder}' isn't as it was made: {', '.join(differing[:5])} are missing, changed or new. Take another"
        )


def _set_aside(name: str, *, aside: Path) -> None:
    for path in (Path(name), Path(f"{name}-wal"), Path(f"{name}-shm")):  # the latter are SQLite's, and belong to it
        if path.exists():
            aside.mkdir(parents=True, exist_ok=True)
            path.rename(aside / path.name)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.backup",
        description="Copies the services' record and MLflow's artifacts to a folder (backup), or puts them back (restore). Run it in the root"
        " of the project. Services may run during a backup, not during a restore.",
    )
    parser.add_argument("command", choices=("backup", "restore"))
    parser.add_argument("folder", type=Path, help="the backup")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
