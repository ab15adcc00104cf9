"""Presets: valid settings, written with the user's own kept; and each goes through the stages at its model's real size, on the meta device.

What runs there is all that shapes decide: `validate` for real on a small data set; `plan` of both arms for the card, for the longest row that the
preset allows; the making of what is trained, its parameters counted against sums by hand; every LoRA update in the shape of its weight and, taken
off again, the tree that a merged checkpoint is written from; and a batch of questions at evaluation's size, run over fake tensors up to the first
new token. Not run: training, the merge's proof and the answers, which are of weights' values, and `compare` and `register`, which read
figures that are alike for every size (tests/test_whole_way.py). The one entry that is not the preset's is base.model: a folder with the real
configuration, a small tokenizer and no weights.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer

from mgm_lora.cli import main
from mgm_lora.errors import SettingsError
from mgm_lora.lora.injection import TrainableModel
from mgm_lora.lora.methods import ADAPTER_NAME
from mgm_lora.memory.counting import LiveBytes
from mgm_lora.memory.fakes import FakeFloats, fake_weights_
from mgm_lora.memory.plan import GIB, MemoryPlan, allowed_bytes
from mgm_lora.memory.search import make_plan
from mgm_lora.memory.tracing import make_trainable_
from mgm_lora.model.answering import Question, collate_prompts
from mgm_lora.model.base import DTYPES, find_config, find_processor
from mgm_lora.model.families import HD_SIZES, PUBLISHED, published_config
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.quantization import dequantized, is_quantized, quantize_language_model_
from mgm_lora.settings import Settings, read_settings
from mgm_lora.stages import paths, validate
from mgm_lora.stages.params_file import rewritten, write_checked
from mgm_lora.stages.plan import request_of
from mgm_lora.stages.preset import all_presets

from ...conftest import ROOT, letter_tokenizer
from ..model.tiny_family import FAMILIES

MODEL_OF = {"mgm-2b-24gb": "MGM-2B", "mgm-2b-hd-24gb": "MGM-2B", "mgm-7b-24gb-qlora": "MGM-7B"}
CLIP_ATTENTION = 23 * 4 * 16 * (1024 + 1024)


class Longest:
    """The longest row that a preset allows: one picture, 96 labelled tokens."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens, self.num_labels, self.pictures = num_tokens, 96, ("a.png",)


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's own settings in a folder of their own, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")


