"""Sees which files this process reads: Python's audit hook, and wrappers for readers that open in C++.

Needs the standard library alone and imports nothing of this package: children load it by its path, in
whatever Python they run (see ``hook/sitecustomize.py``). It notes paths and what `os.stat` says of them;
it hashes only what is about to be overwritten. It never raises, and does nothing while nobody watches.

An audit hook cannot be removed, so there is one for each process, which looks at the spies that are on.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.machinery
import json
import os
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

WATCH = "MODELHUB_RUN_WATCH"
"""The variable that tells a Python child what to watch, and where to report it: JSON."""

MAX_FILES = 200_000
"""Files that one process notes; of more only the number is known."""

MAX_HASH = 1_000_000_000
"""Bytes of a file that is hashed before it is overwritten."""

State = tuple[int, int, int]  # size, mtime in ns, inode

_spies: tuple[Spy, ...] = ()
_hooked = False
_local = threading.local()  # .busy: this thread is inside the hook, whose own reads are none of ours

_WRITE = os.O_WRONLY | os.O_RDWR
_ANEW = os.O_TRUNC | os.O_EXCL


class Spy:
    """Notes what is read under *roots* but not under *exclude*: in memory, or as lines of a spool."""

    def __init__(self, roots: Sequence[str], exclude: Sequence[str], spool: str) -> None:
        self.roots = tuple(_closed(root) for root in roots)
        self.exclude = tuple(_closed(one) for one in exclude)
        self.spool = spool
        self.read: dict[str, State] = {}  # what was read, and how it was when that was first done
        self.before: dict[str, str] = {}  # digests of what was overwritten or moved since
        self.written: set[str] = set()  # what was written before it was ever read
        self.overflow = 0
        self.pid = os.getpid()
        self.reports = False  # in a child: write to the spool
        self._fd: int | None = None

    def wants(self, path: str) -> bool:
        """Return whether a file may count as one that was read."""
        return path.startswith(self.roots) and not path.startswith(self.exclude)

    def note(self, path: str) -> None:
        """Take note that *path* is about to be read."""
        if path in self.read or path in self.written:
            return
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return
        if not stat.S_ISREG(found.st_mode):
            return
        if len(self.read) >= MAX_FILES:
            self.overflow += 1
            return
        state = (found.st_size, found.st_mtime_ns, found.st_ino)
        self.read[path] = state
        if self.reports:
            self._report({"read": path, "state": state})

    def overwrites(self, path: str) -> None:
        """Take note that *path* is about to be written, moved or removed: what it was is hashed, if it was read."""
        if path not in self.read:
            self.written.add(path)
            return
        if path in self.before:
            return
        digest = _hashed(path, self.read[path])
        if digest is not None:
            self.before[path] = digest
            if self.reports:
                self._report({"read": path, "state": self.read[path], "digest": digest})

    def _report(self, row: dict[str, Any]) -> None:
        if self._fd is None:
            name = os.path.join(self.spool, f"{os.getpid()}-{threading.get_native_id()}.jsonl")
            os.makedirs(self.spool, exist_ok=True)
            self._fd = os.open(
                name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600
            )
        os.write(self._fd, json.dumps(row).encode() + b"\n")  # whole: a child that is killed loses nothing

    def forked(self) -> None:
        """Go on in a forked child: what it reads is reported to the parent."""
        self.reports = True
        self._fd = None


def _closed(path: str) -> str:
    return path if path.endswith(os.sep) else path + os.sep


def _hashed(path: str, state: State) -> str | None:
    """Return the digest of a file that is still as *state* says, None if it is not, or is too large."""
    try:
        found = os.stat(path)
        if (found.st_size, found.st_mtime_ns, found.st_ino) != state or found.st_size > MAX_HASH:
            return None
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while data := file.read(1 << 20):
                digest.update(data)
    except (OSError, ValueError):
        return None
    return "sha256:" + digest.hexdigest()


# --- the hook -------------------------------------------------------------------------------------------


def begin(spy: Spy) -> None:
    """Watch for *spy* from now on."""
    global _spies, _hooked
    if not _hooked:
        _hooked = True
        sys.addaudithook(_hook)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forked)
    _spies = (*_spies, spy)
    _wrap_all()


def end(spy: Spy) -> None:
    """Watch for *spy* no longer."""
    global _spies
    _spies = tuple(one for one in _spies if one is not spy)
    if not _spies:
        _unwrap_all()


def noted(path: Any) -> None:
    """Take note of a path, or of all files below a folder, that something is about to read."""
    if not _spies or getattr(_local, "busy", False):
        return
    _local.busy = True
    try:
        for one in path if isinstance(path, (list, tuple)) else [path]:
            if not isinstance(one, (str, bytes, os.PathLike)):
                continue
            full = _absolute(one)
            if full is not None and os.path.isdir(full):
                _note_folder(full)
            elif full is not None:
                _note(full)
    except Exception:  # noqa: BLE001, S110  # whatever goes wrong here, the user's read goes on
        pass
    finally:
        _local.busy = False


def _note_folder(folder: str) -> None:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        for name in files:
            if not name.startswith((".", "_")):
                _note(os.path.join(place, name))


def _note(path: str) -> None:
    for spy in _spies:
        if spy.wants(path):
            spy.note(path)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _spies:
        return
    act = _EVENTS.get(event)
    if act is None or getattr(_local, "busy", False):
        return
    _local.busy = True
    try:
        act(args)
    except Exception:  # noqa: BLE001, S110  # a hook that raises would break the user's code
        pass
    finally:
        _local.busy = False


def _opened(args: tuple[Any, ...]) -> None:
    path, _mode, flags = args
    full = _absolute(path)
    if full is None:
        return
    for spy in _spies:
        if not spy.wants(full):
            continue
        if not isinstance(flags, int) or not flags & _WRITE:
            spy.note(full)
        elif flags & os.O_RDWR and not flags & _ANEW and os.path.exists(full):
            spy.note(full)
            spy.overwrites(full)
        else:
            spy.overwrites(full)


def _moved(args: tuple[Any, ...]) -> None:
    source, target = _absolute(args[0]), _absolute(args[1])
    for spy in _spies:
        for path in (source, target):
            if path is not None and spy.wants(path):
                spy.overwrites(path)


def _changed(args: tuple[Any, ...]) -> None:
    path = _absolute(args[0])
    for spy in _spies:
        if path is not None and path in spy.read:
            spy.overwrites(path)


def _database(args: tuple[Any, ...]) -> None:
    name = args[0]
    if isinstance(name, (bytes, os.PathLike)):
        name = os.fsdecode(name)
    if isinstance(name, str) and not name.startswith((":", "file:")):
        full = _absolute(name)
        if full is not None:
            _note(full)


_EVENTS: dict[str, Callable[[tuple[Any, ...]], None]] = {
    "open": _opened,
    "os.rename": _moved,
    "os.remove": _changed,
    "os.truncate": _changed,
    "sqlite3.connect": _database,
}


def _absolute(path: Any) -> str | None:
    if type(path) is not str:
        if isinstance(path, int):
            return None
        path = os.fsdecode(path)
    if not path.startswith(os.sep):
        path = os.path.join(os.getcwd(), path)
    if "/." in path or "//" in path:
        path = os.path.normpath(path)
    return path if "\0" not in path else None


def _forked() -> None:
    global _local
    _local = threading.local()
    for spy in _spies:
        spy.forked()


# --- readers that open in C++ ---------------------------------------------------------------------------

_READERS: dict[str, tuple[str, ...]] = {
    "pyarrow": ("memory_map",),
    "pyarrow.parquet": ("read_table", "read_pandas", "ParquetFile", "ParquetDataset"),
    "pyarrow.csv": ("read_csv", "open_csv"),
    "pyarrow.json": ("read_json",),
    "pyarrow.feather": ("read_table", "read_feather"),
    "pyarrow.dataset": ("dataset",),
    "polars": (
        *("read_parquet", "scan_parquet", "read_csv", "scan_csv", "read_ipc", "scan_ipc"),
        *("read_ndjson", "scan_ndjson", "read_json"),
    ),
}
_wrapped: list[tuple[Any, str, Any]] = []


def _wrap_all() -> None:
    for name in _READERS:
        if name in sys.modules:
            _wrap(sys.modules[name], name)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _unwrap_all() -> None:
    while _wrapped:
        owner, name, original = _wrapped.pop()
        setattr(owner, name, original)
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


def _wrap(module: Any, name: str) -> None:
    for attribute in _READERS[name]:
        found = getattr(module, attribute, None)
        owner, place = (found, "__init__") if isinstance(found, type) else (module, attribute)
        original = getattr(owner, place, None)
        if found is None or not callable(original) or hasattr(original, "__modelhub__"):
            continue
        try:
            setattr(owner, place, _noting(original, 1 if owner is found else 0))
        except (TypeError, AttributeError):
            continue  # a class of C: it cannot be wrapped
        _wrapped.append((owner, place, original))


def _noting(original: Callable[..., Any], place: int) -> Callable[..., Any]:
    import functools

    @functools.wraps(original)
    def reader(*args: Any, **kwargs: Any) -> Any:
        if len(args) > place:
            noted(args[place])
        else:
            for name in ("source", "path", "path_or_paths", "input_file", "where", "file"):
                if name in kwargs:
                    noted(kwargs[name])
                    break
        return original(*args, **kwargs)

    reader.__modelhub__ = True  # type: ignore[attr-defined]
    return reader


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the readers of a library once it has been imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in _READERS:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _Finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
                return spec if _wrapping(spec.loader, name) else None
        return None


def _wrapping(loader: Any, name: str) -> bool:
    """Make *loader* wrap the readers of the module that it loads; return whether it can."""
    execute = loader.exec_module

    def exec_module(module: Any) -> None:
        execute(module)
        _wrap(module, name)

    try:
        loader.exec_module = exec_module
    except AttributeError:
        return False
    return True


# --- children -------------------------------------------------------------------------------------------


def report_to_parent() -> None:
    """In a Python child: watch what the variable `WATCH` says, and report it."""
    told = os.environ.get(WATCH)
    if not told:
        return
    for raw in json.loads(told):
        spy = Spy(raw["roots"], raw["exclude"], raw["spool"])
        spy.forked()
        begin(spy)
