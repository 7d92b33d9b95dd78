"""Inputs laid out as Valohai does, from the registry and from anywhere else; steps of valohai.yaml as plans."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelhub_sdk import Registry
from modelhub_sdk.errors import (
    Conflict,
    InvalidDocument,
    InvalidName,
    InvalidURI,
    ModelHubError,
    NotFound,
)
from modelhub_sdk.run import inputs, steps
from modelhub_sdk.run.inputs import InputSpec


def names(folder: Path) -> list[str]:
    """Return what lies in a folder, by path."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def full(reg: Registry) -> Registry:
    """A registry with a model, a dataset and a datum."""
    reg.approve(reg.register("m", {"deep/m.bin": b"model", "card.md": b"card"}))
    reg.create_dataset_version("d/v1", {"sub/a.csv": b"1", "b.csv": b"2"})
    return reg


def lay(reg: Registry, into: Path, *wanted: InputSpec, **params: Any) -> Any:
    """Lay out inputs, and return them by name."""
    placed = inputs.lay_out(reg, wanted, into, params)
    return {one.name: one for one in placed}


def test_a_folder_for_each_input(full: Registry, tmp_path: Path) -> None:
    """Versions keep their folders; lists are united; what is returned says where each file is and what it was."""
    into = tmp_path / "in"
    found = full.resolve_inputs(
        {"model": "model://m/latest", "all.csv": ["dataset://d/v1", "model://m/v1/card.md"]}, into
    )
    assert names(into) == [
        "all.csv/b.csv",
        "all.csv/card.md",
        "all.csv/sub/a.csv",
        "model/card.md",
        "model/deep/m.bin",
    ]
    assert found["model"].uris == ("model://m/v1",)
    (file,) = [one for one in found["model"].files if one.name == "deep/m.bin"]
    assert (file.uri, file.size, file.path) == (
        "model://m/v1/deep/m.bin",
        5,
        into / "model" / "deep" / "m.bin",
    )
    assert found["all.csv"].folder == into / "all.csv"


def test_files_are_the_user_s_own(full: Registry, tmp_path: Path) -> None:
    """Inputs may be written and moved away, as scripts do: cache and store are not touched."""
    full.resolve_inputs({"data": "dataset://d/v1"}, tmp_path / "in")
    (tmp_path / "in" / "data" / "b.csv").write_text("mine")
    (tmp_path / "in" / "data" / "sub" / "a.csv").rename(tmp_path / "away")
    assert Path(full.resolve("dataset://d/v1", verify="always").path, "b.csv").read_bytes() == b"2"
    assert full.verify().ok


def test_keep_directories(full: Registry, tmp_path: Path) -> None:
    """none is flat, suffix begins at the wildcard, full at the top; a filename is for one file alone."""
    source = tmp_path / "source"
    (source / "x" / "y").mkdir(parents=True)
    (source / "x" / "y" / "deep.csv").write_text("1")
    (source / "x" / "top.csv").write_text("2")
    url = f"file://{source}/x/**.csv"
    assert names(_laid(full, tmp_path, InputSpec("a", (url,), keep="none"))) == ["deep.csv", "top.csv"]
    assert names(_laid(full, tmp_path, InputSpec("b", ("dataset://d/v1",), keep="none"))) == [
        "a.csv",
        "b.csv",
    ]
    assert names(_laid(full, tmp_path, InputSpec("c", ("dataset://d/v1",), keep="full"))) == [
        "b.csv",
        "sub/a.csv",
    ]
    assert names(_laid(full, tmp_path, InputSpec("d", ("dataset://d/v1",), keep="suffix"))) == [
        "b.csv",
        "sub/a.csv",
    ]
    assert names(_laid(full, tmp_path, InputSpec("e", ("model://m/v1/card.md",), filename="new.md"))) == [
        "new.md"
    ]
    assert names(_laid(full, tmp_path, InputSpec("f", ("dataset://d/v1",), filename="x"))) == [
        "b.csv",
        "sub/a.csv",
    ]


def _laid(reg: Registry, tmp_path: Path, spec: InputSpec, **params: Any) -> Path:
    found = lay(reg, tmp_path / "in", spec, **params)[spec.name]
    assert found.folder is not None
    return Path(found.folder)


def test_two_files_of_one_name(full: Registry, tmp_path: Path) -> None:
    """Valohai overwrites the first; here it is an error that names both, and nothing appears."""
    full.create_dataset_version("e/v1", {"b.csv": b"other"})
    spec = InputSpec("both", ("dataset://d/v1/b.csv", "dataset://e/v1"), keep="none")
    with pytest.raises(
        InvalidDocument, match=r"two files 'b.csv': 'dataset://d/v1/b.csv' and 'dataset://e/v1/b.csv'"
    ):
        lay(full, tmp_path / "in", spec)
    assert not (tmp_path / "in").exists()
    same = InputSpec("same", ("dataset://d/v1/b.csv", "dataset://d/v1"))
    assert names(_laid(full, tmp_path, same)) == ["b.csv", "sub/a.csv"]


