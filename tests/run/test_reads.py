"""What is an input and what the run made itself; what is excluded; readers and writers of pyarrow and polars."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import json
import os
import pickle
import runpy
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelhub_sdk.blobs import disk
from modelhub_sdk.errors import InvalidName
from modelhub_sdk.run import spy
from modelhub_sdk.run.reads import Watcher

Outcome = dict[str, str]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def outcome(work: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """Run a function while the working folder is watched; return ``as read``, ``changed`` or ``gone`` by name."""

    def run(act: Callable[[], object], **options: Any) -> Outcome:
        with Watcher(options.pop("roots", [work]), spool=tmp_path / "spool", **options) as watcher:
            act()
        return {
            read.name: "gone" if read.digest is None else "changed" if read.changed else "as read"
            for read in watcher.stop()
        }

    return run


def put(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("old," + name)


def take(name: str) -> None:
    Path(name).read_bytes()


# --- what the run made itself -----------------------------------------------------------------------------


def test_a_file_of_before_that_is_renamed_is_data(outcome: Callable[..., Outcome]) -> None:
    """Data that is only given another name, also over a file that the run made, stays data."""
    put("raw.csv", "new.csv")

    def act() -> None:
        os.rename("raw.csv", "data.csv")
        take("data.csv")
        Path("made.csv").write_text("x")
        os.replace("new.csv", "made.csv")
        take("made.csv")

    assert outcome(act) == {"data.csv": "as read", "made.csv": "as read"}


def test_what_is_put_in_place_whole_is_the_runs_own(outcome: Callable[..., Outcome], tmp_path: Path) -> None:
    """Written under a name of its own, here or elsewhere, or in a folder of its own, and then moved: no input."""
    put("old.csv")

    def act() -> None:
        Path("part").write_text("x")
        os.replace("part", "here.csv")
        (tmp_path / "far").write_text("x")
        os.rename(tmp_path / "far", "from-afar.csv")
        os.mkdir("making")
        Path("making/a.csv").write_text("x")
        os.rename("making", "made")
        for name in ("here.csv", "from-afar.csv", "made/a.csv"):
            take(name)

    assert outcome(act) == {}


def test_an_input_that_is_moved_is_no_second_input(outcome: Callable[..., Outcome]) -> None:
    """Read, moved (alone or with its folder) and read again: one input, under the name that it had."""
    put("a", "folder/b")

    def act() -> None:
        take("a")
        os.rename("a", "moved")
        take("moved")
        take("folder/b")
        os.rename("folder", "other")
        take("other/b")

    assert outcome(act) == {"a": "as read", "folder/b": "as read"}


def test_a_removed_folder_was_read(outcome: Callable[..., Outcome]) -> None:
    """`shutil.rmtree`, which removes by open folders, costs no digest of what was read there."""
    put("folder/sub/a", "folder/b", "kept")

    def act() -> None:
        for name in ("folder/sub/a", "folder/b", "kept"):
            take(name)
        shutil.rmtree("folder")

    assert outcome(act) == {"folder/sub/a": "as read", "folder/b": "as read", "kept": "as read"}


def test_a_removed_folder_is_hashed_up_to_a_bound(
    outcome: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing a mass of data does not read all of it again: beyond the bound its digest is not known."""
    monkeypatch.setattr(spy, "MAX_HASHED", 10)
    put("f/1", "f/2")  # 7 bytes each

    def act() -> None:
        take("f/1")
        take("f/2")
        shutil.rmtree("f")

    assert outcome(act) == {"f/1": "as read", "f/2": "gone"}


def test_an_opening_for_writing_that_fails_is_none(outcome: Callable[..., Outcome]) -> None:
    """A file that was to be new and is there, or was to be there and is not, was not written."""
    put("there")

    def act() -> None:
        with contextlib.suppress(FileExistsError):
            open("there", "x")  # noqa: SIM115
        take("there")
        with contextlib.suppress(FileNotFoundError):
            open("later", "r+")  # noqa: SIM115
        os.system("echo x > later")
        take("later")

    assert outcome(act) == {"there": "as read", "later": "as read"}


def test_names_relative_to_an_open_folder(outcome: Callable[..., Outcome]) -> None:
    """What is moved or removed relative to an open folder is not mistaken for a file of the working folder."""
    put("a", "sub/a", "sub/b")

    def act() -> None:
        folder = os.open("sub", os.O_RDONLY)
        os.rename("a", "moved", src_dir_fd=folder, dst_dir_fd=folder)
        os.remove("b", dir_fd=folder)
        os.close(folder)
        take("a")

    assert outcome(act) == {"a": "as read"}


