"""Finds registered versions by `models:/<name>@<alias>` or `models:/<name>/<version>`, and brings their files; doesn't load them."""

import atexit
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from mgm_lora.errors import RegistryError
from mgm_lora.registry.answering_model import ADAPTER_ARTIFACT
from mgm_lora.registry.evidence import FOLDER, Evidence
from mgm_lora.registry.lock import is_lock
from mgm_lora.registry.store import Store, open_store
from mgm_lora.settings import RegistrySettings

SCHEME = "models:/"


@dataclass(frozen=True)
class VersionFiles:
    """What a version holds, on this machine."""

    version: ModelVersion
    adapter: Path
    """The folder of its TrainedAdapter."""
    evidence: Evidence


def resolve_version(uri: str, *, registry: RegistrySettings) -> Path:
    """The folder of a version's TrainedAdapter: in the store itself where that is local, else a downloaded copy.

    Raises:
        RegistryError: there is no such version (those that exist are named), or its files can't be read.
    """
    store = open_store(registry)
    return fetch_version(find_version(uri, store=store), store=store).adapter


def fetch_version(version: ModelVersion, *, store: Store) -> VersionFiles:
    """A version's files, brought as `resolve_version` does; raises RegistryError where they can't be read."""
    uri = f"{SCHEME}{version.name}/{version.version}"
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
    return VersionFiles(version, adapter, Evidence(folder / FOLDER))


def version_uri(text: str, *, model_name: str) -> str:
    """The address that a person means by `3`, `champion`, or an address of that model's own.

    Raises:
        RegistryError: it is of another model.
    """
    if not text.startswith(SCHEME):
        return f"{SCHEME}{model_name}/{text}" if text.isdecimal() else f"{SCHEME}{model_name}@{text}"
    name = re.split("[@/]", text.removeprefix(SCHEME), maxsplit=1)[0]
    if name != model_name:
        raise RegistryError(
            f"'{text}' is of the model '{name}', and this is about versions of '{model_name}' (registry.model_name): name one of these, by its"
            " number or alias"
        )
    return text


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
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise RegistryError(f"no version '{uri}' in '{store.tracking_uri}'. {_existing(store)}") from error


def find_model(name: str, *, store: Store) -> RegisteredModel:
    """The registered model of that name; raises RegistryError, naming those that exist."""
    try:
        return store.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise RegistryError(f"no model '{name}' in '{store.tracking_uri}'. {_existing(store)}") from error


def _existing(store: Store) -> str:
    lines = []
    for model in [model for model in store.client.search_registered_models() if not is_lock(model)]:
        numbers = sorted(
            int(version.version) for version in store.client.search_model_versions(f"name = '{model.name}'")
        )
        aliases = [f"{model.name}@{alias}" for alias in model.aliases]
        lines.append(f"{model.name} with versions {', '.join(map(str, numbers)) or 'none'} {' '.join(aliases)}".strip())
    return "There are: " + "; ".join(lines) if lines else "Nothing is registered there yet: run `dvc repro`"
