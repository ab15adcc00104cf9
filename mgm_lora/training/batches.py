"""Samples to batches: conversations encoded, pictures opened, rows padded on the right.

It takes any rows with `turns` and `pictures`; it doesn't know where they come from, nor how rows are packed or ordered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mgm_lora.model.answering import picture_slots
from mgm_lora.model.processor import EncodedText, MGMProcessor
from mgm_lora.model.sequence import IGNORE_INDEX

EncodedRow = tuple[EncodedText, tuple[Path, ...]]


class ConversationRow(Protocol):
    """A conversation and the names of its pictures."""

    @property
    def turns(self) -> Sequence[tuple[str, str]]: ...
    @property
    def pictures(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class RowSize:
    """What a row costs in a batch."""

    num_tokens: int
    """Picture tokens included."""
    num_pictures: int


@dataclass(frozen=True)
class PackedText(EncodedText):
    """Several conversations one behind the other."""

    sample_ids: list[int]
    """Per position, the number of the conversation that it is of: 0, 1, 2, ..."""


class ConversationDataset(Dataset[EncodedRow]):
    """Encoded conversations; pictures are opened when a batch is made."""

    def __init__(self, rows: Sequence[ConversationRow], *, processor: MGMProcessor, pictures: Path) -> None:
        self._rows = [
            (
                processor.encode_sample(row.turns, num_pictures=len(row.pictures)),
                tuple(pictures / name for name in row.pictures),
            )
            for row in rows
        ]
        self.sizes = [RowSize(processor.num_tokens(text), len(paths)) for text, paths in self._rows]
        """Of each row, in order."""
        self.names = [(str(getattr(row, "id", f"row {number}")),) for number, row in enumerate(rows)]
        """Sample ids of each row, where the rows have any."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> EncodedRow:
        return self._rows[index]


class BatchMaker:
    """The trainer's collator."""

    def __init__(self, processor: MGMProcessor) -> None:
        self._processor = processor

    def __call__(self, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """`input_ids`, `labels`, `attention_mask` [B, T], the picture slots, and `sample_ids` [B, T] of packed rows."""
        texts = [text for text, _ in rows]
        input_ids = _pad([text.input_ids for text in texts], filler=self._processor.pad_token_id)
        lengths = torch.tensor([len(text.input_ids) for text in texts])
        batch = {
            "input_ids": input_ids,
            "labels": _pad([text.labels for text in texts], filler=IGNORE_INDEX),
            "attention_mask": torch.arange(input_ids.shape[1]) < lengths[:, None],
        }
        packed = [text.sample_ids for text in texts if isinstance(text, PackedText)]
        if packed:
            assert len(packed) == len(rows), "a batch is of packed rows, or of none"
            batch["sample_ids"] = _pad(packed, filler=0)
        return batch | picture_slots([pictures for _, pictures in rows], processor=self._processor)


def _pad(rows: Sequence[list[int]], *, filler: int) -> Tensor:
    padded = torch.full((len(rows), max(len(row) for row in rows)), filler)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = torch.tensor(row)
    return padded
