"""A team's services on one machine: `python -m flows.services up` starts Prefect's server, MLflow's server and a worker, `down` ends them.

`up` is idempotent: what runs is left alone, what has ended is started again; then the work pool, the card's limit, the deployments of
prefect.yaml and the automation against dead runs are brought to what they should be. What was started is remembered by process id and start
time in build/services/, beside the logs, so that `down` ends these processes and no other. It knows no flow.
"""

import argparse
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from mgm_lora.errors import MgmLoraError, ServiceError

FOLDER = Path("build/services")
"""Logs, and what was started; relative to the project's root."""
HEARTBEAT_SECONDS = 30
"""Between two heartbeats of a flow run; Prefect's least."""
_START_SECONDS = 60.0
_END_SECONDS = 30.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Addresses:
    """Where the servers listen."""

    host: str = "127.0.0.1"
    prefect_port: int = 4200
    mlflow_port: int = 5000

    @property
    def prefect(self) -> str:
        """The UI."""
        return f"http://{self.host}:{self.prefect_port}"

    @property
    def mlflow(self) -> str:
        """The UI, and the tracking URI."""
        return f"http://{self.host}:{self.mlflow_port}"


@dataclass(frozen=True)
class Started:
    """A process of ours."""

    pid: int
    since: float
    """Its start by psutil, seconds since 1970: another process that gets the same id later has another."""
    address: str

    def process(self) -> psutil.Process | None:
        """None where it has ended."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if process.create_time() == self.since and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


@dataclass(frozen=True)
class Service:
    """What is to run."""

    name: str
    arguments: tuple[str, ...]
    """Of this Python."""
    environment: Mapping[str, str]
    address: str
    is_ready: Callable[[], bool]
    port: int | None = None


def up(addresses: Addresses, *, pool: str) -> None:
    """Starts what doesn't run, and brings pool, limit, deployments and automation up to date.

    Raises:
        ServiceError: another program has a port, or a service doesn't start; its log is named.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    api = {"PREFECT_API_URL": f"{addresses.prefect}/api"}
    servers = [_prefect_server(addresses), _mlflow_server(addresses)]
    fresh = [service for service in servers if _start(service)]
    for service in servers:
        _wait(service)
    _run("flows.services_setup", pool, environment=api)
    _run("prefect", "--no-prompt", "deploy", "--all", environment=api)
    worker = _worker(pool, api=api)
    if _start(worker):
        fresh.append(worker)
        _wait(worker)
    logger.info("started: %s", ", ".join(service.name for service in fresh) or "nothing, all of it runs already")


def down() -> None:
    """Ends what `up` has started, the worker with its flow runs first. Raises ServiceError where one doesn't end."""
    started = _read_started()
    for name in reversed(started):
        process = started[name].process()
        if process is None:
            logger.info("%s (process %d) had ended already", name, started[name].pid)
        else:
            _end(name, process)
        _write_started({other: each for other, each in _read_started().items() if other != name})


def status() -> dict[str, str]:
    """What `up` has started, and whether it still runs, by name."""
    return {
        name: f"runs (process {each.pid}), {each.address}" if each.process() else f"ended; see {_log(name)}"
        for name, each in _read_started().items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where it went well, 1 where `status` found something ended, else the error's exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    options = _parse(arguments)
    addresses = Addresses(options.host, options.prefect_port, options.mlflow_port)
    try:
        if options.command == "up":
            up(addresses, pool=options.pool)
            print(_where_to_look(addresses, pool=options.pool))
        elif options.command == "down":
            down()
    except MgmLoraError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.command == "status":
        found = status()
        print("\n".join(f"{name:<8} {told}" for name, told in found.items()) or "nothing was started here")
        return int(any(told.startswith("ended") for told in found.values()))
    return 0


def _prefect_server(addresses: Addresses) -> Service:
    # PostgreSQL: the same variable with another address
    database = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{Path.cwd() / 'prefect.db'}"}
    return Service(
        name="prefect",
        arguments=("prefect", "server", "start", "--host", addresses.host, "--port", str(addresses.prefect_port)),
        environment=database | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
        address=addresses.prefect,
        is_ready=lambda: _answers(f"{addresses.prefect}/api/health"),
        port=addresses.prefect_port,
    )


def _mlflow_server(addresses: Addresses) -> Service:
    store = os.environ.get("MLFLOW_BACKEND_STORE_URI", "sqlite:///mlflow.db")
    artifacts = os.environ.get("MLFLOW_ARTIFACTS_DESTINATION", str(Path.cwd() / "mlartifacts"))
    where = ("--host", addresses.host, "--port", str(addresses.mlflow_port), "--workers", "1")
    return Service(
        name="mlflow",
        arguments=("mlflow", "server", "--backend-store-uri", store, "--artifacts-destination", artifacts, *where),
        environment={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        address=addresses.mlflow,
        is_ready=lambda: _answers(f"{addresses.mlflow}/health"),
        port=addresses.mlflow_port,
    )


def _worker(pool: str, *, api: Mapping[str, str]) -> Service:
    log = _log("worker")
    return Service(
        name="worker",
        arguments=("prefect", "worker", "start", "--pool", pool, "--limit", "1", "--name", f"{socket.gethostname()}"),
        environment={
            **api,
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
            "PREFECT_WORKER_QUERY_SECONDS": "2",  # of its own it looks for runs every 10 seconds
            "PYTHONUNBUFFERED": "1",
        },
        address=f"pool {pool}",
        is_ready=lambda: log.is_file() and "started!" in log.read_text(encoding="utf-8", errors="replace"),
    )


def _start(service: Service) -> bool:
    """Whether it had to be started."""
    started = _read_started()
    if service.name in started and started[service.name].process():
        return False
    if service.port is not None and _is_taken(service.address):
        raise ServiceError(
            f"{service.name} was to listen at {service.address}, but another program does: end that, or choose another port"
            f" (--{service.name}-port)"
        )
    with _log(service.name).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *service.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=service.environment | os.environ,  # what the caller sets goes first
            start_new_session=True,
        )
    since = psutil.Process(process.pid).create_time()
    _write_started({**started, service.name: Started(process.pid, since, service.address)})
    return True


def _wait(service: Service) -> None:
    end = time.monotonic() + _START_SECONDS
    while not service.is_ready():
        ended = _read_started()[service.name].process() is None
        if ended or time.monotonic() > end:
            log = _log(service.name)
            why = "has ended" if ended else f"isn't ready after {_START_SECONDS:.0f} s"
            words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-10:]
            raise ServiceError("\n".join([f"{service.name} {why}. The last lines of {log}:", *words]))
        time.sleep(0.2)


