"""Programs within a run: what they print passes through, JSON lines are metrics; and their private /valohai."""

from __future__ import annotations

import io
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from modelhub_sdk.errors import NotAllowed, NotFound
from modelhub_sdk.run import child, mount


def run(code: str | list[str], **options: Any) -> tuple[int, list[Mapping[str, Any]], list[str]]:
    """Run Python; return its status, its metrics, and what could not be read."""
    found: list[Mapping[str, Any]] = []
    problems: list[str] = []
    command = [sys.executable, "-c", textwrap.dedent(code)] if isinstance(code, str) else code
    status = child.run(command, on_metrics=found.append, on_problem=problems.append, **options)
    return status, found, problems


def test_lines_of_json_are_metrics(capfd: pytest.CaptureFixture[str]) -> None:
    """One object a line; the first of several; NaN and nesting; other lines are the log; all of it passes through."""
    text = (
        'starting\n{"a": 1}\n\n  {"b": NaN, "c": {"d": [1]}}  \n{"e": 1} {"f": 2}\naccuracy: 0.9\n{not json}\n[1]\n7\n'
        '{"torn'
    )
    status, found, problems = run(f"import sys; sys.stdout.buffer.write({text!r}.encode())")
    assert (status, problems) == (0, [])
    assert found[0] == {"a": 1}
    assert math.isnan(found[1]["b"])
    assert [list(one) for one in found[1:]] == [["b", "c"], ["e"]]
    assert capfd.readouterr().out == text


def test_a_last_line_without_an_end(capfd: pytest.CaptureFixture[str]) -> None:
    """The last line counts, also without a newline."""
    assert run("print('{\"last\": 1}', end='')")[1] == [{"last": 1}]


