"""MMBench, questions with options (arXiv 2307.06281), each asked again with its options moved on (circular evaluation).

Reads the official table (mmbench_dev_20230712.tsv and its like, English or Chinese), which holds the pictures in base64 and the rotations as rows of
their own: the question `index` turned k times is `index + k * 1,000,000`. A question is right where all its rotations are. The option that an
answer names is found as VLMEvalKit does without a language model to ask: one letter alone among the last words, or the text of one option alone;
anything else names none, and is wrong. The test split has no answers and gives a submission alone.
"""

import base64
import binascii
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pandas as pd

from mgm_lora.artifacts import new_file
from mgm_lora.errors import BenchmarkFileError
from mgm_lora.evaluation.benchmarks.door import (
    LETTER_ANSWER,
    LETTERS,
    AnswerFile,
    BenchmarkQuestion,
    FoundAnswer,
    RatedAnswer,
    Reading,
    Sources,
    asked,
    lettered,
)
from mgm_lora.evaluation.benchmarks.elsewhere import find_by_id
from mgm_lora.evaluation.benchmarks.figures import Figure
from mgm_lora.evaluation.benchmarks.files import check_unique, other_file, single_file
from mgm_lora.evaluation.benchmarks.ratings import figures_by_kind
from mgm_lora.evaluation.benchmarks.workbook import write_workbook
from mgm_lora.settings import EvaluationSettings

ROTATION = 1_000_000
CHINESE_LETTER_ANSWER = "请直接回答选项字母。"
_EXPECTED = "MMBench's table (tabs between; columns index, question, A, B, image, perhaps C, D, hint, answer, category, l2-category, split)"
_NEEDED = ("index", "question", "A", "B", "image")
_KINDS = {"l2-category": "ability", "category": "category", "split": "split"}
_NOT_SUBMITTED = ("hint", "category", "source", "image", "comment", "l2-category")
_CHINESE = re.compile("[\u4e00-\u9fff]")
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS = 5
_LONGEST_WITH_LETTER_A = 3
"""Words; in more of them an A may be the article."""
_LONGEST_REFERENCE = 64
"""Of what stands for a picture in another row; a picture is longer."""


class MmBench:
    """The benchmark `mmbench`."""

    name: ClassVar[str] = "mmbench"
    title: ClassVar[str] = "MMBench"
    files: ClassVar[str] = "mmbench_dev_20230712.tsv (pictures are inside)"
    takes: ClassVar[frozenset[str]] = frozenset()

    def read(self, sources: Sources) -> Reading:
        path = single_file(sources.questions, expected=self.files)
        table = _read_table(path)
        images = dict(zip(table["index"], table["image"], strict=True))
        rows = [{str(name): str(value) for name, value in row.items()} for row in table.to_dict(orient="records")]
        has_answers = _has_answers(rows, path=path)
        questions = tuple(
            _question(row, path=path, images=images, unpacked=sources.unpacked, has_answers=has_answers) for row in rows
        )
        return Reading(questions, tuple(_notes_on_rotations(questions, path=path)))

    def rate(self, question: BenchmarkQuestion, answer: str) -> float:
        return float(named_option(answer, options=question.options) in question.truths)

    def figures(self, rated: Sequence[RatedAnswer], *, evaluation: EvaluationSettings) -> list[Figure]:
        single = [item for item in rated if int(item.question.id) < ROTATION]
        worst: dict[str, float] = {}
        for item in rated:
            worst[item.question.unit] = min(item.score, worst.get(item.question.unit, 1.0))
        circular = [RatedAnswer(item.question, item.answer, worst[item.question.unit]) for item in single]
        return [
            *figures_by_kind(circular, metric="circular accuracy", evaluation=evaluation),
            figures_by_kind(single, metric="accuracy unrotated", evaluation=evaluation)[0],
        ]

    def find(self, file: AnswerFile, *, questions: Sequence[BenchmarkQuestion]) -> list[FoundAnswer]:
        return find_by_id(file, questions=questions)

    def submit(self, answers: Mapping[str, str], *, questions: Sequence[BenchmarkQuestion], folder: Path) -> list[Path]:
        """The workbook that the evaluation server takes."""
        path = folder / "submission.xlsx"
        columns = [name for name in questions[0].details if name not in _NOT_SUBMITTED]
        rows = [
            [int(question.id) if name == "index" else question.details[name] for name in columns]
            + [answers[question.id]]
            for question in questions
        ]
        write_workbook(path, header=[*columns, "prediction"], rows=rows)
        return [path]


