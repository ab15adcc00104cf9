"""Who is on the front, and where offers lie on the chart."""

import pytest

from mgm_lora.evaluation.pareto import Offer, pareto_front, scatter_chart


def _offer(label: str, cost: float, score: float, *, is_trial: bool = False) -> Offer:
    return Offer(label, label, cost, score, score - 0.05, score + 0.05, is_trial=is_trial)


def test_the_front_is_whom_nobody_beats() -> None:
    offers = [_offer("full", 9, 0.7), _offer("lora", 2, 0.6), _offer("dora", 3, 0.6), _offer("small", 1, 0.4)]
    assert [offer.label for offer in pareto_front(offers)] == ["small", "lora", "full"]
    assert pareto_front([_offer("a", 1, 0.5), _offer("b", 1, 0.6)])[0].label == "b"
    assert pareto_front([]) == []


def _chart(offers: list[Offer]):  # type: ignore[no-untyped-def]
    return scatter_chart(offers, title="t", x_label="x", cost_text=lambda v: f"{v:g}", score_text=lambda v: f"{v:.2f}")


def test_dots_lie_by_cost_and_score_and_the_front_is_a_stair() -> None:
    chart = _chart([_offer("small", 1, 0.4), _offer("lora", 2, 0.6), _offer("trial", 3, 0.5, is_trial=True)])
    dots = {dot.label: dot for dot in chart.dots}
    assert dots["small"].x < dots["lora"].x < dots["trial"].x
    assert dots["small"].y > dots["trial"].y > dots["lora"].y, "y counts from the top"
    assert dots["lora"].top < dots["lora"].y < dots["lora"].bottom
    assert [dot.is_on_front for dot in (dots["small"], dots["lora"], dots["trial"])] == [True, True, False]
    assert dots["trial"].label_at is None
    small, lora = ((dots[name].x, dots[name].y) for name in ("small", "lora"))
    assert chart.front == (small, (lora[0], small[1]), lora, (100.0, lora[1]))


def test_costs_over_a_decade_are_on_a_logarithmic_axis() -> None:
    assert _chart([_offer("a", 1e5, 0.4), _offer("b", 2e6, 0.5)]).x_axis.is_log
    assert not _chart([_offer("a", 1.0, 0.4), _offer("b", 2.0, 0.5)]).x_axis.is_log


def test_labels_of_close_dots_do_not_cover_each_other() -> None:
    chart = _chart(
        [_offer(f"arm-{number}", 100 + number, 0.5 + 0.001 * number) for number in range(4)] + [_offer("far", 200, 0.9)]
    )
    places = [dot.label_at for dot in chart.dots]
    assert len(set(places)) == 5
    assert all(0 <= place[0] <= 100 for place in places if place)


def test_one_offer_alone_has_a_chart() -> None:
    [dot] = _chart([_offer("lora", 2, 0.6)]).dots
    assert dot.x == pytest.approx(50.0)
