"""The rules of a promotion, by hand-made answers."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from mgm_lora.evaluation.gate import BEATS_BASE, BEATS_CHAMPION, Case, Rival, RuleResult, judge_case
from mgm_lora.evaluation.predictions import Prediction, SetName
from mgm_lora.settings import EvaluationSettings, PromotionSettings

EVALUATION = EvaluationSettings(
    batch_size=2, max_new_tokens=5, score_types=(), confidence=0.95, num_resamples=500, seed=1
)
PROMOTION = PromotionSettings(
    confidence=0.95,
    champion_margin=0.05,
    min_retention=0.9,
    max_forgetting=0.1,
    max_adapter_mib=10.0,
    max_seconds_per_answer=1.0,
    num_timed_questions=3,
)


def answers(num_right: int, *, of: int = 200, known_right: int | None = 20) -> list[Prediction]:
    """Held-out answers of which the first ones are right, one picture each, and 20 known ones likewise."""
    heldout = [_answer("heldout", number, right=number < num_right) for number in range(of)]
    if known_right is None:
        return heldout
    return heldout + [_answer("known", number, right=number < known_right) for number in range(20)]


def _answer(set_name: SetName, number: int, *, right: bool) -> Prediction:
    return Prediction(
        id=f"{set_name}-{number}",
        set=set_name,
        question_type="colour",
        question="what colour?",
        answer="red",
        prediction="red" if right else "blue",
        score=float(right),
        loss=0.0,
        num_loss_tokens=0,
        pictures=(f"{set_name}/{number}.png",),
    )


CASE = Case(
    candidate=answers(150),
    base=answers(80),
    champion=None,
    retention=0.95,
    adapter_mib=3.0,
    seconds_per_answer=0.2,
)


def judge(case: Case, promotion: PromotionSettings = PROMOTION) -> dict[str, RuleResult]:
    return {result.rule: result for result in judge_case(case, promotion=promotion, evaluation=EVALUATION)}


def failing(results: dict[str, RuleResult]) -> set[str]:
    return {name for name, result in results.items() if not result.passed}


def test_good_first_version_keeps_every_rule_and_shows_its_figures() -> None:
    results = judge(CASE)
    assert failing(results) == set()
    assert list(results) == [BEATS_BASE, BEATS_CHAMPION, "retention", "forgetting", "size", "seconds an answer"]
    assert "+35.0 pp" in results[BEATS_BASE].found
    assert "(75.0 % against 40.0 %, 200 questions)" in results[BEATS_BASE].found
    assert results[BEATS_CHAMPION].found == "nobody is the champion yet"
    assert (results["retention"].asked, results["retention"].found) == ("at least 90.0 %", "95.0 %")


@pytest.mark.parametrize(
    "change, rule",
    [
        ({"base": answers(150)}, BEATS_BASE),
        ({"champion": Rival("version 1", answers(180))}, BEATS_CHAMPION),
        ({"champion": Rival("version 1", (), problem="its base is gone")}, BEATS_CHAMPION),
        ({"retention": 0.89}, "retention"),
        ({"retention": None}, "retention"),
        ({"candidate": answers(150, known_right=17)}, "forgetting"),
        ({"adapter_mib": 10.1}, "size"),
        ({"seconds_per_answer": 1.1}, "seconds an answer"),
    ],
    ids=["base", "champion", "champion gone", "retention", "no retention", "forgetting", "size", "seconds"],
)
def test_each_rule_alone_refuses(change: dict[str, object], rule: str) -> None:
    assert failing(judge(replace(CASE, **change))) == {rule}  # type: ignore[arg-type]


def test_value_above_the_base_is_not_enough_where_chance_could_have_made_it() -> None:
    few = replace(CASE, candidate=answers(11, of=20), base=answers(10, of=20))
    assert failing(judge(few)) == {BEATS_BASE}
    assert "+5.0 pp" in judge(few)[BEATS_BASE].found


def test_champion_may_be_lost_against_by_less_than_the_margin() -> None:
    assert failing(judge(replace(CASE, champion=Rival("version 1", answers(151))))) == set()
    # 9 of 200 are lost: 4.5 points by value, but the interval reaches beyond 5
    assert failing(judge(replace(CASE, champion=Rival("version 1", answers(159))))) == {BEATS_CHAMPION}


def test_same_answers_as_the_champion_are_not_worse_where_the_margin_is_wider_than_what_was_not_seen() -> None:
    assert failing(judge(replace(CASE, champion=Rival("version 1", answers(150))))) == set()


def test_pairing_counts_questions_not_totals() -> None:
    """As many right, but other ones: how far apart they are is uncertain, which a comparison of totals would not see."""
    others: Sequence[Prediction] = [
        replace(item, score=float(number >= 50)) for number, item in enumerate(answers(150)) if item.set == "heldout"
    ]
    assert failing(judge(replace(CASE, champion=Rival("version 1", others)))) == {BEATS_CHAMPION}


def test_rule_that_is_null_is_not_asked() -> None:
    none = PromotionSettings(
        **{
            **dict(PROMOTION),
            "min_retention": None,
            "max_forgetting": None,
            "max_adapter_mib": None,
            "max_seconds_per_answer": None,
        }
    )
    assert list(judge(CASE, none)) == [BEATS_BASE, BEATS_CHAMPION]


def test_forgetting_that_was_not_measured_is_told() -> None:
    case = replace(CASE, candidate=answers(150, known_right=None), base=answers(80, known_right=None))
    assert judge(case)["forgetting"].found == "not measured: data.known is null"
    assert failing(judge(case)) == set()
