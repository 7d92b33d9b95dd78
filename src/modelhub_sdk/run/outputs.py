"""The folder that a run writes: held by one run at a time, and what lay there before is not its own."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.errors import Conflict, InvalidName, NotAllowed, shown

_TRIES, _PAUSE = 6, 0.05  # a child that was just forked lets go of the lock a moment later

_held: weakref.WeakSet[OutputsFolder] = weakref.WeakSet()


class OutputsFolder:
    """An outputs folder, locked for as long as the run is on.

    The lock is the kernel's, on the folder itself: it leaves no mark, and ends with the process however
    that ends. Where folders cannot be locked (some network file systems) it is not held.

    Attributes:
        path: the folder, absolute.
        before: what lay there when the run began: path -> (size, mtime in ns, inode).
    """

    def __init__(self, path: Path, lock: int | None, made: bool) -> None:
        self.path = path
        self.before: Mapping[str, tuple[int, int, int]] = Frozen()
        self._lock = lock
        self._made = made
        _held.add(self)

    @classmethod
    def claimed(cls, given: str | os.PathLike[str] | None, *, shared: bool = False) -> OutputsFolder | None:
        """Make the folder if need be, and lock it. None for None.

        With *shared* (the default folder, within another run) a folder that another run of this
        process holds is that run's: None.

        Raises:
            Conflict: another run that is on writes there.
            NotAllowed: it is a file, or cannot be made.
        """
        if given is None:
            return None
        if not isinstance(given, (str, os.PathLike)) or not os.fsdecode(given) or "\0" in os.fsdecode(given):
            raise InvalidName(
                f"outputs={shown(given)} is not a folder.", hint="Pass the path of a folder, or None."
            )
        path = Path(os.path.abspath(os.fsdecode(given)))
        if shared and any(one.path == path for one in _held if one._lock is not None):
            return None
        made = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotAllowed(
                f"The outputs folder {shown(str(path), 200)} cannot be made: {error.strerror}.",
                hint="Choose another with outputs=, or None for none.",
            ) from None
        return cls(path, _locked(path), made)

    def note_what_is_there(self) -> None:
        """Take note of what lies in the folder already: it is not an output of this run, unless it changes."""
        found = {}
        for folder, _folders, files in os.walk(self.path):
            for name in files:
                full = os.path.join(folder, name)
                with suppress(OSError):
                    found[Path(full).relative_to(self.path).as_posix()] = state(full)
        self.before = Frozen(found)

    def is_untouched(self) -> bool:
        """Return whether nothing lies in the folder but what lay there before."""
        for folder, _folders, files in os.walk(self.path):
            for name in files:
                full = os.path.join(folder, name)
                with suppress(OSError):
                    if self.before.get(Path(full).relative_to(self.path).as_posix()) != state(full):
                        return False
        return True

    def release(self) -> None:
        """Give up the lock."""
        if self._lock is not None:
            with suppress(OSError):
                os.close(self._lock)
            self._lock = None
        _held.discard(self)

    def remove_if_empty(self) -> None:
        """Remove the folder if this run made it, and nothing was written there."""
        if self._made:
            with suppress(OSError):
                self.path.rmdir()


def state(path: str) -> tuple[int, int, int]:
    """Return what changes when a file is written: (size, mtime in ns, inode)."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ino


def _locked(path: Path) -> int | None:
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError:
        return None
    for left in range(_TRIES, -1, -1):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if left:
                time.sleep(_PAUSE)
                continue
            os.close(descriptor)
            raise Conflict(
                f"Another run that is on writes to {shown(str(path), 200)}.",
                hint="Give each run a folder of its own: outputs='outputs/a'.",
            ) from None
        except OSError:  # this file system knows no such locks
            os.close(descriptor)
            return None
        break
    return descriptor


def _forked() -> None:
    """In a forked child: let go of the parent's locks, which a surviving child would hold for ever."""
    for one in list(_held):
        if one._lock is not None:
            with suppress(OSError):
                os.close(one._lock)
            one._lock = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
