"""Giving one file's bytes a second name: reflink, hard link, or copy."""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import Literal

from modelhub_sdk.errors import InvalidName, shown

How = Literal["auto", "copy", "reflink", "hard"]
HOW = ("auto", "copy", "reflink", "hard")

_FICLONE = 0x40049409  # linux/fs.h; the same on every architecture that Python runs on but mips, ppc, sparc


def check_how(how: str, what: str = "link") -> How:
    """Return *how* if it is one of "auto", "copy", "reflink", "hard"; *what* says where it was given.

    Raises:
        InvalidName: it is not.
    """
    if how not in HOW:
        raise InvalidName(f"{what}={shown(how)} is unknown.", hint="Use 'auto', 'copy', 'reflink' or 'hard'.")
    return how  # type: ignore[return-value]


def clone(source: int, target: int) -> bool:
    """Make the open file *target* share the blocks of the open file *source*; False where it cannot.

    The two are independent afterwards: changing one leaves the other as it was.
    """
    if not sys.platform.startswith("linux") or os.uname().machine.startswith(("mips", "ppc", "sparc")):
        return False
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:  # another file system, or one without reflinks: the caller copies
        return False
    return True


def hard(source: str | bytes, name: str | bytes, *, dir_fd: int | None = None) -> bool:
    """Make *name* a hard link to the regular file *source*; False where that cannot be done.

    Raises:
        FileExistsError: *name* exists.
    """
    try:
        os.link(source, name, dst_dir_fd=dir_fd, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError) as exc:
        # Another device, no links there, too many links, or forbidden for a file of another owner.
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EIO, errno.EROFS, errno.ENOENT):
            raise
        return False
    return True


def writable(info: os.stat_result) -> bool:
    """Return whether this user could change the file of which *info* is the stat, by mode or ownership."""
    if os.name == "nt":
        return True
    if os.geteuid() in (0, info.st_uid):
        return True
    if info.st_mode & stat.S_IWOTH:
        return True
    return bool(info.st_mode & stat.S_IWGRP) and info.st_gid in (os.getegid(), *os.getgroups())
