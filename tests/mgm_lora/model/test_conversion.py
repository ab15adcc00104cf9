"""Conversion: bit-equal there and back, whole or not there, a file at a time."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mgm_lora.artifacts import digest_folder
from mgm_lora.cli import main
from mgm_lora.errors import CheckpointError, StorageError
from mgm_lora.memory.counting import LiveBytes
from mgm_lora.model.checkpoint import build_empty, load_model, open_checkpoint, read_config, save_model
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.conversion import Layout, TowersWritten, convert_checkpoint
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.model.published_config import LANGUAGE_MODELS, read_published, write_published
from mgm_lora.model.published_folders import tower_folders
from mgm_lora.model.weight_files import find_weights

from .conftest import Published


def _convert(source: Path, destination: Path, layout: Layout, **options: Any) -> Path:
    convert_checkpoint(open_checkpoint(source), destination=destination, layout=layout, **options)
    return destination


@pytest.mark.parametrize("towers", ["inside", "apart"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_ours_to_published_and_back_is_bit_equal(
    tiny_base: Path, tmp_path: Path, towers: TowersWritten, dtype: torch.dtype | None
) -> None:
    source = tiny_base if dtype is None else _convert(tiny_base, tmp_path / "bf16", "ours", dtype=dtype)
    published = _convert(source, tmp_path / "published", "published", towers=towers, shard_bytes=50_000)
    again = _convert(published, tmp_path / "again", "ours")
    assert (again / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert read_config(again).to_dict() == read_config(source).to_dict()
    ours, theirs = (load_model(folder, dtype=torch.float32).state_dict() for folder in (source, published))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert MGMProcessor.from_pretrained(published).encode_prompt([("human", "who?")])


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_published_to_ours_and_back_is_bit_equal(
    make_published: Callable[..., Published], tmp_path: Path, suffix: str
) -> None:
    made = make_published(suffix=suffix)
    ours = _convert(made.folder, tmp_path / "ours", "ours")
    again = _convert(ours, tmp_path / "again", "published", towers="apart")
    assert _main_weights(again).keys() == _main_weights(made.folder).keys()
    assert all(torch.equal(value, _main_weights(made.folder)[key]) for key, value in _main_weights(again).items())
    towers = tower_folders(read_config(again))
    clip = load_file(again / towers.vision / "model.safetensors")
    before = _read(next(made.clip.glob(f"*{suffix}")))
    assert all(torch.equal(value, before[key]) for key, value in clip.items())
    assert before.keys() - clip.keys() == {key for key in before if "text" in key or "position_ids" in key} | {
        "visual_projection.weight",
        "logit_scale",
    }
    openclip = torch.load(again / towers.aux / "open_clip_pytorch_model.bin", weights_only=True)
    before = _read(made.openclip / "open_clip_pytorch_model.bin")
    assert set(openclip) == {key for key in before if key.startswith(("visual.trunk.stem.", "visual.trunk.stages."))}
    assert all(torch.equal(value, before[key]) for key, value in openclip.items())


def test_conversion_holds_one_file_at_a_time(tiny_base: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_base)
    build_empty(checkpoint.config, where=tiny_base)
    everything = sum(value.nbytes for value in load_file(tiny_base / "model.safetensors").values())
    with _LargestState(nn.Module()) as counter:
        convert_checkpoint(checkpoint, destination=tmp_path / "out", layout="ours", shard_bytes=30_000)
    assert len(find_weights(tmp_path / "out")) >= 6
    assert 0 < counter.peak_bytes < everything + 60_000  # the mapped source, and one file that is written
    assert counter.now_bytes < 60_000


def test_existing_destination_and_towers_apart_in_our_layout_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already"):
        _convert(tiny_base, tmp_path, "published")
    with pytest.raises(CheckpointError, match="our layout keeps the towers inside"):
        _convert(tiny_base, tmp_path / "out", "ours", towers="apart")
    assert not list(tmp_path.iterdir())


def test_conversion_that_breaks_off_leaves_nothing(tiny_base: Path, tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _convert(tiny_base, tmp_path / "out", "published", progress=stop)
    assert not list(tmp_path.iterdir())


def test_disk_that_refuses_a_bin_is_told(tiny_config: MGMConfig, tmp_path: Path) -> None:
    config = MGMConfig(
        text_config=tiny_config.text_config,
        vision_config=tiny_config.vision_config,
        aux_config={"depths": [1, 1, 1, 1], "dims": [64, 64, 64, 64]},  # the largest file by far
        image_size_aux=32,
    )
    save_model(MGMForConditionalGeneration(config), folder=tmp_path / "source")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))  # Python ignores SIGXFSZ from its start
    try:
        with pytest.raises(StorageError, match="File too large"):
            _convert(tmp_path / "source", tmp_path / "out", "published", towers="apart", shard_bytes=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_command_converts_and_says_so(tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, again = tmp_path / "published", tmp_path / "ours"
    with pytest.raises(SystemExit, match="0"):
        main(["convert", str(tiny_base), str(out), "--to", "published", "--towers", "apart"])
    assert "published layout" in capfd.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["convert", str(out), str(again), "--to", "ours"])
    before = digest_folder(again)
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(tiny_base), str(again), "--to", "ours"])
    assert "exists already" in capfd.readouterr().err
    assert digest_folder(again) == before


@pytest.mark.parametrize("family", ["gemma", "llama", "mixtral", "mistral"])
def test_configuration_survives_the_published_form(tiny_config: MGMConfig, family: str) -> None:
    text = {"model_type": family, "vocab_size": 50, "hidden_size": 32, "num_attention_heads": 2, "head_dim": 16}
    extra = {"rope_theta": 5e6, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "hidden_act": "gelu"}
    config = MGMConfig(
        text_config={**text, **extra},
        vision_config=tiny_config.vision_config,
        aux_config=tiny_config.aux_config,
        image_size_aux=64,
        max_length=77,
        select_layer=-1,
        image_aspect_ratio="square",
    )
    entries = json.loads(json.dumps(write_published(config, vision_name="a", aux_name="b", dtype="bfloat16")))
    assert LANGUAGE_MODELS[entries["model_type"]] == family
    assert entries["rope_theta"] == 5e6
    again = read_published(
        entries,
        vision=config.vision_config.to_dict(),
        aux=config.aux_config.to_dict(),
        where="here",
    )
    assert again.to_dict() == config.to_dict()


def test_real_towers_get_the_folders_that_mgm_names() -> None:
    towers = tower_folders(MGMConfig(text_config={"model_type": "gemma", "num_hidden_layers": 1}))
    assert towers.vision == "model_zoo/OpenAI/clip-vit-large-patch14-336"
    assert towers.aux == "model_zoo/OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup"


class _LargestState(LiveBytes):
    """Tensors that only have a shape hold nothing."""

    def _note(self, tensor: Tensor, *, part: str | None = None) -> None:
        if tensor.device.type != "meta":
            super()._note(tensor, part=part)


def _main_weights(folder: Path) -> dict[str, Tensor]:
    return {key: value for path in find_weights(folder) for key, value in _read(path).items()}


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    return dict(torch.load(path, weights_only=True))
