"""Columns that grow row by row and take little memory: findings a byte per row, since nearly all are alike. It knows no checks."""

from array import array

import numpy as np
import pandas as pd
import pyarrow as pa

_CHUNK = 65_536
_MOST_BYTES = 2**7


class FindingColumn:
    """Text that is mostly the same; None for nothing."""

    def __init__(self) -> None:
        self._codes = array("b")
        self._values: dict[str, int] = {}

    def append(self, value: str | None) -> None:
        """Adds a row."""
        code = -1 if value is None else self._values.setdefault(value, len(self._values))
        if code >= _MOST_BYTES and self._codes.typecode == "b":
            self._codes = array("i", self._codes)
        self._codes.append(code)

    def series(self) -> "pd.Series[str]":
        """Categorical."""
        codes = np.frombuffer(self._codes, dtype=self._codes.typecode) if self._codes else np.empty(0, dtype="b")
        return pd.Series(pd.Categorical.from_codes(codes, categories=pd.Index(list(self._values), dtype=object)))


class CountColumn:
    """Whole numbers from 0; None for nothing."""

    def __init__(self) -> None:
        self._numbers = array("i")

    def append(self, value: int | None) -> None:
        """Adds a row."""
        self._numbers.append(-1 if value is None else value)

    def series(self) -> "pd.Series[int]":
        """Of the type Int32."""
        numbers = np.array(self._numbers, dtype=np.int32)
        return pd.Series(pd.arrays.IntegerArray(numbers, numbers < 0))


class TextColumn:
    """Text that differs from row to row, such as ids."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []
        self._last: list[str] = []

    def append(self, value: str) -> None:
        """Adds a row."""
        self._last.append(value)
        if len(self._last) == _CHUNK:
            self._close_chunk()

    def series(self) -> "pd.Series[str]":
        """Of Arrow's text."""
        self._close_chunk()
        return pd.Series(
            pd.array(pa.chunked_array(self._chunks, type=pa.large_string()), dtype=pd.StringDtype("pyarrow"))
        )

    def _close_chunk(self) -> None:
        self._chunks.append(pa.array(self._last, type=pa.large_string()))
        self._last = []
