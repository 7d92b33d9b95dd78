"""A folder of outputs with sidecars becomes versions; what cannot be honoured is an alert, never a loss."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.errors import StoreUnavailable

EVERY = pytest.mark.parametrize("reg", ["memory", "sqlite", "folder"], indirect=True)
MODELS = "valohai.model-versions"


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A folder of outputs: model.pkl, prep.pkl, plots/roc.png, log.txt."""
    folder = tmp_path / "outputs"
    (folder / "plots").mkdir(parents=True)
    for name in ("model.pkl", "prep.pkl", "plots/roc.png", "log.txt"):
        (folder / name).write_text(f"content of {name}")
    return folder


def jsonl(folder: Path, **metadata: Any) -> None:
    """Write valohai.metadata.jsonl; a double underscore in a name stands for a slash, a single one for a dot."""
    rows = []
    for name, value in metadata.items():
        file = name.replace("__", "/").replace("_", ".")
        rows.append(json.dumps({"file": file, "metadata": value}))
    (folder / "valohai.metadata.jsonl").write_text("\n".join(rows) + "\n")


def beside(folder: Path, file: str, metadata: Any) -> None:
    (folder / f"{file}.metadata.json").write_text(json.dumps(metadata, indent=2))


def paths(version: hub.ModelVersion) -> list[str]:
    return [file.path for file in version.files]


# --- the two forms, and every form of the annotation


@EVERY
@pytest.mark.parametrize("form", ["jsonl", "sidecar"])
@pytest.mark.parametrize(
    ("value", "tags", "note"),
    [
        (["model://churn/"], (), None),
        ("model://churn/", (), None),
        (["model://churn"], (), None),
        (["model://churn/v1"], (), None),
        (["model://churn/1"], (), None),
        ({"model_uri": "model://churn/"}, (), None),
        ([{"model_uri": "model://churn/", "model_version_tags": ["a", "b"]}], ("a", "b"), None),
        (
            [{"model_uri": "model://churn/", "model_version_tags": "a", "model_release_note": "# New"}],
            ("a",),
            "# New",
        ),
        (["model://churn/", {"model_uri": "model://churn/", "model_version_tags": ["a"]}], ("a",), None),
    ],
)
def test_every_form(
    reg: Registry, outputs: Path, form: str, value: Any, tags: tuple[str, ...], note: str | None
):
    """Both sidecars, and every form of valohai.model-versions, make a pending version of the annotated file."""
    metadata = {MODELS: value, "factory": 7}
    if form == "jsonl":
        jsonl(outputs, model_pkl=metadata)
    else:
        beside(outputs, "model.pkl", metadata)
    report = reg.ingest(outputs, metrics={"auc": 0.9}, params={"lr": 0.1}, inputs=["dataset://clicks/v7"])
    assert report.alerts == ()
    (version,) = report.versions
    assert version == reg.version("churn/v1")
    assert (paths(version), version.status, version.tags, version.note) == (
        ["model.pkl"],
        "pending",
        tags,
        note,
    )
    assert (version.metrics, version.params) == ({"auc": 0.9}, {"lr": 0.1})
    assert version.inputs == ("dataset://clicks/v7",)
    (output,) = [o for o in report.outputs if o.path == "model.pkl"]
    assert output.properties == {"factory": 7}
    assert Path(reg.resolve(version), "model.pkl").read_text() == "content of model.pkl"


def test_several_models_of_one_file(reg: Registry, outputs: Path):
    """A file may go into versions of several models."""
    beside(
        outputs,
        "model.pkl",
        {MODELS: ["model://a/", {"model_uri": "model://b/", "model_version_tags": ["x"]}]},
    )
    assert [str(v) for v in reg.ingest(outputs).versions] == ["model://a/v1", "model://b/v1"]


@EVERY
def test_files_with_one_uri_make_one_version(reg: Registry, outputs: Path):
    """All files that carry a URI are one version: tags united, different notes joined, paths kept."""
    one = {"model_uri": "model://churn/", "model_version_tags": ["x", "y"], "model_release_note": "first"}
    two = {"model_uri": "model://churn/", "model_version_tags": ["y", "z"], "model_release_note": "second"}
    jsonl(outputs, model_pkl={MODELS: [one]}, prep_pkl={MODELS: [two]})
    beside(outputs, "plots/roc.png", {MODELS: ["model://churn/"]})
    (version,) = reg.ingest(outputs).versions
    assert paths(version) == ["model.pkl", "plots/roc.png", "prep.pkl"]
    assert version.tags == ("x", "y", "z")
    assert version.note == "first\n\nsecond"


