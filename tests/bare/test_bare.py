"""What works with the library alone, without any extra. Also run in an environment that has none."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import modelhub_sdk as hub

HEAVY = {
    "sqlalchemy",
    "fsspec",
    "cattrs",
    "psycopg",
    "s3fs",
    "pandas",
    "numpy",
    "tqdm",
    "yaml",
    "pytest",
    "hypothesis",
}


def _loaded(code: str) -> set[str]:
    """The packages that a fresh interpreter has loaded after *code*."""
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {name.partition(".")[0] for name in printed.split()}


def test_the_import_is_light() -> None:
    """`import modelhub_sdk` loads neither SQLAlchemy nor fsspec nor cattrs, nor anything of that size."""
    assert not _loaded("import modelhub_sdk, modelhub_sdk.errors, modelhub_sdk.domain.uri") & HEAVY


def test_nothing_of_an_extra_is_loaded_for_a_local_registry(tmp_path: Path) -> None:
    """A registry on SQLite is opened, written and read without any package of an extra."""
    code = (
        "import modelhub_sdk as hub\n"
        f"with hub.open('sqlite:///{tmp_path}/models.db') as reg:\n"
        "    reg.register('churn', {'a': b'x'}, metrics={'auc': 0.9})\n"
    )
    assert not _loaded(code) & (HEAVY - {"sqlalchemy", "fsspec", "cattrs"})


@pytest.mark.parametrize("place", ["sqlite:///{}/models.db", "{}/registry"])
def test_the_main_path(tmp_path: Path, place: str) -> None:
    """Register, approve and resolve on SQLite and in a folder."""
    with hub.open(place.format(tmp_path)) as reg:
        version = reg.register("churn", {"model.bin": b"weights"}, metrics={"auc": 0.91})
        assert reg.latest("churn") is None
        reg.approve(version, "good")
        found = reg.resolve("model://churn/latest", tmp_path / "inputs")
        assert (tmp_path / "inputs" / "model.bin").read_bytes() == b"weights"
        assert str(found.uri) == "model://churn/v1"
        assert [v.number for v in reg.versions("churn", where="metrics.auc >= 0.9")] == [1]
        assert reg.verify().ok


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [("postgresql://u:secret@h/db", "psycopg", "postgres"), ("s3://bucket/models", "s3fs", "s3")],
)
def test_a_missing_extra_says_what_to_install(
    url: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend whose package is not there raises `MissingExtra` with the pip line, and no secret."""
    if importlib.util.find_spec(package) is not None:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(hub.MissingExtra) as caught:
        hub.open(url)
    assert f"modelhub-sdk[{extra}]" in str(caught.value)
    assert "secret" not in str(caught.value)
