"""How far a stage is, as a progress artifact with the time that is left. Read from the bars that tqdm draws: a stage that does needs nothing here.

It never makes a stage fail: what can't be shown is left out.
"""

import re
import time
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.showing import Log, artifact_key

_BAR = re.compile(
    r"(?:(?P<what>.*?): +)?\s*(?P<percent>\d+)%\|.*?\| *(?P<done>\d+)/(?P<total>\d+) +\[[\d:]+<(?P<left>[\d:]+|\?)"
)
_SECONDS_BETWEEN = 5.0


@dataclass(frozen=True)
class Bar:
    """One state of a bar."""

    what: str
    percent: float
    done: int
    total: int
    left: str
    """Hours, minutes and seconds, as tqdm writes them; "?" where it doesn't know yet."""

    @classmethod
    def read(cls, line: str) -> "Bar | None":
        """None where the line is no bar."""
        found = _BAR.match(line)
        if found is None:
            return None
        what = (found["what"] or "").strip()
        return cls(what, float(found["percent"]), int(found["done"]), int(found["total"]), found["left"])

    def holds(self, other: "Bar") -> bool:
        """Whether the other one is of a part of what this one is about, as an evaluation within a training that isn't at its end."""
        return self.what == other.what and self.total > other.total and self.percent < 100.0

    def __str__(self) -> str:
        left = "time left not known yet" if self.left == "?" else f"{self.left} left"
        return f"{self.what + ': ' if self.what else ''}{self.done} of {self.total}, {left}"


class ProgressArtifact:
    """Of one stage, in the task run that is going on. Made with the first bar: a stage that draws none has none."""

    def __init__(self, stage: str, *, log: Log) -> None:
        self._stage = stage
        self._log = log
        self._id: UUID | None = None
        self._bar: Bar | None = None
        self._shown = -_SECONDS_BETWEEN

    def take(self, line: str) -> None:
        """A line of the stage."""
        bar = Bar.read(line)
        if bar is None or (self._bar and self._bar.holds(bar)):
            return
        if time.monotonic() - self._shown >= _SECONDS_BETWEEN or bar.percent == 100.0:
            self._bar, self._shown = bar, time.monotonic()
            self._show(bar.percent, f"`{self._stage}` {bar}")

    def end(self, *, seconds: float) -> None:
        """Where the stage ended well."""
        if self._id:
            self._show(100.0, f"`{self._stage}` done in {seconds:.0f} s")

    def _show(self, percent: float, words: str) -> None:
        try:
            if self._id is None:
                key = f"progress-{artifact_key(self._stage)}"
                made = create_progress_artifact(percent, key=key, description=words)
                # a coroutine only where there is an event loop, which here is none
                self._id = made if isinstance(made, UUID) else None
            else:
                update_progress_artifact(self._id, percent, description=words)
        except httpx.HTTPError as error:  # the server is away: the stage goes on without it
            self._log.debug("progress isn't shown: %s", error)
