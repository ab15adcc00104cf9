"""What counts as the same answer, case by case."""

import pytest

from mgm_lora.evaluation.matching import is_match, normalise_answer


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Red", "red"),
        ("  red \n", "red"),
        ("red.", "red"),
        ("red . ", "red"),
        ("dark   blue", "dark blue"),
        ("yes!?", "yes"),
        ("红色。", "红色"),
        ("ＲＥＤ", "red"),  # full-width letters
        ("u.s.a.", "u.s.a"),
        ("!", "!"),
        ("", ""),
        ("the red", "the red"),
        ("3.5", "3.5"),
    ],
)
def test_normalisation_is_what_its_docstring_says(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


def test_answers_match_after_normalisation_only() -> None:
    assert is_match(" Triangle.", truth="triangle")
    assert not is_match("triangles", truth="triangle")
    assert not is_match("", truth="triangle")
    assert not is_match("!", truth="?")
