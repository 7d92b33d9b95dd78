"""Fail, or die, at the n-th I/O call of each verb, for every n: nothing acknowledged is lost, nothing is half-made.

After each failure: the registry opens and verifies; what was acknowledged is held; what failed has
either not happened or happened whole; the same call again works, once; and no file is left over.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import itertools
import json
import os
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import ModelHubError, Registry
from modelhub_sdk.blobs import disk
from tests.support import faults
from tests.support.faults import KILL, SHORT, FaultAt, every_call, in_child
from tests.support.homes import LOCAL, Home, check_sound, copy_tree, facts, files_in, held, home

faults.install_sqlite()

FILES = {"model.bin": b"weights" * 5000, "sub/prep.json": b"{}"}
BETTER = {"model.bin": b"better weights" * 5000, "sub/prep.json": b"{}"}


@dataclass(frozen=True)
class Verb:
    """One operation: how to do it, and what the world looks like when it has been done once.

    Attributes:
        do: carries it out.
        done: whether *registry* shows that it was done; raises AssertionError if it was done by half.
    """

    do: Callable[[Registry, Home], Any]
    done: Callable[[Registry, Home], bool]


def _register(registry: Registry, at: Home) -> Any:
    return registry.register("m", BETTER, metrics={"auc": 0.9}, note="note", idempotency_key="once")


def _registered(registry: Registry, at: Home) -> bool:
    versions = registry.versions("m", limit=10)
    assert [version.number for version in versions] in ([1], [2, 1]), "double, or a gap"
    return len(versions) == 2


def _ingest(registry: Registry, at: Home) -> Any:
    return registry.ingest(at.folder.parent / "outputs", metrics={"auc": 0.8})


def _ingested(registry: Registry, at: Home) -> bool:
    names = {model.name for model in registry.models()}
    assert names in ({"m"}, {"m", "one"})
    records = registry.audit(action="outputs")
    assert len(records) <= ("one" in names), "recorded twice, or before its versions"
    if "one" in names:
        (version,) = registry.versions("one")
        assert [file.path for file in version.files] == ["one.bin"]
    return len(records) == 1


def _approve(registry: Registry, at: Home) -> Any:
    return registry.approve("m/v1", "recall +5 %")


def _approved(registry: Registry, at: Home) -> bool:
    version = registry.version("m/v1")
    decisions = registry.audit(version, action="version.approved")
    assert len(decisions) == (version.status == "approved"), "decided twice, or by half"
    return version.status == "approved"


def _target(at: Home) -> Path:
    return at.folder.parent / "inputs" / "model"


def _resolve(registry: Registry, at: Home) -> Any:
    return registry.resolve("m/v1", _target(at))


def _resolved(registry: Registry, at: Home) -> bool:
    """Whole or not at all: also between two looks at the folder nothing may be missing from it."""
    found = files_in(_target(at))
    assert found in ([], sorted(FILES)), f"half of a folder: {found}"
    for path in found:
        assert (_target(at) / path).read_bytes() == FILES[path]
    return bool(found)


VERBS = {
    "register": Verb(_register, _registered),
    "ingest": Verb(_ingest, _ingested),
    "approve": Verb(_approve, _approved),
    "resolve": Verb(_resolve, _resolved),
}


def _template(kind: str, folder: Path) -> Home:
    """Make a registry with one version, and a folder of outputs, to be copied for each round."""
    at = home(kind, folder)
    with at.opened() as registry:
        registry.register("m", FILES, metrics={"auc": 0.5}, tags=["first"])
    outputs = folder / "outputs"
    outputs.mkdir()
    (outputs / "one.bin").write_bytes(b"one" * 100)
    (outputs / "log.txt").write_bytes(b"not annotated")
    annotation = {"valohai.model-versions": [{"model_uri": "model://one/", "model_release_note": "weekly"}]}
    (outputs / "valohai.metadata.jsonl").write_text(json.dumps({"file": "one.bin", "metadata": annotation}))
    (folder / "inputs").mkdir()
    return at


class Rounds:
    """Copies of one place, each as fresh as the first."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._kind = kind
        self._live = folder / "live"
        self._kept = folder / "kept"
        self.home = _template(kind, self._live)
        with self.home.opened() as registry:
            self.before = held(registry)
        copy_tree(self._live, self._kept)

    def fresh(self) -> Home:
        """Return the place as it was at the beginning."""
        copy_tree(self._kept, self._live)
        return self.home