def test_optional_and_on_demand(full: Registry, tmp_path: Path) -> None:
    """Optional without a URI: no folder. On demand: listed, and not on the disk. Neither: an error."""
    found = lay(
        full,
        tmp_path / "in",
        InputSpec("none", optional=True),
        InputSpec("later", ("dataset://d/v1",), download=False),
    )
    assert (found["none"].files, found["none"].folder) == ((), None)
    assert [(file.name, file.path) for file in found["later"].files] == [("b.csv", None), ("sub/a.csv", None)]
    assert not (tmp_path / "in").exists()
    with pytest.raises(NotFound, match="The input 'must' has no URI"):
        lay(full, tmp_path / "in", InputSpec("must"))


def test_parameters_in_uris(full: Registry, tmp_path: Path) -> None:
    """A parameter stands for its raw value, in a part of a URI or as all of it."""
    assert inputs.substituted("dataset://d/{parameter:v}", {"v": "v1"}) == "dataset://d/v1"
    assert names(_laid(full, tmp_path, InputSpec("a", ("{parameter:url}",)), url="model://m/1")) == [
        "card.md",
        "deep/m.bin",
    ]
    with pytest.raises(InvalidURI, match="needs the parameter 'w'.*There are: 'v'"):
        inputs.substituted("{parameter:w}", {"v": 1})
    with pytest.raises(InvalidURI, match="There are: none"):
        inputs.substituted("{parameter:w}", {})


def test_nothing_appears_when_one_cannot_be_had(full: Registry, tmp_path: Path) -> None:
    """Everything is fetched before the first folder appears; the message names the input."""
    for bad in (
        "dataset://d/v9",
        "nowhere.csv",
        "file:///nowhere/*.csv",
        "model://nope/latest",
        "x://y/z",
        "http://127.0.0.1:9/x",
    ):
        with pytest.raises(ModelHubError, match="The input 'bad' cannot be had"):
            full.resolve_inputs({"good": "dataset://d/v1", "bad": bad}, tmp_path / "in")
        assert not (tmp_path / "in").exists()


def test_again_and_in_the_way(full: Registry, tmp_path: Path) -> None:
    """The same inputs again change nothing; files of somebody else's are not overwritten."""
    for _ in range(2):
        full.resolve_inputs({"data": "dataset://d/v1"}, tmp_path / "in")
    assert names(tmp_path / "in") == ["data/b.csv", "data/sub/a.csv"]
    (tmp_path / "in" / "other").mkdir()
    (tmp_path / "in" / "other" / "b.csv").write_text("mine")
    with pytest.raises(Conflict, match=r"b\.csv"):
        full.resolve_inputs({"other": "dataset://d/v1"}, tmp_path / "in")
    assert (tmp_path / "in" / "other" / "b.csv").read_text() == "mine"


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a\\b", "x" * 65, "a\0", "a\nb", 7, None])
def test_bad_names_of_inputs(full: Registry, tmp_path: Path, bad: Any) -> None:
    """A name that is no folder's name is refused."""
    with pytest.raises(InvalidName, match="not the name of an input"):
        full.resolve_inputs({bad: "dataset://d/v1"}, tmp_path / "in")


def test_what_is_no_input(full: Registry, tmp_path: Path) -> None:
    """Other types are refused by name."""
    for bad in ([], 7, "dataset://d/v1"):
        with pytest.raises(InvalidName, match="Pass a mapping"):
            full.resolve_inputs(bad, tmp_path / "in")  # type: ignore[arg-type]
    for bad in (7, [""], [None], [b"x"], {}):
        with pytest.raises(ModelHubError):
            full.resolve_inputs({"x": bad}, tmp_path / "in")
    for bad in (7, "", "a\0"):
        with pytest.raises(InvalidName, match="not a folder"):
            full.resolve_inputs({"x": "dataset://d/v1"}, bad)  # type: ignore[arg-type]


# --- from elsewhere


