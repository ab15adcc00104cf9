"""The stage `compare`: the arms side by side, as figures and as a report."""

from pathlib import Path

from mgm_lora.evaluation.comparison import Comparison, compare, write_comparison
from mgm_lora.evaluation.report import write_report
from mgm_lora.evaluation.sources import ComparisonSources
from mgm_lora.settings import Settings
from mgm_lora.stages import paths


def run(settings: Settings, *, allow_failed: bool = False) -> Comparison:
    """Writes metrics/comparison.json, reports/plots and reports/comparison.html; with `allow_failed` also where arms are missing."""
    base = Path(settings.base.model)
    sources = ComparisonSources(
        samples=paths.SAMPLES,
        scores=paths.SCORES,
        trained=paths.TRAINED,
        merged=paths.MERGED,
        metrics=paths.METRICS,
        base=base if base.is_dir() else None,  # a hub id's size is not looked up: that would load torch
        sweeps=paths.SWEEP_RESULTS,
    )
    comparison = compare(
        sources, evaluation=settings.evaluation, comparison=settings.comparison, allow_failed=allow_failed
    )
    write_comparison(comparison, metrics=paths.METRICS / "comparison.json", plots=paths.PLOTS)
    write_report(comparison, pictures=settings.data.pictures, destination=paths.REPORT)
    return comparison
