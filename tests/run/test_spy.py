"""What counts as read, and what does not; what is known of a file that changed afterwards; who reports it."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelhub_sdk.run import spy
from modelhub_sdk.run.reads import Read, Watcher


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


Seen = Callable[..., dict[str, Read]]


@pytest.fixture
def seen(work: Path, tmp_path: Path) -> Iterator[Seen]:
    """Run a function while the working folder is watched; return what was read, by name."""
    count = [0]

    def run(act: Callable[[], object], **options: object) -> dict[str, Read]:
        count[0] += 1
        with Watcher([work], spool=tmp_path / f"spool{count[0]}", **options) as watcher:  # type: ignore[arg-type]
            act()
        assert watcher.stop() is watcher.stop()
        return {read.name: read for read in watcher.stop()}

    yield run
    assert spy._spies == ()
    assert spy.WATCH not in os.environ


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def python(code: str, *options: str, **env: str) -> None:
    subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code)],
        check=True,
        env={**os.environ, **env},
        timeout=60,
    )


def test_every_way_to_open_a_file(work: Path, seen: Seen) -> None:
    """Builtin open, pathlib, os.open, memory maps, sqlite, copies, numpy, pandas, joblib: all are seen."""
    import joblib
    import numpy as np
    import pandas as pd

    names = [
        "a",
        "b",
        "c",
        "d",
        "e",
        "f",
        "n.npy",
        "m.npy",
        "t.csv",
        "j.joblib",
        "z.gz",
        "Größe 𝛼",
        "sub/deep",
    ]
    (work / "sub").mkdir()
    for name in names:
        (work / name).write_bytes(b"x,y\n1,2\n")
    np.save(work / "n.npy", np.arange(3))
    np.save(work / "m.npy", np.arange(3))
    joblib.dump([1], work / "j.joblib")
    sqlite3.connect(work / "base.db").close()
    with sqlite3.connect(work / "base.db") as connection:
        connection.execute("CREATE TABLE t (n)")
    connection.close()

    def act() -> None:
        open("a").close()
        (work / "b").read_bytes()
        os.close(os.open(b"c", os.O_RDONLY))
        with open(work / "d", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            mapped[:1]
        shutil.copy("e", work.parent / "copy")
        open(Path("./sub/../f"), "r+").close()
        np.load("n.npy")
        np.load("m.npy", mmap_mode="r")
        pd.read_csv("t.csv")
        joblib.load("j.joblib")
        open("z.gz", "rb").close()
        open("Größe 𝛼").close()
        os.chdir("sub")
        open("deep").close()
        os.chdir(work)
        sqlite3.connect("base.db").close()

    found = seen(act)
    assert set(found) == {*names, "base.db"}
    assert found["a"] == Read(str(work / "a"), str(work), "a", 8, sha(b"x,y\n1,2\n"), False)
    assert not any(read.changed for read in found.values())


def test_what_is_no_input(work: Path, seen: Seen, tmp_path: Path) -> None:
    """Code, dot-files, caches, keys, excluded folders, what lies elsewhere, what the run wrote, what is no file."""
    quiet = [
        "code.py", "lib.so", "book.ipynb", ".env", ".git/config", "__pycache__/x", "venv/lib/site-packages/x/data.csv",
        "id.pem", "outputs/old.csv", "node_modules/x",
    ]  # fmt: skip
    for name in quiet:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text("x")
    (tmp_path / "elsewhere.csv").write_text("x")
    os.mkfifo(work / "pipe")

    def act() -> None:
        for name in quiet:
            (work / name).read_text()
        (tmp_path / "elsewhere.csv").read_text()
        (work / "made.csv").write_text("made")
        (work / "made.csv").read_text()
        os.close(os.open(work, os.O_RDONLY))
        os.close(os.open("pipe", os.O_RDONLY | os.O_NONBLOCK))
        open(os.devnull).close()
        with pytest.raises(FileNotFoundError):
            (work / "missing").read_text()
        with pytest.raises(ValueError, match="null"):
            open("a\0b")  # noqa: SIM115

    assert seen(act, exclude=[work / "outputs"]) == {}


def test_tracked_code_and_tracked_data(work: Path, seen: Seen) -> None:
    """Of the repository's own files configuration and documents are code; tables are data."""
    for name in ("params.yaml", "README.md", "Makefile", "data.csv", "other.yaml"):
        (work / name).write_text("x")
    tracked = frozenset(str(work / name) for name in ("params.yaml", "README.md", "Makefile", "data.csv"))
    names = sorted(path.name for path in work.iterdir())
    found = seen(lambda: [Path(name).read_text() for name in names], tracked=lambda: tracked)
    assert set(found) == {"data.csv", "other.yaml"}


