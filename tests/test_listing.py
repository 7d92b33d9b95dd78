"""Listings: pages that stay what they are, totals, and plain data for everything else."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry

EVERY = pytest.mark.parametrize("reg", ["memory", "sqlite", "folder"], indirect=True)


@pytest.fixture
def seven(reg: Registry) -> Registry:
    """A model `m` with v1 to v7; the metric is the same in three of them."""
    for i in range(7):
        reg.register("m", {"f": b"1"}, metrics={"auc": (i // 3) / 10}, tags=[f"t{i % 2}"])
    return reg


def numbers(listing: Any) -> list[int]:
    return [version.number for version in listing]


@EVERY
def test_pages(seven: Registry):
    """limit items, then the next ones, then none; total counts all; no item twice, none left out."""
    page = seven.versions("m", limit=3)
    assert (numbers(page), page.total, len(page)) == ([7, 6, 5], 7, 3)
    second = page.next()
    third = second.next()
    assert (numbers(second), numbers(third), second.total) == ([4, 3, 2], [1], 7)
    assert (len(third.next()), third.next().total) == (0, 0)
    assert page.first().number == 7
    assert third.next().first() is None
    assert numbers(seven.iter_versions("m", limit=2)) == [7, 6, 5, 4, 3, 2, 1]


@EVERY
@pytest.mark.parametrize(
    "order_by", ["metrics.auc", "-metrics.auc", "status", "-tags", "number", "created_at"]
)
def test_pages_with_ties(seven: Registry, order_by: str):
    """Where many are equal, pages still have each version once, and in the order of the whole."""
    try:
        whole = numbers(seven.versions("m", order_by=order_by))
    except hub.InvalidQuery:
        pytest.skip("no order by this field")
    pages = numbers(seven.iter_versions("m", order_by=order_by, limit=2))
    assert pages == whole
    assert sorted(whole) == list(range(1, 8))


@EVERY
def test_pages_are_stable(seven: Registry):
    """What happens after the first page changes none of the following: they show the same moment."""
    page = seven.versions("m", where="status = 'pending'", limit=3)
    seven.approve("m/v4")
    seven.archive("m/v3")
    seven.register("m", {"f": b"1"})
    rest = page.next()
    assert numbers(rest) == [4, 3, 2]
    assert rest[0].status == "pending"
    assert rest.total == 7
    assert seven.versions("m", where="status = 'pending'").total == 6


def test_a_listing_is_a_sequence(seven: Registry):
    """Indexing, slicing, iterating, containment, equality; read-only."""
    page = seven.versions("m", limit=4)
    assert page[0] == seven.version("m/v7")
    assert page[-1].number == 4
    assert numbers(page[1:3]) == [6, 5]
    assert seven.version("m/v5") in page
    assert page == seven.versions("m", limit=4)
    assert page != seven.versions("m", limit=3)
    assert bool(seven.versions("m", where="number > 99")) is False
    with pytest.raises(TypeError):
        page[0] = page[1]  # type: ignore[index]
    with pytest.raises(IndexError):
        page[4]
    assert repr(page) == "<Listing of 4 of 7>"


def test_a_pickled_listing(seven: Registry):
    """Items and total survive a pickle; the following page needs the registry and is empty."""
    page = pickle.loads(pickle.dumps(seven.versions("m", limit=4)))
    assert page == seven.versions("m", limit=4)
    assert (page.total, len(page.next())) == (7, 0)


def test_limits(seven: Registry):
    """1 to 10,000; at exactly the number of items there is no further page."""
    assert len(seven.versions("m", limit=7).next()) == 0
    assert len(seven.versions("m", limit=10_000)) == 7
    for limit in (0, -1, 10_001, 2**63, True, "5", 1.0, None):
        with pytest.raises(hub.InvalidQuery, match="limit"):
            seven.versions("m", limit=limit)  # type: ignore[arg-type]


@EVERY
def test_plain_data(seven: Registry, tmp_path: Path):
    """to_dicts gives plain data for every kind of listing; save writes JSON and CSV of the same rows."""
    seven.set_alias("m", "champion", 3)
    seven.resolve("m/v1")
    for listing in (
        seven.versions("m"),
        seven.models(),
        seven.audit(),
        seven.uses("m/v1"),
        seven.identify(__file__),
    ):
        rows = listing.to_dicts()
        assert len(rows) == len(listing)
        assert json.loads(json.dumps(rows)) == rows
        listing.save(tmp_path / "x.json")
        assert json.loads((tmp_path / "x.json").read_text("utf-8")) == rows
        listing.save(str(tmp_path / "x.csv"))
        with open(tmp_path / "x.csv", newline="", encoding="utf-8-sig") as file:
            assert len(list(csv.DictReader(file))) == len(rows)
    row = seven.versions("m").to_dicts()[0]
    assert (row["uri"], row["metrics"], row["status"]) == ("model://m/v7", {"auc": 0.2}, "pending")


def test_save_refuses_other_endings(seven: Registry, tmp_path: Path):
    """Only .csv and .json; nothing is written otherwise."""
    for name in ("x.xlsx", "x", "x.csv.exe"):
        with pytest.raises(hub.InvalidName):
            seven.versions("m").save(tmp_path / name)
    assert {"x.xlsx", "x", "x.csv.exe"} & {p.name for p in tmp_path.iterdir()} == set()
    with pytest.raises(hub.ModelHubError):
        seven.versions("m").save(tmp_path / "no such folder" / "x.csv")


def test_formulas_are_text_in_csv(seven: Registry, tmp_path: Path):
    """A comment that begins like a formula is not one in the exported audit trail."""
    seven.comment("m/v1", "=cmd|' /C calc'!A0")
    seven.approve("m/v1", "=1+1")
    seven.edit_model("m", title="=1+1")
    for listing in (seven.audit(), seven.models()):
        listing.save(tmp_path / "x.csv")
        with open(tmp_path / "x.csv", newline="", encoding="utf-8-sig") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell[:1] in "=+@\t\r" and cell]
    assert seven.model("m").title == "=1+1"


def test_pandas(seven: Registry):
    """One row an item, mappings as a.b columns."""
    pytest.importorskip("pandas")
    frame = seven.versions("m").to_pandas()
    assert list(frame["number"]) == [7, 6, 5, 4, 3, 2, 1]
    assert frame["metrics.auc"].max() == 0.2


@EVERY
def test_queries(seven: Registry):
    """Comparisons joined by and; what is archived only on request; the answer has the total of all that match."""

    def found(where: str, **more: Any) -> list[int]:
        return numbers(seven.versions("m", where=where, **more))

    seven.approve("m/v2", "r")
    seven.archive("m/v7")
    seven.edit_version("m/v3", fields={"ticket": "X-1"}, note="50 % off_", description="d")
    assert found("metrics.auc >= 0.1 and tags = 't1'") == [6, 4]
    assert found("status = 'approved'") == [2]
    assert found("status != 'approved'") == [6, 5, 4, 3, 1]
    assert found("archived = true") == [7]
    assert found("archived = false and number > 5") == [6]
    assert found("fields.ticket = 'X-1'") == [3]
    assert found("note LIKE '50 \\% %\\_'") == found("note ~ '% off_'") == [3]
    assert found("note ~ 'x'") == []
    assert found("decided_by = 'tester'") == [2]
    assert found("name = 'm' and version <= 2", order_by="number") == [1, 2]
    assert seven.versions("m", where="tags = 't0'", limit=1).total == 3
    with pytest.raises(hub.InvalidQuery, match=r"\^") as caught:
        found("status = 'approved' or number = 1")
    assert caught.value.span[0] > 0
    with pytest.raises(hub.InvalidQuery, match="metrics"):
        found("metric.auc > 1")