def test_bytes_pass_through_at_once(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Progress bars, rubbish and half lines appear as they are written, byte for byte."""
    status, found, _ = run(
        r"""
        import sys, time
        out = sys.stdout.buffer
        for step in range(3):
            out.write(b"\r%d%%" % step); out.flush(); time.sleep(0.02)
        out.write(b"\xff\xfe\x00\n{\xff}\n")
        """
    )
    assert (status, found) == (0, [])
    assert capfdbinary.readouterr().out == b"\r0%\r1%\r2%\xff\xfe\x00\n{\xff}\n"


def test_a_line_of_ten_megabytes(capfd: pytest.CaptureFixture[str]) -> None:
    """It passes through, is no metric, and is told once; what follows is read again."""
    status, found, problems = run(
        "line = '{\"x\": \"' + 'y' * 10_000_000 + '\"}'\nprint(line); print(line); print('z' * 10_000_000); print('{\"a\": 1}')"
    )
    assert (status, found) == (0, [{"a": 1}])
    assert len(problems) == 1
    assert "no metric" in problems[0]
    assert len(capfd.readouterr().out) > 30_000_000


@pytest.mark.parametrize(
    ("code", "status"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_the_status_is_that_of_the_program(code: str, status: int) -> None:
    """An exit status as it is; minus the signal's number when one ended it."""
    assert run(code)[0] == status


def test_a_line_for_the_shell(tmp_path: Path) -> None:
    """A text is a line for the shell, in the folder and with the variables that were given."""
    env = {**os.environ, "WHO": "me"}
    problems: list[str] = []
    metrics: list[Mapping[str, Any]] = []
    status = child.run(
        'printf \'{"who": "%s"}\' "$WHO" | cat > file; cat file', cwd=tmp_path, env=env,
        on_metrics=metrics.append, on_problem=problems.append,
    )  # fmt: skip
    assert (status, metrics, (tmp_path / "file").exists()) == (0, [{"who": "me"}], True)


def test_what_cannot_be_run(tmp_path: Path) -> None:
    """A missing program, a missing folder, a file that is no program: an error each, that names it."""
    (tmp_path / "plain").write_text("x")
    with pytest.raises(NotFound, match="no program: .*no-such-program"):
        run(["no-such-program"])
    with pytest.raises(NotFound, match="no folder"):
        run(["true"], cwd=tmp_path / "nowhere")
    with pytest.raises(NotAllowed, match="cannot be run"):
        run([str(tmp_path / "plain")])
    with pytest.raises(NotAllowed):
        run(["a\0b"])


def test_standard_output_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where standard output takes only text, it gets text; where there is none, nothing is lost but the show."""
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    assert run("print('{\"a\": 1}')")[1] == [{"a": 1}]
    assert text.getvalue() == '{"a": 1}\n'
    monkeypatch.setattr(sys, "stdout", None)
    assert run("print('{\"a\": 2}')")[1] == [{"a": 2}]
    assert run("print('x')", passthrough=False)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_ends_the_run_ends_its_programs(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM reach the program, which is waited for; no orphan stays."""
    inner = f"""
        import signal, sys, time
        def stop(number, frame):
            open({str(tmp_path / "told")!r}, "w").close()
            sys.exit(5)
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        open({str(tmp_path / "ready")!r}, "w").close()
        time.sleep(60)
    """
    outer = f"""
        import sys
        from modelhub_sdk.run import child
        child.run([sys.executable, "-c", {textwrap.dedent(inner)!r}], on_metrics=print, on_problem=print)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(outer)], start_new_session=True, stderr=subprocess.DEVNULL
    ) as process:
        end = time.monotonic() + 20
        while not (tmp_path / "ready").exists() and time.monotonic() < end:
            time.sleep(0.02)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        assert process.wait(20) != 0
    assert (tmp_path / "told").exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_program_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ignores every request is ended after a grace."""
    monkeypatch.setattr(child, "_GRACE", 0.1)

    def stop(_found: Mapping[str, Any]) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        child.run(
            [sys.executable, "-uc", "import signal, time; signal.signal(15, signal.SIG_IGN); print('{\"a\": 1}'); time.sleep(60)"],
            on_metrics=stop, on_problem=print,
        )  # fmt: skip
    assert time.monotonic() - start < 20


# --- a private /valohai

possible = pytest.mark.skipif(not mount.is_possible(), reason="no private mounts for this user")


@possible
def test_a_private_mount(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The program sees its folders below /valohai, in its working folder; nobody else does; status and words are kept."""
    inputs, outputs, place = (tmp_path / name for name in ("in puts", "out'puts", "root"))
    for folder in (inputs, outputs, place):
        folder.mkdir()
    (inputs / "x").write_text("content")
    before = sorted(os.listdir("/"))
    command = mount.wrapped(
        ["sh", "-c", 'cat /valohai/inputs/x; pwd; echo "$1" > /valohai/outputs/y; exit 7', "sh", "a 'b\" $c"],
        {"inputs": inputs, "outputs": outputs}, place,
    )  # fmt: skip
    status, _found, _ = run(command, cwd=tmp_path)
    assert status == 7
    assert capfd.readouterr().out == f"content{os.path.realpath(tmp_path)}\n"
    assert (outputs / "y").read_text() == "a 'b\" $c\n"
    assert sorted(os.listdir("/")) == before
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "command", "needed"),
    [
        ({}, "python x.py --out=/valohai/outputs/x", True),
        ({"a.py": 'open("/valohai/inputs/x")'}, "python a.py", True),
        ({"lib/b.sh": "cat /valohai/inputs/x"}, "sh run", True),
        ({"a.py": "import valohai"}, "python a.py", False),
        (
            {"a.txt": '"/valohai/inputs"', ".git/x.py": '"/valohai/x"', "c.py": "https://x/valohai/y"},
            "true",
            False,
        ),
    ],
)
def test_whether_valohai_is_needed(tmp_path: Path, files: dict[str, str], command: str, needed: bool) -> None:
    """A command or a program that names a path under /valohai needs it; talk of it elsewhere does not."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert mount.is_needed(command, tmp_path) == needed


def test_what_to_do_without(tmp_path: Path) -> None:
    """The explanation has the folders, quoted, for a container."""
    text = mount.explanation({"inputs": tmp_path / "a b"})
    assert f"-v '{tmp_path}/a b':/valohai/inputs" in text
