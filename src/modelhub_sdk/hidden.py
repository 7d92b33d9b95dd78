"""Values that a traceback must not show: tools store the locals of all its frames.

Capture tools (Sentry, rich, ``pytest --showlocals``) print the local variables of every frame of an error and of the
errors behind it. So what may hold a password is kept in a `Hidden`, and errors from below, where it is plain, leave
their frames behind. The caller's own variables are out of reach.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from types import NoneType
from typing import Any, TypeVar

from modelhub_sdk.errors import InvalidDocument

T = TypeVar("T")


class Hidden:
    """A value that no printed form shows; a path or URL among them is still path-like."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "<hidden>"

    def __fspath__(self) -> str:
        return os.fsdecode(self._value)

    def reveal(self) -> Any:
        """Return the value."""
        return self._value


class HiddenOptions(Mapping[str, Any]):
    """Options of a driver, which may hold keys."""

    __slots__ = ("_values",)

    def __init__(self, values: Any = None) -> None:
        if not isinstance(values, (Mapping, NoneType)):
            kind, values = type(values).__name__, None  # it may be a password
            raise InvalidDocument(
                f"storage_options= is of the type {kind}, and must be a mapping of names to values.",
                hint="Pass for example storage_options={'endpoint_url': 'http://localhost:9000'}.",
            )
        self._values = {**values} if values is not None else {}

    def __repr__(self) -> str:
        return "<options, hidden>"

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def hidden(value: Any) -> Any:
    """Return *value* hidden; None as it is."""
    return value if value is None or isinstance(value, Hidden) else Hidden(value)


def hidden_place(value: Any) -> Any:
    """Return the URL or path *value* hidden; what is neither as it is, for its own error."""
    return hidden(value) if isinstance(value, (str, os.PathLike)) else value


def revealed(value: Any) -> Any:
    """Return *value*, whether it was hidden or not."""
    return value.reveal() if isinstance(value, Hidden) else value


def bare(error: T) -> T:
    """Return an error without the frames that it, and the errors behind it, came through."""
    chain: list[BaseException] = [error] if isinstance(error, BaseException) else []
    seen: set[int] = set()
    while chain:
        one = chain.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = None
        if one.__suppress_context__:
            one.__context__ = None
        chain += [behind for behind in (one.__cause__, one.__context__) if behind is not None]
    return error


def shielded(work: Callable[[], T], errors: type[Exception]) -> T:
    """Return what *work* returns; *errors* of it are raised without the frames below, which hold plain values."""
    try:
        return work()
    except errors as error:
        problem = bare(error)
    raise problem


__all__ = ["Hidden", "HiddenOptions", "bare", "hidden", "hidden_place", "revealed", "shielded"]
