"""Figures of a benchmark with their intervals, bootstrapped by picture (`evaluation/intervals.py`).

Shares, ratios (precision, F1), and means over groups that count alike however large they are (MME's subtasks). It knows no benchmark.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from mgm_lora.evaluation.intervals import Estimate, estimate_ratio, estimate_share, picture_clusters
from mgm_lora.settings import EvaluationSettings

EVERYTHING = "all"
_DIGITS = 6


class Figure(BaseModel):
    """One number of a benchmark."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str
    """Of which answers: `all`, or `answer type: number`."""
    metric: str
    value: float
    low: float | None
    """None: too few pictures for an interval."""
    high: float | None
    out_of: float
    """The best that can be had; 1: a share."""
    num_questions: int
    num_pictures: int


def share_figure(
    values: Sequence[float], *, pictures: Sequence[str], group: str, metric: str, evaluation: EvaluationSettings
) -> Figure:
    """The mean of what answers are worth, 0 to 1."""
    clusters = picture_clusters([[picture] for picture in pictures])
    return _figure(estimate_share(values, clusters_S=clusters, evaluation=evaluation), group=group, metric=metric)


def ratio_figure(
    parts: Sequence[float],
    wholes: Sequence[float],
    *,
    pictures: Sequence[str],
    group: str,
    metric: str,
    evaluation: EvaluationSettings,
) -> Figure:
    """The sum of the parts over that of the wholes, which hold them; 0 where there is no whole."""
    clusters = picture_clusters([[picture] for picture in pictures])
    estimate = estimate_ratio(parts, wholes, clusters_S=clusters, evaluation=evaluation)
    if estimate is not None:
        return _figure(estimate, group=group, metric=metric)
    value = sum(parts) / sum(wholes) if sum(wholes) else 0.0
    return Figure(
        group=group,
        metric=metric,
        value=round(value, _DIGITS),
        low=None,
        high=None,
        out_of=1.0,
        num_questions=len(parts),
        num_pictures=len(set(pictures)),
    )


def mean_of_groups_figure(
    values: Sequence[float],
    *,
    groups: Sequence[str],
    pictures: Sequence[str],
    group: str,
    metric: str,
    out_of: float,
    evaluation: EvaluationSettings,
) -> Figure:
    """The mean over groups of each group's mean, 0 to 1, times `out_of`.

    Only what varies within a group belongs into the interval: so a value counts by how far it is from its group's mean, as much more as its group
    is small. The mean of such values is the mean of the means, and its bootstrap varies as that of a sample of each group.
    """
    names, index = np.unique(groups, return_inverse=True)
    sizes = np.bincount(index)
    means = np.bincount(index, weights=np.asarray(values, dtype=np.float64)) / sizes
    weights = len(values) / (len(names) * sizes[index])
    centred = weights * (np.asarray(values, dtype=np.float64) - means[index]) + means.mean()
    clusters = picture_clusters([[picture] for picture in pictures])
    estimate = estimate_share(centred, clusters_S=clusters, evaluation=evaluation)
    return _figure(estimate, group=group, metric=metric, out_of=out_of)


def _figure(estimate: Estimate, *, group: str, metric: str, out_of: float = 1.0) -> Figure:
    return Figure(
        group=group,
        metric=metric,
        value=round(out_of * estimate.value, _DIGITS),
        low=round(out_of * estimate.low, _DIGITS),
        high=round(out_of * min(estimate.high, 1.0), _DIGITS),
        out_of=out_of,
        num_questions=estimate.num_samples,
        num_pictures=estimate.num_pictures,
    )
