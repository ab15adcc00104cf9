"""A step's loss is judged at that step, by settings."""

import pytest
import torch

from mgm_lora.errors import BrokenLossError
from mgm_lora.training.guards import LossGuard, NumberedBatches, NumberedRows


class Rows:
    names = tuple((f"sample-{number}",) for number in range(100))


def step(guard: LossGuard, number: int, *losses: float, norm: float = 1.0) -> None:
    for micro, loss in enumerate(losses):
        guard.saw(torch.tensor(loss), torch.tensor([2 * micro, 2 * micro + 1]))
    guard.check(step=number, grad_norm=torch.tensor(norm), add_up=lambda tensor: tensor)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_one_micro_batch_is_enough_and_all_samples_of_the_step_are_named(loss: float) -> None:
    guard = LossGuard(Rows(), max_spike=None)
    step(guard, 1, 1.0, 1.0)
    with pytest.raises(BrokenLossError, match=r"at step 2; its samples: sample-0, sample-1, sample-2, sample-3\. "):
        step(guard, 2, 1.0, loss)


def test_gradient_that_is_no_number_ends_it_before_the_optimizer_learns_it() -> None:
    with pytest.raises(BrokenLossError, match=r"the loss is 1 and its gradient's norm inf at step 1"):
        step(LossGuard(Rows(), max_spike=None), 1, 1.0, norm=float("inf"))


def test_spike_ends_it_only_where_the_settings_say_so() -> None:
    off, on = LossGuard(Rows(), max_spike=None), LossGuard(Rows(), max_spike=3.0)
    for number in range(20):
        step(off, number, 0.5, 0.5)
        step(on, number, 0.5, 0.49 + 0.01 * (number % 3))
    step(off, 20, 50.0)
    step(on, 20, 2.9)
    with pytest.raises(
        BrokenLossError, match=r"the loss is 3.1, 3.1 times the median .* of the last 21 steps .*max_loss_spike is 3\)"
    ):
        step(on, 21, 3.1)


def test_first_steps_are_not_judged_by_their_fall() -> None:
    guard = LossGuard(Rows(), max_spike=2.0)
    for number, loss in enumerate((0.1, 9.0, 0.1, 9.0, 0.1, 9.0, 0.1)):
        step(guard, number, loss)


def test_loss_is_judged_over_all_ranks() -> None:
    guard = LossGuard(Rows(), max_spike=3.0)
    guard.recent.extend([1.0] * 20)
    guard.saw(torch.tensor(0.5), torch.tensor([7]))
    with pytest.raises(BrokenLossError, match="sample-7"):
        guard.check(step=1, grad_norm=1.0, add_up=lambda tensor: tensor + 9.0)


def test_rows_without_names_are_named_by_number_and_long_lists_are_cut() -> None:
    guard = LossGuard(["row"] * 100, max_spike=None)
    guard.saw(torch.tensor(float("nan")), torch.arange(40))
    with pytest.raises(BrokenLossError, match=r"samples: row 0, row 1, .*row 31 and 8 more\."):
        guard.check(step=1, grad_norm=None, add_up=lambda tensor: tensor)


def test_batches_know_their_rows() -> None:
    rows = NumberedRows(["a", "b", "c"])
    batch = NumberedBatches(lambda rows: {"text": torch.tensor([ord(row) for row in rows])})([rows[2], rows[0]])
    assert len(rows) == 3
    assert batch["row_numbers"].tolist() == [2, 0]
    assert batch["text"].tolist() == [ord("c"), ord("a")]
