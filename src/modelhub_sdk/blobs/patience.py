"""How long to wait for others, and how often to ask them again."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

_GRACE = 60.0  # seconds for an answer to begin …
_SLOWEST = 32 << 10  # … and bytes a second from then on: a server that is slower is given up, and asked again
_PATIENCE = 60.0  # seconds of trying again, in all, for one operation


def patient(work: Callable[[], T], passing: Callable[[Exception], bool], doing: str, where: str) -> T:
    """Return what *work* returns, trying again for a minute while its errors are *passing*; else raises them."""
    end = time.monotonic() + _PATIENCE
    pause = 0.2
    tries = 0
    while True:
        try:
            return work()
        except Exception as exc:
            tries += 1
            late = time.monotonic() + pause > end and tries > 1  # one slow answer is not the last word
            if late or not passing(exc):
                raise
            log.debug("%s %s: %s; trying again", doing, where, type(exc).__name__)
        time.sleep(random.uniform(pause / 2, pause))  # not all clients at the same moment
        pause = min(pause * 2, 8.0)


def time_for(count: int) -> float:
    """Return the seconds in which *count* bytes must have been transferred."""
    return _GRACE + count / _SLOWEST


__all__ = ["patient", "time_for"]
