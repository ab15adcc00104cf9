"""The order groups what is alike, loses nothing, and doesn't depend on how a card runs it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from mgm_lora.training.batches import RowSize
from mgm_lora.training.grouping import EpochToOrder, GroupedOrder, grouped_order, padding_figures

GLOBAL = 8


@pytest.fixture
def sizes() -> list[RowSize]:
    """301 samples: a share with pictures, lengths that spread widely."""
    rng = np.random.default_rng(5)
    lengths = rng.lognormal(4.5, 0.9, 301).astype(int).clip(10, 1000)
    return [RowSize(int(n) + 576 * p, p) for n, p in zip(lengths, rng.integers(0, 2, 301).tolist(), strict=True)]


def global_batches(order: list[int]) -> list[list[int]]:
    return [order[start : start + GLOBAL] for start in range(0, len(order), GLOBAL)]


def test_every_sample_comes_once_per_epoch(sizes: list[RowSize]) -> None:
    order = GroupedOrder(sizes, global_batch_size=GLOBAL, seed=1)
    assert len(order) == 301
    for epoch in range(3):
        order.set_epoch(epoch)
        assert sorted(order) == list(range(301))


def test_order_changes_with_the_epoch_and_the_seed_and_with_nothing_else(sizes: list[RowSize]) -> None:
    def of(**changes: int) -> list[int]:
        return grouped_order(sizes, **{"global_batch_size": GLOBAL, "seed": 1, "epoch": 0} | changes)  # type: ignore[arg-type]

    assert of() == of()
    assert of() != of(epoch=1)
    assert of() != of(seed=2)


def test_global_batches_hold_one_modality_but_for_one_of_the_left_over(sizes: list[RowSize]) -> None:
    batches = global_batches(grouped_order(sizes, global_batch_size=GLOBAL, seed=1, epoch=0))
    mixed = [batch for batch in batches if len({sizes[number].num_pictures for number in batch}) > 1]
    assert len(mixed) <= 2
    assert len([batch for batch in mixed if len(batch) == GLOBAL]) <= 1
    assert [len(batch) for batch in batches[:-1]] == [GLOBAL] * (len(batches) - 1)


def test_lengths_in_a_global_batch_are_alike_and_batches_come_in_random_order(sizes: list[RowSize]) -> None:
    batches = global_batches(grouped_order(sizes, global_batch_size=GLOBAL, seed=1, epoch=0))[:-1]
    lengths = np.array([[sizes[number].num_tokens for number in batch] for batch in batches])
    within = lengths.std(axis=1).mean()
    assert within < 0.15 * lengths.std()
    means = lengths.mean(axis=1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.4


@pytest.mark.parametrize("micro_batch_size", [2, 8])
def test_padding_is_counted_and_much_less_than_without_grouping(sizes: list[RowSize], micro_batch_size: int) -> None:
    figures = padding_figures(sizes, micro_batch_size=micro_batch_size, global_batch_size=GLOBAL, seed=1)
    order = grouped_order(sizes, global_batch_size=GLOBAL, seed=1, epoch=0)
    lengths = [sizes[number].num_tokens for number in order]
    positions = padded = 0
    for start in range(0, len(lengths), micro_batch_size):
        batch = lengths[start : start + micro_batch_size]
        positions += max(batch) * len(batch)
        padded += sum(max(batch) - length for length in batch)
    assert figures.padded_share == pytest.approx(padded / positions)
    assert figures.padded_share < 0.3 * figures.padded_share_plain


def test_rows_of_one_length_pad_nothing() -> None:
    figures = padding_figures([RowSize(64, 1)] * 9, micro_batch_size=2, global_batch_size=4, seed=0)
    assert figures.padded_share == figures.padded_share_plain == 0


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return 301

    def __getitem__(self, index: int) -> int:
        return index


class Recorder(torch.nn.Module):
    """Keeps the numbers of the batches that a real Trainer gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: list[list[int]] = []

    def forward(self, numbers: torch.Tensor, labels: Any = None) -> dict[str, torch.Tensor]:
        self.batches.append(numbers.tolist())
        return {"loss": (self.weight * numbers).sum()}


class OrderedTrainer(Trainer):  # type: ignore[misc]
    def __init__(self, order: GroupedOrder, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.order = order

    def _get_train_sampler(self, train_dataset: Any = None) -> GroupedOrder:
        return self.order


class StopAt(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


@pytest.fixture
def run(tmp_path: Path, sizes: list[RowSize]) -> Callable[..., list[list[int]]]:
    def train(
        micro_batch_size: int, *, stop_at: int = 10**9, resume: bool = False, name: str = "run"
    ) -> list[list[int]]:
        model = Recorder()
        order = GroupedOrder(sizes, global_batch_size=GLOBAL, seed=3)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / name),
            num_train_epochs=2,
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=GLOBAL // micro_batch_size,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        trainer = OrderedTrainer(
            order=order,
            model=model,
            args=arguments,
            train_dataset=Numbers(),
            data_collator=lambda rows: {"numbers": torch.tensor(rows)},
            callbacks=[EpochToOrder(order), StopAt(stop_at)],
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-50") if resume else None)
        return model.batches

    return train


def test_the_trainer_sees_the_same_samples_in_the_same_steps_whatever_its_micro_batch(
    run: Callable[..., list[list[int]]], sizes: list[RowSize]
) -> None:
    expected = [
        batch
        for epoch in range(2)
        for batch in global_batches(grouped_order(sizes, global_batch_size=GLOBAL, seed=3, epoch=epoch))
    ]
    for micro_batch_size in (2, 8):
        batches = run(micro_batch_size, name=str(micro_batch_size))
        flat = [number for batch in batches for number in batch]
        assert global_batches(flat[:301]) + global_batches(flat[301:]) == expected


def test_a_run_that_goes_on_in_the_second_epoch_keeps_that_epochs_order(run: Callable[..., list[list[int]]]) -> None:
    undisturbed = run(4, name="whole")
    run(4, stop_at=50, name="broken")
    assert run(4, resume=True, name="broken") == undisturbed[50 * 2 :]


def test_the_order_is_told_its_epoch_in_the_middle_of_one(sizes: list[RowSize]) -> None:
    order = GroupedOrder(sizes, global_batch_size=GLOBAL, seed=3)
    EpochToOrder(order).on_epoch_begin(None, TrainerState(epoch=1.25), None)
    assert list(order) == grouped_order(sizes, global_batch_size=GLOBAL, seed=3, epoch=1)
