"""`Registry.forget_user`: a person's name leaves everything that is stored, and nothing else changes."""

from __future__ import annotations

import contextlib
import os
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelhub_sdk as hub
from modelhub_sdk import InvalidDocument, InvalidName, Mention, NotAllowed, NotFound, Registry
from modelhub_sdk.domain.people import Person
from modelhub_sdk.formats import codec
from modelhub_sdk.index import schema
from modelhub_sdk.uses import drain

THOROUGH = bool(os.environ.get("THOROUGH_TESTS"))
JANE = "jane.doe@x.org"


def named(name: bytes, *folders: Path) -> list[str]:
    """Return the files in *folders* that hold *name*."""
    return [
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and name in path.read_bytes()
    ]


def act(reg: Registry, user: str) -> Registry:
    """Return the registry as another user has it open."""
    reg._core.actor = user
    return reg


def tables(reg: Registry) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of the index."""
    with reg._core.view() as view:
        return {
            table.name: view.sql.all(f"SELECT * FROM @{table.name} ORDER BY {', '.join(table.key)}")
            for table in schema.TABLES
        }


def everywhere(reg: Registry, name: str) -> None:
    """Put *name* wherever the library puts the name of a person."""
    act(reg, name)
    reg._core.host = f"{name.partition('@')[0]}-laptop"
    reg.create_model("k", owner=name, fields={"contact": name}, tags=["t"])
    reg.edit_model("k", owner=f"user:{name}")
    reg.create_dataset("d", owner=name)
    reg.register("m", {"w": b"1"}, fields={"reviewer": name}, idempotency_key="k1")
    reg.approve("m/v1", "good")
    reg.comment("m/v1", "fine")
    reg.add_evaluation("m/v1", {"auc": 0.5})
    reg.attach("m/v1", "plot.txt", b"x")
    reg.set_alias("m", "prod", 1)
    reg.resolve("m/v1")
    drain(reg._core)
    with contextlib.suppress(ValueError), reg.start_run("t", id="r1", outputs=None):
        raise ValueError(f"no file /home/{name}/data.csv")
    reg.resolve("m/v1")  # a note that waits


@pytest.mark.parametrize("kind", ["sqlite", "folder"])
def test_the_name_is_in_no_stored_byte(kind: str, tmp_path: Path) -> None:
    """No file of registry and cache has the name: database, log, journal, inbox, private index, tracebacks, pins."""
    url = f"sqlite:///{tmp_path}/r/reg.db" if kind == "sqlite" else str(tmp_path / "r")
    with hub.open(url, user=JANE, create=True, cache_dir=tmp_path / "c") as reg:
        everywhere(reg, JANE)
        reg._core.host = "vm"
        digests = [record.chain for record in reg._core.place.store.read(0)]
        with hub.open(url, user="bob", cache_dir=tmp_path / "c2") as other:  # with an index of its own
            assert other.version("m/v1").created_by == JANE
            found = reg.forget_user(JANE, f"{JANE} asked to")
            assert other.version("m/v1").created_by == found.pseudonym
            assert other.version("m/v1").decided_by == found.pseudonym
            assert other.model("k").owner == other.dataset("d").owner == found.pseudonym
            assert dict(other.model("k").fields) == {"contact": found.pseudonym}
            assert [use.actor for use in other.uses("m/v1")] == [found.pseudonym] * 2
            run = other.run("r1")
            assert (run.user, run.exception, run.traceback) == (found.pseudonym, None, None)
            assert found.pseudonym in other.audit(action="user.forgotten")[0].detail
            assert [record.chain for record in reg._core.place.store.read(0)][: len(digests)] == digests
            assert other.verify().ok, other.verify().problems
        assert named(b"jane", tmp_path) == []
        assert set(found.matched) == {JANE, f"user:{JANE}"}
        assert found.mentions == found.kept == ()
    with hub.open(url, user="bob", cache_dir=tmp_path / "c3") as reg:  # who comes later sees the same
        assert reg.at(3).model("k").created_by == found.pseudonym
        assert reg.verify().ok


def test_the_name_is_in_no_cell_of_postgresql(postgres_db: str, tmp_path: Path) -> None:
    """No table of the database has the name in any cell."""
    with hub.open(
        postgres_db, artifacts=tmp_path / "a", user=JANE, create=True, cache_dir=tmp_path / "c"
    ) as reg:
        everywhere(reg, JANE)
        reg._core.host = "vm"
        reg.forget_user(JANE, "asked to")
        store: Any = reg._core.place.store
        with store.connection() as conn:
            names = [
                row[0]
                for row in conn.execute(
                    "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
                ).fetchall()
            ]
            assert "modelhub_journal" in names
            for name in names:
                for row in conn.execute(f"SELECT * FROM {name}").fetchall():
                    assert not any(b"jane" in _bytes(cell) for cell in row), (name, row)
        assert reg.verify().ok
    assert named(b"jane", tmp_path) == []


def _bytes(cell: object) -> bytes:
    return bytes(cell) if isinstance(cell, (bytes, memoryview)) else str(cell).encode()


def test_the_name_is_in_no_object_on_s3(s3_bucket: Any, tmp_path: Path) -> None:
    """No object below the registry's prefix has the name."""
    with hub.open(f"{s3_bucket.url}/hub", user=JANE, create=True, cache_dir=tmp_path / "c") as reg:
        act(reg, JANE)
        reg.create_model("m", owner=JANE)
        reg.register("m", {"w": b"1"})
        reg.resolve("m/v1")
        reg.forget_user(JANE, "asked to")
        assert reg.verify().ok
        store: Any = reg._core.place.store
        fs = store.medium._fs
        objects = fs.find(store.medium.root)
        assert len(objects) > 4
        assert [one for one in objects if b"jane" in fs.cat_file(one)] == []
    assert named(b"jane", tmp_path) == []


