"""Make the n-th I/O call of this process fail, fall short, or be its last.

The loop that covers every call of an operation, and ends by itself::

    for fault in every_call(errno.ENOSPC):
        registry = fresh()
        with fault, contextlib.suppress(ModelHubError):
            operation(registry)
        check(registry)                     # opens, verifies, holds what was acknowledged

and the same with death instead of an error, each time in a child process::

    for death in every_death(operation):    # operation(ack) calls ack(x) for each acknowledged x
        check(registry, death.acked)

What is met: `open` and ``io.open`` with all reads and writes of the files they give, the functions
of ``os`` that change a file system (and ``os.read``, ``os.listdir``, ``os.scandir``), ``FICLONE``,
and SQLite's own file access, by a shim in its default VFS. What is not: the interpreter's imports,
standard streams, sockets (see `s3proxy` and `pgproxy`), C libraries with files of their own.

Only regular files and directories count, and none of Python's installation.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import fcntl
import io
import itertools
import os
import pickle
import select
import signal
import stat
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

Ack = Callable[[Any], None]
Fault = int | Literal["short", "kill"]
Site = tuple[str, ...]
"""What is called, and where from."""


class Sites(set[Site]):
    """Call sites that a fault has hit, each known by so many lines of the library."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth


SHORT: Literal["short"] = "short"
"""A write takes half of the bytes and reports so, without an error; the program must go on with the rest."""
KILL: Literal["kill"] = "kill"
"""SIGKILL. A write has then written half of its bytes. Use it in a child: `in_child`, `every_death`."""

_WRITES = {"write", "pwrite", "writev", "sendfile", "copy_file_range", "sqlite.write"}
_READS = {"read", "readinto", "pread", "open to read", "listdir", "scandir", "sqlite.read"}
_OPENS = {"open", "open to read"}
_GROWS = _WRITES | {
    "open", "mkdir", "link", "symlink", "rename", "replace", "fsync", "fdatasync", "posix_fallocate",
    "reflink", "exchange", "sqlite.open", "sqlite.sync", "sqlite.shm",
}  # fmt: skip
_ONLY = {errno.EMFILE: _OPENS, errno.ENFILE: _OPENS, errno.ENOSPC: _GROWS, errno.EDQUOT: _GROWS}

THOROUGH = bool(os.environ.get("THOROUGH_TESTS"))
_LIBRARY = f"{os.sep}modelhub_sdk{os.sep}"

_active: FaultAt | None = None


