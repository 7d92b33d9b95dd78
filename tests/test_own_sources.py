"""``model://``, ``dataset://`` and ``datum://`` as sources mean the registry that is asked, and become inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.errors import (
    DigestMismatch,
    InvalidName,
    InvalidURI,
    KeyReused,
    NoApprovedVersion,
    NotApproved,
    NotFound,
    Purged,
)

MINE, THEIRS = b"mine", b"of the default registry"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Registry]:
    """A registry beside the default one, in which the same names have other bytes."""
    with (
        hub.open(f"sqlite:///{tmp_path}/default.db", user="ann") as default,
        hub.open(f"{tmp_path}/here", user="ann") as registry,
        hub.use(default),
    ):
        for reg, data in ((default, THEIRS), (registry, MINE)):
            reg.register("m", {"a": data, "sub/b": data + b"b"})
            reg.create_dataset_version("dataset://d/v1", {"x": data + b"x"})
        yield registry


def content(reg: Registry, ref: Any, path: str) -> bytes:
    return Path(reg.resolve(ref).path, path).read_bytes()


def sources_of(reg: Registry, uri: str) -> set[str]:
    return {edge.source for edge in reg.upstream(uri).edges if edge.target == uri}


def test_a_source_means_this_registry(here: Registry) -> None:
    """The bytes are those of the registry that registers, never of the default one; the source is an input."""
    copy = here.register("copy", {"a": "model://m/v1/a", "x": "dataset://d/v1/x", "own": b"own"})
    assert content(here, copy, "a") == MINE
    assert content(here, copy, "x") == MINE + b"x"
    assert copy.inputs == ("model://m/v1/a", "dataset://d/v1/x")
    assert sources_of(here, copy.uri) == {"model://m/v1", "dataset://d/v1"}
    assert here.lineage(copy).inputs[0].uri == "model://m/v1/a"
    assert copy.uri in {node.id for node in here.downstream("m/v1").nodes}
    assert here.version(copy) == copy
    assert here.verify(progress=False).ok


def test_nothing_is_stored_twice(here: Registry) -> None:
    """A copy within the registry adds no stored file."""
    before = sorted(here._core.artifacts().digests())
    here.register("copy", {"other name": "model://m/v1/a"})
    assert sorted(here._core.artifacts().digests()) == before


@pytest.mark.parametrize(
    ("files", "paths"),
    [
        ("model://m/v1", ["a", "sub/b"]),
        ("model://m/v1/a", ["a"]),
        ("model://m/v1/sub", ["b"]),
        (["model://m/v1", "dataset://d/v1"], ["d/x", "m/a", "m/sub/b"]),
        (["model://m/v1/sub", "model://m/v1/a"], ["a", "sub/b"]),
        ({"base": "model://m/v1"}, ["base/a", "base/sub/b"]),
        ({"base": "model://m/v1/sub"}, ["base/b"]),
        ({"base": "model://m/v1/sub/b"}, ["base"]),
    ],
)
def test_whole_versions_and_folders(here: Registry, files: Any, paths: list[str]) -> None:
    """A version, or a folder of one, is placed as a folder of this disk is."""
    assert [file.path for file in here.register("copy", files).files] == paths


def test_moving_names_are_pinned(here: Registry) -> None:
    """`latest` and an alias are recorded as the version that they meant, and stay it."""
    here.approve("m/v1", "good")
    here.set_alias("m", "best", 1)
    copy = here.register("copy", {"a": "model://m/latest/a", "b": "model://m/best/sub/b"})
    here.approve(here.register("m", {"a": b"newer"}), "better")
    assert here.version(copy).inputs == ("model://m/v1/a", "model://m/v1/sub/b")
    assert content(here, copy, "a") == MINE


def test_an_input_is_not_named_twice(here: Registry) -> None:
    """What `inputs=` names already, by its version or as it was asked for, is one input."""
    here.approve("m/v1", "good")
    files = {"a": "model://m/latest/a"}
    assert here.register("copy", files, inputs=["model://m/v1"]).inputs == ("model://m/v1",)
    assert here.register("copy", files, inputs=["model://m/v1/a"]).inputs == ("model://m/v1/a",)
    assert here.register("copy", files, inputs=["model://m/latest/a"]).inputs == ("model://m/v1/a",)
    assert here.register("copy", files, inputs=["s3://b/x"]).inputs == ("s3://b/x", "model://m/v1/a")


REFUSED = [
    ("model://nothing/v1/a", NotFound),
    ("model://m/v9/a", NotFound),
    ("model://m/v1/none", NotFound),
    ("model://m/latest/a", NoApprovedVersion),
    ("model://m/rejected/a", NotApproved),
    ("model://m/", InvalidURI),
    ("dataset://nothing/v1", NotFound),
    ("datum://nothing", NotFound),
    ("model://gone/v1/w", Purged),
]


def test_what_this_registry_does_not_have(here: Registry) -> None:
    """It is a typed error as of `resolve`, before anything is stored, though the default registry may have it."""
    here.register("m", {"a": b"bad"})
    here.set_alias("m", "rejected", 2)
    here.reject("m/v2", "bad")
    here.purge(here.register("gone", {"w": b"purged"}), "old")
    before = sorted(here._core.artifacts().digests())
    seq = here.audit(limit=1)[0].seq
    for source, error in REFUSED:
        files = {"new": b"new bytes", "a": source}
        with pytest.raises(error):
            here.register("copy", files)
        with pytest.raises(error):
            here.create_dataset_version("dataset://e/v1", files)
        with pytest.raises(error):
            here.add_evaluation("m/v1", {"auc": 1}, files=files)
        with pytest.raises(error):
            here.attach("m/v1", "a", source)
    assert sorted(here._core.artifacts().digests()) == before
    assert here.audit(limit=1)[0].seq == seq


def test_every_verb_takes_them(here: Registry, tmp_path: Path) -> None:
    """Datasets, evaluations and attachments take the bytes of this registry as well."""
    made = here.create_dataset_version("dataset://e/v1", {"base": "model://m/v1", "x": "dataset://d/v1/x"})
    assert content(here, made, "base/a") == MINE
    assert sources_of(here, made.uri) == {"model://m/v1", "dataset://d/v1"}
    before = here.upstream(made)
    here.rebuild_index()
    assert here.upstream(made) == before
    version = here.add_evaluation("m/v1", {"auc": 1}, files={"x": "dataset://d/v1/x"})
    version = here.attach(version, "x", "dataset://d/v1/x")
    digest = here.dataset_version("dataset://d/v1").files[0].digest
    assert version.attachments[0].digest == version.evaluations[0].files[0].digest == digest
    with pytest.raises(InvalidName, match="no single file"):
        here.attach(version, "all", "model://m/v1")


def test_a_datum(here: Registry, tmp_path: Path) -> None:
    """A datum of this registry, by its alias, is a file under its own name, or the one that is given."""
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    (outputs / "table.csv").write_bytes(b"table")
    (outputs / "table.csv.metadata.json").write_text(json.dumps({"valohai.alias": "newest"}))
    here.ingest(outputs, keep="all")
    copy = here.register("copy", {"t": "datum://newest"})
    assert content(here, copy, "t") == b"table"
    assert copy.inputs == (f"datum://{here.datum('newest').id}",)
    assert [file.path for file in here.register("copy", "datum://newest").files] == ["table.csv"]


def test_in_a_run(here: Registry) -> None:
    """A run takes them from its own registry, and they are its inputs too."""
    with here.start_run("train", outputs=None, capture=False) as run:
        mine = run.register("copy", {"a": "model://m/v1/a"})
        other = here.register("other", {"x": "dataset://d/v1/x"})
    assert content(here, mine, "a") == MINE
    assert content(here, other, "x") == MINE + b"x"
    assert mine.inputs == ("model://m/v1/a",)
    assert {one.uri for one in here.run(run.id).inputs} == {"model://m/v1", "dataset://d/v1"}
    assert "model://m/v1" in {node.id for node in here.upstream(mine).nodes}


def test_inputs_that_are_brought_here(here: Registry, tmp_path: Path) -> None:
    """`resolve_inputs` and a run's inputs come from this registry as well."""
    placed = here.resolve_inputs({"data": ["dataset://d/v1/x", "model://m/v1/a"]}, tmp_path / "inputs")
    assert sorted(Path(file.path).read_bytes() for file in placed["data"].files) == [MINE, MINE + b"x"]


