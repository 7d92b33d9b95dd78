"""What metrics, parameters and fields may hold, and that it survives."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import json
import math
import pathlib
import pickle
import re
import sys
import timeit
from collections import OrderedDict, deque, namedtuple
from types import MappingProxyType

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelhub_sdk.domain import values
from modelhub_sdk.domain.values import (
    Frozen,
    Opaque,
    from_json,
    leaves,
    normalise,
    normalise_fields,
    number,
    text_of,
    to_json,
)
from modelhub_sdk.errors import InvalidDocument, ModelHubError
from tests.support.samples import cases


def _named(value: object) -> str:
    """A name for a parameter that is the same in every process: no addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
keys = texts.filter(bool)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**53 + 1, -(2**63) - 1, 10**4299, -(2**5000), 0]),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 0.1 + 0.2, 5e-324]),
    texts,
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
documents = st.dictionaries(keys, trees, max_size=6)


def through_json(value):
    return from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))


# --- The catalogue ------------------------------------------------------------------------------


class _BadRepr:
    def __repr__(self):
        raise RuntimeError("no")


class _Colour(str, enum.Enum):  # what older training code has
    RED = "red"


class _Level(enum.IntEnum):
    HIGH = 3


def _loop():
    loop: list = []
    loop.append(loop)
    return loop


BUILT = {
    "metadata_value-034": [_loop()],
    "metadata_value-036": [numpy.float64("nan"), numpy.int64(1), numpy.bool_(True)],
    "metadata_value-037": [_BadRepr()],
    "metadata_value-039": [_Colour.RED, _Level.HIGH],
}


@pytest.mark.parametrize("case", cases("metadata_value"), ids=lambda case: case["id"])
def test_catalogue(case):
    """Each hostile value is kept as the catalogue says, or refused by a typed error with a short text."""
    if case["kind"] == "python-expr":
        inputs = [eval(case["repr"])]  # the catalogue's own expressions
    elif case["id"] in BUILT:
        inputs = BUILT[case["id"]]
    else:
        pytest.skip(f"no object for {case['id']}: {case['repr']}")
    for value in inputs:
        for read in (lambda v: normalise({"k": v}), lambda v: normalise_fields({"k": v})):
            if case["expect"] == "reject":
                with pytest.raises(InvalidDocument) as caught:
                    read(value)
                assert len(str(caught.value)) < 400
            else:
                kept = read(value)
                assert Frozen(kept) == through_json(Frozen(kept))


def test_huge_mappings_are_refused_at_the_top_too():
    """A million keys are as many at the top level as under a key."""
    with pytest.raises(InvalidDocument, match="10,000 values"):
        normalise({str(i): i for i in range(1_000_000)})


# --- Normalising --------------------------------------------------------------------------------


def test_nested_mappings_become_dotted_keys():
    """Metrics are flat: what is nested has dots in its key; empty mappings stay visible."""
    assert normalise({"a": {"b": {"c": 1}, 3: 2}, "d": {}}) == {"a.b.c": 1, "a.3": 2, "d": {}}


def test_fields_stay_nested_and_keep_none():
    """Fields are JSON values; None at the top says remove."""
    assert normalise_fields({"a": {"b": [1, {"c": None}]}, "old": None}) == {
        "a": {"b": (1, {"c": None})},
        "old": None,
    }


def test_nothing_is_an_empty_mapping():
    """None stands for no metrics."""
    assert normalise(None) == {}
    assert normalise_fields(None) == {}


@pytest.mark.parametrize(
    "mapping",
    [{1: "a", "1": "b"}, {"a": {"b": 1}, "a.b": 2}, {"a.b": 2, "a": {"b": 1}}, {"a": {1: 0, "1": 1}}],
)
def test_keys_that_become_one_are_an_error(mapping):
    """Two values never fight for one key in silence."""
    with pytest.raises(InvalidDocument, match="two values"):
        normalise(mapping)


@pytest.mark.parametrize("key", [None, True, 1.5, (1, 2), "", b"a", "\ud800", "a\0b", "k" * 251, frozenset()])
def test_keys_that_are_refused(key):
    """Keys are text or integers, neither empty nor overlong, and valid Unicode."""
    for read in (normalise, normalise_fields):
        with pytest.raises(InvalidDocument):
            read({key: 1})


