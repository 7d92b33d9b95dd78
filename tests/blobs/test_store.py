"""The content-addressed store: its laws on a local disk, in memory and on S3, and what hurts each of them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import resource
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelhub_sdk.blobs import disk, patience, readers, remote, sources
from modelhub_sdk.blobs.sources import collect, from_bytes
from modelhub_sdk.blobs.store import BlobStore, local_path
from modelhub_sdk.errors import (
    Conflict,
    CredentialsRefused,
    DigestMismatch,
    InvalidName,
    MissingExtra,
    ModelHubError,
    NotAllowed,
    NotFound,
    StoreUnavailable,
)
from tests.support.threads import at_once

SIZES = [0, 1, 1000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (5 << 20) + 3]


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def pattern(size: int, seed: int = 0) -> bytes:
    return (hashlib.sha256(bytes([seed])).digest() * (size // 32 + 1))[:size]


def leftovers(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.parent.name == "tmp")


def blob(store: BlobStore, digest: str) -> Path:
    return Path(store.root or "", "r1", "sha256", digest[7:9], digest[9:])


@pytest.fixture
def local(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store", registry_id="r1")


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    if request.param == "local":
        yield BlobStore(tmp_path / "store", registry_id="r1")
    elif request.param == "memory":
        yield BlobStore(f"memory://{tmp_path.name}/x", registry_id="r1")
    else:
        yield BlobStore(f"{request.getfixturevalue('s3_bucket').url}/deep/er", registry_id="r1")


# --- laws of all stores


@pytest.mark.parametrize("size", SIZES)
def test_what_is_put_comes_back(store: BlobStore, tmp_path: Path, size: int) -> None:
    """Bytes of any size come back by every way of reading, and are found to be right."""
    data = pattern(size)
    (tmp_path / "f.bin").write_bytes(data)
    file = store.put(collect(tmp_path / "f.bin")[0])
    assert (file.path, file.size, file.digest) == ("f.bin", size, sha(data))
    assert store.has(file.digest)
    assert store.has(file.digest, size)
    assert not store.has(file.digest, size + 1)
    assert store.read(file.digest) == data
    with store.open(file.digest) as stream:
        assert stream.read() == data
    store.fetch(file.digest, size, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert store.verify(file.digest, size) is None
    assert list(store.digests()) == [(file.digest, size)]


def test_putting_again_changes_nothing(store: BlobStore) -> None:
    """The same bytes under two names are one blob."""
    assert store.put_bytes(b"abc") == store.put_bytes(b"abc") == sha(b"abc")
    assert store.put(from_bytes(b"abc", "other")).path == "other"
    assert list(store.digests()) == [(sha(b"abc"), 3)]


def test_many_files_keep_their_order(store: BlobStore) -> None:
    """put_all gives one File for each source, in order, and tells the progress of all bytes."""
    items = [from_bytes(pattern(n * 10, n), f"f{n}") for n in range(20)]
    told: list[int] = []
    files = store.put_all(items, progress=told.append)
    assert [f.path for f in files] == [f"f{n}" for n in range(20)]
    assert [f.digest for f in files] == [sha(pattern(n * 10, n)) for n in range(20)]
    assert sum(told) == sum(n * 10 for n in range(20))


def test_a_stream_can_be_stored(store: BlobStore) -> None:
    """A file object that is read once is enough, whatever its size."""
    data = pattern((3 << 20) + 1)
    [source] = collect({"x": io.BytesIO(data)})
    file = store.put(source)
    assert (file.digest, file.size) == (sha(data), len(data))
    assert store.verify(file.digest, file.size) is None


def test_missing_blobs_are_not_found(store: BlobStore, tmp_path: Path) -> None:
    """What is not there: has is False, verify says so, reading is NotFound, deleting is fine."""
    digest = sha(b"nothing")
    assert not store.has(digest)
    assert "missing" in str(store.verify(digest, 7))
    with pytest.raises(NotFound):
        store.read(digest)
    with pytest.raises(NotFound):
        store.open(digest)
    with pytest.raises(NotFound):
        store.fetch(digest, 7, tmp_path / "copy")
    with pytest.raises(NotFound):
        store.fetch(sha(b""), 0, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    store.delete(digest)
    assert list(store.digests()) == []


def test_deleted_is_gone(store: BlobStore) -> None:
    """A deleted blob is gone, and can be put again."""
    digest = store.put_bytes(b"abc")
    store.delete(digest)
    assert not store.has(digest)
    assert store.put_bytes(b"abc") == digest
    assert store.read(digest) == b"abc"


@pytest.mark.parametrize(
    "digest", ["", "x", "sha256:../../etc/passwd", "sha256:" + "A" * 64, "../" * 20, None]
)
def test_a_digest_never_becomes_a_path(store: BlobStore, digest: Any) -> None:
    """Anything but a digest is refused before any path is made of it."""
    for call in (store.has, store.read, store.open, store.delete, store.verify):
        with pytest.raises(InvalidName):
            call(digest)


def test_read_only_refuses_every_write(tmp_path: Path) -> None:
    """A read-only handle reads, and refuses to write, delete and sweep."""
    digest = BlobStore(tmp_path, registry_id="r1").put_bytes(b"abc")
    store = BlobStore(tmp_path, registry_id="r1", read_only=True)
    assert store.read(digest) == b"abc"
    for call in (
        lambda: store.put_bytes(b"x"),
        lambda: store.put_all([from_bytes(b"x")] * 5),
        lambda: store.delete(digest),
        store.sweep,
    ):
        with pytest.raises(NotAllowed):
            call()


def test_two_registries_share_a_place(store: BlobStore, tmp_path: Path) -> None:
    """Under one root each registry sees, and deletes, only its own blobs."""
    other = BlobStore(tmp_path / "store", registry_id="r2")
    mine = BlobStore(tmp_path / "store", registry_id="r1")
    digest = mine.put_bytes(b"abc")
    assert not other.has(digest)
    other.put_bytes(b"abc")
    other.delete(digest)
    assert list(other.digests()) == []
    assert mine.read(digest) == b"abc"


def test_a_source_that_changes_is_not_stored(store: BlobStore, tmp_path: Path) -> None:
    """A file that changes while it is stored is an error, and no blob appears."""
    (tmp_path / "f").write_bytes(pattern(3 << 20))
    [source] = collect(tmp_path / "f")

    def change(done: int) -> None:
        with open(tmp_path / "f", "ab") as file:
            file.write(b"more")

    reader = source.open()
    reader.readinto(memoryview(bytearray(10)))
    real = source._opener

    class Changing:
        def __init__(self) -> None:
            self.inner = real()

        def readinto(self, view: memoryview) -> int:
            change(0)
            return self.inner.readinto(view)

        def finish(self) -> None:
            self.inner.finish()

        def close(self) -> None:
            self.inner.close()

    reader.close()
    with pytest.raises(Conflict):
        store.put(sources.Source("f", "f", source.size, Changing))
    assert list(store.digests()) == []
    if store.root:
        assert leftovers(Path(store.root)) == []


def test_errors_of_the_source_leave_nothing(store: BlobStore) -> None:
    """A file object that fails after a megabyte: typed error, no blob, no leftover."""

    class Failing:
        def __init__(self) -> None:
            self.left = 3

        def read(self, size: int) -> bytes:
            self.left -= 1
            if not self.left:
                raise OSError(errno.EIO, "bad sector")
            return bytes(1 << 20)

    with pytest.raises(StoreUnavailable):
        store.put(collect({"x": Failing()})[0])
    assert list(store.digests()) == []
    if store.root:
        assert leftovers(Path(store.root)) == []


def test_the_first_error_of_many_stops_all(store: BlobStore, tmp_path: Path) -> None:
    """put_all raises the error of its source, and what is stored is whole."""

    class Failing:
        def read(self, size: int) -> bytes:
            raise OSError(errno.EIO, "bad sector")

    items = [from_bytes(pattern(100, n), f"f{n}") for n in range(10)]
    items.insert(5, collect({"bad": Failing()})[0])
    with pytest.raises(StoreUnavailable, match="bad"):
        store.put_all(items)
    assert all(store.verify(digest, size) is None for digest, size in store.digests())


def test_ctrl_c_leaves_nothing(store: BlobStore, tmp_path: Path) -> None:
    """Ctrl-C in the middle of one or of many files: it passes, and nothing half-written is left."""

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    for n in range(4):
        (tmp_path / f"f{n}").write_bytes(pattern(18 << 20, n))
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        store.put(collect(tmp_path / "f0")[0], progress=interrupt)
    if not store.url.startswith("memory"):  # which is told when all is done
        assert list(store.digests()) == []
    with pytest.raises(KeyboardInterrupt):
        store.put_all(list(collect([tmp_path / f"f{n}" for n in range(4)])), progress=interrupt)
    assert all(store.verify(digest, size) is None for digest, size in store.digests())
    if store.root:
        assert leftovers(Path(store.root)) == []
        assert threading.active_count() <= before


def test_memory_does_not_depend_on_size(store: BlobStore, tmp_path: Path) -> None:
    """Storing and fetching 96 MB needs no more than a few ranges of it."""
    size = 96 << 20
    with open(tmp_path / "big", "wb") as file:
        file.truncate(size)
    [source] = collect(tmp_path / "big")
    store.put_bytes(b"warm")
    if store.url.startswith("memory"):
        pytest.skip("this store is memory")
    tracemalloc.start()
    try:
        put = store.put(source)
        store.fetch(put.digest, size, tmp_path / "copy")
        assert tracemalloc.get_traced_memory()[1] < 72 << 20
    finally:
        tracemalloc.stop()
    assert os.path.getsize(tmp_path / "copy") == size


def test_stores_survive_a_fork(store: BlobStore, forked: Callable[..., Any]) -> None:
    """A handle that was used before a fork works in the child and, after it, in the parent."""
    if store.url.startswith("memory"):
        pytest.skip("memory is not shared")
    digest = store.put_bytes(b"parent")
    assert forked(lambda: (store.read(digest), store.put_bytes(b"child"))) == (b"parent", sha(b"child"))
    assert store.read(sha(b"child")) == b"child"


def test_threads_share_a_handle(store: BlobStore) -> None:
    """Sixteen threads read and write at once, each its own bytes (some drivers share file positions)."""
    data = [pattern(50_000 + n, n) for n in range(16)]

    def work(n: int) -> None:
        for _ in range(5):
            digest = store.put_bytes(data[n])
            assert store.read(digest) == data[n]
            assert store.read(store.put_bytes(data[0])) == data[0]

    at_once(16, work)


# --- names


@pytest.mark.parametrize("url", ["", "a\0b"])
def test_odd_places_are_refused(url: str) -> None:
    """An empty place is not the current folder."""
    with pytest.raises(InvalidName):
        BlobStore(url, registry_id="r1")
    with pytest.raises(InvalidName):
        BlobStore("/tmp/x", registry_id="../r")


def test_local_places_are_recognised(tmp_path: Path) -> None:
    """Paths and file:// URLs are folders; everything else with a scheme is not."""
    assert local_path(tmp_path) == local_path(f"file://{tmp_path}") == str(tmp_path)
    assert local_path("s3://b/x") is None
    assert local_path("rel") == os.path.abspath("rel")


