"""An MLflow store to register a small finished pipeline in, and one where it is registered already."""

import base64
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from werkzeug.serving import make_server

from mgm_lora.registry.records import RegistrationSources
from mgm_lora.registry.store import open_store
from mgm_lora.registry.versions import RegisteredVersion, register_adapter
from mgm_lora.settings import RegistrySettings

from ...mlflow_store import forget_store
from ..pipelines import (
    ARMS,
    DESTINATION,
    QUESTIONS,
    REGISTRY,
    SOURCES,
    copy_project,
    write_adapter,
    write_arm_scores,
    write_merged,
)


@pytest.fixture(autouse=True, scope="session")
def _no_bytecode() -> Iterator[None]:
    """Loading a version writes nothing into its folder, which other tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        patch.setattr(sys, "dont_write_bytecode", True)
        yield


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """On busy cores two threads wait for each other: a tiny model then answers a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def registered_project(
    finished_pipeline: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RegisteredVersion]:
    """A project that was registered once, for tests that only look."""
    root = tmp_path_factory.mktemp("registered") / "project"
    copy_project(finished_pipeline, empty_store, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        registered = register_adapter(SOURCES, registry=REGISTRY, arms=ARMS, destination=DESTINATION)
        forget_store()
    return root, registered


@pytest.fixture
def registered(
    registered_project: tuple[Path, RegisteredVersion], monkeypatch: pytest.MonkeyPatch
) -> Iterator[RegisteredVersion]:
    """The version of the registered project, which is the working directory. Read only."""
    root, registered = registered_project
    monkeypatch.chdir(root)
    open_store(REGISTRY)
    yield registered
    forget_store()


@pytest.fixture
def project(
    finished_pipeline: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A finished pipeline of the test's own as the working directory, with a store of its own."""
    root = tmp_path / "project"
    copy_project(finished_pipeline, empty_store, root)
    monkeypatch.chdir(root)
    yield root
    forget_store()


@pytest.fixture
def registry() -> RegistrySettings:
    """The project's default."""
    return REGISTRY


@pytest.fixture
def served(project: Path, registry: RegistrySettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[RegistrySettings]:
    """Settings that name a server in a thread of this process, as `mlflow server --artifacts-destination` sets it up."""
    from mlflow.server import app, handlers

    for name in ("_tracking_store", "_model_registry_store", "_artifact_repo"):
        monkeypatch.setattr(handlers, name, None)  # a process has one server: it would go on with the last test's store
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{project}/mlflow.db")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
    monkeypatch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(project / "served"))
    server = make_server("127.0.0.1", port, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield registry.model_copy(update={"tracking_uri": f"http://127.0.0.1:{port}"})
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def register(project: Path) -> Callable[[], RegisteredVersion]:
    """Registers what the project holds now."""
    return lambda: register_adapter(SOURCES, registry=REGISTRY, arms=ARMS, destination=DESTINATION)


@pytest.fixture
def sources() -> RegistrationSources:
    """Where the project has what is registered."""
    return SOURCES


@pytest.fixture
def questions(finished_pipeline: Path) -> pd.DataFrame:
    """Questions about the project's first pictures, in base64."""
    files = [finished_pipeline / f"data/pictures/{number}.png" for number in range(3)]
    pictures = [base64.b64encode(file.read_bytes()).decode() for file in files]
    return pd.DataFrame({"picture": pictures, "question": QUESTIONS})


@pytest.fixture
def adapter_answers(finished_pipeline: Path) -> list[str]:
    """What base and adapter answered to `questions`, which are the first held-out ones, without MLflow."""
    predictions = pd.read_parquet(finished_pipeline / SOURCES.scores / "lora-5/predictions.parquet")["prediction"]
    return list(predictions[:3])


@pytest.fixture
def train_again(project: Path) -> Callable[[int], None]:
    """Puts another adapter, of a seed, in the project."""

    def train(seed: int) -> None:
        write_adapter(project, seed=seed)
        write_arm_scores(project, "lora-5")

    return train


@pytest.fixture
def merge_again(project: Path) -> Callable[..., None]:
    """Writes the proof anew."""
    return lambda *, passed: write_merged(project, passed=passed)
