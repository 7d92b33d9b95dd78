"""Every store that this library ships keeps the laws of the port."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from modelhub_sdk.ports import Store
from modelhub_sdk.stores.files import Disk, FileStore
from modelhub_sdk.stores.memory import MemoryStore
from modelhub_sdk.stores.opening import connect
from modelhub_sdk.stores.sql import SqlStore
from modelhub_sdk.testing import StoreConformance


def _everything(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


class TestMemory(StoreConformance):
    """The journal of this process's memory."""

    shared = False

    @pytest.fixture
    def place(self) -> Any:
        """The store itself: there is no other way to its records."""
        return MemoryStore()

    def open(self, place: Any) -> Store:
        """The same store."""
        return place


class _Connected(StoreConformance):
    def open(self, place: Any) -> Store:
        """A store by its URL, with its tables."""
        store = connect(place, read_only=False, options={}).store
        if isinstance(store, SqlStore):
            store.create_tables()
        return store


class TestSqlite(_Connected):
    """One SQLite file."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> str:
        """A file."""
        return f"sqlite:///{tmp_path}/journal.db"

    def raw(self, place: Any) -> bytes:
        """The database and what lies beside it, its log emptied as the registry does after each redaction."""
        path = Path(place.removeprefix("sqlite:///"))
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return _everything(path.parent)


class TestPostgres(_Connected):
    """A PostgreSQL database."""

    kills = 5

    @pytest.fixture
    def place(self, postgres_db: str) -> str:
        """A database."""
        return postgres_db

    def test_every_text_of_the_index_sorts_by_code_point(self, place: Any, store: Store) -> None:
        """All text columns of the index have the collation C: the server's own would sort `_x, a, B`."""
        import psycopg

        with psycopg.connect(place) as connection:
            columns = connection.execute(
                "SELECT table_name, column_name, collation_name FROM information_schema.columns"
                " WHERE table_name LIKE 'mh%' AND data_type = 'text'"
            ).fetchall()
        assert len(columns) > 20
        assert [
            column for column in columns if column[2] != "C" and not column[0].startswith("modelhub_")
        ] == []


class TestFolder(StoreConformance):
    """A folder of JSON files."""

    long = 1020  # more than one folder of entries

    @pytest.fixture
    def place(self, tmp_path: Path) -> str:
        """A folder."""
        return str(tmp_path / "registry")

    def raw(self, place: Any) -> bytes:
        """All files."""
        return _everything(Path(place))

    def open(self, place: Any) -> Store:
        """The store of that folder."""
        return FileStore(f"file://{place}", Disk(Path(place)), parallel=4)

    def test_the_medium_holds_plain_json_lines(self, place: Any, store: Store) -> None:
        """An entry is a file of three lines that anything can read; nothing else lies about."""
        from modelhub_sdk.testing.conformance import record

        store.append(record(1))
        store.append(record(2))
        files = sorted(str(path.relative_to(place)) for path in Path(place).rglob("*") if path.is_file())
        assert files == ["journal/0000000/0000000001.json", "journal/0000000/0000000002.json"]
        lines = Path(place, files[0]).read_bytes().split(b"\n")
        assert (len(lines), lines[1], lines[3]) == (4, record(1).body, b"")


class TestS3(_Connected):
    """A prefix of an S3 bucket."""

    kills = 3

    @pytest.fixture
    def place(self, s3_bucket: Any) -> str:
        """A prefix."""
        self._bucket = s3_bucket
        return f"{s3_bucket.url}/registry"

    def raw(self, place: Any) -> bytes:
        """All objects."""
        return b"\n".join(self._bucket.get(key) for key in self._bucket.keys("registry"))
