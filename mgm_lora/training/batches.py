"""Samples to batches: conversations encoded, pictures opened, rows padded on the right.

It takes any rows with `turns` and `pictures`; it doesn't know where they come from.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mgm_lora.model.answering import picture_slots
from mgm_lora.model.processor import EncodedText, MGMProcessor
from mgm_lora.model.sequence import IGNORE_INDEX


class ConversationRow(Protocol):
    """A conversation and the names of its pictures."""

    @property
    def turns(self) -> Sequence[tuple[str, str]]: ...
    @property
    def pictures(self) -> Sequence[str]: ...


class ConversationDataset(Dataset[tuple[EncodedText, tuple[Path, ...]]]):
    """Encoded conversations; pictures are opened when a batch is made."""

    def __init__(self, rows: Sequence[ConversationRow], *, processor: MGMProcessor, pictures: Path) -> None:
        self._rows = [
            (processor.encode_sample(row.turns), tuple(pictures / name for name in row.pictures)) for row in rows
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[EncodedText, tuple[Path, ...]]:
        return self._rows[index]


class BatchMaker:
    """The trainer's collator."""

    def __init__(self, processor: MGMProcessor) -> None:
        self._processor = processor

    def __call__(self, rows: Sequence[tuple[EncodedText, tuple[Path, ...]]]) -> dict[str, Tensor]:
        """`input_ids`, `labels`, `attention_mask` [B, T], and the picture slots."""
        length = max(len(text.input_ids) for text, _ in rows)
        input_ids = torch.full((len(rows), length), self._processor.pad_token_id)
        labels = torch.full((len(rows), length), IGNORE_INDEX)
        for row, (text, _) in enumerate(rows):
            input_ids[row, : len(text.input_ids)] = torch.tensor(text.input_ids)
            labels[row, : len(text.labels)] = torch.tensor(text.labels)
        lengths = torch.tensor([len(text.input_ids) for text, _ in rows])
        batch = {"input_ids": input_ids, "labels": labels, "attention_mask": torch.arange(length) < lengths[:, None]}
        return batch | picture_slots([pictures for _, pictures in rows], processor=self._processor)
