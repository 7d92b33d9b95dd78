"""Odd surroundings: containers without a home or a name, read-only disks, other locales, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import modelhub_sdk as hub

# The interpreter may lie where only root reads: everything is loaded first, then the user changes.
AS_NOBODY = """
import os, tempfile
import modelhub_sdk.stores.files, modelhub_sdk.stores.private, modelhub_sdk.stores.sql, configparser, getpass, pwd, platformdirs, encodings.idna
with tempfile.TemporaryDirectory() as folder:
    import modelhub_sdk as hub
    for kind in ("sqlite:///" + folder + "/r.db", folder + "/reg"):
        with hub.open(kind, user="root", cache_dir=folder + "/cache") as reg:
            reg.approve(reg.register("m", {"a": b"1"}))
            reg.resolve("m/latest", folder + "/in" + kind[:6])
    del hub, reg
tempfile.tempdir = None
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
"""

RESOLVE = """
import sys, os
import modelhub_sdk as hub
reg = hub.open(sys.argv[1], read_only=True)
found = reg.resolve("model://m/latest")
folder = os.fsencode(found.path)  # in an ASCII locale Python itself cannot name this file as text
names = sorted(os.listdir(folder))
print(found.uri, [name.decode() for name in names], open(os.path.join(folder, names[0]), encoding="utf-8").read())
"""


@pytest.fixture(params=["sqlite", "folder"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A registry with an approved version, which nobody may write any more."""
    place = tmp_path / "place"
    place.mkdir()
    found = f"sqlite:///{place}/r.db" if request.param == "sqlite" else str(place / "reg")
    with hub.open(found, user="tester", cache_dir=tmp_path / "cache") as reg:
        reg.approve(reg.register("m", {"größe.txt": "drei Äpfel".encode(), "model.bin": b"x"}), "good")
    for top, folders, files in os.walk(place):
        for name in folders:
            os.chmod(os.path.join(top, name), 0o555)
        for name in files:
            os.chmod(os.path.join(top, name), 0o444)
    os.chmod(place, 0o555)
    yield found
    for top, folders, _ in os.walk(place):
        for name in [".", *folders]:
            os.chmod(os.path.join(top, name), 0o755)


def _child(*arguments: str, flags: tuple[str, ...] = (), **env: str) -> str:
    """Run a fresh interpreter with nothing but *env* around it; return what it printed."""
    around = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **env}
    done = subprocess.run(
        [sys.executable, *flags, "-c", *arguments],
        env=around,
        cwd="/",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("cache", ["given", "temporary"])
def test_a_container_without_home_or_passwd_entry(cache: str, url: str, tmp_path: Path) -> None:
    """A user without home, name or any writable folder but the cache resolves from a read-only registry."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    place = tmp_path / "their cache"
    place.mkdir()
    os.chown(place, 54321, -1)
    env = {"MODELHUB_CACHE_DIR": str(place)} if cache == "given" else {"TMPDIR": str(place)}
    expected = "model://m/v1 ['größe.txt', 'model.bin'] drei Äpfel\n"
    assert _child(AS_NOBODY + RESOLVE, url, PYTHONIOENCODING="utf-8", **env) == expected
    assert _child(AS_NOBODY + RESOLVE, url, PYTHONIOENCODING="utf-8", **env) == expected


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become another user")
def test_nowhere_to_put_a_cache_is_said(url: str, tmp_path: Path) -> None:
    """Without any writable place the error names the setting that helps."""
    code = (
        "import sys, tempfile, modelhub_sdk as hub\n"
        "try:\n    hub.open(sys.argv[1], read_only=True).resolve('model://m/latest')\n"
        "except hub.ModelHubError as error:\n    print(error)\n"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    assert "MODELHUB_CACHE_DIR" in _child(AS_NOBODY + code, url, MODELHUB_CACHE_DIR="/proc/cache")


@pytest.mark.parametrize(
    ("flags", "env"),
    [
        (("-O",), {}),
        ((), {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ((), {"TZ": "Pacific/Kiritimati"}),
        (("-W", "error"), {}),
    ],
    ids=["optimised", "ascii", "far east", "strict"],
)
def test_other_interpreters(flags: tuple[str, ...], env: dict[str, str], url: str, tmp_path: Path) -> None:
    """Optimised away asserts, an ASCII locale, another time zone, and warnings as errors change nothing."""
    out = _child(
        RESOLVE,
        url,
        flags=flags,
        MODELHUB_CACHE_DIR=str(tmp_path / "cache"),
        HOME=str(tmp_path),
        PYTHONIOENCODING="utf-8",
        **env,
    )
    assert out == "model://m/v1 ['größe.txt', 'model.bin'] drei Äpfel\n"


def test_times_are_utc_whatever_the_zone(tmp_path: Path) -> None:
    """A registration in Kiritimati is stored in UTC."""
    code = (
        "import sys, datetime, modelhub_sdk as hub\n"
        "v = hub.open(sys.argv[1]).register('m', {'a': b'1'})\n"
        "print(abs(v.created_at - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=1),"
        " v.created_at.utcoffset())\n"
    )
    out = _child(
        code,
        f"sqlite:///{tmp_path}/r.db",
        TZ="Pacific/Kiritimati",
        HOME=str(tmp_path),
        MODELHUB_USER="tester",
    )
    assert out == "True 0:00:00\n"


def test_sigterm_in_a_registration(tmp_path: Path) -> None:
    """A process that is told to end while it registers leaves a sound registry, and the next one goes on."""
    code = (
        "import sys, modelhub_sdk as hub\n"
        "reg = hub.open(sys.argv[1], user='tester', cache_dir=sys.argv[2])\n"
        "print('ready', flush=True)\n"
        "while True: reg.register('m', {'a': b'1' * 100_000})\n"
    )
    url = str(tmp_path / "reg")
    for pause in (0.0, 0.003, 0.011):
        child = subprocess.Popen(
            [sys.executable, "-c", code, url, str(tmp_path / "cache")], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(pause)
        child.send_signal(signal.SIGTERM)
        child.wait(30)
        child.stdout.close()
    with hub.open(url, user="tester", cache_dir=tmp_path / "cache") as reg:
        count = reg.versions("m", limit=1).total if reg.models() else 0
        assert reg.register("m", {"a": b"1"}).number == count + 1
        assert reg.verify().ok
