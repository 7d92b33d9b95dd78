"""The query language: what parses, what does not and where it says so, and what it means."""

from __future__ import annotations

import fnmatch
import math
import re
import sqlite3
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modelhub_sdk.domain.query import (
    MODEL_FIELDS,
    VERSION_FIELDS,
    Condition,
    Order,
    Query,
    check_limit,
    getter,
    like,
    matches,
    parse,
    parse_order,
    stamp,
)
from modelhub_sdk.domain.values import Frozen, normalise
from modelhub_sdk.errors import InvalidQuery
from tests.support.samples import T0, cases, everything, version

KWARGS = {
    "search_filter-051": lambda: parse_order("(CASE WHEN (SELECT 1)=1 THEN name ELSE version END)"),
    "search_filter-052": lambda: check_limit(-1),
}


@pytest.mark.parametrize("case", cases("search_filter"), ids=lambda case: case["id"])
def test_catalogue(case):
    """Each hostile filter is answered as the catalogue says, quickly, with a short error."""
    if "input" in case:
        ask = lambda: parse(case["input"])  # noqa: E731
    elif case["kind"] == "python-expr":
        text = eval(case["repr"])
        ask = lambda: parse(text)  # noqa: E731
    elif case["id"] in KWARGS:
        ask = KWARGS[case["id"]]
    else:
        pytest.skip(f"no such argument here: {case['repr']}")
    started = time.process_time()
    if case["expect"] == "accept":
        ask()
    else:
        with pytest.raises(InvalidQuery) as caught:
            ask()
        assert len(str(caught.value)) < 600
    assert time.process_time() - started < 0.5


# --- Parsing ------------------------------------------------------------------------------------


def only(text, fields=VERSION_FIELDS):
    (condition,) = parse(text, fields).conditions
    return condition


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("name = 'a'", Condition("model", None, "=", "a")),
        ("model='a'", Condition("model", None, "=", "a")),
        ("\tname\n>=\r'a' ", Condition("model", None, ">=", "a")),
        ("name = 'O''Brien'", Condition("model", None, "=", "O'Brien")),
        ('name = "say ""hi"""', Condition("model", None, "=", 'say "hi"')),
        ("name like 'a%'", Condition("model", None, "LIKE", "a%")),
        ("version = 3", Condition("number", None, "=", 3, kind="integer")),
        ("size < 1e9", Condition("size", None, "<", 1_000_000_000, kind="integer")),
        ("metrics.auc >= .9", Condition("metrics", "auc", ">=", 0.9, kind="map")),
        ("metrics.auc >= -1", Condition("metrics", "auc", ">=", -1.0, kind="map")),
        ("metrics.val/loss < +1.5E-3", Condition("metrics", "val/loss", "<", 0.0015, kind="map")),
        ("metrics.recall@5 > 0", Condition("metrics", "recall@5", ">", 0.0, kind="map")),
        ("params.`batch size` = 32", Condition("params", "batch size", "=", 32.0, kind="map")),
        ("params.`a``b`.c = 'x'", Condition("params", "a`b.c", "=", "x", kind="map")),
        ("params.größe = 1", Condition("params", "größe", "=", 1.0, kind="map")),
        ("params.on = true", Condition("params", "on", "=", 1.0, kind="map")),
        ("archived = FALSE", Condition("archived", None, "=", False, kind="flag")),
        ("tags = 'a'", Condition("tags", None, "=", "a", kind="set")),
        ("tags.a.b = 'x'", Condition("tags", None, "=", "a.b:x", kind="set")),
        ("tags.a_b ~ '5%'", Condition("tags", None, "LIKE", r"a\_b:%5\%%", kind="set")),
        ("alias != 'champion'", Condition("alias", None, "!=", "champion", kind="set")),
        ("status = 'approved'", Condition("status", None, "=", "approved")),
        (
            "created_at < '2026-03-01'",
            Condition("created_at", None, "<", "2026-03-01T00:00:00.000000Z", kind="time"),
        ),
        (
            "created_at > '2026-03-01'",
            Condition("created_at", None, ">", "2026-03-01T23:59:59.999999Z", kind="time"),
        ),
        (
            "created_at = '2026-03-01T14:00:00+02:00'",
            Condition("created_at", None, "=", "2026-03-01T12:00:00.000000Z", kind="time"),
        ),
    ],
)
def test_one_condition(text, condition):
    """A condition is read into canonical field names and a value of the field's kind."""
    assert only(text) == condition
    assert type(only(text).value) is type(condition.value)


def test_a_day_is_a_range():
    """A bare date in an equality is the whole day."""
    assert [(c.op, c.value) for c in parse("created_at = '2026-03-01'").conditions] == [
        (">=", "2026-03-01T00:00:00.000000Z"),
        ("<=", "2026-03-01T23:59:59.999999Z"),
    ]