def test_unknown_protocols_and_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing driver names its extra; an unknown protocol and chained URLs are InvalidName."""
    with pytest.raises(InvalidName):
        BlobStore("nosuch://x", registry_id="r1").put_bytes(b"x")
    with pytest.raises(InvalidName):
        BlobStore("simplecache::s3://b/x", registry_id="r1").has(sha(b"x"))
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingExtra, match=r"modelhub-sdk\[gcs\]"):
        BlobStore("gs://b/x", registry_id="r1").has(sha(b"x"))


def test_secrets_in_a_url_are_not_shown() -> None:
    """Neither url, repr nor errors repeat what stands before the @ or after the ?."""
    store = BlobStore("nosuch://key:s3cret@host/x?token=s3cret", registry_id="r1")
    with pytest.raises(InvalidName) as caught:
        store.has(sha(b"x"))
    assert "s3cret" not in store.url + repr(store) + str(caught.value)


# --- the local disk


def test_blobs_are_read_only_and_named_by_digest(local: BlobStore) -> None:
    """The layout is a format: <root>/<registry>/sha256/ab/<62 hex>, mode 0444."""
    digest = local.put_bytes(b"abc")
    path = blob(local, digest)
    assert path.read_bytes() == b"abc"
    assert stat.S_IMODE(path.stat().st_mode) & 0o222 == 0


def test_bytes_are_durable_before_they_are_visible(
    local: BlobStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """File synced, then renamed, then the folder synced: for small and for large files."""
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def spy(*args: Any, name: str = name, real: Any = real, **kwargs: Any) -> Any:
            what = args[0]
            mode = os.fstat(what).st_mode if isinstance(what, int) else 0
            calls.append("fsync dir" if stat.S_ISDIR(mode) else name)
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, spy)
    (tmp_path / "big").write_bytes(pattern(6 << 20))
    for source in (from_bytes(b"abc"), collect(tmp_path / "big")[0]):
        calls.clear()
        local.put(source)
        assert [c for c in calls if c != "fsync dir"] == ["fsync", "replace"]
        assert calls[-1] == "fsync dir"


def test_what_is_stored_already_costs_no_write(local: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that is stored already opens no temporary file; the blob stays the same inode."""
    digest = local.put_bytes(b"abc")
    inode = blob(local, digest).stat().st_ino
    monkeypatch.setattr(disk, "create", lambda *a, **k: pytest.fail("a file was created"))
    local.put_bytes(b"abc")
    assert blob(local, digest).stat().st_ino == inode


