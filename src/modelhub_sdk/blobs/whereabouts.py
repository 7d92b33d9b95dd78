"""Where a cache lies, whose that place is, and how large the cache may become.

In a folder that all users share (``$TMPDIR``) the name of ours can be guessed. So what lies there is made by us, for
us alone, and is looked at before anything in it is believed: somebody else may have been there first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat

from modelhub_sdk.errors import InvalidName, StoreUnavailable, shown

_UNITS = {"": 1, "B": 1} | {
    unit + tail: base**power
    for power, unit in enumerate("KMGTP", 1)
    for tail, base in (("", 1000), ("B", 1000), ("IB", 1024))
}
_MOST = 2**63  # bytes; no disk is as large


def parse_size(given: object, what: str = "max_size") -> int:
    """Return a number of bytes that was given as such, or as text: ``"500MB"``, ``"20 GiB"``.

    Raises:
        InvalidName: it is neither, or negative, or larger than any disk.
    """
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < _MOST:
        return given
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", given) if isinstance(given, str) else None
    if match is not None and (unit := _UNITS.get(match[2].upper())) is not None:
        size = float(match[1]) * unit
        if size < _MOST:
            return int(size)
    raise InvalidName(f"{what}={shown(given)} is no size.", hint="Write bytes, or for example '20GB'.")


def bound() -> int | None:
    """Return how many bytes the cache may hold: ``$MODELHUB_CACHE_SIZE``; None when it is not set.

    Raises:
        InvalidName: the variable is no size, or empty.
    """
    given = os.environ.get("MODELHUB_CACHE_SIZE")
    return None if given is None else parse_size(given, "MODELHUB_CACHE_SIZE")


def is_named(given: object) -> bool:
    """Return whether somebody says where the cache is: by *given*, or by ``$MODELHUB_CACHE_DIR``."""
    return given is not None or "MODELHUB_CACHE_DIR" in os.environ


def locate(given: str | os.PathLike[str] | None = None) -> str:
    """Return the absolute folder of the cache: *given*, ``$MODELHUB_CACHE_DIR``, or the user's cache folder.

    Without a usable home (a container without HOME or passwd entry) it is in ``$TMPDIR``, and made at once, so
    that nobody else makes it.

    Raises:
        InvalidName: *given* or the variable is no absolute path.
        StoreUnavailable: there is no place for a cache, or that in ``$TMPDIR`` is somebody else's.
    """
    what = "cache_dir"
    if given is None and "MODELHUB_CACHE_DIR" in os.environ:
        given, what = os.environ["MODELHUB_CACHE_DIR"], "MODELHUB_CACHE_DIR"
    return _default() if given is None else _checked(given, what)


def _checked(given: object, what: str) -> str:
    named = given if isinstance(given, str) else os.fspath(given) if isinstance(given, os.PathLike) else None
    if not isinstance(named, str):
        raise InvalidName(f"{what}={shown(given)} is no path.", hint="Pass text or a pathlib.Path.")
    path = os.path.expanduser(named)
    if not path or "\0" in path:
        raise InvalidName(f"{what} is empty.", hint=f"Set {what} to an absolute path, or leave it unset.")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise InvalidName(
            f"{what}={shown(path)} cannot be the name of a folder on this machine.",
            hint=f"Set {what} to another absolute path.",
        ) from None
    if not os.path.isabs(path):
        raise InvalidName(
            f"{what}={shown(path)} is a relative path: it would change with the working directory.",
            hint=f"Set {what} to an absolute path.",
        )
    return os.path.normpath(path)


def _default() -> str:
    if os.environ.get("XDG_CACHE_HOME") or os.path.isdir(os.path.expanduser("~")):
        import platformdirs

        path = platformdirs.user_cache_dir("modelhub", appauthor=False)
        if os.path.isabs(path) and _usable(path):
            return path
    return owned(temporary())


def temporary() -> str:
    """Return the folder of this user among the temporary ones; see `owned`.

    Raises:
        StoreUnavailable: there is no temporary folder that can be written.
    """
    import tempfile

    try:
        return os.path.join(
            tempfile.gettempdir(), f"modelhub-{os.geteuid() if hasattr(os, 'geteuid') else 'cache'}"
        )
    except OSError as exc:
        raise StoreUnavailable(
            "There is no writable place for the cache: no home folder, no temporary folder.",
            hint="Set MODELHUB_CACHE_DIR to an absolute path that can be written.",
        ) from exc


def among(path: str) -> str | None:
    """Return the folder of this user among the temporary ones, if *path* is that or lies in it."""
    with contextlib.suppress(StoreUnavailable):
        top = temporary()
        if path == top or path.startswith(top + os.sep):
            return top
    return None


def owned(path: str) -> str:
    """Return *path*, a folder among those of others, which is made if need be and is this user's alone.

    Raises:
        StoreUnavailable: it is a link or no folder, or another user owns it or can write to it.
    """
    try:
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
                if os.lstat(path).st_mode & 0o700 != 0o700:  # by the umask
                    os.chmod(path, 0o700)
            info = os.lstat(path)
    except OSError as exc:
        raise StoreUnavailable(
            f"Cannot make the cache {shown(path, 300)}: {os.strerror(exc.errno or 0)}.",
            hint="Set MODELHUB_CACHE_DIR (or cache_dir=) to an absolute path that can be written.",
            errno=exc.errno,
        ) from exc
    if not stat.S_ISDIR(info.st_mode):
        wrong = "is a symbolic link" if stat.S_ISLNK(info.st_mode) else "is no folder"
    elif hasattr(os, "geteuid") and info.st_uid != os.geteuid():
        wrong = "belongs to another user"
    elif os.name != "nt" and info.st_mode & 0o022:
        wrong = "can be written by other users"
    else:
        return path
    raise StoreUnavailable(
        f"The cache {shown(path, 300)} is not trusted: it {wrong} (owner {_owner(info.st_uid)},"
        f" mode {stat.S_IMODE(info.st_mode):04o}).",
        hint="Set MODELHUB_CACHE_DIR (or cache_dir=) to a folder of your own, or have that one removed.",
    )


def _owner(uid: int) -> str:
    with contextlib.suppress(ImportError, KeyError):
        import pwd

        return shown(pwd.getpwuid(uid).pw_name)
    return str(uid)


def overlay(path: str) -> str:
    """Return where this user keeps what cannot be written to the cache *path*. Raises as `temporary` does."""
    return os.path.join(temporary(), "over-" + hashlib.sha256(os.fsencode(path)).hexdigest()[:16])


def _usable(path: str) -> bool:
    """Return whether *path*, or the nearest folder above it that exists, can be written."""
    while not os.path.exists(path):
        parent = os.path.dirname(path)
        if parent == path:
            return False
        path = parent
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)


__all__ = ["among", "bound", "is_named", "locate", "overlay", "owned", "parse_size", "temporary"]
