"""Which arms differ from which: every two of them on the same samples, with a test each and one for looking at many.

Of fifty pairs two or three would differ "significantly" by chance. So each p-value is also given adjusted (Benjamini and Yekutieli 2001, which
holds however the tests depend on each other; scipy's): of the pairs that are told as different, the expected share of false ones is at most
1 - confidence. It knows no arm by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from scipy.stats import false_discovery_control

from mgm_lora.evaluation.answers import Answers
from mgm_lora.evaluation.intervals import Estimate
from mgm_lora.settings import EvaluationSettings


@dataclass(frozen=True)
class Pair:
    """Two arms side by side."""

    first: str
    second: str
    difference: Estimate
    """Score of the first minus that of the second."""
    p_value: float
    adjusted: float
    """The p-value for having looked at all pairs."""
    is_different: bool
    """Whether the adjusted one is below 1 - confidence."""


def compare_pairs(arms: Mapping[str, Answers], *, evaluation: EvaluationSettings) -> tuple[Pair, ...]:
    """Every two of the arms, in their order."""
    names = list(combinations(arms, 2))
    if not names:
        return ()
    p_values = [arms[first].p_value(arms[second], evaluation) for first, second in names]
    adjusted = false_discovery_control(p_values, method="by")
    return tuple(
        Pair(
            first=first,
            second=second,
            difference=arms[first].minus(arms[second], evaluation),
            p_value=p_value,
            adjusted=round(float(corrected), 6),
            is_different=bool(corrected < 1.0 - evaluation.confidence),
        )
        for (first, second), p_value, corrected in zip(names, p_values, adjusted, strict=True)
    )
