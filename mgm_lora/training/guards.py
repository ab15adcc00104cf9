"""Ends a training at the very step whose loss is broken, and names the samples of that step.

Judged before the optimizer steps (an engine that steps within its backward pass has stepped), so that no checkpoint ever holds what a
broken step left. One look at the device per optimizer step. It doesn't know what a loss is made of.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mgm_lora.errors import BrokenLossError

ROW_NUMBERS = "row_numbers"
_NUM_RECENT = 50
_NUM_NEEDED = 10
"""Losses before the first judgement: those of a fresh adapter fall steeply."""
_NUM_NAMED = 32


class LossGuard:
    """Watches the loss of every step."""

    def __init__(self, rows: Any, *, max_spike: float | None) -> None:
        """
        Args:
            rows: the training rows; their `names`, where they have some, are the sample ids of each.
            max_spike: of the running median; none: only a loss that is no number ends the training.
        """
        self._names: Sequence[Sequence[str]] | None = getattr(rows, "names", None)
        self._max_spike = max_spike
        self.recent: deque[float] = deque(maxlen=_NUM_RECENT)
        """Losses of the last steps; part of a checkpoint."""
        self._losses: list[Tensor] = []
        self._rows: list[Tensor] = []

    def saw(self, loss: Tensor, rows: Tensor) -> None:
        """A micro batch's share of the step's loss, and the numbers of its rows [B]."""
        self._losses.append(loss.detach())
        self._rows.append(rows)

    def check(self, *, step: int, grad_norm: Any, add_up: Callable[[Tensor], Tensor]) -> None:
        """At the end of a step's backward passes; raises BrokenLossError.

        Args:
            add_up: adds up over the ranks.
        """
        if not self._losses:
            return
        local = torch.stack(self._losses).sum()
        whole = local if self._max_spike is None else add_up(local)
        norm = torch.as_tensor(0.0 if grad_norm is None else grad_norm, dtype=whole.dtype, device=whole.device)
        loss, size = torch.stack([whole, norm.reshape(())]).tolist()
        told = self._judge(loss, size)
        if told:
            raise BrokenLossError(self._explain(told, step=step))
        self.recent.append(loss)
        self._losses.clear()
        self._rows.clear()

    def _judge(self, loss: float, grad_norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the loss is {loss:.4g} and its gradient's norm {grad_norm}"
        if self._max_spike is not None and len(self.recent) >= _NUM_NEEDED:
            usual = median(self.recent)
            if loss > self._max_spike * usual:
                return (
                    f"the loss is {loss:.4g}, {loss / usual:.3g} times the median {usual:.4g} of the last {len(self.recent)} steps"
                    f" (guards.max_loss_spike is {self._max_spike:g})"
                )
        return None

    def _explain(self, told: str, *, step: int) -> str:
        numbers = [number for rows in self._rows for number in rows.tolist()]
        names = [name for number in numbers for name in (self._names[number] if self._names else (f"row {number}",))]
        shown = ", ".join(names[:_NUM_NAMED]) + (
            f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
        )
        return (
            f"{told} at step {step}; its samples: {shown}. The training ended before it learned from them, and its last checkpoint is kept."
            " Look at these samples (`mgm-lora validate` rejects what it is told to), or lower the learning rate or raise"
            " training.warmup_share; run again unchanged, it would end here again"
        )


class NumberedRows(Dataset[tuple[int, Any]]):
    """Rows with their numbers, so that a batch knows what it is made of."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self._rows[index]


class NumberedBatches:
    """A collator of numbered rows: the batch of the rows, and `row_numbers` [B]."""

    def __init__(self, make_batch: Callable[[Sequence[Any]], dict[str, Tensor]]) -> None:
        self._make_batch = make_batch

    def __call__(self, rows: Sequence[tuple[int, Any]]) -> dict[str, Tensor]:
        """The batch."""
        return {**self._make_batch([row for _, row in rows]), ROW_NUMBERS: torch.tensor([number for number, _ in rows])}
