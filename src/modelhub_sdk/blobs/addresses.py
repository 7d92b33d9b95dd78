"""Addresses that nothing is ever fetched from, and connections that are made to the addresses that were checked.

A machine's cloud tells secrets at link-local and a few other addresses to whoever asks from the machine itself. A
URL in a record must not lead there: not by another spelling of the address, not by a name that resolves to it, and
not by a name that resolves to something else when it is looked up a second time.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any

from modelhub_sdk.errors import NotAllowed, shown

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_REFUSED = tuple(
    map(
        ipaddress.ip_network,
        (
            "169.254.0.0/16",  # link-local; the metadata of nearly all clouds
            "fe80::/10",
            "100.100.100.200/32",  # Alibaba
            "168.63.129.16/32",  # Azure
            "192.0.0.192/32",  # Oracle
            "fd00:ec2::/32",  # AWS
            "fd20:ce::254/128",  # Google
            "fd00:c1::a9fe:a9fe/128",  # Oracle
            "fd00:42::42/128",  # Scaleway
        ),
    )
)
_NAMES = frozenset(
    {
        "instance-data",
        "instance-data.ec2.internal",
        "metadata",
        "metadata.azure.internal",
        "metadata.goog",
        "metadata.google.internal",
        "metadata.tencentyun.com",
    }
)
_TRANSLATED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48")))  # NAT64
_INTERFACE = frozenset({0x00005EFE, 0x02005EFE})  # of ISATAP


def is_refused(address: str) -> bool:
    """Return whether an address, in any of its spellings, tells secrets of the machine that asks."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return any(one in network for one in _spelled(found) for network in _REFUSED)


def _spelled(address: _Address) -> Iterator[_Address]:
    """Yield an address, and the IPv4 addresses that an IPv6 one carries."""
    yield address
    if isinstance(address, ipaddress.IPv4Address):
        return
    value = int(address)
    last = value & 0xFFFFFFFF
    if value >> 32 in (0, 0xFFFF, 0xFFFF0000) or (value >> 32) & 0xFFFFFFFF in _INTERFACE:
        yield ipaddress.IPv4Address(last)  # compatible, mapped, translated (SIIT); ISATAP
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if any(address in network for network in _TRANSLATED):
        yield ipaddress.IPv4Address(last)
        yield from _embedded(value)


def _embedded(value: int) -> Iterator[_Address]:
    """Yield the IPv4 addresses of a NAT64 address by the shorter prefixes of RFC 6052, which leave out bits 64 to 71."""
    without = (value >> 64 << 56) | (value & ((1 << 56) - 1))  # 120 bits
    for length in (32, 40, 48, 56, 64):
        yield ipaddress.IPv4Address(without >> (120 - length - 32) & 0xFFFFFFFF)


def check_host(host: str) -> None:
    """Raise NotAllowed for a name of a metadata service, whatever it resolves to."""
    if host.rstrip(".").casefold() in _NAMES:
        raise _refusal(host)


def check_resolved(host: str, port: int | None) -> None:
    """Raise NotAllowed when *host* resolves, here and now, to a refused address. Unknown names pass."""
    check_host(host)
    try:
        found = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, ValueError):
        return  # the request itself will say so
    _check_all(host, found)


def _check_all(host: str, found: list[Any]) -> None:
    if any(is_refused(str(at[4][0])) for at in found):
        raise _refusal(host)


def _refusal(host: str) -> NotAllowed:
    return NotAllowed(
        f"{shown(host)} is a link-local address, or one of a cloud's service for the machine itself:"
        " nothing is ever fetched from there."
    )


def connect(
    address: tuple[str, int], timeout: Any = None, source_address: tuple[str, int] | None = None
) -> socket.socket:
    """Return a connection to *address*, looked up once: what was checked is what is connected to.

    Raises:
        NotAllowed: one of its addresses is refused.
        OSError: none of them answers.
    """
    host, port = address
    check_host(host)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    _check_all(host, found)
    problem: OSError | None = None
    for family, kind, protocol, _, at in found:
        connection = socket.socket(family, kind, protocol)
        try:
            if isinstance(timeout, (int, float)):
                connection.settimeout(timeout)
            if source_address is not None:
                connection.bind(source_address)
            connection.connect(at)
        except OSError as error:
            connection.close()
            problem = error
        else:
            return connection
    raise problem or OSError(f"getaddrinfo returns nothing for {shown(host)}")


class _Http(http.client.HTTPConnection):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._create_connection = connect


class _Https(http.client.HTTPSConnection):
    """TLS asks for, and checks, the name of the URL; only the address is ours."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._create_connection = connect


def is_proxied(request: urllib.request.Request) -> bool:
    """Return whether a request goes to a proxy, which looks the name up itself."""
    return request.has_proxy() or getattr(request, "_tunnel_host", None) is not None


class Http(urllib.request.HTTPHandler):
    """Connects to checked addresses. A proxy of the environment is connected to as it is configured."""

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open an http URL."""
        return self.do_open(http.client.HTTPConnection if is_proxied(req) else _Http, req)


class Https(urllib.request.HTTPSHandler):
    """The same for https."""

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open an https URL."""
        made = http.client.HTTPSConnection if is_proxied(req) else _Https
        return self.do_open(made, req, context=self._context)  # type: ignore[attr-defined]


__all__ = ["Http", "Https", "check_host", "check_resolved", "is_proxied", "is_refused"]
