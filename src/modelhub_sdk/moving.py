"""Copying a registry to another place, entry by entry, and freezing the old one.

The copy has the same entries with the same digests: ids, versions, audit and seals stay what they are.
Bytes go before the entries that name them, so a copy that was interrupted is a shorter registry, and the
next call goes on. What an entry erases or deletes is gone there before that entry is. Where a copy keeps its
artifacts is told by a mark beside them (`BlobStore.mark`), since its first entry, like all others, is that of
the original; the mark says whose they are, so that no two share them.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from attrs import evolve

from modelhub_sdk import garbage
from modelhub_sdk.blobs import disk
from modelhub_sdk.blobs import progress as bars
from modelhub_sdk.blobs.parallel import each
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.core import Core, artifacts_url, journal_of, options_for
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain.entities import CopyReport, File
from modelhub_sdk.erasure import forget_notes
from modelhub_sdk.errors import Conflict, InvalidName, ModelHubError, NotFound, StoreUnavailable, shown
from modelhub_sdk.formats import codec
from modelhub_sdk.hidden import HiddenOptions
from modelhub_sdk.ports import Record, RemembersErasures, SequenceTaken
from modelhub_sdk.stores.ledger import check_chain, check_gaps
from modelhub_sdk.stores.opening import Place, connect
from modelhub_sdk.uses import waiting

_BATCH = 500  # entries whose bytes are looked after together
_NOTES = 1000
_SLACK = 300.0  # seconds by which the clock of a disk may differ from ours
_WITH_FILES = (ev.VersionRegistered, ev.DatasetVersionCreated)


def copy(
    core: Core,
    other: str | os.PathLike[str],
    *,
    artifacts: str | os.PathLike[str] | None,
    storage_options: Mapping[str, Any] | None,
    progress: bool | None,
) -> CopyReport:
    """Bring *other* up to this registry; see `Registry.copy_to`."""
    options = HiddenOptions(storage_options)
    place = connect(other, read_only=False, options=options)
    try:
        stated = artifacts if artifacts is not None else place.stated
        where = place.artifacts if stated is None else artifacts_url(stated)
        if where is None:
            raise InvalidName(
                f"A copy at {shown(place.store.url, 200)} must be told where its artifacts go.",
                hint="Pass artifacts='s3://bucket/models', and the same whenever the copy is opened.",
            )
        blobs = BlobStore(where, registry_id=core.registry_id, storage_options=options_for(where, options))
        return _copy(core, place, blobs, progress)
    finally:
        place.store.close()


def copy_into(
    core: Core, other: Core, *, artifacts: str | os.PathLike[str] | None, progress: bool | None
) -> CopyReport:
    """Bring an open copy up to this registry, through its own handle."""
    _check_same(core, other)
    other.writable()
    blobs = other.artifacts()
    if artifacts is not None and artifacts_url(artifacts) != blobs.url:
        raise Conflict(
            f"The copy that is open keeps its artifacts in {shown(blobs.url, 200)}.",
            hint="Leave artifacts= away: an open registry knows.",
        )
    return _copy(core, other.place, blobs, progress)


def _copy(core: Core, place: Place, blobs: BlobStore, progress: bool | None) -> CopyReport:
    begun = time.monotonic()
    if journal_of(place) == journal_of(core.place) or _one_place(blobs, core.artifacts()):
        raise Conflict("A registry cannot be copied onto itself.", hint="Name another place.")
    last = _end(core)
    there = _common(core, place)
    _claim(place, blobs, there)
    report = _copied(core, place, blobs, there, last, progress)
    for notes in _notes(core):
        place.store.note(notes)
    return CopyReport(
        url=place.store.url, artifacts=blobs.url, seconds=round(time.monotonic() - begun, 3), **report
    )


def _one_place(one: BlobStore, other: BlobStore) -> bool:
    """Return whether two stores are one: then two registries would delete each other's bytes."""
    if one.root is None or other.root is None:
        return one.root is other.root and _bucket(one.place) == _bucket(other.place)
    with suppress(OSError):
        if os.path.samefile(one.root, other.root):
            return True
    return os.path.realpath(one.root) == os.path.realpath(other.root)


