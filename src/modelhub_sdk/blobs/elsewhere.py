"""Bytes that a version names where they are, outside of the store: read from there, never changed there."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from attrs import field, frozen

from modelhub_sdk.blobs import disk, driver, sources, web
from modelhub_sdk.blobs.disk import Progress, Reader
from modelhub_sdk.blobs.objects import Unchanged, url_state
from modelhub_sdk.blobs.readers import Ranges, piece, ranged
from modelhub_sdk.domain import names
from modelhub_sdk.errors import (
    DigestMismatch,
    InvalidDocument,
    InvalidName,
    NotFound,
    shown,
)


@frozen
class Reference:
    """One place where bytes are: a URL, and the store's version of it, where there is one.

    `allowed` says whether a URL that the server leads on to may be read.
    """

    url: str
    version: str | None = None
    options: Mapping[str, Any] = field(factory=dict, repr=False)
    allowed: Callable[[str], bool] = field(default=lambda _: True, repr=False)

    @property
    def is_web(self) -> bool:
        """Whether it is on a web server."""
        return self.url.lower().startswith(("http://", "https://"))

    def reader(self, size: int, start: int = 0, *, checked: bool = True) -> Reader:
        """Return a reader of the bytes from *start* on; not *checked* when nobody knows their digest yet.

        Raises:
            NotFound, NotAllowed, CredentialsRefused, StoreUnavailable: they cannot be had.
        """
        if self.is_web:
            return web.WebReader(self.url, start=start, checked=checked, allowed=self.allowed)
        fs, path = self._driver()
        return Ranges(fs, path, size, self.url, start=start, version=self.version)

    def read_range(self, start: int, end: int) -> bytes:
        """Return the bytes of a *version* from *start* to before *end*; fewer at their end."""
        fs, path = self._driver()
        try:
            return piece(fs, path, start, end, self.url, self.version)
        except FileNotFoundError:
            raise self.gone() from None

    def open(self, size: int | None = None) -> BinaryIO:
        """Return the bytes, *size* many as far as is known, as a file, unchecked."""
        if self.is_web:
            return io.BufferedReader(_Stream(self.reader(0)))
        fs, path = self._driver()
        return ranged(fs, path, self.size() if size is None else size, self.url, self.version)

    def size(self) -> int:
        """Return how many bytes are there now, as the store tells."""
        state = url_state(self.url, self.options, self.version)
        return state.size or 0

    def fetch(self, size: int, fd: int | None, progress: Progress | None) -> tuple[str, int]:
        """Copy the bytes to *fd* (None: nowhere), after what it holds; return digest and size of all that came."""
        try:
            return disk.go_on(lambda done: self.reader(size, done), fd, size, progress)
        except FileNotFoundError:
            raise self.gone() from None

    def gone(self) -> NotFound:
        """Return the error that nothing is there."""
        return NotFound(
            f"There is nothing at {shown(self.url, 300)} any more, where a version has its bytes by reference.",
            hint="Put the same bytes there again, or purge the version.",
        )

    def changed(self, wanted: str, actual: str) -> DigestMismatch:
        """Return the error that other bytes are there."""
        return DigestMismatch(
            f"The bytes at {shown(self.url, 300)} have changed since a version named them: they are {actual},"
            f" and were {wanted}.",
            hint="Put the same bytes there again, or register the new ones as a version of their own.",
            source=self.url,
        )

    def _driver(self) -> tuple[Any, str]:
        return driver.open_filesystem(self.url, self.options)


class _Stream(io.RawIOBase):
    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._reader.readinto(memoryview(buffer).cast("B"))

    def close(self) -> None:
        self._reader.close()
        super().close()


def measured(one: Reference, progress: Progress | None) -> tuple[str, int, str | None]:
    """Read what is behind a URL once; return its digest, size, and the store's version of it, where there is one.

    Raises:
        Conflict: it changed while it was read.
        NotFound, InvalidName, CredentialsRefused, StoreUnavailable: it cannot be read.
    """
    state = None if one.is_web else url_state(one.url, one.options)
    reader = one.reader(0, checked=False) if state is None else Unchanged(state, one.url, one.options)
    try:
        digest, size = disk.copy(
            reader, None, size=state.size if state else None, progress=progress, where=one.url
        )
    finally:
        reader.close()
    return digest, size, None if state is None else state.version


def named(files: Any, refer: Callable[[str], Reference]) -> dict[str, Reference]:
    """Return path in the version -> what is to be kept by reference, ordered by path.

    *files* is a URL, a list of URLs, or a mapping from paths to URLs; a URL that ends with a slash means all
    objects below. *refer* raises for a URL that may not be named; nothing is asked before it was.

    Raises:
        InvalidDocument: it is anything else: bytes, files and folders of this machine are copied.
        NotFound: there is nothing below a URL.
        InvalidName: a path that cannot stand in a version.
    """
    pairs: list[tuple[str | None, Any]]
    if isinstance(files, Mapping):
        pairs = [(names.check_path(path), url) for path, url in files.items()]
    else:
        pairs = [(None, url) for url in (files if isinstance(files, (list, tuple)) else [files])]
    found: dict[str, Reference] = {}
    for path, url in pairs:
        if not isinstance(url, str) or "://" not in url:
            raise InvalidDocument(
                f"With copy=False a version names URLs, and {shown(url)} is none.",
                hint="Leave copy=False away: then the bytes are copied into the registry.",
            )
        folder = url.endswith("/")
        scheme, mark, rest = url.partition("://")
        url = scheme.lower() + mark + rest
        for name in _below(refer(url)) if folder else [sources.name_in(url)]:
            good = name if path is None else f"{path}/{name}" if folder else path
            one = refer(url + name if folder else url)
            if found.setdefault(names.check_path(good), one).url != one.url:
                raise InvalidName(f"Two files would be called {shown(good)}.", hint="Pass {path: URL}.")
    names.check_paths(found)
    return dict(sorted(found.items()))


def _below(one: Reference) -> list[str]:
    """Return the names of the objects below a URL that ends with a slash."""
    if one.is_web:
        raise InvalidDocument(f"{shown(one.url, 300)} names no file.", hint="Name the files one by one.")
    fs, top = driver.open_filesystem(one.url, one.options)
    top = top.rstrip("/") + "/"
    try:
        keys = driver.patiently(lambda: _listed(fs, top), "list", one.url)
    except FileNotFoundError:
        keys = []
    # Some tools mark a folder by an empty object with a slash at the end of its name, which is no file.
    found = [key.removeprefix(top) for key in sorted(keys) if key.startswith(top) and not key.endswith("/")]
    if not found:
        raise NotFound(f"There is nothing below {shown(one.url, 300)}.", hint="Check the URL.")
    return found


def _listed(fs: Any, top: str) -> list[str]:
    """Return the keys below *top* now, not when the driver last looked."""
    fs.invalidate_cache()
    return list(fs.find(top))


__all__ = ["Reference", "measured", "named"]
