"""Putting a version's files into a folder that somebody named: whole, or not at all.

The files are staged beside the target, synced, and renamed into its place in one step. Where a
folder cannot be replaced (a mount point, a parent that cannot be written) they are staged inside
it and moved one by one, and a record, ``.modelhub.json``, says whether all of them are there.

What was there before is replaced only if it was placed by this module and is unchanged since, or
is right already. Everything else is in the way, and is named in the error. Nothing is written
through a link: each folder is opened by itself, relative to the one above it.

Several things may be placed into one folder. A record tells of each file what it belongs to, so that
the next version of a thing takes away what the last one left, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from attrs import evolve, frozen

from modelhub_sdk.blobs import disk, link, progress
from modelhub_sdk.blobs.disk import translated
from modelhub_sdk.blobs.progress import Watch
from modelhub_sdk.blobs.staging import Facts, Get, above, descend, listing, look, stage
from modelhub_sdk.domain import stored
from modelhub_sdk.domain.entities import File
from modelhub_sdk.errors import (
    Conflict,
    InvalidName,
    ModelHubError,
    StoreUnavailable,
    shown,
)

RECORD = ".modelhub.json"
"""The completion record inside a target that could not be replaced as a whole."""

State = Literal["right", "ours", "kept", "foreign"]

Note = tuple[Facts, str]
"""What is known of a file that we wrote, and what it was placed from: a pinned URI, or ""."""

log = logging.getLogger("modelhub_sdk")

_STAGE = ".modelhub-partial"
_STALLED = 30.0  # seconds without progress of another process after which we place as well
_FORGOTTEN = 7 * 24 * 3600.0  # seconds after which the record of a folder that is gone goes

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
    unwanted), kept (ours too, and still wanted by others) or foreign. With *overwrite* foreign files
    at wanted paths are replaced, and other foreign files stay. The plan is to be refused if it has
    something `in_the_way`.

    Raises:
        InvalidDocument: a path could lead outside of the target.
    """
    stored.check_paths(file.path for file in files)
    wanted = {file.path for file in files}
    missing = tuple(file for file in files if found.get(file.path) != "right")
    stale = tuple(sorted(path for path, state in found.items() if state == "ours" and path not in wanted))
    if exists and not missing and not stale:
        return Plan("leave")
    foreign = sorted(path for path, state in found.items() if state == "foreign")
    if foreign and not overwrite:
        return Plan("inside", in_the_way=tuple(foreign[:5]))
    if foreign or not replaceable or "kept" in found.values():
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
    known: Callable[[str], Collection[str]] | None = None,
    source: str = "",
    verify: str | None = None,
) -> Placed:
    """Make the folder *target* hold *files*, and return where it is.

    *get* returns where the verified bytes of a file lie; they are linked or copied as they are. If one
    is found to change meanwhile, *heal* is asked for it once more. *link* is "auto" (reflink, else copy; hard
    links from a cache that this user cannot write), "copy", "reflink" or "hard". *records* is a
    folder where to note what was placed, so that a later call may replace it. *watch* gets the bytes that
    will be placed, and tells whom to call as they are. *before* is called with the files that will be
    written, once it is known that the target can be used: nothing is fetched in vain. It is called again
    when what *get* named has vanished meanwhile.

    *source* is what the files belong to: a pinned URI like ``model://churn/v3``. Then only what another
    version of the same thing (``model://churn``) left is taken away; what was placed from elsewhere, or
    from the same version, stays. Without it, all that was placed before is taken away.

    *known* returns the digests that the registry holds for a path, in any version of the same thing. A
    file which is one of them counts as placed by us, also where no record is left of it: nothing is
    lost with it. Without *known* it counts as somebody else's. With ``verify="always"`` files that look
    right are read too.

    Raises:
        Conflict: something is in the way (named in the message), or changed meanwhile.
        InvalidName: *target*, *link* or *verify* cannot be used.
        InvalidDocument: a path in *files* could lead outside of *target*.
        DigestMismatch: a file's bytes are wrong and could not be healed.
        StoreUnavailable: the disk refused; the target is as it was.
    """
    how = _check_link(link)
    disk.check_verify(verify)
    stored.check_paths(file.path for file in files)  # before anything is made or fetched
    path = _checked_target(target, records)
    record_at = (
        None if records is None else Path(records, hashlib.sha256(os.fsencode(path)).hexdigest() + ".json")
    )
    reserved = [file.path for file in files if file.path.split("/")[0].startswith(".modelhub")]
    if reserved:
        raise InvalidName(
            f"{shown(reserved[0])} cannot be placed: .modelhub… names are kept for the records there.",
            hint="Resolve without into=, or leave that file out (files=…).",
        )
    job = _Job(path, tuple(files), get, heal, how, watch, overwrite, record_at, before, known, source, verify)
    _sweep(path)
    with contextlib.nullcontext() if record_at is None else _lock_file(record_at) as lock:
        if lock is not None and disk.try_lock(lock) is False:
            if _is_right(job):
                return Placed(Path(path), changed=False)
            _wait(lock, path)
        cause: BaseException | None = None
        for _ in range(5):
            try:
                return _once(job)
            except _Meanwhile as meanwhile:  # another process places here as well: look again
                cause = meanwhile.__cause__
    if cause is not None:
        raise cause
    raise Conflict(f"Somebody writes into {disk.text(path)}.", hint="Try again when they have finished.")


