"""``model://``, ``dataset://`` and ``datum://`` as read-only fsspec file systems, found by entry point.

::

    fsspec.open("model://customer-churn/latest/model.pkl")
    pandas.read_parquet("dataset://clicks/v7/part-0.parquet")
    fsspec.filesystem("model").ls("customer-churn/v1")

Which registry: the storage option ``registry`` (a URL, or an open `Registry`), else the default one. A name
that moves is pinned when something is opened; what is open goes on with its version. What is opened is
recorded as a use, and as an input of the run that is on.

Bytes: a file that is in the cache, or of at most 64 MB, is read from there, verified as `resolve` does it. Of a
larger one only the ranges that are asked for are fetched. A part of a file cannot be verified; when a file
is read from its first byte to its last, its digest is compared at the end.
"""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import nullcontext
from typing import Any, BinaryIO, ClassVar
from urllib.parse import unquote_to_bytes

from attrs import frozen
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from modelhub_sdk import active, hub, resolver
from modelhub_sdk.blobs import disk
from modelhub_sdk.domain import names
from modelhub_sdk.domain.entities import Datum, File, Resolved
from modelhub_sdk.domain.uri import DatasetURI, DatumURI, ModelURI, quote_path
from modelhub_sdk.errors import InvalidName, InvalidURI, ModelHubError, NotAllowed, NotFound, Offline, shown
from modelhub_sdk.index import data
from modelhub_sdk.registry import Registry

__all__ = ["DatasetFileSystem", "DatumFileSystem", "ModelFileSystem"]

WHOLE = 64 << 20
"""Bytes up to which a file is fetched as a whole, into the cache."""

_TREES = 8  # versions whose folders an instance remembers


class _Missing(NotFound, FileNotFoundError):
    """There is no such file or folder, as callers of fsspec expect to be told."""


class _ReadOnly(NotAllowed, NotImplementedError):
    """What is registered never changes."""


@frozen
class _Tree:
    """The files of a pinned version as folders: path -> file, and folder -> names in it."""

    pinned: resolver.Pinned
    files: dict[str, File]
    folders: dict[str, dict[str, bool]]

    @classmethod
    def of(cls, pinned: resolver.Pinned) -> _Tree:
        """Return the tree of a version."""
        folders: dict[str, dict[str, bool]] = {"": {}}
        for file in pinned.files:
            parts = file.path.split("/")
            for depth, part in enumerate(parts):
                here = folders.setdefault("/".join(parts[:depth]), {})
                here[part] = here.get(part, False) or depth < len(parts) - 1
        return cls(pinned, {file.path: file for file in pinned.files}, folders)


