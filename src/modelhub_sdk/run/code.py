"""The code of a run: what git knows of it, its entry script, its command line.

Git is asked by subprocess, all questions together within one limit of time; what was answered until
then is kept. A repository is not trusted: nothing that it configures is run (file system monitors,
hooks, external diffs, text conversions, filters of its own, fetching of missing objects). Filters of
the user's or the system's configuration, such as git-lfs, do run.

What the words mean:

- *the repository* is the one that the entry script lies in, unless that is an installed tool
  (``…/bin/torchrun``, ``site-packages``); else the one around the working folder.
- *dirty*: the tracked files on disk are not those of the commit, or there are untracked files of
  code that are not ignored. What is staged and then undone is clean, for it did not run. A submodule
  counts by the commit that it stands at, not by what was changed inside.
- *diff*: the digest of ``git diff HEAD --binary --full-index``, and after it of the names and contents of the
  untracked code. Without such files it is plainly the digest of git's output.
- Where git is missing, refuses (somebody else's repository) or is too late, the commit and the branch are
  read from ``.git`` itself, and `dirty` is unknown.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import selectors
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from attrs import frozen

from modelhub_sdk.blobs import disk
from modelhub_sdk.domain.lineage import Code
from modelhub_sdk.run import masking

__all__ = ["Captured", "capture", "notebook_cells", "notebook_digest", "tracked_files"]

NOTEBOOK: Final = "notebook"
"""The entry of code that runs in a notebook."""

COMMIT_VARIABLES: Final = (
    "MODELHUB_COMMIT",
    "GITHUB_SHA",
    "CI_COMMIT_SHA",
    "BUILD_SOURCEVERSION",
    "GIT_COMMIT",
    "BITBUCKET_COMMIT",
    "CIRCLE_SHA1",
)
"""Where the commit is looked for when there is no checkout that says it."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Program text only: untracked configuration and JSON are more often a run's output than its code.
_CODE: Final = _set(
    "bash c cc cpp cu cuh cxx go h hpp ipynb java jl js kt lua m  pxd py pyi pyx r R rs scala sh sql ts"
)
_MAX_UNTRACKED: Final = 64 << 20
_MAX_SCRIPT: Final = 64 << 20
_PIECE: Final = 1 << 16

_COMMIT: Final = re.compile(r"~?[0-9A-Za-z][0-9A-Za-z._/@:+-]{0,199}")
_HEX: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

# Variables that would turn git to another repository, or have it run or write something.
_DROPPED: Final = _set(
    "GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_COMMON_DIR GIT_OBJECT_DIRECTORY GIT_NAMESPACE GIT_PREFIX "
    "GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_EXTERNAL_DIFF GIT_DIFF_OPTS GIT_LITERAL_PATHSPECS "
    "GIT_GLOB_PATHSPECS GIT_NOGLOB_PATHSPECS GIT_ICASE_PATHSPECS GIT_ATTR_SOURCE"
)
_SETTINGS: Final = (
    "core.fsmonitor=false",
    f"core.hooksPath={os.devnull}",
    "core.quotePath=true",
    "diff.external=",
    "diff.relative=false",
    "diff.suppressBlankEmpty=false",
    "diff.interHunkContext=0",
    "submodule.recurse=false",
)
_DIFF: Final = (
    *("diff", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--full-index"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--diff-algorithm=myers", "--indent-heuristic", "-U3"),
    *(f"-O{os.devnull}", "--submodule=short", "--ignore-submodules=dirty"),
)


@frozen
class Captured:
    """What was found out about the code of a run.

    `command` is the command line, without secrets. `root` is the folder of the repository, with links
    resolved, None without one. In a notebook ``code.entry`` is ``notebook``, and ``code.script`` is
    for the caller to add at the end: `notebook_digest`.
    """

    code: Code
    command: str
    root: Path | None = None


def capture(
    cwd: Path | None = None,
    *,
    argv: Sequence[str] | None = None,
    commit: str | None = None,
    timeout: float = 2.0,
    main: ModuleType | None = None,
) -> Captured:
    """Return what can be known of the running code within *timeout* seconds; never raises.

    Args:
        cwd: the folder to begin at, the working folder by default.
        argv: the command line, the process's own by default.
        commit: the commit, where no checkout says it; so do the variables of `COMMIT_VARIABLES`.
        timeout: seconds for all questions to git together.
        main: the module that the program began with, ``__main__`` by default.
    """
    deadline = time.monotonic() + timeout
    main = main if main is not None else sys.modules.get("__main__")
    folder = cwd if cwd is not None else _cwd()
    module, script = _entry(main)
    found = _Checkout()
    for place in _places(folder, script):
        found = _checkout(place, deadline)
        if found.root is not None:
            break
    entry = NOTEBOOK if _shell() is not None else module or _relative(script, found.root)
    code = Code(
        commit=found.commit or _stated_commit(commit),
        branch=found.branch,
        repository=found.repository,
        dirty=found.dirty,
        diff=found.diff,
        entry=entry,
        script=None if entry is None or entry == NOTEBOOK or script is None else _digest_of_file(script),
    )
    return Captured(code, masking.command(argv if argv is not None else sys.orig_argv), found.root)


