"""One table of invariants over all methods, what each may not be asked for, and that plan and trainer know what each holds."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor

from benchmarks.invariants import (
    INVARIANTS,
    METHODS,
    Tried,
    base_model,
    bound,
    difference,
    figures,
    logits,
    try_method,
)
from mgm_lora.arm_settings import LoraSettings, PointSettings
from mgm_lora.errors import BaseChangedError, SettingsError, TrainingError
from mgm_lora.lora.injection import inject_adapter_
from mgm_lora.lora.listing import list_trainable
from mgm_lora.lora.points import resolve_points
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.measuring import measure_steps
from mgm_lora.memory.shapes import BatchShape
from mgm_lora.memory.tracing import make_trainable_, trace_step
from mgm_lora.model.checkpoint import load_model
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.quantization import quantize_language_model_
from mgm_lora.settings import SeededTraining

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Pair:
    first: Tried
    second: Tried


@pytest.fixture(scope="module", params=list(METHODS))
def pair(request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two adapters of a method, trained on other batches."""
    folder, method = tmp_path_factory.mktemp("method"), METHODS[request.param]
    return Pair(*(try_method(method, base=tiny_base, batch=_batch(s), folder=folder / str(s)) for s in (9, 10)))


@pytest.mark.parametrize("invariant", list(INVARIANTS))
def test_invariant_holds(pair: Pair, invariant: str) -> None:
    name = pair.first.method.name
    found = figures(pair.first, second=pair.second.folder, names=(invariant,))[invariant]
    assert found <= bound(name, invariant), f"{name}: {INVARIANTS[invariant].about}: {found:.2e}"


def test_training_moves_the_answers_and_plain_peft_reads_the_language_models_part(pair: Pair) -> None:
    tried = pair.first
    assert difference(tried.logits, tried.of_base) > 1e-2  # else every invariant would hold for nothing
    plain = base_model(tried.base, method=tried.method).language_model
    read = PeftModel.from_pretrained(plain, str(tried.folder / "language_model")).eval()
    adapted = tried.trainable.mgm.language_model.eval()
    tokens = torch.arange(6, 18)[None]
    with torch.no_grad():
        expected, found = adapted(input_ids=tokens).logits, read(input_ids=tokens).logits
    assert difference(found, expected) <= 2e-6


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("reduced", [False, True])
def test_plan_finds_what_a_method_holds(name: str, reduced: bool, wide_config: MGMConfig) -> None:
    arm, training = METHODS[name].settings(), _training(reduced=reduced)
    quantization: Any = METHODS[name].quantization
    knobs, shape = StepKnobs(2, loss_chunk=64, quantization=quantization), BatchShape(2, 96, 60, 2)
    dtype = torch.bfloat16 if reduced else torch.float32
    traced = trace_step(wide_config, dtype=dtype, arm=arm, knobs=knobs, shape=shape, training=training, device="cpu")
    model = MGMForConditionalGeneration(wide_config).to(dtype)
    if quantization == "nf4":
        quantize_language_model_(model, keep_originals=bool(arm.points_with("loftq")))
    trainable = make_trainable_(model, arm=arm, knobs=knobs, training=training)
    if trainable.allocation is not None:
        trainable.allocation.begin_(num_steps=10)
    measured = measure_steps(trainable, config=wide_config, knobs=knobs, shape=shape, training=training)
    assert traced.peak_bytes == pytest.approx(measured.counted_bytes, rel=0.02)


def test_pissa_and_olora_begin_as_peft_says_and_leave_the_weight(tiny_base: Path) -> None:
    for name, leading in (("PiSSA", _by_svd), ("OLoRA", _by_qr)):
        trainable = inject_adapter_(load_model(tiny_base, dtype=torch.float32), lora=METHODS[name].settings(), seed=1)
        layer: Any = trainable.mgm.language_model.model.layers[0].mlp.up_proj
        weight = load_model(tiny_base, dtype=torch.float32).language_model.model.layers[0].mlp.up_proj.weight
        assert torch.equal(layer.base_layer.weight, weight)
        assert difference(layer.get_delta_weight("default"), leading(weight.detach())) < 1e-4


def test_a_bfloat16_base_begins_as_itself_under_pissa(tiny_base: Path, batch: Batch) -> None:
    model = load_model(tiny_base, dtype=torch.bfloat16)
    trainable = inject_adapter_(model, lora=METHODS["PiSSA"].settings(), seed=1)
    layer: Any = trainable.mgm.language_model.model.layers[0].mlp.up_proj
    assert not (layer.get_delta_weight("default") + layer.get_delta_weight("initial").float()).abs().max() > 1e-2
    for part, sign in ((layer.lora_A, 1), (layer.lora_B, -1)):
        assert torch.equal(part["default"].weight, sign * part["initial"].weight.float())