def test_what_people_typed_is_told_and_left(reg: Registry) -> None:
    """Texts that mention the person stay; the result says where, in the words of `redact`, and what cannot go."""
    act(reg, JANE).register("m", {"w": b"1"}, note=f"Ask {JANE}.", tags=[JANE])
    act(reg, "bob").reject("m/v1", f"{JANE} says no")
    reg.comment("m/v1", f"not by {JANE}x")
    found = reg.forget_user(JANE, "asked to")
    assert found.mentions == (
        Mention(entry=2, subject="model://m/v1", what="note"),
        Mention(entry=3, subject="model://m/v1", what="reasons"),
    )
    assert found.kept == (Mention(entry=2, subject="model://m/v1", what="version.registered"),)
    assert reg.version("m/v1").note == f"Ask {JANE}."
    for one in found.mentions:
        reg.redact(one.subject, one.what, "asked to")
    assert reg.version("m/v1").note is reg.version("m/v1").reason is None
    assert reg.verify().ok


def test_who_comes_back_is_a_new_person(reg: Registry) -> None:
    """The same decision under the forgotten name is that of somebody else; the pseudonym is not touched again."""
    act(reg, JANE).register("m", {"w": b"1"})
    reg.approve("m/v1", "good")
    before = reg.audit().total
    reg.approve("m/v1", "good")
    assert reg.audit().total == before
    first = act(reg, "bob").forget_user(JANE, "asked to")
    act(reg, JANE).approve("m/v1", "good")
    assert (reg.version("m/v1").decided_by, reg.version("m/v1").created_by) == (JANE, first.pseudonym)
    second = reg.forget_user(JANE, "again")
    assert second.pseudonym != first.pseudonym
    assert (reg.version("m/v1").decided_by, reg.version("m/v1").created_by) == (
        second.pseudonym,
        first.pseudonym,
    )
    assert [one.actor for one in reg.audit(actor=first.pseudonym)] == [first.pseudonym] * 3
    assert reg.verify().ok


def test_who_cannot_be_forgotten(reg: Registry, tmp_path: Path) -> None:
    """An unknown name is told with the nearest; a reason is needed, and a handle that may write."""
    act(reg, JANE).register("m", {"w": b"1"}, note="for ann")
    with pytest.raises(NotFound, match="Nobody here has the name 'jane.do@x.org'") as error:
        reg.forget_user("jane.do@x.org", "asked to")
    assert JANE in error.value.nearest
    with pytest.raises(NotFound, match="mentioned in 1 texts"):
        reg.forget_user("ann", "asked to")
    with pytest.raises(InvalidDocument, match="reason"):
        reg.forget_user(JANE, " ")
    with pytest.raises(InvalidName):
        reg.forget_user("", "asked to")
    reg.forget_user(JANE, "asked to")
    with pytest.raises(NotFound):
        reg.forget_user(JANE, "asked to")
    reg.freeze("moved")
    with pytest.raises(NotAllowed, match="frozen"):
        reg.forget_user("tester", "asked to")
    with hub.open(f"sqlite:///{tmp_path}/other.db", user=JANE) as other:
        other.create_model("m")
    with hub.open(f"sqlite:///{tmp_path}/other.db", read_only=True) as other, pytest.raises(NotAllowed):
        other.forget_user(JANE, "asked to")


