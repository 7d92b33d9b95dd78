"""URIs: one grammar, one spelling, errors that point at the fault."""

from __future__ import annotations

import pickle
import time
import traceback

import pytest
from attrs.exceptions import FrozenInstanceError
from hypothesis import example, given
from hypothesis import strategies as st

from modelhub_sdk.domain.names import check_alias, check_name, check_path, check_version_name
from modelhub_sdk.domain.uri import (
    MAX_URI,
    ByDigest,
    DatasetURI,
    DatumURI,
    Latest,
    ModelURI,
    Named,
    Number,
    is_moving,
    parse_ref,
    parse_selector,
    parse_uri,
    quote_path,
)
from modelhub_sdk.errors import InvalidName, InvalidURI
from tests.support.hostile import Case, cases, refusal

DIGEST = "sha256:" + "0123456789abcdef" * 4


def good(check, text) -> bool:
    try:
        check(text)
    except InvalidName:
        return False
    return True


# --- strategies: what can be built, and texts that nearly parse

names = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,12}[a-z0-9])?", fullmatch=True).filter(
    lambda t: good(check_name, t)
)
aliases = names.filter(lambda t: good(check_alias, t))
paths = (
    st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    )
    .map("/".join)
    .filter(lambda t: good(check_path, t))
)
selectors = st.one_of(
    st.integers(1, 2**31 - 1).map(Number),
    st.just(Latest()),
    aliases.map(Named),
    st.text("0123456789abcdef", min_size=64, max_size=64).map(lambda h: ByDigest(f"sha256:{h}")),
)
version_names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._~-]{0,12}[A-Za-z0-9])?", fullmatch=True).filter(
    lambda t: good(check_version_name, t)
)
uris = st.one_of(
    names.map(ModelURI),
    st.builds(ModelURI, names, selectors, st.none() | paths),
    names.map(DatasetURI),
    st.builds(DatasetURI, names, version_names, st.none() | paths),
    names.map(DatumURI),
)
pieces = st.sampled_from(
    [
        "model://",
        "dataset://",
        "datum://",
        "models:/",
        "churn",
        "v3",
        "3",
        "v03",
        "latest",
        "production",
        DIGEST,
        "/",
        "//",
        ".",
        "..",
        "%2F",
        "%41",
        "%e9",
        "%C3%A9",
        "%",
        "a b",
        "é",
        "#",
        "?",
        "@",
        ":",
        "\n",
        "\x00",
        "\ud800",
    ]
)
near_misses = st.lists(pieces, max_size=7).map("".join)


# --- laws


@given(uris)
@example(ModelURI("a" * 128, ByDigest(DIGEST), "/".join(["é" * 127] * 4)))
@example(ModelURI("a", Number(1), "%/%41/~/a=b"))
@example(ModelURI("latest-2", Named("v3-rc"), "v1"))
@example(DatasetURI("a", "latest"))
def test_parse_inverts_str(uri):
    """`parse(str(u)) == u` for every URI, and its text is within the limit."""
    text = str(uri)
    assert len(text) <= MAX_URI
    assert text.isascii()
    assert parse_uri(text) == uri
    assert type(uri).parse(text) == uri


@given(st.one_of(near_misses, st.text(), uris.map(str)))
@example("model://churn/3")
@example("model://churn/v3/%41")
@example("model://churn/v3/a%2fb")
def test_printing_is_a_fixed_point(text):
    """`str(parse(t))` is a fixed point for every text that parses; every other text is an InvalidURI."""
    error = refusal(parse_uri, text, InvalidURI)
    if error is not None:
        start, end = error.span
        assert 0 <= start <= end <= len(error.source) + 4
        return
    uri = parse_uri(text)
    canonical = str(uri)
    assert str(parse_uri(canonical)) == canonical
    assert parse_uri(canonical) == uri


@given(st.one_of(near_misses, st.text()), st.sampled_from(["version", "model", "any"]))
def test_refs_parse_or_are_refused(text, kind):
    """Whatever text a reference is, there is a URI of the asked kind or an InvalidURI."""
    if refusal(lambda t: parse_ref(t, kind=kind), text, InvalidURI) is not None:
        return
    uri = parse_ref(text, kind=kind)
    assert parse_uri(str(uri)) == uri
    if kind != "any":
        assert (uri.selector is None) == (kind == "model")


@given(names, selectors)
def test_short_form_is_the_uri(name, selector):
    """The short form is the URI without its scheme, for every selector."""
    uri = ModelURI(name, selector)
    assert parse_ref(f"{name}/{selector}") == parse_ref(str(uri)) == uri
    assert parse_ref(name, kind="model") == parse_ref(f"model://{name}/", kind="model") == ModelURI(name)