def test_databases(outcome: Callable[..., Outcome], work: Path) -> None:
    """A database that was there is an input, by its path or its URL; one that the run makes is not."""

    def make(name: str) -> None:
        connection = sqlite3.connect(name)
        connection.execute("CREATE TABLE t (a)")
        connection.close()

    make("a b.db")
    make("plain.db")

    def act() -> None:
        make("made.db")
        sqlite3.connect("made.db").close()
        sqlite3.connect(f"file://{work}/a%20b.db?mode=ro", uri=True).close()
        sqlite3.connect(work / "plain.db").close()
        sqlite3.connect("").close()
        sqlite3.connect("file::memory:", uri=True).close()

    assert outcome(act) == {"a b.db": "as read", "plain.db": "as read"}


def test_truncation_before_a_read_makes_it_the_runs(outcome: Callable[..., Outcome]) -> None:
    """A file that the run cuts before it ever reads it is what the run made of it."""
    put("a")

    def act() -> None:
        os.truncate("a", 1)
        take("a")

    assert outcome(act) == {}


# --- files of several names -----------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_another_name_of_what_the_run_made(
    link: Callable[..., None], outcome: Callable[..., Outcome]
) -> None:
    """``latest.pt`` that leads to a checkpoint of the run is no input, also when it leads to the next one later."""

    def act() -> None:
        for epoch in range(2):
            put(f"epoch-{epoch}.pt")
            with contextlib.suppress(FileNotFoundError):
                os.remove("latest.pt")
            link(f"epoch-{epoch}.pt", "latest.pt")
            take("latest.pt")
        os.remove("epoch-1.pt")
        with contextlib.suppress(FileNotFoundError):  # of the symbolic one
            take("latest.pt")

    assert outcome(act) == {}


def test_another_name_of_what_was_there_is_data(outcome: Callable[..., Outcome]) -> None:
    """A link that the run makes to data is read as data; to what it has read already, it is no second input."""
    put("raw.csv", "read.csv")

    def act() -> None:
        os.link("raw.csv", "data.csv")
        os.symlink("raw.csv", "link.csv")
        take("read.csv")
        os.link("read.csv", "again.csv")
        for name in ("data.csv", "link.csv", "again.csv"):
            take(name)
        with contextlib.suppress(FileExistsError):
            os.link("read.csv", "raw.csv")
        take("raw.csv")

    assert outcome(act) == dict.fromkeys(["data.csv", "link.csv", "raw.csv", "read.csv"], "as read")


def test_a_working_folder_with_two_names(outcome: Callable[..., Outcome], work: Path, tmp_path: Path) -> None:
    """Written by the name with a link and read by the real one, or the other way round: the run's own."""
    link = tmp_path / "link"
    link.symlink_to(work)
    put("d", "e")

    def act() -> None:
        put(str(link / "made"), str(work / "made-too"))
        for path in ("made", link / "made", link / "made-too", "d", link / "e"):
            take(str(path))
        put("e")
        put(str(link / "d"))

    assert outcome(act, roots=[link]) == {"d": "as read", "e": "as read"}


@pytest.mark.parametrize("change", [lambda name: put(name), os.remove, lambda name: os.truncate(name, 0)])
@pytest.mark.parametrize(
    ("read", "changed"), [("d", "d"), ("link", "d"), ("far/d", "near/d"), ("near/d", "far/d")]
)
def test_what_changes_by_another_name(
    read: str, changed: str, change: Callable[[str], None], outcome: Callable[..., Outcome], work: Path
) -> None:
    """Read by one name and changed by another: it is known as it was read."""
    Path("near").mkdir()
    Path("far").symlink_to("near")
    Path("link").symlink_to("d")
    for name in ("d", "near/d"):
        Path(name).write_text("as it was")

    def act() -> None:
        take(read)
        change(changed)

    assert outcome(act) == {read: "as read"}


def test_a_folder_that_is_removed_by_another_name(outcome: Callable[..., Outcome]) -> None:
    """What was read through a link to a folder, or by its real name, is known when the other is removed whole."""
    put("real/a", "real/b")
    Path("link").symlink_to("real")

    def act() -> None:
        take("link/a")
        take("real/b")
        shutil.rmtree("real")

    assert outcome(act) == {"link/a": "as read", "real/b": "as read"}


def test_a_link_that_leads_elsewhere_later(outcome: Callable[..., Outcome]) -> None:
    """A link to a folder that the run turns round is looked at anew: data is data, the run's is its own."""
    put("data/1/x", "data/2/y")

    def act() -> None:
        put("made/x", "made/y")
        os.symlink("made", "now")
        take("now/x")
        os.remove("now")
        os.symlink("data/2", "now")
        take("now/y")

    assert outcome(act) == {"now/y": "as read"}


