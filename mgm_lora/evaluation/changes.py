"""Which answers changed between two models: by question, from wrong to right and back, and what that makes of the score.

Only questions that both answered, with the same truth, are compared; the others are counted. It knows neither versions nor arms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mgm_lora.evaluation.answers import Answers
from mgm_lora.evaluation.intervals import Estimate
from mgm_lora.evaluation.predictions import SET_NAMES, Prediction, SetName, of_set, type_name
from mgm_lora.settings import EvaluationSettings


class Change(StrEnum):
    """What became of an answer."""

    GAINED = "wrong -> right"
    LOST = "right -> wrong"
    OTHER = "other words"
    """As right or as wrong as before."""


@dataclass(frozen=True)
class ChangedAnswer:
    """A question that the two answered differently."""

    id: str
    question_type: str
    question: str
    answer: str
    """The truth."""
    first: str
    second: str
    change: Change
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class SetChanges:
    """Of one set of questions."""

    set: SetName
    num_shared: int
    """Questions that both answered."""
    num_only_first: int
    num_only_second: int
    difference: Estimate | None
    """What the second's answers are worth in the mean, minus the first's; none where no question is shared."""
    by_type: Mapping[str, Mapping[Change, int]]
    """Counts of changed answers."""
    changed: tuple[ChangedAnswer, ...]
    """Lost ones first, then gained ones."""


def find_changes(
    first: Sequence[Prediction], second: Sequence[Prediction], *, evaluation: EvaluationSettings
) -> tuple[SetChanges, ...]:
    """Compares two models' predictions, set by set."""
    return tuple(_of_set(name, of_set(first, name), of_set(second, name), evaluation) for name in SET_NAMES)


def _of_set(
    name: SetName, first: Sequence[Prediction], second: Sequence[Prediction], evaluation: EvaluationSettings
) -> SetChanges:
    mine, theirs = ({_key(item): item for item in items} for items in (first, second))
    shared = [key for key in mine if key in theirs]
    pairs = [(mine[key], theirs[key]) for key in shared]
    changed = [_changed(one, other) for one, other in pairs if one.prediction != other.prediction]
    before, after = Answers([[one for one, _ in pairs]]), Answers([[other for _, other in pairs]])
    return SetChanges(
        set=name,
        num_shared=len(shared),
        num_only_first=len(mine) - len(shared),
        num_only_second=len(theirs) - len(shared),
        difference=after.minus(before, evaluation) if shared else None,
        by_type=_count(changed),
        changed=tuple(sorted(changed, key=lambda item: (_ORDER.index(item.change), item.id))),
    )


_ORDER = (Change.LOST, Change.GAINED, Change.OTHER)


def _key(item: Prediction) -> tuple[str, str, str, tuple[str, ...]]:
    return item.id, item.question, item.answer, item.pictures


def _changed(one: Prediction, other: Prediction) -> ChangedAnswer:
    change = Change.OTHER
    if one.correct != other.correct:
        change = Change.LOST if one.correct else Change.GAINED
    return ChangedAnswer(
        id=one.id,
        question_type=type_name(one),
        question=one.question,
        answer=one.answer,
        first=one.prediction,
        second=other.prediction,
        change=change,
        pictures=one.pictures,
    )


def _count(changed: Sequence[ChangedAnswer]) -> dict[str, dict[Change, int]]:
    types = sorted({item.question_type for item in changed})
    return {
        name: {
            change: sum(item.question_type == name and item.change is change for item in changed) for change in _ORDER
        }
        for name in types
    }