def tracked_files(root: Path | None, timeout: float = 2.0) -> frozenset[str]:
    """Return the real paths of the files that git tracks under *root*; empty where that cannot be known."""
    if root is None:
        return frozenset()
    git = _Git(root, time.monotonic() + timeout)
    status, out = git.ask("ls-files", "-z")
    if status != 0:
        return frozenset()
    base = os.path.realpath(root)
    return frozenset(
        os.path.realpath(os.path.join(base, os.fsdecode(name))) for name in out.split(b"\0") if name
    )


def notebook_cells() -> str | None:
    """Return the cells that were executed in this notebook, in their order; None outside of one."""
    shell = _shell()
    if shell is None:
        return None
    try:
        cells = [str(cell) for cell in shell.user_ns["In"]]
    except Exception:  # noqa: BLE001  # users may bind In to anything
        return None
    return "".join(f"# In[{number}]\n{cell}\n" for number, cell in enumerate(cells) if cell)


def notebook_digest() -> str | None:
    """Return ``sha256:<hex>`` of `notebook_cells`, None outside of a notebook."""
    cells = notebook_cells()
    if cells is None:
        return None
    return "sha256:" + hashlib.sha256(cells.encode("utf-8", "backslashreplace")).hexdigest()


# --- The entry ------------------------------------------------------------------------------------


def _cwd() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # removed under us
        return None


def _shell() -> Any:
    """Return IPython's shell when it serves a notebook; a shell in a terminal is none."""
    try:
        shell = sys.modules["IPython"].get_ipython()
        return shell if getattr(shell, "kernel", None) is not None else None
    except Exception:  # noqa: BLE001  # absent, half imported, or something else of that name
        return None


def _entry(main: ModuleType | None) -> tuple[str | None, Path | None]:
    """Return ``-m module`` where the program began that way, and the file that it began with."""
    module = None
    spec = getattr(main, "__spec__", None)
    name = getattr(spec, "name", None)
    if isinstance(name, str) and name not in (
        "__main__",
        "__mp_main__",
    ):  # a folder or a zip file is a script
        module = "-m " + name.removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    if not isinstance(file, str) or file.startswith("<"):
        return module, None
    try:
        path = Path(file).absolute()
        return module, path if path.is_file() else path.parent if path.parent.is_file() else None
    except (OSError, ValueError):
        return module, None


def _places(folder: Path | None, script: Path | None) -> Iterable[Path]:
    """Return the folders to look for a repository from, the best first."""
    if script is not None:
        parent = Path(os.path.realpath(script)).parent
        tool = parent.name in ("bin", "Scripts") or {"site-packages", "dist-packages"} & set(parent.parts)
        if not tool:
            yield parent
    if folder is not None:
        yield folder


def _relative(script: Path | None, root: Path | None) -> str | None:
    if script is None:
        return None
    if root is not None:
        # A script may be a link into the repository, or out of it.
        for path in (script, Path(os.path.realpath(script))):
            if path.is_relative_to(root):
                return _printable(path.relative_to(root).as_posix())
    return _printable(script.name)


def _digest_of_file(path: Path) -> str | None:
    sha = hashlib.sha256()
    try:
        fd, info = disk.open_regular(path, follow=True)  # python <(...) runs a pipe
        with os.fdopen(fd, "rb") as file:
            if info.st_size > _MAX_SCRIPT:
                return None
            while piece := file.read(_PIECE):
                sha.update(piece)
    except (OSError, ValueError):
        return None
    return "sha256:" + sha.hexdigest()


def _stated_commit(commit: str | None) -> str | None:
    for stated in (commit, *(os.environ.get(name) for name in COMMIT_VARIABLES)):
        if stated and _COMMIT.fullmatch(stated.strip()):
            return stated.strip()
    return None


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


# --- The checkout ---------------------------------------------------------------------------------


@frozen
class _Checkout:
    root: Path | None = None
    commit: str | None = None
    branch: str | None = None
    repository: str | None = None
    dirty: bool | None = None
    diff: str | None = None


def _checkout(place: Path, deadline: float) -> _Checkout:
    try:
        return _ask(place, deadline)
    except (OSError, ValueError):  # a folder that is gone, names that are no paths
        return _Checkout()


