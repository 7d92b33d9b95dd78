"""Opening: what a URL may be, what is made, what is refused, and what the environment says."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import re
import sqlite3
import stat
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.hub import default
from modelhub_sdk.stores import connections
from modelhub_sdk.stores import sql as sqlite_stores


def works(reg: Registry) -> str:
    """Register and resolve once; return where the registry is."""
    with reg:
        reg.register("m", {"f": b"1"})
        assert Path(reg.resolve("m/v1"), "f").read_bytes() == b"1"
        return reg.url


# --- URLs


@pytest.mark.parametrize(
    ("url", "is_at"),
    [
        ("sqlite:///{t}/a.db", "sqlite:///{t}/a.db"),
        ("sqlite:///rel.db", "sqlite:///{t}/cwd/rel.db"),
        ("SQLite:///rel.db", "sqlite:///{t}/cwd/rel.db"),
        ("sqlite:///~/home.db", "sqlite:///{h}/home.db"),
        ("sqlite:///new folder/é.db", "sqlite:///{t}/cwd/new folder/é.db"),
        ("reg", "file://{t}/cwd/reg"),
        ("reg/", "file://{t}/cwd/reg"),
        ("./a/b", "file://{t}/cwd/a/b"),
        ("file://{t}/reg", "file://{t}/reg"),
        ("{t}/100% & ä", "file://{t}/100% & ä"),
        ("~/reg", "file://{h}/reg"),
        ("memory://", "memory://"),
        ("memory://named", "memory://named"),
    ],
)
def test_urls(url: str, is_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A SQLite URL, a folder in any form, a memory: made on first use, found again under one canonical URL."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    places = {"t": tmp_path, "h": os.environ["HOME"]}
    found = works(hub.open(url.format(**places)))
    assert found == is_at.format(**places)


def test_paths_as_values(tmp_path: Path):
    """A pathlib.Path is a folder; it is the same registry as its text."""
    with hub.open(tmp_path / "reg") as one, hub.open(str(tmp_path / "reg")) as other:
        assert one.id == other.id
        one.register("m", {"f": b"1"})
        assert other.version("m/v1").number == 1


@pytest.mark.parametrize(
    "url",
    [
        "", "  ", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:models.db", "sqlite:/models.db",
        "sqlite:///x.db?mode=memory", "sqlite:///x.db#a", "models.db", "x.sqlite3", "a\nb", "a\0b", "foo://bar",
        "mysql://h/d", "postgresql:h/d", "host=h dbname=d", "s3://", "s3://bucket/../x", "s3://k:s@bucket",
        "postgresql://h/d/e", "postgresql://h/d?options=-c%20x", "postgresql://h/d?sslmode=x&foo=1",
        "postgresql://h:99999999/d", 7, None.__class__, b"\xff", ["x"],
    ],
    ids=repr,
)  # fmt: skip
def test_urls_that_name_nothing(url: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Refused as InvalidURI (or InvalidName) with the forms that there are, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises((hub.InvalidURI, hub.InvalidName)) as caught:
        hub.open(url)
    assert len(str(caught.value)) < 500
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "github", "zip"])
def test_places_that_cannot_keep_a_journal(scheme: str):
    """A file system without put-if-absent is UnsafeStore, with what to use instead."""
    with pytest.raises(hub.UnsafeStore, match="PostgreSQL"):
        hub.open(f"{scheme}://host/path")


def test_files_that_are_something_else(tmp_path: Path):
    """A text file, another program's database, a folder as SQLite, a file as folder: refused, and left alone."""
    import sqlite3

    (tmp_path / "text.db").write_text("hello " * 100)
    with sqlite3.connect(tmp_path / "other.db") as conn:
        conn.execute("CREATE TABLE mine (a)")
    conn.close()
    (tmp_path / "folder").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for url, error in [
        (f"sqlite:///{tmp_path}/text.db", hub.StoreUnavailable),
        (f"sqlite:///{tmp_path}/other.db", hub.NotAllowed),
        (f"sqlite:///{tmp_path}/folder", hub.InvalidURI),
        (f"{tmp_path}/text.db", hub.InvalidURI),
        (f"{tmp_path}/photos", hub.NotFound),
    ]:
        with pytest.raises(error):
            hub.open(url)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


# --- what is made