def test_methods_of_one_family_stand_side_by_side(tiny_base: Path, batch: Batch) -> None:
    lora = _lora(
        language_attention={"method": "pissa"},
        language_mlp={"method": "olora", "rank": 3, "loraplus_ratio": 8.0},
        vision_attention={"method": "rslora"},
        projector={"mode": "full"},
    )
    model = load_model(tiny_base, dtype=torch.float32)
    before = logits(model, batch)
    trainable = inject_adapter_(model, lora=lora, seed=1)
    assert difference(logits(trainable.model, batch), before) < 2e-6
    rates = {group.name: group.learning_rate for group in trainable.groups}
    assert rates["language_mlp.B"] == pytest.approx(8 * rates["language_mlp"])
    assert "language_mlp.B" in list_trainable(trainable)
    names = [name for group in trainable.groups for name in group.parameter_names]
    assert len(names) == len(set(names))
    assert not any(".initial." in name for name in names)


def test_loftq_needs_the_very_weights_that_were_rounded(tiny_base: Path) -> None:
    lora = METHODS["LoftQ"].settings()
    for keep in (False, True):
        model = load_model(tiny_base, dtype=torch.float32)
        quantize_language_model_(model, keep_originals=keep)
        if keep:
            model.language_model.model.layers[1].mlp.up_proj.original.mul_(-1)
        with pytest.raises(BaseChangedError, match=r"what 4 bit lost of language_model.*keep_originals"):
            inject_adapter_(model, lora=lora, seed=1)


def test_adalora_takes_ranks_down_to_the_budget(tiny_base: Path, tmp_path: Path, batch: Batch) -> None:
    tried = try_method(METHODS["AdaLoRA"], base=tiny_base, batch=batch, folder=tmp_path)
    allocation = tried.trainable.allocation
    assert allocation is not None
    ranks = allocation.ranks()
    assert sum(ranks.values()) == 2 * len(ranks)
    assert len(set(ranks.values())) > 1
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert {name: sum(kept) for name, kept in config["rank_pattern"].items()} == {
        f"{name}.lora_E": rank for name, rank in ranks.items()
    }
    empty = {name for name, p in tried.trainable.model.named_parameters() if p.requires_grad and not p.any()}
    assert allocation.emptied() == empty


def test_adalora_on_a_reduced_base_trains_its_triplets_alone(tiny_base: Path) -> None:
    """PEFT thaws the numbers it divides by where it casts them to the base's precision."""
    model = load_model(tiny_base, dtype=torch.bfloat16)
    trainable = inject_adapter_(model, lora=METHODS["AdaLoRA"].settings(), seed=1)
    wanted = {name for group in trainable.groups for name in group.parameter_names}
    assert {name for name, p in trainable.model.named_parameters() if p.requires_grad} == wanted


def test_adalora_that_has_no_steps_and_state_of_another_method_are_refused(tiny_base: Path) -> None:
    trainable = inject_adapter_(load_model(tiny_base, dtype=torch.float32), lora=METHODS["AdaLoRA"].settings(), seed=1)
    assert trainable.allocation is not None
    with pytest.raises(SettingsError, match="a training of 1 steps"):
        trainable.allocation.begin_(num_steps=1)
    plain = inject_adapter_(load_model(tiny_base, dtype=torch.float32), lora=METHODS["LoRA"].settings(), seed=1)
    trainable.allocation.begin_(num_steps=9)
    with pytest.raises(TrainingError, match="that of other methods"):
        plain.load_method_state_(trainable.method_state())


