"""A source's row -> a draft of a sample: its turns, and its pictures as names or as the bytes that the row holds.

It changes the form alone: whether turns alternate and pictures are there is for the checks. It opens no picture.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mgm_lora.data.importing.column_names import Columns
from mgm_lora.data.importing.rows import Row
from mgm_lora.data.llava import PICTURE_MARKER, Turn
from mgm_lora.errors import DataError

_ROLES = {"user": "human", "assistant": "gpt"}
_TURN_KEYS = (("from", "value"), ("role", "content"))


class RowError(DataError):
    """A row can't be made a sample."""


@dataclass(frozen=True, slots=True)
class HeldPicture:
    """A picture that the row itself holds."""

    data: bytes
    name: str
    """What the row calls it; may be empty."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A sample whose pictures are where the source has them."""

    source_id: str
    """Empty where the source has none."""
    pictures: tuple[str | HeldPicture, ...]
    turns: tuple[Turn, ...]
    question_type: str


def draft_sample(row: Row, *, columns: Columns, question: str) -> Draft:
    """What the row says; raises RowError.

    Args:
        row: of the source.
        columns: what holds what.
        question: what every sample is asked where no column has questions.
    """
    if row.problem:
        raise RowError(row.problem)
    pictures = tuple(picture for column in columns.pictures for picture in _pictures(row.values.get(column), column))
    return Draft(
        source_id=_text(row.values.get(columns.id) if columns.id else None, columns.id),
        pictures=pictures,
        turns=_turns(row.values, columns=columns, question=question, num_pictures=len(pictures)),
        question_type=_text(row.values.get(columns.type) if columns.type else None, columns.type),
    )


def _pictures(value: object, column: str) -> Iterable[str | HeldPicture]:
    if value is None or value == "" or value != value:  # pandas writes a missing name as NaN
        return
    if isinstance(value, str):
        yield _unicode(value, column)
    elif isinstance(value, bytes):
        yield HeldPicture(value, "")
    elif isinstance(value, list):
        for one in value:
            yield from _pictures(one, column)
    elif isinstance(value, dict) and value.get("bytes") is not None:
        yield HeldPicture(value["bytes"], value.get("path") or "")
    elif isinstance(value, dict) and value.get("path"):
        yield _unicode(value["path"], column)
    else:
        raise RowError(f"{column} must be a file name, a picture, or a list of them, found {_shorten(value)}")


def _turns(values: Mapping[str, Any], *, columns: Columns, question: str, num_pictures: int) -> tuple[Turn, ...]:
    if columns.conversation is not None:
        return _conversation(values.get(columns.conversation), columns.conversation)
    missing = [column for column in (columns.question, columns.answer) if column and column not in values]
    if missing:
        raise RowError(f"{' and '.join(missing)} is missing, found {', '.join(values) or 'nothing'}")
    asked = _text(values[columns.question], columns.question) if columns.question else question
    if PICTURE_MARKER not in asked:
        asked = f"{PICTURE_MARKER}\n" * num_pictures + asked
    return Turn("human", asked), Turn("gpt", _text(values[columns.answer or ""], columns.answer))


def _conversation(value: object, column: str) -> tuple[Turn, ...]:
    if not isinstance(value, list):
        raise RowError(f"{column} must be a list of turns, found {_shorten(value)}")
    return tuple(_turn(turn, f"{column}[{number}]") for number, turn in enumerate(value))


def _turn(value: object, place: str) -> Turn:
    for role, text in _TURN_KEYS:
        if isinstance(value, dict) and isinstance(value.get(role), str) and isinstance(value.get(text), str):
            return Turn(_ROLES.get(value[role], _unicode(value[role], place)), _unicode(value[text], place))
    raise RowError(
        f"{place} must be an object with the texts from and value (or role and content), found {_shorten(value)}"
    )


def _text(value: object, column: str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return _unicode(value, column or "")
    if isinstance(value, bool | int | float):
        return str(value)
    raise RowError(f"{column} must be text, found {_shorten(value)}")


def _unicode(text: str, column: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{column} is no valid Unicode text") from error
    return text


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
