"""What a source is read as."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source."""

    place: str
    """Where it stands, for people: `line 3`."""
    values: Mapping[str, Any]
    problem: str = ""
    """Why it can't be read; empty where it can."""
