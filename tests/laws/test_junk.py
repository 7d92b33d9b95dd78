"""What anybody may leave in a shared place: junk in the inbox, pipes for files, bombs. Nobody is stopped, nothing hangs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import zlib
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import ModelHubError, Registry
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.formats import codec
from modelhub_sdk.index import schema
from modelhub_sdk.ports import MAX_NOTE, Note
from modelhub_sdk.stores.files import LARGEST_ENTRY, Disk, _entry_name, _printed
from modelhub_sdk.stores.shelf import LARGEST_PACK
from tests.support.homes import ALL, Home

MakeHome = Callable[[str], Home]

USE = {
    "kind": "use",
    "uri": "model://churn/v1",
    "asked": "model://churn/v1",
    "at": "2026-03-01T12:00:00.000000Z",
}


def note(n: int, **changes: Any) -> Note:
    return Note(f"{n:032x}", json.dumps(USE | changes).encode())


JUNK = [
    b"",
    b"\xff not json",
    b"[" * 50_000,
    b'{"a":' * 10_000,
    b"[]",
    b"null",
    b"9" * 30_000,
    b'{"kind": 7}',
    b'{"kind": ["use"]}',
    b'{"kind": "use"}'.ljust(MAX_NOTE + 1),
]
"""What no release can have written as a note."""

STRANGE: list[dict[str, Any]] = [
    {"uri": 7},
    {"uri": "model://churn/v" + "9" * 5000},
    {"asked": None},
    {"asked": "\ud800"},
    {"asked": "x" * 5000},
    {"at": "yesterday"},
    {"at": 12},
    {"actor": {"a": 1}},
    {"host": "h" * 400},
    {"run_id": ["r"]},
]
"""What says that it is a use, and is none that this release knows."""


def drained(reg: Registry) -> Registry:
    """Let the next write empty the inbox."""
    reg._core.drained = -1e9
    return reg


@pytest.mark.parametrize("kind", ["memory", *ALL])
def test_junk_in_the_inbox(kind: str, make_home: MakeHome) -> None:
    """Junk stops no write and no read, is counted by `verify` and removed by a collector; notes of later releases stay."""
    opened = hub.open("memory://", user="tester") if kind == "memory" else make_home(kind).open()
    with opened as reg:
        reg.register("churn", {"f": b"1"})
        notes = [Note(f"{n:032x}", body) for n, body in enumerate(JUNK, 1)]
        notes += [note(n, **changes) for n, changes in enumerate(STRANGE, 100)]
        later = [
            Note("e" * 32, b'{"kind": "opinion", "of": 1}'),
            note(0xF00, at="0001-01-01T00:00:00.000000Z"),
        ]
        heartbeat = Note("d" * 32, b'{"kind": "heartbeat", "run": [1], "at": "9"}')
        reg._core.place.store.note([*notes, *later, heartbeat, note(0xFFF)])
        used = [f"{n:032x}" for n in (0xF00, 0xFFF)]
        assert [use.id for use in reg.uses("churn/v1")] == used
        drained(reg).register("churn", {"f": b"2"})
        drained(reg).approve("churn/v1", "good")
        reg.set_alias("churn", "best", 1)
        reg.lineage("churn/v1")
        assert reg.runs().total == 0
        assert [use.id for use in reg.uses("churn/v1")] == used
        assert reg.audit(action="uses.recorded").total == 1
        found = reg.verify()
        assert found.ok, found.problems
        assert re.search(rf"holds {len(JUNK) + len(STRANGE)} things that are no notes", found.remarks[0])
        assert f"{1:032x}" in str(found)
        assert "no notes" in found._repr_html_()
        reg.collect_garbage()
        assert reg.verify().remarks == found.remarks
        reg.collect_garbage(dry_run=False)
        assert f"holds {len(STRANGE)} things" in reg.verify().remarks[0]
        assert {one.id for one in reg._core.place.store.notes(1000)} >= {one.id for one in later}
        reg.rebuild_index()  # the entry with a use of the year 1 reads back
        assert [use.id for use in reg.uses("churn/v1")] == used


def test_junk_is_read_once(make_home: MakeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handle that has set junk aside does not read it again at each write."""
    with make_home("folder").opened() as reg:
        reg.register("churn", {"f": b"1"})
        reg._core.place.store.note([Note(f"{n:032x}", b"junk") for n in range(1, 50)])
        drained(reg).comment("churn/v1", "one")
        get, asked = Disk.get, []
        monkeypatch.setattr(
            Disk, "get", lambda self, name, *rest: asked.append(name) or get(self, name, *rest)
        )
        drained(reg).comment("churn/v1", "two")
        reg.uses("churn/v1")
        assert not [name for name in asked if name.startswith("inbox/")]