def test_a_blob_used_again_looks_fresh(local: BlobStore) -> None:
    """Old blobs that are registered again get a new mtime, for a clean-up that is under way."""
    digest = local.put_bytes(b"abc")
    os.utime(blob(local, digest), (1, 1))
    local.put_bytes(b"abc")
    assert time.time() - blob(local, digest).stat().st_mtime < 60


@pytest.mark.parametrize("wrong", [b"", b"ab", b"abcd"])
def test_a_torn_blob_is_written_again(local: BlobStore, wrong: bytes) -> None:
    """A blob of the wrong size is replaced by the next put of its bytes."""
    digest = local.put_bytes(b"abc")
    path = blob(local, digest)
    path.unlink()
    path.write_bytes(wrong)
    local.put_bytes(b"abc")
    assert local.read(digest) == b"abc"


def test_wrong_bytes_are_found(local: BlobStore, tmp_path: Path) -> None:
    """A flipped bit, a cut and an extension: DigestMismatch with the digests, and nothing is left behind."""
    data = pattern(3 << 20)
    digest = local.put_bytes(data)
    path = blob(local, digest)
    for wrong in (data[:-1] + b"\xff", data[:-1], data + b"x", b""):
        path.chmod(0o644)
        path.write_bytes(wrong)
        with pytest.raises(DigestMismatch) as caught:
            local.fetch(digest, len(data), tmp_path / "copy")
        assert caught.value.expected == digest
        assert not (tmp_path / "copy").exists()
        with pytest.raises(DigestMismatch):
            local.read(digest)
        assert local.verify(digest, len(data))


