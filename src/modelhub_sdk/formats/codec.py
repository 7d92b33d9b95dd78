"""Entries as canonical JSON, and the chain over them: the one cattrs converter lives here.

Canonical JSON: sorted keys, no spaces, UTF-8, no NaN (non-finite numbers are tagged, see
``domain.values.to_json``), times as UTC microseconds ``2026-08-01T10:00:00.000000Z``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from modelhub_sdk.domain import stored
from modelhub_sdk.domain.entities import (
    Alert,
    Attachment,
    AuditRecord,
    Comment,
    DatasetVersion,
    Datum,
    Evaluation,
    File,
    ModelVersion,
    Origin,
    Output,
    Use,
)
from modelhub_sdk.domain.events import (
    FORMAT,
    KINDS,
    DatasetAliasMoved,
    DatasetVersionCreated,
    DatumNoted,
    Entry,
    Event,
    External,
    OutputsIngested,
    Redacted,
    RegistryCreated,
    RunFinished,
    RunStarted,
    Sealed,
    Sealer,
    Unknown,
    UseNoted,
    VersionAttached,
    VersionPurged,
    VersionRegistered,
)
from modelhub_sdk.domain.lineage import (
    Code,
    Decision,
    Edge,
    Environment,
    LineageGraph,
    LineageRecord,
    Node,
    RunInput,
    RunRecord,
)
from modelhub_sdk.domain.values import Frozen, from_json, to_json
from modelhub_sdk.errors import InvalidDocument, JournalTooNew, ModelHubError, shown
from modelhub_sdk.ports import Record

V = TypeVar("V", ModelVersion, DatasetVersion, Datum)
T = TypeVar("T")

GENESIS = "0" * 64
"""The chain digest before the first entry."""

MAX_BODY = 1_000_000
"""Bytes of one entry's body; what is larger goes into documents."""


MAX_DEPTH = 200
"""Levels of nesting in what this release keeps and does not know: an event of a later release."""

_canonical = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
).encode


def dumps(value: Any) -> bytes:
    """Return *value* (plain JSON types) as canonical JSON bytes."""
    return _canonical(value).encode()


def loads(data: object) -> Any:
    """Return what the JSON text or UTF-8 bytes *data* hold; it may have been written by anybody.

    Raises:
        ValueError: it is neither text nor bytes, is no JSON, is nested too deeply for Python to read, or has
            half a character, which no database keeps.
    """
    if type(data) is bytes:
        data = data.decode()
    elif isinstance(data, (bytes, bytearray, memoryview)):
        data = bytes(data).decode()
    elif not isinstance(data, str):
        raise ValueError(f"it is {shown(data)} instead of text")
    elif not data.isascii():
        data.encode()
    try:
        value = json.loads(data)
        if "\\u" in data and _HALF.search(data):  # an escape, of half a character or of a whole one
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def print_time(at: datetime) -> str:
    """Return an aware time as ``2026-08-01T10:00:00.000000Z``."""
    utc = at.astimezone(UTC)
    return f"{utc.year:04d}" + utc.strftime("-%m-%dT%H:%M:%S.%fZ")  # %Y does not pad the years before 1000


def parse_time(text: str) -> datetime:
    """Return the aware UTC time that `print_time` printed."""
    if not isinstance(text, str) or len(text) != 27 or text[26] != "Z":
        raise InvalidDocument(f"{shown(text)} is not a time of the form 2026-08-01T10:00:00.000000Z.")
    return datetime.fromisoformat(text[:26]).replace(tzinfo=UTC)


def chain(previous: str, seq: int, scope: str, body: bytes) -> str:
    """Return the hex digest that links entry *seq* to the one before.

    It covers the previous digest, the number, the scope and the digest of the body, so that somebody
    who may not read a body can still verify the chain.
    """
    name = scope.encode()
    return hashlib.sha256(
        b"\x00"
        + bytes.fromhex(previous)
        + seq.to_bytes(8, "big")
        + len(name).to_bytes(4, "big")
        + name
        + hashlib.sha256(body).digest()
    ).hexdigest()


