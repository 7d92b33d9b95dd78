"""Versions and datums of this very registry as sources of new files: ``{"a": "model://churn/v1/a"}``.

Such a URI never means another registry, whichever is the default one. A moving name is pinned when the source is
collected; what it meant then is what is copied, and what is recorded as an input. No byte is stored twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import define, evolve, field, frozen

from modelhub_sdk import active, resolver
from modelhub_sdk.blobs.readers import OwnReader
from modelhub_sdk.blobs.sources import Source
from modelhub_sdk.core import Core
from modelhub_sdk.domain.entities import DatasetVersion, Datum, File, ModelVersion, Resolved
from modelhub_sdk.domain.uri import DatasetURI, DatumURI, ModelURI, Number
from modelhub_sdk.resolver import Pinned


@frozen
class _Origin:
    """A source as it was asked for, where it was to be placed, and what it meant."""

    asked: str
    name: str
    uri: str
    pinned: Pinned
    files: tuple[File, ...]


@frozen
class Asked:
    """What a call asked for, whatever moving names mean by now: an idempotency key compares that.

    Attributes:
        files: path and digest of what was not copied from this registry.
        sources: where to place what was, and its URI as it was asked for.
        inputs: the inputs that were named.
    """

    files: tuple[tuple[str, str], ...]
    sources: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]


@define
class OwnSources:
    """Finds the sources that URIs of this registry name, and remembers what they meant. `collect` calls it."""

    core: Core
    origins: list[_Origin] = field(factory=list)
    _paths: set[str] = field(factory=set)

    def __call__(self, text: str, name: str | None, in_list: bool) -> Sequence[Source]:
        """Return the files that a URI names.

        They are placed as those of a folder are: a file under *name*, else its own; the files of a version, or of a
        folder in one, below *name*, else as they lie there; *in_list* below the name of the version or folder.

        Raises:
            NotFound, NoApprovedVersion: the registry does not know it.
            NotApproved, Purged: as for `Registry.resolve`.
            InvalidURI: it names no version.
        """
        uri = resolver.uri_of(text)
        found, files = resolver.files_at(self.core, uri)
        inner = None if isinstance(uri, DatumURI) else uri.path
        single = isinstance(uri, DatumURI) or (len(files) == 1 and files[0].path == inner)
        if single:
            placed = {name or files[0].path.rpartition("/")[2]: files[0]}
        else:
            own_name = (inner or uri.name).rpartition("/")[2] if not isinstance(uri, DatumURI) else ""
            top = name if name is not None else own_name if in_list else ""
            skip = 0 if inner is None else len(inner) + 1
            placed = {f"{top}/{file.path[skip:]}" if top else file.path[skip:]: file for file in files}
        pinned = _pinned(uri, found)
        self.origins.append(_Origin(text, name or "", pinned, found, files))
        self._paths |= set(placed)
        return [self._source(path, file, pinned) for path, file in placed.items()]

    def _source(self, path: str, file: File, origin: str) -> Source:
        blobs = self.core.artifacts()
        return Source(
            path,
            origin,
            file.size,
            lambda: OwnReader(blobs.open(file.digest, file.size), path),
            stored=file.digest,
        )

    def inputs(self, named: Sequence[str]) -> tuple[str, ...]:
        """Return the inputs that were *named*, and what was copied, pinned; nothing twice."""
        pins = {origin.asked: origin.uri for origin in self.origins}
        found = dict.fromkeys(pins.get(uri, uri) for uri in named)
        for origin in self.origins:
            if origin.pinned.version.uri not in found:
                found[origin.uri] = None
        return tuple(found)

    def asked(self, stored: Sequence[File], inputs: Sequence[str]) -> Asked | None:
        """Return what was asked for; None where nothing of it is a source of this registry."""
        if not self.origins:
            return None
        rest = sorted((file.path, file.digest) for file in stored if file.path not in self._paths)
        return Asked(tuple(rest), tuple((one.name, one.asked) for one in self.origins), tuple(inputs))

    def note(self, registry: object) -> None:
        """Tell the run of this registry that is on, if one is, what it has read."""
        run = active.own_run(registry)
        for origin in self.origins if run is not None else ():
            version = origin.pinned.version
            found = Resolved(
                uri=version.uri,
                path="",
                files=tuple(file.path for file in origin.files),
                version=version,
                as_of=origin.pinned.as_of,
            )
            run.resolved(found, origin.asked, self.core.registry_id)  # type: ignore[union-attr]


def _pinned(uri: Any, found: Pinned) -> str:
    """Return *uri* with what it meant instead of a moving name."""
    version = found.version
    if isinstance(uri, ModelURI) and isinstance(version, ModelVersion):
        return str(evolve(uri, selector=Number(version.number)))
    if isinstance(uri, DatasetURI) and isinstance(version, DatasetVersion):
        return str(evolve(uri, version=version.version))
    return str(DatumURI(version.id)) if isinstance(version, Datum) else version.uri


__all__ = ["Asked", "OwnSources"]
