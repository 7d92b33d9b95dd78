"""How the cache stays small, goes on with what was interrupted, and answers at once when all is there."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk.blobs import cache as cache_module
from modelhub_sdk.blobs import disk
from modelhub_sdk.blobs.cache import Cache, parse_size
from modelhub_sdk.blobs.sources import from_bytes
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.domain.entities import File
from modelhub_sdk.errors import InvalidName

BIG = 24 << 20


def pattern(size: int, seed: int = 0) -> bytes:
    return bytes((i * 7 + seed) % 251 for i in range(4096)) * (size // 4096)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store", registry_id="r1")


@pytest.fixture
def versions(store: BlobStore) -> list[tuple[File, ...]]:
    """Four versions of two files, of 8 kB each."""
    return [
        store.put_all([from_bytes(pattern(4096, 2 * n), "a"), from_bytes(pattern(4096, 2 * n + 1), "d/b")])
        for n in range(4)
    ]


def aged(cache: Cache, hours: float) -> None:
    """Make all that the cache has noted so far that much older."""
    for folder, _, names in os.walk(cache.path):
        for name in names:
            path = os.path.join(folder, name)
            if path.endswith(".note") or "/whole/" in path:
                at = os.lstat(path).st_mtime - hours * 3600
                os.utime(path, (at, at))


def age_blobs(cache: Cache) -> None:
    """Make the blobs themselves old, with the notes of what they were like."""
    for digest, path, _ in list(cache._blobs()):
        os.utime(path, (1.0, 1.0))
        cache._verified.pop(digest, None)
        disk.remove(path + ".note")


# --- the bound ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (0, 0),
        (7, 7),
        ("7", 7),
        ("1kB", 1000),
        ("1.5 MiB", 3 << 19),
        ("2g", 2 * 10**9),
        (" 20 GB ", 20 * 10**9),
    ],
)
def test_sizes(given: Any, size: int) -> None:
    """Sizes are bytes, or texts with a unit."""
    assert parse_size(given) == size


@pytest.mark.parametrize("given", [-1, True, None, "", "GB", "-1", "1 XB", "1e3", 1.5, b"1"])
def test_what_is_no_size(given: Any) -> None:
    """Anything else is refused with the name of the setting."""
    with pytest.raises(InvalidName, match="max_size"):
        parse_size(given)


def test_the_longest_unused_goes_first(
    cache: Cache, store: BlobStore, versions: list[tuple[File, ...]]
) -> None:
    """Prune removes what was used longest ago, with its folders, until the bound is kept; the rest stays whole."""
    for files in versions:
        cache.folder(files, store)
    age_blobs(cache)
    for files in versions:
        cache.folder(files, store)
    aged(cache, 5)
    cache.folder(versions[0], store)  # noted: the last note is older than an hour
    assert cache.prune(2 * 8192) == 2 * 8192
    assert cache.cached_folder(versions[0]) is not None
    assert sum(cache.cached_folder(files) is not None for files in versions) == 2
    assert cache.info().folders == 2
    assert cache.info().size == 2 * 8192


def test_a_bounded_cache_keeps_its_bound(
    cache: Cache, store: BlobStore, versions: list[tuple[File, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bound each fetch makes room; the version that was just fetched is always whole."""
    monkeypatch.setenv("MODELHUB_CACHE_SIZE", "10kB")
    for files in versions:
        folder = cache.folder(files, store)
        assert sorted(path.name for path in folder.iterdir()) == ["a", "d"]
        assert cache.info().size <= 10_000
    monkeypatch.setenv("MODELHUB_CACHE_SIZE", "1B")
    assert cache.folder(versions[0], store).is_dir()
    assert cache.info().max_size == 1
    monkeypatch.setenv("MODELHUB_CACHE_SIZE", "much")
    with pytest.raises(InvalidName, match="MODELHUB_CACHE_SIZE"):
        cache.folder(versions[1], store)


