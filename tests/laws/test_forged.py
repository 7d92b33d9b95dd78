"""Who may write to a registry's storage cannot make a reader write outside of the folder that it named.

Each place that stores paths, sizes, digests and names is forged as its owner could: in a journal the chain is made
to fit, and the manifest digest too. Then everything that reads is tried, and nothing but the target, the cache
and the registry's own place may have changed.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import os
import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.domain.entities import File
from modelhub_sdk.errors import InvalidDocument, ModelHubError, Offline
from modelhub_sdk.formats import codec, manifest
from modelhub_sdk.ports import Record
from modelhub_sdk.stores.sql import SqlStore
from tests.support.homes import ALL, LOCAL, Home, copy_tree, files_in, home

MakeHome = Callable[[str], Home]
Filled = Callable[[str], Home]
Edit = Callable[[dict[str, Any]], None]

THOROUGH = bool(os.environ.get("THOROUGH_TESTS"))
PATHS = [
    "../../../evil",
    "ABSOLUTE",
    "ok/../../../../evil",
    "..\\evil",
    "a\0evil",
    "",
    "evil/..",
    "\ud800evil",
]
SQL = ("sqlite", "postgres")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from the kind of a local store to a place with a registry; it is made once."""
    folder = tmp_path_factory.mktemp("template")

    @functools.cache
    def made(kind: str) -> Path:
        fill(home(kind, folder / kind), folder)
        return folder / kind / "place"

    return made


@pytest.fixture
def filled(make_home: MakeHome, template: Callable[[str], Path], here: Path) -> Callable[[str], Home]:
    """Return a function from the kind of a store to a registry that has a path of every kind."""

    def made(kind: str) -> Home:
        place = make_home(kind)
        if kind in LOCAL:
            copy_tree(template(kind), place.folder)
        else:
            fill(place, here)
        return place

    return made


def fill(place: Home, folder: Path) -> None:
    outputs = folder / "outputs"
    outputs.mkdir(exist_ok=True)
    (outputs / "plot.bin").write_bytes(b"plot")
    (outputs / "plot.bin.metadata.json").write_text('{"valohai.tags": ["kept"]}')
    with place.opened() as reg:
        reg.register("m", {"w.bin": b"weights", "sub/x.bin": b"x"})
        reg.attach("m/v1", "roc.png", b"roc")
        reg.create_dataset_version("dataset://d/v1", {"rows.csv": b"rows"})
        reg.ingest(outputs)


def journal(place: Home) -> list[Record]:
    with place.opened() as reg:
        return list(reg._core.place.store.read(0))


def relink(place: Home, records: list[Record], kind: str, edit: Edit) -> int:
    """Forge the journal: *edit* the event of this *kind*, and make the chain fit. Return the entry."""
    previous, forged, number = codec.GENESIS, [], 0
    for record in records:
        body = json.loads(record.body)
        for event in body["events"]:
            if event["kind"] == kind:
                edit(event)
                number = record.seq
        text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        previous = codec.chain(previous, record.seq, record.scope, text)
        forged.append(Record(record.seq, record.scope, previous, text, record.private))
    with place.opened() as reg:
        store: Any = reg._core.place.store
        for record in forged:
            if isinstance(store, SqlStore):
                execute(
                    store,
                    "UPDATE modelhub_journal SET chain = ?, body = ? WHERE seq = ?",
                    record.chain,
                    record.body,
                    record.seq,
                )
            else:
                header = codec.dumps({"chain": record.chain, "scope": record.scope, "seq": record.seq})
                name = f"journal/0000000/{record.seq:010d}.json"
                store.medium.replace(name, b"\n".join((header, record.body, record.private, b"")))
    assert number
    return number


def execute(store: SqlStore, statement: str, *values: Any) -> int:
    """Change a database as its owner can; return how many rows changed."""
    with store.connection() as conn:
        cursor = conn.cursor()
        cursor.execute(statement if store.dialect == "sqlite" else statement.replace("?", "%s"), values)
        return int(cursor.rowcount)


