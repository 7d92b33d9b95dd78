"""The rules: a command and the current state in, events out. Pure apart from reading the state given.

A rule returns the events that make the command true, () when it is true already, or raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from attrs import evolve, frozen

from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain.events import Event, Sealer
from modelhub_sdk.domain.values import Frozen, Value
from modelhub_sdk.errors import (
    Conflict,
    InvalidDocument,
    InvalidName,
    KeyReused,
    NotAllowed,
    NotFound,
    Purged,
    nearest,
    shown,
)


class VersionState(Protocol):
    """What the rules need to know of a version."""

    @property
    def model(self) -> str:
        """The name of its model."""

    @property
    def number(self) -> int:
        """Its number."""

    @property
    def status(self) -> str:
        """pending, approved or rejected."""

    @property
    def archived(self) -> bool:
        """Whether it was put away."""

    @property
    def purged(self) -> bool:
        """Whether all its files were given up."""

    @property
    def purged_files(self) -> tuple[str, ...]:
        """The paths of those that were given up while others stand."""

    @property
    def seq(self) -> int:
        """The entry that changed it last."""

    @property
    def decided_by(self) -> str | None:
        """Who decided last."""

    @property
    def reason(self) -> str | None:
        """Why."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags."""

    @property
    def texts(self) -> Mapping[str, str | None]:
        """Its texts by name."""

    @property
    def fields(self) -> Mapping[str, str | None]:
        """Its fields by name, as `printed_value`."""


class State(Protocol):
    """The reads that rules make."""

    def has_model(self, name: str) -> bool:
        """Return whether the model exists."""

    def model_names(self) -> list[str]:
        """Return all names."""

    def last_number(self, model: str) -> int:
        """Return the highest number given."""

    def state(self, model: str, number: int) -> VersionState | None:
        """Return a version's state."""

    def key(self, scope: str, key: str) -> tuple[int, int, str | None] | None:
        """Return (seq, number, digest of the content) behind an idempotency key."""

    def settings(self) -> dict[str, Any]:
        """Return the registry's settings."""


@frozen
class Changes:
    """What an edit asks for. In `texts` and `fields` None removes; a list that is None is left alone."""

    texts: Mapping[str, str | None] = Frozen()
    fields: Mapping[str, Value | None] = Frozen()
    tags: tuple[str, ...] | None = None
    add_tags: tuple[str, ...] = ()
    remove_tags: tuple[str, ...] = ()
    projects: tuple[str, ...] | None = None


# --- what exists ------------------------------------------------------------------------------------


def model_exists(state: State, name: str) -> None:
    """Raise NotFound unless the model exists."""
    if not state.has_model(name):
        near = nearest(name, state.model_names())
        did = f" Did you mean {', '.join(near)}?" if near else " Register a first version to make it."
        raise NotFound(f"There is no model {shown(name)}.", hint=did.strip(), nearest=near)


def version_exists(state: State, model: str, number: int) -> VersionState:
    """Return the state of a version; raise NotFound when there is none."""
    found = state.state(model, number)
    if found is None:
        model_exists(state, model)
        last = state.last_number(model)
        has = (
            f"its versions are v1 to v{last}"
            if last > 1
            else "it has v1 alone"
            if last
            else "it has no versions yet"
        )
        raise NotFound(
            f"There is no model://{model}/v{number}: {has}.", nearest=(f"v{last}",) if last else ()
        )
    return found


def unchanged_since(seq: int, if_seq: int | None, what: str) -> None:
    """Raise Conflict when *what* changed after entry *if_seq*."""
    if if_seq is not None and seq != if_seq:
        raise Conflict(
            f"{what} was changed by entry {seq} since you read it at entry {if_seq}.",
            hint="Read it again, and decide again.",
            seq=seq,
        )


# --- models -----------------------------------------------------------------------------------------


def create_model(state: State, seal: Sealer, name: str, changes: Changes) -> list[Event]:
    """A new registered model; its name is new for ever."""
    if state.has_model(name):
        raise Conflict(
            f"The model {shown(name)} exists already.",
            hint=f"Change it with reg.edit_model({name!r}, ...), or choose another name.",
        )
    allowed(state, name)
    return [
        ev.ModelCreated(
            model=name,
            texts=_sealed(seal, {k: v for k, v in changes.texts.items() if v}),
            fields=_sealed_fields(seal, {k: v for k, v in changes.fields.items() if v is not None}),
            tags=_unique(changes.tags or ()),
            projects=_unique(changes.projects or ()),
        )
    ]


