"""The folder of a benchmark's result: every answer, the scores, the submission, and the manifest of what made them. It knows no model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mgm_lora.artifacts import Manifest, new_artifact, write_json, write_manifest
from mgm_lora.errors import BenchmarkFileError
from mgm_lora.evaluation.benchmarks.door import Benchmark, BenchmarkQuestion, Reading
from mgm_lora.evaluation.benchmarks.figures import Figure
from mgm_lora.evaluation.benchmarks.ratings import rate_answers
from mgm_lora.settings import EvaluationSettings

SCORES_NAME = "scores.json"
PREDICTIONS_NAME = "predictions.jsonl"
NO_TRUTHS = "the official files that were given hold no answers: nothing is scored, the submission is for the server"


class BenchmarkScores(BaseModel):
    """What a benchmark says of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str
    model: str
    limit: int | None
    """So many units only were asked; none: all."""
    num_questions: int
    confidence: float
    figures: tuple[Figure, ...]
    """None where the official file has no answers."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """What a result was made of."""

    parents: Mapping[str, str]
    """Digests of the model's folder and of the files read."""
    base: Mapping[str, Any]
    details: Mapping[str, Any]


def limited(reading: Reading, limit: int | None) -> Reading:
    """The questions of the first so many units."""
    if limit is None:
        return reading
    units = dict.fromkeys(question.unit or question.id for question in reading.questions)
    kept = set(list(units)[:limit])
    questions = tuple(question for question in reading.questions if (question.unit or question.id) in kept)
    return Reading(questions, reading.notes, reading.not_asked)


def has_truths(reading: Reading) -> bool:
    """Whether the official files hold the answers; raises BenchmarkFileError where they hold some."""
    num_with = sum(bool(question.truths) for question in reading.questions)
    if num_with not in (0, len(reading.questions)):
        raise BenchmarkFileError(
            f"expected true answers to all of the {len(reading.questions)} questions, or to none; found {num_with}. Is the official file whole?"
        )
    return num_with > 0


def write_results(
    answers: Mapping[str, str],
    *,
    benchmark: Benchmark,
    reading: Reading,
    model: str,
    limit: int | None,
    evaluation: EvaluationSettings,
    provenance: Provenance,
    destination: Path,
) -> BenchmarkScores:
    """Scores answers to all questions and writes the folder; a submission only where all were asked."""
    scored = has_truths(reading)
    rated = rate_answers(benchmark, questions=reading.questions, answers=answers) if scored else []
    scores = BenchmarkScores(
        benchmark=benchmark.name,
        model=model,
        limit=limit,
        num_questions=len(reading.questions),
        confidence=evaluation.confidence,
        figures=tuple(benchmark.figures(rated, evaluation=evaluation) if rated else ()),
        notes=reading.notes if scored else (*reading.notes, NO_TRUTHS),
    )
    worth = {item.question.id: item.score for item in rated}
    with new_artifact(destination) as folder:
        _write_predictions(folder / PREDICTIONS_NAME, reading.questions, answers=answers, worth=worth)
        write_json(folder / SCORES_NAME, scores.model_dump(mode="json"))
        if limit is None:
            benchmark.submit(answers, questions=reading.questions, folder=folder)
        write_manifest(folder, _manifest(scores, evaluation=evaluation, provenance=provenance))
    return scores


def _write_predictions(
    path: Path, questions: Sequence[BenchmarkQuestion], *, answers: Mapping[str, str], worth: Mapping[str, float]
) -> None:
    with path.open("w", encoding="utf-8") as file:
        for question in questions:
            row = {
                "id": question.id,
                "picture": question.picture.name,
                "prompt": question.prompt,
                "truths": question.truths,
                "answer": answers[question.id],
                "score": worth.get(question.id),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _manifest(scores: BenchmarkScores, *, evaluation: EvaluationSettings, provenance: Provenance) -> Manifest:
    return Manifest.make(
        "BenchmarkScores",
        settings={"evaluation": evaluation},
        parents=provenance.parents,
        base=provenance.base,
        details={"benchmark": scores.benchmark, "limit": scores.limit, **provenance.details},
    )
