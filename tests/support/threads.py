"""The same thing in many threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable


def at_once(count: int, work: Callable[[int], object], *, timeout: float = 120) -> None:
    """Run ``work(0)`` to ``work(count - 1)`` in a thread each; raise the first error, once all have ended.

    Raises:
        AssertionError: one did not end within *timeout* seconds.
    """
    errors: list[BaseException] = []

    def run(n: int) -> None:
        try:
            work(n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
        assert not thread.is_alive(), "a thread did not end"
    if errors:
        raise errors[0]