def named_option(answer: str, *, options: Mapping[str, str]) -> str:
    """The letter of the option that an answer names; empty where it names none, or several."""
    words = answer.translate(_MARKS).split()
    letters = [letter for letter in options if letter in words]
    may_be_article = letters == ["A"] and len(words) > _LONGEST_WITH_LETTER_A
    if len(letters) == 1 and letters[0] in words[-_LAST_WORDS:] and not may_be_article:
        return letters[0]
    lowered = answer.lower()
    texts = [letter for letter, text in options.items() if text.lower() in lowered]
    is_listing = len(answer) > 2 * sum(len(text) for text in options.values())
    return texts[0] if len(texts) == 1 and not is_listing else ""


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, ValueError) as error:  # pandas' parser errors, and text of another encoding
        raise other_file(path, expected=_EXPECTED, found=f"no such table ({error})") from error
    missing = [name for name in _NEEDED if name not in table.columns]
    if missing:
        raise other_file(
            path, expected=_EXPECTED, found=f"no {', '.join(missing)} among {', '.join(map(str, table.columns[:12]))}"
        )
    if table.empty:
        raise other_file(path, expected=_EXPECTED, found="no row")
    no_numbers = [value for value in table["index"] if not value.isdecimal()]
    if no_numbers:
        raise other_file(path, expected=_EXPECTED, found=f"an index that is no number ({no_numbers[0]!r})")
    check_unique(list(table["index"]), path=path, expected=_EXPECTED)
    return table


def _has_answers(rows: Sequence[Mapping[str, str]], *, path: Path) -> bool:
    given = [row for row in rows if row.get("answer", "")]
    if given and len(given) != len(rows):
        raise other_file(
            path, expected="an answer in every row, or in none", found=f"answers in {len(given)} of {len(rows)}"
        )
    wrong = [row["index"] for row in given if row["answer"] not in _options(row)]
    if wrong:
        raise other_file(
            path, expected="answers that are letters of options", found=f"{len(wrong)} others (index {wrong[0]})"
        )
    return bool(given)


def _question(
    row: Mapping[str, str], *, path: Path, images: Mapping[str, str], unpacked: Path, has_answers: bool
) -> BenchmarkQuestion:
    options = _options(row)
    hint = row.get("hint", "")
    letter_answer = CHINESE_LETTER_ANSWER if _CHINESE.search(row["question"]) else LETTER_ANSWER
    return BenchmarkQuestion(
        id=row["index"],
        prompt=asked("" if hint.lower() == "nan" else hint, row["question"], lettered(options), letter_answer),
        picture=_unpack(row, path=path, images=images, folder=unpacked),
        truths=(row["answer"],) if has_answers else (),
        kinds={label: row[column] for column, label in _KINDS.items() if row.get(column)},
        unit=str(int(row["index"]) % ROTATION),
        options=options,
        details={name: value for name, value in row.items() if name not in _NOT_SUBMITTED},
    )


def _options(row: Mapping[str, str]) -> dict[str, str]:
    return {letter: row[letter] for letter in LETTERS if row.get(letter, "").lower() not in ("", "nan")}


def _unpack(row: Mapping[str, str], *, path: Path, images: Mapping[str, str], folder: Path) -> Path:
    """The row's picture, or that of the row which it names, as a file that is called by its digest: rotations share it."""
    text = row["image"]
    if len(text) <= _LONGEST_REFERENCE and text in images:
        text = images[text]
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise other_file(
            path, expected="pictures in base64", found=f"another text at index {row['index']} ({error})"
        ) from error
    if not content:
        raise other_file(path, expected="pictures in base64", found=f"nothing at index {row['index']}")
    picture = folder / f"{hashlib.sha256(content).hexdigest()[:32]}.picture"
    if not picture.is_file():
        with new_file(picture) as temporary:
            temporary.write_bytes(content)
    return picture


def _notes_on_rotations(questions: Sequence[BenchmarkQuestion], *, path: Path) -> Iterator[str]:
    units = Counter(question.unit for question in questions)
    unrotated = {question.unit: question for question in questions if int(question.id) < ROTATION}
    orphans = sorted(set(units) - set(unrotated))
    if orphans:
        raise BenchmarkFileError(
            f"'{path}': expected each question before its rotations (index + k * {ROTATION}); found {len(orphans)} rotations alone ({orphans[0]})"
        )
    short = [unit for unit, question in unrotated.items() if units[unit] < len(question.options)]
    if short:
        yield f"{len(short)} of {len(unrotated)} questions have fewer rotations in the file than options: the circular accuracy is of those"
