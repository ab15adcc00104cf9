"""A team's services on one machine: `python -m flows.services up` starts Prefect's server, MLflow's server and a worker, `down` ends them.

`up` is idempotent: what runs is left alone, what has ended is started again; then the work pool, the card's limit, the deployments of
prefect.yaml and the automation against dead runs are brought to what they should be. `down` ends the processes that `up` has started, and no
other. It knows no flow.
"""

import argparse
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from flows.databases import VARIABLE as DATABASE_VARIABLE
from flows.databases import Databases, find_databases, make_databases
from flows.started import FOLDER, Started, read_started, write_started
from flows.worker_process import MLFLOW_PAGES
from mgm_lora.errors import MgmLoraError, ServiceError, StorageError

HEARTBEAT_SECONDS = 30
"""Between two heartbeats of a flow run; Prefect's least."""
VERSION = "MGM_LORA_VERSION"
"""The variable by which prefect.yaml learns the deployments' version."""
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
    databases = find_databases()
    make_databases()
    prefect, mlflow = _prefect_server(addresses, databases), _mlflow_server(addresses, databases)
    worker = _worker(pool, environment=api | {MLFLOW_PAGES: addresses.mlflow})
    fresh = [service for service in (prefect, mlflow) if _start(service)]
    _wait(prefect)
    _run("flows.services_setup", pool, environment=api)
    if _start(worker):  # it needs the pool, and gets ready while the flows are deployed
        fresh.append(worker)
    _run("prefect", "--no-prompt", "deploy", "--all", environment=api | {VERSION: deployed_version()})
    for service in (mlflow, worker):
        _wait(service)
    logger.info("started: %s", ", ".join(service.name for service in fresh) or "nothing, all of it runs already")


def down() -> None:
    """Ends what `up` has started, the worker with its flow runs first. Raises ServiceError where one doesn't end."""
    started = read_started()
    for name in reversed(started):
        process = started[name].process()
        if process is None:
            logger.info("%s (process %d) had ended already", name, started[name].pid)
        else:
            _end(name, process)
        write_started({other: each for other, each in read_started().items() if other != name})


def status() -> dict[str, str]:
    """What `up` has started, and whether it still runs, by name."""
    return {
        name: f"runs (process {each.pid}), {each.address}" if each.process() else f"ended; see {_log(name)}"
        for name, each in read_started().items()
    }


def deployed_version() -> str:
    """Of what `up` deploys: the commit that last changed prefect.yaml, or a flow; empty without git."""
    command = ["git", "log", "-1", "--format=%h", "--", "prefect.yaml", "flows"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


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
    except OSError as error:  # of our own small files: what servers meet they tell in their logs
        print(f"can't write in '{FOLDER}': {error.strerror or error}. Is there space and permission?", file=sys.stderr)
        return StorageError.exit_code
    if options.command == "status":
        found = status()
        print("\n".join(f"{name:<8} {told}" for name, told in found.items()) or "nothing was started here")
        return int(any(told.startswith("ended") for told in found.values()))
    return 0


def _prefect_server(addresses: Addresses, databases: Databases) -> Service:
    database = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": databases.prefect}
    return Service(
        name="prefect",
        arguments=("prefect", "server", "start", "--host", addresses.host, "--port", str(addresses.prefect_port)),
        environment=database | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
        address=addresses.prefect,
        is_ready=lambda: _answers(f"{addresses.prefect}/api/health"),
        port=addresses.prefect_port,
    )


def _mlflow_server(addresses: Addresses, databases: Databases) -> Service:
    artifacts = os.environ.get("MLFLOW_ARTIFACTS_DESTINATION", str(Path.cwd() / "mlartifacts"))
    where = ("--host", addresses.host, "--port", str(addresses.mlflow_port), "--workers", "1")
    return Service(
        name="mlflow",
        arguments=("mlflow", "server", "--artifacts-destination", artifacts, *where),
        environment={
            "MLFLOW_BACKEND_STORE_URI": databases.mlflow,  # no argument: a password may be in it
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
        address=addresses.mlflow,
        is_ready=lambda: _answers(f"{addresses.mlflow}/health"),
        port=addresses.mlflow_port,
    )


def _worker(pool: str, *, environment: Mapping[str, str]) -> Service:
    log = _log("worker")
    return Service(
        name="worker",
        arguments=("prefect", "worker", "start", "--pool", pool, "--limit", "1", "--name", f"{socket.gethostname()}"),
        environment={
            **environment,
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
            "PREFECT_WORKER_QUERY_SECONDS": "2",  # of its own it looks for runs every 10 seconds
            "PYTHONUNBUFFERED": "1",
        },
        address=f"pool {pool}",
        is_ready=lambda: log.is_file() and "started!" in log.read_text(encoding="utf-8", errors="replace"),
    )


def _start(service: Service) -> bool:
    """Whether it had to be started."""
    started = read_started()
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
            env=_environment(service),
            start_new_session=True,
        )
    write_started({**started, service.name: Started.of(process.pid, address=service.address)})
    return True


def _environment(service: Service) -> dict[str, str]:
    """What the caller sets goes first; the databases' password only to whom it concerns."""
    own = {name: value for name, value in os.environ.items() if name != DATABASE_VARIABLE}
    return {**service.environment, **own}


def _wait(service: Service) -> None:
    end = time.monotonic() + _START_SECONDS
    while not service.is_ready():
        ended = read_started()[service.name].process() is None
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


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.services",
        description="Starts (up), ends (down) and shows (status) a team's services on this machine: Prefect's server, MLflow's server and a"
        " worker for the card. Run it in the repository's root.",
        epilog="Databases: prefect.db and mlflow.db in this folder, or on the PostgreSQL server that the variable MGM_LORA_DATABASE names"
        " (postgresql://USER:PASSWORD@HOST:5432). Logs: build/services/.",
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
