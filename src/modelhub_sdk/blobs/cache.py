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
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from attrs import frozen

from modelhub_sdk.blobs import disk, place, staging
from modelhub_sdk.blobs.disk import Progress, translated
from modelhub_sdk.blobs.parallel import THREADS, each
from modelhub_sdk.blobs.store import BlobStore
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

_FREE = "free"  # in the name of an interrupted transfer, in the place of its owner
_HEX = re.compile(r"[0-9a-f]{62}")
_STALLED = 30.0  # seconds without progress of another process after which we fetch as well
_RESUMED = 16 << 20  # bytes from which on an interrupted transfer is worth going on with
_ABANDONED = 24 * 3600.0  # seconds after which nobody will
_FORGOTTEN = 90 * 24 * 3600.0  # seconds after which a note about a URL goes
_SEEN = 3600.0  # a use is noted when the last note of one is older than this

log = logging.getLogger("modelhub_sdk")

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", -1), errno.EFBIG)
_NO_ENTRY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)

Verify = str | None


@frozen
class CacheInfo:
    """What a cache holds.

    Attributes:
        path: its folder.
        blobs: how many files' bytes it holds.
        folders: how many folders are made of them; they take no room of their own.
        size: the bytes of all blobs.
        unfinished: the bytes of transfers that are under way or were interrupted.
        max_size: the bound in bytes, ``$MODELHUB_CACHE_SIZE``; None: there is none.
    """

    path: str
    blobs: int
    folders: int
    size: int
    unfinished: int = 0
    max_size: int | None = None


_UNITS = {"": 1, "B": 1} | {
    unit + tail: base**power
    for power, unit in enumerate("KMGTP", 1)
    for tail, base in (("", 1000), ("B", 1000), ("IB", 1024))
}


