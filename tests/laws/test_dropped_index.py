"""The index is a cache: it can be dropped at any time, whole or in part, and is made anew from the journal."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from modelhub_sdk.index import schema
from tests.support.homes import Home

MakeHome = Callable[[str], Home]
NAMES = [table.full_name for table in schema.TABLES]


@contextmanager
def _index(home: Home) -> Iterator[Any]:
    """Lend a connection to where the index of a place is."""
    if home.kind == "postgres":
        import psycopg

        conn = psycopg.connect(home.url, autocommit=True)
    else:
        path = home.url.removeprefix("sqlite:///")
        if home.kind == "folder":
            (path,) = map(str, (home.cache / "index").glob("*.sqlite"))
        conn = sqlite3.connect(path, isolation_level=None)
    try:
        yield conn
    finally:
        conn.close()


def _fill(home: Home) -> None:
    with home.opened() as reg:
        for number in range(1, 4):
            reg.register("m", {"a": b"%d" % number}, metrics={"auc": number / 10}, note=f"note {number}")
        reg.approve("m/v2", "good")
        reg.set_alias("m", "prod", 2)
        reg.resolve("m/prod")


def _check(reg: Any) -> None:
    assert reg.latest("m").number == 2
    assert reg.version("m/prod").note == "note 2"
    assert [version.number for version in reg.versions("m", where="metrics.auc > 0.15")] == [3, 2]


DAMAGE = {
    **{f"drop {name}": [f"DROP TABLE {name}"] for name in NAMES},
    "drop all": [f"DROP TABLE {name}" for name in NAMES],
    "drop all but one": [f"DROP TABLE {name}" for name in NAMES if name != "mh1_metric"],
    "head row": ["DELETE FROM mh1_head"],
    "head of another": ["UPDATE mh1_head SET one = 2"],
}
SOME = ("drop mh1_head", "drop mh1_fact", "drop all but one", "head row")


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "folder"])
@pytest.mark.parametrize("when", ["closed", "open"])
def test_any_part_of_the_index_is_made_anew_at_the_first_read(
    kind: str, when: str, make_home: MakeHome
) -> None:
    """A missing table or head row is made anew by the next read, for a handle that was open too."""
    home = make_home(kind)
    _fill(home)
    for damage in DAMAGE if "THOROUGH_TESTS" in os.environ else SOME:
        if when == "closed":
            with _index(home) as conn:
                for statement in DAMAGE[damage]:
                    conn.execute(statement)
            with home.opened() as reg:
                _check(reg)
        else:
            with home.opened() as reg:
                _check(reg)
                with _index(home) as conn:
                    for statement in DAMAGE[damage]:
                        conn.execute(statement)
                _check(reg)
    with home.opened() as reg:
        assert reg.register("m", {"a": b"4"}).number == 4
        assert reg.verify().ok


@pytest.mark.parametrize("kind", ["sqlite", "folder"])
@pytest.mark.parametrize("first", ["verify", "rebuild_index", "register", "approve", "copy_to"])
def test_any_verb_may_come_first(kind: str, first: str, make_home: MakeHome, tmp_path: Any) -> None:
    """Verbs other than reads find the index whole as well."""
    home = make_home(kind)
    _fill(home)
    with _index(home) as conn:
        conn.execute("DROP TABLE mh1_fact")
        conn.execute("DELETE FROM mh1_head")
    verbs = {
        "verify": lambda reg: reg.verify().ok,
        "rebuild_index": lambda reg: reg.rebuild_index() or True,
        "register": lambda reg: reg.register("m", {"a": b"4"}).number == 4,
        "approve": lambda reg: reg.approve("m/v1", "fine").status == "approved",
        "copy_to": lambda reg: reg.copy_to(f"{tmp_path}/copy/").entries > 0,
    }
    with home.opened() as reg:
        assert verbs[first](reg)
        _check(reg)
        assert reg.verify().ok


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "folder"])
def test_rebuilding_mends_tables_that_were_altered(kind: str, make_home: MakeHome) -> None:
    """`rebuild_index` makes tables with strange columns or rows anew."""
    home = make_home(kind)
    _fill(home)
    with _index(home) as conn:
        conn.execute("ALTER TABLE mh1_fact ADD COLUMN more TEXT")
        conn.execute("ALTER TABLE mh1_text RENAME COLUMN body TO other")
        conn.execute("UPDATE mh1_version SET size = 7")
    with home.opened() as reg:
        assert not reg.verify().ok
        reg.rebuild_index()
        _check(reg)
        assert reg.verify().ok


def test_what_was_granted_on_the_index_outlives_a_rebuild(make_home: MakeHome) -> None:
    """On PostgreSQL `rebuild_index` keeps sound tables in place, with the grants of readers on them."""
    home = make_home("postgres")
    _fill(home)
    with _index(home) as conn:
        conn.execute("GRANT SELECT ON mh1_fact TO PUBLIC")
    with home.opened() as reg:
        reg.rebuild_index()
    with _index(home) as conn:
        (access,) = conn.execute("SELECT relacl::text FROM pg_class WHERE relname = 'mh1_fact'").fetchone()
        assert "=r/" in access


def test_a_reader_makes_its_own_index(make_home: MakeHome) -> None:
    """A handle that may not write answers from a private index when the shared one is incomplete."""
    home = make_home("sqlite")
    _fill(home)
    with _index(home) as conn:
        conn.execute("DROP TABLE mh1_fact")
    with home.opened(read_only=True) as reg:
        _check(reg)
    with _index(home) as conn:
        assert conn.execute("SELECT count(*) FROM sqlite_master WHERE name = 'mh1_fact'").fetchone() == (0,)