def is_link(text: object) -> bool:
    """Return whether *text* has the form of a chain digest, and of a commitment: 64 lower-case hex digits."""
    return isinstance(text, str) and _LINK.fullmatch(text) is not None


_LINK = re.compile(r"[0-9a-f]{64}")


def encode(entry: Entry, texts: Mapping[str, tuple[str, str]], previous: str) -> Record:
    """Return *entry* as a record whose chain follows *previous*; *texts* are the sealer's.

    Raises:
        InvalidDocument: the entry is larger than `MAX_BODY`.
    """
    body = dumps(
        {
            "actor": entry.actor,
            "at": print_time(entry.at),
            "events": [unstructure(event) for event in entry.events],
            "format": entry.format,
            "id": entry.id,
            "min_reader": entry.min_reader,
            "scope": entry.scope,
            "seq": entry.seq,
            "via": entry.via,
        }
    )
    if len(body) > MAX_BODY:
        raise InvalidDocument(
            f"This change is {len(body):,} bytes as a journal entry, and {MAX_BODY:,} is the limit.",
            hint="Store long lists as a file of the version instead of metrics, parameters or tags.",
        )
    private = dumps({digest: list(pair) for digest, pair in texts.items()})
    return Record(entry.seq, entry.scope, chain(previous, entry.seq, entry.scope, body), body, private)


def decode(record: Record, private: Mapping[str, str] | None = None) -> Entry:
    """Return the entry that *record* holds, with the texts *private* instead of its own, if they are given.

    Raises:
        InvalidDocument: the bytes are not an entry; the message names the entry.
        JournalTooNew: it needs a newer release.
    """
    try:
        if len(record.body) > MAX_BODY:
            raise ValueError(f"it has {len(record.body):,} bytes, and {MAX_BODY:,} is the limit")
        raw = loads(record.body)
        if raw["min_reader"] > FORMAT:
            raise JournalTooNew(
                f"Entry {record.seq} of the journal needs a newer modelhub_sdk (format {raw['min_reader']}, "
                f"this one reads {FORMAT}).",
                hint="Upgrade: pip install -U modelhub-sdk",
            )
        if raw["seq"] != record.seq or raw["scope"] != record.scope:
            raise ValueError("its number or scope is not that of its place")
        return Entry(
            seq=stored.size(raw["seq"], "number of the entry"),
            id=stored.text(raw["id"], "id of the entry"),
            scope=stored.text(raw["scope"], "scope"),
            at=parse_time(raw["at"]),
            actor=Sealed(stored.text(raw["actor"], "actor")),
            via=Frozen({key: stored.text(value, "via") for key, value in raw["via"].items()}),
            events=tuple(structure(item) for item in raw["events"]),
            private=texts(record) if private is None else Frozen(private),
            format=raw["format"],
            min_reader=raw["min_reader"],
            documents=_cut(record.body, raw["events"]),
        )
    except (JournalTooNew, _PrivateDamage):
        raise
    except Exception as error:  # noqa: BLE001  # any damage at all becomes one typed error that names the entry
        raise InvalidDocument(
            f"Entry {record.seq} of the journal cannot be read: {reason_of(error)}.",
            hint="Run reg.verify(), and restore the journal from a backup.",
        ) from None


def reason_of(error: Exception) -> str:
    """Return why something that was stored cannot be read, for the message of an error that says what it is."""
    if isinstance(error, InvalidDocument):
        return error.message.removesuffix(".")
    return f"{type(error).__name__}: {shown(str(error))}"


def _cut(body: bytes, events: list[Any]) -> tuple[str, ...]:
    """Return the events' JSON; one alone is cut out of the body: quotes in texts are escaped, so the marks are safe."""
    start, end = body.find(b'"events":[') + 10, body.rfind(b'],"format":')
    if len(events) == 1 and 10 <= start < end:
        return (body[start:end].decode(),)
    return tuple(map(_canonical, events))


