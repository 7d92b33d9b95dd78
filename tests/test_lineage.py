"""The graph of lineage: walked both ways, pinned, bounded, ending, over runs, data, models, code and files."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from modelhub_sdk import Registry
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain.entities import File
from modelhub_sdk.domain.events import Sealer
from modelhub_sdk.domain.lineage import Code, LineageGraph, RunInput
from modelhub_sdk.errors import InvalidName, InvalidQuery, NotFound
from modelhub_sdk.index import graph as graphs

RAW = File("raw.csv", 3, "sha256:" + "a" * 64)


def a_run(
    reg: Registry,
    run_id: str,
    *,
    name: str = "train",
    inputs: tuple[RunInput, ...] = (),
    status: str | None = "completed",
    parent: str | None = None,
    commit: str | None = None,
) -> None:
    """Put a run into the journal, as it would stand there."""

    def started(_view: Any, seal: Sealer) -> list[ev.Event]:
        return [
            ev.RunStarted(run_id=run_id, name=name, parent=parent, code=Code(commit=commit, entry="train.py"))
        ]

    def finished(_view: Any, seal: Sealer) -> list[ev.Event]:
        return [ev.RunFinished(run_id=run_id, status=str(status), inputs=inputs, duration=1.0)]

    reg._commit("run:" + run_id, started)
    if status is not None:
        reg._commit("run:" + run_id, finished)


def ids(graph: LineageGraph) -> set[str]:
    return {node.id for node in graph.nodes}


def pairs(graph: LineageGraph) -> set[tuple[str, str]]:
    return {(edge.source, edge.target) for edge in graph.edges}


@pytest.fixture
def story(reg: Registry) -> Registry:
    """raw.csv → run prepare → dataset flowers/v1 → run train → model iris v1 → used by sofia; code twice."""
    a_run(
        reg,
        "prepare",
        name="prepare",
        inputs=(RunInput("file:raw.csv", None, (RAW,), seen=True),),
        commit="c1",
    )
    from modelhub_sdk.datasets import commit_version
    from modelhub_sdk.domain.uri import DatasetURI

    stored = reg._core.artifacts().put_bytes(b"table")
    commit_version(
        reg, DatasetURI("flowers", "v1"), [File("t.csv", 5, stored)], run_id="prepare", aliases=["new"]
    )
    a_run(reg, "train", inputs=(RunInput("dataset://flowers/v1", "data"),), commit="c1")
    version = reg._register_files(
        "iris", {"m": b"model"}, run_id="train", metrics={"acc": 0.9}, params={}, tags=(), note=None, fields=None,
        ignore=(), inputs=(), duration=1.0, progress=None,
    )  # fmt: skip
    reg.approve(version, "good")
    reg.resolve("model://iris/latest")
    return reg


def test_the_whole_chain_upstream(story: Registry):
    """What a model comes from: its run, the data of that run, the run that made the data, the raw file, the code."""
    up = story.upstream("iris/v1")
    assert ids(up) == {
        "model://iris/v1", "run:train", "dataset://flowers/v1", "run:prepare", f"file:{RAW.digest}", "code:c1",
    }  # fmt: skip
    assert pairs(up) == {
        (f"file:{RAW.digest}", "run:prepare"),
        ("code:c1", "run:prepare"),
        ("run:prepare", "dataset://flowers/v1"),
        ("dataset://flowers/v1", "run:train"),
        ("code:c1", "run:train"),
        ("run:train", "model://iris/v1"),
    }
    by_id = {node.id: node for node in up.nodes}
    assert (by_id["model://iris/v1"].label, by_id["model://iris/v1"].status) == ("iris/v1", "approved")
    assert (by_id["run:train"].label, by_id["run:train"].status) == ("#2 train", "completed")
    assert by_id[f"file:{RAW.digest}"].label == "raw.csv"
    assert (by_id["code:c1"].label, by_id["code:c1"].detail) == ("c1", "train.py")
    assert not up.cut


def test_downstream_ends_with_who_used_it(story: Registry):
    """What came of a plain file: the runs, the data, the model, and who resolved that."""
    down = story.downstream(RAW.digest)
    (use,) = [node for node in down.nodes if node.kind == "use"]
    assert ("model://iris/v1", use.id) in pairs(down)
    assert story.user in use.label
    assert ids(down) >= {
        f"file:{RAW.digest}",
        "run:prepare",
        "dataset://flowers/v1",
        "run:train",
        "model://iris/v1",
    }
    assert ids(story.downstream("dataset://flowers/new")) >= {"run:train", "model://iris/v1"}
    assert "code:c1" not in ids(down)


def test_depth_bounds_the_walk(story: Registry):
    """With a depth the graph stops there, and says that it goes on."""
    one = story.upstream("iris/v1", depth=1)
    assert (ids(one), one.cut) == ({"model://iris/v1", "run:train"}, True)
    assert story.upstream("iris/v1", depth=0).nodes[0].id == "model://iris/v1"
    assert not story.upstream("iris/v1", depth=9).cut
    for bad in (-1, "2", True, 1.5):
        with pytest.raises(InvalidQuery, match="steps"):
            story.upstream("iris/v1", depth=bad)  # type: ignore[arg-type]


def test_a_record_of_lineage(story: Registry):
    """`lineage` gathers the run, its code, parameters, data, decisions and uses of one thing."""
    record = story.lineage("iris/latest")
    assert record.subject == "model://iris/v1"
    assert record.run is not None
    assert (record.run.id, record.run.name, record.code.commit) == ("train", "train", "c1")
    assert record.metrics == {"acc": 0.9}
    assert record.datasets == ("dataset://flowers/v1",)
    assert record.parents == ("run:train",)
    assert [(decision.status, decision.reason) for decision in record.approvals] == [("approved", "good")]
    assert [use.asked for use in record.used_by] == ["model://iris/latest"]
    assert len(record.graph.nodes) == 7
    assert story.lineage("iris").subject == "model://iris/v1"
    assert story.lineage("dataset://flowers/v1").run.name == "prepare"  # type: ignore[union-attr]
    assert story.lineage("run:prepare").run == story.run("prepare")


def test_what_was_registered_by_hand_has_its_inputs(reg: Registry):
    """Without a run the inputs that were named at the registration are the lineage, as they were then."""
    reg.create_dataset_version("clicks/v1", {"a": b"1"}, aliases=["prod"])
    base = reg.register("base", {"m": b"1"})
    reg.approve(base)
    tuned = reg.register(
        "tuned", {"m": b"2"}, inputs=["dataset://clicks/prod/a", "model://base/latest", "s3://b/raw.csv"]
    )
    reg.create_dataset_version("clicks/v2", {"a": b"2"}, aliases=["prod"])
    reg.approve(reg.register("base", {"m": b"3"}))
    assert pairs(reg.upstream(tuned)) == {
        ("dataset://clicks/v1", "model://tuned/v1"),
        ("model://base/v1", "model://tuned/v1"),
        ("s3://b/raw.csv", "model://tuned/v1"),
    }
    assert "model://tuned/v1" in ids(reg.downstream("base/v1"))
    assert "model://tuned/v1" in ids(reg.downstream("dataset://clicks/v1"))
    assert "model://tuned/v1" not in ids(reg.downstream("base/v2"))
    record = reg.lineage(tuned)
    assert record.run is None
    assert record.inputs[0].uri == "dataset://clicks/prod/a"


def test_cycles_and_diamonds_end(reg: Registry):
    """A strange writer's circle is drawn once; a diamond's end stands there once."""
    a_run(reg, "a", inputs=(RunInput("dataset://x/v1"),))
    a_run(reg, "b", inputs=(RunInput("dataset://x/v1"),))
    from modelhub_sdk.datasets import commit_version
    from modelhub_sdk.domain.uri import DatasetURI

    digest = reg._core.artifacts().put_bytes(b"x")
    commit_version(reg, DatasetURI("x", "v1"), [File("f", 1, digest)], run_id="a")  # a reads what it makes
    a_run(reg, "c", inputs=(RunInput("run:a"), RunInput("dataset://x/v1")))
    up = reg.upstream("run:b")
    assert pairs(up) == {
        ("dataset://x/v1", "run:b"), ("run:a", "dataset://x/v1"), ("dataset://x/v1", "run:a"), ("code:", "x"),
    } - {("code:", "x")}  # fmt: skip
    assert len(up.nodes) == 3
    for shown in (up, reg.downstream("dataset://x/v1")):
        assert len(shown.to_mermaid()) > 0
        assert "<svg" in shown.to_svg()


def test_a_large_graph_is_cut(reg: Registry, monkeypatch: pytest.MonkeyPatch):
    """A graph has a bound, and says that it was cut."""
    monkeypatch.setattr(graphs, "MAX_NODES", 10)
    files = tuple(RunInput(f"file:{n}", None, (File(f"{n}", 1, "sha256:" + f"{n:064x}"),)) for n in range(30))
    a_run(reg, "many", inputs=files)
    found = reg.upstream("run:many")
    assert (len(found.nodes), found.cut) == (10, True)


def test_lineage_of_the_past(story: Registry):
    """A view of the past shows the graph as it was then."""
    (seq,) = [record.seq for record in story.audit() if record.action == "version.approved"]
    then = story.at(seq - 1)
    assert {node.status for node in then.upstream("iris/v1").nodes if node.kind == "model"} == {"pending"}
    assert then.lineage("iris/v1").approvals == ()
    first = story.at(2)
    with pytest.raises(NotFound):
        first.upstream("iris/v1")


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ("run:nope", NotFound), ("nope/v1", NotFound), ("iris/v9", NotFound), ("dataset://flowers/v9", NotFound),
        ("datum://nope", NotFound), ("sha256:" + "b" * 64, NotFound), ("code:c9", NotFound), (7.5, InvalidName),
        ([], InvalidName), (None, InvalidName),
    ],
)  # fmt: skip
def test_nothing_is_drawn_of_what_is_not_there(story: Registry, bad: Any, error: type[Exception]):
    """A thing that does not exist has no lineage: the error says so."""
    for verb in (story.upstream, story.downstream, story.lineage):
        with pytest.raises(error):
            verb(bad)


# --- runs


def test_runs_are_listed_and_searched(reg: Registry):
    """Runs are found by name, status, metrics and parameters; the newest first; each has a number."""
    for n in range(4):
        _measured(reg, f"r{n}", acc=n / 10, failed=n == 3)
    assert [(run.number, run.id, run.status) for run in reg.runs()] == [
        (4, "r3", "failed"), (3, "r2", "completed"), (2, "r1", "completed"), (1, "r0", "completed"),
    ]  # fmt: skip
    assert [
        run.id
        for run in reg.runs(where="metrics.acc >= 0.1 and status = 'completed'", order_by="metrics.acc")
    ] == ["r1", "r2"]
    assert [
        run.id for run in reg.runs(where="params.lr = 0.5 and group = 'sweep' and duration > 0.5", limit=2)
    ] == ["r3", "r2"]
    assert reg.runs(limit=2).next()[0].id == "r1"
    assert reg.runs(order_by="-duration")[0].metrics["acc"] == 0.3
    assert reg.run(2).id == reg.run("r1").id == reg.run(reg.run("run:r1")).id == "r1"
    for bad in (0, 99, "r9", -1):
        with pytest.raises(NotFound, match="There is no run"):
            reg.run(bad)


def _measured(reg: Registry, run_id: str, acc: float, failed: bool = False) -> None:
    from modelhub_sdk.domain.values import Frozen

    events: list[Callable[[Any, Sealer], list[ev.Event]]] = [
        lambda _v, _s: [ev.RunStarted(run_id=run_id, name="fit", group="sweep", params=Frozen(lr=0.5), project="p")],
        lambda _v, s: [
            ev.RunFinished(
                run_id=run_id, status="failed" if failed else "completed", duration=1 + acc, metrics=Frozen(acc=acc),
                exception=s("ValueError: x") if failed else None,
            )
        ],
    ]  # fmt: skip
    for decide in events:
        reg._commit("run:" + run_id, decide)


def test_a_silent_run_is_interrupted(reg: Registry):
    """A run of which nothing was heard for 15 minutes is interrupted; a heartbeat keeps it running."""
    from modelhub_sdk.formats import codec
    from modelhub_sdk.ports import Note

    a_run(reg, "silent", status=None)
    a_run(reg, "beating", status=None)
    a_run(reg, "done")
    assert [run.status for run in reg.runs()] == ["completed", "running", "running"]
    later = datetime.now(UTC) + timedelta(minutes=20)
    reg._core.clock = lambda: later
    beat = {"kind": "heartbeat", "run": "beating", "at": codec.print_time(later - timedelta(minutes=4))}
    rubbish = [b"{", b'{"kind":"heartbeat"}', b'{"kind":"heartbeat","run":"silent","at":"x"}', b"[]"]
    reg._core.place.store.note(
        [Note(f"{n:032x}", body) for n, body in enumerate([codec.dumps(beat), *rubbish])]
    )
    assert {run.id: run.status for run in reg.runs()} == {
        "silent": "interrupted", "beating": "running", "done": "completed",
    }  # fmt: skip
    assert reg.run("silent").status == "interrupted"
    assert [run.id for run in reg.runs(where="status = 'interrupted'")] == ["silent"]
    assert [run.id for run in reg.runs(where="status = 'running'")] == ["beating"]
    assert {run.status for run in reg.at(reg.audit()[0].seq).runs(where="status = 'running'")} == {"running"}
