"""Private texts on every store: taking one away, changing, swapping or adding one shows, and damage stops nothing."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.domain.events import seal
from modelhub_sdk.formats import codec
from modelhub_sdk.verification import MAX_PROBLEMS
from tests.support.homes import ALL

Pairs = dict[str, Any]
APPROVED = 4
"""The entry of the approval in `written`."""


def written(reg: Registry) -> None:
    """Write some entries with texts of several kinds, a redaction among them."""
    reg.register("m", {"f": b"1"}, note="a note", fields={"who": "Jane"}, idempotency_key="k")
    reg.comment("m/v1", "looks good")
    reg.approve("m/v1", "because I say so")
    reg.redact("m/v1", "note", "a name in it")


def record(reg: Registry, seq: int) -> Any:
    return next(iter(reg._core.place.store.read(seq - 1, limit=1)))


def edited(reg: Registry, seq: int, change: Callable[[Pairs], Any]) -> bytes:
    """Put what *change* makes of an entry's private part in its place; return what was there."""
    before: bytes = record(reg, seq).private
    after = change(json.loads(before))
    reg._core.place.store.erase(seq, after if isinstance(after, bytes) else _spelled(after))
    return before


def _spelled(value: Any) -> bytes:
    """Return *value* as the registry would write it."""
    try:
        return codec.dumps(value)
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def swapped(pairs: Pairs) -> Pairs:
    one, other, *_ = pairs
    return pairs | {one: pairs[other], other: pairs[one]}


def of_all(salt: Any, text: Any) -> Callable[[Pairs], Pairs]:
    def change(pairs: Pairs) -> Pairs:
        return {
            digest: [salt if salt is not ... else old[0], text if text is not ... else old[1]]
            for digest, old in pairs.items()
        }

    return change


HARM: dict[str, Callable[[Pairs], Any]] = {
    "all gone": lambda pairs: {},
    "no bytes": lambda pairs: b"",
    "one gone": lambda pairs: dict(list(pairs.items())[1:]),
    "swapped": swapped,
    "changed": lambda pairs: {digest: [salt, text + "!"] for digest, (salt, text) in pairs.items()},
    "added": lambda pairs: pairs | {seal(b"0" * 16, "smuggled"): [(b"0" * 16).hex(), "smuggled"]},
    "twice": lambda pairs: b'{"":["","hidden"],' + json.dumps(pairs).encode()[1:].replace(b'{"":', b"{"),
    "respelled": lambda pairs: json.dumps(pairs).encode(),
    "not JSON": lambda pairs: b"{",
    "not UTF-8": lambda pairs: b'{"\xff": ["", ""]}',
    "a list": lambda pairs: list(pairs),
    "null": lambda pairs: None,
    "deep": lambda pairs: b"[" * 100_000,
    "salts that are not hex": of_all("zz", ...),
    "salts that are numbers": of_all(5, ...),
    "texts that are numbers": of_all(..., 5),
    "texts that are null": of_all(..., None),
    "half a surrogate pair": of_all(..., "\ud800"),
    "pairs of three": lambda pairs: {digest: [*pair, "x"] for digest, pair in pairs.items()},
    "no pairs": lambda pairs: dict.fromkeys(pairs, 7),
}


SOME = ("all gone", "swapped", "added", "not JSON")
"""What is tried on stores with a server."""


