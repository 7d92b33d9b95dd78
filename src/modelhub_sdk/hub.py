"""The functions of the package: open a registry, and work on the default one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from modelhub_sdk import surroundings
from modelhub_sdk.domain.entities import Resolved
from modelhub_sdk.hidden import HiddenOptions, hidden_place
from modelhub_sdk.references import Ref
from modelhub_sdk.registry import Registry

if TYPE_CHECKING:
    from modelhub_sdk.run.session import Run

_current: ContextVar[Registry | None] = ContextVar("modelhub_sdk.registry", default=None)
_in_use: list[Registry] = []
_default: Registry | None = None
_locks: dict[int, threading.RLock] = {}
_last_try = [0.0, 0.0]  # when the default registry was opened last, and how many seconds that took
_AGAIN = 5.0


def open(  # noqa: A001  (hub.open reads as it does)
    url: str | os.PathLike[str] | None = None,
    *,
    artifacts: str | os.PathLike[str] | None = None,
    user: str | None = None,
    project: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    read_only: bool = False,
    create: bool | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Registry:
    """Open a registry and return it; see `Registry.open` for every argument and error."""
    url, artifacts = hidden_place(url), hidden_place(artifacts)
    storage_options = HiddenOptions(storage_options)
    return Registry.open(
        url,
        artifacts=artifacts,
        user=user,
        project=project,
        cache_dir=cache_dir,
        read_only=read_only,
        create=create,
        storage_options=storage_options,
    )


@contextmanager
def use(registry: Registry) -> Iterator[Registry]:
    """Make *registry* the default one of this package's functions within a with block, also for its threads."""
    token = _current.set(registry)
    _in_use.append(registry)
    try:
        yield registry
    finally:
        _current.reset(token)
        _in_use.remove(registry)


def _used() -> Registry | None:
    """Return the registry of the enclosing `use`."""
    found = _current.get()
    if found is None and _in_use:
        found = _in_use[-1]  # a worker thread begins with an empty context
    return found


def existing() -> Registry | None:
    """Return the default registry if there is one already; None where `default` would have to open one."""
    found = _used()
    if found is None and _default is not None and not _default._core.closed:
        found = _default
    return found


def default(*, create: bool | None = None) -> Registry:
    """Return the default registry: of the enclosing `use`, else the one that `open()` opens, kept open.

    One that could not be reached when it was opened is tried again: at once to make a registry, else after
    some times as long as the last try took, so that an outage does not delay what the cache has.
    """
    global _default
    found = _used()
    if found is not None:
        return found
    with _locks.setdefault(os.getpid(), threading.RLock()):  # a forked child has its own
        if _default is None or _default._core.closed or _is_due(_default, create):
            begun = time.monotonic()
            _default = Registry.open(create=create)  # who uses the one before goes on with what the cache has
            _last_try[:] = time.monotonic(), time.monotonic() - begun
        return _default


def _is_due(registry: Registry, create: bool | None) -> bool:
    """Return whether one that was out of reach is to be tried again."""
    if registry._core.blobs is not None or surroundings.flag("OFFLINE"):
        return False
    at, took = _last_try
    return create is not False or time.monotonic() - at >= _AGAIN * took


def resolve(uri: Ref, into: str | os.PathLike[str] | None = None, **options: Any) -> Resolved:
    """Bring the files of a version of the default registry onto this disk; see `Registry.resolve`.

    Where there is no registry, none is made: its place may be mistyped, or not mounted.
    """
    return default(create=False).resolve(uri, into, **options)


def start_run(name: str | None = None, **options: Any) -> Run:
    """Start a run in the default registry and return it; see `Registry.start_run`."""
    hidden_options = HiddenOptions(options)  # inputs may be URLs with passwords
    del options
    return default().start_run(name, **hidden_options)
