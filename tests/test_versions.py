"""Versions: registering, numbers, idempotency, editing, what stands beside them, finding them again."""

from __future__ import annotations

import io
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelhub_sdk as hub
from modelhub_sdk import Registry

EVERY = pytest.mark.parametrize("reg", ["memory", "sqlite", "folder"], indirect=True)


def stored(reg: Registry) -> list[bytes]:
    root = Path(reg._core.artifacts().root or "")
    return sorted(p.read_bytes() for p in root.rglob("*") if p.is_file())


# --- registering


@EVERY
def test_register(reg: Registry):
    """The first registration makes the model and v1, pending, with all that was passed."""
    version = reg.register(
        "churn",
        {"model.pkl": b"weights", "conf/a.json": b"{}", "empty": b""},
        metrics={"auc": 0.91, "val": {"loss": 0.3}},
        params={"lr": 0.1, "layers": [1, 2], "name": "x", "none": None},
        tags=["a", "b", "a"],
        note="# First",
        fields={"ticket": "X-1", "gone": None},
        inputs=["dataset://clicks/v7", "s3://bucket/raw.csv", "model://base/v3"],
    )
    assert version == reg.version("churn/v1")
    assert (version.uri, str(version), version.model, version.number) == (
        "model://churn/v1", "model://churn/v1", "churn", 1,
    )  # fmt: skip
    assert (version.status, version.archived, version.purged, version.aliases) == (
        "pending",
        False,
        False,
        (),
    )
    assert [(f.path, f.size) for f in version.files] == [("conf/a.json", 2), ("empty", 0), ("model.pkl", 7)]
    assert version.size == 9
    assert version.metrics == {"auc": 0.91, "val.loss": 0.3}
    assert version.params == {"lr": 0.1, "layers": (1, 2), "name": "x", "none": None}
    assert (version.tags, version.note, version.fields) == (("a", "b"), "# First", {"ticket": "X-1"})
    assert version.inputs == ("dataset://clicks/v7", "s3://bucket/raw.csv", "model://base/v3")
    assert (version.created_by, version.created_at.tzinfo) == ("tester", UTC)
    assert (version.decided_at, version.decided_by, version.reason) == (None, None, None)
    assert version.digest.startswith("sha256:")
    assert reg.model("churn").created_by == "tester"
    assert pickle.loads(pickle.dumps(version)) == version


@EVERY
def test_numbers(reg: Registry):
    """Numbers start at 1, have no gaps and are never reused, also after a purge, per model."""
    for i in range(3):
        assert reg.register("a", {"f": b"%d" % i}).number == i + 1
    reg.purge("a/v3", "gone")
    reg.archive("a/v2")
    assert reg.register("a", {"f": b"next"}).number == 4
    assert reg.register("b", {"f": b"0"}).number == 1


@EVERY
def test_threads_share_a_handle(reg: Registry):
    """Registrations from several threads of one handle get all numbers, none twice."""
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda i: reg.register("m", {"f": b"%d" % (i % 3)}).number, range(24)))
    assert sorted(numbers) == list(range(1, 25))
    assert reg.verify()


