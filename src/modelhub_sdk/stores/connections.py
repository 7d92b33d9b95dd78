"""Pools of driver connections that survive threads and forks.

Transactions are steered with plain BEGIN and COMMIT, so the drivers run in autocommit mode.
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from modelhub_sdk.domain.query import like
from modelhub_sdk.errors import ModelHubError, StoreUnavailable
from modelhub_sdk.ports import SequenceTaken

log = logging.getLogger("modelhub_sdk")

PATIENCE = 30.0
"""Seconds that a writer waits for others before it gives up with `Busy`."""

_inherited: list[
    Any
] = []  # connections of a parent process: never used, never closed (closing speaks on its wire)


def inherited(connection: Any) -> None:
    """Keep what a parent process opened, so that nothing here ever closes it."""
    _inherited.append(connection)


def sqlite_damage(conn: sqlite3.Connection) -> list[str]:
    """Return what SQLite finds wrong in a database: pages, and indexes that do not fit their tables."""
    rows = [str(row[0]) for row in conn.execute("PRAGMA integrity_check(10)").fetchall()]
    return [] if rows == ["ok"] else rows


class Pool:
    """Connections by *connect*, one for each thread that is busy at the same time; idle ones are kept.

    After a fork the child makes its own and leaves the parent's alone. *alive* tells of an idle
    connection, without asking the server, whether the other side has closed it. With *sqlite*
    nothing is open while the process forks (see `_Forks`).
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        alive: Callable[[Any], bool] | None = None,
        keep: int = 8,
        sqlite: bool = False,
    ) -> None:
        self._connect = connect
        self._alive = alive
        self._keep = keep
        self._lock = threading.Lock()
        self._idle: list[Any] = []
        self._lent: dict[int, Any] = {}
        self._forks = _forks if sqlite else None
        self._torn = False
        _pools.add(self)
        # Whoever never closes a registry leaves nothing open: from 3.13 on Python warns of each connection.
        weakref.finalize(self, _close_all, self._idle).atexit = False

    def _take(self) -> Any:
        if self._torn:
            raise StoreUnavailable(
                "This process was forked while its parent was using this SQLite file.",
                hint="Open the registry in a process of its own (multiprocessing: spawn or forkserver).",
            )
        conn = None
        while conn is None:
            with self._lock:
                if not self._idle:
                    break
                conn = self._idle.pop()
            if self._alive is not None and not self._alive(conn):
                with suppress(Exception):
                    conn.close()  # the server was restarted, or the line was cut: no reason to fail
                conn = None
        conn = self._connect() if conn is None else conn
        self._lent[id(conn)] = conn
        return conn

    def _give_back(self, conn: Any, *, sound: bool) -> None:
        if self._lent.pop(id(conn), None) is None:
            inherited(conn)  # lent before a fork: it is the parent's
            return
        with self._lock:
            if sound and len(self._idle) < self._keep:
                self._idle.append(conn)
                return
        with suppress(Exception):
            conn.close()

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """Lend a connection; after a failure it is rolled back, or thrown away.

        Raises:
            StoreUnavailable: this process was forked in the middle of a use of this SQLite file.
        """
        forks = self._forks
        if forks is not None:
            forks.enter()
        try:
            conn = self._take()
            try:
                yield conn
            except BaseException as error:
                # Rolled back in any case: a connection that an error's frames keep alive would keep its lock.
                settled = _settled(conn)
                # Our own refusals leave a sound connection behind; after anything else it is not trusted.
                self._give_back(conn, sound=settled and isinstance(error, (ModelHubError, SequenceTaken)))
                raise
            self._give_back(conn, sound=True)
        finally:
            if forks is not None:
                forks.leave()

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle = list(self._idle)
            self._idle.clear()
        _close_all(idle)

    def orphaned(self) -> None:
        """Begin anew in a forked child: what is open is the parent's."""
        self._torn = self._torn or (self._forks is not None and bool(self._idle or self._lent))
        inherited((list(self._idle), self._lent))
        self._idle.clear()
        self._lock, self._lent = threading.Lock(), {}


def _close_all(connections: list[Any]) -> None:
    for conn in connections:
        with suppress(Exception):
            conn.close()


