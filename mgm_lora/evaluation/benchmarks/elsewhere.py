"""Answers that were made elsewhere: reads their files (lines of JSON as LLaVA writes them, lists as servers take them, tables), finds the questions
that they are for, and checks that all questions are answered once and no others.

Which fields a benchmark's own files have, the benchmark knows.
"""

import csv
import io
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from mgm_lora.data.text_stream import read_text
from mgm_lora.errors import BenchmarkFileError, OtherQuestionsError
from mgm_lora.evaluation.benchmarks.door import AnswerFile, Benchmark, BenchmarkQuestion, FoundAnswer, Key, Reading, Row
from mgm_lora.evaluation.benchmarks.files import describe, first_of, other_file, read_json, read_json_lines, read_lines
from mgm_lora.evaluation.benchmarks.workbook import read_workbook

_RESULT_LINE = "picture, question, truth and answer with tabs between"

logger = logging.getLogger(__name__)
_ID_FIELDS = ("id", "question_id", "questionId", "index")
_ANSWER_FIELDS = ("answer", "text", "prediction")
_EXPECTED = (
    "answers: lines of JSON ({'question_id', 'text'}, as LLaVA writes them; {'id', 'answer'}, as our predictions.jsonl), the benchmark's own"
    " submission file, or a table with a header (.tsv, .csv)"
)


def read_answers(
    paths: Sequence[Path], *, benchmark: Benchmark, reading: Reading, places: Mapping[str, Row]
) -> dict[str, str]:
    """Answer by question id.

    Args:
        places: what a published question file says of the ids in the answers: picture, category.

    Raises:
        BenchmarkFileError: a file is of no form known.
        OtherQuestionsError: questions are not answered, answered twice, or unknown; the first ones are named.
    """
    found: list[FoundAnswer] = []
    for path in paths:
        file = _read_file(path)
        rows = tuple({**places.get(str(row.get("question_id")), {}), **row} for row in file.rows)
        found += benchmark.find(AnswerFile(path, rows), questions=reading.questions)
    num_found = len(found)
    found = [item for item in found if item.question_id is not None or item.row not in reading.not_asked]
    if len(found) < num_found:
        logger.info("passed over: %s answers to questions of the file that are not asked", num_found - len(found))
    check_found(found, questions=reading.questions, paths=paths)
    return {item.question_id: item.answer for item in found if item.question_id is not None}


def find_by_keys(
    file: AnswerFile,
    *,
    questions: Sequence[BenchmarkQuestion],
    keys_of: Callable[[BenchmarkQuestion], Iterable[Key]],
    key_of: Callable[[Row], Key],
) -> list[FoundAnswer]:
    """Each row and the question that has the row's key among its own."""
    places = {key: question.id for question in questions for key in keys_of(question)}
    found = []
    for number, row in enumerate(file.rows, start=1):
        try:
            key, answer = key_of(row), answer_text(row)
        except KeyError as error:
            raise other_file(
                file.path, expected=_EXPECTED, found=f"row {number} without {error}: {describe(dict(row))}"
            ) from error
        found.append(FoundAnswer(" ".join(key), places.get(key), answer))
    return found


def find_by_id(file: AnswerFile, *, questions: Sequence[BenchmarkQuestion]) -> list[FoundAnswer]:
    """The same, where the id says all."""
    return find_by_keys(file, questions=questions, keys_of=lambda question: [(question.id,)], key_of=id_key)


def id_key(row: Row) -> Key:
    """The row's id; raises KeyError where it has none."""
    return (str(_first(row, _ID_FIELDS)),)


def answer_text(row: Row) -> str:
    """The row's answer; raises KeyError where it has none."""
    return str(_first(row, _ANSWER_FIELDS))


def _first(row: Row, names: Sequence[str]) -> object:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise KeyError(" or ".join(names))


def _read_file(path: Path) -> AnswerFile:
    if not path.exists():
        raise other_file(path, expected=_EXPECTED, found="nothing there")
    if path.suffix in (".tsv", ".csv"):
        return AnswerFile(path, tuple(_read_table(path)))
    if path.is_dir() or path.suffix == ".txt":
        return AnswerFile(path, tuple(_read_result_lines(path)))
    if path.suffix == ".xlsx":
        return AnswerFile(path, tuple(read_workbook(path, expected=_EXPECTED)))
    if path.suffix == ".jsonl":
        return AnswerFile(path, tuple(read_json_lines(path, expected=_EXPECTED)))
    return AnswerFile(path, tuple(_read_json_rows(path)))


def _read_json_rows(path: Path) -> list[Row]:
    try:
        content = read_json(path, expected=_EXPECTED)
    except BenchmarkFileError:
        return list(read_json_lines(path, expected=_EXPECTED))  # POPE's files are lines that are named .json
    if isinstance(content, dict) and isinstance(content.get("results"), dict):  # ScienceQA's
        return [{"id": name, "choice": choice} for name, choice in content["results"].items()]
    rows = content if isinstance(content, list) else [content]
    if not all(isinstance(row, dict) for row in rows):
        raise other_file(path, expected=_EXPECTED, found=f"{describe(content)} of something else than objects")
    return rows


def _read_table(path: Path) -> list[Row]:
    csv.field_size_limit(2**31 - 1)  # a table that was made from MMBench's may still hold its pictures
    text = io.StringIO("".join(read_text(path)), newline="")
    return list(csv.DictReader(text, delimiter="\t" if path.suffix == ".tsv" else ","))


def _read_result_lines(path: Path) -> list[Row]:
    """MME's: a file per subtask, `picture <tab> question <tab> truth <tab> answer` a line."""
    rows: list[Row] = []
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        for number, line in read_lines(file, expected=_RESULT_LINE):
            fields = line.split("\t")
            if len(fields) != 4:
                raise other_file(file, expected=_RESULT_LINE, found=f"line {number}: {line!r}")
            rows.append({"subtask": file.stem, "picture": fields[0], "question": fields[1], "answer": fields[3]})
    return rows


def check_found(found: Sequence[FoundAnswer], *, questions: Sequence[BenchmarkQuestion], paths: Sequence[Path]) -> None:
    """Raises OtherQuestionsError where it isn't each question once and no other."""
    counts = Counter(item.question_id for item in found if item.question_id is not None)
    findings: Mapping[str, list[str]] = {
        "not answered": [question.id for question in questions if question.id not in counts],
        "answered more than once": [name for name, count in counts.items() if count > 1],
        "answered but unknown": [item.row for item in found if item.question_id is None],
    }
    told = [f"{len(names)} {what} ({first_of(names)})" for what, names in findings.items() if names]
    if told:
        raise OtherQuestionsError(
            f"{', '.join(repr(str(path)) for path in paths)}: expected an answer to each of the {len(questions)} questions; found {'; '.join(told)}."
            " Are they for these official files, and for all of them?"
        )
