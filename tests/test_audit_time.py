"""What happened, what was, and whether it can be trusted: audit, at and verify."""

from __future__ import annotations

import itertools
import sqlite3
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry

EVERY = pytest.mark.parametrize("reg", ["memory", "sqlite", "folder"], indirect=True)


@pytest.fixture
def story(tmp_path: Path) -> Any:
    """A registry on SQLite with a story of four days; the clock is the story's."""
    moment = [datetime(2026, 3, 1, 9, tzinfo=UTC)]
    url = f"sqlite:///{tmp_path}/r.db"
    with hub.open(url, user="ann") as ann, hub.open(url, user="bob") as bob:
        first = ann.audit()[0].at
        shift = timedelta(days=(first.year + 1) * 400)  # after the registry's own birth
        for reg in (ann, bob):
            reg._core.clock = lambda: moment[0] + shift
        for day, act in enumerate(
            [
                lambda: ann.register("churn", {"f": b"1"}),
                lambda: bob.approve("churn/v1", "good"),
                lambda: ann.register("fraud", {"f": b"2"}),
                lambda: bob.reject("churn/v1", "bad"),
            ]
        ):
            moment[0] = datetime(2026, 3, 1 + day, 9, tzinfo=UTC)
            act()
        yield ann, lambda day, hour=9: datetime(2026, 3, day, hour, tzinfo=UTC) + shift


# --- audit


@EVERY
def test_every_change_has_a_record(reg: Registry):
    """Every verb leaves exactly its records, newest first, each one printable line with actor, time and subject."""
    reg.create_model("m", title="t")
    reg.register("m", {"f": b"1"})
    reg.edit_model("m", owner="o")
    reg.edit_version("m/v1", note="n")
    reg.comment("m/v1", "c")
    reg.add_evaluation("m/v1", {"auc": 1})
    reg.attach("m/v1", "a.txt", b"a")
    reg.approve("m/v1", "r")
    reg.set_alias("m", "champion", 1)
    reg.delete_alias("m", "champion")
    reg.archive("m/v1")
    reg.restore("m/v1")
    reg.reject("m/v1", "r")
    reg.reopen("m/v1")
    reg.redact("m/v1", "note", "r")
    reg.purge("m/v1", "r")
    reg.configure(require="approved")
    records = reg.audit()
    assert [record.action for record in reversed(records)] == [
        "registry.created", "model.created", "version.registered", "model.edited", "version.edited",
        "version.commented", "version.evaluated", "version.attached", "version.approved", "alias.moved",
        "alias.deleted", "archived", "restored", "version.rejected", "version.reopened", "text.redacted",
        "version.purged", "blobs.deleting", "blobs.deleted", "registry.configured",
    ]  # fmt: skip
    assert [record.seq for record in records] == list(range(20, 0, -1))
    assert {record.actor for record in records} == {"tester"}
    assert all(a.at >= b.at for a, b in itertools.pairwise(records))
    assert all(str(record).isprintable() and record.detail for record in records)
    assert "modelhub_sdk" in (records[0].via or "")
    assert all(record.subject.startswith("model://m/") for record in records[3:-1])


def test_audit_of_a_subject(story: Any):
    """A model has its own events and its versions'; a version only its own; a stranger none."""
    reg, _ = story
    assert [r.action for r in reg.audit("churn/v1")] == [
        "version.rejected",
        "version.approved",
        "version.registered",
    ]
    assert {r.action for r in reg.audit("churn")} >= {"model.created", "version.approved"}
    assert {r.subject for r in reg.audit("fraud")} == {"model://fraud/", "model://fraud/v1"}
    assert reg.audit(reg.model("fraud")) == reg.audit("fraud") == reg.audit("model://fraud/")
    for ref in ("nothing", "churn/v9", "nothing/v1"):
        with pytest.raises(hub.NotFound):
            reg.audit(ref)


