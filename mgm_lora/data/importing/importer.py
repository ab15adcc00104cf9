"""Own data in LLaVA's form: reads a source once, brings its pictures, splits, checks, and puts all of it into place or nothing.

Samples pass by one at a time; what must be known of all of them lies in a file on disk (the drafts) or in a few bytes a
sample. It knows no model: how many tokens a sample takes is asked of the caller.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from mgm_lora.data.importing.column_names import Columns, GivenColumns, choose_columns
from mgm_lora.data.importing.contact_sheet import draw_contact_sheet
from mgm_lora.data.importing.drafts import RowError, draft_sample
from mgm_lora.data.importing.installing import install, refuse_existing, staging
from mgm_lora.data.importing.overview import Overview
from mgm_lora.data.importing.placing import PicturePlacer
from mgm_lora.data.importing.rows import Row
from mgm_lora.data.importing.sources import Source, open_source
from mgm_lora.data.importing.splitting import Splitter, key_of
from mgm_lora.data.llava import Problems
from mgm_lora.data.picture_facts import FactStore
from mgm_lora.data.picture_scan import scan_store
from mgm_lora.data.tokens import MeasureTokens
from mgm_lora.data.validation import Examination, examine, explain_failures, failures_of, write_data_docs
from mgm_lora.errors import DataError, ValidationFailedError
from mgm_lora.settings import DataSettings, ValidationSettings

CAPTION_QUESTION = "Describe the picture."
LABEL_QUESTION = "What is in the picture?"
_LABEL_COLUMNS = ("label", "class")
_DRAFTS, _PICTURES = "drafts.jsonl", "pictures"
FILES = ("train", "heldout")


@dataclass(frozen=True)
class ImportRequest:
    """What is to be imported, and how."""

    source: Path
    name: str
    """Of the data set here: part of every file's name."""
    pictures: Path | None = None
    """The folder that picture names are relative to; none: the source's own."""
    columns: GivenColumns = field(default_factory=GivenColumns)
    question: str | None = None
    """Asked of every picture where no column has questions; none: one that fits captions or labels."""
    heldout_share: float = 0.1
    """Of the samples."""
    seed: int = 17
    link: bool = False
    """Hard links to the pictures instead of copies."""
    encoding: str = "utf-8"
    force: bool = False
    """An import of this name may be replaced."""
    anyway: bool = False
    """Put it into place even where the checks would stop the pipeline."""


@dataclass(frozen=True)
class Places:
    """Where an import goes."""

    data: Path
    """The data folder."""
    data_docs: Path
    contact_sheet: Path

    def file(self, name: str, file: str) -> Path:
        """The conversations of `train` or `heldout`."""
        return self.data / "instructions" / f"{name}-{file}.json"

    @property
    def pictures(self) -> Path:
        """The folder of all data sets' pictures."""
        return self.data / "pictures"


@dataclass(frozen=True)
class Imported:
    """What was found."""

    form: str
    columns: Columns
    question: str | None
    """Asked of every picture; none where the source has questions."""
    overview: Overview
    examined: Examination
    failures: tuple[str, ...]
    """Why the pipeline would stop; only where it was put into place anyway."""


def import_data(
    request: ImportRequest,
    *,
    places: Places,
    data: DataSettings,
    validation: ValidationSettings,
    measure: MeasureTokens,
) -> Imported:
    """Writes the pictures and `train` and `heldout` in LLaVA's form, the pages of the checks, and the contact sheet.

    Raises:
        DataError: the source can't be read, columns or rows are not what is asked for, or the name is taken. Nothing is changed then.
        ValidationFailedError: the checks would stop the pipeline; the pages and the contact sheet are written, the data is as it was.
        StorageError: no space, or no permission.
    """
    final = [places.pictures / request.name, *(places.file(request.name, file) for file in FILES)]
    if not request.force:
        refuse_existing(final)
    source = open_source(request.source, encoding=request.encoding)
    columns, question, rows = _begin(source, request)
    with staging(places.data, name=request.name) as folder:
        facts = _draft_all(rows, request, source=source, columns=columns, question=question, folder=folder)
        _scan(facts, folder=folder, validation=validation)
        overview = _split(request, facts=facts, folder=folder)
        staged = data.model_copy(
            update={"pictures": folder / _PICTURES, "known": None} | {file: folder / f"{file}.json" for file in FILES}
        )
        examined = examine(staged, validation=validation, measure=measure, facts=facts)
        write_data_docs(examined, destination=places.data_docs)
        draw_contact_sheet(overview.shown, facts=facts, pictures=folder / _PICTURES, path=places.contact_sheet)
        failures = failures_of(examined, max_reject_share=validation.max_reject_share)
        if failures and not request.anyway:
            raise ValidationFailedError(_explain(failures, places=places))
        parts = [folder / _PICTURES / request.name, *(folder / f"{file}.json" for file in FILES)]
        install(dict(zip(parts, final, strict=True)), backup=folder)
    return Imported(source.form, columns, None if columns.question else question, overview, examined, tuple(failures))