def test_a_blob_that_is_a_link_is_not_followed(local: BlobStore, tmp_path: Path) -> None:
    """A link in the place of a blob is never read through; a put replaces it."""
    digest = local.put_bytes(b"abc")
    (tmp_path / "secret").write_bytes(b"abc")
    path = blob(local, digest)
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    assert not local.has(digest)
    with pytest.raises(ModelHubError):
        local.read(digest)
    with pytest.raises(ModelHubError):
        local.fetch(digest, 3, tmp_path / "copy")
    assert local.verify(digest, 3)
    local.put_bytes(b"abc")
    assert not path.is_symlink()
    assert (tmp_path / "secret").read_bytes() == b"abc"


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to a device"])
def test_a_blob_that_is_no_file_is_an_error(local: BlobStore, kind: str, tmp_path: Path) -> None:
    """Nothing blocks, and nothing foreign passes through."""
    digest = local.put_bytes(b"abc")
    path = blob(local, digest)
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ModelHubError):
        local.read(digest)
    with pytest.raises(ModelHubError):
        local.fetch(digest, 3, tmp_path / "copy")
    assert local.verify(digest, 3)


def test_foreign_files_are_passed_over(local: BlobStore) -> None:
    """What somebody else put into the folders is neither listed nor touched."""
    digest = local.put_bytes(b"abc")
    top = Path(local.root or "") / "r1" / "sha256"
    for name in ("README", "ab/.DS_Store", "zz/x", digest[7:9] + "/" + "A" * 62):
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_bytes(b"x")
    assert list(local.digests()) == [(digest, 3)]
    local.sweep(0)
    assert (top / "README").exists()


def test_a_full_disk_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    """ENOSPC: typed, with the reason and what to do; no blob, no temporary file; smaller files still go in."""
    store = BlobStore(small_disk / "store", registry_id="r1")
    (tmp_path / "big").write_bytes(pattern(20 << 20))
    for items in (
        collect(tmp_path / "big"),
        [from_bytes(pattern(9 << 20))],
        [from_bytes(pattern(900_000, n)) for n in range(12)],
    ):
        with pytest.raises(StoreUnavailable) as caught:
            store.put_all(list(items))
        assert caught.value.errno == errno.ENOSPC
        assert leftovers(small_disk) == []
        for digest, size in list(store.digests()):
            assert store.verify(digest, size) is None
            store.delete(digest)
    assert store.read(store.put_bytes(b"small")) == b"small"


def test_a_limit_on_file_sizes_is_typed(local: BlobStore, tmp_path: Path, forked: Callable[..., Any]) -> None:
    """RLIMIT_FSIZE (EFBIG) is StoreUnavailable, and leaves nothing."""
    (tmp_path / "big").write_bytes(pattern(6 << 20))
    [source] = collect(tmp_path / "big")

    def work() -> int | None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        try:
            local.put(source)
        except StoreUnavailable as exc:
            return exc.errno
        return 0

    assert forked(work) == errno.EFBIG
    assert leftovers(tmp_path) == []
    assert list(local.digests()) == []


