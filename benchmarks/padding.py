"""What short and long samples in one batch cost: plain order, samples grouped by length, samples packed into rows.

A made-up data set of mixed lengths (a picture and a short conversation, some long ones, a tenth text alone) goes through the real data sets, orders,
batches and steps at a quarter of MGM-2B's lengths; the shares of padding are also taken at its real lengths, over many more samples. What is padded
depends on the lengths: another data set has other figures.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.findings import Findings, Table, median_and_range
from benchmarks.sizes import lora_settings, random_model, small_size, training_settings
from benchmarks.step import PreparedStep, prepare_lean
from mgm_lora.memory.knobs import StepKnobs
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.training.batches import BatchMaker, ConversationDataset, RowSize
from mgm_lora.training.grouping import grouped_order
from mgm_lora.training.packing import PackedDataset, pack

SEED = 17
NUM_ROUNDS = 3
NUM_RUN, NUM_COUNTED = 96, 20_000
GLOBAL_BATCH, MICRO_BATCH, PACKED_MICRO_BATCH = 16, 8, 4
REAL_LENGTH, REAL_PICTURE, SHRUNK = 2048, 576, 4
TEXT_ALONE_SHARE = 0.1
TEXT_MEDIAN, TEXT_ALONE_MEDIAN, TEXT_SPREAD = 120, 400, 0.9

_WORDS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "user", "model", "word")
_NUM_SPECIAL = 6
_TEMPLATE_TOKENS = 9  # what the turns' marks take, at most


class Row(NamedTuple):
    """A conversation and the names of its pictures."""

    turns: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...]


class _Way(NamedTuple):
    data: Any
    batches: list[list[int]]


def measure() -> Findings:
    """Padding and speed of the three ways."""
    shares, speeds = _run_ways()
    first = next(iter(speeds))
    gains = {name: [own / plain for own, plain in zip(speeds[name], speeds[first], strict=True)] for name in speeds}
    run = tuple(
        (name, _percent(shares[name]), median_and_range(speeds[name], digits=0), median_and_range(gains[name]))
        for name in speeds
    )
    counted = tuple((name, _percent(share)) for name, share in _counted_shares().items())
    return Findings(
        title="Padding",
        tables=(
            Table(
                f"Really run: {NUM_RUN} samples at a quarter of the real lengths, micro batch {MICRO_BATCH} (packed: {PACKED_MICRO_BATCH} rows);"
                f" tokens a second without padding, median (range) of {NUM_ROUNDS} interleaved epochs:",
                ("", "padded", "tokens a second", "of plain order's"),
                run,
            ),
            Table(
                f"Counted at the real lengths: {NUM_COUNTED:,} samples, global batch {GLOBAL_BATCH}, micro batch {MICRO_BATCH}:",
                ("", "padded"),
                counted,
            ),
        ),
        notes=(
            f"Lengths: a picture's {REAL_PICTURE} tokens and text of log-normal length, median {TEXT_MEDIAN} ({TEXT_ALONE_MEDIAN} in the tenth"
            f" without a picture), up to {REAL_LENGTH:,} in all. Packed rows see a mask: their attention is slower than the plain causal one.",
        ),
    )


def _run_ways() -> tuple[dict[str, float], dict[str, list[float]]]:
    """Padded share and tokens a second of every round, by way."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = small_size()
    processor = MGMProcessor(_word_tokenizer(), config=config)
    model = random_model(config, dtype=torch.bfloat16, device=device, seed=SEED)
    knobs, training = StepKnobs(MICRO_BATCH, loss_chunk=256), training_settings(GLOBAL_BATCH)
    step = prepare_lean(model, lora=lora_settings(), training=training, knobs=knobs)
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (config.image_size_aux,) * 2, (200, 30, 60)).save(Path(folder) / "picture.png")
        conversations = ConversationDataset(_rows(), processor=processor, pictures=Path(folder))
        num_tokens = sum(size.num_tokens for size in conversations.sizes)
        ways = _ways(conversations)
        batches = {name: _made(way, processor=processor, device=device) for name, way in ways.items()}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(NUM_ROUNDS + 1):
        for name in ways:
            seconds = _epoch_seconds(step, batches[name])
            if number:  # the first round warms up
                speeds[name].append(num_tokens / seconds)
    return {name: _padded_share(way.data.sizes, way.batches) for name, way in ways.items()}, speeds


