"""Writes the golden journal of this release: ``python -m tests.golden.write``. Run once per format, never to please a test."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from attrs import evolve

import modelhub_sdk as hub
from modelhub_sdk import surroundings
from modelhub_sdk.domain import events as ev
from modelhub_sdk.domain.entities import File, Origin
from modelhub_sdk.domain.events import Sealer
from modelhub_sdk.domain.lineage import Code, Environment, RunInput
from modelhub_sdk.domain.values import Frozen
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
    reg._core.artifacts().put_bytes(b"of no use")
    reg.collect_garbage(dry_run=False)
    reg.attach(second, "again.txt", b"of no use")
    arrive(reg)
    reg.freeze("moving")
    reg.unfreeze("not yet")
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
    reg.create_dataset(
        "clicks",
        title="Clicks",
        description="# Raw",
        owner="team:web",
        tags=["pii"],
        fields={"days": 30},
        projects=["crm"],
    )
    reg.create_dataset_version(
        "clicks/v1", {"a.csv": b"1", "bad.csv": b"2"}, tags=["eu"], fields={"rows": 3}, idempotency_key="d1"
    )
    reg.create_dataset_version(
        "clicks/v2", None, based_on="clicks/v1", exclude=["bad.csv"], aliases=["prod", "old"]
    )
    reg.set_alias("dataset://clicks/", "prod", "v1", reason="v2 lacks a file")
    reg.delete_alias("dataset://clicks/", "old", reason="unused")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "table.csv").write_bytes(b"t")
        told = {"valohai.alias": "newest", "valohai.tags": ["raw"], "rows": 2**60, "score": float("nan")}
        Path(folder, "table.csv.metadata.json").write_text(json.dumps(told), encoding="utf-8")
        reg.ingest(folder, run="run-1", idempotency_key="second")
        reg.ingest(folder, idempotency_key="third")
    a_run(reg)
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
    forget(reg)


def forget(reg: hub.Registry) -> None:
    """Somebody comes, and is forgotten."""
    reg._core.actor, me = "lee", reg._core.actor
    reg.create_model("leads", owner="lee", fields={"contact": "lee"})
    reg._core.actor = me
    reg.forget_user("lee", "asked to")


def arrive(reg: hub.Registry) -> None:
    """A version comes from another registry."""
    arrived = ev.VersionRegistered(
        model="churn", number=3, manifest=reg.version("churn/v1").digest, size=3, files=reg.version("churn/v1").files,
        inputs=("dataset://clicks/v9",), key="origin:1", origin=Origin("6" * 32, "model://churn/v7", 12, "5" * 64),
    )  # fmt: skip
    named = ev.VersionRegistered(
        model="churn", number=4, manifest=arrived.manifest, size=3, files=arrived.files,
        external=(ev.External("model.bin", arrived.files[0].digest, "s3://lake/model.bin", "v-1"),),
    )  # fmt: skip
    reg._commit(
        "model:churn", lambda _view, seal: [evolve(arrived, content=seal("c"), history=seal("{}")), named]
    )


def a_run(reg: hub.Registry) -> None:
    """A run that was interrupted, went on, and failed."""
    code = Code(
        "2db0b9da" * 5,
        "main",
        "https://example.org/x.git",
        True,
        "sha256:" + "0" * 64,
        "train.py",
        "sha256:" + "1" * 64,
    )
    where = Environment(
        "3.12.1 (CPython)", "Linux-6.1", "example/train:1", hardware=Frozen(cpus=4, gpus=("T4",))
    )
    packages = reg._core.artifacts().put_bytes(b'{"numpy":"2.4.6"}')

    def started(_view: object, seal: Sealer) -> list[ev.Event]:
        return [
            ev.RunStarted(
                run_id="run-2", name="train", attempt=1, project="crm", step="train", pipeline="weekly", group="sweep",
                parent="run-1", command=seal("python train.py"), code=code, environment=where, packages=packages,
                process="42:7:0:1", params=Frozen({"lr": 0.1, "layers": (1, 2)}), tags=("nightly",),
            )
        ]  # fmt: skip

    def again(_view: object, _seal: Sealer) -> list[ev.Event]:
        return [ev.RunStarted(run_id="run-2", name="train", attempt=2)]

    def finished(_view: object, seal: Sealer) -> list[ev.Event]:
        files = (File("a.csv", 1, "sha256:" + "2" * 64),)
        return [
            ev.RunFinished(
                run_id="run-2", status="failed", attempt=2, duration=1.5, exit_status=1, exception=seal("ValueError: x"),
                traceback=packages, params=Frozen({"lr": 0.2}), metrics=Frozen({"loss": float("nan"), "acc": 0.5}),
                series=reg._core.artifacts().put_bytes(b'{"acc":[[1,"2026-08-01T12:00:00.000000Z",0.5]]}'),
                inputs=(
                    RunInput("dataset://clicks/v1", "data", files),
                    RunInput("file:local.csv", None, files, changed=True, seen=True),
                    RunInput("s3://bucket/raw.csv", "raw", files, tag="etag:5eb63bbb"),
                ),
                files=(File("roc.txt", 5, "sha256:" + "3" * 64),), script="sha256:" + "4" * 64, unseen=("cv2",),
                tags=("late",), alerts=(Frozen({"message": "a line of 10 MB", "file": "stdout"}),),
            )
        ]  # fmt: skip

    for decide in (started, again, finished):
        reg._commit("run:run-2", decide)


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
