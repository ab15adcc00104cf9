"""What answers to questions of one's own are worth."""

import pytest

from mgm_lora.evaluation.metrics import METRICS, anls, choice, exact, vqa


def test_all_metrics_give_one_for_the_truth_and_zero_for_another() -> None:
    for name, metric in METRICS.items():
        assert metric("B", ["B"]) == 1.0, name
        assert metric("B", ["C"]) == 0.0, name


def test_exact_takes_any_of_the_truths() -> None:
    assert exact(" Grey.", ["gray", "grey"]) == 1.0
    assert exact("greyish", ["gray", "grey"]) == 0.0


def test_vqa_is_soft_with_several_people_and_a_match_with_one() -> None:
    assert vqa("Two cats", ["the 2 cats"]) == 1.0
    assert vqa("red", ["red"] * 2 + ["blue"] * 8) == pytest.approx(0.6)


@pytest.mark.parametrize(
    "prediction, truths, worth",
    [
        ("Denver Broncos", ["denver  broncos"], 1.0),  # case and blanks don't count
        ("kitten", ["sitting"], 1 - 3 / 7),  # three edits of seven letters
        ("abcd", ["abxy"], 0.0),  # NL = 0.5 exactly is not below the threshold
        ("abcde", ["abcxy"], 0.6),
        ("abc", ["xyz", "abd"], 1 - 1 / 3),  # the nearest truth
        ("", ["a"], 0.0),
        ("", [""], 1.0),
        ("a", [], 0.0),
    ],
)
def test_anls(prediction: str, truths: list[str], worth: float) -> None:
    assert anls(prediction, truths) == pytest.approx(worth)


@pytest.mark.parametrize(
    "prediction, truth, right",
    [
        ("B", "B", True),
        ("b", "B", True),
        ("(B)", "B. a dog", True),
        ("B. A dog.", "B", True),
        ("B)", "B: a dog", True),
        ("The answer is B.", "B", True),
        ("Answer: B", "B", True),
        ("a dog", "B. a dog", True),
        ("A dog.", "a dog", True),
        ("C. a dog", "B. a dog", False),  # its letter is what counts
        ("A dog", "A", False),  # an article is no letter
        ("B", "a dog", False),  # whose letter nobody knows
        ("", "", False),
        ("B or C", "B", False),
    ],
)
def test_choice(prediction: str, truth: str, right: bool) -> None:
    assert choice(prediction, [truth]) == float(right)
