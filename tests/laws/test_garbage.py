"""Collecting garbage: nothing needed is ever deleted, whoever registers, stops or dies meanwhile."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry, core, registry
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.domain import events as ev
from modelhub_sdk.errors import Conflict, InvalidDocument, NotAllowed, NotFound, Purged
from modelhub_sdk.formats import codec
from modelhub_sdk.ports import SequenceTaken
from tests.support.crowd import together
from tests.support.homes import ALL, Home, check_sound

MakeHome = Callable[[str], Home]
AT_ONCE = timedelta(0)


def digest(data: bytes) -> str:
    import hashlib

    return "sha256:" + hashlib.sha256(data).hexdigest()


def stored(reg: Registry) -> set[str]:
    return {one for one, _ in reg._core.artifacts().digests()}


@pytest.mark.parametrize("kind", ALL)
def test_only_what_nothing_needs_goes(
    kind: str, make_home: MakeHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run changes nothing; a real one deletes strays after their grace, and nothing that anything names."""
    inline = 1000 if os.environ.get("THOROUGH_TESTS") else 50
    monkeypatch.setattr("modelhub_sdk.registry._INLINE_FILES", inline)
    with make_home(kind).opened() as reg:
        many = {f"{n}": b"%d" % n for n in range(inline + 100)}
        reg.register("churn", many)  # its manifest is a document
        reg.attach("churn/v1", "roc.txt", b"curve")
        reg.add_evaluation("churn/v1", {"auc": 1}, files={"e": b"evaluated"})
        reg.create_dataset_version("clicks/v1", {"a.csv": b"data"})
        out = tmp_path / "out"
        out.mkdir()
        (out / "t.csv").write_bytes(b"datum")
        (out / "t.csv.metadata.json").write_text('{"valohai.alias": "table"}')
        reg.ingest(out)
        os.chdir(tmp_path)
        with reg.start_run("train", outputs=None) as run:
            run.log({"loss": 1.0}, step=1)
            run.attach("note.txt", b"attached")
        needed = stored(reg)
        assert reg.collect_garbage().unneeded == 0
        stray = reg._core.artifacts().put_bytes(b"stray")
        before = reg.audit().total
        found = reg.collect_garbage()
        assert (found.dry_run, found.unneeded, found.unneeded_size, found.examples) == (True, 1, 5, (stray,))
        assert reg.audit().total == before
        found = reg.collect_garbage(dry_run=False)
        assert (found.condemned, found.deleted, found.waiting) == (1, 0, 1)
        assert reg.collect_garbage(dry_run=False).condemned == 0
        assert reg.stats().unneeded == 5
        assert stray in stored(reg)
        found = reg.collect_garbage(dry_run=False, grace=AT_ONCE)
        assert (found.deleted, found.deleted_size, found.waiting) == (1, 5, 0)
        assert stored(reg) == needed
        assert reg.collect_garbage(dry_run=False, grace=AT_ONCE).deleted == 0
        assert stray == reg._core.artifacts().put_bytes(b"stray")  # stored again, and garbage again
        assert reg.collect_garbage(dry_run=False, grace=AT_ONCE).deleted == 1
        check_sound(reg)
        reg.rebuild_index()
        assert reg.collect_garbage().unneeded == 0


