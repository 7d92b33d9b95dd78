"""What a registry must answer, said a second time in plain dicts: the `RegistryMachine` compares with it.

Written from the terms and rules of the design and the docstrings of `Registry`, and sharing nothing
with the rules, the fold and the SQL. What it does share is what *defines* the language: the checks of
names and values, the URIs, and ``domain.query.matches``.
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import attrs

from modelhub_sdk.domain import names
from modelhub_sdk.domain import query as queries
from modelhub_sdk.domain.uri import ByDigest, Latest, ModelURI, Named, Number, parse_ref, parse_uri
from modelhub_sdk.domain.values import Opaque, leaves, normalise, normalise_fields
from modelhub_sdk.errors import (
    Conflict,
    InvalidDocument,
    InvalidName,
    InvalidURI,
    KeyReused,
    ModelHubError,
    NoApprovedVersion,
    NotAllowed,
    NotApproved,
    NotFound,
    Purged,
)
from modelhub_sdk.testing.strategies import Annotated, Command, manifest_digest

Row = dict[str, Any]


class Text:
    """What somebody typed. A redaction empties it, also where the past is looked at."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: object) -> Text:
        return self


def canonical(value: Any) -> Any:
    """Return *value* in a form that is equal only for what a user would call the same.

    1, 1.0 and True differ, -0.0 and 0.0 differ, NaN is NaN; the order of a mapping does not count.
    """
    if isinstance(value, Text):
        return canonical(value.value)
    if isinstance(value, Opaque):
        return ("opaque", value.type, value.text)
    if isinstance(value, Mapping):
        return ("map", sorted(((k, canonical(v)) for k, v in value.items()), key=lambda pair: str(pair[0])))
    if isinstance(value, (list, tuple)):
        return ("list", [canonical(item) for item in value])
    if isinstance(value, float):
        return ("float", "nan" if math.isnan(value) else repr(value))
    if isinstance(value, datetime):
        return ("time", value.isoformat())
    if attrs.has(type(value)):
        return canonical({a.name: getattr(value, a.name) for a in attrs.fields(type(value))})
    return (type(value).__name__, value)


