"""What users pass to the verbs, checked and in one form."""

from __future__ import annotations

import hashlib
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from datetime import time as day_time
from pathlib import Path
from typing import Any

from attrs import evolve

from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain import external as where
from modelhub_sdk.domain import names, rules
from modelhub_sdk.domain.entities import Alias, ModelVersion, Resolved
from modelhub_sdk.domain.uri import Number, parse_ref, parse_uri
from modelhub_sdk.domain.values import Frozen, normalise_fields, to_json
from modelhub_sdk.errors import InvalidDocument, InvalidName, InvalidQuery, InvalidURI, NotAllowed, shown
from modelhub_sdk.formats import codec

ARRIVED = "origin:"
"""Idempotency keys of versions that arrived from another registry begin with this."""

_SECRET = re.compile(r"(?i)(^|[&;])[^=&;]*(sig|token|secret|passw|credential|key)[^=&;]*=")


def listed(items: Any, what: str) -> list[Any]:
    """Return *items* as a list; a lone text is a mistake, not a list of letters."""
    if isinstance(items, (str, bytes)) or not isinstance(items, Iterable):
        raise InvalidName(f"{what} must be a list, not {shown(items)}.", hint=f"{what}=[...]")
    return list(items)


def switch(given: object, what: str) -> bool:
    """Return *given* if it is True or False: nothing else decides whether something is overwritten or deleted.

    Raises:
        InvalidDocument: it is not.
    """
    if not isinstance(given, bool):
        raise InvalidDocument(f"{what} is True or False, not {shown(given)}.")
    return given


def checked_key(given: object) -> str:
    """Return an idempotency key that a user may choose.

    Raises:
        InvalidName: it is none, or one of those under which versions arrive from other registries.
    """
    key = names.check_text(given, "idempotency_key", 200)
    if key.startswith(ARRIVED):
        raise InvalidName(
            f"The idempotency key {shown(key)} begins with {ARRIVED!r}: such keys belong to versions from elsewhere.",
            hint="Choose another key.",
        )
    return key


def reason_of(given: object, *, required: bool = True) -> str | None:
    """Return a reason, None for a blank one that need not be given."""
    text = names.check_text("" if given is None else given, "reason")
    if text.strip():
        return text
    if required:
        raise InvalidDocument("A reason is needed here; it is kept with what was done.")
    return None


def input_uri(uri: object) -> str:
    """Return the canonical form of an input's URI."""
    if isinstance(uri, (ModelVersion, Alias, Resolved)):
        return uri.uri
    text = names.check_text(uri, "input", 4096)
    scheme = text.partition("://")[0]
    if scheme in ("model", "dataset", "datum"):
        return str(parse_uri(text))
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) or "://" not in text:
        raise InvalidURI(
            f"{shown(text)} is not the URI of an input.", hint='For example "dataset://clicks/v7".'
        )
    address, _, query = text.partition("?")
    userinfo = "@" in address.partition("://")[2].partition("/")[0] and scheme not in ("abfs", "abfss", "az")
    if userinfo or _SECRET.search(query):
        raise InvalidURI(
            "An input's URI must not hold a user, a password, a token or a signature: it is kept for ever.",
            hint="Leave that part away.",
        )
    return text


def changes_of(
    *,
    fields: Mapping[str, Any] | None = None,
    tags: Iterable[str] | None = None,
    add_tags: Iterable[str] = (),
    remove_tags: Iterable[str] = (),
    projects: Iterable[str] | None = None,
    **texts: str | None,
) -> rules.Changes:
    """Return what an edit asks for, checked."""
    checked = {name: names.check_text(text, name) or None for name, text in texts.items() if text is not None}
    return rules.Changes(
        texts=Frozen(checked),
        fields=Frozen(normalise_fields(fields)),
        tags=None if tags is None else tuple(names.check_tag(tag) for tag in listed(tags, "tags")),
        add_tags=tuple(names.check_tag(tag) for tag in listed(add_tags, "add_tags")),
        remove_tags=tuple(names.check_tag(tag) for tag in listed(remove_tags, "remove_tags")),
        projects=None
        if projects is None
        else tuple(names.check_name(p, "project") for p in listed(projects, "projects")),
    )


