"""From the rows of a request to questions: every row is checked before any is answered, and told by its number. It knows no server."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mgm_lora.errors import DataError, RefusedError
from mgm_lora.model.answering import Question, encode_questions
from mgm_lora.model.markers import mark_pictures
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.serving.columns import PICTURE_COLUMN, QUESTION_COLUMN
from mgm_lora.serving.limits import ServingLimits, variable
from mgm_lora.serving.picture_sources import decode_picture, picture_bytes
from mgm_lora.serving.refusals import TOO_LARGE, UNUSABLE


@dataclass(frozen=True)
class Row:
    """A question, and its picture's file undecoded; none: it is about no picture."""

    question: str
    picture: bytes | None


def read_rows(table: pd.DataFrame, *, limits: ServingLimits) -> list[Row]:
    """The rows of a table with the columns `picture` and `question`; fetches and reads pictures.

    Raises:
        RefusedError: there are too many, or one is no question or has no picture where it says.
    """
    if len(table) > limits.max_rows:
        raise RefusedError(
            f"{len(table)} rows, allowed are {limits.max_rows} in a request ({variable('max_rows')}): ask in parts",
            status=TOO_LARGE,
        )
    pictures = table[PICTURE_COLUMN] if PICTURE_COLUMN in table else [None] * len(table)
    rows = []
    for number, (picture, question) in enumerate(zip(pictures, table[QUESTION_COLUMN], strict=True)):
        with _told_by_number(number):
            rows.append(_read_row(picture, question, limits=limits))
    return rows


def make_questions(
    rows: Sequence[Row], *, processor: MGMProcessor, limits: ServingLimits, folder: Path
) -> list[Question]:
    """Questions that the model can be asked; their pictures are decoded into `folder`.

    Raises:
        RefusedError: a question is empty, longer than the model takes, its markers don't fit, or its picture can't be decoded.
    """
    questions = []
    for number, row in enumerate(rows):
        with _told_by_number(number):
            file = folder / f"{number}.ppm"
            pictures = () if row.picture is None else (file,)
            marked = mark_pictures(row.question, num_pictures=len(pictures))
            question = Question(turns=(("human", marked),), pictures=pictures)
            encode_questions([question], processor=processor)
            if row.picture is not None:
                decode_picture(row.picture, file=file, limits=limits)
            questions.append(question)
    return questions


def tokens_to_make(asked: int, *, default: int, limits: ServingLimits) -> int:
    """Of an answer at most; the version's own default is held to the limit in silence, what is asked for is not.

    Raises:
        RefusedError: fewer than one, or more than the limit.
    """
    if asked == default:
        return min(default, limits.max_new_tokens)
    if not 1 <= asked <= limits.max_new_tokens:
        raise RefusedError(
            f"max_new_tokens must be from 1 to {limits.max_new_tokens} ({variable('max_new_tokens')}), found {asked}",
            status=UNUSABLE,
        )
    return asked


def _read_row(picture: object, question: object, *, limits: ServingLimits) -> Row:
    if not isinstance(question, str):
        raise RefusedError(f"asked for a question's text, found {type(question).__name__}", status=UNUSABLE)
    if _is_none(picture):
        return Row(question, None)
    if not isinstance(picture, str | bytes):
        raise RefusedError(f"asked for a picture's base64 or URL, found {type(picture).__name__}", status=UNUSABLE)
    return Row(question, picture_bytes(picture, limits=limits))


def _is_none(value: object) -> bool:
    return value is None or value is pd.NA or value == "" or (isinstance(value, float) and math.isnan(value))


@contextmanager
def _told_by_number(number: int) -> Iterator[None]:
    try:
        yield
    except RefusedError as error:
        raise RefusedError(f"row {number}: {error}", status=error.status) from error
    except DataError as error:
        raise RefusedError(f"row {number}: {error}", status=UNUSABLE) from error
