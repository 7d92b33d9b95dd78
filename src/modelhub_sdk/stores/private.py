"""The private index: a SQLite file in the user's cache, caught up from any store's journal.

Losing it costs time, never data. It is thrown away when the journal no longer has the entry that
it was folded up to (a folder restored from a backup, or another one in its place), and on any
database error.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import shutil
import sqlite3
import stat
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from modelhub_sdk.blobs import disk
from modelhub_sdk.domain.events import Entry
from modelhub_sdk.errors import Busy, InvalidDocument, ModelHubError, StoreUnavailable, shown
from modelhub_sdk.formats import codec
from modelhub_sdk.index import schema
from modelhub_sdk.index.sql import Sql
from modelhub_sdk.ports import Checkpoint, Record, SequenceTaken, Shelved, Store
from modelhub_sdk.stores import ledger
from modelhub_sdk.stores.connections import (
    PATIENCE,
    Pool,
    inherited,
    is_locked,
    rolled_back,
    sqlite_connect,
    sqlite_damage,
    wipe,
)
from modelhub_sdk.stores.ledger import (
    Head,
    HeadRow,
    apply,
    check_chain,
    has_types,
    head_row,
    is_head,
    read_head,
)

log = logging.getLogger("modelhub_sdk")

BATCH = 2000
"""Entries folded in one transaction while catching up."""

_COUNT_TABLES = schema.count_tables("sqlite")
_GAPS_EVERY = (
    60.0  # seconds after which a reader looks for gaps at the journal's end again, a writer in all of it
)
_ROOM = 256 << 20  # bytes that a checkpoint must leave free on the disk where it is unpacked
_LONGEST = 1 << 20  # bytes of a value in the tables' list and the head of a checkpoint
_STEPS = 50_000  # of SQLite's machine, to read them; ours take 3,000
_TURN = 5.0  # seconds that a writer waits for others of this machine before it competes with them


class PrivateLedger:
    """A `Ledger` over any store.

    Args:
        store: where the journal is.
        path: the index file; None keeps the index in memory.
    """

    def __init__(self, store: Store, path: Path | None) -> None:
        self.store = store
        self._path = path
        self._lock = threading.RLock()  # the one connection of a memory index is one thread's at a time
        self._pid = os.getpid()
        self._pool: Pool | None = None
        self._memory: sqlite3.Connection | None = None
        self._checked = False
        self._linked = False  # whether the last entry was seen to link to the one before it
        self._completed = float("-inf")  # when all folders of the journal were last seen to have no gap
        self._gaps_checked = float("-inf")  # when the journal was last seen to have no gap at its end
        self._seen = 0  # the entry that this handle's index was folded up to, at least
        self._discarded = 0
        self._shelved = store if isinstance(store, Shelved) else None
        self._begun = False  # whether a checkpoint was looked for
        self._tidied = -1  # the entry up to which what helps others was derived, as far as we know
        self._thread: threading.Thread | None = None
        self._open()

    # --- the database --------------------------------------------------------------------------

    def _open(self) -> None:
        """Open the index file, made anew where it is rubbish; memory serves as well, only slower."""
        end = time.monotonic() + PATIENCE
        rubbish = 0
        while self._path is not None and rubbish < 2:
            path = self._path
            pool = Pool(functools.partial(sqlite_connect, path, durable=False), sqlite=True)
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with pool.connection() as conn:
                    conn.execute("PRAGMA journal_mode = WAL")
                    self._create(conn)
                    if _erases(conn, 0):  # whoever folded it may have been killed before it was wiped
                        wipe(conn, patient=False)
            except (OSError, sqlite3.Error) as error:
                pool.close()
                if not is_locked(error):
                    rubbish += 1
                    self._discard_files()
                elif time.monotonic() > end:
                    break
                else:
                    time.sleep(0.02)  # another process is making it: SQLite does not always wait by itself
            else:
                self._pool, self._memory = pool, None
                return
        self._path, self._pool = None, None
        if self._memory is not None:
            self._memory.close()
        self._memory = sqlite_connect(":memory:")
        weakref.finalize(self, _closed_by_its_maker, self._memory, os.getpid()).atexit = False
        self._create(self._memory)

    @staticmethod
    def _create(conn: sqlite3.Connection) -> None:
        if not _table_count(conn):
            conn.execute("BEGIN IMMEDIATE")
            for statement in schema.ddl("sqlite"):
                conn.execute(statement)
            conn.execute("COMMIT")

    def _discard_files(self) -> None:
        if self._path is not None:
            for suffix in ("", "-wal", "-shm"):
                with suppress(OSError):
                    os.unlink(f"{self._path}{suffix}")

    def _discard(self) -> None:
        """Empty the index, in place where the database still works; memory when that did not help twice."""
        self._checked, self._seen = False, 0
        self._discarded += 1
        self._begun = self._discarded > 1  # the second time without: it may have been the reason
        try:
            with self._connection() as conn:
                conn.execute("BEGIN IMMEDIATE")
                for table in schema.TABLES:
                    conn.execute(f"DROP TABLE IF EXISTS {table.full_name}")
                for statement in schema.ddl("sqlite"):
                    conn.execute(statement)
                conn.execute("COMMIT")
            if self._discarded < 3:
                return
        except sqlite3.Error:
            pass
        if self._pool is not None:
            self._pool.close()
        self._discard_files()
        if self._discarded >= 3:
            self._path = None
        self._open()

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        if self._pid != os.getpid():
            self._forked()
        if self._pool is not None:
            with self._pool.connection() as conn:
                yield conn
        elif self._memory is not None:
            with self._lock:
                try:
                    yield self._memory
                finally:
                    if self._memory.in_transaction:
                        rolled_back(self._memory)

    def _forked(self) -> None:
        """Leave the parent's memory index, and a lock that one of its threads may hold, alone."""
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._thread = None
        if self._memory is not None:
            inherited(self._memory)
            self._memory = None
            self._open()

    # --- keeping up ----------------------------------------------------------------------------

    def _catch_up(self, *, check: bool) -> None:
        """Fold what the journal has and the index has not; with *check*, compare the entry at its head first.

        Raises:
            InvalidDocument: the journal has a gap or a wrong link.
        """
        check_gaps = check or not self._checked or time.monotonic() - self._gaps_checked > _GAPS_EVERY
        for left in range(5, -1, -1):
            try:
                while not self._step(check=check or not self._checked):
                    check = False
            except (sqlite3.Error, _Foreign) as error:
                if not left:
                    raise StoreUnavailable(
                        f"The private index cannot be kept: {type(error).__name__}.",
                        hint="Set MODELHUB_CACHE_DIR to a writable folder on a local disk.",
                    ) from None
                if not is_locked(error):
                    self._discard()
            else:
                if check_gaps:
                    self._check_gaps(everywhere=check)
                self._checked, self._discarded = True, 0
                self._tidy()
                return

    def _check_gaps(self, *, everywhere: bool) -> None:
        """Look for gaps at the journal's end; *everywhere* once in a while in all of it."""
        now = time.monotonic()
        everywhere = everywhere and now - self._completed > _GAPS_EVERY
        ledger.check_gaps(self.store, 0 if everywhere else self._seen)
        self._gaps_checked = now
        if everywhere:
            self._completed = now

    def _step(self, *, check: bool) -> bool:
        """Fold one batch; return True when there is nothing left to fold."""
        with self._connection() as conn:
            if _table_count(conn) < len(schema.TABLES):
                raise _Foreign("a table of the index is missing")
            row = head_row(Sql(conn, "sqlite"))
        if row is None and not self._begun:
            row = self._begin()
        if row is not None and not has_types(row):
            raise _Foreign("the head of the index is damaged")
        head = (0, codec.GENESIS) if row is None else row[:2]
        if self._tidied < 0:
            self._tidied = head[0]
        overlap = min(head[0], 1 if self._linked else 2) if check else 0
        records = list(self.store.read(head[0] - overlap, limit=BATCH))
        if overlap:
            self._check_head(row, records[:overlap], overlap)
            records = records[overlap:]
        if not records:
            self._seen = head[0]
            return True
        if head[0] and records[0].chain != codec.chain(
            head[1], records[0].seq, records[0].scope, records[0].body
        ):
            raise _Foreign(
                "the journal goes on from another entry than the one that the index was folded up to"
            )
        with self._connection() as conn:
            conn.execute("BEGIN IMMEDIATE")
            moved = self._fold(conn, head, records)
            conn.execute("COMMIT" if moved else "ROLLBACK")
            if moved is not None and _erases(conn, head[0]):
                wipe(conn, patient=False)
        if moved is not None:
            self._seen = moved[0]
        return moved is not None and len(records) < BATCH - overlap

    def _check_head(self, row: HeadRow | None, records: list[Record], overlap: int) -> None:
        """Check that *records* link up, and that folding the last of them makes *row*, the head of the index.

        Raises:
            _Foreign: the index was folded from another journal.
            InvalidDocument: the journal's last link is wrong.
        """
        if len(records) < overlap or not is_head(row, records[-1]):
            raise _Foreign("the journal does not have the entry that the index was folded up to")
        if overlap == 2:
            check_chain((records[0].seq, records[0].chain), records[1:])
        self._linked = True

    def _fold(
        self, conn: Any, head: Head, records: list[Record], entries: list[Entry] | None = None
    ) -> Head | None:
        """Fold *records*, and return the new head; None when another process was quicker."""
        try:
            return apply(Sql(conn, "sqlite"), head, records, entries)
        except BaseException:
            rolled_back(conn)
            raise

    # --- what helps others to begin ------------------------------------------------------------

    def _begin(self) -> HeadRow | None:
        """Begin an empty index with the newest checkpoint that fits the journal; return its head."""
        with self._lock:
            if not self._begun and self._shelved is not None:
                for one in self._shelved.shelf.checkpoints():
                    if one.schema == schema.SCHEMA and self._loaded(self._shelved, one):
                        break
            self._begun = True
        with self._connection() as conn:
            return head_row(Sql(conn, "sqlite"))

    def _loaded(self, shelved: Shelved, one: Checkpoint) -> bool:
        """Copy a checkpoint into the index; return whether the index is no longer empty."""
        record = next(iter(self.store.read(one.seq - 1, limit=1)), None)
        if record is None or record.chain != one.chain:
            shelved.shelf.bad_checkpoint(one)  # the journal went another way
            return False
        with unpacked(shelved, one) as source:
            if source is None:
                return False
            with self._connection() as conn:
                if not read_head(Sql(conn, "sqlite"))[0]:  # else: another process was quicker
                    source.backup(conn)
        return True

    def _tidy(self) -> None:
        """At every thousandth entry derive what helps others to begin, in a thread: nobody waits for it.

        The interpreter, and `close`, wait until it is done: scripts that end at once would else never do it.
        """
        shelved, seen = self._shelved, self._seen
        if shelved is None or self._path is None or shelved.shelf.read_only or self._tidied < 0:
            return
        if seen // shelved.every <= self._tidied // shelved.every:
            return
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            self._tidied = seen
            self._thread = threading.Thread(target=self._derive, args=(shelved, seen), name="modelhub-tidy")
            with suppress(RuntimeError):  # the interpreter is shutting down
                self._thread.start()
                return
            self._thread = None

    def _derive(self, shelved: Shelved, seen: int) -> None:
        try:
            shelved.shelf.publish(seen // shelved.every * shelved.every, self._snapshot)
            shelved.tidy(seen)
        except Exception:
            log.debug("Nothing could be derived from the journal for others.", exc_info=True)

    def _snapshot(self) -> tuple[Checkpoint, IO[bytes]] | None:
        """Return the index as it is now, in a file that is gone when it is closed."""
        if self._path is None:
            return None
        self._catch_up(check=False)
        folder = self._path.parent
        disk.sweep(os.fspath(folder))
        name = os.fspath(folder / disk.temporary("checkpoint"))
        file = None
        try:
            with self._connection() as conn:
                conn.execute("VACUUM INTO ?", (name,))  # without the free pages, where more may stand
            with closing(sqlite3.connect(name, isolation_level=None)) as copy:
                head = read_head(Sql(copy, "sqlite"))
            file = open(name, "rb")  # noqa: SIM115  # handed on
        finally:
            if os.name != "nt" or file is None:
                disk.remove(name)
        return Checkpoint(head[0], schema.SCHEMA, head[1]), file

    # --- the ledger ----------------------------------------------------------------------------

    @contextmanager
    def reading(self, *, probe: bool = True, trusting: bool = False) -> Iterator[Sql]:
        """A view of the index, caught up first unless the caller has just done so.

        *trusting* changes nothing: a private index that does not fit the journal is made anew.

        Raises:
            StoreUnavailable: the index turned out to be damaged meanwhile; it was thrown away.
        """
        try:
            for _ in range(20):
                if probe or not self._checked:
                    self._catch_up(check=False)
                with self._connection() as conn:
                    conn.execute("BEGIN")
                    sql = Sql(conn, "sqlite")
                    seq = read_head(sql)[0]
                    whole = type(seq) is int and seq >= self._seen
                    if whole:
                        yield sql
                    conn.execute("COMMIT")
                if whole:
                    return
                self._checked = False  # another process has just emptied the index to fold it anew
        except sqlite3.Error as error:
            self._discard()
            raise StoreUnavailable(
                f"The private index of {shown(self.store.url, 200)} was damaged ({type(error).__name__}).",
                hint="It was thrown away and is made anew: try again.",
                damaged=True,
            ) from None
        raise Busy(
            f"The private index of {shown(self.store.url, 200)} is made anew again and again.",
            hint="Try again.",
        )

    @contextmanager
    def writing(self) -> Iterator[_PrivateSession]:
        """One attempt to commit; the index is locked while the rule decides, not while bytes travel."""
        with self._turn():
            self._catch_up(check=True)
            try:
                with self._connection() as conn:
                    conn.execute("BEGIN IMMEDIATE")
                    session = _PrivateSession(self, conn)
                    if read_head(session.sql)[0] < self._seen:
                        raise SequenceTaken  # emptied meanwhile: a rule must not decide on half a state
                    try:
                        yield session
                    finally:
                        rolled_back(conn)
            except sqlite3.Error as error:
                if not is_locked(error):
                    self._discard()
                raise SequenceTaken from None  # nothing was written: look again
            if session.accepted is not None:
                self._append(*session.accepted)

    def _append(self, head: Head, record: Record, entry: Entry) -> None:
        was, self._checked = self._checked, False  # until the entry is folded, a read must ask the journal
        self.store.append(record)
        try:
            with self._connection() as conn:
                conn.execute("BEGIN IMMEDIATE")
                moved = read_head(Sql(conn, "sqlite")) == head and self._fold(conn, head, [record], [entry])
                conn.execute(
                    "COMMIT" if moved else "ROLLBACK"
                )  # where it moved meanwhile, the next reader catches up
            self._checked = was and bool(moved)
            if moved:
                self._seen = max(self._seen, record.seq)
        except sqlite3.Error:
            self._discard()  # the entry is stored, and that is what counts
        self._tidy()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for the other writers of this user on this machine, for a moment.

        They would only take each other's numbers and try again, each try some requests. Nothing
        depends on it: who waited too long goes on, and the store decides as ever.
        """
        fd = -1
        if self._path is not None:
            with suppress(OSError):
                fd = os.open(f"{self._path}.turn", disk.LOCK, 0o600)
        try:
            end, pause = time.monotonic() + _TURN, 0.001
            while fd >= 0 and disk.try_lock(fd) is False and time.monotonic() < end:
                time.sleep(random.uniform(0, pause))
                pause = min(pause * 1.5, 0.02)
            yield
        finally:
            if fd >= 0:
                disk.unlock(fd)
                os.close(fd)

    def erased(self, *, patient: bool = True) -> bool:
        """Make sure that erased texts are in no free page of the index file."""
        with suppress(sqlite3.Error), self._connection() as conn:
            return wipe(conn, patient=patient)
        return False

    def rebuild(self) -> None:
        """Drop the index and fold it again, from the entries alone, which are all checked first."""
        ledger.check_gaps(self.store)
        head = (0, codec.GENESIS)
        for record in self.store.read(0) if self._shelved is None else self._shelved.entries(0):
            check_chain(head, [record])
            codec.decode(record)
            head = (record.seq, record.chain)
        self._discard()
        self._begun = True
        self._catch_up(check=True)

    def damage(self) -> list[str]:
        """Return what SQLite finds wrong in the private index."""
        with self._connection() as conn:
            return sqlite_damage(conn)

    def close(self) -> None:
        """Close the index and the store, when what is being derived for others is done."""
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join()
        if self._pool is not None:
            self._pool.close()
        if self._memory is not None and self._pid == os.getpid():
            self._memory.close()
        self.store.close()


def _closed_by_its_maker(conn: sqlite3.Connection, pid: int) -> None:
    """Close *conn*, unless this is a forked child: a thread of the parent may have held its lock."""
    if pid == os.getpid():
        conn.close()
    else:
        inherited(conn)


@contextmanager
def unpacked(shelved: Shelved, one: Checkpoint) -> Iterator[sqlite3.Connection | None]:
    """Lend a checkpoint as a database, None when it is damaged; then it is deleted.

    It must have our tables and nothing else (a trigger would be code), and the head that its name says.
    """
    folder = tempfile.mkdtemp(prefix="modelhub-")
    try:
        name = os.path.join(folder, "checkpoint")
        if not _written(shelved, one, name):
            yield None
            return
        with closing(sqlite3.connect(name, isolation_level=None)) as conn:
            sound = _is_sound(conn, one)
            if not sound:
                shelved.shelf.bad_checkpoint(one)
            yield conn if sound else None
    finally:
        disk.remove_tree(folder)


def _table_count(conn: sqlite3.Connection) -> int:
    """Return how many of the index's tables are there."""
    (count,) = conn.execute(_COUNT_TABLES).fetchone()
    return int(count)


def _written(shelved: Shelved, one: Checkpoint, name: str) -> bool:
    """Write a checkpoint to the file *name*; return whether all of it came, and left room on that disk."""
    try:
        with open(name, "xb") as file:
            for count, piece in enumerate(shelved.shelf.checkpoint(one)):
                if count % 16 == 0 and shutil.disk_usage(os.path.dirname(name)).free < _ROOM:
                    return False
                file.write(piece)
    except (ModelHubError, OSError):
        return False
    return True


def _is_sound(conn: sqlite3.Connection, one: Checkpoint) -> bool:
    """Return whether a checkpoint has our tables alone, and its head; what is looked at takes no memory to speak of."""
    length = conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
    conn.set_progress_handler(lambda: 1, _STEPS)  # also while SQLite reads a schema of a million tables
    try:
        conn.execute("PRAGMA trusted_schema = OFF")
        return _tables(conn) == _own_tables() and read_head(Sql(conn, "sqlite")) == (one.seq, one.chain)
    except sqlite3.Error:
        return False
    finally:
        conn.set_progress_handler(None, 0)
        conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, length)


