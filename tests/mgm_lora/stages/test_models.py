"""A stage meets an adapter on the kind of base that it was trained on."""

from pathlib import Path

import pytest

from mgm_lora.arm_settings import LoraSettings, PointSettings
from mgm_lora.artifacts import Manifest, write_manifest
from mgm_lora.lora.adapter import KIND, save_adapter
from mgm_lora.lora.injection import inject_adapter_
from mgm_lora.model.base import Quantization, find_base
from mgm_lora.model.quantization import is_quantized
from mgm_lora.settings import BaseSettings
from mgm_lora.stages.models import load_adapted


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_adapted_model_has_the_base_it_was_trained_on(
    quantization: Quantization, tiny_base: Path, tmp_path: Path
) -> None:
    base = find_base(BaseSettings(model=str(tiny_base), dtype="bfloat16"))
    off, low_rank = PointSettings(mode="off"), PointSettings(mode="lora", rank=2)
    lora = LoraSettings(
        learning_rate=1e-3,
        language_attention=low_rank,
        language_mlp=off,
        vision_attention=off,
        projector=low_rank,
        mining=off,
    )
    save_adapter(inject_adapter_(base.load(quantization=quantization), lora=lora, seed=1).model, folder=tmp_path)
    details = {"quantization": quantization}
    write_manifest(tmp_path, Manifest.make(KIND, settings={}, parents={}, base=base.identity, details=details))
    assert is_quantized(load_adapted(tmp_path, base=base)) == (quantization == "nf4")
