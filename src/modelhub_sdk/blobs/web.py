"""Files from the web as sources: plain http and https, and never where a redirect should not lead."""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import IO, Any

from modelhub_sdk.blobs.disk import Reader
from modelhub_sdk.errors import Conflict, CredentialsRefused, NotAllowed, NotFound, StoreUnavailable, shown

_TIMEOUT = 60.0  # seconds without any byte
_STRONG = re.compile(r'"[\x21\x23-\x7e]{1,500}"')  # RFC 9110, 8.8.3, without the weak ones


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only, never to a machine's own metadata service, or where it is not *allowed*."""

    def __init__(self, allowed: Callable[[str], bool] | None) -> None:
        self._allowed = allowed

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        try:
            _check(newurl, secure=req.full_url.startswith("https:"))
            if self._allowed is not None and not self._allowed(newurl):
                raise NotAllowed(
                    f"The server redirects to {shown(newurl.split('?')[0], 300)}, which this registry does not allow.",
                    hint="The owner of the registry allows more with reg.configure(external=[...]).",
                )
        except NotAllowed:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check(url: str, *, secure: bool = False) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and (secure or parts.scheme != "http"):
        raise NotAllowed(
            f"The server redirects to {shown(parts.scheme + ':')}, which is not followed.",
            hint="Download the file yourself and register its path.",
        )
    try:
        found = socket.getaddrinfo(parts.hostname or "", parts.port or 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, ValueError):
        return  # the request itself will say so
    if any(ipaddress.ip_address(str(at[4][0]).partition("%")[0]).is_link_local for at in found):
        raise NotAllowed(f"{shown(parts.hostname)} is a link-local address, which is never fetched from.")


def web_source(url: str) -> Callable[[], Reader]:
    """Return how to open *url*; names that the server proposes are never used.

    The returned function raises:
        NotAllowed: it is, or redirects to, a place that is not fetched from.
        NotFound, CredentialsRefused, StoreUnavailable: the server's answer.
    """
    return lambda: WebReader(url)


def ask(url: str, tag: str | None) -> WebReader | None:
    """Return a reader of *url*, or None when it is still what *tag*, a strong ETag, says. Raises as `web_source`."""
    try:
        return WebReader(url, tag)
    except _NotModified:
        return None


class _NotModified(Exception):
    pass


class WebReader:
    """A `Reader` of an answer, from byte *start* on.

    `size` is in bytes, None where it is not known; `tag` a strong ETag, None where there is none.
    """

    def __init__(
        self,
        url: str,
        tag: str | None = None,
        *,
        start: int = 0,
        allowed: Callable[[str], bool] | None = None,
    ) -> None:
        self._shown = url.split("?")[0].rpartition("@")[2]
        try:
            _check(url)
            opener = urllib.request.build_opener(_Redirects(allowed))
            # Bytes as they are: a server that compresses on the way has other bytes and another tag.
            headers = {"Accept-Encoding": "identity"} | ({"If-None-Match": tag} if tag else {})
            if start:
                headers["Range"] = f"bytes={start}-"
            request = urllib.request.Request(url, headers=headers)  # noqa: S310  # `_check` has looked
            self._answer = opener.open(request, timeout=_TIMEOUT)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise self._error(exc) from exc
        length = self._answer.headers.get("Content-Length")
        self.size = int(length) if length and length.isascii() and length.isdigit() else None
        told = self._answer.headers.get("ETag", "").strip()
        self.tag = told if _STRONG.fullmatch(told) else None
        self._got = 0
        if start and self._answer.status != 206:  # a server without ranges: read up to there
            skipped = memoryview(bytearray(1 << 16))
            left = start
            while left and (got := self.readinto(skipped[: min(left, len(skipped))])):
                left -= got

    def _error(self, exc: Exception) -> Exception:
        if isinstance(exc, NotAllowed):
            return exc
        code = getattr(exc, "code", None)
        if isinstance(exc, urllib.error.HTTPError):
            exc.close()
        if code == 304:
            return _NotModified()
        if code in (401, 403):
            return CredentialsRefused(f"{shown(self._shown)} refused to answer ({code}).")
        if code in (404, 410):
            return NotFound(f"There is nothing at {shown(self._shown)} ({code}).", hint="Check the URL.")
        if code is not None and 300 <= code < 400:
            return NotAllowed(
                f"{shown(self._shown)} redirects to where it is not followed, or in a circle.",
                hint="Download the file yourself and register its path.",
            )
        reason = f"HTTP {code}" if code else type(exc).__name__
        return StoreUnavailable(f"Cannot read from {shown(self._shown)}: {reason}.", hint="Try again.")

    def readinto(self, view: memoryview) -> int:
        """Fill *view* from its start and return how many bytes came."""
        try:
            got = int(self._answer.readinto(view))
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise self._error(exc) from exc
        self._got += got
        return got

    def finish(self) -> None:
        """Check that as many bytes came as were announced."""
        if self.size is not None and self._got != self.size:
            raise Conflict(
                f"{shown(self._shown)} gave {self._got} bytes instead of {self.size}.", hint="Try again."
            )

    def close(self) -> None:
        """Close the connection."""
        self._answer.close()
