"""A run from its start to its end: what is captured, what is recorded, and what happens when things go wrong."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.errors import Conflict, InvalidDocument, InvalidName, NotAllowed, NotFound
from tests.support.bars import counted_bars

EVERY = pytest.mark.parametrize("reg", ["memory", "sqlite", "folder"], indirect=True)


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in an empty folder of its own."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def annotated(folder: str, name: str, metadata: dict[str, Any], content: bytes = b"weights") -> None:
    Path(folder).mkdir(exist_ok=True)
    Path(folder, name).write_bytes(content)
    Path(folder, name + ".metadata.json").write_text(json.dumps(metadata))


def script(
    body: str, *arguments: str, check: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in the working folder, as a user would."""
    Path("script.py").write_text(textwrap.dedent(body))
    done = subprocess.run(
        [sys.executable, "script.py", *arguments], capture_output=True, text=True, env={**os.environ, **variables},
        timeout=60, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr
    return done


@EVERY
def test_a_run_is_recorded_whole(reg: Registry) -> None:
    """One block: parameters, metrics, a file read, outputs, a version with full lineage; nothing logged but metrics."""
    Path("data.csv").write_text("a,b\n1,2\n")
    with reg.start_run(
        "fit", params={"lr": 0.1, "net": {"layers": 2}}, tags=["nightly"], group="sweep"
    ) as run:
        Path("data.csv").read_text()
        run.params["lr"] = 0.2
        run.log({"loss": 2.0}, step=1)
        run.log({"loss": 1.5, "acc": float("nan")}, step=2)
        annotated("outputs", "model.bin", {"valohai.model-versions": ["model://churn/"]})
    record = reg.run(run.id)
    assert (record.name, record.status, record.exit_status, record.exception) == ("fit", "completed", 0, None)
    assert (record.number, record.group, record.tags, record.user) == (1, "sweep", ("nightly",), reg.user)
    assert record.params == {"lr": 0.2, "net.layers": 2}
    assert record.metrics["loss"] == 1.5
    assert math.isnan(record.metrics["acc"])
    assert record.duration is not None
    assert record.ended_at is not None
    assert record.ended_at >= record.started_at
    (one,) = record.inputs
    assert (one.uri, one.seen, one.changed, one.files[0].size) == ("file:data.csv", True, False, 8)
    assert [output.path for output in record.outputs] == ["model.bin"]
    assert record.versions == ("model://churn/v1",)
    assert record.environment.python is not None
    assert "attrs" in record.environment.packages
    version = reg.version("churn/v1")
    assert (version.run_id, version.metrics["loss"], version.params["lr"]) == (run.id, 1.5, 0.2)
    assert version.duration is not None
    series = reg.metrics(run.id)
    assert [(point["step"], point["value"]) for point in series["loss"]] == [(1, 2.0), (2, 1.5)]
    assert reg.lineage(version).run == record
    assert run.finish() == record
    assert reg.verify().ok


def test_the_series_of_a_run_without_metrics_is_empty(reg: Registry) -> None:
    """A run that logs nothing has no series; its outputs folder is gone again."""
    with reg.start_run("quiet") as run:
        pass
    assert reg.metrics(run.id) == {}
    assert not Path("outputs").exists()


def test_an_exception_is_recorded_and_goes_on(reg: Registry) -> None:
    """A failed run keeps its outputs and makes no versions; what was registered before stands, with the run."""
    with pytest.raises(ValueError, match="boom"), reg.start_run("bad") as run:
        run.register("churn", {"m": b"early"})
        annotated(
            "outputs", "model.bin", {"valohai.model-versions": ["model://churn/"], "valohai.alias": "kept"}
        )
        raise ValueError("boom at https://user:secret@example.org/x")
    record = reg.run(run.id)
    assert (record.status, record.exit_status) == ("failed", 1)
    assert record.exception == "ValueError: boom at https://***@example.org/x" or (
        record.exception is not None and "secret" not in record.exception
    )
    assert record.versions == ("model://churn/v1",)
    assert [output.path for output in record.outputs] == ["model.bin"]
    assert reg.datum("kept").run_id == run.id
    assert any("no versions are made" in alert.message for alert in record.alerts)
    assert reg.audit(action="run.finished")[0].detail.startswith("failed run:")


def test_what_a_run_said_can_be_redacted(reg: Registry) -> None:
    """The command line, the exception and its traceback are erased from every place; the chain still verifies."""
    with pytest.raises(ValueError, match="Ana"), reg.start_run("bad") as run:
        raise ValueError("Ana Example")
    assert reg.run(run.id).command is not None
    (trace,) = [e.traceback for e in _finished(reg) if e.traceback]
    assert b"Ana" in reg._core.artifacts().read(trace)
    assert reg.run(run.id).traceback == reg._core.artifacts().read(trace).decode()
    left = reg.redact("run:" + run.id, "exception", "a name")
    assert (left.exception, left.traceback, left.command is None) == (None, None, False)
    assert not reg._core.artifacts().has(trace, None)
    assert reg.redact(left, "all", "more").command is None
    stored = b"".join(record.body + record.private for record in reg._core.place.store.read(0))
    assert b"Ana" not in stored
    assert reg.verify().ok
    reg.create_dataset("clicks", description="of Ana")
    assert reg.redact("dataset://clicks/", "description", "a name").description is None
    assert b"Ana" not in b"".join(record.private for record in reg._core.place.store.read(0))
    for bad in ("run:nope", "dataset://nope/"):
        with pytest.raises(NotFound):
            reg.redact(bad, "all", "x")
    with pytest.raises(NotFound, match="has no 'title' to redact"):
        reg.redact("dataset://clicks/", "title", "x")


def test_a_traceback_that_two_runs_share_stays_for_the_other(reg: Registry) -> None:
    """Equal bytes are stored once: redacting one run takes nothing from another, the last one erases them."""

    def fails() -> str:
        with pytest.raises(ValueError, match="Ana"), reg.start_run("bad") as run:
            raise ValueError("Ana Example")
        return run.id

    one, other = fails(), fails()
    assert reg.run(one).traceback == reg.run(other).traceback
    assert "ValueError: Ana Example" in (reg.run(one).traceback or "")
    (trace,) = {e.traceback for e in _finished(reg)}
    assert reg.redact("run:" + one, "exception", "a name").traceback is None
    assert "Ana" in (reg.run(other).traceback or "")
    assert reg._core.artifacts().has(trace, None)
    assert next(iter(reg.runs())).traceback is None  # nothing is fetched for a list
    reg.redact("run:" + other, "exception", "a name")
    assert not reg._core.artifacts().has(trace, None)
    assert reg.verify().ok


def test_what_a_run_keeps_is_verified(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of packages, a series, a traceback or a datum that is lost is found, and the bar has every byte."""
    with pytest.raises(ValueError, match="x"), reg.start_run("bad") as run:
        run.log({"loss": 0.5})
        raise ValueError("x")
    assert reg.verify().ok
    blobs = reg._core.artifacts()
    stored = dict(blobs.digests())
    with monkeypatch.context() as patch:
        bars = counted_bars(patch)
        assert reg.verify().blobs == len(stored) == 3
    told = [count for *_, counts in bars for count in counts]
    assert sum(told) == sum(stored.values())
    for digest in stored:
        blobs.delete(digest, needed=lambda: False)
    problems = reg.verify().problems
    assert len(problems) == 3
    assert all(f"run:{run.id}, what it keeps: The blob" in one for one in problems)


def _finished(reg: Registry) -> list[Any]:
    with reg._core.view() as view:
        return view.events("run.finished")


@pytest.mark.parametrize(
    ("code", "status", "number"),
    [(0, "completed", 0), (None, "completed", 0), (3, "failed", 3), ("no", "failed", 1)],
)
def test_sys_exit_is_an_outcome(reg: Registry, code: Any, status: str, number: int) -> None:
    """`sys.exit` ends a run as the shell would see it."""
    with pytest.raises(SystemExit), reg.start_run("exit") as run:
        sys.exit(code)
    assert (reg.run(run.id).status, reg.run(run.id).exit_status) == (status, number)


def test_ctrl_c_is_a_failure(reg: Registry) -> None:
    """An interrupted block ends its run, and the interruption goes on."""
    with pytest.raises(KeyboardInterrupt), reg.start_run("stopped") as run:
        raise KeyboardInterrupt
    assert (reg.run(run.id).status, reg.run(run.id).exception) == ("failed", "KeyboardInterrupt")


def test_a_run_is_running_until_it_ends(reg: Registry) -> None:
    """While the block is on, the run is there with what it began with."""
    with reg.start_run("long", params={"lr": 1}) as run:
        (seen,) = reg.runs(where="status = 'running' and params.lr = 1")
        assert (seen.id, seen.ended_at) == (run.id, None)
    assert reg.runs(where="status = 'running'").total == 0


def test_secrets_never_enter_a_record(reg: Registry) -> None:
    """Values of names like password and token, and passwords in URLs, are masked in parameters."""
    params = {
        "api_key": "s3cr3t",
        "db": "postgresql://me:s3cr3t@host/db",
        "max_tokens": 5,
        "nested": {"password": "s3cr3t"},
    }
    with reg.start_run("secret", params=params) as run:
        run.params["auth_token"] = "s3cr3t"
    told = (
        repr(reg.run(run.id))
        + repr(reg.audit())
        + "".join((record.body + record.private).decode() for record in reg._core.place.store.read(0))
    )
    assert "s3cr3t" not in told
    assert reg.run(run.id).params["max_tokens"] == 5


def test_parameters_that_cannot_be_stored(reg: Registry) -> None:
    """At the start they are refused, before anything is written; set later they are an alert, and the run ends well."""
    with pytest.raises(InvalidDocument, match="raw"):
        reg.start_run("bad", params={"raw": b"bytes"})
    assert reg.runs().total == 0
    assert not Path("outputs").exists()
    with reg.start_run("late") as run:
        run.params |= {"good": 1, "raw": b"bytes", "object": object()}
    record = reg.run(run.id)
    assert (record.status, record.params["good"]) == ("completed", 1)
    assert [alert.key for alert in record.alerts if "raw" in alert.message] == ["raw"]


@pytest.mark.parametrize("bad", [{"x": b"bytes"}, {"": 1}, 7, {"x": 1j}])
def test_bad_metrics_are_refused_at_once(reg: Registry, bad: Any) -> None:
    """A metric that cannot be stored is an error where it is logged."""
    with reg.start_run("m") as run, pytest.raises(InvalidDocument):
        run.log(bad)
    with reg.start_run("m") as run, pytest.raises(InvalidDocument, match="whole number"):
        run.log({"a": 1}, step=1.5)  # type: ignore[arg-type]


def test_what_is_resolved_is_an_input(reg: Registry) -> None:
    """Whatever is resolved while a run is on is its input, pinned; by `run.input` it has a name."""
    reg.approve(reg.register("base", {"m.bin": b"base"}))
    reg.create_dataset_version("clicks/v1", {"a.csv": b"1", "b.csv": b"2"}, aliases=["prod"])
    with reg.start_run("tune", inputs={"start": "model://base/latest"}) as run:
        data = run.input("data", "dataset://clicks/prod")
        assert sorted(path.name for path in data.iterdir()) == ["a.csv", "b.csv"]
        assert (run.input("start") / "m.bin").read_bytes() == b"base"
        reg.resolve("dataset://clicks/v1/a.csv")
        (data / "a.csv").read_bytes()
    found = {(one.uri, one.name): [file.path for file in one.files] for one in reg.run(run.id).inputs}
    assert found == {
        ("model://base/v1", "start"): ["m.bin"],
        ("dataset://clicks/v1", "data"): ["a.csv", "b.csv"],
    }
    assert {use.run_id for use in reg.uses("dataset://clicks/v1")} == {run.id}
    up = {node.id for node in reg.upstream("run:" + run.id).nodes}
    assert up >= {"model://base/v1", "dataset://clicks/v1"}
    with pytest.raises(NotAllowed, match="has ended"):
        run.input("more", "dataset://clicks/v1")


def test_what_is_resolved_elsewhere_is_called_so(reg: Registry, tmp_path: Path) -> None:
    """A version of another registry is an input under that registry's id: a name here may be of something else."""
    reg.register("base", {"m.bin": b"another base"})
    with hub.open(tmp_path / "elsewhere") as other:
        other.register("base", {"m.bin": b"base"})
        with reg.start_run("tune") as run:
            other.resolve("base/v1")
        (found,) = reg.run(run.id).inputs
        assert found.uri == f"origin:{other.id}/model://base/v1"
        assert [file.path for file in found.files] == ["m.bin"]
    assert "model://base/v1" not in {node.id for node in reg.upstream("run:" + run.id).nodes}
    with reg.start_run("again") as run:
        reg.resolve("base/v1")
    assert [one.uri for one in reg.run(run.id).inputs] == ["model://base/v1"]


def test_an_input_that_cannot_be_had_stops_the_start(reg: Registry) -> None:
    """The run does not start; the message names the input and what is wrong; nothing is left."""
    with pytest.raises(NotFound, match="The input 'data' cannot be had: There is no dataset 'clicks'"):
        reg.start_run("fit", inputs={"data": "dataset://clicks/v1"})
    assert reg.runs().total == 0
    assert not Path("outputs").exists()
    assert "MODELHUB_RUN_ID" not in os.environ
    with reg.start_run("fit") as run, pytest.raises(NotFound, match="no input 'x'"):
        run.input("x")


def test_files_of_the_registry_are_known_by_their_digest(reg: Registry) -> None:
    """A plain file whose bytes stand in the registry is linked to the dataset version that they came from."""
    reg.create_dataset_version("clicks/v1", {"deep/a.csv": b"known bytes"})
    Path("copy.csv").write_bytes(b"known bytes")
    Path("new.csv").write_bytes(b"unknown bytes")
    with reg.start_run("fit") as run:
        for name in ("copy.csv", "new.csv"):
            Path(name).read_bytes()
    found = {one.uri: [file.path for file in one.files] for one in reg.run(run.id).inputs}
    assert found == {"dataset://clicks/v1": ["copy.csv"], "file:new.csv": ["new.csv"]}


def test_what_a_run_makes_is_not_its_own_input(reg: Registry) -> None:
    """A file that was read and then registered is a plain input, or what it was before; never the run's own version."""
    Path("data.csv").write_bytes(b"bytes")
    for number in (1, 2):
        with reg.start_run("pass-on") as run:
            Path("data.csv").read_bytes()
            version = run.register("m", {"data.csv": b"bytes"})
        assert version.number == number
        assert [one.uri for one in reg.run(run.id).inputs] == [
            "file:data.csv" if number == 1 else "model://m/v1"
        ]


def test_reading_can_be_left_alone(reg: Registry) -> None:
    """With capture=False nothing is looked at; with some of it, only that."""
    Path("data.csv").write_text("x")
    with reg.start_run("blind", capture=False) as run:
        Path("data.csv").read_text()
    record = reg.run(run.id)
    assert (record.inputs, record.environment.python, record.code.script) == ((), None, None)
    with reg.start_run("half", capture=["environment"]) as run:
        Path("data.csv").read_text()
    assert (reg.run(run.id).inputs, reg.run(run.id).environment.python is None) == ((), False)
    with pytest.raises(InvalidDocument, match="reeds"):
        reg.start_run("typo", capture=["reeds"])


def test_what_lay_in_the_outputs_before_is_not_of_this_run(reg: Registry) -> None:
    """A folder that is used again: only what this run wrote is its output; old sidecars make no new versions."""
    with reg.start_run("one"):
        annotated("outputs", "a.bin", {"valohai.model-versions": ["model://m/"]}, b"a")
    with reg.start_run("two") as run:
        annotated("outputs", "b.bin", {"valohai.model-versions": ["model://m/"]}, b"b")
    record = reg.run(run.id)
    assert [output.path for output in record.outputs] == ["b.bin"]
    assert record.versions == ("model://m/v2",)
    assert [file.path for file in reg.version("m/v2").files] == ["b.bin"]
    assert record.alerts == ()


def test_two_runs_do_not_share_an_outputs_folder(reg: Registry) -> None:
    """A second run that is on may not write to the same folder, unless it is a run inside the first."""
    with reg.start_run("one"):
        with pytest.raises(Conflict, match="Another run"):
            reg.start_run("other", outputs="./outputs")
        assert reg.runs().total == 1
    with reg.start_run("again", outputs="./outputs"):
        pass


def test_a_run_inside_a_run_is_linked(reg: Registry) -> None:
    """An inner run knows its parent, has no outputs of its own by default, and both see what is read."""
    Path("data.csv").write_text("x")
    with reg.start_run("outer") as outer:
        with reg.start_run("inner") as inner:
            Path("data.csv").read_text()
            version = reg.register("m", {"f": b""})
        assert inner.outputs is None
        after = reg.register("m", {"g": b""})
    assert reg.run(inner.id).parent == outer.id
    assert reg.run(outer.id).parent is None
    assert (version.run_id, after.run_id) == (inner.id, outer.id)
    assert [one.uri for one in reg.run(inner.id).inputs] == ["file:data.csv"]
    assert ("run:" + outer.id, "run:" + inner.id) in {
        (e.source, e.target) for e in reg.upstream(inner.finish()).edges
    }


def test_run_register_takes_what_the_run_knows(reg: Registry) -> None:
    """Metrics are the last ones logged, parameters and inputs the run's; the same files are the same version."""
    reg.create_dataset_version("clicks/v1", {"a": b"1"})
    with reg.start_run("fit", params={"lr": 0.1}) as run:
        run.input("data", "dataset://clicks/v1")
        run.log({"acc": 0.5})
        run.log({"acc": 0.7})
        one = run.register("m", {"f": b"weights"}, tags=["t"], note="n")
        again = run.register("m", {"f": b"weights"})
        other = run.register("m", {"f": b"other"}, metrics={"acc": 0.1})
    assert (one.metrics, one.params, one.inputs) == ({"acc": 0.7}, {"lr": 0.1}, ("dataset://clicks/v1",))
    assert (one.run_id, one.tags, one.note, again.number, other.number) == (run.id, ("t",), "n", 1, 2)
    assert other.metrics == {"acc": 0.1}


def test_versions_of_runs_are_compared_by_data_and_code(reg: Registry) -> None:
    """Side by side stand what their runs read, and the code that they ran."""
    for number in (1, 2):
        reg.create_dataset_version(f"clicks/v{number}", {"a": str(number).encode()})
        with reg.start_run("fit", commit="c" * 39 + str(number)) as run:
            run.input("data", f"dataset://clicks/v{number}")
            run.register("m", {"f": str(number).encode()})
    found = reg.compare("m/v1", "m/v2", reg.register("m", {"f": b"by hand"}))
    (data,) = found.inputs
    assert (data.name, data.cells[:2], data.changed) == ("dataset://clicks", ("v1", "v2"), True)
    code = {row.name: row.cells for row in found.code}
    assert code["commit"][0] != code["commit"][1] or "entry" in code
    assert found.to_dict()["inputs"]["dataset://clicks"] == {"model://m/v1": "v1", "model://m/v2": "v2"}
    assert "dataset://clicks" in str(found)
    assert "dataset://clicks" in found._repr_html_()


def test_attachments_of_a_run(reg: Registry, tmp_path: Path) -> None:
    """A file beside the run is kept with it."""
    (tmp_path / "roc.png").write_bytes(b"png")
    with reg.start_run("fit") as run:
        run.attach(str(tmp_path / "roc.png"))
        run.attach("notes.txt", b"text")
    assert {file.path: file.size for file in reg.run(run.id).attachments} == {"roc.png": 3, "notes.txt": 4}


def test_the_same_id_goes_on(reg: Registry) -> None:
    """After a pre-emption the same id is another attempt at the same run; one thing stays one version."""
    for attempt in (1, 2):
        with reg.start_run("fit", id="job-7", params={"lr": attempt}) as run:
            run.log({"loss": 1.0 / attempt}, step=attempt)
            run.register("m", {"f": b"same"})
            annotated("outputs", "model.bin", {"valohai.model-versions": ["model://n/"]})
            if attempt == 2:
                annotated("outputs", "late.bin", {"valohai.model-versions": ["model://o/"]})
    record = reg.run("job-7")
    assert (record.attempts, record.number, record.params["lr"]) == (2, 1, 2)
    assert set(record.versions) == {"model://m/v1", "model://n/v1", "model://o/v1"}
    assert [point["step"] for point in reg.metrics("job-7")["loss"]] == [1, 2]
    assert reg.runs().total == 1
    with pytest.raises(InvalidDocument, match="not the id of a run"):
        reg.start_run(id="a b")


def test_a_killed_run_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the middle: the run shows as interrupted at once on its own host, and the same id loses nothing."""
    url = f"sqlite:///{tmp_path}/reg.db"
    body = f"""
        import os, sys, time
        import modelhub_sdk as hub
        with hub.open({url!r}) as reg, reg.start_run("fit", id="job") as run:
            run.log({{"loss": 1.0}}, step=1)
            open("outputs/part.bin", "w").write("part")
            print("ready", flush=True)
            if "slow" in sys.argv:
                time.sleep(60)
    """
    Path("script.py").write_text(textwrap.dedent(body))
    with subprocess.Popen([sys.executable, "script.py", "slow"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with hub.open(url) as reg:
            assert reg.run("job").status == "running"
        child.send_signal(signal.SIGKILL)
        child.wait()
    with hub.open(url) as reg:
        assert reg.run("job").status == "interrupted"
        script(body)
        record = reg.run("job")
        assert (record.status, record.attempts) == ("completed", 2)
        assert [output.path for output in record.outputs] == ["part.bin"]
        assert [point["value"] for point in reg.metrics("job")["loss"]] == [1.0, 1.0]


def test_a_forked_child_leaves_the_block_in_peace(reg: Registry) -> None:
    """`__exit__` in a forked child does nothing: the run is its parent's, who ends it."""
    with reg.start_run("fit") as run:
        pid = os.fork()
        if pid == 0:
            try:
                run.__exit__(None, None, None)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert reg.run(run.id).status == "running"
    assert reg.run(run.id).status == "completed"


def _resolve(url: str) -> None:
    with hub.open(url) as reg:
        reg.resolve("dataset://clicks/v1")
        Path("by-child.csv").read_text()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_count_as_the_run(method: str, tmp_path: Path) -> None:
    """What a child process resolves and reads is an input of the run that started it."""
    url = f"sqlite:///{tmp_path}/reg.db"
    Path("by-child.csv").write_text("x")
    with hub.open(url) as reg:
        reg.create_dataset_version("clicks/v1", {"a": b"1"})
        with reg.start_run("fit") as run:
            context: Any = multiprocessing.get_context(method)
            child = context.Process(target=_resolve, args=(url,))
            child.start()
            child.join()
            assert child.exitcode == 0
        assert {one.uri for one in reg.run(run.id).inputs} == {"dataset://clicks/v1", "file:by-child.csv"}


def test_threads_count_as_the_run(reg: Registry) -> None:
    """What a worker thread reads, resolves and registers belongs to the run."""
    Path("t.csv").write_text("x")
    reg.create_dataset_version("clicks/v1", {"a": b"1"})

    def work() -> None:
        Path("t.csv").read_text()
        reg.resolve("dataset://clicks/v1")
        reg.register("m", {"f": b"thread"})

    with reg.start_run("fit") as run:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    record = reg.run(run.id)
    assert {one.uri for one in record.inputs} == {"file:t.csv", "dataset://clicks/v1"}
    assert record.versions == ("model://m/v1",)


def test_run_call(reg: Registry) -> None:
    """A program within the run: its JSON lines are metrics, its outputs the run's, what it reads is seen."""
    Path("data.csv").write_text("1\n2\n")
    Path("child.py").write_text(
        textwrap.dedent("""
            import json, os
            total = sum(map(int, open("data.csv")))
            print("starting")
            print(json.dumps({"total": total, "nan": float("nan")}))
            out = os.environ["VH_OUTPUTS_DIR"]
            open(os.path.join(out, "m.bin"), "w").write("m")
            open(os.path.join(out, "m.bin.metadata.json"), "w").write('{"valohai.model-versions": ["model://c/"]}')
        """)
    )
    with reg.start_run("call") as run:
        assert run.call([sys.executable, "child.py"]) == 0
        assert run.call([sys.executable, "-c", "raise SystemExit(3)"], check=False) == 3
    record = reg.run(run.id)
    assert record.metrics["total"] == 3
    assert record.versions == ("model://c/v1",)
    assert [one.uri for one in record.inputs] == ["file:data.csv"]
    with pytest.raises(hub.ModelHubError, match="status 3"), reg.start_run("call") as run:
        run.call([sys.executable, "-c", "raise SystemExit(3)"])
    assert (reg.run(run.id).status, reg.run(run.id).exit_status) == ("failed", 3)


def test_a_run_without_a_with_block(tmp_path: Path) -> None:
    """A script that never calls finish ends its run as the script ends: well, or with its exception."""
    url = f"sqlite:///{tmp_path}/reg.db"
    body = f"""
        import sys
        import modelhub_sdk as hub
        reg = hub.open({url!r})
        run = reg.start_run(outputs=None)
        run.log({{"a": 1}})
        if sys.argv[1:] == ["fail"]:
            raise ValueError("boom")
    """
    script(body)
    assert script(body, "fail", check=False).returncode == 1
    with hub.open(url) as reg:
        failed, fine = reg.runs()
        assert (fine.name, fine.status, fine.metrics) == ("script", "completed", {"a": 1})
        assert (failed.status, failed.exception) == ("failed", "ValueError: boom")
        assert fine.command is not None
        assert "script.py" in fine.command
        assert fine.code.script is not None


def test_a_registry_that_is_closed_ends_its_runs(tmp_path: Path) -> None:
    """Leaving the registry's block ends a run that is on, as that block was left."""
    url = f"sqlite:///{tmp_path}/reg.db"
    with hub.open(url) as reg:
        reg.start_run("fine", outputs=None).log({"a": 1})
    with pytest.raises(ValueError, match="boom"), hub.open(url) as reg:
        reg.start_run("bad", outputs=None)
        raise ValueError("boom")
    reg = hub.open(url)
    reg.start_run("closed", outputs=None)
    reg.close()
    reg.close()
    with hub.open(url) as reg:
        assert {run.name: run.status for run in reg.runs()} == {
            "fine": "completed",
            "bad": "failed",
            "closed": "completed",
        }


def test_the_default_outputs_where_nothing_can_be_written(
    reg: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that cannot be made is an error when it was asked for; the default one is left out, with a warning."""
    Path("outputs").write_text("a file is in the way")
    with reg.start_run("fit") as run:
        assert run.outputs is None
    assert "has no outputs folder" in caplog.text
    Path("mine").write_text("")
    with pytest.raises(NotAllowed, match="cannot be made"):
        reg.start_run("fit", outputs="mine")


def test_the_default_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hub.start_run` starts a run in the default registry."""
    with hub.open("memory://") as reg, hub.use(reg):
        with hub.start_run("fit") as run:
            assert run.outputs == Path("outputs").absolute()
        assert reg.run(run.id).name == "fit"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": 7}, InvalidName), ({"name": ""}, InvalidName), ({"id": 7}, InvalidName), ({"tags": "x"}, InvalidName),
        ({"keep": "some"}, InvalidDocument), ({"outputs": 7}, InvalidName), ({"project": "Bad Name"}, InvalidName),
        ({"roots": ["a\0b"]}, InvalidName),
    ],
)  # fmt: skip
def test_bad_arguments_start_nothing(
    reg: Registry, arguments: dict[str, Any], error: type[Exception]
) -> None:
    """A wrong argument is refused before the run exists, and leaves nothing behind."""
    with pytest.raises(error):
        reg.start_run(**arguments)
    assert reg.runs().total == 0
    assert os.listdir(".") == []
    assert "MODELHUB_RUN_ID" not in os.environ
    with reg.start_run("good"):
        pass


def test_a_run_costs_little(reg: Registry) -> None:
    """An empty run takes well under a second of wall time (the figure itself is measured by the benchmarks)."""
    with reg.start_run("warm"):
        pass
    start = time.perf_counter()
    with reg.start_run("timed"):
        pass
    assert time.perf_counter() - start < 2.0


def test_a_sign_of_life_is_given_and_forgotten(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a run is on there is one heartbeat in the inbox, the newest; at its end there is none."""
    from modelhub_sdk.lineage import heartbeats
    from modelhub_sdk.run import session

    monkeypatch.setattr(session, "HEARTBEAT", 0.05)
    with reg.start_run("beating", outputs=None) as run:
        end = time.monotonic() + 20
        while run.id not in heartbeats(reg._core) and time.monotonic() < end:
            time.sleep(0.02)
        first = heartbeats(reg._core)[run.id]
        while heartbeats(reg._core).get(run.id, first) == first and time.monotonic() < end:
            time.sleep(0.02)
        assert heartbeats(reg._core)[run.id] > first
        assert len(reg._core.place.store.notes(100)) <= 2
    while heartbeats(reg._core) and time.monotonic() < end:
        time.sleep(0.02)
    assert heartbeats(reg._core) == {}


def test_very_many_inputs(reg: Registry) -> None:
    """Thousands of files that were read: the entry stays small, the folders stand in the graph, the record has all."""
    for folder in ("train", "test"):
        Path("data", folder).mkdir(parents=True)
        for number in range(300):
            Path("data", folder, f"{number}.txt").write_text(f"{folder}{number}")
    with reg.start_run("many") as run:
        for path in sorted(Path("data").rglob("*.txt")):
            path.read_text()
    record = reg.run(run.id)
    assert len(record.inputs) == 600
    assert record.inputs[0].uri == "file:data/test/0.txt"
    labels = {node.label for node in reg.upstream(record).nodes}
    assert {"data/test/", "data/train/"} <= labels
    assert len(labels) < 10
    listed = reg.runs()[0]
    assert [one.uri for one in listed.inputs] == ["file:data/test/", "file:data/train/"]
    assert reg.verify().ok


def test_a_dataset_of_many_files_as_input(reg: Registry) -> None:
    """An input with thousands of files: the entry names it with a few of them, the record has all."""
    reg.create_dataset_version("big/v1", {f"{n:04}": str(n).encode() for n in range(1200)})
    with reg.start_run("big") as run:
        run.input("data", "dataset://big/v1")
    assert len(reg.run(run.id).inputs[0].files) == 1200
    assert len(reg.runs()[0].inputs[0].files) == 5


def test_urls_and_paths_as_inputs(reg: Registry, tmp_path: Path) -> None:
    """A path is used where it lies, a list is laid out; both are inputs with digests, under their name."""
    Path("a.csv").write_text("a")
    (tmp_path / "b.csv").write_text("bb")
    with reg.start_run("urls", inputs={"one": "a.csv"}) as run:
        assert run.input("one") == Path("a.csv")
        two = run.input("two", ["a.csv", str(tmp_path / "b.csv")])
        assert sorted(path.name for path in two.iterdir()) == ["a.csv", "b.csv"]
        with pytest.raises(NotFound, match="The input 'three' cannot be had"):
            run.input("three", "nowhere.csv")
    assert {(one.uri, one.name, one.files[0].size) for one in reg.run(run.id).inputs} == {
        ("file:a.csv", "one", 1), ("file:a.csv", "two", 1), ("file:b.csv", "two", 2),
    }  # fmt: skip


def test_an_end_that_cannot_be_recorded(reg: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """When the registry fails at the end, the user's exception goes on and the log tells; without one, ours is raised."""
    with pytest.raises(ValueError, match="mine"), reg.start_run("lost", outputs=None):
        reg._core.read_only = True
        raise ValueError("mine")
    assert "could not be recorded" in caplog.text
    reg._core.read_only = False
    with pytest.raises(NotAllowed), reg.start_run("lost", outputs=None):
        reg._core.read_only = True
    reg._core.read_only = False


def test_outputs_that_cannot_be_stored_stay(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that fails for the outputs: the run is recorded with an alert, the outputs are where they were."""
    from modelhub_sdk import ingest
    from modelhub_sdk.errors import StoreUnavailable

    def broken(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(ingest, "ingest", broken)
        with pytest.raises(StoreUnavailable, match="full"), reg.start_run("full") as run:
            annotated("outputs", "m.bin", {"valohai.model-versions": ["model://m/"]})
    record = reg.run(run.id)
    assert record.status == "completed"
    assert any("The disk is full" in alert.message for alert in record.alerts)
    assert reg.ingest("outputs", run=run.id).versions[0].uri == "model://m/v1"