def test_several_conditions():
    """They are joined by `and`, in any case, and kept in order."""
    query = parse("metrics.auc >= 0.9 AND status='approved'and tags = 'a'")
    assert [c.field for c in query.conditions] == ["metrics", "status", "tags"]


@pytest.mark.parametrize("text", [None, "", " ", "\n\t "])
def test_no_conditions(text):
    """Nothing asked is everything found."""
    assert parse(text) == Query()
    assert not parse(text)
    assert matches(parse(text), getter(version()))


@pytest.mark.parametrize(
    ("text", "message", "pointed"),
    [
        ("name = 'a' or name = 'b'", "not there yet", "or"),
        ("not name = 'a'", "not there yet", "not"),
        ("name in ('a')", "not there yet", "in"),
        ("(name = 'a')", "not there yet", "("),
        ("name = ('a')", "not there yet", "("),
        ("owner is null", "no field 'owner'", "owner"),
        ("note is null", "not there yet", "is"),
        ("note = null", "not there yet", "null"),
        ("name == 'a'", "Write =", "=="),
        ("name <> 'a'", "Write !=", "<>"),
        ("name = a", "Expected a value", "a"),
        ("name = 'a", "never closed", "'"),
        ("name 'a'", "Expected an operator", "'"),
        ("name = 'a' and", "missing after 'and'", "and"),
        ("name = 'a' , name = 'b'", "joined by 'and'", ","),
        ("metric.auc = 1", "Did you mean metrics", "metric"),
        ("NAME = 'a'", "Did you mean name", "NAME"),
        ("metrics > 1", "Say which", "metrics"),
        ("name.x = 'a'", "has no parts", "name.x"),
        ("version = 'a'", "is a number", "'a'"),
        ("version = 1.5", "whole number", "1.5"),
        ("version = 9223372036854775808", "2^63", "9223372036854775808"),
        ("version ~ '1'", "cannot be compared", "~"),
        ("name = 1", "is text", "1"),
        ("name ~ 1", "compares with text", "1"),
        ("status = 'done'", "one of pending, approved, rejected", "'done'"),
        ("status < 'a'", "cannot be compared", "<"),
        ("tags < 'a'", "cannot be compared", "<"),
        ("archived = 1", "true or false", "1"),
        ("params.x < true", "no order", "true"),
        ("created_at = 'yesterday'", "no time", "'yesterday'"),
        ("created_at = 3", "is a time", "3"),
        ("created_at = '0001-01-01T00:00:00+14:00'", "no time", "'0001-01-01T00:00:00+14:00'"),
        ("metrics.x = inf", "not finite", "inf"),
        ("metrics. = 1", "key is missing", " "),
        ("metrics.`` = 1", "not empty", "``"),
        ("metrics.`a = 1", "never closed", "`"),
        ("name LIKE 'a\\'", "lone backslash", "'a\\'"),
        ("name LIKE '%a%a%a%a%a%a%a%a%a%a%a'", "More than 10 %", "'%a%a%a%a%a%a%a%a%a%a%a'"),
        ("metrics.x = 12abc", "Expected a value", "12abc"),
        ("len(name) = 1", "no functions", "len("),
    ],
)
def test_faults_are_shown_at_their_place(text, message, pointed):
    """The error says what is wrong and its span marks the fault."""
    with pytest.raises(InvalidQuery, match=re.escape(message)) as caught:
        parse(text)
    start, end = caught.value.span
    assert caught.value.source[start:end] == pointed


@pytest.mark.parametrize("where", [3, b"name = 'a'", ["name"], {"name": "a"}, True])
def test_only_text_is_a_query(where):
    """Another type is a typed error."""
    with pytest.raises(InvalidQuery, match="not text"):
        parse(where)


def test_sizes_are_bounded():
    """Long queries, long keys and many conditions are refused."""
    with pytest.raises(InvalidQuery, match="10,000"):
        parse("name = '" + "a" * 10_000 + "'")
    with pytest.raises(InvalidQuery, match="50 conditions"):
        parse(" and ".join(["version > 0"] * 51))
    with pytest.raises(InvalidQuery, match="250"):
        parse(f"params.{'a' * 251} = 1")
    with pytest.raises(InvalidQuery, match="range of floats"):
        parse(f"metrics.x = {'9' * 5_000}")


WORDS = [
    *("name", "version", "metrics", "tags", "status", "created_at", "and", "or", "like", "true", "nan"),
    *(
        ".",
        "`",
        "'",
        '"',
        "''",
        "=",
        "!=",
        "<",
        "~",
        "(",
        ")",
        "1",
        "-1e5",
        ".5",
        "0x1",
        "\\",
        "%",
        "_",
        "a",
        "ß",
    ),
    *(";", "--", ":p", "?", "'2026-01-01'"),
]
pieces = st.sampled_from([*WORDS, " ", "\n", "\u202e", "\0", "\ud800", "\U0001f600"])


