"""The journal is not the one that the index knows: restored, copied, replaced, damaged."""

from __future__ import annotations

import math
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

import modelhub_sdk as hub
from tests.support.homes import ALL, Home


def _open(place: Path | str, cache: Path, **options: object) -> hub.Registry:
    return hub.open(str(place), cache_dir=cache, user="tester", **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder registry with three versions, its index warm."""
    with _open(tmp_path / "reg", tmp_path / "cache") as reg:
        for number in range(3):
            reg.register("m", {"a": b"%d" % number})
        reg.approve("m/v2", "good")
    return tmp_path / "reg"


def test_a_folder_restored_from_a_backup(folder: Path, tmp_path: Path) -> None:
    """After a backup came back, readers and writers see the backup, also with an index that knew more."""
    shutil.copytree(folder, tmp_path / "backup")
    with _open(folder, tmp_path / "cache") as reg:
        reg.register("m", {"a": b"lost"})
        reg.approve("m/v4", "lost too")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    with _open(folder, tmp_path / "cache") as reg:
        assert reg.latest("m").number == 2
        assert reg.register("m", {"a": b"again"}).number == 4
        assert reg.verify().ok


def test_a_folder_restored_under_an_open_handle(folder: Path, tmp_path: Path) -> None:
    """A handle that stays open notices before it writes, and never builds upon what is gone."""
    shutil.copytree(folder, tmp_path / "backup")
    with _open(folder, tmp_path / "cache") as reg:
        reg.register("m", {"a": b"lost"})
        reg.comment("m/v4", "lost")
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "backup", folder)
        assert reg.register("m", {"a": b"again"}).number == 4
        assert reg.version("m/v4").comments == ()
        assert reg.verify().ok


def test_a_restored_folder_that_others_have_written_on(folder: Path, tmp_path: Path) -> None:
    """A backup that another machine went on from is not taken for the journal that this index knows."""
    shutil.copytree(folder, tmp_path / "backup")
    with _open(folder, tmp_path / "cache") as reg:
        for _ in range(5):
            reg.comment("m/v1", "lost")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    with _open(folder, tmp_path / "other cache") as reg:
        for _ in range(9):
            reg.comment("m/v1", "kept")
    with _open(folder, tmp_path / "cache") as reg:
        assert {comment.text for comment in reg.version("m/v1").comments} == {"kept"}
        assert reg.verify().ok


def test_a_copied_folder_is_a_registry_of_its_own(folder: Path, tmp_path: Path) -> None:
    """A copy goes its own way: neither index nor cache mixes the two up, and the bytes came along."""
    shutil.copytree(folder, tmp_path / "copy")
    with _open(folder, tmp_path / "cache") as one, _open(tmp_path / "copy", tmp_path / "cache") as two:
        assert one.id == two.id
        one.register("m", {"a": b"one"})
        two.register("m", {"a": b"two"})
        assert Path(one.resolve("model://m/v4/a")).read_bytes() == b"one"
        assert Path(two.resolve("model://m/v4/a")).read_bytes() == b"two"
        assert one.verify().ok
        assert two.verify().ok


@pytest.mark.parametrize("damage", ["gone", "rubbish", "empty", "cut"])
def test_a_damaged_index_costs_time_only(damage: str, folder: Path, tmp_path: Path) -> None:
    """An index file that is gone, overwritten or torn is made anew."""
    files = sorted((tmp_path / "cache" / "index").glob("*.sqlite"))
    assert files
    for file in files:
        content = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(
                {"rubbish": b"not a database" * 999, "empty": b"", "cut": content[:5000]}[damage]
            )
    with _open(folder, tmp_path / "cache") as reg:
        assert reg.latest("m").number == 2
        assert reg.register("m", {"a": b"again"}).number == 4
        assert reg.verify().ok


def _entry(folder: Path, seq: int) -> Path:
    return folder / "journal" / "0000000" / f"{seq:010d}.json"


@pytest.mark.parametrize("damage", ["empty", "cut", "edited", "duplicate", "moved"])
def test_a_damaged_entry_is_named(damage: str, folder: Path, tmp_path: Path) -> None:
    """A torn, edited, doubled or moved entry is an error that names it; nothing is folded from it."""
    victim = _entry(folder, 3)
    content = victim.read_bytes()
    changed = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "edited": content.replace(b'"number":2', b'"number":7'),
        "duplicate": _entry(folder, 2).read_bytes(),
        "moved": _entry(folder, 4).read_bytes(),
    }[damage]
    assert changed != content
    victim.write_bytes(changed)
    with pytest.raises(hub.InvalidDocument, match="3"):
        _open(folder, tmp_path / "fresh cache").latest("m")
    with _open(folder, tmp_path / "cache") as reg:  # this one's index knows what was there
        found = reg.verify()
    assert not found
    assert any("3" in problem for problem in found.problems)


def test_a_lost_entry_is_found(folder: Path, tmp_path: Path) -> None:
    """Entries cut off at the end are noticed by everybody whose index had them."""
    with _open(folder, tmp_path / "cache") as reg:
        assert reg.latest("m").number == 2
        head = reg.verify().head
        _entry(folder, 5).unlink()
        assert reg.verify().head != head


def test_a_status_edited_by_hand_is_found(tmp_path: Path) -> None:
    """A status set by SQL, without an entry, is what verify finds and a rebuild undoes."""
    with _open(f"sqlite:///{tmp_path}/r.db", tmp_path / "cache") as reg:
        reg.register("m", {"a": b"1"})
        with sqlite3.connect(tmp_path / "r.db") as conn:
            assert conn.execute("UPDATE mh1_fact SET value = 'approved' WHERE name = 'status'").rowcount == 1
        conn.close()
        assert reg.latest("m") is not None
        found = reg.verify()
        assert not found
        assert "fact" in found.problems[0]
        reg.rebuild_index()
        assert reg.latest("m") is None
        assert reg.verify().ok


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damaged_bytes_are_found_and_never_handed_out(damage: str, folder: Path, tmp_path: Path) -> None:
    """A blob that was changed or lost is named by verify, and resolving it is an error that leaves nothing."""
    with _open(folder, tmp_path / "cache") as reg:
        digest = reg.version("m/v1").files[0].digest.removeprefix("sha256:")
        (blob,) = (folder / "blobs").rglob(f"{digest[:2]}/{digest[2:]}")
        blob.chmod(0o644)
        if damage == "gone":
            blob.unlink()
        else:
            blob.write_bytes(b"" if damage == "cut" else b"X")
        found = reg.verify()
        assert not found
        assert "model://m/v1" in found.problems[0]
        with pytest.raises((hub.DigestMismatch, hub.NotFound)):
            reg.resolve("m/v1", tmp_path / "inputs")
        assert not (tmp_path / "inputs").exists()
        assert reg.resolve("m/v2", tmp_path / "inputs").files == ("a",)


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """A SQLite file with other tables, and a file that is no database, are refused untouched."""
    with sqlite3.connect(tmp_path / "other.db") as conn:
        conn.execute("CREATE TABLE theirs (a)")
    conn.close()
    (tmp_path / "text.db").write_text("not a database at all, whatever its name may say " * 100)
    for name in ("other.db", "text.db"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises((hub.NotAllowed, hub.StoreUnavailable)):
            _open(f"sqlite:///{tmp_path}/{name}", tmp_path / "cache")
        assert (tmp_path / name).read_bytes() == before


def _lose(url: str) -> None:
    """Remove what is at *url*, but for its artifacts."""
    if url.startswith("sqlite:///"):
        for file in Path(url.removeprefix("sqlite:///")).parent.glob("r.db*"):
            if file.is_file():
                file.unlink()
    else:
        shutil.rmtree(url)


@pytest.fixture(params=["sqlite", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a registry on this disk."""
    return f"sqlite:///{tmp_path}/r.db" if request.param == "sqlite" else str(tmp_path / "reg")


def test_a_registry_deleted_under_an_open_handle(place: str, tmp_path: Path) -> None:
    """Nothing is acknowledged that goes into a file that nobody can open any more, and no stump is left in its place."""
    with _open(place, tmp_path / "cache") as reg:
        reg.register("m", {"a": b"1"})
        _lose(place)
        for _ in range(2):
            with pytest.raises(hub.StoreUnavailable):
                reg.register("m", {"a": b"2"})
        with pytest.raises(hub.StoreUnavailable):
            reg.approve("m/v1")
    assert not (tmp_path / "r.db").exists()
    assert not (tmp_path / "reg" / "journal").exists()


def test_a_registry_replaced_by_another_under_an_open_handle(place: str, tmp_path: Path) -> None:
    """A handle never writes into another registry that took the place of its own."""
    other = f"sqlite:///{tmp_path}/other.db" if place.startswith("sqlite") else str(tmp_path / "other")
    with _open(other, tmp_path / "cache") as reg:
        reg.register("theirs", {"a": b"1"})
    with _open(place, tmp_path / "cache") as reg:
        reg.register("m", {"a": b"1"})
        _lose(place)
        if place.startswith("sqlite"):
            shutil.copy(tmp_path / "other.db", tmp_path / "r.db")
        else:
            shutil.copytree(other, place)
        with pytest.raises(hub.StoreUnavailable, match="another registry"):
            reg.register("m", {"a": b"2"})
        with pytest.raises(hub.StoreUnavailable, match="another registry"):
            reg.comment("theirs/v1", "not theirs")
    with _open(place, tmp_path / "fresh cache") as reg:
        assert [model.name for model in reg.models()] == ["theirs"]
        assert reg.audit().total == 3  # made, a model, a version


def test_a_sqlite_file_restored_under_an_open_handle(tmp_path: Path) -> None:
    """A backup that comes back under an open handle is what the handle goes on with."""
    url = f"sqlite:///{tmp_path}/r.db"
    with _open(url, tmp_path / "cache") as reg:
        reg.register("m", {"a": b"1"})
    shutil.copy(tmp_path / "r.db", tmp_path / "backup")
    with _open(url, tmp_path / "cache") as reg:
        reg.register("m", {"a": b"lost"})
        _lose(url)
        shutil.copy(tmp_path / "backup", tmp_path / "r.db")
        assert reg.model("m").last_number == 1
        assert reg.register("m", {"a": b"again"}).number == 2
    with _open(url, tmp_path / "cache") as reg:
        assert reg.model("m").last_number == 2
        assert reg.verify().ok


def test_an_index_deleted_under_an_open_handle(folder: Path, tmp_path: Path) -> None:
    """Somebody clears the cache while a registry is open: it goes on, and so do others."""
    with _open(folder, tmp_path / "cache") as reg:
        shutil.rmtree(tmp_path / "cache")
        assert reg.latest("m").number == 2
        assert reg.register("m", {"a": b"again"}).number == 4
        with _open(folder, tmp_path / "cache") as other:
            assert other.register("m", {"a": b"other"}).number == 5
        assert reg.model("m").last_number == 5
        assert Path(reg.resolve("m/v4").path, "a").read_bytes() == b"again"
        assert reg.verify().ok


def test_an_index_damaged_under_an_open_handle(folder: Path, tmp_path: Path) -> None:
    """An index that is overwritten while it is open costs at most one failed read, which says so; no write is lost."""
    (index,) = (tmp_path / "cache" / "index").glob("*.sqlite")
    with _open(folder, tmp_path / "cache") as reg:
        assert reg.latest("m").number == 2
    with index.open("r+b") as file:  # the header and the schema stay, the tables do not
        file.seek(8192)
        file.write(b"rubbish!" * ((index.stat().st_size - 8192) // 8))
    with _open(folder, tmp_path / "cache") as reg:
        failed = 0
        for _ in range(3):
            try:
                assert reg.latest("m").number == 2
                break
            except hub.StoreUnavailable as error:
                assert "try again" in str(error)
                failed += 1
        assert failed <= 1
        assert reg.register("m", {"a": b"again"}).number == 4
        assert reg.verify().ok


@pytest.mark.parametrize("kind", ALL)
def test_numbers_that_databases_keep_differently_raise_no_alarm(
    kind: str, make_home: Callable[[str], Home]
) -> None:
    """Minus zero, huge integers, tiny and endless numbers: the index of every backend is the one that verify folds."""
    odd = {"a": -0.0, "b": 2**53 + 1, "c": -(2**63) - 1, "d": 5e-324, "e": 1.7976931348623157e308, "f": 0.1}
    with make_home(kind).opened() as reg:
        reg.register("m", {"a": b"1"}, metrics={**odd, "g": math.nan, "h": math.inf}, params=odd, fields=odd)
        reg.add_evaluation("m/v1", odd)
        found = reg.verify()
        assert found.ok, found.problems
        assert math.copysign(1, reg.version("m/v1").metrics["a"]) == -1
        assert [version.number for version in reg.versions("m", where="metrics.a = 0")] == [1]
