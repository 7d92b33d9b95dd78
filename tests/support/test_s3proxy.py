"""Each fault of the S3 proxy comes as announced, to the request that it was announced for."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Callable
from typing import Any

import botocore.config
import botocore.exceptions
import botocore.session
import pytest
import s3fs

from tests.support.s3 import ENVIRONMENT, Bucket
from tests.support.s3proxy import Action, S3Proxy, gets, puts, writes

Client = Any


@pytest.fixture
def client(s3_bucket: Bucket, s3_proxy: S3Proxy) -> Client:
    """A client that goes through the proxy and tries everything once."""
    session = botocore.session.Session()
    made = session.create_client(
        "s3",
        endpoint_url=s3_proxy.url,
        config=botocore.config.Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )
    yield made
    made.close()


def _put(client: Client, bucket: Bucket, key: str, data: bytes = b"data", **more: Any) -> None:
    client.put_object(Bucket=bucket.name, Key=key, Body=data, **more)


def test_without_a_fault_all_passes(client: Client, s3_bucket: Bucket, s3_proxy: S3Proxy) -> None:
    """Reads, writes, listings, heads and deletions go through unchanged, and are recorded."""
    _put(client, s3_bucket, "a b/é%2F", b"x" * 100_000)
    assert s3_bucket.keys() == ["a b/é%2F"]
    assert client.get_object(Bucket=s3_bucket.name, Key="a b/é%2F")["Body"].read() == b"x" * 100_000
    assert client.head_object(Bucket=s3_bucket.name, Key="a b/é%2F")["ContentLength"] == 100_000
    assert client.list_objects_v2(Bucket=s3_bucket.name)["KeyCount"] == 1
    client.delete_object(Bucket=s3_bucket.name, Key="a b/é%2F")
    assert s3_bucket.keys() == []
    assert len(s3_proxy.seen(puts("a b/"))) == 1
    assert [status for _, status in s3_proxy.requests] == [200, 200, 200, 200, 204]


def test_a_dropped_answer_has_happened(client: Client, s3_bucket: Bucket, s3_proxy: S3Proxy) -> None:
    """The write is there; the client hears nothing, and a conditional second try is told 412."""
    with s3_proxy.fault("drop answer", when=puts("k")) as fault:
        with pytest.raises(botocore.exceptions.BotoCoreError):
            _put(client, s3_bucket, "k", IfNoneMatch="*")
        assert s3_bucket.get("k") == b"data"
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            _put(client, s3_bucket, "k", b"other", IfNoneMatch="*")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert [request.key for request in fault.hit] == ["k"]
    assert s3_bucket.get("k") == b"data"


@pytest.mark.parametrize("action", ["drop request", "cut upload"])
def test_a_dropped_request_has_not_happened(
    client: Client, s3_bucket: Bucket, s3_proxy: S3Proxy, action: Action
) -> None:
    """The server has nothing of it, and the next try works."""
    with s3_proxy.fault(action) as fault, pytest.raises(botocore.exceptions.BotoCoreError):
        _put(client, s3_bucket, "k")
    assert fault.fired
    assert s3_bucket.keys() == []
    _put(client, s3_bucket, "k")
    assert s3_bucket.keys() == ["k"]


@pytest.mark.parametrize("status", [409, 412, 500, 503])
@pytest.mark.parametrize("after", [False, True])
def test_a_status_is_answered(
    client: Client, s3_bucket: Bucket, s3_proxy: S3Proxy, status: int, after: bool
) -> None:
    """The client is told the status without a body, whether or not the server has done it."""
    with s3_proxy.fault(status, after=after), pytest.raises(botocore.exceptions.ClientError) as caught:
        _put(client, s3_bucket, "k")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert s3_bucket.keys() == (["k"] if after else [])


def test_an_answer_can_be_cut_or_wrong(client: Client, s3_bucket: Bucket, s3_proxy: S3Proxy) -> None:
    """Half of a body is an error of transport; one wrong bit is none."""
    s3_bucket.put("k", b"0123456789")

    def read() -> bytes:
        found: bytes = client.get_object(Bucket=s3_bucket.name, Key="k", ChecksumMode="DISABLED")[
            "Body"
        ].read()
        return found

    with s3_proxy.fault("cut answer", when=gets()) as fault:
        with pytest.raises((botocore.exceptions.BotoCoreError, http.client.HTTPException)):
            client.get_object(Bucket=s3_bucket.name, Key="k")["Body"].read()
    assert fault.fired
    with s3_proxy.fault("flip bit", when=gets()):
        wrong = client.get_object(Bucket=s3_bucket.name, Key="k")["Body"]._raw_stream.read()
    assert wrong == b"0123456788"
    assert client.get_object(Bucket=s3_bucket.name, Key="k")["Body"].read() == b"0123456789"


def test_which_request_is_met(client: Client, s3_bucket: Bucket, s3_proxy: S3Proxy) -> None:
    """`nth` and `times` count only what matches."""
    with s3_proxy.fault(500, nth=2, times=2, when=puts("yes")) as fault:
        told = []
        for n in range(4):
            _put(client, s3_bucket, f"no{n}")
            try:
                _put(client, s3_bucket, f"yes{n}")
            except botocore.exceptions.ClientError:
                told.append(n)
    assert told == [1, 2]
    assert len(fault.hit) == 2


def test_the_loop_covers_each_request_and_ends(client: Client, s3_bucket: Bucket, s3_proxy: S3Proxy) -> None:
    """`every_request` meets the first, the second, … and then lets the operation through."""
    rounds = 0
    for arm in s3_proxy.every_request("drop answer", when=writes):
        with arm(), contextlib.suppress(botocore.exceptions.BotoCoreError):
            for key in ("a", "b", "c"):
                _put(client, s3_bucket, f"{rounds}{key}")
        rounds += 1
    assert rounds == 4
    assert s3_bucket.keys() == ["0a", "1a", "1b", "2a", "2b", "2c", "3a", "3b", "3c"]


def test_s3fs_goes_through_the_proxy(s3_bucket: Bucket, s3_proxy: S3Proxy) -> None:
    """A filesystem made by its URL meets the faults; its own retries hide a single 503."""
    files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    with s3_proxy.fault(503, when=puts("k")) as fault:
        files.pipe_file(f"{s3_bucket.name}/k", b"x", mode="create")
    assert fault.fired
    assert s3_bucket.get("k") == b"x"
    assert ENVIRONMENT["AWS_ACCESS_KEY_ID"] == "testing"
    with s3_proxy.fault("drop answer", when=puts("lost")) as fault, pytest.raises(FileExistsError):
        files.pipe_file(f"{s3_bucket.name}/lost", b"x", mode="create")  # its retry meets its own success
    assert fault.fired
    assert s3_bucket.get("lost") == b"x"


def test_the_loop_complains_when_it_does_not_end(
    client: Client, s3_bucket: Bucket, s3_proxy: S3Proxy
) -> None:
    """An operation that always makes one more request is reported."""

    def run(operation: Callable[[], None]) -> None:
        for arm in s3_proxy.every_request(500, limit=3):
            with arm(), contextlib.suppress(botocore.exceptions.ClientError):
                operation()

    def greedy() -> None:
        for n in range(9):
            _put(client, s3_bucket, str(n))

    with pytest.raises(AssertionError, match="still met"):
        run(greedy)
