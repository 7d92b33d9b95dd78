"""One bound on the memory of all transfers of a process."""

from __future__ import annotations

import os
import threading


class Room:
    """So many bytes, taken before they are allocated and given back when they are let go.

    Nobody waits for ever: readers never wait (what they need next they take beyond the bound, what they would
    read ahead they leave), and a sender waits for room only while it has none itself.
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

    def force(self, count: int) -> None:
        """Take *count* bytes in any case."""
        with self._changed:
            self._taken += count

    def give(self, count: int) -> None:
        """Give back what was taken."""
        with self._changed:
            self._taken -= count
            self._changed.notify_all()

    def forked(self) -> None:
        """Begin anew: what the parent's threads hold is theirs."""
        self._taken = 0
        self._changed = threading.Condition()


READING = Room(24 << 20)
"""For the ranges that are read, of all files together."""

SENDING = Room(32 << 20)
"""For what is sent. Apart: who sends what it reads would else wait for itself."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=READING.forked)
    os.register_at_fork(after_in_child=SENDING.forked)

__all__ = ["READING", "SENDING", "Room"]
