"""What an import is made of, gathered while its samples pass by: how many, common answers, and some samples to look at.

It keeps no more than it shows.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_NUM_SHOWN = 24
_MOST_ANSWERS = 10_000


@dataclass(frozen=True)
class ShownSample:
    """One of those to look at."""

    file: str
    pictures: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]


@dataclass
class Overview:
    """Grows sample by sample."""

    seed: int
    num_samples: Counter[str] = field(default_factory=Counter)
    """By file."""
    num_by_pictures: Counter[int] = field(default_factory=Counter)
    """Samples by how many pictures they have."""
    answers: Counter[str] = field(default_factory=Counter)
    """How often each last answer comes, of the first 10,000 different ones."""
    has_all_answers: bool = True
    shown: list[ShownSample] = field(default_factory=list)
    """Some, each as likely as any other."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def add(self, file: str, entry: dict[str, Any]) -> None:
        """One sample in LLaVA's form."""
        self.num_samples[file] += 1
        pictures = entry.get("image", ())
        pictures = (pictures,) if isinstance(pictures, str) else tuple(pictures)
        self.num_by_pictures[len(pictures)] += 1
        turns = tuple((turn["from"], turn["value"]) for turn in entry["conversations"])
        self._count_answer(turns[-1][1] if turns else "")
        place = self._random.randrange(self.num_samples.total())
        if len(self.shown) < _NUM_SHOWN:
            self.shown.append(ShownSample(file, pictures, turns))
        elif place < _NUM_SHOWN:
            self.shown[place] = ShownSample(file, pictures, turns)

    def _count_answer(self, answer: str) -> None:
        if answer in self.answers or len(self.answers) < _MOST_ANSWERS:
            self.answers[answer] += 1
        else:
            self.has_all_answers = False
