"""Which answers are taken for which: counts of truth by answer, for the question types with the most mistakes.

Long lists are cut to the true answers with the most questions; the rest, and answers that are no true answer of the
type, become `(other)`. The labels depend on the truths alone, so two arms can be laid side by side.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mgm_lora.evaluation.matching import normalise_answer
from mgm_lora.evaluation.predictions import Prediction, type_name

OTHER = "(other)"
_MAX_ANSWERS = 10


@dataclass(frozen=True)
class Confusion:
    """Counts of one question type and arm."""

    truths: tuple[str, ...]
    answers: tuple[str, ...]
    """The truths, and `(other)` last."""
    counts: tuple[tuple[int, ...], ...]
    """[truth][answer]."""

    @property
    def row_totals(self) -> tuple[int, ...]:
        """Questions per truth."""
        return tuple(sum(row) for row in self.counts)


def confusable_types(arms: Mapping[str, Sequence[Prediction]], *, limit: int = 2) -> list[str]:
    """The types with the most mistakes over the given arms, most first; those with one true answer are left out."""
    mistakes: Counter[str] = Counter()
    truths: dict[str, set[str]] = {}
    for item in (item for predictions in arms.values() for item in predictions):
        mistakes[type_name(item)] += not item.correct
        truths.setdefault(type_name(item), set()).add(normalise_answer(item.answer))
    return [name for name, _ in mistakes.most_common() if len(truths[name]) > 1][:limit]


def confuse(predictions: Sequence[Prediction]) -> Confusion:
    """Counts truth by answer, as they are after normalisation."""
    pairs = [(normalise_answer(item.answer), normalise_answer(item.prediction)) for item in predictions]
    frequency = Counter(truth for truth, _ in pairs)
    kept = sorted(sorted(frequency, key=lambda name: (-frequency[name], name))[:_MAX_ANSWERS])
    cells = Counter((_fold(truth, kept), _fold(answer, kept)) for truth, answer in pairs)
    answers = (*kept, OTHER)
    truths = answers if len(frequency) > len(kept) else tuple(kept)
    return Confusion(truths, answers, tuple(tuple(cells[truth, answer] for answer in answers) for truth in truths))


def _fold(answer: str, kept: Sequence[str]) -> str:
    return answer if answer in kept else OTHER