def test_ways_to_name_files(reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file, a folder, a list, a mapping of paths, bytes and open files; the same bytes are stored once."""
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.pkl").write_bytes(b"weights")
    (folder / "sub" / "model.pkl").write_bytes(b"weights")
    (folder / "notes.tmp").write_bytes(b"scratch")
    monkeypatch.chdir(tmp_path)

    def paths(files: Any, **more: Any) -> list[str]:
        return [f.path for f in reg.register("m", files, **more).files]

    assert paths(folder / "model.pkl") == ["model.pkl"]
    assert paths("out", ignore=["*.tmp"]) == ["model.pkl", "sub/model.pkl"]
    assert paths(["out/model.pkl", "out/sub"]) == ["model.pkl", "sub/model.pkl"]
    assert paths({"a": folder / "model.pkl", "b": b"weights", "c": io.BytesIO(b"weights")}) == ["a", "b", "c"]
    assert paths({"tree": folder / "sub"}) == ["tree/model.pkl"]
    assert stored(reg) == [b"weights"]


def test_manifests(reg: Registry):
    """The digest is that of the files: the same files give the same one, whatever their order, metrics and model."""
    one = reg.register("a", {"x": b"1", "y": b"2"}, metrics={"auc": 1})
    two = reg.register("b", {"y": b"2", "x": b"1"})
    three = reg.register("a", {"x": b"2", "y": b"1"})
    assert one.digest == two.digest != three.digest
    assert reg.version(f"model://a/{one.digest}") == one


def test_many_files(reg: Registry):
    """Thousands of files stand in a document; reading, listing, resolving and verifying look the same."""
    files = {f"d{i % 7}/f{i:05}": b"%d" % (i % 10) for i in range(1500)}
    version = reg.register("m", files)
    assert [f.path for f in version.files] == sorted(files)
    assert reg.version("m/v1") == version
    assert reg.versions("m")[0] == version
    got = reg.resolve("m/v1", files="d3/*")
    assert len(got.files) == len([name for name in files if name.startswith("d3/")])
    assert reg.verify()


@pytest.mark.parametrize(
    "files", [{}, [], "nowhere.pkl", {"a": "nowhere.pkl"}, b"bytes", None, 7, {"a": 7}, {"../x": b""}]
)
def test_files_that_cannot_be_registered(
    reg: Registry, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing, a missing file, bytes without a name, a path that leads out: refused, and no model is left behind."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(hub.ModelHubError):
        reg.register("m", files)
    assert reg.models().total == 0
    assert stored(reg) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"metrics": {"a": complex(1, 1)}},
        {"metrics": {"a": {"b": {1: 1, "1": 2}}}},
        {"params": {("a",): 1}},
        {"tags": "a"},
        {"tags": [""]},
        {"note": 7},
        {"note": "\ud800"},
        {"fields": {"a": complex(1, 1)}},
        {"fields": [1]},
        {"inputs": ["clicks"]},
        {"inputs": "dataset://clicks/v1"},
        {"inputs": ["postgresql://u:secret@h/d"]},
        {"idempotency_key": 7},
        {"idempotency_key": "k" * 300},
    ],
    ids=str,
)
def test_arguments_are_checked_before_bytes_travel(reg: Registry, arguments: dict[str, Any]):
    """A wrong argument is an error of ours before a byte is stored or a model made."""
    with pytest.raises(hub.ModelHubError) as caught:
        reg.register("m", {"f": b"bytes"}, **arguments)
    assert "secret" not in str(caught.value)
    assert stored(reg) == []
    assert reg.models().total == 0


def test_required_fields(reg: Registry):
    """What configure(required_fields=) names must be there, and is asked for before a byte is stored."""
    reg.configure(required_fields=["ticket"])
    for fields in ({}, {"ticket": None}, {"Ticket": 1}):
        with pytest.raises(hub.InvalidDocument, match="ticket"):
            reg.register("m", {"f": b"bytes"}, fields=fields)
    assert stored(reg) == []
    assert reg.register("m", {"f": b"bytes"}, fields={"ticket": "X-1"}).number == 1


# --- idempotency


@EVERY
def test_idempotency_keys(reg: Registry):
    """The same key and content give the same version; other content is KeyReused; other models are apart."""
    arguments: dict[str, Any] = {"metrics": {"a": 1}, "note": "n", "fields": {"x": 1}, "tags": ["t"]}
    first = reg.register("m", {"f": b"1"}, idempotency_key="k", **arguments)
    before = reg.audit().total
    assert reg.register("m", {"f": b"1"}, idempotency_key="k", **arguments) == first
    assert reg.audit().total == before
    for change in (
        {"metrics": {"a": 2}},
        {"metrics": {"a": True}},
        {"metrics": {"a": 1.0}},
        {"note": "other"},
        {"fields": {"x": 2}},
        {"tags": ["u"]},
        {"params": {"p": 1}},
        {"inputs": ["datum://x"]},
    ):
        with pytest.raises(hub.KeyReused, match="v1") as caught:
            reg.register("m", {"f": b"1"}, idempotency_key="k", **(arguments | change))
        assert caught.value.seq == first.seq
    with pytest.raises(hub.KeyReused):
        reg.register("m", {"f": b"2"}, idempotency_key="k", **arguments)
    assert reg.register("other", {"f": b"1"}, idempotency_key="k").uri == "model://other/v1"
    assert reg.register("m", {"f": b"1"}, idempotency_key="k2").number == 2


def test_a_key_that_others_use_at_once(reg: Registry):
    """Eight threads with one key make one version."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: reg.register("m", {"f": b"1"}, idempotency_key="k"), range(8)))
    assert {v.number for v in found} == {1}
    assert reg.versions("m").total == 1


# --- values


NUMBERS = [0, -1, 2**53 + 1, -(2**63) - 1, 10**50, 0.1 + 0.2, -0.0, 1e308, 5e-324, True, math.inf, -math.inf]


@EVERY
def test_values_come_back(reg: Registry):
    """Integers of any size, floats to the last digit, -0.0, infinities, booleans, text: value and type."""
    given_values: dict[str, Any] = {f"n{i}": value for i, value in enumerate(NUMBERS)}
    given_values |= {"text": "", "null": "null", "one": "1", "emoji": "🐘", "nan": math.nan}
    reg.register("m", {"f": b"1"}, metrics=given_values, params=given_values, fields=given_values)
    version = reg.version("m/v1")
    for found in (version.metrics, version.params, version.fields):
        assert {k: (type(v), repr(v)) for k, v in found.items()} == {
            k: (type(v), repr(v)) for k, v in given_values.items()
        }


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=4), inner, max_size=3
        )
    ),
    max_leaves=6,
)


