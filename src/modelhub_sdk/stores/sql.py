"""SQLite and PostgreSQL: journal, inbox and index in one database, changed in one transaction."""

from __future__ import annotations

import logging
import os
import select
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from modelhub_sdk.blobs.disk import check_regular
from modelhub_sdk.domain.events import Entry
from modelhub_sdk.errors import (
    Busy,
    CredentialsRefused,
    InvalidDocument,
    ModelHubError,
    NotAllowed,
    NotFound,
    StoreUnavailable,
    UnsafeStore,
    shown,
)
from modelhub_sdk.formats import codec
from modelhub_sdk.hidden import HiddenOptions, shielded
from modelhub_sdk.index import schema
from modelhub_sdk.index.sql import Sql
from modelhub_sdk.ports import MAX_NOTE, NOTE_ID, Note, Record, SequenceTaken
from modelhub_sdk.stores import mounts
from modelhub_sdk.stores.connections import PATIENCE, Pool, sqlite_connect, sqlite_damage, wait_for_lock, wipe
from modelhub_sdk.stores.ledger import (
    Head,
    HeadRow,
    apply,
    check_chain,
    has_types,
    head_row,
    is_head,
    missing_entry,
    read_head,
)
from modelhub_sdk.stores.private import PrivateLedger

log = logging.getLogger("modelhub_sdk")

_DDL = {
    "sqlite": {
        "modelhub_journal": "TABLE {} (seq INTEGER PRIMARY KEY, scope TEXT NOT NULL, chain TEXT NOT NULL,"
        " body BLOB NOT NULL, private BLOB NOT NULL)",
        # The numbers without the bodies: counting them finds a gap without reading the journal.
        "modelhub_journal_seq": "INDEX {} ON modelhub_journal (seq)",
        "modelhub_inbox": "TABLE {} (id TEXT PRIMARY KEY, body BLOB NOT NULL)",
        "modelhub_erased": "TABLE {} (seq INTEGER PRIMARY KEY)",
    },
    "postgresql": {
        "modelhub_journal": "TABLE {} (seq BIGINT PRIMARY KEY, scope TEXT NOT NULL, chain TEXT NOT NULL,"
        " body BYTEA NOT NULL, private BYTEA NOT NULL)",
        "modelhub_inbox": 'TABLE {} (id TEXT COLLATE "C" PRIMARY KEY, body BYTEA NOT NULL)',
        "modelhub_erased": "TABLE {} (seq BIGINT PRIMARY KEY)",
        # Its one row every writer locks: on PostgreSQL this lock is what makes a decision safe.
        "modelhub_lock": "TABLE {} (one INT PRIMARY KEY)",
    },
}
"""What a registry has beside the index of a release: each name with what creates it."""

_BATCH = 2000
_COUNT_EVERY = 60.0  # seconds after which a reader counts the entries again

_STATE = (
    "SELECT h.seq, h.chain, (#tables), (SELECT coalesce(max(seq), 0) FROM modelhub_journal),"
    " (SELECT chain FROM modelhub_journal WHERE seq = h.seq)"
    " FROM (SELECT 1 AS one) AS o LEFT JOIN @head AS h ON h.one = o.one"
)
"""The head of the index, how many of its tables are there, and what the journal has: in one statement."""


_NOTES = 500  # notes asked for by one statement

# Comparing the size of bytes does not load them; of a text it would. The type comes first.
_IS_NOTE = {
    "sqlite": "typeof(body) = 'blob' AND length(body) <= ?",
    "postgresql": "octet_length(body) <= ?",
}


class _Undecodable(bytes):
    """A text of SQLite that is not UTF-8."""


def _decoded(data: bytes) -> object:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return _Undecodable(data)


def _is_note_id(note_id: object) -> bool:
    """Return whether a cell of the inbox is a note's id; SQLite keeps bytes in a column of texts too."""
    return isinstance(note_id, str) and NOTE_ID.fullmatch(note_id) is not None


_ENTRY = f"{schema.PREFIX}entry"
_ERASE = "UPDATE modelhub_journal SET private = ? WHERE seq = ?"


