import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgm_lora.data import text_stream
from mgm_lora.data.text_stream import NotJsonError, read_json_list, read_lines, read_text
from mgm_lora.errors import DataError

ENTRIES = [{"a": 'x\\u00e9 é \\" ] [ \n', "b": [1, {"c": None}]}, "text", 1234567, -1.5e10, True, None, [], "🙂" * 5]


def _pieces(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_is_the_same_wherever_it_is_cut(size: int, indent: int | None) -> None:
    text = json.dumps(ENTRIES, indent=indent)
    assert list(read_json_list(_pieces(text, size))) == ENTRIES
    assert list(read_json_list(_pieces(json.dumps(ENTRIES, ensure_ascii=False), size))) == ENTRIES


def test_an_empty_list_has_no_entries() -> None:
    assert list(read_json_list(iter([" [", " ] \n"]))) == []


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    "text, told",
    [
        ("", "it is empty"),
        ("[1, 2", "',' or ']' is missing"),
        ("[1 2]", "',' or ']' is missing (line 1)"),
        ('[1,\n{"a": }]', "(line 2)"),
        ('[1,\n\n{"a": "never ends]', "Unterminated string starting at (line 3)"),
        ("[1] 2", "more after the list's end"),
        ("[1,]", "Expecting value (line 1)"),
        ('{"a": 1}', "must hold a list of samples, found an object"),
        ('{"a": 1}\n{"a": 2}', "Name it .jsonl"),
        ("7", "found a number"),
    ],
)
def test_what_is_no_list_is_told_with_its_line(text: str, told: str, size: int) -> None:
    with pytest.raises(NotJsonError) as caught:
        list(read_json_list(_pieces(text, size)))
    assert told in str(caught.value)


def test_a_mistake_at_the_start_is_told_before_the_rest_is_read() -> None:
    read = []

    def pieces() -> Iterator[str]:
        for number in range(1000):
            read.append(number)
            yield "[{]" if number == 0 else " " * 100

    with pytest.raises(NotJsonError):
        list(read_json_list(pieces()))
    assert len(read) < 20


@pytest.mark.parametrize("offset", [0, 5, text_stream._CHUNK - 1, text_stream._CHUNK, text_stream._CHUNK + 3])
def test_a_byte_that_the_encoding_lacks_is_told_with_its_place(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"x" * offset + b"\xe9\n" + b"x" * 10)
    with pytest.raises(DataError, match=rf"is not UTF-8 text \(byte {offset}\)"):
        list(read_text(path))
    assert "é" in "".join(read_text(path, encoding="cp1252"))


def test_a_letter_across_two_chunks_is_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "x" * (text_stream._CHUNK - 1) + "🙂é"
    path.write_text(text, encoding="utf-8-sig")
    assert "".join(read_text(path)) == text
    path.write_bytes(text.encode()[:-1])
    with pytest.raises(DataError, match=rf"byte {len(text.encode()) - 2}"):
        list(read_text(path))


def test_an_encoding_that_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match="no encoding is called 'klingon'"):
        list(read_text(tmp_path / "a.txt", encoding="klingon"))


def test_lines_keep_their_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n\ntwo\x0bstill two\nthree")
    assert list(read_lines(tmp_path / "a.txt")) == ["one\r\n", "\n", "two\x0bstill two\n", "three"]
