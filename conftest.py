"""Runs the Python in README and docs: each page from top to bottom, in an empty folder of its own."""

from __future__ import annotations

import contextlib
import doctest
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from sybil import Sybil
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

FOREIGN = ("MODELHUB_", "VH_", "VALOHAI_", "GIT_", "XDG_")


def _begin(page: dict[str, Any]) -> None:
    """Give the page an empty folder, and a home in which nothing is set."""
    place = Path(tempfile.mkdtemp(prefix="modelhub-docs-"))
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        patch.delenv(name)
    for name, folder in {
        "HOME": "home",
        "XDG_CACHE_HOME": "home/.cache",
        "XDG_DATA_HOME": "home/.data",
    }.items():
        (place / folder).mkdir(parents=True)
        patch.setenv(name, str(place / folder))
    patch.setenv("MODELHUB_USER", "sofia@example.org")
    (place / "work").mkdir()
    patch.chdir(place / "work")
    page["_end"] = (patch, place)


def _end(page: dict[str, Any]) -> None:
    """Close what the page left open, and remove its folder."""
    import modelhub_sdk.hub
    from modelhub_sdk import Registry

    for value in [*page.values(), modelhub_sdk.hub._default]:
        if isinstance(value, Registry):
            value.close()
    patch, place = page["_end"]
    patch.undo()
    for folder, _, _ in os.walk(place):
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)  # the cache's folders are read-only
    shutil.rmtree(place, ignore_errors=True)


pytest_collect_file = Sybil(
    parsers=[
        PythonCodeBlockParser(doctest_optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE),
        SkipParser(),
    ],
    patterns=["*.md"],
    setup=_begin,
    teardown=_end,
).pytest()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the blocks of a page back into its order: pytest-randomly has shuffled them."""
    places = [place for place, item in enumerate(items) if isinstance(item, SybilItem)]
    blocks = sorted((items[place] for place in places), key=lambda item: (item.path, item.example.line))  # type: ignore[attr-defined]
    for place, block in zip(places, blocks, strict=True):
        items[place] = block