@pytest.mark.parametrize(
    "change",
    [
        lambda: Path("d").write_bytes(b"new"),
        lambda: open("d", "r+b").close(),
        lambda: os.replace("other", "d"),
        lambda: os.rename("d", "moved"),
        lambda: os.remove("d"),
        lambda: os.truncate("d", 0),
        lambda: shutil.move("d", "moved"),
        lambda: open("d", "a").close(),
    ],
    ids=["write", "r+", "replace", "rename", "remove", "truncate", "move", "append"],
)
def test_a_file_that_is_changed_by_the_run_is_known_as_it_was(
    work: Path, seen: Seen, change: Callable[[], object]
) -> None:
    """Whatever Python does to a file that it has read: its digest is that of what was read."""
    (work / "d").write_bytes(b"old")
    (work / "other").write_bytes(b"other")

    def act() -> None:
        (work / "d").read_bytes()
        change()

    read = seen(act)["d"]
    assert (read.digest, read.size, read.changed) == (sha(b"old"), 3, False)


def test_a_file_that_somebody_else_changed_is_told(work: Path, seen: Seen) -> None:
    """Another program's change cannot be foreseen: the read is marked; a file that is gone has no digest."""
    (work / "d").write_bytes(b"old")
    (work / "gone").write_bytes(b"old")

    def act() -> None:
        (work / "d").read_bytes()
        (work / "gone").read_bytes()
        subprocess.run(["sh", "-c", "echo longer > d; rm gone"], check=True)

    found = seen(act)
    assert (found["d"].digest, found["d"].changed) == (sha(b"longer\n"), True)
    assert (found["gone"].digest, found["gone"].changed) == (None, True)


def test_links_are_files_of_the_folder(work: Path, seen: Seen, tmp_path: Path) -> None:
    """A link below the root counts under its own name, with the bytes that it leads to."""
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "x.csv").write_bytes(b"far")
    (work / "link").symlink_to(tmp_path / "far")
    (work / "one.csv").symlink_to(tmp_path / "far" / "x.csv")
    found = seen(lambda: (Path("link/x.csv").read_bytes(), Path("one.csv").read_bytes()))
    assert {name: read.digest for name, read in found.items()} == {
        "link/x.csv": sha(b"far"),
        "one.csv": sha(b"far"),
    }


def test_two_watchers_and_declared_roots(work: Path, tmp_path: Path) -> None:
    """Both see what happens while they are on; a file below two roots is named by the longer one."""
    (work / "data").mkdir()
    (work / "data" / "x").write_text("x")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "y").write_text("y")
    outer = Watcher([work, tmp_path / "shared"], spool=tmp_path / "s1")
    inner = Watcher([work, work / "data"], spool=tmp_path / "s2")
    outer.start()
    (tmp_path / "shared" / "y").read_text()
    inner.start()
    (work / "data" / "x").read_text()
    assert [read.name for read in inner.stop()] == ["x"]
    (work / "data" / "x").read_text()
    assert sorted(read.name for read in outer.stop()) == ["data/x", "y"]
    (work / "data" / "x").read_text()
    assert spy._spies == ()