def test_what_is_being_linked_stays(cache: Cache, store: BlobStore, versions: list[tuple[File, ...]]) -> None:
    """A lease of a living process keeps files from being pruned, one of a dead process does not."""
    for files in versions:
        cache.folder(files, store)
    with cache.lease(versions[2]):
        assert Cache(cache.path).prune(0) == 3 * 8192
        assert cache.cached_folder(versions[2]) is not None
        code = f"import os; from modelhub_sdk.blobs.cache import Cache; c = Cache({cache.path!r}).lease([]); c.__enter__(); os._exit(0)"
        subprocess.run([sys.executable, "-c", code], check=True)
        assert len(os.listdir(Path(cache.path, "v1", "leases"))) == 2
    assert cache.prune(0) == 8192
    assert os.listdir(Path(cache.path, "v1", "leases")) == []
    assert cache.info().size == cache.info().folders == 0


def test_pruned_under_a_reader(cache: Cache, store: BlobStore, versions: list[tuple[File, ...]]) -> None:
    """An open file of a pruned folder reads on; the next resolve brings the folder back."""
    folder = cache.folder(versions[0], store)
    with open(folder / "a", "rb") as file:
        cache.clear()
        assert not folder.exists()
        assert file.read() == pattern(4096, 0)
    assert (cache.folder(versions[0], store) / "a").read_bytes() == pattern(4096, 0)


def test_dropped_blobs_go_with_their_folders(
    cache: Cache, store: BlobStore, versions: list[tuple[File, ...]]
) -> None:
    """What is dropped is in no folder any more; the rest stays."""
    folders = [cache.folder(files, store) for files in versions]
    assert cache.drop([versions[1][0].digest, "sha256:" + "0" * 64]) == 4096
    assert [folder.exists() for folder in folders] == [True, False, True, True]
    assert cache.get(versions[1][0].digest) is None
    assert cache.get(versions[1][1].digest) is not None


# --- at once --------------------------------------------------------------------------------------------


