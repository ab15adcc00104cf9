"""VQA's answers: prepared and scored as the published code does, by hand-computed cases."""

import pytest

from mgm_lora.evaluation.vqa_answers import prepare_answer, soft_accuracy, textvqa_accuracy, vqav2_accuracy


@pytest.mark.parametrize(
    "answer, prepared",
    [
        ("The Cat.", "cat"),  # article, case, final period
        ("a  dog\tand an\nowl", "dog and owl"),
        ("red/blue", "red blue"),  # a mark between letters becomes a blank
        ("red / blue", "red blue"),
        ("red- blue", "red blue"),  # beside a blank it vanishes
        ("coca-cola", "coca cola"),
        ("Yes!", "yes"),
        ("what?", "what"),
        ("2.5", "2.5"),  # a period before a digit stays
        ("u.s.a.", "usa"),
        ("3,000", "3000"),
        ("three", "3"),
        ("None", "0"),
        ("ten of them", "10 of them"),
        ("twenty", "twenty"),  # words above ten are not known
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("ow's'at", "ow 's'at"),  # 's is cut off before contractions are mended
        ("joe's bar", "joe 's bar"),
        ("somebody'd", "somebodyd"),  # as published
        ("12:30", "12:30"),  # a colon is no mark
        ("$5", "$5"),
        ("", ""),
        ("the", ""),
    ],
)
def test_answers_are_prepared_as_evalai_does(answer: str, prepared: str) -> None:
    assert prepare_answer(answer) == prepared


@pytest.mark.parametrize("num_equal, worth", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_accuracy_is_the_mean_over_all_but_one_of_ten_people(num_equal: int, worth: float) -> None:
    truths = ["red"] * num_equal + [f"other {number}" for number in range(10 - num_equal)]
    assert soft_accuracy("red", truths=truths) == pytest.approx(worth)


def test_ties_between_people_count_alike() -> None:
    truths = ["red"] * 5 + ["blue"] * 5
    assert soft_accuracy("red", truths=truths) == soft_accuracy("blue", truths=truths) == 1.0


def test_soft_accuracy_of_fewer_people() -> None:
    assert soft_accuracy("red", truths=["red"]) == 1.0
    assert soft_accuracy("red", truths=["blue"]) == 0.0
    assert soft_accuracy("red", truths=["red", "red"]) == 1.0
    assert soft_accuracy("red", truths=["red", "blue"]) == 0.5


def test_textvqa_prepares_both_sides() -> None:
    assert textvqa_accuracy("two", truths=["The 2."] * 4 + ["3"] * 6) == 1.0
    assert textvqa_accuracy("Coca-Cola", truths=["coca cola"] * 3 + ["pepsi"] * 7) == pytest.approx(0.9)


def test_vqav2_leaves_people_who_agree_as_they_are() -> None:
    assert vqav2_accuracy("Yes.", truths=["yes"] * 10) == 1.0
    assert vqav2_accuracy("t shirt", truths=["t-shirt"] * 10) == 0.0  # as published: only the answer loses its mark
    assert vqav2_accuracy("t shirt", truths=["t-shirt"] * 9 + ["shirt"]) == 1.0


def test_one_number_with_a_comma_makes_all_marks_vanish() -> None:
    assert vqav2_accuracy("t-shirt", truths=["t shirt"] * 10) == 1.0
    assert vqav2_accuracy("1,000 t-shirt", truths=["1000 tshirt"] * 10) == 1.0  # as published


def test_vqav2_leaves_articles_and_numbers_of_people() -> None:
    assert vqav2_accuracy("two", truths=["2"] * 9 + ["3"]) == 1.0
    assert vqav2_accuracy("2", truths=["two"] * 9 + ["3"]) == 0.0  # as published
    assert vqav2_accuracy("the cat", truths=["the cat"] * 9 + ["dog"]) == 0.0
