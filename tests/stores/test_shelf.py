"""Packs and checkpoints beside a journal of files: a fresh machine is ready at once, and nothing is believed too much."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.index import schema
from modelhub_sdk.stores import files, shelf
from modelhub_sdk.stores.files import Disk, FileStore
from modelhub_sdk.stores.shelf import KEPT, Shelf
from modelhub_sdk.verification import _digests
from tests.support.homes import files_in

FOLDER = shelf.FOLDER if os.environ.get("THOROUGH_TESTS") else 100
"""Entries in a full folder: a tenth of what is usual is packed and published by the same code."""
ENTRIES = 2 * FOLDER + 3 * FOLDER // 10
SECRET = "call Jane on 555 0199"


@pytest.fixture(scope="module", autouse=True)
def _small_folders() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shelf, "FOLDER", FOLDER)
        patch.setattr(files, "FOLDER", FOLDER)
        patch.setattr(FileStore, "every", FOLDER)
        yield


@pytest.fixture(scope="module")
def long(_small_folders: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a journal of `ENTRIES` entries, and nothing derived from it."""
    place = tmp_path_factory.mktemp("long") / "registry"
    with hub.open("memory://", user="ann") as reg:
        reg.register("churn", {"m.bin": b"weights"}, note=SECRET)
        reg.approve("churn/v1", "good")
        for n in range(ENTRIES - 4):
            reg.edit_version("churn/v1", fields={"n": n})
        reg.register("churn", {"m.bin": b"newer"})
        reg.copy_to(place)
    for derived in ("packs", "checkpoints", "erased"):
        shutil.rmtree(place / derived, ignore_errors=True)
    return place


@pytest.fixture
def place(long: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(long, tmp_path / "registry"))


