"""What speaks for a version, in the version itself: how it was made, every answer it was scored by, and the pages about it.

    evidence/report.html, data_docs/, comparison.json        for people
    evidence/scores/                                         the answers to the held-out questions and to those on what the base knew
    evidence/params.yaml, dvc.yaml, dvc.lock                 the settings, the pipeline, and the digests of all that it read
    evidence/samples.json, merged.json                       the manifests of the samples and of the merge proof
    evidence/train_pictures.parquet                          digests of the pictures that were learned from, never the pictures
    evidence/source.json, changed/                           git's commit, and what differed from it

It is written anew when the same adapter is registered again. It doesn't know MLflow.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mgm_lora.artifacts import Manifest, write_json
from mgm_lora.errors import ArtifactError
from mgm_lora.registry.records import PipelineRecord
from mgm_lora.registry.source_state import SourceState

FOLDER = "evidence"
_PICTURES_NAME = "train_pictures.parquet"
_DIGEST_COLUMN = "picture_sha256"


@dataclass(frozen=True)
class Evidence:
    """That of one version, read where it lies."""

    folder: Path

    @property
    def scores(self) -> Path:
        """A Scores artifact."""
        return self.folder / "scores"

    @property
    def changed(self) -> Path:
        """Holds the files that differed from the commit, under their own paths."""
        return self.folder / "changed"

    @property
    def lock(self) -> Path:
        """`dvc.lock`; need not be there."""
        return self.folder / "dvc.lock"

    @cached_property
    def subject(self) -> str:
        """The training that the adapter is of: `lora-17`."""
        return str(self._source["subject"])

    @cached_property
    def source(self) -> SourceState:
        """What it was made from."""
        entries = self._source
        return SourceState(entries["commit"], tuple(entries["changed"]), tuple(entries["removed"]))

    @cached_property
    def params(self) -> dict[str, Any]:
        """The settings file's sections, as they were written."""
        path = self.folder / "params.yaml"
        try:
            return dict(YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")))
        except (OSError, YAMLError, TypeError, ValueError) as error:
            raise _broken(path, error) from error

    @cached_property
    def comparison(self) -> dict[str, Any]:
        """The figures of the comparison that it was part of."""
        return self._json("comparison.json")

    @cached_property
    def samples(self) -> Manifest:
        """The SampleTable's manifest."""
        return Manifest.model_validate(self._json("samples.json"))

    def train_pictures(self) -> frozenset[str]:
        """SHA-256 of the files of all pictures that were learned from."""
        path = self.folder / _PICTURES_NAME
        try:
            return frozenset(pq.read_table(path)[_DIGEST_COLUMN].to_pylist())
        except (OSError, pa.ArrowException) as error:
            raise _broken(path, error) from error

    @cached_property
    def _source(self) -> dict[str, Any]:
        return self._json("source.json")

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise _broken(path, error) from error


def write_evidence(record: PipelineRecord, *, folder: Path) -> None:
    """Fills a folder that is empty or not there."""
    sources = record.sources
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(sources.report, folder / "report.html")
    shutil.copytree(sources.data_docs, folder / "data_docs")
    shutil.copytree(sources.scores / sources.subject, folder / "scores")
    for path in (sources.params, sources.pipeline, sources.lock):
        if path.is_file():
            shutil.copy(path, folder / path.name)
    write_json(folder / "comparison.json", dict(record.comparison))
    _write_manifest(folder / "samples.json", record.samples_manifest)
    _write_manifest(folder / "merged.json", record.merged_manifest)
    _write_train_pictures(sources.samples / "train.parquet", folder / _PICTURES_NAME)
    write_json(folder / "source.json", {"subject": sources.subject, **asdict(record.source)})
    for name in record.source.changed:
        (folder / "changed" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, folder / "changed" / name)


def _write_manifest(path: Path, manifest: Manifest) -> None:
    write_json(path, manifest.model_dump(mode="json"))


def _write_train_pictures(samples: Path, destination: Path) -> None:
    digests = pq.read_table(samples, columns=[_DIGEST_COLUMN])[_DIGEST_COLUMN]
    distinct = pc.unique(pc.list_flatten(digests).drop_null())
    pq.write_table(pa.table({_DIGEST_COLUMN: distinct.sort()}), destination)


def _broken(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"'{path}' is missing in the version, or not whole ({error}): run `dvc repro --force register` on its adapter"
    )
