"""Registered models: making, changing and listing them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry

EVERY = pytest.mark.parametrize("reg", ["memory", "sqlite", "folder"], indirect=True)


@EVERY
def test_create_model(reg: Registry):
    """All that was passed is there, with the person and an aware UTC time; there are no versions yet."""
    model = reg.create_model(
        "customer-churn",
        title="Customer churn 🐘",
        description="# Markdown\n\nof several lines",
        owner="team:risk",
        tags=["crm", "weekly", "crm"],
        fields={"use": "retention", "cost": 1.5, "none": None, "nested": {"a": [1, "b"]}},
        projects=["crm"],
    )
    assert model == reg.model("customer-churn")
    assert (model.name, model.title, model.owner) == ("customer-churn", "Customer churn 🐘", "team:risk")
    assert model.description == "# Markdown\n\nof several lines"
    assert model.tags == ("crm", "weekly")
    assert model.fields == {"use": "retention", "cost": 1.5, "nested": {"a": (1, "b")}}
    assert model.projects == ("crm",)
    assert (model.created_by, model.created_at.tzinfo) == ("tester", UTC)
    assert abs(datetime.now(UTC) - model.created_at) < timedelta(minutes=1)
    assert (model.latest, model.last_number, model.aliases, model.archived) == (None, 0, {}, False)
    assert model.counts == {"pending": 0, "approved": 0, "rejected": 0}
    assert str(model) == model.uri == "model://customer-churn/"
    assert list(reg.versions("customer-churn")) == []


def test_a_name_is_taken_once(reg: Registry):
    """Creating a model that exists is a Conflict, also after it was archived, and changes nothing."""
    first = reg.create_model("churn", title="first")
    for _ in range(2):
        with pytest.raises(hub.Conflict, match="edit_model"):
            reg.create_model("churn", title="second")
        reg.archive("churn")
    assert reg.restore("churn").title == first.title


def test_a_name_that_cannot_be_used(reg: Registry):
    """InvalidName carries the nearest good name, and nothing is made."""
    with pytest.raises(hub.InvalidName, match="customer-churn") as caught:
        reg.create_model("Customer Churn")
    assert caught.value.nearest == "customer-churn"
    assert reg.models().total == 0


@EVERY
def test_edits_merge_and_replace(reg: Registry):
    """Fields merge and None removes; lists replace or change; an empty text removes; what is not passed stays."""
    reg.create_model(
        "m", title="t", description="d", owner="o", tags=["a", "b"], fields={"x": 1, "y": 2}, projects=["p"]
    )
    model = reg.edit_model(
        "m", description="", fields={"y": None, "z": True}, add_tags=["c"], remove_tags=["a"]
    )
    assert (model.title, model.description, model.owner) == ("t", None, "o")
    assert model.fields == {"x": 1, "z": True}
    assert model.tags == ("b", "c")
    assert model.projects == ("p",)
    model = reg.edit_model("m", tags=["z"], projects=["q", "r"], title="new", owner="")
    assert (model.tags, model.projects, model.title, model.owner) == (("z",), ("q", "r"), "new", None)
    assert reg.edit_model("m", fields={"x": 1.0}).fields["x"] == 1
    assert type(reg.model("m").fields["x"]) is float


def test_an_edit_that_changes_nothing(reg: Registry):
    """The same values again add no event; every real edit adds one, and keeps the history."""
    first = reg.create_model("m", title="t", tags=["a"], fields={"x": 1})
    same = reg.edit_model(
        "m", title="t", tags=["a"], fields={"x": 1}, add_tags=["a"], remove_tags=["nothing"]
    )
    assert same == first
    reg.edit_model("m", title="u")
    reg.edit_model("m", title="v")
    assert [r.action for r in reg.audit("m")] == ["model.edited", "model.edited", "model.created"]
    assert reg.at(first.seq).model("m").title == "t"
    assert reg.model("m").modified_at >= first.created_at


def test_lost_updates(reg: Registry):
    """With if_seq a change that somebody made meanwhile is a Conflict that says which entry; without it the last wins."""
    read = reg.create_model("m", title="t")
    other = reg.edit_model("m", owner="somebody")
    with pytest.raises(hub.Conflict, match=str(other.seq)) as caught:
        reg.edit_model("m", title="mine", if_seq=read.seq)
    assert caught.value.seq == other.seq
    assert reg.model("m").title == "t"
    assert reg.edit_model("m", title="mine", if_seq=other.seq).title == "mine"
    assert reg.edit_model("m", title="again").title == "again"


def test_a_model_that_is_not_there(reg: Registry):
    """NotFound names the nearest model; a URI, a value and a name find the same one."""
    model = reg.create_model("customer-churn")
    for call in (
        reg.model,
        reg.latest,
        reg.versions,
        lambda name: reg.edit_model(name, title="x"),
        reg.audit,
    ):
        with pytest.raises(hub.NotFound) as caught:
            call("customer-chrun")
        assert caught.value.nearest == ("customer-churn",)
    assert reg.model(model) == reg.model("model://customer-churn/") == reg.model("customer-churn") == model


@EVERY
def test_listing_models(reg: Registry):
    """By text whatever its case, by project, owner and query; the newest first, archived ones only on request."""
    reg.create_model("churn", title="Customer CHURN", owner="team:risk", projects=["crm"], tags=["crm"])
    reg.create_model("fraud", description="Finds frauds of Churners", owner="team:fraud", projects=["pay"])
    reg.create_model("price", title="50 % off")
    reg.register("fraud", {"f": b"1"})
    reg.approve("fraud/v1")
    reg.archive("price")

    def names(**filters: Any) -> list[str]:
        return [model.name for model in reg.models(**filters)]

    assert names() == ["fraud", "churn"]
    assert names(text="CHURN") == ["fraud", "churn"]
    assert names(text="%") == []
    assert names(text="%", where="archived = true") == ["price"]
    assert names(project="crm") == ["churn"]
    assert names(owner="team:fraud") == ["fraud"]
    assert names(where="status = 'approved'") == ["fraud"]
    assert names(where="tags = 'crm'", owner="team:risk", text="customer") == ["churn"]
    assert names(order_by="name") == ["churn", "fraud"]
    assert names(order_by="-name", limit=1) == ["fraud"]
    assert reg.models(limit=1).total == 2
    assert [model.name for model in reg.iter_models(limit=1)] == ["fraud", "churn"]


def test_the_project_of_a_handle(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    """Models made through a handle with a project belong to it, unless another is named."""
    url = f"sqlite:///{tmp_path}/r.db"
    with hub.open(url, project="crm") as reg:
        assert reg.create_model("a").projects == ("crm",)
        assert reg.create_model("b", projects=["other"]).projects == ("other",)
        reg.register("c", {"f": b"1"})
        assert reg.model("c").projects == ("crm",)
    monkeypatch.setenv("MODELHUB_PROJECT", "env")
    with hub.open(url) as reg:
        assert reg.create_model("d").projects == ("env",)
    with pytest.raises(hub.InvalidName, match="project"):
        hub.open(url, project="No Name")


def test_summary_of_the_versions(reg: Registry):
    """latest, last_number, counts by status and aliases follow the versions."""
    for i in range(4):
        reg.register("m", {"f": b"%d" % i})
    reg.approve("m/v2")
    reg.reject("m/v3", "no")
    reg.archive("m/v1")
    reg.set_alias("m", "champion", 2)
    reg.set_alias("m", "ab", {2: 50, 4: 50})
    model = reg.model("m")
    assert (model.latest, model.last_number) == (2, 4)
    assert model.counts == {"pending": 1, "approved": 1, "rejected": 1}
    assert model.aliases == {"champion": {2: 100}, "ab": {2: 50, 4: 50}}


@pytest.mark.parametrize(
    "arguments",
    [
        {"tags": "crm"},
        {"tags": [""]},
        {"tags": ["a\nb"]},
        {"tags": [7]},
        {"projects": "crm"},
        {"projects": ["No Name"]},
        {"title": 7},
        {"title": "\ud800"},
        {"description": b"x"},
        {"description": "x" * 100_001},
        {"owner": "\0"},
        {"fields": ["a"]},
        {"fields": {"": 1}},
        {"fields": {"a": object}},
    ],
    ids=str,
)
def test_wrong_arguments(reg: Registry, arguments: dict[str, Any]):
    """Arguments of another kind are errors of ours, on creation and on edit, and change nothing."""
    reg.create_model("m")
    before = reg.audit().total
    for call in (lambda: reg.create_model("n", **arguments), lambda: reg.edit_model("m", **arguments)):
        try:
            call()
        except hub.ModelHubError:
            continue
        assert arguments in ({"fields": {"": 1}}, {"fields": {"a": object}})  # kept as marked text
        before += 1
    assert reg.audit().total == before


def test_names_of_this_registry(reg: Registry):
    """configure(model_names=) holds for new models, made by create_model or register; "" lifts it."""
    reg.create_model("old")
    reg.configure(model_names="team-[a-z]+")
    for call in (lambda: reg.create_model("churn"), lambda: reg.register("churn", {"f": b"1"})):
        with pytest.raises(hub.InvalidName, match="rule"):
            call()
    assert reg.register("old", {"f": b"1"}).number == 1
    assert reg.create_model("team-churn").name == "team-churn"
    reg.configure(model_names="")
    assert reg.create_model("churn").name == "churn"


def test_settings(reg: Registry):
    """What is not passed stays, "" and [] remove, the same again adds nothing; wrong values are refused."""
    assert dict(reg.settings()) == {}
    reg.configure(require="approved", metrics={"loss": "min"}, external=["s3://bucket/"])
    before = reg.audit().total
    assert reg.configure(require="approved")["metrics"] == {"loss": "min"}
    assert reg.audit().total == before
    assert "require" not in {k for k, v in reg.configure(require="", external=[]).items() if v}
    for wrong in (
        {"require": "yes"},
        {"metrics": {"loss": "down"}},
        {"external": ["file:///etc"]},
        {"external": "s3://x/"},
        {"model_names": "("},
        {"required_fields": "owner"},
        {"metrics": ["loss"]},
        {"require": 7},
    ):
        with pytest.raises(hub.ModelHubError):
            reg.configure(**wrong)
    assert reg.settings()["metrics"] == {"loss": "min"}
