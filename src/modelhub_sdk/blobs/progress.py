"""A progress bar when a person is watching, and silence otherwise."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

from modelhub_sdk.blobs.disk import Progress
from modelhub_sdk.errors import InvalidDocument, shown

Watch: TypeAlias = Callable[[int], AbstractContextManager[Progress | None]]
"""Of a number of bytes that will be moved: the context in which they are, and what to call as they are."""

_WORTH = 8 << 20  # bytes; less than this is over before anybody has read the bar


def watched() -> bool:
    """Return whether a person is watching: standard error is a terminal, or this is a notebook."""
    if _in_notebook():
        return True
    try:
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError, OSError):  # no standard error, or a closed one
        return False


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def unwatched(total: int) -> AbstractContextManager[Progress | None]:
    """Return a `Watch` that tells nobody."""
    return nullcontext()


@contextlib.contextmanager
def bar(total: int | None, label: str, *, show: bool | None = None) -> Iterator[Progress | None]:
    """Show a bar for *total* bytes (None: nobody knows how many) named *label* while the block runs.

    Yields what to call with the number of bytes done since the last call, or None when nobody is
    watching or there is little to do. *show* decides instead of a guess. What goes wrong with showing
    never goes wrong with the work: then there is no bar.

    Raises:
        InvalidDocument: *show* is not True, False or None.
    """
    if not (show is None or isinstance(show, bool)):
        raise InvalidDocument(
            f"progress is {shown(show)}.", hint="Pass True, False, or None: when a person is watching."
        )
    wanted = watched() and (total is None or total >= _WORTH) if show is None else show
    line = _line(total, label) if wanted else None
    if line is None:
        yield None
        return

    def step(count: int) -> None:
        with contextlib.suppress(Exception):
            line.update(count)

    try:
        yield step
    finally:
        with contextlib.suppress(Exception):
            line.close()


def _line(total: int | None, label: str) -> Any:
    """Return a bar of tqdm, or None where there is nothing to show it on."""
    options: dict[str, Any] = {
        "total": total,
        "desc": "".join(c if c.isprintable() else "?" for c in label)[:60],
        "unit": "B",
        "unit_scale": True,
        "unit_divisor": 1000,
        "leave": False,
    }
    if _in_notebook() and importlib.util.find_spec("ipywidgets") is not None:
        with contextlib.suppress(Exception):
            from tqdm.notebook import tqdm as widget

            return widget(**options)
    if sys.stderr is None or getattr(sys.stderr, "closed", False):
        return None
    with contextlib.suppress(Exception):  # settings of tqdm's own in the environment may be wrong
        from tqdm import tqdm

        return tqdm(file=_Screen(sys.stderr), ncols=_columns(), **options)
    return None


def _columns() -> int | None:
    """Return how wide the terminal is, or a usual width where it does not know; None for what is no terminal."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (AttributeError, ValueError, OSError):
        return None


class _Screen:
    """Standard error as long as it takes anything: who has hung up is not told any more."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None)

    def write(self, text: str) -> None:
        """Show *text*."""
        self._do(lambda: self._stream.write(text))

    def flush(self) -> None:
        """Show what was written."""
        self._do(lambda: self._stream.flush())

    def _do(self, work: Callable[[], object]) -> None:
        if self._stream is not None:
            try:
                work()
            except Exception:  # noqa: BLE001 - whatever it is, the work goes on
                self._stream = None
