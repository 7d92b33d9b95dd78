"""Blobs in a local folder: one pass, hashed while copied, durable before they are visible."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from modelhub_sdk.blobs import disk, link
from modelhub_sdk.blobs.disk import FdReader, Progress, Reader, translated, unavailable
from modelhub_sdk.blobs.sources import Source
from modelhub_sdk.errors import NotFound

_WHOLE = (
    1 << 20
)  # up to this size a file is hashed in memory first: one already stored costs a read, and no write
_FRESH = 300.0  # seconds after which a folder's entry has reached the disk by itself
_TOUCH = 3600.0  # a blob used again is marked as fresh when its mark is older than this
_MARK = 8192  # bytes of a mark that are read
_SHARD = re.compile(r"[0-9a-f]{2}")
_REST = re.compile(r"[0-9a-f]{62}")


class LocalBlobs:
    """Blobs under ``<base>/sha256/ab/<62 hex>``; temporary files under ``<base>/tmp``."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._swept = 0.0

    def path(self, digest: str) -> str:
        """Return where the blob *digest* lies, or would."""
        hex_ = digest.removeprefix("sha256:")
        return os.path.join(self.base, "sha256", hex_[:2], hex_[2:])

    # ---- writing

    def put(self, source: Source, progress: Progress | None, *, anew: bool = False) -> tuple[str, int]:
        """Store the bytes of *source*; return digest and size. Wrong stored bytes are replaced, *anew* or not."""
        reader = source.open()
        try:
            if source.size is not None and source.size <= _WHOLE:
                return self._put_small(reader, source.size, progress)
            return self._put_large(reader, source.size, progress)
        finally:
            reader.close()

    def _put_small(self, reader: Reader, size: int, progress: Progress | None) -> tuple[str, int]:
        view = memoryview(bytearray(size + 1))  # one more: a file that grew is found out by its reader
        got = 0
        while got <= size and (step := reader.readinto(view[got:])):
            got += step
        reader.finish()
        data = view[:got]
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if not (self._holds(digest, data) and self.keep(digest, got)):
            with self._temporary() as (fd, temporary), translated("write to the artifact store", self.base):
                disk.write_all(fd, data)
                self._publish(fd, temporary, digest)
        if progress is not None:
            progress(got)
        return digest, got

    def _holds(self, digest: str, data: memoryview) -> bool:
        """Return whether the stored bytes are *data*. A stored file that cannot be read is one to replace."""
        try:
            fd, info = disk.open_regular(self.path(digest))
        except OSError:
            return False
        try:
            with os.fdopen(fd, "rb", buffering=0) as file:
                return info.st_size == len(data) and file.read(len(data) + 1) == bytes(data)
        except OSError:  # a bad sector
            return False

    def _put_large(self, reader: Reader, size: int | None, progress: Progress | None) -> tuple[str, int]:
        # The copy is on the disk before its digest is known. Renaming it over a stored file is cheaper than
        # reading that file to see whether it is still right, and heals it where it is not.
        with self._temporary() as (fd, temporary):
            digest, got = disk.copy(reader, fd, size=size, progress=progress, where=self.base, flush=True)
            with translated("write to the artifact store", self.base):
                self._publish(fd, temporary, digest)
        return digest, got

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[int, str]]:
        folder = os.path.join(self.base, "tmp")
        path = os.path.join(folder, disk.temporary())
        with translated("write to the artifact store", self.base):
            disk.make_dirs(folder)
            if time.monotonic() - self._swept > 60 or not self._swept:
                disk.sweep(folder)
                self._put_back()
                self._swept = time.monotonic()
            fd = disk.create(path, 0o444)
        try:
            yield fd, path
        finally:
            os.close(fd)
            disk.remove(path)  # gone already when it was published

    def _publish(self, fd: int, temporary: str, digest: str) -> None:
        os.fsync(fd)
        final = self.path(digest)
        disk.make_dirs(os.path.dirname(final))
        try:
            os.replace(temporary, final)
        except (IsADirectoryError, PermissionError):  # PermissionError: what Windows says of a folder
            if not os.path.isdir(final) or os.path.islink(final):
                raise
            self._clear(final)
            os.replace(temporary, final)
        disk.fsync_dir(os.path.dirname(final))

    def _clear(self, folder: str) -> None:
        """Move a folder out of the way that lies where a blob should be, and remove it."""
        aside = os.path.join(self.base, "tmp", disk.temporary())
        os.rename(folder, aside)
        disk.remove_tree(aside)

    def keep(self, digest: str, size: int) -> bool:
        """Return whether the blob is durable, of the right size, and marked as used just now; bytes are not read."""
        path = self.path(digest)
        try:
            info = os.lstat(path)
            if not stat.S_ISREG(info.st_mode) or info.st_size != size:
                return False  # torn by hand: it is written again
            age = time.time() - info.st_mtime
            if age > _TOUCH:
                os.utime(path)  # so that a clean-up under way sees that it is wanted
            if not _FRESH < age < 10 * 365 * 86400:  # another writer may not have synced the folder yet
                disk.fsync_dir(os.path.dirname(path))
        except OSError:
            return False
        return True

    # ---- reading

    def size(self, digest: str) -> int | None:
        """Return the size of the blob in bytes, None if there is none (a link or a folder is none)."""
        try:
            info = os.lstat(self.path(digest))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise unavailable(exc, "look into the artifact store", self.base) from exc
        return info.st_size if stat.S_ISREG(info.st_mode) else None

    def is_sound(self, digest: str, size: int) -> bool:
        """Return whether the bytes are there, and right; they are read."""
        if self.size(digest) != size:
            return False
        try:
            return self.fetch(digest, size, None, None) == (digest, size)
        except NotFound:
            return False

    def changed_at(self, digest: str) -> float | None:
        """Return when the file, or what is known of it, was last changed; None when there is none."""
        try:
            info = os.lstat(self.path(digest))
        except OSError:
            return None
        return max(info.st_mtime, info.st_ctime)

    def _open(self, digest: str) -> tuple[int, os.stat_result]:
        path = self.path(digest)
        try:
            return disk.open_regular(path)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise NotFound(
                f"The artifact store has no blob {digest}.",
                hint=f"It should be {disk.text(path)}: restore it from a backup.",
            ) from exc
        except OSError as exc:
            raise unavailable(exc, "read the blob", path) from exc

    def open(self, digest: str) -> BinaryIO:
        """Return the blob as a file, unchecked."""
        fd, _ = self._open(digest)
        return os.fdopen(fd, "rb")

    def read_range(self, digest: str, start: int, end: int) -> bytes:
        """Return some bytes of the blob, unchecked."""
        with self.open(digest) as file, translated("read the blob", self.path(digest)):
            file.seek(start)
            return file.read(end - start)

    def fetch(self, digest: str, size: int, fd: int | None, progress: Progress | None) -> tuple[str, int]:
        """Copy the blob to *fd* (None: nowhere); return the digest and size of what came. What *fd* has is kept."""
        source, info = self._open(digest)
        reader = FdReader(source, self.path(digest))
        try:
            if info.st_size != size:
                return "", info.st_size
            empty = fd is not None and not os.fstat(fd).st_size
            if fd is not None and empty and link.clone(source, fd):  # then what arrived is hashed
                clone = FdReader(os.dup(fd), self.path(digest))
                try:
                    return disk.copy(clone, None, size=size, progress=progress)
                finally:
                    clone.close()

            def rest(done: int) -> FdReader:
                os.lseek(source, done, os.SEEK_SET)
                return reader

            return disk.go_on(rest, fd, size, progress)
        finally:
            reader.close()

    # ---- the whole

    def delete(self, digest: str, needed: Callable[[], bool] = lambda: False) -> None:
        """Remove the blob, if it is there and not *needed*: it is set aside, and *needed* asked then."""
        path = self.path(digest)
        aside = os.path.join(self.base, "aside", disk.temporary(digest.removeprefix("sha256:")))
        try:
            disk.make_dirs(os.path.dirname(aside))
            os.rename(path, aside)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as exc:
            raise unavailable(exc, "delete from the artifact store", path) from exc
        keep = True
        try:
            keep = needed()
        finally:
            with translated("delete from the artifact store", path):
                if keep:
                    os.replace(aside, path)
                else:
                    os.unlink(aside)

    def mark(self, owner: str) -> None:
        """Note that the copy *owner* keeps its blobs here, unless there is a note already."""
        final = os.path.join(self.base, "copy")
        with self._temporary() as (fd, temporary), translated("write to the artifact store", self.base):
            disk.write_all(fd, owner.encode(errors="surrogateescape"))
            os.fsync(fd)
            try:
                os.link(temporary, final)
            except FileExistsError:
                return
            except OSError:  # no hard links here: nearly as good
                if os.path.lexists(final):
                    return
                os.replace(temporary, final)
            disk.fsync_dir(self.base)

    def marked_for(self) -> str | None:
        """Return the copy that keeps its blobs here, empty when it is unknown which; None when there is none."""
        path = os.path.join(self.base, "copy")
        try:
            return os.fsdecode(disk.read_file(path, _MARK, follow=True)).strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise unavailable(exc, "look into the artifact store", path) from exc

    def digests(self) -> Iterator[tuple[str, int]]:
        """Yield digest and size of every blob."""
        top = os.path.join(self.base, "sha256")
        with translated("list the artifact store", top):
            for shard in _names(top):
                if not _SHARD.fullmatch(shard):
                    continue
                for rest in _names(os.path.join(top, shard)):
                    if _REST.fullmatch(rest):
                        digest = f"sha256:{shard}{rest}"
                        size = self.size(digest)
                        if size is not None:
                            yield digest, size

    def sweep(self, older_than: float | None) -> int:
        """Remove what killed writers left behind; return how many."""
        self._put_back()
        return disk.sweep(os.path.join(self.base, "tmp"), older_than=older_than)

    def _put_back(self) -> None:
        """Put blobs back that a killed process had set aside to delete: it may not have asked whether they are needed."""
        folder = os.path.join(self.base, "aside")
        for name in _names(folder):
            with contextlib.suppress(OSError):
                path = os.path.join(folder, name)
                if disk.is_left_over(name, os.lstat(path).st_mtime):
                    os.rename(path, self.path("sha256:" + name.split(".")[0]))


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


__all__ = ["LocalBlobs"]
