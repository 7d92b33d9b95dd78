"""The example store keeps the laws, and a registry lives on it."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from logfile_store import LogfileStore  # type: ignore[import-not-found,unused-ignore]

import modelhub_sdk as hub
from modelhub_sdk.ports import Store
from modelhub_sdk.testing import StoreConformance


class TestLogfile(StoreConformance):
    """The laws of the port."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> str:
        """A folder for the two files."""
        return f"logfile://{tmp_path}/registry"

    def open(self, place: Any) -> Store:
        """A handle on them."""
        return LogfileStore(place)

    def raw(self, place: Any) -> bytes:
        """All files."""
        folder = Path(place.removeprefix("logfile://"))
        return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_registry_by_its_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the entry point installed, the URL's scheme is all that it takes."""
    point = importlib.metadata.EntryPoint("logfile", "logfile_store:LogfileStore", "modelhub_sdk.stores")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [point])
    url = f"logfile://{tmp_path}/registry"
    with hub.open(url, create=True, cache_dir=tmp_path / "cache") as reg:
        version = reg.register("churn", {"model.bin": b"weights"}, metrics={"auc": 0.91}, note="secret")
        reg.approve(version, "good")
        reg.redact(version, "note", "a name in it")
    with hub.open(url, cache_dir=tmp_path / "cache") as reg:
        assert Path(reg.resolve("model://churn/latest/model.bin")).read_bytes() == b"weights"
        assert reg.version("churn/v1").note is None
        assert reg.verify().ok
    assert b"secret" not in (tmp_path / "registry" / "journal.log").read_bytes()
