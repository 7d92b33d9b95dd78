"""All checks. `nox` runs everything but the benchmarks; `nox -s tests -- tests/domain -k uri` runs a part.

`nox -s fast` runs what is quick, for use while coding; `nox -s thorough` runs every test at full size, with
new examples, seeds and orders, on each interpreter that there is, and measures what the tests cover.

Two virtual environments serve the usual sessions, since their packages take longer to install than the
checks to run: `dev` has everything, `bare` has the library alone and what runs its tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["checks", "tests"]

PLACES = ["src", "tests", "examples", "benchmarks", "docs", "noxfile.py", "conftest.py"]
PYTHONS = ["3.11", "3.12", "3.13"]
ENVIRONMENT: dict[str, str | None] = {
    **{name: None for name in os.environ if name.startswith("MODELHUB_")},
    "PYTHONDONTWRITEBYTECODE": None,  # the children of tests import the library a hundred times
    "PYTHONHASHSEED": "0",
}
INSTALL = ("--quiet", "--no-compile")  # of all that is installed a tenth is imported, and compiled then


def cores() -> int:
    """Return how many processes to test with: tests wait for disks and servers, so never only one."""
    try:
        return max(2, len(os.sched_getaffinity(0)))
    except AttributeError:
        return max(2, os.cpu_count() or 2)


@nox.session(default=False)
def dev(session: nox.Session) -> None:
    """Make the environment of the other sessions: the library, editable, with all that the checks need."""
    session.install(*INSTALL, "-e", ".[dev]")


def programs(name: str) -> Path:
    """Return the folder of the programs of the environment *name*."""
    return Path(__file__).parent / ".nox" / name / ("Scripts" if os.name == "nt" else "bin")


def environment(**more: str | None) -> dict[str, str | None]:
    """Return what the programs of `dev` see, beside what is set here."""
    return {
        **ENVIRONMENT,
        "PATH": os.pathsep.join([str(programs("dev")), os.environ.get("PATH", "")]),
        **more,
    }


def run(session: nox.Session, program: str, *arguments: str, **more: str | None) -> None:
    """Run a program of the `dev` environment, with *more* environment variables."""
    session.run(str(programs("dev") / program), *arguments, external=True, env=environment(**more))


def present() -> list[str]:
    """Return those of our folders that exist."""
    return [place for place in PLACES if Path(place).exists()]


STYLE = [["ruff", "check", *present()], ["ruff", "format", "--check", *present()]]
TYPES = [["mypy", "--explicit-package-bases", *[place for place in present() if place != "docs"]]]
LAYERS = [["lint-imports"]]
DOCTESTS = [
    ["pytest", "-p", "no:randomly", "--doctest-modules", "--doctest-continue-on-failure", "src", "README.md", "docs"]
]  # fmt: skip
EXAMPLES = [
    ["python", os.path.abspath(f"examples/{name}")] for name in ("quickstart.py", "pipeline/pipeline.py")
]


@nox.session(venv_backend="none", requires=["dev", "bare"])
def checks(session: nox.Session) -> None:
    """Check style, types and layers, run doctests and examples: two at a time, each of which has one process."""
    folder = session.create_tmp()
    with ThreadPoolExecutor(max_workers=2) as lanes:
        lanes_done = [
            lanes.submit(_lane, TYPES, "."),
            lanes.submit(_lane, [*STYLE, *LAYERS, *DOCTESTS], "."),
            lanes.submit(_lane, EXAMPLES, folder),
        ]
    if not all(lane.result() for lane in lanes_done):
        session.error("A check failed; its output is above.")


def _lane(commands: Sequence[Sequence[str]], folder: str) -> bool:
    """Run *commands* one after the other, show what each says when it is done, and return whether all went well."""
    variables = os.environ | {name: value for name, value in environment().items() if value is not None}
    for name, value in environment().items():
        if value is None:
            variables.pop(name, None)
    good = True
    for program, *arguments in commands:
        begun = time.monotonic()
        done = subprocess.run(
            [programs("dev") / program, *arguments],
            cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        said = done.stdout.decode(errors="replace")
        sys.stdout.write(
            f"$ {program} {' '.join(arguments)}\n{said}"
            f"({time.monotonic() - begun:.0f} s, status {done.returncode})\n\n"
        )
        sys.stdout.flush()
        good = good and done.returncode == 0
    return good


def each(session: nox.Session, commands: Sequence[Sequence[str]]) -> None:
    """Run *commands* of the `dev` environment one after the other."""
    for command in commands:
        run(session, *command)


@nox.session(venv_backend="none", requires=["dev"], default=False)
def lint(session: nox.Session) -> None:
    """Check style and format."""
    each(session, STYLE)


@nox.session(venv_backend="none", requires=["dev"], default=False)
def types(session: nox.Session) -> None:
    """Check types: the library strictly, everything else lightly."""
    each(session, TYPES)


@nox.session(venv_backend="none", requires=["dev"], default=False)
def layers(session: nox.Session) -> None:
    """Check that imports only go down."""
    each(session, LAYERS)


@nox.session(venv_backend="none", requires=["dev"])
def tests(session: nox.Session) -> None:
    """Run the tests in parallel: the same ones in the same way each time. With arguments, run a part."""
    if session.posargs:
        run(session, "pytest", *session.posargs)
        return
    run(session, "pytest", "-n", str(cores()), "--dist", "worksteal", "tests")


@nox.session(venv_backend="none", requires=["dev"], default=False)
def fast(session: nox.Session) -> None:
    """Run the tests that need neither servers nor disks nor children: what one wants to know while coding."""
    run(session, "pytest", "-n", str(cores()), "--dist", "worksteal", "-m", "fast", "tests", *session.posargs)


@nox.session(python=PYTHONS, default=False)
def thorough(session: nox.Session) -> None:
    """Run every test at full size, in a new order, with new examples; all of them must cover the library."""
    session.install(*INSTALL, "-e", ".[test]")
    session.run(
        "python", "-m", "pytest", "-n", str(cores()), "--dist", "worksteal",
        "--cov", "--cov-report", "term:skip-covered", "--timeout", "1800", "tests", *session.posargs,
        env={**ENVIRONMENT, "PYTHONHASHSEED": None, "THOROUGH_TESTS": "1"},
    )  # fmt: skip


@nox.session(default=False)
def bare(session: nox.Session) -> None:
    """Check that the library imports and works on SQLite and folders without any extra."""
    session.install(*INSTALL, ".", "pytest", "pytest-timeout", "hypothesis")
    session.run("python", "-m", "pytest", "--confcutdir=tests", "tests/bare", env=ENVIRONMENT)


@nox.session(venv_backend="none", requires=["dev"], default=False)
def doctests(session: nox.Session) -> None:
    """Run every example in README, docs and docstrings."""
    each(session, DOCTESTS)


@nox.session(venv_backend="none", requires=["dev"], default=False)
def examples(session: nox.Session) -> None:
    """Run the examples as a newcomer would, in a folder of their own."""
    with session.chdir(session.create_tmp()):
        each(session, EXAMPLES)


@nox.session(venv_backend="none", requires=["dev"], default=False)
def bench(session: nox.Session) -> None:
    """Measure, and compare with the stated baselines. Wants a quiet machine."""
    run(session, "python", "-m", "benchmarks", *session.posargs)