def texts(record: Record) -> Mapping[str, str]:
    """Return the private texts of *record*, seal -> text; erased ones are missing.

    Raises:
        InvalidDocument: its private part is damaged.
    """
    return Frozen({digest: text for digest, (_salt, text) in private_pairs(record).items()})


def without(record: Record, digests: set[str]) -> bytes:
    """Return the private part of *record* without the texts behind *digests*.

    Raises:
        InvalidDocument: its private part is damaged.
    """
    return dumps(
        {digest: list(pair) for digest, pair in private_pairs(record).items() if digest not in digests}
    )


class _PrivateDamage(InvalidDocument):
    """The private part of an entry cannot be read."""


def private_pairs(record: Record) -> dict[str, tuple[str, str]]:
    """Return the private part of *record*: seal -> (salt in hex, text). Whether they fit is not checked.

    Raises:
        InvalidDocument: it is no such mapping; the message names the entry.
    """
    try:
        raw = loads(record.private) if record.private else {}
        pairs = {digest: (salt, text) for digest, (salt, text) in raw.items()}
        if not all(type(salt) is str and type(text) is str for salt, text in pairs.values()):
            raise TypeError
    except Exception as error:  # noqa: BLE001  # any damage at all becomes one typed error that names the entry
        raise _PrivateDamage(
            f"Entry {record.seq} of the journal: its private part is damaged ({type(error).__name__}).",
            hint="Run reg.verify(), and restore the journal from a backup.",
        ) from None
    return pairs


def entry_id(record: Record) -> str | None:
    """Return the id in the body of *record*, None when it cannot be read."""
    try:
        found = json.loads(record.body)["id"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def time_of(record: Record) -> datetime:
    """Return the time in the body of *record*.

    Raises:
        InvalidDocument: it cannot be read.
    """
    try:
        return parse_time(json.loads(record.body)["at"])
    except (InvalidDocument, ValueError, KeyError, TypeError, RecursionError):
        raise InvalidDocument(
            f"Entry {record.seq} of the journal cannot be read.",
            hint="Run reg.verify(), and restore the journal from a backup.",
        ) from None


def unstructure(event: Event) -> dict[str, Any]:
    """Return *event* as plain JSON types with its ``kind``; fields that have their default are left out."""
    if isinstance(event, Unknown):
        return {**event.data, "kind": event.name}
    converter = _converter()
    plain: dict[str, Any] = converter.unstructure(event)
    plain["kind"] = event.kind
    return plain


def documents(entry: Entry) -> tuple[str, ...]:
    """Return the events of *entry* as canonical JSON."""
    return entry.documents or tuple(_canonical(unstructure(event)) for event in entry.events)


def structure(raw: Mapping[str, Any]) -> Event:
    """Return the event of plain JSON types *raw*; unknown fields are ignored, unknown kinds are kept.

    Raises:
        InvalidDocument: a path, name, size or digest in it could lead outside of a folder (`domain.stored`), or
            something of an unknown kind is nested too deeply. Other damage raises KeyError, TypeError, ValueError …
    """
    cls = KINDS.get(raw["kind"])
    if cls is None:
        _check_depth(raw)
        return Unknown(name=stored.text(raw["kind"], "kind"), data=Frozen(raw))
    if not raw.keys() <= _fields(cls):  # type: ignore[arg-type]  # of a later release
        _check_depth(raw)
    event: Event = _converter().structure(raw, cls)
    return event


@functools.cache
def _fields(cls: Any) -> frozenset[str]:
    return frozenset(("kind", *(spec.name for spec in attrs.fields(cls))))


def _check_depth(raw: Any) -> None:
    """Raise InvalidDocument if something is nested so deeply that others cannot walk through it."""
    level = [raw]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, (dict, list))
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise InvalidDocument(f"Something in it is nested deeper than {MAX_DEPTH} levels.")


