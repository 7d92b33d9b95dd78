"""Uses: who resolved what. Written to the inbox by anyone, taken into the journal by a later commit."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from attrs import evolve

from modelhub_sdk.core import Core
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain import names
from modelhub_sdk.domain.entities import Use
from modelhub_sdk.domain.events import Event, Sealer
from modelhub_sdk.domain.uri import DatasetURI, ModelURI, Number, parse_uri
from modelhub_sdk.errors import ModelHubError, shown
from modelhub_sdk.formats import codec
from modelhub_sdk.index import data
from modelhub_sdk.index.queries import View
from modelhub_sdk.ports import MAX_NOTE, Inspectable, Note, Store

log = logging.getLogger("modelhub_sdk")

FORGET_AFTER = timedelta(minutes=10)
"""How long a use stays in the inbox after it entered the journal: a reader may be between the two."""

_REMEMBERED = timedelta(days=1)  # by then it has been forgotten; if not, the fold takes it once all the same
_PAGE = 1000
_SET_ASIDE = 100_000  # ids that a handle remembers
_USE_SIZE = 400  # bytes of a use in an entry, beside its texts of any length
_ENTRY_SIZE = 500_000


def waiting(core: Core, skip: Collection[str] = ()) -> Iterator[tuple[Note, Mapping[str, Any]]]:
    """Yield the notes in the inbox that are notes, with what they say; unknown kinds too.

    Anybody who may note a use can leave anything there. What does not decode is set aside: this handle does not
    read it again, `damaged` counts it, and `forget_junk` removes it.
    """
    for note in each_note(core.place.store, {*skip, *core.set_aside}):
        raw = _parsed(note)
        if raw is not None:
            yield note, raw
        elif len(core.set_aside) < _SET_ASIDE:
            core.set_aside.add(note.id)


def each_note(store: Store, skip: Collection[str] = ()) -> Iterator[Note]:
    """Yield all that lies in the inbox under the id of a note, but for the ids to *skip*."""
    after = ""
    while notes := store.notes(_PAGE, after=after, skip=skip):
        after = notes[-1].id
        yield from notes


def inbox(core: Core, known: Collection[str] = ()) -> Iterator[Use]:
    """Yield the uses that wait in the inbox and are not *known*; notes of other kinds are passed over."""
    for note, raw in waiting(core, known):
        use = _use(note, raw)
        if use is not None:
            yield use


def damaged(core: Core) -> list[str]:
    """Return the names of all that lies in the inbox and is no note, or no use although it says so.

    Raises:
        StoreUnavailable, NotAllowed: the inbox cannot be read.
    """
    store = core.place.store
    names = store.strange_notes() if isinstance(store, Inspectable) else []
    for note in each_note(store):
        raw = _parsed(note)
        if raw is None or (raw["kind"] == "use" and _use(note, raw) is None and not _is_moving(raw)):
            names.append(note.id)
    return names


def forget_junk(core: Core) -> int:
    """Remove from the inbox what no release can have written as a note, and return how much that was.

    A note is at most `ports.MAX_NOTE` bytes, and a JSON object with a `kind`; so it was for every release, and so
    it stays. What is one, but of a kind or with values that this release does not know, stays. So does what
    this user may not read.
    """
    notes = each_note(core.place.store)
    junk = [note.id for note in notes if (note.junk or note.body) and _parsed(note) is None]
    for note_id in junk:
        with suppress(ModelHubError):  # a folder, say: it stays, and is passed over
            core.place.store.forget([note_id])
    if junk:
        log.warning(
            "Removed %d things from the inbox of %s that are no notes.", len(junk), shown(core.url, 200)
        )
    return len(junk)


def _parsed(note: Note) -> Mapping[str, Any] | None:
    """Return what a note says; None when it is no JSON object with a kind."""
    if note.junk or len(note.body) > MAX_NOTE:
        return None
    try:
        raw = json.loads(note.body)
    except (ValueError, TypeError, RecursionError):
        return None
    return raw if isinstance(raw, dict) and isinstance(raw.get("kind"), str) else None


def read_use(note: Note) -> Use | None:
    """Return the use that a note tells of, None when it is none."""
    raw = _parsed(note)
    return None if raw is None else _use(note, raw)


def _is_moving(raw: Mapping[str, Any]) -> bool:
    """Return whether a use names no fixed version: that is for nobody to count, and no damage."""
    try:
        uri = parse_uri(raw["uri"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return isinstance(uri, ModelURI) and not isinstance(uri.selector, Number)


def _use(note: Note, raw: Mapping[str, Any]) -> Use | None:
    try:
        if raw["kind"] != "use":
            return None
        uri = parse_uri(raw["uri"])
        if isinstance(uri, ModelURI) and not isinstance(uri.selector, Number):
            return None
        return Use(
            id=note.id,
            uri=str(uri),
            asked=names.check_text(raw["asked"], "asked", 4096),
            at=codec.parse_time(raw["at"]),
            actor=names.check_actor(raw["actor"]) if raw.get("actor") else None,
            host=names.check_text(raw["host"], "host", 300) if raw.get("host") else None,
            run_id=names.check_text(raw["run_id"], "run_id", 300) if raw.get("run_id") else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def drain(core: Core) -> int:
    """Take uses from the inbox into the journal, as one entry; forget those that are there long enough.

    Returns:
        How many uses entered the journal: at most a thousand.
    """
    with core.view() as view:
        known = view.recent_uses(core.clock() - _REMEMBERED)
    taken: list[Use] = []
    size = 0
    for use in inbox(core, known):
        size += len(codec.dumps([use.asked, use.uri, use.run_id])) + _USE_SIZE
        if len(taken) >= _PAGE or size > _ENTRY_SIZE:
            break
        taken.append(use)

    def decide(view: View, seal: Sealer) -> list[Event]:
        there = view.used_ids([use.id for use in taken])
        new = _without_forgotten(view, [use for use in taken if use.id not in there])
        uses = tuple(_noted(view, use, seal) for use in new)
        return [ev.UsesRecorded(uses=uses)] if uses else []

    entry = core.commit("registry", decide) if taken else None
    horizon = core.clock() - FORGET_AFTER
    core.place.store.forget([one for one, at in known.items() if at < horizon])
    return (
        sum(len(event.uses) for event in entry.events if isinstance(event, ev.UsesRecorded)) if entry else 0
    )


def _without_forgotten(view: View, late: Sequence[Use]) -> list[Use]:
    """Return uses without the users and hosts that may have been forgotten while they were on their way.

    Nothing says which name was forgotten. So of a use from before that, a name that nobody has any more is left out.
    """
    forgotten = view.last_forgotten() if late else None
    if forgotten is None:
        return list(late)
    names = {name for use in late if use.at <= forgotten for name in (use.actor, use.host) if name}
    unknown = {name for name in names if not view.has_text(name)}
    return [
        evolve(
            use,
            actor=None if use.actor in unknown else use.actor,
            host=None if use.host in unknown else use.host,
        )
        if use.at <= forgotten
        else use
        for use in late
    ]


def key_of(view: View, uri: str) -> tuple[str, int]:
    """Return what keys the version or datum *uri* in the index; number 0 where there is none."""
    parsed = parse_uri(uri)
    if isinstance(parsed, ModelURI):
        return parsed.name, parsed.selector.number if isinstance(parsed.selector, Number) else 0
    if isinstance(parsed, DatasetURI):
        return data.subject(parsed.name), data.number_of(view, parsed.name, parsed.version or "") or 0
    return "datum:" + parsed.id, 0


def _noted(view: View, use: Use, seal: Sealer) -> ev.UseNoted:
    model, number = key_of(view, use.uri)
    return ev.UseNoted(
        id=use.id,
        model=model,
        number=number,
        asked=use.asked,
        at=use.at,
        actor=seal.maybe(use.actor),
        host=seal.maybe(use.host),
        run_id=use.run_id,
    )