class SqlStore:
    """A `Store` in a SQL database; `SharedLedger` adds the index in the same one. Never made directly."""

    dialect = ""
    url = ""
    read_only = False
    _pool: Pool

    def _begin(self, conn: Any) -> datetime | None:
        raise NotImplementedError

    def _translated(self, error: Exception, seconds: float) -> Exception:
        """Return *error* as one of ours; *seconds* passed since the connection was asked for."""
        raise NotImplementedError

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """Lend a driver connection; whatever the driver raises leaves as one of our errors."""
        begun = time.monotonic()
        try:
            with self._pool.connection() as conn:
                yield conn
            return
        except (ModelHubError, SequenceTaken):
            raise
        except Exception as error:
            better = self._translated(error, time.monotonic() - begun)
            if better is error:
                raise
        try:
            raise better  # out here, so that the driver's error is no context of it: it may hold the password
        finally:
            del better  # the error and this frame would keep each other alive

    def create_tables(self) -> None:
        """Make the tables that are not there. Safe when many do it at once."""
        with self.connection() as conn:
            self._begin_ddl(conn)
            for name, text in _DDL[self.dialect].items():
                kind, definition = text.split(" ", 1)
                conn.execute(f"CREATE {kind} IF NOT EXISTS {definition.format(name)}")
            for statement in schema.ddl(self.dialect):
                conn.execute(statement)
            conn.execute("COMMIT")

    def _begin_ddl(self, conn: Any) -> None:
        self._begin(conn)

    def has_tables(self) -> tuple[bool, bool]:
        """Return whether the journal and this release's index are there."""
        raise NotImplementedError

    def index_tables(self, sql: Sql) -> dict[str, bool]:
        """Return the index tables that are there, and whether each is as this release makes it."""
        raise NotImplementedError

    def is_duplicate(self, error: Exception) -> bool:
        """Return whether the database says that a row with that key exists."""
        raise NotImplementedError

    def written(self, conn: Any) -> None:
        """Raise StoreUnavailable if what *conn* has just committed may be nowhere."""

    # --- the journal ---------------------------------------------------------------------------

    def append(self, record: Record) -> None:
        """Store *record* in a transaction of its own."""
        with self.connection() as conn:
            self._begin(conn)
            self.insert(Sql(conn, self.dialect), record)
            conn.execute("COMMIT")

    def insert(self, sql: Sql, record: Record) -> None:
        """Store *record* within the caller's transaction."""
        added = sql.run(
            "INSERT INTO modelhub_journal (seq, scope, chain, body, private) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            record.seq,
            record.scope,
            record.chain,
            record.body,
            record.private,
        )
        if added != 1:
            raise SequenceTaken(record.seq)

    def read(self, after: int, limit: int | None = None) -> Iterator[Record]:
        """Yield the records after *after*, a few thousand at a time."""
        after, left = max(after, 0), limit
        while left is None or left > 0:
            count = _BATCH if left is None else min(left, _BATCH)
            with self.connection() as conn:
                records, problem = self._page(Sql(conn, self.dialect), after, count)
            yield from records
            if problem is not None:
                raise problem
            if len(records) < count:
                return
            after = records[-1].seq
            left = None if left is None else left - len(records)

    def page(self, sql: Sql, after: int, count: int) -> list[Record]:
        """Return up to *count* records after *after*.

        Raises:
            InvalidDocument: one of them is damaged, or is missing and a later one is there.
        """
        records, problem = self._page(sql, after, count)
        if problem is not None:
            raise problem
        return records

    def _page(self, sql: Sql, after: int, count: int) -> tuple[list[Record], InvalidDocument | None]:
        """Return the records after *after* up to the first that is missing or damaged, and the error that says so."""
        rows = sql.all(
            "SELECT seq, scope, chain, body, private FROM modelhub_journal WHERE seq > ? ORDER BY seq LIMIT ?",
            after,
            count,
        )
        records: list[Record] = []
        for row in rows:
            after += 1
            if row[0] != after:
                return records, missing_entry(self.url, after, row[0])
            try:
                records.append(record_from_row(row))
            except InvalidDocument as error:
                return records, error
        return records, None

    def check_gaps(self, after: int = 0) -> None:
        """Raise InvalidDocument, naming the first missing entry, if the journal has a later one; all are counted."""
        with self.connection() as conn:
            self.check_whole(Sql(conn, self.dialect))

    def check_whole(self, sql: Sql) -> None:
        """Do what `check_gaps` does, within the caller's transaction.

        Counting 100,000 entries takes 0.1 ms on SQLite, whose index ``modelhub_journal_seq`` exists for this
        (90 ms without it), and 10 ms on PostgreSQL.
        """
        row = sql.one("SELECT count(*), coalesce(min(seq), 1), coalesce(max(seq), 0) FROM modelhub_journal")
        count, first, last = row if row is not None else (0, 1, 0)
        if first == 1 and count == last:
            return
        row = sql.one(
            "SELECT min(a.seq + 1) FROM (SELECT 0 AS seq UNION ALL SELECT seq FROM modelhub_journal) a"
            " WHERE a.seq >= 0 AND NOT EXISTS (SELECT 1 FROM modelhub_journal b WHERE b.seq = a.seq + 1)"
        )
        missing = row[0] if row is not None else 1
        if missing > last:
            raise InvalidDocument(
                f"The journal of {shown(self.url, 200)} has an entry with the number {first}: numbers begin at 1.",
                hint="Restore the journal from a backup.",
            )
        raise missing_entry(self.url, missing, last)

    def erase(self, seq: int, private: bytes) -> None:
        """Replace the private part of record *seq*."""
        with self.connection() as conn:
            Sql(conn, self.dialect).run(_ERASE, private, seq)

    def erase_many(self, parts: Mapping[int, bytes]) -> None:
        """Replace the private parts of some records, in one transaction."""
        with self.connection() as conn:
            conn.execute("BEGIN IMMEDIATE" if self.dialect == "sqlite" else "BEGIN")
            Sql(conn, self.dialect).many(_ERASE, [(private, seq) for seq, private in sorted(parts.items())])
            conn.execute("COMMIT")

    def erased_until(self) -> int:
        """Return the entry up to which all erasures are complete."""
        with (
            suppress(ModelHubError),
            self.connection() as conn,
        ):  # a journal of an older release has no such table
            row = Sql(conn, self.dialect).one("SELECT max(seq) FROM modelhub_erased")
            return row[0] if row is not None and isinstance(row[0], int) else 0
        return 0

    def confirm_erased(self, seq: int) -> None:
        """Keep that entry, in place of earlier ones."""
        with suppress(ModelHubError), self.connection() as conn:
            sql = Sql(conn, self.dialect)
            sql.run("INSERT INTO modelhub_erased VALUES (?) ON CONFLICT DO NOTHING", seq)
            sql.run("DELETE FROM modelhub_erased WHERE seq < ?", seq)

    # --- the inbox -----------------------------------------------------------------------------

    def note(self, notes: Sequence[Note]) -> None:
        """Put *notes* into the inbox."""
        with self.connection() as conn:
            sql = Sql(conn, self.dialect)
            for start in range(0, len(notes), 200):
                # One statement: psycopg's executemany writes to the log when a user may not write here.
                some = notes[start : start + 200]
                rows = ", ".join(["(?, ?)"] * len(some))
                values = [value for note in some for value in (note.id, note.body)]
                sql.run(
                    f"INSERT INTO modelhub_inbox (id, body) VALUES {rows} ON CONFLICT DO NOTHING", *values
                )

    def notes(self, limit: int, *, after: str = "", skip: Collection[str] = ()) -> list[Note]:
        """Return up to *limit* notes in the order of their ids."""
        ids: list[str] = []
        for page in self._note_ids(after):
            ids += [str(note_id) for note_id in page if _is_note_id(note_id) and note_id not in skip]
            if len(ids) >= limit:
                break
        notes: list[Note] = []
        for start in range(0, len(ids), _NOTES):
            notes += self._notes(ids[start : start + _NOTES])
            if len(notes) >= limit:
                break
        return notes[:limit]

    def _notes(self, ids: Sequence[str]) -> list[Note]:
        """Return the notes with these ids; of what is no note by its size or type no byte is asked for."""
        sound = _IS_NOTE[self.dialect]
        with self.connection() as conn:
            rows = Sql(conn, self.dialect).all(
                f"SELECT id, CASE WHEN {sound} THEN body END FROM modelhub_inbox"
                f" WHERE id IN ({', '.join('?' * len(ids))}) ORDER BY id",
                MAX_NOTE,
                *ids,
            )
        return [Note(note_id, bytes(body or b""), junk=not body) for note_id, body in rows]

    def strange_notes(self) -> list[str]:
        """Return the ids in the inbox that are not those of notes."""
        return [str(key) for page in self._note_ids("") for key in page if not _is_note_id(key)]

    def _note_ids(self, after: str) -> Iterator[list[object]]:
        """Yield the ids in the inbox after *after*, in order: what is no text in UTF-8 as bytes."""
        key: object = after
        while True:
            with self.connection() as conn:
                keys = self._some_ids(Sql(conn, self.dialect), key)
            yield keys
            if len(keys) < _BATCH:
                return
            key = keys[-1]

    def _some_ids(self, sql: Sql, after: object) -> list[object]:
        page = "SELECT id FROM modelhub_inbox WHERE id > ? ORDER BY id LIMIT ?"
        return [row[0] for row in sql.all(page, after, _BATCH)]

    def forget(self, ids: Sequence[str]) -> None:
        """Remove notes."""
        with self.connection() as conn:
            Sql(conn, self.dialect).many("DELETE FROM modelhub_inbox WHERE id = ?", [(one,) for one in ids])

    def now(self) -> datetime | None:
        """The database's clock where it has one of its own."""
        return None

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()


