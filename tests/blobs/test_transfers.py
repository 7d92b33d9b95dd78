"""Parts and ranges of large objects: within one bound on memory, several at a time, and nothing left of what failed."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3fs import S3FileSystem

from modelhub_sdk.blobs import multipart, patience, readers
from modelhub_sdk.blobs.readers import StreamReader
from modelhub_sdk.blobs.room import READING, SENDING, Room
from modelhub_sdk.blobs.sources import Source, collect, from_bytes
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.errors import Conflict, ModelHubError, StoreUnavailable
from tests.support.s3 import Bucket
from tests.support.s3proxy import S3Proxy, puts
from tests.support.threads import at_once

DATA = random.Random(3).randbytes((37 << 20) + 5)
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


def unfinished(bucket: Bucket) -> int:
    """Return how many uploads in parts nobody has finished or thrown away."""
    client = boto3.client("s3", endpoint_url=bucket.endpoint, region_name="us-east-1")
    return len(client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", []))


def store(bucket: Bucket) -> BlobStore:
    return BlobStore(f"{bucket.url}/blobs", registry_id="r1")


# --- the bound -------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=30), threads=st.integers(1, 6))
def test_room_is_never_exceeded(sizes: list[int], threads: int) -> None:
    """However many take, no more than there is is out at once, but for one that is larger by itself; and all get theirs."""
    room = Room(8)
    most = out = 0
    lock = threading.Lock()
    waiting = iter(sizes)

    def work(_n: int) -> None:
        nonlocal most, out
        while True:
            with lock:
                size = next(waiting, None)
            if size is None:
                return
            room.take(size)
            with lock:
                out += size
                most = max(most, out if size <= 8 else 8)
                assert out <= 8 or out == size
            with lock:
                out -= size
            room.give(size)

    at_once(threads, work, timeout=20)
    assert most <= 8


def test_ahead_never_waits() -> None:
    """What is wanted ahead is refused when there is no room, at once."""
    room = Room(8)
    assert room.take(8, wait=False)
    assert not room.take(1, wait=False)
    room.give(8)
    assert room.take(1, wait=False)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("size", [1 << 20, 9 << 20])
def test_many_large_files_in_little_room(
    size: int, s3_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight readers of many ranges in room for one, or two, all come to their end with the right bytes."""
    monkeypatch.setattr(readers, "_RANGE", 1 << 20)
    room = Room(size)
    monkeypatch.setattr(readers, "READING", room)
    blobs = store(s3_bucket)
    contents = [random.Random(n).randbytes((6 << 20) + n) for n in range(8)]
    files = blobs.put_all([from_bytes(data, f"f{n}") for n, data in enumerate(contents)])
    at_once(8, lambda n: blobs.fetch(files[n].digest, files[n].size, tmp_path / f"{n}"), timeout=60)
    assert [(tmp_path / f"{n}").read_bytes() for n in range(8)] == contents
    assert room._taken == 0


