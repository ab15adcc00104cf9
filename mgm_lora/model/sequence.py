"""Puts picture features into the token stream, as the published `prepare_inputs_labels_for_multimodal` does.

A picture stands as one id, -200, in the prompt; here it becomes its N features. A row without a picture uses up one
picture slot all the same (the published collator gives every row one). A packed row holds several samples; positions
begin anew at each. It doesn't know where features or embeddings come from.

Where everything goes is worked out in numpy: the result is the only tensor of the sequence's size that is made, and
the shapes are known without looking at the card (or at fake tensors, as long as ids, mask, labels and sample ids are
real ones).

Shapes: B rows, T prompt positions, L positions after insertion, N tokens of a picture, H hidden size of the language
model, P labelled tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgm_lora.errors import DataError

PICTURE_TOKEN = -200
IGNORE_INDEX = -100
_PADDING = -1  # an origin that is none

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class MergedSequence:
    """What the language model takes."""

    inputs_embeds: Tensor
    """[B, L, H], zero where padded."""
    attention_mask: Tensor
    """[B, L], bool."""
    labels: Tensor
    """[B, L], -100 where nothing is to be learned."""
    position_ids: Tensor | None
    """[B, L], from 0 in each sample of a packed row; none where rows aren't packed. Padding continues the row's last sample."""
    predicting: Tensor
    """[P], the places in the flattened [B * L] whose next token is learned, row after row."""
    targets: Tensor
    """[P], those next tokens."""


def used_slots(input_ids_BT: Tensor) -> list[list[int]]:
    """Per row, the picture slots that it takes its features from; a row without a picture passes over one slot."""
    slots, next_slot = [], 0
    for count in (_read(input_ids_BT) == PICTURE_TOKEN).sum(axis=1).tolist():
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
    sample_ids: Tensor | None = None,
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
        sample_ids: [B, T], which sample of its packed row a position belongs to; none: a row is one sample.
    """
    assert sample_ids is None or padding_side == "right", "packed rows are for training"
    ids_BT, keep_BT = _read(input_ids), _read(attention_mask) != 0
    origins = [
        _origins(ids, keep=keep, pictures=pictures)[:max_length]
        for ids, keep, pictures in zip(ids_BT, keep_BT, picture_features, strict=True)
    ]
    origins_BL = _pad(origins, side=padding_side)
    labels_BL = _labels(origins_BL, ids_BT=ids_BT, labels_BT=None if labels is None else _read(labels))
    rows, ends = (labels_BL[:, 1:] != IGNORE_INDEX).nonzero()

    def tensor(values: NDArray[Any]) -> Tensor:
        return torch.tensor(values, device=input_ids.device)

    return MergedSequence(
        inputs_embeds=_join(token_embeds_BTH, ids_BT=ids_BT, origins_BL=origins_BL, picture_features=picture_features),
        attention_mask=tensor(origins_BL != _PADDING),
        labels=tensor(labels_BL),
        position_ids=None if sample_ids is None else tensor(_positions(origins_BL, sample_ids_BT=_read(sample_ids))),
        predicting=tensor(rows * labels_BL.shape[1] + ends),
        targets=tensor(labels_BL[rows, ends + 1]),
    )


def _read(tensor: Tensor) -> Ints:
    return np.array(
        tensor.tolist(), dtype=np.int64
    )  # a real tensor's list can be read under fake tensors, its .numpy() can't


def _origins(ids_T: Ints, *, keep: NDArray[np.bool_], pictures: Sequence[Tensor]) -> Ints:
    """Per position after insertion, the prompt position that it comes from: for all of a picture, its id's."""
    kept = keep.nonzero()[0]
    is_picture = ids_T[kept] == PICTURE_TOKEN
    if is_picture.sum() != len(pictures):
        raise DataError(
            f"a row has {is_picture.sum()} picture places and {len(pictures)} pictures: they must be as many"
        )
    lengths = np.ones_like(kept)
    lengths[is_picture] = [len(picture) for picture in pictures]
    return np.repeat(kept, lengths)


def _pad(rows: Sequence[Ints], *, side: Literal["left", "right"]) -> Ints:
    padded = np.full((len(rows), max(len(row) for row in rows)), _PADDING)
    for target, row in zip(padded, rows, strict=True):
        start = 0 if side == "right" else len(target) - len(row)
        target[start : start + len(row)] = row
    return padded


def _labels(origins_BL: Ints, *, ids_BT: Ints, labels_BT: Ints | None) -> Ints:
    if labels_BT is None:
        return np.full_like(origins_BL, IGNORE_INDEX)
    learnable_BT = np.where(ids_BT == PICTURE_TOKEN, IGNORE_INDEX, labels_BT)
    return np.where(origins_BL == _PADDING, IGNORE_INDEX, np.take_along_axis(learnable_BT, origins_BL, axis=1))


def _join(
    token_embeds_BTH: Tensor, *, ids_BT: Ints, origins_BL: Ints, picture_features: Sequence[Sequence[Tensor]]
) -> Tensor:
    """[B, L, H] by one concatenation of views: nothing is copied twice, forth or back."""
    nothing_H = token_embeds_BTH.new_zeros(token_embeds_BTH.shape[-1])
    parts: list[Tensor] = []
    for row, embeds_TH in enumerate(token_embeds_BTH.unbind()):
        pictures = iter(picture_features[row])
        for origin, length in _runs(origins_BL[row], ids_T=ids_BT[row]):
            if origin == _PADDING:
                parts.append(nothing_H.expand(length, -1))
            elif ids_BT[row, origin] == PICTURE_TOKEN:
                parts.append(next(pictures)[:length].to(nothing_H.dtype))
            else:
                parts.append(embeds_TH[origin : origin + length])
    return torch.cat(parts).view(*origins_BL.shape, -1)


def _runs(origins_L: Ints, *, ids_T: Ints) -> Iterator[tuple[int, int]]:
    """First origin and length of each picture, stretch of text, and padding."""

    def same_run(place: tuple[int, int]) -> tuple[bool, int]:
        number, origin = place
        is_text = origin != _PADDING and ids_T[origin] != PICTURE_TOKEN
        return is_text, origin - number if is_text else origin

    for _, run in groupby(enumerate(origins_L.tolist()), key=same_run):
        places = list(run)
        yield places[0][1], len(places)


def _positions(origins_BL: Ints, *, sample_ids_BT: Ints) -> Ints:
    """Counts from 0 in each sample."""
    owners_BL = np.take_along_axis(sample_ids_BT, np.maximum.accumulate(origins_BL, axis=1), axis=1)
    places_L = np.arange(owners_BL.shape[1])
    begins_BL = np.diff(owners_BL, axis=1, prepend=owners_BL[:, :1]) != 0
    return places_L - np.maximum.accumulate(np.where(begins_BL, places_L, 0), axis=1)
