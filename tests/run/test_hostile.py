"""Rubbish through every door of runs and datasets: one of our errors, or a value that comes back as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from modelhub_sdk import Registry
from modelhub_sdk.errors import ModelHubError

THOROUGH = bool(
    os.environ.get("THOROUGH_TESTS")
)  # every text through every door, else through a third of them
TEXTS = [
    "", " ", "a" * 100_000, "\0", "\n", "a\nb", "\x1b[31m", "‮evil", "\ud800", "é", "é", "𝛼", "../..", "/etc/passwd",
    "C:\\x", "nul", "latest", "v1", "3", "run:x", "model://m/v1", "%2e%2e", "'; DROP TABLE run; --", "<script>", "{}", "a/b",
    "$(touch x)", "-rf", ".", "..", "\u200b", "﷽" * 40, None, 7, 1.5, True, b"x", [], {}, object(),
]  # fmt: skip


def attempt(verb: Any) -> Any:
    """Return what *verb* gives, or its error, which must be one of ours (a TypeError tells of a wrong call)."""
    try:
        return verb()
    except ModelHubError as error:
        str(error).encode("utf-8", "backslashreplace")
        return error


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def test_texts_of_a_run(reg: Registry) -> None:
    """Names, ids, groups, tags, projects, keys and values of parameters and metrics, names of inputs and attachments."""
    for number, text in enumerate(TEXTS):
        doors: list[dict[str, Any]] = [
            {"name": text}, {"id": text}, {"group": text}, {"tags": [text]}, {"project": text}, {"commit": text},
            {"params": {"x": text}}, {"inputs": {"x": text}},
            *([] if isinstance(text, (list, dict)) else [{"params": {text: 1}}, {"inputs": {text: "x"}}]),
        ]  # fmt: skip
        for options in doors if THOROUGH else doors[number % 3 :: 3]:
            run = attempt(lambda options=options: reg.start_run(outputs=None, capture=False, **options))
            if not isinstance(run, ModelHubError):
                assert reg.run(run.finish().id).status == "completed"
    with reg.start_run("doors", outputs=None, capture=False) as run:
        for text in TEXTS:
            if not isinstance(text, (list, dict)):
                attempt(lambda text=text: run.log({text: 1.0}))
            attempt(lambda text=text: run.log({"m": text}))
            attempt(lambda text=text: run.log({"m": 1}, step=text))
            attempt(lambda text=text: run.input(text, "dataset://none/v1"))
            attempt(lambda text=text: run.input("x", text))
            if isinstance(text, (str, bytes)):
                attempt(lambda text=text: run.attach(text, b"x"))
    assert reg.run(run.id).status == "completed"
    for record in reg.runs(limit=1000):
        repr(record), record._repr_html_(), reg.upstream(record).to_svg()
    assert reg.verify().ok


def test_texts_of_data(reg: Registry, tmp_path: Path) -> None:
    """Names of datasets, versions and aliases, datums, and the files of a version."""
    reg.create_dataset_version("good/v1", {"a": b"1"})
    for number, text in enumerate(TEXTS):
        for verb in (
            lambda t: reg.create_dataset(t),
            lambda t: reg.create_dataset_version(t, {"a": b"1"}),
            lambda t, n=number: reg.create_dataset_version(f"many/n{n}", {t: b"1"}),
            lambda t, n=number: reg.create_dataset_version(
                f"tags/n{n}", {"a": b"1"}, tags=[t], fields={"f": t}
            ),
            lambda t, n=number: reg.create_dataset_version(
                f"base/n{n}", {"a": b"1"}, based_on=t, exclude=[t]
            ),
            lambda t: reg.set_alias("dataset://good/", t, "v1"),
            lambda t: reg.set_alias("dataset://good/", "alias", t),
            lambda t: reg.delete_alias("dataset://good/", t),
            lambda t: (reg.dataset(t), reg.dataset_version(t), reg.datum(t), reg.run(t)),
            lambda t: (reg.lineage(t), reg.upstream(t), reg.downstream(t)),
            lambda t: reg.resolve_inputs({"x": t}, tmp_path / "in"),
            lambda t: reg.datasets(text=t),
            lambda t: reg.runs(where=t),
        ):
            try:
                attempt(lambda verb=verb, text=text: verb(text))
            except TypeError as error:  # an unhashable key of a dict of the caller's own
                assert "unhashable" in str(error)
    for dataset in reg.datasets(limit=1000):
        repr(dataset), dataset._repr_html_()
        for version in dataset.versions:
            reg.dataset_version(f"dataset://{dataset.name}/{version}")._repr_html_()
    assert reg.verify().ok


@pytest.mark.parametrize(
    "alias", [["production-model"], "ok", 7, None, "", ["a", "b"], {"a": 1}, "v1", "latest", "BAD NAME"]
)
def test_aliases_of_datums(reg: Registry, tmp_path: Path, alias: Any) -> None:
    """Whatever stands behind valohai.alias: the output is stored, and the alias is moved or an alert."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("x")
    (tmp_path / "out" / "x.metadata.json").write_text(
        json.dumps({"valohai.alias": alias, "valohai.tags": ["t"]})
    )
    report = reg.ingest(tmp_path / "out")
    (uri,) = report.datums
    assert bool(reg.datum(uri).aliases) != bool(report.alerts) or alias is None
    assert reg.verify().ok
