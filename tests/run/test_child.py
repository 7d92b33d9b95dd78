"""Programs are ended whole: signals reach all that they started, nothing stays behind, no last word is lost."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from modelhub_sdk.errors import NotAllowed, NotFound
from modelhub_sdk.run import child


def run(command: str | list[str], **options: Any) -> tuple[int, list[Mapping[str, Any]], list[str]]:
    """Run a program; return its status, its metrics, and what was told of it."""
    found: list[Mapping[str, Any]] = []
    problems: list[str] = []
    status = child.run(command, on_metrics=found.append, on_problem=problems.append, **options)
    return status, found, problems


def python(code: str) -> list[str]:
    """Return the command that runs a piece of Python."""
    return [sys.executable, "-uc", textwrap.dedent(code)]


def is_on(pid: int) -> bool:
    """Return whether a process runs; one that has only not been waited for does not."""
    try:
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout
    except FileNotFoundError:
        pytest.skip("no ps")
    return bool(state.strip()) and not state.startswith("Z")


def pid_in(path: Path) -> int:
    """Return the number in a file, as soon as it is there."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with suppress(OSError, ValueError):
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path} was not written")


OUTER = """
import signal, sys
from modelhub_sdk.run import child
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
{before}
status = child.run(
    ["sh", "-c", {shell!r}], on_metrics=lambda found: print("metrics", found), on_problem=print)
print("status", status)
"""


