"""The files that a run reads, told apart from its code, its outputs and the noise of the interpreter."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from modelhub_sdk.blobs import disk
from modelhub_sdk.errors import ModelHubError
from modelhub_sdk.run import spy
from modelhub_sdk.run.spy import Spy, State

_HOOK = str(Path(__file__).parent / "hook")

_CODE = frozenset(
    [
        ".py",
        ".pyc",
        ".pyo",
        ".pyi",
        ".pyx",
        ".pyd",
        ".so",
        ".dll",
        ".dylib",
        ".ipynb",
        ".sh",
        ".bash",
        ".js",
        ".ts",
        ".c",
        ".h",
        ".cc",
        ".cpp",
        ".cu",
        ".java",
        ".go",
        ".rs",
        ".r",
        ".jl",
        ".pth",
    ]
)
_TEXT = frozenset(
    [
        ".md",
        ".rst",
        ".toml",
        ".yaml",
        ".yml",
        ".ini",
        ".cfg",
        ".conf",
        ".lock",
        ".html",
        ".css",
        ".mk",
        ".bat",
        ".ps1",
    ]
)
_NAMES = frozenset(
    ("makefile", "dockerfile", "license", "readme", "requirements.txt", "constraints.txt", "setup.cfg")
)
_SECRET = frozenset([".pem", ".key", ".p12", ".pfx", ".kdbx"])
_FOLDERS = frozenset(("__pycache__", "site-packages", "dist-packages", "node_modules"))
_SYSTEM = (
    "/proc",
    "/sys",
    "/dev",
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/sbin",
    "/run",
    "/var",
    "/boot",
)


@frozen
class Read:
    """One file that was read.

    `path` is absolute; `name` is its POSIX path below `root`, the folder that was watched. `digest` is
    None when the file was gone before it could be hashed. `changed` means that the bytes changed after
    they were read, and the digest may be that of the later ones.
    """

    path: str
    root: str
    name: str
    size: int
    digest: str | None
    changed: bool = False


class Watcher:
    """Watches what this process and its Python children read, from `start` to `stop`.

    Two that are on at the same time both see everything: the process is watched, not a thread.

    Args:
        roots: folders whose files count.
        exclude: folders whose files do not.
        tracked: returns the paths of the repository's own files; asked at the end.
        spool: a folder of its own, where children report.
    """

    def __init__(
        self,
        roots: Iterable[Path],
        *,
        exclude: Iterable[Path] = (),
        tracked: Callable[[], frozenset[str]] = frozenset,
        spool: Path,
    ) -> None:
        self._roots = tuple(dict.fromkeys(os.path.abspath(root) for root in roots))
        self._exclude = tuple(dict.fromkeys([os.path.abspath(one) for one in exclude] + [str(spool)]))
        self._tracked = tracked
        self._spy = Spy([*self._roots, *map(os.path.realpath, self._roots)], self._exclude, str(spool))
        self._before: dict[str, str | None] = {}
        self._found: tuple[Read, ...] | None = None

    def __enter__(self) -> Watcher:  # noqa: PYI034  # there are no subclasses
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Watch from now on; children are told by variables of this process's environment."""
        for name, value in self.environment().items():
            self._before[name] = os.environ.get(name)
            os.environ[name] = value
        spy.begin(self._spy)

    def environment(self) -> dict[str, str]:
        """Return the variables by which a Python child reports what it reads."""
        told = []
        with suppress(ValueError):
            told = json.loads(os.environ.get(spy.WATCH) or "[]")
        mine: dict[str, Any] = {
            "roots": list(self._spy.roots), "exclude": list(self._spy.exclude), "spool": self._spy.spool,
        }  # fmt: skip
        path = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one and one != _HOOK]
        return {
            spy.WATCH: json.dumps([*(one for one in told if one != mine), mine]),
            "PYTHONPATH": os.pathsep.join([_HOOK, *path]),
        }

    def stop(self) -> tuple[Read, ...]:
        """Watch no longer, hash what was read, and return it by name. Safe to call twice."""
        if self._found is None:
            spy.end(self._spy)
            for name, value in self._before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            self._found = self._sorted_out()
        return self._found

    # --- inside ----------------------------------------------------------------------------------

    def _sorted_out(self) -> tuple[Read, ...]:
        states, digests, torn = self._merged()
        wanted = {path: root for path in states if (root := self._root_of(path)) is not None}
        tracked = self._tracked() if wanted else frozenset()
        found = {}
        for path, root in wanted.items():
            name = Path(os.path.relpath(path, root)).as_posix()
            if _is_noise(path, root, name) or (_is_code(name) and os.path.realpath(path) in tracked):
                continue
            read = _hashed(path, root, name, states[path], digests.get(path), path in torn)
            found[os.path.realpath(path), name] = read
        return tuple(sorted(found.values(), key=lambda read: read.name))

    def _merged(self) -> tuple[dict[str, State], dict[str, str], set[str]]:
        """Return what this process and its children have read: states, digests of what was overwritten, contradictions."""
        states, digests = dict(self._spy.read), dict(self._spy.before)
        torn: set[str] = set()
        for row in self._reports():
            path, state = row["read"], tuple(row["state"])
            if path in self._spy.written:
                continue
            if states.setdefault(path, state) != state:
                torn.add(path)
            if row.get("digest"):
                digests.setdefault(path, row["digest"])
        return states, digests, torn

    def _reports(self) -> Iterable[dict[str, Any]]:
        with suppress(OSError):
            for name in sorted(os.listdir(self._spy.spool)):
                text = Path(self._spy.spool, name).read_text("utf-8", errors="replace")
                for line in text.splitlines():
                    with suppress(ValueError, KeyError, TypeError):  # torn, as its writer was killed
                        row = json.loads(line)
                        if isinstance(row["read"], str) and len(row["state"]) == 3:
                            yield row

    def _root_of(self, path: str) -> str | None:
        """Return the longest root that a path lies under, by its name or by its real place."""
        fitting = [
            root for root in self._roots if path.startswith((root + os.sep, os.path.realpath(root) + os.sep))
        ]
        if not fitting:
            return None
        root = max(fitting, key=len)
        return root if path.startswith(root + os.sep) else os.path.realpath(root)


