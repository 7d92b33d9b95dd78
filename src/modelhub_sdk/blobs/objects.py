"""What is behind a URL of a driver just now: its state, and readers that notice when it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

from modelhub_sdk.blobs.disk import Reader
from modelhub_sdk.blobs.driver import open_filesystem, patiently, without_secrets
from modelhub_sdk.blobs.readers import OwnReader, Ranges
from modelhub_sdk.errors import Conflict, InvalidName, NotFound, shown
from modelhub_sdk.hidden import HiddenOptions


@frozen
class UrlState:
    """What is behind a URL just now: how to open it from a byte on, its size and its tag, where the store tells.

    A tag changes when the bytes do: the version, generation or ETag of an object store. `version` is what the
    driver takes to read these very bytes later, where the bucket keeps versions (S3).
    """

    open: Callable[[int], Reader]
    size: int | None
    tag: str | None
    version: str | None = None


_TAGS = ("VersionId", "version_id", "generation", "ETag", "etag")


def _tag(info: Mapping[str, Any]) -> str | None:
    """Return the first thing in what a driver tells that names one state of an object."""
    for name in _TAGS:
        value = info.get(name)
        if isinstance(value, (str, int)) and value not in ("", "null") and not isinstance(value, bool):
            return f"{name.lower()}:{str(value).strip(chr(34))}"[:600]
    return None


def url_state(url: str, options: Mapping[str, Any], version: str | None = None) -> UrlState:
    """Return what is behind *url* just now, or was in a *version* that its store keeps.

    Raises:
        NotFound: there is nothing.
        InvalidName, MissingExtra, StoreUnavailable, CredentialsRefused: it cannot be opened.
    """
    where = without_secrets(url)
    options = HiddenOptions(options)
    if version is not None:  # only a driver that was told to know of versions tells of a certain one
        options = HiddenOptions({**options, "version_aware": True})
    fs, path = open_filesystem(url, options)
    if "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol):
        raise InvalidName(f"{shown(where)} is a local file.", hint="Pass its path without file://.")

    def look() -> Any:
        fs.invalidate_cache(path.rpartition("/")[0])
        return fs.info(path) if version is None else fs.info(path, version_id=version)

    try:
        info = patiently(look, "read", where)
    except FileNotFoundError as exc:
        raise NotFound(f"There is nothing at {shown(where)}.", hint="Check the URL.") from exc
    if info.get("type") == "directory":
        raise InvalidName(f"{shown(where)} is a folder.", hint="Name the files in it one by one.")
    size = info.get("size")
    if size is None:
        return UrlState(lambda _: OwnReader(fs.open(path, "rb"), where), None, _tag(info))
    kept = info.get("VersionId") if "s3" in fs.protocol else None
    return UrlState(
        lambda start: _UrlReader(fs, path, int(size), where, start),
        int(size),
        _tag(info),
        kept if isinstance(kept, str) and kept != "null" else None,
    )


class _UrlReader(Ranges):
    def __init__(self, fs: Any, key: str, size: int, where: str, start: int) -> None:
        super().__init__(fs, key, size, where, start=start)
        self._where = where
        self._got = start

    def readinto(self, view: memoryview) -> int:
        if self._size == 0:
            return 0
        try:
            got = super().readinto(view)
        except FileNotFoundError as exc:
            raise NotFound(f"{shown(self._where)} vanished while it was read.") from exc
        self._got += got
        return got

    def finish(self) -> None:
        if self._got != self._size:
            raise Conflict(
                f"{shown(self._where)} gave {self._got} bytes instead of {self._size}: changed, or cut.",
                hint="Try again.",
            )


class Unchanged:
    """A `Reader` of what is behind *url*, from byte *start* on, that looks at its end whether that is *state* still."""

    def __init__(self, state: UrlState, url: str, options: Mapping[str, Any], start: int = 0) -> None:
        self._state, self._url, self._options = state, url, HiddenOptions(options)
        self._reader = state.open(start)
        self.readinto, self.close = self._reader.readinto, self._reader.close

    def finish(self) -> None:
        """Raise Conflict if it is another one by now, and whatever the reader itself finds."""
        self._reader.finish()
        if self._state.tag is not None and url_state(self._url, self._options).tag != self._state.tag:
            raise Conflict(
                f"{shown(without_secrets(self._url), 300)} changed while it was read.",
                hint="Try again when its writer is done.",
            )


__all__ = ["Unchanged", "UrlState", "url_state"]
