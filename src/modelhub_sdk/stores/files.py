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

from modelhub_sdk.blobs.disk import DAMAGE, NotAFile, open_regular, read_file, sweep, temporary
from modelhub_sdk.errors import (
    ClockSkew,
    CredentialsRefused,
    InvalidDocument,
    ModelHubError,
    NotAllowed,
    StoreUnavailable,
    UnsafeStore,
    shown,
)
from modelhub_sdk.formats import codec
from modelhub_sdk.hidden import HiddenOptions, bare, shielded
from modelhub_sdk.ports import MAX_NOTE, NOTE_ID, Note, Record, SequenceTaken
from modelhub_sdk.stores.ledger import missing_entry
from modelhub_sdk.stores.shelf import FOLDER, LARGEST_PACK, Shelf

_ONE_BY_ONE = 16
"""Entries read by asking for the next number; more are listed once and read in parallel."""

_FOLDER_NAME = re.compile(r"\d{7}", re.ASCII)
_ENTRY_NAME = re.compile(r"\d{10}\.json", re.ASCII)

LARGEST_ENTRY = 64_000_000
"""Bytes of an entry's file, its private texts included. More is neither written nor read."""

_PIECE = 1 << 20  # bytes
_RANGE = 8 << 20  # bytes in a request
_READ_AT_ONCE = 100  # entries, while a pack is made: it may turn out to be too large
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

    def get(self, name: str, at_most: int = LARGEST_ENTRY) -> bytes | None:
        """Return what *name* holds, None when there is none.

        Raises:
            InvalidDocument: it has more than *at_most* bytes, or is no file at all.
        """

    def pieces(self, name: str, at_most: int) -> Iterator[bytes]:
        """Yield what *name* holds piece by piece, nothing when there is none. Errors as of `get`."""

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
        data = _printed(record)
        if len(data) > LARGEST_ENTRY:
            raise InvalidDocument(
                f"This change is {len(data):,} bytes with its texts, and {LARGEST_ENTRY:,} is the limit.",
                hint="Attach long texts as files.",
            )
        self.medium.create(_entry_name(record.seq), data)

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
            records = self._of_pack(folder)
            final_record = final.result()
        if not records:
            return []
        try:
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

    def _of_pack(self, folder: int) -> list[Record]:
        """Return the records of a pack; [] when it cannot be had, or is damaged: then it is deleted."""
        try:
            return _unpacked(self.shelf.pack(folder), folder, self.url)
        except InvalidDocument:
            self.shelf.bad_pack(folder)
            return []

    def packed(self) -> Iterator[Record]:
        """Yield the records in all packs."""
        for folder in sorted(self.shelf.packs()):
            with suppress(InvalidDocument):
                yield from _unpacked(self.shelf.pack(folder), folder, self.url)

    def tidy(self, seq: int) -> None:
        """Pack the full folders before entry *seq*: the newest ones, a few at a time."""
        packs = self.shelf.packs()
        missing = [folder for folder in range(seq // FOLDER) if folder not in packs]
        for folder in reversed(missing[-_PACKED_AT_ONCE:]):
            self.shelf.make_pack(folder, lambda folder=folder: self._plain(folder))  # type: ignore[misc]

    def _plain(self, folder: int) -> bytes | None:
        """Return the entries of a full folder as a pack holds them; None when one is not there, or they are too large."""
        numbers, parts, size = _numbers(folder), [], 0
        for start in range(0, len(numbers), _READ_AT_ONCE):
            for record in self._gets(numbers[start : start + _READ_AT_ONCE]):
                if record is None:
                    return None
                parts.append(_printed(record))
                size += len(parts[-1])
                if size > LARGEST_PACK:
                    return None
        return b"".join(parts)

    def _listed(self, after: int, end: int | None) -> list[Record]:
        """Return the run of records after *after* that stand in the next folder, read in parallel."""
        folder = _entry_name(after + 1).rpartition("/")[0]
        there = set(self.medium.names(folder))
        wanted = []
        seq = after + 1
        while (end is None or seq <= end) and f"{seq:010d}.json" in there:
            wanted.append(seq)
            seq += 1
        records: list[Record] = []
        for record in self._each(wanted):
            if isinstance(record, ModelHubError) and not records:
                raise record
            if not isinstance(record, Record):
                break  # what is damaged is an error when it is the next one
            records.append(record)
        return records

    def _gets(self, numbers: Sequence[int]) -> list[Record | None]:
        """Return these records, read in parallel."""
        records = []
        for record in self._each(numbers):
            if isinstance(record, ModelHubError):
                raise record
            records.append(record)
        return records

    def _each(self, numbers: Sequence[int]) -> list[Record | ModelHubError | None]:
        """Return these records, read in parallel; in place of one that cannot be read, the reason."""

        def get(seq: int) -> Record | ModelHubError | None:
            try:
                return self._get(seq)
            except ModelHubError as error:
                return error

        with ThreadPoolExecutor(max_workers=self._parallel) as threads:
            return list(threads.map(get, numbers))

    def _get(self, seq: int) -> Record | None:
        name = _entry_name(seq)
        data = self.medium.get(name)
        return None if data is None else _parsed(data, seq, f"{self.url}/{name}")

    def check_gaps(self, after: int = 0) -> None:
        """Look for a missing entry in the folder of entry *after* + 1 and in all later ones: one listing each.

        A listing that is made while others write may have a name and not the one before it, so what seems to be
        missing is asked for by name.
        """
        first = (after + 1) // FOLDER
        folders = (int(name) for name in self.medium.names("journal") if _FOLDER_NAME.fullmatch(name))
        later = sorted(folder for folder in folders if folder >= first)
        if len(later) == 1:  # as before nearly every write
            numbers = self._numbers_in(later[0])
        else:
            with ThreadPoolExecutor(max_workers=self._parallel) as threads:
                numbers = [number for part in threads.map(self._numbers_in, later) for number in part]
        expected = max(1, first * FOLDER)
        for number in numbers:
            while expected < number:
                if self._get(expected) is None:
                    raise missing_entry(self.url, expected, numbers[-1])
                expected += 1
            expected = number + 1

    def _numbers_in(self, folder: int) -> list[int]:
        """Return the numbers of the entries in a folder."""
        names = self.medium.names(f"journal/{folder:07d}")
        numbers = (int(name[:10]) for name in names if _ENTRY_NAME.fullmatch(name))
        return sorted(number for number in numbers if number // FOLDER == folder and number)

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
            if (
                not note.id.isalnum()
            ):  # a copy brings ids that somebody else wrote: never one that names another file
                raise InvalidDocument(f"{shown(note.id)} is not the id of a note.")
            with suppress(SequenceTaken):  # noted before
                self.medium.create(f"inbox/{note.id}.json", note.body)

    def notes(self, limit: int, *, after: str = "", skip: Collection[str] = ()) -> list[Note]:
        """Return up to *limit* notes in the order of their ids; those to skip are not even read."""
        waiting = sorted(note_id for name in self.medium.names("inbox") if (note_id := _id_of(name)))
        ids = [note_id for note_id in waiting if note_id > after and note_id not in skip]
        notes: list[Note] = []
        while ids and not notes:  # all of a page may have been forgotten by others meanwhile
            page, ids = ids[:limit], ids[limit:]
            with ThreadPoolExecutor(max_workers=self._parallel) as threads:
                notes = [note for note in threads.map(self._note, page) if note is not None]
        return notes

    def _note(self, note_id: str) -> Note | None:
        """Return a note, without its bytes when they cannot be read; None when it is gone."""
        try:
            body = self.medium.get(f"inbox/{note_id}.json", MAX_NOTE)
        except InvalidDocument:  # too large, or no file
            return Note(note_id, b"", junk=True)
        except NotAllowed:  # another user's: it may be sound
            return Note(note_id, b"")
        return None if body is None else Note(note_id, body, junk=not body)

    def strange_notes(self) -> list[str]:
        """Return the names in the inbox that are not those of notes."""
        return sorted(name for name in self.medium.names("inbox") if _id_of(name) is None)

    def forget(self, ids: Sequence[str]) -> None:
        """Remove notes."""
        for one in ids:
            if NOTE_ID.fullmatch(one):  # never let a hostile id name another file
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


def _id_of(name: str) -> str | None:
    """Return the id of the note that is the file *name* of the inbox, None when it is no note's name."""
    note_id = name.removesuffix(".json")
    return note_id if name.endswith(".json") and NOTE_ID.fullmatch(note_id) else None


def _unpacked(pieces: Iterator[bytes], folder: int, where: str) -> list[Record]:
    """Return the records of a pack, cut out of its pieces as they come: it is never in memory twice. [] of no pieces.

    Raises:
        InvalidDocument: it does not hold the entries of that folder, each of them once.
    """
    numbers = iter(_numbers(folder))
    records: list[Record] = []
    parts: list[bytes] = []
    for piece in pieces:
        parts.append(piece)
        if b"\n" not in piece:  # joined once there is something to cut: else a long line costs its square
            continue
        rest, start = b"".join(parts), 0
        while (end := _third_line(rest, start)) > 0:
            seq = next(numbers, None)
            if seq is None:
                raise InvalidDocument("The pack has more entries than its folder.")
            records.append(_parsed(rest[start:end], seq, where))
            start = end
        parts = [rest[start:]]
    if any(parts) or (records and next(numbers, None) is not None):
        raise InvalidDocument("The pack has fewer entries than its folder.")
    return records


def _third_line(data: bytes, start: int) -> int:
    """Return where the third line after *start* ends, 0 when it does not."""
    for _ in range(3):
        start = data.find(b"\n", start) + 1
        if not start:
            return 0
    return start


def _printed(record: Record) -> bytes:
    header = codec.dumps({"chain": record.chain, "scope": record.scope, "seq": record.seq})
    return header + b"\n" + record.body + b"\n" + record.private + b"\n"


def _parsed(data: bytes, seq: int, where: str) -> Record:
    lines = data.split(b"\n")
    try:
        if len(lines) != 4 or lines[3]:
            raise ValueError
        header = json.loads(lines[0])
        if header["seq"] != seq or not isinstance(header["scope"], str) or not codec.is_link(header["chain"]):
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

    def get(self, name: str, at_most: int = LARGEST_ENTRY) -> bytes | None:
        """Read one file, not through a link, and never waiting for the other end of a pipe."""
        with _disk_errors(self.root / name):
            try:
                return read_file(self.root / name, at_most)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def pieces(self, name: str, at_most: int) -> Iterator[bytes]:
        """Read one file piece by piece."""
        with _disk_errors(self.root / name):
            try:
                fd, info = open_regular(self.root / name)
            except (FileNotFoundError, NotADirectoryError):
                return
            with open(fd, "rb") as file:
                if info.st_size > at_most:
                    raise NotAFile(errno.EINVAL, f"it is larger than {at_most:,} bytes")
                while piece := file.read(_PIECE):
                    yield piece

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
        if isinstance(error, NotAFile) or error.errno == errno.ELOOP:
            what = error.strerror if isinstance(error, NotAFile) else "it is a symbolic link"
            raise InvalidDocument(
                f"{where} is not read: {what}.",
                hint="Remove it, and restore the file that belongs there from a backup.",
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise NotAllowed(f"{where} cannot be written or read: {error.strerror}.") from None
        raise StoreUnavailable(
            f"{where} cannot be written or read: {error.strerror or type(error).__name__}.",
            damaged=error.errno in DAMAGE,
        ) from None


# --- an object store ------------------------------------------------------------------------------------


class Objects:
    """A prefix of an object store, through fsspec.

    Args:
        protocol: one of `CREATE_ONLY`.
        root: bucket and prefix, without the protocol.
        options: storage options of the fsspec driver; may hold secrets.
    """

    def __init__(self, protocol: str, root: str, options: Mapping[str, Any]) -> None:
        self._protocol = protocol
        self.root = root.strip("/")
        self._options = HiddenOptions(options)
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
            except (FileNotFoundError, FileExistsError, SequenceTaken) as error:
                bare(error)  # the frames of a driver hold its keys
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is becomes one of ours
                passing = _passing(error) and time.monotonic() + pause <= end
                problem = translated(error, f"{self._protocol}://{self.root}")
            if not passing:
                raise problem  # out here, so that the driver's error is no context of it
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

    def get(self, name: str, at_most: int = LARGEST_ENTRY) -> bytes | None:
        """One GET, of no more than may be there."""
        data = self._range(name, 0, at_most + 1)
        if data is not None and len(data) > at_most:
            raise self._too_large(name, at_most)
        return data

    def pieces(self, name: str, at_most: int) -> Iterator[bytes]:
        """One GET per piece."""
        for start in range(0, at_most + 1, _RANGE):
            data = self._range(name, start, start + _RANGE)
            if data and start + len(data) > at_most:
                break
            if data:
                yield data
            if data is None or len(data) < _RANGE:
                return
        raise self._too_large(name, at_most)

    def _range(self, name: str, start: int, end: int) -> bytes | None:
        """Return the bytes from *start* to before *end*, fewer at the end of the object; None when there is none."""
        try:
            data: bytes = self._call(lambda fs: _cat(fs, f"{self.root}/{name}", start, end))
        except FileNotFoundError:
            return None
        return data

    def _too_large(self, name: str, at_most: int) -> InvalidDocument:
        return InvalidDocument(
            f"{shown(f'{self._protocol}://{self.root}/{name}', 300)} is not read: it is larger than the"
            f" {at_most:,} bytes that are read of such an object.",
            hint="Remove it, and restore the object that belongs there from a backup.",
        )

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


def _cat(fs: Any, path: str, start: int, end: int) -> bytes:
    """Return some bytes of an object; none when it ends before *start*, which stores refuse with 416."""
    try:
        return bytes(fs.cat_file(path, start=start, end=end))
    except Exception as error:
        if "InvalidRange" in f"{error} {error.__cause__}" or "416" in str(getattr(error, "code", "")):
            return b""
        raise


def open_filesystem(protocol: str, options: Mapping[str, Any]) -> Any:
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
        defaults = {"max_concurrency": 1, "config_kwargs": {"retries": {"total_max_attempts": 1}}}
        options = HiddenOptions({**defaults, **options})
    return shielded(
        lambda: fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False, **options),
        Exception,
    )


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
