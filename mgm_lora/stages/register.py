"""The stage `register`: the runs in MLflow, and the adapter as a version."""

from mgm_lora.registry.records import RegistrationSources
from mgm_lora.registry.versions import RegisteredVersion, register_adapter
from mgm_lora.settings import SUBJECT, Settings
from mgm_lora.stages import paths


def run(settings: Settings) -> RegisteredVersion:
    """Writes to MLflow's store, and artifacts/registered."""
    seeds = settings.comparison.seeds
    sources = RegistrationSources(
        subject=paths.run_name(SUBJECT, seeds[0]),
        samples=paths.SAMPLES,
        trained=paths.TRAINED,
        merged=paths.MERGED,
        scores=paths.SCORES,
        metrics=paths.METRICS,
        report=paths.REPORT,
        data_docs=paths.DATA_DOCS,
        params=paths.PARAMS,
        pipeline=paths.PIPELINE,
        lock=paths.LOCK,
    )
    trained = [paths.run_name(arm, seed) for arm in settings.comparison.arms for seed in seeds]
    return register_adapter(
        sources, registry=settings.registry, arms=(*paths.UNTRAINED, *trained), destination=paths.REGISTERED
    )
