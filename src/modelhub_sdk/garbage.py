"""Deleting stored bytes that nothing needs, safely beside everybody who registers.

It goes through the journal: bytes are *condemned*; after a grace an entry says that they are being
*deleted*, then they are, then another entry says so. Whoever commits an entry that relies on condemned
bytes spares them in that entry; one that relies on bytes which are being deleted, or were, waits and
stores them again (`Core.commit`). So it does not matter what a registering process saw before, nor where
a collector is killed: the next one goes on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta

from attrs import frozen

from modelhub_sdk.arguments import beside, kept_outputs
from modelhub_sdk.blobs import progress as bars
from modelhub_sdk.core import Core, batches
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain.entities import File, GarbageReport, Stats
from modelhub_sdk.domain.events import Event, Sealer
from modelhub_sdk.errors import DigestMismatch, InvalidDocument, NotFound
from modelhub_sdk.index import data, runs
from modelhub_sdk.index.queries import GivenUp, View
from modelhub_sdk.uses import forget_junk

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
    condemned = sum(_condemned(core, batch, needs) for batch in batches(unneeded - before - going))
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
        for batch in batches(due):
            gone += free(core, batch, needs)
            if step is not None:
                step(sum(stored.get(digest, 0) for digest in batch))
    forget_junk(core)
    core.wait_for_deletion(going)  # another collector is at it, or was killed: then its work is finished here
    with core.view() as view:
        known = view.garbage(unneeded)
    return GarbageReport(
        False,
        len(unneeded),
        size,
        condemned=condemned,
        deleted=len(gone),
        deleted_size=sum(stored.get(digest, 0) for digest in gone),
        waiting=sum(one.state == "condemned" for one in known.values()),
        swept=blobs.sweep(),
        examples=examples,
    )


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

    *needs* are known already, of these digests and perhaps of more. So many that they do not fit into an entry
    go by several.
    """
    with core.view() as view:
        needs = needs or Needs.of(core, view, digests)
        gone = {digest for digest, one in view.garbage(digests).items() if one.state == "deleted"}
    there = core.artifacts().has
    digests = [digest for digest in digests if digest not in gone or there(digest)]
    return tuple(digest for batch in batches(digests) for digest in _freed(core, batch, needs))


def _freed(core: Core, digests: Sequence[str], needs: Needs) -> tuple[str, ...]:
    def choose(view: View) -> list[str]:
        known = view.garbage(digests)
        wanted = needs.now(core, view)
        busy = {d for d, one in known.items() if one.state == "deleting"}
        return [digest for digest in digests if digest not in wanted and digest not in busy]

    return core.delete(choose)


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
            if isinstance(
                event, ev.BlobsSpared
            ):  # in an entry of its own, before the one that relies on them
                found |= set(event.digests)
            if (
                isinstance(event, ev.VersionRegistered) and event.external
            ):  # an own copy of such bytes is kept
                files = core.manifest(event.document) if event.document else event.files
                found |= {file.digest for file in files}
        return found | _in_unknown(unknown)


def needed(core: Core, view: View, digests: Collection[str], *, unknown: set[str] | None = None) -> set[str]:
    """Return those of *digests* that something in the registry still needs.

    What an event of a kind that this release does not know names is needed too. Manifests that are missing are
    added to *unknown*, where that is given: only for counting, never before anything is deleted.

    Raises:
        NotFound: a manifest is missing, so it is unknown what its version needs.
    """
    wanted = set(digests)
    found = (
        view.needed(wanted)
        | _needed_otherwise(core, view, unknown)
        | _in_unknown(view.unknown(tuple(ev.KINDS)))
    )
    return found & wanted


def _in_unknown(events: Sequence[str]) -> set[str]:
    return {digest for raw in events for digest in _DIGEST.findall(raw)}


def _needed_otherwise(core: Core, view: View, lost: set[str] | None = None) -> set[str]:
    """Return what is needed beside the files that stand in the index.

    A manifest that is missing is added to *lost*, where that is given.
    """
    found = beside(view.events(ev.VersionAttached.kind, ev.EvaluationAdded.kind))
    found |= set(runs.documents(view))
    purged = view.purged_digests()
    for one in documents(view):
        found.add(one.digest)
        files: Sequence[File] = ()
        try:
            files = one.files(core)
        except NotFound:
            if lost is None:
                raise
            lost.add(one.digest)
        found |= {file.digest for file in files if not one.gave_up(file)}
        purged |= {file.digest for file in files if one.gave_up(file)}
    for event in view.events(ev.OutputsIngested.kind):
        if isinstance(event, ev.OutputsIngested):
            found |= {event.document} if event.document else set()
            try:
                found |= _kept(event, core)
            except NotFound:
                if lost is None:
                    raise
                lost.add(str(event.document))
    return found | (view.datum_digests() - purged)  # what was given up is gone for its datum too


