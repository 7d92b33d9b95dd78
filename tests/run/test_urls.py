"""Plain URLs as inputs: fetched once, again when their store says so, and flagged when their bytes changed."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.blobs import cache, objects, patience, place, readers
from modelhub_sdk.blobs.web import WebReader
from modelhub_sdk.errors import Conflict, CredentialsRefused, InvalidURI, NotFound, StoreUnavailable
from modelhub_sdk.run.inputs import InputSpec
from tests.support.bars import counted_bars
from tests.support.threads import at_once
from tests.support.web import Quiet, serving


class Web:
    """A web server of a few files: what it says of them, and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.etags = True
        self.asked: Counter[str] = Counter()
        self.short = 0
        self.ranges = True
        self.cuts: list[int] = []  # how many bytes each of the next answers gives, of those it announces
        self.errors: list[int] = []  # what the next answers are instead
        self.sent: list[tuple[int, int]] = []  # from where, and how many
        self.then: Callable[[], object] = lambda: None  # after each cut
        self.url = ""
        web = self

        class Handler(Quiet):
            def answer(self) -> None:
                path = self.path.partition("?")[0]
                data = web.files.get(self.path, web.files.get(path))
                if data is None:
                    self.send_error(404)
                    return
                tag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
                if web.etags and self.headers.get("If-None-Match") == tag:
                    web.asked["304"] += 1
                    self.send_response(304)
                    self.end_headers()
                    return
                if web.errors:
                    self.send_error(web.errors.pop(0))
                    return
                start = 0
                wanted = self.headers.get("Range")
                if web.ranges and wanted and self.headers.get("If-Range", tag) == tag:
                    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                web.asked["206" if start else "200"] += 1
                if start >= len(data) > 0:
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                if web.etags:
                    self.send_header("ETag", tag)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(data) - start))
                for name, value in web.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                count = web.cuts.pop(0) if web.cuts else len(data) - start - web.short
                self.wfile.write(data[start : start + count])
                web.sent.append((start, min(count, len(data) - start)))
                self.close_connection = True
                if start + count < len(data):
                    web.then()

        self.handler = Handler


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    found = Web()
    monkeypatch.setattr(patience, "_PATIENCE", 2.0)
    with serving(found.handler) as found.url:
        yield found


@pytest.fixture
def reg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.chdir(tmp_path)
    with hub.open("sqlite:///r.db", cache_dir=tmp_path / "cache") as found:
        yield found


def had(reg: Registry, url: str, into: str = "in", **options: Any) -> list[bytes]:
    """Return the bytes of an input."""
    placed = reg.resolve_inputs({"x": InputSpec("x", (url,), **options)}, into)["x"]
    return [file.path.read_bytes() for file in placed.files if file.path is not None]


def test_the_web_is_asked_whether_it_changed(reg: Registry, web: Web) -> None:
    """A file with a strong ETag is transferred once; when it has another one, again."""
    web.files["/a.csv"] = b"one"
    assert had(reg, web.url + "/a.csv") == [b"one"]
    assert had(reg, web.url + "/a.csv", "other") == [b"one"]
    assert web.asked == {"200": 1, "304": 1}
    web.files["/a.csv"] = b"two"
    assert had(reg, web.url + "/a.csv", "third") == [b"two"]
    assert web.asked == {"200": 2, "304": 1}


@pytest.mark.parametrize("tag", [None, 'W/"weak"', "none at all", '"a" "b"', ""])
def test_what_says_nothing_reliable_is_fetched(reg: Registry, web: Web, tag: str | None) -> None:
    """Without a strong ETag the bytes are fetched each time: the same second, or a weak tag, is no promise."""
    web.etags = False
    web.headers = {"Last-Modified": "Mon, 01 Jun 2026 10:00:00 GMT"} | ({} if tag is None else {"ETag": tag})
    web.files["/a.csv"] = b"one"
    assert had(reg, web.url + "/a.csv") == [b"one"]
    web.files["/a.csv"] = b"two"
    assert had(reg, web.url + "/a.csv", "other") == [b"two"]


