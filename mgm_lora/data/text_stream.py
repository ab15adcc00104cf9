"""Text and JSON that are read piece by piece, so that a file may be larger than the memory. What can't be read is told with its place.

The one large list of LLaVA's JSON is taken apart with Python's own decoder, entry by entry. It doesn't know what an entry means.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path

from mgm_lora.errors import DataError

_CHUNK = 1 << 20
_LONGEST_ENTRY = 1 << 27
_TOKEN = 32  # an escape or a number that a buffer's end has cut is no longer than this
_BLANKS = " \t\r\n"


class NotJsonError(DataError):
    """The text is not the JSON that was asked for."""


def read_text(path: Path, *, encoding: str = "utf-8") -> Iterator[str]:
    """The file's text in pieces, without a byte order mark.

    Raises:
        DataError: bytes that the encoding doesn't have (the first one's place is told), an encoding that isn't there, or no such file.
    """
    try:
        decoder = codecs.getincrementaldecoder("utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding)()
    except LookupError as error:
        raise DataError(
            f"no encoding is called {encoding!r}: asked for one that Python knows (utf-8, cp1252, ...)"
        ) from error
    try:
        with path.open("rb") as file:
            start = 0
            while data := file.read(_CHUNK):
                yield _decode(decoder, data, start=start, path=path, encoding=encoding)
                start += len(data)
            yield _decode(decoder, b"", start=start, path=path, encoding=encoding)
    except OSError as error:
        raise DataError(f"can't read '{path}': {error.strerror}") from error


def read_lines(path: Path, *, encoding: str = "utf-8") -> Iterator[str]:
    """The file's lines with their ends; raises as `read_text` does."""
    rest = ""
    for piece in read_text(path, encoding=encoding):
        *whole, rest = (rest + piece).split("\n")
        yield from (f"{line}\n" for line in whole)
    if rest:
        yield rest


def read_json_list(pieces: Iterator[str]) -> Iterator[object]:
    """The entries of one JSON list.

    Raises:
        NotJsonError: it is no JSON (the place is told), something else than a list, or holds an entry of more than 128 million characters.
    """
    text = _Buffer(pieces)
    first = text.peek()
    if first != "[":
        raise NotJsonError(_tell_other(text))
    text.take(1)
    if text.peek() == "]":
        text.take(1)
    else:
        separator = ","
        while separator == ",":
            yield text.decode()
            separator = text.peek()
            if separator not in (",", "]"):
                raise NotJsonError(f"is not JSON: ',' or ']' is missing {text.place}")
            text.take(1)
    if text.peek():
        raise NotJsonError(f"is not JSON: there is more after the list's end {text.place}")


def _decode(decoder: codecs.IncrementalDecoder, data: bytes, *, start: int, path: Path, encoding: str) -> str:
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(data, final=not data)
    except UnicodeDecodeError as error:
        raise DataError(
            f"'{path}' is not {encoding.upper()} text (byte {start - pending + error.start}): {error.reason}."
            " Save it as UTF-8, or say what encoding it has"
        ) from error


def _tell_other(text: "_Buffer") -> str:
    if not text.peek():
        return "is not JSON: it is empty"
    value = text.decode()  # is it JSON at all?
    if text.peek():
        return f"is not JSON: there is more after the first value's end {text.place} (lines of JSON? Name it .jsonl)"
    kinds = {dict: "an object", str: "text", bool: "true or false", type(None): "null"}
    return f"must hold a list of samples, found {kinds.get(type(value), 'a number')}"


class _Buffer:
    """Some of the text, and how far it is read."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text, self._position = "", 0
        self._lines_before = 1
        self._decoder = json.JSONDecoder()

    @property
    def place(self) -> str:
        return f"(line {self._lines_before + self._text.count(chr(10), 0, self._position)})"

    def peek(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            while self._position < len(self._text):
                if self._text[self._position] not in _BLANKS:
                    return self._text[self._position]
                self._position += 1
            if not self._more():
                return ""

    def take(self, number: int) -> None:
        self._position += number

    def decode(self) -> object:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _TOKEN
                if not cut or not self._more():
                    self._position = min(error.pos, len(self._text))
                    raise NotJsonError(f"is not JSON: {error.msg} {self.place}") from error
            except (ValueError, RecursionError) as error:
                raise NotJsonError(f"is not JSON: {error} {self.place}") from error
            else:
                # A number may go on behind the buffer's end.
                if end < len(self._text) or isinstance(value, str | dict | list) or not self._more():
                    self._position = end
                    return value

    def _more(self) -> bool:
        """Drops what is read, and reads as much again as is left, so that a long entry isn't tried too often."""
        if len(self._text) - self._position > _LONGEST_ENTRY:
            raise NotJsonError(f"is not JSON: a value doesn't end within {_LONGEST_ENTRY} characters {self.place}")
        self._lines_before += self._text.count("\n", 0, self._position)
        parts = [self._text[self._position :]]
        wanted, got = max(len(parts[0]), 1), 0
        while got < wanted and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            got += len(piece)
        self._text, self._position = "".join(parts), 0
        return got > 0