def outer(shell: str, before: str = "") -> subprocess.Popen[str]:
    """Start a process that runs a shell line as a run does."""
    return subprocess.Popen(
        python(OUTER.format(shell=shell, before=textwrap.dedent(before))),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


SLOW = """
    import subprocess, time
    class Slow(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            time.sleep(1)
    subprocess.Popen = Slow
"""


@pytest.mark.parametrize("before", ["", SLOW], ids=["running", "starting"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_no_orphans(tmp_path: Path, number: signal.Signals, before: str) -> None:
    """A signal to this process alone reaches all that the shell of a step started; also one that comes at its start."""
    inner = tmp_path / "inner"
    with outer(f"sh -c 'echo $$ > {inner}; exec sleep 60' && echo done", before) as process:
        pid = pid_in(inner)
        process.send_signal(number)
        assert process.wait(20) in (128 + number, -number)
    assert not is_on(pid)


def test_a_signal_while_nothing_could_be_started() -> None:
    """It is not lost: the caller's handler has it when the error goes on."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))

    class Place(os.PathLike[str]):  # asked for while the program is being started
        def __fspath__(self) -> str:
            signal.raise_signal(signal.SIGTERM)
            return "/nowhere"

    try:
        with pytest.raises(NotFound):
            run(["true"], cwd=Place())
        assert set(told) == {signal.SIGTERM}
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_last_words_of_a_program(tmp_path: Path) -> None:
    """What is printed after Ctrl-C, more than a pipe holds, still passes through, and its metrics count."""
    ready = tmp_path / "ready"
    inner = tmp_path / "inner.py"
    inner.write_text(
        textwrap.dedent(f"""
        import os, time
        try:
            open({str(ready)!r}, "w").write(str(os.getpid()))
            time.sleep(60)
        except KeyboardInterrupt:
            print("x" * 1_000_000)
            print('{{"final": 1}}')
    """)
    )
    with outer(f"exec {sys.executable} {inner}") as process:
        pid_in(ready)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        text = process.stdout.read()
    assert "x" * 1_000_000 in text
    assert "metrics {'final': 1}" in text
    assert "status" not in text  # the interrupt goes on
    assert time.monotonic() - start < 8


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("signal.signal(signal.SIGTERM, lambda *_: print('mine'))", ["mine", "status -15"]),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", ["status -10"]),
    ],
)
def test_handlers_of_one_s_own(tmp_path: Path, before: str, said: list[str]) -> None:
    """A handler of the caller is called beside the program's end; who ignores a signal does so here too."""
    inner = tmp_path / "inner"
    with outer(
        f"echo $$ > {inner}; exec {sys.executable} -c 'import time; time.sleep(60)'", before
    ) as process:
        pid = pid_in(inner)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        if "SIG_IGN" in before:
            time.sleep(0.3)
            assert is_on(pid)
            os.kill(pid, signal.SIGUSR1)
        assert process.stdout is not None
        assert process.stdout.read().splitlines() == said
        assert process.wait(20) == 0


def test_handlers_are_put_back() -> None:
    """A signal that comes while a program runs ends it; afterwards the handler is the caller's again."""
    told: list[int] = []

    def mine(number: int, _frame: Any) -> None:
        told.append(number)

    before = signal.signal(signal.SIGTERM, mine)
    try:
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        status, _, _ = run(["sleep", "60"])
        timer.join()
        assert (status, told) == (-signal.SIGTERM, [signal.SIGTERM])
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_is_left_running_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs in the background end with the one that started them, also when deaf, and that is told."""
    monkeypatch.setattr(child, "_LINGER", 0.3)
    for number, line in enumerate(("sleep 60 & ", "sleep 60 >/dev/null & ", "(trap '' TERM; sleep 60) & ")):
        pid = tmp_path / str(number)
        start = time.monotonic()
        status, found, problems = run(f"{line} echo $! > {pid}; echo '{{\"a\": 1}}'")
        assert (status, found) == (0, [{"a": 1}])
        assert problems == ["The program ended and left others running: they were ended too."]
        assert time.monotonic() - start < 8
        assert not is_on(pid_in(pid))


def test_helpers_that_end_by_themselves() -> None:
    """What ends a moment after the program (as the helpers of multiprocessing do) is heard out, without a word."""
    status, found, problems = run("(sleep 0.2; echo '{\"late\": 1}') & exit 3")
    assert (status, found, problems) == (3, [{"late": 1}], [])


def test_a_daemon_that_holds_the_output(tmp_path: Path) -> None:
    """A process that has left the program's session is not ours to end; its hold on the output stops nobody."""
    pid = tmp_path / "pid"
    code = f"""
        import os, time
        if os.fork() == 0:
            os.setsid()
            open({str(pid)!r}, "w").write(str(os.getpid()))
            time.sleep(60)
        while not os.path.exists({str(pid)!r}): time.sleep(0.01)
    """
    start = time.monotonic()
    status, _, problems = run(python(code))
    daemon = pid_in(pid)
    try:
        assert (status, is_on(daemon)) == (0, True)
        assert time.monotonic() - start < 8
        assert problems == ["A process that the program left running still holds its output: not read on."]
    finally:
        os.kill(daemon, signal.SIGKILL)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="only /proc tells")
def test_the_dead_are_not_alive() -> None:
    """A process that ended and that nobody waited for, as in a container without an init, is nobody to wait for."""
    process = subprocess.Popen(["true"], start_new_session=True)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    os.killpg(process.pid, 0)  # there, to the kernel
    assert not child._is_alive(process.pid)
    process.wait()


def test_a_time_limit() -> None:
    """A program that runs for longer is ended, and its status says how; one that does not is left alone."""
    start = time.monotonic()
    status, found, problems = run(python("import time; print('{\"a\": 1}'); time.sleep(60)"), timeout=1)
    assert (status, found) == (-signal.SIGTERM, [{"a": 1}])
    assert problems == ["The program ran for more than 1 seconds: it was ended."]
    assert time.monotonic() - start < 8
    assert run(["true"], timeout=20) == (0, [], [])


def test_whoever_takes_the_metrics_fails(tmp_path: Path) -> None:
    """Its error goes on, the program is ended, and no more metrics are handed to it."""
    calls: list[Any] = []

    def fail(found: Mapping[str, Any]) -> None:
        calls.append(found)
        raise ZeroDivisionError

    code = f"""
        import os, signal, time
        def last(*_):
            print('{{"b": 2}}')
            raise SystemExit
        signal.signal(signal.SIGTERM, last)
        open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
        print('{{"a": 1}}')
        time.sleep(60)
    """
    with pytest.raises(ZeroDivisionError):
        child.run(python(code), on_metrics=fail, on_problem=print)
    assert calls == [{"a": 1}]
    assert not is_on(pid_in(tmp_path / "pid"))


def test_characters_in_two_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook, which takes text, gets a character whole whose bytes come one by one."""
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    run(python("""
        import sys, time
        for byte in "é€ 𝛼\\n".encode():
            sys.stdout.buffer.write(bytes([byte])); sys.stdout.buffer.flush(); time.sleep(0.02)
    """))  # fmt: skip
    assert text.getvalue() == "é€ 𝛼\n"


def test_in_another_thread() -> None:
    """Python's other threads see no signals: there a program stays where Ctrl-C of the terminal reaches it."""
    done: list[Any] = []
    code = "import os; print('{\"mine\": %s}' % str(os.getpgrp() == os.getpgid(os.getppid())).lower())"
    thread = threading.Thread(target=lambda: done.append(run(python(code))))
    thread.start()
    thread.join(20)
    assert done == [(0, [{"mine": True}], [])]
    assert run(python(code)) == (0, [{"mine": False}], [])


def test_the_end_of_a_program_in_another_thread() -> None:
    """There, too, a time limit ends the program, and what holds its output stops nobody."""
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(run(["sleep", "60"], timeout=0.2)))
    thread.start()
    thread.join(20)
    assert done[0][0] == -signal.SIGTERM


def test_the_logger_of_valohai_utils() -> None:
    """What valohai-utils logs are metrics: numbers, texts, and what it can only print as text."""
    pytest.importorskip("valohai")
    code = """
        import pathlib
        from valohai.metadata import logger
        with logger() as log:
            log.log("epoch", 1)
            log.log("accuracy", 0.5)
            log.log("where", pathlib.PurePosixPath("a/b"))
        with logger() as log:
            log.log("epoch", 2)
    """
    status, found, problems = run(python(code), env={**os.environ, "VH_JOB_ID": "exec-1"})
    assert (status, problems) == (0, [])
    assert found == [{"epoch": 1, "accuracy": 0.5, "where": "a/b"}, {"epoch": 2}]


# --- lines -------------------------------------------------------------------------------------------------------


def fed(*pieces: bytes) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return the metrics and the problems of an output that comes in pieces."""
    found: list[Mapping[str, Any]] = []
    problems: list[str] = []
    lines = child._Lines(found.append, problems.append)
    for piece in pieces:
        lines.feed(piece)
    lines.end()
    return found, problems


@pytest.mark.parametrize(
    ("line", "metrics"),
    [
        (b'{"a": 1}', [{"a": 1}]),
        (b'\xef\xbb\xbf{"a": 1}', [{"a": 1}]),
        (b' \t\r{"a": 1}\r', [{"a": 1}]),
        (b'{"a": 1}{"a": 2}', [{"a": 1}]),
        (b'{"a": 1} took 3s', [{"a": 1}]),
        (b'{"a": {"b": [1, {}]}}', [{"a": {"b": [1, {}]}}]),
        (b'{"a": 1, "a": 2}', [{"a": 2}]),
        (b"{}", [{}]),
        ('{"größe": "𝛼"}'.encode(), [{"größe": "𝛼"}]),
        (b"accuracy: 0.9", []),
        (b'[{"a": 1}]', []),
        (b'x {"a": 1}', []),
        (b"{'a': 1}", []),
        (b'{"a": 1', []),
        (b'{"a": \xff}', []),
        ("\uf8ff and more".encode(), []),
        (b"\xef\xbb", []),
        (b'{"a":' * 100_000, []),
        (b'{"a": ' + b"9" * 5000 + b"}", []),
        (b"\0{}", []),
        (b"   ", []),
    ],
    ids=range(21),
)
def test_what_a_line_says(line: bytes, metrics: list[Any]) -> None:
    """The first object of a line that begins with one, however the line is cut into pieces; rubbish is a log."""
    for pieces in ([line], [bytes([byte]) for byte in line] if len(line) < 100 else [line[:99], line[99:]]):
        assert fed(*pieces) == (metrics, [])
        assert fed(b"log\n", *pieces, b'\n{"next": 1}\n') == ([*metrics, {"next": 1}], [])


def test_a_number_that_is_none() -> None:
    """NaN and the infinities are accepted, as Python and most loggers print them."""
    (found,), _ = fed(b'{"a": NaN, "b": Infinity, "c": -Infinity}')
    assert [str(value) for value in found.values()] == ["nan", "inf", "-inf"]


def test_a_line_without_end() -> None:
    """A line of ten megabytes that begins as a metric is told once, is not kept in memory, and ends."""
    found: list[Mapping[str, Any]] = []
    problems: list[str] = []
    lines = child._Lines(found.append, problems.append)
    lines.feed(b'{"a": "')
    for _ in range(160):
        lines.feed(b"x" * 65536)
        assert len(lines._line) <= child.MAX_LINE
    lines.feed(b'"}\n{"b": 1}\n')
    assert found == [{"b": 1}]
    assert problems == ["A line of output has more than 1,000,000 bytes: it is no metric."]


def test_half_lines_appear_at_once(tmp_path: Path) -> None:
    """A prompt without the end of a line is on the screen while the program waits."""
    code = f"""
        import os, sys, time
        print("half", end="", flush=True)
        while not os.path.exists({str(tmp_path / "go")!r}): time.sleep(0.01)
        print(" whole")
    """
    with subprocess.Popen(
        python(
            f"import sys; from modelhub_sdk.run import child; "
            f"child.run({python(code)!r}, on_metrics=print, on_problem=print)"
        ),
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 100) == b"half"
        (tmp_path / "go").touch()
        assert process.stdout.read() == b" whole\n"


# --- what cannot be run, and where nothing can be shown ------------------------------------------------------------


@pytest.mark.parametrize("command", [[], None, [1], ["a\0"], b"", ["x" * 10_000_000], [""]])
def test_what_is_no_command(command: Any) -> None:
    """Whatever it is, the error is one of ours."""
    with pytest.raises((NotAllowed, NotFound)):
        run(command)


def test_what_is_no_place_and_no_variables(tmp_path: Path) -> None:
    """A folder that is none, a file, an empty name; variables that are none: one of ours, and it says what."""
    (tmp_path / "file").write_text("x")
    for place in ("", tmp_path / "none"):
        with pytest.raises(NotFound, match="no folder"):
            run(["true"], cwd=place)
    with pytest.raises(NotAllowed):
        run(["true"], cwd=tmp_path / "file")
    for variables in ({1: "x"}, {"a=b": "x"}, {"a": "\0"}):
        with pytest.raises(NotAllowed):
            run(["true"], env=variables)


class Tee:
    """Standard output as scripts replace it: it writes twice, and passes off all else as that of the first."""

    def __init__(self) -> None:
        self.first, self.got = sys.stdout, ""

    def write(self, text: str) -> None:
        self.got += text

    def flush(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.first, name)


def test_standard_output_that_is_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copier of output gets it; one that takes bytes, is closed or fails in its own way stops nobody."""
    tee = Tee()
    monkeypatch.setattr(sys, "stdout", tee)
    assert run(["echo", '{"a": 1}'])[1] == [{"a": 1}]
    assert tee.got == '{"a": 1}\n'
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    for odd in (io.BytesIO(), closed, object(), None):
        monkeypatch.setattr(sys, "stdout", odd)
        assert run(["echo", '{"a": 1}'])[:2] == (0, [{"a": 1}])


def test_a_reader_that_goes_away() -> None:
    """``| head`` ends: the program is not told, and its metrics count."""
    code = "import sys; print(1); sys.stdout.flush(); [print('{\"a\": 1}') for _ in range(100_000)]"
    script = f"""
        import sys
        from modelhub_sdk.run import child
        found = []
        status = child.run({python(code)!r}, on_metrics=found.append, on_problem=print)
        print(status, len(found), file=sys.stderr, flush=True)
        import os; os._exit(0)
    """
    with subprocess.Popen(python(script), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"0 100000\n"


# --- whoever takes the metrics ---------------------------------------------------------------------------------------


def test_slow_hands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has long ended when its metrics are looked at: each one counts, and nothing is told."""
    monkeypatch.setattr(child, "_SETTLE", 0.01)
    found: list[Any] = []

    def slow(metrics: Mapping[str, Any]) -> None:
        time.sleep(0.0002)
        found.append(metrics["a"])

    problems: list[str] = []
    code = "for number in range(3000): print('{\"a\": %d}' % number)"
    assert child.run([sys.executable, "-c", code], on_metrics=slow, on_problem=problems.append) == 0
    assert found == list(range(3000))
    assert problems == []


def test_failing_at_the_last_words(tmp_path: Path) -> None:
    """Ctrl-C, and then whoever takes the metrics fails: the program is ended all the same, and Ctrl-C goes on."""
    pid = tmp_path / "pid"
    code = f"""
        import os, signal, time
        def last(*_):
            print('{{"b": 2}}'); time.sleep(0.2); raise SystemExit
        signal.signal(signal.SIGINT, last)
        open({str(pid)!r}, "w").write(str(os.getpid()))
        print('{{"a": 1}}')
        time.sleep(60)
    """

    def take(found: Mapping[str, Any]) -> None:
        if "a" in found:
            raise KeyboardInterrupt
        raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt):
        child.run(python(code), on_metrics=take, on_problem=print)
    assert not is_on(pid_in(pid))


def test_quit_leaves_no_orphan(tmp_path: Path) -> None:
    r"""Ctrl-\ reaches the program, too."""
    pid = tmp_path / "pid"
    with outer(f"echo $$ > {pid}; ulimit -c 0; exec sleep 60") as process:
        number = pid_in(pid)
        process.send_signal(signal.SIGQUIT)
        assert process.wait(20) == 128 + signal.SIGQUIT
    assert not is_on(number)
