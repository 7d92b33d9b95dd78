"""`reg.verify()`: the chain, the index against a fresh fold, the manifests against the stored bytes."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping

from attrs import define, field, frozen

from modelhub_sdk.arguments import kept_outputs
from modelhub_sdk.blobs import progress as bars
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.core import Core
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain.entities import DatasetVersion, File, ModelVersion, Verification
from modelhub_sdk.domain.events import Entry
from modelhub_sdk.errors import InvalidDocument, JournalTooNew, ModelHubError, shown
from modelhub_sdk.formats import codec, manifest
from modelhub_sdk.index import data, fold, runs, schema
from modelhub_sdk.index.queries import View
from modelhub_sdk.index.sql import Sql
from modelhub_sdk.ports import Record, Shelved
from modelhub_sdk.stores.connections import sqlite_connect
from modelhub_sdk.stores.private import unpacked

_BATCH = 1000


def verify(
    core: Core, version: tuple[str, int] | None = None, *, progress: bool | None = None
) -> Verification:
    """Return what is wrong with a registry, or only with the bytes of one version."""
    problems: list[str] = []
    live = _live(core, problems)  # before the journal is read: what is written meanwhile is not in it
    fresh = sqlite_connect(":memory:")
    try:
        for statement in schema.ddl("sqlite"):
            fresh.execute(statement)
        count, head = _chain(core, Sql(fresh, "sqlite"), live, problems)
        blobs = _bytes(core, View(Sql(fresh, "sqlite")), version, problems, progress)
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
    shown_instead = View(fresh).texts(seal for seals in redacted.values() for seal in seals)
    kept = {
        seal for one in checkpoints.values() for seal, text in one.texts if text != shown_instead.get(seal)
    }
    for number, seals in sorted(redacted.items()):
        if seals & (secrets.get(number, set()) | kept):
            problems.append(
                f"Entry {number}: a text was redacted, and is still stored. Redact it again to finish, or write anything."
            )
    return seq, digest


@frozen
class _Checkpoint:
    """A checkpoint that clients may begin with: a digest of each table, and the texts that it holds with their seals."""

    name: str
    seq: int
    tables: Mapping[str, str]
    texts: frozenset[tuple[str, str]]


def _checkpoints(core: Core) -> Iterator[_Checkpoint]:
    store = core.place.store
    if not isinstance(store, Shelved):
        return
    for one in store.shelf.checkpoints():
        if one.schema == schema.SCHEMA:
            with unpacked(store, one) as found:
                if found is not None:
                    sql = Sql(found, "sqlite")
                    texts = frozenset((seal, body) for seal, body in sql.all("SELECT seal, body FROM @text"))
                    yield _Checkpoint(one.name, one.seq, _digests(sql), texts)


def _records(core: Core, problems: list[str]) -> Iterator[Record]:
    store = core.place.store
    try:
        yield from store.entries(0) if isinstance(store, Shelved) else store.read(0)
    except InvalidDocument as error:
        problems.append(str(error))


def _bytes(
    core: Core,
    view: View,
    version: tuple[str, int] | None,
    problems: list[str],
    progress: bool | None,
) -> int:
    """Read the stored bytes of everything that was not purged; each blob once. Return how many."""
    store = core.artifacts()
    found = _Stored(problems)
    if version is None:
        _of_data(store, view, found)
    for model in view.model_names() if version is None else [version[0]]:
        numbers = range(1, view.last_number(model) + 1) if version is None else [version[1]]
        for number in numbers:
            _of_version(store, view, model, number, found)
    if version is None:
        kept = _kept(core, view, found)
        for digest in sorted((view.datum_digests() - found.purged) | kept):
            found.files.setdefault(digest, (f"datum {digest}", None))
        for digest, run_id in runs.documents(view).items():
            found.files.setdefault(digest, (f"run:{run_id}, what it keeps", None))
    left = {digest: one for digest, one in found.files.items() if digest not in found.read}
    with bars.bar(sum(size or 0 for _, size in left.values()), "verifying", show=progress) as step:
        for digest, (what, size) in left.items():
            problem = store.verify(digest, size, progress=step)
            if problem is not None:
                problems.append(f"{what}: {problem}")
    return len(found.read) + len(left)


def _kept(core: Core, view: View, found: _Stored) -> set[str]:
    """Return the digests of outputs that are kept for their own sake, whatever was purged elsewhere."""
    kept: set[str] = set()
    for event in view.events(ev.OutputsIngested.kind):
        if isinstance(event, ev.OutputsIngested):
            try:
                kept |= kept_outputs(event, core.document)
            except ModelHubError as error:
                found.problems.append(f"The list of outputs {event.document}: {error}")
    return kept


@define
class _Stored:
    """What should be stored: the documents that were read to know it, and digest -> (what it is of, size)."""

    problems: list[str]
    read: set[str] = field(factory=set)
    files: dict[str, tuple[str, int | None]] = field(factory=dict)
    purged: set[str] = field(factory=set)


def _of_version(store: BlobStore, view: View, model: str, number: int, found: _Stored) -> None:
    uri = f"model://{model}/v{number}"
    version = view.version(model, number)
    if version is None:
        found.problems.append(f"{uri} is missing.")
        return
    purge = view.purge(model, number)
    files = _files(store, version, view.registered(model, number).document, found, whole=purge is None)
    if files is None:
        return
    gone = set() if purge is None else {file.path for file in files if purge.why(file.path) is not None}
    found.purged |= {file.digest for file in files if file.path in gone}
    beside = [File(a.name, a.size, a.digest) for a in version.attachments]
    beside += [file for evaluation in version.evaluations for file in evaluation.files]
    for file in [f for f in files if f.path not in gone] + beside:
        found.files.setdefault(file.digest, (f"{uri}, file {file.path}", file.size))


def _of_data(store: BlobStore, view: View, found: _Stored) -> None:
    for name, number in data.all_versions(view):
        version = data.version(view, name, number)
        document = data.born(view, name, number).document
        for file in _files(store, version, document, found, whole=True) or ():
            found.files.setdefault(file.digest, (f"{version.uri}, file {file.path}", file.size))


def _files(
    store: BlobStore,
    version: ModelVersion | DatasetVersion,
    document: str | None,
    found: _Stored,
    *,
    whole: bool,
) -> list[File] | None:
    """Return all files of a version, None when its manifest cannot be read; *whole*: none of them was purged."""
    files = list(version.files)
    try:
        if document is not None:
            found.read.add(document)
            files = list(manifest.decode(store.read(document), source=version.uri))
    except ModelHubError as error:
        found.problems.append(f"{version.uri}: {error}")
        return None
    if whole and manifest.digest(files) != version.digest:
        found.problems.append(f"{version.uri}: its files are not those of its manifest {version.digest}.")
    return files
