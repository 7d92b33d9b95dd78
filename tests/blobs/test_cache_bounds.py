"""How the cache stays small, goes on with what was interrupted, and answers at once when all is there."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
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
from modelhub_sdk.errors import InvalidName, StoreUnavailable

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


@pytest.mark.parametrize(
    "given",
    [
        -1,
        True,
        None,
        "",
        "GB",
        "-1",
        "1 XB",
        "1e3",
        1.5,
        b"1",
        10**30,
        "9" * 400,
        "9" * 400 + "GB",
        "9" * 5000,
    ],
)
def test_what_is_no_size(given: Any) -> None:
    """Anything else is refused with the name of the setting."""
    with pytest.raises(InvalidName, match="max_size"):
        parse_size(given)


@pytest.mark.parametrize("value", ["", " ", "much", "-1", "9" * 400 + "GB"])
def test_a_wrong_bound_is_told_at_once(cache: Cache, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A setting that is no size, or empty, is named when the cache is opened, not in the middle of a transfer."""
    monkeypatch.setenv("MODELHUB_CACHE_SIZE", value)
    with pytest.raises(InvalidName, match="MODELHUB_CACHE_SIZE"):
        Cache(cache.path)
    with pytest.raises(InvalidName, match="MODELHUB_CACHE_SIZE"):
        hub.open("memory://")


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


