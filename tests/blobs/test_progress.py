"""The progress bar: for people only."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest

from modelhub_sdk.blobs import progress
from modelhub_sdk.errors import InvalidDocument


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


class Broken(Terminal):
    """A terminal whose person has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_bar_never_fails_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without standard error, with a closed one, or one that breaks, the work goes on, and its own errors are told."""
    closed = Terminal()
    closed.close()
    monkeypatch.setenv("TERM", "xterm")
    for stream in (None, closed, Broken()):
        monkeypatch.setattr(sys, "stderr", stream)
        for show in (True, None):
            with progress.bar(64_000_000, "x", show=show) as step:
                for _ in range(3):
                    if step is not None:
                        step(20_000_000)
            with pytest.raises(KeyError), progress.bar(64_000_000, "x", show=show):
                raise KeyError


@pytest.mark.parametrize("show", ["no", "", 0, 1])
def test_show_is_true_false_or_none(show: Any) -> None:
    """A word that reads as no does not show a bar: it is an error."""
    with pytest.raises(InvalidDocument, match="progress is"), progress.bar(1, "x", show=show):
        pass


def on_a_terminal(code: str, columns: int) -> str:
    """Return what a terminal so wide gets from a program."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "TERM": "xterm",
        "LANG": "C.UTF-8",
    }
    with subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env=environment) as program:
        os.close(theirs)
        found = b""
        with contextlib.suppress(OSError):  # Linux says so when the other end is closed
            while data := os.read(ours, 4096):
                found += data
    os.close(ours)
    assert program.returncode == 0, found
    return found.decode()


@pytest.mark.parametrize("columns", [0, 60, 100])
def test_on_a_real_terminal(columns: int) -> None:
    """The bar has the terminal's width, decimal sizes, and leaves nothing behind; a terminal that knows no width gets one too."""
    found = on_a_terminal(
        "from modelhub_sdk.blobs import progress\n"
        "with progress.bar(64_000_000, 'storing') as step:\n"
        "    step(0)\n",
        columns,
    )
    pieces = found.split("\r")
    assert any("storing" in piece and "/64.0M" in piece for piece in pieces)
    assert all(len(piece) <= (columns or 80) for piece in pieces)
    assert not pieces[-1].strip()


def test_a_notebook_without_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a notebook cannot show widgets there is the bar of text, and no warning."""
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with progress.bar(64_000_000, "storing") as step:
        assert step is not None
        step(1)
    assert "storing" in shown.getvalue()
    assert "Warning" not in shown.getvalue()


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
