"""Sidecars: every form that training scripts write, and everything else without an exception."""

from __future__ import annotations

import json
import math
import os
import pickle
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelhub_sdk.domain.names import check_path
from modelhub_sdk.domain.uri import DatasetURI, ModelURI, Number
from modelhub_sdk.domain.values import Frozen, from_json, to_json
from modelhub_sdk.errors import InvalidName
from modelhub_sdk.formats.sidecar import (
    MAX_FILE,
    MAX_LINE,
    MAX_LINES,
    MAX_PROBLEMS,
    DatasetAnnotation,
    FileMetadata,
    ModelAnnotation,
    Sidecars,
    merge,
    pairs,
    parse_jsonl,
    parse_sidecar,
)
from tests.support.hostile import Case, cases

CHURN = ModelURI("customer-churn")
MODELS, DATASETS = "valohai.model-versions", "valohai.dataset-versions"


def lines(*objects) -> bytes:
    """Return a jsonl with one line for each object, or for each text as it is."""
    return b"".join((o if isinstance(o, str) else json.dumps(o)).encode() + b"\n" for o in objects)


def about(metadata, file="model.pkl"):
    return {"file": file, "metadata": metadata}


def beside(metadata) -> Sidecars:
    """Return what a sidecar of model.pkl with this content says."""
    data = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    return parse_sidecar(data, file="model.pkl", source="model.pkl.metadata.json")


def only(found: Sidecars) -> FileMetadata:
    """Return the one entry of *found*, which has no problems."""
    assert found.problems == ()
    (entry,) = found.entries
    return entry


def models(value) -> tuple[ModelAnnotation, ...]:
    """Return the annotations that *value* makes without a problem, the same in both forms of sidecar."""
    entry = only(beside({MODELS: value}))
    assert only(parse_jsonl(lines(about({MODELS: value})))).models == entry.models
    return entry.models


def problem(found: Sidecars):
    """Return the one problem of *found*."""
    (one,) = found.problems
    return one


# --- model annotations, every form


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (["model://customer-churn/"], [ModelAnnotation(CHURN)]),
        ("model://customer-churn/", [ModelAnnotation(CHURN)]),
        (["model://customer-churn"], [ModelAnnotation(CHURN)]),
        (["model://customer-churn/v7"], [ModelAnnotation(ModelURI("customer-churn", Number(7)))]),
        (["model://customer-churn/7"], [ModelAnnotation(ModelURI("customer-churn", Number(7)))]),
        (["model://a/", "model://b/"], [ModelAnnotation(ModelURI("a")), ModelAnnotation(ModelURI("b"))]),
        ([], []),
        ([{"model_uri": "model://a/"}], [ModelAnnotation(ModelURI("a"))]),
        ({"model_uri": "model://a/"}, [ModelAnnotation(ModelURI("a"))]),
        (
            [
                {
                    "model_uri": "model://a/",
                    "model_version_tags": ["x", "y", "x"],
                    "model_release_note": "# New\n",
                }
            ],
            [ModelAnnotation(ModelURI("a"), ("x", "y"), "# New\n")],
        ),
        (
            {"model_uri": "model://a/", "model_version_tags": "x", "model_release_note": None},
            [ModelAnnotation(ModelURI("a"), ("x",))],
        ),
        ([{"model_uri": "model://a/", "model_version_tags": None}], [ModelAnnotation(ModelURI("a"))]),
        (
            ["model://b/", {"model_uri": "model://a", "model_version_tags": []}],
            [ModelAnnotation(ModelURI("b")), ModelAnnotation(ModelURI("a"))],
        ),
    ],
)
def test_model_annotations(value, found):
    """All forms in VALOHAI.md; a lone string or object where a list belongs is accepted."""
    assert models(value) == tuple(found)