def test_numbers_of_one_model(reg: Registry, outputs: Path):
    """Two new versions of one model cannot be told apart by name; numbers can, and come in order."""
    jsonl(outputs, model_pkl={MODELS: ["model://churn/v2"]}, prep_pkl={MODELS: ["model://churn/v1"]})
    report = reg.ingest(outputs)
    assert report.alerts == ()
    assert {str(v): paths(v) for v in report.versions} == {
        "model://churn/v1": ["prep.pkl"],
        "model://churn/v2": ["model.pkl"],
    }


def test_both_sidecars_of_one_output(reg: Registry, outputs: Path):
    """They are merged key by key, the jsonl wins, and a conflict is an alert."""
    jsonl(outputs, model_pkl={"a": 1, "b": 1})
    beside(outputs, "model.pkl", {"b": 2, "c": 2, MODELS: ["model://churn/"]})
    report = reg.ingest(outputs)
    (output,) = [o for o in report.outputs if o.path == "model.pkl"]
    assert output.properties == {"a": 1, "b": 1, "c": 2}
    (alert,) = report.alerts
    assert alert.key == "b"
    assert len(report.versions) == 1


def test_other_annotations_are_kept_as_facts(reg: Registry, outputs: Path):
    """What an annotation said of an output stands in the report and the journal, beside what came of it."""
    reg.create_dataset_version("dataset://clicks/v2", {"bad.csv": b"1", "good.csv": b"2"})
    facts = {
        "uri": "dataset://clicks/v3",
        "from": "dataset://clicks/v2",
        "exclude": ["bad.csv"],
        "packaging": True,
    }
    beside(
        outputs,
        "log.txt",
        {"valohai.dataset-versions": [facts], "valohai.alias": "newest", "valohai.tags": ["t"]},
    )
    report = reg.ingest(outputs)
    assert (report.versions, report.alerts) == ((), ())
    assert report.dataset_versions == ("dataset://clicks/v3",)
    (output,) = [o for o in report.outputs if o.path == "log.txt"]
    assert output.annotations["datasets"][0]["uri"] == "dataset://clicks/v3"
    assert output.annotations["datasets"][0]["exclude"] == ("bad.csv",)
    assert (output.annotations["alias"], output.annotations["tags"]) == ("newest", ("t",))
    again = reg.ingest(outputs)
    assert (again.outputs, again.dataset_versions, again.datums) == (
        report.outputs,
        report.dataset_versions,
        report.datums,
    )
    assert reg.models().total == 0
    assert "clicks" in repr(reg.audit()[0].facts)


def test_annotations_never_decide(reg: Registry, outputs: Path):
    """Status, owner and approval in a sidecar are plain properties."""
    claim = {"status": "approved", "owner": "me", "approved_by": "root", MODELS: ["model://churn/"]}
    beside(outputs, "model.pkl", claim)
    (version,) = reg.ingest(outputs).versions
    assert version.status == "pending"
    assert reg.model("churn").owner is None
    assert reg.latest("churn") is None


def test_sidecars_are_no_files_of_a_version(reg: Registry, outputs: Path):
    """Neither the jsonl nor a sidecar is an output, annotated or not."""
    jsonl(outputs, model_pkl={MODELS: ["model://churn/"]})
    beside(outputs, "prep.pkl", {MODELS: ["model://churn/"]})
    report = reg.ingest(outputs, keep="all")
    assert [o.path for o in report.outputs] == ["log.txt", "model.pkl", "plots/roc.png", "prep.pkl"]


# --- bad annotations


@EVERY
def test_a_bad_annotation_costs_only_itself(reg: Registry, outputs: Path, caplog: pytest.LogCaptureFixture):
    """Every other annotation is honoured; each bad one is an alert with file, line, column and key, also in the log."""
    reg.create_model("taken")
    (outputs / "valohai.metadata.jsonl").write_text(
        '{"file": "model.pkl", "metadata": {"valohai.model-versions": ["model://Churn Model/"]}}\n'
        "{not json}\n"
        '{"file": "missing.pkl", "metadata": {"valohai.model-versions": ["model://churn/"]}}\n'
        '{"file": "plots", "metadata": {"valohai.model-versions": ["model://churn/"]}}\n'
        '{"file": "prep.pkl", "metadata": {"valohai.model-versions": ["model://churn/", "model://churn/latest"]}}\n'
        '{"file": "log.txt", "metadata": {"valohai.model-versions": ["model://taken/v7"]}}\n'
    )
    with caplog.at_level(logging.WARNING, "modelhub_sdk"):
        report = reg.ingest(outputs)
    assert [str(version) for version in report.versions] == ["model://churn/v1"]
    assert paths(report.versions[0]) == ["prep.pkl"]
    assert {o.path for o in report.outputs} == {"log.txt", "model.pkl", "plots/roc.png", "prep.pkl"}
    assert {alert.line for alert in report.alerts} == {1, 2, 3, 4, 5, 6}
    assert {alert.file for alert in report.alerts} == {"valohai.metadata.jsonl"}
    first = next(alert for alert in report.alerts if alert.line == 1)
    assert (first.key, first.column is not None) == (f"{MODELS}[0]", True)
    assert all(str(alert) in caplog.text for alert in report.alerts)
    assert all("\n" not in str(alert) for alert in report.alerts)
    assert reg.model("taken").last_number == 0


