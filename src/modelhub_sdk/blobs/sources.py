"""What users hand over to be stored: found, checked, and opened so that nothing can be swapped.

`collect` turns a path, a folder, a list, or a mapping of paths to paths, bytes, file objects and
URLs into an ordered tuple of `Source`. Only regular files are stored. Links are resolved once,
while listing; each file is later opened under its real path without following links, and must be
the very file (device and inode) that was listed.
"""

from __future__ import annotations

import errno
import fnmatch
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import unquote

from attrs import field, frozen

from modelhub_sdk.blobs.disk import READ, FdReader, Reader, text, translated, unavailable, unraw
from modelhub_sdk.blobs.readers import StreamReader
from modelhub_sdk.domain.names import check_path, check_paths
from modelhub_sdk.errors import (
    Conflict,
    InvalidDocument,
    InvalidName,
    InvalidURI,
    ModelHubError,
    NotAllowed,
    NotFound,
    shown,
)
from modelhub_sdk.hidden import hidden, revealed, shielded

MAX_FILES = 1_000_000
"""A folder with more files is refused: it is a mistake, or a maze of links."""

Own = Callable[[str, "str | None", bool], Sequence["Source"]]
"""Returns the files that a URI of the registry itself names; see `own_sources`."""

_OWN = ("model://", "dataset://", "datum://")

Refused = Callable[[str, ModelHubError], object]


@frozen
class Source:
    """One file to be stored: its path in the version, and how to get at its bytes.

    `size` is in bytes, None where it is not known before reading; `origin` is what messages call it.
    """

    path: str
    origin: str
    size: int | None
    _opener: Callable[[], Reader] = field(eq=False, repr=False)
    repeatable: bool = True
    """Whether it can be opened twice (a file can, a file object may not)."""
    held: bool = False
    """Whether its bytes are in memory."""
    stored: str | None = None
    """The digest under which the store that it goes to has its bytes already."""

    def open(self) -> Reader:
        """Return a reader of the bytes.

        Raises:
            NotFound, NotAllowed, Conflict: it is gone, unreadable, or another file by now.
        """
        return self._opener()


@frozen
class Sources(Sequence[Source]):
    """What `collect` found, ordered by path; a sequence of `Source`."""

    items: tuple[Source, ...]

    @property
    def total(self) -> int:
        """The bytes of all sources together, as far as sizes are known."""
        return sum(source.size or 0 for source in self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Source]:
        return iter(self.items)


def collect(
    files: Any,
    *,
    ignore: Iterable[str] | str = (),
    forbidden: Iterable[str | os.PathLike[str]] = (),
    inside: str | os.PathLike[str] | None = None,
    refused: Refused | None = None,
    storage_options: Mapping[str, Any] | Callable[[str], Mapping[str, Any]] | None = None,
    own: Own | None = None,
) -> Sources:
    """Return the sources that *files* names, checked and ordered by path.

    *files* is a path to a file (stored under its own name) or to a folder (its content), a URL, a
    list of those (a folder in a list keeps its name), or a mapping from the path in the version
    to a path, URL, bytes, or binary file object. *ignore* holds patterns of what to leave out:
    ``*.tmp`` matches in any folder, ``logs/`` a whole folder, ``a/b*`` a path from the top.

    Nothing under the *forbidden* paths is ever taken (the registry's own database and
    artifacts). With *inside* a link that leads out of that folder is refused. *refused* is
    called with the path and the error of each file that cannot be taken, and the others go on;
    without it the first one is raised. *storage_options* are for the drivers of URLs, or return those of a URL.
    *own* returns the sources of ``model://``, ``dataset://`` and ``datum://`` URIs; without it those are refused.

    Raises:
        NotFound: a file does not exist, or a link leads nowhere.
        NotAllowed: a file may not be read, is the registry's own, or lies outside *inside*.
        InvalidDocument: not a regular file (FIFO, device, socket), a loop of links, too many files.
        InvalidName: a path that cannot stand in a version, or an argument of another type.
    """
    files = hidden(files)

    def take() -> None:
        collector.take(revealed(files))

    collector = _Collector(
        ignore=(ignore,) if isinstance(ignore, str) else tuple(ignore),
        forbidden=_Forbidden(forbidden),
        inside=None if inside is None else os.path.realpath(os.fsencode(inside)),
        refused=refused,
        options_of=storage_options if callable(storage_options) else lambda _: storage_options or {},
        own=own,
    )
    shielded(take, ModelHubError)  # a URL among the files may hold a password
    found = sorted(collector.found, key=lambda source: source.path)
    check_paths([source.path for source in found])
    return Sources(tuple(found))