class SqliteStore(SqlStore):
    """One SQLite file.

    Args:
        path: the file; an existing one, unless it may be made.
        read_only: open it without any write, also from a read-only disk.
    """

    dialect = "sqlite"

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"
        self.read_only = read_only
        kind = mounts.network_type(path)
        if kind is not None and not read_only:
            raise UnsafeStore(
                f"{shown(str(path))} is on a network file system ({kind}), where SQLite can lose data.",
                hint="Open a folder there instead (hub.open('/that/folder/')): its JSON files are safe to share.",
            )
        self._frozen: dict[int, object] = {}  # connections that take the file for one that never changes
        self._inodes: dict[int, tuple[int, int]] = {}  # of the file that each connection has open
        self._made = False
        self._pool = Pool(self._connect, alive=self._fresh, sqlite=True)

    def _connect(self) -> sqlite3.Connection:
        for suffix in ("", "-journal", "-wal", "-shm"):
            check_regular(f"{self.path}{suffix}")  # SQLite would wait for a pipe for ever
        before = self._inode()
        if not self.read_only:
            # Once there was a registry, an empty file in its place would only hide that it is gone.
            writer = sqlite_connect(self.path, uri="mode=rw" if self._made else "")
            self._inodes[id(writer)] = before or self._inode() or (0, 0)
            return writer
        conn: sqlite3.Connection | None = None
        try:
            conn = sqlite_connect(self.path, uri="mode=ro")
            conn.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        except BaseException as error:
            if conn is not None:
                conn.close()
            if not isinstance(error, sqlite3.OperationalError):
                raise
            # A write-ahead file cannot be read without writing beside it, and this user may not (an image's
            # layer, a read-only mount). Nobody writes it now, or its -wal would be there.
            if os.path.exists(f"{self.path}-wal"):
                raise
            state = self._state()
            conn = sqlite_connect(self.path, uri="mode=ro&immutable=1")
            self._frozen[id(conn)] = state
        self._inodes[id(conn)] = before or self._inode() or (0, 0)
        return conn

    def _inode(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _state(self) -> object:
        found = os.stat(self.path)
        return found.st_ino, found.st_size, found.st_mtime_ns, os.path.exists(f"{self.path}-wal")

    def _fresh(self, conn: sqlite3.Connection) -> bool:
        """Return whether a connection has the file open that is there now, and not one that was deleted."""
        if self._inodes.get(id(conn)) == self._inode() and (
            id(conn) not in self._frozen or self._frozen[id(conn)] == self._state()
        ):
            return True
        self._frozen.pop(id(conn), None)
        self._inodes.pop(id(conn), None)
        return False

    def written(self, conn: Any) -> None:
        """Check that what was committed is in the file that everybody else will open."""
        if self._inodes.get(id(conn)) != self._inode():
            raise StoreUnavailable(
                f"The registry {shown(str(self.path), 200)} was replaced while it was written."
            )

    def has_tables(self) -> tuple[bool, bool]:
        """Return whether the journal and this release's index are there."""
        with self.connection() as conn:
            names = {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type != 'trigger'")}
        if names and "modelhub_journal" not in names:
            raise NotAllowed(
                f"{shown(str(self.path))} is a database of something else: it has tables, and no registry.",
                hint="Choose another file name for the registry.",
            )
        self._made = "modelhub_journal" in names
        return self._made, {schema.HEAD.full_name, *_DDL["sqlite"]} <= names

    def create_tables(self) -> None:
        """Make the file and its tables."""
        with self.connection() as conn:
            wait_for_lock(conn, "PRAGMA journal_mode = WAL")
        super().create_tables()
        self._made = True

    def _begin(self, conn: Any) -> datetime | None:
        wait_for_lock(conn, "BEGIN IMMEDIATE")
        return None

    def _some_ids(self, sql: Sql, after: object) -> list[object]:
        """Return ids as bytes first: SQLite keeps texts that are not UTF-8, and Python cannot read them as text."""
        is_text = isinstance(after, (str, _Undecodable))
        key = after.encode() if isinstance(after, str) else after
        rows = sql.all(
            "SELECT typeof(id), CAST(id AS BLOB) FROM modelhub_inbox"
            f" WHERE id > {'CAST(? AS TEXT)' if is_text else '?'} ORDER BY id LIMIT ?",
            key,
            _BATCH,
        )
        return [_decoded(data) if kind == "text" else data for kind, data in rows]

    def is_duplicate(self, error: Exception) -> bool:
        """Return whether SQLite says that a row with that key exists."""
        return isinstance(error, sqlite3.IntegrityError)

    def index_tables(self, sql: Sql) -> dict[str, bool]:
        """Return the index tables that are there, and whether each is as this release makes it."""
        own = {table.full_name: schema.definition(table, self.dialect) for table in schema.TABLES}
        rows = sql.all("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
        return {name: text == f"CREATE TABLE {own[name]}" for name, text in rows if name in own}

    def _translated(self, error: Exception, seconds: float) -> Exception:
        where = shown(str(self.path), 200)
        if isinstance(error, sqlite3.IntegrityError):
            return SequenceTaken(0)
        if isinstance(error, sqlite3.DatabaseError):
            text = str(error)
            if "locked" in text or "busy" in text:
                return Busy(
                    f"The registry {where} is locked by another process; this call gave up after {seconds:.1f} s.",
                    hint="Nothing was changed; try again.",
                )
            if "readonly" in text:
                return NotAllowed(f"The registry {where} is read-only for this user.")
            if "unable to open" in text:
                return StoreUnavailable(f"The registry {where} cannot be opened: {text}.")
            if "Could not decode" in text:
                text = "a text in it is not UTF-8"  # what SQLite says quotes it
            return StoreUnavailable(
                f"SQLite cannot use {where}: {text}.",
                hint="If the disk is sound, restore the file from a backup.",
                damaged=_is_damage(error),
            )
        if isinstance(error, OSError):
            return StoreUnavailable(f"The registry {where} cannot be reached: {error.strerror}.")
        return error


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Return whether SQLite says that the file itself is damaged: a page, a table, a text, or a bad sector."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # raised by the module, not by SQLite: a text that is not UTF-8, a value out of range
        return True
    schema_or_disk = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_IOERR)  # a missing table or column is plain ERROR
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, *schema_or_disk)


def record_from_row(row: Sequence[Any]) -> Record:
    """Return the record that a row of the journal holds.

    SQLite keeps any value in any column, and TEXT where bytes belong is what SQL's `replace` makes of a BLOB.

    Raises:
        InvalidDocument: a value is of another type than was stored.
    """
    seq, scope, chain, body, private = row
    for name, value, kind in (
        ("scope", scope, str),
        ("chain", chain, str),
        ("body", body, bytes),
        ("private", private, bytes),
    ):
        if not isinstance(value, kind):
            raise InvalidDocument(
                f"Entry {seq} of the journal was changed: its column {name} holds {type(value).__name__} instead of"
                f" {kind.__name__}.",
                hint="Run reg.verify(), and restore the journal from a backup.",
            )
    if not codec.is_link(chain):
        raise InvalidDocument(
            f"Entry {seq} of the journal was changed: its column chain holds no chain digest.",
            hint="Run reg.verify(), and restore the journal from a backup.",
        )
    return Record(seq, scope, chain, body, private)


def _alive(conn: Any) -> bool:
    """Return whether an idle connection is still open: a server says nothing unasked but goodbye."""
    try:
        if conn.closed:
            return False
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(conn.fileno(), select.POLLIN)
            return not poll.poll(0)
        return not select.select([conn.fileno()], [], [], 0)[0]
    except Exception:  # noqa: BLE001  whatever the driver says: it cannot be used again
        return False


_SAID = (
    "connection refused",
    "timeout expired",
    "could not translate host name",
    "Name or service not known",
    "does not exist",
    "too many clients",
    "remaining connection slots",
    "no pg_hba.conf entry",
    "server closed the connection",
    "SSL",
    "starting up",
    "shutting down",
)
"""What PostgreSQL and its client say that explains a failure and quotes nothing."""


class PostgresStore(SqlStore):
    """One schema of a PostgreSQL database.

    Args:
        options: keyword arguments of ``psycopg.connect``, password included; kept for reconnecting, and hidden.
        url: the same without any secret.
    """

    dialect = "postgresql"

    def __init__(self, options: Mapping[str, Any], url: str, *, read_only: bool = False) -> None:
        from modelhub_sdk.stores.extras import need

        psycopg = need("psycopg", "postgres")
        self._psycopg = psycopg
        self.url = url
        self.read_only = read_only

        class Connection(psycopg.Connection):  # type: ignore[misc, name-defined]
            """Sends what is said to the connection itself (BEGIN, COMMIT) as it is; cursors prepare what recurs."""

            def execute(
                self, query: Any, params: Any = None, *, prepare: Any = False, binary: bool = False
            ) -> Any:
                return super().execute(query, params, prepare=prepare, binary=binary)

        options = HiddenOptions(options)

        def connect() -> Any:
            # Whatever the driver raises: its frames hold the password.
            conn = shielded(lambda: Connection.connect(**options, autocommit=True), Exception)
            conn.prepare_threshold = 3
            conn.execute(f"SET lock_timeout = '{int(PATIENCE)}s'")
            return conn

        self._pool = Pool(connect, alive=_alive)

    def has_tables(self) -> tuple[bool, bool]:
        """Return whether the journal and this release's index are there."""
        with self.connection() as conn:
            names = [schema.HEAD.full_name, *_DDL["postgresql"]]
            journal, index = conn.execute(
                "SELECT to_regclass('modelhub_journal') IS NOT NULL,"
                " (SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest(%s::text[]) AS name)",
                (names,),
            ).fetchone()
        return bool(journal), bool(index)

    def _begin_ddl(self, conn: Any) -> None:
        conn.execute("BEGIN")
        conn.execute(
            "SELECT pg_advisory_xact_lock(4901712245)"
        )  # CREATE IF NOT EXISTS can collide with itself

    def _begin(self, conn: Any) -> datetime | None:
        conn.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        lock = "SELECT one FROM modelhub_lock WHERE one = 1 FOR UPDATE"
        if conn.execute(lock).fetchone() is None:  # without the row there is nothing to lock
            conn.execute("INSERT INTO modelhub_lock VALUES (1) ON CONFLICT DO NOTHING")
            conn.execute(lock)
        return self._clock(conn)

    @staticmethod
    def _clock(conn: Any) -> datetime:
        # As a number: a timestamp would come in the server's own DateStyle.
        (now,) = conn.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").fetchone()
        return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=now)

    def now(self) -> datetime | None:
        """The server's clock."""
        with self.connection() as conn:
            return self._clock(conn)

    def is_duplicate(self, error: Exception) -> bool:
        """Return whether PostgreSQL says that a row with that key exists."""
        return isinstance(error, self._psycopg.errors.UniqueViolation)

    def index_tables(self, sql: Sql) -> dict[str, bool]:
        """Return the index tables that are there, and whether each has the columns that this release makes."""
        rows = sql.all(
            "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_class c"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            " WHERE c.relkind = 'r' AND pg_table_is_visible(c.oid) AND c.relname IN"
            f" ({', '.join('?' * len(schema.TABLES))}) ORDER BY c.relname, a.attnum",
            *(table.full_name for table in schema.TABLES),
        )
        columns: dict[str, list[tuple[str, str]]] = {}
        for name, column, kind in rows:
            columns.setdefault(name, []).append((column, kind))
        kinds = {"int": "bigint", "text": "text", "text?": "text", "float?": "double precision"}
        own = {
            table.full_name: [(column.split()[0], kinds[column.split()[1]]) for column in table.columns]
            for table in schema.TABLES
        }
        return {name: columns[name] == own[name] for name in columns}

    def _translated(self, error: Exception, seconds: float) -> Exception:
        pg = self._psycopg.errors
        place = shown(self.url, 200)
        if getattr(error, "_pgconn", None) is not None:
            error._pgconn = None  # type: ignore[attr-defined]  # it holds the password
        if isinstance(error, (pg.UniqueViolation, pg.SerializationFailure, pg.DeadlockDetected)):
            return SequenceTaken(0)
        if isinstance(error, pg.LockNotAvailable):
            return Busy(
                f"{place} is locked by others; this call gave up after {seconds:.1f} s.", hint="Try again."
            )
        if isinstance(error, pg.UndefinedTable):
            return NotFound(f"{place} has no registry.", hint="Make one with hub.open(url, create=True).")
        if isinstance(error, (pg.InsufficientPrivilege, pg.ReadOnlySqlTransaction)):
            return NotAllowed(f"This database role may not do that in {place}.")
        if isinstance(error, (pg.InvalidPassword, pg.InvalidAuthorizationSpecification)):
            return CredentialsRefused(f"{place} refused the user name or the password.")
        if isinstance(error, self._psycopg.Error):
            said = str(error)  # never shown whole: it may quote what was typed
            if isinstance(error, self._psycopg.OperationalError) and "authentication failed" in said:
                return CredentialsRefused(f"{place} refused the user name or the password.")
            reason = next(
                (phrase for phrase in _SAID if phrase.lower() in said.lower()), type(error).__name__
            )
            return StoreUnavailable(
                f"The database {place} did not answer as it should ({reason}).",
                hint="Check that it is running and can be reached from here.",
                damaged=isinstance(error, (pg.DataCorrupted, pg.IndexCorrupted)),
            )
        if isinstance(error, OSError):
            return StoreUnavailable(f"The database {place} cannot be reached: {error.strerror}.")
        return error


