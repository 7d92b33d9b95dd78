r"""The wall: what a path, name, size or digest that was stored must be, whoever stored it.

A journal, an index, a manifest, a bundle or a cache may have been written by somebody else. What is read
from them is checked here when it becomes a value, and once more before anything is placed on a disk. The
rules keep a record from leading outside of a folder, and numbers within 64 bits. They are no rules of
taste: `domain.names` says what may be registered today, and this module accepts all that any release ever
accepted.

A stored path is relative and POSIX: segments between single ``/``, none of them empty, ``.`` or ``..``,
without NUL, backslash and lone surrogates. Every refusal is an `InvalidDocument`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from modelhub_sdk.domain.entities import File
from modelhub_sdk.errors import InvalidDocument, shown

MAX_PATH = 4096
"""Characters in a stored path: more than any release ever registered, and PATH_MAX of Linux."""
MAX_NAME = 1024
"""Characters in a stored name that may become one segment of a path."""
MAX_INT = 2**63 - 1
"""The largest stored size, count or time: 64 bits, as in every database."""
MAX_NUMBER = 2**31 - 1
"""The highest stored number of a version or an attempt."""

_BAD_SEGMENTS = frozenset(("", ".", ".."))
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEX = b"0123456789abcdef"
_LENGTH = len("sha256:") + 64
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")  # the usual name, seen at one glance
_INTS = frozenset({int})


def is_path(path: object) -> bool:
    """Return whether *path* is a clean relative path, as the module says."""
    return type(path) is str and len(path) <= MAX_PATH and "\0" not in path and _are_clean(path)


def _are_clean(paths: str) -> bool:
    """Return whether some paths, joined by NUL, have no bad segment and no bad character."""
    if "\\" in paths or not _BAD_SEGMENTS.isdisjoint(paths.replace("\0", "/").split("/")):
        return False
    if paths.isascii():
        return True
    try:
        paths.encode()
    except UnicodeEncodeError:  # half a character
        return False
    return True


def is_name(name: object) -> bool:
    """Return whether *name* may stand as one segment of a path: of a model, an alias, a run, a registry."""
    if type(name) is not str:
        return False
    return _PLAIN.fullmatch(name) is not None or (len(name) <= MAX_NAME and "/" not in name and is_path(name))


def is_size(size: object) -> bool:
    """Return whether *size* is an `int` (no bool) from 0 to 2**63-1."""
    return type(size) is int and 0 <= size <= MAX_INT


def is_digest(text: object) -> bool:
    """Return whether *text* is ``sha256:`` and 64 lower-case hex digits."""
    return type(text) is str and _DIGEST.fullmatch(text) is not None


def path(raw: object, what: str = "path") -> str:
    """Return *raw* as a stored path.

    Raises:
        InvalidDocument: it is none, and could lead outside of a folder.
    """
    if not is_path(raw):
        raise InvalidDocument(f"The {what} {shown(raw)} is no path inside of a folder.")
    return raw  # type: ignore[return-value]


def name(raw: object, what: str = "name") -> str:
    """Return *raw* as a stored name, which may become one segment of a path.

    Raises:
        InvalidDocument: it is none.
    """
    if not is_name(raw):
        raise InvalidDocument(f"The {what} {shown(raw)} is no name.")
    return raw  # type: ignore[return-value]


def text(raw: object, what: str = "text") -> str:
    """Return *raw* as stored text that names something and never becomes a path.

    Raises:
        InvalidDocument: it is no text, or holds a NUL or a lone surrogate, which no database keeps.
    """
    if type(raw) is not str:
        raise InvalidDocument(f"The {what} is {shown(raw)} instead of text.")
    if "\0" in raw or not (raw.isascii() or _SURROGATE.search(raw) is None):
        raise InvalidDocument(f"The {what} {shown(raw)} has a character that no database keeps.")
    return raw


_SURROGATE = re.compile("[\ud800-\udfff]")


def integer(raw: object, what: str = "number", least: int = -MAX_INT, most: int = MAX_INT) -> int:
    """Return *raw* as a stored whole number.

    Raises:
        InvalidDocument: it is no `int` (or a bool), or lies outside of *least* … *most*.
    """
    if type(raw) is not int:
        raise InvalidDocument(f"The {what} is {shown(raw)} instead of a whole number.")
    if not least <= raw <= most:
        raise InvalidDocument(f"The {what} {shown(raw)} is not from {least} to {most}.")
    return raw


def size(raw: object, what: str = "size") -> int:
    """Return *raw* as a stored size in bytes.

    Raises:
        InvalidDocument: it is no whole number from 0 to 2**63-1.
    """
    return integer(raw, what, 0)


def digest(raw: object, what: str = "digest") -> str:
    """Return *raw* as the stored digest of bytes.

    Raises:
        InvalidDocument: it is not ``sha256:`` and 64 lower-case hex digits.
    """
    if not is_digest(raw):
        raise InvalidDocument(f"The {what} {shown(raw)} is not sha256: and 64 lower-case hex digits.")
    return raw  # type: ignore[return-value]


def file(path_: object, size_: object, digest_: object) -> File:
    """Return a stored file.

    Raises:
        InvalidDocument: its path, size or digest is none.
    """
    if not (is_path(path_) and is_size(size_) and is_digest(digest_)):
        good = path(path_)
        size(size_, f"size of {shown(good)}")
        digest(digest_, f"digest of {shown(good)}")
    return File(path_, size_, digest_)  # type: ignore[arg-type]


def files(paths: list[Any], sizes: list[Any], digests: list[Any]) -> tuple[File, ...]:
    """Return many stored files, checked at once: a few scans in C, whatever their number.

    Raises:
        InvalidDocument: the path, size or digest of one of them is none.
    """
    if len(paths) == 1:
        return (file(paths[0], sizes[0], digests[0]),)
    if not (_are_paths(paths) and _are_sizes(sizes) and _are_digests(digests)):
        for one in zip(paths, sizes, digests, strict=True):
            file(*one)
    return tuple(map(File, paths, sizes, digests))


def check_paths(paths: Iterable[str]) -> None:
    """Check many paths at once, before anything is written under them.

    Raises:
        InvalidDocument: one of them is no clean relative path.
    """
    many = list(paths)
    if not _are_paths(many):
        for one in many:
            path(one)


def _are_paths(paths: list[Any]) -> bool:
    try:
        joined = "\0".join(paths)
    except TypeError:  # one is no text
        return False
    return not paths or (
        joined.count("\0") == len(paths) - 1
        and max(map(len, paths)) <= MAX_PATH
        and set(map(type, paths)) == {str}
        and _are_clean(joined)
    )


def _are_sizes(sizes: list[Any]) -> bool:
    return not sizes or (set(map(type, sizes)) == _INTS and min(sizes) >= 0 and max(sizes) <= MAX_INT)


def _are_digests(digests: list[Any]) -> bool:
    try:
        joined = "\0" + "\0".join(digests)
        plain = joined.encode("ascii")
    except (TypeError, UnicodeEncodeError):
        return False
    return not digests or (
        set(map(len, digests)) == {_LENGTH}
        and joined.count("\0sha256:") == len(digests)
        and plain.translate(None, _HEX) == b"\0sh:" * len(digests)  # the prefix has hex digits of its own
    )


__all__ = [
    "MAX_INT",
    "MAX_NAME",
    "MAX_NUMBER",
    "MAX_PATH",
    "check_paths",
    "digest",
    "file",
    "files",
    "integer",
    "is_digest",
    "is_name",
    "is_path",
    "is_size",
    "name",
    "path",
    "size",
    "text",
]
