"""The fault tools really fire: at each call that they promise, once, and never elsewhere."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.faults import SHORT, FaultAt, every_call, every_death, in_child

DATA = b"0123456789" * 10


def _steps(root: Path) -> dict[str, Callable[[], object]]:
    """One small operation for each kind of call, by the name in the log."""
    (root / "old").write_bytes(DATA)
    (root / "dir").mkdir()
    (root / "empty").mkdir()
    fd = os.open(root / "old", os.O_RDWR)
    source = os.open(root / "old", os.O_RDONLY)
    folder = os.open(root, os.O_RDONLY)
    steps: dict[str, Callable[[], object]] = {
        "open": lambda: os.close(os.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=folder)),
        "open to read": lambda: os.close(os.open(root / "old", os.O_RDONLY)),
        "read": lambda: os.read(source, 3),
        "write": lambda: os.write(fd, DATA),
        "pwrite": lambda: os.pwrite(fd, DATA, 0),
        "writev": lambda: os.writev(fd, [DATA, DATA]),
        "sendfile": lambda: os.sendfile(fd, source, 0, 50),
        "fsync": lambda: os.fsync(fd),
        "ftruncate": lambda: os.ftruncate(fd, 3),
        "truncate": lambda: os.truncate(root / "old", 3),
        "fchmod": lambda: os.fchmod(fd, 0o644),
        "chmod": lambda: (root / "old").chmod(0o644),
        "utime": lambda: os.utime(root / "old"),
        "link": lambda: os.link("old", "linked", src_dir_fd=folder, dst_dir_fd=folder),
        "symlink": lambda: (root / "soft").symlink_to("old"),
        "rename": lambda: (root / "old").rename(root / "older"),
        "replace": lambda: os.replace(root / "older", root / "old"),
        "unlink": lambda: (root / "old").unlink(),
        "mkdir": lambda: os.makedirs(root / "made"),
        "rmdir": lambda: os.rmdir("empty", dir_fd=folder),
        "listdir": lambda: os.listdir(root),
        "scandir": lambda: os.scandir(root).close(),
    }
    if hasattr(os, "copy_file_range"):
        steps["copy_file_range"] = lambda: os.copy_file_range(source, fd, 50, 0, 200)
    return steps


@pytest.mark.parametrize("after", [False, True])
def test_each_call_of_os_can_fail(tmp_path: Path, after: bool) -> None:
    """Every function on the list raises the wanted error, names itself, and works again afterwards."""
    for name in list(_steps(_fresh(tmp_path, "names"))):
        root = _fresh(tmp_path, name)
        steps = _steps(root)
        if name == "replace":
            steps["rename"]()
        with FaultAt(1, errno.EIO, calls=[name], after=after) as fault, pytest.raises(OSError) as caught:
            steps[name]()
        assert caught.value.errno == errno.EIO
        assert fault.fired
        assert str(fault.call).startswith(f"{name} {root}")


def _fresh(root: Path, name: str) -> Path:
    folder = root / name.replace(" ", "-")
    folder.mkdir()
    return folder


def test_files_of_open_fail_too(tmp_path: Path) -> None:
    """What `open`, pathlib, tempfile and shutil write goes through the faults, in the usual types of file."""
    target = tmp_path / "text"
    with FaultAt(99, errno.EIO) as fault:
        with open(target, "w", encoding="utf-8") as file:
            assert isinstance(file, io.TextIOWrapper)
            file.write("a\nb\n")
        with io.open(target, "rb") as file:  # noqa: UP020 — another name for it
            assert isinstance(file, io.BufferedReader)
            assert file.read() == b"a\nb\n"
        with target.open("r+b") as file:
            assert isinstance(file, io.BufferedRandom)
            file.write(b"A")
        with open(target, "ab", buffering=0) as file:
            file.write(b"c")
        with tempfile.NamedTemporaryFile(dir=tmp_path) as file:
            file.write(b"x")
        shutil.copyfile(target, tmp_path / "copy")
    assert not fault.fired
    assert target.read_text() == "A\nb\nc"
    assert (tmp_path / "copy").read_text() == "A\nb\nc"
    kinds = [line.partition(" /")[0] for line in fault.log]
    assert kinds[:2] == ["open", "write"]
    assert "open to read" in kinds
    assert "read" in kinds
    assert any(kind in ("sendfile", "copy_file_range") for kind in kinds)
    assert kinds[-3:].count("fchmod") == 0


def test_open_refuses_what_open_refuses(tmp_path: Path) -> None:
    """Wrong modes, missing files and unbuffered text raise as ever while a fault is about."""
    with FaultAt(99):
        with pytest.raises(ValueError):
            (tmp_path / "x").open("rw")
        with pytest.raises(FileNotFoundError):
            (tmp_path / "x").open()
        with pytest.raises(ValueError):
            (tmp_path / "x").open("w", 0)
        with pytest.raises(FileExistsError):
            (tmp_path / "x").open("xb")


def test_a_full_disk_leaves_half_of_the_write(tmp_path: Path) -> None:
    """ENOSPC on a write comes after half of the bytes; flushing at close reports it."""
    target = tmp_path / "file"
    with FaultAt(2, errno.ENOSPC) as fault, pytest.raises(OSError) as caught:
        with target.open("wb") as file:
            file.write(DATA)
    assert caught.value.errno == errno.ENOSPC
    assert fault.call == f"write {target}"
    assert target.read_bytes() == DATA[:50]


def test_a_short_write_is_no_error(tmp_path: Path) -> None:
    """SHORT takes half and says so: who ignores the answer loses data, a buffered file does not."""
    careless, careful = tmp_path / "careless", tmp_path / "careful"
    with FaultAt(1, SHORT) as fault:
        fd = os.open(careless, os.O_WRONLY | os.O_CREAT)
        assert os.write(fd, DATA) == 50
        os.close(fd)
    assert fault.fired
    assert careless.read_bytes() == DATA[:50]
    with FaultAt(1, SHORT) as fault, careful.open("wb") as file:
        file.write(DATA)
    assert fault.fired
    assert careful.read_bytes() == DATA


def test_a_sticky_fault_lasts(tmp_path: Path) -> None:
    """A disk that stays full refuses everything that grows, and lets files be removed."""
    (tmp_path / "old").touch()
    with FaultAt(2, errno.ENOSPC, sticky=True) as fault:
        (tmp_path / "one").mkdir()
        for name in ("two", "three"):
            with pytest.raises(OSError):
                (tmp_path / name).mkdir()
        (tmp_path / "old").unlink()
    assert fault.fired
    assert os.listdir(tmp_path) == ["one"]


def test_a_fault_befalls_only_what_it_can(tmp_path: Path) -> None:
    """ENOSPC passes reads and removals by, EMFILE all but opening, SHORT all but writes."""
    root = _fresh(tmp_path, "kinds")
    passing: dict[faults.Fault, list[str]] = {
        errno.ENOSPC: ["link"],
        errno.EMFILE: ["open to read"],
        SHORT: ["write"],
    }
    for fault, kinds in passing.items():
        with FaultAt(99, fault) as seen:
            (root / "b").hardlink_to(_file(root / "a"))
            (root / "a").read_bytes()
            (root / "b").unlink()
            (root / "a").unlink()
        found = {line.partition(" /")[0] for line in seen.log}
        assert set(kinds) <= found
        assert "unlink" not in found
        assert ("read" in found) is False


def _file(path: Path) -> Path:
    path.write_bytes(DATA)
    return path


def test_only_paths_under_the_given_folders_count(tmp_path: Path) -> None:
    """With `under`, calls elsewhere pass uncounted; relative paths and descriptors are seen through."""
    inside, outside = _fresh(tmp_path, "in"), _fresh(tmp_path, "out")
    with FaultAt(99, errno.EIO, under=[inside]) as fault:
        _file(outside / "x")
        with contextlib.chdir(inside):
            Path("x").write_bytes(b"x")
            os.mkdir("y")
    assert [line.partition(" /")[0] for line in fault.log] == ["open", "write", "mkdir"]


def test_the_interpreter_is_left_alone() -> None:
    """Reading modules and package metadata is not counted."""
    import importlib.metadata

    installed = [
        str(Path(pytest.__file__).parents[1])
    ]  # sys.path names this checkout too, whose files do count
    with FaultAt(1, errno.EIO) as fault:
        assert any(importlib.metadata.distributions(name="pytest", path=installed))
        with open(os.devnull, "w", encoding="utf-8") as nothing:
            nothing.write("x")
        reader, writer = os.pipe()
        os.write(writer, b"x")
        os.read(reader, 1)
        os.close(reader)
        os.close(writer)
    assert fault.log == []


def test_all_is_as_before_afterwards(tmp_path: Path) -> None:
    """Leaving the block restores every function, also by an exception, and what `os` says it can do."""
    before = [
        builtins.open,
        io.open,
        os.open,
        os.replace,
        os.write,
        set(os.supports_dir_fd),
        set(os.supports_fd),
    ]
    with pytest.raises(KeyError), FaultAt(99):
        assert os.open in os.supports_dir_fd
        assert os.scandir in os.supports_fd
        shutil.rmtree(_fresh(tmp_path, "x"))
        raise KeyError
    after = [
        builtins.open,
        io.open,
        os.open,
        os.replace,
        os.write,
        set(os.supports_dir_fd),
        set(os.supports_fd),
    ]
    assert before == after
    with FaultAt(1), pytest.raises(RuntimeError, match="One fault at a time"), FaultAt(1):
        pass


def test_threads_are_counted_once_each(tmp_path: Path) -> None:
    """Of many threads exactly one is hit."""
    failed = []

    def work(number: int) -> None:
        try:
            os.mkdir(tmp_path / str(number))
        except OSError:
            failed.append(number)

    with FaultAt(7, errno.EIO) as fault:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert fault.fired
    assert len(failed) == 1
    assert len(os.listdir(tmp_path)) == 19


def _durable(folder: Path, data: bytes = DATA) -> None:
    """Write a file the careful way."""
    part = folder / "part"
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / "whole")
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def test_the_loop_covers_each_call_and_ends(tmp_path: Path) -> None:
    """`every_call` hits each call of a careful write once, in order, and then runs it undisturbed."""
    hit = []
    for number, fault in enumerate(every_call(errno.EIO)):
        folder = _fresh(tmp_path, str(number))
        with fault, contextlib.suppress(OSError):
            _durable(folder)
        whole = folder / "whole"
        assert not whole.exists() or whole.read_bytes() == DATA
        if fault.call:
            hit.append(fault.call.partition(" /")[0])
    assert hit == ["open", "write", "fsync", "replace", "open to read", "fsync"]
    assert whole.exists()


def test_the_loop_complains_when_it_does_not_end(tmp_path: Path) -> None:
    """An operation that tries for ever, and a loop whose block is never entered, are reported."""
    with pytest.raises(AssertionError, match="for ever"):
        for number, fault in enumerate(every_call(errno.EIO, limit=5)):
            with fault, contextlib.suppress(OSError):
                for one in range(99):
                    os.mkdir(tmp_path / f"{number}-{one}")
    with pytest.raises(AssertionError, match="never entered"):
        list(every_call())


def test_deaths_cover_each_call_and_keep_what_was_acknowledged(tmp_path: Path) -> None:
    """`every_death` kills a child at each call that changes something; what it had acked is known."""
    outcomes = []
    for n, outcome in enumerate(every_death(lambda ack: _two_writes(tmp_path, ack)), 1):
        assert outcome.n == n
        for folder in outcome.acked:
            assert (tmp_path / folder / "whole").read_bytes() == DATA
        outcomes.append(outcome)
        for folder in tmp_path.iterdir():
            shutil.rmtree(folder)
    assert [o.state for o in outcomes[:-1]] == ["killed"] * (len(outcomes) - 1)
    assert len(outcomes) == 2 * 6 + 1  # mkdir, open, write, fsync, replace, fsync; twice
    assert [len(o.acked) for o in outcomes] == [0] * 6 + [1] * 6 + [2]
    assert outcomes[-1].state == "finished"
    assert outcomes[-1].value == "done"


def _two_writes(root: Path, ack: faults.Ack) -> str:
    for name in ("a", "b"):
        (root / name).mkdir()
        _durable(root / name)
        ack(name)
    return "done"


def test_a_careless_write_is_caught_by_death(tmp_path: Path) -> None:
    """A write in place is found torn after one of the deaths: the loop can see what it is for."""
    target = tmp_path / "file"
    states = set()
    for _ in every_death(lambda ack: target.write_bytes(DATA)):
        states.add(target.read_bytes() if target.exists() else None)
    assert states == {None, b"", DATA[:50], DATA} or states == {None, DATA[:50], DATA}


def test_a_child_reports_what_it_raised_and_hangs_are_ended(tmp_path: Path) -> None:
    """An error comes back as itself, an unpicklable result as its repr, and a child that hangs is killed."""
    outcome = in_child(lambda ack: os.mkdir(tmp_path / "no" / "such"), 99)
    assert outcome.state == "raised"
    assert isinstance(outcome.value, FileNotFoundError)
    assert "lambda" in in_child(lambda ack: lambda: None, 99).value
    with pytest.raises(TimeoutError):
        in_child(lambda ack: threading.Event().wait(), 99, timeout=0.3)


# --- SQLite -------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """An SQLite database in WAL mode with one row."""
    assert faults.install_sqlite()
    path = tmp_path / "test.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (n INTEGER, text TEXT)")
        connection.execute("INSERT INTO t VALUES (0, 'old')")
        connection.commit()
    return path


def _insert(path: Path, n: int) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO t VALUES (?, ?)", (n, "x" * 5000))
        connection.execute("COMMIT")


def _rows(path: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [n for (n,) in connection.execute("SELECT n FROM t ORDER BY n")]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_each_file_access_of_sqlite_can_fail(database: Path, number: int) -> None:
    """Opening, writing, syncing and mapping fail one after the other; acknowledged rows stay."""
    hit, known = set(), {0}
    for n, fault in enumerate(every_call(number, under=[database.parent]), 1):
        with fault:
            try:
                _insert(database, n)
            except sqlite3.Error:
                pass
            else:
                known.add(n)
        assert known <= set(_rows(database))
        if fault.call:
            hit.add(fault.call.partition(" /")[0])
    assert hit >= {"sqlite.open", "sqlite.write", "sqlite.sync", "sqlite.shm"}
    assert ("sqlite.read" in hit) is (number == errno.EIO)
    assert n in known


def test_each_file_access_of_sqlite_can_be_the_last(database: Path) -> None:
    """Killed at any access, the database opens, is whole, and holds what was acknowledged."""
    deaths = 0

    def operation(ack: faults.Ack) -> None:
        _insert(database, 1)
        ack(1)

    for outcome in every_death(operation, under=[database.parent]):
        deaths += outcome.state == "killed"
        assert set(outcome.acked) <= set(_rows(database))
    assert deaths >= 5
    assert 1 in _rows(database)


def test_sqlite_without_a_fault_is_undisturbed(database: Path) -> None:
    """The shim passes everything on, for a database in a rollback journal and a temporary one as well."""
    with contextlib.closing(sqlite3.connect(database.with_name("other.db"))) as connection:
        connection.execute("CREATE TABLE t (n INTEGER)")
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(5000)])
        connection.commit()
        connection.execute("DELETE FROM t WHERE n % 2")
        connection.commit()
        connection.execute("VACUUM")
    assert len(_rows(database.with_name("other.db"))) == 2500
    with contextlib.closing(sqlite3.connect("")) as connection:
        connection.execute("CREATE TABLE t (n TEXT)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 5000)
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (5000,)
