"""TextVQA, questions on text in pictures (arXiv 1904.08920), by VQA's soft accuracy over ten people.

Reads TextVQA_0.5.1_val.json, or the test file, which has no answers. MGM's published figure was had with OCR tokens in the prompts: these are in
LLaVA's llava_textvqa_val_v051_ocr.jsonl, which `--prompts` takes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, Field

from mgm_lora.evaluation.benchmarks.door import (
    SHORT_ANSWER,
    AnswerFile,
    BenchmarkQuestion,
    FoundAnswer,
    Key,
    RatedAnswer,
    Reading,
    Row,
    Sources,
    asked,
)
from mgm_lora.evaluation.benchmarks.elsewhere import find_by_keys, id_key
from mgm_lora.evaluation.benchmarks.figures import Figure
from mgm_lora.evaluation.benchmarks.files import (
    check_unique,
    describe,
    other_file,
    parse_entries,
    read_json,
    single_file,
)
from mgm_lora.evaluation.benchmarks.ratings import figures_by_kind
from mgm_lora.evaluation.vqa_answers import textvqa_accuracy
from mgm_lora.settings import EvaluationSettings

NUM_PEOPLE = 10
_OCR_MARK = "Reference OCR token:"
_EXPECTED = (
    "TextVQA 0.5.1's questions ({'dataset_name': 'textvqa', 'dataset_version': '0.5.1', 'data': [{'question_id', 'image_id', 'question', 'answers':"
    " [ten]}]})"
)


class _Entry(BaseModel):
    question_id: int
    image_id: str
    question: str
    answers: list[str] = Field(default=[], min_length=NUM_PEOPLE, max_length=NUM_PEOPLE)


class TextVqa:
    """The benchmark `textvqa`."""

    name: ClassVar[str] = "textvqa"
    title: ClassVar[str] = "TextVQA"
    files: ClassVar[str] = "TextVQA_0.5.1_val.json"
    takes: ClassVar[frozenset[str]] = frozenset({"pictures"})

    def read(self, sources: Sources) -> Reading:
        path = single_file(sources.questions, expected=self.files)
        content = read_json(path, expected=_EXPECTED)
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            raise other_file(path, expected=_EXPECTED, found=describe(content))
        version = (content.get("dataset_name"), content.get("dataset_version"))
        if version != ("textvqa", "0.5.1"):
            raise other_file(path, expected=_EXPECTED, found=f"dataset_name and dataset_version {version}")
        named = ((f"entry {number}", entry) for number, entry in enumerate(content["data"]))
        entries = parse_entries(named, _Entry, path=path, expected=_EXPECTED)
        check_unique([str(entry.question_id) for entry in entries], path=path, expected=_EXPECTED)
        folder = sources.pictures or Path()
        return Reading(tuple(_question(entry, folder) for entry in entries))

    def rate(self, question: BenchmarkQuestion, answer: str) -> float:
        return textvqa_accuracy(answer, truths=question.truths)

    def figures(self, rated: Sequence[RatedAnswer], *, evaluation: EvaluationSettings) -> list[Figure]:
        return figures_by_kind(rated, metric="VQA accuracy", evaluation=evaluation)

    def find(self, file: AnswerFile, *, questions: Sequence[BenchmarkQuestion]) -> list[FoundAnswer]:
        return find_by_keys(file, questions=questions, keys_of=_keys_of, key_of=_key_of)

    def submit(self, answers: Mapping[str, str], *, questions: Sequence[BenchmarkQuestion], folder: Path) -> list[Path]:
        """The list that the challenge's server (EvalAI) takes."""
        path = folder / "submission.json"
        rows = [{"question_id": int(question.id), "answer": answers[question.id]} for question in questions]
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        return [path]


def _question(entry: _Entry, folder: Path) -> BenchmarkQuestion:
    return BenchmarkQuestion(
        id=str(entry.question_id),
        prompt=asked(entry.question, SHORT_ANSWER),
        picture=folder / f"{entry.image_id}.jpg",
        truths=tuple(entry.answers),
        details={"image_id": entry.image_id, "question": entry.question},
    )


def _keys_of(question: BenchmarkQuestion) -> list[Key]:
    return [(question.id,), (question.details["image_id"], question.details["question"].lower())]


def _key_of(row: Row) -> Key:
    """LLaVA's rows have a picture's id as question_id, and tell its questions apart by the prompt."""
    prompt = str(row.get("prompt", ""))
    if not prompt:
        return id_key(row)
    lines = [line for line in prompt.split("\n") if not line.startswith(_OCR_MARK)]
    return (str(row["question_id"]), lines[0].lower())
