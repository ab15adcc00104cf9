"""Serves a registered version over HTTP: MLflow's own scoring server, with a door before it that holds the limits which MLflow has none for."""

import logging
import os
import socket
from contextlib import closing

import mlflow.pyfunc
import uvicorn
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.pyfunc import scoring_server

from mgm_lora.errors import ServiceError
from mgm_lora.registry.lookup import SCHEME, find_version
from mgm_lora.registry.store import open_store, telling_store_errors
from mgm_lora.serving.door import QUESTIONS_PATH, Door
from mgm_lora.serving.limits import read_limits
from mgm_lora.settings import RegistrySettings

logger = logging.getLogger(__name__)


def serve_version(uri: str, *, registry: RegistrySettings, host: str, port: int, timeout_seconds: int) -> None:
    """Answers until it is ended (Ctrl-C, SIGTERM); requests that are in are answered first.

    Args:
        uri: `models:/<name>@<alias>` or `models:/<name>/<version>`; an alias is looked up once, at the start.
        registry: where it is registered.
        host: where it listens.
        port: likewise; 0: any free one, which the log names.
        timeout_seconds: of a request, its wait for others included.

    Raises:
        SettingsError: the environment asks for limits that are none.
        RegistryError: there is no such version, or the store can't be read.
        CheckpointError, BaseChangedError: its base isn't here, or is another.
        ServiceError: the port is taken.
    """
    limits = read_limits(os.environ)
    with closing(_listen(host, port)) as listener:  # a port that is taken is told before any weight is read
        with telling_store_errors(f"load '{uri}'", registry=registry):
            version = find_version(uri, store=open_store(registry))
            model = mlflow.pyfunc.load_model(f"{SCHEME}{version.name}/{version.version}")
        os.environ[MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.name] = str(timeout_seconds)
        door = Door(scoring_server.init(model), limits)
        listener.listen()
        address = "http://{}:{}".format(*listener.getsockname()[:2])
        logger.info("version %s of %s answers at %s%s", version.version, version.name, address, QUESTIONS_PATH)
        config = uvicorn.Config(door, log_level="warning", timeout_graceful_shutdown=timeout_seconds)
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that holds the port and takes no connection yet."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise ServiceError(
            f"can't listen at {host}:{port}: {error.strerror}. Name another with --host or --port"
        ) from error
    return listener