@pytest.mark.parametrize("mapping", [[], "abc", 3, [("a", 1)], object()])
def test_only_mappings_are_taken(mapping):
    """Anything else says what to pass."""
    with pytest.raises(InvalidDocument, match="not a mapping"):
        normalise(mapping, "params")


Point = namedtuple("Point", "x y")  # noqa: PYI024  # what older training code has


@dataclasses.dataclass
class Config:
    lr: float
    layers: list


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        (numpy.float32(0.5), 0.5),
        (numpy.float64(0.1), 0.1),
        (numpy.int8(-3), -3),
        (numpy.uint64(2**64 - 1), 2**64 - 1),
        (numpy.bool_(False), False),
        (numpy.str_("s"), "s"),
        (numpy.longdouble(1.5), 1.5),
        (numpy.array(2.5), 2.5),
        (numpy.array([[1, 2], [3, 4]]), ((1, 2), (3, 4))),
        (_Colour.RED, "red"),
        (_Level.HIGH, 3),
        (decimal.Decimal("0.1"), 0.1),
        (decimal.Decimal("12.0"), 12),
        (decimal.Decimal(2**70), 2**70),
        (fractions.Fraction(1, 4), 0.25),
        (range(3), (0, 1, 2)),
        (deque([1, 2]), (1, 2)),
        (Point(1, 2), (1, 2)),
        (OrderedDict(a=1), {"a": 1}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (Config(0.1, [64, 32]), {"lr": 0.1, "layers": (64, 32)}),
        (True, True),
        ("1", "1"),
        ("null", "null"),
        ("", ""),
    ],
    ids=_named,
)
def test_what_training_code_has_becomes_plain(given_, kept):
    """Scalars of array libraries, enums, decimals and containers come back as plain values, type and all."""
    result = normalise_fields({"k": given_})["k"]
    assert result == kept
    assert type(result) in (type(kept), Frozen)


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        (datetime.date(2026, 3, 1), Opaque("datetime.date", "2026-03-01")),
        (pathlib.PurePosixPath("/a/b"), Opaque("pathlib.PurePosixPath", "/a/b")),
        (len, Opaque("builtin_function_or_method", "builtins.len")),
        (dict, Opaque("type", "builtins.dict")),
        (object(), Opaque("object", "<object object>")),
        (numpy.datetime64("2026-03-01"), Opaque("numpy.datetime64", "2026-03-01")),
    ],
    ids=_named,
)
def test_other_objects_become_marked_text(given_, kept):
    """What is no value is kept as text of its type, without memory addresses."""
    assert normalise({"k": given_})["k"] == kept


