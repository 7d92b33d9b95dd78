"""The progress bar: for people only."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from modelhub_sdk.blobs import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_silent_when_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal there is no bar, and tqdm is not even loaded; a closed stderr is no error."""
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.bar(1 << 30, "x") as step:
            assert step is None
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    assert not progress.watched()


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person at a terminal sees the label, without its control characters; small work has no bar."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar(100, "small") as step:
        assert step is None
    with progress.bar(64 << 20, "model\x1b[2J") as step:
        assert step is not None
        step(64 << 20)
    assert "model?[2J" in terminal.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    assert not progress.watched()


def test_show_decides() -> None:
    """show=True and show=False overrule the guess."""
    with progress.bar(1, "x", show=True) as step:
        assert step is not None
    with progress.bar(1 << 40, "x", show=False) as step:
        assert step is None


def test_a_notebook_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook's kernel somebody is watching."""

    class ZMQInteractiveShell: ...

    class IPython:
        @staticmethod
        def get_ipython() -> ZMQInteractiveShell:
            return ZMQInteractiveShell()

    monkeypatch.setitem(sys.modules, "IPython", IPython)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert progress.watched()


def test_imports_stay_light() -> None:
    """The local path of store, cache and placing loads neither fsspec, tqdm, asyncio nor concurrent.futures."""
    code = (
        "import sys\n"
        "from modelhub_sdk.blobs import store, cache, place, sources, progress\n"
        "import tempfile; d = tempfile.mkdtemp()\n"
        "s = store.BlobStore(d + '/s', registry_id='r'); f = s.put(sources.from_bytes(b'x', 'x'))\n"
        "c = cache.Cache(d + '/c'); c.folder([f], s); place.into(d + '/in', [f], lambda f: c.fetch(f, s))\n"
        "bad = {'fsspec', 'tqdm', 'asyncio', 'concurrent.futures', 'urllib.request', 'filelock'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(bad)))\n"
    )
    environment = {"PYTHONPATH": ":".join(p for p in sys.path if p), "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stderr.strip() == ""
