"""The shape of a batch, the largest one that the data can give, and a made-up batch of exactly a shape.

What a step holds depends on a batch's shape alone. It doesn't know what a shape costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mgm_lora.errors import DataError
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.sequence import IGNORE_INDEX, PICTURE_TOKEN

_TEXT_TOKEN = 1


class SampleSize(Protocol):
    """What of a sample costs memory."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def num_labels(self) -> int: ...
    @property
    def pictures(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class BatchShape:
    """A batch of equally long rows."""

    num_rows: int
    length: int
    """Tokens per row after the pictures have been inserted."""
    num_labels: int
    """Over all rows."""
    num_pictures: int
    """Over all rows."""
    packed: bool = False
    """A row holds several samples, each seeing itself alone."""


def largest_batch(
    samples: Sequence[SampleSize], *, micro_batch_size: int, packed_to: int | None, config: MGMConfig
) -> BatchShape:
    """The longest row, the most labels and the most pictures that a batch of these samples can have, taken together.

    No real batch has more of anything. Where one row can't hold that many labels beside that many pictures, the labels are as many as it can hold.

    Args:
        samples: the training samples.
        micro_batch_size: rows of a batch.
        packed_to: the tokens that a packed row is filled to; none: a row is a sample.
        config: says how many tokens a picture takes.
    """
    if not samples:
        raise DataError(
            "no training samples, so there is no largest batch: look at the data, and run `dvc repro validate`"
        )
    longest = max(sample.num_tokens for sample in samples)
    if packed_to is None:
        num_labels = sum(sorted((sample.num_labels for sample in samples), reverse=True)[:micro_batch_size])
        num_pictures = sum(sorted((len(sample.pictures) for sample in samples), reverse=True)[:micro_batch_size])
        length = longest
    else:
        num_tokens = micro_batch_size * packed_to
        length = max(longest, min(packed_to, sum(sample.num_tokens for sample in samples)))
        num_labels = _densest(samples, [sample.num_labels for sample in samples], num_tokens=num_tokens)
        num_pictures = _densest(samples, [len(sample.pictures) for sample in samples], num_tokens=num_tokens)
    num_pictures = min(num_pictures, micro_batch_size * (length // config.num_picture_tokens))
    room = micro_batch_size * (length - 1) - num_pictures * config.num_picture_tokens
    return BatchShape(
        num_rows=micro_batch_size,
        length=length,
        num_labels=max(0, min(num_labels, room)),
        num_pictures=num_pictures,
        packed=packed_to is not None,
    )


def make_batch(
    shape: BatchShape, *, config: MGMConfig, device: torch.device | str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Arguments of an MGM's forward of exactly this shape: empty pictures of `dtype`, one token over and over, labels at the rows' ends.

    Raises:
        DataError: rows of that length can't hold so many labels and pictures.
    """
    pictures = _spread(shape.num_pictures, shape.num_rows)
    labels = _spread(shape.num_labels, shape.num_rows)[::-1]  # the rows with fewer pictures take more labels
    texts = [shape.length - count * config.num_picture_tokens for count in pictures]
    labels = _level(labels, limits=[text - (0 if count else 1) for text, count in zip(texts, pictures, strict=True)])
    if min(texts) < 0 or sum(labels) < shape.num_labels:
        raise DataError(
            f"asked for {shape}, but {shape.num_rows} rows of {shape.length} tokens can't hold {shape.num_labels} labels and"
            f" {shape.num_pictures} pictures of {config.num_picture_tokens} tokens: ask for longer rows"
        )
    num_prompt = max(text + count for text, count in zip(texts, pictures, strict=True))
    input_ids = torch.full((shape.num_rows, num_prompt), _TEXT_TOKEN)
    targets = torch.full((shape.num_rows, num_prompt), IGNORE_INDEX)
    mask = torch.zeros((shape.num_rows, num_prompt), dtype=torch.bool)
    sample_ids = torch.zeros((shape.num_rows, num_prompt), dtype=torch.int64)
    for row, (text, num_pictures, num_labels) in enumerate(zip(texts, pictures, labels, strict=True)):
        end = text + num_pictures
        mask[row, :end] = True
        input_ids[row, :num_pictures] = PICTURE_TOKEN
        targets[row, end - num_labels : end] = _TEXT_TOKEN
        sample_ids[row, end // 2 :] = 1
    num_slots = sum(max(count, 1) for count in pictures)  # a row without a picture uses up one all the same
    batch = {"input_ids": input_ids, "labels": targets, "attention_mask": mask}
    if shape.packed:
        batch["sample_ids"] = sample_ids
    batch = {name: values.to(device) for name, values in batch.items()}
    if not shape.num_pictures:
        return batch
    return batch | {
        "images": torch.zeros((num_slots, *config.images_shape), dtype=dtype, device=device),
        "images_aux": torch.zeros((num_slots, *config.images_aux_shape), dtype=dtype, device=device),
    }


def _densest(samples: Sequence[SampleSize], amounts: Sequence[int], *, num_tokens: int) -> int:
    """The most that samples of `num_tokens` tokens in all can have, a sample being used once."""
    total = 0
    by_density = sorted(zip(samples, amounts, strict=True), key=lambda pair: -pair[1] / pair[0].num_tokens)
    for sample, amount in by_density:
        if num_tokens <= 0:
            break
        total += min(amount, -(-amount * num_tokens // sample.num_tokens))
        num_tokens -= sample.num_tokens
    return total


def _spread(total: int, num_rows: int) -> list[int]:
    return [total // num_rows + (row < total % num_rows) for row in range(num_rows)]


def _level(wanted: list[int], *, limits: list[int]) -> list[int]:
    """Moves what is above a row's limit to rows that have room."""
    held = [max(0, min(want, limit)) for want, limit in zip(wanted, limits, strict=True)]
    left = sum(wanted) - sum(held)
    for row, limit in enumerate(limits):
        more = max(0, min(left, limit - held[row]))
        held[row] += more
        left -= more
    return held
