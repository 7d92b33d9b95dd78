"""The rules for names, aliases, tags, users, free text and the paths of files in a version.

A checked text is the plain `str` that was looked at, character for character: nothing here trims,
folds or normalises. POSIX and Windows rules are judged together on every platform, so that what
one machine registers every other machine can resolve. Every refusal is an `InvalidName`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import NoReturn

from modelhub_sdk.errors import InvalidName, shown

__all__ = [
    "MAX_ACTOR",
    "MAX_NAME",
    "MAX_NUMBER",
    "MAX_PATH",
    "MAX_SEGMENT",
    "MAX_SEGMENTS",
    "MAX_TAG",
    "MAX_TEXT",
    "check_actor",
    "check_alias",
    "check_name",
    "check_number",
    "check_path",
    "check_paths",
    "check_tag",
    "check_text",
    "check_version_name",
]

MAX_NAME = 128
"""Characters in a name or an alias; they are all ASCII, so also bytes."""
MAX_TAG = 128
"""Characters in a tag."""
MAX_ACTOR = 256
"""Characters in a user's name."""
MAX_TEXT = 100_000
"""Characters in a note, a reason, a description."""
MAX_PATH = 1024
"""Bytes (UTF-8) in a path: PATH_MAX of macOS, and the longest key of S3."""
MAX_SEGMENT = 255
"""Bytes (UTF-8) in one segment of a path: NAME_MAX of the usual file systems."""
MAX_SEGMENTS = 256
"""Segments in a path."""
MAX_NUMBER = 2**31 - 1
"""The highest version number: a 32-bit integer of every database."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_VERSION_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._~-]*[A-Za-z0-9])?")
# Every spelling that some language reads as a number: 3, v3, v03, 1.0, 1e3, 1_000, 0x1f.
_LIKE_NUMBER = re.compile(r"v?[0-9][0-9._]*(?:e[0-9+-]*)?|v?0[xob][0-9a-f_]*")
_LIKE_NOTHING = frozenset({"nan", "inf", "null", "none", "nil", "undefined", "true", "false"})
_DEVICE = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3]) *(?:\..*)?",
    re.IGNORECASE | re.DOTALL,
)

_CONTROL = "\x00-\x1f\x7f-\x9f\u2028\u2029"
_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_BAD_LINE = re.compile(f"[{_CONTROL}{_BIDI}\ud800-\udfff]")
# What shows as nothing and so makes an invisible twin. The joiners (200c, 200d) are in it for
# users only: in tags and paths they spell Persian words and emoji.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\U000e0000-\U000e0fff]"
)
_JOINERS = re.compile("[\u200c\u200d\ufe00-\ufe0f]")
_NOT_TEXT = re.compile("[\x00\ud800-\udfff]")
_NOT_IN_PATH = re.compile(r'[\\:*?"<>|]')
# Percent-encoded dots, separators, line ends and percent signs, and overlong forms of them: a reader
# that decodes once too often would leave the folder. Others (100%20.txt) are names like any other.
_ENCODED = re.compile(r"%(?:2[ef]|5c|3a|25|0[0ad]|c[01])", re.IGNORECASE)


def check_name(text: object, what: str = "model name") -> str:
    """Return *text* as a plain name: of a model, a dataset, a project.

    Lower-case ASCII letters, digits, ``.``, ``_`` and ``-``; 1 to 128 of them; a letter or digit
    first and last; no ``..``; no device name of Windows (``con``, ``com1.x``); not ``latest``.

    Raises:
        InvalidName: with the nearest good name, where there is one. *what* says what it names.
    """
    name = _plain(text, what)
    if len(name) > MAX_NAME:
        _refuse_name(name, what, f"has {len(name)} characters; {MAX_NAME} are allowed")
    if not _NAME.fullmatch(name):
        why = "is not made of lower-case letters and digits, with . _ - between them" if name else "is empty"
        _refuse_name(name, what, why)
    if ".." in name:
        _refuse_name(name, what, "has '..' in it")
    if _DEVICE.fullmatch(name):
        _refuse_name(name, what, "is a device on Windows")
    if name == "latest":
        raise InvalidName(
            f"The {what} 'latest' is reserved.", hint="It selects a version; choose another name."
        )
    return name


def check_alias(text: object, what: str = "alias") -> str:
    """Return *text* as the alias of a version: a name that cannot be read as a version number.

    Refused are also ``latest`` (it is computed, not set) and the words that a program writes for a
    missing value (``none``, ``null``, ``nan``, ``undefined``, ``true`` …).

    Raises:
        InvalidName: it is not a name, or could be read as something else.
    """
    alias = check_name(text, what)
    if _LIKE_NUMBER.fullmatch(alias):
        raise InvalidName(
            f"The {what} {shown(alias)} looks like a version number.",
            hint="Versions are written v1, v2, …; choose an alias that is a word, such as 'production'.",
        )
    if alias in _LIKE_NOTHING:
        raise InvalidName(
            f"The {what} {shown(alias)} looks like a missing value.",
            hint="Check the program that wrote it, or choose another word.",
        )
    return alias


def check_number(value: object, what: str = "version number") -> int:
    """Return *value* as a version number: an `int` (no bool) from 1 to 2,147,483,647.

    Raises:
        InvalidName: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_NUMBER:
        raise InvalidName(
            f"The {what} {shown(value)} is not a whole number from 1 to {MAX_NUMBER}.",
            hint="The first version of a model is 1.",
        )
    return int(value)


