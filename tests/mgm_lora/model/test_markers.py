"""Which pictures the markers stand for, in every mixture of counts."""

import pytest

from mgm_lora.errors import DataError
from mgm_lora.model.markers import count_markers, mark_pictures, pictures_per_message, show_pictures
from mgm_lora.model.template import conversation_pieces

M = "<image>"


def turns(*questions: str) -> list[tuple[str, str]]:
    return [turn for question in questions for turn in (("human", question), ("gpt", f"{M} is text here"))]


@pytest.mark.parametrize(
    "questions, num_pictures, expected",
    [
        (("what?",), 0, []),
        ((f"{M}\nwhat?",), 1, [1]),
        ((f"{M}\n{M}\nwhich?",), 2, [2]),
        ((f"{M}{M}{M} which?", "and?", f"like {M}?"), 4, [3, 1]),
        ((f"{M} a", f"{M} b"), 2, [1, 1]),
        # as published: a message is one picture, whatever its markers
        ((f"{M}\n{M}\nwhat?",), 1, [1]),
        ((f"{M} {M} a", f"{M} b"), 2, [1, 1]),
        ((f"{M}\n{M}\nwhat?",), None, [1]),
    ],
)
def test_markers_are_pictures_or_their_messages_are(
    questions: tuple[str, ...], num_pictures: int | None, expected: list[int]
) -> None:
    assert pictures_per_message(turns(*questions), num_pictures=num_pictures) == expected


@pytest.mark.parametrize(
    "questions, num_pictures, told",
    [
        (("what?",), 1, r"hold 0 <image> \(0 of them hold any\) for 1 pictures"),
        ((f"{M} what?",), 0, r"hold 1 <image> \(1 of them hold any\) for 0 pictures"),
        ((f"{M} {M} {M}",), 2, r"hold 3 <image> \(1 of them hold any\) for 2 pictures"),
        ((f"{M} a", f"{M} b"), 3, r"hold 2 <image> \(2 of them hold any\) for 3 pictures"),
    ],
)
def test_other_counts_are_told(questions: tuple[str, ...], num_pictures: int, told: str) -> None:
    with pytest.raises(DataError, match=told):
        pictures_per_message(turns(*questions), num_pictures=num_pictures)


def test_pictures_stand_a_line_each_before_the_words_of_their_message() -> None:
    said = turns(f"Is {M} like {M}?", "why?", f"and {M}?")
    pieces = show_pictures(conversation_pieces(said), counts=pictures_per_message(said, num_pictures=3))
    text = "".join(piece.text for piece in pieces if not piece.learned)
    assert f"user\n{M}\n{M}\nIs  like ?<" in text
    assert f"user\n{M}\nand ?<" in text
    assert count_markers(said) == text.count(M) == 3
    assert sum(piece.text.count(M) for piece in pieces if piece.learned) == 3


def test_a_question_shows_its_pictures_first_or_where_it_says() -> None:
    assert mark_pictures("what?", num_pictures=2) == f"{M}\n{M}\nwhat?"
    assert mark_pictures("what?", num_pictures=0) == "what?"
    assert mark_pictures(f"what is {M}?", num_pictures=1) == f"what is {M}?"


@pytest.mark.parametrize("question", ["", " \n", f"{M}\n"])
def test_an_empty_question_is_told(question: str) -> None:
    with pytest.raises(DataError, match="the question is empty"):
        mark_pictures(question, num_pictures=1)
