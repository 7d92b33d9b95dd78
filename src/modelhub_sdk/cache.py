"""``modelhub_sdk.cache``: the files that `resolve` keeps on this machine, for all processes of a user.

Each function works on the cache that `modelhub_sdk.open` uses: *cache_dir*, else
``$MODELHUB_CACHE_DIR``, else the user's cache folder. What is removed is fetched anew when it is
next needed. ``$MODELHUB_CACHE_SIZE`` (``"50GB"``) bounds the cache: what was used longest ago goes first.
"""

from __future__ import annotations

import os

from modelhub_sdk.blobs import progress as bars
from modelhub_sdk.blobs.cache import Cache, CacheInfo, parse_size

__all__ = ["CacheInfo", "clear", "info", "prune", "verify"]

_Folder = str | os.PathLike[str] | None


def info(*, cache_dir: _Folder = None) -> CacheInfo:
    """Return what the cache holds, sizes in bytes.

    Raises:
        InvalidName: *cache_dir* or a variable of the environment names no folder, or no size.
        StoreUnavailable: the cache cannot be read.
    """
    return Cache(cache_dir).info()


def prune(max_size: int | str | None = None, *, cache_dir: _Folder = None) -> int:
    """Remove what was used longest ago until at most *max_size* is left; return the bytes freed.

    Transfers that were interrupted go too. What a living process is linking just now stays, and a process that
    reads a removed file reads on.

    Args:
        max_size: bytes, or a text such as ``"20GB"``. None: ``$MODELHUB_CACHE_SIZE``; where that is not set either,
            no file goes that is whole.
        cache_dir: another cache than the default one.

    Raises:
        InvalidName: *max_size* is no size, or as `info`.
        StoreUnavailable: the cache cannot be read or written.
    """
    return Cache(cache_dir).prune(None if max_size is None else parse_size(max_size))


def verify(*, cache_dir: _Folder = None, progress: bool | None = None) -> tuple[str, ...]:
    """Read every cached file; remove those whose bytes are wrong, and return their digests.

    On a disk without hard links folders are copies, and are read too; of a wrong one the digest is that of its
    manifest, which is the digest of a version. Shows a bar when a person is watching, or as *progress* says.

    Raises:
        InvalidName: as `info`.
        StoreUnavailable: something could not be read. It stays; all else was looked at, and what was wrong is removed.
    """
    cache = Cache(cache_dir)
    with bars.bar(cache.info().size, "verifying the cache", show=progress) as step:
        return cache.verify(progress=step)


def clear(*, cache_dir: _Folder = None) -> int:
    """Remove everything that is cached, but what is being linked just now; return the bytes freed.

    Raises:
        InvalidName: as `info`.
        StoreUnavailable: the cache cannot be read or written.
    """
    return Cache(cache_dir).clear()
