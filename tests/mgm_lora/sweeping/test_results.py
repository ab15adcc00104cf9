"""Who is best, by held-out loss, and whether better ones may lie beyond."""

from mgm_lora.sweeping.results import TrialResult, judge


def trial(rank: int, loss: float | None, *, parameters: float = 0.0, state: str = "done") -> TrialResult:
    figures = {} if loss is None else {"heldout_loss": loss, "trainable_parameters": parameters}
    found = {"choices": {"rank": rank}, "entries": {}, "state": state, "figures": figures}
    return TrialResult.model_validate({"name": f"r{rank}", "arm": "lora", "seed": 17, **found})


def test_lowest_loss_is_best_whatever_the_order() -> None:
    trials = [trial(4, 2.0), trial(8, 1.0), trial(16, 1.5)]

    for order in (trials, trials[::-1]):
        [outcome] = judge(["lora"], order)
        assert (outcome.best, outcome.ties, outcome.at_the_edge) == ("r8", (), {})


def test_of_equals_the_smallest_is_taken_and_the_others_are_named() -> None:
    [outcome] = judge(["lora"], [trial(16, 1.0, parameters=900), trial(8, 1.0, parameters=300), trial(4, 2.0)])

    assert (outcome.best, outcome.ties) == ("r8", ("r16",))


def test_trials_that_failed_or_wait_are_never_best_but_bound_what_was_tried() -> None:
    failed = trial(64, None, state="failed")
    [outcome] = judge(["lora"], [trial(4, 2.0), trial(16, 1.0), failed, trial(32, None, state="waiting")])

    assert (outcome.best, outcome.at_the_edge) == ("r16", {})
    [outcome] = judge(["lora"], [failed])
    assert outcome.best is None


def test_best_at_an_end_of_what_was_tried_is_told() -> None:
    assert judge(["lora"], [trial(4, 1.0), trial(8, 2.0)])[0].at_the_edge == {"rank": "lowest"}
    assert judge(["lora"], [trial(4, 2.0), trial(8, 1.0)])[0].at_the_edge == {"rank": "highest"}