def test_a_cache_that_lost_the_bytes(reg: Registry, web: Web, tmp_path: Path) -> None:
    """A tag saves a transfer only when the bytes are still here, and right."""
    web.files["/a.csv"] = b"one"
    had(reg, web.url + "/a.csv")
    digest = hashlib.sha256(b"one").hexdigest()
    blob = tmp_path / "cache" / "v1" / "blobs" / digest[:2] / digest[2:]
    blob.chmod(0o644)
    blob.write_bytes(b"bad")
    assert had(reg, web.url + "/a.csv", "second") == [b"one"]
    hub.cache.clear()
    (note,) = (tmp_path / "cache" / "v1" / "urls").iterdir()
    for rubbish in (b"", b"[]", b"{", json.dumps({"tag": "x", "digest": "../../x", "size": 3}).encode()):
        note.unlink()
        note.write_bytes(rubbish)
        assert had(reg, web.url + "/a.csv", f"after-{rubbish!r}"[:12].replace("/", "")) == [b"one"]


def test_a_cut_answer_leaves_nothing(reg: Registry, web: Web, tmp_path: Path) -> None:
    """An answer that is too short is an error; neither the folder nor the cache has it, and the next try works."""
    web.files["/a.csv"] = b"x" * 100_000
    web.short = 10
    with pytest.raises((Conflict, StoreUnavailable), match="input 'x' cannot be had"):
        had(reg, web.url + "/a.csv")
    assert not (tmp_path / "in").exists()
    assert not [name for _, _, names in os.walk(tmp_path / "cache" / "v1") for name in names]
    web.short = 0
    assert had(reg, web.url + "/a.csv") == [b"x" * 100_000]


def test_compressed_on_the_store(reg: Registry, web: Web) -> None:
    """A file that a server calls gzip-encoded is taken as it is stored, as other tools do."""
    web.files["/a.csv.gz"] = gzip.compress(b"1,2,3")
    web.headers["Content-Encoding"] = "gzip"
    assert [gzip.decompress(data) for data in had(reg, web.url + "/a.csv.gz")] == [b"1,2,3"]


def test_no_wildcards_on_the_web(reg: Registry, web: Web) -> None:
    """A web server does not tell what fits a wildcard: the message says so."""
    with pytest.raises(InvalidURI, match="wildcard"):
        had(reg, web.url + "/*.csv")


def test_secrets_stay_out_of_notes_and_records(reg: Registry, web: Web, tmp_path: Path) -> None:
    """A signature in a URL is in no note of the cache, no record and no alert; another signature is the same file."""
    web.files["/a.csv"] = b"one"
    for secret in ("hunter2", "swordfish"):
        with reg.start_run("train", inputs={"x": f"{web.url}/a.csv?X-Amz-Signature={secret}"}) as run:
            pass
    assert web.asked == {"200": 1, "304": 1}
    (one,) = reg.run(run.id).inputs
    assert one.uri.startswith(web.url + "/a.csv")
    for _, _, names in os.walk(tmp_path):
        assert not [name for name in names if "hunter2" in name]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"hunter2" not in path.read_bytes()


@pytest.mark.parametrize("name", ["author", "design", "keyword", "token", "session"])
def test_each_query_is_another_file(reg: Registry, web: Web, name: str) -> None:
    """Two values of a name, secret or not, are two files: neither gets the other's bytes, nor is flagged for them."""
    web.etags, web.headers["ETag"] = False, '"1"'
    for value in ("alice", "bob"):
        web.files[f"/a.csv?{name}={value}"] = value.encode()
    for value in ("alice", "bob", "alice"):
        with reg.start_run("train", inputs={"x": f"{web.url}/a.csv?{name}={value}"}) as run:
            assert run.input("x").read_bytes() == value.encode()
        assert not reg.run(run.id).alerts
        assert ("alice" in reg.run(run.id).inputs[0].uri) == (
            name not in ("token", "session") and value == "alice"
        )


