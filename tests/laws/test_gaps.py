"""A journal that lost an entry, or whose links are wrong, is named and never written to."""

from __future__ import annotations

import gc
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import InvalidDocument, Registry
from modelhub_sdk.formats import codec
from modelhub_sdk.ports import Record
from modelhub_sdk.stores.files import FileStore
from modelhub_sdk.stores.sql import SqlStore
from tests.support.homes import ALL, Home

MakeHome = Callable[[str], Home]

LAST = 7  # entries of the registry that `home` makes


@pytest.fixture(params=ALL)
def home(request: pytest.FixtureRequest, make_home: MakeHome) -> Home:
    """A registry of seven entries, on each kind of store."""
    place = make_home(request.param)
    with place.opened() as reg:
        for number in range(1, 5):
            reg.register("m", {"a": b"%d" % number})
        reg.approve("m/v2", "good")
        reg.approve("m/v3", "better")
        assert reg.verify().entries == LAST
    return place


@contextmanager
def _sql(home: Home) -> Iterator[Any]:
    """Lend a database connection of nobody in particular."""
    if home.kind == "sqlite":
        conn = sqlite3.connect(home.url.removeprefix("sqlite:///"), isolation_level=None)
    else:
        import psycopg

        conn = psycopg.connect(home.url, autocommit=True)
    try:
        yield conn
    finally:
        conn.close()


def _store(reg: Registry) -> Any:
    return reg._core.place.store


def _lose(home: Home, *numbers: int) -> None:
    """Remove entries behind the registry's back."""
    if home.kind in ("sqlite", "postgres"):
        with _sql(home) as conn:
            for number in numbers:
                conn.execute(f"DELETE FROM modelhub_journal WHERE seq = {number}")
        return
    with home.opened(read_only=True) as reg:
        medium = _store(reg).medium
    for number in numbers:
        medium.delete(f"journal/0000000/{number:010d}.json")


def _numbers(home: Home) -> list[int]:
    """Return the numbers of the entries that are stored, whatever lies between them."""
    if home.kind in ("sqlite", "postgres"):
        with _sql(home) as conn:
            return [row[0] for row in conn.execute("SELECT seq FROM modelhub_journal ORDER BY seq")]
    from modelhub_sdk.stores.opening import connect

    store = connect(home.url, read_only=True, options={}).store
    assert isinstance(store, FileStore)
    return sorted(int(name[:10]) for name in store.medium.names("journal/0000000"))


def _refuses(call: Callable[[], object], missing: int) -> None:
    with pytest.raises(InvalidDocument, match=rf"entry {missing} was lost|not have entry {missing}\b"):
        call()


WRITES = {
    "register": lambda reg: reg.register("m", {"a": b"new"}),
    "approve": lambda reg: reg.approve("m/v1", "late"),
    "collect_garbage": lambda reg: reg.collect_garbage(dry_run=False),
    "rebuild_index": lambda reg: reg.rebuild_index(),
}


@pytest.mark.parametrize("missing", [1, 5])
@pytest.mark.parametrize("index", ["known", "fresh"])
def test_a_gap_is_named_and_never_written_over(missing: int, index: str, home: Home, tmp_path: Any) -> None:
    """Reads and writes name the missing entry, with an index that knew it and with none; nothing is appended."""
    _lose(home, missing)
    before = _numbers(home)
    if index == "fresh":
        home = Home(home.kind, home.url, home.folder, tmp_path / "other cache", home.artifacts)
    if missing == 1:
        _refuses(home.open, 1)
    else:
        with home.opened() as reg:
            _refuses(lambda: reg.model("m"), missing)
            for write in WRITES.values():
                _refuses(lambda write=write: write(reg), missing)
            verification = reg.verify()
            assert not verification.ok
            assert any(f"entry {missing}" in problem for problem in verification.problems)
            target = tmp_path / "copy"
            _refuses(lambda: reg.copy_to(f"{target}/"), missing)
            assert not (target / "journal").exists()
    assert _numbers(home) == before


def test_a_gap_under_an_open_handle(home: Home) -> None:
    """A handle that was open when an entry went missing refuses its next write."""
    with home.opened() as reg:
        assert reg.latest("m") is not None
        reg.comment("m/v1", "a write, so that all is checked by now")
        _lose(home, 4)
        before = _numbers(home)
        _refuses(lambda: reg.comment("m/v1", "x"), 4)
        _refuses(lambda: reg.rebuild_index(), 4)
        assert _numbers(home) == before


