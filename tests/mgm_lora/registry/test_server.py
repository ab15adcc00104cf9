"""Registering at MLflow's own server, which keeps the artifacts itself."""

from pathlib import Path

import mlflow
import pandas as pd

from mgm_lora.artifacts import digest_folder
from mgm_lora.registry.lookup import resolve_version
from mgm_lora.registry.records import RegistrationSources
from mgm_lora.registry.versions import register_adapter
from mgm_lora.settings import RegistrySettings


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
