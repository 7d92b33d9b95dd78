"""Steps and pipelines of valohai.yaml, run here: scripts for Valohai find everything where they look for it."""

from __future__ import annotations

import json
import logging
import textwrap
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.errors import ChildFailed, InvalidDocument, InvalidURI, NotFound
from modelhub_sdk.run import mount, runner

pytest.importorskip("valohai_yaml")


def project(folder: Path, yaml: str, **scripts: str) -> Path:
    """Write a valohai.yaml and its scripts; a single underscore in a name stands for a dot."""
    folder.mkdir(exist_ok=True)
    (folder / "valohai.yaml").write_text(textwrap.dedent(yaml))
    for name, text in scripts.items():
        (folder / name.replace("_", ".")).write_text(textwrap.dedent(text))
    return folder


STEP = """
- step:
    name: train
    image: python:3.11
    command:
      - python train.py {parameters}
    inputs:
      - name: data
        default: dataset://clicks/latest
      - name: extra
        optional: true
    parameters:
      - name: lr
        type: float
        default: 0.1
      - name: url
        type: string
        optional: true
    environment-variables:
      - name: COLOUR
        default: green
"""
TRAIN = """
import argparse, json, os, shutil
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
lr = parser.parse_args().lr
inputs, outputs = Path(os.environ["VH_INPUTS_DIR"]), Path(os.environ["VH_OUTPUTS_DIR"])
assert sorted(path.name for path in inputs.iterdir()) == ["data"]
assert os.environ["COLOUR"] == "green" and os.environ["VH_JOB_ID"].startswith("exec-")
table = inputs / "data" / "a.csv"
print("reading", table.name)
print(json.dumps({"lr": lr, "bytes": len(table.read_bytes()), "bad": float("nan")}))
shutil.move(table, outputs / "moved.csv")  # real scripts do
(outputs / "model.bin").write_text("weights")
(outputs / "model.bin.metadata.json").write_text(json.dumps({"valohai.model-versions": [
    {"model_uri": "model://churn/", "model_version_tags": ["dev"], "model_release_note": "first"}]}))
(outputs / "deep").mkdir()
(outputs / "deep" / "log.txt").write_text("log")
"""


@pytest.fixture
def clicks(reg: Registry) -> Registry:
    """A registry with the dataset clicks."""
    reg.create_dataset_version("clicks/v1", {"a.csv": b"1,2,3"})
    return reg


def test_a_step_is_a_run(clicks: Registry, tmp_path: Path) -> None:
    """Inputs laid out, parameters passed, JSON lines as metrics, every output a datum, the version with its lineage."""
    folder = project(tmp_path / "p", STEP, train_py=TRAIN)
    record = clicks.run_step(folder, "train", parameters={"lr": 0.5}, tags=["t"])
    assert (record.name, record.step, record.status, record.exit_status) == ("train", "train", "completed", 0)
    assert (record.params, record.metrics["bytes"], record.tags) == ({"lr": 0.5}, 5, ("t",))
    assert record.command == "python train.py --lr=0.5"
    assert record.code.entry == "train.py"
    assert [(one.uri, one.name) for one in record.inputs] == [("dataset://clicks/v1", "data")]
    assert [output.path for output in record.outputs] == ["deep/log.txt", "model.bin", "moved.csv"]
    assert sorted(clicks.datum(uri).name for uri in record.datums) == [
        "deep/log.txt",
        "model.bin",
        "moved.csv",
    ]
    version = clicks.version("churn/v1")
    assert (version.run_id, version.tags, version.note) == (record.id, ("dev",), "first")
    assert {"dataset://clicks/v1", "run:" + record.id} <= {node.id for node in clicks.upstream(version).nodes}
    assert Path(clicks.resolve("dataset://clicks/v1").path, "a.csv").read_bytes() == b"1,2,3"
    assert list(Path(clicks._core.cache().path, "runs").iterdir()) == []
    assert clicks.verify().ok


