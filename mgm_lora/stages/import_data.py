"""`mgm-lora import`: own data into `data/`, what was found, and what to do next.

Not a stage of `dvc.yaml`: it makes what the pipeline begins with.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mgm_lora.data.importing.importer import FILES, Imported, ImportRequest, Places, import_data
from mgm_lora.model.base import find_processor
from mgm_lora.settings import DataSettings, Settings
from mgm_lora.stages import paths
from mgm_lora.stages.params_file import difference, rewritten, write_checked
from mgm_lora.stages.validate import measure

_SHOWN_ANSWERS = 8
_SHOWN_LETTERS = 40


def run(settings: Settings, *, request: ImportRequest, params: Path, write_params: bool) -> Imported:
    """Imports, and prints what was found; the settings file is only changed where that was asked for."""
    processor = find_processor(settings.base)
    places = places_of(request.name)
    imported = import_data(
        request,
        places=places,
        data=settings.data,
        validation=settings.validation,
        measure=lambda turns: measure(turns, processor=processor, max_length=settings.data.max_length),
    )
    print("\n".join(describe(imported, request=request, places=places, max_length=settings.data.max_length)))
    changes = changes_to_params(imported, name=request.name, places=places, before=settings.data)
    if write_params:
        print(f"\nchanged in {params}:\n{rewrite_params(params, changes=changes)}")
    else:
        print(f"\nin {params} (--write-params writes it):\n{_as_yaml(changes)}")
    print(f"\nthen\n  dvc add {paths.DATA}\n  dvc repro")
    return imported


def places_of(name: str) -> Places:
    """Where an import of that name goes."""
    return Places(
        paths.DATA, data_docs=paths.REPORTS / f"import-{name}", contact_sheet=paths.REPORTS / f"import-{name}.png"
    )


def name_of(source: Path) -> str:
    """What a data set is called where nobody says: as its file or folder, in letters that every tool takes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", source.resolve().stem).strip("-") or "data"


def describe(imported: Imported, *, request: ImportRequest, places: Places, max_length: int) -> Iterator[str]:
    """What was found, line by line."""
    overview, summary = imported.overview, imported.examined.summary
    yield f"{request.source}: {imported.form}; columns guessed or given: {imported.columns.describe()}"
    if imported.question is not None and imported.columns.conversation is None:
        yield f"every picture is asked: {imported.question!r} (--question changes it)"
    by_pictures = ", ".join(f"{count:,} with {number}" for number, count in sorted(overview.num_by_pictures.items()))
    yield f"{overview.num_samples.total():,} samples, {summary.num_pictures:,} pictures; samples by number of pictures: {by_pictures}"
    for file in FILES:
        yield f"{file}: {summary.files[file].num_samples:,} samples; {_lengths(imported.examined.tables[file]['num_tokens'], max_length)}"
    yield _answers(imported)
    for file in FILES:
        found = summary.files[file]
        counts = {**found.rejects, **found.warnings}
        told = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
        yield f"{file}: {found.num_rejects:,} rejected, {found.num_kept:,} kept" + (
            f"; by check: {told}" if told else ""
        )
    for failure in imported.failures:
        yield f"`dvc repro` will stop: {failure}"
    yield ""
    yield f"conversations  {', '.join(str(places.file(request.name, file)) for file in FILES)}"
    yield f"pictures       {places.pictures / request.name}"
    yield f"contact sheet  {places.contact_sheet}"
    yield f"checks         {places.data_docs / 'index.html'} (rejects with reasons: {places.data_docs / 'rejects.csv'})"


def changes_to_params(
    imported: Imported, *, name: str, places: Places, before: DataSettings
) -> Mapping[str, Mapping[str, Any]]:
    """What the settings must say for the import to be learned from, by section."""
    data: dict[str, Any] = {"pictures": places.pictures.as_posix()}
    data |= {file: places.file(name, file).as_posix() for file in FILES}
    longest = max(int(imported.examined.tables[file]["num_tokens"].max(skipna=True) or 0) for file in FILES)
    if longest > before.max_length:
        data["max_length"] = longest
    if before.known is not None and not before.known.is_file():
        data["known"] = None  # else every stage would ask for it
    return {"data": data, "evaluation": {"score_types": []}}


def rewrite_params(path: Path, *, changes: Mapping[str, Mapping[str, Any]]) -> str:
    """Changes the entries and keeps all else of the file, comments too; the difference as diff shows it.

    Raises:
        SettingsError: the settings would not be valid; the file stays as it was.
    """
    before, after = rewritten(path, changes=changes)
    write_checked(path, text=after)
    return "\n".join(f"  {line}" for line in difference(before, after))


def _lengths(num_tokens: "pd.Series[int]", max_length: int) -> str:
    known = num_tokens.dropna()
    if known.empty:
        return "no length is known"
    middle, most, longest = (int(known.quantile(share, interpolation="higher")) for share in (0.5, 0.95, 1.0))
    long = int((known > max_length).sum())
    return (
        f"tokens: median {middle:,}, 95 % up to {most:,}, longest {longest:,}"
        f" (data.max_length {max_length:,}: {long:,} are longer)"
    )


def _answers(imported: Imported) -> str:
    answers = imported.overview.answers
    number = f"{len(answers):,}" if imported.overview.has_all_answers else f"more than {len(answers):,}"
    common = ", ".join(f"{_shorten(text)!r} {count:,}" for text, count in answers.most_common(_SHOWN_ANSWERS))
    return f"{number} different answers, most often: {common}"


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN_LETTERS else f"{text[: _SHOWN_LETTERS - 3]}..."


def _as_yaml(changes: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for section, entries in changes.items():
        lines += [
            f"  {section}:",
            *(f"    {key}: {'null' if value is None else value}" for key, value in entries.items()),
        ]
    return "\n".join(lines)
