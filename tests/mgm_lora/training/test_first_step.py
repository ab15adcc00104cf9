"""The trial step measures what the plan traced, says what does not fit, and leaves no trace."""

import gc
import random
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from mgm_lora.arm_settings import LoraSettings, OptimizerName
from mgm_lora.errors import DoesNotFitError, TrainingError
from mgm_lora.lora.injection import TrainableModel
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.shapes import BatchShape
from mgm_lora.memory.tracing import trace_step
from mgm_lora.model.config import MGMConfig
from mgm_lora.settings import SeededTraining
from mgm_lora.training.arms import TrainingData
from mgm_lora.training.batches import BatchMaker
from mgm_lora.training.first_step import FirstStep, WorstBatch, WorstBatchFirst, recall_first_step, try_worst_batch
from mgm_lora.training.grouped_trainer import GroupedTrainer
from mgm_lora.training.trainer import training_arguments

SHAPE = BatchShape(num_rows=4, length=64, num_labels=40, num_pictures=4)


@dataclass
class Run:
    """A trainer that trains for real, and what a test looks at."""

    trainer: GroupedTrainer
    trainable: TrainableModel
    worst: WorstBatch

    def trained(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.trainable.model.named_parameters() if p.requires_grad}


@pytest.fixture
def make_run(
    make_trainable: Callable[[], TrainableModel],
    training: SeededTraining,
    data: TrainingData,
    tiny_config: MGMConfig,
    tmp_path: Path,
) -> Callable[..., Run]:
    short = SeededTraining.model_validate(
        training.model_dump() | {"num_epochs": 0.5, "evaluations": 1, "checkpoints": 1}
    )

    def make(*, optimizer: OptimizerName = "adamw", micro_batch_size: int = 4, allowed_bytes: int = 2**34) -> Run:
        knobs = StepKnobs(micro_batch_size=micro_batch_size, optimizer=optimizer)
        trainable = make_trainable()
        trainer = GroupedTrainer(
            trainable=trainable,
            knobs=knobs,
            order=None,
            args=training_arguments(short, knobs=knobs, num_samples=32, folder=tmp_path / optimizer),
            data_collator=BatchMaker(data.processor),
            train_dataset=data.train,
            eval_dataset=data.heldout,
        )
        shape = replace(SHAPE, num_rows=micro_batch_size)
        worst = WorstBatch(
            shape=shape, config=tiny_config, planned_bytes=2**20, allowed_bytes=allowed_bytes, budget_gib=0.5
        )
        return Run(trainer, trainable, worst)

    return make


