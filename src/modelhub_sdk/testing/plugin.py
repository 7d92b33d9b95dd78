"""The pytest plugin, found by its entry point: the fixture ``modelhub``. Importing it costs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from modelhub_sdk.registry import Registry


@pytest.fixture
def modelhub() -> Iterator[Registry]:
    """A fresh registry in memory, the default one of ``modelhub_sdk`` for this test, gone after it."""
    from modelhub_sdk.testing import registry

    with registry() as reg:
        yield reg
