"""The order of samples: those of like length, with pictures or without, share an optimizer step, so that little is padded.

What shares a step depends on the seed, the epoch, the sizes and the global batch, and on nothing of how a card runs it:
both arms see the same samples in the same steps, whatever their micro batches. It doesn't know what a sample says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler
from transformers import TrainerCallback

from mgm_lora.training.batches import RowSize

_STEPS_SORTED_TOGETHER = (
    50  # samples are sorted in random portions of so many steps: little is padded, and the order still is of chance
)


class GroupedOrder(Sampler[int]):
    """Numbers of samples, each once per epoch, whole global batches alike and in random order.

    At most one batch mixes samples with and without pictures; the one that isn't whole is the last.
    """

    def __init__(self, sizes: Sequence[RowSize], *, global_batch_size: int, seed: int) -> None:
        self._sizes = sizes
        self._global_batch_size = global_batch_size
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[int]:
        return iter(
            grouped_order(self._sizes, global_batch_size=self._global_batch_size, seed=self._seed, epoch=self._epoch)
        )

    def set_epoch(self, epoch: int) -> None:
        """In place: the epoch whose order is given from now on."""
        self._epoch = epoch


class EpochToOrder(TrainerCallback):
    """Tells the order its epoch: accelerate doesn't where a run of several processes goes on from a checkpoint."""

    def __init__(self, order: GroupedOrder) -> None:
        self._order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the epoch's batches are drawn."""
        self._order.set_epoch(int(state.epoch or 0))


@dataclass(frozen=True)
class PaddingFigures:
    """Positions of batches that hold nothing, over all positions."""

    padded_share: float
    """In the order that is trained in."""
    padded_share_plain: float
    """In a random order, which groups nothing."""


def grouped_order(sizes: Sequence[RowSize], *, global_batch_size: int, seed: int, epoch: int) -> list[int]:
    """The numbers of `sizes` in an epoch's order."""
    rng = np.random.default_rng((seed, epoch))
    shuffled = rng.permutation(len(sizes)).tolist()
    whole: list[list[int]] = []
    rest: list[int] = []
    for with_pictures in (True, False):
        alike = [number for number in shuffled if bool(sizes[number].num_pictures) == with_pictures]
        batches, left = _alike_batches(alike, sizes=sizes, global_batch_size=global_batch_size)
        whole += batches
        rest += left
    if len(rest) >= global_batch_size:
        whole.append(rest[:global_batch_size])
        rest = rest[global_batch_size:]
    return [number for batch in rng.permutation(len(whole)) for number in whole[batch]] + rest


def padding_figures(
    sizes: Sequence[RowSize], *, micro_batch_size: int, global_batch_size: int, seed: int
) -> PaddingFigures:
    """How much of the first epoch's batches is padding, grouped and not."""
    ours = grouped_order(sizes, global_batch_size=global_batch_size, seed=seed, epoch=0)
    plain = np.random.default_rng((seed, 0)).permutation(len(sizes)).tolist()
    lengths = np.array([size.num_tokens for size in sizes])
    return PaddingFigures(
        padded_share=_padded_share(lengths[ours], micro_batch_size=micro_batch_size),
        padded_share_plain=_padded_share(lengths[plain], micro_batch_size=micro_batch_size),
    )


def _alike_batches(
    numbers: Sequence[int], *, sizes: Sequence[RowSize], global_batch_size: int
) -> tuple[list[list[int]], list[int]]:
    """Whole batches of like length, and what is left over."""
    batches: list[list[int]] = []
    portion_size = _STEPS_SORTED_TOGETHER * global_batch_size
    for start in range(0, len(numbers), portion_size):
        portion = sorted(numbers[start : start + portion_size], key=lambda number: sizes[number].num_tokens)
        batches += [portion[at : at + global_batch_size] for at in range(0, len(portion), global_batch_size)]
    if batches and len(batches[-1]) < global_batch_size:
        return batches[:-1], batches[-1]
    return batches, []


def _padded_share(lengths: NDArray[np.int64], *, micro_batch_size: int) -> float:
    starts = np.arange(0, len(lengths), micro_batch_size)
    num_rows = np.diff(starts, append=len(lengths))
    positions = (np.maximum.reduceat(lengths, starts) * num_rows).sum()
    return float(1 - lengths.sum() / positions)
