"""Deleting stored bytes that nothing needs, safely beside everybody who registers.

It goes through the journal: bytes are *condemned*; after a grace an entry says that they are being
*deleted*, then they are, then another entry says so. Whoever commits an entry that relies on condemned
bytes spares them in that entry; one that relies on bytes which are being deleted, or were, waits and
stores them again (`Core.commit`). So it does not matter what a registering process saw before, nor where
a collector is killed: the next one goes on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import timedelta

from attrs import frozen

from modelhub_sdk.arguments import beside, kept_outputs
from modelhub_sdk.blobs import progress as bars
from modelhub_sdk.core import DELETED_AT_ONCE, Core, since_boot
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain.entities import File, GarbageReport, Stats
from modelhub_sdk.domain.events import Event, Sealer
from modelhub_sdk.errors import InvalidDocument, NotFound
from modelhub_sdk.index import data, runs
from modelhub_sdk.index.queries import View

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def collect(core: Core, *, dry_run: bool, grace: timedelta, progress: bool | None = None) -> GarbageReport:
    """Condemn what nothing needs, and delete what was condemned longer ago than *grace*."""
    if not isinstance(grace, timedelta) or grace < timedelta(0):
        raise InvalidDocument("grace is a datetime.timedelta of at least 0.", hint="timedelta(days=1)")
    blobs = core.artifacts()
    stored = dict(blobs.digests())
    with core.view() as view:
        known = view.garbage()
        looked_at = {*stored, *known}
        needs = Needs.of(core, view, looked_at)
    unneeded = set(stored) - needs.digests
    size = sum(stored[digest] for digest in unneeded)
    before = {digest for digest, one in known.items() if one.state == "condemned" and digest in unneeded}
    examples = tuple(sorted(unneeded)[:5])
    if dry_run:
        return GarbageReport(True, len(unneeded), size, waiting=len(before), examples=examples)
    going = {digest for digest, one in known.items() if one.state == "deleting"}
    condemned = sum(_condemned(core, batch, needs) for batch in _batches(unneeded - before - going))
    with core.view() as view:
        _, _, last = view.head()
        now = core.clock()
        horizon = max(now, last or now) - grace  # the journal's times go on where a clock went back
        due = [
            digest
            for digest, one in view.garbage().items()
            if digest in looked_at and one.state == "condemned" and one.at <= horizon
        ]
    gone: list[str] = []
    with bars.bar(sum(stored.get(digest, 0) for digest in due), "deleting", show=progress) as step:
        for batch in _batches(due):
            gone += free(core, batch, needs)
            if step is not None:
                step(sum(stored.get(digest, 0) for digest in batch))
    core.wait_for_deletion(going)  # another collector is at it, or was killed: then its work is finished here
    return GarbageReport(
        False,
        len(unneeded),
        size,
        condemned=condemned,
        deleted=len(gone),
        deleted_size=sum(stored.get(digest, 0) for digest in gone),
        waiting=len(before | (unneeded - going)) - len(gone),
        swept=blobs.sweep(),
        examples=examples,
    )


def _batches(digests: Iterable[str]) -> Iterator[list[str]]:
    ordered = sorted(digests)
    for start in range(0, len(ordered), DELETED_AT_ONCE):
        yield ordered[start : start + DELETED_AT_ONCE]


def _condemned(core: Core, digests: Sequence[str], needs: Needs) -> int:
    """Condemn those of *digests* that nothing needs; return how many were not condemned before."""
    new: tuple[str, ...] = ()

    def decide(view: View, seal: Sealer) -> list[Event]:
        nonlocal new
        known = view.garbage(digests)
        wanted = needs.now(core, view)
        new = tuple(
            digest
            for digest in digests
            if digest not in wanted and (digest not in known or known[digest].state == "deleted")
        )
        return [ev.BlobsCondemned(digests=new)] if new else []

    core.commit("registry", decide)
    return len(new)


def free(core: Core, digests: Sequence[str], needs: Needs | None = None) -> tuple[str, ...]:
    """Delete bytes for which nothing speaks as the entry is appended that says so; return which.

    *needs* are known already, of these digests and perhaps of more.
    """
    with core.view() as view:
        needs = needs or Needs.of(core, view, digests)
        gone = {digest for digest, one in view.garbage(digests).items() if one.state == "deleted"}
    digests = [digest for digest in digests if digest not in gone or core.artifacts().has(digest)]
    if not digests:
        return ()
    begun = since_boot()

    def decide(view: View, seal: Sealer) -> list[Event]:
        known = view.garbage(digests)
        wanted = needs.now(core, view)
        busy = {d for d, one in known.items() if one.state == "deleting"}
        going = tuple(digest for digest in digests if digest not in wanted and digest not in busy)
        return [ev.BlobsDeleting(digests=going)] if going else []

    entry = core.commit("registry", decide)
    return () if entry is None else core.deleted(entry, begun)


@frozen
class Needs:
    """Which digests something needed as of one entry. Later entries can only add to them, and are few.

    So what takes long, reading everything, is done before the journal is locked for an entry of ours.
    """

    seq: int
    digests: frozenset[str]

    @classmethod
    def of(cls, core: Core, view: View, digests: Collection[str]) -> Needs:
        """Return which of *digests* something needs now."""
        return cls(view.head()[0], frozenset(needed(core, view, digests)))

    def now(self, core: Core, view: View) -> set[str]:
        """Return what is needed by *view*, which is later: what was, and what was named since."""
        events, unknown = view.since(self.seq, ev.KINDS)
        found = set(self.digests) | core.in_documents(events)
        for event in events:
            found |= ev.blobs_of(event)
            if (
                isinstance(event, ev.VersionRegistered) and event.external
            ):  # an own copy of such bytes is kept
                files = core.manifest(event.document) if event.document else event.files
                found |= {file.digest for file in files}
        for raw in unknown:
            found |= set(_DIGEST.findall(raw))
        return found


def needed(core: Core, view: View, digests: Collection[str]) -> set[str]:
    """Return those of *digests* that something in the registry still needs.

    What an event of a kind that this release does not know names is needed too.
    """
    wanted = set(digests)
    found = view.needed(wanted) | beside(view.events(ev.VersionAttached.kind, ev.EvaluationAdded.kind))
    found |= set(runs.documents(view))
    purged = view.purged_digests()
    documents = [(d, view.purge(model, number)) for model, number, d in view.documents()]
    documents += [(document, None) for _name, _number, document in data.documents(view)]
    for document, purge in documents:
        found.add(document)
        gone = frozenset() if purge is None else purge[3]
        files = core.manifest(document)
        found |= {file.digest for file in files if gone is not None and file.path not in gone}
        purged |= {file.digest for file in files if gone is None or file.path in gone}
    for event in view.events(ev.OutputsIngested.kind):
        if isinstance(event, ev.OutputsIngested):
            found |= kept_outputs(event, core.document) | ({event.document} if event.document else set())
    found |= view.datum_digests() - purged  # what was given up is gone for its datum too
    for raw in view.unknown(tuple(ev.KINDS)):
        found |= set(_DIGEST.findall(raw))
    return found & wanted


def stats(core: Core) -> Stats:
    """Return where the space is."""
    stored = dict(core.artifacts().digests())
    sizes: dict[str, dict[str, int]] = {}
    with core.view() as view:
        kept = needed(core, view, stored)
        there = view.all_files()
        lost = needed(core, view, {digest for _, digest, _ in there} - set(stored)) - view.external()
        for subject, digest, size in there:
            sizes.setdefault(subject, {})[digest] = size
        for model, number, document in view.documents():
            purge = view.purge(model, number)
            if purge is None:
                sizes.setdefault(model, {}).update((f.digest, f.size) for f in _manifest(core, document))
        for name, _number, document in data.documents(view):
            sizes.setdefault(data.subject(name), {}).update(
                (f.digest, f.size) for f in _manifest(core, document)
            )
        entries = view.head()[0]
        counts = view.counts()
    largest = sorted(((sum(one.values()), subject) for subject, one in sizes.items()), reverse=True)
    return Stats(
        artifacts=core.artifacts().url,
        entries=entries,
        **counts,
        blobs=len(stored),
        size=sum(stored.values()),
        largest=tuple((_uri(subject), size) for size, subject in largest[:20]),
        unneeded=sum(size for digest, size in stored.items() if digest not in kept),
        missing=len(lost),
    )


def _manifest(core: Core, document: str) -> Iterable[File]:
    try:
        return core.manifest(document)
    except NotFound:
        return ()


def _uri(subject: str) -> str:
    kind, colon, name = subject.partition(":")
    return f"{kind}://{name}" if colon else f"model://{subject}"


__all__ = ["collect", "free", "needed", "stats"]
