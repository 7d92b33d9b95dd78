"""The local disk, done carefully: temporary files with an owner, durable renames, copies that hash.

Everything here raises `ModelHubError` subclasses only. A temporary file's name tells which process
writes it, so that the leftovers of a killed process are removed by the next writer, without a
lock and without waiting.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import queue
import re
import stat
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from modelhub_sdk.errors import DigestMismatch, InvalidName, ModelHubError, NotFound, StoreUnavailable, shown

Progress = Callable[[int], object]
"""Called with the number of bytes done since its last call."""

_BIRTH = 1.0  # seconds for a thread to begin
CHUNK = 1 << 20
"""Bytes moved at once. A copy holds four of these, whatever the file's size."""

EMPTY = "sha256:" + hashlib.sha256(b"").hexdigest()

_INLINE = 4 * CHUNK  # below this a second thread costs more than it saves
_FLUSH = 32 * CHUNK  # start writing to the disk this often
_STEP = 8 * CHUNK  # what the kernel copies at once: Ctrl-C and the progress wait for no more
_ALIVE = 1.0  # seconds between two signs that somebody is at an unfinished file
_NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSOCK)  # not on this file system
_STALE = 24 * 3600.0  # a temporary file of an unknown owner is left over after this many seconds

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_NOCTTY = getattr(os, "O_NOCTTY", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_BINARY = getattr(os, "O_BINARY", 0)

READ = os.O_RDONLY | _NOFOLLOW | _CLOEXEC | _NONBLOCK | _NOCTTY | _BINARY
CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _CLOEXEC | _BINARY
DIRECTORY = os.O_RDONLY | _DIRECTORY | _NOFOLLOW | _CLOEXEC
LOCK = os.O_RDWR | os.O_CREAT | _NOFOLLOW | _CLOEXEC  # never truncates, never through a link

Name = str | bytes


class Reader(Protocol):
    """Bytes to be copied: read to the end, then `finish`, and `close` in any case."""

    def readinto(self, view: memoryview) -> int:
        """Fill *view* from its start and return how many bytes came; 0 is the end."""

    def finish(self) -> None:
        """Check, after the last byte, that nothing changed meanwhile; raises if something did."""

    def close(self) -> None:
        """Release the descriptor."""


# --------------------------------------------------------------------------- errors


@contextlib.contextmanager
def translated(doing: str, where: object, hint: str = "") -> Iterator[None]:
    """Turn an OSError in the block into `StoreUnavailable`, saying what was done, where, and why not."""
    try:
        yield
    except ModelHubError:
        raise
    except (OSError, ValueError) as exc:  # ValueError: a NUL in a path, a closed file
        raise unavailable(exc, doing, where, hint) from exc


def unavailable(exc: BaseException, doing: str, where: object, hint: str = "") -> StoreUnavailable:
    """Return the `StoreUnavailable` that tells of *exc*, with its ``errno``."""
    number = exc.errno if isinstance(exc, OSError) else None
    reason = os.strerror(number) if number is not None else type(exc).__name__
    if isinstance(exc, NotAFile):
        reason = exc.strerror or reason
    return StoreUnavailable(
        f"Cannot {doing} {text(where)}: {reason}.",
        hint=hint or _HINTS.get(number or 0, ""),
        errno=number,
        damaged=number in DAMAGE,
    )


class NotAFile(OSError):
    """A FIFO, device, socket or folder lies where a regular file should be, or a file that is too large to be one."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()


DAMAGE = frozenset(
    number
    for name in ("EIO", "EISDIR", "ENOTDIR", "ELOOP", "EINVAL", "ENXIO", "EUCLEAN", "EBADMSG", "ENODEV")
    if (number := getattr(errno, name, None)) is not None
)
"""What a system says of one damaged place: a bad sector, or a folder, link, FIFO or device instead of a file."""


_HINTS = {
    errno.ENOSPC: "Free space on that disk, then try again; nothing half-written was left.",
    getattr(errno, "EDQUOT", -1): "The quota is used up: free space, then try again.",
    errno.EFBIG: "The file is larger than this process or disk allows (ulimit -f).",
    errno.EROFS: "The file system is read-only: use another place.",
    errno.EACCES: "Check the permissions of the path and of the folders above it.",
    errno.EPERM: "Check the permissions of the path and of the folders above it.",
    errno.EMFILE: "This process has too many open files (ulimit -n).",
    errno.ENOENT: "Something removed the folder meanwhile; try again.",
    errno.EIO: "The disk reports an error: check it before anything is trusted to it.",
    errno.ELOOP: "It is a symbolic link, which is not followed here.",
    errno.ENAMETOOLONG: "The path is longer than this file system allows.",
}


def text(where: object) -> str:
    """Return a path for an error message: quoted, escaped, readable also when it is not UTF-8."""
    try:
        raw = os.fspath(where)  # type: ignore[call-overload]
    except TypeError:
        return shown(where)
    return shown(raw.decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else raw, 300)


# --------------------------------------------------------------------------- small durable steps


def raw(path: str) -> bytes:
    """Return a path of a version as the disk's bytes: UTF-8, whatever the locale."""
    return path.encode("utf-8", "surrogateescape")


def unraw(name: bytes) -> str:
    """Return a name from the disk as text; bytes that are not UTF-8 become surrogates, never accepted."""
    return name.decode("utf-8", "surrogateescape")


def fsync_dir(path: Name | int) -> None:
    """Make the entries of the folder *path* (or of its descriptor) durable, where the system can."""
    if os.name == "nt":
        return
    fd = path if isinstance(path, int) else os.open(path, os.O_RDONLY | _DIRECTORY | _CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some file systems cannot
            raise
    finally:
        if not isinstance(path, int):
            os.close(fd)


def make_dirs(path: str, mode: int = 0o777, *, exact: bool = False, _again: bool = False) -> bool:
    """Create the folder *path* and those above it, durably; return whether it was missing.

    A umask that would lock this very user out (0777) is corrected; with *exact* any, so that new folders have *mode*.
    """
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        info = os.stat(path)
        if not stat.S_ISDIR(info.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
        _unlock(path, info)
        return False
    except PermissionError:
        above = [path[:at] for at in range(1, len(path)) if path[at] == os.sep]
        closed = False
        for folder in above:
            closed |= _unlock(folder, os.stat(folder))
        if not closed and _again:
            raise
        return make_dirs(path, mode, exact=exact, _again=True)
    except FileNotFoundError:
        parent = os.path.dirname(path)
        if os.path.isdir(parent) and _again:  # a place like /proc, where nothing can be made
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path) from None
        if not parent or parent == path:
            raise
        make_dirs(parent, mode, exact=exact)
        return make_dirs(path, mode, exact=exact, _again=True)
    found = os.stat(path).st_mode
    if exact and found & 0o1777 != mode:
        os.chmod(path, mode | found & stat.S_ISGID)  # the group goes on to what is made in it
    elif found & 0o700 != mode & 0o700:
        os.chmod(path, mode & 0o700)
    fsync_dir(os.path.dirname(path) or ".")
    return True


def _unlock(path: str, info: os.stat_result) -> bool:
    """Open a folder of ours that a umask of 0777 closed: another thread is about to, after its mkdir."""
    if os.name == "nt" or info.st_mode & 0o777 or info.st_uid != os.geteuid():
        return False
    os.chmod(path, 0o700)
    return True


def create(path: Name, mode: int, *, dir_fd: int | None = None) -> int:
    """Return a descriptor of the new file *path*; it exists with permissions *mode* less the umask.

    The descriptor can write even when *mode* is read-only. The owner can always read.
    """
    fd = os.open(path, CREATE, mode, dir_fd=dir_fd)
    if os.name != "nt" and not os.fstat(fd).st_mode & stat.S_IRUSR:
        os.fchmod(fd, mode & 0o700)
    return fd


def try_lock(fd: int) -> bool | None:
    """Take the lock of the open file *fd*, let go when it is closed; False: others hold it; None: there are no locks.

    On some network disks every taker succeeds. Nothing may depend on a lock but the saving of work.
    """
    try:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def unlock(fd: int) -> None:
    """Let the lock of *fd* go at once, also where a forked child has the file open as well."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_UN)


def write_all(fd: int, data: memoryview | bytes) -> None:
    """Write all of *data* to *fd*, however short each write is."""
    view = memoryview(data)
    while view:
        done = os.write(fd, view)
        if done <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view = view[done:]


def remove(path: Name, *, dir_fd: int | None = None) -> None:
    """Remove the file *path* if it is there; an error is swallowed (used while cleaning up)."""
    with contextlib.suppress(OSError):
        os.unlink(path, dir_fd=dir_fd)


def remove_tree(path: Name) -> None:
    """Remove the folder *path* with all in it, also where its folders are read-only; best effort."""
    import shutil

    if os.path.islink(path):
        remove(path)
        return

    def unlock(function: Callable[..., object], name: str, _: object) -> None:
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(name), 0o700)
            if os.path.isdir(name) and not os.path.islink(name):
                os.chmod(name, 0o700)
                shutil.rmtree(name, ignore_errors=True)
            else:
                os.unlink(name)

    with contextlib.suppress(OSError, RecursionError):
        for folder, _dirs, _files in os.walk(os.fsencode(path)):
            with contextlib.suppress(OSError):
                os.chmod(folder, 0o700)
        shutil.rmtree(path, onerror=unlock)


# --------------------------------------------------------------------------- temporary names

_home: list[str] = []


def _where() -> str:
    """Return a tag of this machine, boot and process-id name space."""
    if not _home:
        facts = [os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")]
        with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", "rb") as file:
            facts.append(file.read().hex())
        with contextlib.suppress(OSError):
            facts.append(os.readlink("/proc/self/ns/pid"))
        _home.append(hashlib.sha256("\0".join(facts).encode()).hexdigest()[:12])
    return _home[0]


_TEMPORARY = re.compile(
    r"(?P<stem>.*)\.(?P<where>[0-9a-f]{12})\.(?P<pid>[0-9]{1,20})\.[0-9a-f]{12}(?:-old|-journal|-wal|-shm)?(?:\.partial)?",
    re.DOTALL,
)


def check_verify(verify: object) -> None:
    """Raise InvalidName unless *verify* is None or ``"always"``: when bytes that look right are read too."""
    if verify not in (None, "always"):
        raise InvalidName(f"verify={shown(verify)} is unknown.", hint="Use verify='always', or leave it out.")


def temporary(stem: str = "") -> str:
    """Return a file name that no other process or thread uses and that tells who owns it."""
    return f"{stem}.{_where()}.{os.getpid()}.{uuid.uuid4().hex[:12]}"


def is_temporary(name: str, stem: str) -> bool:
    """Return whether *name* is what `temporary` made of *stem*, or what we or SQLite keep beside that."""
    if not name.startswith(stem + "."):  # nearly all of a large folder
        return False
    match = _TEMPORARY.fullmatch(name)
    return match is not None and match["stem"] == stem


def is_left_over(name: str, modified: float, *, older_than: float | None = None) -> bool:
    """Return whether the temporary file *name*, last written at *modified*, has no living owner.

    With *older_than* (seconds) its age alone decides. Otherwise a dead process of this machine
    leaves its files at once, and what other machines own is left over after a day. A name that
    `temporary` did not make is nobody's leftover, however old it is.
    """
    match = _TEMPORARY.fullmatch(name)
    if match is None:
        return False
    age = time.time() - modified
    if older_than is not None:
        return age >= older_than
    pid = int(match["pid"])
    if match["where"] == _where() and pid != os.getpid():
        try:
            os.kill(pid, 0)
            if _is_zombie(pid):
                return True
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            pass
    return age > _STALE


def _is_zombie(pid: int) -> bool:
    """Return whether a process was killed, and only its parent has not asked about it yet."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[:1] == [b"Z"]
    except OSError:
        return False


def sweep(folder: Name, *, older_than: float | None = None, stem: str | None = None) -> int:
    """Remove leftovers of killed writers from *folder*; return how many. Never raises OSError.

    With *stem* only those that were made with it: in a folder of the user's, where others have their files.
    """
    count = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            name = os.fsdecode(entry.name)
            if stem is not None and not is_temporary(name, stem):
                continue
            with contextlib.suppress(OSError):
                info = entry.stat(follow_symlinks=False)
                if is_left_over(name, info.st_mtime, older_than=older_than):
                    if stat.S_ISDIR(info.st_mode):
                        remove_tree(entry.path)
                    else:
                        os.unlink(entry.path)
                    count += 1
    return count


# --------------------------------------------------------------------------- reading


def check_regular(path: str) -> None:
    """Make sure that nothing lies at *path* which waits for somebody else when it is opened.

    Raises:
        StoreUnavailable: a FIFO, device or socket lies there.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise unavailable(NotAFile(errno.EINVAL, f"it is a {_kind(mode)}, not a file"), "use", path)


def open_regular(
    path: Name | os.PathLike[str], *, dir_fd: int | None = None, follow: bool = False
) -> tuple[int, os.stat_result]:
    """Return a descriptor and the stat of the regular file *path*, without waiting for anybody.

    Raises:
        NotAFile: a FIFO, device, socket or folder lies there. Reading one could wait for ever.
        OSError: it cannot be opened. A symbolic link is ELOOP, unless *follow*.
    """
    try:
        fd = os.open(path, READ & ~_NOFOLLOW if follow else READ, dir_fd=dir_fd)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            raise NotAFile(errno.EINVAL, "it is a socket or a device, not a file") from exc
        raise
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise NotAFile(errno.EINVAL, f"it is a {_kind(info.st_mode)}, not a file")
    except BaseException:
        os.close(fd)
        raise
    return fd, info


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "FIFO", stat.S_IFDIR: "folder", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def read_file(path: Name | os.PathLike[str], at_most: int, *, follow: bool = False) -> bytes:
    """Return all bytes of the regular file *path*.

    Raises:
        NotAFile: as of `open_regular`, and when it has more than *at_most* bytes.
        OSError: as of `open_regular`.
    """
    fd, info = open_regular(path, follow=follow)
    with os.fdopen(fd, "rb") as file:
        # As many bytes as are asked for are reserved at once, so first as many as there are, and one: it may grow.
        data = file.read(info.st_size + 1) if info.st_size <= at_most else b""
        if len(data) > info.st_size:
            data += file.read(max(at_most + 1 - len(data), 0))
    if info.st_size > at_most or len(data) > at_most:
        raise NotAFile(errno.EINVAL, f"it is larger than the {at_most:,} bytes that are read of such a file")
    return data


class FdReader:
    """A `Reader` of an open descriptor, which it closes. Nothing is checked at the end."""

    def __init__(self, fd: int, where: object) -> None:
        self._fd = fd
        self._where = where

    def readinto(self, view: memoryview) -> int:
        """Fill *view* from its start and return how many bytes came."""
        with translated("read", self._where):
            return os.readv(self._fd, [view]) if hasattr(os, "readv") else _readinto(self._fd, view)

    def finish(self) -> None:
        """Check nothing."""

    def close(self) -> None:
        """Close the descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _readinto(fd: int, view: memoryview) -> int:
    data = os.read(fd, len(view))
    view[: len(data)] = data
    return len(data)


# --------------------------------------------------------------------------- copying


class _Worker:
    """One background thread that runs what it is given, in order; inline where none can start."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], object], threading.Semaphore | None] | None]
        self._jobs = queue.SimpleQueue()
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = threading.Thread(target=self._run, daemon=True)
        self._begun = threading.Event()
        try:
            self._thread.start()
            if not self._begun.wait(_BIRTH):  # it died before it began
                self._thread = None
        except RuntimeError:  # the interpreter is shutting down, or no more threads
            self._thread = None

    def _run(self) -> None:
        self._begun.set()
        while (job := self._jobs.get()) is not None:
            self._do(*job)

    def _do(self, function: Callable[[], object], done: threading.Semaphore | None) -> None:
        try:
            if self.error is None:
                function()
        except BaseException as exc:  # noqa: BLE001 - handed to the thread that waits
            self.error = exc
        finally:
            if done is not None:
                done.release()

    def give(self, function: Callable[[], object], done: threading.Semaphore | None = None) -> None:
        if self._thread is None:
            self._do(function, done)
        else:
            self._jobs.put((function, done))

    def stop(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()


def copy(
    reader: Reader,
    fd: int | None,
    *,
    size: int | None = None,
    at_most: int | None = None,
    progress: Progress | None = None,
    where: object = "the copy",
    flush: bool = False,
    begun: Any = None,
    total: int = 0,
) -> tuple[str, int]:
    """Copy *reader* to the descriptor *fd* (None: only hash) and return the digest and size of the bytes.

    With *begun*, the hash of *total* bytes that *fd* has already (see `go_on`), the copy goes on from there.

    Hashing, and telling the disk to begin, happen beside the copying; memory does not depend on
    the size. *size* is what is expected, if known (small files are done without threads). With
    *at_most* the copy stops with the first byte after that many. With *flush* the disk is
    kept busy meanwhile, so that the caller's fsync is short.

    Raises:
        StoreUnavailable: *fd* (which is *where*) cannot be written, or the reader's own errors.
    """
    hasher = hashlib.sha256() if begun is None else begun
    if size is not None and size - total <= _INLINE:
        return _copy_inline(reader, fd, at_most, progress, where, hasher, total)
    free = threading.Semaphore(3)
    buffers = [memoryview(bytearray(CHUNK)) for _ in range(4)]
    hashing, flusher = _Worker(), _Flusher(fd if flush else None, where)
    turn = 0
    try:
        while True:
            free.acquire()  # one of the four is always ours: the one that is being filled
            view = buffers[turn % 4]
            turn += 1
            got = reader.readinto(view)
            if not got:
                break
            piece = view[:got]
            hashing.give(lambda piece=piece: hasher.update(piece), free)  # type: ignore[misc]
            total += got
            if fd is not None:
                with translated("write", where):
                    write_all(fd, piece)
                flusher.wrote(got)
            if progress is not None:
                progress(got)
            if at_most is not None and total > at_most:
                break
        reader.finish()
    finally:
        hashing.stop()
        flusher.stop()
    if hashing.error is not None:
        raise hashing.error
    flusher.check()
    return "sha256:" + hasher.hexdigest(), total


class _Flusher:
    """Has the disk write beside the copying what was written to *fd*, so that the last fsync finds little to do."""

    def __init__(self, fd: int | None, where: object) -> None:
        self._fd = fd if hasattr(os, "fdatasync") else None
        self._where = where
        self._worker: _Worker | None = None
        self._done = threading.Semaphore(1)
        self._unflushed = 0

    def wrote(self, count: int) -> None:
        """Take note of *count* bytes more; begin to flush when there are enough and no flush is under way."""
        self._unflushed += count
        if self._fd is None or self._unflushed < _FLUSH or not self._done.acquire(blocking=False):
            return
        fd = self._fd
        self._worker = self._worker or _Worker()
        self._worker.give(lambda: os.fdatasync(fd), self._done)
        self._unflushed = 0

    def stop(self) -> None:
        """Wait for the flush that is under way."""
        if self._worker is not None:
            self._worker.stop()

    def check(self) -> None:
        """Raise if a flush failed: that is a failed write, never repeated on the same file."""
        error = None if self._worker is None else self._worker.error
        if isinstance(error, OSError):
            raise unavailable(error, "write", self._where) from error
        if error is not None:
            raise error


def duplicate(source: int, fd: int, size: int, progress: Progress, *, given: object, where: object) -> int:
    """Copy up to *size* bytes of the open file *source* (which is *given*) to *fd* (*where*); return how many came.

    The kernel copies where it can, and nothing is hashed: for bytes that are known to be right.

    Raises:
        StoreUnavailable: one cannot be read, or the other not be written.
    """
    flusher = _Flusher(fd, where)
    done = 0
    try:
        while done < size:
            got = _step(source, fd, min(_STEP, size - done), given, where)
            if not got:
                break
            done += got
            flusher.wrote(got)
            progress(got)
    finally:
        flusher.stop()
    flusher.check()
    return done


def _step(source: int, fd: int, count: int, given: object, where: object) -> int:
    """Copy some bytes, at most *count*, from where both files stand; return how many."""
    if sys.platform.startswith("linux"):
        try:
            return os.sendfile(fd, source, None, count)
        except OSError as exc:
            if exc.errno not in _NO_SENDFILE:
                raise unavailable(exc, "write", where) from exc
    with translated("read", given):
        data = os.read(source, min(count, CHUNK))
    with translated("write", where):
        write_all(fd, data)
    return len(data)


def _copy_inline(
    reader: Reader,
    fd: int | None,
    at_most: int | None,
    progress: Progress | None,
    where: object,
    hasher: Any,
    total: int,
) -> tuple[str, int]:
    view = memoryview(bytearray(CHUNK))
    while got := reader.readinto(view):
        hasher.update(view[:got])
        total += got
        if fd is not None:
            with translated("write", where):
                write_all(fd, view[:got])
        if progress is not None:
            progress(got)
        if at_most is not None and total > at_most:
            break
    reader.finish()
    return "sha256:" + hasher.hexdigest(), total


def go_on(
    reader_from: Callable[[int], Reader],
    fd: int | None,
    size: int,
    progress: Progress | None,
    *,
    where: object = "the copy",
) -> tuple[str, int]:
    """Copy a blob of *size* bytes to the descriptor *fd* (None: only hash); return digest and size of all that came.

    What *fd* holds already is taken for the first bytes: they are hashed, and ``reader_from(count)``, which is
    closed in the end, gives the rest. More than *size* bytes are thrown away first, as they are not what is wanted.
    While bytes are hashed the mtime of *fd* tells others that somebody is at it.

    Raises:
        StoreUnavailable: *fd* (which is *where*) cannot be read or written, or the reader's own errors.
    """
    hasher, done = hashlib.sha256(), 0
    if fd is not None:
        with translated("read", where):
            if (there := os.fstat(fd).st_size) > size:
                os.ftruncate(fd, 0)
                there = 0
            os.lseek(fd, 0, os.SEEK_SET)
            told = -_ALIVE
            while done < there and (piece := os.read(fd, min(CHUNK, there - done))):
                hasher.update(piece)
                done += len(piece)
                if progress is not None:
                    progress(len(piece))
                if time.monotonic() - told > _ALIVE:
                    told = time.monotonic()
                    with contextlib.suppress(OSError, TypeError):  # a system that can do so by path only
                        os.utime(fd)
    reader = reader_from(done)
    try:
        return copy(
            reader,
            fd,
            size=size,
            at_most=size,
            progress=progress,
            where=where,
            flush=True,
            begun=hasher,
            total=done,
        )
    finally:
        reader.close()


def hash_file(path: Name, *, progress: Progress | None = None) -> tuple[str, int]:
    """Return the digest and size of the regular file *path*.

    Raises:
        NotFound: there is none.
        StoreUnavailable: it cannot be read, or is a link or another special file.
    """
    try:
        fd, info = open_regular(path)
    except FileNotFoundError as exc:
        raise NotFound(f"There is no file {text(path)}.") from exc
    except OSError as exc:
        raise unavailable(exc, "read", path) from exc
    reader = FdReader(fd, path)
    try:
        return copy(reader, None, size=info.st_size, progress=progress, where=path)
    finally:
        reader.close()


def mismatch(
    expected: str, actual: str, source: object, *, size: int | None = None, got: int | None = None
) -> DigestMismatch:
    """Return the error for bytes from *source* that are not those of *expected*."""
    detail = f" ({got} bytes instead of {size})" if got is not None and got != size else ""
    return DigestMismatch(
        f"The bytes from {text(source)} are not those that were registered{detail}:"
        f" expected {expected}, got {actual or 'less than the whole'}.",
        hint="Nothing was handed out. Restore that file in the store from a backup, or register it again.",
        expected=expected,
        actual=actual,
        source=text(source),
    )