def test_a_gap_in_a_copy_is_not_filled_by_the_next_copy(home: Home, tmp_path: Any) -> None:
    """`copy_to` refuses a copy that lost an entry instead of writing on."""
    target = tmp_path / "copy.db"
    with home.opened() as reg:
        reg.copy_to(f"sqlite:///{target}")
        with sqlite3.connect(target) as conn:
            conn.execute("DELETE FROM modelhub_journal WHERE seq = 3")
        conn.close()
        reg.comment("m/v1", "more to copy")
        _refuses(lambda: reg.copy_to(f"sqlite:///{target}"), 3)


def test_a_bundle_is_not_imported_over_a_gap(home: Home, tmp_path: Any) -> None:
    """`import_bundle` refuses a journal with a gap, and adds nothing to it."""
    with hub.open(f"sqlite:///{tmp_path}/source.db", user="tester") as source:
        source.register("n", {"a": b"n"})
        source.export_bundle("n/v1", tmp_path / "n.zip")
    _lose(home, 3)
    before = _numbers(home)
    with home.opened() as reg:
        _refuses(lambda: reg.import_bundle(tmp_path / "n.zip"), 3)
    assert _numbers(home) == before


def test_the_restored_entry_ends_it(home: Home) -> None:
    """With the missing entry back in its place, everything works again and nothing was harmed."""
    with home.opened() as reg:
        record = next(iter(_store(reg).read(3, limit=1)))
    _lose(home, 4)
    with home.opened() as reg:
        _refuses(lambda: reg.register("m", {"a": b"new"}), 4)
        _store(reg).append(record)
        assert reg.register("m", {"a": b"new"}).number == 5
        assert reg.verify().ok


def test_the_end_of_a_database_journal_is_missed(make_home: MakeHome) -> None:
    """The index in the same database tells that the last entry was deleted; dropping the index accepts it."""
    home = make_home("sqlite")
    with home.opened() as reg:
        reg.register("m", {"a": b"1"})
        reg.approve("m/v1", "ok")
    _lose(home, 3)
    with home.opened() as reg:
        for call in (lambda: reg.comment("m/v1", "kept?"), reg.rebuild_index, lambda: reg.version("m/v1")):
            _refuses(call, 3)
        assert any("3" in problem for problem in reg.verify().problems)
    assert _numbers(home) == [1, 2]
    with _sql(home) as conn:
        tables = conn.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'mh1%'")
        for (name,) in tables.fetchall():
            conn.execute(f"DROP TABLE {name}")
    with home.opened() as reg:
        assert reg.version("m/v1").status == "pending"
        assert reg.approve("m/v1", "again").seq == 3


def _replace_last(home: Home, edit: Callable[[Record], Record]) -> None:
    """Change the last entry behind the registry's back."""
    with home.opened(read_only=True) as reg:
        store = _store(reg)
        record = edit(next(iter(store.read(LAST - 1))))
        if isinstance(store, SqlStore):
            with _sql(home) as conn:
                mark = "?" if home.kind == "sqlite" else "%s"
                conn.execute(
                    f"UPDATE modelhub_journal SET chain = {mark}, body = {mark} WHERE seq = {LAST}",
                    (record.chain, record.body),
                )
        else:
            from modelhub_sdk.stores.files import _entry_name, _printed

            store.medium.replace(_entry_name(LAST), _printed(record))


@pytest.mark.parametrize("index", ["known", "fresh"])
@pytest.mark.parametrize("edit", ["body", "chain"])
def test_nothing_links_to_a_last_entry_that_does_not_fit(
    edit: str, index: str, home: Home, tmp_path: Any
) -> None:
    """An edited last entry is an error for every writer, with an index that knew it and with none."""

    def edited(record: Record) -> Record:
        if edit == "chain":
            return Record(record.seq, record.scope, "0" * 64, record.body, record.private)
        body = record.body.replace(b'"number":3', b'"number":1')
        assert body != record.body
        return Record(record.seq, record.scope, record.chain, body, record.private)

    _replace_last(home, edited)
    if index == "fresh":
        home = Home(home.kind, home.url, home.folder, tmp_path / "other cache", home.artifacts)
    with home.opened() as reg:
        for write in WRITES.values():
            with pytest.raises(InvalidDocument):
                write(reg)
        assert not reg.verify().ok
    assert _numbers(home) == list(range(1, LAST + 1))