@pytest.mark.parametrize("umask", [0o777, 0o077, 0o000])
def test_any_umask_works(tmp_path: Path, as_nobody: Callable[..., Any], umask: int) -> None:
    """Blobs and folders can be read back by their owner whatever the umask; nobody can write blobs."""
    os.chmod(tmp_path, 0o777)

    def work() -> bytes:
        os.umask(umask)
        store = BlobStore(tmp_path / "store", registry_id="r1")
        return (
            store.read(store.put_bytes(b"abc"))
            + store.read(store.put(from_bytes(pattern(2 << 20))).digest)[:1]
        )

    assert as_nobody(work) == b"abc" + pattern(1)
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o222 == 0


def test_a_place_that_cannot_be_written_is_typed(tmp_path: Path, as_nobody: Callable[..., Any]) -> None:
    """No permission, or a file where the folder should be: StoreUnavailable that names the place."""
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(StoreUnavailable, match="locked"):
        as_nobody(lambda: BlobStore(tmp_path / "locked", registry_id="r1").put_bytes(b"abc"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailable, match="file"):
        BlobStore(tmp_path / "file", registry_id="r1").put_bytes(b"abc")


def test_a_registered_file_is_a_copy(local: BlobStore, tmp_path: Path) -> None:
    """What the owner does to the source afterwards, through any of its names, does not reach the store."""
    (tmp_path / "a").write_bytes(b"abc")
    os.link(tmp_path / "a", tmp_path / "b")
    file = local.put(collect(tmp_path / "a")[0])
    with open(tmp_path / "b", "r+b") as stream:
        stream.write(b"XYZ")
    assert local.read(file.digest) == b"abc"


def test_mode_bits_are_not_kept(local: BlobStore, tmp_path: Path) -> None:
    """A setuid file is stored as bytes only."""
    (tmp_path / "su").write_bytes(b"abc")
    os.chmod(tmp_path / "su", 0o4755)
    file = local.put(collect(tmp_path / "su")[0])
    assert stat.S_IMODE(blob(local, file.digest).stat().st_mode) & 0o7333 == 0


_WRITER = """
import sys
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.blobs.sources import collect
store = BlobStore(sys.argv[1], registry_id="r1")
print("ready", flush=True)
sys.stdin.readline()
print(store.put(collect(sys.argv[2])[0]).digest, flush=True)
"""


def start(code: str, *args: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        [sys.executable, "-O", "-c", code, *map(str, args)],
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


def finish(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=120)[0].strip()


def test_eight_processes_store_one_file(local: BlobStore, tmp_path: Path) -> None:
    """Eight at once: one blob, eight right digests, no leftovers."""
    data = pattern(24 << 20)
    (tmp_path / "big").write_bytes(data)
    writers = [start(_WRITER, tmp_path / "store", tmp_path / "big") for _ in range(8)]
    for writer in writers:
        go(writer)
    assert [finish(writer) for writer in writers] == [sha(data)] * 8
    assert list(local.digests()) == [(sha(data), len(data))]
    assert local.verify(sha(data), len(data)) is None
    assert leftovers(tmp_path) == []


def test_killed_writers_leave_nothing_visible(tmp_path: Path, kill: Any) -> None:
    """kill -9 at many moments: the blob is whole or not there, and the next writer removes the leftovers."""
    data = pattern(48 << 20)
    (tmp_path / "big").write_bytes(data)
    left = 0
    for round_ in range(12):
        store = BlobStore(tmp_path / "store", registry_id="r1")
        writer = start(_WRITER, tmp_path / "store", tmp_path / "big")
        go(writer)
        kill(writer, lambda: leftovers(tmp_path), 0.003 * round_)
        left += bool(leftovers(tmp_path))
        for digest, size in store.digests():
            assert store.verify(digest, size) is None
            store.delete(digest)
        store.put_bytes(b"next %d" % round_)  # a fresh handle: it sweeps with its first write
        assert leftovers(tmp_path) == []
        store.delete(sha(b"next %d" % round_))
    assert left, "no kill came in the middle: the test proves nothing"


def test_sweep_spares_living_writers(local: BlobStore, tmp_path: Path) -> None:
    """Temporary files of living processes and of other machines stay, unless they are older than asked."""
    local.put_bytes(b"abc")
    folder = tmp_path / "store" / "r1" / "tmp"
    mine = folder / disk.temporary()
    theirs = folder / ".0123456789ab.1.abcdefabcdef"
    old = folder / ".0123456789ab.2.abcdefabcdef"
    for path in (mine, theirs, old):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 3 * 86400,) * 2)
    assert local.sweep() == 1
    assert leftovers(tmp_path) == sorted(str(p.relative_to(tmp_path)) for p in (mine, theirs))
    assert local.sweep(0) == 2