@pytest.mark.parametrize(
    "value",
    [
        b"bytes",
        bytearray(b"x"),
        {1, 2},
        frozenset("ab"),
        1j,
        numpy.complex64(1j),
        numpy.zeros(20_000),
        numpy.ma.masked,
        decimal.Decimal("sNaN"),
        decimal.Decimal("1E-1000000"),
        fractions.Fraction(10**400 + 1, 3),
        10**4300,
        "x" * 100_001,
        ["\ud800"],
        {"a": "\0"},
        range(10**9),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_kept_is_refused_by_key(value):
    """The error names the mapping and the key."""
    with pytest.raises(InvalidDocument, match=r"(params: the value of 'k|params has)"):
        normalise({"k": value}, "params")


def test_objects_that_raise_are_typed_errors():
    """User code that fails while it is read never lets its own exception out."""

    class Liar:
        @property
        def __class__(self):
            raise RuntimeError("no")

    class Broken(dict):
        def keys(self):
            raise RuntimeError("no")

        def __iter__(self):
            raise RuntimeError("no")

        def items(self):
            raise RuntimeError("no")

    for value in (Liar(), _BadRepr()):
        with pytest.raises(InvalidDocument):
            normalise({"k": value})
    with contextlib.suppress(ModelHubError):  # dict() may read past the overridden methods; both are fine
        normalise(Broken(a=1))


def test_an_object_array_that_contains_itself():
    """It ends, with a typed error."""
    array = numpy.array(None, dtype=object)
    array[()] = array
    with pytest.raises(InvalidDocument):
        normalise({"k": array})


def test_shared_structure_does_not_explode():
    """A small object that unfolds to a billion values is refused quickly."""
    tree: object = ["lol"]
    for _ in range(25):
        tree = [tree] * 10
    with pytest.raises(InvalidDocument):
        normalise({"k": tree})


def test_deep_nesting_is_refused():
    """Depth has a limit well before Python's own."""
    deep: dict = {}
    for _ in range(10_000):
        deep = {"a": deep}
    for read in (normalise, normalise_fields):
        with pytest.raises(InvalidDocument, match=r"deeper|more than"):
            read(deep)


def test_total_text_is_bounded():
    """Many texts that are each allowed are too much together."""
    with pytest.raises(InvalidDocument, match="400,000"):
        normalise({f"k{i}": "x" * 90_000 for i in range(5)})


def test_subclasses_of_text_are_taken_by_content():
    """A str subclass cannot be one text when checked and another when stored."""

    class Sly(str):
        def __str__(self):
            return "other"

    kept = normalise({Sly("k"): Sly("v")})
    assert kept == {"k": "v"}
    assert all(type(part) is str for pair in kept.items() for part in pair)


@given(documents)
@settings(max_examples=150)
def test_normalising_is_idempotent(document):
    """Plain values stay what they are; every outcome is a value or a typed error."""
    for read in (normalise, lambda d: Frozen(normalise_fields(d))):
        try:
            once = read(document)
        except InvalidDocument:
            continue
        assert read(once) == once


@given(st.dictionaries(st.text(max_size=5), scalars, max_size=5))
def test_the_fast_path_and_the_careful_path_agree(document):
    """The shortcut for plain values changes nothing but the time."""

    def outcome(mapping):
        try:
            return normalise(mapping)
        except InvalidDocument:
            return "refused"

    fast, careful = outcome(document), outcome(MappingProxyType(document))
    assert fast == careful
    if isinstance(fast, Frozen):
        assert [type(v) for v in fast.values()] == [type(v) for v in careful.values()]


def test_it_is_fast_for_plain_values():
    """Ten metrics and ten parameters take well under 50 microseconds (measured about 3)."""
    metrics = {f"metric_{i}": i / 7 for i in range(10)}
    params = {
        "a": 1,
        "b": 2.5,
        "c": "adam",
        "d": True,
        "e": None,
        "f": 3,
        "g": "x",
        "h": 0.1,
        "i": 9,
        "j": "relu",
    }
    best = min(timeit.repeat(lambda: (normalise(metrics), normalise(params)), number=200, repeat=20)) / 200
    assert best < 50e-6


# --- Frozen -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.__setitem__("a", 2),
        lambda f: f.__delitem__("a"),
        lambda f: f.update(b=1),
        lambda f: f.setdefault("b", 1),
        lambda f: f.pop("a"),
        lambda f: f.popitem(),
        lambda f: f.clear(),
        lambda f: f.__ior__({"b": 1}),
    ],
)
def test_frozen_cannot_change(change):
    """Every way to change a dict is refused and leaves it as it was."""
    frozen = Frozen({"a": 1})
    with pytest.raises(TypeError, match="read-only"):
        change(frozen)
    assert frozen == {"a": 1}


def test_frozen_is_a_good_value():
    """Equal to a dict, hashable, copyable, picklable; joining makes a plain dict."""
    frozen = normalise({"a": 1, "nan": math.nan, "l": [math.nan]})
    assert frozen == dict(frozen)
    assert hash(Frozen({"a": 1, "b": 2})) == hash(Frozen({"b": 2, "a": 1}))
    assert copy.copy(frozen) == copy.deepcopy(frozen) == frozen.copy() == frozen
    assert pickle.loads(pickle.dumps(frozen)) == frozen  # our own bytes
    joined = frozen | {"b": 2}
    assert type(joined) is dict
    joined["c"] = 3


# --- JSON ---------------------------------------------------------------------------------------


