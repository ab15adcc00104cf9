"""Which pictures the `<image>` markers of a conversation stand for.

A template puts one marker at the front of each message that holds any, as the published recipe does, whatever their number. Here that one
becomes as many as the message has pictures: where a sample has as many markers as pictures, each marker is one; where it has as many
messages with markers, each such message is one picture, as published. It knows neither templates nor tokens.
"""

from collections.abc import Sequence

from mgm_lora.errors import DataError
from mgm_lora.model.template import PICTURE_MARKER, Piece


def pictures_per_message(turns: Sequence[tuple[str, str]], *, num_pictures: int | None) -> list[int]:
    """Of each human message that holds a marker, in order, the pictures that it shows.

    Args:
        turns: (role, text); a marker in an answer is nothing but text.
        num_pictures: of the sample; none: a message with markers shows one, as published.

    Raises:
        DataError: the markers can't stand for so many pictures.
    """
    counts = [count for count in _counts(turns) if count]
    if num_pictures is None or len(counts) == num_pictures:
        return [1] * len(counts)
    if sum(counts) == num_pictures:
        return counts
    raise DataError(
        f"the messages hold {sum(counts)} {PICTURE_MARKER} ({len(counts)} of them hold any) for {num_pictures} pictures: write one"
        f" {PICTURE_MARKER} per picture"
    )


def count_markers(turns: Sequence[tuple[str, str]]) -> int:
    """Markers in all questions."""
    return sum(_counts(turns))


def show_pictures(pieces: Sequence[Piece], *, counts: Sequence[int]) -> list[Piece]:
    """The pieces of a prompt with as many markers, a line each, as `pictures_per_message` counts."""
    rest = iter(counts)

    def shown(piece: Piece) -> Piece:
        if piece.learned or PICTURE_MARKER not in piece.text:
            return piece
        return piece._replace(text=piece.text.replace(PICTURE_MARKER, "\n".join([PICTURE_MARKER] * next(rest)), 1))

    return [shown(piece) for piece in pieces]


def mark_pictures(question: str, *, num_pictures: int) -> str:
    """A question with a marker per picture at its front, where it holds none itself.

    Raises:
        DataError: nothing is asked.
    """
    if not question.replace(PICTURE_MARKER, "").strip():
        raise DataError(f"the question is empty, found {question!r}: write what you want to know")
    return question if PICTURE_MARKER in question else f"{PICTURE_MARKER}\n" * num_pictures + question


def _counts(turns: Sequence[tuple[str, str]]) -> list[int]:
    return [text.count(PICTURE_MARKER) for role, text in turns if role == "human"]
