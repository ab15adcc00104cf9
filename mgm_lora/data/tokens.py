"""What a sample costs in tokens, by a measure that the caller brings: this package doesn't know the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """One sample's tokens."""

    num_tokens: int
    """Those of its pictures included."""
    num_labels: int
    """Tokens that are learned."""
    num_labels_kept: int
    """Learned tokens that are left where the sample is cut at the limit."""
    problem: str
    """Why it can't be encoded; empty where it can."""


MeasureTokens = Callable[[Sequence[tuple[str, str]]], TokenCounts]
"""(role, text) turns, with as many markers in them as there are pictures, to counts."""