def test_a_failing_step(clicks: Registry, tmp_path: Path) -> None:
    """The error says which step and status, and the record of the run is there with its outputs."""
    folder = project(
        tmp_path / "p", STEP,
        train_py="import os, sys\nopen(os.environ['VH_OUTPUTS_DIR'] + '/part', 'w').write('x')\nsys.exit(4)\n",
    )  # fmt: skip
    with pytest.raises(ChildFailed, match="'train' ended with status 4") as caught:
        clicks.run_step(folder, "train")
    record = clicks.run(caught.value.run_id)  # type: ignore[attr-defined]
    assert (record.status, record.exit_status, [output.path for output in record.outputs]) == (
        "failed",
        4,
        ["part"],
    )


def test_nothing_starts_when_an_input_cannot_be_had(reg: Registry, tmp_path: Path) -> None:
    """A missing input stops the step before anything runs; no run, no folder, is left."""
    folder = project(tmp_path / "p", STEP, train_py="raise SystemExit('never')")
    with pytest.raises(NotFound, match="The input 'data' cannot be had: There is no dataset 'clicks'"):
        reg.run_step(folder, "train")
    with pytest.raises(InvalidURI, match="needs the parameter 'model'"):
        reg.run_step(folder, "train", inputs={"data": "{parameter:model}"})
    assert reg.runs().total == 0
    assert [path for path in Path(reg._core.cache().path, "runs").rglob("*") if path.is_file()] == []


@pytest.mark.skipif(not mount.is_possible(), reason="no private mounts for this user")
def test_scripts_that_hard_code_valohai(clicks: Registry, tmp_path: Path) -> None:
    """A script that opens /valohai/inputs finds them there, and nothing of it stays on the machine."""
    there = Path("/valohai").exists()
    folder = project(
        tmp_path / "p", STEP,
        train_py="""
            data = open("/valohai/inputs/data/a.csv").read()
            open("/valohai/outputs/copy.csv", "w").write(data)
            open("/valohai/config/parameters.json").read()
        """,
    )  # fmt: skip
    record = clicks.run_step(folder / "valohai.yaml", "train")
    assert [(output.path, output.size) for output in record.outputs] == [("copy.csv", 5)]
    assert Path("/valohai").exists() == there


