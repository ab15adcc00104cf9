"""Opens MLflow's store: a SQLite file with its artifacts beside it, or a server.

With SQLite, MLflow writes absolute paths of artifacts into the database (a relative `artifact_location` is made
absolute too), so a project that is moved or copied would read, and write, in its old place. Here the artifacts lie in
`mlartifacts/` beside the file, and a store that finds itself elsewhere corrects its paths when it is opened. It knows
nothing of what is stored.
"""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.telemetry import set_telemetry_client
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from mgm_lora.errors import RegistryError, StoreUnreachableError
from mgm_lora.settings import RegistrySettings

logger = logging.getLogger(__name__)

ARTIFACTS_NAME = "mlartifacts"
FOLDER_VARIABLE = "MGM_LORA_STORE_FOLDER"
"""Names the folder that a SQLite store's relative path starts from; none: the current one. A sweep's trials run in a copy of the project and
write into the project's own store by it."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""So that MLflow's pages show runs, curves and models, not those for traces of language models."""
_PATH_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


@dataclass(frozen=True)
class Store:
    """An open store."""

    client: mlflow.MlflowClient
    experiment_id: str
    tracking_uri: str


def open_store(registry: RegistrySettings) -> Store:
    """Points MLflow at the store, and makes its tables and our experiment where they aren't there.

    Raises:
        RegistryError: it can't be reached or read, or it was moved here without its artifacts.
    """
    _prepare()
    database = _database(registry.tracking_uri)
    # absolute: MLflow keeps an opened store by its address, and would serve that of another working directory
    address = f"sqlite:///{database}" if database else registry.tracking_uri
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    try:
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(registry.experiment)
        if experiment is None:
            experiment = _create_experiment(client, name=registry.experiment, database=database)
    except MlflowException as error:
        raise store_error(error, doing="open MLflow's store", registry=registry) from error
    if experiment.lifecycle_stage != "active":
        raise RegistryError(
            f"MLflow's experiment '{registry.experiment}' was deleted: restore it with `mlflow experiments restore"
            f" --experiment-id {experiment.experiment_id}`, or set registry.experiment to another name"
        )
    if database is not None:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # "downloading" is a copy here
        _follow_move(database, recorded=Path(experiment.artifact_location))
    return Store(client=client, experiment_id=experiment.experiment_id, tracking_uri=address)


@contextmanager
def telling_store_errors(doing: str, *, registry: RegistrySettings) -> Iterator[None]:
    """A block whose errors of MLflow's are told as `store_error` does."""
    try:
        yield
    except MlflowException as error:
        raise store_error(error, doing=doing, registry=registry) from error


def store_error(error: Exception, *, doing: str, registry: RegistrySettings) -> RegistryError:
    """What to tell of an error of MLflow's, or of the files of its store: StoreUnreachableError where the same may go well later."""
    told = str(error).splitlines()[0] if str(error) else type(error).__name__
    place = f"registry.tracking_uri '{registry.tracking_uri}'"
    if _is_unreachable(error):
        return StoreUnreachableError(
            f"can't {doing}: {place} doesn't answer ({told}). Nothing is lost: start the server (`make up`), and run the same again"
        )
    if isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403):
        return RegistryError(
            f"can't {doing}: {place} lets nobody in who doesn't say who they are, or not you ({told}). Set MLFLOW_TRACKING_USERNAME and"
            " MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment"
        )
    return RegistryError(f"can't {doing}: {told}. Look at {place}, and whether there is space and permission")


def _is_unreachable(error: BaseException) -> bool:
    """Whether a request found no server, or one that couldn't answer now; MLflow raises without saying so."""
    if not isinstance(error, MlflowException):
        return isinstance(error, ConnectionError | TimeoutError)
    if error.get_http_status_code() in (429, 502, 503, 504):
        return True
    cause = error.__cause__ or error.__context__
    return isinstance(cause, OSError) and type(cause).__module__.partition(".")[0] in (
        "requests",
        "urllib3",
        "builtins",
    )


def _prepare() -> None:
    """Of this process: no telemetry, no chatter, and an answer within half a minute where there is no server."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    set_telemetry_client()  # MLflow makes its sender when it is imported; this takes it away again
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _database(tracking_uri: str) -> Path | None:
    """The SQLite file, seen to be writable (MLflow tries for minutes); None for any other store."""
    try:
        url = make_url(tracking_uri)
    except ArgumentError:
        return None
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    path = Path(os.environ.get(FOLDER_VARIABLE, ""), url.database).resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
    except (OSError, sqlite3.Error) as error:
        raise RegistryError(
            f"MLflow's store '{path}' can't be written ({error}): is it a SQLite file, is there space and permission,"
            " does another program hold it?"
        ) from error
    return path


def _create_experiment(client: mlflow.MlflowClient, *, name: str, database: Path | None) -> Experiment:
    location = None
    if database is not None:
        folder = database.parent / ARTIFACTS_NAME
        folder.mkdir(exist_ok=True)
        location = str(folder)
    try:
        experiment_id = client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
    except MlflowException:
        made_by_another = client.get_experiment_by_name(name)
        if made_by_another is None:
            raise
        return made_by_another
    return client.get_experiment(experiment_id)


def _follow_move(database: Path, *, recorded: Path) -> None:
    """Puts the new place for the old one in every path of a store that was moved or copied."""
    here = database.parent / ARTIFACTS_NAME
    if recorded == here or not recorded.is_absolute() or recorded.name != ARTIFACTS_NAME:
        return
    if not here.is_dir():
        raise RegistryError(
            f"MLflow's store '{database}' was made in '{recorded.parent}' and has no '{ARTIFACTS_NAME}' folder beside"
            " it here: bring that folder too, or move the file back"
        )
    old, new = str(recorded.parent), str(database.parent)
    num_changed = 0
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, column in _PATH_COLUMNS:
            num_changed += connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (new + "/", len(old) + 2, len(old) + 1, old + "/"),
            ).rowcount
    logger.warning("MLflow's store moved from '%s' to '%s': %d paths in it were corrected", old, new, num_changed)
