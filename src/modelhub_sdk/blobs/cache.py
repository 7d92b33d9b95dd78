"""The cache of a user: verified bytes on a local disk, by digest, and read-only folders made of them.

Layout, under the cache's folder::

    v1/blobs/ab/<62 hex>        the bytes, mode 0444
    v1/blobs/ab/<62 hex>.note   size, mtime and inode of the bytes when they were verified
    v1/folders/<64 hex>/…       a version's files (hard links to the blobs), by manifest digest
    v1/whole/<64 hex>           what that folder was like when all of it was verified; its mtime tells the last use
    v1/tmp/…                    unfinished; the names tell whose
    v1/partial/<64 hex>.…       large blobs that are being fetched; of a dead or interrupted process the next one goes on
    v1/leases/…                 what living processes are linking just now, for `prune`
    v1/locks/<64 hex>           held while one process fetches, so that others need not
    v1/bad/…                    entries whose bytes were wrong, removed at the next clean-up
    v1/records/…                notes of what was placed where
    v1/urls/<64 hex>            what was last seen behind a URL
    v1/below/…                  in the overlay of a cache that cannot be written: notes and `whole` of what is in that

A cache in the user's own places is private. One that somebody named has in its folders the permissions of its top
folder, so that what was filled by one user can be read by others where that was meant.

Nothing depends on the locks: every writer has a file of its own, checks its digest, and renames it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from attrs import evolve, frozen

from modelhub_sdk.blobs import disk, place, staging, unfinished, whereabouts
from modelhub_sdk.blobs.disk import Progress, translated
from modelhub_sdk.blobs.parallel import THREADS, each
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.blobs.whereabouts import bound, locate, parse_size
from modelhub_sdk.domain import stored
from modelhub_sdk.domain.entities import File
from modelhub_sdk.errors import (
    Conflict,
    DigestMismatch,
    InvalidName,
    ModelHubError,
    NotFound,
    StoreUnavailable,
    shown,
)
from modelhub_sdk.formats import manifest

SAME = 32
"""Hex digits that the name of a lock and of the transfers behind it have in common."""

_HEX = re.compile(r"[0-9a-f]{62}")
_LEASE = 256 << 20  # bytes of a lease: a line for each of a million files
_STALLED = 30.0  # seconds without progress of another process after which we fetch as well
_RESUMED = 16 << 20  # bytes from which on an interrupted transfer is worth going on with
_ABANDONED = 24 * 3600.0  # seconds after which nobody will
_FORGOTTEN = 90 * 24 * 3600.0  # seconds after which a note about a URL goes
_SEEN = 3600.0  # a use is noted when the last note of one is older than this

log = logging.getLogger("modelhub_sdk")

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", -1), errno.EFBIG)
_NO_ROOM = _FULL[:2]
_WRONG = (
    errno.ELOOP,
    errno.EINVAL,
    errno.ENOENT,
)  # no plain file: other errors of reading pass, and tell nothing
_NO_ENTRY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)

Verify = str | None


@frozen
class CacheInfo:
    """What a cache holds.

    Attributes:
        path: its folder.
        blobs: how many files' bytes it holds.
        folders: how many folders are made of them; they take room of their own only on disks without hard links.
        size: the bytes of all blobs, and of folders that are copies.
        unfinished: the bytes of transfers that are under way or were interrupted.
        max_size: the bound in bytes, ``$MODELHUB_CACHE_SIZE``; None: there is none.
    """

    path: str
    blobs: int
    folders: int
    size: int
    unfinished: int = 0
    max_size: int | None = None

    def __str__(self) -> str:
        from modelhub_sdk.views.text import count, size

        of = "" if self.max_size is None else f" of {size(self.max_size)}"
        rest = f"; {size(self.unfinished)} unfinished" if self.unfinished else ""
        return f"{self.path}: {size(self.size)}{of}, {count(self.blobs, 'file')}, {count(self.folders, 'folder')}{rest}"


@frozen
class _Folder:
    """What is known of a folder: the digest that it is named by, its last use, and what it is made of.

    `copies` tells whether it has files that are no blobs, `size` what bytes those take.
    """

    digest: str
    path: str
    used: float
    inodes: frozenset[tuple[int, int]]
    copies: bool
    size: int


class Cache:
    """The cache in one folder, made when first written to. Safe for many threads and processes.

    Attributes:
        path: its absolute folder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        outside: Sequence[str | os.PathLike[str]] = (),
        base: Cache | None = None,
    ) -> None:
        """Name the cache; nothing is created. *outside* are folders that it must not lie in.

        What *base* holds, a cache that cannot be written, is taken from there.

        Raises:
            InvalidName: a relative or empty path (see `locate`), one inside an *outside* folder, or
                ``$MODELHUB_CACHE_SIZE`` is no size.
            StoreUnavailable: its place among temporary folders is somebody else's.
        """
        self.path = locate(path)
        bound()  # a setting that is wrong is told now, not in the middle of a transfer
        self._private = base is not None or not whereabouts.is_named(path)
        self._among = whereabouts.among(self.path) if self._private else None
        real = os.path.realpath(self.path)
        for root in outside:
            other = os.path.realpath(os.fspath(root))
            if real == other or real.startswith(other.rstrip(os.sep) + os.sep):
                raise InvalidName(
                    f"The cache {shown(self.path)} lies inside the artifact store, and cleaning deletes.",
                    hint="Set MODELHUB_CACHE_DIR (or cache_dir=) to another folder.",
                )
        self._verified: dict[str, tuple[int, int, int]] = {}
        self._whole: dict[str, str] = {}  # as the files in `whole`, where those cannot be written
        self._swept = 0.0
        self._fetched = 0
        self._holders: set[object] = set()  # blocks of `holding`
        self._base = base
        self._above: Cache | None = None
        self._told = False

    def __repr__(self) -> str:
        return f"<Cache {shown(self.path)}>"

    @property
    def _v1(self) -> str:
        """The folder of all that is here. Looked at each time where others could make it after a clean-up."""
        if self._among is not None:
            whereabouts.owned(self._among)
        return os.path.join(self.path, "v1")

    @property
    def records(self) -> Path:
        """Where `place.into` may keep its records."""
        cache = self._over() or self
        folder = os.path.join(cache._v1, "records")
        with contextlib.suppress(OSError):
            cache._make(folder)  # here, since a cache that users share has permissions of its own
        return Path(folder)

    def url_note(self, key: str) -> Path:
        """Return where the note about a URL may be kept, by the digest of its name."""
        return Path((self._over() or self)._v1, "urls", key)

    def note(self, path: str | os.PathLike[str]) -> Path:
        """Return where what `keep` wrote at *path* is: there, or in this user's overlay of a cache that cannot be written.

        It may also be a folder of notes. Nothing is there if nothing was kept.
        """
        over = self._over()
        if over is not None and (moved := over._moved(path, self)).exists():
            return moved
        return Path(path)

    def keep(self, path: str | os.PathLike[str], data: bytes) -> None:
        """Write a small note of the cache's users, whole or not at all; *path* lies in its folder.

        Of a cache that cannot be written it goes to the overlay of this user, where `note` finds it.

        Raises:
            StoreUnavailable: the cache's disk failed.
        """
        over = self._over()
        if over is None:
            try:
                self._put(os.fspath(path), data)
            except StoreUnavailable as error:
                over = self._overlay(error, told=False)
            else:
                return
        over._put(os.fspath(over._moved(path, self)), data)

    def _moved(self, path: str | os.PathLike[str], base: Cache) -> Path:
        """Return where in this overlay lies what would be at *path* in its *base*."""
        with contextlib.suppress(ValueError):
            return self.path / Path(path).relative_to(base.path)
        return Path(path)

    def _put(self, path: str, data: bytes) -> None:
        temporary = os.path.join(self._v1, "tmp", disk.temporary("keep"))
        with self._writing():
            self._make(os.path.dirname(temporary))
            mode = self._make(os.path.dirname(path)) & 0o666
            try:
                fd = disk.create(temporary, 0o600)
                try:
                    if mode != 0o600 and hasattr(os, "fchmod"):
                        os.fchmod(fd, mode)
                    disk.write_all(fd, data)
                finally:
                    os.close(fd)
                os.replace(temporary, path)
            except BaseException:
                disk.remove(temporary)
                raise

    def _make(self, folder: str) -> int:
        """Make a folder in the cache, and those above it; return the permissions that folders have here."""
        if self._private:
            disk.make_dirs(folder, 0o700)
            return 0o700
        try:
            top = os.stat(self.path)
        except FileNotFoundError:
            disk.make_dirs(self.path, 0o755)
            top = os.stat(self.path)
        mode = top.st_mode & 0o1777 | 0o700
        disk.make_dirs(folder, mode, exact=True)
        return mode

    # ---- one file

    def get(self, digest: str, size: int | None = None, *, verify: Verify = None) -> Path | None:
        """Return where the cached bytes of *digest* are, or None if they are not here or were found wrong.

        *size* in bytes, where it is known, tells a wrong entry without a second look.
        Size, mtime and inode are compared with what they were when the bytes were last checked; a
        difference, or ``verify="always"``, means reading them again. A wrong entry is removed; one that cannot be
        read just now stays, and is not returned.
        """
        disk.check_verify(verify)
        for cache in self._looks():
            with contextlib.suppress(StoreUnavailable):  # it cannot be read just now, and may be right
                if (found := cache._right(digest, size, verify)) is not None:
                    return found
        return None

    def _looks(self) -> Iterator[Cache]:
        """Yield the caches in which things may be: one that cannot be written comes before this user's overlay."""
        first = self._base or self
        yield first
        second = first._over() if first is self else self
        if second is not None:
            yield second

    def _right(self, digest: str, size: int | None, verify: Verify) -> Path | None:
        """Return where the right bytes of *digest* are in this very cache; other bytes are removed.

        Raises:
            StoreUnavailable: they cannot be read, which says nothing about them.
        """
        path = self._blob(digest)
        try:
            info = os.lstat(path)
        except OSError:
            return None
        wanted = info.st_size if size is None or size < 0 else size  # unknown: the digest says it all
        if not stat.S_ISREG(info.st_mode) or info.st_size != wanted:
            self._condemn(path, digest)
            return None
        facts = _facts(info)
        if verify != "always":
            if self._verified.get(digest) == facts:
                return Path(path)
            if self._note(path + ".note") == facts:
                self._verified[digest] = facts
                self._seen(path + ".note")
                return Path(path)
            over = self._over()
            if over is not None and self._note(over._below(path + ".note", self)) == facts:
                self._verified[digest] = facts
                return Path(path)
        try:
            actual, got = disk.hash_file(path)
        except NotFound:
            return None
        if actual != digest or got != wanted:
            self._condemn(path, digest)
            return None
        with contextlib.suppress(OSError):
            if _facts(os.lstat(path)) == facts:
                self._verified[digest] = facts
                self._write_note(path, facts)
        return Path(path)

    def fetch(
        self, file: File, store: BlobStore, *, progress: Progress | None = None, verify: Verify = None
    ) -> Path:
        """Return where the bytes of *file* are on this disk, read-only, fetched from *store* if need be.

        Raises:
            NotFound: the store does not have them.
            DigestMismatch: the store gave other bytes; the cache is as it was.
            StoreUnavailable: the store or the cache's disk failed.
        """
        over = self._over()
        if over is not None:
            return over.fetch(file, store, progress=progress, verify=verify)
        found = self.get(file.digest, file.size, verify=verify)
        if found is not None:
            if progress is not None:
                progress(file.size)
            return found
        with self._lock(file.digest) as waited:
            if waited and (found := self.get(file.digest, file.size)) is not None:
                if progress is not None:
                    progress(file.size)
                return found
            return self._admit(file, store, progress)

    def fetch_all(
        self,
        files: Sequence[File],
        store: BlobStore,
        *,
        progress: Progress | None = None,
        verify: Verify = None,
    ) -> dict[str, Path]:
        """Return where the bytes of *files* are, by digest, fetched several at a time; raises as `fetch`."""
        over = self._over()
        if over is not None:
            return over.fetch_all(files, store, progress=progress, verify=verify)
        limit = bound()
        unique = list({file.digest: file for file in files}.values())
        repeated = sum(file.size for file in files) - sum(file.size for file in unique)
        if progress is not None and repeated:
            progress(repeated)
        there: dict[str, Path] = {}
        if verify is None:  # a look costs less than handing it to a thread
            for file in unique:
                if (path := self.get(file.digest, file.size)) is not None:
                    there[file.digest] = path
                    if progress is not None:
                        progress(file.size)
        missing = [file for file in unique if file.digest not in there]

        def fetched(progress: Progress | None) -> Sequence[Path]:
            return each(
                lambda f, step: self.fetch(f, store, progress=step, verify=verify),
                missing,
                progress,
                threads=_threads(missing, store),
            )

        if limit is None or not missing:
            try:
                paths = fetched(progress)
            except StoreUnavailable as error:
                return self._overlay(error).fetch_all(files, store, progress=progress, verify=verify)
        else:
            with self._leasing(unique):  # the bound is kept by the lease of whoever uses them
                try:
                    if verify is None:
                        self._make_room(limit, sum(file.size for file in missing))
                    paths = fetched(progress)
                except StoreUnavailable as error:
                    if error.errno not in _NO_ROOM or not self._made_room():
                        return self._overlay(error).fetch_all(files, store, progress=progress, verify=verify)
                    paths = fetched(None)
        return there | {file.digest: path for file, path in zip(missing, paths, strict=True)}

    def take(
        self,
        opener: Callable[[int], disk.Reader],
        size: int | None,
        *,
        key: str | None = None,
        progress: Progress | None = None,
    ) -> tuple[str, int, Path]:
        """Store the bytes that *opener* opens from a byte on, whatever they are; return their digest, size and place.

        *size* is what is expected, where that is known. *key*, 64 hex digits, names these very bytes, where
        something does: then a transfer that was interrupted is gone on with. Raises what the reader raises, and:

        Raises:
            StoreUnavailable: the cache's disk failed.
        """
        over = self._over()
        if over is not None:
            return over.take(opener, size, key=key, progress=progress)
        limit = bound()
        if limit is not None:
            come = [] if key is None else [File("", size or 0, f"sha256:{key}")]  # of an earlier transfer
            with self._leasing(come):
                self._make_room(limit, size or 0)
        begun = False

        def write(fd: int) -> str:
            nonlocal size, begun
            begun = True
            if size is None:
                reader = opener(0)
                try:
                    digest, size = disk.copy(reader, fd, progress=progress, where=self.path, flush=True)
                finally:
                    reader.close()
            else:
                digest, size = disk.go_on(opener, fd, size, progress, where=self.path)
            return digest

        try:
            path, digest = self._received(key, size, write)
        except StoreUnavailable as error:
            if begun:  # what was opened may not be read twice
                raise
            return self._overlay(error).take(opener, size, key=key, progress=progress)
        self._kept_within([File("", size or 0, digest)])
        return digest, size or 0, path

    @contextlib.contextmanager
    def turn(self, key: str) -> Iterator[None]:
        """Wait while somebody else is at what *key*, 64 hex digits, names: look again then. Best effort."""
        with (self._over() or self)._lock("sha256:" + key):
            yield

    def _kept_within(self, files: Iterable[File], folder: str | None = None) -> None:
        """Keep the bound, if there is one, after a transfer of *files*, which stay."""
        with contextlib.suppress(ModelHubError):
            if (limit := bound()) is not None and not self._is_held():
                with self._leasing(files, folder):
                    self.prune(limit, unfinished=False)

    def _make_room(self, limit: int, size: int) -> None:
        """Keep the bound before a transfer of *size* bytes, so that it is kept while they come."""
        if size and not self._is_held():
            with contextlib.suppress(ModelHubError):
                self.prune(max(limit - size, 0), unfinished=False)

    def _made_room(self) -> bool:
        """Return whether anything could be removed from a disk that is full; what is leased stays."""
        with contextlib.suppress(ModelHubError):
            return self.prune(0, unfinished=False) > 0
        return False

    def _is_held(self) -> bool:
        return bool(self._holders or (self._base is not None and self._base._holders))

    def _sealed(self, fd: int) -> tuple[int, int, int]:
        """Make what was written durable and read-only; return its facts."""
        with self._writing():
            if hasattr(os, "fchmod"):
                os.fchmod(fd, 0o444)
            os.fsync(fd)
            return _facts(os.fstat(fd))

    def _published(self, temporary: str, digest: str, facts: tuple[int, int, int]) -> Path:
        """Make a closed file, whose bytes are right, the blob of its digest; return where it is."""
        final = self._blob(digest)
        with self._writing():
            self._make(os.path.dirname(final))
            self._write_note(final, facts)
            if os.path.isdir(final) and not os.path.islink(final):
                self._condemn(final, digest)
            os.replace(temporary, final)
            disk.fsync_dir(os.path.dirname(final))
        self._verified[digest] = facts
        self._fetched += 1
        return Path(final)

    def _admit(self, file: File, store: BlobStore, progress: Progress | None) -> Path:
        def write(fd: int) -> str:
            self._transfer(file, store, fd, progress)
            return file.digest

        return self._received(file.digest[7:], file.size, write)[0]

    def _received(self, key: str | None, size: int | None, write: Callable[[int], str]) -> tuple[Path, str]:
        """Have *write* fill a file, and make it the blob of the digest that it returns.

        A large one that was interrupted is gone on with by whoever comes with the same *key* and *size*.
        """
        large = key is not None and size is not None and size >= _RESUMED
        folder = os.path.join(self._v1, "partial" if large else "tmp")
        temporary = os.path.join(folder, disk.temporary(key or "url"))
        with self._writing():
            self._make(os.path.join(self._v1, "tmp"))
            self._make(folder)
            if not self._swept or time.monotonic() - self._swept > 60:
                self.sweep()
                self._swept = time.monotonic()
            fd = unfinished.adopted(folder, key or "", size or 0, temporary) if large else None
            if fd is None:
                fd = disk.create(temporary, 0o600)
        if large:
            disk.try_lock(fd)  # tells those who cannot ask for this process that it lives
        try:
            try:
                digest = write(fd)
                facts = self._sealed(fd)
            finally:
                os.close(fd)
            if digest[7:] == key and os.path.lexists(temporary):
                there = None  # a key that is a digest was looked for
            else:  # or somebody took us for dead, and went on
                there = self.get(digest)
            if there is not None:
                disk.remove(temporary)
            path = there or self._published(temporary, digest, facts)
        except BaseException as error:
            full = getattr(error, "errno", None) in _FULL
            if (
                large and not full and not isinstance(error, (DigestMismatch, Conflict))
            ):  # what has come is not lost: the next one goes on from there
                with contextlib.suppress(OSError):
                    os.rename(temporary, os.path.join(folder, unfinished.freed(key or "")))
            else:
                disk.remove(temporary)
            raise
        if large:
            unfinished.sweep(folder, f"{key}.")
        return path, digest

    def _transfer(self, file: File, store: BlobStore, fd: int, progress: Progress | None) -> None:
        for last in (False, True):
            try:
                with translated("fetch from", store.url):
                    store.fetch(file.digest, file.size, fd, progress=progress)
            except DigestMismatch:
                # Cut short or mixed on the way: once more from the start, and then it is the store.
                if last:
                    raise
                with self._writing():
                    os.ftruncate(fd, 0)
                    os.lseek(fd, 0, os.SEEK_SET)
                progress = None
            except StoreUnavailable as error:
                if error.errno not in _FULL:
                    raise
                raise disk.unavailable(  # the store knows only that what it was given is full
                    OSError(error.errno, ""), "write to the cache", self.path
                ) from error
            else:
                return

    def _over(self) -> Cache | None:
        """Return the overlay (see `_overlay`) where this cache needs one and there is one already."""
        if self._above is None and self._base is None and self._baked() and not os.access(self._v1, os.W_OK):
            with contextlib.suppress(StoreUnavailable):
                path = whereabouts.overlay(self.path)
                if os.path.isdir(path) and path != self.path:
                    whereabouts.owned(os.path.dirname(path))
                    self._above = Cache(path, base=self)
        return self._above

    def _overlay(self, error: StoreUnavailable, *, told: bool = True) -> Cache:
        """Return a cache of this user alone that stands before this one, which cannot be written; else raise *error*.

        *error* is that of writing here: what a store refuses is no reason. With *told* a person is told.
        """
        ours = error.errno in _NO_ENTRY and error.facts.get("cache") == self.path
        if not ours or self._base is not None or not self._baked():
            raise error
        if self._above is None:
            path = whereabouts.overlay(self.path)
            if path == self.path:
                raise error
            whereabouts.owned(os.path.dirname(path))
            self._above = Cache(path, base=self)
        if told and not self._told:
            log.warning(
                "The cache %s cannot be written: what is missing there goes to %s.",
                self.path,
                self._above.path,
            )
            self._told = True
        return self._above

    def _below(self, path: str, base: Cache) -> str:
        """Return where in this overlay is noted what would be noted at *path* in its *base*."""
        return os.path.join(self._v1, "below", os.path.relpath(path, base._v1))

    def _noted(self, path: str, data: bytes) -> bool:
        """Note what was verified in this cache, at *path* or in this user's overlay; return whether that could be done."""
        try:
            over = self._over()
            if over is None:
                try:
                    self._put(path, data)
                except StoreUnavailable as error:
                    over = self._overlay(error, told=False)
            if over is not None:
                over._put(over._below(path, self), data)
        except StoreUnavailable:
            return False
        return True

    def _baked(self) -> bool:
        """Return whether somebody has filled this cache: else its place is a mistake that had better be told."""
        return os.path.isdir(os.path.join(self._v1, "blobs"))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with translated("write to the cache", self.path):
            try:
                yield
            except OSError as exc:
                if exc.errno in _NO_ENTRY:
                    raise self._refused(exc.errno) from exc
                raise

    def _refused(self, number: int | None) -> StoreUnavailable:
        """Return the error for a cache that this user cannot write, or not even read."""
        reason = os.strerror(number or 0)
        if self._is_closed():
            return StoreUnavailable(
                f"The cache {shown(self.path)} cannot be read: {reason}.",
                hint="Let its owner open it to others (chmod -R a+rX), or set MODELHUB_CACHE_DIR to another folder.",
                errno=number,
                cache=self.path,
            )
        return StoreUnavailable(
            f"The cache {shown(self.path)} cannot be written: {reason}.",
            hint="Set MODELHUB_CACHE_DIR (or cache_dir=) to an absolute path that is writable.",
            errno=number,
            cache=self.path,
        )

    def _is_closed(self) -> bool:
        """Return whether there is a cache that this user may not look into."""
        looked_into = [os.path.join(self._v1, part) for part in ("blobs", "folders")]
        for folder in (self.path, self._v1, *looked_into):
            try:
                os.lstat(folder)
            except PermissionError:
                return True
            except OSError:
                continue
            need = os.R_OK | os.X_OK if folder in looked_into else os.X_OK
            if os.path.isdir(folder) and not os.access(folder, need):
                return True
        return False

    def _check_open(self) -> None:
        """Raise StoreUnavailable if this user may not look into the cache: then what is there cannot be told."""
        if self._is_closed():
            raise self._refused(errno.EACCES)

    # ---- a folder

    def folder(
        self,
        files: Sequence[File],
        store: BlobStore,
        *,
        digest: str | None = None,
        progress: Progress | None = None,
        verify: Verify = None,
    ) -> Path:
        """Return a read-only folder in the cache with *files* under their paths, whole or not at all.

        It is named by *digest*, that of the manifest of *files*, so equal sets share one. Its files are
        hard links to the cache's own, where the disk has those: it takes no room. One that was verified
        before, and in which nothing has another size, mtime or inode since, is returned without a lock
        and without a look at the blobs.

        Raises as `fetch` does, and:

        Raises:
            InvalidDocument: a path could lead outside of the folder, or *digest* is none.
        """
        disk.check_verify(verify)
        stored.check_paths(file.path for file in files)  # before anything is fetched
        name = digest if digest is not None else manifest.digest(files)
        if verify != "always" and (there := self._verified_folder(name)) is not None:
            if progress is not None:
                progress(sum(file.size for file in files))
            return there
        over = self._over()
        if over is not None:
            return over.folder(files, store, digest=digest, progress=progress, verify=verify)
        final = self._folder(name)
        with self.lease(files, name):
            for turn in range(8):  # more than once only if somebody damages or prunes the cache meanwhile
                try:
                    paths = self.fetch_all(files, store, progress=None if turn else progress, verify=verify)
                    made = self._made(final, files, paths)
                except StoreUnavailable as error:
                    overlay = self._overlay(error)
                    return overlay.folder(files, store, digest=digest, progress=progress, verify=verify)
                if made:
                    self._note_whole(name, final)
                    return Path(final)
        raise StoreUnavailable(
            f"The folder {disk.text(final)} in the cache changes while it is made.",
            hint="Find the process that writes there, or set MODELHUB_CACHE_DIR to another folder.",
        )

    def cached_folder(
        self, files: Sequence[File], *, digest: str | None = None, verify: Verify = None
    ) -> Path | None:
        """Return the folder of *files* if all their bytes are cached already, else None (for offline use).

        Raises:
            InvalidDocument: a path could lead outside of the folder, or *digest* is none.
            StoreUnavailable: the cache cannot be read, or its disk failed.
        """
        disk.check_verify(verify)
        stored.check_paths(file.path for file in files)
        name = digest if digest is not None else manifest.digest(files)
        if verify != "always" and (there := self._verified_folder(name)) is not None:
            return there
        over = self._over()
        if over is not None:
            return over.cached_folder(files, digest=digest, verify=verify)
        self._check_open()
        final = self._folder(name)
        paths: dict[str, Path] = {}
        for file in files:
            found = self.get(file.digest, file.size, verify=verify)
            if found is None:
                return None
            paths[file.digest] = found
        try:
            made = self._made(final, files, paths)
        except StoreUnavailable as error:
            return self._overlay(error).cached_folder(files, digest=digest, verify=verify)
        if not made:
            return None
        self._note_whole(name, final)
        return Path(final)

    def _verified_folder(self, digest: str) -> Path | None:
        """Return the folder that was verified and is as it was then, here or in the overlay."""
        for cache in self._looks():
            if cache._as_verified(digest, final := cache._folder(digest)):
                return Path(final)
        return None

    def _folder(self, digest: str) -> str:
        return os.path.join(self._v1, "folders", stored.digest(digest)[7:])

    def _as_verified(self, digest: str, final: str) -> bool:
        """Return whether the folder is in the very state in which it was verified; notes the use, at most hourly."""
        note = os.path.join(self._v1, "whole", digest[7:])
        state: str | None = None
        for known in filter(None, self._known(note, digest)):
            state = state or _state(final)
            if state is None:
                return False
            if state == known:
                self._seen(note)
                return True
        return False

    def _known(self, note: str, digest: str) -> Iterator[str]:
        """Yield the states of a folder that were noted, also where this cache cannot be written."""
        yield _text(note)
        over = self._over()
        if over is not None:
            yield _text(over._below(note, self))
        yield self._whole.get(digest, "")

    def _note_whole(self, digest: str, final: str) -> None:
        """Note the state of a folder that was just verified, for `_as_verified`; best effort."""
        state = _state(final)
        note = os.path.join(self._v1, "whole", digest[7:])
        if state is not None and not self._noted(note, state.encode()):
            self._whole[digest] = state

    def _is_whole(self, final: str, files: Sequence[File], paths: dict[str, Path]) -> bool:
        """Return whether the folder holds exactly *files*, each the same inode as the verified blob, or as good.

        Raises:
            StoreUnavailable: it cannot be read just now, and may be whole.
        """
        expected = {file.path: file for file in files}
        try:
            found = staging.listing(final)
        except StoreUnavailable as error:
            if error.errno not in (*_WRONG, *_NO_ENTRY):
                raise
            return False
        if found is None or set(found) != set(expected):
            return False
        for path, info in found.items():
            file = expected[path]
            if not stat.S_ISREG(info.st_mode) or info.st_size != file.size:
                return False
            try:
                blob = os.lstat(paths[file.digest])
            except OSError:
                return False
            if (info.st_dev, info.st_ino) == (blob.st_dev, blob.st_ino):
                continue  # the blob itself, verified above
            try:  # a copy, where there are no hard links; or another file's bytes
                if disk.hash_file(os.path.join(os.fsencode(final), disk.raw(path)))[0] != file.digest:
                    return False
            except NotFound:
                return False
            except StoreUnavailable as error:
                if error.errno not in (*_WRONG, *_NO_ENTRY):
                    raise
                return False
        return True

    def _made(self, final: str, files: Sequence[File], paths: dict[str, Path]) -> bool:
        """Return whether the folder is whole, after making it if it was not; False: look again."""
        if self._is_whole(final, files, paths):
            return True
        staged = os.path.join(self._v1, "tmp", disk.temporary(os.path.basename(final)))
        try:
            with self._writing():
                self._make(os.path.dirname(final))
                self._make(os.path.dirname(staged))
                staging.stage(staged, files, lambda file: paths[file.digest], how="share", frozen=True)
                if os.path.lexists(final):
                    if self._is_whole(final, files, paths):
                        return True  # another process was faster
                    self._condemn(final, os.path.basename(final))
                    if os.path.lexists(final) and _is_anothers(final):  # who may not take it away
                        raise self._refused(errno.EACCES)
                with contextlib.suppress(FileExistsError, IsADirectoryError, NotADirectoryError):
                    os.rename(staged, final)
                    os.chmod(final, 0o555)  # noqa: S103 - read-only; only now: such a folder cannot be moved
        except StoreUnavailable as error:
            if error.errno in _NO_ENTRY:
                raise self._refused(error.errno) from error
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):  # pruned meanwhile, or made by another
                raise
        finally:
            if os.path.lexists(staged):
                disk.remove_tree(staged)
        return self._is_whole(final, files, paths)

    # ---- the whole

    def info(self) -> CacheInfo:
        """Return what the cache holds; with its overlay, where it cannot be written itself.

        Raises:
            StoreUnavailable: it cannot be read.
        """
        self._check_open()
        over = self._over()
        above = None if over is None else over.info()
        blobs = list(self._blobs())
        folders = self._folders(blobs)
        unfinished = 0
        for part in ("tmp", "partial", "bad"):
            found = staging.listing(os.path.join(self._v1, part))
            unfinished += sum(info.st_size for info in (found or {}).values())
        size = sum(info.st_size for *_, info in blobs) + sum(folder.size for folder in folders)
        mine = CacheInfo(self.path, len(blobs), len(folders), size, unfinished, bound())
        if above is None:
            return mine
        return evolve(
            mine,
            blobs=mine.blobs + above.blobs,
            folders=mine.folders + above.folders,
            size=mine.size + above.size,
            unfinished=mine.unfinished + above.unfinished,
        )

    def verify(self, *, progress: Progress | None = None) -> tuple[str, ...]:
        """Read every cached blob, and copies in folders; remove what is wrong, and return the digests of that.

        Of a folder it is the digest of its manifest, for one of a whole version that of the version. *progress* is
        called with the bytes read. What was removed is fetched anew when it is next needed.

        Raises:
            StoreUnavailable: something could not be read, and stayed; all else was looked at.
        """
        self._check_open()
        over = self._over()
        blobs = list(self._blobs())
        wrong: list[str] = [] if over is None else list(over.verify(progress=progress))
        unread: list[StoreUnavailable] = []
        for digest, _, info in blobs:
            try:
                if self._right(digest, info.st_size, "always") is None:
                    wrong.append(digest)
            except StoreUnavailable as error:
                unread.append(error)
            if progress is not None:
                progress(info.st_size)
        digests = {(info.st_dev, info.st_ino): digest for digest, _, info in blobs}
        for folder in self._folders(blobs):
            try:
                if folder.copies and not self._is_right(folder, digests, progress):
                    self._condemn(folder.path, os.path.basename(folder.path))
                    wrong.append(folder.digest)
            except StoreUnavailable as error:
                unread.append(error)
        if unread:
            raise StoreUnavailable(
                f"{len(unread)} entries of the cache {shown(self.path)} could not be read, and stay; {len(wrong)} were"
                f" wrong, and are removed. {unread[0].message}",
                hint=unread[0].hint,
                errno=unread[0].errno,
            )
        return tuple(wrong)

    def _is_right(
        self, folder: _Folder, blobs: dict[tuple[int, int], str], progress: Progress | None
    ) -> bool:
        """Return whether a folder that has copies is what its name says: the digest of the manifest of its files."""
        files = []
        try:
            for path, info in (staging.listing(folder.path) or {}).items():
                digest = blobs.get((info.st_dev, info.st_ino))
                if digest is None:
                    name = os.path.join(os.fsencode(folder.path), disk.raw(path))
                    digest = disk.hash_file(name, progress=progress)[0]
                files.append(File(path, info.st_size, digest))
            return manifest.digest(files) == folder.digest
        except StoreUnavailable as error:
            if error.errno not in _WRONG:
                raise
            return False
        except ModelHubError:  # gone, or a name that no version has
            return False

    def prune(self, max_size: int | None = None, *, unfinished: bool = True) -> int:
        """Remove what was used longest ago until at most *max_size* bytes are left; return the bytes freed.

        None is the bound of the environment, and without one no blob goes. Folders that need a removed
        blob go with it; one that is a copy goes by its own last use. What a living process is linking just now stays; a
        process that still reads a file that is removed reads on. With *unfinished* transfers that were interrupted go
        too, without it only if the rest is too large with them.

        Raises:
            StoreUnavailable: the cache cannot be read or written.
        """
        over = self._over()
        if over is not None:  # all that can be removed
            return over.prune(max_size, unfinished=unfinished)
        if max_size is None:
            max_size = bound()
        self._check_open()
        self.sweep(partial=unfinished)
        if max_size is None:
            return 0
        blobs = list(self._blobs())
        folders = self._folders(blobs)
        used_in: dict[tuple[int, int], float] = {}
        for folder in folders:
            for inode in folder.inodes:
                used_in[inode] = max(folder.used, used_in.get(inode, 0.0))
        leased = self._leased()
        used: list[tuple[float, str, str, int]] = [
            (0.0, f"sha256:{key}", path, size) for key, path, size in self._idle()
        ]
        used += [
            (folder.used, folder.digest, folder.path, folder.size) for folder in folders if folder.copies
        ]
        for digest, path, info in blobs:
            last = max(_last_use(path, info), used_in.get((info.st_dev, info.st_ino), 0.0))
            used.append((last, digest, path, info.st_size))
        total = sum(size for *_, size in used)
        going: list[tuple[str, str, int]] = []
        left = total
        for _, digest, path, size in sorted(used):
            if left <= max_size and (max_size or size):
                break
            if digest not in leased:
                going.append((digest, path, size))
                left -= size
        return self._remove(going, folders)

    def drop(self, digests: Iterable[str]) -> int:
        """Remove these blobs, and the folders that hold them; return the bytes freed. Unknown ones are fine.

        A folder that is a copy does not tell what it holds: all of those go. Of a cache that cannot be written
        this user's overlay loses them.

        Raises:
            StoreUnavailable: the cache cannot be written.
        """
        over = self._over()
        if over is not None:
            return over.drop(digests)
        unwanted, going = list(digests), []
        if not unwanted:
            return 0
        for digest in unwanted:
            path = self._blob(digest)
            with contextlib.suppress(OSError):
                going.append((digest, path, os.lstat(path).st_size))
        folders = self._folders(list(self._blobs()))
        copies = [(one.digest, one.path, one.size) for one in folders if one.copies]
        return self._remove(going + copies, folders, spare=False)

    def clear(self) -> int:
        """Remove everything that is cached and return the bytes freed; what is being linked stays.

        Raises:
            StoreUnavailable: the cache cannot be read or written.
        """
        over = self._over()
        if over is not None:
            return over.clear()
        freed = self.prune(0)
        place.forget(Path(self._v1, "records"), age=0)
        leased = self._leased()
        if not leased:
            for name in _names(os.path.join(self._v1, "folders")):
                self._condemn(os.path.join(self._v1, "folders", name), name)
        return freed

    def _folders(self, blobs: Iterable[tuple[str, str, os.stat_result]]) -> list[_Folder]:
        """Return what is to be known of every folder."""
        inodes = {(info.st_dev, info.st_ino) for *_, info in blobs}
        found = []
        for name in _names(os.path.join(self._v1, "folders")):
            path = os.path.join(self._v1, "folders", name)
            infos = {(info.st_dev, info.st_ino): info for info in (staging.listing(path) or {}).values()}
            last = 0.0
            with contextlib.suppress(OSError):
                last = os.lstat(os.path.join(self._v1, "whole", name)).st_mtime
            own = [info for inode, info in infos.items() if inode not in inodes]
            size = sum(info.st_size for info in own if info.st_nlink == 1)
            found.append(_Folder(f"sha256:{name}", path, last, frozenset(infos), bool(own), size))
        return found

    def _remove(
        self, going: Sequence[tuple[str, str, int]], folders: Sequence[_Folder], *, spare: bool = True
    ) -> int:
        """Remove blobs, folders of copies and idle transfers; return the bytes freed.

        Folders that are made of a blob go first, so that no folder loses a file. With *spare* leases are looked at
        before each blob: whoever got one meanwhile has found the blob, and is about to link it. And blobs stay that
        are in a folder of another user, which cannot be removed: no room would be won.
        """
        paths = {path: _inode(path) for _, path, _ in going}
        gone = set(paths.values()) - {None}
        linked: set[tuple[int, int]] = set()
        for folder in folders:
            if folder.path in paths or folder.inodes & gone:
                self._condemn(folder.path, os.path.basename(folder.path))
                if os.path.lexists(folder.path):
                    linked |= folder.inodes
        leases, stay, freed = os.path.join(self._v1, "leases"), set[str](), 0
        known: list[str] = []
        for digest, path, size in going:
            if spare and (names := _names(leases)) != known:
                known, stay = names, self._leased()
            if os.path.isdir(path) or digest in stay or (spare and paths[path] in linked):
                continue
            with self._writing():
                disk.remove(path + ".note")
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            freed += size
            self._verified.pop(digest, None)
        return freed

    def _idle(self) -> Iterator[tuple[str, str, int]]:
        """Yield key, path and size of transfers that nobody goes on with just now."""
        return unfinished.idle(os.path.join(self._v1, "partial"))

    def sweep(self, older_than: float | None = None, *, partial: bool = False) -> int:
        """Remove what killed writers left behind, and wrong entries; return how many.

        Interrupted transfers stay for a day, since the next one goes on from there; with *partial* those
        that nobody works at go at once.
        """
        locks = os.path.join(self._v1, "locks")
        count = disk.sweep(os.path.join(self._v1, "tmp"), older_than=older_than)
        count += disk.sweep(os.path.join(self._v1, "records"), older_than=older_than)
        count += place.forget(Path(self._v1, "records"))
        count += disk.sweep(os.path.join(self._v1, "leases"), older_than=older_than)
        count += disk.sweep(os.path.join(self._v1, "bad"), older_than=0)
        age = None if partial or older_than is not None else _ABANDONED
        count += unfinished.sweep(os.path.join(self._v1, "partial"), "", age, older_than)
        for name in _names(locks):
            path = os.path.join(locks, name)
            with contextlib.suppress(OSError):
                fd = os.open(path, disk.LOCK)
                try:
                    if disk.try_lock(fd) and _names_file(path, fd):
                        os.unlink(path)
                        count += 1
                finally:
                    os.close(fd)
        for name in _names(os.path.join(self._v1, "urls")):
            path = os.path.join(self._v1, "urls", name)
            with contextlib.suppress(OSError):
                if abs(time.time() - os.lstat(path).st_mtime) > _FORGOTTEN:
                    os.unlink(path)
        for name in _names(os.path.join(self._v1, "whole")):
            if not os.path.lexists(os.path.join(self._v1, "folders", name)):
                disk.remove(os.path.join(self._v1, "whole", name))
        return count

    # ---- who is at it

    @contextlib.contextmanager
    def lease(self, files: Iterable[File], folder: str | None = None) -> Iterator[None]:
        """Keep *files* from being pruned while the block runs; best effort, as a lock is not needed for it.

        And the *folder* of that digest, where it is a copy. Whoever links a file that was pruned nevertheless fetches
        it again. If anything was fetched in the block the bound is kept after it: leases of others may be gone by then.
        """
        files, before = tuple(files), self._fetched
        try:
            with self._leasing(files, folder):
                yield
        finally:
            if self._fetched != before:
                self._kept_within(files, folder)

    @contextlib.contextmanager
    def holding(self) -> Iterator[Callable[[Iterable[File]], None]]:
        """Let all that is fetched in the block stay until it ends: things that are wanted together, one after the other.

        The bound is kept only afterwards. The function that is yielded tells other processes what is held, as a lease.
        """
        holder = object()
        with contextlib.ExitStack() as held:
            self._holders.add(holder)
            names: list[str] = []

            def hold(files: Iterable[File]) -> None:
                names.append("")
                held.enter_context((self._over() or self)._leasing(files))

            try:
                yield hold
            finally:
                held.close()
                self._holders.discard(holder)
                if names:
                    (self._over() or self)._kept_within(())

    @contextlib.contextmanager
    def _leasing(self, files: Iterable[File], folder: str | None = None) -> Iterator[None]:
        name = os.path.join(self._v1, "leases", disk.temporary("lease"))
        digests = [file.digest for file in files] + ([] if folder is None else [folder])
        try:  # first of all: Ctrl-C while it is written leaves none either
            with contextlib.suppress(ModelHubError):
                self._put(name, "\n".join(digests).encode())
            yield
        finally:
            disk.remove(name)

    def _leased(self) -> set[str]:
        """Return the digests that living processes are linking."""
        folder = os.path.join(self._v1, "leases")
        found: set[str] = set()
        for name in _names(folder):
            with contextlib.suppress(OSError):
                path = os.path.join(folder, name)
                if not disk.is_left_over(name, os.lstat(path).st_mtime):
                    found.update(disk.read_file(path, _LEASE).decode("ascii", "replace").split())
        return found

    # ---- inside

    def _blob(self, digest: str) -> str:
        if not manifest.is_digest(digest):
            raise InvalidName(
                f"{shown(digest)} is not a digest.", hint="Digests read sha256: and 64 lower-case hex digits."
            )
        return os.path.join(self._v1, "blobs", digest[7:9], digest[9:])

    def _blobs(self) -> Iterator[tuple[str, str, os.stat_result]]:
        top = os.path.join(self._v1, "blobs")
        for shard in _names(top):
            for rest in _names(os.path.join(top, shard)):
                if _HEX.fullmatch(rest):
                    path = os.path.join(top, shard, rest)
                    with contextlib.suppress(OSError):
                        yield f"sha256:{shard}{rest}", path, os.lstat(path)

    def _note(self, path: str) -> tuple[int, int, int] | None:
        try:
            fd, _ = disk.open_regular(path)
        except OSError:
            return None
        try:
            words = os.read(fd, 200).split()
            return (int(words[1]), int(words[2]), int(words[3])) if words[0] == b"1" else None
        except (OSError, ValueError, IndexError):
            return None
        finally:
            os.close(fd)

    def _write_note(self, path: str, facts: tuple[int, int, int]) -> None:
        """Note *facts* of the blob; without a note its bytes are merely read again next time."""
        self._noted(path + ".note", b"1 %d %d %d\n" % facts)

    def _seen(self, note: str) -> None:
        """Mark the use in the note's mtime, for `prune`; at most once an hour."""
        with contextlib.suppress(OSError):
            if abs(time.time() - os.lstat(note).st_mtime) > _SEEN:  # also after the clock went back
                os.utime(note, follow_symlinks=False)

    def _condemn(self, path: str, digest: str) -> None:
        """Take a wrong entry out of the way, for good: rename first, so that nobody finds half of it."""
        self._verified.pop(digest, None)
        whole = os.path.join(self._v1, "whole")
        of_folder = os.path.dirname(path) == os.path.join(self._v1, "folders")
        for name in [os.path.basename(path)] if of_folder else _names(whole):  # a folder may be made of it
            disk.remove(os.path.join(whole, name))
        self._whole.clear()
        bad = os.path.join(self._v1, "bad")
        try:
            self._make(bad)
            moved = os.path.join(bad, disk.temporary(os.path.basename(path)))
            if os.path.isdir(path) and not os.path.islink(path):
                os.chmod(path, 0o700)  # a read-only folder cannot be moved to another parent
            os.rename(path, moved)
        except OSError:
            return  # gone already, or a cache that we cannot write: the entry is not used either way
        disk.remove(path + ".note")
        disk.remove_tree(moved) if os.path.isdir(moved) else disk.remove(moved)

    @contextlib.contextmanager
    def _lock(self, digest: str) -> Iterator[bool]:
        """Wait while somebody else fetches *digest*; yield whether to look again. Best effort."""
        name = os.path.join(self._v1, "locks", digest[7:])
        blob, waited = self._blob(digest), False
        while True:
            try:
                mode = self._make(os.path.dirname(name)) & 0o666
                fd = os.open(name, disk.LOCK, mode)
                with contextlib.suppress(
                    OSError, AttributeError
                ):  # whatever the umask is; another user's is as it is
                    os.fchmod(fd, mode)
            except OSError:
                yield True
                return
            try:
                waited |= self._wait(fd, digest)
                if os.path.lexists(blob) or _names_file(name, fd):
                    yield waited or os.path.lexists(blob)
                    return
                # Its holder failed, or a clean-up took it: newcomers lock another file of that name.
            finally:
                if _names_file(name, fd):
                    disk.remove(name)  # before it is let go: whoever waits has its own descriptor
                os.close(fd)

    def _wait(self, fd: int, digest: str) -> bool:
        """Return whether others were waited for."""
        waited, pause = False, 0.01
        marks, since = self._marks(digest), time.monotonic()
        while disk.try_lock(fd) is False:
            waited = True
            time.sleep(pause)
            pause = min(pause * 1.5, 0.25)
            now = self._marks(digest)
            if now != marks:
                marks, since = now, time.monotonic()
            elif time.monotonic() - since > _STALLED:
                break  # its holder is stopped or hangs: fetch as well
        return waited

    def _marks(self, digest: str) -> tuple[tuple[str, int, int], ...]:
        """Return how far others have come with *digest*."""
        found = []
        for folder in (os.path.join(self._v1, "tmp"), os.path.join(self._v1, "partial")):
            for name in _names(folder):
                if name.startswith(digest[7 : 7 + SAME]):
                    with contextlib.suppress(OSError):
                        info = os.lstat(os.path.join(folder, name))
                        found.append((name, info.st_size, info.st_mtime_ns))
        return tuple(found)


