"""Helpers of the tests of blobs: another user, another process, a small disk."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelhub_sdk.blobs.cache import Cache
from tests.support.disks import mounted

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
NOBODY = 65534


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """An empty cache."""
    return Cache(tmp_path / "cache")


def _forked(work: Callable[[], Any], *, nobody: bool) -> Any:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if nobody and ROOT:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            try:
                body = pickle.dumps((True, work()))
            except BaseException as exc:
                traceback.print_exc()
                body = pickle.dumps((False, exc))
            while body:
                body = body[os.write(writer, body) :]
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    os.waitpid(child, 0)
    assert data, "the child died"
    good, value = pickle.loads(data)
    if not good:
        raise value
    return value


@pytest.fixture
def as_nobody(tmp_path: Path) -> Callable[[Callable[[], Any]], Any]:
    """Return how to call something as a user without rights (in a child, when the tests run as root).

    Permissions are no obstacle to root, so tests of them would prove nothing.
    """
    import concurrent.futures.thread
    import http.client
    import json

    import platformdirs

    del concurrent, http, json, platformdirs  # the child may not read them from disk
    for folder in (tmp_path, *tmp_path.parents):
        if ROOT and folder.name.startswith(("pytest-", "test_", "popen-")):
            os.chmod(folder, 0o755)
    return lambda work: _forked(work, nobody=True)


@pytest.fixture
def forked() -> Callable[[Callable[[], Any]], Any]:
    """Return how to call something in a child process."""
    return lambda work: _forked(work, nobody=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of 8 MB of its own (needs root on Linux)."""
    with mounted(tmp_path / "small", "size=8m") as folder:
        yield folder


def kill_when(process: subprocess.Popen[str], begun: Callable[[], object], later: float) -> None:
    """Kill *process* some seconds *later* than it has *begun*, unless it is through before."""
    end = time.monotonic() + 30
    while not begun() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.0005)
    time.sleep(later)
    process.kill()
    process.communicate()


@pytest.fixture
def kill() -> Callable[[subprocess.Popen[str], Callable[[], object], float], None]:
    """Return `kill_when`."""
    return kill_when


def tree(folder: Path) -> dict[str, Any]:
    """Return everything in *folder*: bytes of files, targets of links, None for folders."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[name] = ("link", os.readlink(path))
        elif stat.S_ISREG(mode):
            found[name] = path.read_bytes()
        else:
            found[name] = None if stat.S_ISDIR(mode) else stat.filemode(mode)
    return found


@pytest.fixture
def look() -> Callable[[Path], dict[str, Any]]:
    """Return `tree`."""
    return tree


@pytest.fixture(autouse=True)
def _writable_again(tmp_path: Path) -> Iterator[None]:
    """Let pytest remove what the tests made read-only."""
    yield
    for folder, _, _ in os.walk(tmp_path):
        if not ROOT:
            os.chmod(folder, 0o700)
    if not ROOT:
        shutil.rmtree(tmp_path, ignore_errors=True)
