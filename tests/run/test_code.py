"""What a run knows of its code, from real repositories, good, odd and hostile."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from modelhub_sdk.domain.lineage import Code
from modelhub_sdk.run import code

NO_MAIN = types.ModuleType("__main__")


@pytest.fixture(autouse=True)
def _author(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "A")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@example.com")
    for name in code.COMMIT_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def git(folder: Path, *words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True).stdout


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = (tmp_path / "repo").resolve()
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "train.py").write_text("print(1)\n")
    (folder / ".gitignore").write_text("ignored/\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def head(folder: Path) -> str:
    return git(folder, "rev-parse", "HEAD").decode().strip()


def look(folder: Path, **more: object) -> code.Captured:
    return code.capture(folder, **({"main": NO_MAIN, "argv": ["x"], "timeout": 20.0} | more))


def program(path: Path) -> types.ModuleType:
    main = types.ModuleType("__main__")
    main.__file__ = str(path)
    return main


def test_clean(repo: Path) -> None:
    """A clean checkout gives commit and branch; data and ignored code do not make it dirty."""
    (repo / "data.csv").write_text("1")
    (repo / "ignored").mkdir()
    (repo / "ignored" / "x.py").write_text("1")
    found = look(repo)
    assert found.root == repo
    assert (found.code.commit, found.code.branch) == (head(repo), "main")
    assert (found.code.dirty, found.code.diff) == (False, None)


def test_changed(repo: Path) -> None:
    """A change makes it dirty, with the digest of git's own diff, and goes with the change."""
    (repo / "train.py").write_text("print(2)\n")
    expected = hashlib.sha256(git(repo, "diff", "HEAD", "--binary", "--full-index")).hexdigest()
    found = look(repo).code
    assert (found.dirty, found.diff) == (True, f"sha256:{expected}")
    git(repo, "add", ".")
    assert look(repo).code == found
    (repo / "train.py").write_text("print(1)\n")
    assert look(repo).code.dirty is False


def test_a_users_settings_do_not_change_the_digest(repo: Path) -> None:
    """How a user likes to see diffs has no part in their digest."""
    (repo / "train.py").write_text("print(2)\n")
    before = look(repo).code.diff
    for key, value in {
        "diff.noprefix": "true", "diff.context": "9", "color.ui": "always", "core.abbrev": "12", "diff.algorithm": "patience",
        "diff.mnemonicPrefix": "true", "core.pager": "false", "diff.wsErrorHighlight": "all",
    }.items():  # fmt: skip
        git(repo, "config", key, value)
    assert look(repo).code.diff == before


def test_untracked_code(repo: Path) -> None:
    """Untracked code counts, by name and content, whatever its name is."""
    odd = repo / "new\nline.py"
    odd.write_text("a")
    first = look(repo).code
    odd.write_text("b")
    second = look(repo).code
    odd.rename(repo / "other.py")
    third = look(repo).code
    (repo / "other.py").unlink()
    (repo / "link.py").symlink_to("nowhere")
    fourth = look(repo).code
    assert all(one.dirty and one.diff for one in (first, second, third, fourth))
    assert len({one.diff for one in (first, second, third, fourth)}) == 4