HEADS = {
    "chain": "UPDATE {head} SET chain = '00' || substr(chain, 3)",
    "time": "UPDATE {head} SET at = at + 86400000000",
    "ahead": "UPDATE {head} SET seq = seq + 1",
    "behind": "UPDATE {head} SET seq = seq - 1",
    "rubbish": "UPDATE {head} SET chain = 'rubbish'",
}


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize("damage", sorted(HEADS))
def test_an_edited_head_of_the_index_never_reaches_the_journal(
    damage: str, kind: str, make_home: MakeHome
) -> None:
    """What the index says about its head is compared first: `verify` names it, and the journal stays sound."""
    home = make_home(kind)
    with home.opened() as reg:
        reg.register("m", {"a": b"1"})
    with _sql(home) as conn:
        conn.execute(HEADS[damage].format(head="mh1_head"))
    with home.opened() as reg:
        problems = reg.verify().problems
        assert problems
        assert damage == "ahead" or "Entry" not in problems[0]
        with pytest.raises(hub.ModelHubError):
            reg.register("m", {"a": b"2"})
        reg.rebuild_index()
        assert reg.verify().ok
        assert reg.register("m", {"a": b"2"}).number == 2
        record = next(iter(_store(reg).read(2)))
        assert codec.time_of(record).year == codec.time_of(next(iter(_store(reg).read(0)))).year


def test_a_listing_that_lags_is_no_gap(tmp_path: Any) -> None:
    """A name that a listing leaves out is asked for before it counts as missing."""
    with hub.open(f"{tmp_path}/reg/", user="tester", cache_dir=tmp_path / "cache") as reg:
        for number in range(4):
            reg.register("m", {"a": b"%d" % number})
        medium = _store(reg).medium
        names = medium.names
        medium.names = lambda folder: [name for name in names(folder) if "003" not in name]
        assert reg.register("m", {"a": b"more"}).number == 5
        medium.names = names
        assert reg.verify().ok


def test_strange_names_in_the_journal_folder_are_no_entries(tmp_path: Any) -> None:
    """Folders and files whose names are not those of entries neither stop a registry nor cost it time."""
    place = tmp_path / "reg"
    with hub.open(f"{place}/", user="tester", cache_dir=tmp_path / "cache") as reg:
        reg.register("m", {"a": b"1"})
        for name in ("9999999", "x", "0000009", "٠٠٠٠٠٠٠"):
            (place / "journal" / name).mkdir()
        (place / "journal" / "9999999" / "readme.txt").write_text("x")
        (place / "journal" / "0000000" / "0000000009.json~").write_text("x")
        (place / "journal" / "0000000" / "0000005000.json").write_text("of another folder")
        assert reg.register("m", {"a": b"2"}).number == 2
        assert reg.verify().ok


