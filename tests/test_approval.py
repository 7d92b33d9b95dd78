"""Approval: who decides what, when it is refused, and what latest follows."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry

EVERY = pytest.mark.parametrize("reg", ["memory", "sqlite", "folder"], indirect=True)
VERBS = ("approve", "reject", "reopen")
STATUS = {"approve": "approved", "reject": "rejected", "reopen": "pending"}


@pytest.fixture
def churn(reg: Registry) -> Registry:
    """A model `churn` with v1, v2 and v3, all pending."""
    for i in range(3):
        reg.register("churn", {"f": b"%d" % i})
    return reg


@EVERY
def test_a_decision_is_recorded(churn: Registry):
    """Status, person, time and reason are on the version and in the audit."""
    version = churn.approve("churn/v2", "recall +5 %")
    assert version == churn.version("churn/v2")
    assert (version.status, version.decided_by, version.reason) == ("approved", "tester", "recall +5 %")
    assert version.decided_at is not None
    assert version.decided_at >= version.created_at
    record = churn.audit("churn/v2")[0]
    assert (record.action, record.actor, record.subject) == ("version.approved", "tester", "model://churn/v2")
    assert "recall +5 %" in record.detail
    assert record.at == version.decided_at


@EVERY
@pytest.mark.parametrize("first", VERBS)
@pytest.mark.parametrize("second", VERBS)
def test_every_status_can_follow_every_other(churn: Registry, first: str, second: str):
    """approve, reject and reopen are allowed from any status."""
    getattr(churn, first)("churn/v1", "one")
    version = getattr(churn, second)("churn/v1", "two")
    assert version.status == STATUS[second]


def test_a_rejection_needs_a_reason(churn: Registry):
    """Without a reason there is no rejection; an approval and a reopening may go without."""
    with pytest.raises(hub.InvalidDocument, match="reason"):
        churn.reject("churn/v1", "")
    assert churn.version("churn/v1").status == "pending"
    assert churn.approve("churn/v1").reason is None
    assert churn.reopen("churn/v1").status == "pending"


@EVERY
def test_the_same_decision_again_adds_nothing(churn: Registry):
    """By the same person, with the same or no reason: no event. Another reason or another person: one more."""
    first = churn.approve("churn/v1", "good")
    before = churn.audit().total
    assert churn.approve("churn/v1", "good") == first
    assert churn.approve("churn/v1") == first
    assert churn.audit().total == before
    assert churn.approve("churn/v1", "even better").reason == "even better"
    churn.reject("churn/v2", "bad")
    churn.reject("churn/v2", "bad")
    churn.reopen("churn/v3")
    assert churn.audit().total == before + 2


def test_two_people(tmp_path: Any):
    """The same decision by another person is an event of its own."""
    url = f"sqlite:///{tmp_path}/r.db"
    with hub.open(url, user="ann") as ann, hub.open(url, user="bob") as bob:
        ann.register("m", {"f": b"1"})
        assert ann.approve("m/v1", "x").decided_by == "ann"
        assert bob.approve("m/v1", "x").decided_by == "bob"
        assert [r.actor for r in ann.audit("m/v1", action="version.approved")] == ["bob", "ann"]


@pytest.mark.parametrize("verb", VERBS)
def test_moving_names_are_refused(churn: Registry, verb: str):
    """latest, an alias and a digest may mean another version by now: decide by number or with the value."""
    churn.approve("churn/v1", "x")
    champion = churn.set_alias("churn", "champion", 1)
    before = churn.audit().total
    digest = churn.version("churn/v1").digest
    for ref in ("churn/latest", "model://churn/champion", champion, f"churn/{digest}"):
        with pytest.raises(hub.NotAllowed, match=f"reg.{verb}"):
            getattr(churn, verb)(ref, "why")
    with pytest.raises(hub.InvalidURI):
        getattr(churn, verb)("churn", "why")
    assert churn.audit().total == before
    for ref in ("churn/v2", "model://churn/2", churn.version("churn/v2")):
        assert getattr(churn, verb)(ref, "why").number == 2


@EVERY
def test_latest(churn: Registry):
    """latest is the highest approved version that is not archived, whatever the order of approvals."""
    assert churn.latest("churn") is None
    churn.approve("churn/v3")
    churn.approve("churn/v1")
    assert churn.latest("churn").number == 3
    assert churn.version("churn/latest").number == 3
    churn.reject("churn/v3", "drift")
    assert churn.latest("churn").number == 1
    churn.approve("churn/v2")
    churn.archive("churn/v2")
    assert churn.latest("churn").number == churn.model("churn").latest == 1
    churn.reopen("churn/v1")
    assert churn.latest("churn") is None
    with pytest.raises(hub.NoApprovedVersion, match="v1") as caught:
        churn.version("churn/latest")
    assert (caught.value.model, caught.value.pending) == ("churn", (1,))
    with pytest.raises(hub.NotFound):
        churn.latest("nothing")


def test_moving_latest_is_said(churn: Registry, caplog: pytest.LogCaptureFixture):
    """A decision that moves latest says so in the log; one that does not is silent."""
    with caplog.at_level(logging.INFO, "modelhub_sdk"):
        churn.approve("churn/v2")
        assert "latest of churn is now v2 (was none)" in caplog.text
        caplog.clear()
        churn.approve("churn/v1")
        churn.approve("churn/v2")
        assert caplog.text == ""
        churn.reject("churn/v2", "bad")
        assert "latest of churn is now v1 (was v2)" in caplog.text


@pytest.mark.parametrize("reason", [7, b"x", ["x"], "\ud800", "a\0b", "x" * 100_001])
@pytest.mark.parametrize("verb", VERBS)
def test_reasons_that_are_none(churn: Registry, verb: str, reason: Any):
    """A reason of another kind is refused, and nothing is decided."""
    before = churn.audit().total
    with pytest.raises(hub.ModelHubError):
        getattr(churn, verb)("churn/v1", reason)
    assert churn.audit().total == before


def test_a_read_only_handle_decides_nothing(tmp_path: Any):
    """Every verb on a read-only handle is NotAllowed."""
    url = f"sqlite:///{tmp_path}/r.db"
    with hub.open(url) as reg:
        reg.register("m", {"f": b"1"})
        before = reg.audit().total
    with hub.open(url, read_only=True) as reg:
        calls = [
            lambda: reg.approve("m/v1"),
            lambda: reg.reject("m/v1", "x"),
            lambda: reg.create_model("n"),
            lambda: reg.edit_model("m", title="x"),
            lambda: reg.edit_version("m/v1", note="x"),
            lambda: reg.comment("m/v1", "x"),
            lambda: reg.add_evaluation("m/v1", {"a": 1}),
            lambda: reg.attach("m/v1", "x", b"1"),
            lambda: reg.set_alias("m", "a", 1),
            lambda: reg.delete_alias("m", "a"),
            lambda: reg.archive("m/v1"),
            lambda: reg.purge("m/v1", "x"),
            lambda: reg.redact("m/v1", "note", "x"),
            lambda: reg.configure(require="approved"),
            lambda: reg.ingest(tmp_path),
        ]
        for call in calls:
            with pytest.raises(hub.NotAllowed, match="read-only"):
                call()
        assert reg.audit().total == before


def test_a_closed_handle(tmp_path: Any):
    """After close every call is an error of ours that says so; closing twice is fine."""
    reg = hub.open(f"sqlite:///{tmp_path}/r.db")
    reg.register("m", {"f": b"1"})
    reg.close()
    reg.close()
    for call in (
        lambda: reg.approve("m/v1"),
        reg.models,
        lambda: reg.version("m/v1"),
        lambda: reg.register("m", {"f": b""}),
    ):
        with pytest.raises(hub.NotAllowed, match="closed"):
            call()
