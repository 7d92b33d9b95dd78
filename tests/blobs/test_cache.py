"""The cache: right bytes or none, whatever happened to its files, its locks and its neighbours."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modelhub_sdk.blobs import cache as cache_module
from modelhub_sdk.blobs import disk
from modelhub_sdk.blobs.cache import Cache, locate
from modelhub_sdk.blobs.sources import from_bytes
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.domain.entities import File
from modelhub_sdk.errors import (
    DigestMismatch,
    InvalidName,
    ModelHubError,
    NotFound,
    StoreUnavailable,
)
from modelhub_sdk.formats import manifest
from tests.support.threads import at_once


def pattern(size: int, seed: int = 0) -> bytes:
    return (hashlib.sha256(bytes([seed])).digest() * (size // 32 + 1))[:size]


class Counting(BlobStore):
    """A store that counts its transfers, and can be made slow or wrong."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fetched: list[str] = []
        self.slow = 0.0
        self.fail: list[Any] = []

    def fetch(self, digest: str, size: int, to: Any, *, progress: Any = None) -> None:
        self.fetched.append(digest)
        if self.fail:
            answer = self.fail.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            os.write(to, answer)
            raise disk.mismatch(digest, "sha256:" + "0" * 64, self.url)
        time.sleep(self.slow)
        super().fetch(digest, size, to, progress=progress)


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    return Counting(tmp_path / "store", registry_id="r1")


@pytest.fixture
def files(store: Counting) -> tuple[File, ...]:
    return store.put_all(
        [
            from_bytes(pattern(5000), "a.bin"),
            from_bytes(b"", "d/empty"),
            from_bytes(pattern(70_000, 1), "d/é.bin"),
        ]
    )


def unfinished(cache: Cache) -> list[str]:
    places = [Path(cache.path, "v1", part) for part in ("tmp", "partial", "locks", "bad", "leases")]
    return [name for place in places if place.is_dir() for name in os.listdir(place)]


# --- where it is


def test_the_setting_wins_over_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """cache_dir=, then $MODELHUB_CACHE_DIR, then the user's cache folder."""
    assert locate().startswith(os.environ["XDG_CACHE_HOME"])
    monkeypatch.setenv("MODELHUB_CACHE_DIR", str(tmp_path / "x"))
    assert locate() == str(tmp_path / "x")
    assert locate(tmp_path / "y") == str(tmp_path / "y")


@pytest.mark.parametrize("value", [5, b"/tmp/x", "/tmp/\ud800", 1.5, ["/tmp"]])
def test_what_is_no_path_is_refused(value: Any) -> None:
    """What cannot name a folder is an error of ours that names the parameter."""
    with pytest.raises(InvalidName, match="cache_dir"):
        Cache(value)


@pytest.mark.parametrize("value", ["", "relative/dir", ".", "./x"])
def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Empty and relative values are refused, and the message names the setting."""
    monkeypatch.setenv("MODELHUB_CACHE_DIR", value)
    with pytest.raises(InvalidName, match="MODELHUB_CACHE_DIR"):
        Cache()
    with pytest.raises(InvalidName, match="cache_dir"):
        Cache(value)


def test_not_inside_the_artifacts(tmp_path: Path) -> None:
    """A cache inside the artifact store would delete artifacts when it is cleaned, also through a link."""
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    for path in ("store", "store/cache", "link/cache"):
        with pytest.raises(InvalidName, match="artifact"):
            Cache(tmp_path / path, outside=[tmp_path / "store"])
    Cache(tmp_path / "store2", outside=[tmp_path / "store"])


def test_without_a_home_the_temporary_folder_serves(
    tmp_path: Path, as_nobody: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No home and no passwd entry: $TMPDIR; with nothing writable a typed error that names the setting."""
    import tempfile

    os.chmod(tmp_path, 0o777)
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert as_nobody(locate).startswith(str(tmp_path) + "/modelhub-")
    (tmp_path / "locked").mkdir(mode=0o555)
    store = BlobStore(tmp_path / "store", registry_id="r1")
    file = store.put(from_bytes(b"abc"))
    with pytest.raises(StoreUnavailable, match="MODELHUB_CACHE_DIR"):
        as_nobody(lambda: Cache(tmp_path / "locked" / "c").fetch(file, store))


def test_naming_a_cache_creates_nothing(tmp_path: Path, files: tuple[File, ...]) -> None:
    """Opening, asking and describing leave no trace."""
    cache = Cache(tmp_path / "c")
    assert cache.get(files[0].digest, 5000) is None
    assert cache.cached_folder(files) is None
    assert cache.info().blobs == cache.prune() == cache.clear() == 0
    assert cache.verify() == ()
    assert not (tmp_path / "c").exists()


