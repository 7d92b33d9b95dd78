"""Erasing private texts for good, and forgetting people.

An entry says what is to be erased; then it is: in the entries' private parts, in what stores derive from them, in
free pages and logs of databases, in the inbox, and as stored tracebacks. A process may be killed anywhere in
between. So whoever writes next, or collects garbage, finishes it: an erasure is pending from its entry on until
somebody has confirmed it (`RemembersErasures`), and a look whether one is costs a write one question to the index.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import define, field

from modelhub_sdk import garbage, resolver, uses
from modelhub_sdk.blobs.parallel import each
from modelhub_sdk.core import Core, log
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain import names, rules
from modelhub_sdk.domain.audit import described
from modelhub_sdk.domain.entities import ForgottenUser, Mention
from modelhub_sdk.domain.events import Event, Sealer
from modelhub_sdk.domain.people import Person
from modelhub_sdk.domain.rules import Item
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.errors import ModelHubError, NotFound, nearest, shown
from modelhub_sdk.formats import codec
from modelhub_sdk.index import runs
from modelhub_sdk.index.queries import View
from modelhub_sdk.ports import Record, RemembersErasures, Store
from modelhub_sdk.stores.ledger import check_chain

_AT_ONCE = 500  # records whose private parts are in memory together
_ONE_BY_ONE = 16  # records that are erased one by one; more of them together

# --- finishing ----------------------------------------------------------------------------------------


def finish(core: Core, also: Collection[int] = (), *, patient: bool = True) -> None:
    """Erase what the journal says is erased and nobody has confirmed yet, and the same in the entries *also*.

    With *patient* wait for others: for readers of a database, for a collector that deletes the same traceback.

    Raises:
        ModelHubError: it could not be done; the next writer tries again.
    """
    store = core.place.store
    with core.view(probe=patient) as view:
        head, last = view.head()[0], view.last_erasure()
    since = core.erased
    if last > since and isinstance(store, RemembersErasures):
        kept = store.erased_until()
        since = max(since, kept if kept <= head else 0)
    if last <= since and not also:
        core.erased = last
        return
    last = _complete_forgettings(core, since) or last
    _erase_texts(core, since, also)
    with core.view(probe=False) as view:
        traces = runs.erased_traces(view, since)
        forgotten = view.forgotten_uses(since)
    forget_notes(store, forgotten)
    finished = _free(core, traces, patient=patient) if traces else True
    finished = core.ledger.erased(patient=patient) and finished
    if finished and isinstance(store, RemembersErasures):
        store.confirm_erased(last)
    core.erased = last


def finish_after_write(core: Core) -> None:
    """Finish what a killed process left, as the write that has just been done met some. Never fails that write."""
    try:
        finish(core, patient=False)
    except Exception as error:  # noqa: BLE001  a role may lack the right to erase, an entry may be damaged
        core.erased = core.erasing  # this handle does not try again: the next one does
        log.warning(
            "Texts that were redacted are still stored in %s, and this process could not erase them (%s).",
            shown(core.url, 200),
            type(error).__name__,
        )


def finish_before_collecting(core: Core) -> None:
    """Finish what a killed process left, with patience. Never fails the collector."""
    with core.view() as view:
        core.erasing = max(core.erasing, view.last_erasure())
    if core.erasing > core.erased:
        try:
            finish(core)
        except ModelHubError as error:
            log.warning("Texts that were redacted could not be erased: %s", error.message)


def forget_notes(store: Store, ids: Collection[str]) -> None:
    """Remove from the inbox the notes with these *ids*, which are in the journal."""
    if waiting := [note.id for note in uses.each_note(store) if note.id in ids] if ids else []:
        store.forget(waiting)


def _erase_texts(core: Core, since: int, also: Collection[int]) -> None:
    """Erase in the store, until nobody erased more meanwhile."""
    done: dict[int, set[str]] = {}
    while True:
        with core.view() as view:
            gone = view.redacted({*view.erased_after(since), *also})
        left = {seq: seals for seq, seals in gone.items() if done.get(seq) != seals}
        if not left:
            return
        numbers = sorted(left)
        for start in range(0, len(numbers), _AT_ONCE):
            _erase_part(core.place.store, numbers[start : start + _AT_ONCE], gone)
        done = gone


def _erase_part(store: Store, numbers: Sequence[int], gone: Mapping[int, set[str]]) -> None:
    def read(seq: int, _: object = None) -> Record | None:
        return next(iter(store.read(seq - 1, limit=1)), None)

    many = len(numbers) > _ONE_BY_ONE
    records = each(read, numbers) if many else tuple(map(read, numbers))
    parts: dict[int, bytes] = {}
    remembers = isinstance(store, RemembersErasures)
    for record in records:
        if record is not None:
            private = codec.without(record, gone[record.seq])
            # A store that keeps copies is asked also where the entry is right: the copies may not be.
            if remembers or private != record.private:
                parts[record.seq] = private
    if many and isinstance(store, RemembersErasures):
        store.erase_many(parts)
    else:
        for seq, private in parts.items():
            store.erase(seq, private)


def _free(core: Core, traces: set[str], *, patient: bool) -> bool:
    """Delete tracebacks, unless another run failed with the very same one; return whether none is left half deleted."""
    garbage.free(core, sorted(traces))
    if patient:
        core.wait_for_deletion(traces)
    with core.view(probe=False) as view:
        return all(one.state != "deleting" for one in view.garbage(traces).values())


# --- forgetting a person ------------------------------------------------------------------------------


def forget(core: Core, user: object, reason: str) -> ForgottenUser:
    """Erase a person's name; see `Registry.forget_user`."""
    person = Person(names.check_actor(user))
    core.writable()
    finish(core)
    pseudonym = _new_pseudonym(core)
    quiet = _without_name(core, person, pseudonym)
    resolver.deliver_spooled(core)
    while uses.drain(quiet):
        pass
    findings = _Findings(core, person)
    findings.read()
    because = person.masked(reason, pseudonym)

    def decide(view: View, seal: Sealer) -> list[Event]:
        findings.read()  # what was appended since: now nobody appends
        found = findings.left(view)
        if not any(found):
            raise _unknown(view, person, findings)
        return rules.forget_user(seal, pseudonym, *found, because)

    quiet.commit("registry", decide)
    finish(quiet)
    core.erased = core.erasing = quiet.erased
    core.documents.clear()  # tracebacks
    with core.view() as view:
        alike = tuple(sorted(name for name in view.people() if person.is_like(name)))
    return findings.result(pseudonym, alike)


