"""Sources to import from, and an import into an empty project whose tokens are words."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgm_lora.data.importing.importer import Imported, ImportRequest, Places, import_data
from mgm_lora.data.tokens import TokenCounts
from mgm_lora.settings import DataSettings, ValidationSettings


def _count_words(turns: Any) -> TokenCounts:
    num_words = sum(len(text.split()) for _, text in turns)
    num_labels = sum(len(text.split()) for role, text in turns if role == "gpt")
    return TokenCounts(num_words, num_labels, num_labels, problem="")


class Project:
    """A folder with pictures to import beside an empty data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "source"
        self.source.mkdir()
        self.places = Places(folder / "data", data_docs=folder / "reports/docs", contact_sheet=folder / "reports/a.png")

    def picture(self, name: str, *, seed: int | None = None, folder: Path | None = None) -> str:
        path = (folder or self.source) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.png(hash(name) % 2**32 if seed is None else seed))
        return name

    @staticmethod
    def png(seed: int) -> bytes:
        colours = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(colours).save(buffer, format="PNG")
        return buffer.getvalue()

    def csv(self, *lines: str, header: str = "image,question,answer", name: str = "a.csv") -> Path:
        return self.text(name, "\n".join([header, *lines]) + "\n")

    def text(self, name: str, text: str) -> Path:
        (self.source / name).parent.mkdir(parents=True, exist_ok=True)
        (self.source / name).write_text(text, encoding="utf-8")
        return self.source / name

    def run(self, source: Path, *, rules: dict[str, Any] | None = None, name: str = "own", **options: Any) -> Imported:
        """Half is held out, unless said otherwise, and nothing only warns."""
        values: dict[str, Any] = {
            "max_reject_share": 0.9,
            "min_picture_side": 8,
            "max_picture_pixels": 10_000,
            "min_label_share": 0.0,
            "warn_only": (),
            "num_workers": 2,
        }
        data = DataSettings(pictures=Path("p"), train=Path("t"), heldout=Path("h"), known=Path("k"), max_length=60)
        return import_data(
            ImportRequest(source, name=name, **{"heldout_share": 0.5} | options),
            places=self.places,
            data=data,
            validation=ValidationSettings(**values | (rules or {})),
            measure=_count_words,
        )

    def entries(self, file: str | None = None, *, name: str = "own") -> list[dict[str, Any]]:
        """What was written, in the source's order."""
        files = [file] if file else ["train", "heldout"]
        read = [json.loads(self.places.file(name, one).read_text(encoding="utf-8")) for one in files]
        return sorted((entry for entries in read for entry in entries), key=lambda entry: entry["id"])

    def files(self) -> list[str]:
        """All that lies in the data folder."""
        data = self.places.data
        return sorted(str(path.relative_to(data)) for path in data.rglob("*") if path.is_file() or path.is_symlink())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def two_pictures(project: Project) -> Callable[[], Path]:
    """A sound source."""

    def make() -> Path:
        return project.csv(*(f"{project.picture(name)},what?,{name[0]}" for name in ("a.png", "b.png")))

    return make
