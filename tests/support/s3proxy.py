"""A small HTTP proxy in front of the S3 server that loses, refuses and mangles answers on command.

::

    with proxy.fault("drop answer", nth=1, when=puts("journal/")) as fault:
        registry.register(...)
    assert fault.fired

botocore tries again by itself after a 500, a 503 or a lost answer; ``times=None`` outlasts it.
"""

from __future__ import annotations

import http.client
import itertools
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

Action = Literal[
    "drop answer",  # the server has done it; the client hears nothing
    "drop request",  # the server never hears of it
    "cut upload",  # the server gets half of the body
    "cut answer",  # the client gets half of the body, or the part of it that `share` says
    "short answer",  # the client gets half of the body, and that is said to be all
    "long answer",  # the client gets more bytes than there are
    "slow answer",  # the client gets a byte now and then, for `seconds`, and no end
    "flip bit",  # the client gets one wrong bit, and a whole answer
    "delay",  # the server answers late, after `seconds`
]
_KEEP_OUT = {"connection", "keep-alive", "proxy-connection", "expect", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Request:
    """What a client asked.

    Attributes:
        method: GET, PUT, …
        path: decoded: ``/bucket/key``.
        query: the parameters.
        headers: with lower-case names.
        size: of the body, in bytes, as sent.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    size: int

    @property
    def key(self) -> str:
        """The key in the bucket; empty for the bucket itself."""
        return self.path.lstrip("/").partition("/")[2]


When = Callable[[Request], bool]


def anything(_request: Request) -> bool:
    """Whether it is a request at all: yes."""
    return True


def puts(part: str = "") -> When:
    """Return a test for requests that write a key with *part* in it."""
    return lambda request: request.method in ("PUT", "POST") and bool(request.key) and part in request.key


def gets(part: str = "") -> When:
    """Return a test for requests that read a key with *part* in it."""
    return lambda request: request.method == "GET" and bool(request.key) and part in request.key


def writes(request: Request) -> bool:
    """Whether the request changes something."""
    return request.method in ("PUT", "POST", "DELETE")


@dataclass
class ProxyFault:
    """One scripted fault. `fired` tells whether it came; `hit` the requests that it met."""

    action: Action | int
    nth: int
    times: int | None
    when: When
    after: bool
    body: bytes
    seconds: float
    share: float = 0.5
    hit: list[Request] = field(default_factory=list)
    _met: int = 0

    @property
    def fired(self) -> bool:
        """Whether at least one request was met."""
        return bool(self.hit)

    def due(self, request: Request) -> bool:
        """Count *request* if it matches; whether it is to be met."""
        if not self.when(request):
            return False
        self._met += 1
        if self._met < self.nth or (self.times is not None and self._met >= self.nth + self.times):
            return False
        self.hit.append(request)
        return True


class S3Proxy:
    """A proxy on a port of its own in front of *upstream*; a context manager.

    Attributes:
        url: where clients go.
        requests: every request so far, with the status that the client was given (0: none).
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urllib.parse.urlsplit(upstream)
        self.requests: list[tuple[Request, int]] = []
        self._faults: list[ProxyFault] = []
        self._lock = threading.Lock()
        self._under_way = 0
        self._answered = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def fault(
        self,
        action: Action | int,
        *,
        nth: int = 1,
        times: int | None = 1,
        when: When = anything,
        after: bool = False,
        body: bytes = b"",
        seconds: float = 1.0,
        share: float = 0.5,
    ) -> Iterator[ProxyFault]:
        """Meet the *nth* matching request, and *times* in all (None: all from there on), with *action*.

        An int is a status, answered with *body* instead of asking the server; with *after* the
        server has carried the request out before its answer is replaced.
        """
        one = ProxyFault(action, nth, times, when, after, body, seconds, share)
        with self._lock:
            self._faults.append(one)
        try:
            yield one
        finally:
            with self._lock:
                self._faults.remove(one)

    def every_request(
        self, action: Action | int, *, limit: int = 500, **options: Any
    ) -> Iterator[Callable[[], Any]]:
        """Yield ``arm`` for nth = 1, 2, 3 …: ``with arm(): operation()``, until nothing was met.

        Raises:
            AssertionError: the loop did not end within *limit*.
        """
        for nth in itertools.count(1):
            seen: list[ProxyFault] = []

            @contextmanager
            def arm(nth: int = nth, seen: list[ProxyFault] = seen) -> Iterator[ProxyFault]:
                with self.fault(action, nth=nth, **options) as one:
                    seen.append(one)
                    yield one

            yield arm
            assert seen, "the fault was never armed"
            if not seen[0].fired:
                return
            assert nth < limit, f"still met at request {nth}: {seen[0].hit[-1]}"

    def seen(self, when: When = anything) -> list[Request]:
        """Return the requests so far that match, those included whose clients have their answer just now."""
        with self._answered:
            self._answered.wait_for(lambda: not self._under_way, timeout=0.5)
        return [request for request, _ in self.requests if when(request)]

    def due(self, request: Request) -> ProxyFault | None:
        """Return the fault that *request* meets, if any."""
        with self._lock:
            hits = [one for one in self._faults if one.due(request)]
        return hits[0] if hits else None


def _without_length(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [
        (name, value) for name, value in headers if name.lower() not in ("content-length", "content-range")
    ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: S3Proxy

    def do(self) -> None:
        with self.proxy._answered:
            self.proxy._under_way += 1
        try:
            self._do()
        finally:
            with self.proxy._answered:
                self.proxy._under_way -= 1
                self.proxy._answered.notify_all()

    def _do(self) -> None:
        body = self._body()
        parts = urllib.parse.urlsplit(self.path)
        request = Request(
            self.command,
            urllib.parse.unquote(parts.path),
            dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True)),
            {name.lower(): value for name, value in self.headers.items()},
            len(body),
        )
        fault = self.proxy.due(request)
        status = self._meet(fault, body) if fault is not None else self._answer(*self._ask(body))
        self.proxy.requests.append((request, status))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do  # noqa: N815

    def _meet(self, fault: ProxyFault, body: bytes) -> int:
        if isinstance(fault.action, int):
            if fault.after:
                self._ask(body)
            return self._answer(fault.action, [("Content-Type", "application/xml")], fault.body)
        if fault.action == "delay":
            time.sleep(fault.seconds)
            return self._answer(*self._ask(body))
        if fault.action == "drop request":
            return self._hang_up()
        if fault.action == "cut upload":
            self._ask(body, send=len(body) // 2)
            return self._hang_up()
        status, headers, data = self._ask(body)
        if fault.action == "drop answer":
            return self._hang_up()
        if fault.action == "flip bit":
            return self._answer(status, headers, data[:-1] + bytes([data[-1] ^ 1]) if data else data)
        if fault.action == "short answer":
            return self._answer(status, _without_length(headers), data[: len(data) // 2])
        if fault.action == "long answer":
            return self._answer(status, _without_length(headers), data + b"more than there is")
        if fault.action == "slow answer":
            return self._trickle(status, headers, data, fault.seconds)
        self._answer(status, headers, data, send=int(len(data) * fault.share))
        self._hang_up()
        return status

    def _trickle(self, status: int, headers: list[tuple[str, str]], data: bytes, seconds: float) -> int:
        self._answer(status, headers, data, send=0)
        end = time.monotonic() + seconds
        with suppress(OSError):
            for byte in data[:-1]:
                if time.monotonic() > end:
                    break
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
            self._hang_up()
        return status

    def _ask(self, body: bytes, send: int | None = None) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return status, headers and body of the server's answer to this request."""
        upstream = http.client.HTTPConnection(
            self.proxy.upstream.hostname or "", self.proxy.upstream.port or 80, timeout=60
        )
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _KEEP_OUT:
                    upstream.putheader(name, value)
            upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders()
            upstream.send(body[:send])
            if send is not None and upstream.sock is not None:
                upstream.sock.shutdown(socket.SHUT_WR)
            answer = upstream.getresponse()
            headers = [(n, v) for n, v in answer.getheaders() if n.lower() not in _KEEP_OUT]
            if self.command == "HEAD":  # the length is about a body that does not come
                headers.append(("Content-Length", answer.getheader("Content-Length") or "0"))
            return answer.status, headers, answer.read()
        except (OSError, http.client.HTTPException):
            return 502, [], b""
        finally:
            upstream.close()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, send: int | None = None
    ) -> int:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name == "Content-Length" for name, _ in headers) and status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:send])
            self.wfile.flush()
        return status

    def _hang_up(self) -> int:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        return 0

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 — the base class calls it so
        """Say nothing."""
