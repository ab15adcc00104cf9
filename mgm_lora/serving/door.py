"""What stands before MLflow's server (ASGI): refuses what is too many, too large, too slow or no JSON before MLflow reads it.

MLflow reads a body of any length into memory, and tells a malformed one by repeating it. It knows no model.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mgm_lora.errors import RefusedError
from mgm_lora.serving.admission import too_many
from mgm_lora.serving.limits import ServingLimits, variable
from mgm_lora.serving.refusals import BUSY_SECONDS, TOO_LARGE, TOO_MANY, WRONG_KIND, refusal_body

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

QUESTIONS_PATH = "/invocations"
_FORMS = ("dataframe_records", "dataframe_split", "instances", "inputs")
_BAD_REQUEST, _TOO_SLOW = 400, 408


class Door:
    """An app around an app; what is not about questions (health, version) passes."""

    def __init__(self, app: App, limits: ServingLimits) -> None:
        """The app behind the door."""
        self._app = app
        self._limits = limits
        self._num_in = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI's own call."""
        if scope["type"] != "http" or scope["path"] != QUESTIONS_PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._num_in >= self._limits.max_requests:
            await _refuse(too_many(self._limits.max_requests), send)
            return
        self._num_in += 1
        try:
            body = await self._checked_body(scope, receive)
            if body is not None:
                await self._app(scope, _replay(body, receive), send)
        except RefusedError as refusal:
            await _refuse(refusal, send)
        finally:
            self._num_in -= 1

    async def _checked_body(self, scope: Message, receive: Receive) -> bytes | None:
        """A body that MLflow can read; None where the asker has gone."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        check_content_type(headers.get("content-type"))
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limits.max_body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                body = await self._read(receive)
        except TimeoutError as error:
            raise RefusedError(
                f"the request has not come within {self._limits.body_seconds} s ({variable('body_seconds')})",
                status=_TOO_SLOW,
            ) from error
        if body is not None:
            await asyncio.to_thread(check_body, body)
        return body

    async def _read(self, receive: Receive) -> bytes | None:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._limits.max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> RefusedError:
        most = self._limits.max_body_bytes
        return RefusedError(
            f"the request is larger than {most} bytes ({variable('max_body_bytes')}): ask in parts, or with smaller pictures",
            status=TOO_LARGE,
        )


def check_content_type(content_type: str | None) -> None:
    """Raises RefusedError for anything but JSON in UTF-8."""
    kind, *parameters = [part.strip().lower() for part in (content_type or "").split(";")]
    if kind != "application/json" or any(parameter not in ("", "charset=utf-8") for parameter in parameters):
        raise RefusedError(
            f"asked for Content-Type: application/json, found {content_type or 'none'}", status=WRONG_KIND
        )


def check_body(body: bytes) -> None:
    """Raises RefusedError for what is no JSON object with one table of rows."""
    try:
        entries = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the request is no JSON: {error}", status=_BAD_REQUEST) from error
    found = sorted(entries) if isinstance(entries, dict) else [type(entries).__name__]
    if not isinstance(entries, dict) or len([name for name in found if name in _FORMS]) != 1:
        shown = ", ".join(found)[:100] or "none"
        raise RefusedError(
            f'asked for {{"dataframe_records": [{{"picture": ..., "question": ...}}]}}, found the entries {shown}',
            status=_BAD_REQUEST,
        )


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once, then what comes after it (that the asker has gone)."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


async def _refuse(refusal: RefusedError, send: Send) -> None:
    body = json.dumps(refusal_body(refusal)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status == TOO_MANY:
        headers.append((b"retry-after", str(BUSY_SECONDS).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
