"""A program as part of a run: its output passes through, and lines that are one JSON object are metrics."""

from __future__ import annotations

import codecs
import functools
import io
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from modelhub_sdk.errors import NotAllowed, NotFound, shown

MAX_LINE = 1_000_000
"""Bytes of a line that is looked at as a metric; a longer one only passes through."""

_T = TypeVar("_T")
_BOM = b"\xef\xbb\xbf"
_GRACE = 10.0  # seconds between asking a program to end and asking it less kindly
_SETTLE = 0.5  # seconds that helpers of a program may go on after it, before they count as left behind
_LINGER = 2.0  # seconds between asking those to end and ending them
_LOOK = 0.1  # seconds between two looks whether the program has ended while others hold its output
_CHUNK = 1 << 16
_REST = 64  # chunks that are read of what has been written already, when nobody waits for more


def run(
    command: Sequence[str] | str,
    *,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    on_metrics: Callable[[Mapping[str, Any]], None],
    on_problem: Callable[[str], None],
    passthrough: bool = True,
    timeout: float | None = None,
) -> int:
    """Run a program to its end, and return its status: minus the signal's number when one ended it.

    Standard output passes through at once and byte for byte; standard error is this process's own.
    Of a line that is a JSON object, or begins with one, *on_metrics* gets that object (VALOHAI.md: of
    several on one line the first counts).

    Ctrl-C, SIGTERM, SIGHUP and SIGQUIT are handed on to the program and all that it has started, which is
    waited for, and killed when it does not end. What a program leaves running behind is ended with it,
    as at the end of a container. In another thread than the main one Python sees no signals: there the
    program stays in this process's own group, where Ctrl-C reaches it.

    Args:
        command: a list of words, or a line for the shell.
        cwd: where it runs.
        env: all its variables.
        on_metrics: called with each object, in order, in the calling thread.
        on_problem: called with a sentence about what could not be read, or had to be ended.
        passthrough: whether its output appears.
        timeout: seconds after which it is ended.

    Raises:
        NotFound: there is no such program or folder. NotAllowed: it may not be run.
    """
    own = threading.current_thread() is threading.main_thread()
    with _Signals(own) as signals:  # from before the start on: none may come when nobody could hand it on
        process = _started(command, cwd, env, own)
        child = _Child(process, own, _Lines(on_metrics, on_problem), on_problem, passthrough)
        try:
            signals.hand_to(child)
            if child.follow(math.inf if timeout is None else timeout):
                child.finish()
            else:
                on_problem(f"The program ran for more than {timeout:g} seconds: it was ended.")
                child.stop(signal.SIGTERM)
        except BaseException as error:
            asked = isinstance(error, (KeyboardInterrupt, SystemExit))
            child.stop(signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM, heard=asked)
            raise
        finally:
            child.close()
    return process.wait()


def _started(
    command: Sequence[str] | str, cwd: str | os.PathLike[str] | None, env: Mapping[str, str] | None, own: bool
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            shell=isinstance(command, str),  # a line for the shell is what the caller wrote
            cwd=cwd,
            env=None if env is None else dict(env),
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=own,
        )
    except FileNotFoundError as error:
        there = cwd is None or os.path.isdir(cwd)
        what = "program" if there else f"folder {shown(os.fsdecode(cwd or ''), 200)}"
        raise NotFound(f"There is no {what}: {shown(str(error), 300)}.") from None
    except (OSError, ValueError, TypeError, IndexError) as error:  # of what is no command, too
        raise NotAllowed(f"The program cannot be run: {shown(str(error), 300)}.") from None