def allowed(state: State, name: str) -> None:
    """Raise InvalidName unless the registry's settings allow a model of this name."""
    import re

    pattern = state.settings().get("model_names")
    if pattern and not re.fullmatch(pattern, name):
        raise InvalidName(
            f"The model name {shown(name)} does not match this registry's rule {shown(pattern)}."
        )


def edit_model(
    state: State, seal: Sealer, name: str, now: Any, changes: Changes, if_seq: int | None
) -> list[Event]:
    """Change a model; *now* is the model as it is."""
    unchanged_since(now.seq, if_seq, f"The model {shown(name)}")
    add, remove = _lists(now.tags, changes)
    projects = changes.projects
    add_projects = tuple(p for p in _unique(projects or ()) if p not in now.projects)
    remove_projects = () if projects is None else tuple(p for p in now.projects if p not in projects)
    old = {"title": now.title, "description": now.description, "owner": now.owner}
    event = ev.ModelEdited(
        model=name,
        texts=_sealed(seal, _changed(changes.texts, old)),
        fields=_sealed_fields(seal, _changed(changes.fields, now.fields)),
        add_tags=add,
        remove_tags=remove,
        add_projects=add_projects,
        remove_projects=remove_projects,
    )
    return [] if event == ev.ModelEdited(model=name) else [event]


# --- versions ---------------------------------------------------------------------------------------


def register(
    state: State,
    seal: Sealer,
    version: ev.VersionRegistered,
    texts: Mapping[str, str | None],
    fields: Mapping[str, Value | None],
    wanted: int | None,
    content: str,
) -> tuple[list[Event], int]:
    """A new version, with the next number; or the one that this idempotency key made before.

    *content* digests everything that the key stands for, texts too: it is sealed as they are.

    Returns:
        The events, and the version's number.
    """
    model = version.model
    if version.key is not None:
        before = state.key("model:" + model, version.key)
        if before is not None:
            if before[2] not in (None, content):
                raise KeyReused(
                    f"The idempotency key {shown(version.key)} made model://{model}/v{before[1]} from other content.",
                    hint="Use a new key for new content.",
                    seq=before[0],
                )
            return [], before[1]
    events: list[Event] = []
    if not state.has_model(model):
        allowed(state, model)
        events.append(ev.ModelCreated(model=model))
    number = state.last_number(model) + 1
    if wanted is not None and wanted != number:
        raise Conflict(f"The next version of {shown(model)} is v{number}, not v{wanted}.", seq=0)
    has_required_fields(state, fields)
    events.append(
        evolve(
            version,
            number=number,
            texts=_sealed(seal, {k: v for k, v in texts.items() if v}),
            fields=_sealed_fields(seal, {k: v for k, v in fields.items() if v is not None}),
            tags=_unique(version.tags),
            content=seal(content) if version.key is not None else None,
        )
    )
    return events, number


def has_required_fields(state: State, fields: Mapping[str, Value | None]) -> None:
    """Raise InvalidDocument unless a new version has the fields that the registry's settings require."""
    required = state.settings().get("required_fields") or ()
    missing = [name for name in required if fields.get(name) is None]
    if missing:
        raise InvalidDocument(
            f"This registry requires the fields {', '.join(map(shown, missing))} on every version.",
            hint="Pass them as fields={...}.",
        )


def edit_version(
    state: State, seal: Sealer, model: str, number: int, changes: Changes, if_seq: int | None
) -> list[Event]:
    """Change what may change of a version: texts, fields, tags. Files, metrics and parameters never do."""
    now = version_exists(state, model, number)
    unchanged_since(now.seq, if_seq, f"model://{model}/v{number}")
    add, remove = _lists(now.tags, changes)
    fields = {name: ev.unsealed_value(text) for name, text in now.fields.items()}
    event = ev.VersionEdited(
        model=model,
        number=number,
        texts=_sealed(seal, _changed(changes.texts, now.texts)),
        fields=_sealed_fields(seal, _changed(changes.fields, fields)),
        add_tags=add,
        remove_tags=remove,
    )
    return [] if event == ev.VersionEdited(model=model, number=number) else [event]


_DECISIONS: dict[str, tuple[Callable[..., Event], str]] = {
    "approve": (ev.VersionApproved, "approved"),
    "reject": (ev.VersionRejected, "rejected"),
    "reopen": (ev.VersionReopened, "pending"),
}