def test_a_warm_folder_takes_no_lock_and_writes_nothing(
    cache: Cache, store: BlobStore, versions: list[tuple[File, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there in full is returned without a lock, a written byte or the store; its use is noted hourly."""
    folder = cache.folder(versions[0], store)
    cold = Cache(cache.path)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a warm resolve must not do this")

    monkeypatch.setattr(disk, "try_lock", never)
    monkeypatch.setattr(disk, "create", never)
    assert cold.folder(versions[0], None) == folder  # type: ignore[arg-type]
    note = Path(cache.path, "v1", "whole", folder.name)
    before = note.stat().st_mtime_ns
    cold.folder(versions[0], None)  # type: ignore[arg-type]
    assert note.stat().st_mtime_ns == before
    aged(cache, 2)
    cold.folder(versions[0], None)  # type: ignore[arg-type]
    assert time.time() - note.stat().st_mtime < 60


def _flip(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(bytes(pattern(4096, 99)))


def _grow(path: Path) -> None:
    path.chmod(0o644)
    with open(path, "ab") as file:
        file.write(b"x")


def _cut(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 5)


def _link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _more(path: Path) -> None:
    path.with_name("more").write_bytes(b"x")


def _swap(path: Path) -> None:
    other = path.parent / "d" / "b"
    path.rename(path.with_name("x"))
    other.rename(path)
    path.with_name("x").rename(other)


@pytest.mark.parametrize("damage", [_flip, _grow, _cut, _link, _folder, _more, _swap, Path.unlink])
def test_a_damaged_folder_heals(
    cache: Cache, store: BlobStore, versions: list[tuple[File, ...]], damage: Callable[[Path], None]
) -> None:
    """Whatever somebody did to a folder in the cache, the next resolve gives the right bytes again."""
    folder = cache.folder(versions[0], store)
    for at in (folder, folder / "d"):
        at.chmod(0o755)
    damage(folder / "a")
    for reader in (cache, Cache(cache.path)):
        again = reader.folder(versions[0], store)
        assert (again / "a").read_bytes() == pattern(4096, 0)
        assert (again / "d" / "b").read_bytes() == pattern(4096, 1)
        assert sorted(os.listdir(again)) == ["a", "d"]
        assert stat.S_ISREG(os.lstat(again / "a").st_mode)


def test_a_flip_that_keeps_size_and_time_is_found_by_verify(
    cache: Cache, store: BlobStore, versions: list[tuple[File, ...]]
) -> None:
    """A wrong byte behind an unchanged size and mtime is found by reading; then folders are made anew."""
    folder = cache.folder(versions[0], store)
    info = os.stat(folder / "a")
    _flip(folder / "a")
    os.chmod(folder / "a", 0o444)
    os.utime(folder / "a", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert hub.cache.verify(cache_dir=cache.path) == (versions[0][0].digest,)
    assert (Cache(cache.path).folder(versions[0], store) / "a").read_bytes() == pattern(4096, 0)
    assert (cache.folder(versions[0], store) / "a").read_bytes() == pattern(4096, 0)


# --- going on -------------------------------------------------------------------------------------------


class Halting(BlobStore):
    """A store whose transfers stop after so many bytes, and that tells from where they began."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.begun: list[int] = []
        self.stop_at: int | None = None
        self.error: BaseException = KeyboardInterrupt()

    def fetch(self, digest: str, size: int, to: Any, *, progress: Any = None) -> None:
        self.begun.append(os.fstat(to).st_size)
        seen = 0

        def step(count: int) -> None:
            nonlocal seen
            seen += count
            if self.stop_at is not None and seen >= self.stop_at:
                raise self.error

        super().fetch(digest, size, to, progress=step)


@pytest.fixture
def halting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Halting:
    from modelhub_sdk.blobs import link

    monkeypatch.setattr(link, "clone", lambda source, target: False)
    return Halting(tmp_path / "store", registry_id="r1")


def test_an_interrupted_transfer_goes_on(cache: Cache, halting: Halting) -> None:
    """What Ctrl-C leaves of a large file is where the next transfer begins; small ones begin anew."""
    file = halting.put(from_bytes(pattern(BIG), "big"))
    halting.stop_at = 8 << 20
    with pytest.raises(KeyboardInterrupt):
        cache.fetch(file, halting)
    halting.stop_at = None
    assert Cache(cache.path).fetch(file, halting).read_bytes() == pattern(BIG)
    assert halting.begun[0] == 0
    assert halting.begun[1] >= 8 << 20
    assert os.listdir(Path(cache.path, "v1", "partial")) == []


@pytest.mark.parametrize("what", ["wrong", "longer", "link", "folder", "fifo"])
def test_a_bad_remainder_is_not_believed(cache: Cache, halting: Halting, what: str, tmp_path: Path) -> None:
    """A remainder with other bytes, or that is no plain file, costs a fresh transfer and nothing else."""
    file = halting.put(from_bytes(pattern(BIG), "big"))
    folder = Path(cache.path, "v1", "partial")
    folder.mkdir(parents=True)
    rest = folder / f"{file.digest[7:]}.free.{'0' * 32}"
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    if what == "wrong":
        rest.write_bytes(b"\1" * (9 << 20))
    elif what == "longer":
        rest.write_bytes(b"\1" * (BIG + 1))
    elif what == "link":
        rest.symlink_to(precious)
    elif what == "folder":
        rest.mkdir()
    else:
        os.mkfifo(rest)
    path = cache.fetch(file, halting)
    assert path.read_bytes() == pattern(BIG)
    assert precious.read_bytes() == b"mine"
    assert path.stat().st_mode & 0o777 == 0o444


def test_a_killed_transfer_is_adopted(cache: Cache, halting: Halting, kill: Any) -> None:
    """After kill -9 the next process goes on from the bytes that had come."""
    file = halting.put(from_bytes(pattern(BIG), "big"))
    code = f"""
        import sys, time
        from modelhub_sdk.blobs import link
        from modelhub_sdk.blobs.cache import Cache
        from modelhub_sdk.blobs.store import BlobStore
        from modelhub_sdk.domain.entities import File
        link.clone = lambda source, target: False
        class Slow(BlobStore):
            def fetch(self, digest, size, to, *, progress=None):
                super().fetch(digest, size, to, progress=lambda count: time.sleep(0.05))
        Cache({cache.path!r}).fetch(File("big", {file.size}, {file.digest!r}), Slow({halting.url!r}, registry_id="r1"))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], text=True)
    partial = Path(cache.path, "v1", "partial")
    kill(
        process, lambda: partial.is_dir() and any(p.stat().st_size > 6 << 20 for p in partial.iterdir()), 0.0
    )
    assert process.wait() == -signal.SIGKILL
    assert cache.fetch(file, halting).read_bytes() == pattern(BIG)
    assert halting.begun[0] > 6 << 20
    assert os.listdir(partial) == []


def test_remainders_do_not_stay_for_ever(cache: Cache, halting: Halting) -> None:
    """An interrupted transfer is thrown away after a day, or when the cache is pruned."""
    file = halting.put(from_bytes(pattern(BIG), "big"))
    partial = Path(cache.path, "v1", "partial")
    halting.stop_at = 8 << 20
    for clean in (cache.clear, cache.sweep):
        with pytest.raises(KeyboardInterrupt):
            cache.fetch(file, halting)
        (rest,) = partial.iterdir()
        assert cache.info().unfinished >= 8 << 20
        assert cache.sweep() == 0
        os.utime(rest, (time.time() - 2 * cache_module._ABANDONED,) * 2)
        clean()
        assert list(partial.iterdir()) == []


# --- a cache that cannot be written -----------------------------------------------------------------------


def test_a_baked_cache_gets_an_overlay(
    cache: Cache, store: BlobStore, versions: list[tuple[File, ...]], as_nobody: Callable[..., Any]
) -> None:
    """Where a cache of somebody else lacks something, it goes to a folder of this user; what is there is used."""
    warm = cache.folder(versions[0], store)
    for at in (cache.path, store.root or ""):
        for folder, _, names in os.walk(at):
            os.chmod(folder, 0o555)
            for name in names:
                os.chmod(os.path.join(folder, name), 0o444)

    def work() -> tuple[bool, bytes, bool]:
        mine = Cache(cache.path)
        here = mine.folder(versions[0], store) == warm
        other = mine.folder(versions[1], store)
        mixed = mine.folder((versions[0][0], versions[2][1]), store)
        return here, (other / "a").read_bytes(), (mixed / "d" / "b").read_bytes() == pattern(4096, 5)

    assert as_nobody(work) == (True, pattern(4096, 2), True)


# --- what users call --------------------------------------------------------------------------------------


def test_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hub.cache` tells of, prunes, verifies and clears the cache that registries use by default."""
    monkeypatch.setenv("MODELHUB_CACHE_DIR", str(tmp_path / "mine"))
    with hub.open("memory://") as reg:
        reg.register("churn", {"m.bin": pattern(8192)})
        folder = Path(reg.resolve("churn/v1").path)
        found = hub.cache.info()
        assert (found.path, found.blobs, found.folders, found.size) == (str(tmp_path / "mine"), 1, 1, 8192)
        assert hub.cache.verify() == ()
        assert hub.cache.prune() == hub.cache.prune("8192") == 0
        assert folder.exists()
        assert hub.cache.prune(max_size="8kB") == 8192
        assert not folder.exists()
        assert Path(reg.resolve("churn/v1").path, "m.bin").read_bytes() == pattern(8192)
        with monkeypatch.context() as patch:
            patch.setenv("MODELHUB_CACHE_SIZE", "8000")
            assert hub.cache.prune() == 8192
        assert Path(reg.resolve("churn/v1").path, "m.bin").read_bytes() == pattern(8192)
        assert hub.cache.clear() == 8192
        assert hub.cache.info(cache_dir=tmp_path / "other").size == 0
    with pytest.raises(InvalidName, match="relative"):
        hub.cache.info(cache_dir="here")
