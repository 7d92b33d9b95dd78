"""Connections to SQLite end with whoever made them."""

from __future__ import annotations

import gc
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """Return a list of all connections that are made from now on."""
    connections: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def noted(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connections.append(connect(*arguments, **options))
        return connections[-1]

    monkeypatch.setattr(sqlite3, "connect", noted)
    return connections


def still_open(connections: list[sqlite3.Connection]) -> int:
    count = 0
    for connection in connections:
        try:
            connection.execute("SELECT 1")
        except sqlite3.ProgrammingError:
            continue
        count += 1
    return count


@pytest.mark.parametrize("url", ["memory://", "sqlite:///{}/r.db", "{}/folder"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_registry_that_nobody_closes(
    url: str, read_only: bool, made: list[sqlite3.Connection], tmp_path: Path
) -> None:
    """When a registry is forgotten, its connections are closed: Python 3.13 warns of each that is not."""
    url = url.format(tmp_path)
    if read_only and url != "memory://":
        hub.open(url, create=True, cache_dir=tmp_path / "cache").close()
    reg = hub.open(url, cache_dir=tmp_path / "cache", read_only=read_only and url != "memory://")
    reg.models()
    del reg
    gc.collect()
    assert made
    assert still_open(made) == 0


def test_a_private_index_that_was_damaged(made: list[sqlite3.Connection], tmp_path: Path) -> None:
    """An index that is rubbish, and one that cannot be kept on the disk, leave nothing open when they are replaced."""
    with hub.open(tmp_path / "reg", cache_dir=tmp_path / "cache") as reg:
        reg.register("m", {"a": b"x"})
    (index,) = (tmp_path / "cache" / "index").glob("*.sqlite")
    index.write_bytes(b"rubbish" * 1000)
    with hub.open(tmp_path / "reg", cache_dir=tmp_path / "cache") as reg:
        ledger: Any = reg._core.ledger
        for _ in range(4):  # the third time it goes on in memory
            ledger._discard()
        assert reg.latest("m") is None
    assert still_open(made) == 0


def test_a_read_only_file_that_cannot_be_read(made: list[sqlite3.Connection], tmp_path: Path) -> None:
    """A file that is no database is refused, and nothing stays open."""
    (tmp_path / "r.db").write_bytes(b"no database " * 1000)
    with pytest.raises(hub.ModelHubError):
        hub.open(f"sqlite:///{tmp_path}/r.db", read_only=True, cache_dir=tmp_path / "cache")
    gc.collect()
    assert still_open(made) == 0


@pytest.mark.skipif(sys.version_info < (3, 13), reason="older ones do not warn")
def test_nothing_is_warned_of(made: list[sqlite3.Connection], tmp_path: Path) -> None:
    """A use of each kind of registry raises no ResourceWarning."""
    for url in ("memory://", f"sqlite:///{tmp_path}/r.db", f"{tmp_path}/folder"):
        hub.open(url, cache_dir=tmp_path / "cache").models()
    made.clear()
    gc.collect()
