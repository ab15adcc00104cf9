"""A conversation's answers are those that the whole of it would get at once, whatever was kept in between."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mgm_lora.errors import DataError
from mgm_lora.model.answering import Question, answer_questions
from mgm_lora.model.chat import AnswerStream, Chat
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.pictures import open_picture
from mgm_lora.model.processor import MGMProcessor

from .talkative import make_talkative

NUM_NEW = 10
ASKED = ("what color is it?", "why?", "and <what> else, 3 or 4?")


@pytest.fixture(params=[1, 2], ids=["plain", "high definition"])
def both(request: pytest.FixtureRequest, tiny_base: Path) -> tuple[MGMForConditionalGeneration, MGMProcessor]:
    return make_talkative(tiny_base, grid=request.param)


@pytest.fixture
def model(both: tuple[MGMForConditionalGeneration, MGMProcessor]) -> MGMForConditionalGeneration:
    return both[0]


@pytest.fixture
def processor(both: tuple[MGMForConditionalGeneration, MGMProcessor]) -> MGMProcessor:
    return both[1]


@pytest.fixture
def pictures(make_picture: Callable[..., Path]) -> list[Path]:
    return [make_picture(number) for number in range(2)]


def start(model: Any, processor: MGMProcessor, pictures: list[Path]) -> Chat:
    opened = [open_picture(path) for path in pictures]
    return Chat(model, processor=processor, pictures=opened, max_new_tokens=NUM_NEW)


@pytest.mark.parametrize("num_pictures", [0, 1, 2])
def test_each_turn_is_answered_as_the_whole_history_at_once(
    num_pictures: int, model: MGMForConditionalGeneration, processor: MGMProcessor, pictures: list[Path]
) -> None:
    shown = pictures[:num_pictures]
    chat = start(model, processor, shown)
    turns: tuple[tuple[str, str], ...] = ()
    for text in ASKED:
        marked = text if turns else "<image>\n" * num_pictures + text
        turns = (*turns, ("human", marked))
        whole = Question(turns, tuple(shown))
        [expected] = answer_questions(
            model, processor=processor, questions=[whole], batch_size=1, max_new_tokens=NUM_NEW
        )
        answer = chat.ask(text)
        assert answer == expected
        assert answer
        turns = (*turns, ("gpt", answer))


def test_pictures_are_looked_at_once_and_old_tokens_are_not_computed_again(
    model: MGMForConditionalGeneration, processor: MGMProcessor, pictures: list[Path]
) -> None:
    looks: list[int] = []
    lengths: list[int] = []
    model.vision_tower_aux.vision_stem.register_forward_hook(lambda *_: looks.append(1))
    model.language_model.model.register_forward_pre_hook(
        lambda _, args, given: (
            lengths.append(given["inputs_embeds"].shape[1]) if given.get("inputs_embeds") is not None else None
        ),
        with_kwargs=True,
    )
    chat = start(model, processor, pictures)
    chat.ask(ASKED[0])
    first = lengths.pop()
    chat.ask(ASKED[1])
    assert len(looks) == 2
    assert first > 2 * processor.num_picture_tokens
    # the end of the first answer, the question, and the template between them
    assert lengths[0] <= NUM_NEW + len("<end_of_turn>\n<eos><start_of_turn>user\n") + len(ASKED[1])


def test_pieces_come_one_by_one_and_are_the_answer(
    model: MGMForConditionalGeneration, processor: MGMProcessor, pictures: list[Path]
) -> None:
    chat, silent = start(model, processor, pictures), start(model, processor, pictures)
    for text in ASKED:
        pieces: list[str] = []
        answer = chat.ask(text, show=pieces.append)
        assert answer == "".join(pieces) == silent.ask(text)
        assert len(pieces) > 2


def test_a_letter_of_several_tokens_is_shown_when_it_is_whole() -> None:
    class Bytes:
        """As a tokenizer with byte tokens decodes."""

        def decode(self, tokens: list[int]) -> str:
            return bytes(tokens).decode("utf-8", errors="replace").strip()

    pieces: list[str] = []
    stream = AnswerStream(Bytes(), show=pieces.append)  # type: ignore[arg-type]
    stream.put(torch.ones(1, 0, dtype=torch.int64))
    for token in " aé \u20ac b".encode():
        stream.put(torch.tensor([token]))
    stream.end()
    assert pieces == ["a", "é", " €", " b"]


def test_a_question_that_cannot_be_asked_leaves_no_trace(
    model: MGMForConditionalGeneration, processor: MGMProcessor, pictures: list[Path]
) -> None:
    chat, other = start(model, processor, pictures), start(model, processor, pictures)
    for question, told in (
        ("", "the question is empty"),
        ("is <image> larger?", r"hold 1 <image>.*for 2 pictures"),
        ("<image><image><image> which?", r"hold 3 <image>.*for 2 pictures"),
        ("a" * 2000, "but the model takes 1024"),
    ):
        with pytest.raises(DataError, match=told):
            chat.ask(question)
    assert chat.ask("is <image> larger than <image>?") == other.ask("is <image> larger than <image>?")
    with pytest.raises(DataError, match="all 2 pictures were shown with the first one"):
        chat.ask("and <image>?")
    assert chat.ask(ASKED[1]) == other.ask(ASKED[1])


def test_an_interrupted_answer_is_asked_anew(
    model: MGMForConditionalGeneration, processor: MGMProcessor, pictures: list[Path]
) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    chat, other = start(model, processor, pictures), start(model, processor, pictures)
    assert chat.ask(ASKED[0]) == other.ask(ASKED[0])
    with pytest.raises(KeyboardInterrupt):
        chat.ask(ASKED[2], show=interrupt)
    assert chat.ask(ASKED[1]) == other.ask(ASKED[1])