def read_event(doc: object, what: str) -> Event:
    """Return the event that the index keeps as JSON in the cell *doc*; *what* says of what it is.

    Raises:
        InvalidDocument: no registry writes that; the message names *what*.
    """
    try:
        return structure(loads(doc))
    except Exception as error:  # noqa: BLE001  # any damage at all becomes one typed error
        raise damaged_index(what, error) from None


def damaged_index(what: str, error: Exception) -> InvalidDocument:
    """Return the error for what the index holds of *what* and no registry writes; *error* says why."""
    return InvalidDocument(
        f"The index holds of {what} what no registry writes: {reason_of(error)}.",
        hint="reg.rebuild_index() makes the index anew from the journal; reg.verify() compares the two.",
    )


def read_document(data: bytes, what: str, read: Callable[[Any], T]) -> T:
    """Return what *read* makes of the JSON of a document; *what* says of what it is.

    Raises:
        InvalidDocument: it is no such document.
    """
    try:
        return read(loads(data))
    except Exception as error:  # noqa: BLE001  # any damage at all becomes one typed error
        raise InvalidDocument(
            f"The document with {what} cannot be used: {reason_of(error)}.",
            hint="Run reg.verify(), and restore that file in the artifact store from a backup.",
        ) from None


def outputs_of(event: OutputsIngested, document: Callable[[str], bytes]) -> tuple[Frozen, ...]:
    """Return the outputs that an ingest recorded, wherever they stand; each has a path, a size and a digest.

    Raises:
        InvalidDocument: the document that lists them does not.
    """
    if event.document is None:
        return event.outputs  # type: ignore[return-value]
    return read_document(
        document(event.document),
        f"the outputs of {event.run_id or event.key}",
        lambda raw: _outputs_in(raw, None),
    )


def unstructure_version(version: ModelVersion | DatasetVersion | Datum) -> dict[str, Any]:
    """Return a version as plain JSON types, for the cache's own notes."""
    plain: dict[str, Any] = _converter().unstructure(version)
    return plain


def structure_version(raw: Mapping[str, Any], kind: type[V]) -> V:
    """Return the version that `unstructure_version` wrote; any damage raises KeyError, TypeError or ValueError."""
    return _structured(raw, kind)


def _structured(raw: Any, kind: type[T]) -> T:
    try:
        return _converter().structure(raw, kind)
    except ModelHubError as error:  # a path, a time, a value
        raise ValueError(error.message) from None
    except (KeyError, TypeError, ValueError):
        raise
    except Exception as error:  # noqa: BLE001  # whatever strange JSON makes the converter raise
        raise ValueError(str(type(error).__name__)) from None


def unstructure_lineage(record: LineageRecord) -> dict[str, Any]:
    """Return a lineage as plain JSON types, to be kept where it is no longer known."""
    plain: dict[str, Any] = _converter().unstructure(record)
    return plain


def structure_lineage(raw: Mapping[str, Any]) -> LineageRecord:
    """Return the lineage that `unstructure_lineage` wrote; any damage raises KeyError, TypeError or ValueError."""
    return _structured(raw, LineageRecord)


def unstructure_inputs(inputs: Sequence[RunInput]) -> list[Any]:
    """Return what a run read as plain JSON types, for a document."""
    return [_converter().unstructure(one) for one in inputs]


def structure_inputs(raw: Any) -> tuple[RunInput, ...]:
    """Return the inputs that `unstructure_inputs` wrote."""
    return _structured(raw, tuple[RunInput, ...])


def packages(raw: Any) -> Frozen:
    """Return what was installed, name -> version, from the document that lists it."""
    return Frozen(_structured(raw, dict[str, str]))


