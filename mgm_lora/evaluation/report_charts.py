"""The report's charts: which figures of a comparison go onto which chart, under which names.

Where places on a chart come from is in `charts` and `pareto`; how a chart is drawn, in the templates.
"""

from collections.abc import Sequence
from functools import partial
from statistics import mean

from mgm_lora.evaluation import formatting
from mgm_lora.evaluation.charts import Bar, Curve, IntervalChart, LineChart, interval_chart, line_charts
from mgm_lora.evaluation.comparison import Comparison
from mgm_lora.evaluation.formatting import arm_label
from mgm_lora.evaluation.intervals import Estimate
from mgm_lora.evaluation.pareto import Offer, ScatterChart, scatter_chart
from mgm_lora.evaluation.rows import ArmRow
from mgm_lora.evaluation.sources import BASELINE, MERGED, LossPoint
from mgm_lora.evaluation.trials import ShownTrial
from mgm_lora.settings import SUBJECT


def retention_chart(comparison: Comparison) -> IntervalChart | None:
    """Of all arms over all scored questions, and of the subject by task."""
    overall = [_bar(row, row.retention, "all scored questions") for row in comparison.rows if row.retention]
    by_task = [
        _bar(row, estimate, name)
        for row in comparison.rows
        if row.name == SUBJECT and len(row.retention_by_type) > 1
        for name, estimate in row.retention_by_type.items()
    ]
    return _retention(comparison, [*overall, *by_task])


def task_retention_chart(comparison: Comparison) -> IntervalChart | None:
    """Of all arms by task; none where there is one task, or no further arm."""
    tasks = {name: None for row in comparison.rows for name in row.retention_by_type}
    rows = [row for row in comparison.rows if row.name != MERGED and row.retention_by_type]
    if len(tasks) < 2 or len(rows) < 2:
        return None
    bars = [
        _bar(row, row.retention_by_type[name], name) for name in tasks for row in rows if name in row.retention_by_type
    ]
    return _retention(comparison, bars)


def forgetting_chart(comparison: Comparison) -> IntervalChart | None:
    """Answers lost; none where nothing is known."""
    bars = [_bar(row, row.forgetting) for row in comparison.rows if row.forgetting]
    if not bars:
        return None
    return interval_chart(
        bars, text=formatting.points_interval, tick=_points_tick, marks=[(0.0, "nothing forgotten")], limits=(-1.0, 1.0)
    )


def loss_rise_chart(comparison: Comparison) -> IntervalChart | None:
    """Text loss risen; none where nothing is known."""
    bars = [_bar(row, row.loss_rise) for row in comparison.rows if row.loss_rise]
    if not bars:
        return None
    return interval_chart(bars, text=formatting.nats_interval, tick=_nats_tick, marks=[(0.0, "as before")])


def type_chart(comparison: Comparison) -> IntervalChart:
    """Every arm's score by question type, scored ones first."""
    by_arm = {row.name: row for row in comparison.rows if row.name != MERGED}
    base = by_arm[BASELINE].by_type
    included = comparison.evaluation.score_types or tuple(base)
    ordered = sorted(base, key=lambda name: (name not in included, name))
    bars = [
        _bar(row, row.by_type[name], _type_heading(name, row.by_type[name], name in included))
        for name in ordered
        for row in by_arm.values()
    ]
    return interval_chart(bars, text=formatting.percent_interval, tick=percent_tick, limits=(0.0, 1.0))


def loss_charts(comparison: Comparison) -> list[LineChart]:
    """Training and held-out loss of all arms, means over seeds."""
    panels: dict[str, list[Curve]] = {"Training loss": [], "Held-out loss": []}
    for name, arm in comparison.arms.items():
        histories = [run.history for run in arm.runs if run.history]
        if histories:
            curves = ([item.train for item in histories], [item.heldout for item in histories])
            for panel, runs in zip(panels.values(), curves, strict=True):
                if runs[0]:
                    panel.append(Curve(arm_label(name), name, _mean_curve(runs)))
    return line_charts({title: curves for title, curves in panels.items() if curves})