def test_uses_of_any_length_are_taken(reg: Registry) -> None:
    """A thousand uses with long names in many-byte letters are taken by several entries, none of them too large."""
    reg.register("churn", {"f": b"1"})
    reg._core.place.store.note([note(n, asked="\U0001f600" * 4000) for n in range(1, 60)])
    for _ in range(4):
        drained(reg).comment("churn/v1", "drains")
    assert len(reg.uses("churn/v1")) == 59
    assert reg.audit(action="uses.recorded").total > 1


def test_a_copy_leaves_junk_behind(make_home: MakeHome, tmp_path: Path) -> None:
    """A copy takes the notes along, also those of later releases, and no junk."""
    with make_home("folder").opened() as reg:
        reg.register("churn", {"f": b"1"})
        reg._core.place.store.note(
            [Note("1" * 32, b"[" * 5000), Note("2" * 32, b'{"kind": "opinion"}'), note(3)]
        )
        reg.copy_to(tmp_path / "copy")
    with hub.open(tmp_path / "copy") as copy:
        assert [one.id for one in copy._core.place.store.notes(10)] == [note(3).id, "2" * 32]


def test_strange_things_in_a_folder(make_home: MakeHome) -> None:
    """Folders, pipes, sockets, links and strange names in the inbox of a folder are passed over and counted."""
    home = make_home("folder")
    inbox = Path(home.url, "inbox")
    with home.opened() as reg:
        reg.register("churn", {"f": b"1"})
        inbox.mkdir(exist_ok=True)
        os.mkfifo(inbox / ("a" * 32 + ".json"))
        (inbox / ("b" * 32 + ".json")).mkdir()
        (inbox / ("c" * 32 + ".json")).symlink_to("/dev/zero")
        (inbox / "sub").mkdir()
        for name in ("README", "x y.json", "\udcff.json", "A" * 32 + ".json", "..json.json", "-\n.json"):
            (inbox / name).write_bytes(b"{}")
        with open(inbox / ("f" * 32 + ".json"), "wb") as file:
            file.truncate(1 << 40)  # a file with a hole: nobody may read it
        drained(reg).register("churn", {"f": b"2"})
        assert list(reg.uses("churn/v1")) == []
        assert "holds 10 things" in reg.verify().remarks[0]
        reg.collect_garbage(dry_run=False)
        assert reg.verify().ok
        assert not (inbox / ("a" * 32 + ".json")).exists()
        assert (inbox / "README").exists()  # somebody's own


def test_strange_cells_in_the_inbox(make_home: MakeHome) -> None:
    """Texts, numbers and huge cells where bytes belong, and ids that are none, are passed over and counted."""
    home = make_home("sqlite")
    with home.opened() as reg:
        reg.register("churn", {"f": b"1"})
        with sqlite3.connect(home.url.removeprefix("sqlite:///")) as conn:
            put = "INSERT INTO modelhub_inbox (id, body) VALUES (?, ?)"
            conn.executemany(put, [("a" * 32, json.dumps(USE)), ("b" * 32, 7), ("c" * 32, 1.5)])
            conn.execute(put.replace("(?, ?)", "(?, zeroblob(300000000))"), ("d" * 32,))
            conn.executemany(put, [("no id", b"{}"), (b"\x00" * 32, b"{}"), ("", b"{}")])
        conn.close()
        reg._core.place.store.note([note(1)])
        drained(reg).register("churn", {"f": b"2"})
        assert len(reg.uses("churn/v1")) == 1
        assert "holds 6 things" in reg.verify().remarks[0]
        reg.collect_garbage(dry_run=False)
        assert "holds 2 things" in reg.verify().remarks[0]


# --- pipes, devices, sockets, folders -------------------------------------------------------------------