def test_paths_and_folders(full: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local files and folders, by path or file://; a record never holds where they lie on this machine."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "a.txt").write_text("a")
    (tmp_path / "data" / "sub" / "b.txt").write_text("b")
    found = full.resolve_inputs(
        {"x": "data", "y": (tmp_path / "data" / "a.txt").as_uri(), "z": Path("data/a.txt")}, "in"
    )
    assert names(tmp_path / "in") == ["x/a.txt", "x/b.txt", "y/a.txt", "z/a.txt"]
    assert [one.uri for one in found["x"].run_inputs()] == ["file:data/a.txt", "file:data/sub/b.txt"]
    monkeypatch.chdir(tmp_path / "in")
    outside = full.resolve_inputs({"x": tmp_path / "data" / "a.txt"}, tmp_path / "other")
    assert [one.uri for one in outside["x"].run_inputs()] == ["file:a.txt"]


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    """A web server with one file."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "table.csv").write_text("from the web")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "www"))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_from_the_web(full: Registry, tmp_path: Path, website: str) -> None:
    """A file by http, with its digest; a missing one is named; a signature in the URL enters no record."""
    found = full.resolve_inputs({"x": f"{website}/table.csv?sig=secret123"}, tmp_path / "in")
    (file,) = found["x"].files
    assert file.path is not None
    assert file.path.read_text() == "from the web"
    assert "secret123" not in repr(found["x"].run_inputs())
    with pytest.raises(ModelHubError, match="The input 'x' cannot be had") as caught:
        full.resolve_inputs(
            {"x": f"{website.replace('//', '//me:secret123@')}/missing.csv"}, tmp_path / "in2"
        )
    assert "secret123" not in str(caught.value)


def test_from_an_object_store(full: Registry, tmp_path: Path, s3_bucket: Any) -> None:
    """Objects by wildcard, flat or with their folders; nothing that fits is an error."""
    import s3fs

    fs = s3fs.S3FileSystem()
    root = s3_bucket.url.removeprefix("s3://")
    for name in ("data/a.csv", "data/deep/b.csv", "data/c.txt"):
        fs.pipe_file(f"{root}/{name}", name.encode())
    url = f"{s3_bucket.url}/data/**.csv"
    assert names(_laid(full, tmp_path, InputSpec("flat", (url,)))) == ["a.csv", "b.csv"]
    assert names(_laid(full, tmp_path, InputSpec("suffix", (url,), keep="suffix"))) == ["a.csv", "deep/b.csv"]
    one = lay(full, tmp_path / "in", InputSpec("one", (f"{s3_bucket.url}/data/c.txt",)))["one"]
    assert [(file.uri, file.size) for file in one.files] == [(f"{s3_bucket.url}/data/c.txt", 10)]
    with pytest.raises(NotFound, match="Nothing fits"):
        lay(full, tmp_path / "in", InputSpec("none", (f"{s3_bucket.url}/data/*.parquet",)))
    with pytest.raises(NotFound, match="There is nothing at"):
        lay(full, tmp_path / "in", InputSpec("none", (f"{s3_bucket.url}/data/nope",)))


# --- plans

yaml = pytest.importorskip("valohai_yaml")

STEP = """
- step:
    name: train
    image: python:3.11
    command: [echo start, "python t.py {parameters}"]
    inputs:
      - {name: data, default: ["dataset://d/v1", "dataset://e/v1"], keep-directories: suffix}
      - {name: model, filename: m.bin, optional: true, download: on-demand}
    parameters:
      - {name: lr, type: float, default: 0.1, min: 0, max: 1}
      - {name: n, type: integer}
      - {name: mode, type: string, default: a, choices: [a, b]}
      - {name: many, type: string, multiple: repeat, default: [x]}
      - {name: fast, type: flag, default: false}
      - {name: free, type: string, optional: true}
"""


def project(tmp_path: Path, text: str = STEP) -> steps.Project:
    """Load a valohai.yaml of this text."""
    (tmp_path / "valohai.yaml").write_text(text)
    return steps.load(tmp_path)


def test_a_plan(tmp_path: Path) -> None:
    """Defaults and what is given, checked and typed; the command with its parameters; the inputs as they are asked for."""
    plan = steps.plan(
        project(tmp_path), "train", {"n": "3", "fast": True, "many": ["y", "z w"]}, {"model": "model://m/v1"}
    )
    assert plan.params == {"lr": 0.1, "n": 3, "mode": "a", "many": ["y", "z w"], "fast": True}
    assert plan.command.startswith(
        "echo start && python t.py --lr=0.1 --n=3 --mode=a --many=y '--many=z w' --fast"
    )
    data, model = plan.inputs
    assert data == InputSpec("data", ("dataset://d/v1", "dataset://e/v1"), keep="suffix")
    assert model == InputSpec(
        "model", ("model://m/v1",), keep="none", filename="m.bin", optional=True, download=False
    )
    assert steps.plan(project(tmp_path), "train", {"n": 1}, {"data": None}).inputs[0].uris == ()


@pytest.mark.parametrize(
    ("parameters", "given", "error", "match"),
    [
        ({}, {}, InvalidDocument, "'n' of step 'train' has no value"),
        ({"n": "x"}, {}, InvalidDocument, "'n' of step 'train': .*not an integer"),
        ({"n": 1, "lr": 2}, {}, InvalidDocument, "greater than the maximum"),
        ({"n": 1, "mode": "c"}, {}, InvalidDocument, "choices"),
        ({"n": 1, "lrr": 2}, {}, NotFound, "no parameter 'lrr'.*Did you mean lr"),
        ({"n": 1}, {"dat": "x"}, NotFound, "no input 'dat'.*Did you mean data"),
    ],
)
def test_wrong_parameters_and_inputs(
    tmp_path: Path, parameters: Any, given: Any, error: type[Exception], match: str
) -> None:
    """Each names the parameter or input, what is wrong with it, and the nearest that there is."""
    with pytest.raises(error, match=match):
        steps.plan(project(tmp_path), "train", parameters, given)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("- step: [", "is not YAML"), ("- step:\n    name: x\n", "is not a valid valohai.yaml"), ("7", "not a valid"),
        ("- step:\n    name: x\n    image: i\n    command: c\n    inputs: [{name: a, keep-directories: maybe}]\n", "not a valid"),
    ],
)  # fmt: skip
def test_a_file_that_is_none(tmp_path: Path, text: str, match: str) -> None:
    """YAML that is broken, or says something else."""
    with pytest.raises(InvalidDocument, match=match):
        project(tmp_path, text)


def test_files_and_steps_that_are_not_there(tmp_path: Path) -> None:
    """A missing file, folder, step or pipeline is named."""
    with pytest.raises(NotFound, match=r"valohai\.yaml"):
        steps.load(tmp_path)
    (tmp_path / "bad").write_bytes(b"\xff")
    with pytest.raises(InvalidDocument, match="cannot be read"):
        steps.load(tmp_path / "bad")
    with pytest.raises(NotFound, match="no step 'trian'.*Did you mean train"):
        steps.plan(project(tmp_path), "trian")
    with pytest.raises(NotFound, match="no pipeline 'p'.*There are: none"):
        steps.pipeline(project(tmp_path), "p")


PIPE = """
- step: {{name: s, image: i, command: c, inputs: [{{name: in}}], parameters: [{{name: p, type: string, default: x}}]}}
- pipeline:
    name: p
    nodes: [{nodes}]
    edges: [{edges}]
"""
A, B = "{name: a, type: execution, step: s}", "{name: b, type: execution, step: s, edge-merge-mode: append}"


@pytest.mark.parametrize(
    ("nodes", "edges", "error", "match"),
    [
        (A + ", {name: d, type: deployment, deployment: x}", "", InvalidDocument, "only execution nodes"),
        (A + ", {name: b, type: execution, step: t}", "", NotFound, "no step 't'"),
        (A, "[a.output.*, c.input.in]", NotFound, "no node 'c'"),
        (f"{A}, {B}", "[a.output.*, b.parameter.p]", InvalidDocument, "cannot be followed"),
        (f"{A}, {B}", "[a.output.*, b.input.in], [b.output.*, a.input.in]", InvalidDocument, "circle"),
    ],
)
def test_pipelines_that_cannot_run(
    tmp_path: Path, nodes: str, edges: str, error: type[Exception], match: str
) -> None:
    """Other nodes, unknown steps, edges that lead nowhere, circles: an error before anything runs."""
    with pytest.raises(error, match=match):
        steps.pipeline(project(tmp_path, PIPE.format(nodes=nodes, edges=edges)), "p")


def test_the_order_of_nodes(tmp_path: Path) -> None:
    """Nodes come after what they need; append keeps an input's own URIs."""
    found = project(tmp_path, PIPE.format(nodes=f"{B}, {A}", edges="[a.output.*, b.input.in]"))
    plan = steps.pipeline(found, "p")
    assert [(node.name, node.append) for node in plan.nodes] == [("a", False), ("b", True)]
    assert steps.default_uris(found, plan.nodes[1], "in") == []
    assert steps.default_uris(found, plan.nodes[1], "nope") == []
    assert steps.fitting("*.csv", ["x/a.csv", "b.txt"]) == ["x/a.csv"]


def test_actions_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Conditions of a pipeline are not followed, and the log says so."""
    node = "{name: a, type: execution, step: s, actions: [{when: node-complete, if: metadata.x > 1, then: stop-pipeline}]}"
    steps.pipeline(project(tmp_path, PIPE.format(nodes=node, edges="")), "p")
    assert "actions of node a are not followed" in caplog.text
