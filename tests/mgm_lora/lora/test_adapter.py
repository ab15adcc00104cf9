"""The adapter on disk: what trained is what is saved, what is saved is what runs, on its own base only."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from mgm_lora.arm_settings import LoraSettings
from mgm_lora.artifacts import Manifest, write_manifest
from mgm_lora.errors import ArtifactError, BaseChangedError
from mgm_lora.lora.adapter import KIND, adapter_quantization, load_adapter, merge_adapter_, save_adapter
from mgm_lora.lora.injection import TrainableModel, inject_adapter_
from mgm_lora.model.checkpoint import load_model
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.quantization import dequantize_language_model_, is_quantized, quantize_language_model_

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
        merged = merge_adapter_(trained.model, dtype=torch.float32)
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


def test_adapter_of_a_4_bit_base_is_merged_into_what_those_weights_stand_for(
    trained_in_4_bit: TrainableModel, save: Callable[[TrainableModel], Path], tiny_base: Path, batch: Batch
) -> None:
    folder = save(trained_in_4_bit)
    rounded = load_model(tiny_base, dtype=torch.float32)
    quantize_language_model_(rounded)
    dequantize_language_model_(rounded)
    frozen = "language_model.model.embed_tokens.weight"  # neither rounded nor adapted
    before = rounded.state_dict()[frozen].clone()
    adapted = load_adapter(rounded, folder=folder, base_digest=DIGEST, over="these weights")
    with torch.no_grad():
        expected = trained_in_4_bit.model(**batch, logits_at="all").logits
        merged = merge_adapter_(adapted, dtype=torch.float32)
        of_merged = merged(**batch, logits_at="all").logits
    assert (expected - of_merged).abs().max() <= 1e-5 * expected.abs().max()
    assert not is_quantized(merged)
    assert torch.equal(merged.state_dict()[frozen], before)


def test_update_is_not_merged_into_4_bit_weights(trained_in_4_bit: TrainableModel) -> None:
    with pytest.raises(ArtifactError, match="which would round the update away"):
        merge_adapter_(trained_in_4_bit.model, dtype=torch.float32)


def test_sum_is_rounded_once(tiny_base: Path, all_points: LoraSettings) -> None:
    trainable = _trained(load_model(tiny_base, dtype=torch.bfloat16), all_points)
    name = "language_model.model.layers.0.self_attn.q_proj"
    layer = trainable.mgm.get_submodule(name)
    expected = (layer.get_base_layer().weight.float() + layer.get_delta_weight("default")).bfloat16()
    merged = merge_adapter_(trainable.model, dtype=torch.bfloat16)
    assert torch.equal(merged.get_submodule(name).weight, expected)


def test_language_models_part_is_read_by_plain_peft(
    trained: TrainableModel, save: Callable[[TrainableModel], Path], tiny_base: Path
) -> None:
    folder = save(trained)
    language_model = load_model(tiny_base, dtype=torch.float32).language_model
    plain = PeftModel.from_pretrained(language_model, str(folder / "language_model"))
    input_ids = torch.randint(6, 70, (2, 9))
    with torch.no_grad():
        ours = trained.mgm.language_model(input_ids=input_ids).logits
        assert torch.equal(plain(input_ids=input_ids).logits, ours)
        with plain.disable_adapter():
            assert not torch.equal(plain(input_ids=input_ids).logits, ours)


def test_points_in_full_are_read_in_the_precision_of_the_base(
    model: MGMForConditionalGeneration,
    all_points: LoraSettings,
    save: Callable[[TrainableModel], Path],
    tiny_base: Path,
    batch: Batch,
) -> None:
    folder = save(_trained(model, all_points))
    loaded = load_adapter(load_model(tiny_base, dtype=torch.bfloat16), folder=folder, base_digest=DIGEST)
    reduced = {name: value.bfloat16() if value.is_floating_point() else value for name, value in batch.items()}
    with torch.no_grad():
        assert (
            loaded(**reduced, logits_at="all").logits.isfinite().all()
        )  # it failed: float32 weights met bfloat16 values
