"""Files from the web as sources: plain http and https, and never where a redirect should not lead."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import IO, Any, TypeVar

from modelhub_sdk.blobs import addresses, disk
from modelhub_sdk.blobs.disk import Reader
from modelhub_sdk.blobs.patience import patient, time_for
from modelhub_sdk.domain.external import plain
from modelhub_sdk.errors import (
    Conflict,
    CredentialsRefused,
    InvalidURI,
    ModelHubError,
    NotAllowed,
    NotFound,
    StoreUnavailable,
    shown,
)
from modelhub_sdk.hidden import bare, hidden, shielded

T = TypeVar("T")

_TIMEOUT = 60.0  # seconds without any byte
_STRAY = re.compile(r"%(?![0-9A-Fa-f]{2})")
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
            newurl = asked_for(newurl)
            if self._allowed is not None and not self._allowed(newurl):
                raise NotAllowed(
                    f"The server redirects to {shown(plain(newurl), 300)}, which this registry does not allow.",
                    hint="The owner of the registry allows more with reg.configure(external=[...]).",
                )
        except ModelHubError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def asked_for(url: str) -> str:
    """Return an http or https *url* as it is asked for: letters and spaces that no request may hold are encoded.

    Raises:
        InvalidURI: nothing can be asked there, or a user or a password stands in it. No secret is repeated.
    """
    place = hidden(url)
    del url
    return shielded(lambda: _asked_for(place.reveal()), ModelHubError)


def _asked_for(url: str) -> str:
    def bad(why: str, hint: str) -> InvalidURI:
        return InvalidURI(f"{shown(plain(url), 300)} cannot be fetched: {why}.", hint=hint)

    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in url):
        raise bad("a control character stands in it", "Write it on one line.")
    user = "a user or a password stands in it", "Fetch the file yourself, and pass its path."
    if plain(url).endswith("://***"):
        raise bad(*user)
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
        if host:
            host.encode("idna")
    except ValueError:  # brackets that are none, a port that is no number, a name that is too long
        raise bad("its host or port is none", "Look at what stands before the path.") from None
    if "@" in parts.netloc:
        raise bad(*user)
    if "%" in parts.netloc:  # urllib decodes it after `_check` has looked: another host, or a user
        raise bad("its host is percent-encoded", "Write the host plainly.")
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() for c in host) or port == 0:
        raise bad("it names no host", "Write it as https://host/path.")
    return urllib.parse.urlunsplit(
        (parts.scheme, parts.netloc, _encoded(parts.path), _encoded(parts.query), "")
    )


def _encoded(text: str) -> str:
    """Return a path or a query in ASCII; what is encoded already stays."""
    return urllib.parse.quote(_STRAY.sub("%25", text), safe="!$%&'()*+,/:;=?@[]~")


def _check(url: str, *, secure: bool = False) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and (secure or parts.scheme != "http"):
        raise NotAllowed(
            f"The server redirects to {shown(parts.scheme + ':')}, which is not followed.",
            hint="Download the file yourself and register its path.",
        )
    host = parts.hostname or ""
    addresses.check_host(host)
    if _has_proxy(parts.scheme, host):
        # The proxy looks the name up itself. What it means here is the best that can be known of it.
        addresses.check_resolved(host, parts.port)


def _has_proxy(scheme: str, host: str) -> bool:
    """Return whether the environment says that a proxy stands between us and *host*."""
    return scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)


def web_source(url: str) -> Callable[[], Reader]:
    """Return how to open *url*; names that the server proposes are never used.

    Raises:
        InvalidURI: as `asked_for`.

    The returned function raises:
        NotAllowed: it is, or redirects to, a place that is not fetched from.
        NotFound, CredentialsRefused, StoreUnavailable: the server's answer.
    """
    good = hidden(asked_for(url))
    return lambda: WebReader(good.reveal())


def ask(url: str, tag: str | None) -> WebReader | None:
    """Return a reader of *url*, or None when it is still what *tag*, a strong ETag, says. Raises as `web_source`."""
    try:
        return WebReader(url, unless=tag)
    except _NotModified:
        return None


class _NotModified(Exception):
    pass


class WebReader:
    """A `Reader` of a file on a web server, from byte *start* on.

    A connection that breaks, or is too slow, is made again for a minute, and goes on where it was: as long as
    the strong ETag is the same; without one only if the bytes are *checked* by a digest afterwards.

    `size` is that of the whole file in bytes, None where it is not known; `tag` a strong ETag, None where
    there is none. With *tag* the file must still be that one.
    """

    def __init__(
        self,
        url: str,
        *,
        start: int = 0,
        tag: str | None = None,
        unless: str | None = None,
        checked: bool = False,
        allowed: Callable[[str], bool] | None = None,
    ) -> None:
        self._url, self._checked = asked_for(url), checked
        self._shown = plain(url)
        del url  # from here on no frame holds it
        self._opener = urllib.request.build_opener(_Redirects(allowed), addresses.Http, addresses.Https)
        self._at = start
        self.size: int | None = None
        self.tag = tag
        self._answer: http.client.HTTPResponse | None = None
        self._asked = unless is not None
        self._left: int | None = None  # bytes that this connection has announced and not given
        self._spent, self._given = 0.0, 0  # seconds of waiting for this connection, and bytes of it
        self._first, self._ended = True, False
        self._failed: ModelHubError | None = None
        self._patiently(lambda: self._open(unless))

    # ---- connections

    def _patiently(self, work: Callable[[], T]) -> T:
        try:
            return patient(work, lambda exc: _passing(exc, not self._first), "read from", self._shown)
        except ModelHubError as error:
            problem: Exception = bare(error)  # those frames hold the whole URL
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = bare(self._error(error))
        raise problem  # out here: the text of the other error may quote the URL

    def _open(self, unless: str | None = None) -> None:
        """Ask for what is missing, and see that it is of the same file."""
        _check(self._url)
        # Bytes as they are: a server that compresses on the way has other bytes and another tag.
        headers = {"Accept-Encoding": "identity"} | ({"If-None-Match": unless} if unless else {})
        if self._at:
            headers["Range"] = f"bytes={self._at}-"
            if self.tag:
                headers["If-Range"] = self.tag
        request = urllib.request.Request(self._url, headers=headers)  # noqa: S310  # `_check` has looked
        self._hang_up()
        try:
            self._answer = answer = self._opener.open(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as exc:
            if exc.code != 416 or not self._at:
                raise
            exc.close()
            if self.size is not None and self.size != self._at:
                raise self._changed() from None
            self._ended = True  # all of it has come
            return
        self._spent, self._given = 0.0, 0
        told = answer.headers.get("ETag", "").strip()
        tag = told if _STRONG.fullmatch(told) else None
        length = answer.headers.get("Content-Length") or ""
        self._left = int(length) if length.isascii() and length.isdigit() else None
        part = answer.status == 206
        if part and not answer.headers.get("Content-Range", "").strip().startswith(f"bytes {self._at}-"):
            raise _Wrong(f"{shown(self._shown)} gave another part than it was asked for.")
        size = self._left if self._left is None or not part else self._at + self._left
        if (self.tag and tag != self.tag) or (not self._first and size != self.size):
            self._hang_up()
            raise self._changed()
        self.tag, self.size, self._first = tag, size, False
        if self._at and not part:  # a server without ranges: read up to there
            self._skip(self._at)

    def _changed(self) -> Conflict:
        return Conflict(f"{shown(self._shown)} changed while it was read.", hint="Try again.")

    def _skip(self, count: int) -> None:
        while count and (got := len(self._some(min(count, disk.CHUNK)))):
            count -= got
        if count:
            raise _Wrong(f"{shown(self._shown)} is shorter than it was.")

    def _some(self, count: int) -> bytes:
        """Return some bytes of this connection, none at its end."""
        if self._answer is None:
            return b""
        begun = time.monotonic()
        data = self._answer.read1(count)
        self._spent += time.monotonic() - begun
        self._given += len(data)
        if self._left is not None:
            self._left -= len(data)
            if not data and self._left > 0:
                raise http.client.IncompleteRead(b"", self._left)
        if self._spent > time_for(self._given):
            raise TimeoutError("too slow")
        return data

    def _error(self, exc: Exception) -> Exception:
        reason = getattr(exc, "reason", None)
        if isinstance(reason, ModelHubError):  # an address that is refused; urllib takes it for its own
            return reason
        code = getattr(exc, "code", None)
        if isinstance(exc, urllib.error.HTTPError):
            exc.close()
        if code == 304 and self._asked:
            return _NotModified()
        if code in (401, 403):
            return CredentialsRefused(f"{shown(self._shown)} refused to answer ({code}).")
        if code in (404, 410):
            return NotFound(f"There is nothing at {shown(self._shown)} ({code}).", hint="Check the URL.")
        if code is not None and 300 <= code < 400 and code != 304:
            return NotAllowed(
                f"{shown(self._shown)} redirects to where it is not followed, or in a circle.",
                hint="Download the file yourself and register its path.",
            )
        if isinstance(exc, _Wrong):
            return StoreUnavailable(str(exc), hint="Try again.")
        why = f"HTTP {code}" if code else "it is too slow" if _is_slow(exc) else type(exc).__name__
        return StoreUnavailable(f"Cannot read from {shown(self._shown)}: {why}.", hint="Try again.")

    # ---- as a reader

    def readinto(self, view: memoryview) -> int:
        """Fill *view* from its start and return how many bytes came."""
        if self._failed is not None:
            raise self._failed
        filled = 0

        def step() -> bytes:
            if self._answer is None and not self._ended:
                self._open()
            try:
                return self._some(len(view) - filled)
            except (OSError, http.client.HTTPException, ValueError):
                self._hang_up()
                if self.tag is None and not self._checked:  # what comes now may be of another file
                    raise _Wrong(f"{shown(self._shown)} broke off.") from None
                raise

        try:
            while filled < len(view) and (data := self._patiently(step)):
                view[filled : filled + len(data)] = data
                filled += len(data)
                self._at += len(data)
        except ModelHubError as error:
            self._failed = error  # never to be taken for the end
            if not filled:
                raise
        return filled

    def finish(self) -> None:
        """Check nothing: that as many bytes came as were announced has been seen."""

    def close(self) -> None:
        """Close the connection; there is nothing to read any more."""
        self._ended = True
        self._hang_up()

    def _hang_up(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None


class _Wrong(OSError):
    """An answer that asking again would not better; becomes StoreUnavailable."""


_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


def _passing(exc: Exception, begun: bool) -> bool:
    """Return whether asking again may help; a host that was never there is not waited for."""
    if isinstance(exc, urllib.error.HTTPError):
        if exc.code in _PASSING:
            exc.close()
            return True
        return False
    if isinstance(exc, (ModelHubError, _Wrong)):
        return False
    cause = exc.reason if isinstance(exc, urllib.error.URLError) else exc
    if isinstance(cause, ssl.SSLCertVerificationError):
        return False
    if isinstance(cause, (socket.gaierror, ConnectionRefusedError)):
        return begun
    return isinstance(cause, (ConnectionError, TimeoutError, http.client.HTTPException, ssl.SSLError))


def _is_slow(exc: Exception) -> bool:
    return isinstance(exc.reason if isinstance(exc, urllib.error.URLError) else exc, TimeoutError)