class _Forks:
    """Keeps SQLite closed while the process forks.

    SQLite keeps account, for each process, of the locks that it holds on a file. A forked child
    inherits the account and not the locks: it would write without protection, and all of it would
    be lost when the parent closes the file and removes the log. So a fork waits for other threads
    to finish what they do in SQLite, and everything is closed; whoever comes next opens it again.
    """

    patience = 5.0  # seconds that a fork waits; a child of one that did not help may not use the file

    def __init__(self) -> None:
        self._gate = threading.Condition()
        self._forking = False
        self._busy: dict[int, int] = {}  # uses under way, by thread

    def enter(self) -> None:
        """Begin a use of SQLite in this thread, after a fork that is under way."""
        me = threading.get_ident()
        with self._gate:
            # A use within a use must not wait: the fork waits for it.
            while self._forking and me not in self._busy:
                self._gate.wait()
            self._busy[me] = self._busy.get(me, 0) + 1

    def leave(self) -> None:
        """End it."""
        me = threading.get_ident()
        with self._gate:
            left = self._busy.get(me, 0) - 1
            if left > 0:
                self._busy[me] = left
            else:
                self._busy.pop(me, None)
            if self._forking:
                self._gate.notify_all()

    def before(self) -> None:
        """Before the fork, in the thread that forks; `parent` or `child` follow."""
        me = threading.get_ident()
        self._gate.acquire()  # released by `parent`: the child finds no state half-changed
        self._forking = True
        end = time.monotonic() + self.patience
        while any(thread != me for thread in self._busy) and (left := end - time.monotonic()) > 0:
            self._gate.wait(left)
        for pool in _all_pools():
            if pool._forks is self:
                pool.close()

    def parent(self) -> None:
        """After the fork, in the parent."""
        self._forking = False
        self._gate.notify_all()
        self._gate.release()

    def child(self) -> None:
        """After the fork, in the child."""
        self._gate, self._forking, self._busy = threading.Condition(), False, {}
        for pool in _all_pools():
            pool.orphaned()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _all_pools() -> list[Pool]:
    while True:
        with suppress(RuntimeError):  # another thread has just made one
            return list(_pools)


_forks = _Forks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_forks.before, after_in_parent=_forks.parent, after_in_child=_forks.child)


def sqlite_connect(
    path: str | Path, *, uri: str = "", timeout: float = PATIENCE, durable: bool = True
) -> sqlite3.Connection:
    """Return a connection to the database at *path* in autocommit mode.

    Args:
        path: the file, or ``:memory:``.
        uri: query of a SQLite URI (``mode=ro``), "" to open for reading and writing.
        timeout: seconds to wait for other writers.
        durable: sync every commit to the disk; a cache need not.
    """
    if str(path) == ":memory:":
        conn = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    else:
        from urllib.parse import quote

        name = f"file:{quote(str(path))}{'?' + uri if uri else ''}"
        conn = sqlite3.connect(name, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        conn.create_function("mh_like", 2, _like, deterministic=True)
        conn.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        conn.execute("PRAGMA cache_size = -16000")
        conn.execute("PRAGMA secure_delete = ON")  # what is redacted must not stay in free pages
    except BaseException:
        conn.close()
        raise
    return conn


def wait_for_lock(conn: sqlite3.Connection, statement: str) -> None:
    """Run *statement*, which needs a lock, again and again until it gets the lock or `PATIENCE` has passed.

    SQLite does not call its busy handler for every lock: ``PRAGMA journal_mode = WAL`` on a file that another
    process is just creating fails at once.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            conn.execute(statement)
        except sqlite3.OperationalError as error:
            if not is_locked(error) or time.monotonic() >= end:
                raise
        else:
            return
        time.sleep(random.uniform(0.002, 0.02))


def is_locked(error: Exception) -> bool:
    """Return whether SQLite says that another connection holds a lock."""
    return isinstance(error, sqlite3.OperationalError) and ("locked" in str(error) or "busy" in str(error))


def _like(pattern: str | None, text: str | None) -> bool | None:
    return None if pattern is None or text is None else like(text, pattern)


def wipe(conn: sqlite3.Connection, *, patient: bool = True) -> bool:
    """Empty the write-ahead log, where what was deleted may still stand. In the pages it is overwritten at once.

    Returns:
        False when others kept reading the database: for two seconds if *patient*, else now.
    """
    for left in range(20 if patient else 1, 0, -1):
        with suppress(sqlite3.Error):
            row = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if row is None or not row[0]:
                return True
        if left > 1:
            time.sleep(0.1)
    if patient:
        log.warning(
            "Someone keeps reading the database; erased texts leave its write-ahead log when they end."
        )
    return False


def rolled_back(conn: Any) -> None:
    """Roll back whatever is open; a broken connection has nothing to roll back."""
    with suppress(Exception):
        conn.execute("ROLLBACK")


def _settled(conn: Any) -> bool:
    """Roll back what is open; return whether the connection is sound and idle."""
    try:
        idle = (
            not conn.in_transaction
            if isinstance(conn, sqlite3.Connection)
            else conn.info.transaction_status == 0
        )
        if not idle:
            conn.execute("ROLLBACK")
    except Exception:  # noqa: BLE001  # whatever the driver says: it cannot be used again
        return False
    return True