def test_a_lease_that_comes_while_it_is_pruned_counts(
    cache: Cache, store: BlobStore, versions: list[tuple[File, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who begins to link when prune has already looked at leases finds the blobs: they are looked at again."""
    for files in versions[:2]:
        cache.folder(files, store)
    late = Cache(cache.path).lease(versions[0])
    real = Cache._condemn

    def condemn(self: Cache, path: str, digest: str) -> None:
        real(self, path, digest)
        if not os.path.isdir(Path(cache.path, "v1", "leases")) or not os.listdir(
            Path(cache.path, "v1", "leases")
        ):
            late.__enter__()

    monkeypatch.setattr(Cache, "_condemn", condemn)
    assert cache.prune(0) == 8192
    assert all(cache.get(file.digest) is not None for file in versions[0])
    late.__exit__(None, None, None)


def test_a_folder_that_cannot_be_removed_keeps_its_blobs(
    cache: Cache, store: BlobStore, versions: list[tuple[File, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a group's cache a folder of another user stays, and so do its blobs: no byte would be freed."""
    kept = cache.folder(versions[0], store)
    cache.folder(versions[1], store)
    real = Cache._condemn

    def condemn(self: Cache, path: str, digest: str) -> None:
        if path != str(kept):
            real(self, path, digest)

    monkeypatch.setattr(Cache, "_condemn", condemn)
    assert cache.prune(0) == 8192
    assert cache.info().size == 8192
    assert cache.cached_folder(versions[0]) == kept


def test_the_bound_is_kept_when_leases_are_over(
    cache: Cache, store: BlobStore, versions: list[tuple[File, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others were linking during a transfer can go when ours is over: at rest the cache is within its bound."""
    cache.folder(versions[0], store)
    cache.folder(versions[1], store)
    monkeypatch.setenv("MODELHUB_CACHE_SIZE", "17kB")
    with cache.lease(versions[2]):
        with Cache(cache.path).lease((*versions[0], *versions[1])):
            cache.fetch_all(versions[2], store)
        assert cache.info().size == 3 * 8192
    assert cache.info().size == 2 * 8192
    assert all(cache.get(file.digest) is not None for file in versions[2])


def test_ctrl_c_leaves_no_lease(
    cache: Cache, versions: list[tuple[File, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt right after a lease was written takes it away: a living process would hold it for ever."""
    real = os.replace

    def replace(*args: Any) -> None:
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt), cache.lease(versions[0]):
        pass
    with pytest.raises(KeyboardInterrupt), cache.holding() as hold:
        hold(versions[0])
    assert os.listdir(Path(cache.path, "v1", "leases")) == []


class Measuring(BlobStore):
    """A store that looks how much is cached when it is asked, and can find the disk full."""

    cache: Cache
    full = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[int] = []

    def fetch(self, digest: str, size: int, to: Any, *, progress: Any = None) -> None:
        self.seen.append(self.cache.info().size)
        if self.full:
            self.full -= 1
            raise StoreUnavailable("Cannot write the copy.", errno=errno.ENOSPC)
        super().fetch(digest, size, to, progress=progress)


@pytest.fixture
def measuring(tmp_path: Path, cache: Cache) -> Measuring:
    store = Measuring(tmp_path / "store", registry_id="r1")
    store.cache = cache
    return store


def test_room_is_made_before_a_transfer(
    cache: Cache, store: BlobStore, measuring: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bounded cache is within its bound while bytes come, not only afterwards, and keeps what it has of the wanted."""
    one, two, three = store.put_all([from_bytes(pattern(8192, n), str(n)) for n in range(3)])
    cache.fetch_all([one, two], store)
    monkeypatch.setenv("MODELHUB_CACHE_SIZE", "17kB")
    cache.fetch_all([one, three], measuring)
    assert measuring.seen == [8192]
    assert [cache.get(file.digest) is not None for file in (one, two, three)] == [True, False, True]


def test_a_full_disk_under_a_bound_is_cleared_once(
    cache: Cache, store: BlobStore, measuring: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space: what nobody is linking goes, and the transfer is tried again; without a bound nothing goes."""
    one, two, three, four = store.put_all([from_bytes(pattern(8192, n), str(n)) for n in range(4)])
    cache.fetch_all([one, two], store)
    measuring.full = 1
    with pytest.raises(StoreUnavailable, match=re.escape(cache.path)):
        cache.fetch_all([three], measuring)
    assert cache.info().size == 2 * 8192
    monkeypatch.setenv("MODELHUB_CACHE_SIZE", "1MB")
    measuring.full = 1
    with cache.lease([two]):
        cache.fetch_all([three], measuring)
    assert [cache.get(file.digest) is not None for file in (one, two, three)] == [False, True, True]
    measuring.full = 2
    with pytest.raises(StoreUnavailable) as caught:
        cache.fetch_all([four], measuring)
    assert caught.value.errno == errno.ENOSPC


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


def _left(cache: Cache, file: File, seconds: float, *, pid: int | None = None) -> Path:
    """Leave what a process of a name space that cannot be asked was killed at, so many seconds ago."""
    folder = Path(cache.path, "v1", "partial")
    folder.mkdir(parents=True, exist_ok=True)
    where = "0123456789ab" if pid is None else disk.temporary().rsplit(".", 3)[1]
    rest = folder / f"{file.digest[7:]}.{where}.{pid or 7}.abcdefabcdef"
    rest.write_bytes(pattern(8 << 20))
    os.utime(rest, (time.time() - seconds,) * 2)
    return rest


@pytest.mark.parametrize("pid", [None, os.getpid()], ids=["another", "ours"])
def test_a_transfer_of_another_name_space_is_gone_on_with(
    cache: Cache, halting: Halting, pid: int | None
) -> None:
    """A container that was killed and started again, with the same process id, goes on where it was; a copy is taken."""
    file = halting.put(from_bytes(pattern(BIG), "big"))
    rest = _left(cache, file, 120, pid=pid)
    with open(rest, "r+b") as writer:  # as if it lived after all, on a disk whose locks lie
        path = cache.fetch(file, halting)
        writer.seek(0)
        writer.write(b"x" * 4096)
    assert halting.begun == [8 << 20]
    assert path.read_bytes() == pattern(BIG)
    assert os.listdir(rest.parent) == []


@pytest.mark.parametrize("why", ["locked", "recent"])
def test_a_transfer_that_may_be_on_is_left_alone(cache: Cache, halting: Halting, why: str) -> None:
    """One whose writer holds its lock, or wrote within the last minute, is neither taken over nor removed."""
    import fcntl

    file = halting.put(from_bytes(pattern(BIG), "big"))
    rest = _left(cache, file, 3 * 86400 if why == "locked" else 5)
    with open(rest, "r+b") as writer:
        if why == "locked":
            fcntl.flock(writer, fcntl.LOCK_EX)
        assert cache.fetch(file, halting).read_bytes() == pattern(BIG)
        assert halting.begun == [0]
        cache.sweep(partial=True)
        assert rest.exists()
        cache.clear()
        assert rest.stat().st_size == 8 << 20


def test_a_writer_that_was_taken_for_dead_gets_the_blob(cache: Cache, halting: Halting) -> None:
    """Whose file was removed under it, as somebody else went on, ends with what that one has fetched."""
    file = halting.put(from_bytes(pattern(BIG), "big"))
    real = halting.fetch

    def fetch(digest: str, size: int, to: Any, *, progress: Any = None) -> None:
        real(digest, size, to, progress=progress)
        if len(halting.begun) == 1:
            for rest in Path(cache.path, "v1", "partial").iterdir():
                rest.unlink()
            cache._admit(file, halting, None)

    halting.fetch = fetch
    assert cache.fetch(file, halting).read_bytes() == pattern(BIG)
    assert len(halting.begun) == 2


def test_what_is_interrupted_counts_under_a_bound(
    cache: Cache, halting: Halting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody goes on with is the first to go when the cache is too large with it; what is wanted now is kept."""
    big, small = halting.put_all([from_bytes(pattern(BIG), "big"), from_bytes(pattern(8192), "small")])
    rest = _left(cache, big, 120)
    monkeypatch.setenv("MODELHUB_CACHE_SIZE", "8MiB")
    with Cache(cache.path).lease([big]):
        cache.fetch_all([small], halting)
        assert rest.exists()
    cache.prune(unfinished=False)
    assert not rest.exists()
    assert cache.info().size == 8192


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
    _baked(cache, store)

    def work() -> tuple[bool, bytes, bool, list[int]]:
        mine = Cache(cache.path)
        here = mine.folder(versions[0], store) == warm
        other = mine.folder(versions[1], store)
        mixed = mine.folder((versions[0][0], versions[2][1]), store)
        right = (mixed / "d" / "b").read_bytes() == pattern(4096, 5)
        content = (other / "a").read_bytes()
        counts = [mine.info().blobs, len(mine.verify()), mine.clear() > 0, mine.info().blobs]
        return here, content, right, counts

    blobs = cache.info().blobs
    assert as_nobody(work) == (True, pattern(4096, 2), True, [blobs + 3, 0, True, blobs])


def _baked(cache: Cache, store: BlobStore) -> None:
    for at in (cache.path, store.root or ""):
        for folder, _, names in os.walk(at):
            os.chmod(folder, 0o555)
            for name in names:
                os.chmod(os.path.join(folder, name), 0o444)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of temporary files of this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_part_of_a_baked_version_resolves_offline(
    cache: Cache,
    store: BlobStore,
    versions: list[tuple[File, ...]],
    as_nobody: Callable[..., Any],
    temporary: Path,
) -> None:
    """Without the store a new folder of files that are there is made beside a cache that cannot be written."""
    cache.folder(versions[0], store)
    _baked(cache, store)

    def work() -> bytes:
        folder = Cache(cache.path).cached_folder(versions[0][1:])
        assert folder is not None
        return (folder / "d" / "b").read_bytes()

    assert as_nobody(work) == pattern(4096, 1)
    assert as_nobody(work) == pattern(4096, 1)


def test_what_an_earlier_process_fetched_is_found(
    cache: Cache,
    store: BlobStore,
    versions: list[tuple[File, ...]],
    as_nobody: Callable[..., Any],
    temporary: Path,
) -> None:
    """The overlay of a cache that cannot be written is looked into without the store: folders, bytes and notes."""
    cache.folder(versions[0], store)
    _baked(cache, store)
    pin = Path(cache.path, "pins", "x", "v1.json")

    def first() -> None:
        mine = Cache(cache.path)
        mine.folder(versions[1], store)
        mine.keep(pin, b"{}")

    def later() -> tuple[bool, bool, bytes, bool]:
        mine = Cache(cache.path)
        folder = mine.cached_folder(versions[1])
        mixed = mine.cached_folder((versions[0][0], versions[1][1]))
        kept = mine.note(pin).read_bytes() if mine.note(pin.parent).is_dir() else b""
        return folder is not None, mixed is not None, kept, mine.get(versions[1][0].digest) is not None

    def purged() -> tuple[int, bool]:
        mine = Cache(cache.path)
        return mine.drop([versions[1][0].digest]) >= 4096, mine.cached_folder(versions[1]) is None

    as_nobody(first)
    assert as_nobody(later) == (True, True, b"{}", True)
    assert as_nobody(purged) == (True, True)
    assert not pin.exists()


def test_a_layer_with_other_times_is_hashed_once(
    cache: Cache,
    store: BlobStore,
    versions: list[tuple[File, ...]],
    as_nobody: Callable[..., Any],
    temporary: Path,
) -> None:
    """An image keeps times to the second: what that costs in hashing is noted for this user, for all processes."""
    cache.folder(versions[0], store)
    cache.fetch_all(versions[1], store)
    for folder, _, names in os.walk(cache.path):
        for name in names:
            os.utime(os.path.join(folder, name), (1000.0, 1000.0))
    _baked(cache, store)

    def work() -> int:
        hashed: list[Any] = []
        real, disk.hash_file = disk.hash_file, lambda *a, **k: hashed.append(a) or real(*a, **k)
        mine = Cache(cache.path)
        assert mine.folder(versions[0], store).is_relative_to(cache.path)
        assert len(mine.fetch_all(versions[1], store)) == 2
        return len(hashed)

    assert as_nobody(work) == 4
    assert as_nobody(work) == 0


@pytest.mark.parametrize("mode", [None, 0o777])
def test_an_overlay_that_others_made_is_refused(
    cache: Cache,
    store: BlobStore,
    versions: list[tuple[File, ...]],
    as_nobody: Callable[..., Any],
    temporary: Path,
    mode: int | None,
) -> None:
    """A folder of our name among the temporary ones, another user's or open to all, is not written and not read."""
    cache.folder(versions[0], store)
    _baked(cache, store)
    place = temporary / f"modelhub-{as_nobody(os.geteuid)}"

    def plant() -> None:
        place.mkdir()
        place.chmod(mode or 0o755)

    if mode is None:
        if os.geteuid() != 0:
            pytest.skip("needs another user")
        plant()
    else:
        as_nobody(plant)
    assert as_nobody(lambda: Cache(cache.path).folder(versions[0], store).is_dir())
    with pytest.raises(StoreUnavailable, match="not trusted.*MODELHUB_CACHE_DIR"):
        as_nobody(lambda: Cache(cache.path).folder(versions[1], store))


# --- what users call --------------------------------------------------------------------------------------


def test_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hub.cache` tells of, prunes, verifies and clears the cache that registries use by default."""
    monkeypatch.setenv("MODELHUB_CACHE_DIR", str(tmp_path / "mine"))
    with hub.open("memory://") as reg:
        reg.register("churn", {"m.bin": pattern(8192)})
        folder = Path(reg.resolve("churn/v1").path)
        found = hub.cache.info()
        assert (found.path, found.blobs, found.folders, found.size) == (str(tmp_path / "mine"), 1, 1, 8192)
        assert str(found).endswith("mine: 8.2 kB, 1 file, 1 folder")
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