def _bucket(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{ {'s3a': 's3', 'gcs': 'gs'}.get(scheme, scheme) }://{rest.strip('/')}"


def _claim(place: Place, blobs: BlobStore, there: int) -> None:
    """Mark the store as that of this copy, which has *there* entries already.

    Raises:
        Conflict: it is, or may be, that of the original or of another copy.
    """
    mine = journal_of(place)
    whose = blobs.marked_for()
    if whose is None and any(True for _ in blobs.digests()):
        whose = blobs.marked_for()  # another process may have begun with this very copy
        if whose is None and not (there and blobs.url == place.artifacts):
            raise _taken(blobs, mine, "another registry, or another copy of this one")
    if whose is None:
        whose = blobs.mark(mine)
    if whose != mine and (whose or not there):  # old marks do not say whose they are
        raise _taken(blobs, mine, f"the copy {shown(whose, 200)}" if whose else "a copy, unknown which")


def _taken(blobs: BlobStore, mine: str, whose: str) -> Conflict:
    return Conflict(
        f"In {shown(blobs.url, 200)} are the artifacts of {whose}: two that share them would delete each other's"
        " bytes.",
        hint=f"Pass other artifacts=. Or, if that is this very copy under another name, replace the"
        f" content of the file 'copy' by {shown(mine, 200)}, in the folder {shown(blobs.registry_id)} there.",
    )


def _end(core: Core) -> int:
    """Return the entry up to which is copied: not the one that froze this registry, so that the copy is not frozen."""
    with core.view() as view:
        head, frozen = view.head()[0], view.frozen()
    return head - 1 if frozen is not None and frozen.seq == head else head


def _common(core: Core, place: Place) -> int:
    """Return how many entries *place* has, all of them ours.

    Raises:
        Conflict: it has others.
        InvalidDocument: one of the two journals has a gap.
    """
    from modelhub_sdk.stores.sql import SqlStore

    store = place.store
    if isinstance(store, SqlStore):
        path = getattr(store, "path", None)
        if path is not None:
            disk.make_dirs(os.fspath(path.parent))
        store.create_tables()
    check_gaps(core.place.store)
    check_gaps(store)
    first = next(iter(store.read(0, limit=1)), None)
    if first is None:
        return 0
    mine = next(iter(core.place.store.read(0, limit=1)), None)
    if mine is None or first.chain != mine.chain:
        raise Conflict(
            f"At {shown(store.url, 200)} is another registry.",
            hint="Copy to a place where there is none yet (do not open it before), or to an earlier copy.",
        )
    there, before = 1, first
    check_chain((0, codec.GENESIS), [first])
    ours = iter(core.place.store.read(1))
    for record in store.read(1):
        check_chain((before.seq, before.chain), [record])
        before = record
        own = next(ours, None)
        if own is None or own.chain != record.chain:
            raise Conflict(
                f"{shown(store.url, 200)} went its own way from entry {record.seq} on: it is no mere copy any more.",
                hint="Copy to another place.",
            )
        there = record.seq
    return there


def _copied(
    core: Core, place: Place, blobs: BlobStore, there: int, last: int, progress: bool | None
) -> dict[str, int]:
    have = dict(core.artifacts().digests())
    got = dict(blobs.digests())
    with core.view() as view:
        redacted = view.all_redacted()  # by the journal: what is to be erased may still stand in the store
    counts = {"entries": 0, "blobs": 0, "bytes": 0, "missing": 0}
    healed = _healed(core, place, blobs, have, got, progress) if there else []
    counts["blobs"] += len(healed)
    counts["bytes"] += sum(have[digest] for digest in healed)
    lost: set[str] = set()
    sound = set(healed)  # bytes in the copy that need no look any more
    erased = False
    total = sum(size for digest, size in have.items() if digest not in got)
    with bars.bar(total, f"copying to {place.store.url}", show=progress) as step:
        for part in _parts(core, there, last):
            named = {digest for _, entry in part for event in entry.events for digest in ev.blobs_of(event)}
            for _, entry in part:
                for event in entry.events:
                    if isinstance(event, _WITH_FILES) and event.document in have:
                        named |= ev.stored_files(event, core.manifest(event.document))
            _doubt(blobs, named - set(sound), have, got)
            sound |= named
            sent = _sent(core, blobs, named, have, got, step)
            counts["blobs"] += len(sent)
            counts["bytes"] += sum(have[digest] for digest in sent)
            lost |= named - set(have)
            for record, entry in part:
                erased |= _erase(core, place, entry, there, redacted)
                _delete(place, blobs, entry, got)
                _append(place, _without(record, redacted))
                counts["entries"] += 1
    _settle(core, place, max(there, last), wipe=erased)
    if lost:
        with core.view() as view:
            counts["missing"] = len(garbage.needed(core, view, lost, unknown=set()) - view.external())
    return counts


def _healed(
    core: Core,
    place: Place,
    blobs: BlobStore,
    have: dict[str, int],
    got: dict[str, int],
    progress: bool | None,
) -> list[str]:
    """Store again what is damaged or missing in an earlier copy; return which digests.

    The listing tells what is missing or has another size. On a disk, what was touched since this user last looked is
    read: a copy that is brought up to date each night is not read as a whole each night.
    """
    begun = time.time()
    note = (
        Path(core.cache().path)
        / "checked"
        / hashlib.sha256(f"{core.registry_id} {journal_of(place)}".encode()).hexdigest()
    )
    since = 0.0
    with suppress(OSError, ValueError):
        since = float(core.cache().note(note).read_bytes()) - _SLACK
    touched = [
        digest
        for digest, size in got.items()
        if have.get(digest) == size and (blobs.changed_at(digest) or 0.0) > since
    ]
    with bars.bar(sum(got[digest] for digest in touched), "checking the copy", show=progress) as step:

        def is_wrong(digest: str, advance: Any) -> bool:
            return blobs.verify(digest, got[digest], progress=advance) is not None

        wrong = {
            digest
            for digest, is_damaged in zip(touched, each(is_wrong, touched, step), strict=True)
            if is_damaged
        }
    wrong |= {digest for digest, size in got.items() if have.get(digest, size) != size}
    absent = set(have) - set(got)
    if absent:
        with core.view() as view:
            wrong |= garbage.needed(core, view, absent, unknown=set())
    for digest in wrong:
        got.pop(digest, None)
    healed = _sent(core, blobs, wrong, have, got, None)
    with suppress(ModelHubError):
        core.cache().keep(note, str(begun).encode())
    return healed


def _parts(core: Core, after: int, last: int) -> Iterator[list[tuple[Record, ev.Entry]]]:
    """Yield the entries to copy; those whose bytes are looked after together end where bytes were deleted."""
    for records in _batches(core, after, last):
        part: list[tuple[Record, ev.Entry]] = []
        for record in records:
            entry = codec.decode(record)
            part.append((record, entry))
            if any(isinstance(event, ev.BlobsDeleted) for event in entry.events):
                yield part
                part = []
        if part:
            yield part


def _batches(core: Core, after: int, last: int) -> Iterator[list[Record]]:
    store = core.place.store
    previous = next(iter(store.read(after - 1, limit=1)), None) if after else None
    chain = codec.GENESIS if previous is None else previous.chain
    while after < last:
        records = list(store.read(after, limit=min(_BATCH, last - after)))
        if not records:
            raise StoreUnavailable(f"The journal of {shown(core.url, 200)} ends before entry {after + 1}.")
        check_chain((after, chain), records)
        yield records
        after, chain = records[-1].seq, records[-1].chain


def _sent(
    core: Core, blobs: BlobStore, named: set[str], have: dict[str, int], got: dict[str, int], step: Any
) -> list[str]:
    """Store there what is *named*, as far as the copy has not *got* it; return what that was.

    What was deleted here meanwhile leaves *have*: somebody purged it, and the next copy hears of it.
    """
    source = core.artifacts()
    while True:
        wanted = sorted(digest for digest in named if digest in have and got.get(digest) != have[digest])
        try:
            _send(source, blobs, wanted, have, step)
        except NotFound:
            gone = set(have) - {digest for digest, _ in source.digests()}
            if gone.isdisjoint(wanted):
                raise
            for digest in gone:
                del have[digest]
        else:
            got.update((digest, have[digest]) for digest in wanted)
            return wanted


def _doubt(blobs: BlobStore, named: set[str], have: Mapping[str, int], got: dict[str, int]) -> None:
    """Forget of what the copy has *got* those bytes that new entries rely on and that are not right."""
    there = [digest for digest in sorted(named) if digest in got and got[digest] == have.get(digest)]
    for digest, sound in zip(there, each(lambda one, _: blobs.is_sound(one, got[one]), there), strict=True):
        if not sound:
            del got[digest]


def _send(
    source: BlobStore, target: BlobStore, digests: Sequence[str], sizes: Mapping[str, int], step: Any
) -> None:
    """Store blobs there that are here, several at once; each is read as what it is called or not at all."""
    files = [File(digest, sizes[digest], digest) for digest in digests]
    target.put_known([(file, source.source(file)) for file in files], progress=step)
    target.settled(digests)


def _delete(place: Place, blobs: BlobStore, entry: ev.Entry, got: dict[str, int]) -> None:
    """Delete there what *entry*, which is appended next, says was deleted here.

    Nothing in the journal needs it: between an entry that says that bytes are being deleted and the one that says
    that they are gone, none can rely on them. Whatever does so later has them sent again. When the entry is there
    already, another copier was quicker, and may have sent them again.
    """
    gone = [
        digest
        for event in entry.events
        if isinstance(event, ev.BlobsDeleted)
        for digest in event.digests
        if digest in got
    ]
    if gone and next(iter(place.store.read(entry.seq - 1, limit=1)), None) is None:
        each(lambda digest, _: blobs.delete(digest), gone)
    for digest in gone:
        got.pop(digest, None)


def _append(place: Place, record: Record) -> None:
    try:
        place.store.append(record)
    except SequenceTaken:
        found = next(iter(place.store.read(record.seq - 1, limit=1)), None)
        if found is None or found.chain != record.chain:  # else: another copier, or an answer that was lost
            raise Conflict(
                f"Somebody else writes to {shown(place.store.url, 200)}: entry {record.seq} is another there.",
                hint="Let nobody write to a copy before it is complete.",
            ) from None


def _without(record: Record, redacted: Mapping[int, set[str]]) -> Record:
    """Return *record* without the texts that were redacted, whether they were erased here yet or not."""
    gone = redacted.get(record.seq)
    return evolve(record, private=codec.without(record, gone)) if gone else record


def _erase(core: Core, place: Place, entry: ev.Entry, there: int, redacted: Mapping[int, set[str]]) -> bool:
    """Erase there what *entry*, which is appended next, redacts in the *there* entries copied before; return if it did."""
    seqs = {seq for event in entry.events for seq, _ in ev.erased_by(event)}
    for seq in sorted(seqs):
        record = next(iter(core.place.store.read(seq - 1, limit=1)), None)
        if record is not None and seq <= there:
            place.store.erase(seq, _without(record, redacted).private)
    return any(seq <= there for seq in seqs)


def _settle(core: Core, place: Place, last: int, *, wipe: bool) -> None:
    """Finish what the first *last* entries erase there, now that no entry has it any more."""
    with core.view(last) as view:
        erasing = view.last_erasure()
    store = place.store
    if isinstance(store, RemembersErasures):
        # Also what an earlier copier did not come to, because it was killed.
        wipe = wipe or (erasing > 0 and store.erased_until() < erasing)
    if not wipe:
        return
    with core.view(last) as view:
        forget_notes(store, view.forgotten_uses(0))
    _wipe(place)
    if isinstance(store, RemembersErasures):
        store.confirm_erased(erasing)


def _wipe(place: Place) -> None:
    """Leave nothing of what was erased there in the index beside the journal, nor in the log of a database."""
    from modelhub_sdk.stores.sql import SharedLedger, SqlStore

    if isinstance(place.store, SqlStore):
        ledger = SharedLedger(place.store)
        with ledger.reading():  # which brings the index up to date
            pass
        ledger.erased()


def _notes(core: Core) -> Iterator[list[Any]]:
    """Yield what waits in the inbox, some at a time: no use is lost by a move. What is no note stays behind."""
    notes = (note for note, _ in waiting(core))
    while page := list(islice(notes, _NOTES)):
        yield page


def _check_same(core: Core, other: Core) -> None:
    """Make sure that an open registry is a copy of this one.

    Raises:
        Conflict: it is another registry.
        NotFound: it cannot be reached.
    """
    if not other.registry_id:
        raise NotFound(f"{shown(other.url, 200)} cannot be reached.", hint="Try again when it can.")
    if other.registry_id != core.registry_id:
        raise Conflict(
            f"{shown(other.url, 200)} is another registry.",
            hint="Pass the URL of a place where there is none yet, or an earlier copy.",
        )


__all__ = ["copy", "copy_into"]
