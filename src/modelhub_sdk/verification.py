"""`reg.verify()`: the chain, the private texts, the index against a fresh fold, the manifests against the stored bytes.

Nothing that is stored makes it raise: each damaged place is a problem that names it, and the walk goes on with the
next one. Only a store that does not answer is an error, since a verification without it would say nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from itertools import islice
from typing import Any

from attrs import define, field, frozen

from modelhub_sdk.arguments import kept_outputs
from modelhub_sdk.blobs import progress as bars
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.core import LARGEST_DOCUMENT, Core
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain.entities import DatasetVersion, File, ModelVersion, Verification
from modelhub_sdk.domain.events import Entry
from modelhub_sdk.errors import (
    Busy,
    InvalidDocument,
    ModelHubError,
    NotAllowed,
    Offline,
    StoreUnavailable,
    shown,
)
from modelhub_sdk.formats import codec, commitments, manifest
from modelhub_sdk.index import data, fold, runs, schema
from modelhub_sdk.index.queries import View
from modelhub_sdk.index.sql import Sql
from modelhub_sdk.ports import Checkpoint, Record, Shelved, Store
from modelhub_sdk.stores.connections import sqlite_connect, sqlite_damage
from modelhub_sdk.stores.ledger import check_gaps
from modelhub_sdk.stores.private import unpacked
from modelhub_sdk.uses import damaged

MAX_PROBLEMS = 100
"""Problems that are shown; of the others it is said how many there are."""

_BATCH = 1000


def verify(
    core: Core, version: tuple[str, int] | None = None, *, progress: bool | None = None
) -> Verification:
    """Return what is wrong with a registry, or only with the bytes of one version.

    Raises:
        StoreUnavailable: the store of the journal or of the bytes does not answer, so nothing can be said. Damage
            is never an error, also where a disk or a database reports it: it is a problem.
        NotAllowed: the registry was closed.
    """
    problems = Problems()
    live = _live(core)  # before the journal is read: what is written meanwhile is not in it
    with problems.of("The database of the index"):
        problems.extend(
            f"The database of the index is damaged: {shown(one, 200)[1:-1]}" for one in core.ledger.damage()
        )
    with closing(sqlite_connect(":memory:")) as conn:
        for statement in schema.ddl("sqlite"):
            conn.execute(statement)
        fresh = Sql(conn, "sqlite")
        walk = _Walk(core, fresh, live, problems)
        walk.journal()
        walk.texts_in_place()
        blobs = _bytes(core, View(fresh), version, problems, progress, whole=walk.whole)
    remarks: tuple[str, ...] = ()
    if version is None:
        with problems.of("The inbox"):
            remarks = _of_inbox(core)
    if live.problem is not None and (not problems or not isinstance(live.error, InvalidDocument)):
        problems.append(live.problem)  # else the journal is the reason, and that was said
    return Verification(
        ok=not problems,
        problems=problems.listed(),
        entries=walk.seq,
        blobs=blobs,
        head=walk.digest,
        remarks=remarks,
    )


def _of_inbox(core: Core) -> tuple[str, ...]:
    """Return a sentence about what lies in the inbox and is no note. It stops nobody, and nothing is lost by it."""
    try:
        names = damaged(core)
    except NotAllowed:  # who may only leave notes there need not read those of others
        return ()
    if not names:
        return ()
    some = ", ".join(shown(name, 80) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    count = "1 thing that is no note" if len(names) == 1 else f"{len(names)} things that are no notes"
    return (
        f"The inbox of {shown(core.url, 200)} holds {count} of this release: {some}. Readers skip that."
        " reg.collect_garbage(dry_run=False) removes what no release can have written.",
    )


@define
class Problems:
    """What is wrong, one sentence each: the first `MAX_PROBLEMS`, and how many more there are."""

    first: list[str] = field(factory=list)
    more: int = 0

    def __len__(self) -> int:
        return len(self.first) + self.more

    def append(self, problem: str) -> None:
        """Add a problem; the same one again adds nothing."""
        if len(self.first) >= MAX_PROBLEMS:
            self.more += 1
        elif problem not in self.first:
            self.first.append(problem)

    def extend(self, problems: Iterable[str]) -> None:
        """Add several problems."""
        for problem in problems:
            self.append(problem)

    def listed(self) -> tuple[str, ...]:
        """Return the problems, the last of them a count when there are too many."""
        return (*self.first, f"There are {self.more} more problems.") if self.more else tuple(self.first)

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Take whatever damage raises for a problem of *what*.

        Damaged bytes and rows reach code that was written for sound ones, so any exception may come. A store
        that does not answer is not damage, and is raised.
        """
        try:
            yield
        except Exception as error:
            if _is_outage(error):
                raise
            self.append(f"{what}: {_reason(error)}")


