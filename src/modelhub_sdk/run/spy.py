"""Sees which files this process reads: Python's audit hook, and wrappers for readers that open in C++.

Needs the standard library alone and imports nothing of this package: children load it by its path, in
whatever Python they run (see ``hook/sitecustomize.py``). It notes paths and what `os.stat` says of them;
it hashes only what is about to be overwritten. It never raises, and does nothing while nobody watches.
What it imports at once, every Python child of a run pays for: a few milliseconds.

An audit hook cannot be removed, so there is one for each process, which looks at the spies that are on.
"""

from __future__ import annotations

import functools
import json
import os
import stat
import sys
import threading
import time

TYPE_CHECKING = False  # as typing has it, which every Python child would have to import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from typing import Any

WATCH = "MODELHUB_RUN_WATCH"
"""The variable that tells a Python child what to watch, and where to report it: JSON."""

MAX_FILES = 200_000
"""Files that one process notes; of more only the number is known."""

MAX_HASH = 1_000_000_000
"""Bytes of a file that is hashed before it is overwritten."""

MAX_HASHED = 10_000_000_000
"""Bytes that one process hashes of all files that it overwrites: a removed folder of terabytes is not read again."""

MAX_FOLDERS = 10_000
"""Folders whose real names are kept at hand."""

State = tuple[int, int, int]  # size, mtime in ns, inode
Noted = tuple[State, int]  # how a file was when it was first read, and when that was (time.monotonic_ns)

_spies: tuple[Spy, ...] = ()
_hooked = False
_local = threading.local()  # .busy: this thread is inside the hook, whose own reads are none of ours

_WRITE = os.O_WRONLY | os.O_RDWR