def test_an_idempotency_key_compares_what_was_asked(here: Registry) -> None:
    """The same call gives the same version, also when a name in it means another version by now."""
    here.approve("m/v1", "good")
    files = {"a": "model://m/latest/a", "own": b"own"}
    first = here.register("copy", files, idempotency_key="k")
    dataset = here.create_dataset_version("dataset://e/v1", files, idempotency_key="k")
    here.approve(here.register("m", {"a": b"newer"}), "better")
    assert here.register("copy", files, idempotency_key="k") == first
    assert here.create_dataset_version("dataset://e/v1", files, idempotency_key="k") == dataset
    for other in (
        {"a": "model://m/v1/a", "own": b"own"},
        {"a": "model://m/latest/a", "own": b"new"},
        {"b": "model://m/latest/a", "own": b"own"},
    ):
        with pytest.raises(KeyReused):
            here.register("copy", other, idempotency_key="k")


def test_damaged_bytes_are_not_copied(here: Registry) -> None:
    """A source whose stored bytes are damaged is a DigestMismatch, and nothing is registered."""
    digest = here.version("m/v1").files[0].digest
    path = next(Path(str(here._core.artifacts().root)).rglob(digest[9:]))
    path.chmod(0o644)
    path.write_bytes(b"mani")
    with pytest.raises(DigestMismatch, match="repair"):
        here.register("copy", {"a": "model://m/v1/a"})
    assert here.models().total == 1


def test_elsewhere_they_are_refused(here: Registry) -> None:
    """Where no source can be one of the registry, such a URI is refused and nothing is read."""
    with pytest.raises(InvalidURI, match="cannot be used here"):
        here.identify("model://m/v1/a")
