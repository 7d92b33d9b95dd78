"""The test run's servers: there, shared, strict, and gone when the run is over, however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import psycopg
import pytest
import s3fs

from tests.support import postgres, s3, service
from tests.support.s3 import Bucket


def test_each_database_is_fresh(postgres_url: str, postgres_db: str) -> None:
    """A test's database is empty and its own, asks for the password, and runs on the loopback only."""
    other = postgres.create_database(postgres_url)
    try:
        with psycopg.connect(postgres_db) as here, psycopg.connect(other) as there:
            here.execute("CREATE TABLE t (n INT)")
            here.commit()
            found = there.execute("SELECT count(*) FROM pg_tables WHERE tablename = 't'").fetchone()
            assert found == (0,)
            assert here.execute("SHOW max_connections").fetchone() == ("100",)
            assert here.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)
            assert here.execute("SHOW timezone").fetchone() != ("UTC",)
    finally:
        postgres.drop_database(other)
    secret = postgres_db.split(":")[2].split("@")[0]
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres_db.replace(secret, "wrong")).close()


def test_a_database_is_dropped_under_its_users(postgres_url: str) -> None:
    """Dropping ends whoever is still connected."""
    url = postgres.create_database(postgres_url)
    with psycopg.connect(url) as user:
        postgres.drop_database(url)
        with pytest.raises(psycopg.OperationalError):
            user.execute("SELECT 1")


@pytest.mark.slow
def test_a_server_of_ones_own_survives_a_crash() -> None:
    """A durable server that was killed starts again with what was committed."""
    folder = Path(os.environ[service.RUN]) / f"own-{os.getpid()}"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    server = postgres.Server(folder, fsync=True)
    try:
        server.start()
        with psycopg.connect(server.url()) as connection:
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
            connection.execute("CREATE TABLE t AS SELECT 1 AS n")
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.url()).close()
        server.start()
        with psycopg.connect(server.url()) as connection:
            assert connection.execute("SELECT n FROM t").fetchone() == (1,)
    finally:
        server.stop()


def test_the_programs_run_from_a_private_virtual_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the other user could not reach PostgreSQL's programs, they are copied, libraries and all."""
    monkeypatch.setattr(service, "open_to_all", lambda path: False)
    copy = postgres._programs(tmp_path, reachable=True)
    assert copy.is_relative_to(tmp_path)
    assert postgres._programs(tmp_path, reachable=False).parent.name == "pginstall"
    for program in ("postgres", "initdb"):
        done = subprocess.run([copy / program, "--version"], capture_output=True, text=True, check=True)
        assert "PostgreSQL" in done.stdout
    place = Path(tempfile.mkdtemp(prefix="modelhub-own-", dir=service._open_place()))
    place.chmod(0o755)
    server = postgres.Server(place)
    try:
        server.start()
        psycopg.connect(server.url()).close()
    finally:
        server.stop()
        shutil.rmtree(place)


def test_s3_works_with_plain_urls(s3_bucket: Bucket) -> None:
    """s3fs finds the server and the keys in the environment; the bucket shows what it wrote."""
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.pipe_file(f"{s3_bucket.name}/a/b c", b"x")
    assert s3_bucket.keys() == ["a/b c"]
    assert s3_bucket.get("a/b c") == b"x"
    s3_bucket.put("a/d", b"y")
    assert files.cat_file(f"{s3_bucket.url}/a/d") == b"y"
    assert s3_bucket.keys("a/d") == ["a/d"]
    s3_bucket.delete("a/d")
    assert s3_bucket.keys() == ["a/b c"]


def test_s3_lists_more_than_a_page(s3_bucket: Bucket) -> None:
    """Listing a bucket follows the pages."""
    for n in range(1005):
        s3_bucket.put(f"k{n:04}", b"")
    assert len(s3_bucket.keys()) == 1005


@pytest.mark.slow
def test_s3_has_one_winner(s3_bucket: Bucket) -> None:
    """Of many processes that create one key only one succeeds, every time."""
    program = (
        "import sys, s3fs\n"
        "fs = s3fs.S3FileSystem(skip_instance_cache=True)\n"
        "won = 0\n"
        "for n in range(40):\n"
        "    try:\n"
        "        fs.pipe_file(f'{sys.argv[1]}/{n}', sys.argv[2].encode(), mode='create')\n"
        "        won += 1\n"
        "    except FileExistsError:\n"
        "        pass\n"
        "print(won)\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, s3_bucket.name, str(n)], stdout=subprocess.PIPE, text=True
        )
        for n in range(4)
    ]
    assert sum(int(child.communicate(timeout=100)[0]) for child in children) == 40
    assert len(s3_bucket.keys()) == 40


def test_s3_refuses_an_upload_that_was_cut_off(s3_bucket: Bucket) -> None:
    """A body shorter than announced is no object."""
    import http.client
    import urllib.parse

    place = urllib.parse.urlsplit(s3_bucket.endpoint)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=10)
    connection.putrequest("PUT", f"/{s3_bucket.name}/cut")
    connection.putheader("Content-Length", "100")
    connection.putheader("Authorization", s3._SIGNED)
    connection.endheaders()
    connection.send(b"x" * 50)
    connection.sock.shutdown(1)
    assert connection.getresponse().status == 400
    connection.close()
    assert s3_bucket.keys() == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill the run", "kill all"])
def test_servers_end_with_a_run_that_was_killed(tmp_path: Path, how: str) -> None:
    """Nothing of a killed run stays: its supervisors see it, and the next run sweeps what they could not."""
    program = (
        "import json, time\n"
        "from tests.support import service\n"
        "folder = service.begin_run()\n"
        "facts = service.facts('postgres')['url'], service.facts('s3')['endpoint']\n"
        "print(json.dumps([str(folder), *facts]), flush=True)\n"
        "time.sleep(120)\n"
    )
    inner = {name: value for name, value in os.environ.items() if name != service.RUN}
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=service.ROOT, env=inner, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        folder, url, endpoint = json.loads(run.stdout.readline())
        supervisors = [
            psutil.Process(json.loads(f.read_text())["pid"]) for f in Path(folder).glob("*/supervisor.json")
        ]
        servers = [child for process in supervisors for child in process.children()]
        assert len(supervisors) == 2
        assert servers
        psycopg.connect(url).close()
        if how == "kill all":
            for process in supervisors:
                process.send_signal(signal.SIGSTOP)
        run.kill()
    if how == "kill all":
        for process in supervisors:
            process.kill()
        psutil.wait_procs(supervisors, timeout=10)
        service.sweep()
    gone, alive = psutil.wait_procs([*supervisors, *servers], timeout=20)
    assert not alive
    assert gone
    end = time.monotonic() + 10
    while Path(folder).exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(folder).exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url, connect_timeout=3).close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(endpoint, timeout=3)


def test_a_server_that_does_not_start_says_why() -> None:
    """The reason is in the error, and the second who asks does not wait again."""
    for _ in range(2):
        with pytest.raises(RuntimeError, match="No module named"):
            service.facts("no_such_server")
