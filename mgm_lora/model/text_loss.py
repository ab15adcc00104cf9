"""How surprised a model is by the true answers of conversations: its text loss, sample by sample.

Answers that are merely right or wrong hide small damage; the loss on them doesn't. It doesn't know which model it asks, nor what the figures are for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from mgm_lora.model.answering import picture_slots
from mgm_lora.model.processor import EncodedText, MGMProcessor
from mgm_lora.model.sequence import IGNORE_INDEX


@dataclass(frozen=True)
class Conversation:
    """Turns that end with an answer, and the pictures that their `<image>` markers stand for."""

    turns: tuple[tuple[str, str], ...]
    pictures: tuple[Path, ...]


class TextLoss(NamedTuple):
    """Of one conversation."""

    total: float
    """Sum of the cross-entropies of the answers' tokens with what ends them, in nats."""
    num_tokens: int


def text_losses(
    model: Any,
    *,
    processor: MGMProcessor,
    conversations: Sequence[Conversation],
    batch_size: int,
    label: str = "text loss",
) -> list[TextLoss]:
    """The text loss of each conversation, in their order, as far as the model's longest sequence goes; shows progress with time left.

    Args:
        model: an MGM, adapted or not.
        processor: of the same checkpoint.
        conversations: any number.
        batch_size: of them at once; similar lengths go together.
        label: what the progress bar says.

    Raises:
        DataError: a conversation's `<image>` markers can't stand for its pictures.
    """
    texts = [processor.encode_sample(item.turns, num_pictures=len(item.pictures)) for item in conversations]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].input_ids))
    losses = [TextLoss(0.0, 0)] * len(texts)
    device = next(model.parameters()).device
    with tqdm(total=len(texts), desc=label, unit="sample", mininterval=1.0, delay=2.0) as progress:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = _collate([texts[i] for i in batch], processor=processor)
            inputs |= picture_slots([conversations[i].pictures for i in batch], processor=processor)
            sums, counts = model.label_losses(**{name: value.to(device) for name, value in inputs.items()})
            for i, total, count in zip(batch, sums.tolist(), counts.tolist(), strict=True):
                losses[i] = TextLoss(total=total, num_tokens=count)
            progress.update(len(batch))
    return losses


def _collate(texts: Sequence[EncodedText], *, processor: MGMProcessor) -> dict[str, Tensor]:
    ids = [torch.tensor(text.input_ids) for text in texts]
    input_ids = pad_sequence(ids, batch_first=True, padding_value=processor.pad_token_id)
    lengths = torch.tensor([len(row) for row in ids])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.arange(input_ids.shape[1]) < lengths[:, None],
        "labels": pad_sequence(
            [torch.tensor(text.labels) for text in texts], batch_first=True, padding_value=IGNORE_INDEX
        ),
    }