@given(st.lists(pieces, max_size=14).map("".join) | st.text(max_size=40))
@settings(max_examples=400)
def test_any_text_is_a_query_or_a_typed_error(text):
    """No input makes anything but a Query or an InvalidQuery whose span lies in the text and which prints."""
    for fields in (VERSION_FIELDS, MODEL_FIELDS):
        try:
            query = parse(text, fields)
        except InvalidQuery as error:
            start, end = error.span
            assert 0 <= start < end <= len(text) + 1
            str(error).encode()
        else:
            for condition in query.conditions:
                assert condition.field in fields.kinds
                assert condition.kind == fields.kinds[condition.field]
                matches(query, getter(version()))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20))
def test_any_text_can_be_quoted(text):
    """Doubling quotes makes a literal of any text, with either quote."""
    for quote in "'\"":
        assert only(f"note = {quote}{text.replace(quote, quote * 2)}{quote}").value == text


def test_synonyms_and_kinds_agree():
    """Every synonym and every restricted field is a field."""
    for fields in (VERSION_FIELDS, MODEL_FIELDS):
        assert set(fields.synonyms.values()) <= set(fields.kinds)
        assert set(fields.choices) <= set(fields.kinds)
        assert not set(fields.synonyms) & set(fields.kinds)


# --- Order and limit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("created_at", Order("created_at", None, False, "time")),
        ("-metrics.auc", Order("metrics", "auc", True, "map")),
        (" version ", Order("number", None, False, "integer")),
        (None, None),
    ],
)
def test_order(text, order):
    """A field, with a minus for descending."""
    assert parse_order(text) == order


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "--size",
        "tags",
        "metrics",
        "size desc",
        "size, number",
        "rowid",
        "1",
        "size;",
        3,
        "a" * 99_999,
    ],
)
def test_orders_that_are_refused(text):
    """Anything else is a typed error."""
    with pytest.raises(InvalidQuery):
        parse_order(text)


@pytest.mark.parametrize("descending", [False, True])
def test_order_is_total(descending):
    """Numbers, then texts, then what is missing or not finite; ties stay as they came."""
    values = [math.nan, 2, "b", None, 1, True, "a", math.inf, 1.0, "B"]
    items = [version(i + 1, metrics=normalise({"x": value})) for i, value in enumerate(values)]
    order = parse_order("-metrics.x" if descending else "metrics.x")
    found = [v.metrics["x"] for v in order.sorted(items, getter)]
    expected = [2, 1, True, 1.0, "b", "a", "B"] if descending else [1, True, 1.0, 2, "B", "a", "b"]
    assert found[:7] == expected
    assert [type(v) for v in found[:7]] == [type(v) for v in expected]
    assert [str(v) for v in found[7:]] == ["nan", "None", "inf"]


def test_order_of_numbers_and_times():
    """Version numbers sort as numbers, times as times, what is not decided comes last."""
    items = [version(n, decided_at=None if n == 10 else T0 - timedelta(days=n)) for n in (10, 9, 2)]
    assert [v.number for v in parse_order("number").sorted(items, getter)] == [2, 9, 10]
    assert [v.number for v in parse_order("decided_at").sorted(items, getter)] == [9, 2, 10]
    assert [v.number for v in parse_order("-decided_at").sorted(items, getter)] == [2, 9, 10]


@pytest.mark.parametrize("limit", [1, 100, 10_000])
def test_limit(limit):
    """Whole numbers from 1 to 10,000 are taken."""
    assert check_limit(limit) == limit


@pytest.mark.parametrize("limit", [0, -1, 10_001, 2**63, 1.0, "1", None, True, math.nan])
def test_limits_that_are_refused(limit):
    """Anything else is a typed error."""
    with pytest.raises(InvalidQuery):
        check_limit(limit)


# --- Meaning ------------------------------------------------------------------------------------