class Spy:
    """Notes what is read under *roots* but not under *exclude*: in memory, or as lines of a spool.

    All that it keeps is set once by operations that are atomic, so that threads need no lock: one that
    is held at a fork would stay held in the child.
    """

    def __init__(self, roots: Sequence[str], exclude: Sequence[str], spool: str) -> None:
        self.roots = tuple(_closed(root) for root in roots)
        self.exclude = tuple(_closed(one) for one in exclude)
        self._files = frozenset(exclude)  # of those that are files, as a database is
        self.spool = spool
        self.read: dict[str, Noted] = {}
        self.before: dict[str, str] = {}  # digests of what was overwritten or moved since
        self.written: dict[str, int] = {}  # what the run wrote, by each of its names, and when it first did
        self.overflow = 0
        self.pid = os.getpid()
        self.reports = False  # in a child: write to the spool
        self._left = MAX_HASHED
        self._names: dict[str, list[str]] = {}  # of what was read through links: by its real name
        self._folders: dict[str, str] = {}  # their real names

    def wants(self, path: str) -> bool:
        """Return whether a file may count as one that was read."""
        return path.startswith(self.roots) and not path.startswith(self.exclude) and path not in self._files

    def note(self, path: str) -> None:
        """Take note that *path* is about to be read; what the run has written itself is no input."""
        if path in self.read or path in self.written:
            return
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return
        if not stat.S_ISREG(found.st_mode):
            return
        real = self.real(path)
        if real in self.written or self._full(self.read):
            return
        if real != path:
            self._names.setdefault(real, []).append(path)
        noted = ((found.st_size, found.st_mtime_ns, found.st_ino), time.monotonic_ns())
        if self.read.setdefault(path, noted) is noted:
            self._report({"read": path, "state": noted[0], "at": noted[1]})

    def overwrites(self, path: str) -> None:
        """Take note that *path* is about to be written: what it was is hashed first, if it was read."""
        if path in self.written:
            return
        real = self.real(path)
        for name in dict.fromkeys((path, real, *self._names.get(real, ()))):
            self._keep(name)
        for name in dict.fromkeys((path, real)):
            if name not in self.written and not self._full(self.written):
                at = self.written.setdefault(name, time.monotonic_ns())
                self._report({"wrote": name, "at": at})

    def keep(self, path: str) -> None:
        """Hash *path*, which is about to be another or nowhere, if it was read, by whatever name."""
        real = self._placed(path)
        for name in dict.fromkeys((path, real, *self._names.get(real, ()))):
            self._keep(name)
        self.forget()

    def _keep(self, path: str) -> None:
        """Hash a file that was read, if it is still as it was."""
        noted = self.read.get(path)
        if noted is None or path in self.before:
            return
        digest = self._hashed(path, noted[0])
        if digest is not None:
            self.before[path] = digest
            self._report({"read": path, "state": noted[0], "at": noted[1], "digest": digest})

    def keep_below(self, folder: str) -> None:
        """Do as `keep` does for each file below a folder."""
        below = (_closed(folder), _closed(os.path.realpath(folder)))
        for path in list(self.read):
            if path.startswith(below):
                self._keep(path)
        for real, names in list(self._names.items()):
            if real.startswith(below):
                for path in names:
                    self._keep(path)
        self.forget()

    def moves(self, source: str, target: str) -> None:
        """Take note that *source* is about to become *target*.

        What the run wrote stays its own, what it has read is not read anew, and other data stays data.
        What comes from outside of the watched folders is taken for something that the run has made.
        """
        if os.path.isdir(source):
            self.keep_below(source)
            for path in [*self.written, *self.read]:
                if path.startswith(_closed(source)) and self.wants(moved := target + path[len(source) :]):
                    self.overwrites(moved)
        elif os.path.lexists(source):
            self.keep(source)
            self.keep(target)
            if source in self.written or source in self.read or not self.wants(source):
                if self.wants(target):
                    self.overwrites(target)
            else:
                self.written.pop(target, None)

    def links(self, source: str, target: str) -> None:
        """Take note that *target* is about to be one more name of *source*: what the run made or read stays that."""
        known = source in self.written or source in self.read or self.real(source) in self.written
        if known and self.wants(target) and not os.path.lexists(target):
            self.overwrites(target)

    def forget(self) -> None:
        """Look at each folder anew: what is a link, and whereto, is about to change."""
        self._folders.clear()

    def real(self, path: str) -> str:
        """Return the name of a file without links; a folder is looked at once, until something is moved or removed."""
        placed = self._placed(path)
        return os.path.realpath(placed) if os.path.islink(placed) else placed

    def _placed(self, path: str) -> str:
        """Return the name of a file, which may be a link, in a folder without links."""
        folder, _, name = path.rpartition(os.sep)
        real = self._folders.get(folder)
        if real is None:
            if len(self._folders) > MAX_FOLDERS:
                self.forget()
            real = self._folders[folder] = os.path.realpath(folder or os.sep).rstrip(os.sep)
        return real + os.sep + name

    def forked(self) -> None:
        """Go on in a forked child: what it reads is reported to the parent."""
        self.reports = True

    def _full(self, kept: Mapping[str, object]) -> bool:
        if len(kept) < MAX_FILES:
            return False
        self.overflow += 1
        if self.overflow == 1:
            self._report({"overflow": True})
        return True

    def _report(self, row: dict[str, Any]) -> None:
        """Append a line to the spool, if this is a child: in one write, so that one that is killed loses nothing.

        The file is opened for each line. A number that is kept would lead into a file of the user's as
        soon as a child closes all that it has open and opens its own, as daemons do. A spool that is
        gone is that of a run that has ended.
        """
        if not self.reports:
            return
        name = os.path.join(self.spool, f"{os.getpid()}.jsonl")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        try:
            fd = os.open(name, flags, 0o600)
        except OSError:
            return
        try:
            os.write(fd, json.dumps(row).encode() + b"\n")
        except OSError:  # a full disk
            pass
        finally:
            os.close(fd)

    def _hashed(self, path: str, state: State) -> str | None:
        """Return the digest of a file that is still as *state* says, None if it is not, or is too large."""
        try:
            found = os.stat(path)
            if (found.st_size, found.st_mtime_ns, found.st_ino) != state:
                return None
            if found.st_size > min(MAX_HASH, self._left):
                return None
            self._left -= found.st_size
            import hashlib

            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while data := file.read(1 << 20):
                    digest.update(data)
        except (OSError, ValueError):
            return None
        return "sha256:" + digest.hexdigest()