def test_one_uri_twice_is_one_version():
    """The same URI twice makes one annotation: tags united, different notes joined."""
    value = [
        "model://a/",
        {"model_uri": "model://a", "model_version_tags": ["x", "y"], "model_release_note": "one"},
        {"model_uri": "model://a/", "model_version_tags": ["y", "z"], "model_release_note": "two"},
        {"model_uri": "model://a/", "model_release_note": "one"},
    ]
    assert models(value) == (ModelAnnotation(ModelURI("a"), ("x", "y", "z"), "one\n\ntwo"),)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "null"),
        (7, "a number"),
        ([[]], "an array"),
        ([None], "null"),
        ([True], "true"),
        ("", "scheme"),
        ("customer-churn", "scheme"),
        ("model://", "empty"),
        ("model://Churn/", "churn"),
        ("dataset://churn/v1", "model://"),
        ("http://127.0.0.1/", "http"),
        ("model://churn/latest", "model://churn/ for a new version"),
        ("model://churn/production", "only be read"),
        ("model://churn/sha256:" + "0" * 64, "only be read"),
        ("model://churn/v1/model.pkl", "path"),
        ("model://churn/v0", "version number"),
        ({}, "model_uri"),
        ({"uri": "model://x/"}, "model_uri"),
        ({"model_uri": None}, "null"),
    ],
)
def test_bad_model_annotations(value, says):
    """A bad annotation is a problem with its place; the file, its properties and the others stay."""
    found = beside(
        {
            "acc": 0.9,
            MODELS: [value, "model://good/"] if not isinstance(value, list) else [*value, "model://good/"],
        }
    )
    assert found.problems
    assert all(p.key.startswith(f"{MODELS}[0]") and p.line == 1 and p.column == 14 for p in found.problems)
    assert says in " ".join(p.message for p in found.problems)
    (entry,) = found.entries
    assert entry.properties == {"acc": 0.9}
    assert entry.models == (ModelAnnotation(ModelURI("good")),)


@pytest.mark.parametrize(
    ("extra", "kept"),
    [
        ({"model_version_tags": ["a", 7, " b", "c"]}, ModelAnnotation(CHURN, ("a", "c"))),
        ({"model_version_tags": {"a": 1}}, ModelAnnotation(CHURN)),
        ({"model_release_note": 7}, ModelAnnotation(CHURN)),
        ({"model_release_note": "\ud800"}, ModelAnnotation(CHURN)),
        ({"status": "approved", "owner": "root"}, ModelAnnotation(CHURN)),
    ],
)
def test_bad_details_of_an_annotation(extra, kept):
    """A bad tag or note, or a key that annotations do not have, costs only itself."""
    found = beside({MODELS: [{"model_uri": "model://customer-churn/", **extra}]})
    assert found.problems
    assert found.entries[0].models == (kept,)


# --- dataset annotations, alias, tags


def test_dataset_annotations():
    """Both forms of VALOHAI.md, with every key, null for `from`, and keys that nobody documented."""
    full = {
        "uri": "dataset://my-dataset/v3", "from": "dataset://my-dataset/v2", "start_fresh": False,
        "exclude": ["bad.csv"], "targeting_aliases": ["production", "latest"], "valohai.tags": ["dev"],
        "packaging": True, "associated_project_ids": ["016b8e3f-f22c-c0ac-0000-0123456789ab"], "metadata": {"a": [1]},
    }  # fmt: skip
    value = ["dataset://a/1752839634.374847", full, {"uri": "dataset://b/v1", "from": None}]
    assert only(beside({DATASETS: value})).datasets == (
        DatasetAnnotation(DatasetURI("a", "1752839634.374847")),
        DatasetAnnotation(
            DatasetURI("my-dataset", "v3"),
            from_="dataset://my-dataset/v2",
            exclude=("bad.csv",),
            targeting_aliases=("production", "latest"),
            tags=("dev",),
            packaging=True,
            associated_project_ids=("016b8e3f-f22c-c0ac-0000-0123456789ab",),
            extra=Frozen({"metadata": Frozen({"a": (1,)})}),
        ),
        DatasetAnnotation(DatasetURI("b", "v1")),
    )
    assert only(beside({DATASETS: "dataset://a/v1"})).datasets == (DatasetAnnotation(DatasetURI("a", "v1")),)
    assert only(beside({DATASETS: {"uri": "dataset://a/v1", "start_fresh": True}})).datasets[0].start_fresh


