"""Rot heals: the right bytes replace a damaged stored file, wherever they come from, on every backend."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.errors import (
    Conflict,
    DigestMismatch,
    InvalidDocument,
    InvalidURI,
    NotAllowed,
    NotFound,
    Purged,
)
from tests.support.homes import ALL, Home

MakeHome = Callable[[str], Home]

SMALL = b"weights" * 700
LARGE = bytes(range(256)) * 5000  # over a megabyte: stored by another path than small ones
HURTS = ("flipped", "cut", "longer", "empty", "gone")
LOCAL_HURTS = (*HURTS, "link", "folder", "fifo")


def hurt(reg: Registry, digest: str, how: str) -> None:
    """Damage the stored file *digest* behind the registry's back."""
    blobs = reg._core.artifacts()
    hex_ = digest.removeprefix("sha256:")
    if blobs.root is None:
        fs, top = fsspec.core.url_to_fs(blobs.url)
        key = f"{top}/{reg.id}/sha256/{hex_[:2]}/{hex_[2:]}"
        data = fs.cat_file(key)
        fs.rm_file(key) if how == "gone" else fs.pipe_file(key, _spoiled(data, how))
        fs.invalidate_cache()
        return
    path = Path(blobs.root, reg.id, "sha256", hex_[:2], hex_[2:])
    data = path.read_bytes()
    path.unlink()
    if how == "link":
        (path.parent / "elsewhere").write_bytes(data)
        path.symlink_to(path.parent / "elsewhere")
    elif how == "folder":
        path.mkdir()
        (path / "inner").write_bytes(b"x")
    elif how == "fifo":
        os.mkfifo(path)
    elif how != "gone":
        path.write_bytes(_spoiled(data, how))


def _spoiled(data: bytes, how: str) -> bytes:
    return {
        "flipped": bytes([data[0] ^ 1]) + data[1:],
        "cut": data[:-1],
        "longer": data + b"x",
        "empty": b"",
    }[how]


def digest_of(data: bytes) -> str:
    import hashlib

    return "sha256:" + hashlib.sha256(data).hexdigest()


def is_sound(reg: Registry) -> bool:
    return reg.verify(progress=False).ok


@pytest.mark.parametrize("kind", ALL)
def test_registering_the_right_bytes_heals(kind: str, make_home: MakeHome) -> None:
    """Whatever was done to a stored file, a registration of its bytes stores them, small and large ones."""
    with make_home(kind).opened() as reg:
        hurts = LOCAL_HURTS if reg._core.artifacts().root else HURTS
        for data in (SMALL, LARGE):
            reg.register("m", {"w": data})
            for how in hurts:
                hurt(reg, digest_of(data), how)
                assert not is_sound(reg), how
                reg.register("m", {"w": data})
                assert is_sound(reg), how