def test_an_explicit_number_that_is_taken(reg: Registry, outputs: Path):
    """A number that is not the next one is an alert that names the next; the output is kept."""
    reg.register("churn", {"f": b"1"})
    beside(outputs, "model.pkl", {MODELS: ["model://churn/v1"]})
    beside(outputs, "prep.pkl", {MODELS: ["model://churn/v3"]})
    report = reg.ingest(outputs)
    assert report.versions == ()
    assert sorted("v2" in alert.message for alert in report.alerts) == [True, True]
    assert reg.model("churn").last_number == 1


def test_rules_of_the_registry_make_alerts(reg: Registry, outputs: Path):
    """A name that the registry does not allow, a required field: alerts, and the outputs stay."""
    reg.configure(model_names="team-.*")
    jsonl(outputs, model_pkl={MODELS: ["model://churn/"]}, prep_pkl={MODELS: ["model://team-churn/"]})
    report = reg.ingest(outputs)
    assert [str(v) for v in report.versions] == ["model://team-churn/v1"]
    (alert,) = report.alerts
    assert "churn" in alert.message
    assert reg.models().total == 1


@pytest.mark.parametrize("kind", ["fifo", "dangling", "loop", "leads out", "unreadable"])
def test_outputs_that_are_no_files(reg: Registry, outputs: Path, kind: str, tmp_path: Path):
    """A FIFO, a dangling or looping link, a link out of the outputs: an alert each; the others are ingested."""
    bad = outputs / "bad"
    if kind == "fifo":
        os.mkfifo(bad)
    elif kind == "dangling":
        bad.symlink_to(outputs / "nowhere")
    elif kind == "loop":
        bad.symlink_to(bad)
    elif kind == "leads out":
        (tmp_path / "secret").write_text("not an output")
        bad.symlink_to(tmp_path / "secret")
    else:
        bad.write_text("x")
        bad.chmod(0)
        if os.access(bad, os.R_OK):
            pytest.skip("root reads everything")
    beside(outputs, "bad", {MODELS: ["model://churn/"]})
    beside(outputs, "model.pkl", {MODELS: ["model://churn/"]})
    report = reg.ingest(outputs)
    assert [paths(v) for v in report.versions] == [["model.pkl"]]
    assert any(alert.file == "bad" for alert in report.alerts)
    assert "not an output" not in repr(report)


def test_a_link_inside_the_outputs(reg: Registry, outputs: Path):
    """A link to another output is stored as the bytes that it leads to."""
    (outputs / "best.pkl").symlink_to("model.pkl")
    beside(outputs, "best.pkl", {MODELS: ["model://churn/"]})
    report = reg.ingest(outputs)
    assert report.alerts == ()
    assert Path(reg.resolve(report.versions[0]), "best.pkl").read_text() == "content of model.pkl"


# --- repeating


@EVERY
def test_the_same_again_changes_nothing(reg: Registry, outputs: Path):
    """Exactly the same outputs, sidecars, metrics and parameters: no event, the same versions, marked as repeated."""
    jsonl(outputs, model_pkl={MODELS: ["model://churn/"], "p": 1}, prep_pkl={"oops": 1})
    first = reg.ingest(outputs, metrics={"auc": 0.9})
    before = reg.audit().total
    again = reg.ingest(outputs, metrics={"auc": 0.9})
    assert (first.repeated, again.repeated) == (False, True)
    assert (again.versions, again.outputs) == (first.versions, first.outputs)
    assert reg.audit().total == before
    copy = shutil.copytree(outputs, outputs.with_name("copy"))
    assert reg.ingest(copy, metrics={"auc": 0.9}).repeated