def test_threads_are_seen(work: Path, seen: Seen) -> None:
    """Reads of many threads at once are all noted."""
    for number in range(50):
        (work / f"{number}").write_text(str(number))

    def act() -> None:
        threads = [threading.Thread(target=(work / f"{n % 50}").read_text) for n in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(seen(act)) == 50


def test_forked_children_report(work: Path, seen: Seen) -> None:
    """A forked child, also one that is killed right after its read, and its own children."""
    for name in ("child", "grandchild", "killed", "overwritten"):
        (work / name).write_text(name)

    def act() -> None:
        pid = os.fork()
        if pid == 0:
            (work / "child").read_text()
            (work / "overwritten").read_text()
            (work / "overwritten").write_text("other")
            (work / "written-by-child").write_text("x")
            if os.fork() == 0:
                (work / "grandchild").read_text()
                os._exit(0)
            os.wait()
            os._exit(0)
        os.waitpid(pid, 0)
        pid = os.fork()
        if pid == 0:
            (work / "killed").read_text()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)

    found = seen(act)
    assert set(found) == {"child", "grandchild", "killed", "overwritten"}
    assert (found["overwritten"].digest, found["overwritten"].changed) == (sha(b"overwritten"), False)


def test_python_children_report(work: Path, seen: Seen, tmp_path: Path) -> None:
    """Children by subprocess, with a sitecustomize of their own, and theirs; -I and -S are not seen, and run."""
    for name in ("child", "grandchild", "isolated", "own"):
        (work / name).write_text(name)
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import os\nopen(os.environ['MARK'], 'w').close()\n")

    def act() -> None:
        python(
            "import subprocess, sys; open('child'); subprocess.run([sys.executable, '-c', 'open(\"grandchild\")'])"
        )
        python("open('isolated')", "-I")
        python("open('isolated')", "-S")
        path = os.pathsep.join([os.environ["PYTHONPATH"], str(own)])
        python("open('own')", PYTHONPATH=path, MARK=str(tmp_path / "mark"))

    assert set(seen(act)) == {"child", "grandchild", "own"}
    assert (tmp_path / "mark").exists()


def test_rubbish_in_the_spool(work: Path, seen: Seen, tmp_path: Path) -> None:
    """Torn lines and strange files in the spool cost only themselves; contradictions are marked as changes."""
    (work / "x").write_text("x")
    (work / "y").write_text("y")

    def act() -> None:
        (work / "y").read_text()
        spool = tmp_path / "spool1"
        good = {"read": str(work / "x"), "state": [1, 2, 3]}
        other = {"read": str(work / "y"), "state": [9, 9, 9]}
        lines = [
            "{",
            "[]",
            '{"read": 7, "state": [1]}',
            json.dumps(good),
            json.dumps(other),
            '{"read": "/x", "st',
        ]
        (spool / "1.jsonl").write_text("\n".join(lines))
        (spool / "2.jsonl").write_bytes(b"\xff\xfe\0")

    found = seen(act)
    assert {name: read.changed for name, read in found.items()} == {"x": True, "y": True}


