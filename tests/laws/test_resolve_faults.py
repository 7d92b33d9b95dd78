"""Resolving through a network, a disk and a clock that fail: a clear error or success, the target untouched or complete."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.blobs import patience, readers
from modelhub_sdk.errors import (
    Conflict,
    CredentialsRefused,
    DigestMismatch,
    ModelHubError,
    NotFound,
    StoreUnavailable,
)
from tests.support.disks import mounted
from tests.support.homes import files_in
from tests.support.s3 import Bucket
from tests.support.s3proxy import S3Proxy, gets
from tests.support.threads import at_once

RANGE = 1 << 20  # asked for at once; the library asks for four times as much
BIG = random.Random(7).randbytes(2 * RANGE + 12_345)
FILES = {"big.bin": BIG, "sub/small.json": b'{"a": 1}' * 100, "empty": b""}
DENIED = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
BUSY = b"<Error><Code>SlowDown</Code><Message>later</Message></Error>"


class Pod:
    """A machine with an empty cache that resolves ``m/v1`` over a proxy."""

    def __init__(self, url: str, tmp_path: Path) -> None:
        self.url, self.cache, self.target = url, tmp_path / "cache", tmp_path / "into"
        self.reg = hub.open(url, cache_dir=self.cache)
        self.reg.version("m/v1")

    def resolve(self) -> None:
        self.reg.resolve("m/v1", into=self.target)

    def check(self, resolved: bool) -> None:
        """The target is complete or not there, the cache is right, and the next try works."""
        if resolved:
            assert {name: (self.target / name).read_bytes() for name in files_in(self.target)} == FILES
        else:
            assert not self.target.exists()
        assert self.reg._core.cache().verify() == ()
        self.resolve()
        assert {name: (self.target / name).read_bytes() for name in files_in(self.target)} == FILES
        left = files_in(self.cache / "v1" / "tmp") if (self.cache / "v1" / "tmp").exists() else []
        assert not left
        self.reg.close()


@pytest.fixture
def pod(
    s3_bucket: Bucket, s3_proxy: S3Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pod]:
    monkeypatch.setattr(patience, "_PATIENCE", 3.0)
    monkeypatch.setattr(patience, "_GRACE", 1.0)
    monkeypatch.setattr(patience, "_SLOWEST", RANGE // 4)  # four seconds for a range
    monkeypatch.setattr(readers, "_RANGE", RANGE)
    with hub.open(f"{s3_bucket.url}/r", create=True, cache_dir=tmp_path / "author") as author:
        author.register("m", FILES)
    found = Pod(f"{s3_bucket.url}/r", tmp_path)
    yield found
    found.reg.close()


def outcome(pod: Pod, *, within: float = 60.0) -> ModelHubError | None:
    """Resolve, and return the error, if there is one; no foreign exception, and in bounded time."""
    begun = time.monotonic()
    try:
        pod.resolve()
    except ModelHubError as error:
        return error
    finally:
        assert time.monotonic() - begun < within
    return None


ONCE: dict[str, dict[str, Any]] = {
    "500": {"action": 500},
    "503 with a reason": {"action": 503, "body": BUSY},
    "no answer": {"action": "drop request"},
    "an answer that is lost": {"action": "drop answer"},
    "cut at the first byte": {"action": "cut answer", "share": 0.0},
    "cut at a third": {"action": "cut answer", "share": 1 / 3},
    "cut before the last byte": {"action": "cut answer", "share": 0.99999},
    "too short, and said to be all": {"action": "short answer"},
    "too long": {"action": "long answer"},
    "a wrong bit": {"action": "flip bit"},
    "a byte now and then": {"action": "slow answer", "seconds": 30.0},
    "late": {"action": "delay", "seconds": 0.5},
    "gone for a moment": {"action": 404},
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("how", ONCE)
def test_one_bad_answer(how: str, nth: int, pod: Pod, s3_proxy: S3Proxy) -> None:
    """One bad answer among many is gone over, or is a clear error; nothing wrong or half is ever there."""
    with s3_proxy.fault(when=gets("blobs"), nth=nth, **ONCE[how]) as fault:
        error = outcome(pod)
    assert fault.fired
    if how not in ("gone for a moment", "too long"):
        assert error is None, error
    pod.check(error is None)


ALWAYS: dict[str, tuple[dict[str, Any], type[ModelHubError]]] = {
    "500": ({"action": 500}, StoreUnavailable),
    "no answer": ({"action": "drop request"}, StoreUnavailable),
    "cut": ({"action": "cut answer"}, StoreUnavailable),
    "too short": ({"action": "short answer"}, DigestMismatch),
    "too long": ({"action": "long answer"}, DigestMismatch),
    "wrong": ({"action": "flip bit"}, DigestMismatch),
    "slow": ({"action": "slow answer", "seconds": 60.0}, StoreUnavailable),
    "gone": ({"action": 404}, NotFound),
    "denied": ({"action": 403, "body": DENIED}, CredentialsRefused),
}


@pytest.mark.timeout(170)
@pytest.mark.parametrize("how", ALWAYS)
def test_an_answer_that_stays_bad(how: str, pod: Pod, s3_proxy: S3Proxy) -> None:
    """What does not get better is one error of ours, of the right kind, in bounded time."""
    options, kind = ALWAYS[how]
    with s3_proxy.fault(when=gets("blobs"), nth=1, times=None, **options):
        error = outcome(pod, within=100.0)
    assert isinstance(error, (kind, DigestMismatch) if how == "too long" else kind), error
    assert str(error)
    pod.check(False)


@pytest.mark.timeout(170)
@pytest.mark.parametrize("seed", range(6))
def test_many_bad_answers(seed: int, pod: Pod, s3_proxy: S3Proxy) -> None:
    """A network that goes wrong again and again, at random, ends in success or in an error of ours."""
    chance = random.Random(seed)
    kinds = [ONCE[how] for how in sorted(ONCE) if "now and then" not in how]
    faults = [
        s3_proxy.fault(when=gets("blobs"), nth=chance.randint(1, 6), **chance.choice(kinds)) for _ in range(4)
    ]
    with faults[0], faults[1], faults[2], faults[3]:
        error = outcome(pod, within=120.0)
    pod.check(error is None)


# --- Ctrl-C ----------------------------------------------------------------------------------------------

CHILD = """
    import sys, modelhub_sdk as hub
    from modelhub_sdk.blobs import readers
    readers._RANGE = 1 << 20
    reg = hub.open(sys.argv[1], cache_dir=sys.argv[2])
    reg.version("m/v1")
    print("on", flush=True)
    try:
        reg.resolve("m/v1", into=sys.argv[3])
        print("done", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("slow", [False, True])
def test_ctrl_c(slow: bool, pod: Pod, s3_proxy: S3Proxy, tmp_path: Path) -> None:
    """Whenever it comes it is answered soon, also while the network says nothing; the target is complete or absent."""
    for n in range(4) if os.environ.get("THOROUGH_TESTS") else (0, 2):
        cache, target = tmp_path / f"cache{n}", tmp_path / f"target{n}"
        with s3_proxy.fault(
            "slow answer" if slow else "delay", when=gets("blobs"), nth=1, times=None if slow else 2,
            seconds=60.0 if slow else 0.2,
        ):  # fmt: skip
            child = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(CHILD), pod.url, cache, target],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert child.stdout is not None
            assert child.stdout.readline() == "on\n"
            time.sleep(0.1 * n)
            begun = time.monotonic()
            while child.poll() is None and time.monotonic() - begun < 10:
                # Once more, as a person would: CPython loses one that comes within a finalizer.
                child.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=4)
            assert child.poll() is not None
            said = child.stdout.read()
            child.stdout.close()
        if "done" in said:
            assert sorted(files_in(target)) == sorted(FILES)
        else:
            assert not target.exists()
        with hub.open(pod.url, cache_dir=cache) as reg:
            assert reg.resolve("m/v1", into=target).files
            assert (target / "big.bin").read_bytes() == BIG
            assert reg._core.cache().verify() == ()
    pod.check(False)


