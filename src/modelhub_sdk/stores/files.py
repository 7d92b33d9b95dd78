"""A journal of JSON files: in a folder, or under a prefix of an object store.

::

    <root>/journal/0000012/0000012345.json    one entry: header, body and private part, a line each
    <root>/inbox/<id>.json                    one note
    <root>/packs/, checkpoints/, erased/      derived from the entries: see `shelf`
    <root>/finished/0000012345                all that entries up to that one erase is gone; may be deleted
    <root>/tmp/…                              unfinished; on a disk the names tell whose, and the next writer cleans up

An entry is created once and never changed; only its private part can be erased. Which writer gets a
number is decided by the medium: ``os.link`` on a disk, ``If-None-Match: *`` on an object store.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from attrs import evolve

from modelhub_sdk.blobs.disk import sweep, temporary
from modelhub_sdk.errors import (
    ClockSkew,
    CredentialsRefused,
    InvalidDocument,
    NotAllowed,
    StoreUnavailable,
    UnsafeStore,
    shown,
)
from modelhub_sdk.formats import codec
from modelhub_sdk.ports import Note, Record, SequenceTaken
from modelhub_sdk.stores.shelf import FOLDER, Shelf

_ONE_BY_ONE = 16
"""Entries read by asking for the next number; more are listed once and read in parallel."""

_PACKED_AT_ONCE = 8  # folders: a client that finds a long journal without packs leaves the rest to others

CREATE_ONLY = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
"""Object stores whose drivers send a precondition with ``mode="create"``: ``If-None-Match: *`` (s3fs, tried;
adlfs, by its source) or ``ifGenerationMatch=0`` (gcsfs, by its source). The probe checks each place as well."""

SKEW = timedelta(minutes=5)

_BUSY_FOR = 20.0  # seconds for which an object store may say that it is busy


class Medium(Protocol):
    """Bytes under names. Names are made by this module alone, never from what users typed."""

    def create(self, name: str, data: bytes) -> None:
        """Store *data*, durably and whole; SequenceTaken when *name* exists."""

    def replace(self, name: str, data: bytes) -> None:
        """Store *data* under *name*, whole, whatever was there."""

    def get(self, name: str) -> bytes | None:
        """Return what *name* holds, None when there is none."""

    def names(self, folder: str) -> list[str]:
        """Return the names in *folder*, without it; [] when there is none."""

    def delete(self, name: str) -> None:
        """Remove *name*; fine when there is none."""

    def modified(self, name: str) -> datetime | None:
        """Return when *name* was written by the medium's clock, where it has its own."""