class _Forbidden:
    """The registry's own files: recognised by place and by identity, whatever link leads there."""

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self._real = [os.path.realpath(os.fsencode(path)) for path in paths]
        self._same: set[tuple[int, int]] = set()
        for path in self._real:
            try:
                info = os.stat(path)
            except OSError:
                continue
            self._same.add((info.st_dev, info.st_ino))

    def __contains__(self, item: tuple[bytes, os.stat_result]) -> bool:
        real, info = item
        if (info.st_dev, info.st_ino) in self._same:
            return True
        for path in self._real:
            if real == path or real.startswith(path + os.fsencode(os.sep)):
                return True
            if real in (path + b"-wal", path + b"-shm", path + b"-journal"):  # SQLite's companions
                return True
        return False


class _Collector:
    def __init__(
        self,
        *,
        ignore: tuple[str, ...],
        forbidden: _Forbidden,
        inside: bytes | None,
        refused: Refused | None,
        options_of: Callable[[str], Mapping[str, Any]],
        own: Own | None,
    ) -> None:
        self.found: list[Source] = []
        self._ignore = ignore
        self._forbidden = forbidden
        self._inside = inside
        self._refused = refused
        self._options_of = options_of
        self._own = own

    # ---- what was given

    def take(self, files: Any) -> None:
        if isinstance(files, Mapping):
            for path, item in files.items():
                self._named(path, item)
        elif isinstance(files, (str, os.PathLike)):
            self._path(files, prefix=None)
        elif isinstance(files, (bytes, bytearray, memoryview)) or hasattr(files, "read"):
            raise InvalidName(
                "Bytes and file objects have no name in the version.",
                hint='Pass {"model.pkl": data}: the path in the version, and what to store there.',
            )
        elif isinstance(files, Iterable):
            for item in files:
                if not isinstance(item, (str, os.PathLike)):
                    raise InvalidName(
                        f"A list of files holds paths; {shown(item)} is none.",
                        hint='Pass {"model.pkl": data} for bytes and file objects.',
                    )
                self._path(item, prefix="")
        else:
            raise InvalidName(
                f"files is {shown(files)}.",
                hint="Pass a path, a folder, a list of them, or {path in the version: path, bytes or file}.",
            )

    def _named(self, path: Any, item: Any) -> None:
        name = check_path(path)
        if isinstance(item, (bytes, bytearray, memoryview)):
            data = bytes(item)
            self._keep(Source(name, name, len(data), lambda: StreamReader(io.BytesIO(data), name), held=True))
        elif isinstance(item, (str, os.PathLike)):
            self._path(item, prefix=None, name=name)
        elif hasattr(item, "read"):
            stream = item
            self._keep(Source(name, name, None, lambda: StreamReader(stream, name), repeatable=False))
        else:
            raise InvalidName(
                f"The source of {shown(name)} is {shown(item)}.",
                hint="Pass a path, a URL, bytes or a binary file object.",
            )

    def _path(self, item: Any, *, prefix: str | None, name: str | None = None) -> None:
        given = os.fspath(item)
        if isinstance(given, bytes):
            given = os.fsdecode(given)
        if "\0" in given or not given:
            raise InvalidName(
                f"{shown(given)} is not a path of a file.", hint="Pass the path of a file or a folder."
            )
        if "://" in given:
            return self._url(given, name, in_list=prefix is not None)
        start = os.fsencode(os.path.abspath(given))
        try:
            real, info = self._resolve(start, given)
            if stat.S_ISDIR(info.st_mode):
                base = (
                    name if name is not None else ("" if prefix is None else unraw(os.path.basename(start)))
                )
                self._folder(real, info, base)
            else:
                self._file(real, info, name if name is not None else unraw(os.path.basename(start)))
        except ModelHubError as exc:
            self._refuse(given, exc)

    # ---- the walk

    def _folder(self, real: bytes, info: os.stat_result, base: str) -> None:
        # Iterative, for any depth. Each entry knows the chain of real folders above it: a link back
        # to one of them is a loop, a second link to a folder elsewhere is not.
        stack: list[tuple[bytes, str, frozenset[tuple[int, int]]]]
        stack = [(real, base, frozenset({(info.st_dev, info.st_ino)}))]
        while stack:
            folder, prefix, above = stack.pop()
            try:
                with os.scandir(folder) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError as exc:
                self._refuse(prefix or text(folder), _unreadable(exc, folder))
                continue
            for entry in listed:
                name = unraw(entry.name)
                path = f"{prefix}/{name}" if prefix else name
                inner = path[len(base) + 1 :] if base else path
                try:
                    if self._ignored(inner, entry):
                        continue
                    place, found = self._resolve(os.path.join(folder, entry.name), path, entry)
                    if not stat.S_ISDIR(found.st_mode):
                        self._file(place, found, path)
                        continue
                    identity = (found.st_dev, found.st_ino)
                    if identity in above:
                        raise InvalidDocument(
                            f"{shown(path)} is a link back to a folder above it: an endless loop.",
                            hint="Remove the link, or name it in ignore=[…].",
                        )
                    stack.append((place, path, above | {identity}))
                except ModelHubError as exc:
                    self._refuse(path, exc)

    def _resolve(
        self, path: bytes, label: str, entry: os.DirEntry[bytes] | None = None
    ) -> tuple[bytes, os.stat_result]:
        """Return the real path (no link in it) and the stat of what is there; refuse what leads astray."""
        real = path
        try:
            if entry is not None and not entry.is_symlink():
                info = entry.stat(follow_symlinks=False)
            else:
                real = os.path.realpath(path, strict=True)
                info = os.lstat(real)
        except OSError as exc:
            raise _unreadable(exc, label, link=os.path.islink(path)) from exc
        if (real, info) in self._forbidden:
            raise NotAllowed(
                f"{shown(label)} belongs to this registry itself (its database, journal or artifacts).",
                hint="Keep the registry outside the folder that you register, or name it in ignore=[…].",
            )
        if self._inside is not None and not (real + b"/").startswith(self._inside.rstrip(b"/") + b"/"):
            raise NotAllowed(
                f"{shown(label)} is a link that leaves the folder of outputs.",
                hint="Copy the file into the outputs, or register it by itself.",
            )
        return real, info

    def _file(self, real: bytes, info: os.stat_result, path: str) -> None:
        if not stat.S_ISREG(info.st_mode):
            raise InvalidDocument(
                f"{shown(path)} is {_kind(info.st_mode)}; only regular files can be stored.",
                hint="Name it in ignore=[…], or pass the files one by one.",
            )
        name = check_path(path)
        identity = (info.st_dev, info.st_ino)
        self._keep(Source(name, unraw(real), info.st_size, lambda: _FileReader(real, identity, name)))

    def _url(self, url: str, name: str | None, *, in_list: bool) -> None:
        from modelhub_sdk.blobs.driver import without_secrets
        from modelhub_sdk.blobs.objects import url_state
        from modelhub_sdk.blobs.web import web_source

        scheme, mark, rest = url.partition("://")
        url = scheme.lower() + mark + rest
        if url.startswith(_OWN):
            if self._own is None:
                raise InvalidURI(f"{shown(url, 300)} cannot be used here.", hint="Pass a path, or bytes.")
            for source in self._own(url, name, in_list):
                self._keep(source)
            return
        path = check_path(name_in(url) if name is None else name)
        where = without_secrets(url)
        if url.startswith(("http://", "https://")):
            self._keep(Source(path, where, None, web_source(url), repeatable=False))
            return
        state = url_state(url, self._options_of(url))
        self._keep(Source(path, where, state.size, lambda: state.open(0)))

    def _keep(self, source: Source) -> None:
        self.found.append(source)
        if len(self.found) > MAX_FILES:
            raise InvalidDocument(
                f"There are more than {MAX_FILES} files.", hint="Register a smaller folder."
            )

    def _ignored(self, path: str, entry: os.DirEntry[bytes]) -> bool:
        name = path.rpartition("/")[2]
        for pattern in self._ignore:
            bare = pattern.rstrip("/")
            if pattern.endswith("/") and not entry.is_dir():
                continue
            if fnmatch.fnmatchcase(path if "/" in bare else name, bare):
                return True
        return False

    def _refuse(self, path: str, exc: ModelHubError) -> None:
        if self._refused is None:
            raise exc
        self._refused(path, exc)