class Past:
    """The answers about one state."""

    def __init__(self, state: Row, times: Mapping[int, datetime], actors: Mapping[int, str]) -> None:
        self.state = state
        self._times = times
        self._actors = actors

    # --- what there is -------------------------------------------------------------------------

    def _model(self, name: str) -> Row:
        if name not in self.state["models"]:
            raise NotFound(f"no model {name}")
        found: Row = self.state["models"][name]
        return found

    def _version(self, name: str, number: int) -> Row:
        versions = self._model(name)["versions"]
        if not 1 <= number <= len(versions):
            raise NotFound(f"no version {number} of {name}")
        found: Row = versions[number - 1]
        return found

    def _latest(self, name: str) -> int | None:
        live = [
            v["number"]
            for v in self._model(name)["versions"]
            if v["status"] == "approved" and not v["archived"]
        ]
        return max(live, default=None)

    def _pin(self, uri: ModelURI) -> int:
        selector = uri.selector
        model = self._model(uri.name) if not isinstance(selector, Number) else {}
        if isinstance(selector, Number):
            return selector.number
        if isinstance(selector, Latest):
            latest = self._latest(uri.name)
            if latest is None:
                raise NoApprovedVersion(f"{uri.name} has no approved version")
            return latest
        if isinstance(selector, ByDigest):
            fits = [v for v in model["versions"] if _digest(v) == selector.digest and not v["archived"]]
            found = [v for v in fits if v["status"] == "approved"] or fits
            if not found:
                raise NotFound(f"no {selector.digest}")
            number: int = found[-1]["number"]
            return number
        if isinstance(selector, Named):
            if selector.alias not in model["aliases"]:
                raise NotFound(f"no alias {selector.alias}")
            return _heaviest(model["aliases"][selector.alias]["weights"])
        raise InvalidURI("a version is needed")

    # --- as users see it -----------------------------------------------------------------------

    def model(self, ref: str) -> Row:
        """Return a model as a dict with the names of `Model`'s attributes."""
        name = _name(ref)
        model = self._model(name)
        counts = {"pending": 0, "approved": 0, "rejected": 0}
        for version in model["versions"]:
            counts[version["status"]] += not version["archived"]
        return {
            "name": name,
            **{text: _said(model[text]) for text in ("title", "description", "owner")},
            "fields": {key: _said(text) for key, text in model["fields"].items()},
            "tags": tuple(sorted(model["tags"])),
            "projects": tuple(sorted(model["projects"])),
            "created_at": self._times[model["born"]],
            "created_by": self._actors[model["born"]],
            "modified_at": self._times[model["seq"]],
            "seq": model["seq"],
            "latest": self._latest(name),
            "last_number": len(model["versions"]),
            "counts": counts,
            "aliases": {alias: row["weights"] for alias, row in model["aliases"].items()},
            "archived": model["archived"],
        }

    def version(self, ref: str) -> Row:
        """Return a version as a dict with the names of `ModelVersion`'s attributes."""
        uri = parse_ref(ref, kind="version")
        number = self._pin(uri)
        return self._seen(uri.name, self._version(uri.name, number))

    def _seen(self, name: str, version: Row) -> Row:
        decided = version["decided"]
        aliases = self.state["models"][name]["aliases"]
        return {
            "uri": f"model://{name}/v{version['number']}",
            "model": name,
            "number": version["number"],
            "status": version["status"],
            "files": _files(version["files"]),
            "digest": _digest(version),
            "size": sum(map(len, version["files"].values())),
            "metrics": version["metrics"],
            "params": version["params"],
            "evaluations": tuple(
                self._by(seq) | {"metrics": m, "data": data, "note": _said(note), "files": _files(files)}
                for seq, m, data, note, files in version["evaluations"]
            ),
            "tags": tuple(sorted(version["tags"])),
            "note": _said(version["note"]),
            "description": _said(version["description"]),
            "fields": {key: _said(text) for key, text in version["fields"].items()},
            "inputs": version["inputs"],
            "created_at": self._times[version["born"]],
            "created_by": self._actors[version["born"]],
            "decided_at": self._times[decided] if decided else None,
            "decided_by": self._actors[decided] if decided else None,
            "reason": _said(version["reason"]),
            "run_id": version["run_id"],
            "aliases": tuple(sorted(a for a, row in aliases.items() if version["number"] in row["weights"])),
            "attachments": tuple(
                {"name": path, "size": len(data), "digest": _sha(data)} | self._by(seq)
                for path, (data, seq) in version["attachments"].items()
            ),
            "comments": tuple(self._by(seq) | {"text": _said(text)} for seq, text in version["comments"]),
            "duration": None,
            "archived": version["archived"],
            "purged": version["gone"] is True,
            "external": {},
            "purged_files": () if version["gone"] is True else tuple(sorted(version["gone"])),
            "origin": None,
            "seq": version["seq"],
        }

    def _by(self, seq: int) -> Row:
        return {"at": self._times[seq], "by": self._actors[seq]}

    def alias(self, ref: str) -> Row:
        """Return an alias as a dict with the names of `Alias`'s attributes."""
        uri = parse_ref(ref, kind="version")
        if not isinstance(uri.selector, Named):
            raise InvalidURI(f"{ref} names no alias")
        row = self._model(uri.name)["aliases"].get(uri.selector.alias)
        if row is None:
            raise NotFound(f"no alias {ref}")
        return {
            "model": uri.name,
            "name": uri.selector.alias,
            "weights": row["weights"],
            "reason": _said(row["reason"]),
            "seq": row["seq"],
            **self._by(row["seq"]),
        }

    def latest(self, model: str) -> Row | None:
        """Return the highest version that is approved and not archived."""
        number = self._latest(_name(model))
        return None if number is None else self.version(f"{model}/v{number}")

    def settings(self) -> Row:
        """Return the settings."""
        found: Row = self.state["settings"]
        return found

    # --- search --------------------------------------------------------------------------------

    def models(
        self,
        *,
        where: str | None = None,
        order_by: str | None = None,
        text: str | None = None,
        owner: str | None = None,
        project: str | None = None,
    ) -> list[Row]:
        """Return all models that match, in order."""
        query = queries.parse(where, queries.MODEL_FIELDS)
        order = queries.parse_order(order_by, queries.MODEL_FIELDS)
        found = [self.model(name) for name in reversed(self.state["models"])]
        if owner is not None:
            found = [row for row in found if row["owner"] == names.check_text(owner, "owner")]
        if project is not None:
            found = [row for row in found if project in row["projects"]]
        if text is not None:
            needle = _lower(names.check_text(text, "text"))
            found = [
                m
                for m in found
                if any(needle in _lower(m[k] or "") for k in ("name", "title", "description"))
            ]
        return self._answer(found, query, order)

    def versions(
        self, model: str | None = None, *, where: str | None = None, order_by: str | None = None
    ) -> list[Row]:
        """Return all versions that match, in order."""
        query = queries.parse(where, queries.VERSION_FIELDS)
        order = queries.parse_order(order_by, queries.VERSION_FIELDS)
        wanted = list(self.state["models"]) if model is None else [_name(model)]
        found = [self._seen(name, v) for name in wanted for v in self._model(name)["versions"]]
        found.sort(key=lambda row: self._version(row["model"], row["number"])["born"], reverse=True)
        return self._answer(found, query, order)

    @staticmethod
    def _answer(rows: list[Row], query: queries.Query, order: queries.Order | None) -> list[Row]:
        if all(condition.field != "archived" for condition in query.conditions):
            rows = [row for row in rows if not row["archived"]]
        rows = [row for row in rows if queries.matches(query, _getter(row))]
        return rows if order is None else order.sorted(rows, _getter)


