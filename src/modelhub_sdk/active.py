"""The runs that are on in this process: whoever resolves something tells them.

The stack belongs to the process, not to a thread: what a worker thread resolves is an input of the
run that started it. A child process is told by ``$MODELHUB_RUN_ID``.
"""

from __future__ import annotations

import os
from typing import Protocol

from modelhub_sdk.domain.entities import Resolved

RUN_ID = "MODELHUB_RUN_ID"


class Observer(Protocol):
    """A run that is on."""

    @property
    def id(self) -> str:
        """Its id."""

    def belongs(self, registry: object) -> bool:
        """Return whether it is recorded in this open registry."""

    def close(self, error: BaseException | None) -> None:
        """End with its registry; never raises."""

    def resolved(self, found: Resolved, asked: str, registry: str) -> None:
        """Take note of what was resolved from the registry of that id while it was on; never raises."""


_stack: list[Observer] = []


def begin(run: Observer) -> None:
    """Put a run on top."""
    _stack.append(run)


def end(run: Observer) -> None:
    """Take a run away, wherever in the stack it is."""
    _stack[:] = [one for one in _stack if one is not run]


def current() -> Observer | None:
    """Return the run that began last, None when none is on."""
    return _stack[-1] if _stack else None


def run_id() -> str | None:
    """Return the id of the run that this process works for: its own, its parent's, the Valohai execution's."""
    now = current()
    return now.id if now is not None else os.environ.get(RUN_ID) or os.environ.get("VH_EXECUTION_ID") or None


def own_run(registry: object) -> Observer | None:
    """Return the run of this very registry that is on, the last of several; None when none is."""
    return next((run for run in reversed(_stack) if run.belongs(registry)), None)


def own_run_id(registry: object) -> str | None:
    """Return the id of the run of this very registry that is on, for what is made while it is."""
    run = own_run(registry)
    return None if run is None else run.id


def close(registry: object, error: BaseException | None) -> None:
    """End the runs of this very registry that nobody ended: it is about to be closed."""
    for run in [one for one in reversed(_stack) if one.belongs(registry)]:
        run.close(error)
