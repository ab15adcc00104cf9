"""Every optimizer trains about as AdamW does, keeps what it says it keeps, and says so where it can't run."""

import copy
import io
import logging
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from transformers import set_seed

from mgm_lora.arm_settings import LoraSettings, OptimizerName, PointSettings
from mgm_lora.errors import SettingsError
from mgm_lora.lora.injection import TrainableModel, inject_adapter_
from mgm_lora.lora.optimizer import make_optimizer, parameter_groups
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.mgm import MGMForConditionalGeneration

Batch = dict[str, torch.Tensor]
MakeTrainable = Callable[[], TrainableModel]
NUM_STEPS = 20
LARGEST = 32 * 128  # = 4,096: the smallest tensor that gets 8-bit moments


@pytest.fixture
def make_trainable(tiny_config: MGMConfig) -> MakeTrainable:
    """A tiny model whose MLP is wide enough for 8-bit moments, beside adapters and a projector that are too small for them."""
    config = copy.deepcopy(tiny_config)
    config.text_config.intermediate_size = 128

    def make() -> TrainableModel:
        set_seed(1)
        model = MGMForConditionalGeneration(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)  # large enough for a gradient to matter
        lora = LoraSettings(
            learning_rate=1e-2,
            language_attention=PointSettings(mode="lora", rank=4, learning_rate=1e-3),
            language_mlp=PointSettings(mode="full"),
            vision_attention=PointSettings(mode="off"),
            projector=PointSettings(mode="full"),
            mining=PointSettings(mode="off"),
        )
        return inject_adapter_(model, lora=lora, seed=1)

    return make


def test_loss_falls_as_with_adamw(make_trainable: MakeTrainable, batch: Batch) -> None:
    losses = {name: _train(make_trainable(), name=name, batch=batch) for name in get_args(OptimizerName)}
    expected = losses["adamw"]
    assert expected[-1] < 0.8 * expected[0]
    for name in losses:
        assert losses[name] == pytest.approx(expected, rel=1e-3 if name.endswith("8bit") else 1e-5), name


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_state_that_was_saved_goes_on_bit_equal(
    name: OptimizerName, make_trainable: MakeTrainable, batch: Batch
) -> None:
    whole, halves = make_trainable(), make_trainable()
    _train(whole, name=name, batch=batch, num_steps=4)
    file = io.BytesIO()
    _train(halves, name=name, batch=batch, num_steps=2, save_to=file)
    _train(halves, name=name, batch=batch, num_steps=2, load_from=file)
    pairs = zip(whole.model.parameters(), halves.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_8_bit_state_takes_a_quarter_and_small_tensors_keep_32_bit(make_trainable: MakeTrainable, batch: Batch) -> None:
    def state_of(name: OptimizerName) -> dict[int, int]:
        """Bytes of both moments and their scales, by number of elements."""
        trainable = make_trainable()
        optimizer = _take_steps(trainable, name=name, batch=batch)
        keys = ("state1", "state2", "absmax1", "absmax2", "exp_avg", "exp_avg_sq")
        return {
            parameter.numel(): sum(state[key].nbytes for key in keys if key in state)
            for parameter, state in optimizer.state.items()
        }

    in_8_bit, in_32_bit = state_of("adamw_8bit"), state_of("adamw")
    assert max(in_8_bit) == LARGEST
    for num_elements, num_bytes in in_8_bit.items():
        assert in_32_bit[num_elements] == 8 * num_elements
        assert num_bytes == (
            2 * num_elements + 8 * num_elements // 256 if num_elements >= LARGEST else 8 * num_elements
        )


def test_groups_keep_their_rates_and_decay_matrices_only(make_trainable: MakeTrainable) -> None:
    trainable = make_trainable()
    optimizer = make_optimizer(trainable, name="paged_adamw_8bit", weight_decay=0.1)
    groups = [(group["name"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert groups == [
        ("language_attention", 1e-3, 0.1),
        ("language_mlp", 1e-2, 0.1),
        ("projector", 1e-2, 0.1),
        ("projector", 1e-2, 0.0),
    ]
    expected = parameter_groups(trainable.model, groups=trainable.groups, weight_decay=0.1)
    for group, wanted in zip(optimizer.param_groups, expected, strict=True):
        assert all(a is b for a, b in zip(group["params"], wanted["params"], strict=True))
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == trainable.num_trainable


def test_paging_without_effect_is_said(make_trainable: MakeTrainable, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mgm_lora.lora.optimizer"):
        make_optimizer(make_trainable(), name="paged_adamw", weight_decay=0.0)
    assert [record.message for record in caplog.records] == [
        "optimizer paged_adamw: nothing is paged on a CPU, its state stays where it is"
    ]


def test_missing_kernel_is_told_before_the_first_step(
    make_trainable: MakeTrainable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:  # as bitsandbytes does where its library doesn't fit the card
        raise RuntimeError("Attempted to use bitsandbytes native library functionality\nno kernel image")

    monkeypatch.setattr("bitsandbytes.functional.optimizer_update_8bit_blockwise", fail)
    with pytest.raises(SettingsError, match=r"adamw_8bit .* no kernel for it on cpu \(no kernel image\): set step"):
        make_optimizer(make_trainable(), name="adamw_8bit", weight_decay=0.0)


def _train(
    trainable: TrainableModel,
    *,
    name: OptimizerName,
    batch: Batch,
    num_steps: int = NUM_STEPS,
    save_to: io.BytesIO | None = None,
    load_from: io.BytesIO | None = None,
) -> list[float]:
    optimizer = make_optimizer(trainable, name=name, weight_decay=0.01)
    if load_from is not None:
        load_from.seek(0)
        optimizer.load_state_dict(torch.load(load_from, weights_only=True))
    losses = []
    for _ in range(num_steps):
        loss = trainable.model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if save_to is not None:
        torch.save(optimizer.state_dict(), save_to)
    return losses


def _take_steps(trainable: TrainableModel, *, name: OptimizerName, batch: Batch) -> torch.optim.Optimizer:
    optimizer = make_optimizer(trainable, name=name, weight_decay=0.01)
    trainable.model(**batch).loss.backward()
    optimizer.step()
    return optimizer