@pytest.mark.parametrize(
    "value",
    [
        "dataset://Dataset/v1",
        "dataset://a",
        "dataset://a/",
        "dataset://a/latest",
        "dataset://a/v1/x",
        "model://a/",
        7,
        None,
        {},
        {"uri": 7},
        {"uri": "dataset://a/v1", "from": "model://a/"},
        {"uri": "dataset://a/v1", "exclude": 7},
        {"uri": "dataset://a/v1", "from": "dataset://a/"},
        {"uri": "dataset://a/v1", "start_fresh": "yes"},
    ],
)
def test_bad_dataset_annotations(value):
    """A bad annotation, or one that would take other files than were meant, is a problem and makes nothing."""
    found = beside({DATASETS: [value, "dataset://good/v1"]})
    assert problem(found).key.startswith(f"{DATASETS}[0]")
    assert [d.uri.name for d in found.entries[0].datasets] == ["good"]


def test_one_dataset_twice():
    """The same dataset version twice is one; what was first counts if they differ."""
    assert len(only(beside({DATASETS: ["dataset://a/v1", "dataset://a/v1"]})).datasets) == 1
    found = beside({DATASETS: ["dataset://a/v1", {"uri": "dataset://a/v1", "packaging": True}]})
    assert "first" in problem(found).message
    assert found.entries[0].datasets == (DatasetAnnotation(DatasetURI("a", "v1")),)


def test_alias():
    """The alias is a single string; a list of one occurs in the wild; null is none."""
    assert only(beside({"valohai.alias": "model-prod"})).alias == "model-prod"
    assert only(beside({"valohai.alias": ["production-model"]})).alias == "production-model"
    assert only(beside({"valohai.alias": None})).alias is None
    for bad in (["a", "b"], [], 7, "A b", "", {"a": 1}):
        found = beside({"valohai.alias": bad})
        assert problem(found).key == "valohai.alias"
        assert found.entries[0].alias is None


def test_tags():
    """Tags are a list of strings, or a lone one; a bad tag costs only itself."""
    assert only(beside({"valohai.tags": ["a", "ü", "a"]})).tags == ("a", "ü")
    assert only(beside({"valohai.tags": "a"})).tags == ("a",)
    assert only(beside({"valohai.tags": None})).tags == ()
    found = beside({"valohai.tags": ["a", 7, "b\n", "c"]})
    assert found.entries[0].tags == ("a", "c")
    assert [p.key for p in found.problems] == ["valohai.tags[1]", "valohai.tags[2]"]


# --- properties


def test_other_keys_are_properties():
    """Other keys become the file's properties, JSON values as they are, whatever they are called."""
    content = {
        "experiment_id": "exp-042", "validation_passed": True, "quality_score": 0.95, "none": None, "": 1,
        "A": 1, "a": 2,
        "status": "approved", "approved_by": "root", "__class__": "os.system", "vhic_group": "g", "valohai.x-y": 1,
        "big": 123456789012345678901234567890, "list": [1, [2, {"k": []}]], "text": "x\u2028\u0085\x0c",
    }  # fmt: skip
    entry = only(beside(content))
    assert {k: v for k, v in entry.properties.items() if k != "list"} == {
        k: v for k, v in content.items() if k != "list"
    }
    assert entry.properties["list"] == (1, (2, Frozen({"k": ()})))
    assert (entry.models, entry.datasets, entry.alias, entry.tags) == ((), (), None, ())
    assert hash(entry) == hash(only(beside(content)))


