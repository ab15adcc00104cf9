"""Asks a model a benchmark's questions, and keeps every answer the moment it comes: a killed run goes on where it was.

The journal is a file of lines; what a kill left of a line is cut off. Answers are greedy and don't depend on their batch, so those of a run that
was cut, or limited, are those of a whole one. It knows neither the benchmark nor which model it asks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgm_lora.errors import PictureError
from mgm_lora.evaluation.benchmarks.door import BenchmarkQuestion
from mgm_lora.evaluation.benchmarks.files import first_of
from mgm_lora.model.answering import Question, encode_questions, stream_answers
from mgm_lora.model.markers import mark_pictures
from mgm_lora.model.processor import MGMProcessor


class AnswerJournal:
    """Answers by question id, on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, str]:
        """What is there; cuts a line off that was not written to its end."""
        if not self._path.is_file():
            return {}
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._path.write_bytes(whole)
        rows = [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
        return {row["id"]: row["answer"] for row in rows}

    def append(self, question_id: str, answer: str) -> None:
        """Writes one answer."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"id": question_id, "answer": answer}, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class PreparedQuestions:
    """Questions as the model is asked them."""

    ids: tuple[str, ...]
    questions: tuple[Question, ...]
    prompts: tuple[list[int], ...]


def prepare_questions(questions: Sequence[BenchmarkQuestion], *, processor: MGMProcessor) -> PreparedQuestions:
    """Checks all that can be wrong with questions before any weight is read.

    Raises:
        PictureError: pictures are not there; the first ones are named.
        DataError: a question is longer than the model takes.
    """
    pictures = dict.fromkeys(question.picture for question in questions)
    missing = [str(path) for path in pictures if not path.is_file()]
    if missing:
        raise PictureError(
            f"{len(missing)} of {len(pictures)} pictures are not there ({first_of(missing)}): is --pictures right?"
        )
    plain = tuple(
        Question(turns=(("human", mark_pictures(question.prompt, num_pictures=1)),), pictures=(question.picture,))
        for question in questions
    )
    prompts = encode_questions(plain, processor=processor)
    return PreparedQuestions(tuple(question.id for question in questions), plain, tuple(prompts))


def ask(
    model: Any,
    *,
    processor: MGMProcessor,
    prepared: PreparedQuestions,
    journal: AnswerJournal,
    batch_size: int,
    max_new_tokens: int,
    label: str,
) -> None:
    """Asks the questions and writes each answer into the journal."""
    for i, answer in stream_answers(
        model,
        processor=processor,
        questions=prepared.questions,
        prompts=prepared.prompts,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        label=label,
    ):
        journal.append(prepared.ids[i], answer)
