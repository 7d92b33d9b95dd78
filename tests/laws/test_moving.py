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
from modelhub_sdk import Registry
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.errors import Conflict, DigestMismatch, InvalidName, NotAllowed
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
@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("kind", ALL)
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


def test_freezing(reg: Registry) -> None:
    """A frozen registry refuses every change with who, when and why; reads go on; it can be undone."""
    reg.register("churn", {"m.bin": b"x"})
    reg.freeze("moved to the new bucket")
    for change in (
        lambda: reg.approve("churn/v1"), lambda: reg.create_model("new"), lambda: reg.start_run("x", outputs=None),
        lambda: reg.freeze("again"), lambda: reg.edit_model("churn", title="New"), lambda: reg.configure(require="approved"),
    ):  # fmt: skip
        with pytest.raises(NotAllowed, match="frozen by .* moved to the new bucket"):
            change()
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
    store.mark()
    store.mark()
    assert store.is_marked()
    assert list(store.digests()) == []
