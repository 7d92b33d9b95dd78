"""What an open registry is made of, and the commit loop. `Registry` is the face of it.

The loop: begin a write session, read the head, let a pure rule decide the events from the current
state, and append the entry that follows *that* head. Whoever loses the race looks again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define, field

from modelhub_sdk import surroundings
from modelhub_sdk.arguments import kept_outputs
from modelhub_sdk.blobs.cache import Cache
from modelhub_sdk.blobs.driver import without_secrets
from modelhub_sdk.blobs.parallel import each
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain import external
from modelhub_sdk.domain.entities import File
from modelhub_sdk.domain.events import Entry, Event, Sealer
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.errors import (
    Busy,
    ClockSkew,
    Conflict,
    CredentialsRefused,
    InvalidDocument,
    InvalidName,
    InvalidURI,
    ModelHubError,
    NotAllowed,
    NotFound,
    Offline,
    StoreUnavailable,
    shown,
)
from modelhub_sdk.formats import codec, manifest
from modelhub_sdk.hidden import HiddenOptions, hidden, hidden_place, shielded
from modelhub_sdk.index.queries import NOW, View, cells
from modelhub_sdk.ports import Record, SequenceTaken
from modelhub_sdk.stores.ledger import Ledger, check_gaps
from modelhub_sdk.stores.opening import Place, connect

if TYPE_CHECKING:
    from modelhub_sdk.blobs.elsewhere import Reference

log = logging.getLogger("modelhub_sdk")

PATIENCE = 120.0
"""Seconds that a commit keeps trying against other writers before `Busy`."""

DELETING = 20.0
"""Seconds after its entry in which a collector may delete whose entry does not say its `LEASE`: of the first releases."""

LEASE = 4.0
"""Seconds after its entry in which a collector may begin to delete something. What a slow store leaves undone by then
goes on with another entry. Who waits for a collector that it cannot see waits three times that long, so a request
that is on its way then has twice the lease to arrive; `blobs.remote` gives one up after five seconds."""

DELETED_AT_ONCE = 500
"""Digests in an entry, and deleted before the next one."""

LARGEST_DOCUMENT = 512 << 20
"""Bytes of a manifest, or of another document that is read into memory: a million files with long names."""

_DOCUMENTS = 32_000_000  # bytes of manifests and the like that a handle remembers
_MANIFESTS = 100_000  # files in decoded manifests, likewise
_UNCLEAR = 4  # answers of "unknown whether stored" before the caller is told
_SKEW = timedelta(minutes=5)
T = TypeVar("T")
Decide = Callable[[View, Sealer], Sequence[Event]]


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _new_id() -> str:
    """Return an id that sorts by time: 64 bits of microseconds, 64 random ones, as hex."""
    return f"{time.time_ns() // 1000:016x}{uuid.uuid4().hex[:16]}"


@define
class Core:
    """The parts of an open registry. Clock, ids and randomness are injected, so tests can replay.

    `erasing` is the last entry known to erase texts, `erased` the one up to which all of that is done, as far as
    this handle knows: see `erasure.finish`.
    """

    place: Place
    ledger: Ledger
    registry_id: str
    blobs: BlobStore | None
    actor: str
    host: str
    project: str | None
    read_only: bool
    cache_dir: str | os.PathLike[str] | None = None
    clock: Callable[[], datetime] = _utc_now
    entropy: Callable[[int], bytes] = os.urandom
    new_id: Callable[[], str] = _new_id
    cache_made: Cache | None = field(default=None, repr=False)
    drained: float = field(default=0.0)
    documents: dict[str, bytes] = field(factory=dict, repr=False)
    manifests: dict[str, tuple[File, ...]] = field(factory=dict, repr=False)
    remembered: dict[Path, tuple[object, float]] = field(factory=dict, repr=False)
    noted: dict[tuple[int, str, str | None], float] = field(factory=dict, repr=False)
    set_aside: set[str] = field(factory=set, repr=False)
    """Ids of what lies in the inbox and is no note: this handle does not read it again."""
    erased: int = 0
    erasing: int = 0
    dropped: int = 0
    closed: bool = False
    options: Mapping[str, Any] = field(factory=dict, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.blobs is not None:
            self.blobs.elsewhere = self._elsewhere

    # --- parts ---------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where the registry is, without any secret."""
        return self.place.store.url

    def cache(self) -> Cache:
        """Return the cache of this user, made when first needed."""
        if self.cache_made is None:
            roots = [self.blobs.root] if self.blobs is not None and self.blobs.root else []
            self.cache_made = Cache(self.cache_dir, outside=roots)
        return self.cache_made

    def artifacts(self) -> BlobStore:
        """Return where artifacts are."""
        if self.blobs is None:
            raise Offline(
                f"The artifacts of {shown(self.url, 200)} cannot be reached: this process is offline."
            )
        return self.blobs

    def _elsewhere(self, digest: str) -> Sequence[Reference]:
        """Return where else the bytes of *digest* are, by reference, as the registry's settings allow now.

        Raises:
            NotAllowed: they are named where nothing may be named any more.
        """
        with self.view(probe=False) as view:
            found = view.elsewhere(digest)
            prefixes = tuple(view.settings().get("external") or ()) if found else ()
        good = [(url, version) for url, version in found if _may_be_read(url, prefixes)]
        if found and not good:
            external.check(found[0][0], prefixes)
        return [self.reference(url, version, prefixes) for url, version in good]

    def reference(self, url: str, version: str | None, prefixes: Sequence[str]) -> Reference:
        """Return where bytes are that are kept by reference, below one of *prefixes*."""
        from modelhub_sdk.blobs.elsewhere import Reference

        def leads_on(url: str) -> bool:
            return external.is_allowed(url.split("?")[0], prefixes)

        return Reference(url, version, self.options_of(url), leads_on)

    def options_of(self, url: str) -> Mapping[str, Any]:
        """Return the storage options of this handle where they were meant for *url*, else none.

        They are for the driver of the registry's own journal or artifacts; where neither has one, for the URLs
        that files come from.
        """
        places = (self.url, self.blobs.url if self.blobs is not None else "")
        mine = {place.partition("://")[0] for place in places if "://" in place} - _NO_DRIVER
        return self.options if not mine or url.partition("://")[0] in mine else {}

    # --- reading -------------------------------------------------------------------------------

    @contextmanager
    def view(self, at: int = NOW, *, probe: bool = True) -> Iterator[View]:
        """A consistent view of the state at entry *at*; see `Ledger.reading` for *probe*."""
        if self.closed:
            raise NotAllowed(f"The registry {shown(self.url, 200)} was closed.", hint="Open it again.")
        with self.ledger.reading(probe=probe) as sql, cells():
            yield View(sql, at)

    def writable(self) -> None:
        """Raise NotAllowed when this handle may not write."""
        if self.closed or self.read_only:
            state = "closed" if self.closed else "opened read-only"
            raise NotAllowed(f"The registry {shown(self.url, 200)} was {state}.", hint="Open it for writing.")

    # --- committing ----------------------------------------------------------------------------

    def commit(self, scope: str, decide: Decide) -> Entry | None:
        """Append what *decide* decides, as one entry; None when there was nothing to do.

        Raises:
            Busy: other writers were quicker for `PATIENCE` seconds.
            ClockSkew: this machine's clock is more than five minutes off the store's.
            StoreUnavailable: the store failed; the message says when it is unknown whether it stored.
        """
        self.writable()
        entry_id = self.new_id()
        deadline = time.monotonic() + PATIENCE
        checked: dict[str, int] = {}  # bytes that are there again: digest -> the entry that deleted them
        doubtful: set[int] = set()  # numbers under which our entry may yet appear: the store was slow to say
        unclear = tries = 0
        while True:
            proposed: list[int] = []
            try:
                return self._attempt(entry_id, scope, decide, proposed, doubtful, checked)
            except _Gone as gone:
                self._store_again(gone.digests)
                checked |= gone.digests
                continue
            except _Going as going:
                self.wait_for_deletion(going.digests)
                continue
            except _Condemned as condemned:
                self._spare(condemned.digests)
                continue
            except (SequenceTaken, StoreUnavailable) as error:
                if isinstance(error, CredentialsRefused) or (
                    not proposed and isinstance(error, StoreUnavailable)
                ):
                    raise
                landed = self._landed(proposed[0], entry_id) if proposed else None
                if landed is not None:
                    return codec.decode(landed)
                if isinstance(error, StoreUnavailable):
                    doubtful.add(proposed[0])
                    unclear += 1
                    if unclear >= _UNCLEAR:
                        raise
            tries += 1
            if time.monotonic() > deadline:
                raise Busy(
                    f"Other writers kept {shown(self.url, 200)} busy for {PATIENCE:.0f} s.",
                    hint="Nothing was changed; try again.",
                )
            time.sleep(random.uniform(0, min(0.25, 0.002 * 2 ** min(tries, 8))))

    def _attempt(
        self,
        entry_id: str,
        scope: str,
        decide: Decide,
        proposed: list[int],
        doubtful: set[int],
        checked: Mapping[str, int],
    ) -> Entry | None:
        seal = Sealer(self.entropy)
        with self.ledger.writing() as session:
            view = View(session.sql)
            seq, chain, before = view.head()
            self.check_own(view)
            self.erasing = max(self.erasing, view.last_erasure())
            for old in sorted(doubtful):  # now that these numbers are taken, it is certain by whom
                landed = self._landed(old, entry_id) if old <= seq else None
                if landed is not None:
                    return codec.decode(landed)
            with cells():
                events = tuple(decide(view, seal))
            if not events:
                return None
            if not any(isinstance(event, ev.RegistryThawed) for event in events):
                self.check_frozen(view)
            stored = {digest for event in events for digest in ev.blobs_of(event)}
            events += self._spared(view, stored, checked)
            if inner := self.in_documents(events) - stored:  # the documents themselves are there by now
                events += self._spared(view, inner, checked)
                stored |= inner
            entry = Entry(
                seq=seq + 1,
                id=entry_id,
                scope=scope,
                at=self._time(session.now, before),
                actor=seal(self.actor),
                via=Frozen(sdk=_sdk(), host=seal(self.host)),
                events=events,
                private=Frozen({digest: text for digest, (_, text) in seal.texts.items()}),
            )
            record = codec.encode(entry, seal.texts, chain)
            proposed.append(record.seq)
            session.commit(record, entry)
        if self.blobs is not None:
            self.blobs.settled(stored)
        return entry

    def check_frozen(self, view: View) -> None:
        """Raise NotAllowed if this registry was frozen. Also asked before bytes are stored in vain."""
        frozen = view.frozen()
        if frozen is not None:
            raise NotAllowed(
                f"The registry {shown(self.url, 200)} was frozen by {frozen.by or '(redacted)'} on"
                f" {frozen.at:%Y-%m-%d}: {shown(frozen.reason or '(no reason kept)', 300)[1:-1]}.",
                hint="It may have moved. If this was a mistake: reg.unfreeze(reason).",
            )

    # --- bytes that an entry relies on ---------------------------------------------------------

    def in_documents(self, events: Iterable[Event]) -> set[str]:
        """Return the digests of the blobs that *events* say are stored, in their manifests and other documents."""
        found: set[str] = set()
        for event in events:
            if isinstance(event, (ev.VersionRegistered, ev.DatasetVersionCreated)) and event.document:
                found |= ev.stored_files(event, self.manifest(event.document))
            elif isinstance(event, ev.OutputsIngested) and event.document:
                found |= kept_outputs(event, self.document)
        return found

    @staticmethod
    def _spared(view: View, stored: set[str], checked: Mapping[str, int]) -> tuple[Event, ...]:
        """Return the event that spares condemned bytes; refuse to rely on bytes that were or are being deleted.

        Deleting needs an entry of its own, so what is only condemned as this entry is appended is there.
        """
        known = view.garbage(stored) if stored else {}
        if going := {digest for digest, one in known.items() if one.state == "deleting"}:
            raise _Going(going)
        gone = {digest: one.seq for digest, one in known.items() if one.state == "deleted"}
        if gone := {digest: seq for digest, seq in gone.items() if checked.get(digest) != seq}:
            raise _Gone(gone)
        condemned = tuple(sorted(digest for digest, one in known.items() if one.state == "condemned"))
        if len(condemned) > DELETED_AT_ONCE:
            raise _Condemned(condemned)
        return (ev.BlobsSpared(digests=condemned),) if condemned else ()

    def _store_again(self, digests: Iterable[str]) -> None:
        """Make sure that bytes which were deleted meanwhile are there again."""
        blobs = self.artifacts()

        def store(digest: str, _: object) -> None:
            if not blobs.has(digest) and not blobs.again(digest):
                raise Conflict(
                    f"The bytes {digest} were deleted, as nothing needed them, while they were being registered.",
                    hint="Nothing was changed; call again.",
                )

        each(store, tuple(digests))

    def _spare(self, digests: Iterable[str]) -> None:
        """Spare condemned bytes of which there are too many to do so in the entry that relies on them."""
        for part in batches(digests):

            def decide(view: View, seal: Sealer, part: Sequence[str] = part) -> list[Event]:
                known = view.garbage(part)
                ours = tuple(d for d in part if d in known and known[d].state == "condemned")
                return [ev.BlobsSpared(digests=ours)] if ours else []

            self.commit("registry", decide)

    def wait_for_deletion(self, digests: Iterable[str]) -> None:
        """Wait until bytes are deleted; when their collector is dead, or seems to be, delete them in its place.

        A collector begins to delete something within its lease after it said so, or not at all. Whoever has itself
        watched one entry for three times that long may take over: no delete of the other can come after that. Where
        it is certain that nobody is at it (its process was one of this machine and is dead, or is ours and has given
        up), half a lease is enough, for a request that was on its way. Another's clock says nothing here, so an
        entry's time is not looked at.

        Raises:
            Busy: others delete these bytes again and again.
        """
        digests = tuple(digests)
        begun = time.monotonic()
        collectors = _Collectors()
        pause, fewest = 0.02, len(digests)
        while True:
            with self.view() as view:
                left = {d: one.seq for d, one in view.garbage(digests).items() if one.state == "deleting"}
                dead = collectors.dead(view, left)
            if not left:
                return
            if dead:
                self._take_over(dead)
                continue
            now = time.monotonic()
            if len(left) < fewest:  # it goes on, if slowly
                fewest, begun = len(left), now
            if now - begun > PATIENCE + 3 * DELETING:
                raise Busy(
                    "Others keep deleting bytes that are needed here.", hint="Nothing was changed; try again."
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def _take_over(self, dead: Mapping[str, int]) -> None:
        """Delete what dead collectors left: *dead* are the digests, and the entries that began it.

        With an entry of our own: two who finish for the same collector would else delete beside each other,
        and the slower one what was stored again after the quicker one had said that it is gone.
        """
        for part in batches(dead):
            self.delete(partial(_still_deleting, digests={digest: dead[digest] for digest in part}))

    def delete(self, choose: Callable[[View], Sequence[str]]) -> tuple[str, ...]:
        """Delete the bytes that *choose* names, asked as the entry is appended that says so; return which are gone.

        A process that was stopped after that entry must not delete what was stored again meanwhile, so each attempt
        is bounded by `LEASE`. What a slow store left undone by then goes on with another entry, as long as any goes.
        """
        gone: list[str] = []
        while True:
            with _turn() as begun:
                entry = self._deleting(choose, begun)
                if entry is None:  # nothing to do, or somebody else took over
                    return tuple(gone)
                done, left = self._deleted_in_time(entry, begun)
            gone += done
            if not done or not left:
                return tuple(gone)
            choose = partial(_still_deleting, digests=dict.fromkeys(left, entry.seq))

    def _deleting(self, choose: Callable[[View], Sequence[str]], begun: dict[str, float]) -> Entry | None:
        """Say that bytes are being deleted. In *begun* stands when each attempt began: one of them was appended."""

        def decide(view: View, seal: Sealer) -> list[Event]:
            going = tuple(choose(view))
            if not going:
                return []
            worker = f"{surroundings.process()}:{self.entropy(6).hex()}"
            begun[worker] = since_boot()
            _working[worker] = float("inf")
            return [ev.BlobsDeleting(digests=going, lease=_lease(), worker=worker)]

        return self.commit("registry", decide)

    def _deleted_in_time(self, entry: Entry, begun: Mapping[str, float]) -> tuple[list[str], list[str]]:
        """Delete what *entry* says, as long as it may; return what is gone, and what is left."""
        (event,) = (event for event in entry.events if isinstance(event, ev.BlobsDeleting))
        digests = sorted(set(event.digests))
        end = begun[event.worker or ""] + (event.lease or 0)
        blobs = self.artifacts()

        def delete(digest: str, _: object) -> bool:
            late = False

            def too_late() -> bool:
                nonlocal late
                late = late or since_boot() > end
                return late

            if not too_late():
                blobs.delete(digest, needed=too_late)
            return not late

        went = each(delete, digests)
        done = [digest for digest, gone in zip(digests, went, strict=True) if gone]

        def decide(view: View, seal: Sealer) -> list[Event]:
            ours = _still_deleting(view, dict.fromkeys(done, entry.seq))
            return [ev.BlobsDeleted(digests=ours)] if ours else []

        if done:
            self.commit("registry", decide)
        return done, [digest for digest, gone in zip(digests, went, strict=True) if not gone]

    def check_own(self, view: View) -> None:
        """Raise StoreUnavailable if the journal is not the one that this handle was opened for."""
        found = view.registry()
        if found != self.registry_id:
            what = "another registry lies there now" if found else "its journal is gone"
            raise StoreUnavailable(
                f"This is not the registry {shown(self.url, 200)} that was opened: {what}.",
                hint="Restore it from a backup, or open it again for what is there.",
            )

    def _time(self, store: datetime | None, before: datetime | None) -> datetime:
        """Return the time of a new entry: the store's clock where it has one, never before the last entry's."""
        mine = self.clock()
        if store is not None and abs(mine - store) > _SKEW:
            off = (mine - store).total_seconds()
            raise ClockSkew(
                f"This machine's clock is {off:+.0f} s off that of {shown(self.url, 200)}.",
                hint="Set the clock (ntp), then try again.",
                seconds=off,
            )
        at = store or mine
        return at if before is None else max(at, before)

    def _landed(self, seq: int, entry_id: str) -> Record | None:
        """Return the record at *seq* if it is ours: an answer that was lost is not a failure."""
        pause, end = 0.05, time.monotonic() + 10.0
        for left in range(5, -1, -1):
            try:
                found = next(iter(self.place.store.read(seq - 1, limit=1)), None)
            except StoreUnavailable:
                if not left or time.monotonic() > end:
                    raise StoreUnavailable(
                        f"{shown(self.url, 200)} stopped answering, and it is unknown whether entry {seq} was stored.",
                        hint="Look with reg.audit(limit=1), or repeat the call with the same idempotency_key.",
                    ) from None
                time.sleep(pause)
                pause *= 2
            else:
                return found if found is not None and codec.entry_id(found) == entry_id else None
        return None

    # --- documents -----------------------------------------------------------------------------

    def document(self, digest: str) -> bytes:
        """Return a document, from this handle's memory when it was read before."""
        found = self.documents.get(digest)
        if found is None:
            found = self.artifacts().read(digest, elsewhere=False, at_most=LARGEST_DOCUMENT)
            while self.documents and sum(map(len, self.documents.values())) + len(found) > _DOCUMENTS:
                self.documents.pop(next(iter(self.documents)))
            self.documents[digest] = found
        return found

    def manifest(self, digest: str, source: str = "manifest") -> tuple[File, ...]:
        """Return the files of the manifest that is the document *digest*; those read lately are remembered.

        Raises:
            InvalidDocument: it is no manifest; *source* says whose.
        """
        found = self.manifests.get(digest)
        if found is None:
            found = manifest.decode(self.document(digest), source=source)
            while self.manifests and sum(map(len, self.manifests.values())) + len(found) > _MANIFESTS:
                self.manifests.pop(next(iter(self.manifests)))
            self.manifests[digest] = found
        return found

    def close(self) -> None:
        """Release connections. Safe to call twice."""
        if not self.closed:
            self.closed = True
            self.ledger.close()


class _Gone(Exception):
    """An entry relies on bytes that were deleted: digest -> the entry that deleted them."""

    def __init__(self, digests: dict[str, int]) -> None:
        super().__init__()
        self.digests = digests


class _Going(Exception):
    """An entry relies on bytes that are being deleted."""

    def __init__(self, digests: set[str]) -> None:
        super().__init__()
        self.digests = digests


class _Condemned(Exception):
    """An entry relies on more condemned bytes than it can spare itself."""

    def __init__(self, digests: Sequence[str]) -> None:
        super().__init__()
        self.digests = digests


def batches(digests: Iterable[str]) -> Iterator[list[str]]:
    """Yield *digests*, sorted, so many at a time as fit into an entry."""
    ordered = sorted(digests)
    for start in range(0, len(ordered), DELETED_AT_ONCE):
        yield ordered[start : start + DELETED_AT_ONCE]


def _may_be_read(url: str, prefixes: Sequence[str]) -> bool:
    """Return whether a URL that stands in the journal may be read: what an older release took may not be any more."""
    try:
        return external.is_allowed(url, prefixes)
    except InvalidURI:
        return False


def _still_deleting(view: View, digests: Mapping[str, int]) -> tuple[str, ...]:
    """Return those of *digests* that are still being deleted by the entry that is said of each."""
    known = view.garbage(digests)
    return tuple(
        d for d, seq in digests.items() if d in known and known[d].state == "deleting" and known[d].seq == seq
    )


_working: dict[str, float] = {}
"""The collectors of this process that may be deleting: worker -> until when, by `since_boot`."""


def _lease() -> float:
    return min(LEASE, DELETING)


@contextmanager
def _turn() -> Iterator[dict[str, float]]:
    """Lend a dict for the workers of one turn (worker -> when it began); all of them have ended after the block.

    Ctrl-C leaves threads behind that may delete until the lease ends.
    """
    begun: dict[str, float] = {}
    until: float | None = since_boot() + _lease()
    try:
        yield begun
        until = None
    except Exception:
        until = None
        raise
    finally:
        for worker, at in begun.items():
            if until is None:
                _working.pop(worker, None)
            else:
                _working[worker] = at + _lease()


class _Collectors:
    """What one who waits has seen of the collectors that it waits for."""

    def __init__(self) -> None:
        self._watched: dict[str, tuple[int, float]] = {}  # digest -> the entry that deletes it, since when
        self._entries: dict[int, tuple[float, str | None]] = {}  # entry -> lease, worker
        self._ended: dict[int, float] = {}  # entry -> since when nobody is at it

    def dead(self, view: View, left: Mapping[str, int]) -> dict[str, int]:
        """Return those of *left* (digest -> the entry that deletes it) of which no delete can come any more."""
        now = time.monotonic()
        watched = self._watched
        self._watched = {
            digest: watched[digest] if digest in watched and watched[digest][0] == seq else (seq, now)
            for digest, seq in left.items()
        }
        return {
            digest: seq for digest, (seq, since) in self._watched.items() if self._is_over(view, seq, since)
        }

    def _is_over(self, view: View, seq: int, since: float) -> bool:
        if seq not in self._entries:
            self._entries[seq] = self._collector(view, seq)
        lease, worker = self._entries[seq]
        now = time.monotonic()
        if worker is not None and seq not in self._ended and _has_ended(worker):
            self._ended[seq] = now
        return now - since > 3 * lease or (seq in self._ended and now - self._ended[seq] > lease / 2)

    @staticmethod
    def _collector(view: View, seq: int) -> tuple[float, str | None]:
        event = view.deleting(seq)
        if event is None or event.lease is None or not 0 < event.lease <= DELETING:
            return DELETING, None
        return event.lease, event.worker


def _has_ended(worker: str) -> bool:
    """Return whether a collector certainly deletes nothing any more: its process is dead, or ours and has given up."""
    process, _, _ = worker.rpartition(":")
    if process == surroundings.process():
        return _working.get(worker, 0.0) < since_boot()
    return surroundings.is_dead(process)


def since_boot() -> float:
    """Return seconds on a clock that never goes back, and that goes on while the machine sleeps where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _sdk() -> str:
    from modelhub_sdk import __version__

    return f"modelhub_sdk {__version__}"


# --- opening ------------------------------------------------------------------------------------------


def opened(
    url: str | os.PathLike[str] | None,
    *,
    artifacts: str | os.PathLike[str] | None,
    user: str | None,
    project: str | None,
    cache_dir: str | os.PathLike[str] | None,
    read_only: bool,
    create: bool | None,
    storage_options: Mapping[str, Any] | None,
) -> Core:
    """Return the parts of the registry at *url*, made first where that is allowed. See `Registry.open`.

    What opening a registry is told may hold passwords, so no error of ours keeps the frames below.
    """
    url, artifacts = hidden_place(url), hidden_place(artifacts)
    storage_options = HiddenOptions(storage_options)

    def work() -> Core:
        return _opened(
            url,
            artifacts=artifacts,
            user=user,
            project=project,
            cache_dir=cache_dir,
            read_only=read_only,
            create=create,
            storage_options=storage_options,
        )

    return shielded(work, ModelHubError)


def _opened(
    url: str | os.PathLike[str] | None,
    *,
    artifacts: str | os.PathLike[str] | None,
    user: str | None,
    project: str | None,
    cache_dir: str | os.PathLike[str] | None,
    read_only: bool,
    create: bool | None,
    storage_options: Mapping[str, Any],
) -> Core:
    if url is None:
        url = hidden(surroundings.setting("REGISTRY"))
    if url is None:
        folder = surroundings.data_dir()
        url = f"sqlite:///{folder / 'models.db'}"
    actor = surroundings.user(user)
    project = project if project is not None else surroundings.setting("PROJECT")
    if project is not None:
        from modelhub_sdk.domain.names import check_name

        project = check_name(project, "project")
    options = HiddenOptions(storage_options)
    place = connect(url, read_only=read_only, options=options)
    stated = hidden_place(
        artifacts if artifacts is not None else (place.stated or surroundings.setting("ARTIFACTS"))
    )
    wanted = None if stated is None else artifacts_url(stated)
    host = surroundings.host()
    common: Any = {"actor": actor, "host": host, "project": project, "read_only": read_only}
    try:
        if surroundings.flag("OFFLINE"):
            raise Offline(f"MODELHUB_OFFLINE is set, and this needs {shown(place.store.url, 200)}.")
        first = _first(place, create=create, read_only=read_only, artifacts=wanted, actor=actor, host=host)
        born = codec.decode(first).events[0]
        if not isinstance(born, ev.RegistryCreated):
            raise InvalidDocument(
                f"Entry 1 of the journal of {shown(place.store.url, 200)} is not the creation of a registry.",
                hint="Restore the journal from a backup.",
            )
        where = born.artifacts or place.artifacts
        copied = wanted if wanted is not None else place.artifacts
        if copied is not None and copied != where:
            whose = _copy_at(copied, born.id, options)
            named = place.store.url.startswith(
                "postgresql:"
            )  # a server has more than one name: that tells nothing
            mine = named or whose == journal_of(place)
            if whose and copied != place.artifacts and not mine and not read_only:
                raise Conflict(
                    f"In {shown(copied, 200)} are the artifacts of {shown(whose, 200)}, a copy of this registry: two"
                    " that share them would delete each other's bytes.",
                    hint="Leave artifacts= (and MODELHUB_ARTIFACTS) away; or, if that is this registry under another"
                    f" name, replace the content of the file 'copy' by {shown(journal_of(place), 200)}, in the folder"
                    f" {born.id} there.",
                )
            if whose is not None:
                where = copied  # this journal was copied here, and its bytes too
        if wanted is not None and wanted != where:
            raise Conflict(
                f"This registry keeps its artifacts in {shown(born.artifacts or place.artifacts, 200)},"
                f" and {shown(wanted, 200)} was asked for.",
                hint="Leave artifacts= (and MODELHUB_ARTIFACTS) away; the registry knows.",
            )
        if where is None:
            raise InvalidName(
                f"The registry at {shown(place.store.url, 200)} is a copy, and does not say where its artifacts are.",
                hint="Pass the artifacts= that it was copied with, or set MODELHUB_ARTIFACTS.",
            )
        blobs = BlobStore(
            where, registry_id=born.id, storage_options=options_for(where, options), read_only=read_only
        )
        core = Core(
            place=place,
            ledger=_ledger(place, born.id, read_only, cache_dir),
            registry_id=born.id,
            blobs=blobs,
            cache_dir=cache_dir,
            options=options,
            **common,
        )
    except (StoreUnavailable, Offline, NotFound) as error:
        making = isinstance(error, NotFound) and create is not False and not read_only
        if making or isinstance(error, CredentialsRefused):
            place.store.close()
            raise
        core = Core(
            place=place,
            ledger=_Unreachable(place, error),
            registry_id="",
            blobs=None,
            cache_dir=cache_dir,
            **common,
        )
        if not _has_pins(core):
            place.store.close()
            raise
        level = logging.INFO if isinstance(error, Offline) else logging.WARNING  # it was asked for
        log.log(level, "%s Only versions that are in the cache can be resolved.", error.message)
    except BaseException:
        place.store.close()
        raise
    if core.blobs is not None:
        try:
            core.cache()  # a cache inside the artifacts is refused now, not in the middle of a resolve
        except BaseException:
            core.close()
            raise
    return core


def _copy_at(where: str, registry_id: str, options: Mapping[str, Any]) -> str | None:
    """Return the copy that keeps its artifacts there (`BlobStore.marked_for`); a place that we may not see is none."""
    blobs = BlobStore(where, registry_id=registry_id, storage_options=options_for(where, options))
    try:
        return blobs.marked_for()
    except CredentialsRefused:
        return None


def journal_of(place: Place) -> str:
    """Return where a journal is, by the same name however it was reached, and without the name of a user."""
    if not place.own:
        return without_secrets(place.store.url)
    return f"{place.store.url.partition('://')[0]}://{os.path.realpath(place.own[0])}"


def pins_folder(core: Core) -> Path:
    """Return where the cache remembers what names of this registry meant."""
    return Path(core.cache().path) / "pins" / hashlib.sha256(core.url.encode()).hexdigest()[:32]


def _has_pins(core: Core) -> bool:
    """Return whether anything was ever resolved from this registry into this cache."""
    with suppress(ModelHubError, OSError):
        return core.cache().note(pins_folder(core)).is_dir()
    return False


def artifacts_url(given: str | os.PathLike[str]) -> str:
    """Return where artifacts are asked to be. What was given may hold a secret, so no error quotes it."""
    from modelhub_sdk.blobs.store import local_path

    text = os.fsdecode(given) if isinstance(given, (str, os.PathLike)) else ""
    if not text.strip() or any(ord(c) < 32 for c in text):
        raise InvalidName("artifacts= names no place.", hint="Pass a folder or an fsspec URL.")
    found = local_path(text)
    if found is not None:
        return found
    scheme, _, rest = text.partition("://")
    account = "@" in rest and scheme not in ("abfs", "abfss", "az")
    if "::" in text or account or "?" in rest or "#" in rest or ":" in rest.partition("/")[0]:
        raise InvalidURI(
            "artifacts= must be a plain URL: a bucket, and maybe a prefix.",
            hint="Keys belong into the environment of the driver, or into storage_options=.",
        )
    from fsspec.registry import known_implementations

    if scheme not in known_implementations:
        raise InvalidURI(
            f"artifacts= cannot be on {shown(scheme)}://.", hint="Pass a folder or an fsspec URL."
        )
    return text.rstrip("/")


_NO_DRIVER = frozenset({"sqlite", "postgresql", "memory", "file"})


def options_for(where: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options for the driver of an artifact store: none for a folder."""
    return {} if "://" not in where else options


def _first(
    place: Place, *, create: bool | None, read_only: bool, artifacts: str | None, actor: str, host: str
) -> Record:
    """Return the journal's first record, made now where that is allowed. Many may do this at once."""
    from modelhub_sdk.stores.sql import SqliteStore, SqlStore

    store = place.store
    url = shown(store.url, 200)
    may = not read_only and (create is True or (create is None and place.local))
    missing = NotFound(
        f"There is no registry at {url}.",
        hint="Check the URL"
        + (
            ", or make one there: hub.open(url, create=True)."
            if not read_only
            else "; it was opened read-only."
        ),
    )
    if isinstance(store, SqliteStore) and not store.path.exists():
        if not may:
            raise missing
        with suppress(OSError):
            store.path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(store, SqlStore):
        journal, index = store.has_tables()
        if not journal and not may:
            raise missing
        if not read_only and not (journal and index):
            try:
                store.create_tables()
            except NotAllowed:
                if not journal:
                    raise
                # Whoever may only read finds an index of its own where the shared one is not whole.
    found = next(iter(store.read(0, limit=1)), None)
    if found is not None:
        return found
    check_gaps(store)  # a journal that lost its first entry is not begun anew
    if not may:
        raise missing
    try:
        _check_folder(store.url, create)
    except NotFound:
        found = next(iter(store.read(0, limit=1)), None)  # somebody may have made it since we looked
        if found is None:
            raise
        return found
    if artifacts is None and place.artifacts is None:
        raise InvalidName(
            f"A new registry at {url} must be told where its artifacts go.",
            hint="hub.open(url, artifacts='s3://bucket/models', create=True), or set MODELHUB_ARTIFACTS.",
        )
    seal = Sealer(os.urandom)
    own = None if artifacts == place.artifacts else artifacts
    entry = Entry(
        seq=1,
        id=_new_id(),
        scope="registry",
        at=store.now() or _utc_now(),
        actor=seal(actor),
        via=Frozen(sdk=_sdk(), host=seal(host)),
        events=(ev.RegistryCreated(id=uuid.uuid4().hex, artifacts=own),),
    )
    record = codec.encode(entry, seal.texts, codec.GENESIS)
    for left in range(_UNCLEAR, -1, -1):
        try:
            store.append(record)
        except SequenceTaken:
            pass  # somebody else made it: theirs is the registry
        except StoreUnavailable:
            if not left:
                raise
            time.sleep(0.1)
        found = next(iter(store.read(0, limit=1)), None)
        if found is not None:
            break
    if found is None:
        raise StoreUnavailable(f"{url} took the first entry and does not give it back.")
    if codec.entry_id(found) == entry.id:
        log.info("made a new registry at %s", store.url)
    return found


def _check_folder(url: str, create: bool | None) -> None:
    """Refuse to make a registry amid other files by mistake."""
    if create is True or not url.startswith("file://"):
        return
    with suppress(OSError):
        others = [
            name
            for name in os.listdir(url.removeprefix("file://"))
            if name not in ("journal", "inbox", "packs", "checkpoints", "erased", "finished", "tmp")
        ]
        if others:
            raise NotFound(
                f"The folder {shown(url.removeprefix('file://'), 200)} holds other things"
                f" ({shown(min(others))}, ...), and no registry.",
                hint="To make one there nevertheless: hub.open(folder, create=True).",
            )


def _ledger(
    place: Place, registry_id: str, read_only: bool, cache_dir: str | os.PathLike[str] | None
) -> Ledger:
    from modelhub_sdk.stores.sql import SharedLedger, SqlStore

    store = place.store
    if isinstance(store, SqlStore) and (not read_only or store.has_tables()[1]):
        return SharedLedger(store)
    from modelhub_sdk.stores.private import PrivateLedger, index_path

    in_memory = store.url.startswith("memory://")
    return PrivateLedger(store, None if in_memory else index_path(cache_dir, registry_id, store.url))


class _Unreachable:
    """The ledger of a registry that could not be reached: every question says why."""

    def __init__(self, place: Place, error: ModelHubError) -> None:
        self.store = place.store
        self._error = error

    def _offline(self) -> Offline:
        return Offline(
            self._error.message,
            hint="Versions in the cache resolve by number (v3) or digest; moving names need stale_ok=.",
        )

    def reading(self, *, probe: bool = True, trusting: bool = False) -> Any:
        """Raise Offline."""
        raise self._offline()

    def writing(self) -> Any:
        """Raise Offline."""
        raise self._offline()

    def erased(self, *, patient: bool = True) -> bool:
        """Raise Offline."""
        raise self._offline()

    def rebuild(self) -> None:
        """Raise Offline."""
        raise self._offline()

    def damage(self) -> Any:
        """Raise Offline."""
        raise self._offline()

    def close(self) -> None:
        """Close the store."""
        with suppress(Exception):
            self.store.close()


__all__ = [
    "DELETED_AT_ONCE",
    "DELETING",
    "LEASE",
    "Core",
    "artifacts_url",
    "batches",
    "opened",
    "options_for",
    "pins_folder",
    "since_boot",
]
