"""What tests of the registry, and of the doorways to it, share: a finished pipeline, and an empty MLflow store."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def finished_pipeline(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's folder after the stage `compare`. Read only."""
    from .pipelines import make_pipeline

    root = tmp_path_factory.mktemp("pipeline")
    make_pipeline(root, base=tiny_base)
    return root


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables and no experiment of ours: making them takes seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
