"""SQLite and PostgreSQL: journal, inbox and index in one database, changed in one transaction."""

from __future__ import annotations

import logging
import os
import select
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from modelhub_sdk.domain.events import Entry
from modelhub_sdk.errors import (
    Busy,
    CredentialsRefused,
    ModelHubError,
    NotAllowed,
    NotFound,
    StoreUnavailable,
    UnsafeStore,
    shown,
)
from modelhub_sdk.index import schema
from modelhub_sdk.index.sql import Sql
from modelhub_sdk.ports import Note, Record, SequenceTaken
from modelhub_sdk.stores import mounts
from modelhub_sdk.stores.connections import PATIENCE, Pool, sqlite_connect, wipe
from modelhub_sdk.stores.ledger import apply, read_head
from modelhub_sdk.stores.private import PrivateLedger

log = logging.getLogger("modelhub_sdk")

_DDL = {
    "sqlite": (
        "CREATE TABLE IF NOT EXISTS modelhub_journal (seq INTEGER PRIMARY KEY, scope TEXT NOT NULL,"
        " chain TEXT NOT NULL, body BLOB NOT NULL, private BLOB NOT NULL)",
        "CREATE TABLE IF NOT EXISTS modelhub_inbox (id TEXT PRIMARY KEY, body BLOB NOT NULL)",
    ),
    "postgresql": (
        "CREATE TABLE IF NOT EXISTS modelhub_journal (seq BIGINT PRIMARY KEY, scope TEXT NOT NULL,"
        " chain TEXT NOT NULL, body BYTEA NOT NULL, private BYTEA NOT NULL)",
        'CREATE TABLE IF NOT EXISTS modelhub_inbox (id TEXT COLLATE "C" PRIMARY KEY, body BYTEA NOT NULL)',
        # The row that every writer locks: on PostgreSQL this lock is what makes a decision safe.
        "CREATE TABLE IF NOT EXISTS modelhub_lock (one INT PRIMARY KEY)",
        "INSERT INTO modelhub_lock VALUES (1) ON CONFLICT DO NOTHING",
    ),
}
_BATCH = 2000


class SqlStore:
    """A `Store` in a SQL database; `SharedLedger` adds the index in the same one. Never made directly."""

    dialect = ""
    url = ""
    read_only = False
    _pool: Pool

    def _begin(self, conn: Any) -> datetime | None:
        raise NotImplementedError

    def _translated(self, error: Exception) -> Exception:
        raise NotImplementedError

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """Lend a driver connection; whatever the driver raises leaves as one of our errors."""
        try:
            with self._pool.connection() as conn:
                yield conn
            return
        except (ModelHubError, SequenceTaken):
            raise
        except Exception as error:
            better = self._translated(error)
            if better is error:
                raise
        raise better  # out here, so that the driver's error is no context of it: it may hold the password

    def create_tables(self) -> None:
        """Make the tables that are not there. Safe when many do it at once."""
        with self.connection() as conn:
            self._begin_ddl(conn)
            for statement in (*_DDL[self.dialect], *schema.ddl(self.dialect)):
                conn.execute(statement)
            conn.execute("COMMIT")

    def _begin_ddl(self, conn: Any) -> None:
        conn.execute("BEGIN IMMEDIATE")

    def has_tables(self) -> tuple[bool, bool]:
        """Return whether the journal and this release's index are there."""
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
        left = limit
        while left is None or left > 0:
            count = _BATCH if left is None else min(left, _BATCH)
            with self.connection() as conn:
                found = self.page(Sql(conn, self.dialect), after, count)
            yield from found
            if len(found) < count:
                return
            after = found[-1].seq
            left = None if left is None else left - len(found)

    def page(self, sql: Sql, after: int, count: int) -> list[Record]:
        """Return up to *count* records after *after*, ending at the first gap."""
        rows = sql.all(
            "SELECT seq, scope, chain, body, private FROM modelhub_journal WHERE seq > ? ORDER BY seq LIMIT ?",
            after,
            count,
        )
        found = []
        for seq, scope, chain, body, private in rows:
            after += 1
            if seq != after:
                break
            found.append(Record(seq, scope, chain, bytes(body), bytes(private)))
        return found

    def erase(self, seq: int, private: bytes) -> None:
        """Replace the private part of record *seq*."""
        with self.connection() as conn:
            Sql(conn, self.dialect).run("UPDATE modelhub_journal SET private = ? WHERE seq = ?", private, seq)

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
        found: list[Note] = []
        page = "SELECT id, body FROM modelhub_inbox WHERE id > ? ORDER BY id LIMIT ?"
        while len(found) < limit:
            with self.connection() as conn:
                rows = Sql(conn, self.dialect).all(page, after, _BATCH)
            found += [Note(one, bytes(body)) for one, body in rows if one not in skip]
            if len(rows) < _BATCH:
                break
            after = rows[-1][0]
        return found[:limit]

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
            names = {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if names and "modelhub_journal" not in names:
            raise NotAllowed(
                f"{shown(str(self.path))} is a database of something else: it has tables, and no registry.",
                hint="Choose another file name for the registry.",
            )
        self._made = "modelhub_journal" in names
        return self._made, schema.HEAD.full_name in names

    def create_tables(self) -> None:
        """Make the file and its tables."""
        with self.connection() as conn:
            # Once for the file's life; others may be doing the same right now.
            conn.execute("PRAGMA journal_mode = WAL")
        super().create_tables()
        self._made = True

    def _begin(self, conn: Any) -> datetime | None:
        conn.execute("BEGIN IMMEDIATE")
        return None

    def _translated(self, error: Exception) -> Exception:
        where = shown(str(self.path), 200)
        if isinstance(error, sqlite3.IntegrityError):
            return SequenceTaken(0)
        if isinstance(error, sqlite3.DatabaseError):
            text = str(error)
            if "locked" in text or "busy" in text:
                return Busy(
                    f"The registry {where} was locked by another process for more than {PATIENCE:.0f} s.",
                    hint="Nothing was changed; try again.",
                )
            if "readonly" in text:
                return NotAllowed(f"The registry {where} is read-only for this user.")
            if "unable to open" in text:
                return StoreUnavailable(f"The registry {where} cannot be opened: {text}.")
            return StoreUnavailable(
                f"SQLite cannot use {where}: {text}.",
                hint="If the disk is sound, restore the file from a backup.",
            )
        if isinstance(error, OSError):
            return StoreUnavailable(f"The registry {where} cannot be reached: {error.strerror}.")
        return error


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
        options: keyword arguments of ``psycopg.connect``, password included; kept for reconnecting.
        url: the same without any secret.
    """

    dialect = "postgresql"

    def __init__(self, options: dict[str, Any], url: str, *, read_only: bool = False) -> None:
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

        def connect() -> Any:
            conn = Connection.connect(**options, autocommit=True)
            conn.prepare_threshold = 3
            conn.execute(f"SET lock_timeout = '{int(PATIENCE)}s'")
            return conn

        self._pool = Pool(connect, alive=_alive)

    def has_tables(self) -> tuple[bool, bool]:
        """Return whether the journal and this release's index are there."""
        with self.connection() as conn:
            journal, index = conn.execute(
                "SELECT to_regclass('modelhub_journal') IS NOT NULL, to_regclass(%s) IS NOT NULL",
                (schema.HEAD.full_name,),
            ).fetchone()
        return bool(journal), bool(index)

    def _begin_ddl(self, conn: Any) -> None:
        conn.execute("BEGIN")
        conn.execute(
            "SELECT pg_advisory_xact_lock(4901712245)"
        )  # CREATE IF NOT EXISTS can collide with itself

    def _begin(self, conn: Any) -> datetime | None:
        conn.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        conn.execute("SELECT one FROM modelhub_lock WHERE one = 1 FOR UPDATE")
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

    def _translated(self, error: Exception) -> Exception:
        pg = self._psycopg.errors
        place = shown(self.url, 200)
        if getattr(error, "_pgconn", None) is not None:
            error._pgconn = None  # type: ignore[attr-defined]  # it holds the password
        if isinstance(error, (pg.UniqueViolation, pg.SerializationFailure, pg.DeadlockDetected)):
            return SequenceTaken(0)
        if isinstance(error, pg.LockNotAvailable):
            return Busy(f"{place} was locked by others for more than {PATIENCE:.0f} s.", hint="Try again.")
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
            )
        if isinstance(error, OSError):
            return StoreUnavailable(f"The database {place} cannot be reached: {error.strerror}.")
        return error


