"""`mgm-lora registry list`, `diff` and `history`: what is in the registry, for people or, with `as_json`, for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mgm_lora.evaluation.changes import Change, SetChanges, find_changes
from mgm_lora.evaluation.formatting import MISSING, percent, percent_range, points, points_interval, points_range
from mgm_lora.evaluation.scoring import read_scores
from mgm_lora.registry.differences import Difference, find_differences
from mgm_lora.registry.listing import VersionRow, history_of, list_versions
from mgm_lora.registry.lookup import VersionFiles, fetch_version, find_version, version_uri
from mgm_lora.registry.store import open_store, telling_store_errors
from mgm_lora.settings import Settings
from mgm_lora.stages.tables import print_table

_TABLE = ("version", "aliases", "score", "retention", "forgetting", "registered", "why")


def show_versions(settings: Settings, *, as_json: bool) -> None:
    """Prints every version, the newest first."""
    with telling_store_errors("list versions", registry=settings.registry):
        rows = list_versions(open_store(settings.registry), model_name=settings.registry.model_name)
    if as_json:
        _print_json([asdict(row) for row in rows])
    else:
        print_table(_TABLE, [_version_row(row) for row in rows], title=settings.registry.model_name)


def show_history(settings: Settings, *, as_json: bool) -> None:
    """Prints every change of the champion, the newest first, with the figures that it was judged by."""
    with telling_store_errors("read the history", registry=settings.registry):
        history = history_of(open_store(settings.registry), model_name=settings.registry.model_name)
    if as_json:
        _print_json([{**entry.model_dump(), "took_effect": effective} for entry, effective in history])
        return
    if not history:
        print(f"nobody was the champion of {settings.registry.model_name} yet: mgm-lora promote")
    for entry, effective in reversed(history):
        replaced = "nobody" if entry.replaced is None else f"version {entry.replaced}"
        said = f"{entry.when}  {entry.who}  {entry.action} version {entry.version}, in the place of {replaced}"
        lines = [said] if effective else [said, "did not take effect: cut off, or the alias was moved by hand"]
        lines += [f"why: {entry.reason}"] if entry.reason else []
        lines += [f"overruled: {', '.join(entry.overruled)}"] if entry.overruled else []
        lines += [
            f"{rule.rule}: {rule.found} (asked: {rule.asked}{'' if rule.passed else '; BROKEN'})"
            for rule in entry.rules
        ]
        print("\n    ".join(lines))


def show_difference(settings: Settings, *, first: str, second: str, num_shown: int, as_json: bool) -> None:
    """Prints how two versions differ: settings, data, code, libraries, figures, and which answers changed.

    Args:
        first: a number, an alias, or a `models:/` address.
        second: likewise, of the same model.
        num_shown: changed answers that are shown of each set; all are counted.
        as_json: everything, as JSON.

    Raises:
        RegistryError: there is no such version, or it is of another model.
    """
    name = settings.registry.model_name
    with telling_store_errors("compare versions", registry=settings.registry):
        store = open_store(settings.registry)
        found = [find_version(version_uri(text, model_name=name), store=store) for text in (first, second)]
        one, other = (fetch_version(version, store=store) for version in found)
    differences = find_differences(one, other)
    predictions = [read_scores(files.evidence.scores)[1] for files in (one, other)]
    changes = find_changes(predictions[0], predictions[1], evaluation=settings.evaluation)
    if as_json:
        _print_json(
            {"differences": [asdict(item) for item in differences], "answers": [_plain(item) for item in changes]}
        )
        return
    labels = [_label(files) for files in (one, other)]
    _show_differences(differences, labels=labels)
    for item in changes:
        _show_changes(item, labels=labels, num_shown=num_shown)


def _show_differences(differences: Sequence[Difference], *, labels: Sequence[str]) -> None:
    for part in dict.fromkeys(["settings", "data", "code", "libraries", "figures"]):
        rows = [[item.name, item.first or MISSING, item.second or MISSING] for item in differences if item.part == part]
        if rows:
            print_table(["", *labels], rows, title=part)
        else:
            print(f"{part}: the same\n")


def _show_changes(item: SetChanges, *, labels: Sequence[str], num_shown: int) -> None:
    if not item.num_shared:
        print(f"answers, {item.set}: no question in common\n")
        return
    others = item.num_only_first + item.num_only_second
    print(
        f"answers, {item.set}: {len(item.changed)} of {item.num_shared} shared questions answered otherwise, worth"
        f" {points_interval(item.difference)}" + (f"; {others} questions are in one of them only" if others else "")
    )
    columns = ["type", *(str(change) for change in Change)]
    rows = [[name, *(str(counts[change]) for change in Change)] for name, counts in item.by_type.items()]
    if rows:
        print_table(columns, rows)
        shown = [
            [change.id, change.change, change.question, change.answer, change.first, change.second]
            for change in item.changed[:num_shown]
        ]
        print_table(["id", "change", "question", "truth", *labels], shown)
    if len(item.changed) > num_shown:
        print(f"... and {len(item.changed) - num_shown} more: --show {len(item.changed)}\n")


def _version_row(row: VersionRow) -> list[str]:
    return [
        str(row.version),
        ", ".join(row.aliases) or MISSING,
        _figure(row.figures, "score", percent, percent_range),
        _figure(row.figures, "retention", percent, percent_range),
        _figure(row.figures, "forgetting", points, points_range),
        row.registered,
        row.why or MISSING,
    ]


def _figure(figures: Mapping[str, float], name: str, value: Any, interval: Any) -> str:
    if name not in figures:
        return MISSING
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    return str(value(figures[name])) + ("" if low is None or high is None else f" {interval(low, high)}")


def _label(files: VersionFiles) -> str:
    return f"version {files.version.version}"


def _plain(item: SetChanges) -> dict[str, Any]:
    difference = item.difference.model_dump() if item.difference else None
    return {**asdict(item), "difference": difference}


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
