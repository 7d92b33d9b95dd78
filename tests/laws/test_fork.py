"""A registry that is open when the process forks: children and parent go on, and neither harms the other."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk.stores import connections
from tests.support.faults import Ack, in_child
from tests.support.homes import ALL, Home, check_sound

MakeHome = Callable[[str], Home]
CHILDREN = 4

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ALL)
def test_children_write_while_the_parent_goes_on(kind: str, make_home: MakeHome) -> None:
    """Children forked from an open registry register, decide and resolve; so does the parent, at the same time."""
    home = make_home(kind)
    with home.opened() as registry:
        registry.register("m", {"a.bin": b"first"})
        registry.approve("m/v1")
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=_child, args=(registry, home, who)) for who in range(CHILDREN)]
        for child in children:
            child.start()
        for turn in range(3):
            registry.register("m", {"a.bin": b"first", "own": f"parent {turn}".encode()})
        for child in children:
            child.join(60)
        assert [child.exitcode for child in children] == [0] * CHILDREN
        assert registry.model("m").last_number == 1 + 3 + 2 * CHILDREN
        check_sound(registry)
        assert registry.register("m", {"a.bin": b"after"}).number == 5 + 2 * CHILDREN
        # Nobody read another's answers: what each wrote is what it says.
        said = {dict(version.params)["who"] for version in registry.versions("m", where="params.who >= 0")}
        assert said == set(range(CHILDREN))
    assert home.leftovers() == []


def _child(registry: hub.Registry, home: Home, who: int) -> None:
    assert registry.latest("m").number == 1
    for turn in range(2):
        version = registry.register(
            "m", {"a.bin": b"first", "own": f"{who} {turn}".encode()}, params={"who": who}
        )
        assert registry.version(version).params["who"] == who
    registry.comment(version, f"from {who}")
    found = registry.resolve(version, home.folder.parent / f"inputs-{who}")
    assert (Path(found.path) / "own").read_bytes() == f"{who} 1".encode()
    if who % 2:
        registry.close()  # must not say goodbye on the parent's line, nor let its locks go


@pytest.mark.parametrize("kind", ["sqlite", "folder", "postgres"])
def test_what_a_child_writes_outlives_the_parent(kind: str, make_home: MakeHome) -> None:
    """A child that goes on after its parent has closed the registry loses nothing of what was acknowledged to it.

    SQLite keeps its locks per process: a child that inherits an open file writes into a log that
    its parent removes.
    """
    home = make_home(kind)
    with home.opened() as registry:
        registry.register("m", {"a.bin": b"first"})
        go_read, go_write = os.pipe()
        done_read, done_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                registry.register("m", {"a.bin": b"second"})
                os.write(done_write, b"x")
                os.read(go_read, 1)  # until the parent has closed
                for _ in range(3):
                    registry.register("m", {"a.bin": b"third"})
                status = 0
            finally:
                os._exit(status)
        os.read(done_read, 1)
    os.write(go_write, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    for end in (go_read, go_write, done_read, done_write):
        os.close(end)
    with home.opened() as registry:
        assert registry.model("m").last_number == 5
        check_sound(registry)


def test_a_fork_within_a_use_of_sqlite_is_told(make_home: MakeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a fork cannot wait for what is under way, the child is refused rather than left to lose data."""
    monkeypatch.setattr(connections._Forks, "patience", 0.05)
    home = make_home("sqlite")
    with home.opened() as registry:
        registry.register("m", {"a.bin": b"first"})

        def operation(ack: Ack) -> None:
            for verb in (registry.latest, lambda name: registry.register(name, {"a.bin": b"child"})):
                try:
                    verb("m")
                except hub.StoreUnavailable as error:
                    ack(str(error))

        inside, leave = threading.Event(), threading.Event()

        def use() -> None:
            with registry._core.view():
                inside.set()
                leave.wait(20)

        thread = threading.Thread(target=use)
        thread.start()
        inside.wait(20)
        refused = in_child(operation, 10**9)
        leave.set()
        thread.join()
        with registry._core.view():
            refused_too = in_child(operation, 10**9)
        for outcome in (refused, refused_too):
            assert len(outcome.acked) == 2
            assert all("forked" in said and "spawn" in said for said in outcome.acked)
        assert in_child(operation, 10**9).acked == []  # and a fork in a quiet moment is fine
        assert registry.model("m").last_number == 2
        check_sound(registry)


@pytest.mark.parametrize("kind", ["sqlite", "folder", "postgres"])
def test_a_fork_in_the_middle_of_other_threads_work(kind: str, make_home: MakeHome) -> None:
    """Forked while other threads commit and read, a child does not wait for a lock that no thread of its own holds."""
    home = make_home(kind)
    with home.opened() as registry:
        registry.register("m", {"a.bin": b"first"})
        stop = threading.Event()

        def busy(who: int) -> int:
            count = 0
            while not stop.is_set():
                if who % 2:
                    registry.comment("m/v1", f"thread {who}")
                else:
                    registry.versions("m")
                count += 1
            return count

        def operation(ack: Ack) -> None:
            ack(registry.comment("m/v1", "child").number)
            registry.close()

        with ThreadPoolExecutor(4) as threads:
            works = [threads.submit(busy, who) for who in range(4)]
            try:
                for _ in range(8):
                    outcome = in_child(operation, 10**9, timeout=40)
                    assert outcome.state == "finished", outcome.value
                    assert outcome.acked == [1]
            finally:
                stop.set()
            counts = [work.result() for work in works]
        assert min(counts) > 0
        comments = [comment.text for comment in registry.version("m/v1").comments]
        assert comments.count("child") == 8
        assert len(comments) == 8 + counts[1] + counts[3]
        check_sound(registry)


def test_a_memory_registry_is_the_child_s_own_copy() -> None:
    """A registry in memory goes on in a forked child as a copy; the parent's is not touched."""
    with hub.open("memory://", user="tester") as registry:
        registry.register("m", {"a.bin": b"first"})

        def operation(ack: Ack) -> None:
            ack(registry.register("m", {"a.bin": b"child"}).number)
            ack(registry.verify().ok)

        assert in_child(operation, 10**9).acked == [2, True]
        assert registry.model("m").last_number == 1
        check_sound(registry)
        assert Path(registry.resolve("m/v1").path, "a.bin").read_bytes() == b"first"


def _map(arguments: tuple[str, str, int]) -> Any:
    url, cache, number = arguments
    with hub.open(url, cache_dir=cache, user="tester") as registry:
        return registry.register("m", {"a.bin": str(number).encode()}).number


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_of_multiprocessing(method: str, tmp_path: Path) -> None:
    """Each start method of multiprocessing works, with a registry open in the parent."""
    url, cache = f"sqlite:///{tmp_path}/registry.db", str(tmp_path / "cache")
    with hub.open(url, cache_dir=cache, user="tester") as registry:
        registry.create_model("m")
        with multiprocessing.get_context(method).Pool(2) as pool:
            numbers = pool.map(_map, [(url, cache, number) for number in range(6)])
        assert sorted(numbers) == [1, 2, 3, 4, 5, 6]
        check_sound(registry)
