"""Sixteen processes that want the same version at once, some of them killed: each file is fetched once between them."""

from __future__ import annotations

import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import modelhub_sdk as hub
from modelhub_sdk.blobs.cache import Cache
from tests.support.crowd import fresh
from tests.support.s3 import Bucket
from tests.support.s3proxy import S3Proxy

THOROUGH = bool(os.environ.get("THOROUGH_TESTS"))
CROWD = 16 if THOROUGH else 6
BIG = 40 << 20 if THOROUGH else 20 << 20


def _work(pipe: Connection, url: str, cache: str) -> None:
    with hub.open(url, cache_dir=cache) as reg:
        pipe.send("ready")
        pipe.recv()
        pipe.send(str(reg.resolve("big/v1").path))


@pytest.mark.timeout(170)
@pytest.mark.parametrize("kills", [0, 5 if THOROUGH else 2])
def test_each_file_is_fetched_once(kills: int, s3_bucket: Bucket, s3_proxy: S3Proxy, tmp_path: Path) -> None:
    """All that are not killed succeed; what a killed one had fetched is gone on with; nothing is left in the cache."""
    random.seed(kills)
    url, cache = f"{s3_bucket.url}/reg", tmp_path / "cache"
    big = random.randbytes(BIG)
    with hub.open(url, create=True, cache_dir=tmp_path / "own") as reg:
        version = reg.register("big", {"big.bin": big, "a.txt": b"a" * 10_000, "d/b.txt": b"b" * 10_000})
    crowd = [fresh(_work, url, str(cache)) for _ in range(CROWD)]
    try:
        for _, pipe in crowd:
            assert pipe.recv() == "ready"
        before = len(s3_proxy.seen())
        for _, pipe in crowd:
            pipe.send("go")
        partial = cache / "v1" / "partial"
        for _ in range(kills):  # the one that is fetching the large file, as its name in the cache tells
            end = time.monotonic() + 20
            while time.monotonic() < end:
                owners = [name.split(".")[2] for name in (os.listdir(partial) if partial.is_dir() else [])]
                if owners:
                    break
                time.sleep(0.005)
            time.sleep(random.random() * 0.05)
            for owner in owners[:1]:
                for child, _ in crowd:
                    if str(child.pid) == owner and child.exitcode is None:
                        child.kill()
                        child.join()
        answers = []
        for child, pipe in crowd:
            if child.exitcode != -signal.SIGKILL:
                assert pipe.poll(120), "no answer"
                answers.append(pipe.recv())
                child.join(60)
                assert child.exitcode == 0
        killed = sum(child.exitcode == -signal.SIGKILL for child, _ in crowd)
    finally:
        for child, pipe in crowd:
            child.kill()
            child.join()
            pipe.close()
    assert killed <= kills
    assert len(answers) == CROWD - killed
    (path,) = set(answers)
    assert Path(path, "big.bin").read_bytes() == big
    wanted = {file.path: file.digest[9:] for file in version.files}
    asked = [one for one in s3_proxy.seen()[before:] if one.method == "GET"]
    fetched = [
        one.headers["range"].removeprefix("bytes=").split("-")
        for one in asked
        if wanted["big.bin"] in one.path
    ]
    bytes_ = sum(min(int(last), BIG - 1) - int(first) + 1 for first, last in fetched)
    assert BIG <= bytes_ <= BIG + killed * 5 * (8 << 20)  # a killed one loses at most what was under way
    for name in ("a.txt", "d/b.txt"):
        assert 1 <= sum(wanted[name] in one.path for one in asked) <= 1 + killed
    found = Cache(cache)
    found.sweep()
    for part in ("tmp", "partial", "bad", "leases"):
        assert not os.path.isdir(cache / "v1" / part) or os.listdir(cache / "v1" / part) == []
    assert found.verify() == ()