def _kept(event: ev.OutputsIngested, core: Core) -> set[str]:
    """Return the outputs that an ingest keeps for their own sake; NotFound when their list is missing or damaged."""
    try:
        return kept_outputs(event, core.document)
    except (NotFound, DigestMismatch, InvalidDocument, ValueError, KeyError, TypeError) as error:
        raise NotFound(
            f"The list of outputs {event.document} is missing or damaged, so it is unknown what it needs: {error}",
            hint="Restore it from a backup.",
        ) from error


@frozen
class Document:
    """A manifest that is a document: of which version, and what of that was given up."""

    subject: str
    uri: str
    digest: str
    purge: GivenUp | None

    def files(self, core: Core) -> Sequence[File]:
        """Return the files that it lists; none when all were given up and it is lost too.

        Raises:
            NotFound: it is missing, or damaged.
        """
        try:
            return core.manifest(self.digest, self.uri)
        except (NotFound, DigestMismatch, InvalidDocument) as error:
            if self.purge is not None and self.purge.whole is not None:
                return ()
            raise NotFound(
                f"The manifest of {self.uri} is missing or damaged, so it is unknown which files that needs:"
                f" {error.message}",
                hint="Restore it from a backup"
                + (
                    "; or give up the version: reg.purge(ref, reason, force=True)."
                    if self.uri.startswith("model://")
                    else "."
                ),
            ) from error

    def gave_up(self, file: File) -> bool:
        """Return whether *file* was purged."""
        return self.purge is not None and self.purge.why(file.path) is not None


def documents(view: View) -> Iterator[Document]:
    """Yield the manifests of models and datasets that are documents."""
    for model, number, document in view.documents():
        yield Document(model, f"model://{model}/v{number}", document, view.purge(model, number))
    for name, number, document in data.documents(view):
        yield Document(data.subject(name), data.version(view, name, number).uri, document, None)


def check_manifests(core: Core, but: str) -> None:
    """Make sure that it can be known what is needed, whatever the version *but* needs.

    Raises:
        NotFound: a manifest is missing; nothing may be deleted before that is mended.
    """
    with core.view() as view:
        others = [one for one in documents(view) if one.uri != but]
        ingested = [
            one for one in view.events(ev.OutputsIngested.kind) if isinstance(one, ev.OutputsIngested)
        ]
    for document in others:  # remembered by this handle, so what is deleted next need not read them again
        document.files(core)
    for event in ingested:
        _kept(event, core)


def stats(core: Core) -> Stats:
    """Return where the space is."""
    stored = dict(core.artifacts().digests())
    sizes: dict[str, dict[str, int]] = {}
    lost: set[str] = set()
    with core.view() as view:
        named = [(subject, digest) for subject, digest, _ in view.all_files()]
        kept = {digest for _, digest in named} | _needed_otherwise(core, view, lost)
        for one in documents(view):
            if one.digest not in lost:
                named += [(one.subject, file.digest) for file in one.files(core) if not one.gave_up(file)]
        missing = (kept | lost) - set(stored) - view.external()
        kept |= _in_unknown(view.unknown(tuple(ev.KINDS)))
        entries = view.head()[0]
        counts = view.counts()
    for subject, digest in named:
        if digest in stored:
            sizes.setdefault(subject, {})[digest] = stored[digest]
    largest = sorted(((sum(one.values()), subject) for subject, one in sizes.items()), reverse=True)
    return Stats(
        artifacts=core.artifacts().url,
        entries=entries,
        **counts,
        blobs=len(stored),
        size=sum(stored.values()),
        largest=tuple((_uri(subject), size) for size, subject in largest[:20]),
        unneeded=0 if lost else sum(size for digest, size in stored.items() if digest not in kept),
        missing=len(missing),
    )


def _uri(subject: str) -> str:
    kind, colon, name = subject.partition(":")
    return f"{kind}://{name}" if colon else f"model://{subject}"


__all__ = ["Document", "check_manifests", "collect", "documents", "free", "needed", "stats"]
