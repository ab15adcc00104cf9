"""What there is: every version of the registered model, as its tags, aliases and history tell it. It reads no files of a version."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow.entities.model_registry import ModelVersion

from mgm_lora.registry.history import Entry, read_history, took_effect
from mgm_lora.registry.lookup import find_model
from mgm_lora.registry.store import Store
from mgm_lora.registry.tags import COMMIT_TAG, FIGURES, UNKNOWN


@dataclass(frozen=True)
class VersionRow:
    """One version."""

    version: int
    aliases: tuple[str, ...]
    registered: str
    """UTC, ISO 8601."""
    figures: Mapping[str, float]
    """Of `FIGURES`; those that there are none of are left out."""
    rank: str
    """By application point: `language_attention=16,projector=full`."""
    adapter_digest: str
    base_digest: str
    data_digest: str
    commit: str | None
    why: str
    """The reason of its last promotion or rollback; empty where none was given."""


def list_versions(store: Store, *, model_name: str) -> list[VersionRow]:
    """All versions, the newest first.

    Raises:
        RegistryError: there is no such model; those that there are are named.
    """
    model = find_model(model_name, store=store)
    aliases: dict[int, list[str]] = {}
    for alias, number in sorted(model.aliases.items()):
        aliases.setdefault(int(number), []).append(alias)
    entries = read_history(store, model_name=model_name)
    versions = store.client.search_model_versions(f"name = '{model_name}'")
    rows = [_row(version, aliases=aliases, entries=entries) for version in versions]
    return sorted(rows, key=lambda row: -row.version)


def history_of(store: Store, *, model_name: str) -> list[tuple[Entry, bool]]:
    """The changes of the champion, oldest first, and of each whether it took effect; raises RegistryError where there is no such model."""
    aliases = find_model(model_name, store=store).aliases
    entries = read_history(store, model_name=model_name)
    champion = int(aliases["champion"]) if "champion" in aliases else None
    return list(zip(entries, took_effect(entries, champion=champion), strict=True))


def _row(version: ModelVersion, *, aliases: Mapping[int, Sequence[str]], entries: Sequence[Entry]) -> VersionRow:
    number, tags = int(version.version), version.tags
    return VersionRow(
        version=number,
        aliases=tuple(aliases.get(number, ())),
        registered=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        figures={name: float(tags[name]) for name in FIGURES if tags.get(name, UNKNOWN) != UNKNOWN},
        rank=tags.get("rank", ""),
        adapter_digest=tags.get("adapter_digest", ""),
        base_digest=tags.get("base_digest", ""),
        data_digest=tags.get("data_digest", ""),
        commit=tags.get(COMMIT_TAG),
        why=next((entry.reason for entry in reversed(entries) if entry.version == number), ""),
    )