def test_a_gap_in_an_earlier_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap is found in any folder of a long journal: by a fresh client, and by the first write of a known one."""
    from modelhub_sdk.stores import files

    monkeypatch.setattr(files, "FOLDER", 10)
    place = tmp_path / "reg"
    with hub.open(f"{place}/", user="tester", cache_dir=tmp_path / "cache") as reg:
        reg.register("m", {"a": b"1"})
        for number in range(33):
            reg.comment("m/v1", str(number))
    (place / "journal" / "0000001" / "0000000014.json").unlink()
    for cache in ("cache", "other"):
        with hub.open(f"{place}/", user="tester", cache_dir=tmp_path / cache) as reg:
            _refuses(lambda reg=reg: reg.comment("m/v1", "x"), 14)
            assert any("entry 14" in problem for problem in reg.verify().problems)
    with hub.open(f"{place}/", user="tester", cache_dir=tmp_path / "third") as reg:
        _refuses(lambda: reg.model("m"), 14)
    header, *_ = (place / "journal" / "0000003" / "0000000035.json").read_bytes().split(b"\n")
    assert json.loads(header)["seq"] == 35
    assert not (place / "journal" / "0000003" / "0000000036.json").exists()


def test_a_head_that_was_set_back_keeps_no_lock(make_home: MakeHome) -> None:
    """An index whose head knows fewer entries than its tables is a typed error, and no lock outlives that error."""
    home = make_home("sqlite")
    with home.opened() as reg:
        for number in range(4):
            reg.register("m", {"a": b"%d" % number})
        earlier = next(iter(_store(reg).read(2)))
    with _sql(home) as conn:
        moment = int(codec.time_of(earlier).timestamp() * 1_000_000)
        conn.execute("UPDATE mh1_head SET seq = 3, chain = ?, at = ?", (earlier.chain, moment))
    gc.disable()
    try:
        with home.opened() as reg:
            for call in (lambda: reg.model("m"), lambda: reg.register("m", {"a": b"new"})):
                with pytest.raises(InvalidDocument, match="rebuild_index"):
                    call()
                with _sql(home) as conn:
                    conn.execute("BEGIN IMMEDIATE")
                    conn.execute("ROLLBACK")
            reg.rebuild_index()
            assert reg.register("m", {"a": b"new"}).number == 5
            assert reg.verify().ok
    finally:
        gc.enable()


@pytest.mark.parametrize("value", ["'abc'", "x'00'", "-5", "1.5"])
@pytest.mark.parametrize("kind", ["sqlite", "folder"])
def test_a_head_of_another_type_is_damage(kind: str, value: str, make_home: MakeHome) -> None:
    """A shared index with such a head is a typed error until it is rebuilt; a private one is made anew at once."""
    home = make_home(kind)
    with home.opened() as reg:
        reg.register("m", {"a": b"1"})
    path = home.url.removeprefix("sqlite:///")
    if kind == "folder":
        (path,) = map(str, (home.cache / "index").glob("*.sqlite"))
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute(f"UPDATE mh1_head SET seq = {value}")
    with home.opened() as reg:
        if kind == "sqlite":
            with pytest.raises(InvalidDocument):
                reg.model("m")
            assert not reg.verify().ok
            reg.rebuild_index()
        assert reg.register("m", {"a": b"2"}).number == 2
        assert reg.verify().ok


@pytest.mark.parametrize("chain", ["zz", "", "ab"])
def test_a_chain_that_is_no_digest_names_its_entry(chain: str, make_home: MakeHome) -> None:
    """Whoever meets such an entry, also the one before the last, names that entry."""
    home = make_home("sqlite")
    with home.opened() as reg:
        reg.register("m", {"a": b"1"})
        reg.comment("m/v1", "x")
    with _sql(home) as conn:
        conn.execute("UPDATE modelhub_journal SET chain = ? WHERE seq = 2", (chain,))
    with home.opened() as reg:
        for call in (lambda: reg.register("m", {"a": b"2"}), reg.rebuild_index):
            with pytest.raises(InvalidDocument, match="Entry 2"):
                call()


def test_a_wrong_link_is_not_copied_and_a_copy_with_one_is_not_extended(
    make_home: MakeHome, tmp_path: Any
) -> None:
    """`copy_to` computes every link anew, of the original and of what the copy has already."""
    home = make_home("sqlite")
    with home.opened() as reg:
        for number in range(3):
            reg.register("m", {"a": b"%d" % number})
        reg.copy_to(f"sqlite:///{tmp_path}/copy.db")
        with closing(sqlite3.connect(tmp_path / "copy.db", isolation_level=None)) as conn:
            conn.execute("UPDATE modelhub_journal SET body = x'00' WHERE seq = 2")
        reg.comment("m/v1", "more")
        with pytest.raises(InvalidDocument, match="Entry 2"):
            reg.copy_to(f"sqlite:///{tmp_path}/copy.db")
        with _sql(home) as conn:
            conn.execute("UPDATE modelhub_journal SET body = replace(body, 'a', 'b') WHERE seq = 3")
            conn.execute("UPDATE modelhub_journal SET body = cast(body AS blob) WHERE seq = 3")
        with pytest.raises(InvalidDocument, match="Entry 3"):
            reg.copy_to(f"sqlite:///{tmp_path}/other.db")
        with pytest.raises(InvalidDocument, match="Entry 3"):
            reg.forget_user("tester", "asked to")