def at(event: dict[str, Any], where: str, value: Any) -> None:
    """Put *value* *where*, a dotted place; in a version the manifest digest is made to fit."""
    *folders, name = where.split(".")
    inner: Any = event
    for part in folders:
        inner = inner[int(part)] if part.isdigit() else inner[part]
    inner[name] = value
    if "manifest" in event and where != "manifest":
        with suppress(Exception):
            files = [File(row["path"], row["size"], row["digest"]) for row in event["files"]]
            event["manifest"] = manifest.digest(files)


def value_of(value: Any, folder: Path) -> Any:
    return str(folder / "absolute-evil") if value == "ABSOLUTE" else value


def tried(folder: Path, place: Home) -> list[ModelHubError]:
    """Read everything in every way with fresh caches; return the errors, all of them ours."""
    target = folder / "deep" / "er" / "than" / "target"
    ways: list[list[Callable[[Registry], object]]] = [
        [
            lambda reg: reg.resolve("m/v1"),
            lambda reg: reg.resolve("dataset://d/v1"),
            lambda reg: [reg.resolve(f"datum://{row}") for row in datums(reg)],
            lambda reg: reg.version("m/v1"),
            lambda reg: reg.versions("m"),
            lambda reg: reg.audit(),
            lambda reg: reg.lineage("m/v1"),
            lambda reg: reg.stats(),
            lambda reg: reg.dataset("d"),
            lambda reg: reg.export_bundle("m/v1", folder / "bundle.zip", overwrite=True),
        ],
        [
            lambda reg: reg.resolve("m/v1", into=target / "model"),
            lambda reg: reg.resolve("dataset://d/v1", into=target / "data"),
            lambda reg: [reg.resolve(f"datum://{row}", into=target / "datum") for row in datums(reg)],
        ],
    ]
    errors: list[ModelHubError] = []
    for calls in ways:
        cache = folder / "caches" / f"{next(_count)}"
        try:
            with pod(place, cache) as reg:
                for call in calls:
                    try:
                        call(reg)
                    except ModelHubError as error:
                        errors.append(error)
        except ModelHubError as error:
            errors.append(error)
    return errors


_count = itertools.count()


def pod(place: Home, cache: Path) -> Registry:
    """Open a registry as somebody does who has never seen it."""
    return hub.open(place.url, artifacts=place.artifacts, cache_dir=cache, user="pod", create=False)


def datums(reg: Registry) -> list[str]:
    with reg._core.view() as view:
        return [row[0] for row in view.sql.all("SELECT id FROM @datum")]


def outside(folder: Path) -> set[str]:
    """Return all files but those of the registry, of the caches and in the targets."""
    ours = ("place/", "cache/", "caches/", "copy", "deep/er/than/target/", "bundle.zip", "outputs/")
    return {name for name in files_in(folder) if not name.startswith(ours)}


CASES = [
    *(("version.registered", "files.0.path", path) for path in PATHS),
    *(("dataset_version.created", "files.0.path", path) for path in PATHS[:3]),
    *(("datums.stored", "datums.0.name", path) for path in ("../../../evil", "ABSOLUTE", "evil/..")),
    ("version.attached", "name", "../../../evil"),
    ("outputs.ingested", "outputs.0.path", "../../../evil"),
    ("dataset_version.created", "version", "../../../evil"),
    ("version.registered", "manifest", "sha256:../../../evil"),
    ("version.registered", "files.0.digest", "sha256:../../../evil"),
    ("version.registered", "files.0.size", 10**19),
    ("datums.stored", "datums.0.size", -1),
    ("version.registered", "number", 10**19),
    ("registry.created", "id", "../../../evil"),
]
FEW = {"folder": CASES[::3], "sqlite": CASES[:1], "postgres": CASES[:1], "s3": CASES[:1]}


@pytest.mark.parametrize("kind", ALL)
def test_a_forged_entry_leads_nowhere(kind: str, filled: Filled, here: Path) -> None:
    """One entry of the journal is forged, chain and manifest fit: verify names it, all that reads it refuses."""
    place = filled(kind)
    records = journal(place)
    before = outside(here)
    for event, where, value in CASES if THOROUGH else FEW[kind]:
        case = f"{kind} {event} {where} {value!r:.30}"
        number = relink(place, records, event, lambda one: at(one, where, value_of(value, here)))  # noqa: B023
        errors = tried(here, place)
        assert outside(here) == before, case
        if kind not in SQL:  # there the index stands as it was folded from the true journal
            assert any(f"Entry {number} " in str(error) for error in errors), case
        if where == "id":  # the first entry says which registry it is: it cannot even be opened
            continue
        with pod(place, here / "caches" / f"{next(_count)}") as reg:
            problems = reg.verify().problems
            assert any(f"Entry {number} " in problem for problem in problems), case
            with pytest.raises(InvalidDocument):
                reg.copy_to(f"sqlite:///{here}/copy{next(_count)}.db", artifacts=here / f"copy{next(_count)}")
            with pytest.raises(InvalidDocument):
                reg.rebuild_index()
        assert outside(here) == before, case