def test_not_finite():
    """NaN and the infinities, which Python's json writes, are kept as floats."""
    entry = only(beside(b'{"a": NaN, "b": [-Infinity, Infinity]}'))
    assert math.isnan(entry.properties["a"])
    assert entry.properties["b"] == (-math.inf, math.inf)
    assert entry == only(beside(b'{"a": NaN, "b": [-Infinity, Infinity]}'))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('"\\ud800"', "surrogate"),
        ('["\\u0000"]', "NUL"),
        ('{"\\udfff": 1}', "surrogate"),
        ("9" * 4301, "4300 digits"),
        ("[" * 33 + "]" * 33, "32 levels"),
    ],
)
def test_values_that_cannot_be_kept(value, says):
    """A value that no store keeps is a problem that names its key; the other keys stay."""
    found = beside(f'{{"a": 1, "bad": {value}, "b": 2}}'.encode())
    assert says in problem(found).message
    assert (problem(found).key, problem(found).line, problem(found).column) == ("bad", 1, 10)
    assert found.entries[0].properties == {"a": 1, "b": 2}


@pytest.mark.parametrize("value", ["9" * 4300, "-" + "9" * 4300, "[" * 32 + "]" * 32, '"\\ud83d\\ude00"'])
def test_values_at_the_limit(value):
    """Integers of 4,300 digits, 32 levels and escaped pairs are kept."""
    assert only(beside(f'{{"a": {value}}}'.encode())).properties["a"] == from_json(json.loads(value))


def test_misspelt_annotation():
    """A key that is nearly an annotation stays a property, and the report asks."""
    found = beside({"valohai.model-version": ["model://a/"]})
    assert "'valohai.model-versions'" in problem(found).message
    assert found.entries[0].properties == {"valohai.model-version": ("model://a/",)}


# --- lines and files


def test_lines_are_split_at_newlines_alone():
    r"""Lines end at \n bytes; a \r before one is blank; NEL, LS, FF in strings are text."""
    data = b"\xef\xbb\xbf\r\n  \n" + lines(about({"a": 1})).replace(b"\n", b"\r\n")
    data += '{"file": "b", "metadata": {"t": "x\u0085\u2028\u2029y"}}'.encode()
    found = parse_jsonl(data)
    assert found.problems == ()
    assert [(e.file, e.line) for e in found.entries] == [("model.pkl", 3), ("b", 4)]
    assert found.entries[1].properties == {"t": "x\u0085\u2028\u2029y"}


def test_a_bad_line_costs_only_itself():
    """A bad annotation never stops the others: each bad line is a problem with line and column."""
    found = parse_jsonl(
        lines(
            about({}, "a"), '{"file": "b", "meta', "null", about({}, "../c"), about([], "d"), about({}, "e")
        )
        + b'{"file": "\xfc", "metadata": {}}\n'
        + lines(about({}, "f")),
        source="out/valohai.metadata.jsonl",
    )
    assert [e.file for e in found.entries] == ["a", "e", "f"]
    assert [(p.line, p.column) for p in found.problems] == [(2, 15), (3, None), (4, 2), (5, 15), (7, 11)]
    assert {p.file for p in found.problems} == {"out/valohai.metadata.jsonl"}
    assert str(found.problems[0]).startswith("out/valohai.metadata.jsonl:2:15: ")


def test_place_in_a_sidecar_of_several_lines():
    """Problems in a sidecar have the line and column of the key, or of the fault in the JSON."""
    found = beside(b'{\n  "a": 1,\n  "valohai.tags": [7]\n}\n')
    assert (problem(found).line, problem(found).column) == (3, 3)
    found = beside(b'{\n  "a": 1,,\n}')
    assert (problem(found).line, problem(found).column) == (2, 10)
    found = beside(b'{\n  "a": "\xff"}')
    assert (problem(found).line, problem(found).column) == (2, 9)


