"""All checks. `nox` runs everything but the benchmarks; `nox -s tests -- tests/domain -k uri` runs a part.

Two virtual environments serve all sessions, since their packages take longer to install than the
checks to run: `dev` has everything, `bare` has the library alone and what runs its tests.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "layers", "tests", "bare", "doctests", "examples"]

PLACES = ["src", "tests", "examples", "benchmarks", "docs", "noxfile.py", "conftest.py"]
REGISTRY: dict[str, str | None] = {name: None for name in os.environ if name.startswith("MODELHUB_")}


def cores() -> int:
    """Return how many processes to test with: tests wait for disks and servers, so never only one."""
    try:
        return max(2, len(os.sched_getaffinity(0)))
    except AttributeError:
        return max(2, os.cpu_count() or 2)


@nox.session(default=False)
def dev(session: nox.Session) -> None:
    """Make the environment of the other sessions: the library, editable, with all that the checks need."""
    session.install("--quiet", "--upgrade", "pip>=24")
    session.install("--quiet", "-e", ".[dev]")


def run(session: nox.Session, program: str, *arguments: str) -> None:
    """Run a program of the `dev` environment."""
    place = Path(__file__).parent / ".nox" / "dev" / ("Scripts" if os.name == "nt" else "bin")
    path = os.pathsep.join([str(place), os.environ.get("PATH", "")])
    session.run(
        str(place / program),
        *arguments,
        external=True,
        env={**REGISTRY, "PATH": path},
    )


def present() -> list[str]:
    """Return those of our folders that exist."""
    return [place for place in PLACES if Path(place).exists()]


@nox.session(venv_backend="none", requires=["dev"])
def lint(session: nox.Session) -> None:
    """Check style and format."""
    run(session, "ruff", "check", *present())
    run(session, "ruff", "format", "--check", *present())


@nox.session(venv_backend="none", requires=["dev"])
def types(session: nox.Session) -> None:
    """Check types: the library strictly, everything else lightly."""
    run(session, "mypy", "src")
    run(session, "mypy", "--explicit-package-bases", *[p for p in present() if p not in ("src", "docs")])


@nox.session(venv_backend="none", requires=["dev"])
def layers(session: nox.Session) -> None:
    """Check that imports only go down."""
    run(session, "lint-imports")


@nox.session(venv_backend="none", requires=["dev"])
def tests(session: nox.Session) -> None:
    """Run the tests in parallel; all of them must cover the library. A part is run without that demand."""
    if session.posargs:
        run(session, "pytest", *session.posargs)
        return
    run(
        session, "pytest", "-n", str(cores()), "--dist", "worksteal",
        "--cov", "--cov-report", "term:skip-covered", "tests",
    )  # fmt: skip


@nox.session
def bare(session: nox.Session) -> None:
    """Check that the library imports and works on SQLite and folders without any extra."""
    session.install("--quiet", "--upgrade", "pip>=24")
    session.install("--quiet", ".", "pytest", "pytest-timeout", "hypothesis")
    session.run("python", "-m", "pytest", "--confcutdir=tests", "tests/bare", env=REGISTRY)


@nox.session(venv_backend="none", requires=["dev"])
def doctests(session: nox.Session) -> None:
    """Run every example in README, docs and docstrings."""
    run(
        session,
        "pytest",
        "-p",
        "no:randomly",
        "--doctest-modules",
        "--doctest-continue-on-failure",
        "src",
        "README.md",
        "docs",
    )


@nox.session(venv_backend="none", requires=["dev"])
def examples(session: nox.Session) -> None:
    """Run the examples as a newcomer would, in a folder of their own."""
    scripts = [Path("examples", name).absolute() for name in ("quickstart.py", "pipeline/pipeline.py")]
    folder = session.create_tmp()
    with session.chdir(folder):
        for script in scripts:
            run(session, "python", str(script))


@nox.session(venv_backend="none", requires=["dev"], default=False)
def bench(session: nox.Session) -> None:
    """Measure, and compare with the stated baselines. Wants a quiet machine."""
    run(session, "python", "-m", "benchmarks", *session.posargs)
