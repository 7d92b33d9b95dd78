"""Every question about state, asked of the index as it was at one entry of the journal.

`View` answers with the frozen values of ``domain.entities``, or with what the rules decide upon.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from attrs import frozen

from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain import stored
from modelhub_sdk.domain.audit import action_of, described
from modelhub_sdk.domain.entities import (
    Alias,
    Attachment,
    AuditRecord,
    Comment,
    Evaluation,
    Model,
    ModelVersion,
    Use,
    one_line,
)
from modelhub_sdk.domain.query import Order, Query
from modelhub_sdk.domain.values import Frozen, from_json
from modelhub_sdk.errors import InvalidDocument, ModelHubError, shown
from modelhub_sdk.formats import codec
from modelhub_sdk.index import search
from modelhub_sdk.index.fold import GARBAGE, REGISTRY, micros
from modelhub_sdk.index.schema import FOREVER
from modelhub_sdk.index.sql import Sql, parts

NOW = FOREVER - 1
"""The seq of a view that shows all that is there."""

_FACTS = "SELECT name, value FROM @fact WHERE model = ? AND number = ? AND since <= ? AND until > ? ORDER BY since, value"
_LATEST = (
    "SELECT f.number FROM @fact f WHERE f.model = ? AND f.name = 'status' AND f.value = 'approved'"
    " AND f.since <= ? AND f.until > ? AND NOT EXISTS (SELECT 1 FROM @fact a WHERE a.model = f.model"
    " AND a.number = f.number AND a.name = 'archived' AND a.since <= ? AND a.until > ?)"
    " ORDER BY f.number DESC LIMIT 1"
)
Key = tuple[str, int]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@frozen
class Frost:
    """When, by whom and why a registry was frozen, and in which entry."""

    seq: int
    at: datetime
    by: str | None
    reason: str | None


@frozen
class Garbage:
    """What is known of bytes: ``condemned``, ``deleting`` or ``deleted``, by which entry, and when."""

    state: str
    seq: int
    at: datetime


@frozen
class Purge:
    """When, by whom and why files were given up."""

    at: datetime
    by: str | None
    reason: str | None

    def told(self) -> str:
        """Return it as the end of a sentence about the files."""
        return one_line(
            f"by {self.by or '(redacted)'} on {self.at:%Y-%m-%d}: {self.reason or '(no reason kept)'}"
        )


@frozen
class GivenUp:
    """What was purged of a version: `whole`, all of it; `files`, some of them before, or alone."""

    whole: Purge | None
    files: Mapping[str, Purge]

    def why(self, path: str) -> Purge | None:
        """Return when, by whom and why the file *path* was given up, None if it was not."""
        return self.files.get(path, self.whole)


@frozen
class VersionState:
    """What the rules need to know of a version."""

    model: str
    number: int
    status: str
    archived: bool
    purged: bool
    purged_files: tuple[str, ...]
    seq: int
    manifest: str
    decided_by: str | None
    reason: str | None
    tags: tuple[str, ...]
    texts: Mapping[str, str | None]
    fields: Mapping[str, str | None]


def names_in(rows: Iterable[tuple[Any, ...]], what: str) -> list[str]:
    """Return the names in the first column of *rows*: file systems make paths of them."""
    found = [row[0] for row in rows]
    for name in found:
        if not stored.is_name(name):
            raise codec.damaged_index(what, InvalidDocument(f"{shown(name)} is no name."))
    return found


def _text_of(value: object, model: str, name: str) -> str:
    """Return the value of a fact, which SQLite would also keep as bytes or as a number."""
    if type(value) is not str:
        raise codec.damaged_index(model, InvalidDocument(f"{shown(name)} is {shown(value)} instead of text."))
    return value


@contextmanager
def cells() -> Iterator[None]:
    """Make one typed error of whatever a cell of the index that somebody changed makes a read or a rule raise.

    Raises:
        InvalidDocument: the index holds what no registry writes; the cause is the error that it led to.
    """
    try:
        yield
    except ModelHubError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise codec.damaged_index("something that was asked for", error) from error


class View:
    """Reads of the index, as of entry *at*."""

    def __init__(self, sql: Sql, at: int = NOW) -> None:
        self.sql = sql
        self.at = at

    # --- the registry --------------------------------------------------------------------------

    def head(self) -> tuple[int, str, datetime | None]:
        """Return seq, chain digest and time of the last entry folded."""
        row = self.sql.one("SELECT seq, chain, at FROM @head WHERE one = 1")
        return (row[0], row[1], when(row[2])) if row else (0, codec.GENESIS, None)

    def registry(self) -> str:
        """Return the id of the registry that was folded; empty when there is none."""
        row = self.sql.one("SELECT registry FROM @head WHERE one = 1")
        return str(row[0]) if row else ""

    def settings(self) -> dict[str, Any]:
        """Return the registry's settings."""
        rows = self.sql.all(
            "SELECT f.name, t.body FROM @fact f JOIN @text t ON t.seal = f.value WHERE f.model = '' AND f.number = 0"
            " AND f.since <= ? AND f.until > ?",
            self.at,
            self.at,
        )
        return {name.removeprefix("setting:"): from_json(codec.loads(body)) for name, body in rows}

    def seq_at(self, moment: datetime) -> int:
        """Return the last entry that is not after *moment*; 0 before the first."""
        row = self.sql.one("SELECT max(seq) FROM @entry WHERE at <= ?", micros(moment))
        return (row[0] if row else 0) or 0

    def key(self, scope: str, key: str) -> tuple[int, int, str | None] | None:
        """Return (seq, number, digest of the content) behind an idempotency key; None for an erased digest."""
        row = self.sql.one(
            "SELECT k.seq, k.number, (SELECT t.body FROM @text t WHERE t.seal = k.content) FROM @key k"
            " WHERE k.scope = ? AND k.key = ?",
            scope,
            key,
        )
        return (row[0], row[1], row[2]) if row else None

    def ingested(self, key: str) -> ev.OutputsIngested | None:
        """Return what the ingest with this key did, None when there was none."""
        before = self.key("outputs", key)
        if before is None:
            return None
        row = self.sql.one("SELECT doc FROM @event WHERE seq = ? AND n = ?", before[0], before[1])
        event = codec.read_event(row[0] if row else "{}", f"entry {before[0]}")
        return event if isinstance(event, ev.OutputsIngested) else None

    def redacted(self, seqs: Iterable[int]) -> dict[int, set[str]]:
        """Return the seals erased from each of *seqs*, by whatever event."""
        found: dict[int, set[str]] = {seq: set() for seq in seqs}
        for part, marks in parts(list(found)):
            for seq, seal in self.sql.all(f"SELECT seq, seal FROM @gone WHERE seq IN ({marks})", *part):
                found[seq].add(seal)
        return found

    def last_erasure(self) -> int:
        """Return the last entry that erased texts, 0 when none did."""
        row = self.sql.one("SELECT max(by) FROM @gone WHERE by <= ?", self.at)
        return (row[0] if row else 0) or 0

    def erased_after(self, seq: int) -> list[int]:
        """Return the entries that lost texts by an entry after *seq*."""
        return [row[0] for row in self.sql.all("SELECT DISTINCT seq FROM @gone WHERE by > ?", seq)]

    def forgotten_uses(self, seq: int) -> set[str]:
        """Return the ids of the uses whose user or host was erased by an entry after *seq*."""
        rows = self.sql.all(
            "SELECT u.id FROM @gone g JOIN @used u ON u.seq = g.seq AND (u.actor = g.seal OR u.host = g.seal)"
            " WHERE g.by > ?",
            seq,
        )
        return {row[0] for row in rows}

    def forgettings(self, seq: int) -> list[tuple[int, ev.UserForgotten]]:
        """Return the events after entry *seq* that forgot a person, each with its entry."""
        rows = self.sql.all(
            "SELECT DISTINCT e.seq, e.n, e.doc FROM @gone g JOIN @event e ON e.seq = g.by"
            " WHERE g.by > ? AND e.kind = ? ORDER BY e.seq, e.n",
            seq,
            ev.UserForgotten.kind,
        )
        events = [(row[0], codec.read_event(row[2], f"entry {row[0]}")) for row in rows]
        return [(seq, event) for seq, event in events if isinstance(event, ev.UserForgotten)]

    def people(self) -> set[str]:
        """Return the names of all who wrote, own or used something."""
        names = {
            row[0]
            for row in self.sql.all("SELECT DISTINCT t.body FROM @entry e JOIN @text t ON t.seal = e.actor")
        }
        names |= {
            row[0]
            for row in self.sql.all("SELECT DISTINCT t.body FROM @used u JOIN @text t ON t.seal = u.actor")
        }
        owners = (
            "SELECT DISTINCT t.body FROM @fact f JOIN @text t ON t.seal = f.value WHERE f.name = 'text:owner'"
        )
        return names | {row[0] for row in self.sql.all(owners)}

    def last_forgotten(self) -> datetime | None:
        """Return when a person was last forgotten, None when nobody ever was."""
        row = self.sql.one(
            "SELECT max(e.at) FROM @entry e JOIN @event x ON x.seq = e.seq"
            " WHERE x.model = '' AND x.number = 0 AND x.kind = ?",
            ev.UserForgotten.kind,
        )
        return None if row is None or row[0] is None else when(row[0])

    def has_text(self, text: str) -> bool:
        """Return whether some private text is exactly *text*. Reads all of them."""
        return self.sql.one("SELECT 1 FROM @text WHERE body = ? LIMIT 1", text) is not None

    def all_redacted(self) -> dict[int, set[str]]:
        """Return all seals that were erased, by entry."""
        found: dict[int, set[str]] = {}
        for seq, seal in self.sql.all("SELECT seq, seal FROM @gone"):
            found.setdefault(seq, set()).add(seal)
        return found

    # --- models --------------------------------------------------------------------------------

    def has_model(self, name: str) -> bool:
        """Return whether the model exists."""
        return self.sql.one("SELECT 1 FROM @model WHERE model = ? AND seq <= ?", name, self.at) is not None

    def model_names(self) -> list[str]:
        """Return all names of models."""
        rows = self.sql.all("SELECT model FROM @model WHERE seq <= ? ORDER BY model", self.at)
        return names_in(rows, "the models")

    def last_number(self, model: str) -> int:
        """Return the highest version number given, 0 for none."""
        row = self.sql.one("SELECT max(number) FROM @version WHERE model = ? AND seq <= ?", model, self.at)
        return (row[0] if row else 0) or 0

    def numbers(self, model: str) -> list[int]:
        """Return the numbers of all versions of a model."""
        rows = self.sql.all(
            "SELECT number FROM @version WHERE model = ? AND seq <= ? ORDER BY number", model, self.at
        )
        return [row[0] for row in rows]

    def latest(self, model: str) -> int | None:
        """Return the highest number that is approved and not archived."""
        row = self.sql.one(_LATEST, model, self.at, self.at, self.at, self.at)
        return row[0] if row else None

    def with_status(self, model: str, status: str, limit: int = 20) -> tuple[int, ...]:
        """Return the newest numbers with *status*."""
        rows = self.sql.all(
            "SELECT number FROM @fact WHERE model = ? AND name = 'status' AND value = ? AND since <= ? AND until > ?"
            " ORDER BY number DESC LIMIT ?",
            model,
            status,
            self.at,
            self.at,
            limit,
        )
        return tuple(row[0] for row in rows)

    def facts(self, model: str, number: int) -> list[tuple[str, str]]:
        """Return what holds of a version, or of the model (number 0), as (name, value)."""
        return [
            (name, _text_of(value, model, name))
            for name, value in self.sql.all(_FACTS, model, number, self.at, self.at)
        ]

    def models(
        self,
        query: Query,
        order: Order | None,
        limit: int,
        offset: int,
        *,
        text: str | None,
        hide_archived: bool,
    ) -> tuple[list[Model], int]:
        """Return a page of models and the number of all that match."""
        clause = search.where(query, "models", self.sql.dialect, self.at)
        clause.add("v.seq <= ?", self.at)
        if hide_archived:
            clause.add(*_not_archived("0", self.at))
        if text:
            clause.add(*search.containing(self.sql.dialect, "v.model", self.at, text))
        names, total = self.page(
            "SELECT v.model FROM @model v", "@model v", clause, order, "models", limit, offset
        )
        return self._load_models([row[0] for row in names]), total

    def model(self, name: str) -> Model:
        """Return the model *name*, which exists."""
        return self._load_models([name])[0]

    def _load_models(self, names: Sequence[str]) -> list[Model]:
        """Return models, each question asked once for all of them."""
        found: list[Model] = []
        for part, marks in parts(names):
            found += self._load_models_chunk(part, f"({marks})")
        return found

    def _load_models_chunk(self, names: Sequence[str], marks: str) -> list[Model]:
        now = [self.at, self.at]
        live = (
            f"FROM @fact f WHERE f.model IN {marks} AND f.name = 'status' AND f.since <= ? AND f.until > ?"
            " AND NOT EXISTS (SELECT 1 FROM @fact a WHERE a.model = f.model AND a.number = f.number"
            " AND a.name = 'archived' AND a.since <= ? AND a.until > ?)"
        )
        facts: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
        for model, name, value in self.sql.all(
            f"SELECT model, name, value FROM @fact WHERE model IN {marks} AND number = 0 AND since <= ? AND until > ?"
            " ORDER BY since, value",
            *names,
            *now,
        ):
            facts[model].append((name, _text_of(value, model, name)))
        counts: dict[str, dict[str, int]] = {
            name: {"pending": 0, "approved": 0, "rejected": 0} for name in names
        }
        latest: dict[str, int] = {}
        for model, status, count, highest in self.sql.all(
            f"SELECT f.model, f.value, count(*), max(f.number) {live} GROUP BY f.model, f.value",
            *names,
            *now,
            *now,
        ):
            counts[model][status] = count
            if status == "approved":
                latest[model] = highest
        born = dict(self._pairs(f"SELECT model, seq FROM @model WHERE model IN {marks}", *names))
        last = dict(
            self._pairs(
                f"SELECT model, max(number) FROM @version WHERE model IN {marks} AND seq <= ? GROUP BY model",
                *names,
                self.at,
            )
        )
        changed = dict(
            self._pairs(
                f"SELECT model, max(seq) FROM @event WHERE model IN {marks} AND seq <= ? GROUP BY model",
                *names,
                self.at,
            )
        )
        entries = self.entries([*born.values(), *changed.values()])
        seals = [seal for name in names for seal in seals_in(facts[name])]
        texts = self.texts([*seals, *(entries[seq][1] for seq in born.values())])
        return [
            Model(
                name=name,
                title=text_value(facts[name], "title", texts),
                description=text_value(facts[name], "description", texts),
                fields=field_values(facts[name], texts),
                tags=all_values(facts[name], "tag"),
                owner=text_value(facts[name], "owner", texts),
                projects=all_values(facts[name], "project"),
                created_at=entries[born[name]][0],
                created_by=texts.get(entries[born[name]][1]),
                modified_at=entries[changed[name]][0],
                seq=changed[name],
                latest=latest.get(name),
                last_number=last.get(name, 0),
                counts=Frozen(counts[name]),
                aliases=Frozen(
                    {
                        n[6:]: Frozen(_weights(codec.loads(value)))
                        for n, value in sorted(facts[name])
                        if n.startswith("alias:")
                    }
                ),
                archived=any(n == "archived" for n, _ in facts[name]),
            )
            for name in names
        ]

    def _pairs(self, statement: str, *values: Any) -> list[tuple[str, int]]:
        return [(row[0], row[1]) for row in self.sql.all(statement, *values)]

    def alias(self, model: str, alias: str) -> Alias | None:
        """Return an alias, None when it points at nothing."""
        for name, value in self.facts(model, 0):
            if name == "alias:" + alias:
                raw = codec.loads(value)
                entry = self.entries([raw["seq"]])[raw["seq"]]
                texts = self.texts([entry[1], raw["reason"]])
                return Alias(
                    model=model,
                    name=alias,
                    weights=Frozen(_weights(raw)),
                    at=entry[0],
                    by=texts.get(entry[1]),
                    reason=texts.get(raw["reason"]),
                    seq=raw["seq"],
                )
        return None

    def alias_history(self, model: str, alias: str) -> list[Mapping[int, int]]:
        """Return what the alias pointed at, newest first."""
        rows = self.sql.all(
            "SELECT value FROM @fact WHERE model = ? AND number = 0 AND name = ? AND since <= ? ORDER BY since DESC",
            model,
            "alias:" + alias,
            self.at,
        )
        return [_weights(codec.loads(row[0])) for row in rows]

    # --- versions ------------------------------------------------------------------------------

    def state(self, model: str, number: int) -> VersionState | None:
        """Return what the rules need to know of a version, None when there is none."""
        row = self.sql.one(
            "SELECT v.manifest, (SELECT max(e.seq) FROM @event e WHERE e.model = v.model AND e.number = v.number"
            " AND e.seq <= ?) FROM @version v WHERE v.model = ? AND v.number = ? AND v.seq <= ?",
            self.at,
            model,
            number,
            self.at,
        )
        if row is None:
            return None
        facts = self.facts(model, number)
        one = dict(facts)
        decided = int(one["decided"]) if "decided" in one else None
        seals = seals_in(facts)
        by = None
        if decided is not None:
            by = self.entries([decided])[decided][1]
            seals.append(by)
        texts = self.texts(seals)
        return VersionState(
            model=model,
            number=number,
            status=one["status"],
            archived="archived" in one,
            purged="purged" in one,
            purged_files=_purged_files(one),
            seq=row[1],
            manifest=row[0],
            decided_by=texts.get(by) if by else None,
            reason=text_value(facts, "reason", texts),
            tags=all_values(facts, "tag"),
            texts=Frozen({n[5:]: texts.get(v) for n, v in facts if n.startswith("text:")}),
            fields=Frozen({n[6:]: texts.get(v) for n, v in facts if n.startswith("field:")}),
        )

    def by_manifest(self, model: str, manifest: str) -> int | None:
        """Return the highest approved version with this manifest, else the highest not archived."""
        rows = self.sql.all(
            "SELECT v.number, f.value FROM @version v JOIN @fact f ON f.model = v.model AND f.number = v.number"
            " AND f.name = 'status' AND f.since <= ? AND f.until > ? WHERE v.manifest = ? AND v.model = ? AND v.seq <= ?"
            " AND NOT EXISTS (SELECT 1 FROM @fact a WHERE a.model = v.model AND a.number = v.number"
            " AND a.name = 'archived' AND a.since <= ? AND a.until > ?)",
            self.at,
            self.at,
            manifest,
            model,
            self.at,
            self.at,
            self.at,
        )
        approved = [number for number, status in rows if status == "approved"]
        return max(approved or [number for number, _ in rows], default=None)

    def made_in_run(self, model: str, run_id: str, manifest: str) -> int | None:
        """Return the version of a model that a run made of exactly these files, None when it made none."""
        row = self.sql.one(
            "SELECT max(number) FROM @version WHERE model = ? AND run_id = ? AND manifest = ? AND seq <= ?",
            model,
            run_id,
            manifest,
            self.at,
        )
        return row[0] if row else None

    def used_by_run(self, run_id: str) -> list[str]:
        """Return the URIs of what a run resolved, by the uses that are in the journal."""
        rows = self.sql.all(
            "SELECT u.model, u.number, d.name FROM @used u LEFT JOIN @datasetversion d ON d.model = u.model"
            " AND d.number = u.number WHERE u.run_id = ? AND u.seq <= ? ORDER BY u.at, u.id",
            run_id,
            self.at,
        )
        found = []
        for model, number, name in rows:
            if model.startswith("dataset:"):
                found.append(f"dataset://{model[8:]}/{name}")
            else:
                found.append(
                    f"datum://{model[6:]}" if model.startswith("datum:") else f"model://{model}/v{number}"
                )
        return found

    def version(self, model: str, number: int) -> ModelVersion | None:
        """Return a version, None when there is none."""
        found = self._load([(model, number)])
        return found[0] if found else None

    def versions(
        self,
        query: Query,
        order: Order | None,
        limit: int,
        offset: int,
        *,
        model: str | None,
        hide_archived: bool,
    ) -> tuple[list[ModelVersion], int]:
        """Return a page of versions and the number of all that match."""
        clause = search.where(query, "versions", self.sql.dialect, self.at)
        clause.add("v.seq <= ?", self.at)
        if model is not None:
            clause.add("v.model = ?", model)
        if hide_archived:
            clause.add(*_not_archived("v.number", self.at))
        keys, total = self.page(
            "SELECT v.model, v.number FROM @version v", "@version v", clause, order, "versions", limit, offset
        )
        return self._load([(name, number) for name, number in keys]), total

    def holding(self, digest: str) -> list[Key]:
        """Return the versions with a file of this digest (those whose files stand in the index)."""
        rows = self.sql.all(
            "SELECT DISTINCT f.model, f.number FROM @file f JOIN @version v ON v.model = f.model AND v.number = f.number"
            " WHERE f.digest = ? AND v.seq <= ? ORDER BY f.model, f.number",
            digest,
            self.at,
        )
        return [(row[0], row[1]) for row in rows]

    def paths(self, subject: str) -> list[tuple[str, str]]:
        """Return (path, digest) of the files of all versions of a model or dataset (those that stand in the index)."""
        rows = self.sql.all("SELECT DISTINCT path, digest FROM @file WHERE model = ?", subject)
        return [(row[0], row[1]) for row in rows]

    def documents(self) -> list[tuple[str, int, str]]:
        """Return (model, number, document) of the versions whose files stand in a document."""
        rows = self.sql.all(
            "SELECT e.model, e.number, e.doc FROM @event e JOIN @version v ON v.seq = e.seq AND v.n = e.n"
            " WHERE e.seq <= ? AND NOT EXISTS (SELECT 1 FROM @file f WHERE f.model = e.model AND f.number = e.number)",
            self.at,
        )
        found = []
        for model, number, doc in rows:
            event = codec.read_event(doc, f"model://{model}/v{number}")
            if isinstance(event, ev.VersionRegistered) and event.document is not None:
                found.append((model, number, event.document))
        return found

    def registered(self, model: str, number: int) -> ev.VersionRegistered:
        """Return the event that registered a version, which exists."""
        row = self.sql.one(
            "SELECT e.doc FROM @version v JOIN @event e ON e.seq = v.seq AND e.n = v.n"
            " WHERE v.model = ? AND v.number = ?",
            model,
            number,
        )
        return _registered(row[0] if row else "{}", (model, number))

    def elsewhere(self, digest: str) -> list[tuple[str, str | None]]:
        """Return URL and version of the places where versions that were not purged name these bytes."""
        rows = self.sql.all(
            "SELECT DISTINCT x.url, x.version FROM @external x WHERE x.digest = ? AND NOT EXISTS"
            " (SELECT 1 FROM @fact f WHERE f.model = x.model AND f.number = x.number AND f.until = ?"
            " AND (f.name = 'purged' OR f.name = 'purged:' || x.path)) ORDER BY x.url, x.version",
            digest,
            FOREVER,
        )
        return [(row[0], row[1]) for row in rows]

    def external(self) -> set[str]:
        """Return the digests of all bytes that versions which were not purged name by reference."""
        rows = self.sql.all(
            "SELECT DISTINCT x.digest FROM @external x WHERE NOT EXISTS"
            " (SELECT 1 FROM @fact f WHERE f.model = x.model AND f.number = x.number AND f.until = ?"
            " AND (f.name = 'purged' OR f.name = 'purged:' || x.path))",
            FOREVER,
        )
        return {row[0] for row in rows}

    def registered_at(self, model: str, number: int) -> int:
        """Return the entry that registered a version, which exists."""
        row = self.sql.one("SELECT seq FROM @version WHERE model = ? AND number = ?", model, number)
        return int(row[0]) if row else 0

    def needed(self, digests: Iterable[str]) -> set[str]:
        """Return those of *digests* that are of a file which was not purged (and stands in the index)."""
        wanted = sorted(digests)
        kept: set[str] = set()
        for part, marks in parts(wanted):
            rows = self.sql.all(
                f"SELECT DISTINCT f.digest FROM @file f WHERE f.digest IN ({marks})"
                " AND NOT EXISTS (SELECT 1 FROM @fact p WHERE p.model = f.model AND p.number = f.number"
                " AND (p.name = 'purged' OR p.name = 'purged:' || f.path) AND p.until = ?)",
                *part,
                FOREVER,
            )
            kept |= {row[0] for row in rows}
        return kept

    def frozen(self) -> Frost | None:
        """Return by whom, when and why this registry was frozen; None when it is not."""
        row = self.sql.one(
            "SELECT since, value FROM @fact WHERE model = ? AND number = 0 AND name = 'frozen' AND until = ?",
            REGISTRY,
            FOREVER,
        )
        if row is None:
            return None
        seq, seal = row
        at, actor, _via = self.entries([seq])[seq]
        texts = self.texts([actor, seal])
        return Frost(seq, at, texts.get(actor), texts.get(seal))

    def garbage(self, digests: Collection[str] | None = None) -> dict[str, Garbage]:
        """Return what is known of bytes that were condemned or deleted: of *digests*, or of all."""
        start = "SELECT name, value, since FROM @fact WHERE model = ? AND number = 0 AND until = ?"
        rows = []
        if digests is None:
            rows = self.sql.all(start, GARBAGE, FOREVER)
        elif self.sql.one(start + " LIMIT 1", GARBAGE, FOREVER):
            for part, marks in parts(sorted(digests)):
                rows += self.sql.all(f"{start} AND name IN ({marks})", GARBAGE, FOREVER, *part)
        found = {}
        for name, value, since in rows:
            state, moment = value.split()
            found[name] = Garbage(state, since, _EPOCH + timedelta(microseconds=int(moment)))
        return found

    def deleting(self, seq: int) -> ev.BlobsDeleting | None:
        """Return what entry *seq* says of bytes that it begins to delete, None when it says nothing."""
        row = self.sql.one(
            "SELECT doc FROM @event WHERE seq = ? AND kind = ? LIMIT 1", seq, ev.BlobsDeleting.kind
        )
        event = None if row is None else codec.read_event(row[0], f"entry {seq}")
        return event if isinstance(event, ev.BlobsDeleting) else None

    def all_files(self) -> list[tuple[str, str, int]]:
        """Return (model or dataset, digest, size) of every file that was not given up and stands in the index."""
        rows = self.sql.all(
            "SELECT DISTINCT f.model, f.digest, f.size FROM @file f WHERE NOT EXISTS (SELECT 1 FROM @fact p"
            " WHERE p.model = f.model AND p.number = f.number"
            " AND (p.name = 'purged' OR p.name = 'purged:' || f.path) AND p.until = ?)",
            FOREVER,
        )
        return [(row[0], row[1], row[2]) for row in rows]

    def stored_files(self) -> list[tuple[str, int, str, int]]:
        """Return (model or dataset, number, digest, size) of every file that was not given up and stands in the index."""
        rows = self.sql.all(
            "SELECT DISTINCT f.model, f.number, f.digest, f.size FROM @file f WHERE NOT EXISTS (SELECT 1 FROM @fact p"
            " WHERE p.model = f.model AND p.number = f.number"
            " AND (p.name = 'purged' OR p.name = 'purged:' || f.path) AND p.until = ?)"
            " ORDER BY f.model, f.number, f.digest",
            FOREVER,
        )
        return [(row[0], row[1], row[2], row[3]) for row in rows]

    def counts(self) -> dict[str, int]:
        """Return how many models, versions, datasets and runs there are."""
        tables = {"models": "@model", "versions": "@version", "datasets": "@dataset"}
        found = {name: self.sql.one(f"SELECT COUNT(*) FROM {table}") for name, table in tables.items()}
        found["runs"] = self.sql.one("SELECT COUNT(DISTINCT id) FROM @run")
        return {name: int(row[0]) if row else 0 for name, row in found.items()}

    def last_deletion(self) -> int:
        """Return the entry that deleted bytes last, 0 if none did."""
        row = self.sql.one(
            "SELECT value FROM @fact WHERE model = ? AND number = 1 AND name = 'last' AND until = ?",
            GARBAGE,
            FOREVER,
        )
        return int(row[0]) if row else 0

    def datum_digests(self) -> set[str]:
        """Return the digests of all datums."""
        return {row[0] for row in self.sql.all("SELECT digest FROM @datum")}

    def purged_digests(self) -> set[str]:
        """Return the digests of files that were given up (and stand in the index)."""
        rows = self.sql.all(
            "SELECT DISTINCT f.digest FROM @file f JOIN @fact p ON p.model = f.model AND p.number = f.number"
            " WHERE (p.name = 'purged' OR p.name = 'purged:' || f.path) AND p.until = ?",
            FOREVER,
        )
        return {row[0] for row in rows}

    def unknown(self, known: Collection[str]) -> list[str]:
        """Return the events, as JSON, of kinds that are not *known*."""
        marks = ", ".join("?" * len(known))
        return [row[0] for row in self.sql.all(f"SELECT doc FROM @event WHERE kind NOT IN ({marks})", *known)]

    def purge(self, model: str, number: int) -> GivenUp | None:
        """Return what was purged of a version, by whom, when and why; None if nothing was."""
        facts = [
            (n, int(v)) for n, v in self.facts(model, number) if n == "purged" or n.startswith("purged:")
        ]
        if not facts:
            return None
        entries = self.entries(seq for _, seq in facts)
        reasons = {
            seq: codec.loads(doc).get("reason") or ""
            for part, marks in parts(sorted(entries))
            for seq, doc in self.sql.all(
                f"SELECT seq, doc FROM @event WHERE kind = 'version.purged' AND seq IN ({marks})", *part
            )
        }
        texts = self.texts([*(actor for _, actor, _ in entries.values()), *reasons.values()])
        why = {
            seq: Purge(at, texts.get(actor), texts.get(reasons.get(seq, "")))
            for seq, (at, actor, _via) in entries.items()
        }
        return GivenUp(
            whole=next((why[seq] for name, seq in facts if name == "purged"), None),
            files=Frozen({name[7:]: why[seq] for name, seq in facts if name != "purged"}),
        )

    def texts_of(
        self, model: str, number: int, kinds: Sequence[str]
    ) -> list[tuple[int, str, dict[str, Any]]]:
        """Return (seq, kind, event) of the events about a subject, for redaction; all kinds when *kinds* is empty."""
        rows = self.sql.all(
            "SELECT seq, kind, doc FROM @event WHERE model = ? AND number = ? AND seq <= ? ORDER BY seq, n",
            model,
            number,
            self.at,
        )
        return [(seq, kind, codec.loads(doc)) for seq, kind, doc in rows if not kinds or kind in kinds]

    def names_of(self, model: str, number: int, what: str) -> set[tuple[int, str]]:
        """Return the users, or the hosts (*what*), of all that was done with a subject, as (seq, seal)."""
        rows = self.sql.all(
            "SELECT e.seq, e.actor, e.via FROM @entry e WHERE e.seq IN"
            " (SELECT x.seq FROM @event x WHERE x.model = ? AND x.number = ? AND x.seq <= ?)",
            model,
            number,
            self.at,
        )
        found = {(seq, actor if what == "user" else codec.loads(via).get("host")) for seq, actor, via in rows}
        used = self.sql.all(
            "SELECT seq, actor, host FROM @used WHERE model = ? AND number = ? AND seq <= ?",
            model,
            number,
            self.at,
        )
        found |= {(seq, actor if what == "user" else host) for seq, actor, host in used}
        return {(seq, seal) for seq, seal in found if seal}

    def events(self, *kinds: str) -> list[ev.Event]:
        """Return all events of some kinds, in order."""
        marks = ", ".join("?" * len(kinds))
        rows = self.sql.all(
            f"SELECT doc, seq FROM @event WHERE kind IN ({marks}) AND seq <= ? ORDER BY seq, n",
            *kinds,
            self.at,
        )
        return [codec.read_event(doc, f"entry {at}") for doc, at in rows]

    def since(self, seq: int, known: Collection[str]) -> tuple[list[ev.Event], list[str]]:
        """Return the events after entry *seq*, those of kinds that are not *known* as JSON."""
        rows = self.sql.all("SELECT kind, doc, seq FROM @event WHERE seq > ? ORDER BY seq, n", seq)
        return (
            [codec.read_event(doc, f"entry {at}") for kind, doc, at in rows if kind in known],
            [doc for kind, doc, _ in rows if kind not in known],
        )

    # --- uses and audit ------------------------------------------------------------------------

    def uses(self, model: str, number: int, uri: str | None = None) -> list[Use]:
        """Return the uses of a version (of the model, where *uri* is not given) that are in the journal, oldest first."""
        rows = self.sql.all(
            "SELECT id, asked, at, actor, host, run_id FROM @used WHERE model = ? AND number = ? AND seq <= ? ORDER BY at, id",
            model,
            number,
            self.at,
        )
        texts = self.texts([row[3] for row in rows] + [row[4] for row in rows])
        return [
            Use(
                id=row[0],
                uri=uri or f"model://{model}/v{number}",
                asked=row[1],
                at=when(row[2]),
                actor=texts.get(row[3]),
                host=texts.get(row[4]),
                run_id=row[5],
            )
            for row in rows
        ]

    def used_ids(self, ids: Sequence[str]) -> dict[str, datetime]:
        """Return those of *ids* that are in the journal, with the time of their entry."""
        found: dict[str, datetime] = {}
        for part, marks in parts(ids):
            for one, at in self.sql.all(
                f"SELECT u.id, e.at FROM @used u JOIN @entry e ON e.seq = u.seq WHERE u.id IN ({marks})",
                *part,
            ):
                found[one] = when(at)
        return found

    def recent_uses(self, since: datetime) -> dict[str, datetime]:
        """Return the ids of the uses that entered the journal after *since*, with the time of their entry."""
        rows = self.sql.all(
            "SELECT u.id, e.at FROM @entry e JOIN @used u ON u.seq = e.seq WHERE e.scope = 'registry' AND e.at >= ?",
            micros(since),
        )
        return {one: when(at) for one, at in rows}

    def audit(
        self,
        subject: Key | None,
        *,
        whole_model: bool,
        actor: str | None,
        action: str | None,
        since: datetime | None,
        until: datetime | None,
        limit: int,
        offset: int,
    ) -> tuple[list[AuditRecord], int]:
        """Return a page of what happened, newest first, and the number of all that match."""
        clause = search.Clause(self.sql.dialect, self.at)
        clause.add("x.seq <= ?", self.at)
        if subject is not None:
            if whole_model:
                clause.add("x.model = ?", subject[0])
            else:
                clause.add("x.model = ? AND x.number = ?", *subject)
        if actor is not None:
            clause.add("EXISTS (SELECT 1 FROM @text t WHERE t.seal = e.actor AND t.body = ?)", actor)
        if action is not None:
            clause.add(*clause_action(action))
        if since is not None:
            clause.add("e.at >= ?", micros(since))
        if until is not None:
            clause.add("e.at <= ?", micros(until))
        source = "FROM @event x JOIN @entry e ON e.seq = x.seq WHERE " + clause.where()
        rows = self.sql.all(
            f"SELECT x.seq, x.doc, x.kind, e.at, e.actor, e.via {source} ORDER BY x.seq DESC, x.n DESC LIMIT ? OFFSET ?",
            *clause.values,
            limit,
            offset,
        )
        (total,) = self.sql.one(f"SELECT count(*) {source}", *clause.values) or (0,)
        seals: list[str | None] = []
        for _seq, doc, _kind, _at, by, via in rows:
            seals += [by, codec.loads(via).get("host"), *_sealed_in(codec.loads(doc))]
        texts = self.texts(seals)
        return [self._record(row, texts) for row in rows], total

    def _record(self, row: tuple[Any, ...], texts: Mapping[str, str]) -> AuditRecord:
        seq, doc, kind, at, actor, via = row
        event = codec.read_event(doc, f"entry {seq}")
        raw = codec.loads(doc)
        where = codec.loads(via)
        host = texts.get(where.get("host", ""))
        subject, detail = described(event, texts)
        return AuditRecord(
            at=when(at),
            actor=texts.get(actor),
            action=action_of(kind),
            subject=subject,
            detail=detail,
            via=", ".join(part for part in (where.get("sdk"), f"host {host}" if host else None) if part)
            or None,
            seq=seq,
            facts=Frozen({key: value for key, value in raw.items() if key != "kind"}),
        )

    # --- loading -------------------------------------------------------------------------------

    def page(
        self,
        select: str,
        table: str,
        clause: search.Clause,
        order: Order | None,
        of: str,
        limit: int,
        offset: int,
    ) -> tuple[list[tuple[Any, ...]], int]:
        """Return a page of rows of *select*, and how many there are in all."""
        by, bound = search.order(order, of, self.at)
        rows = self.sql.all(
            f"{select} WHERE {clause.where()} ORDER BY {by} LIMIT ? OFFSET ?",
            *clause.values,
            *bound,
            limit,
            offset,
        )
        if offset == 0 and len(rows) < limit:
            return rows, len(rows)
        (total,) = self.sql.one(f"SELECT count(*) FROM {table} WHERE {clause.where()}", *clause.values) or (
            0,
        )
        return rows, total

    def _load(self, keys: Sequence[Key]) -> list[ModelVersion]:
        found: list[ModelVersion] = []
        for part, _marks in parts(keys):
            found += self._load_chunk(part)
        return found

    def _load_chunk(self, keys: Sequence[Key]) -> list[ModelVersion]:
        some = _Some(keys)
        versions = {
            (row[0], row[1]): (*row[2:6], _registered(row[6], (row[0], row[1])))
            for row in self.sql.all(
                "SELECT v.model, v.number, v.seq, v.manifest, v.size, v.run_id, e.doc FROM @version v"
                f" JOIN @event e ON e.seq = v.seq AND e.n = v.n WHERE {some.of('v')} AND v.seq <= ?",
                *some.values,
                self.at,
            )
        }
        facts: dict[Key, list[tuple[str, str]]] = {}
        for model, number, name, value in self.sql.all(
            f"SELECT model, number, name, value FROM @fact f WHERE {some.of('f')} AND since <= ? AND until > ?"
            " ORDER BY since, value",
            *some.values,
            self.at,
            self.at,
        ):
            facts.setdefault((model, number), []).append((name, _text_of(value, model, name)))
        later: dict[Key, list[tuple[int, ev.Event]]] = {}
        last: dict[Key, int] = {}
        for model, number, seq, doc in self.sql.all(
            "SELECT model, number, seq,"
            " CASE WHEN kind IN ('version.commented', 'version.attached', 'version.evaluated') THEN doc END"
            f" FROM @event x WHERE {some.of('x')} AND seq <= ? ORDER BY seq, n",
            *some.values,
            self.at,
        ):
            last[model, number] = seq
            if doc is not None:
                event = codec.read_event(doc, f"model://{model}/v{number}")
                later.setdefault((model, number), []).append((seq, event))
        aliases = self._aliases({model for model, _ in keys})
        seqs = {row[0] for row in versions.values()} | {seq for many in later.values() for seq, _ in many}
        seqs |= {int(value) for many in facts.values() for name, value in many if name == "decided"}
        entries = self.entries(seqs)
        seals: list[str | None] = [entry[1] for entry in entries.values()]
        for many in facts.values():
            seals += seals_in(many)
        for events in later.values():
            for _, event in events:
                seals += [getattr(event, "text", None), getattr(event, "note", None)]
        texts = self.texts(seals)
        return [
            _version(
                key, versions[key], facts.get(key, []), later.get(key, []), last[key], aliases, entries, texts
            )
            for key in keys
            if key in versions
        ]

    def _aliases(self, models: set[str]) -> dict[Key, list[str]]:
        found: dict[Key, list[str]] = {}
        names = sorted(models)
        rows = self.sql.all(
            f"SELECT model, name, value FROM @fact WHERE model IN ({', '.join('?' * len(names))}) AND number = 0"
            " AND name >= 'alias:' AND name < 'alias;' AND since <= ? AND until > ? ORDER BY name",
            *names,
            self.at,
            self.at,
        )
        for model, name, value in rows:
            for number in _weights(codec.loads(value)):
                found.setdefault((model, number), []).append(name[6:])
        return found

    def entries(self, seqs: Iterable[int]) -> dict[int, tuple[datetime, str, str]]:
        """Return (time, actor's seal, via) of entries."""
        found: dict[int, tuple[datetime, str, str]] = {}
        for part, marks in parts(sorted(set(seqs))):
            for seq, at, actor, via in self.sql.all(
                f"SELECT seq, at, actor, via FROM @entry WHERE seq IN ({marks})", *part
            ):
                found[seq] = (when(at), actor, via)
        return found

    def texts(self, seals: Iterable[str | None]) -> dict[str, str]:
        """Return the texts behind *seals*; erased ones are missing."""
        found: dict[str, str] = {}
        for part, marks in parts(sorted({seal for seal in seals if seal})):
            found.update(self.sql.all(f"SELECT seal, body FROM @text WHERE seal IN ({marks})", *part))
        return found


