"""Finding a version by its address."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mgm_lora.artifacts import digest_folder
from mgm_lora.errors import RegistryError
from mgm_lora.registry.lookup import resolve_version
from mgm_lora.registry.records import RegistrationSources
from mgm_lora.registry.versions import RegisteredVersion
from mgm_lora.settings import RegistrySettings


@pytest.mark.parametrize("uri", ["models:/demo@challenger", "models:/demo/1"])
def test_address_leads_to_the_adapters_files(
    uri: str, registered: RegisteredVersion, registry: RegistrySettings, sources: RegistrationSources
) -> None:
    assert digest_folder(resolve_version(uri, registry=registry)) == digest_folder(sources.trained / "lora-5")


@pytest.mark.parametrize("uri", ["models:/demo@champion", "models:/demo/7", "models:/other@challenger"])
def test_unknown_version_names_those_that_exist(
    uri: str, registered: RegisteredVersion, registry: RegistrySettings
) -> None:
    with pytest.raises(RegistryError, match=r"There are: demo with versions 1 demo@challenger"):
        resolve_version(uri, registry=registry)


def test_empty_registry_says_so(project: Path, registry: RegistrySettings) -> None:
    with pytest.raises(RegistryError, match="Nothing is registered there yet"):
        resolve_version("models:/demo@challenger", registry=registry)


@pytest.mark.parametrize("uri", ["models:/demo", "models:/demo/latest", "demo@challenger", "runs:/1/adapter"])
def test_text_that_is_no_address_is_explained(
    uri: str, registered: RegisteredVersion, registry: RegistrySettings
) -> None:
    with pytest.raises(RegistryError, match="models:/<name>@<alias>"):
        resolve_version(uri, registry=registry)


def test_version_whose_files_are_gone_is_told(
    register: Callable[[], RegisteredVersion], registry: RegistrySettings
) -> None:
    register()
    shutil.rmtree(Path("mlartifacts"))
    Path("mlartifacts").mkdir()
    with pytest.raises(RegistryError, match="can't be read"):
        resolve_version("models:/demo/1", registry=registry)