WAYS: dict[str, Callable[[Registry, Path], Any]] = {
    "attach": lambda reg, path: reg.attach("m/v1", "w", path.read_bytes()),
    "evaluation": lambda reg, path: reg.add_evaluation("m/v1", {"a": 1}, files=path),
    "dataset": lambda reg, path: reg.create_dataset_version("dataset://d/v1", path),
    "stream": lambda reg, path: reg.register("m", {"w": io.BytesIO(path.read_bytes())}),
    "ingest": lambda reg, path: reg.ingest(path.parent, keep="all"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_storing_heals(way: str, make_home: MakeHome, tmp_path: Path) -> None:
    """Attachments, evaluations, datasets, outputs and file objects replace a damaged stored file too."""
    source = tmp_path / "outputs" / "w"
    source.parent.mkdir()
    source.write_bytes(SMALL)
    with make_home("sqlite").opened() as reg:
        reg.register("m", {"w": SMALL})
        hurt(reg, digest_of(SMALL), "flipped")
        WAYS[way](reg, source)
        assert is_sound(reg)


def test_a_manifest_heals(make_home: MakeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged manifest is stored again by the next version of the same files."""
    monkeypatch.setattr("modelhub_sdk.registry._INLINE_FILES", 1)
    files = {"a": b"a", "b": b"b"}
    home = make_home("folder")
    with home.opened() as reg:
        reg.register("m", files)
        with reg._core.view() as view:
            document = str(view.registered("m", 1).document)
        hurt(reg, document, "flipped")
        reg.register("m", files)
        assert is_sound(reg)


def test_a_reader_never_misses_what_is_replaced(make_home: MakeHome) -> None:
    """While damaged bytes are replaced, who looks sees the old or the new ones, never none."""
    with make_home("sqlite").opened() as reg:
        reg.register("m", {"w": SMALL})
        blobs = reg._core.artifacts()
        stop, missing = threading.Event(), []

        def watch() -> None:
            while not stop.is_set():
                if not blobs.has(digest_of(SMALL)):
                    missing.append(1)

        path = next(p for p in Path(str(blobs.root)).rglob(digest_of(SMALL)[9:]))
        thread = threading.Thread(target=watch)
        thread.start()
        try:
            for n in range(20):
                path.chmod(0o644)
                path.write_bytes(_spoiled(SMALL, "flipped"))
                reg.attach("m/v1", f"{n}", SMALL)
        finally:
            stop.set()
            thread.join()
        assert not missing
        assert is_sound(reg)


@pytest.mark.parametrize("kind", ["sqlite", "s3"])
def test_arriving_again_heals(kind: str, make_home: MakeHome, tmp_path: Path) -> None:
    """A bundle, a single version and a whole copy put right bytes over damaged ones, also when they were there before."""
    with make_home(kind).opened() as reg, hub.open(f"sqlite:///{tmp_path}/lab.db", user="ann") as lab:
        version = lab.register("m", {"w": SMALL, "big": LARGE})
        bundle = lab.export_bundle(version, tmp_path / "m.zip")
        ways: list[Callable[[], object]] = [
            lambda: reg.import_bundle(bundle, progress=False),
            lambda: lab.copy_to(reg, ref=version, progress=False),
        ]
        for way in ways:
            arrived = way()
            for how in ("flipped", "cut", "gone"):
                for data in (SMALL, LARGE):
                    hurt(reg, digest_of(data), how)
                assert way() == arrived
                assert is_sound(reg), how


def test_a_copy_is_healed_by_the_next_copy(tmp_path: Path) -> None:
    """`copy_to` stores again what was damaged in the copy, and needs no new entry for that."""
    copy = f"sqlite:///{tmp_path}/copy.db"
    with hub.open(f"sqlite:///{tmp_path}/a.db", user="ann") as reg:
        reg.register("m", {"w": SMALL, "big": LARGE})
        reg.copy_to(copy, progress=False)
        for how in LOCAL_HURTS:
            with hub.open(copy, user="ann") as other:
                hurt(other, digest_of(SMALL), how)
                hurt(other, digest_of(LARGE), how)
            report = reg.copy_to(copy, progress=False)
            with hub.open(copy, user="ann") as other:
                assert is_sound(other), how
            assert (report.entries, report.blobs) == (0, 2)


def everything(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something of all that keeps bytes."""
    monkeypatch.setattr("modelhub_sdk.registry._INLINE_FILES", 2)
    reg.register("m", {"w": SMALL, "big": LARGE})
    reg.register("m", {"a": b"1", "b": b"2", "c": b"3"})  # with a document
    reg.attach("m/v1", "roc.png", b"picture")
    reg.add_evaluation("m/v1", {"auc": 1}, files={"pred.csv": b"predictions"})
    reg.create_dataset_version("dataset://d/v1", {"x": b"4", "y": b"5", "z": b"6"})
    reg.register("gone", {"w": b"given up"})
    reg.purge("gone/v1", "old")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ALL)
def test_repair_from_a_copy(
    kind: str, make_home: MakeHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is damaged or missing is stored again from another registry; twice changes nothing."""
    with make_home(kind).opened() as reg:
        everything(reg, monkeypatch)
        reg.copy_to(f"sqlite:///{tmp_path}/copy.db", progress=False)
        stored = sorted(digest for digest, _ in reg._core.artifacts().digests())
        hurts = [HURTS[n % len(HURTS)] for n in range(len(stored))]
        for digest, how in zip(stored, hurts, strict=True):
            hurt(reg, digest, how)
        report = reg.repair(f"sqlite:///{tmp_path}/copy.db", progress=False)
        assert report
        assert sorted(item.digest for item in report.repaired) == stored
        assert all(item.needed_by and item.problem for item in report.repaired)
        assert is_sound(reg)
        assert "repaired 12" in str(report)
        assert "Repaired 12 files" in report._repr_html_()
        again = reg.repair(f"sqlite:///{tmp_path}/copy.db", progress=False)
        assert (again.repaired, again.checked) == ((), report.checked)


@pytest.mark.parametrize("source", ["open", "bundle", "cache", "module", "folder", "artifacts", "database"])
def test_repair_from_anything(source: str, make_home: MakeHome, tmp_path: Path) -> None:
    """An open registry, a bundle, a cache, artifacts, a database file and a plain folder of files are sources."""
    home = make_home("folder")
    with home.opened() as reg:
        version = reg.register("m", {"w": SMALL, "big": LARGE})
        reg.resolve(version)
        bundle = reg.export_bundle(version, tmp_path / "m.zip", progress=False)
        reg.copy_to(f"sqlite:///{tmp_path}/copy.db", progress=False)
        files = tmp_path / "files" / "deep"
        files.mkdir(parents=True)
        (files / "any name").write_bytes(SMALL)
        (files / "other").write_bytes(LARGE)
        (files / "same size").write_bytes(_spoiled(LARGE, "flipped"))
        for data in (SMALL, LARGE):
            hurt(reg, digest_of(data), "flipped")
        with hub.open(f"sqlite:///{tmp_path}/copy.db", user="ann") as copy:
            places = {
                "open": copy,
                "bundle": bundle,
                "cache": home.cache,
                "module": hub.cache,
                "folder": tmp_path / "files",
                "artifacts": tmp_path / "copy.db.artifacts",
                "database": tmp_path / "copy.db",
            }
            report = reg.repair(places[source], progress=False)
        assert len(report.repaired) == 2
        assert report.ok
        assert is_sound(reg)


def test_repair_says_what_it_could_not_find(make_home: MakeHome, tmp_path: Path) -> None:
    """What the source lacks, or has damaged as well, is named with its size and what needs it; nothing wrong is stored."""
    with make_home("sqlite").opened() as reg:
        reg.register("m", {"w": SMALL, "big": LARGE})
        for data in (SMALL, LARGE):
            hurt(reg, digest_of(data), "gone")
        shard = tmp_path / "backup" / digest_of(SMALL)[7:9]
        shard.mkdir(parents=True)
        (shard / digest_of(SMALL)[9:]).write_bytes(_spoiled(SMALL, "flipped"))
        report = reg.repair(tmp_path / "backup", progress=False)
        assert not report
        assert not report.repaired
        assert sorted((one.digest, one.size, one.needed_by) for one in report.not_found) == sorted(
            (digest_of(data), len(data), ("model://m/v1",)) for data in (SMALL, LARGE)
        )
        assert not list(reg._core.artifacts().digests())
        assert digest_of(SMALL) in str(report)
        assert digest_of(SMALL) in report._repr_html_()


def test_wrong_sources(make_home: MakeHome, tmp_path: Path) -> None:
    """What is no source is a typed error before anything is read, and so are read-only and frozen registries."""
    home = make_home("folder")
    (tmp_path / "text").write_text("text")
    with home.opened() as reg:
        reg.register("m", {"w": SMALL})
        for wrong in (None, 3, "", object()):
            with pytest.raises(InvalidURI, match="can be taken from"):
                reg.repair(wrong)
        for missing in (tmp_path / "nothing", f"sqlite:///{tmp_path}/nothing.db"):
            with pytest.raises(NotFound):
                reg.repair(missing)
        with pytest.raises(InvalidDocument, match="neither a bundle nor a registry"):
            reg.repair(tmp_path / "text")
        with pytest.raises(Conflict, match="this very registry"):
            reg.repair(reg)
        with pytest.raises(Conflict, match="this very registry"):
            reg.repair(home.url)
        with hub.open(home.url, read_only=True) as readonly, pytest.raises(NotAllowed, match="read-only"):
            readonly.repair(tmp_path)
        reg.freeze("moved")
        with pytest.raises(NotAllowed, match="frozen"):
            reg.repair(tmp_path)


def test_a_cache_hides_no_rot(make_home: MakeHome, tmp_path: Path) -> None:
    """A resolve that the cache answers leaves the damaged store as it is, and `verify` still names it."""
    home = make_home("sqlite")
    with home.opened() as reg:
        version = reg.register("m", {"w": SMALL})
        reg.resolve(version)
        hurt(reg, digest_of(SMALL), "flipped")
        assert Path(reg.resolve(version).path, "w").read_bytes() == SMALL
        assert not is_sound(reg)
        with hub.open(home.url, cache_dir=tmp_path / "other") as fresh, pytest.raises(DigestMismatch):
            fresh.resolve(version)


def test_purged_bytes_do_not_come_back(make_home: MakeHome, tmp_path: Path) -> None:
    """What was purged is not stored again by repair, nor by an arrival of the same version."""
    with make_home("sqlite").opened() as reg, hub.open(f"sqlite:///{tmp_path}/lab.db", user="ann") as lab:
        version = lab.register("m", {"w": SMALL})
        bundle = lab.export_bundle(version, tmp_path / "m.zip")
        arrived = reg.import_bundle(bundle)
        reg.purge(arrived, "old")
        with pytest.raises(Purged):
            reg.import_bundle(bundle)
        assert reg.repair(bundle, progress=False).repaired == ()
        assert not list(reg._core.artifacts().digests())