CHILD = """
    import logging, sys, modelhub_sdk as hub
    logging.disable(logging.CRITICAL)
    def every_call(place):
        with hub.open(place, user="t", cache_dir=place + "-cache") as r:
            for call in (
                lambda: r.register("m", {"f": b"3"}), lambda: r.uses("m/v1"), lambda: r.verify(),
                lambda: r.resolve("m/v1"), lambda: r.resolve("m/latest", into=place + "-work"),
                lambda: r.collect_garbage(dry_run=False), lambda: r.copy_to(place + "-copy"), lambda: r.rebuild_index(),
            ):
                try: call()
                except hub.ModelHubError as error: print(type(error).__name__, error)
    for place in sys.argv[1:]:
        print("in", place, flush=True)
        try: every_call(place)
        except hub.ModelHubError as error: print(type(error).__name__, error)
    print("in the end", flush=True)
"""


def put(what: str, path: Path) -> None:
    """Put something that is no file at *path*, in the place of what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.parent.chmod(0o700)
        path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "socket":
        with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{short}/s")
            os.rename(f"{short}/s", path)
    else:
        path.symlink_to("/dev/zero")


KINDS = ["pipe", "folder", "socket", "device"] if os.environ.get("THOROUGH_TESTS") else ["pipe"]
PLACES = {
    "entry": "journal/0000000/0000000002.json",
    "first": "journal/0000000/0000000001.json",
    "next": "journal/0000000/0000000006.json",
    "note": "inbox/" + "e" * 32 + ".json",
    "pack": f"packs/0000000-0-{'0' * 64}.z",
    "checkpoint": f"checkpoints/0000000004-{schema.SCHEMA}-0-{'0' * 64}-{'0' * 64}.z",
    "mark": f"erased/0000000-{'0' * 32}",
    "blob": "",
    "copy": "",
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("what", KINDS)
def test_no_file_where_one_should_be(what: str, tmp_path: Path) -> None:
    """Whatever lies where a file should be, a call ends at once: with a typed error that names it, or without."""
    with hub.open(tmp_path / "good", user="t", cache_dir=tmp_path / "c") as reg:
        reg.register("m", {"f": b"1"})
        reg.register("m", {"f": b"2"})
        reg.approve("m/v1", "good")
        reg.approve("m/v2", "good")
        place = reg._core.registry_id
    blob = (
        f"blobs/{place}/sha256/{hashlib.sha256(b'1').hexdigest()[:2]}/{hashlib.sha256(b'1').hexdigest()[2:]}"
    )
    homes = {}
    for name, path in {**PLACES, "blob": blob, "copy": f"blobs/{place}/copy"}.items():
        homes[name] = tmp_path / name
        subprocess.run(["cp", "-r", tmp_path / "good", homes[name]], check=True)
        put(what, homes[name] / path)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), *homes.values()], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            said = child.communicate(timeout=100)[0]
        finally:
            child.kill()
    assert child.returncode == 0
    answers = {one.split()[0].rpartition("/")[2]: one for one in said.split("in ")[1:] if one.startswith("/")}
    assert said.endswith("in the end\n")
    for name in ("entry", "first", "next"):
        assert PLACES[name] in said, (name, answers)
        assert "SequenceTaken" not in said


def test_a_bundle_that_is_a_pipe(reg: Registry, tmp_path: Path) -> None:
    """A pipe or a folder for a bundle is a typed error at once."""
    os.mkfifo(tmp_path / "bundle.zip")
    with pytest.raises(ModelHubError, match="FIFO"):
        reg.import_bundle(tmp_path / "bundle.zip")
    with pytest.raises(ModelHubError, match=r"bundle|folder"):
        reg.import_bundle(tmp_path)


def test_an_entry_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal's file beyond the bound is not read, and the error says the bound; none is written either."""
    with hub.open(tmp_path / "r", user="t") as reg:
        reg.register("m", {"f": b"1"})
    entry = tmp_path / "r/journal/0000000/0000000003.json"
    with open(entry, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelHubError, match=rf"0000000003\.json.*{LARGEST_ENTRY:,}"):
        hub.open(tmp_path / "r", user="t", cache_dir=tmp_path / "c").register("m", {"f": b"2"})
    entry.unlink()
    monkeypatch.setattr("modelhub_sdk.stores.files.LARGEST_ENTRY", 3000)
    with hub.open(tmp_path / "r", user="t") as reg, pytest.raises(ModelHubError, match="limit"):
        reg.comment("m/v1", "x" * 3000)


