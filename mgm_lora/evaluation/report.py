"""The report: one HTML file that holds everything it shows, for the eyes of a sceptical engineer.

No network, no other file, light and dark, screen and paper. It chooses what is drawn; the template draws it.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mgm_lora.artifacts import new_file
from mgm_lora.evaluation import formatting
from mgm_lora.evaluation.charts import Bar, Curve, IntervalChart, LineChart, interval_chart, line_charts
from mgm_lora.evaluation.comparison import Comparison
from mgm_lora.evaluation.confusion import Confusion, confusable_types, confuse
from mgm_lora.evaluation.gallery import Gallery, make_gallery
from mgm_lora.evaluation.intervals import MAX_BCA_PICTURES, Estimate
from mgm_lora.evaluation.predictions import Prediction, of_set, type_name
from mgm_lora.evaluation.provenance import gather_provenance
from mgm_lora.evaluation.scoring import scored
from mgm_lora.evaluation.sources import BASELINE
from mgm_lora.settings import REFERENCE, SUBJECT

_TEMPLATES = Path(__file__).parent / "templates"
_TEMPLATE = "comparison.html.j2"

logger = logging.getLogger(__name__)


def write_report(comparison: Comparison, *, pictures: Path, destination: Path) -> None:
    """Writes the report.

    Args:
        comparison: what is shown.
        pictures: the folder that the samples' picture names are relative to.
        destination: the HTML file.

    Raises:
        PictureError: a picture of the gallery can't be read.
    """
    template = _environment().get_template(_TEMPLATE)
    text = template.render(
        comparison=comparison,
        rows={row.name: row for row in comparison.rows},
        score_types=sorted({type_name(item) for item in _scored(comparison, SUBJECT)}),
        retention=_retention_chart(comparison),
        forgetting=_forgetting_chart(comparison),
        by_type=_type_chart(comparison),
        losses=_loss_charts(comparison),
        confusions=_confusions(comparison),
        gallery=_gallery(comparison, pictures),
        provenance=gather_provenance(comparison),
        subject=SUBJECT,
        reference=REFERENCE,
        baseline=BASELINE,
        max_bca_pictures=MAX_BCA_PICTURES,
    )
    with new_file(destination) as file:
        file.write_text(text, encoding="utf-8")
    logger.info("report of %.1f MB at %s", len(text.encode()) / 1e6, destination)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("arm_label", "percent", "percent_range", "points", "points_range", "count", "quantity", "unbroken")
    environment.filters.update({name: getattr(formatting, name) for name in names})
    return environment


def _scored(comparison: Comparison, arm: str) -> list[Prediction]:
    return scored(comparison.arms[arm].first.predictions, evaluation=comparison.evaluation)


def _retention_chart(comparison: Comparison) -> IntervalChart | None:
    overall = [
        Bar(formatting.arm_label(row.name), row.name, row.retention, "all scored questions")
        for row in comparison.rows
        if row.retention
    ]
    by_type = [
        Bar(formatting.arm_label(row.name), row.name, estimate, name)
        for row in comparison.rows
        if row.name == SUBJECT and len(row.retention_by_type) > 1
        for name, estimate in row.retention_by_type.items()
    ]
    if not overall:
        return None
    target = comparison.settings.retention_target
    return interval_chart(
        [*overall, *by_type],
        text=formatting.percent_interval,
        tick=_percent_tick,
        marks=[(target, f"target {_percent_tick(target)}"), (1.0, "as good as full")],
        limits=(0.0, 10.0),
    )


def _forgetting_chart(comparison: Comparison) -> IntervalChart | None:
    bars = [Bar(formatting.arm_label(row.name), row.name, row.forgetting) for row in comparison.rows if row.forgetting]
    if not bars:
        return None
    return interval_chart(
        bars, text=formatting.points_interval, tick=_points_tick, marks=[(0.0, "nothing forgotten")], limits=(-1.0, 1.0)
    )


def _type_chart(comparison: Comparison) -> IntervalChart:
    by_arm = {row.name: row.by_type for row in comparison.rows}
    included = comparison.evaluation.score_types or tuple(by_arm[BASELINE])
    ordered = sorted(by_arm[BASELINE], key=lambda name: (name not in included, name))
    bars = [
        Bar(formatting.arm_label(arm), arm, estimates[name], _type_heading(name, estimates[name], name in included))
        for name in ordered
        for arm, estimates in by_arm.items()
    ]
    return interval_chart(bars, text=formatting.percent_interval, tick=_percent_tick, limits=(0.0, 1.0))


def _type_heading(name: str, estimate: Estimate, is_scored: bool) -> str:
    heading = f"{name}, {formatting.count(estimate.num_samples)} questions"
    return heading if is_scored else f"{heading} (not in the score)"


def _loss_charts(comparison: Comparison) -> list[LineChart]:
    histories = {name: arm.first.history for name, arm in comparison.arms.items() if arm.first.history}
    panels = {
        "Training loss": {name: history.train for name, history in histories.items()},
        "Held-out loss": {name: history.heldout for name, history in histories.items()},
    }
    curves: dict[str, Sequence[Curve]] = {
        title: [
            Curve(formatting.arm_label(name), name, [(point.samples, point.loss) for point in points])
            for name, points in by_arm.items()
            if points
        ]
        for title, by_arm in panels.items()
    }
    return line_charts({title: panel for title, panel in curves.items() if panel})


def _confusions(comparison: Comparison) -> dict[str, dict[str, Confusion]]:
    by_arm = {arm: _scored(comparison, arm) for arm in (SUBJECT, REFERENCE)}
    return {
        name: {arm: confuse([item for item in items if type_name(item) == name]) for arm, items in by_arm.items()}
        for name in confusable_types(by_arm)
    }


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


def _percent_tick(value: float) -> str:
    return f"{100 * value:.6g} %"


def _points_tick(value: float) -> str:
    return f"{100 * value:+.6g} pp".replace("-", "−") if value else "0"