# --- the index of a database ------------------------------------------------------------------------------

DOCS = [
    *(("version.registered", "files.0.path", path) for path in PATHS[:5]),
    ("version.registered", "files.0.size", 10**19),
    ("version.registered", "files.0.digest", "sha256:../../../evil"),
    ("dataset_version.created", "files.0.path", "../../../evil"),
    ("datums.stored", "datums.0.name", "../../../evil"),
    ("version.attached", "name", "../../../evil"),
]


@pytest.mark.parametrize("kind", SQL)
def test_a_forged_event_in_the_index_leads_nowhere(kind: str, filled: Filled, here: Path) -> None:
    """Cells with an event are forged, the journal untouched: reads refuse, say what helps, and that helps."""
    place = filled(kind)
    before = outside(here)
    with place.opened() as reg:
        store = reg._core.place.store
        with reg._core.view() as view:
            docs = {row[0]: row[1] for row in view.sql.all("SELECT kind, doc FROM @event")}
        for event, where, value in DOCS if THOROUGH else DOCS[::5]:
            raw = json.loads(docs[event])
            at(raw, where, value_of(value, here))
            assert execute(store, "UPDATE mh1_event SET doc = ? WHERE kind = ?", json.dumps(raw), event) == 1
            errors = tried(here, place)
            assert outside(here) == before
            assert errors
            assert all("rebuild_index" in str(error) for error in errors), errors
            assert not reg.verify()
            reg.rebuild_index()
            assert not tried(here, place)
            assert reg.verify()


CELLS = [
    ("mh1_file", "path", "../../../evil"),
    ("mh1_file", "digest", "sha256:../../../evil"),
    ("mh1_version", "manifest", "sha256:../../../evil"),
    ("mh1_version", "size", -1),
    ("mh1_version", "run_id", "../../../evil"),
    ("mh1_datasetversion", "name", "../../../evil"),
    ("mh1_datum", "name", "../../../evil"),
    ("mh1_datum", "digest", "sha256:../../../evil"),
]
ODD = [  # what only SQLite keeps
    ("mh1_version", "size", "text"),
    ("mh1_version", "manifest", b"bytes"),
    ("mh1_version", "seq", "text"),
    ("mh1_event", "doc", b"\xff"),
    ("mh1_event", "doc", "[" * 100_000),
    ("mh1_event", "doc", "null"),
    ("mh1_entry", "at", 2**62),
    ("mh1_entry", "via", "[]"),
    ("mh1_fact", "value", b"bytes"),
    ("mh1_datum", "size", "text"),
    ("mh1_file", "size", "text"),
]


@pytest.mark.parametrize("kind", SQL)
def test_a_damaged_cell_of_the_index_is_a_typed_error(kind: str, filled: Filled, here: Path) -> None:
    """Paths, digests, sizes, bytes, nesting, times in cells of the index: refused by name or not relied on."""
    place = filled(kind)
    before = outside(here)
    with place.opened() as reg:
        store = reg._core.place.store
        for table, column, value in [*CELLS, *ODD] if kind == "sqlite" else CELLS if THOROUGH else CELLS[2:3]:
            only = " WHERE path = 'w.bin'" if column == "path" else ""  # a part of the key
            assert execute(store, f"UPDATE {table} SET {column} = ?{only}", value)
            errors = tried(here, place)
            assert outside(here) == before, (table, column)
            assert errors or table == "mh1_file", (
                table,
                column,
            )  # the file table only finds what holds a digest
            assert all("rebuild_index" in str(error) for error in errors) or column == "seq", errors
            assert not reg.verify()
            reg.rebuild_index()
        assert reg.verify()
        assert not tried(here, place)


