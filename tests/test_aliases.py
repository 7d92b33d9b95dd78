"""Aliases: names that move, with weights, history and a way back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry

EVERY = pytest.mark.parametrize("reg", ["memory", "sqlite", "folder"], indirect=True)


@pytest.fixture
def churn(reg: Registry) -> Registry:
    """A model `churn` with v1 to v4, and a model `other` with v1."""
    for i in range(4):
        reg.register("churn", {"f": b"%d" % i})
    reg.register("other", {"f": b"x"})
    return reg


@EVERY
@pytest.mark.parametrize(
    "target", [3, "v3", "3", "model://churn/v3", "churn/v3", {"v3": 100}, {3: 100}, "value"]
)
def test_set_alias(churn: Registry, target: Any):
    """A number, a selector, a URI, a value or weights say which version; the alias then names it everywhere."""
    if target == "value":
        target = churn.version("churn/v3")
    alias = churn.set_alias("churn", "champion", target, reason="best")
    assert alias == churn.alias("churn/champion") == churn.alias("model://churn/champion")
    assert (alias.model, alias.name, alias.number, alias.weights) == ("churn", "champion", 3, {3: 100})
    assert (alias.by, alias.reason, str(alias)) == ("tester", "best", "model://churn/champion")
    assert churn.version("churn/champion").number == 3
    assert churn.version("churn/v3").aliases == ("champion",)
    assert churn.model("churn").aliases == {"champion": {3: 100}}
    assert [v.number for v in churn.versions("churn", where="alias = 'champion'")] == [3]


@EVERY
def test_moving_an_alias(churn: Registry):
    """It points at one place at a time; the same target again adds nothing; the past is kept."""
    first = churn.set_alias("churn", "champion", 1)
    churn.set_alias("churn", "champion", 2)
    before = churn.audit().total
    churn.set_alias("churn", "champion", "v2", reason="again")
    assert churn.audit().total == before
    assert churn.version("churn/v1").aliases == ()
    assert churn.at(first.seq).alias("churn/champion").number == 1


def test_weights(churn: Registry):
    """Whole percentages that sum up to 100; number is the heaviest, then the highest."""
    alias = churn.set_alias("churn", "ab", {"v1": 40, "v2": 40, "v3": 20})
    assert alias.weights == {1: 40, 2: 40, 3: 20}
    assert alias.number == 2
    assert [churn.version(f"churn/v{n}").aliases for n in (1, 2, 3, 4)] == [("ab",), ("ab",), ("ab",), ()]


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"v1": 50},
        {"v1": 50, "v2": 51},
        {"v1": 100, "v2": 0},
        {"v1": 150, "v2": -50},
        {"v1": 99.5, "v2": 0.5},
        {"v1": True, "v2": 99},
        {"v1": "100"},
        {"v1": 50, 1: 50},
        {"v1": 50, "1": 50},
        {"latest": 100},
        {"champion": 100},
        {"other/v1": 100},
        {None: 100},
        {"v9": 100},
    ],
    ids=str,
)
def test_weights_that_are_none(churn: Registry, weights: Any):
    """Other sums, fractions, a version twice, a moving or foreign target: refused, and the alias is as it was."""
    before = churn.set_alias("churn", "ab", {"v1": 90, "v2": 10})
    with pytest.raises(hub.ModelHubError):
        churn.set_alias("churn", "ab", weights)
    assert churn.alias("churn/ab") == before


@pytest.mark.parametrize(
    "target", [None, True, 0, -1, 2**63, 1.0, b"v1", "latest", "champion", "other/v1", "v01", ["v1"]]
)
def test_targets_that_are_none(churn: Registry, target: Any):
    """A target that is no fixed version of this model is an error of ours, and makes no alias."""
    with pytest.raises(hub.ModelHubError):
        churn.set_alias("churn", "champion", target)
    assert churn.model("churn").aliases == {}


def test_a_version_of_another_model(churn: Registry):
    """A value of another model is refused by name."""
    with pytest.raises(hub.ModelHubError, match="other"):
        churn.set_alias("churn", "champion", churn.version("other/v1"))


@pytest.mark.parametrize(
    "name", ["latest", "v3", "3", "Champion", "", "a/b", "a b", None, 7, "sha256:" + "0" * 64]
)
def test_names_that_are_none(churn: Registry, name: Any):
    """latest is reserved, and nothing that looks like a version is an alias."""
    with pytest.raises(hub.ModelHubError):
        churn.set_alias("churn", name, 1)


@pytest.mark.parametrize("state", ["rejected", "archived", "purged", "missing"])
def test_targets_out_of_use(churn: Registry, state: str):
    """An alias cannot point at a rejected, archived, purged or missing version, alone or among others."""
    if state == "rejected":
        churn.reject("churn/v2", "bad")
    elif state == "archived":
        churn.archive("churn/v2")
    elif state == "purged":
        churn.purge("churn/v2", "gone")
    number = 9 if state == "missing" else 2
    for target in (number, {number: 10, 1: 90}):
        with pytest.raises(
            (hub.NotAllowed, hub.NotFound), match="versions are" if state == "missing" else state
        ):
            churn.set_alias("churn", "champion", target)


@EVERY
def test_delete_alias(churn: Registry):
    """It points at nothing afterwards, the model is returned, the history stays, and the name can be used again."""
    alias = churn.set_alias("churn", "champion", 1)
    model = churn.delete_alias("churn", "champion", reason="retired")
    assert model.aliases == {}
    for call in (churn.alias, churn.version, churn.resolve):
        with pytest.raises(hub.NotFound, match="no alias"):
            call("churn/champion")
    with pytest.raises(hub.NotFound):
        churn.delete_alias("churn", "champion")
    assert churn.at(alias.seq).version("churn/champion").number == 1
    assert churn.audit("churn")[0].detail.endswith("retired")
    assert churn.set_alias("churn", "champion", 2).number == 2


def test_an_alias_that_is_not_there(churn: Registry):
    """NotFound names the aliases that there are; a number is no alias."""
    churn.set_alias("churn", "champion", 1)
    with pytest.raises(hub.NotFound, match="champion") as caught:
        churn.version("churn/champoin")
    assert "champion" in caught.value.nearest
    with pytest.raises(hub.InvalidURI, match="no alias"):
        churn.alias("churn/v1")


@EVERY
def test_rollback(churn: Registry):
    """Back to what it pointed at before, with weights; twice goes back and forth; the reason is recorded."""
    churn.set_alias("churn", "champion", 1)
    churn.set_alias("churn", "champion", {"v2": 90, "v3": 10})
    assert churn.rollback("churn/champion", "errors rose").weights == {1: 100}
    assert churn.audit("churn")[0].detail.endswith("errors rose")
    assert churn.rollback(churn.alias("churn/champion"), "they fell").weights == {2: 90, 3: 10}


def test_rollback_is_refused(churn: Registry):
    """Without a reason, without a past, or to a version that was rejected since: nothing moves."""
    churn.set_alias("churn", "champion", 1)
    with pytest.raises(hub.NotFound, match="anything else"):
        churn.rollback("churn/champion", "x")
    churn.set_alias("churn", "champion", 2)
    with pytest.raises(hub.InvalidDocument, match="reason"):
        churn.rollback("churn/champion", "")
    churn.reject("churn/v1", "bad")
    with pytest.raises(hub.NotAllowed, match="rejected"):
        churn.rollback("churn/champion", "x")
    assert churn.alias("churn/champion").number == 2
    with pytest.raises(hub.NotFound):
        churn.rollback("churn/nothing", "x")


def test_routing_follows_the_weights(churn: Registry):
    """Over many keys the shares are those of the weights, and each key keeps its version while its share allows."""
    from modelhub_sdk.references import _routed

    alias = churn.set_alias("churn", "ab", {"v1": 80, "v2": 20})
    keys = [f"user-{i}" for i in range(2000)]
    before = {key: _routed(alias, key) for key in keys}
    share = Counter(before.values())[1] / len(keys)
    assert 0.76 < share < 0.84
    wider = churn.set_alias("churn", "ab", {"v1": 90, "v2": 10})
    after = {key: _routed(wider, key) for key in keys}
    assert all(after[key] == 1 for key in keys if before[key] == 1)
