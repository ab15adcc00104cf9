"""Makes this clone, on the machine with the card, the worker for pipelines on another machine: `python -m flows.card_worker`.

It checks what both machines must share (the git remote, the DVC remote, Prefect's server), sets the work pool up, deploys
`flows.card_stage` into it, and becomes a Prefect worker, which ends with Ctrl-C or SIGTERM. Run again, it changes nothing.
"""

import argparse
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import get_current_settings

from flows.card_stage import card_stage
from flows.services import HEARTBEAT_SECONDS
from flows.services_setup import set_up
from mgm_lora.errors import MgmLoraError, ServiceError, WorkplaceError
from tasks.remote import SharedRemote
from tasks.repository import open_repository

_CLONE = "MGM_LORA_CLONE"
"""The variable by which a worker tells its flow runs where its clone is: the deployment, on the server, holds no path of this machine."""

logger = logging.getLogger(__name__)


def prepare(clone: Path, *, pool: str) -> None:
    """Checks what is shared, and sets up pool and deployment.

    Raises:
        WorkplaceError: the clone has no git remote.
        RemoteError: it has no DVC remote that other machines reach.
        ServiceError: Prefect's server doesn't answer, or no address of it is set.
    """
    _check_git(clone)
    with open_repository(clone, wait=True) as repo:
        remote = SharedRemote.of(repo)
    logger.info("DVC remote  %s", remote.where(""))
    address = get_current_settings().api.url
    if not address:
        raise ServiceError("no address of Prefect's server: export PREFECT_API_URL=http://HOST:4200/api")
    try:
        set_up(pool)
        _deploy(pool)
    except httpx.TransportError as error:
        raise ServiceError(
            f"Prefect's server at {address} doesn't answer: {error}. Is it up, and reached from here?"
        ) from error
    logger.info("server      %s\npool        %s", address, pool)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; becomes the worker, or returns the error's exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    options = _parse(arguments)
    try:
        prepare(Path.cwd(), pool=options.pool)
    except MgmLoraError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return _become_worker(options.pool)


def _check_git(clone: Path) -> None:
    done = subprocess.run(["git", "remote", "get-url", "origin"], cwd=clone, capture_output=True, check=False)
    if done.returncode != 0:
        raise WorkplaceError(
            f"'{clone}' has no git remote `origin`: commits of the other machine come from there. Start the worker in a `git clone`"
        )


def _deploy(pool: str) -> None:
    with get_client(sync_client=True) as client:
        assert isinstance(client, SyncPrefectClient)
        client.create_deployment(
            flow_id=UUID(str(client.create_flow(card_stage))),
            name=pool,
            work_pool_name=pool,
            entrypoint=f"{card_stage.fn.__module__}.{card_stage.fn.__name__}",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": f"{{{{ ${_CLONE} }}}}"}}],
            parameter_openapi_schema=card_stage.parameters.model_dump(),
            description=card_stage.description,
            tags=["mgm-lora"],
        )


def _become_worker(pool: str) -> NoReturn:
    environment = {
        _CLONE: str(Path.cwd()),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # of its own it looks for runs every 10 seconds
        "PYTHONUNBUFFERED": "1",
    }
    worker = ["prefect", "worker", "start", "--pool", pool, "--limit", "1", "--name", socket.gethostname()]
    # what the caller sets goes first
    os.execve(sys.executable, [sys.executable, "-m", *worker], environment | os.environ)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.card_worker",
        description="Makes this machine run the stages that ask for the card, for pipelines on another machine. Run it in the root of"
        " a clone, with PREFECT_API_URL set to the team's server.",
        epilog="Stages run in a worktree of the clone, build/card, at the commit of the pipeline that asks; this clone's files stay as they"
        " are. Ends with Ctrl-C or SIGTERM, and the stage that runs with it.",
    )
    parser.add_argument("--pool", default="gpu-24gb", help="the work pool (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
