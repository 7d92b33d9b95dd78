"""What README and docs claim beside their code blocks: links, verbs, errors, settings, commands."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

import modelhub_sdk as hub
from modelhub_sdk import errors
from modelhub_sdk.active import RUN_ID
from modelhub_sdk.run.code import COMMIT_VARIABLES
from modelhub_sdk.run.environment import IMAGE_VARIABLES
from modelhub_sdk.run.spy import WATCH

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")],
    key=lambda page: str(page),
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    """Every relative link of every page leads to something that is there."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


def _signature(name: str) -> str:
    if isinstance(inspect.getattr_static(hub.Registry, name), property):
        return name
    return _shown(name, list(inspect.signature(getattr(hub.Registry, name)).parameters.values())[1:])


def _shown(name: str, parameters: Iterable[inspect.Parameter]) -> str:
    shown = []
    for parameter in parameters:
        stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
        optional = "=" if parameter.default is not parameter.empty else ""
        shown.append(stars + parameter.name + optional)
    return f"{name}({', '.join(shown)})"


def test_the_verbs_are_those_of_the_registry() -> None:
    """The reference lists every public name of `Registry` and of `hub.cache`, with the arguments that it has."""
    page = (ROOT / "docs/reference/verbs.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE))
    public = {name for name in dir(hub.Registry) if not name.startswith("_")} - {"open"}
    of_cache = {
        _shown(f"hub.cache.{name}", inspect.signature(getattr(hub.cache, name)).parameters.values())
        for name in hub.cache.__all__
        if name.islower()
    }
    assert listed == {_signature(name) for name in public} | of_cache


def test_the_errors_are_those_of_the_library() -> None:
    """The reference shows the tree that the module's docstring shows, and it is the real one."""
    page = (ROOT / "docs/reference/errors.md").read_text("utf-8")
    tree = [line.strip() for line in (errors.__doc__ or "").splitlines() if "──" in line]
    assert tree == [line.strip() for line in page.splitlines() if "──" in line]
    for name in errors.__all__:
        if name != "ModelHubError":
            (line,) = [line for line in tree if re.search(rf"── {name}\b", line)]
            if builtin := re.search(rf"── {name} +\((\w+)\)", line):
                assert builtin[1] in [base.__name__ for base in getattr(errors, name).__mro__], name


def test_the_settings_are_those_that_are_read() -> None:
    """The reference lists the environment variables that the source reads, and `configure`'s arguments."""
    page = (ROOT / "docs/reference/settings.md").read_text("utf-8")
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    read = {"MODELHUB_" + name for name in re.findall(r"\b(?:setting|flag)\(\"([A-Z_]+)\"", source)}
    read |= set(re.findall(r"environ(?:\.get\(|\[)\"(MODELHUB_[A-Z_]+)\"", source))
    read |= {name for name in COMMIT_VARIABLES + IMAGE_VARIABLES if name.startswith("MODELHUB_")}
    read -= {RUN_ID, WATCH}  # of children; told in a sentence
    assert RUN_ID in page
    assert WATCH in page
    assert set(re.findall(r"^\| `(MODELHUB_[A-Z_]+)`", page, flags=re.MULTILINE)) == read
    arguments = set(inspect.signature(hub.Registry.configure).parameters) - {"self"}
    assert set(re.findall(r"^\| `(\w+)=", page, flags=re.MULTILINE)) == arguments


def test_the_two_commands() -> None:
    """The README has two commands, and CI runs the second one."""
    readme = (ROOT / "README.md").read_text("utf-8")
    first, second = re.findall(r"```sh\n(.*?)\n```", readme, flags=re.DOTALL)
    assert first == 'python -m pip install -e ".[examples]" && python examples/quickstart.py'
    assert second == "python -m pip install nox && nox"
    ci = (ROOT / ".ci/run").read_text("utf-8")
    assert re.search(r"python -m pip install (--quiet )?nox\n(python -m )?nox\b", ci)


def test_each_guarantee_names_its_test() -> None:
    """Every line of the tables of guarantees names tests that exist."""
    page = (ROOT / "docs/explanation/guarantees.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| **")]
    assert len(rows) > 20
    for row in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.rpartition(" | ")[2])
        assert tests, row
        for file, name in tests:
            assert f"def {name}(" in (ROOT / file).read_text("utf-8"), f"{file}::{name}"