def test_another_name_is_another_person(reg: Registry) -> None:
    """Only the name that was given is forgotten; others that may be the same person are told."""
    for user in ("jane", "Jane", "jane@x.org", "Jane Doe <jane@x.org>", "janet", "bob"):
        act(reg, user).create_model(f"m{len(list(reg.models()))}")
    found = act(reg, "bob").forget_user("jane@x.org", "asked to")
    assert dict(found.matched) == {"jane@x.org": 1, "Jane Doe <jane@x.org>": 1}
    assert found.alike == ("Jane", "jane")
    people = {model.created_by for model in reg.models()}
    assert people == {"jane", "Jane", "janet", "bob", found.pseudonym}


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("/home/jane/x", True), ("jane-laptop", True), ("JANE", True), ("a_jane_b", True), ("(jane)", True),
        ("janet", False), ("ajane", False), ("jane2", False), ("", False),
    ],
)  # fmt: skip
def test_a_name_is_a_word(text: str, there: bool) -> None:
    """A name stands in a text where no letter or digit goes on with it."""
    assert Person("jane").is_in(text) is there
    assert Person('a"b').is_in('{"x":"a\\"b"}')


def test_a_home_names_the_login_of_an_address() -> None:
    """What a machine recorded is also matched by the login of an address: in a home's path, and in a host's name."""
    person = Person("jane@x.org")
    homes = ["/home/jane/x.py", "cd ~jane", "C:\\Users\\jane\\x", "ssh jane@x.org"]
    assert all(person.is_behind(text) for text in homes)
    assert not any(person.is_behind(text) for text in ["train jane", "/home/janet", "/data/jane/x"])
    assert person.is_host("jane-laptop") and not person.is_host("janet-pc")
    assert not Person("ml@x.org").is_host("ml-node-7")


def test_late_uses_do_not_bring_the_name_back(reg: Registry) -> None:
    """A use from before, delivered after, enters the journal without a name that nobody has; others keep theirs."""
    act(reg, JANE).register("m", {"w": b"1"})
    reg.resolve("m/v1")
    act(reg, "bob").resolve("m/v1")
    reg.comment("m/v1", "x")
    store = reg._core.place.store
    late = [note for note in store.notes(10) if JANE.encode() in note.body or b"bob" in note.body]
    assert len(late) == 2
    store.forget([note.id for note in late])
    found = reg.forget_user(JANE, "asked to")
    store.note(late)
    drain(reg._core)
    assert sorted(str(use.actor) for use in reg.uses("m/v1")) == ["None", "bob"]
    reg._core.clock = lambda now=reg._core.clock: now() + timedelta(hours=1)
    drain(reg._core)
    assert store.notes(10) == []
    assert found.entries == 1
    assert JANE not in str(tables(reg))


def test_spooled_uses_are_delivered_first(tmp_path: Path) -> None:
    """Uses that wait in this user's cache are taken into the journal before the name goes."""
    url = f"sqlite:///{tmp_path}/reg.db"
    with hub.open(url, user=JANE, cache_dir=tmp_path / "c") as reg:
        reg.register("m", {"w": b"1"})
    with hub.open(url, user=JANE, cache_dir=tmp_path / "c", read_only=True) as reg:
        reg.resolve("m/v1")
    assert len(named(JANE.encode(), tmp_path / "c" / "spool")) == 1
    with hub.open(url, user="bob", cache_dir=tmp_path / "c") as reg:
        found = reg.forget_user(JANE, "asked to")
        assert [use.actor for use in reg.uses("m/v1")] == [found.pseudonym]
    assert named(JANE.encode(), tmp_path) == []


