"""Reading what is no file of this disk: somebody's file object, and an object of a store in ranges."""

from __future__ import annotations

import contextlib
import errno
import io
from typing import TYPE_CHECKING, Any, BinaryIO

from modelhub_sdk.blobs.disk import unavailable
from modelhub_sdk.blobs.driver import patiently
from modelhub_sdk.blobs.patience import time_for
from modelhub_sdk.blobs.room import READING
from modelhub_sdk.errors import (
    DigestMismatch,
    InvalidDocument,
    ModelHubError,
    NotFound,
    StoreUnavailable,
    shown,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

_RANGE = 4 << 20  # bytes asked for at once
_AHEAD = 8  # ranges of one object under way


class StreamReader:
    """A `Reader` of somebody's file object: whatever it raises or returns becomes a typed error."""

    def __init__(self, stream: Any, path: str) -> None:
        self._stream = stream
        self._path = path
        self._rest = b""

    def readinto(self, view: memoryview) -> int:
        """Fill *view* from its start and return how many bytes came."""
        if not self._rest:
            self._rest = self._next(len(view))
        piece, self._rest = self._rest[: len(view)], self._rest[len(view) :]
        view[: len(piece)] = piece
        return len(piece)

    def _next(self, wanted: int) -> bytes:
        try:
            data = self._stream.read(wanted)
        except ModelHubError:
            raise
        except Exception as exc:
            if isinstance(exc, OSError):
                raise unavailable(exc, "read", self._path) from exc
            raise InvalidDocument(
                f"Reading {shown(self._path)} failed: its file object raised {type(exc).__name__}."
            ) from exc
        if isinstance(data, str):
            raise InvalidDocument(
                f"The file object for {shown(self._path)} gives text.",
                hint="Open it in binary mode: open(…, 'rb').",
            )
        if data is None:
            raise StoreUnavailable(
                f"The file object for {shown(self._path)} has no data ready (non-blocking)."
            )
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise InvalidDocument(f"The file object for {shown(self._path)} gives {shown(data)}, not bytes.")
        return bytes(data)

    def finish(self) -> None:
        """Check nothing."""

    def close(self) -> None:
        """Leave it open: it belongs to whoever opened it."""


class OwnReader(StreamReader):
    """A reader of a file that was opened for it alone."""

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def piece(fs: Any, key: str, start: int, end: int, where: str, version: str | None = None) -> bytes:
    """Return bytes *start* to *end* of the object; fewer only at its end."""
    tried = 0
    options: dict[str, Any] = {} if version is None else {"version_id": version}
    if getattr(fs, "async_impl", False):
        options["timeout"] = time_for(end - start)

    def ask() -> bytes:
        nonlocal tried
        try:
            return bytes(fs.cat_file(key, start=start, end=end, **options))
        except OSError as exc:
            if exc.errno == errno.EINVAL and "range" in str(exc).lower():
                return b""  # it has no byte there at all
            raise
        except Exception as exc:
            if "Checksum" in type(exc).__name__ and (tried := tried + 1) >= 3:  # the driver's own check
                raise DigestMismatch(
                    f"The bytes from {shown(where)} are wrong: the driver's check failed.",
                    hint="Restore the object from a backup, or register the file again.",
                    source=where,
                ) from exc
            raise

    return patiently(ask, "read from", where)[: end - start]


class Ranges:
    """A `Reader` of an object of *size* bytes, from *start* on; in a *version*, where its store keeps those.

    It asks a few ranges ahead where the driver can, within the memory that is left.
    One byte more than *size* is asked for, so that a longer object shows.
    """

    def __init__(
        self, fs: Any, key: str, size: int, where: str, *, start: int = 0, version: str | None = None
    ) -> None:
        self._fs, self._key, self._shown, self._version = fs, key, where, version
        self._size = size
        self._next = start
        self._rest = memoryview(b"")
        self._held = 0  # of what is being read now
        self._ahead: list[tuple[int, int, Future[bytes] | None]] = []
        self._several = size - start > _RANGE and getattr(fs, "async_impl", False)

    def readinto(self, view: memoryview) -> int:
        """Fill *view* from its start and return how many bytes came."""
        if not self._rest:
            self._rest = memoryview(self._more())
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _more(self) -> bytes:
        self._rest = memoryview(b"")
        self._let_go()
        while self._next < self._size and len(self._ahead) < (_AHEAD if self._several else 1):
            count = min(_RANGE, self._size - self._next)
            if not READING.take(count, wait=False):
                if self._ahead:
                    break
                READING.force(count)  # what is needed next waits for nobody
            self._ahead.append((self._next, count, self._asked(self._next, count)))
            self._next += count
        if not self._ahead:
            return b""
        at, self._held, pending = self._ahead.pop(0)
        if pending is not None:
            with contextlib.suppress(Exception):  # whatever it was: asked again below, with patience
                data = bytes(pending.result())
                return data[: self._end(at, self._held) - at]
        return piece(self._fs, self._key, at, self._end(at, self._held), self._shown, self._version)

    def _end(self, at: int, count: int) -> int:
        return at + count + (at + count == self._size)

    def _asked(self, at: int, count: int) -> Future[bytes] | None:
        """Ask for a range without waiting for it."""
        if not self._several:
            return None
        import asyncio

        options = {} if self._version is None else {"version_id": self._version}
        coming = self._fs._cat_file(self._key, start=at, end=self._end(at, count), **options)
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(coming, time_for(count)), self._fs.loop)

    def _let_go(self) -> None:
        if self._held:
            READING.give(self._held)
            self._held = 0

    def finish(self) -> None:
        """Check nothing."""

    def close(self) -> None:
        """Give back the memory, and forget what was asked for."""
        self._rest = memoryview(b"")
        self._let_go()
        while self._ahead:
            _, count, pending = self._ahead.pop()
            if pending is not None:
                pending.cancel()
            READING.give(count)


class _Ranged(io.RawIOBase):
    """An object as a seekable raw file of its own position, unlike some drivers' shared ones."""

    def __init__(self, fs: Any, key: str, size: int, where: str, version: str | None) -> None:
        self._fs, self._key, self._size, self._shown, self._version = fs, key, size, where, version
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._at, self._size)[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readall(self) -> bytes:
        pieces = []
        while piece := self.read(_RANGE):
            pieces.append(piece)
        return b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._at + len(view), self._size)
        if end <= self._at:
            return 0
        try:
            data = piece(self._fs, self._key, self._at, end, self._shown, self._version)
        except FileNotFoundError as exc:
            raise NotFound(f"An object of {shown(self._shown)} vanished while it was read.") from exc
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def ranged(fs: Any, key: str, size: int, where: str, version: str | None = None) -> BinaryIO:
    """Return an object of *size* bytes as a seekable file."""
    raw = _Ranged(fs, key, size, where, version)
    return io.BufferedReader(raw, _RANGE if size > _RANGE else max(size, 1))


__all__ = ["OwnReader", "Ranges", "StreamReader", "piece", "ranged"]
