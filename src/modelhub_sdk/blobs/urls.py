"""Files behind plain URLs: fetched into the cache once, and again only when their store says that they changed.

What a store calls one state of a file is its *tag*: the strong ETag of a web server, ETag or version or generation of
an object store. A weak ETag and a time of change do not say that bytes are the same (RFC 9110, 8.8.1), so what has
nothing better is fetched each time. A tag only saves the transfer: the bytes are checked by the digest that they had.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from modelhub_sdk.blobs import remote, web
from modelhub_sdk.blobs.cache import Cache
from modelhub_sdk.blobs.disk import Progress
from modelhub_sdk.errors import Conflict, ModelHubError, shown


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


def from_web(cache: Cache, url: str, told: str, progress: Progress | None = None) -> Found:
    """Return the file at an http or https *url*, which records and notes call *told*.

    Raises:
        NotAllowed, NotFound, CredentialsRefused, Conflict, StoreUnavailable: as `web.web_source`.
    """
    note = _Note(cache, told)
    known = note.path()
    reader = web.ask(url, note.tag if known is not None else None)
    if reader is None:
        if known is None:  # it was not asked to say so
            raise Conflict(f"{shown(told, 300)} says that it has not changed, and was never here.")
        return Found(known, note.digest, note.size, note.tag, note.digest)
    digest, size, path = cache.take(lambda: reader, reader.size, progress=progress)
    return note.written(Found(path, digest, size, reader.tag, note.digest or None))


def from_store(
    cache: Cache, url: str, options: Mapping[str, Any], told: str, progress: Progress | None = None
) -> Found:
    """Return the file at *url* of any fsspec driver, which records and notes call *told*.

    Raises:
        NotFound: there is nothing.
        InvalidName, MissingExtra, StoreUnavailable, CredentialsRefused: it cannot be opened.
        Conflict: it changed while it was read, twice.
    """
    note = _Note(cache, told)
    state = remote.url_state(url, dict(options))
    known = note.path() if state.tag is not None and state.tag == note.tag else None
    if known is not None:
        return Found(known, note.digest, note.size, note.tag, note.digest)
    for last in (False, True):
        digest, size, path = cache.take(state.open, state.size, progress=progress)
        after = remote.url_state(url, dict(options)) if state.tag is not None else state
        if after.tag == state.tag:
            break
        if last:
            raise Conflict(
                f"{shown(told, 300)} changed while it was read.", hint="Try again when its writer is done."
            )
        state, progress = after, None
    return note.written(Found(path, digest, size, state.tag, note.digest or None))


class _Note:
    """What this cache last saw behind a URL."""

    def __init__(self, cache: Cache, told: str) -> None:
        self._cache = cache
        self._file = cache.url_note(hashlib.sha256(told.encode()).hexdigest())
        self.tag: str | None = None
        self.digest, self.size = "", 0
        try:
            raw = json.loads(self._file.read_bytes())
            tag, digest, size = raw["tag"], raw["digest"], raw["size"]
            if (tag is None or isinstance(tag, str)) and isinstance(digest, str) and isinstance(size, int):
                self.tag, self.digest, self.size = tag, digest, size
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def path(self) -> Path | None:
        """Return where the bytes of then are, if they are still here."""
        try:
            return self._cache.get(self.digest, self.size) if self.tag and self.digest else None
        except ModelHubError:  # a note that somebody else wrote
            return None

    def written(self, found: Found) -> Found:
        """Note what was found. A note that is lost costs a transfer."""
        data = json.dumps({"tag": found.tag, "digest": found.digest, "size": found.size}).encode()
        with suppress(ModelHubError):
            self._cache.keep(self._file, data)
        return found


__all__ = ["Found", "from_store", "from_web"]
