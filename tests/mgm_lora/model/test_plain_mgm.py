"""Ours against the published formulas written out plainly: what no recorded golden varies, read from a published folder as a user's is."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mgm_lora.model.checkpoint import build_empty, load_model, read_config
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.sources import expected_shapes

from ...conftest import GOLDENS
from .plain_mgm import PlainMGM

TEXT = {
    "model_type": "mgm_gemma",
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "hidden_act": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
PICTURES = {
    "image_aspect_ratio": "pad",
    "image_grid": 1,
    "image_global": False,
    "image_size_aux": 32,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "clip",
    "mm_vision_tower_aux": "openclip",
    "tokenizer_model_max_length": 2048,
    "tokenizer_padding_side": "right",
}
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 8,
}
AUX = {"depths": [1, 1, 2, 1], "dims": [4, 6, 8, 10]}
LLAMA = {"model_type": "mgm", "hidden_act": "silu", "tie_word_embeddings": False, "head_dim": None}


class Variant(NamedTuple):
    """What differs from the base, in config.json and in CLIP's."""

    entries: dict[str, Any]
    vision: Mapping[str, Any] = MappingProxyType({})


VARIANTS = {
    "base": Variant({}),
    "grid 2 without the whole": Variant({"image_grid": 2, "image_size_aux": 64}),
    "grid 2 with the whole": Variant({"image_grid": 2, "image_global": True, "image_size_aux": 64}),
    "grid 3 with the whole": Variant({"image_grid": 3, "image_global": True, "image_size_aux": 96}),
    "grouped keys": Variant({"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}),
    "a key for each head": Variant({"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8}),
    "wide heads": Variant({"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 20}),
    "narrow heads": Variant({"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 2}),
    "exact GELU": Variant({"hidden_act": "gelu"}),
    "exact GELU, said twice": Variant({"hidden_act": "gelu", "hidden_activation": "gelu"}),
    "long rope": Variant({"rope_theta": 5e6}),
    "short rope": Variant({"rope_theta": 50.0}),
    "rope as transformers 5 writes it": Variant(
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}
    ),
    "biased attention": Variant({"attention_bias": True}),
    "another norm": Variant({"rms_norm_eps": 0.5}, {"layer_norm_eps": 0.3}),
    "36 patches": Variant({"image_size_aux": 96}, {"image_size": 24}),
    "9 patches, 9 positions each": Variant({"image_size_aux": 36}, {"image_size": 21, "patch_size": 7}),
    "CLIP with exact GELU": Variant({}, {"hidden_act": "gelu", "num_attention_heads": 4}),
    "CLIP's last layer": Variant({"mm_vision_select_layer": -1}),
    "CLIP's first layer alone": Variant({"mm_vision_select_layer": -3}),
    "Llama": Variant({**LLAMA, "num_key_value_heads": 2, "rope_theta": 5e5}),
    "Llama with as many keys": Variant({**LLAMA, "num_attention_heads": 6, "num_key_value_heads": 6}),
}
# Rows of other lengths: two pictures, none, one, and one at the end.
ROWS = ([2, 5, -200, 6, -200, 7, 8, 9], [2, 11, 12], [2, -200, 13, 14, 15, 16, 17, 18, 19, 20, 21], [2, 30, -200])
NUM_SLOTS = 5


class Both(NamedTuple):
    """Ours and the plain one, of the same files, and a picture for every slot: its pixels, and what the plain one makes of it."""

    ours: MGMForConditionalGeneration
    plain: PlainMGM
    images: Tensor
    images_aux: Tensor
    tokens: list[Tensor]

    def rows(self) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Each with its pictures; a row without one passes over a slot."""
        slots = iter(self.tokens)
        for ids in ROWS:
            pictures = [next(slots) for _ in range(max(1, ids.count(-200)))]
            yield ids, pictures[: ids.count(-200)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """So small a model takes three times as long on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=VARIANTS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("published")
    variant = VARIANTS[request.param]
    entries = {**TEXT, **PICTURES, **variant.entries}
    entries = {name: value for name, value in entries.items() if value is not None}
    vision = {**VISION, **variant.vision}
    _write(folder / "config.json", entries)
    _write(folder / "clip/config.json", vision)
    _write(folder / "openclip/open_clip_config.json", {"model_cfg": {"vision_cfg": AUX}})
    config = read_config(folder)
    generator = torch.Generator().manual_seed(3)
    shapes = expected_shapes(build_empty(config, where=folder), tied=config.tie_word_embeddings)
    state = {key: 0.4 * torch.randn(shape, generator=generator) for key, shape in sorted(shapes.items())}
    save_file(state, folder / "model.safetensors")
    theta = entries.get("rope_theta") or entries["rope_parameters"]["rope_theta"]
    wide = {key: value.double() for key, value in state.items()}
    plain = PlainMGM(wide, {**entries, "rope_theta": theta}, vision, AUX["depths"])
    images = torch.randn(NUM_SLOTS, *config.images_shape, dtype=torch.float64, generator=generator)
    images_aux = torch.randn(NUM_SLOTS, *config.images_aux_shape, dtype=torch.float64, generator=generator)
    tokens = [plain.picture(*views) for views in zip(images, images_aux, strict=True)]
    return Both(load_model(folder, dtype=torch.float64), plain, images, images_aux, tokens)


def test_logits_are_those_of_the_plain_formulas(both: Both) -> None:
    ids, mask = _padded(side="right")
    with torch.no_grad():
        logits = both.ours(ids, mask, both.images, both.images_aux).logits
    for row, (prompt, pictures) in enumerate(both.rows()):
        expected = both.plain.row_logits(prompt, pictures)
        ours = logits[row, : len(expected)]
        # transformers rotates and normalises in float32 whatever the model's precision
        assert (ours - expected).abs().max() <= 5e-6 * expected.abs().max()


def test_batched_answers_are_those_of_the_plain_formulas_row_by_row(both: Both) -> None:
    expected = [both.plain.greedy(prompt, pictures, number=4) for prompt, pictures in both.rows()]
    for side in ("left", "right"):
        ids, mask = _padded(side=side)
        answers = both.ours.generate(
            ids,
            mask,
            both.images,
            both.images_aux,
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert answers.tolist() == expected
    assert len({tuple(answer) for answer in expected}) > 1, "else a mix-up would not show"


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_the_plain_formulas_are_the_recorded_ones(name: str) -> None:
    recorded = json.loads((GOLDENS / name / "config.json").read_text(encoding="utf-8"))
    folder = GOLDENS / name
    state = {key: value.double() for key, value in load_file(folder / "model.safetensors").items()}
    inputs, outputs = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    plain = PlainMGM(state, recorded["reference_model_config"], recorded["clip_vision"], recorded["convnext"]["depths"])
    picture = plain.picture(inputs["images"][0].double(), inputs["images_aux"][0].double())
    ids = inputs["input_ids"][0][inputs["attention_mask"][0]].tolist()
    mask = outputs["merged_attention_mask"][0]
    logits = plain.row_logits(ids, [picture])[: int(mask.sum())]
    assert (logits - outputs["logits"][0][mask]).abs().max() <= 2e-5


def _padded(*, side: str) -> tuple[Tensor, Tensor]:
    length = max(map(len, ROWS))
    fill = [[0] * (length - len(row)) for row in ROWS]
    padded = [[*row, *rest] if side == "right" else [*rest, *row] for row, rest in zip(ROWS, fill, strict=True)]
    kept = [[1] * len(row) for row in ROWS]
    mask = [[*row, *rest] if side == "right" else [*rest, *row] for row, rest in zip(kept, fill, strict=True)]
    return torch.tensor(padded), torch.tensor(mask)


def _write(path: Path, entries: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries), encoding="utf-8")
