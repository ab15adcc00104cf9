"""Batches of exactly a shape, and the largest that data can give."""

from dataclasses import dataclass

import pytest
import torch

from mgm_lora.errors import DataError
from mgm_lora.memory.shapes import BatchShape, largest_batch, make_batch
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.sequence import IGNORE_INDEX


@dataclass(frozen=True)
class Size:
    num_tokens: int
    num_labels: int
    pictures: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "shape",
    [
        BatchShape(1, 20, 3, 1),
        BatchShape(3, 40, 31, 3),
        BatchShape(3, 40, 50, 4),
        BatchShape(2, 30, 0, 0),
        BatchShape(2, 16, 15, 1),
        BatchShape(2, 100, 60, 4, packed=True),
    ],
)
def test_model_meets_exactly_the_shape(shape: BatchShape, tiny_config: MGMConfig) -> None:
    model = MGMForConditionalGeneration(tiny_config)
    batch = make_batch(shape, config=tiny_config, device="cpu", dtype=torch.float32)
    merged = model.merge_inputs(**batch)
    assert merged.inputs_embeds.shape[:2] == (shape.num_rows, shape.length)
    assert bool(merged.attention_mask.all())
    assert int((merged.labels[:, 1:] != IGNORE_INDEX).sum()) == shape.num_labels
    assert (merged.position_ids is not None) == shape.packed
    if shape.num_labels:
        assert torch.isfinite(model(**batch).loss)


@pytest.mark.parametrize("grid, with_whole", [(2, False), (2, True), (3, True)])
def test_model_meets_exactly_the_shape_in_high_definition(grid: int, with_whole: bool, tiny_config: MGMConfig) -> None:
    changes = {"image_grid": grid, "image_global": with_whole, "image_size_aux": 32 * grid, "max_length": 512}
    config = MGMConfig.from_dict(tiny_config.to_dict() | changes)
    num_tokens = 16 * (grid**2 + with_whole)
    longest = Size(2 * num_tokens + 20, 9, ("a", "b"))
    shape = largest_batch([longest, Size(30, 7)], micro_batch_size=2, packed_to=None, config=config)
    assert shape == BatchShape(2, 2 * num_tokens + 20, 16, 2)
    batch = make_batch(shape, config=config, device="cpu", dtype=torch.float32)
    assert batch["images"].shape == (2, grid**2 + with_whole, 3, 16, 16)
    model = MGMForConditionalGeneration(config)
    merged = model.merge_inputs(**batch)
    assert merged.inputs_embeds.shape[:2] == (2, shape.length)
    assert bool(merged.attention_mask.all())
    assert torch.isfinite(model(**batch).loss)


def test_shape_that_rows_cannot_hold_is_refused(tiny_config: MGMConfig) -> None:
    with pytest.raises(DataError, match="ask for longer rows"):
        make_batch(BatchShape(2, 20, 39, 2), config=tiny_config, device="cpu", dtype=torch.float32)


def test_largest_batch_has_the_longest_row_the_most_labels_and_the_most_pictures(tiny_config: MGMConfig) -> None:
    samples = [Size(50, 4, ("a",)), Size(30, 20), Size(45, 6, ("b", "c")), Size(20, 1, ("d",))]
    found = largest_batch(samples, micro_batch_size=2, packed_to=None, config=tiny_config)
    assert found == BatchShape(2, 50, 26, 3)


def test_labels_that_rows_of_pictures_cannot_hold_are_left_out(tiny_config: MGMConfig) -> None:
    samples = [Size(20, 2, ("a",)), Size(18, 15)]
    found = largest_batch(samples, micro_batch_size=1, packed_to=None, config=tiny_config)
    assert found == BatchShape(1, 20, 3, 1)
    make_batch(found, config=tiny_config, device="cpu", dtype=torch.float32)


def test_packed_rows_are_full_and_take_the_densest_samples(tiny_config: MGMConfig) -> None:
    samples = [Size(50, 10, ("a",)), Size(20, 15), Size(20, 15), Size(100, 1)]
    found = largest_batch(samples, micro_batch_size=1, packed_to=100, config=tiny_config)
    assert found == BatchShape(1, 100, 41, 1, packed=True)  # 15 + 15 + 10, and a part of the last


def test_few_samples_fill_no_packed_row(tiny_config: MGMConfig) -> None:
    found = largest_batch([Size(20, 5), Size(10, 5)], micro_batch_size=1, packed_to=100, config=tiny_config)
    assert found == BatchShape(1, 30, 10, 0, packed=True)


def test_no_samples_is_an_error(tiny_config: MGMConfig) -> None:
    with pytest.raises(DataError, match="no training samples"):
        largest_batch([], micro_batch_size=1, packed_to=None, config=tiny_config)
