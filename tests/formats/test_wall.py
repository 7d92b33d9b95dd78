"""The wall: nothing that was stored becomes a value if it could lead outside of a folder or break a database."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain import names, stored
from modelhub_sdk.domain.entities import Datum, File, ModelVersion
from modelhub_sdk.errors import InvalidDocument, InvalidName, JournalTooNew
from modelhub_sdk.formats import codec
from modelhub_sdk.index import fold, schema
from modelhub_sdk.index.sql import Sql
from modelhub_sdk.ports import Record
from modelhub_sdk.stores.connections import sqlite_connect
from modelhub_sdk.testing import strategies

GOLDEN = max((Path(__file__).parent.parent / "golden").glob("format-*.jsonl"))
A = "sha256:" + "a" * 64

DEEP: Any = "x"
for _ in range(400):
    DEEP = [DEEP]

PATHS = [
    "",
    ".",
    "..",
    "/",
    "/etc/passwd",
    "../evil",
    "../../../evil",
    "ok/../../evil",
    "ok/..",
    "ok/.",
    "./ok",
    "ok//evil",
    "ok/",
    "..\\evil",
    "ok\\evil",
    "a\0b",
    "\0",
    "\ud800",
    "ok/\udfff",
    "x" * 5_000,
]
NO_TEXT = [None, True, 7, 1.5, ["a"], {"a": 1}]
SIZES = [-1, 2**63, 10**19, 10**400, True, 1.0, "1", None, [1]]
DIGESTS = [
    "",
    "a" * 64,
    "sha256:" + "A" * 64,
    A[:-1],
    A + "a",
    A + "\n",
    "md5:" + "a" * 64,
    "sha256:../../evil",
]


@pytest.mark.parametrize("path", [*PATHS, *NO_TEXT], ids=lambda one: repr(one)[:20])
def test_a_stored_path_is_clean_or_refused(path: Any) -> None:
    """No spelling that leaves a folder is a path, alone or between others; nor is what is no text."""
    assert not stored.is_path(path)
    for paths in ([path], ["ok", path], [path, "ok"], ["a", path, "b"]):
        with pytest.raises(InvalidDocument):
            stored.check_paths(paths)
        with pytest.raises(InvalidDocument):
            stored.files(paths, [1] * len(paths), [A] * len(paths))


@pytest.mark.parametrize("size", SIZES, ids=lambda one: repr(one)[:20])
def test_a_stored_size_is_a_whole_number_of_63_bits(size: Any) -> None:
    """A size is an int from 0 to 2**63-1, and no bool, alone or between others."""
    assert not stored.is_size(size)
    for sizes in ([size], [1, size], [size, 1]):
        with pytest.raises(InvalidDocument):
            stored.files([f"f{n}" for n in range(len(sizes))], sizes, [A] * len(sizes))


@pytest.mark.parametrize("digest", [*DIGESTS, *NO_TEXT], ids=lambda one: repr(one)[:20])
def test_a_stored_digest_has_one_spelling(digest: Any) -> None:
    """A digest is sha256: and 64 lower-case hex digits, alone or between others."""
    assert not stored.is_digest(digest)
    for digests in ([digest], [A, digest], [digest, A]):
        with pytest.raises(InvalidDocument):
            stored.files([f"f{n}" for n in range(len(digests))], [1] * len(digests), digests)


@given(strategies.paths() | st.text(max_size=40))
def test_the_wall_takes_every_path_that_may_be_registered(path: str) -> None:
    """What `check_path` accepts is accepted; what the wall refuses, `check_path` has always refused."""
    try:
        names.check_path(path)
    except InvalidName:
        return
    assert stored.is_path(path)
    assert stored.files([path, "other"], [0, stored.MAX_INT], [A, A])[0] == File(path, 0, A)


@given(st.lists(st.text(alphabet="ab./\\\0\ud800é", max_size=6), max_size=4))
def test_many_paths_are_judged_as_one_by_one(paths: list[str]) -> None:
    """The quick look at many paths at once says what a look at each of them says."""
    try:
        stored.check_paths(paths)
    except InvalidDocument:
        assert not all(map(stored.is_path, paths))
    else:
        assert all(map(stored.is_path, paths))
        assert all(segment not in ("", ".", "..") for path in paths for segment in path.split("/"))


@given(st.lists(st.sampled_from([A, "sha256:" + "0f" * 32, *DIGESTS]), max_size=4))
def test_many_digests_are_judged_as_one_by_one(digests: list[str]) -> None:
    """The quick look at many digests at once says what a look at each of them says."""
    paths, sizes = [f"f{n}" for n in range(len(digests))], [1] * len(digests)
    if all(map(stored.is_digest, digests)):
        assert len(stored.files(paths, sizes, digests)) == len(digests)
    else:
        with pytest.raises(InvalidDocument):
            stored.files(paths, sizes, digests)


@pytest.mark.parametrize(
    "path", ["con", "a:b?.bin", "dot.", "sub/.git/x", "%2e%2e/x", "A", "a\u200bb", "...", "..a/b..", "-", " "]
)
def test_taste_is_no_wall(path: str) -> None:
    """Names that only taste refuses are read: no release may make an old journal unreadable."""
    assert stored.is_path(path)


# --- entries of a journal ---------------------------------------------------------------------------------


def _records() -> list[Record]:
    rows = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    return [
        Record(seq, scope, chain, body.encode(), private.encode())
        for seq, scope, chain, body, private in rows
    ]


RECORDS = _records()


def _with(record: Record, place: tuple[Any, ...], value: Any) -> Record:
    """Return *record* with *value* at a place of its body."""
    body = copy.deepcopy(json.loads(record.body))
    at = body
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return Record(record.seq, record.scope, record.chain, text.encode(), record.private)


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*at, key))


def _fields(*wanted: str) -> list[Any]:
    """Return (record, place) of the first place in the golden journal of each kind of event and field."""
    found: dict[Any, Any] = {}
    for record in RECORDS:
        body = json.loads(record.body)
        for place in _places(body):
            if place[0] != "events" or len(place) < 3:
                continue
            kind = body["events"][place[1]]["kind"]
            name = ".".join("0" if isinstance(part, int) else part for part in place[2:])
            if f"{kind} {name}" in wanted or f"* {name}" in wanted:
                found.setdefault((kind, name), (record, place))
    return [pytest.param(*value, id=" ".join(key)) for key, value in found.items()]


FILES = ("version.registered files.0", "version.evaluated files.0", "dataset_version.created files.0")
FILES += ("outputs.ingested outputs.0", "run.finished files.0", "version.registered external.0")


@pytest.mark.parametrize(
    ("record", "place"),
    _fields(
        *(f"{name}.path" for name in FILES),
        "version.attached name",
        "datums.stored datums.0.name",
        "version.purged paths.0",
    ),
)
def test_no_entry_with_an_evil_path_is_read(record: Record, place: tuple[Any, ...]) -> None:
    """Wherever an entry holds the path of a file, one that leaves a folder is refused, and the entry is named."""
    for path in [*PATHS, *NO_TEXT]:
        with pytest.raises(InvalidDocument, match=f"Entry {record.seq} "):
            codec.decode(_with(record, place, path))


@pytest.mark.parametrize(
    ("record", "place"), _fields("* size", *(f"{name}.size" for name in FILES), "datums.stored datums.0.size")
)
def test_no_entry_with_an_evil_size_is_read(record: Record, place: tuple[Any, ...]) -> None:
    """Wherever an entry holds a size, one that no database keeps is refused, and the entry is named."""
    for size in SIZES:
        with pytest.raises(InvalidDocument, match=f"Entry {record.seq} "):
            codec.decode(_with(record, place, size))


@pytest.mark.parametrize(
    ("record", "place"),
    _fields(
        "* manifest",
        "* digest",
        "* digests.0",
        *(f"{name}.digest" for name in FILES),
        "datums.stored datums.0.digest",
    ),
)
def test_no_entry_with_an_evil_digest_is_read(record: Record, place: tuple[Any, ...]) -> None:
    """Wherever an entry holds a digest, anything else is refused, and the entry is named."""
    for digest in [*DIGESTS, *NO_TEXT]:
        with pytest.raises(InvalidDocument, match=f"Entry {record.seq} "):
            codec.decode(_with(record, place, digest))


@pytest.mark.parametrize(
    ("record", "place"),
    _fields(
        "* alias",
        "* dataset",
        "* datum",
        "registry.created id",
        "datums.stored datums.0.id",
        "dataset_version.created version",
        "version.registered model",
        "version.approved model",
        "run.started run_id",
    ),
)
def test_no_entry_with_an_evil_name_is_read(record: Record, place: tuple[Any, ...]) -> None:
    """A name that may become part of a path somewhere is one clean segment, or the entry is named."""
    for name in [*PATHS, *NO_TEXT, "a/b"]:
        with pytest.raises(InvalidDocument, match=f"Entry {record.seq} "):
            codec.decode(_with(record, place, name))


EVIL: list[Any] = [10**19, -1, True, None, "../../evil", "a\0b", "\ud800", [], {}, DEEP, 1.5]
THOROUGH = bool(os.environ.get("THOROUGH_TESTS"))


def test_whatever_stands_in_an_entry_is_refused_or_folds() -> None:
    """Any value at any place of any entry: it is refused by name, or read and folded. No other error leaves."""
    conn = sqlite_connect(":memory:")
    for statement in schema.ddl("sqlite"):
        conn.execute(statement)
    tried = 0
    for record in RECORDS:
        for n, place in enumerate(_places(json.loads(record.body))):
            for k, value in enumerate([*EVIL, 10**400, 2**31, "", "x" * 5_000] if THOROUGH else EVIL):
                if not THOROUGH and (n + k) % 11:
                    continue
                tried += 1
                try:
                    entry = codec.decode(_with(record, place, value))
                except JournalTooNew:
                    continue
                except InvalidDocument as error:
                    assert f"Entry {record.seq} " in str(error)
                    assert len(str(error)) < 600
                    continue
                conn.execute("BEGIN")
                fold.apply(Sql(conn, "sqlite"), [entry])
                conn.execute("ROLLBACK")
    assert tried > 1_000


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"",
        b"null",
        b"[]",
        b'{"min_reader":1,"seq":true}',
        b'{"min_reader":' + b"9" * 5_000 + b"}",
        b" " * (codec.MAX_BODY + 1),
    ],
    ids=lambda body: repr(body[:16]),
)
def test_bytes_that_are_no_entry_are_named(body: bytes) -> None:
    """Nested too deeply, not UTF-8, empty, too long a number, too long altogether: the entry is named."""
    with pytest.raises(InvalidDocument, match="Entry 7 "):
        codec.decode(Record(7, "registry", codec.GENESIS, body, b"{}"))


@pytest.mark.parametrize(
    "private", [b"[" * 100_000, b"[]", b'{"a":5}', b'{"a":["",5]}', b'{"a":["","\\ud800"]}', b"\xff"]
)
def test_a_strange_private_part_names_its_entry(private: bytes) -> None:
    """What stands beside an entry, and is no text, is an error that names the entry."""
    record = RECORDS[0]
    with pytest.raises(InvalidDocument, match="Entry 1 "):
        codec.decode(Record(record.seq, record.scope, record.chain, record.body, private))


def test_a_version_has_each_path_once() -> None:
    """Two files of one path in one version are refused: no index and no folder can hold both."""
    record, place = next(iter(_fields("version.registered files.0.path"))).values
    files = json.loads(record.body)["events"][place[1]]["files"]
    with pytest.raises(InvalidDocument, match=f"Entry {record.seq} "):
        codec.decode(_with(record, place[:3], [files[0], files[0]]))


def test_an_unknown_kind_is_kept_unless_it_is_nested_too_deeply() -> None:
    """An event of a later release is kept as it is; one that nothing can walk through is refused."""
    record = RECORDS[-1]
    kept = codec.decode(_with(record, ("events",), [{"kind": "later", "path": "../x", "deep": [[["x"]]]}]))
    assert isinstance(kept.events[0], ev.Unknown)
    assert kept.events[0].data["path"] == "../x"
    for event in ({"kind": "later", "deep": DEEP}, {"kind": "registry.thawed", "new": DEEP}):
        with pytest.raises(InvalidDocument, match="nested deeper"):
            codec.decode(_with(record, ("events",), [event]))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (ModelVersion, {"files": [{"path": "../x", "size": 1, "digest": A}]}),
        (ModelVersion, {"files": [{"path": "x", "size": 2**63, "digest": A}]}),
        (ModelVersion, {"digest": "sha256:../../x"}),
        (ModelVersion, {"model": "../x"}),
        (
            ModelVersion,
            {"attachments": [{"name": "../x", "size": 1, "digest": A, "at": "2026-08-01T10:00:00.000000Z"}]},
        ),
        (ModelVersion, {"tags": "text"}),
        (Datum, {"name": "a/.."}),
        (Datum, {"digest": "sha256:x"}),
        (Datum, {"id": "a/b"}),
    ],
)
def test_what_a_cache_or_a_bundle_says_of_a_version_is_checked(kind: Any, change: dict[str, Any]) -> None:
    """The notes of a cache and the record of a bundle go through the same wall; damage is a ValueError."""
    at = "2026-08-01T10:00:00.000000Z"
    good = {
        ModelVersion: {
            "uri": "model://m/v1",
            "model": "m",
            "number": 1,
            "status": "pending",
            "files": [],
            "digest": A,
            "size": 1,
            "created_at": at,
        },
        Datum: {"id": "d1", "name": "a/b", "size": 1, "digest": A, "created_at": at},
    }[kind]
    assert codec.structure_version(good, kind).digest == A
    with pytest.raises(ValueError, match=r"."):
        codec.structure_version(good | change, kind)
