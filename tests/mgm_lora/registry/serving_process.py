"""Starts a server of a version as people do, asks it, and ends it; and a host of pictures, as others have them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mgm_lora.serving.limits import variable

_START_SECONDS = 300.0


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def refusal(self) -> tuple[int, str]:
        """Status and sentence of a refusal."""
        assert set(self.body) == {"error_code", "message"}
        return self.status, self.body["message"]


@dataclass(frozen=True)
class Server:
    """A running one."""

    address: str

    def ask(self, *rows: dict[str, Any], **params: Any) -> Answer:
        """Asks questions in MLflow's form."""
        return self.post(json.dumps({"dataframe_records": rows, **({"params": params} if params else {})}).encode())

    def post(self, body: bytes, content_type: str = "application/json") -> Answer:
        """Sends whatever."""
        request = urllib.request.Request(
            f"{self.address}/invocations", data=body, headers={"Content-Type": content_type}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return Answer(response.status, json.loads(response.read()), dict(response.headers))
        except urllib.error.HTTPError as error:
            content = error.read().decode()
            return Answer(error.code, json.loads(content) if content[:1] == "{" else content, dict(error.headers))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def mlflow_command(uri: str, *, port: int) -> list[str]:
    """As in docs/serving.md."""
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    return [mlflow, "models", "serve", "-m", uri, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]


def own_command(version: str, *, port: int) -> list[str]:
    """As in docs/serving.md."""
    return [sys.executable, "-m", "mgm_lora", "serve", version, "--port", str(port)]


def environment(limits: dict[str, Any]) -> dict[str, str]:
    """Of a server's process."""
    return {
        # an earlier test of this process may have named a store by its variables
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH" and "MLFLOW" not in name},
        "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # mlflow starts `uvicorn` by its name
        **{variable(name): str(value) for name, value in limits.items()},
    }


@contextmanager
def running(command: Sequence[str], *, port: int, root: Path, log: Path, **limits: Any) -> Iterator[Server]:
    """A server that is ready; it has ended, with all that it started, when the block has."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=root, env=environment(limits), stdout=output, stderr=output, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _await_ready(address, process=process, log=log)
        yield Server(address)
    finally:
        process.terminate()
        process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own group: whatever it left


def _await_ready(address: str, *, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as response:
                assert response.status == 200
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)


class PictureHost:
    """Serves files of a folder, and what a host may do instead: `/held/N` waits until it is let go, `/to?URL` sends on."""

    def __init__(self, folder: Path) -> None:
        self._release = threading.Event()
        self.arrived = threading.Semaphore(0)
        """Released for each request that is held."""
        self.paths: list[str] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.paths.append(self.path)
                path, _, query = self.path.partition("?")
                if path == "/to":
                    self.send_response(302)
                    self.send_header("Location", query)
                    self.end_headers()
                    return
                if path.startswith("/held/"):
                    host.arrived.release()
                    host._release.wait(60)
                    path = path.removeprefix("/held")
                if path == "/slow":
                    self.send_response(200)
                    self.end_headers()
                    self._drip()
                    return
                file = folder / path.removeprefix("/")
                self.send_response(200 if file.is_file() else 404)
                self.end_headers()
                if file.is_file():
                    self.wfile.write(file.read_bytes())

            def _drip(self) -> None:
                try:
                    while not host._release.wait(0.05):
                        self.wfile.write(b"x")
                except OSError:  # the asker has gone
                    pass

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.name = f"127.0.0.1:{self._server.server_port}"
        self.address = f"http://{self.name}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def hold(self) -> None:
        """What comes to `/held` from now on."""
        self._release.clear()

    def let_go(self) -> None:
        """Of what is held, and will be."""
        self._release.set()

    def close(self) -> None:
        self.let_go()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def picture_host(folder: Path) -> Iterator[PictureHost]:
    """A host that ends with the block."""
    host = PictureHost(folder)
    try:
        yield host
    finally:
        host.close()