V = version(
    3,
    status="approved",
    metrics=normalise({"auc": 0.9, "bad": math.nan, "big": 10**400, "name": "x"}),
    params=normalise({"opt": "Adam", "on": True, "none": None, "l": [1], "a b": 1}, "params"),
    fields=Frozen({"team": Frozen({"lead": "sofia"})}),
    tags=("crm", "team:risk"),
    aliases=("champion",),
    note=None,
    decided_at=T0,
)


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ("name = 'customer-churn'", True),
        ("name = 'Customer-churn'", False),
        ("name ~ 'churn'", True),
        ("name ~ 'CHURN'", False),
        ("name LIKE 'customer%'", True),
        ("name LIKE 'CUSTOMER%'", False),
        ("name ILIKE 'CUSTOMER_churn'", True),
        ("name > 'Z'", True),
        ("number >= 3 and number <= 3", True),
        ("number != 3", False),
        ("metrics.auc >= 0.9", True),
        ("metrics.auc > 0.9", False),
        ("metrics.bad > -1e308", False),
        ("metrics.bad != 0", False),
        ("metrics.big > 0", False),
        ("metrics.nothing != 0", False),
        ("metrics.name = 'x'", True),
        ("metrics.name != 1", False),
        ("metrics.auc != 'x'", False),
        ("params.opt ILIKE 'adam'", True),
        ("params.on = true", True),
        ("params.on = 1", True),
        ("params.none = 0", False),
        ("params.l = 1", False),
        ("params.`a b` = 1", True),
        ("fields.team.lead = 'sofia'", True),
        ("tags = 'crm'", True),
        ("tags != 'crm'", False),
        ("tags != 'other'", True),
        ("tags ~ 'risk'", True),
        ("tags LIKE 'team:%'", True),
        ("tags.team = 'risk'", True),
        ("tags.team != 'risk'", False),
        ("tags.team ~ 'is'", True),
        ("alias = 'champion'", True),
        ("alias != 'champion'", False),
        ("note = ''", False),
        ("note != 'x'", False),
        ("archived = false", True),
        ("archived != false", False),
        ("created_at = '2026-03-04'", True),
        ("created_at > '2026-03-04'", False),
        ("created_at >= '2026-03-04'", True),
        ("created_at <= '2026-03-04'", True),
        ("created_at < '2026-03-04'", False),
        ("created_at = '2026-03-04T14:00:00+02:00'", True),
        ("decided_by = 'x'", False),
        ("status = 'approved' and tags = 'crm' and metrics.auc > 0.5", True),
        ("status = 'approved' and tags = 'crm' and metrics.auc > 0.95", False),
    ],
)
def test_meaning_for_versions(where, holds):
    """The documented meaning, one sentence each."""
    assert matches(parse(where), getter(V)) is holds


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ("name = 'm'", True),
        ("status = 'approved'", True),
        ("status = 'rejected'", False),
        ("status != 'rejected'", True),
        ("project = 'p'", True),
        ("latest = 2 and last_number >= 2", True),
        ("owner ~ 'p'", True),
        ("modified_at >= '2026-03-01'", True),
    ],
)
def test_meaning_for_models(where, holds):
    """A model has each status that one of its versions has."""
    model = everything("p")[1]
    assert matches(parse(where, MODEL_FIELDS), getter(model)) is holds


@given(
    st.text(st.sampled_from("ab%_\\.*é😀"), max_size=8),
    st.text(st.sampled_from("abAB%_\\.*é😀"), max_size=10),
    st.booleans(),
)
@settings(max_examples=300)
def test_like_means_what_sqlite_means(pattern, text, ignore_case):
    """LIKE agrees with SQLite's (case-sensitive on request), ILIKE with its ASCII-insensitive default."""
    assume(not re.sub(r"\\.", "", pattern, flags=re.DOTALL).endswith("\\"))
    with sqlite3.connect(":memory:") as db:
        db.execute(f"PRAGMA case_sensitive_like = {'off' if ignore_case else 'on'}")
        (expected,) = db.execute(r"SELECT ? LIKE ? ESCAPE '\'", (text, pattern)).fetchone()
    db.close()
    assert like(text, pattern, ignore_case=ignore_case) is bool(expected)


@given(st.text(st.sampled_from("ab*?"), max_size=8), st.text(st.sampled_from("ab"), max_size=10))
def test_like_agrees_with_globs(glob, text):
    """The same patterns as file-name globs give the same answers."""
    assert like(text, glob.replace("*", "%").replace("?", "_")) == fnmatch.fnmatchcase(text, glob)


def test_like_takes_linear_steps():
    """A pattern that makes backtracking matchers explode is answered at once."""
    started = time.process_time()
    assert not like("a" * 20_000, "%a" * 9 + "%b")
    assert time.process_time() - started < 2


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])), st.data())
def test_stamps_sort_as_times(first, data):
    """Fixed-width text sorts as the times do."""
    assume(datetime(2, 1, 1) < first.replace(tzinfo=None) < datetime(9998, 1, 1))
    second = first + data.draw(st.timedeltas(timedelta(0), timedelta(days=300)))
    assert (stamp(first) < stamp(second)) == (first < second)
    assert len(stamp(first)) == 27


def test_naive_times_have_no_stamp():
    """Times without a zone are never guessed at."""
    with pytest.raises(ValueError, match="time zone"):
        stamp(datetime(2026, 3, 1))