def _is_noise(path: str, root: str, name: str) -> bool:
    """Return whether a file is none that anybody would call data: code, caches, dot-files, the system's."""
    parts = name.split("/")
    suffix = os.path.splitext(name)[1].lower()
    if any(part.startswith(".") or part in _FOLDERS for part in parts) or suffix in _CODE | _SECRET:
        return True
    return any(
        path.startswith(place + os.sep) and not (root + os.sep).startswith(place + os.sep)
        for place in _places()
    )


def _places() -> Iterable[str]:
    """Return the folders of the interpreter and the system; what lies there counts only for a root inside."""
    yield from _SYSTEM
    yield from (sys.prefix, sys.base_prefix, tempfile.gettempdir(), os.path.realpath(tempfile.gettempdir()))
    yield sysconfig.get_path("stdlib")


def _is_code(name: str) -> bool:
    """Return whether a tracked file is code, configuration or documentation rather than data."""
    base = name.rpartition("/")[2].lower()
    return os.path.splitext(base)[1] in _TEXT or base in _NAMES


def _hashed(path: str, root: str, name: str, state: State, before: str | None, torn: bool) -> Read:
    if before is not None:
        return Read(path, root, name, state[0], before, torn)
    try:
        found = os.stat(path)
        digest, size = disk.hash_file(os.path.realpath(path))
    except (OSError, ModelHubError):
        return Read(path, root, name, state[0], None, True)
    changed = torn or (found.st_size, found.st_mtime_ns, found.st_ino) != state
    return Read(
        path, root, name, size, digest if digest.startswith("sha256:") else "sha256:" + digest, changed
    )
