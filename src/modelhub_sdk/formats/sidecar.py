r"""Sidecars: the JSON that a training script writes beside its outputs. Bytes in, facts and problems out.

Two forms (VALOHAI.md, sections 0 to 2):

* ``valohai.metadata.jsonl`` in the outputs root, one object a line:
  ``{"file": "sub/model.pkl", "metadata": {…}}`` (`parse_jsonl`);
* ``<file>.metadata.json`` beside a file, the metadata object alone (`parse_sidecar`).

Four keys of a metadata object are annotations (``valohai.model-versions``,
``valohai.dataset-versions``, ``valohai.alias``, ``valohai.tags``); every other key is a property of
the file, plain data whatever it is called. Nothing here raises on content: what cannot be honoured
is a problem with its place, and costs only itself. A line that is no JSON object costs that line, a
bad annotation that annotation, a bad value that value.

Rules that are ours, where the format leaves them open:

* Lines end at ``\n`` bytes alone; UTF-8, a byte-order mark is accepted.
* A repeated key: the last one counts, and it is a problem; of ``file`` or ``metadata``, the line is
  refused, for readers would not agree which file is meant.
* ``NaN`` and the infinities, which Python writes, are kept as floats.
* ``./model.pkl`` is ``model.pkl``. Several lines about one file are united: annotations and tags are
  added up, of two values of one property the later counts, and it is a problem.
* One annotation of the same URI twice is one: tags united, different notes joined.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from attrs import evolve, frozen

from modelhub_sdk.domain.entities import Alert
from modelhub_sdk.domain.names import (
    MAX_TEXT,
    check_name,
    check_path,
    check_tag,
    check_text,
    check_version_name,
)
from modelhub_sdk.domain.uri import DatasetURI, ModelURI, Number
from modelhub_sdk.domain.values import MAX_DEPTH, MAX_DIGITS, Frozen, Value
from modelhub_sdk.errors import InvalidName, InvalidURI, nearest, shown

__all__ = [
    "JSONL_NAME",
    "MAX_FILE",
    "MAX_LINE",
    "MAX_LINES",
    "MAX_PROBLEMS",
    "SUFFIX",
    "DatasetAnnotation",
    "FileMetadata",
    "ModelAnnotation",
    "Sidecars",
    "merge",
    "pairs",
    "parse_jsonl",
    "parse_sidecar",
]

JSONL_NAME = "valohai.metadata.jsonl"
"""The name of the sidecar in the outputs root."""
SUFFIX = ".metadata.json"
"""What follows a file's name in the name of its own sidecar."""
MAX_LINE = 8_000_000
"""Bytes in one line of the jsonl, and in one ``.metadata.json``."""
MAX_FILE = 64_000_000
"""Bytes in a jsonl."""
MAX_LINES = 2_000_000
"""Lines in a jsonl."""
MAX_PROBLEMS = 100
"""Problems listed for one sidecar; the rest are counted in one more."""

_MODELS = "valohai.model-versions"
_DATASETS = "valohai.dataset-versions"
_ALIAS = "valohai.alias"
_TAGS = "valohai.tags"
_RESERVED = (_MODELS, _DATASETS, _ALIAS, _TAGS)
_WORDS = tuple(key.removeprefix("valohai.") for key in _RESERVED)
_MODEL_KEYS = ("model_uri", "model_version_tags", "model_release_note")
_DATASET_KEYS = frozenset(
    (
        "uri",
        "from",
        "start_fresh",
        "exclude",
        "targeting_aliases",
        "packaging",
        "associated_project_ids",
        _TAGS,
    )
)

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_NOTHING = Frozen()
_BARE_MODEL = re.compile(r"model://[^/]*")
T = TypeVar("T")


@frozen
class ModelAnnotation:
    """This file belongs to a new version of a model.

    `uri` names the model (the next number is given) or a version by number; `tags` and `note` are
    those of the version.
    """

    uri: ModelURI
    tags: tuple[str, ...] = ()
    note: str | None = None


