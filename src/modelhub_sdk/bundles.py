"""One version on its way to another registry: its files, and all that is known of it, in a zip or directly.

In the other registry it is a new version, pending, with the next number, the same manifest digest, and an
`Origin`. What is told of its past there (lineage, audit) is one text, private as all texts are: `redact`
erases it.

A bundle is a zip of stored members with fixed times, so the same version gives the same bytes: first
``modelhub-bundle.json``, then ``files/<path>``, ``attachments/<name>``, ``evaluations/<n>/<path>``. Nothing is ever
extracted from one: members are read by the names that the first one states, and every byte is checked against
the digests there.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from attrs import asdict, evolve, fields, frozen

from modelhub_sdk import resolver
from modelhub_sdk.arguments import ARRIVED, input_uri
from modelhub_sdk.blobs import disk
from modelhub_sdk.blobs import progress as bars
from modelhub_sdk.blobs.parallel import each
from modelhub_sdk.blobs.readers import OwnReader
from modelhub_sdk.blobs.sources import Source
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.core import Core
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain import names
from modelhub_sdk.domain.entities import File, ModelVersion, Origin
from modelhub_sdk.domain.events import Event, Sealer
from modelhub_sdk.domain.lineage import LineageRecord
from modelhub_sdk.domain.uri import ModelURI, Number, parse_ref
from modelhub_sdk.domain.values import Frozen, Value, normalise, normalise_fields
from modelhub_sdk.errors import Conflict, InvalidDocument, NotFound, StoreUnavailable, shown
from modelhub_sdk.formats import codec, manifest
from modelhub_sdk.index.queries import View
from modelhub_sdk.reads import RegistryView

FORMAT = 1
"""Of bundles. A newer one is refused."""

HISTORY = 1000
"""Audit records that travel with a version, the newest."""

_RECORD = "modelhub-bundle.json"
_LARGEST_RECORD = 256 << 20  # bytes: millions of files
_EPOCH = (1980, 1, 1, 0, 0, 0)
_FLAGS = 0x800  # of a member: nothing but "its name is UTF-8"
_PIECE = 1 << 20


@frozen
class Bundle:
    """A version as it is where it comes from, with its files, where that is, and its past there."""

    origin: Origin
    version: ModelVersion
    past: LineageRecord

    def members(self) -> list[tuple[str, File]]:
        """Return all files of the version and beside it, each with the name of its member."""
        found = [("files/" + file.path, file) for file in self.version.files]
        found += [
            ("attachments/" + one.name, File(one.name, one.size, one.digest))
            for one in self.version.attachments
        ]
        for n, evaluation in enumerate(self.version.evaluations, 1):
            found += [(f"evaluations/{n}/{file.path}", file) for file in evaluation.files]
        return found


# --- from a registry ----------------------------------------------------------------------------------


def pack(core: Core, uri: ModelURI) -> tuple[Bundle, Callable[[], None]]:
    """Return what a registry knows of a version, and what records, once it has arrived, that it was taken out.

    Raises:
        NotFound: there is no such version.
        Purged: some of its files were given up.
    """
    found = resolver.pinned(core, uri, any_status=True)
    resolver.check_purged(found, found.files)
    if not isinstance(found.version, ModelVersion):
        raise TypeError(type(found.version).__name__)
    version = evolve(found.version, files=found.files, aliases=(), external=Frozen())
    with core.view() as view:
        seq = view.registered_at(version.model, version.number)
    record = next(iter(core.place.store.read(seq - 1, limit=1)), None)
    if record is None:
        raise StoreUnavailable(f"Entry {seq} of the journal of {shown(core.url, 200)} cannot be read.")
    reads = RegistryView(core)
    audit = reads.audit(version.uri, limit=HISTORY)
    past = reads.lineage(version.uri)
    past = evolve(
        past,
        run=None if past.run is None else evolve(past.run, traceback=None),  # it may be long
        used_by=(),
        graph=reads.upstream(version.uri),
        history=(*(evolve(one, facts=Frozen()) for one in audit), *past.history)[:HISTORY],
    )
    bundle = Bundle(Origin(core.registry_id, version.uri, seq, record.chain), version, past)
    return bundle, lambda: resolver.record_use(core, uri, found)


def sources(blobs: BlobStore, bundle: Bundle) -> list[Source]:
    """Return the stored bytes of each of the members of *bundle*, to be stored elsewhere."""
    return [blobs.source(evolve(file, path=name)) for name, file in bundle.members()]


# --- into a registry ----------------------------------------------------------------------------------


@frozen
class Arrival:
    """A version that arrives from elsewhere, checked as what users pass is: what is to be registered, and beside it."""

    origin: Origin
    name: str
    number: int
    digest: str
    files: Sequence[tuple[str, File]]
    facts: Mapping[str, Any]
    texts: Mapping[str, str | None]
    fields: Mapping[str, Value | None]
    beside: Callable[[Sealer, int], list[Event]]
    history: str

    @property
    def key(self) -> str:
        """The idempotency key of this arrival: the entry and the version that it was registered as."""
        return f"{ARRIVED}{self.origin.chain}:{self.origin.uri}"

    def known(self, core: Core, view: View) -> int | None:
        """Return the number under which it is here already: it arrived before, or never left.

        `number` is the one that it has where it comes from.

        Raises:
            Conflict: what is here under its name is something else: one of the two is not what it says.
        """
        before = view.key("model:" + self.name, self.key)
        if before is not None:
            number = before[1]
            here = view.version(self.name, number)
            same = here is not None and here.origin == self.origin
        elif self.origin.registry != core.registry_id or self.origin.seq > view.head()[0]:
            return None
        else:
            own = next(iter(core.place.store.read(self.origin.seq - 1, limit=1)), None)
            if own is None or own.chain != self.origin.chain:
                return None
            number = self.number
            here = view.version(self.name, number)
            same = view.registered_at(self.name, number) == self.origin.seq
        if here is None or not same or here.digest != self.digest:
            raise Conflict(
                f"model://{self.name}/v{number} is here as {shown(self.origin.uri)} of entry {self.origin.seq}, and"
                " is not what arrives now: one of them is not what it says.",
                hint="Nothing was changed. Compare origin and digest of both with the registry that they are from.",
            )
        return number

    def complete(self, events: Sequence[Event], seal: Sealer) -> list[Event]:
        """Return the events of the registration with all that came along."""
        found: list[Event] = []
        for event in events:
            found.append(event)
            if isinstance(event, ev.VersionRegistered):
                found[-1] = evolve(event, history=seal(self.history))
                found += self.beside(seal, event.number)
        return found


def arrival(bundle: Bundle) -> Arrival:
    """Return *bundle* checked.

    Raises:
        InvalidName, InvalidDocument: something in it that no registry holds.
    """
    version, origin = bundle.version, bundle.origin
    name = names.check_name(version.model)
    said = parse_ref(origin.uri, kind="version")
    digits = frozenset("0123456789abcdef")
    if said.name != name or not isinstance(said.selector, Number) or said.selector.number != version.number:
        raise InvalidDocument(f"The bundle says that {shown(version.uri)} is {shown(origin.uri)}.")
    if len(origin.chain) != 64 or not set(origin.chain) <= digits or not origin.seq > 0:
        raise InvalidDocument("The bundle does not say which entry registered the version.")
    names.check_text(origin.registry, "registry id", 100)
    manifest.check(version.files, source="bundle")
    if not version.files or manifest.digest(version.files) != version.digest:
        raise InvalidDocument(
            f"The files in the bundle are not those of the manifest {shown(version.digest)}."
        )
    texts = {
        what: None if text is None else names.check_text(text, what)
        for what, text in (("note", version.note), ("description", version.description))
    }
    evaluations = tuple(
        (
            normalise(one.metrics, "metrics"),
            None if one.data is None else input_uri(one.data),
            None if one.note is None else names.check_text(one.note, "note"),
            one.files,
        )
        for one in version.evaluations
    )
    for one in version.attachments:
        names.check_path(one.name, "attachment")
    for _, _, _, files in evaluations:
        manifest.check(manifest.ordered(files), source="bundle")

    def beside(seal: Sealer, number: int) -> list[Event]:
        found: list[Event] = [
            ev.VersionAttached(model=name, number=number, name=one.name, size=one.size, digest=one.digest)
            for one in version.attachments
        ]
        return found + [
            ev.EvaluationAdded(
                model=name, number=number, metrics=metrics, data=on, files=files, note=seal.maybe(note)
            )
            for metrics, on, note, files in evaluations
        ]

    return Arrival(
        origin=origin,
        name=name,
        number=version.number,
        digest=version.digest,
        files=bundle.members(),
        facts={
            "metrics": normalise(version.metrics, "metrics"),
            "params": normalise(version.params, "params"),
            "tags": tuple(names.check_tag(tag) for tag in version.tags),
            "inputs": tuple(input_uri(uri) for uri in version.inputs),
            "duration": _seconds(version.duration),
        },
        texts=texts,
        fields=normalise_fields({k: v for k, v in version.fields.items() if v is not None}),
        beside=beside,
        history=_history(bundle.past),
    )


def _seconds(duration: Any) -> float | None:
    """Return the duration of a run, which may be anything."""
    if duration is None:
        return None
    if isinstance(duration, bool) or not isinstance(duration, (int, float)) or not abs(duration) < 1e12:
        raise InvalidDocument(f"The bundle says that its run took {shown(duration)} seconds.")
    return float(duration)


def _history(past: LineageRecord) -> str:
    """Return the past as the text that is kept of it."""
    try:
        return codec.dumps(codec.unstructure_lineage(past)).decode()
    except (
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:  # NaN, half a character
        raise InvalidDocument(
            f"The past in the bundle has something in it that no registry holds ({type(error).__name__})."
        ) from None


def store(core: Core, arriving: Arrival, items: Sequence[Source], progress: bool | None) -> tuple[File, ...]:
    """Store the bytes of *arriving*, and return the files of the version.

    Raises:
        DigestMismatch: some bytes are not those that they were said to be.
    """
    wanted: dict[str, tuple[File, Source]] = {}  # each content once
    for (_, file), item in zip(arriving.files, items, strict=True):
        wanted.setdefault(file.digest, (file, item))
    with bars.bar(sum(f.size for f, _ in wanted.values()), f"storing {arriving.name}", show=progress) as step:
        core.artifacts().put_known(list(wanted.values()), progress=step)
    return tuple(file for name, file in arriving.files if name.startswith("files/"))


def heal(core: Core, arriving: Arrival, items: Sequence[Source], progress: bool | None) -> None:
    """Store those bytes again of a version that arrived before which are damaged or missing here.

    Raises:
        DigestMismatch: the bytes that arrive are not those that they are said to be.
    """
    blobs = core.artifacts()
    wanted = {file.digest: (file, item) for (_, file), item in zip(arriving.files, items, strict=True)}
    with core.view() as view:
        external = view.external()

    def is_sound(one: tuple[File, Source], _: object) -> bool:
        file = one[0]
        if file.digest in external and not blobs.has(file.digest):  # kept by reference, in the original
            return True
        return blobs.is_sound(file.digest, file.size)

    items_of = list(wanted.values())
    damaged = [one for one, sound in zip(items_of, each(is_sound, items_of), strict=True) if not sound]
    if damaged:
        with bars.bar(sum(f.size for f, _ in damaged), f"repairing {arriving.name}", show=progress) as step:
            blobs.put_known(damaged, progress=step)


# --- as a file ----------------------------------------------------------------------------------------


def write(
    core: Core, bundle: Bundle, path: str | os.PathLike[str], overwrite: bool, progress: bool | None
) -> str:
    """Write *bundle* as a zip that appears whole or not at all; return its path."""
    target = os.path.abspath(os.fsdecode(path))
    if os.path.isdir(target):
        raise Conflict(f"{shown(target, 200)} is a folder.", hint="Name a file, such as churn-v3.zip.")
    if not overwrite and os.path.lexists(target):
        raise _in_the_way(target)
    if not os.path.isdir(os.path.dirname(target)):
        raise StoreUnavailable(
            f"Cannot write {shown(target, 200)}: there is no folder {shown(os.path.dirname(target), 200)}.",
            hint="Make the folder first.",
        )
    members = bundle.members()
    blobs = core.artifacts()
    temporary = os.path.join(os.path.dirname(target), disk.temporary(os.path.basename(target)[:100]))
    with disk.translated("write", target):
        fd = disk.create(temporary, 0o666)
    try:
        with disk.translated("write", target), os.fdopen(fd, "w+b") as file:
            with (
                zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
                bars.bar(
                    sum(f.size for _, f in members), f"exporting {bundle.version.uri}", show=progress
                ) as step,
            ):
                archive.writestr(_member(_RECORD), _printed(bundle))
                for name, one in members:
                    _add(archive, blobs, name, one, step)
            file.flush()
            os.fsync(file.fileno())
        with disk.translated("write", target):
            if overwrite:
                os.replace(temporary, target)
            else:
                try:
                    os.link(temporary, target)
                except FileExistsError:
                    raise _in_the_way(target) from None
                except OSError:  # no hard links here: nearly as good
                    if os.path.lexists(target):
                        raise _in_the_way(target) from None
                    os.replace(temporary, target)
            disk.fsync_dir(os.path.dirname(target))
    finally:
        disk.remove(temporary)
    return target


def _in_the_way(target: str) -> Conflict:
    return Conflict(f"{shown(target, 200)} exists already.", hint="Pass overwrite=True, or another path.")


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    return info


def _printed(bundle: Bundle) -> bytes:
    return codec.dumps(
        {
            "format": FORMAT,
            "origin": asdict(bundle.origin),
            "version": codec.unstructure_version(bundle.version),
            "past": codec.unstructure_lineage(bundle.past),
        }
    )


def _add(archive: zipfile.ZipFile, blobs: BlobStore, name: str, file: File, step: Any) -> None:
    """Write one member, checking the bytes on the way."""
    info = _member(name)
    info.file_size = file.size  # tells the writer whether the member needs large sizes
    hasher, size = hashlib.sha256(), 0
    with blobs.open(file.digest) as source, archive.open(info, "w") as to:
        while piece := source.read(_PIECE):
            hasher.update(piece)
            to.write(piece)
            size += len(piece)
            if step is not None:
                step(len(piece))
    digest = "sha256:" + hasher.hexdigest()
    if (digest, size) != (file.digest, file.size):
        raise disk.mismatch(file.digest, digest, blobs.url, size=file.size, got=size)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[Bundle, list[Source]]]:
    """Read the bundle at *path*: its record, and a source for each of its members.

    Raises:
        NotFound: there is no such file.
        InvalidDocument: it is no bundle, or one that was changed.
    """
    where = os.fsdecode(path)
    try:
        if os.path.isdir(where):
            raise IsADirectoryError
        fd, _ = disk.open_regular(where, follow=True)  # a pipe would be waited for
        stream = os.fdopen(fd, "rb")
        try:
            archive = zipfile.ZipFile(stream)
        except BaseException:
            stream.close()
            raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFound(f"There is no bundle {shown(where, 200)}.") from None
    except OSError as error:
        raise disk.unavailable(error, "read", where) from error
    except Exception as error:  # noqa: BLE001  # whatever a strange file makes the reader raise
        raise _bad(where, f"it is no sound zip file ({shown(str(error), 100)})") from None
    with archive, stream:
        infos = _checked(where, archive)
        try:
            raw = codec.loads(archive.read(_RECORD))
        except OSError as error:
            raise disk.unavailable(error, "read", where) from error
        except Exception as error:  # noqa: BLE001
            raise _bad(where, f"{_RECORD} cannot be read ({shown(str(error), 100)})") from None
        bundle = _parsed(where, raw)
        members = bundle.members()
        stated = dict(members)
        if len(stated) != len(members):
            raise _bad(where, "it names a file twice")
        there = set(infos) - {_RECORD}
        if odd := sorted(there ^ set(stated)):
            what = "has a member that it does not speak of" if odd[0] in there else "lacks"
            raise _bad(where, f"it {what}: {shown(odd[0])}")
        for name, file in members:
            if infos[name].file_size != file.size:
                raise _bad(
                    where, f"{shown(name)} has {infos[name].file_size} bytes and should have {file.size}"
                )
        yield bundle, [_from_zip(archive, where, infos[name]) for name, _ in members]


def _checked(where: str, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name. Only what `write` writes is taken: no compression, no links, nothing that overlaps."""
    infos: dict[str, zipfile.ZipInfo] = {}
    end = 0
    for info in sorted(archive.infolist(), key=lambda one: one.header_offset):
        mode = info.external_attr >> 16
        if info.filename in infos:
            raise _bad(where, f"{shown(info.filename)} is in it twice")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise _bad(where, f"{shown(info.filename)} is compressed, and members of a bundle are not")
        if info.flag_bits & ~_FLAGS or info.is_dir() or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
            raise _bad(where, f"{shown(info.filename)} is no plain file")
        if info.header_offset < end:
            raise _bad(where, f"{shown(info.filename)} overlaps another member")
        end = info.header_offset + 30 + info.compress_size
        infos[info.filename] = info
    if _RECORD not in infos:
        raise _bad(where, f"there is no {_RECORD} in it")
    if infos[_RECORD].file_size > _LARGEST_RECORD:
        raise _bad(where, f"its {_RECORD} is too large")
    return infos


