"""The mapping of names at real size: one to one between published keys and our weights, for MGM-2B, both towers and Mixtral's experts."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mgm_lora.model.checkpoint import build_empty, load_model, read_config, save_model
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.keys import CLIP_NAMES, MGM_NAMES, OPENCLIP_NAMES, FileNames, Place, published_places
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.weight_files import describe_weights

from ...conftest import GOLDENS

MGM_2B = {
    "model_type": "mgm_gemma",
    "vocab_size": 256000,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "rope_theta": 10000.0,
    "image_aspect_ratio": "pad",
    "image_size_aux": 768,
    "mm_hidden_size": 1024,
    "mm_hidden_size_aux": 2880,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "model_zoo/OpenAI/clip-vit-large-patch14-336",
    "mm_vision_tower_aux": "model_zoo/OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup",
    "tokenizer_model_max_length": 2048,
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, ...]]:
    """Of every weight of the model that MGM-2B's published configuration makes; the tied head is the embedding."""
    folder = tmp_path_factory.mktemp("mgm-2b")
    (folder / "config.json").write_text(json.dumps(MGM_2B), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
        config = read_config(folder)
    state = build_empty(config, where=folder).state_dict()
    del state["language_model.lm_head.weight"]
    return {name: tuple(value.shape) for name, value in state.items()}


def test_every_published_key_of_mgm_2b_has_one_place(shapes: dict[str, tuple[int, ...]]) -> None:
    places = published_places(shapes)
    assert set(places) == {*_gemma_keys(layers=18), *_mgm_keys(), *_vision_keys(), *_aux_keys()}
    assert {place.name for place in places.values()} == set(shapes)
    assert all(place == Place(place.name) for place in places.values())
    assert len({place.name for place in places.values()}) == len(places)


def test_numbers_behind_the_published_keys_are_mgm_2bs(shapes: dict[str, tuple[int, ...]]) -> None:
    counts = json.loads((GOLDENS / "param_counts.json").read_text(encoding="utf-8"))["parts"]
    sizes = {key: math.prod(shapes[place.name]) for key, place in published_places(shapes).items()}

    def count(*prefixes: str) -> int:
        return sum(size for key, size in sizes.items() if key.startswith(prefixes))

    assert sum(sizes.values()) == counts["MGM-2B total (tied lm_head counted once)"]
    assert count("model.vision_tower.") == counts["clip_vit_l14_336 (vision_tower)"]
    assert count("model.vision_tower_aux.") == counts["convnext_l (vision_tower_aux)"]
    assert count("model.mm_projector.") == counts["mm_projector"]
    assert count("model.vlm_uni_") == counts["vlm_uni total"]
    assert count("model.embed_tokens.", "model.layers.", "model.norm.") == counts["gemma.total"]


@pytest.mark.parametrize(
    "names, prefix, theirs",
    [
        (CLIP_NAMES, "model.vision_tower.vision_tower.", ""),
        (OPENCLIP_NAMES, "model.vision_tower_aux.vision_", "visual.trunk."),
    ],
)
def test_every_key_of_the_real_towers_is_mapped_one_to_one(names: FileNames, prefix: str, theirs: str) -> None:
    inside = [*_vision_keys()] if names is CLIP_NAMES else [*_aux_keys()]
    apart = {theirs + key.removeprefix(prefix) for key in inside}
    assert {names.to_published(key) for key in apart} == set(inside)
    assert {names.from_published(key) for key in inside} == apart
    assert not [key for key in apart if names.leaves_out(key)]


def test_clip_as_transformers_5_writes_it_is_mapped_too() -> None:
    bare = {key.removeprefix("model.vision_tower.vision_tower.vision_model.") for key in _vision_keys()}
    assert {CLIP_NAMES.to_published(key) for key in bare} == set(_vision_keys())


@pytest.mark.parametrize(
    "names, key, left_out",
    [
        (CLIP_NAMES, "vision_model.embeddings.position_ids", True),
        (CLIP_NAMES, "text_model.encoder.layers.0.mlp.fc1.weight", True),
        (CLIP_NAMES, "vision_model.embeddings.class_embedding", False),
        (CLIP_NAMES, "vision_model.head.probe", False),
        (OPENCLIP_NAMES, "visual.trunk.norm_pre.weight", True),
        (OPENCLIP_NAMES, "visual.trunk.head.norm.weight", True),
        (OPENCLIP_NAMES, "visual.head.mlp.fc1.weight", True),
        (OPENCLIP_NAMES, "transformer.resblocks.15.mlp.c_fc.bias", True),
        (OPENCLIP_NAMES, "text.transformer.resblocks.15.mlp.c_fc.bias", True),
        (OPENCLIP_NAMES, "logit_scale", True),
        (OPENCLIP_NAMES, "visual.trunk.stages.0.blocks.0.gamma", False),
        (OPENCLIP_NAMES, "visual.trunk.stages.0.unknown", False),
        (OPENCLIP_NAMES, "visual.proj", False),
        (MGM_NAMES, "model.layers.3.self_attn.rotary_emb.inv_freq", True),
        (MGM_NAMES, "model.layers.3.self_attn.q_proj.bias", False),
    ],
)
def test_only_what_mgm_has_no_use_for_is_left_out(names: FileNames, key: str, left_out: bool) -> None:
    assert names.leaves_out(key) == left_out


def test_mixtrals_experts_are_published_one_by_one(tiny_config: MGMConfig, tmp_path: Path) -> None:
    text = {
        "model_type": "mixtral",
        "vocab_size": 90,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    }
    parts: dict[str, Any] = {"vision_config": tiny_config.vision_config, "aux_config": tiny_config.aux_config}
    config = MGMConfig(text_config=text, image_size_aux=32, max_length=64, **parts)
    torch.manual_seed(1)
    model = MGMForConditionalGeneration(config).eval()
    save_model(model, folder=tmp_path)
    written = describe_weights(tmp_path / "model.safetensors")
    moe = "model.layers.1.block_sparse_moe"
    assert {key for key in written if key.startswith(f"{moe}.")} == {
        f"{moe}.gate.weight",
        *(f"{moe}.experts.{expert}.w{number}.weight" for expert in range(3) for number in (1, 2, 3)),
    }
    again = load_model(tmp_path, dtype=torch.float32)
    ours, theirs = model.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(_logits(model), _logits(again))


def _logits(model: MGMForConditionalGeneration) -> Tensor:
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        return torch.as_tensor(model(ids, torch.ones_like(ids)).logits)


def _gemma_keys(*, layers: int) -> Iterator[str]:
    yield from ("model.embed_tokens.weight", "model.norm.weight")
    for layer in range(layers):
        yield from (f"model.layers.{layer}.{name}_layernorm.weight" for name in ("input", "post_attention"))
        yield from (f"model.layers.{layer}.self_attn.{name}_proj.weight" for name in "qkvo")
        yield from (f"model.layers.{layer}.mlp.{name}_proj.weight" for name in ("gate", "up", "down"))


def _mgm_keys() -> Iterator[str]:
    for kind in ("weight", "bias"):
        yield from (f"model.mm_projector.{number}.{kind}" for number in (0, 2))
        for role in ("query", "aux", "val"):
            yield from (f"model.vlm_uni_{role}_projector.{number}.{kind}" for number in (0, 1))


def _vision_keys() -> Iterator[str]:
    """As transformers 4.38 names CLIP ViT-L/14-336."""
    tower = "model.vision_tower.vision_tower.vision_model"
    yield f"{tower}.embeddings.class_embedding"
    yield from (f"{tower}.embeddings.{name}_embedding.weight" for name in ("patch", "position"))
    for kind in ("weight", "bias"):
        yield from (f"{tower}.{norm}.{kind}" for norm in ("pre_layrnorm", "post_layernorm"))
        for layer in range(24):
            for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
                yield f"{tower}.encoder.layers.{layer}.self_attn.{name}.{kind}"
            for name in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"):
                yield f"{tower}.encoder.layers.{layer}.{name}.{kind}"


def _aux_keys() -> Iterator[str]:
    """As timm names ConvNeXt-L, under the names that MGM gives stem and stages."""
    tower = "model.vision_tower_aux"
    for kind in ("weight", "bias"):
        yield from (f"{tower}.vision_stem.{number}.{kind}" for number in (0, 1))
        for stage, depth in enumerate((3, 3, 27, 3)):
            if stage:
                yield from (f"{tower}.vision_stages.{stage}.downsample.{number}.{kind}" for number in (0, 1))
            for block in range(depth):
                for name in ("conv_dw", "norm", "mlp.fc1", "mlp.fc2"):
                    yield f"{tower}.vision_stages.{stage}.blocks.{block}.{name}.{kind}"
    for stage, depth in enumerate((3, 3, 27, 3)):
        yield from (f"{tower}.vision_stages.{stage}.blocks.{block}.gamma" for block in range(depth))