@functools.cache
def _converter() -> cattrs.Converter:
    conv = cattrs.Converter(detailed_validation=False, omit_if_default=True)
    conv.register_unstructure_hook(datetime, print_time)
    conv.register_structure_hook(datetime, lambda text, _: parse_time(text))
    parts = (
        File,
        UseNoted,
        Evaluation,
        Attachment,
        Comment,
        ModelVersion,
        DatasetVersion,
        Datum,
        DatumNoted,
        Code,
        Environment,
        RunInput,
        Origin,
        External,
        *_SNAPSHOT,
    )
    ours = frozenset((*parts, *KINDS.values()))
    conv.register_structure_hook(str, lambda raw, _: stored.text(raw))
    conv.register_structure_hook(int, lambda raw, _: stored.integer(raw))
    conv.register_structure_hook(bool, lambda raw, _: _bool_in(raw))
    conv.register_structure_hook(float, lambda raw, _: _float_in(raw))
    conv.register_structure_hook_factory(_is_many, lambda kind: _many_in(conv, kind))

    def hooks(cls: type, which: int) -> Any:
        name = ("unstruct_hook", "struct_hook")[which]
        found = {
            spec.name: override(**{name: _HOOKS[spec.name][which]})  # type: ignore[arg-type]
            for spec in attrs.fields(cls)
            if spec.name in _HOOKS and not (cls in _SNAPSHOT and spec.name in _ROWS)
        }
        return found | (
            {spec.name: override(struct_hook=check) for spec, check in _checks(cls)} if which else {}
        )

    # By factory, so that each class is prepared when it is first met: all of them would cost 30 ms at start.
    conv.register_unstructure_hook_factory(
        lambda cls: cls in ours,
        lambda cls: make_dict_unstructure_fn(cls, conv, _cattrs_omit_if_default=True, **hooks(cls, 0)),
    )
    conv.register_structure_hook_factory(
        lambda cls: cls in ours,
        lambda cls: _of_mapping(
            make_dict_structure_fn(cls, conv, _cattrs_detailed_validation=False, **hooks(cls, 1))
        ),
    )
    return conv


def _of_mapping(read: _Check) -> _Check:
    """Return *read*, which takes a text for a mapping without any of its keys, for mappings alone."""

    def checked(raw: Any, kind: Any) -> Any:
        if type(raw) is not dict and not isinstance(raw, Mapping):
            raise InvalidDocument(f"{shown(raw)} stands where a mapping belongs.")
        return read(raw, kind)

    return checked


def values(raw: Mapping[str, Any]) -> Frozen:
    """Return the mapping of values that plain JSON types *raw* stand for."""
    return _values_in(raw, None)


def _values_out(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if type(value) in _AS_THEY_ARE else to_json(value) for key, value in values.items()}


_AS_THEY_ARE = frozenset((str, bool, type(None)))


def _values_in(raw: Mapping[str, Any], _type: Any) -> Frozen:
    return Frozen({key: value if type(value) in _SCALARS else from_json(value) for key, value in raw.items()})


_SCALARS = frozenset((float, int, str, bool, type(None)))  # what JSON gives as it is


def _files_out(files: tuple[File, ...]) -> list[dict[str, Any]]:
    return [{"digest": file.digest, "path": file.path, "size": file.size} for file in files]


def _files_in(raw: list[Mapping[str, Any]], _type: Any) -> tuple[File, ...]:
    return stored.files(*_columns(raw))


def _columns(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any], list[Any]]:
    return [row["path"] for row in rows], [row["size"] for row in rows], [row["digest"] for row in rows]


def _files_of_version_in(raw: list[Mapping[str, Any]], _type: Any) -> tuple[File, ...]:
    files = _files_in(raw, None)
    _check_distinct([file.path for file in files])
    return files


def _external_in(raw: list[Mapping[str, Any]], _type: Any) -> tuple[External, ...]:
    found = tuple([_converter().structure(row, External) for row in raw])
    _check_distinct([one.path for one in found])
    return found


def _check_distinct(paths: list[str]) -> None:
    if len(set(paths)) < len(paths):
        raise InvalidDocument("A version has two files of one path.")


def _read_files_in(raw: list[Mapping[str, Any]], _type: Any) -> tuple[File, ...]:
    """Return the files that a run read: their names come from anywhere, and are never placed."""
    return tuple(
        [
            File(stored.text(row["path"]), stored.size(row["size"]), stored.digest(row["digest"]))
            for row in raw
        ]
    )


