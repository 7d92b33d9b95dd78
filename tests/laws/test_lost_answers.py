"""Answers that are lost, late or refused: what was asked for happens once, or not at all and says so."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk.core import Core
from modelhub_sdk.ports import Record
from modelhub_sdk.stores import files
from modelhub_sdk.stores.files import FileStore
from modelhub_sdk.stores.sql import SqliteStore, _SharedSession
from tests.support.pgproxy import Moment, PostgresProxy
from tests.support.s3 import Bucket
from tests.support.s3proxy import Action, S3Proxy, puts

FAULTS: list[Action | int] = ["drop answer", "drop request", 409, 412, 500, 503]


@pytest.fixture
def on_s3(s3_bucket: Bucket, s3_proxy: S3Proxy, tmp_path: Path):
    """A registry on S3 behind the proxy, with one version."""
    with hub.open(f"{s3_bucket.url}/hub", create=True, cache_dir=tmp_path / "cache", user="tester") as reg:
        reg.register("m", {"a": b"first"})
        yield reg


def _is_whole(reg: hub.Registry, numbers: list[int]) -> None:
    assert sorted(version.number for version in reg.versions("m", limit=1000)) == numbers
    verification = reg.verify()
    assert verification.ok, verification.problems


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_journal_write_on_s3_counts_once(fault: Any, on_s3: hub.Registry, s3_proxy: S3Proxy) -> None:
    """Whatever becomes of the answer to the PUT of an entry, each registration is there once."""
    for number in (2, 3):
        with s3_proxy.fault(fault, when=puts("journal")) as armed:
            assert on_s3.register("m", {"a": b"first"}, metrics={"n": number}).number == number
        assert armed.fired
    assert on_s3.approve("m/v2", "good").status == "approved"
    with s3_proxy.fault(fault, when=puts("journal")):
        assert on_s3.reject("m/v3", "bad").status == "rejected"
    _is_whole(on_s3, [1, 2, 3])
    assert on_s3.audit(action="version.rejected").total == 1


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_blob_write_on_s3_counts_once(
    fault: Any, on_s3: hub.Registry, s3_proxy: S3Proxy, s3_bucket: Bucket
) -> None:
    """Whatever becomes of the answer to the PUT of a blob, the version has its bytes, stored once."""
    with s3_proxy.fault(fault, when=puts("/blobs/")) as armed:
        version = on_s3.register("m", {"a": b"second" * 1000})
    assert armed.fired
    assert Path(on_s3.resolve(f"{version.uri}/a")).read_bytes() == b"second" * 1000
    assert len([key for key in s3_bucket.keys() if "/sha256/" in key]) == 2  # noqa: SIM118  # a bucket is no dict
    _is_whole(on_s3, [1, 2])


@pytest.mark.parametrize("times", [2, 3])
def test_several_lost_answers_in_a_row(times: int, on_s3: hub.Registry, s3_proxy: S3Proxy) -> None:
    """A store that loses answer after answer still gives each registration once."""
    with s3_proxy.fault("drop answer", when=puts("journal"), times=times):
        assert on_s3.register("m", {"a": b"first"}).number == 2
    assert on_s3.register("m", {"a": b"first"}).number == 3
    _is_whole(on_s3, [1, 2, 3])


@pytest.mark.parametrize("status", [503, 429])
def test_a_busy_store_is_waited_for(
    status: int, on_s3: hub.Registry, s3_proxy: S3Proxy, tmp_path: Path
) -> None:
    """Several answers in a row that say "busy", to reads and to writes, are waited out."""
    with s3_proxy.fault(status, times=4) as reads:
        assert on_s3.latest("m") is None
    with s3_proxy.fault(status, when=puts("journal"), times=4) as writes:
        assert on_s3.register("m", {"a": b"first"}).number == 2
    assert len(reads.hit) == len(writes.hit) == 4
    _is_whole(on_s3, [1, 2])


def test_a_store_that_stays_busy_says_so(
    on_s3: hub.Registry, s3_proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patience with a busy store ends, with an error of ours; nothing was made."""
    monkeypatch.setattr(files, "_BUSY_FOR", 0.5)
    with s3_proxy.fault(503, when=lambda request: "/journal/" in request.path, times=None):
        with pytest.raises(hub.StoreUnavailable):
            on_s3.register("m", {"a": b"first"})
    _is_whole(on_s3, [1])


def test_a_key_makes_an_unknown_outcome_safe(on_s3: hub.Registry, s3_proxy: S3Proxy) -> None:
    """When the store falls silent, the error says that the outcome is unknown, and the same key goes on from it."""
    with s3_proxy.fault("drop request", when=lambda request: "/journal/" in request.path, times=10_000):
        with pytest.raises(hub.StoreUnavailable):
            on_s3.register("m", {"a": b"first"}, idempotency_key="k")
    first = on_s3.register("m", {"a": b"first"}, idempotency_key="k")
    assert on_s3.register("m", {"a": b"first"}, idempotency_key="k") == first
    _is_whole(on_s3, [1, 2])


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_connection_cut_at_commit_on_postgresql(
    moment: str, pg_proxy: PostgresProxy, tmp_path: Path
) -> None:
    """The connection is cut before or after the server heard COMMIT: each change is there once, and no error is raised."""
    place = {"artifacts": tmp_path / "artifacts", "cache_dir": tmp_path / "cache", "user": "tester"}
    with hub.open(pg_proxy.url, create=True, **place) as reg:
        reg.register("m", {"a": b"first"})
        for number in range(2, 8):
            with pg_proxy.cut(moment) as cut:
                assert reg.register("m", {"a": b"first"}, metrics={"n": number}).number == number
            assert cut.fired
        with pg_proxy.cut(moment) as cut:
            assert reg.approve("m/v3", "good").decided_by == "tester"
        assert cut.fired
        _is_whole(reg, [1, 2, 3, 4, 5, 6, 7])
        assert reg.audit(action="version.approved").total == 1


