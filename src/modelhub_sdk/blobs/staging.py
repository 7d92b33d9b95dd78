"""Building a new folder of a version's files, and looking at one, never through a link.

Each folder is opened by itself, relative to the one above it, so that nobody who can write there
makes us read or write elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from modelhub_sdk.blobs import disk, link
from modelhub_sdk.blobs.disk import Progress, translated
from modelhub_sdk.blobs.parallel import each
from modelhub_sdk.domain import stored
from modelhub_sdk.domain.entities import File
from modelhub_sdk.errors import Conflict, DigestMismatch, shown

Get = Callable[[File], str | os.PathLike[str]]
"""Returns where the verified bytes of a file lie."""

Facts = tuple[int, int, int, str]
"""Size, mtime in nanoseconds, inode and digest of a file that we wrote."""


def listing(folder: str | os.PathLike[str], limit: int | None = None) -> dict[str, os.stat_result] | None:
    """Return path and lstat of everything in *folder* that is not a folder, or None if there is no *folder*.

    Links are not followed. Beyond *limit* entries the rest is left out.

    Raises:
        StoreUnavailable: it cannot be read.
    """
    found = look(folder, limit)
    return None if found is None else found[0]


def look(
    folder: str | os.PathLike[str], limit: int | None = None
) -> tuple[dict[str, os.stat_result], set[str]] | None:
    """Return what `listing` does, and the paths of the folders in *folder*.

    A path in it may be longer than the system allows in one call: each folder is opened by itself.
    """
    found: dict[str, os.stat_result] = {}
    folders: set[str] = set()
    stack = [""]
    seen = 0
    with translated("look into", folder):
        try:
            root = os.open(os.fsencode(folder), disk.DIRECTORY & ~getattr(os, "O_NOFOLLOW", 0))
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            while stack:
                at = stack.pop()
                try:
                    fd = descend(root, at, make=False)
                except OSError as exc:
                    if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # it was replaced meanwhile
                        continue
                    raise
                try:
                    with os.scandir(fd) as entries:
                        for entry in entries:
                            seen += 1
                            if limit is not None and seen > limit:
                                return found, folders
                            name = disk.unraw(os.fsencode(entry.name))
                            path = f"{at}/{name}" if at else name
                            if entry.is_dir(follow_symlinks=False):
                                stack.append(path)
                                folders.add(path)
                            else:
                                with contextlib.suppress(FileNotFoundError):  # gone since
                                    found[path] = entry.stat(follow_symlinks=False)
                finally:
                    os.close(fd)
        finally:
            os.close(root)
    return found, folders


def stage(
    top: str,
    files: Sequence[File],
    get: Get,
    *,
    how: str,
    heal: Get | None = None,
    progress: Progress | None = None,
    frozen: bool = False,
) -> dict[str, Facts]:
    """Make the new folder *top* with *files* in it, and return their facts by path.

    *how* is as in `into`, or "share": hard links first, for folders inside the cache. With
    *frozen* everything but *top* itself is read-only, and nothing is synced that is only a link.

    Raises:
        InvalidDocument: a path could lead outside of *top*; nothing was made.
    """
    stored.check_paths(file.path for file in files)
    with translated("write to", top):
        os.mkdir(top, 0o777)
        if os.stat(top).st_mode & 0o700 != 0o700:
            os.chmod(top, 0o700)
        root = os.open(top, disk.DIRECTORY)
    try:
        _refuse_twins(root, top, files)
        folders = sorted({folder for file in files for folder in above(file.path)})
        with translated("write to", top):
            for folder in folders:  # parents sort before their children
                fd = descend(root, folder, make=True)
                os.close(fd)
        facts: dict[str, Facts] = {}
        if how in ("hard", "share"):
            facts = _linked(root, top, files, get, how, progress)
        rest = tuple(file for file in files if file.path not in facts)
        done = each(lambda file, step: _place(root, top, file, get, heal, how, frozen, step), rest, progress)
        facts |= {file.path: one for file, one in zip(rest, done, strict=True)}
        with translated("write to", top):
            for folder in reversed(folders):
                fd = descend(root, folder, make=False)
                try:
                    if frozen:
                        os.fchmod(fd, 0o555)
                    else:
                        disk.fsync_dir(fd)
                finally:
                    os.close(fd)
            if not frozen:
                disk.fsync_dir(root)
        return {file.path: facts[file.path] for file in files}
    finally:
        os.close(root)


def above(path: str) -> Iterator[str]:
    """Yield the folders above *path*, outermost first."""
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)


def descend(root: int, folder: str, *, make: bool) -> int:
    """Return a descriptor of *folder* under *root*, no component of which is a link."""
    fd = os.dup(root)
    try:
        for part in folder.split("/") if folder else ():
            name = disk.raw(part)
            if make:
                try:
                    os.mkdir(name, 0o777, dir_fd=fd)
                except FileExistsError:
                    pass
                else:
                    if os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode & 0o700 != 0o700:
                        os.chmod(name, 0o700, dir_fd=fd)
            fd, above_it = os.open(name, disk.DIRECTORY, dir_fd=fd), fd
            os.close(above_it)  # not before: whatever interrupts us, *fd* is closed once
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refuse_twins(root: int, top: str, files: Iterable[File]) -> None:
    """Refuse, before the first byte, names that this file system cannot tell apart."""
    seen: dict[str, str] = {}
    for file in files:
        for name in (*above(file.path), file.path):
            other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
            if other != name:
                if folds_case(root):
                    raise Conflict(
                        f"The disk of {disk.text(top)} does not tell {shown(other)} and {shown(name)} apart.",
                        hint="Use a folder on a case-sensitive disk, or resolve them one by one (files=…).",
                    )
                return


def folds_case(root: int) -> bool:
    """Return whether the folder open as *root* is case-insensitive, by trying."""
    name = disk.temporary("case") + "x"
    with translated("write to", "the target folder"):
        os.close(disk.create(name, 0o600, dir_fd=root))
        try:
            os.stat(name.swapcase(), dir_fd=root, follow_symlinks=False)
        except FileNotFoundError:
            return False
        finally:
            disk.remove(name, dir_fd=root)
    return True


def _linked(
    root: int, top: str, files: Sequence[File], get: Get, how: str, progress: Progress | None
) -> dict[str, Facts]:
    """Hard-link files one after the other, which is faster than at once; return the facts of those that could be."""
    found: dict[str, Facts] = {}
    at, fd = None, -1
    try:
        for file in files:
            folder, _, leaf = file.path.rpartition("/")
            if folder != at:
                if fd >= 0:
                    os.close(fd)
                    fd = -1
                with translated("write to", top):
                    at, fd = folder, descend(root, folder, make=False)
            name = disk.raw(leaf)
            if not _link(get(file), name, fd, how):
                return found
            with translated("look at", os.path.join(top, file.path)):
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            found[file.path] = info.st_size, info.st_mtime_ns, info.st_ino, file.digest
            if progress is not None:
                progress(file.size)
    finally:
        if fd >= 0:
            os.close(fd)
    return found


def _place(
    root: int, top: str, file: File, get: Get, heal: Get | None, how: str, frozen: bool, step: Progress
) -> Facts:
    source = get(file)
    folder, _, leaf = file.path.rpartition("/")
    where = os.path.join(top, file.path)
    with translated("write to", top):
        fd = descend(root, folder, make=False)
    try:
        if _link(source, disk.raw(leaf), fd, how):
            with translated("look at", where):
                info = os.stat(disk.raw(leaf), dir_fd=fd, follow_symlinks=False)
            step(file.size)
        else:
            try:
                info = _copy(source, disk.raw(leaf), fd, file, how, frozen, where, step)
            except DigestMismatch:
                if heal is None:
                    raise
                info = _copy(heal(file), disk.raw(leaf), fd, file, how, frozen, where, lambda count: None)
        return info.st_size, info.st_mtime_ns, info.st_ino, file.digest
    finally:
        os.close(fd)


def _link(source: str | os.PathLike[str], name: bytes, fd: int, how: str) -> bool:
    """Hard-link *source* where *how* allows it; False: copy."""
    try:
        if how in ("hard", "share"):
            return link.hard(os.fspath(source), name, dir_fd=fd)
        if how == "auto":
            info = os.lstat(source)
            if stat.S_ISREG(info.st_mode) and not link.writable(info):
                return link.hard(os.fspath(source), name, dir_fd=fd)
    except OSError as exc:
        raise disk.unavailable(exc, "link", source) from exc
    return False


def _copy(
    source: str | os.PathLike[str],
    name: bytes,
    dir_fd: int,
    file: File,
    how: str,
    frozen: bool,
    where: str,
    step: Progress,
) -> os.stat_result:
    with translated("read", source):
        given, info = disk.open_regular(os.fspath(source))
    try:
        with translated("write", where):
            fd = disk.create(name, 0o444 if frozen else 0o666, dir_fd=dir_fd)
        try:
            got = info.st_size
            if got == file.size and how != "copy" and link.clone(given, fd):
                step(file.size)
            elif got == file.size:
                got = disk.duplicate(given, fd, file.size, step, given=source, where=where)
            with translated("read", source):
                now = os.fstat(given)
            if got != file.size or (now.st_size, now.st_mtime_ns) != (info.st_size, info.st_mtime_ns):
                raise disk.mismatch(file.digest, "", source, size=file.size, got=got)
            with translated("write", where):
                os.fsync(fd)
                if frozen:
                    if hasattr(os, "fchmod"):
                        os.fchmod(fd, 0o444)  # whatever the umask is: others may share the cache
                    os.utime(fd, ns=(info.st_atime_ns, info.st_mtime_ns))
                return os.fstat(fd)
        except BaseException:
            disk.remove(name, dir_fd=dir_fd)
            raise
        finally:
            os.close(fd)
    finally:
        os.close(given)
