"""What became of the champion: who put which version in whose place, when, why, and by which figures.

It is kept in the registry itself, as tags of the registered model, one for each change, so that every machine sees it and a copy of the store has it
too. Entries are numbered under the lock (lock.py) and never rewritten. An entry is written before the aliases are moved: one whose writer was
killed in between did not take effect, which the entries after it, or the aliases, show.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mgm_lora.errors import RegistryError
from mgm_lora.registry.lock import StoreLock, who
from mgm_lora.registry.store import Store

_PREFIX = "mgm_lora.history."
_MAX_TAG_LENGTH = 5000  # a column of MLflow's database
MAX_REASON_LENGTH = 1000


class RuleFigures(BaseModel):
    """How a version stood before one rule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    asked: str
    found: str
    passed: bool


class Entry(BaseModel):
    """One change of the champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Literal["promote", "rollback"]
    version: int
    """The champion from then on."""
    replaced: int | None
    """The champion until then; none: there was none."""
    who: str
    when: str
    """UTC, ISO 8601."""
    reason: str
    """As it was given; empty where none was."""
    rules: tuple[RuleFigures, ...] = ()

    @property
    def overruled(self) -> tuple[str, ...]:
        """The rules that it broke and was promoted all the same."""
        return tuple(rule.rule for rule in self.rules if not rule.passed)


def make_entry(
    action: Literal["promote", "rollback"],
    *,
    version: int,
    replaced: int | None,
    reason: str,
    rules: Sequence[RuleFigures] = (),
) -> Entry:
    """An entry of this process, now."""
    return Entry(
        action=action, version=version, replaced=replaced, who=who(), when=now(), reason=reason, rules=tuple(rules)
    )


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def append_entry(entry: Entry, *, lock: StoreLock, model_name: str) -> None:
    """Writes it behind the others; the lock must be held."""
    numbers = [int(key.removeprefix(_PREFIX)) for key in _entries(lock.store, model_name)]
    value = entry.model_dump_json()
    if len(value) > _MAX_TAG_LENGTH:
        raise RegistryError(
            f"an entry of the history of {len(value)} letters, MLflow takes {_MAX_TAG_LENGTH}: give a shorter reason"
        )
    lock.check()
    lock.store.client.set_registered_model_tag(model_name, f"{_PREFIX}{max(numbers, default=0) + 1:06}", value)


def read_history(store: Store, *, model_name: str) -> list[Entry]:
    """Oldest first; raises RegistryError where an entry can't be read."""
    entries = []
    for key, value in sorted(_entries(store, model_name).items()):
        try:
            entries.append(Entry.model_validate_json(value))
        except ValidationError as error:
            raise RegistryError(
                f"the tag '{key}' of the registered model '{model_name}' is no entry of its history ({error.errors()[0]['msg']}): written by hand,"
                " or by a newer mgm-lora? Take it away in MLflow, or use that one"
            ) from error
    return entries


def took_effect(entries: Sequence[Entry], *, champion: int | None) -> list[bool]:
    """Of each entry, whether the champion was changed by it: the next one found its version in place, or the alias is there now."""
    followers = [*(entry.replaced for entry in entries), champion][1:]
    return [entry.version == follower for entry, follower in zip(entries, followers, strict=True)]


def champions_in_line(entries: Sequence[Entry], *, champion: int | None) -> list[int]:
    """The champions that rollbacks lead to, the nearest first, as the history says; none where it doesn't lead to the one that there is now."""
    line: list[int] = []
    for entry, is_effective in zip(entries, took_effect(entries, champion=champion), strict=True):
        if not is_effective:
            continue
        if not line and entry.replaced is not None:
            line.append(entry.replaced)  # made by hand, before there was a history
        if entry.action == "promote":
            line.append(entry.version)
        else:
            while line and line[-1] != entry.version:
                line.pop()
    return line[-2::-1] if line and line[-1] == champion else []


def _entries(store: Store, model_name: str) -> Mapping[str, str]:
    tags = store.client.get_registered_model(model_name).tags
    return {key: value for key, value in tags.items() if key.startswith(_PREFIX)}