def test_create(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A local registry is made on first use and says so in the log; create=False never makes one."""
    for url in (f"sqlite:///{tmp_path}/r.db", str(tmp_path / "reg")):
        with pytest.raises(hub.NotFound, match="create=True"):
            hub.open(url, create=False)
        with pytest.raises(hub.NotFound, match="read-only"):
            hub.open(url, read_only=True)
        assert os.listdir(tmp_path) == []
    for url in (f"sqlite:///{tmp_path}/r.db", str(tmp_path / "reg")):
        with caplog.at_level(logging.INFO, "modelhub_sdk"):
            caplog.clear()
            hub.open(url).close()
            assert "made a new registry" in caplog.text
            caplog.clear()
            hub.open(url, create=False).close()
            hub.open(url, create=True).close()
            assert caplog.text == ""


def test_create_on_postgresql(postgres_db: str, tmp_path: Path):
    """PostgreSQL needs create=True and a place for artifacts, by argument, by URL or by the environment."""
    with pytest.raises(hub.NotFound, match="create=True"):
        hub.open(postgres_db, artifacts=tmp_path / "art")
    with pytest.raises(hub.InvalidName, match="artifacts"):
        hub.open(postgres_db, create=True)
    with hub.open(f"{postgres_db}?artifacts={tmp_path}/art", create=True) as reg:
        reg.register("m", {"f": b"1"})
        assert any((tmp_path / "art").rglob("*"))
    with hub.open(postgres_db) as reg:
        assert Path(reg.resolve("m/v1"), "f").read_bytes() == b"1"


def test_create_on_object_stores(s3_bucket: Any):
    """An object store needs create=True; afterwards the URL alone is enough."""
    url = f"{s3_bucket.url}/models"
    with pytest.raises(hub.NotFound, match="create=True"):
        hub.open(url)
    with hub.open(url, create=True) as reg:
        reg.register("m", {"f": b"1"})
    with hub.open(url + "/", create=False) as reg:
        assert reg.latest("m") is None


def test_a_database_server_that_is_away(pg_proxy: Any, tmp_path: Path):
    """A server that does not answer is StoreUnavailable, at once, with the place."""
    with pg_proxy.away(), pytest.raises(hub.StoreUnavailable, match="127.0.0.1"):
        hub.open(pg_proxy.url, artifacts=tmp_path, create=True)


# --- artifacts


def test_artifacts_are_a_fact_of_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Set when it is made, known ever after; the same value again is fine, another one is a Conflict."""
    url = f"sqlite:///{tmp_path}/r.db"
    with hub.open(url, artifacts=tmp_path / "art") as reg:
        reg.register("m", {"f": b"1"})
    for same in (None, str(tmp_path / "art"), f"file://{tmp_path}/art", f"{tmp_path}/x/../art/"):
        with hub.open(url, artifacts=same) as reg:
            assert Path(reg.resolve("m/v1"), "f").read_bytes() == b"1"
    for other in (tmp_path / "other", "s3://bucket/x"):
        with pytest.raises(hub.Conflict, match="art"):
            hub.open(url, artifacts=other)
    monkeypatch.setenv("MODELHUB_ARTIFACTS", str(tmp_path / "other"))
    with pytest.raises(hub.Conflict):
        hub.open(url)
    assert not (tmp_path / "other").exists()


def test_artifacts_by_default(tmp_path: Path):
    """Beside a SQLite file, below the root of a folder; saying just that is no conflict."""
    works(hub.open(f"sqlite:///{tmp_path}/r.db"))
    works(hub.open(tmp_path / "reg"))
    assert any((tmp_path / "r.db.artifacts").rglob("*"))
    assert any((tmp_path / "reg" / "blobs").rglob("*"))
    hub.open(f"sqlite:///{tmp_path}/r.db", artifacts=tmp_path / "r.db.artifacts").close()


def test_a_registry_that_was_moved(tmp_path: Path):
    """Default artifacts move along with the SQLite file and the folder."""
    works(hub.open(f"sqlite:///{tmp_path}/r.db"))
    works(hub.open(tmp_path / "reg"))
    (tmp_path / "new").mkdir()
    for name in os.listdir(tmp_path):
        if name != "new":
            (tmp_path / name).rename(tmp_path / "new" / name)
    for url in (f"sqlite:///{tmp_path}/new/r.db", tmp_path / "new" / "reg"):
        with hub.open(url) as reg:
            assert Path(reg.resolve("m/v1", into=tmp_path / "in", overwrite=True), "f").read_bytes() == b"1"
            assert reg.verify()


@pytest.mark.parametrize(
    "artifacts", ["", " ", "x::y", "foo://bar", "s3://k:s3cr3t@b", "s3://b?x=s3cr3t", "a\0b", 7, b"\0"]
)
def test_artifacts_that_name_nothing(artifacts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A place that cannot be one is refused before a registry is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises((hub.InvalidURI, hub.InvalidName)) as caught:
        hub.open(f"sqlite:///{tmp_path}/r.db", artifacts=artifacts)
    assert "s3cr3t" not in str(caught.value)
    assert os.listdir(tmp_path) == []


# --- the environment


def test_the_default_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without a URL: $MODELHUB_REGISTRY, else a SQLite file in the user's data folder."""
    with hub.open() as reg:
        assert reg.url.startswith(f"sqlite:///{os.environ['XDG_DATA_HOME']}")
    monkeypatch.setenv("MODELHUB_REGISTRY", str(tmp_path / "reg"))
    with hub.open() as reg:
        assert reg.url == f"file://{tmp_path}/reg"
    with hub.open(f"sqlite:///{tmp_path}/r.db") as reg:
        assert reg.url == f"sqlite:///{tmp_path}/r.db"


@pytest.mark.parametrize("name", ["REGISTRY", "ARTIFACTS", "CACHE_DIR", "USER", "PROJECT", "LINK"])
@pytest.mark.parametrize("value", ["", "  "])
def test_settings_that_are_empty(name: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A variable that is set and empty means something else on each machine: InvalidName that names it."""
    monkeypatch.setenv("MODELHUB_" + name, value)
    with pytest.raises(hub.InvalidName, match="MODELHUB_" + name):
        url = None if name == "REGISTRY" else f"sqlite:///{tmp_path}/r.db"
        with hub.open(url) as reg:
            reg.register("m", {"f": b"1"})
            reg.resolve("m/v1", into=tmp_path / "in")


def test_who_acts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """user=, $MODELHUB_USER, the Valohai execution's creator, git's user.email, the login name: in this order."""
    cwd = tmp_path / "work"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    config = tmp_path / "config"
    config.mkdir()
    (config / "execution.json").write_text('{"valohai.creator-email": "val@example.org"}')
    (cwd / ".git").mkdir()
    (cwd / ".git" / "config").write_text("[user]\n\tname = G\n\temail = git@example.org\n")
    monkeypatch.setenv("VH_CONFIG_DIR", str(config))

    def who(**given: Any) -> str:
        with hub.open("memory://", **given) as reg:
            return reg.user

    assert who(user="given") == "given"
    assert who() == "tester"
    monkeypatch.delenv("MODELHUB_USER")
    assert who() == "val@example.org"
    (config / "execution.json").write_text("[not what is expected")
    assert who() == "git@example.org"
    (cwd / ".git" / "config").write_text("[user\nemail = \x1b[2J")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "login")
    assert who() == "login"
    monkeypatch.setattr("getpass.getuser", lambda: (_ for _ in ()).throw(KeyError("no passwd entry")))
    assert who() == f"uid:{os.getuid()}"


@pytest.mark.parametrize(
    "user", ["system", "System", "", " ", "a\nb", "\u202eanna", "a\u200bb", "x" * 10_000, 7, b"a", "\ud800"]
)
def test_users_that_are_none(user: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A reserved, invisible or unprintable user is InvalidName, as an argument and in the environment; nothing is made."""
    url = f"sqlite:///{tmp_path}/r.db"
    with pytest.raises(hub.InvalidName):
        hub.open(url, user=user)
    if isinstance(user, str) and user.isascii():
        monkeypatch.setenv("MODELHUB_USER", user)
        with pytest.raises(hub.InvalidName):
            hub.open(url)
    assert os.listdir(tmp_path) == []


def test_the_cache_of_a_handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """cache_dir=, else $MODELHUB_CACHE_DIR, else the user's; never inside of the artifacts."""
    url = f"sqlite:///{tmp_path}/r.db"
    with hub.open(url, cache_dir=tmp_path / "c1") as reg:
        reg.register("m", {"f": b"1"})
        assert Path(reg.resolve("m/v1").path).is_relative_to(tmp_path / "c1")
    monkeypatch.setenv("MODELHUB_CACHE_DIR", str(tmp_path / "c2"))
    with hub.open(url) as reg:
        assert Path(reg.resolve("m/v1").path).is_relative_to(tmp_path / "c2")
    with pytest.raises(hub.ModelHubError, match="cache"):
        hub.open(url, cache_dir=tmp_path / "r.db.artifacts" / "cache")


# --- the handle


def test_a_handle_is_not_data(tmp_path: Path):
    """A registry cannot be pickled or copied; its text is its place."""
    with hub.open(f"sqlite:///{tmp_path}/r.db") as reg:
        assert repr(reg) == f"<Registry sqlite:///{tmp_path}/r.db>"
        for call in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="open it again"):
                call(reg)
    with pytest.raises(TypeError, match="open"):
        Registry(f"sqlite:///{tmp_path}/r.db")  # type: ignore[arg-type]


def test_read_only_leaves_no_trace(tmp_path: Path):
    """Opened read-only, SQLite is read without a write: also from a folder that nobody can write to."""
    folder = tmp_path / "ro"
    folder.mkdir()
    with hub.open(f"sqlite:///{folder}/r.db") as reg:
        reg.register("m", {"f": b"1"})
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.iterdir() if p.is_file()}
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with hub.open(f"sqlite:///{folder}/r.db", read_only=True) as reg:
            assert reg.version("m/v1").number == 1
            assert Path(reg.resolve("m/v1"), "f").read_bytes() == b"1"
    finally:
        folder.chmod(0o700)
    now = {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.iterdir() if p.is_file()}
    assert {name: now.get(name) for name in before} == before


def test_the_default_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """hub.resolve works on the registry of the enclosing use(), nested ones first, else on the one of open()."""
    monkeypatch.setattr("modelhub_sdk.hub._default", None)
    monkeypatch.setenv("MODELHUB_REGISTRY", f"sqlite:///{tmp_path}/default.db")
    regs = {}
    for name in ("a", "b", "default"):
        regs[name] = hub.open(f"sqlite:///{tmp_path}/{name}.db")
        regs[name].register("m", {"f": name.encode()})

    def content() -> str:
        return Path(hub.resolve("m/v1"), "f").read_text()

    with hub.use(regs["a"]) as entered:
        assert entered is regs["a"]
        assert content() == "a"
        with hub.use(regs["b"]):
            assert content() == "b"
        assert content() == "a"
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.append(content()))
        thread.start()
        thread.join()
        assert seen == ["a"]  # a thread that begins within the block
    assert content() == "default"
    got = hub.resolve("m/v1", tmp_path / "in", files="f")
    assert got.path == str(tmp_path / "in")
    default().close()
    assert content() == "default"  # opened again
    default().close()
    for reg in regs.values():
        reg.close()


