"""The content-addressed store: bytes under their sha256, on a local disk or any fsspec file system.

A blob lies at ``<url>/<registry id>/sha256/ab/<62 hex>``. The registry's id is part of the path,
so two registries may share a bucket and never touch each other's blobs. Blobs are never changed:
writing one that exists and is right does nothing, one that is damaged is replaced, and every read that hands out
bytes checks them.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

from modelhub_sdk.blobs import disk, sources
from modelhub_sdk.blobs.disk import Progress
from modelhub_sdk.blobs.driver import without_secrets
from modelhub_sdk.blobs.parallel import each
from modelhub_sdk.blobs.readers import OwnReader
from modelhub_sdk.blobs.sources import Source
from modelhub_sdk.domain import external
from modelhub_sdk.domain.entities import File
from modelhub_sdk.errors import (
    DigestMismatch,
    InvalidDocument,
    InvalidName,
    ModelHubError,
    NotAllowed,
    NotFound,
    StoreUnavailable,
    shown,
)
from modelhub_sdk.formats.manifest import is_digest
from modelhub_sdk.hidden import HiddenOptions

if TYPE_CHECKING:
    from modelhub_sdk.blobs.elsewhere import Reference

T = TypeVar("T")

_SMALL = 1 << 20  # bytes
_HASHED_FIRST = 16 << 20  # bytes
_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", -1), errno.EFBIG, errno.EROFS})
_LATELY = 20_000  # sources that a handle remembers until they are in the journal
_HELD = 64 << 20  # bytes of those that are in memory


class _Blobs(Protocol):
    def put(self, source: Source, progress: Progress | None, *, anew: bool = False) -> tuple[str, int]: ...
    def size(self, digest: str) -> int | None: ...
    def keep(self, digest: str, size: int) -> bool: ...
    def is_sound(self, digest: str, size: int) -> bool: ...
    def changed_at(self, digest: str) -> float | None: ...
    def open(self, digest: str) -> BinaryIO: ...
    def read_range(self, digest: str, start: int, end: int) -> bytes: ...
    def fetch(self, digest: str, size: int, fd: int | None, progress: Progress | None) -> tuple[str, int]: ...
    def delete(self, digest: str, needed: Callable[[], bool]) -> None: ...
    def digests(self) -> Iterator[tuple[str, int]]: ...
    def sweep(self, older_than: float | None) -> int: ...
    def mark(self, owner: str) -> None: ...
    def marked_for(self) -> str | None: ...


def local_path(url: str | os.PathLike[str]) -> str | None:
    """Return the absolute folder that *url* names, or None if it is not on the local disk."""
    given = os.fspath(url)
    for scheme in ("file://", "local://"):
        if given.startswith(scheme):
            given = given[len(scheme) :]
            break
    else:
        if "://" in given or "::" in given:
            return None
    return os.path.abspath(os.path.expanduser(given))


class BlobStore:
    """The blobs of one registry. Safe to use from several threads, and after a fork.

    Attributes:
        elsewhere: returns where else the bytes of a digest are; asked by all reads when they are not here.
        url: where it is, without any secret.
        registry_id: the registry that they are of.
        root: the local folder that holds it, or None.
        read_only: whether writing is refused.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        registry_id: str,
        storage_options: Mapping[str, Any] | None = None,
        read_only: bool = False,
    ) -> None:
        """Name the store at *url*; nothing is opened or created yet.

        Raises:
            InvalidName: *url* or *registry_id* cannot be used.
        """
        given = os.fspath(url)
        if not given or "\0" in given:
            raise InvalidName(
                f"{shown(given)} is not a place for artifacts.", hint="Pass a folder or an fsspec URL."
            )
        if not registry_id or not registry_id.replace("-", "").isalnum() or not registry_id.isascii():
            raise InvalidName(f"{shown(registry_id)} is not the id of a registry.")
        self.read_only = read_only
        self.registry_id = registry_id
        self.elsewhere: Callable[[str], Sequence[Reference]] = lambda _: ()
        self._lately: dict[str, Source] = {}  # what was stored and is not in the journal yet
        self._held = 0  # bytes of that in memory
        self._lock = os.getpid(), threading.Lock()
        self.root = local_path(given)
        self._blobs: _Blobs
        if self.root is not None:
            from modelhub_sdk.blobs.local import LocalBlobs

            self.url = self.place = self.root
            self._blobs = LocalBlobs(os.path.join(self.root, registry_id))
        else:
            from modelhub_sdk.blobs.remote import RemoteBlobs

            self.url = without_secrets(given)
            self.place = external.plain(given).rstrip("/")
            self._blobs = RemoteBlobs(given.rstrip("/"), registry_id, HiddenOptions(storage_options))

    def __repr__(self) -> str:
        return f"<BlobStore {shown(self.url)}>"

    # ---- writing

    def put(self, source: Source, *, progress: Progress | None = None) -> File:
        """Store the bytes of *source*, durably, and return them as a `File` of its path.

        Raises:
            StoreUnavailable: the store cannot be written; nothing was left half-written.
            CredentialsRefused: the store refused our credentials.
            Conflict: the source changed while it was read.
            NotAllowed: the store is read-only.
        """
        self._writing()
        if source.stored is not None and self._blobs.size(source.stored) is not None:
            return self._put_stored(source, source.stored, progress)
        digest, size = self._blobs.put(source, progress)
        if source.stored not in (None, digest):
            raise disk.mismatch(str(source.stored), digest, source.origin, size=source.size, got=size)
        if source.repeatable:
            self._remember(digest, source)
        return File(source.path, size, digest)

    def _put_stored(self, source: Source, digest: str, progress: Progress | None) -> File:
        """Return bytes that are stored here already as a file of another path; nothing is written.

        Raises:
            DigestMismatch: they are damaged.
        """
        size = source.size or 0
        self._blobs.keep(digest, size)  # marks it as used
        if not self._blobs.is_sound(digest, size):
            raise DigestMismatch(
                f"The stored bytes of {shown(source.origin, 300)} are damaged.",
                hint="reg.verify() says more, and reg.repair(source) stores them again.",
                expected=digest,
            )
        if progress is not None:
            progress(size)
        return File(source.path, size, digest)

    def put_all(self, items: Sequence[Source], *, progress: Progress | None = None) -> tuple[File, ...]:
        """Store all *items*, several at a time, and return their `File` values in the same order.

        The first error stops the rest and is raised; Ctrl-C too. Blobs that were finished by then
        stay, unused. Raises as `put` does.
        """
        self._writing()
        small = self.root is not None and all(item.size is not None and item.size < _SMALL for item in items)
        if len(items) <= 2 or (small and len(items) < 50):  # starting threads would cost more than they save
            return tuple(self.put(item, progress=progress) for item in items)
        return each(lambda item, step: self.put(item, progress=step), items, progress)

    def source(self, file: File) -> Source:
        """Return the stored bytes of *file*, to be stored elsewhere under its path."""
        return Source(
            file.path, self.url, file.size, lambda: OwnReader(self.open(file.digest, file.size), file.path)
        )

    def put_known(self, items: Sequence[tuple[File, Source]], *, progress: Progress | None = None) -> None:
        """Store bytes of which it is known what they must be, several at a time.

        Raises as `put` does, and:

        Raises:
            DigestMismatch: some are others. What was stored instead is left to the garbage collection.
        """
        stored = self.put_all([source for _, source in items], progress=progress)
        for (file, source), got in zip(items, stored, strict=True):
            if (got.digest, got.size) != (file.digest, file.size):
                raise disk.mismatch(file.digest, got.digest, source.origin, size=file.size, got=got.size)

    def replace(self, digest: str, source: Source) -> None:
        """Store the bytes of *source*, which are those of *digest*, whatever is stored under it now.

        Raises as `put` does, and:

        Raises:
            DigestMismatch: they are others.
        """
        self._writing()
        got, size = self._blobs.put(source, None, anew=True)
        if got != _checked(digest):
            raise disk.mismatch(digest, got, source.origin, size=source.size, got=size)

    def put_bytes(self, data: bytes) -> str:
        """Store *data* and return its digest; raises as `put` does."""
        return self.put(sources.from_bytes(data)).digest

    def _remember(self, digest: str, source: Source) -> None:
        with self._alone():
            self._forget(digest)
            self._lately[digest] = source
            self._held += (source.size or 0) if source.held else 0
            while len(self._lately) > _LATELY or self._held > _HELD:  # of calls that failed, mostly
                self._forget(next(iter(self._lately)))

    def _alone(self) -> threading.Lock:
        """Return the lock of what is remembered; a forked child has its own."""
        if self._lock[0] != os.getpid():
            self._lock = os.getpid(), threading.Lock()
        return self._lock[1]

    def _forget(self, digest: str) -> None:
        source = self._lately.pop(digest, None)
        if source is not None and source.held:
            self._held -= source.size or 0

    def again(self, digest: str) -> bool:
        """Store once more what this handle stored lately, if it still has the source; return whether it did.

        Raises as `put` does.
        """
        source = self._lately.get(digest)
        return source is not None and self.put(source).digest == digest

    def settled(self, digests: Iterable[str]) -> None:
        """Forget the sources of what is in the journal by now."""
        with self._alone():
            for digest in digests:
                self._forget(digest)

    def mark(self, owner: str) -> str:
        """Note that a copy of the registry, the journal *owner*, keeps its blobs here; return whose it is now.

        Who marks it first has it: a mark is never replaced. Raises as `put` does.
        """
        self._writing()
        self._blobs.mark(owner)
        return self.marked_for() or ""

    def marked_for(self) -> str | None:
        """Return the journal of the copy that keeps its blobs here, None when there is none.

        Marks of earlier releases do not say whose they are: then it is empty.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        return self._blobs.marked_for()

    def is_marked(self) -> bool:
        """Return whether a copy of the registry keeps its blobs here. Raises as `marked_for` does."""
        return self.marked_for() is not None

    def delete(self, digest: str, *, needed: Callable[[], bool] = lambda: False) -> None:
        """Remove a blob; one that is gone already is fine. Raises as `put` does.

        *needed* is asked at the last moment. On a disk the blob is out of sight by then and comes back
        if the answer is yes, so that a writer who found it there either is seen by *needed* or misses it.
        """
        self._writing()
        self._blobs.delete(_checked(digest), needed)

    def sweep(self, older_than: float | None = None) -> int:
        """Remove what killed writers left behind and return how many files that were.

        By default only what certainly has no living writer; with *older_than* whatever is that
        many seconds old. Finished blobs are never touched.
        """
        self._writing()
        return self._blobs.sweep(older_than)

    def _writing(self) -> None:
        if self.read_only:
            raise NotAllowed(
                "This registry was opened read-only.", hint="Open it without read_only=True to write."
            )

    # ---- reading

    def has(self, digest: str, size: int | None = None) -> bool:
        """Return whether the blob is there (and has *size* bytes, if given). Its bytes are not read.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        found = self._blobs.size(_checked(digest))
        return found is not None and size in (None, found)

    def is_sound(self, digest: str, size: int) -> bool:
        """Return whether the bytes are there and right, as far as that can be told without a long transfer.

        On a disk they are hashed. In an object store so are those that one request brings; of larger ones the size
        is compared. `verify` reads all.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        return self._blobs.is_sound(_checked(digest), size)

    def changed_at(self, digest: str) -> float | None:
        """Return when a stored file was last touched, in seconds since 1970; None where the store cannot tell."""
        return self._blobs.changed_at(_checked(digest))

    def read(self, digest: str, *, elsewhere: bool = True, at_most: int | None = None) -> bytes:
        """Return the whole blob, checked. For small documents: it is held in memory.

        Without *elsewhere* only from here: what we wrote ourselves is kept nowhere by reference.
        What is large is hashed before it is held, so that wrong bytes take no memory, however many they are.

        Raises:
            InvalidDocument: it has more than *at_most* bytes.
            NotFound: there is no such blob.
            DigestMismatch: its bytes are not those of *digest*.
            StoreUnavailable: the store did not answer.
        """
        import hashlib

        def read(file: BinaryIO) -> tuple[bytes, str]:
            with file, disk.translated("read the blob", digest):
                data = file.read()
            return data, "sha256:" + hashlib.sha256(data).hexdigest()

        try:
            file = self._blobs.open(_checked(digest))
            with disk.translated("read the blob", digest):
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
            self._check_large(digest, size, at_most)
            data, actual = read(file)
        except NotFound as error:
            if not elsewhere:
                raise

            def whole(one: Reference) -> bytes:
                data, actual = read(one.open())
                if actual != digest:
                    raise one.changed(digest, actual)
                return data

            return _first(self._references(digest, error), whole)
        if actual != digest:
            raise disk.mismatch(digest, actual, self.url)
        return data

    def _check_large(self, digest: str, size: int, at_most: int | None) -> None:
        """Raise what `read` raises for a blob that is too large, or large and wrong."""
        if at_most is not None and size > at_most:
            raise InvalidDocument(
                f"The blob {digest} in {shown(self.url)} has {size:,} bytes; a document has at most {at_most:,}.",
                hint="Restore it from a backup.",
            )
        if size > _HASHED_FIRST:
            actual, _ = self._blobs.fetch(digest, size, None, None)
            if actual != digest:
                raise disk.mismatch(digest, actual, self.url)

    def open(self, digest: str, size: int | None = None) -> BinaryIO:
        """Return a binary file object of the blob. **Its bytes are not checked**: see `fetch`.

        *size* in bytes, where it is known, saves a question to the store of a reference.

        Raises:
            NotFound: there is no such blob.
            StoreUnavailable: the store did not answer.
        """
        try:
            return self._blobs.open(_checked(digest))
        except NotFound as error:
            return _first(self._references(digest, error), lambda one: one.open(size))

    def _references(self, digest: str, error: NotFound) -> list[Reference]:
        """Return where else the bytes are, what cannot have changed first; raise *error* when that is nowhere."""
        found = sorted(self.elsewhere(digest), key=lambda one: one.version is None)
        if not found:
            raise error
        return found

    def in_parts(self, digest: str) -> bool:
        """Return whether parts of the blob can be read by `read_range`.

        They can of what is in the store, and of a reference to a version that its store keeps. What else is kept
        by reference may be other bytes by now, which shows only when it is fetched whole.

        Raises:
            StoreUnavailable: the store did not answer. It is only asked about what is named elsewhere as well.
        """
        named = self.elsewhere(digest)
        return not named or any(one.version is not None for one in named) or self.has(digest)

    def read_range(self, digest: str, start: int, end: int) -> bytes:
        """Return the bytes from *start* to before *end*, unchecked; fewer at the end of the blob.

        Raises:
            NotFound: there is no such blob.
            NotAllowed: it is kept by reference and must be fetched whole; see `in_parts`.
            StoreUnavailable: the store did not answer.
        """
        if end <= start:
            return b""
        try:
            return self._blobs.read_range(_checked(digest), start, end)
        except NotFound as error:
            fixed = [one for one in self._references(digest, error) if one.version is not None]
            if not fixed:
                raise NotAllowed(
                    f"Parts of {digest} cannot be read: it is kept by reference, and whether its bytes changed"
                    " shows only when all of them are read.",
                    hint="Resolve the version: that fetches the whole file and checks it.",
                ) from None
            return _first(fixed, lambda one: one.read_range(start, end))

    def fetch(
        self, digest: str, size: int, to: int | str | os.PathLike[str], *, progress: Progress | None = None
    ) -> None:
        """Write the blob to *to*, hashing it on the way: an open file, or the path of a new one.

        What the open file holds already is taken for the blob's first bytes: an interrupted transfer
        goes on. The digest covers them too.

        A new file is durable on return and gone after an error. An open file is not synced, and what
        it holds after an error is for the caller to throw away.

        Raises:
            NotFound: there is no such blob.
            DigestMismatch: the bytes that came are not those of *digest*, or not *size* many.
            StoreUnavailable: the store or the disk of *to* failed, or the path *to* exists.
        """
        if isinstance(to, int):
            try:
                actual, got = self._blobs.fetch(_checked(digest), size, to, progress)
            except NotFound as error:
                self._fetch_references(digest, error, size, to, progress)
                return
            if actual != digest or got != size:
                raise disk.mismatch(digest, actual, self.url, size=size, got=got)
            return
        with disk.translated("write", to):
            fd = disk.create(os.fspath(to), 0o666)
            try:
                self.fetch(digest, size, fd, progress=progress)
                os.fsync(fd)
            except BaseException:
                disk.remove(os.fspath(to))
                raise
            finally:
                os.close(fd)

    def _fetch_references(
        self, digest: str, error: NotFound, size: int | None, fd: int | None, progress: Progress | None
    ) -> None:
        """Fetch the bytes from where else they are; what came from one place is thrown away before the next."""
        tried, told = 0, 0

        def step(count: int) -> None:
            nonlocal told
            told += count
            if progress is not None:
                progress(count)

        def fetch(one: Reference) -> None:
            nonlocal tried
            if (tried := tried + 1) > 1:
                if fd is not None:
                    with disk.translated("write", "an unfinished file"):
                        os.ftruncate(fd, 0)
                step(-told)
            wanted = one.size() if size is None else size
            actual, got = one.fetch(wanted, fd, step)
            if actual != digest or got != wanted:
                raise one.changed(digest, actual)

        _first(self._references(digest, error), fetch)

    def verify(self, digest: str, size: int | None = None, *, progress: Progress | None = None) -> str | None:
        """Read the blob and return what is wrong with it in one sentence, or None.

        Whatever keeps bytes from being read that are kept by reference is wrong with those alone.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        try:
            found = self._blobs.size(_checked(digest))
            if found is None:
                return self._verify_reference(digest, size, progress)
            wanted = found if size is None else size
            actual, got = self._blobs.fetch(digest, wanted, None, progress)
        except (NotFound, DigestMismatch) as exc:
            return str(exc)
        if got != wanted:
            return f"The blob {digest} in {self.url} has {got} bytes instead of {wanted}."
        if actual != digest:
            return f"The blob {digest} in {self.url} holds other bytes: {actual}."
        return None

    def _verify_reference(self, digest: str, size: int | None, progress: Progress | None) -> str | None:
        try:
            missing = NotFound(f"The blob {digest} is missing from {self.url}.")
            self._fetch_references(digest, missing, size, None, progress)
        except ModelHubError as exc:
            return str(exc)
        return None

    def digests(self) -> Iterator[tuple[str, int]]:
        """Yield digest and size in bytes of every blob of this registry; foreign files are passed over.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        return self._blobs.digests()


def _first(places: Sequence[Reference], work: Callable[[Reference], T]) -> T:
    """Return what *work* returns for the first of *places* where it can; raise its error for the last one."""
    for one in places[:-1]:
        try:
            return work(one)
        except ModelHubError as problem:
            if isinstance(problem, StoreUnavailable) and problem.errno in _FULL:
                raise  # it is our disk, wherever the bytes come from
    return work(places[-1])


def _checked(digest: str) -> str:
    if not is_digest(digest):
        raise InvalidName(
            f"{shown(digest)} is not a digest.", hint="Digests read sha256: and 64 lower-case hex digits."
        )
    return digest


__all__ = ["BlobStore", "local_path"]