def check_version_name(text: object, what: str = "dataset version") -> str:
    """Return *text* as the name of a dataset version or of an alias of one.

    ASCII letters of either case, digits, ``.``, ``_``, ``~`` and ``-``; 1 to 128 of them; a letter
    or digit first and last; no ``..``; no device name of Windows. ``latest`` is allowed.

    Raises:
        InvalidName: anything else.
    """
    name = _plain(text, what)
    if len(name) > MAX_NAME or not _VERSION_NAME.fullmatch(name) or ".." in name or _DEVICE.fullmatch(name):
        raise InvalidName(
            f"The {what} {shown(name)} cannot be used.",
            hint=f"Write 1 to {MAX_NAME} ASCII letters, digits and . _ ~ -, a letter or digit at both ends.",
        )
    return name


def check_tag(text: object, what: str = "tag") -> str:
    """Return *text* as a tag: 1 to 128 characters of any script, on one line.

    Refused are control characters, line separators, bidirectional controls, invisible characters,
    lone surrogates, and blanks at either end.

    Raises:
        InvalidName: it is none.
    """
    tag = _plain(text, what)
    _check_line(tag, what, MAX_TAG)
    return tag


def check_text(text: object, what: str, limit: int = MAX_TEXT) -> str:
    """Return *text* as free text (Markdown, several lines) of at most *limit* characters.

    Raises:
        InvalidName: it is not a string, too long, or holds a NUL or a lone surrogate, which no
            database keeps.
    """
    free = _plain(text, what)
    if len(free) > limit:
        raise InvalidName(
            f"The {what} has {len(free)} characters; {limit} are allowed.",
            hint="Attach a long text as a file.",
        )
    if bad := _NOT_TEXT.search(free):
        raise InvalidName(
            f"The {what} has {_described(bad.group())} at position {bad.start()}.",
            hint="It cannot be stored as UTF-8 text; remove it.",
        )
    return free


def check_actor(text: object, what: str = "user") -> str:
    """Return *text* as the name of a user: 1 to 256 visible characters on one line.

    An e-mail address, a login name, ``team:risk``. ``system`` is reserved, in any case.

    Raises:
        InvalidName: it is reserved, or has a control, bidirectional or invisible character.
    """
    actor = _plain(text, what)
    _check_line(actor, what, MAX_ACTOR)
    if bad := _JOINERS.search(actor):
        _refuse_character(actor, what, bad)
    if actor.casefold() == "system":
        raise InvalidName(
            f"The {what} {shown(actor)} is reserved.", hint="Give the name of a person or a service."
        )
    return actor


def check_path(text: object, what: str = "path") -> str:
    r"""Return *text* as the path of a file in a version, in its one spelling: ``weights/part-1.bin``.

    Relative, with ``/`` between segments; no empty, ``.`` or ``..`` segment; at most 1,024 bytes,
    255 in a segment and 256 segments. Nothing that Windows refuses or reads as something else: no
    ``\ : * ? " < > |``, no device name, no dot or blank at the end of a segment. No control,
    line-separating, bidirectional or invisible character, no lone surrogate, no percent-encoded dot,
    separator, line end or percent sign, and no segment ``.git``.

    Raises:
        InvalidName: it is not such a path.
    """
    path = _plain(text, what)
    if not path:
        _refuse_path(path, what, "is empty", "Name a file.")
    if len(path) > MAX_PATH:  # before anything that looks at every character
        _refuse_path(
            path, what, f"is longer than {MAX_PATH} bytes", "Shorten it, or pack the files into one."
        )
    if bad := _BAD_LINE.search(path) or _INVISIBLE.search(path):
        _refuse_character(path, what, bad)
    if bad := _NOT_IN_PATH.search(path):
        hint = (
            "Separate folders with '/'."
            if bad.group() == "\\"
            else "Rename the file; some platforms refuse it."
        )
        _refuse_path(path, what, f"has {_described(bad.group())} at position {bad.start()}", hint)
    if bad := _ENCODED.search(path):
        _refuse_path(
            path, what, f"has the percent-encoded {bad.group()!r}", "Write paths as they are, not encoded."
        )
    if len(path.encode()) > MAX_PATH:
        _refuse_path(
            path, what, f"is longer than {MAX_PATH} bytes", "Shorten it, or pack the files into one."
        )
    segments = path.split("/")
    if len(segments) > MAX_SEGMENTS:
        _refuse_path(path, what, f"has more than {MAX_SEGMENTS} levels", "Pack the files into one.")
    for segment in segments:
        _check_segment(path, segment, what)
    return path


