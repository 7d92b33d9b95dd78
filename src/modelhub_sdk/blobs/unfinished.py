"""Large transfers that were interrupted: who may go on with them, and when they go.

Each lies in a file of its own, named ``<key>.<who>``. Its writer holds a lock on it. One that gives up names it
*free*; one that was killed leaves its name, which tells whether it lives, if it was a process of this machine and
name space (of which a later one may have the number, and the same process ids). Else there are only the lock and the
time: where nobody holds the lock and nothing was written for a minute, whoever goes on copies the bytes. Locks may
lie, and two writers of one file would spoil it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
import uuid
from collections.abc import Iterator

from modelhub_sdk.blobs import disk, link
from modelhub_sdk.errors import StoreUnavailable

_FREE = "free"  # in the name of an interrupted transfer, in the place of its owner
_QUIET = 60.0  # seconds without a byte after which a writer whose lock is free counts as gone


def freed(key: str) -> str:
    """Return a name for a transfer of *key* that its writer gave up."""
    return f"{key}.{_FREE}.{uuid.uuid4().hex}"


def adopted(folder: str, key: str, size: int, temporary: str) -> int | None:
    """Return the open file *temporary* with what has come of *key*, ours from now on; None if there is nothing.

    Most are claimed by a rename, so one process gets it. The bytes are to be hashed before they count. More than
    *size* of them are none of this key.
    """
    for path, name in sorted(_of(folder, f"{key}."), key=_size, reverse=True):
        try:
            if _is_dead(path, name):
                os.rename(path, temporary)
            elif not _copied(path, size, temporary):
                continue
        except (OSError, StoreUnavailable):
            continue  # somebody else was faster, or the disk is full
        try:
            fd = os.open(temporary, os.O_RDWR | disk.READ)
        except OSError:  # a link, a folder, or not ours
            disk.remove(temporary)
            disk.remove_tree(temporary)
            continue
        if _is_ours(os.fstat(fd), size):
            return fd
        os.close(fd)
        disk.remove(temporary)
    return None


def sweep(folder: str, start: str = "", age: float | None = None, older_than: float | None = None) -> int:
    """Remove interrupted transfers whose names begin so, if nobody works at them and they are *age* seconds old.

    With *older_than* (seconds) the time of the last byte alone says so. Returns how many went.
    """
    count = 0
    for path, name in _of(folder, start):
        with contextlib.suppress(OSError):
            changed = os.lstat(path).st_mtime
            if age is not None and abs(time.time() - changed) <= age:
                continue
            if _is_dead(path, name, older_than) or (older_than is None and _let_go(path, name)):
                os.unlink(path)
                count += 1
    return count


def idle(folder: str) -> Iterator[tuple[str, str, int]]:
    """Yield key, path and size of what nobody works at."""
    for path, name in _of(folder, ""):
        with contextlib.suppress(OSError):
            if _is_dead(path, name) or _let_go(path, name):
                yield name.split(".")[0], path, os.lstat(path).st_size


def _of(folder: str, start: str) -> Iterator[tuple[str, str]]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    yield from ((os.path.join(folder, name), name) for name in names if name.startswith(start))


def _size(found: tuple[str, str]) -> int:
    try:
        return os.lstat(found[0]).st_size
    except OSError:
        return 0


def _is_elsewhere(name: str) -> bool:
    """Return whether a process that we cannot ask for owns it: of another machine, or of another name space."""
    own, parts = disk.temporary().rsplit(".", 3)[1], name.rsplit(".", 3)
    return len(parts) == 4 and parts[1] != own


def _is_dead(path: str, name: str, older_than: float | None = None) -> bool:
    if f".{_FREE}." in name:
        return True
    if older_than is None and _is_elsewhere(name):
        return False  # it may live, however old the file is
    return disk.is_left_over(name, os.lstat(path).st_mtime, older_than=older_than)


def _let_go(path: str, name: str) -> bool:
    """Return whether a writer that cannot be asked for is gone, as far as one can see; without locks it is after a day."""
    info = os.lstat(path)
    if not _is_quiet(info):
        return False
    try:
        fd = os.open(path, os.O_RDWR | disk.READ)
    except OSError:  # another user's
        return disk.is_left_over(name, info.st_mtime)
    try:
        locked = disk.try_lock(fd)
    finally:
        os.close(fd)
    return disk.is_left_over(name, info.st_mtime) if locked is None else locked


def _copied(path: str, size: int, temporary: str) -> bool:
    """Return whether the bytes of a writer that seems to be gone are in *temporary* now."""
    if not _is_quiet(os.lstat(path)):
        return False
    source = os.open(path, os.O_RDWR | disk.READ)
    try:
        info = os.fstat(source)
        if not _is_ours(info, size) or disk.try_lock(source) is not True:
            return False
        fd = disk.create(temporary, 0o600)
        try:
            if not link.clone(source, fd):
                disk.duplicate(source, fd, info.st_size, lambda _: None, given=path, where=temporary)
        except BaseException:
            disk.remove(temporary)
            raise
        finally:
            os.close(fd)
        os.unlink(path)  # else each restart of a container that is killed would leave one more
        return True
    finally:
        os.close(source)


def _is_quiet(info: os.stat_result) -> bool:
    return abs(time.time() - info.st_mtime) > _QUIET


def _is_ours(info: os.stat_result, size: int) -> bool:
    mine = not hasattr(os, "geteuid") or info.st_uid == os.geteuid()
    return stat.S_ISREG(info.st_mode) and info.st_nlink == 1 and mine and info.st_size <= size


__all__ = ["adopted", "freed", "idle", "sweep"]
