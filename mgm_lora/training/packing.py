"""Packs samples into rows: several conversations, pictures and all, one behind the other, up to a length.

Each sees itself alone (the model restarts positions and masks what is of others), so a packed row's loss is the sum of
its samples' losses: short samples then cost what they are long, not what the longest of their batch is. It doesn't know
the model.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from mgm_lora.errors import DataError
from mgm_lora.model.sequence import IGNORE_INDEX
from mgm_lora.training.batches import ConversationDataset, EncodedRow, PackedText, RowSize


class PackedDataset(Dataset[EncodedRow]):
    """Rows of up to `max_length` tokens, each of one or more of the conversations; every conversation is in one row.

    Which share a row depends on their lengths and the seed, and stays so in every epoch.

    Raises:
        DataError: a conversation alone is longer.
    """

    def __init__(self, conversations: ConversationDataset, *, max_length: int, seed: int) -> None:
        self._conversations = conversations
        self.members = pack([size.num_tokens for size in conversations.sizes], max_length=max_length, seed=seed)
        """Per row, the numbers of its conversations."""
        self.sizes = [_add_up([conversations.sizes[number] for number in row]) for row in self.members]
        """Of each row, in order."""
        self.names = [tuple(name for number in row for name in conversations.names[number]) for row in self.members]
        """Sample ids of each row."""

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> EncodedRow:
        return join([self._conversations[number] for number in self.members[index]])


def pack(lengths: Sequence[int], *, max_length: int, seed: int) -> list[list[int]]:
    """Rows of numbers of `lengths`, each row's lengths adding up to `max_length` at most: the longest first, each where it fits best.

    Raises:
        DataError: a length is above `max_length`.
    """
    too_long = [number for number, length in enumerate(lengths) if length > max_length]
    if too_long:
        raise DataError(
            f"{len(too_long)} samples don't fit in a row of {max_length} tokens, first number {too_long[0]} with"
            f" {lengths[too_long[0]]}: raise data.max_length, or let `validate` reject them"
        )
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(lengths)).tolist()
    rows: list[list[int]] = []
    rows_by_space: defaultdict[int, list[int]] = defaultdict(list)
    spaces: list[int] = []  # of rows_by_space, sorted: as many as there are lengths at most, however many rows
    for number in sorted(shuffled, key=lambda number: -lengths[number]):
        place = bisect_left(spaces, lengths[number])
        if place == len(spaces):
            space, row = max_length, len(rows)
            rows.append([])
        else:
            space = spaces[place]
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                spaces.pop(place)
        rows[row].append(number)
        left = space - lengths[number]
        if not rows_by_space[left]:
            insort(spaces, left)
        rows_by_space[left].append(row)
    return [rows[row] for row in rng.permutation(len(rows))]


def join(rows: Sequence[EncodedRow]) -> EncodedRow:
    """One row of several."""
    texts = [text for text, _ in rows]
    text = PackedText(
        input_ids=[token for text in texts for token in text.input_ids],
        # a sample's first token follows the sample before: it is never predicted, as it isn't when it begins a row
        labels=[label for text in texts for label in (IGNORE_INDEX, *text.labels[1:])],
        sample_ids=[number for number, text in enumerate(texts) for _ in text.input_ids],
    )
    return text, tuple(path for _, paths in rows for path in paths)


def _add_up(sizes: Sequence[RowSize]) -> RowSize:
    return RowSize(sum(size.num_tokens for size in sizes), sum(size.num_pictures for size in sizes))
