"""``model://``, ``dataset://`` and ``datum://`` as read-only fsspec file systems, found by entry point.

::

    fsspec.open("model://customer-churn/latest/model.pkl")
    pandas.read_parquet("dataset://clicks/v7/part-0.parquet")
    fsspec.filesystem("model").ls("customer-churn/v1")

Which registry: the storage option ``registry`` (a URL, or an open `Registry`), else the default one. A name
that moves is pinned when something is opened; what is open goes on with its version. One call that touches
many files (`get`, `cat`, `glob` …) sees one version. What is opened is recorded as a use, at most once an hour
for each version, open registry and process (and run), and as an input of the run that is on.

Bytes: a file that is in the cache is read from there. Otherwise one of at most 64 MB is fetched as a whole when it
is opened, verified as `resolve` does it; for a part of it by `cat_file` or `cat_ranges`, one of at most 4 MB. Of all
others only the ranges that are asked for are fetched. A part of a file cannot be verified; when a file is
read from its first byte to its last, its digest is compared at the end. What is kept by reference, where its bytes can
change, is always fetched as a whole.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from typing import Any, ClassVar, ParamSpec, TypeVar
from urllib.parse import unquote_to_bytes

from attrs import frozen
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.utils import tokenize

from modelhub_sdk import active, hub, resolver, surroundings
from modelhub_sdk.blobs import disk
from modelhub_sdk.core import Core
from modelhub_sdk.domain import names, stored
from modelhub_sdk.domain.entities import Datum, File, Resolved
from modelhub_sdk.domain.uri import DatasetURI, DatumURI, ModelURI, quote_path
from modelhub_sdk.errors import (
    InvalidName,
    InvalidURI,
    ModelHubError,
    NoApprovedVersion,
    NotAllowed,
    NotApproved,
    NotFound,
    Offline,
    Purged,
    nearest,
    shown,
)
from modelhub_sdk.index import data
from modelhub_sdk.registry import Registry
from modelhub_sdk.stores.opening import connect

__all__ = [
    "DatasetFileSystem",
    "DatumFileSystem",
    "IsFolder",
    "ModelFileSystem",
    "NoSuchFile",
    "NothingApproved",
    "ReadOnly",
]

WHOLE = 64 << 20
"""Bytes up to which a file that is opened is fetched as a whole, into the cache: it is verified before its first
byte is handed out, and the next reader has it here. About a second from an object store, whose single
stream brings some 100 MB/s."""

PART = 4 << 20
"""Bytes up to which the whole file is fetched for a part of it: they travel in about the time of one more request."""

_AGAIN = 3600.0  # seconds after which a use that goes on is recorded again
_FILES = 200_000  # files in the trees that this process remembers
_FIXED = 8  # fixed versions that one call remembers; all names that move are remembered
_KEPT = 4  # registries that were opened by URL and stay open, so that a loop does not open one for each file
_OUT_OF_REACH = 30.0  # seconds after which a registry that was out of reach is tried again
_TRIES = 4

_OPTIONS = frozenset(
    {
        "add_aliases",
        "add_docs",
        "asynchronous",
        "batch_size",
        "listings_expiry_time",
        "loop",
        "max_paths",
        "skip_instance_cache",
        "use_listings_cache",
    }
)
"""Options that fsspec itself gives any file system."""


class NoSuchFile(NotFound, FileNotFoundError):
    """There is no such file or folder, as callers of fsspec expect to be told."""


class NothingApproved(NoApprovedVersion, FileNotFoundError):
    """`latest` was asked of a model that has no approved version, as callers of fsspec expect to be told."""


class IsFolder(NotFound, IsADirectoryError):
    """What was to be opened is a folder."""


class ReadOnly(NotAllowed, NotImplementedError):
    """What is registered never changes."""


P = ParamSpec("P")
T = TypeVar("T")
_NOTHING = (NotFound, InvalidURI, InvalidName)  # there is no such thing, and with such a name never will be


@frozen
class _Tree:
    """The files of a pinned version as folders: path -> file, and folder -> names in it."""

    pinned: resolver.Pinned
    files: dict[str, File]
    folders: dict[str, dict[str, bool]]

    @classmethod
    def of(cls, pinned: resolver.Pinned) -> _Tree:
        """Return the tree of a version.

        Raises:
            InvalidDocument: a path could lead outside of it.
        """
        stored.check_paths(file.path for file in pinned.files)
        folders: dict[str, dict[str, bool]] = {"": {}}
        for file in pinned.files:
            parts = file.path.split("/")
            for depth, part in enumerate(parts):
                here = folders.setdefault("/".join(parts[:depth]), {})
                here[part] = here.get(part, False) or depth < len(parts) - 1
        return cls(pinned, {file.path: file for file in pinned.files}, folders)


class _Pins(threading.local):
    """What names mean within one call on this thread, and in which registry; nothing is remembered between calls."""

    on = False
    registry: Registry | None = None

    def __init__(self) -> None:
        self.moving: dict[str, _Tree] = {}
        self.fixed: dict[str, _Tree] = {}

    def get(self, uri: str) -> _Tree | None:
        """Return what *uri* meant earlier in this call."""
        return self.moving.get(uri) or self.fixed.get(uri)

    def put(self, uri: str, tree: _Tree) -> None:
        """Remember what *uri* means, until the call ends."""
        if not self.on:
            return
        if uri != tree.pinned.version.uri:
            self.moving[uri] = tree
            return
        while len(self.fixed) >= _FIXED:  # a walk over everything must not hold everything
            self.fixed.pop(next(iter(self.fixed)))
        self.fixed[uri] = tree

    @contextmanager
    def one_call(self, moving: dict[str, _Tree] | None = None) -> Iterator[None]:
        """Within the block, and the blocks in it, a name that moves means one version.

        A call that is interrupted passes the same *moving* each time: what such names mean in it.
        """
        if self.on:
            yield
            return
        self.on = True
        self.moving = {} if moving is None else moving
        try:
            yield
        finally:
            self.on, self.registry = False, None
            self.moving, self.fixed = {}, {}


def _as_one(method: Callable[P, T]) -> Callable[P, T]:
    """Return *method* such that it asks one registry, and sees one version of each name that moves."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        fs: Any = args[0]
        with fs._pins.one_call():
            return method(*args, **kwargs)

    return call