class SharedLedger:
    """The ledger of a `SqlStore`: one transaction holds the append and the fold."""

    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self._aside: PrivateLedger | None = None  # the index of a handle that may not write the shared one
        self._counted = float("-inf")  # when the journal was last seen to be without a gap
        self._state = _STATE.replace("#tables", schema.count_tables(store.dialect))

    @contextmanager
    def reading(self, *, probe: bool = True, trusting: bool = False) -> Iterator[Sql]:
        """A consistent view; the index is behind only when another release wrote, or when part of it was dropped.

        With *trusting*, the head of the index is not compared with the journal: for `verify`, which reports it.

        Raises:
            InvalidDocument: the journal has a gap, or is not the one that the index was folded from.
        """
        if self._aside is not None:
            with self._aside.reading(probe=probe) as sql:
                yield sql
            return
        for _ in range(3):
            with self.store.connection() as conn:
                sql = Sql(conn, self.store.dialect)
                if self._begin_reading(conn, sql, trusting=trusting):
                    yield sql
                    with suppress(Exception):  # the answer is there: how the line ends changes nothing
                        conn.execute("ROLLBACK")
                    return
                conn.execute("ROLLBACK")
            if self.store.read_only or not self._folded():
                self._aside = PrivateLedger(self.store, None)
                with self.reading() as sql:
                    yield sql
                return
        raise Busy(
            f"The index of {shown(self.store.url, 200)} could not be brought up to date.", hint="Try again."
        )

    def _begin_reading(self, conn: Any, sql: Sql, *, trusting: bool) -> bool:
        """Begin a transaction; return whether the index is whole and not behind the journal."""
        isolation = " ISOLATION LEVEL REPEATABLE READ READ ONLY" if self.store.dialect == "postgresql" else ""
        conn.execute("BEGIN" + isolation)
        try:
            row = sql.one(self._state)
        except Exception as error:
            if schema.HEAD.full_name in str(error):  # the head's own table is missing
                return False
            raise
        seq, chain, tables, last, link = row if row is not None else (None, "", 0, 0, "")
        if seq is None or tables < len(schema.TABLES):
            return False
        if type(seq) is not int or seq < 0:  # SQLite keeps any value in any column
            raise self._foreign_index(seq)
        if trusting:
            return True
        if link is None:
            raise self._lost_entry(seq, last)
        if link != chain:
            raise self._foreign_index(seq)
        if seq < last:
            return False
        if time.monotonic() - self._counted > _COUNT_EVERY:
            self.store.check_whole(sql)
            self._counted = time.monotonic()
        return True

    def _lost_entry(self, seq: int, last: int) -> InvalidDocument:
        """Return the error for a journal without entry *seq*, up to which its index was folded; *last* is its end."""
        end = f"ends at entry {last}" if seq > last else f"has entry {last}"
        return InvalidDocument(
            f"The journal of {shown(self.store.url, 200)} {end}, and its index was folded up to entry {seq}: entry"
            f" {min(seq, last + 1)} was lost.",
            hint="Restore the journal from a backup. To go on with what is left, drop the tables whose names begin"
            f" with {schema.PREFIX}: they are made anew.",
        )

    def _foreign_index(self, seq: object) -> InvalidDocument:
        """Return the error for an index whose head, *seq* and the rest of it, is not that of the journal."""
        return InvalidDocument(
            f"The index of {shown(self.store.url, 200)} was not folded from entry {shown(seq)} of its journal as it is"
            " now: one of them was changed by hand.",
            hint="reg.verify() checks the journal; if it names the index alone, reg.rebuild_index() makes that anew.",
        )

    def _folded(self) -> bool:
        """Bring the shared index up to date; False when this database role may not."""
        try:
            with self.writing():
                return True
        except NotAllowed:
            return False

    @contextmanager
    def writing(self) -> Iterator[_SharedSession]:
        """One attempt to commit, holding the writers' lock.

        Raises:
            InvalidDocument: the journal has a gap, a wrong last link, or not the entry that the index ends at.
        """
        with self.store.connection() as conn:
            now = self.store._begin(conn)
            session = _SharedSession(self.store, conn, now)
            self.store.check_whole(session.sql)
            row, emptied = self._head(session.sql)
            caught_up = self._catch_up(session.sql, row) or emptied
            yield session
            if session.open:
                conn.execute("COMMIT" if caught_up else "ROLLBACK")

    def _head(self, sql: Sql) -> tuple[HeadRow | None, bool]:
        """Return the head of the index. Without it, or a table, the index is emptied; return whether it was."""
        (count,) = sql.one(schema.count_tables(self.store.dialect)) or (0,)
        if count == len(schema.TABLES):
            row = head_row(sql)
            if row is not None and row[0]:
                return row, False
            if self._is_empty(sql):
                return None, False
        log.warning("The index of %s is incomplete. It is made anew from the journal.", self.store.url)
        self._recreate(sql, self.store.index_tables(sql))
        return None, True

    @staticmethod
    def _is_empty(sql: Sql) -> bool:
        return not any(sql.one(f"SELECT 1 FROM {table.full_name} LIMIT 1") for table in schema.TABLES)

    def _recreate(self, sql: Sql, tables: Mapping[str, bool]) -> None:
        """Make all index tables empty: the sound ones in place, since dropping loses what was granted on them."""
        for table in schema.TABLES:
            if tables.get(table.full_name):
                sql.run(f"DELETE FROM {table.full_name}")
            else:
                sql.run(f"DROP TABLE IF EXISTS {table.full_name}")
        for statement in schema.ddl(self.store.dialect):
            sql.run(statement)

    def _catch_up(self, sql: Sql, row: HeadRow | None) -> bool:
        """Fold what the index has not; return whether there was anything.

        *row*, the index's own word about its head, is compared with the journal first: the next entry links to it.
        """
        if row is not None and not has_types(row):
            raise self._foreign_index(row[0])
        head = (0, codec.GENESIS) if row is None else row[:2]
        overlap = min(2, head[0])  # the head's entry, and the one that it links to
        records = self.store.page(sql, head[0] - overlap, _BATCH)
        if row is not None:
            self._check_head(sql, row, records[:overlap])
        moved = False
        while len(records) > overlap:
            full = len(records) == _BATCH
            last = records[-1].seq
            self._apply(sql, head, records[overlap:])
            moved, overlap = True, 0
            head = read_head(sql)
            records = self.store.page(sql, last, _BATCH) if full else []
        return moved

    def _apply(self, sql: Sql, head: Head, records: Sequence[Record]) -> None:
        """Fold *records*; what the index has of them already, somebody set its head back from.

        Raises:
            InvalidDocument: the index knows entries that its head does not.
        """
        try:
            apply(sql, head, records)
        except Exception as error:
            if not self.store.is_duplicate(error):
                raise
        else:
            return
        raise self._foreign_index(head[0])

    def _check_head(self, sql: Sql, row: HeadRow, records: Sequence[Record]) -> None:
        """Raise InvalidDocument unless *records*, which end with the head's entry, link up and are what was folded."""
        if not records or records[-1].seq != row[0]:
            raise self._lost_entry(row[0], self._last(sql))
        if not is_head(row, records[-1]):
            raise self._foreign_index(row[0])
        if len(records) == 2:
            check_chain((records[0].seq, records[0].chain), records[1:])

    @staticmethod
    def _last(sql: Sql) -> int:
        """Return the number of the journal's last entry."""
        (last,) = sql.one("SELECT coalesce(max(seq), 0) FROM modelhub_journal") or (0,)
        return int(last)

    def erased(self, *, patient: bool = True) -> bool:
        """Leave nothing of what was erased in free pages or in the write-ahead log of a SQLite file."""
        if self.store.dialect != "sqlite":
            return True
        with self.store.connection() as conn:
            return wipe(conn, patient=patient)

    def rebuild(self) -> None:
        """Empty the index and fold it again, in one transaction.

        Raises:
            InvalidDocument: the journal has a gap or a wrong link, or lost its end: the index stays as it was.
        """
        with self.store.connection() as conn:
            self.store._begin(conn)
            sql = Sql(conn, self.store.dialect)
            self.store.check_whole(sql)
            tables = self.store.index_tables(sql)
            # Not what the head says, which is one cell: the entries that were folded tell what the journal had.
            (known,) = sql.one("SELECT max(seq) FROM @entry") or (0,) if tables.get(_ENTRY) else (0,)
            last = self._last(sql)
            if isinstance(known, int) and known > last:
                raise self._lost_entry(known, last)
            self._recreate(sql, tables if self.store.dialect == "postgresql" else {})
            self._catch_up(sql, None)
            conn.execute("COMMIT")
            if self.store.dialect == "postgresql":
                sql.run("ANALYZE")

    def damage(self) -> list[str]:
        """Return what SQLite finds wrong in the file; PostgreSQL has no such question for every user."""
        if self.store.dialect != "sqlite":
            return []
        with self.store.connection() as conn:
            return sqlite_damage(conn)

    def close(self) -> None:
        """Close the store."""
        self.store.close()


class _SharedSession:
    def __init__(self, store: SqlStore, conn: Any, now: datetime | None) -> None:
        self._store = store
        self._conn = conn
        self.sql = Sql(conn, store.dialect)
        self.now = now
        self.open = True

    def commit(self, record: Record, entry: Entry) -> None:
        """Append, fold and commit."""
        head = read_head(self.sql)
        self._store.insert(self.sql, record)
        if apply(self.sql, head, [record], [entry]) is None:
            raise SequenceTaken(record.seq)
        self.open = False
        self._conn.execute("COMMIT")
        self._store.written(self._conn)
