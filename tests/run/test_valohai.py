"""The files around a program: valohai-utils finds everything in ours, and we believe nothing of what we find."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from modelhub_sdk.domain.entities import File
from modelhub_sdk.run import mount, steps, valohai
from modelhub_sdk.run.inputs import InputFile, PlacedInput

DIGEST = "a" * 64


def written(folder: Path, **content: Any) -> Path:
    """Write config files: a text as it is, anything else as JSON."""
    for name, value in {"execution": {"valohai.execution-id": "exec-1"}, **content}.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / f"{name}.json").write_text(text)
    return folder


def utils(config: Path, code: str) -> Any:
    """Return what a program prints as JSON that uses valohai-utils with these config files."""
    pytest.importorskip("valohai")
    done = subprocess.run(
        [sys.executable, "-c", "import json, valohai\n" + textwrap.dedent(code)],
        env={
            **os.environ, "VH_JOB_ID": "exec-1", "VH_CONFIG_DIR": str(config),
            "VH_INPUTS_DIR": str(config / "in"), "VH_OUTPUTS_DIR": str(config / "out"),
        },
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_utils_downloads_nothing(tmp_path: Path) -> None:
    """An input without files is written as one: else valohai-utils downloads the defaults that a script names."""
    empty = [PlacedInput(name, (), ()) for name in ("data", "extra")]
    valohai.write_config(tmp_path, params={"lr": 0.5}, inputs=empty, execution={}, inputs_dir="/none")
    assert json.loads((tmp_path / "inputs.json").read_text()) == {
        "data": {"files": []},
        "extra": {"files": []},
    }
    found = utils(
        tmp_path,
        """
        valohai.prepare(step="s", default_parameters={"lr": 1.0},
            default_inputs={"data": "https://127.0.0.1:9/x", "extra": "dataset://d/v1"})
        print(json.dumps([valohai.parameters("lr").value, *(list(valohai.inputs(n).paths()) for n in ("data", "extra"))]))
        """,
    )
    assert found == [0.5, [], []]


def test_utils_finds_files_parameters_and_the_execution(tmp_path: Path) -> None:
    """Paths in folders, values of every type, id, counter and title are what valohai-utils gives to a script."""
    folder = tmp_path / "in" / "m.odel"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.bin").write_text("abc")
    file = InputFile(
        "deep/a.bin", "deep/a.bin", "model://m/v1/deep/a.bin", 3, f"sha256:{DIGEST}", folder / "deep" / "a.bin",
        datum_id="0190-d", metadata=({"rows": {"n": [1]}},),
    )  # fmt: skip
    params = {"n": 3, "text": "é", "many": ["a", "b"], "flag": False}
    facts = valohai.execution_facts(
        run_id="0190-run",
        number=7,
        name="title",
        step="train",
        image="img",
        commit=None,
        user="ana",
        project=None,
    )
    valohai.write_config(
        tmp_path, params=params, inputs=[PlacedInput("m.odel", ("model://m/v1",), (file,), folder)],
        execution=facts, inputs_dir=str(tmp_path / "in"),
    )  # fmt: skip
    found = utils(
        tmp_path,
        """
        valohai.prepare(step="train", default_parameters={"n": 0, "text": "", "many": [], "flag": True})
        execution = valohai.execution().config
        print(json.dumps([
            valohai.inputs("m.odel").path(), list(valohai.inputs("m.odel").paths("deep/*.bin")),
            valohai.parameters("n").value, valohai.parameters("text").value,
            valohai.parameters("many").value, valohai.parameters("flag").value,
            execution.id, execution.counter, execution.title,
        ]))
        """,
    )
    path = str(folder / "deep" / "a.bin")
    assert found == [path, [path], 3, "é", ["a", "b"], False, "0190-run", 7, "title"]
    (row,) = json.loads((tmp_path / "inputs.json").read_text())["m.odel"]["files"]
    assert (row["uri"], row["storage_uri"], row["metadata"]) == (
        "datum://0190-d",
        "model://m/v1/deep/a.bin",
        [{"rows": {"n": [1]}}],
    )
    assert set(row["checksums"]) == {"md5", "sha1", "sha256"}


def test_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    """Each file is there twice, with one content."""
    yaml = pytest.importorskip("yaml")
    valohai.write_config(
        tmp_path, params={"x": 1, "t": "no", "l": (1, 2)}, inputs=[], execution={"valohai.execution-id": "e"}, inputs_dir="/x"
    )  # fmt: skip
    for name in ("parameters", "inputs", "execution", "runtime"):
        assert yaml.safe_load((tmp_path / f"{name}.yaml").read_text()) == json.loads(
            (tmp_path / f"{name}.json").read_text()
        )


def test_what_we_write_we_read(tmp_path: Path) -> None:
    """The facts of a run come back as those of an execution; the project has its slash."""
    facts = valohai.execution_facts(
        run_id="0190-run",
        number=7,
        name="title",
        step="train",
        image="img",
        commit="abc",
        user="a@b.c",
        project="p",
    )
    file = InputFile("a/b.csv", "a/b.csv", "dataset://d/v1/a/b.csv", 3, f"sha256:{DIGEST}")
    valohai.write_config(
        tmp_path, params={"lr": 0.1}, inputs=[PlacedInput("x", ("dataset://d/v1",), (file,))],
        execution=facts, inputs_dir="/valohai/inputs",
    )  # fmt: skip
    found = valohai.execution(tmp_path)
    assert found is not None
    assert (found.id, found.number, found.title, found.step) == ("0190-run", 7, "title", "train")
    assert (found.commit, found.image, found.project, found.creator) == ("abc", "img", "local/p", "a@b.c")
    assert (found.params, found.problems) == ({"lr": 0.1}, ())
    assert [(one.uri, one.name, one.files) for one in found.inputs] == [
        ("dataset://d/v1/a/b.csv", "x", (File("a/b.csv", 3, f"sha256:{DIGEST}"),))
    ]


def test_facts_of_pipelines_and_tasks(tmp_path: Path) -> None:
    """Pipeline, node, task and tags are taken over; what has another type is not."""
    facts: dict[str, Any] = {
        "valohai.execution-id": "e", "valohai.pipeline-id": "p-1", "valohai.pipeline-node-id": "n-1",
        "valohai.task-id": "t-1", "valohai.execution-tags": ["a", 7, "", "b"], "valohai.execution-counter": True,
        "valohai.creator-email": None, "valohai.creator-name": "ana",
    }  # fmt: skip
    found = valohai.execution(written(tmp_path, execution=facts))
    assert found is not None
    assert (found.pipeline, found.node, found.task, found.tags) == ("p-1", "n-1", "t-1", ("a", "b"))
    assert (found.number, found.creator) == (None, "ana")
    found = valohai.execution(written(tmp_path, execution={**facts, "valohai.execution-tags": "a"}))
    assert found is not None
    assert found.tags == ()


@pytest.mark.parametrize("given", ["", "  ", "../../x", "a b", "a\nb", "x" * 300, ".hidden", 7, None])
def test_an_id_that_is_none(tmp_path: Path, given: Any) -> None:
    """An id that no run can have makes no execution."""
    assert valohai.execution(written(tmp_path, execution={"valohai.execution-id": given})) is None


GOOD = {"name": "x", "uri": "datum://d", "size": 1, "checksums": {"sha256": DIGEST}}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../etc/x"}, {"name": "/etc/x"}, {"name": "a//b"}, {"size": -1}, {"size": 10**30}, {"size": True},
        {"size": "1"}, {"size": None}, {"checksums": {"sha256": "Z" * 64}}, {"checksums": {"sha256": "a" * 63}},
        {"checksums": {"sha256": 7}}, {"checksums": "a"}, {"checksums": None},
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_believed(tmp_path: Path, change: dict[str, Any]) -> None:
    """The URI of an input stays; a name, size or digest that cannot be is not recorded, and a sentence tells."""
    found = valohai.execution(written(tmp_path, inputs={"m": {"files": [{**GOOD, **change}, GOOD]}}))
    assert found is not None
    bad, good = found.inputs
    assert (bad.uri, bad.files) == ("datum://d", ())
    assert good.files == (File("x", 1, f"sha256:{DIGEST}"),)
    assert len(found.problems) == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"inputs": {"a/b": {"files": [GOOD]}}}, "'a/b' is left out"),
        ({"inputs": {"m": {"files": "x"}}}, "'m' is left out"),
        ({"inputs": {"m": "http://x"}}, "'m' is left out"),
        ({"inputs": {"m": {"files": ["x"]}}}, "a file of 'm' without name or URI"),
        (
            {"inputs": {"m": {"files": [{"name": "\ud800", "uri": "datum://d"}]}}},
            "a file of 'm' without name or URI",
        ),
        ({"inputs": [1]}, "inputs.json is not a JSON object"),
        ({"inputs": "{"}, "inputs.json cannot be read"),
        ({"parameters": "[" * 100_000}, "parameters.json cannot be read"),
        ({"parameters": {"": 1}}, "parameters.json: params has an empty key"),
        ({"parameters": '{"x":' + "[" * 100 + "]" * 100 + "}"}, "parameters.json: .*nested deeper"),
        ({"parameters": {"x": "y" * 200_000}}, "parameters.json: .*'x'"),
    ],
)
def test_problems_are_told_and_never_raised(
    tmp_path: Path, content: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be used is left out with one sentence, in the value and in the log; the rest is there."""
    import re

    caplog.set_level(logging.WARNING)
    found = valohai.execution(written(tmp_path, **content))
    assert found is not None
    assert (found.id, found.inputs, found.params) == ("exec-1", (), {})
    assert len(found.problems) == 1
    assert re.search(told, found.problems[0])
    assert caplog.messages == list(found.problems)


