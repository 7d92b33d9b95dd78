"""Datasets and datums: versions that never change, aliases, what annotations make of outputs, and resolving them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.errors import (
    Conflict,
    InvalidDocument,
    InvalidName,
    InvalidURI,
    KeyReused,
    NotFound,
    Offline,
)

DATA = "valohai.dataset-versions"


def beside(folder: Path, name: str, metadata: dict[str, Any], content: bytes | None = None) -> None:
    """Write an output and its sidecar."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(name.encode() if content is None else content)
    (folder / f"{name}.metadata.json").write_text(json.dumps(metadata), encoding="utf-8")


def test_a_version_is_stored_and_read_back(reg: Registry):
    """A dataset version has a name, files, tags and fields; the dataset is made with the first of them."""
    made = reg.create_dataset_version(
        "dataset://clicks/v7", {"a.csv": b"1", "sub/b.csv": b"22"}, tags=["eu"], fields={"rows": 3}
    )
    assert (made.uri, made.dataset, made.version, made.number) == ("dataset://clicks/v7", "clicks", "v7", 1)
    assert [(file.path, file.size) for file in made.files] == [("a.csv", 1), ("sub/b.csv", 2)]
    assert (made.size, made.tags, made.fields, made.created_by) == (3, ("eu",), {"rows": 3}, reg.user)
    assert reg.dataset_version("clicks/v7") == reg.dataset_version(made) == made
    found = reg.dataset("clicks")
    assert (found.versions, found.latest, found.aliases, str(found)) == (
        ("v7",),
        "v7",
        {},
        "dataset://clicks/",
    )
    assert reg.dataset(made) == reg.dataset("dataset://clicks/") == found


def test_a_dataset_is_described(reg: Registry):
    """A dataset has what a model has: title, description, owner, tags, fields, projects."""
    made = reg.create_dataset(
        "clicks",
        title="Clicks",
        description="# Raw",
        owner="team:web",
        tags=["pii"],
        fields={"days": 30},
        projects=["crm"],
    )
    assert (made.title, made.description, made.owner) == ("Clicks", "# Raw", "team:web")
    assert (made.tags, made.fields, made.projects, made.versions, made.latest) == (
        ("pii",), {"days": 30}, ("crm",), (), None,
    )  # fmt: skip
    with pytest.raises(Conflict, match="exists already"):
        reg.create_dataset("clicks")
    with pytest.raises(InvalidName, match="Write 'clicks-2'"):
        reg.create_dataset("Clicks 2")


def test_datasets_are_listed_and_searched(reg: Registry):
    """`datasets` finds by text and by query, newest first, page by page, and never shows models."""
    reg.register("clicks-model", {"m": b""})
    for number in range(5):
        reg.create_dataset(f"set-{number}", tags=["even"] if number % 2 == 0 else [], fields={"n": number})
    assert [one.name for one in reg.datasets()] == ["set-4", "set-3", "set-2", "set-1", "set-0"]
    assert [one.name for one in reg.datasets(where="tags = 'even' and fields.n > 0", order_by="name")] == [
        "set-2",
        "set-4",
    ]
    assert [one.name for one in reg.datasets(text="SET-3")] == ["set-3"]
    page = reg.datasets(limit=2)
    assert (page.total, [one.name for one in page.next()]) == (5, ["set-2", "set-1"])
    assert reg.models().total == 1
    with pytest.raises(hub.InvalidQuery, match="Datasets have no field 'status'"):
        reg.datasets(where="status = 'approved'")


