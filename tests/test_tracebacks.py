"""No frame of an error holds a password: capture tools store the locals of all frames."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import pytest

import modelhub_sdk as hub
from modelhub_sdk import ModelHubError, Registry
from modelhub_sdk.hidden import Hidden, HiddenOptions

SECRET = "s3cr3t-and-s0-0n"
OWN = {__file__, "<frozen importlib._bootstrap>"}


def frames(error: BaseException) -> Iterator[FrameType]:
    """Yield the frames of an error and of all errors behind it, shown or not, but those of this file."""
    chain, seen = [error], set()
    while chain:
        one = chain.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if frame.f_code.co_filename not in OWN:
                yield frame
        chain += [behind for behind in (one.__cause__, one.__context__) if behind is not None]


def places_of(secret: str, error: BaseException) -> list[str]:
    """Return where *secret* stands in what a capture tool would store of *error*."""
    found = ["text"] if secret in "".join(traceback.format_exception(error)) else []
    for frame in frames(error):
        for name, value in frame.f_locals.items():
            try:
                printed = repr(value)
            except Exception:
                continue
            if secret in printed:
                found.append(f"{frame.f_code.co_filename}:{frame.f_code.co_qualname} {name}")
    return found


def check(call: Callable[[], Any], error: type[BaseException] = ModelHubError) -> None:
    with pytest.raises(error) as caught:
        call()
    assert places_of(SECRET, caught.value) == []


def test_the_helper_finds_them() -> None:
    """A secret in a frame, behind `from None` too, is found by the helper of these tests."""
    namespace: dict[str, Any] = {}
    source = f"""
def leak():
    password = {SECRET!r}
    try:
        raise ValueError
    except ValueError:
        raise KeyError from None
"""
    exec(compile(source, "elsewhere.py", "exec"), namespace)
    with pytest.raises(KeyError) as caught:
        namespace["leak"]()
    assert places_of(SECRET, caught.value)


def test_hidden_values_print_nothing() -> None:
    """A hidden value or option shows in no text of it, and is what it was where it is used."""
    value, options = Hidden(SECRET), HiddenOptions({"key": SECRET})
    assert SECRET not in f"{value!r} {value} {options!r} {options}"
    assert (value.reveal(), {**options}) == (SECRET, {"key": SECRET})
    assert Path(value) == Path(SECRET)


URLS = [
    f"postgresql://hub:{SECRET}@127.0.0.1:1/db",
    f"postgresql://hub:{SECRET}@127.0.0.1:x/db",
    f"postgresql://hub:{SECRET}@127.0.0.1/db?options=-c",
    f"postgresql://hub:{SECRET}@127.0.0.1:1/db?sslmode=nonsense",
    f"postgresql://hub:{SECRET}@nowhere.invalid/db?connect_timeout=2",
    f"postgresql://127.0.0.1:1/db?password={SECRET}",
    f"postgresql://hub:{SECRET}%00@127.0.0.1:1/db",
    f"postgresql://hub:{SECRET}@127.0.0.1:1/db?application_name=%ff%00",
    f"postgresql://hub:{SECRET}#x@127.0.0.1/db",
    f"host=127.0.0.1 password={SECRET}",
    f"mysql://hub:{SECRET}@127.0.0.1/db",
    f"s3://key:{SECRET}@bucket/x",
    f"ftp://hub:{SECRET}@127.0.0.1/x",
    f"https://hub:{SECRET}@127.0.0.1/x",
]


@pytest.mark.parametrize("url", URLS)
def test_opening(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A registry that cannot be opened, by its URL, by the environment, as a copy or as a source of a repair."""
    check(lambda: hub.open(url, artifacts=tmp_path, create=True))
    check(lambda: Registry.open(url, read_only=True))
    with hub.open("memory://") as reg:
        reg.register("m", {"a": b"a"})
        check(lambda: reg.copy_to(url, artifacts=tmp_path / "copy"))
        check(lambda: reg.copy_to(url, ref="m/v1", artifacts=tmp_path / "copy"))
        check(lambda: reg.repair(url))
    monkeypatch.setenv("MODELHUB_REGISTRY", url)
    check(hub.open)
    check(lambda: hub.resolve("model://m/v1"))
    check(lambda: hub.start_run("train"))


