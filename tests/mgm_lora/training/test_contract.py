"""The contract holds for a training as it should be, and names the parameters of every one that is not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from mgm_lora.arm_settings import FullSettings, LoraSettings, PartName
from mgm_lora.artifacts import read_manifest
from mgm_lora.errors import ContractError
from mgm_lora.lora.adapter import save_adapter
from mgm_lora.lora.injection import TrainableGroup, TrainableModel, inject_adapter_, thaw_parts_
from mgm_lora.lora.optimizer import make_optimizer
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.model.checkpoint import load_model
from mgm_lora.settings import SeededTraining
from mgm_lora.training.arms import Origin, TrainingData, adapter_weights, model_weights, train_arm
from mgm_lora.training.contract import Contract, check_optimizer

Make = Callable[[], TrainableModel]
Train = Callable[..., Path]
ORIGIN = Origin(settings={}, parents={}, base={"model": "tiny", "revision": None, "digest": "d" * 64})


@pytest.fixture
def train(training: SeededTraining, data: TrainingData, tmp_path: Path) -> Train:
    def run(trainable: TrainableModel, *callbacks: Any, whole: bool = False, num_epochs: float = 2) -> Path:
        weights = adapter_weights(trainable)
        if whole:
            weights = model_weights(trainable, processor=data.processor, dtype=torch.float32)
        longer = SeededTraining.model_validate({**training.model_dump(), "num_epochs": num_epochs})
        train_arm(
            trainable,
            training=longer,
            knobs=StepKnobs(micro_batch_size=4),
            data=data,
            weights=weights,
            origin=ORIGIN,
            checkpoints=tmp_path / "checkpoints",
            destination=tmp_path / "trained",
            callbacks=callbacks,
        )
        return tmp_path / "trained"

    return run


class Disturb(TrainerCallback):  # type: ignore[misc]
    """Does something to the model when training begins or ends."""

    def __init__(self, *, begin: Callable[[], None] | None = None, end: Callable[[], None] | None = None) -> None:
        self._begin, self._end = begin, end

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._begin:
            self._begin()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._end:
            self._end()


def adapter_parameter(trainable: TrainableModel, part: str) -> tuple[str, nn.Parameter]:
    return next((name, p) for name, p in trainable.model.named_parameters() if part in name)


def test_a_training_as_asked_keeps_it_and_the_manifest_says_so(make_trainable: Make, train: Train) -> None:
    trainable = make_trainable()
    contract = read_manifest(train(trainable), kind="TrainedAdapter").details["contract"]
    assert sum(group["parameters"] for group in contract["groups"].values()) == trainable.num_trainable
    assert contract["frozen_tensors"] > 50
    assert contract["held"] == ["requires_grad", "optimizer", "gradients", "changed", "saved", "frozen"]


@pytest.mark.parametrize("part", ["language_model", "vision_tower", "vision_tower_aux", "projector", "mining"])
def test_each_part_in_full_keeps_it(part: PartName, tiny_base: Path, train: Train) -> None:
    full = FullSettings(learning_rate=1e-3, parts=(part,))
    trainable = thaw_parts_(load_model(tiny_base, dtype=torch.float32), full=full, seed=3)
    contract = read_manifest(train(trainable, whole=True), kind="TrainedModel").details["contract"]
    assert contract["groups"].keys() == {part}


def test_adapter_whose_output_is_not_used_ends_the_run_by_name(
    make_trainable: Make, train: Train, tmp_path: Path
) -> None:
    trainable = make_trainable()
    dead = trainable.mgm.vision_tower.encoder.layers[1]

    def skip(layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        return arguments[0]

    dead.register_forward_hook(skip)
    with pytest.raises(
        ContractError, match=r"got no gradient in 5 steps: .*vision_tower\.encoder\.layers\.1\.self_attn"
    ):
        train(trainable)
    assert not (tmp_path / "trained").exists()


def test_point_that_needs_pictures_is_told_where_none_is_there(
    make_trainable: Make, train: Train, data: TrainingData
) -> None:
    rows = data.train._rows  # type: ignore[union-attr]
    text = data.processor.encode_sample((("human", "what?"), ("gpt", "red")), num_pictures=0)
    rows[:] = [(text, ()) for _ in rows]
    with pytest.raises(ContractError, match="since no training sample has a picture"):
        train(make_trainable())


def test_frozen_weight_that_moves_ends_the_run_by_name(make_trainable: Make, train: Train) -> None:
    trainable = make_trainable()
    weight = trainable.mgm.language_model.model.norm.weight

    def nudge() -> None:
        with torch.no_grad():
            weight[0] += 1e-6

    with pytest.raises(
        ContractError, match=r"are frozen but differ from the base.*language_model\.model\.norm\.weight"
    ):
        train(trainable, Disturb(end=nudge))


def test_frozen_buffer_that_moves_ends_the_run_too(make_trainable: Make, train: Train) -> None:
    trainable = make_trainable()
    name, buffer = next((n, b) for n, b in trainable.mgm.named_buffers() if b.is_floating_point() and b.numel())

    def nudge() -> None:
        buffer.add_(1e-3)

    with pytest.raises(ContractError, match=name.rpartition(".")[2]):
        train(trainable, Disturb(end=nudge))


def test_trained_parameter_that_did_not_change_ends_the_run_by_name(make_trainable: Make, train: Train) -> None:
    trainable = make_trainable()
    name, parameter = adapter_parameter(trainable, "q_proj.lora_B")
    before = parameter.detach().clone()

    def set_back() -> None:
        parameter.data.copy_(before)

    with pytest.raises(ContractError, match=f"changed are not the ones asked for.*{name}"):
        train(trainable, Disturb(end=set_back))


def test_gradient_that_was_not_asked_for_is_found_before_the_first_step(make_trainable: Make) -> None:
    trainable = make_trainable()
    trainable.mgm.language_model.model.norm.weight.requires_grad_(True)
    with pytest.raises(ContractError, match=r"have requires_grad .*1 that were not asked for: .*norm\.weight"):
        Contract(trainable)
    other = make_trainable()
    name, parameter = adapter_parameter(other, "lora_A")
    parameter.requires_grad_(False)
    with pytest.raises(ContractError, match=f"1 that were asked for are not among them: {name}"):
        Contract(other)


def test_optimizer_of_other_parameters_or_rates_is_refused(make_trainable: Make) -> None:
    trainable = make_trainable()
    optimizer = make_optimizer(trainable, name="adamw", weight_decay=0.0)
    check_optimizer(optimizer, trainable=trainable)
    first = trainable.groups[0]
    faster = TrainableGroup(first.name, learning_rate=1.0, parameter_names=first.parameter_names)
    with pytest.raises(ContractError, match=r"another learning rate than asked for: .* at 0\.01 instead of 1"):
        check_optimizer(optimizer, trainable=replace(trainable, groups=(faster, *trainable.groups[1:])))
    with pytest.raises(ContractError, match=r"in the optimizer's groups .* not asked for"):
        check_optimizer(optimizer, trainable=replace(trainable, groups=trainable.groups[1:]))


def test_files_that_lack_a_parameter_or_hold_one_more_are_refused(make_trainable: Make, tmp_path: Path) -> None:
    trainable = make_trainable()
    contract = Contract(trainable)
    save_adapter(trainable.model, folder=tmp_path)
    contract.check_saved(tmp_path, whole_model=False)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    lost = next(iter(tensors))
    save_file({name: value for name, value in tensors.items() if name != lost}, file)
    with pytest.raises(ContractError, match=lost.removeprefix("base_model.model.")):
        contract.check_saved(tmp_path, whole_model=False)
    save_file({**tensors, "language_model.model.norm.weight": torch.ones(3)}, file)
    with pytest.raises(ContractError, match=r"not asked for: language_model\.model\.norm\.weight"):
        contract.check_saved(tmp_path, whole_model=False)


def test_every_method_of_saving_a_point_is_recognised(tiny_base: Path, lora: LoraSettings, tmp_path: Path) -> None:
    mixed = LoraSettings.model_validate(
        {**lora.model_dump(), "projector": {"mode": "full"}, "mining": {"mode": "full"}}
    )
    trainable = inject_adapter_(load_model(tiny_base, dtype=torch.float32), lora=mixed, seed=3)
    contract = Contract(trainable)
    save_adapter(trainable.model, folder=tmp_path)
    contract.check_saved(tmp_path, whole_model=False)
