"""Finds registered versions by `models:/<name>@<alias>` or `models:/<name>/<version>`; doesn't load them."""

import atexit
import re
import shutil
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from mgm_lora.errors import RegistryError
from mgm_lora.registry.answering_model import ADAPTER_ARTIFACT
from mgm_lora.registry.store import Store, open_store
from mgm_lora.settings import RegistrySettings

SCHEME = "models:/"


def resolve_version(uri: str, *, registry: RegistrySettings) -> Path:
    """The folder of a version's TrainedAdapter: in the store itself where that is local, else a downloaded copy.

    Raises:
        RegistryError: there is no such version (those that exist are named), or its files can't be read.
    """
    store = open_store(registry)
    version = find_version(uri, store=store)
    try:
        location = store.client.get_model_version_download_uri(version.name, version.version)
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=location))
        if folder != Path(location):  # a copy, in a temporary folder that MLflow forgets
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        artifacts = Model.load(folder).flavors["python_function"]["artifacts"]
        adapter = folder / str(artifacts[ADAPTER_ARTIFACT]["path"])
    except (MlflowException, OSError, KeyError) as error:
        raise RegistryError(
            f"the files of '{uri}' can't be read ({error}): was it made by mgm-lora, and is MLflow's folder there?"
        ) from error
    if not adapter.is_dir():
        raise RegistryError(f"'{uri}' should hold an adapter at '{adapter}', which is not there")
    return adapter


def find_version(uri: str, *, store: Store) -> ModelVersion:
    """The version that a `models:/` address names; raises RegistryError, naming those that exist."""
    match = re.fullmatch(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))", uri)
    if match is None:
        raise RegistryError(f"'{uri}' names no version: write models:/<name>@<alias> or models:/<name>/<version>")
    try:
        if match["alias"]:
            return store.client.get_model_version_by_alias(match["name"], match["alias"])
        return store.client.get_model_version(match["name"], match["version"])
    except MlflowException as error:
        raise RegistryError(f"no version '{uri}' in '{store.tracking_uri}'. {_existing(store)}") from error


def _existing(store: Store) -> str:
    lines = []
    for model in store.client.search_registered_models():
        numbers = sorted(
            int(version.version) for version in store.client.search_model_versions(f"name = '{model.name}'")
        )
        aliases = [f"{model.name}@{alias}" for alias in model.aliases]
        lines.append(f"{model.name} with versions {', '.join(map(str, numbers)) or 'none'} {' '.join(aliases)}".strip())
    return "There are: " + "; ".join(lines) if lines else "Nothing is registered there yet: run `dvc repro`"