def _kind(mode: int) -> str:
    for test, word in (
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISLNK, "a link"),
        (stat.S_ISDIR, "a folder"),
    ):
        if test(mode):
            return word
    return "not a regular file"


def _unreadable(exc: OSError, where: object, *, link: bool = False) -> ModelHubError:
    name = text(where)
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        if link:
            return NotFound(
                f"{name} is a link that leads nowhere.", hint="Remove the link, or restore its target."
            )
        return NotFound(
            f"There is no file or folder {name}.", hint="Check the path and the working directory."
        )
    if exc.errno == errno.ELOOP:
        return InvalidDocument(
            f"{name} is a loop of links.", hint="Remove the link, or name it in ignore=[…]."
        )
    if exc.errno in (errno.EACCES, errno.EPERM):
        return NotAllowed(f"{name} may not be read by this user.", hint="Check its permissions.")
    return unavailable(exc, "read", where)


# --------------------------------------------------------------------------- readers


class _FileReader(FdReader):
    """A regular file that must be the one that was listed, and must not change while it is read."""

    def __init__(self, real: bytes, identity: tuple[int, int], path: str) -> None:
        try:
            fd = os.open(real, READ)
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                raise self._replaced(path) from exc
            raise _unreadable(exc, real) from exc
        super().__init__(fd, real)
        self._path = path
        try:
            self._before = os.fstat(fd)
            if (
                not stat.S_ISREG(self._before.st_mode)
                or (self._before.st_dev, self._before.st_ino) != identity
            ):
                raise self._replaced(path)
        except BaseException:
            self.close()
            raise
        self._read = 0

    @staticmethod
    def _replaced(path: str) -> Conflict:
        return Conflict(
            f"{shown(path)} was replaced by another file while it was being registered.",
            hint="Register again when the writer has finished.",
        )

    def readinto(self, view: memoryview) -> int:
        if self._read > self._before.st_size:
            raise self._changed()
        got = super().readinto(view)
        self._read += got
        return got

    def finish(self) -> None:
        with translated("read", self._where):
            after = os.fstat(self._fd)
        before = self._before
        same = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        if not same or self._read != before.st_size:
            raise self._changed()

    def _changed(self) -> Conflict:
        return Conflict(
            f"{shown(self._path)} changed while it was read (it had {self._before.st_size} bytes at first).",
            hint="Register again when the writer has finished.",
        )


def name_in(url: str) -> str:
    """Return the name of the file that *url* ends with: decoded where it is one of the web."""
    name = url.partition("?")[0].partition("#")[0].rstrip("/").rpartition("/")[2]
    return unquote(name) if url.lower().startswith(("http://", "https://")) else name


def from_bytes(data: bytes, path: str = "document") -> Source:
    """Return *data* as a source."""
    return Source(path, path, len(data), lambda: StreamReader(io.BytesIO(data), path), held=True)


def from_file(path: str | os.PathLike[str], name: str | None = None) -> Source:
    """Return the regular file *path* as a source, called *name* in the version; errors as in `collect`."""
    return cast(Source, collect({name or os.path.basename(os.fspath(path)): path})[0])


__all__ = [
    "MAX_FILES",
    "Source",
    "Sources",
    "collect",
    "from_bytes",
    "from_file",
    "name_in",
]
