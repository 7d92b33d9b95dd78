"""Entries as canonical JSON, and the chain over them: the one cattrs converter lives here.

Canonical JSON: sorted keys, no spaces, UTF-8, no NaN (non-finite numbers are tagged, see
``domain.values.to_json``), times as UTC microseconds ``2026-08-01T10:00:00.000000Z``.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

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
    DatumNoted,
    Entry,
    Event,
    External,
    Sealed,
    Sealer,
    Unknown,
    UseNoted,
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


_canonical = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
).encode


def dumps(value: Any) -> bytes:
    """Return *value* (plain JSON types) as canonical JSON bytes."""
    return _canonical(value).encode()


def print_time(at: datetime) -> str:
    """Return an aware time as ``2026-08-01T10:00:00.000000Z``."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """Return the aware UTC time that `print_time` printed."""
    if len(text) != 27 or text[26] != "Z":
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
        raw = _loaded(record.body)
        if raw["min_reader"] > FORMAT:
            raise JournalTooNew(
                f"Entry {record.seq} of the journal needs a newer modelhub_sdk (format {raw['min_reader']}, "
                f"this one reads {FORMAT}).",
                hint="Upgrade: pip install -U modelhub-sdk",
            )
        if raw["seq"] != record.seq or raw["scope"] != record.scope:
            raise ValueError("its number or scope is not that of its place")
        return Entry(
            seq=raw["seq"],
            id=raw["id"],
            scope=raw["scope"],
            at=parse_time(raw["at"]),
            actor=raw["actor"],
            via=Frozen(raw["via"]),
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
            f"Entry {record.seq} of the journal cannot be read: {type(error).__name__}: {shown(str(error))}.",
            hint="Run reg.verify(), and restore the journal from a backup.",
        ) from None


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
        raw = _loaded(record.private) if record.private else {}
        pairs = {digest: (salt, text) for digest, (salt, text) in raw.items()}
        if not all(type(salt) is str and type(text) is str for salt, text in pairs.values()):
            raise TypeError
    except Exception as error:  # noqa: BLE001  # any damage at all becomes one typed error that names the entry
        raise _PrivateDamage(
            f"Entry {record.seq} of the journal: its private part is damaged ({type(error).__name__}).",
            hint="Run reg.verify(), and restore the journal from a backup.",
        ) from None
    return pairs


def _loaded(data: bytes) -> Any:
    """Return what *data*, JSON in UTF-8, holds; half a surrogate pair, which no text in UTF-8 has, is a ValueError."""
    value = json.loads(data)
    if b"\\u" in data:  # only then can there be one
        _canonical(value).encode()
    return value


def entry_id(record: Record) -> str | None:
    """Return the id in the body of *record*, None when it cannot be read."""
    try:
        found = json.loads(record.body)["id"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


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
    """Return the event of plain JSON types *raw*; unknown fields are ignored, unknown kinds are kept."""
    cls = KINDS.get(raw["kind"])
    if cls is None:
        return Unknown(name=raw["kind"], data=Frozen(raw))
    event: Event = _converter().structure(raw, cls)
    return event


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
    except (AttributeError, cattrs.StructureHandlerNotFoundError, cattrs.BaseValidationError) as error:
        raise ValueError(str(type(error).__name__)) from None
    except ModelHubError as error:  # a time, a value
        raise ValueError(str(error)) from None


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


def structure_input(raw: Mapping[str, Any]) -> RunInput:
    """Return one of the inputs that `unstructure_inputs` wrote."""
    one: RunInput = _converter().structure(raw, RunInput)
    return one


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

    def hooks(cls: type, which: int) -> Any:
        name = ("unstruct_hook", "struct_hook")[which]
        return {
            spec.name: override(**{name: _HOOKS[spec.name][which]})  # type: ignore[arg-type]
            for spec in attrs.fields(cls)
            if spec.name in _HOOKS and not (cls in _SNAPSHOT and spec.name in _ROWS)
        }

    # By factory, so that each class is prepared when it is first met: all of them would cost 30 ms at start.
    conv.register_unstructure_hook_factory(
        lambda cls: cls in ours,
        lambda cls: make_dict_unstructure_fn(cls, conv, _cattrs_omit_if_default=True, **hooks(cls, 0)),
    )
    conv.register_structure_hook_factory(
        lambda cls: cls in ours,
        lambda cls: make_dict_structure_fn(cls, conv, _cattrs_detailed_validation=False, **hooks(cls, 1)),
    )
    return conv


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
    return tuple(File(row["path"], row["size"], row["digest"]) for row in raw)


def _packages_out(packages: Any) -> Any:
    return packages if packages is None or isinstance(packages, str) else dict(packages)


def _packages_in(raw: Any, _type: Any) -> Any:
    return raw if raw is None or isinstance(raw, str) else Frozen(raw)


def _weights_out(weights: Mapping[int, int]) -> dict[str, int]:
    return {str(number): weight for number, weight in weights.items()}


def _weights_in(raw: Mapping[str, int], _type: Any) -> Frozen:
    return Frozen({int(number): weight for number, weight in raw.items()})


def _rows_out(rows: tuple[Mapping[str, Any], ...]) -> list[Any]:
    return [_values_out(row) for row in rows]


def _rows_in(raw: list[Mapping[str, Any]], _type: Any) -> tuple[Frozen, ...]:
    return tuple(_values_in(row, None) for row in raw)


_SNAPSHOT = (LineageRecord, RunRecord, LineageGraph, Node, Edge, Decision, Output, Alert, Use, AuditRecord)
_ROWS = ("outputs", "alerts")  # values of their own there, plain mappings in events

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

__all__ = [
    "GENESIS",
    "MAX_BODY",
    "Sealed",
    "Sealer",
    "chain",
    "decode",
    "documents",
    "dumps",
    "encode",
    "entry_id",
    "parse_time",
    "print_time",
    "private_pairs",
    "structure",
    "structure_input",
    "structure_lineage",
    "structure_version",
    "texts",
    "unstructure",
    "unstructure_inputs",
    "unstructure_lineage",
    "unstructure_version",
    "values",
    "without",
]