def test_where_no_private_mount_can_be_had(
    clicks: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to do, and the run says why it failed."""
    monkeypatch.setattr(mount, "is_possible", lambda: False)
    folder = project(tmp_path / "p", STEP, train_py='open("/valohai/inputs/data/a.csv")\n')
    with pytest.raises(InvalidDocument, match=r"docker run -v .*:/valohai/inputs"):
        clicks.run_step(folder, "train")
    assert clicks.runs()[0].status == "failed"


def test_valohai_utils_finds_everything(clicks: Registry, tmp_path: Path) -> None:
    """What valohai-utils reads we write, what it writes we read: inputs, parameters, execution, metrics, properties."""
    pytest.importorskip("valohai")
    with_alias = tmp_path / "aliased"
    with_alias.mkdir()
    (with_alias / "x.txt").write_text("datum")
    (with_alias / "x.txt.metadata.json").write_text('{"valohai.alias": "newest", "rows": 7}')
    clicks.ingest(with_alias)
    folder = project(
        tmp_path / "p", STEP,
        train_py="""
            import json
            import valohai
            valohai.prepare(step="train", default_parameters={"lr": 0.3}, default_inputs={"data": "", "extra": ""})
            assert valohai.parameters("lr").value == 0.25, valohai.parameters("lr").value
            names = sorted(path.rsplit("/", 1)[1] for path in valohai.inputs("data").paths())
            assert names == ["a.csv", "x.txt"], names
            raw = json.load(open(
                __import__("os").environ["VH_CONFIG_DIR"] + "/inputs.json"))
            (datum,) = [file for file in raw["data"]["files"] if file["name"] == "x.txt"]
            assert datum["uri"].startswith("datum://") and datum["metadata"] == [{"rows": 7}], datum
            assert set(datum["checksums"]) == {"md5", "sha1", "sha256"}
            execution = valohai.execution()
            with valohai.logger() as logger:
                logger.log("accuracy", 0.75)
            path = valohai.outputs().path("model.bin")
            open(path, "w").write("weights")
            with valohai.output_properties() as properties:
                properties.add(file="model.bin", properties={"valohai.model-versions": ["model://utils/"], "note": execution.config.id})
        """,
    )  # fmt: skip
    record = clicks.run_step(
        folder, "train", parameters={"lr": 0.25}, inputs={"data": ["dataset://clicks/v1", "datum://newest"]}
    )
    assert record.metrics["accuracy"] == 0.75
    assert record.versions == ("model://utils/v1",)
    (output,) = record.outputs
    assert output.properties["note"] == record.id
    assert {one.uri.partition(":")[0] for one in record.inputs} == {"dataset", "datum"}


PIPELINE = """
- step:
    name: prepare
    image: python:3.11
    command: python prepare.py {parameters}
    parameters:
      - {name: rows, type: integer, default: 2}
- step:
    name: train
    image: python:3.11
    command: python train.py {parameters}
    inputs:
      - {name: table, default: "dataset://none/v1"}
    parameters:
      - {name: rows, type: integer, default: 0}
      - {name: mode, type: string, default: plain}
- step:
    name: report
    image: python:3.11
    command: python report.py
    inputs:
      - {name: table, optional: true}
- pipeline:
    name: all
    parameters:
      - {name: size, targets: [prepare.parameters.rows], default: 3}
    nodes:
      - {name: report, type: execution, step: report}
      - {name: prepare, type: execution, step: prepare, on-error: ERROR}
      - name: train
        type: execution
        step: train
        override:
          inputs: [{name: table, filename: renamed.csv}]
    edges:
      - [prepare.output.*.csv, train.input.table]
      - [prepare.metadata.count, train.parameter.rows]
      - [train.input.table, report.input.table]
"""
PREPARE = """
import json, os, sys
rows = int(sys.argv[1].partition("=")[2])
if rows < 0:
    sys.exit(2)
folder = os.path.join(os.environ["VH_OUTPUTS_DIR"], "sub")
os.makedirs(folder)
open(os.path.join(folder, "t.csv"), "w").write("x" * rows)
open(os.path.join(folder, "t.log"), "w").write("")
print(json.dumps({"count": rows}))
"""
CHECK = """
import json, os, sys
(name,) = os.listdir(os.path.join(os.environ["VH_INPUTS_DIR"], "table"))
print(json.dumps({"name": name, "args": " ".join(sys.argv[1:])}))
"""


def _pipeline(folder: Path, on_error: str = "stop-all") -> Path:
    return project(
        folder, PIPELINE.replace("ERROR", on_error), prepare_py=PREPARE, train_py=CHECK, report_py=CHECK
    )


def test_a_pipeline_follows_its_edges(reg: Registry, tmp_path: Path) -> None:
    """Outputs and inputs become inputs, metadata parameters; nodes run in order, as one group, with one lineage."""
    records = reg.run_pipeline(_pipeline(tmp_path / "p"), "all", parameters={"train.mode": "fast"})
    assert [record.name for record in records] == ["prepare", "train", "report"]
    prepare, train, report = records
    assert prepare.params == {"rows": 3}
    assert train.params == {"rows": 3, "mode": "fast"}
    assert train.metrics["name"] == "renamed.csv"
    assert report.metrics["name"] == "t.csv"
    assert len({record.group for record in records}) == 1
    assert {record.pipeline for record in records} == {"all"}
    (datum,) = [one.uri for one in train.inputs]
    assert reg.datum(datum).name == "sub/t.csv"
    assert {"run:" + prepare.id, datum} <= {node.id for node in reg.upstream("run:" + report.id).nodes}
    again = reg.run_pipeline(_pipeline(tmp_path / "p"), "all", parameters={"size": 5, "train.rows": 9})
    assert [record.params.get("rows") for record in again] == [5, 5, None]


SECRETS = """
- step:
    name: first
    image: x
    command: python first.py {parameters} --password={parameter-value:api_key}
    parameters:
      - name: api_key
        type: string
        default: zzz-secret
- step:
    name: second
    image: x
    command: python second.py --token {parameter-value:hf_token}
    parameters:
      - name: hf_token
        type: string
        default: none
- pipeline:
    name: both
    nodes:
      - name: first
        type: execution
        step: first
      - name: second
        type: execution
        step: second
    edges:
      - [first.parameter.api_key, second.parameter.hf_token]
"""


def test_a_secret_parameter_reaches_the_step_and_no_record(tmp_path: Path) -> None:
    """Steps get secret parameters as they are; record, messages and all that is written have ``***``."""
    good = "import sys; assert 'zzz-secret' in ' '.join(sys.argv), sys.argv"
    folder = project(tmp_path / "p", SECRETS, first_py=good, second_py=good + "; sys.exit(3)")
    with hub.open(f"sqlite:///{tmp_path / 'reg' / 'models.db'}", cache_dir=tmp_path / "cache") as reg:
        with pytest.raises(ChildFailed) as caught:
            reg.run_pipeline(folder, "both")
        first, second = sorted(reg.runs(), key=lambda run: run.started_at)
        assert "zzz-secret" not in f"{caught.value} {first} {second}"
        assert first.params["api_key"] == "***"
        assert (first.command or "").endswith("--password='***'")
        assert (second.command or "").endswith("--token '***'")
    for path in tmp_path.rglob("*"):
        if path.is_file() and folder not in path.parents:
            assert b"zzz-secret" not in path.read_bytes(), path


def test_a_pipeline_that_fails(reg: Registry, tmp_path: Path) -> None:
    """A node that fails ends the pipeline; with on-error the nodes that need it are left out."""
    with pytest.raises(ChildFailed, match="status 2"):
        reg.run_pipeline(_pipeline(tmp_path / "p"), "all", parameters={"size": -1})
    assert [run.name for run in reg.runs()] == ["prepare"]
    with pytest.raises(ChildFailed, match="status 2"):
        reg.run_pipeline(_pipeline(tmp_path / "p", "stop-next"), "all", parameters={"size": -1})
    for wrong in ({"nope": 1}, {"nope.rows": 1}):
        with pytest.raises(NotFound, match="names nothing of the pipeline 'all'"):
            reg.run_pipeline(_pipeline(tmp_path / "p"), "all", parameters=wrong)
    with pytest.raises(NotFound, match="Did you mean all"):
        reg.run_pipeline(_pipeline(tmp_path / "p"), "alls")


def test_an_edge_that_brings_nothing(reg: Registry, tmp_path: Path) -> None:
    """An output or a metric that a node did not write is named."""
    folder = _pipeline(tmp_path / "p")
    for old, new, what in (
        ("*.csv", "*.txt", "no output that fits"),
        ("metadata.count", "metadata.total", "no metadata"),
    ):
        yaml = (folder / "valohai.yaml").read_text()
        (folder / "valohai.yaml").write_text(yaml.replace(old, new))
        with pytest.raises(NotFound, match=what):
            reg.run_pipeline(folder, "all")
        (folder / "valohai.yaml").write_text(yaml)


def test_the_inputs_of_a_step_alone(clicks: Registry, tmp_path: Path) -> None:
    """`resolve_step` lays out the inputs and writes the config files beside them."""
    folder = project(tmp_path / "p", STEP, train_py="")
    placed = clicks.resolve_step(folder, "train", tmp_path / "vh" / "inputs", parameters={"lr": 2})
    assert set(placed) == {"data", "extra"}
    assert (tmp_path / "vh" / "inputs" / "data" / "a.csv").read_bytes() == b"1,2,3"
    assert not (tmp_path / "vh" / "inputs" / "extra").exists()
    config = tmp_path / "vh" / "config"
    assert json.loads((config / "parameters.json").read_text()) == {"lr": 2.0}
    (file,) = json.loads((config / "inputs.json").read_text())["data"]["files"]
    assert file["path"] == str(tmp_path / "vh" / "inputs" / "data" / "a.csv")
    assert json.loads((config / "execution.json").read_text())["valohai.project-name"].count("/") == 1
    assert {path.name for path in config.iterdir()} >= {
        "execution.yaml",
        "inputs.yaml",
        "parameters.yaml",
        "runtime.json",
    }


def test_a_real_execution_is_taken_over(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside a Valohai execution a run takes id, step, commit, image, parameters, inputs and creator from it."""
    config, outputs = tmp_path / "config", tmp_path / "outputs"
    config.mkdir()
    outputs.mkdir()
    facts: dict[str, Any] = {
        "valohai.execution-id": "0190-abc", "valohai.execution-step": "train-model", "valohai.execution-counter": 6,
        "valohai.commit-identifier": "2db0b9da", "valohai.execution-image": "tensorflow/tensorflow:2.6.0",
        "valohai.creator-email": "ana@example.org", "valohai.pipeline-title": "weekly", "valohai.project-name": "a/b",
    }  # fmt: skip
    (config / "execution.json").write_text(json.dumps(facts))
    (config / "parameters.json").write_text('{"lr": 0.1, "names": ["a"]}')
    rows = [
        {"name": "m.pkl", "uri": "datum://0190-m", "size": 3, "checksums": {"sha256": "a" * 64}},
        {"name": "x", "uri": "https://me:pw@host/x?sig=abc", "size": 1},
        {"name": 7}, "rubbish",
    ]  # fmt: skip
    (config / "inputs.json").write_text(json.dumps({"model": {"files": rows}, "bad": 7}))
    monkeypatch.setenv("VH_CONFIG_DIR", str(config))
    monkeypatch.setenv("VH_OUTPUTS_DIR", str(outputs))
    monkeypatch.chdir(tmp_path)
    with reg.start_run(params={"lr": 0.2}) as run:
        (outputs / "m.bin").write_text("x")
    record = reg.run("0190-abc")
    assert (run.id, record.name, record.step, record.pipeline) == (
        "0190-abc",
        "train-model",
        "train-model",
        "weekly",
    )
    assert (record.code.commit, record.environment.image) == ("2db0b9da", "tensorflow/tensorflow:2.6.0")
    assert record.params == {"lr": 0.2, "names": ("a",)}
    assert [(one.name, one.uri, len(one.files)) for one in record.inputs] == [
        ("model", "datum://0190-m", 1), ("model", record.inputs[1].uri, 0),
    ]  # fmt: skip
    assert "pw" not in record.inputs[1].uri
    assert "abc" not in record.inputs[1].uri
    assert [output.path for output in record.outputs] == ["m.bin"]
    with hub.open("memory://", user=None) as other:
        monkeypatch.delenv("MODELHUB_USER")
        assert other.user == "tester"
    with hub.open("memory://") as other:
        assert other.user == "ana@example.org"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"valohai.execution-id": 7}', '{"valohai.execution-id": "  "}']
)
def test_a_config_that_is_none(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """A malformed execution.json is as good as none: the run is an ordinary one."""
    (tmp_path / "execution.json").write_text(content)
    monkeypatch.setenv("VH_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with reg.start_run("plain", outputs=None) as run:
        pass
    assert reg.run(run.id).step is None


def test_a_step_needs_valohai_yaml_the_package(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without valohai-yaml the error names the extra."""
    import sys

    monkeypatch.setitem(sys.modules, "valohai_yaml", None)
    with pytest.raises(hub.MissingExtra, match=r"modelhub-sdk\[valohai\]"):
        reg.run_step(tmp_path, "train")


def test_what_a_command_begins_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The entry of a step is the first program of its command that is there; odd quoting is no trouble."""
    from modelhub_sdk.run.steps import StepPlan

    (tmp_path / "a.py").write_text("")
    assert runner._entry(StepPlan("s", "i", "x && python ./a.py 'unclosed", "", tmp_path))[0] == "a.py"
    assert runner._entry(StepPlan("s", "i", "echo", "", tmp_path)) == (None, None)
    with caplog.at_level(logging.WARNING):
        assert caplog.records == []
