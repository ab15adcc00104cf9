"""Rows become one padded batch, packed or not."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mgm_lora.errors import DataError
from mgm_lora.model.checkpoint import load_model
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.model.sequence import IGNORE_INDEX, PICTURE_TOKEN
from mgm_lora.training.batches import BatchMaker, ConversationDataset, RowSize
from mgm_lora.training.packing import join


@dataclass(frozen=True)
class Row:
    turns: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...] = ()


@pytest.fixture
def rows(tiny_base: Path, tmp_path: Path, make_picture: Callable[..., Path]) -> ConversationDataset:
    names = [make_picture(number).name for number in range(3)]
    return ConversationDataset(
        [
            Row((("human", "<image>\nwhat?"), ("gpt", "red")), (names[0],)),
            Row((("human", "who?"), ("gpt", "a dog, I think"))),
            Row(
                (("human", "<image>\nwho?"), ("gpt", "me"), ("human", "<image>\nsame?"), ("gpt", "no")),
                (names[1], names[2]),
            ),
        ],
        processor=MGMProcessor.from_pretrained(tiny_base),
        pictures=tmp_path,
    )


@pytest.fixture
def make_batch(tiny_base: Path) -> BatchMaker:
    return BatchMaker(MGMProcessor.from_pretrained(tiny_base))


def test_rows_are_padded_on_the_right(rows: ConversationDataset, make_batch: BatchMaker) -> None:
    batch = make_batch([rows[0], rows[1]])
    texts = [rows[0][0], rows[1][0]]
    for row, text in enumerate(texts):
        length = len(text.input_ids)
        assert batch["input_ids"][row, :length].tolist() == text.input_ids
        assert batch["labels"][row, :length].tolist() == text.labels
        assert batch["attention_mask"][row].tolist() == [
            position < length for position in range(len(batch["labels"][row]))
        ]
        assert (batch["labels"][row, length:] == IGNORE_INDEX).all()
    assert "sample_ids" not in batch


def test_a_slot_per_picture_and_an_empty_one_for_a_row_without(
    rows: ConversationDataset, make_batch: BatchMaker
) -> None:
    batch = make_batch([rows[1], rows[2], rows[0]])
    assert batch["images"].shape[0] == batch["images_aux"].shape[0] == 4
    assert not batch["images"][0].any()
    assert all(batch["images"][slot].any() for slot in (1, 2, 3))
    assert "images" not in make_batch([rows[1]])


def test_sizes_count_picture_tokens(rows: ConversationDataset) -> None:
    texts = [rows[number][0] for number in range(3)]
    assert rows.sizes == [
        RowSize(len(texts[0].input_ids) + 15, 1),
        RowSize(len(texts[1].input_ids), 0),
        RowSize(len(texts[2].input_ids) + 30, 2),
    ]


def test_message_with_several_pictures_shows_each(tiny_base: Path, make_picture: Callable[..., Path]) -> None:
    processor = MGMProcessor.from_pretrained(tiny_base)
    names = [make_picture(number).name for number in range(3)]
    folder = make_picture(0).parent
    turns = (("human", "is <image> like <image>?"), ("gpt", "no"))
    made = ConversationDataset(
        [Row(turns, (names[0], names[2])), Row(turns, (names[1],))], processor=processor, pictures=folder
    )
    several, collapsed = made[0][0].input_ids, made[1][0].input_ids
    assert several.count(PICTURE_TOKEN) == 2
    assert collapsed.count(PICTURE_TOKEN) == 1, "as published, where there is one picture"
    batch = BatchMaker(processor)([made[0], made[1]])
    assert batch["images"].shape[0] == 3
    model = load_model(tiny_base, dtype=torch.float32)
    merged = model.merge_inputs(**batch)
    alone = [model.merge_inputs(**BatchMaker(processor)([made[row]])).inputs_embeds[0] for row in range(2)]
    for row, embeds in enumerate(alone):
        assert torch.allclose(merged.inputs_embeds[row, : len(embeds)], embeds, atol=1e-5)
        assert merged.attention_mask[row].sum() == len(embeds) == made.sizes[row].num_tokens


def test_rows_with_other_numbers_of_markers_than_pictures_are_told(tiny_base: Path) -> None:
    row = Row((("human", "<image> what?"), ("gpt", "red")), ("a.png", "b.png"))
    with pytest.raises(DataError, match=r"hold 1 <image>.*for 2 pictures"):
        ConversationDataset([row], processor=MGMProcessor.from_pretrained(tiny_base), pictures=Path("."))


def test_packed_rows_say_which_sample_a_position_is_of(rows: ConversationDataset, make_batch: BatchMaker) -> None:
    batch = make_batch([join([rows[0], rows[1]]), join([rows[2]])])
    lengths = [len(rows[number][0].input_ids) for number in range(3)]
    kept = batch["attention_mask"]
    assert batch["sample_ids"][0][kept[0]].tolist() == [0] * lengths[0] + [1] * lengths[1]
    assert batch["sample_ids"][1][kept[1]].tolist() == [0] * lengths[2]
    assert torch.equal(batch["input_ids"][0][kept[0]], torch.tensor(rows[0][0].input_ids + rows[1][0].input_ids))
    assert batch["images"].shape[0] == 3


def test_packed_and_single_rows_are_not_mixed(rows: ConversationDataset, make_batch: BatchMaker) -> None:
    with pytest.raises(AssertionError, match="of packed rows, or of none"):
        make_batch([join([rows[0]]), rows[1]])
