"""The public face: what it names, what it loads, what it says of itself, and what it answers to wrong first tries."""

from __future__ import annotations

import builtins
import copy
import importlib
import inspect
import pickle
import pkgutil
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import errors
from modelhub_sdk.errors import ModelHubError

HEAVY = ("sqlalchemy", "fsspec", "cattrs", "psycopg", "s3fs", "pandas", "tqdm", "platformdirs", "sqlite3")


def python(code: str) -> str:
    """Run *code* in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- names


def test_all_is_what_there_is():
    """Every name in __all__ exists, and nothing public is left out; dir() shows them."""
    found = {name: getattr(hub, name) for name in hub.__all__}
    assert sorted(set(hub.__all__)) == list(hub.__all__)
    assert set(hub.__all__) <= set(dir(hub))
    classes = {
        cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, ModelHubError)
    }
    public = {cls for cls in classes if not cls.__name__.startswith("_")}
    assert public == {
        value for value in found.values() if inspect.isclass(value) and issubclass(value, ModelHubError)
    }
    assert {cls.__name__ for cls in public} == set(errors.__all__)


def test_type_checkers_see_the_same_names():
    """The names that are imported for type checkers are those that are loaded lazily, from the same places."""
    source = Path(hub.__file__).read_text("utf-8")
    block = source.split("if TYPE_CHECKING:", 1)[1].split("\ndef ", 1)[0]
    namespace: dict[str, Any] = {}
    exec(textwrap.dedent(block), namespace)
    named = {name: value for name, value in namespace.items() if not name.startswith("__")}
    assert set(named) == set(hub.__all__)
    assert all(value is getattr(hub, name) for name, value in named.items())


def test_a_star_import():
    """A star import gives the public names and nothing else."""
    namespace: dict[str, Any] = {}
    exec("from modelhub_sdk import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(hub.__all__)


def test_an_unknown_name():
    """An AttributeError as Python's own."""
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hub.nothing  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        exec("from modelhub_sdk import nothing")


# --- what is loaded


def test_importing_is_light():
    """Importing the package loads nothing heavy, and none of its own rooms."""
    loaded = python(
        f"""
        import sys
        before = set(sys.modules)
        import modelhub_sdk
        new = set(sys.modules) - before
        print([m for m in {HEAVY!r} if m in new], sorted(m for m in new if m.startswith("modelhub_sdk.")))
        """
    )
    assert loaded.strip() == "[] []"


def test_errors_are_light():
    """Naming an error loads only the errors."""
    assert (
        python(
            """
        import sys, modelhub_sdk
        modelhub_sdk.NotFound
        print(sorted(m for m in sys.modules if m.startswith("modelhub_sdk.")))
        """
        ).strip()
        == "['modelhub_sdk.errors']"
    )


def test_sqlite_needs_nothing_heavy(tmp_path: Path):
    """A registry on SQLite with local artifacts registers and resolves without SQLAlchemy, fsspec or pandas."""
    loaded = python(
        f"""
        import sys, modelhub_sdk as hub
        with hub.open("sqlite:///{tmp_path}/r.db") as reg:
            reg.register("m", {{"f": b"1"}})
            reg.resolve("m/v1")
        print([m for m in ("sqlalchemy", "fsspec", "psycopg", "s3fs", "pandas") if m in sys.modules])
        """
    )
    assert loaded.strip() == "[]"


# --- wrong first tries

WRONG = [
    "log_model", "register_model", "create_version", "upload", "save", "download", "load_model", "get", "get_model",
    "list_models", "list_versions", "search", "promote", "delete_model", "delete_version", "delete", "set_tag",
    "log_metric", "history", "transition_model_version_stage",
]  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_first_tries(name: str):
    """A verb of another product raises with the right spelling, which exists and takes what is shown."""
    with hub.open("memory://") as reg:
        with pytest.raises(AttributeError, match=r"reg\.\w+") as caught:
            getattr(reg, name)
        assert not hasattr(reg, name)
        for right in re.findall(r"reg\.(\w+)\(", str(caught.value)):
            assert callable(getattr(hub.Registry, right)), right
        for right, arguments in re.findall(r"reg\.(\w+)\(([^()]*?\w+=)", str(caught.value)):
            keyword = arguments.rstrip("=").split(",")[-1].strip()
            assert keyword in inspect.signature(getattr(hub.Registry, right)).parameters


def test_every_wrong_try_is_answered():
    """All of them are answered with something that exists; no right name is listed as a wrong one."""
    from modelhub_sdk.registry import SPELLINGS

    assert set(WRONG) <= set(SPELLINGS)
    for wrong, right in SPELLINGS.items():
        assert not hasattr(hub.Registry, wrong)
        assert all(hasattr(hub.Registry, name) for name in re.findall(r"reg\.(\w+)", right)), right


