"""Every I/O call of storing, fetching and placing fails once, or is the last one of the process."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelhub_sdk.blobs import disk, local
from modelhub_sdk.blobs.cache import Cache
from modelhub_sdk.blobs.place import into
from modelhub_sdk.blobs.sources import collect, from_bytes
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.domain.entities import File
from modelhub_sdk.errors import ModelHubError
from tests.support import faults
from tests.support.faults import SHORT, every_call, every_death

FAULTS = [errno.ENOSPC, errno.EIO, errno.EMFILE, SHORT]


def pattern(size: int, seed: int = 0) -> bytes:
    return (hashlib.sha256(bytes([seed])).digest() * (size // 32 + 1))[:size]


class World:
    """A store, a cache and a target in folders of their own, fresh for each fault."""

    def __init__(self, base: Path, number: object, store: BlobStore | None = None) -> None:
        self.base = base / str(number)
        self.store = store or BlobStore(self.base / "store", registry_id="r1")
        self.cache = Cache(self.base / "cache")
        self.target = self.base / "inputs" / "model"
        self.one = self._version(1)
        self.two = self._version(2)

    def _version(self, seed: int) -> list[Any]:
        return [
            from_bytes(pattern(400_000, seed), "w/big.bin"),
            from_bytes(b"small %d" % seed, "small"),
            from_bytes(pattern(300_000, 9), "w/same.bin"),
        ]

    def files(self, version: list[Any]) -> list[File]:
        return [File(s.path, s.size, "sha256:" + hashlib.sha256(_bytes(s)).hexdigest()) for s in version]

    def put(self, version: list[Any]) -> None:
        for source in version:
            self.store.put(source)

    def place(self, version: list[Any]) -> None:
        into(self.target, self.files(version), self._get, records=self.cache.records, heal=self._heal)

    def _get(self, file: File) -> Path:
        return self.cache.fetch(file, self.store)

    def _heal(self, file: File) -> Path:
        return self.cache.fetch(file, self.store, verify="always")

    def content(self) -> dict[str, bytes]:
        return {
            str(p.relative_to(self.target)): p.read_bytes()
            for p in sorted(self.target.rglob("*"))
            if p.is_file() and not str(p.relative_to(self.target)).startswith(".modelhub")
        }

    def whole(self) -> None:
        """Assert that nothing that can be seen is wrong."""
        fresh = BlobStore(self.store.url, registry_id="r1")
        for digest, size in fresh.digests():
            assert fresh.verify(digest, size) is None
        cache = Cache(self.base / "cache")
        for version in (self.one, self.two):
            for file in self.files(version):
                found = cache.get(file.digest, file.size)
                assert found is None or hashlib.sha256(found.read_bytes()).hexdigest() == file.digest[7:]
            folder = cache.cached_folder(self.files(version))
            if folder is not None:
                assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {
                    s.path for s in version
                }

    def leftovers(self) -> list[str]:
        return [
            str(p.relative_to(self.base))
            for p in self.base.rglob("*")
            if p.name.endswith(".partial") or (p.parent.name in ("tmp", "bad", "locks") and p.is_file())
        ]


def _bytes(source: Any) -> bytes:
    reader = source.open()
    view = memoryview(bytearray(source.size + 1))
    got = 0
    while step := reader.readinto(view[got:]):
        got += step
    return bytes(view[:got])


def contents(version: list[Any]) -> dict[str, bytes]:
    return dict(sorted((s.path, _bytes(s)) for s in version))


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files of some hundred kilobytes take the ways of large ones."""
    for name, value in (("CHUNK", 1 << 16), ("_INLINE", 1 << 16), ("_FLUSH", 1 << 17)):
        monkeypatch.setattr(disk, name, value)
    monkeypatch.setattr(local, "_WHOLE", 1 << 16)


@pytest.fixture
def stored(tmp_path: Path) -> BlobStore:
    """Return a store that holds both versions."""
    world = World(tmp_path, "stored")
    world.put(world.one)
    world.put(world.two)
    return world.store


