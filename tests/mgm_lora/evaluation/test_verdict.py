"""What may be claimed of a retention and its interval."""

import pytest

from mgm_lora.evaluation.intervals import MIN_PICTURES_RIGHT, Estimate
from mgm_lora.evaluation.verdict import Outcome, judge


def _estimate(low: float, value: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high, num_samples=600, num_pictures=300)


SCORE, REFERENCE = _estimate(0.88, 0.912, 0.94), _estimate(0.9, 0.93, 0.95)


@pytest.mark.parametrize(
    "retention, outcome",
    [
        (_estimate(0.951, 0.98, 1.01), Outcome.SHOWN),
        (_estimate(0.95, 0.98, 1.01), Outcome.SHOWN),
        (_estimate(0.949, 0.98, 1.01), Outcome.NOT_SHOWN),
        (_estimate(0.9, 0.93, 0.95), Outcome.NOT_SHOWN),
        (_estimate(0.9, 0.93, 0.949), Outcome.REFUTED),
        (None, Outcome.NOT_SHOWN),
    ],
)
def test_claim_holds_only_with_the_whole_interval(retention: Estimate | None, outcome: Outcome) -> None:
    verdict = judge(retention, score=SCORE, reference=REFERENCE, share=0.031, target=0.95, confidence=0.95)
    assert verdict.outcome == outcome
    assert verdict.claim == f"retention ≥ 95 %: {outcome} at 95 % confidence"
    assert f"≥ 95 % is {outcome}" in verdict.sentence


def test_sentence_says_scores_retention_and_share() -> None:
    retention = _estimate(0.953, 0.981, 1.01)
    verdict = judge(retention, score=SCORE, reference=REFERENCE, share=0.031, target=0.95, confidence=0.9)
    assert verdict.sentence == (
        "LoRA answers 91.2 % [88.0, 94.0] of the held-out questions right, the full fine-tune 93.0 % [90.0, 95.0]: "
        "retention 98.1 % [95.3, 101.0], so ≥ 95 % is shown at 90 % confidence, with 3.1 % of the parameters trained."
    )


def test_sentence_says_why_there_is_no_ratio() -> None:
    verdict = judge(None, score=SCORE, reference=REFERENCE, share=0.031, target=0.95, confidence=0.95)
    assert f"right on fewer than {MIN_PICTURES_RIGHT} pictures" in verdict.sentence
