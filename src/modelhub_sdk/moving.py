"""Copying a registry to another place, entry by entry, and freezing the old one.

The copy has the same entries with the same digests: ids, versions, audit and seals stay what they are.
Bytes go before the entries that name them, so a copy that was interrupted is a shorter registry, and the
next call goes on. Where a copy keeps its artifacts is told by a mark beside them (`BlobStore.mark`), since
its first entry, like all others, is that of the original.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelhub_sdk import garbage
from modelhub_sdk.blobs import disk
from modelhub_sdk.blobs import progress as bars
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.core import Core, artifacts_url, options_for
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain.entities import CopyReport, File
from modelhub_sdk.errors import Conflict, InvalidName, NotFound, StoreUnavailable, shown
from modelhub_sdk.formats import codec
from modelhub_sdk.ports import Record, SequenceTaken
from modelhub_sdk.stores.opening import Place, connect

_BATCH = 500  # entries whose bytes are looked after together
_NOTES = 1000
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
    begun = time.monotonic()
    options = dict(storage_options or {})
    place = connect(other, read_only=False, options=options)
    try:
        stated = artifacts if artifacts is not None else place.stated
        where = place.artifacts if stated is None else artifacts_url(stated)
        if where is None:
            raise InvalidName(
                f"A copy at {shown(place.store.url, 200)} must be told where its artifacts go.",
                hint="Pass artifacts='s3://bucket/models', and the same whenever the copy is opened.",
            )
        if place.store.url == core.url or where == core.artifacts().url:
            raise Conflict("A registry cannot be copied onto itself.", hint="Name another place.")
        blobs = BlobStore(where, registry_id=core.registry_id, storage_options=options_for(where, options))
        last = _end(core)
        there = _common(core, place)
        report = _copied(core, place, blobs, there, last, progress)
        for notes in _notes(core):
            place.store.note(notes)
        return CopyReport(
            url=place.store.url, artifacts=blobs.url, seconds=round(time.monotonic() - begun, 3), **report
        )
    finally:
        place.store.close()


def _end(core: Core) -> int:
    """Return the entry up to which is copied: not the one that froze this registry, so that the copy is not frozen."""
    with core.view() as view:
        head, frozen = view.head()[0], view.frozen()
    return head - 1 if frozen is not None and frozen.seq == head else head


def _common(core: Core, place: Place) -> int:
    """Return how many entries *place* has, all of them ours.

    Raises:
        Conflict: it has others.
    """
    from modelhub_sdk.stores.sql import SqlStore

    store = place.store
    if isinstance(store, SqlStore):
        path = getattr(store, "path", None)
        if path is not None:
            disk.make_dirs(os.fspath(path.parent))
        store.create_tables()
    first = next(iter(store.read(0, limit=1)), None)
    if first is None:
        return 0
    mine = next(iter(core.place.store.read(0, limit=1)), None)
    if mine is None or first.chain != mine.chain:
        raise Conflict(
            f"At {shown(store.url, 200)} is another registry.",
            hint="Copy to a place where there is none yet (do not open it before), or to an earlier copy.",
        )
    there = 1
    ours = iter(core.place.store.read(1))
    for record in store.read(1):
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
    source = core.artifacts()
    have = dict(source.digests())
    got = dict(blobs.digests())
    blobs.mark()
    counts = {"entries": 0, "blobs": 0, "bytes": 0, "missing": 0}
    total = sum(size for digest, size in have.items() if digest not in got)
    with bars.bar(total, f"copying to {place.store.url}", show=progress) as step:
        for records in _batches(core, there, last):
            entries = [codec.decode(record) for record in records]
            named = {digest for entry in entries for event in entry.events for digest in ev.blobs_of(event)}
            for entry in entries:
                for event in entry.events:
                    if isinstance(event, _WITH_FILES) and event.document in have:
                        named |= ev.stored_files(event, core.manifest(event.document))
            wanted = sorted(digest for digest in named if digest in have and got.get(digest) != have[digest])
            _send(source, blobs, wanted, have, step)
            got |= {digest: have[digest] for digest in wanted}
            counts["blobs"] += len(wanted)
            counts["bytes"] += sum(have[digest] for digest in wanted)
            lost = named - set(have)
            if lost:
                with core.view() as view:
                    counts["missing"] += len(garbage.needed(core, view, lost) - view.external())
            for record, entry in zip(records, entries, strict=True):
                _append(place, record)
                _erase(core, place, entry)
                counts["entries"] += 1
    return counts


def _batches(core: Core, after: int, last: int) -> Iterator[list[Record]]:
    while after < last:
        records = list(core.place.store.read(after, limit=min(_BATCH, last - after)))
        if not records:
            raise StoreUnavailable(f"The journal of {shown(core.url, 200)} ends before entry {after + 1}.")
        yield records
        after = records[-1].seq


def _send(
    source: BlobStore, target: BlobStore, digests: Sequence[str], sizes: Mapping[str, int], step: Any
) -> None:
    """Store blobs there that are here, several at once; each is read as what it is called or not at all."""
    files = [File(digest, sizes[digest], digest) for digest in digests]
    target.put_known([(file, source.source(file)) for file in files], progress=step)
    target.settled(digests)


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


def _erase(core: Core, place: Place, entry: ev.Entry) -> None:
    """Erase there what was erased here since it was copied."""
    seqs = {seq for event in entry.events if isinstance(event, ev.Redacted) for seq, _ in event.items}
    for seq in sorted(seqs):
        record = next(iter(core.place.store.read(seq - 1, limit=1)), None)
        if record is not None:
            place.store.erase(seq, record.private)


def _notes(core: Core) -> Iterator[list[Any]]:
    """Yield what waits in the inbox: no use is lost by a move."""
    after = ""
    while notes := core.place.store.notes(_NOTES, after=after):
        after = notes[-1].id
        yield notes


def check_same(core: Core, other: Core) -> str:
    """Return where an open registry is, if it is a copy of this one.

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
    return other.url


__all__ = ["check_same", "copy"]