@pytest.mark.parametrize(
    ("file", "path"),
    [("./model.pkl", "model.pkl"), ("a/./b", "a/b"), ("././a/b", "a/b"), ("2024-11-25/x y.txt",) * 2],
)
def test_one_spelling_of_a_file(file, path):
    """A path has one spelling; './' in it is dropped."""
    assert only(parse_jsonl(lines(about({"a": 1}, file)))).file == path


@pytest.mark.parametrize(
    "file",
    [
        "",
        ".",
        "./",
        "..",
        "../x",
        "/valohai/outputs/x",
        ".//x",
        "a//b",
        "a\\b",
        "C:x",
        "s3://b/k",
        "x\x00",
        "\ud800",
        "*",
        None,
        7,
        ["x"],
        {"x": 1},
        "a/",
        "valohai.metadata.jsonl",
        "x" * 5000,
        "./" * 5000 + "x",
    ],
)
def test_bad_files(file):
    """What is no path in the outputs is a problem, and no entry."""
    found = parse_jsonl(lines(about({}, file), about({}, "good")))
    assert problem(found).line == 1
    assert problem(found).key == "file"
    assert [e.file for e in found.entries] == ["good"]


def test_repeated_keys():
    """A repeated key is a problem, the last value counts; of `file` or `metadata` the line is refused."""
    found = beside(b'{"a": 1, "b": {"c": 1, "c": 2}, "a": 3}')
    assert sorted(p.key for p in found.problems) == ["a", "c"]
    assert found.entries[0].properties == {"a": 3, "b": {"c": 2}}
    for line in (
        '{"file": "a", "file": "b", "metadata": {}}',
        '{"file": "a", "metadata": {}, "metadata": {}}',
    ):
        found = parse_jsonl(lines(line))
        assert "more than once" in problem(found).message
        assert found.entries == ()


def test_other_keys_of_a_line():
    """A key beside `file` and `metadata` is a problem; the line counts."""
    found = parse_jsonl(lines({"file": "a", "metadata": {"x": 1}, "tags": []}))
    assert problem(found).key == "tags"
    assert found.entries[0].properties == {"x": 1}
    assert "'metadata'" in problem(parse_jsonl(lines({"file": "a"}))).message


def test_several_lines_about_one_file():
    """Annotations and tags add up; of two values of a property the later counts, and that is a problem."""
    found = parse_jsonl(
        lines(
            about({"a": 1, "b": 1, MODELS: ["model://x/"], "valohai.tags": ["t"], "valohai.alias": "one"}),
            about({}, "other"),
            about(
                {"a": 1, "b": True, MODELS: "model://y/", "valohai.tags": "u", "valohai.alias": "two"},
                "./model.pkl",
            ),
        )
    )
    assert [(p.key, p.line) for p in found.problems] == [("b", 3), ("valohai.alias", 3)]
    entry = found.entries[0]
    assert (entry.file, entry.line, entry.properties) == ("model.pkl", 1, {"a": 1, "b": True})
    assert [str(m.uri) for m in entry.models] == ["model://x/", "model://y/"]
    assert (entry.tags, entry.alias) == (("t", "u"), "two")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings(encoding):
    """UTF-16 is told as such, once, and not a problem for each line."""
    data = lines(about({"a": 1}), about({"b": 1})).decode().encode(encoding)
    assert "UTF-8" in problem(parse_jsonl(data)).message
    assert "UTF-8" in problem(beside(data)).message


@pytest.mark.parametrize(
    "content", [b"", b"  ", b"[]", b'"x"', b"null", b"7", b"{", b"{} {}", b"{'a': 1}", b"a: 1"]
)
def test_no_object(content):
    """A sidecar that is no JSON object, an empty one too, is a problem and says nothing."""
    found = beside(content)
    assert problem(found).file == "model.pkl.metadata.json"
    assert found.entries == ()