def _begin(source: Source, request: ImportRequest) -> tuple[Columns, str, Iterator[Row]]:
    rows = source.read()
    first = next(rows, None)
    if first is None:
        raise DataError(f"'{request.source}' ({source.form}) holds no row")
    if first.problem and not first.values:
        raise DataError(f"'{request.source}', {first.place}: {first.problem}")
    columns = choose_columns(list(first.values), given=request.columns, source=f"'{request.source}'")
    default = LABEL_QUESTION if (columns.answer or "").lower() in _LABEL_COLUMNS else CAPTION_QUESTION
    return columns, request.question or default, chain([first], rows)


def _draft_all(
    rows: Iterable[Row], request: ImportRequest, *, source: Source, columns: Columns, question: str, folder: Path
) -> FactStore:
    """Writes the drafts, a line each, and the pictures; the names of the pictures, without facts."""
    placer = PicturePlacer(
        request.pictures or source.pictures, destination=folder / _PICTURES / request.name, link=request.link
    )
    (folder / _PICTURES / request.name).mkdir(parents=True)
    facts, problems = FactStore(), Problems()
    with (folder / _DRAFTS).open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            try:
                draft = draft_sample(row, columns=columns, question=question)
                names = [f"{request.name}/{placer.place(picture)}" for picture in draft.pictures]
            except RowError as error:
                problems.extend([f"{row.place}: {error}"])
                continue
            facts.add_names(names)
            entry: dict[str, Any] = {"id": f"{request.name}-{number:07d}"}
            entry |= {"image": names[0] if len(names) == 1 else names} if names else {}
            entry |= {"question_type": draft.question_type} if draft.question_type else {}
            entry |= {"source_id": draft.source_id} if draft.source_id else {}
            turns = [{"from": turn.role, "value": turn.text} for turn in draft.turns]
            file.write(_to_line(entry | {"conversations": turns}) + "\n")
    problems.judge(request.source, form="Nothing was imported.")
    return facts


def _scan(facts: FactStore, *, folder: Path, validation: ValidationSettings) -> None:
    scan_store(
        facts,
        folder=folder / _PICTURES,
        min_side=validation.min_picture_side,
        max_pixels=validation.max_picture_pixels,
        num_workers=validation.num_workers,
    )


def _split(request: ImportRequest, *, facts: FactStore, folder: Path) -> Overview:
    """Writes train.json and heldout.json into the folder."""
    splitter = Splitter(share=request.heldout_share, seed=request.seed)
    for entry in _read_drafts(folder):
        splitter.show(_keys(entry, facts))
    splitter.decide()
    overview = Overview(seed=request.seed)
    files = {file: (folder / f"{file}.json").open("w", encoding="utf-8") for file in FILES}
    try:
        for entry in _read_drafts(folder):
            file = "heldout" if splitter.is_heldout(_keys(entry, facts)) else "train"
            files[file].write(("[\n" if not overview.num_samples[file] else ",\n") + _to_line(entry))
            overview.add(file, entry)
        for stream in files.values():
            stream.write("\n]\n")
    finally:
        for stream in files.values():
            stream.close()
    return overview


def _read_drafts(folder: Path) -> Iterator[dict[str, Any]]:
    with (folder / _DRAFTS).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _keys(entry: dict[str, Any], facts: FactStore) -> list[int]:
    """Of its pictures; of its first message where it has none."""
    names = entry.get("image", [])
    names = [names] if isinstance(names, str) else names
    if not names:
        return [key_of(json.dumps(entry["conversations"][:1]).encode())]
    return [key_of(facts[name].pixels or name.encode()) for name in names]


def _to_line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False)


def _explain(failures: Sequence[str], *, places: Places) -> str:
    return (
        f"{explain_failures(failures, data_docs=places.data_docs)}\n"
        f"Samples with their pictures: '{places.contact_sheet}'. Nothing was imported: mend the source, or the limits in\n"
        "params.yaml (data.max_length, validation), and import again; or import it --anyway, and `dvc repro` will stop"
    )