class Oracle(Past):
    """A registry in plain dicts: a verb for each of `Registry`'s, each returning what that one must.

    Args:
        at: when the registry was made: entry 1.
        actor: who made it.

    Attributes:
        seq: how many entries the journal must have.
        log: what happened: (seq, action, model, number).
        uses: what was resolved, in the journal or not yet: (uri, asked for, by whom).
    """

    def __init__(self, at: datetime, actor: str) -> None:
        super().__init__({"models": {}, "settings": {}, "keys": {}, "ingests": {}}, {1: at}, {1: actor})
        self.times: dict[int, datetime] = self._times  # type: ignore[assignment]
        self.actors: dict[int, str] = self._actors  # type: ignore[assignment]
        self.seq = 1
        self.now = at
        self.actor = actor
        self.log: list[tuple[int, str, str, int]] = [(1, "registry.created", "", 0)]
        self.uses: list[tuple[str, str, str]] = []
        self._undrained = 0
        self._typed: dict[tuple[str, int], list[tuple[str, Text]]] = {}
        self._pasts = {1: copy.deepcopy(self.state)}

    def run(self, command: Command) -> Any:
        """Do *command*, and return what the verb must return, or raise an error of the type it must raise."""
        self.now += timedelta(microseconds=command.after)
        self.actor = command.user
        verb: Callable[..., Any] = getattr(self, command.verb)
        return verb(*command.args, **command.options)

    def at(self, seq: int) -> Past:
        """Return the answers as of entry *seq*."""
        return Past(self._pasts[seq], self.times, self.actors)

    def _commit(self, *events: tuple[str, str, int]) -> int:
        """Count an entry with these events (action, model, number). Call it before the state is changed."""
        self.seq += 1
        self.times[self.seq] = max(self.now, self.times[self.seq - 1])
        self.actors[self.seq] = self.actor
        for action, model, number in events:
            self.log.append((self.seq, action, model, number))
            if model in self.state["models"]:
                self.state["models"][model]["seq"] = self.seq
                if number:
                    self.state["models"][model]["versions"][number - 1]["seq"] = self.seq
        return self.seq

    def _done(self) -> None:
        self._pasts[self.seq] = copy.deepcopy(self.state)

    def _type(self, subject: tuple[str, int], what: str, value: Any) -> Text | None:
        """Keep what somebody typed, where a redaction finds it; "" and None are nothing."""
        if value is None or (value == "" and not what.startswith("fields.")):
            return None
        text = Text(value)
        self._typed.setdefault(subject, []).append((what, text))
        return text

    # --- models --------------------------------------------------------------------------------

    def create_model(self, name: str, **options: Any) -> Row:
        """As `Registry.create_model`."""
        names.check_name(name)
        changes = _changes(options)
        if name in self.state["models"]:
            raise Conflict("the model exists")
        self._allowed(name)
        self._commit(("model.created", name, 0))
        model = self._born(name)
        self._write(model, (name, 0), changes, ("title", "description", "owner"))
        model["tags"] = set(changes["tags"] or ())
        model["projects"] = set(changes["projects"] or ())
        self._done()
        return self.model(name)

    def _born(self, name: str) -> Row:
        model: Row = {
            "born": self.seq, "seq": self.seq, "title": None, "description": None, "owner": None, "fields": {},
            "tags": set(), "projects": set(), "archived": False, "aliases": {}, "moves": {}, "versions": [],
        }  # fmt: skip
        self.state["models"][name] = model
        return model

    def _allowed(self, name: str) -> None:
        pattern = self.state["settings"].get("model_names")
        if pattern and not re.fullmatch(pattern, name):
            raise InvalidName("this registry allows no such name")

    def _write(self, row: Row, subject: tuple[str, int], changes: Row, texts: Sequence[str]) -> None:
        for name in texts:
            if name in changes["texts"]:
                row[name] = self._type(subject, name, changes["texts"][name])
        for key, value in changes["fields"].items():
            if value is None:
                row["fields"].pop(key, None)
            else:
                row["fields"][key] = self._type(subject, "fields." + key, value)

    def edit_model(self, ref: str, **options: Any) -> Row:
        """As `Registry.edit_model`; an `if_seq` counts entries back from where the model is now."""
        name = _name(ref)
        changes = _changes(options)
        model = self._model(name)
        if options.get("if_seq"):
            raise Conflict("it changed meanwhile")
        self._edit(model, (name, 0), changes, ("title", "description", "owner"), "model.edited")
        return self.model(name)

    def _edit(
        self, row: Row, subject: tuple[str, int], changes: Row, texts: Sequence[str], action: str
    ) -> None:
        tags = set(row["tags"] if changes["tags"] is None else changes["tags"])
        tags = (tags | set(changes["add_tags"])) - set(changes["remove_tags"])
        projects = row.get("projects") if changes["projects"] is None else set(changes["projects"])
        wanted = {name: text for name, text in changes["texts"].items() if (text or None) != _said(row[name])}
        fields = {
            key: value
            for key, value in changes["fields"].items()
            if (
                key in row["fields"]
                if value is None
                else canonical(value) != canonical(_said(row["fields"].get(key)))
            )
        }
        if not wanted and not fields and tags == row["tags"] and projects == row.get("projects"):
            return
        self._commit((action, *subject))
        self._write(row, subject, {"texts": wanted, "fields": fields}, texts)
        row["tags"] = tags
        if projects is not None:
            row["projects"] = projects
        self._done()

    # --- versions ------------------------------------------------------------------------------

    def register(self, model: str, files: Mapping[str, bytes], **options: Any) -> Row:
        """As `Registry.register`."""
        name = _name(model)
        note = options.get("note")
        if note is not None:
            names.check_text(note, "note")
        fields = normalise_fields(options.get("fields"))
        row = _measured(options)
        tags = [names.check_tag(tag) for tag in options.get("tags", ())]
        for path in files:
            names.check_path(path)
        names.check_paths(files)
        if not files:
            raise InvalidDocument("there is no file")
        if name not in self.state["models"]:
            self._allowed(name)
        key = options.get("idempotency_key")
        return self._register(name, dict(files), row, tags, note, fields, key, None)

    def _register(
        self, name: str, files: dict[str, bytes], row: Row, tags: Sequence[str], note: str | None,
        fields: Mapping[str, Any], key: str | None, wanted: int | None, run: str | None = None,
    ) -> Row:  # fmt: skip
        content = canonical([files, row, tags, note or None, fields, run])
        if run is not None and name in self.state["models"]:  # in one run the same files are the same version
            same = [
                v["number"]
                for v in self.state["models"][name]["versions"]
                if (v["run_id"], v["files"]) == (run, files)
            ]
            if same:
                return self.version(f"{name}/v{same[-1]}")
        before = self.state["keys"].get((name, key)) if key is not None else None
        if before is not None:
            erased = any(text.value is None for text in before[2])  # then nobody can tell any more
            if before[1] != content and not erased:
                raise KeyReused("other content")
            return self.version(f"{name}/v{before[0]}")
        new = name not in self.state["models"]
        if new:
            self._allowed(name)
        number = 1 if new else len(self.state["models"][name]["versions"]) + 1
        if wanted not in (None, number):
            raise Conflict("not the next number")
        if any(fields.get(field) is None for field in self.state["settings"].get("required_fields") or ()):
            raise InvalidDocument("a required field is missing")
        self._commit(*[("model.created", name, 0)] * new)
        model = self._born(name) if new else self.state["models"][name]
        self.log.append((self.seq, "version.registered", name, number))
        model["seq"] = self.seq
        version: Row = {
            "number": number, "born": self.seq, "seq": self.seq, "status": "pending", "files": files, **row,
            "tags": set(tags), "note": None, "description": None, "fields": {}, "evaluations": [], "decided": None,
            "reason": None, "attachments": {}, "comments": [], "archived": False, "gone": set(), "run_id": run,
        }  # fmt: skip
        model["versions"].append(version)
        self._write(version, (name, number), {"texts": {"note": note}, "fields": fields}, ("note",))
        if key is not None:
            typed = [text for _, text in self._typed.get((name, number), [])]
            self.state["keys"][name, key] = (number, content, typed)
        self._done()
        return self.version(f"{name}/v{number}")

    def edit_version(self, ref: str, **options: Any) -> Row:
        """As `Registry.edit_version`; an `if_seq` counts entries back from where the version is now."""
        changes = _changes(options)
        name, number, version = self._subject(ref)
        if options.get("if_seq"):
            raise Conflict("it changed meanwhile")
        self._edit(version, (name, number), changes, ("note", "description"), "version.edited")
        return self.version(f"{name}/v{number}")

    def _subject(self, ref: str, *, fixed: bool = False) -> tuple[str, int, Row]:
        uri = _fixed(ref) if fixed else parse_ref(ref, kind="version")
        number = self._pin(uri)
        return uri.name, number, self._version(uri.name, number)

    def comment(self, ref: str, text: str) -> Row:
        """As `Registry.comment`."""
        if not names.check_text(text, "comment").strip():
            raise InvalidDocument("the comment is empty")
        name, number, version = self._subject(ref)
        seq = self._commit(("version.commented", name, number))
        version["comments"].append((seq, self._type((name, number), "comments", text)))
        self._done()
        return self.version(f"{name}/v{number}")

    def add_evaluation(
        self, ref: str, metrics: Row, *, data: str | None = None, note: str = "", files: Row | None = None
    ) -> Row:
        """As `Registry.add_evaluation`."""
        measured = normalise(metrics)
        if not measured:
            raise InvalidDocument("there are no metrics")
        data = None if data is None else _input(data)
        names.check_text(note, "note")
        name, number, version = self._subject(ref)
        seq = self._commit(("version.evaluated", name, number))
        said = self._type((name, number), "evaluations", note)
        version["evaluations"].append((seq, measured, data, said, dict(files or {})))
        self._done()
        return self.version(f"{name}/v{number}")

    def attach(self, ref: str, path: str, data: bytes) -> Row:
        """As `Registry.attach`."""
        names.check_path(path)
        name, number, version = self._subject(ref)
        seq = self._commit(("version.attached", name, number))
        version["attachments"][path] = (data, seq)
        self._done()
        return self.version(f"{name}/v{number}")

    # --- approval ------------------------------------------------------------------------------

    def approve(self, ref: str, reason: str = "") -> Row:
        """As `Registry.approve`."""
        return self._decide("approved", ref, reason)

    def reject(self, ref: str, reason: str) -> Row:
        """As `Registry.reject`."""
        return self._decide("rejected", ref, reason)

    def reopen(self, ref: str, reason: str = "") -> Row:
        """As `Registry.reopen`."""
        return self._decide("pending", ref, reason)

    def _decide(self, status: str, ref: str, reason: str) -> Row:
        reason = _reason(reason)
        name, number, version = self._subject(ref, fixed=True)
        if status == "rejected" and not reason:
            raise InvalidDocument("a rejection needs a reason")
        if status == "approved" and version["archived"]:
            raise NotAllowed("it is archived")
        if status == "approved" and version["gone"]:
            raise Purged("it was purged")
        by = self.actors[version["decided"]] if version["decided"] else None
        same = by == self.actor and (not reason or reason == _said(version["reason"]))
        if version["status"] != status or not (status == "pending" or same):
            action = "reopened" if status == "pending" else status
            version["decided"] = self._commit((f"version.{action}", name, number))
            version["status"] = status
            version["reason"] = self._type((name, number), "reasons", reason)
            self._done()
        return self.version(f"{name}/v{number}")

    # --- aliases -------------------------------------------------------------------------------

    def set_alias(self, model: str, alias: str, target: Any, *, reason: str = "") -> Row:
        """As `Registry.set_alias`."""
        name = _name(model)
        names.check_alias(alias)
        reason = _reason(reason)
        self._point(name, alias, _weights(name, target), reason)
        return self.alias(f"{name}/{alias}")

    def _point(self, name: str, alias: str, weights: dict[int, int], reason: str) -> None:
        model = self._model(name)
        for number in weights:
            version = self._version(name, number)
            if version["status"] == "rejected" or version["archived"] or version["gone"]:
                raise NotAllowed("it may not be pointed at")
        if alias in model["aliases"] and model["aliases"][alias]["weights"] == weights:
            return
        seq = self._commit(("alias.moved", name, 0))
        said = self._type((name, 0), "reasons", reason)
        model["aliases"][alias] = {"weights": weights, "seq": seq, "reason": said}
        model["moves"].setdefault(alias, []).append(weights)
        self._done()

    def delete_alias(self, model: str, alias: str, *, reason: str = "") -> Row:
        """As `Registry.delete_alias`."""
        name = _name(model)
        names.check_alias(alias)
        reason = _reason(reason)
        row = self._model(name)
        if alias not in row["aliases"]:
            raise NotFound("no such alias")
        self._commit(("alias.deleted", name, 0))
        self._type((name, 0), "reasons", reason)
        del row["aliases"][alias]
        self._done()
        return self.model(name)

    def rollback(self, ref: str, reason: str) -> Row:
        """As `Registry.rollback`."""
        now = self.alias(ref)
        reason = _reason(reason, required=True)
        moves = self._model(now["model"])["moves"][now["name"]]
        before = [weights for weights in moves[:-1] if weights != moves[-1]]
        if not before:
            raise NotFound("it never pointed at anything else")
        self._point(now["model"], now["name"], before[-1], reason)
        return self.alias(ref)

    # --- putting away and giving up ------------------------------------------------------------

    def archive(self, ref: str, reason: str = "") -> Row:
        """As `Registry.archive`."""
        return self._archive(ref, reason, True)

    def restore(self, ref: str, reason: str = "") -> Row:
        """As `Registry.restore`."""
        return self._archive(ref, reason, False)

    def _thing(self, uri: ModelURI) -> tuple[int, Row]:
        """Return a version with its number, or a model and 0."""
        if uri.selector is None:
            return 0, self._model(uri.name)
        number = self._pin(uri)
        return number, self._version(uri.name, number)

    def _archive(self, ref: str, reason: str, wanted: bool) -> Row:
        reason = _reason(reason)
        uri = _thing_uri(ref)
        number, thing = self._thing(uri)
        if thing["archived"] != wanted:
            self._commit(("archived" if wanted else "restored", uri.name, number))
            self._type((uri.name, number), "reasons", reason)
            thing["archived"] = wanted
            self._done()
        return self.version(f"{uri.name}/v{number}") if number else self.model(uri.name)

    def purge(self, ref: str, reason: str, *, files: Sequence[str] | None = None, force: bool = False) -> Row:
        """As `Registry.purge`."""
        reason = _reason(reason, required=True)
        _fixed(ref)
        if files is not None and not files:
            raise InvalidName("no file is named")
        for path in files or ():
            names.check_path(path)
        name, number, version = self._subject(ref, fixed=True)
        if any(path not in version["files"] for path in files or ()):
            raise NotFound("no such file")
        gone = version["gone"]
        if gone is not True and not (files is not None and gone and gone >= set(files)):
            seen = self.version(f"{name}/v{number}")
            used = any(uri == seen["uri"] for uri, _, _ in self.uses)
            if not force and (seen["status"] == "approved" or seen["aliases"] or used):
                raise NotAllowed("it is needed")
            self._commit(("version.purged", name, number))
            self._type((name, number), "reasons", reason)
            version["gone"] = True if files is None else version["gone"] | set(files)
            self._done()
        return self.version(f"{name}/v{number}")

    def deleted(self, actions: Sequence[str]) -> None:
        """Take note of an entry about bytes that are deleted: which those are, is not foretold here."""
        self._commit(*((action, "", 0) for action in actions))
        self._done()

    def redact(self, ref: str, what: str, reason: str) -> Row:
        """As `Registry.redact`; there are no datasets here."""
        uri = parse_uri(ref) if ref.startswith("dataset://") else _thing_uri(ref)
        _reason(reason, required=True)
        known = ("note", "description", "title", "owner", "reasons", "comments", "evaluations", "all")
        if what not in known and not what.startswith("fields."):
            raise InvalidName("nothing that can be redacted")
        if not isinstance(uri, ModelURI):
            raise NotFound("a dataset")
        number, _ = self._thing(uri)
        found = [text for kind, text in self._typed.get((uri.name, number), []) if what in (kind, "all")]
        if not found:
            raise NotFound("there is no such text")
        if any(text.value is not None for text in found):
            self._commit(("text.redacted", uri.name, number))
            for text in found:
                text.value = None
            self._done()
        return self.version(f"{uri.name}/v{number}") if number else self.model(uri.name)

    # --- the registry --------------------------------------------------------------------------

    def configure(self, **settings: Any) -> Row:
        """As `Registry.configure`."""
        if settings.get("require") not in (None, "", "approved"):
            raise InvalidDocument("require")
        if any(prefix.startswith("file:") for prefix in settings.get("external") or ()):
            raise InvalidDocument("external")
        try:
            re.compile(settings.get("model_names") or "")
        except re.error:
            raise InvalidDocument("model_names") from None
        if any(way not in ("min", "max") for way in (settings.get("metrics") or {}).values()):
            raise InvalidDocument("metrics")
        now = self.state["settings"]
        changed = {k: v for k, v in settings.items() if canonical(now.get(k)) != canonical(v or None)}
        if changed:
            self._commit(("registry.configured", "", 0))
            for name, value in changed.items():
                now.pop(name, None)
                if value:
                    now[name] = value
            self._done()
        return now  # type: ignore[no-any-return]

    def drain(self) -> None:
        """Take the uses from the inbox into the journal."""
        if self._undrained:
            self._commit(("uses.recorded", "", 0))
            self._undrained = 0
            self._done()

    # --- outputs -------------------------------------------------------------------------------

    def ingest(self, outputs: Mapping[str, Annotated], *, keep: str = "annotated", **options: Any) -> Row:
        """As `Registry.ingest`: {"versions", "alerts" (how many), "repeated"}."""
        row = _measured(options)
        run, key = options.get("run"), options.get("idempotency_key")
        files = {path: output.data for path, output in outputs.items()}
        content = repr(canonical([files, {p: [list(m) for m in o.models] for p, o in outputs.items()}, row]))
        ingest_key = f"run:{run}" if run else f"key:{key}" if key else "content:" + content
        if ingest_key in self.state["ingests"]:
            versions = [self.version(uri) for uri in self.state["ingests"][ingest_key]]
            return {"versions": versions, "alerts": 0, "repeated": True}
        wanted: dict[tuple[str, int | None], Row] = {}
        for path, output in sorted(outputs.items()):
            for name, number, tags, note in output.models:
                one = wanted.setdefault((name, number), {"files": {}, "tags": {}, "notes": {}})
                one["files"][path] = output.data
                one["tags"] |= dict.fromkeys(tags)
                one["notes"] |= {note: None} if note else {}
        made, alerts = [], 0
        for (name, number), one in sorted(wanted.items(), key=lambda w: (w[0][0], w[0][1] or math.inf)):
            note = "\n\n".join(one["notes"])
            try:
                made.append(
                    self._register(
                        name,
                        one["files"],
                        row,
                        list(one["tags"]),
                        note,
                        {},
                        f"{ingest_key}:{name}/{number}",
                        number,
                        run,
                    )
                )
            except ModelHubError:
                alerts += 1
        if files if keep == "all" else any(output.models for output in outputs.values()):
            self._commit(("datums.stored", "", 0))
            self._done()
        self._commit(("outputs.ingested", "", 0))
        self.state["ingests"][ingest_key] = [version["uri"] for version in made]
        self._done()
        return {"versions": made, "alerts": alerts, "repeated": False}

    # --- resolve -------------------------------------------------------------------------------

    def resolve(self, ref: str, *, require: str | None = None) -> Row:
        """As `Registry.resolve`: {"uri", "version", "contents"}; notes the use."""
        uri = parse_ref(ref, kind="version")
        number = self._pin(uri)
        version = self._version(uri.name, number)
        needed = require or self.state["settings"].get("require")
        good = version["status"] == "approved" and not version["archived"]
        if needed == "approved" and not good:
            raise NotApproved("only approved versions")
        if (version["status"] == "rejected" or version["archived"]) and not isinstance(uri.selector, Number):
            raise NotApproved("not by this name")
        if version["gone"]:
            raise Purged("it is gone")
        seen = self._seen(uri.name, version)
        self.uses.append((seen["uri"], str(uri), self.actor))
        self._undrained += 1
        return {"uri": seen["uri"], "version": seen, "contents": version["files"]}