def _ask(place: Path, deadline: float) -> _Checkout:
    nearest = _repository_around(place)
    if nearest is None:
        return _Checkout()
    raw_commit, raw_branch = _read_head(nearest)
    git = _Git(place, deadline)
    status, out = git.ask("rev-parse", "--show-toplevel", "HEAD", "--symbolic-full-name", "HEAD")
    lines = out.decode("utf-8", "surrogateescape").splitlines()
    top = Path(lines[0]) if lines else None
    if top is None or Path(os.path.realpath(top)) != nearest:
        # No answer, a refusal, or the answer of a repository further up: the nearest one is damaged.
        return _Checkout(nearest, raw_commit, raw_branch)
    born = status == 0 and len(lines) == 3 and _HEX.fullmatch(lines[1])
    commit = lines[1] if born else raw_commit if status != 0 and raw_commit else None
    branch = _branch(lines[2]) if born else raw_branch
    git = _Git(nearest, deadline)
    settings = _settings(git)
    if settings is None:
        return _Checkout(nearest, commit, branch)
    repository = _remote(settings, branch)
    found = _Checkout(nearest, commit, branch, repository)
    distrusted = _without_own_filters(settings)
    if distrusted is None:
        return found
    git.settings += distrusted
    dirty, diff = _changes(git, bool(born))
    return _Checkout(nearest, commit, branch, repository, dirty, diff)


def _repository_around(place: Path) -> Path | None:
    """Return the nearest folder with a ``.git``, so that no process is started where there is none."""
    real = Path(os.path.realpath(place))
    return next((folder for folder in (real, *real.parents) if os.path.lexists(folder / ".git")), None)


def _read_head(root: Path) -> tuple[str | None, str | None]:
    """Return commit and branch as the files in ``.git`` say; whatever is unusual there is unknown."""
    git = root / ".git"
    if git.is_file():  # a worktree or a submodule
        git = root / _head_line(git).removeprefix("gitdir: ")
    head = _head_line(git / "HEAD")
    if not head.startswith("ref: "):
        return (head if _HEX.fullmatch(head) else None), None
    ref = head.removeprefix("ref: ")
    if not re.fullmatch(r"refs/[^\0\\]+", ref) or ".." in ref:
        return None, None
    common = git / (_head_line(git / "commondir") or ".")
    commit = _head_line(git / ref) or _head_line(common / ref) or _packed(common, ref)
    return (commit if _HEX.fullmatch(commit) else None), _branch(ref)


def _head_line(path: Path) -> str:
    try:
        if not path.is_file():
            return ""
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.readline(4096).rstrip("\n")
    except OSError:
        return ""


def _packed(common: Path, ref: str) -> str:
    try:
        if not (common / "packed-refs").is_file():
            return ""
        with open(common / "packed-refs", encoding="utf-8", errors="surrogateescape") as file:
            return next((line[:-1].partition(" ")[0] for line in file if line[:-1].endswith(" " + ref)), "")
    except OSError:
        return ""


def _branch(ref: str) -> str | None:
    return _printable(ref.removeprefix("refs/heads/")) if ref.startswith("refs/heads/") else None


def _settings(git: _Git) -> list[tuple[str, str, str]] | None:
    """Return scope, key and value of what matters of git's settings; None where git cannot say."""
    pattern = r"^(remote\..*\.url|branch\..*\.remote|filter\..*)$"
    status, out = git.ask("config", "-z", "--show-scope", "--get-regexp", pattern)
    if status not in (0, 1):  # 1: there are none
        return None
    pieces = out.decode("utf-8", "surrogateescape").split("\0")
    return [
        (scope, *_key_and_value(entry))
        for scope, entry in zip(pieces[::2], pieces[1::2], strict=False)
        if entry
    ]


def _key_and_value(entry: str) -> tuple[str, str]:
    key, _, value = entry.partition("\n")
    return key, value


def _remote(settings: list[tuple[str, str, str]], branch: str | None) -> str | None:
    """Return the URL of the branch's own remote, else of origin, else of the only one."""
    values = {key: value for _, key, value in reversed(settings)}  # the first URL is the one to fetch from
    own = values.get(f"branch.{branch}.remote", "origin")
    urls = [value for key, value in values.items() if key.startswith("remote.")]
    url = values.get(f"remote.{own}.url") or values.get("remote.origin.url")
    url = url or (urls[0] if len(urls) == 1 else None)
    return masking.url(_printable(url)) if url else None


