"""The files of a SampleTable as MLflow's data sets: its pages then show which runs learned from the same samples and were measured on the same."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag

from mgm_lora.artifacts import digest_file

TRAIN, HELDOUT, KNOWN = "train", "heldout", "known"
_MAX_DIGEST = 36  # of what MLflow keeps; the whole one is in the profile


@dataclass(frozen=True)
class Dataset:
    """A file of the SampleTable."""

    name: str
    path: Path
    digest: str
    num_rows: int


def read_datasets(samples: Path, *, names: Sequence[str] = (TRAIN, HELDOUT, KNOWN)) -> tuple[Dataset, ...]:
    """The files of a SampleTable of these names, as far as they are there, by name."""
    paths = [path for name in sorted(names) if (path := samples / f"{name}.parquet").is_file()]
    return tuple(Dataset(path.stem, path, digest_file(path), pq.read_metadata(path).num_rows) for path in paths)


def dataset_inputs(datasets: Sequence[Dataset], *, is_trained: bool) -> list[DatasetInput]:
    """What a run read; one that trained nothing didn't read what is learned from."""
    return [
        DatasetInput(
            to_mlflow(dataset),
            [InputTag("mlflow.data.context", "training" if dataset.name == TRAIN else "evaluation")],
        )
        for dataset in datasets
        if is_trained or dataset.name != TRAIN
    ]


def to_mlflow(dataset: Dataset) -> MlflowDataset:
    """A file as MLflow keeps it."""
    return MlflowDataset(
        name=dataset.name,
        digest=dataset.digest[:_MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": dataset.path.as_posix()}),
        profile=json.dumps({"num_rows": dataset.num_rows, "sha256": dataset.digest}),
    )
