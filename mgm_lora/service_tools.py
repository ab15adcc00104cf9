"""Commands on a team's services: up, down, services, health, backup, restore.

What they do lies in the project's `flows`, above this package, which isn't installed with it. So each is handed to a Python of its own, started in
the project's root, as a hand would start it.
"""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from mgm_lora.errors import ServiceError

Pool = Annotated[str, typer.Option(help="The work pool, as prefect.yaml names it.")]


def up(
    host: Annotated[
        str, typer.Option(help="Where the servers listen; other machines reach no loopback.")
    ] = "127.0.0.1",
    prefect_port: Annotated[int, typer.Option(help="Of Prefect's server.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Of MLflow's server.")] = 5000,
    pool: Pool = "gpu-24gb",
) -> None:
    """Starts the team's services on this machine: Prefect's server, MLflow's server, a worker for the card, the schedules.

    Again: what has ended is started again, all else is left alone. The variable MGM_LORA_DATABASE names a PostgreSQL server to keep the record on.
    """
    ports = ["--prefect-port", str(prefect_port), "--mlflow-port", str(mlflow_port)]
    _hand_over("flows.services", "up", "--host", host, *ports, "--pool", pool)


def down() -> None:
    """Ends what `mgm-lora up` has started, the worker and its flow runs first."""
    _hand_over("flows.services", "down")


def services() -> None:
    """Shows what `mgm-lora up` has started, and whether it still runs; exit code 1 where something has ended."""
    _hand_over("flows.services", "status")


def health(pool: Pool = "gpu-24gb") -> None:
    """Checks services, schedules, worker, data's remote, registry, disk, clock, git and settings, and says what to do; 1 where something is wrong."""
    _hand_over("flows.health", "--pool", pool)


def backup(folder: Annotated[Path, typer.Argument(help="A folder that isn't there yet.")]) -> None:
    """Copies the services' records, and MLflow's artifacts, to a folder; the services may go on meanwhile.

    Data, models and code aren't in it: `dvc push`, `git push`.
    """
    _hand_over("flows.backup", "backup", str(folder))


def restore(folder: Annotated[Path, typer.Argument(help="What `mgm-lora backup` made.")]) -> None:
    """Puts a backup in the place of what lies here, which is set aside. The services must be down."""
    _hand_over("flows.backup", "restore", str(folder))


def _hand_over(module: str, *arguments: str) -> None:
    file = Path(*module.split(".")).with_suffix(".py")
    if not file.is_file():
        raise ServiceError(f"'{Path.cwd()}' has no {file}: run it in the root of the project, as `git clone` made it")
    code = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    if code:
        raise typer.Exit(code)