@pytest.mark.parametrize(
    "changes, told",
    [
        (
            {"projector": {"mode": "full", "method": "dora"}},
            "projector\n.*method dora needs mode lora, found mode full",
        ),
        ({"mining": {"mode": "off", "loraplus_ratio": 2.0}}, "loraplus_ratio 2 needs mode lora, found mode off"),
        (
            {"mining": {"method": "dora"}},
            r"dora of mining can't stand beside language_attention \(lora\), language_mlp",
        ),
        ({"mining": {"method": "adalora"}}, r"adalora of mining can't stand beside language_attention \(lora\)"),
        ({"projector": {"layers": [0, 1]}}, "layers is set for projector, which lies in no layers"),
        ({"language_mlp": {"layers": [1, 0]}}, r"layers must be \[first, last\] .* found \[1, 0\]"),
        ({"language_mlp": {"method": "loftq"}}, r"loftq \(language_mlp\) .* step.quantization is none: set it to nf4"),
        ({"mining": {"method": "loftq"}, "step": {"quantization": "nf4"}}, "set another method for mining"),
        ({"language_mlp": {"method": "pissa"}, "step": {"quantization": "nf4"}}, r"olora \(language_mlp\) begin with"),
        ({"language_mlp": {"method": "olora"}, "step": {"quantization": "auto"}}, "step.quantization is auto, but"),
        ({"adalora": {"target_rank": 2}}, "the section adalora is set, but no point has method adalora"),
        ({"adalora": {"tinit_share": 0.5, "tfinal_share": 0.5}}, "leave no step in which ranks are taken away"),
    ],
)
def test_what_a_method_cannot_do_is_told_at_the_settings(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        _lora(**changes)


@pytest.mark.parametrize(
    "method, changes, told",
    [
        ("adalora", {"mining": {"rank": 16}}, r"one rank and alpha, found language_attention \(rank 4, alpha 8\)"),
        ("adalora", {"adalora": {"target_rank": 4}}, r"target_rank is 4, but the rank of language_attention \(4\),"),
        ("adalora", {"mining": {"loraplus_ratio": 4.0}}, "A and B are singular vectors alike"),
        ("adalora", {"step": {"engine": "deepspeed"}}, "set engine to torch"),
        ("dora", {"step": {"engine": "deepspeed", "zero_stage": 3}}, "set zero_stage to 2 or less"),
    ],
)
def test_what_dora_and_adalora_cannot_do_is_told_at_the_settings(
    method: str, changes: dict[str, Any], told: str
) -> None:
    points = {name: {"method": method} | changes.get(name, {}) for name in _POINTS}
    budget = {"adalora": {"target_rank": 2}} if method == "adalora" else {}
    with pytest.raises(ValidationError, match=told):
        _lora(**{**budget, **changes, **points})


def test_layer_range_is_inclusive_counted_from_zero_and_checked(model: MGMForConditionalGeneration) -> None:
    def names(name: str, layers: tuple[int, int]) -> set[str]:
        points = {name: PointSettings(mode="lora", rank=2, layers=layers)}
        return {
            path.split(".layers.")[1].split(".")[0] for path in resolve_points(model, points=points)[0].module_names
        }

    assert names("language_attention", (1, 1)) == {"1"}
    assert names("language_mlp", (0, 1)) == {"0", "1"}
    assert names("vision_attention", (1, 1)) == {"1"}
    with pytest.raises(SettingsError, match=r"^language_mlp.layers is \[0, 2\], but the last layer is 1\."):
        names("language_mlp", (0, 2))
    with pytest.raises(SettingsError, match=r"last layer is 1, since the layers behind are not used"):
        names("vision_attention", (0, 2))


def test_layer_range_is_what_trains_and_what_is_counted_at_real_size(
    model: MGMForConditionalGeneration, mgm_2b: MGMForConditionalGeneration
) -> None:
    lora = _lora(language_mlp={"layers": [1, 1]}, vision_attention={"layers": [0, 0], "mode": "full"})
    trained = {
        name for name, p in inject_adapter_(model, lora=lora, seed=1).model.named_parameters() if p.requires_grad
    }
    assert {name.split(".layers.")[1][0] for name in trained if ".mlp." in name} == {"1"}
    assert {name.split(".layers.")[1][0] for name in trained if "vision_tower" in name} == {"0"}
    upper = resolve_points(mgm_2b, points={"language_attention": PointSettings(mode="lora", layers=(10, 17))})
    assert len(upper[0].module_names) == 8 * 4


_POINTS = ("language_attention", "language_mlp", "vision_attention", "projector", "mining")


@pytest.fixture(scope="module")
def wide_config() -> MGMConfig:
    """Large enough that tensors, not the bookkeeping, are what is counted."""
    text = {"model_type": "gemma", "vocab_size": 3000, "hidden_size": 128, "intermediate_size": 384}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    vision = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 2}
    return MGMConfig(
        text_config=text | heads,
        vision_config=vision | {"image_size": 56, "patch_size": 14, "projection_dim": 16},
        aux_config={"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "layer_scale_init_value": 0.5},
        image_size_aux=128,
        max_length=512,
    )


def _lora(**changes: Any) -> LoraSettings:
    points = {name: {"mode": "lora", "rank": 4, "alpha": 8.0} | changes.pop(name, {}) for name in _POINTS}
    return LoraSettings.model_validate({"learning_rate": 1e-3, **points, **changes})


def _training(*, reduced: bool) -> SeededTraining:
    return SeededTraining(
        seed=3,
        num_epochs=1,
        global_batch_size=2,
        group_by_length=False,
        packing=False,
        warmup_share=0.1,
        schedule="cosine",
        weight_decay=0.01,
        max_grad_norm=1.0,
        precision="bfloat16" if reduced else "float32",
        evaluations=2,
        num_evaluation_samples=8,
        checkpoints=0,
    )


def _batch(seed: int) -> Batch:
    torch.manual_seed(seed)
    ids = torch.randint(6, 70, (2, 12))
    ids[:, 2] = -200
    labels = torch.full_like(ids, -100)
    labels[:, -4:] = ids[:, -4:]
    images = {"images": torch.randn(2, 3, 16, 16), "images_aux": torch.randn(2, 3, 32, 32)}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, **images}


def _by_svd(weight: Tensor) -> Tensor:
    left, values, right = torch.linalg.svd(weight)
    return (left[:, :4] * values[:4]) @ right[:4]


def _by_qr(weight: Tensor) -> Tensor:
    q, r = torch.linalg.qr(weight)
    return 2.0 * q[:, :4] @ r[:4]