TYPES = [("body", "text"), ("private", "text"), ("scope", b"bytes"), ("chain", b"bytes"), ("body", 5)]


@pytest.mark.parametrize(("column", "value"), TYPES if THOROUGH else TYPES[::3])
def test_a_row_of_the_journal_with_another_type_is_named(
    column: str, value: Any, filled: Filled, here: Path
) -> None:
    """SQLite keeps text where bytes belong: what reads the journal says which entry it is."""
    with filled("sqlite").opened() as reg:
        store = reg._core.place.store
        assert execute(store, f"UPDATE modelhub_journal SET {column} = ? WHERE seq = 3", value)
        assert any("Entry 3 " in problem for problem in reg.verify().problems)
        with pytest.raises(InvalidDocument, match="Entry 3 "):
            reg.copy_to(f"sqlite:///{here}/copy.db", artifacts=here / "copy.artifacts")
        with pytest.raises(InvalidDocument, match="Entry 3 "):
            reg.rebuild_index()


# --- documents, checkpoints, bundles, pins ----------------------------------------------------------------


def canonical(path: Any, size: Any) -> bytes:
    rows = [{"algorithm": "sha256", "digest": "a" * 64, "name": path, "size": size}]
    return json.dumps(rows, ensure_ascii=True, separators=(",", ":")).encode()


MANIFESTS = [*((path, 1) for path in PATHS), ("ok", -1), ("ok", 10**19), ("ok", "1"), (7, 1)]


def test_a_forged_manifest_leads_nowhere(filled: Filled, here: Path) -> None:
    """A version whose files stand in a document that was forged: it is refused, and verify names the version."""
    place = filled("folder")
    records = journal(place)
    before = outside(here)
    for path, size in MANIFESTS if THOROUGH else MANIFESTS[::4]:
        data = canonical(value_of(path, here), size)
        digest = "sha256:" + hashlib.sha256(data).hexdigest()

        def edit(event: dict[str, Any], digest: str = digest) -> None:
            del event["files"]
            event |= {"document": digest, "manifest": digest}

        with place.opened() as reg:
            assert reg._core.artifacts().put_bytes(data) == digest
        relink(place, records, "version.registered", edit)
        errors = tried(here, place)
        assert outside(here) == before, path
        assert len(errors) >= 3
        assert all("model://m/v1" in str(error) for error in errors), errors
        with pod(place, here / "caches" / f"{next(_count)}") as reg:
            assert any("model://m/v1" in problem for problem in reg.verify().problems)
            with pytest.raises(InvalidDocument):
                reg.copy_to(f"sqlite:///{here}/copy{next(_count)}.db", artifacts=here / f"copy{next(_count)}")


@pytest.mark.parametrize("path", PATHS[: 3 if THOROUGH else 1])
def test_a_forged_checkpoint_leads_nowhere(path: str, filled: Filled, here: Path) -> None:
    """A checkpoint that a fresh client begins with was forged: it is refused, and verify names it."""
    place = filled("folder")
    before = outside(here)
    with place.opened() as reg:
        assert reg.version("m/v1").number == 1
    (index,) = (place.cache / "index").glob("*.sqlite")
    with closing(sqlite3.connect(index)) as conn:
        (doc,) = conn.execute("SELECT doc FROM mh1_event WHERE kind = 'version.registered'").fetchone()
        raw = json.loads(doc)
        at(raw, "files.0.path", value_of(path, here))
        conn.execute("UPDATE mh1_event SET doc = ? WHERE kind = 'version.registered'", (json.dumps(raw),))
        conn.commit()
    with place.opened() as reg:
        parts: Any = reg._core
        parts.place.store.shelf.publish(1, parts.ledger._snapshot)
    assert list(place.folder.glob("registry/checkpoints/*"))
    errors = tried(here, place)
    assert outside(here) == before
    assert errors
    assert all("rebuild_index" in str(error) for error in errors)
    with pod(place, here / "caches" / f"{next(_count)}") as reg:
        assert any("checkpoint" in problem for problem in reg.verify().problems)


BUNDLES = [
    *(("files.0.path", path) for path in PATHS[:4]),
    ("files.0.size", 10**19),
    ("files.0.digest", "sha256:../../../evil"),
    ("attachments.0.name", "../../../evil"),
    ("attachments.0.size", -1),
    ("digest", "sha256:../../../evil"),
    ("model", "../../../evil"),
]