def preset(*arguments: str) -> int:
    """`mgm-lora preset`; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["preset", *arguments])
    return int(ended.value.code or 0)


def test_every_model_preset_is_known_here() -> None:
    assert all_presets().keys() == {"demo", "comparison", *MODEL_OF}


def test_presets_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert preset() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(all_presets())
    assert all(len(line.split()) > 5 for line in lines)


def test_unknown_preset_is_told_with_those_there_are(params: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert preset("mgm-2b") == 2
    assert "no preset 'mgm-2b', there are comparison, demo, mgm-2b-24gb, " in capsys.readouterr().err


def test_comparison_names_the_arms_that_are_there(params: Path) -> None:
    assert preset("comparison") == 0
    settings = read_settings(params)
    assert len(settings.comparison.seeds) >= 3
    ranks = {arm.language_mlp.rank for name in settings.comparison.arms if (arm := settings.arm(name)).kind == "lora"}
    assert {4, 8, 16, 64} <= ranks
    assert {"full", "projector", "attention-only", "mlp-only", "all-points", "dora", "adalora"} <= {
        *settings.comparison.arms
    }


def test_difference_is_shown_and_written_only_without_dry_run(params: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = params.read_bytes()
    assert preset("mgm-2b-24gb", "--dry-run") == 0
    assert params.read_bytes() == before
    shown = capsys.readouterr().out
    assert "-  dtype: float32\n+  dtype: bfloat16\n" in shown
    assert preset("mgm-2b-24gb") == 0
    assert shown.split("\n\n")[0] in capsys.readouterr().out
    assert read_settings(params).base.model == "YanweiLi/MGM-2B"
    assert preset("mgm-2b-24gb") == 0
    assert "is as mgm-2b-24gb says already" in capsys.readouterr().out


def test_demo_is_the_projects_own_file_and_brings_it_back_letter_by_letter(params: Path) -> None:
    before = params.read_text(encoding="utf-8")
    for name in ("demo", *MODEL_OF, "demo"):
        assert preset(name) == 0
    assert params.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("name", all_presets())
def test_users_own_places_and_comments_stay(name: str, params: Path) -> None:
    text = params.read_text(encoding="utf-8")
    mine = text.replace("data/pictures", "data/photos # mine").replace("model_name: mgm-lora-demo", "model_name: cats")
    mine = mine.replace("score_types: [colour, shape]", "score_types: [breed]").replace(
        "known: data/", "known: data/my/"
    )
    params.write_text(mine, encoding="utf-8")
    before = read_settings(params)
    assert preset(name) == 0
    after, written = read_settings(params), params.read_text(encoding="utf-8")
    assert "data/photos # mine" in written
    assert "# a folder, or a hub id" in written
    assert after.registry == before.registry
    assert after.validation == before.validation
    assert after.evaluation.score_types == ("breed",)
    places = {"pictures", "train", "heldout", "known"}
    assert after.data.model_dump(include=places) == before.data.model_dump(include=places)


def test_preset_replaces_a_step_whole(params: Path) -> None:
    text = params.read_text(encoding="utf-8")
    left = text.replace("quantization: none, optimizer: adamw, engine: torch}", "engine: deepspeed, zero_stage: 1}", 1)
    left = left.replace("  adalora: {<<: *lora, method: adalora}\n", "")  # which can't go with deepspeed
    params.write_text(left, encoding="utf-8")
    assert read_settings(params).arms["lora"].step.engine == "deepspeed"
    assert preset("mgm-7b-24gb-qlora") == 0
    step = read_settings(params).arms["lora"].step
    assert (step.engine, step.zero_stage, step.micro_batch_size, step.quantization) == ("torch", 0, "auto", "nf4")


def test_variants_follow_what_a_preset_says_of_lora(params: Path) -> None:
    assert preset("mgm-2b-24gb") == 0
    arms = read_settings(params).arms
    assert arms["rank-4"].learning_rate == arms["lora"].learning_rate == 2.0e-4
    assert [arms[name].language_mlp.rank for name in ("lora", "rank-4", "rank-64")] == [16, 4, 64]
    assert "rank-4: {<<: *lora, rank: 4, alpha: 8}" in params.read_text(encoding="utf-8")


def test_settings_that_would_not_be_valid_are_not_written(params: Path) -> None:
    params.write_text(params.read_text(encoding="utf-8").replace("num_workers: 0", "num_worker: 0"), encoding="utf-8")
    before = params.read_bytes()
    assert preset("mgm-2b-24gb") == 2
    assert params.read_bytes() == before


def test_missing_file_and_what_is_no_yaml_are_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="run from the project's root"):
        rewritten(tmp_path / "params.yaml", changes={})
    (tmp_path / "params.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(SettingsError, match="is not YAML"):
        rewritten(tmp_path / "params.yaml", changes={})


@pytest.mark.parametrize("name", MODEL_OF)
def test_preset_says_the_published_model(name: str, params: Path) -> None:
    assert preset(name) == 0
    base = read_settings(params).base
    published = PUBLISHED[MODEL_OF[name]]
    assert base.model == published.hub_id
    assert base.conversation in (None, published.conversation)
    assert (base.conversation is None) == (published.text_config["model_type"] == "gemma")
    sizes = {entry: getattr(base, entry) for entry in HD_SIZES}
    assert sizes == (dict(HD_SIZES) if "-hd-" in name else dict.fromkeys(HD_SIZES))


@pytest.mark.parametrize("name", MODEL_OF)
def test_stages_go_through_at_real_size(name: str, params: Path, make_picture: Callable[..., Path]) -> None:
    settings = _settings(name, params=params, make_picture=make_picture)
    summary = validate.run(settings)
    assert summary.files["train"].num_kept == 6
    plans = {arm: _plan(settings, arm=arm) for arm in ("lora", "full")}
    for arm, plan in plans.items():
        assert plan.fits, arm
        assert plan.total_bytes <= 24 * GIB
        assert plan.shape.length == settings.data.max_length
    assert plans["full"].host_bytes > 0
    assert plans["lora"].host_bytes == 0
    text = PUBLISHED[MODEL_OF[name]].text_config
    full = _trainable(settings, arm="full", plan=plans["full"])
    assert full.num_trainable == _in_full(full.mgm, hidden=text["hidden_size"])
    lora = _trainable(settings, arm="lora", plan=plans["lora"])
    assert lora.num_trainable == _at_rank_16(text)
    _check_merge(lora)
    _check_questions(settings)


def _settings(name: str, *, params: Path, make_picture: Callable[..., Path]) -> Settings:
    """As the preset says, but for the base's place; its data are six and two samples."""
    assert preset(name) == 0
    folder = Path("base")
    published_config(MODEL_OF[name]).save_pretrained(folder)
    tokenizer = letter_tokenizer() if MODEL_OF[name] == "MGM-2B" else FAMILIES["vicuna"].make_tokenizer()
    tokenizer.save_pretrained(folder)
    numbers = iter(range(100))
    data = {"pictures": "data/pictures"}
    for file, count in {"train": 6, "heldout": 2, "known": 2}.items():
        samples = [_sample(next(numbers), make_picture) for _ in range(count)]
        Path(f"data/{file}.json").write_text(json.dumps(samples), encoding="utf-8")
        data[file] = f"data/{file}.json"
    write_checked(params, text=rewritten(params, changes={"base": {"model": str(folder)}, "data": data})[1])
    return read_settings(params)