@frozen
class DatasetAnnotation:
    """This file belongs to a version of a dataset.

    `from_` is the URI of the version that it starts from, `exclude` the files to leave out of that
    one; `extra` holds keys that are not known here.
    """

    uri: DatasetURI
    from_: str | None = None
    start_fresh: bool = False
    exclude: tuple[str, ...] = ()
    targeting_aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    packaging: bool = False
    associated_project_ids: tuple[str, ...] = ()
    extra: Frozen = _NOTHING


@frozen
class FileMetadata:
    """What the sidecars say about one file, by its path in the outputs.

    `line` is the first line about it in the jsonl, None if it is not there.
    """

    file: str
    properties: Frozen = _NOTHING
    models: tuple[ModelAnnotation, ...] = ()
    datasets: tuple[DatasetAnnotation, ...] = ()
    alias: str | None = None
    tags: tuple[str, ...] = ()
    line: int | None = None


@frozen
class Sidecars:
    """What one sidecar says, or several: one entry a file, in the order of their first mention."""

    entries: tuple[FileMetadata, ...] = ()
    problems: tuple[Alert, ...] = ()
    source: str = ""


def parse_jsonl(data: bytes, *, source: str = JSONL_NAME) -> Sidecars:
    """Return what the jsonl *data* says; *source* is its name in problems. Never raises on content."""
    reading = _Reading(source)
    if len(data) > MAX_FILE:
        reading.problem(f"The file has {len(data)} bytes; {MAX_FILE} are allowed. All of it is ignored.")
    elif (text := _encoded_otherwise(data)) is not None:
        reading.problem(text)
    elif data.count(b"\n") > MAX_LINES:
        reading.problem(f"The file has more than {MAX_LINES} lines. All of it is ignored.")
    else:
        before: bytes | None = None
        for number, raw in _lines(data):
            if raw == before:
                continue  # a good line again says nothing new
            bad = len(reading.problems) + reading.unlisted
            reading.read_line(number, raw)
            before = raw if len(reading.problems) + reading.unlisted == bad else None
    return reading.result()


def parse_sidecar(data: bytes, *, file: str, source: str) -> Sidecars:
    """Return what the ``.metadata.json`` *data* says about *file*, a path in the outputs.

    *source* is the sidecar's own name in problems. Never raises on content.
    """
    reading = _Reading(source)
    if len(data) > MAX_LINE:
        reading.problem(f"The file has {len(data)} bytes; {MAX_LINE} are allowed. All of it is ignored.")
    elif (text := _encoded_otherwise(data)) is not None:
        reading.problem(text)
    else:
        reading.read_whole(file, data)
    return reading.result()


def merge(jsonl: Sidecars, sidecars: Iterable[Sidecars]) -> Sidecars:
    """Return what the *jsonl* and the *sidecars* say together, with the problems of all.

    They are merged key by key. Where both have a key, the jsonl's value counts; if the other is
    different, that is a problem more.
    """
    entries = {entry.file: entry for entry in jsonl.entries}
    problems = list(jsonl.problems)
    for sidecar in sidecars:
        problems += sidecar.problems
        for entry in sidecar.entries:
            known = entries.get(entry.file)
            if known is None:
                entries[entry.file] = entry
                continue
            entries[entry.file], conflicts = _merged(known, entry)
            winner = jsonl.source or "another sidecar"
            where = f"{winner}, line {known.line}" if known.line else winner
            problems += [
                Alert(
                    f"{shown(key)} of {shown(entry.file)} differs from {where}, which counts.",
                    sidecar.source,
                    key=shown(key, 200)[1:-1],
                )
                for key in conflicts
            ]
    return Sidecars(tuple(entries.values()), tuple(problems), jsonl.source)


