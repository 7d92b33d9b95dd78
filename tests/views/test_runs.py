"""Runs and lineages as text and HTML."""

from __future__ import annotations

from datetime import timedelta
from html.parser import HTMLParser

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelhub_sdk.domain.entities import Alert, File, Listing, Output, Use
from modelhub_sdk.domain.lineage import Code, Decision, Environment, LineageRecord, RunInput, RunRecord
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.views import html, text
from tests.support.samples import T0, cases, digest


def run(**changes):
    values = {
        "id": "01J8",
        "number": 12,
        "name": "train",
        "status": "completed",
        "started_at": T0,
        "project": "churn",
        "group": "sweep-3",
        "ended_at": T0 + timedelta(seconds=200),
        "duration": 200.4,
        "user": "sofia",
        "host": "gpu-3",
        "command": "python train.py --lr 0.05",
        "exit_status": 0,
        "params": Frozen({"learning_rate": 0.05}),
        "metrics": Frozen({"auc": 0.912345678}),
        "tags": ("weekly",),
        "code": Code("3f2a91c8" + "0" * 32, "main", "git@host:churn.git", True, digest("d"), "train.py"),
        "environment": Environment("3.12.4", "Linux", "acme/train:1.4", Frozen({"numpy": "2", "attrs": "25"}), unseen=("cv2",)),
        "inputs": (
            RunInput("dataset://clicks/v7", "train", (File("a", 41, digest(1)), File("b", 1, digest(2)))),
            RunInput("file:train.yaml", None, (File("train.yaml", 812, digest(3)),), True, True),
        ),
        "outputs": (Output("model.joblib", 1_843_112, digest(9)),),
        "versions": ("model://churn/v3",),
        "dataset_versions": ("dataset://scores/v1",),
        "datums": ("datum://01J9",),
        "alerts": (Alert("no such alias", "model.json", 3),),
    }  # fmt: skip
    return RunRecord(**(values | changes))


def bare():
    return RunRecord("01J8", 1, "train", "running", T0)


def lineage(**changes):
    made = run()
    values = {
        "subject": "model://churn/v3",
        "run": made,
        "code": made.code,
        "environment": made.environment,
        "params": made.params,
        "metrics": made.metrics,
        "inputs": made.inputs,
        "outputs": made.outputs,
        "datasets": ("dataset://clicks/v7",),
        "parents": ("run:01J8",),
        "approvals": (Decision("approved", T0, "omar", "better on every slice"), Decision("rejected", T0)),
        "used_by": (Use("u", "model://churn/v3", "churn/production", T0, "scoring-api", "web-3"),),
    }
    return LineageRecord(**(values | changes))


def everything(told):
    """A run and a lineage with *told* wherever a user can put text."""
    code = Code(told, told, told, None, told, told, told)
    environment = Environment(told, told, told, Frozen({told: told}), Frozen(), (told,))
    inputs = (RunInput(told, told, (File(told, 1, told),), True), RunInput(told, None, (), seen=True))
    outputs = (Output(told, 1, told),)
    values = Frozen({told: told})
    shouting = run(
        id=told, name=told, project=told, step=told, pipeline=told, group=told, parent=told, user=told, host=told,
        command=told, exception=told, traceback=told, params=values, metrics=values, tags=(told,), code=code,
        environment=environment, inputs=inputs, outputs=outputs, versions=(told,), dataset_versions=(told,),
        datums=(told,), alerts=(Alert(told, told),), exit_status=3, status="failed",
    )  # fmt: skip
    made = lineage(
        subject=told, run=shouting, code=code, environment=environment, params=values, metrics=values,
        inputs=inputs, outputs=outputs, datasets=(told,), parents=(told,),
        approvals=(Decision(told, T0, told, told),), used_by=(Use(told, told, told, T0, told, told),),
    )  # fmt: skip
    return [shouting, made, Listing([shouting])]


