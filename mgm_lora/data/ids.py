"""The ids of a file's samples, and which are another sample's too.

Ids are counted by 8 bytes of their digest; more is looked at of those alone that come twice. It reads no file.
"""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mgm_lora.data.compact import FindingColumn, TextColumn
from mgm_lora.data.structure import FINE

_SHOWN = 3


class IdColumn:
    """Grows row by row."""

    def __init__(self) -> None:
        self._ids, self._digests = TextColumn(), array("Q")

    def append(self, sample_id: str) -> None:
        """Adds a row."""
        self._ids.append(sample_id)
        self._digests.frombytes(hashlib.blake2b(sample_id.encode(), digest_size=8).digest())

    def series(self) -> "pd.Series[str]":
        """The ids."""
        return self._ids.series()

    def digests(self) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
        """8 bytes for each."""
        return np.array(self._digests, dtype=np.uint64)


def judge_ids(columns: Mapping[str, IdColumn]) -> dict[str, "pd.Series[str]"]:
    """By file, a finding for every row. Files are told in the order in which they come here."""
    digests = {file: column.digests() for file, column in columns.items()}
    values, numbers = np.unique(np.concatenate(list(digests.values())), return_counts=True)
    suspects: dict[str, dict[int, str]] = {}
    places: dict[str, list[str]] = defaultdict(list)
    for file, column in columns.items():
        positions = np.flatnonzero(np.isin(digests[file], values[numbers > 1]))
        found = column.series().iloc[positions].tolist() if len(positions) else []
        suspects[file] = dict(zip(positions.tolist(), found, strict=True))
        for position, sample_id in suspects[file].items():
            places[sample_id].append(f"{file}[{position}]")
    return {file: _findings(len(digests[file]), suspects[file], places) for file in columns}


def _findings(num_rows: int, suspects: Mapping[int, str], places: Mapping[str, Sequence[str]]) -> "pd.Series[str]":
    column = FindingColumn()
    for position in range(num_rows):
        suspect = suspects.get(position)
        column.append(FINE if suspect is None else _judge(suspect, places[suspect]))
    return column.series()


def _judge(sample_id: str, places: Sequence[str]) -> str:
    if len(places) == 1:
        return FINE  # another id has the same 8 bytes
    shown = ", ".join(places[:_SHOWN]) + (", ..." if len(places) > _SHOWN else "")
    return f"{sample_id!r} is the id of {len(places)} samples: {shown}"