def test_the_default_of_a_block_reaches_its_threads():
    """A worker thread that is started within `use` works on that registry, not on the machine's default."""
    import threading

    found: list[str] = []
    with hub.open("memory://") as reg, hub.use(reg):
        reg.approve(reg.register("m", {"f": b"1"}))
        thread = threading.Thread(target=lambda: found.append(hub.resolve("model://m/latest").uri))
        thread.start()
        thread.join()
    assert found == ["model://m/v1"]


@pytest.mark.parametrize("place", ["sqlite:///{t}/registy/models.db", "{t}/registy"])
def test_resolving_makes_no_registry(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A place that was mistyped is told, and nothing is made there; starting a run may make one."""
    monkeypatch.setattr("modelhub_sdk.hub._default", None)
    monkeypatch.setenv("MODELHUB_REGISTRY", place.format(t=tmp_path))
    with pytest.raises(hub.NotFound, match=r"There is no registry at .*registy"):
        hub.resolve("model://m/latest")
    assert not (tmp_path / "registy").exists()
    monkeypatch.chdir(tmp_path)
    with hub.start_run("first") as run:
        run.register("m", {"f": b"1"})
    assert Path(hub.resolve("m/v1"), "f").read_bytes() == b"1"
    default().close()


@pytest.mark.parametrize("place", ["sqlite:///{t}/mount/models.db", "{t}/mount"])
def test_a_registry_that_went_away(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where a mount was lost, what is in the cache still resolves, nothing is made, and it is found again later."""
    url = place.format(t=tmp_path)
    with hub.open(url) as reg:
        reg.approve(reg.register("m", {"f": b"1"}))
        reg.resolve("m/latest")
    monkeypatch.setattr("modelhub_sdk.hub._default", None)
    monkeypatch.setenv("MODELHUB_REGISTRY", url)
    monkeypatch.setattr("modelhub_sdk.hub._AGAIN", 0.0)
    (tmp_path / "mount").rename(tmp_path / "lost")
    assert Path(hub.resolve("m/v1"), "f").read_bytes() == b"1"
    with pytest.raises(hub.Offline, match=r"There is no registry at .*mount"):
        hub.resolve("m/latest")
    with hub.open(url, read_only=True) as reg:
        assert Path(reg.resolve("m/v1"), "f").read_bytes() == b"1"
    assert not (tmp_path / "mount").exists()
    (tmp_path / "lost").rename(tmp_path / "mount")
    assert hub.resolve("m/latest").uri == "model://m/v1"
    default().close()


def test_an_empty_registry_is_named(tmp_path: Path):
    """Who asks a registry without any model has probably another one in mind."""
    with hub.open(tmp_path / "other") as reg:
        with pytest.raises(hub.NotFound, match=r"'m'.*'file://.*other' has no models at all"):
            reg.resolve("m/v1")
        reg.register("n", {"f": b"1"})
        with pytest.raises(hub.NotFound) as caught:
            reg.resolve("m/v1")
        assert "at all" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://ada:s3cr3t@127.0.0.1:9/models", "onnection refused"),
        ("postgresql://ada:s3cr3t@no-such-host.invalid/models", "host name|not known|does not exist"),
    ],
)
def test_a_database_that_is_not_there(url: str, why: str):
    """The error says what is the matter, in words that quote nothing that was typed."""
    pytest.importorskip("psycopg")
    with pytest.raises(hub.StoreUnavailable, match=why) as caught:
        hub.open(url, artifacts="s3://b/x")
    assert "s3cr3t" not in str(caught.value)