def test_the_real_names_of_many_folders(
    outcome: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of folders only so many are kept in mind, and nothing is lost by that."""
    monkeypatch.setattr(spy, "MAX_FOLDERS", 2)
    names = [f"{number}/x" for number in range(9)]
    put(*names)
    assert outcome(lambda: [take(name) for name in names * 2]) == dict.fromkeys(names, "as read")


def test_what_a_child_reads_by_another_name(outcome: Callable[..., Outcome]) -> None:
    """A child that reads the run's checkpoint through a link reads no input; written by a child, likewise."""

    def act() -> None:
        put("epoch.pt")
        os.symlink("epoch.pt", "latest.pt")
        subprocess.run([sys.executable, "-c", "open('latest.pt'); open('child.pt', 'w')"], check=True)
        os.symlink("child.pt", "last.pt")
        take("last.pt")

    assert outcome(act) == {}


def test_what_may_not_be_written_was_not() -> None:
    """A file that is only for reading, opened for writing in vain and then read, is an input."""
    with tempfile.TemporaryDirectory() as name:  # where a child that is no longer root may go
        folder = Path(name).resolve()
        folder.chmod(0o755)
        for part in ("work", "spool"):
            (folder / part).mkdir()
        (folder / "spool").chmod(0o777)
        data = folder / "work" / "data"
        data.write_text("x")
        data.chmod(0o444)
        with Watcher([folder / "work"], spool=folder / "spool") as watcher:
            if (pid := os.fork()) == 0:
                if os.geteuid() == 0:
                    os.setuid(65534)
                try:
                    open(data, "a")  # noqa: SIM115
                except PermissionError:
                    data.read_bytes()
                os._exit(0)
            os.waitpid(pid, 0)
        assert [(read.name, read.changed) for read in watcher.stop()] == [("data", False)]


# --- more than one watcher ---------------------------------------------------------------------------------------


def test_the_end_of_one_is_no_read_for_another(
    outcome: Callable[..., Outcome], work: Path, tmp_path: Path
) -> None:
    """What a watcher hashes at its end, and its spool, are no inputs of a run that is still on."""
    put("early")
    first = Watcher([work], spool=work / "spool-of-first")
    first.start()
    take("early")
    subprocess.run([sys.executable, "-c", "open('early')"], check=True)
    assert outcome(lambda: first.stop()) == {}
    assert [read.name for read in first.stop()] == ["early"]


def test_a_library_within_two_watches(outcome: Callable[..., Outcome], work: Path, tmp_path: Path) -> None:
    """A child that watches for itself and imports a library in the meantime: each of its two spies wraps it once."""
    put("a")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "polars.py").write_text("def read_csv(source):\n    return source\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'lib')!r})\n"
        "from pathlib import Path\n"
        "from modelhub_sdk.run.reads import Watcher\n"
        f"with Watcher([Path.cwd()], spool=Path({str(tmp_path / 'inner')!r})) as watcher:\n"
        "    import polars\n"
        "    assert polars.read_csv('a') == 'a'\n"
        "assert [read.name for read in watcher.stop()] == ['a']\n"
    )
    assert outcome(lambda: subprocess.run([sys.executable, "-c", code], check=True)) == {"a": "as read"}


# --- a spool that somebody else has written to -------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        '{"read": "WORK/a", "state": [1, 2, 3], "at": Infinity}',
        '{"read": "WORK/a", "state": [1, 2, NaN], "at": 1}',
        '{"read": "WORK/a\\u0000", "state": [1, 2, 3], "at": 1}',
        '{"read": "WORK/\\ud800", "state": [1, 2, 3], "at": 1}',
        '{"wrote": "WORK/a\\u0000", "at": 1}',
        '{"read": "WORK/a", "state": [1, 2, 3], "digest": 7}',
        '{"read": null, "state": [1, 2, 3]}',
        '{"wrote": ["WORK/a"], "at": 0}',
        "[" * 100_000,
        "9" * 10_000,
        "\0",
        '"read"',
    ],
    ids=range(12),
)
def test_a_line_that_is_no_report(
    line: str, outcome: Callable[..., Outcome], work: Path, tmp_path: Path
) -> None:
    """Numbers without end, names that no file can have, depth without end: a line costs only itself."""
    put("a", "b")
    good = json.dumps({"read": str(work / "b"), "state": [1, 2, 3], "at": 1})

    def act() -> None:
        (tmp_path / "spool" / "1.jsonl").write_text(f"{line.replace('WORK', str(work))}\n{good}\n")

    assert outcome(act) == {"b": "changed"}


