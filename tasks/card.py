"""A slot of a card's concurrency limit in Prefect. The trainer's own lock on the card (`mgm_lora.training.card_lock`) is another matter."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from tasks.showing import Log


@contextmanager
def holding_card(card: str, *, of: str, log: Log) -> Iterator[None]:
    """Holds a slot of the limit that is named as the card (`gpu`), where the server has such a limit.

    Args:
        card: the limit's name; empty: nothing is held.
        of: what wants it, for the log.
    """
    if not card:
        yield
    elif not _has_limit(card):
        log.info("'%s' asks for the card '%s', but there is no such concurrency limit: nothing to wait for", of, card)
        yield
    else:
        log.info("waiting for the card '%s'", card)
        # strict: without it a limit that vanished meanwhile only warns. But a lost server must not end a training that goes well.
        with concurrency(card, strict=True, raise_on_lease_renewal_failure=False):
            yield


def _has_limit(name: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(name).active
        except ObjectNotFound:
            return False
