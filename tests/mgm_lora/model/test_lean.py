"""A lean step is the same step: same loss, same gradients, less kept."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mgm_lora.arm_settings import CheckpointedPart, FullSettings, LoraSettings, PartName, PointSettings
from mgm_lora.lora.injection import TrainableModel, inject_adapter_, thaw_parts_
from mgm_lora.model.checkpoint import load_model
from mgm_lora.model.lean import checkpointed, is_making_host_copy, make_lean_
from mgm_lora.model.mgm import MGMForConditionalGeneration

ALL: tuple[CheckpointedPart, ...] = ("language_model", "vision_tower", "vision_tower_aux", "mining")
PARTS: tuple[PartName, ...] = ("language_model", "vision_tower", "vision_tower_aux", "projector", "mining")


@pytest.fixture
def model(tiny_base: Path) -> MGMForConditionalGeneration:
    return load_model(tiny_base, dtype=torch.float64)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    input_ids = torch.randint(6, 60, (3, 12), generator=generator)
    input_ids[:2, 2] = -200
    labels = input_ids.clone()
    labels[:, :6] = -100
    labels[0, 10:] = -100
    return {
        "input_ids": input_ids,
        "labels": labels,
        "attention_mask": torch.ones_like(input_ids),
        "images": torch.randn(3, 3, 16, 16, generator=generator, dtype=torch.float64),
        "images_aux": torch.randn(3, 3, 32, 32, generator=generator, dtype=torch.float64),
    }


def adapt(model: MGMForConditionalGeneration, *, dropout: float = 0.0) -> TrainableModel:
    point = PointSettings(mode="lora", rank=4, alpha=8, dropout=dropout)
    lora = LoraSettings(
        learning_rate=1e-3,
        language_attention=point,
        language_mlp=point,
        vision_attention=point,
        projector=point,
        mining=point,
    )
    trainable = inject_adapter_(model, lora=lora, seed=3)
    with torch.no_grad():
        for name, parameter in trainable.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    return trainable


def step(
    trainable: TrainableModel,
    batch: dict[str, Tensor],
    *,
    checkpointing: Sequence[CheckpointedPart],
    offload: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    make_lean_(trainable.mgm, checkpointing=checkpointing, offload=offload, loss_chunk=3)
    trainable.model.train()
    trainable.model.zero_grad()
    torch.manual_seed(7)
    loss = trainable.model(**batch).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in trainable.model.named_parameters() if p.grad is not None}
    return loss.detach(), found


def assert_same_step(trainable: TrainableModel, batch: dict[str, Tensor], **how: object) -> None:
    loss, wanted = step(trainable, batch, checkpointing=())
    lean_loss, found = step(trainable, batch, **how)  # type: ignore[arg-type]
    assert found.keys() == wanted.keys()
    assert abs(lean_loss.item() - loss.item()) < 1e-12
    assert max((found[name] - wanted[name]).abs().max() for name in wanted) < 1e-12


@pytest.mark.parametrize("part", ALL)
@pytest.mark.parametrize("offload", [False, True])
def test_adapters_get_the_same_gradients(
    model: MGMForConditionalGeneration, batch: dict[str, Tensor], part: CheckpointedPart, offload: bool
) -> None:
    assert_same_step(adapt(model), batch, checkpointing=(part,), offload=offload)


def test_whole_parts_get_the_same_gradients(model: MGMForConditionalGeneration, batch: dict[str, Tensor]) -> None:
    trainable = thaw_parts_(model, full=FullSettings(learning_rate=1e-3, parts=PARTS), seed=3)
    assert_same_step(trainable, batch, checkpointing=ALL, offload=True)


def test_dropout_falls_alike_when_computed_again(model: MGMForConditionalGeneration, batch: dict[str, Tensor]) -> None:
    assert_same_step(adapt(model, dropout=0.3), batch, checkpointing=ALL)


def test_layers_are_computed_again_and_towers_without_adapters_once(
    model: MGMForConditionalGeneration, batch: dict[str, Tensor]
) -> None:
    point, off = PointSettings(mode="lora", rank=4), PointSettings(mode="off")
    lora = LoraSettings(
        learning_rate=1e-3, language_attention=point, language_mlp=off, vision_attention=off, projector=off, mining=off
    )
    trainable = inject_adapter_(model, lora=lora, seed=3)
    calls = dict.fromkeys(("text", "clip", "last_clip", "aux"), 0)

    def count(name: str) -> None:
        calls[name] += 1

    mgm = trainable.mgm
    mgm.language_model.model.layers[0].self_attn.register_forward_hook(lambda *_: count("text"))
    mgm.vision_tower.encoder.layers[0].mlp.register_forward_hook(lambda *_: count("clip"))
    mgm.vision_tower.encoder.layers[-1].mlp.register_forward_hook(lambda *_: count("last_clip"))
    mgm.vision_tower_aux.vision_stages[0].blocks[0].register_forward_hook(lambda *_: count("aux"))  # type: ignore[union-attr, operator, index]
    step(trainable, batch, checkpointing=ALL)
    assert calls == {"text": 2, "clip": 1, "last_clip": 0, "aux": 1}
    assert not mgm.encode_images(batch["images"], batch["images_aux"]).requires_grad


def test_offloaded_inputs_are_marked_as_copies_in_the_machines_memory() -> None:
    made: list[bool] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made.append(is_making_host_copy())
            return function(*args, **(kwargs or {}))

    tensor = torch.ones(3, requires_grad=True)
    with Watch():
        checkpointed(lambda x: (x * x).sum(), tensor, offload=True).backward()
    assert any(made)
    assert not all(made)
    assert torch.equal(tensor.grad, torch.full((3,), 2.0))  # type: ignore[arg-type]
