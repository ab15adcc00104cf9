"""Opening MLflow's store: where artifacts go, what a moved store does, and what is said when it can't be opened."""

import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mgm_lora.errors import RegistryError, StoreUnreachableError
from mgm_lora.registry.lookup import resolve_version
from mgm_lora.registry.store import open_store
from mgm_lora.registry.versions import RegisteredVersion
from mgm_lora.settings import RegistrySettings

pytestmark = pytest.mark.usefixtures("project")


def test_artifacts_lie_beside_the_file(project: Path, registry: RegistrySettings) -> None:
    store = open_store(registry)
    assert store.client.get_experiment(store.experiment_id).artifact_location == str(project / "mlartifacts")
    assert open_store(registry).experiment_id == store.experiment_id


def test_telemetry_is_off(registry: RegistrySettings, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.telemetry.client import get_telemetry_client

    open_store(registry)
    assert get_telemetry_client() is None


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_moved_or_copied_project_reads_and_writes_in_its_new_place(
    move: Callable[[Path, Path], object],
    project: Path,
    registry: RegistrySettings,
    register: Callable[[], RegisteredVersion],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = register()
    moved = project.parent / "moved 100%_here"
    move(project, moved)
    shutil.rmtree(project, ignore_errors=True)
    monkeypatch.chdir(moved)
    assert resolve_version("models:/demo/1", registry=registry).is_relative_to(moved)
    assert mlflow.pyfunc.load_model("models:/demo/1").metadata.signature is not None
    report = mlflow.artifacts.download_artifacts(run_id=first.parent_run_id, artifact_path="comparison.html")
    assert Path(report).read_text() == "<h1>report</h1>"
    (moved / "reports/comparison.html").write_text("new")
    assert register().version == first.version
    assert not project.exists()


def test_store_that_moved_without_its_artifacts_says_what_to_bring(
    project: Path, registry: RegistrySettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    open_store(registry)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(project / "mlflow.db", elsewhere)
    monkeypatch.chdir(elsewhere)
    with pytest.raises(RegistryError, match=r"made in '.*project' and has no 'mlartifacts' folder"):
        open_store(registry)


def test_store_keeps_an_experiments_own_artifact_location(project: Path, registry: RegistrySettings) -> None:
    own = project / "on-another-disk"
    mlflow.set_tracking_uri(f"sqlite:///{project}/mlflow.db")
    MlflowClient().create_experiment(registry.experiment, artifact_location=str(own))
    store = open_store(registry)
    assert store.client.get_experiment(store.experiment_id).artifact_location == str(own)


def test_deleted_experiment_says_how_to_restore_it(registry: RegistrySettings) -> None:
    store = open_store(registry)
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(RegistryError, match="mlflow experiments restore"):
        open_store(registry)


@pytest.mark.parametrize("place", ["dvc.lock", "data", "dvc.lock/below-a-file.db"])
def test_file_that_is_no_store_is_refused_at_once(project: Path, registry: RegistrySettings, place: str) -> None:
    (project / "dvc.lock").write_text("no database, and longer than the header of one " * 10)
    started = time.monotonic()
    with pytest.raises(RegistryError, match="can't be written"):
        open_store(registry.model_copy(update={"tracking_uri": f"sqlite:///{place}"}))
    assert time.monotonic() - started < 5


def test_server_that_is_not_there_is_told_by_its_address(
    registry: RegistrySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(StoreUnreachableError, match=rf"'{address}' doesn't answer"):
        open_store(registry.model_copy(update={"tracking_uri": address}))


def test_mlflows_old_file_store_is_refused(registry: RegistrySettings) -> None:
    with pytest.raises(RegistryError, match="can't open MLflow's store"):
        open_store(registry.model_copy(update={"tracking_uri": "./mlruns"}))
