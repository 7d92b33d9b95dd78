"""Copying a registry from any place to any place, and freezing it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry, moving
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.errors import (
    Conflict,
    DigestMismatch,
    InvalidName,
    InvalidURI,
    NotAllowed,
    StoreUnavailable,
)
from tests.support.homes import ALL, Home, check_sound

MakeHome = Callable[[str], Home]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], tuple[str, str | None]]:
    """Return a function from a kind of store to the URL of an empty place, and its artifacts where they must be told."""

    def make(kind: str) -> tuple[str, str | None]:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / 'copy' / 'new.db'}", None
        if kind == "folder":
            return str(tmp_path / "copy" / "folder"), None
        if kind == "s3":
            return request.getfixturevalue("s3_bucket").url + "/copied", None
        return request.getfixturevalue("second_db"), str(tmp_path / "copy" / "artifacts")

    return make


@pytest.fixture
def second_db(postgres_url: str) -> Any:
    """A second, empty PostgreSQL database."""
    from tests.support import postgres

    url = postgres.create_database(postgres_url)
    yield url
    postgres.drop_database(url)


def story(reg: Registry, tmp_path: Path) -> None:
    """Something of everything, with something erased and something purged."""
    os.chdir(tmp_path)
    reg.register("churn", {"m.bin": b"old", "same": b"same"}, metrics={"auc": 0.9}, note="call Jane")
    reg.register("churn", {f"{n}": b"%d" % n for n in range(1010)})
    reg.approve("churn/v1", "good")
    reg.attach("churn/v1", "roc.txt", b"curve")
    reg.purge("churn/v2", "too many", force=True)
    reg.create_dataset_version("clicks/v1", {"a.csv": b"data"}, aliases=["prod"])
    with reg.start_run("train", id="job", params={"lr": 0.1}, outputs=None) as run:
        run.log({"loss": 0.5}, step=1)
        run.register("churn", {"m.bin": b"trained"})


def alike(one: Registry, other: Registry) -> None:
    assert [record.chain for record in one._core.place.store.read(0)] == [
        record.chain for record in other._core.place.store.read(0)
    ]
    for ask in (
        lambda reg: reg.audit(limit=1000), lambda reg: reg.versions("churn"), lambda reg: reg.run("job"),
        lambda reg: reg.dataset("clicks"), lambda reg: reg.model("churn"), lambda reg: reg.upstream("churn/v3"),
        lambda reg: sorted(digest for digest, _ in reg._core.artifacts().digests()),
    ):  # fmt: skip
        assert ask(one) == ask(other)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (kind, target)
        for number, kind in enumerate(ALL)
        for target in (ALL if os.environ.get("THOROUGH_TESTS") else [ALL[number - 1]])
    ],
)
def test_from_anywhere_to_anywhere(
    kind: str, target: str, make_home: MakeHome, place: Any, tmp_path: Path
) -> None:
    """A copy answers everything as the original does, resolves, verifies, follows later, and takes over after a freeze."""
    url, artifacts = place(target)
    with make_home(kind).opened() as reg:
        story(reg, tmp_path)
        report = reg.copy_to(url, artifacts=artifacts)
        assert (report.entries, report.missing) == (reg.audit(limit=1)[0].seq, 0)
        with hub.open(url, artifacts=artifacts, cache_dir=tmp_path / "c2") as copy:
            alike(reg, copy)
            assert Path(copy.resolve("churn/latest").path, "m.bin").read_bytes() == b"old"
            assert copy.verify().ok, copy.verify().problems
        reg.redact("churn/v1", "note", "a name")
        reg.register("churn", {"m.bin": b"newest"})
        reg.freeze("moved")
        with pytest.raises(NotAllowed, match="moved"):
            reg.register("churn", {"m.bin": b"too late"})
        assert reg.resolve("churn/v4").version.number == 4
        again = reg.copy_to(url, artifacts=artifacts)
        assert 0 < again.entries < report.entries
        assert again.blobs == 1
        assert reg.copy_to(url, artifacts=artifacts).entries == 0
    with hub.open(url, artifacts=artifacts, cache_dir=tmp_path / "c2") as copy:
        assert copy.version("churn/v1").note is None
        assert b"Jane" not in b"".join(record.private for record in copy._core.place.store.read(0))
        assert copy.register("churn", {"m.bin": b"goes on"}).number == 5
        check_sound(copy)


def test_stated_artifacts_are_found_again(tmp_path: Path) -> None:
    """A copy of a registry whose artifacts were stated finds its own, not those of the original."""
    with hub.open(f"sqlite:///{tmp_path / 'a.db'}", artifacts=tmp_path / "far") as reg:
        reg.register("churn", {"m.bin": b"x"})
        reg.copy_to(f"sqlite:///{tmp_path / 'b' / 'b.db'}")
        reg.copy_to(tmp_path / "c", artifacts=tmp_path / "d")
    os.rename(tmp_path / "far", tmp_path / "gone")
    with hub.open(f"sqlite:///{tmp_path / 'b' / 'b.db'}") as copy:
        assert copy.verify().ok
        assert copy.stats().artifacts == str(tmp_path / "b" / "b.db.artifacts")
    with hub.open(tmp_path / "c", artifacts=tmp_path / "d") as copy:
        assert copy.verify().ok
    with pytest.raises(Conflict, match="keeps its artifacts"):
        hub.open(tmp_path / "c", artifacts=tmp_path / "elsewhere")


def test_another_registry_is_no_copy(reg: Registry, tmp_path: Path) -> None:
    """A place with another registry, one that went its own way, and the registry itself are refused, untouched."""
    reg.register("churn", {"m.bin": b"x"})
    other = f"sqlite:///{tmp_path / 'other.db'}"
    with hub.open(other) as opened:
        with pytest.raises(Conflict, match="another registry"):
            reg.copy_to(other)
        with pytest.raises(Conflict, match="another registry"):
            reg.copy_to(opened)
        assert opened.audit().total == 1
        with pytest.raises(Conflict, match="onto itself"):
            opened.copy_to(other)
    mine = f"sqlite:///{tmp_path / 'mine.db'}"
    reg.copy_to(mine)
    with hub.open(mine) as copy:
        assert reg.copy_to(copy).entries == 0
        copy.create_model("own")
    reg.create_model("other")
    with pytest.raises(Conflict, match="its own way"):
        reg.copy_to(mine)
    with pytest.raises(InvalidName, match="artifacts"):
        reg.copy_to("postgresql://nobody@localhost:1/none")


def test_a_damaged_file_is_not_copied(tmp_path: Path) -> None:
    """A wrong byte in the store stops the copy before the entry that names it; mended, the copy goes on."""
    with hub.open(f"sqlite:///{tmp_path / 'a.db'}") as reg:
        version = reg.register("churn", {"m.bin": b"x" * 100})
        (blob,) = Path(str(reg._core.artifacts().root)).rglob(version.files[0].digest[9:])
        blob.chmod(0o644)
        blob.write_bytes(b"y" * 100)
        with pytest.raises(DigestMismatch):
            reg.copy_to(tmp_path / "copy")
        blob.write_bytes(b"x" * 100)
        reg.copy_to(tmp_path / "copy")
        with hub.open(tmp_path / "copy") as copy:
            assert copy.verify().ok


@pytest.mark.timeout(120)
@pytest.mark.parametrize("target", ["sqlite", "folder"])
def test_a_killed_copy_goes_on(target: str, place: Any, tmp_path: Path) -> None:
    """kill -9 at any moment leaves a shorter registry; the next call completes it."""
    url, _ = place(target)
    home = f"sqlite:///{tmp_path / 'a.db'}"
    with hub.open(home) as reg:
        for n in range(60):
            reg.register("churn", {"m.bin": os.urandom(20_000), "n": b"%d" % n})
        code = f"""
            import modelhub_sdk as hub
            from modelhub_sdk import moving
            moving._BATCH = 5
            with hub.open({home!r}) as reg:
                print(flush=True)
                reg.copy_to({url!r})
        """
        kills = 0
        for turn in range(5):
            child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
            assert child.stdout is not None
            child.stdout.read(1)
            time.sleep(0.02 + 0.05 * turn)
            child.send_signal(signal.SIGKILL)
            kills += child.wait() == -signal.SIGKILL
            child.stdout.close()
        reg.copy_to(url)
        assert kills
        with hub.open(url) as copy:
            assert copy.verify().ok, copy.verify().problems
            assert copy.versions("churn", limit=100).total == 60
            check_sound(copy)


def test_uses_that_wait_are_copied(tmp_path: Path) -> None:
    """A use that is in the inbox only is in the copy too."""
    with hub.open(tmp_path / "a") as reg:
        reg.register("churn", {"m.bin": b"x"})
        reg.resolve("churn/v1")
        reg.copy_to(tmp_path / "b")
        with hub.open(tmp_path / "b") as copy:
            assert len(copy.uses("churn/v1")) == 1


def test_freezing(reg: Registry, tmp_path: Path) -> None:
    """A frozen registry refuses every change with who, when and why; reads go on; it can be undone."""
    reg.register("churn", {"m.bin": b"x"})
    reg.freeze("moved to the new bucket")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "o.bin").write_bytes(b"output")
    before = dict(reg._core.artifacts().digests())
    for change in (
        lambda: reg.register("churn", {"m.bin": b"y"}), lambda: reg.attach("churn/v1", "a.txt", b"z"),
        lambda: reg.add_evaluation("churn/v1", {"auc": 1}, files={"e.txt": b"e"}), lambda: reg.ingest(tmp_path / "out", keep="all"),
        lambda: reg.create_dataset_version("clicks/v1", {"a.csv": b"1"}),
        lambda: reg.approve("churn/v1"), lambda: reg.create_model("new"), lambda: reg.start_run("x", outputs=None),
        lambda: reg.freeze("again"), lambda: reg.edit_model("churn", title="New"), lambda: reg.configure(require="approved"),
    ):  # fmt: skip
        with pytest.raises(NotAllowed, match="frozen by .* moved to the new bucket"):
            change()
    assert dict(reg._core.artifacts().digests()) == before  # nothing is stored in vain
    assert reg.resolve("churn/v1").version.number == 1
    assert reg.audit(limit=1)[0].action == "registry.frozen"
    reg.unfreeze("a mistake")
    reg.unfreeze("again")
    reg.approve("churn/v1")
    assert [one.action for one in reg.audit(action="registry.thawed")] == ["registry.thawed"]
    reg.rebuild_index()
    reg.create_model("new")


def test_a_mark_is_kept(tmp_path: Path) -> None:
    """A store knows whether a copy keeps its blobs there."""
    store = BlobStore(tmp_path / "s", registry_id="r1")
    assert not store.is_marked()
    assert store.mark("sqlite:///a.db") == "sqlite:///a.db"
    assert store.mark("sqlite:///b.db") == "sqlite:///a.db"
    assert store.is_marked()
    assert list(store.digests()) == []


def test_a_mark_in_a_bucket_is_kept(s3_bucket: Any) -> None:
    """The first mark stays in a bucket too; one of an earlier release does not say whose it is."""
    store = BlobStore(f"{s3_bucket.url}/new", registry_id="r1")
    assert store.marked_for() is None
    assert (store.mark("s3://one"), store.mark("s3://two")) == ("s3://one", "s3://one")
    s3_bucket.put("old/r1/copy", b"1")
    assert BlobStore(f"{s3_bucket.url}/old", registry_id="r1").mark("s3://one") == ""


def test_copies_share_no_artifacts(tmp_path: Path) -> None:
    """A place with the artifacts of the original or of another copy is refused, by whatever path it is reached."""
    art = tmp_path / "art"
    with hub.open(f"sqlite:///{tmp_path / 'a.db'}", artifacts=tmp_path / "a") as reg:
        reg.register("churn", {"m.bin": b"x"})
        reg.copy_to(f"sqlite:///{tmp_path / 'b.db'}", artifacts=art)
        (tmp_path / "link").symlink_to(art)
        (tmp_path / "own").symlink_to(tmp_path / "a")
        (tmp_path / "alias.db").symlink_to(tmp_path / "a.db")
        for other in (art, tmp_path / "link"):
            with pytest.raises(Conflict, match="b.db"):
                reg.copy_to(f"sqlite:///{tmp_path / 'c.db'}", artifacts=other)
        with pytest.raises(Conflict, match="onto itself"):
            reg.copy_to(f"sqlite:///{tmp_path / 'c.db'}", artifacts=tmp_path / "own")
        with pytest.raises(Conflict, match="onto itself"):
            reg.copy_to(f"sqlite:///{tmp_path / 'alias.db'}")
    with hub.open(f"sqlite:///{tmp_path / 'b.db'}", artifacts=art) as copy:
        for other in (tmp_path / "a", tmp_path / "own"):
            with pytest.raises(Conflict, match="another registry"):
                copy.copy_to(tmp_path / "d", artifacts=other)
        copy.copy_to(tmp_path / "e")
        with pytest.raises(Conflict, match="another registry"):  # a copy that has entries is no excuse
            copy.copy_to(tmp_path / "e", artifacts=tmp_path / "a")
        copy.copy_to(tmp_path / "e")


def test_marks_of_earlier_releases(tmp_path: Path) -> None:
    """A mark that does not say whose it is serves the copy that is there already, and no new one."""
    with hub.open(f"sqlite:///{tmp_path / 'a.db'}") as reg:
        reg.register("churn", {"m.bin": b"x"})
        reg.copy_to(tmp_path / "b")
        (mark,) = (tmp_path / "b").rglob("copy")
        mark.chmod(0o644)
        mark.write_bytes(b"")
        assert reg.copy_to(tmp_path / "b").entries == 0
        with pytest.raises(Conflict, match="unknown which"):
            reg.copy_to(f"sqlite:///{tmp_path / 'c.db'}", artifacts=tmp_path / "b" / "blobs")


@pytest.mark.parametrize("killed", [False, True])
def test_purged_files_leave_the_copy(killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was purged here is deleted there by the next copy, also by one that follows a killed one; the rest stays."""
    url = f"sqlite:///{tmp_path / 'new.db'}"
    with hub.open(f"sqlite:///{tmp_path / 'a.db'}") as reg:
        reg.register("churn", {"a": b"personal", "b": b"shared"})
        reg.register("churn", {"b": b"shared", "c": b"again"})
        reg.copy_to(url)
        reg.purge("churn/v1", "asked to", force=True)
        reg.purge("churn/v2", "a mistake", files=["c"], force=True)
        reg.register("churn", {"c": b"again"})
        if killed:
            append = moving._append

            def dies(place: Any, record: Any) -> None:
                if b"blobs.deleted" in record.body:
                    raise KeyboardInterrupt
                append(place, record)

            with monkeypatch.context() as patch:
                patch.setattr(moving, "_append", dies)
                with pytest.raises(KeyboardInterrupt):
                    reg.copy_to(url)
        reg.copy_to(url)
        left = {one.read_bytes() for one in (tmp_path / "new.db.artifacts").rglob("*") if one.is_file()}
        assert left >= {b"shared", b"again"}
        assert b"personal" not in left
        with hub.open(url) as copy:
            assert copy.verify().ok, copy.verify().problems


