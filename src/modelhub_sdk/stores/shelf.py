"""What is derived from a journal of files and lies beside it, so that a fresh machine is ready at once.

::

    <root>/packs/0000012-<k>-<sha256>.z                            the thousand entries of a full folder
    <root>/checkpoints/0000123000-<schema>-<k>-<chain>-<sha256>.z  the index, folded up to that entry
    <root>/erased/0000012-<id>                                     some entry of that folder lost a private text

All of it is compressed, written once under a name with the digest of its bytes, read only when it fits the
entries, and may be deleted at any time: it costs a client the time to read or fold the entries themselves.
Whoever may write to the place can leave 3 MB there that unpack to 3 GB, so what is unpacked is bounded; what is
larger counts as damaged, and no writer of ours makes it.

Nothing here may keep a text that was redacted. Whoever erases writes the entry anew, leaves a mark in ``erased``,
and deletes what is derived from it. What is derived carries in its name how many marks there were *before* its
maker read anything (`k`); the maker counts again afterwards and deletes what it made if there are more. So bytes
that were read before an erasure are deleted by their maker, or by the eraser, and if both are killed they are
void by their name, and the next client that looks deletes them.
"""

from __future__ import annotations

import hashlib
import re
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, Protocol

from attrs import evolve

from modelhub_sdk.errors import InvalidDocument, ModelHubError
from modelhub_sdk.ports import Checkpoint, SequenceTaken

FOLDER = 1000
"""Entries in a full folder, and between two checkpoints."""

KEPT = 2
"""Checkpoints that stay: the newest, and one for those who are just reading it."""

LARGEST_PACK = 64 << 20
"""Bytes of a full folder's entries. A larger folder is not packed: its entries are read one by one."""

_LARGEST_CHECKPOINT = 512 << 20  # bytes, compressed; it is read piece by piece
_PLAIN = 64 << 20  # bytes that any checkpoint may have when it is unpacked,
_RATIO = 40  # and for each compressed byte so many more. Ours, at level 1, have 3 to 8 (empty ones 30)

_PACK = re.compile(r"(\d{7})-(\d{1,9})-([0-9a-f]{64})\.z")
_CHECKPOINT = re.compile(r"(\d{10})-(\d{1,9})-(\d{1,9})-([0-9a-f]{64})-([0-9a-f]{64})\.z")
_FRESH = 10.0  # seconds for which a listing of packs is good enough: they never change
_PIECE = 1 << 20


class Names(Protocol):
    """What is needed of a `stores.files.Medium`."""

    def create(self, name: str, data: bytes) -> None:
        """Store *data*; SequenceTaken when *name* exists."""

    def get(self, name: str, at_most: int) -> bytes | None:
        """Return what *name* holds, None when there is none; InvalidDocument beyond *at_most* bytes."""

    def pieces(self, name: str, at_most: int) -> Iterator[bytes]:
        """Yield what *name* holds piece by piece; InvalidDocument beyond *at_most* bytes."""

    def names(self, folder: str) -> list[str]:
        """Return the names in *folder*."""

    def delete(self, name: str) -> None:
        """Remove *name*."""


