"""The stage `register`: the runs in MLflow, and the adapter as a version."""

from pathlib import Path

from mgm_lora.registry.records import RegistrationSources
from mgm_lora.registry.versions import RegisteredVersion, register_adapter
from mgm_lora.settings import Settings
from mgm_lora.stages import paths

ARMS = ("base", "lora", "merged", "full")


def run(settings: Settings) -> RegisteredVersion:
    """Writes to MLflow's store, and artifacts/registered."""
    sources = RegistrationSources(
        samples=paths.SAMPLES,
        trained=paths.TRAINED,
        merged=paths.MERGED,
        scores=paths.SCORES,
        metrics=paths.METRICS,
        report=paths.REPORT,
        data_docs=paths.DATA_DOCS,
        lock=Path("dvc.lock"),
    )
    return register_adapter(sources, registry=settings.registry, arms=ARMS, destination=paths.REGISTERED)