def _is_outage(error: Exception) -> bool:
    return isinstance(error, (Offline, Busy)) or (isinstance(error, StoreUnavailable) and not error.damaged)


def _reason(error: Exception) -> str:
    """Return what *error* says; a foreign one may quote what is private, so only its type is named."""
    return str(error) if isinstance(error, ModelHubError) else f"It cannot be read ({type(error).__name__})."


# --- the index ----------------------------------------------------------------------------------------


@frozen
class _Live:
    """The index as it is: its head, and a digest of each table; or why it cannot be read."""

    seq: int = 0
    head: tuple[Any, ...] = ()
    tables: Mapping[str, str] = field(factory=dict)
    error: Exception | None = None

    @property
    def problem(self) -> str | None:
        if self.error is None:
            return None
        return f"The index cannot be read ({shown(_reason(self.error), 300)[1:-1]}). reg.rebuild_index() makes it anew."


def _live(core: Core) -> _Live:
    if core.closed:
        raise NotAllowed(f"The registry {shown(core.url, 200)} was closed.", hint="Open it again.")
    try:
        with core.ledger.reading(trusting=True) as sql:
            head = tuple(
                tuple(row) for row in sql.all("SELECT one, seq, chain, at, registry FROM @head ORDER BY one")
            )
            return _Live(View(sql).head()[0], head, _digests(sql))
    except Exception as error:
        if _is_outage(error) and not isinstance(
            error, Busy
        ):  # an index that does not fit its journal is busy for ever
            raise
        return _Live(error=error)


def _digests(sql: Sql) -> dict[str, str]:
    """Return a digest of the rows of each table but the head."""
    digests = {}
    for table in schema.TABLES:
        if table is schema.HEAD:
            continue
        digest = hashlib.sha256()
        for row in sql.all(f"SELECT * FROM @{table.name} ORDER BY {', '.join(table.key)}"):
            digest.update(repr(tuple(row)).encode(errors="backslashreplace"))
        digests[table.name] = digest.hexdigest()
    return digests


@frozen
class _Checkpoint:
    """A checkpoint that clients may begin with: a digest of each table, and the texts that it holds with their seals."""

    name: str
    seq: int
    tables: Mapping[str, str]
    texts: frozenset[tuple[str, str]]


def _checkpoints(core: Core, problems: Problems) -> Iterator[_Checkpoint]:
    store = core.place.store
    if not isinstance(store, Shelved):
        return
    for one in store.shelf.checkpoints():
        if one.schema == schema.SCHEMA:
            with problems.of(f"The checkpoint {one.name}"):
                yield from _checkpoint(store, one)


def _checkpoint(store: Shelved, one: Checkpoint) -> Iterator[_Checkpoint]:
    with unpacked(store, one) as conn:
        if conn is not None:
            if damage := sqlite_damage(conn):
                raise InvalidDocument(f"It is damaged inside: {shown(damage[0], 200)[1:-1]}.")
            sql = Sql(conn, "sqlite")
            texts = frozenset((seal, body) for seal, body in sql.all("SELECT seal, body FROM @text"))
            yield _Checkpoint(one.name, one.seq, _digests(sql), texts)


# --- the journal --------------------------------------------------------------------------------------


