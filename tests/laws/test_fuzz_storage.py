"""Edits of what is stored, at random: each is noticed, or it provably changes nothing.

A small registry with everything in it is written once for each store. Then, again and again: one edit (bytes of a
file, a cell or a row of a table, bytes of a database file), and a client that opens the place, reads all that it can,
and verifies. Whatever is wrong must be named by a typed error or by a problem, within seconds. If `verify` is silent,
then every answer and every byte must be what it was, and the edit one of these:

* ``same``: what was written means the same (a header with a blank more, a cell with the value that it had);
* ``note``: a note in the inbox that is in no entry yet. Nobody vouches for it, so it is excluded;
* ``derived``: packs, checkpoints, marks of erasures and of their end only save time. A damaged one is ignored and made anew;
* ``unread``: bytes of a SQLite file that hold nothing (all tables, their order and definitions are the same);
* ``marker``: who keeps artifacts where (``format.json``, ``<id>/copy``). It is read when a place is opened or copied to;
* ``remade``: the head row of an index is gone, so the next read makes the index anew;
* ``erased``: up to which entry erasures are known to be complete. It only saves, or repeats, the work of finishing them;
* ``lock``: the row of ``modelhub_lock`` on PostgreSQL. The primary key of the journal decides without it;
* ``end``: the last entry is gone as a whole. Without a copy of the head nobody can know of it.

By default some fifty edits, always the same ones; with ``$THOROUGH_TESTS`` some thousands, with their figures.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import sqlite3
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.errors import ModelHubError
from modelhub_sdk.ports import Note
from modelhub_sdk.stores import files, shelf
from modelhub_sdk.uses import drain

THOROUGH = bool(os.environ.get("THOROUGH_TESTS"))
SEED = int(os.environ.get("FUZZ_SEED", "20261201"))
SECONDS = 10.0
"""Until the damage must be named."""

EDITS = {"folder": 20, "cells": 15, "pages": 8, "postgres": 8}
"""Edits of one test; with ``$THOROUGH_TESTS`` a hundred."""

PARTS = {"folder": 9, "cells": 7, "pages": 4, "postgres": 4}
"""Tests of a hundred edits, each with a registry of its own."""


pytestmark = pytest.mark.timeout(900 if THOROUGH else 180)


def parts(store: str) -> pytest.MarkDecorator:
    """Run a test once, or in as many parts as make some thousand edits."""
    return pytest.mark.parametrize("part", range(PARTS[store] if THOROUGH else 1))


# --- a registry with everything in it -----------------------------------------------------------------


def story(reg: Registry, folder: Path) -> None:
    """Write one of each: what is damaged afterwards."""
    reg.configure(metrics={"loss": "min"})
    reg.create_model("churn", title="Customer churn", owner="team:risk", fields={"sla": {"hours": 4}})
    reg.create_dataset_version("clicks/v1", {"a.csv": b"id,clicks\n1,2\n"}, fields={"source": "web"})
    many = {f"part-{n}": b"%d" % (n % 3) for n in range(5)}  # more than stand in an entry: a document
    reg.create_dataset_version("clicks/v2", many, based_on="dataset://clicks/v1")
    with reg.start_run(
        "train", params={"lr": 0.1}, inputs={"data": "dataset://clicks/v1"}, outputs=folder / "outputs"
    ) as run:
        run.log({"loss": 0.3}, step=1)
        (folder / "m.bin").write_bytes(b"weights one")
        run.register("churn", folder / "m.bin", metrics={"auc": 0.9}, note="from a run")
    reg.register(
        "churn", many, metrics={"auc": 0.8}, params={"lr": 1}, note="many files", idempotency_key="k"
    )
    reg.register("churn", {"m.bin": b"weights three"}, tags=["x"], fields={"who": "Jane", "n": 3})
    reg.comment("churn/v1", "looks good")
    reg.attach("churn/v1", "roc.txt", b"curve")
    reg.add_evaluation("churn/v1", {"auc": 0.88}, note="on holdout")
    reg.approve("churn/v1", "recall +5 %")
    reg.approve("churn/v3", "newer")
    reg.reject("churn/v2", "overfits")
    reg.set_alias("churn", "champion", 1, reason="first")
    reg.archive("churn/v2", "later")
    reg.redact("churn/v3", "fields.who", "a name")
    reg.comment("churn/v3", "never mind")
    reg.redact("churn/v3", "comments", "a name in it")
    for n in range(6):  # enough for a checkpoint after the last erasure
        reg.edit_version("churn/v1", fields={"step": n})
    for n in range(2):
        note(reg, f"{n:032x}")
    drain(reg._core)
    reg._core.place.store.forget([f"{n:032x}" for n in range(2)])
    note(reg, "f" * 32)  # is in no entry


def note(reg: Registry, of: str) -> None:
    """Note that somebody used a version."""
    from modelhub_sdk.formats import codec

    body = {"kind": "use", "uri": "model://churn/v1", "asked": "model://churn/champion", "actor": "bob", "host": "pod",
            "at": codec.print_time(reg._core.clock())}  # fmt: skip
    reg._core.place.store.note([Note(of, codec.dumps(body))])


def answers(reg: Registry) -> dict[str, Any]:
    """Return all that a registry says of its entries, and the bytes that it hands out."""
    versions = ["churn/v1", "churn/v2", "churn/v3"]
    said: dict[str, Any] = {
        "models": reg.models(limit=100).to_dicts(),
        "versions": [reg.version(ref) for ref in versions],
        "search": [
            one.uri for one in reg.versions("churn", where="metrics.auc >= 0.85 and status = 'approved'")
        ],
        "latest": reg.latest("churn"),
        "alias": reg.alias("churn/champion"),
        "datasets": [reg.dataset_version(f"clicks/v{n}") for n in (1, 2)],
        "runs": [repr(one) for one in reg.runs()],
        "metrics": [repr(reg.metrics(one)) for one in reg.runs()],
        "audit": [repr(one) for one in reg.audit(limit=500)],
        "lineage": [repr(reg.upstream(ref)) for ref in versions[:1]],
        "settings": dict(reg.settings()),
        "then": [one.status for one in reg.at(9).versions("churn")],
    }
    for uri in ("churn/v1", "churn/v2", "dataset://clicks/v2"):
        path = Path(reg.resolve(uri).path)
        said[uri] = {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
    return said


# --- one edit -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """One edit: what it was, for people; what must be named, one of these; and why it may change nothing."""

    what: str
    names: tuple[str, ...]
    harmless: str | None = None


@dataclass
class Figures:
    """What became of the edits of one store."""

    store: str
    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)

    def judge(self, place: Place, edit: Edit, cache: Path) -> None:
        """Open the damaged *place* with *cache*, read and verify, and note what told of the *edit*."""
        begun = time.monotonic()
        try:
            outcome, text = place.look(cache)
        except Exception as error:  # that is what this test looks for
            outcome, text = "raised", f"{type(error).__name__}: {error}"
        took = time.monotonic() - begun
        self.slowest = max(self.slowest, took)
        complaint = self._complaint(edit, outcome, text)
        if took > SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)):
            complaint = f"took {took:.1f} s"
        if complaint:
            self.failures.append(f"{self.store}, {edit.what}: {complaint}")
        elif outcome == "silent":
            outcome = f"no-op ({edit.harmless})"
        self.counts["FAILED" if complaint else outcome] += 1

    @staticmethod
    def _complaint(edit: Edit, outcome: str, text: str) -> str | None:
        if outcome == "raised":
            return f"an error that is not ours: {text}"
        if outcome == "silent":
            return None if edit.harmless else "nothing says so"
        if outcome == "changed":
            return None if edit.harmless == "end" else f"verify() is silent, and other answers: {text}"
        if edit.names and not any(name in text for name in edit.names):
            return f"the place is not named ({outcome}): {text[:400]}"
        return None

    def __str__(self) -> str:
        total = sum(self.counts.values())
        parts = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        return f"{self.store}: {total} edits: {parts}; slowest {self.slowest:.2f} s"


class Place:
    """A written registry that is damaged and mended again and again."""

    def __init__(self, url: str, tmp_path: Path, *, artifacts: str | None = None) -> None:
        self.url, self.artifacts, self.tmp_path = url, artifacts, tmp_path
        self.warm = tmp_path / "warm"
        self.expected: dict[str, Any] = {}

    def open(self, cache: Path) -> Registry:
        return hub.open(self.url, artifacts=self.artifacts, cache_dir=cache, user="tester", create=True)

    def write(self) -> None:
        """Tell the story, and what a registry that holds it answers."""
        with self.open(self.warm) as reg:
            story(reg, self.tmp_path)
        self.keep()
        with self.open(self.tmp_path / "cache") as reg:
            self.expected = answers(reg)
            found = reg.verify()
            assert found.ok, found.problems
        self.mend()

    def keep(self) -> None:
        """Remember what the place holds."""
        raise NotImplementedError

    def mend(self) -> None:
        """Undo what was done, and what the client did since."""
        raise NotImplementedError

    def look(self, cache: Path) -> tuple[str, str]:
        """Return who told that something is wrong (``open``, ``read``, ``verify``), and what it said."""
        try:
            reg = self.open(cache)
        except ModelHubError as error:
            return "open", str(error)
        with reg:
            told, reason, got = "", "", None
            try:
                got = answers(reg)
            except ModelHubError as error:
                told, reason = "read", str(error)
            try:
                found = reg.verify(progress=False)
            except hub.Offline as error:  # it cannot be opened; a cache with pins answers for what it has
                return "open", str(error)
            if not found.ok:
                return told or "verify", "\n".join((reason, *found.problems))
            if told:
                return told, reason
            different = [key for key, value in self.expected.items() if (got or {}).get(key) != value]
            return ("changed", ", ".join(different)) if different else ("silent", "")


def run(
    place: Place,
    store: str,
    rng: random.Random,
    edits: Callable[[random.Random], Edit | None],
    mend: Callable[[], None],
) -> None:
    """Make the edits of one *store*, judge each, and undo it; fail with all that nobody told of."""
    figures = Figures(store)
    for n in range(100 if THOROUGH else EDITS[store]):
        edit = None
        while edit is None:
            edit = edits(rng)
        cache = place.tmp_path / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        if n % 2:  # a client that has seen the place as it was, and a fresh one
            shutil.copytree(place.warm, cache)
        try:
            figures.judge(place, edit, cache)
        finally:
            mend()
    print(figures, flush=True)  # shown by -s, and for a failure
    assert not figures.failures, "\n".join([str(figures), *figures.failures])


# --- bytes --------------------------------------------------------------------------------------------


def changed(data: bytes, rng: random.Random) -> bytes:
    """Return *data* with one range edited."""
    at = rng.randrange(len(data) + 1) if data else 0
    size = min(len(data) - at, rng.choice([1, 1, 1, 2, 8, 64]))
    kind = rng.choice(["flip", "flip", "random", "insert", "cut", "remove", "digit", "quote", "empty"])
    if kind == "flip" and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == "digit":
        digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
        at = rng.choice(digits) if digits else at
        return data[:at] + b"%d" % rng.randrange(10) + data[at + 1 :]
    middle = {"insert": rng.randbytes(size or 1) + data[at : at + size], "remove": b"", "quote": b'"'}.get(
        kind, rng.randbytes(size)
    )
    if kind in ("cut", "empty"):
        return data[:at] if kind == "cut" else b""
    return data[:at] + middle + data[at + size :]


class Folder(Place):
    """A journal of files, with small folders so that there are packs and checkpoints."""

    def keep(self) -> None:
        """Copy the folder, and list its files."""
        self.root = Path(self.url)
        self.kept = self.tmp_path / "kept"
        shutil.copytree(self.root, self.kept)
        self.files = sorted(p.relative_to(self.root) for p in self.root.rglob("*") if p.is_file())
        self.files = [p for p in self.files if p.parts[0] != "tmp"]
        self.entries = [p for p in self.files if p.parts[0] == "journal"]
        parts = Counter(p.parts[0] for p in self.files)
        assert {"journal", "blobs", "packs", "checkpoints", "erased", "inbox"} <= set(parts), parts

    def mend(self) -> None:
        """Put the folder back."""
        for path in self.root.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(self.root)
        shutil.copytree(self.kept, self.root)

    def edit(self, rng: random.Random) -> Edit | None:
        """Damage one file."""
        kinds = sorted({p.parts[0] for p in self.files})
        kind = rng.choice([*kinds, "journal", "journal", "journal", "blobs", "blobs"])
        name = rng.choice([p for p in self.files if p.parts[0] == kind])
        path = self.root / name
        path.chmod(0o644)
        before = path.read_bytes()
        how = rng.choice(["edit"] * 16 + ["delete", "folder", "link", "swap"] * 2 + ["mode"])
        if how == "edit":
            path.write_bytes(changed(before, rng))
        elif how == "swap":
            other = rng.choice([p for p in self.files if p.parts[0] == kind])
            path.write_bytes((self.root / other).read_bytes())
        elif how == "mode":
            path.chmod(rng.choice([0o600, 0o755, 0o666]))
            os.utime(path, (1, 1))
        else:
            path.unlink()
            if how == "folder":
                path.mkdir()
            elif how == "link":
                path.symlink_to(self.kept / name)
        return Edit(f"{how} {name}", self._names(name), self._harmless(name, path, before, how))

    def _names(self, name: Path) -> tuple[str, ...]:
        if name.parts[0] == "journal":
            return (f"ntry {int(name.stem)}", name.name)
        if name.parts[0] == "blobs" and len(name.name) == 62:
            return (name.name, "model://", "dataset://", "run:", "datum")
        return ()

    def _harmless(self, name: Path, path: Path, before: bytes, how: str) -> str | None:
        kind = name.parts[0]
        if how == "mode" or (how in ("edit", "swap") and path.read_bytes() == before):
            return "same"
        if kind in ("packs", "checkpoints", "erased", "finished"):
            return "derived"
        if kind == "inbox":
            return "note"
        if kind == "blobs" and len(name.name) != 62:
            return "marker"
        if kind == "journal" and how == "edit":
            seq = int(name.stem)
            try:
                same = files._parsed(path.read_bytes(), seq, "") == files._parsed(before, seq, "")
            except ModelHubError:
                same = False
            return "same" if same else None
        return "end" if name == self.entries[-1] and how == "delete" else None


@parts("folder")
def test_edits_of_a_folder(tmp_path: Path, small: None, part: int) -> None:
    """Every file of a folder: its bytes, links, folders and other files in its place, and its absence."""
    place = Folder(str(tmp_path / "registry"), tmp_path)
    place.write()
    run(place, "folder", random.Random(SEED + part), place.edit, place.mend)


# --- cells --------------------------------------------------------------------------------------------


def odd_value(value: Any, rng: random.Random) -> Any:
    """Return another value for a cell, often one of another type."""
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    other: list[Any] = [
        None,
        0,
        -1,
        7,
        2**40,
        2**62,
        1.5,
        "",
        "x",
        text + "x",
        text.encode(),
        text,
        b"",
        b"\xff\xfe",
    ]
    if isinstance(value, int):
        other += [value + 1, value - 1, str(value), str(value) + "x"]
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        other += [value[:at] + rng.choice('0a}"') + value[at + 1 :]] * 6
    if isinstance(value, bytes) and value:
        other += [changed(value, rng)] * 8
    return rng.choice(other)


class Sqlite(Place):
    """One SQLite file, with journal, inbox and index."""

    def keep(self) -> None:
        """Remember the bytes of the file, and its rows."""
        self.path = Path(self.url.removeprefix("sqlite:///"))
        with sqlite3.connect(self.path) as conn:
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.dump = dump(conn)
        conn.close()
        self.whole = self.path.read_bytes()

    def mend(self) -> None:
        """Put the file back."""
        self._put(self.whole)

    def _put(self, data: bytes) -> None:
        """Put a new file in place: to write over one confuses whoever has it open yet."""
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        self.path.write_bytes(data)

    def edit_page(self, rng: random.Random) -> Edit:
        """Damage some bytes of the file."""
        at = rng.randrange(len(self.whole))
        size = rng.choice([1, 1, 1, 2, 16, 300, 4096])
        new = rng.choice([rng.randbytes(size), bytes(size), bytes([self.whole[at] ^ 1 << rng.randrange(8)])])
        data = self.whole[:at] + new[: len(self.whole) - at] + self.whole[at + len(new) :]
        self._put(data)
        return Edit(f"{len(new)} bytes at {at}", (), "unread" if self._same(data) else None)

    def _same(self, data: bytes) -> bool:
        """Return whether a file with *data* holds the same, in sound pages."""
        copy = self.tmp_path / "look.db"
        for suffix in ("", "-wal", "-shm"):
            Path(f"{copy}{suffix}").unlink(missing_ok=True)
        copy.write_bytes(data)
        conn = sqlite3.connect(copy)
        try:
            return dump(conn) == self.dump and conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        except (sqlite3.Error, UnicodeDecodeError):
            return False
        finally:
            conn.close()

    def edit_cell(self, rng: random.Random) -> Edit | None:
        """Change one cell, or delete, double or swap rows."""
        conn = sqlite3.connect(self.path)
        try:
            with conn:
                return _edited_cell(conn, "?", _sqlite_tables(conn), rng)
        except (sqlite3.IntegrityError, OverflowError):
            return None  # the database itself refuses that
        finally:
            conn.close()


def dump(conn: sqlite3.Connection) -> dict[str, list[Any]]:
    """Return all rows of all tables, and the tables' definitions."""
    schema = conn.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name").fetchall()
    tables = [name for kind, name, _, _ in schema if kind == "table"]
    return {"": schema} | {
        name: sorted(conn.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in tables
    }


def _sqlite_tables(conn: sqlite3.Connection) -> dict[str, list[tuple[str, bool]]]:
    names = [
        row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    ]
    return {
        name: [(row[1], bool(row[5])) for row in conn.execute(f"PRAGMA table_info({name})")]
        for name in names if name.startswith(("modelhub_", "mh"))
    }  # fmt: skip


def _edited_cell(
    conn: Any, mark: str, tables: Mapping[str, list[tuple[str, bool]]], rng: random.Random
) -> Edit | None:
    table = rng.choice(
        [*tables, "modelhub_journal", "modelhub_journal", "modelhub_journal", "modelhub_journal"]
    )
    columns = tables[table]
    names = [name for name, _ in columns]
    rows = sorted(conn.execute(f"SELECT * FROM {table}").fetchall(), key=repr)
    if not rows:
        return None
    row = rng.choice(rows)
    keys = [name for name, key in columns if key] or names
    where = " AND ".join(f"{name} = {mark}" for name in keys)
    at = tuple(row[names.index(name)] for name in keys)
    how = rng.choice(["cell"] * 8 + ["delete", "double", "swap"])
    label = f"{how} {table} {at!r:.60}"
    if how == "delete":
        conn.execute(f"DELETE FROM {table} WHERE {where}", at)
    elif how == "double":
        new = [
            odd_value(value, rng) if name in keys else value for name, value in zip(names, row, strict=True)
        ]
        conn.execute(f"INSERT INTO {table} VALUES ({', '.join([mark] * len(new))})", new)
    else:
        column = (
            rng.choice([name for name in names if name not in keys] or names)
            if how == "swap"
            else rng.choice(names)
        )
        old = row[names.index(column)]
        value = rng.choice(rows)[names.index(column)] if how == "swap" else odd_value(old, rng)
        label += f".{column} = {value!r:.80}"
        conn.execute(f"UPDATE {table} SET {column} = {mark} WHERE {where}", (value, *at))
    after = sorted(conn.execute(f"SELECT * FROM {table}").fetchall(), key=repr)
    keys_after = {new[0] for new in after}
    return Edit(
        label,
        _cell_names(table, {row[0]} | (keys_after - {old[0] for old in rows})),
        _cell_harmless(
            table, same=after == rows, headless=table.endswith("_head") and row[0] not in keys_after
        ),
    )


def _cell_names(table: str, keys: set[Any]) -> tuple[str, ...]:
    if table == "modelhub_journal":
        named = [f"ntry {key}" for key in keys] + [f"number {key}" for key in keys]
        return ("entries were lost", *named, *(f"ntry {key - 1}" for key in keys if isinstance(key, int)))
    return ("index", "Index") if table.startswith("mh") else ()


def _cell_harmless(table: str, *, same: bool, headless: bool) -> str | None:
    if same:
        return "same"
    if headless:
        return "remade"
    return {"modelhub_inbox": "note", "modelhub_lock": "lock", "modelhub_erased": "erased"}.get(table)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a few entries, and a few files, many."""
    monkeypatch.setattr(files, "FOLDER", 8)
    monkeypatch.setattr(shelf, "FOLDER", 8)
    monkeypatch.setattr(files.FileStore, "every", 8)
    monkeypatch.setattr(files, "_ONE_BY_ONE", 3)
    monkeypatch.setattr("modelhub_sdk.registry._INLINE_FILES", 3)
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@parts("cells")
def test_edits_of_cells_of_a_sqlite_file(tmp_path: Path, small: None, part: int) -> None:
    """Every cell of every table, with values of every type; rows deleted, doubled and swapped."""
    place = Sqlite(f"sqlite:///{tmp_path}/registry.db", tmp_path)
    place.write()
    run(place, "cells", random.Random(SEED + part), place.edit_cell, place.mend)


@parts("pages")
def test_edits_of_bytes_of_a_sqlite_file(tmp_path: Path, small: None, part: int) -> None:
    """Every byte of the database file."""
    place = Sqlite(f"sqlite:///{tmp_path}/registry.db", tmp_path)
    place.write()
    run(place, "pages", random.Random(SEED + part), place.edit_page, place.mend)


class Postgres(Place):
    """A PostgreSQL database."""

    def keep(self) -> None:
        """Remember all rows."""
        import psycopg

        self.conn = psycopg.connect(self.url, autocommit=True)
        found = self.conn.execute(
            "SELECT c.relname, a.attname, a.attnum = ANY (i.indkey) FROM pg_class c JOIN pg_attribute a"
            " ON a.attrelid = c.oid AND a.attnum > 0 JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary"
            " WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace ORDER BY c.relname, a.attnum"
        ).fetchall()
        self.tables: dict[str, list[tuple[str, bool]]] = {}
        for table, column, key in found:
            self.tables.setdefault(table, []).append((column, key))
        self.rows = {table: self.conn.execute(f"SELECT * FROM {table}").fetchall() for table in self.tables}

    def mend(self) -> None:
        """Put back the rows of the tables that changed."""
        for table, rows in self.rows.items():
            now = self.conn.execute(f"SELECT * FROM {table}").fetchall()
            if sorted(now, key=repr) != sorted(rows, key=repr):
                marks = ", ".join(["%s"] * len(self.tables[table]))
                with self.conn.transaction(), self.conn.cursor() as cursor:
                    cursor.execute(f"DELETE FROM {table}")
                    cursor.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)

    def edit(self, rng: random.Random) -> Edit | None:
        """Change one cell, or delete, double or swap rows."""
        import psycopg

        try:
            with self.conn.transaction():
                return _edited_cell(self.conn, "%s", self.tables, rng)
        except (psycopg.Error, UnicodeError):
            return None  # the database itself refuses that


@parts("postgres")
def test_edits_of_a_database(tmp_path: Path, small: None, postgres_db: str, part: int) -> None:
    """Every cell of every table of a PostgreSQL database; rows deleted and doubled."""
    place = Postgres(postgres_db, tmp_path, artifacts=str(tmp_path / "artifacts"))
    place.write()
    try:
        run(place, "postgres", random.Random(SEED + part), place.edit, place.mend)
    finally:
        place.conn.close()