def test_audit_filters(story: Any):
    """By person, by action or family of actions, by time: together they narrow."""
    reg, day = story

    def actions(**filters: Any) -> list[str]:
        return [r.action for r in reg.audit(**filters)]

    assert actions(actor="bob") == ["version.rejected", "version.approved"]
    assert actions(actor="nobody") == []
    assert actions(action="version.approved") == ["version.approved"]
    assert actions(action="version", ref="churn") == [
        "version.rejected",
        "version.approved",
        "version.registered",
    ]
    assert actions(action="ver") == []
    assert actions(action="vers_on") == []
    assert actions(since=day(4)) == ["version.rejected"]
    assert actions(since=day(2), until=day(3, 8)) == ["version.approved"]
    assert actions(since=day(2).date().isoformat(), until=day(2).date().isoformat()) == ["version.approved"]
    assert actions(since=day(2).date(), until=day(2).date(), actor="ann") == []
    assert actions(until=day(1)) == ["version.registered", "model.created", "registry.created"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"since": "yesterday"},
        {"since": 7},
        {"until": "2026-02-30"},
        {"until": datetime(2026, 1, 1)},
        {"since": "٢٠٢٦-٠١-٠١"},
        {"limit": 0},
        {"limit": 10**9},
        {"actor": 7},
        {"actor": "\ud800"},
        {"action": b"version"},
        {"ref": 7},
    ],
    ids=str,
)
def test_audit_filters_that_are_none(reg: Registry, arguments: dict[str, Any]):
    """A filter of another kind is an error of ours."""
    with pytest.raises(hub.ModelHubError):
        reg.audit(**arguments)


def test_pages_of_the_audit_are_stable(reg: Registry):
    """What happens meanwhile neither shifts the next page nor enters it."""
    for i in range(5):
        reg.create_model(f"m{i}")
    page = reg.audit(limit=4)
    assert page.total == 6
    reg.create_model("later")
    rest = page.next()
    assert [r.seq for r in (*page, *rest)] == [6, 5, 4, 3, 2, 1]
    assert (rest.total, len(rest.next())) == (6, 0)


# --- at


@EVERY
def test_the_past_is_as_it_was(reg: Registry):
    """Every read of the past answers as it did then: status, latest, aliases, tags, texts, listings, settings."""
    seen = []

    def look(view: Any) -> Any:
        return (
            [*view.models(where="")], [*view.versions()], view.latest("m"), dict(view.settings()),
            view.versions(where="status = 'approved'").total, [*view.audit()], [*view.models(text="new")],
        )  # fmt: skip

    def act(call: Any) -> None:
        call()
        seen.append((reg.audit(limit=1)[0].seq, look(reg)))

    act(lambda: reg.register("m", {"f": b"1"}, tags=["a"], note="n"))
    act(lambda: reg.approve("m/v1", "x"))
    act(lambda: reg.edit_version("m/v1", tags=["b"], note="other", fields={"k": 1}))
    act(lambda: reg.register("m", {"f": b"2"}))
    act(lambda: reg.set_alias("m", "champion", {"v1": 50, "v2": 50}))
    act(lambda: reg.edit_model("m", title="new title"))
    act(lambda: reg.reject("m/v1", "y"))
    act(lambda: reg.archive("m/v2"))
    act(lambda: reg.configure(metrics={"loss": "min"}))
    act(lambda: reg.archive("m"))
    act(lambda: reg.delete_alias("m", "champion"))
    for seq, expected in seen:
        assert look(reg.at(seq)) == expected


def test_moments(story: Any):
    """A time means the last entry before or at it; a date the end of that day, UTC; a number that entry."""
    reg, day = story
    for moment, status in [
        (day(1), "pending"),
        (day(2) - timedelta(microseconds=1), "pending"),
        (day(2), "approved"),
        (day(2).date(), "approved"),
        (day(3).date().isoformat(), "approved"),
        (day(4, 8).isoformat(), "approved"),
        (day(4).isoformat().replace("+00:00", "Z"), "rejected"),
        (day(30), "rejected"),
    ]:
        assert reg.at(moment).version("churn/v1").status == status, moment
    eastern = day(2).astimezone(__import__("zoneinfo").ZoneInfo("Asia/Tokyo"))
    assert reg.at(eastern).version("churn/v1").status == "approved"


@pytest.mark.parametrize(
    "moment",
    [0, -1, 99, 2**70, True, 1.5, None, b"2026-01-01", "", "never", "2026-13-01", "1999-01-01", date(1, 1, 1),
     datetime(2026, 1, 1), "2026-W01"],
    ids=str,
)  # fmt: skip
def test_moments_that_are_none(reg: Registry, moment: Any):
    """A moment outside of the journal, without a zone, or of another kind: InvalidQuery."""
    with pytest.raises(hub.InvalidQuery):
        reg.at(moment)


