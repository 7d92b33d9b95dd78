"""The tables of the index. They are a cache: change them, raise `SCHEMA`, and everybody refolds.

Two kinds of rows. What never changes (a version, its metrics, its files) is written once. What can
change (status, aliases, tags, texts, fields, settings, archive) is a row of ``fact`` with a `since`
and an `until` entry number, so that a view of the past is a WHERE clause. Texts that can be erased
are kept once, in ``text``, under their seal.
"""

from __future__ import annotations

import functools

from attrs import frozen

SCHEMA = 1
"""The number in every table name: two releases' indexes live side by side in one database."""

PREFIX = f"mh{SCHEMA}_"
FOREVER = 2**62
"""The `until` of what holds now."""

# Text is compared by code point on every backend: SQLite does so already.
_TYPES = {
    "sqlite": {"int": "INTEGER NOT NULL", "text": "TEXT NOT NULL", "text?": "TEXT", "float?": "REAL"},
    "postgresql": {
        "int": "BIGINT NOT NULL",
        "text": 'TEXT COLLATE "C" NOT NULL',
        "text?": 'TEXT COLLATE "C"',
        "float?": "DOUBLE PRECISION",
    },
}


@frozen
class Table:
    """One table: its columns as ``name type``, the columns of its key, and its further indexes.

    `clustered` keeps a SQLite table in the order of its key; rows with long texts are better off without.
    """

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    indexes: tuple[tuple[str, ...], ...] = ()
    clustered: bool = True

    @property
    def full_name(self) -> str:
        """The name in the database."""
        return PREFIX + self.name

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column.split()[0] for column in self.columns)


def _table(name: str, columns: str, key: str, *indexes: str, clustered: bool = True) -> Table:
    return Table(
        name,
        tuple(part.strip() for part in columns.split(",")),
        tuple(key.split()),
        tuple(tuple(index.split()) for index in indexes),
        clustered,
    )


_VALUES = "model text, number int, name text, value float?, text text?"

TABLES = (
    _table("head", "one int, seq int, chain text, at int, registry text", "one"),
    _table("entry", "seq int, id text, scope text, at int, actor text, via text", "seq", "at"),
    _table(
        "event",
        "seq int, n int, kind text, model text, number int, doc text",
        "seq n",
        "model number seq",
        clustered=False,
    ),
    _table("text", "seal text, body text", "seal", clustered=False),
    _table("model", "model text, seq int, n int", "model"),
    _table(
        "version",
        "model text, number int, seq int, n int, manifest text, size int, run_id text?",
        "model number",
        "seq",
        "manifest",
        "run_id",
    ),
    _table(
        "fact",
        "model text, number int, name text, value text, since int, until int",
        "model number name value since",
        "model name value number",
    ),
    _table("metric", _VALUES, "model number name", "model name value"),
    _table("param", _VALUES, "model number name", "model name value"),
    _table("file", "model text, number int, path text, size int, digest text", "model number path", "digest"),
    _table("key", "scope text, key text, seq int, number int, content text", "scope key"),
    _table(
        "used",
        "id text, model text, number int, asked text, at int, actor text?, host text?, run_id text?, seq int",
        "id",
        "model number",
        "seq",
        "run_id",
    ),
    _table("dataset", "model text, name text, seq int, n int", "model", "name"),
    _table(
        "datasetversion",
        "model text, number int, name text, seq int, n int, manifest text, size int, run_id text?",
        "model number",
        "model name",
        "seq",
        "manifest",
        "run_id",
    ),
    _table(
        "datum",
        "id text, name text, size int, digest text, run_id text?, seq int, n int",
        "id",
        "digest",
        "run_id",
    ),
    # One row for each attempt at a run.
    _table(
        "run",
        "model text, number int, id text, name text, project text?, step text?, pipeline text?, family text?,"
        " parent text?, code text?, seq int, n int",
        "model number",
        "id",
        "seq",
    ),
    _table(
        "finish", "model text, number int, at int, duration float?, seq int, n int", "model number", "seq"
    ),
    # What went into what: URIs, ``run:<id>``, ``code:<commit>``, ``file:<digest>``.
    _table("edge", "source text, target text, label text, seq int", "source target label", "target"),
    # Files whose bytes are kept by reference.
    _table(
        "external",
        "model text, number int, path text, digest text, url text, version text?, seq int",
        "model number path",
        "digest",
    ),
    # Texts that were erased: of entry `seq`, by entry `by`.
    _table("gone", "seq int, seal text, by int", "seq seal", "by"),
)
HEAD = TABLES[0]


def definition(table: Table, dialect: str) -> str:
    """Return what follows ``CREATE TABLE`` for *table*: its name, columns and key."""
    columns = [
        f"{name} {_TYPES[dialect][kind]}" for name, kind in (column.split() for column in table.columns)
    ]
    key = f"PRIMARY KEY ({', '.join(table.key)})"
    suffix = " WITHOUT ROWID" if dialect == "sqlite" and table.clustered else ""
    return f"{table.full_name} ({', '.join([*columns, key])}){suffix}"


@functools.cache
def count_tables(dialect: str) -> str:
    """Return the statement that counts the tables of the index which are there."""
    names = ", ".join(f"'{table.full_name}'" for table in TABLES)
    if dialect == "sqlite":
        return f"SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ({names})"
    return (
        "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND pg_table_is_visible(oid)"
        f" AND relname IN ({names})"
    )


@functools.cache
def ddl(dialect: str) -> tuple[str, ...]:
    """Return the statements that create the index, for ``sqlite`` or ``postgresql``; all may be run again."""
    made = []
    for table in TABLES:
        made.append(f"CREATE TABLE IF NOT EXISTS {definition(table, dialect)}")
        for index in table.indexes:
            name = "_".join([table.full_name, *index])
            made.append(f"CREATE INDEX IF NOT EXISTS {name} ON {table.full_name} ({', '.join(index)})")
    return tuple(made)