@pytest.mark.timeout(60)
def test_from_one_store_to_another(s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends what it reads does not wait for itself: URLs of large objects become blobs, several at once."""
    monkeypatch.setattr(readers, "READING", Room(4 << 20))
    monkeypatch.setattr(multipart, "SENDING", Room(10 << 20))
    for n in range(3):
        s3_bucket.put(f"lake/{n}.bin", DATA[n:])
    found = collect([f"{s3_bucket.url}/lake/{n}.bin" for n in range(3)])
    files = store(s3_bucket).put_all(found)
    assert [file.digest[7:] for file in files] == [hashlib.sha256(DATA[n:]).hexdigest() for n in range(3)]


# --- parts -----------------------------------------------------------------------------------------------


def test_a_large_object_goes_in_parts(s3_bucket: Bucket, s3_proxy: S3Proxy) -> None:
    """Several parts are under way at once; the object is right; stored again, no byte of it is sent."""
    blobs = store(s3_bucket)
    with s3_proxy.fault("delay", when=lambda r: r.query.get("partNumber") == "1", seconds=3):
        assert blobs.put(from_bytes(DATA)).digest == DIGEST
    assert numbers(s3_proxy)[0] != 1  # others were answered while it was under way
    assert len(numbers(s3_proxy)) == -(-len(DATA) // multipart._PART)
    assert blobs.read(DIGEST) == DATA
    before = len(s3_proxy.seen(puts()))
    assert blobs.put(from_bytes(DATA)).digest == DIGEST
    assert len(s3_proxy.seen(puts())) == before
    assert unfinished(s3_bucket) == 0


def test_a_source_that_changes(s3_bucket: Bucket) -> None:
    """Bytes that are others when they are sent than when they were hashed become no object; the parts are thrown away."""
    blobs = store(s3_bucket)
    times = iter([DATA, DATA[:-1] + b"!"])

    class Changing:
        def __init__(self, data: bytes) -> None:
            self._data, self._at = data, 0

        def read(self, count: int) -> bytes:
            piece = self._data[self._at : self._at + count]
            self._at += len(piece)
            return piece

    source = Source("m", "m", len(DATA), lambda: StreamReader(Changing(next(times)), "m"))
    with pytest.raises(Conflict, match="changed"):
        blobs.put(source)
    assert not s3_bucket.keys("blobs/r1/sha256")
    assert unfinished(s3_bucket) == 0


@pytest.mark.parametrize("action", [500, "drop request", "cut upload", "drop answer"])
def test_a_part_that_fails_once(action: Any, s3_bucket: Bucket, s3_proxy: S3Proxy) -> None:
    """One part that fails is sent again; the object is right and nothing else is left."""
    blobs = store(s3_bucket)
    with s3_proxy.fault(action, when=lambda r: "partNumber" in r.query, nth=2) as fault:
        blobs.put(from_bytes(DATA))
    assert fault.fired
    assert blobs.read(DIGEST) == DATA
    assert unfinished(s3_bucket) == 0


def test_parts_that_keep_failing(
    s3_bucket: Bucket, s3_proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of ours, no object, and the parts that had arrived are thrown away; the room is free again."""
    monkeypatch.setattr(patience, "_PATIENCE", 2.0)
    blobs = store(s3_bucket)
    with (
        s3_proxy.fault(500, when=lambda r: "partNumber" in r.query, nth=3, times=None),
        pytest.raises(StoreUnavailable),
    ):
        blobs.put(from_bytes(DATA))
    assert not s3_bucket.keys("blobs/r1/sha256")
    assert unfinished(s3_bucket) == 0
    assert SENDING._taken == READING._taken == 0
    assert blobs.put(from_bytes(DATA)).digest == DIGEST


def test_somebody_was_first(s3_bucket: Bucket, s3_proxy: S3Proxy) -> None:
    """Who finishes second finds the object there, is content, and leaves nothing."""
    blobs = store(s3_bucket)
    other = BlobStore(blobs.url, registry_id="r1", storage_options={"endpoint_url": s3_bucket.endpoint})
    raced = []

    def first(request: Any) -> bool:
        if request.method == "POST" and "uploadId" in request.query and not raced:
            raced.append(request)
            other.put(from_bytes(DATA))
        return False

    with s3_proxy.fault("delay", when=first):
        assert blobs.put(from_bytes(DATA)).digest == DIGEST
    assert raced
    assert blobs.read(DIGEST) == DATA
    assert unfinished(s3_bucket) == 0


def test_what_killed_uploads_left(s3_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their parts, which no listing shows, are thrown away when they are old; those of others are not touched."""
    (tmp_path / "big.bin").write_bytes(DATA)
    code = (
        "import os, sys\n"
        "from modelhub_sdk.blobs import multipart\n"
        "from modelhub_sdk.blobs.store import BlobStore\n"
        "from modelhub_sdk.blobs.sources import collect\n"
        "filled, count = multipart._filled, [0]\n"
        "def dies(reader, size):\n"
        "    count[0] += 1\n"
        "    return os.kill(os.getpid(), 9) if count[0] > 3 else filled(reader, size)\n"
        "multipart._filled = dies\n"
        "BlobStore(sys.argv[1] + '/blobs', registry_id='r1').put(collect(sys.argv[2])[0])\n"
    )
    for _ in range(2):
        died = subprocess.run(
            [sys.executable, "-c", code, s3_bucket.url, str(tmp_path / "big.bin")], check=False
        )
        assert died.returncode == -9
    client = boto3.client("s3", endpoint_url=s3_bucket.endpoint, region_name="us-east-1")
    client.create_multipart_upload(Bucket=s3_bucket.name, Key="others/sha256/x")
    assert unfinished(s3_bucket) == 3
    asked = S3FileSystem.call_s3

    def dated(self: Any, method: str, *args: Any, **options: Any) -> Any:
        found = asked(self, method, *args, **options)
        if method == "list_multipart_uploads":  # this server says 2010 of all
            for one in found["Uploads"]:
                one["Initiated"] = datetime.now(UTC) - age
        return found

    monkeypatch.setattr(S3FileSystem, "call_s3", dated)
    age = timedelta(days=6)
    assert store(s3_bucket).sweep() == 0  # somebody may be at it
    age = timedelta(days=8)
    assert store(s3_bucket).sweep() == 2
    (left,) = client.list_multipart_uploads(Bucket=s3_bucket.name)["Uploads"]
    assert left["Key"] == "others/sha256/x"


def test_many_left_uploads_and_none_to_see(s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are listed page by page; where that is not allowed, nothing happens."""
    client = boto3.client("s3", endpoint_url=s3_bucket.endpoint, region_name="us-east-1")
    for number in range(7):
        client.create_multipart_upload(Bucket=s3_bucket.name, Key=f"blobs/r1/sha256/{number}")
    asked, pages = S3FileSystem.call_s3, []

    def paged(self: Any, method: str, *args: Any, **options: Any) -> Any:
        """Answer as S3 does, which gives a thousand at most; this server gives all."""
        after = options.pop("KeyMarker", ""), options.pop("UploadIdMarker", "")
        found = asked(self, method, *args, **options)
        if method == "list_multipart_uploads":
            pages.append(after)
            rest = sorted(found["Uploads"], key=lambda one: (one["Key"], one["UploadId"]))
            rest = [one for one in rest if (one["Key"], one["UploadId"]) > after]
            found = {"Uploads": rest[:3], "IsTruncated": len(rest) > 3}
            found |= {"NextKeyMarker": rest[:3][-1]["Key"], "NextUploadIdMarker": rest[:3][-1]["UploadId"]}
        return found

    with monkeypatch.context() as patch:
        patch.setattr(S3FileSystem, "call_s3", paged)
        assert store(s3_bucket).sweep(older_than=0) == 7
    assert len(pages) == 3
    assert unfinished(s3_bucket) == 0
    client.create_multipart_upload(Bucket=s3_bucket.name, Key="blobs/r1/sha256/x")
    monkeypatch.setattr(
        S3FileSystem, "call_s3", lambda *_, **__: (_ for _ in ()).throw(PermissionError("no"))
    )
    assert store(s3_bucket).sweep(older_than=0) == 0


def test_interrupted(s3_bucket: Bucket) -> None:
    """Ctrl-C in the middle throws away what was sent, and gives the room back."""
    blobs = store(s3_bucket)
    seen = []

    def stop(count: int) -> None:
        seen.append(count)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blobs.put(from_bytes(DATA), progress=stop)
    assert unfinished(s3_bucket) == 0
    assert SENDING._taken == READING._taken == 0
    assert not s3_bucket.keys("blobs/r1/sha256")


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads are worth going on with from 10 MB on."""
    monkeypatch.setattr(multipart, "_RESUMED", 10 << 20)


def numbers(s3_proxy: S3Proxy) -> list[int]:
    """Return the numbers of the parts that were sent so far, in order."""
    sent = s3_proxy.seen(lambda request: "partNumber" in request.query)
    return [int(one.query["partNumber"]) for one in sent]


def halts(after: int) -> Callable[[int], None]:
    """Return a progress that is interrupted once so many parts have arrived."""
    seen: list[int] = []

    def stop(count: int) -> None:
        seen.append(count)
        if len(seen) == after:
            raise KeyboardInterrupt

    return stop


def test_an_interrupted_upload_is_gone_on_with(resumed: None, s3_bucket: Bucket, s3_proxy: S3Proxy) -> None:
    """What arrived before Ctrl-C is not sent again, by whoever uploads these bytes next; the bar counts it all."""
    with pytest.raises(KeyboardInterrupt):
        store(s3_bucket).put(from_bytes(DATA), progress=halts(4))
    assert unfinished(s3_bucket) == 1
    before = numbers(s3_proxy)
    told: list[int] = []
    assert store(s3_bucket).put(from_bytes(DATA), progress=told.append).digest == DIGEST
    again = numbers(s3_proxy)[len(before) :]
    assert sum(told) == len(DATA)
    assert len(numbers(s3_proxy)) - len(before) <= 8 - 4
    assert again
    assert store(s3_bucket).read(DIGEST) == DATA
    assert unfinished(s3_bucket) == 0


def test_parts_of_other_bytes_are_sent_again(resumed: None, s3_bucket: Bucket) -> None:
    """What an unfinished upload of the key holds counts only if it is what would be sent."""
    client = boto3.client("s3", endpoint_url=s3_bucket.endpoint, region_name="us-east-1")
    key = f"blobs/r1/sha256/{DIGEST[7:9]}/{DIGEST[9:]}"
    begun = client.create_multipart_upload(Bucket=s3_bucket.name, Key=key)["UploadId"]
    for number in (1, 2, 9):  # wrong, cut, and one too many
        client.upload_part(
            Bucket=s3_bucket.name, Key=key, UploadId=begun, PartNumber=number, Body=b"x" * (number << 20)
        )
    assert store(s3_bucket).put(from_bytes(DATA)).digest == DIGEST
    assert store(s3_bucket).read(DIGEST) == DATA
    assert unfinished(s3_bucket) == 1  # it may be somebody's who lives: the weekly clean-up takes it


def test_the_upload_of_another_is_not_thrown_away(resumed: None, s3_bucket: Bucket) -> None:
    """Whoever goes on with an upload and fails early leaves it to its process, which may be alive, and to the next."""
    with pytest.raises(KeyboardInterrupt):
        store(s3_bucket).put(from_bytes(DATA), progress=halts(3))

    class Failing(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            raise OSError("gone")

    times = iter([io.BytesIO(DATA), Failing()])
    source = Source("m", "m", len(DATA), lambda: StreamReader(next(times), "m"))
    with pytest.raises(StoreUnavailable):
        store(s3_bucket).put(source)
    assert unfinished(s3_bucket) == 1
    assert store(s3_bucket).put(from_bytes(DATA)).digest == DIGEST
    assert unfinished(s3_bucket) == 0


def test_etags_that_say_nothing(resumed: None, s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bucket that encrypts by a key of its own nobody goes on: nothing is left, and nobody is disturbed."""
    monkeypatch.setattr(multipart, "_etag", lambda data: '"of other bytes"')
    with pytest.raises(KeyboardInterrupt):
        store(s3_bucket).put(from_bytes(DATA), progress=halts(3))
    assert unfinished(s3_bucket) == 0
    client = boto3.client("s3", endpoint_url=s3_bucket.endpoint, region_name="us-east-1")
    key = f"blobs/r1/sha256/{DIGEST[7:9]}/{DIGEST[9:]}"
    begun = client.create_multipart_upload(Bucket=s3_bucket.name, Key=key)["UploadId"]
    client.upload_part(Bucket=s3_bucket.name, Key=key, UploadId=begun, PartNumber=1, Body=DATA[: 5 << 20])
    assert store(s3_bucket).put(from_bytes(DATA)).digest == DIGEST
    (left,) = client.list_multipart_uploads(Bucket=s3_bucket.name)["Uploads"]
    assert left["UploadId"] == begun


def test_a_failing_part_costs_only_itself(
    resumed: None, s3_bucket: Bucket, s3_proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt after an error goes on with what has arrived."""
    with s3_proxy.fault(500, when=lambda r: r.query.get("partNumber") == "7", times=7):
        assert store(s3_bucket).put(from_bytes(DATA)).digest == DIGEST
    assert max(Counter(number for number in numbers(s3_proxy) if number < 4).values()) == 1
    assert store(s3_bucket).read(DIGEST) == DATA
    assert unfinished(s3_bucket) == 0


def test_two_at_the_same_upload(resumed: None, s3_bucket: Bucket) -> None:
    """A second process that takes a living one for dead does no harm: one object, right, and nothing else."""
    with pytest.raises(KeyboardInterrupt):
        store(s3_bucket).put(from_bytes(DATA), progress=halts(2))
    at_once(2, lambda _: store(s3_bucket).put(from_bytes(DATA)))
    assert store(s3_bucket).read(DIGEST) == DATA
    assert unfinished(s3_bucket) == 0


def test_whoever_may_not_list_begins_anew(
    resumed: None, s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on is a favour: without the right to look for it everything is sent."""
    asked = S3FileSystem.call_s3

    def refused(self: Any, method: str, *args: Any, **options: Any) -> Any:
        if method == "list_multipart_uploads":
            raise PermissionError("no")
        return asked(self, method, *args, **options)

    monkeypatch.setattr(S3FileSystem, "call_s3", refused)
    assert store(s3_bucket).put(from_bytes(DATA)).digest == DIGEST


def test_a_source_that_changes_leaves_no_parts(resumed: None, s3_bucket: Bucket) -> None:
    """Parts of bytes that are not those of the key are of no use to anybody."""
    test_a_source_that_changes(s3_bucket)


def test_a_slow_server_is_given_up(
    s3_bucket: Bucket, s3_proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part whose answer does not come in time is an error in bounded time, not a wait for ever."""
    monkeypatch.setattr(patience, "_PATIENCE", 1.0)
    monkeypatch.setattr(patience, "_GRACE", 1.0)
    monkeypatch.setattr(patience, "_SLOWEST", 8 << 20)
    blobs = store(s3_bucket)
    begun = time.monotonic()
    with (
        s3_proxy.fault("delay", when=lambda r: "partNumber" in r.query, times=None, seconds=8.0),
        pytest.raises(ModelHubError, match="slow"),
    ):
        blobs.put(from_bytes(DATA))
    assert time.monotonic() - begun < 30


PEAK = """
    import sys
    from modelhub_sdk.blobs.store import BlobStore
    from modelhub_sdk.blobs.sources import from_file
    import s3fs
    def high():
        return int([l.split()[1] for l in open("/proc/self/status") if l.startswith("VmHWM")][0]) // 1024
    blobs = BlobStore(sys.argv[1], registry_id="r1")
    blobs.put(from_file(sys.argv[2] + "/small"))
    before = high()
    found = blobs.put_all([from_file(f"{sys.argv[2]}/{n}") for n in range(int(sys.argv[3]))])
    for file in found:
        blobs.fetch(file.digest, file.size, sys.argv[2] + "/back" + file.path)
    print(high() - before)
"""
LARGE = 6 if os.environ.get("THOROUGH_TESTS") else 4


@pytest.mark.timeout(120)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_memory_is_bounded(s3_bucket: Bucket, tmp_path: Path) -> None:
    """Four files of 40 MB at once (or six), there and back, take no more memory than three of them."""
    (tmp_path / "small").write_bytes(b"x")
    for n in range(LARGE):
        (tmp_path / f"{n}").write_bytes(random.Random(n).randbytes(40 << 20))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK), f"{s3_bucket.url}/blobs", tmp_path, str(LARGE)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 110
