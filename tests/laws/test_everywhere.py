"""Runs, datasets, datums and lineage are the same on every backend."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.homes import ALL, Home, check_sound

MakeHome = Callable[[str], Home]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ALL)
def test_a_whole_story(
    kind: str, make_home: MakeHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data, two runs, a resumed one, searches, aliases, the graph, the past, a refold: alike everywhere."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "raw.csv").write_text("raw")
    with make_home(kind).opened() as reg:
        reg.create_dataset("clicks", title="Clicks", tags=["pii"], fields={"days": 30})
        with reg.start_run("prepare") as prepare:
            (work / "raw.csv").read_text()
            out = work / "outputs"
            (out / "table.csv").write_text("table")
            told = {"valohai.dataset-versions": ["dataset://clicks/v1"], "valohai.alias": "newest", "rows": 3}
            (out / "table.csv.metadata.json").write_text(json.dumps(told))
        for attempt in (1, 2):
            with reg.start_run(
                "train", id="job", params={"lr": attempt / 10}, inputs={"data": "dataset://clicks/v1"}
            ) as train:
                train.log({"loss": 1.0 / attempt, "nan": float("nan")}, step=attempt)
                train.register("churn", {"m.bin": b"weights"})
        reg.set_alias("dataset://clicks/", "prod", "v1")
        reg.approve("churn/v1", "good")
        reg.resolve("model://churn/latest")
        record = reg.run("job")
        assert (record.attempts, record.params["lr"], record.metrics["loss"], record.number) == (
            2,
            0.2,
            0.5,
            2,
        )
        assert [point["value"] for point in reg.metrics("job")["loss"]] == [1.0, 0.5]
        assert [one.uri for one in reg.run(prepare.id).inputs] == ["file:raw.csv"]
        assert [
            run.id
            for run in reg.runs(where="metrics.loss <= 0.5 and params.lr = 0.2 and status = 'completed'")
        ] == ["job"]
        assert [run.id for run in reg.runs(order_by="-duration", where="name = 'train'")] == ["job"]
        assert reg.runs(where="status = 'interrupted'").total == 0
        assert [one.name for one in reg.datasets(where="tags = 'pii' and fields.days >= 30")] == ["clicks"]
        assert (reg.datum("newest").properties, reg.dataset_version("clicks/prod").run_id) == (
            {"rows": 3},
            prepare.id,
        )
        graph = reg.lineage("churn/v1").graph
        assert {node.kind for node in graph.nodes} >= {"file", "run", "dataset", "model", "use"}
        assert {"run:job", "dataset://clicks/v1", "run:" + prepare.id} <= {node.id for node in graph.nodes}
        assert [one.uri for one in reg.identify(out / "table.csv")] == ["dataset://clicks/v1"]
        seq = reg.audit(action="dataset_alias.moved")[0].seq
        assert reg.at(seq - 1).dataset("clicks").aliases == {}
        before = (record, reg.upstream("churn/v1"), reg.datasets(), reg.audit())
        reg.rebuild_index()
        assert before == (reg.run("job"), reg.upstream("churn/v1"), reg.datasets(), reg.audit())
        check_sound(reg)
