"""The checks on a data set: their names, what holds where they pass, and what a failure leads to.

A check looks at one computed column. Most columns are findings ("no", or a sentence that says what was found), some are
numbers with bounds. Adding a check: a column in columns.py, an entry here. It knows no files and no Great Expectations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import pandas as pd

from mgm_lora.data.structure import FINE
from mgm_lora.errors import SettingsError
from mgm_lora.settings import DataSettings, ValidationSettings

LEAKED_PICTURE = "leaked_picture"


class Consequence(StrEnum):
    """What follows where a sample fails a check."""

    REJECT = "the sample is rejected"
    WARN = "the sample is kept, with a warning"
    STOP = "the run stops"


@dataclass(frozen=True)
class Check:
    """One question asked of every sample; None in the column: it can't be asked of this one."""

    name: str
    """What is wrong where it fails: as in `validation.warn_only`, the rejects and the metrics."""
    sentence: str
    """What holds where it passes."""
    column: str
    consequence: Consequence = Consequence.REJECT
    can_warn: bool = False
    """May its failing samples be kept? Not where a model couldn't be trained on them, or would be scored wrongly."""
    low: float | None = None
    """Smallest number that passes; no bounds: the column holds findings."""
    high: float | None = None
    """Largest number that passes."""
    reason: str = "{value}"
    """How a failing value is told."""

    @property
    def is_numeric(self) -> bool:
        """Does the column hold numbers, not findings?"""
        return self.low is not None or self.high is not None

    def failing(self, table: pd.DataFrame) -> "pd.Series[bool]":
        """Which rows fail."""
        column = table[self.column]
        fails = pd.Series(False, index=table.index)
        if self.low is not None:
            fails |= (column < self.low).fillna(False).astype(bool)
        if self.high is not None:
            fails |= (column > self.high).fillna(False).astype(bool)
        return fails if self.is_numeric else column.notna() & (column != FINE)


def checks_for(data: DataSettings, *, validation: ValidationSettings) -> list[Check]:
    """All checks, with the settings' bounds and consequences.

    Raises:
        SettingsError: `validation.warn_only` names a check that isn't there, or one whose failures can't be kept.
    """
    checks = _checks(data, validation)
    _judge_names(validation.warn_only, checks=checks)
    return [
        replace(check, consequence=Consequence.WARN) if check.name in validation.warn_only else check
        for check in checks
    ]


def _checks(data: DataSettings, validation: ValidationSettings) -> list[Check]:
    return [
        _finding("duplicate_id", "The id is no other sample's, in any of the files.", can_warn=True),
        _finding("wrong_roles", "Turns alternate from human to gpt, end with gpt, and no answer is empty."),
        _finding(
            "wrong_picture_markers",
            "There are as many <image>, or messages with it, as pictures, and none is in an answer.",
        ),
        _finding("missing_picture", "The picture is a file inside the pictures folder."),
        _finding(
            "wrong_picture_size",
            f"The picture's sides have {validation.min_picture_side} pixels at least, "
            f"and it has {validation.max_picture_pixels} at most.",
        ),
        _finding("animated_picture", "The picture is a still one.", can_warn=True),
        _finding("broken_picture", "The whole picture can be decoded."),
        _finding("blank_picture", "The picture has more than one colour.", can_warn=True),
        _finding("duplicate_picture", "No other file name stands for the same pixels.", can_warn=True),
        replace(
            _finding(LEAKED_PICTURE, "The picture's pixels are in no file that is scored."),
            consequence=Consequence.STOP,
        ),
        _finding("unencodable_text", "The text can be turned into tokens, and some of them are learned."),
        Check(
            name="too_many_tokens",
            sentence=f"There are at most {data.max_length} tokens, the picture's included.",
            column="num_tokens",
            can_warn=True,
            high=data.max_length,
            reason=f"{{value}} tokens, allowed are {data.max_length}",
        ),
        Check(
            name="cut_answer",
            sentence=f"No learned token lies beyond the limit of {data.max_length} tokens.",
            column="num_labels_cut",
            can_warn=True,
            high=0,
            reason=f"{{value}} learned tokens lie beyond the limit of {data.max_length}",
        ),
        Check(
            name="low_label_share",
            sentence=f"At least {validation.min_label_share:g} of the tokens are learned.",
            column="label_share",
            can_warn=True,
            low=validation.min_label_share,
            reason=f"{{value:.4f}} of the tokens are learned, asked for are {validation.min_label_share:g}",
        ),
    ]


def _finding(name: str, sentence: str, *, can_warn: bool = False) -> Check:
    return Check(name=name, sentence=sentence, column=name, can_warn=can_warn)


def _judge_names(names: Sequence[str], *, checks: Sequence[Check]) -> None:
    known = {check.name: check for check in checks}
    allowed = ", ".join(check.name for check in checks if check.can_warn)
    unknown = [name for name in names if name not in known]
    fatal = [name for name in names if name in known and not known[name].can_warn]
    problems = []
    if unknown:
        problems.append(f"no check is called {', '.join(unknown)} (known: {', '.join(known)})")
    if fatal:
        problems.append(f"what fails {', '.join(fatal)} can't be kept: no model can learn from it, or be scored fairly")
    if problems:
        raise SettingsError(f"validation.warn_only: {'; '.join(problems)}. Can be kept: {allowed}")