class FaultAt(contextlib.AbstractContextManager["FaultAt"]):
    """Within the block, let the *n*-th I/O call that *fault* can befall fail.

    Args:
        n: which call, from 1.
        fault: an errno, `SHORT` or `KILL`. ENOSPC befalls calls that need room, EMFILE those that
            open, EIO all with reads, every other errno all that change something.
        under: count only calls on paths in these folders.
        calls: count only these kinds (the names in `log`).
        after: carry the call out first, and then report failure (or die): a lost answer.
        sticky: all later calls that *fault* can befall fail too: a disk stays full.
        seen: the call sites that have had their turn (see `sites`). The first call from another one is
            hit, whatever *n*, and its site is added.

    Attributes:
        fired: whether the call came.
        call: the call that was hit, as in `log`, or None.
        log: every call that counted, as ``"write /path"``.
    """

    def __init__(
        self,
        n: int,
        fault: Fault = errno.ENOSPC,
        *,
        under: Sequence[Path | str] = (),
        calls: Sequence[str] = (),
        after: bool = False,
        sticky: bool = False,
        seen: Sites | None = None,
    ) -> None:
        self.n = n
        self.fault = fault
        self.after = after
        self.sticky = sticky
        self.fired = False
        self.entered = False
        self.call: str | None = None
        self.log: list[str] = []
        self.at_site: Callable[[Site], Any] = lambda site: None
        self._seen = seen
        self._under = tuple(os.path.realpath(path) for path in under)
        self._calls = frozenset(calls)
        self._lock = threading.RLock()  # garbage may be collected while it is held, and finalizers do I/O

    def __repr__(self) -> str:
        what = self.fault if isinstance(self.fault, str) else errno.errorcode[self.fault]
        return f"<{what} at I/O call {self.n}: {self.call or 'never came'}>"

    def __enter__(self) -> Self:
        global _active
        if _active is not None:
            raise RuntimeError("One fault at a time")
        install_sqlite()
        _patch()
        self.entered = True
        _active = self
        return self

    def __exit__(self, *exc: object) -> None:
        global _active
        _active = None
        _unpatch()

    def due(self, kind: str, path: str) -> bool:
        """Count the call; whether it is the one (or a later one, when sticky)."""
        if not self._befalls(kind) or not self._counts(path):
            return False
        site = () if self._seen is None else _site(kind, path, self._seen.depth)
        with self._lock:
            if self.fired:
                return self.sticky
            self.log.append(f"{kind} {path}")
            if self._seen is None:
                if len(self.log) != self.n:
                    return False
            else:
                if site in self._seen:
                    return False
                self._seen.add(site)
                self.at_site(site)
            self.fired = True
            self.call = self.log[-1]
            return True

    def strike(self, path: str) -> None:
        """Do it: die, or raise."""
        if self.fault == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # the signal may take a moment to arrive
        if isinstance(self.fault, int):
            raise OSError(self.fault, os.strerror(self.fault), path)

    def _befalls(self, kind: str) -> bool:
        if self._calls:
            return kind in self._calls
        if self.fault == SHORT:
            return kind in _WRITES and not kind.startswith("sqlite")
        if isinstance(self.fault, int) and self.fault in _ONLY:
            return kind in _ONLY[self.fault]
        return kind not in _READS or self.fault == errno.EIO

    def _counts(self, path: str) -> bool:
        if self._under:
            real = os.path.realpath(path)
            return any(real == place or real.startswith(place + os.sep) for place in self._under)
        return not path.startswith(_FOREIGN)


_INSTALLED = (
    *(sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.__file__)),
    *(path for path in sys.path if path.endswith(("site-packages", "dist-packages"))),
)
_FOREIGN = (
    *{os.path.realpath(path) + os.sep for path in _INSTALLED},
    *{path + os.sep for path in _INSTALLED},
    "/proc/",
    "/sys/",
    "/dev/",
)


def some() -> Iterator[int]:
    """Yield 1, 2 … 10, and then every fifth number. With ``$THOROUGH_TESTS`` all of them.

    For what is counted without `FaultAt`: statements and requests.
    """
    yield from range(1, 11)
    yield from itertools.count(11, 1 if THOROUGH else 5)


def sites(depth: int = 2) -> Sites | None:
    """Return what ``seen=`` takes: each line of the library that does I/O is hit once, however often it runs.

    With *depth* 2 a helper that writes is hit once for each line that calls it. With ``$THOROUGH_TESTS`` None:
    every call is hit. Verbs store and place files by the same few lines, hundreds of times; a fault at each of
    those calls takes minutes and finds what a fault at each line finds.
    """
    return None if THOROUGH else Sites(depth)


