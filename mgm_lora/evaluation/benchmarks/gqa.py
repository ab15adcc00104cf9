"""GQA, compositional questions (arXiv 1902.09506), right or wrong by exact match.

Reads testdev_balanced_questions.json (or the file of another split). As the official eval.py does, only balanced questions count, and answers are
told apart as binary and open, by structure and by meaning; as LLaVA's converter does, an answer is lowered and loses its final periods before.
Consistency, validity, plausibility, distribution and grounding need answers to the unbalanced questions, the choices' file, or attention maps, and
are left out.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel

from mgm_lora.evaluation.benchmarks.door import (
    SHORT_ANSWER,
    AnswerFile,
    BenchmarkQuestion,
    FoundAnswer,
    RatedAnswer,
    Reading,
    Sources,
    asked,
)
from mgm_lora.evaluation.benchmarks.elsewhere import find_by_id
from mgm_lora.evaluation.benchmarks.figures import Figure
from mgm_lora.evaluation.benchmarks.files import describe, other_file, parse_entries, read_json, single_file
from mgm_lora.evaluation.benchmarks.ratings import figures_by_kind
from mgm_lora.settings import EvaluationSettings

_EXPECTED = "GQA's questions by id ({'201307251': {'question', 'imageId', 'isBalanced', 'answer', 'types': {'structural', 'semantic'}}})"
_LEFT_OUT = "consistency, validity, plausibility, distribution and grounding are not scored (they need more than the balanced questions)"


class _Types(BaseModel):
    structural: str
    semantic: str


class _Entry(BaseModel):
    question: str
    imageId: str
    isBalanced: bool
    answer: str | None = None
    types: _Types | None = None


class Gqa:
    """The benchmark `gqa`."""

    name: ClassVar[str] = "gqa"
    title: ClassVar[str] = "GQA"
    files: ClassVar[str] = "testdev_balanced_questions.json"
    takes: ClassVar[frozenset[str]] = frozenset({"pictures"})

    def read(self, sources: Sources) -> Reading:
        path = single_file(sources.questions, expected=self.files)
        content = read_json(path, expected=_EXPECTED)
        if not isinstance(content, dict):
            raise other_file(path, expected=_EXPECTED, found=describe(content))
        entries = parse_entries(content.items(), _Entry, path=path, expected=_EXPECTED)
        folder = sources.pictures or Path()
        questions = [
            _question(name, entry, folder) for name, entry in zip(content, entries, strict=True) if entry.isBalanced
        ]
        if not questions:
            raise other_file(path, expected=_EXPECTED, found="no balanced question")
        num_others = len(entries) - len(questions)
        others = [f"{num_others} unbalanced questions are not asked: accuracy is of the balanced ones"]
        notes = (_LEFT_OUT, *(others if num_others else []))
        return Reading(tuple(questions), notes, frozenset(content) - {question.id for question in questions})

    def rate(self, question: BenchmarkQuestion, answer: str) -> float:
        return float(_prepared(answer) in question.truths)

    def figures(self, rated: Sequence[RatedAnswer], *, evaluation: EvaluationSettings) -> list[Figure]:
        return figures_by_kind(rated, metric="accuracy", evaluation=evaluation)

    def find(self, file: AnswerFile, *, questions: Sequence[BenchmarkQuestion]) -> list[FoundAnswer]:
        return find_by_id(file, questions=questions)

    def submit(self, answers: Mapping[str, str], *, questions: Sequence[BenchmarkQuestion], folder: Path) -> list[Path]:
        """The list that the official eval.py reads."""
        path = folder / "submission.json"
        rows = [{"questionId": question.id, "prediction": _prepared(answers[question.id])} for question in questions]
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        return [path]


def _prepared(answer: str) -> str:
    return answer.strip().rstrip(".").lower()


def _question(name: str, entry: _Entry, folder: Path) -> BenchmarkQuestion:
    kinds = {}
    if entry.types is not None:
        is_open = entry.types.structural == "query"
        kinds = {
            "answer": "open" if is_open else "binary",
            "structure": entry.types.structural,
            "meaning": entry.types.semantic,
        }
    return BenchmarkQuestion(
        id=name,
        prompt=asked(entry.question, SHORT_ANSWER),
        picture=folder / f"{entry.imageId}.jpg",
        truths=() if entry.answer is None else (entry.answer,),
        kinds=kinds,
    )