def test_an_object_that_is_too_large(s3_bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an object store no more is fetched than may be there; an empty object is what it is."""
    from modelhub_sdk.errors import InvalidDocument
    from modelhub_sdk.stores.files import Objects

    monkeypatch.setattr("modelhub_sdk.stores.files._RANGE", 4)
    bucket = s3_bucket.url.removeprefix("s3://")
    medium = Objects("s3", bucket, {})
    for name, data in {"empty": b"", "eight": b"12345678", "nine": b"123456789"}.items():
        medium.create(name, data)
    assert medium.get("empty", 8) == b""
    assert medium.get("eight", 8) == b"12345678"
    assert medium.get("none", 8) is None
    assert [b"".join(medium.pieces(name, 8)) for name in ("empty", "eight", "none")] == [
        b"",
        b"12345678",
        b"",
    ]
    for read in (medium.get, lambda *a: list(medium.pieces(*a))):
        with pytest.raises(InvalidDocument, match="nine"):
            read("nine", 8)


# --- bombs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a full journal folder, a pack and a checkpoint."""
    place = tmp_path_factory.mktemp("thousand") / "registry"
    with hub.open(place, user="t", cache_dir=place.parent / "c0") as reg:
        reg.register("m", {"w": b"1"})
        (*_, last) = reg._core.place.store.read(0)
    for n in range(1010):
        seal = ev.Sealer(os.urandom)
        entry = ev.Entry(
            seq=last.seq + 1,
            id=f"{n:032x}",
            scope="registry",
            at=datetime.now(UTC),
            actor=seal("t"),
            via=Frozen(sdk="test"),
            events=(ev.Unknown(name="something.later", data={"n": n}),),
        )
        last = codec.encode(entry, seal.texts, last.chain)
        path = place / _entry_name(last.seq)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_printed(last))
    with hub.open(place, user="t", cache_dir=place.parent / "c") as reg:
        reg.models()
    assert os.listdir(place / "packs") and os.listdir(place / "checkpoints")
    return place


BOMBS = ["zeros", "lines", "huge"] if os.environ.get("THOROUGH_TESTS") else ["zeros"]
BOMB = """
    import resource, sys, logging
    logging.disable(logging.CRITICAL)
    import modelhub_sdk as hub, modelhub_sdk.registry, modelhub_sdk.stores.files, sqlite3, fsspec
    before = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (before + int(sys.argv[3]),) * 2)
    with hub.open(sys.argv[1], user="t", cache_dir=sys.argv[2]) as reg:
        assert reg.version("m/v1").number == 1
        assert len(list(reg._core.place.store.read(0))) == 1012
        assert reg.verify().ok
    print("right", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def bomb(size: int, piece: bytes) -> bytes:
    """Return something that unpacks to *size* bytes: the same compressed piece, again and again."""
    packer = zlib.compressobj(9)
    first = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (size // len(piece) - 1)


def _replace(folder: Path, data: bytes) -> None:
    (path,) = folder.iterdir()
    path.unlink()
    path.with_name(path.name[:-66] + hashlib.sha256(data).hexdigest() + ".z").write_bytes(data)


@pytest.mark.parametrize("where", ["packs", "checkpoints"])
@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb(where: str, what: str, thousand: Path, tmp_path: Path) -> None:
    """A small pack or checkpoint that unpacks to gigabytes, or a huge one, is passed over within bounded memory."""
    place = tmp_path / "registry"
    subprocess.run(["cp", "-r", thousand, place], check=True)
    if where == "packs":
        for path in (place / "checkpoints").iterdir():
            path.unlink()
    if what == "huge":
        (path,) = (place / where).iterdir()
        os.truncate(path, 1 << 40)
    else:
        _replace(place / where, bomb(1 << 30, (b"\n" if what == "lines" else b"\0") * (1 << 20)))
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BOMB), place, tmp_path / "cache", str(400 << 20)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert child.stdout.startswith("right"), child.stderr[-2000:]


def test_a_folder_too_large_for_a_pack_is_not_packed(
    thousand: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody packs what nobody would unpack; the entries are read one by one."""
    place = tmp_path / "registry"
    subprocess.run(["cp", "-r", thousand, place], check=True)
    for name in ("stores.files", "stores.shelf"):
        monkeypatch.setattr(f"modelhub_sdk.{name}.LARGEST_PACK", 100_000)
    with hub.open(place, user="t", cache_dir=tmp_path / "c1") as reg:
        reg.rebuild_index()
        assert reg.version("m/v1").number == 1
    assert LARGEST_PACK > 1_000_000
    assert os.listdir(place / "packs") == []


