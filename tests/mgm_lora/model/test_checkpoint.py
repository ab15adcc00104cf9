"""Checkpoints: bit-equal round trip under the published names; every wrong key named; broken files told."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgm_lora.errors import CheckpointError
from mgm_lora.model.checkpoint import digest_checkpoint, load_model, resolve_checkpoint, save_model
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.keys import to_ours, to_published
from mgm_lora.model.mgm import MGMForConditionalGeneration

from ...conftest import GOLDENS


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_equal(tiny_base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    model = load_model(tiny_base, dtype=dtype)
    save_model(model, folder=tmp_path / "again")
    again = load_model(tmp_path / "again", dtype=dtype)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and theirs[name].dtype == dtype for name in ours)
    assert (
        load_file(tmp_path / "again" / "model.safetensors").keys() == load_file(tiny_base / "model.safetensors").keys()
    )


def test_loaded_model_computes_what_was_saved(tiny_config: MGMConfig, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = MGMForConditionalGeneration(tiny_config).eval()
    save_model(model, folder=tmp_path)
    ids = torch.tensor([[2, 9, -200, 11, 12]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "images": torch.randn(1, 3, 16, 16),
        "images_aux": torch.randn(1, 3, 32, 32),
    }
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, load_model(tmp_path, dtype=torch.float32)(**inputs).logits)


def test_published_keys_map_one_to_one() -> None:
    for name in ("A", "B"):
        published = load_file(GOLDENS / name / "model.safetensors").keys()
        assert {to_published(to_ours(key)) for key in published} == set(published)
        assert len({to_ours(key) for key in published}) == len(published)


def test_missing_renamed_and_misshapen_keys_are_all_named(base: Path) -> None:
    path = base / "model.safetensors"
    state = load_file(path)
    del state["model.norm.weight"]
    state["model.mm_projector.first.weight"] = state.pop("model.mm_projector.0.weight")
    state["model.mm_projector.2.bias"] = torch.zeros(3)
    save_file(state, path)
    with pytest.raises(CheckpointError) as error:
        load_model(base, dtype=torch.float32)
    message = str(error.value)
    assert "2 missing and 1 unexpected keys and 1 of another shape" in message
    for part in (
        "missing: model.norm.weight",
        "missing: model.mm_projector.0.weight",
        "unexpected: model.mm_projector.first.weight",
        "shape of model.mm_projector.2.bias: [3] in the file, [32]",
    ):
        assert part in message


def test_file_cut_short_is_told(base: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="cut short"):
        load_model(base, dtype=torch.float32)


def test_missing_base_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*dvc pull"):
        load_model(tmp_path / "nothing", dtype=torch.float32)
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        resolve_checkpoint(tmp_path)


def test_hub_id_without_network_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="hf download nobody/nothing"):
        resolve_checkpoint("nobody/nothing")


def test_other_kind_of_checkpoint_is_refused(base: Path) -> None:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "model_type": "llava"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="says model_type 'llava'"):
        load_model(base, dtype=torch.float32)


def test_digest_follows_every_byte(base: Path) -> None:
    before = digest_checkpoint(base)
    state = load_file(base / "model.safetensors")
    state["model.norm.weight"][0] += 1e-3
    save_file(state, base / "model.safetensors")
    assert digest_checkpoint(base) != before


def test_llama_takes_gemmas_place_by_configuration(tiny_config: MGMConfig, tmp_path: Path) -> None:
    text = {
        "model_type": "llama",
        "vocab_size": 90,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    config = MGMConfig(
        text_config=text,
        vision_config=tiny_config.vision_config,
        aux_config=tiny_config.aux_config,
        image_size_aux=32,
        max_length=64,
    )
    model = MGMForConditionalGeneration(config).eval()
    save_model(model, folder=tmp_path)
    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")
    ids = torch.tensor([[1, 5, 6]])
    again = load_model(tmp_path, dtype=torch.float32)
    assert torch.equal(model(ids, torch.ones_like(ids)).logits, again(ids, torch.ones_like(ids)).logits)


def test_real_mgm_2b_has_the_published_parameter_count(mgm_2b: MGMForConditionalGeneration) -> None:
    counts = json.loads((GOLDENS / "param_counts.json").read_text(encoding="utf-8"))["parts"]

    def count(*names: str) -> int:
        return sum(p.numel() for name in names for p in mgm_2b.get_submodule(name).parameters())

    assert sum(p.numel() for p in mgm_2b.parameters()) == counts["MGM-2B total (tied lm_head counted once)"]
    assert count("vision_tower") == counts["clip_vit_l14_336 (vision_tower)"]
    assert count("vision_tower_aux") == counts["convnext_l (vision_tower_aux)"]
    assert count("mm_projector") == counts["mm_projector"]
    mining = ("vlm_uni_query_projector", "vlm_uni_aux_projector", "vlm_uni_val_projector")
    assert count(*mining) == counts["vlm_uni total"]