class _FileSystem(AbstractFileSystem):  # type: ignore[misc]
    """What the three have in common.

    Args:
        registry: a registry's URL, or an open `Registry`; None: the default one, whenever something is read.
        storage_options: what fsspec takes.
    """

    root_marker = ""
    cachable = False  # the default registry may be another one next time
    kind: ClassVar[str] = ""

    def __init__(self, registry: Any = None, **storage_options: Any) -> None:
        if not (registry is None or isinstance(registry, (str, os.PathLike, Registry))):
            raise InvalidName(
                f"registry={shown(registry)} is no registry.", hint="Pass its URL, or an open one."
            )
        super().__init__(registry=registry, **storage_options)
        self._given = registry
        self._mine: tuple[int, Registry] | None = None
        self._lock = threading.Lock()
        self._used: set[tuple[int, str]] = set()
        self._trees: dict[tuple[str, str], _Tree] = {}

    def __reduce__(self) -> Any:
        options = dict(self.storage_options)
        if isinstance(self._given, Registry):
            options["registry"] = self._given._core.url
        return _again, (type(self), options)

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
        if isinstance(self._given, Registry):
            return self._given
        if self._given is None:
            return hub.default(create=False)
        with self._lock:
            if self._mine is None or self._mine[0] != os.getpid() or self._mine[1]._core.closed:
                self._mine = os.getpid(), Registry.open(self._given, create=False)
            return self._mine[1]

    def _split(self, path: str) -> tuple[Any, str]:
        """Return what a path names: the URI of a version, or None above that, and the path in the version."""
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
        core = self.registry._core
        try:
            pinned = resolver.pinned(core, uri)
        except NotFound as error:
            raise self._missing(error) from None
        key = (pinned.version.uri, str(getattr(pinned.version, "digest", "")))
        found = self._trees.get(key)
        if found is None:
            found = _Tree.of(pinned)
            with self._lock:
                while len(self._trees) >= _TREES:
                    self._trees.pop(next(iter(self._trees)))
                self._trees[key] = found
        return _Tree(pinned, found.files, found.folders)

    @staticmethod
    def _missing(error: NotFound) -> ModelHubError:
        if type(error) is not NotFound:
            return error  # NoApprovedVersion says more
        return _Missing(error.message, hint=error.hint, nearest=error.nearest)

    @staticmethod
    def _without(tree: _Tree, what: str, path: str) -> _Missing:
        """Return the error for a file or folder that a version does not have."""
        return _Missing(
            f"{tree.pinned.version.uri} has no {what} {shown(path)}.",
            hint=resolver.some(list(tree.files)),
            nearest=(),
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
                raise IsADirectoryError(f"{self.kind}://{stripped} is a folder")
            raise self._without(tree, "file", inner)
        if self.isdir(stripped):
            raise IsADirectoryError(f"{self.kind}://{stripped} is a folder")
        raise _Missing(f"{shown(f'{self.kind}://{stripped}')} names no file.", nearest=())

    def _use(self, tree: _Tree, file: File, uri: Any) -> None:
        """Record that the version is used: once for each instance and process; and as an input of the run."""
        version = tree.pinned.version
        key = (os.getpid(), version.uri)
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
                self.registry.id,
            )
        with self._lock:
            if key in self._used:
                return
            self._used.add(key)
        resolver.record_use(self.registry._core, uri, tree.pinned)

    # --- looking -----------------------------------------------------------------------------------

    def _entry(self, name: str, tree: _Tree, inner: str) -> dict[str, Any]:
        file = tree.files.get(inner)
        if file is None:
            return {"name": name, "size": 0, "type": "directory"}
        return {
            "name": name,
            "size": file.size,
            "type": "file",
            "digest": file.digest,
            "version": tree.pinned.version.uri,
        }

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """Return what stands in a folder: models (or datasets), their versions, the files of a version.

        Raises:
            NotFound: there is no such thing; it is a FileNotFoundError too.
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
            elif inner in tree.folders:
                found = [
                    self._entry(f"{stripped}/{name}", tree, f"{inner}/{name}" if inner else name)
                    for name in sorted(tree.folders[inner])
                ]
            else:
                raise self._without(tree, "folder", inner)
        return found if detail else [one["name"] for one in found]

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
            StoreUnavailable: the registry did not answer.
        """
        try:
            self.info(path)
        except (NotFound, InvalidURI, InvalidName):
            return False
        return True

    def checksum(self, path: str) -> str:
        """Return the sha256 of a file, as ``sha256:<hex>``."""
        return str(self.info(path)["digest"])

    ukey = checksum

    # --- reading -----------------------------------------------------------------------------------

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
        local = self._opened(tree, file)
        if local is not None:
            return local
        return _RangedFile(
            self,
            self._fixed(path, tree),
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

    def _local(self, tree: _Tree, file: File) -> str | None:
        """Return where the verified bytes lie on this disk: there already, or small enough to be fetched now."""
        core = self.registry._core
        cache = core.cache()
        found = cache.get(file.digest, file.size)
        if found is None and (core.blobs is None or tree.pinned.offline):
            raise Offline(
                f"{shown(file.path)} of {tree.pinned.version.uri} is not in the cache, and"
                f" {shown(core.url, 200)} cannot be reached.",
                hint="Resolve it once while the registry can be reached.",
            )
        if found is None and file.size <= WHOLE:
            found = cache.fetch_all([file], core.artifacts())[file.digest]
        return None if found is None else os.fspath(found)

    def _opened(self, tree: _Tree, file: File) -> BinaryIO | None:
        """Return the open file of this disk; None as `_local`. Another process may prune it before it is open."""
        for _ in range(4):
            local = self._local(tree, file)
            if local is None:
                return None
            with disk.translated("read", local):
                try:
                    return open(local, "rb")
                except FileNotFoundError:
                    continue
        return None

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Return the bytes of a file, or those from *start* to before *end*; negative ones count from its end.

        Raises:
            NotFound: there is no such file.
            DigestMismatch: all of it was asked for, and it is not what was registered.
        """
        tree, file, uri = self._found(path)
        first, last, _ = slice(start, end).indices(file.size)
        self._use(tree, file, uri)
        local = self._opened(tree, file)
        if local is not None:
            with local:
                local.seek(first)
                return local.read(max(0, last - first))
        if (first, last) == (0, file.size):
            return self.registry._core.artifacts().read(file.digest)
        return self.registry._core.artifacts().read_range(file.digest, first, max(first, last))

    def get_file(self, rpath: str, lpath: Any, callback: Any = DEFAULT_CALLBACK, **kwargs: Any) -> None:
        """Copy a file here, verified; *lpath* appears whole or not at all.

        Raises:
            NotFound: there is no such file.
            DigestMismatch, StoreUnavailable: nothing was written.
        """
        if hasattr(lpath, "write"):
            lpath.write(self.cat_file(rpath))
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
        local = self._opened(tree, file)
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

    def _read_only(self, *_: Any, **__: Any) -> _ReadOnly:
        return _ReadOnly(
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
        super().__init__(fs, path, mode, block_size, digest=digest, **kwargs)
        self._digest = digest
        self._hasher = hashlib.sha256()
        self._hashed = 0

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.registry._core.artifacts().read_range(self._digest, start, end)  # type: ignore[no-any-return]

    def read(self, length: int = -1) -> bytes:
        """Return up to *length* bytes.

        Raises:
            DigestMismatch: these were the last bytes of a file that was read in order, and it is another one.
        """
        at = self.loc
        found: bytes = super().read(length)
        if at == self._hashed and found:
            self._hasher.update(found)
            self._hashed += len(found)
            if self._hashed == self.size and f"sha256:{self._hasher.hexdigest()}" != self._digest:
                raise disk.mismatch(self._digest, f"sha256:{self._hasher.hexdigest()}", self.path)
        return found


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
                raise _Missing(f"There is no model {shown(name)}.", nearest=())
            return [f"v{number}" for number in range(1, view.last_number(name) + 1)]


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
                raise _Missing(f"There is no dataset {shown(parts[0])}.", nearest=())
            return data.version_names(view, parts[0])


class DatumFileSystem(_FileSystem):
    """``datum://<id or alias>``: single files; the root lists the aliases."""

    protocol = kind = "datum"

    def _split(self, path: str) -> tuple[Any, str]:
        return (DatumURI(path), "") if path else (None, "")

    def _above(self, parts: list[str]) -> list[str]:
        with self.registry._core.view() as view:
            return sorted(data.datum_aliases(view))


def _again(kind: type[_FileSystem], options: dict[str, Any]) -> _FileSystem:
    """Return an instance that was pickled."""
    return kind(**options)


def _copied(source: BinaryIO, target: str, file: File, progress: Any) -> None:
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
