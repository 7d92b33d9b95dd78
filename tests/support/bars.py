"""Progress bars that only count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from modelhub_sdk.blobs import progress


def counted_bars(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int | None, str, list[int]]]:
    """Show no bar any more; return of each its total, its label and what it was told."""
    bars: list[tuple[int | None, str, list[int]]] = []

    @contextmanager
    def bar(total: int | None, label: str, *, show: bool | None = None) -> Iterator[Any]:
        bars.append((total, label, []))
        yield bars[-1][2].append

    monkeypatch.setattr(progress, "bar", bar)
    return bars