# --- S3


@pytest.fixture
def s3(s3_proxy: Any, s3_bucket: Any, monkeypatch: pytest.MonkeyPatch) -> BlobStore:
    monkeypatch.setattr(patience, "_PATIENCE", 3.0)
    monkeypatch.setattr(remote, "_WHOLE", 1 << 20)
    monkeypatch.setattr(remote, "_BLOCK", 5 << 20)
    monkeypatch.setattr(readers, "_RANGE", 2 << 20)
    return BlobStore(f"{s3_bucket.url}/models", registry_id="r1")


BIG = (11 << 20) + 5


def test_s3_keys_are_named_by_digest(s3: BlobStore, s3_bucket: Any) -> None:
    """The layout on an object store is that of the disk."""
    digest = s3.put_bytes(b"abc")
    assert s3_bucket.keys() == [f"models/r1/sha256/{digest[7:9]}/{digest[9:]}"]


def test_s3_writes_are_create_only(s3: BlobStore, s3_proxy: Any, tmp_path: Path) -> None:
    """Small and large objects are written with If-None-Match, and never twice."""
    from tests.support.s3proxy import puts

    (tmp_path / "big").write_bytes(pattern(BIG))
    s3.put_bytes(b"abc")
    file = s3.put(collect(tmp_path / "big")[0])
    final = [r for r in s3_proxy.seen(puts()) if "partNumber" not in r.query and "uploads" not in r.query]
    assert len(final) == 2
    assert all(r.headers.get("if-none-match") == "*" for r in final)
    count = len(s3_proxy.seen(puts()))
    s3.put_bytes(b"abc")
    s3.put(collect(tmp_path / "big")[0])
    assert len(s3_proxy.seen(puts())) == count
    s3.fetch(file.digest, BIG, tmp_path / "copy")
    assert sha((tmp_path / "copy").read_bytes()) == file.digest


@pytest.mark.parametrize("size", [3, BIG])
@pytest.mark.parametrize("action", ["drop answer", "drop request", "cut upload", 500, 503, 409, 412])
def test_s3_every_write_may_fail_once(
    s3: BlobStore, s3_proxy: Any, tmp_path: Path, action: Any, size: int
) -> None:
    """Whichever request meets the fault, the blob is there afterwards, right, and nothing foreign is raised."""
    (tmp_path / "f").write_bytes(pattern(size))
    [source] = collect(tmp_path / "f")
    for arm in s3_proxy.every_request(action, when=lambda r: r.method in ("PUT", "POST") and r.key):
        with arm():
            try:
                s3.put(source)
            except StoreUnavailable:
                s3.put(source)
        assert s3.verify(sha(pattern(size)), size) is None
        s3.delete(sha(pattern(size)))


def test_s3_that_stays_away_is_typed(s3: BlobStore, s3_proxy: Any, tmp_path: Path) -> None:
    """503 for longer than our patience: StoreUnavailable, no blob."""
    with s3_proxy.fault(503, times=None), pytest.raises(StoreUnavailable):
        s3.put_bytes(b"abc")
    assert not s3.has(sha(b"abc"))


def test_s3_without_create_only_still_stores_blobs(s3: BlobStore, s3_proxy: Any) -> None:
    """501 to If-None-Match: blobs are content-addressed, so a plain write will do."""
    body = b"<Error><Code>NotImplemented</Code><Message>no</Message></Error>"
    with s3_proxy.fault(501, times=None, when=lambda r: "if-none-match" in r.headers, body=body) as fault:
        digest = s3.put_bytes(b"abc")
    assert fault.fired
    assert s3.read(digest) == b"abc"


def test_s3_replaces_a_wrong_object(s3: BlobStore, s3_bucket: Any) -> None:
    """An object of the wrong size under the key is no blob, and is written again."""
    digest = sha(b"abc")
    s3_bucket.put(f"models/r1/sha256/{digest[7:9]}/{digest[9:]}", b"ab")
    assert s3.put_bytes(b"abc") == digest
    assert s3.read(digest) == b"abc"


