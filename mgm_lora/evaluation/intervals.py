"""Shares, differences and ratios with intervals, by resampling pictures.

Several questions share a picture, and their answers go wrong together: resampling questions as if they were
independent gives intervals that are too short. So whole pictures are drawn, with all their questions (a cluster
bootstrap); questions that share any picture are one cluster. Everything is a ratio of two sums over clusters, so arms
are paired by construction: a drawn picture counts in both sums.

The interval is scipy's BCa (Efron 1987), which follows the skew near 0 % and 100 %; above `MAX_BCA_PICTURES` pictures
the percentile interval, since BCa's jackknife is quadratic and the two agree there. Where all pictures behave alike
(all right, all wrong, two arms that never differ) a bootstrap sees no spread and would claim certainty. There the
interval is the exact one of Clopper and Pearson: of m pictures none behaved otherwise, so at the confidence at most
u = 1 - (alpha/2)^(1/m) of all pictures do, and the value could be u lower or higher. Two arms that differ on one or two
pictures are hardly better off (a bootstrap of 60 such pictures covers 79 % where it says 95 %), so an interval of a
difference or ratio is never shorter than that on either side.

It knows neither arms nor question types. Intervals speak of other pictures, not of other training seeds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import bootstrap

from mgm_lora.settings import EvaluationSettings

# S samples, C clusters (of samples that share pictures)
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

MIN_PICTURES_RIGHT = 20
"""Of the denominator of a ratio: with 20, one resample in e^20 holds none of them; with few, many divide by zero."""
MAX_BCA_PICTURES = 5000
_MAX_BATCH_ELEMENTS = 4_000_000
_DIGITS = 6


class Estimate(BaseModel):
    """A value with its interval, and what it was taken from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float
    num_samples: int
    num_pictures: int
    """Clusters that were resampled: pictures, or groups of questions that share several."""


def picture_clusters(pictures: Sequence[Sequence[str]]) -> Indices:
    """A cluster number per sample.

    Samples that share a picture, directly or through others, get the same; those without a picture are alone.
    """
    names = {name: column for column, name in enumerate(dict.fromkeys(name for row in pictures for name in row))}
    num_samples = len(pictures)
    rows = [index for index, row in enumerate(pictures) for _ in row]
    columns = [num_samples + names[name] for row in pictures for name in row]
    size = num_samples + len(names)
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(size, size))
    labels = connected_components(graph, directed=False)[1][:num_samples]
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def estimate_share(correct_S: Sequence[bool], *, clusters_S: Indices, evaluation: EvaluationSettings) -> Estimate:
    """The share of right answers."""
    correct = np.asarray(correct_S, dtype=np.float64)
    return _estimate(correct, np.ones_like(correct), clusters_S, evaluation, limits=(0.0, 1.0), is_paired=False)


def estimate_difference(
    first_S: Sequence[bool], second_S: Sequence[bool], *, clusters_S: Indices, evaluation: EvaluationSettings
) -> Estimate:
    """The share right in `first` minus the share right in `second`, paired on the same samples."""
    difference = np.asarray(first_S, dtype=np.float64) - np.asarray(second_S, dtype=np.float64)
    return _estimate(difference, np.ones_like(difference), clusters_S, evaluation, limits=(-1.0, 1.0), is_paired=True)


def estimate_ratio(
    first_S: Sequence[bool], second_S: Sequence[bool], *, clusters_S: Indices, evaluation: EvaluationSettings
) -> Estimate | None:
    """The share right in `first` over the share right in `second`, paired on the same samples.

    None where `second` is right on fewer than `MIN_PICTURES_RIGHT` pictures: the ratio has no usable interval.
    """
    first, second = np.asarray(first_S, dtype=np.float64), np.asarray(second_S, dtype=np.float64)
    if len(np.unique(clusters_S[second > 0])) < MIN_PICTURES_RIGHT:
        return None
    return _estimate(first, second, clusters_S, evaluation, limits=(0.0, np.inf), is_paired=True)


def _estimate(
    numerator_S: Floats,
    denominator_S: Floats,
    clusters_S: Indices,
    evaluation: EvaluationSettings,
    *,
    limits: tuple[float, float],
    is_paired: bool,
) -> Estimate:
    numerator_C = _sum_clusters(numerator_S, clusters_S)
    denominator_C = _sum_clusters(denominator_S, clusters_S)
    value = float(numerator_C.sum() / denominator_C.sum())
    has_spread = not np.allclose(numerator_C, value * denominator_C, atol=1e-9)
    intervals = [_bootstrap(numerator_C, denominator_C, evaluation)] if has_spread else []
    if is_paired or not has_spread:
        intervals.append(_exact(value, len(numerator_C), float(denominator_S.mean()), evaluation.confidence))
    low = float(np.clip(min(low for low, _ in intervals), *limits))
    high = float(np.clip(max(high for _, high in intervals), *limits))
    return Estimate(
        value=round(value, _DIGITS),
        low=round(low, _DIGITS),
        high=round(high, _DIGITS),
        num_samples=len(numerator_S),
        num_pictures=len(numerator_C),
    )


def _sum_clusters(values_S: Floats, clusters_S: Indices) -> Floats:
    return np.bincount(clusters_S, weights=values_S).astype(np.float64)


def _exact(value: float, num_clusters: int, scale: float, confidence: float) -> tuple[float, float]:
    unseen = 1.0 - ((1.0 - confidence) / 2.0) ** (1.0 / num_clusters)
    return value - unseen / scale, value + unseen / scale


def _bootstrap(numerator_C: Floats, denominator_C: Floats, evaluation: EvaluationSettings) -> tuple[float, float]:
    num_clusters = len(numerator_C)
    interval = bootstrap(
        (numerator_C, denominator_C),
        _ratio_of_sums,
        paired=True,
        vectorized=True,
        n_resamples=evaluation.num_resamples,
        batch=max(1, _MAX_BATCH_ELEMENTS // num_clusters),
        confidence_level=evaluation.confidence,
        method="BCa" if num_clusters <= MAX_BCA_PICTURES else "percentile",
        rng=np.random.default_rng(evaluation.seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _ratio_of_sums(numerator: Floats, denominator: Floats, axis: int = -1) -> Any:
    return numerator.sum(axis=axis) / denominator.sum(axis=axis)