class BeforeTraining(TrainerCallback):  # type: ignore[misc]
    """Calls back when the trainer has prepared everything, and ends the training there if asked."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.function()


class Enough(Exception):
    pass


def when_prepared(run: Run, function: Callable[[], Any]) -> None:
    def then_stop() -> None:
        function()
        raise Enough

    run.trainer.add_callback(BeforeTraining(then_stop))
    with pytest.raises(Enough):
        run.trainer.train()


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw"])
def test_training_after_the_trial_ends_in_the_same_bytes_as_without(
    make_run: Callable[..., Run], tmp_path: Path, optimizer: OptimizerName
) -> None:
    without, tried = make_run(optimizer=optimizer), make_run(optimizer=optimizer)
    tried.trainer.add_callback(WorstBatchFirst(tried.trainer, tried.worst, remember_in=tmp_path))
    start = tried.trained()
    without.trainer.train()
    tried.trainer.train()
    ours, theirs = tried.trained(), without.trained()
    assert all(torch.equal(ours[name].view(torch.int32), theirs[name].view(torch.int32)) for name in ours)
    assert any(not torch.equal(ours[name], start[name]) for name in ours)
    assert tried.trainer.state.log_history[0]["loss"] == without.trainer.state.log_history[0]["loss"]
    remembered = recall_first_step(tmp_path)
    assert remembered is not None
    assert remembered.measured_bytes > 2**20


def test_nothing_of_the_trial_remains(make_run: Callable[..., Run]) -> None:
    run = make_run()
    drawing: list[Any] = []

    def check() -> None:
        torch.manual_seed(5), random.seed(5), np.random.seed(5)
        before = run.trained()
        optimizer = run.trainer.optimizer
        # as dropout would, and whatever else draws
        run.trainable.mgm.mm_projector.register_forward_pre_hook(
            lambda *_: drawing.append((torch.rand(1), random.random(), np.random.rand()))
        )
        groups = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        try_worst_batch(run.trainer, run.worst)
        after = run.trained()
        assert drawing
        assert all(torch.equal(before[name].view(torch.int32), after[name].view(torch.int32)) for name in before)
        assert all(p.grad is None for p in run.trainable.model.parameters())
        assert not optimizer.state
        assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == groups
        drawn = torch.rand(1).item(), random.random(), np.random.rand()
        torch.manual_seed(5), random.seed(5), np.random.seed(5)
        assert (torch.rand(1).item(), random.random(), np.random.rand()) == drawn

    when_prepared(run, check)


def test_state_that_stays_is_as_if_new(make_run: Callable[..., Run]) -> None:
    without, tried = make_run(optimizer="paged_adamw_8bit"), make_run(optimizer="paged_adamw_8bit")

    def check() -> None:
        optimizer = tried.trainer.optimizer.optimizer
        optimizer.is_paged = True  # as on a card: bitsandbytes never gives such state back, so it must be used again
        try_worst_batch(tried.trainer, tried.worst)
        optimizer.is_paged = False
        assert len(optimizer.state) == len(tried.trained())

    tried.trainer.add_callback(BeforeTraining(check))
    without.trainer.train()
    tried.trainer.train()
    ours, theirs = tried.trained(), without.trained()
    assert all(torch.equal(ours[name].view(torch.int32), theirs[name].view(torch.int32)) for name in ours)


def test_every_trained_weight_takes_part_in_the_trial(make_run: Callable[..., Run]) -> None:
    run = make_run()
    moments: dict[str, int] = {}

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        moments["tensors"] = len(optimizer.state)

    def check() -> None:
        run.trainer.optimizer.optimizer.register_step_post_hook(look)
        try_worst_batch(run.trainer, run.worst)
        assert moments["tensors"] == len(run.trained())

    when_prepared(run, check)


@pytest.mark.parametrize("micro_batch_size", [2, 8])
def test_measured_bytes_are_those_that_the_plan_traced(
    make_run: Callable[..., Run],
    lora: LoraSettings,
    training: SeededTraining,
    tiny_config: MGMConfig,
    micro_batch_size: int,
) -> None:
    run = make_run(micro_batch_size=micro_batch_size)
    traced = trace_step(
        tiny_config,
        dtype=torch.float32,
        arm=lora,
        knobs=StepKnobs(micro_batch_size=micro_batch_size),
        shape=run.worst.shape,
        training=training,
        device="cpu",
    )
    worst = replace(run.worst, planned_bytes=traced.peak_bytes)
    results: list[FirstStep] = []
    when_prepared(run, lambda: results.append(try_worst_batch(run.trainer, worst)))
    assert results[0].ratio == pytest.approx(1, abs=1e-3)


def test_a_batch_that_takes_more_than_allowed_is_an_error_and_frees_what_it_held(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = make_run(allowed_bytes=2**19)
    run.trainer.add_callback(WorstBatchFirst(run.trainer, run.worst, remember_in=tmp_path))
    with pytest.raises(DoesNotFitError, match=r"4 rows of 64 tokens, 40 labels, 4 pictures\) took \d\.\d MiB"):
        run.trainer.train()
    assert not run.trainer.optimizer.state
    assert all(p.grad is None for p in run.trainable.model.parameters())
    allowed = make_run()
    allowed.trainer.add_callback(WorstBatchFirst(allowed.trainer, allowed.worst, remember_in=tmp_path))
    allowed.trainer.train()  # the same process can try again


def test_memory_that_runs_out_is_an_error_that_holds_no_tensor(make_run: Callable[..., Run]) -> None:
    run = make_run()
    held: list[weakref.ref[Tensor]] = []

    def run_out(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.shape[0] == run.worst.shape.num_rows:
            held.append(weakref.ref(output))
            torch.empty(2**60)  # the allocator's own error

    def check() -> None:
        with pytest.raises(DoesNotFitError, match="ran out of memory") as error:
            try_worst_batch(run.trainer, run.worst)
        gc.collect()
        assert error.value.__context__ is None
        assert held
        assert held[0]() is None

    run.trainable.mgm.vision_tower.encoder.layers[0].register_forward_hook(run_out)
    when_prepared(run, check)


def test_other_errors_pass(make_run: Callable[..., Run]) -> None:
    run = make_run()

    def fail(*_: Any) -> None:
        raise RuntimeError("something else")

    run.trainable.mgm.mm_projector.register_forward_hook(fail)
    rates = []

    def check() -> None:
        rates.extend(group["lr"] for group in run.trainer.optimizer.param_groups)
        with pytest.raises(RuntimeError, match="something else"):
            try_worst_batch(run.trainer, run.worst)
        assert [group["lr"] for group in run.trainer.optimizer.param_groups] == rates

    when_prepared(run, check)


def test_weights_that_the_trial_changed_are_told(make_run: Callable[..., Run]) -> None:
    run = make_run()
    parameter = next(p for p in run.trainable.model.parameters() if p.requires_grad)

    def disturb(*_: Any) -> None:
        with torch.no_grad():
            parameter.view(torch.int32).view(-1)[0] += 1

    def check() -> None:
        run.trainer.optimizer.optimizer.register_step_post_hook(disturb)
        with pytest.raises(TrainingError, match="changed the weights"):
            try_worst_batch(run.trainer, run.worst)

    when_prepared(run, check)


def test_the_figures_are_logged(make_run: Callable[..., Run], caplog: pytest.LogCaptureFixture) -> None:
    run = make_run()
    with caplog.at_level("INFO", logger="mgm_lora.training.first_step"):
        when_prepared(run, lambda: try_worst_batch(run.trainer, run.worst))
    assert "planned were 1.0 MiB (budget 0.5 GiB)" in caplog.text


def test_a_run_that_goes_on_does_not_try_again(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run()
    run.trainer.train()
    newest = max(Path(run.trainer.args.output_dir).glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    again = make_run(allowed_bytes=1)  # a trial would fail
    again.trainer.add_callback(WorstBatchFirst(again.trainer, again.worst, remember_in=tmp_path))
    again.trainer.train(resume_from_checkpoint=str(newest))