def _parsed(where: str, raw: Any) -> Bundle:
    try:
        if raw["format"] != FORMAT:
            raise InvalidDocument(
                f"{shown(where, 200)} is a bundle of format {shown(raw['format'])}; this release reads {FORMAT}.",
                hint="Upgrade: pip install -U modelhub-sdk",
            )
        origin = Origin(**{one.name: raw["origin"][one.name] for one in fields(Origin)})
        if not (
            isinstance(origin.seq, int) and isinstance(origin.chain, str) and isinstance(origin.registry, str)
        ):
            raise TypeError("origin")
        version = codec.structure_version(raw["version"], ModelVersion)
        return Bundle(origin, version, codec.structure_lineage(raw["past"]))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _bad(where, f"its {_RECORD} is not that of a bundle ({shown(str(error), 100)})") from None


def _from_zip(archive: zipfile.ZipFile, where: str, info: zipfile.ZipInfo) -> Source:
    def reader() -> OwnReader:
        try:
            return OwnReader(_Member(archive.open(info), where, info.filename), info.filename)
        except OSError as error:
            raise disk.unavailable(error, "read", where) from error
        except Exception as error:  # noqa: BLE001  # names that differ, headers that lie
            raise _bad(where, f"{shown(info.filename)} cannot be read ({shown(str(error), 100)})") from None

    return Source(info.filename, where, info.file_size, reader)


class _Member:
    """An open member; damage in it is told as what it is."""

    def __init__(self, file: IO[bytes], where: str, name: str) -> None:
        self._file, self._where, self._name = file, where, name

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except (zipfile.BadZipFile, EOFError, ValueError) as error:
            raise _bad(self._where, f"{shown(self._name)} is damaged ({shown(str(error), 100)})") from None

    def close(self) -> None:
        self._file.close()


def _bad(where: str, problem: str) -> InvalidDocument:
    return InvalidDocument(
        f"{shown(where, 200)} cannot be imported: {problem}.",
        hint="Nothing was changed. Take it again as reg.export_bundle wrote it.",
    )
