"""Where versions may name bytes outside of the store: the one rule, for registering and for resolving.

A URL is compared with the allowed prefixes by whole parts of its path, after everything is refused that could
mean another place to whoever reads it: ``..``, encoded or not, users and passwords, queries, wildcards.
`plain` is how messages show any URL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

from modelhub_sdk.errors import InvalidURI, NotAllowed, shown

MAX_URL = 1000
"""Characters of a URL that a version may name."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(/[^?#]*)?", re.DOTALL)
_NEVER = frozenset(
    {"file", "local", "memory", "dir", "data", "simplecache", "filecache", "blockcache", "reference"}
)
_AZURE = frozenset({"abfs", "abfss", "az"})
_WEB = frozenset({"http", "https"})

_PORT = re.compile(r":\d{0,5}")

Parts = tuple[str, str, tuple[str, ...]]


def plain(url: str) -> str:
    """Return *url* as messages may show it: without user, password, query and fragment, which may hold secrets.

    Where a user ends is not always clear: with a bare slash in a password, all is left away but the scheme.
    Azure's containers, which are written as users, stay.
    """
    scheme, mark, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if _hides_user(authority, rest):
        return f"{scheme}{mark}***"
    user, at, host = authority.rpartition("@")
    if user and ":" not in user and scheme.lower() in _AZURE:
        host = user + at + host
    return scheme + mark + host + re.split(r"[?#]", rest[len(authority) :], maxsplit=1)[0]


def _hides_user(authority: str, rest: str) -> bool:
    """Return whether a password with a slash in it may go on after what looks like the host."""
    name, colon, _ = authority.partition(":")
    return (
        "@" not in authority
        and bool(colon)
        and not name.startswith("[")
        and not _PORT.fullmatch(authority[len(name) :])
        and "@" in rest
    )


def parts(url: str) -> Parts:
    """Return scheme, host or bucket, and the parts of the path of a URL that could be named.

    Raises:
        InvalidURI: it could not, and the message says why. Nothing secret stands in it.
    """
    where = shown(plain(url), 200)

    def bad(why: str) -> InvalidURI:
        return InvalidURI(
            f"{where} cannot be kept by reference: {why}.",
            hint="Write a plain URL such as s3://bucket/model.bin.",
        )

    if "://" in url and _hides_user(re.split(r"[/?#]", url.partition("://")[2])[0], url):
        raise bad("a user or a password stands in it")
    if re.search(r"[?#]", url):
        raise bad("a query (?…) or a fragment (#…) is not allowed in it")
    match = _URL.fullmatch(url)
    if match is None or len(url) > MAX_URL:
        raise bad("it is no URL" if match is None else f"it is longer than {MAX_URL} characters")
    scheme, host, path = match[1].lower(), match[2], match[3] or ""
    if scheme in _NEVER:
        raise bad(f"{scheme}: is what each machine has for itself")
    user, at, _ = host.rpartition("@")
    if "::" in url or (at and (scheme not in _AZURE or ":" in user)):
        raise bad("a user, a password or a chain of drivers stands in it")
    if not host or any(ord(c) < 33 or c == "\\" or ord(c) == 127 for c in host):
        raise bad("it names no host or bucket")
    names = path.split("/")[1:]
    if names and not names[-1]:
        names.pop()
    found = []
    for name in names:
        try:
            once = unquote(name, errors="strict" if scheme in _WEB else "replace")
            twice = unquote(once, errors="strict" if scheme in _WEB else "replace")
        except UnicodeDecodeError:  # what reads such bytes as ".." is out there
            raise bad("its path has bytes that are not UTF-8") from None
        # A server may cut off what follows a semicolon, and then see "..".
        means = twice.partition(";")[0] if scheme in _WEB else twice
        if means in ("", ".", "..") or (any(c in twice for c in "/\\") and scheme in _WEB):
            raise bad("its path could lead elsewhere")
        if any(c in name for c in "*[]{}\\") or any(ord(c) < 32 or ord(c) == 127 for c in twice):
            raise bad("its path has a wildcard or a control character")
        found.append(once if scheme in _WEB else name)
    return scheme, host.lower() if scheme in _WEB else host, tuple(found)


def is_allowed(url: str, prefixes: Iterable[str]) -> bool:
    """Return whether *url* lies below one of *prefixes*; raises as `parts`.

    A prefix that could not be named allows nothing: settings may be older than a rule.
    """
    scheme, host, names = parts(url)
    for prefix in prefixes:
        try:
            found = parts(prefix)
        except InvalidURI:
            continue
        if (scheme, host) == found[:2] and names[: len(found[2])] == found[2]:
            return True
    return False


def check(url: str, prefixes: Iterable[str]) -> None:
    """Raise NotAllowed unless *url* lies below one of *prefixes*; InvalidURI as `parts`."""
    known = tuple(prefixes)
    if not is_allowed(url, known):
        allowed = ", ".join(shown(plain(one), 200) for one in known) or "none"
        raise NotAllowed(
            f"Bytes at {shown(plain(url), 300)} may not be named by this registry; allowed prefixes: {allowed}.",
            hint="The owner of the registry allows more with reg.configure(external=[...]).",
        )


__all__ = ["MAX_URL", "check", "is_allowed", "parts", "plain"]