class Shelf:
    """Packs and checkpoints beside a journal; with *read_only* nothing is written or deleted.

    Every method but `erased` and `checkpoint` is best effort: what fails is as if it were not there.
    """

    def __init__(self, medium: Names, *, read_only: bool) -> None:
        self._medium = medium
        self.read_only = read_only
        self._packs: dict[int, tuple[int, str]] = {}  # folder -> marks, name
        self._listed = float("-inf")

    # --- erasing -------------------------------------------------------------------------------

    def erased(self, folder: int) -> None:
        """An entry of *folder* was just written anew without a text: nothing derived may keep it."""
        self._medium.create(f"erased/{folder:07d}-{uuid.uuid4().hex}", b"")
        self._listed = float("-inf")
        for name in self._medium.names("packs"):
            if name.startswith(f"{folder:07d}-"):
                self._medium.delete(f"packs/{name}")
        for name in self._medium.names("checkpoints"):
            self._medium.delete(f"checkpoints/{name}")

    def _marks(self, folder: int | None = None) -> int:
        """Return how many marks there are, of one folder or of all."""
        start = "" if folder is None else f"{folder:07d}-"
        return sum(name.startswith(start) for name in self._medium.names("erased"))

    # --- packs ---------------------------------------------------------------------------------

    def packs(self) -> dict[int, tuple[int, str]]:
        """Return folder -> (marks, name) of the packs that are not void."""
        if time.monotonic() - self._listed < _FRESH:
            return self._packs
        found: dict[int, tuple[int, str]] = {}
        with suppress(ModelHubError):
            names = self._medium.names("packs")
            marks = [name[:7] for name in self._medium.names("erased")] if names else []
            for name in names:
                match = _PACK.fullmatch(name)
                if match is None:
                    continue
                if int(match[2]) == marks.count(match[1]):
                    found[int(match[1])] = int(match[2]), name
                else:
                    self._drop(f"packs/{name}")
        self._packs, self._listed = found, time.monotonic()
        return found

    def pack(self, folder: int) -> Iterator[bytes]:
        """Yield what the pack of *folder* holds, piece by piece; nothing when there is none.

        Raises:
            InvalidDocument: it is damaged, or larger than a pack can be. It was deleted.
        """
        known = self.packs().get(folder)
        if known is None:
            return
        try:
            data = self._medium.get(f"packs/{known[1]}", LARGEST_PACK)
            if data is None:
                return
            if hashlib.sha256(data).hexdigest() != known[1][-66:-2]:
                raise InvalidDocument("The pack holds other bytes than its name says.")
            yield from _unpacked(iter((data,)), lambda _: LARGEST_PACK)
        except InvalidDocument:
            self.bad_pack(folder)
            raise
        except ModelHubError:
            return

    def bad_pack(self, folder: int) -> None:
        """Forget a pack that does not hold what the entries hold, and delete it."""
        known = self._packs.pop(folder, None)
        if known is not None:
            self._drop(f"packs/{known[1]}")

    def make_pack(self, folder: int, content: Callable[[], bytes | None]) -> None:
        """Pack a full folder unless it is packed; *content* reads its entries."""
        if self.read_only:
            return
        with suppress(ModelHubError, SequenceTaken):
            marks = self._marks(folder)
            plain = None if folder in self.packs() else content()
            if plain is None:
                return
            data = zlib.compress(plain, 6)
            name = f"packs/{folder:07d}-{marks}-{hashlib.sha256(data).hexdigest()}.z"
            self._medium.create(name, data)
            if self._marks(folder) != marks:
                self._medium.delete(name)
            else:
                self._packs[folder] = marks, name.removeprefix("packs/")

    # --- checkpoints ---------------------------------------------------------------------------

    def checkpoints(self) -> list[Checkpoint]:
        """Return the checkpoints that are not void, newest first."""
        found = []
        with suppress(ModelHubError):
            names = self._medium.names("checkpoints")
            marks = self._marks() if names else 0
            for name in sorted(names, reverse=True):
                match = _CHECKPOINT.fullmatch(name)
                if match is None:
                    continue
                if int(match[3]) == marks:
                    found.append(Checkpoint(int(match[1]), int(match[2]), match[4], name))
                else:
                    self._drop(f"checkpoints/{name}")
        return found

    def checkpoint(self, one: Checkpoint) -> Iterator[bytes]:
        """Yield the content of a checkpoint piece by piece; nothing when it is gone.

        Raises:
            InvalidDocument: it is damaged, which may show only at its end, or larger than it can be. It was deleted.
            StoreUnavailable: the store did not answer.
        """
        digest = hashlib.sha256()

        def hashed() -> Iterator[bytes]:
            for piece in self._medium.pieces(f"checkpoints/{one.name}", _LARGEST_CHECKPOINT):
                digest.update(piece)
                yield piece

        try:
            empty = True
            for piece in _unpacked(hashed(), lambda packed: _PLAIN + _RATIO * packed):
                empty = False
                yield piece
            if not empty and digest.hexdigest() != one.name[-66:-2]:
                raise InvalidDocument("The checkpoint holds other bytes than its name says.")
        except InvalidDocument:
            self.bad_checkpoint(one)
            raise

    def bad_checkpoint(self, one: Checkpoint) -> None:
        """Delete a checkpoint that does not fit the entries."""
        self._drop(f"checkpoints/{one.name}")

    def publish(self, wanted: int, make: Callable[[], tuple[Checkpoint, IO[bytes]] | None]) -> None:
        """Publish a checkpoint unless there is one of entry *wanted* or later.

        *make* catches the index up, and returns what it is a checkpoint of, and an open file with it.
        """
        if self.read_only:
            return
        with suppress(ModelHubError, SequenceTaken):
            marks = self._marks()
            there = self.checkpoints()
            made = None if any(one.seq >= wanted for one in there) else make()
            if made is None:
                return
            one, file = made
            packer, parts, size = zlib.compressobj(1), [], 0
            with file:
                while piece := file.read(_PIECE):
                    size += len(piece)
                    parts.append(packer.compress(piece))
            parts.append(packer.flush())
            data = b"".join(parts)
            if len(data) > _LARGEST_CHECKPOINT or size > _PLAIN + _RATIO * len(data):
                return  # nobody would read it
            digest = hashlib.sha256(data).hexdigest()
            one = evolve(one, name=f"{one.seq:010d}-{one.schema}-{marks}-{one.chain}-{digest}.z")
            self._medium.create(f"checkpoints/{one.name}", data)
            if self._marks() != marks:
                self._medium.delete(f"checkpoints/{one.name}")
                return
            same = [old for old in there if old.schema == one.schema]  # of another release: theirs
            for old in same[KEPT - 1 :]:
                self._drop(f"checkpoints/{old.name}")

    def _drop(self, name: str) -> None:
        if not self.read_only:
            with suppress(ModelHubError):
                self._medium.delete(name)


def _unpacked(pieces: Iterator[bytes], bound: Callable[[int], int]) -> Iterator[bytes]:
    """Yield what *pieces* unpack to, in pieces; *bound* says how much that may be of so many packed bytes.

    Raises:
        InvalidDocument: it is more, it is not whole, or it is not compressed.
    """
    unpacker = zlib.decompressobj()
    packed = plain = 0
    for piece in pieces:
        packed += len(piece)
        while piece:
            try:
                part = unpacker.decompress(piece, _PIECE)
            except zlib.error:
                raise InvalidDocument("It is not what we compress.") from None
            plain += len(part)
            if plain > bound(packed):
                raise InvalidDocument(f"It unpacks to more than {bound(packed):,} bytes.")
            if part:
                yield part
            piece = unpacker.unconsumed_tail
            if unpacker.unused_data:
                raise InvalidDocument("It goes on after its end.")
    if packed and not unpacker.eof:
        raise InvalidDocument("It ends before its end.")


__all__ = ["FOLDER", "KEPT", "LARGEST_PACK", "Names", "Shelf"]
