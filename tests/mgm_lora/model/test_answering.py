"""Answers depend on their question alone: not on the batch, the padding or the cache."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mgm_lora.errors import DataError, PictureError
from mgm_lora.model.answering import Question, answer_questions, collate_prompts
from mgm_lora.model.checkpoint import load_model
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.processor import MGMProcessor

from .talkative import make_talkative

HISTORY = (("human", "<image>\nwhat?"), ("gpt", "red"), ("human", "and <image>, or <image>?"))


@pytest.fixture(params=[1, 2], ids=["plain", "high definition"])
def asked(request: pytest.FixtureRequest, tiny_base: Path) -> tuple[MGMForConditionalGeneration, MGMProcessor]:
    return make_talkative(tiny_base, grid=request.param)


@pytest.fixture
def questions(make_picture: Callable[..., Path]) -> list[Question]:
    """Short and long ones, with no picture, one, and several."""
    pictures = [make_picture(number) for number in range(3)]
    return [
        Question((("human", "<image>\nwhat color is it?"),), (pictures[0],)),
        Question((("human", "why?"),), ()),
        Question((("human", "<image>\n<image>\nWhich of these is the larger one, and why?"),), tuple(pictures[:2])),
        Question(HISTORY, tuple(pictures)),
        Question((("human", "a much longer question, one about nothing that can be seen"),), ()),
        Question((("human", "<image>\nwhat color is it?"),), (pictures[1],)),
        Question((("human", "<image>\n<image>\nwhat?"),), (pictures[2],)),
    ]


def test_batched_answers_are_those_of_each_alone(
    asked: tuple[MGMForConditionalGeneration, MGMProcessor], questions: list[Question]
) -> None:
    model, processor = asked
    alone, by_three, at_once = (
        answer_questions(model, processor=processor, questions=questions, batch_size=size, max_new_tokens=12)
        for size in (1, 3, len(questions))
    )
    assert alone == by_three == at_once
    assert len(set(alone)) == len(alone), "else a mix-up would not show"


def test_tokens_are_the_likeliest_by_forward_passes_without_a_cache(
    asked: tuple[MGMForConditionalGeneration, MGMProcessor], questions: list[Question]
) -> None:
    model, processor = asked
    questions = questions[1:4]
    prompts = [processor.encode_prompt(question.turns, num_pictures=len(question.pictures)) for question in questions]
    inputs = collate_prompts(prompts, pictures=[question.pictures for question in questions], processor=processor)
    made = {
        use_cache: model.generate(
            **inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0, use_cache=use_cache
        )
        for use_cache in (True, False)
    }
    assert torch.equal(made[True], made[False])
    for row, (prompt, question) in enumerate(zip(prompts, questions, strict=True)):
        ids = list(prompt)
        step = collate_prompts([ids], pictures=[question.pictures], processor=processor)
        for token in made[True][row].tolist():
            step["input_ids"] = torch.tensor([ids])
            step["attention_mask"] = torch.ones_like(step["input_ids"])
            with torch.no_grad():
                scores = model(**step).logits[0, -1]
            scores[1] = -torch.inf  # <eos>, which min_new_tokens forbids
            assert scores.argmax() == token
            ids.append(token)


def test_padding_of_prompts_on_either_side_is_the_same(
    asked: tuple[MGMForConditionalGeneration, MGMProcessor], questions: list[Question]
) -> None:
    model, processor = asked
    prompts = [processor.encode_prompt(question.turns, num_pictures=len(question.pictures)) for question in questions]
    right = collate_prompts(prompts, pictures=[question.pictures for question in questions], processor=processor)
    left = dict(right)
    for name in ("input_ids", "attention_mask"):
        rows = [row.roll(len(row) - len(prompt)) for row, prompt in zip(right[name], prompts, strict=True)]
        left[name] = torch.stack(rows)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(**left, **options), model.generate(**right, **options))


def test_features_made_before_give_the_same_answer(
    asked: tuple[MGMForConditionalGeneration, MGMProcessor], questions: list[Question]
) -> None:
    model, processor = asked
    prompts = [processor.encode_prompt(question.turns, num_pictures=len(question.pictures)) for question in questions]
    inputs = collate_prompts(prompts, pictures=[question.pictures for question in questions], processor=processor)
    with torch.no_grad():
        slots = model.picture_features(inputs["images"], inputs["images_aux"])
    used = [slot for slot in range(len(slots)) if inputs["images"][slot].any()]
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    again = model.generate(**texts, picture_features=[slots[slot] for slot in used], **options)
    assert torch.equal(again, model.generate(**inputs, **options))
    with pytest.raises(DataError, match="8 places for pictures, found the features of 7"):
        model.generate(**texts, picture_features=[slots[slot] for slot in used[1:]], **options)


def test_what_cannot_be_asked_is_told(tiny_base: Path, tmp_path: Path, make_picture: Callable[..., Path]) -> None:
    model, processor = load_model(tiny_base, dtype=torch.float32), MGMProcessor.from_pretrained(tiny_base)
    picture, notes = make_picture(), tmp_path / "notes.png"
    notes.write_text("dear diary")

    def ask(text: str, *pictures: Path) -> None:
        asked = Question((("human", text),), pictures)
        answer_questions(model, processor=processor, questions=[asked], batch_size=1, max_new_tokens=2)

    with pytest.raises(DataError, match=r"2 <image>.* for 0 pictures"):
        ask("<image> <image> what?")
    with pytest.raises(DataError, match=r"hold 0 <image>.* for 1 pictures"):
        ask("what?", picture)
    with pytest.raises(DataError, match=r"a question of \d+ tokens, 128 of them for 8 pictures.*takes 128"):
        ask("<image>" * 8 + "what?", *[picture] * 8)
    with pytest.raises(PictureError, match="is no picture"):
        ask("<image> what?", notes)