@pytest.mark.parametrize(
    "change", ["output", "unannotated", "sidecar", "metrics", "params", "inputs", "new file"]
)
def test_any_difference_is_a_new_ingest(reg: Registry, outputs: Path, change: str):
    """Another byte in an output or a sidecar, another metric, parameter or input: a new version."""
    jsonl(outputs, model_pkl={MODELS: ["model://churn/"]})
    reg.ingest(outputs, metrics={"auc": 1}, params={"lr": 1})
    arguments: dict[str, Any] = {"metrics": {"auc": 1}, "params": {"lr": 1}}
    if change == "output":
        (outputs / "model.pkl").write_text("retrained")
    elif change == "unannotated":
        (outputs / "log.txt").write_text("another log")
    elif change == "sidecar":
        jsonl(outputs, model_pkl={MODELS: ["model://churn/"], "seed": 2})
    elif change == "metrics":
        arguments["metrics"] = {"auc": True}
    elif change == "params":
        arguments["params"] = {"lr": 1.5}
    elif change == "inputs":
        arguments["inputs"] = ["dataset://clicks/v8"]
    else:
        (outputs / "more.txt").write_text("")
    report = reg.ingest(outputs, **arguments)
    assert not report.repeated
    assert [str(v) for v in report.versions] == ["model://churn/v2"]


def test_one_run_is_ingested_once(reg: Registry, outputs: Path):
    """With run= the run's id counts: again changes nothing and stores nothing, whatever lies there by then."""
    jsonl(outputs, model_pkl={MODELS: ["model://churn/"]})
    first = reg.ingest(outputs, run="run-7", metrics={"auc": 0.9})
    assert first.versions[0].run_id == "run-7"
    (outputs / "model.pkl").write_text("changed since")
    before = {p.name for p in Path(reg._core.artifacts().root or "").rglob("*")}
    again = reg.ingest(outputs, run="run-7", metrics={"auc": 0.1})
    assert again.repeated
    assert (again.versions, again.outputs) == (first.versions, first.outputs)
    assert {p.name for p in Path(reg._core.artifacts().root or "").rglob("*")} == before
    other = reg.ingest(outputs, run="run-8")
    assert [str(v) for v in other.versions] == ["model://churn/v2"]
    assert [str(v) for v in reg.versions(where="run_id = 'run-7'")] == ["model://churn/v1"]


def test_idempotency_keys(reg: Registry, outputs: Path):
    """One key, one ingest; another key, another one of the same content."""
    beside(outputs, "model.pkl", {MODELS: ["model://churn/"]})
    assert (
        reg.ingest(outputs, idempotency_key="a").versions == reg.ingest(outputs, idempotency_key="a").versions
    )
    assert [v.number for v in reg.ingest(outputs, idempotency_key="b").versions] == [2]


def test_purged_bytes_do_not_come_back(reg: Registry, outputs: Path):
    """Repeating an ingest whose version was purged neither makes it anew nor keeps its bytes."""
    beside(outputs, "model.pkl", {MODELS: ["model://churn/"]})
    reg.ingest(outputs)
    reg.purge("churn/v1", "must go")
    report = reg.ingest(outputs)
    assert report.repeated
    assert report.versions[0].purged
    root = Path(reg._core.artifacts().root or "")
    assert b"content of model.pkl" not in [p.read_bytes() for p in root.rglob("*") if p.is_file()]


@pytest.mark.parametrize("key", [None, "run"])
@EVERY
def test_an_interrupted_ingest_goes_on(
    reg: Registry, outputs: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
):
    """When the store fails after the first of three versions, the same call again makes the other two, none twice."""
    jsonl(
        outputs,
        model_pkl={MODELS: ["model://a/", "model://b/"]},
        prep_pkl={MODELS: ["model://c/"]},
    )
    from modelhub_sdk.core import Core

    real, calls = Core.commit, []

    def flaky(self: Core, scope: str, decide: Any) -> Any:
        calls.append(scope)
        if len(calls) == 2:
            raise StoreUnavailable("The wire was cut.")
        return real(self, scope, decide)

    with monkeypatch.context() as patch:
        patch.setattr(Core, "commit", flaky)
        with pytest.raises(hub.StoreUnavailable):
            reg.ingest(outputs, run=key)
    assert reg.versions().total == 1
    report = reg.ingest(outputs, run=key)
    assert not report.repeated
    assert report.alerts == ()
    assert sorted(str(v) for v in report.versions) == ["model://a/v1", "model://b/v1", "model://c/v1"]
    assert reg.versions().total == 3
    assert reg.ingest(outputs, run=key).repeated


# --- what is stored, and what is refused


def stored(reg: Registry) -> set[str]:
    root = Path(reg._core.artifacts().root or "")
    return {p.read_text() for p in root.rglob("*") if p.is_file()}


