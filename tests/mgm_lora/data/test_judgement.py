"""Every check once failing, in a data set where all other samples pass."""

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from mgm_lora.data.judgement import find_failures, list_rejects, summarise

SPOILT: dict[str, tuple[Callable[[Any], Any], str]] = {
    "wrong_roles": (lambda data: data.sample("x", answer=" "), "turn 1 is an empty answer"),
    "wrong_picture_markers": (
        lambda data: data.sample("x", question="<image>"),
        "<image>: 1, pictures of the sample: 0",
    ),
    "missing_picture": (lambda data: data.sample("x", "nowhere.png"), "'nowhere.png': no such file"),
    "wrong_picture_size": (
        lambda data: data.sample("x", data.picture("tiny.png", seed=9, size=(30, 7))),
        "'tiny.png': 30 x 7 pixels, allowed are sides from 8",
    ),
    "animated_picture": (
        lambda data: data.sample("x", data.animation("a.gif")),
        "'a.gif': several frames (GIF)",
    ),
    "broken_picture": (
        lambda data: data.sample("x", data.file("text.png", b"I am no picture")),
        "'text.png': a file that starts with b'I am no picture'",
    ),
    "blank_picture": (
        lambda data: data.sample("x", data.picture_of("blank.png", Image.new("RGB", (24, 16), (1, 2, 3)))),
        "'blank.png': every pixel has the colour (1, 2, 3)",
    ),
    "duplicate_picture": (
        lambda data: data.sample("x", data.picture("copy.png", seed=3)),
        "'copy.png' has the same pixels as '3.png'",
    ),
    "leaked_picture": (
        lambda data: data.sample("x", data.picture("leak.png", seed=101)),
        "'leak.png' has the same pixels as 'h1.png' of heldout",
    ),
    "unencodable_text": (
        lambda data: data.sample("x", answer="what \N{REPLACEMENT CHARACTER}"),
        "a letter that no token stands for",
    ),
    "low_label_share": (
        lambda data: data.sample("x", question="so " * 50, answer="yes"),
        "0.0377 of the tokens are learned, asked for are 0.05",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_check_names_the_sample_and_what_was_found(dataset: Any, name: str) -> None:
    spoil, told = SPOILT[name]
    dataset.train.append(spoil(dataset))
    tables, checks = dataset.tables()
    (reject,) = list_rejects(tables, checks=checks).to_dict("records")
    assert (reject["file"], reject["position"], reject["id"], reject["checks"]) == ("train", 6, "x", name)
    assert told in reject["reasons"]


def test_of_several_pictures_each_is_judged(dataset: Any) -> None:
    two = "<image> <image> the same?"
    dataset.train.append(dataset.sample("fine", ["0.png", "1.png"], question=two))
    dataset.train.append(dataset.sample("gone", ["0.png", "nowhere.png"], question=two))
    dataset.train.append(dataset.sample("leak", ["0.png", dataset.picture("leak.png", seed=101)], question=two))
    tables, checks = dataset.tables()
    rejects = list_rejects(tables, checks=checks)
    assert list(rejects["id"]) == ["gone", "leak"]
    assert rejects["reasons"][0] == "'nowhere.png': no such file in the pictures folder"
    assert rejects["reasons"][1] == "'leak.png' has the same pixels as 'h1.png' of heldout"


def test_an_id_that_comes_twice_in_one_file_is_told(dataset: Any) -> None:
    dataset.train += [dataset.sample("again"), dataset.sample("once"), dataset.sample("again")]
    tables, checks = dataset.tables()
    assert list(list_rejects(tables, checks=checks)["position"]) == [6, 8]


def test_a_sound_data_set_has_no_rejects(dataset: Any) -> None:
    dataset.known = [dataset.sample("k0", dataset.picture("k.png", seed=200)), dataset.sample("k1")]
    tables, checks = dataset.tables()
    assert list(tables) == ["train", "heldout", "known"]
    assert list_rejects(tables, checks=checks).empty


def test_a_long_sample_has_too_many_tokens_and_its_answer_would_be_cut(dataset: Any) -> None:
    fits = dataset.sample("fits", question="so " * 48, answer="yes it is a cat indeed it is " + "cat " * 2)
    long = dataset.sample("long", question="so " * 48, answer="yes it is a cat indeed it is " + "cat " * 3)
    dataset.train += [fits, long]
    tables, checks = dataset.tables()
    (reject,) = list_rejects(tables, checks=checks).to_dict("records")
    assert (reject["id"], reject["checks"]) == ("long", "too_many_tokens cut_answer")
    assert reject["reasons"] == "61 tokens, allowed are 60; 1 learned tokens lie beyond the limit of 60"


def test_an_id_is_unique_over_all_files(dataset: Any) -> None:
    dataset.train.append(dataset.sample("twice"))
    dataset.heldout += [dataset.sample("twice"), dataset.sample("once")]
    tables, checks = dataset.tables()
    rejects = list_rejects(tables, checks=checks)
    assert list(zip(rejects["file"], rejects["position"], rejects["checks"], strict=True)) == [
        ("train", 6, "duplicate_id"),
        ("heldout", 3, "duplicate_id"),
    ]
    assert "'twice' is the id of 2 samples: train[6], heldout[3]" in rejects["reasons"][0]


def test_several_reasons_are_all_told(dataset: Any) -> None:
    dataset.train.append(dataset.sample("t0", "nowhere.png", question="no marker", answer=""))
    tables, checks = dataset.tables()
    rejects = list_rejects(tables, checks=checks)
    assert rejects["checks"].iloc[-1] == "duplicate_id wrong_roles wrong_picture_markers missing_picture"
    assert rejects["reasons"].iloc[-1].count("; ") == 3


def test_several_questions_on_one_picture_are_no_duplicates(dataset: Any) -> None:
    dataset.train += [dataset.sample("a", "0.png"), dataset.sample("b", "./0.png")]
    tables, checks = dataset.tables()
    assert list_rejects(tables, checks=checks).empty


def test_blank_pictures_are_neither_duplicates_nor_leaks(dataset: Any) -> None:
    for name in ("a.png", "b.png"):
        dataset.picture_of(name, Image.new("RGB", (24, 16), (1, 2, 3)))
    dataset.train.append(dataset.sample("a", "a.png"))
    dataset.heldout.append(dataset.sample("b", "b.png"))
    tables, checks = dataset.tables()
    assert list(list_rejects(tables, checks=checks)["checks"]) == ["blank_picture"] * 2


def test_a_leak_names_every_file_that_has_the_picture(dataset: Any) -> None:
    dataset.heldout.append(dataset.sample("h", "5.png"))
    dataset.known = [dataset.sample("k", dataset.picture("again.png", seed=5))]
    tables, checks = dataset.tables()
    (reject,) = list_rejects(tables, checks=checks).to_dict("records")
    assert reject["reasons"] == "'5.png' has the same pixels as '5.png' of heldout and 'again.png' of known"


def _failures(dataset: Any, *, max_reject_share: float) -> list[str]:
    tables, checks = dataset.tables()
    summary = summarise(tables, checks=checks, num_pictures=0)
    return find_failures(tables, summary=summary, checks=checks, max_reject_share=max_reject_share)


def test_a_sound_data_set_has_no_failures(dataset: Any) -> None:
    assert _failures(dataset, max_reject_share=0.0) == []


def test_leakage_is_a_failure_that_names_ten_pairs_and_counts_the_rest(dataset: Any) -> None:
    for number in range(12):
        dataset.train.append(dataset.sample(f"a{number}", dataset.picture(f"a{number}.png", seed=300 + number)))
        dataset.train.append(dataset.sample(f"c{number}", f"a{number}.png"))
        dataset.heldout.append(dataset.sample(f"b{number}", dataset.picture(f"b{number}.png", seed=300 + number)))
    (failure,) = _failures(dataset, max_reject_share=0.0)  # a leak is no second failure as a reject
    assert "leakage: 12 pictures of train (in 24 samples) would be scored too" in failure
    assert "'a9.png' has the same pixels as 'b9.png' of heldout" in failure
    assert "a10.png" not in failure
    assert "... and 2 more" in failure


def test_the_share_of_rejects_is_of_each_file_and_the_limit_itself_is_allowed(dataset: Any) -> None:
    dataset.heldout += [dataset.sample(number, answer="") for number in "xyz"]
    assert _failures(dataset, max_reject_share=0.5) == []
    (failure,) = _failures(dataset, max_reject_share=0.49)
    assert failure == (
        "heldout: 50.0% of the samples are rejected (3 of 6; allowed are 49.0%). By reason: wrong_roles 3"
    )


def test_rejects_alone_are_a_failure_whatever_share_is_allowed(dataset: Any) -> None:
    dataset.train = [dataset.sample(f"x{number}", "nowhere.png") for number in range(5)]
    (failure,) = _failures(dataset, max_reject_share=1.0)
    assert failure.startswith("train: all samples are rejected, so nothing is left (5 of 5; allowed are 100.0%)")


def test_rejects_and_leaks_that_leave_nothing_are_told_as_such(dataset: Any) -> None:
    dataset.train = [dataset.sample("x", answer=""), dataset.sample("leak", "h0.png")]
    leak, share = _failures(dataset, max_reject_share=0.4)
    assert leak.startswith("leakage: 1 picture of train")
    assert share.startswith("train: 50.0% of the samples are rejected")


def test_each_failing_check_is_counted_and_a_sample_once(dataset: Any) -> None:
    dataset.train.append(dataset.sample("x", "nowhere.png", answer=""))
    tables, checks = dataset.tables()
    train = summarise(tables, checks=checks, num_pictures=0).files["train"]
    assert (train.num_samples, train.num_kept, train.num_rejects) == (7, 6, 1)
    assert {name: count for name, count in train.rejects.items() if count} == {"wrong_roles": 1, "missing_picture": 1}