@pytest.mark.parametrize(
    "code", ["AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"]
)
@pytest.mark.parametrize("size", [3, BIG])
def test_s3_refused_credentials(s3: BlobStore, s3_proxy: Any, tmp_path: Path, code: str, size: int) -> None:
    """Refused at the first request or in the middle of an upload: CredentialsRefused at once, no blob."""
    (tmp_path / "f").write_bytes(pattern(size))
    [source] = collect(tmp_path / "f")
    body = f"<Error><Code>{code}</Code><Message>testing-secret</Message></Error>".encode()
    for nth in (1, 2):
        begun = time.monotonic()
        with (
            s3_proxy.fault(403, nth=nth, times=None, when=lambda r: r.method == "PUT", body=body) as fault,
            pytest.raises(CredentialsRefused) as caught,
        ):
            s3.put(source)
            assert not fault.fired  # nothing to refuse: the small object has one request
            raise CredentialsRefused("one request only")
        assert "testing-secret" not in str(caught.value)
        assert time.monotonic() - begun < 3
        if fault.fired:
            assert not s3.has(sha(pattern(size)))
        s3.delete(sha(pattern(size)))
    with s3_proxy.fault(403, times=None, body=body), pytest.raises(CredentialsRefused):
        s3.read(sha(b"x"))


