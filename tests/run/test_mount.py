"""A private /valohai: who needs it, what the program sees of it, and that nothing of it stays."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelhub_sdk.run import mount

possible = pytest.mark.skipif(not mount.is_possible(), reason="no private mounts for this user")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder for the namespace."""
    folder = tmp_path / "root of it"
    folder.mkdir()
    return folder


def traces(*folders: Path) -> tuple[list[str], bool]:
    """Return the mounts in *folders* or at /valohai that this process sees, and whether there is a /valohai.

    Other programs mount and make folders while a test runs: those are none of its business.
    """
    ours = [*map(str, folders), "/valohai"]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return [mount for mount in mounts if any(place in mount for place in ours)], os.path.lexists("/valohai")


# --- who needs it


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("ls /valohai", True), ("/valohai/repository/run", True), ("x >/valohai/outputs/log", True),
        ("cc -I/valohai/repository x.c", True), ("A=${X:-/valohai/inputs} x", True), ("x {a,/valohai/b}", True),
        ("x `cat /valohai/config/a`", True), ("x --a=/valohai/inputs", True), ("x '/valohai/inputs/a b'", True),
        ("ls $HOME/valohai/x", False), ("ls ${HOME}/valohai", False), ("ls ./valohai ~/valohai ../valohai", False),
        ("curl https://host/valohai/x //valohai/y", False), ("ls /valohai2 /valohai-x /valohai.yaml", False),
        ("/opt/valohai/bin/x", False), ("valohai/x", False), ("", False), ("\ud800 /valohai", True),
    ],
)  # fmt: skip
def test_commands_that_need_it(tmp_path: Path, command: str, needed: bool) -> None:
    """A path at or below /valohai in any place of a command, and no other path that ends in those letters."""
    assert mount.is_needed(command, tmp_path) is needed