def _without_own_filters(settings: list[tuple[str, str, str]]) -> tuple[str, ...] | None:
    """Return settings that put the user's filters, or none, in the place of the repository's own.

    None when that cannot be written: git takes what follows the first ``=`` for the value.
    """
    trusted: dict[str, str] = {}
    own = set()
    for scope, key, value in settings:
        if not key.startswith("filter."):
            continue
        if scope in ("system", "global", "command"):
            trusted[key] = value
        else:
            own.add(key)
    if any("=" in key for key in own):
        return None
    return tuple(f"{key}={trusted.get(key, '')}" for key in sorted(own))


def _changes(git: _Git, born: bool) -> tuple[bool | None, str | None]:
    """Return whether the files differ from the commit, and the digest of how."""
    base = "HEAD"
    if not born:
        status, out = git.ask("hash-object", "-t", "tree", os.devnull)
        base = out.decode("ascii", "replace").strip()
        if status != 0:
            return None, None
    sha = hashlib.sha256()
    size = 0

    def take(piece: bytes) -> None:
        nonlocal size
        size += len(piece)
        sha.update(piece)

    status = git.stream(take, *_DIFF, base, "--")
    if status != 0:
        return (True if size else None), None
    others = ("ls-files", "--others", "--exclude-standard", "-z", "--")
    status, out = git.ask(*others, *(f"*.{suffix}" for suffix in sorted(_CODE)))
    if status != 0:
        return (True if size else None), None
    untracked = sorted(name for name in out.split(b"\0") if name)
    if not size and not untracked:
        return False, None
    known = _add_untracked(sha, os.fsencode(git.folder), untracked, git.deadline)
    return True, "sha256:" + sha.hexdigest() if known else None


def _add_untracked(sha: Any, root: bytes, names: list[bytes], deadline: float) -> bool:
    """Add names and contents to *sha*; return False when they are too much, too late or gone."""
    left = _MAX_UNTRACKED
    for name in names:
        path = os.path.join(root, name)
        try:
            if os.path.islink(path):
                content = os.readlink(path)
            else:
                # Not through links, and not waiting for a writer: it may have become a pipe.
                flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
                with os.fdopen(os.open(path, flags), "rb") as file:
                    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                        return False
                    content = file.read(left + 1)
        except OSError:
            return False
        left -= len(content)
        if left < 0 or time.monotonic() > deadline:
            return False
        sha.update(b"untracked\0" + name + b"\0" + hashlib.sha256(content).digest())
    return True


# --- Git ------------------------------------------------------------------------------------------


class _Git:
    """Questions to git about *folder*, all of them answered before *deadline* or not at all."""

    def __init__(self, folder: Path, deadline: float) -> None:
        self.folder = folder
        self.deadline = deadline
        self.settings: tuple[str, ...] = _SETTINGS

    def ask(self, *question: str) -> tuple[int | None, bytes]:
        """Return exit status and output; the status is None without git or when it was too late."""
        pieces: list[bytes] = []
        status = self.stream(pieces.append, *question)
        return status, b"".join(pieces)

    def stream(self, take: Callable[[bytes], Any], *question: str) -> int | None:
        """Give the output to *take* piece by piece; return the exit status, None as for `ask`."""
        if time.monotonic() >= self.deadline:
            return None
        options = [part for setting in self.settings for part in ("-c", setting)]
        try:
            process = subprocess.Popen(
                ["git", "--no-pager", *options, *question],
                cwd=self.folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a group of its own, so that its children can be killed with it
            )
        except (OSError, ValueError):
            return None
        ended = False
        try:
            ended = self._read(process, take)
            if ended:
                process.wait(max(0.0, self.deadline - time.monotonic()))
                return process.returncode
        except subprocess.TimeoutExpired:
            ended = False
        finally:
            if not ended:
                _kill(process)
            if process.stdout is not None:
                process.stdout.close()
        return None

    def _read(self, process: subprocess.Popen[bytes], take: Callable[[bytes], Any]) -> bool:
        """Read to the end; return False at the deadline. A child of git's may hold the pipe for ever."""
        assert process.stdout is not None  # noqa: S101  # for the type checker: it is a pipe
        pipe = process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while (left := self.deadline - time.monotonic()) > 0:
                if selector.select(left):
                    piece = os.read(pipe, _PIECE)
                    if not piece:
                        return True
                    take(piece)
        return False


def _environment() -> Mapping[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _DROPPED and not name.startswith("GIT_TRACE")
    }
    return kept | {
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": "none",  # for a git that does not know the line above
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_PAGER": "cat",
        "LC_ALL": "C",
    }


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill git and the children in its group, and wait a moment for the corpse."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:  # pragma: no cover  # Windows
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # it may hang in the kernel, on a dead mount
        process.wait(0.5)
