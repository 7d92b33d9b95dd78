"""The shipped strategies draw what they promise: good values that pass the checks, and the known traps."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from modelhub_sdk.domain import names, query
from modelhub_sdk.domain.uri import parse_selector, parse_uri
from modelhub_sdk.domain.values import normalise, normalise_fields
from modelhub_sdk.errors import InvalidQuery, ModelHubError
from modelhub_sdk.testing import Oracle, strategies

GOOD: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], object]]] = {
    "names": (strategies.names(), names.check_name),
    "aliases": (strategies.aliases(), names.check_alias),
    "tags": (strategies.tags(), names.check_tag),
    "texts": (strategies.texts(), lambda text: names.check_text(text, "text")),
    "paths": (strategies.paths(), names.check_path),
    "files": (strategies.files(), names.check_paths),
    "selectors": (strategies.selectors(), parse_selector),
    "uris": (strategies.uris(), lambda text: str(parse_uri(text)) == text or pytest.fail(text)),
    "metrics": (strategies.metrics(), normalise),
    "params": (strategies.params(), normalise),
    "fields": (strategies.fields(edit=True), normalise_fields),
    "users": (st.sampled_from(strategies.USERS), names.check_actor),
    "moments": (strategies.moments(), query.stamp),
}


@pytest.mark.parametrize("what", GOOD)
def test_what_is_called_good_is_good(what: str) -> None:
    """Every value drawn passes the check that users' values pass; URIs are drawn in their canonical form."""
    strategy, check = GOOD[what]

    @settings(max_examples=100)
    @given(strategy)
    def passes(value: Any) -> None:
        check(value)

    passes()


@pytest.mark.parametrize(
    ("bad", "check"),
    [
        (strategies.BAD_NAMES, names.check_name),
        (strategies.BAD_ALIASES, names.check_alias),
        (strategies.BAD_TAGS, names.check_tag),
        (strategies.BAD_TEXTS, lambda text: names.check_text(text, "text")),
        (strategies.BAD_PATHS, names.check_path),
        (
            strategies.BAD_INPUTS,
            lambda uri: Oracle(strategies.MOMENTS[0], "ana").register("a", {"b": b""}, inputs=[uri]),
        ),
    ],
)
def test_what_is_called_bad_is_refused(bad: tuple[Any, ...], check: Callable[[Any], object]) -> None:
    """Every value of a pool of bad ones is refused."""
    for value in bad:
        with pytest.raises(ModelHubError):
            check(value)


TRAPS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], bool]]] = {
    "NaN": (strategies.numbers(), lambda n: n != n),
    "infinity": (strategies.numbers(), lambda n: n == math.inf),
    "minus zero": (strategies.numbers(), lambda n: n == 0 and math.copysign(1, n) < 0),
    "2**53+1": (strategies.numbers(), lambda n: n == 2**53 + 1),
    "beyond floats": (strategies.numbers(), lambda n: isinstance(n, int) and n > 1 << 1100),
    "a bool": (strategies.numbers(), lambda n: n is True),
    "the empty text": (strategies.texts(), lambda t: t == ""),
    "a blank text": (strategies.texts(), lambda t: bool(t) and not t.strip()),
    "non-BMP text": (strategies.texts(), lambda t: any(ord(c) > 0xFFFF for c in t)),
    "a nested mapping": (strategies.values(), lambda v: isinstance(v, dict) and bool(v)),
    "an empty file": (strategies.files(), lambda f: b"" in f.values()),
    "two files of the same bytes": (strategies.files(), lambda f: len(set(f.values())) < len(f)),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_traps_are_drawn(trap: str) -> None:
    """What broke real databases is among what is drawn."""
    strategy, is_it = TRAPS[trap]
    find(strategy, is_it, settings=settings(max_examples=2000, database=None))


def test_texts_sort_differently_by_code_point_case_and_utf16() -> None:
    """The pools hold pairs that every wrong order puts the other way round."""
    for pool in (strategies.TEXTS, strategies.TAGS):
        by_code_point = sorted(pool)
        assert by_code_point != sorted(pool, key=str.casefold)
        assert by_code_point != sorted(pool, key=lambda text: text.encode("utf-16-be"))
    assert len({name.replace(".", "-") for name in strategies.MODELS}) < len(strategies.MODELS)


@pytest.mark.parametrize("fieldset", [query.VERSION_FIELDS, query.MODEL_FIELDS])
def test_most_queries_parse(fieldset: query.Fieldset) -> None:
    """Nearly all queries and orders that are drawn parse, and those that do not are InvalidQuery."""
    results: list[bool] = []

    @settings(max_examples=200, derandomize=True)
    @given(strategies.queries(fieldset), strategies.orders(fieldset))
    def parses(where: str, order: str | None) -> None:
        try:
            query.parse(where, fieldset)
            query.parse_order(order, fieldset)
        except InvalidQuery:
            results.append(False)
        else:
            results.append(True)

    parses()
    assert sum(results) > len(results) * 0.6


def test_conditions_about_what_is_there_parse() -> None:
    """Every condition and every order made from existing values parses."""
    oracle = Oracle(strategies.MOMENTS[0], "ana")
    traps = dict(zip("abcdefghijklmnopqrstuvwxyz", strategies.NUMBERS, strict=False))
    for text in strategies.TEXTS:
        oracle.register("churn", {"a": b""}, metrics=traps, note=text, params={"x y": text}, tags=["crm"])
    for of, rows in ((query.VERSION_FIELDS, oracle.versions()), (query.MODEL_FIELDS, oracle.models())):
        made = strategies.conditions_about(of, rows, random.Random(1))
        assert made
        for where in made:
            assert query.parse(where, of)
        for order in strategies.sortable(of, rows):
            assert query.parse_order(order, of)


@pytest.mark.parametrize("kind", strategies.VERBS)
def test_each_kind_of_command_can_succeed(kind: str) -> None:
    """Of every kind of command, one is drawn that the oracle carries out."""
    find(
        strategies.commands(kind),
        lambda command: _succeeds(command),
        settings=settings(max_examples=2000, database=None),
    )


def _succeeds(command: strategies.Command) -> bool:
    oracle = Oracle(strategies.MOMENTS[0], "ana")
    if command.verb != "create_model":
        for content in strategies.FILES[:2]:
            oracle.register("churn", content, note="typed")
        oracle.edit_model("churn", title="typed")
        oracle.set_alias("churn", "champion", 1)
        oracle.set_alias("churn", "champion", 2)
    try:
        oracle.run(command)
    except ModelHubError:
        return False
    return True
