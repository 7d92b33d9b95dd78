"""Nothing is fetched from the metadata services of clouds, however the address is spelled or looked up."""

from __future__ import annotations

import socket
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from modelhub_sdk.blobs import addresses, web
from modelhub_sdk.errors import NotAllowed, StoreUnavailable
from tests.support.web import Quiet, serving

REFUSED = [
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
    "::ffff:169.254.169.254",
    "::ffff:0:169.254.169.254",
    "::169.254.169.254",
    "::100.100.100.200",
    "64:ff9b::169.254.169.254",
    "64:ff9b::6464:64c8",
    "64:ff9b:1::169.254.169.254",
    "64:ff9b:1:a9fe:a9:fe00::",  # by a prefix of 48 bits
    "64:ff9b:1:0:a9:fea9:fe00:0",  # by one of 64 bits
    "2002:a9fe:a9fe::1",
    "2002:a83f:8110::",
    "2001:0:a9fe:a9fe::1",  # a Teredo server
    "2001:0:4136:e378:8000:63bf:5601:5601",  # a Teredo client, inverted
    "2001:db8::5efe:169.254.169.254",
    "2001:db8::200:5efe:a9fe:a9fe",
]
ALLOWED = [
    "127.0.0.1",
    "::1",
    "10.0.0.1",
    "8.8.8.8",
    "100.100.100.201",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
    "fd00::1",
    "2001:db8::1",
]


class Hello(Quiet):
    """Says hello, and which host it was asked for."""

    def answer(self) -> None:
        data = f"hello {self.headers['Host']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def fetched(url: str) -> bytes:
    reader = web.WebReader(url)
    try:
        view = memoryview(bytearray(1000))
        return bytes(view[: reader.readinto(view)])
    finally:
        reader.close()


def answers(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> list[str]:
    """Let each look-up of ``rebound.example`` give the next of *hosts*, then the last; return what was asked."""
    real, asked = socket.getaddrinfo, []

    def lookup(host: Any, *args: Any, **options: Any) -> Any:
        if host == "rebound.example":
            asked.append(host)
            return real(hosts[min(len(asked), len(hosts)) - 1], *args, **options)
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return asked


def test_refused_addresses() -> None:
    """Link-local and metadata addresses are refused in every spelling, and others are not."""
    assert [one for one in REFUSED if not addresses.is_refused(one)] == []
    assert [one for one in ALLOWED if addresses.is_refused(one)] == []


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[::a9fe:a9fe]",
        "2852039166",
        "0xa9fea9fe",
        "metadata.google.internal",
        "METADATA.google.internal.",
        "100.100.100.200",
    ],
)
def test_nothing_is_fetched_from_there(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL, and a redirect to one, is refused before any connection is made to the address."""
    monkeypatch.setattr(socket.socket, "connect", _never_there(socket.socket.connect))
    with pytest.raises(NotAllowed, match="nothing is ever fetched"):
        fetched(f"http://{host}/latest/meta-data")

    class Away(Quiet):
        def answer(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"http://{host}/latest/meta-data")
            self.send_header("Content-Length", "0")
            self.end_headers()

    with serving(Away) as url, pytest.raises(NotAllowed, match="nothing is ever fetched"):
        fetched(url)


def _never_there(real: Any) -> Any:
    def connect(self: socket.socket, address: Any) -> None:
        assert address[0] == "127.0.0.1", f"connected to {address}"
        real(self, address)

    return connect


def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that resolves to another address the second time is connected to as it was checked."""
    with serving(Hello) as url:
        port = url.rpartition(":")[2]
        asked = answers(monkeypatch, "127.0.0.1", "169.254.169.254")
        assert fetched(f"http://rebound.example:{port}/x") == f"hello rebound.example:{port}".encode()
        assert len(asked) == 1


def test_one_bad_address_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a good and a refused address is refused, whichever comes first."""
    real = socket.getaddrinfo

    def lookup(host: Any, *args: Any, **options: Any) -> Any:
        if host != "rebound.example":
            return real(host, *args, **options)
        return real("127.0.0.1", *args, **options) + real("169.254.169.254", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(NotAllowed):
        fetched("http://rebound.example:1/x")


def test_tls_checks_the_name_of_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over https the server is asked for, and checked as, the host of the URL."""
    import ssl

    names: list[str | None] = []

    def wrap(self: Any, sock: Any, *args: Any, server_hostname: str | None = None, **options: Any) -> Any:
        names.append(server_hostname)
        raise ssl.SSLCertVerificationError("stop here")

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap)
    with serving(Hello) as url:
        answers(monkeypatch, "127.0.0.1", "169.254.169.254")
        with pytest.raises(StoreUnavailable):
            fetched(f"https://rebound.example:{url.rpartition(':')[2]}/x")
    assert names == ["rebound.example"]


def test_behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy looks names up; what is refused by its name, or as it resolves here, is not asked of it."""
    seen: list[str] = []

    class Proxy(Hello):
        def answer(self: BaseHTTPRequestHandler) -> None:
            seen.append(self.path)
            Hello.answer(self)  # type: ignore[arg-type]

    with serving(Proxy) as url:
        monkeypatch.setenv("http_proxy", url)
        assert fetched("http://unknown.invalid/x") == b"hello unknown.invalid"
        for host in ("metadata.google.internal", "[64:ff9b::a9fe:a9fe]", "169.254.169.254"):
            with pytest.raises(NotAllowed):
                fetched(f"http://{host}/latest")
    assert seen == ["http://unknown.invalid/x"]
