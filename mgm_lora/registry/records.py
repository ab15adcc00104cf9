"""What a registration reads: every arm's artifacts, figures and pages, and what they were made from.

All of it before the store is touched. It doesn't judge (gates.py does) and doesn't know MLflow.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mgm_lora.artifacts import Manifest, digest_file, digest_folder, read_manifest
from mgm_lora.errors import ArtifactError
from mgm_lora.registry.datasets import Dataset, read_datasets
from mgm_lora.registry.source_state import SourceState, read_source_state

BASE, MERGED = "base", "merged"
_TRAINED_KINDS = ("TrainedAdapter", "TrainedModel")
_HISTORY_NAME = "history.json"


@dataclass(frozen=True)
class RegistrationSources:
    """Where the pipeline left things."""

    subject: str
    """The training whose adapter is registered: `lora-17`."""
    samples: Path
    """The SampleTable."""
    trained: Path
    """Holds a folder per training."""
    merged: Path
    """The MergedModel, whose manifest holds the proof."""
    scores: Path
    """Holds a folder of Scores per model."""
    metrics: Path
    """Holds `scores/<name>.json`, `train/<name>.json` and `comparison.json`."""
    report: Path
    data_docs: Path
    params: Path
    """The settings file."""
    pipeline: Path
    """`dvc.yaml`; need not be there, and so the lock."""
    lock: Path
    """`dvc.lock`."""


@dataclass(frozen=True)
class ArmRecord:
    """One model of the comparison: its scores, and its training where it had one."""

    name: str
    scores: Path
    scores_manifest: Manifest
    figures: Mapping[str, float]
    """Scores by name, as DVC shows them."""
    trained: Path | None
    trained_manifest: Manifest | None
    history: Mapping[str, Sequence[Mapping[str, float]]]
    """Empty where the arm had no training of its own."""
    cost: Mapping[str, float]
    """What the training took; empty likewise."""

    @property
    def settings(self) -> dict[str, Any]:
        """Every section that made the arm."""
        trained = self.trained_manifest.settings if self.trained_manifest else {}
        return {**self.scores_manifest.settings, **trained}


@dataclass(frozen=True)
class PipelineRecord:
    """One way through the pipeline."""

    sources: RegistrationSources
    arms: Mapping[str, ArmRecord]
    samples_manifest: Manifest
    merged_manifest: Manifest
    datasets: tuple[Dataset, ...]
    comparison: Mapping[str, Any]
    source: SourceState

    @property
    def adapter(self) -> Path:
        """The TrainedAdapter's folder."""
        return self.sources.trained / self.sources.subject

    @property
    def adapter_manifest(self) -> Manifest:
        """Of the TrainedAdapter."""
        manifest = self.arms[self.sources.subject].trained_manifest
        assert manifest is not None
        return manifest

    @property
    def proof(self) -> Mapping[str, Any]:
        """The merge proof's figures."""
        proof: Mapping[str, Any] = self.merged_manifest.details.get("proof", {})
        return proof

    @cached_property
    def adapter_digest(self) -> str:
        """Identity of the adapter."""
        return digest_adapter(self.adapter)

    @cached_property
    def samples_digest(self) -> str:
        """Identity of the SampleTable, as those that were made from it name it."""
        return digest_folder(self.sources.samples)

    @cached_property
    def data_digest(self) -> str:
        """Identity of the samples."""
        return _digest({dataset.name: dataset.digest for dataset in self.datasets})

    @cached_property
    def parents(self) -> dict[str, str]:
        """Digests of all that is registered."""
        scores = {f"scores/{name}": digest_folder(arm.scores) for name, arm in self.arms.items()}
        histories = {
            f"trained/{name}": digest_file(arm.trained / _HISTORY_NAME)
            for name, arm in self.arms.items()
            if arm.trained
        }
        report = {"report": digest_file(self.sources.report)}
        return {"adapter": self.adapter_digest, "samples": self.data_digest, **histories, **scores, **report}

    @property
    def identity(self) -> str:
        """The same for the same results, whenever they were made."""
        return _digest(self.parents)


def read_pipeline(sources: RegistrationSources, *, arms: Sequence[str]) -> PipelineRecord:
    """Reads all that is registered.

    Args:
        sources: where it lies.
        arms: names of the models with scores; the subject must be among them.

    Raises:
        ArtifactError: something is missing or not whole.
    """
    record = PipelineRecord(
        sources=sources,
        arms={name: _read_arm(name, sources) for name in arms},
        samples_manifest=read_manifest(sources.samples, kind="SampleTable"),
        merged_manifest=read_manifest(sources.merged, kind="MergedModel"),
        datasets=read_datasets(sources.samples),
        comparison=_read_json(sources.metrics / "comparison.json", stage="compare"),
        source=read_source_state(sources.lock),
    )
    for path in (sources.report, sources.data_docs):
        if not path.exists():
            raise ArtifactError(f"no '{path}' to register: run `dvc repro`")
    return record


def digest_adapter(folder: Path) -> str:
    """Identity of a TrainedAdapter: its weights, what scales them and the base below; not which run made it."""
    manifest = read_manifest(folder, kind="TrainedAdapter")
    weights = digest_folder(folder, pattern="*.safetensors")
    return _digest([weights, manifest.settings.get("arm"), manifest.base.get("digest")])


def _read_arm(name: str, sources: RegistrationSources) -> ArmRecord:
    scores = sources.scores / name
    trained = sources.trained / name
    manifest = read_manifest(scores, kind="Scores")
    figures = _read_json(sources.metrics / "scores" / f"{name}.json", stage="evaluate")
    if name in (BASE, MERGED):
        return ArmRecord(name, scores, manifest, figures, None, None, {}, {})
    return ArmRecord(
        name=name,
        scores=scores,
        scores_manifest=manifest,
        figures=figures,
        trained=trained,
        trained_manifest=read_manifest(trained, kind=_TRAINED_KINDS),
        history=_read_json(trained / _HISTORY_NAME, stage=f"train@{name}"),
        cost=_read_json(sources.metrics / "train" / f"{name}.json", stage=f"train@{name}"),
    )


def _read_json(path: Path, *, stage: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"no figures at '{path}' ({error}): run `dvc repro {stage}`") from error
    if not isinstance(value, dict):
        raise ArtifactError(
            f"'{path}' must hold figures by name, found {type(value).__name__}: run `dvc repro {stage}`"
        )
    return value


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
