import pytest

from mgm_lora.data.llava import Conversation, Turn
from mgm_lora.data.structure import FINE, canonical_turns, judge_structure

QUESTION, ANSWER = ("human", "What?"), ("gpt", "A cat.")


def _conversation(*turns: tuple[str, str], pictures: int = 0) -> Conversation:
    names = tuple(f"{number}.png" for number in range(pictures))
    return Conversation(id="1", pictures=names, turns=tuple(Turn(*turn) for turn in turns), question_type="")


@pytest.mark.parametrize("turns", [[QUESTION, ANSWER], [QUESTION, ANSWER] * 3, [("human", ""), ANSWER]])
def test_rounds_of_question_and_answer_are_fine(turns: list[tuple[str, str]]) -> None:
    assert judge_structure(_conversation(*turns)).is_fine


@pytest.mark.parametrize(
    "turns, told",
    [
        ([], "no turns"),
        ([ANSWER], "turn 0 is from 'gpt'"),
        ([QUESTION], "the last turn is from 'human'"),
        ([QUESTION, ANSWER, QUESTION], "the last turn is from 'human'"),
        ([QUESTION, QUESTION], "turn 1 is from 'human'"),
        ([("user", "hi"), ("assistant", "hi")], "turn 0 is from 'user', asked for 'human'"),
        ([QUESTION, ("gpt", " \n")], "turn 1 is an empty answer"),
    ],
)
def test_other_roles_are_told(turns: list[tuple[str, str]], told: str) -> None:
    structure = judge_structure(_conversation(*turns))
    assert told in structure.wrong_roles
    assert not structure.is_fine


@pytest.mark.parametrize(
    "question, pictures",
    [("What?", 0), ("<image>\nWhat?", 1), ("What?\n<image>", 1), ("<image> and <image>\nthe same?", 1)],
)
def test_a_marked_message_is_one_picture(question: str, pictures: int) -> None:
    assert judge_structure(_conversation(("human", question), ANSWER, pictures=pictures)).wrong_picture_markers == FINE


def test_the_marker_may_stand_in_a_later_question() -> None:
    turns = [QUESTION, ANSWER, ("human", "<image> And this?"), ANSWER]
    assert judge_structure(_conversation(*turns, pictures=1)).is_fine


@pytest.mark.parametrize(
    "turns, pictures, told",
    [
        ([("human", "<image> What?"), ANSWER], 0, "<image>: 1, pictures of the sample: 0"),
        ([QUESTION, ANSWER], 1, "<image>: 0, pictures of the sample: 1"),
        ([("human", "<image> What?"), ANSWER] * 2, 1, "<image>: 2, pictures of the sample: 1"),
        ([QUESTION, ("gpt", "<image>")], 1, "an answer holds <image>"),
    ],
)
def test_markers_and_pictures_that_do_not_match(turns: list[tuple[str, str]], pictures: int, told: str) -> None:
    structure = judge_structure(_conversation(*turns, pictures=pictures))
    assert told in str(structure.wrong_picture_markers)
    assert not structure.is_fine


@pytest.mark.parametrize(
    "question, pictures",
    [("<image> <image> the same?", 2), ("<image> <image> <image> differ?", 3)],
)
def test_a_marker_for_each_of_several_pictures_is_fine(question: str, pictures: int) -> None:
    conversation = _conversation(("human", question), ANSWER, pictures=pictures)
    assert judge_structure(conversation).is_fine
    assert canonical_turns(conversation) == conversation.turns


def test_pictures_of_several_messages_are_fine() -> None:
    turns = [("human", "<image> What?"), ANSWER, ("human", "<image> <image> And these?"), ANSWER]
    assert judge_structure(_conversation(*turns, pictures=3)).is_fine


def test_several_markers_of_one_picture_become_one() -> None:
    conversation = _conversation(("human", "<image> and <image>\nthe same?"), ANSWER, pictures=1)
    assert canonical_turns(conversation)[0].text == "<image> and \nthe same?"


def test_pictures_that_match_neither_markers_nor_messages_are_told() -> None:
    structure = judge_structure(_conversation(("human", "<image> <image> <image>"), ANSWER, pictures=2))
    assert "<image>: 1, pictures of the sample: 2, <image> in all: 3" in structure.wrong_picture_markers
