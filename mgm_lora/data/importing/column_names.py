"""Which column of a source holds what: as people say, or guessed by usual names. It reads no rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from mgm_lora.errors import DataError

USUAL = {
    "picture": (
        "image",
        "images",
        "picture",
        "pictures",
        "img",
        "photo",
        "file_name",
        "filename",
        "image_path",
        "path",
    ),
    "question": ("question", "prompt", "instruction", "query"),
    "answer": ("answer", "caption", "label", "text", "response", "output", "description"),
    "type": ("question_type", "type", "category"),
    "id": ("id", "question_id", "sample_id", "uid"),
}
CONVERSATIONS = ("conversations", "messages")


@dataclass(frozen=True)
class GivenColumns:
    """What people said; nothing: it is guessed."""

    pictures: tuple[str, ...] = ()
    """Several columns: several pictures in a sample."""
    question: str | None = None
    answer: str | None = None
    type: str | None = None
    id: str | None = None
    text_only: bool = False
    """There are no pictures."""


@dataclass(frozen=True)
class Columns:
    """What holds what."""

    pictures: tuple[str, ...]
    conversation: str | None = None
    """A list of turns; then there is no question and no answer."""
    question: str | None = None
    """None: every sample is asked the same."""
    answer: str | None = None
    type: str | None = None
    id: str | None = None

    def describe(self) -> str:
        """For people."""
        roles = {
            "pictures": ", ".join(self.pictures),
            "conversation": self.conversation,
            "question": self.question,
            "answer": self.answer,
            "question type": self.type,
            "id": self.id,
        }
        return "; ".join(f"{role}: {column}" for role, column in roles.items() if column)


def choose_columns(names: Sequence[str], *, given: GivenColumns, source: str) -> Columns:
    """Of the names that a source has.

    Raises:
        DataError: a given column isn't there, or there is none for the pictures or the answer (all problems at once).
    """
    asked = [*given.pictures, *(name for name in (given.question, given.answer, given.type, given.id) if name)]
    problems = [f"there is no column {name!r}" for name in asked if name not in names]
    conversation = None if given.question or given.answer else _find(CONVERSATIONS, names)
    pictures = () if given.text_only else given.pictures or _guess_pictures(names, is_llava=conversation is not None)
    answer = None if conversation else given.answer or _find(USUAL["answer"], names)
    if not pictures and not given.text_only:
        problems.append(
            f"none is usual for pictures ({', '.join(USUAL['picture'])}): name it with --picture-column, or say --text-only"
        )
    if not conversation and not answer:
        problems.append(f"none is usual for answers ({', '.join(USUAL['answer'])}): name it with --answer-column")
    if problems:
        raise DataError(f"{source} has the columns {', '.join(names)}, but " + "; and ".join(problems))
    return Columns(
        pictures=pictures,
        conversation=conversation,
        question=None if conversation else given.question or _find(USUAL["question"], names),
        answer=answer,
        type=given.type or _find(USUAL["type"], names),
        id=given.id or _find(USUAL["id"], names),
    )


def _guess_pictures(names: Sequence[str], *, is_llava: bool) -> tuple[str, ...]:
    found = _find(USUAL["picture"], names)
    if found is not None:
        return (found,)
    return ("image",) if is_llava else ()  # LLaVA's form leaves the key out where a sample has no picture


def _find(usual: Sequence[str], names: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in usual if name in lower), None)