def test_a_forged_bundle_leads_nowhere(filled: Filled, here: Path) -> None:
    """A bundle whose record was forged, its members renamed to fit: it is refused, and nothing is stored."""
    with filled("sqlite").opened() as reg:
        reg.export_bundle("m/v1", here / "bundle.zip")
    with hub.open(f"sqlite:///{here}/copy.db", cache_dir=here / "cache", create=True) as other:
        before = outside(here)
        for where, value in BUNDLES:
            forge_bundle(here / "bundle.zip", here / "bundle.zip.forged", where, value_of(value, here))
            with pytest.raises(ModelHubError):
                other.import_bundle(here / "bundle.zip.forged")
            assert not other.models()
            assert outside(here) == before, where


def forge_bundle(path: Path, target: Path, where: str, value: Any) -> None:
    """Write a bundle with *value* in its record; digest and members are made to fit as far as they can."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        raw = json.loads(old.read("modelhub-bundle.json"))
        was = raw["version"]
        for part in where.split("."):
            was = was[int(part)] if part.isdigit() else was[part]
        at(raw["version"], where, value)
        if where != "digest":
            with suppress(Exception):
                raw["version"]["digest"] = manifest.digest([File(**row) for row in raw["version"]["files"]])
        for info in old.infolist():
            data = old.read(info)
            if info.filename == "modelhub-bundle.json":
                data = json.dumps(raw).encode()
            elif where.endswith(("path", "name")) and info.filename.endswith(f"/{was}"):
                info.filename = info.filename.removesuffix(was) + value
            new.writestr(info, data)


PINS = [*(("path", path) for path in PATHS), ("size", 10**19), ("digest", "sha256:../../evil")]


def test_a_forged_pin_leads_nowhere(filled: Filled, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cache says that a name meant was forged: offline it counts as never resolved."""
    place = filled("sqlite")
    with place.opened() as reg:
        uris = ["model://m/v1", "dataset://d/v1", *(f"datum://{one}" for one in datums(reg))]
        for uri in uris:
            reg.resolve(uri)
    pins = {pin: json.loads(pin.read_text()) for pin in (place.cache / "pins").rglob("*.json")}
    assert len(pins) >= 3
    before = outside(here)
    monkeypatch.setenv("MODELHUB_OFFLINE", "1")
    for name, value in [*PINS, ("nested", None)]:
        for pin, good in pins.items():
            raw = copy.deepcopy(good)
            for row in [raw["version"], *raw["version"].get("files", [])]:
                for key in {"path": ("path", "name")}.get(name, (name,)):
                    if key in row:
                        row[key] = value_of(value, here)
            pin.write_text("[" * 100_000 if name == "nested" else json.dumps(raw))
        with place.opened(create=False) as reg:
            for uri, into in itertools.product(uris, (None, here / "deep/er/than/target/x")):
                with pytest.raises(Offline):
                    reg.resolve(uri, into=into)
        assert outside(here) == before, name


@pytest.mark.parametrize("kind", LOCAL)
def test_what_taste_dislikes_in_an_old_journal_is_still_resolved(
    kind: str, filled: Filled, here: Path
) -> None:
    """A journal with names that no release takes today is read, resolved, verified and copied."""
    place = filled(kind)
    records = journal(place)
    names = ["what?.bin", "sub/con"]

    def edit(event: dict[str, Any]) -> None:
        for row, path in zip(event["files"], names, strict=True):
            row["path"] = path
        at(event, "files.0.path", names[0])

    relink(place, records, "version.registered", edit)
    if kind == "sqlite":
        with place.opened() as reg:
            reg.rebuild_index()
    with pod(place, here / "caches" / f"{next(_count)}") as reg:
        assert sorted(file.path for file in reg.version("m/v1").files) == sorted(names)
        assert sorted(files_in(Path(reg.resolve("m/v1")))) == sorted(names)
        assert sorted(reg.resolve("m/v1", into=here / "deep/er/than/target").files) == sorted(names)
        assert reg.verify().problems == ()
        reg.copy_to(f"sqlite:///{here}/copy.db", artifacts=here / "copy.artifacts")
