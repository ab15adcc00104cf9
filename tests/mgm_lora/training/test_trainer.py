"""The loop: it learns, it goes on where it was interrupted, and what it writes on the way is whole."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import TrainerCallback

from mgm_lora.arm_settings import CheckpointedPart
from mgm_lora.errors import SettingsError, TrainingError
from mgm_lora.lora.injection import TrainableModel
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.settings import SeededTraining
from mgm_lora.training.arms import TrainingData
from mgm_lora.training.checkpoints import newest_checkpoint
from mgm_lora.training.grouped_trainer import TRAINED_NAME
from mgm_lora.training.trainer import run_training

Make = Callable[[], TrainableModel]
KNOBS = StepKnobs(micro_batch_size=4)


def train(
    trainable: TrainableModel,
    training: SeededTraining,
    data: TrainingData,
    folder: Path,
    *callbacks: Any,
    knobs: StepKnobs = KNOBS,
    order: Any = None,
) -> Any:
    return run_training(
        trainable,
        training=training,
        knobs=knobs,
        processor=data.processor,
        train_rows=data.train,
        heldout_rows=data.heldout,
        checkpoints=folder,
        callbacks=callbacks,
        order=order,
    )


class Interrupt(TrainerCallback):  # type: ignore[misc]
    """Ends the run as a kill would, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trained_tensors(trainable: TrainableModel) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in trainable.model.named_parameters() if p.requires_grad}


def test_losses_fall_and_are_told_with_steps_and_samples(
    make_trainable: Make, training: SeededTraining, data: TrainingData, tmp_path: Path
) -> None:
    longer = SeededTraining.model_validate({**training.model_dump(), "num_epochs": 10})
    history = train(make_trainable(), longer, data, tmp_path / "checkpoints")
    assert history.num_steps == 40
    assert history.heldout[-1]["loss"] < 0.8 * history.train[0]["loss"]
    assert history.train[-1]["samples"] == 40 * 8
    assert {"step", "samples", "loss", "learning_rate"} == history.train[0].keys()


def test_interrupted_run_ends_in_the_same_bytes(
    make_trainable: Make, training: SeededTraining, data: TrainingData, tmp_path: Path
) -> None:
    undisturbed, broken = make_trainable(), make_trainable()
    train(undisturbed, training, data, tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        train(broken, training, data, tmp_path / "two", Interrupt(5))
    resumed = make_trainable()
    torch.rand(3)
    train(resumed, training, data, tmp_path / "two")
    ours, theirs = trained_tensors(undisturbed), trained_tensors(resumed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_checkpoint_holds_the_trained_parameters_only(
    make_trainable: Make, training: SeededTraining, data: TrainingData, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    trainable = make_trainable()
    with pytest.raises(KeyboardInterrupt):
        train(trainable, training, data, tmp_path, Interrupt(5))
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert load_file(newest / TRAINED_NAME).keys() == trained_tensors(trainable).keys()
    state = torch.load(newest / "loop-0.pt", weights_only=True)
    assert state.keys() == {"untold_loss", "last_told_step", "recent_losses", "cuda"}


def test_frozen_parameters_stay_bit_equal(
    make_trainable: Make, training: SeededTraining, data: TrainingData, tmp_path: Path
) -> None:
    trainable = make_trainable()
    before = {name: p.detach().clone() for name, p in trainable.model.named_parameters() if not p.requires_grad}
    start = {name: value.clone() for name, value in trained_tensors(trainable).items()}
    train(trainable, training, data, tmp_path)
    after = dict(trainable.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(torch.equal(start[name], after[name]) for name in start)


def test_loss_that_is_no_number_stops_the_run(
    make_trainable: Make, training: SeededTraining, data: TrainingData, tmp_path: Path
) -> None:
    trainable = make_trainable()
    with torch.no_grad():
        next(p for name, p in trainable.model.named_parameters() if "lora_A" in name).fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan at step"):
        train(trainable, training, data, tmp_path)


@pytest.mark.parametrize("offload", [False, True])
def test_checkpointing_everything_in_small_chunks_gives_the_same_adapter(
    make_trainable: Make, training: SeededTraining, data: TrainingData, tmp_path: Path, offload: bool
) -> None:
    plain, lean = make_trainable(), make_trainable()
    train(plain, training, data, tmp_path / "plain")
    knobs = replace(KNOBS, checkpointing=get_args(CheckpointedPart), loss_chunk=3, offload_activations=offload)
    train(lean, training, data, tmp_path / "lean", knobs=knobs)
    ours, theirs = trained_tensors(plain), trained_tensors(lean)
    assert all((ours[name] - theirs[name]).abs().max() <= 1e-5 for name in ours)


def test_micro_batches_add_up_to_the_global_batch(
    make_trainable: Make, training: SeededTraining, data: TrainingData, tmp_path: Path
) -> None:
    split, whole = make_trainable(), make_trainable()
    values = {**training.model_dump(), "num_epochs": 0.25, "checkpoints": 0, "warmup_share": 0.0}
    one_step = SeededTraining.model_validate(values)
    train(split, one_step, data, tmp_path / "split", knobs=StepKnobs(micro_batch_size=2))
    train(whole, one_step, data, tmp_path / "whole", knobs=StepKnobs(micro_batch_size=8))
    ours, theirs = trained_tensors(split), trained_tensors(whole)
    moved = max(float(ours[name].abs().max()) for name in ours if "lora_B" in name)
    assert moved > 0
    assert all((ours[name] - theirs[name]).abs().max() <= 0.02 * moved for name in ours if "lora_B" in name)


def test_samples_come_in_the_order_that_is_given(
    make_trainable: Make, training: SeededTraining, data: TrainingData, tmp_path: Path
) -> None:
    trained = []
    for name, numbers in (("up", range(32)), ("again", range(32)), ("down", range(31, -1, -1))):
        trainable = make_trainable()
        train(trainable, training, data, tmp_path / name, order=list(numbers))
        trained.append(trained_tensors(trainable))
    up, again, down = trained
    assert all(torch.equal(up[name], again[name]) for name in up)
    assert not any(torch.equal(up[name], down[name]) for name in up)


def test_bfloat16_on_a_machine_without_it_is_one_error_before_work(
    make_trainable: Make,
    training: SeededTraining,
    data: TrainingData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mgm_lora.training.trainer._has_bfloat16", lambda: False)
    reduced = SeededTraining.model_validate({**training.model_dump(), "precision": "bfloat16"})
    with pytest.raises(SettingsError, match="no bfloat16 instructions"):
        train(make_trainable(), reduced, data, tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()