class Reader(HTMLParser):
    """What a browser would show; the elements must be ours, and well nested."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.seen = []
        self.titles = []

    def handle_starttag(self, tag, attrs):
        assert tag in {
            *(
                "style",
                "section",
                "header",
                "h3",
                "h4",
                "p",
                "div",
                "span",
                "b",
                "bdi",
                "code",
                "small",
                "strong",
            ),
            *("time", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "details", "summary", "pre"),
            *("blockquote", "footer"),
        }, tag
        for name, value in attrs:
            assert name in {"class", "title", "datetime", "scope", "style"}, name
            assert name != "style" or value == "height:.8em"
            if name == "title":
                self.titles.append(value)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.seen.append(data)

    def handle_comment(self, data):
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


def read(value):
    reader = Reader()
    reader.feed(html.render(value))
    reader.close()
    assert reader.open == []
    return reader


def seen(value):
    return "".join(read(value).seen)


def test_a_run_as_text():
    """Who, when, how long, on what code, with what result: one fact a line."""
    assert text.render(run()).splitlines() == [
        "run #12 train  completed",
        "  by           sofia on gpu-3",
        "  started      2026-03-01 12:00 UTC",
        "  ended        2026-03-01 12:03 UTC",
        "  duration     3 min 20 s",
        "  project      churn",
        "  group        sweep-3",
        "  command      python train.py --lr 0.05",
        "  tags         weekly",
        "  code         3f2a91c8 · on main · uncommitted changes · train.py",
        "  environment  Python 3.12.4 · Linux · acme/train:1.4 · 2 packages",
        "  not seen     cv2",
        "metrics",
        "  auc  0.912346",
        "params",
        "  learning_rate  0.05",
        "inputs",
        "  train: dataset://clicks/v7  2 files, 42 B",
        "  file:train.yaml  1 file, 812 B  changed while the run was on",
        "outputs",
        f"  model.joblib  1.8 MB  {digest(9)[7:19]}",
        "made",
        "  model://churn/v3",
        "  dataset://scores/v1",
        "  datum://01J9",
        "alerts",
        "  model.json:3: no such alias",
    ]


def test_a_short_name_for_print():
    """str() of a run is one line, of a lineage, which has no name of its own, all of it."""
    assert str(run()) == "run #12 train (completed)"
    assert str(lineage()) == text.render(lineage())


def test_a_run_with_nothing():
    """What is not known takes no line and no heading."""
    assert text.render(bare()).splitlines() == [
        "run #1 train  running",
        "  by       (redacted)",
        "  started  2026-03-01 12:00 UTC",
    ]
    shown = seen(bare())
    assert "running" in shown
    for heading in ("Inputs", "output", "Made", "Alerts", "Parameters", "exit status"):
        assert heading not in shown


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exception": "ValueError: NaN", "exit_status": 1}, "ValueError: NaN"),
        ({"exception": None, "exit_status": 137}, "exit status 137"),
    ],
)
def test_a_failed_run(changes, said):
    """Why it failed stands where it is looked for."""
    failed = run(status="failed", **changes)
    assert said in text.render(failed)
    assert said in seen(failed)
    assert 'class="badge bad">failed<' in html.render(failed)
    assert "exit status" not in seen(run(exit_status=0))


def test_a_traceback_keeps_its_lines():
    """It is folded, in its own lines; of an endless one the end is shown."""
    page = run(status="failed", exception="E", traceback="Traceback:\n  <x>\nE")._repr_html_()
    assert "<summary>Traceback</summary><pre>Traceback:\n  &lt;x&gt;\nE</pre>" in page
    assert len(run(traceback="x\n" * 1_000_000)._repr_html_()) < 200_000


def test_a_run_as_html():
    """All that a run says of itself is on its card."""
    shown = seen(run())
    for piece in (
        *("run #12", "completed", "started 2026-03-01 12:00 UTC by sofia on gpu-3 · 3 min 20 s", "weekly"),
        *(
            "auc",
            "0.912346",
            "learning_rate",
            "dataset://clicks/v7",
            "2 files",
            "changed",
            "seen",
            "1 output",
        ),
        *("model.joblib", "model://churn/v3", "datum://01J9", "no such alias", "churn", "sweep-3"),
        *("3f2a91c8 · on main · uncommitted changes · train.py", "2 packages", "cv2"),
    ):
        assert piece in shown, piece
    assert run().code.commit in read(run()).titles
    assert digest(3) in read(run()).titles


@pytest.mark.parametrize("status", ["running", "completed", "failed", "interrupted"])
def test_every_status_has_a_colour(status):
    """Good, bad or to be waited for."""
    look = {"completed": "ok", "failed": "bad"}.get(status, "pending")
    assert f'class="badge {look}">{status}<' in html.render(run(status=status))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (Code("a" * 40, "main", None, False, None, "train.py"), "aaaaaaaa · on main · train.py"),
        (Code("a" * 40, None, None, None), "aaaaaaaa · perhaps changed"),
        (Code(entry="notebook"), "notebook"),
        (Code(script=digest("s")), digest("s")[7:19]),
        (Code(), ""),
    ],
)
def test_code_in_a_line(code, said):
    """What was the code: with git, with a git that did not answer, without git, not known."""
    assert text.code_of(code) == said


def test_a_lineage_as_text():
    """By which run, from what, who decided and who used it."""
    told = text.render(lineage())
    for piece in (
        "lineage of model://churn/v3\n  made by      run #12 train  completed\n",
        "comes from\n  run:01J8\n",
        "datasets\n  dataset://clicks/v7\n",
        "decisions\n  approved 2026-03-01 12:00 UTC by omar: better on every slice\n  rejected 2026-03-01 12:00 UTC by (redacted)",
        "used by\n  2026-03-01 12:00 UTC  scoring-api on web-3  as churn/production",
    ):
        assert piece in told
    by_hand = text.render(LineageRecord("model://x/v1"))
    assert by_hand == "lineage of model://x/v1\n  made by  hand (there is no run)"


def test_a_lineage_as_html():
    """The same, as a card; one that was registered by hand says so and has no empty headings."""
    shown = seen(lineage())
    for piece in (
        *("lineage of model://churn/v3", "completed", "made by run #12 train", "Comes from", "run:01J8"),
        *("Datasets", "dataset://clicks/v7", "Decisions", "omar", "better on every slice", "Used by"),
        *("churn/production", "scoring-api", "web-3", "Inputs", "auc"),
    ):
        assert piece in shown, piece
    by_hand = seen(LineageRecord("model://x/v1"))
    assert "registered by hand" in by_hand
    assert "Origin" not in by_hand


def test_listings_of_runs():
    """A table: numbers, states, the common metrics."""
    runs = Listing([run(), run(number=13, metrics=Frozen(), duration=None, status="running")], total=5)
    lines = text.render(runs).splitlines()
    assert lines[0].split() == ["#", "run", "status", "auc", "started", "(UTC)", "duration", "by"]
    assert lines[2].startswith("12  train  completed  0.912346")
    assert lines[3].startswith("13  train  running           –")
    assert lines[4] == "… 3 more"
    shown = seen(runs)
    for piece in ("5 runs", "the first 2 are shown", "#13", "0.912346", "3 min 20 s"):
        assert piece in shown


def test_many_of_everything_stays_small():
    """Ten thousand inputs and metrics neither flood a terminal nor freeze a browser, and are counted."""
    files = tuple(RunInput(f"file:{i}", None, (File(f"{i}", 1, digest(i)),)) for i in range(10_000))
    made = tuple(f"datum://{i}" for i in range(10_000))
    full = run(inputs=files, datums=made, metrics=Frozen({f"m{i}": i for i in range(9)}))
    told = text.render(full)
    assert len(told.splitlines()) < 100
    assert "… 9,980 more" in told
    page = html.render(full)
    assert len(page) < 2_500_000
    assert "9,960 more inputs" in page
    assert "Metrics" in page


@pytest.mark.parametrize("case", [c for name in ("markdown_doc", "audit_text") for c in cases(name) if "input" in c], ids=lambda case: case["id"])  # fmt: skip
def test_catalogue(case):
    """Hostile texts in every place stay text, in the terminal and on the page."""
    check(case["input"] or "x")


def check(told):
    for value in everything(told):
        read(value)
        assert all(c.isprintable() or c in "\n\t" for c in html.render(value))
        assert all(c.isprintable() or c == "\n" for c in text.render(value))


@given(st.text(min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_everything_is_escaped(told):
    """Whatever was typed or stood on a disk: our elements only, and no control characters."""
    check(told)


def test_redacted_texts():
    """A run of which the personal parts were erased can still be shown."""
    erased = attrs.evolve(run(), user=None, host=None, command=None, exception=None)
    assert "(redacted)" in text.render(erased)
    assert "(redacted)" in seen(erased)
