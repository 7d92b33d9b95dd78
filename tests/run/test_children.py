"""What the processes of a run read: pools of every kind, programs, theirs; and what they write for each other."""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from modelhub_sdk.run import spy
from modelhub_sdk.run.reads import Watcher

Outcome = dict[str, str]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    for name in "abcd":
        (folder / name).write_text("old " + name)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def outcome(work: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """Run a function while the working folder is watched; return ``as read`` or ``changed`` by name."""

    def run(act: Callable[[], object], **options: object) -> Outcome:
        with Watcher([work], spool=tmp_path / "spool", **options) as watcher:  # type: ignore[arg-type]
            act()
        return {read.name: "changed" if read.changed else "as read" for read in watcher.stop()}

    return run


def python(code: str, **variables: str) -> str:
    """Run a Python program as a user's code does, and return what it says."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=False, timeout=60, capture_output=True, text=True,
        env={**os.environ, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def forked(act: Callable[[], object]) -> int:
    """Run a function in a forked child that ends without any farewell; return its status."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


ALL = [Path(name) for name in "abcd"]


# --- every kind of child ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pools(method: str, outcome: Callable[..., Outcome], work: Path) -> None:
    """Workers of a pool, as those of a DataLoader: what each of them reads is an input."""

    def act() -> None:
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert sorted(pool.map(Path.read_bytes, ALL, chunksize=1)) == [
                b"old a",
                b"old b",
                b"old c",
                b"old d",
            ]

    assert outcome(act) == dict.fromkeys("abcd", "as read")


def test_a_fork_server(outcome: Callable[..., Outcome]) -> None:
    """A fork server that starts within the run hands on what it was told."""

    def act() -> None:
        python(
            """
            import multiprocessing, pathlib
            if __name__ == "__main__":
                with multiprocessing.get_context("forkserver").Pool(1) as pool:
                    pool.map(pathlib.Path.read_bytes, [pathlib.Path("a"), pathlib.Path("b")])
            """
        )

    assert outcome(act) == {"a": "as read", "b": "as read"}


def test_threads_of_a_pool_and_of_children(outcome: Callable[..., Outcome]) -> None:
    """Threads here and threads of a forked child, all at once: nothing is lost or mixed up."""
    many = [Path(f"many-{number}") for number in range(200)]
    for path in many:
        path.write_text("x")

    def act() -> None:
        with multiprocessing.pool.ThreadPool(8) as pool:
            pool.map(Path.read_bytes, many[:100])

        def child() -> None:
            threads = [threading.Thread(target=path.read_bytes) for path in many[100:]]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        assert forked(child) == 0

    assert outcome(act) == dict.fromkeys(map(str, many), "as read")


def test_joblib(outcome: Callable[..., Outcome]) -> None:
    """Workers of joblib's own pool, which are processes that it starts by itself."""
    joblib = pytest.importorskip("joblib")
    from joblib.externals.loky import get_reusable_executor

    def act() -> None:
        get_reusable_executor(max_workers=1).shutdown(wait=True)  # of an earlier test: told of an earlier run
        joblib.Parallel(n_jobs=2)(joblib.delayed(Path.read_bytes)(path) for path in ALL)
        get_reusable_executor().shutdown(wait=True)

    assert outcome(act) == dict.fromkeys("abcd", "as read")


def test_children_that_are_killed(outcome: Callable[..., Outcome]) -> None:
    """SIGKILL right after a read, of a fork and of a pool's worker: what was read is known."""

    def act() -> None:
        def child() -> None:
            Path("a").read_bytes()
            os.kill(os.getpid(), signal.SIGKILL)

        assert forked(child) == -signal.SIGKILL
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            pool.submit(Path.read_bytes, Path("b")).result()
            with pytest.raises(BrokenProcessPool):
                pool.submit(signal.raise_signal, signal.SIGKILL).result()

    assert outcome(act) == {"a": "as read", "b": "as read"}


def test_children_of_children(outcome: Callable[..., Outcome]) -> None:
    """A program that forks, a fork that starts a program, a program that starts one: all are the run's."""

    def act() -> None:
        python("import os\nif os.fork(): os.wait()\nelse: open('a')")
        assert forked(lambda: python("open('b')")) == 0
        python("import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'open(\"c\")'], check=True)")

    assert outcome(act) == dict.fromkeys("abc", "as read")


def test_children_that_were_told_nothing(outcome: Callable[..., Outcome]) -> None:
    """A child with an environment of its own is not seen, and runs as ever."""

    def act() -> None:
        done = subprocess.run(
            [sys.executable, "-c", "print(open('a').read())"], env={}, capture_output=True, check=True
        )
        assert done.stdout == b"old a\n"

    assert outcome(act) == {}


# --- children are left in peace -----------------------------------------------------------------------------


def test_a_child_that_closes_everything(outcome: Callable[..., Outcome], tmp_path: Path) -> None:
    """A daemon closes all that is open and opens its own: no report of ours ends up in its files."""
    mine = tmp_path / "mine"

    def act() -> None:
        python(
            """
            import os, sys
            open("a").read()
            os.closerange(3, 256)
            own = [open(os.environ["MINE"] + str(n), "w") for n in range(8)]
            open("b").read(); open("c").read()
            for file in own:
                file.write("mine")
            """,
            MINE=str(mine),
        )
        assert {Path(f"{mine}{n}").read_text() for n in range(8)} == {"mine"}

    assert outcome(act) == dict.fromkeys("abc", "as read")


def test_a_child_without_standard_streams(outcome: Callable[..., Outcome]) -> None:
    """What a child without standard output prints later does not come to lie among its reports."""

    def act() -> None:
        python("import os\nfor n in (0, 1, 2): os.close(n)\nopen('a').read()\nos.open('b', os.O_RDONLY)\n")

    assert outcome(act) == {"a": "as read", "b": "as read"}


def test_a_child_with_no_numbers_left(outcome: Callable[..., Outcome]) -> None:
    """A child that may open nothing more goes on; its report alone is lost."""

    def act() -> None:
        text = python(
            """
            import os, resource
            resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
            kept = []
            try:
                while True: kept.append(os.open("a", os.O_RDONLY))
            except OSError as error:
                kept.pop() if False else None
            try:
                open("b")
            except OSError as error:
                print(error.errno)
            """
        )
        assert text == "24\n"

    assert outcome(act) == {"a": "as read"}


def test_a_child_that_outlives_the_run(work: Path, tmp_path: Path) -> None:
    """What it reads later is nobody's; it makes no folder anew, and ends well."""
    watcher = Watcher([work], spool=tmp_path / "spool")
    with watcher:
        child = subprocess.Popen(
            [sys.executable, "-c", "open('a'); print(flush=True); input(); open('b')"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
    shutil.rmtree(tmp_path / "spool")
    child.communicate("\n", timeout=60)
    assert child.returncode == 0
    assert not (tmp_path / "spool").exists()
    assert [read.name for read in watcher.stop()] == ["a"]


def test_a_forked_child_does_not_end_the_watch(work: Path, tmp_path: Path) -> None:
    """A child that leaves the block, as it was forked in it, hashes nothing and goes on to report."""
    watcher = Watcher([work], spool=tmp_path / "spool")
    with watcher:

        def child() -> None:
            Path("a").read_bytes()
            assert watcher.stop() == ()
            assert spy.WATCH in os.environ
            Path("b").read_bytes()

        assert forked(child) == 0
    assert [read.name for read in watcher.stop()] == ["a", "b"]


@pytest.mark.parametrize(
    "body", ["raise ImportError('x')", "raise ValueError", "import missing_one", "open('b')"]
)
def test_a_sitecustomize_of_the_users(body: str, outcome: Callable[..., Outcome], tmp_path: Path) -> None:
    """The one that was there runs after ours, whatever it does; the child runs on."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text(f"import os\nos.environ['RAN'] = 'yes'\n{body}\n")

    def act() -> None:
        path = os.pathsep.join([os.environ["PYTHONPATH"], str(tmp_path / "own")])
        assert python("import os; open('a'); print(os.environ['RAN'])", PYTHONPATH=path) == "yes\n"

    assert outcome(act) == dict.fromkeys("ab" if "'b'" in body else "a", "as read")


def test_a_child_with_a_run_of_its_own(outcome: Callable[..., Outcome], work: Path, tmp_path: Path) -> None:
    """In a child that watches for itself both see the same, also what is read in C++; the outer one to the end."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "polars.py").write_text("def read_csv(source):\n    pass\n")

    def act() -> None:
        text = python(
            f"""
            import sys
            sys.path.insert(0, {str(tmp_path / "lib")!r})
            from pathlib import Path
            from modelhub_sdk.run.reads import Watcher
            import polars
            with Watcher([Path.cwd()], spool=Path({str(tmp_path / "inner")!r})) as watcher:
                polars.read_csv("a")
                open("b")
            polars.read_csv("c")
            open("d")
            print([read.name for read in watcher.stop()])
            """
        )
        assert text == "['a', 'b']\n"

    assert outcome(act) == dict.fromkeys("abcd", "as read")


# --- who wrote it ------------------------------------------------------------------------------------------------


def test_what_one_process_makes_for_another_is_no_input(outcome: Callable[..., Outcome]) -> None:
    """A file that any process of the run has written before it is read is the run's own, whoever reads it."""

    def act() -> None:
        python("open('by-child', 'w').write('x')")
        Path("by-child").read_bytes()
        python("open('by-child')")
        Path("by-us").write_text("x")
        python("open('by-us')")
        assert forked(lambda: Path("by-fork").write_text("x")) == 0
        python("open('by-fork')")

    assert outcome(act) == {}


def test_what_was_read_before_it_was_written(outcome: Callable[..., Outcome]) -> None:
    """Read by one process and later written by another: an input; as it was where its reader did that."""

    def act() -> None:
        python("open('a').read()")
        Path("a").write_text("newer")
        Path("b").read_bytes()
        Path("b").write_text("newer")
        python("open('b').read()")
        python("open('c').read(); open('c', 'w').write('newer')")
        Path("c").read_bytes()

    assert outcome(act) == {"a": "changed", "b": "as read", "c": "as read"}


def test_two_children_that_saw_two_contents(outcome: Callable[..., Outcome]) -> None:
    """What a program that cannot be seen changed between two reads is marked, though it looks like the last one."""

    def act() -> None:
        python("open('a').read()")
        subprocess.run(["sh", "-c", "echo other > a"], check=True)
        python("open('a').read()")

    assert outcome(act) == {"a": "changed"}


def test_a_childs_overflow_is_known(
    outcome: Callable[..., Outcome], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that reads more than is noted says so, once."""
    monkeypatch.setattr(spy, "MAX_FILES", 2)
    watcher = Watcher([work], spool=tmp_path / "spool")
    with watcher:
        assert forked(lambda: [path.read_bytes() for path in ALL * 3]) == 0
    assert [read.name for read in watcher.stop()] == ["a", "b"]
    assert watcher.overflow == 1
