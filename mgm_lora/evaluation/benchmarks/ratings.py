"""What most benchmarks do alike: rate every answer, tell the mean of all and of each kind. It knows no official file."""

from collections.abc import Mapping, Sequence

from mgm_lora.evaluation.benchmarks.door import Benchmark, BenchmarkQuestion, RatedAnswer
from mgm_lora.evaluation.benchmarks.figures import EVERYTHING, Figure, share_figure
from mgm_lora.settings import EvaluationSettings


def rate_answers(
    benchmark: Benchmark, *, questions: Sequence[BenchmarkQuestion], answers: Mapping[str, str]
) -> list[RatedAnswer]:
    """What each answer is worth, sorted by question id: figures don't depend on the order in which answers came."""
    return [
        RatedAnswer(question, answers[question.id], benchmark.rate(question, answers[question.id]))
        for question in sorted(questions, key=lambda question: question.id)
    ]


def figures_by_kind(rated: Sequence[RatedAnswer], *, metric: str, evaluation: EvaluationSettings) -> list[Figure]:
    """The mean over all answers, and over those of each kind."""
    return [
        share_figure(
            [item.score for item in items],
            pictures=[str(item.question.picture) for item in items],
            group=group,
            metric=metric,
            evaluation=evaluation,
        )
        for group, items in by_kind(rated).items()
    ]


def by_kind(rated: Sequence[RatedAnswer]) -> dict[str, list[RatedAnswer]]:
    """All answers, then those of each kind, the kinds in the questions' order and their values sorted."""
    names = dict.fromkeys(name for item in rated for name in item.question.kinds)
    groups = {EVERYTHING: list(rated)}
    for name in names:
        having = [item for item in rated if name in item.question.kinds]
        for value in sorted({item.question.kinds[name] for item in having}):
            groups[f"{name}: {value}"] = [item for item in having if item.question.kinds[name] == value]
    return groups
