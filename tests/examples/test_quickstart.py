"""The quickstart, unchanged, on every store: as a newcomer runs it, and again on the same registry."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modelhub_sdk as hub

pytest.importorskip("sklearn")
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "quickstart.py"

pytestmark = pytest.mark.slow


def run(folder: Path) -> str:
    """Run the quickstart in *folder* and return what it printed; every warning is an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT], cwd=folder, capture_output=True, encoding="utf-8", timeout=150,
        env=os.environ | {"PYTHONUTF8": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(params=["default", "folder", "postgres", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the kind of store that the environment names."""
    if request.param == "folder":
        monkeypatch.setenv("MODELHUB_REGISTRY", str(tmp_path / "registry"))
    elif request.param == "postgres":
        monkeypatch.setenv("MODELHUB_REGISTRY", request.getfixturevalue("postgres_db"))
        monkeypatch.setenv("MODELHUB_ARTIFACTS", str(tmp_path / "artifacts"))
    elif request.param == "s3":
        monkeypatch.setenv("MODELHUB_REGISTRY", f"{request.getfixturevalue('s3_bucket').url}/registry")
    return str(request.param)


def test_it_runs(place: str, tmp_path: Path) -> None:
    """The second process loads the version that was approved; a second run on the same registry works too."""
    printed = run(tmp_path)
    assert "model://quickstart-digits/latest is now v2." in printed
    assert "That is the approved model://quickstart-digits/v2" in printed
    assert re.search(r"approved model://quickstart-digits/v2: Reads far more", printed)
    assert "no problems" in printed
    if place == "default":  # everything is in the folder that it made
        (folder,) = tmp_path.iterdir()
        assert {"models.db", "cache", "inputs"} <= {path.name for path in folder.iterdir()}
        return
    again = run(tmp_path)
    assert "That is the approved model://quickstart-digits/v2" in again
    assert "ingested before: nothing changed" in again
    with hub.open() as reg:
        assert [version.status for version in reg.versions("quickstart-digits")] == ["approved", "rejected"]
        assert len(reg.uses("quickstart-digits/v2")) == 2
