"""The PostgreSQL proxy cuts where it was told to: before the server hears, or after it has answered."""

from __future__ import annotations

import contextlib

import psycopg
import pytest

from tests.support.pgproxy import PostgresProxy, commits, statements


@pytest.fixture
def table(postgres_db: str) -> str:
    """A table ``t`` with a number."""
    with psycopg.connect(postgres_db) as connection:
        connection.execute("CREATE TABLE t (n INT)")
    return postgres_db


def _rows(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [n for (n,) in connection.execute("SELECT n FROM t ORDER BY n")]


def _insert(url: str, n: int) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO t VALUES (%s)", (n,))


def test_without_a_cut_all_passes(table: str, pg_proxy: PostgresProxy) -> None:
    """Statements with and without parameters, prepared ones, errors and large answers go through."""
    _insert(pg_proxy.url, 1)
    with psycopg.connect(pg_proxy.url) as connection:
        for n in range(2, 12):
            connection.execute("INSERT INTO t VALUES (%s)", (n,), prepare=True)
        with pytest.raises(psycopg.errors.UndefinedTable), connection.transaction():
            connection.execute("SELECT * FROM nothing")
        found = connection.execute("SELECT repeat('x', 1000000)").fetchone()
        assert found == ("x" * 1_000_000,)
        with connection.pipeline():
            connection.execute("INSERT INTO t VALUES (%s)", (12,))
            connection.execute("INSERT INTO t VALUES (%s)", (13,))
    assert _rows(table) == list(range(1, 14))
    assert "COMMIT" in pg_proxy.statements
    assert pg_proxy.connections == 2


def test_cut_before_commit_rolls_back(table: str, pg_proxy: PostgresProxy) -> None:
    """The server never hears of the COMMIT: an error, and no row."""
    with pg_proxy.cut("before") as cut, pytest.raises(psycopg.OperationalError):
        _insert(pg_proxy.url, 1)
    assert cut.fired
    assert commits(cut.messages[0])
    assert _rows(table) == []
    _insert(pg_proxy.url, 2)
    assert _rows(table) == [2]


def test_cut_after_commit_has_committed(table: str, pg_proxy: PostgresProxy) -> None:
    """The server has committed when the client hears of the lost connection: an error, and the row."""
    for n in range(20):
        with pg_proxy.cut("after") as cut, pytest.raises(psycopg.OperationalError):
            _insert(pg_proxy.url, n)
        assert cut.fired
        assert _rows(table) == list(range(n + 1))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_plain_commit_is_cut_as_well(table: str, pg_proxy: PostgresProxy, moment: str) -> None:
    """BEGIN and COMMIT sent as statements in autocommit mode meet the cut too, and a new connection works."""
    for n in (1, 2):
        armed = pg_proxy.cut(moment) if n == 1 else contextlib.nullcontext()  # type: ignore[arg-type]
        with psycopg.connect(pg_proxy.url, autocommit=True) as connection, armed:
            connection.execute("BEGIN")
            connection.execute("INSERT INTO t VALUES (%s)", (n,))
            with pytest.raises(psycopg.OperationalError) if n == 1 else contextlib.nullcontext():
                connection.execute("COMMIT")
    assert _rows(table) == ([2] if moment == "before" else [1, 2])


@pytest.mark.parametrize("moment", ["before", "after"])
def test_any_statement_can_be_cut(table: str, pg_proxy: PostgresProxy, moment: str) -> None:
    """A statement with parameters is met by its text; nothing of its transaction stays."""
    with pg_proxy.cut(moment, when=statements("insert into T")) as cut:  # type: ignore[arg-type]
        with pytest.raises(psycopg.OperationalError):
            _insert(pg_proxy.url, 1)
    assert "INSERT" in cut.messages[0].sql
    assert _rows(table) == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_loop_covers_each_message_and_ends(table: str, pg_proxy: PostgresProxy, moment: str) -> None:
    """`every_message` cuts at the first, the second, … and then lets the operation through."""
    rounds = 0
    for arm in pg_proxy.every_message(moment):  # type: ignore[arg-type]
        with arm() as cut, contextlib.suppress(psycopg.OperationalError):
            _insert(pg_proxy.url, rounds)
        acked = not cut.fired
        assert (rounds in _rows(table)) >= acked
        rounds += 1
    assert rounds >= 4
    assert rounds - 1 in _rows(table)


def test_the_server_can_be_away(table: str, pg_proxy: PostgresProxy) -> None:
    """While it is away, open connections break and new ones are refused; then all is well again."""
    with contextlib.closing(psycopg.connect(pg_proxy.url)) as connection:
        with pg_proxy.away():
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(pg_proxy.url).close()
    _insert(pg_proxy.url, 1)
    assert _rows(table) == [1]