def test_things_in_the_spool_that_are_no_reports(outcome: Callable[..., Outcome], tmp_path: Path) -> None:
    """A folder, a pipe that nobody writes to, a link to nowhere: passed over, and nobody waits."""

    def act() -> None:
        spool = tmp_path / "spool"
        (spool / "folder").mkdir()
        os.mkfifo(spool / "pipe")
        (spool / "link").symlink_to("nowhere")
        (spool / "link-to-pipe").symlink_to("pipe")

    assert outcome(act) == {}


def test_a_file_that_becomes_a_pipe(outcome: Callable[..., Outcome]) -> None:
    """What was read and is a pipe, a folder or a loop of links at the end has no digest, and nobody waits."""
    put("pipe", "folder", "loop")

    def act() -> None:
        for name in ("pipe", "folder", "loop"):
            take(name)
        subprocess.run(
            "rm pipe folder loop; mkfifo pipe; mkdir folder; ln -s loop loop", shell=True, check=True
        )

    assert outcome(act) == dict.fromkeys(["folder", "loop", "pipe"], "gone")


# --- the hook of children, here ----------------------------------------------------------------------------------


HOOK = Path(spy.__file__).parent / "hook" / "sitecustomize.py"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the hook here as a child does; take back what it has begun."""
    for name in ("sitecustomize", "_modelhub_spy"):
        monkeypatch.setitem(sys.modules, name, None)
    yield lambda: runpy.run_path(str(HOOK))
    begun = sys.modules.get("_modelhub_spy")
    for one in getattr(begun, "_spies", ()):
        begun.end(one)  # type: ignore[union-attr]


def test_the_hook_reports_and_hands_on(
    hook: Callable[[], object], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loads a copy of its own of what watches, reports, and then runs the sitecustomize that comes next."""
    put("a")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text("RAN = True\n")
    (tmp_path / "spool").mkdir()
    told = [{"roots": [str(work)], "exclude": [], "spool": str(tmp_path / "spool")}]
    monkeypatch.setenv(spy.WATCH, json.dumps(told))
    monkeypatch.setattr(sys, "path", [str(HOOK.parent), "", str(tmp_path / "own")])
    hook()
    take("a")
    assert sys.modules["sitecustomize"].RAN is True
    (report,) = (tmp_path / "spool").iterdir()
    assert json.loads(report.read_text())["read"] == str(work / "a")


