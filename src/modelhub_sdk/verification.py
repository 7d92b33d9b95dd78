"""`reg.verify()`: the chain, the index against a fresh fold, the manifests against the stored bytes."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping

from attrs import frozen

from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.core import Core
from modelhub_sdk.domain.entities import File, Verification
from modelhub_sdk.domain.events import Entry
from modelhub_sdk.errors import InvalidDocument, JournalTooNew, ModelHubError, shown
from modelhub_sdk.formats import codec, manifest
from modelhub_sdk.index import data, fold, schema
from modelhub_sdk.index.queries import View
from modelhub_sdk.index.sql import Sql
from modelhub_sdk.ports import Record, Shelved
from modelhub_sdk.stores.connections import sqlite_connect
from modelhub_sdk.stores.private import unpacked

_BATCH = 1000


def verify(core: Core, version: tuple[str, int] | None = None) -> Verification:
    """Return what is wrong with a registry, or only with the bytes of one version."""
    problems: list[str] = []
    live = _live(core, problems)  # before the journal is read: what is written meanwhile is not in it
    fresh = sqlite_connect(":memory:")
    try:
        for statement in schema.ddl("sqlite"):
            fresh.execute(statement)
        count, head = _chain(core, Sql(fresh, "sqlite"), live, problems)
        blobs = _bytes(core, View(Sql(fresh, "sqlite")), version, problems)
    finally:
        fresh.close()
    return Verification(ok=not problems, problems=tuple(problems), entries=count, blobs=blobs, head=head)


@frozen
class _Live:
    """The index as it is: the entry that it was folded up to, and a digest of each table."""

    seq: int
    tables: Mapping[str, str]


def _live(core: Core, problems: list[str]) -> _Live | None:
    try:
        with core.ledger.reading() as sql:
            return _Live(View(sql).head()[0], _digests(sql))
    except (sqlite3.Error, InvalidDocument) as error:
        problems.append(
            f"The index cannot be read ({shown(str(error), 200)}). reg.rebuild_index() makes it anew."
        )
        return None


def _digests(sql: Sql) -> dict[str, str]:
    found = {}
    for table in schema.TABLES:
        if table is schema.HEAD:
            continue
        digest = hashlib.sha256()
        for row in sql.all(f"SELECT * FROM @{table.name} ORDER BY {', '.join(table.key)}"):
            digest.update(repr(tuple(row)).encode())
        found[table.name] = digest.hexdigest()
    return found


def _chain(core: Core, fresh: Sql, live: _Live | None, problems: list[str]) -> tuple[int, str]:
    """Walk the journal: chain, numbers, seals; fold it on the way. Return entries and head."""
    seq, digest = 0, codec.GENESIS
    batch: list[Entry] = []
    secrets: dict[int, set[str]] = {}
    checkpoints = {one.seq: one for one in _checkpoints(core)}
    for record in _records(core, problems):
        expected = codec.chain(digest, seq + 1, record.scope, record.body)
        if record.seq != seq + 1 or record.chain != expected:
            problems.append(f"Entry {record.seq} was changed: its chain digest is not that of its content.")
            break
        try:
            entry = codec.decode(record)
        except (InvalidDocument, JournalTooNew) as error:
            problems.append(str(error))
            break
        bad = codec.private_problems(record)
        if bad:
            problems.append(
                f"Entry {record.seq}: {len(bad)} private texts were changed: they do not fit their seals."
            )
        secrets[record.seq] = set(entry.private)
        seq, digest = record.seq, record.chain
        batch.append(entry)
        at_head = live is not None and seq == live.seq
        if len(batch) >= _BATCH or at_head or seq in checkpoints:
            fold.apply(fresh, batch)
            batch = []
        if seq in checkpoints:
            problems += [
                f"The checkpoint {checkpoints[seq].name} differs from the journal in table {name}. Delete it, and"
                " where it was used: reg.rebuild_index()."
                for name, found in _digests(fresh).items()
                if found != checkpoints[seq].tables[name]
            ]
        if live is not None and at_head:
            problems += [
                f"The index differs from the journal in table {name}: somebody changed it by hand."
                " reg.rebuild_index() makes it anew."
                for name, found in _digests(fresh).items()
                if found != live.tables[name]
            ]
    fold.apply(fresh, batch)
    if live is not None and live.seq > seq and not problems:
        problems.append(
            f"The index was folded up to entry {live.seq}, and the journal ends at {seq}: entries were lost."
        )
    redacted = View(fresh).all_redacted()
    for record in store.packed() if isinstance(store := core.place.store, Shelved) else ():
        secrets[record.seq] = secrets.get(record.seq, set()) | set(codec.texts(record))
    kept = frozenset().union(*(one.texts for one in checkpoints.values()))
    for number, seals in sorted(redacted.items()):
        if seals & (secrets.get(number, set()) | kept):
            problems.append(
                f"Entry {number}: a text was redacted, and is still stored. Redact it again to finish."
            )
    return seq, digest


@frozen
class _Checkpoint:
    """A checkpoint that clients may begin with: a digest of each table, and the seals of the texts that it holds."""

    name: str
    seq: int
    tables: Mapping[str, str]
    texts: frozenset[str]


def _checkpoints(core: Core) -> Iterator[_Checkpoint]:
    store = core.place.store
    if not isinstance(store, Shelved):
        return
    for one in store.shelf.checkpoints():
        if one.schema == schema.SCHEMA:
            with unpacked(store, one) as found:
                if found is not None:
                    sql = Sql(found, "sqlite")
                    texts = frozenset(row[0] for row in sql.all("SELECT seal FROM @text"))
                    yield _Checkpoint(one.name, one.seq, _digests(sql), texts)


def _records(core: Core, problems: list[str]) -> Iterator[Record]:
    store = core.place.store
    try:
        yield from store.entries(0) if isinstance(store, Shelved) else store.read(0)
    except InvalidDocument as error:
        problems.append(str(error))


def _bytes(core: Core, view: View, version: tuple[str, int] | None, problems: list[str]) -> int:
    """Read the stored bytes of every version that was not purged; each blob once. Return how many."""
    seen: set[str] = set()
    store = core.artifacts()
    if version is None:
        _data_bytes(store, view, seen, problems)
    for model in view.model_names() if version is None else [version[0]]:
        numbers = range(1, view.last_number(model) + 1) if version is None else [version[1]]
        for number in numbers:
            uri = f"model://{model}/v{number}"
            found = view.version(model, number)
            if found is None:
                problems.append(f"{uri} is missing.")
                continue
            files = list(found.files)
            document = view.registered(model, number).document
            try:
                if document is not None:
                    seen.add(document)
                    files = list(manifest.decode(store.read(document), source=uri))
                purge = view.purge(model, number)
                if purge is None and manifest.digest(files) != found.digest:
                    problems.append(f"{uri}: its files are not those of its manifest {found.digest}.")
            except ModelHubError as error:
                problems.append(f"{uri}: {error}")
                continue
            gone = (
                set() if purge is None else {f.path for f in files if purge[3] is None or f.path in purge[3]}
            )
            beside = [File(a.name, a.size, a.digest) for a in found.attachments]
            beside += [file for evaluation in found.evaluations for file in evaluation.files]
            for file in [f for f in files if f.path not in gone] + beside:
                if file.digest in seen:
                    continue
                seen.add(file.digest)
                problem = store.verify(file.digest, file.size)
                if problem is not None:
                    problems.append(f"{uri}, file {file.path}: {problem}")
    return len(seen)


def _data_bytes(store: BlobStore, view: View, seen: set[str], problems: list[str]) -> None:
    """Read the stored bytes of every dataset version."""
    for name, number in data.all_versions(view):
        found = data.version(view, name, number)
        files = list(found.files)
        document = data.born(view, name, number).document
        try:
            if document is not None:
                seen.add(document)
                files = list(manifest.decode(store.read(document), source=found.uri))
        except ModelHubError as error:
            problems.append(f"{found.uri}: {error}")
            continue
        if manifest.digest(files) != found.digest:
            problems.append(f"{found.uri}: its files are not those of its manifest {found.digest}.")
        for file in files:
            if file.digest not in seen:
                seen.add(file.digest)
                problem = store.verify(file.digest, file.size)
                if problem is not None:
                    problems.append(f"{found.uri}, file {file.path}: {problem}")
