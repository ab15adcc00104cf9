"""The question-only baseline: what a guess that never looks at the picture scores.

It answers with the most frequent training answer to the same question, else to the same question type, else overall.
A model that doesn't beat it has learned the data's habits, not to look. Ties go to the alphabetically first answer,
so that the figure is one.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from mgm_lora.data.table import Sample
from mgm_lora.evaluation.matching import normalise_answer
from mgm_lora.evaluation.metrics import Metric, exact
from mgm_lora.evaluation.predictions import Prediction, question_text


def guess_from_questions(
    predictions: Sequence[Prediction], *, train: Sequence[Sample], metric: Metric = exact
) -> list[Prediction]:
    """The same questions, answered by frequency in the training samples instead of by a model, and worth what `metric` says."""
    by_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_type: defaultdict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for sample in train:
        answer = normalise_answer(sample.answer)
        for counter in (by_question[_key(question_text(sample))], by_type[sample.question_type], overall):
            counter[answer] += 1
    guesses = []
    for item in predictions:
        counter = by_question.get(_key(item.question)) or by_type.get(item.question_type) or overall
        guess = _most_frequent(counter)
        score = metric(guess, [item.answer])
        guesses.append(replace(item, prediction=guess, score=score, loss=0.0, num_loss_tokens=0))
    return guesses


def _key(question: str) -> str:
    return normalise_answer(question)


def _most_frequent(counter: Counter[str]) -> str:
    return min(counter, key=lambda answer: (-counter[answer], answer), default="")
