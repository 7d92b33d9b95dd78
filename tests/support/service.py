"""Servers that one test run shares, over all its worker processes.

A run has a folder of its own. The first test that wants a server starts it through a small
supervisor process (``python -m tests.support.postgres FOLDER OWNER``); the others find its facts
in ``ready.json``. The supervisor stops the server and removes its folder when the run ends, and
also when the run was killed: it watches the process that owns the run. What even a killed
supervisor leaves behind is swept by the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

RUN = "HUBTEST_RUN"
PREFIX = "modelhub-tests-"
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0  # seconds; a start takes one or two, on a busy machine ten


def begin_run() -> Path | None:
    """Make the folder of this run and announce it to the processes that we start.

    Returns None where an outer run has done that already.
    """
    outer = os.environ.get(RUN)
    if outer and Path(outer).is_dir():
        return None
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_open_place()))
    folder.chmod(0o755)  # PostgreSQL refuses to be root, and its other user must get through
    (folder / "owner.json").write_text(json.dumps(_identity(os.getpid())))
    os.environ[RUN] = str(folder)
    return folder


def end_run(folder: Path | None) -> None:
    """Stop what the run has started and remove its folder. Does nothing for None."""
    if folder is None:
        return
    supervisors = [p for f in folder.glob("*/supervisor.json") if (p := _process(f)) is not None]
    for process in supervisors:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(supervisors, timeout=20)[1]:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)
    if os.environ.get(RUN) == str(folder):
        del os.environ[RUN]


def facts(name: str) -> dict[str, Any]:
    """Return the facts of the server *name* (``tests.support.<name>``), starting it if need be."""
    folder = Path(os.environ[RUN]) / name
    ready, failed = folder / "ready.json", folder / "failed"
    with FileLock(f"{folder}.lock"):
        if not ready.exists() and not failed.exists():
            folder.mkdir(mode=0o755, exist_ok=True)
            folder.chmod(0o755)
            _start(name, folder, ready, failed)
    if failed.exists():
        raise RuntimeError(f"The test server {name!r} did not start:\n{failed.read_text()}")
    found: dict[str, Any] = json.loads(ready.read_text())
    return found


def _start(name: str, folder: Path, ready: Path, failed: Path) -> None:
    owner = json.loads((folder.parent / "owner.json").read_text())
    log = folder / "supervisor.log"
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", f"tests.support.{name}", str(folder), json.dumps(owner)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C at the terminal is for pytest; we are stopped by it, in order
        )
    (folder / "supervisor.json").write_text(json.dumps(_identity(child.pid)))
    end = time.monotonic() + PATIENCE
    while not ready.exists():
        if child.poll() is not None or time.monotonic() > end:
            child.kill()
            failed.write_text(log.read_text(errors="replace")[-4000:] or f"no word within {PATIENCE:.0f} s")
            return
        time.sleep(0.02)
    child.returncode = 0  # not ours to wait for: without this its Popen would complain when collected


def supervise(start: Callable[[Path], AbstractContextManager[dict[str, Any]]]) -> None:
    """Be the supervisor: run the server of *start* until the run is over. Reads ``sys.argv``."""
    folder = Path(sys.argv[1])
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    owner = json.loads(sys.argv[2])
    try:
        with start(folder) as found:
            part = folder / "ready.part"
            part.write_text(json.dumps(found))
            part.rename(folder / "ready.json")
            while not told and _alive(owner) and folder.exists():
                time.sleep(0.1)
    finally:
        if (folder / "ready.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
        if not _alive(owner):
            shutil.rmtree(folder.parent, ignore_errors=True)


def sweep() -> None:
    """Remove the folders of runs that were killed together with their supervisors, and end their servers."""
    for folder in _open_place().glob(PREFIX + "*"):
        try:
            owner = json.loads((folder / "owner.json").read_text())
        except (OSError, ValueError):
            continue  # being made, or somebody else's
        if _alive(owner) or any(_process(f) for f in folder.glob("*/supervisor.json")):
            continue
        for note in folder.glob("*/data/postmaster.pid"):
            with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
                process = psutil.Process(int(note.read_text().split()[0]))
                if str(note.parent) in process.cmdline():
                    process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _identity(pid: int) -> dict[str, Any]:
    return {"pid": pid, "born": psutil.Process(pid).create_time()}


def _alive(who: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(who["pid"])
        # a zombie is a process whose parent has not looked yet; another birthday is another process
        return abs(process.create_time() - who["born"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _process(note: Path) -> psutil.Process | None:
    try:
        who = json.loads(note.read_text())
        return psutil.Process(who["pid"]) if _alive(who) else None
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None


def _open_place() -> Path:
    """Return a folder for temporary files that other users can walk through."""
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"):
        path = Path(place).resolve()
        if os.access(path, os.W_OK) and open_to_all(path):
            return path
    return Path(tempfile.gettempdir()).resolve()


def open_to_all(path: Path) -> bool:
    """Whether every user can walk to *path*, and read and run it."""
    return path.stat().st_mode & 0o005 == 0o005 and all(
        p.stat().st_mode & 0o001 for p in path.resolve().parents
    )
