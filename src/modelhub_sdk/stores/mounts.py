"""What kind of file system a path is on, where that decides what is safe."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

_NETWORK = re.compile(
    r"^(nfs\d?|cifs|smb\d?|smbfs|afpfs|ncpfs|9p|ceph|glusterfs|lustre|gpfs|beegfs|panfs|ocfs2|gfs2|afs|webdav"
    r"|fuse\.(sshfs|s3fs|gcsfuse|rclone|goofys|mount-s3|ceph|glusterfs|davfs2?|curlftpfs|juicefs|blobfuse2?|.*nfs.*))$"
)


def network_type(path: Path) -> str | None:
    """Return the type of the network file system that *path* lies (or would lie) on, None on a local one.

    Only Linux says so without a system library; elsewhere the answer is None.
    """
    if not sys.platform.startswith("linux"):
        return None
    place = os.path.realpath(path)
    best, kind = "", None
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                left, _, right = line.partition(" - ")
                point = re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), left.split(" ")[4])
                if len(point) >= len(best) and (place == point or place.startswith(point.rstrip("/") + "/")):
                    best, kind = point, right.split(" ")[0]
    except (OSError, IndexError):
        return None
    return kind if kind is not None and _NETWORK.match(kind) else None
