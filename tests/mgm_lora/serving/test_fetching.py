"""URLs of pictures, from a real host on loopback: what is fetched, and what never."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mgm_lora.errors import RefusedError
from mgm_lora.serving.fetching import fetch
from mgm_lora.serving.limits import ServingLimits

Respond = Callable[[BaseHTTPRequestHandler], None]


class Host:
    """Answers every path as a test says; keeps what was asked."""

    def __init__(self) -> None:
        self.respond: Respond = lambda request: send(request, b"a picture")
        self.asked: list[tuple[str, str]] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append((self.headers["Host"], self.path))
                host.respond(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port


def send(request: BaseHTTPRequestHandler, content: bytes, *, status: int = 200, location: str | None = None) -> None:
    request.send_response(status)
    if location is not None:
        request.send_header("Location", location)
    request.end_headers()
    request.wfile.write(content)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    thread = threading.Thread(target=host.server.serve_forever, daemon=True)
    thread.start()
    yield host
    host.server.shutdown()
    host.server.server_close()
    thread.join()


@pytest.fixture
def limits(host: Host) -> ServingLimits:
    return ServingLimits(
        hosts=(f"localhost:{host.port}",), private_addresses=True, fetch_seconds=5, max_picture_bytes=100
    )


def refused(url: str, limits: ServingLimits) -> tuple[int, str]:
    with pytest.raises(RefusedError) as told:
        fetch(url, limits=limits)
    return told.value.status, str(told.value)


def test_allowed_host_is_asked_by_its_name(host: Host, limits: ServingLimits) -> None:
    assert fetch(f"http://localhost:{host.port}/a/1.png?size=2#part", limits=limits) == b"a picture"
    assert host.asked == [(f"localhost:{host.port}", "/a/1.png?size=2")]


def test_other_names_ports_users_and_kinds_of_urls_are_not_asked(host: Host, limits: ServingLimits) -> None:
    for url, status in (
        (f"http://127.0.0.1:{host.port}/", 403),
        ("http://localhost/", 403),
        (f"http://localhost:{host.port}@example.org/", 422),
        (f"http://localhost.:{host.port}/", 403),
        ("https://", 422),
        ("http://localhost:none/", 422),
        (f"ftp://localhost:{host.port}/", 422),
    ):
        assert refused(url, limits)[0] == status, url
    assert host.asked == []


def test_private_addresses_are_not_asked_unless_allowed(host: Host, limits: ServingLimits) -> None:
    public = limits.model_copy(update={"private_addresses": False})
    status, message = refused(f"http://localhost:{host.port}/", public)
    assert (status, "in a private network" in message) == (403, True)
    for address in ("10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "[fe80::1]", "0.0.0.0", "224.0.0.1"):
        strict = public.model_copy(update={"hosts": (address.strip("[]"),)})
        status, message = refused(f"http://{address}/", strict)
        assert (status, "in a private network" in message) == (403, True), address
    assert host.asked == []


def test_redirect_is_followed_on_the_same_host_only(host: Host, limits: ServingLimits) -> None:
    def respond(request: BaseHTTPRequestHandler) -> None:
        steps = {
            "/first": "/second",
            "/second": f"http://localhost:{host.port}/third",
            "/out": f"http://127.0.0.1:{host.port}/",
        }
        location = steps.get(request.path, "/round" if request.path == "/round" else None)
        send(request, b"a picture", status=302 if location else 200, location=location)

    host.respond = respond
    address = f"http://localhost:{host.port}"
    assert fetch(f"{address}/first", limits=limits) == b"a picture"
    assert refused(f"{address}/out", limits)[0] == 403
    wider = limits.model_copy(update={"hosts": (*limits.hosts, f"127.0.0.1:{host.port}")})
    assert "sends on to another host" in refused(f"{address}/out", wider)[1]
    assert "sends on more than 3 times" in refused(f"{address}/round", limits)[1]


def test_what_is_too_large_is_not_read_to_its_end(host: Host, limits: ServingLimits) -> None:
    ended = threading.Event()

    def respond(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            while True:
                request.wfile.write(b"x" * 65536)
        except OSError:
            ended.set()

    host.respond = respond
    status, message = refused(f"http://localhost:{host.port}/", limits)
    assert (status, "larger than 100 bytes (MGM_LORA_SERVE_MAX_PICTURE_BYTES)" in message) == (413, True)
    assert ended.wait(30)


def test_host_that_drips_is_left(host: Host, limits: ServingLimits) -> None:
    left = threading.Event()

    def respond(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            while not left.wait(0.2):
                request.wfile.write(b"x")
        except OSError:
            left.set()

    host.respond = respond
    hurried = limits.model_copy(update={"fetch_seconds": 1})
    status, message = refused(f"http://localhost:{host.port}/", hurried)
    assert status == 422
    assert "has not come within 1 s" in message
    assert left.wait(30)


def test_host_that_answers_no_picture_is_told(host: Host, limits: ServingLimits) -> None:
    host.respond = lambda request: send(request, b"", status=404)
    assert refused(f"http://localhost:{host.port}/", limits) == (
        422,
        f"'http://localhost:{host.port}/' gave no picture: its host answered 404",
    )
    assert refused("http://nowhere.invalid/", limits.model_copy(update={"hosts": ("nowhere.invalid",)}))[0] == 422