def test_a_checkpoint_with_a_million_tables(tmp_path: Path) -> None:
    """What SQLite would read for minutes to know the tables of a checkpoint is given up at once."""
    from modelhub_sdk.ports import Checkpoint
    from modelhub_sdk.stores.private import _is_sound

    with sqlite3.connect(tmp_path / "x", isolation_level=None) as conn:
        conn.execute("CREATE TABLE a (x)")
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute("BEGIN")
        rows = ((f"v{n}", f"v{n}", f"CREATE VIEW v{n} AS SELECT 1") for n in range(30_000))
        conn.executemany("INSERT INTO sqlite_master VALUES ('view', ?, ?, 0, ?)", rows)
        conn.execute("COMMIT")
    conn.close()
    conn = sqlite3.connect(tmp_path / "x", isolation_level=None)
    assert not _is_sound(conn, Checkpoint(1, schema.SCHEMA, codec.GENESIS))
    conn.close()


def test_an_id_that_is_not_utf8_stops_nobody(tmp_path: Path) -> None:
    """SQLite keeps texts that are not UTF-8: as a note's id such a text is passed over and counted."""
    with hub.open(f"sqlite:///{tmp_path}/r.db", user="tester") as reg:
        reg.register("m", {"a": b"1"})
        with closing(sqlite3.connect(tmp_path / "r.db", isolation_level=None)) as conn:
            conn.execute("INSERT INTO modelhub_inbox VALUES (CAST(x'61ff' AS TEXT), x'7b7d')")
            conn.execute("INSERT INTO modelhub_inbox VALUES (x'ff00', x'7b7d')")
        reg.resolve("m/v1")
        assert len(list(reg.uses("m/v1"))) == 1
        reg.collect_garbage(dry_run=False)
        verification = reg.verify()
        assert verification.ok
        assert "2 things" in verification.remarks[0]
        assert reg.register("m", {"a": b"2"}).number == 2


def test_a_dropped_inbox_is_made_again(tmp_path: Path) -> None:
    """A table that is missing beside the index is made by the next handle that may write."""
    url = f"sqlite:///{tmp_path}/r.db"
    with hub.open(url, user="tester") as reg:
        reg.register("m", {"a": b"1"})
    with closing(sqlite3.connect(tmp_path / "r.db", isolation_level=None)) as conn:
        conn.execute("DROP TABLE modelhub_inbox")
        conn.execute("DROP TABLE modelhub_erased")
    with hub.open(url, user="tester") as reg:
        reg.resolve("m/v1")
        assert len(list(reg.uses("m/v1"))) == 1


@pytest.mark.parametrize("suffix", ["", "-journal", "-wal", "-shm"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_pipe_for_a_file_of_sqlite(suffix: str, read_only: bool, tmp_path: Path) -> None:
    """A pipe in the place of a database, or of what SQLite keeps beside it, is a typed error and never waited for."""
    if suffix:
        with hub.open(f"sqlite:///{tmp_path}/r.db", user="tester") as reg:
            reg.register("m", {"a": b"1"})
    path = Path(f"{tmp_path}/r.db{suffix}")
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(hub.ModelHubError, match="FIFO"):
        hub.open(f"sqlite:///{tmp_path}/r.db", user="tester", read_only=read_only)


def test_repair_waits_for_no_pipe(tmp_path: Path) -> None:
    """A pipe as a source of `repair` is a typed error."""
    os.mkfifo(tmp_path / "pipe")
    with hub.open("memory://", user="tester") as reg, pytest.raises(hub.ModelHubError, match="FIFO"):
        reg.repair(tmp_path / "pipe")
