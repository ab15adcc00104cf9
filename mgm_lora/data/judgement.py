"""Turns failing rows into rejects, and rejects into the decision whether the run goes on.

It knows tables and checks; it writes nothing.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from mgm_lora.data.checks import LEAKED_PICTURE, Check, Consequence
from mgm_lora.data.structure import FINE

_SHOWN_PAIRS = 10


@dataclass(frozen=True)
class FileSummary:
    """What became of one file's samples."""

    num_samples: int
    num_kept: int
    num_rejects: int
    rejects: Mapping[str, int]
    """Failing samples by check, of those checks that reject (or stop the run); a sample can be in several."""
    warnings: Mapping[str, int]
    """Failing samples by check, of those that only warn."""


@dataclass(frozen=True)
class ValidationSummary:
    """What became of a data set."""

    files: Mapping[str, FileSummary]
    """By `train`, `heldout`, `known`."""
    num_pictures: int
    """Distinct file names that were looked at."""

    def metrics(self) -> dict[str, Any]:
        """The same as plain nested numbers."""
        return asdict(self)


def summarise(tables: Mapping[str, pd.DataFrame], *, checks: Sequence[Check], num_pictures: int) -> ValidationSummary:
    """Counts what fails where."""
    return ValidationSummary(
        files={file: _summarise_file(table, checks_of(table, checks)) for file, table in tables.items()},
        num_pictures=num_pictures,
    )


def checks_of(table: pd.DataFrame, checks: Sequence[Check]) -> list[Check]:
    """The checks that can be asked of a file: leakage is asked of `train` alone."""
    return [check for check in checks if check.column in table.columns]


def rejected_rows(table: pd.DataFrame, *, checks: Sequence[Check]) -> "pd.Series[bool]":
    """Which rows fail a check that doesn't only warn."""
    rejected = pd.Series(False, index=table.index)
    for check in checks_of(table, checks):
        if check.consequence is not Consequence.WARN:
            rejected |= check.failing(table)
    return rejected


def list_rejects(tables: Mapping[str, pd.DataFrame], *, checks: Sequence[Check]) -> pd.DataFrame:
    """One row per rejected sample: file, position in it (from 0), id, checks (names), reasons (what was found)."""
    rows = [row for file, table in tables.items() for row in _rejects_of(file, table, checks)]
    rejects = pd.DataFrame(rows, columns=["file", "position", "id", "checks", "reasons"])
    return rejects.astype({"position": "int64"})


def find_failures(
    tables: Mapping[str, pd.DataFrame], *, summary: ValidationSummary, checks: Sequence[Check], max_reject_share: float
) -> list[str]:
    """Why the run can't go on, a line each; empty where it can."""
    leaks = _describe_leaks(tables["train"])
    kept_checks = [check for check in checks if check.name != LEAKED_PICTURE]
    shares = [
        _describe_share(
            file,
            summary.files[file],
            num_rejects=int(rejected_rows(table, checks=kept_checks).sum()),
            limit=max_reject_share,
        )
        for file, table in tables.items()
    ]
    return [failure for failure in (leaks, *shares) if failure]


def _summarise_file(table: pd.DataFrame, checks: Sequence[Check]) -> FileSummary:
    counts = {check: int(check.failing(table).sum()) for check in checks}
    num_rejects = int(rejected_rows(table, checks=checks).sum())
    return FileSummary(
        num_samples=len(table),
        num_kept=len(table) - num_rejects,
        num_rejects=num_rejects,
        rejects={check.name: count for check, count in counts.items() if check.consequence is not Consequence.WARN},
        warnings={check.name: count for check, count in counts.items() if check.consequence is Consequence.WARN},
    )


def _rejects_of(file: str, table: pd.DataFrame, checks: Sequence[Check]) -> list[dict[str, object]]:
    names = defaultdict(list)
    reasons = defaultdict(list)
    for check in checks_of(table, checks):
        if check.consequence is not Consequence.WARN:
            for row in table.loc[check.failing(table), ["position", check.column]].to_dict("records"):
                names[row["position"]].append(check.name)
                reasons[row["position"]].append(check.reason.format(value=row[check.column]))
    return [
        {
            "file": file,
            "position": position,
            "id": table["id"].iat[position],
            "checks": " ".join(names[position]),
            "reasons": "; ".join(reasons[position]),
        }
        for position in sorted(names)
    ]


def _describe_leaks(train: pd.DataFrame) -> str:
    leaked = train.loc[train[LEAKED_PICTURE].notna() & (train[LEAKED_PICTURE] != FINE), LEAKED_PICTURE]
    pairs = list(dict.fromkeys(leaked))
    if not pairs:
        return ""
    shown = [f"      {pair}" for pair in pairs[:_SHOWN_PAIRS]]
    more = [f"      ... and {len(pairs) - _SHOWN_PAIRS} more"] if len(pairs) > _SHOWN_PAIRS else []
    count = "1 picture" if len(pairs) == 1 else f"{len(pairs)} pictures"
    lead = f"leakage: {count} of train (in {len(leaked)} samples) would be scored too. Take them out of one side:"
    return "\n".join([lead, *shown, *more])


def _describe_share(file: str, summary: FileSummary, *, num_rejects: int, limit: float) -> str:
    share = num_rejects / summary.num_samples
    if share <= limit and num_rejects < summary.num_samples:
        return ""
    counts = sorted(summary.rejects.items(), key=lambda item: -item[1])
    by_reason = ", ".join(f"{name} {count}" for name, count in counts if count and name != LEAKED_PICTURE)
    what = (
        "all samples are rejected, so nothing is left"
        if num_rejects == summary.num_samples
        else f"{share:.1%} of the samples are rejected"
    )
    return f"{file}: {what} ({num_rejects} of {summary.num_samples}; allowed are {limit:.1%}). By reason: {by_reason}"