def _is_right(job: _Job) -> bool:
    with translated("look at", job.path):
        found = _survey(job)
        return _planned(job, found).how == "leave" and not _unnoted(job, found)


def _once(job: _Job) -> Placed:
    path = job.path
    with translated("look at", path):
        found = _survey(job)
        todo = _planned(job, found)
        if todo.how != "leave" and job.known is not None:
            found = _recognized(job, found)
            todo = _planned(job, found)
    if todo.how == "leave":
        if _unnoted(job, found):
            _note_again(job, found)
        return Placed(Path(path), changed=False)
    if todo.in_the_way:
        _check_still(path, todo.in_the_way, found)
        raise _in_the_way(path, todo.in_the_way, found.truncated)
    made = _parents(path)
    try:
        todo = _tried(job, todo, found)
        if job.before is not None:
            job.before(todo.write)
        if todo.how == "replace":
            try:
                _replace(job, found)
            except _CannotReplace:
                todo = _planned(job, found, replaceable=False)
        if todo.how == "inside":
            _inside(job, todo, found)
    except BaseException:
        _remove_empty(made)
        raise
    return Placed(Path(path), changed=True)


def _planned(job: _Job, found: _Found, *, replaceable: bool = True) -> Plan:
    return plan(
        job.files,
        found.states,
        overwrite=job.overwrite,
        replaceable=replaceable and _replaceable(job.path) and not found.empty,
        exists=found.exists,
    )


@contextlib.contextmanager
def _lock_file(record: Path) -> Iterator[int | None]:
    """Yield the file that is locked by whoever places into a folder; None where there can be none."""
    name = os.fspath(record) + ".lock"
    try:
        disk.make_dirs(os.path.dirname(name), 0o700)
        fd = os.open(name, disk.LOCK, 0o600)
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _wait(lock: int, path: str) -> None:
    """Wait while another process places into the same folder, as long as it gets on; best effort."""
    marks, since, pause = _marks(path), time.monotonic(), 0.01
    looked = since
    while disk.try_lock(lock) is False:
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)
        if time.monotonic() - looked < min(1.0, _STALLED / 2):
            continue
        looked = time.monotonic()
        now = _marks(path)
        if now != marks:
            marks, since = now, looked
        elif looked - since > _STALLED:
            log.info(
                "%s: another process places there, and put nothing there for %.0f s; it is not waited for",
                disk.text(path),
                looked - since,
            )
            return


def _marks(path: str) -> set[tuple[str, str, int]]:
    """Return how far others have come with placing into *path*."""
    found = set()
    for folder, stem in ((os.path.dirname(path), _beside(path)), (path, _STAGE)):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if disk.is_temporary(name, stem):
                    staged = listing(os.path.join(folder, name)) or {}
                    found |= {(name, inner, info.st_size) for inner, info in staged.items()}
    return found


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
    """Somebody wrote into the folder after it was looked at, or a source vanished (the cause); caught in `into`."""


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
    known: Callable[[str], Collection[str]] | None = None
    source: str = ""
    verify: str | None = None

    def stage(self, staged: str, files: Sequence[File]) -> dict[str, Facts]:
        """Put *files* into the new folder *staged*; return what the system says of them."""
        try:
            with self.watch(sum(file.size for file in files)) as step:
                return stage(staged, files, self.get, how=self.how, heal=self.heal, progress=step)
        except StoreUnavailable as error:
            # What is read vanished, if it is not what is written to: a cache is pruned at any time.
            if self.before is not None and error.errno == errno.ENOENT and os.path.isdir(staged):
                raise _Meanwhile from error
            raise


