"""The adapter on disk: what trained is what is saved, what is saved is what runs, on its own base only."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mgm_lora.artifacts import Manifest, write_manifest
from mgm_lora.errors import ArtifactError, BaseChangedError
from mgm_lora.lora.adapter import KIND, adapter_quantization, load_adapter, merge_adapter_, save_adapter
from mgm_lora.lora.injection import TrainableModel, inject_adapter_
from mgm_lora.model.checkpoint import load_model
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.quantization import dequantize_language_model_, is_quantized, quantize_language_model_
from mgm_lora.settings import LoraSettings

Batch = dict[str, torch.Tensor]
DIGEST = "a" * 64


@pytest.fixture
def trained(model: MGMForConditionalGeneration, all_points: LoraSettings) -> TrainableModel:
    return _trained(model, all_points)


@pytest.fixture
def trained_in_4_bit(model: MGMForConditionalGeneration, all_points: LoraSettings) -> TrainableModel:
    quantize_language_model_(model)
    return _trained(model, all_points)


def _trained(model: MGMForConditionalGeneration, all_points: LoraSettings) -> TrainableModel:
    """Every trained parameter moved away from where it began."""
    trainable = inject_adapter_(model, lora=all_points, seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in trainable.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    trainable.model.eval()
    return trainable


@pytest.fixture
def save(tmp_path: Path) -> Callable[[TrainableModel], Path]:
    def write(trainable: TrainableModel) -> Path:
        save_adapter(trainable.model, folder=tmp_path)
        base = {"model": "tiny", "revision": None, "digest": DIGEST}
        details = {"quantization": "nf4"} if is_quantized(trainable.model) else {}
        write_manifest(tmp_path, Manifest.make(KIND, settings={}, parents={}, base=base, details=details))
        return tmp_path

    return write


def test_saved_and_loaded_adapter_is_bit_equal(
    trained: TrainableModel, save: Callable[[TrainableModel], Path], tiny_base: Path, batch: Batch
) -> None:
    folder = save(trained)
    loaded = load_adapter(load_model(tiny_base, dtype=torch.float32), folder=folder, base_digest=DIGEST)
    before, after = dict(trained.model.named_parameters()), dict(loaded.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        assert torch.equal(trained.model(**batch, logits_at="all").logits, loaded(**batch, logits_at="all").logits)


def test_files_hold_every_trained_parameter_and_no_other(
    trained: TrainableModel, save: Callable[[TrainableModel], Path]
) -> None:
    folder = save(trained)
    saved = sum(tensor.numel() for name in folder.glob("*.safetensors") for tensor in load_file(name).values())
    assert saved == trained.num_trainable
    assert load_file(folder / "full_parts.safetensors").keys() == {
        f"mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")
    }
    assert not (folder / "README.md").exists()


def test_other_base_is_refused(
    trained: TrainableModel, save: Callable[[TrainableModel], Path], tiny_base: Path
) -> None:
    folder = save(trained)
    with pytest.raises(BaseChangedError, match="digest aaaaaaaaaaaa, found a base with digest bbbbbbbbbbbb"):
        load_adapter(load_model(tiny_base, dtype=torch.float32), folder=folder, base_digest="b" * 64)


def test_adapter_without_manifest_is_not_whole(tmp_path: Path, model: MGMForConditionalGeneration) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(ArtifactError, match="no TrainedAdapter at"):
        load_adapter(model, folder=tmp_path, base_digest=DIGEST)


def test_merged_model_answers_as_adapted_and_has_no_trace_of_peft(
    trained: TrainableModel, tiny_base: Path, batch: Batch
) -> None:
    with torch.no_grad():
        adapted = trained.model(**batch, logits_at="all").logits
        base = load_model(tiny_base, dtype=torch.float32)
        of_base = base(**batch, logits_at="all").logits
        merged = merge_adapter_(trained.model)
        of_merged = merged(**batch, logits_at="all").logits
    assert (adapted - of_merged).abs().max() <= 1e-5 * adapted.abs().max()
    assert (of_base - of_merged).abs().max() >= 1e-3 * of_base.abs().max()
    assert merged.state_dict().keys() == base.state_dict().keys()


@pytest.mark.parametrize("already", [False, True], ids=["plain base", "4-bit base"])
def test_adapter_of_a_4_bit_base_is_loaded_onto_one(
    trained_in_4_bit: TrainableModel,
    save: Callable[[TrainableModel], Path],
    tiny_base: Path,
    batch: Batch,
    already: bool,
) -> None:
    folder = save(trained_in_4_bit)
    base = load_model(tiny_base, dtype=torch.float32)
    if already:
        quantize_language_model_(base)
    loaded = load_adapter(base, folder=folder, base_digest=DIGEST)
    assert adapter_quantization(folder) == "nf4"
    assert is_quantized(loaded)
    with torch.no_grad():
        expected = trained_in_4_bit.model(**batch, logits_at="all").logits
        assert torch.equal(expected, loaded(**batch, logits_at="all").logits)


def test_adapter_of_a_plain_base_is_not_put_on_a_4_bit_one(
    trained: TrainableModel, save: Callable[[TrainableModel], Path], tiny_base: Path
) -> None:
    folder = save(trained)
    base = load_model(tiny_base, dtype=torch.float32)
    quantize_language_model_(base)
    assert adapter_quantization(folder) == "none"
    with pytest.raises(BaseChangedError, match="found one in 4 bit: load the base without quantization"):
        load_adapter(base, folder=folder, base_digest=DIGEST)


def test_merged_4_bit_model_is_plain_and_answers_as_adapted(
    trained_in_4_bit: TrainableModel, tiny_base: Path, batch: Batch
) -> None:
    rounded = load_model(tiny_base, dtype=torch.float32)
    quantize_language_model_(rounded)
    dequantize_language_model_(rounded)
    with torch.no_grad():
        adapted = trained_in_4_bit.model(**batch, logits_at="all").logits
        merged = merge_adapter_(trained_in_4_bit.model)
        of_merged = merged(**batch, logits_at="all").logits
    assert (adapted - of_merged).abs().max() <= 1e-5 * adapted.abs().max()
    assert not is_quantized(merged)
    assert merged.state_dict().keys() == rounded.state_dict().keys()
    frozen = "language_model.model.embed_tokens.weight"  # neither rounded nor adapted
    assert torch.equal(merged.state_dict()[frozen], rounded.state_dict()[frozen])
