"""Steps and pipelines of valohai.yaml as plans: what a command means, and mistakes found before anything runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from modelhub_sdk import Registry
from modelhub_sdk.errors import InvalidDocument, InvalidName, InvalidURI, ModelHubError, NotFound
from modelhub_sdk.run import steps
from modelhub_sdk.run.inputs import InputSpec

pytest.importorskip("valohai_yaml")

STEP = """
- step:
    name: s
    image: i
    command: c {parameters}
    inputs: [{name: in, default: model://m/1}, {name: more}]
    parameters:
      - {name: p, type: integer, optional: true}
      - {name: ratio, type: float, default: 0.5, min: 0, max: 1}
      - {name: many, type: string, multiple: separate, multiple-separator: ";", optional: true}
      - {name: fast, type: flag, default: true}
      - {name: api_key, type: integer, optional: true}
    environment-variables: [{name: A, default: "1"}, {name: B}]
"""
PIPE = (
    STEP
    + """
- pipeline:
    name: p
    nodes: [NODES]
    edges: [EDGES]
    parameters: [PARAMETERS]
"""
)
A, B = "{name: a, type: execution, step: s}", "{name: b, type: execution, step: s}"


def project(tmp_path: Path, text: str) -> steps.Project:
    """Load a valohai.yaml of this text."""
    (tmp_path / "valohai.yaml").write_text(text)
    return steps.load(tmp_path)


def piped(
    tmp_path: Path, nodes: str = f"{A}, {B}", edges: str = "", parameters: str = ""
) -> steps.PipelinePlan:
    """Return the plan of a pipeline of these parts."""
    text = PIPE.replace("NODES", nodes).replace("EDGES", edges).replace("PARAMETERS", parameters)
    return steps.pipeline(project(tmp_path, text), "p")


# --- the file


@pytest.mark.parametrize("path", [7, None, "a\0b", b"a\0b", []])
def test_what_is_no_path(path: Any) -> None:
    """Anything but a path is refused in our words."""
    with pytest.raises(InvalidName, match="is not a path"):
        steps.load(path)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    """A name that no disk takes, a folder of that name: each names the path."""
    with pytest.raises(InvalidDocument, match="cannot be read: .*too long"):
        steps.load("x" * 5000)
    (tmp_path / "valohai.yaml").mkdir()
    with pytest.raises(InvalidDocument, match=r"valohai\.yaml' cannot be read: it is a folder"):
        steps.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("\x01: 1", "is not YAML"), ("a: b: c", "is not YAML"), ("[" * 5000, "not a valid"), ("- 7", "not a valid"),
        ("- step: {name: s, image: i, command: c, nonsense: 1}", "not a valid.*nonsense"),
        ("- step: {name: s, image: i, command: c, time-limit: 3 parsecs}", "not a valid"),
    ],
)  # fmt: skip
def test_rubbish(tmp_path: Path, text: str, match: str) -> None:
    """No YAML, and YAML that says something else, are told apart; the message is one printable line."""
    with pytest.raises(InvalidDocument, match=match) as caught:
        project(tmp_path, text)
    assert caught.value.message.isprintable()


def test_an_empty_file_and_any_path(tmp_path: Path) -> None:
    """An empty file is a project without steps; a path may be bytes, and of another name."""
    with pytest.raises(NotFound, match="There are: none"):
        steps.plan(project(tmp_path, ""), "s")
    (tmp_path / "other.yaml").write_text(STEP)
    found = steps.load(os.fsencode(tmp_path / "other.yaml"))
    assert (found.path, found.folder) == (tmp_path / "other.yaml", tmp_path)
    assert steps.plan(found, "s").environment == {"A": "1"}


# --- steps


@pytest.mark.parametrize("step", [[], {}, None, 7])
def test_steps_of_other_types(tmp_path: Path, step: Any) -> None:
    """What is no text is no step, nor a pipeline."""
    found = project(tmp_path, STEP)
    with pytest.raises(NotFound, match="no step"):
        steps.plan(found, step)
    with pytest.raises(NotFound, match="no pipeline"):
        steps.pipeline(found, step)


@pytest.mark.parametrize("given", [7, ["p"], "p", {"p"}])
def test_mappings_of_other_types(tmp_path: Path, given: Any) -> None:
    """Parameters and inputs are mappings; the error says which is not."""
    found = project(tmp_path, STEP)
    with pytest.raises(InvalidName, match="parameters is"):
        steps.plan(found, "s", given)
    with pytest.raises(InvalidName, match="inputs is"):
        steps.plan(found, "s", {}, given)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("p", "1.5", "not an integer"), ("p", True, "not an integer"), ("p", "", "No value supplied"),
        ("p", [1, 2], "Only a single value"), ("ratio", -0.1, "less than the minimum"), ("ratio", None, "has no value"),
        ("fast", "yes", "not among the choices"), ("many", [["x"]], "nested list"),
    ],
)  # fmt: skip
def test_values_that_a_parameter_cannot_have(tmp_path: Path, name: str, value: Any, match: str) -> None:
    """Types, bounds, choices and numbers of values are checked, and the parameter is named."""
    with pytest.raises(InvalidDocument, match=f"'{name}' of step 's'.*{match}"):
        steps.plan(project(tmp_path, STEP), "s", {name: value})


def test_values_in_messages(tmp_path: Path) -> None:
    """A wrong value is shown short and printable; that of a parameter with a secret's name is not shown."""
    found = project(tmp_path, STEP)
    with pytest.raises(InvalidDocument, match="'api_key'") as caught:
        steps.plan(found, "s", {"api_key": "hunter2"})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(InvalidDocument) as caught:
        steps.plan(found, "s", {"p": "\x1b[31m" + "x" * 100_000})
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_the_words_of_a_command(tmp_path: Path) -> None:
    """Several values in one word or none at all, flags on and off, quotes where they are needed."""
    found = project(tmp_path, STEP)
    assert steps.plan(found, "s").command == "c --ratio=0.5 --fast"
    plan = steps.plan(found, "s", {"many": ["a b", "c"], "fast": False, "p": "7"})
    assert plan.command == "c --p=7 --ratio=0.5 '--many=a b;c'"
    assert plan.params == {"p": 7, "ratio": 0.5, "many": ["a b", "c"], "fast": False}
    with pytest.raises(InvalidDocument, match="command of step 's' cannot be built"):
        steps.plan(project(tmp_path, STEP.replace("optional: true}", "default: 1, pass-as: '{x}'}", 1)), "s")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("commands", "status", "output"),
    [
        (["echo a", "echo b"], 0, "a\nb\n"),
        (["false", "true || echo b"], 1, ""),
        (["false", "false || echo b"], 1, ""),
        (["false", "echo a\necho b"], 1, ""),
        (["echo a # why", "echo b"], 0, "a\nb\n"),
        (["# only a comment", "", "echo b"], 0, "b\n"),
        (["true &", "echo b; wait"], 0, "b\n"),
        (["echo a;", "echo b"], 0, "a\nb\n"),
        (["cat <<END\nx\nEND", "echo b"], 0, "x\nb\n"),
        (["cd / && X=1", "echo $PWD$X"], 0, "/1\n"),
        (["echo a | cat", "exit 3", "echo c"], 3, "a\n"),
        (["#!/bin/bash\nfalse\necho b"], 0, "b\n"),
    ],
)  # fmt: skip
def test_commands_one_after_the_other(tmp_path: Path, commands: list[str], status: int, output: str) -> None:
    """Each command means what it means alone, in one shell, and none runs after one that failed."""
    plan = steps.plan(
        project(tmp_path, f"- step: {{name: s, image: i, command: {json.dumps(commands)}}}"), "s"
    )
    done = subprocess.run(
        ["bash", "-c", plan.command], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, output, "")


@pytest.mark.parametrize("name", ["../../evil", "/proc/evil", "..", "a/b", "a\\\\b", "a\\0"])
def test_no_input_leads_out_of_its_folder(reg: Registry, tmp_path: Path, name: str) -> None:
    """An input's name in a valohai.yaml that is no folder's name is refused, and nothing is written."""
    (tmp_path / "data").write_text("x")
    text = (
        f'- step: {{name: s, image: i, command: c, inputs: [{{name: "{name}", default: {tmp_path}/data}}]}}'
    )
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "valohai.yaml").write_text(text)
    with pytest.raises(InvalidDocument, match="not the name of an input"):
        reg.resolve_step(folder, "s", tmp_path / "deep" / "in")
    assert sorted(
        path.name for path in tmp_path.iterdir() if path.suffix != ".db" and "db-" not in path.name
    ) == [
        "data",
        "project",
    ]


