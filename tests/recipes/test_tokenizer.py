from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from recipes.tokenizer import CONTROL_TOKENS, save_tokenizer, share_of_whole_words, train_tokenizer

_TEXTS = ["what color is the shape?", "what is the blue circle?", "blue", "circle", "a blue shape"] * 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(_TEXTS, vocab_size=420, max_length=64), folder)
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    return loaded


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  spaces ",
        "a\n\n b\t\r\x00",
        "größe 日本 \U0001f600\U0001f1e9\U0001f1ea",
        "<0x41> <bos",
        "e\u0301",
    ],
)
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_every_character_of_the_basic_plane_comes_back(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "".join(chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000 and code != 0x2581)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_ids_are_gemmas_and_bos_comes_first(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)) == [0, 1, 2, 3, 4, 5]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    assert tokenizer("abc").input_ids[0] == 2
    assert tokenizer("abc").input_ids.count(2) == 1


def test_turns_line_feeds_and_words_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    turn = "<start_of_turn>circle blue?\n<end_of_turn>"
    assert tokenizer.tokenize(turn) == ["<start_of_turn>", "circle", "▁blue", "?", "\n", "<end_of_turn>"]
    assert share_of_whole_words(tokenizer, ["blue", "shape"]) == 1
    assert share_of_whole_words(tokenizer, ["blue", "xylophone"]) == 0.5


def test_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_tokenizer(train_tokenizer(_TEXTS, vocab_size=420, max_length=64), tmp_path / name)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