def _closed(path: str) -> str:
    return path if path.endswith(os.sep) else path + os.sep


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


def _unheard(act: Callable[..., None]) -> Callable[..., None]:
    """Make a function that notes something do nothing while nobody watches, never raise, and not see its own reads."""

    def quiet(*args: Any) -> None:
        if not _spies or getattr(_local, "busy", False):
            return
        try:
            _local.busy = True
            act(*args)
        except Exception:  # noqa: BLE001, S110  # whatever goes wrong here, the user's call goes on
            pass
        finally:
            _local.busy = False

    quiet.__name__, quiet.__doc__ = act.__name__, act.__doc__
    return quiet


class Unseen:
    """What this thread reads and writes within the block is no part of a run: it is this package's own work."""

    def __enter__(self) -> None:
        self._before = getattr(_local, "busy", False)
        _local.busy = True

    def __exit__(self, *_: object) -> None:
        _local.busy = self._before


@_unheard
def noted(path: Any) -> None:
    """Take note of a path, of all files below a folder, or of those that fit a wildcard: they are about to be read."""
    for full in _named(path):
        for spy in _spies:
            if spy.wants(full):
                spy.note(full)


@_unheard
def writing(path: Any) -> None:
    """Take note of a path that is about to be written; of a folder, what was read of it is kept first."""
    for full in _named(path, folders=True):
        for spy in _spies:
            if os.path.isdir(full):
                spy.keep_below(full)
            elif spy.wants(full):
                spy.overwrites(full)


@_unheard
def wrote(path: Any, since: int) -> None:
    """Take note of what was written below a folder since a time (`time.time_ns`)."""
    for folder in _named(path, folders=True):
        for full in _below(folder) if os.path.isdir(folder) else ():
            if os.stat(full).st_mtime_ns >= since - _TICK:
                for spy in _spies:
                    if spy.wants(full):
                        spy.overwrites(full)


_TICK = 20_000_000  # ns that the time of a file may lag behind the clock


def _named(path: Any, folders: bool = False) -> Iterator[str]:
    """Yield the files that an argument of a reader names; with *folders*, what it names itself."""
    for one in path if isinstance(path, (list, tuple)) else [path]:
        if not isinstance(one, (str, bytes, os.PathLike)):
            continue
        text = os.path.expanduser(_local_path(os.fsdecode(one)))
        full = _absolute(text)
        if full is None:
            continue
        if folders or os.path.isfile(full):
            yield full
        elif os.path.isdir(full):
            yield from _below(full)
        elif any(sign in text for sign in "*?["):
            import glob

            for found in glob.iglob(full, recursive=True):
                yield from _below(found) if os.path.isdir(found) else (found,)


def _local_path(text: str) -> str:
    """Return the path of a ``file:`` URL, and any other text as it is."""
    if not text.startswith("file:"):
        return text
    path = text[5:].partition("?")[0]
    if path.startswith("//"):
        path = os.sep + path[2:].partition("/")[2]
    if "%" in path:
        from urllib.parse import unquote

        path = unquote(path)
    return path