class _FileSystem(AbstractFileSystem):  # type: ignore[misc]
    """What the three have in common.

    Args:
        registry: a registry's URL, or an open `Registry`; None: the default one, whenever something is read.
        storage_options: for the fsspec driver of the registry that *registry* is the URL of.
        cache_dir: the cache for it, if not that of this user.
        options: what fsspec gives any file system.

    Pickled, it carries the URL of its registry (of the default one, if there is one by then) without the password in
    it, and these options. In the process that pickled it, it has the same open registry again.

    Raises:
        InvalidName: an option that is unknown here, or cannot be used.
    """

    root_marker = ""
    cachable = False  # the default registry may be another one next time
    kind: ClassVar[str] = ""

    def __init__(
        self,
        registry: Any = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        self._check_options(registry, {"storage_options": storage_options, "cache_dir": cache_dir}, options)
        super().__init__(**options)
        self._given = registry
        self._opening = {"storage_options": storage_options, "cache_dir": cache_dir}
        self._mine: tuple[int, Registry] | None = None
        self._pins = _Pins()

    def _check_options(self, registry: Any, opening: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        if not (registry is None or isinstance(registry, (str, os.PathLike, Registry))):
            raise InvalidName(
                f"registry={shown(registry)} is no registry.", hint="Pass its URL, or an open one."
            )
        if "stale_ok" in options:
            raise InvalidName(
                f"stale_ok= is for resolve; {self.kind}:// does not take it.",
                hint="Open files of the folder that reg.resolve(uri, stale_ok=...) returns; a fixed version that"
                " was resolved before needs no registry.",
            )
        known = ["registry", *opening]
        for one in options.keys() - _OPTIONS:
            near = nearest(one, known)
            raise InvalidName(
                f"{shown(one)} is no option of {self.kind}://.",
                hint=f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}.",
            )
        for name, value in opening.items():
            if value is not None and not isinstance(registry, (str, os.PathLike)):
                raise InvalidName(
                    f"{name}= is for a registry that is opened here.",
                    hint="Pass the URL of one as registry=.",
                )

    def __reduce__(self) -> Any:
        options, same = dict(self.storage_options), ("", "")
        found = self._given if isinstance(self._given, Registry) else None
        if self._given is None:
            found = hub.existing()
        elif found is None:
            options["registry"] = self._given
        if found is not None:
            core = found._core
            options["registry"] = core.url
            options |= {"storage_options": dict(core.options)} if core.options else {}
            options |= {"cache_dir": os.fspath(core.cache_dir)} if core.cache_dir is not None else {}
            same = core.registry_id, core.url
            _pickled[same] = found
        return _again, (type(self), options, same)

    @property
    def _fs_token(self) -> str:
        """What tells file systems apart: two are equal that read the same registry with the same options."""
        given = self._given
        which = given.__dask_tokenize__() if isinstance(given, Registry) else given and os.fspath(given)
        others = {name: value for name, value in self.storage_options.items() if name != "registry"}
        return str(tokenize(self.kind, which, sorted(others.items())))

    # --- paths -----------------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """Return the path of a URL: decoded once where it is one of our URIs, else as it is."""
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = os.fspath(path)
        start = f"{cls.kind}://"
        if text.startswith(start):
            raw = unquote_to_bytes(text.removeprefix(start))
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                raise InvalidURI(f"The percent-encoded bytes of {shown(text, 200)} are not UTF-8.") from None
        elif "://" in text:
            raise InvalidURI(f"{shown(text, 200)} is no {cls.kind}:// URL.")
        return text.strip("/")

    def unstrip_protocol(self, name: str) -> str:
        """Return the URI of a path."""
        return f"{self.kind}://{quote_path(self._strip_protocol(name))}"

    # --- the registry ----------------------------------------------------------------------------

    @property
    def registry(self) -> Registry:
        """The registry that is read."""
        found = self._pins.registry
        if found is None:
            found = self._which()
            if self._pins.on:  # one that is out of reach is not tried several times by one call
                self._pins.registry = found
        return found

    def _which(self) -> Registry:
        if isinstance(self._given, Registry):
            return self._given
        if self._given is None:
            return hub.default(create=False)
        mine = self._mine
        if mine is None or mine[0] != os.getpid() or not _is_usable(mine[1]):
            mine = self._mine = os.getpid(), _opened(os.fspath(self._given), self._opening)
        return mine[1]

    def _split(self, path: str) -> tuple[Any, str]:
        """Return what a path names: the URI of a version, or None above that, and the path in the version."""
        if "//" in path:
            raise NoSuchFile(f"{shown(f'{self.kind}://{path}')} has a part without a name.", nearest=())
        name, _, rest = path.partition("/")
        version, _, inner = rest.partition("/")
        return (self._version(name, version), inner) if version else (None, "")

    def _version(self, name: str, version: str) -> Any:
        """Return the URI of a version, or of what a moving name means."""
        raise NotImplementedError

    def _above(self, parts: list[str]) -> list[str]:
        """Return what stands in a folder above versions."""
        raise NotImplementedError

    def _tree(self, uri: Any) -> _Tree:
        """Return the files of what *uri* means: now, or since this call began."""
        known = self._pins.get(str(uri))
        if known is not None:
            return known
        core = self.registry._core
        try:
            pinned = resolver.pinned(core, uri)
        except NotFound as error:
            raise self._missing(error) from None
        tree = _tree_of(core.registry_id, pinned)
        self._pins.put(str(uri), tree)
        return tree

    def _missing(self, error: NotFound) -> NotFound:
        kind = NothingApproved if isinstance(error, NoApprovedVersion) else NoSuchFile
        return kind(error.message, hint=f"{error.hint} {self._where()}".strip(), **error.facts)

    def _where(self) -> str:
        return f"The registry is {shown(self.registry._core.url, 200)}."

    def _without(self, tree: _Tree, what: str, path: str) -> NoSuchFile:
        """Return the error for a file or folder that a version does not have."""
        if not tree.files:  # of a large version that was purged, not even their names are left
            resolver.check_purged(tree.pinned, ())
        some = f"{resolver.some(list(tree.files))} " if tree.files else ""
        return NoSuchFile(
            f"{tree.pinned.version.uri} has no {what} {shown(path)}.", hint=some + self._where(), nearest=()
        )

    def _is_a_folder(self, path: str) -> IsFolder:
        return IsFolder(
            f"{shown(f'{self.kind}://{path}', 200)} is a folder.", hint="Open one of its files.", nearest=()
        )

    def _found(self, path: str) -> tuple[_Tree, File, Any]:
        """Return the file that *path* names."""
        stripped = self._strip_protocol(path)
        uri, inner = self._split(stripped)
        if uri is not None:
            tree = self._tree(uri)
            if isinstance(tree.pinned.version, Datum) and not inner:
                (inner,) = tree.files
            if inner in tree.files:
                resolver.check_purged(tree.pinned, (tree.files[inner],))
                return tree, tree.files[inner], uri
            if inner in tree.folders:
                raise self._is_a_folder(stripped)
            raise self._without(tree, "file", inner)
        if self.isdir(stripped):
            raise self._is_a_folder(stripped)
        raise NoSuchFile(
            f"{shown(f'{self.kind}://{stripped}')} names no file.", hint=self._where(), nearest=()
        )

    def _use(self, tree: _Tree, file: File, uri: Any) -> None:
        """Record that the version is used, as the module says how often; and as an input of the run."""
        version = tree.pinned.version
        registry = self.registry
        run = active.current()
        if run is not None:
            run.resolved(
                Resolved(
                    uri=version.uri,
                    path=file.path,
                    files=(file.path,),
                    version=version,
                    as_of=tree.pinned.as_of,
                ),
                str(uri),
                registry.id,
            )
        noted, now = registry._core.noted, time.monotonic()
        key = (os.getpid(), version.uri, active.run_id())
        last = noted.setdefault(key, now)
        if last is not now:
            if now - last < _AGAIN:
                return
            noted[key] = now
        resolver.record_use(registry._core, uri, tree.pinned)

    # --- looking -----------------------------------------------------------------------------------

    def _entry(self, name: str, tree: _Tree, inner: str) -> dict[str, Any]:
        file = tree.files.get(inner)
        version = tree.pinned.version.uri
        if file is None:
            return {"name": name, "size": 0, "type": "directory", "version": version}
        return {
            "name": name,
            "size": file.size,
            "type": "file",
            "digest": file.digest,
            "version": version,
        }

    @_as_one
    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """Return what stands in a folder: models (or datasets), their versions, the files of a version.

        Raises:
            NotFound: there is no such thing; it is a FileNotFoundError too.
            Purged: of the version even the list of its files is gone.
        """
        stripped = self._strip_protocol(path)
        uri, inner = self._split(stripped)
        if uri is None:
            parts = stripped.split("/") if stripped else []
            found = [
                {"name": "/".join([*parts, one]), "size": 0, "type": "directory"}
                for one in self._above(parts)
            ]
            if self.kind == "datum":
                found = [self.info(one) for one in self._above(parts)]
        else:
            tree = self._tree(uri)
            single = tree.files.get(inner) if inner else None
            if isinstance(tree.pinned.version, Datum):
                found = [self.info(stripped)]
            elif single is not None:
                found = [self._entry(stripped, tree, inner)]
            elif inner in tree.folders and (tree.files or not tree.pinned.gone_otherwise):
                found = [
                    self._entry(f"{stripped}/{name}", tree, f"{inner}/{name}" if inner else name)
                    for name in sorted(tree.folders[inner])
                ]
            else:
                raise self._without(tree, "folder", inner)
        return found if detail else [one["name"] for one in found]

    @_as_one
    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Return name, size in bytes and type; of a file also its digest, and the URI of the version it is of.

        Raises:
            NotFound: there is no such thing; it is a FileNotFoundError too.
        """
        stripped = self._strip_protocol(path)
        uri, inner = self._split(stripped)
        if uri is None:
            self._above(stripped.split("/") if stripped else [])
            return {"name": stripped, "size": 0, "type": "directory"}
        tree = self._tree(uri)
        if isinstance(tree.pinned.version, Datum):
            (inner,) = tree.files
        if inner not in tree.files and inner not in tree.folders:
            raise self._without(tree, "file", inner)
        return self._entry(stripped, tree, inner)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Return whether there is such a file, folder, version or model.

        Raises:
            NotFound: there is no registry.
            NotApproved, Purged: there is such a version, and it may not be read, or is gone.
            StoreUnavailable: the registry did not answer.
        """
        return self._type(path) is not None

    def isdir(self, path: str) -> bool:
        """Return whether there is such a folder, version or model; raises as `exists` does."""
        return self._type(path) == "directory"

    def isfile(self, path: str) -> bool:
        """Return whether there is such a file; raises as `exists` does."""
        return self._type(path) == "file"

    @_as_one
    def _type(self, path: str) -> str | None:
        """Return "file" or "directory", or None where there is nothing. Whatever else goes wrong is raised."""
        _ = self.registry  # that there is none, is no answer about a path
        try:
            return str(self.info(path)["type"])
        except _NOTHING:
            return None

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: Any = "omit",
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Yield ``(folder, folders in it, files in it)`` for a folder and all below, as `os.walk` does.

        By default a folder that does not exist is left out, and above versions also a version that may not be
        read. Every other error is raised: a registry that does not answer is no empty folder.

        Args:
            path: where to begin.
            maxdepth: how many levels.
            topdown: a folder before what is in it, or after.
            on_error: "omit"; "raise"; or a function that is called with the error.
            kwargs: for `ls`; with ``detail=True`` the names come with what `info` says.
        """
        _ = self.registry
        above = kwargs.pop("above", False)  # this version was met on the way, and not asked for
        moving: dict[str, _Tree] = {}
        try:
            deeper = self._split(self._strip_protocol(path))[0] is None
        except _NOTHING:
            deeper = False
        inner = super().walk(path, maxdepth, topdown, "raise", above=deeper, **kwargs)
        while True:
            try:
                # What is done with the files that are yielded, is no part of this call.
                with self._pins.one_call(moving):
                    found = next(inner, None)
            except (OSError, ModelHubError) as error:
                if on_error == "raise":
                    raise
                if callable(on_error):
                    on_error(error)
                elif not isinstance(error, _NOTHING) and not (
                    above and isinstance(error, (NotApproved, Purged))
                ):
                    raise
                return
            if found is None:
                return
            yield found

    cat = _as_one(AbstractFileSystem.cat)
    cat_ranges = _as_one(AbstractFileSystem.cat_ranges)
    du = _as_one(AbstractFileSystem.du)
    expand_path = _as_one(AbstractFileSystem.expand_path)
    find = _as_one(AbstractFileSystem.find)
    get = _as_one(AbstractFileSystem.get)
    glob = _as_one(AbstractFileSystem.glob)

    @_as_one
    def checksum(self, path: str) -> str:
        """Return what changes when the content does: the sha256 of a file, ``sha256:<hex>``, or of a version's manifest.

        Of any other folder it is made of what `info` says.
        """
        found = self.info(path)
        if found["type"] == "file":
            return str(found["digest"])
        uri, inner = self._split(self._strip_protocol(path))
        return str(tokenize(found) if uri is None or inner else self._tree(uri).pinned.version.digest)

    ukey = checksum

    @_as_one
    def modified(self, path: str) -> datetime:
        """Return when the version was made that the file or folder is of (aware UTC): it never changes after that.

        Raises:
            NotFound: there is no such thing, or it is above versions.
        """
        stripped = self._strip_protocol(path)
        found = self.info(stripped)
        uri, _ = self._split(stripped)
        if uri is None:
            raise IsFolder(f"{shown(found['name'])} is above versions, and has no time.", nearest=())
        return self._tree(uri).pinned.version.created_at

    created = modified

    # --- reading -----------------------------------------------------------------------------------

    @_as_one
    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        if mode != "rb":
            raise self._read_only()
        for name in ("size", "digest"):  # of a file that was pickled
            kwargs.pop(name, None)
        tree, file, uri = self._found(path)
        self._use(tree, file, uri)
        fixed = self._fixed(path, tree)
        local = self._here(tree, file, WHOLE)
        if local is not None:
            size = block_size if isinstance(block_size, int) else AbstractBufferedFile.DEFAULT_BLOCK_SIZE
            return _LocalFile(local, self, fixed, self._entry(fixed, tree, file.path), size)
        return _RangedFile(
            self,
            fixed,
            mode,
            block_size or "default",
            cache_options=cache_options,
            size=file.size,
            digest=file.digest,
            **kwargs,
        )

    def _fixed(self, path: str, tree: _Tree) -> str:
        """Return the path with the version that it means now, so that a file which is opened again is the same."""
        _, inner = self._split(self._strip_protocol(path))
        fixed = str(tree.pinned.version.uri).removeprefix(f"{self.kind}://")
        return f"{fixed}/{inner}" if inner else fixed

    def _is_whole(self, file: File, bound: int) -> bool:
        """Return whether *file* is fetched as a whole, into the cache, and not in ranges."""
        return file.size <= bound or not self.registry._core.artifacts().in_parts(file.digest)

    def _local(self, tree: _Tree, file: File, bound: int) -> str | None:
        """Return where the verified bytes lie on this disk: there already, or fetched now. None: read ranges."""
        core = self.registry._core
        cache = core.cache()
        found = cache.get(file.digest, file.size)
        if found is None and (core.blobs is None or tree.pinned.offline):
            raise Offline(
                f"{shown(file.path)} of {tree.pinned.version.uri} is not in the cache, and"
                f" {shown(core.url, 200)} cannot be reached.",
                hint="Resolve it once while the registry can be reached.",
            )
        if found is None and self._is_whole(file, bound):
            with cache.lease([file]):
                found = cache.fetch_all([file], core.artifacts())[file.digest]
        return None if found is None else os.fspath(found)

    def _here(self, tree: _Tree, file: File, bound: int) -> io.BufferedReader | None:
        """Return the open file of this disk; None as `_local`. Another process may prune it before it is open."""
        for _ in range(_TRIES):
            local = self._local(tree, file, bound)
            if local is None:
                return None
            with disk.translated("read", local):
                try:
                    return open(local, "rb")
                except FileNotFoundError:
                    continue
        return None

    @_as_one
    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Return the bytes of a file, or those from *start* to before *end*; negative ones count from its end.

        Raises:
            NotFound: there is no such file.
            DigestMismatch: all of it was asked for, and it is not what was registered.
        """
        tree, file, uri = self._found(path)
        first, last, _ = slice(start, end).indices(file.size)
        self._use(tree, file, uri)
        whole = (first, last) == (0, file.size)
        local = self._here(tree, file, WHOLE if whole else min(PART, WHOLE))
        if local is not None:
            with local:
                local.seek(first)
                return local.read(max(0, last - first))
        if whole:
            return self.registry._core.artifacts().read(file.digest)
        return self.registry._core.artifacts().read_range(file.digest, first, max(first, last))

    @_as_one
    def get_file(
        self,
        rpath: str,
        lpath: Any = None,
        callback: Any = DEFAULT_CALLBACK,
        outfile: Any = None,
        **kwargs: Any,
    ) -> None:
        """Copy a file here, verified; *lpath* appears whole or not at all.

        Given an open file to write to, as *lpath* or *outfile*, it writes piece by piece; a large file
        that is not in the cache is then verified by its last piece.

        Raises:
            NotFound: there is no such file.
            DigestMismatch, StoreUnavailable: nothing was written under *lpath*.
        """
        to = outfile if outfile is not None else lpath
        if hasattr(to, "write"):
            with self.open(rpath) as source:
                callback.set_size(source.size)
                while piece := source.read(disk.CHUNK):
                    to.write(piece)
                    callback.relative_update(len(piece))
            return
        if self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        tree, file, uri = self._found(rpath)
        self._use(tree, file, uri)
        callback.set_size(file.size)
        folder = os.path.dirname(os.path.abspath(lpath))
        os.makedirs(folder, exist_ok=True)
        staged = os.path.join(folder, disk.temporary(".modelhub"))
        core = self.registry._core
        local = self._here(tree, file, WHOLE)
        with disk.translated("write", lpath), local or nullcontext():
            try:
                if local is None:
                    core.artifacts().fetch(file.digest, file.size, staged, progress=callback.relative_update)
                else:
                    _copied(local, staged, file, callback.relative_update)
                os.replace(staged, lpath)
            except BaseException:
                disk.remove(staged)
                raise

    # --- what is not possible ------------------------------------------------------------------------

    def _read_only(self, *_: Any, **__: Any) -> ReadOnly:
        return ReadOnly(
            f"{self.kind}:// is read-only: what is registered never changes.",
            hint='Store files as a new version: reg.register("name", files).',
        )

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise self._read_only()

    mkdir = makedirs = rmdir = rm_file = _rm = rm = cp_file = mv = put_file = put = pipe_file = pipe = (
        touch
    ) = _refuse
    copy = move = rename = delete = upload = write_bytes = write_text = start_transaction = _refuse


class _RangedFile(AbstractBufferedFile):  # type: ignore[misc]
    """A large file of which only what is read is fetched; checked when it was read from start to end."""

    def __init__(
        self, fs: _FileSystem, path: str, mode: str, block_size: Any, *, digest: str, **kwargs: Any
    ) -> None:
        # Those of now: the default registry may become another one.
        self._blobs = fs.registry._core.artifacts()
        super().__init__(fs, path, mode, block_size, digest=digest, **kwargs)
        self._digest = digest
        self._hasher = hashlib.sha256()
        self._hashed = 0

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._blobs.read_range(self._digest, start, end)

    def read(self, length: int = -1) -> bytes:
        """Return up to *length* bytes.

        Raises:
            DigestMismatch: by these bytes all of the file was read, and it is another one.
        """
        at = self.loc
        found: bytes = super().read(length)
        # Readers of lines go back to where the line ended, others to the start: what was hashed is not hashed again.
        new = memoryview(found)[self._hashed - at :] if at <= self._hashed else b""
        if new:
            self._hasher.update(new)
            self._hashed += len(new)
        if self._hashed == self.size and f"sha256:{self._hasher.hexdigest()}" != self._digest:
            error = disk.mismatch(self._digest, f"sha256:{self._hasher.hexdigest()}", self.path)
            error.hint = (
                "Do not use what was read of it before. Restore that file in the store from a backup,"
                " or register it again."
            )
            raise error
        return found


class _LocalFile(io.BufferedReader):
    """A file of the cache, with what a file of fsspec has beside its bytes."""

    def __init__(
        self, opened: io.BufferedReader, fs: _FileSystem, path: str, details: dict[str, Any], blocksize: int
    ) -> None:
        super().__init__(opened.detach())
        self.fs = fs
        self.path = path
        self.details = details
        self.size: int = details["size"]
        self.blocksize = blocksize

    @property
    def closed(self) -> bool:
        """Whether it is closed; fsspec's own caches set it, too."""
        return super().closed

    @closed.setter
    def closed(self, wanted: bool) -> None:
        if wanted:
            io.BufferedReader.close(self)

    def close(self) -> None:
        """Close it, and what a cache of fsspec put beside it, as its own files do."""
        cache = self.__dict__.pop("cache", None)
        if hasattr(cache, "close"):
            cache.close()
        super().close()

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)

    def info(self) -> dict[str, Any]:
        """Return what `info` of the file system says of this version's file."""
        return self.details

    def __reduce__(self) -> Any:
        return _reopened, (self.fs, self.path, self.blocksize, self.tell())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__reduce__()


