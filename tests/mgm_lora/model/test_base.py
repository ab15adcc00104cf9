"""The base as the settings want it: its weights as they are, how it looks and speaks as asked."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mgm_lora.arm_settings import LoraSettings, PointSettings
from mgm_lora.artifacts import Manifest, write_manifest
from mgm_lora.errors import BaseChangedError, CheckpointError
from mgm_lora.lora.adapter import KIND, load_adapter, save_adapter
from mgm_lora.lora.injection import inject_adapter_
from mgm_lora.model.base import check_base, find_base, find_config, find_processor
from mgm_lora.model.checkpoint import load_model, save_model
from mgm_lora.settings import BaseSettings

from .tiny_family import FAMILIES

HD = {"image_grid": 2, "image_global": True, "image_size_aux": 64, "max_length": 512}


def settings_of(folder: Path, **changes: Any) -> BaseSettings:
    return BaseSettings(model=str(folder), dtype="float32", **changes)


def test_base_sees_in_high_definition_where_the_settings_say_so(tiny_base: Path, tmp_path: Path) -> None:
    base = find_base(settings_of(tiny_base, **HD))
    model, plain = base.load(), find_base(settings_of(tiny_base)).load()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
    pictures = torch.randn(1, 5, 3, 16, 16), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert model.encode_images(*pictures).shape[1] == 5 * plain.config.num_picture_tokens
    assert base.processor().num_picture_tokens == find_config(settings_of(tiny_base, **HD))[0].num_picture_tokens == 80
    save_model(model, folder=tmp_path)  # a merged or a whole model says it itself
    assert load_model(tmp_path, dtype=torch.float32).config.image_grid == 2


def test_base_that_looks_otherwise_is_another_base(tiny_base: Path) -> None:
    changes = [{}, HD, HD | {"max_length": 256}, {"conversation": "gemma"}]
    bases = [find_base(settings_of(tiny_base, **change)) for change in changes]
    assert len({base.digest for base in bases}) == 4
    assert len({find_config(settings_of(tiny_base, **change))[1] for change in changes}) == 4
    assert bases[1].identity["image_grid"] == 2


def test_adapter_of_high_definition_is_refused_by_the_plain_base(tiny_base: Path, tmp_path: Path) -> None:
    off, on = PointSettings(mode="off"), PointSettings(mode="lora", rank=2)
    lora = LoraSettings(
        learning_rate=1e-3, language_attention=on, language_mlp=off, vision_attention=off, projector=off, mining=off
    )
    base, plain = find_base(settings_of(tiny_base, **HD)), find_base(settings_of(tiny_base))
    save_adapter(inject_adapter_(base.load(), lora=lora, seed=1).model, folder=tmp_path)
    write_manifest(tmp_path, Manifest.make(KIND, settings={"lora": lora}, parents={}, base=base.identity))
    load_adapter(base.load(), folder=tmp_path, base_digest=base.digest)
    with pytest.raises(BaseChangedError, match="was trained on the base"):
        load_adapter(plain.load(), folder=tmp_path, base_digest=plain.digest)


def test_weights_that_are_not_the_configurations_are_found_without_reading_them(
    tiny_base: Path, tmp_path: Path
) -> None:
    check_base(settings_of(tiny_base))
    whole = shutil.copytree(tiny_base, tmp_path / "whole")
    entries = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    entries["text_config"]["hidden_size"] *= 2
    (whole / "config.json").write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"shape of model\.mm_projector\.0\.weight"):
        check_base(settings_of(whole))
    cut = shutil.copytree(tiny_base, tmp_path / "cut")
    os.truncate(cut / "model.safetensors", (cut / "model.safetensors").stat().st_size - 1000)
    with pytest.raises(CheckpointError, match="was it cut short"):
        check_base(settings_of(cut))
    (cut / "model.safetensors").unlink()
    check_base(settings_of(cut))  # shapes without weights can be planned


def test_settings_name_the_template_where_the_checkpoint_does_not(tmp_path: Path) -> None:
    family = FAMILIES["vicuna"]
    family.save(tmp_path)
    family.config(conversation=None).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"found none: set base\.conversation"):
        find_processor(settings_of(tmp_path))
    asked = settings_of(tmp_path, conversation="vicuna_v1")
    turns = (("human", "<image>\nwhat?"),)
    assert find_processor(asked).encode_prompt(turns) == family.processor().encode_prompt(turns)
    assert find_base(asked).load().config.conversation == "vicuna_v1"


def test_sizes_that_do_not_fit_are_told_before_any_weight_is_read(tiny_base: Path) -> None:
    with pytest.raises(CheckpointError, match=r"image_size_aux 32 must be a multiple of 4 x image_grid 3 x 4 patches"):
        find_config(settings_of(tiny_base, image_grid=3))
    with pytest.raises(CheckpointError, match="image_size_aux 32 must be"):
        find_processor(settings_of(tiny_base, image_grid=3))