def parse_size(given: object, what: str = "max_size") -> int:
    """Return a number of bytes that was given as such, or as text: ``"500MB"``, ``"20 GiB"``.

    Raises:
        InvalidName: it is neither, or negative.
    """
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", given) if isinstance(given, str) else None
    if match is None or match[2].upper() not in _UNITS:
        raise InvalidName(f"{what}={shown(given)} is no size.", hint="Write bytes, or for example '20GB'.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def bound() -> int | None:
    """Return how many bytes the cache may hold: ``$MODELHUB_CACHE_SIZE``; None when it is not set.

    Raises:
        InvalidName: the variable is no size.
    """
    given = os.environ.get("MODELHUB_CACHE_SIZE", "").strip()
    return parse_size(given, "MODELHUB_CACHE_SIZE") if given else None


def locate(given: str | os.PathLike[str] | None = None) -> str:
    """Return the absolute folder of the cache: *given*, ``$MODELHUB_CACHE_DIR``, or the user's cache folder.

    Without a usable home (a container without HOME or passwd entry) it is ``$TMPDIR``.

    Raises:
        InvalidName: *given* or the variable is empty or relative.
    """
    what = "cache_dir"
    if given is None and "MODELHUB_CACHE_DIR" in os.environ:
        given, what = os.environ["MODELHUB_CACHE_DIR"], "MODELHUB_CACHE_DIR"
    if given is not None:
        path = os.path.expanduser(os.fspath(given))
        if not path or "\0" in path:
            raise InvalidName(f"{what} is empty.", hint=f"Set {what} to an absolute path, or leave it unset.")
        if not os.path.isabs(path):
            raise InvalidName(
                f"{what}={shown(path)} is a relative path: it would change with the working directory.",
                hint=f"Set {what} to an absolute path.",
            )
        return os.path.normpath(path)
    return _default()


def _default() -> str:
    import tempfile

    if os.environ.get("XDG_CACHE_HOME") or os.path.isdir(os.path.expanduser("~")):
        import platformdirs

        path = platformdirs.user_cache_dir("modelhub", appauthor=False)
        if os.path.isabs(path) and _usable(path):
            return path
    try:
        return os.path.join(
            tempfile.gettempdir(), f"modelhub-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
        )
    except OSError as exc:
        raise StoreUnavailable(
            "There is no writable place for the cache: no home folder, no temporary folder.",
            hint="Set MODELHUB_CACHE_DIR to an absolute path that can be written.",
        ) from exc


def _usable(path: str) -> bool:
    """Return whether *path*, or the nearest folder above it that exists, can be written."""
    while not os.path.exists(path):
        parent = os.path.dirname(path)
        if parent == path:
            return False
        path = parent
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)


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
            InvalidName: a relative or empty path (see `locate`), or one inside an *outside* folder.
        """
        self.path = locate(path)
        real = os.path.realpath(self.path)
        for root in outside:
            other = os.path.realpath(os.fspath(root))
            if real == other or real.startswith(other.rstrip(os.sep) + os.sep):
                raise InvalidName(
                    f"The cache {shown(self.path)} lies inside the artifact store, and cleaning deletes.",
                    hint="Set MODELHUB_CACHE_DIR (or cache_dir=) to another folder.",
                )
        self._v1 = os.path.join(self.path, "v1")
        self._verified: dict[str, tuple[int, int, int]] = {}
        self._whole: dict[str, str] = {}  # as the files in `whole`, where those cannot be written
        self._swept = 0.0
        self._fetched = 0
        self._holders: set[object] = set()  # blocks of `holding`
        self._base = base
        self._above: Cache | None = None

    def __repr__(self) -> str:
        return f"<Cache {shown(self.path)}>"

    @property
    def records(self) -> Path:
        """Where `place.into` may keep its records."""
        return Path(self._v1, "records")

    def url_note(self, key: str) -> Path:
        """Return where the note about a URL may be kept, by the digest of its name."""
        return Path((self._above or self)._v1, "urls", key)

    def keep(self, path: str | os.PathLike[str], data: bytes) -> None:
        """Write a small note of the cache's users, whole or not at all; *path* lies in its folder.

        Raises:
            StoreUnavailable: the cache's disk failed.
        """
        temporary = os.path.join(self._v1, "tmp", disk.temporary("keep"))
        with self._writing():
            disk.make_dirs(os.path.dirname(temporary), 0o700)
            disk.make_dirs(os.path.dirname(os.fspath(path)), 0o700)
            try:
                fd = disk.create(temporary, 0o600)
                try:
                    disk.write_all(fd, data)
                finally:
                    os.close(fd)
                os.replace(temporary, path)
            except BaseException:
                disk.remove(temporary)
                raise

    # ---- one file

    def get(self, digest: str, size: int | None = None, *, verify: Verify = None) -> Path | None:
        """Return where the cached bytes of *digest* are, or None if they are not here or were found wrong.

        *size* in bytes, where it is known, tells a wrong entry without a second look.
        Size, mtime and inode are compared with what they were when the bytes were last checked; a
        difference, or ``verify="always"``, means reading them again. A wrong entry is removed.
        """
        _check_verify(verify)
        if self._base is not None and (found := self._base.get(digest, size, verify=verify)) is not None:
            return found
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
            if self._note(path) == facts:
                self._verified[digest] = facts
                self._seen(path + ".note")
                return Path(path)
        try:
            actual, got = disk.hash_file(path)
        except (NotFound, StoreUnavailable):
            actual, got = "", -1
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
        if self._above is not None:
            return self._above.fetch_all(files, store, progress=progress, verify=verify)
        limit = bound()
        unique = list({file.digest: file for file in files}.values())
        repeated = sum(file.size for file in files) - sum(file.size for file in unique)
        if progress is not None and repeated:
            progress(repeated)
        before = self._fetched
        there: dict[str, Path] = {}
        if verify is None:  # a look costs less than handing it to a thread
            for file in unique:
                if (path := self.get(file.digest, file.size)) is not None:
                    there[file.digest] = path
                    if progress is not None:
                        progress(file.size)
        missing = [file for file in unique if file.digest not in there]
        try:
            paths = each(
                lambda f, step: self.fetch(f, store, progress=step, verify=verify),
                missing,
                progress,
                threads=_threads(missing, store),
            )
        except StoreUnavailable as error:
            return self._overlay(error).fetch_all(files, store, progress=progress, verify=verify)
        if self._fetched != before:
            self._kept_within(limit, unique)
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
        if self._above is not None:
            return self._above.take(opener, size, key=key, progress=progress)
        limit = bound()
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
                digest, size = disk.go_on(opener, fd, size, progress)
            return digest

        try:
            path, digest = self._received(key, size, write)
        except StoreUnavailable as error:
            if begun:  # what was opened may not be read twice
                raise
            return self._overlay(error).take(opener, size, key=key, progress=progress)
        self._kept_within(limit, [File("", size or 0, digest)])
        return digest, size or 0, path

    @contextlib.contextmanager
    def turn(self, key: str) -> Iterator[None]:
        """Wait while somebody else is at what *key*, 64 hex digits, names: look again then. Best effort."""
        with (self._above or self)._lock("sha256:" + key):
            yield

    def _kept_within(self, limit: int | None, files: Sequence[File]) -> None:
        """Keep the bound after a transfer of *files*, which stay."""
        if limit is not None and not self._holders and not (self._base and self._base._holders):
            with contextlib.suppress(ModelHubError), self.lease(files):
                self.prune(limit, unfinished=False)

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
            disk.make_dirs(os.path.dirname(final), 0o700)
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
            disk.make_dirs(os.path.join(self._v1, "tmp"), 0o700)
            disk.make_dirs(folder, 0o700)
            if not self._swept or time.monotonic() - self._swept > 60:
                self.sweep()
                self._swept = time.monotonic()
            fd = self._adopted(key or "", size or 0, temporary) if large else None
            if fd is None:
                fd = disk.create(temporary, 0o600)
        try:
            try:
                digest = write(fd)
                facts = self._sealed(fd)
            finally:
                os.close(fd)
            there = None if digest[7:] == key else self.get(digest)  # a key that is a digest was looked for
            if there is not None:
                disk.remove(temporary)
            path = there or self._published(temporary, digest, facts)
        except BaseException as error:
            full = getattr(error, "errno", None) in _FULL
            if (
                large and not full and not isinstance(error, (DigestMismatch, Conflict))
            ):  # what has come is not lost: the next one goes on from there
                with contextlib.suppress(OSError):
                    os.rename(temporary, os.path.join(folder, f"{key}.{_FREE}.{uuid.uuid4().hex}"))
            else:
                disk.remove(temporary)
            raise
        if large:
            self._sweep_partial(f"{key}.")
        return path, digest

    def _adopted(self, key: str, size: int, temporary: str) -> int | None:
        """Return the open file of an interrupted transfer of *key*, ours from now on; None if there is none.

        It is claimed by a rename, so one process gets it. Its bytes are hashed before they count.
        """
        folder = os.path.dirname(temporary)
        for name in _names(folder):
            path = os.path.join(folder, name)
            if not name.startswith(f"{key}."):
                continue
            try:
                if name.split(".")[1] != _FREE and not disk.is_left_over(name, os.lstat(path).st_mtime):
                    continue
                os.rename(path, temporary)
            except OSError:
                continue  # somebody else was faster
            try:
                fd = os.open(temporary, os.O_RDWR | disk.READ)
            except OSError:  # a link, a folder, or not ours
                disk.remove(temporary)
                disk.remove_tree(temporary)
                continue
            info = os.fstat(fd)
            mine = not hasattr(os, "geteuid") or info.st_uid == os.geteuid()
            if stat.S_ISREG(info.st_mode) and info.st_nlink == 1 and mine and info.st_size <= size:
                return fd
            os.close(fd)
            disk.remove(temporary)
        return None

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
            else:
                return

    def _overlay(self, error: StoreUnavailable) -> Cache:
        """Return a cache of this user alone that stands before this one, which cannot be written; else raise *error*."""
        import tempfile

        path = os.path.join(
            tempfile.gettempdir(),
            f"modelhub-{os.getuid() if hasattr(os, 'getuid') else 'cache'}",
            "over-" + hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16],
        )
        if error.errno not in _NO_ENTRY or self._base is not None or self.path == path or not self._baked():
            raise error
        if self._above is None:
            log.warning("The cache %s cannot be written: what is missing there goes to %s.", self.path, path)
            self._above = Cache(path, base=self)
        return self._above

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
                    raise StoreUnavailable(
                        f"The cache {shown(self.path)} cannot be written: {os.strerror(exc.errno or 0)}.",
                        hint="Set MODELHUB_CACHE_DIR (or cache_dir=) to an absolute path that is writable.",
                        errno=exc.errno,
                    ) from exc
                raise

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

        Raises as `fetch` does.
        """
        _check_verify(verify)
        name = digest if digest is not None else manifest.digest(files)
        final = self._folder(name)
        if verify != "always" and self._as_verified(name, final):
            if progress is not None:
                progress(sum(file.size for file in files))
            return Path(final)
        with self.lease(files):
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
        """Return the folder of *files* if all their bytes are cached already, else None (for offline use)."""
        _check_verify(verify)
        name = digest if digest is not None else manifest.digest(files)
        final = self._folder(name)
        if verify != "always" and self._as_verified(name, final):
            return Path(final)
        paths: dict[str, Path] = {}
        for file in files:
            found = self.get(file.digest, file.size, verify=verify)
            if found is None:
                return None
            paths[file.digest] = found
        if not self._made(final, files, paths):
            return None
        self._note_whole(name, final)
        return Path(final)

    def _folder(self, digest: str) -> str:
        return os.path.join(self._v1, "folders", digest[7:])

    def _as_verified(self, digest: str, final: str) -> bool:
        """Return whether the folder is in the very state in which it was verified; notes the use, at most hourly."""
        note = os.path.join(self._v1, "whole", digest[7:])
        try:
            fd, _ = disk.open_regular(note)
            try:
                known = os.read(fd, 100).decode("ascii", "replace")
            finally:
                os.close(fd)
        except OSError:
            known = self._whole.get(digest, "")
        if not known or _state(final) != known:
            return False
        self._seen(note)
        return True

    def _note_whole(self, digest: str, final: str) -> None:
        """Note the state of a folder that was just verified, for `_as_verified`; best effort."""
        state = _state(final)
        if state is not None:
            try:
                self.keep(os.path.join(self._v1, "whole", digest[7:]), state.encode())
            except ModelHubError:
                self._whole[digest] = state

    def _is_whole(self, final: str, files: Sequence[File], paths: dict[str, Path]) -> bool:
        """Return whether the folder holds exactly *files*, each the same inode as the verified blob."""
        expected = {file.path: file for file in files}
        try:
            found = staging.listing(final)
        except (OSError, StoreUnavailable):
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
            except (NotFound, StoreUnavailable):
                return False
        return True

    def _made(self, final: str, files: Sequence[File], paths: dict[str, Path]) -> bool:
        """Return whether the folder is whole, after making it if it was not; False: look again."""
        if self._is_whole(final, files, paths):
            return True
        staged = os.path.join(self._v1, "tmp", disk.temporary(os.path.basename(final)))
        try:
            with self._writing():
                disk.make_dirs(os.path.dirname(final), 0o700)
                disk.make_dirs(os.path.dirname(staged), 0o700)
                staging.stage(staged, files, lambda file: paths[file.digest], how="share", frozen=True)
                if os.path.lexists(final):
                    if self._is_whole(final, files, paths):
                        return True  # another process was faster
                    self._condemn(final, os.path.basename(final))
                with contextlib.suppress(FileExistsError, IsADirectoryError, NotADirectoryError):
                    os.rename(staged, final)
                    os.chmod(final, 0o555)  # noqa: S103 - read-only; only now: such a folder cannot be moved
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENOTEMPTY):  # pruned meanwhile, or made by another
                raise
        finally:
            if os.path.lexists(staged):
                disk.remove_tree(staged)
        return self._is_whole(final, files, paths)

    # ---- the whole

    def info(self) -> CacheInfo:
        """Return what the cache holds."""
        blobs = list(self._blobs())
        folders = _names(os.path.join(self._v1, "folders"))
        unfinished = 0
        for part in ("tmp", "partial", "bad"):
            found = staging.listing(os.path.join(self._v1, part))
            unfinished += sum(info.st_size for info in (found or {}).values())
        size = sum(info.st_size for _, _, info in blobs)
        return CacheInfo(self.path, len(blobs), len(folders), size, unfinished, bound())

    def verify(self, *, progress: Progress | None = None) -> tuple[str, ...]:
        """Read every cached blob; remove those whose bytes are wrong, and return their digests.

        *progress* is called with the bytes read. What was removed is fetched anew when it is next needed.
        """
        wrong = []
        for digest, _, info in list(self._blobs()):
            if self.get(digest, info.st_size, verify="always") is None:
                wrong.append(digest)
            if progress is not None:
                progress(info.st_size)
        return tuple(wrong)

    def prune(self, max_size: int | None = None, *, unfinished: bool = True) -> int:
        """Remove what was used longest ago until at most *max_size* bytes are left; return the bytes freed.

        None is the bound of the environment, and without one no blob goes. Folders that need a removed
        blob go with it. What a living process is linking just now stays; a process that still reads a file
        that is removed reads on. With *unfinished* transfers that were interrupted go too.

        Raises:
            StoreUnavailable: the cache cannot be written.
        """
        if max_size is None:
            max_size = bound()
        self.sweep(partial=unfinished)
        if max_size is None:
            return 0
        folders = self._folders()
        used_in: dict[tuple[int, int], float] = {}
        for _, last, inodes in folders:
            for inode in inodes:
                used_in[inode] = max(last, used_in.get(inode, 0.0))
        used = sorted(
            (max(_last_use(path, info), used_in.get((info.st_dev, info.st_ino), 0.0)), digest, path, info)
            for digest, path, info in self._blobs()
        )
        leased = self._leased()
        total = sum(info.st_size for *_, info in used)
        going = []
        freed = 0
        for _, digest, path, info in used:
            if total - freed <= max_size and (max_size or info.st_size):
                break
            if digest not in leased:
                going.append((digest, path, info))
                freed += info.st_size
        self._remove(going, folders)
        return freed

    def drop(self, digests: Iterable[str]) -> int:
        """Remove these blobs, and the folders that hold them; return the bytes freed. Unknown ones are fine.

        Raises:
            StoreUnavailable: the cache cannot be written.
        """
        going = []
        for digest in digests:
            path = self._blob(digest)
            with contextlib.suppress(OSError):
                going.append((digest, path, os.lstat(path)))
        if going:
            self._remove(going, self._folders())
        return sum(info.st_size for *_, info in going)

    def clear(self) -> int:
        """Remove everything that is cached and return the bytes freed; what is being linked stays."""
        freed = self.prune(0)
        place.forget(self.records, age=0)
        leased = self._leased()
        if not leased:
            for name in _names(os.path.join(self._v1, "folders")):
                self._condemn(os.path.join(self._v1, "folders", name), name)
        return freed

    def _folders(self) -> list[tuple[str, float, set[tuple[int, int]]]]:
        """Return name, last use and inodes of every folder."""
        found = []
        for name in _names(os.path.join(self._v1, "folders")):
            listed = staging.listing(os.path.join(self._v1, "folders", name)) or {}
            last = 0.0
            with contextlib.suppress(OSError):
                last = os.lstat(os.path.join(self._v1, "whole", name)).st_mtime
            found.append((name, last, {(info.st_dev, info.st_ino) for info in listed.values()}))
        return found

    def _remove(
        self,
        blobs: Sequence[tuple[str, str, os.stat_result]],
        folders: Sequence[tuple[str, float, set[tuple[int, int]]]],
    ) -> None:
        """Remove blobs; first the folders that are made of them, so that no folder loses a file."""
        gone = {(info.st_dev, info.st_ino) for *_, info in blobs}
        for name, _, inodes in folders:
            if inodes & gone:
                self._condemn(os.path.join(self._v1, "folders", name), name)
        for digest, path, _ in blobs:
            with self._writing():
                disk.remove(path + ".note")
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            self._verified.pop(digest, None)

    def sweep(self, older_than: float | None = None, *, partial: bool = False) -> int:
        """Remove what killed writers left behind, and wrong entries; return how many.

        Interrupted transfers stay for a day, since the next one goes on from there; with *partial* those
        that nobody works at go at once.
        """
        locks = os.path.join(self._v1, "locks")
        count = disk.sweep(os.path.join(self._v1, "tmp"), older_than=older_than)
        count += disk.sweep(os.path.join(self._v1, "records"), older_than=older_than)
        count += place.forget(self.records)
        count += disk.sweep(os.path.join(self._v1, "leases"), older_than=older_than)
        count += disk.sweep(os.path.join(self._v1, "bad"), older_than=0)
        count += self._sweep_partial(
            "", None if partial or older_than is not None else _ABANDONED, older_than
        )
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

    def _sweep_partial(self, start: str, age: float | None = None, older_than: float | None = None) -> int:
        """Remove interrupted transfers whose names begin so, if nobody works at them and they are *age* seconds old."""
        folder, count = os.path.join(self._v1, "partial"), 0
        for name in _names(folder):
            path = os.path.join(folder, name)
            if not name.startswith(start):
                continue
            with contextlib.suppress(OSError):
                changed = os.lstat(path).st_mtime
                dead = f".{_FREE}." in name or disk.is_left_over(name, changed, older_than=older_than)
                if dead and (age is None or abs(time.time() - changed) > age):
                    os.unlink(path)
                    count += 1
        return count

    # ---- who is at it

    @contextlib.contextmanager
    def lease(self, files: Iterable[File]) -> Iterator[None]:
        """Keep *files* from being pruned while the block runs; best effort, as a lock is not needed for it.

        Whoever links a file that was pruned nevertheless fetches it again.
        """
        name = self._leasing(files)
        try:
            yield
        finally:
            disk.remove(name)

    @contextlib.contextmanager
    def holding(self) -> Iterator[Callable[[Iterable[File]], None]]:
        """Let all that is fetched in the block stay until it ends: things that are wanted together, one after the other.

        The bound is kept only afterwards. The function that is yielded tells other processes what is held, as a lease.
        """
        names: list[str] = []
        holder = object()
        self._holders.add(holder)
        try:
            yield lambda files: names.append((self._above or self)._leasing(files))
        finally:
            for name in names:
                disk.remove(name)
            self._holders.discard(holder)
            if names:
                (self._above or self)._kept_within(bound(), ())

    def _leasing(self, files: Iterable[File]) -> str:
        name = os.path.join(self._v1, "leases", disk.temporary("lease"))
        with contextlib.suppress(ModelHubError):
            self.keep(name, "\n".join(file.digest for file in files).encode())
        return name

    def _leased(self) -> set[str]:
        """Return the digests that living processes are linking."""
        folder = os.path.join(self._v1, "leases")
        found: set[str] = set()
        for name in _names(folder):
            with contextlib.suppress(OSError):
                path = os.path.join(folder, name)
                if not disk.is_left_over(name, os.lstat(path).st_mtime):
                    found.update(Path(path).read_text("ascii", "replace").split())
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
            fd, _ = disk.open_regular(path + ".note")
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
        """Note *facts* beside the blob; without a note its bytes are merely read again next time."""
        temporary = os.path.join(self._v1, "tmp", disk.temporary("note"))
        try:
            fd = disk.create(temporary, 0o600)
            try:
                disk.write_all(fd, b"1 %d %d %d\n" % facts)
            finally:
                os.close(fd)
            os.replace(temporary, path + ".note")
        except OSError:
            disk.remove(temporary)

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
            disk.make_dirs(bad, 0o700)
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
                disk.make_dirs(os.path.dirname(name), 0o700)
                fd = os.open(name, disk.LOCK, 0o600)
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

    def _marks(self, digest: str) -> tuple[tuple[str, int], ...]:
        """Return how far others have come with *digest*."""
        found = []
        for folder in (os.path.join(self._v1, "tmp"), os.path.join(self._v1, "partial")):
            for name in _names(folder):
                if name.startswith(digest[7 : 7 + SAME]):
                    with contextlib.suppress(OSError):
                        found.append((name, os.lstat(os.path.join(folder, name)).st_size))
        return tuple(found)


def _threads(files: Sequence[File], store: BlobStore) -> int:
    """Return how many files to fetch at once: of small ones the latency counts, of large ones the memory."""
    mean = sum(file.size for file in files) / max(len(files), 1)
    if store.root is not None:
        return THREADS
    return 2 * THREADS if mean < 1 << 20 else THREADS // 2 if mean > 16 << 20 else THREADS


def _check_verify(verify: Verify) -> None:
    if verify not in (None, "always"):
        raise InvalidName(f"verify={shown(verify)} is unknown.", hint="Use verify='always', or leave it out.")


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


def _facts(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_size, info.st_mtime_ns, info.st_ino


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