class FileStore:
    """A `Store` of JSON files on a `Medium`, and what is derived from them."""

    every = FOLDER

    def __init__(self, url: str, medium: Medium, *, parallel: int, read_only: bool = False) -> None:
        self.url = url
        self.medium = medium
        self.shelf = Shelf(medium, read_only=read_only)
        self._parallel = parallel
        self._probed = False

    # --- the journal ---------------------------------------------------------------------------

    def append(self, record: Record) -> None:
        """Create the entry's file; before the first one, probe that the medium can."""
        self.probe()
        self.medium.create(_entry_name(record.seq), _printed(record))

    def read(self, after: int, limit: int | None = None) -> Iterator[Record]:
        """Yield the records after *after*: by name, never by what a listing leaves out."""
        return self._read(after, limit, packed=True)

    def entries(self, after: int) -> Iterator[Record]:
        """Yield the records after *after* from their own files."""
        return self._read(after, None, packed=False)

    def _read(self, after: int, limit: int | None, *, packed: bool) -> Iterator[Record]:
        seq = after
        end = None if limit is None else after + limit
        record = None
        while (end is None or seq < end) and seq - after < _ONE_BY_ONE:
            record = self._get(seq + 1)
            if record is None:
                return
            yield record
            seq += 1
        while end is None or seq < end:
            batch = self._packed(record, end) if packed and record is not None else []
            batch = batch or self._listed(seq, end)
            if not batch:
                # A listing may be older than a file: ask for the next name before giving up.
                record = self._get(seq + 1)
                batch = [] if record is None else [record]
            if not batch:
                return
            yield from batch
            record = batch[-1]
            seq = record.seq

    def _packed(self, last: Record, end: int | None) -> list[Record]:
        """Return the rest of the folder after the record *last* out of its pack; [] when there is no sound one.

        The links between the entries, and the last entry's own file, say whether it is sound.
        """
        folder = (last.seq + 1) // FOLDER
        if folder not in self.shelf.packs():
            return []
        with ThreadPoolExecutor(max_workers=1) as threads:
            final = threads.submit(self._get, folder * FOLDER + FOLDER - 1)
            plain = self.shelf.pack(folder)
            final_record = final.result()
        if plain is None:
            return []
        try:
            records = _unpacked(plain, folder, self.url)
            if final_record is None or records[-1].chain != final_record.chain:
                raise InvalidDocument("The pack ends otherwise than the journal.")
            records = [record for record in records if record.seq > last.seq]
            for before, record in zip([last, *records], records, strict=False):
                if codec.chain(before.chain, record.seq, record.scope, record.body) != record.chain:
                    raise InvalidDocument("The links in the pack do not fit.")
        except InvalidDocument:
            self.shelf.bad_pack(folder)
            return []
        return [record for record in records if end is None or record.seq <= end]

    def packed(self) -> Iterator[Record]:
        """Yield the records in all packs."""
        for folder in sorted(self.shelf.packs()):
            plain = self.shelf.pack(folder)
            with suppress(InvalidDocument):
                yield from _unpacked(plain, folder, self.url) if plain is not None else ()

    def tidy(self, seq: int) -> None:
        """Pack the full folders before entry *seq*: the newest ones, a few at a time."""
        packs = self.shelf.packs()
        missing = [folder for folder in range(seq // FOLDER) if folder not in packs]
        for folder in reversed(missing[-_PACKED_AT_ONCE:]):
            self.shelf.make_pack(folder, lambda folder=folder: self._plain(folder))  # type: ignore[misc]

    def _plain(self, folder: int) -> bytes | None:
        """Return the entries of a full folder as a pack holds them, None when one is not there."""
        found = self._gets(_numbers(folder))
        records = [record for record in found if record is not None]
        return b"".join(map(_printed, records)) if len(records) == len(found) else None

    def _listed(self, after: int, end: int | None) -> list[Record]:
        """Return the run of records after *after* that stand in the next folder, read in parallel."""
        folder = _entry_name(after + 1).rpartition("/")[0]
        there = set(self.medium.names(folder))
        wanted = []
        seq = after + 1
        while (end is None or seq <= end) and f"{seq:010d}.json" in there:
            wanted.append(seq)
            seq += 1
        records = []
        for record in self._gets(wanted):
            if record is None:
                break
            records.append(record)
        return records

    def _gets(self, numbers: Sequence[int]) -> list[Record | None]:
        """Return these records, read in parallel."""
        with ThreadPoolExecutor(max_workers=self._parallel) as threads:
            return list(threads.map(self._get, numbers))

    def _get(self, seq: int) -> Record | None:
        name = _entry_name(seq)
        data = self.medium.get(name)
        return None if data is None else _parsed(data, seq, f"{self.url}/{name}")

    def erase(self, seq: int, private: bytes) -> None:
        """Write the entry's file anew with another private part; header and body are the same bytes."""
        self.erase_many({seq: private})

    def erase_many(self, parts: Mapping[int, bytes]) -> None:
        """Write the files of some entries anew, in parallel, and then void what was derived from them."""
        with ThreadPoolExecutor(max_workers=self._parallel) as threads:
            list(threads.map(self._without, parts.items()))
        for folder in sorted({seq // FOLDER for seq in parts}):
            self.shelf.erased(folder)

    def _without(self, part: tuple[int, bytes]) -> None:
        seq, private = part
        record = self._get(seq)
        if record is None:
            raise InvalidDocument(f"Entry {seq} of the journal {shown(self.url, 200)} is gone.")
        if record.private != private:
            self.medium.replace(_entry_name(seq), _printed(evolve(record, private=private)))

    def erased_until(self) -> int:
        """Return the entry up to which all erasures are complete."""
        names = self.medium.names("finished")
        return max((int(name) for name in names if re.fullmatch("[0-9]{10}", name)), default=0)

    def confirm_erased(self, seq: int) -> None:
        """Keep that entry, in place of earlier ones."""
        with suppress(SequenceTaken):
            self.medium.create(f"finished/{seq:010d}", b"")
        for name in self.medium.names("finished"):
            if name < f"{seq:010d}":
                self.medium.delete(f"finished/{name}")

    # --- the inbox -----------------------------------------------------------------------------

    def note(self, notes: Sequence[Note]) -> None:
        """Create one file per note."""
        for note in notes:
            with suppress(SequenceTaken):  # noted before
                self.medium.create(f"inbox/{note.id}.json", note.body)

    def notes(self, limit: int, *, after: str = "", skip: Collection[str] = ()) -> list[Note]:
        """Return up to *limit* notes in the order of their ids; those to skip are not even read."""
        there = sorted(name[:-5] for name in self.medium.names("inbox") if name.endswith(".json"))
        ids = [one for one in there if one > after and one not in skip][:limit]
        with ThreadPoolExecutor(max_workers=self._parallel) as threads:
            found = list(threads.map(lambda one: self.medium.get(f"inbox/{one}.json"), ids))
        return [Note(one, body) for one, body in zip(ids, found, strict=True) if body is not None]

    def forget(self, ids: Sequence[str]) -> None:
        """Remove notes."""
        for one in ids:
            if one.isalnum():  # never let a hostile id name another file
                self.medium.delete(f"inbox/{one}.json")

    # --- the place -----------------------------------------------------------------------------

    def probe(self) -> None:
        """Check once that this place refuses to create a name twice, and that its clock is ours.

        Raises:
            UnsafeStore: it overwrites.
            ClockSkew: this machine is more than five minutes off.
        """
        if self._probed:
            return
        name = "tmp/" + temporary("probe")
        try:
            self.medium.create(name, b"first")
            try:
                self.medium.create(name, b"second")
            except SequenceTaken:
                pass
            else:
                raise UnsafeStore(
                    f"{shown(self.url, 200)} overwrites an object that exists although it was told not to"
                    " (If-None-Match is ignored): two writers would lose each other's entries.",
                    hint="Use a store with conditional writes, PostgreSQL, or a folder on a disk.",
                )
            at = self.medium.modified(name)
        finally:
            with suppress(StoreUnavailable):
                self.medium.delete(name)
        if at is not None:
            off = datetime.now(UTC) - at
            if abs(off) > SKEW:
                raise ClockSkew(
                    f"This machine's clock is {off.total_seconds():+.0f} s off that of {shown(self.url, 200)}.",
                    hint="Set the clock (ntp), then try again.",
                    seconds=off.total_seconds(),
                )
        self._probed = True

    def now(self) -> datetime | None:
        """None: a file store lends no clock."""
        return None

    def close(self) -> None:
        """Nothing stays open."""


def _entry_name(seq: int) -> str:
    return f"journal/{seq // FOLDER:07d}/{seq:010d}.json"


def _numbers(folder: int) -> range:
    """Return the entries of a full folder; the journal begins with entry 1."""
    return range(max(1, folder * FOLDER), folder * FOLDER + FOLDER)


def _unpacked(plain: bytes, folder: int, where: str) -> list[Record]:
    lines = plain.split(b"\n")
    numbers = _numbers(folder)
    if len(lines) != 3 * len(numbers) + 1:
        raise InvalidDocument("The pack has another number of entries.")
    return [
        _parsed(b"\n".join((*lines[3 * n : 3 * n + 3], b"")), seq, where) for n, seq in enumerate(numbers)
    ]


def _printed(record: Record) -> bytes:
    header = codec.dumps({"chain": record.chain, "scope": record.scope, "seq": record.seq})
    return header + b"\n" + record.body + b"\n" + record.private + b"\n"


def _parsed(data: bytes, seq: int, where: str) -> Record:
    lines = data.split(b"\n")
    try:
        if len(lines) != 4 or lines[3]:
            raise ValueError
        header = json.loads(lines[0])
        if (
            header["seq"] != seq
            or not isinstance(header["scope"], str)
            or not isinstance(header["chain"], str)
        ):
            raise ValueError
        bytes.fromhex(header["chain"])
    except (ValueError, KeyError, TypeError):
        raise InvalidDocument(
            f"{shown(where, 300)} is not entry {seq} of a journal: it is torn, or was changed.",
            hint="Restore this file from a backup; reg.verify() tells which others are damaged.",
        ) from None
    return Record(seq, header["scope"], header["chain"], lines[1], lines[2])


# --- a disk ---------------------------------------------------------------------------------------------


class Disk:
    """A folder on a local disk or a network file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._swept = 0.0

    def create(self, name: str, data: bytes) -> None:
        """Write and sync a temporary file, then link it: complete when it appears, for one writer only."""
        path = self.root / name
        with _disk_errors(path), self._temporary(data) as temp:
            try:
                try:
                    os.link(temp, path)
                except FileNotFoundError:
                    self._make_folder(path.parent)
                    os.link(temp, path)
            except OSError as error:
                # NFS can lose the answer to a link that was made: the count of links tells.
                if os.stat(temp).st_nlink != 2:
                    if error.errno == errno.EEXIST:
                        self.names(
                            name.rpartition("/")[0]
                        )  # NFS remembers that a name was missing: look again
                        raise SequenceTaken(name) from None
                    if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                        raise UnsafeStore(
                            f"{shown(str(self.root), 200)} is on a file system without hard links, so two"
                            " writers could overwrite each other.",
                            hint="Use a folder on another disk, SQLite (sqlite:///file.db), or PostgreSQL.",
                        ) from None
                    raise
            _sync_folder(path.parent)

    def replace(self, name: str, data: bytes) -> None:
        """Write and sync a temporary file, then rename it."""
        path = self.root / name
        with _disk_errors(path), self._temporary(data) as temp:
            os.replace(temp, path)
            _sync_folder(path.parent)

    @contextmanager
    def _temporary(self, data: bytes) -> Iterator[Path]:
        """Lend a synced file that holds *data*; what killed writers left beside it is removed."""
        folder = self.root / "tmp"
        temp = folder / temporary("entry")
        flags = (
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        )
        if not self._swept or time.monotonic() - self._swept > 60:
            sweep(os.fspath(folder))
            self._swept = time.monotonic()
        try:
            try:
                fd = os.open(temp, flags, 0o666)
            except FileNotFoundError:
                self._make_folder(folder)
                fd = os.open(temp, flags, 0o666)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            yield temp
        finally:
            with suppress(OSError):
                os.unlink(temp)

    def _make_folder(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for made in reversed(missing):
            with suppress(FileExistsError):
                os.mkdir(made)
            _sync_folder(made.parent)

    def get(self, name: str) -> bytes | None:
        """Read one file, not through a link."""
        with _disk_errors(self.root / name):
            try:
                fd = os.open(self.root / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            except (FileNotFoundError, NotADirectoryError):
                return None
            with open(fd, "rb") as file:
                return file.read()

    def names(self, folder: str) -> list[str]:
        """List one folder."""
        with _disk_errors(self.root / folder):
            try:
                return [name for name in os.listdir(self.root / folder) if not name.startswith(".")]
            except (FileNotFoundError, NotADirectoryError):
                return []

    def delete(self, name: str) -> None:
        """Remove one file."""
        with _disk_errors(self.root / name), suppress(FileNotFoundError):
            os.unlink(self.root / name)

    def modified(self, name: str) -> datetime | None:
        """A network disk's files carry its server's time; a local disk's carry ours."""
        with _disk_errors(self.root / name):
            return datetime.fromtimestamp(os.stat(self.root / name).st_mtime, UTC)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _disk_errors:  # noqa: N801  (a context manager that reads like a statement; class for speed)
    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError) or isinstance(error, (StoreUnavailable, NotAllowed, UnsafeStore)):
            return
        where = shown(str(self._path), 300)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise NotAllowed(f"{where} cannot be written or read: {error.strerror}.") from None
        raise StoreUnavailable(
            f"{where} cannot be written or read: {error.strerror or type(error).__name__}."
        ) from None


# --- an object store ------------------------------------------------------------------------------------


class Objects:
    """A prefix of an object store, through fsspec.

    Args:
        protocol: one of `CREATE_ONLY`.
        root: bucket and prefix, without the protocol.
        options: storage options of the fsspec driver; may hold secrets.
    """

    def __init__(self, protocol: str, root: str, options: dict[str, Any]) -> None:
        self._protocol = protocol
        self.root = root.strip("/")
        self._options = options
        self._pid = 0
        self._fs: Any = None

    def _call(self, action: Callable[[Any], Any]) -> Any:
        """Run *action* on this process's own driver, again while the server says that it is busy.

        A create that is tried again may meet its own success: that is `SequenceTaken`, and whose it
        is stands in it. All errors become ours.
        """
        if self._pid != os.getpid():
            self._fs, self._pid = open_filesystem(self._protocol, self._options), os.getpid()
        end, pause = time.monotonic() + _BUSY_FOR, 0.1
        while True:
            try:
                return action(self._fs)
            except (FileNotFoundError, FileExistsError, SequenceTaken):
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is becomes one of ours
                if not _passing(error) or time.monotonic() + pause > end:
                    raise translated(error, f"{self._protocol}://{self.root}") from None
            time.sleep(random.uniform(pause / 2, pause))
            pause = min(pause * 2, 4.0)

    def create(self, name: str, data: bytes) -> None:
        """One conditional PUT."""
        try:
            self._call(lambda fs: fs.pipe_file(f"{self.root}/{name}", data, mode="create"))
        except FileExistsError:
            raise SequenceTaken(name) from None
        except FileNotFoundError:
            raise self._no_bucket() from None

    def replace(self, name: str, data: bytes) -> None:
        """One PUT."""
        try:
            self._call(lambda fs: fs.pipe_file(f"{self.root}/{name}", data))
        except FileNotFoundError:
            raise self._no_bucket() from None

    def _no_bucket(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"There is no bucket {shown(self.root.partition('/')[0])} at {self._protocol}://.",
            hint="Create the bucket, or correct the URL.",
        )

    def get(self, name: str) -> bytes | None:
        """One GET."""
        try:
            data: bytes = self._call(lambda fs: fs.cat_file(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None
        return data

    def names(self, folder: str) -> list[str]:
        """One LIST per thousand names."""
        try:
            found = self._call(lambda fs: fs.ls(f"{self.root}/{folder}", detail=False, refresh=True))
        except FileNotFoundError:
            return []
        return [str(path).rpartition("/")[2] for path in found]

    def delete(self, name: str) -> None:
        """One DELETE."""
        with suppress(FileNotFoundError):
            self._call(lambda fs: fs.rm_file(f"{self.root}/{name}"))

    def modified(self, name: str) -> datetime | None:
        """The store's clock when it took the object."""
        try:
            at: datetime = self._call(lambda fs: fs.modified(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None
        return at


def open_filesystem(protocol: str, options: dict[str, Any]) -> Any:
    """Return a fresh fsspec driver without any listing cache: this library must see what is there."""
    import fsspec

    from modelhub_sdk.stores.extras import need

    extra = {
        "s3": "s3",
        "s3a": "s3",
        "gs": "gcs",
        "gcs": "gcs",
        "az": "azure",
        "abfs": "azure",
        "abfss": "azure",
    }.get(protocol)
    if extra is not None:
        need({"s3": "s3fs", "gcs": "gcsfs", "azure": "adlfs"}[extra], extra)
    if extra == "s3":
        # One request a read, where s3fs would ask for the size first; and one layer that tries again, s3fs,
        # where botocore below it would multiply the tries, so that a dead store took minutes to say so.
        options = {"max_concurrency": 1, "config_kwargs": {"retries": {"total_max_attempts": 1}}, **options}
    return fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False, **options)


def _passing(error: Exception) -> bool:
    """Return whether the server answered that it failed or is busy, and may do better next time."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        found = (
            response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        )
        for status in (found, getattr(one, "status_code", None), getattr(one, "code", None)):
            if isinstance(status, int) and (status == 429 or (500 <= status < 600 and status != 501)):
                return True
    return False


def translated(error: Exception, where: str) -> Exception:
    """Return what a driver raised as one of our errors, without the driver's own text (it may hold keys)."""
    name = type(error).__name__
    response = getattr(error, "response", None)  # some errors have one, and it is None
    code = str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
    refused = (
        isinstance(error, PermissionError) or "Credential" in name or code in ("AccessDenied", "403", "401")
    )
    if refused:
        return CredentialsRefused(
            f"{shown(where, 200)} refused our credentials ({name}).",
            hint="Check the keys, their expiry, and the rights of the user.",
        )
    reason = (
        f"{name} {errno.errorcode.get(error.errno or 0, '')}".strip() if isinstance(error, OSError) else name
    )
    return StoreUnavailable(
        f"{shown(where, 200)} did not answer as it should ({reason}).",
        hint="Check the network, then try again.",
    )
