"""What is asked for is what trains: exactly the resolved set has gradients, the rest stays as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mgm_lora.arm_settings import FullSettings, LoraSettings, PointSettings
from mgm_lora.errors import SettingsError
from mgm_lora.lora.adapter import plain_name
from mgm_lora.lora.injection import TrainableModel, inject_adapter_, keep_inputs_reduced_, thaw_parts_
from mgm_lora.model.checkpoint import load_model
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.quantization import is_quantized, quantize_language_model_

Batch = dict[str, torch.Tensor]


def test_fresh_adapter_leaves_outputs_unchanged(
    model: MGMForConditionalGeneration, all_points: LoraSettings, batch: Batch
) -> None:
    with torch.no_grad():
        before = model(**batch, logits_at="all").logits
        trainable = inject_adapter_(model, lora=all_points, seed=1)
        after = trainable.model.eval()(**batch, logits_at="all").logits
    assert (before - after).abs().max() <= 1e-6  # mining reads its weight another way once it is wrapped


def test_only_the_resolved_set_gets_gradients(
    model: MGMForConditionalGeneration, all_points: LoraSettings, batch: Batch
) -> None:
    trainable = inject_adapter_(model, lora=all_points, seed=1)
    _randomize_b(trainable)
    trainable.model.train()(**batch).loss.backward()
    wanted = {name for group in trainable.groups for name in group.parameter_names}
    received = {name for name, p in trainable.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert received == wanted
    assert sum(len(group.parameter_names) for group in trainable.groups) == len(wanted)


def test_vision_adapters_get_gradients_though_the_tower_is_frozen(
    model: MGMForConditionalGeneration, batch: Batch
) -> None:
    off = PointSettings(mode="off")
    lora = LoraSettings(
        learning_rate=1e-3,
        language_attention=off,
        language_mlp=off,
        vision_attention=PointSettings(mode="lora", rank=2),
        projector=off,
        mining=off,
    )
    trainable = inject_adapter_(model, lora=lora, seed=1)
    _randomize_b(trainable)
    trainable.model(**batch).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainable.model.parameters() if p.requires_grad)


def test_each_point_keeps_its_rank_scale_dropout_and_rate(
    model: MGMForConditionalGeneration, all_points: LoraSettings
) -> None:
    trainable = inject_adapter_(model, lora=all_points, seed=1)
    assert isinstance(trainable.model, PeftModel)
    plain = trainable.model.base_model.model
    attention = plain.language_model.model.layers[0].self_attn.q_proj
    mlp = plain.language_model.model.layers[1].mlp.up_proj
    vision = plain.vision_tower.encoder.layers[0].self_attn.q_proj
    assert (attention.r["default"], attention.scaling["default"]) == (4, 2.0)
    assert (mlp.r["default"], mlp.scaling["default"], mlp.lora_dropout["default"].p) == (2, 2.0, 0.1)
    assert (vision.r["default"], vision.scaling["default"]) == (3, pytest.approx(3 / 3**0.5))
    rates = {group.name: group.learning_rate for group in trainable.groups}
    assert rates["language_mlp"] == 5e-4
    assert rates["language_attention"] == 1e-3


def test_shared_parts_are_the_same_parameters_at_the_same_rate_in_both_kinds_of_arm(tiny_base: Path) -> None:
    point = PointSettings(mode="lora", rank=2)
    lora = LoraSettings(learning_rate=1e-3, language_attention=point, language_mlp=point, vision_attention=point)
    full = FullSettings(learning_rate=2e-3, parts=("language_model",))
    adapted = inject_adapter_(
        load_model(tiny_base, dtype=torch.float32),
        lora=lora.with_shared(("projector", "mining"), learning_rate=3e-3),
        seed=1,
    )
    thawed = thaw_parts_(
        load_model(tiny_base, dtype=torch.float32),
        full=full.with_shared(("projector", "mining"), learning_rate=3e-3),
        seed=1,
    )
    for name in ("projector", "mining"):
        mine, theirs = (next(g for g in item.groups if g.name == name) for item in (adapted, thawed))
        assert {plain_name(parameter) for parameter in mine.parameter_names} == set(theirs.parameter_names)
        assert mine.learning_rate == theirs.learning_rate == 3e-3
    assert next(group for group in thawed.groups if group.name == "language_model").learning_rate == 2e-3


def test_same_seed_builds_the_same_adapter(
    model: MGMForConditionalGeneration, all_points: LoraSettings, tiny_base: object
) -> None:
    first = inject_adapter_(model, lora=all_points, seed=5)
    torch.rand(7)  # whatever else drew numbers in between
    second = inject_adapter_(load_model(str(tiny_base), dtype=torch.float32), lora=all_points, seed=5)
    third = inject_adapter_(load_model(str(tiny_base), dtype=torch.float32), lora=all_points, seed=6)
    pairs = zip(_adapters(first), _adapters(second), _adapters(third), strict=True)
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in pairs)


def test_adapters_are_float32_over_a_bfloat16_base(tiny_base: object, all_points: LoraSettings) -> None:
    trainable = inject_adapter_(load_model(str(tiny_base), dtype=torch.bfloat16), lora=all_points, seed=1)
    dtypes = {p.requires_grad: p.dtype for p in trainable.model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_full_parts_train_all_and_only_what_can_learn(model: MGMForConditionalGeneration, batch: Batch) -> None:
    full = FullSettings(learning_rate=1e-4, parts=("language_model", "projector", "mining"))
    trainable = thaw_parts_(model, full=full, seed=1)
    trainable.model(**batch).loss.backward()
    wanted = {name for group in trainable.groups for name in group.parameter_names}
    received = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    # key biases of attention move all scores alike; Gemma has none
    assert received == wanted
    assert not any(name.startswith("vision_tower") for name in wanted)


def test_adapter_over_4_bit_trains_the_same_set_and_leaves_outputs_unchanged(
    model: MGMForConditionalGeneration, all_points: LoraSettings, batch: Batch
) -> None:
    quantize_language_model_(model)
    with torch.no_grad():
        before = model(**batch, logits_at="all").logits
        trainable = inject_adapter_(model, lora=all_points, seed=1)
        after = trainable.model.eval()(**batch, logits_at="all").logits
    assert (before - after).abs().max() <= 1e-6
    assert is_quantized(trainable.mgm.language_model)
    _randomize_b(trainable)
    trainable.model.train()(**batch).loss.backward()
    wanted = {name for group in trainable.groups for name in group.parameter_names}
    received = {name for name, p in trainable.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert received == wanted
    assert {p.dtype for p in trainable.model.parameters() if p.requires_grad} == {torch.float32}


def test_4_bit_weights_are_not_trained_in_full(model: MGMForConditionalGeneration, all_points: LoraSettings) -> None:
    quantize_language_model_(model)
    lora = LoraSettings.model_validate(
        all_points.model_dump() | {name: {"mode": "full"} for name in ("language_mlp", "projector")}
    )
    with pytest.raises(SettingsError, match=r"^language_mlp\.mode is full, but 4-bit weights can't be trained"):
        inject_adapter_(model, lora=lora, seed=1)
    assert not isinstance(model.language_model.model.layers[0].mlp, PeftModel)


@pytest.mark.parametrize("quantized", [False, True])
def test_autocast_makes_no_wide_copy_of_a_layers_input(
    tiny_base: object, all_points: LoraSettings, quantized: bool
) -> None:
    model = load_model(str(tiny_base), dtype=torch.bfloat16)
    if quantized:
        quantize_language_model_(model)
    trainable = inject_adapter_(model, lora=all_points, seed=1)
    _randomize_b(trainable)
    layer = trainable.mgm.language_model.model.layers[0].self_attn.q_proj.train()
    hidden = torch.randn(5, 7, 32).bfloat16().requires_grad_()

    def run() -> tuple[torch.Tensor, int]:
        with torch.autocast("cpu", torch.bfloat16), _WideTensors() as wide:
            out = layer(hidden)
            out.sum().backward()
        return out, wide.count

    before, num_before = run()
    keep_inputs_reduced_(trainable.model)
    after, num_after = run()
    assert num_before > 0 or quantized  # PEFT's 4-bit layers cast nothing under autocast by themselves
    assert num_after == 0
    assert (before - after).abs().max() <= 2**-7 * before.abs().max()  # one step of bfloat16


def test_plain_model_is_found_inside(tiny_base: object, all_points: LoraSettings) -> None:
    full = FullSettings(learning_rate=1e-4, parts=("projector",))
    adapted, thawed = (load_model(str(tiny_base), dtype=torch.float32) for _ in range(2))
    assert inject_adapter_(adapted, lora=all_points, seed=1).mgm is adapted
    assert thaw_parts_(thawed, full=full, seed=1).mgm is thawed


class _WideTensors(TorchDispatchMode):
    """Counts float32 tensors of rows x positions x width: all that is no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += sum(
            isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32 and leaf.numel() >= 5 * 7 * 32
            for leaf in tree_leaves(result)
        )
        return result


def _randomize_b(trainable: TrainableModel) -> None:
    """B starts at zero, where A's gradient is zero too."""
    with torch.no_grad():
        for name, parameter in trainable.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)


def _adapters(trainable: TrainableModel) -> list[torch.Tensor]:
    return [p for name, p in trainable.model.named_parameters() if "lora_A" in name]