class ModelFileSystem(_FileSystem):
    """``model://<name>/<selector>/<path>``: models, their versions, their files."""

    protocol = kind = "model"

    def _version(self, name: str, version: str) -> ModelURI:
        return ModelURI.parse(f"model://{quote_path(name)}/{version}")

    def _above(self, parts: list[str]) -> list[str]:
        with self.registry._core.view() as view:
            if not parts:
                return view.model_names()
            name = names.check_name(parts[0])
            if not view.has_model(name):
                raise NoSuchFile(f"There is no model {shown(name)}.", hint=self._where(), nearest=())
            return [f"v{number}" for number in view.numbers(name)]


class DatasetFileSystem(_FileSystem):
    """``dataset://<name>/<version>/<path>``: datasets, their versions, their files."""

    protocol = kind = "dataset"

    def _version(self, name: str, version: str) -> DatasetURI:
        return DatasetURI(name, version)

    def _above(self, parts: list[str]) -> list[str]:
        with self.registry._core.view() as view:
            if not parts:
                return data.dataset_names(view)
            if not data.has_dataset(view, names.check_name(parts[0], "dataset name")):
                raise NoSuchFile(f"There is no dataset {shown(parts[0])}.", hint=self._where(), nearest=())
            return data.version_names(view, parts[0])


