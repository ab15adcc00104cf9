"""What a benchmark is: its questions as its official files have them, what one answer is worth, its figures, and its submission.

Each benchmark is a file beside this one that fills the `Benchmark` below; `catalogue.py` lists them. It knows no model: answers come as text by
question id, whoever gave them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from mgm_lora.evaluation.benchmarks.figures import Figure
from mgm_lora.settings import EvaluationSettings

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."
"""What LLaVA-1.5 and MGM put, in a line of its own, behind a question (docs/Evaluation.md of LLaVA, mgm/eval of MGM)."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Row = Mapping[str, Any]
"""An entry of a file, as JSON has it."""
Key = tuple[str, ...]
"""What a question is found by."""


@dataclass(frozen=True)
class Sources:
    """The official files, as the user has them."""

    questions: tuple[Path, ...]
    annotations: Path | None
    pictures: Path | None
    split: str
    unpacked: Path
    """Where pictures that lie inside of a file are put."""


@dataclass(frozen=True)
class BenchmarkQuestion:
    """One question, as it is asked and scored."""

    id: str
    prompt: str
    """Without the picture's marker."""
    picture: Path
    truths: tuple[str, ...]
    """Empty where the official file keeps them back."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """By what scores are told apart: `{"answer type": "number"}`."""
    unit: str = ""
    """Questions of one unit are scored, and left out, together; empty: it stands alone."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Letter -> text, where it has lettered options."""
    details: Mapping[str, str] = field(default_factory=dict)
    """What else of the official file finds it again, or goes into the submission."""


@dataclass(frozen=True)
class Reading:
    """What was read."""

    questions: tuple[BenchmarkQuestion, ...]
    """In the files' order."""
    notes: tuple[str, ...] = ()
    """What of the files is not asked or not scored, for people."""
    not_asked: frozenset[str] = frozenset()
    """Ids of the files that no question has; answers to them are passed over."""


@dataclass(frozen=True)
class RatedAnswer:
    """An answer, and what it is worth, 0 to 1."""

    question: BenchmarkQuestion
    answer: str
    score: float


@dataclass(frozen=True)
class AnswerFile:
    """Answers that were made elsewhere, as a file has them."""

    path: Path
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class FoundAnswer:
    """An answer of a file and the question that it is found to be for; none: it is for no question of the benchmark."""

    row: str
    """Which row it was, for people."""
    question_id: str | None
    answer: str


class Benchmark(Protocol):
    """The door of a benchmark."""

    name: ClassVar[str]
    title: ClassVar[str]
    files: ClassVar[str]
    """What --questions names."""
    takes: ClassVar[frozenset[str]]
    """Which of `annotations`, `pictures` and `split` it reads beside the questions."""

    def read(self, sources: Sources) -> Reading:
        """The questions; raises BenchmarkFileError where a file is of another version or shape."""
        ...

    def rate(self, question: BenchmarkQuestion, answer: str) -> float:
        """What one answer is worth, 0 to 1, as the official code has it."""
        ...

    def figures(self, rated: Sequence[RatedAnswer], *, evaluation: EvaluationSettings) -> list[Figure]:
        """All that is told of the answers to all questions."""
        ...

    def find(self, file: AnswerFile, *, questions: Sequence[BenchmarkQuestion]) -> list[FoundAnswer]:
        """Which questions the answers of a file are for; raises BenchmarkFileError where it is of no form known."""
        ...

    def submit(self, answers: Mapping[str, str], *, questions: Sequence[BenchmarkQuestion], folder: Path) -> list[Path]:
        """Writes what the official server or script takes."""
        ...


def asked(*lines: str) -> str:
    """A prompt of lines; empty ones are left out."""
    return "\n".join(line for line in lines if line)


def lettered(options: Mapping[str, str]) -> str:
    """Options as they are asked, a line each."""
    return "\n".join(f"{letter}. {text}" for letter, text in options.items())
