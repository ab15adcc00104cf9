"""Turns conversation files and pictures into the `SampleTable`, the rejects, and Data Docs that show why.

What is wrong with a sample rejects it, with the reason; a leaked picture or too many rejects stop the run. The Data
Docs and the rejects are written in either case, the table only where the run goes on. It knows no model: how many
tokens a sample takes is asked of the caller.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mgm_lora.artifacts import Manifest, digest_file, new_artifact, write_manifest
from mgm_lora.data.checkpoint import run_checkpoint
from mgm_lora.data.checks import Check, checks_for
from mgm_lora.data.columns import Files, compute_columns, picture_names
from mgm_lora.data.judgement import ValidationSummary, find_failures, list_rejects, rejected_rows, summarise
from mgm_lora.data.llava import Conversation, read_conversations
from mgm_lora.data.picture_facts import FactStore, PictureFacts
from mgm_lora.data.picture_scan import scan_store
from mgm_lora.data.structure import canonical_turns
from mgm_lora.data.table import KIND, Sample, write_samples
from mgm_lora.data.tokens import MeasureTokens
from mgm_lora.errors import DataError, ValidationFailedError
from mgm_lora.settings import DataSettings, ValidationSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examination:
    """What is known of a data set: judged, but without consequences yet."""

    tables: Mapping[str, pd.DataFrame]
    """The columns of every file."""
    facts: FactStore
    """On every picture."""
    checks: Sequence[Check]
    summary: ValidationSummary
    rejects: pd.DataFrame
    """As `list_rejects` tells them."""


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
    examined = examine(data, validation=validation, measure=measure)
    write_data_docs(examined, destination=data_docs)
    _log(examined.summary)
    failures = failures_of(examined, max_reject_share=validation.max_reject_share)
    if failures:
        raise ValidationFailedError(explain_failures(failures, data_docs=data_docs))
    with new_artifact(destination) as folder:
        for file, read in _readers(data).items():
            kept = ~rejected_rows(examined.tables[file], checks=examined.checks)
            write_samples(_samples(read(), examined, file=file, kept=kept), path=folder / f"{file}.parquet")
        rejects = pa.Table.from_pandas(examined.rejects, preserve_index=False)
        pq.write_table(rejects, folder / "rejects.parquet")
        write_manifest(folder, _manifest(data, validation=validation, examined=examined))
    return examined.summary


def examine(
    data: DataSettings, *, validation: ValidationSettings, measure: MeasureTokens, facts: FactStore | None = None
) -> Examination:
    """Looks at pictures and samples, and asks every check; raises SettingsError and DataError as `validate` does.

    Args:
        data: where the data lies.
        validation: the checks' bounds.
        measure: what a sample costs in tokens.
        facts: on every picture, where they are known already.
    """
    checks = checks_for(data, validation=validation)
    files = _readers(data)
    facts = _scan(files, data=data, validation=validation) if facts is None else facts
    tables = compute_columns(files, facts=facts, measure=measure)
    summary = summarise(tables, checks=checks, num_pictures=len(facts))
    return Examination(tables, facts, checks, summary, rejects=list_rejects(tables, checks=checks))


def write_data_docs(examined: Examination, *, destination: Path) -> None:
    """Runs Great Expectations over the columns and writes its pages, and rejects.csv beside them."""
    with new_artifact(destination) as site:
        run_checkpoint(examined.tables, checks=examined.checks, summary=examined.summary, site=site)
        examined.rejects.to_csv(site / "rejects.csv", index=False)


def failures_of(examined: Examination, *, max_reject_share: float) -> list[str]:
    """Why a run can't go on with this data, a line each; empty where it can."""
    return find_failures(
        examined.tables, summary=examined.summary, checks=examined.checks, max_reject_share=max_reject_share
    )


def explain_failures(failures: Sequence[str], *, data_docs: Path) -> str:
    """The failures and where to look, for people."""
    look = f"Every rejected sample, with its reasons: '{data_docs}/rejects.csv'. The pages: '{data_docs}/index.html'"
    return "\n".join(["the data can't be used:", *(f"  - {failure}" for failure in failures), look])


def _readers(data: DataSettings) -> Files:
    return {file: partial(read_conversations, path) for file, path in _paths(data).items()}


def _paths(data: DataSettings) -> dict[str, Path]:
    paths = {"train": data.train, "heldout": data.heldout}
    return paths if data.known is None else paths | {"known": data.known}


def _scan(files: Files, *, data: DataSettings, validation: ValidationSettings) -> FactStore:
    facts = FactStore()
    facts.add_names(picture_names(files))
    if len(facts) and not data.pictures.is_dir():
        raise DataError(f"no folder at data.pictures '{data.pictures}': is the entry right, and was `dvc pull` run?")
    scan_store(
        facts,
        folder=data.pictures,
        min_side=validation.min_picture_side,
        max_pixels=validation.max_picture_pixels,
        num_workers=validation.num_workers,
    )
    return facts


def _log(summary: ValidationSummary) -> None:
    for file, found in summary.files.items():
        logger.info("%s: %d of %d samples kept", file, found.num_kept, found.num_samples)
        for name, count in found.rejects.items():
            if count:
                logger.warning("%s: %d samples rejected by %s", file, count, name)
        for name, count in found.warnings.items():
            if count:
                logger.warning("%s: %d samples fail %s and are kept (validation.warn_only)", file, count, name)


def _samples(
    conversations: Iterable[Conversation], examined: Examination, *, file: str, kept: "pd.Series[bool]"
) -> Iterator[Sample]:
    table = examined.tables[file]
    rows = zip(kept, table["num_tokens"], table["num_labels"], conversations, strict=True)
    for is_kept, num_tokens, num_labels, conversation in rows:
        if is_kept:
            yield _sample(conversation, examined.facts, num_tokens=num_tokens, num_labels=num_labels)


def _sample(
    conversation: Conversation, known: Mapping[str, PictureFacts], *, num_tokens: int, num_labels: int
) -> Sample:
    facts = [known[name] for name in conversation.pictures]
    return Sample(
        id=conversation.id,
        pictures=conversation.pictures,
        turns=canonical_turns(conversation),
        question_type=conversation.question_type,
        picture_sha256=tuple(fact.sha256 for fact in facts if fact.sha256 is not None),
        width=facts[0].width if facts else None,
        height=facts[0].height if facts else None,
        num_tokens=int(num_tokens),
        num_labels=int(num_labels),
    )


def _manifest(data: DataSettings, *, validation: ValidationSettings, examined: Examination) -> Manifest:
    parents = {file: digest_file(path) for file, path in _paths(data).items()}
    return Manifest.make(
        KIND,
        settings={"data": data, "validation": validation},
        parents=parents | {"pictures": _digest_pictures(examined.facts)},
        details=examined.summary.metrics(),
    )


def _digest_pictures(facts: FactStore) -> str:
    """Over names and bytes of the pictures that could be decoded, in order of their first use."""
    digest = hashlib.sha256()
    for name, found in facts.items():
        if found.sha256 is not None:
            digest.update(f"{name}\0{found.sha256}\n".encode())
    return digest.hexdigest()