@pytest.mark.parametrize("fault", FAULTS)
def test_storing_survives_every_fault(tmp_path: Path, fault: Any) -> None:
    """Every call of a put may fail: typed, nothing half-written, no leftover, and the retry works."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "big").write_bytes(pattern(400_000))
    (tmp_path / "src" / "small").write_bytes(b"small")
    for one in every_call(fault, under=[tmp_path], seen=faults.sites()):
        store = BlobStore(tmp_path / f"s{one.n}", registry_id="r1")
        done = False
        with one, contextlib.suppress(ModelHubError):
            for source in collect(tmp_path / "src"):
                store.put(source)
            done = True
        if fault == SHORT:
            assert done, one
        for digest, size in store.digests():
            assert store.verify(digest, size) is None, one
        left = list((tmp_path / f"s{one.n}").rglob("tmp/*"))
        assert not left or str(one.call).startswith("unlink"), one
        files = store.put_all(collect(tmp_path / "src"))
        assert [store.verify(f.digest, f.size) for f in files] == [None, None], one


@pytest.mark.parametrize("fault", FAULTS)
def test_fetching_survives_every_fault(tmp_path: Path, stored: BlobStore, fault: Any) -> None:
    """Every call of a fetch into the cache and of making a folder may fail, without a wrong entry."""
    for one in every_call(fault, under=[tmp_path], seen=faults.sites()):
        world = World(tmp_path, one.n, stored)
        done = False
        with one, contextlib.suppress(ModelHubError):
            for file in world.files(world.one):
                world.cache.fetch(file, world.store)
            world.cache.folder(world.files(world.one)[:1], world.store)
            done = True
        if fault == SHORT:
            assert done, one
        world.whole()
        folder = Cache(world.cache.path).folder(world.files(world.one), world.store)
        assert (folder / "small").read_bytes() == b"small 1", one


@pytest.mark.parametrize("fault", FAULTS)
def test_placing_survives_every_fault(tmp_path: Path, stored: BlobStore, fault: Any) -> None:
    """Every call of replacing a version by another may fail: one of the two stands, whole; the retry works."""
    for one in every_call(fault, under=[tmp_path], seen=faults.sites()):
        world = World(tmp_path, one.n, stored)
        world.place(world.one)
        for file in world.files(world.two):
            world._get(file)
        done = False
        with one, contextlib.suppress(ModelHubError):
            world.place(world.two)
            done = True
        if fault == SHORT:
            assert done, one
        found = world.content()
        assert found == contents(world.two if done else world.one) or found == contents(world.two), one
        world.whole()
        world.place(world.two)
        assert world.content() == contents(world.two), one
        world.place(world.one)
        assert world.content() == contents(world.one), one


def _killed(
    tmp_path: Path,
    store: BlobStore | None,
    prepare: Callable[[World], None],
    work: Callable[[World], None],
    check: Callable[[World], None],
) -> None:
    number = 0
    world = World(tmp_path, number, store)
    prepare(world)

    def operation(ack: Any) -> None:
        work(world)

    for _death in every_death(operation, under=[tmp_path], seen=faults.sites()):
        world.whole()
        check(world)
        number += 1
        world = World(tmp_path, number, store)
        prepare(world)
    assert number > 5


def test_storing_survives_death_anywhere(tmp_path: Path) -> None:
    """SIGKILL at every call of a put: what can be seen is whole, and the next writer removes the rest."""

    def check(world: World) -> None:
        world.put(world.one)
        assert world.leftovers() == []
        for file in world.files(world.one):
            assert world.store.verify(file.digest, file.size) is None

    _killed(tmp_path, None, lambda w: None, lambda w: w.put(w.one[:2]), check)


def test_placing_survives_death_anywhere(tmp_path: Path, stored: BlobStore) -> None:
    """SIGKILL at every call of fetching and placing a version over another: one of the two, whole; then the retry."""

    def prepare(world: World) -> None:
        world.place(world.one)

    def check(world: World) -> None:
        assert world.content() in (contents(world.one), contents(world.two))
        world.place(world.two)
        assert world.content() == contents(world.two)
        world.place(world.one)
        assert world.content() == contents(world.one)
        world.cache.sweep()
        assert world.leftovers() == []

    _killed(tmp_path, stored, prepare, lambda w: w.place(w.two), check)


def test_placing_inside_survives_death_anywhere(
    tmp_path: Path, stored: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where the folder cannot be replaced: old and new files are known as ours, and the retry finishes."""
    from modelhub_sdk.blobs import place

    monkeypatch.setattr(place, "_replaceable", lambda path: not os.path.exists(path))

    def prepare(world: World) -> None:
        world.target.mkdir(parents=True)
        world.place(world.one)
        for file in world.files(world.two):
            world._get(file)

    def check(world: World) -> None:
        new, old = contents(world.two), contents(world.one)
        for path, data in world.content().items():
            assert data in (new.get(path), old.get(path))
        world.place(world.two)
        assert world.content() == new
        world.place(world.one)
        assert world.content() == old
        world.cache.sweep()
        assert world.leftovers() == []

    _killed(tmp_path, stored, prepare, lambda w: w.place(w.two), check)
