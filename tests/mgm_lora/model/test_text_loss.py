"""The text loss is the plain cross-entropy of the answers, whatever else is in the batch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mgm_lora.model.answering import picture_slots
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.model.text_loss import Conversation, TextLoss, text_losses

from .talkative import make_talkative


@pytest.fixture(scope="module")
def asked(tiny_base: Path) -> tuple[MGMForConditionalGeneration, MGMProcessor]:
    return make_talkative(tiny_base, grid=1)


@pytest.fixture
def conversations(make_picture: Callable[..., Path]) -> list[Conversation]:
    pictures = [make_picture(number) for number in range(3)]
    return [
        Conversation((("human", "<image>\nwhat color is it?"), ("gpt", "red")), (pictures[0],)),
        Conversation((("human", "why?"), ("gpt", "because")), ()),
        Conversation(
            (
                ("human", "<image>\nand this?"),
                ("gpt", "a longer answer of some words"),
                ("human", "and?"),
                ("gpt", "no"),
            ),
            (pictures[1],),
        ),
        Conversation((("human", "<image>\n<image>\nwhich is larger?"), ("gpt", "the second")), tuple(pictures[1:])),
    ]


def _plainly(
    model: MGMForConditionalGeneration, processor: MGMProcessor, conversation: Conversation
) -> tuple[float, int]:
    """By the logits of all positions of this one row."""
    text = processor.encode_sample(conversation.turns, num_pictures=len(conversation.pictures))
    batch = {
        "input_ids": torch.tensor([text.input_ids]),
        "attention_mask": torch.ones(1, len(text.input_ids)),
        **picture_slots([conversation.pictures], processor=processor),
    }
    with torch.no_grad():
        logits = model(**batch).logits[0]
    shown = [
        label
        for token, label in zip(text.input_ids, text.labels, strict=True)
        for _ in range(processor.num_picture_tokens if token == -200 else 1)
    ]
    total = F.cross_entropy(logits[:-1], torch.tensor(shown[1:]), reduction="sum", ignore_index=-100)
    return float(total), sum(label != -100 for label in shown[1:])


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_it_is_the_cross_entropy_of_the_answers_in_any_batch(
    asked: tuple[MGMForConditionalGeneration, MGMProcessor], conversations: list[Conversation], batch_size: int
) -> None:
    model, processor = asked
    found = text_losses(model, processor=processor, conversations=conversations, batch_size=batch_size)
    for conversation, loss in zip(conversations, found, strict=True):
        total, num_tokens = _plainly(model, processor, conversation)
        assert loss.num_tokens == num_tokens > 0
        assert loss.total == pytest.approx(total, rel=1e-4)


def test_small_chunks_give_the_same(
    asked: tuple[MGMForConditionalGeneration, MGMProcessor], conversations: list[Conversation]
) -> None:
    model, processor = asked
    before = text_losses(model, processor=processor, conversations=conversations, batch_size=4)
    whole, model.lean = model.lean, replace(model.lean, loss_chunk=2)
    try:
        after = text_losses(model, processor=processor, conversations=conversations, batch_size=4)
    finally:
        model.lean = whole
    assert [loss.total for loss in after] == pytest.approx([loss.total for loss in before], rel=1e-5)


def test_labels_beyond_the_longest_sequence_are_not_read(
    asked: tuple[MGMForConditionalGeneration, MGMProcessor],
) -> None:
    model, processor = asked
    most = processor.config.max_length
    long = Conversation((("human", "why? " * most), ("gpt", "because")), ())
    assert text_losses(model, processor=processor, conversations=[long], batch_size=1) == [TextLoss(0.0, 0)]
