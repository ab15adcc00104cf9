"""The `SampleTable`: the samples that passed, one Parquet file per set, and what training and evaluation read from it.

Rows are in the order of the data set's file. It judges nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mgm_lora.data.llava import Turn
from mgm_lora.errors import ArtifactError

KIND = "SampleTable"
_ROWS_AT_ONCE = 16_384


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample that can be learned from or asked."""

    id: str
    pictures: tuple[str, ...]
    """File names, relative to the pictures folder."""
    turns: tuple[Turn, ...]
    """From the human's first to gpt's last."""
    question_type: str
    """Empty where the data set names none."""
    picture_sha256: tuple[str, ...]
    """Of the picture files' bytes."""
    width: int | None
    """Of the first picture, pixels."""
    height: int | None
    num_tokens: int
    """Picture tokens included."""
    num_labels: int
    """Tokens that are learned."""

    @property
    def question(self) -> tuple[Turn, ...]:
        """All but the last answer."""
        return self.turns[:-1]

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.turns[-1].text


def write_samples(samples: Iterable[Sample], *, path: Path) -> None:
    """Writes a Parquet file, some samples at a time; the same samples give the same bytes."""
    rows = (_to_row(sample) for sample in samples)
    with pq.ParquetWriter(path, _schema()) as writer:
        while group := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(group, schema=_schema()))


def read_samples(path: Path) -> list[Sample]:
    """The samples of a Parquet file, in its order.

    Raises:
        ArtifactError: it is not there, no Parquet, or has other columns.
    """
    if not path.is_file():
        raise ArtifactError(f"no samples at '{path}': run `dvc repro validate`, which makes them")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"'{path}' can't be read as Parquet ({error}): run `dvc repro --force validate`") from error
    if not table.schema.equals(_schema()):
        raise ArtifactError(
            f"'{path}' is no {KIND}: asked for the columns {_schema().names} of their types, found "
            f"{[f'{field.name}: {field.type}' for field in table.schema]}. Run `dvc repro --force validate`"
        )
    return [_to_sample(row) for row in table.to_pylist()]


def _schema() -> pa.Schema:
    turn = pa.struct([("role", pa.string()), ("text", pa.string())])
    return pa.schema(
        [
            ("id", pa.string()),
            ("pictures", pa.list_(pa.string())),
            ("turns", pa.list_(turn)),
            ("question_type", pa.string()),
            ("picture_sha256", pa.list_(pa.string())),
            ("width", pa.int64()),
            ("height", pa.int64()),
            ("num_tokens", pa.int64()),
            ("num_labels", pa.int64()),
        ]
    )


def _to_row(sample: Sample) -> dict[str, object]:
    row = {field.name: getattr(sample, field.name) for field in fields(sample)}
    return row | {"turns": [turn._asdict() for turn in sample.turns]}


def _to_sample(row: dict[str, Any]) -> Sample:
    turns = tuple(Turn(turn["role"], turn["text"]) for turn in row["turns"])
    return Sample(
        **row | {"turns": turns, "pictures": tuple(row["pictures"]), "picture_sha256": tuple(row["picture_sha256"])}
    )