def test_an_outage_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """While a registry takes long to say that it does not answer, what the cache has is answered at once."""
    url = f"sqlite:///{tmp_path}/r.db"
    with hub.open(url) as reg:
        reg.register("m", {"f": b"1"})
        reg.resolve("m/v1")
    monkeypatch.setattr("modelhub_sdk.hub._default", None)
    monkeypatch.setenv("MODELHUB_REGISTRY", url)
    tried = []

    def times_out(*_: Any, **__: Any) -> Any:
        tried.append(1)
        time.sleep(0.3)
        raise hub.StoreUnavailable("It does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr("modelhub_sdk.core._first", times_out)
        for _ in range(3):
            assert Path(hub.resolve("m/v1"), "f").read_bytes() == b"1"
    assert tried == [1]
    monkeypatch.setattr("modelhub_sdk.hub._AGAIN", 0.0)
    assert hub.resolve("m/v1").as_of > datetime.now(UTC) - timedelta(seconds=5)
    default().close()


# --- a file that others are just making


@pytest.mark.parametrize("lock", ["EXCLUSIVE", "IMMEDIATE"])
def test_a_fresh_file_that_another_process_holds_is_waited_for(lock: str, tmp_path: Path) -> None:
    """Opening a fresh SQLite file waits for its lock, although SQLite itself does not wait to change the mode."""
    holder = sqlite3.connect(tmp_path / "r.db", isolation_level=None, check_same_thread=False)
    holder.execute(f"BEGIN {lock}")
    holder.execute("CREATE TABLE other (x)")
    timer = threading.Timer(0.4, holder.execute, ["ROLLBACK"])
    timer.start()
    try:
        with hub.open(f"sqlite:///{tmp_path}/r.db") as reg:
            assert timer.finished.is_set()
            assert reg.register("m", {"f": b"x"}).number == 1
    finally:
        timer.join()
        holder.close()


def test_busy_claims_no_wait_that_did_not_happen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a locked file says how long this call tried."""
    monkeypatch.setattr(connections, "PATIENCE", 0.2)
    with closing(sqlite3.connect(tmp_path / "r.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        begun = time.monotonic()
        with (
            monkeypatch.context() as patch,
            pytest.raises(hub.Busy, match=r"gave up after (\d+\.\d) s") as caught,
        ):
            patch.setattr(sqlite_stores, "sqlite_connect", partial(connections.sqlite_connect, timeout=0.2))
            hub.open(f"sqlite:///{tmp_path}/r.db")
        seconds = float(re.search(r"after (\d+\.\d) s", str(caught.value))[1])  # type: ignore[index]
        assert seconds <= time.monotonic() - begun + 0.1