def test_copies_and_bundles_follow(tmp_path: Path) -> None:
    """A copy forgets at the next `copy_to`; a bundle has the pseudonym; an imported history with the name goes."""
    with hub.open(f"sqlite:///{tmp_path}/a/reg.db", user=JANE, cache_dir=tmp_path / "c") as reg:
        reg.register("m", {"w": b"1"})
        reg.resolve("m/v1")
        reg.export_bundle("m/v1", tmp_path / "before.zip")
        reg.copy_to(tmp_path / "copy")
        reg.copy_to(f"sqlite:///{tmp_path}/copy.db")
        found = act(reg, "bob").forget_user(JANE, "asked to")
        reg.copy_to(tmp_path / "copy")
        reg.copy_to(f"sqlite:///{tmp_path}/copy.db")
        reg.export_bundle("m/v1", tmp_path / "after.zip")
        assert named(b"jane", tmp_path) == [str(tmp_path / "before.zip")]
    for url in (str(tmp_path / "copy"), f"sqlite:///{tmp_path}/copy.db"):
        with hub.open(url, user="bob", cache_dir=tmp_path / "c") as copy:
            assert copy.version("m/v1").created_by == found.pseudonym
            assert copy.verify().ok, copy.verify().problems
    with zipfile.ZipFile(tmp_path / "after.zip") as bundle:
        assert found.pseudonym.encode() in bundle.read("modelhub-bundle.json")
    with hub.open(f"sqlite:///{tmp_path}/b/reg.db", user="bob", cache_dir=tmp_path / "c") as reg:
        version = reg.import_bundle(tmp_path / "before.zip")
        assert JANE in str(reg.lineage(version))
        assert reg.forget_user(JANE, "asked to").texts == 1
        assert JANE not in str(reg.lineage(version))
        assert reg.verify().ok
    assert named(b"jane", tmp_path / "b") == []


def _views(reg: Registry, until: int) -> list[Any]:
    """Return all that the reads say as of entry *until*."""
    past = reg.at(until)
    return [
        *past.models(limit=100),
        *past.versions(limit=100),
        *(record for record in past.audit(limit=1000)),
        *(past.lineage(version.uri).approvals for version in past.versions(limit=100)),
    ]


_USERS = ("anneq", "bobeq", "kimeq")
_ACTIONS = ("create", "register", "approve", "reject", "comment", "owner", "alias", "evaluate")


@settings(max_examples=60 if THOROUGH else 6, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(_USERS), st.sampled_from(_ACTIONS)), min_size=1, max_size=15),
    st.data(),
)
def test_nothing_but_the_name_changes(story: list[tuple[str, str]], data: Any) -> None:
    """After any history by three people one is forgotten: all reads are as before but for the name, so is the chain."""
    with hub.open("memory://") as reg:
        act(reg, "anneq").register("m", {"w": b"1"})
        for n, (user, action) in enumerate(story):
            act(reg, user)
            if action == "create":
                reg.create_model(f"m{n}", owner=data.draw(st.sampled_from(_USERS)), fields={"by": user})
            elif action == "register":
                reg.register("m", {"w": str(n).encode()}, fields={"lead": user})
            elif action in ("approve", "reject"):
                getattr(reg, action)("m/v1", "because")
            elif action == "comment":
                reg.comment("m/v1", "said")
            elif action == "owner":
                reg.edit_model("m", owner=user)
            elif action == "alias":
                with contextlib.suppress(NotAllowed):  # it was rejected
                    reg.set_alias("m", "prod", 1)
            else:
                reg.add_evaluation("m/v1", {"auc": n})
        name = data.draw(st.sampled_from(sorted({user for user, _ in story})))
        last = reg.audit()[0].seq
        before = _views(reg, last)
        chain = [(record.chain, record.body) for record in reg._core.place.store.read(0)]
        found = act(reg, "tester").forget_user(name, "asked to")
        with reg._core.view() as view:
            assert not view.has_text(name) and not view.has_text("s:" + name)
        assert [repr(one).replace(name, found.pseudonym) for one in before] == [
            repr(one) for one in _views(reg, last)
        ]
        records = list(reg._core.place.store.read(0))
        assert [(record.chain, record.body) for record in records][:last] == chain
        assert all(codec.decode(record).min_reader == 1 for record in records)
        rows = tables(reg)
        reg.rebuild_index()
        assert tables(reg) == rows
        assert reg.verify().ok