def _end(name: str, process: psutil.Process) -> None:
    below = process.children(recursive=True)
    process.terminate()
    _, alive = psutil.wait_procs([process, *below], timeout=_END_SECONDS)
    for left in alive:
        logger.warning("%s: process %d did not end within %.0f s and was killed", name, left.pid, _END_SECONDS)
        with suppress(psutil.NoSuchProcess):
            left.kill()
    _, alive = psutil.wait_procs(alive, timeout=_END_SECONDS)
    if alive:
        raise ServiceError(f"{name}: processes {[left.pid for left in alive]} can't be ended: end them by hand")
    logger.info("%s has ended", name)


def _run(*arguments: str, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        words = (done.stdout + done.stderr).strip().splitlines()[-10:]
        raise ServiceError("\n".join([f"`python -m {' '.join(arguments)}` failed. Its last lines:", *words]))


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (URLError, OSError):
        return False


def _is_taken(address: str) -> bool:
    host, _, port = address.removeprefix("http://").rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, int(port))) == 0


def _log(name: str) -> Path:
    return FOLDER / f"{name}.log"


def _read_started() -> dict[str, Started]:
    try:
        entries = json.loads((FOLDER / "started.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {name: Started(**entry) for name, entry in entries.items()}


def _write_started(started: Mapping[str, Started]) -> None:
    unfinished = FOLDER / ".started.json.part"
    text = json.dumps({name: asdict(each) for name, each in started.items()}, indent=1)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(FOLDER / "started.json")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.services",
        description="Starts (up), ends (down) and shows (status) a team's services on this machine: Prefect's server, MLflow's server and a"
        " worker for the card. Run it in the repository's root.",
        epilog="Databases: prefect.db and mlflow.db in this folder; PREFECT_SERVER_DATABASE_CONNECTION_URL and MLFLOW_BACKEND_STORE_URI name"
        " others, as PostgreSQL's. Logs: build/services/.",
    )
    parser.add_argument("command", choices=("up", "down", "status"))
    defaults = Addresses()
    told = "(default: %(default)s)"
    parser.add_argument(
        "--host", default=defaults.host, help=f"where the servers listen {told}; other machines reach no loopback"
    )
    parser.add_argument("--prefect-port", type=int, default=defaults.prefect_port, help=told)
    parser.add_argument("--mlflow-port", type=int, default=defaults.mlflow_port, help=told)
    parser.add_argument("--pool", default="gpu-24gb", help=f"the work pool, as prefect.yaml names it {told}")
    return parser.parse_args(arguments)


def _where_to_look(addresses: Addresses, *, pool: str) -> str:
    return (
        f"Prefect  {addresses.prefect}   (export PREFECT_API_URL={addresses.prefect}/api)\n"
        f"MLflow   {addresses.mlflow}   (registry.tracking_uri, or as it is: the same store)\n"
        f"worker   pool {pool}\n"
        "run now  prefect deployment run pipeline/nightly"
    )


if __name__ == "__main__":
    sys.exit(main())
