"""Trains the base's small tokenizer: Gemma's way with spaces, bytes and turns, over the words of the embedded data.

Byte-pair encoding with byte fallback, so that any text encodes and comes back; the one exception is U+2581, which
stands for a space, as in Gemma. Merges stay within a word and its space, and a line feed and each ASCII punctuation
mark are tokens of their own. It doesn't know the questions' form.
"""

import json
import string
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPACE = "\u2581"
CONTROL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
_BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
_PRINTABLE = (SPACE, *string.ascii_letters, *string.digits, *string.punctuation)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer with pad 0, eos 1, bos 2, unk 3, that puts `<bos>` first as Gemma's does."""
    tokens, merges = _learn(texts, vocab_size=vocab_size)
    return PreTrainedTokenizerFast(
        tokenizer_object=_with_fallback(tokens, merges=merges),
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        padding_side="right",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes what `AutoTokenizer.from_pretrained(folder)` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)


def share_of_whole_words(tokenizer: PreTrainedTokenizerFast, words: Iterable[str]) -> float:
    """Share of the words that are one token, after a space."""
    counts = [len(tokenizer.encode(f" {word}", add_special_tokens=False)) for word in words]
    return counts.count(1) / len(counts)


def _learn(texts: Iterable[str], *, vocab_size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """The learnt tokens and the merges that make them, in order."""
    learner = _frame(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL_TOKENS) - len(_BYTE_TOKENS) - 1,
        initial_alphabet=list(_PRINTABLE),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    tokens = sorted((token for token in model["vocab"] if token != "\n"), key=lambda token: int(model["vocab"][token]))
    return tokens, [(left, right) for left, right in model["merges"]]


def _with_fallback(tokens: list[str], *, merges: list[tuple[str, str]]) -> Tokenizer:
    vocab = {token: number for number, token in enumerate([*CONTROL_TOKENS, *_BYTE_TOKENS, "\n", *tokens])}
    model = models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    tokenizer = _frame(Tokenizer(model))
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    return tokenizer


def _frame(tokenizer: Tokenizer) -> Tokenizer:
    """Spaces and word borders, the same for learning and for use. In place."""
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(SPACE, "merged_with_next"),
            pre_tokenizers.Split(Regex(r"[\n!-/:-@\[-`{-~]"), "isolated"),
        ]
    )
    return tokenizer