def _threads(files: Sequence[File], store: BlobStore) -> int:
    """Return how many files to fetch at once: of small ones the latency counts, of large ones the memory."""
    mean = sum(file.size for file in files) / max(len(files), 1)
    if store.root is not None:
        return THREADS
    return 2 * THREADS if mean < 1 << 20 else THREADS // 2 if mean > 16 << 20 else THREADS


def _names_file(path: str, fd: int) -> bool:
    """Return whether *path* is the name of the open file *fd*."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except OSError:
        return False


def _state(folder: str) -> str | None:
    """Return a digest of what the system says of everything in *folder*, None if there is none.

    It covers name, kind, size, mtime and inode of each entry. Nothing is read: ten thousand files take
    some milliseconds.
    """
    facts: list[str] = []
    stack = [(folder, "")]
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            return None
        while stack:
            at, prefix = stack.pop()
            with os.scandir(at) as entries:
                for entry in entries:
                    info = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(info.st_mode):
                        stack.append((entry.path, f"{prefix}{entry.name}/"))
                    facts.append(
                        f"{prefix}{entry.name}\0{info.st_mode}\0{info.st_size}\0{info.st_mtime_ns}\0{info.st_ino}"
                    )
    except OSError:
        return None
    facts.sort()
    text = "\0\0".join(facts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()


def _text(path: str) -> str:
    """Return the first hundred bytes of a small note, "" where there is none."""
    try:
        fd, _ = disk.open_regular(path)
        try:
            return os.read(fd, 100).decode("ascii", "replace")
        finally:
            os.close(fd)
    except OSError:
        return ""


def _facts(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_size, info.st_mtime_ns, info.st_ino


def _is_anothers(path: str) -> bool:
    """Return whether *path* is another user's, and this one is not root."""
    with contextlib.suppress(OSError):
        return hasattr(os, "geteuid") and os.geteuid() not in (0, os.lstat(path).st_uid)
    return False


def _inode(path: str) -> tuple[int, int] | None:
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _last_use(path: str, info: os.stat_result) -> float:
    try:
        return max(info.st_mtime, os.lstat(path + ".note").st_mtime)
    except OSError:
        return info.st_mtime


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


__all__ = ["SAME", "Cache", "CacheInfo", "bound", "locate", "parse_size"]
