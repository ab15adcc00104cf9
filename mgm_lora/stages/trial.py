"""A model asked today's held-out questions, and those on what the base knew, for a promotion: its answers, and how long one takes.

Today's questions are those of the SampleTable; it must be of the data that is there. What a model has learned from can't be asked of it fairly, nor
of its rival: such questions are left out, and counted.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mgm_lora.artifacts import digest_file, read_manifest
from mgm_lora.data.table import Sample
from mgm_lora.errors import ArtifactError, DataError
from mgm_lora.evaluation.predictions import Prediction, SetName, make_predictions
from mgm_lora.evaluation.scoring import read_table
from mgm_lora.model.answering import Question, answer_questions
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.settings import DataSettings, EvaluationSettings
from mgm_lora.stages import paths

Questions = Mapping[SetName, Sequence[Sample]]
_NOT_TAKEN = (0.0, 0)
"""No text loss: a promotion doesn't ask for it."""


@dataclass(frozen=True)
class TodaysQuestions:
    """What is asked."""

    sets: Questions
    num_left_out: int
    """Held-out questions about pictures that one of the models has learned from."""


def read_questions(data: DataSettings, *, learned: frozenset[str]) -> TodaysQuestions:
    """Reads the SampleTable.

    Args:
        data: where the data lies.
        learned: SHA-256 of the pictures' files that any of the models has learned from.

    Raises:
        ArtifactError: there is no SampleTable, or it is not of the data that is there.
        DataError: no question is left.
    """
    _check_is_of_today(data)
    table = read_table(paths.SAMPLES)
    fair = [sample for sample in table["heldout"] if learned.isdisjoint(sample.picture_sha256)]
    num_left_out = len(table["heldout"]) - len(fair)
    if not fair:
        raise DataError(
            f"all {num_left_out} held-out questions are about pictures that one of the models has learned from, so none can be asked fairly: hold"
            " out others (data.heldout), and run `dvc repro`"
        )
    return TodaysQuestions(sets={**table, "heldout": fair}, num_left_out=num_left_out)


def ask(
    model: Any,
    *,
    processor: MGMProcessor,
    questions: Questions,
    data: DataSettings,
    evaluation: EvaluationSettings,
    label: str,
) -> list[Prediction]:
    """A model's answers to all of them."""
    predictions = []
    for set_name, samples in questions.items():
        answers = answer_questions(
            model,
            processor=processor,
            questions=[_question(sample, data.pictures) for sample in samples],
            batch_size=evaluation.batch_size,
            max_new_tokens=evaluation.max_new_tokens,
            label=f"{label}, {set_name}",
        )
        losses = [_NOT_TAKEN] * len(samples)
        predictions += make_predictions(samples, answers=answers, losses=losses, set_name=set_name)
    return predictions


def time_answers(
    model: Any,
    *,
    processor: MGMProcessor,
    samples: Sequence[Sample],
    data: DataSettings,
    evaluation: EvaluationSettings,
) -> float:
    """Median seconds of an answer, each question asked alone; the first one once more before, since it finds nothing warm."""
    seconds = []
    for sample in (samples[0], *samples):
        started = time.perf_counter()
        answer_questions(
            model,
            processor=processor,
            questions=[_question(sample, data.pictures)],
            batch_size=1,
            max_new_tokens=evaluation.max_new_tokens,
        )
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def _check_is_of_today(data: DataSettings) -> None:
    recorded = read_manifest(paths.SAMPLES, kind="SampleTable").parents
    files = {"heldout": data.heldout} | ({} if data.known is None else {"known": data.known})
    for name, path in files.items():
        if not path.is_file():
            raise ArtifactError(f"no '{path}' (data.{name}), which today's questions are in: run `dvc pull`")
        if digest_file(path) != recorded.get(name):
            raise ArtifactError(
                f"'{paths.SAMPLES}' was made of another '{path}' than the one that is there: run `dvc repro validate`, so that today's questions are"
                " asked"
            )


def _question(sample: Sample, pictures: Path) -> Question:
    return Question(turns=tuple(sample.question), pictures=tuple(pictures / name for name in sample.pictures))
