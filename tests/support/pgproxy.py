"""A proxy in front of PostgreSQL that cuts the connection at a chosen message.

It reads just enough of the protocol to see the client's messages and their SQL::

    with proxy.cut("after") as cut:        # the server commits, the client never hears of it
        registry.register(...)
    assert cut.fired
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Moment = Literal[
    "before",  # the message never reaches the server: it rolls back
    "after",  # the server has answered; the answer never reaches the client
]
_WITHOUT_TYPE = {80877103, 80877104}  # the client asks for TLS, for GSSAPI; the start-up message still comes
_CANCEL = 80877102


@dataclass(frozen=True)
class Message:
    """One message of the client: its type (``Q`` query, ``P`` parse, ``X`` bye, …) and SQL, if it has any."""

    type: str
    sql: str


When = Callable[[Message], bool]


def commits(message: Message) -> bool:
    """Whether the message asks for COMMIT."""
    return message.sql.strip().rstrip(";").upper() in ("COMMIT", "END", "COMMIT TRANSACTION")


def statements(part: str = "") -> When:
    """Return a test for messages with SQL that has *part* in it, in any case."""
    return lambda message: bool(message.sql) and part.lower() in message.sql.lower()


def anything(message: Message) -> bool:
    """Whether the message makes the server do something. A goodbye does not."""
    return message.type in "QPEBS"


@dataclass
class Cut:
    """One scripted cut. `fired` tells whether it came, `message` at what."""

    moment: Moment
    nth: int
    times: int | None
    when: When
    messages: list[Message] = field(default_factory=list)
    _met: int = 0

    @property
    def fired(self) -> bool:
        """Whether at least one connection was cut."""
        return bool(self.messages)

    def due(self, message: Message) -> bool:
        """Count *message* if it matches; whether to cut here."""
        if not self.when(message):
            return False
        self._met += 1
        if self._met < self.nth or (self.times is not None and self._met >= self.nth + self.times):
            return False
        self.messages.append(message)
        return True


class PostgresProxy:
    """A proxy on a port of its own in front of the database of *url*; a context manager.

    Attributes:
        url: the same database, through the proxy.
        statements: every SQL text that went through, in order.
        connections: how many were opened.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        port = self._listener.getsockname()[1]
        login = parts.netloc.rpartition("@")[0]
        self.url = urllib.parse.urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{port}"))
        self.statements: list[str] = []
        self.connections = 0
        self._cuts: list[Cut] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._refusing = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()

    @contextmanager
    def cut(
        self, moment: Moment, *, nth: int = 1, times: int | None = 1, when: When = commits
    ) -> Iterator[Cut]:
        """Cut the connection at the *nth* matching message, and *times* in all (None: from there on)."""
        one = Cut(moment, nth, times, when)
        with self._lock:
            self._cuts.append(one)
        try:
            yield one
        finally:
            with self._lock:
                self._cuts.remove(one)

    def every_message(
        self, moment: Moment, *, limit: int = 500, when: When = anything
    ) -> Iterator[Callable[[], Any]]:
        """Yield ``arm`` for nth = 1, 2, 3 …: ``with arm(): operation()``, until nothing was cut.

        Raises:
            AssertionError: the loop did not end within *limit*.
        """
        for nth in itertools.count(1):
            seen: list[Cut] = []

            @contextmanager
            def arm(nth: int = nth, seen: list[Cut] = seen) -> Iterator[Cut]:
                with self.cut(moment, nth=nth, when=when) as one:
                    seen.append(one)
                    yield one

            yield arm
            assert seen, "the cut was never armed"
            if not seen[0].fired:
                return
            assert nth < limit, f"still cutting at message {nth}: {seen[0].messages[-1]}"

    @contextmanager
    def away(self) -> Iterator[None]:
        """Be out of reach: existing connections are cut and new ones are closed at once."""
        self._refusing = True
        self.cut_all()
        try:
            yield
        finally:
            self._refusing = False

    def cut_all(self) -> None:
        """Cut every open connection now."""
        with self._lock:
            ends = list(self._open)
        for end in ends:
            _close(end)

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            if self._refusing:
                _close(client)
                continue
            with self._lock:
                self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._upstream, timeout=30)
        except OSError:
            _close(client)
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open |= {client, server}
        gate = _Gate()
        back = threading.Thread(target=self._answers, args=(client, server, gate), daemon=True)
        back.start()
        try:
            self._questions(client, server, gate)
        except (OSError, EOFError):
            pass
        finally:
            _close(client)
            _close(server)
            back.join(10)
            with self._lock:
                self._open -= {client, server}

    def _questions(self, client: socket.socket, server: socket.socket, gate: _Gate) -> None:
        """Pass the client's messages on, until one is to be cut or the client leaves."""
        while True:  # before the start-up message there is no type byte
            size, code = struct.unpack("!II", _exactly(client, 8))
            server.sendall(struct.pack("!II", size, code) + _exactly(client, size - 8))
            if code == _CANCEL:
                return
            if code not in _WITHOUT_TYPE:
                break
        while True:
            head = _exactly(client, 5)
            body = _exactly(client, struct.unpack("!I", head[1:])[0] - 4)
            message = Message(chr(head[0]), _sql(chr(head[0]), body))
            with self._lock:
                if message.sql:
                    self.statements.append(message.sql)
                cut = next((one for one in self._cuts if one.due(message)), None)
            if cut is None:
                server.sendall(head + body)
                continue
            if cut.moment == "before":
                return
            gate.hold()
            server.sendall(head + body)
            if message.type in "PBE":  # the server answers these only when it is asked to sync
                server.sendall(b"S" + struct.pack("!I", 4))
            gate.answered.wait(30)
            return

    def _answers(self, client: socket.socket, server: socket.socket, gate: _Gate) -> None:
        """Pass the server's bytes back; once the gate holds, only watch for the end of the answer."""
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if not gate.held:
                    client.sendall(data)
                elif b"Z\x00\x00\x00\x05" in gate.collect(data):  # ready for the next query
                    gate.answered.set()
        gate.answered.set()
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)


class _Gate:
    """Whether answers still pass, and whether the last one was complete."""

    def __init__(self) -> None:
        self.held = False
        self.answered = threading.Event()
        self._data = b""

    def hold(self) -> None:
        self.held = True

    def collect(self, data: bytes) -> bytes:
        self._data += data
        return self._data


def _sql(kind: str, body: bytes) -> str:
    if kind == "Q":
        return body.rstrip(b"\0").decode("utf-8", "replace")
    if kind == "P":  # name NUL query NUL …
        return body.split(b"\0", 2)[1].decode("utf-8", "replace")
    return ""


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        sock.close()