# --- one file


def test_a_file_is_fetched_once(cache: Cache, store: Counting, files: tuple[File, ...]) -> None:
    """The first fetch transfers, the next ones do not, in this and in another process; progress is told either way."""
    for told in ([], []):
        path = cache.fetch(files[0], store, progress=told.append)
        assert path.read_bytes() == pattern(5000)
        assert sum(told) == 5000
    assert Cache(cache.path).fetch(files[0], store) == path
    assert cache.get(files[0].digest, 5000) == path == cache.get(files[0].digest)
    assert store.fetched == [files[0].digest]
    assert unfinished(cache) == []


def test_a_cache_in_a_default_place_is_private(store: Counting, files: tuple[File, ...]) -> None:
    """Where nobody named it its folders are for their owner only, and bytes are read-only."""
    cache = Cache()
    path = cache.fetch(files[0], store)
    assert stat.S_IMODE(path.stat().st_mode) & 0o222 == 0
    for folder in (path.parent, path.parent.parent, Path(cache.path), Path(cache.path, "v1", "tmp")):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(os.stat(f"{path}.note").st_mode) == 0o600


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
@pytest.mark.parametrize(
    ("top", "inside"),
    [(None, None), (0o755, 0o755), (0o700, 0o700), (0o2770, 0o2770), (0o777, 0o777), (0o1777, 0o1777)],
)
def test_a_named_cache_is_as_open_as_its_folder(
    tmp_path: Path, store: Counting, files: tuple[File, ...], top: int | None, inside: int | None, umask: int
) -> None:
    """The permissions of a folder that exists go on to all in it; one that we make is nobody else's to write to."""
    place = tmp_path / "named"
    if top is not None:
        place.mkdir()
        place.chmod(top)
    before = os.umask(umask)
    try:
        cache = Cache(place)
        folder = cache.folder(files, store)
        cache.keep(place / "pins" / "x", b"{}")
    finally:
        os.umask(before)
    wanted = 0o755 & ~umask if inside is None else inside
    path = cache.get(files[0].digest)
    for at in (
        place,
        path.parent,
        folder.parent,
        place / "v1" / "tmp",
        place / "v1" / "whole",
        place / "pins",
    ):
        assert stat.S_IMODE(at.stat().st_mode) == wanted, at
    for note in (Path(f"{path}.note"), place / "v1" / "whole" / folder.name, place / "pins" / "x"):
        assert stat.S_IMODE(note.stat().st_mode) == wanted & 0o666, note
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_a_cache_that_cannot_be_read_says_so(
    tmp_path: Path, store: Counting, files: tuple[File, ...], as_nobody: Callable[..., Any]
) -> None:
    """Whoever may not look into a cache is told that, and not that it is empty or cannot be written."""
    if os.geteuid() != 0:
        pytest.skip("needs another user")
    place = tmp_path / "closed"
    place.mkdir(mode=0o700)
    Cache(place).folder(files, store)
    for at in (store.root, place.parent):
        for folder, _, _ in os.walk(at):
            if str(place) not in str(folder):
                os.chmod(folder, 0o755)
    for work in (
        lambda: Cache(place).folder(files, store),
        lambda: Cache(place).cached_folder(files),
        lambda: Cache(place).info(),
        lambda: Cache(place).verify(),
        lambda: Cache(place).prune(0),
    ):
        with pytest.raises(StoreUnavailable, match=r"cannot be read.*MODELHUB_CACHE_DIR"):
            as_nobody(work)


def _temporary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let there be no home, and *folder* for temporary files; return where the cache of this user is then."""
    import tempfile

    folder.mkdir(mode=0o1777, exist_ok=True)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder / f"modelhub-{os.geteuid()}"


def _plant(place: Path, how: str) -> None:
    if how == "link":
        (place.parent / "other").mkdir()
        place.symlink_to("other")
    elif how == "file":
        place.write_bytes(b"")
    else:
        place.mkdir()
        place.chmod({"writable": 0o757, "for the group": 0o770}.get(how, 0o700))
        if how == "of another user":
            if os.geteuid() != 0:
                pytest.skip("needs root")
            os.chown(place, 12345, 12345)


PLANTED = ["link", "file", "writable", "for the group", "of another user"]


@pytest.mark.parametrize("how", PLANTED)
def test_what_others_made_among_temporary_folders_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Where anybody can make a folder of our name, one that is not this user's alone is never believed."""
    place = _temporary(tmp_path / "tmp", monkeypatch)
    _plant(place, how)
    with pytest.raises(StoreUnavailable, match=r"owner .*MODELHUB_CACHE_DIR") as caught:
        Cache()
    assert str(place) in str(caught.value)


