"""MGM's published layout: the same model as in ours, wherever its towers lie; every way that it can be wrong is told."""

import json
import logging
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgm_lora.errors import CheckpointError
from mgm_lora.memory.counting import LiveBytes
from mgm_lora.model.base import find_base
from mgm_lora.model.checkpoint import digest_config, load_model, open_checkpoint, read_config
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.model.published_towers import TowerPlaces
from mgm_lora.settings import BaseSettings

from .conftest import Published

Make = Callable[..., Published]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever opens a connection fails, and the hub's cache is empty."""

    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def _logits(folder: Path, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    ids = torch.tensor([[2, 9, -200, 11, 12]])
    images = torch.randn(1, 3, 16, 16, generator=generator)
    images_aux = torch.randn(1, 3, 32, 32, generator=generator)
    with torch.no_grad():
        model = load_model(folder, dtype=torch.float32, **options)
        return torch.as_tensor(model(ids, torch.ones_like(ids), images, images_aux).logits)


@pytest.mark.parametrize("towers", ["apart", "inside"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_published_layout_computes_what_ours_does(
    tiny_base: Path, make_published: Make, suffix: str, towers: str
) -> None:
    made = make_published(suffix=suffix, towers=towers)
    assert torch.equal(_logits(made.folder), _logits(tiny_base))


def test_weights_are_bit_equal_in_the_target_precision(tiny_base: Path, make_published: Make) -> None:
    ours = load_model(tiny_base, dtype=torch.bfloat16).state_dict()
    theirs = load_model(make_published().folder, dtype=torch.bfloat16).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and theirs[name].dtype == torch.bfloat16 for name in ours)


def test_processor_of_a_published_folder_is_that_of_ours(tiny_base: Path, make_published: Make) -> None:
    ours = MGMProcessor.from_pretrained(tiny_base)
    theirs = MGMProcessor.from_pretrained(make_published().folder)
    turns = [("human", "<image>\nwhat is it?"), ("gpt", "a cat")]
    assert theirs.encode_sample(turns) == ours.encode_sample(turns)
    assert theirs.config.to_dict() | {"aux_config": None} == ours.config.to_dict() | {"aux_config": None}
    assert theirs.config.aux_config.dims == ours.config.aux_config.dims


def test_towers_are_found_where_the_settings_say(tiny_base: Path, make_published: Make, tmp_path: Path) -> None:
    made = make_published()
    clip = shutil.move(made.clip, tmp_path / "elsewhere-clip")
    openclip = shutil.move(made.openclip, tmp_path / "elsewhere-openclip")
    settings = BaseSettings(
        model=str(made.folder), dtype="float32", vision_tower=str(clip), vision_tower_aux=str(openclip)
    )
    base = find_base(settings)
    state, expected = base.load().state_dict(), load_model(tiny_base, dtype=torch.float32).state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert MGMProcessor.from_pretrained(base.folder, towers=base.towers).config.vision_config.image_size == 16


def test_towers_are_found_from_the_current_folder(
    tiny_base: Path, make_published: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_published()
    shutil.move(made.folder / "model_zoo", tmp_path / "model_zoo")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(_logits(made.folder), _logits(tiny_base))


def test_towers_are_found_in_the_hub_cache_by_their_published_names(
    tiny_base: Path, make_published: Make, tmp_path: Path
) -> None:
    made = make_published(suffix=".bin")
    _into_cache(made.clip, tmp_path / "hub", "openai/clip-vit-large-patch14-336")
    _into_cache(made.openclip, tmp_path / "hub", "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup")
    made.change(
        mm_vision_tower="model_zoo/OpenAI/clip-vit-large-patch14-336",
        mm_vision_tower_aux="model_zoo/OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup",
    )
    assert torch.equal(_logits(made.folder), _logits(tiny_base))


@pytest.mark.usefixtures("offline")
def test_missing_towers_are_told_at_once_with_the_commands_that_get_them(make_published: Make) -> None:
    made = make_published()
    shutil.rmtree(made.folder / "model_zoo")
    made.change(
        mm_vision_tower="model_zoo/OpenAI/clip-vit-large-patch14-336",
        mm_vision_tower_aux="model_zoo/OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup",
        mm_hidden_size=1024,
        mm_hidden_size_aux=2880,
        image_size_aux=768,
    )
    with pytest.raises(CheckpointError) as error:
        load_model(made.folder, dtype=torch.float32)
    message = str(error.value)
    assert "holds no weights of 2 towers" in message
    for part in (
        "mm_vision_tower 'model_zoo/OpenAI/clip-vit-large-patch14-336'",
        "`hf download openai/clip-vit-large-patch14-336 ",
        "`hf download laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup ",
        "set base.vision_tower to its folder",
        "set base.vision_tower_aux to its folder",
    ):
        assert part in message


@pytest.mark.usefixtures("offline")
def test_missing_towers_of_unknown_names_are_told_at_once(make_published: Make) -> None:
    made = make_published()
    shutil.rmtree(made.folder / "model_zoo")
    with pytest.raises(CheckpointError) as error:
        load_model(made.folder, dtype=torch.float32)
    for name, setting in (("clip-tiny", "vision_tower"), ("openclip-convnext-tiny", "vision_tower_aux")):
        assert f"mm_{setting} 'model_zoo/OpenAI/{name}'" in str(error.value)
        assert f"none that the hub is asked for: set base.{setting} to its folder or hub id" in str(error.value)


@pytest.mark.usefixtures("offline")
def test_place_of_the_settings_without_a_tower_is_told(make_published: Make, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"base\.vision_tower '.*nowhere': model\.safetensors or pytorch_model"):
        load_model(
            make_published().folder,
            dtype=torch.float32,
            towers=TowerPlaces(vision_tower=str(tmp_path / "nowhere")),
        )


def test_keys_without_use_are_left_out_by_name_and_counted(
    make_published: Make, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_published()
    with caplog.at_level(logging.INFO, logger="mgm_lora"):
        load_model(made.folder, dtype=torch.float32)
    assert f"CLIP checkpoint '{made.clip}': 7 keys that MGM has no use for left out" in caplog.text
    assert f"OpenCLIP checkpoint '{made.openclip}': 10 keys that MGM has no use for left out" in caplog.text


@pytest.mark.parametrize("key", ["visual.trunk.stages.4.blocks.0.gamma", "visual.attnpool.weight", "unheard.of"])
def test_unknown_key_of_a_tower_is_no_key_without_use(make_published: Make, key: str) -> None:
    made = make_published()
    path = made.openclip / "open_clip_pytorch_model.bin"
    torch.save({**torch.load(path, weights_only=True), key: torch.zeros(8)}, path)
    with pytest.raises(CheckpointError, match=r"unexpected|asked for 0 to 3"):
        load_model(made.folder, dtype=torch.float32)


def test_tower_that_is_half_inside_is_told(make_published: Make) -> None:
    made = make_published()
    path = made.folder / "model-00001-of-00003.safetensors"
    key = "model.vision_tower.vision_tower.vision_model.post_layernorm.bias"
    save_file({**load_file(path), key: torch.zeros(24)}, path)
    with pytest.raises(CheckpointError, match=r"missing: model\.vision_tower\.vision_tower\.vision_model\.embeddings"):
        load_model(made.folder, dtype=torch.float32)


@pytest.mark.parametrize(
    "entry, value, told",
    [
        ("hidden_size", 48, r"shape of model\.embed_tokens\.weight: \[\d+, 32\] in the file, \[\d+, 48\] by config"),
        ("num_hidden_layers", 3, r"missing: model\.layers\.2\."),
        ("num_hidden_layers", 1, r"unexpected: model\.layers\.1\."),
        ("vocab_size", 7, r"shape of model\.embed_tokens\.weight"),
        ("num_attention_heads", 0, "makes no"),
        ("hidden_size", "wide", "makes no configuration"),
        ("mm_hidden_size", 1024, "mm_hidden_size is 1024, but the tower's features are 24 wide"),
        ("mm_hidden_size_aux", 2880, "mm_hidden_size_aux is 2880, but the tower's features are 28 wide"),
        ("mm_projector_type", "linear", "mm_projector_type is 'linear', built is 'mlp2x_gelu'"),
        ("mm_use_im_start_end", True, "mm_use_im_start_end is True"),
        ("image_size_aux", None, "image_size_aux is missing"),
        ("image_size_aux", 30, "image_size_aux 30 must be a multiple of"),
        ("mm_vision_select_layer", -9, "select_layer -9 is not among"),
        ("mm_vision_tower", None, "must name the tower mm_vision_tower"),
        ("hidden_act", "no_such_function", "makes no model"),
        ("model_type", "llava", "says model_type 'llava'"),
    ],
)
def test_config_that_lies_is_told(make_published: Make, entry: str, value: object, told: str) -> None:
    made = make_published()
    made.change(**{entry: value})
    with pytest.raises(CheckpointError, match=told):
        load_model(made.folder, dtype=torch.float32)


def test_tower_config_that_lies_is_told(make_published: Make) -> None:
    made = make_published()
    path = made.clip / "config.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    entries["vision_config"]["num_hidden_layers"] = 5
    path.write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"CLIP checkpoint .* missing .*(\n.*)*missing: .*encoder\.layers\.3"):
        load_model(made.folder, dtype=torch.float32)
    path.write_text(json.dumps({"model_type": "siglip"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="says model_type 'siglip'"):
        load_model(made.folder, dtype=torch.float32)


@pytest.mark.parametrize(
    "vision_cfg, told",
    [
        ({"timm_model_name": "convnext_large"}, "mm_hidden_size_aux is 28, but the tower's features are 2880 wide"),
        ({"depths": [1, 1, 2, 1], "dims": [4, 8, 8, 8]}, r"missing: .*vision_stages\.2\.blocks\.1"),
        ({"depths": [1, 1, 1], "dims": [4, 8, 8, 8]}, "asked for four positive numbers"),
        (None, r"has no model_cfg\.vision_cfg"),
    ],
)
def test_auxiliary_towers_config_that_lies_is_told(make_published: Make, vision_cfg: object, told: str) -> None:
    made = make_published()
    entries = {"model_cfg": {"vision_cfg": vision_cfg}}
    (made.openclip / "open_clip_config.json").write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(CheckpointError, match=told):
        load_model(made.folder, dtype=torch.float32)


def test_long_lists_of_keys_are_cut_and_counted(make_published: Make) -> None:
    made = make_published()
    made.change(num_hidden_layers=500)
    with pytest.raises(CheckpointError, match=r"4482 missing(.|\n)*and 4,442 more") as error:
        load_model(made.folder, dtype=torch.float32)
    assert len(str(error.value)) < 5000


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_shard_cut_short_is_told(make_published: Make, suffix: str, share: float) -> None:
    made = make_published(suffix=suffix)
    path = next(made.folder.glob(f"*-00002-of-00003{suffix}"))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=rf"{path.name}' can't be read .*was it cut short"):
        load_model(made.folder, dtype=torch.float32)


@pytest.mark.parametrize("name", ["clip/model.safetensors", "openclip/open_clip_pytorch_model.bin"])
def test_tower_cut_short_is_told(make_published: Make, name: str) -> None:
    made = make_published()
    place, file = name.split("/")
    path = {"clip": made.clip, "openclip": made.openclip}[place] / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=f"{file}' can't be read .*was it cut short"):
        load_model(made.folder, dtype=torch.float32)


def test_missing_shard_and_index_that_leaves_the_folder_are_told(make_published: Make, tmp_path: Path) -> None:
    made = make_published()
    index = made.folder / "model.safetensors.index.json"
    (tmp_path / "outside.safetensors").write_bytes(
        (made.folder / "model-00003-of-00003.safetensors").read_bytes(),
    )
    (made.folder / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"should hold model-00003-of-00003\.safetensors, which is not there"):
        load_model(made.folder, dtype=torch.float32)
    text = index.read_text(encoding="utf-8").replace("model-00003-of-00003", "../outside")
    index.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="names files outside of its folder"):
        load_model(made.folder, dtype=torch.float32)
    index.write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is no index of shards"):
        load_model(made.folder, dtype=torch.float32)
    index.unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_model(made.folder, dtype=torch.float32)


class _Mischief:
    """What unpickling would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_bin_that_would_run_code_is_refused_and_runs_nothing(make_published: Make, tmp_path: Path) -> None:
    made = make_published(suffix=".bin")
    path = made.folder / "pytorch_model-00001-of-00003.bin"
    torch.save({"model.norm.weight": _Mischief(tmp_path / "ran")}, path)
    with pytest.raises(CheckpointError, match="can't be read"):
        load_model(made.folder, dtype=torch.float32)
    assert not (tmp_path / "ran").exists()


def test_quantized_weights_are_refused(make_published: Make) -> None:
    made = make_published(num_shards=1)
    path = made.folder / "model-00001-of-00001.safetensors"
    state = load_file(path)
    state["model.norm.weight"] = state["model.norm.weight"].to(torch.int8)
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds torch\.int8"):
        load_model(made.folder, dtype=torch.float32)


def test_key_in_two_shards_is_refused(make_published: Make) -> None:
    made = make_published()
    first, second = sorted(made.folder.glob("model-0000[12]*"))
    save_file({**load_file(second), **dict(list(load_file(first).items())[:1])}, second)
    with pytest.raises(CheckpointError, match="which is meant"):
        load_model(made.folder, dtype=torch.float32)


@pytest.mark.parametrize("name", ["config.json", "open_clip_config.json"])
def test_digests_follow_the_towers_configurations(make_published: Make, name: str) -> None:
    made = make_published()
    before = open_checkpoint(made.folder).digest(), digest_config(made.folder)
    path = next(path for path in (made.clip / name, made.openclip / name) if path.is_file())
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    after = open_checkpoint(made.folder).digest(), digest_config(made.folder)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_digest_follows_every_byte_of_the_towers(make_published: Make) -> None:
    made = make_published()
    before = open_checkpoint(made.folder).digest()
    state = load_file(made.clip / "model.safetensors")
    state["vision_model.post_layernorm.bias"][0] += 1e-3
    save_file(state, made.clip / "model.safetensors")
    assert open_checkpoint(made.folder).digest() != before


@pytest.mark.parametrize("suffix, mapped", [(".safetensors", True), (".bin", True), (".bin", False)])
def test_loading_holds_the_weights_and_one_file_at_most(make_published: Make, suffix: str, mapped: bool) -> None:
    made = make_published(suffix=suffix, towers="inside", num_shards=4)
    if not mapped:  # as torch wrote before 1.6
        for path in made.folder.rglob("*.bin"):
            torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    largest = max(path.stat().st_size for path in made.folder.rglob(f"*{suffix}"))
    with _RealBytes(nn.Module()) as counter:
        model = load_model(made.folder, dtype=torch.bfloat16)
    held = sum(parameter.nbytes for parameter in model.parameters())  # a tied head once
    assert held <= counter.peak_bytes <= held + largest
    everything = sum(path.stat().st_size for path in made.folder.rglob(f"*{suffix}"))
    assert counter.peak_bytes < held + everything / 2


@pytest.mark.parametrize(
    "published, kept",
    [
        ({"hidden_act": "gelu"}, "gelu"),  # transformers 4.38 did as it says
        ({"hidden_act": "gelu", "hidden_activation": None}, "gelu_pytorch_tanh"),  # later ones did not
        ({"hidden_act": "gelu", "hidden_activation": "gelu"}, "gelu"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "gelu_pytorch_tanh"),
    ],
)
def test_gemmas_activation_is_what_the_published_code_took(
    make_published: Make, published: dict[str, Any], kept: str
) -> None:
    made = make_published()
    made.change(**published)
    assert read_config(made.folder).text_config.hidden_act == kept
    model = load_model(made.folder, dtype=torch.float32)
    probe = torch.linspace(-2, 2, 9)
    expected = nn.functional.gelu(probe, approximate="none" if kept == "gelu" else "tanh")
    assert torch.equal(model.language_model.model.layers[0].mlp.act_fn(probe), expected)


@pytest.mark.parametrize("model_type", ["mgm", "mini_gemini", "mgm_mixtral"])
def test_language_model_follows_from_the_model_type(make_published: Make, model_type: str) -> None:
    made = make_published()
    made.change(model_type=model_type, tie_word_embeddings=False, num_local_experts=4)
    expected = {"mgm": "llama", "mini_gemini": "llama", "mgm_mixtral": "mixtral"}[model_type]
    assert read_config(made.folder).text_config.model_type == expected


class _RealBytes(LiveBytes):
    """Tensors that only have a shape hold nothing."""

    def _note(self, tensor: Tensor, *, part: str | None = None) -> None:
        if tensor.device.type != "meta":
            super()._note(tensor, part=part)


def _into_cache(folder: Path, cache: Path, name: str) -> None:
    """As the hub's own client would have left it."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("1" * 40, encoding="utf-8")
    (place / "snapshots").mkdir()
    shutil.move(folder, place / "snapshots" / ("1" * 40))