@pytest.mark.parametrize("name", ["a.py", "a.sh", "a.R", "a.r", "a.jl", "deep/er/a.py", "a.ipynb"])
def test_programs_that_need_it(tmp_path: Path, name: str) -> None:
    """Programs of all languages are looked at, in folders too; a notebook's text is escaped."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b'\xff["open(\\"/valohai/inputs/x\\")"]')
    assert mount.is_needed("run", tmp_path)


def test_what_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden folders, packages, data, huge files, broken links, more files than one has patience for."""
    for name in (".venv/a.py", "venv/a.py", "node_modules/a.py", "a.csv", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("'/valohai/inputs'")
    (tmp_path / "huge.py").write_text("'/valohai/inputs'" + " " * mount._LARGEST)
    (tmp_path / "link.py").symlink_to("nowhere")
    assert not mount.is_needed("run", tmp_path)
    assert not mount.is_needed("run", tmp_path / "nowhere")
    (tmp_path / "late.py").write_text("'/valohai/inputs'")
    assert mount.is_needed("run", tmp_path)
    monkeypatch.setattr(mount, "_LOOKED_AT", 0)
    assert not mount.is_needed("run", tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with a name")
@pytest.mark.timeout(20)
def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    """A pipe that is called like a program is left alone: reading it would never end."""
    os.mkfifo(tmp_path / "a.py")
    assert not mount.is_needed("run", tmp_path)


# --- what the program sees


def run(
    script: str, folders: dict[str, Path], place: Path, *words: str, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run a script of the shell with these folders."""
    command = mount.wrapped(["sh", "-c", script, "sh", *words], folders, place)
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **options)  # type: ignore[call-overload,no-any-return]


@possible
def test_the_rest_of_the_machine_is_there(tmp_path: Path, place: Path) -> None:
    """The root folder is the real one with /valohai beside; links, devices and what is written there are real."""
    inside = tmp_path / "inside"
    inside.mkdir()
    before = set(os.listdir("/"))
    done = run(
        "ls -A /; readlink /proc/self/cwd; echo x > /dev/null; ls /valohai",
        {"inputs": inside},
        place,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *seen, cwd, valohai = done.stdout.splitlines()
    after = set(os.listdir("/"))  # another program may make or remove something meanwhile
    assert {name for name in before & after if not name.startswith("..")} | {"valohai"} <= set(seen)
    assert set(seen) <= before | after | {"valohai"}
    assert (cwd, valohai) == (os.path.realpath(tmp_path), "inputs")


@possible
def test_nothing_stays(tmp_path: Path, place: Path) -> None:
    """After it the machine has no mount more, no folder more, and what was written to a folder is there."""
    out = tmp_path / "out"
    out.mkdir()
    before = traces(tmp_path)
    done = run(
        'mkdir /valohai/own; echo "$1" > /valohai/outputs/f; rm -r /valohai/own',
        {"outputs": out},
        place,
        "hello",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert traces(tmp_path) == before
    assert (out / "f").read_text() == "hello\n"
    assert list(place.iterdir()) == []
    shutil.rmtree(place)


@possible
@pytest.mark.parametrize(
    "name", ["plain", "a b", "o'ne", 'tw"o', "$HOME", "back\\slash", "-n", "ünï", "new\nline", "*"]
)
def test_paths_of_any_letters(tmp_path: Path, name: str) -> None:
    """Folders, the working folder, the place itself and the program's words may hold blanks, quotes, anything."""
    folder, place, cwd = (tmp_path / kind / name for kind in ("folder", "place", "cwd"))
    for one in (folder, place, cwd):
        one.mkdir(parents=True)
    done = run('pwd; printf %s "$1" > /valohai/outputs/x', {"outputs": folder}, place, name, cwd=cwd)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{os.path.realpath(cwd)}\n")
    assert (folder / "x").read_text() == name


@possible
def test_the_working_folder_is_the_real_one(tmp_path: Path, place: Path) -> None:
    """A $PWD that is a lie, as of a parent that changed its folder, is not believed; relative folders are found."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").write_text("content")
    relative = Path(os.path.relpath(tmp_path / "data"))
    done = run(
        "pwd -P; cat /valohai/in/x", {"in": relative}, place, cwd=tmp_path, env={**os.environ, "PWD": "/usr"}
    )
    assert done.stdout == f"{os.path.realpath(tmp_path)}\ncontent"


@possible
@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_the_status_passes_through(place: Path, status: int) -> None:
    """The status is that of the program."""
    assert run(f"exit {status}", {}, place).returncode == status


@possible
def test_input_passes_through(place: Path) -> None:
    """What is typed reaches the program; variables do."""
    done = run('cat; echo "$A"', {}, place, input="typed\n", env={**os.environ, "A": "b c"})
    assert done.stdout == "typed\nb c\n"


@possible
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_the_program(tmp_path: Path, place: Path, number: signal.Signals) -> None:
    """The process that was started is the program: a signal ends it, and no other process stays behind."""
    command = mount.wrapped(["sh", "-c", "echo $$; exec sleep 60"], {"in": tmp_path}, place)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(number)
        assert process.wait(20) == -number
    assert list(place.iterdir()) == []


@possible
def test_a_program_that_is_not_there(place: Path) -> None:
    """As in any shell."""
    done = subprocess.run(
        mount.wrapped(["no-such-program"], {}, place), capture_output=True, text=True, check=False
    )
    assert done.returncode == 127
    assert "no-such-program" in done.stderr


@possible
def test_a_folder_that_is_not_there(tmp_path: Path, place: Path) -> None:
    """The program does not start when a folder of it cannot be had."""
    done = run("echo started", {"in": tmp_path / "nowhere"}, place)
    assert done.returncode != 0
    assert (done.stdout, "nowhere" in done.stderr) == ("", True)


@possible
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_folders_with_mounts_in_them(tmp_path: Path, place: Path) -> None:
    """What is mounted within a folder is seen in it too."""
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    inner = mount.wrapped(["cat", "/valohai/repository/data/x"], {"repository": folder}, place)
    script = f"mount -t tmpfs none {folder}/data && echo seen > {folder}/data/x && {shlex.join(inner)}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("seen\n", "")
    assert list((folder / "data").iterdir()) == []


# --- as somebody else

AS = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@functools.cache
def _as_nobody() -> bool:
    """Return whether tests may be another user, who can run this Python and have namespaces."""
    if shutil.which("setpriv") is None or os.geteuid() != 0:
        return False
    code = "from modelhub_sdk.run import mount; print(mount.is_possible())"
    done = subprocess.run(
        [*AS, sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/tmp"
    )
    return done.stdout == "True\n"


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can write to."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@pytest.mark.skipif(not _as_nobody(), reason="no other user with private mounts")
def test_another_user_has_it_too(shared: Path) -> None:
    """Without any rights: the program sees /valohai, and its files are that user's."""
    code = f"""
        import os, subprocess, sys
        from pathlib import Path
        from modelhub_sdk.run import mount
        os.umask(0)
        os.chdir({str(shared)!r})
        for name in ("out", "root"):
            Path(name).mkdir()
        command = mount.wrapped(["sh", "-c", "echo x > /valohai/out/x; pwd; exit 5"], {{"out": Path("out")}}, Path("root").absolute())
        sys.exit(subprocess.run(command).returncode)
    """
    done = subprocess.run(
        [*AS, sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (5, f"{os.path.realpath(shared)}\n", "")
    assert (shared / "out" / "x").stat().st_uid == 65534
    assert list((shared / "root").iterdir()) == []


# --- where it cannot be had


@pytest.fixture
def _afresh() -> Iterator[None]:
    """Whether it is possible is asked anew, and again afterwards."""
    mount.is_possible.cache_clear()
    yield
    mount.is_possible.cache_clear()


@pytest.mark.usefixtures("_afresh")
@pytest.mark.parametrize("script", [None, "#!/bin/sh\nexit 1\n", "#!/bin/sh\necho no\n", "no program"])
def test_where_it_is_not_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    """No unshare, one that is refused, one that does something else, one that cannot be run: it is not possible."""
    if script is not None:
        for name in ("unshare", "mount", "chroot"):
            (tmp_path / name).write_text(script)
            (tmp_path / name).chmod(0o755)
        (tmp_path / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path))
    start = time.monotonic()
    assert mount.is_possible() is False
    assert time.monotonic() - start < 10


def test_users_that_are_not_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They get a user namespace of their own, root needs none."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert mount.wrapped(["x"], {}, tmp_path)[:3] == ["unshare", "--user", "--map-root-user"]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert mount.wrapped(["x"], {}, tmp_path)[:2] == ["unshare", "--mount"]


def test_what_to_do_instead() -> None:
    """The explanation says what to read, and has a line for a container that can be pasted."""
    text = mount.explanation({"inputs": Path("/a b"), "outputs": Path("/c'd")})
    assert "VH_INPUTS_DIR" in text
    words = shlex.split(text.partition("container: ")[2].removesuffix("…"))
    assert words == ["docker", "run", "-v", "/a b:/valohai/inputs", "-v", "/c'd:/valohai/outputs"]
