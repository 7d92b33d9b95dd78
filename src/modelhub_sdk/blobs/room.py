"""One bound on the memory of all transfers of a process."""

from __future__ import annotations

import os
import threading


class Room:
    """So many bytes, taken before they are allocated and given back when they are let go.

    Whoever waits holds nothing that others wait for: a reader waits only for the piece that it needs next,
    when it has no other; what is read or sent ahead is taken without waiting. So nobody waits for ever.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._taken = 0
        self._changed = threading.Condition()

    def take(self, count: int, *, wait: bool = True) -> bool:
        """Take *count* bytes (a piece that is larger than all there is waits until it is alone); return whether they are ours."""
        with self._changed:
            while self._taken and self._taken + count > self.size:
                if not wait:
                    return False
                self._changed.wait()
            self._taken += count
            return True

    def give(self, count: int) -> None:
        """Give back what was taken."""
        with self._changed:
            self._taken -= count
            self._changed.notify_all()

    def forked(self) -> None:
        """Begin anew: what the parent's threads hold is theirs."""
        self._taken = 0
        self._changed = threading.Condition()


ROOM = Room(32 << 20)
"""For the ranges that are read and the parts that are sent, of all files together."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ROOM.forked)

__all__ = ["ROOM", "Room"]
