"""Registries on several stores, driven by the same random commands: byte-equal journals, equal answers.

`RegistryMachine` is a hypothesis state machine. It gives every command to a registry on each `Site`
and to the `Oracle`, and compares what they return, which errors they raise, what they answer to
searches, now and in the past, and the journals byte by byte. Between commands it throws indexes
away, rebuilds them and opens handles anew. Clock, ids and randomness are injected, so that equal
commands make equal bytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, evolve, field
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.core import Core, _ledger
from modelhub_sdk.domain.entities import Listing
from modelhub_sdk.domain.events import Entry, RegistryCreated, Sealer
from modelhub_sdk.domain.query import MODEL_FIELDS, VERSION_FIELDS
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.errors import ModelHubError
from modelhub_sdk.formats import codec
from modelhub_sdk.formats.sidecar import JSONL_NAME
from modelhub_sdk.ports import Record, SequenceTaken
from modelhub_sdk.registry import Registry
from modelhub_sdk.stores import opening
from modelhub_sdk.stores.opening import Place
from modelhub_sdk.testing import strategies as many
from modelhub_sdk.testing.oracle import Oracle, canonical
from modelhub_sdk.testing.strategies import MODELS, MOMENTS, Annotated, Command
from modelhub_sdk.uses import drain

REGISTRY_ID = "0123456789abcdef" * 2
HANDLES = 2
"""Handles that are open on each site at the same time."""


@define
class Injected:
    """Clock, ids and randomness that give the same to every site: `begin` starts a command anew."""

    now: datetime
    command: int = 0
    drawn: int = 0
    made: int = 0

    def begin(self, command: int, now: datetime) -> None:
        """Start to give what command number *command* gets."""
        self.command, self.now, self.drawn, self.made = command, now, 0, 0

    def clock(self) -> datetime:
        """Return the time of the command."""
        return self.now

    def entropy(self, count: int) -> bytes:
        """Return *count* bytes, other ones each time."""
        self.drawn += 1
        return hashlib.sha256(f"{self.command}:{self.drawn}".encode()).digest()[:count]

    def new_id(self) -> str:
        """Return an id that sorts by time."""
        self.made += 1
        return f"{self.command:016x}{self.made:016x}"


@define
class Replaying(Core):
    """A core that takes the time from the injected clock alone, whatever the store's own clock says."""

    def _time(self, store: datetime | None, before: datetime | None) -> datetime:
        return Core._time(self, None, before)


@define
class Site:
    """One place with a registry, and the handles on it.

    Args:
        url: of an empty place.
        artifacts: where its bytes go.
        cache: the folder of its cache, with the private index.
    """

    url: str
    artifacts: str
    cache: str
    injected: Injected
    handles: list[Registry] = field(factory=list)

    @property
    def name(self) -> str:
        """The scheme of the URL."""
        return self.url.partition("://")[0] if "://" in self.url else "folder"

    def place(self) -> Place:
        """Return a fresh store on this place."""
        place = opening.connect(self.url, read_only=False, options={})
        make = getattr(place.store, "create_tables", None)
        if make is not None:
            make()
        return place

    def open(self) -> Registry:
        """Return a new handle; the first one finds a registry that is the same on every site."""
        place = self.place()
        core = Replaying(
            place=place,
            ledger=_ledger(place, REGISTRY_ID, False, self.cache),
            registry_id=REGISTRY_ID,
            blobs=BlobStore(self.artifacts, registry_id=REGISTRY_ID),
            actor="",
            host="host",
            project=None,
            read_only=False,
            cache_dir=self.cache,
            clock=self.injected.clock,
            entropy=self.injected.entropy,
            new_id=self.injected.new_id,
            drained=float("inf"),  # the machine says when the inbox is emptied
        )
        return Registry(core)

    def found(self, first: Record) -> None:
        """Make the registry and open the handles."""
        store = self.place().store
        with suppress(SequenceTaken):
            store.append(first)
        store.close()
        self.handles = [self.open() for _ in range(HANDLES)]

    def reopen(self, handle: int) -> None:
        """Close a handle and open it anew."""
        self.handles[handle].close()
        self.handles[handle] = self.open()

    def lose_index(self) -> None:
        """Throw the index away: a private one under open handles, a shared one while nobody has it open."""
        store = self.handles[0]._core.place.store
        if hasattr(store, "create_tables"):
            for handle in self.handles:
                handle.close()
            store = opening.connect(self.url, read_only=False, options={}).store
            from modelhub_sdk.index import schema

            with store.connection() as conn:  # type: ignore[attr-defined]
                for table in schema.TABLES:
                    conn.execute(f"DROP TABLE IF EXISTS {table.name}")
            store.close()
            self.handles = [self.open() for _ in range(HANDLES)]
            return
        for path in Path(self.cache, "index").glob("*"):
            with suppress(OSError):
                path.unlink()

    def journal(self, after: int = 0) -> list[Record]:
        """Return the records after *after*."""
        return list(self.handles[0]._core.place.store.read(after))

    def close(self) -> None:
        """Close everything."""
        for handle in self.handles:
            handle.close()
        opening._memories.pop(self.url.removeprefix("memory://"), None)