def _records(core: Core, problems: Problems) -> Iterator[Record]:
    """Yield the records that can be read; one that cannot be is a problem, and the next one follows.

    It ends where the journal does, and where `MAX_PROBLEMS` entries in a row cannot be read.
    """
    after, failed = 0, 0
    limit: int | None = None
    reason: Exception | None = None
    while failed < MAX_PROBLEMS:
        before = after
        try:
            for record in _some(core.place.store, after, limit):
                after, failed, reason = record.seq, 0, None
                yield record
        except Exception as error:
            if _is_outage(error):
                raise
            if after > before or limit != 1:  # which one it is shows when it is read alone
                limit, reason = 1, error
                continue
            problems.append(_named(after + 1, error))
            after, failed = after + 1, failed + 1
            continue
        if limit is None or after - before < limit:
            if reason is not None:
                problems.append(_named(after + 1, reason))
            try:
                check_gaps(core.place.store, after)
            except InvalidDocument as error:
                problems.append(str(error))
            return
        limit = limit * 4 if limit < _BATCH else None


def _some(store: Store, after: int, limit: int | None) -> Iterator[Record]:
    """Yield up to *limit* records after *after*, from the entries themselves."""
    return islice(store.entries(after), limit) if isinstance(store, Shelved) else store.read(after, limit)


def _named(seq: int, error: Exception) -> str:
    reason = _reason(error)
    return reason if re.search(rf"\b{seq}\b", reason) else f"Entry {seq} of the journal: {reason}"


