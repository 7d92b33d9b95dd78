"""Blobs on an object store or any other fsspec file system, and URLs as sources.

Nothing here relies on listings for existence, on one answer for success, or on a driver's own
buffering: objects are read in ranges, written under their final name only where the medium shows
them whole or not at all, and an error after a write is settled by looking.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from attrs import frozen

from modelhub_sdk.blobs import disk, multipart
from modelhub_sdk.blobs.disk import FdReader, Progress, Reader
from modelhub_sdk.blobs.patience import patient, time_for
from modelhub_sdk.blobs.room import READING, SENDING
from modelhub_sdk.blobs.sources import Source
from modelhub_sdk.errors import (
    Conflict,
    CredentialsRefused,
    DigestMismatch,
    InvalidName,
    MissingExtra,
    ModelHubError,
    NotFound,
    StoreUnavailable,
    shown,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

log = logging.getLogger(__name__)

T = TypeVar("T")

_RANGE = 4 << 20  # bytes asked for at once
_AHEAD = 8  # ranges of one object under way
_WHOLE = 8 << 20  # up to this size an object is written by one request, from memory
_BLOCK = 16 << 20  # parts of larger ones

_CREATE_ONLY = {"s3", "s3a"}  # mode="create" sends If-None-Match: *
_ATOMIC = _CREATE_ONLY | {
    "gs",
    "gcs",
    "abfs",
    "abfss",
    "az",
    "oss",
    "obs",
    "oci",
    "memory",
}  # whole or not at all
_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
}

_KEY = re.compile(r"([0-9a-f]{2})/([0-9a-f]{62})")

_REFUSED = re.compile(
    r"NoCredentials|PartialCredentials|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|TokenRefresh"
    r"|AccessDenied|InvalidToken|AuthenticationFailed|Unauthorized|Forbidden|RefreshError|CredentialRetrieval"
)


def without_secrets(url: str) -> str:
    """Return *url* without user, password and query, which may hold secrets."""
    scheme, mark, rest = url.partition("://")
    rest = rest.split("?")[0].split("#")[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}".rstrip("/")


# --------------------------------------------------------------------------- foreign errors


def foreign(exc: BaseException, doing: str, where: str) -> ModelHubError:
    """Return our error for what a driver raised; its text is not repeated, as it may hold secrets."""
    if isinstance(exc, ModelHubError):
        return exc
    word = type(exc).__name__
    said = f"{word} {exc}"
    if (
        isinstance(exc, PermissionError)
        or _REFUSED.search(said)
        or getattr(exc, "status", None) in (401, 403)
    ):
        return CredentialsRefused(
            f"Cannot {doing} {shown(where)}: the store refused our credentials ({word}).",
            hint="Check the credentials of this environment and what they may do there.",
        )
    number = exc.errno if isinstance(exc, OSError) else None
    reason = os.strerror(number) if isinstance(number, int) and number > 0 else word
    if isinstance(exc, TimeoutError) and not number:
        reason = "it is too slow"
    return StoreUnavailable(
        f"Cannot {doing} {shown(where)}: {reason}.",
        hint="Nothing half-written is visible; try again when the store answers.",
        errno=number,
    )


def _passing(exc: Exception) -> bool:
    """Return whether trying again may help."""
    if isinstance(
        exc, (ModelHubError, FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)
    ):
        return False
    if isinstance(exc, (TypeError, ImportError, NotImplementedError, AttributeError)):
        return False
    if isinstance(exc, OSError) and exc.errno in (
        errno.ENOSYS,
        errno.ENOTDIR,
        errno.ENOSPC,
        errno.ENAMETOOLONG,
    ):
        return False
    said = f"{type(exc).__name__} {exc}"
    return not (_REFUSED.search(said) or "InvalidBucket" in said or _precondition(exc))


def _precondition(exc: Exception) -> bool:
    return re.search(r"pre-?condition|ConditionalRequestConflict", str(exc), re.IGNORECASE) is not None


def _unsupported(exc: Exception) -> bool:
    return (isinstance(exc, OSError) and exc.errno == errno.ENOSYS) or "NotImplemented" in str(exc)


def patiently(work: Callable[[], T], doing: str, where: str) -> T:
    """Return what *work* returns, trying again for a minute while a driver's errors may pass.

    Raises:
        FileNotFoundError, FileExistsError: as *work* raised it; to be caught by the caller.
        StoreUnavailable, CredentialsRefused: instead of anything else.
    """
    try:
        return patient(work, _passing, doing, where)
    except (FileNotFoundError, FileExistsError):
        raise
    except Exception as exc:
        raise foreign(exc, doing, where) from exc


def open_filesystem(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """Return the fsspec file system of *url* and the path in it.

    Raises:
        MissingExtra: its driver is not installed.
        InvalidName: the URL, its protocol or an option is unknown.
        StoreUnavailable, CredentialsRefused: the driver could not start.
    """
    protocol = url.partition("://")[0]
    if "::" in url:
        raise InvalidName(f"{shown(without_secrets(url))} chains URLs (::).", hint="Pass one plain URL.")
    try:
        import fsspec.core

        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as exc:
        extra = _EXTRAS.get(protocol, "")
        line = (
            f"pip install 'modelhub-sdk[{extra}]'"
            if extra
            else f"Install the fsspec driver for {protocol}://."
        )
        raise MissingExtra(f"The driver for {protocol}:// is not installed.", hint=line, extra=extra) from exc
    except (ValueError, TypeError) as exc:
        raise InvalidName(
            f"{shown(without_secrets(url))} cannot be opened: its protocol or an option of it is unknown.",
            hint="Use a folder or a URL that fsspec knows, such as s3://bucket/path.",
        ) from exc
    except Exception as exc:
        raise foreign(exc, "open", without_secrets(url)) from exc
    return fs, path


# --------------------------------------------------------------------------- the store


class RemoteBlobs:
    """Blobs as objects ``<url>/<registry id>/sha256/ab/<62 hex>``."""

    def __init__(self, url: str, registry_id: str, options: dict[str, Any]) -> None:
        self._url = url
        self._shown = without_secrets(url)
        self._registry = registry_id
        self._options = options
        self._protocol = url.partition("://")[0]
        self._opened: tuple[int, Any, str] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> Any:
        raise TypeError("A store cannot be pickled; open it again from its URL.")

    def _fs(self) -> tuple[Any, str]:
        opened = self._opened
        if opened is None or opened[0] != os.getpid():  # a driver's threads do not survive a fork
            with self._lock:
                opened = self._opened
                if opened is None or opened[0] != os.getpid():
                    fs, path = open_filesystem(self._url, self._options)
                    opened = self._opened = (os.getpid(), fs, f"{path.rstrip('/')}/{self._registry}")
        return opened[1], opened[2]

    def _key(self, digest: str) -> tuple[Any, str]:
        fs, base = self._fs()
        hex_ = digest.removeprefix("sha256:")
        return fs, f"{base}/sha256/{hex_[:2]}/{hex_[2:]}"

    # ---- writing

    def put(self, source: Source, progress: Progress | None) -> tuple[str, int]:
        """Store the bytes of *source*; return digest and size."""
        if source.size is not None and self._at_once(source.size):
            SENDING.take(2 * source.size)
            try:
                return self._put_whole(source, source.size, progress)
            finally:
                SENDING.give(2 * source.size)
        if not source.repeatable:
            return self._put_stream(source, progress)
        digest, size = _hash(source)
        if self.size(digest) != size:
            self._upload(source, digest, size, progress)
        elif progress is not None:
            progress(size)
        return digest, size

    def _put_whole(self, source: Source, size: int, progress: Progress | None) -> tuple[str, int]:
        data = _read_all(source, size)
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if self.size(digest) != len(data):
            self._write(digest, len(data), lambda fs, key, create: _pipe(fs, key, data, create))
        if progress is not None:
            progress(len(data))
        return digest, len(data)

    def _at_once(self, size: int) -> bool:
        return size <= _WHOLE or self._protocol == "memory"  # whose open files are visible while they grow

    def _put_stream(self, source: Source, progress: Progress | None) -> tuple[str, int]:
        # A file object can be read once, and its digest, hence its key, is known only then.
        with (
            disk.translated("write a temporary file in", tempfile.gettempdir()),
            tempfile.TemporaryFile() as spool,
        ):
            reader = source.open()
            try:
                digest, size = disk.copy(reader, spool.fileno(), where=tempfile.gettempdir())
            finally:
                reader.close()
            if self.size(digest) != size:
                fd = spool.fileno()

                def again() -> Reader:
                    os.lseek(fd, 0, os.SEEK_SET)
                    return FdReader(os.dup(fd), source.origin)

                self._upload(Source(source.path, source.origin, size, again), digest, size, progress)
            elif progress is not None:
                progress(size)
        return digest, size

    def _upload(self, source: Source, digest: str, size: int, progress: Progress | None) -> None:
        def write(fs: Any, key: str, create: bool) -> None:
            if self._at_once(size):
                data = _read_all(source, size)
                _same(source, digest, "sha256:" + hashlib.sha256(data).hexdigest())
                _pipe(fs, key, data, create)
            elif self._protocol in _CREATE_ONLY:
                reader = source.open()
                try:
                    multipart.upload(
                        fs,
                        key,
                        reader,
                        size,
                        lambda actual: _same(source, digest, actual),
                        time_for,
                        create=create,
                        progress=progress,
                    )
                finally:
                    reader.close()
            else:
                _stream(fs, key, source, digest, create, progress)

        self._write(digest, size, write)

    def _write(self, digest: str, size: int, write: Callable[[Any, str, bool], None]) -> None:
        fs, key = self._key(digest)
        create = self._protocol in _CREATE_ONLY
        replace = False

        def attempt() -> None:
            nonlocal create, replace
            try:
                if self._protocol in _ATOMIC:
                    write(fs, key, create and not replace)
                else:  # a plain file system elsewhere: a killed upload must not be visible under the key
                    temporary = f"{key.rpartition('/sha256/')[0]}/unfinished/{disk.temporary()}"
                    fs.makedirs(temporary.rpartition("/")[0], exist_ok=True)
                    fs.makedirs(key.rpartition("/")[0], exist_ok=True)
                    try:
                        write(fs, temporary, False)
                        fs.mv(temporary, key)
                    except BaseException:
                        _quietly(lambda: fs.rm_file(temporary))
                        raise
            except ModelHubError:
                raise
            except Exception as exc:
                # An answer may be lost after the write, and somebody else may have been first: the key
                # is the digest, so an object of that size under it is what we wanted.
                found = self.size(digest)
                if found == size:
                    return
                if found is not None and create and not replace:
                    replace = True  # a wrong object is in the way of a create-only write
                elif create and _unsupported(exc):
                    create = False  # a store without If-None-Match: an overwrite writes the same bytes
                elif not isinstance(exc, FileExistsError) and not _precondition(exc):
                    raise
                raise ConnectionError("try again") from exc

        try:
            patiently(attempt, "write to", self._shown)
        except (FileNotFoundError, FileExistsError) as exc:
            raise foreign(exc, "write to", self._shown) from exc

    # ---- reading

    def size(self, digest: str) -> int | None:
        """Return the size of the object in bytes, None if there is none; never from a cached listing."""
        fs, key = self._key(digest)

        def look() -> int | None:
            fs.invalidate_cache(key.rpartition("/")[0])
            info = fs.info(key)
            return None if info.get("type") == "directory" else int(info["size"])

        try:
            return patiently(look, "look into", self._shown)
        except FileNotFoundError:
            return None

    def open(self, digest: str) -> BinaryIO:
        """Return the blob as a file, unchecked."""
        fs, key = self._key(digest)
        size = self.size(digest)
        if size is None:
            raise self._missing(digest)
        return ranged(fs, key, size, self._shown)

    def read_range(self, digest: str, start: int, end: int) -> bytes:
        """Return some bytes of the blob, unchecked; one request."""
        fs, key = self._key(digest)
        try:
            return piece(fs, key, start, end, self._shown)
        except FileNotFoundError as exc:
            raise self._missing(digest) from exc

    def _missing(self, digest: str) -> NotFound:
        return NotFound(
            f"The artifact store {shown(self._shown)} has no blob {digest}.", hint="Restore it from a backup."
        )

    def fetch(self, digest: str, size: int, fd: int | None, progress: Progress | None) -> tuple[str, int]:
        """Copy the blob to *fd* (None: nowhere); return the digest and size of what came. What *fd* has is kept."""
        fs, key = self._key(digest)
        if size == 0:
            found = self.size(digest)
            if found is None:
                raise self._missing(digest)
            return (disk.EMPTY if found == 0 else ""), found
        try:
            return disk.go_on(
                lambda done: _Ranges(fs, key, size, self._shown, start=done), fd, size, progress
            )
        except FileNotFoundError as exc:
            raise self._missing(digest) from exc

    # ---- the whole

    def delete(self, digest: str, needed: Callable[[], bool] = lambda: False) -> None:
        """Remove the blob, if it is there and not *needed*, which is asked before each attempt."""
        fs, key = self._key(digest)

        def attempt() -> None:
            if not needed():
                fs.rm_file(key)

        with contextlib.suppress(FileNotFoundError):
            patiently(attempt, "delete from", self._shown)

    def mark(self) -> None:
        """Note that a copy keeps its blobs here."""
        fs, base = self._fs()
        if self._protocol not in _ATOMIC:
            patiently(lambda: fs.makedirs(base, exist_ok=True), "write to", self._shown)
        patiently(lambda: fs.pipe_file(f"{base}/copy", b"1"), "write to", self._shown)

    def is_marked(self) -> bool:
        """Return whether a copy keeps its blobs here."""
        fs, base = self._fs()
        fs.invalidate_cache(base)
        try:
            return patiently(lambda: bool(fs.info(f"{base}/copy")), "look into", self._shown)
        except FileNotFoundError:
            return False

    def digests(self) -> Iterator[tuple[str, int]]:
        """Yield digest and size of every blob; what else a bucket lists is passed over."""
        fs, base = self._fs()
        top = f"{base}/sha256"

        def find() -> dict[str, Any]:
            fs.invalidate_cache()
            found = fs.find(top, detail=True)
            fs.invalidate_cache()
            return dict(found)

        try:
            found = patiently(find, "list", self._shown)
        except FileNotFoundError:
            return
        prefix = top.lstrip("/") + "/"
        for name in sorted(found):
            match = _KEY.fullmatch(
                name.lstrip("/").removeprefix(prefix)
            )  # what a bucket lists is not trusted
            if match and name.lstrip("/").startswith(prefix) and found[name].get("type") != "directory":
                yield f"sha256:{match[1]}{match[2]}", int(found[name]["size"])

    def sweep(self, older_than: float | None) -> int:
        """Remove what killed writers left behind; return how many."""
        fs, base = self._fs()
        if self._protocol in _CREATE_ONLY:
            return multipart.sweep(fs, f"{base}/sha256", older_than)
        if self._protocol in _ATOMIC:
            return 0
        count = 0

        def listing() -> list[dict[str, Any]]:
            fs.invalidate_cache()
            return list(fs.ls(f"{base}/unfinished", detail=True))

        try:
            entries = patiently(listing, "list", self._shown)
        except FileNotFoundError:
            return 0
        for entry in entries:
            modified = entry.get("mtime") or entry.get("created") or time.time()
            seconds = modified.timestamp() if hasattr(modified, "timestamp") else float(modified)
            if disk.is_left_over(entry["name"].rpartition("/")[2], seconds, older_than=older_than):
                _quietly(lambda name=entry["name"]: fs.rm_file(name))  # type: ignore[misc]
                count += 1
        return count


def _quietly(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception as exc:  # noqa: BLE001 - the first error is the one to tell
        log.debug("cleaning up: %s", type(exc).__name__)


def _read_all(source: Source, size: int) -> bytes:
    reader = source.open()
    try:
        view = memoryview(bytearray(size + 1))
        got = 0
        while got <= size and (step := reader.readinto(view[got:])):
            got += step
        reader.finish()
    finally:
        reader.close()
    return bytes(view[:got])


def _hash(source: Source) -> tuple[str, int]:
    reader = source.open()
    try:
        return disk.copy(reader, None, size=source.size)
    finally:
        reader.close()


def _same(source: Source, digest: str, actual: str) -> None:
    if digest != actual:
        raise Conflict(
            f"{shown(source.path)} changed between hashing and uploading it.",
            hint="Register again when the writer has finished.",
        )


def _pipe(fs: Any, key: str, data: bytes, create: bool) -> None:
    if create:
        fs.pipe_file(key, data, mode="create")
    else:
        fs.pipe_file(key, data)


def _stream(fs: Any, key: str, source: Source, digest: str, create: bool, progress: Progress | None) -> None:
    """Upload in parts, hashing; the object becomes visible only if the bytes are those of *digest*."""
    hasher = hashlib.sha256()
    view = memoryview(bytearray(disk.CHUNK))
    reader = source.open()
    try:
        file = fs.open(key, "xb" if create else "wb", block_size=_BLOCK)
        try:
            while got := reader.readinto(view):
                piece = bytes(view[:got])
                hasher.update(piece)
                file.write(piece)
                if progress is not None:
                    progress(got)
            reader.finish()
            _same(source, digest, "sha256:" + hasher.hexdigest())
        except BaseException:
            _quietly(file.discard)  # where there is such a thing, close() would publish what there is
            try:
                file.closed = True
            except AttributeError:
                _quietly(file.close)
            raise
        try:
            file.close()
        except BaseException:
            _quietly(file.discard)
            raise
    finally:
        reader.close()


# --------------------------------------------------------------------------- reading in ranges


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


class _Ranges:
    """A `Reader` of an object of *size* bytes, a few ranges ahead where the driver can, within the memory that is left.

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
        return None

    def close(self) -> None:
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


