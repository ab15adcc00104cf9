"""ScienceQA-IMG, school questions with options (arXiv 2209.09513), those that have a picture.

Reads problems.json, of which the field `split` says what is asked (`--split test`); pictures lie as <split>/<id>/image.png does in the official
archive. The option that an answer names is read as LLaVA's eval_science_qa.py does: a letter alone, `B. ` at the front, or one `The answer is B.`;
anything else names none, and is wrong.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, Field

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
from mgm_lora.evaluation.benchmarks.files import describe, other_file, parse_entries, read_json, single_file
from mgm_lora.evaluation.benchmarks.ratings import figures_by_kind
from mgm_lora.settings import EvaluationSettings

_EXPECTED = (
    "ScienceQA's problems by id ({'4': {'question', 'choices', 'answer': 1, 'hint', 'image': 'image.png' or null, 'grade': 'grade8', 'subject',"
    " 'split'}})"
)
_SAID = re.compile("The answer is ([A-Z]).")  # any character behind it, as published


class _Problem(BaseModel):
    question: str
    choices: list[str] = Field(min_length=2, max_length=len(LETTERS))
    answer: int = Field(ge=0)
    hint: str
    image: str | None
    grade: str = Field(pattern=r"^grade\d+$")
    subject: str
    split: str


class ScienceQa:
    """The benchmark `scienceqa`."""

    name: ClassVar[str] = "scienceqa"
    title: ClassVar[str] = "ScienceQA-IMG"
    files: ClassVar[str] = "problems.json"
    takes: ClassVar[frozenset[str]] = frozenset({"pictures", "split"})

    def read(self, sources: Sources) -> Reading:
        path = single_file(sources.questions, expected=self.files)
        content = read_json(path, expected=_EXPECTED)
        if not isinstance(content, dict):
            raise other_file(path, expected=_EXPECTED, found=describe(content))
        problems = dict(
            zip(content, parse_entries(content.items(), _Problem, path=path, expected=_EXPECTED), strict=True)
        )
        beyond = [name for name, problem in problems.items() if problem.answer >= len(problem.choices)]
        if beyond:
            raise other_file(path, expected=_EXPECTED, found=f"an answer beyond the choices ({beyond[0]})")
        split = {name: problem for name, problem in problems.items() if problem.split == sources.split}
        with_picture = {name: problem for name, problem in split.items() if problem.image is not None}
        if not with_picture:
            splits = ", ".join(sorted({problem.split for problem in problems.values()}))
            raise other_file(
                path, expected=f"questions with a picture in the split '{sources.split}'", found=f"the splits {splits}"
            )
        folder = sources.pictures or Path()
        questions = tuple(_question(name, problem, folder) for name, problem in with_picture.items())
        num_without = len(split) - len(with_picture)
        notes = (f"{num_without} questions without a picture are not asked",) if num_without else ()
        return Reading(questions, notes, frozenset(problems) - with_picture.keys())

    def rate(self, question: BenchmarkQuestion, answer: str) -> float:
        return float(named_option(answer, options=question.options) in question.truths)

    def figures(self, rated: Sequence[RatedAnswer], *, evaluation: EvaluationSettings) -> list[Figure]:
        return figures_by_kind(rated, metric="accuracy", evaluation=evaluation)

    def find(self, file: AnswerFile, *, questions: Sequence[BenchmarkQuestion]) -> list[FoundAnswer]:
        """Also of the official result file, which has the number of the choice, below 0 for none."""
        if not all(isinstance(row.get("choice", 0), int) for row in file.rows):
            raise other_file(file.path, expected="`results` that are numbers of choices", found="others")
        rows = [row | {"answer": _letter(row["choice"])} if "choice" in row else row for row in map(dict, file.rows)]
        return find_by_id(AnswerFile(file.path, tuple(rows)), questions=questions)

    def submit(self, answers: Mapping[str, str], *, questions: Sequence[BenchmarkQuestion], folder: Path) -> list[Path]:
        """The `results` (number of the choice, -1 for none) and `outputs` that the official evaluate_acc.py reads; it asks for all questions."""
        path = folder / "submission.json"
        named = {question.id: named_option(answers[question.id], options=question.options) for question in questions}
        results = {name: LETTERS.index(letter) if letter else -1 for name, letter in named.items()}
        content = {"results": results, "outputs": {question.id: answers[question.id] for question in questions}}
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
        return [path]


def named_option(answer: str, *, options: Mapping[str, str]) -> str:
    """The letter of the option that an answer names; empty where it names none."""
    said = _SAID.findall(answer)
    if answer in LETTERS and len(answer) == 1:
        letter = answer
    elif len(answer) >= 3 and answer[0] in LETTERS and answer[1:3] == ". ":
        letter = answer[0]
    else:
        letter = said[0] if len(said) == 1 else ""
    return letter if letter in options else ""


def _question(name: str, problem: _Problem, folder: Path) -> BenchmarkQuestion:
    options = dict(zip(LETTERS, problem.choices, strict=False))
    grade = int(problem.grade.removeprefix("grade"))
    context = f"Context: {problem.hint}" if problem.hint else ""
    return BenchmarkQuestion(
        id=name,
        prompt=asked(context, problem.question, lettered(options), LETTER_ANSWER),
        picture=folder / problem.split / name / str(problem.image),
        truths=(LETTERS[problem.answer],),
        kinds={
            "subject": problem.subject,
            "grade": "1-6" if grade <= 6 else "7-12",
            "text": "with context" if problem.hint else "without context",
        },
        options=options,
    )


def _letter(choice: int) -> str:
    return LETTERS[choice] if 0 <= choice < len(LETTERS) else "none"