def test_bom_of_a_sidecar():
    """A byte-order mark is accepted."""
    assert only(beside(b'\xef\xbb\xbf{"a": 1}')).properties == {"a": 1}


def test_messages_do_not_echo_a_foreign_file():
    """What is no JSON is not shown: it may be the target of a link."""
    found = beside(b"root:x:0:0:secret:/root:/bin/bash\n" * 3)
    assert "root" not in str(problem(found))


# --- limits


def test_limits():
    """Files, lines and counts have limits; what is over one is a problem, at once."""
    start = time.process_time()
    assert "bytes" in problem(parse_jsonl(b"x" * (MAX_FILE + 1))).message
    assert "bytes" in problem(beside(b"x" * (MAX_LINE + 1))).message
    assert "lines" in problem(parse_jsonl(b"\n" * (MAX_LINES + 1))).message
    found = parse_jsonl(b'{"file": "' + b"x" * MAX_LINE + b'"}\n' + lines(about({})))
    assert (problem(found).line, len(found.entries)) == (1, 1)
    assert time.process_time() - start < 2


def test_many_problems_are_counted():
    """A hundred problems are listed, the rest are counted."""
    found = parse_jsonl(b"x\n" * 5000 + lines(about({})))
    assert len(found.problems) == MAX_PROBLEMS + 1
    assert str(5000 - MAX_PROBLEMS) in found.problems[-1].message
    assert len(found.entries) == 1


def test_many_files():
    """A hundred thousand files with properties are read in seconds, a fifth of them in a fifth of those."""
    count = 100_000 if os.environ.get("THOROUGH_TESTS") else 20_000
    start = time.process_time()
    found = parse_jsonl(lines(*[about({"a": n, "valohai.tags": ["t"]}, f"d/f{n}") for n in range(count)]))
    assert found.problems == ()
    assert [e.properties["a"] for e in found.entries] == list(range(count))
    assert time.process_time() - start < 15 * count / 100_000


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b'{"a": ' + b"9" * 1_000_000 + b"}",
        b'{"a": 1.' + b"9" * 1_000_000 + b"}",
        b'{"a": 1e999999999}',
        b'{"valohai.tags": [' + b"7," * 500_000 + b"7]}",
        b'{"valohai.model-versions": [' + b",".join(b'"model://a/v%d"' % n for n in range(1, 30_000)) + b"]}",
        b"{" + b",".join(b'"valohai.x%d": 1' % n for n in range(100_000)) + b"}",
    ],
    ids=["arrays", "objects", "deep", "digits", "fraction", "exponent", "tags", "models", "keys"],
)
def test_absurd_sizes_are_quick(data):
    """Nothing in a sidecar takes more than linear time."""
    start = time.process_time()
    beside(data)
    parse_jsonl(b'{"file": "a", "metadata": ' + data + b"}")
    assert time.process_time() - start < 30  # a quadratic reader would need hours; coverage slows this one


# --- both files


def test_merge():
    """Both files for one output: merged key by key, the jsonl wins, a conflict is a problem."""
    jsonl = parse_jsonl(
        lines(
            about({"a": 1, "nan": math.nan, "b": [1], MODELS: ["model://x/"], "valohai.tags": ["s", "t"]}),
            about({"q": 1}, "other"),
        )
    )
    sidecar = beside({"a": 2, "nan": math.nan, "b": [1], "c": 3, MODELS: ["model://y/"], "valohai.tags": ["t", "s"],
                      "valohai.alias": "prod", DATASETS: "dataset://d/v1"})  # fmt: skip
    third = parse_sidecar(b'{"z": 1}', file="third", source="third.metadata.json")
    broken = parse_sidecar(b"{", file="other", source="other.metadata.json")
    found = merge(jsonl, [sidecar, third, broken])
    assert [e.file for e in found.entries] == ["model.pkl", "other", "third"]
    entry = found.entries[0]
    assert entry.properties["a"] == 1
    assert entry.properties["c"] == 3
    assert [str(m.uri) for m in entry.models] == ["model://x/"]
    assert (entry.alias, entry.tags, len(entry.datasets), entry.line) == ("prod", ("s", "t"), 1, 1)
    assert [(p.file, p.key) for p in found.problems] == [
        ("model.pkl.metadata.json", "a"),
        ("model.pkl.metadata.json", MODELS),
        ("other.metadata.json", None),
    ]