def test_versions_never_change(reg: Registry):
    """A name is used once, for a version or for an alias; `latest` is neither."""
    reg.create_dataset_version("dataset://clicks/v1", {"a": b"1"})
    with pytest.raises(Conflict, match="versions never change"):
        reg.create_dataset_version("dataset://clicks/v1", {"a": b"2"})
    reg.set_alias("dataset://clicks/", "stable", "v1")
    with pytest.raises(Conflict, match="as an alias"):
        reg.create_dataset_version("dataset://clicks/stable", {"a": b"2"})
    with pytest.raises(Conflict, match="is a version"):
        reg.set_alias("dataset://clicks/", "v1", "v1")
    with pytest.raises(InvalidName, match="newest version"):
        reg.create_dataset_version("dataset://clicks/latest", {"a": b"2"})
    with pytest.raises(InvalidURI, match="missing"):
        reg.create_dataset_version("dataset://clicks/", {"a": b"2"})
    assert reg.dataset("clicks").versions == ("v1",)


def test_a_version_starts_from_another(reg: Registry):
    """Files of the base are kept but for the excluded ones, and replaced by files of the same path."""
    reg.create_dataset_version("clicks/v1", {"a": b"1", "b": b"2", "sub/bad.csv": b"3", "sub/c": b"4"})
    made = reg.create_dataset_version(
        "clicks/v2", {"b": b"new", "d": b"5"}, based_on="dataset://clicks/latest", exclude=["bad.csv"]
    )
    assert [(file.path, file.size) for file in made.files] == [("a", 1), ("b", 3), ("d", 1), ("sub/c", 1)]
    assert made.based_on == "dataset://clicks/v1"
    only = reg.create_dataset_version("other/v1", None, based_on=made, exclude=["a", "sub/c"])
    assert [file.path for file in only.files] == ["b", "d"]
    with pytest.raises(NotFound, match="no version or alias 'v9'"):
        reg.create_dataset_version("clicks/v3", {"a": b""}, based_on="clicks/v9")
    with pytest.raises(InvalidDocument, match="at least one file"):
        reg.create_dataset_version("clicks/v3", None, based_on="other/v1", exclude=["b", "d"])
    assert reg.dataset("clicks").versions == ("v1", "v2")


def test_aliases_move_and_latest_means_the_newest(reg: Registry):
    """An alias points at one version; ``latest`` is the alias of that name, else the newest version."""
    reg.create_dataset_version("clicks/v1", {"a": b"1"}, aliases=["stable", "prod"])
    reg.create_dataset_version("clicks/v2", {"a": b"2"}, aliases=["prod"])
    assert reg.dataset("clicks").aliases == {"prod": "v2", "stable": "v1"}
    assert reg.dataset_version("clicks/stable").aliases == ("stable",)
    assert reg.dataset_version("clicks/latest").version == "v2"
    seq = reg.audit()[0].seq
    found = reg.set_alias("dataset://clicks/", "latest", "dataset://clicks/stable", reason="v2 is broken")
    assert (found.latest, reg.dataset_version("clicks/latest").version) == ("v1", "v1")
    assert reg.at(seq).dataset_version("clicks/latest").version == "v2"
    assert reg.audit()[0].detail == "pointed dataset://clicks/latest at v1: v2 is broken"
    assert "latest" not in reg.delete_alias("dataset://clicks/", "latest").aliases
    with pytest.raises(NotFound, match="has no alias 'nope'"):
        reg.delete_alias("dataset://clicks/", "nope")
    with pytest.raises(NotFound, match="It has v2, v1, prod, stable"):
        reg.set_alias("dataset://clicks/", "new", "v3")


def test_the_same_key_gives_the_same_version(reg: Registry):
    """An idempotency key makes one version; with other content it is refused."""
    one = reg.create_dataset_version("clicks/v1", {"a": b"1"}, idempotency_key="k")
    assert reg.create_dataset_version("clicks/v1", {"a": b"1"}, idempotency_key="k") == one
    with pytest.raises(KeyReused):
        reg.create_dataset_version("clicks/v1", {"a": b"2"}, idempotency_key="k")
    assert reg.dataset("clicks").versions == ("v1",)