def _check(at: Home, verb: Verb, before: set[Any], acknowledged: list[Any], what: object) -> None:
    """Check the place after a failure, and that the same call again brings what was asked for, once."""
    __tracebackhide__ = True
    try:
        with at.opened() as registry:
            check_sound(registry, [*before - _changed(registry), *acknowledged])
            happened = verb.done(registry, at)
            assert happened or not acknowledged, "acknowledged, and not there"
            verb.do(registry, at)
            assert verb.done(registry, at), "the retry did nothing"
            if not isinstance(
                what, FaultAt
            ):  # a process that died can clean up only by its successor's hands
                other = registry.register("other", {"next": b"the next write cleans up"})
                registry.resolve(other, at.folder.parent / "other")
        if not _kept_from_cleaning(what):
            assert at.leftovers() == []
            beside = sorted(os.listdir(at.folder.parent / "inputs"))
            assert beside in ([], ["model"]), f"left beside the target: {beside}"
    except (AssertionError, ModelHubError, sqlite3.Error, OSError) as error:
        raise AssertionError(f"after {what}: {type(error).__name__}: {error}") from error


def _kept_from_cleaning(what: object) -> bool:
    """Whether the failed call was itself the removal of something; this process lives, so it is swept later."""
    return isinstance(what, FaultAt) and str(what.call).split(" ")[0] in ("unlink", "remove", "rmdir")


def _changed(registry: Registry) -> set[Any]:
    """Return the facts that the verbs may change: those of the first version when it was still pending."""
    from attrs import evolve

    return {facts(evolve(registry.version("m/v1"), status="pending"))}


def _acknowledged(result: Any) -> list[Any]:
    if isinstance(result, hub.ModelVersion):
        return [facts(result)]
    if isinstance(result, hub.IngestReport):
        return [facts(version) for version in result.versions]
    return []


def sites(verb: str) -> faults.Sites | None:
    """Return where faults are to hit: in a resolve line by line, since `tests/blobs` tells their callers apart."""
    return faults.sites(1 if verb == "resolve" else 2)


@pytest.mark.slow
@pytest.mark.timeout(170)
@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, SHORT], ids=["ENOSPC", "EIO", "short"])
@pytest.mark.parametrize("name", list(VERBS))
@pytest.mark.parametrize("kind", LOCAL)
def test_any_call_may_fail(kind: str, name: str, fault: faults.Fault, tmp_path: Path) -> None:
    """Whichever I/O call fails, the error is ours, and nothing is lost, doubled or left half-made."""
    rounds, verb = Rounds(kind, tmp_path), VERBS[name]
    count = 0
    for one in every_call(fault, seen=sites(name)):
        at = rounds.fresh()
        acknowledged: list[Any] = []
        with at.opened() as registry:
            try:
                with one:
                    acknowledged = _acknowledged(verb.do(registry, at))
            except ModelHubError:
                pass
            except BaseException as error:
                raise AssertionError(f"{one} let {error!r} through") from error
        _check(at, verb, rounds.before, acknowledged, one)
        count += 1
    assert count > 1 or (fault == SHORT and name == "approve"), "the faults met nothing"


@pytest.mark.slow
@pytest.mark.timeout(170)
@pytest.mark.parametrize("name", list(VERBS))
@pytest.mark.parametrize("kind", LOCAL)
def test_it_may_die_at_any_call(kind: str, name: str, tmp_path: Path) -> None:
    """SIGKILL at any I/O call, a write torn in the middle: the next process goes on as if nothing had been."""
    rounds, verb = Rounds(kind, tmp_path), VERBS[name]
    count, seen = 0, sites(name)
    for n in itertools.count(1):
        at = rounds.fresh()

        def operation(ack: faults.Ack, at: Home = at) -> None:
            with at.opened() as registry:
                ack(_acknowledged(verb.do(registry, at)))

        outcome = in_child(operation, n, KILL, under=[tmp_path], seen=seen)
        acknowledged = [one for some in outcome.acked for one in some]
        assert outcome.state != "raised", outcome.value
        _check(at, verb, rounds.before, acknowledged, f"death at call {n}")
        if outcome.state == "finished":
            break
        count += 1
        assert count < 1000
    assert count > 5, "the deaths met nothing"


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_a_registry_in_memory_with_failing_blobs(fault: int, tmp_path: Path) -> None:
    """With the journal in memory and the bytes on a disk that fails, a registration happens whole or not at all."""
    count = 0
    for one in every_call(fault, seen=faults.sites()):
        with hub.open("memory://", user="tester", cache_dir=tmp_path / "cache") as registry:
            with one, contextlib.suppress(ModelHubError):
                registry.register("m", FILES, idempotency_key="once")
            assert registry.verify().ok
            registry.register("m", FILES, idempotency_key="once")
            assert [version.number for version in registry.versions("m")] == [1]
            with contextlib.suppress(ModelHubError):
                registry.resolve("m/v1", tmp_path / f"target-{count}")
            assert files_in(tmp_path / f"target-{count}") in ([], sorted(FILES))
        count += 1
    assert count > 5