def decide(
    state: State, seal: Sealer, verb: str, model: str, number: int, reason: str | None, actor: str
) -> list[Event]:
    """Approve, reject or reopen a version, from any status.

    The same decision by the same person with the same reason adds nothing.
    """
    now = version_exists(state, model, number)
    make, status = _DECISIONS[verb]
    uri = f"model://{model}/v{number}"
    if verb == "reject" and not reason:
        raise InvalidDocument(f"Rejecting {uri} needs a reason.", hint=f'reg.reject({uri!r}, "why")')
    same = now.status == status and (
        status == "pending" or (now.decided_by == actor and reason in (None, "", now.reason))
    )
    if verb == "approve" and not same:
        if now.archived:
            raise NotAllowed(f"{uri} is archived.", hint=f"Take it out first: reg.restore({uri!r}, reason).")
        if now.purged:
            raise Purged(f"The files of {uri} were purged: it cannot be approved.")
        if now.purged_files:
            raise Purged(
                f"{', '.join(map(shown, now.purged_files[:5]))} of {uri} were purged: it is not whole, and cannot be"
                " approved.",
                hint="Register the files that are left as a new version.",
            )
    if same:
        return []
    return [make(model=model, number=number, reason=seal.maybe(reason))]


def archive(
    state: State, seal: Sealer, model: str, number: int, reason: str | None, archived: bool, wanted: bool
) -> list[Event]:
    """Put a version (or with number 0 the model) away, or take it out."""
    if archived == wanted:
        return []
    make = ev.Archived if wanted else ev.Restored
    return [make(model=model, number=number, reason=seal.maybe(reason))]


def set_alias(
    state: State,
    seal: Sealer,
    model: str,
    alias: str,
    weights: Mapping[int, int],
    now: Mapping[int, int] | None,
    reason: str | None,
) -> list[Event]:
    """Point an alias at versions that are neither rejected nor archived, and of which no file was purged."""
    model_exists(state, model)
    for number in weights:
        version = version_exists(state, model, number)
        uri = f"model://{model}/v{number}"
        gone = "purged" if version.purged else "purged in part" if version.purged_files else None
        if version.status == "rejected" or version.archived or gone:
            why = gone or ("archived" if version.archived else "rejected")
            raise NotAllowed(f"{uri} is {why}: {shown(alias)} cannot point at it.")
    if now is not None and dict(now) == dict(weights):
        return []
    return [ev.AliasMoved(model=model, alias=alias, weights=Frozen(weights), reason=seal.maybe(reason))]


def check_weights(weights: Mapping[int, Any]) -> None:
    """Raise InvalidDocument unless the weights are whole, positive, and sum up to 100."""
    good = all(type(weight) is int and weight > 0 for weight in weights.values())
    if not weights or not good or sum(weights.values()) != 100:
        raise InvalidDocument(
            "The weights of an alias must be whole numbers above 0 that sum up to 100.",
            hint='For example {"v5": 90, "v6": 10}.',
        )


def purge(
    state: State,
    seal: Sealer,
    model: str,
    number: int,
    paths: Sequence[str] | None,
    reason: str | None,
    guards: Iterable[str],
    force: bool,
) -> list[Event]:
    """Give up files for good. *guards* say what speaks against it; *force* overrules them."""
    now = version_exists(state, model, number)
    uri = f"model://{model}/v{number}"
    if not reason:
        raise InvalidDocument(f"Purging {uri} needs a reason.")
    if now.purged:
        return []
    against = list(guards)
    if now.status == "approved":
        against.insert(0, "it is approved")
    if against and not force:
        raise NotAllowed(
            f"{uri} is not purged: {', and '.join(against)}.",
            hint="If its files must go nevertheless: purge(..., force=True).",
        )
    return [
        ev.VersionPurged(
            model=model,
            number=number,
            paths=None if paths is None else tuple(paths),
            reason=seal.maybe(reason),
        )
    ]


# --- data -------------------------------------------------------------------------------------------


def create_dataset(there: bool, seal: Sealer, name: str, changes: Changes) -> list[Event]:
    """A new dataset; its name is new for ever."""
    if there:
        raise Conflict(
            f"The dataset {shown(name)} exists already.",
            hint=f'Add to it: reg.create_dataset_version("dataset://{name}/v1", files).',
        )
    return [
        ev.DatasetCreated(
            dataset=name,
            texts=_sealed(seal, {k: v for k, v in changes.texts.items() if v}),
            fields=_sealed_fields(seal, {k: v for k, v in changes.fields.items() if v is not None}),
            tags=_unique(changes.tags or ()),
            projects=_unique(changes.projects or ()),
        )
    ]