def _ways(conversations: ConversationDataset) -> dict[str, _Way]:
    packed = PackedDataset(conversations, max_length=small_size().max_length, seed=SEED)
    orders = _orders(conversations.sizes, num_packed=len(packed))
    return {name: _Way(packed if name == "packed" else conversations, batches) for name, batches in orders.items()}


def _counted_shares() -> dict[str, float]:
    lengths, has_picture = _lengths(NUM_COUNTED)
    sizes = [RowSize(length, int(seen)) for length, seen in zip(lengths, has_picture, strict=True)]
    rows = pack(lengths, max_length=REAL_LENGTH, seed=SEED)
    packed = [RowSize(sum(lengths[number] for number in row), 1) for row in rows]
    orders = _orders(sizes, num_packed=len(packed))
    return {name: _padded_share(packed if name == "packed" else sizes, batches) for name, batches in orders.items()}


def _orders(sizes: Sequence[RowSize], *, num_packed: int) -> dict[str, list[list[int]]]:
    """Batches of numbers, by way."""
    plain = np.random.default_rng(SEED).permutation(len(sizes)).tolist()
    grouped = grouped_order(sizes, global_batch_size=GLOBAL_BATCH, seed=SEED, epoch=0)
    return {
        "plain order": _cut(plain, MICRO_BATCH),
        "grouped": _cut(grouped, MICRO_BATCH),
        "packed": _cut(range(num_packed), PACKED_MICRO_BATCH),
    }


def _cut(numbers: Sequence[int], size: int) -> list[list[int]]:
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]


def _padded_share(sizes: Sequence[RowSize], batches: Sequence[Sequence[int]]) -> float:
    lengths = [[sizes[number].num_tokens for number in batch] for batch in batches]
    return 1 - sum(sum(batch) for batch in lengths) / sum(len(batch) * max(batch) for batch in lengths)


def _made(way: _Way, *, processor: MGMProcessor, device: str) -> list[dict[str, Tensor]]:
    """The batches, made before the clock runs: pictures are read by other processes in training."""
    make = BatchMaker(processor)
    made = [make([way.data[number] for number in batch]) for batch in way.batches]
    return [{name: values.to(device) for name, values in batch.items()} for batch in made]


def _epoch_seconds(step: PreparedStep, batches: Sequence[dict[str, Tensor]]) -> float:
    started = time.perf_counter()
    for batch in batches:
        step.run(batch)
    return time.perf_counter() - started


def _rows() -> list[Row]:
    lengths, has_picture = _lengths(NUM_RUN)
    rows = []
    for length, seen in zip(lengths, has_picture, strict=True):
        text = max(2, length // SHRUNK - seen * REAL_PICTURE // SHRUNK - _TEMPLATE_TOKENS)
        question = ("<image>\n" if seen else "") + "word " * (text - text // 2)
        turns = (("human", question), ("gpt", "word " * (text // 2)))
        rows.append(Row(turns, ("picture.png",) if seen else ()))
    return rows


def _lengths(number: int) -> tuple[list[int], list[bool]]:
    """Tokens of each sample at real lengths, and whether it has a picture."""
    rng = np.random.default_rng(SEED)
    has_picture = rng.random(number) >= TEXT_ALONE_SHARE
    medians = np.where(has_picture, TEXT_MEDIAN, TEXT_ALONE_MEDIAN)
    text = np.rint(medians * np.exp(TEXT_SPREAD * rng.standard_normal(number))) + SHRUNK * _TEMPLATE_TOKENS
    lengths = np.minimum(text + REAL_PICTURE * has_picture, REAL_LENGTH).astype(int)
    return lengths.tolist(), has_picture.tolist()


def _word_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(_WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=list(_WORDS[4:_NUM_SPECIAL]),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