@define
class _Walk:
    """One walk over the journal: the chain, the entries, their private texts; they are folded on the way.

    `seq` and `digest` are of the last entry that was read, `told` counts the problems up to it. `whole` says that
    no entry is missing in the fold, `texts_whole` that no text is.
    """

    core: Core
    fresh: Sql
    live: _Live
    problems: Problems
    seq: int = 0
    digest: str = codec.GENESIS
    at: int = 0
    told: int = 0
    whole: bool = True
    texts_whole: bool = True
    batch: list[Entry] = field(factory=list)
    stored: dict[int, frozenset[str]] = field(factory=dict)
    missing: dict[int, frozenset[str]] = field(factory=dict)
    checkpoints: dict[int, _Checkpoint] = field(factory=dict)

    def journal(self) -> None:
        """Read and check all entries."""
        self.checkpoints = {one.seq: one for one in _checkpoints(self.core, self.problems)}
        before = self.told = len(self.problems)
        for record in _records(self.core, self.problems):
            linked = self._link(record)
            entry = self._decode(record)
            if entry is None or not linked:
                self.whole = False
            else:
                self.batch.append(entry)
                self.at = fold.micros(entry.at)
            if len(self.batch) >= _BATCH or self.seq == self.live.seq or self.seq in self.checkpoints:
                self._fold()
                self._compare()
            self.told = len(self.problems)
        self._fold()
        self.whole = self.whole and len(self.problems) == before
        if self.live.seq > self.seq and self.whole:
            self.problems.append(
                f"Entry {self.seq + 1} is missing: the index was folded up to entry {self.live.seq}, and the journal"
                f" ends at {self.seq}: entries were lost."
            )

    def _link(self, record: Record) -> bool:
        """Check that *record* follows the one before, and move on to it; return whether it does."""
        expected = ""
        with suppress(Exception):  # whatever stands in a damaged record
            expected = codec.chain(self.digest, record.seq, record.scope, record.body)
        linked = record.chain == expected
        if record.seq != self.seq + 1:
            linked, self.whole = True, False  # to what, nobody can say
            if len(self.problems) == self.told:  # else it is there and cannot be read
                self.problems.append(
                    f"The journal has no entry {self.seq + 1}: the next one is {record.seq}."
                )
        elif not linked:
            self.problems.append(
                f"Entry {record.seq} was changed: its chain digest is not that of its content."
            )
        self.seq = record.seq
        self.digest = record.chain if codec.is_link(record.chain) else expected or self.digest
        return linked

    def _decode(self, record: Record) -> Entry | None:
        """Return the entry in *record* with the texts that fit; None when it cannot be read."""
        private = commitments.private(record)
        self.problems.extend(private.problems)
        self.stored[record.seq] = private.stored
        try:
            entry = codec.decode(record, private.texts)
            named = commitments.commitments(record.body)
        except Exception as error:  # noqa: BLE001  # whatever stands in a damaged record
            self.problems.append(_named(record.seq, error))
            return None
        unnamed = private.stored - named.certain - named.possible
        if unnamed:
            self.problems.append(
                f"Entry {record.seq}: {len(unnamed)} private texts were added: nothing in the entry names them."
            )
        left = named.certain - private.stored
        if left and private.readable:
            self.missing[record.seq] = left
        self.texts_whole = self.texts_whole and not unnamed and not private.problems
        return entry

    def _fold(self) -> None:
        """Fold the entries that were read; one that does not fold is a problem."""
        batch, self.batch = self.batch, []
        if not batch or _folded(self.fresh, batch) is None:
            return
        for entry in batch:
            error = _folded(self.fresh, [entry])
            if error is not None:
                self.whole = False
                self.problems.append(f"Entry {entry.seq} cannot be folded ({type(error).__name__}).")

    def _compare(self) -> None:
        """Compare the index, and a checkpoint, with the fold up to the same entry. With entries missing they differ."""
        checkpoint = self.checkpoints.get(self.seq)
        if not self.whole or (checkpoint is None and self.seq != self.live.seq):
            return
        tables = self._comparable()
        if checkpoint is not None:
            self.problems.extend(
                f"The checkpoint {checkpoint.name} differs from the journal in table {name}. Delete it, and where it"
                " was used: reg.rebuild_index()."
                for name, digest in tables.items()
                if digest != checkpoint.tables[name]
            )
        if self.seq == self.live.seq:
            head = ((1, self.seq, self.digest, self.at, self.core.registry_id),)
            same = {"head": self.live.head == head} | {
                name: digest == self.live.tables[name] for name, digest in tables.items()
            }
            self.problems.extend(
                f"The index differs from the journal in table {name}: somebody changed it by hand."
                " reg.rebuild_index() makes it anew."
                for name, is_same in same.items()
                if not is_same
            )

    def _comparable(self) -> dict[str, str]:
        """Return the digests of the folded tables, without those of texts where the journal lacks some.

        An index may still have these, and must not be thrown away for it.
        """
        digests = _digests(self.fresh)
        if not self.texts_whole or self._gone():
            del digests["text"], digests["fact"]
        return digests

    # --- private texts -------------------------------------------------------------------------

    def texts_in_place(self) -> None:
        """Check that each commitment has its text or was erased, and that what was erased is nowhere."""
        for seq, count in sorted(self._gone().items()):
            self.problems.append(
                f"Entry {seq}: {count} private texts are gone, and no entry that can be read redacts them."
                " Restore its private part from a backup; an interrupted copy_to is finished by calling it again."
            )
        self._add_packed()
        erased = View(self.fresh).all_redacted()
        replaced = View(self.fresh).texts(digest for digests in erased.values() for digest in digests)
        kept = {
            digest
            for checkpoint in self.checkpoints.values()
            for digest, text in checkpoint.texts
            if text != replaced.get(digest)
        }
        for seq, digests in sorted(erased.items()):
            if digests & (self.stored.get(seq, frozenset()) | kept):
                self.problems.append(
                    f"Entry {seq}: a text was redacted, and is still stored. The next write finishes that, or"
                    " reg.collect_garbage(dry_run=False)."
                )

    def _gone(self) -> dict[int, int]:
        """Return how many texts each entry lacks that were not erased by an entry folded so far."""
        erased = View(self.fresh).all_redacted() if self.missing else {}
        left = {seq: len(digests - erased.get(seq, set())) for seq, digests in self.missing.items()}
        return {seq: count for seq, count in left.items() if count}

    def _add_packed(self) -> None:
        store = self.core.place.store
        if isinstance(store, Shelved):
            with self.problems.of("The packs"):
                for record in store.packed():
                    texts = commitments.private(record).stored
                    self.stored[record.seq] = self.stored.get(record.seq, frozenset()) | texts


def _folded(fresh: Sql, entries: list[Entry]) -> Exception | None:
    """Fold *entries*, all or none; return why they do not fold."""
    fresh.run("BEGIN")
    try:
        fold.apply(fresh, entries)
    except Exception as error:  # noqa: BLE001  # whatever stands in a damaged entry
        fresh.run("ROLLBACK")
        return error
    fresh.run("COMMIT")
    return None


# --- the bytes ----------------------------------------------------------------------------------------