def _tables(conn: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return conn.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name").fetchall()


@functools.cache
def _own_tables() -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        for statement in schema.ddl("sqlite"):
            conn.execute(statement)
        return _tables(conn)


def _erases(conn: Any, seq: int) -> bool:
    """Return whether an entry after *seq* erased texts."""
    return Sql(conn, "sqlite").one("SELECT 1 FROM @gone WHERE by > ? LIMIT 1", seq) is not None


class _Foreign(InvalidDocument):
    """The journal is not the one that the index was folded from."""


class _PrivateSession:
    def __init__(self, index: PrivateLedger, conn: Any) -> None:
        self._index = index
        self._conn = conn
        self.sql = Sql(conn, "sqlite")
        self.now = index.store.now()
        self.accepted: tuple[Head, Record, Entry] | None = None

    def commit(self, record: Record, entry: Entry) -> None:
        """Fold on trial; the journal is written when the index is free again."""
        head = read_head(self.sql)
        self._index._fold(self._conn, head, [record], [entry])
        self.accepted = (head, record, entry)


def _private(folder: Path) -> bool:
    """Return whether *folder* is this user's alone: somebody else's index could say anything."""
    found = os.lstat(folder)
    mine = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
    return stat.S_ISDIR(found.st_mode) and mine and os.access(folder, os.W_OK)


def index_path(cache_dir: str | os.PathLike[str] | None, registry_id: str, url: str) -> Path | None:
    """Return where the private index of a registry lies for this user; None: only memory is left.

    The name covers the registry's id, its canonical URL, the user, and the schema.
    """
    import hashlib

    from modelhub_sdk.blobs import disk, whereabouts
    from modelhub_sdk.stores import mounts

    uid = os.getuid() if hasattr(os, "getuid") else 0
    key = hashlib.sha256(f"{registry_id}\n{url}\n{uid}".encode()).hexdigest()[:32]
    name = f"{key}-{schema.SCHEMA}.sqlite"
    mode = (
        0o755 if whereabouts.is_named(cache_dir) else 0o700
    )  # of the cache's own folder, if it is made here

    def own() -> str:
        return whereabouts.owned(whereabouts.temporary())

    def named() -> str:
        return whereabouts.locate(cache_dir)

    for place in (named, own):
        with suppress(OSError):
            base = Path(place())
            if mounts.network_type(base) is None:
                disk.make_dirs(str(base), mode)
                disk.make_dirs(str(base / "index"), 0o700)
                if _private(base / "index"):
                    return base / "index" / name
    return None
