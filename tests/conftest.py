"""Fixtures for all tests: isolation from the machine, and real servers, started when first asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis.internal.conjecture import engine

if TYPE_CHECKING:
    from modelhub_sdk import Registry
    from tests.support.pgproxy import PostgresProxy
    from tests.support.s3 import Bucket
    from tests.support.s3proxy import S3Proxy

THOROUGH = bool(os.environ.get("THOROUGH_TESTS"))
"""Everything at full size, with new examples, seeds and orders each time; else the same tests in the same order."""

hypothesis.settings.register_profile(
    "quick",
    max_examples=60,
    deadline=None,  # the machine is shared; pytest-timeout catches what hangs
    derandomize=True,
    database=None,
    phases=set(hypothesis.Phase) - {hypothesis.Phase.explain},
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
)
_fresh = hypothesis.settings(
    hypothesis.settings.get_profile("quick"), derandomize=False, phases=set(hypothesis.Phase)
)
hypothesis.settings.register_profile("full", _fresh, max_examples=200)
hypothesis.settings.register_profile("thorough", _fresh, max_examples=2000)  # hours, for hunting
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("full" if THOROUGH else "quick"))
# A failure is news; a smaller example of it five minutes later is not.
engine.MAX_SHRINKING_SECONDS = 300 if THOROUGH else 30

_run = pytest.StashKey[Path | None]()

FOREIGN = ("MODELHUB_", "AWS_", "VH_", "VALOHAI_", "PG", "GIT_", "XDG_")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Fix order and seeds; make the run's folder, in the process that owns the run (xdist's workers inherit it)."""
    if not THOROUGH and getattr(config.option, "randomly_seed", None) == "default":
        config.option.randomly_seed = 1
        config.option.randomly_reorganize = False
    try:
        from tests.support import service
    except ImportError:  # a bare environment: no psutil, hence no servers
        return
    config.stash[_run] = service.begin_run()


FAST = ("bare", "domain", "formats", "golden", "views")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark as fast what needs no server, disk or child: the pure folders, and the verbs on memory."""
    place = item.path.relative_to(Path(__file__).parent).parts
    parameters = getattr(item, "callspec", None)
    on_memory = parameters is not None and parameters.params.get("reg") == "memory"
    if item.get_closest_marker("slow") is None and (place[0] in FAST or (len(place) == 1 and on_memory)):
        item.add_marker(pytest.mark.fast)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the servers of this run."""
    if folder := config.stash.get(_run, None):
        from tests.support import service

        service.end_run(folder)


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's settings out of every test, and every test out of the machine's home.

    The user is ``tester`` in ``$MODELHUB_USER``; cache, data and home lie in a folder of the test's own.
    """
    monkeypatch.chdir(Path(__file__).resolve().parents[1])  # wherever the test before has gone
    for name in list(os.environ):
        if name.startswith(FOREIGN):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / ".local" / "share"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / ".local" / "state"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("MODELHUB_USER", "tester")


@pytest.fixture(params=["memory", "sqlite"])
def reg(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    """Yield an empty registry: in memory and on SQLite; indirectly also in a folder (``"folder"``)."""
    import modelhub_sdk as hub

    urls = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/reg.db", "folder": f"{tmp_path}/reg"}
    with hub.open(urls[request.param]) as registry:
        yield registry


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """Return the URL of the run's PostgreSQL server (its database ``postgres``; leave that alone)."""
    from tests.support import service

    url: str = service.facts("postgres")["url"]
    return url


@pytest.fixture
def postgres_db(postgres_url: str) -> Iterator[str]:
    """Yield the URL of an empty PostgreSQL database that is dropped after the test."""
    from tests.support import postgres

    url = postgres.create_database(postgres_url)
    yield url
    postgres.drop_database(url)


@pytest.fixture
def pg_proxy(postgres_db: str) -> Iterator[PostgresProxy]:
    """Yield a proxy in front of `postgres_db` that can cut connections; its ``url`` goes through it."""
    from tests.support.pgproxy import PostgresProxy

    with PostgresProxy(postgres_db) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def s3_endpoint() -> str:
    """Return the URL of the run's S3 server."""
    from tests.support import s3, service

    s3.share_descriptions()
    endpoint: str = service.facts("s3")["endpoint"]
    return endpoint


@pytest.fixture
def s3_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Yield an empty bucket; ``f"{bucket.url}/…"`` works with s3fs without further options."""
    from tests.support import s3

    for name, value in (s3.ENVIRONMENT | {"AWS_ENDPOINT_URL": s3_endpoint}).items():
        monkeypatch.setenv(name, value)
    _forget_filesystems()
    bucket = s3.create_bucket(s3_endpoint)
    yield bucket
    s3.delete_bucket(bucket)
    _forget_filesystems()


@pytest.fixture
def s3_proxy(s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """Yield a proxy in front of the S3 server that can fail on command; s3fs goes through it.

    `s3_bucket` itself still looks at the server directly.
    """
    from tests.support.s3proxy import S3Proxy

    with S3Proxy(s3_bucket.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        _forget_filesystems()
        yield proxy


def _forget_filesystems() -> None:
    """Drop fsspec's cached S3 filesystems: they would go on talking to an earlier endpoint."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
