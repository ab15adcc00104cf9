"""Trials of sweeps stand beside the arms where they were asked the same, and are counted with the reason where not."""

from pathlib import Path
from typing import Any

import pytest

from mgm_lora.errors import SweepError
from mgm_lora.evaluation.trials import group_told, read_trials, trial_memory, trials_told
from mgm_lora.sweeping.results import Asked

from .sweep_results import ASKED, done, failed, waiting, write_result


def test_trials_that_were_asked_the_same_are_shown_best_loss_first(tmp_path: Path) -> None:
    write_result(tmp_path, [done(rank=8, loss=1.5, score=0.4), done(rank=16, loss=1.2, score=0.38)])

    trials = read_trials(tmp_path, arms=("base", "lora"), asked=ASKED)

    assert [(trial.label, trial.score, trial.is_best) for trial in trials.shown] == [
        ("LoRA, rank 16", 0.38, True),
        ("LoRA, rank 8", 0.4, False),
    ]
    assert trials.left_out == ()
    assert trials_told(trials) == (
        "2 trials of ranks, trained with seed 17: the same base, samples and questions as the arms."
    )


def test_failed_and_waiting_trials_are_counted_with_their_words(tmp_path: Path) -> None:
    write_result(tmp_path, [done(rank=8), failed(rank=64, words="mgm-lora: the loss\nis no number"), waiting(rank=16)])

    trials = read_trials(tmp_path, arms=("lora",), asked=ASKED)

    assert len(trials.shown) == 1
    assert trials_told(trials).endswith("2 trials left out:")
    assert [group_told(group) for group in trials.left_out] == [
        "1 trial of ranks: failed (LoRA, rank 64: mgm-lora: the loss is no number)",
        "1 trial of ranks: not run yet",
    ]


@pytest.mark.parametrize(
    "theirs, reason",
    [
        ({"base": "other"}, "began with another base"),
        ({"samples": "other"}, "learned from other samples, or was asked other questions"),
        ({"evaluation": {"metric": "anls", "batch_size": 8}}, "was scored in another way (evaluation.metric)"),
        (
            {"base": "other", "samples": "other"},
            "began with another base; learned from other samples, or was asked other questions",
        ),
    ],
)
def test_trials_of_another_base_or_other_questions_are_left_out(
    tmp_path: Path, theirs: dict[str, Any], reason: str
) -> None:
    write_result(tmp_path, [done(rank=8), done(rank=16)], asked=ASKED.model_copy(update=theirs))

    trials = read_trials(tmp_path, arms=("lora",), asked=ASKED)

    assert trials.shown == ()
    assert [group_told(group) for group in trials.left_out] == [f"2 trials of ranks: {reason}"]


def test_how_many_are_asked_at_once_makes_no_difference(tmp_path: Path) -> None:
    write_result(tmp_path, [done(rank=8)], asked=Asked(**{**dict(ASKED), "evaluation": {"metric": "exact"}}))

    assert len(read_trials(tmp_path, arms=("lora",), asked=ASKED).shown) == 1


@pytest.mark.parametrize(
    "of, reason",
    [
        ({"arms": ("full",)}, "its arm is not compared here"),
        ({"score": None}, "no score, only a loss, since the sweep asked no questions (mgm-lora sweep ranks --evaluate"),
        ({"asked": None}, "its file doesn't say what was asked"),
    ],
)
def test_what_has_no_score_of_a_compared_arm_is_left_out(tmp_path: Path, of: dict[str, Any], reason: str) -> None:
    write_result(tmp_path, [done(rank=8, score=of.get("score", 0.4))], asked=of.get("asked", ASKED))

    trials = read_trials(tmp_path, arms=of.get("arms", ("lora",)), asked=ASKED)

    assert trials.shown == ()
    assert reason in group_told(trials.left_out[0])


def test_planned_memory_says_so(tmp_path: Path) -> None:
    write_result(tmp_path, [done(rank=8, step_memory_gib=None), done(rank=16, loss=2.0)])

    planned, measured = read_trials(tmp_path, arms=("lora",), asked=ASKED).shown

    assert trial_memory(planned) == "1.75 GiB, planned"
    assert trial_memory(measured) == "1.50 GiB"


def test_file_that_is_no_result_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "ranks.json").write_text("{}")

    with pytest.raises(SweepError, match=r"ranks\.json' holds no sweep's result"):
        read_trials(tmp_path, arms=("lora",), asked=ASKED)


def test_no_folder_has_no_trials(tmp_path: Path) -> None:
    assert read_trials(None, arms=("lora",), asked=ASKED).shown == ()
    assert read_trials(tmp_path / "none", arms=("lora",), asked=ASKED).left_out == ()