def _new_pseudonym(core: Core) -> str:
    """Return a name that nobody in the registry has. It is random: a hash of the name could be guessed."""
    with core.view() as view:
        for length in (4, 4, 4, 8, 16):
            pseudonym = "person-" + core.entropy(length).hex()
            if not view.has_text(pseudonym):
                break
    return pseudonym


def _without_name(core: Core, person: Person, pseudonym: str) -> Core:
    """Return the same registry under the pseudonym, where its user is the person: what is written now names nobody."""
    quiet = copy.copy(core)
    if person.is_named_by(core.actor):
        quiet.actor = pseudonym
    if person.is_host(core.host):
        quiet.host = "(redacted)"
    return quiet


def _unknown(view: View, person: Person, findings: _Findings) -> NotFound:
    people = view.people()
    places = f" It is mentioned in {len(findings.mentions):,} texts." if findings.mentions else ""
    return NotFound(
        f"Nobody here has the name {shown(person.name)}.{places}",
        hint="Pass the name exactly as created_by, an owner or the audit trail shows it. Texts that mention somebody"
        " are erased by reg.redact(ref, what, reason).",
        nearest=nearest(person.name, people),
    )


def _complete_forgettings(core: Core, since: int) -> int:
    """Append what is left of forgettings after entry *since* that did not fit into one entry; return the last entry."""
    last = 0
    with core.view() as view:
        begun = [(seq, event) for seq, event in view.forgettings(since) if event.plan is not None]
    for seq, event in begun:

        def decide(view: View, _: Sealer, seq: int = seq, event: ev.UserForgotten = event) -> list[Event]:
            plan = view.texts([event.plan]).get(event.plan or "")
            if plan is None:
                return []
            planned = _planned(plan)
            gone = _gone(view, itertools.chain(*planned))
            names, values, erased = ([item for item in items if item not in gone] for items in planned)
            return rules.forget_more(event.pseudonym, names, values, erased, plan=(seq, str(event.plan)))

        while entry := core.commit("registry", decide):
            last = entry.seq
    return last


def _planned(plan: str) -> list[list[Item]]:
    """Return the items that a plan lists: names, values, and what is only erased."""
    raw = codec.loads(plan)
    return [[(seq, seal) for seq, seal in raw[name]] for name in ("names", "values", "erased")]


def _gone(view: View, items: Iterable[Item]) -> set[Item]:
    gone = view.redacted(dict.fromkeys(seq for seq, _ in items))
    return {(seq, seal) for seq, seals in gone.items() for seal in seals}


_MACHINE = frozenset(("host", "command", "exception", "history"))
"""What was recorded without anybody typing it: it is erased as a whole where it names the person."""

_NO_PROSE = frozenset(("actor", "owner", "user", "content"))
"""What mentions nobody: it is a name, of that person or of somebody else, or a digest."""


