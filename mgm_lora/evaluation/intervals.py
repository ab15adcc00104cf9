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

Where an arm was trained with several seeds, the interval speaks of other seeds too: a hierarchical bootstrap draws seeds and, apart from them,
pictures; every seed answered the same pictures, so the two are crossed. Of K seeds K - 1 are drawn, with replacement: the mean of so many draws
varies as the mean of K seeds does, while K draws would vary less by a factor of (K - 1)/K (Rao and Wu 1988), a third less with three seeds. Arms
are paired by seed, since one seed gives all of them the same order of samples. That interval is the percentile one. It is as good as its seeds are
many: in a simulation of 200 pictures it covered 96 % (three seeds that lie 3 points apart) where it says 95, and 89 % (12 points apart). With one
seed nothing is said of others: there the interval covered 83 and 38 %.

Whether two arms differ at all is tested, with one seed, by exchanging their answers picture by picture (scipy's paired permutation test); with
several, by how often the hierarchical bootstrap finds a difference of the other sign, since an exchange of pictures alone would take the luck of
these seeds for a difference between arms.

It knows neither arms nor question types.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import bootstrap, permutation_test

from mgm_lora.settings import EvaluationSettings

# K seeds, S samples, C clusters (of samples that share pictures), B resamples
Floats = NDArray[np.float64]
Answers = Sequence[float] | Sequence[Sequence[float]] | Floats
"""What answers are worth, 0 to 1, [S] of one training or [K][S] of several."""
Losses = Sequence[float] | Sequence[Sequence[float]] | Floats
"""Sums of cross-entropies, likewise."""
Indices = NDArray[np.int64]

MIN_PICTURES_RIGHT = 20
"""Of the denominator of a ratio: with 20, one resample in e^20 holds none of them; with few, many divide by zero."""
MAX_BCA_PICTURES = 5000
NUM_PERMUTATIONS = 9_999
_MAX_BATCH_ELEMENTS = 4_000_000
_MAX_KEPT_BATCHES = 8  # of 32 MB at most
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
    num_seeds: int = 1
    """Trainings that were resampled; 1: the interval speaks of other pictures only."""


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


def estimate_share(correct_KS: Answers, *, clusters_S: Indices, evaluation: EvaluationSettings) -> Estimate:
    """The share of right answers, of one training or of several."""
    correct = _by_seed(correct_KS)
    return _estimate(correct, np.ones_like(correct), clusters_S, evaluation, limits=(0.0, 1.0), is_paired=False)


def estimate_difference(
    first_KS: Answers, second_KS: Answers, *, clusters_S: Indices, evaluation: EvaluationSettings
) -> Estimate:
    """The share right in `first` minus the share right in `second`, paired on the same samples and seeds; one of them may have one seed only."""
    difference = _by_seed(first_KS) - _by_seed(second_KS)
    return _estimate(difference, np.ones_like(difference), clusters_S, evaluation, limits=(-1.0, 1.0), is_paired=True)


def estimate_ratio(
    first_KS: Answers, second_KS: Answers, *, clusters_S: Indices, evaluation: EvaluationSettings
) -> Estimate | None:
    """The share right in `first` over the share right in `second`, paired on the same samples and seeds.

    None where `second` is right on fewer than `MIN_PICTURES_RIGHT` pictures with any of its seeds: the ratio has no usable interval.
    """
    first, second = np.broadcast_arrays(_by_seed(first_KS), _by_seed(second_KS))
    if min(len(np.unique(clusters_S[row > 0])) for row in second) < MIN_PICTURES_RIGHT:
        return None
    return _estimate(first, second, clusters_S, evaluation, limits=(0.0, np.inf), is_paired=True)


def estimate_loss(
    loss_KS: Losses, *, num_tokens_S: Sequence[int], clusters_S: Indices, evaluation: EvaluationSettings
) -> Estimate:
    """The mean loss of a token, in nats."""
    loss = _by_seed(loss_KS)
    return _estimate(loss, _tokens(num_tokens_S, like=loss), clusters_S, evaluation)


def estimate_loss_difference(
    first_KS: Losses,
    second_KS: Losses,
    *,
    num_tokens_S: Sequence[int],
    clusters_S: Indices,
    evaluation: EvaluationSettings,
) -> Estimate:
    """The mean loss of a token in `first` minus that in `second`, paired as `estimate_difference` is."""
    difference = _by_seed(first_KS) - _by_seed(second_KS)
    return _estimate(difference, _tokens(num_tokens_S, like=difference), clusters_S, evaluation)


def p_value_of_difference(
    first_KS: Answers, second_KS: Answers, *, clusters_S: Indices, evaluation: EvaluationSettings
) -> float:
    """Two-sided p-value of "both are worth the same", paired on the same samples and seeds."""
    first_KC, second_KC = (_sum_clusters(_by_seed(item), clusters_S) for item in (first_KS, second_KS))
    difference_KC = first_KC - second_KC
    if not difference_KC.any():
        return 1.0
    if len(difference_KC) > 1:
        return _p_value_with_seeds(difference_KC, evaluation)
    first, second = first_KC[0], second_KC[0]
    test = permutation_test(
        (first, second),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        n_resamples=NUM_PERMUTATIONS,
        vectorized=True,
        batch=max(1, _MAX_BATCH_ELEMENTS // len(first)),
        rng=np.random.default_rng(evaluation.seed),
    )
    return round(float(test.pvalue), _DIGITS)


def _p_value_with_seeds(difference_KC: Floats, evaluation: EvaluationSettings) -> float:
    means_B = _resampled_ratios(difference_KC, np.ones_like(difference_KC), evaluation.seed, NUM_PERMUTATIONS)
    smaller = min(np.count_nonzero(means_B <= 0.0), np.count_nonzero(means_B >= 0.0))
    return round(min(1.0, 2.0 * (smaller + 1) / (NUM_PERMUTATIONS + 1)), _DIGITS)


def _by_seed(values: Answers | Losses) -> Floats:
    return np.atleast_2d(np.asarray(values, dtype=np.float64))


def _tokens(num_tokens_S: Sequence[int], *, like: Floats) -> Floats:
    return np.broadcast_to(np.asarray(num_tokens_S, dtype=np.float64), like.shape)


def _estimate(
    numerator_KS: Floats,
    denominator_KS: Floats,
    clusters_S: Indices,
    evaluation: EvaluationSettings,
    *,
    limits: tuple[float, float] | None = None,
    is_paired: bool = False,
) -> Estimate:
    """Sum over sum; without limits it is a loss, of which nothing bounds what was not seen."""
    numerator_KC = _sum_clusters(numerator_KS, clusters_S)
    denominator_KC = _sum_clusters(denominator_KS, clusters_S)
    num_seeds, num_clusters = numerator_KC.shape
    value = float(numerator_KC.sum() / denominator_KC.sum())
    intervals = []
    has_spread = not np.allclose(numerator_KC, value * denominator_KC, atol=1e-9)
    if has_spread and num_seeds == 1:
        intervals.append(_bootstrap(numerator_KC[0], denominator_KC[0], evaluation))
    elif has_spread:
        intervals.append(_bootstrap_with_seeds(numerator_KC, denominator_KC, evaluation))
    if limits is None:
        intervals = intervals or [(value, value)]
    elif is_paired or not has_spread:
        intervals.append(_exact(value, num_clusters, float(denominator_KS.mean()), evaluation.confidence))
    low, high = np.clip(
        [min(low for low, _ in intervals), max(high for _, high in intervals)], *(limits or (None, None))
    )
    return Estimate(
        value=round(value, _DIGITS),
        low=round(float(low), _DIGITS),
        high=round(float(high), _DIGITS),
        num_samples=numerator_KS.shape[1],
        num_pictures=num_clusters,
        num_seeds=num_seeds,
    )


def _sum_clusters(values_KS: Floats, clusters_S: Indices) -> Floats:
    return np.stack([np.bincount(clusters_S, weights=row).astype(np.float64) for row in values_KS])


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


def _bootstrap_with_seeds(
    numerator_KC: Floats, denominator_KC: Floats, evaluation: EvaluationSettings
) -> tuple[float, float]:
    ratios_B = _resampled_ratios(numerator_KC, denominator_KC, evaluation.seed, evaluation.num_resamples)
    tail = (1.0 - evaluation.confidence) / 2.0
    low, high = np.quantile(ratios_B, [tail, 1.0 - tail])
    return float(low), float(high)


def _resampled_ratios(numerator_KC: Floats, denominator_KC: Floats, seed: int, num_resamples: int) -> Floats:
    """Sum over sum in each of the draws of seeds and, apart from them, clusters."""
    num_seeds, num_clusters = numerator_KC.shape
    size = max(1, _MAX_BATCH_ELEMENTS // num_clusters)
    ratios: list[Floats] = []
    for first in range(0, num_resamples, size):
        seeds_BK, clusters_BC = _draw(num_seeds, num_clusters, min(size, num_resamples - first), (seed, first))
        sums = [((seeds_BK @ values_KC) * clusters_BC).sum(axis=1) for values_KC in (numerator_KC, denominator_KC)]
        ratios.append(sums[0] / sums[1])
    return np.concatenate(ratios)


@lru_cache(maxsize=_MAX_KEPT_BATCHES)
def _draw(num_seeds: int, num_clusters: int, num_draws: int, seed: tuple[int, int]) -> tuple[Floats, Floats]:
    """How often each seed and each cluster is drawn, [B, K] and [B, C]; kept, since every two arms are asked about with the same draws."""
    rng = np.random.default_rng(seed)
    seeds_BK = rng.multinomial(num_seeds - 1, np.full(num_seeds, 1 / num_seeds), size=num_draws)
    clusters_BC = rng.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=num_draws)
    return seeds_BK.astype(np.float64), clusters_BC.astype(np.float64)


def _ratio_of_sums(numerator: Floats, denominator: Floats, axis: int = -1) -> Any:
    return numerator.sum(axis=axis) / denominator.sum(axis=axis)
