"""Versions whose bytes stay where they are: only where that is allowed, and always checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from attrs import evolve

import modelhub_sdk as hub
from modelhub_sdk import Registry, filesystem, garbage
from modelhub_sdk.blobs import cache, elsewhere
from modelhub_sdk.domain import external
from modelhub_sdk.errors import (
    DigestMismatch,
    InvalidDocument,
    InvalidName,
    InvalidURI,
    ModelHubError,
    NotAllowed,
    NotFound,
    Purged,
    StoreUnavailable,
)
from modelhub_sdk.views import html, text
from tests.support.homes import ALL, Home, check_sound
from tests.support.web import Quiet, serving

MakeHome = Callable[[str], Home]


@pytest.fixture
def reg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.chdir(tmp_path)
    with hub.open("sqlite:///r.db", cache_dir=tmp_path / "cache") as found:
        yield found


def has_blob(reg: Registry, data: bytes) -> bool:
    return reg._core.artifacts().has("sha256:" + hashlib.sha256(data).hexdigest())


# --- what may be named -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        ("s3://bucket/a/m.bin", "s3://bucket/a"),
        ("s3://bucket/a/m.bin", "s3://bucket/a/"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("S3://bucket/a/m.bin", "s3://bucket"),
        ("https://Example.ORG/models/m.bin", "https://example.org/models"),
        ("https://example.org/m%6Fdels/m.bin", "https://example.org/models"),
        ("abfs://box@account.dfs.core.windows.net/a/m.bin", "abfs://box@account.dfs.core.windows.net/a"),
    ],
)
def test_what_lies_below_a_prefix(url: str, prefix: str) -> None:
    """Whole parts of the path count, and the case of scheme and host does not."""
    assert external.is_allowed(url, [prefix])


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/ab/m.bin", "s3://bucket/b/m.bin", "s3://bucket", "s3://bucket2/a/m.bin", "gs://bucket/a/m.bin",
        "https://bucket/a/m.bin", "s3://BUCKET/a/m.bin", "s3://bucket/A/m.bin",
    ],
)  # fmt: skip
def test_what_does_not(url: str) -> None:
    """A prefix is no beginning of a word: s3://bucket/a does not allow s3://bucket/ab."""
    assert not external.is_allowed(url, ["s3://bucket/a"])


HOSTILE = [
    "file:///etc/passwd", "FILE:///etc/passwd", "local:///etc/passwd", "memory://a/b", "/etc/passwd", "etc", "",
    "s3://bucket/a/../b", "s3://bucket/a/..", "s3://bucket/a/%2e%2e/b", "s3://bucket/a/%252e%252e/b", "s3://bucket/a/./b",
    "s3://bucket/a//b", "s3://bucket//a", "s3://user@bucket/a/b", "s3://me:hunter2@bucket/a/b", "s3://bucket/a/b?x=hunter2",
    "s3://bucket/a/b#x", "s3://bucket/a/*", "s3://bucket/a/[b]", "s3://bucket/a/b\n", "s3://bucket/a/\x00", "s3:///a/b",
    "simplecache::s3://bucket/a/b", "zip://x::s3://bucket/a/b", "filecache://bucket/a/b", "https://bucket/a/..%2fb",
    "https://bucket/a%2f..%2fb", "https://bucket/a/b%00", "https://bucket\\@evil/a/b", "https://bucket/a\\..\\b",
    "https://bucket/a/..;/b", "https://bucket/a/%2e%2e;x=1/b", "https://bucket/a/%c0%ae%c0%ae/b", "https://bucket/a/%25c0%25ae/b",
    "https://me:hun/hunter2@bucket/a/b", "https://me:hun?hunter2@bucket/a/b", "https://bucket/a/b#access_token=hunter2",
    "s3://bucket/a/" + "x" * 2000, "s3://bucket/a/%2E%2E", "javascript:alert(1)", "s3:bucket/a", "s3:/bucket/a",
]  # fmt: skip


