"""A PostgreSQL server for tests, from the system's own package, with a password and with nothing in it but what it brings."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

_USER = "nobody"  # PostgreSQL doesn't run as root, which tests may be


def _find_programs() -> Path | None:
    found = shutil.which("postgres")
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return Path(found).parent if found else packaged[-1] if packaged else None


PROGRAMS = _find_programs()
needs_postgresql = pytest.mark.skipif(PROGRAMS is None, reason="no PostgreSQL here (apt-get install postgresql)")


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of a server on loopback, `postgresql://USER:PASSWORD@HOST:PORT`, that ends with the block."""
    assert PROGRAMS is not None
    folder = Path(tempfile.mkdtemp(prefix="mgm-lora-postgresql-"))  # not below pytest's, where others may not look
    password = secrets.token_hex(16)
    try:
        (folder / "password").write_text(password)
        if os.geteuid() == 0:
            for path in (folder, folder / "password"):
                shutil.chown(path, _USER)
        data = folder / "data"
        ask = (
            "--username=team",
            f"--pwfile={folder / 'password'}",
            "--auth=scram-sha-256",
            "--no-sync",
            "--encoding=UTF8",
        )
        subprocess.run([*_as_user(), PROGRAMS / "initdb", f"--pgdata={data}", *ask], check=True, capture_output=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = ("-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off")
        with (folder.with_suffix(".log")).open("wb") as log:
            server = subprocess.Popen(
                [*_as_user(), PROGRAMS / "postgres", "-D", data, *options], stdout=log, stderr=log, cwd=folder
            )
        try:
            address = f"postgresql://team:{password}@127.0.0.1:{port}"
            _wait(address, server=server, log=folder.with_suffix(".log"))
            yield address
        finally:
            server.send_signal(signal.SIGINT)  # "fast": it ends its connections
            server.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".log").unlink(missing_ok=True)


def _as_user() -> list[str]:
    return ["setpriv", f"--reuid={_USER}", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []


def _wait(address: str, *, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            psycopg.connect(f"{address}/postgres", connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
