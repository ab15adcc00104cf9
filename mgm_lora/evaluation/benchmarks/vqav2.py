"""VQAv2, open questions on COCO's pictures (arXiv 1612.00837), by VQA's soft accuracy over ten people.

Reads the official pair v2_OpenEnded_mscoco_val2014_questions.json and v2_mscoco_val2014_annotations.json; the test splits have no annotations and
give a submission alone. The submission holds answers as LLaVA's converter prepares them, and they are scored as the server does.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, Field

from mgm_lora.errors import BenchmarkFileError
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
from mgm_lora.evaluation.benchmarks.files import (
    check_unique,
    describe,
    first_of,
    other_file,
    parse_entries,
    read_json,
    single_file,
)
from mgm_lora.evaluation.benchmarks.ratings import figures_by_kind
from mgm_lora.evaluation.vqa_answers import prepare_answer, vqav2_accuracy
from mgm_lora.settings import EvaluationSettings

NUM_PEOPLE = 10
_VERSION = "2.0"
_TEST_PICTURES = "test2015"
_QUESTIONS = "VQA v2.0's open questions ({'info': {'version': '2.0'}, 'data_subtype', 'questions': [{'question_id', 'image_id', 'question'}]})"
_ANNOTATIONS = (
    "VQA v2.0's annotations ({'info': {'version': '2.0'}, 'data_subtype', 'annotations': [{'question_id', 'answer_type', 'question_type',"
    " 'answers': [ten]}]})"
)


class _Question(BaseModel):
    question_id: int
    image_id: int
    question: str


class _HumanAnswer(BaseModel):
    answer: str


class _Annotation(BaseModel):
    question_id: int
    answer_type: str
    question_type: str
    answers: list[_HumanAnswer] = Field(min_length=NUM_PEOPLE, max_length=NUM_PEOPLE)


class VqaV2:
    """The benchmark `vqav2`."""

    name: ClassVar[str] = "vqav2"
    title: ClassVar[str] = "VQAv2"
    files: ClassVar[str] = "v2_OpenEnded_mscoco_val2014_questions.json"
    takes: ClassVar[frozenset[str]] = frozenset({"pictures", "annotations"})

    def read(self, sources: Sources) -> Reading:
        path = single_file(sources.questions, expected=self.files)
        content = _read(path, key="questions", expected=_QUESTIONS)
        entries = parse_entries(_named(content["questions"]), _Question, path=path, expected=_QUESTIONS)
        check_unique([str(entry.question_id) for entry in entries], path=path, expected=_QUESTIONS)
        subset = str(content.get("data_subtype", ""))
        annotated: Mapping[int, _Annotation] = {}
        if sources.annotations is not None:
            annotated = _read_annotations(sources.annotations, subset=subset, entries=entries, questions=path)
        folder = sources.pictures or Path()
        questions = [_question(entry, annotated.get(entry.question_id), subset, folder) for entry in entries]
        return Reading(tuple(questions))

    def rate(self, question: BenchmarkQuestion, answer: str) -> float:
        return vqav2_accuracy(prepare_answer(answer), truths=question.truths)

    def figures(self, rated: Sequence[RatedAnswer], *, evaluation: EvaluationSettings) -> list[Figure]:
        return figures_by_kind(rated, metric="VQA accuracy", evaluation=evaluation)

    def find(self, file: AnswerFile, *, questions: Sequence[BenchmarkQuestion]) -> list[FoundAnswer]:
        return find_by_id(file, questions=questions)

    def submit(self, answers: Mapping[str, str], *, questions: Sequence[BenchmarkQuestion], folder: Path) -> list[Path]:
        """The list that the challenge's server (EvalAI) takes."""
        path = folder / "submission.json"
        rows = [
            {"question_id": int(question.id), "answer": prepare_answer(answers[question.id])} for question in questions
        ]
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        return [path]


def _read(path: Path, *, key: str, expected: str) -> dict[str, Any]:
    content = read_json(path, expected=expected)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise other_file(path, expected=expected, found=describe(content))
    info = content.get("info")
    version = info.get("version") if isinstance(info, dict) else None
    if version != _VERSION:
        raise other_file(path, expected=expected, found=f"version {version!r}")
    return content


def _read_annotations(
    path: Path, *, subset: str, entries: Sequence[_Question], questions: Path
) -> dict[int, _Annotation]:
    content = _read(path, key="annotations", expected=_ANNOTATIONS)
    annotations = parse_entries(_named(content["annotations"]), _Annotation, path=path, expected=_ANNOTATIONS)
    check_unique([str(item.question_id) for item in annotations], path=path, expected=_ANNOTATIONS)
    if content.get("data_subtype") != subset:
        raise BenchmarkFileError(
            f"'{questions}' and '{path}' are no pair: the questions are of {subset!r}, the annotations of {content.get('data_subtype')!r}"
        )
    found = {item.question_id: item for item in annotations}
    wanted = {entry.question_id for entry in entries}
    missing, unknown = ([str(name) for name in names] for names in (wanted - found.keys(), found.keys() - wanted))
    if missing or unknown:
        raise BenchmarkFileError(
            f"'{questions}' and '{path}' are no pair: {len(missing)} questions have no annotation ({first_of(sorted(missing))}), {len(unknown)}"
            f" annotations no question ({first_of(sorted(unknown))})"
        )
    return found


def _question(entry: _Question, annotation: _Annotation | None, subset: str, folder: Path) -> BenchmarkQuestion:
    pictures = _TEST_PICTURES if subset.startswith("test") else subset  # test-dev2015 is a part of test2015
    kinds = {}
    if annotation is not None:
        kinds = {"answer type": annotation.answer_type, "question type": annotation.question_type}
    return BenchmarkQuestion(
        id=str(entry.question_id),
        prompt=asked(entry.question, SHORT_ANSWER),
        picture=folder / f"COCO_{pictures}_{entry.image_id:012d}.jpg",
        truths=() if annotation is None else tuple(item.answer for item in annotation.answers),
        kinds=kinds,
    )


def _named(entries: Sequence[object]) -> list[tuple[str, object]]:
    return [(f"entry {number}", entry) for number, entry in enumerate(entries)]