# --- parts --------------------------------------------------------------------------------------------


def _said(text: Text | None) -> Any:
    return None if text is None else text.value


def _sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _files(files: Mapping[str, bytes]) -> tuple[Row, ...]:
    return tuple({"path": p, "size": len(data), "digest": _sha(data)} for p, data in sorted(files.items()))


def _digest(version: Row) -> str:
    return manifest_digest(version["files"])


def _heaviest(weights: Mapping[int, int]) -> int:
    return max(weights, key=lambda number: (weights[number], number))


def _lower(text: str) -> str:
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in text)


def _name(ref: Any) -> str:
    return parse_ref(ref, kind="model").name if isinstance(ref, str) and "/" in ref else names.check_name(ref)


def _fixed(ref: str) -> ModelURI:
    uri = parse_ref(ref, kind="version")
    if not isinstance(uri.selector, Number):
        raise NotAllowed("decide on what you saw")
    return uri


def _thing_uri(ref: str) -> ModelURI:
    uri = parse_ref(ref, kind="any")
    if uri.selector is None and ref.endswith("/"):
        raise InvalidURI("a version without its number?")
    return uri


def _reason(text: str, *, required: bool = False) -> str:
    said = names.check_text(text, "reason")
    if said.strip():
        return said
    if required:
        raise InvalidDocument("it needs a reason")
    return ""