@pytest.mark.parametrize("kind", ["memory", *ALL])
def test_harm_to_private_texts_shows(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Whatever is done to the texts of an entry, `verify` names the entry, and also what is wrong with later ones."""
    if kind == "memory":
        opened = hub.open("memory://", user="ann@x.org")
    else:
        opened = request.getfixturevalue("make_home")(kind).open()
    with opened as reg:
        written(reg)
        assert reg.verify().ok
        for name in HARM if kind in ("memory", "sqlite", "folder") else SOME:
            change = HARM[name]
            before = edited(reg, APPROVED, change)
            problems = reg.verify().problems
            assert any(f"ntry {APPROVED}" in one for one in problems), (name, problems)
            reg._core.place.store.erase(APPROVED, before)
        edited(reg, 2, HARM["not JSON"])
        edited(reg, APPROVED, HARM["all gone"])
        problems = reg.verify().problems
        assert [any(f"Entry {seq}" in one for one in problems) for seq in (2, APPROVED)] == [True, True]
        assert not any("rebuild_index() makes" in one and "table" in one for one in problems)


def test_a_text_that_was_redacted_may_not_come_back(reg: Registry) -> None:
    """A redacted text is found again in its entry, and in the entry that redacts it, which names its digest."""
    reg.register("m", {"f": b"1"}, note="a secret")
    before = record(reg, 2).private
    reg.redact("m/v1", "note", "why")
    assert reg.verify().ok
    edited(reg, 3, lambda pairs: pairs | json.loads(before))
    assert "Entry 3" in reg.verify().problems[0]
    assert "added" in reg.verify().problems[0]


def test_texts_that_are_redacted_or_arrived_are_in_place(tmp_path: Path) -> None:
    """Registries with redactions, their copies, and versions that came in bundles verify."""
    with hub.open("memory://") as source, hub.open("memory://") as target:
        written(source)
        source.redact("m/v1", "all", "gdpr")
        bundle = source.export_bundle("m/v1", tmp_path / "b.zip")
        assert target.import_bundle(bundle).number == 1
        assert source.verify().ok
        assert target.verify().ok
        target.redact("m/v1", "all", "gdpr")
        assert target.verify().ok
        target.copy_to(tmp_path / "copy")
    with hub.open(tmp_path / "copy") as copy:
        assert copy.verify().ok


def test_many_problems_are_counted() -> None:
    """Damage everywhere is a hundred problems and a count, and the walk reaches the end."""
    with hub.open("memory://") as reg:
        reg.register("m", {"f": b"1"})
        for n in range(MAX_PROBLEMS + 20):
            reg.edit_version("m/v1", fields={"n": n})
        entries = reg.verify().entries
        for seq in range(3, entries + 1):
            edited(reg, seq, lambda pairs: {})
        found = reg.verify()
        assert len(found.problems) == MAX_PROBLEMS + 1
        assert found.problems[-1] == "There are 20 more problems."
        assert found.entries == entries


def test_a_journal_goes_on_after_a_damaged_entry(tmp_path: Path) -> None:
    """Links that are broken twice are two problems, each with its entry; what follows them is sound, and is said so."""
    with hub.open(f"sqlite:///{tmp_path}/r.db") as reg:
        written(reg)
        reg.comment("m/v1", "the last")
    with sqlite3.connect(tmp_path / "r.db") as conn:
        for seq in (3, 5):
            conn.execute("UPDATE modelhub_journal SET body = CAST(body || ' ' AS BLOB) WHERE seq = ?", (seq,))
    conn.close()
    with hub.open(f"sqlite:///{tmp_path}/r.db") as reg:
        found = reg.verify()
    assert [one.split(":")[0] for one in found.problems if "chain" in one] == [
        "Entry 3 was changed",
        "Entry 5 was changed",
    ]
    assert found.entries == 6


@pytest.mark.parametrize("column", ["scope", "chain", "body", "private"])
@pytest.mark.parametrize(
    "value", ["CAST({} AS TEXT)", "CAST({} AS BLOB)", "7", "2.5", "CAST(x'ff61' AS TEXT)"]
)
def test_a_value_of_another_type_in_a_row(tmp_path: Path, column: str, value: str) -> None:
    """A row with TEXT where bytes belong, or the like, is a problem of its entry, and a typed error for all who read it."""
    url = f"sqlite:///{tmp_path}/r.db"
    with hub.open(url) as reg:
        written(reg)
    with sqlite3.connect(tmp_path / "r.db") as conn:
        kind = conn.execute(f"SELECT typeof({column}) FROM modelhub_journal").fetchone()[0]
        conn.execute(f"UPDATE modelhub_journal SET {column} = {value.format(column)} WHERE seq = 3")
        changed = conn.execute(
            f"SELECT typeof({column}), hex({column}) FROM modelhub_journal WHERE seq = 3"
        ).fetchone()
    conn.close()
    if changed[0] == kind and "ff61" not in value:
        return  # SQLite gave it back its type, or it had it
    with hub.open(url) as reg:
        found = reg.verify()
        assert any("ntry 3" in one for one in found.problems), found.problems
        assert not any("no entry 3" in one for one in found.problems), found.problems
        assert found.entries == 5
        for read in (reg.rebuild_index, lambda: reg.copy_to(tmp_path / "copy")):
            with pytest.raises(hub.ModelHubError) as caught:
                read()
            assert "\xff" not in str(caught.value)


@pytest.mark.parametrize("instead", ["a folder", "a link", "a FIFO"])
def test_something_else_in_the_place_of_a_file(tmp_path: Path, instead: str) -> None:
    """A folder, a link or a FIFO where a blob should be, a folder or link where an entry should be, is named."""
    with hub.open(tmp_path / "reg", cache_dir=tmp_path / "c1") as reg:
        written(reg)
        blob = reg.version("m/v1").files[0].digest.removeprefix("sha256:")
        (path,) = (tmp_path / "reg" / "blobs").rglob(f"{blob[:2]}/{blob[2:]}")
        _replaced(path, instead)
        found = reg.verify()
        assert ["model://m/v1" in one for one in found.problems] == [True]
    if instead != "a FIFO":
        (path,) = (tmp_path / "reg" / "journal").rglob("*3.json")
        _replaced(path, instead)
        with hub.open(tmp_path / "reg", cache_dir=tmp_path / "c2") as reg:
            assert any("0000000003.json" in one for one in reg.verify().problems)


def _replaced(path: Path, instead: str) -> None:
    kept = path.rename(path.parent.parent / f"kept-{path.name}")
    if instead == "a folder":
        path.mkdir()
    elif instead == "a link":
        path.symlink_to(kept)
    else:
        os.mkfifo(path)


def test_an_edited_row_of_the_index_is_a_typed_error(tmp_path: Path) -> None:
    """What no fold wrote into the index raises one of our errors in reads, and `rebuild_index` mends it."""
    with hub.open(f"sqlite:///{tmp_path}/r.db") as reg:
        written(reg)
        with sqlite3.connect(tmp_path / "r.db") as conn:
            conn.execute("UPDATE mh1_event SET doc = '{' WHERE kind = 'version.registered'")
        conn.close()
        with pytest.raises(hub.InvalidDocument, match="rebuild_index"):
            reg.version("m/v1")
        with pytest.raises(hub.InvalidDocument, match="rebuild_index"):
            reg.edit_version("m/v1", note="x")
        assert "event" in reg.verify().problems[0]
        reg.rebuild_index()
        assert reg.version("m/v1").status == "approved"


def test_an_index_with_pages_out_of_order_is_found(tmp_path: Path) -> None:
    """What SQLite itself finds wrong is a problem, also where all rows of the tables are right."""
    with hub.open(f"sqlite:///{tmp_path}/r.db") as reg:
        written(reg)
    with sqlite3.connect(tmp_path / "r.db") as conn:
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute(
            "UPDATE sqlite_master SET sql = replace(sql, '(at)', '(id)') WHERE name = 'mh1_entry_at'"
        )
    conn.close()
    with hub.open(f"sqlite:///{tmp_path}/r.db") as reg:
        problems = reg.verify().problems
    assert any("mh1_entry_at" in one for one in problems), problems


def test_verify_of_a_store_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage is no damage: it is raised, for the journal and for the bytes."""

    def out(*_: object, **__: object) -> None:
        raise hub.StoreUnavailable("no answer")

    with hub.open(tmp_path / "reg", cache_dir=tmp_path / "c1") as reg:
        written(reg)
        for target, name in ((reg._core.place.store, "entries"), (reg._core.artifacts(), "verify")):
            with monkeypatch.context() as patch:
                patch.setattr(target, name, out, raising=False)
                with pytest.raises(hub.StoreUnavailable):
                    reg.verify()
    with pytest.raises(hub.NotAllowed):
        reg.verify()


def test_commitments_are_read_by_type() -> None:
    """Files' digests are no commitments, those in unknown kinds and fields are possible ones, and need no text."""
    from modelhub_sdk.formats.commitments import commitments

    marks = {
        name: f"{n:064x}"
        for n, name in enumerate(("actor", "host", "note", "who", "reason", "used", "new", "file"))
    }
    body = {
        "actor": marks["actor"],
        "via": {"sdk": "x", "host": marks["host"], "pod": f"{91:064x}"},
        "later": f"{92:064x}",
        "events": [
            {"kind": "version.registered", "model": "m", "number": 1, "manifest": "sha256:" + marks["file"],
             "texts": {"note": marks["note"], "title": None}, "fields": {"who": marks["who"]}, "future": {"x": [f"{93:064x}"]}},
            {"kind": "version.approved", "model": "m", "number": 1, "reason": marks["reason"]},
            {"kind": "text.redacted", "model": "m", "number": 1, "what": "note", "items": [[1, marks["file"]]]},
            {"kind": "uses.recorded", "uses": [{"id": "a" * 64, "actor": marks["used"], "pod": f"{94:064x}"}]},
            {"kind": "of.the.future", "secret": [{"deep": marks["new"]}]},
        ],
    }  # fmt: skip
    found = commitments(codec.dumps(body))
    assert found.certain == {marks[name] for name in ("actor", "host", "note", "who", "reason", "used")}
    assert found.possible == {marks["new"], *(f"{n:064x}" for n in range(91, 95))}
