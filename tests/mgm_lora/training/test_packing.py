"""Packing loses no sample, fills its rows, and changes neither loss nor gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mgm_lora.errors import DataError
from mgm_lora.model.checkpoint import load_model
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.processor import EncodedText, MGMProcessor
from mgm_lora.model.sequence import IGNORE_INDEX
from mgm_lora.training.batches import BatchMaker, ConversationDataset
from mgm_lora.training.packing import PackedDataset, join, pack


@dataclass(frozen=True)
class Row:
    turns: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...] = ()


@pytest.fixture
def conversations(tiny_base: Path, tmp_path: Path, make_picture: Callable[..., Path]) -> ConversationDataset:
    """With one picture, with none, with two, of two turns, with the picture behind."""
    names = [make_picture(number).name for number in range(4)]
    return ConversationDataset(
        [
            Row((("human", "<image>\nwhat?"), ("gpt", "red")), (names[0],)),
            Row((("human", "who?"), ("gpt", "a dog"))),
            Row(
                (("human", "<image>\nwho?"), ("gpt", "me"), ("human", "<image>\nsame?"), ("gpt", "no")),
                (names[1], names[2]),
            ),
            Row((("human", "why?"), ("gpt", "so"), ("human", "no, why?"), ("gpt", "because."))),
            Row((("human", "how many?\n<image>"), ("gpt", "seven")), (names[3],)),
        ],
        processor=MGMProcessor.from_pretrained(tiny_base),
        pictures=tmp_path,
    )


@pytest.fixture
def model(tiny_base: Path) -> MGMForConditionalGeneration:
    model = load_model(tiny_base, dtype=torch.float64)
    model.config.max_length = 512
    model.vision_tower_aux.requires_grad_(False)
    return model.train()


def summed_loss_and_gradients(
    model: MGMForConditionalGeneration, batches: list[dict[str, Tensor]]
) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=1).loss
        loss.backward()
        total += loss.item()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return total, gradients


def test_packed_loss_and_gradients_are_those_of_the_samples(
    model: MGMForConditionalGeneration, conversations: ConversationDataset, tiny_base: Path
) -> None:
    make_batch = BatchMaker(MGMProcessor.from_pretrained(tiny_base))
    rows = [conversations[number] for number in range(5)]
    alone = summed_loss_and_gradients(model, [make_batch([row]) for row in rows])
    together = summed_loss_and_gradients(
        model, [make_batch([join([rows[3], rows[0], rows[1]]), join([rows[4], rows[2]])])]
    )
    assert abs(alone[0] - together[0]) <= 1e-10 * alone[0]
    assert alone[1].keys() == together[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in alone[1].values())
    assert largest > 0
    for name, gradient in alone[1].items():
        # transformers computes Gemma's norms in float32, whatever their input: their weights' gradients are sums in that
        bound = 1e-7 if "norm.weight" in name and name.startswith("language_model") else 1e-10
        assert (gradient - together[1][name]).abs().max() <= bound * largest, name


def test_without_sample_ids_the_samples_would_see_each_other(
    model: MGMForConditionalGeneration, conversations: ConversationDataset, tiny_base: Path
) -> None:
    make_batch = BatchMaker(MGMProcessor.from_pretrained(tiny_base))
    batch = make_batch([join([conversations[number] for number in range(5)])])
    apart = model(**batch).loss
    del batch["sample_ids"]
    assert abs(apart - model(**batch).loss) > 1e-4


def test_no_sample_learns_its_first_token_from_the_one_before() -> None:
    text, _ = join([(EncodedText([5, 6], [5, 6]), ()), (EncodedText([7, 8], [7, 8]), ())])
    assert text.labels == [IGNORE_INDEX, 6, IGNORE_INDEX, 8]


def test_every_sample_is_in_one_row_and_no_row_is_too_long(conversations: ConversationDataset) -> None:
    packed = PackedDataset(conversations, max_length=128, seed=0)
    assert sorted(number for row in packed.members for number in row) == list(range(5))
    assert 1 < len(packed) < 5
    for row, size in enumerate(packed.sizes):
        text, pictures = packed[row]
        assert size.num_tokens == len(text.input_ids) + 15 * len(pictures) <= 128
        assert size.num_pictures == len(pictures)


def test_rows_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(20, 1500, 2000).tolist()
    rows = pack(lengths, max_length=2048, seed=0)
    assert sorted(number for row in rows for number in row) == list(range(2000))
    assert max(sum(lengths[number] for number in row) for row in rows) <= 2048
    assert sum(lengths) / (len(rows) * 2048) > 0.97


def test_the_seed_decides() -> None:
    lengths = [7] * 12
    assert pack(lengths, max_length=21, seed=1) == pack(lengths, max_length=21, seed=1)
    assert pack(lengths, max_length=21, seed=1) != pack(lengths, max_length=21, seed=2)
    assert all(len(row) == 3 for row in pack(lengths, max_length=21, seed=1))


def test_a_sample_longer_than_a_row_is_an_error() -> None:
    with pytest.raises(DataError, match="1 samples don't fit in a row of 64 tokens, first number 1 with 65"):
        pack([64, 65], max_length=64, seed=0)