class DatumFileSystem(_FileSystem):
    """``datum://<id or alias>``: single files; the root lists the aliases."""

    protocol = kind = "datum"

    def _split(self, path: str) -> tuple[Any, str]:
        if "/" in path:
            raise NoSuchFile(f"{shown(f'datum://{path}')} names no datum.", nearest=())
        return (DatumURI(path), "") if path else (None, "")

    def _above(self, parts: list[str]) -> list[str]:
        with self.registry._core.view() as view:
            return sorted(data.datum_aliases(view))


# --- what this process remembers ------------------------------------------------------------------------

_Registries = weakref.WeakValueDictionary[tuple[Any, ...], Registry]
_pickled = _Registries()  # by id and URL
_sharing = _Registries()  # opened by URL
_registries: dict[tuple[Any, ...], Registry] = {}  # of those, the ones that were used last
_tried: weakref.WeakKeyDictionary[Registry, float] = weakref.WeakKeyDictionary()  # when it was opened
_trees: dict[tuple[Any, ...], _Tree] = {}
_locks: dict[tuple[Any, ...], threading.RLock] = {}


def _alone(*what: Any) -> threading.RLock:
    """Return the lock of what is remembered, or of *what*; a forked child has its own."""
    return _locks.setdefault((os.getpid(), *what), threading.RLock())