def test_no_credentials_at_all(s3: BlobStore, s3_bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials in the environment: CredentialsRefused."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(patience, "_PATIENCE", 3.0)
    with pytest.raises(CredentialsRefused):
        BlobStore(f"{s3_bucket.url}/models", registry_id="r1", storage_options={"anon": False}).put_bytes(
            b"abc"
        )


def test_a_bucket_that_is_not_there(s3: BlobStore) -> None:
    """Writing to a missing bucket is StoreUnavailable, not FileNotFoundError."""
    with pytest.raises(StoreUnavailable):
        BlobStore("s3://no-such-bucket-here/x", registry_id="r1").put_bytes(b"abc")


def test_nobody_listens(s3: BlobStore, monkeypatch: pytest.MonkeyPatch, s3_bucket: Any) -> None:
    """An endpoint where nobody listens is StoreUnavailable, within our patience."""
    monkeypatch.setattr(patience, "_PATIENCE", 0.5)
    options = {"endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(StoreUnavailable):
        BlobStore(f"{s3_bucket.url}/x", registry_id="r1", storage_options=options).has(sha(b"x"))


@pytest.mark.parametrize("size", [3, BIG])
@pytest.mark.parametrize("action", ["cut answer", "drop answer", 500, 503])
def test_s3_reads_begin_again(s3: BlobStore, s3_proxy: Any, tmp_path: Path, action: Any, size: int) -> None:
    """A read that breaks off is taken up again; the bytes are right."""
    from tests.support.s3proxy import gets

    digest = s3.put(from_bytes(pattern(size))).digest
    with s3_proxy.fault(action, times=2, when=gets("sha256")) as fault:
        s3.fetch(digest, size, tmp_path / "copy")
    assert fault.fired
    assert sha((tmp_path / "copy").read_bytes()) == digest


@pytest.mark.parametrize("size", [3, BIG])
def test_s3_wrong_bytes_are_found(
    s3: BlobStore, s3_proxy: Any, s3_bucket: Any, tmp_path: Path, size: int
) -> None:
    """A flipped bit on the way, and another, a shorter or a longer object under the key: DigestMismatch."""
    from tests.support.s3proxy import gets

    data = pattern(size)
    digest = s3.put(from_bytes(data)).digest
    key = f"models/r1/sha256/{digest[7:9]}/{digest[9:]}"
    with s3_proxy.fault("flip bit", times=None, when=gets("sha256")), pytest.raises(DigestMismatch):
        s3.fetch(digest, size, tmp_path / "copy")
    for wrong in (data[:-1] + b"!", data[:-1], data + b"x", data[: size // 2]):
        s3_bucket.put(key, wrong)
        with pytest.raises(DigestMismatch):
            s3.fetch(digest, size, tmp_path / "copy")
        with pytest.raises(DigestMismatch):
            s3.read(digest)
        assert s3.verify(digest, size)
        assert not (tmp_path / "copy").exists()


def test_s3_listings_are_not_trusted(s3: BlobStore, s3_bucket: Any) -> None:
    """Keys that are no blobs, with dots, slashes or other registries, are passed over."""
    digest = s3.put_bytes(b"abc")
    for key in (
        "models/r1/sha256/../../x", "models/r1/sha256//etc/passwd", f"models/r1/sha256/{digest[7:9]}/../{'a' * 62}",
        "models/r1/sha256/ab/" + "A" * 62, "models/r1/README", f"models/r2/sha256/{digest[7:9]}/{digest[9:]}",
        f"models/r1/sha256/x/models/r1/sha256/{digest[7:9]}/{digest[9:]}",
    ):  # fmt: skip
        with contextlib.suppress(Exception):
            s3_bucket.put(key, b"x")
    assert list(s3.digests()) == [(digest, 3)]


def test_s3_listing_caches_are_not_trusted(s3: BlobStore, s3_bucket: Any) -> None:
    """What the driver remembers of a listing neither hides a new blob nor keeps a deleted one."""
    first = s3.put_bytes(b"abc")
    assert [d for d, _ in s3.digests()] == [first]
    second = sha(b"second")
    s3_bucket.put(f"models/r1/sha256/{second[7:9]}/{second[9:]}", b"second")
    s3_bucket.delete(f"models/r1/sha256/{first[7:9]}/{first[9:]}")
    assert s3.has(second)
    assert not s3.has(first)
    assert [d for d, _ in s3.digests()] == [second]


def test_s3_aborts_the_parts_of_a_failed_upload(s3: BlobStore, s3_proxy: Any, tmp_path: Path) -> None:
    """An upload that fails in the middle is aborted: no parts are left to pay for."""
    (tmp_path / "f").write_bytes(pattern(BIG))
    body = b"<Error><Code>AccessDenied</Code></Error>"
    with (
        s3_proxy.fault(403, times=None, when=lambda r: r.query.get("partNumber") == "2", body=body),
        pytest.raises(CredentialsRefused),
    ):
        s3.put(collect(tmp_path / "f")[0])
    assert [r for r in s3_proxy.seen() if r.method == "DELETE" and "uploadId" in r.query]


# --- a plain file system behind fsspec, where a half-written file would be visible


def test_other_file_systems_get_a_temporary_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where writes are not atomic, bytes are renamed into place, and leftovers can be swept."""
    monkeypatch.setattr(remote, "_ATOMIC", set())
    monkeypatch.setattr(remote, "_WHOLE", 1 << 20)
    monkeypatch.setattr(patience, "_PATIENCE", 0.5)
    blobs = remote.RemoteBlobs(f"file://{tmp_path}/far", "r1", {})
    digest, size = blobs.put(from_bytes(b"abc"), None)
    (tmp_path / "big").write_bytes(pattern(BIG))
    big, big_size = blobs.put(collect(tmp_path / "big")[0], None)
    assert sorted(blobs.digests()) == sorted([(digest, size), (big, big_size)])
    unfinished = tmp_path / "far" / "r1" / "unfinished"
    assert list(unfinished.iterdir()) == []

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    blobs.delete(big)
    with pytest.raises(KeyboardInterrupt):
        blobs.put(collect(tmp_path / "big")[0], interrupt)
    assert blobs.size(big) is None
    assert list(unfinished.iterdir()) == []
    (unfinished / "x.0123456789ab.1.abcdefabcdef").write_bytes(b"")
    assert blobs.sweep(None) == 0
    assert blobs.sweep(0) == 1


def test_a_blob_set_aside_by_a_killed_process_comes_back(tmp_path):
    """A purge that is killed between setting a blob aside and asking whether it is needed loses nothing."""
    store = BlobStore(tmp_path, registry_id="r")
    digest = store.put_bytes(b"needed")
    hex_ = digest.removeprefix("sha256:")
    place = tmp_path / "r" / "sha256" / hex_[:2] / hex_[2:]
    child = os.fork()
    if child == 0:
        store.delete(digest, needed=lambda: os._exit(9))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not place.exists()
    BlobStore(tmp_path, registry_id="r").put_bytes(b"whatever the next writer stores")
    assert place.read_bytes() == b"needed"
    assert store.verify(digest) is None


def test_a_needed_blob_stays(tmp_path):
    """`delete` asks at the last moment, and puts the blob back when it is needed."""
    store = BlobStore(tmp_path, registry_id="r")
    digest = store.put_bytes(b"needed")
    store.delete(digest, needed=lambda: True)
    assert store.read(digest) == b"needed"
    store.delete(digest, needed=lambda: False)
    assert not store.has(digest)


def test_equal_files_are_uploaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal files that are stored at the same time one is sent, and all count as done."""
    written: Counter[str] = Counter()
    original = remote.RemoteBlobs._write

    def write(self: remote.RemoteBlobs, digest: str, size: int, work: Any, **options: Any) -> None:
        written[digest] += 1
        time.sleep(0.02)  # seconds in which all others have seen that it is not there
        original(self, digest, size, work, **options)

    monkeypatch.setattr(remote.RemoteBlobs, "_write", write)
    there = BlobStore(f"memory://{tmp_path.name}/once", registry_id="r1")
    items = [sources.from_bytes(b"one or two"[3 * (n % 2) :], f"{n}") for n in range(12)]
    streams = collect({f"s{n}": io.BytesIO(b"a stream") for n in range(4)})
    done: list[int] = []
    found = there.put_all([*items, *streams], progress=done.append)
    assert len({file.digest for file in found}) == len(written) == 3
    assert set(written.values()) == {1}
    assert sum(done) == sum(file.size for file in found)
