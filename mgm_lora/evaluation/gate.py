"""May a version become the champion? Each rule of the section `promotion`, with its figures, kept or not.

Candidate, base and champion answered the same questions today, so differences are paired on them. What is asked of differences is one-sided: that
the score is higher than the base's, and not lower than the champion's by more than a margin (a test of non-inferiority: the interval, not the
value, must lie above). What is asked of single figures goes by their value. A rule that can't be asked because nothing is there to ask of passes
and says so; one that can't be asked although it should be doesn't. It knows no registry.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mgm_lora.evaluation.answers import Answers
from mgm_lora.evaluation.formatting import percent, points, quantity
from mgm_lora.evaluation.predictions import Prediction, of_set
from mgm_lora.evaluation.scoring import scored
from mgm_lora.settings import EvaluationSettings, PromotionSettings

BEATS_BASE = "beats the base"
BEATS_CHAMPION = "not worse than the champion"


@dataclass(frozen=True)
class Rival:
    """The champion, as it is met today."""

    name: str
    predictions: Sequence[Prediction]
    problem: str = ""
    """Why it could not be asked, if it could not."""


@dataclass(frozen=True)
class Case:
    """All that a judgement is made of."""

    candidate: Sequence[Prediction]
    base: Sequence[Prediction]
    champion: Rival | None
    """None where nobody is the champion."""
    retention: float | None
    """Of the full fine-tune's score, when it was registered; none: it could not be said."""
    adapter_mib: float
    seconds_per_answer: float


@dataclass(frozen=True)
class RuleResult:
    """How the case stands before one rule."""

    rule: str
    asked: str
    found: str
    passed: bool


def judge_case(case: Case, *, promotion: PromotionSettings, evaluation: EvaluationSettings) -> tuple[RuleResult, ...]:
    """Every rule that is asked, in the order of the settings; raises DataError where nothing can be scored."""
    one_sided = EvaluationSettings(**{**dict(evaluation), "confidence": 1.0 - 2.0 * (1.0 - promotion.confidence)})
    return tuple(_rules(case, promotion, one_sided))


def _rules(case: Case, promotion: PromotionSettings, one_sided: EvaluationSettings) -> Iterator[RuleResult]:
    confidence = percent(promotion.confidence)
    candidate = _in_score(case.candidate, one_sided)
    asked = f"a higher score, at {confidence} confidence"
    yield _difference(BEATS_BASE, asked, candidate, _in_score(case.base, one_sided), one_sided, floor=0.0)
    yield _against_champion(case.champion, candidate, promotion, one_sided)
    if promotion.min_retention is not None:
        yield _at_least("retention", case.retention, promotion.min_retention)
    if promotion.max_forgetting is not None:
        yield _forgetting(case, promotion.max_forgetting, one_sided)
    if promotion.max_adapter_mib is not None:
        yield _at_most("size", case.adapter_mib, promotion.max_adapter_mib, unit="MiB")
    if promotion.max_seconds_per_answer is not None:
        yield _at_most("seconds an answer", case.seconds_per_answer, promotion.max_seconds_per_answer, unit="s")


def _against_champion(
    champion: Rival | None, candidate: Answers, promotion: PromotionSettings, one_sided: EvaluationSettings
) -> RuleResult:
    lost = points(promotion.champion_margin).lstrip("+")
    asked = f"a score not lower by {lost} or more, at {percent(promotion.confidence)} confidence"
    if champion is None:
        return RuleResult(BEATS_CHAMPION, asked, "nobody is the champion yet", passed=True)
    if champion.problem:
        return RuleResult(BEATS_CHAMPION, asked, f"{champion.name} can't be asked: {champion.problem}", passed=False)
    theirs = _in_score(champion.predictions, one_sided)
    return _difference(BEATS_CHAMPION, asked, candidate, theirs, one_sided, floor=-promotion.champion_margin)


def _difference(
    rule: str, asked: str, mine: Answers, theirs: Answers, one_sided: EvaluationSettings, *, floor: float
) -> RuleResult:
    difference = mine.minus(theirs, one_sided)
    scores = f"{percent(mine.share(one_sided).value)} against {percent(theirs.share(one_sided).value)}"
    found = (
        f"{points(difference.value)}, at least {points(difference.low)} ({scores}, {difference.num_samples} questions)"
    )
    return RuleResult(rule, asked, found, passed=difference.low > floor)


def _forgetting(case: Case, most: float, one_sided: EvaluationSettings) -> RuleResult:
    asked = f"at most {points(most)}"
    mine, before = (of_set(predictions, "known") for predictions in (case.candidate, case.base))
    if not mine:
        return RuleResult("forgetting", asked, "not measured: data.known is null", passed=True)
    difference = Answers([before]).minus(Answers([mine]), one_sided)
    found = f"{points(difference.value)} ({difference.num_samples} questions)"
    return RuleResult("forgetting", asked, found, passed=difference.value <= most)


def _at_least(rule: str, value: float | None, least: float) -> RuleResult:
    found = "unknown: the full fine-tune was right too rarely" if value is None else percent(value)
    return RuleResult(rule, f"at least {percent(least)}", found, passed=value is not None and value >= least)


def _at_most(rule: str, value: float, most: float, *, unit: str) -> RuleResult:
    return RuleResult(rule, f"at most {quantity(most, unit=unit)}", quantity(value, unit=unit), passed=value <= most)


def _in_score(predictions: Sequence[Prediction], evaluation: EvaluationSettings) -> Answers:
    return Answers([scored(predictions, evaluation=evaluation)])