def _again(kind: type[_FileSystem], options: dict[str, Any], same: tuple[str, str]) -> _FileSystem:
    """Return an instance that was pickled; *same* are id and URL of its registry, which may be open here."""
    found = _pickled.get(same)
    if found is not None and not found._core.closed:
        others = {k: v for k, v in options.items() if k not in ("storage_options", "cache_dir")}
        return kind(**{**others, "registry": found})
    return kind(**options)


def _reopened(fs: _FileSystem, path: str, blocksize: int, at: int) -> Any:
    """Return a file that was pickled, at its place."""
    file = fs.open(path, block_size=blocksize)
    file.seek(at)
    return file


def _is_usable(registry: Registry) -> bool:
    """Return whether an open registry can be read; one that was out of reach is tried again after a while."""
    core = registry._core
    return not core.closed and (
        core.blobs is not None or time.monotonic() - _tried.get(registry, 0.0) < _OUT_OF_REACH
    )


def _close(core: Core, pid: int) -> None:
    """Close a registry that nobody reads any more, in the process that opened it."""
    if os.getpid() == pid:
        core.close()


def _opened(url: str, options: Mapping[str, Any]) -> Registry:
    """Return the registry at *url*, opened once in this process for all that read it with the same options."""
    folder = ""
    with suppress(OSError):
        folder = os.getcwd()  # the URL may be a path from here
    key = (os.getpid(), folder, url, tokenize(options))
    with _alone(key):  # one that does not answer keeps nobody waiting who reads another
        found = _sharing.get(key)
        if found is None or not _is_usable(found):
            found = Registry.open(_with_password(url), create=False, **options)
            weakref.finalize(found, _close, found._core, os.getpid())
            with _alone():
                _sharing[key] = found
                _tried[found] = time.monotonic()
    with _alone():
        _registries.pop(key, None)
        _registries[key] = found
        while len(_registries) > _KEPT:
            _registries.pop(next(iter(_registries)))
    return found