def test_a_dataset_of_many_files(reg: Registry, tmp_path: Path):
    """The files of a large version stand in a document, and are found all the same."""
    made = reg.create_dataset_version("big/v1", {f"{n:05}": str(n).encode() for n in range(1500)})
    assert len(made.files) == len(reg.dataset_version("big/v1").files) == 1500
    more = reg.create_dataset_version("big/v2", {"x": b""}, based_on="big/v1", exclude=["00000"])
    assert len(more.files) == 1500
    (tmp_path / "probe").write_bytes(b"1499")
    assert [one.uri for one in reg.identify(tmp_path / "probe")] == ["dataset://big/v1", "dataset://big/v2"]
    assert reg.verify().ok


@pytest.mark.parametrize("reg", ["memory", "sqlite", "folder"], indirect=True)
def test_a_dataset_resolves_like_a_model(reg: Registry, tmp_path: Path):
    """Versions, aliases, single files and patterns of datasets come into an inputs directory, and the use is known."""
    reg.create_dataset_version(
        "clicks/v1", {"a.csv": b"1", "sub/b.csv": b"2", "c.txt": b"3"}, aliases=["prod"]
    )
    found = reg.resolve("dataset://clicks/prod", tmp_path / "in")
    assert (found.uri, found.files) == ("dataset://clicks/v1", ("a.csv", "c.txt", "sub/b.csv"))
    assert (tmp_path / "in" / "sub" / "b.csv").read_bytes() == b"2"
    one = reg.resolve("dataset://clicks/latest/sub/b.csv")
    assert Path(one).read_bytes() == b"2"
    assert reg.resolve("dataset://clicks/v1", files="*.csv").files == ("a.csv", "sub/b.csv")
    assert reg.resolve(reg.dataset_version("clicks/v1")).version == reg.dataset_version("clicks/v1")
    uses = reg.uses("dataset://clicks/v1")
    assert [use.asked for use in uses][:2] == ["dataset://clicks/prod", "dataset://clicks/latest/sub/b.csv"]
    with pytest.raises(NotFound, match="no version or alias 'v2'"):
        reg.resolve("dataset://clicks/v2")
    with pytest.raises(NotFound, match="There is no dataset 'klicks'"):
        reg.resolve("dataset://klicks/v1")


