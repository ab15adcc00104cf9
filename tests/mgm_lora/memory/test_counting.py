"""Live bytes are those of storages: each once, gone when the last reference is."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mgm_lora.arm_settings import LoraSettings
from mgm_lora.memory.counting import LiveBytes, weight_part
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.measuring import measure_steps
from mgm_lora.memory.shapes import BatchShape
from mgm_lora.memory.tracing import make_trainable_
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.lean import checkpointed
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.settings import SeededTraining

KIB = 1024


def test_views_count_once_and_deleted_tensors_not_at_all() -> None:
    with LiveBytes(nn.Module()) as counter:
        kept = torch.zeros(256)
        view = kept[:10].view(2, 5)
        lost = torch.zeros(512)
        del lost
    assert counter.now_bytes == KIB
    assert counter.peak_bytes == 3 * KIB
    assert view.shape == (2, 5)


def test_in_place_operations_take_nothing() -> None:
    with LiveBytes(nn.Module()) as counter:
        tensor = torch.zeros(256)
        tensor.add_(1).mul_(2)
    assert counter.peak_bytes == KIB


def test_model_is_counted_from_the_start_and_tied_weights_once() -> None:
    model = nn.ModuleList([nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)])
    model[1].weight = model[0].weight
    assert LiveBytes(model).now_bytes == KIB


def test_what_hangs_in_the_graph_is_alive_until_the_backward_pass() -> None:
    weight = nn.Parameter(torch.ones(256))
    with LiveBytes(nn.ParameterList([weight])) as counter:
        loss = weight.exp().exp().sum()
        before = counter.now_bytes
        loss.backward()
        del loss
    assert before == 3 * KIB + 4  # the weight and what both functions keep, and the loss
    assert counter.now_bytes == 2 * KIB  # the weight and its gradient


def test_host_copies_are_counted_apart() -> None:
    weight = nn.Parameter(torch.ones(256))
    with LiveBytes(nn.ParameterList([weight])) as counter:
        checkpointed(lambda values: values.exp().exp(), weight * 1, offload=True).sum().backward()
    assert counter.host_peak_bytes == KIB
    assert counter.host_bytes == 0


def test_parts_at_the_peak_sum_to_the_peak(
    small_config: MGMConfig, make_lora: Callable[..., LoraSettings], make_training: Callable[..., SeededTraining]
) -> None:
    knobs, training = StepKnobs(micro_batch_size=2, loss_chunk=64), make_training()
    arm = make_lora("language_mlp", "vision_attention", "mining")
    trainable = make_trainable_(MGMForConditionalGeneration(small_config), arm=arm, knobs=knobs, training=training)
    measured = measure_steps(
        trainable, config=small_config, knobs=knobs, shape=BatchShape(2, 80, 40, 2), training=training
    )
    assert sum(measured.parts.values()) == measured.counted_bytes
    for part in ("language_model", "vision_tower", "vision_tower_aux", "projector", "mining"):
        held = sum(p.nbytes for name, p in trainable.model.named_parameters() if weight_part(name) == f"weights.{part}")
        assert measured.parts[f"weights.{part}"] - held < 1024  # and some buffers
    lora_bytes = sum(p.nbytes for name, p in trainable.model.named_parameters() if ".lora_" in name)
    assert measured.parts["adapters"] == lora_bytes
    assert 2 * lora_bytes <= measured.parts["optimizer"] < 2.1 * lora_bytes
    assert measured.parts["logits"] >= 2 * 40 * 3000 * 4  # the logits and their gradient
    assert measured.parts["activations.mining"] > 0
    assert measured.parts["activations.vision_tower"] > 0


@pytest.mark.parametrize(
    "name, part",
    [
        ("base_model.model.language_model.model.layers.0.mlp.up_proj.lora_A.default.weight", "adapters"),
        ("base_model.model.language_model.model.layers.0.mlp.up_proj.base_layer.weight", "weights.language_model"),
        ("module.vision_tower.encoder.layers.0.self_attn.q_proj.bias", "weights.vision_tower"),
        ("vision_tower_aux.vision_stem.0.weight", "weights.vision_tower_aux"),
        ("vlm_uni_val_projector.1.weight", "weights.mining"),
        ("mm_projector.2.weight", "weights.projector"),
    ],
)
def test_weights_are_named_by_part(name: str, part: str) -> None:
    assert weight_part(name) == part