def ranges(fs: Any, key: str, size: int, where: str, start: int, version: str | None) -> Reader:
    """Return a reader of an object (in a *version* that its store keeps) of *size* bytes from *start* on."""
    return _Ranges(fs, key, size, where, start=start, version=version)


def ranged(fs: Any, key: str, size: int, where: str, version: str | None = None) -> BinaryIO:
    """Return an object of *size* bytes as a seekable file."""
    raw = _Ranged(fs, key, size, where, version)
    return io.BufferedReader(raw, _RANGE if size > _RANGE else max(size, 1))


# --------------------------------------------------------------------------- URLs as sources


@frozen
class UrlState:
    """What is behind a URL just now: how to open it from a byte on, its size and its tag, where the store tells.

    A tag changes when the bytes do: the version, generation or ETag of an object store. `version` is what the
    driver takes to read these very bytes later, where the bucket keeps versions (S3).
    """

    open: Callable[[int], Reader]
    size: int | None
    tag: str | None
    version: str | None = None


_TAGS = ("VersionId", "version_id", "generation", "ETag", "etag")


def _tag(info: Mapping[str, Any]) -> str | None:
    """Return the first thing in what a driver tells that names one state of an object."""
    for name in _TAGS:
        value = info.get(name)
        if isinstance(value, (str, int)) and value not in ("", "null") and not isinstance(value, bool):
            return f"{name.lower()}:{str(value).strip(chr(34))}"[:600]
    return None