@pytest.mark.parametrize("kind", ALL)
def test_what_was_condemned_is_spared_when_it_is_needed(kind: str, make_home: MakeHome) -> None:
    """A registration of condemned bytes spares them in the same entry; the collector then leaves them."""
    with make_home(kind).opened() as reg:
        reg._core.artifacts().put_bytes(b"weights")
        reg.collect_garbage(dry_run=False)
        reg.register("churn", {"m.bin": b"weights"})
        assert "blobs.spared" in [one.action for one in reg.audit(limit=3)]
        assert reg.collect_garbage(dry_run=False, grace=AT_ONCE).deleted == 0
        assert Path(reg.resolve("churn/v1").path, "m.bin").read_bytes() == b"weights"


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("what", ["version", "attachment", "dataset", "manifest"])
def test_bytes_deleted_between_upload_and_commit_are_stored_again(
    kind: str, what: str, make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collector that takes the bytes just before the entry that names them costs an upload, and nothing else."""
    with make_home(kind).opened() as reg, make_home(kind).opened() as other:
        reg.register("churn", {"first": b"1"})
        commit, fired = core.Core.commit, []

        def collected_first(self: core.Core, scope: str, decide: Any) -> Any:
            if self is reg._core and not fired:
                fired.append(1)
                assert other.collect_garbage(dry_run=False, grace=AT_ONCE).deleted >= 1
            return commit(self, scope, decide)

        monkeypatch.setattr(core.Core, "commit", collected_first)
        if what == "version":
            reg.register("churn", {"m.bin": b"weights"})
        elif what == "manifest":
            reg.register("churn", {f"{n}": b"%d" % (n % 20) for n in range(1001)})
        elif what == "attachment":
            reg.attach("churn/v1", "roc.txt", b"curve")
        else:
            reg.create_dataset_version("clicks/v1", {"a.csv": b"data"})
        assert fired
        assert reg.verify().ok, reg.verify().problems
        assert reg.collect_garbage().unneeded == 0
        assert reg.stats().missing == 0


def test_outputs_in_a_document_are_stored_again_too(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So many outputs that their list is a document: those that are kept are relied on like all other bytes."""
    for n in range(600):
        tmp_path.joinpath("outputs").mkdir(exist_ok=True)
        tmp_path.joinpath("outputs", f"{n}.txt").write_bytes(b"%d" % n)
    with make_home("sqlite").opened() as reg, make_home("sqlite").opened() as other:
        commit, deleted = core.Core.commit, []

        def collected_first(self: core.Core, scope: str, decide: Any) -> Any:
            if self is reg._core and scope == "registry":
                deleted.append(other.collect_garbage(dry_run=False, grace=AT_ONCE).deleted)
            return commit(self, scope, decide)

        monkeypatch.setattr(core.Core, "commit", collected_first)
        reg.ingest(tmp_path / "outputs", keep="all")
        assert sum(deleted) >= 600
        assert reg.collect_garbage().unneeded == 0
        assert {digest(b"%d" % n) for n in range(600)} <= stored(reg)


def test_a_stream_that_is_gone_is_told(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that cannot be produced again are a Conflict that says to call again; nothing was registered."""
    import io

    commit, fired = core.Core.commit, []

    def collected_first(self: core.Core, scope: str, decide: Any) -> Any:
        if not fired:
            fired.append(1)
            reg.collect_garbage(dry_run=False, grace=AT_ONCE)
        return commit(self, scope, decide)

    monkeypatch.setattr(core.Core, "commit", collected_first)
    with pytest.raises(Conflict, match="call again"):
        reg.register("churn", {"m.bin": io.BytesIO(b"weights")})
    assert reg.models().total == 0
    assert reg.register("churn", {"m.bin": io.BytesIO(b"weights")}).number == 1
    assert reg.verify().ok


def _deleting(reg: Registry, *digests: str) -> None:
    """Leave the journal as a collector does that dies before it deletes."""
    reg._core.commit("registry", lambda view, seal: [ev.BlobsDeleting(digests=digests)])


def test_a_dead_collector_is_finished_by_who_waits(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registration waits for bytes that are being deleted, and when nothing happens deletes in their place."""
    monkeypatch.setattr(core, "DELETING", 0.2)
    one = reg._core.artifacts().put_bytes(b"weights")
    _deleting(reg, one)
    begun = time.monotonic()
    reg.register("churn", {"m.bin": b"weights"})
    assert time.monotonic() - begun > 0.6
    assert reg.verify().ok
    assert [record.action for record in reg.audit()].count("blobs.deleted") == 1


def test_a_dead_collector_is_finished_by_the_next(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed collector left half done is finished by the next one, once that has watched it for long enough."""
    monkeypatch.setattr(core, "DELETING", 0.2)
    one = reg._core.artifacts().put_bytes(b"weights")
    _deleting(reg, one)
    much_later = reg._core.clock() + timedelta(days=1)
    monkeypatch.setattr(reg._core, "clock", lambda: much_later)  # a clock that is wrong hurries nobody
    begun = time.monotonic()
    reg.collect_garbage(dry_run=False)
    assert time.monotonic() - begun > 0.6
    assert one not in stored(reg)
    reg.register("churn", {"m.bin": b"weights"})
    assert reg.verify().ok


def test_a_killed_purge_is_finished_by_the_next(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge that died before it deleted is finished by the same call again, with no second record of it."""
    monkeypatch.setattr(core, "DELETING", 0.2)
    version = reg.register("churn", {"m.bin": b"weights"})
    with monkeypatch.context() as patch:

        def died(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(BlobStore, "delete", died)
        with pytest.raises(KeyboardInterrupt):
            reg.purge(version, "customer's request")
    (file,) = version.files
    assert file.digest in stored(reg)
    reg.purge(version, "customer's request")
    assert file.digest not in stored(reg)
    assert reg.audit(action="version.purged").total == 1
    assert reg.verify().ok


@pytest.mark.parametrize("kind", ALL)
def test_two_that_finish_for_a_dead_collector(
    kind: str, make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that finish for a dead collector the slower one deletes nothing that was stored again meanwhile."""
    monkeypatch.setattr(core, "DELETING", 1.0)
    home = make_home(kind)
    with home.opened() as reg, home.opened() as slow:
        _deleting(reg, reg._core.artifacts().put_bytes(b"weights"))
        took, go = threading.Event(), threading.Event()
        delete = BlobStore.delete

        def slowly(self: BlobStore, digest: str, **options: Any) -> None:
            if self is slow._core.blobs:
                took.set()
                go.wait(30)
            delete(self, digest, **options)

        monkeypatch.setattr(BlobStore, "delete", slowly)
        thread = threading.Thread(target=lambda: slow.collect_garbage(dry_run=False))
        thread.start()
        assert took.wait(30)
        version = reg.register("churn", {"m.bin": b"weights"})  # waits, takes over, stores them again
        go.set()
        thread.join()
        check_sound(reg)
        reg.resolve(version, verify="always")


def test_a_stopped_collector_deletes_nothing_late(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that was stopped after its entry for too long deletes nothing: the bytes may be others' by then."""
    one = reg._core.artifacts().put_bytes(b"weights")
    reg.collect_garbage(dry_run=False)
    now = [0.0]
    monkeypatch.setattr(core, "since_boot", lambda: now[0])
    commit = core.Core.commit

    def stopped_after(self: core.Core, scope: str, decide: Any) -> Any:
        entry = commit(self, scope, decide)
        now[0] += core.DELETING + 1
        return entry

    monkeypatch.setattr(core.Core, "commit", stopped_after)
    assert reg.collect_garbage(dry_run=False, grace=AT_ONCE).deleted == 0
    assert one in stored(reg)


@pytest.mark.parametrize("bad", [7, None, timedelta(-1), "1 day"])
def test_bad_arguments(reg: Registry, bad: Any) -> None:
    """A grace that is none is refused; a read-only handle may look and not delete."""
    with pytest.raises(InvalidDocument, match="grace"):
        reg.collect_garbage(grace=bad)


def test_read_only(tmp_path: Path) -> None:
    """A read-only handle may look, and not delete."""
    url = f"sqlite:///{tmp_path / 'm.db'}"
    hub.open(url).close()
    with hub.open(url, read_only=True) as reg:
        assert reg.collect_garbage().unneeded == 0
        with pytest.raises(NotAllowed, match="read-only"):
            reg.collect_garbage(dry_run=False)


def test_bytes_of_unknown_events_stay(reg: Registry) -> None:
    """What an event of a later release names is needed."""
    one = reg._core.artifacts().put_bytes(b"signature")
    reg._core.commit(
        "registry", lambda view, seal: [ev.Unknown(name="version.signed", data={"bundle": one, "n": 1})]
    )
    assert reg.collect_garbage().unneeded == 0


def test_caches_drop_what_was_purged(reg: Registry, tmp_path: Path) -> None:
    """At its next look a cache has no purged bytes any more, what others need stays; a purged version says why."""
    reg.register("churn", {"m.bin": b"old", "same": b"same"})
    reg.register("churn", {"m.bin": b"new", "same": b"same"})
    old, new = Path(reg.resolve("churn/v1").path), Path(reg.resolve("churn/v2").path)
    seq = reg.audit(limit=1)[0].seq
    reg.purge("churn/v1", "asked to by the customer", force=True)
    reg.resolve("churn/v2")
    cache = reg._core.cache()
    assert not old.exists()
    assert cache.get(digest(b"old")) is None
    assert (new / "same").read_bytes() == b"same"
    for view in (reg, reg.at(seq)):
        with pytest.raises(Purged, match="asked to by the customer"):
            view.resolve("churn/v1")


def test_stats(reg: Registry) -> None:
    """Stats say how much there is, for what, and what nothing needs or is missing."""
    reg.register("big", {"a": b"x" * 1000, "b": b"y" * 500})
    reg.register("big", {"a": b"x" * 1000})
    reg.create_dataset_version("clicks/v1", {"c": b"z" * 700})
    reg._core.artifacts().put_bytes(b"stray")
    found = reg.stats()
    assert (found.models, found.versions, found.datasets, found.runs) == (1, 2, 1, 0)
    assert (found.blobs, found.size, found.unneeded, found.missing) == (4, 2205, 5, 0)
    assert found.largest == (("model://big", 1500), ("dataset://clicks", 700))
    reg._core.artifacts().delete(digest(b"y" * 500))
    assert reg.stats().missing == 1


def test_stats_of_manifests_that_are_documents(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a version with many files what is lost is missing, what was purged takes no space, and the rest counts."""
    monkeypatch.setattr(registry, "_INLINE_FILES", 3)
    reg.register("big", {f"{n}": b"%d" % n for n in range(10)})
    reg.register("small", {"m": b"s"})
    reg.attach("small/v1", "roc.txt", b"curve")
    assert (reg.stats().largest, reg.stats().missing) == ((("model://big", 10), ("model://small", 1)), 0)
    reg.purge("big/v1", "one of them", files="7")
    assert (reg.stats().largest[0], reg.stats().missing) == (("model://big", 9), 0)
    for lost in (b"5", b"curve"):
        reg._core.artifacts().delete(digest(lost))
    assert (reg.stats().largest[0], reg.stats().missing) == (("model://big", 8), 2)
    reg._core.artifacts().put_bytes(b"stray")
    assert "5 B that nothing needs" in str(reg.stats())
    assert "2 needed files missing" in reg.stats()._repr_html_()


def _with_a_lost_manifest(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register big/v1, whose manifest gets lost, and small/v1."""
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_INLINE_FILES", 3)
        reg.register("big", {f"{n}": b"%d" % n for n in range(10)})
    reg.register("small", {"m": b"small"})
    with reg._core.view() as view:
        ((_, _, document),) = view.documents()
    reg._core.artifacts().delete(document)
    reg._core.documents.clear()
    reg._core.manifests.clear()


def test_a_lost_manifest(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted, and nothing is purged while it is unknown what it needs; giving up its version ends that."""
    _with_a_lost_manifest(reg, monkeypatch)
    assert (reg.stats().missing, reg.stats().unneeded) == (1, 0)
    for call in (
        lambda: reg.purge("small/v1", "x"),
        lambda: reg.purge("big/v1", "x", files="3"),
        lambda: reg.collect_garbage(dry_run=False, grace=AT_ONCE),
    ):
        with pytest.raises(NotFound, match="big/v1|no blob"):
            call()
    assert reg.audit(action="version.purged").total == 0
    assert reg.purge("big/v1", "lost").purged
    reg.purge("small/v1", "x")
    assert digest(b"small") not in stored(reg)
    assert reg.collect_garbage(dry_run=False, grace=AT_ONCE).deleted == 10


def test_a_damaged_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says as little of what its version needs as a lost one: nothing else is purged, and that is told before."""
    monkeypatch.setattr(registry, "_INLINE_FILES", 3)
    with hub.open(tmp_path / "r") as reg:
        reg.register("big", {f"{n}": b"%d" % n for n in range(10)})
        reg.register("small", {"m": b"small"})
        with reg._core.view() as view:
            ((_, _, document),) = view.documents()
    (path,) = (tmp_path / "r" / "blobs").rglob(document[9:])
    path.chmod(0o600)
    path.write_bytes(b"Z" + path.read_bytes()[1:])
    with hub.open(tmp_path / "r") as reg:
        with pytest.raises(NotFound, match="big/v1 is missing or damaged"):
            reg.purge("small/v1", "x")
        assert not reg.version("small/v1").purged
        assert reg.stats().versions == 2  # it answers; what is damaged is said by `verify`
        assert not reg.verify().ok


# --- many files -------------------------------------------------------------------------------------------


@pytest.fixture
def small_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make entries hold little, so that a hundred files are many."""
    monkeypatch.setattr(core, "DELETED_AT_ONCE", 20)
    monkeypatch.setattr(codec, "MAX_BODY", 4000)
    monkeypatch.setattr(registry, "_INLINE_FILES", 10)


MANY = {f"{n}": b"%d" % n for n in range(100)}


@pytest.mark.usefixtures("small_entries")
def test_more_files_than_an_entry_holds_are_purged(reg: Registry) -> None:
    """So many files that their digests do not fit into one entry are deleted by several."""
    reg.register("big", MANY)
    assert reg.purge("big/v1", "asked to").purged
    assert len(stored(reg)) == 1  # the manifest
    assert reg.verify().ok


@pytest.mark.usefixtures("small_entries")
def test_more_condemned_files_than_an_entry_holds_are_spared(reg: Registry) -> None:
    """So many condemned files that they do not fit into the entry that needs them are spared before it."""
    for data in MANY.values():
        reg._core.artifacts().put_bytes(data)
    assert reg.collect_garbage(dry_run=False).condemned == 100
    reg.register("big", MANY)
    assert reg.collect_garbage(dry_run=False, grace=AT_ONCE).deleted == 0
    assert reg.verify().ok


def test_a_slow_store_is_purged_too(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be deleted in the time of one entry goes on with another, and a purge leaves nothing."""
    monkeypatch.setattr(core, "DELETING", 0.15)
    reg.register("big", {f"{n}": b"%d" % n for n in range(60)})
    delete = BlobStore.delete

    def slowly(self: BlobStore, one: str, **options: Any) -> None:
        time.sleep(0.05)
        delete(self, one, **options)

    monkeypatch.setattr(BlobStore, "delete", slowly)
    reg.purge("big/v1", "asked to")
    assert stored(reg) == set()
    assert [one.action for one in reg.audit(limit=100)].count("blobs.deleting") > 1


def test_the_report_says_what_waits(reg: Registry) -> None:
    """Condemned files wait until their grace ends, those condemned just now too; the report prints as a few lines."""
    reg._core.artifacts().put_bytes(b"x" * 2000)
    found = reg.collect_garbage(dry_run=False)
    assert (found.condemned, found.waiting) == (1, 1)
    assert "1 stored file that nothing needs, 2.0 kB" in str(found)
    assert "1 condemned, waiting" in found._repr_html_()
    found = reg.collect_garbage(dry_run=False)
    assert (found.condemned, found.waiting) == (0, 1)
    assert "Nothing was changed" in str(reg.collect_garbage())


# --- races ----------------------------------------------------------------------------------------------


def _register_again_and_again(
    tell: Any, ready: Any, url: str, cache: str, artifacts: str | None, who: int, rounds: int
) -> None:
    random.seed(who)
    with hub.open(url, cache_dir=cache, artifacts=artifacts) as reg:
        ready()
        for _ in range(rounds):
            version = reg.register("churn", {f"f{n}": b"content %d" % random.randrange(6) for n in range(3)})
            tell(version.number)
            if random.random() < 0.6:
                reg.purge(version, "short-lived", force=True)


def _collect_again_and_again(
    tell: Any, ready: Any, url: str, cache: str, artifacts: str | None, who: int, rounds: int
) -> None:
    with hub.open(url, cache_dir=cache, artifacts=artifacts) as reg:
        ready()
        for _ in range(rounds):
            tell(-reg.collect_garbage(dry_run=False, grace=AT_ONCE).deleted)


def _either(tell: Any, ready: Any, job: str, *arguments: Any) -> None:
    (_collect_again_and_again if job == "collect" else _register_again_and_again)(tell, ready, *arguments)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ALL)
def test_collectors_beside_registrations(kind: str, make_home: MakeHome, tmp_path: Path) -> None:
    """Processes that register and purge the same few contents, beside two collectors without a grace: nothing is lost."""
    home = make_home(kind)
    with home.opened():
        pass
    rounds = 12 if kind == "s3" else 20
    if not os.environ.get("THOROUGH_TESTS"):
        rounds //= 3
    crowd = [("register", home.url, str(tmp_path / f"c{n}"), home.artifacts, n, rounds) for n in range(4)]
    crowd += [("collect", home.url, str(tmp_path / f"c{n}"), home.artifacts, n, rounds // 2) for n in (8, 9)]
    told = together(_either, crowd)
    numbers = sorted(number for one in told[:4] for number in one)
    assert numbers == list(range(1, 4 * rounds + 1))
    with home.opened() as reg:
        for version in reg.versions("churn", limit=1000):
            if not version.purged:
                reg.resolve(version, verify="always")
        check_sound(reg)
        reg.collect_garbage(dry_run=False, grace=AT_ONCE)
        assert reg.stats().unneeded == reg.stats().missing == 0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["sqlite", "folder"])
def test_killed_collectors(kind: str, make_home: MakeHome, tmp_path: Path) -> None:
    """Collectors that are killed at random moments lose nothing, and hold nobody up for good."""
    home = make_home(kind)
    code = """
        import sys
        from datetime import timedelta
        import modelhub_sdk as hub
        from modelhub_sdk import core
        core.DELETING = 0.3
        with hub.open(sys.argv[1], cache_dir=sys.argv[2]) as reg:
            while True:
                for n in range(20):
                    reg._core.artifacts().put_bytes(b"content %d" % n)
                reg.collect_garbage(dry_run=False, grace=timedelta(0))
    """
    random.seed(7)
    with home.opened() as reg, pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "DELETING", 0.3)
        for turn in range(6 if os.environ.get("THOROUGH_TESTS") else 3):
            child = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(code), home.url, str(tmp_path / "other")]
            )
            killer = threading.Timer(0.6 + random.random(), lambda c=child: c.send_signal(signal.SIGKILL))
            killer.start()
            for n in range(10):
                reg.register(f"m{turn}", {"a": b"content %d" % random.randrange(20), "b": b"content %d" % n})
            child.wait()
            killer.join()
        check_sound(reg)
        assert reg.versions(limit=100).total == (turn + 1) * 10
        assert reg.stats().missing == 0


# --- collectors that were killed --------------------------------------------------------------------------

KILLED = """
    import os, signal, sys
    from datetime import timedelta
    import modelhub_sdk as hub
    from modelhub_sdk.blobs.store import BlobStore
    where, cache, artifacts, purged = sys.argv[1:]
    def killed(self, digest, **options):
        os.kill(os.getpid(), signal.SIGKILL)
    with hub.open(where, cache_dir=cache, artifacts=artifacts or None) as reg:
        BlobStore.delete = killed
        if purged:
            reg.purge(purged, "asked to")
        reg.collect_garbage(dry_run=False, grace=timedelta(0))
"""


def _kill(home: Home, cache: Path, purged: str = "") -> None:
    """Kill a collector (or a purge) right after the entry that says what is being deleted."""
    arguments = [home.url, str(cache), home.artifacts or "", purged]
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), *arguments], check=False)
    assert child.returncode == -signal.SIGKILL


class Waits:
    """A clock that goes on by what is slept: how long a call would have waited."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        self.slept = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


@pytest.mark.parametrize("kind", ALL)
def test_a_killed_collector_delays_by_seconds(
    kind: str, make_home: MakeHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After kill -9 of a collector the next one, a purge, and who registers the same bytes wait for seconds."""
    home = make_home(kind)
    with home.opened() as reg:
        doomed = reg.register("doomed", {"m.bin": b"doomed"})
        reg._core.artifacts().put_bytes(b"weights")
        reg._core.artifacts().put_bytes(b"stray")
        _kill(home, tmp_path / "other")
        _kill(home, tmp_path / "other", doomed.uri)
        begun = time.monotonic()
        reg.register("churn", {"m.bin": b"weights"})
        assert time.monotonic() - begun < 30
        with monkeypatch.context() as patch:
            waits = Waits(patch)
            reg.purge(doomed, "asked to")
            reg.collect_garbage(dry_run=False)
        assert waits.slept < 2 * core.LEASE
        assert stored(reg) == {digest(b"weights")}
        assert Path(reg.resolve("churn/v1").path, "m.bin").read_bytes() == b"weights"
        check_sound(reg)
        assert reg.stats().missing == 0


def _begin(reg: Registry, one: str, **fields: Any) -> None:
    fields = {"lease": core.LEASE, "worker": None} | fields
    reg._core.commit("registry", lambda view, seal: [ev.BlobsDeleting(digests=(one,), **fields)])


@pytest.mark.parametrize(
    ("fields", "least", "most"),
    [
        ({}, 12, 16),  # of another machine
        ({"worker": "1:2:elsewhere:3:abc"}, 12, 16),
        ({"worker": "not a process"}, 12, 16),
        ({"lease": None}, 60, 64),  # of the first releases
        ({"lease": 1e9}, 60, 64),
        ({"lease": -1.0}, 60, 64),
        ({"lease": 0.0}, 60, 64),
    ],
)
def test_how_long_one_waits_for_a_collector(
    fields: dict[str, Any], least: float, most: float, reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cannot see a collector waits three times its lease; that of one that says none is 20 seconds."""
    _begin(reg, reg._core.artifacts().put_bytes(b"weights"), **fields)
    waits = Waits(monkeypatch)
    reg.register("churn", {"m.bin": b"weights"})
    assert least < waits.slept < most
    assert reg.verify().ok


def test_who_is_alive_is_waited_for(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A living process of this machine is waited for, also when it is stopped; a dead one, or an older of its number, is not."""
    from modelhub_sdk import surroundings

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        alive = surroundings.process(child.pid)
        child.send_signal(signal.SIGSTOP)
        assert not surroundings.is_dead(alive)
        pid, started, boot, space = alive.split(":")
        assert surroundings.is_dead(f"{pid}:{int(started) - 1}:{boot}:{space}")
        assert not surroundings.is_dead(f"{pid}:{started}:{'0' * 16}:{space}")
        assert not surroundings.is_dead(f"{pid}:{started}:{boot}:7")
        with monkeypatch.context() as patch:  # what cannot be seen counts as alive
            patch.setattr(surroundings, "_started", lambda pid, unknown="": unknown)
            assert not surroundings.is_dead(alive)
        child.kill()
    assert surroundings.is_dead(alive)
    for rubbish in ("", "1", "a:b:c:d", ":::", f"-1:{started}:{boot}:{space}", f"{10**30}:1:{boot}:{space}"):
        assert not surroundings.is_dead(rubbish)


def test_a_collector_that_lost_its_store(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a collector of this very process gave up is taken over after half a lease."""
    from modelhub_sdk.errors import StoreUnavailable

    reg._core.artifacts().put_bytes(b"weights")

    def broken(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("lost")

    before = set(core._working)  # of tests that were interrupted
    with monkeypatch.context() as patch:
        patch.setattr(BlobStore, "delete", broken)
        with pytest.raises(StoreUnavailable):
            reg.collect_garbage(dry_run=False, grace=AT_ONCE)
    assert set(core._working) <= before
    waits = Waits(monkeypatch)
    reg.register("churn", {"m.bin": b"weights"})
    assert waits.slept < core.LEASE
    assert reg.verify().ok


def test_a_slow_commit_takes_nothing_of_the_lease(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease begins with the attempt that was appended, not with the first one: other writers cost no deletion."""
    reg._core.artifacts().put_bytes(b"stray")
    reg.collect_garbage(dry_run=False)
    now = [0.0]
    monkeypatch.setattr(core, "since_boot", lambda: now[0])
    attempt, tries = core.Core._attempt, []

    def taken(self: core.Core, entry_id: str, scope: str, decide: Any, *rest: Any) -> Any:
        def slow(view: Any, seal: Any) -> Any:
            events = decide(view, seal)
            tries.append(1)
            if len(tries) == 1:
                now[0] += core.LEASE + 1
                raise SequenceTaken(0)
            return events

        return attempt(self, entry_id, scope, slow, *rest)

    monkeypatch.setattr(core.Core, "_attempt", taken)
    assert reg.collect_garbage(dry_run=False, grace=AT_ONCE).deleted == 1


def test_a_request_that_hangs_is_given_up(make_home: MakeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request to delete that the store does not answer is given up, so that it cannot arrive when the lease is long over."""
    import asyncio

    import s3fs

    from modelhub_sdk.blobs import remote

    with make_home("s3").opened() as reg:
        one = reg._core.artifacts().put_bytes(b"stray")
        ended = threading.Event()

        async def hangs(self: Any, path: str, **_: Any) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        monkeypatch.setattr(s3fs.S3FileSystem, "_rm_file", hangs)
        monkeypatch.setattr(remote, "_DELETE", 0.1)
        asked = []
        reg._core.artifacts().delete(one, needed=lambda: bool(asked.append(1)) or len(asked) > 1)
        assert ended.wait(10)
        assert one in stored(reg)
