"""How many requests are in at once, and that one at a time is answered: two at once would need the card's memory twice. It knows no server."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mgm_lora.errors import RefusedError
from mgm_lora.serving.limits import variable
from mgm_lora.serving.refusals import TOO_MANY


class Admission:
    """Counts requests in; for any number of threads."""

    def __init__(self, max_requests: int) -> None:
        """At most so many are in."""
        self._max_requests = max_requests
        self._places = threading.BoundedSemaphore(max_requests)
        self._turn = threading.Lock()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """A request's whole stay; raises RefusedError where all places are taken."""
        if not self._places.acquire(blocking=False):
            raise too_many(self._max_requests)
        try:
            yield
        finally:
            self._places.release()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The part of it in which the model is asked; waits for those before."""
        with self._turn:
            yield


def too_many(max_requests: int) -> RefusedError:
    """What is told where all places are taken."""
    return RefusedError(
        f"{max_requests} requests are being answered already, and no more are taken at once ({variable('max_requests')}): ask again later",
        status=TOO_MANY,
    )
