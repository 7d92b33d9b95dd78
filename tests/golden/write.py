"""Writes the golden journal of this release: ``python -m tests.golden.write``. Run once per format, never to please a test."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import modelhub_sdk as hub
from modelhub_sdk import surroundings
from modelhub_sdk.ports import Note
from modelhub_sdk.uses import drain

PLACE = Path(__file__).parent / "format-1.jsonl"


def story(reg: hub.Registry) -> None:
    """Everything that can happen to a registry, once."""
    core = reg._core
    ticks = count()
    core.clock = lambda: datetime(2026, 8, 1, 10, tzinfo=UTC) + timedelta(seconds=next(ticks))
    numbers = count(1)
    core.entropy = lambda size: next(numbers).to_bytes(size, "big")
    ids = count(1)
    core.new_id = lambda: f"{next(ids):032x}"
    core.host = "gpu-7"
    reg.configure(metrics={"loss": "min"}, required_fields=[])
    reg.create_model(
        "churn", title="Customer churn", description="# Who leaves", owner="team:risk", tags=["crm", "Größe"],
        fields={"use": "retention", "sla": {"hours": 4, "strict": True}}, projects=["crm"],
    )  # fmt: skip
    reg.edit_model(
        "churn",
        title="",
        owner="team:ml",
        fields={"use": None, "n": 2**53 + 1},
        remove_tags=["crm"],
        projects=["x"],
    )
    first = reg.register(
        "churn", {"model.bin": b"one", "sub/größe.txt": b""},
        metrics={"auc": 0.1 + 0.2, "nan": float("nan"), "low": float("-inf"), "zero": -0.0, "n": 2**70},
        params={"lr": 0.1, "layers": [1, 2], "name": "𝛼", "none": None, "flag": True}, tags=["b", "A"], note="first",
        fields={"ticket": "X-1"}, inputs=["dataset://clicks/v7", "s3://bucket/raw.csv"], idempotency_key="k1",
    )  # fmt: skip
    second = reg.register("churn", {"model.bin": b"two"}, metrics={"auc": 0.9})
    reg.edit_version(
        first, note="better", description="text", fields={"ticket": None}, add_tags=["c"], remove_tags=["b"]
    )
    reg.comment(first, "looks good")
    reg.attach(first, "roc.txt", b"curve")
    reg.add_evaluation(first, {"auc": 0.88}, data="dataset://holdout/v1", note="on holdout")
    reg.approve(first, "recall +5 %")
    reg.approve(second)
    reg.reject(second, "overfits")
    reg.reopen(second, "new data")
    reg.set_alias("churn", "champion", first)
    reg.set_alias("churn", "champion", {"v1": 90, "v2": 10}, reason="try")
    reg.rollback("churn/champion", "errors")
    reg.set_alias("churn", "old", 1)
    reg.delete_alias("churn", "old", reason="unused")
    reg.archive(second, "later")
    reg.restore(second)
    reg.purge(second, "space", files=["model.bin"])
    reg.redact(first, "comments", "a name in it")
    reg.archive("churn")
    reg.restore("churn", "needed")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.bin").write_bytes(b"three")
        sidecar = {
            "file": "model.bin",
            "metadata": {"valohai.model-versions": ["model://other/"], "epochs": 3},
        }
        Path(folder, "valohai.metadata.jsonl").write_text(json.dumps(sidecar) + "\n{\n", encoding="utf-8")
        reg.ingest(folder, run="run-1", metrics={"auc": 0.7})
    use = {
        "kind": "use",
        "uri": "model://churn/v1",
        "asked": "model://churn/champion",
        "actor": "kim",
        "host": "pod-1",
    }
    body = json.dumps({**use, "at": "2026-08-01T12:00:00.000000Z", "run_id": None}).encode()
    core.place.store.note([Note("0" * 31 + "1", body)])
    drain(core)


def main() -> None:
    """Write the file."""
    surroundings.host = lambda: "gpu-7"  # the journal that is kept names no real machine
    with hub.open("memory://", user="sofia") as reg:
        story(reg)
        with open(PLACE, "w", encoding="utf-8") as file:
            for record in reg._core.place.store.read(0):
                row = [record.seq, record.scope, record.chain, record.body.decode(), record.private.decode()]
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