def test_a_fixed_dataset_version_resolves_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What was resolved once resolves without the registry, if its name cannot move."""
    url = f"sqlite:///{tmp_path}/reg.db"
    with hub.open(url) as reg:
        reg.create_dataset_version("clicks/v1", {"a.csv": b"1"}, aliases=["prod", "v1-live"])
        reg.ingest(_with_alias(tmp_path / "out"))
        reg.resolve("dataset://clicks/prod")
        reg.resolve("dataset://clicks/v1-live")
        reg.resolve("datum://newest")
        datum = reg.datum("newest")
    monkeypatch.setenv("MODELHUB_OFFLINE", "1")
    with hub.open(url) as reg:
        assert Path(reg.resolve("dataset://clicks/v1").path, "a.csv").read_bytes() == b"1"
        assert Path(reg.resolve(datum.uri)).read_bytes() == b"x"
        for moving in ("dataset://clicks/prod", "dataset://clicks/v1-live", "datum://newest"):
            with pytest.raises(Offline, match="can move"):
                reg.resolve(moving)


def _with_alias(folder: Path) -> Path:
    beside(folder, "x.bin", {"valohai.alias": "newest", "valohai.tags": ["t"], "rows": 3}, b"x")
    return folder


def test_a_datum_has_an_id_an_alias_and_properties(reg: Registry, tmp_path: Path):
    """An annotated output is a datum: by id for ever, by alias as long as that points there."""
    report = reg.ingest(_with_alias(tmp_path / "one"))
    (uri,) = report.datums
    datum = reg.datum(uri)
    assert (datum.uri, datum.name, datum.size) == (uri, "x.bin", 1)
    assert (datum.aliases, datum.tags, datum.properties) == (("newest",), ("t",), {"rows": 3})
    assert reg.datum("newest") == reg.datum("datum://newest") == reg.datum(datum) == datum
    assert reg.ingest(tmp_path / "one").datums == (uri,)
    beside(tmp_path / "two", "y.bin", {"valohai.alias": "newest"}, b"yy")
    (other,) = reg.ingest(tmp_path / "two").datums
    assert reg.datum("newest").uri == other
    assert (reg.datum(uri).aliases, Path(reg.resolve(uri)).read_bytes()) == ((), b"x")
    found = reg.resolve("datum://newest", tmp_path / "in")
    assert (found.uri, Path(found).name, Path(found).read_bytes()) == (other, "y.bin", b"yy")
    with pytest.raises(NotFound, match="Did you mean newest"):
        reg.datum("newset")
    with pytest.raises(NotFound, match="no datum with the id or alias"):
        reg.resolve("datum://6f8f57715090da2632453988d9a1501b")


def test_keep_all_makes_every_output_a_datum(reg: Registry, tmp_path: Path):
    """With keep="all" each output gets an id, as Valohai does; else only those that an annotation names."""
    beside(tmp_path / "out", "a.txt", {"note": "plain"})
    beside(tmp_path / "out", "m.txt", {"valohai.model-versions": ["model://m/"]})
    assert [reg.datum(uri).name for uri in reg.ingest(tmp_path / "out", run="one").datums] == ["m.txt"]
    assert [reg.datum(uri).name for uri in reg.ingest(tmp_path / "out", run="two", keep="all").datums] == [
        "a.txt",
        "m.txt",
    ]
    assert {reg.datum(uri).run_id for uri in reg.ingest(tmp_path / "out", run="two").datums} == {"two"}


def test_annotations_make_dataset_versions(reg: Registry, tmp_path: Path):
    """All forms of the annotation: files with one URI are one version; bases, exclusion, aliases and tags hold."""
    out = tmp_path / "out"
    reg.create_dataset_version("base/v1", {"old.csv": b"o", "bad.csv": b"b"})
    beside(out, "a.csv", {DATA: ["dataset://clicks/v1", "dataset://both/v1"]})
    beside(out, "b.csv", {DATA: "dataset://clicks/v1"})
    full = {
        "uri": "dataset://base/v2", "from": "dataset://base/v1", "exclude": ["bad.csv"],
        "targeting_aliases": ["production"], "valohai.tags": ["dev"], "start_fresh": False,
    }  # fmt: skip
    beside(out, "c.csv", {DATA: [full]})
    beside(
        out,
        "d.csv",
        {DATA: [{"uri": "dataset://fresh/v1", "from": "dataset://base/v1", "start_fresh": True}]},
    )
    beside(out, "e.csv", {DATA: [{"uri": "dataset://null/v1", "from": None}]})
    beside(out, "f.csv", {DATA: [{"uri": "dataset://chain/v1", "from": "dataset://null/v1"}]})
    report = reg.ingest(out, run="r1")
    assert report.alerts == ()
    files = {uri: [f.path for f in reg.dataset_version(uri).files] for uri in report.dataset_versions}
    assert files == {
        "dataset://clicks/v1": ["a.csv", "b.csv"],
        "dataset://both/v1": ["a.csv"],
        "dataset://base/v2": ["c.csv", "old.csv"],
        "dataset://fresh/v1": ["d.csv"],
        "dataset://null/v1": ["e.csv"],
        "dataset://chain/v1": ["e.csv", "f.csv"],
    }
    version = reg.dataset_version("dataset://base/production")
    assert (version.version, version.tags, version.run_id) == ("v2", ("dev",), "r1")
    again = reg.ingest(out, run="r1")
    assert (again.repeated, again.dataset_versions) == (True, report.dataset_versions)


def test_a_bad_dataset_annotation_costs_only_itself(reg: Registry, tmp_path: Path):
    """An existing version, a bad name, a base that is not there: an alert each, and the outputs are kept."""
    out = tmp_path / "out"
    reg.create_dataset_version("clicks/v1", {"x": b"x"})
    beside(out, "a.csv", {DATA: ["dataset://clicks/v1", "dataset://good/v1"]})
    beside(out, "b.csv", {DATA: ["dataset://Dataset/v1"]})
    beside(out, "c.csv", {DATA: [{"uri": "dataset://late/v1", "from": "dataset://late/v0"}]})
    beside(
        out,
        "d.csv",
        {DATA: [{"uri": "dataset://aliased/v1", "targeting_aliases": ["v1", "no good", "fine"]}]},
    )
    report = reg.ingest(out)
    assert report.dataset_versions == ("dataset://aliased/v1", "dataset://good/v1")
    assert reg.dataset("aliased").aliases == {"fine": "v1"}
    told = sorted(alert.message for alert in report.alerts)
    assert len(told) == 5, told
    for piece in ("exists already", "no good", "Dataset", "There is no dataset 'late'", "is a version"):
        assert any(piece in message for message in told), piece
    assert {output.path for output in report.outputs} == {"a.csv", "b.csv", "c.csv", "d.csv"}
    kept = {reg.datum(uri).name for uri in report.datums}
    assert kept >= {"a.csv", "c.csv", "d.csv"}
    assert reg.verify().ok


def test_bytes_of_a_dataset_are_never_purged_with_a_model(reg: Registry):
    """Purging a model version keeps what a dataset version needs; verify reads the bytes of datasets too."""
    version = reg.register("m", {"shared": b"shared bytes", "own": b"own bytes"})
    reg.create_dataset_version("d/v1", {"s": b"shared bytes"})
    reg.purge(version, "space")
    assert Path(reg.resolve("dataset://d/v1").path, "s").read_bytes() == b"shared bytes"
    assert reg.verify().ok
    blobs = reg._core.artifacts()
    blobs.delete(reg.dataset_version("d/v1").files[0].digest)
    found = reg.verify()
    assert not found.ok
    assert "dataset://d/v1" in found.problems[0]


def test_a_datum_whose_bytes_were_purged_says_so(reg: Registry, tmp_path: Path):
    """An output that only a model version needed goes with its purge; one with an alias of its own stays."""
    beside(tmp_path / "out", "m", {"valohai.model-versions": ["model://m/"]}, b"model")
    beside(
        tmp_path / "out", "k", {"valohai.model-versions": ["model://m/"], "valohai.alias": "kept"}, b"kept"
    )
    report = reg.ingest(tmp_path / "out")
    gone, kept = sorted(report.datums, key=lambda uri: reg.datum(uri).name, reverse=True)
    reg.purge("m/v1", "space")
    with pytest.raises(hub.Purged, match=f"purged by {reg.user} on .*: space"):
        reg.resolve(gone)
    assert Path(reg.resolve(kept)).read_bytes() == b"kept"


def test_everything_about_datasets_survives_a_refold(reg: Registry, tmp_path: Path):
    """The index of datasets, datums and runs is folded from the journal alone."""
    reg.create_dataset("clicks", title="Clicks")
    reg.create_dataset_version("clicks/v1", {"a": b"1"}, aliases=["prod"], tags=["t"], fields={"f": {"g": 1}})
    reg.ingest(_with_alias(tmp_path / "out"), run="r")
    before = (reg.dataset("clicks"), reg.dataset_version("clicks/v1"), reg.datum("newest"), reg.audit())
    reg.rebuild_index()
    assert before == (
        reg.dataset("clicks"),
        reg.dataset_version("clicks/v1"),
        reg.datum("newest"),
        reg.audit(),
    )


@pytest.mark.parametrize(
    "bad", [7, None, "", "dataset://", "model://m/v1", "dataset://clicks/v1/../x", "Clicks/v1", "clicks/v 1"]
)
def test_bad_references_are_refused(reg: Registry, bad: Any):
    """What names no dataset version is refused before anything is stored."""
    for verb in (reg.dataset_version, lambda ref: reg.create_dataset_version(ref, {"a": b""})):
        with pytest.raises((InvalidURI, InvalidName)):
            verb(bad)
    assert reg.datasets().total == 0