@pytest.mark.parametrize("url", HOSTILE)
def test_hostile_urls(url: str, reg: Registry) -> None:
    """What could mean another place is refused before anything is asked, and nothing secret is repeated."""
    reg.configure(external=["s3://bucket/a", "https://bucket/a"])
    with pytest.raises((InvalidURI, InvalidDocument, NotAllowed, InvalidName)) as error:
        reg.register("m", {"m.bin": url}, copy=False)
    assert "hunter2" not in str(error.value) + repr(error.value)
    assert not reg.models()
    with pytest.raises((InvalidDocument, InvalidName)):
        reg.configure(external=[url])


def test_a_prefix_of_older_settings() -> None:
    """One that no rule would take any more allows nothing, takes nothing away from the others, and is not quoted."""
    prefixes = ["https://me:hun/hunter2@bucket/a", "s3://bucket/a"]
    assert external.is_allowed("s3://bucket/a/b", prefixes)
    with pytest.raises(NotAllowed) as error:
        external.check("https://bucket/a/b", prefixes)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("mark", ["?X-Amz-Signature=hunter2", "#hunter2"])
def test_a_query_is_called_one(mark: str) -> None:
    """The message says that a query is not allowed, and not that the URL is none."""
    with pytest.raises(InvalidURI, match="query") as error:
        external.parts("https://bucket/a/b" + mark)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://me:pw@host/a?b#c", "https://host/a"),
        ("https://me:p/w@host/a", "https://***"),
        ("https://me:p?w@host/a", "https://***"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
        ("https://[::1]:80/a@b", "https://[::1]:80/a@b"),
        ("abfss://box@account/a", "abfss://box@account/a"),
        ("abfss://me:pw@account/a", "abfss://account/a"),
        ("s3://bucket", "s3://bucket"),
        ("no url?x", "no url?x"),
    ],
)
def test_how_a_url_is_shown(url: str, told: str) -> None:
    """A message shows a URL without what may be secret in it."""
    assert external.plain(url) == told


def test_files_of_this_machine_are_copied(reg: Registry, tmp_path: Path) -> None:
    """Paths, bytes and folders cannot be kept by reference; the message says what to do."""
    reg.configure(external=["s3://bucket/"])
    (tmp_path / "m.bin").write_bytes(b"x")
    for files in ("m.bin", tmp_path / "m.bin", {"m.bin": b"x"}, [tmp_path], {}, [], None, 7):
        with pytest.raises(InvalidDocument, match="copy=False|no file"):
            reg.register("m", files, copy=False)
    with pytest.raises(InvalidDocument, match="ignore"):
        reg.register("m", "s3://bucket/m.bin", copy=False, ignore=["*.tmp"])


def test_nothing_is_allowed_at_first(reg: Registry) -> None:
    """Without `configure(external=)` no URL may be named, and none is asked."""
    with pytest.raises(NotAllowed, match=r"allowed prefixes: none"):
        reg.register("m", "s3://bucket/m.bin", copy=False)


