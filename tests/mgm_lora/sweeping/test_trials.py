"""Trials follow from the definition and the settings, have a name that stands for all that they are made from, and are valid before one is run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mgm_lora.errors import SweepError
from mgm_lora.settings import read_entries
from mgm_lora.sweeping.definition import SweepDefinition, find_definitions, read_definition
from mgm_lora.sweeping.trials import Trial, make_trials

ROOT = Path(__file__).parents[3]
SWEEPS = find_definitions(ROOT / "sweeps")
CODE = {"mgm_lora/training": "1" * 40, "data.dvc": "2" * 40}


@pytest.fixture
def entries() -> dict[str, Any]:
    return read_entries(ROOT / "params.yaml")


def define(vary: Mapping[str, Any], **more: Any) -> SweepDefinition:
    return SweepDefinition.model_validate({"about": "a", "arms": ["lora"], "search": "grid", "vary": vary, **more})


def trials_of(definition: SweepDefinition, entries: Mapping[str, Any], code: Mapping[str, str] = CODE) -> list[Trial]:
    return make_trials(definition, sweep="mine", entries=entries, code=code)


def test_preset_of_ranks_is_every_rank_with_alpha_once_and_twice_at_every_set_of_points(
    entries: dict[str, Any],
) -> None:
    trials = make_trials(read_definition(SWEEPS["ranks"]), sweep="ranks", entries=entries, code=CODE)

    shapes = {(t.entries["arms.lora.rank"], t.entries["arms.lora.alpha"], t.choices["points"]) for t in trials}
    sets = ("attention", "attention-mlp", "language-vision", "all")
    assert shapes == {(rank, rank * times, at) for rank in (8, 16, 32, 64) for times in (1, 2) for at in sets}
    assert len({trial.name for trial in trials}) == len(trials) == 32
    for trial in trials:
        lora = trial.settings.arm("lora")
        assert lora.kind == "lora"
        low_rank = {point.rank for point in lora.points().values() if point.mode == "lora"}
        assert low_rank == {trial.entries["arms.lora.rank"]}


def test_preset_of_learning_rates_goes_from_a_tenth_to_ten_times_in_each_arm(entries: dict[str, Any]) -> None:
    trials = make_trials(read_definition(SWEEPS["learning-rates"]), sweep="learning-rates", entries=entries, code=CODE)

    for arm in ("lora", "full"):
        now = entries["arms"][arm]["learning_rate"]
        rates = [trial.entries[f"arms.{arm}.learning_rate"] for trial in trials if trial.arm == arm]
        assert rates == pytest.approx([0.1 * now, 0.316 * now, now, 3.16 * now, 10 * now], rel=0.005)


def test_name_stands_for_settings_seed_code_and_data_and_nothing_else(entries: dict[str, Any]) -> None:
    definition = define({"rank": {"entry": "arm.rank", "values": [8]}})
    [name] = [trial.name for trial in trials_of(definition, entries)]

    def named(of: SweepDefinition = definition, code: Mapping[str, str] = CODE, **sections: Any) -> str:
        changed = {section: {**entries[section], **values} for section, values in sections.items()}
        return trials_of(of, {**entries, **changed}, code)[0].name

    assert named(registry={"experiment": "other"}) == name
    assert named(evaluation={"max_new_tokens": 3}) == name  # it asks nothing
    assert named(training={"num_epochs": 2}) != name
    assert named(data={"max_length": 80}) != name
    assert named(code={**CODE, "data.dvc": "3" * 40}) != name
    asking = define({"rank": {"entry": "arm.rank", "values": [8]}}, evaluate=True)
    assert named(asking) != named(asking, evaluation={"max_new_tokens": 3})


def test_arms_that_take_entries_from_the_arm_that_is_varied_stay_as_they_are(entries: dict[str, Any]) -> None:
    [trial] = trials_of(define({"rank": {"entry": "arm.rank", "values": [8]}}), entries)

    [follower] = {point.rank for point in trial.settings.arms["attention-only"].points().values()}  # type: ignore[union-attr]
    assert follower == 16


def test_random_search_draws_the_same_trials_again(entries: dict[str, Any]) -> None:
    vary = {"rate": {"entry": "arm.learning_rate", "log_uniform": [1.0e-4, 1.0e-2]}}

    def rates(seed: int) -> list[Any]:
        definition = define(vary, search="random", num_trials=4, search_seed=seed)
        return [trial.choices["rate"] for trial in trials_of(definition, entries)]

    assert rates(1) == rates(1) != rates(2)
    assert all(1.0e-4 <= rate <= 1.0e-2 for rate in rates(1))


@pytest.mark.parametrize(
    "definition, words",
    [
        (define({"rank": {"entry": "arm.rank", "values": [8]}}, arms=["dora"]), "no arm 'dora' in comparison.arms"),
        (define({"rank": {"entry": "arm.rank", "values": [0]}}), "rank 0:"),
        (define({"rank": {"entry": "arm.rnak", "values": [8, 16]}}), "rank 8; rank 16:"),
        (define({"rank": {"entry": "arm.rank", "values": [8, 8]}}), "'rank 8' and 'rank 8' are the same training"),
        (
            define({"a": {"entry": "arm.step.engine", "times": [2]}}),
            "is to be multiplied, but params.yaml says 'torch'",
        ),
        (define({"r": {"entry": "arm.rank", "values": [8]}}, training_seed=3), "training_seed 3 is none of"),
        (
            define({"r": {"entry": "arm.rank", "values": [8, 16]}}, search="random", num_trials=3),
            "3 different trials were asked for, found 2",
        ),
    ],
)
def test_what_can_not_be_run_is_told_before_anything_is(
    entries: dict[str, Any], definition: SweepDefinition, words: str
) -> None:
    with pytest.raises(SweepError) as error:
        trials_of(definition, entries)

    assert words in str(error.value)


def test_rate_that_changes_nothing_is_refused(entries: dict[str, Any]) -> None:
    """The arm `projector` trains what all arms share alone, and that has a rate of its own."""
    swept = {**entries, "comparison": {**entries["comparison"], "arms": ["lora", "full", "projector"]}}
    definition = define({"rate": {"entry": "arm.learning_rate", "values": [1.0e-3]}}, arms=["projector"])

    with pytest.raises(SweepError, match=r"arms\.projector\.learning_rate changes nothing"):
        trials_of(definition, swept)
