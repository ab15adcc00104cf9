"""Official files that aren't there, or aren't what they should be: one error, with what was expected and found."""

from pathlib import Path

import pytest

from mgm_lora.errors import BenchmarkFileError
from mgm_lora.evaluation.benchmarks.files import describe, read_json


@pytest.mark.parametrize(
    "content, told",
    [
        (None, "'x.json': expected a list; found nothing there"),
        (
            "{",
            r"'x.json': expected a list; found no JSON \(Expecting property name.*\)\. Is it the official file, and whole\?",
        ),
        ("", r"found no JSON \(Expecting value"),
    ],
)
def test_one_error_says_it(content: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("x.json").write_text(content, encoding="utf-8")
    with pytest.raises(BenchmarkFileError, match=told) as caught:
        read_json(Path("x.json"), expected="a list")
    assert str(caught.value).count("expected") == 1


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkFileError, match="found a folder there"):
        read_json(tmp_path, expected="a list")


def test_values_are_described() -> None:
    assert [describe(value) for value in ({"a": 1}, {}, [1, 2], "x", None, True, 3)] == [
        "an object of 'a'",
        "an empty object",
        "a list of 2",
        "text",
        "null",
        "true or false",
        "a number",
    ]