def _sample(number: int, make_picture: Callable[..., Path]) -> dict[str, Any]:
    make_picture(number, folder=Path("data/pictures"))
    asked = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": f"a square {number}"}]
    return {"id": str(number), "image": f"{number}.png", "question_type": "what", "conversations": asked}


def _plan(settings: Settings, *, arm: str) -> MemoryPlan:
    """For the card, one row a pass, as long as rows may be."""
    request = request_of(settings, arm=arm)
    assert {sample.num_tokens > 576 for sample in request.samples} == {True}
    section = request.arm.model_copy(update={"step": request.arm.step.model_copy(update={"micro_batch_size": 1})})
    return make_plan(replace(request, device="cuda", arm=section, samples=[Longest(settings.data.max_length)]))


def _model(settings: Settings, *, quantization: str) -> MGMForConditionalGeneration:
    config, _ = find_config(settings.base)
    with torch.device("meta"):
        model = MGMForConditionalGeneration(config)
        model.tie_weights()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(DTYPES[settings.base.dtype])
        if quantization == "nf4":
            quantize_language_model_(model)
    return model


def _trainable(settings: Settings, *, arm: str, plan: MemoryPlan) -> TrainableModel:
    model = _model(settings, quantization=plan.knobs.quantization)
    with torch.device("meta"):
        return make_trainable_(model, arm=settings.arm(arm), knobs=plan.knobs, training=settings.training)


def _at_rank_16(text: Any) -> int:
    """LoRA's parameters from the shapes alone: rank x (in + out) of every adapted map, and what all arms train in full."""
    hidden, wide = text["hidden_size"], text["intermediate_size"]
    head = text.get("head_dim", hidden // text["num_attention_heads"])
    queries, keys = text["num_attention_heads"] * head, text["num_key_value_heads"] * head
    attention = 2 * (hidden + queries) + 2 * (hidden + keys)
    layers = text["num_hidden_layers"] * 16 * (attention + 3 * (hidden + wide))
    return int(layers + CLIP_ATTENTION + _shared(hidden))


def _in_full(model: MGMForConditionalGeneration, *, hidden: int) -> int:
    return sum(parameter.numel() for parameter in model.language_model.parameters()) + _shared(hidden)


def _shared(hidden: int) -> int:
    """The projector and mining, but for what the softmax of mining's keys takes no notice of: an offset and a bias."""
    keys_offset_and_bias = 2880 + 1024
    return (1024 * hidden + hidden + hidden * hidden + hidden) + 6_963_456 - keys_offset_and_bias


def _check_merge(trainable: TrainableModel) -> None:
    """Every update has its weight's shape, and nothing of PEFT is left when it is taken off."""
    adapted: Any = trainable.model
    with torch.device("meta"):
        for module in adapted.modules():
            if isinstance(module, LoraLayer):
                base: Any = module.get_base_layer()
                weight = dequantized(base).weight if is_quantized(base) else base.weight
                assert module.get_delta_weight(ADAPTER_NAME).shape == weight.shape
        plain = adapted.unload()
        bare = MGMForConditionalGeneration(plain.config)
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in bare.named_parameters()}


def _check_questions(settings: Settings) -> None:
    """Evaluation's batch up to the first new token keeps to the budget, its answers' part of the cache included."""
    model, processor = (
        _model(settings, quantization=settings.arms["lora"].step.quantization),
        find_processor(settings.base),
    )
    questions = [Question(turns=(("human", "<image>\nwhat is it?"),), pictures=(Path("data/pictures/0.png"),))]
    questions *= settings.evaluation.batch_size
    prompts = [processor.encode_prompt(question.turns) for question in questions]
    batch = collate_prompts(prompts, pictures=[question.pictures for question in questions], processor=processor)
    fake_weights_(model)
    with FakeFloats(), torch.no_grad():
        counter = LiveBytes(model)
        counter.track(batch.values(), part="batch")
        with counter:
            merged = model.merge_inputs(**batch, padding_side="left")
            output = model.language_model(
                inputs_embeds=merged.inputs_embeds,
                attention_mask=merged.attention_mask.long(),
                use_cache=True,
                logits_to_keep=1,
            )
    config = model.config.text_config
    assert tuple(output.logits.shape) == (len(questions), 1, config.vocab_size)
    length = merged.inputs_embeds.shape[1]
    assert length == processor.num_positions(prompts[0])
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
    answers = held * settings.evaluation.max_new_tokens // length
    assert counter.peak_bytes + answers <= allowed_bytes(settings.memory)
    assert paths.SAMPLES.is_dir()