def url_state(url: str, options: dict[str, Any], version: str | None = None) -> UrlState:
    """Return what is behind *url* just now, or was in a *version* that its store keeps.

    Raises:
        NotFound: there is nothing.
        InvalidName, MissingExtra, StoreUnavailable, CredentialsRefused: it cannot be opened.
    """
    where = without_secrets(url)
    fs, path = open_filesystem(url, options)
    if "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol):
        raise InvalidName(f"{shown(where)} is a local file.", hint="Pass its path without file://.")

    def look() -> Any:
        fs.invalidate_cache(path.rpartition("/")[0])
        return fs.info(path) if version is None else fs.info(path, version_id=version)

    try:
        info = patiently(look, "read", where)
    except FileNotFoundError as exc:
        raise NotFound(f"There is nothing at {shown(where)}.", hint="Check the URL.") from exc
    if info.get("type") == "directory":
        raise InvalidName(f"{shown(where)} is a folder.", hint="Name the files in it one by one.")
    size = info.get("size")
    if size is None:
        from modelhub_sdk.blobs.sources import StreamReader

        return UrlState(lambda _: StreamReader(fs.open(path, "rb"), where), None, _tag(info))
    kept = info.get("VersionId") if "s3" in fs.protocol else None
    return UrlState(
        lambda start: _UrlReader(fs, path, int(size), where, start),
        int(size),
        _tag(info),
        kept if isinstance(kept, str) and kept != "null" else None,
    )


