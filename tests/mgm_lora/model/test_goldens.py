"""Ours against what the published MGM computed: every recorded tensor and gradient of the fixtures A, B and C (high definition)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mgm_lora.model.convnext import join_stages
from mgm_lora.model.keys import to_ours, to_published
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.mining import mine_patch_info
from mgm_lora.model.views import join_square, join_whole, squares

from ...conftest import GOLDENS

LOGITS, GRADIENTS, FEATURES = 2e-5, 2e-5, 1e-5


@dataclass(frozen=True)
class Golden:
    model: MGMForConditionalGeneration
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@pytest.fixture(scope="module", params=["A", "B", "C"])
def golden(request: pytest.FixtureRequest, golden_config: Callable[[str], Any]) -> Golden:
    config, _ = golden_config(request.param)
    model = MGMForConditionalGeneration(config)
    state = load_file(GOLDENS / request.param / "model.safetensors")
    model.load_state_dict({to_ours(key): value for key, value in state.items()}, strict=True)
    model.vision_tower.requires_grad_(False)
    model.vision_tower_aux.requires_grad_(False)
    folder = GOLDENS / request.param
    return Golden(model.eval(), load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors"))


def test_towers_agree_stage_by_stage(golden: Golden) -> None:
    model, outputs = golden.model, golden.outputs
    with torch.no_grad():
        flat = _published_order(golden.inputs["images"], model=model)
        hidden = model.vision_tower(flat, output_hidden_states=True).hidden_states
        stages = model.vision_tower_aux(golden.inputs["images_aux"])
        for number, states in enumerate(hidden):
            _assert_features(states, outputs[f"clip_hidden_states.{number}"])
        for number, stage in enumerate(stages[1:], start=1):
            _assert_features(stage, outputs[f"aux_stage.{number}"])
        _assert_features(join_stages(stages), outputs["aux_features"])
        features = model.clip_features(golden.inputs["images"])
        _assert_features(_published_order(features, model=model), outputs["vision_tower_features"])
    assert len(hidden) == sum(name.startswith("clip_hidden_states") for name in outputs)


def test_mining_and_projector_agree(golden: Golden) -> None:
    model, outputs = golden.model, golden.outputs
    grid = model.config.image_grid
    with torch.no_grad():
        clip = _published_order(model.clip_features(golden.inputs["images"]), model=model)
        stages = model.aux_stages(golden.inputs["images_aux"])
        joined = [join_square(stages, square=square, grid=grid) for square in squares(grid)]
        local = torch.stack(joined, dim=1).flatten(0, 1)  # picture by picture, as recorded
        _assert_features(clip[: len(local)], outputs["resampler.local.query"])
        found = _mine(model, clip[: len(local)], local)
        _assert_features(found, outputs["resampler.local.embed_feat"])
        seen = (clip[: len(local)] + found).unflatten(0, (-1, grid**2)).flatten(1, 2)
        if model.config.image_global:
            whole = join_whole(stages, grid=grid)
            _assert_features(whole, outputs["resampler.global.in_aux"])
            _assert_features(clip[len(local) :], outputs["resampler.global.query"])
            found = _mine(model, clip[len(local) :], whole)
            _assert_features(found, outputs["resampler.global.embed_feat"])
            seen = torch.cat([clip[len(local) :] + found, seen], dim=1)
        _assert_features(seen, outputs["mm_projector_input"])
        _assert_features(
            model.encode_images(golden.inputs["images"], golden.inputs["images_aux"]), outputs["image_features"]
        )


def test_merged_sequence_agrees(golden: Golden) -> None:
    inputs, outputs = golden.inputs, golden.outputs
    with torch.no_grad():
        merged = golden.model.merge_inputs(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            images=inputs["images"],
            images_aux=inputs["images_aux"],
            labels=inputs["labels"],
        )
    mask = outputs["merged_attention_mask"]
    scale = golden.model.config.text_config.hidden_size**0.5
    assert torch.equal(merged.attention_mask, mask)
    assert torch.equal(merged.labels, outputs["merged_labels"])
    _assert_features((merged.inputs_embeds / scale)[mask], outputs["merged_inputs_embeds"][mask])


def test_hidden_states_logits_and_loss_agree(golden: Golden) -> None:
    inputs, outputs, model = golden.inputs, golden.outputs, golden.model
    mask = outputs["merged_attention_mask"]
    with torch.no_grad():
        output = model(**inputs, logits_at="all")
        merged = model.merge_inputs(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            images=inputs["images"],
            images_aux=inputs["images_aux"],
        )
        body = model.language_model.model(
            inputs_embeds=merged.inputs_embeds, attention_mask=merged.attention_mask.long(), output_hidden_states=True
        )
    assert (output.logits - outputs["logits"])[mask].abs().max() <= LOGITS
    assert abs(output.loss - outputs["loss"]) <= 2e-6
    for number, states in enumerate(body.hidden_states):
        _assert_features(states[mask], outputs[f"hidden_states.{number}"][mask])


def test_gradients_agree(golden: Golden) -> None:
    golden.model.zero_grad()
    golden.model(**golden.inputs).loss.backward()
    parameters = {to_published(name): parameter for name, parameter in golden.model.named_parameters()}
    # what the softmax drops has no gradient here, and rounding noise in the recording
    gradients = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in parameters.items()}
    compared = 0
    for name, recorded in golden.outputs.items():
        kind, _, key = name.partition(".")
        if kind == "grad":
            assert (gradients[key] - recorded).abs().max() <= GRADIENTS, name
        elif kind == "grad_norm":
            assert abs(gradients[key].norm() - recorded) <= GRADIENTS * max(1.0, float(recorded)), name
        compared += kind in ("grad", "grad_norm")
    total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert compared >= 10
    assert abs(total - golden.outputs["grad_norm_total"]) <= GRADIENTS * float(total)


def test_greedy_generation_agrees(golden: Golden) -> None:
    inputs, outputs = golden.inputs, golden.outputs
    keep = inputs["attention_mask"][0]
    generated = golden.model.generate(
        inputs["input_ids"][:1, keep],
        inputs["attention_mask"][:1, keep],
        inputs["images"][:1],
        inputs["images_aux"][:1],
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(generated.sequences, outputs["generate.sample0.sequences"])
    scores = torch.stack(generated.logits, dim=1)
    recorded = outputs["generate.sample0.scores"]
    finite = recorded > -1e30
    assert (scores - recorded)[finite].abs().max() <= LOGITS


def test_text_only_row_agrees(golden: Golden) -> None:
    if "textonly.logits" not in golden.outputs:
        pytest.skip("recorded in B alone")
    inputs = golden.inputs
    keep = inputs["attention_mask"][1]
    ids, labels = inputs["input_ids"][1:2, keep], inputs["labels"][1:2, keep]
    with torch.no_grad():
        output = golden.model(ids, torch.ones_like(ids), labels=labels, logits_at="all")
    assert (output.logits - golden.outputs["textonly.logits"]).abs().max() <= LOGITS
    assert abs(output.loss - golden.outputs["textonly.loss"]) <= 2e-6


def test_last_clip_layer_never_gets_a_gradient(golden: Golden) -> None:
    golden.model.vision_tower.requires_grad_(True)
    try:
        golden.model.zero_grad()
        golden.model(**golden.inputs).loss.backward()
        layers = golden.model.vision_tower.encoder.layers
        used = [all(p.grad is not None for p in layer.parameters()) for layer in layers]
    finally:
        golden.model.vision_tower.requires_grad_(False)
        golden.model.zero_grad()
    assert used == [True] * (len(layers) - 1) + [False]


def _published_order(by_picture: Tensor, *, model: MGMForConditionalGeneration) -> Tensor:
    """The squares of all pictures, then the wholes of all."""
    if model.config.num_views == 1:
        return by_picture
    num_squares = model.config.image_grid**2
    return torch.cat([by_picture[:, :num_squares].flatten(0, 1), by_picture[:, num_squares:].flatten(0, 1)])


def _mine(model: MGMForConditionalGeneration, clip: Tensor, aux: Tensor) -> Tensor:
    return mine_patch_info(
        clip,
        aux,
        query_projector=model.vlm_uni_query_projector,
        aux_projector=model.vlm_uni_aux_projector,
        val_projector=model.vlm_uni_val_projector,
    )


def _assert_features(ours: Tensor, recorded: Tensor) -> None:
    assert ours.shape == recorded.shape
    assert (ours - recorded).abs().max() <= FEATURES * recorded.abs().max()