def dataset_version_is_free(name: str, version: str, taken: bool, alias: bool) -> None:
    """Raise Conflict when a version's name is that of another version or of an alias."""
    if version == "latest":
        raise InvalidName(
            f"dataset://{name}/latest names the newest version, and cannot be one.",
            hint="Write for example v1.",
        )
    if taken or alias:
        raise Conflict(
            f"dataset://{name}/{version} exists already{', as an alias' if alias else ''}: versions never change.",
            hint="Choose another name for the new version.",
        )


def dataset_alias_is_free(name: str, alias: str, taken: bool) -> None:
    """Raise Conflict when an alias would have the name of a version."""
    if taken:
        raise Conflict(
            f"{shown(alias)} is a version of the dataset {shown(name)}: it cannot be an alias too.",
            hint="Versions and aliases share one namespace; choose another name.",
        )


def same_key(before: tuple[int, int, str | None] | None, key: str, content: str, what: str) -> int | None:
    """Return the number that an idempotency key made before, None when it is new."""
    if before is None:
        return None
    if before[2] not in (None, content):
        raise KeyReused(
            f"The idempotency key {shown(key)} was used for other content of {what}.",
            hint="Use a new key for new content.",
            seq=before[0],
        )
    return before[1]


# --- parts ------------------------------------------------------------------------------------------


Item = tuple[int, str]
"""A private text: its entry, and its digest."""

FORGOTTEN_AT_ONCE = 8000
"""Texts that one entry erases to forget a person: some 650 kB."""


def forget_user(
    seal: Sealer,
    pseudonym: str,
    names: Sequence[Item],
    values: Sequence[Item],
    erased: Sequence[Item],
    reason: str | None,
) -> list[Event]:
    """Erase a person's name from these texts; those that do not fit into the entry stand in its plan."""
    first, rest = _cut(names, values, erased)
    plan = seal(json.dumps(rest, separators=(",", ":"))) if any(rest.values()) else None
    return [evolve(_forgotten(pseudonym, first), plan=plan, reason=seal.maybe(reason))]


def forget_more(
    pseudonym: str, names: Sequence[Item], values: Sequence[Item], erased: Sequence[Item], *, plan: Item
) -> list[Event]:
    """Erase the next of the texts that are *planned*; with the last of them the plan itself."""
    first, rest = _cut(names, values, erased)
    if not any(rest.values()):
        first["erased"] = (*first["erased"], plan)
    return [_forgotten(pseudonym, first)]


def _forgotten(pseudonym: str, items: Mapping[str, tuple[Item, ...]]) -> ev.UserForgotten:
    return ev.UserForgotten(
        pseudonym=pseudonym, names=items["names"], values=items["values"], erased=items["erased"]
    )


def _cut(
    names: Sequence[Item], values: Sequence[Item], erased: Sequence[Item]
) -> tuple[dict[str, tuple[Item, ...]], dict[str, tuple[Item, ...]]]:
    """Return what fits into one entry, and the rest."""
    first, rest = {}, {}
    left = FORGOTTEN_AT_ONCE
    for what, items in (("names", names), ("values", values), ("erased", erased)):
        first[what], rest[what] = tuple(items[:left]), tuple(items[left:])
        left -= len(first[what])
    return first, rest


def _sealed(seal: Sealer, texts: Mapping[str, str | None]) -> Frozen:
    return Frozen({name: seal.maybe(text) for name, text in texts.items()})


def _sealed_fields(seal: Sealer, fields: Mapping[str, Value | None]) -> Frozen:
    return Frozen({name: None if value is None else seal.value(value) for name, value in fields.items()})


def _changed(wanted: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of *wanted* that differs from *now*. Types differ too: 1 is not True.

    What was redacted is there as None, and can still be removed.
    """
    return {
        name: value
        for name, value in wanted.items()
        if _print(value) != _print(now.get(name)) or (value is None and name in now and name not in _ALWAYS)
    }


_ALWAYS = ("title", "description", "owner")  # a model has these, None or not


def _print(value: Any) -> str | None:
    return None if value is None else ev.printed_value(value)


def _lists(now: Sequence[str], changes: Changes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tags to add and to remove."""
    target = list(now if changes.tags is None else changes.tags)
    target = [tag for tag in (*target, *changes.add_tags) if tag not in changes.remove_tags]
    add = tuple(tag for tag in _unique(target) if tag not in now)
    remove = tuple(tag for tag in now if tag not in target)
    return add, remove


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))
