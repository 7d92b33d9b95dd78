"""Dicts, rows, data frames, CSV and JSON."""

from __future__ import annotations

import builtins
import csv
import io
import json
import math
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelhub_sdk.domain.compare import compare
from modelhub_sdk.domain.entities import Listing
from modelhub_sdk.domain.values import Frozen, Opaque, normalise
from modelhub_sdk.errors import InvalidName, MissingExtra, StoreUnavailable
from modelhub_sdk.views import tables
from tests.support.samples import cases, everything, version

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def read_csv(text):
    return list(csv.reader(io.StringIO(text, newline="")))


def is_plain(value):
    if isinstance(value, dict):
        return type(value) is dict and all(type(k) is str and is_plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def test_dicts_are_plain():
    """Every value of the library becomes dicts, lists and scalars."""
    for thing in everything("text"):
        items = thing if isinstance(thing, Listing) else [thing]
        found = tables.to_dicts(items)
        assert all(map(is_plain, found))
        json.dumps(found)


def test_dicts_keep_types():
    """Numbers stay numbers, missing stays None, marked text is its text."""
    metrics = Frozen({"a": 2**53 + 1, "b": math.inf, "c": None, "d": Opaque("t", "x"), "e": ("1", 1)})
    (found,) = tables.to_dicts([version(metrics=metrics)])
    assert found["metrics"] == {"a": 2**53 + 1, "b": math.inf, "c": None, "d": "x", "e": ["1", 1]}
    assert found["created_at"] == "2026-03-02T12:00:00+00:00"


def test_rows_have_dotted_columns():
    """Mappings become columns, in order of first appearance, those of later rows too."""
    columns, found = tables.rows([version(1), version(2, metrics=normalise({"new": 1}))])
    assert {"metrics.auc", "metrics.new", "params.learning_rate"} <= set(columns)
    assert "metrics.new" not in found[0]
    assert columns.index("metrics.auc") < columns.index("metrics.new")


def test_pandas_keeps_integers_exact():
    """A gap or a large neighbour does not round integers; NaN and missing columns are there."""
    items = [
        version(1, params=Frozen({"seed": 2**53 + 1, "huge": 2**70, "mixed": 0.5})),
        version(2, params=Frozen({"mixed": 2**60 + 1})),
    ]
    frame = tables.to_pandas(items)
    assert frame["params.seed"][0] == 2**53 + 1
    assert frame["params.huge"][0] == 2**70
    assert frame["params.mixed"][1] == 2**60 + 1
    assert frame["number"].dtype == "int64"
    assert str(frame["created_at"].dtype).startswith("datetime64")


def test_pandas_of_nothing():
    """An empty page is an empty frame."""
    assert len(tables.to_pandas([])) == 0


def test_without_pandas(monkeypatch):
    """The error names the pip line."""
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for ask in (lambda: Listing([version()]).to_pandas(), compare([version()]).to_pandas):
        with pytest.raises(MissingExtra, match=r"pip install 'modelhub-sdk\[pandas\]'"):
            ask()


# --- CSV ----------------------------------------------------------------------------------------

FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "=cmd|' /C calc'!A0",
    "＝1+1",
    "\ufeff=1",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_neutralised(text):
    """A text that a spreadsheet would compute gets an apostrophe, as a value and as a column name."""
    for item in ({"name": text}, {text: "x"}, {"tags": (text,)}, {"v": Opaque("t", text)}):
        for line in read_csv(tables.to_csv([item])):
            for cell in line:
                assert not cell.lstrip(" \t\r\n\ufeff").startswith(("=", "+", "-", "@", "＝"))


def test_negative_numbers_are_no_formulas():
    """Numbers stay numbers."""
    assert tables.to_csv([{"a": -0.5, "b": -3}]) == "a,b\n-0.5,-3\n"


def test_csv_of_special_values():
    """Nothing, empty text, booleans and what is not finite are told apart."""
    found = tables.to_csv(
        [{"a": None, "b": "", "c": True, "d": math.nan, "e": -math.inf, "f": (1, "x"), "g": 10**4000}]
    )
    assert found.splitlines()[1].startswith(',"",true,NaN,-Infinity,"[1, ""x""]",1000')


@given(
    st.lists(st.dictionaries(texts.filter(bool), texts | st.integers() | st.floats(), max_size=4), max_size=4)
)
@settings(max_examples=150)
def test_csv_reads_back(items):
    """Any CSV reader gets the same table, but for the apostrophes; no cell is a formula."""
    columns, found = tables.rows(items)
    lines = read_csv(tables.to_csv(items))
    if not columns:
        return
    assert len(lines) == len(items) + 1
    for expected, line in zip([dict(zip(columns, columns, strict=True)), *found], lines, strict=True):
        assert len(line) == len(columns)
        for name, cell in zip(columns, line, strict=True):
            value = expected.get(name)
            if isinstance(value, str):
                assert cell in (value, "'" + value)
                assert not cell.strip().startswith(("=", "+", "-", "@"))


def hostile_texts():
    for case in cases("audit_text") + cases("metadata_value"):
        text = case.get("input") or (eval(case["repr"]) if case.get("kind") == "python-expr" else None)
        if isinstance(text, str) and "\ud800" not in text:  # half a surrogate pair is never stored
            yield pytest.param(text, id=case["id"])


@pytest.mark.parametrize("text", list(hostile_texts()))
def test_catalogue_in_csv(text):
    """Hostile texts end up in a cell as text."""
    ((cell,), *_) = read_csv(tables.to_csv([{"a": text}]))[1:]
    assert cell in (text, "'" + text)
    assert not cell.startswith(("=", "+", "-", "@"))


# --- Files --------------------------------------------------------------------------------------


def test_save_json(tmp_path):
    """Valid JSON: what is not finite is text."""
    target = tmp_path / "x.JSON"
    tables.save([version(metrics=normalise({"nan": math.nan, "ü": "😀"}))], target)
    (found,) = json.loads(target.read_text("utf-8"))
    assert found["metrics"] == {"nan": "NaN", "ü": "😀"}


def test_save_csv(tmp_path):
    """By the ending; a text path does; the usual permissions."""
    Listing([version()]).save(str(tmp_path / "x.csv"))
    assert (tmp_path / "x.csv").read_text("utf-8").startswith("uri,model,number")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x.csv").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("name", ["x", "x.xlsx", "csv", ".csv"])
def test_other_endings(tmp_path, name):
    """An unknown ending is a typed error and writes nothing."""
    with pytest.raises(InvalidName, match=r"\.csv or \.json"):
        tables.save([version()], tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_refusing_disk(tmp_path, monkeypatch):
    """A failed write is a typed error; the old file is whole, and nothing else is left."""
    target = tmp_path / "x.csv"
    target.write_text("old")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreUnavailable, match="No space left"):
        tables.save([version()], target)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.csv", "old")]


def test_a_missing_folder(tmp_path):
    """Said as it is."""
    with pytest.raises(StoreUnavailable, match="No such file"):
        tables.save([version()], tmp_path / "no" / "x.csv")


def test_save_follows_a_link(tmp_path):
    """A link stays a link; its target is replaced and keeps its permissions."""
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    tables.save([version()], link)
    assert link.is_symlink()
    assert real.read_text().startswith("uri")
    assert stat.S_IMODE(real.stat().st_mode) == 0o600


def test_save_to_a_device():
    """A device cannot be replaced; it is written to (its ending must fit, so through a link)."""
    tables._write(__import__("pathlib").Path("/dev/null"), b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