def _check_link(how: str) -> str:
    return link.check_how(how)


def _checked_target(target: str | os.PathLike[str], records: str | os.PathLike[str] | None) -> str:
    given = os.fsdecode(target)
    if not given or "\0" in given:
        raise InvalidName(f"into={shown(given)} is not a folder.", hint="Pass the path of a folder.")
    if "://" in given:
        raise InvalidName(f"into={shown(given)} is a URL.", hint="Pass a folder on this machine.")
    try:
        os.fsencode(given)
    except UnicodeEncodeError:
        raise InvalidName(
            f"into={shown(given)} cannot be the name of a folder here.",
            hint="Pass a path without surrogates.",
        ) from None
    with translated("find the working directory for", given, "Pass an absolute path."):
        path = os.path.abspath(os.path.expanduser(given))
    if records is not None:  # they lie in the cache's own folder
        cache, real = os.path.realpath(os.path.dirname(os.path.abspath(records))), os.path.realpath(path)
        if real == cache or real.startswith(cache.rstrip(os.sep) + os.sep):
            raise InvalidName(
                f"{disk.text(path)} lies in the cache, which keeps and removes there what it wants.",
                hint="Pass another folder, or leave into= out.",
            )
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
    """What is in the target: *notes* are those of its record, *empty* the empty folders that somebody else made."""

    states: dict[str, State]
    infos: dict[str, os.stat_result]
    notes: dict[str, tuple[Note, ...]]
    known: dict[str, tuple[Note, ...]]
    folders: frozenset[str] = frozenset()
    empty: frozenset[str] = frozenset()
    truncated: bool = False
    exists: bool = True

    def of(self, name: str) -> tuple[Note, ...]:
        """Return what is noted of the file *name* as it is there now."""
        return self.known.get(name, ())


def _matching(notes: Iterable[Note], info: os.stat_result) -> tuple[Note, ...]:
    if not stat.S_ISREG(info.st_mode):
        return ()
    now = info.st_size, info.st_mtime_ns, info.st_ino
    return tuple(note for note in notes if note[0][:3] == now)


def _survey(job: _Job) -> _Found:
    notes = _read_record(os.path.join(job.path, RECORD), None)
    if notes is None:
        notes = (_read_record(job.record, job.path) if job.record is not None else None) or {}
    wanted = {file.path: file for file in job.files}
    ways = {part for name in (*wanted, *notes) for part in (*above(name), name)}
    limit = 2 * len(ways) + 10_000  # a home folder, passed by mistake, is not walked through
    looked = look(job.path, limit)
    infos, folders = looked if looked is not None else ({}, set())
    truncated = len(infos) + len(folders) >= limit
    infos.pop(RECORD, None)
    infos = {name: info for name, info in infos.items() if not _is_staged(name)}
    known = {name: _matching(notes[name], info) for name, info in infos.items() if name in notes}
    states = {
        name: _state(job, name, info, wanted.get(name), known.get(name, ())) for name, info in infos.items()
    }
    used = {part for name in infos for part in above(name)}
    empty = frozenset(name for name in folders - ways - used if not _is_staged(name))
    return _Found(
        states, infos, notes, known, frozenset(folders), empty, truncated, exists=looked is not None
    )


def _state(job: _Job, name: str, info: os.stat_result, file: File | None, notes: Sequence[Note]) -> State:
    if file is None:
        if not notes:
            return "foreign"
        return "ours" if all(_is_stale(source, job.source) for _, source in notes) else "kept"
    if any(facts[3] == file.digest for facts, _ in notes):
        return "right" if job.verify is None or _hash(job.path, name) == file.digest else "ours"
    if notes:
        return "ours" if all(_is_same(source, job.source) for _, source in notes) else "foreign"
    if stat.S_ISREG(info.st_mode) and file.size == info.st_size and _hash(job.path, name) == file.digest:
        return "right"
    return "foreign"


def _is_same(one: str, other: str) -> bool:
    """Return whether two sources are versions of one thing; all data are one, as their names tell nothing."""
    return not one or not other or one.rpartition("/")[0] == other.rpartition("/")[0]


def _is_stale(placed: str, now: str) -> bool:
    """Return whether what was *placed* goes when another version of it comes; a datum has no versions."""
    if not placed or not now:
        return True
    return placed != now and _is_same(placed, now) and "://" in placed.rpartition("/")[0]