@given(paths)
def test_percent_encoding_is_decoded_once(path):
    """Path segments are percent-encoded except unreserved characters, decoded once, then checked."""
    encoded = "/".join("".join(f"%{b:02x}" for b in segment.encode()) for segment in path.split("/"))
    assert ModelURI.parse(f"model://churn/v1/{encoded}"[:MAX_URI]).path == path or len(encoded) > 4000
    assert ModelURI.parse(f"model://churn/v1/{quote_path(path)}").path == path


@given(uris)
def test_values(uri):
    """URIs are values: equal, hashable, picklable, frozen."""
    again = pickle.loads(pickle.dumps(uri))
    assert again == uri
    assert hash(again) == hash(uri)
    with pytest.raises(FrozenInstanceError):
        setattr(uri, "id" if isinstance(uri, DatumURI) else "name", "x")


# --- the grammar, by examples


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("model://customer-churn/v1", ModelURI("customer-churn", Number(1))),
        ("model://customer-churn/1", ModelURI("customer-churn", Number(1))),
        ("model://customer-churn/latest", ModelURI("customer-churn", Latest())),
        ("model://customer-churn/production", ModelURI("customer-churn", Named("production"))),
        (f"model://customer-churn/{DIGEST}", ModelURI("customer-churn", ByDigest(DIGEST))),
        ("model://customer-churn/", ModelURI("customer-churn")),
        ("model://m/v2/weights/a%20b.bin", ModelURI("m", Number(2), "weights/a b.bin")),
        ("model://m/latest/caf%C3%A9.txt", ModelURI("m", Latest(), "café.txt")),
        ("model://m/v2147483647", ModelURI("m", Number(2**31 - 1))),
        ("dataset://clicks/v7", DatasetURI("clicks", "v7")),
        ("dataset://clicks/1752839634.374847/a/b.csv", DatasetURI("clicks", "1752839634.374847", "a/b.csv")),
        ("dataset://clicks/latest", DatasetURI("clicks", "latest")),
        ("dataset://clicks/", DatasetURI("clicks")),
        ("datum://016b8e3f-f22c-c0ac-0000-0123456789ab", DatumURI("016b8e3f-f22c-c0ac-0000-0123456789ab")),
        ("datum://model-prod", DatumURI("model-prod")),
    ],
)
def test_grammar(text, uri):
    """Each form of URI is the value that the design says."""
    assert parse_uri(text) == uri


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("model://churn/v0", "v0"),
        ("model://Churn/v1", "Churn"),
        ("model://churn/v1/a b", " "),
        ("model://churn/v1/a%2", "%2"),
        ("model://churn/v1/%ff/x", "%ff"),
        ("model://churn/v1/x%2Fy", "x%2Fy"),
        ("model://churn/v1/../v2", "../v2"),
        ("model://churn/v1//x", ""),
        ("model://churn/v1/", "/"),
        ("model://churn//v1", "/"),
        ("model://churn/v1?x", "v1?x"),
        ("model://churn/{parameter:v}", "{parameter:v}"),
        ("model://latest/v1", "latest"),
        (f"model://churn/{DIGEST.upper()}", DIGEST.upper()),
        (f"model://churn/{DIGEST[:-1]}", DIGEST[:-1]),
        ("dataset://x y/v1", "x y"),
        ("dataset://x/a~", "a~"),
        ("datum://x/y", "x/y"),
        ("datum://", ""),
        ("file:///etc/passwd", "file:"),
        ("MODEL://churn/v1", "MODEL:"),
        ("models:/churn/1", "models:"),
        ("", ""),
    ],
)
def test_the_caret_is_under_the_fault(text, fault):
    """Errors show a caret under the fault."""
    with pytest.raises(InvalidURI) as caught:
        parse_uri(text)
    start, end = caught.value.span
    assert text[start:end] == fault
    if text:
        *_, line, carets = str(caught.value).splitlines()
        if text.isprintable() and len(text) < 60:
            assert line == f"  {text}"
            assert carets == "  " + " " * start + "^" * max(1, end - start)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("model://churn", "model://churn/latest"),
        ("models:/churn/1", "MLflow"),
        ("model:/churn/v1", "model://"),
        (" model://churn/v1", "Remove"),
        ("model://churn/Latest", "'latest'"),
        ("model://churn/v1/a b", "%20"),
        ("model://churn/v1/100%", "%25"),
        ("model://{name}/v1", "Fill it in"),
        ("model://Customer Churn/v1", "customer-churn"),
        ("dataset://clicks", "dataset://clicks/"),
    ],
)
def test_errors_say_what_to_write(text, advice):
    """An error names what to do next."""
    with pytest.raises(InvalidURI) as caught:
        parse_uri(text)
    assert advice in str(caught.value).splitlines()[0]