def test_the_past_cannot_be_changed(reg: Registry):
    """A view of the past has the reads and none of the verbs, and at() of a view never goes ahead of it."""
    reg.register("m", {"f": b"1"})
    then = reg.at(2)
    reg.register("m", {"f": b"2"})
    assert isinstance(then, hub.RegistryView)
    assert not isinstance(then, Registry)
    assert not hasattr(then, "approve")
    assert then.at(3).versions().total == 1
    assert "at 2" in repr(then)


# --- verify


@EVERY
def test_verify(reg: Registry):
    """A sound registry verifies, whole or one version; it counts entries and blobs and tells the head."""
    reg.register("m", {"f": b"1", "g": b"2"})
    reg.attach("m/v1", "a", b"3")
    found = reg.verify()
    assert found
    assert (found.ok, found.problems, found.entries, found.blobs) == (True, (), 3, 3)
    assert len(found.head) == 64
    assert reg.verify("m/v1").blobs == 3
    before = found.head
    reg.approve("m/v1")
    assert reg.verify().head != before


@EVERY
@pytest.mark.parametrize("harm", ["changed", "cut", "gone"])
def test_verify_finds_harmed_bytes(reg: Registry, harm: str):
    """A blob that was changed, cut or removed is named with its version and file."""
    reg.register("m", {"good": b"good", "bad": b"bad bytes"})
    root = Path(reg._core.artifacts().root or "")
    (blob,) = [p for p in root.rglob("*") if p.is_file() and p.read_bytes() == b"bad bytes"]
    blob.chmod(0o600)
    if harm == "changed":
        blob.write_bytes(b"bad bytez")
    elif harm == "cut":
        blob.write_bytes(b"bad")
    else:
        blob.unlink()
    found = reg.verify()
    assert not found
    (problem,) = found.problems
    assert "model://m/v1" in problem
    assert "bad" in problem
    assert not reg.verify("m/v1")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE modelhub_journal SET body = replace(body, 'm', 'n') WHERE seq = 3",
        "UPDATE modelhub_journal SET chain = '{}' WHERE seq = 3".format("0" * 64),
        "UPDATE modelhub_journal SET scope = 'model:x' WHERE seq = 2",
        "UPDATE modelhub_journal SET private = replace(private, 'good', 'evil') WHERE seq = 3",
        "DELETE FROM modelhub_journal WHERE seq = 4",
    ],
)
def test_verify_finds_a_changed_journal(tmp_path: Path, statement: str):
    """Whoever changes an entry, its chain, scope or private part, or cuts the journal, is found."""
    with hub.open(f"sqlite:///{tmp_path}/r.db") as reg:
        reg.register("m", {"f": b"1"})
        reg.approve("m/v1", "good")
        reg.reject("m/v1", "bad")
    with sqlite3.connect(tmp_path / "r.db") as conn:
        body = "replace(body, 'm', 'n')"
        statement = statement.replace(
            body, "CAST(replace(CAST(body AS TEXT), 'approved', 'rejected') AS BLOB)"
        )
        statement = statement.replace("replace(private, ", "CAST(replace(CAST(private AS TEXT), ").replace(
            "'evil')", "'evil') AS BLOB)"
        )
        assert conn.execute(statement).rowcount == 1
    conn.close()
    with hub.open(f"sqlite:///{tmp_path}/r.db") as reg:
        found = reg.verify()
    assert not found
    assert found.problems


def test_verify_finds_a_changed_index(tmp_path: Path):
    """An index that somebody changed by hand differs from the journal; rebuild_index makes it right."""
    with hub.open(f"sqlite:///{tmp_path}/r.db") as reg:
        reg.register("m", {"f": b"1"})
        with sqlite3.connect(tmp_path / "r.db") as conn:
            (table,) = [
                name
                for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                if name.endswith("_fact")
            ]
            assert conn.execute(f"UPDATE {table} SET value = 'approved' WHERE name = 'status'").rowcount == 1
        conn.close()
        found = reg.verify()
        assert not found
        assert "rebuild_index" in found.problems[0]
        reg.rebuild_index()
        assert reg.verify()
        assert reg.version("m/v1").status == "pending"