@pytest.mark.parametrize("kind", LOCAL)
def test_a_disk_that_stays_full(kind: str, tmp_path: Path) -> None:
    """On a full disk every verb says so, what was there can be read, and with room again all goes on."""
    rounds = Rounds(kind, tmp_path)
    at = rounds.fresh()
    with at.opened() as registry:
        for verb in VERBS.values():
            grows = ["write", "sqlite.write", "mkdir", "link", "copy_file_range", "sendfile", "fsync"]
            with FaultAt(1, errno.ENOSPC, sticky=True, under=[tmp_path], calls=grows) as full:
                with pytest.raises(hub.StoreUnavailable):
                    verb.do(registry, at)
            assert full.fired
            assert (
                registry.version("m/v1").number == 1
            )  # the fault also meets opens, which a full disk allows
        check_sound(registry, rounds.before)
        for verb in VERBS.values():
            verb.do(registry, at)
            assert verb.done(registry, at)
    assert at.leftovers() == []


@pytest.mark.parametrize("kind", LOCAL)
def test_making_a_registry_may_die_at_any_call(kind: str, tmp_path: Path) -> None:
    """Killed anywhere in the first use of a place, the next process makes or finds one sound registry there."""
    seen = faults.sites()
    for n in itertools.count(1):
        at = home(kind, tmp_path / str(n))

        def operation(ack: faults.Ack, at: Home = at) -> None:
            with hub.open(
                at.url, cache_dir=at.cache, user="tester"
            ) as registry:  # not create=True: as users do
                ack(registry.verify().head)

        outcome = in_child(operation, n, KILL, under=[tmp_path], seen=seen)
        with hub.open(at.url, cache_dir=at.cache, user="tester") as registry:
            verification = registry.verify()
            assert verification.ok, verification.problems
            assert verification.entries == 1
            assert outcome.acked in ([], [verification.head])
            registry.register("m", {"a": b"bytes"})
        assert at.leftovers() == [], f"after death at call {n}"
        disk.remove_tree(os.fspath(tmp_path / str(n)))
        if outcome.state == "finished":
            break
    assert n > 5


# --- stores that are not on this disk: die at the n-th statement, or request ------------------------------


def _dying(moment: str, n: int, owner: Any, method: str) -> None:
    """Make this process die at the *n*-th call of a driver's method: before it, or after it was carried out."""
    real = getattr(owner, method)
    count = 0

    def die() -> None:
        nonlocal count
        count += 1
        if count == n:
            os.kill(os.getpid(), signal.SIGKILL)

    if inspect.iscoroutinefunction(real):

        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            if moment == "before":
                die()
            result = await real(*args, **kwargs)
            if moment == "after":
                die()
            return result
    else:

        def wrapped(*args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]
            if moment == "before":
                die()
            result = real(*args, **kwargs)
            if moment == "after":
                die()
            return result

    setattr(owner, method, wrapped)


def _driver(kind: str) -> tuple[Any, str]:
    if kind == "postgres":
        psycopg = pytest.importorskip("psycopg")
        return psycopg.Cursor, "execute"  # Connection.execute goes through it too
    s3fs = pytest.importorskip("s3fs")
    return s3fs.S3FileSystem, "_call_s3"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", ["postgres", "s3"])
def test_it_may_die_at_any_statement_or_request(
    kind: str, moment: str, make_home: Callable[[str], Home]
) -> None:
    """SIGKILL before or after any statement (PostgreSQL) or request (S3): no half of anything, and no double."""
    at = make_home(kind)
    owner, method = _driver(kind)
    with at.opened() as watcher:
        watcher.register("m", FILES, metrics={"auc": 0.5})
        number = 1
        for verb in ("register", "approve"):
            for n in faults.some():

                def operation(ack: faults.Ack, n: int = n, number: int = number, verb: str = verb) -> None:
                    with at.opened() as registry:
                        _dying(moment, n, owner, method)
                        if verb == "register":
                            files, key = {"w": str(number).encode()}, f"key-{number}"
                            version = registry.register("m", files, idempotency_key=key)
                        else:
                            version = registry.approve("m/v1", f"attempt {n}")
                        ack(version.seq)

                outcome = in_child(operation, 10**9)
                assert outcome.state != "raised", outcome.value
                if verb == "register":
                    assert watcher.model("m").last_number in (number, number + 1)
                    files, key = {"w": str(number).encode()}, f"key-{number}"
                    again = watcher.register("m", files, idempotency_key=key)
                    number += 1
                    assert again.number == number
                    assert outcome.acked in ([], [again.seq])
                else:
                    assert watcher.version("m/v1").status == "approved" or not outcome.acked
                    watcher.reopen("m/v1")
                if outcome.state == "finished":
                    break
            assert n > 3
        check_sound(watcher)
        assert [v.number for v in watcher.versions("m", limit=1000)] == list(range(number, 0, -1))
    assert at.leftovers() == []
