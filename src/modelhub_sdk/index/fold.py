"""The fold: one event to its row changes. It reads nothing, so a thousand entries are one batch.

A fold is total: every event that decodes folds, whatever a strange writer put into it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from math import isfinite
from typing import Any

from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain.lineage import elsewhere
from modelhub_sdk.domain.uri import node_of
from modelhub_sdk.domain.values import Value, leaves, number, text_of, to_json
from modelhub_sdk.formats import codec
from modelhub_sdk.index import schema
from modelhub_sdk.index.schema import FOREVER
from modelhub_sdk.index.sql import Sql

_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def micros(at: datetime) -> int:
    """Return *at* as whole microseconds since 1970, UTC."""
    delta = at - _EPOCH
    return (delta.days * 86400 + delta.seconds) * 1_000_000 + delta.microseconds


# What may lawfully come twice: a use that two writers took from the inbox, a model of an old scope.
_TWICE = dict.fromkeys(
    ("used", "gone", "text", "key", "model", "fact", "dataset", "datum", "run", "finish", "edge", "metric"),
    " ON CONFLICT DO NOTHING",
) | {
    # A run may change a parameter while it is on.
    "param": " ON CONFLICT (model, number, name) DO UPDATE SET value = excluded.value, text = excluded.text"
}
_COLUMNS = {table.name: len(table.columns) for table in schema.TABLES}
_INSERT = {
    name: f"INSERT INTO @{name} VALUES ({', '.join('?' * count)})" + _TWICE.get(name, "")
    for name, count in _COLUMNS.items()
}
_CLOSE = "UPDATE @fact SET until = ? WHERE model = ? AND number = ? AND name = ? AND until = ?"
_CLOSE_VALUE = _CLOSE + " AND value = ?"

_Place = tuple[str, int, str]


REGISTRY = "@registry"
"""Under what is kept that holds of the registry itself, beside its settings."""


def seen_at(url: str) -> str:
    """Return under what is kept what was last seen behind a plain URL."""
    return "@url:" + hashlib.sha256(url.encode()).hexdigest()


GARBAGE = "@garbage"
"""Under what `BlobsCondemned` and its kin are kept: number 0 each digest, number 1 the last deletion."""


class Batch:
    """Row changes of some entries, written together."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[Any, ...]]] = {}
        self._open: dict[_Place, dict[str, list[Any]]] = {}  # asserted in this batch, and still true
        self._closed: list[list[Any]] = []
        self._closing: list[tuple[Any, ...]] = []
        self._closing_value: list[tuple[Any, ...]] = []
        self._gone: dict[str, str | None] = {}  # erased texts: seal -> what is shown instead
        self._leaves: list[tuple[str, int, str, str]] = []
        self.seq = 0
        self.at = 0
        self.n = 0
        self.texts: Mapping[str, str] = {}

    def insert(self, table: str, *row: Any) -> None:
        """Write one row that never changes."""
        self.rows.setdefault(table, []).append(row)

    def many(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        """Write rows that never change."""
        if rows:
            self.rows.setdefault(table, []).extend(rows)

    def state(self, model: str, version: int, name: str, value: str) -> None:
        """From this entry on, *value* is true of *name*."""
        row = [model, version, name, value, self.seq, FOREVER]
        self._open.setdefault((model, version, name), {}).setdefault(value, row)

    def end(self, model: str, version: int, name: str, value: str | None = None) -> None:
        """From this entry on, *value* (or whatever was) is no longer true of *name*."""
        fresh = self._open.get((model, version, name), {})
        if value is None:
            self._closing.append((self.seq, model, version, name, FOREVER))
            ended = list(fresh.values())
            fresh.clear()
        else:
            self._closing_value.append((self.seq, model, version, name, FOREVER, value))
            ended = [fresh.pop(value)] if value in fresh else []
        for row in ended:
            if row[4] < self.seq:  # said and unsaid in one entry: it never was
                row[5] = self.seq
                self._closed.append(row)

    def become(self, model: str, version: int, name: str, value: str | None) -> None:
        """From this entry on, *value* is the one thing true of *name*; None: nothing is."""
        self.end(model, version, name)
        if value is not None:
            self.state(model, version, name, value)

    def forget(self, model: str, version: int, seq: int, seal: str) -> None:
        """Erase a text, and what was made of it."""
        self._leaves.append((model, version, *_inside(seal)))
        self.replace(seq, seal, None)

    def replace(self, seq: int, seal: str, shown: str | None) -> None:
        """Erase the text behind *seal* of entry *seq*; *shown* stands in its place from now on, in the past too."""
        self._gone[seal] = shown
        self.insert("gone", seq, seal, self.seq)

    def write(self, sql: Sql) -> None:
        """Write all of it: first what ends in rows that stand already, then the new rows."""
        if self._closing:
            sql.many(_CLOSE, self._closing)
        if self._closing_value:
            sql.many(_CLOSE_VALUE, self._closing_value)
        facts = [tuple(row) for row in self._closed]
        facts += [tuple(row) for values in self._open.values() for row in values.values()]
        if facts:
            self.rows["fact"] = facts
        for table, rows in self.rows.items():
            sql.many(_INSERT[table], rows)
        if self._gone:
            sql.many(
                "DELETE FROM @text WHERE seal = ? OR (seal >= ? AND seal < ?)",
                [(seal, *_inside(seal)) for seal in self._gone],
            )
            sql.many(
                _INSERT["text"], [(seal, shown) for seal, shown in self._gone.items() if shown is not None]
            )
        if self._leaves:
            sql.many(
                "DELETE FROM @fact WHERE model = ? AND number = ? AND name >= 'leaf:' AND name < 'leaf;'"
                " AND value >= ? AND value < ?",
                self._leaves,
            )


def _inside(seal: str) -> tuple[str, str]:
    """Return the bounds of everything that begins with the seal and a dot."""
    return seal + ".", seal + "/"


def fold(batch: Batch, entry: ev.Entry) -> None:
    """Add the row changes of *entry* to *batch*."""
    batch.seq = entry.seq
    batch.at = micros(entry.at)
    batch.texts = entry.private
    batch.insert(
        "entry",
        entry.seq,
        entry.id,
        entry.scope,
        micros(entry.at),
        entry.actor,
        codec.dumps(dict(entry.via)).decode(),
    )
    for seal, text in entry.private.items():
        batch.insert("text", seal, text)
    for n, (event, document) in enumerate(zip(entry.events, codec.documents(entry), strict=True)):
        batch.n = n
        batch.insert(
            "event",
            entry.seq,
            n,
            event.name if isinstance(event, ev.Unknown) else event.kind,
            *event.about,
            document,
        )
        _fold(event, batch)


@functools.singledispatch
def _fold(event: ev.Event, batch: Batch) -> None:
    """Events without a rule of their own change no state: they are audit only."""


@_fold.register
def _(event: ev.SettingsChanged, batch: Batch) -> None:
    for name, value in event.settings.items():
        batch.end("", 0, "setting:" + name)
        if value is not None:  # a setting may be long, and a fact's value is part of keys
            place = f"{batch.seq}:{batch.n}:{name}"
            batch.insert("text", place, json.dumps(to_json(value)))
            batch.state("", 0, "setting:" + name, place)


@_fold.register
def _(event: ev.Redacted, batch: Batch) -> None:
    for seq, seal in event.items:
        batch.forget(event.model, event.number, seq, seal)


@_fold.register
def _(event: ev.UserForgotten, batch: Batch) -> None:
    for items, shown in (
        (event.names, event.pseudonym),
        (event.values, ev.printed_value(event.pseudonym)),
        (event.erased, None),
    ):
        for seq, seal in items:
            batch.replace(seq, seal, shown)


@_fold.register
def _(event: ev.ModelCreated, batch: Batch) -> None:
    batch.insert("model", event.model, batch.seq, batch.n)
    _texts(batch, event.model, 0, event.texts, event.fields)
    _add(batch, event.model, 0, "tag", event.tags)
    _add(batch, event.model, 0, "project", event.projects)


@_fold.register
def _(event: ev.ModelEdited, batch: Batch) -> None:
    _texts(batch, event.model, 0, event.texts, event.fields)
    _remove(batch, event.model, 0, "tag", event.remove_tags)
    _add(batch, event.model, 0, "tag", event.add_tags)
    _remove(batch, event.model, 0, "project", event.remove_projects)
    _add(batch, event.model, 0, "project", event.add_projects)


@_fold.register
def _(event: ev.AliasMoved, batch: Batch) -> None:
    value = {
        "weights": {str(number): weight for number, weight in event.weights.items()},
        "seq": batch.seq,
        "reason": event.reason,
    }
    batch.become(event.model, 0, "alias:" + event.alias, json.dumps(value, sort_keys=True))


@_fold.register
def _(event: ev.AliasDeleted, batch: Batch) -> None:
    batch.end(event.model, 0, "alias:" + event.alias)


@_fold.register
def _(event: ev.VersionRegistered, batch: Batch) -> None:
    model, version = event.model, event.number
    batch.insert(
        "version",
        model,
        version,
        batch.seq,
        batch.n,
        event.manifest,
        event.size,
        event.run_id,
    )
    batch.state(model, version, "status", "pending")
    batch.many("metric", [(model, version, name, *_cell(value)) for name, value in event.metrics.items()])
    batch.many("param", [(model, version, name, *_cell(value)) for name, value in event.params.items()])
    batch.many("file", [(model, version, file.path, file.size, file.digest) for file in event.files])
    batch.many(
        "external",
        [(model, version, x.path, x.digest, x.url, x.version, batch.seq) for x in event.external],
    )
    _texts(batch, model, version, event.texts, event.fields)
    _add(batch, model, version, "tag", event.tags)
    uri = f"model://{model}/v{version}"
    if event.origin is not None:  # what its inputs were called elsewhere may mean something else here
        _edge(batch, elsewhere(event.origin.registry, event.origin.uri), uri)
    elif event.run_id is not None:
        _edge(batch, "run:" + event.run_id, uri)
    else:
        for source in event.inputs:
            _edge(batch, source, uri)
    if event.key is not None:
        batch.insert("key", "model:" + model, event.key, batch.seq, version, event.content or "")


@_fold.register
def _(event: ev.VersionEdited, batch: Batch) -> None:
    _texts(batch, event.model, event.number, event.texts, event.fields)
    _remove(batch, event.model, event.number, "tag", event.remove_tags)
    _add(batch, event.model, event.number, "tag", event.add_tags)


@_fold.register(ev.VersionApproved)
@_fold.register(ev.VersionRejected)
@_fold.register(ev.VersionReopened)
def _(event: ev.VersionApproved | ev.VersionRejected | ev.VersionReopened, batch: Batch) -> None:
    status = {"version.approved": "approved", "version.rejected": "rejected"}.get(event.kind, "pending")
    batch.become(event.model, event.number, "status", status)
    batch.become(event.model, event.number, "decided", str(batch.seq))
    batch.become(event.model, event.number, "text:reason", event.reason)


@_fold.register
def _(event: ev.Archived, batch: Batch) -> None:
    batch.become(event.model, event.number, "archived", "yes")


@_fold.register
def _(event: ev.Restored, batch: Batch) -> None:
    batch.end(event.model, event.number, "archived")


@_fold.register
def _(event: ev.RegistryFrozen, batch: Batch) -> None:
    batch.become(REGISTRY, 0, "frozen", event.reason or "")


@_fold.register
def _(event: ev.RegistryThawed, batch: Batch) -> None:
    batch.end(REGISTRY, 0, "frozen")


@_fold.register
def _(event: ev.BlobsChanged, batch: Batch) -> None:
    for digest in event.digests:
        batch.become(GARBAGE, 0, digest, None if event.state is None else f"{event.state} {batch.at}")
    if event.state == "deleted":
        batch.become(GARBAGE, 1, "last", str(batch.seq))


@_fold.register
def _(event: ev.VersionPurged, batch: Batch) -> None:
    if event.paths is None:
        batch.become(event.model, event.number, "purged", str(batch.seq))
    else:
        for path in event.paths:
            batch.become(event.model, event.number, "purged:" + path, str(batch.seq))


@_fold.register
def _(event: ev.DatasetCreated, batch: Batch) -> None:
    subject, _number = event.about
    batch.insert("dataset", subject, event.dataset, batch.seq, batch.n)
    _texts(batch, subject, 0, event.texts, event.fields)
    _add(batch, subject, 0, "tag", event.tags)
    _add(batch, subject, 0, "project", event.projects)


@_fold.register
def _(event: ev.DatasetVersionCreated, batch: Batch) -> None:
    subject, number = event.about
    batch.insert(
        "datasetversion",
        subject,
        number,
        event.version,
        batch.seq,
        batch.n,
        event.manifest,
        event.size,
        event.run_id,
    )
    batch.many("file", [(subject, number, file.path, file.size, file.digest) for file in event.files])
    _texts(batch, subject, number, {}, event.fields)
    _add(batch, subject, number, "tag", event.tags)
    uri = f"dataset://{event.dataset}/{event.version}"
    if event.base is not None:
        _edge(batch, event.base, uri, "based on")
    if event.run_id is not None:
        _edge(batch, "run:" + event.run_id, uri)
    else:
        for source in event.inputs:
            _edge(batch, source, uri)
    if event.key is not None:
        batch.insert("key", subject, event.key, batch.seq, number, event.content or "")


@_fold.register
def _(event: ev.DatasetAliasMoved, batch: Batch) -> None:
    value = {"version": event.version, "seq": batch.seq, "reason": event.reason}
    batch.become(event.about[0], 0, "alias:" + event.alias, json.dumps(value, sort_keys=True))


@_fold.register
def _(event: ev.DatasetAliasDeleted, batch: Batch) -> None:
    batch.end(event.about[0], 0, "alias:" + event.alias)


@_fold.register
def _(event: ev.DatumsStored, batch: Batch) -> None:
    for datum in event.datums:
        batch.insert(
            "datum", datum.id, datum.name, datum.size, datum.digest, event.run_id, batch.seq, batch.n
        )
        _add(batch, "datum:" + datum.id, 0, "tag", datum.tags)
        if event.run_id is not None:
            _edge(batch, "run:" + event.run_id, "datum://" + datum.id, datum.name)


@_fold.register
def _(event: ev.DatumAliasMoved, batch: Batch) -> None:
    batch.become("datum", 0, "alias:" + event.alias, event.datum)


@_fold.register
def _(event: ev.RunStarted, batch: Batch) -> None:
    subject, attempt = event.about
    batch.insert(
        "run",
        subject,
        attempt,
        event.run_id,
        event.name,
        event.project,
        event.step,
        event.pipeline,
        event.group,
        event.parent,
        event.code.commit,
        batch.seq,
        batch.n,
    )
    batch.state(subject, attempt, "status", "running")
    _add(batch, subject, attempt, "tag", event.tags)
    batch.many("param", [(subject, attempt, name, *_cell(value)) for name, value in event.params.items()])
    code = event.code.commit or event.code.script
    if code is not None:
        _edge(batch, "code:" + code, subject, event.code.entry or "")
    if event.parent is not None:
        _edge(batch, "run:" + event.parent, subject, "started")


@_fold.register
def _(event: ev.RunFinished, batch: Batch) -> None:
    subject, attempt = event.about
    batch.become(subject, attempt, "status", event.status)
    batch.insert("finish", subject, attempt, batch.at, event.duration, batch.seq, batch.n)
    batch.many("param", [(subject, attempt, name, *_cell(value)) for name, value in event.params.items()])
    batch.many("metric", [(subject, attempt, name, *_cell(value)) for name, value in event.metrics.items()])
    _add(batch, subject, attempt, "tag", event.tags)
    for one in event.inputs:
        if one.uri.startswith(("model://", "dataset://", "datum://")):
            _edge(batch, one.uri, subject, one.name or "")
            continue
        for file in one.files:
            _edge(batch, "file:" + file.digest, subject, one.name or file.path)
            if "://" in one.uri:
                batch.become(seen_at(one.uri), 0, "seen", f"{file.digest} {event.run_id}")


@_fold.register
def _(event: ev.OutputsIngested, batch: Batch) -> None:
    batch.insert("key", "outputs", event.key, batch.seq, batch.n, "")
    for row in event.outputs if event.run_id is not None else ():
        _edge(batch, f"run:{event.run_id}", f"file:{row['digest']}", row["path"])


@_fold.register
def _(event: ev.UsesRecorded, batch: Batch) -> None:
    for use in event.uses:
        batch.insert(
            "used",
            use.id,
            use.model,
            use.number,
            use.asked,
            micros(use.at),
            use.actor,
            use.host,
            use.run_id,
            batch.seq,
        )


def _edge(batch: Batch, source: str, target: str, label: str = "") -> None:
    batch.insert("edge", node_of(source), target, label, batch.seq)


def _texts(
    batch: Batch,
    model: str,
    version: int,
    texts: Mapping[str, str | None],
    fields: Mapping[str, str | None],
) -> None:
    for name, seal in texts.items():
        batch.become(model, version, "text:" + name, seal)
    for name, seal in fields.items():
        batch.become(model, version, "field:" + name, seal)
        batch.end(model, version, "leaf:" + name)
        printed = batch.texts.get(seal or "", "")
        if seal is None or not printed.startswith("j:"):
            continue
        value = ev.unsealed_value(printed)
        parts = leaves(value) if isinstance(value, Mapping) else [("", value)]
        for n, (path, part) in enumerate(parts):  # so that fields.a.b finds what lies inside
            text = text_of(part)
            place = f"{seal}.{n}"  # the path is as private as the value: both are texts under the seal
            batch.insert("text", place + ".k", path)
            batch.insert("text", place + ".v", ev.printed_value(part if text is None else text))
            batch.state(model, version, "leaf:" + name, place)


def _add(batch: Batch, model: str, version: int, name: str, values: Iterable[str]) -> None:
    for value in values:
        batch.state(model, version, name, value)


def _remove(batch: Batch, model: str, version: int, name: str, values: Iterable[str]) -> None:
    for value in values:
        batch.end(model, version, name, value)


def _cell(value: Value) -> tuple[float | None, str | None]:
    """Return what the index compares: a finite number, or a text."""
    if type(value) is float and isfinite(value):  # the common case, in a loop over millions
        return value + 0.0, None  # -0.0 becomes 0.0, as SQLite stores it: one index on every backend
    return number(value), text_of(value)


def apply(sql: Sql, entries: Iterable[ev.Entry]) -> None:
    """Write the row changes of *entries* to the index."""
    batch = Batch()
    for entry in entries:
        fold(batch, entry)
    batch.write(sql)


__all__ = ["GARBAGE", "REGISTRY", "Batch", "apply", "fold", "micros"]
