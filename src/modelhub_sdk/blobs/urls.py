"""Files behind plain URLs: fetched into the cache once, and again only when their store says that they changed.

What a store calls one state of a file is its *tag*: the strong ETag of a web server, ETag or version or generation of
an object store. A weak ETag and a time of change do not say that bytes are the same (RFC 9110, 8.8.1), so what has
nothing better is fetched each time. A tag only saves the transfer: the bytes are checked by the digest that they had.

A URL has two texts beside itself: *told*, without secrets, is what messages and records call it, and two URLs may be
told alike; *same* is what tells it from all others, and is only ever hashed (`run.masking.identity`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from modelhub_sdk.blobs import disk, progress, web
from modelhub_sdk.blobs.cache import SAME, Cache
from modelhub_sdk.blobs.disk import Reader
from modelhub_sdk.blobs.objects import Unchanged, url_state
from modelhub_sdk.errors import Conflict, ModelHubError, StoreUnavailable, shown


@frozen
class Found:
    """What is behind a URL now.

    Attributes:
        path: where its bytes are on this disk, read-only.
        digest: of its bytes.
        size: in bytes.
        tag: what the store calls this state of it; None where it says nothing that can be relied on.
        before: the digest that this cache has last seen behind the URL, None when it has not.
    """

    path: Path
    digest: str
    size: int
    tag: str | None = None
    before: str | None = None


def from_web(cache: Cache, url: str, told: str, same: str) -> Found:
    """Return the file at an http or https *url*; *told* and *same* as the module says.

    Raises:
        InvalidURI, NotAllowed, NotFound, CredentialsRefused, Conflict, StoreUnavailable: as `web.web_source`.
    """
    key = _key(same)
    return _patiently(lambda: _from_web(cache, url, told, key))


def _from_web(cache: Cache, url: str, told: str, key: str) -> Found:
    note = _Note(cache, key)
    asked = _asked(note, url, told) if note.path() is not None else None
    if isinstance(asked, Found):
        return asked
    with cache.turn(key):
        note = _Note(cache, key)  # by now somebody else may have fetched it
        if asked is None:
            asked = _asked(note, url, told)
        elif found := note.found(asked.tag):
            asked.close()
            return found
        if isinstance(asked, Found):
            return asked
        if asked.tag is not None:
            return _of_web(cache, note, url, told, asked)
    return _of_web(cache, note, url, told, asked)  # each has to: nobody waits for another


def _asked(note: _Note, url: str, told: str) -> Found | web.WebReader:
    """Return what is here, if the server says that it is the same still, or a reader of what it has now."""
    known = note.path()
    reader = web.ask(url, note.tag if known is not None else None)
    if reader is not None:
        return reader
    if known is None:  # it was not asked to say so
        raise Conflict(f"{shown(told, 300)} says that it has not changed, and was never here.")
    return Found(known, note.digest, note.size, note.tag, note.digest)


def _of_web(cache: Cache, note: _Note, url: str, told: str, reader: web.WebReader) -> Found:
    def opener(start: int) -> Reader:
        return web.WebReader(url, start=start, tag=reader.tag) if start else reader

    with closing(reader):
        return _taken(cache, note, told, reader.tag, reader.size, opener)


def from_store(
    cache: Cache,
    url: str,
    options: Mapping[str, Any],
    told: str,
    same: str,
) -> Found:
    """Return the file at *url* of any fsspec driver; *told* and *same* as the module says.

    Raises:
        NotFound: there is nothing.
        InvalidName, MissingExtra, StoreUnavailable, CredentialsRefused: it cannot be opened.
        Conflict: it changed while it was read, each time.
    """
    key = _key(same)
    return _patiently(lambda: _from_store(cache, url, options, told, key))


def _from_store(cache: Cache, url: str, options: Mapping[str, Any], told: str, key: str) -> Found:
    note = _Note(cache, key)
    state = url_state(url, options)
    if (found := note.found(state.tag)) is not None:
        return found

    def opener(start: int) -> Reader:
        return Unchanged(state, url, options, start)

    with nullcontext() if state.tag is None else cache.turn(key):
        note = _Note(cache, key)
        return note.found(state.tag) or _taken(cache, note, told, state.tag, state.size, opener)


def _patiently(work: Callable[[], Found]) -> Found:
    """Return what *work* returns; what changed or broke off on the way is asked for anew, three times in all."""
    for _ in range(2):
        with suppress(_Again):
            return work()
    try:
        return work()
    except _Again as error:
        raise (error.__cause__ or error) from None


class _Again(Exception):
    """A transfer failed after it had begun."""


def _taken(
    cache: Cache,
    note: _Note,
    told: str,
    tag: str | None,
    size: int | None,
    opener: Callable[[int], Reader],
) -> Found:
    """Transfer the file that is *tag* now."""
    state = None if tag is None else _of_state(note.key, tag)
    try:
        with progress.bar(size, told) as step:
            digest, got, path = cache.take(opener, size, key=state, progress=step)
    except Conflict as error:
        raise _Again from error
    except StoreUnavailable as error:
        if tag is not None or error.errno is not None:  # gone on with as long as that helps; the cache's disk
            raise
        raise _Again from error
    return note.written(Found(path, digest, got, tag, note.digest or None))


def _key(same: str) -> str:
    """Return the name of a URL in the cache."""
    return hashlib.sha256(same.encode("utf-8", "backslashreplace")).hexdigest()


def _of_state(key: str, tag: str) -> str:
    """Return the name of one state of what is behind a URL, which begins as that of the URL does."""
    return key[:SAME] + hashlib.sha256(tag.encode()).hexdigest()[SAME:]


def seen(cache: Cache, same: str, digest: str, size: int) -> str | None:
    """Return the digest that was last seen under the name *same*, None for none, and note *digest* of *size* bytes."""
    note = _Note(cache, _key(same))
    before = note.digest or None
    if before != digest:
        note.write(None, digest, size)
    return before


class _Note:
    """What this cache last saw behind a URL."""

    def __init__(self, cache: Cache, key: str) -> None:
        self.key = key
        self._cache = cache
        self._file = cache.url_note(key)
        self.tag: str | None = None
        self.digest, self.size = "", 0
        try:
            raw = json.loads(disk.read_file(self._file, 1 << 16))
            tag, digest, size = raw["tag"], raw["digest"], raw["size"]
            if (tag is None or isinstance(tag, str)) and isinstance(digest, str) and isinstance(size, int):
                self.tag, self.digest, self.size = tag, digest, size
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass

    def path(self) -> Path | None:
        """Return where the bytes of then are, if they are still here."""
        try:
            return self._cache.get(self.digest, self.size) if self.tag and self.digest else None
        except ModelHubError:  # a note that somebody else wrote
            return None

    def found(self, tag: str | None) -> Found | None:
        """Return the file, if it was *tag* and is still here."""
        path = self.path() if tag is not None and tag == self.tag else None
        return None if path is None else Found(path, self.digest, self.size, tag, self.digest)

    def written(self, found: Found) -> Found:
        """Note what was found."""
        self.write(found.tag, found.digest, found.size)
        return found

    def write(self, tag: str | None, digest: str, size: int) -> None:
        """Note what is there. A note that is lost costs a transfer."""
        data = json.dumps({"tag": tag, "digest": digest, "size": size}).encode()
        with suppress(ModelHubError):
            self._cache.keep(self._file, data)


__all__ = ["Found", "from_store", "from_web", "seen"]