def _site(kind: str, path: str, depth: int) -> Site:
    """Return what is called, on what kind of file, and the innermost lines of the library that called it."""
    lines: list[str] = []
    frame = sys._getframe(2)
    while frame is not None and len(lines) < depth:
        if _LIBRARY in frame.f_code.co_filename:
            lines.append(f"{frame.f_code.co_filename.rpartition(_LIBRARY)[2]}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    end = path[-4:] if kind.startswith("sqlite") else ""  # a journal, a log or the database
    return (kind, end if end in ("-wal", "-shm", "rnal") else "", *lines)


def every_call(
    fault: Fault = errno.ENOSPC,
    *,
    start: int = 1,
    limit: int = 3000,
    **options: Any,
) -> Iterator[FaultAt]:
    """Yield `FaultAt` for n = 1, 2, 3 … (or for each site not in *seen*) until one has not fired: the operation ran undisturbed.

    Raises:
        AssertionError: the loop did not end within *limit*, or a fault was not entered.
    """
    for n in itertools.count(start):
        one = FaultAt(n, fault, **options)
        yield one
        assert one.entered, "the block of this fault was never entered"
        if not one.fired:
            return
        assert n < limit, f"still failing at call {n}: does the operation retry for ever? last: {one.call}"


@dataclass(frozen=True)
class Outcome:
    """How a child process ended.

    Attributes:
        state: ``"finished"``, ``"raised"`` or ``"killed"``.
        value: what the operation returned, or what it raised.
        acked: what it had acknowledged before it ended.
        n: at which call it was to die.
    """

    state: Literal["finished", "raised", "killed"]
    value: Any
    acked: list[Any]
    n: int


def in_child(
    operation: Callable[[Ack], Any], n: int, fault: Fault = KILL, *, timeout: float = 60, **options: Any
) -> Outcome:
    """Fork, run ``operation(ack)`` with `FaultAt` in the child, and say how it ended.

    The operation must open what it uses: nothing of the parent's connections is to be used after a
    fork. What it imports for the first time it imports in every child again, so import it before.

    Raises:
        TimeoutError: the child hung; it has been killed.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, from Python 3.12 on
        child = os.fork()
    if child == 0:
        _be_child(operation, n, fault, writer, options)
    os.close(writer)
    try:
        messages = _messages(reader, time.monotonic() + timeout)
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(reader)
    status = os.waitpid(child, 0)[1]
    if options.get("seen") is not None:
        options["seen"].update(value for kind, value in messages if kind == "site")
    acked = [value for kind, value in messages if kind == "ack"]
    ends = [(kind, value) for kind, value in messages if kind not in ("ack", "site")]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return Outcome("killed", None, acked, n)
    if not ends:
        raise RuntimeError(f"the child ended without a word, status {status}")
    kind, value = ends[-1]
    return Outcome(kind, value, acked, n)


def every_death(
    operation: Callable[[Ack], Any],
    *,
    start: int = 1,
    limit: int = 3000,
    **options: Any,
) -> Iterator[Outcome]:
    """Run *operation* in children that die at I/O call 1, 2, 3 … (or at each site not in *seen*); yield each outcome.

    The last outcome is the first in which nothing killed it: it has finished, or raised.

    Raises:
        AssertionError: the loop did not end within *limit*.
    """
    for n in itertools.count(start):
        outcome = in_child(operation, n, KILL, **options)
        yield outcome
        if outcome.state != "killed":
            return
        assert n < limit, f"still dying at call {n}"


def _be_child(
    operation: Callable[[Ack], Any], n: int, fault: Fault, writer: int, options: dict[str, Any]
) -> None:
    def say(kind: str, value: Any) -> None:
        try:
            body = pickle.dumps((kind, value))
        except Exception:
            body = pickle.dumps((kind, repr(value)))
        body = struct.pack("!I", len(body)) + body
        while body:
            body = body[_real["write"](writer, body) :]

    try:
        try:
            death = FaultAt(n, fault, **options)
            death.at_site = lambda site: say("site", site)
            with death:
                value = operation(lambda what: say("ack", what))
        except BaseException as error:
            say("raised", error)
        else:
            say("finished", value)
    finally:
        os._exit(0)


def _messages(reader: int, end: float) -> list[tuple[Any, Any]]:
    data = b""
    while True:
        if not select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError("the child did not end in time")
        piece = os.read(reader, 1 << 16)
        if not piece:
            break
        data += piece
    found = []
    while len(data) >= 4:
        size = struct.unpack("!I", data[:4])[0]
        if len(data) < 4 + size:
            break  # it died while it spoke
        found.append(pickle.loads(data[4 : 4 + size]))
        data = data[4 + size :]
    return found


# --- the functions of os, and the files of open() -----------------------------------------------

_real: dict[str, Any] = {
    name: getattr(os, name)
    for name in (
        "open", "read", "pread", "write", "pwrite", "writev", "sendfile", "copy_file_range",
        "posix_fallocate", "fsync", "fdatasync", "ftruncate", "truncate", "fchmod", "chmod", "utime", "link",
        "symlink", "rename", "replace", "unlink", "remove", "mkdir", "rmdir", "listdir", "scandir",
    )
    if hasattr(os, name)
}  # fmt: skip
_real_open = builtins.open
_real_ioctl = fcntl.ioctl
_FICLONE = 0x40049409
_SECOND = {"link", "rename", "replace", "symlink"}  # it is the second argument that changes
_ABILITIES = ("supports_dir_fd", "supports_fd", "supports_follow_symlinks", "supports_effective_ids")
_saved: list[Callable[[], Any]] = []


def _patch() -> None:
    for name, real in _real.items():
        replacement = _SPECIAL.get(name) or _plain(name, real)
        replacement.__name__ = name
        setattr(os, name, replacement)
        _saved.append(lambda name=name, real=real: setattr(os, name, real))
        for ability in _ABILITIES:  # code that asks `os.open in os.supports_dir_fd` must hear the truth
            known = getattr(os, ability)
            if real in known:
                known.add(replacement)
                _saved.append(lambda known=known, new=replacement: known.discard(new))  # type: ignore[misc]
    builtins.open = io.open = _open  # type: ignore[assignment]
    fcntl.ioctl = _ioctl
    place: Any = sys.modules.get("modelhub_sdk.blobs.place")
    if place is not None and hasattr(place, "exchange"):  # renameat2 by ctypes
        swap = place.exchange
        place.exchange = _exchange(swap)
        _saved.append(lambda: setattr(place, "exchange", swap))


def _unpatch() -> None:
    builtins.open = io.open = _real_open
    fcntl.ioctl = _real_ioctl
    while _saved:
        _saved.pop()()


def _due(kind: str, what: Any) -> str | None:
    """Return the path of the call if it is to fail, else None."""
    fault = _active
    if fault is None:
        return None
    path = _path(what)
    return path if path is not None and fault.due(kind, path) else None


def _path(what: Any) -> str | None:
    """Return the path that *what* (a path, a descriptor, a file) stands for; None if it is no file's."""
    if hasattr(what, "fileno"):
        what = what.fileno()
    if not isinstance(what, int):
        text = os.fsdecode(what)
        return text if os.path.isabs(text) else os.path.join(os.getcwd(), text)
    try:
        mode = os.fstat(what).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return None
        if hasattr(fcntl, "F_GETPATH"):
            return os.fsdecode(fcntl.fcntl(what, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
        return os.readlink(f"/proc/self/fd/{what}")
    except OSError:
        return None


def _located(path: Any, dir_fd: int | None) -> Any:
    """Return *path* seen from *dir_fd*."""
    if dir_fd is None or isinstance(path, int) or os.path.isabs(path):
        return path
    return os.path.join(_path(dir_fd) or "", os.fsdecode(path))


def _plain(name: str, real: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        index = 1 if name in _SECOND else 0
        named = (kwargs[key] for key in ("dst", "path", "fd") if key in kwargs)
        what = args[index] if len(args) > index else next(named, None)
        dir_fd = kwargs.get("dst_dir_fd", kwargs.get("dir_fd"))
        path = _due(name, _located("." if what is None else what, dir_fd))
        if path is None:
            return real(*args, **kwargs)
        fault = _now()
        result = real(*args, **kwargs) if fault.after and name not in _READS else None
        fault.strike(path)
        return result

    return call


def _now() -> FaultAt:
    if _active is None:
        raise RuntimeError("the block was left while a call was under way")
    return _active


def _write(fd: int, data: Any) -> int:
    return _half(fd, data, "write", lambda piece: _real["write"](fd, piece))


def _pwrite(fd: int, data: Any, offset: int) -> int:
    return _half(fd, data, "pwrite", lambda piece: _real["pwrite"](fd, piece, offset))


def _writev(fd: int, buffers: Any) -> int:
    return _half(fd, b"".join(buffers), "writev", lambda piece: _real["writev"](fd, [piece]))


def _half(where: Any, data: Any, kind: str, write: Callable[[Any], Any]) -> Any:
    path = _due(kind, where)
    if path is None:
        return write(data)
    view = memoryview(data).cast("B")
    fault = _now()
    # one byte cannot be halved, and a write that takes nothing is no write
    done = write(view if fault.after else view[: max(1, len(view) // 2)]) if len(view) else 0
    fault.strike(path)
    return done


def _copying(name: str, target: int, size: int) -> Any:
    """Return *name* (sendfile, copy_file_range) with the places of its target and its size."""

    def call(*args: Any, **kwargs: Any) -> int:
        path = _due(name, args[target])
        if path is None:
            return int(_real[name](*args, **kwargs))
        fault = _now()
        less = list(args)
        if not fault.after:
            less[size] = max(1, args[size] // 2)
        done = int(_real[name](*less, **kwargs))
        fault.strike(path)
        return done

    return call


def _os_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    hit = _due("open" if writes else "open to read", _located(path, dir_fd))
    if hit is not None:
        fault = _now()
        if fault.after and writes:  # the file is there, and the program does not have it
            os.close(_real["open"](path, flags, mode, dir_fd=dir_fd))
        fault.strike(hit)
    return int(_real["open"](path, flags, mode, dir_fd=dir_fd))


_SPECIAL: dict[str, Any] = {
    "open": _os_open,
    "write": _write,
    "pwrite": _pwrite,
    "writev": _writev,
    "sendfile": _copying("sendfile", 0, 3),
    "copy_file_range": _copying("copy_file_range", 1, 2),
}


def _ioctl(fd: Any, request: int, *rest: Any) -> Any:
    path = _due("reflink", fd) if request == _FICLONE else None
    if path is not None:
        fault = _now()
        if fault.after:
            _real_ioctl(fd, request, *rest)
        fault.strike(path)
    return _real_ioctl(fd, request, *rest)


def _exchange(real: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    def exchange(one: str, other: str) -> bool:
        path = _due("exchange", other)
        if path is None:
            return real(one, other)
        if _now().after:
            real(one, other)
        with contextlib.suppress(OSError):  # the system call reports by a number, not by raising
            _now().strike(path)
        return False

    return exchange


class _Raw(io.FileIO):
    """What lies under the files of `open` while a fault is about."""

    def write(self, data: Any) -> Any:
        return _half(self.fileno(), data, "write", super().write)

    def readinto(self, buffer: Any) -> Any:
        self._read()
        return super().readinto(buffer)

    def read(self, size: int | None = -1) -> Any:
        self._read()
        return super().read(-1 if size is None else size)

    def readall(self) -> Any:
        self._read()
        return super().readall()

    def truncate(self, size: int | None = None) -> int:
        path = _due("ftruncate", self.fileno())
        if path is not None:
            _now().strike(path)
        return super().truncate(size)

    def _read(self) -> None:
        path = _due("read", self.fileno())
        if path is not None:
            _now().strike(path)


def _open(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    """As `open`, with `_Raw` at the bottom. Paths of Python's own installation and odd files pass unseen."""
    path = _path(file) if isinstance(file, (int, str, bytes, os.PathLike)) else None
    odd = path is None or path.startswith(_FOREIGN) or not set(mode) <= set("rwaxbt+")
    if odd or len(set(mode) & set("rwax")) != 1:
        return _real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    text, updating, writing = "b" not in mode, "+" in mode, bool(set(mode) & set("wax"))
    if not isinstance(file, int) and opener is None:
        hit = _due("open" if writing or updating else "open to read", file)
        if hit is not None:
            fault = _now()
            if fault.after and writing:
                _real_open(file, mode, closefd=closefd).close()
            fault.strike(hit)
    raw = _Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
    result: Any = raw
    try:
        if buffering == 0:
            if text:
                raise ValueError("can't have unbuffered text I/O")
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        kind: Any = io.BufferedRandom if updating else io.BufferedWriter if writing else io.BufferedReader
        result = kind(raw, size)
        if text:
            result = io.TextIOWrapper(result, io.text_encoding(encoding), errors, newline, buffering == 1)
            result.mode = mode
    except BaseException:
        result.close()
        raise
    return result


# --- SQLite: a shim in its default VFS ----------------------------------------------------------

_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_OPEN = ctypes.CFUNCTYPE(_I, _P, _P, _P, _I, _P)
_DELETE = ctypes.CFUNCTYPE(_I, _P, _P, _I)
_READ = ctypes.CFUNCTYPE(_I, _P, _P, _I, _L)
_TRUNCATE = ctypes.CFUNCTYPE(_I, _P, _L)
_SYNC = ctypes.CFUNCTYPE(_I, _P, _I)
_SHM_MAP = ctypes.CFUNCTYPE(_I, _P, _I, _I, _I, _P)

_FULL, _CANTOPEN = 13, 14
_IOERR_READ, _IOERR_WRITE, _IOERR_FSYNC, _IOERR_TRUNCATE, _IOERR_DELETE, _IOERR_SHMSIZE = (
    10 | 1 << 8, 10 | 3 << 8, 10 | 4 << 8, 10 | 6 << 8, 10 | 10 << 8, 10 | 19 << 8,
)  # fmt: skip


class _Vfs(ctypes.Structure):
    _fields_ = [
        ("iVersion", _I), ("szOsFile", _I), ("mxPathname", _I), ("pNext", _P), ("zName", ctypes.c_char_p),
        ("pAppData", _P), ("xOpen", _P), ("xDelete", _P),
    ]  # fmt: skip


_METHODS = (
    "xClose", "xRead", "xWrite", "xTruncate", "xSync", "xFileSize", "xLock", "xUnlock",
    "xCheckReservedLock", "xFileControl", "xSectorSize", "xDeviceCharacteristics", "xShmMap", "xShmLock",
    "xShmBarrier", "xShmUnmap", "xFetch", "xUnfetch",
)  # fmt: skip


class _Methods(ctypes.Structure):
    _fields_ = [("iVersion", _I), *((name, _P) for name in _METHODS)]


class _File(ctypes.Structure):
    _fields_ = [("pMethods", ctypes.POINTER(_Methods))]


_kept: list[Any] = []  # callbacks and tables that C points to
_tables: dict[int, _Methods] = {}
_names: dict[int, str] = {}
_installed = False


def install_sqlite() -> bool:
    """Put the shim under SQLite, once per process; databases opened before are not seen.

    Returns False where Python's SQLite cannot be reached (it is linked in without its symbols).
    """
    global _installed
    if _installed:
        return True
    import _sqlite3

    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    try:
        find = library.sqlite3_vfs_find
    except AttributeError:
        return False
    find.restype, find.argtypes = ctypes.POINTER(_Vfs), [ctypes.c_char_p]
    vfs = find(None).contents
    real_open, real_delete = _OPEN(vfs.xOpen), _DELETE(vfs.xDelete)

    def x_open(self: int, name: int | None, file: int, flags: int, out: int) -> int:
        path = os.fsdecode(ctypes.string_at(name)) if name else ""
        ctypes.cast(file, ctypes.POINTER(_P))[0] = None  # while this is so, SQLite does not close it
        fault = _active
        if path and fault is not None and fault.due("sqlite.open", path):
            with contextlib.suppress(OSError):
                fault.strike(path)
            return _CANTOPEN
        code = real_open(self, name, file, flags, out)
        if code == 0 and path:
            _names[file] = path
            opened = ctypes.cast(file, ctypes.POINTER(_File)).contents
            opened.pMethods = ctypes.pointer(_table(opened.pMethods))
        return int(code)

    def x_delete(self: int, name: int, sync: int) -> int:
        path = os.fsdecode(ctypes.string_at(name))
        return _sqlite("sqlite.delete", path, lambda: real_delete(self, name, sync), _IOERR_DELETE)

    hooks = _OPEN(x_open), _DELETE(x_delete)
    _kept.extend([library, hooks, real_open, real_delete])
    vfs.xOpen = ctypes.cast(hooks[0], _P)
    vfs.xDelete = ctypes.cast(hooks[1], _P)
    _installed = True
    return True


def _table(methods: Any) -> _Methods:
    """Return a copy of SQLite's table of methods with ours in it, one for each of its tables."""
    address = ctypes.addressof(methods.contents)
    if address in _tables:
        return _tables[address]
    copy = _Methods.from_buffer_copy(methods.contents)
    real_read, real_write = _READ(copy.xRead), _READ(copy.xWrite)
    real_truncate, real_sync = _TRUNCATE(copy.xTruncate), _SYNC(copy.xSync)

    def x_read(file: int, buffer: int, amount: int, offset: int) -> int:
        return _sqlite(
            "sqlite.read", _names[file], lambda: real_read(file, buffer, amount, offset), _IOERR_READ
        )

    def x_write(file: int, data: int, amount: int, offset: int) -> int:
        full = _active is not None and _active.fault in (errno.ENOSPC, errno.EDQUOT)
        return _sqlite(
            "sqlite.write",
            _names[file],
            lambda: real_write(file, data, amount, offset),
            _FULL if full else _IOERR_WRITE,
            torn=lambda: real_write(file, data, max(1, amount // 2), offset),
        )

    def x_truncate(file: int, size: int) -> int:
        return _sqlite("sqlite.truncate", _names[file], lambda: real_truncate(file, size), _IOERR_TRUNCATE)

    def x_sync(file: int, flags: int) -> int:
        return _sqlite("sqlite.sync", _names[file], lambda: real_sync(file, flags), _IOERR_FSYNC)

    hooks: list[Any] = [_READ(x_read), _READ(x_write), _TRUNCATE(x_truncate), _SYNC(x_sync)]
    copy.xRead, copy.xWrite, copy.xTruncate, copy.xSync = (ctypes.cast(hook, _P).value for hook in hooks)
    if copy.iVersion >= 2 and copy.xShmMap:
        real_map = _SHM_MAP(copy.xShmMap)

        def x_shm_map(file: int, region: int, size: int, extend: int, out: int) -> int:
            def call() -> Any:
                return real_map(file, region, size, extend, out)

            return _sqlite("sqlite.shm", _names[file], call, _IOERR_SHMSIZE) if extend else int(call())

        hooks.append(_SHM_MAP(x_shm_map))
        copy.xShmMap = ctypes.cast(hooks[-1], _P).value
    _kept.append((hooks, copy))
    _tables[address] = copy
    return copy


def _sqlite(
    kind: str, path: str, call: Callable[[], Any], code: int, torn: Callable[[], Any] | None = None
) -> int:
    """Return what *call* returns, or *code* where it is to fail."""
    fault = _active
    if fault is None or not fault.due(kind, path):
        return int(call())
    if fault.after:
        call()
    elif torn is not None:
        torn()
    with contextlib.suppress(OSError):  # SQLite is told by a number
        fault.strike(path)
    return code