def _packages_out(packages: Any) -> Any:
    return packages if packages is None or isinstance(packages, str) else dict(packages)


def _packages_in(raw: Any, _type: Any) -> Any:
    return raw if raw is None or isinstance(raw, str) else Frozen(raw)


def _weights_out(weights: Mapping[int, int]) -> dict[str, int]:
    return {str(number): weight for number, weight in weights.items()}


def _weights_in(raw: Mapping[str, int], _type: Any) -> Frozen:
    found = {int(number): weight for number, weight in raw.items()}
    if not found or not all(
        type(weight) is int and 0 < weight <= stored.MAX_NUMBER and 0 < number <= stored.MAX_NUMBER
        for number, weight in found.items()
    ):
        raise InvalidDocument("The weights of an alias are no whole numbers above 0.")
    return Frozen(found)


def _rows_out(rows: tuple[Mapping[str, Any], ...]) -> list[Any]:
    return [_values_out(row) for row in rows]


def _rows_in(raw: list[Mapping[str, Any]], _type: Any) -> tuple[Frozen, ...]:
    return tuple([_values_in(row, None) for row in raw])


def _outputs_in(raw: list[Mapping[str, Any]], _type: Any) -> tuple[Frozen, ...]:
    rows = _rows_in(raw, None)
    stored.files(*_columns(rows))
    for row in rows:
        if not all(isinstance(row.get(name) or {}, Mapping) for name in ("properties", "annotations")):
            raise InvalidDocument("The properties or annotations of an output are no mapping.")
    return rows


def _alerts_in(raw: list[Mapping[str, Any]], _type: Any) -> tuple[Frozen, ...]:
    rows = _rows_in(raw, None)
    for row in rows:
        stored.text(row["message"], "alert")
    return rows


def _seals_in(raw: Mapping[str, Any], _type: Any) -> Frozen:
    return Frozen({key: None if seal is None else stored.text(seal, key) for key, seal in raw.items()})


def _bool_in(raw: Any) -> bool:
    if type(raw) is not bool:
        raise InvalidDocument(f"{shown(raw)} stands where true or false belongs.")
    return raw


def _float_in(raw: Any) -> float:
    if type(raw) not in (float, int):
        raise InvalidDocument(f"{shown(raw)} stands where a number belongs.")
    return float(raw)