def test_what_is_redacted_leaves_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is not in the copy when it was redacted and not erased here yet, and a redacted traceback goes."""
    url = f"sqlite:///{tmp_path / 'new.db'}"
    monkeypatch.chdir(tmp_path)

    def holders(text: bytes) -> list[str]:
        return [one.name for one in tmp_path.rglob("*") if one.is_file() and text in one.read_bytes()]

    with hub.open(f"sqlite:///{tmp_path / 'a.db'}") as reg:
        reg.register("churn", {"m.bin": b"x"}, note="SECRET-NOTE")
        with pytest.raises(ValueError, match="SECRET"), reg.start_run("t", id="r1", outputs=None):
            raise ValueError("SECRET-TRACE")
        reg.copy_to(tmp_path / "before")
        with monkeypatch.context() as patch:

            def killed(*_: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(Registry, "_erase", killed)
            with pytest.raises(KeyboardInterrupt):
                reg.redact("churn/v1", "note", "a name")
        reg.copy_to(url)
        reg.copy_to(tmp_path / "before")
        reg.redact("churn/v1", "note", "a name")
        with hub.open(url) as copy:  # a handle that stays open
            assert copy.run("r1").traceback
            reg.redact("run:r1", "exception", "a name")
            reg.copy_to(url)
            reg.copy_to(tmp_path / "before")
            assert copy.verify().ok, copy.verify().problems
        assert holders(b"SECRET-NOTE") == []
        assert holders(b"SECRET-TRACE") == []


def test_a_purge_beside_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody purges while it is copied is left out; what is lost and needed is counted as missing."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    send, once = moving._send, []

    def purged_first(*arguments: Any) -> None:
        if not once:
            once.append(1)
            with hub.open(url) as other:
                other.purge("churn/v1", "now", force=True)
                other._core.artifacts().delete(other.version("churn/v2").files[0].digest)
        send(*arguments)

    monkeypatch.setattr(moving, "_send", purged_first)
    with hub.open(url) as reg:
        reg.register("churn", {"m.bin": b"one"})
        reg.register("churn", {"m.bin": b"two"})
        reg.register("churn", {"m.bin": b"three"})
        report = reg.copy_to(tmp_path / "b")
        assert (report.blobs, report.missing) == (1, 1)


def test_an_open_copy_is_reached_by_its_own_handle(
    s3_bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The credentials of an open copy are used, and a handle that may not write is not written through."""
    options = {"key": os.environ["AWS_ACCESS_KEY_ID"], "secret": os.environ["AWS_SECRET_ACCESS_KEY"]}
    options |= {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    url = s3_bucket.url + "/copy"
    with hub.open(f"sqlite:///{tmp_path / 'a.db'}") as reg:
        reg.register("churn", {"m.bin": b"x"})
        reg.copy_to(url, storage_options=options)
        reg.register("churn", {"m.bin": b"y"})
        with hub.open(url, storage_options=options, read_only=True) as copy:
            with pytest.raises(NotAllowed, match="read-only"):
                reg.copy_to(copy)
            assert copy.versions("churn").total == 1
        with hub.open(url, storage_options=options) as copy:
            with pytest.raises(Conflict, match="keeps its artifacts"):
                reg.copy_to(copy, artifacts=tmp_path / "other")
            assert reg.copy_to(copy).entries == 1
            assert Path(copy.resolve("churn/v2").path, "m.bin").read_bytes() == b"y"


def test_no_place_for_a_copy(reg: Registry, request: pytest.FixtureRequest) -> None:
    """What names no place, or a bucket that is not there, is told in our own words."""
    for bad in (5, None, b"x"):
        with pytest.raises(InvalidURI, match="copy_to takes"):
            reg.copy_to(bad)  # type: ignore[call-overload]
    request.getfixturevalue("s3_bucket")
    with pytest.raises(StoreUnavailable, match="no-such-bucket"):
        reg.copy_to("s3://no-such-bucket-of-mine/copy")


def test_the_report_of_a_copy_is_readable(reg: Registry, tmp_path: Path) -> None:
    """It prints as a few lines, with sizes that people read."""
    reg.register("churn", {"m.bin": b"x" * 2000})
    report = reg.copy_to(tmp_path / "b")
    assert "2 entries, 1 file (2.0 kB) to file://" in str(report)
    assert "1 file" in report._repr_html_()


def test_the_original_is_not_written_with_the_artifacts_of_its_copy(tmp_path: Path) -> None:
    """Else it and the copy would delete each other's bytes; to look is allowed, and the copy itself is opened as ever."""
    with hub.open(f"sqlite:///{tmp_path / 'a.db'}", artifacts=tmp_path / "a") as reg:
        reg.register("churn", {"m.bin": b"x"})
        reg.copy_to(f"sqlite:///{tmp_path / 'b.db'}", artifacts=tmp_path / "b")
    with pytest.raises(Conflict, match=r"b\.db', a copy of this registry"):
        hub.open(f"sqlite:///{tmp_path / 'a.db'}", artifacts=tmp_path / "b")
    with hub.open(f"sqlite:///{tmp_path / 'a.db'}", artifacts=tmp_path / "b", read_only=True) as reg:
        assert reg.verify().ok
    with hub.open(f"sqlite:///{tmp_path / 'b.db'}", artifacts=tmp_path / "b") as copy:
        copy.register("churn", {"m.bin": b"y"})
        assert copy.verify().ok
