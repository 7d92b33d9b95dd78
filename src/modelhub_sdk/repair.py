"""`reg.repair(source)`: stored bytes that are damaged or missing are taken from where they are still right.

What is needed is known from the journal: the files of versions, and the documents that list them. A document is
repaired before the files that it lists are looked at. Bytes are stored only if they are those of the digest. The
journal itself is not touched: an entry that is damaged or missing is for `verify` to report.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from attrs import define, field, frozen

from modelhub_sdk import garbage
from modelhub_sdk.arguments import kept_outputs
from modelhub_sdk.blobs import disk
from modelhub_sdk.blobs import progress as bars
from modelhub_sdk.blobs.disk import Progress, Reader
from modelhub_sdk.blobs.parallel import each
from modelhub_sdk.blobs.readers import OwnReader
from modelhub_sdk.blobs.sources import Source, from_bytes, from_file
from modelhub_sdk.blobs.store import BlobStore, local_path
from modelhub_sdk.core import Core, journal_of, opened
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain.entities import RepairItem, RepairReport
from modelhub_sdk.errors import (
    Conflict,
    DigestMismatch,
    InvalidDocument,
    InvalidURI,
    ModelHubError,
    NotFound,
    Purged,
    shown,
)
from modelhub_sdk.formats import manifest
from modelhub_sdk.index import data, runs
from modelhub_sdk.index.queries import View

_NAMED = 20  # things that a report names of those that need the same bytes
_BLOB = re.compile(r"([0-9a-f]{2})/([0-9a-f]{62})")

_LIBPQ = re.compile(r"\bpassword\s*=")

Offer = Callable[[str, "int | None"], Sequence[Source]]
"""Returns where the bytes of a digest may be, with their size where it is known."""


def repair(core: Core, source: Any, *, progress: bool | None) -> RepairReport:
    """Store again what is damaged or missing; see `Registry.repair`."""
    core.writable()
    with core.view() as view:
        core.check_frozen(view)
    with _offered(core, source) as (name, offer):
        work = _Work(core.artifacts(), offer, progress)
        with core.view() as view:
            documents = _Documents.of(view)
            needs = _named_in_index(view)
        work.mend(documents.needs(), "repairing documents")
        _add_listed(core, documents, needs)
        work.mend(needs.files, "repairing")
    return work.report(name)


# --- what is needed -----------------------------------------------------------------------------------


@define
class _Need:
    """The size of stored bytes, None where it is not known, and what needs them."""

    size: int | None
    by: list[str]


@define
class _Needs:
    """What should be stored, by digest; and the datums, which need nothing that was purged elsewhere."""

    datums: set[str]
    purged: set[str]
    files: dict[str, _Need] = field(factory=dict)

    def add(self, digest: str, size: int | None, by: str) -> None:
        need = self.files.setdefault(digest, _Need(size, []))
        need.size = size if need.size is None else need.size
        if by not in need.by:
            need.by.append(by)


@frozen
class _Documents:
    """The stored documents: manifests, lists of outputs, and what runs keep, which lists no files."""

    manifests: tuple[garbage.Document, ...]
    ingests: tuple[ev.OutputsIngested, ...]
    kept: Mapping[str, str]

    @classmethod
    def of(cls, view: View) -> _Documents:
        events = view.events(ev.OutputsIngested.kind)
        ingests = tuple(e for e in events if isinstance(e, ev.OutputsIngested) and e.document)
        return cls(tuple(garbage.documents(view)), ingests, runs.documents(view))

    def needs(self) -> dict[str, _Need]:
        """Return what needs them."""
        uris = {document.digest: document.uri for document in self.manifests}
        uris |= {str(event.document): f"run:{event.run_id}, its outputs" for event in self.ingests}
        uris |= {digest: f"run:{run_id}, what it keeps" for digest, run_id in self.kept.items()}
        return {digest: _Need(None, [uri]) for digest, uri in uris.items()}


def _named_in_index(view: View) -> _Needs:
    """Return what is needed without any document."""
    needs = _Needs(view.datum_digests(), view.purged_digests())
    uris: dict[tuple[str, int], str] = {}
    for subject, number, digest, size in view.stored_files():
        key = subject, number
        if key not in uris:
            kind, colon, name = subject.partition(":")
            uris[key] = data.version(view, name, number).uri if colon and kind == "dataset" else ""
        needs.add(digest, size, uris[key] or f"model://{subject}/v{number}")
    for event in view.events(ev.VersionAttached.kind, ev.EvaluationAdded.kind):
        if isinstance(event, ev.VersionAttached):
            needs.add(
                event.digest, event.size, f"model://{event.model}/v{event.number}, attachment {event.name}"
            )
        elif isinstance(event, ev.EvaluationAdded):
            for file in event.files:
                needs.add(file.digest, file.size, f"model://{event.model}/v{event.number}, an evaluation")
    for event in view.events(ev.OutputsIngested.kind):
        if isinstance(event, ev.OutputsIngested) and event.document is None:
            for digest in kept_outputs(event, lambda _: b"[]"):
                needs.add(digest, None, f"run:{event.run_id}, an output")
    return needs


def _add_listed(core: Core, documents: _Documents, needs: _Needs) -> None:
    """Add what the documents list, as far as they can be read by now; those that cannot are reported themselves."""
    for document in documents.manifests:
        with suppress(ModelHubError):
            for file in core.manifest(document.digest, document.uri):
                if document.gave_up(file):
                    needs.purged.add(file.digest)
                else:
                    needs.add(file.digest, file.size, document.uri)
    for event in documents.ingests:
        with suppress(ModelHubError, ValueError, KeyError, TypeError):
            for digest in kept_outputs(event, core.document):
                needs.add(digest, None, f"run:{event.run_id}, its outputs")
    for digest in needs.datums - needs.purged - set(needs.files):
        needs.add(digest, None, f"datum {digest}")


# --- the work -----------------------------------------------------------------------------------------


@define
class _Work:
    """What was looked at, and what came of it."""

    blobs: BlobStore
    offer: Offer
    progress: bool | None
    checked: int = 0
    repaired: list[RepairItem] = field(factory=list)
    not_found: list[RepairItem] = field(factory=list)

    def mend(self, needs: Mapping[str, _Need], label: str) -> None:
        """Look at what is needed, and store anew what is damaged or missing."""
        total = sum(need.size or 0 for need in needs.values())
        with bars.bar(total, label, show=self.progress) as step:
            results = each(
                lambda digest, advance: self._mend_one(digest, needs[digest], advance), list(needs), step
            )
        self.checked += len(needs)
        for digest, outcome in zip(needs, results, strict=True):
            if outcome is None:
                continue
            stored, problem = outcome
            need = needs[digest]
            item = RepairItem(digest, need.size, tuple(need.by[:_NAMED]), problem)
            (self.repaired if stored else self.not_found).append(item)

    def _mend_one(self, digest: str, need: _Need, step: Progress | None) -> tuple[bool, str] | None:
        """Return None for bytes that are right; else whether they are now, and what was wrong with them."""
        problem = self.blobs.verify(digest, need.size, progress=step)
        if problem is None:
            return None
        for source in self.offer(digest, need.size):
            with suppress(NotFound, DigestMismatch, InvalidDocument, Purged, Conflict):
                self.blobs.replace(digest, _checked(source, digest))
                return True, problem
        return False, problem

    def report(self, name: str) -> RepairReport:
        return RepairReport(
            source=name,
            checked=self.checked,
            repaired=tuple(self.repaired),
            not_found=tuple(self.not_found),
        )


def _checked(source: Source, digest: str) -> Source:
    """Return *source* so that bytes which are not those of *digest* are never stored."""
    return Source(
        source.path,
        source.origin,
        source.size,
        lambda: _Checked(source.open(), digest, source.origin),
        repeatable=source.repeatable,
    )


class _Checked:
    """A `Reader` that hashes what it gives, and raises DigestMismatch at its end if it is not what it should be."""

    def __init__(self, reader: Reader, digest: str, origin: str) -> None:
        self._reader, self._digest, self._origin = reader, digest, origin
        self._hasher = hashlib.sha256()
        self.close = reader.close

    def readinto(self, view: memoryview) -> int:
        got = self._reader.readinto(view)
        self._hasher.update(view[:got])
        return got

    def finish(self) -> None:
        self._reader.finish()
        actual = "sha256:" + self._hasher.hexdigest()
        if actual != self._digest:
            raise disk.mismatch(self._digest, actual, self._origin)


# --- where bytes come from ----------------------------------------------------------------------------


@contextmanager
def _offered(core: Core, source: Any) -> Iterator[tuple[str, Offer]]:
    """Open *source*; give its name, and what offers its bytes.

    Raises:
        InvalidURI: it is nothing that bytes can be taken from.
        NotFound: there is nothing at its path or URL.
        Conflict: it is this very registry.
    """
    path = _local(core, source)
    if isinstance(source, Core):
        yield source.url, _of_registry(core, source)
    elif path is None:
        with _opened(core, source) as other:
            yield other.url, _of_registry(core, other)
    elif os.path.isdir(path) and not os.path.isdir(os.path.join(path, "journal")):
        yield path, _Folder(path).offer
    elif os.path.isdir(path):
        with _opened(core, path) as other:
            yield path, _of_registry(core, other)
    elif zipfile.is_zipfile(path):
        from modelhub_sdk import bundles

        with bundles.opened(path) as (bundle, items):
            yield path, _of_bundle(bundle, items)
    elif _is_sqlite(path):
        with _opened(core, f"sqlite:///{path}") as other:
            yield path, _of_registry(core, other)
    else:
        raise InvalidDocument(
            f"{shown(path, 200)} is neither a bundle nor a registry.",
            hint="Pass a registry or its URL, a bundle, a cache, or a folder of files.",
        )


def _local(core: Core, source: Any) -> str | None:
    """Return the path on this disk that *source* names, None for a registry, open or by its URL."""
    if isinstance(source, ModuleType) and source.__name__ == "modelhub_sdk.cache":
        return core.cache().path
    if isinstance(source, Core):
        return None
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise InvalidURI(
            f"{shown(source)} is nothing that bytes can be taken from.",
            hint="Pass a registry or its URL, a bundle, a cache, or a folder of files.",
        )
    path = local_path(os.fsdecode(source))
    if _LIBPQ.search(os.fsdecode(source)):
        return None  # may hold a password: `opened` says what is wrong with it, and quotes nothing
    if path is not None and not os.path.exists(path):
        raise NotFound(f"There is nothing at {shown(path, 200)}.", hint="Check the path.")
    if path is not None and not os.path.isdir(path):
        with disk.translated("read", path):
            os.close(disk.open_regular(path, follow=True)[0])  # a pipe would be waited for, for ever
    return path


@contextmanager
def _opened(core: Core, url: Any) -> Iterator[Core]:
    other = opened(
        url,
        artifacts=None,
        user=core.actor,
        project=None,
        cache_dir=core.cache_dir,
        read_only=True,
        create=False,
        storage_options=core.options,
    )
    try:
        yield other
    finally:
        other.close()


def _is_sqlite(path: str) -> bool:
    with disk.translated("read", path), open(path, "rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _of_registry(core: Core, other: Core) -> Offer:
    if journal_of(other.place) == journal_of(core.place):
        raise Conflict(
            f"{shown(other.url, 200)} is this very registry.", hint="Pass a copy, a backup or a cache."
        )
    blobs = other.artifacts()
    sizes = dict(blobs.digests())

    def offer(digest: str, size: int | None) -> Sequence[Source]:
        known = sizes.get(digest)
        if known is None and not blobs.elsewhere(digest):
            return ()
        return [
            Source(
                digest, blobs.url, known or size, lambda: OwnReader(blobs.open(digest, known or size), digest)
            )
        ]

    return offer


def _of_bundle(bundle: Any, items: Sequence[Source]) -> Offer:
    """Offer the members of a bundle, and the manifest of its version, which stands in none of them."""
    sources: dict[str, Source] = {}
    for (_, file), item in zip(bundle.members(), items, strict=True):
        sources.setdefault(file.digest, item)
    text = manifest.encode(manifest.ordered(bundle.version.files))
    sources.setdefault("sha256:" + hashlib.sha256(text).hexdigest(), from_bytes(text))
    return lambda digest, _: [sources[digest]] if digest in sources else ()


class _Folder:
    """A folder of files: a cache, the artifacts of a registry, or any other. Found by name where that is a digest."""

    def __init__(self, path: str) -> None:
        self._by_name: dict[str, list[str]] = {}
        self._by_size: dict[int, list[str]] = {}
        self._digests: dict[str, str] = {}
        for folder, _, names in os.walk(path):
            for name in names:
                file = os.path.join(folder, name)
                match = _BLOB.fullmatch(f"{os.path.basename(folder)}/{name}")
                if match is not None:
                    self._by_name.setdefault(f"sha256:{match[1]}{match[2]}", []).append(file)
                elif os.path.isfile(file) and not os.path.islink(file):
                    self._by_size.setdefault(os.path.getsize(file), []).append(file)

    def offer(self, digest: str, size: int | None) -> Sequence[Source]:
        """Return the files that may hold the bytes of *digest*."""
        named = [*self._by_name.get(digest, ())]
        groups = [self._by_size.get(size, [])] if size is not None else [*self._by_size.values()]
        named += [path for group in groups for path in group if self._digest(path) == digest]
        sources = []
        for path in named:
            with suppress(ModelHubError):
                sources.append(from_file(path, "file"))
        return sources

    def _digest(self, path: str) -> str:
        if path not in self._digests:
            self._digests[path] = ""
            with suppress(ModelHubError):
                self._digests[path] = disk.hash_file(path)[0]
        return self._digests[path]


__all__ = ["repair"]