def test_through_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fsspec.open` of a default registry that does not answer."""
    import fsspec

    monkeypatch.setenv("MODELHUB_REGISTRY", URLS[0])
    check(lambda: fsspec.open("model://m/v1/a").open(), Exception)


def test_a_database_that_refuses(postgres_db: str, tmp_path: Path) -> None:
    """PostgreSQL that refuses the password, knows no such database, or speaks no TLS."""
    parts = urlsplit(postgres_db)
    place = f"{parts.hostname}:{parts.port}"
    with_password = f"postgresql://{parts.username}:{SECRET}@{place}"
    for url in (
        f"{with_password}{parts.path}",
        f"postgresql://nobody:{SECRET}@{place}{parts.path}",
        f"{with_password}/nothing",
        f"{with_password}{parts.path}?sslmode=require",
        f"{with_password}{parts.path}?sslmode=verify-full&sslrootcert=/nothing",
    ):
        check(lambda url=url: hub.open(url, artifacts=tmp_path, create=False))


def test_a_database_that_goes_away(pg_proxy: Any, tmp_path: Path) -> None:
    """A database that is gone when an open registry needs it again."""
    real = urlsplit(pg_proxy.url)
    if real.password is None:
        pytest.fail("the test server has a password")
    with hub.open(pg_proxy.url, artifacts=tmp_path, create=True) as reg:
        reg.register("m", {"a": b"a"})
        with pg_proxy.away(), pytest.raises(ModelHubError) as caught:
            reg.register("m", {"a": b"b"})
        assert places_of(real.password, caught.value) == []


def test_an_object_store_that_refuses(s3_endpoint: str, tmp_path: Path) -> None:
    """An object store that is not there, or has no such bucket, as journal, artifacts and source."""
    for endpoint in ("http://127.0.0.1:1", s3_endpoint, "nonsense"):
        options = {"key": "testing", "secret": SECRET, "endpoint_url": endpoint}
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, "connect_timeout": 1}
        check(
            lambda options=options: hub.open("s3://no-bucket/x", storage_options=options, create=True),
            Exception,
        )
        with hub.open(f"sqlite:///{tmp_path}/{endpoint[-4:].strip('/:')}.db", storage_options=options) as reg:
            check(lambda reg=reg: reg.register("m", "s3://no-bucket/a"), Exception)
    check(lambda: hub.open("s3://bucket/x", storage_options={"nonsense": SECRET}, create=True), Exception)
    check(lambda: hub.open(f"sqlite:///{tmp_path}/x.db", artifacts=f"s3://key:{SECRET}@bucket/x"))


SOURCES = [
    f"https://hub:{SECRET}@127.0.0.1:1/x",
    f"http://127.0.0.1:1/x?token={SECRET}",
    f"s3://key:{SECRET}@bucket/x",
    f"ftp://hub:{SECRET}@127.0.0.1:1/x",
    f"nonsense://hub:{SECRET}@127.0.0.1/x",
]


@pytest.mark.parametrize("source", SOURCES)
def test_sources(source: str, tmp_path: Path) -> None:
    """A file that cannot be had from a URL with a password in it, whichever verb wants it."""
    with hub.open("memory://") as reg:
        version = reg.register("m", {"a": b"a"})
        check(lambda: reg.register("m", source))
        check(lambda: reg.register("m", {"a": source}))
        check(lambda: reg.register("m", {"a": source}, copy=False))
        check(lambda: reg.create_dataset_version("dataset://d/v1", [source]))
        check(lambda: reg.add_evaluation(version, {"auc": 1}, files={"a": source}))
        check(lambda: reg.attach(version, "a", source))
        check(lambda: reg.resolve_inputs({"a": source}, tmp_path / "inputs"))
        with reg.start_run("train", outputs=None, capture=False) as run:
            check(lambda: run.register("m", {"a": source}))
            check(lambda: run.attach("a", source))
            check(lambda: run.input("a", source))
        check(lambda: reg.start_run("train", inputs={"a": source}, outputs=None, capture=False))
