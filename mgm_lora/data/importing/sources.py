"""What people bring, as rows of named values, read a piece at a time.

The form is told by the file's ending, or by what lies in the folder. It knows no columns by name and opens no picture.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mgm_lora.data.importing.picture_folder import read_picture_folder
from mgm_lora.data.importing.rows import Row
from mgm_lora.data.text_stream import NotJsonError, read_json_list, read_lines, read_text
from mgm_lora.errors import DataError

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of Hugging Face's imagefolder
_DELIMITERS = (",", ";", "\t", "|")
_ROWS_AT_ONCE = 256  # they may hold pictures
_ASKED = (
    "asked for LLaVA's JSON (.json), lines of JSON (.jsonl), CSV (.csv, .tsv), Parquet (.parquet), a folder of pictures with captions or labels,"
    " or a folder that datasets.save_to_disk wrote"
)


@dataclass(frozen=True)
class Source:
    """Something to import."""

    form: str
    """In words."""
    pictures: Path
    """The folder that picture names are relative to, unless people say otherwise."""
    read: Callable[[], Iterator[Row]]
    """From the first row; raises DataError."""


def open_source(path: Path, *, encoding: str) -> Source:
    """Tells the form; raises DataError where it is none that is known, or nothing is there."""
    if path.is_dir():
        return _open_folder(path, encoding=encoding)
    if not path.is_file():
        raise DataError(f"nothing at '{path}': {_ASKED}")
    ending, of_text = path.suffix.lower(), partial(_of_text, path, encoding=encoding)
    if ending == ".json":
        return of_text("JSON", _read_json)
    if ending in (".jsonl", ".ndjson"):
        return of_text("lines of JSON", _read_json_lines)
    if ending in (".csv", ".tsv"):
        return of_text("CSV", _read_csv)
    if ending == ".parquet":
        return Source("Parquet", path.parent, partial(_read_parquet, [path]))
    raise DataError(f"'{path}' ends in {ending or 'nothing'}: {_ASKED}")


def _of_text(path: Path, form: str, read: Callable[..., Iterator[Row]], *, encoding: str) -> Source:
    return Source(form, path.parent, partial(read, path, encoding=encoding))


def _open_folder(path: Path, *, encoding: str) -> Source:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return Source("a folder that datasets.save_to_disk wrote", path, partial(_read_arrow, _arrow_files(path)))
    for name in _METADATA:
        if (path / name).is_file():
            described = open_source(path / name, encoding=encoding)
            return Source(f"a picture folder with {name}", path, described.read)
    parquet = sorted(path.rglob("*.parquet"))
    if parquet:
        return Source(f"a folder with {len(parquet)} Parquet files", path, partial(_read_parquet, parquet))
    return Source("a picture folder", path, partial(read_picture_folder, path, encoding=encoding))


def _read_json(path: Path, *, encoding: str) -> Iterator[Row]:
    try:
        for number, entry in enumerate(read_json_list(read_text(path, encoding=encoding))):
            yield _json_row(f"sample {number}", entry)
    except NotJsonError as error:
        raise DataError(f"'{path}' {error}") from error


def _read_json_lines(path: Path, *, encoding: str) -> Iterator[Row]:
    for number, line in enumerate(read_lines(path, encoding=encoding), start=1):
        if line.strip():
            try:
                yield _json_row(f"line {number}", json.loads(line))
            except (ValueError, RecursionError) as error:
                yield Row(f"line {number}", {}, problem=f"is not JSON: {error}")


def _json_row(place: str, entry: object) -> Row:
    if isinstance(entry, dict):
        return Row(place, entry)
    return Row(place, {}, problem=f"must be an object, found {json.dumps(entry)[:60]}")


def _read_csv(path: Path, *, encoding: str) -> Iterator[Row]:
    lines = read_lines(path, encoding=encoding)
    first = next(lines, "")
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(_chain(first, lines), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) < len(header) or not all(header):
            raise DataError(f"'{path}' must begin with a line of different column names, found {header}")
        for fields in reader:
            place = f"line {reader.line_num}"
            if len(fields) == len(header):
                yield Row(place, dict(zip(header, fields, strict=True)))
            elif fields:
                yield Row(place, {}, problem=f"has {len(fields)} fields, the first line names {len(header)} columns")
    except csv.Error as error:
        raise DataError(f"'{path}', line {reader.line_num}: is not CSV ({error})") from error


def _chain(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def _read_parquet(paths: Sequence[Path]) -> Iterator[Row]:
    start = 0
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                    yield from _arrow_rows(batch, schema=file.schema_arrow, start=start)
                    start += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"'{path}' can't be read as Parquet: {error}") from error


def _arrow_files(folder: Path) -> list[Path]:
    """As `state.json` names them, split after split."""
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            return [path for split in splits for path in _arrow_files(folder / split)]
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / file["filename"] for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{folder}' is not as datasets.save_to_disk writes it: {error!r}") from error


def _read_arrow(paths: Sequence[Path]) -> Iterator[Row]:
    start = 0
    for path in paths:
        try:
            with pa.memory_map(str(path)) as memory, pa.ipc.open_stream(memory) as stream:
                for whole in stream:
                    for offset in range(0, whole.num_rows, _ROWS_AT_ONCE):
                        batch = whole.slice(offset, _ROWS_AT_ONCE)
                        yield from _arrow_rows(batch, schema=stream.schema, start=start)
                        start += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"'{path}' can't be read as Arrow: {error}") from error


def _arrow_rows(batch: pa.RecordBatch, *, schema: pa.Schema, start: int) -> Iterator[Row]:
    labels = _label_names(schema)
    for number, values in enumerate(batch.to_pylist(), start=start):
        named = {column: _name(values[column], names) for column, names in labels.items() if column in values}
        yield Row(f"row {number}", values | named)


def _label_names(schema: pa.Schema) -> Mapping[str, Sequence[str]]:
    """What the numbers of a label column stand for, as `datasets` notes it in the schema."""
    note = (schema.metadata or {}).get(b"huggingface")
    features: dict[str, Any] = json.loads(note)["info"]["features"] if note else {}
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


def _name(value: int | None, names: Sequence[str]) -> str | None:
    return names[value] if value is not None and 0 <= value < len(names) else None