def _with_password(url: str) -> str:
    """Return ``$MODELHUB_REGISTRY`` where it names the same registry: *url* has lost its password if it was pickled."""
    setting = surroundings.setting("REGISTRY")
    if setting is None or setting.startswith("memory:"):
        return url
    try:
        store = connect(setting, read_only=True, options={}).store
    except ModelHubError:
        return url
    store.close()
    return setting if store.url == url else url


def _tree_of(registry_id: str, pinned: resolver.Pinned) -> _Tree:
    """Return the tree of a version; those of the versions that were read last are remembered."""
    key = (registry_id, pinned.version.uri, pinned.version.digest, bool(pinned.files))
    with _alone():
        found = _trees.pop(key, None) or _Tree.of(pinned)
        while _trees and sum(len(one.files) for one in _trees.values()) + len(found.files) > _FILES:
            _trees.pop(next(iter(_trees)))
        _trees[key] = found
    return _Tree(pinned, found.files, found.folders)


def _copied(source: io.BufferedReader, target: str, file: File, progress: Any) -> None:
    reader = disk.FdReader(os.dup(source.fileno()), source.name)
    try:
        fd = disk.create(target, 0o666)
        try:
            digest, size = disk.copy(reader, fd, size=file.size, progress=progress, where=target)
            if digest != file.digest:
                raise disk.mismatch(file.digest, digest, source.name, size=file.size, got=size)
            os.fsync(fd)
        finally:
            os.close(fd)
    finally:
        reader.close()