def test_inputs_that_are_given(tmp_path: Path) -> None:
    """A URI, a list, a path, nothing: in the place of the default; other types are refused by the input's name."""
    found = project(tmp_path, STEP)

    def uris(given: Any) -> tuple[str, ...]:
        return steps.plan(found, "s", {}, {"in": given}).inputs[0].uris

    assert uris("dataset://d/v1") == ("dataset://d/v1",)
    assert uris(["a", Path("b")]) == ("a", "b")
    assert uris(None) == uris([]) == ()
    assert steps.plan(found, "s").inputs == (
        InputSpec("in", ("model://m/1",), keep="none"), InputSpec("more", keep="none"),
    )  # fmt: skip
    for bad in (7, "", b"x", [None], {"a": 1}):
        with pytest.raises(InvalidURI, match="The input 'in' is"):
            uris(bad)
    with pytest.raises(InvalidName, match="The input 'in'"):
        uris("a\0")


# --- pipelines


@pytest.mark.parametrize(
    ("edges", "parameters", "match"),
    [
        ("[a.output.*, b.input.mor]", "", "no input 'mor'.*Did you mean more"),
        ("[a.input.im, b.input.in]", "", "no input 'im'"),
        ("[a.parameter.ration, b.parameter.p]", "", "no parameter 'ration'.*Did you mean ratio"),
        ("[a.metadata.loss, b.parameter.q]", "", "no parameter 'q'"),
        ("", "{name: x, targets: [c.parameter.p]}", "no node 'c' in 'parameter x'"),
        ("", "{name: x, targets: [a.parameter.q]}", "no parameter 'q' in 'parameter x'"),
    ],
)
def test_ends_that_are_not_there(tmp_path: Path, edges: str, parameters: str, match: str) -> None:
    """A node, input or parameter that an edge or a parameter names is looked for before anything runs."""
    with pytest.raises(NotFound, match=match):
        piped(tmp_path, edges=edges, parameters=parameters)