def test_untracked_that_cannot_be_read(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe with the name of code is not waited for, and too much code is not read."""
    (repo / "big.py").write_text("12345")
    monkeypatch.setattr(code, "_MAX_UNTRACKED", 4)
    found = look(repo).code
    assert (found.dirty, found.diff) == (True, None)
    (repo / "big.py").unlink()
    os.mkfifo(repo / "pipe.py")
    assert look(repo).code.diff is None


def test_no_commit_yet(tmp_path: Path) -> None:
    """A repository without commits has a branch, and changes against nothing."""
    git(tmp_path, "init", "-q", "-b", "trunk")
    found = look(tmp_path).code
    assert (found.commit, found.branch, found.dirty) == (None, "trunk", False)
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", ".")
    found = look(tmp_path).code
    assert (found.commit, found.dirty) == (None, True)
    assert found.diff


def test_detached(repo: Path) -> None:
    """A detached head has a commit and no branch."""
    git(repo, "checkout", "-q", "--detach")
    assert (look(repo).code.commit, look(repo).code.branch) == (head(repo), None)


def test_worktree_and_submodule(repo: Path, tmp_path: Path) -> None:
    """A worktree and a submodule are repositories of their own; changes inside a submodule are its own."""
    git(repo, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    found = look(tmp_path / "side")
    assert (found.root, found.code.branch) == ((tmp_path / "side").resolve(), "side")
    git(repo, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(repo), "sub")
    git(repo, "commit", "-qm", "sub")
    (repo / "sub" / "train.py").write_text("other")
    assert look(repo).code.dirty is False
    inner = look(repo / "sub")
    assert (inner.root, inner.code.dirty) == (repo / "sub", True)


def test_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a repository the commit is what was said, or what the CI system says."""
    assert look(tmp_path).code == Code()
    assert look(tmp_path).root is None
    monkeypatch.setenv("GITHUB_SHA", " abc123 ")
    assert look(tmp_path).code.commit == "abc123"
    monkeypatch.setenv("MODELHUB_COMMIT", "def456")
    assert look(tmp_path).code.commit == "def456"
    assert look(tmp_path, commit="~0a").code.commit == "~0a"
    assert look(tmp_path, commit="not a commit").code.commit == "def456"
    assert look(tmp_path / "missing", commit="a1").code.commit == "a1"


def test_the_checkout_wins(repo: Path) -> None:
    """What git says goes before what was said."""
    assert look(repo, commit="abc").code.commit == head(repo)


@pytest.mark.parametrize("packed", [False, True])
def test_no_git(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    """Without the program the commit is read from the files; whether it is dirty is unknown."""
    commit = head(repo)
    if packed:
        git(repo, "pack-refs", "--all")
    git(repo, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    monkeypatch.setenv("PATH", str(tmp_path))
    for folder, branch in ((repo, "main"), (tmp_path / "side", "side")):
        found = look(folder).code
        assert (found.commit, found.branch, found.dirty) == (commit, branch, None)
    assert code.tracked_files(repo) == frozenset()


def test_somebody_elses(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where git refuses because of the owner, the rest is unknown."""
    commit = head(repo)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    found = look(repo).code
    assert (found.commit, found.dirty, found.repository) == (commit, None, None)


@pytest.mark.parametrize("damage", ["HEAD", "objects", "index", "config", "file"])
def test_damaged(repo: Path, damage: str) -> None:
    """A damaged repository is unknown, and a good one around it is not taken for it."""
    inner = repo / "inner"
    inner.mkdir()
    git(inner, "init", "-q", "-b", "inside")
    (inner / "a.py").write_text("1")
    git(inner, "add", ".")
    git(inner, "commit", "-qm", "x")
    place = inner / ".git"
    if damage == "file":
        place.rename(inner / "away")
        place.write_bytes(b"\xff\0rubbish")
    elif damage == "objects":
        for path in (place / "objects").glob("??/*"):
            path.unlink()
    else:
        (place / damage).write_bytes(b"\xff\0rubbish")
    (inner / "a.py").write_text("2")
    found = look(inner)
    assert found.code.commit != head(repo)
    assert found.code.branch != "main"
    assert found.code.diff is None
    assert found.root == inner


def test_other_repositories_in_the_environment(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables that a git hook leaves behind do not lead elsewhere."""
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    commit = head(repo)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / "index"))
    found = look(repo).code
    assert (found.commit, found.dirty) == (commit, False)


def test_remote(repo: Path) -> None:
    """The branch's own remote is named, else origin, else the only one, never with its password."""
    assert look(repo).code.repository is None
    git(repo, "remote", "add", "only", "https://u:p@host/only.git")
    assert look(repo).code.repository == "https://host/only.git"
    git(repo, "remote", "add", "origin", "git@host:origin.git")
    assert look(repo).code.repository == "git@host:origin.git"
    git(repo, "config", "branch.main.remote", "only")
    assert look(repo).code.repository == "https://host/only.git"


def hostile(folder: Path, marker: Path) -> Path:
    """Have the repository's own settings run a program wherever git lets them."""
    tool = folder.parent / "tool.sh"
    tool.write_text(f"#!/bin/sh\necho \"$0 $*\" >> '{marker}'\ncat\n")
    tool.chmod(0o755)
    for key in (
        "core.fsmonitor", "diff.external", "diff.evil.command", "diff.evil.textconv", "filter.evil.clean",
        "filter.evil.process", "core.pager", "core.sshCommand", "core.editor", "pager.diff", "core.gitProxy",
    ):  # fmt: skip
        git(folder, "config", key, str(tool))
    git(folder, "config", "filter.evil.required", "true")
    hooks = folder / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-index-change", "reference-transaction", "fsmonitor-watchman"):
        (hooks / name).write_text(tool.read_text())
        (hooks / name).chmod(0o755)
    (folder / ".git" / "info").mkdir(exist_ok=True)
    (folder / ".git" / "info" / "attributes").write_text("*.py diff=evil filter=evil\n")
    (folder / "train.py").write_text("print(2)\n")
    return tool


def test_a_hostile_repository_runs_nothing(repo: Path, tmp_path: Path) -> None:
    """None of the programs that a repository can configure is run, and the answer is still right."""
    (repo / "train.py").write_text("print(2)\n")
    expected = look(repo).code.diff
    marker = tmp_path / "marker"
    hostile(repo, marker)
    found = look(repo).code
    assert code.tracked_files(repo)
    assert not marker.exists()
    assert (found.dirty, found.diff) == (True, expected)
    subprocess.run(["git", "diff", "HEAD"], cwd=repo, capture_output=True, check=False)
    assert marker.exists()  # the trap works


def test_a_filter_that_cannot_be_switched_off(repo: Path, tmp_path: Path) -> None:
    """A filter whose name hides it from git's own options leaves the question open."""
    marker = tmp_path / "marker"
    tool = hostile(repo, marker)
    git(repo, "config", "filter.a=b.clean", str(tool))
    found = look(repo).code
    assert (found.commit, found.dirty) == (head(repo), None)
    assert not marker.exists()


def test_the_users_own_filters_run(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters of the user's configuration run, also where the repository names another program for them."""
    mine = tmp_path / "gitconfig"
    mine.write_text('[filter "up"]\n\tclean = tr a-z A-Z\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(mine))
    (repo / ".gitattributes").write_text("*.txt filter=up\n")
    (repo / "a.txt").write_text("abc")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "x")
    git(repo, "config", "filter.up.clean", "tr a-z x")
    os.utime(repo / "a.txt", (1, 1))
    assert look(repo).code.dirty is False


def test_missing_objects_are_not_fetched(repo: Path, tmp_path: Path) -> None:
    """A partial clone does not call its remote."""
    marker = tmp_path / "marker"
    tool = hostile(repo, marker)
    marker.unlink(missing_ok=True)
    for key, value in {
        "extensions.partialClone": "origin", "core.repositoryFormatVersion": "1", "remote.origin.promisor": "true",
        "remote.origin.url": str(tmp_path), "remote.origin.uploadpack": str(tool),
    }.items():  # fmt: skip
        git(repo, "config", key, value)
    blob = git(repo, "rev-parse", "HEAD:train.py").decode().strip()
    (repo / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    marker.unlink(missing_ok=True)
    assert look(repo).code.diff is None
    assert not marker.exists()


def slow_git(folder: Path, when: str) -> None:
    real = subprocess.run(["which", "git"], capture_output=True, check=True, text=True).stdout.strip()
    folder.mkdir()
    script = f'#!/bin/sh\ncase "$*" in {when}) sleep 98 & echo $! > \'{folder}/pid\'; wait;; esac\nexec {real} "$@"\n'
    (folder / "git").write_text(script)
    (folder / "git").chmod(0o755)


@pytest.mark.parametrize(("when", "known"), [("*", False), ("*ls-files*", True), ("*' diff '*", True)])
def test_slow_git(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, known: bool
) -> None:
    """A git that hangs is left in time with its children killed; what it said before is kept."""
    git(repo, "remote", "add", "origin", "https://host/x")
    slow_git(tmp_path / "bin", when)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    begin = time.monotonic()
    found = look(repo, timeout=1.0).code
    assert time.monotonic() - begin < 3
    assert (found.commit, found.branch, found.dirty) == (head_of(repo), "main", None)
    assert found.repository == ("https://host/x" if known else None)
    pid = int((tmp_path / "bin" / "pid").read_text())
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.02)
    else:
        pytest.fail("the child lives on")


def head_of(folder: Path) -> str:
    return (folder / ".git" / "refs" / "heads" / "main").read_text().strip()


def test_a_child_that_keeps_the_pipe(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child in a session of its own that holds on to git's output does not hold us up."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text("#!/bin/sh\nsetsid sleep 4 &\necho x\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    begin = time.monotonic()
    assert look(repo, timeout=0.5).code.dirty is None
    assert time.monotonic() - begin < 2


def test_no_time(repo: Path) -> None:
    """Without any time nothing is asked."""
    assert look(repo, timeout=0).code.dirty is None
    assert look(repo, timeout=0).code.commit == head(repo)


def test_tracked_files(repo: Path) -> None:
    """Tracked files are named by their real paths, odd names included."""
    (repo / "a\nb.py").write_text("")
    (repo / "untracked.py").write_text("")
    git(repo, "add", "a\nb.py")
    assert code.tracked_files(repo) == {str(repo / name) for name in ("train.py", ".gitignore", "a\nb.py")}
    assert code.tracked_files(repo / "missing") == frozenset()
    assert code.tracked_files(None) == frozenset()


def test_entry(repo: Path, tmp_path: Path) -> None:
    """A script is named relative to its repository, which it leads to, else by its bare name."""
    digest = "sha256:" + hashlib.sha256(b"print(1)\n").hexdigest()
    found = look(tmp_path, main=program(repo / "train.py"))
    assert (found.root, found.code.entry, found.code.script) == (repo, "train.py", digest)
    outside = tmp_path / "alone.py"
    outside.write_text("print(1)\n")
    found = look(repo, main=program(outside))
    assert (found.root, found.code.entry, found.code.script) == (repo, "alone.py", digest)
    tool = repo / "bin" / "tool"
    tool.parent.mkdir()
    tool.write_text("")
    assert look(tmp_path, main=program(tool)).root is None


@pytest.mark.parametrize("file", ["<stdin>", "/nowhere/x.py", "a\0b", 3, None])
def test_no_entry(tmp_path: Path, file: object) -> None:
    """Without a script there is no entry."""
    main = types.ModuleType("__main__")
    main.__file__ = file
    assert look(tmp_path, main=main).code.entry is None


def test_a_script_that_cannot_be_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that is too large for one is named without a digest."""
    (tmp_path / "x.py").write_text("12345")
    monkeypatch.setattr(code, "_MAX_SCRIPT", 3)
    found = look(tmp_path, main=program(tmp_path / "x.py")).code
    assert (found.entry, found.script) == ("x.py", None)


PROGRAM = "from modelhub_sdk.run import code\nc = code.capture()\nprint(c.code.entry, c.code.script, c.command, sep='|')\n"


def run(folder: Path, *words: str, stdin: str = "") -> list[str]:
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, check=True, capture_output=True, text=True, input=stdin
    )
    return done.stdout.strip().split("|")


def test_real_programs(repo: Path) -> None:
    """Scripts, modules, packages, -c and standard input say what they are, in processes of their own."""
    (repo / "pkg").mkdir()
    for name in ("pkg/__init__.py", "pkg/__main__.py", "pkg/mod.py", "main.py"):
        (repo / name).write_text(PROGRAM if name != "pkg/__init__.py" else "")
    digest = "sha256:" + hashlib.sha256(PROGRAM.encode()).hexdigest()
    entry, script, command = run(repo, "main.py", "--token", "abc")
    assert (entry, script) == ("main.py", digest)
    assert command.endswith("main.py --token '***'")
    assert run(repo, "-m", "pkg.mod")[:2] == ["-m pkg.mod", digest]
    assert run(repo, "-m", "pkg")[:2] == ["-m pkg", digest]
    assert run(repo, "-c", PROGRAM)[:2] == ["None", "None"]
    assert run(repo, stdin=PROGRAM)[:2] == ["None", "None"]


def test_the_working_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder that was removed is no reason to fail."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert code.capture(main=NO_MAIN).root is None


def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook the executed cells are the code; a shell in a terminal is no notebook."""
    assert code.notebook_cells() is None
    assert code.notebook_digest() is None
    shell = types.SimpleNamespace(kernel=None, user_ns={"In": ["", "a = 1", "b = 2"]})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert code.notebook_cells() is None
    shell.kernel = object()
    assert code.notebook_cells() == "# In[1]\na = 1\n# In[2]\nb = 2\n"
    assert code.notebook_digest() == "sha256:" + hashlib.sha256(code.notebook_cells().encode()).hexdigest()
    found = look(tmp_path).code
    assert (found.entry, found.script) == ("notebook", None)
    shell.user_ns = {}
    assert code.notebook_cells() is None