class _Some:
    """A condition on (model, number) pairs."""

    def __init__(self, keys: Sequence[Key]) -> None:
        by_model: dict[str, list[int]] = {}
        for model, number in keys:
            by_model.setdefault(model, []).append(number)
        self._counts = [len(numbers) for numbers in by_model.values()]
        self.values: list[Any] = []
        for model, numbers in by_model.items():
            self.values += [model, *numbers]

    def of(self, table: str) -> str:
        parts = [f"({table}.model = ? AND {table}.number IN ({', '.join('?' * n)}))" for n in self._counts]
        return "(" + " OR ".join(parts) + ")"


def when(at: int) -> datetime:
    """Return microseconds since 1970 as an aware UTC time."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)


def clause_action(action: str) -> tuple[str, str]:
    """Return the condition for an action, or for all of a family (``version``)."""
    if "." in action or action in ("archived", "restored"):
        return "x.kind = ?", action
    return "substr(x.kind, 1, length(?)) = ?".replace("length(?)", str(len(action) + 1)), action + "."


def _not_archived(number: str, at: int) -> tuple[Any, ...]:
    return (
        f"NOT EXISTS (SELECT 1 FROM @fact a WHERE a.model = v.model AND a.number = {number}"
        " AND a.name = 'archived' AND a.since <= ? AND a.until > ?)",
        at,
        at,
    )


def _weights(raw: Mapping[str, Any]) -> dict[int, int]:
    return {int(number): weight for number, weight in raw["weights"].items()}


def seals_in(facts: Iterable[tuple[str, str]]) -> list[str | None]:
    """Return the seals of the texts and fields among *facts*."""
    return [value for name, value in facts if name.startswith(("text:", "field:"))]


def _sealed_in(raw: Mapping[str, Any]) -> list[str]:
    """Return everything in an event that looks like a seal, but for a history from elsewhere: it is long."""
    found: list[str] = []
    for name, value in raw.items():
        if name == "history":
            continue
        if isinstance(value, str) and len(value) == 64:
            found.append(value)
        elif isinstance(value, dict):
            found += _sealed_in(value)
    return found


def _purged_files(facts: Iterable[str]) -> tuple[str, ...]:
    """Return the paths of the files that were given up of a version that stands."""
    if "purged" in facts:
        return ()
    return tuple(sorted(name[7:] for name in facts if name.startswith("purged:")))


def text_value(facts: Iterable[tuple[str, str]], name: str, texts: Mapping[str, str]) -> str | None:
    """Return the text called *name*, None when there is none or it was erased."""
    for n, value in facts:
        if n == "text:" + name:
            return texts.get(value)
    return None


def field_values(facts: Iterable[tuple[str, str]], texts: Mapping[str, str]) -> Frozen:
    """Return the fields, name -> value; erased ones are None."""
    return Frozen(
        {n[6:]: ev.unsealed_value(texts.get(v)) for n, v in sorted(facts) if n.startswith("field:")}
    )


def all_values(facts: Iterable[tuple[str, str]], name: str) -> tuple[str, ...]:
    """Return everything that is true of *name*, sorted."""
    return tuple(sorted(value for n, value in facts if n == name))


def _version(
    key: Key,
    row: tuple[int, str, int, str | None, ev.VersionRegistered],
    facts: list[tuple[str, str]],
    later: list[tuple[int, ev.Event]],
    last: int,
    aliases: Mapping[Key, list[str]],
    entries: Mapping[int, tuple[datetime, str, str]],
    texts: Mapping[str, str],
) -> ModelVersion:
    seq, manifest, size, run_id, born = row
    model, number = key
    if not (
        stored.is_digest(manifest) and stored.is_size(size) and (run_id is None or stored.is_name(run_id))
    ):
        bad = InvalidDocument(f"Its row has a manifest, a size or a run that is none ({shown(manifest)}).")
        raise codec.damaged_index(f"model://{model}/v{number}", bad)
    one = dict(facts)
    decided = entries[int(one["decided"])] if "decided" in one else None
    attachments: dict[str, Attachment] = {}
    evaluations = []
    comments = []
    for at_seq, event in later:
        at, actor, _ = entries[at_seq]
        by = texts.get(actor)
        if isinstance(event, ev.VersionAttached):
            attachments[event.name] = Attachment(event.name, event.size, event.digest, at, by)
        elif isinstance(event, ev.EvaluationAdded):
            note = texts.get(event.note) if event.note else None
            evaluations.append(Evaluation(at, by, event.metrics, event.data, note, event.files))
        elif isinstance(event, ev.VersionCommented):
            comments.append(Comment(at, by, texts.get(event.text)))
    return ModelVersion(
        uri=f"model://{model}/v{number}",
        model=model,
        number=number,
        status=one["status"],  # type: ignore[arg-type]
        files=born.files,
        digest=manifest,
        size=size,
        metrics=born.metrics,
        evaluations=tuple(evaluations),
        params=born.params,
        tags=all_values(facts, "tag"),
        note=text_value(facts, "note", texts),
        description=text_value(facts, "description", texts),
        fields=field_values(facts, texts),
        inputs=born.inputs,
        created_at=entries[seq][0],
        created_by=texts.get(entries[seq][1]),
        decided_at=decided[0] if decided else None,
        decided_by=texts.get(decided[1]) if decided else None,
        reason=text_value(facts, "reason", texts),
        run_id=run_id,
        aliases=tuple(aliases.get(key, ())),
        attachments=tuple(attachments.values()),
        comments=tuple(comments),
        duration=born.duration,
        archived="archived" in one,
        purged="purged" in one,
        purged_files=_purged_files(one),
        external=Frozen({one.path: one.url for one in born.external}),
        origin=born.origin,
        seq=last,
    )


def _registered(doc: object, key: Key) -> ev.VersionRegistered:
    event = codec.read_event(doc, f"model://{key[0]}/v{key[1]}")
    if not isinstance(event, ev.VersionRegistered) or (event.model, event.number) != key:
        bad = InvalidDocument(f"It is an event of another kind or version ({shown(event.kind)}).")
        raise codec.damaged_index(f"model://{key[0]}/v{key[1]}", bad)
    return event


def fresh(entry: ev.Entry, born: ev.VersionRegistered) -> ModelVersion:
    """Return the version that *entry* has just registered, without asking the index."""
    facts = [("status", "pending"), *(("tag", tag) for tag in born.tags)]
    facts += [("text:" + name, seal) for name, seal in born.texts.items() if seal]
    facts += [("field:" + name, seal) for name, seal in born.fields.items() if seal]
    row = (entry.seq, born.manifest, born.size, born.run_id, born)
    entries = {entry.seq: (entry.at, entry.actor, "")}
    return _version((born.model, born.number), row, facts, [], entry.seq, {}, entries, entry.private)
