"""Reads a sheet by the standard's own words: cells in order, text in `is/t`, numbers in `v`."""

import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def read_workbook(path: Path) -> list[list[str | int]]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for name in archive.namelist():
            ET.fromstring(archive.read(name))  # every part is XML
        sheet = ET.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    return [[_value(cell) for cell in row] for row in sheet.iter(f"{_MAIN}row")]


def _value(cell: ET.Element) -> str | int:
    if cell.get("t") == "inlineStr":
        return cell.findtext(f"{_MAIN}is/{_MAIN}t") or ""
    return int(cell.findtext(f"{_MAIN}v") or "")