def _hash(top: str, name: str) -> str | None:
    """Return the digest of a regular file in the folder *top*, None if it cannot be had."""
    folder, _, leaf = name.rpartition("/")
    with contextlib.suppress(OSError):
        root = os.open(top, disk.DIRECTORY)
        try:
            at = descend(root, folder, make=False)
        finally:
            os.close(root)
        try:
            fd, info = disk.open_regular(disk.raw(leaf), dir_fd=at)
        finally:
            os.close(at)
        reader = disk.FdReader(fd, os.path.join(top, name))
        try:
            return disk.copy(reader, None, size=info.st_size)[0]
        finally:
            reader.close()
    return None


def _recognized(job: _Job, found: _Found) -> _Found:
    """Return *found*, where what the registry knows counts as ours though no record tells so."""
    states = dict(found.states)
    for name, state in found.states.items():
        if state != "foreign" or job.known is None or not stat.S_ISREG(found.infos[name].st_mode):
            continue
        if not found.of(name) and (digests := job.known(name)) and _hash(job.path, name) in digests:
            states[name] = "ours"
    return evolve(found, states=states)


def _unnoted(job: _Job, found: _Found) -> bool:
    """Return whether files that are right were placed by us, but from something else."""
    if not job.source:
        return False
    for file in job.files:
        notes = found.known.get(file.path, ())
        if all(source != job.source for _, source in notes):
            return True
    return False


def _note_again(job: _Job, found: _Found) -> None:
    """Note that files which are right belong to this version as well; best effort."""
    facts = {file.path: _facts(found.infos[file.path], file) for file in job.files}
    notes = _after(job, found, facts)
    inside = os.path.join(job.path, RECORD)
    if os.path.lexists(inside):
        with contextlib.suppress(OSError, ModelHubError):
            _write_record(inside, notes, whole=True)
    elif job.record is not None:
        _note(job.record, job.path, notes)


def _after(job: _Job, found: _Found, facts: Mapping[str, Facts]) -> dict[str, list[Note]]:
    """Return what is to be noted when our files have these *facts*: whose they are, and what else stays."""
    notes = {
        name: [note for note in found.of(name) if not _is_stale(note[1], job.source)]
        for name, state in found.states.items()
        if state == "kept"
    }
    for name, known in facts.items():
        others = found.of(name) if found.states.get(name) == "right" else ()
        claims = [source for _, source in others if not _is_same(source, job.source)]
        notes[name] = [(known, source) for source in (*claims, job.source)]
    return notes


def _replaceable(path: str) -> bool:
    """Return whether another folder may be put in the place of *path*, which nobody would miss."""
    try:
        info = os.lstat(path)
    except OSError:
        return True  # there is none
    return (
        not os.path.ismount(path)
        and os.access(os.path.dirname(path), os.W_OK | os.X_OK)
        and (not hasattr(os, "geteuid") or info.st_uid == os.geteuid())
        and not _stands_in(info)
    )


def _stands_in(top: os.stat_result) -> bool:
    """Return whether the working directory is the folder *top*, or lies in it: it would be a deleted one."""
    try:
        at = os.getcwd()
    except OSError:
        return False  # it is a deleted one
    while True:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(at), top):
                return True
        if os.path.dirname(at) == at:
            return False
        at = os.path.dirname(at)


# --------------------------------------------------------------------------- the folder as a whole


def _parents(path: str) -> list[str]:
    """Make the folders above *path*; return those that were missing, innermost first."""
    missing = []
    at = os.path.dirname(path)
    while not os.path.lexists(at):
        missing.append(at)
        at = os.path.dirname(at)
    try:
        with translated("make the folder", os.path.dirname(path)):
            disk.make_dirs(os.path.dirname(path))
    except BaseException:
        _remove_empty(missing)
        raise
    return missing


