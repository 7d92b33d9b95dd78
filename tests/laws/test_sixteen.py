"""Sixteen processes that want the same version at once, some of them killed: each file is fetched once between them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import modelhub_sdk as hub
from modelhub_sdk.blobs.cache import Cache
from tests.support.s3 import Bucket
from tests.support.s3proxy import S3Proxy

THOROUGH = bool(os.environ.get("THOROUGH_TESTS"))
CROWD = 16 if THOROUGH else 5  # a process costs a second of CPU before it asks for anything
BIG = 40 << 20 if THOROUGH else 20 << 20

WORK = """
import sys
import modelhub_sdk as hub
with hub.open(sys.argv[1], cache_dir=sys.argv[2]) as reg:
    print("ready", flush=True)
    sys.stdin.read(1)
    path = reg.resolve("big/v1").path
    print(path, flush=True)
"""


@pytest.mark.timeout(170)
@pytest.mark.parametrize("kills", [0, 5 if THOROUGH else 2])
def test_each_file_is_fetched_once(kills: int, s3_bucket: Bucket, s3_proxy: S3Proxy, tmp_path: Path) -> None:
    """All that are not killed succeed; what a killed one had fetched is gone on with; nothing is left in the cache."""
    random.seed(kills)
    url, cache = f"{s3_bucket.url}/reg", tmp_path / "cache"
    big = random.randbytes(BIG)
    with hub.open(url, create=True, cache_dir=tmp_path / "own") as reg:
        version = reg.register("big", {"big.bin": big, "a.txt": b"a" * 10_000, "d/b.txt": b"b" * 10_000})
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WORK), url, str(cache)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(CROWD)
    ]  # fmt: skip
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        before = len(s3_proxy.seen())
        for child in children:
            assert child.stdin is not None
            child.stdin.write("x")
            child.stdin.flush()
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
                for child in children:
                    if str(child.pid) == owner and child.poll() is None:
                        child.send_signal(signal.SIGKILL)
                        child.wait()
        answers = []
        for child in children:
            out, _ = child.communicate(timeout=120)
            if child.returncode != -signal.SIGKILL:
                assert child.returncode == 0
                answers.append(out.strip())
        killed = sum(child.returncode == -signal.SIGKILL for child in children)
    finally:
        for child in children:
            child.kill()
            child.communicate()
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
