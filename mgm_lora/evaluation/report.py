"""The report: one HTML file that holds everything it shows, for the eyes of a sceptical engineer; and the same as Markdown, for a pull request.

No network, no other file, light and dark, screen and paper. It gathers what is shown; the templates draw it.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mgm_lora.artifacts import new_file
from mgm_lora.evaluation import formatting, report_charts
from mgm_lora.evaluation.comparison import Comparison
from mgm_lora.evaluation.confusion import Confusion, confusable_types, confuse
from mgm_lora.evaluation.descriptions import describe_arm, settings_difference
from mgm_lora.evaluation.gallery import Gallery, make_gallery
from mgm_lora.evaluation.intervals import MAX_BCA_PICTURES
from mgm_lora.evaluation.learned import UpdateMap, arrange
from mgm_lora.evaluation.metrics import METRICS_TOLD
from mgm_lora.evaluation.palette import colours
from mgm_lora.evaluation.predictions import Prediction, of_set, type_name
from mgm_lora.evaluation.provenance import gather_provenance
from mgm_lora.evaluation.scoring import scored
from mgm_lora.evaluation.sources import BASELINE, MERGED
from mgm_lora.evaluation.trials import group_told, trial_memory, trials_told
from mgm_lora.settings import REFERENCE, SUBJECT

_TEMPLATES = Path(__file__).parent / "templates"
_FORMATS = (
    *("arm_label", "percent", "percent_range", "percent_interval", "points", "points_range", "points_interval"),
    *("nats", "nats_range", "nats_interval", "p_value", "memory", "seconds", "count", "quantity", "unbroken"),
)

logger = logging.getLogger(__name__)


def write_report(comparison: Comparison, *, pictures: Path, destination: Path) -> None:
    """Writes the report, and beside it the same figures as Markdown.

    Args:
        comparison: what is shown.
        pictures: the folder that the samples' picture names are relative to.
        destination: the HTML file; the Markdown has its name with `.md`.

    Raises:
        PictureError: a picture of the gallery can't be read.
    """
    figures = _figures(comparison)
    page = _environment(is_html=True).get_template("comparison.html.j2")
    text = page.render(
        **figures,
        colours=colours(list(comparison.arms)),
        retention=report_charts.retention_chart(comparison),
        task_retention=report_charts.task_retention_chart(comparison),
        forgetting=report_charts.forgetting_chart(comparison),
        loss_rise=report_charts.loss_rise_chart(comparison),
        by_type=report_charts.type_chart(comparison),
        losses=report_charts.loss_charts(comparison),
        costs=report_charts.cost_charts(comparison),
        learned=_learned(comparison),
        final_ranks=_final_ranks(comparison),
        confusions=_confusions(comparison),
        gallery=_gallery(comparison, pictures),
        max_bca_pictures=MAX_BCA_PICTURES,
    )
    with new_file(destination) as file:
        file.write_text(text, encoding="utf-8")
    with new_file(destination.with_suffix(".md")) as file:
        template = _environment(is_html=False).get_template("comparison.md.j2")
        file.write_text(template.render(**figures), encoding="utf-8")
    logger.info("report of %.1f MB at %s", len(text.encode()) / 1e6, destination)


def _figures(comparison: Comparison) -> dict[str, Any]:
    """What both forms of the report show."""
    return {
        "comparison": comparison,
        "trials": comparison.trials,
        "rows": {row.name: row for row in comparison.rows},
        "about": {name: describe_arm(arm) for name, arm in comparison.arms.items()},
        "score_types": sorted({type_name(item) for item in _scored(comparison, SUBJECT)}),
        "difference": settings_difference(comparison.arms),
        "provenance": gather_provenance(comparison),
        "compared": [name for name in comparison.arms if name != MERGED],
        "pairs": {(pair.first, pair.second): pair for pair in comparison.pairs},
        "metric_told": METRICS_TOLD[comparison.evaluation.metric],
        "subject": SUBJECT,
        "reference": REFERENCE,
        "baseline": BASELINE,
        "merged": MERGED,
    }


def _environment(*, is_html: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=is_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({name: getattr(formatting, name) for name in _FORMATS})
    environment.filters.update(trials_told=trials_told, group_told=group_told, trial_memory=trial_memory)
    return environment


def _scored(comparison: Comparison, arm: str) -> list[Prediction]:
    return scored(comparison.arms[arm].first.predictions, evaluation=comparison.evaluation)


def _learned(comparison: Comparison) -> dict[str, UpdateMap]:
    """By arm, of its first training; the subject's and the reference's first."""
    names = [SUBJECT, REFERENCE, *(name for name in comparison.arms if name not in (SUBJECT, REFERENCE))]
    maps = {name: arrange(comparison.arms[name].first.updates) for name in names}
    return {name: found for name, found in maps.items() if found}


def _final_ranks(comparison: Comparison) -> dict[str, dict[str, int]]:
    """By arm and module, where ranks were taken away."""
    manifests = {name: manifest for arm in comparison.arms.values() for name, manifest in arm.first.manifests.items()}
    arms = {name: manifests.get(f"trained/{arm.first.scores.arm}") for name, arm in comparison.arms.items()}
    return {
        name: manifest.details["final_ranks"]
        for name, manifest in arms.items()
        if manifest and "final_ranks" in manifest.details
    }


def _confusions(comparison: Comparison) -> dict[str, dict[str, Confusion]]:
    by_arm = {arm: _scored(comparison, arm) for arm in (SUBJECT, REFERENCE)}
    return {
        name: {arm: confuse(_of_type(items, name)) for arm, items in by_arm.items()}
        for name in confusable_types(by_arm)
    }


def _of_type(items: Sequence[Prediction], name: str) -> list[Prediction]:
    return [item for item in items if type_name(item) == name]


def _gallery(comparison: Comparison, pictures: Path) -> Gallery:
    predictions = {
        name: [*_scored(comparison, name), *of_set(arm.first.predictions, "known")]
        for name, arm in comparison.arms.items()
    }
    return make_gallery(
        predictions,
        pictures=pictures,
        num_samples=comparison.settings.num_gallery_samples,
        seed=comparison.evaluation.seed,
    )
