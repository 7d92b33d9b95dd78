"""The files that a run reads, told apart from its code, its outputs and the noise of the interpreter."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from modelhub_sdk.blobs import disk
from modelhub_sdk.errors import InvalidName, ModelHubError, shown
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
_NAMES = re.compile(
    r"(makefile|dockerfile|licen[cs]e|readme|notice)(\..*)?|(requirements|constraints).*\.txt"
)
# Not because a digest would give a secret away, but because a key is nobody's data.
_SECRET = frozenset([".pem", ".key", ".p12", ".pfx", ".kdbx"])
_SECRET_NAMES = re.compile(r"id_(rsa|dsa|ecdsa|ed25519)|credentials(\.json)?|service[-_]account.*\.json")
_NEVER = _CODE | _SECRET
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
    r"""One file that was read.

    `path` is absolute; `name` is its POSIX path below `root`, the folder that was watched, where bytes that
    are no text stand as ``\xff``. `digest` is None when the file was gone before it could be hashed.
    `changed` means that the bytes changed after they were read, and the digest may be that of the later
    ones.
    """

    path: str
    root: str
    name: str
    size: int
    digest: str | None
    changed: bool = False


class Watcher:
    """Watches what this process and its Python children read, from `start` to `stop`.

    Two that are on at the same time both see everything: the process is watched, not a thread. In a
    forked child all of it does nothing; what the child reads is the parent's.

    What is not seen: readers that open in C or C++, except those that `spy` wraps; children that are
    given an environment without `environment()`, that are started with ``-I``, ``-E`` or ``-S``, or that
    are no Python; workers that are older than the run (a fork server, joblib's pool of an earlier run).
    What ``os.open`` opens by ``dir_fd`` looks to Python's audit like a name of the working folder.

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
        self._places = _both_ways(roots)
        self._exclude = _both_ways([*exclude, spool])
        self._tracked = tracked
        self._spy = Spy(self._places, self._exclude, os.path.abspath(spool))
        self._found: tuple[Read, ...] | None = None

    def __enter__(self) -> Watcher:  # noqa: PYI034  # there are no subclasses
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Watch from now on; children are told by variables of this process's environment."""
        with suppress(OSError):  # without it children are not heard, and the run goes on
            os.makedirs(self._spy.spool, mode=0o700, exist_ok=True)
        with _telling:
            os.environ.update(self.environment())
        spy.begin(self._spy)

    def environment(self, variables: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return what to add to a child's *variables*, so that it reports what it reads if it is Python."""
        told = [one for one in _told() if one != self._mine]
        path = os.pathsep.join([_HOOK, *_path(variables)])
        return {spy.WATCH: json.dumps([*told, self._mine]), "PYTHONPATH": path}

    @property
    def overflow(self) -> int:
        """How often a file was left out, as more than `spy.MAX_FILES` were read; a child counts once."""
        return self._spy.overflow

    def stop(self) -> tuple[Read, ...]:
        """Watch no longer, hash what was read, and return it by name. Safe to call twice."""
        if os.getpid() != self._spy.pid:
            return ()
        if self._found is None:
            spy.end(self._spy)
            with _telling:
                self._untell()
            with spy.Unseen():  # another watcher may be on
                self._found = self._sorted_out()
        return self._found

    # --- inside ----------------------------------------------------------------------------------

    @property
    def _mine(self) -> dict[str, Any]:
        return {
            "roots": list(self._spy.roots), "exclude": list(self._exclude), "spool": self._spy.spool,
        }  # fmt: skip

    def _untell(self) -> None:
        """Take this watcher alone out of the environment: others may have begun since, and not ended."""
        if rest := [one for one in _told() if one != self._mine]:
            os.environ[spy.WATCH] = json.dumps(rest)
            return
        os.environ.pop(spy.WATCH, None)
        if path := _path(os.environ):
            os.environ["PYTHONPATH"] = os.pathsep.join(path)
        else:
            os.environ.pop("PYTHONPATH", None)

    def _sorted_out(self) -> tuple[Read, ...]:
        merged = self._merged()
        wanted = {path: root for path in merged.states if (root := self._root_of(path)) is not None}
        tracked = self._tracked() if wanted else frozenset()
        real = {root: os.path.realpath(root) for root in self._places}
        hashes = _Hashes()
        found = {}
        for path, root in wanted.items():
            name = _told_name(path[len(_inside(root)) :])
            if _is_noise(path, root, name) or (_is_code(name) and os.path.realpath(path) in tracked):
                continue
            torn = path in merged.torn
            before = merged.digests.get(path)
            if before is not None:
                read = Read(path, root, name, merged.states[path][0], before, torn)
            else:
                read = hashes.read(path, root, name, merged.states[path], torn)
            found[real[root], name] = read
        return tuple(sorted(found.values(), key=lambda read: read.name))

    def _merged(self) -> _Merged:
        """Return what this process and its children have read, except what any of them had written before.

        Their clock is one: `time.monotonic_ns` counts from the start of the machine.
        """
        rows = list(self._reports())
        written = dict(self._spy.written)
        for row in rows:
            if (path := row.get("wrote")) is not None:
                written[path] = min(row["at"], written.get(path, row["at"]))
            self._spy.overflow += "overflow" in row
        merged = _Merged()

        def is_own(path: str, at: int) -> bool:
            """Return whether the run had written the file before, by this name or its real one."""
            return bool(written) and at > min(written.get(path, at), written.get(self._spy.real(path), at))

        for path, (state, at) in list(self._spy.read.items()):
            if not is_own(path, at):
                merged.add(path, state, self._spy.before.get(path))
        for row in rows:
            if (path := row.get("read")) is None or is_own(path, row["at"]):
                continue
            if path in merged.states or len(merged.states) < spy.MAX_FILES:
                merged.add(path, row["state"], row.get("digest"))
            else:
                self._spy.overflow += 1
        return merged

    def _reports(self) -> Iterator[dict[str, Any]]:
        """Yield the lines that children wrote, as far as they are whole."""
        try:
            names = sorted(os.listdir(self._spy.spool))
        except OSError:
            return
        for name in names:
            path = os.path.join(self._spy.spool, name)
            if os.path.isfile(path):  # a pipe would never end
                with suppress(OSError), open(path, "rb") as lines:
                    yield from filter(None, map(_row, lines))

    def _root_of(self, path: str) -> str | None:
        """Return the longest root that a path lies under, by its name or by its real place."""
        fitting = [root for root in self._places if path.startswith(_inside(root))]
        return max(fitting, key=len, default=None)


class _Merged:
    """What all processes of a run have read: how it was, its digest where it was overwritten, contradictions."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.digests: dict[str, str] = {}
        self.torn: set[str] = set()

    def add(self, path: str, state: State, digest: str | None) -> None:
        """Take what one process said of one file."""
        if self.states.setdefault(path, state) != state:
            self.torn.add(path)
        elif digest is not None:
            self.digests.setdefault(path, digest)


class _Hashes:
    """Hashes files, each once, under however many names it was read."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[str, int]] = {}

    def read(self, path: str, root: str, name: str, state: State, torn: bool) -> Read:
        """Return what was read, by the bytes that are there now."""
        try:
            found = os.stat(path)
            key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            if key not in self._known:
                self._known[key] = disk.hash_file(os.path.realpath(path) if os.path.islink(path) else path)
            digest, size = self._known[key]
        except (OSError, ModelHubError):
            return Read(path, root, name, state[0], None, True)
        changed = torn or (found.st_size, found.st_mtime_ns, found.st_ino) != state
        return Read(path, root, name, size, digest, changed)


_telling = threading.Lock()  # the environment is the whole process's


def _told() -> list[Any]:
    """Return what the environment tells children to watch."""
    try:
        told = json.loads(os.environ.get(spy.WATCH) or "[]")
    except ValueError:
        return []
    return told if isinstance(told, list) else []


def _path(variables: Mapping[str, str]) -> list[str]:
    """Return ``$PYTHONPATH`` without our folder; empty parts stay, they mean the working folder."""
    path = variables.get("PYTHONPATH")
    return [one for one in path.split(os.pathsep) if one != _HOOK] if path else []


def _row(line: bytes) -> dict[str, Any] | None:
    """Return a line of the spool, None for one that is torn, as its writer was killed, or no report."""
    try:
        row = json.loads(line)
        row["at"] = int(row.get("at", 0))
        if "read" in row:
            size, mtime, inode = row["state"]
            row["state"] = (int(size), int(mtime), int(inode))
        paths = [os.fsencode(row[name]) for name in ("read", "wrote") if name in row]
        fits = isinstance(row.get("digest", ""), str)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return None
    return row if fits and not any(b"\0" in path for path in paths) else None


def _told_name(path: str) -> str:
    r"""Return a name as it may stand in a record: with ``/``, and bytes that are no text as ``\xff``."""
    return os.fsencode(Path(path).as_posix()).decode("utf-8", "backslashreplace")


def _both_ways(places: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Return folders as they are named and as they are reached: a working folder is always without links."""
    named = [os.path.abspath(place) for place in places]
    try:
        return tuple(dict.fromkeys([*named, *map(os.path.realpath, named)]))
    except ValueError:  # a NUL, half a character
        raise InvalidName(
            f"A name that no folder can have: {shown(str(named), 200)}.",
            hint="Name the folders that are to be watched.",
        ) from None


def _inside(folder: str) -> str:
    """Return what the paths of all that lies in a folder begin with."""
    return folder if folder.endswith(os.sep) else folder + os.sep


def _is_noise(path: str, root: str, name: str) -> bool:
    """Return whether a file is none that anybody would call data: code, caches, dot-files, the system's."""
    parts = name.split("/")
    suffix = os.path.splitext(name)[1].lower()
    if any(part.startswith(".") or part in _FOLDERS for part in parts) or suffix in _NEVER:
        return True
    if _SECRET_NAMES.fullmatch(parts[-1].lower()):
        return True
    return any(path.startswith(place) and not _inside(root).startswith(place) for place in _places())


@functools.cache
def _places_of(prefix: str, base: str, temporary: str) -> tuple[str, ...]:
    places = [*_SYSTEM, prefix, base, sysconfig.get_path("stdlib"), temporary, os.path.realpath(temporary)]
    return tuple(dict.fromkeys(map(_inside, places)))


def _places() -> tuple[str, ...]:
    """Return the folders of the interpreter and the system; what lies there counts only for a root inside."""
    return _places_of(sys.prefix, sys.base_prefix, tempfile.gettempdir())


def _is_code(name: str) -> bool:
    """Return whether a tracked file is code, configuration or documentation rather than data."""
    base = name.rpartition("/")[2].lower()
    return os.path.splitext(base)[1] in _TEXT or _NAMES.fullmatch(base) is not None