def pairs(paths: Collection[str]) -> dict[str, str]:
    """Return which of these *paths* in the outputs are sidecars of which others: ``{sidecar: file}``.

    The file must be among *paths*, spelled alike: without one, ``x.metadata.json`` is an output like
    any other. The sidecar of a sidecar is an ordinary output, too. *paths* needs a fast ``in``.
    """
    found = {}
    for path in paths:
        file = path.removesuffix(SUFFIX)
        if file in (path, JSONL_NAME) or file not in paths or file.endswith("/"):
            continue
        if file.endswith(SUFFIX) and file.removesuffix(SUFFIX) in paths:
            continue
        found[path] = file
    return found


def _merged(winner: FileMetadata, loser: FileMetadata) -> tuple[FileMetadata, list[str]]:
    """Return both merged, and the keys for which *loser* said something else."""
    conflicts = [
        key
        for key, value in loser.properties.items()
        if key in winner.properties and not _same(winner.properties[key], value)
    ]
    changes: dict[str, Any] = {"properties": Frozen({**loser.properties, **winner.properties})}
    for name, key in (("models", _MODELS), ("datasets", _DATASETS), ("alias", _ALIAS), ("tags", _TAGS)):
        mine, other = getattr(winner, name), getattr(loser, name)
        if not mine:
            changes[name] = other
        elif other and (mine != other if name == "alias" else set(mine) != set(other)):
            conflicts.append(key)
    return evolve(winner, **changes), conflicts


def _same(one: Value, other: Value) -> bool:
    return one is other or (type(one) is type(other) and one == other)


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield ``(number, line)``, split at newline bytes alone, without a byte-order mark."""
    start = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    number = 0
    while start < len(data):
        number += 1
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        yield number, data[start:end]
        start = end + 1


def _encoded_otherwise(data: bytes) -> str | None:
    """Return what is wrong with *data* as a whole, or None."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in data[:2]:
        return "The file is not UTF-8 text; it may be UTF-16. Write it with encoding='utf-8'."
    if data[:2] == b"\x1f\x8b":
        return "The file is compressed. Write it as plain text."
    return None


# --- Reading JSON ---------------------------------------------------------------------------------


class _Repeating(dict[str, Any]):
    """An object that had a key more than once; the last value is in it."""

    __slots__ = ("repeated",)
    repeated: tuple[str, ...]


class _TooLong:
    """Stands for an integer with more digits than are kept."""


def _integer(digits: str) -> int | _TooLong:
    try:
        return int(digits) if len(digits.removeprefix("-")) <= MAX_DIGITS else _TooLong()
    except ValueError:  # the interpreter may be set to less
        return _TooLong()


_CONSTANTS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_SHORT = 600
"""Characters of a text that cannot hold a too long integer."""


class _Unusable(Exception):
    """Why a value cannot be kept; never leaves this module."""


def _kept(value: Any, depth: int = 1) -> Value:
    """Return the parsed JSON *value* with lists as tuples and objects as `Frozen`, or raise _Unusable."""
    kind = type(value)
    if kind is str:
        return _storable(value)
    if kind is float or kind is int or kind is bool or value is None:
        return value  # type: ignore[no-any-return]
    if kind is _TooLong:
        raise _Unusable(f"has an integer of more than {MAX_DIGITS} digits")
    if depth > MAX_DEPTH:
        raise _Unusable(f"is nested deeper than {MAX_DEPTH} levels")
    if kind is list:
        return tuple([_kept(item, depth + 1) for item in value])
    return Frozen({_storable(key): _kept(item, depth + 1) for key, item in value.items()})


def _storable(text: str) -> str:
    if ("\x00" in text) if text.isascii() else _UNSTORABLE.search(text):
        raise _Unusable("has a NUL or half of a surrogate pair, which no store keeps")
    return text


def _repeats(value: Any) -> Iterator[str]:
    """Yield the keys that are repeated in objects anywhere within *value*, not too deep."""
    stack = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        if depth > MAX_DEPTH:
            continue
        if isinstance(item, dict):
            if isinstance(item, _Repeating):
                yield from item.repeated
            stack.extend((v, depth + 1) for v in item.values() if type(v) is not str)
        elif isinstance(item, list):
            stack.extend((v, depth + 1) for v in item if isinstance(v, (dict, list)))


