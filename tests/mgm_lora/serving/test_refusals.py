"""What is told of errors, and what is not."""

import logging

import pytest
import torch

from mgm_lora.errors import PictureError, RefusedError
from mgm_lora.serving.refusals import as_refusal, refusal_body


def test_refusal_stays_what_it_is_and_bad_data_is_told() -> None:
    refusal = RefusedError("too large", status=413)
    assert as_refusal(refusal) is refusal
    told = as_refusal(PictureError("broken"))
    assert (told.status, str(told)) == (422, "broken")


def test_inside_of_an_unexpected_error_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        told = as_refusal(ZeroDivisionError("a secret"))
    assert refusal_body(told) == {
        "error_code": "INTERNAL_ERROR",
        "message": "answering failed; the server's log says why",
    }
    assert told.status == 500
    assert "a secret" in caplog.text


def test_full_card_is_told_as_such() -> None:
    told = as_refusal(torch.OutOfMemoryError("tried to allocate 3 GiB"))
    assert (told.status, refusal_body(told)["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