def _remove_empty(folders: Iterable[str]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _tried(job: _Job, todo: Plan, found: _Found) -> Plan:
    """Return what can be done of *todo*, after trying whether the target can be written to: before all is fetched."""
    if todo.how == "replace":
        trial = os.path.join(os.path.dirname(job.path), disk.temporary(_beside(job.path)) + ".partial")
        try:
            with _cannot(job.path):
                os.mkdir(trial)
                try:
                    _like(trial, job.path)
                finally:
                    os.rmdir(trial)
            return todo
        except _CannotReplace:
            todo = _planned(job, found, replaceable=False)
    with translated("write to", job.path):
        root = os.open(job.path, disk.DIRECTORY)
        try:
            _check_ways(root, job.path, todo.write)
            name = disk.temporary(_STAGE) + ".partial"
            os.mkdir(name, dir_fd=root)
            os.rmdir(name, dir_fd=root)
        finally:
            os.close(root)
    return todo


def _like(folder: str, path: str) -> None:
    """Give *folder*, which comes in the place of *path*, its group and permissions, if there is one."""
    try:
        old = os.lstat(path)
    except FileNotFoundError:
        return
    new = os.lstat(folder)
    if old.st_gid != new.st_gid:
        os.chown(folder, -1, old.st_gid)
    if stat.S_IMODE(old.st_mode) != stat.S_IMODE(new.st_mode):
        os.chmod(folder, stat.S_IMODE(old.st_mode))


def _replace(job: _Job, found: _Found) -> None:
    parent = os.path.dirname(job.path)
    staged = os.path.join(parent, disk.temporary(_beside(job.path)) + ".partial")
    try:
        facts = job.stage(staged, job.files)
        with _cannot(job.path):
            _like(staged, job.path)
        after = _after(job, found, facts)
        if job.record is not None:  # old and new files are known as ours, whenever we are killed
            _note(job.record, job.path, _both(found, after))
        with translated("replace", job.path):
            _swap(staged, job.path, found)
            disk.fsync_dir(parent)
        if job.record is not None:
            _note(job.record, job.path, after)
    finally:
        if os.path.lexists(staged):
            disk.remove_tree(staged)


def _both(found: _Found, after: Mapping[str, Sequence[Note]]) -> dict[str, list[Note]]:
    """Return what is known of the files that are there, and of those that come."""
    both = {path: list(notes) for path, notes in found.notes.items() if path in found.infos}
    for path, notes in after.items():
        both[path] = list(dict.fromkeys((*both.get(path, ()), *notes)))
    return both


@contextlib.contextmanager
def _cannot(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in _CANNOT_REPLACE and os.path.isdir(path):
            raise _CannotReplace from exc
        if exc.errno == errno.ENOENT and os.path.isdir(os.path.dirname(path)):
            exc = PermissionError(errno.EACCES, "")  # a place like /proc, where nothing can be made
        raise disk.unavailable(exc, "make the folder", path) from exc


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
        good = False
        try:
            good = _unchanged(staged, found)
        finally:  # also after Ctrl-C: what somebody wrote meanwhile is never thrown away
            if not good:
                exchange(staged, path)
        if not good:
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
    """Return whether everything in *folder* was *found* there."""
    infos, folders = look(folder) or ({}, set())
    return all(
        name in found.infos and _is_as(found.infos[name], info)
        for name, info in infos.items()
        if name != RECORD and not _is_staged(name)
    ) and all(name in found.folders or _is_staged(name) for name in folders)


def _is_as(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_ino, one.st_mtime_ns) == (other.st_ino, other.st_mtime_ns)


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
        facts = job.stage(staged, todo.write)
        for file in job.files:
            if file.path not in facts:
                facts[file.path] = _facts(found.infos[file.path], file)
        _check_ways(root, job.path, todo.write)
        with translated("write to", job.path):
            _check_unchanged(root, (*(file.path for file in todo.write), *todo.remove), found)
            after = _after(job, found, facts)
            _write_record(record, _both(found, after), whole=False)
            stage_fd = os.open(staged, disk.DIRECTORY)
            try:
                _all_of(
                    *(partial(_move, stage_fd, root, file.path, facts[file.path][2]) for file in todo.write),
                    *(partial(_take_away, root, path) for path in todo.remove),
                    lambda: disk.fsync_dir(root),
                    lambda: _write_record(record, after, whole=True),
                )
            finally:
                os.close(stage_fd)
    finally:
        os.close(root)
        if os.path.lexists(staged):
            disk.remove_tree(staged)


def _all_of(*steps: Callable[[], object]) -> None:
    """Take all *steps*, each of which may be taken twice; Ctrl-C between them is raised when they are done.

    They take milliseconds, and between them stands a mixture of two versions.
    """
    held: BaseException | None = None
    waiting = list(reversed(steps))
    while waiting:
        try:
            waiting[-1]()
            waiting.pop()
        except Exception:
            raise
        except BaseException as interrupt:  # noqa: BLE001 - raised below
            held = interrupt
    if held is not None:
        raise held


def _check_still(path: str, names: Iterable[str], found: _Found) -> None:
    """Raise `_Meanwhile` if *names* in the folder *path* are no longer as they were *found*: another process is at it."""
    try:
        root = os.open(path, disk.DIRECTORY)
        try:
            _check_unchanged(root, names, found)
        finally:
            os.close(root)
    except OSError as exc:
        raise _Meanwhile from disk.unavailable(exc, "look at", path)


def _check_unchanged(root: int, names: Iterable[str], found: _Found) -> None:
    """Raise `_Meanwhile` if one of *names* is no longer what was *found*: somebody wrote it while we staged."""
    for name in names:
        folder, _, leaf = name.rpartition("/")
        now = None
        with contextlib.suppress(FileNotFoundError):
            fd = descend(root, folder, make=False)
            try:
                now = os.stat(disk.raw(leaf), dir_fd=fd, follow_symlinks=False)
            finally:
                os.close(fd)
        then = found.infos.get(name)
        if (now is None) != (then is None) or (
            now is not None and then is not None and not _is_as(now, then)
        ):
            raise _Meanwhile


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


def _move(stage_fd: int, root: int, path: str, inode: int) -> None:
    folder, _, leaf = path.rpartition("/")
    source = descend(stage_fd, folder, make=False)
    try:
        target = descend(root, folder, make=True)
        try:
            try:
                os.replace(disk.raw(leaf), disk.raw(leaf), src_dir_fd=source, dst_dir_fd=target)
            except FileNotFoundError:
                if os.stat(disk.raw(leaf), dir_fd=target, follow_symlinks=False).st_ino != inode:
                    raise  # else it was moved already, before an interruption
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
    path: str, notes: Mapping[str, Sequence[Note]], *, whole: bool, target: str | None = None
) -> None:
    files = {name: [list(facts) for facts, _ in notes[name]] for name in sorted(notes)}
    sources = {
        name: [source for _, source in notes[name]] for name in files if any(one[1] for one in notes[name])
    }
    body = {"format": 1, "whole": whole, "target": target, "files": files, "sources": sources}
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


def _read_record(path: str | os.PathLike[str], target: str | None) -> dict[str, tuple[Note, ...]] | None:
    """Return what a record knows, or None if there is none that can be used. Older ones tell no sources."""
    try:
        fd, _ = disk.open_regular(os.fspath(path))
    except OSError:
        return None
    try:
        with os.fdopen(fd, "rb") as file:
            body: Any = json.loads(file.read(256 << 20))
        if body["format"] != 1 or body["target"] != target:
            return None
        sources = body.get("sources", {})
        return {
            str(name): tuple(
                ((int(s), int(m), int(i), str(d)), str(source))
                for (s, m, i, d), source in zip(facts, sources.get(name, [""] * len(facts)), strict=True)
            )
            for name, facts in body["files"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _note(record: Path, target: str, notes: Mapping[str, Sequence[Note]]) -> None:
    """Remember what was placed; failing to only means that it counts as somebody else's later."""
    with contextlib.suppress(OSError, ModelHubError):
        disk.make_dirs(os.fspath(record.parent), 0o700)
        _write_record(os.fspath(record), notes, whole=True, target=target)


def forget(records: str | os.PathLike[str], *, age: float = _FORGOTTEN) -> int:
    """Remove from *records* those of folders that are gone, when *age* seconds old, and locks that nobody holds.

    Returns how many were removed. Never raises OSError. A folder that comes back is merely somebody else's then.
    """
    count = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(records):
            path = os.path.join(records, name)
            with contextlib.suppress(OSError):
                if name.endswith(".lock"):
                    gone = _is_free(path)
                else:
                    old = abs(time.time() - os.lstat(path).st_mtime) >= age  # also after the clock went back
                    target = _target_of(path) if old and name.endswith(".json") else None
                    gone = target is not None and not os.path.lexists(target)
                if gone:
                    os.unlink(path)
                    count += 1
    return count


def _is_free(lock: str) -> bool:
    fd = os.open(lock, disk.LOCK)
    try:
        return disk.try_lock(fd) is True
    finally:
        os.close(fd)


def _target_of(record: str) -> str | None:
    """Return the folder that a record is about, from its beginning: it may be long."""
    fd, _ = disk.open_regular(record)
    try:
        found = _HEAD.match(os.read(fd, 1 << 16))
    finally:
        os.close(fd)
    return None if found is None else str(json.loads(found[1]))


_HEAD = re.compile(rb'\{"format":1,"whole":(?:true|false),"target":("(?:[^"\\]|\\.)*")')


__all__ = ["RECORD", "Placed", "Plan", "exchange", "forget", "into", "listing", "plan", "stage"]
