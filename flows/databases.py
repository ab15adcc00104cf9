"""Where Prefect and MLflow keep their record: SQLite files in the project, or two databases of one PostgreSQL server.

One variable, MGM_LORA_DATABASE, says which: a variable and no option, since it holds a password, and everyone on a machine sees options. It knows
no service.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from mgm_lora.errors import ServiceError

VARIABLE = "MGM_LORA_DATABASE"
NAMES = ("mgm_lora_prefect", "mgm_lora_mlflow")
_CONNECT_SECONDS = 10
_EXAMPLE = "postgresql://USER:PASSWORD@HOST:5432"


@dataclass(frozen=True)
class Databases:
    """Addresses, as each server takes them. Not to be shown: a password is in them."""

    prefect: str
    mlflow: str


def find_databases(environment: Mapping[str, str] = os.environ) -> Databases:
    """What the setting says; nothing is opened.

    Raises:
        ServiceError: it is no address of a PostgreSQL server.
    """
    server = postgresql_server(environment)
    if server is None:
        return Databases(f"sqlite+aiosqlite:///{Path.cwd() / 'prefect.db'}", "sqlite:///mlflow.db")
    prefect, mlflow = (_text(server.set(database=name)) for name in NAMES)
    return Databases(prefect.replace("postgresql:", "postgresql+asyncpg:", 1), mlflow)


def postgresql_server(environment: Mapping[str, str] = os.environ) -> URL | None:
    """None where SQLite is used. Raises ServiceError as `find_databases`."""
    told = environment.get(VARIABLE, "").strip()
    if not told:
        return None
    try:
        url = make_url(told)
    except ArgumentError:
        url = None
    if url is None or url.get_backend_name() != "postgresql" or url.database:
        raise ServiceError(
            f"{VARIABLE} must be {_EXAMPLE}, without a database's name ({' and '.join(NAMES)} are made there);"
            " what it says is not shown here, as a password may be in it"
        )
    return url.set(drivername="postgresql")


def make_databases(environment: Mapping[str, str] = os.environ) -> None:
    """Makes those that aren't there yet; does nothing for SQLite.

    Raises:
        ServiceError: the server can't be reached, or the user may not make them.
    """
    server = postgresql_server(environment)
    if server is None:
        return
    try:
        address = _text(server.set(database="postgres"))
        with psycopg.connect(address, autocommit=True, connect_timeout=_CONNECT_SECONDS) as connection:
            there = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
            for name in NAMES:
                if name not in there:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.Error as error:
        raise ServiceError(
            f"the PostgreSQL server at {server.host}:{server.port or 5432} that {VARIABLE} names can't be used: {str(error).strip()}."
            f" The user '{server.username}' must be let in, and have made, or may make, the databases {' and '.join(NAMES)}"
        ) from error


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)
