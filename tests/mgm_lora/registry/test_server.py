"""Registering at MLflow's own server, which keeps the artifacts itself."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from werkzeug.serving import make_server

from mgm_lora.artifacts import digest_folder
from mgm_lora.registry.lookup import resolve_version
from mgm_lora.registry.records import RegistrationSources
from mgm_lora.registry.versions import register_adapter
from mgm_lora.settings import RegistrySettings


@pytest.fixture
def served(project: Path, registry: RegistrySettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[RegistrySettings]:
    """Settings that name a server in a thread of this process, as `mlflow server --artifacts-destination` sets it up."""
    from mlflow.server import app

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


def test_server_has_the_version_and_gives_it_back(
    served: RegistrySettings,
    project: Path,
    sources: RegistrationSources,
    questions: pd.DataFrame,
    adapter_answers: list[str],
) -> None:
    arms = ("base", "lora-5", "merged", "full-5")
    registered = register_adapter(sources, registry=served, arms=arms, destination=Path("artifacts/registered"))
    again = register_adapter(sources, registry=served, arms=arms, destination=Path("artifacts/registered"))
    assert again == registered
    assert digest_folder(resolve_version("models:/demo@challenger", registry=served)) == digest_folder(
        sources.trained / "lora-5"
    )
    assert mlflow.pyfunc.load_model("models:/demo@challenger").predict(questions) == adapter_answers
    assert list((project / "served").rglob("adapter_model.safetensors"))
    assert not (project / "mlartifacts").exists()