# --- references


@pytest.mark.parametrize(
    ("text", "kind", "advice"),
    [
        ("churn", "version", "model://churn/latest"),
        ("model://churn/", "version", "model://churn/latest"),
        ("model://churn", "version", "model://churn/latest"),
        ("churn/v3", "model", "'churn'"),
        ("model://churn/v3", "model", "'churn'"),
        ("model://model/v3", "model", "'model'"),
        ("churn/v3/model.pkl", "version", "model://churn/"),
        ("churn/", "any", "latest"),
        ("dataset://churn/v3", "any", "model://"),
        ("datum://x", "any", "model://"),
        ("s3://bucket/x", "any", "model://"),
        ("/churn", "any", "name"),
    ],
)
def test_refs_of_another_kind(text, kind, advice):
    """A reference of the wrong kind is refused with what to write."""
    with pytest.raises(InvalidURI) as caught:
        parse_ref(text, kind=kind)
    assert advice in str(caught.value)


def test_ref_to_a_file():
    """A whole URI may name a file of a version."""
    assert parse_ref("model://churn/v3/model.pkl").path == "model.pkl"


@pytest.mark.parametrize(
    ("selector", "moves"),
    [
        (Number(1), False),
        (Latest(), True),
        (Named("production"), True),
        (ByDigest(DIGEST), True),
        (None, False),
    ],
)
def test_moving(selector, moves):
    """All selectors but a number may mean another version tomorrow."""
    assert is_moving(selector) is moves


# --- what cannot be built


@pytest.mark.parametrize(
    "build",
    [
        lambda: ModelURI("../x"),
        lambda: ModelURI("x", "v3"),
        lambda: ModelURI("x", 3),
        lambda: ModelURI("x", None, "a"),
        lambda: ModelURI("x", Latest(), "../a"),
        lambda: Number(0),
        lambda: Number(True),
        lambda: Number("1"),
        lambda: Named("v3"),
        lambda: Named("latest"),
        lambda: ByDigest("sha256:abc"),
        lambda: ByDigest(None),
        lambda: DatasetURI("x", "a/b"),
        lambda: DatasetURI("x", None, "a"),
        lambda: DatumURI("../x"),
        lambda: DatumURI(None),
    ],
)
def test_no_value_that_does_not_print(build):
    """A URI that could not be read back cannot be built."""
    with pytest.raises(InvalidName):
        build()


# --- secrets


@pytest.mark.parametrize(
    "text",
    [
        "model://user:hunter2@churn/v1",
        "model://user:hunt/hunter2@churn/v1",
        "postgresql://user:hunter2@db/models",
        "postgresql://user:hunt@hunter2@db/models",
        "https://x/y?token=hunter2",
        "s3://key:hunter2@bucket/x",
        "user:hunter2@churn/v1",
        "models:user:hunter2@churn",
    ],
)
def test_no_password_in_an_error(text):
    """What may be a password or a token is in no part of the error, its facts or its traceback."""
    for parse in (parse_uri, parse_ref, ModelURI.parse):
        with pytest.raises(InvalidURI) as caught:
            parse(text)
        shown = "".join(traceback.format_exception(caught.value)[-3:]) + repr(caught.value.facts)
        assert "hunter2" not in shown
        assert caught.value.__context__ is None
        assert caught.value.span == (0, len(caught.value.source))


# --- the catalogue


@pytest.mark.parametrize("case", cases("model_uri"))
def test_hostile_uris(case: Case):
    """Each hostile URI is refused or taken as the catalogue says; state is the registry's to test."""
    value = case.value
    start = time.process_time()
    error = refusal(ModelURI.parse, value, InvalidURI)
    assert time.process_time() - start < 0.5
    assert error is None or len(str(error)) < 800
    if not (case.setup or "").startswith("all versions"):
        assert case.allows("accept" if error is None else "reject"), case.why


@pytest.mark.parametrize("case", cases("version_string"))
def test_hostile_versions(case: Case):
    """Each hostile version is refused or taken as the catalogue says: alone, in a URI, in a short form."""
    value = case.value
    ways = [parse_selector]
    if isinstance(value, str):
        ways += [
            lambda t: parse_ref(f"customer-churn/{t}"),
            lambda t: parse_ref(f"model://customer-churn/{t}"),
        ]
    for way in ways:
        error = refusal(way, value, InvalidURI)
        assert error is None or len(str(error)) < 800
        assert case.allows("accept" if error is None else "reject"), case.why