def typed(value: Any) -> Any:
    """*value* with its types, and NaN equal to itself; the order of keys is nothing."""
    if isinstance(value, dict):
        return sorted((key, typed(item)) for key, item in value.items())
    return (
        [typed(item) for item in value] if isinstance(value, tuple) else (type(value).__name__, repr(value))
    )


@settings(max_examples=15)
@given(value=JSON)
def test_any_field_comes_back(value: Any):
    """Whatever JSON value a field gets is read back the same, now and at the entry that set it."""
    with hub.open("memory://") as reg:
        version = reg.register(
            "m", {"f": b"1"}, fields={"k": value}, params={"k": value} if value != {} else {}
        )
        read = reg.at(version.seq).version("m/v1")
        assert typed(read.fields) == typed(version.fields)
        assert typed(read.params) == typed(version.params)
        assert reg.verify()


def test_metrics_that_are_no_numbers_match_nothing(reg: Registry):
    """NaN and infinities are kept, match no comparison, and sort last both ways."""
    for value in (math.nan, 0.5, math.inf, 0.7, None):
        reg.register("m", {"f": b"1"}, metrics={} if value is None else {"auc": value})
    assert [v.number for v in reg.versions("m", where="metrics.auc >= 0")] == [4, 2]
    assert [v.number for v in reg.versions("m", where="metrics.auc < 1000000000")] == [4, 2]
    assert [v.number for v in reg.versions("m", order_by="-metrics.auc")][:2] == [4, 2]
    assert [v.number for v in reg.versions("m", order_by="metrics.auc")][:2] == [2, 4]


# --- editing, and what stands beside


@EVERY
def test_edit_version(reg: Registry):
    """Texts, fields and tags change by the rules of edit_model; files, metrics and parameters never do."""
    first = reg.register("m", {"f": b"1"}, note="n", fields={"a": 1, "b": 2}, tags=["x"], metrics={"auc": 1})
    edited = reg.edit_version("m/v1", description="d", note="", fields={"b": None, "c": "3"}, add_tags=["y"])
    assert (edited.description, edited.note, edited.fields, edited.tags) == (
        "d",
        None,
        {"a": 1, "c": "3"},
        ("x", "y"),
    )
    assert (edited.files, edited.metrics, edited.created_at) == (first.files, first.metrics, first.created_at)
    assert reg.edit_version("m/v1", description="d") == edited
    with pytest.raises(hub.Conflict):
        reg.edit_version("m/v1", note="late", if_seq=first.seq)
    assert reg.edit_version("m/v1", note="now", if_seq=edited.seq).note == "now"
    assert reg.at(first.seq).version("m/v1") == first
    with pytest.raises(TypeError):
        reg.edit_version("m/v1", metrics={"auc": 2})  # type: ignore[call-arg]


def test_comments(reg: Registry):
    """Comments are dated, by their author, in order; an empty one is refused."""
    reg.register("m", {"f": b"1"})
    reg.comment("m/v1", "first\nline")
    version = reg.comment("m/v1", "second")
    assert [(c.text, c.by) for c in version.comments] == [("first\nline", "tester"), ("second", "tester")]
    for empty in ("", "  \n"):
        with pytest.raises(hub.InvalidDocument):
            reg.comment("m/v1", empty)


