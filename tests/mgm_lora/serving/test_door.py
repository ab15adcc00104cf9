"""The door before a real server: what it lets through unchanged, and what it refuses before it is read."""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from mgm_lora.serving.door import Door, Message, Receive, Send
from mgm_lora.serving.limits import ServingLimits

GOOD = json.dumps({"dataframe_records": [{"question": "Why?"}]}).encode()
JSON_HEADERS = {"Content-Type": "application/json"}


class Echo:
    """Gives back what it got; waits first, where it is told to."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.arrived, self.go_on = threading.Semaphore(0), threading.Event()
        self.go_on.set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.num_asked += 1
        body = (await receive()).get("body", b"")
        self.arrived.release()
        await asyncio.to_thread(self.go_on.wait, 60)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def standing(app: Any, limits: ServingLimits) -> Iterator[int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(Door(app, limits), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def port(echo: Echo) -> Iterator[int]:
    with standing(echo, ServingLimits(max_body_bytes=1000, max_requests=1, body_seconds=1)) as port:
        yield port


@pytest.fixture
def ask(port: int) -> Callable[..., tuple[int, Any, dict[str, str]]]:
    def ask(
        body: Any = GOOD, headers: dict[str, str] = JSON_HEADERS, *, path: str = "/invocations", method: str = "POST"
    ) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(method, path, body, headers, encode_chunked=not isinstance(body, bytes))
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, content, {name.lower(): value for name, value in response.getheaders()}

    return ask


def message(content: bytes) -> str:
    told = json.loads(content)
    assert set(told) == {"error_code", "message"}
    return str(told["message"])


def test_good_request_passes_unchanged(ask: Callable[..., Any]) -> None:
    assert ask()[:2] == (200, GOOD)
    assert ask(headers={"Content-Type": "Application/JSON; charset=UTF-8"})[:2] == (200, GOOD)
    assert ask(iter([GOOD[:5], GOOD[5:]]), {**JSON_HEADERS, "Transfer-Encoding": "chunked"})[:2] == (200, GOOD)


def test_other_paths_pass_whatever_they_carry(ask: Callable[..., Any]) -> None:
    assert ask(b"x" * 2000, {}, path="/health")[0] == 200
    assert ask(b"", {}, method="GET")[0] == 200


def test_large_body_is_refused_with_and_without_a_length(ask: Callable[..., Any], echo: Echo) -> None:
    status, content, _ = ask(b"x" * 1001)
    assert (status, message(content)[:39]) == (413, "the request is larger than 1000 bytes (")
    chunked = {**JSON_HEADERS, "Transfer-Encoding": "chunked"}
    assert ask(iter([b"x" * 600, b"x" * 600]), chunked)[0] == 413
    assert echo.num_asked == 0


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[1]", b"3", b"{}", b'{"rows": []}', b'{"inputs": [], "instances": []}', b"[" * 900]
)
def test_what_is_no_table_in_json_is_a_bad_request(ask: Callable[..., Any], echo: Echo, body: bytes) -> None:
    status, content, _ = ask(body)
    assert status == 400
    assert len(message(content)) < 250
    assert echo.num_asked == 0


@pytest.mark.parametrize("kind", ["text/csv", "application/json; charset=latin-1", "application/jsonx", ""])
def test_other_content_types_are_refused(ask: Callable[..., Any], kind: str) -> None:
    status, content, _ = ask(headers={"Content-Type": kind} if kind else {})
    assert (status, message(content)[:39]) == (415, "asked for Content-Type: application/jso")


def test_request_beyond_the_limit_may_come_again(ask: Callable[..., Any], echo: Echo) -> None:
    echo.go_on.clear()
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(ask()))
    first.start()
    try:
        assert echo.arrived.acquire(timeout=60)
        status, content, headers = ask()
    finally:
        echo.go_on.set()
        first.join(60)
    assert (status, headers["retry-after"]) == (429, "1")
    assert message(content).startswith("1 requests are being answered already")
    assert answers[0][:2] == (200, GOOD)
    assert ask()[0] == 200


def test_body_that_does_not_come_gives_its_place_back(ask: Callable[..., Any], port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
        head = "POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        slow.sendall(head.encode())
        answer = slow.recv(2000)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert ask()[0] == 200