def first_record(at: datetime, actor: str) -> Record:
    """Return entry 1 of a registry, the same bytes each time."""
    seal = Sealer(lambda count: b"\0" * count)
    entry = Entry(
        seq=1,
        id="0" * 32,
        scope="registry",
        at=at,
        actor=seal(actor),
        via=Frozen(sdk="testing"),
        events=(RegistryCreated(id=REGISTRY_ID),),
    )
    return codec.encode(entry, seal.texts, codec.GENESIS)


class RegistryMachine(RuleBasedStateMachine):
    """Subclass it to choose the places: override `places` (memory, SQLite and a folder by default).

    Run it as ``TestMine = MyMachine.TestCase``.
    """

    users: ClassVar[tuple[str, ...]] = many.USERS
    searches: ClassVar[int] = 40
    """Searches for what is there, at the end of an example, for models and for versions."""

    def __init__(self) -> None:
        super().__init__()
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  no fsync to wait for
        self.root = Path(tempfile.mkdtemp(prefix="modelhub-machine-", dir=base))
        at = MOMENTS[0]
        self.injected = Injected(at)
        self.oracle = Oracle(at, self.users[0])
        self.commands = 0
        self.compared = 0
        self.sound = False  # no command is in the middle, none failed
        self.sites: list[Site] = []

    def places(self, root: Path) -> Iterable[tuple[str, str]]:
        """Return (URL, artifacts) of empty places; *root* is a folder of this example's own."""
        yield f"memory://{root.name}", str(root / "memory")
        yield f"sqlite:///{root}/models.db", str(root / "sqlite")
        yield f"{root}/folder", str(root / "folder-blobs")

    @initialize(versions=st.lists(many.commands("good_registration"), min_size=2, max_size=6))
    def begin(self, versions: list[Command]) -> None:
        """Make the same registry everywhere, with some versions in it."""
        for number, (url, artifacts) in enumerate(self.places(self.root)):
            self.sites.append(Site(url, artifacts, str(self.root / f"cache-{number}"), self.injected))
        for site in self.sites:
            site.found(first_record(MOMENTS[0], self.users[0]))
        self._compare_journals(all_of_it=True)
        for command in versions:
            self.act(command, 0)

    # --- commands ------------------------------------------------------------------------------

    def act(self, command: Command, handle: int) -> None:
        """Give *command* to every site and to the oracle, and compare."""
        self.commands += 1
        self.sound = False
        real = self._counted_back(command)
        expected = _outcome(lambda: self.oracle.run(command))
        for site in self.sites:
            self.injected.begin(self.commands, self.oracle.now)
            got = _outcome(lambda site=site: self._run(site, real, handle))  # type: ignore[misc]
            _same(got, expected, f"{site.name}: {real}")
        self._compare_journals(all_of_it=command.verb == "redact")
        self._compare_state(touched=_models_in(command))
        if command.verb == "configure":
            self._ask(None, lambda reg: reg.settings(), lambda past: past.settings(), "settings")
        if command.verb == "resolve":
            self._compare_uses()
        self.sound = True

    def _counted_back(self, command: Command) -> Command:
        """Return *command* with an `if_seq` that is so many entries before the present one."""
        back = command.options.get("if_seq")
        if back is None:
            return command
        try:
            read = self.oracle.model if command.verb == "edit_model" else self.oracle.version
            seq = read(command.args[0])["seq"]
        except ModelHubError:
            seq = 9
        return evolve(command, options={**command.options, "if_seq": seq - back})

    def _run(self, site: Site, command: Command, handle: int) -> Any:
        registry = site.handles[handle]
        registry._core.actor = command.user
        if command.verb == "ingest":
            outputs = self._written(command.args[0])
            report = registry.ingest(outputs, **command.options)
            shutil.rmtree(outputs)
            return {"versions": report.versions, "alerts": len(report.alerts), "repeated": report.repeated}
        answer = getattr(registry, command.verb)(*command.args, **command.options)
        if command.verb == "resolve":
            contents = {path: Path(answer.path, path).read_bytes() for path in answer.files}
            return {"uri": answer.uri, "version": answer.version, "contents": contents}
        return answer

    def _written(self, outputs: Mapping[str, Annotated]) -> Path:
        folder = self.root / "outputs"
        folder.mkdir()
        lines = []
        for path, output in sorted(outputs.items()):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(output.data)
            wishes = []
            for name, number, tags, note in output.models:
                uri = f"model://{name}/{number or ''}"
                wish = {"model_uri": uri, "model_version_tags": list(tags), "model_release_note": note}
                wishes.append({key: value for key, value in wish.items() if value})
            if wishes:
                lines.append(json.dumps({"file": path, "metadata": {"valohai.model-versions": wishes}}))
        if lines:
            (folder / JSONL_NAME).write_text("\n".join(lines) + "\n", "utf-8")
        return folder

    # --- comparing -----------------------------------------------------------------------------

    def _compare_journals(self, *, all_of_it: bool) -> None:
        """Every journal has the same bytes, and as many entries as the oracle counted."""
        after = 0 if all_of_it else self.compared
        first = self.sites[0].journal(after)
        for site in self.sites[1:]:
            other = site.journal(after)
            assert len(other) == len(first), (
                f"{site.name} has {len(other)} records, {self.sites[0].name} {len(first)}"
            )
            for one, two in zip(first, other, strict=True):
                assert one == two, f"entry {one.seq} of {self.sites[0].name} and {site.name}:\n{one}\n{two}"
        for record in first:
            actions = [event.kind for event in codec.decode(record).events]
            if record.seq > self.oracle.seq and all(action.startswith("blobs.") for action in actions):
                self.oracle.deleted(actions)
        self.compared = after + len(first)
        assert self.compared == self.oracle.seq, f"{self.compared} entries, and {self.oracle.seq} are right"

    def _compare_state(self, touched: Iterable[str] | None = None) -> None:
        """Every site answers as the oracle about these models (all when None) and all their versions."""
        for name in self.oracle.state["models"] if touched is None else touched:
            row = self.oracle.state["models"].get(name)
            refs = [f"{name}/v{n + 1}" for n in range(len(row["versions"]))] if row else []
            for site in self.sites:
                reg = site.handles[0]
                _same(
                    _outcome(functools.partial(reg.model, name)),
                    _outcome(functools.partial(self.oracle.model, name)),
                    site.name,
                )
                _same(
                    _outcome(functools.partial(reg.latest, name)),
                    _outcome(functools.partial(self.oracle.latest, name)),
                    site.name,
                )
                for ref in refs:
                    _same(
                        ("ok", canonical(reg.version(ref))),
                        ("ok", canonical(self.oracle.version(ref))),
                        site.name,
                    )

    def _compare_searches(self) -> None:
        """Every site finds and sorts by what is there as the oracle does, whatever it is compared by."""
        if not self.oracle.state["models"]:
            return
        chance = random.Random(self.commands)
        for fieldset, rows in (
            (MODEL_FIELDS, self.oracle.models()),
            (VERSION_FIELDS, self.oracle.versions()),
        ):
            things = fieldset.of
            asked = [
                {"order_by": sign + order} for order in many.sortable(fieldset, rows) for sign in ("", "-")
            ]
            asked += [{"where": where} for where in many.conditions_about(fieldset, rows, chance)]
            for question in chance.sample(asked, min(len(asked), self.searches)):
                listed = operator.methodcaller(things, **question)
                self._ask(None, functools.partial(_listed, listed), listed, f"{things}({question})")

    def _compare_uses(self) -> None:
        """Every site knows who resolved what, from the journal and the inbox together."""
        for uri in sorted({use[0] for use in self.oracle.uses}):
            used = sorted(use for use in self.oracle.uses if use[0] == uri)
            for site in self.sites:
                got = sorted((use.uri, use.asked, use.actor) for use in site.handles[0].uses(uri))
                assert got == used, f"{site.name}: {got} instead of {used}"

    def _ask(
        self, seq: int | None, ask: Callable[[Any], Any], answer: Callable[[Any], Any], what: str
    ) -> None:
        """Ask every site, as of entry *seq*, and compare with the oracle's answer."""
        expected = _outcome(lambda: answer(self.oracle if seq is None else self.oracle.at(seq)))
        for number, site in enumerate(self.sites):
            registry = site.handles[number % HANDLES]
            got = _outcome(lambda registry=registry: ask(registry if seq is None else registry.at(seq)))  # type: ignore[misc]
            _same(got, expected, f"{site.name} at {seq}: {what}")

    # --- rules ---------------------------------------------------------------------------------

    handle = st.integers(0, HANDLES - 1)

    @rule(command=many.commands(), handle=handle)
    def do(self, command: Command, handle: int) -> None:
        """Give any command."""
        self.act(command, handle)

    @rule(commands=st.lists(many.commands(), min_size=3, max_size=6), handle=handle)
    def do_several(self, commands: list[Command], handle: int) -> None:
        """Give several commands in a row."""
        for command in commands:
            self.act(command, handle)

    @rule(register=many.commands("good_registration"), decision=many.commands("decide"), handle=handle)
    def register_and_decide(self, register: Command, decision: Command, handle: int) -> None:
        """Register a version and decide on some."""
        self.act(register, handle)
        self.act(decision, handle)

    @rule(
        name=st.sampled_from((*MODELS[:1] * 2, *MODELS)),
        alias=st.sampled_from(many.ALIASES[:2]),
        numbers=st.lists(st.integers(1, 3), min_size=1, max_size=4),
        delete=st.booleans(),
        handle=handle,
    )
    def move_alias(self, name: str, alias: str, numbers: list[int], delete: bool, handle: int) -> None:
        """Point one alias at one version after another, delete it in between, and roll it back."""
        for number in numbers:
            self.act(Command("set_alias", (name, alias, number)), handle)
        if delete:
            self.act(Command("delete_alias", (name, alias)), handle)
            self.act(Command("set_alias", (name, alias, numbers[0])), handle)
        for _ in range(2):
            self.act(Command("rollback", (f"{name}/{alias}", "it failed")), handle)

    @rule(edit=many.commands("edit_model", "edit_version"), redaction=many.commands("redact"), handle=handle)
    def edit_and_redact(self, edit: Command, redaction: Command, handle: int) -> None:
        """Change texts and fields, and erase some."""
        self.act(edit, handle)
        self.act(redaction, handle)

    @rule(handle=handle)
    def drain(self, handle: int) -> None:
        """Take the uses from the inbox into the journal."""
        self.commands += 1
        self.oracle.drain()
        for site in self.sites:
            self.injected.begin(self.commands, self.oracle.now)
            site.handles[handle]._core.actor = self.oracle.actor
            drain(site.handles[handle]._core)
        self._compare_journals(all_of_it=False)

    @rule(left=st.sampled_from(many.CONTENTS), handle=handle)
    def collect_garbage(self, left: bytes, handle: int) -> None:
        """Leave bytes that nobody may have registered, and delete what nothing needs, on every site the same."""
        self.commands += 1
        self.sound = False
        done = []
        for site in self.sites:
            self.injected.begin(self.commands, self.oracle.now)
            registry = site.handles[handle]
            registry._core.actor = self.oracle.actor
            blobs = registry._core.artifacts()
            blobs.put_bytes(left)
            report = registry.collect_garbage(dry_run=False, grace=timedelta(0))
            done.append((report, sorted(blobs.digests())))
            assert registry.collect_garbage().unneeded == 0, site.name
        assert all(one == done[0] for one in done), done
        self._compare_journals(all_of_it=False)
        self._compare_state()
        self.sound = True

    moment = st.none() | st.integers(0, 1000)

    def _seq(self, moment: int | None) -> int | None:
        return None if moment is None else 1 + moment % self.oracle.seq

    @rule(
        where=st.none() | many.queries(MODEL_FIELDS),
        order=many.orders(MODEL_FIELDS),
        limit=st.sampled_from((1, 2, 100)),
        moment=moment,
        more=st.fixed_dictionaries(
            {},
            optional={
                "text": st.sampled_from(("", "CHURN", "fox", "ﬀ", "Σ", "é", "%", "_")),
                "owner": st.sampled_from(many.TEXTS),
                "project": st.sampled_from(("crm", "risk")),
            },
        ),
    )
    def search_models(
        self, where: str | None, order: str | None, limit: int, moment: int | None, more: Mapping[str, Any]
    ) -> None:
        """Search models, now or in the past."""
        self._ask(
            self._seq(moment),
            lambda reg: _pages(reg.models(where=where, order_by=order, limit=limit, **more)),
            lambda past: past.models(where=where, order_by=order, **more),
            f"models({where=}, {order=}, {more=})",
        )

    @rule(
        model=st.none() | st.sampled_from(MODELS),
        where=st.none() | many.queries(VERSION_FIELDS),
        order=many.orders(VERSION_FIELDS),
        limit=st.sampled_from((1, 2, 100)),
        moment=moment,
    )
    def search_versions(
        self, model: str | None, where: str | None, order: str | None, limit: int, moment: int | None
    ) -> None:
        """Search versions, now or in the past."""
        self._ask(
            self._seq(moment),
            lambda reg: _pages(reg.versions(model, where=where, order_by=order, limit=limit)),
            lambda past: past.versions(model, where=where, order_by=order),
            f"versions({model=}, {where=}, {order=})",
        )

    @rule(ref=many.version_refs(), name=st.sampled_from(MODELS), moment=moment)
    def look(self, ref: str, name: str, moment: int | None) -> None:
        """Read one version, one model, one alias, the latest version, the settings, now or in the past."""
        seq = self._seq(moment)
        self._ask(seq, lambda reg: reg.version(ref), lambda past: past.version(ref), ref)
        self._ask(seq, lambda reg: reg.model(name), lambda past: past.model(name), name)
        self._ask(seq, lambda reg: reg.latest(name), lambda past: past.latest(name), f"latest of {name}")
        for alias in many.ALIASES:
            named = f"{name}/{alias}"
            self._ask(
                seq,
                operator.methodcaller("alias", named),
                operator.methodcaller("alias", named),
                named,
            )
        self._ask(seq, lambda reg: reg.settings(), lambda past: past.settings(), "settings")

    @rule(data=st.sampled_from(many.CONTENTS), moment=moment)
    def identify(self, data: bytes, moment: int | None) -> None:
        """Ask which versions hold these bytes."""
        path = self.root / "what-is-this"
        path.write_bytes(data)
        self._ask(
            self._seq(moment),
            lambda reg: list(reg.identify(path)),
            lambda past: sorted(
                (v for v in _all_versions(past) if any(f["digest"] == _sha(data) for f in v["files"])),
                key=lambda v: (v["model"], v["number"]),
            ),
            "identify",
        )

    @rule(
        name=st.none() | st.sampled_from(MODELS),
        action=st.sampled_from((None, "version", "alias.moved", "archived")),
    )
    def audit(self, name: str | None, action: str | None) -> None:
        """Read the record of what happened."""
        if name is not None and name not in self.oracle.state["models"]:
            return
        expected = [
            (seq, what, self.oracle.times[seq], self.oracle.actors[seq])
            for seq, what, model, _ in reversed(self.oracle.log)
            if name in (None, model) and (action is None or what == action or what.startswith(action + "."))
        ]
        seen = []
        for site in self.sites:
            records = site.handles[0].audit(name, action=action, limit=10_000)
            seen.append([(r.detail, r.subject, r.via) for r in records][: len(expected) - 1])
            assert [(r.seq, r.action, r.at, r.actor) for r in records] == expected, site.name
        assert all(details == seen[0] for details in seen)

    @rule(site=st.integers(0, 9), handle=handle)
    def reopen(self, site: int, handle: int) -> None:
        """Close a handle and open it again."""
        self.sites[site % len(self.sites)].reopen(handle)

    @rule(site=st.integers(0, 9), handle=handle)
    def rebuild(self, site: int, handle: int) -> None:
        """Rebuild an index."""
        self.sites[site % len(self.sites)].handles[handle].rebuild_index()
        self._compare_state()

    @rule(site=st.integers(0, 9))
    def lose_index(self, site: int) -> None:
        """Lose an index."""
        self.sites[site % len(self.sites)].lose_index()
        self._compare_state()

    # --- the end -------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Compare everything once more, verify every registry, and leave nothing behind."""
        try:
            if self.sound:
                self._compare_journals(all_of_it=True)
                self._compare_state()
                self._compare_searches()
                for site in self.sites:
                    verification = site.handles[0].verify()
                    assert verification.ok, f"{site.name}: {verification.problems}"
                    assert verification.entries == self.oracle.seq
        finally:
            for site in self.sites:
                site.close()
            shutil.rmtree(self.root, ignore_errors=True)