class _Child:
    """A program that has been started, with the reading end of its output.

    With *own* it leads a session of its own: its group is everything that it has started.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        own: bool,
        lines: _Lines,
        on_problem: Callable[[str], None],
        passthrough: bool,
    ) -> None:
        assert process.stdout is not None  # noqa: S101  # it is a pipe
        self._process = process
        self._own = own
        self._lines: _Lines | None = lines
        self._on_problem = on_problem
        self._screen = _Screen() if passthrough else None
        self._pipe = process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)
        self._open = True
        self._sent: set[int] = set()

    def follow(self, seconds: float, *, all_of_it: bool = False) -> bool:
        """Pass its output on until it has ended, and return True; or False when the time is over before.

        With *all_of_it* until nothing that it started is left, and all output has been read.
        """
        end = time.monotonic() + seconds
        while not (over := self._is_over(all_of_it)) and (left := end - time.monotonic()) > 0:
            self._step(min(left, _LOOK))
        return over

    def _is_over(self, all_of_it: bool) -> bool:
        if self._process.poll() is None:
            return False
        return not all_of_it or not (self._open or self._is_left())

    def _is_left(self) -> bool:
        return self._own and _is_alive(self._process.pid)

    def _step(self, seconds: float) -> None:
        if not self._open:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                time.sleep(min(seconds, _LOOK / 10))  # it has ended, others of its group have not
            return
        if not self._selector.select(seconds):
            return
        data = os.read(self._pipe.fileno(), _CHUNK)
        if not data:
            self._open = False
        elif self._screen is not None:
            self._screen.show(data)
        if self._lines is not None:
            self._lines.feed(data) if data else self._lines.end()

    def finish(self) -> None:
        """Read the rest of the output of a program that has ended, and end what it left behind."""
        if self.follow(_SETTLE, all_of_it=True):
            return
        if self._is_left():
            self._on_problem("The program ended and left others running: they were ended too.")
            for number in (signal.SIGTERM, signal.SIGKILL):
                self._signal(number)
                if self.follow(_LINGER, all_of_it=True):
                    return
        for _ in range(_REST):  # whoever takes the metrics may be slow: all that has been written is read
            if self._open and self._selector.select(0):
                self._step(0)
        if self._open:
            self._on_problem("A process that the program left running still holds its output: not read on.")

    def stop(self, number: int, *, heard: bool = True) -> None:
        """End the program: by *number* first, less kindly later; its last words are still passed on.

        Without *heard* (whoever takes its metrics has failed) they are no metrics any more.
        """
        if not heard:
            self._lines = None
        for one in dict.fromkeys((number, signal.SIGTERM, signal.SIGKILL)):
            with suppress(KeyboardInterrupt, SystemExit):  # once more: less kindly at once
                if one not in self._sent:
                    self._signal(one)
                if self._hear_out(functools.partial(self.follow, _GRACE)):
                    break
        with suppress(KeyboardInterrupt, SystemExit):
            self._hear_out(self.finish)

    def _hear_out(self, act: Callable[[], _T]) -> _T:
        """Do something, without metrics from when whoever takes them fails: the program has to end all the same."""
        try:
            return act()
        except Exception:  # noqa: BLE001  # what began the end goes on, not this
            self._lines = None
            return act()

    def forward(self, number: int) -> None:
        """Hand a signal on."""
        self._sent.add(number)
        self._signal(number)

    def _signal(self, number: int) -> None:
        with suppress(OSError):
            if self._own:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    def close(self) -> None:
        """Let go of the output."""
        self._selector.close()
        self._pipe.close()


def _is_alive(group: int) -> bool:
    """Return whether a process of the group runs; one that ended and that nobody waited for does not."""
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    if not os.path.exists("/proc/self/stat"):
        return True
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                state, _parent, its, *_ = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()
                if int(its) == group and state not in (b"Z", b"X"):
                    return True
    return False


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
        if not self._line and piece.lstrip()[:1] not in (b"{", b"", _BOM[:1]):
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
            text = line.decode("utf-8-sig").strip()
            found, _end = _DECODER.raw_decode(text)
        except (ValueError, RecursionError):
            return  # a plain line that begins with a brace
        if isinstance(found, dict):
            self._on_metrics(found)


_DECODER = json.JSONDecoder()


class _Screen:
    """Standard output, for bytes as they are; where that is only text (a notebook), as text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may come in two pieces

    def show(self, data: bytes) -> None:
        with suppress(
            Exception
        ):  # closed, none, or anything that the caller has put there: the program goes on
            if isinstance(sys.stdout, io.TextIOWrapper):  # others may pass a buffer off that is not theirs
                sys.stdout.flush()
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            else:
                sys.stdout.write(self._decoder.decode(data))
                sys.stdout.flush()


class _Signals:
    """Hands signals on to the child while the block is on: who ends the run ends its programs.

    What comes before there is a child waits for it; then the caller's own handler has its turn.
    """

    def __init__(self, own: bool) -> None:
        self._numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT) if own else ()
        self._child: _Child | None = None
        self._before: dict[int, Any] = {}
        self._waiting: list[int] = []

    def __enter__(self) -> Self:
        for number in self._numbers:
            before = signal.getsignal(number)
            if before not in (None, signal.SIG_IGN):  # of C code, or not to be noticed
                self._before[number] = before
                signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        for number in self._waiting:  # the program could not be started
            signal.raise_signal(number)

    def hand_to(self, child: _Child) -> None:
        """Hand on to *child* from now on, first of all what has come already."""
        self._child = child
        while self._waiting:
            self._take(self._waiting.pop(0), None)

    def _take(self, number: int, frame: Any) -> None:
        if self._child is None:
            self._waiting.append(number)
            return
        self._child.forward(number)
        before = self._before[number]
        if callable(before):
            before(number, frame)
        else:
            raise SystemExit(128 + number)