@given(documents)
@settings(max_examples=200)
def test_json_round_trip(document):
    """from_json(json(to_json(v))) is v: NaN, infinities, big integers, -0.0 and $ keys included."""
    try:
        value = Frozen(normalise_fields(document))
    except InvalidDocument:
        return
    back = through_json(value)
    assert back == value
    assert repr(back) == repr(value)  # 1 is not 1.0, -0.0 is not 0.0
    assert to_json(back) == to_json(value)


@pytest.mark.parametrize(
    "mapping",
    [
        {"$float": "NaN"},
        {"$map": {"$map": {}}},
        {"$text": {"type": "a", "text": "b"}},
        {"$": 1, "b": 2},
        {"$int": 1},
    ],
)
def test_user_mappings_are_never_taken_for_tags(mapping):
    """A mapping that looks like one of our tags comes back as that mapping."""
    value = normalise({"k": [mapping]})
    assert through_json(value) == {"k": (mapping,)}


def test_tags_in_json():
    """What JSON lacks is written as the documented objects."""
    assert to_json(math.nan) == {"$float": "NaN"}
    assert to_json(-math.inf) == {"$float": "-Infinity"}
    assert to_json(Opaque("a.B", "b")) == {"$text": {"type": "a.B", "text": "b"}}
    assert to_json(2**53 + 1) == 2**53 + 1
    assert to_json(-(2**3000)) == {"$int": hex(-(2**3000))}
    assert to_json((1, Frozen({"$a": 1}))) == [1, {"$map": {"$a": 1}}]


def test_big_integers_survive_a_lower_limit_of_python():
    """Integers that Python was told not to print are still written and read."""
    value = 10**4000
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        assert through_json(value) == value
    finally:
        sys.set_int_max_str_digits(limit)


@pytest.mark.parametrize(
    "stored",
    [
        {"$float": "nan"},
        {"$float": 1},
        {"$int": "12"},
        {"$int": "0x" + "f" * 4000},
        {"$map": []},
        {"$text": {"type": 1, "text": ""}},
        {"$text": "x"},
        {"$a": 1, "b": 2},
        object(),
    ],
    ids=_named,
)
def test_malformed_stored_values_are_typed_errors(stored):
    """A damaged journal gives an error of ours, not a wrong value."""
    with pytest.raises(InvalidDocument):
        from_json(stored)


def test_absurdly_nested_stored_values():
    """Reading does not run out of stack."""
    deep: list = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(InvalidDocument):
        from_json(deep)


def test_tags_of_a_later_release_are_shown_as_text():
    """An unknown tag does not stop reading."""
    assert from_json({"$date": "2026-03-01"}) == Opaque("$date", "2026-03-01")


def test_only_values_are_written():
    """Something that did not pass normalise() is refused."""
    with pytest.raises(InvalidDocument):
        to_json({"k": object()})


# --- What the index sees ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (1, 1.0),
        (0.5, 0.5),
        (True, 1.0),
        (math.nan, None),
        (math.inf, None),
        (10**400, None),
        ("1", None),
        (None, None),
        ((1,), None),
        (2**53 + 1, float(2**53)),
    ],
)
def test_number(value, seen):
    """Comparisons see finite floats; everything else matches no comparison."""
    assert number(value) == seen


def test_text_of():
    """Comparisons with text see texts and marked texts."""
    assert text_of("a") == "a"
    assert text_of(Opaque("t", "b")) == "b"
    assert text_of(1) is None


def test_leaves_of_fields():
    """Nested fields are reached by dotted keys; a literal key wins; each key appears once."""
    mapping = normalise_fields({"a": {"b": 1, "c": {"d": 2}}, "a.b": 3, "e": {}, "a.c": {"d": 9}})
    found = list(leaves(mapping))
    assert dict(found) == {"a.b": 3, "a.c.d": dict(found)["a.c.d"]}
    assert len(found) == len(dict(found))


def test_limits_are_public():
    """The limits stand in one place, by name."""
    assert (values.MAX_KEY, values.MAX_ITEMS, values.MAX_DIGITS) == (250, 10_000, 4_300)
