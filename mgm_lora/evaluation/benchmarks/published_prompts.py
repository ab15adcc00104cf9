"""LLaVA's question files: the prompts that published figures were had with, TextVQA's with OCR tokens, and what its answers' ids stand for.

Reads its lines ({'question_id', 'image', 'text'}, some with 'category') and its ScienceQA list ({'id', 'image', 'conversations'}). It asks nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mgm_lora.evaluation.benchmarks.door import (
    LETTER_ANSWER,
    AnswerFile,
    Benchmark,
    BenchmarkQuestion,
    Reading,
    Row,
    asked,
)
from mgm_lora.evaluation.benchmarks.elsewhere import check_found
from mgm_lora.evaluation.benchmarks.files import describe, other_file, read_json, read_json_lines

_EXPECTED = (
    "LLaVA's questions: lines of {'question_id', 'image', 'text'}, or a list of {'id', 'image', 'conversations'}"
)
_PICTURE_MARKER = "<image>"


@dataclass(frozen=True)
class PublishedPrompts:
    """A question file."""

    path: Path
    rows: tuple[Row, ...]
    """Each with question_id, prompt, and perhaps image and category."""


def read_prompts(path: Path) -> PublishedPrompts:
    """The prompts of a file; raises BenchmarkFileError where it is of another form."""
    if path.suffix == ".json":
        entries = read_json(path, expected=_EXPECTED)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise other_file(path, expected=_EXPECTED, found=describe(entries))
        rows = [_of_conversation(entry, path) for entry in entries if "image" in entry]
    else:
        rows = [_of_line(entry, path) for entry in read_json_lines(path, expected=_EXPECTED)]
    return PublishedPrompts(path, tuple(rows))


def with_prompts(reading: Reading, prompts: PublishedPrompts, *, benchmark: Benchmark) -> Reading:
    """The questions with the file's prompts; raises OtherQuestionsError where it doesn't hold each of them once."""
    file = AnswerFile(prompts.path, tuple(dict(row) | {"answer": row["prompt"]} for row in prompts.rows))
    found = benchmark.find(file, questions=reading.questions)
    found = [item for item in found if item.question_id is not None or item.row not in reading.not_asked]
    check_found(found, questions=reading.questions, paths=[prompts.path])
    by_id = {item.question_id: item.answer for item in found}
    return replace(reading, questions=_replaced(reading.questions, by_id))


def places_of(prompts: PublishedPrompts | None) -> dict[str, Row]:
    """Picture and category by the ids of the file, those that stand for one question alone."""
    if prompts is None:
        return {}
    counts = Counter(str(row["question_id"]) for row in prompts.rows)
    return {
        str(row["question_id"]): {name: row[name] for name in ("image", "category") if name in row}
        for row in prompts.rows
        if counts[str(row["question_id"])] == 1
    }


def _replaced(
    questions: Sequence[BenchmarkQuestion], prompts: Mapping[str | None, str]
) -> tuple[BenchmarkQuestion, ...]:
    return tuple(replace(question, prompt=prompts[question.id]) for question in questions)


def _of_line(entry: Mapping[str, Any], path: Path) -> Row:
    if not {"question_id", "text"} <= entry.keys():
        raise other_file(path, expected=_EXPECTED, found=f"a line of {', '.join(entry)}")
    row = {"question_id": entry["question_id"], "prompt": entry["text"]}
    return row | {name: entry[name] for name in ("image", "category") if name in entry}


def _of_conversation(entry: Mapping[str, Any], path: Path) -> Row:
    """Its prompt, with the line behind it that LLaVA's script puts there."""
    try:
        text = str(entry["conversations"][0]["value"])
        name = str(entry["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise other_file(path, expected=_EXPECTED, found=f"an entry without {error}") from error
    return {"question_id": name, "prompt": asked(text.replace(_PICTURE_MARKER, "").strip(), LETTER_ANSWER)}