def test_a_planted_blob_is_not_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Counting, files: tuple[File, ...]
) -> None:
    """The folder is ours from the first look on; one that came in its place later is refused, with all in it."""
    place = _temporary(tmp_path / "tmp", monkeypatch)
    cache = Cache()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    cache.folder(files, store)
    shutil.copytree(place, tmp_path / "evil")
    shutil.rmtree(place)
    assert cache.folder(files, store).is_dir()
    shutil.rmtree(place)
    (tmp_path / "evil").rename(place)
    place.chmod(0o777)
    for work in (cache.folder, cache.fetch_all):
        with pytest.raises(StoreUnavailable, match="not trusted"):
            work(files, store)
    with pytest.raises(StoreUnavailable, match="not trusted"):
        cache.cached_folder(files)


def corrupt(path: Path, how: str, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    path.chmod(0o644)
    if how == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif how == "flip by another inode":
        data[rng.randrange(len(data))] ^= 1
        path.unlink()
        path.write_bytes(data)
    elif how == "truncate":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif how == "extend":
        path.write_bytes(data + b"x")
    elif how == "link to a device":
        path.unlink()
        path.symlink_to("/dev/zero")
    elif how == "link to a twin":
        shutil.copy(path, path.with_name("twin"))
        path.unlink()
        path.symlink_to("twin")
    elif how == "fifo":
        path.unlink()
        os.mkfifo(path)
    elif how == "folder":
        path.unlink()
        path.mkdir()
        (path / "x").write_bytes(b"")
    else:
        path.unlink()


HOW = [
    "flip", "flip by another inode", "truncate", "extend", "link to a device", "link to a twin", "fifo", "folder",
    "gone",
]  # fmt: skip


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("fresh", [True, False])
def test_wrong_entries_heal(
    cache: Cache, store: Counting, files: tuple[File, ...], how: str, fresh: bool
) -> None:
    """Every kind of damage is found on the next use and healed from the store; wrong bytes are never handed out."""
    rng = random.Random(how)
    for _ in range(10):
        path = cache.fetch(files[2], store)
        corrupt(path, how, rng)
        user = Cache(cache.path) if fresh else cache
        found = user.get(files[2].digest, files[2].size)
        assert found is None
        assert user.fetch(files[2], store).read_bytes() == pattern(70_000, 1)
    assert unfinished(cache) == []


def test_swapped_entries_heal(cache: Cache, store: Counting) -> None:
    """Two entries of one size, exchanged for each other, are both found."""
    one, two = store.put_all([from_bytes(pattern(100, 1), "1"), from_bytes(pattern(100, 2), "2")])
    a, b = cache.fetch(one, store), cache.fetch(two, store)
    os.rename(a, b.with_name("x"))
    os.rename(b, a)
    os.rename(b.with_name("x"), b)
    assert cache.get(one.digest, 100) is None
    assert cache.get(two.digest, 100) is None


def test_a_touched_entry_is_read_once_and_kept(
    cache: Cache, store: Counting, files: tuple[File, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another mtime with right bytes (a restored backup) is hashed once, and then trusted again."""
    path = cache.fetch(files[0], store)
    os.utime(path, (1, 1))
    hashed: list[Any] = []
    real = disk.hash_file
    monkeypatch.setattr(disk, "hash_file", lambda p, **k: hashed.append(p) or real(p, **k))
    for _ in range(3):
        assert Cache(cache.path).get(files[0].digest, 5000) == path
    assert len(hashed) == 1
    assert len(store.fetched) == 1


def test_always_finds_what_hides(cache: Cache, store: Counting, files: tuple[File, ...]) -> None:
    """A flip that keeps size, mtime and inode passes the quick check and not verify="always"."""
    path = cache.fetch(files[0], store)
    before = path.stat()
    path.chmod(0o644)
    with open(path, "r+b") as file:
        file.write(b"\xff")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.get(files[0].digest, 5000) is not None
    assert cache.fetch(files[0], store, verify="always").read_bytes() == pattern(5000)
    with pytest.raises(InvalidName):
        cache.fetch(files[0], store, verify="sometimes")


def test_notes_can_be_torn(cache: Cache, store: Counting, files: tuple[File, ...]) -> None:
    """A missing, empty, cut, odd or linked note costs a second reading, nothing else."""
    path = cache.fetch(files[0], store)
    note = Path(f"{path}.note")
    for content in (b"", b"1", b"x y z w", b"2 5000 1 1", b"\xff" * 300, None):
        note.unlink(missing_ok=True)
        if content is not None:
            note.write_bytes(content)
        assert Cache(cache.path).get(files[0].digest, 5000) == path
    note.unlink()
    note.symlink_to("/etc/passwd")
    assert Cache(cache.path).get(files[0].digest, 5000) == path
    assert len(store.fetched) == 1


def _unreadable(monkeypatch: pytest.MonkeyPatch, part: str, number: int) -> None:
    """Let each opening of a file below *part* fail."""
    real = os.open

    def flaky(path: Any, *args: Any, **kwargs: Any) -> int:
        if f"/v1/{part}/" in os.fsdecode(path) and not os.fsdecode(path).endswith(".note"):
            raise OSError(number, os.strerror(number))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", flaky)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE])
def test_what_cannot_be_read_just_now_stays(
    cache: Cache, store: Counting, files: tuple[File, ...], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """An error of reading says nothing about bytes: none are handed out, none are removed, and verify tells of it."""
    path = cache.fetch(files[0], store)
    wrong = cache.fetch(files[1], store)
    os.chmod(wrong, 0o644)
    wrong.write_bytes(b"x")
    with monkeypatch.context() as patch:
        _unreadable(patch, f"blobs/{files[0].digest[7:9]}", number)
        os.unlink(f"{path}.note")
        assert Cache(cache.path).get(files[0].digest, 5000) is None
        with pytest.raises(StoreUnavailable, match=r"1 entries .* stay; ") as caught:
            cache.verify()
        assert caught.value.errno == number
    assert Cache(cache.path).get(files[0].digest, 5000) == path
    assert len(store.fetched) == 2


def test_a_copy_that_cannot_be_read_just_now_stays(
    cache: Cache, store: Counting, files: tuple[File, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder on a disk without hard links is not made anew because its disk stumbled."""
    monkeypatch.setattr(os, "link", _no_links)
    folder = cache.folder(files, store)
    inode = folder.stat().st_ino
    shutil.rmtree(Path(cache.path, "v1", "whole"))
    with monkeypatch.context() as patch:
        _unreadable(patch, "folders", errno.EIO)
        for work in (lambda: cache.folder(files, store), cache.verify):
            with pytest.raises(StoreUnavailable):
                work()
    assert cache.folder(files, store).stat().st_ino == inode


def test_a_store_that_refuses_is_no_cache_that_cannot_be_written(
    cache: Cache, store: Counting, files: tuple[File, ...]
) -> None:
    """EACCES of the artifact store is its own error; later files still go to this cache."""
    cache.fetch(files[0], store)
    for work in (cache.fetch_all, cache.folder):
        store.fail = [StoreUnavailable("Cannot read the blob.", errno=errno.EACCES)]
        with pytest.raises(StoreUnavailable, match="blob"):
            work(files[1:2], store)
    (path,) = cache.fetch_all(files[1:2], store).values()
    assert path.is_relative_to(cache.path)


def test_wrong_bytes_from_the_store_are_not_kept(
    cache: Cache, store: Counting, files: tuple[File, ...]
) -> None:
    """The transfer is tried once more; if it is wrong again, DigestMismatch, and the cache is as it was."""
    store.fail = [b"wrong"]
    assert cache.fetch(files[0], store).read_bytes() == pattern(5000)
    store.fail = [b"wrong", b"wrong"]
    with pytest.raises(DigestMismatch):
        cache.fetch(files[2], store)
    assert cache.get(files[2].digest) is None
    assert unfinished(cache) == []
    assert cache.fetch(files[2], store).read_bytes() == pattern(70_000, 1)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(), StoreUnavailable("x"), OSError(errno.EIO, "x")]
)
def test_a_broken_fetch_leaves_nothing(
    cache: Cache, store: Counting, files: tuple[File, ...], error: BaseException
) -> None:
    """Ctrl-C, exit and errors in the middle: they pass (typed), nothing is left, and the next fetch works."""
    store.fail = [error]
    with pytest.raises((ModelHubError, KeyboardInterrupt, SystemExit)):
        cache.fetch(files[0], store)
    assert unfinished(cache) == []
    assert cache.fetch(files[0], store).read_bytes() == pattern(5000)


def test_what_the_store_lost_is_not_found(cache: Cache, store: Counting, files: tuple[File, ...]) -> None:
    """A blob that is gone from the store is NotFound; what is cached still works."""
    cache.fetch(files[0], store)
    for file in files:
        store.delete(file.digest)
    assert cache.fetch(files[0], store).read_bytes() == pattern(5000)
    with pytest.raises(NotFound):
        cache.fetch(files[2], store)


def test_a_full_disk_is_typed(small_disk: Path, store: Counting) -> None:
    """ENOSPC while fetching: StoreUnavailable, nothing left, smaller files still fit."""
    cache = Cache(small_disk / "cache")
    big, small = store.put_all([from_bytes(pattern(20 << 20), "big"), from_bytes(b"abc", "small")])
    with pytest.raises(StoreUnavailable) as caught:
        cache.fetch(big, store)
    assert caught.value.errno == errno.ENOSPC
    assert str(cache.path) in str(caught.value)
    assert unfinished(cache) == []
    assert cache.fetch(small, store).read_bytes() == b"abc"


def test_a_read_only_cache_still_serves(
    cache: Cache, store: Counting, files: tuple[File, ...], as_nobody: Callable[..., Any]
) -> None:
    """Somebody else's cache, read-only for us: its good entries are used, and its bad ones are not."""
    good = cache.fetch(files[0], store)
    bad = cache.fetch(files[2], store)
    bad.chmod(0o644)
    bad.write_bytes(pattern(70_000, 9))
    bad.chmod(0o444)
    for folder, _, names in os.walk(cache.path):
        os.chmod(folder, 0o755)
        for name in names:
            if name.endswith(".note"):
                os.chmod(Path(folder, name), 0o444)
    assert as_nobody(lambda: cache.get(files[0].digest, 5000)) == good
    assert as_nobody(lambda: Cache(cache.path).get(files[2].digest, 70_000)) is None
    with pytest.raises(StoreUnavailable, match="MODELHUB_CACHE_DIR"):
        as_nobody(lambda: Cache(cache.path).fetch(files[1], store))


@pytest.mark.parametrize("umask", [0o777, 0o077, 0o000])
def test_any_umask_works(
    tmp_path: Path, store: Counting, files: tuple[File, ...], as_nobody: Callable[..., Any], umask: int
) -> None:
    """Whatever the umask, the owner can read back what was cached."""
    os.chmod(tmp_path, 0o777)

    def work() -> bytes:
        os.umask(umask)
        folder = Cache(tmp_path / "mine").folder(files, store)
        return (folder / "d" / "é.bin").read_bytes()

    assert as_nobody(work) == pattern(70_000, 1)


# --- many at once

_FETCHER = """
import sys, os, time
from modelhub_sdk.blobs import cache
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.domain.entities import File
if sys.argv[5] == "broken locks":
    import fcntl
    fcntl.flock = lambda *a: None
elif sys.argv[5] == "no locks":
    import fcntl
    def refuse(*a): raise OSError(95, "not supported")
    fcntl.flock = refuse
class Slow(BlobStore):
    def fetch(self, *args, **kwargs):
        print("transfer", flush=True)
        time.sleep(0.3)
        super().fetch(*args, **kwargs)
store = Slow(sys.argv[1], registry_id="r1")
file = File("a", int(sys.argv[3]), sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
path = cache.Cache(sys.argv[2]).fetch(file, store)
import hashlib
print("sha256:" + hashlib.sha256(path.read_bytes()).hexdigest())
"""


def start(*args: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        [sys.executable, "-c", _FETCHER, *map(str, args)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write("go\n")
        process.stdin.flush()


@pytest.mark.parametrize("locks", ["working locks", "broken locks", "no locks"])
def test_eight_processes_fetch_one_blob(cache: Cache, store: Counting, tmp_path: Path, locks: str) -> None:
    """All eight get the right bytes; with working locks there is one transfer, with broken ones at most eight."""
    file = store.put(from_bytes(pattern(8 << 20), "a"))
    fetchers = [start(store.url, cache.path, file.size, file.digest, locks) for _ in range(8)]
    for fetcher in fetchers:
        go(fetcher)
        time.sleep(0.03)
    said = [fetcher.communicate(timeout=120)[0].split() for fetcher in fetchers]
    assert [words[-1] for words in said] == [file.digest] * 8
    transfers = sum(words.count("transfer") for words in said)
    assert transfers == 1 if locks == "working locks" else transfers <= 8
    assert unfinished(cache) == []


def test_threads_fetch_once(cache: Cache, store: Counting) -> None:
    """Thirty-two threads with a cold cache: one transfer each blob, all right."""
    store.slow = 0.05
    files = store.put_all([from_bytes(pattern(3000 + n, n), str(n)) for n in range(4)])

    def work(n: int) -> None:
        file = files[n % 4]
        assert cache.fetch(file, store).read_bytes() == pattern(file.size, n % 4)

    at_once(32, work)
    assert len(store.fetched) == 4


@pytest.mark.parametrize("fails", [False, True])
def test_a_lock_that_is_removed_meanwhile_is_taken_anew(cache: Cache, store: Counting, fails: bool) -> None:
    """Locks that a clean-up, or a fetcher that failed, removes under those who wait cost no second transfer."""
    store.slow = 0.01
    files = store.put_all([from_bytes(pattern(3000 + n, n), str(n)) for n in range(20)])
    over = threading.Event()

    def clean() -> None:
        while not over.is_set():
            cache.sweep()

    cleaner = threading.Thread(target=clean)
    if not fails:
        cleaner.start()
    try:
        for file in files:
            store.fetched.clear()
            store.fail = [StoreUnavailable("for once")] if fails else []
            errors: list[BaseException] = []

            def work(_n: int, file: File = file, errors: list[BaseException] = errors) -> None:
                try:
                    cache.fetch(file, store)
                except StoreUnavailable as error:
                    errors.append(error)

            at_once(12, work)
            assert len(store.fetched) == 1 + fails
            assert len(errors) == fails
    finally:
        over.set()
        if not fails:
            cleaner.join()


def _begun(cache: Cache) -> bool:
    folder = Path(cache.path, "v1", "partial")
    with contextlib.suppress(FileNotFoundError):
        return any((folder / name).stat().st_size for name in os.listdir(folder))
    return False


def test_killed_fetchers_leave_no_wrong_entry(cache: Cache, store: Counting, kill: Any) -> None:
    """kill -9 at many moments: nothing wrong is taken for finished, locks do not hang, leftovers go."""
    file = store.put(from_bytes(pattern(32 << 20), "a"))
    left = 0
    for round_ in range(10):
        fetcher = start(store.url, cache.path, file.size, file.digest, "working locks")
        go(fetcher)
        kill(fetcher, lambda: _begun(cache), 0.003 * round_)
        left += bool(unfinished(cache))
        begun = time.monotonic()
        assert Cache(cache.path).fetch(file, store).stat().st_size == file.size
        assert time.monotonic() - begun < 10
        assert cache.get(file.digest, file.size, verify="always")
        assert unfinished(cache) == []
        cache.clear()
    assert left, "no kill came in the middle: the test proves nothing"


def test_a_hanging_holder_is_not_waited_for(
    cache: Cache, store: Counting, files: tuple[File, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process that holds the lock without progress delays others for a bounded time only."""
    import fcntl

    monkeypatch.setattr(cache_module, "_STALLED", 0.3)
    lock = Path(cache.path, "v1", "locks", files[0].digest[7:])
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert cache.fetch(files[0], store).read_bytes() == pattern(5000)


@pytest.mark.parametrize("alive", [True, False])
def test_a_sign_of_life_is_progress(
    cache: Cache, store: Counting, files: tuple[File, ...], monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    """Who hashes what had come before writes nothing for long, and is waited for as its file's time tells of it."""
    partial = Path(cache.path, "v1", "partial", f"{files[0].digest[7:]}.x.1.y")
    partial.parent.mkdir(parents=True)
    partial.touch()
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if alive:
            os.utime(partial, (now[0], now[0]))

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: now[0], time=time.time)
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "time", clock)
        patch.setattr(disk, "try_lock", lambda fd: now[0] >= 100)
        cache.fetch(files[0], store)
    assert (now[0] >= 100) is alive


def test_hashing_what_is_there_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of an unfinished file moves on while its first bytes are read again."""
    monkeypatch.setattr(disk, "_ALIVE", 0.0)
    path = tmp_path / "x"
    path.write_bytes(pattern(3 << 20))
    os.utime(path, (1, 1))
    seen: list[float] = []

    def rest(done: int) -> Any:
        seen.append(path.stat().st_mtime)
        return disk.FdReader(os.open(os.devnull, os.O_RDONLY), "x")

    with open(path, "r+b") as file:
        disk.go_on(rest, file.fileno(), 3 << 20, None)
    assert time.time() - seen[0] < 60


def test_a_lock_that_is_a_link_is_not_followed(
    cache: Cache, store: Counting, files: tuple[File, ...], tmp_path: Path
) -> None:
    """A lock file planted as a link changes nothing behind it; the fetch works without a lock."""
    (tmp_path / "bashrc").write_bytes(b"precious")
    lock = Path(cache.path, "v1", "locks", files[0].digest[7:])
    lock.parent.mkdir(parents=True)
    lock.symlink_to(tmp_path / "bashrc")
    assert cache.fetch(files[0], store).read_bytes() == pattern(5000)
    assert (tmp_path / "bashrc").read_bytes() == b"precious"


def test_old_leftovers_are_ignored_and_removed(
    cache: Cache, store: Counting, files: tuple[File, ...]
) -> None:
    """What a killed download left three days ago is never taken for a finished file."""
    folder = Path(cache.path, "v1", "tmp")
    folder.mkdir(parents=True)
    old = folder / f"{files[0].digest[7:]}.0123456789ab.77.abcdefabcdef"
    old.write_bytes(pattern(5000))
    os.utime(old, (time.time() - 3 * 86400,) * 2)
    assert cache.get(files[0].digest, 5000) is None
    cache.fetch(files[0], store)
    assert not old.exists()


# --- folders


def test_a_folder_holds_the_files_read_only(
    cache: Cache, store: Counting, files: tuple[File, ...], look: Any
) -> None:
    """The files stand under their paths, as the very inodes of the cache; nothing can be added or changed."""
    folder = cache.folder(files, store)
    assert folder.name == manifest.digest(files)[7:]
    assert look(folder) == {"a.bin": pattern(5000), "d": None, "d/empty": b"", "d/é.bin": pattern(70_000, 1)}
    assert (folder / "a.bin").samefile(cache.fetch(files[0], store))
    for path in (folder, folder / "d", folder / "a.bin"):
        assert path.stat().st_mode & 0o222 == 0
    assert len(store.fetched) == 3
    assert unfinished(cache) == []


def test_a_folder_is_made_once(cache: Cache, store: Counting, files: tuple[File, ...]) -> None:
    """The same files, in any order, give the same folder; a part of them gives another."""
    folder = cache.folder(files, store)
    inode = folder.stat().st_ino
    assert Cache(cache.path).folder(files[::-1], store) == folder
    assert folder.stat().st_ino == inode
    part = cache.folder(files[:1], store)
    assert part != folder
    assert os.listdir(part) == ["a.bin"]
    assert len(store.fetched) == 3
    assert cache.cached_folder(files) == folder
    assert os.listdir(cache.folder([], store)) == []


def test_cached_folder_needs_no_store(
    cache: Cache, store: Counting, files: tuple[File, ...], tmp_path: Path
) -> None:
    """With all bytes here the folder is made without the store, else there is none."""
    assert cache.cached_folder(files) is None
    for file in files:
        cache.fetch(file, store)
    shutil.rmtree(tmp_path / "store")
    folder = cache.cached_folder(files)
    assert folder is not None
    assert (folder / "a.bin").read_bytes() == pattern(5000)


def _unlock(folder: Path) -> None:
    for at, _, _ in os.walk(folder):
        os.chmod(at, 0o755)


@pytest.mark.parametrize(
    "damage", ["extra file", "missing file", "changed file", "link", "replaced copy", "file for folder"]
)
def test_a_damaged_folder_is_made_anew(
    cache: Cache, store: Counting, files: tuple[File, ...], damage: str, look: Any, tmp_path: Path
) -> None:
    """Whatever was done to the folder, the next call hands out exactly the files, right."""
    folder = cache.folder(files, store)
    right = look(folder)
    _unlock(folder)
    target = folder / "d" / "é.bin"
    if damage == "extra file":
        (folder / "d" / "config.json").write_bytes(b"{}")
    elif damage == "missing file":
        target.unlink()
    elif damage == "changed file":
        target.chmod(0o644)
        target.write_bytes(pattern(70_000, 5))
    elif damage == "link":
        (tmp_path / "evil").write_bytes(pattern(70_000, 5))
        target.unlink()
        target.symlink_to(tmp_path / "evil")
    elif damage == "replaced copy":
        target.unlink()
        target.write_bytes(pattern(70_000, 5))
    else:
        shutil.rmtree(folder)
        folder.write_bytes(b"")
    assert look(cache.folder(files, store)) == right
    assert cache.get(files[2].digest, verify="always")


def _no_links(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.EPERM, "no links here")


def test_copies_count_and_go_as_what_they_are(
    cache: Cache, store: Counting, files: tuple[File, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without hard links a folder takes room: it is counted, pruned by its own last use, and leased by its digest."""
    monkeypatch.setattr(os, "link", _no_links)
    old, new = cache.folder(files[:1], store), cache.folder(files[1:], store)
    assert cache.info().size == 2 * 75_000
    os.utime(Path(cache.path, "v1", "whole", old.name), (1, 1))
    assert cache.prune(2 * 75_000 - 1) == 5000
    assert not old.exists()
    assert new.exists()
    assert cache.info().size == 75_000 + 70_000
    with cache.lease(files[1:], manifest.digest(files[1:])):
        assert cache.prune(0) == 5000
        assert new.exists()
    assert cache.prune(0) == 2 * 70_000
    assert cache.info().size == cache.info().folders == 0


def test_what_is_dropped_is_in_no_copy(
    cache: Cache, store: Counting, files: tuple[File, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Purged bytes leave folders that are copies too, also where the blob is gone already."""
    monkeypatch.setattr(os, "link", _no_links)
    folder = cache.folder(files[:1], store)
    os.unlink(cache.get(files[0].digest))
    assert cache.drop([]) == 0
    assert folder.exists()
    cache.drop([files[0].digest])
    assert not folder.exists()


def test_verify_finds_a_damaged_copy(
    cache: Cache, store: Counting, files: tuple[File, ...], monkeypatch: pytest.MonkeyPatch, look: Any
) -> None:
    """Damage that keeps size and time, in a folder that is a copy, is found by reading; the folder is named and goes."""
    monkeypatch.setattr(os, "link", _no_links)
    folder = cache.folder(files, store)
    assert cache.verify() == ()
    right, path = look(folder), folder / "a.bin"
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(pattern(5000, 9))
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    told: list[int] = []
    assert cache.verify(progress=told.append) == (manifest.digest(files),)
    assert sum(told) == 2 * 75_000
    assert look(cache.folder(files, store)) == right


def test_without_hard_links_files_are_copied(
    cache: Cache, store: Counting, files: tuple[File, ...], monkeypatch: pytest.MonkeyPatch, look: Any
) -> None:
    """On a disk without hard links the folder holds copies, made once and checked on use."""
    monkeypatch.setattr(os, "link", _no_links)
    folder = cache.folder(files, store)
    right = look(folder)
    inode = (folder / "a.bin").stat().st_ino
    assert cache.folder(files, store) == folder
    assert (folder / "a.bin").stat().st_ino == inode
    (folder / "a.bin").chmod(0o644)
    (folder / "a.bin").write_bytes(pattern(5000, 7))
    assert look(cache.folder(files, store)) == right


def test_many_make_one_folder(cache: Cache, store: Counting, files: tuple[File, ...]) -> None:
    """Threads and caches that make the same folder at once all get it whole."""

    def work(_n: int) -> None:
        folder = Cache(cache.path).folder(files, store)
        assert (folder / "d" / "é.bin").read_bytes() == pattern(70_000, 1)

    for _ in range(5):
        at_once(8, work)
        cache.clear()


# --- the whole


def test_info_verify_prune_clear(cache: Cache, store: Counting, files: tuple[File, ...]) -> None:
    """info counts; verify finds hidden damage; prune removes what was used longest ago; clear removes all."""
    folder = cache.folder(files, store)
    info = cache.info()
    assert (info.blobs, info.folders, info.size) == (3, 1, 75_000)
    assert cache.verify() == ()
    path = cache.fetch(files[0], store)
    for name in (path, Path(f"{path}.note")):
        os.utime(name, (1, 1))
    assert cache.prune(70_000) == 5000
    assert cache.get(files[0].digest) is None
    assert cache.get(files[2].digest) is not None
    assert not folder.exists()
    cache.folder(files, store)
    assert cache.clear() == 75_000
    info = cache.info()
    assert (info.blobs, info.folders, info.size) == (0, 0, 0)
    assert unfinished(cache) == []


def test_verify_names_the_wrong_ones(cache: Cache, store: Counting, files: tuple[File, ...]) -> None:
    """Hidden damage is found by reading everything, and the entry is removed."""
    path = cache.fetch(files[0], store)
    cache.fetch(files[2], store)
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(pattern(5000, 3))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.verify() == (files[0].digest,)
    assert cache.get(files[0].digest) is None


def test_several_files_at_once(cache: Cache, store: Counting, files: tuple[File, ...]) -> None:
    """fetch_all fetches each digest once, tells the progress of every file, and stops at the first error."""
    twice = [*files, File("again", files[0].size, files[0].digest)]
    told: list[int] = []
    paths = cache.fetch_all(twice, store, progress=told.append)
    assert {d: p.stat().st_size for d, p in paths.items()} == {f.digest: f.size for f in files}
    assert sum(told) == sum(f.size for f in twice)
    with pytest.raises(NotFound):
        cache.fetch_all([*files, File("x", 1, "sha256:" + "0" * 64)], store)
