"""Blobs on an object store or any other fsspec file system.

Nothing here relies on listings for existence, on one answer for success, or on a driver's own
buffering: objects are read in ranges, written under their final name only where the medium shows
them whole or not at all, and an error after a write is settled by looking.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO
from weakref import WeakValueDictionary

from modelhub_sdk.blobs import disk, multipart
from modelhub_sdk.blobs.disk import FdReader, Progress, Reader
from modelhub_sdk.blobs.driver import (
    foreign,
    open_filesystem,
    patiently,
    precondition,
    unsupported,
    without_secrets,
)
from modelhub_sdk.blobs.patience import time_for
from modelhub_sdk.blobs.readers import Ranges, StreamReader, piece, ranged
from modelhub_sdk.blobs.room import SENDING
from modelhub_sdk.blobs.sources import Source
from modelhub_sdk.errors import (
    Conflict,
    DigestMismatch,
    ModelHubError,
    NotFound,
    shown,
)

log = logging.getLogger(__name__)

_WHOLE = 8 << 20  # up to this size an object is written by one request, from memory
_MARK = 8192  # bytes of a mark that are read
_DELETE = 5.0  # seconds for a request to delete; see `core.LEASE`
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

_KEY = re.compile(r"([0-9a-f]{2})/([0-9a-f]{62})")
_MD5_TAG = re.compile(r"[0-9a-f]{32}(-[0-9]{1,5})?")


class RemoteBlobs:
    """Blobs as objects ``<url>/<registry id>/sha256/ab/<62 hex>``."""

    def __init__(self, url: str, registry_id: str, options: Mapping[str, Any]) -> None:
        self._url = url
        self._shown = without_secrets(url)
        self._registry = registry_id
        self._options = options
        self._protocol = url.partition("://")[0]
        self._opened: tuple[int, Any, str] | None = None
        self._lock = threading.Lock()
        self._turns: WeakValueDictionary[tuple[int, str], Any] = WeakValueDictionary()

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

    def put(self, source: Source, progress: Progress | None, *, anew: bool = False) -> tuple[str, int]:
        """Store the bytes of *source*; return digest and size. With *anew* whatever is stored already."""
        if source.size is not None and self._at_once(source.size):
            SENDING.take(2 * source.size)
            try:
                return self._put_whole(source, source.size, progress, anew)
            finally:
                SENDING.give(2 * source.size)
        if not source.repeatable:
            return self._put_stream(source, progress, anew)
        digest, size = _hash(source)
        with self._turn(digest):
            self._put_hashed(source, digest, size, progress, anew)
        return digest, size

    def _put_hashed(
        self, source: Source, digest: str, size: int, progress: Progress | None, anew: bool
    ) -> None:
        """Store the bytes of *source*, which are those of *digest*, unless a sound object holds them already."""
        info = self._info(digest)
        if info is not None and not anew and self._is_sound(info, digest, size, source.open):
            if progress is not None:
                progress(size)
        else:
            self._upload(source, digest, size, progress, replace=info is not None)

    def _turn(self, digest: str) -> Any:
        """Return the lock under which a blob is written: of equal files one thread uploads, and the others find it."""
        with self._lock:
            return self._turns.setdefault(
                (os.getpid(), digest), threading.Lock()
            )  # a fork inherits no holder

    def _put_whole(self, source: Source, size: int, progress: Progress | None, anew: bool) -> tuple[str, int]:
        data = _read_all(source, size)
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        with self._turn(digest):
            info = self._info(digest)
            if info is None or anew or not self._is_sound(info, digest, len(data), lambda: _reader(data)):
                replace = info is not None
                self._write(
                    digest, len(data), lambda fs, key, create: _pipe(fs, key, data, create), replace=replace
                )
        if progress is not None:
            progress(len(data))
        return digest, len(data)

    def _at_once(self, size: int) -> bool:
        return size <= _WHOLE or self._protocol == "memory"  # whose open files are visible while they grow

    def _put_stream(self, source: Source, progress: Progress | None, anew: bool) -> tuple[str, int]:
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
            fd = spool.fileno()

            def again() -> Reader:
                os.lseek(fd, 0, os.SEEK_SET)
                return FdReader(os.dup(fd), source.origin)

            with self._turn(digest):
                copy = Source(source.path, source.origin, size, again)
                self._put_hashed(copy, digest, size, progress, anew)
        return digest, size

    def keep(self, digest: str, size: int) -> bool:
        """Return whether the object is there, of the right size."""
        return self.size(digest) == size

    def is_sound(self, digest: str, size: int) -> bool:
        """Return whether the object is there, and right as far as one request can tell."""
        if self.size(digest) != size:
            return False
        return not self._at_once(size) or self._stored_digest(digest, size) == digest

    def changed_at(self, digest: str) -> float | None:
        """Return None: an object is written whole, and its store looks after it."""
        return None

    def _is_sound(
        self, info: Mapping[str, Any], digest: str, size: int, opener: Callable[[], Reader]
    ) -> bool:
        """Return whether a stored object holds the bytes of *digest*, which *opener* gives a reader of.

        Its size and its ETag tell that without a transfer where the ETag is made of MD5 digests, as S3 makes it.
        Where it is another kind of ETag, objects that go by one request are read back, and larger ones are
        believed: `verify` and `repair` read them.
        """
        if info.get("type") == "directory" or int(info["size"]) != size:
            return False
        tag = str(info.get("ETag") or "").strip('"')
        telling = self._protocol in _CREATE_ONLY and _MD5_TAG.fullmatch(tag) is not None
        expected = ""
        if telling:
            expected = _expected_tag(opener, size, multipart.part_size(size) if "-" in tag else None)
            if tag == expected:
                return True
        if self._at_once(size):
            return self._stored_digest(digest, size) == digest
        same_parts = tag.partition("-")[2] == expected.partition("-")[2]
        return not telling or not same_parts or self._encrypted(digest)

    def _stored_digest(self, digest: str, size: int) -> str:
        """Return the digest of what is stored, "" when it is gone or cut short."""
        try:
            return self.fetch(digest, size, None, None)[0]
        except (NotFound, DigestMismatch):
            return ""

    def _encrypted(self, digest: str) -> bool:
        """Return whether an object of S3 is encrypted by a key of its own, so that its ETag is no MD5 digest."""
        fs, key = self._key(digest)
        bucket, name, _ = fs.split_path(key)
        try:
            head = fs.call_s3("head_object", Bucket=bucket, Key=name, timeout=60)
        except Exception as exc:  # noqa: BLE001  # whoever may not look believes the size
            log.debug("cannot look at %s: %s", digest, type(exc).__name__)
            return True
        return head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head

    def _upload(
        self, source: Source, digest: str, size: int, progress: Progress | None, *, replace: bool = False
    ) -> None:
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

        self._write(digest, size, write, replace=replace)
        if progress is not None and self._at_once(size):
            progress(size)

    def _write(
        self, digest: str, size: int, write: Callable[[Any, str, bool], None], *, replace: bool = False
    ) -> None:
        """Write an object; with *replace* over a wrong one. A reader sees the old or the new one, never none."""
        fs, key = self._key(digest)
        create = self._protocol in _CREATE_ONLY
        wrong = replace  # the object that is there: its size says nothing then

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
                if found == size and not wrong:
                    return
                if found is not None and create and not replace:
                    replace = True  # a wrong object is in the way of a create-only write
                elif create and unsupported(exc):
                    create = False  # a store without If-None-Match: an overwrite writes the same bytes
                elif not isinstance(exc, FileExistsError) and not precondition(exc):
                    raise
                raise ConnectionError("try again") from exc

        try:
            patiently(attempt, "write to", self._shown)
        except (FileNotFoundError, FileExistsError) as exc:
            raise foreign(exc, "write to", self._shown) from exc

    # ---- reading

    def size(self, digest: str) -> int | None:
        """Return the size of the object in bytes, None if there is none; never from a cached listing."""
        info = self._info(digest)
        return None if info is None or info.get("type") == "directory" else int(info["size"])

    def _info(self, digest: str) -> Mapping[str, Any] | None:
        """Return what the driver tells of the object, None if there is none; never from a cached listing."""
        fs, key = self._key(digest)

        def look() -> Mapping[str, Any]:
            fs.invalidate_cache(key.rpartition("/")[0])
            info: Mapping[str, Any] = fs.info(key)
            return info

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
            return disk.go_on(lambda done: Ranges(fs, key, size, self._shown, start=done), fd, size, progress)
        except FileNotFoundError as exc:
            raise self._missing(digest) from exc

    # ---- the whole

    def delete(self, digest: str, needed: Callable[[], bool] = lambda: False) -> None:
        """Remove the blob, if it is there and not *needed*, which is asked before each attempt and must not wait.

        A request that takes longer than some seconds is given up: it must not arrive much later than it was allowed.
        """
        fs, key = self._key(digest)

        async def bounded() -> None:
            if not needed():
                await asyncio.wait_for(fs._rm_file(key), _DELETE)

        def attempt() -> None:
            if getattr(fs, "async_impl", False):
                from fsspec.asyn import sync

                sync(fs.loop, bounded)
            elif not needed():
                fs.rm_file(key)

        with contextlib.suppress(FileNotFoundError):
            patiently(attempt, "delete from", self._shown)

    def mark(self, owner: str) -> None:
        """Note that the copy *owner* keeps its blobs here, unless there is a note already."""
        fs, base = self._fs()
        create = self._protocol in _CREATE_ONLY

        def attempt() -> None:
            nonlocal create
            if self._protocol not in _ATOMIC:
                fs.makedirs(base, exist_ok=True)
            try:
                _pipe(fs, f"{base}/copy", owner.encode(errors="surrogateescape"), create)
            except Exception as exc:
                if self.marked_for() is not None:  # our own, after an answer that was lost, or another's
                    return
                if not create or not unsupported(exc):
                    raise
                create = False
                raise ConnectionError("try again") from exc

        if self.marked_for() is not None:
            return
        try:
            patiently(attempt, "write to", self._shown)
        except (FileNotFoundError, FileExistsError) as exc:
            raise foreign(exc, "write to", self._shown) from exc

    def marked_for(self) -> str | None:
        """Return the copy that keeps its blobs here, empty when it is unknown which; None when there is none."""
        fs, base = self._fs()

        def look() -> bytes:
            fs.invalidate_cache(base)
            return bytes(fs.cat_file(f"{base}/copy", start=0, end=_MARK))

        try:
            found = os.fsdecode(patiently(look, "look into", self._shown)).strip()
        except (FileNotFoundError, IsADirectoryError):
            return None
        return "" if found == "1" else found  # what earlier releases wrote

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


def _reader(data: bytes) -> Reader:
    return StreamReader(io.BytesIO(data), "memory")


def _expected_tag(opener: Callable[[], Reader], size: int, part: int | None) -> str:
    """Return the ETag that S3 gives these bytes, sent by one request or in parts of *part* bytes."""
    whole = hashlib.md5(usedforsecurity=False)
    count = 0
    reader = opener()
    try:
        view = memoryview(bytearray(max(1, min(disk.CHUNK, size))))
        current, left = hashlib.md5(usedforsecurity=False), size if part is None else part
        while got := reader.readinto(view[: max(1, min(len(view), left))]):
            current.update(view[:got])
            left -= got
            if part is not None and left == 0:
                whole.update(current.digest())
                count, current, left = count + 1, hashlib.md5(usedforsecurity=False), part
        if part is None:
            return current.hexdigest()
        if left < part:
            whole.update(current.digest())
            count += 1
    finally:
        reader.close()
    return f"{whole.hexdigest()}-{count}"


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
