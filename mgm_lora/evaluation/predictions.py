"""What an arm answered: one row per question, kept as Parquet, so that every figure can be traced to the answers behind
it.

It doesn't know how answers are made or what they are worth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from mgm_lora.data.table import Sample
from mgm_lora.errors import ArtifactError, DataError
from mgm_lora.evaluation.metrics import Metric, exact

SetName = Literal["heldout", "known"]
SET_NAMES: tuple[SetName, ...] = get_args(SetName)
_PICTURE_TOKEN = "<image>"
_UNTYPED = "untyped"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("set", pa.string()),
        ("question_type", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("prediction", pa.string()),
        ("score", pa.float64()),
        ("loss", pa.float64()),
        ("num_loss_tokens", pa.int64()),
        ("pictures", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class Prediction:
    """One question, its true answer and an arm's answer."""

    id: str
    set: SetName
    question_type: str
    question: str
    answer: str
    """The truth."""
    prediction: str
    score: float
    """What the answer is worth, 0 to 1."""
    loss: float
    """Sum of the cross-entropies of the true answers' tokens, in nats: how surprised the model is by the truth."""
    num_loss_tokens: int
    """Those tokens; 0 where the loss was not taken."""
    pictures: tuple[str, ...]
    """Relative to the pictures' folder."""

    @property
    def correct(self) -> bool:
        """Whether it counts as right where only right and wrong are told apart: worth at least a half."""
        return self.score >= 0.5


def make_predictions(
    samples: Sequence[Sample],
    *,
    answers: Sequence[str],
    losses: Sequence[tuple[float, int]],
    set_name: SetName,
    metric: Metric = exact,
) -> list[Prediction]:
    """Joins samples with an arm's answers and its text loss on the true ones (sum, tokens), given in the same order.

    Args:
        metric: what an answer is worth.

    Raises:
        DataError: there are more or fewer answers or losses than samples.
    """
    if not len(samples) == len(answers) == len(losses):
        raise DataError(
            f"'{set_name}' has {len(samples)} samples, but {len(answers)} answers and {len(losses)} losses were given: give one each"
        )
    return [
        Prediction(
            id=sample.id,
            set=set_name,
            question_type=sample.question_type,
            question=question_text(sample),
            answer=sample.answer,
            prediction=answer,
            score=metric(answer, [sample.answer]),
            loss=loss,
            num_loss_tokens=num_loss_tokens,
            pictures=tuple(sample.pictures),
        )
        for sample, answer, (loss, num_loss_tokens) in zip(samples, answers, losses, strict=True)
    ]


def question_text(sample: Sample) -> str:
    """A sample's question as people read it: no picture marks; of a longer conversation every turn with its role."""
    turns = [(turn.role, turn.text.replace(_PICTURE_TOKEN, "").strip()) for turn in sample.question]
    if len(turns) == 1:
        return turns[0][1]
    return "\n".join(f"{role}: {text}" for role, text in turns)


def type_name(prediction: Prediction) -> str:
    """A prediction's question type; `untyped` where the data names none."""
    return prediction.question_type or _UNTYPED


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Writes predictions as Parquet."""
    rows = [asdict(prediction) | {"pictures": list(prediction.pictures)} for prediction in predictions]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path)


def read_predictions(path: Path) -> list[Prediction]:
    """Reads what `write_predictions` wrote.

    Raises:
        ArtifactError: the file is missing, no Parquet, or has other columns.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"no predictions at '{path}': {error}. Run the stage `evaluate` that makes them") from error
    expected = [field.name for field in fields(Prediction)]
    if table.column_names != expected:
        raise ArtifactError(
            f"'{path}' has columns {table.column_names}, expected {expected}: run the stage `evaluate` that makes it"
        )
    return [Prediction(**(row | {"pictures": tuple(row["pictures"])})) for row in table.to_pylist()]


def of_set(predictions: Sequence[Prediction], set_name: SetName) -> list[Prediction]:
    """The predictions of one set, sorted by id: figures must not depend on the order of answering."""
    return sorted((item for item in predictions if item.set == set_name), key=lambda item: item.id)


def check_same_samples(predictions: Sequence[Prediction], *, truth: Mapping[SetName, Sequence[Sample]]) -> None:
    """Checks that the predictions are for exactly the samples of the truth: same ids, same true answers.

    Raises:
        DataError: naming the set, how many samples are missing, unknown, doubled or changed, and the first of them.
    """
    problems: list[str] = []
    for name in SET_NAMES:
        problems += _problems(of_set(predictions, name), truth.get(name, ()), name)
    if problems:
        raise DataError(
            "the predictions are for other samples than the truth's: "
            + "; ".join(problems)
            + ". Answer the questions of this SampleTable again (`dvc repro`)"
        )


def _problems(predictions: Sequence[Prediction], samples: Sequence[Sample], set_name: str) -> list[str]:
    truth = {sample.id: sample.answer for sample in samples}
    answered = {prediction.id: prediction.answer for prediction in predictions}
    findings = {
        "not answered": [name for name in truth if name not in answered],
        "answered but not in the truth": [name for name in answered if name not in truth],
        "with another true answer": [name for name in answered if name in truth and answered[name] != truth[name]],
    }
    if len(answered) < len(predictions):
        ids = [prediction.id for prediction in predictions]
        findings["answered twice"] = sorted({name for name in answered if ids.count(name) > 1})
    return [f"{len(ids)} {what} in '{set_name}' ({', '.join(ids[:3])})" for what, ids in findings.items() if ids]
