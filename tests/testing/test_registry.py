"""Throw-away registries for users' own tests, by hand and as a pytest fixture."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import modelhub_sdk as hub
from modelhub_sdk import hub as functions
from modelhub_sdk.testing import registry

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["memory", "sqlite", "folder"])
def test_a_registry_lives_as_long_as_its_block(kind: str, tmp_path: Path) -> None:
    """Within the block everything works and `hub.resolve` means this registry; afterwards no file of it is left."""
    with registry(kind) as reg:
        version = reg.register("churn", {"model.bin": b"weights"})
        reg.approve(version, "good")
        resolved = hub.resolve("model://churn/latest", tmp_path / "inputs")
        assert (tmp_path / "inputs" / "model.bin").read_bytes() == b"weights"
        assert (resolved.uri, version.created_by, functions.default()) == ("model://churn/v1", "tester", reg)
        folder = Path(reg._core.artifacts().root).parent
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(hub.NotAllowed):
        reg.models()


def test_two_registries_know_nothing_of_each_other() -> None:
    """Each block has a registry of its own."""
    with registry() as one, registry() as other:
        one.create_model("churn")
        assert [len(one.models()), len(other.models())] == [1, 0]


def test_options_go_to_open() -> None:
    """The user, the project and all other options are those of `hub.open`."""
    with registry(user="ana", project="crm") as reg:
        assert (reg.user, reg.create_model("churn").projects) == ("ana", ("crm",))


def test_an_unknown_kind_is_refused() -> None:
    """The error names the kinds."""
    with pytest.raises(hub.InvalidName, match="memory, sqlite or folder"), registry("oracle"):
        pass


def test_the_machines_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is written where MODELHUB_ settings point, and they are there again afterwards."""
    monkeypatch.setenv("MODELHUB_ARTIFACTS", str(tmp_path / "precious"))
    monkeypatch.setenv("MODELHUB_REGISTRY", str(tmp_path / "real"))
    monkeypatch.setenv("MODELHUB_OFFLINE", "1")
    monkeypatch.setenv("MODELHUB_PROJECT", "real-project")
    with registry() as reg:
        assert reg.register("churn", {"model.bin": b"weights"}).number == 1
        assert reg.model("churn").projects == ()
    assert os.environ["MODELHUB_PROJECT"] == "real-project"
    assert list(tmp_path.iterdir()) == []


def test_the_fixture_gives_each_test_a_registry_of_its_own(tmp_path: Path) -> None:
    """In a project that has the plugin, `modelhub` is a fresh registry per test, and the default one."""
    (tmp_path / "test_it.py").write_text(
        """
import modelhub_sdk as hub

def test_one(modelhub):
    modelhub.approve(modelhub.register("churn", {"model.bin": b"weights"}), "good")
    assert open(hub.resolve("churn/latest").path + "/model.bin", "rb").read() == b"weights"

def test_two(modelhub):
    assert len(modelhub.models()) == 0
""",
        "utf-8",
    )
    done = _python(
        "-m", "pytest", "-q", "-p", "modelhub_sdk.testing.plugin", "-p", "no:cacheprovider", cwd=tmp_path
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_plugin_is_found_and_costs_nothing(tmp_path: Path) -> None:
    """It is an entry point of pytest; importing it loads neither hypothesis nor anything heavy of ours."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"modelhub_sdk": "modelhub_sdk.testing.plugin"}
    heavy = "'hypothesis', 'cattrs', 'fsspec', 'sqlalchemy', 'sqlite3', 'modelhub_sdk.core', 'modelhub_sdk.registry'"
    done = _python(
        "-c",
        "import pytest, sys; before = set(sys.modules); import modelhub_sdk.testing.plugin;"
        f"print(sorted((set(sys.modules) - before) & {{{heavy}}}))",
        cwd=tmp_path,
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def _python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