def _is_many(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[1:] == (Ellipsis,)


def _many_in(conv: cattrs.Converter, kind: Any) -> Callable[[Any, Any], tuple[Any, ...]]:
    """Return what reads a list; a text is none, though it can be walked through like one."""
    item = get_args(kind)[0]
    hook = conv.get_structure_hook(item)

    def read(raw: Any, _type: Any) -> tuple[Any, ...]:
        if not isinstance(raw, (list, tuple)):
            raise InvalidDocument(f"{shown(raw)} stands where a list belongs.")
        return tuple([hook(one, item) for one in raw])

    return read


_SNAPSHOT = (LineageRecord, RunRecord, LineageGraph, Node, Edge, Decision, Output, Alert, Use, AuditRecord)
_ROWS = ("outputs", "alerts")  # values of their own there, plain mappings in events

_Check = Callable[[Any, Any], Any]
_Hooks = tuple[Callable[..., Any], Callable[..., Any]]
_HOOKS: dict[str, _Hooks] = {
    "metrics": (_values_out, _values_in),
    "params": (_values_out, _values_in),
    "files": (_files_out, _files_in),
    "settings": (_values_out, _values_in),
    "texts": (_values_out, _values_in),
    "fields": (_values_out, _values_in),
    "weights": (_weights_out, _weights_in),
    "hardware": (_values_out, _values_in),
    "packages": (_packages_out, _packages_in),
    "properties": (_values_out, _values_in),
    "annotations": (_values_out, _values_in),
    "facts": (_values_out, _values_in),
    "outputs": (_rows_out, _rows_in),
    "alerts": (_rows_out, _rows_in),
}


def _number_in(raw: Any) -> int:
    return stored.integer(raw, "number", 0, stored.MAX_NUMBER)


def _digests_in(raw: Any) -> tuple[str, ...]:
    return tuple([stored.digest(one) for one in raw])


def _paths_in(raw: Any) -> tuple[str, ...]:
    return tuple([stored.path(one) for one in raw])


# The wall, by the name of a field: what may become part of a path, or goes into a column of 64 bits.
_WALL: dict[str, Callable[[Any], Any]] = {
    "model": stored.name,
    "dataset": stored.name,
    "alias": stored.name,
    "datum": stored.name,
    "run_id": stored.name,
    "number": _number_in,
    "attempt": _number_in,
    "size": stored.size,
    "digest": stored.digest,
    "manifest": stored.digest,
    "document": stored.digest,
    "digests": _digests_in,
}
# And where a name means something else.
_WALL_OF: dict[tuple[type, str], Callable[[Any], Any]] = {
    (Redacted, "model"): stored.text,  # what keys it in the index: dataset:<name>, run:<id>
    (UseNoted, "model"): stored.text,
    (RegistryCreated, "id"): stored.name,
    (DatumNoted, "id"): stored.name,
    (DatumNoted, "name"): stored.path,
    (Datum, "id"): stored.name,
    (Datum, "name"): stored.path,
    (VersionAttached, "name"): stored.path,
    (Attachment, "name"): stored.path,
    (VersionPurged, "paths"): _paths_in,
    (External, "path"): stored.path,
    (Output, "path"): stored.path,
    (File, "path"): stored.path,
    (DatasetVersionCreated, "version"): stored.name,
    (DatasetAliasMoved, "version"): stored.name,
    (DatasetVersion, "version"): stored.name,
    (RunStarted, "packages"): stored.digest,
    (RunFinished, "series"): stored.digest,
    (RunFinished, "traceback"): stored.digest,
}
_READERS: dict[tuple[type, str], _Check] = {
    (VersionRegistered, "files"): _files_of_version_in,
    (DatasetVersionCreated, "files"): _files_of_version_in,
    (VersionRegistered, "external"): _external_in,
    (RunInput, "files"): _read_files_in,
    (OutputsIngested, "outputs"): _outputs_in,
    (OutputsIngested, "alerts"): _alerts_in,
    (RunFinished, "alerts"): _alerts_in,
}


def _checks(cls: type) -> Iterator[tuple[Any, _Check]]:
    """Yield the fields of *cls* that are checked when they are read, each with what reads it."""
    for spec in attrs.fields(cls):
        if (cls, spec.name) in _READERS:
            yield spec, _READERS[cls, spec.name]
        elif issubclass(cls, Event) and spec.name in ("texts", "fields"):
            yield spec, _seals_in
        elif (check := _WALL_OF.get((cls, spec.name), _WALL.get(spec.name))) is not None:
            yield spec, _check_or_none(check) if spec.default is None else _check_always(check)


def _check_always(check: Callable[[Any], Any]) -> _Check:
    return lambda raw, _type: check(raw)


def _check_or_none(check: Callable[[Any], Any]) -> _Check:
    return lambda raw, _type: None if raw is None else check(raw)


__all__ = [
    "GENESIS",
    "MAX_BODY",
    "MAX_DEPTH",
    "Sealed",
    "Sealer",
    "chain",
    "damaged_index",
    "decode",
    "documents",
    "dumps",
    "encode",
    "entry_id",
    "loads",
    "outputs_of",
    "packages",
    "parse_time",
    "print_time",
    "read_document",
    "read_event",
    "reason_of",
    "private_pairs",
    "structure",
    "structure_inputs",
    "structure_lineage",
    "structure_version",
    "texts",
    "time_of",
    "unstructure",
    "unstructure_inputs",
    "unstructure_lineage",
    "unstructure_version",
    "values",
    "without",
]