# --- One sidecar ------------------------------------------------------------------------------------


class _Version:
    """What the annotations of one model URI said so far."""

    __slots__ = ("notes", "tags")

    def __init__(self) -> None:
        self.tags: dict[str, None] = {}
        self.notes: dict[str, None] = {}


class _Entry:
    """What was read about one file so far."""

    __slots__ = ("alias", "datasets", "file", "line", "models", "properties", "tags")

    def __init__(self, file: str, line: int | None) -> None:
        self.file = file
        self.line = line
        self.properties: dict[str, Value] = {}
        self.models: dict[ModelURI, _Version] = {}
        self.datasets: dict[DatasetURI, DatasetAnnotation] = {}
        self.alias: str | None = None
        self.tags: dict[str, None] = {}


class _Reading:
    """One sidecar being read: the entries and problems so far, and the text at hand."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.entries: dict[str, _Entry] = {}
        self.problems: list[Alert] = []
        self.unlisted = 0
        self.text = ""
        self.line: int | None = None  # of the jsonl; None while a whole sidecar is read
        self.repeating = False  # whether the text has an object with a repeated key
        constant = _CONSTANTS.__getitem__
        # A hook for integers makes parsing slower, and a short text cannot hold a long one.
        self.decoder = json.JSONDecoder(object_pairs_hook=self.made, parse_constant=constant)
        self.careful = json.JSONDecoder(
            object_pairs_hook=self.made, parse_constant=constant, parse_int=_integer
        )

    def result(self) -> Sidecars:
        """Return what was read."""
        entries = tuple(self.finished(entry) for entry in self.entries.values())
        problems = self.problems
        if self.unlisted:
            problems = [
                *problems,
                Alert(f"There are {self.unlisted} more problems in this file.", self.source),
            ]
        return Sidecars(entries, tuple(problems), self.source)

    def finished(self, entry: _Entry) -> FileMetadata:
        models = []
        self.line, self.text = entry.line, ""
        for uri, version in entry.models.items():
            note = "\n\n".join(version.notes) or None
            if note is not None and len(note) > MAX_TEXT:
                self.problem(f"The joined notes for {uri} are too long; the end is cut off.", key=_MODELS)
                note = note[:MAX_TEXT]
            models.append(ModelAnnotation(uri, tuple(version.tags), note))
        return FileMetadata(
            entry.file,
            Frozen(entry.properties),
            tuple(models),
            tuple(entry.datasets.values()),
            entry.alias,
            tuple(entry.tags),
            entry.line,
        )

    def problem(self, message: str, *, key: str | None = None, offset: int | None = None) -> None:
        """Note a problem at *offset* of the text at hand; without one, where *key* stands in it."""
        if len(self.problems) >= MAX_PROBLEMS:
            self.unlisted += 1
            return
        line, column = self.line, None
        if offset is None and key is not None:
            name = next((reserved for reserved in _RESERVED if key.startswith(reserved)), key)
            at = self.text.find(json.dumps(name, ensure_ascii=False))
            offset = at if at >= 0 else None
        if offset is not None:
            column = offset - self.text.rfind("\n", 0, offset)
            if line is None:
                line = self.text.count("\n", 0, offset) + 1
        if key is not None:
            key = shown(key, 200)[1:-1]
        self.problems.append(Alert(message, self.source, line, column, key))

    # --- from bytes to objects

    def made(self, found: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return a JSON object as a dict, and as a `_Repeating` if that loses a value."""
        result = dict(found)
        if len(result) == len(found):
            return result
        self.repeating = True
        seen: set[str] = set()
        again: dict[str, None] = {}
        for key, _ in found:
            if key in seen:
                again[key] = None
            seen.add(key)
        marked = _Repeating(result)
        marked.repeated = tuple(again)
        return marked

    def read_line(self, number: int, raw: bytes) -> None:
        """Read one line of the jsonl."""
        self.line, self.text = number, ""
        if len(raw) > MAX_LINE:
            self.problem(f"The line has {len(raw)} bytes; {MAX_LINE} are allowed. It is ignored.")
            return
        if not raw.strip(b" \t\r"):
            return
        found = self.load(raw)
        if found is None:
            return
        metadata = found.get("metadata")
        if len(found) != 2 or type(metadata) is not dict or "file" not in found or type(found) is _Repeating:
            if not self.usable_line(found):
                return
            metadata = found["metadata"]
        named = found["file"]
        entry = self.entries.get(named) if type(named) is str else None
        if entry is None:
            file = self.path(named)
            if file is None:
                return
            entry = self.entries.get(file)
            if entry is None:
                entry = self.entries[file] = _Entry(file, number)
        self.read_metadata(metadata, entry)

    def usable_line(self, found: dict[str, Any]) -> bool:
        """Say what is unusual about a line; return whether it can be used all the same."""
        repeated = found.repeated if isinstance(found, _Repeating) else ()
        for key in ("file", "metadata"):
            if key in repeated:
                self.problem(f"The line has the key '{key}' more than once. It is ignored.", key=key)
                return False
            if key not in found:
                self.problem(
                    f'The line has no key \'{key}\'. Write {{"file": …, "metadata": {{…}}}}. It is ignored.'
                )
                return False
        if not isinstance(found["metadata"], dict):
            self.problem(
                f"'metadata' is {_kind(found['metadata'])}, not an object. The line is ignored.",
                key="metadata",
            )
            return False
        for key in found:
            if key not in ("file", "metadata"):
                self.problem(f"The key {shown(key)} beside 'file' and 'metadata' is ignored.", key=key)
        return True

    def read_whole(self, file: str, raw: bytes) -> None:
        """Read a sidecar of one file."""
        found = self.load(raw.removeprefix(b"\xef\xbb\xbf"))
        if found is not None:
            self.entries[file] = entry = _Entry(file, None)
            self.read_metadata(found, entry)

    def load(self, raw: bytes) -> dict[str, Any] | None:
        """Return the JSON object that *raw* is, or note what it is instead."""
        self.repeating = False
        try:
            self.text = text = raw.decode()
        except UnicodeDecodeError as error:
            # Enough of the text to count lines and columns: what comes before the fault.
            self.text = raw[: error.start].decode(errors="replace")
            self.problem("This is not UTF-8 text. Write it with encoding='utf-8'.", offset=len(self.text))
            return None
        try:
            found = (self.decoder if len(text) < _SHORT else self.careful).decode(text)
        except json.JSONDecodeError as error:
            why = error.msg[:1].lower() + error.msg[1:]
            cut = error.pos >= len(text.rstrip(" \t\r\n"))
            more = " It ends too early; was its writer stopped?" if cut else ""
            self.problem(f"This is not JSON: {why}.{more}", offset=error.pos)
            return None
        except (RecursionError, ValueError):
            self.problem("This is nested too deeply, or has a number too long, to be read. It is ignored.")
            return None
        if not isinstance(found, dict):
            self.problem(f"This is {_kind(found)}, not an object.")
            return None
        return found

    def path(self, file: object) -> str | None:
        """Return the one spelling of *file*, or note why it is no path in the outputs."""
        if not isinstance(file, str):
            self.problem(f"'file' is {_kind(file)}, not text. The line is ignored.", key="file")
            return None
        try:
            if "./" in file and len(file) < 10_000:
                file = "/".join(segment for segment in file.split("/") if segment != ".")
            path = check_path(file, "path in 'file'")
        except InvalidName as error:
            self.problem(f"{error} Paths are relative to the outputs. The line is ignored.", key="file")
            return None
        if path == JSONL_NAME:
            self.problem("'file' names this sidecar itself. The line is ignored.", key="file")
            return None
        return path

    # --- from objects to facts

    def read_metadata(self, metadata: dict[str, Any], entry: _Entry) -> None:
        """Read one metadata object into *entry*."""
        for key in _repeats(metadata) if self.repeating else ():
            self.problem(f"The key {shown(key)} is there more than once; the last one counts.", key=key)
        properties = entry.properties
        for key, value in metadata.items():
            if key.startswith("valohai.") and self.read_reserved(key, value, entry):
                continue
            try:
                kept = _kept(value)
                if key in properties and not _same(properties[key], kept):
                    self.problem(
                        f"{shown(key)} of this file has another value before; this one counts.", key=key
                    )
                properties[_storable(key)] = kept
            except _Unusable as error:
                self.problem(f"The value or name of {shown(key)} {error}. It is ignored.", key=key)

    def read_reserved(self, key: str, value: Any, entry: _Entry) -> bool:
        """Read an annotation; return False if *key* is none and so a property."""
        if key == _MODELS:
            for name, item in self.items(key, value):
                self.read_model(name, item, entry)
        elif key == _DATASETS:
            for name, item in self.items(key, value):
                self.read_dataset(name, item, entry)
        elif key == _TAGS:
            entry.tags.update(dict.fromkeys(self.texts(key, value, check_tag)))
        elif key == _ALIAS:
            self.read_alias(value, entry)
        else:
            if len(self.problems) < MAX_PROBLEMS and (close := nearest(key[8:], _WORDS, 1)):
                self.problem(
                    f"{shown(key)} is not known and kept as a property. Was 'valohai.{close[0]}' meant?",
                    key=key,
                )
            return False
        return True

    def read_model(self, name: str, item: Any, entry: _Entry) -> None:
        """Read one model annotation: a URI, or an object with one."""
        options: Mapping[str, Any] = {}
        if isinstance(item, dict):
            options = item
            for key in item:
                if key not in _MODEL_KEYS:
                    self.problem(f"The key {shown(key)} in {name} is not known and ignored.", key=name)
            if "model_uri" not in item:
                self.problem(
                    f'{name} has no \'model_uri\'. Write {{"model_uri": "model://<name>/"}}.', key=name
                )
                return
            item = item["model_uri"]
        uri = self.target(name, item)
        if uri is None:
            return
        version = entry.models.setdefault(uri, _Version())
        tags = options.get("model_version_tags")
        version.tags.update(dict.fromkeys(self.texts(f"{name}.model_version_tags", tags, check_tag)))
        note = options.get("model_release_note")
        if note is not None and (text := self.checked(f"{name}.model_release_note", note, _note)):
            version.notes[text] = None

    def target(self, name: str, text: Any) -> ModelURI | None:
        """Return the model, or the version by number, that an annotation may name."""
        if isinstance(text, str) and _BARE_MODEL.fullmatch(text):
            text += "/"  # "model://churn" can only mean the model here
        uri = self.checked(name, text, ModelURI.parse)
        if uri is None:
            return None
        if uri.path is not None:
            self.problem(f"{name} has a path in its URI. Write model://{uri.name}/ and no more.", key=name)
        elif uri.selector is not None and not isinstance(uri.selector, Number):
            self.problem(
                f"{name} names {uri}, which can only be read. Write model://{uri.name}/ for a new version.",
                key=name,
            )
        else:
            return uri
        return None

    def read_dataset(self, name: str, item: Any, entry: _Entry) -> None:
        """Read one dataset annotation: a URI, or an object with one."""
        options: Mapping[str, Any] = {}
        if isinstance(item, dict):
            options = item
            if "uri" not in item:
                self.problem(
                    f'{name} has no \'uri\'. Write {{"uri": "dataset://<name>/<version>"}}.', key=name
                )
                return
            item = item["uri"]
        uri = self.checked(name, item, _dataset_target)
        if uri is None:
            return
        base, count = options.get("from"), len(self.problems) + self.unlisted
        base = None if base is None else self.checked(f"{name}.from", base, _dataset_base)
        exclude = self.texts(f"{name}.exclude", options.get("exclude"), _file_name)
        fresh = self.flag(f"{name}.start_fresh", options.get("start_fresh"))
        if len(self.problems) + self.unlisted > count:
            return  # a version with other files than were asked for is worse than none
        annotation = DatasetAnnotation(
            uri,
            None if base is None else str(base),
            fresh,
            exclude,
            self.texts(f"{name}.targeting_aliases", options.get("targeting_aliases"), _dataset_alias),
            self.texts(f"{name}.{_TAGS}", options.get(_TAGS), check_tag),
            self.flag(f"{name}.packaging", options.get("packaging")),
            self.texts(f"{name}.associated_project_ids", options.get("associated_project_ids"), _project_id),
            self.others(name, options),
        )
        known = entry.datasets.setdefault(uri, annotation)
        if known != annotation:
            self.problem(
                f"{name} says something else about {uri} than before; what was first counts.", key=name
            )

    def others(self, name: str, options: Mapping[str, Any]) -> Frozen:
        """Return the unknown keys of a dataset annotation, as far as they can be kept."""
        found = {}
        for key, value in options.items():
            if key not in _DATASET_KEYS:
                try:
                    found[_storable(key)] = _kept(value)
                except _Unusable as error:
                    self.problem(
                        f"The value or name of {shown(key)} in {name} {error}. It is ignored.", key=name
                    )
        return Frozen(found)

    def read_alias(self, value: Any, entry: _Entry) -> None:
        """Read the alias of the file; a list of one is seen in the wild, and clear."""
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is None:
            return
        alias = self.checked(_ALIAS, value, _file_alias)
        if alias is None:
            return
        if entry.alias not in (None, alias):
            self.problem(f"{shown(_ALIAS)} of this file is another before; this one counts.", key=_ALIAS)
        entry.alias = alias

    def items(self, key: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Yield the items of a list, or the one that stands in its place, each with its name."""
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield f"{key}[{index}]", item
        else:
            yield key, value

    def texts(self, name: str, value: Any, check: Callable[[object], str]) -> tuple[str, ...]:
        """Return the good ones of a list of texts, each once; None and a lone text are lists, too."""
        if value is None:
            return ()
        found = (self.checked(place, item, check) for place, item in self.items(name, value))
        return tuple(dict.fromkeys(text for text in found if text is not None))

    def flag(self, name: str, value: Any) -> bool:
        """Return *value* as a bool; None is False."""
        if value is None or isinstance(value, bool):
            return bool(value)
        self.problem(f"{name} is {_kind(value)}; write true or false.", key=name)
        return False

    def checked(self, name: str, value: Any, check: Callable[[object], T]) -> T | None:
        """Return what *check* makes of *value*, or note under *name* why it cannot be used."""
        if not isinstance(value, str):
            self.problem(f"{name} is {_kind(value)}, not text. It is ignored.", key=name)
            return None
        try:
            return check(value)
        except (InvalidName, InvalidURI) as error:
            self.problem(f"{name}: {error.message} {error.hint}".rstrip(), key=name)
            return None


def _kind(value: Any) -> str:
    """Return what JSON calls *value*, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list):
        return "an array"
    return "an object" if isinstance(value, dict) else "a number"


def _note(text: object) -> str:
    return check_text(text, "release note")


def _file_alias(text: object) -> str:
    return check_name(text, "alias")


def _dataset_alias(text: object) -> str:
    return check_version_name(text, "dataset alias")


def _file_name(text: object) -> str:
    return check_text(text, "file name", 1024)


def _project_id(text: object) -> str:
    return check_tag(text, "project id")


def _dataset_base(text: object) -> DatasetURI:
    """Return the dataset version that *text* names."""
    uri = DatasetURI.parse(text)
    if uri.version is None or uri.path is not None:
        raise InvalidName(
            f"{shown(str(uri))} names no version.", hint=f"Write dataset://{uri.name}/<version>."
        )
    return uri


def _dataset_target(text: object) -> DatasetURI:
    """Return the dataset version that *text* names, if it can be written."""
    uri = _dataset_base(text)
    if uri.version == "latest":
        raise InvalidName(
            f"{shown(str(uri))} names no version to make.", hint=f"Write dataset://{uri.name}/<version>."
        )
    return uri