def cost_charts(comparison: Comparison) -> list[ScatterChart]:
    """Score over a step's memory and over the trained parameters, of the arms and of the trials that stand beside them."""
    rows = [row for row in comparison.rows if row.cost.trainable_parameters]
    trials = comparison.trials.shown
    memory = [(row, row.cost.step_memory_gib or row.cost.planned_memory_gib) for row in rows]
    memory_of_trials = [(trial, trial.step_memory_gib or trial.planned_memory_gib) for trial in trials]
    charts = []
    if rows and all(cost for _, cost in memory):
        costs = [cost for _, cost in (*memory, *memory_of_trials) if cost]
        unit, factor = ("GiB", 1.0) if max(costs) >= 1.0 else ("MiB", 1024.0)
        offers = [*_offers(memory, factor=factor), *_trial_offers(memory_of_trials, factor=factor)]
        write = partial(formatting.quantity, unit=unit)
        charts.append(_scatter(offers, "Score and memory", "memory of a step", write))
    if rows:
        parameters = _offers([(row, row.cost.trainable_parameters) for row in rows])
        of_trials = _trial_offers([(trial, trial.trainable_parameters) for trial in trials])
        offers = [*parameters, *of_trials]
        charts.append(_scatter(offers, "Score and parameters", "trained parameters", formatting.short_count))
    return charts


def percent_tick(value: float) -> str:
    """0.95 -> `95 %`."""
    return f"{100 * value:.6g} %"


def _bar(row: ArmRow, estimate: Estimate, group: str = "") -> Bar:
    return Bar(arm_label(row.name), row.name, estimate, group)


def _retention(comparison: Comparison, bars: Sequence[Bar]) -> IntervalChart | None:
    if not bars:
        return None
    target = comparison.settings.retention_target
    return interval_chart(
        bars,
        text=formatting.percent_interval,
        tick=percent_tick,
        marks=[(target, f"target {percent_tick(target)}"), (1.0, "as good as full")],
        limits=(0.0, 10.0),
    )


def _type_heading(name: str, estimate: Estimate, is_scored: bool) -> str:
    heading = f"{name}, {formatting.count(estimate.num_samples)} questions"
    return heading if is_scored else f"{heading} (not in the score)"


def _mean_curve(runs: Sequence[Sequence[LossPoint]]) -> list[tuple[float, float]]:
    """Over the trainings, at the places that all of them have."""
    by_place: dict[int, list[float]] = {}
    for points in runs:
        for point in points:
            by_place.setdefault(point.samples, []).append(point.loss)
    return [(float(place), mean(losses)) for place, losses in sorted(by_place.items()) if len(losses) == len(runs)]


def _offers(costs: Sequence[tuple[ArmRow, float | None]], *, factor: float = 1.0) -> list[Offer]:
    return [
        Offer(arm_label(row.name), row.name, factor * cost, row.score.value, row.score.low, row.score.high)
        for row, cost in costs
        if cost is not None
    ]


def _trial_offers(costs: Sequence[tuple[ShownTrial, float | None]], *, factor: float = 1.0) -> list[Offer]:
    """Without their intervals: what is drawn small is not to stretch the axis."""
    return [
        Offer(trial.label, trial.arm, factor * cost, trial.score, trial.score, trial.score, is_trial=True)
        for trial, cost in costs
        if cost is not None
    ]


def _scatter(offers: Sequence[Offer], title: str, x_label: str, cost_text: formatting.Write) -> ScatterChart:
    return scatter_chart(offers, title=title, x_label=x_label, cost_text=cost_text, score_text=percent_tick)


def _points_tick(value: float) -> str:
    return f"{100 * value:+.6g} pp".replace("-", "−") if value else "0"


def _nats_tick(value: float) -> str:
    return f"{value:+.4g}".replace("-", "−") if value else "0"