def test_secrets_of_urls_stay_out(tmp_path: Path) -> None:
    """Neither the record nor the sentences hold what a URL was signed with."""
    row = {"name": "x", "uri": "https://me:pw123@host/x?X-Amz-Signature=sig123"}
    found = valohai.execution(written(tmp_path, inputs={"m": {"files": [row]}}))
    assert "pw123" not in repr(found)
    assert "sig123" not in repr(found)


def test_a_flag_that_is_not_set(tmp_path: Path) -> None:
    """A flag has a value, False, where a script looks for it; the command does not name it."""
    pytest.importorskip("valohai_yaml")
    (tmp_path / "valohai.yaml").write_text(
        "- step: {name: s, image: i, command: 'c {parameters}', parameters: "
        "[{name: fast, type: flag}, {name: free, type: string, optional: true}]}"
    )
    plan = steps.plan(steps.load(tmp_path), "s")
    assert (plan.params, plan.command.strip()) == ({"fast": False}, "c")


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ('Path("/valohai", "inputs")', True), ("os.path.join('/valohai', 'x')", True), ("X=/valohai/outputs", True),
        ("open(f'/valohai/{x}')", True), ("https://x/valohai", False), ("'/valohai-utils/x'", False),
        ("'/valohai.yaml'", False), ("import valohai", False),
    ],
)  # fmt: skip
def test_whether_a_program_needs_the_folder(tmp_path: Path, text: str, needed: bool) -> None:
    """Also a program that names /valohai alone, and puts the rest behind it, needs it."""
    (tmp_path / "a.py").write_text(text)
    assert mount.is_needed("python a.py", tmp_path) == needed