# --- what is in the way, and what cannot be written ------------------------------------------------------


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with hub.open(f"sqlite:///{tmp_path}/r.db", cache_dir=tmp_path / "cache") as found:
        found.register("m", FILES)
        yield found


def _file(path: Path) -> None:
    path.write_bytes(b"mine")


def _link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to("elsewhere")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _full(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_bytes(b"mine")


def _inner_link(path: Path) -> None:
    path.mkdir()
    (path.parent / "elsewhere").mkdir()
    (path / "sub").symlink_to("../elsewhere")


def _inner_file(path: Path) -> None:
    path.mkdir()
    (path / "sub").write_bytes(b"mine")


def tree(path: Path) -> dict[str, Any]:
    """Return everything below *path*, links as links."""
    found: dict[str, Any] = {}
    for one in [path, *sorted(path.rglob("*"))] if path.is_dir() and not path.is_symlink() else [path]:
        name = str(one.relative_to(path.parent))
        found[name] = (
            os.readlink(one) if one.is_symlink() else one.read_bytes() if one.is_file() else one.is_dir()
        )
    return found


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (_file, "into"), (_link, "into"), (_dangling, "into"), (_full, "notes.txt"), (_inner_link, "sub"),
        (_inner_file, "sub"),
    ],
)  # fmt: skip
def test_what_is_in_the_way(make: Callable[[Path], None], named: str, reg: Registry, tmp_path: Path) -> None:
    """A target that is a file, a link or not empty is refused, by the names that are in the way, and stays as it was."""
    target = tmp_path / "into"
    make(target)
    before = tree(target)
    with pytest.raises(ModelHubError, match=named):
        reg.resolve("m/v1", into=target)
    assert tree(target) == before


