"""A program as part of a run: its output passes through, and lines that are one JSON object are metrics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from modelhub_sdk.errors import NotAllowed, NotFound, shown

MAX_LINE = 1_000_000
"""Bytes of a line that is looked at as a metric; a longer one only passes through."""

_GRACE = 10.0  # seconds between asking a child to end and ending it
_CHUNK = 1 << 16


def run(
    command: Sequence[str] | str,
    *,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    on_metrics: Callable[[Mapping[str, Any]], None],
    on_problem: Callable[[str], None],
    passthrough: bool = True,
) -> int:
    """Run a program to its end, and return its status: minus the signal's number when one ended it.

    Standard output passes through at once and byte for byte; standard error is this process's own.
    Of a line that is a JSON object, or begins with one, *on_metrics* gets that object (VALOHAI.md: of
    several on one line the first counts). Ctrl-C reaches the program too, and it is waited for.

    Args:
        command: a list of words, or a line for the shell.
        cwd: where it runs.
        env: all its variables.
        on_metrics: called with each object, in order, in the calling thread.
        on_problem: called with a sentence about what could not be read.
        passthrough: whether its output appears.

    Raises:
        NotFound: there is no such program or folder. NotAllowed: it may not be run.
    """
    try:
        process = subprocess.Popen(
            command,
            shell=isinstance(command, str),  # a line for the shell is what the caller wrote
            cwd=cwd,
            env=None if env is None else dict(env),
            stdout=subprocess.PIPE,
            bufsize=0,
        )
    except FileNotFoundError as error:
        what = f"folder {shown(os.fsdecode(cwd), 200)}" if cwd and not os.path.isdir(cwd) else "program"
        raise NotFound(f"There is no {what}: {shown(str(error), 300)}.") from None
    except (PermissionError, OSError, ValueError) as error:
        raise NotAllowed(f"The program cannot be run: {shown(str(error), 300)}.") from None
    lines = _Lines(on_metrics, on_problem)
    with _forwarded(process):
        assert process.stdout is not None  # noqa: S101  # it is a pipe
        try:
            _copied(process.stdout, lines, passthrough)
            return process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            process.stdout.close()


class _Lines:
    """Finds the metrics in a stream of bytes that comes in pieces."""

    def __init__(
        self, on_metrics: Callable[[Mapping[str, Any]], None], on_problem: Callable[[str], None]
    ) -> None:
        self._on_metrics = on_metrics
        self._on_problem = on_problem
        self._line = bytearray()
        self._skipping = False
        self._told = False

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._add(piece)
            self.end()
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        if self._skipping or not piece:
            return
        if not self._line and piece.lstrip()[:1] not in (b"{", b""):
            self._skipping = True  # a plain line of the log
            return
        self._line += piece
        if len(self._line) > MAX_LINE:
            if not self._told:
                self._told = True
                self._on_problem(f"A line of output has more than {MAX_LINE:,} bytes: it is no metric.")
            self._line.clear()
            self._skipping = True

    def end(self) -> None:
        """Take the line that has just ended."""
        line, skipping = bytes(self._line), self._skipping
        self._line.clear()
        self._skipping = False
        if skipping or not line.strip():
            return
        try:
            text = line.decode("utf-8").strip()
            found, _end = _DECODER.raw_decode(text)
        except (ValueError, RecursionError):
            return  # a plain line that begins with a brace
        if isinstance(found, dict):
            self._on_metrics(found)


_DECODER = json.JSONDecoder()


def _copied(source: IO[bytes], lines: _Lines, passthrough: bool) -> None:
    while data := os.read(source.fileno(), _CHUNK):
        if passthrough:
            _show(data)
        lines.feed(data)
    lines.end()


def _show(data: bytes) -> None:
    """Write bytes to standard output as they are; where that is only text (a notebook), as text."""
    with suppress(OSError, ValueError, AttributeError):
        buffer = getattr(sys.stdout, "buffer", None)
        if buffer is not None:
            sys.stdout.flush()
            buffer.write(data)
            buffer.flush()
        else:
            sys.stdout.write(data.decode("utf-8", "replace"))
            sys.stdout.flush()


class _forwarded:  # noqa: N801  # reads as the word that it is in a with line
    """Hand SIGTERM on to the child while the block is on: who ends the run ends its programs."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._before: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            with suppress(ValueError, OSError):
                self._before = signal.signal(signal.SIGTERM, self._terminate)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            with suppress(ValueError, OSError, TypeError):
                signal.signal(signal.SIGTERM, self._before)

    def _terminate(self, number: int, frame: Any) -> None:
        with suppress(OSError):
            self._process.send_signal(number)
        if callable(self._before):
            self._before(number, frame)
        else:
            raise SystemExit(128 + number)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a child that was told to end (Ctrl-C has reached it); end it when it does not."""
    with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        process.wait(_GRACE)
        return
    process.terminate()
    with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        process.wait(_GRACE)
        return
    process.kill()
    process.wait()
