"""The manifest: canonical bytes, one digest, and refusal of everything else."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhub_sdk.domain.entities import File
from modelhub_sdk.errors import InvalidDocument
from modelhub_sdk.formats import manifest

A = "sha256:" + "a" * 64
B = "sha256:" + "b" * 64

segments = st.text(st.sampled_from("abcXYZ019_-é語🙂"), min_size=1, max_size=6)
paths = st.lists(segments, min_size=1, max_size=2).map("/".join).filter(lambda p: p.lower() != "con")
digests = st.binary(min_size=32, max_size=32).map(lambda b: "sha256:" + b.hex())


@st.composite
def file_sets(draw: st.DrawFn) -> list[File]:
    top = draw(st.lists(paths.map(lambda p: "d/" + p.replace("/", "_")), unique=True, max_size=6))
    return [File(path, draw(st.integers(0, 2**63 - 1)), draw(digests)) for path in top]


def test_canonical_bytes_are_pinned() -> None:
    """The bytes of a manifest are a format: they never change."""
    files = [File("b/ö.bin", 0, B), File("a", 12, A)]
    assert manifest.canonical(files) == (
        b'[{"algorithm":"sha256","digest":"' + b"a" * 64 + b'","name":"a","size":12},'
        b'{"algorithm":"sha256","digest":"' + b"b" * 64 + b'","name":"b/\xc3\xb6.bin","size":0}]'
    )
    assert manifest.digest(files) == "sha256:" + hashlib.sha256(manifest.canonical(files)).hexdigest()
    assert manifest.canonical([]) == b"[]"


def test_order_is_by_code_point() -> None:
    """Paths are ordered by code point, not by locale, UTF-16 or folder."""
    names = ["a/b", "a-b", "a.b", "B", "\U0001f642", "\uff61", "é", "z"]
    listed = [row["name"] for row in json.loads(manifest.canonical([File(n, 1, A) for n in names]))]
    assert listed == ["B", "a-b", "a.b", "a/b", "z", "é", "\uff61", "\U0001f642"]


def test_resources_are_those_of_the_signing_format() -> None:
    """A signature's resources have name, digest, algorithm, and no size."""
    assert manifest.resources([File("b", 1, B), File("a", 2, A)]) == [
        {"algorithm": "sha256", "digest": "a" * 64, "name": "a"},
        {"algorithm": "sha256", "digest": "b" * 64, "name": "b"},
    ]


@given(file_sets(), st.randoms())
def test_equal_files_have_equal_manifests(files: list[File], random: object) -> None:
    """Encoding does not depend on the order given, and decoding gives the files back."""
    shuffled = list(files)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    data = manifest.encode(files)
    assert manifest.encode(shuffled) == data
    assert manifest.decode(data) == manifest.ordered(files)


@given(file_sets().filter(bool), st.data())
def test_torn_manifests_are_refused(files: list[File], data: st.DataObject) -> None:
    """A manifest cut anywhere is an error, never a shorter manifest."""
    whole = manifest.encode(files)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(InvalidDocument):
        manifest.decode(whole[:cut])


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    """Whatever the bytes are: files, or InvalidDocument."""
    try:
        files = manifest.decode(data)
    except InvalidDocument:
        return
    assert manifest.encode(files) == data