@pytest.mark.parametrize("target", ["a", "a.input.in", "a.parameter", "a.parameters"])
def test_targets_that_are_no_parameters(tmp_path: Path, target: str) -> None:
    """A pipeline's parameter goes to parameters of nodes, and to nothing else."""
    with pytest.raises(ModelHubError, match="'x'|parameter x"):
        piped(tmp_path, parameters=f"{{name: x, targets: [{target}]}}")


def test_nodes_that_cannot_be_run_here(tmp_path: Path) -> None:
    """Two nodes of one name, a step of another commit, a task: refused, by the node's name."""
    with pytest.raises(InvalidDocument, match="two nodes 'a'"):
        piped(tmp_path, nodes=f"{A}, {A}")
    with pytest.raises(InvalidDocument, match="'a' is a step of the commit 'abc'"):
        piped(tmp_path, nodes="{name: a, type: execution, step: s, commit: abc}")
    with pytest.raises(InvalidDocument, match="'a' is a task"):
        piped(tmp_path, nodes="{name: a, type: task, step: s}")
    with pytest.raises(InvalidDocument, match="'a' wait|circle"):
        piped(tmp_path, edges="[a.parameter.p, a.parameter.p]")


def test_all_that_a_pipeline_says(tmp_path: Path) -> None:
    """Edges of all four kinds, parameters with targets, what follows a failure, merging."""
    plan = piped(
        tmp_path,
        nodes="{name: b, type: execution, step: s, on-error: stop-next, edge-merge-mode: append}, " + A,
        edges="[a.output.x.*, b.input.in], [a.input.in, b.input.more], [a.parameter.p, b.parameter.p],"
        " [a.metadata.loss, b.parameter.ratio]",
        parameters="{name: x, default: 3, targets: [a.parameter.p, b.parameters.p]}, {name: y, target: a.parameter.p}",
    )
    assert [(node.name, node.on_error, node.append) for node in plan.nodes] == [
        ("a", "stop-all", False), ("b", "stop-next", True),
    ]  # fmt: skip
    assert [(edge.what, edge.key, edge.target_what, edge.target_key) for edge in plan.edges] == [
        ("output", "x.*", "input", "in"), ("input", "in", "input", "more"), ("parameter", "p", "parameter", "p"),
        ("metadata", "loss", "parameter", "ratio"),
    ]  # fmt: skip
    assert plan.parameters == {"x": (3, (("a", "p"), ("b", "p"))), "y": (None, (("a", "p"),))}


def test_what_a_node_overrides(tmp_path: Path) -> None:
    """Command, image, defaults, variables and inputs of a node are its own; the step itself stays as it was."""
    nodes = (
        "{name: a, type: execution, step: s, override: {image: j, command: [d, e], inputs: [{name: in, default: [x, y]},"
        " {name: new, default: z}], parameters: [{name: ratio, default: 0.7}],"
        " environment-variables: [{name: B, default: two}]}}, " + B
    )
    plan = piped(tmp_path, nodes=nodes, edges="[b.output.*, a.input.new]")
    found = steps.load(tmp_path)
    by_name = {node.name: node for node in plan.nodes}
    mine = steps.plan(found, "s", override=by_name["a"].override)
    assert (mine.image, mine.command, mine.params["ratio"]) == ("j", "d && e", 0.7)
    assert mine.environment == {"A": "1", "B": "two"}
    assert [(one.name, one.uris) for one in mine.inputs] == [
        ("in", ("x", "y")),
        ("more", ()),
        ("new", ("z",)),
    ]
    assert steps.default_uris(found, by_name["a"], "in") == ["x", "y"]
    assert steps.default_uris(found, by_name["b"], "in") == ["model://m/1"]
    assert steps.plan(found, "s", override=by_name["b"].override).image == "i"


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", ["m.bin", "x/m.bin", "x/a[1].csv"]), ("m.bin", ["m.bin", "x/m.bin"]), ("x/*", ["x/m.bin", "x/a[1].csv"]),
        ("a[1].csv", ["x/a[1].csv"]), ("x/a[1].csv", ["x/a[1].csv"]), ("M.BIN", []), ("n*", []),
    ],
)  # fmt: skip
def test_outputs_that_an_edge_means(pattern: str, found: list[str]) -> None:
    """By path or by name, with wildcards, by the letter; a name that looks like a wildcard is found too."""
    assert steps.fitting(pattern, ["m.bin", "x/m.bin", "x/a[1].csv"]) == found