def test_merge_with_nothing():
    """Nothing is the neutral element."""
    jsonl = parse_jsonl(lines(about({"a": 1}), "x"))
    assert merge(jsonl, []) == jsonl
    assert merge(Sidecars(), [jsonl]).entries == jsonl.entries


def test_pairs():
    """A sidecar is one of a file that is there, spelled alike; all else is an output like any other."""
    paths = {
        "model.pkl", "model.pkl.metadata.json", "model.pkl.metadata.json.metadata.json", "alone.metadata.json",
        "Case.pkl", "case.pkl.metadata.json", "d/x.txt", "d/x.txt.metadata.json", ".metadata.json",
        "valohai.metadata.jsonl", "valohai.metadata.jsonl.metadata.json", "VALOHAI.METADATA.JSONL",
    }  # fmt: skip
    assert pairs(paths) == {"model.pkl.metadata.json": "model.pkl", "d/x.txt.metadata.json": "d/x.txt"}


# --- nothing raises

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(
    [
        MODELS,
        DATASETS,
        "valohai.alias",
        "valohai.tags",
        "file",
        "metadata",
        "model_uri",
        "model_version_tags",
        "model_release_note",
        "uri",
        "from",
        "start_fresh",
        "exclude",
        "targeting_aliases",
        "packaging",
        "a",
        "",
    ]
)
likely = st.sampled_from(
    ["model://a/", "model://a/v1", "model://a/latest", "dataset://a/v1", "x", "./x", "..", "\ud800"]
)
junk = st.recursive(
    likely | json_values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=15,
)
fragments = st.lists(
    st.sampled_from(
        [b'{"file": "a", "metadata": {', b'"', b"}", b"}}", b"\n", b"\r", b"\xff", b"\x00", b"\xef\xbb\xbf"]
    )
    | st.sampled_from([b'"valohai.tags": [', b"]", b",", b"1", b"NaN", b"\\ud800", b'"a": ', b"null"])
    | st.binary(max_size=4),
    max_size=30,
).map(b"".join)


def plain(value):
    """Return a kept value as the JSON it was."""
    if isinstance(value, Frozen):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def check_sane(found: Sidecars) -> None:
    """Check what holds for every result."""
    assert pickle.loads(pickle.dumps(found)) == found
    assert len({e.file for e in found.entries}) == len(found.entries)
    for entry in found.entries:
        hash(entry)
        assert (
            from_json(json.loads(json.dumps(to_json(entry.properties), allow_nan=False))) == entry.properties
        )
        for annotation in entry.models:
            assert annotation.uri.selector is None or isinstance(annotation.uri.selector, Number)
            assert annotation.uri.path is None
    for alert in found.problems:
        assert alert.message.isprintable()
        assert str(alert).encode()
        assert len(alert.message) < 1000
        assert alert.line is None or alert.line >= 1
        assert alert.column is None or alert.column >= 1


@given(st.one_of(st.binary(), fragments))
@example(b'{"file": "a", "metadata": {"valohai.model-versions": {"model_uri": {}}}}')
def test_no_bytes_raise(data):
    """The parser is pure: bytes in, a value with annotations and problems out, never an exception."""
    found = parse_jsonl(data, source="s")
    check_sane(found)
    for entry in found.entries:
        assert check_path(entry.file) == entry.file
    beside_it = parse_sidecar(data, file="a", source="a.metadata.json")
    check_sane(beside_it)
    check_sane(merge(found, [beside_it]))
    if data.strip(b" \t\r\n\xef\xbb\xbf"):
        assert beside_it.entries or beside_it.problems


