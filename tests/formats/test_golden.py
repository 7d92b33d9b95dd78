"""Journals of earlier releases: what was once written is read for ever, with the same meaning."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from modelhub_sdk.domain.entities import Origin
from modelhub_sdk.domain.events import KINDS, Unknown
from modelhub_sdk.domain.query import parse
from modelhub_sdk.errors import JournalTooNew
from modelhub_sdk.formats import codec, commitments
from modelhub_sdk.index import data, fold, runs, schema
from modelhub_sdk.index.queries import View
from modelhub_sdk.index.sql import Sql
from modelhub_sdk.ports import Record
from modelhub_sdk.stores.connections import sqlite_connect

LEE = "person-000003ec"
"""Who was forgotten in the golden journal."""

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("format-*.jsonl"))


def _records(path: Path) -> list[Record]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Record(seq, scope, chain, body.encode(), private.encode())
        for seq, scope, chain, body, private in rows
    ]


def _view(records: list[Record]) -> View:
    conn = sqlite_connect(":memory:")
    for statement in schema.ddl("sqlite"):
        conn.execute(statement)
    fold.apply(Sql(conn, "sqlite"), [codec.decode(record) for record in records])
    return View(Sql(conn, "sqlite"))


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def records(request: pytest.FixtureRequest) -> list[Record]:
    return _records(request.param)


def test_there_is_a_golden_journal_with_every_kind() -> None:
    """The newest golden journal holds every kind of event that this release can write."""
    kinds = {event.kind for record in _records(GOLDEN[-1]) for event in codec.decode(record).events}
    assert kinds == set(KINDS)


def test_the_chain_of_a_golden_journal_holds(records: list[Record]) -> None:
    """The rule of the chain has not changed."""
    digest = codec.GENESIS
    for record in records:
        digest = codec.chain(digest, record.seq, record.scope, record.body)
        assert digest == record.chain
        assert commitments.private(record).problems == ()


def test_the_texts_of_a_golden_journal_are_in_place(records: list[Record]) -> None:
    """Each commitment has its text or was redacted, and each text has its commitment: old journals verify."""
    gone = _view(records).all_redacted()
    for record in records:
        named, stored = commitments.commitments(record.body), commitments.private(record).stored
        assert named.certain - stored == gone.get(record.seq, set())
        assert stored <= named.certain
        assert not named.possible


def test_a_golden_journal_is_written_back_byte_for_byte(records: list[Record]) -> None:
    """Decoding and encoding an entry gives the same bytes: nothing of it is lost on the way."""
    previous = codec.GENESIS
    for record in records:
        again = codec.encode(codec.decode(record), {}, previous)
        assert again.body == record.body
        assert again.chain == record.chain
        previous = record.chain


def test_a_golden_journal_means_what_it_meant() -> None:
    """The state folded from the journal of format 1 is the one that its writer saw."""
    view = _view(_records(GOLDEN[0]))
    model = view.model("churn")
    assert (model.title, model.owner, model.projects, model.tags) == (None, "team:ml", ("x",), ("Größe",))
    assert dict(model.fields) == {"n": 2**53 + 1, "sla": {"hours": 4, "strict": True}}
    assert (model.latest, model.last_number, model.archived) == (1, 4, False)
    assert {name: dict(weights) for name, weights in model.aliases.items()} == {"champion": {1: 100}}
    first, second = view.version("churn", 1), view.version("churn", 2)
    assert first is not None and second is not None
    assert (first.status, first.reason, first.decided_by) == ("approved", "recall +5 %", "sofia")
    assert (second.status, second.archived) == ("pending", False)
    assert first.metrics["auc"] == 0.1 + 0.2 and math.isnan(first.metrics["nan"])
    assert (first.metrics["low"], first.metrics["n"]) == (-math.inf, 2**70)
    assert math.copysign(1, first.metrics["zero"]) == -1
    assert dict(first.params) == {"lr": 0.1, "layers": (1, 2), "name": "𝛼", "none": None, "flag": True}
    assert (first.tags, first.note, first.description, dict(first.fields)) == (
        ("A", "c"),
        "better",
        "text",
        {},
    )
    assert [file.path for file in first.files] == ["model.bin", "sub/größe.txt"]
    assert first.inputs == ("dataset://clicks/v7", "s3://bucket/raw.csv")
    assert [comment.text for comment in first.comments] == [None]
    assert [(e.metrics["auc"], e.data, e.note) for e in first.evaluations] == [
        (0.88, "dataset://holdout/v1", "on holdout")
    ]
    assert [a.name for a in first.attachments] == ["roc.txt"]
    third = view.version("churn", 3)
    assert third is not None and third.origin == Origin("6" * 32, "model://churn/v7", 12, "5" * 64)
    assert view.sql.all("SELECT source FROM @edge WHERE target = 'model://churn/v3'") == [
        (f"origin:{'6' * 32}/model://churn/v7",)
    ]
    assert view.elsewhere(third.files[0].digest) == [("s3://lake/model.bin", "v-1")]
    leads = view.model("leads")
    assert (leads.created_by, leads.owner, dict(leads.fields)) == (LEE, LEE, {"contact": LEE})
    purged = view.purge("churn", 2)
    assert purged is not None and purged.whole is None
    assert {path: one.reason for path, one in purged.files.items()} == {"model.bin": "space"}
    assert [(use.asked, use.actor) for use in view.uses("churn", 1)] == [("model://churn/champion", "kim")]
    found, total = view.versions(parse("metrics.auc >= 0.3"), None, 10, 0, model=None, hide_archived=True)
    assert ([version.uri for version in found], total) == (
        ["model://other/v1", "model://churn/v2", "model://churn/v1"],
        3,
    )


def test_data_and_runs_of_a_golden_journal_mean_what_they_meant() -> None:
    """Datasets, datums, runs and their edges are folded as their writer saw them."""
    view = _view(_records(GOLDEN[0]))
    clicks = data.dataset(view, "clicks")
    assert (clicks.title, clicks.versions, clicks.latest, clicks.aliases) == (
        "Clicks",
        ("v1", "v2"),
        "v2",
        {"prod": "v1"},
    )
    second = data.version(view, "clicks", 2)
    assert ([file.path for file in second.files], second.based_on) == (["a.csv"], "dataset://clicks/v1")
    datum = data.datum(view, data.datum_alias(view, "newest") or "")
    assert datum is not None
    assert (datum.name, datum.tags, datum.properties["rows"]) == ("table.csv", ("raw",), 2**60)
    run = runs.run(view, "run-2", document=lambda digest: b'{"numpy":"2.4.6"}')
    assert (run.number, run.name, run.status, run.attempts, run.exception) == (
        1,
        "train",
        "failed",
        2,
        "ValueError: x",
    )
    assert (run.command, run.code.branch, run.params["lr"]) == (None, None, 0.2)  # as its last attempt says
    assert math.isnan(run.metrics["loss"])
    assert [(one.uri, one.name, one.changed) for one in run.inputs] == [
        ("dataset://clicks/v1", "data", False),
        ("file:local.csv", None, True),
        ("s3://bucket/raw.csv", "raw", False),
    ]
    assert run.inputs[2].tag == "etag:5eb63bbb"
    assert runs.seen_at(view, ["s3://bucket/raw.csv", "s3://bucket/none"]) == {
        "s3://bucket/raw.csv": ("sha256:" + "2" * 64, "run-2")
    }
    edges = set(view.sql.all("SELECT source, target, label FROM @edge"))
    assert {
        ("dataset://clicks/v1", "dataset://clicks/v2", "based on"),
        ("dataset://clicks/v1", "run:run-2", "data"),
        ("run:run-1", "run:run-2", "started"),
        ("run:run-1", "model://other/v1", ""),
        ("code:" + "2db0b9da" * 5, "run:run-2", "train.py"),
    } <= edges


def _changed(record: Record, **changes: object) -> Record:
    body = codec.dumps({**json.loads(record.body), **changes})
    return Record(record.seq, record.scope, record.chain, body, record.private)


def test_an_unknown_kind_is_kept_and_changes_no_state() -> None:
    """A kind of a newer release is kept with all its fields, and skipped by the fold."""
    record = _records(GOLDEN[-1])[1]
    strange = {"kind": "model.sung", "model": "churn", "song": {"a": [1]}}
    entry = codec.decode(_changed(record, events=[strange]))
    assert isinstance(entry.events[0], Unknown)
    assert codec.unstructure(entry.events[0]) == strange
    assert not _view([_changed(record, events=[strange])]).has_model("churn")


def test_an_entry_for_newer_readers_only_stops_the_reader() -> None:
    """`min_reader` above this release's format is JournalTooNew, never a guess."""
    with pytest.raises(JournalTooNew, match="pip install -U"):
        codec.decode(_changed(_records(GOLDEN[-1])[1], min_reader=2))