def check_paths(paths: Iterable[str]) -> None:
    """Check a set of *paths*, each already checked, for what they do to each other.

    Raises:
        InvalidName: one is there twice; two are one name to a file system that normalises Unicode;
            or one is both a file and a folder of another.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        key = path if path.isascii() else unicodedata.normalize("NFC", path)
        if key in files:
            _refuse_pair(files[key], path)
        files[key] = path
        cut = path.rfind("/")
        while cut > 0:
            folder = path[:cut]
            key = folder if folder.isascii() else unicodedata.normalize("NFC", folder)
            known = folders.setdefault(key, folder)
            if known != folder:
                _refuse_pair(known, folder)
            if known is not folder:
                break  # its own parents were seen with it
            cut = path.rfind("/", 0, cut)
    for key in folders.keys() & files.keys():
        raise InvalidName(
            f"The path {shown(files[key])} is a file and also the folder of another file.",
            hint="Rename one of them.",
        )


def _plain(text: object, what: str) -> str:
    """Return the characters of *text* as a plain `str`; a subclass cannot show others later."""
    if not isinstance(text, str):
        raise InvalidName(f"The {what} is {shown(text)}, not text.", hint="Pass a str.")
    return str.__str__(text)


def _check_line(line: str, what: str, limit: int) -> None:
    if not line:
        raise InvalidName(f"The {what} is empty.", hint="Leave it out, or write something.")
    if len(line) > limit:
        raise InvalidName(
            f"The {what} {shown(line, 40)} has {len(line)} characters; {limit} are allowed.",
            hint="Shorten it; a long text belongs into a note.",
        )
    if bad := _BAD_LINE.search(line) or _INVISIBLE.search(line):
        _refuse_character(line, what, bad)
    if line != line.strip():
        raise InvalidName(
            f"The {what} {shown(line)} has a blank at its edge.", hint="Remove it.", nearest=line.strip()
        )


def _check_segment(path: str, segment: str, what: str) -> None:
    """Refuse one segment of *path* that a file system would not keep under this very name."""
    if segment in ("", ".", ".."):
        why = f"has {shown(segment)} as a segment" if segment else "has an empty segment"
        _refuse_path(path, what, why, "Write it relative, as in 'weights/part-1.bin'.")
    if len(segment.encode()) > MAX_SEGMENT:
        _refuse_path(path, what, f"has a segment longer than {MAX_SEGMENT} bytes", "Shorten the file's name.")
    if segment[-1] in ". ":
        _refuse_path(
            path, what, "has a segment that ends with a dot or a blank", "Windows drops it; rename the file."
        )
    if _DEVICE.fullmatch(segment):
        _refuse_path(path, what, f"has the Windows device {shown(segment)} as a segment", "Rename the file.")
    if segment.casefold() == ".git":
        _refuse_path(
            path, what, "lies in a '.git' folder", "Leave the folder out, for example with ignore=['.git']."
        )


def _refuse_path(path: str, what: str, why: str, hint: str) -> NoReturn:
    raise InvalidName(f"The {what} {shown(path)} {why}.", hint=hint)


def _refuse_character(text: str, what: str, bad: re.Match[str]) -> NoReturn:
    raise InvalidName(
        f"The {what} {shown(text)} has {_described(bad.group())} at position {bad.start()}.",
        hint="Remove it.",
    )


def _refuse_pair(one: str, other: str) -> NoReturn:
    if one == other:
        raise InvalidName(f"The path {shown(one)} is there twice.", hint="Give each file its own path.")
    raise InvalidName(
        f"The paths {shown(ascii(one)[1:-1])} and {shown(ascii(other)[1:-1])} are one on some file systems.",
        hint="Rename one of them; they differ only in how Unicode composes their characters.",
    )


def _refuse_name(name: str, what: str, why: str) -> NoReturn:
    near = _nearest_name(name)
    hint = f"Write {shown(near, MAX_NAME)}." if near else "Use lower-case letters, digits, '.', '_' and '-'."
    raise InvalidName(f"The {what} {shown(name)} {why}.", hint=hint, nearest=near)


def _nearest_name(name: str) -> str:
    """Return the good name that *name* most likely meant, or "" where that would be a guess."""
    plain = unicodedata.normalize("NFKD", name[:512]).casefold()
    plain = re.sub(r"[\u0300-\u036f]", "", plain)
    if "%" in plain or any(c.isalnum() and not c.isascii() for c in plain):
        return ""
    plain = re.sub(r"[^a-z0-9._-]+", "-", plain)
    plain = re.sub(r"\.{2,}", ".", plain).strip("._-")[:MAX_NAME].rstrip("._-")
    if _DEVICE.fullmatch(plain):
        base, dot, rest = plain.partition(".")
        plain = f"{base}-model{dot}{rest}"[:MAX_NAME]
    return plain if _NAME.fullmatch(plain) and plain != "latest" and not _DEVICE.fullmatch(plain) else ""


def _described(character: str) -> str:
    """Return what a person may call this *character* in an error."""
    if character.isprintable() and not 0xD800 <= ord(character) < 0xE000:
        return shown(character)
    name = unicodedata.name(character, "")
    return f"the character U+{ord(character):04X}" + (f" ({name.lower()})" if name else "")
