"""A table as a workbook of one sheet (.xlsx), which MMBench's server takes and gives. It knows openpyxl, and no benchmark."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from openpyxl import Workbook, load_workbook
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
from openpyxl.utils.exceptions import InvalidFileException

from mgm_lora.evaluation.benchmarks.files import other_file


def write_workbook(path: Path, *, header: Sequence[str], rows: Sequence[Sequence[str | int]]) -> None:
    """Writes a header and rows; control characters, which a workbook can't hold, are left out."""
    workbook = Workbook(write_only=True)
    sheet = workbook.create_sheet("Sheet1")
    for row in [header, *rows]:
        sheet.append([ILLEGAL_CHARACTERS_RE.sub("", cell) if isinstance(cell, str) else cell for cell in row])
    workbook.save(path)


def read_workbook(path: Path, *, expected: str) -> list[dict[str, str]]:
    """The first sheet's rows by its header's names, all as text; raises BenchmarkFileError where the file is no workbook."""
    try:
        workbook = load_workbook(path, read_only=True, data_only=True)
    except (InvalidFileException, zipfile.BadZipFile, KeyError, OSError) as error:
        raise other_file(path, expected=expected, found=f"no workbook that can be read ({error})") from error
    header, *rows = ([*row] for row in workbook.worksheets[0].iter_rows(values_only=True))
    workbook.close()
    names = [str(name) for name in header]
    return [
        {name: "" if value is None else str(value) for name, value in zip(names, row, strict=False)} for row in rows
    ]