def weights_of(model: str, target: Any) -> dict[int, int]:
    """Return the weights by number that *target* means: a version, or a mapping of versions to percentages."""
    given = target.items() if isinstance(target, Mapping) else [(target, 100)]
    weights: dict[int, int] = {}
    for one, weight in given:
        if isinstance(one, ModelVersion) and one.model != model:
            raise NotAllowed(f"{one.uri} is not a version of {shown(model)}.")
        if isinstance(one, ModelVersion):
            number = one.number
        elif hasattr(one, "__index__") and not isinstance(one, bool):
            number = names.check_number(operator.index(one))
        elif not isinstance(one, str):
            raise InvalidURI(f"{shown(one)} is not a version of {shown(model)}.", hint='Write "v3", or 3.')
        else:
            uri = parse_ref(one if isinstance(one, str) and "/" in one else f"{model}/{one}", kind="version")
            if uri.name != model or not isinstance(uri.selector, Number):
                raise InvalidURI(
                    f"{shown(one)} is not a version of {shown(model)} by its number.", hint='Write "v3".'
                )
            number = uri.selector.number
        if number in weights:
            raise InvalidDocument(f"v{number} stands twice among the weights.")
        weights[number] = weight
    rules.check_weights(weights)
    return weights


def settings_of(
    require: str | None,
    external: Sequence[str] | None,
    model_names: str | None,
    required_fields: Sequence[str] | None,
    metrics: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Return the settings that `configure` is to change, checked; None removes one."""
    wanted: dict[str, Any] = {}
    if require is not None:
        if require not in ("", "approved"):
            raise InvalidDocument(f"require is 'approved' or '', not {shown(require)}.")
        wanted["require"] = require or None
    if external is not None:
        prefixes = [names.check_text(one, "external", 1000) for one in listed(external, "external")]
        for one in prefixes:
            try:
                where.parts(one)
            except InvalidURI as error:
                raise InvalidDocument(
                    f"external holds URL prefixes such as 's3://bucket/', never file:. {error.message}"
                ) from None
        wanted["external"] = tuple(prefixes) or None
    if model_names is not None:
        try:
            re.compile(names.check_text(model_names, "model_names", 500))
        except re.error:
            raise InvalidDocument(f"model_names is not a regular expression: {shown(model_names)}.") from None
        wanted["model_names"] = model_names or None
    if required_fields is not None:
        given = listed(required_fields, "required_fields")
        wanted["required_fields"] = (
            tuple(names.check_text(one, "required_fields", 250) for one in given) or None
        )
    if metrics is not None:
        pairs: Iterable[tuple[Any, Any]] = metrics.items() if isinstance(metrics, Mapping) else [(None, None)]
        if not all(isinstance(k, str) and v in ("min", "max") for k, v in pairs):
            raise InvalidDocument(
                "metrics maps names to 'min' or 'max'.", hint='For example {"loss": "min"}.'
            )
        wanted["metrics"] = dict(metrics) or None
    return wanted


def content_digest(
    version: ev.VersionRegistered,
    texts: Mapping[str, Any],
    fields: Mapping[str, Any],
    asked: Mapping[str, Any] | None = None,
) -> str:
    """Return the digest of what an idempotency key stands for.

    *asked* is what was asked for, where names in it may mean something else by the next call.
    """
    raw = codec.unstructure(evolve(version, number=0, content=None, key=None))
    if asked is not None:
        raw = {name: raw[name] for name in raw if name not in ("manifest", "size", "files", "document")}
        raw |= asked
    raw["texts"] = {name: text for name, text in texts.items() if text}
    raw["fields"] = {name: to_json(value) for name, value in fields.items()}
    return hashlib.sha256(codec.dumps(raw)).hexdigest()


def rendered(content: Any, name: str, folder: Path) -> Any:
    """Return *content* as a path or bytes; a figure is drawn into *folder*."""
    if isinstance(content, (str, bytes, os.PathLike)):
        return content
    target = folder / ("figure" + os.path.splitext(name)[1])
    for method in ("savefig", "save", "write_image"):
        draw = getattr(content, method, None)
        if callable(draw):
            draw(str(target))
            return str(target)
    raise InvalidName(f"{shown(content)} cannot be attached.", hint="Pass a path, bytes, or a figure.")


def seal_picker(what: str) -> Any:
    """Return a function of (kind, event as JSON) to the seals that *what* means."""
    fixed = {"note", "description", "title", "owner"}

    def seals(kind: str, raw: Mapping[str, Any]) -> set[str]:
        found: set[str | None] = set()
        every = what == "all"
        texts, fields = raw.get("texts", {}), raw.get("fields", {})
        if every or what in ("command", "exception"):
            found |= {raw.get(name) for name in ("command", "exception") if every or name == what}
        if what in fixed:
            found.add(texts.get(what))
        if every:
            found |= set(texts.values()) | set(fields.values())
        if what.startswith("fields."):
            found.add(fields.get(what[7:]))
        if any(found) and (every or what == "note" or what.startswith("fields.")):
            found.add(raw.get("content"))  # a digest of it: it would tell whether a guess is right
        if every or what == "reasons":
            found.add(raw.get("reason") if kind != "text.redacted" else None)
        if kind == "version.registered":
            found.add(raw.get("history"))  # the same words may stand in it, wherever they stand here
        if (every or what == "comments") and kind == "version.commented":
            found.add(raw.get("text"))
        if (every or what == "evaluations") and kind == "version.evaluated":
            found.add(raw.get("note"))
        return {one for one in found if one}

    lists = ("all", "reasons", "comments", "evaluations", "command", "exception")
    if what in ("user", "host"):  # they stand in the entries, not in the events
        return lambda kind, raw: set()
    if what in fixed or what in lists or what.startswith("fields."):
        return seals
    raise InvalidName(
        f"{shown(what)} is nothing that can be redacted.",
        hint="note, description, title, owner, reasons, comments, evaluations, fields.<name>, command, exception, all,"
        " user, or host.",
    )


def beside(events: Iterable[ev.Event]) -> set[str]:
    """Return the digests of files that stand beside versions: attachments, and files of evaluations."""
    found: set[str] = set()
    for event in events:
        if isinstance(event, ev.VersionAttached):
            found.add(event.digest)
        elif isinstance(event, ev.EvaluationAdded):
            found |= {file.digest for file in event.files}
    return found


def kept_outputs(event: ev.OutputsIngested, document: Callable[[str], bytes]) -> set[str]:
    """Return the digests of outputs that are stored for their own sake, not for a version's."""
    return {row["digest"] for row in codec.outputs_of(event, document) if row.get("kept")}


def moment_of(given: object, *, end_of_day: bool) -> datetime:
    """Return an aware time; a bare date is the start or the end of that day, UTC."""
    if isinstance(given, date) and not isinstance(given, datetime):
        given = given.isoformat()
    if isinstance(given, datetime):
        if given.tzinfo is None:
            raise InvalidQuery(
                f"The time {given.isoformat()} has no zone.", hint="Add one: tzinfo=datetime.UTC."
            )
        return given
    try:
        if not isinstance(given, str):
            raise ValueError(given)
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", given, re.ASCII):
            day = datetime.fromisoformat(given).date()
            return datetime.combine(day, day_time.max if end_of_day else day_time.min, UTC)
        found = datetime.fromisoformat(given)
    except ValueError:
        raise InvalidQuery(
            f"{shown(given)} is not a time.", hint="Write 2026-03-01 or 2026-03-01T12:00:00Z."
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