@define
class _Findings:
    """Where a person is named in the journal, as far as it was read."""

    core: Core
    person: Person
    seq: int = 0
    chain: str = codec.GENESIS
    names: list[Item] = field(factory=list)
    values: list[Item] = field(factory=list)
    erased: list[Item] = field(factory=list)
    mentions: list[Mention] = field(factory=list)
    kept: list[Mention] = field(factory=list)
    spelled: Counter[str] = field(factory=Counter)
    traces: dict[str, bool] = field(factory=dict)

    def read(self) -> None:
        """Read what the journal has by now.

        Raises:
            InvalidDocument: an entry was changed: what it said before cannot be searched.
        """
        for record in self.core.place.store.read(self.seq):
            check_chain((self.seq, self.chain), [record])
            body, private = record.body.decode("utf-8", "replace"), record.private.decode("utf-8", "replace")
            if self.person.may_be_in(private) or self.person.may_be_in(body) or '"traceback":' in body:
                self._add(codec.decode(record))
            self.seq, self.chain = record.seq, record.chain

    def left(self, view: View) -> tuple[list[Item], list[Item], list[Item]]:
        """Return what is to be erased and is not yet: names, values, and what is only erased."""
        gone = _gone(view, (*self.names, *self.values, *self.erased))
        self.names, self.values, self.erased = (
            [item for item in dict.fromkeys(items) if item not in gone]
            for items in (self.names, self.values, self.erased)
        )
        return self.names, self.values, self.erased

    def result(self, pseudonym: str, alike: tuple[str, ...]) -> ForgottenUser:
        """Return what was found, now that it is erased."""
        items = {*self.names, *self.values, *self.erased}
        return ForgottenUser(
            pseudonym=pseudonym,
            entries=len({seq for seq, _ in items}),
            texts=len(items),
            matched=Frozen(self.spelled),
            mentions=tuple(self.mentions),
            kept=tuple(self.kept),
            alike=alike,
        )

    def _add(self, entry: ev.Entry) -> None:
        unseen = dict(entry.private)
        for seal, what in ((entry.actor, "actor"), (entry.via.get("host"), "host")):
            self._judge(entry.seq, "", what, seal, unseen)
        for event, document in zip(entry.events, codec.documents(entry), strict=True):
            raw = codec.loads(document)
            subject = described(event, {})[0]
            hit = False
            for what, seal in _places(raw):
                hit |= self._judge(entry.seq, subject, what, seal, unseen)
            content = raw.get("content")
            if hit and content in entry.private:  # it would tell whether a guess is right
                self.erased.append((entry.seq, str(content)))
            self._trace(entry, raw)
            if self.person.is_in(document):
                self.kept.append(Mention(entry=entry.seq, subject=subject, what=raw["kind"]))
        for seal in tuple(unseen):  # of a kind that a newer release wrote
            self._judge(entry.seq, "", "", seal, unseen)

    def _judge(self, seq: int, subject: str, what: str, seal: Any, texts: dict[str, str]) -> bool:
        """Sort one text in; return whether it is the name, or a field's value that is the name."""
        text = texts.pop(seal, None) if isinstance(seal, str) else None
        if text is None:
            return False
        if self.person.is_named_by(text):
            self.names.append((seq, seal))
            self.spelled[text] += 1
            return True
        value = text[2:] if what.startswith("fields.") and text.startswith("s:") else None
        if value is not None and self.person.is_named_by(value):
            self.values.append((seq, seal))
            self.spelled[value] += 1
            return True
        is_machine = self.person.is_host if what == "host" else self.person.is_behind
        if what in _MACHINE and is_machine(text):
            self.erased.append((seq, seal))
        elif what not in _NO_PROSE and self.person.is_in(text):
            self.mentions.append(Mention(entry=seq, subject=subject, what=what))
        return False

    def _trace(self, entry: ev.Entry, raw: Mapping[str, Any]) -> None:
        """Erase an exception whose traceback names the person: the traceback goes with it."""
        trace, exception = raw.get("traceback"), raw.get("exception")
        if raw["kind"] != ev.RunFinished.kind or trace is None or exception not in entry.private:
            return
        if trace not in self.traces:
            try:
                text = self.core.document(trace).decode("utf-8", "replace")
            except ModelHubError:  # lost: nothing can be read in it
                text = ""
            self.traces[trace] = self.person.is_behind(text)
        if self.traces[trace]:
            self.erased.append((entry.seq, str(exception)))


def _places(raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what the private texts of an event are, as `Registry.redact` calls it, and the digest of each."""
    yield from raw.get("texts", {}).items()
    for name, seal in raw.get("fields", {}).items():
        yield "fields." + name, seal
    for name in ("command", "exception", "history", "content"):
        yield name, raw.get(name)
    yield "reasons", raw.get("reason")
    yield "comments", raw.get("text")
    yield "evaluations", raw.get("note")
    for use in raw.get("uses", ()):
        yield "user", use.get("actor")
        yield "host", use.get("host")


__all__ = ["finish", "finish_after_write", "finish_before_collecting", "forget", "forget_notes"]