class SharedLedger:
    """The ledger of a `SqlStore`: one transaction holds the append and the fold."""

    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self._aside: PrivateLedger | None = None  # the index of a handle that may not write the shared one

    def _behind(self, sql: Sql) -> bool:
        row = sql.one("SELECT (SELECT seq FROM @head WHERE one = 1), (SELECT max(seq) FROM modelhub_journal)")
        return row is not None and (row[0] or 0) < (row[1] or 0)

    @contextmanager
    def reading(self, *, probe: bool = True) -> Iterator[Sql]:
        """A consistent view; the index is behind only when another release wrote."""
        if self._aside is not None:
            with self._aside.reading(probe=probe) as sql:
                yield sql
            return
        for _ in range(3):
            with self.store.connection() as conn:
                sql = Sql(conn, self.store.dialect)
                isolation = (
                    " ISOLATION LEVEL REPEATABLE READ READ ONLY" if self.store.dialect == "postgresql" else ""
                )
                conn.execute("BEGIN" + isolation)
                if not self._behind(sql):
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

    def _folded(self) -> bool:
        """Bring the shared index up to date; False when this database role may not."""
        try:
            with self.writing():
                return True
        except NotAllowed:
            return False

    @contextmanager
    def writing(self) -> Iterator[_SharedSession]:
        """One attempt to commit, holding the writers' lock."""
        with self.store.connection() as conn:
            now = self.store._begin(conn)
            session = _SharedSession(self.store, conn, now)
            caught_up = self._catch_up(session.sql)
            yield session
            if session.open:
                conn.execute("COMMIT" if caught_up else "ROLLBACK")

    def _catch_up(self, sql: Sql) -> bool:
        moved = False
        while True:
            head = read_head(sql)
            records = self.store.page(sql, head[0], _BATCH)
            if not records:
                return moved
            apply(sql, head, records)
            moved = True

    def erased(self) -> None:
        """Leave nothing of what was erased in free pages or in the write-ahead log of a SQLite file."""
        if self.store.dialect == "sqlite":
            with self.store.connection() as conn:
                wipe(conn)

    def rebuild(self) -> None:
        """Drop the index and fold it again, in one transaction."""
        with self.store.connection() as conn:
            self.store._begin(conn)
            sql = Sql(conn, self.store.dialect)
            for table in schema.TABLES:
                sql.run(f"DELETE FROM {table.full_name}")
            self._catch_up(sql)
            conn.execute("COMMIT")
            if self.store.dialect == "postgresql":
                sql.run("ANALYZE")

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
