"""Doing the same to many files at once, so that waiting for disks and networks overlaps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from modelhub_sdk.blobs.disk import Progress

T = TypeVar("T")
R = TypeVar("R")

THREADS = 8
_BIRTH = 1.0  # seconds for a thread to begin
_LEAVING = 2.0  # seconds for the others to end after Ctrl-C


class _Stopped(BaseException):
    """Raised inside a worker whose work nobody waits for any more."""


def each(
    work: Callable[[T, Progress], R],
    items: Sequence[T],
    progress: Progress | None = None,
    *,
    threads: int = THREADS,
) -> tuple[R, ...]:
    """Return ``work(item, progress)`` of every item, in order, up to *threads* at a time.

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

    results: list[Any] = [None] * len(items)
    errors: dict[int, BaseException] = {}
    waiting = iter(range(len(items)))

    def worker() -> None:
        while not stop.is_set():
            with lock:
                index = next(waiting, None)
            if index is None:
                return
            try:
                results[index] = work(items[index], step)
            except _Stopped:
                return
            except BaseException as exc:  # noqa: BLE001 - handed to the thread that waits
                errors[index] = exc
                stop.set()

    begun = threading.Semaphore(0)

    def begin() -> None:
        begun.release()
        worker()

    started: list[threading.Thread] = []
    try:
        try:
            for _ in range(min(threads, len(items)) if len(items) > 1 else 0):
                thread = threading.Thread(target=begin, name="modelhub", daemon=True)
                thread.start()
                started.append(thread)
                # One after another: under a debugger, CPython 3.11 lets threads die that are born at once.
                begun.acquire(timeout=_BIRTH)
        except (
            RuntimeError
        ):  # the interpreter is shutting down, or no more threads: with those that there are
            pass
        for thread in started:
            thread.join()
        worker()  # what is left, when there were no threads, or some died before they began
    except BaseException:
        stop.set()
        end = time.monotonic() + _LEAVING
        for thread in started:  # who waits for a dead network notices later, and cleans up then
            thread.join(max(0.0, end - time.monotonic()))
        raise
    if errors:
        raise errors[min(errors)]  # the first in order, so that the same mistake gives the same error
    return tuple(results)


__all__ = ["THREADS", "each"]