def _below(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        for name in files:
            if not name.startswith((".", "_")):
                yield os.path.join(place, name)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _spies:
        return
    act = _EVENTS.get(event)
    if act is None or getattr(_local, "busy", False):
        return
    try:
        _local.busy = True
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
        elif _may_succeed(full, flags):
            if flags & os.O_RDWR and not flags & os.O_TRUNC:
                spy.note(full)
            spy.overwrites(full)


def _may_succeed(path: str, flags: int) -> bool:
    """Return False for a file that is to be new and is there, is to be there and is not, or is read-only."""
    if not os.path.lexists(path):
        return bool(flags & os.O_CREAT)
    exclusive = flags & os.O_CREAT and flags & os.O_EXCL
    return not exclusive and (os.access(path, os.W_OK) or not os.path.exists(path))


def _moved(args: tuple[Any, ...]) -> None:
    source, target = _absolute(args[0], args[2]), _absolute(args[1], args[3])
    if source is not None and target is not None:
        for spy in _spies:
            spy.moves(source, target)


def _linked(args: tuple[Any, ...]) -> None:
    source, target = _absolute(args[0], args[2]), _absolute(args[1], args[3])
    if source is not None and target is not None:
        for spy in _spies:
            spy.links(source, target)


def _symlinked(_args: tuple[Any, ...]) -> None:
    for spy in _spies:
        spy.forget()


def _removed(args: tuple[Any, ...]) -> None:
    path = _absolute(*args[:2])
    for spy in _spies:
        if path is not None:
            spy.keep(path)


def _folder_removed(args: tuple[Any, ...]) -> None:
    path = _absolute(*args[:2])
    for spy in _spies:
        if path is not None:
            spy.keep_below(path)


def _truncated(args: tuple[Any, ...]) -> None:
    path = _absolute(args[0])
    for spy in _spies:
        if path is not None and spy.wants(path):
            spy.overwrites(path)


def _database(args: tuple[Any, ...]) -> None:
    name = os.fsdecode(args[0]) if isinstance(args[0], (bytes, os.PathLike)) else args[0]
    if not isinstance(name, str) or not name or (name := _local_path(name)).startswith(":"):
        return
    full = _absolute(name)
    for spy in _spies:
        if full is None or not spy.wants(full):
            continue
        if os.path.exists(full):
            spy.note(full)
        else:
            spy.overwrites(full)


_EVENTS: dict[str, Callable[[tuple[Any, ...]], None]] = {
    "open": _opened,
    "os.rename": _moved,
    "os.link": _linked,
    "os.symlink": _symlinked,
    "os.remove": _removed,
    "os.truncate": _truncated,
    "shutil.rmtree": _folder_removed,
    "sqlite3.connect": _database,
}


def _absolute(path: Any, folder: int | None = None) -> str | None:
    """Return a path from the root, None for what is none, or is relative to an open *folder*."""
    if folder not in (None, -1):
        return None
    if type(path) is not str:
        if isinstance(path, int):
            return None
        path = os.fsdecode(path)
    if not path.startswith(os.sep):
        path = os.getcwd() + os.sep + path
    if "/." in path or "//" in path:
        path = os.path.normpath(path)
    return path if "\0" not in path else None


def _forked() -> None:
    global _local
    _local = threading.local()
    for spy in _spies:
        spy.forked()


# --- readers that open in C++ ---------------------------------------------------------------------------

# By module: what opens files, and which of its arguments is the path.
_READERS: dict[str, dict[str, int]] = {
    "pyarrow": dict.fromkeys(("memory_map", "input_stream"), 0),
    "pyarrow.parquet": dict.fromkeys(
        ("read_table", "read_pandas", "read_metadata", "read_schema", "ParquetFile", "ParquetDataset"), 0
    ),
    "pyarrow.csv": dict.fromkeys(("read_csv", "open_csv"), 0),
    "pyarrow.json": dict.fromkeys(("read_json", "open_json"), 0),
    "pyarrow.feather": dict.fromkeys(("read_table", "read_feather"), 0),
    "pyarrow.orc": dict.fromkeys(("read_table", "ORCFile"), 0),
    "pyarrow.dataset": dict.fromkeys(("dataset", "parquet_dataset"), 0),
    "polars": dict.fromkeys(
        (
            *(
                "read_parquet",
                "scan_parquet",
                "read_csv",
                "scan_csv",
                "read_csv_batched",
                "read_ipc",
                "scan_ipc",
            ),
            *("read_ndjson", "scan_ndjson", "read_json", "read_avro", "read_parquet_metadata"),
        ),
        0,
    ),
}
# What they write is not seen being opened either, and would be taken for an input when it is read again.
_WRITERS: dict[str, dict[str, int]] = {
    "pyarrow.parquet": {"ParquetWriter": 0, "write_to_dataset": 1},
    "pyarrow.csv": {"write_csv": 1},
    "pyarrow.feather": {"write_feather": 1},
    "pyarrow.orc": {"ORCWriter": 0},
    "pyarrow.dataset": {"write_dataset": 1},
    "pandas": {f"DataFrame.to_{kind}": 1 for kind in ("parquet", "feather", "orc")},
    "polars": {
        **{f"DataFrame.write_{kind}": 1 for kind in ("parquet", "csv", "ipc", "ndjson", "json", "avro")},
        **{f"LazyFrame.sink_{kind}": 1 for kind in ("parquet", "csv", "ipc", "ndjson")},
    },
}
_PATHS = (
    *("source", "path", "path_or_paths", "input_file", "where", "file", "dest", "output_file", "base_dir"),
    *("root_path", "metadata_path"),
)
_wrapped: list[tuple[Any, str, Any, Any]] = []
_ours = object()  # the mark of our wrappers: a child may have this module twice, once of its parent's run


def _wrap_all() -> None:
    for name in {**_READERS, **_WRITERS}:
        if name in sys.modules:
            _wrap(sys.modules[name], name)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _unwrap_all() -> None:
    while _wrapped:
        owner, name, original, wrapper = _wrapped.pop()
        if getattr(owner, name, None) is wrapper:  # else somebody has put a wrapper of their own around ours
            setattr(owner, name, original)
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


def _wrap(module: Any, name: str) -> None:
    for table, make in ((_READERS, _noting), (_WRITERS, _marking)):
        for attribute, place in table.get(name, {}).items():
            _wrap_one(module, attribute, place, make)


def _wrap_one(module: Any, attribute: str, place: int, make: Callable[..., Any]) -> None:
    outer, _, inner = attribute.rpartition(".")
    owner: Any = getattr(module, outer, None) if outer else module
    found = getattr(owner, inner, None)
    if isinstance(found, type):  # a class stays what it is: its instances note what they are made from
        owner, inner, place = found, "__init__", place + 1
        found = getattr(owner, inner)
    if not callable(found) or getattr(found, "__modelhub__", None) is _ours:
        return
    wrapper = make(found, place)
    if owner is module:  # where it is found, not where it was defined: pickle looks it up, and finds this one
        wrapper.__module__, wrapper.__qualname__ = module.__name__, attribute
    try:
        setattr(owner, inner, wrapper)
    except (TypeError, AttributeError):
        return  # a class of C: it cannot be wrapped
    _wrapped.append((owner, inner, found, wrapper))


def _path_of(place: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the path that a call names, None for one on a file system that is not this machine's."""
    if type(kwargs.get("filesystem")).__name__ not in ("NoneType", "LocalFileSystem"):
        return None
    if len(args) > place:
        return args[place]
    return next((kwargs[name] for name in _PATHS if name in kwargs), None)


def _noting(original: Callable[..., Any], place: int) -> Callable[..., Any]:
    @functools.wraps(original)
    def reader(*args: Any, **kwargs: Any) -> Any:
        noted(_path_of(place, args, kwargs))
        return original(*args, **kwargs)

    reader.__modelhub__ = _ours  # type: ignore[attr-defined]
    return reader


def _marking(original: Callable[..., Any], place: int) -> Callable[..., Any]:
    @functools.wraps(original)
    def writer(*args: Any, **kwargs: Any) -> Any:
        path, since = _path_of(place, args, kwargs), time.time_ns()
        writing(path)
        result = original(*args, **kwargs)
        wrote(path, since)
        return result

    writer.__modelhub__ = _ours  # type: ignore[attr-defined]
    return writer


class _Finder:
    """Wraps the readers of a library once it has been imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name not in _READERS and name not in _WRITERS:
            return None
        # Those before this one had their turn. One of them may be that of another copy of this module.
        place = sys.meta_path.index(self) if self in sys.meta_path else len(sys.meta_path)
        for finder in sys.meta_path[place + 1 :]:
            if not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
                return spec if _wrapping(spec.loader, name) else None
        return None


def _wrapping(loader: Any, name: str) -> bool:
    """Make *loader* wrap the readers of the module that it loads; return whether it can."""
    execute = loader.exec_module

    def exec_module(module: Any) -> None:
        vars(loader).pop("exec_module", None)
        execute(module)
        if _spies:
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