class Client:
    """Opens the place with an empty cache each time, and counts what is asked of the medium."""

    def __init__(self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place, self._tmp_path, self._n = place, tmp_path, 0
        self.calls: Counter[str] = Counter()
        for name in ("get", "pieces", "names", "create", "delete", "replace"):
            original = getattr(Disk, name)
            label = "get" if name == "pieces" else name

            def counted(medium: Any, path: str, *rest: Any, _f: Any = original, _n: str = label) -> Any:
                self.calls[f"{_n} {path.partition('/')[0]}"] += 1
                return _f(medium, path, *rest)

            monkeypatch.setattr(Disk, name, counted)

    def open(self, **options: Any) -> Registry:
        self._n += 1
        self.calls.clear()
        reg = hub.open(self.place, cache_dir=self._tmp_path / f"cache{self._n}", user="bob", **options)
        reg.models()
        return reg

    def derived(self) -> list[str]:
        return sorted(n for n in files_in(self.place) if n.startswith(("packs/", "checkpoints/", "erased/")))

    def checkpoint(self) -> Path:
        return max((self.place / "checkpoints").iterdir())


@pytest.fixture
def client(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    return Client(place, tmp_path, monkeypatch)


def published(client: Client) -> Client:
    """Let a first client derive what there is to derive."""
    with client.open() as reg:
        assert reg.version("churn/v1").fields["n"] == ENTRIES - 5
    return client


def tables(reg: Registry) -> dict[str, str]:
    with reg._core.ledger.reading() as sql:
        return _digests(sql)


def check(reg: Registry) -> None:
    """The index is that of the entries, and all of it verifies."""
    assert reg.version("churn/v1").fields["n"] == ENTRIES - 5
    assert reg.resolve("churn/latest").version.number == 1
    found = reg.verify()
    assert found.ok, found.problems
    mine = tables(reg)
    reg.rebuild_index()
    assert tables(reg) == mine


def test_a_fresh_client_begins_with_a_checkpoint(client: Client) -> None:
    """The first client derives packs and a checkpoint; the next asks for the entries after it, and no other."""
    assert not client.derived()
    published(client)
    assert [name.partition("/")[0] for name in client.derived()] == ["checkpoints", "packs", "packs"]
    with client.open() as reg:
        assert reg.version("churn/v1").note == SECRET
        assert client.calls["get checkpoints"] == 1
        assert client.calls["get journal"] < 10
        check(reg)
    assert client.calls["get packs"] <= 4  # the rebuild


def test_a_fresh_client_begins_with_packs(client: Client) -> None:
    """Without a checkpoint (of another release, say) full folders are read as one file each."""
    published(client)
    client.checkpoint().unlink()
    with client.open() as reg:
        assert client.calls["get packs"] == 2
        assert client.calls["get journal"] < ENTRIES - 2 * FOLDER + 40
        check(reg)
    assert client.calls["create checkpoints"] == 1


def test_commits_publish(client: Client) -> None:
    """A writer that passes a thousandth entry publishes; the newest checkpoints stay."""
    published(client)
    with client.open() as reg:
        for n in range(FOLDER - ENTRIES % FOLDER):
            reg.comment("churn/v1", f"{n}")
    names = sorted(os.listdir(client.place / "checkpoints"))
    tenth = FOLDER // 10
    assert [int(name[:10]) // tenth for name in names] == [ENTRIES // tenth, ENTRIES // tenth + 7]
    assert len(os.listdir(client.place / "packs")) == 3
    with client.open() as reg:
        reg.edit_version("churn/v1", note="later")
    assert len(os.listdir(client.place / "checkpoints")) == KEPT


def test_read_only_derives_nothing(client: Client) -> None:
    """Who opens read-only uses what there is and writes nothing."""
    client.open(read_only=True).close()
    assert not client.derived()
    published(client)
    there = client.derived()
    client.open(read_only=True).close()
    assert client.calls["get checkpoints"] == 1
    assert client.derived() == there
    assert not any(call.startswith(("create", "delete", "replace")) for call in client.calls)


def test_a_place_that_cannot_be_written(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may not write there works as ever."""
    from modelhub_sdk.errors import NotAllowed

    def refuse(self: Any, name: str, *rest: Any) -> None:
        raise NotAllowed(name)

    monkeypatch.setattr(Disk, "create", refuse)
    with client.open() as reg:
        assert len(reg.versions("churn")) == 2
    assert not client.derived()


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def sealed(path: Path, data: bytes) -> None:
    """Write *data* under the name that it should have."""
    path.unlink()
    path.with_name(path.name[:-66] + hashlib.sha256(data).hexdigest() + ".z").write_bytes(data)


def edited(*statements: str) -> Callable[[Path], None]:
    """A checkpoint that somebody changed who knows how it is made."""

    def damage(path: Path) -> None:
        file = path.parent.parent / "edited.db"
        file.write_bytes(zlib.decompress(path.read_bytes()))
        with sqlite3.connect(file) as conn:
            for statement in statements:
                conn.execute(statement)
        conn.close()
        sealed(path, zlib.compress(file.read_bytes()))
        file.unlink()

    return damage


def renamed(**parts: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        seq, number, marks, chain, digest = path.name.split("-")
        known = {"seq": seq, "schema": number, "marks": marks, "chain": chain} | parts
        path.rename(path.with_name("-".join([*known.values(), digest])))

    return damage


HEAD = f"UPDATE {schema.HEAD.full_name} SET "
DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: os.truncate(path, 500),
    "empty": lambda path: os.truncate(path, 0),
    "flipped": flipped,
    "not compressed": lambda path: sealed(path, b"junk"),
    "no database": lambda path: sealed(path, zlib.compress(b"junk" * 1000)),
    "half a database": lambda path: sealed(path, zlib.compress(zlib.decompress(path.read_bytes())[:40_000])),
    "a trigger": edited(f"CREATE TRIGGER t AFTER INSERT ON {schema.PREFIX}event BEGIN SELECT 1; END"),
    "a table less": edited(f"DROP TABLE {schema.PREFIX}gone"),
    "a table more": edited("CREATE TABLE more (a)"),
    "another head": edited(HEAD + "seq = seq - 1"),
    "another registry": edited(HEAD + f"chain = '{'0' * 64}'"),
    "no head": edited(f"DELETE FROM {schema.HEAD.full_name}"),
    "a later release": renamed(schema="999"),
    "another journal": renamed(chain="0" * 64),
    "ahead of the journal": renamed(seq="0000009999"),
    "made before an erasure": renamed(marks="7"),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a strange name": lambda path: path.rename(path.with_name("README")),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_bad_checkpoint(how: str, client: Client) -> None:
    """A checkpoint that does not fit is passed over, and the index made from what does."""
    published(client)
    DAMAGE[how](client.checkpoint())
    with client.open() as reg:
        assert client.calls["get journal"] < ENTRIES - 2 * FOLDER + 40
        check(reg)


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "not compressed", "no database", "gone"])
def test_a_bad_pack(how: str, client: Client) -> None:
    """A pack that does not fit is passed over, and its entries are read one by one."""
    published(client)
    client.checkpoint().unlink()
    DAMAGE[how](min((client.place / "packs").iterdir()))
    with client.open() as reg:
        assert client.calls["get journal"] >= FOLDER
        check(reg)
    assert len(os.listdir(client.place / "packs")) == 2  # the next client made it anew


def test_a_forged_pack(client: Client) -> None:
    """A pack with another entry in it, however well it is made, does not fit the journal and is not used."""
    published(client)
    client.checkpoint().unlink()
    path = max((client.place / "packs").iterdir())
    plain = zlib.decompress(path.read_bytes())
    forged = plain.replace(b'"number":1', b'"number":2', 1)
    assert forged != plain
    sealed(path, zlib.compress(forged))
    with client.open() as reg:
        check(reg)


def test_a_forged_checkpoint_is_found_by_verify(client: Client) -> None:
    """Who may write into the store can lie to those who begin there; `verify` sees it, `rebuild_index` mends it."""
    published(client)
    fact = schema.PREFIX + "fact"
    edited(f"UPDATE {fact} SET value = 'approved' WHERE name = 'status'")(client.checkpoint())
    with client.open() as reg:
        assert reg.version("churn/v2").status == "approved"
        problems = reg.verify().problems
        assert any("checkpoint" in one for one in problems)
        assert any("index differs" in one for one in problems)
        reg.rebuild_index()
        assert reg.version("churn/v2").status == "pending"


def holding(place: Path, words: str) -> list[str]:
    """Return the files in *place* that hold *words*, compressed or not."""
    found = []
    for name in files_in(place):
        data = (place / name).read_bytes()
        if name.endswith(".z"):
            data = zlib.decompress(data)
        if words.encode() in data:
            found.append(name)
    return found


def test_redacting(client: Client) -> None:
    """What is redacted is in nothing that was derived, neither before nor after."""
    published(client)
    assert len(holding(client.place, SECRET)) == 3
    with client.open() as reg:
        reg.redact("churn/v1", "note", "a name")
        assert not holding(client.place, SECRET)
        assert reg.version("churn/v1").note is None
    with client.open():
        assert client.calls["get packs"] == 1  # the other folder's
    assert {name.partition("/")[0] for name in client.derived()} == {"checkpoints", "packs", "erased"}
    assert len(os.listdir(client.place / "packs")) == 2
    assert not holding(client.place, SECRET)
    with client.open() as reg:
        assert client.calls["get checkpoints"] <= 1
        assert reg.verify().ok


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("what", ["packs", "checkpoints"])
def test_redacting_beside_a_publisher(
    what: str, killed: bool, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text that is redacted while it is being copied into something derived does not survive there.

    The publisher is held just before its file appears, until the redaction is over. Killed right after
    that, it leaves a file that nobody reads and that the next client deletes.
    """
    create = Disk.create
    redacted: list[str] = []

    class Killed(BaseException):
        pass

    def late(self: Disk, name: str, data: bytes) -> None:
        if name.startswith(what) and not redacted:
            redacted.append(name)
            with hub.open(client.place, cache_dir=tmp_path / "other", user="eve", read_only=False) as other:
                other._core.ledger._tidied = 10**9  # type: ignore[attr-defined]  # derives nothing itself
                other.redact("churn/v1", "note", "a name")
            create(self, name, data)
            if killed:
                raise Killed
            return
        create(self, name, data)

    monkeypatch.setattr(Disk, "create", late)
    monkeypatch.setattr("threading.excepthook", lambda args: None)
    client.open().close()
    assert redacted
    if killed:
        assert (client.place / redacted[0]).exists()
    monkeypatch.setattr(Disk, "create", create)
    with client.open() as reg:
        assert reg.version("churn/v1").note is None
        assert reg.verify().ok
    assert not holding(client.place, SECRET)


CHILD = """
    import sys, modelhub_sdk as hub
    from modelhub_sdk.stores import files, shelf
    shelf.FOLDER = files.FOLDER = files.FileStore.every = int(sys.argv[3])
    with hub.open(sys.argv[1], cache_dir=sys.argv[2]) as reg:
        print(reg.version("churn/v1").fields["n"], flush=True)
"""


def start(place: Path, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), place, cache, str(FOLDER)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_publishers_race(client: Client, tmp_path: Path) -> None:
    """Several processes that begin at once all answer right, and what they leave is sound."""
    children = [start(client.place, tmp_path / f"race{n}") for n in range(4)]
    assert [child.communicate()[0].strip() for child in children] == [str(ENTRIES - 5)] * 4
    assert all(child.returncode == 0 for child in children)
    with client.open() as reg:
        check(reg)
    assert not os.listdir(client.place / "tmp")


def test_killed_while_publishing(client: Client, tmp_path: Path) -> None:
    """Whenever a publisher is killed, the next client works, and what is left is swept."""
    for n in range(5):
        child = start(client.place, tmp_path / "killed")
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.03 * n)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        shutil.rmtree(client.place / "checkpoints", ignore_errors=True)
        for suffix in ("", "-wal", "-shm"):
            for file in (tmp_path / "killed" / "index").glob("*.sqlite" + suffix):
                file.unlink()
    child = start(client.place, tmp_path / "killed")
    assert child.communicate()[0].strip() == str(ENTRIES - 5)
    assert not [name for name in os.listdir(tmp_path / "killed" / "index") if "checkpoint" in name]
    with client.open() as reg:
        check(reg)


def test_copies(client: Client, tmp_path: Path) -> None:
    """A copy is made from packs as from entries, and has its own."""
    published(client)
    with client.open() as reg:
        reg.copy_to(tmp_path / "copy")
        assert [r.chain for r in reg._core.place.store.read(0)] == [
            r.chain
            for r in reg._core.place.store.entries(0)  # type: ignore[attr-defined]
        ]
    with hub.open(tmp_path / "copy", cache_dir=tmp_path / "c") as copy:
        check(copy)


@pytest.mark.timeout(120)
def test_on_an_object_store(s3_bucket: Any, tmp_path: Path) -> None:
    """It is the same on S3."""
    with hub.open("memory://", user="ann") as reg:
        reg.register("churn", {"m.bin": b"weights"}, note=SECRET)
        for n in range(FOLDER + 20):
            reg.edit_version("churn/v1", fields={"n": n})
        reg.copy_to(s3_bucket.url + "/r")
    with hub.open(s3_bucket.url + "/r", cache_dir=tmp_path / "a") as reg:
        reg.models()
    with hub.open(s3_bucket.url + "/r", cache_dir=tmp_path / "b") as reg:
        shelf: Shelf = reg._core.place.store.shelf  # type: ignore[attr-defined]
        assert len(shelf.checkpoints()) == len(shelf.packs()) == 1
        assert reg.version("churn/v1").fields["n"] == FOLDER + 19
        assert reg.verify().ok
        reg.redact("churn/v1", "note", "a name")
        assert not shelf.checkpoints() and not shelf.packs()
        assert reg.verify().ok


def test_marks_count(tmp_path: Path) -> None:
    """What was made before an erasure is void for everybody, and what is made after it is not."""
    shelf = Shelf(Disk(tmp_path), read_only=False)
    shelf.make_pack(3, lambda: b"first")
    other = Shelf(Disk(tmp_path), read_only=False)
    assert b"".join(other.pack(3)) == b"first"
    shelf.erased(3)
    assert not list(Shelf(Disk(tmp_path), read_only=False).pack(3))
    shelf.make_pack(3, lambda: b"second")
    shelf.erased(4)
    assert b"".join(Shelf(Disk(tmp_path), read_only=False).pack(3)) == b"second"
    assert not list(other.pack(3))  # it knew the first one only, and finds it gone