def test_the_hook_never_raises(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error inside of the hook, a working folder that is gone, odd arguments: the user's code goes on."""
    (work / "x").write_text("x")
    watcher = Watcher([work], spool=tmp_path / "spool")
    with watcher:
        monkeypatch.setattr(spy.Spy, "wants", lambda *_: 1 / 0)
        (work / "x").read_text()
        spy.noted(str(work / "x"))
        monkeypatch.undo()
        for arguments in ((7, None, 0), (None, None, None), (b"\xff", "r", 0), (object(), "r", 0), ()):
            spy._hook("open", arguments)
        sys.audit("open", str(work / "x"), "r", 0)
        for event in ("os.rename", "os.remove", "os.truncate", "sqlite3.connect"):
            sys.audit(event, 7, 8, -1, -1)
        sys.audit("sqlite3.connect", ":memory:")
        sys.audit("sqlite3.connect", b"x")
        gone = tmp_path / "gone"
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()
        with pytest.raises(OSError):
            open("relative")  # noqa: SIM115
        os.chdir(work)
    assert [read.name for read in watcher.stop()] == ["x"]


def test_a_bound_on_what_is_noted(work: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound files are counted; beyond the size a file is not hashed before it is overwritten."""
    monkeypatch.setattr(spy, "MAX_FILES", 2)
    monkeypatch.setattr(spy, "MAX_HASH", 2)
    for name in ("a", "b", "c"):
        (work / name).write_text("long")

    def act() -> None:
        for name in ("a", "b", "c"):
            (work / name).read_text()
        (work / "a").write_text("other")

    found = seen(act)
    assert set(found) == {"a", "b"}
    assert found["a"].changed


def test_readers_of_other_languages_are_wrapped(
    work: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions and classes of pyarrow and polars note the path that they are given, and are themselves again afterwards."""
    for name in ("t.parquet", "u.parquet", "folder/v.parquet", "folder/_w", "s.csv", "k.csv"):
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text(name)
    parquet, polars = types.ModuleType("pyarrow.parquet"), types.ModuleType("polars")

    def read_table(source: object, *, columns: object = None) -> object:
        """Read."""
        return source

    class ParquetFile:
        def __init__(self, source: object) -> None:
            self.source = source

    def read_csv(source: object) -> object:
        raise ValueError(source)

    parquet.read_table, parquet.ParquetFile = read_table, ParquetFile  # type: ignore[attr-defined]
    polars.read_csv, polars.scan_csv = read_csv, len  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    monkeypatch.setitem(sys.modules, "polars", polars)

    def act() -> None:
        assert parquet.read_table("t.parquet", columns=1) == "t.parquet"
        assert parquet.read_table.__doc__ == "Read."
        assert isinstance(parquet.ParquetFile(source=work / "u.parquet"), ParquetFile)
        parquet.read_table(["folder"])
        parquet.read_table(object())
        with pytest.raises(ValueError, match=r"s.csv"):
            polars.read_csv("s.csv")
        assert polars.scan_csv("k.csv") == 5

    assert set(seen(act)) == {"t.parquet", "u.parquet", "folder/v.parquet", "s.csv", "k.csv"}
    assert parquet.read_table is read_table
    assert parquet.ParquetFile("x").source == "x"
    assert polars.scan_csv is len


def test_a_reader_that_is_imported_later(work: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is imported while the run is on is wrapped as well, and the finder is gone afterwards."""
    (work / "lib").mkdir()
    (work / "lib" / "polars.py").write_text("def read_parquet(source):\n    return source\n")
    (work / "p.parquet").write_text("x")
    monkeypatch.syspath_prepend(str(work / "lib"))
    monkeypatch.delitem(sys.modules, "polars", raising=False)

    def act() -> None:
        import polars

        assert polars.read_parquet("p.parquet") == "p.parquet"

    found = seen(act)
    sys.modules.pop("polars")  # not by monkeypatch, which would put it back
    assert set(found) == {"p.parquet"}
    assert not any(type(finder).__name__ == "_Finder" for finder in sys.meta_path)


def test_a_child_reports_by_the_variable(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a child does at its start, done here: it watches what the variable says, and writes lines."""
    (work / "x").write_text("x")
    (tmp_path / "spool").mkdir()
    told = [{"roots": [str(work)], "exclude": [], "spool": str(tmp_path / "spool")}]
    monkeypatch.setenv(spy.WATCH, json.dumps(told))
    spy.report_to_parent()
    (mine,) = spy._spies
    try:
        (work / "x").read_text()
        (work / "x").write_text("y")
    finally:
        spy.end(mine)
    (report,) = (tmp_path / "spool").iterdir()
    first, kept, wrote = map(json.loads, report.read_text().splitlines())
    assert first["read"] == kept["read"] == wrote["wrote"] == str(work / "x")
    assert kept["digest"] == sha(b"x")
    assert first["at"] == kept["at"] < wrote["at"]
    monkeypatch.delenv(spy.WATCH)
    spy.report_to_parent()
    assert spy._spies == ()