@given(
    st.lists(
        st.fixed_dictionaries({"file": likely, "metadata": st.dictionaries(keys, junk, max_size=5)}) | junk,
        max_size=4,
    )
)
def test_no_structure_raises(objects):
    """Whatever JSON stands in the lines, each is an entry, or a problem, or both."""
    found = parse_jsonl(lines(*[json.dumps(o) for o in objects]))
    check_sane(found)
    assert len(found.entries) + len(found.problems) >= (1 if objects else 0)


@given(
    st.dictionaries(
        st.text(max_size=10).filter(lambda k: not k.startswith("valohai.")), json_values, max_size=5
    )
)
def test_properties_are_kept_or_named(content):
    """Every property is there with its value, or named in a problem."""
    found = beside(json.dumps(content).encode())
    (entry,) = found.entries
    lost = [key for key in content if key not in entry.properties]
    assert len(lost) == len(found.problems)
    for key, value in entry.properties.items():
        assert json.dumps(plain(value)) == json.dumps(json.loads(json.dumps(content[key])))


@given(st.lists(st.sampled_from(["a", "b/c", "./a", "d.txt"]), max_size=6), st.data())
def test_lines_and_sidecars_say_the_same(files, data):
    """One line about a file says what its own sidecar with the same object says."""
    for file in {f.removeprefix("./") for f in files}:
        content = data.draw(st.dictionaries(keys, junk, max_size=4))
        line = parse_jsonl(lines(json.dumps(about(content, file))))
        own = parse_sidecar(json.dumps(content).encode(), file=file, source="s")
        assert [(p.message, p.key) for p in line.problems] == [(p.message, p.key) for p in own.problems]
        (one,), (other,) = line.entries, own.entries
        assert (one.properties, one.models, one.datasets, one.alias, one.tags) == (
            other.properties, other.models, other.datasets, other.alias, other.tags,
        )  # fmt: skip


# --- the catalogue

NEEDS_A_FOLDER = {
    "sidecar_jsonl-036": "whether the file is missing is for ingest",
    "sidecar_jsonl-037": "whether the file is a folder is for ingest",
}


def is_bad_for_the_folder(case: Case) -> bool:
    """Whether the catalogue's answer depends on what else is on the disk."""
    return case.id in NEEDS_A_FOLDER or case.setup is not None or "missing file" in case.why


@pytest.mark.parametrize("case", cases("sidecar_jsonl"))
def test_hostile_jsonl(case: Case):
    """Each hostile jsonl is refused, taken or made harmless as the catalogue says."""
    value = case.value
    found = parse_jsonl(value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass"))
    for entry in found.entries:
        assert refused(entry.file) is False
    if not is_bad_for_the_folder(case) and case.expect != "neutralise":
        assert case.allows("reject" if found.problems else "accept"), (case.why, found.problems)


@pytest.mark.parametrize("case", cases("sidecar_file"))
def test_hostile_sidecar(case: Case):
    """Each hostile sidecar is refused, taken or made harmless as the catalogue says."""
    value = case.value
    found = beside(value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass"))
    if not is_bad_for_the_folder(case) and case.expect != "neutralise":
        assert case.allows("reject" if found.problems else "accept"), (case.why, found.problems)


def refused(path: str) -> bool:
    try:
        check_path(path)
    except InvalidName:
        return True
    return False


def test_neutralised_cases():
    """Self-approval is plain data; one URI twice is one version."""
    entry = only(beside({"status": "approved", "approved_by": "root"}))
    assert entry.properties == {"status": "approved", "approved_by": "root"}
    assert models(["model://customer-churn/", "model://customer-churn/"]) == (ModelAnnotation(CHURN),)
