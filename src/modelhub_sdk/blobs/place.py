"""Putting a version's files into a folder that somebody named: whole, or not at all.

The files are staged beside the target, synced, and renamed into its place in one step. Where a
folder cannot be replaced (a mount point, a parent that cannot be written) they are staged inside
it and moved one by one, and a record, ``.modelhub.json``, says whether all of them are there.

What was there before is replaced only if it was placed by this module and is unchanged since, or
is right already. Everything else is in the way, and is named in the error. Nothing is written
through a link: each folder is opened by itself, relative to the one above it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from modelhub_sdk.blobs import disk, link, progress
from modelhub_sdk.blobs.disk import translated
from modelhub_sdk.blobs.progress import Watch
from modelhub_sdk.blobs.staging import Facts, Get, above, descend, listing, stage
from modelhub_sdk.domain.entities import File
from modelhub_sdk.errors import (
    Conflict,
    InvalidName,
    ModelHubError,
    NotFound,
    StoreUnavailable,
    shown,
)

RECORD = ".modelhub.json"
"""The completion record inside a target that could not be replaced as a whole."""

State = Literal["right", "ours", "foreign"]

_STAGE = ".modelhub-partial"
_PATIENCE = 600.0  # seconds to wait for another process that places into the same folder

_CANNOT_REPLACE = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)


@frozen
class Plan:
    """What will be done with a target; a pure value, made by `plan`.

    `how` is "leave" (all is right), "replace" (the folder as a whole) or "inside" (file by file);
    `write` are the files to put there, `remove` the paths of an earlier placing to take away, and
    `in_the_way` the paths that somebody else put there (the first ones).
    """

    how: Literal["leave", "replace", "inside"]
    write: tuple[File, ...] = ()
    remove: tuple[str, ...] = ()
    in_the_way: tuple[str, ...] = ()


@frozen
class Placed:
    """Where the files stand, and whether anything had to be `changed` for it."""

    path: Path
    changed: bool


def plan(
    files: Sequence[File],
    found: Mapping[str, State],
    *,
    overwrite: bool = False,
    replaceable: bool = True,
    exists: bool = True,
) -> Plan:
    """Return what to do with a target that holds *found*, so that it holds *files*.

    *found* tells of every path there whether it is right, ours (placed earlier, unchanged, now
    unwanted) or foreign. With *overwrite* foreign files at wanted paths are replaced, and other
    foreign files stay. The plan is to be refused if it has something `in_the_way`.
    """
    wanted = {file.path for file in files}
    missing = tuple(file for file in files if found.get(file.path) != "right")
    stale = tuple(sorted(path for path, state in found.items() if state == "ours" and path not in wanted))
    if exists and not missing and not stale:
        return Plan("leave")
    foreign = sorted(path for path, state in found.items() if state == "foreign")
    if foreign and not overwrite:
        return Plan("inside", in_the_way=tuple(foreign[:5]))
    if foreign or not replaceable:
        return Plan("inside", write=missing, remove=stale)
    return Plan("replace", write=tuple(files))


def into(
    target: str | os.PathLike[str],
    files: Sequence[File],
    get: Get,
    *,
    link: str = "auto",
    overwrite: bool = False,
    records: str | os.PathLike[str] | None = None,
    heal: Get | None = None,
    watch: Watch = progress.unwatched,
    before: Callable[[Sequence[File]], object] | None = None,
) -> Placed:
    """Make the folder *target* hold *files*, and return where it is.

    *get* returns where the verified bytes of a file lie; they are linked or copied as they are. If one
    is found to change meanwhile, *heal* is asked for it once more. *link* is "auto" (reflink, else copy; hard
    links from a cache that this user cannot write), "copy", "reflink" or "hard". *records* is a
    folder where to note what was placed, so that a later call may replace it. *watch* gets the bytes that
    will be placed, and tells whom to call as they are. *before* is called with the files that will be
    written, once it is known that the target can be used: nothing is fetched in vain.

    Raises:
        Conflict: something is in the way (named in the message), or changed meanwhile.
        InvalidName: *target* or *link* cannot be used.
        DigestMismatch: a file's bytes are wrong and could not be healed.
        StoreUnavailable: the disk refused; the target is as it was.
    """
    how = _check_link(link)
    path = _checked_target(target)
    record_at = (
        None if records is None else Path(records, hashlib.sha256(os.fsencode(path)).hexdigest() + ".json")
    )
    reserved = [file.path for file in files if file.path.split("/")[0].startswith(".modelhub")]
    if reserved:
        raise InvalidName(
            f"{shown(reserved[0])} cannot be placed: .modelhub… names are kept for the records there.",
            hint="Resolve without into=, or leave that file out (files=…).",
        )
    job = _Job(path, tuple(files), get, heal, how, watch, overwrite, record_at, before)
    _sweep(path)
    with contextlib.nullcontext() if record_at is None else _turn(record_at):
        for _ in range(5):
            with contextlib.suppress(_Meanwhile):  # another process places here as well: look again
                return _once(job)
    raise Conflict(f"Somebody writes into {disk.text(path)}.", hint="Try again when they have finished.")


def _once(job: _Job) -> Placed:
    path, files = job.path, job.files
    with translated("look at", path):
        found = _survey(path, files, job.record)
        todo = plan(
            files, found.states, overwrite=job.overwrite, replaceable=_replaceable(path), exists=found.exists
        )
    if todo.how == "leave":
        return Placed(Path(path), changed=False)
    if todo.in_the_way:
        raise _in_the_way(path, todo.in_the_way, found.truncated)
    if job.before is not None:
        job.before(todo.write)
    made = _parents(path)
    try:
        if todo.how == "replace":
            try:
                _replace(job, found)
            except _CannotReplace:
                todo = plan(files, found.states, overwrite=job.overwrite, replaceable=False)
        if todo.how == "inside":
            _inside(job, todo, found)
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        raise
    return Placed(Path(path), changed=True)


@contextlib.contextmanager
def _turn(record: Path) -> Iterator[None]:
    """Wait while another process places into the same folder; best effort, and not for ever."""
    name = os.fspath(record) + ".lock"
    try:
        disk.make_dirs(os.path.dirname(name), 0o700)
        fd = os.open(name, disk.LOCK, 0o600)
    except OSError:
        yield
        return
    try:
        end, pause = time.monotonic() + _PATIENCE, 0.01
        while disk.try_lock(fd) is False and time.monotonic() < end:
            time.sleep(pause)
            pause = min(pause * 1.5, 0.25)
        yield
    finally:
        os.close(fd)


def _sweep(path: str) -> None:
    """Remove what killed processes left beside and inside *path*."""
    disk.sweep(os.path.dirname(path), stem=_beside(path))
    disk.sweep(path, stem=_STAGE)


def _beside(path: str) -> str:
    """Return the stem of our names beside *path*; with what `disk.temporary` adds it is no longer than a name may be."""
    name = os.path.basename(path)[:60]
    while len(os.fsencode(name)) > 60:
        name = name[:-1]
    return "." + name


def _is_staged(name: str) -> bool:
    """Return whether *name*, a path in the target, is or lies in what we stage there."""
    return disk.is_temporary(name.partition("/")[0], _STAGE)


class _Meanwhile(Exception):
    """Somebody wrote into the folder after it was looked at; caught in `into`."""


class _CannotReplace(Exception):
    """The folder cannot be replaced as a whole; caught in `into`."""


@frozen
class _Job:
    path: str
    files: tuple[File, ...]
    get: Get
    heal: Get | None
    how: str
    watch: Watch
    overwrite: bool
    record: Path | None
    before: Callable[[Sequence[File]], object] | None = None

    def stage(self, staged: str, files: Sequence[File]) -> dict[str, Facts]:
        """Put *files* into the new folder *staged*; return what the system says of them."""
        with self.watch(sum(file.size for file in files)) as step:
            return stage(staged, files, self.get, how=self.how, heal=self.heal, progress=step)


def _check_link(how: str) -> str:
    return link.check_how(how)


def _checked_target(target: str | os.PathLike[str]) -> str:
    given = os.fsdecode(target)
    if not given or "\0" in given:
        raise InvalidName(f"into={shown(given)} is not a folder.", hint="Pass the path of a folder.")
    if "://" in given:
        raise InvalidName(f"into={shown(given)} is a URL.", hint="Pass a folder on this machine.")
    path = os.path.abspath(os.path.expanduser(given))
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return path
    except OSError as exc:
        raise disk.unavailable(exc, "look at", path) from exc
    if stat.S_ISLNK(info.st_mode):
        raise Conflict(
            f"{disk.text(path)} is a symbolic link, which is not written through.",
            hint="Pass the folder that it leads to, or remove the link.",
        )
    if not stat.S_ISDIR(info.st_mode):
        raise Conflict(
            f"{disk.text(path)} exists and is not a folder.", hint="Pass a folder, or remove that file."
        )
    return path


def _in_the_way(path: str, names: Sequence[str], more: bool) -> Conflict:
    listed = ", ".join(disk.text(disk.raw(name)) for name in names) + (
        " …" if more or len(names) >= 5 else ""
    )
    return Conflict(
        f"{disk.text(path)} holds files that are in the way: {listed}.",
        hint="Pass an empty or new folder, or overwrite=True: it replaces files of the same names only.",
    )


# --------------------------------------------------------------------------- what is there


@frozen
class _Found:
    states: dict[str, State]
    infos: dict[str, os.stat_result]
    facts: dict[str, tuple[Facts, ...]]
    truncated: bool = False
    exists: bool = True


def _survey(path: str, files: Sequence[File], record_at: Path | None) -> _Found:
    recorded = _read_record(os.path.join(path, RECORD), None) or (
        {} if record_at is None else _read_record(record_at, path) or {}
    )
    limit = (
        len(files) * 2 + len(recorded) * 2 + 10_000
    )  # a home folder, passed by mistake, is not walked through
    listed = listing(path, limit)
    infos = listed or {}
    truncated = len(infos) >= limit
    infos.pop(RECORD, None)
    infos = {name: info for name, info in infos.items() if not _is_staged(name)}
    wanted = {file.path: file for file in files}
    states: dict[str, State] = {}
    for name, info in infos.items():
        states[name] = _state(path, name, info, wanted.get(name), recorded.get(name, ()))
    return _Found(states, infos, recorded, truncated, exists=listed is not None)


def _state(path: str, name: str, info: os.stat_result, file: File | None, facts: tuple[Facts, ...]) -> State:
    if not stat.S_ISREG(info.st_mode):
        return "foreign"
    for size, mtime, inode, digest in facts:
        if (size, mtime, inode) == (info.st_size, info.st_mtime_ns, info.st_ino):
            return "right" if file is not None and file.digest == digest else "ours"
    if file is not None and file.size == info.st_size:
        with contextlib.suppress(NotFound, StoreUnavailable):
            if disk.hash_file(os.path.join(os.fsencode(path), disk.raw(name)))[0] == file.digest:
                return "right"
    return "foreign"


def _replaceable(path: str) -> bool:
    return (
        not os.path.ismount(path) and os.access(os.path.dirname(path), os.W_OK | os.X_OK)
    ) or not os.path.exists(path)


# --------------------------------------------------------------------------- the folder as a whole


def _parents(path: str) -> list[str]:
    """Make the folders above *path*; return those that were missing, innermost first."""
    missing = []
    at = os.path.dirname(path)
    while not os.path.lexists(at):
        missing.append(at)
        at = os.path.dirname(at)
    with translated("make the folder", os.path.dirname(path)):
        disk.make_dirs(os.path.dirname(path))
    return missing


def _replace(job: _Job, found: _Found) -> None:
    parent = os.path.dirname(job.path)
    staged = os.path.join(parent, disk.temporary(_beside(job.path)) + ".partial")
    try:
        with _cannot(job.path):
            os.mkdir(staged)  # tried by itself: whether the parent can be written at all
            os.rmdir(staged)
        facts = job.stage(staged, job.files)
        if job.record is not None:  # old and new files are known as ours, whenever we are killed
            _note(job.record, job.path, _both(found, facts))
        with translated("replace", job.path):
            _swap(staged, job.path, found)
            disk.fsync_dir(parent)
        if job.record is not None:
            _note(job.record, job.path, {path: [known] for path, known in facts.items()})
    finally:
        if os.path.lexists(staged):
            disk.remove_tree(staged)


def _both(found: _Found, facts: Mapping[str, Facts]) -> dict[str, list[Facts]]:
    """Return what is known of the files that are there, and of those that come."""
    both = {path: list(known) for path, known in found.facts.items() if path in found.infos}
    for path, known in facts.items():
        both.setdefault(path, []).append(known)
    return both


@contextlib.contextmanager
def _cannot(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in _CANNOT_REPLACE and os.path.isdir(path):
            raise _CannotReplace from exc
        raise disk.unavailable(exc, "write beside", path) from exc


def _swap(staged: str, path: str, found: _Found) -> None:
    """Put *staged* in the place of *path*, whose content was *found*; what was there is left at *staged*."""
    try:
        os.rename(staged, path)  # nothing there, or an empty folder
        return
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            if exc.errno in _CANNOT_REPLACE and os.path.isdir(path):
                raise _CannotReplace from exc
            raise
    if exchange(staged, path):
        if not _unchanged(staged, found):
            exchange(staged, path)
            raise _Meanwhile
        return
    aside = staged.removesuffix(".partial") + "-old.partial"
    try:
        os.rename(path, aside)
    except OSError as exc:
        if exc.errno in _CANNOT_REPLACE:
            raise _CannotReplace from exc
        raise
    try:
        if not _unchanged(aside, found):
            raise _Meanwhile
        os.rename(staged, path)
    except BaseException:
        os.rename(aside, path)
        raise
    os.rename(aside, staged)


def _unchanged(folder: str, found: _Found) -> bool:
    now = listing(folder) or {}
    now.pop(RECORD, None)
    before = found.infos
    return all(
        name in before and (info.st_ino, info.st_mtime_ns) == (before[name].st_ino, before[name].st_mtime_ns)
        for name, info in now.items()
        if not _is_staged(name)
    )


def exchange(one: str, other: str) -> bool:
    """Swap two paths in one step; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_cwd, swap = -100, 2
    return bool(call(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), swap) == 0)


