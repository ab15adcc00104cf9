"""A checkpoint as MGM was published, at tiny size: flat config.json, shards with an index, the towers in folders of their own."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mgm_lora.model.config import MGMConfig

VISION = "model.vision_tower.vision_tower."
AUX = "model.vision_tower_aux."
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Published:
    """A published checkpoint and its two towers' folders."""

    folder: Path
    clip: Path
    openclip: Path

    @property
    def entries(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "config.json").read_text(encoding="utf-8")))

    def change(self, **entries: Any) -> None:
        """Changes entries of config.json."""
        (self.folder / "config.json").write_text(json.dumps({**self.entries, **entries}), encoding="utf-8")


@pytest.fixture
def make_published(tiny_base: Path, tiny_config: MGMConfig, tmp_path: Path) -> Callable[..., Published]:
    """Writes the tiny base in the published layout; written by hand, not by the package's own writer."""

    def make(*, suffix: str = ".safetensors", towers: str = "apart", num_shards: int = 3) -> Published:
        state = load_file(tiny_base / "model.safetensors")
        folder, zoo = tmp_path / "MGM-tiny", tmp_path / "MGM-tiny" / "model_zoo" / "OpenAI"
        made = Published(folder=folder, clip=zoo / "clip-tiny", openclip=zoo / "openclip-convnext-tiny")
        for place in (made.clip, made.openclip):
            place.mkdir(parents=True)
        inside = {k: v for k, v in state.items() if towers == "inside" or not k.startswith((VISION, AUX))}
        write_shards(inside, folder=folder, suffix=suffix, num_shards=num_shards)
        if towers == "apart":
            write_clip(state, folder=made.clip, suffix=suffix)
            write_openclip(state, folder=made.openclip)
        write_configs(made, config=tiny_config)
        for name in TOKENIZER_FILES:
            (folder / name).write_bytes((tiny_base / name).read_bytes())
        return made

    return make


def write_shards(state: dict[str, Tensor], *, folder: Path, suffix: str, num_shards: int) -> None:
    """Shards with their index, as transformers 4 named them."""
    stem, index = {
        ".safetensors": ("model", "model.safetensors.index.json"),
        ".bin": ("pytorch_model", "pytorch_model.bin.index.json"),
    }[suffix]
    weight_map = {}
    by_size = sorted(state, key=lambda key: (state[key].nbytes, key))  # so that shards are about as large as each other
    for number in range(num_shards):
        name = f"{stem}-{number + 1:05}-of-{num_shards:05}{suffix}"
        shard = {key: state[key] for key in by_size[number::num_shards]}
        write_weights(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def write_weights(state: dict[str, Tensor], path: Path) -> None:
    """One file."""
    if path.suffix == ".safetensors":
        save_file(state, path, metadata={"format": "pt"})
    else:
        torch.save(state, path)


def write_clip(state: dict[str, Tensor], *, folder: Path, suffix: str) -> None:
    """A whole CLIP, as transformers writes it: with its text side, projections, and the buffer of older versions."""
    vision = {key.removeprefix(VISION): value for key, value in state.items() if key.startswith(VISION)}
    beside = {
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
        "text_model.embeddings.position_ids": torch.arange(5)[None],
        "text_model.embeddings.token_embedding.weight": torch.zeros(9, 4),
        "text_model.final_layer_norm.bias": torch.zeros(4),
        "text_projection.weight": torch.zeros(4, 4),
        "visual_projection.weight": torch.zeros(4, 24),
        "logit_scale": torch.tensor(2.6),
    }
    name = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
    write_weights({**vision, **beside}, folder / name)


def write_openclip(state: dict[str, Tensor], *, folder: Path) -> None:
    """A whole OpenCLIP ConvNeXt, as `open_clip` names it: with its heads and its text side."""
    aux = {key.removeprefix(AUX): value for key, value in state.items() if key.startswith(AUX)}
    trunk = {
        f"visual.trunk.{key.replace('vision_stem', 'stem').replace('vision_stages', 'stages')}": value
        for key, value in aux.items()
    }
    beside = {
        "visual.trunk.head.norm.weight": torch.ones(8),
        "visual.trunk.head.norm.bias": torch.zeros(8),
        "visual.head.mlp.fc1.weight": torch.zeros(4, 8),
        "visual.head.mlp.fc2.weight": torch.zeros(4, 4),
        "positional_embedding": torch.zeros(5, 4),
        "text_projection": torch.zeros(4, 4),
        "logit_scale": torch.tensor(4.6),
        "token_embedding.weight": torch.zeros(9, 4),
        "ln_final.weight": torch.ones(4),
        "transformer.resblocks.0.attn.in_proj_weight": torch.zeros(12, 4),
    }
    write_weights({**trunk, **beside}, folder / "open_clip_pytorch_model.bin")


def write_configs(made: Published, *, config: MGMConfig) -> None:
    """The three configurations in their published forms."""
    text, vision, aux = config.text_config, config.vision_config, config.aux_config
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    entries = {
        "architectures": ["MGMGemmaForCausalLM"],
        "model_type": "mgm_gemma",
        **{name: getattr(text, name) for name in (*sizes, "num_key_value_heads", "head_dim")},
        "hidden_act": "gelu_pytorch_tanh",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.38.2",
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "image_global": False,
        "image_grid": 1,
        "image_grid_pinpoints": None,
        "image_size_aux": config.image_size_aux,
        "mm_hidden_size": vision.hidden_size,
        "mm_hidden_size_aux": sum(aux.dims),
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "model_zoo/OpenAI/clip-tiny",
        "mm_vision_tower_aux": "model_zoo/OpenAI/openclip-convnext-tiny",
        "optimize_vision_tower": False,
        "optimize_vision_tower_aux": False,
        "tokenizer_model_max_length": config.max_length,
        "tokenizer_padding_side": "right",
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    }
    (made.folder / "config.json").write_text(json.dumps(entries), encoding="utf-8")
    shape = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    clip = {name: getattr(vision, name) for name in (*shape, "projection_dim")}
    (made.clip / "config.json").write_text(
        json.dumps({"model_type": "clip", "text_config": {}, "vision_config": {**clip, "hidden_act": "quick_gelu"}}),
        encoding="utf-8",
    )
    # no timm model is this small, so that its name says no shape: that is read from the weights
    openclip = {"model_cfg": {"vision_cfg": {"timm_model_name": "convnext_tiny_of_a_test"}}, "preprocess_cfg": {}}
    (made.openclip / "open_clip_config.json").write_text(json.dumps(openclip), encoding="utf-8")
