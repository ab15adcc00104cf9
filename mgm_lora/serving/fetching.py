"""Fetches a picture by its URL, from hosts that are allowed and from nowhere else.

A name is looked up once and the connection made to the address that was checked, so that a name can't lead elsewhere meanwhile. A redirect
is followed on the same host only. Proxies of the environment are not used. It doesn't look into what it fetched.
"""

import ipaddress
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from mgm_lora.errors import RefusedError
from mgm_lora.serving.limits import ServingLimits, variable
from mgm_lora.serving.refusals import NOT_ALLOWED, TOO_LARGE, UNUSABLE

_PORTS = {"http": 80, "https": 443}
_CHUNK = 2**16
_MAX_REDIRECTS = 3


def fetch(url: str, *, limits: ServingLimits) -> bytes:
    """The bytes that a URL gives.

    Raises:
        RefusedError: its host is not allowed, lies in a private network, sends on to another, or it gave nothing, too much, or too late.
    """
    deadline = time.monotonic() + limits.fetch_seconds
    host = _allowed_host(url, limits=limits)
    for _ in range(_MAX_REDIRECTS + 1):
        with _get(url, limits=limits, deadline=deadline) as response:
            if response.status == 200:
                return _read(response, url=url, limits=limits, deadline=deadline)
            if not response.get_redirect_location():
                raise RefusedError(
                    f"'{_short(url)}' gave no picture: its host answered {response.status}", status=UNUSABLE
                )
            url = urljoin(url, str(response.get_redirect_location()))
        if _allowed_host(url, limits=limits) != host:
            raise RefusedError(
                f"'{host}' sends on to another host, '{_short(url)}': name the picture's own URL", status=NOT_ALLOWED
            )
    raise RefusedError(
        f"'{host}' sends on more than {_MAX_REDIRECTS} times: name the picture's own URL", status=UNUSABLE
    )


def _allowed_host(url: str, *, limits: ServingLimits) -> str:
    """`name:port` of a URL that may be fetched."""
    parts = _split(url)
    name, port = str(parts.hostname), _port(parts)
    allowed = {name} if port in _PORTS.values() else set()
    if not limits.hosts:
        raise RefusedError(
            f"this server fetches no URLs, found '{_short(url)}': send the picture itself as base64 ({variable('hosts')} allows hosts)",
            status=NOT_ALLOWED,
        )
    if not {*allowed, f"{name}:{port}"} & set(limits.hosts):
        raise RefusedError(
            f"this server fetches nothing from '{name}:{port}', only from {', '.join(limits.hosts)} ({variable('hosts')}): send the picture"
            " itself as base64",
            status=NOT_ALLOWED,
        )
    return f"{name}:{port}"


@contextmanager
def _get(url: str, *, limits: ServingLimits, deadline: float) -> Iterator[BaseHTTPResponse]:
    parts = _split(url)
    name, port = str(parts.hostname), _port(parts)
    address = _address(name, port, limits=limits)
    timeout = urllib3.Timeout(total=max(deadline - time.monotonic(), 0.001))
    pool: urllib3.HTTPConnectionPool
    if parts.scheme == "https":
        pool = urllib3.HTTPSConnectionPool(address, port, timeout=timeout, server_hostname=name, assert_hostname=name)
    else:
        pool = urllib3.HTTPConnectionPool(address, port, timeout=timeout)
    with pool:
        try:
            response = pool.request(
                "GET",
                parts._replace(scheme="", netloc="", fragment="", path=parts.path or "/").geturl(),
                headers={"Host": parts.netloc, "Accept": "image/*", "User-Agent": "mgm-lora"},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
        except HTTPError as error:
            raise RefusedError(f"'{_short(url)}' can't be fetched: {_reason(error)}", status=UNUSABLE) from error
        try:
            yield response
        finally:
            response.close()


def _read(response: BaseHTTPResponse, *, url: str, limits: ServingLimits, deadline: float) -> bytes:
    content = bytearray()
    try:
        while chunk := response.read1(_CHUNK, decode_content=False):  # whatever has come: a host may drip
            content += chunk
            if len(content) > limits.max_picture_bytes:
                raise RefusedError(
                    f"'{_short(url)}' is larger than {limits.max_picture_bytes} bytes ({variable('max_picture_bytes')})",
                    status=TOO_LARGE,
                )
            if time.monotonic() > deadline:
                raise RefusedError(
                    f"'{_short(url)}' has not come within {limits.fetch_seconds} s ({variable('fetch_seconds')})",
                    status=UNUSABLE,
                )
    except HTTPError as error:
        raise RefusedError(f"'{_short(url)}' broke off: {_reason(error)}", status=UNUSABLE) from error
    return bytes(content)


def _address(name: str, port: int, *, limits: ServingLimits) -> str:
    """What the name stands for now; every address of it must be a public one."""
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise RefusedError(f"the host '{name}' is not found: {error}", status=UNUSABLE) from error
    private = [address for address in found if not _is_public(address)]
    if private and not limits.private_addresses:
        raise RefusedError(
            f"the host '{name}' is in a private network, which this server doesn't fetch from ({variable('private_addresses')})",
            status=NOT_ALLOWED,
        )
    return found[0]


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    parsed = mapped or parsed
    return parsed.is_global and not parsed.is_multicast


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.scheme in _PORTS and parts.hostname and parts.username is None and _port(parts):
            return parts
    except ValueError:  # a port or an IPv6 address that is none
        pass
    raise RefusedError(
        f"'{_short(url)}' is no URL of a picture: write https://HOST/PATH, without a user", status=UNUSABLE
    )


def _port(parts: SplitResult) -> int:
    return parts.port or _PORTS[parts.scheme]


def _reason(error: HTTPError) -> str:
    return f"{type(error).__name__.removesuffix('Error')} ({str(error).rpartition(': ')[2]})"


def _short(url: str) -> str:
    return url if len(url) <= 100 else f"{url[:100]}..."
