"""Turns conversation files and pictures into the `SampleTable`, the rejects, and Data Docs that show why.

What is wrong with a sample rejects it, with the reason; a leaked picture or too many rejects stop the run. The Data
Docs and the rejects are written in either case, the table only where the run goes on. It knows no model: how many
tokens a sample takes is asked of the caller.
"""

import hashlib
import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mgm_lora.artifacts import Manifest, digest_file, new_artifact, write_manifest
from mgm_lora.data.checkpoint import run_checkpoint
from mgm_lora.data.checks import checks_for
from mgm_lora.data.columns import Files, compute_columns, picture_names
from mgm_lora.data.judgement import (
    ValidationSummary,
    find_failures,
    list_rejects,
    rejected_rows,
    summarise,
)
from mgm_lora.data.llava import Conversation, read_conversations
from mgm_lora.data.picture_scan import scan_pictures
from mgm_lora.data.table import KIND, Sample, write_samples
from mgm_lora.data.tokens import MeasureTokens, measure_tokens
from mgm_lora.errors import DataError, ValidationFailedError
from mgm_lora.settings import DataSettings, ValidationSettings

logger = logging.getLogger(__name__)


def validate(
    data: DataSettings,
    *,
    validation: ValidationSettings,
    measure: MeasureTokens,
    destination: Path,
    data_docs: Path,
) -> ValidationSummary:
    """Checks a data set and writes `destination` (a SampleTable) and `data_docs` (index.html and rejects.csv in it).

    Raises:
        SettingsError: `validation.warn_only` names a check that there isn't.
        DataError: a file, or the pictures folder, is missing or not in LLaVA's form.
        ValidationFailedError: leakage, or too many rejects; `destination` isn't written then.
        StorageError: the output can't be written.
    """
    checks = checks_for(data, validation=validation)
    files = _read_files(data)
    tables, num_pictures = _compute_tables(files, data=data, validation=validation, measure=measure)
    summary = summarise(tables, checks=checks, num_pictures=num_pictures)
    rejects = list_rejects(tables, checks=checks)
    with new_artifact(data_docs) as site:
        run_checkpoint(tables, checks=checks, summary=summary, site=site)
        rejects.to_csv(site / "rejects.csv", index=False)
    _log(summary)
    failures = find_failures(tables, summary=summary, checks=checks, max_reject_share=validation.max_reject_share)
    if failures:
        raise ValidationFailedError(_explain(failures, data_docs=data_docs))
    with new_artifact(destination) as folder:
        for file, table in tables.items():
            write_samples(
                _samples(files[file], table[~rejected_rows(table, checks=checks)]), path=folder / f"{file}.parquet"
            )
        pq.write_table(pa.Table.from_pandas(rejects, preserve_index=False), folder / "rejects.parquet")
        write_manifest(folder, _manifest(data, validation=validation, tables=tables, summary=summary))
    return summary


def _read_files(data: DataSettings) -> dict[str, list[Conversation]]:
    return {file: read_conversations(path) for file, path in _paths(data).items()}


def _paths(data: DataSettings) -> dict[str, Path]:
    paths = {"train": data.train, "heldout": data.heldout}
    return paths if data.known is None else paths | {"known": data.known}


def _compute_tables(
    files: Files, *, data: DataSettings, validation: ValidationSettings, measure: MeasureTokens
) -> tuple[dict[str, pd.DataFrame], int]:
    names = picture_names(files)
    if names and not data.pictures.is_dir():
        raise DataError(f"no folder at data.pictures '{data.pictures}': is the entry right, and was `dvc pull` run?")
    facts = scan_pictures(
        names,
        folder=data.pictures,
        min_side=validation.min_picture_side,
        max_pixels=validation.max_picture_pixels,
        num_workers=validation.num_workers,
    )
    counts = measure_tokens(files, measure=measure)
    return compute_columns(files, facts=facts, counts=counts), len(facts)


def _log(summary: ValidationSummary) -> None:
    for file, found in summary.files.items():
        logger.info("%s: %d of %d samples kept", file, found.num_kept, found.num_samples)
        for name, count in found.rejects.items():
            if count:
                logger.warning("%s: %d samples rejected by %s", file, count, name)
        for name, count in found.warnings.items():
            if count:
                logger.warning("%s: %d samples fail %s and are kept (validation.warn_only)", file, count, name)


def _explain(failures: Sequence[str], *, data_docs: Path) -> str:
    look = f"Every rejected sample, with its reasons: '{data_docs}/rejects.csv'. The pages: '{data_docs}/index.html'"
    return "\n".join(["the data can't be used:", *(f"  - {failure}" for failure in failures), look])


def _samples(conversations: Sequence[Conversation], table: pd.DataFrame) -> list[Sample]:
    return [_sample(conversations[row["position"]], row) for row in table.to_dict("records")]


def _sample(conversation: Conversation, row: Mapping[Hashable, Any]) -> Sample:
    has_picture = bool(conversation.pictures)
    return Sample(
        id=conversation.id,
        pictures=conversation.pictures,
        turns=conversation.turns,
        question_type=conversation.question_type,
        picture_sha256=(row["picture_sha256"],) if has_picture else (),
        width=int(row["width"]) if has_picture else None,
        height=int(row["height"]) if has_picture else None,
        num_tokens=int(row["num_tokens"]),
        num_labels=int(row["num_labels"]),
    )


def _manifest(
    data: DataSettings,
    *,
    validation: ValidationSettings,
    tables: Mapping[str, pd.DataFrame],
    summary: ValidationSummary,
) -> Manifest:
    parents = {file: digest_file(path) for file, path in _paths(data).items()}
    return Manifest.make(
        KIND,
        settings={"data": data, "validation": validation},
        parents=parents | {"pictures": _digest_pictures(tables)},
        details=summary.metrics(),
    )


def _digest_pictures(tables: Mapping[str, pd.DataFrame]) -> str:
    """Over names and pixels of the pictures that could be decoded, in order of their names."""
    decoded = {
        name: sha256
        for table in tables.values()
        for name, sha256 in table.loc[table["picture_sha256"].notna(), ["picture", "picture_sha256"]].itertuples(
            index=False
        )
    }
    digest = hashlib.sha256()
    for name in sorted(decoded):
        digest.update(f"{name}\0{decoded[name]}\n".encode())
    return digest.hexdigest()
