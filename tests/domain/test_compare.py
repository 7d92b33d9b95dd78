"""Versions side by side."""

from __future__ import annotations

import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhub_sdk.domain.compare import ABSENT, Row, compare
from modelhub_sdk.domain.entities import File
from modelhub_sdk.domain.values import Frozen, normalise
from modelhub_sdk.errors import InvalidQuery
from tests.support.samples import digest, version


def row(comparison, section, name):
    return next(r for r in getattr(comparison, section) if r.name == name)


def test_rows_for_every_key():
    """Each key of any version has a row; what a version lacks is ABSENT, None is a value."""
    found = compare([version(1, params=Frozen({"a": None})), version(2, params=Frozen({"b": 1}))])
    assert row(found, "params", "a").cells == (None, ABSENT)
    assert row(found, "params", "b").cells == (ABSENT, 1)
    assert row(found, "params", "a").changed


def test_best_and_direction():
    """Less loss and more AUC are better, by their names; what is stated wins; the unknown has no best."""
    versions = [
        version(i, metrics=normalise({"val/log_loss": i, "auc": i, "rows": i, "gain": i})) for i in (1, 2)
    ]
    found = compare(versions, directions={"gain": "min"})
    assert row(found, "metrics", "val/log_loss").best == (0,)
    assert row(found, "metrics", "auc").best == (1,)
    assert row(found, "metrics", "rows").best == ()
    assert row(found, "metrics", "gain").best == (0,)
    assert row(found, "metrics", "auc").improved(1) is True
    assert row(found, "metrics", "val/log_loss").improved(1) is False
    assert row(found, "metrics", "rows").improved(1) is None


def test_not_finite_numbers_are_never_best():
    """NaN and infinity are shown and win nothing; NaN equals NaN here."""
    inf = Row("auc", (math.inf, 0.5, 0.4), "max")
    assert inf.best == (1,)
    assert Row("auc", (float("nan"), float("nan"))).changed is False
    assert Row("auc", (math.nan, 0.5), "max").change(1) is None


def test_changes_by_type():
    """1 and 1.0 are the same number; True, "1" and 1 are not the same."""
    assert not Row("x", (1, 1.0)).changed
    assert Row("x", (1, True)).changed
    assert Row("x", (1, "1")).changed
    assert Row("x", (2**53, 2**53 + 1)).changed


def test_files_by_digest():
    """A file is the same if its bytes are."""
    one = version(1, files=(File("a", 1, digest(1)), File("b", 1, digest(2))))
    two = version(2, files=(File("a", 1, digest(1)), File("b", 1, digest(3)), File("c", 1, digest(4))))
    found = compare([one, two])
    assert [r.changed for r in found.files] == [False, True, True]


def test_inputs_by_what_they_are():
    """Another version of the same data set is a change in one row, not two rows."""
    one = version(1, inputs=("dataset://clicks/v7", "s3://raw/x.csv"))
    two = version(2, inputs=("dataset://clicks/v8",))
    found = compare([one, two])
    assert row(found, "inputs", "dataset://clicks").cells == ("v7", "v8")
    assert row(found, "inputs", "s3://raw/x.csv").cells == ("used", ABSENT)


def test_labels():
    """Short while there is one model."""
    assert compare([version(1), version(2)]).labels == ("v1", "v2")
    assert compare([version(1), version(1, model="other")]).labels == ("customer-churn/v1", "other/v1")


def test_the_same_version_counts_once():
    """Giving one twice is no comparison with itself."""
    assert len(compare([version(1), version(1), version(2)]).versions) == 2


def test_what_is_refused():
    """Nothing to compare, or a direction that is none, is a typed error."""
    with pytest.raises(InvalidQuery, match="nothing to compare"):
        compare([])
    with pytest.raises(InvalidQuery, match="'min' or 'max'"):
        compare([version()], directions={"loss": "down"})


def test_to_dict():
    """Plain and JSON-able, without the cells that are not there."""
    one = version(1, metrics=normalise({"auc": 0.9}))
    two = version(2, metrics=normalise({"f1": 0.8}))
    found = compare([one, two]).to_dict()
    assert found["versions"] == [one.uri, two.uri]
    assert found["metrics"] == {"auc": {one.uri: 0.9}, "f1": {two.uri: 0.8}}
    assert found["files"]["prep.json"] == {one.uri: digest("p"), two.uri: digest("p")}
    assert found["params"]["class_weight"] == {one.uri: None, two.uri: None}
    json.dumps(found)


def test_facts_that_no_version_has_are_left_out():
    """A row of nothing but absent cells tells nothing: undecided versions have no row for their decision."""
    names = [row.name for row in compare([version(1, run_id=None, duration=None)]).facts]
    assert "status" in names
    assert not {"run", "duration"} & set(names)


def test_to_pandas():
    """A row for each thing compared, a column for each version."""
    frame = compare([version(1), version(2)]).to_pandas()
    assert list(frame.columns) == ["v1", "v2"]
    assert frame.loc[("metrics", "auc"), "v2"] == 0.92
    assert frame.loc[("params", "class_weight"), "v1"] is None


def test_it_prints_and_travels():
    """print() gives a table, a notebook HTML, a pickle the same value."""
    found = compare([version(1), version(2)])
    assert "log_loss" in str(found)
    assert "<table" in found._repr_html_()
    assert pickle.loads(pickle.dumps(found)) == found  # our own bytes


numbers = st.one_of(st.integers(-5, 5), st.floats(), st.booleans(), st.none(), st.text(max_size=2))


@given(st.lists(numbers, min_size=1, max_size=5), st.sampled_from(["min", "max", None]))
def test_laws_of_a_row(cells, better):
    """Best ones are finite, equal, and beaten by none; an unchanged row has no best and no change."""
    found = Row("x", tuple(cells), better)
    finite = [float(c) for c in cells if isinstance(c, (int, float)) and math.isfinite(c)]
    for place in found.best:
        assert float(cells[place]) == (min if better == "min" else max)(finite)
    if not found.changed:
        assert found.best == ()
        assert not any(found.change(place) for place in range(len(cells)))