def _input(uri: str) -> str:
    text = names.check_text(uri, "input", 4096)
    if text.startswith(("model://", "dataset://", "datum://")):
        return str(parse_uri(text))
    if "://" not in text or re.search("://[^/]*:[^/]*@", text):
        raise InvalidURI("not an input")
    return text


def _measured(options: Row) -> Row:
    return {
        "metrics": normalise(options.get("metrics"), "metrics"),
        "params": normalise(options.get("params"), "params"),
        "inputs": tuple(_input(uri) for uri in options.get("inputs", ())),
    }


def _changes(options: Row) -> Row:
    texts = ("title", "description", "owner", "note")
    found: Row = {
        "texts": {
            name: names.check_text(options[name], name) for name in texts if options.get(name) is not None
        },
        "fields": normalise_fields(options.get("fields")),
    }
    for name in ("tags", "add_tags", "remove_tags"):
        given = options.get(name, None if name == "tags" else ())
        found[name] = None if given is None else [names.check_tag(tag) for tag in given]
    projects = options.get("projects")
    found["projects"] = None if projects is None else [names.check_name(name) for name in projects]
    return found


def _weights(model: str, target: Any) -> dict[int, int]:
    weights: dict[int, int] = {}
    for one, weight in (target if isinstance(target, Mapping) else {target: 100}).items():
        if isinstance(one, int) and not isinstance(one, bool):
            number = names.check_number(one)
        else:
            selector = parse_ref(f"{model}/{one}", kind="version").selector
            if not isinstance(selector, Number):
                raise InvalidURI("a version by its number")
            number = selector.number
        weights[number] = weight
    if sum(weights.values()) != 100 or any(weight < 1 for weight in weights.values()):
        raise InvalidDocument("the weights are no shares of 100")
    return weights


def _getter(row: Row) -> queries.Getter:
    """Return what ``where=`` asks a row."""

    def get(field: str, key: str | None) -> Any:
        if field == "status" and "status" not in row:
            return [status for status, count in row["counts"].items() if count]
        value = row.get({"alias": "aliases", "project": "projects"}.get(field, field))
        if key is None:
            return value
        return dict(leaves(value or {})).get(key)

    return get