def test_overwrite_replaces_what_it_manages(reg: Registry, tmp_path: Path) -> None:
    """With overwrite=True the version's own files are replaced, and nothing is deleted that is not one of them."""
    target = tmp_path / "into"
    target.mkdir()
    (target / "notes.txt").write_bytes(b"mine")
    (target / "big.bin").write_bytes(b"old")
    before = tree(target)
    try:
        reg.resolve("m/v1", into=target, overwrite=True)
    except Conflict as error:  # also a clear answer: what is not its own is in the way
        assert "notes.txt" in str(error)
        assert tree(target) == before
        (target / "notes.txt").unlink()
        reg.resolve("m/v1", into=target, overwrite=True)
    else:
        assert (target / "notes.txt").read_bytes() == b"mine"
    assert (target / "big.bin").read_bytes() == BIG


SMALL_DISK = """
    import resource, signal, sys
    import modelhub_sdk as hub
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as a disk would: an error, no signal
    reg = hub.open(sys.argv[1], cache_dir=sys.argv[2])
    reg.version("m/v1")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        reg.resolve("m/v1", into=sys.argv[3])
    except hub.StoreUnavailable as error:
        print("unavailable", error)
"""


def test_no_room_for_a_file(reg: Registry, tmp_path: Path) -> None:
    """Where a file cannot be as large as it must be, the error says so, and neither cache nor target has half of it."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SMALL_DISK), f"sqlite:///{tmp_path}/r.db", tmp_path / "other", tmp_path / "into"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.startswith("unavailable"), done.stderr
    assert not (tmp_path / "into").exists()
    left = [name for name in files_in(tmp_path / "other" / "v1") if name.startswith(("tmp", "partial"))]
    assert not left


def test_a_full_disk(reg: Registry, tmp_path: Path) -> None:
    """On a disk without room: a clear error, and it works with room again."""
    with mounted(tmp_path / "disk", "size=2m") as disk:
        with hub.open(f"sqlite:///{tmp_path}/r.db", cache_dir=disk / "cache") as full:
            with pytest.raises(StoreUnavailable, match="(?i)space"):
                full.resolve("m/v1")
        with pytest.raises(StoreUnavailable, match="(?i)space"):
            reg.resolve("m/v1", into=disk / "into", link="copy")
        assert not (disk / "into").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        reg.resolve("m/v1", into=disk / "into", link="copy")
        with hub.open(f"sqlite:///{tmp_path}/r.db", cache_dir=disk / "cache") as full:
            assert full.resolve("m/v1").files


def test_a_read_only_target(reg: Registry, tmp_path: Path) -> None:
    """A target on a read-only disk is one clear error; the version is in the cache all the same."""
    with mounted(tmp_path / "disk", "ro") as disk:
        with pytest.raises(ModelHubError, match="(?i)read-only|cannot"):
            reg.resolve("m/v1", into=disk / "into")
    assert reg.resolve("m/v1").files


# --- clocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [timedelta(days=-4000), timedelta(days=4000)])
def test_clock_jumps(jump: timedelta, reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps by years between two resolves, or in the middle of one, changes nothing of what is handed out."""
    reg.resolve("m/v1", into=tmp_path / "one")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump.total_seconds())
    monkeypatch.setattr(reg._core, "clock", lambda: datetime.now(UTC) + jump)
    assert reg.resolve("m/v1", into=tmp_path / "two").files
    assert (tmp_path / "two" / "big.bin").read_bytes() == BIG
    reg._core.cache().prune(1 << 20)
    monkeypatch.undo()
    assert (Path(reg.resolve("m/v1").path) / "big.bin").read_bytes() == BIG
    assert reg._core.cache().verify() == ()


def test_many_threads(reg: Registry, tmp_path: Path) -> None:
    """Many threads that resolve into many folders at once all get whole folders."""

    def once(n: int) -> None:
        reg.resolve("m/v1", into=tmp_path / f"t{n}")
        digest = hashlib.sha256((tmp_path / f"t{n}" / "big.bin").read_bytes()).hexdigest()
        assert digest == hashlib.sha256(BIG).hexdigest()

    at_once(6, once)
