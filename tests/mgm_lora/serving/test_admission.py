"""Places and turns, by real threads."""

import threading

import pytest

from mgm_lora.errors import RefusedError
from mgm_lora.serving.admission import Admission


def test_request_beyond_the_places_is_refused_and_a_place_is_free_again_also_after_an_error() -> None:
    admission = Admission(2)
    with admission.admit(), admission.admit():
        with pytest.raises(RefusedError, match="2 requests") as told, admission.admit():
            pass
        assert told.value.status == 429
    with pytest.raises(ZeroDivisionError), admission.admit():
        raise ZeroDivisionError
    with admission.admit(), admission.admit():
        pass


def test_one_at_a_time_has_its_turn() -> None:
    admission = Admission(8)
    inside, most = 0, 0
    at_once = threading.Barrier(8)

    def ask() -> None:
        nonlocal inside, most
        with admission.admit():
            at_once.wait(30)  # all are in
            for _ in range(200):
                with admission.turn():
                    inside += 1
                    most = max(most, inside)
                    inside -= 1

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert most == 1
