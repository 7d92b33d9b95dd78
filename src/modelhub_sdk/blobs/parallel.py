"""Doing the same to many files at once, so that waiting for disks and networks overlaps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from modelhub_sdk.blobs.disk import Progress

T = TypeVar("T")
R = TypeVar("R")

THREADS = 8


class _Stopped(BaseException):
    """Raised inside a worker whose work nobody waits for any more."""


def each(
    work: Callable[[T, Progress], R], items: Sequence[T], progress: Progress | None = None
) -> tuple[R, ...]:
    """Return ``work(item, progress)`` of every item, in order, up to eight at a time.

    The first error, or Ctrl-C, stops the others at their next piece of progress; each cleans up
    before it is raised here. *progress* is called by one thread at a time.
    """
    lock = threading.Lock()
    stop = threading.Event()

    def step(count: int) -> None:
        if stop.is_set():
            raise _Stopped
        if progress is not None and count:
            with lock:
                progress(count)

    def one(item: T) -> R:
        step(0)
        return work(item, step)

    if len(items) < 2:
        return tuple(one(item) for item in items)

    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

    try:
        pool = ThreadPoolExecutor(min(THREADS, len(items)), thread_name_prefix="modelhub")
        futures = [pool.submit(one, item) for item in items[:1]]
    except RuntimeError:  # the interpreter is shutting down: one after the other
        return tuple(one(item) for item in items)
    with pool:
        try:
            futures += [pool.submit(one, item) for item in items[1:]]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:  # in order, so that the same mistake gives the same error
                if future in done and (error := future.exception()) is not None:
                    raise error
            return tuple(future.result() for future in futures)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
