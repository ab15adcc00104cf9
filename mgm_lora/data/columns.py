"""One row per sample and one column per question that a check asks: all that is known before anything is judged.

Findings are "no", or a sentence that says what was found; None where the question can't be asked (no picture, or one
that wasn't decoded). It knows no bounds and no consequences.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence

import pandas as pd

from mgm_lora.data.llava import Conversation
from mgm_lora.data.picture_scan import PictureFacts
from mgm_lora.data.structure import FINE, judge_structure
from mgm_lora.data.tokens import TokenCounts

_NUMBERS = {
    "position": "int64",
    "width": "Int64",
    "height": "Int64",
    "num_tokens": "Int64",
    "num_labels": "Int64",
    "num_labels_cut": "Int64",
    "label_share": "Float64",
}
_SHOWN_PLACES = 3

Files = Mapping[str, Sequence[Conversation]]
Row = dict[str, str | int | float | None]


def compute_columns(
    files: Files, *, facts: Mapping[str, PictureFacts], counts: Mapping[str, Sequence[TokenCounts | None]]
) -> dict[str, pd.DataFrame]:
    """The table of every file, rows in the file's order; `leaked_picture` is a column of `train` alone.

    Args:
        files: conversations by file (train, heldout, perhaps known).
        facts: of every picture of a sample that has one picture.
        counts: one entry per conversation.
    """
    places = _places(files)
    tables = {}
    for file, conversations in files.items():
        rows = [
            _row(position, conversation, fact=_fact(conversation, facts), count=count, places=places[conversation.id])
            for position, (conversation, count) in enumerate(zip(conversations, counts[file], strict=True))
        ]
        _add_duplicates_(rows)
        tables[file] = rows
    _add_leaks_(tables)
    return {file: pd.DataFrame(rows).astype(_NUMBERS) for file, rows in tables.items()}


def picture_names(files: Files) -> list[str]:
    """The pictures to look at: those of samples that have one. (Samples with several are rejected unseen.)"""
    return [one.pictures[0] for conversations in files.values() for one in conversations if len(one.pictures) == 1]


def _fact(conversation: Conversation, facts: Mapping[str, PictureFacts]) -> PictureFacts | None:
    return facts[conversation.pictures[0]] if len(conversation.pictures) == 1 else None


def _places(files: Files) -> dict[str, list[str]]:
    places = defaultdict(list)
    for file, conversations in files.items():
        for position, conversation in enumerate(conversations):
            places[conversation.id].append(f"{file}[{position}]")
    return places


def _row(
    position: int,
    conversation: Conversation,
    *,
    fact: PictureFacts | None,
    count: TokenCounts | None,
    places: Sequence[str],
) -> Row:
    return {
        "position": position,
        "id": conversation.id,
        "picture": os.path.normpath(conversation.pictures[0]) if fact else None,
        "duplicate_id": _judge_id(conversation.id, places),
        **judge_structure(conversation)._asdict(),
        **_picture_columns(fact, name=conversation.pictures[0] if fact else ""),
        **_token_columns(count),
    }


def _judge_id(sample_id: str, places: Sequence[str]) -> str:
    if len(places) == 1:
        return FINE
    shown = ", ".join(places[:_SHOWN_PLACES]) + (", ..." if len(places) > _SHOWN_PLACES else "")
    return f"{sample_id!r} is the id of {len(places)} samples: {shown}"


def _picture_columns(fact: PictureFacts | None, *, name: str) -> Row:
    found = {
        "missing_picture": fact.missing if fact else None,
        "wrong_picture_size": fact.wrong_size if fact else None,
        "broken_picture": fact.broken if fact else None,
        "blank_picture": fact.blank if fact else None,
    }
    told: Row = {key: finding if finding in (None, FINE) else f"{name!r}: {finding}" for key, finding in found.items()}
    return {
        **told,
        "picture_sha256": fact.sha256 if fact else None,
        "width": fact.width if fact else None,
        "height": fact.height if fact else None,
    }


def _token_columns(count: TokenCounts | None) -> Row:
    if count is None or count.problem or not count.num_labels:
        problem = None if count is None else count.problem or "no token of it is learned"
        numbers = ("num_tokens", "num_labels", "num_labels_cut", "label_share")
        return {"unencodable_text": problem, **dict.fromkeys(numbers)}
    return {
        "unencodable_text": FINE,
        "num_tokens": count.num_tokens,
        "num_labels": count.num_labels,
        "num_labels_cut": count.num_labels - count.num_labels_kept,
        "label_share": count.num_labels / count.num_tokens,
    }


def _add_duplicates_(rows: Sequence[Row]) -> None:
    """In place: the first name of some pixels stays, later ones are duplicates."""
    first: dict[object, object] = {}
    for row in rows:
        original = first.setdefault(row["picture_sha256"], row["picture"]) if _shows_something(row) else None
        if original is None:
            row["duplicate_picture"] = None
        elif original == row["picture"]:
            row["duplicate_picture"] = FINE
        else:
            row["duplicate_picture"] = f"{row['picture']!r} has the same pixels as {original!r}"


def _add_leaks_(tables: Mapping[str, Sequence[Row]]) -> None:
    """In place: which training pictures are among those that are scored."""
    scored: dict[object, dict[str, object]] = defaultdict(dict)
    for file, rows in tables.items():
        for row in rows:
            if file != "train" and _shows_something(row):
                scored[row["picture_sha256"]].setdefault(file, row["picture"])
    for row in tables["train"]:
        others = scored.get(row["picture_sha256"], {}) if _shows_something(row) else None
        if others is None:
            row["leaked_picture"] = None
        else:
            names = " and ".join(f"{name!r} of {file}" for file, name in others.items())
            row["leaked_picture"] = f"{row['picture']!r} has the same pixels as {names}" if names else FINE


def _shows_something(row: Row) -> bool:
    # Two blank pictures are equal, and tell nothing of each other.
    return row["picture_sha256"] is not None and row["blank_picture"] == FINE