# --- on an object store ----------------------------------------------------------------------------------


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ALL)
def test_by_reference_on_every_backend(
    kind: str, make_home: MakeHome, s3_bucket: Any, tmp_path: Path
) -> None:
    """It resolves, opens, compares, verifies, moves and is given up like any version, and is never stored or deleted."""
    big = os.urandom(20_000_000)
    s3_bucket.put("lake/m/big.bin", big)
    s3_bucket.put("lake/m/sub/c.json", b"{}")
    url = f"{s3_bucket.url}/lake/m"
    with make_home(kind).opened() as reg:
        reg.configure(external=[f"{s3_bucket.url}/lake"])
        made = reg.register("m", url + "/", copy=False, metrics={"auc": 0.5})
        assert [file.path for file in made.files] == ["big.bin", "sub/c.json"]
        assert made.size == len(big) + 2
        assert made.external == {"big.bin": f"{url}/big.bin", "sub/c.json": f"{url}/sub/c.json"}
        assert reg.version("m/v1") == made
        assert f"{url}/sub/c.json" in text.render(made)
        assert f"{url}/sub/c.json" in html.render(made)
        assert "by reference" in reg.audit("m/v1")[0].detail
        with hub.open("memory://") as compared:
            copied = compared.register("m", {"big.bin": big, "sub/c.json": b"{}"})
            assert copied.digest == made.digest
        assert not has_blob(reg, big)
        found = reg.resolve("m/v1", into=tmp_path / "in")
        assert Path(found.path, "big.bin").read_bytes() == big
        assert reg.verify().ok, reg.verify().problems
        stats = reg.stats()
        assert (stats.missing, stats.unneeded) == (0, 0)
        reg.collect_garbage(dry_run=False)
        report = reg.copy_to(tmp_path / "copy")
        assert report.missing == 0
        with hub.open(tmp_path / "copy", cache_dir=tmp_path / "c2") as copy:
            assert Path(copy.resolve("m/v1").path, "big.bin").read_bytes() == big
            check_sound(copy)
        arrived = reg.copy_to(tmp_path / "other", ref="m/v1")
        with hub.open(tmp_path / "other", cache_dir=tmp_path / "c3") as other:
            assert has_blob(other, big)  # a version that goes elsewhere takes its bytes along
            assert other.version("m/v1") == arrived
            assert not arrived.external
        reg.purge("m/v1", "space", force=True)
        with pytest.raises(Purged, match="space"):
            reg.resolve("m/v1")
        assert s3_bucket.get("lake/m/big.bin") == big
        again = reg.register("m", url + "/", copy=False)
        assert Path(reg.resolve(again).path, "sub/c.json").read_bytes() == b"{}"
        check_sound(reg)


@pytest.fixture
def lake(reg: Registry, s3_bucket: Any) -> Any:
    s3_bucket.put("lake/m.bin", b"weights")
    reg.configure(external=[f"{s3_bucket.url}/lake"])
    return s3_bucket


def test_bytes_that_changed(reg: Registry, lake: Any, tmp_path: Path) -> None:
    """Other bytes at the URL are never handed out: the error names it, `verify` finds it, and the target stays empty."""
    reg.register("m", f"{lake.url}/lake/m.bin", copy=False)
    lake.put("lake/m.bin", b"weightZ")
    with pytest.raises(DigestMismatch, match=r"lake/m\.bin' have changed"):
        reg.resolve("m/v1", into=tmp_path / "in")
    assert not (tmp_path / "in").exists()
    assert "have changed" in reg.verify().problems[0]
    lake.put("lake/m.bin", b"shorter or longer")
    with pytest.raises(DigestMismatch, match="have changed"):
        reg.resolve("m/v1")
    lake.put("lake/m.bin", b"weights")
    assert Path(reg.resolve("m/v1", into=tmp_path / "in").path, "m.bin").read_bytes() == b"weights"


def test_parts_of_what_may_have_changed(reg: Registry, lake: Any) -> None:
    """A part cannot be checked, so none is read of a reference but of a version that the bucket keeps."""
    store = reg._core.artifacts()
    digest = "sha256:" + hashlib.sha256(b"weights").hexdigest()
    reg.register("m", f"{lake.url}/lake/m.bin", copy=False)
    lake.put("lake/m.bin", b"weightZ")
    assert not store.in_parts(digest)
    with pytest.raises(NotAllowed, match="by reference"):
        store.read_range(digest, 0, 3)
    with pytest.raises(DigestMismatch, match=r"lake/m\.bin' have changed"):
        store.read(digest)
    lake.put("lake/m.bin", b"weights")
    assert store.read(digest) == b"weights"
    own = store.put_bytes(b"our own")
    assert store.in_parts(own)


