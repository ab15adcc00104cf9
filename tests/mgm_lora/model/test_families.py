"""Every family at tiny size goes the whole way, and at real size has the published number of parameters."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mgm_lora.arm_settings import POINT_NAMES, FullSettings, LoraSettings, PointSettings
from mgm_lora.errors import CheckpointError, NoMatchingModuleError, SettingsError
from mgm_lora.lora.injection import TrainableModel, inject_adapter_
from mgm_lora.lora.points import resolve_points
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.memory.measuring import measure_steps
from mgm_lora.memory.shapes import BatchShape
from mgm_lora.memory.tracing import make_trainable_, trace_step
from mgm_lora.model.answering import Question, answer_questions
from mgm_lora.model.checkpoint import load_model, save_model
from mgm_lora.model.families import PUBLISHED, fused_experts, published_config
from mgm_lora.model.lean import make_lean_
from mgm_lora.model.mgm import MGMForConditionalGeneration
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.model.quantization import quantize_language_model_
from mgm_lora.settings import SeededTraining

from ...conftest import GOLDENS
from .tiny_family import FAMILIES, TinyFamily

OFF = PointSettings(mode="off")
PARTS = json.loads((GOLDENS / "param_counts.json").read_text(encoding="utf-8"))["parts"]
# The language models' own parameters, as their hub pages state them in full.
STATED = {
    "MGM-2B": 2_506_172_416,
    "MGM-7B": 6_738_415_616,
    "MGM-8B": 8_030_261_248,
    "MGM-13B": 13_015_864_320,
    "MGM-8x7B": 46_702_792_704,
    "MGM-34B": 34_388_917_248,
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> TinyFamily:
    return FAMILIES[request.param]


def lora_of(family: TinyFamily, **points: PointSettings) -> LoraSettings:
    """Rank 4 at all points that the family has."""
    on = PointSettings(mode="lora", rank=4)
    sections = dict.fromkeys(POINT_NAMES, on) | ({"language_mlp": OFF} if family.model_type == "mixtral" else {})
    return LoraSettings(**{"learning_rate": 1e-3, **sections, **points})


def batch_of(family: TinyFamily) -> dict[str, torch.Tensor]:
    """Two rows with a picture each, the second shorter."""
    processor = family.processor()
    samples = [
        processor.encode_sample((("human", "<image>\nwhat color is it?"), ("gpt", answer))) for answer in ("red", "a b")
    ]
    length = max(len(sample.input_ids) for sample in samples)
    generator = torch.Generator().manual_seed(5)

    def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([row + [fill] * (length - len(row)) for row in rows])

    return {
        "input_ids": padded([sample.input_ids for sample in samples], processor.pad_token_id),
        "labels": padded([sample.labels for sample in samples], -100),
        "attention_mask": padded([[1] * len(sample.input_ids) for sample in samples], 0),
        "images": torch.randn((2, 3, 16, 16), generator=generator),
        "images_aux": torch.randn((2, 3, 32, 32), generator=generator),
    }


def test_adapters_at_all_points_get_gradients(family: TinyFamily) -> None:
    trainable = inject_adapter_(family.model(), lora=lora_of(family), seed=1)
    _fill_b(trainable)
    trainable.model.train()(**batch_of(family)).loss.backward()
    wanted = {name for group in trainable.groups for name in group.parameter_names}
    received = {name for name, p in trainable.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert received == wanted
    counts = {point.name: len(point.module_names) for point in trainable.points}
    mlp = {} if family.model_type == "mixtral" else {"language_mlp": 2 * 3}
    assert counts == {"language_attention": 2 * 4, "vision_attention": 2 * 4, "projector": 2, "mining": 3} | mlp


def test_lean_step_is_the_same_step(family: TinyFamily) -> None:
    # torch 2.13's product over experts has no float64
    dtype = torch.float32 if family.model_type == "mixtral" else torch.float64
    batch, losses, gradients = batch_of(family), [], []
    batch |= {name: batch[name].to(dtype) for name in ("images", "images_aux")}
    for parts, chunk in (((), 512), (("language_model", "vision_tower", "mining"), 3)):
        trainable = inject_adapter_(family.model().to(dtype), lora=lora_of(family), seed=1)
        _fill_b(trainable)
        make_lean_(trainable.mgm, checkpointing=parts, offload=False, loss_chunk=chunk)
        loss = trainable.model.train()(**batch).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad for p in trainable.model.parameters() if p.requires_grad])
    assert abs(losses[0] - losses[1]) < 1e-6  # adapters are float32
    assert max((a - b).abs().max() for a, b in zip(*gradients, strict=True)) < 1e-5


def test_head_is_the_familys_own_and_untied(family: TinyFamily) -> None:
    model = family.model()
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    output = model(**batch_of(family), logits_at="all")
    labels = batch_of(family)["labels"]
    rows, positions = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    # a picture of 16 tokens stands in both rows before every label
    picked = output.logits[rows, positions + 15]
    expected = torch.nn.functional.cross_entropy(picked, labels[:, 1:][rows, positions])
    assert abs(output.loss - expected) < 1e-5


@pytest.mark.parametrize("arm", ["lora", "full"])
def test_traced_step_holds_what_the_real_one_does(family: TinyFamily, arm: str) -> None:
    settings = (
        lora_of(family)
        if arm == "lora"
        else FullSettings(learning_rate=1e-3, parts=("language_model", "projector", "mining"))
    )
    knobs = StepKnobs(micro_batch_size=2, checkpointing=("language_model", "vision_tower", "mining"), loss_chunk=16)
    shape, training, config = BatchShape(2, 64, 40, 2), _training(), family.config()
    traced = trace_step(
        config, dtype=torch.float32, arm=settings, knobs=knobs, shape=shape, training=training, device="cpu"
    )
    trainable = make_trainable_(family.model(), arm=settings, knobs=knobs, training=training)
    measured = measure_steps(trainable, config=config, knobs=knobs, shape=shape, training=training)
    assert traced.peak_bytes == pytest.approx(measured.counted_bytes, rel=0.01)


def test_checkpoint_comes_back_bit_equal(family: TinyFamily, tmp_path: Path) -> None:
    model = family.model()
    save_model(model, folder=tmp_path)
    family.processor().save_pretrained(tmp_path)
    again = load_model(tmp_path, dtype=torch.float32)
    assert again.config.conversation == family.conversation
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    turns = (("human", "<image>\nand the shape?"), ("gpt", "a square"))
    assert MGMProcessor.from_pretrained(tmp_path).encode_sample(turns) == family.processor().encode_sample(turns)


def test_answers_are_the_full_forwards_first_choices(family: TinyFamily) -> None:
    model, processor = family.model(), family.processor()
    batch = batch_of(family)
    ids = torch.tensor([processor.encode_prompt((("human", "<image>\nwhat color is it?"),))])
    pictures = {name: batch[name][:1] for name in ("images", "images_aux")}
    with torch.no_grad():
        answer = model.generate(
            ids, torch.ones_like(ids), **pictures, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0
        )
        for number in range(6):
            so_far = torch.cat([ids, answer[:, :number]], dim=1)
            logits = model(so_far, torch.ones_like(so_far), **pictures).logits[0, -1]
            logits[processor.tokenizer.eos_token_id] = -torch.inf  # min_new_tokens
            assert logits.argmax() == answer[0, number]


def test_questions_are_answered_together_as_alone(family: TinyFamily, tmp_path: Path) -> None:
    model, processor = family.model(), family.processor()
    path = tmp_path / "a.png"
    Image.new("RGB", (20, 20), (200, 30, 90)).save(path)
    questions = [
        Question(turns=(("human", "<image>\nwhat?"),), pictures=(path,)),
        Question(turns=(("human", "<image>\nwhat color is it?"), ("gpt", "red"), ("human", "and?")), pictures=(path,)),
        Question(turns=(("human", "a circle?"),), pictures=()),
    ]

    def answers(batch_size: int) -> list[str]:
        return answer_questions(
            model, processor=processor, questions=questions, batch_size=batch_size, max_new_tokens=5
        )

    assert answers(3) == answers(1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_real_size_has_the_published_number_of_parameters(name: str) -> None:
    config = published_config(name)
    with torch.device("meta"):
        model = MGMForConditionalGeneration(config)
    model.tie_weights()
    text = PUBLISHED[name].text_config
    assert _count(model.language_model) == STATED[name] == _by_hand(text)
    hidden = text["hidden_size"]
    others = PARTS["clip_vit_l14_336 (vision_tower)"] + PARTS["convnext_l (vision_tower_aux)"] + PARTS["vlm_uni total"]
    projector = 1024 * hidden + hidden + hidden * hidden + hidden
    assert _count(model) == STATED[name] + others + projector
    assert config.conversation == PUBLISHED[name].conversation


@pytest.mark.parametrize("name", PUBLISHED)
def test_points_name_the_same_modules_at_real_size(name: str) -> None:
    with torch.device("meta"):
        model = MGMForConditionalGeneration(published_config(name))
    layers = PUBLISHED[name].text_config["num_hidden_layers"]
    points = {point: PointSettings(mode="lora", rank=16) for point in POINT_NAMES}
    if name == "MGM-8x7B":
        del points["language_mlp"]
    found = {point.name: len(point.module_names) for point in resolve_points(model, points=points)}
    mlp = {} if name == "MGM-8x7B" else {"language_mlp": 3 * layers}
    assert found == {"language_attention": 4 * layers, "vision_attention": 4 * 23, "projector": 2, "mining": 3} | mlp


def test_mixtrals_mlp_is_refused_with_what_works() -> None:
    family = FAMILIES["mixtral"]
    lora = lora_of(family, language_mlp=PointSettings(mode="lora", rank=4))
    with pytest.raises(
        NoMatchingModuleError, match=r"in a mixtral .* set language_mlp\.mode to off; language_attention, "
    ) as told:
        inject_adapter_(family.model(), lora=lora, seed=1)
    assert "language_attention'" not in str(told.value)
    assert fused_experts(family.model().language_model)


def test_mixtral_in_4_bit_is_refused_with_what_it_would_leave() -> None:
    with pytest.raises(SettingsError, match=r"reaches linear maps alone, but \d\d % .*mlp\.experts"):
        quantize_language_model_(FAMILIES["mixtral"].model())


def test_unpublished_size_is_told_with_those_there_are() -> None:
    with pytest.raises(CheckpointError, match=r"no published model 'MGM-3B', known are MGM-2B, MGM-7B"):
        published_config("MGM-3B")


def _by_hand(text: Any) -> int:
    """From the shapes alone: embedding and head, and per layer the attention, the MLP or its experts with a router, and two norms."""
    hidden, heads, keys = text["hidden_size"], text["num_attention_heads"], text["num_key_value_heads"]
    head = text.get("head_dim", hidden // heads)
    experts = text.get("num_local_experts", 0)
    attention = 2 * hidden * heads * head + 2 * hidden * keys * head
    mlp = 3 * hidden * text["intermediate_size"]
    mlp = experts * mlp + experts * hidden if experts else mlp
    embeddings = (1 if text["model_type"] == "gemma" else 2) * text["vocab_size"] * hidden
    return int(embeddings + text["num_hidden_layers"] * (attention + mlp + 2 * hidden) + hidden)


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _fill_b(trainable: TrainableModel) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in trainable.model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def _training() -> SeededTraining:
    return SeededTraining(
        seed=3,
        num_epochs=1,
        global_batch_size=2,
        group_by_length=False,
        packing=False,
        warmup_share=0.1,
        schedule="cosine",
        weight_decay=0.01,
        max_grad_norm=1.0,
        precision="float32",
        evaluations=2,
        num_evaluation_samples=8,
        checkpoints=0,
    )
