"""A project with two registered versions, for the doorways to the registry."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgm_lora.settings import Settings, read_settings

PARAMS = Path("params.yaml")


@pytest.fixture(scope="session")
def two_versions(finished_pipeline: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 scores badly, version 2, the challenger, well; nobody is the champion. Read only."""
    from mgm_lora.artifacts import write_json
    from mgm_lora.registry.versions import register_adapter

    from ...mlflow_store import forget_store
    from ..pipelines import (
        ARMS,
        BETTER,
        COST,
        DESTINATION,
        REGISTRY,
        SOURCES,
        WORSE,
        copy_project,
        write_adapter,
        write_arm_scores,
        write_pipeline_params,
    )

    root = tmp_path_factory.mktemp("versions") / "project"
    copy_project(finished_pipeline, empty_store, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for seed, retention in ((WORSE, 0.5), (BETTER, 0.97)):
            write_adapter(root, seed=seed)
            write_arm_scores(root, "lora-5")
            write_pipeline_params(root, {"training": {"num_epochs": seed}})
            write_json(root / SOURCES.metrics / "train/lora-5.json", COST)
            figures = {"score": retention, "retention": retention, "forgetting": 0.01}
            write_json(root / SOURCES.metrics / "comparison.json", {"arms": {"lora": figures, "base": {"score": 0.25}}})
            register_adapter(SOURCES, registry=REGISTRY, arms=ARMS, destination=DESTINATION)
        forget_store()
    return root


@pytest.fixture
def versions(two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same, a test's own, as the working directory."""
    from ...mlflow_store import forget_store

    root = tmp_path / "project"
    shutil.copytree(two_versions, root)
    monkeypatch.chdir(root)
    yield root
    forget_store()


@pytest.fixture
def settings(versions: Path) -> Settings:
    """Of that project, with rules that forty questions can show; its figures allow."""
    return allowing(read_settings(PARAMS))


def allowing(settings: Settings, **rules: object) -> Settings:
    """The settings with other rules of promotion."""
    promotion = type(settings.promotion)(**{**dict(settings.promotion), "champion_margin": 0.1, **rules})
    return settings.model_copy(update={"promotion": promotion})
