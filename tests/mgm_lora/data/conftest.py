"""Small real data sets: pictures that PIL writes, conversation files, and a measure that counts words."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mgm_lora.data.checks import Check, checks_for
from mgm_lora.data.columns import compute_columns, picture_names
from mgm_lora.data.llava import read_conversations
from mgm_lora.data.picture_facts import FactStore
from mgm_lora.data.picture_scan import scan_store
from mgm_lora.data.tokens import TokenCounts
from mgm_lora.data.validation import ValidationSummary, validate
from mgm_lora.settings import DataSettings, ValidationSettings

MAX_LENGTH = 60
PICTURE_TOKENS = 16


def count_words(turns: Sequence[tuple[str, str]]) -> TokenCounts:
    """A word is a token, a picture is 16, every turn has one more to end it; answers are learned, with their ends."""
    learned: list[bool] = []
    for role, text in turns:
        if "\N{REPLACEMENT CHARACTER}" in text:
            return TokenCounts(
                num_tokens=0, num_labels=0, num_labels_kept=0, problem="a letter that no token stands for"
            )
        for word in [*text.split(), "<end>"]:
            learned.extend([role == "gpt"] * (PICTURE_TOKENS if word == "<image>" else 1))
    kept = learned[:MAX_LENGTH]
    return TokenCounts(num_tokens=len(learned), num_labels=sum(learned), num_labels_kept=sum(kept), problem="")


@dataclass
class DataSet:
    """A data set in a folder: six sound training samples and three held-out ones, until something is added."""

    folder: Path
    train: list[Any] = field(default_factory=list)
    heldout: list[Any] = field(default_factory=list)
    known: list[Any] | None = None

    def __post_init__(self) -> None:
        for number in range(6):
            self.train.append(self.sample(f"t{number}", self.picture(f"{number}.png", seed=number)))
        for number in range(3):
            self.heldout.append(self.sample(f"h{number}", self.picture(f"h{number}.png", seed=100 + number)))

    @property
    def pictures(self) -> Path:
        return self.folder / "pictures"

    @property
    def table(self) -> Path:
        return self.folder / "samples"

    @property
    def data_docs(self) -> Path:
        return self.folder / "docs"

    @staticmethod
    def sample(
        sample_id: str, image: Any = None, *, question: str = "", answer: str = "a cat", **more: Any
    ) -> dict[str, Any]:
        """A sample of one round in LLaVA's form."""
        question = question or ("<image>\nWhat is this?" if image else "What is a cat?")
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return {"id": sample_id, **({} if image is None else {"image": image}), "conversations": turns, **more}

    measure = staticmethod(count_words)

    @staticmethod
    def rules(**changes: Any) -> ValidationSettings:
        """Half may be rejected, and nothing only warns."""
        values: dict[str, Any] = {
            "max_reject_share": 0.5,
            "min_picture_side": 8,
            "max_picture_pixels": 10_000,
            "min_label_share": 0.05,
            "warn_only": (),
            "num_workers": 2,
        }
        return ValidationSettings(**values | changes)

    def picture(self, name: str, *, seed: int, size: tuple[int, int] = (24, 16)) -> str:
        """Writes a picture of random colours, and returns its name."""
        colours = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return self.picture_of(name, Image.fromarray(colours))

    def picture_of(self, name: str, picture: Image.Image, **options: Any) -> str:
        path = self.pictures / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, **options)
        return name

    def animation(self, name: str) -> str:
        frames = [Image.effect_noise((24, 16), 50 + 20 * number) for number in range(3)]
        return self.picture_of(name, frames[0], save_all=True, append_images=frames[1:])

    def file(self, name: str, content: bytes) -> str:
        (self.pictures / name).write_bytes(content)
        return name

    def settings(self) -> DataSettings:
        """Writes the conversation files, and says where they are."""
        for name in ("train", "heldout", "known"):
            if getattr(self, name) is not None:
                (self.folder / f"{name}.json").write_text(json.dumps(getattr(self, name)), encoding="utf-8")
        return DataSettings(
            pictures=self.pictures,
            train=self.folder / "train.json",
            heldout=self.folder / "heldout.json",
            known=None if self.known is None else self.folder / "known.json",
            max_length=MAX_LENGTH,
        )

    def tables(self) -> tuple[dict[str, pd.DataFrame], list[Check]]:
        """The computed columns, without Great Expectations, which takes seconds."""
        data, validation = self.settings(), self.rules()
        paths = {"train": data.train, "heldout": data.heldout} | ({"known": data.known} if data.known else {})
        files = {name: partial(read_conversations, path) for name, path in paths.items()}
        facts = FactStore()
        facts.add_names(picture_names(files))
        scan_store(facts, folder=data.pictures, min_side=8, max_pixels=10_000, num_workers=2)
        return compute_columns(files, facts=facts, measure=count_words), checks_for(data, validation=validation)

    def validate(self, **changes: Any) -> ValidationSummary:
        return validate(
            self.settings(),
            validation=self.rules(**changes),
            measure=count_words,
            destination=self.table,
            data_docs=self.data_docs,
        )

    def rejects(self) -> pd.DataFrame:
        return pd.read_csv(self.data_docs / "rejects.csv", dtype={"id": str})


@pytest.fixture
def dataset(tmp_path: Path) -> DataSet:
    """A sound data set to spoil."""
    return DataSet(tmp_path)
