"""Puts picture features into the token stream, as the published `prepare_inputs_labels_for_multimodal` does.

A picture stands as one id, -200, in the prompt; here it becomes its N features. A row without a picture uses up one
picture slot all the same (the published collator gives every row one). It doesn't know where features or embeddings
come from.

Shapes: B rows, T prompt positions, L positions after insertion, N tokens of a picture, H hidden size of the language
model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mgm_lora.errors import DataError

PICTURE_TOKEN = -200
IGNORE_INDEX = -100


@dataclass(frozen=True)
class MergedSequence:
    """What the language model takes."""

    inputs_embeds: Tensor
    """[B, L, H], zero where padded."""
    attention_mask: Tensor
    """[B, L], bool."""
    labels: Tensor
    """[B, L], -100 where nothing is to be learned."""


def used_slots(input_ids_BT: Tensor) -> list[list[int]]:
    """Per row, the picture slots that it takes its features from; a row without a picture passes over one slot."""
    slots, next_slot = [], 0
    for count in (input_ids_BT == PICTURE_TOKEN).sum(dim=1).tolist():
        slots.append(list(range(next_slot, next_slot + count)))
        next_slot += max(count, 1)
    return slots


def merge_pictures(
    token_embeds_BTH: Tensor,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor | None,
    picture_features: Sequence[Sequence[Tensor]],
    max_length: int,
    padding_side: Literal["left", "right"],
) -> MergedSequence:
    """Inserts each row's pictures, cuts at `max_length`, and pads the rows to one length.

    Args:
        token_embeds_BTH: embeddings of `input_ids`; what stands at a picture's id is not read.
        input_ids: [B, T], -200 for a picture.
        attention_mask: [B, T], true where a row has tokens.
        labels: [B, T] or none.
        picture_features: per row, one [N, H] per picture in it.
        max_length: longer rows are cut at the end.
        padding_side: right for training, left for generation.
    """
    labels = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels
    rows = []
    for row, pictures in enumerate(picture_features):
        keep = attention_mask[row].bool()
        embeds, row_labels = _insert(
            token_embeds_BTH[row, keep], input_ids[row, keep], labels=labels[row, keep], pictures=pictures
        )
        rows.append((embeds[:max_length], row_labels[:max_length]))
    return _pad(rows, padding_side=padding_side)


def _insert(embeds_TH: Tensor, ids_T: Tensor, *, labels: Tensor, pictures: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    positions = (ids_T == PICTURE_TOKEN).nonzero().flatten().tolist()
    if len(positions) != len(pictures):
        raise DataError(f"a row has {len(positions)} picture places and {len(pictures)} pictures: they must be as many")
    embed_parts, label_parts, start = [], [], 0
    for position, picture_NH in zip(positions, pictures, strict=True):
        embed_parts += [embeds_TH[start:position], picture_NH.to(embeds_TH.dtype)]
        label_parts += [labels[start:position], labels.new_full((len(picture_NH),), IGNORE_INDEX)]
        start = position + 1
    return torch.cat([*embed_parts, embeds_TH[start:]]), torch.cat([*label_parts, labels[start:]])


def _pad(rows: list[tuple[Tensor, Tensor]], *, padding_side: Literal["left", "right"]) -> MergedSequence:
    length = max(len(labels) for _, labels in rows)
    first_embeds, first_labels = rows[0]
    inputs_embeds = first_embeds.new_zeros((len(rows), length, first_embeds.shape[-1]))
    labels_BL = first_labels.new_full((len(rows), length), IGNORE_INDEX)
    mask = torch.zeros((len(rows), length), dtype=torch.bool, device=first_labels.device)
    for row, (embeds, labels) in enumerate(rows):
        span = slice(0, len(labels)) if padding_side == "right" else slice(length - len(labels), length)
        inputs_embeds[row, span] = embeds
        labels_BL[row, span] = labels
        mask[row, span] = True
    return MergedSequence(inputs_embeds=inputs_embeds, attention_mask=mask, labels=labels_BL)