def test_a_url_that_is_signed_anew(reg: Registry, web: Web) -> None:
    """It is the same file: not transferred again, and flagged when its bytes are others."""
    signed = "/a.csv?part=1&X-Amz-Date={0}&X-Amz-Credential=AK{0}&X-Amz-Expires=60&X-Amz-Signature={0}"
    web.files["/a.csv"] = b"one"
    for date in ("20260101", "20260102", "20260103"):
        if date == "20260103":
            web.files["/a.csv"] = b"two"
        with reg.start_run("train", inputs={"x": web.url + signed.format(date)}) as run:
            pass
        assert [one.uri for one in reg.run(run.id).inputs] == [web.url + "/a.csv?part=1"]
        assert len(reg.run(run.id).alerts) == (date == "20260103")
    assert web.asked == {"200": 2, "304": 1}


@pytest.mark.parametrize("user", ["ada:hunter2@", "ada:hun/hunter2@", "hunter2@"])
def test_no_password_is_repeated(reg: Registry, tmp_path: Path, user: str) -> None:
    """A user in a URL of the web is refused before anything is asked; no message, log or traceback has it."""
    url = f"https://{user}127.0.0.1/a.csv"
    with pytest.raises(InvalidURI, match="password") as first, reg.start_run("train", id="r1") as run:
        run.input("x", url)
    with pytest.raises(InvalidURI, match="password") as second:
        reg.register("m", {"a.csv": url})
    for error in (first.value, second.value):
        told = "".join(traceback.format_exception(error))
        assert "hunter2" not in told.replace(f"https://{user}", "")
    assert "hunter2" not in (reg.run("r1").traceback or "") + (reg.run("r1").exception or "")
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes()


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:abc/a.csv", "http://[::1/a.csv", "http:///a.csv", "http://host/a\rb.csv",
        "http://localhost:99999/a.csv", "s3://KEY:hunter2@bucket/a.csv", "s3://bucket/a.csv?versionId=abc",
    ],
)  # fmt: skip
def test_what_is_no_url_is_told_at_once(reg: Registry, url: str) -> None:
    """Nothing is tried for a minute that cannot work."""
    begun = time.monotonic()
    with pytest.raises(InvalidURI, match="input 'x' cannot be had") as error:
        had(reg, url)
    assert "hunter2" not in str(error.value)
    assert (
        time.monotonic() - begun < 20
    )  # seconds; a machine may be busy, and the driver may have to be loaded


@pytest.mark.parametrize("name", ["my file.csv", "\u00e4.csv", "50%.csv", "a%20b.csv", "a+b&c.csv"])
def test_letters_that_no_request_may_hold(reg: Registry, web: Web, name: str) -> None:
    """They are encoded for the request; the file has its name as people write it, and the record a plain URL."""
    web.files["/" + quote(unquote(name), safe="+&")] = b"one"
    placed = reg.resolve_inputs({"x": f"{web.url}/{name}"}, "in")["x"]
    assert [file.name for file in placed.files] == [unquote(name)]
    assert placed.uris[0].isascii()
    made = reg.register("m", f"{web.url}/{name}")
    assert [file.path for file in made.files] == [unquote(name)]


def test_a_scheme_in_capitals(reg: Registry, web: Web) -> None:
    """A scheme means the same however it is written, as an input and as a source."""
    web.files["/a.csv"] = b"one"
    url = web.url.replace("http", "HTTP") + "/a.csv"
    assert reg.resolve_inputs({"x": url}, "in")["x"].uris == (web.url + "/a.csv",)
    assert reg.register("m", url).size == 3
    with pytest.raises(NotFound):
        had(reg, "MEMORY://bucket/none.csv", "other")