@pytest.mark.parametrize("told", [None, "", "{", "7", "[7]", '[{"roots": 1}]'])
def test_the_hook_with_nothing_to_report_to(
    told: str | None, hook: Callable[[], object], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the variable, or with rubbish in it, it watches nothing and does no harm."""
    if told is None:
        monkeypatch.delenv(spy.WATCH, raising=False)
    else:
        monkeypatch.setenv(spy.WATCH, told)
    monkeypatch.setattr(sys, "path", [str(HOOK.parent)])
    hook()
    assert getattr(sys.modules["_modelhub_spy"], "_spies", ()) == ()


@pytest.mark.parametrize("body", [None, "raise ImportError('x')"])
def test_the_hook_before_nothing(
    body: str | None, hook: Callable[[], object], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no sitecustomize comes next, or one that cannot be imported, the child goes on."""
    monkeypatch.delenv(spy.WATCH, raising=False)
    if body is not None:
        (tmp_path / "sitecustomize.py").write_text(body)
    monkeypatch.setattr(sys, "path", [str(HOOK.parent), str(tmp_path)])
    hook()
    assert (sys.modules["sitecustomize"] is None) == (body is None)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    """A root with a name that no folder has is an error of ours, which is a ValueError too."""
    for name in ("a\0b", "\ud800"):
        with pytest.raises(InvalidName, match="no folder can have"):
            Watcher([Path(name)], spool=tmp_path)


def test_a_library_that_is_not_there(
    outcome: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To ask for a library that is missing is answered as ever while a run is on."""
    monkeypatch.delitem(sys.modules, "polars", raising=False)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})

    def act() -> None:
        assert importlib.util.find_spec("polars") is None

    assert outcome(act) == {}
    assert spy._Finder().find_spec("polars", None) is None


def test_variables_of_a_childs_own(work: Path, tmp_path: Path) -> None:
    """A search path that a child is given is kept behind the hook's folder."""
    watcher = Watcher([work], spool=tmp_path / "spool")
    assert watcher.environment({"PYTHONPATH": "/mine"})["PYTHONPATH"] == f"{HOOK.parent}{os.pathsep}/mine"
    assert watcher.environment({})["PYTHONPATH"] == str(HOOK.parent)


# --- what counts ----------------------------------------------------------------------------------------------


def test_exclusions_hold_by_every_name(outcome: Callable[..., Outcome], tmp_path: Path) -> None:
    """A folder excluded through a link is excluded where it really is, and a file may be excluded as well."""
    real, link = tmp_path / "real", tmp_path / "link"
    (real / "outputs").mkdir(parents=True)
    link.symlink_to(real)
    for name in ("outputs/a", "registry.db", "registry.db.csv", "data"):
        (real / name).write_text("x")

    def act() -> None:
        os.chdir(link)  # the working folder is known by its real name from here on
        for name in ("outputs/a", "registry.db", "registry.db.csv", "data"):
            take(name)
            take(str(link / name))

    excluded = [link / "outputs", link / "registry.db"]
    assert outcome(act, roots=[link], exclude=excluded) == {"registry.db.csv": "as read", "data": "as read"}


def test_the_root_of_the_disk_as_working_folder(
    outcome: Callable[..., Outcome], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers often work in ``/``: names are relative to it, and the system's folders stay noise."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    put("a.csv", str(tmp_path / "temporary/b.csv"))

    def act() -> None:
        for name in ("a.csv", str(tmp_path / "temporary/b.csv"), "/etc/passwd"):
            take(name)

    assert outcome(act, roots=[Path("/")]) == {str(work / "a.csv").lstrip("/"): "as read"}
    assert outcome(act, roots=[Path("/"), work]) == {"a.csv": "as read"}


def test_keys_and_texts(outcome: Callable[..., Outcome], work: Path) -> None:
    """Keys and credentials are nobody's data; of tracked files neither are licences and lists of requirements."""
    secret = ["id_rsa", "credentials.json", "service-account-7.json", "server.key"]
    tracked = ["requirements-dev.txt", "LICENSE.txt", "README", "Dockerfile.gpu"]
    data = ["credentials.csv", "requirements.csv", "notes.txt"]
    put(*secret, *tracked, *data)
    known = frozenset(os.path.realpath(work / name) for name in [*tracked, *data])
    found = outcome(lambda: [take(name) for name in [*secret, *tracked, *data]], tracked=lambda: known)
    assert set(found) == set(data)


@pytest.mark.skipif(sys.platform == "darwin", reason="its disks refuse such names")
def test_names_that_are_no_text(outcome: Callable[..., Outcome]) -> None:
    """A name that is no UTF-8 can be recorded all the same, of this process and of a child."""
    Path(os.fsdecode(b"\xff.csv")).write_text("x")
    Path("Größe\n.csv").write_text("x")

    def act() -> None:
        os.close(os.open(b"\xff.csv", os.O_RDONLY))
        if (pid := os.fork()) == 0:
            take("Größe\n.csv")
            os.close(os.open(b"\xff.csv", os.O_RDONLY))
            os._exit(0)
        os.waitpid(pid, 0)

    found = outcome(act)
    assert found == {r"\xff.csv": "as read", "Größe\n.csv": "as read"}
    assert json.dumps(list(found)).encode()
    assert "".join(found).encode("utf-8")


def test_one_file_of_two_names_is_hashed_once(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hard links and a symbolic one are three names, one digest and one reading."""
    put("a")
    os.link("a", "b")
    os.symlink("a", "c")
    calls = []
    original = disk.hash_file
    monkeypatch.setattr(disk, "hash_file", lambda path: calls.append(path) or original(path))
    with Watcher([work], spool=tmp_path / "spool") as watcher:
        for name in "abc":
            take(name)
    digest = "sha256:" + hashlib.sha256(b"old,a").hexdigest()
    assert [(read.name, read.digest) for read in watcher.stop()] == [(name, digest) for name in "abc"]
    assert len(calls) == 1


def test_what_is_tracked_is_asked_once_and_at_the_end(work: Path, tmp_path: Path) -> None:
    """Git is not asked while the code works, and not at all when nothing was read."""
    put("a")
    asked: list[str] = []

    def tracked() -> frozenset[str]:
        asked.append("asked")
        return frozenset()

    with Watcher([work], spool=tmp_path / "1", tracked=tracked):
        pass
    assert asked == []
    with Watcher([work], spool=tmp_path / "2", tracked=tracked) as watcher:
        take("a")
        assert asked == []
    watcher.stop()
    assert asked == ["asked"]


# --- the environment ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [None, "/a", "/a::/b", ":/a", "/a:"])
def test_the_search_path_of_children_keeps_its_meaning(
    path: str | None, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our folder comes first, the rest stays as it was, empty parts too; afterwards all is as before."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path)
    with Watcher([work], spool=tmp_path / "spool") as watcher:
        first, _, rest = os.environ["PYTHONPATH"].partition(os.pathsep)
        assert Path(first, "sitecustomize.py").is_file()
        assert rest == (path or "")
        assert watcher.environment() == {name: os.environ[name] for name in ("PYTHONPATH", spy.WATCH)}
    assert os.environ.get("PYTHONPATH") == path


def test_what_the_run_does_to_the_search_path_stays(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search path that the code sets while it runs is its own, and is not put back."""
    monkeypatch.setenv("PYTHONPATH", "/a")
    with Watcher([work], spool=tmp_path / "spool"):
        os.environ["PYTHONPATH"] += os.pathsep + "/mine"
    assert os.environ["PYTHONPATH"] == "/a:/mine"


def test_what_a_child_imports_for_it(work: Path, tmp_path: Path) -> None:
    """The hook costs a Python child a few milliseconds: none of the large modules of the standard library."""
    watcher = Watcher([work], spool=tmp_path / "spool")
    code = "import sys; print(*sys.modules)"
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", spy.WATCH)}
    before, after = (
        subprocess.run(
            [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
        ).stdout.split()
        for env in (plain, plain | watcher.environment())
    )  # fmt: skip
    new = set(after) - set(before)
    assert "_modelhub_spy" in new
    assert not new & {
        "typing",
        "pathlib",
        "tempfile",
        "importlib.abc",
        "importlib.util",
        "hashlib",
        "urllib.parse",
    }


@pytest.mark.parametrize("first", [0, 1])
def test_watchers_end_in_any_order(first: int, work: Path, tmp_path: Path) -> None:
    """The one that ends leaves the other's variable alone, and the last one leaves none."""
    both = [Watcher([work], spool=tmp_path / name) for name in ("a", "b")]
    for watcher in both:
        watcher.start()
    both[first].stop()
    (left,) = json.loads(os.environ[spy.WATCH])
    assert left["spool"] == str(tmp_path / "ba"[first])
    both[1 - first].stop()
    assert spy.WATCH not in os.environ


@pytest.mark.parametrize("told", ["", "{", "7", "{}"])
def test_a_variable_that_says_nothing(
    told: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rubbish in the variable is replaced."""
    monkeypatch.setenv(spy.WATCH, told)
    with Watcher([work], spool=tmp_path / "spool"):
        assert len(json.loads(os.environ[spy.WATCH])) == 1


def test_the_spool_is_private_and_may_be_impossible(outcome: Callable[..., Outcome], tmp_path: Path) -> None:
    """Nobody else reads the names of files; where there can be no spool, the run's own reads are seen all the same."""
    put("a")
    assert outcome(lambda: take("a")) == {"a": "as read"}
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    (tmp_path / "file").write_text("x")
    with Watcher([Path.cwd()], spool=tmp_path / "file" / "spool") as watcher:
        take("a")
    assert [read.name for read in watcher.stop()] == ["a"]


@pytest.mark.parametrize("write", [True, False], ids=["written", "read"])
def test_the_bound_holds_for_both(
    write: bool, outcome: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written counts for itself; beyond the bound nothing breaks."""
    monkeypatch.setattr(spy, "MAX_FILES", 2)
    put("a", "b", "c")
    watcher = Watcher([Path.cwd()], spool=tmp_path / "spool")
    with watcher:
        for name in ("a", "b", "c"):
            put(name) if write else take(name)
    assert len(watcher.stop()) == (0 if write else 2)
    assert watcher.overflow == 1


def test_a_disk_that_is_full(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child whose reports cannot be written reads on."""
    put("a")
    watched = spy.Spy([str(work)], [], str(tmp_path))
    watched.forked()
    spy.begin(watched)
    try:
        original = os.write
        monkeypatch.setattr(os, "write", lambda *_: original(-1, b""))
        take("a")
    finally:
        monkeypatch.undo()
        spy.end(watched)
    assert [Path(path).name for path in watched.read] == ["a"]


def test_what_was_left_out_is_counted(
    outcome: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound nothing more is noted, of this process and of children, and that is known."""
    monkeypatch.setattr(spy, "MAX_FILES", 2)
    put("a", "b", "c", "d")
    watcher = Watcher([Path.cwd()], spool=tmp_path / "spool")
    with watcher:
        take("a")
        rows = [{"read": os.path.abspath(name), "state": [1, 2, 3], "at": 5} for name in "bcd"]
        lines = "".join(json.dumps(row) + "\n" for row in [*rows, {"overflow": True}])
        (tmp_path / "spool" / "1.jsonl").write_text(lines)
    assert [read.name for read in watcher.stop()] == ["a", "b"]
    assert watcher.overflow == 3


# --- readers and writers in C++ ------------------------------------------------------------------------------------


def tables() -> None:
    """Write the same small table in each format."""
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pandas")
    import pyarrow.csv
    import pyarrow.feather
    import pyarrow.parquet

    table = pa.table({"a": [1, 2]})
    Path("set").mkdir()
    for name in ("t.parquet", "set/1.parquet", "set/2.parquet"):
        pyarrow.parquet.write_table(table, name)
    pyarrow.feather.write_feather(table, "t.feather")
    pyarrow.csv.write_csv(table, "t.csv")


ARROW_READS = {
    "pd.read_parquet('t.parquet')": ["t.parquet"],
    "pd.read_parquet(Path('t.parquet'))": ["t.parquet"],
    "pd.read_parquet('set')": ["set/1.parquet", "set/2.parquet"],
    "pd.read_parquet('file://' + os.path.abspath('t.parquet'))": ["t.parquet"],
    "pd.read_feather('t.feather')": ["t.feather"],
    "pd.read_csv('t.csv', engine='pyarrow')": ["t.csv"],
    "pq.read_table('t.parquet')": ["t.parquet"],
    "pq.read_table(['set/1.parquet', 'set/2.parquet'])": ["set/1.parquet", "set/2.parquet"],
    "pq.ParquetFile('t.parquet').read()": ["t.parquet"],
    "pq.ParquetDataset('set').read()": ["set/1.parquet", "set/2.parquet"],
    "pq.read_metadata('t.parquet')": ["t.parquet"],
    "pc.read_csv('t.csv')": ["t.csv"],
    "pf.read_table('t.feather')": ["t.feather"],
    "ds.dataset('set').to_table()": ["set/1.parquet", "set/2.parquet"],
    "pa.memory_map('t.csv').read()": ["t.csv"],
    "pa.input_stream('t.csv').read()": ["t.csv"],
    "pq.read_table('t.parquet', filesystem=fs.LocalFileSystem())": ["t.parquet"],
    "pq.read_table('t.parquet', filesystem=fs.SubTreeFileSystem('set/..', fs.LocalFileSystem()))": [],
}


def names() -> dict[str, Any]:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.dataset as ds
    import pyarrow.feather as pf
    import pyarrow.parquet as pq
    from pyarrow import fs

    return {"pa": pa, "pc": pc, "ds": ds, "pf": pf, "pq": pq, "fs": fs, "pd": pd, "os": os, "Path": Path}


@pytest.mark.parametrize("call", ARROW_READS)
def test_arrow_reads(call: str, outcome: Callable[..., Outcome]) -> None:
    """Each reader of pyarrow, and pandas through it, shows the files that it reads; a file system of its own does not."""
    tables()
    assert outcome(lambda: eval(call, names())) == dict.fromkeys(ARROW_READS[call], "as read")


ARROW_WRITES = {
    "pq.write_table(t, 'x')": "pq.read_table('x')",
    "t.to_pandas().to_parquet('x')": "pd.read_parquet('x')",
    "pf.write_feather(t, 'x')": "pf.read_table('x')",
    "pc.write_csv(t, 'x')": "pc.read_csv('x')",
    "ds.write_dataset(t, 'y', format='parquet')": "ds.dataset('y').to_table()",
    "pq.write_to_dataset(t, root_path='y')": "pd.read_parquet('y')",
}


@pytest.mark.parametrize("write", ARROW_WRITES)
def test_what_arrow_writes_is_the_runs_own(write: str, outcome: Callable[..., Outcome]) -> None:
    """A table that the run has written in C++ is no input when it is read again."""
    tables()
    spaces = names()
    spaces["t"] = spaces["pa"].table({"a": [1]})

    def act() -> None:
        eval(write, spaces)
        eval(ARROW_WRITES[write], spaces)

    assert outcome(act) == {}


def test_arrow_overwrites_what_was_read(outcome: Callable[..., Outcome]) -> None:
    """A table that is read and then written over, alone or in its folder, is known as it was read."""
    tables()
    spaces = names()
    table = spaces["pa"].table({"a": [7]})

    def act() -> None:
        spaces["pq"].read_table("t.parquet")
        spaces["pq"].write_table(table, "t.parquet")
        spaces["pq"].read_table("set")
        spaces["ds"].write_dataset(
            table, "set", format="parquet", basename_template="{i}.parquet",
            existing_data_behavior="delete_matching",
        )  # fmt: skip

    found = outcome(act)
    assert found == dict.fromkeys(["t.parquet", "set/1.parquet", "set/2.parquet"], "as read")


@pytest.mark.parametrize(
    "name", ["pq.read_table", "pc.read_csv", "pa.memory_map", "ds.dataset", "pq.ParquetFile"]
)
def test_wrapped_readers_stay_what_they_are(name: str, outcome: Callable[..., Outcome]) -> None:
    """Signature and documentation stay, they can be pickled for a pool, and afterwards they are themselves."""
    tables()
    original = eval(name, names())
    signature = contextlib.suppress(ValueError)

    def act() -> None:
        wrapped = eval(name, names())
        assert pickle.loads(pickle.dumps(wrapped)) is wrapped
        assert wrapped.__doc__ == original.__doc__
        with signature:
            assert inspect.signature(wrapped) == inspect.signature(original)

    outcome(act)
    assert eval(name, names()) is original


def test_a_reader_that_was_taken_before_the_run(outcome: Callable[..., Outcome]) -> None:
    """``from pyarrow.parquet import read_table`` before the run: what it reads is seen."""
    tables()
    read_table = names()["pq"].read_table
    assert outcome(lambda: read_table("t.parquet")) == {"t.parquet": "as read"}


POLARS = {
    "pl.read_parquet('t.parquet')": ["t.parquet"],
    "pl.scan_parquet('set/*.parquet').collect()": ["set/1.parquet", "set/2.parquet"],
    "pl.scan_parquet('set/').collect()": ["set/1.parquet", "set/2.parquet"],
    "pl.read_csv(Path('t.csv'))": ["t.csv"],
    "pl.scan_csv(source='t.csv').collect()": ["t.csv"],
    "pl.read_ipc('t.feather')": ["t.feather"],
    "(pl.DataFrame({'a': [1]}).write_parquet('x'), pl.read_parquet('x'))": [],
    "(pl.DataFrame({'a': [1]}).write_csv(file='x'), pl.read_csv('x'))": [],
    "(pl.LazyFrame({'a': [1]}).sink_parquet('x'), pl.read_parquet('x'))": [],
    "pickle.loads(pickle.dumps(pl.read_parquet))": [],
}


@pytest.mark.parametrize("call", POLARS)
def test_polars(call: str, outcome: Callable[..., Outcome]) -> None:
    """Readers of polars show what they read, its writers what the run has made."""
    pl = pytest.importorskip("polars")
    tables()
    spaces = {"pl": pl, "Path": Path, "pickle": pickle}
    assert outcome(lambda: eval(call, spaces)) == dict.fromkeys(POLARS[call], "as read")


# --- wrappers, without these libraries --------------------------------------------------------------------------------


@pytest.fixture
def library(work: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a stand-in for polars that opens files where Python's audit hook does not see it."""
    (work / "lib").mkdir()
    (work / "lib" / "polars.py").write_text(
        "import os\n"
        "def read_csv(source, *, filesystem=None):\n    return source\n"
        "class DataFrame:\n"
        "    def write_csv(self, file):\n        assert os.system(f'mkdir -p d; echo x | tee d/new > {file}') == 0\n"
    )
    monkeypatch.syspath_prepend(str(work / "lib"))
    monkeypatch.delitem(sys.modules, "polars", raising=False)
    import polars

    yield polars
    sys.modules.pop("polars", None)


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("a.csv", ["a.csv"]), (b"a.csv", ["a.csv"]), (Path("a.csv"), ["a.csv"]), ("~/b.csv", ["b.csv"]),
        (["a.csv", "d/c.csv"], ["a.csv", "d/c.csv"]), ("*.csv", ["a.csv", "b.csv"]), ("d", ["d/c.csv"]),
        ("**/c.csv", ["d/c.csv"]), ("[d]", ["d/c.csv"]), ("none.csv", []), ("none*", []), (7, []), (None, []),
        ("s3://bucket/a.csv", []), ("file:a.csv", ["a.csv"]), ("a\0.csv", []),
    ],
)  # fmt: skip
def test_what_a_path_names(
    path: Any, seen: list[str], library: Any, outcome: Callable[..., Outcome], work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A path, several, a folder, a wildcard, a URL of a file, the home; what names no file here costs nothing."""
    monkeypatch.setenv("HOME", str(work))
    put("a.csv", "b.csv", "d/c.csv", "d/_c.csv")
    assert set(outcome(lambda: library.read_csv(path))) == set(seen)


def test_a_writer_of_another_language(library: Any, outcome: Callable[..., Outcome]) -> None:
    """A file and a folder that it writes are the run's; what lay in the folder before is data."""
    put("d/old", "x")
    os.utime("d/old", (1, 1))

    def act() -> None:
        take("x")
        library.DataFrame().write_csv("x")
        library.DataFrame().write_csv(file="y")
        for name in ("x", "y", "d/old"):
            take(name)
        spy.wrote("d", 10**18)
        take("d/new")

    assert outcome(act) == {"x": "as read", "d/old": "as read"}


def test_somebody_elses_wrapper_stays(library: Any, outcome: Callable[..., Outcome]) -> None:
    """Code that wraps a reader while the run is on keeps its wrapper; ours beneath is quiet afterwards."""

    def mine(source: object, inner: Any = None) -> object:
        return inner(source)

    def act() -> None:
        mine.__defaults__ = (library.read_csv,)
        library.read_csv = mine

    outcome(act)
    assert library.read_csv is mine
    assert library.read_csv("a") == "a"
