"""Who is the champion: promotion and rollback, as moves of MLflow's aliases under a lock, each with an entry in the history.

`champion` is what is served, `previous-champion` what a rollback returns to, `challenger` what was registered last (versions.py). Whether a version
deserves it is judged before, by others: here it is seen that the champion is still the one that it was judged against. Two promotions at once may
both have been judged well; the first wins, and the second is told.
"""

import json
import logging
from collections.abc import Sequence

from mgm_lora.errors import BusyRegistryError, RegistryError
from mgm_lora.registry.history import (
    MAX_REASON_LENGTH,
    Entry,
    RuleFigures,
    append_entry,
    champions_in_line,
    make_entry,
    now,
    read_history,
)
from mgm_lora.registry.lock import StoreLock, hold_lock, who
from mgm_lora.registry.store import Store

logger = logging.getLogger(__name__)

CHAMPION, PREVIOUS = "champion", "previous-champion"
JUDGEMENT_TAG = "judgement"
"""Of a version: its last judgement."""


def promote(
    store: Store,
    *,
    model_name: str,
    version: int,
    judged_against: int | None,
    reason: str,
    rules: Sequence[RuleFigures],
) -> Entry:
    """Makes a version the champion.

    Args:
        store: where.
        model_name: of which model.
        version: which version.
        judged_against: the champion that it was compared with; none: there was none.
        reason: why, where someone says so.
        rules: what it was judged by.

    Raises:
        BusyRegistryError: the champion is another one meanwhile, or the lock is held by others for too long.
    """
    check_reason(reason)
    with hold_lock(store, model_name=model_name) as lock:
        champion = champion_of(store, model_name=model_name)
        if champion != judged_against:
            raise BusyRegistryError(_changed_meanwhile(store, model_name, version, judged_against, champion))
        entry = make_entry("promote", version=version, replaced=champion, reason=reason, rules=rules)
        append_entry(entry, lock=lock, model_name=model_name)
        _move_aliases(lock, model_name=model_name, champion=version, previous=champion)
    logger.info("%s@%s is version %d", model_name, CHAMPION, version)
    return entry


def roll_back(store: Store, *, model_name: str, reason: str) -> Entry:
    """Makes the previous champion the champion again, and who was that before it the previous one.

    Raises:
        RegistryError: there is no champion, or none before it.
        BusyRegistryError: the lock is held by others for too long.
    """
    check_reason(reason)
    with hold_lock(store, model_name=model_name) as lock:
        champion = champion_of(store, model_name=model_name)
        if champion is None:
            raise RegistryError(f"'{model_name}' can't be rolled back: nobody is the champion. Run `mgm-lora promote`")
        line = _line_behind(store, model_name=model_name, champion=champion)
        if not line:
            raise RegistryError(
                f"'{model_name}' can't be rolled back: before version {champion} nobody was the champion who is still there. `mgm-lora registry"
                " history` shows what was, `mgm-lora promote VERSION` makes another one the champion"
            )
        target, before = line[0], line[1] if line[1:] else None
        entry = make_entry("rollback", version=target, replaced=champion, reason=reason)
        append_entry(entry, lock=lock, model_name=model_name)
        _move_aliases(lock, model_name=model_name, champion=target, previous=before)
    logger.info("%s@%s is version %d again", model_name, CHAMPION, target)
    return entry


def note_judgement(store: Store, *, model_name: str, version: int, reason: str, rules: Sequence[RuleFigures]) -> None:
    """Keeps with a version how it stood before the rules, whatever follows from it."""
    broken = [rule.rule for rule in rules if not rule.passed]
    note = {
        "outcome": "kept all rules" if not broken else "overruled" if reason else "refused",
        "who": who(),
        "when": now(),
        "reason": reason,
        "rules": [rule.model_dump() for rule in rules],
    }
    store.client.set_model_version_tag(model_name, str(version), JUDGEMENT_TAG, json.dumps(note, ensure_ascii=False))


def champion_of(store: Store, *, model_name: str) -> int | None:
    """The champion's version, if there is one."""
    return _aliases(store, model_name).get(CHAMPION)


def check_reason(reason: str) -> None:
    """Raises RegistryError where it is too long to be kept."""
    if len(reason) > MAX_REASON_LENGTH:
        raise RegistryError(f"a reason of {len(reason)} letters, kept are {MAX_REASON_LENGTH}: say it shorter")


def _aliases(store: Store, model_name: str) -> dict[str, int]:
    return {name: int(version) for name, version in store.client.get_registered_model(model_name).aliases.items()}


def _move_aliases(lock: StoreLock, *, model_name: str, champion: int, previous: int | None) -> None:
    client = lock.store.client
    lock.check()
    # the champion first: a rollback goes by the history, the other alias is for people
    client.set_registered_model_alias(model_name, CHAMPION, str(champion))
    lock.check()
    if previous is None:
        client.delete_registered_model_alias(model_name, PREVIOUS)
    else:
        client.set_registered_model_alias(model_name, PREVIOUS, str(previous))


def _line_behind(store: Store, *, model_name: str, champion: int) -> list[int]:
    """Who was the champion before, the last one first; versions that were deleted can't be returned to."""
    line = champions_in_line(read_history(store, model_name=model_name), champion=champion)
    previous = _aliases(store, model_name).get(PREVIOUS)
    if not line and previous not in (None, champion):  # somebody moved the aliases by hand
        line = [int(str(previous))]
    there = {int(version.version) for version in store.client.search_model_versions(f"name = '{model_name}'")}
    return [version for version in line if version in there]


def _changed_meanwhile(
    store: Store, model_name: str, version: int, judged_against: int | None, champion: int | None
) -> str:
    history = read_history(store, model_name=model_name)
    last = f" (by {history[-1].who}, {history[-1].when})" if history else ""
    was = "nobody" if judged_against is None else f"version {judged_against}"
    is_now = "nobody" if champion is None else f"version {champion}"
    return (
        f"version {version} was judged against the champion, which was {was}, and is {is_now} meanwhile{last}: nothing was changed. Run"
        f" `mgm-lora promote {version}` again, to judge it against that one"
    )
