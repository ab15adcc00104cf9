"""One row per sample and one column per question that a check asks: all that is known before anything is judged.

Findings are "no", or a sentence that says what was found; None where the question can't be asked (no picture, or one
that wasn't decoded). Samples pass by once and only the columns stay: some 60 bytes a row. It knows no bounds and no consequences.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mgm_lora.data.compact import CountColumn, FindingColumn
from mgm_lora.data.ids import IdColumn, judge_ids
from mgm_lora.data.llava import Conversation
from mgm_lora.data.picture_facts import PictureFacts, Sightings
from mgm_lora.data.structure import FINE, canonical_turns, judge_structure
from mgm_lora.data.tokens import MeasureTokens, TokenCounts

_SHOWN = 3
_PICTURE_FINDINGS = {
    "missing_picture": "missing",
    "wrong_picture_size": "wrong_size",
    "animated_picture": "animated",
    "broken_picture": "broken",
    "blank_picture": "blank",
}
_FINDINGS = ("wrong_roles", "wrong_picture_markers", *_PICTURE_FINDINGS, "duplicate_picture", "unencodable_text")
_FILES = ("train", "heldout", "known")
_COUNTS = ("num_tokens", "num_labels", "num_labels_cut")

Files = Mapping[str, Callable[[], Iterator[Conversation]]]
"""What reads a file's samples from its first, by file (train, heldout, perhaps known)."""


def compute_columns(
    files: Files, *, facts: Mapping[str, PictureFacts], measure: MeasureTokens
) -> dict[str, pd.DataFrame]:
    """The table of every file, rows in the file's order; `leaked_picture` is a column of `train` alone."""
    sightings, ids = Sightings(), {file: IdColumn() for file in files}
    scored_first = sorted(files, key=lambda file: file == "train")  # what is scored is known when train is looked at
    columns = {
        file: _columns(file, files[file](), ids=ids[file], facts=facts, measure=measure, sightings=sightings)
        for file in scored_first
    }
    duplicates = judge_ids(ids)
    return {
        file: _finish({"id": ids[file].series(), "duplicate_id": duplicates[file], **columns[file]}) for file in files
    }


def picture_names(files: Files) -> Iterator[str]:
    """Every picture of every sample."""
    return (name for read in files.values() for conversation in read() for name in conversation.pictures)


def _columns(
    file: str,
    conversations: Iterable[Conversation],
    *,
    ids: IdColumn,
    facts: Mapping[str, PictureFacts],
    measure: MeasureTokens,
    sightings: Sightings,
) -> "dict[str, pd.Series[Any]]":
    """Fills the ids in place."""
    findings = {name: FindingColumn() for name in (*_FINDINGS, *(("leaked_picture",) if file == "train" else ()))}
    counts = {name: CountColumn() for name in _COUNTS}
    with tqdm(desc=f"checking {file}", unit="sample", mininterval=1.0, delay=2.0) as progress:
        for conversation in conversations:
            pictures = [(name, facts[name]) for name in conversation.pictures]
            structure = judge_structure(conversation)
            count = measure(canonical_turns(conversation)) if structure.is_fine else None
            ids.append(conversation.id)
            row = {
                **structure._asdict(),
                **_picture_findings(pictures),
                **_relations(file, pictures, sightings),
                "unencodable_text": _judge_text(count),
            }
            for name, column in findings.items():
                column.append(row[name])
            for name, value in zip(_COUNTS, _numbers(count), strict=True):
                counts[name].append(value)
            progress.update()
    return {name: column.series() for name, column in (findings | counts).items()}


def _finish(columns: "Mapping[str, pd.Series[Any]]") -> pd.DataFrame:
    share = columns["num_labels"].astype("Float64") / columns["num_tokens"].astype("Float64")
    position = pd.Series(np.arange(len(share), dtype=np.int64))
    return pd.DataFrame({"position": position, **columns, "label_share": share}, copy=False)


def _picture_findings(pictures: Sequence[tuple[str, PictureFacts]]) -> dict[str, str | None]:
    return {
        column: _join((name, getattr(fact, attribute)) for name, fact in pictures)
        for column, attribute in _PICTURE_FINDINGS.items()
    }


def _join(findings: Iterable[tuple[str, str | None]]) -> str | None:
    """What was found on a sample's pictures, in one sentence."""
    asked = [(name, finding) for name, finding in findings if finding is not None]
    failing = [f"{name!r}: {finding}" for name, finding in asked if finding != FINE]
    if failing:
        return ", ".join(failing[:_SHOWN]) + (f" and {len(failing) - _SHOWN} more" if len(failing) > _SHOWN else "")
    return FINE if asked else None


def _relations(file: str, pictures: Sequence[tuple[str, PictureFacts]], sightings: Sightings) -> dict[str, str | None]:
    """Who else shows the same. The first name of some pixels stays, later ones are duplicates."""
    duplicates, leaks = [], []
    # Two blank pictures are equal, and tell nothing of each other.
    shown = [
        (os.path.normpath(name), fact.pixels)
        for name, fact in pictures
        if fact.pixels is not None and fact.blank == FINE
    ]
    for name, pixels in shown:
        first = sightings.first_name(file, pixels=pixels, name=name)
        if first != name:
            duplicates.append(f"{name!r} has the same pixels as {first!r}")
        others = sightings.others(file, pixels=pixels) if file == "train" else {}
        if others:
            names = " and ".join(
                f"{other!r} of {scored}"
                for scored, other in sorted(others.items(), key=lambda item: _FILES.index(item[0]))
            )
            leaks.append(f"{name!r} has the same pixels as {names}")
    nothing = FINE if shown else None
    return {
        "duplicate_picture": ", ".join(duplicates) or nothing,
        "leaked_picture": ", ".join(leaks) or nothing,
    }


def _judge_text(count: TokenCounts | None) -> str | None:
    if count is None:
        return None
    return count.problem or (FINE if count.num_labels else "no token of it is learned")


def _numbers(count: TokenCounts | None) -> tuple[int | None, ...]:
    """Those of _COUNTS."""
    if count is None or _judge_text(count) != FINE:
        return (None, None, None)
    return count.num_tokens, count.num_labels, count.num_labels - count.num_labels_kept