# --------------------------------------------------------------------------- file by file


def _inside(job: _Job, todo: Plan, found: _Found) -> None:
    staged = os.path.join(job.path, disk.temporary(_STAGE) + ".partial")
    record = os.path.join(job.path, RECORD)
    with translated("write to", job.path):
        root = os.open(job.path, disk.DIRECTORY)
    try:
        _check_ways(root, job.path, todo.write)
        facts = job.stage(staged, todo.write)
        for file in job.files:
            if file.path not in facts:
                facts[file.path] = _facts(found.infos[file.path], file)
        with translated("write to", job.path):
            _write_record(record, _both(found, facts), whole=False)
            stage_fd = os.open(staged, disk.DIRECTORY)
            try:
                for file in todo.write:
                    _move(stage_fd, root, file.path)
            finally:
                os.close(stage_fd)
            for path in todo.remove:
                _take_away(root, path)
            disk.fsync_dir(root)
            _write_record(record, {path: [known] for path, known in facts.items()}, whole=True)
    finally:
        os.close(root)
        if os.path.lexists(staged):
            disk.remove_tree(staged)


def _facts(info: os.stat_result, file: File) -> Facts:
    return info.st_size, info.st_mtime_ns, info.st_ino, file.digest


def _check_ways(root: int, path: str, files: Iterable[File]) -> None:
    """Refuse, before anything is staged, a link or file in place of a folder, and the reverse."""
    for file in files:
        for part in (*above(file.path), file.path):
            folder, _, leaf = part.rpartition("/")
            try:
                fd = descend(root, folder, make=False)
            except FileNotFoundError:
                break
            except OSError as exc:
                raise _in_the_way(path, (folder,), False) from exc
            try:
                mode = os.stat(disk.raw(leaf), dir_fd=fd, follow_symlinks=False).st_mode
            except FileNotFoundError:
                break
            except OSError as exc:
                raise disk.unavailable(exc, "look at", os.path.join(path, part)) from exc
            finally:
                os.close(fd)
            if stat.S_ISDIR(mode) == (part == file.path):
                raise _in_the_way(path, (part,), False)


