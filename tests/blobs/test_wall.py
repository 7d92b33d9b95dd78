"""The second wall: what places files refuses a path that leads outside, even if it got there unchecked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from modelhub_sdk.blobs import place, staging
from modelhub_sdk.blobs.cache import Cache
from modelhub_sdk.blobs.sources import from_bytes
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.domain.entities import File, ModelVersion
from modelhub_sdk.errors import InvalidDocument, InvalidName
from modelhub_sdk.filesystem import _Tree
from modelhub_sdk.resolver import Pinned
from tests.support.homes import files_in

EVIL = [
    "../evil",
    "../../../evil",
    "/evil",
    "ok/../../evil",
    "ok/..",
    ".",
    "",
    "a//evil",
    "evil/",
    "a\\evil",
    "a\0evil",
]
EVIL += ["\ud800evil", "x" * 5_000]
DATA = b"owned"
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def files(path: str) -> tuple[File, ...]:
    return (File("good", len(DATA), DIGEST), File(path, len(DATA), DIGEST))


def version(path: str) -> ModelVersion:
    return ModelVersion("model://m/v1", "m", 1, "approved", files(path), DIGEST, 10, created_at=MOMENT)


@pytest.mark.parametrize("path", EVIL, ids=lambda path: repr(path)[:16])
def test_nothing_that_places_files_takes_an_unclean_path(path: str, tmp_path: Path) -> None:
    """Plan, placement, staging, the cache's folders and the file system refuse it before they make anything."""
    store = BlobStore(tmp_path / "a" / "store", registry_id="r1")
    store.put_all([from_bytes(DATA, "good")])
    cache = Cache(tmp_path / "a" / "b" / "cache")
    source = cache.fetch(File("good", len(DATA), DIGEST), store)
    before, folders = files_in(tmp_path), sorted(tmp_path.rglob("*"))
    deep = tmp_path / "a" / "b" / "c"
    calls: list[Callable[[], Any]] = [
        lambda: place.plan(files(path), {}),
        lambda: place.into(deep / "target", files(path), lambda file: source, records=cache.records),
        lambda: place.into(deep / "target", files(path), lambda file: source, overwrite=True),
        lambda: staging.stage(str(tmp_path / "a" / "staged"), files(path), lambda file: source, how="copy"),
        lambda: cache.folder(files(path), store),
        lambda: cache.folder(files(path), store, digest=DIGEST),
        lambda: cache.cached_folder(files(path), digest=DIGEST),
        lambda: _Tree.of(Pinned(version(path), files(path), MOMENT)),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(InvalidDocument):
            call()
        left = set(map(str, tmp_path.rglob("*"))) - {*map(str, folders), str(cache.records)}
        assert files_in(tmp_path) == before, number
        assert not left, number


@pytest.mark.parametrize(
    "digest", ["sha256:../../../evil", "sha256:", "", "../evil", "sha256:" + "A" * 64, "sha256:/evil"]
)
def test_the_cache_makes_no_folder_and_no_blob_of_what_is_no_digest(digest: str, tmp_path: Path) -> None:
    """A folder of the cache is named by a digest, and so are its blobs: anything else is refused."""
    store = BlobStore(tmp_path / "a" / "store", registry_id="r1")
    store.put_all([from_bytes(DATA, "good")])
    cache = Cache(tmp_path / "a" / "b" / "cache")
    good = (File("good", len(DATA), DIGEST),)
    before = files_in(tmp_path)
    for call in (
        lambda: cache.folder(good, store, digest=digest),
        lambda: cache.cached_folder(good, digest=digest),
        lambda: cache.fetch(File("good", len(DATA), digest), store),
        lambda: cache.folder((File("good", len(DATA), digest),), store, digest=DIGEST),
    ):
        with pytest.raises((InvalidDocument, InvalidName)):
            call()
        assert files_in(tmp_path) == before


def test_a_record_in_the_target_is_never_a_way_out(tmp_path: Path) -> None:
    """A record of what was placed, forged by who can write into the target, removes and writes nothing outside."""
    store = BlobStore(tmp_path / "store", registry_id="r1")
    cache = Cache(tmp_path / "cache")
    (file,) = store.put_all([from_bytes(DATA, "good")])
    source = cache.fetch(file, store)
    target = tmp_path / "x" / "target"
    target.mkdir(parents=True)
    victim = tmp_path / "x" / "victim"
    victim.write_bytes(DATA)
    info = victim.stat()
    facts = [info.st_size, info.st_mtime_ns, info.st_ino, DIGEST]
    names = ["../victim", str(victim), "..", ""]
    for odd in (facts, [1e999, 1, 1, "d"], ["x"], None):
        body = {
            "format": 1,
            "whole": True,
            "target": None,
            "files": {name: [odd] for name in names},
            "sources": {},
        }
        (target / place.RECORD).write_text(json.dumps(body))
        place.into(target, [file], lambda _: source, records=cache.records)
        assert victim.read_bytes() == DATA
        assert (target / "good").read_bytes() == DATA
