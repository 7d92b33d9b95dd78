"""Plain text for a terminal."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhub_sdk.domain.compare import compare
from modelhub_sdk.domain.entities import File, IngestReport, Listing, Verification
from modelhub_sdk.domain.values import Frozen, Opaque, normalise
from modelhub_sdk.views import text
from tests.support.samples import T0, cases, digest, everything, version

anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def safe(shown):
    return all(c.isprintable() or c in "\n\t" for c in shown)


@given(anything)
def test_clean_text_is_printable(words):
    """No control, bidirectional or invisible character gets through; printable text is unchanged."""
    assert text.clean(words).isprintable()
    if words.isprintable():
        assert text.clean(words) == words


def test_escapes_say_what_was_there():
    """An escape names the character."""
    assert text.clean("a\x1b[2J\u202eb\n\u00a0\U000e0001") == "a\\x1b[2J\\u202eb\\n \\U000e0001"
    assert text.clean("a\nb\tc\r", lines=True) == "a\nb\tc\\r"


@pytest.mark.parametrize(
    "case", [c for c in cases("audit_text") if "input" in c], ids=lambda case: case["id"]
)
def test_catalogue(case):
    """Hostile texts in every place of every value never reach the terminal as control characters."""
    for thing in everything(case["input"] or "x"):
        assert safe(text.render(thing))


@given(anything.filter(bool))
def test_everything_is_safe(words):
    """Whatever a user typed, in whatever place: the terminal gets printable lines."""
    things = everything(words)
    for thing in things:
        assert safe(text.render(thing))
    assert safe(str(compare([things[0], version(9)])))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.1 + 0.2, "0.3"),
        (0.123456789, "0.123457"),
        (1e-10, "1e-10"),
        (2**53 + 1, "9007199254740993"),
        (math.nan, "NaN"),
        (-math.inf, "-∞"),
        (True, "true"),
        (None, "none"),
        ("", "''"),
        ("a\nb", "a\\nb"),
        (("a", 1), "a, 1"),
        (Frozen({"a": 1.0}), "{a: 1}"),
        (Opaque("t", "ReLU()"), "ReLU()"),
        (T0, "2026-03-01 12:00"),
        (File("a", 1200, digest(1)), f"1.2 kB {digest(1)[7:19]}"),
        ("x" * 100, "x" * 59 + "…"),
    ],
    ids=repr,
)
def test_cells(value, shown):
    """Short, on one line, and telling types apart where it matters."""
    assert text.cell(value) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_499, "99.5 kB"),
        (99_500, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (1_234_567, "1.2 MB"),
        (5 * 10**18, "5000 PB"),
    ],
)
def test_sizes(count, shown):
    """Three digits or so, decimal units."""
    assert text.size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (0.0123, "0.0123 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min"),
        (200.4, "3 min 20 s"),
        (3600, "1 h"),
        (90_061, "1 d 1 h"),
        (math.nan, "NaN s"),
        (-1, "-1 s"),
    ],
)
def test_durations(seconds, shown):
    """The two largest units."""
    assert text.duration(seconds) == shown


@given(st.floats(0, 1e7))
def test_durations_have_no_sixty(seconds):
    """Never "1 min 60 s"."""
    assert not re.search(r"\b60 (s|min)\b|\b24 h\b", text.duration(seconds))


def test_tables_align_by_what_is_seen():
    """Wide characters take two columns, combining ones none; numbers align to the right."""
    shown = text.table(["name", "n"], [["日本", "1"], ["e\u0301", "100"]], right=[1]).splitlines()
    assert [text.width(line) for line in shown] == [9, 9, 9, 9]


def test_comparison_of_two():
    """Differences in numbers, the best marked, what is new and gone said."""
    one = version(1, params=Frozen({"old": 1}))
    two = version(2, params=Frozen({"new": 1}))
    shown = str(compare([one, two]))
    assert re.search(r"auc +0.91 +0.92 \* +\+0.01", shown)
    assert re.search(r"log_loss +0.39 +0.38 \* +-0.01", shown)
    assert re.search(r"old +1 +– +removed", shown)
    assert re.search(r"new +– +1 +added", shown)
    assert re.search(r"prep.json .* same", shown)
    assert shown.endswith("* best")


def test_print_shows_tables():
    """`print` of a listing, a report or a verification is what a person reads, not a row of fields."""
    found = Listing([version(1), version(2)])
    assert str(found) == text.render(found)
    assert "pending" in str(found)
    assert str(Verification(True, (), 3, 1, "ab")) == "Verified: 3 entries, 1 file, no problems."
    assert str(IngestReport(())) == "Ingested 0 outputs, 0 B."


def test_differences_are_never_rounded_away():
    """Where short numbers look equal and are not, all digits are shown."""
    one = version(1, metrics=normalise({"auc": 0.9000000001}), size=1_000_001)
    two = version(2, metrics=normalise({"auc": 0.9000000002}), size=1_000_002)
    shown = str(compare([one, two]))
    assert "0.9000000001" in shown
    assert "1,000,002 B" in shown


def test_many_equal_files_are_counted():
    """A table of thousands of equal files shows those that differ."""
    same = tuple(File(f"f{i:04}", 1, digest(i)) for i in range(1000))
    shown = str(compare([version(1, files=same), version(2, files=(*same, File("new", 1, digest("n"))))]))
    assert "1,000 more" in shown
    assert "new" in shown
    assert len(shown.splitlines()) < 60


def test_listings():
    """One line for each, more is said, nothing is said too."""
    assert text.render(Listing([])) == "Nothing found."
    shown = text.render(Listing([version(1), version(2)], total=12))
    assert len(shown.splitlines()) == 5
    assert shown.endswith("… 10 more")
    assert text.render(Listing([version(1), everything("x")[1]])).count("model://") == 2


def test_verification_and_report():
    """Good news is one line; bad news names every problem."""
    assert text.render(Verification(True, (), 1, 2, "")) == "Verified: 1 entry, 2 files, no problems."
    assert "  - gone" in text.render(Verification(False, ("gone",), 1, 2, ""))
    assert text.render(IngestReport((), repeated=True)).startswith("Ingested before: nothing changed")
    assert "1 alert:" in text.render(everything("x")[5])


def test_other_objects():
    """Anything else is shown as its text."""
    assert text.render("a\x1bb") == "a\\x1bb"
