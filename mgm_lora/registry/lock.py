"""One process at a time changes a registered model, whichever machine it runs on: a lock that MLflow's store keeps.

MLflow sets aliases and tags without asking what they were, so two promotions could both believe to have won. What its store does keep apart are names
of registered models. So the lock is a registered model of its own, made by whoever holds it and deleted afterwards; making it fails for all others.

A holder that was killed leaves its lock. Whoever sees the same lock for longer than any holder needs breaks it, by the watcher's own clock: the
clocks of machines need not agree. Breaking renames it to a name made of its token, which is possible once: of two that break the same lock one
fails, and can't hit the lock that the other has made meanwhile. What is left unguarded are the milliseconds between a holder's look at its lock and
its next write, where that holder had slept for half a minute and was taken for dead.
"""

import getpass
import logging
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from mgm_lora.errors import BusyRegistryError
from mgm_lora.registry.store import Store

logger = logging.getLogger(__name__)

TOKEN_TAG = "mgm_lora.lock"
HOLDER_TAG = "mgm_lora.lock_holder"
LEASE_SECONDS = 30.0
"""Longer than anyone holds it: what takes time (answering, uploading) is done before."""
PATIENCE_SECONDS = 90.0
_POLL_SECONDS = 0.2
_KEEP_BROKEN_MILLISECONDS = 24 * 60 * 60 * 1000  # a watcher that is slower than a day could break the wrong lock


@dataclass(frozen=True)
class StoreLock:
    """A held lock."""

    store: Store
    name: str
    token: str

    def check(self) -> None:
        """Raises BusyRegistryError where another one has broken it; to be called before each write."""
        found = _find(self.store, self.name)
        if found is None or found.tags.get(TOKEN_TAG) != self.token:
            raise BusyRegistryError(
                f"this process held the lock '{self.name}' for so long that another one took it for dead: nothing more is written. Look at"
                " `mgm-lora registry history`, and run the command again"
            )


@contextmanager
def hold_lock(
    store: Store, *, model_name: str, lease_seconds: float = LEASE_SECONDS, patience_seconds: float = PATIENCE_SECONDS
) -> Iterator[StoreLock]:
    """Holds the lock of a registered model during the block.

    Args:
        store: where the model is.
        model_name: which.
        lease_seconds: how long the same lock must be seen to be broken.
        patience_seconds: how long it is waited for.

    Raises:
        BusyRegistryError: others hold it all that time; the message names who does.
        MlflowException: the store doesn't answer.
    """
    lock = StoreLock(store, f"{model_name}-lock", token=uuid.uuid4().hex)
    _acquire(lock, lease_seconds=lease_seconds, patience_seconds=patience_seconds)
    try:
        _forget_broken(lock)
        yield lock
    finally:
        _release(lock)


def is_lock(model: RegisteredModel) -> bool:
    """Whether a registered model is no model, but a lock of ours."""
    return TOKEN_TAG in model.tags


def who() -> str:
    """This process's user and machine."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _acquire(lock: StoreLock, *, lease_seconds: float, patience_seconds: float) -> None:
    began = seen_since = time.monotonic()
    seen = ""
    while not _make(lock):
        now = time.monotonic()
        found = _find(lock.store, lock.name)
        token = found.tags.get(TOKEN_TAG, "") if found else ""
        holder = found.tags.get(HOLDER_TAG, "an unknown holder") if found else "several in turn"
        if token != seen:
            seen, seen_since = token, now
        elif seen and now - seen_since >= lease_seconds:
            logger.warning(
                "the lock '%s' of %s was left %.0f s ago or more: breaking it", lock.name, holder, lease_seconds
            )
            _break(lock, token=seen)
        if now - began >= patience_seconds:
            raise BusyRegistryError(
                f"'{lock.name}' is held by {holder}, for {patience_seconds:.0f} s already: wait for that to end, and run the command again"
            )
        time.sleep(_POLL_SECONDS)


def _make(lock: StoreLock) -> bool:
    try:
        lock.store.client.create_registered_model(
            lock.name,
            tags={TOKEN_TAG: lock.token, HOLDER_TAG: who()},
            description="Held while mgm-lora changes the model of that name; it vanishes by itself.",
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return False
    return True


def _find(store: Store, name: str) -> RegisteredModel | None:
    try:
        return store.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _break(lock: StoreLock, *, token: str) -> None:
    try:
        lock.store.client.rename_registered_model(lock.name, f"{lock.name}-broken-{token}")
    except MlflowException as error:  # another one was quicker
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            raise


def _forget_broken(lock: StoreLock) -> None:
    """Deletes what was broken long ago."""
    now = lock.store.client.get_registered_model(lock.name).creation_timestamp or 0  # by the store's clock
    for model in lock.store.client.search_registered_models(f"name LIKE '{lock.name}-broken-%'"):
        if is_lock(model) and now - (model.last_updated_timestamp or now) > _KEEP_BROKEN_MILLISECONDS:
            lock.store.client.delete_registered_model(model.name)


def _release(lock: StoreLock) -> None:
    try:
        found = _find(lock.store, lock.name)
        if found is not None and found.tags.get(TOKEN_TAG) == lock.token:
            lock.store.client.delete_registered_model(lock.name)
    except MlflowException as error:
        logger.warning(
            "the lock '%s' could not be released (%s): the next one who wants it waits %.0f s",
            lock.name,
            error,
            LEASE_SECONDS,
        )