@pytest.mark.parametrize("name", ["register", "approve", "log_model", "snapshot_download"])
def test_verbs_on_the_package(name: str):
    """A verb that is looked for on the package is said to be one of a registry, or which one it is."""
    with pytest.raises(AttributeError, match=r"hub\.open\(\).*reg\.\w+"):
        getattr(hub, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'$"):
        hub.nonsense  # noqa: B018


def test_a_registry_is_opened():
    """Registry(url) says how to open one; a misspelt verb is an ordinary AttributeError with Python's own guess."""
    with pytest.raises(TypeError, match="modelhub_sdk.open"):
        hub.Registry("sqlite:///x.db")  # type: ignore[arg-type]
    with hub.open("memory://") as reg:
        with pytest.raises(AttributeError) as caught:
            reg.aprove("m/v1")  # type: ignore[attr-defined]
        assert (caught.value.name, caught.value.obj) == ("aprove", reg)
        with pytest.raises(AttributeError):
            _ = reg.at(1).approve  # type: ignore[attr-defined]


# --- errors

ERRORS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_errors(cls: type[ModelHubError]):
    """Each derives from the root and a builtin, carries its facts and hint, survives pickle and copy, and has a text."""
    error = cls("It went wrong.", hint="Do this.", some_fact=(1, "x"))
    assert isinstance(error, ModelHubError)
    assert str(error) == "It went wrong. Do this."
    builtin = [base for base in cls.__mro__ if getattr(builtins, base.__name__, None) is base]
    assert cls is ModelHubError or builtin[0] not in (Exception, BaseException, object)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is cls
        assert (str(again), again.hint, again.facts, again.args) == (
            str(error),
            "Do this.",
            {"some_fact": (1, "x")},
            error.args,
        )
    assert cls.__doc__


def test_the_tree_of_errors_is_drawn():
    """The docstring of modelhub_sdk.errors draws exactly the tree that there is, with the builtins."""
    drawn: dict[str, tuple[str, str]] = {}
    above = ["ModelHubError"]
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"\s*((?:│   |    )*)(?:├── |└── )(\w+)\s*(?:\((\w+)\))?", line)
        if match:
            depth = len(re.findall(r"│   |    ", line[4 : match.start(2) - 4])) + 1
            above[depth:] = [match[2]]
            drawn[match[2]] = (above[depth - 1], match[3] or "")
    real = {}
    for cls in ERRORS:
        if cls is not ModelHubError:
            bases = [base for base in cls.__bases__ if not base.__name__.startswith("_")]
            parent = next(
                (base for base in cls.__mro__[1:] if base.__name__ in errors.__all__), ModelHubError
            )
            own = [base.__name__ for base in bases if hasattr(builtins, base.__name__)]
            real[cls.__name__] = (parent.__name__, own[0] if own else "")
    assert drawn == real


# --- what it says of itself


def public_callables() -> Iterator[tuple[str, Any]]:
    """Every public function and class of the package, and every public method and property of those."""
    package = importlib.import_module("modelhub_sdk")
    for info in pkgutil.walk_packages(package.__path__, "modelhub_sdk."):
        if ".testing" in info.name:
            continue  # needs hypothesis; tested with it
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != info.name:
                continue
            if inspect.isfunction(value) or inspect.isclass(value):
                yield f"{info.name}.{name}", value
            if inspect.isclass(value):
                for attribute, member in vars(value).items():
                    member = getattr(member, "__func__", getattr(member, "fget", member))
                    if inspect.isfunction(member) and not {attribute[0], member.__name__[0]} & {"_"}:
                        yield f"{info.name}.{name}.{attribute}", member


CALLABLES = dict(public_callables())


def test_everything_public_has_a_docstring():
    """Each module, class, function, method and property says what it is for."""
    missing = [name for name, value in CALLABLES.items() if not inspect.getdoc(value)]
    assert missing == []


FACE = [
    (name, value)
    for cls in (hub.Registry, hub.RegistryView)
    for name, value in inspect.getmembers(cls, inspect.isfunction)
    if not name.startswith("_")
] + [
    ("open_", hub.Registry.open),
    ("hub.open", hub.open),
    ("hub.use", hub.use),
    ("hub.resolve", hub.resolve),
]


@pytest.mark.parametrize(("name", "function"), FACE, ids=[f"{f.__qualname__}" for _, f in FACE])
def test_the_face_is_documented(name: str, function: Any):
    """A verb's docstring begins with a sentence and lists what it raises; every argument is typed."""
    text = inspect.getdoc(function) or ""
    assert re.match(r"[A-Z][^\n]*", text), name
    raises_nothing = {"close", "rebuild_index", "settings", "iter_models", "iter_versions", "hub.use"}
    assert (
        "Raises:" in text or name in raises_nothing or re.search(r"; see `\w+(\.\w+)?`|see `Registry", text)
    ), name
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in ("self", "cls"):
            assert parameter.annotation is not inspect.Parameter.empty, (name, parameter.name)
    for section in re.findall(r"Raises:\n((?: {4}.*\n?)+)", text):
        for named in re.findall(r"^ {4}((?:\w+(?:, )?)+):", section, re.MULTILINE):
            for one in named.split(", "):
                assert one in errors.__all__ or hasattr(builtins, one), (name, one)


def test_the_example_of_the_package_runs():
    """What the package's docstring shows is what happens."""
    import doctest

    found = doctest.testmod(hub)
    assert found.attempted >= 4
    assert found.failed == 0


def test_every_test_says_what_behaves_how():
    """Each test of this suite has a docstring that states a behaviour."""
    import ast

    missing = [
        f"{path.name}::{node.name}"
        for path in Path(__file__).parent.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert missing == []