def test_a_path_that_changed_is_flagged(reg: Registry, tmp_path: Path) -> None:
    """A file of this machine that has other bytes than when an input last read it is told, with both digests."""
    for n, data in enumerate((b"1", b"1", b"2")):
        Path("a.csv").write_bytes(data)
        given = (tmp_path / "a.csv").as_uri() if n else "a.csv"
        with reg.start_run("train", inputs={"x": given}) as run:
            pass
        alerts = [alert.message for alert in reg.run(run.id).alerts]
        assert len(alerts) == (n == 2)
    for data in (b"1", b"2"):
        assert hashlib.sha256(data).hexdigest() in alerts[0]
    assert "'a.csv' have changed" in alerts[0]


def test_a_change_is_flagged(reg: Registry, web: Web, caplog: pytest.LogCaptureFixture) -> None:
    """A run that finds other bytes than the run before says so, in its record and in the log, with both digests."""
    web.files["/a.csv"] = b"one"
    url = web.url + "/a.csv"
    with reg.start_run("first", inputs={"x": url}) as first:
        pass
    with reg.start_run("same", inputs={"x": url}) as same:
        pass
    web.files["/a.csv"] = b"two"
    with caplog.at_level(logging.WARNING), reg.start_run("other", inputs={"x": url}) as other:
        pass
    (had_before,), (has_now,) = reg.run(first.id).inputs, reg.run(other.id).inputs
    assert had_before.tag and has_now.tag and had_before.tag != has_now.tag
    assert [file.digest for file in has_now.files] == ["sha256:" + hashlib.sha256(b"two").hexdigest()]
    assert not reg.run(same.id).alerts
    (alert,) = reg.run(other.id).alerts
    for part in (url, had_before.files[0].digest, has_now.files[0].digest, same.id):
        assert part in alert.message
    assert alert.message in caplog.text
    assert {node.id for node in reg.upstream(other.id if ":" in other.id else f"run:{other.id}").nodes} & {
        f"file:{has_now.files[0].digest}"
    }