def _move(stage_fd: int, root: int, path: str) -> None:
    folder, _, leaf = path.rpartition("/")
    source = descend(stage_fd, folder, make=False)
    try:
        target = descend(root, folder, make=True)
        try:
            os.replace(disk.raw(leaf), disk.raw(leaf), src_dir_fd=source, dst_dir_fd=target)
            if folder:
                disk.fsync_dir(target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _take_away(root: int, path: str) -> None:
    """Remove a file of an earlier placing, and folders that it leaves empty."""
    folder, _, leaf = path.rpartition("/")
    with contextlib.suppress(FileNotFoundError):
        fd = descend(root, folder, make=False)
        try:
            os.unlink(disk.raw(leaf), dir_fd=fd)
        finally:
            os.close(fd)
    while folder:
        above, _, leaf = folder.rpartition("/")
        try:
            fd = descend(root, above, make=False)
            try:
                os.rmdir(disk.raw(leaf), dir_fd=fd)
            finally:
                os.close(fd)
        except OSError:
            return
        folder = above


# --------------------------------------------------------------------------- records


def _write_record(
    path: str, facts: Mapping[str, Sequence[Facts]], *, whole: bool, target: str | None = None
) -> None:
    body = {
        "format": 1,
        "whole": whole,
        "target": target,
        "files": {name: [list(f) for f in facts[name]] for name in sorted(facts)},
    }
    temporary = os.path.join(os.path.dirname(path), disk.temporary(_STAGE) + ".partial")
    fd = disk.create(temporary, 0o644)
    try:
        try:
            disk.write_all(fd, json.dumps(body, separators=(",", ":")).encode("ascii"))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        disk.remove(temporary)
        raise
    disk.fsync_dir(os.path.dirname(path))


def _read_record(path: str | os.PathLike[str], target: str | None) -> dict[str, tuple[Facts, ...]] | None:
    """Return what a record knows, or None if there is none that can be used."""
    try:
        fd, _ = disk.open_regular(os.fspath(path))
    except OSError:
        return None
    try:
        with os.fdopen(fd, "rb") as file:
            body: Any = json.loads(file.read(256 << 20))
        if body["format"] != 1 or body["target"] != target:
            return None
        return {
            str(name): tuple((int(s), int(m), int(i), str(d)) for s, m, i, d in facts)
            for name, facts in body["files"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _note(record: Path, target: str, facts: Mapping[str, Sequence[Facts]]) -> None:
    """Remember what was placed; failing to only means that it counts as somebody else's later."""
    with contextlib.suppress(OSError, ModelHubError):
        disk.make_dirs(os.fspath(record.parent), 0o700)
        _write_record(os.fspath(record), facts, whole=True, target=target)


__all__ = ["RECORD", "Placed", "Plan", "exchange", "into", "listing", "plan", "stage"]