def _bytes(
    core: Core,
    view: View,
    version: tuple[str, int] | None,
    problems: Problems,
    progress: bool | None,
    *,
    whole: bool,
) -> int:
    """Read the stored bytes of everything that was not purged; each blob once. Return how many.

    *whole* says that no entry is missing in *view*, else a version without its entry was told of already.
    """
    stored = _Stored(core.artifacts(), view, problems, whole)
    if version is not None:
        stored.add_version(*version)
    else:
        stored.add_everything(core)
    left = {digest: one for digest, one in stored.files.items() if digest not in stored.read}
    with bars.bar(sum(size or 0 for _, size in left.values()), "verifying", show=progress) as step:
        for digest, (what, size) in left.items():
            with problems.of(what):
                problem = stored.store.verify(digest, size, progress=step)
                if problem is not None:
                    problems.append(f"{what}: {problem}")
    return len(stored.read) + len(left)


@define
class _Stored:
    """What should be stored: the documents that were read to know it, and digest -> (what it is of, size)."""

    store: BlobStore
    view: View
    problems: Problems
    whole: bool
    read: set[str] = field(factory=set)
    files: dict[str, tuple[str, int | None]] = field(factory=dict)
    purged: set[str] = field(factory=set)

    def add_everything(self, core: Core) -> None:
        """Add all that the journal says is stored."""
        view = self.view
        with self.problems.of("The datasets"):
            for name, number in data.all_versions(view):
                with self.problems.of(f"dataset://{name}, version number {number}"):
                    self._add_dataset_version(name, number)
        with self.problems.of("The models"):
            for model in view.model_names():
                with self.problems.of(f"model://{model}"):
                    for number in range(1, view.last_number(model) + 1):
                        self.add_version(model, number)
        with self.problems.of("The datums and outputs"):
            for digest in sorted((view.datum_digests() - self.purged) | self._kept(core)):
                self.files.setdefault(digest, (f"datum {digest}", None))
        with self.problems.of("The runs"):
            for digest, run_id in runs.documents(view).items():
                self.files.setdefault(digest, (f"run:{run_id}, what it keeps", None))

    def _kept(self, core: Core) -> set[str]:
        """Return the digests of outputs that are kept for their own sake, whatever was purged elsewhere."""
        kept: set[str] = set()
        for event in self.view.events(ev.OutputsIngested.kind):
            if isinstance(event, ev.OutputsIngested):
                with self.problems.of(f"The list of outputs {event.document}"):
                    kept |= kept_outputs(event, core.document)
        return kept

    def add_version(self, model: str, number: int) -> None:
        """Add a version of a model, and what stands beside it."""
        with self.problems.of(f"model://{model}/v{number}"):
            version = self.view.version(model, number)
            if version is not None:
                self._add_version(version)
            elif self.whole:
                self.problems.append(f"model://{model}/v{number} is missing.")

    def _add_version(self, version: ModelVersion) -> None:
        view = self.view
        purge = view.purge(version.model, version.number)
        document = view.registered(version.model, version.number).document
        files = self._manifest(version, document, whole=purge is None)
        gone = set() if purge is None else {file.path for file in files if purge.why(file.path) is not None}
        self.purged |= {file.digest for file in files if file.path in gone}
        beside = [File(a.name, a.size, a.digest) for a in version.attachments]
        beside += [file for evaluation in version.evaluations for file in evaluation.files]
        self._add_files(version.uri, [file for file in files if file.path not in gone] + beside)

    def _add_dataset_version(self, name: str, number: int) -> None:
        version = data.version(self.view, name, number)
        document = data.born(self.view, name, number).document
        self._add_files(version.uri, self._manifest(version, document, whole=True))

    def _add_files(self, uri: str, files: Iterable[File]) -> None:
        for file in files:
            self.files.setdefault(file.digest, (f"{uri}, file {file.path}", file.size))

    def _manifest(
        self, version: ModelVersion | DatasetVersion, document: str | None, *, whole: bool
    ) -> list[File]:
        """Return all files of a version; *whole*: none of them was purged, so they fit its digest."""
        files = list(version.files)
        if document is not None:
            self.read.add(document)
            files = list(
                manifest.decode(self.store.read(document, at_most=LARGEST_DOCUMENT), source=version.uri)
            )
        if whole and manifest.digest(files) != version.digest:
            self.problems.append(f"{version.uri}: its files are not those of its manifest {version.digest}.")
        return files


__all__ = ["MAX_PROBLEMS", "Problems", "verify"]