# --- parts --------------------------------------------------------------------------------------------


def _listed(ask: Callable[[Any], Iterable[Any]], registry: Any) -> list[Any]:
    return list(ask(registry))


def _outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    """Return what *call* gives or which of our errors it raises, in a form to compare; others are bugs."""
    try:
        return "ok", canonical(call())
    except ModelHubError as error:
        return "error", type(error).__name__


def _same(got: tuple[str, Any], expected: tuple[str, Any], what: str) -> None:
    if got != expected:
        raise AssertionError(f"{what}\n  answers {_differing(got, expected)}")


def _differing(got: Any, expected: Any, place: str = "") -> str:
    """Return where two canonical values differ."""
    if isinstance(got, (list, tuple)) and isinstance(expected, (list, tuple)) and len(got) == len(expected):
        for n, (one, two) in enumerate(zip(got, expected, strict=True)):
            if one != two:
                inner = got[0] if n == 1 and isinstance(got[0], str) else n
                return _differing(one, two, f"{place}/{inner}")
    return f"{place}: {got!r} instead of {expected!r}"


def _pages(page: Listing[Any]) -> list[Any]:
    """Return all items of all pages; each page counts the same total."""
    items: list[Any] = []
    total = page.total
    while page:
        items += page
        assert page.total == total, "the pages of one answer count different totals"
        page = page.next()
    assert len(items) == total, f"{len(items)} items, and the listing counted {total}"
    return items


def _models_in(command: Command) -> list[str]:
    if command.verb == "ingest":
        return list(MODELS)
    ref = command.args[0] if command.args and isinstance(command.args[0], str) else ""
    return [name for name in MODELS if name in ref.removeprefix("model://").split("/")]


def _all_versions(past: Any) -> list[Any]:
    return [
        past.version(f"{n}/v{i + 1}")
        for n, m in past.state["models"].items()
        for i in range(len(m["versions"]))
    ]


def _sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


__all__ = ["Injected", "RegistryMachine", "Replaying", "Site", "first_record"]
