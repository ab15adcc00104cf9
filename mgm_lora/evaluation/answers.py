"""The same questions, answered by each training of one arm: what they are worth, alone and beside another arm's.

Everything between two arms is paired on the same samples. It knows no arm by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mgm_lora.evaluation.intervals import (
    Estimate,
    Indices,
    estimate_difference,
    estimate_loss,
    estimate_loss_difference,
    estimate_ratio,
    estimate_share,
    p_value_of_difference,
    picture_clusters,
)
from mgm_lora.evaluation.predictions import Prediction, type_name
from mgm_lora.settings import EvaluationSettings

# K seeds, S samples


@dataclass(frozen=True)
class Answers:
    """Of one arm."""

    items: Sequence[Sequence[Prediction]]
    """[K][S], each row sorted by id."""

    def share(self, evaluation: EvaluationSettings) -> Estimate:
        """What an answer is worth in the mean: the share of right ones, where each is right or wrong."""
        return estimate_share(self._scores_KS, clusters_S=self._clusters_S, evaluation=evaluation)

    def over(self, other: "Answers", evaluation: EvaluationSettings) -> Estimate | None:
        """That share over the other's; none where the other is right too rarely for a ratio."""
        return estimate_ratio(self._scores_KS, other._scores_KS, clusters_S=self._clusters_S, evaluation=evaluation)

    def minus(self, other: "Answers", evaluation: EvaluationSettings) -> Estimate:
        """That share minus the other's."""
        return estimate_difference(
            self._scores_KS, other._scores_KS, clusters_S=self._clusters_S, evaluation=evaluation
        )

    def p_value(self, other: "Answers", evaluation: EvaluationSettings) -> float:
        """Of "both are worth the same", two-sided."""
        return p_value_of_difference(
            self._scores_KS, other._scores_KS, clusters_S=self._clusters_S, evaluation=evaluation
        )

    def loss(self, evaluation: EvaluationSettings) -> Estimate | None:
        """The mean loss of a token of the true answers; none where it was not taken."""
        if not any(self._num_tokens_S):
            return None
        return estimate_loss(
            self._losses_KS, num_tokens_S=self._num_tokens_S, clusters_S=self._clusters_S, evaluation=evaluation
        )

    def loss_minus(self, other: "Answers", evaluation: EvaluationSettings) -> Estimate | None:
        """That loss minus the other's; none where either was not taken."""
        if not any(self._num_tokens_S) or self._num_tokens_S != other._num_tokens_S:
            return None
        return estimate_loss_difference(
            self._losses_KS,
            other._losses_KS,
            num_tokens_S=self._num_tokens_S,
            clusters_S=self._clusters_S,
            evaluation=evaluation,
        )

    def types(self) -> list[str]:
        """The question types, sorted."""
        return sorted({type_name(item) for item in self.items[0]})

    def of_type(self, name: str) -> "Answers":
        """The answers to questions of one type."""
        return Answers([[item for item in row if type_name(item) == name] for row in self.items])

    @cached_property
    def _scores_KS(self) -> list[list[float]]:
        return [[item.score for item in row] for row in self.items]

    @cached_property
    def _losses_KS(self) -> list[list[float]]:
        return [[item.loss for item in row] for row in self.items]

    @cached_property
    def _num_tokens_S(self) -> list[int]:
        return [item.num_loss_tokens for item in self.items[0]]

    @cached_property
    def _clusters_S(self) -> Indices:
        return picture_clusters([item.pictures for item in self.items[0]])