class _UrlReader(_Ranges):
    def __init__(self, fs: Any, key: str, size: int, where: str, start: int) -> None:
        super().__init__(fs, key, size, where, start=start)
        self._where = where
        self._got = start

    def readinto(self, view: memoryview) -> int:
        if self._size == 0:
            return 0
        try:
            got = super().readinto(view)
        except FileNotFoundError as exc:
            raise NotFound(f"{shown(self._where)} vanished while it was read.") from exc
        self._got += got
        return got

    def finish(self) -> None:
        if self._got != self._size:
            raise Conflict(
                f"{shown(self._where)} gave {self._got} bytes instead of {self._size}: changed, or cut.",
                hint="Try again.",
            )


class Unchanged:
    """A `Reader` of what is behind *url*, from byte *start* on, that looks at its end whether that is *state* still."""

    def __init__(self, state: UrlState, url: str, options: Mapping[str, Any], start: int = 0) -> None:
        self._state, self._url, self._options = state, url, dict(options)
        self._reader = state.open(start)
        self.readinto, self.close = self._reader.readinto, self._reader.close

    def finish(self) -> None:
        """Raise Conflict if it is another one by now, and whatever the reader itself finds."""
        self._reader.finish()
        if self._state.tag is not None and url_state(self._url, self._options).tag != self._state.tag:
            raise Conflict(
                f"{shown(without_secrets(self._url), 300)} changed while it was read.",
                hint="Try again when its writer is done.",
            )
