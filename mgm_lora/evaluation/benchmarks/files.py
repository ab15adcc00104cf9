"""Reads official files, and says of one that is of another version or shape what was expected and what was found. It knows no benchmark's fields."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mgm_lora.data.text_stream import read_text
from mgm_lora.errors import BenchmarkFileError

_Entry = TypeVar("_Entry", bound=BaseModel)
_NUM_SHOWN = 3


def read_json(path: Path, *, expected: str) -> Any:
    """A file's JSON.

    Args:
        expected: what the file should be, for the error.

    Raises:
        BenchmarkFileError: it isn't JSON.
    """
    text = _text(path, expected=expected)
    try:
        return json.loads(text)
    except ValueError as error:
        raise other_file(path, expected=expected, found=f"no JSON ({error})") from error


def read_json_lines(path: Path, *, expected: str) -> list[dict[str, Any]]:
    """The objects of a file with one a line; raises BenchmarkFileError where a line isn't one."""
    rows = []
    for number, line in read_lines(path, expected=expected):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise other_file(path, expected=expected, found=f"line {number} that is no JSON ({error})") from error
        if not isinstance(row, dict):
            raise other_file(path, expected=expected, found=f"line {number} that holds {describe(row)}")
        rows.append(row)
    return rows


def read_lines(path: Path, *, expected: str) -> list[tuple[int, str]]:
    """The lines of a file that aren't blank, with their numbers."""
    lines = enumerate(_text(path, expected=expected).split("\n"), start=1)
    return [(number, line.rstrip("\r")) for number, line in lines if line.strip()]


def parse_entries(entries: Iterable[tuple[str, Any]], kind: type[_Entry], *, path: Path, expected: str) -> list[_Entry]:
    """Entries with their names for people, parsed; raises BenchmarkFileError with the count of those that aren't of that kind, and the first."""
    parsed, problems, total = [], [], 0
    for name, entry in entries:
        total += 1
        try:
            parsed.append(kind.model_validate(entry))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            problems.append(f"{name}: {place + ': ' if place else ''}{first['msg']}")
    if problems:
        shown = "; ".join(problems[:_NUM_SHOWN])
        raise other_file(path, expected=expected, found=f"{len(problems)} of {total} entries of another form ({shown})")
    if not parsed:
        raise other_file(path, expected=expected, found="no entry")
    return parsed


def check_unique(ids: Sequence[str], *, path: Path, expected: str) -> None:
    """Raises BenchmarkFileError where an id is there twice."""
    doubled = [name for name, count in Counter(ids).items() if count > 1]
    if doubled:
        raise other_file(path, expected=expected, found=f"{len(doubled)} ids more than once ({first_of(doubled)})")


def single_file(paths: Sequence[Path], *, expected: str) -> Path:
    """The only one of the files; raises BenchmarkFileError where there are more."""
    if len(paths) != 1:
        raise BenchmarkFileError(f"--questions: expected one file, {expected}; found {len(paths)}")
    return paths[0]


def other_file(path: Path, *, expected: str, found: str) -> BenchmarkFileError:
    """The error of a file that is not what it should be."""
    return BenchmarkFileError(f"'{path}': expected {expected}; found {found}. Is it the official file, and whole?")


def describe(value: object) -> str:
    """What a JSON value is, for people."""
    if isinstance(value, dict):
        return f"an object of {', '.join(map(repr, list(value)[:6]))}" if value else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return {str: "text", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def first_of(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:_NUM_SHOWN]) + (", ..." if len(names) > _NUM_SHOWN else "")


def _text(path: Path, *, expected: str) -> str:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "nothing"
        raise BenchmarkFileError(f"'{path}': expected {expected}; found {what} there")
    return "".join(read_text(path))