@EVERY
def test_evaluations(reg: Registry):
    """Later metrics are added with date, author, data and files, and overwrite nothing."""
    reg.register("m", {"f": b"1"}, metrics={"auc": 0.9})
    reg.add_evaluation(
        "m/v1", {"auc": 0.8}, data="dataset://test/v1", files={"report.txt": b"long"}, note="holdout"
    )
    version = reg.add_evaluation("m/v1", {"auc": 0.7})
    assert version.metrics == {"auc": 0.9}
    assert [(e.metrics["auc"], e.data, e.note, e.by) for e in version.evaluations] == [
        (0.8, "dataset://test/v1", "holdout", "tester"),
        (0.7, None, None, "tester"),
    ]
    assert [f.path for f in version.evaluations[0].files] == ["report.txt"]
    assert reg.verify()
    for metrics in ({}, None, {"a": 1j}):
        with pytest.raises(hub.InvalidDocument):
            reg.add_evaluation("m/v1", metrics)
    with pytest.raises(hub.NotFound):
        reg.add_evaluation("m/v9", {"a": 1}, files={"f": b"never stored"})
    assert b"never stored" not in stored(reg)


def test_attachments(reg: Registry, tmp_path: Path):
    """A path, bytes or a figure stands beside the version, not in its manifest, and is read back verified."""
    first = reg.register("m", {"f": b"1"})
    (tmp_path / "roc.png").write_bytes(b"png")

    class Figure:
        def savefig(self, where: str) -> None:
            Path(where).write_bytes(b"drawn " + Path(where).suffix.encode())

    reg.attach("m/v1", str(tmp_path / "roc.png"))
    reg.attach("m/v1", "plots/fig.svg", Figure())
    version = reg.attach("m/v1", "notes.txt", b"bytes")
    assert sorted(a.name for a in version.attachments) == ["notes.txt", "plots/fig.svg", "roc.png"]
    assert reg.attachment("m/v1", "plots/fig.svg") == b"drawn .svg"
    assert reg.attachment(version, "roc.png") == b"png"
    assert (version.digest, version.files) == (first.digest, first.files)
    with pytest.raises(hub.NotFound) as caught:
        reg.attachment("m/v1", "rok.png")
    assert "roc.png" in caught.value.nearest
    for name, content in (("../x", b"1"), ("x", 7), ("x", tmp_path / "nothing"), ("x", None), (7, None)):
        with pytest.raises(hub.ModelHubError):
            reg.attach("m/v1", name, content)  # type: ignore[arg-type]
    with pytest.raises(hub.NotFound):
        reg.attach("m/v9", "x", b"never stored")
    assert b"never stored" not in stored(reg)


@EVERY
def test_identify(reg: Registry, tmp_path: Path):
    """The versions that hold a file's bytes, or exactly a folder's files, whatever the names."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    (folder / "b").write_bytes(b"2")
    reg.register("m", folder)
    reg.register("n", {"other-name": b"1"})
    reg.register("big", {f"f{i}": b"%d" % (i % 4) for i in range(1100)})
    assert [str(v) for v in reg.identify(folder / "a")] == ["model://big/v1", "model://m/v1", "model://n/v1"]
    assert [str(v) for v in reg.identify(folder)] == ["model://m/v1"]
    (folder / "c").write_bytes(b"nobody has this")
    assert list(reg.identify(folder / "c")) == list(reg.identify(folder)) == []
    with pytest.raises(hub.NotFound):
        reg.identify(tmp_path / "nowhere")


def test_compare(reg: Registry):
    """Two versions or more side by side, by value and by directions of the settings."""
    reg.configure(metrics={"loss": "min"})
    reg.register("m", {"f": b"1"}, metrics={"loss": 0.5}, params={"lr": 1})
    reg.register("m", {"f": b"2"}, metrics={"loss": 0.4}, params={"lr": 1})
    found = reg.compare("m/v1", "m/v2")
    assert "loss" in str(found)
    assert "0.4" in str(found)
    assert "v2" in repr(found.to_dict())
    with pytest.raises(hub.InvalidQuery):
        reg.compare()
    with pytest.raises(hub.NotFound):
        reg.compare("m/v1", "m/v9")


def test_versions_of_all_models(reg: Registry):
    """Without a model the versions of all are listed, the newest first."""
    for model in ("a", "b", "a"):
        reg.register(model, {"f": b"1"})
    assert [str(v) for v in reg.versions()] == ["model://a/v2", "model://b/v1", "model://a/v1"]
    assert [str(v) for v in reg.versions(where="model = 'a' and number > 1")] == ["model://a/v2"]


def test_a_version_that_is_not_there(reg: Registry):
    """NotFound says which versions there are."""
    reg.register("m", {"f": b"1"})
    for call in (
        reg.version,
        reg.resolve,
        reg.approve,
        lambda ref: reg.comment(ref, "x"),
        reg.uses,
        reg.verify,
    ):
        with pytest.raises(hub.NotFound, match="v1"):
            call("m/v2")
    reg.create_model("none")
    with pytest.raises(hub.NotFound, match="no versions"):
        reg.version("none/v1")
