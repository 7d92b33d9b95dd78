"""The outputs folder of a run, and its metrics while it is on."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pytest

from modelhub_sdk.errors import Conflict, InvalidName, NotAllowed
from modelhub_sdk.run.metrics import Series
from modelhub_sdk.run.outputs import OutputsFolder

NOW = datetime(2026, 8, 1, tzinfo=UTC)


def _claim(path: Path) -> OutputsFolder:
    found = OutputsFolder.claimed(path)
    assert found is not None
    return found


def test_a_folder_is_made_and_removed_again(tmp_path: Path) -> None:
    """A folder that did not exist is made, and goes if nothing was written; one with content stays."""
    one = _claim(tmp_path / "a" / "out")
    assert one.path.is_dir()
    one.release()
    one.remove_if_empty()
    assert not one.path.exists()
    two = _claim(tmp_path / "b")
    (two.path / "file").write_text("x")
    two.release()
    two.remove_if_empty()
    assert (two.path / "file").exists()
    (tmp_path / "mine").mkdir()
    three = _claim(tmp_path / "mine")
    three.release()
    three.remove_if_empty()
    assert three.path.is_dir()  # it was the user's
    assert OutputsFolder.claimed(None) is None


def test_two_live_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    """The second claim is refused, in this process and in another; after the release it is granted."""
    one = _claim(tmp_path / "out")
    with pytest.raises(Conflict, match="Another run"):
        OutputsFolder.claimed(tmp_path / "out")
    assert _elsewhere(tmp_path / "out") == "Conflict"
    assert OutputsFolder.claimed(tmp_path / "out", shared=True) is None
    one.release()
    assert _elsewhere(tmp_path / "out") == "claimed"
    assert os.listdir(tmp_path / "out") == []  # no mark


def _elsewhere(path: Path) -> str:
    code = f"""
        from modelhub_sdk.run.outputs import OutputsFolder
        try:
            OutputsFolder.claimed({str(path)!r})
            print("claimed")
        except Exception as error:
            print(type(error).__name__)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    """After SIGKILL the folder can be claimed at once, also while a forked worker of the dead run lives on."""
    code = f"""
        import os, sys, time
        from modelhub_sdk.run.outputs import OutputsFolder
        folder = OutputsFolder.claimed({str(tmp_path / "out")!r})
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        print("ready", flush=True)
        time.sleep(30)
    """
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(Conflict):
            OutputsFolder.claimed(tmp_path / "out")
        child.kill()
        child.wait()
        _claim(tmp_path / "out").release()
        os.killpg(child.pid, signal.SIGKILL)


def test_what_lay_there_before_is_known(tmp_path: Path) -> None:
    """Files that lie there already are noted by size, time and inode, in every folder."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "old").write_bytes(b"123")
    one = _claim(tmp_path)
    one.note_what_is_there()
    assert list(one.before) == ["sub/old"]
    assert one.before["sub/old"][0] == 3
    one.release()


@pytest.mark.parametrize("bad", [7, "", "a\0b", b""])
def test_what_is_no_folder_is_refused(bad: object) -> None:
    """Anything but a path is refused by name."""
    with pytest.raises(InvalidName, match="not a folder"):
        OutputsFolder.claimed(bad)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """A file in the place of the folder, or of its parent, is named."""
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(NotAllowed, match="cannot be made"):
            OutputsFolder.claimed(path)


def test_a_forked_child_does_not_hold_the_folder(tmp_path: Path) -> None:
    """A child that outlives the run does not keep its folder."""
    one = _claim(tmp_path / "out")
    context = multiprocessing.get_context("fork")
    child = context.Process(target=signal.pause)
    child.start()
    one.release()
    _claim(tmp_path / "out").release()
    child.kill()
    child.join()


# --- metrics


def test_the_whole_series_and_the_last_values(tmp_path: Path) -> None:
    """Every value is kept in order, with its step; the last one of each key counts."""
    series = Series(tmp_path / "m.jsonl")
    series.add({"loss": 2.0}, 1, NOW)
    series.add({"loss": 1.0, "acc": 0.5}, 2, NOW)
    series.add({"acc": float("nan")}, None, NOW)
    assert series.rows()["loss"] == [
        [1, "2026-08-01T00:00:00.000000Z", 2.0],
        [2, "2026-08-01T00:00:00.000000Z", 1.0],
    ]
    assert series.last()["loss"] == 1.0
    assert math.isnan(series.last()["acc"])
    series.close()


def test_an_attempt_that_was_killed_leaves_its_metrics(tmp_path: Path) -> None:
    """The next attempt begins with what the file holds; a torn last line is dropped."""
    path = tmp_path / "deep" / "m.jsonl"
    first = Series(path)
    first.add({"n": 2**70, "inf": math.inf}, 1, NOW)
    with path.open("a") as file:
        file.write('[2,"2026-08-01T00:00:00.000000Z",{"n":')
    again = Series(path)
    assert again.rows() == first.rows()
    assert again.last() == {"n": 2**70, "inf": math.inf}
    first.close()
    again.close()


def test_a_file_that_cannot_be_written_loses_nothing(tmp_path: Path) -> None:
    """Where there is no place for the file, memory has all of it."""
    (tmp_path / "file").write_text("")
    series = Series(tmp_path / "file" / "m.jsonl")
    series.add({"a": 1}, None, NOW)
    assert series.last() == {"a": 1}