def test_idle_connections_that_the_server_closed(pg_proxy: PostgresProxy, tmp_path: Path) -> None:
    """A restart of the server between two calls goes unnoticed."""
    place = {"artifacts": tmp_path / "artifacts", "cache_dir": tmp_path / "cache", "user": "tester"}
    with hub.open(pg_proxy.url, create=True, **place) as reg:
        reg.register("m", {"a": b"first"})
        pg_proxy.cut_all()
        assert reg.latest("m") is None
        pg_proxy.cut_all()
        assert reg.register("m", {"a": b"first"}).number == 2


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_connection_cut_at_any_message_to_postgresql(
    moment: Moment, pg_proxy: PostgresProxy, tmp_path: Path
) -> None:
    """Cut at the first, second, third … message of a registration and an approval: never lost, never twice."""
    place = {"artifacts": tmp_path / "artifacts", "cache_dir": tmp_path / "cache", "user": "tester"}
    with hub.open(pg_proxy.url, create=True, **place) as reg:
        reg.register("m", {"a": b"first"})
        number = 1
        for arm in pg_proxy.every_message(moment):
            key, files = f"key-{number}", {"a": str(number).encode()}
            acknowledged = None
            with arm(), contextlib.suppress(hub.StoreUnavailable):
                acknowledged = reg.register("m", files, idempotency_key=key)
            again = reg.register("m", files, idempotency_key=key)
            assert again.number == number + 1
            assert acknowledged in (None, again)
            number += 1
        for arm in pg_proxy.every_message(moment):
            with arm(), contextlib.suppress(hub.StoreUnavailable):
                assert reg.approve("m/v1").status == "approved"
            assert reg.approve("m/v1").status == "approved"  # the same decision again adds nothing
            assert reg.version("m/v1").status == "approved"
            reg.reopen("m/v1")
        rounds = reg.audit("m/v1", action="version.reopened", limit=1000).total
        assert reg.audit("m/v1", action="version.approved", limit=1000).total == rounds > 3
        _is_whole(reg, list(range(1, number + 1)))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["drop answer", "drop request", 500], ids=str)
def test_a_fault_at_any_request_to_s3(
    fault: Any, on_s3: hub.Registry, s3_proxy: S3Proxy, tmp_path: Path
) -> None:
    """The first, second, third … request of an ingest or a resolve fails: it is made good, and nothing is there twice."""
    outputs = tmp_path / "outputs"
    number = 0
    for arm in s3_proxy.every_request(fault):
        number += 1
        outputs.mkdir(exist_ok=True)
        (outputs / "w.bin").write_bytes(str(number).encode())
        (outputs / "w.bin.metadata.json").write_text(
            '{"valohai.model-versions": [{"model_uri": "model://m/"}]}', "utf-8"
        )
        with arm():
            assert [version.number for version in on_s3.ingest(outputs).versions] == [number + 1]
    assert number > 3
    for turn, arm in enumerate(s3_proxy.every_request(fault)):
        with arm():
            found = on_s3.resolve(f"m/v{number}", tmp_path / f"inputs-{turn}")
        assert Path(found.path, "w.bin").read_bytes() == str(number - 1).encode()
        shutil.rmtree(tmp_path / "cache" / "v1")
    assert turn > 0
    _is_whole(on_s3, list(range(1, number + 2)))


@pytest.mark.parametrize("late", ["after a look", "after the retry began"])
@pytest.mark.parametrize("kind", ["sqlite", "folder"])
def test_a_write_that_lands_late_is_not_repeated(
    late: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that was not there when we looked, and appears before we try again, is found to be ours."""
    url = f"sqlite:///{tmp_path}/r.db" if kind == "sqlite" else str(tmp_path / "reg")
    owner, method = (_SharedSession, "commit") if kind == "sqlite" else (FileStore, "append")
    store_append, real, landed, attempt = (
        (SqliteStore if kind == "sqlite" else FileStore).append,
        getattr(owner, method),
        Core._landed,
        Core._attempt,
    )
    under_way: list[Record] = []
    arrived: list[Record] = []

    def lost(self: Any, record: Record, *rest: Any) -> None:
        if under_way or arrived:
            return real(self, record, *rest)
        under_way.append(record)
        raise hub.StoreUnavailable("the line was cut, and the entry is on its way")

    def arrives(core: Core) -> None:
        while under_way:
            arrived.append(under_way.pop())
            store_append(core.place.store, arrived[-1])

    def looks(self: Core, seq: int, entry_id: str) -> Record | None:
        found = landed(self, seq, entry_id)
        if late == "after a look":
            arrives(self)
        return found

    def tries(self: Core, *arguments: Any) -> Any:
        if late == "after the retry began":
            arrives(self)
        return attempt(self, *arguments)

    with hub.open(url, cache_dir=tmp_path / "cache", user="tester") as reg:
        reg.register("m", {"a": b"first"})
        with monkeypatch.context() as patched:
            patched.setattr(owner, method, lost)
            patched.setattr(Core, "_landed", looks)
            patched.setattr(Core, "_attempt", tries)
            assert reg.register("m", {"a": b"second"}).number == 2
        assert arrived, "nothing was late"
        _is_whole(reg, [1, 2])
        assert reg.audit(action="version.registered").total == 2
