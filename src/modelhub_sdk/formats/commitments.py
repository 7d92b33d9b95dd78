"""Commitments: the salted digests in an entry's body that stand for private texts, and whether those texts fit.

The fields of the type `Sealed` say where commitments stand, so a file's digest is never taken for one. What
a newer release may have added (an unknown kind of event, an unknown field) is not judged: a digest there is
*possible*, so the private part may have a text for it, but need not.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import attrs
from attrs import frozen

from modelhub_sdk.domain.events import KINDS, Sealed
from modelhub_sdk.errors import InvalidDocument
from modelhub_sdk.formats import codec
from modelhub_sdk.ports import Record

_Reader = Callable[[Any], Iterator[str]]

_ENTRY = frozenset({"actor", "at", "events", "format", "id", "min_reader", "scope", "seq", "via"})
_VIA = frozenset({"host", "sdk"})


@frozen
class Commitments:
    """The digests in one entry's body: those that stand for a text, and those of which only a newer release knows."""

    certain: frozenset[str]
    possible: frozenset[str]


def commitments(body: bytes) -> Commitments:
    """Return the commitments in the *body* of an entry that decodes."""
    raw = json.loads(body)
    certain = {raw.get("actor"), raw["via"].get("host")}
    possible = set(_strings_beside(raw, _ENTRY)) | set(_strings_beside(raw["via"], _VIA))
    for event in raw["events"]:
        cls = KINDS.get(event["kind"])
        if cls is None:
            possible |= set(_strings(event))
        else:
            certain |= set(_reader(cls)(event))
            possible |= set(_unknown(cls, event))
    return Commitments(_digests(certain), _digests(possible))


def _digests(values: set[Any]) -> frozenset[str]:
    return frozenset(value for value in values if codec.is_link(value))


# --- by type ------------------------------------------------------------------------------------------


def _nothing(_value: Any) -> Iterator[str]:
    yield from ()


def _itself(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value


def _reader(hint: Any) -> _Reader:
    return _made_reader(hint)


@functools.cache
def _made_reader(hint: Any) -> _Reader:
    """Return the function that yields the commitments in the JSON of a value of the type *hint*."""
    if hint is Sealed:
        return _itself
    if attrs.has(hint):
        return _of_class(hint)
    args = [arg for arg in get_args(hint) if arg not in (NoneType, Ellipsis)]
    readers = [reader for reader in map(_reader, args) if reader is not _nothing]
    if not readers:
        return _nothing
    (reader,) = readers  # of a mapping its values, of a tuple its items, of an optional what it may be
    origin = get_origin(hint)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return lambda value: (seal for item in value.values() for seal in reader(item))
    if origin is tuple:
        return lambda value: (seal for item in value for seal in reader(item))
    return reader


def _of_class(cls: type) -> _Reader:
    fields = {name: reader for name, reader in _fields(cls).items() if reader is not _nothing}
    if not fields:
        return _nothing

    def read(value: Any) -> Iterator[str]:
        for name, reader in fields.items():
            if value.get(name) is not None:
                yield from reader(value[name])

    return read


def _fields(cls: type) -> dict[str, _Reader]:
    hints = get_type_hints(cls)
    return {field.name: _reader(hints[field.name]) for field in attrs.fields(cls)}


# --- what only a newer release knows ------------------------------------------------------------------


@functools.cache
def _inner(cls: type) -> tuple[frozenset[str], dict[str, type]]:
    """Return the names of a class's fields, and the classes of the items of those that hold a tuple of them."""
    hints = get_type_hints(cls)
    names = frozenset(field.name for field in attrs.fields(cls)) | {"kind"}
    items = {
        name: get_args(hints[name])[0] for name in names & set(hints) if get_origin(hints[name]) is tuple
    }
    return names, {name: item for name, item in items.items() if attrs.has(item)}


def _unknown(cls: type, value: Any) -> Iterator[str]:
    """Yield the strings in fields that *cls* does not have."""
    if not isinstance(value, dict):
        return
    names, items = _inner(cls)
    yield from _strings_beside(value, names)
    for name, item in items.items():
        for one in value.get(name) or ():
            yield from _unknown(item, one)


def _strings_beside(value: Mapping[str, Any], names: frozenset[str]) -> Iterator[str]:
    for name, item in value.items():
        if name not in names:
            yield from _strings(item)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


# --- the texts ----------------------------------------------------------------------------------------


@frozen
class Private:
    """The private part of an entry: the texts that fit their commitment, the commitments of all, and what is wrong."""

    texts: Mapping[str, str]
    stored: frozenset[str]
    problems: tuple[str, ...] = ()
    readable: bool = True


def private(record: Record) -> Private:
    """Return the private part of *record*, whatever it holds."""
    try:
        pairs = codec.private_pairs(record)
    except InvalidDocument as error:
        return Private({}, frozenset(), (str(error),), readable=False)
    texts = {digest: text for digest, (salt, text) in pairs.items() if fits(digest, salt, text)}
    problems = []
    if len(texts) < len(pairs):
        problems.append(
            f"Entry {record.seq}: {len(pairs) - len(texts)} private texts were changed: they do not fit their digests."
        )
    elif record.private and record.private != codec.dumps({d: list(pair) for d, pair in pairs.items()}):
        problems.append(
            f"Entry {record.seq}: its private part was rewritten: it is not spelled as it was stored."
        )
    return Private(texts, frozenset(pairs), tuple(problems))


def fits(digest: str, salt: str, text: str) -> bool:
    """Return whether *digest* is the commitment to *text* under *salt*, in hex as it is written."""
    try:
        raw = bytes.fromhex(salt)
    except ValueError:
        return False
    return raw.hex() == salt and hashlib.sha256(raw + text.encode()).hexdigest() == digest


__all__ = ["Commitments", "Private", "commitments", "fits", "private"]
