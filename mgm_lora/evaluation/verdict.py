"""Does LoRA keep what the full fine-tune reaches? One sentence, and what it may claim.

The claim "retention >= target" is shown when the whole interval is at or above the target, refuted when the whole
interval is below it, and not shown otherwise: a wide interval is no evidence either way. The interval is two-sided,
so each claim errs in at most half of 1 - confidence.
"""

from dataclasses import dataclass
from enum import StrEnum

from mgm_lora.evaluation.formatting import percent, percent_interval, percent_range
from mgm_lora.evaluation.intervals import MIN_PICTURES_RIGHT, Estimate


class Outcome(StrEnum):
    """What the data say about the claim."""

    SHOWN = "shown"
    NOT_SHOWN = "not shown"
    REFUTED = "refuted"


@dataclass(frozen=True)
class Verdict:
    """The claim "retention >= target" and what became of it."""

    outcome: Outcome
    claim: str
    """`retention ≥ 95 %: shown at 95 % confidence`."""
    sentence: str
    """Scores, retention and claim in one sentence."""


def judge(
    retention: Estimate | None,
    *,
    score: Estimate,
    reference: Estimate,
    share: float,
    target: float,
    confidence: float,
    is_right_or_wrong: bool = True,
) -> Verdict:
    """The verdict on LoRA.

    Args:
        retention: LoRA's score over the full fine-tune's; none where that is right too rarely for a ratio.
        score: LoRA's score.
        reference: the full fine-tune's score.
        share: of the parameters, trained by LoRA.
        target: smallest retention that is claimed.
        confidence: of the intervals.
        is_right_or_wrong: whether an answer can't be half right.
    """
    outcome = _outcome(retention, target)
    claim = f"retention ≥ {_short(target)}: {outcome} at {_short(confidence)} confidence"
    mine, theirs = percent_interval(score), percent_interval(reference)
    reached = (
        f"LoRA answers {mine} of the held-out questions right, the full fine-tune {theirs}"
        if is_right_or_wrong
        else f"LoRA scores {mine} on the held-out questions, the full fine-tune {theirs}"
    )
    if retention is None:
        reason = f"the full fine-tune is right on fewer than {MIN_PICTURES_RIGHT} pictures, too few for a ratio"
        return Verdict(outcome, claim, f"{reached}: {reason}, so ≥ {_short(target)} is {outcome}.")
    kept = f"retention {percent(retention.value)} {percent_range(retention.low, retention.high)}"
    claimed = f"so ≥ {_short(target)} is {outcome} at {_short(confidence)} confidence"
    return Verdict(outcome, claim, f"{reached}: {kept}, {claimed}, with {percent(share)} of the parameters trained.")


def _outcome(retention: Estimate | None, target: float) -> Outcome:
    if retention is None:
        return Outcome.NOT_SHOWN
    if retention.low >= target:
        return Outcome.SHOWN
    return Outcome.REFUTED if retention.high < target else Outcome.NOT_SHOWN


def _short(share: float) -> str:
    return f"{100 * share:g} %"
