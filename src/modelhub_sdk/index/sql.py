"""One cursor on the index, the same for SQLite and PostgreSQL.

Statements are written once, with ``?`` for each bound value and ``@`` before a table's name
(``@version`` becomes ``mh1_version``), and translated once per driver. Nothing but constants of
this package is ever part of a statement's text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from modelhub_sdk.index.schema import PREFIX

_PART = 200  # values in one IN (...)
T = TypeVar("T")


def parts(items: Sequence[T]) -> Iterator[tuple[Sequence[T], str]]:
    """Yield *items* in parts that one ``IN (...)`` takes, each with its question marks."""
    for start in range(0, len(items), _PART):
        part = items[start : start + _PART]
        yield part, ", ".join("?" * len(part))


@functools.lru_cache(maxsize=2048)
def _translated(statement: str, style: str) -> str:
    text = re.sub(r"@([a-z]+)", PREFIX + r"\1", statement)
    return text.replace("%", "%%").replace("?", "%s") if style == "format" else text


class Sql:
    """Runs statements on a driver's connection.

    Args:
        connection: a DBAPI connection (``sqlite3`` or ``psycopg``), its transaction steered by the store.
        dialect: ``sqlite`` or ``postgresql``.
    """

    __slots__ = ("_cursor", "dialect", "style")

    def __init__(self, connection: Any, dialect: str) -> None:
        self._cursor = connection.cursor()
        self.dialect = dialect
        self.style = "qmark" if dialect == "sqlite" else "format"

    def run(self, statement: str, *values: Any) -> int:
        """Run *statement*; return the number of rows that it changed."""
        self._cursor.execute(_translated(statement, self.style), values)
        count: int = self._cursor.rowcount
        return count

    def many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run *statement* once per row of values."""
        self._cursor.executemany(_translated(statement, self.style), rows)

    def all(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return all rows."""
        self._cursor.execute(_translated(statement, self.style), values)
        found: list[tuple[Any, ...]] = self._cursor.fetchall()
        return found

    def one(self, statement: str, *values: Any) -> tuple[Any, ...] | None:
        """Return the first row, or None."""
        self._cursor.execute(_translated(statement, self.style), values)
        row: tuple[Any, ...] | None = self._cursor.fetchone()
        if self.dialect == "sqlite" and row is not None:
            self._cursor.fetchall()  # an open statement would keep the read transaction alive
        return row

    def close(self) -> None:
        """Close the cursor."""
        self._cursor.close()
