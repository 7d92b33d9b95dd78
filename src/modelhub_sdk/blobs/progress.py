"""A progress bar when a person is watching, and silence otherwise."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

from modelhub_sdk.blobs.disk import Progress

Watch: TypeAlias = Callable[[int], AbstractContextManager[Progress | None]]
"""Of a number of bytes that will be moved: the context in which they are, and what to call as they are."""

_WORTH = 8 << 20  # bytes; less than this is over before anybody has read the bar


def watched() -> bool:
    """Return whether a person is watching: standard error is a terminal, or this is a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if type(shell).__name__ == "ZMQInteractiveShell":
        return True
    try:
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # no standard error, or a closed one
        return False


def unwatched(total: int) -> AbstractContextManager[Progress | None]:
    """Return a `Watch` that tells nobody."""
    return nullcontext()


@contextlib.contextmanager
def bar(total: int | None, label: str, *, show: bool | None = None) -> Iterator[Progress | None]:
    """Show a bar for *total* bytes (None: nobody knows how many) named *label* while the block runs.

    Yields what to call with the number of bytes done since the last call, or None when nobody is
    watching or there is little to do. *show* decides instead of a guess.
    """
    if not (watched() and (total is None or total >= _WORTH) if show is None else show):
        yield None
        return
    from tqdm.auto import tqdm

    line = "".join(c if c.isprintable() else "?" for c in label)[:60]
    with tqdm(total=total, desc=line, unit="B", unit_scale=True, unit_divisor=1024, leave=False) as shown:
        yield lambda count: shown.update(count)