def test_this_machine_remembers_without_a_run(
    reg: Registry, web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no run has recorded the URL, what this machine has seen is compared."""
    web.files["/a.csv"] = b"one"
    had(reg, web.url + "/a.csv")
    web.files["/a.csv"] = b"two"
    had(reg, web.url + "/a.csv", "again")
    assert "have changed: this machine before" in caplog.text


def test_another_machine_is_compared_too(reg: Registry, web: Web, tmp_path: Path) -> None:
    """What a run elsewhere has read is in the registry: a machine that sees the URL for the first time flags it."""
    web.files["/a.csv"] = b"one"
    with reg.start_run("here", inputs={"x": web.url + "/a.csv"}):
        pass
    web.files["/a.csv"] = b"two"
    with (
        hub.open("sqlite:///r.db", cache_dir=tmp_path / "elsewhere") as there,
        there.start_run("there", inputs={"x": web.url + "/a.csv"}) as run,
    ):
        pass
    assert len(reg.run(run.id).alerts) == 1


# --- object stores -------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the transfers from object stores."""
    calls: Counter[str] = Counter()
    original = objects._UrlReader.__init__

    def init(self: Any, *args: Any) -> None:
        calls["get"] += 1
        original(self, *args)

    monkeypatch.setattr(objects._UrlReader, "__init__", init)
    return calls


def test_s3(reg: Registry, s3_bucket: Any, counted: Counter[str]) -> None:
    """Objects are fetched once each, wildcards several at a time, under sorted names; a new object is fetched anew."""
    s3_bucket.put("d/a.csv", b"1")
    s3_bucket.put("d/b.csv", b"22")
    s3_bucket.put("d/c.txt", b"333")
    url = f"{s3_bucket.url}/d/*.csv"
    assert had(reg, url) == [b"1", b"22"]
    assert had(reg, url, "again") == [b"1", b"22"]
    assert counted["get"] == 2
    s3_bucket.put("d/b.csv", b"2x")
    with reg.start_run("train", inputs={"x": url}) as run:
        pass
    assert counted["get"] == 3
    assert [one.uri.rpartition("/")[2] for one in reg.run(run.id).inputs] == ["a.csv", "b.csv"]
    assert all(one.tag and one.tag.startswith("etag:") for one in reg.run(run.id).inputs)
    with pytest.raises(NotFound, match="Nothing fits"):
        had(reg, f"{s3_bucket.url}/d/*.parquet", "none")


def test_wildcards_see_what_is_there_now(reg: Registry, s3_bucket: Any) -> None:
    """What came since the last look is found."""
    url = f"{s3_bucket.url}/w/*/x.csv"
    s3_bucket.put("w/1/y.csv", b"another")
    s3_bucket.put("w/2/x.csv", b"22")
    assert had(reg, url) == [b"22"]
    s3_bucket.put("w/1/x.csv", b"1")
    assert had(reg, url, "again", keep="full") == [b"1", b"22"]


def test_options_are_for_sources_where_the_registry_needs_none(
    tmp_path: Path, s3_bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """storage_options of a registry on this disk are for the stores that files come from."""
    s3_bucket.put("d/a.csv", b"1")
    options = {"endpoint_url": s3_bucket.endpoint, "key": "testing", "secret": "testing-secret"}
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with hub.open("sqlite:///o.db", cache_dir=tmp_path / "c", storage_options=options) as reg:
        assert reg.register("m", f"{s3_bucket.url}/d/a.csv").size == 1
        assert had(reg, f"{s3_bucket.url}/d/a.csv") == [b"1"]
        reg.configure(external=[s3_bucket.url])
        assert reg.register("m", f"{s3_bucket.url}/d/a.csv", copy=False).size == 1
    with hub.open("sqlite:///p.db", artifacts="memory://x", storage_options={"a": 1}) as reg:
        assert reg._core.options_of("s3://bucket/a") == {"a": 1}
    with hub.open("sqlite:///q.db", artifacts=f"{s3_bucket.url}/q", storage_options=options) as reg:
        assert reg._core.options_of("s3://bucket/a") == options
        assert reg._core.options_of("gs://bucket/a") == {}


def test_an_object_that_changes_while_it_is_read(
    reg: Registry, s3_bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read again when its writer was quicker; when that goes on, the error says so and nothing is there."""
    changes = [b"second"]
    s3_bucket.put("d/a.csv", b"first!")
    original = objects._UrlReader.finish

    def finish(self: Any) -> None:
        original(self)
        if changes:
            s3_bucket.put("d/a.csv", changes.pop(0))

    monkeypatch.setattr(objects._UrlReader, "finish", finish)
    assert had(reg, f"{s3_bucket.url}/d/a.csv") == [b"second"]
    changes += [b"third!", b"fourth", b"fifth!"]
    s3_bucket.put("d/a.csv", b"zeroth")
    with pytest.raises(Conflict, match="changed while it was read"):
        had(reg, f"{s3_bucket.url}/d/a.csv", "never")
    assert not Path("never").exists()


def test_threads_share(reg: Registry, web: Web) -> None:
    """Many at once on one URL all get whole bytes, whoever writes the note last."""
    web.files["/a.csv"] = os.urandom(300_000)

    def once(n: int) -> None:
        assert had(reg, web.url + "/a.csv", f"in{n}") == [web.files["/a.csv"]]

    at_once(8, once)


# --- transfers that break off


def test_a_broken_transfer_goes_on(reg: Registry, web: Web) -> None:
    """Answers that are cut anywhere are gone on with from there: each byte is asked for once, whatever was cut."""
    data = web.files["/a.bin"] = os.urandom(5_000_000)
    web.cuts = [0, 1, 70_000, 1_000_000, 0, 1_234_567]
    assert had(reg, web.url + "/a.bin") == [data]
    assert sum(count for _, count in web.sent) == len(data)
    assert [start for start, _ in web.sent] == [0, 0, 1, 70_001, 1_070_001, 1_070_001, 2_304_568]


def test_a_server_without_ranges_is_read_again(reg: Registry, web: Web) -> None:
    """The bytes that are here already are passed over."""
    web.ranges = False
    data = web.files["/a.bin"] = os.urandom(3_000_000)
    web.cuts = [10, 2_000_000, 2_999_999]
    assert had(reg, web.url + "/a.bin") == [data]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize("size", [500_000, 700_000, 300_000])
def test_no_mixture_of_two_states(reg: Registry, web: Web, ranges: bool, tags: bool, size: int) -> None:
    """A file that is another one when the transfer goes on is fetched from its start."""
    web.files["/a.bin"] = os.urandom(500_000)
    new = os.urandom(size)
    web.ranges, web.etags, web.cuts = ranges, tags, [200_000]
    web.then = lambda: web.files.update({"/a.bin": new})
    assert had(reg, web.url + "/a.bin") == [new]


@pytest.mark.parametrize("tags", [True, False])
def test_a_server_that_recovers(reg: Registry, web: Web, tags: bool) -> None:
    """Errors that pass are waited for; those that do not are told at once."""
    web.files["/a.bin"], web.etags = b"one", tags
    web.errors = [500, 503, 429]
    assert had(reg, web.url + "/a.bin") == [b"one"]
    begun = time.monotonic()
    for code, error in ((404, NotFound), (403, CredentialsRefused), (400, StoreUnavailable)):
        web.files["/b.bin"], web.errors = b"two", [code]
        with pytest.raises(error):
            had(reg, web.url + "/b.bin", "other")
        assert not web.errors
    assert time.monotonic() - begun < 1.5
    web.errors = [500] * 100
    with pytest.raises(StoreUnavailable, match="HTTP 500"):
        had(reg, web.url + "/b.bin", "other")
    assert not Path("other").exists()


@pytest.mark.parametrize("changed", [False, True])
def test_the_next_one_goes_on(
    reg: Registry, web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: bool
) -> None:
    """What came before the network went away is not fetched again, unless the file is another one by now."""
    monkeypatch.setattr(cache, "_RESUMED", 1000)
    data = web.files["/a.bin"] = os.urandom(400_000)
    web.cuts = [300_000] + [0] * 100
    with pytest.raises(StoreUnavailable, match="Cannot read from"):
        had(reg, web.url + "/a.bin")
    assert not Path("in").exists()
    assert reg._core.cache().info().unfinished == 300_000
    web.cuts, web.sent = [], []
    if changed:
        data = web.files["/a.bin"] = os.urandom(400_000)
    assert had(reg, web.url + "/a.bin") == [data]
    assert (web.sent[-1] == (300_000, 100_000)) is not changed
    assert reg._core.cache().info().unfinished == (
        300_000 if changed else 0
    )  # for a day: it may be what comes back


def test_an_object_goes_on_as_well(
    reg: Registry, s3_bucket: Any, monkeypatch: pytest.MonkeyPatch, counted: Counter[str]
) -> None:
    """Likewise from an object store."""
    monkeypatch.setattr(cache, "_RESUMED", 1000)
    monkeypatch.setattr(readers, "_RANGE", 100_000)
    data = os.urandom(1_000_000)
    s3_bucket.put("d/a.bin", data)
    original, left = objects._UrlReader.readinto, [400_000]

    def readinto(self: Any, view: memoryview) -> int:
        if left and left[0] <= 0:
            raise StoreUnavailable("gone")
        got = original(self, view[:200_000])
        if left:
            left[0] -= got
        return got

    monkeypatch.setattr(objects._UrlReader, "readinto", readinto)
    with pytest.raises(StoreUnavailable, match="gone"):
        had(reg, f"{s3_bucket.url}/d/a.bin")
    left.clear()
    begun: list[int] = []
    ranges = readers.Ranges.__init__

    def init(self: Any, *args: Any, start: int = 0, **rest: Any) -> None:
        begun.append(start)
        ranges(self, *args, start=start, **rest)

    monkeypatch.setattr(readers.Ranges, "__init__", init)
    assert had(reg, f"{s3_bucket.url}/d/a.bin") == [data]
    assert begun == [400_000]


def test_one_of_many_fetches(reg: Registry, web: Web) -> None:
    """Of many that want the same URL at once one transfers it, and the others ask whether it is the same."""
    data = web.files["/a.bin"] = os.urandom(3_000_000)

    def once(n: int) -> None:
        assert had(reg, web.url + "/a.bin", f"in{n}") == [data]

    at_once(8, once)
    assert web.asked == {"200": 1, "304": 7}


def test_an_error_is_never_taken_for_the_end(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads on after an error, or after Ctrl-C, has the error again or the right bytes, and no short file."""
    data = web.files["/a.bin"] = os.urandom(300_000)
    web.cuts = [100_000, 0, 0, 0]
    reader, view = WebReader(web.url + "/a.bin"), memoryview(bytearray(300_000))
    monkeypatch.setattr(time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        while True:
            reader.readinto(view[:1000])
    monkeypatch.undo()
    assert reader.readinto(view[reader._at :]) == 300_000 - 100_000
    assert bytes(view[100_000:]) == data[100_000:]
    reader.close()
    assert reader.readinto(view) == 0

    monkeypatch.setattr(patience, "_PATIENCE", 0.3)
    web.cuts = [100_000] + [0] * 50
    reader = WebReader(web.url + "/a.bin")
    assert reader.readinto(view) == 100_000
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            reader.readinto(view)


def test_a_person_sees_a_bar(reg: Registry, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the size, also when the transfer breaks off and when the next one goes on with it."""
    monkeypatch.setattr(cache, "_RESUMED", 1000)
    web.files["/a.bin"] = os.urandom(400_000)
    bars = counted_bars(monkeypatch)
    web.cuts = [100_000, 200_000] + [0] * 100
    with pytest.raises(StoreUnavailable):
        had(reg, web.url + "/a.bin?token=secret")
    web.cuts = []
    had(reg, web.url + "/a.bin?token=secret")
    assert [(total, sum(counts)) for total, _, counts in bars] == [
        (400_000, 300_000),
        (400_000, 400_000),
        (400_000, 400_000),  # into the inputs
    ]
    assert not any("secret" in label for _, label, _ in bars)


def test_more_inputs_than_the_cache_may_hold(
    reg: Registry, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wanted together stays until all of it is placed, on word of a lease also for others; then the bound holds."""
    monkeypatch.setenv("MODELHUB_CACHE_SIZE", "10kB")
    sizes = {"a": 6000, "b": 7000, "c": 8000}
    for name, size in sizes.items():
        reg.register(name, {"m.bin": os.urandom(size)})
        web.files[f"/{name}.bin"] = os.urandom(size)
    uris = [f"model://{name}/v1/m.bin" for name in sizes] + [f"{web.url}/{name}.bin" for name in sizes]
    pruned = []
    placed_before = place.into

    def placing(*given: Any, **options: Any) -> Any:
        pruned.append(cache.Cache(tmp_path / "cache").prune(0))  # as another process may
        return placed_before(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(place, "into", placing)
        placed = reg.resolve_inputs({f"in{n}": uri for n, uri in enumerate(uris)}, "in")
    assert [path.path.stat().st_size for one in placed.values() for path in one.files] == [
        *sizes.values()
    ] * 2
    assert pruned == [0] * 6
    info = reg._core.cache().info()
    assert info.size <= 10_000
    assert cache.Cache(tmp_path / "cache").prune(0) == info.size  # nothing is held any more