def test_what_is_kept(reg: Registry, outputs: Path):
    """Only annotated outputs are stored, all of them with keep="all"; every one is recorded with size and digest."""
    beside(outputs, "model.pkl", {MODELS: ["model://churn/"]})
    report = reg.ingest(outputs)
    assert stored(reg) == {"content of model.pkl"}
    assert all(output.digest.startswith("sha256:") and output.size for output in report.outputs)
    (outputs / "log.txt").write_text("another log")
    reg.ingest(outputs, keep="all")
    assert {"another log", "content of prep.pkl", "content of plots/roc.png"} <= stored(reg)


def test_an_empty_folder(reg: Registry, tmp_path: Path):
    """No outputs: an empty report, recorded once."""
    (tmp_path / "empty").mkdir()
    report = reg.ingest(tmp_path / "empty")
    assert (report.versions, report.outputs, report.alerts) == ((), (), ())
    assert reg.ingest(tmp_path / "empty").repeated


def test_many_outputs(reg: Registry, tmp_path: Path):
    """Outputs too many for one entry are listed in a document; a repeat reads them back."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(700):
        (folder / f"f{i:03}").write_text(str(i % 5))
    jsonl(folder, f001={"n": 2**70, "x": float("inf")})
    first = reg.ingest(folder)
    assert len(first.outputs) == 700
    again = reg.ingest(folder)
    assert again.repeated
    assert again.outputs == first.outputs
    assert again.outputs[1].properties == {"n": 2**70, "x": float("inf")}


@pytest.mark.parametrize(
    "arguments",
    [
        {"keep": "none"},
        {"run": ""},
        {"run": " x"},
        {"run": 7},
        {"idempotency_key": b"k"},
        {"metrics": {"a": 1 + 2j}},
        {"metrics": [1]},
        {"params": {1: 1, "1": 2}},
        {"inputs": "dataset://clicks/v1"},
        {"inputs": ["clicks"]},
    ],
    ids=str,
)
def test_wrong_arguments(reg: Registry, outputs: Path, arguments: dict[str, Any]):
    """Arguments of another kind are refused before anything is stored."""
    beside(outputs, "model.pkl", {MODELS: ["model://churn/"]})
    with pytest.raises(hub.ModelHubError):
        reg.ingest(outputs, **arguments)
    assert reg.audit().total == 1
    assert stored(reg) == set()


@pytest.mark.parametrize("folder", ["nowhere", "", "a\0b", None, 7])
def test_folders_that_are_none(reg: Registry, folder: Any):
    """A folder that is not there is NotFound."""
    with pytest.raises(hub.NotFound):
        reg.ingest(folder)


def test_the_registry_is_no_output(tmp_path: Path):
    """Outputs that hold the registry itself: its files are refused, one by one, and the rest is ingested."""
    (tmp_path / "model.pkl").write_text("m")
    beside(tmp_path, "model.pkl", {MODELS: ["model://churn/"]})
    with hub.open(f"sqlite:///{tmp_path}/r.db", artifacts=tmp_path / "art") as reg:
        reg.register("other", {"f": b"1"})
        report = reg.ingest(tmp_path)
        assert [str(v) for v in report.versions] == ["model://churn/v1"]
        assert [o.path for o in report.outputs] == ["model.pkl"]
        for place in (tmp_path / "r.db", tmp_path / "art"):
            with pytest.raises(hub.NotAllowed):
                reg.register("m", place)


def test_an_output_that_vanishes_costs_only_itself(
    reg: Registry, outputs: Path, monkeypatch: pytest.MonkeyPatch
):
    """An output that is removed while the others are stored is an alert; the version is made of the rest."""
    from modelhub_sdk.blobs import sources

    jsonl(outputs, model_pkl={MODELS: ["model://churn/"]}, prep_pkl={MODELS: ["model://churn/"]})
    beside(outputs, "log.txt", {"valohai.dataset-versions": ["dataset://d/v1"]})
    collect = sources.collect

    def then_gone(*arguments: Any, **options: Any) -> Any:
        found = collect(*arguments, **options)
        for name in ("prep.pkl", "plots/roc.png", "log.txt"):
            (outputs / name).unlink(missing_ok=True)
        return found

    monkeypatch.setattr(sources, "collect", then_gone)
    report = reg.ingest(outputs)
    assert [paths(version) for version in report.versions] == [["model.pkl"]]
    assert [output.path for output in report.outputs] == ["model.pkl"]
    assert sorted(str(alert.file) for alert in report.alerts) == ["log.txt", "plots/roc.png", "prep.pkl"]
    assert report.dataset_versions == ()
    assert reg.verify().ok
