"""What a request is refused with: an HTTP status and one sentence for who asked. It knows no server and no MLflow."""

import logging

import torch

from mgm_lora.errors import DataError, RefusedError

logger = logging.getLogger(__name__)

NOT_ALLOWED, TOO_LARGE, WRONG_KIND, UNUSABLE, TOO_MANY = 403, 413, 415, 422, 429
BUSY_SECONDS = 1
"""After which who was told `TOO_MANY` may ask again."""
_ERROR_CODES = {
    400: "BAD_REQUEST",
    403: "PERMISSION_DENIED",
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
}


def as_refusal(error: Exception) -> RefusedError:
    """What to tell of an error while answering; one that nobody expected is logged, and told without its inside."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, DataError):
        return RefusedError(str(error), status=UNUSABLE)
    if isinstance(error, torch.OutOfMemoryError):
        logger.error("out of memory: %s", error)
        return RefusedError(
            "the card has no memory left for this request: ask fewer rows at once, or later", status=503
        )
    logger.error("a request failed", exc_info=error)
    return RefusedError("answering failed; the server's log says why", status=500)


def refusal_body(refusal: RefusedError) -> dict[str, str]:
    """In the form that MLflow's server tells its own errors in."""
    return {"error_code": _ERROR_CODES.get(refusal.status, "INVALID_PARAMETER_VALUE"), "message": str(refusal)}
