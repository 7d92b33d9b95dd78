"""The pipeline example, both ways: its lineage is whole, and nobody logged it."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import modelhub_sdk as hub

pytest.importorskip("sklearn")
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "pipeline" / "pipeline.py"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("form", [[], ["--yaml"]], ids=["python", "yaml"])
def test_the_chain_is_whole(form: list[str], tmp_path: Path) -> None:
    """Raw file → run → data → run → model version → use: in the registry, in what it prints, in the picture."""
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, *form], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=150,
        env=os.environ | {"PYTHONUTF8": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = tmp_path.iterdir()
    with hub.open(f"sqlite:///{folder}/.models.db", cache_dir=folder / ".cache") as reg:
        graph = reg.lineage("flower-classifier/v1").graph
        kinds = [node.kind for node in graph.nodes]
        assert sorted(kinds) == sorted(
            [
                "file",
                "run",
                "datum" if form else "dataset",
                "run",
                "model",
                "use",
                *["code"] * kinds.count("code"),
            ]
        )
        train, prepare = reg.runs()
        assert (prepare.name, train.name) == ("prepare", "train")
        assert [one.files[0].path for one in prepare.inputs] == ["measurements.csv"]
        assert prepare.dataset_versions == ("dataset://flowers/134-rows",)
        assert train.params == {"neighbours": 5}
        assert float(str(train.metrics["accuracy"])) > 0.9
        assert reg.version("flower-classifier/v1").run_id == train.id
        assert reg.verify().ok
    assert "run #2 train" in done.stdout
    assert ET.parse(folder / "lineage.svg").getroot().tag.endswith("svg")  # our own