def test_a_file_system_reads_no_part_of_what_may_have_changed(
    reg: Registry, lake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that seek get right bytes or an error, never some of the new ones."""
    monkeypatch.setattr(filesystem, "WHOLE", 2)
    reg.register("m", f"{lake.url}/lake/m.bin", copy=False)
    fs = fsspec.filesystem("model", registry=reg)

    def sought() -> bytes:
        with fs.open("m/v1/m.bin") as file:
            file.seek(2)
            return bytes(file.read(3))

    lake.put("lake/m.bin", b"weightZ")
    for part in (sought, lambda: fs.cat_file("m/v1/m.bin", 2, 5), lambda: fs.cat_file("m/v1/m.bin")):
        with pytest.raises(DigestMismatch, match="have changed"):
            part()
    lake.put("lake/m.bin", b"weights")
    assert sought() == fs.cat_file("m/v1/m.bin", 2, 5) == b"igh"


def test_the_same_bytes_at_two_places(reg: Registry, lake: Any, tmp_path: Path) -> None:
    """When one of them is gone or has other bytes, the other one is read; nothing of the first is left."""
    for name in ("a", "b"):
        lake.put(f"lake/{name}.bin", b"weights")
        reg.register("m", f"{lake.url}/lake/{name}.bin", copy=False)
    digest = "sha256:" + hashlib.sha256(b"weights").hexdigest()
    store = reg._core.artifacts()
    for bad, good in (("a", "b"), ("b", "a")):
        for data in (b"WEIGHTS", b"less", None):
            lake.delete(f"lake/{bad}.bin") if data is None else lake.put(f"lake/{bad}.bin", data)
            done: list[int] = []
            store.fetch(digest, 7, tmp_path / f"{bad}{data!r}", progress=done.append)
            assert (tmp_path / f"{bad}{data!r}").read_bytes() == store.read(digest) == b"weights"
            assert sum(done) == 7
            assert store.verify(digest, 7) is None
        lake.put(f"lake/{bad}.bin", b"weights")
        assert lake.get(f"lake/{good}.bin") == b"weights"
    for name in ("a", "b"):
        lake.put(f"lake/{name}.bin", b"others!")
    with pytest.raises(DigestMismatch, match=r"lake/b\.bin' have changed"):
        reg.resolve("m/v1")


def test_markers_of_folders(reg: Registry, lake: Any) -> None:
    """An empty object whose name ends with a slash is no file."""
    for key in ("lake/d/", "lake/d/sub/"):
        lake.put(key, b"")
    with pytest.raises(NotFound, match="nothing below"):
        reg.register("m", f"{lake.url}/lake/d/", copy=False)
    lake.put("lake/d/sub/x.bin", b"1")  # and what came since is seen
    made = reg.register("m", f"{lake.url.replace('s3', 'S3')}/lake/d/", copy=False)
    assert [file.path for file in made.files] == ["sub/x.bin"]


def test_bytes_that_are_gone(reg: Registry, lake: Any) -> None:
    """An object that vanished is named, with what to do; a cached version still resolves."""
    reg.register("m", f"{lake.url}/lake/m.bin", copy=False)
    lake.delete("lake/m.bin")
    with pytest.raises(NotFound, match="by reference"):
        reg.resolve("m/v1")
    assert len(reg.verify().problems) == 1
    lake.put("lake/m.bin", b"weights")
    reg.resolve("m/v1")
    lake.delete("lake/m.bin")
    assert reg.resolve("m/v1").files == ("m.bin",)


def test_versions_of_a_bucket(
    reg: Registry, lake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the bucket keeps versions, the one that was registered is read, whatever came later."""
    import boto3

    client = boto3.client("s3", endpoint_url=lake.endpoint, region_name="us-east-1")
    client.put_bucket_versioning(Bucket=lake.name, VersioningConfiguration={"Status": "Enabled"})
    lake.put("lake/m.bin", b"first")
    first = reg.register("m", f"{lake.url}/lake/m.bin", copy=False)
    lake.put("lake/m.bin", b"second, and longer")
    second = reg.register("m", f"{lake.url}/lake/m.bin", copy=False)
    assert Path(reg.resolve(first).path, "m.bin").read_bytes() == b"first"
    assert Path(reg.resolve(second).path, "m.bin").read_bytes() == b"second, and longer"
    assert reg.verify().ok, reg.verify().problems
    store = reg._core.artifacts()
    digest = first.files[0].digest
    assert store.in_parts(digest)
    assert (store.read_range(digest, 1, 3), store.read(digest)) == (b"ir", b"first")
    lake.put("lake/z.bin", b"first")
    one = elsewhere.Reference(f"{lake.url}/lake/z.bin")
    known = store.elsewhere
    with monkeypatch.context() as patch:  # the kept version is lost, and what else there is may be anything
        gone = evolve(known(digest)[0], url=f"{lake.url}/lake/gone.bin")
        patch.setattr(store, "elsewhere", lambda _: [one, gone])
        with pytest.raises(NotFound):
            store.read_range(digest, 1, 3)
        assert store.read(digest) == b"first"
    assert store.verify(digest) is None
    reg.export_bundle(first, tmp_path / "first.zip")
    with hub.open("memory://") as other:
        assert reg.copy_to(other, ref=first).size == 5


def test_prefixes_are_looked_at_again(reg: Registry, lake: Any) -> None:
    """A prefix that is allowed no more is not read any more; the error says which are."""
    reg.register("m", f"{lake.url}/lake/m.bin", copy=False)
    reg.configure(external=["s3://elsewhere/"])
    with pytest.raises(NotAllowed, match="s3://elsewhere/"):
        reg.resolve("m/v1")
    assert "may not be named" in reg.verify().problems[0]
    reg.configure(external=[f"{lake.url}/lake"])
    assert reg.resolve("m/v1").files == ("m.bin",)


def test_an_own_copy_wins(reg: Registry, lake: Any) -> None:
    """The same bytes in the store are read from there, and are not deleted while a version names them."""
    reg.register("m", f"{lake.url}/lake/m.bin", copy=False)
    reg.register("n", {"x": b"weights"})
    lake.delete("lake/m.bin")
    assert reg.resolve("m/v1").files == ("m.bin",)
    reg.purge("n/v1", "space", force=True)
    hub.cache.clear()
    reg._core.cache().clear()
    assert Path(reg.resolve("m/v1").path, "m.bin").read_bytes() == b"weights"


def test_opened_as_a_file(reg: Registry, lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec opens it, also in ranges, as any file of a version."""
    data = os.urandom(3_000_000)
    lake.put("lake/big.bin", data)
    reg.register("m", f"{lake.url}/lake/big.bin", copy=False)
    fs = fsspec.filesystem("model", registry=reg, skip_instance_cache=True)
    assert fs.cat_file("m/v1/big.bin", start=1000, end=2000) == data[1000:2000]
    with fs.open("m/v1/big.bin") as file:
        assert file.read() == data


def test_keys_and_runs(reg: Registry, lake: Any) -> None:
    """An idempotency key covers references, and a run may register them."""
    url = f"{lake.url}/lake/m.bin"
    one = reg.register("m", url, copy=False, idempotency_key="k")
    assert reg.register("m", url, copy=False, idempotency_key="k") == one
    with reg.start_run("train") as run:
        made = run.register("m", {"weights.bin": url}, copy=False)
    assert [file.path for file in made.files] == ["weights.bin"]
    assert reg.version(made).run_id == run.id


def test_nothing_below(reg: Registry, lake: Any) -> None:
    """A folder without objects, or an object that is not there, is told."""
    for url in (f"{lake.url}/lake/none/", f"{lake.url}/lake/none.bin"):
        with pytest.raises(NotFound):
            reg.register("m", url, copy=False)
    with pytest.raises(ModelHubError):
        reg.register("m", [f"{lake.url}/lake/m.bin", f"{lake.url}/other/m.bin"], copy=False)
    assert not reg.models()


# --- on the web ------------------------------------------------------------------------------------------


class Web:
    """A web server with ranges or without, and one redirect."""

    def __init__(self) -> None:
        self.data = os.urandom(300_000)
        self.ranges = True
        self.cuts: list[int] = []  # how many bytes each of the next answers gives
        self.leads_to = self.url = ""
        web = self

        class Handler(Quiet):
            def answer(self) -> None:
                if self.path == "/files/moved.bin":
                    self.send_response(302)
                    self.send_header("Location", web.leads_to)
                    self.end_headers()
                    return
                start = 0
                if web.ranges and "Range" in self.headers:
                    start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                if start >= len(web.data):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(web.data) - 1}/{len(web.data)}")
                self.send_header("Content-Length", str(len(web.data) - start))
                self.end_headers()
                count = web.cuts.pop(0) if web.cuts else len(web.data)
                self.wfile.write(web.data[start : start + count])
                self.close_connection = True

        self.handler = Handler


@pytest.fixture
def web() -> Iterator[Web]:
    found = Web()
    with serving(found.handler) as found.url:
        yield found


@pytest.mark.parametrize("ranges", [True, False])
def test_on_the_web(ranges: bool, reg: Registry, web: Web) -> None:
    """Bytes on a web server are read and checked, whether it knows ranges or not."""
    web.ranges = ranges
    reg.configure(external=[web.url + "/files"])
    reg.register("m", web.url + "/files/m.bin", copy=False)
    assert reg._core.artifacts().read("sha256:" + hashlib.sha256(web.data).hexdigest()) == web.data
    assert Path(reg.resolve("m/v1").path, "m.bin").read_bytes() == web.data
    assert reg.verify().ok
    web.data = web.data[:-1]
    assert "have changed" in reg.verify().problems[0]


@pytest.mark.parametrize("many", [False, True])
def test_a_collector_sees_references_that_come_meanwhile(many: bool, reg: Registry, web: Web) -> None:
    """An own copy of bytes is needed as soon as a version names them elsewhere, however its files are listed."""
    reg.configure(external=[web.url + "/files"])
    web.data = b"weights"
    own = reg._core.artifacts().put_bytes(web.data)
    with reg._core.view() as view:
        before = garbage.Needs.of(reg._core, view, [own])
    assert own not in before.digests
    names = [f"{n}.bin" for n in range(1001 if many else 1)]
    reg.register("m", {name: f"{web.url}/files/{name}" for name in names}, copy=False)
    with reg._core.view() as view:
        assert own in before.now(reg._core, view)
        assert own in garbage.needed(reg._core, view, [own])


@pytest.mark.parametrize("ranges", [True, False])
def test_the_web_breaks_off(ranges: bool, reg: Registry, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is checked by its digest goes on where it was; what nobody knows yet must come in one piece."""
    web.ranges = ranges
    reg.configure(external=[web.url + "/files"])
    web.cuts = [100_000]
    with pytest.raises(StoreUnavailable, match="broke off"):
        reg.register("m", web.url + "/files/m.bin", copy=False)
    assert not reg.models()
    reg.register("m", web.url + "/files/m.bin", copy=False)
    web.cuts = [0, 100_000, 150_000]
    assert Path(reg.resolve("m/v1").path, "m.bin").read_bytes() == web.data

    reg._core.cache().clear()
    monkeypatch.setattr(cache, "_RESUMED", 1000)
    with monkeypatch.context() as patch:  # interrupted when all has come
        patch.setattr(cache.Cache, "_sealed", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            reg.resolve("m/v1")
    assert reg._core.cache().info().unfinished == len(web.data)
    assert Path(reg.resolve("m/v1").path, "m.bin").read_bytes() == web.data


def test_redirects_stay_inside(reg: Registry, web: Web) -> None:
    """A server that is allowed cannot lead to one that is not."""
    reg.configure(external=[web.url + "/files"])
    web.leads_to = web.url + "/files/m.bin?signed=1"
    reg.register("m", web.url + "/files/moved.bin", copy=False)
    assert reg.resolve("m/v1").files == ("moved.bin",)
    reg._core.cache().clear()
    web.leads_to = web.url + "/secret/m.bin"
    with pytest.raises(NotAllowed, match="redirects to"):
        reg.register("m", web.url + "/files/moved.bin", copy=False)
    with pytest.raises(NotAllowed, match="redirects to"):
        reg.resolve("m/v1")


def test_names_on_the_web(reg: Registry, web: Web) -> None:
    """A name is decoded once, as it is for inputs."""
    reg.configure(external=[web.url + "/files"])
    made = reg.register("m", web.url + "/files/my%20model.bin", copy=False)
    assert [file.path for file in made.files] == ["my model.bin"]
    with pytest.raises(InvalidName):
        reg.register("m", web.url + "/files/a%0Ab", copy=True)