def row(**changes: object) -> dict[str, object]:
    return {"algorithm": "sha256", "digest": "a" * 64, "name": "a", "size": 1} | changes


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param({}, id="not a list"),
        pytest.param([1], id="not objects"),
        pytest.param([{"name": "a"}], id="keys missing"),
        pytest.param([row(extra=1)], id="key too many"),
        pytest.param([row(digest="A" * 64)], id="upper-case hex"),
        pytest.param([row(digest="a" * 63)], id="short digest"),
        pytest.param([row(digest="sha256:" + "a" * 64)], id="prefixed digest"),
        pytest.param([row(digest=5)], id="digest not text"),
        pytest.param([row(algorithm="md5")], id="other algorithm"),
        pytest.param([row(size=-1)], id="negative size"),
        pytest.param([row(size=2**63)], id="size beyond 63 bits"),
        pytest.param([row(size=2**70)], id="size 2**70"),
        pytest.param([row(size=True)], id="size a bool"),
        pytest.param([row(size=1.0)], id="size a float"),
        pytest.param([row(size=None)], id="size missing"),
        pytest.param([row(name="../x")], id="climbs out"),
        pytest.param([row(name="/etc/passwd")], id="absolute"),
        pytest.param([row(name="a\\b")], id="backslash"),
        pytest.param([row(name="a\0b")], id="NUL"),
        pytest.param([row(name="\ud800")], id="surrogate"),
        pytest.param([row(name="")], id="empty"),
        pytest.param([row(name="a/./b")], id="dot"),
        pytest.param([row(name="a//b")], id="empty segment"),
        pytest.param([row(name="a/b/..")], id="climbs up"),
        pytest.param([row(name="a/" * 3000 + "b")], id="too long"),
        pytest.param([row(name=7)], id="name not text"),
        pytest.param([row(name="b"), row(name="a")], id="out of order"),
        pytest.param([row(name="a"), row(name="a")], id="twice"),
    ],
)
def test_bad_manifests_are_refused(rows: object) -> None:
    """Every kind of bad content is InvalidDocument with the reason among its problems."""
    with pytest.raises(InvalidDocument) as caught:
        manifest.decode(json.dumps(rows, separators=(",", ":"), sort_keys=True).encode())
    assert caught.value.problems
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "names",
    [
        ["C:x"],
        ["con", "what?.bin"],
        ["dot.", "sub/.git/config"],
        ["%2e%2e"],
        ["a", "a/b"],
        ["e\u0301", "\u00e9"],
        ["left\u200bright"],
    ],
)
def test_what_only_taste_forbids_is_read_and_not_written(names: list[str]) -> None:
    """A stored manifest with names that no release takes today is read; none is made of them."""
    files = tuple(File(name, 1, A) for name in names)
    assert manifest.decode(manifest.canonical(files)) == files
    with pytest.raises(InvalidDocument):
        manifest.encode(files)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[",
        b"\xff",
        b"[1e999]",
        b"[" * 100_000,
        b'[{"size":' + b"9" * 5000 + b"}]",
        b"\xef\xbb\xbf[]",
        b"[] ",
    ],
)
def test_odd_bytes_are_refused(data: bytes) -> None:
    """Not JSON, too deep, too long a number, a byte-order mark, a blank too many: refused."""
    with pytest.raises(InvalidDocument):
        manifest.decode(data)


def test_a_second_spelling_is_refused() -> None:
    """The same files written otherwise would have another digest, and are not read."""
    data = manifest.encode([File("é", 1, A)])
    with pytest.raises(InvalidDocument, match="canonical"):
        manifest.decode(json.dumps(json.loads(data), separators=(",", ":")).encode())
    with pytest.raises(InvalidDocument, match="canonical"):
        manifest.decode(data.replace(b":1}", b": 1}"))


def test_encode_checks_too() -> None:
    """Nothing is written that could not be read back."""
    for file in (
        File("../a", 1, A),
        File("a", -1, A),
        File("a", 1, "sha256:xyz"),
        File("a", 1, "md5:" + "a" * 64),
    ):
        with pytest.raises(InvalidDocument):
            manifest.encode([file])


@pytest.mark.parametrize(
    "text", ["", "sha256:", "a" * 64, "SHA256:" + "a" * 64, A + "\n", "sha256:" + "g" * 64, None, 5]
)
def test_is_digest_takes_one_spelling(text: object) -> None:
    """A digest has exactly one spelling."""
    assert manifest.is_digest(A)
    assert not manifest.is_digest(text)
