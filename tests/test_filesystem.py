"""model://, dataset:// and datum:// for everything that opens files through fsspec."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modelhub_sdk as hub
from modelhub_sdk import Registry, filesystem
from modelhub_sdk.errors import (
    DigestMismatch,
    InvalidName,
    InvalidURI,
    ModelHubError,
    NoApprovedVersion,
    NotAllowed,
    NotApproved,
    NotFound,
    Purged,
)
from tests.support.s3 import Bucket
from tests.support.s3proxy import S3Proxy

FILES = {"m.bin": b"weights" * 100, "sub/a b#.txt": "naïve\n".encode(), "sub/deep/c.csv": b"x,y\n1,2\n"}


@pytest.fixture
def filled(reg: Registry) -> Iterator[Registry]:
    """A registry in use, with a model of two versions and a dataset."""
    reg.approve(reg.register("churn", FILES))
    reg.register("churn", {"m.bin": b"second"})
    reg.create_dataset_version(
        "clicks/v7", {"p/0.csv": b"a,b\n1,2\n", "p/1.csv": b"a,b\n3,4\n"}, aliases=["prod"]
    )
    with hub.use(reg):
        yield reg


def test_found_by_entry_point() -> None:
    """Installed, the three are known to fsspec, which does not import them before they are used."""
    for name in ("model", "dataset", "datum"):
        assert issubclass(fsspec.get_filesystem_class(name), fsspec.AbstractFileSystem)


def test_open(filled: Registry) -> None:
    """fsspec.open reads a file of a version, as bytes and as text, by number, alias or latest."""
    with fsspec.open("model://churn/latest/m.bin") as file:
        assert file.read() == FILES["m.bin"]
    with fsspec.open("model://churn/v1/sub/a%20b%23.txt", "r", encoding="utf-8") as file:
        assert file.read() == "naïve\n"
    with fsspec.open("dataset://clicks/prod/p/0.csv") as file:
        assert file.readline() == b"a,b\n"
    assert [f.read() for f in _opened("dataset://clicks/v7/p/*.csv")] == [b"a,b\n1,2\n", b"a,b\n3,4\n"]


def _opened(pattern: str) -> list[Any]:
    with fsspec.open_files(pattern) as files:
        return [io.BytesIO(file.read()) for file in files]


def test_listing(filled: Registry) -> None:
    """Models, versions, folders and files are listed as folders and files."""
    fs = fsspec.filesystem("model")
    assert fs.ls("", detail=False) == ["churn"]
    assert fs.ls("churn", detail=False) == fs.ls("model://churn/", detail=False) == ["churn/v1", "churn/v2"]
    assert fs.ls("churn/v1", detail=False) == ["churn/v1/m.bin", "churn/v1/sub"]
    (info,) = [one for one in fs.ls("churn/v1") if one["type"] == "file"]
    assert info["size"] == 700
    assert info["version"] == "model://churn/v1"
    assert info["digest"] == fs.checksum("churn/v1/m.bin") == filled.version("churn/v1").files[0].digest
    assert fs.find("churn/latest") == [
        "churn/latest/m.bin",
        "churn/latest/sub/a b#.txt",
        "churn/latest/sub/deep/c.csv",
    ]
    assert fs.glob("churn/v1/**/*.csv") == ["churn/v1/sub/deep/c.csv"]
    assert [
        fs.isdir("churn/v1/sub"),
        fs.isfile("churn/v1/m.bin"),
        fs.exists("churn/v3"),
        fs.exists("nope/v1/x"),
    ] == [True, True, False, False]
    assert fs.du("churn/v1") == sum(map(len, FILES.values()))
    assert [root for root, _, _ in fs.walk("churn/v1")] == ["churn/v1", "churn/v1/sub", "churn/v1/sub/deep"]
    data = fsspec.filesystem("dataset")
    assert data.ls("", detail=False) == ["clicks"]
    assert data.ls("clicks", detail=False) == ["clicks/v7"]
    assert data.cat("clicks/v7/p/*.csv") == {
        "clicks/v7/p/0.csv": b"a,b\n1,2\n",
        "clicks/v7/p/1.csv": b"a,b\n3,4\n",
    }


def test_datums(reg: Registry, tmp_path: Path) -> None:
    """A datum is a single file, by id or alias."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "t.csv").write_bytes(b"1\n2\n")
    (out / "t.csv.metadata.json").write_text('{"valohai.alias": "table"}')
    reg.ingest(out)
    with hub.use(reg):
        fs = fsspec.filesystem("datum")
        assert fs.ls("", detail=False) == ["table"]
        assert fs.info("table")["size"] == 4
        assert fs.cat("datum://table") == b"1\n2\n"
        with fsspec.open(reg.datum("datum://table").uri) as file:
            assert file.read() == b"1\n2\n"


def test_round_trip_of_names(filled: Registry) -> None:
    """A listed name leads back to the file, as a path and as a URL; stripping is idempotent."""
    fs = fsspec.filesystem("model")
    for name in fs.find("churn/v1"):
        url = fs.unstrip_protocol(name)
        assert fs._strip_protocol(url) == fs._strip_protocol(fs._strip_protocol(url)) == name
        assert fs.cat(name) == fs.cat(url)
        assert filled.resolve(url).files


def test_pandas(filled: Registry) -> None:
    """pandas reads by URL."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.concat(pandas.read_csv(f"dataset://clicks/v7/p/{n}.csv") for n in (0, 1))
    assert frame["b"].tolist() == [2, 4]


def test_pinned_when_opened(filled: Registry) -> None:
    """What is open goes on with its version; the next open of the same instance sees the name where it is."""
    fs = fsspec.filesystem("model")
    with fs.open("churn/latest/m.bin") as file:
        filled.approve("churn/v2")
        assert file.read() == FILES["m.bin"]
    assert fs.cat("churn/latest/m.bin") == b"second"


def test_uses_and_inputs(filled: Registry) -> None:
    """A version is recorded as used once for an instance, and as an input of the run that is on."""
    fs = fsspec.filesystem("model")
    with filled.start_run("score", outputs=None) as run:
        for _ in range(3):
            fs.cat("churn/latest/m.bin")
    assert "model://churn/v1" in [one.uri for one in filled.run(run.id).inputs]
    assert [use.uri for use in filled.lineage("churn/v1").used_by] == ["model://churn/v1"]


def test_the_rules_of_resolve_hold(filled: Registry) -> None:
    """Rejected, purged and missing versions are refused as `resolve` refuses them."""
    fs = fsspec.filesystem("model")
    filled.register("new", {"a": b"1"})
    with pytest.raises(NoApprovedVersion):
        fs.open("new/latest/a")
    filled.set_alias("churn", "champion", 2)
    filled.reject("churn/v2", "overfits")
    with pytest.raises(NotApproved):
        fs.open("churn/champion/m.bin")
    filled.reopen("churn/v2")
    filled.purge("churn/v2", "asked to", force=True)
    with pytest.raises(Purged, match="asked to"):
        fs.open("churn/v2/m.bin")


@pytest.mark.parametrize(
    "path", ["churn/v9/m.bin", "churn/v1/none", "nope/v1/x", "churn/v1/sub/none", "churn/nope/x", "churn/v1/m.bin/x", ""]
)  # fmt: skip
def test_what_is_missing(filled: Registry, path: str) -> None:
    """What is not there is our NotFound and the FileNotFoundError that callers of fsspec wait for."""
    fs = fsspec.filesystem("model")
    for act in (fs.open, fs.cat_file, *((fs.info, fs.ls) if path else ())):
        with pytest.raises((NotFound, IsADirectoryError)) as caught:
            act(path)
        assert isinstance(caught.value, (FileNotFoundError, IsADirectoryError))
        assert isinstance(pickle.loads(pickle.dumps(caught.value)), OSError)
    with pytest.raises(IsADirectoryError):
        fs.open("churn/v1/sub")


def test_rubbish(filled: Registry) -> None:
    """Rubbish is refused by our own errors."""
    fs = fsspec.filesystem("model")
    for path in (
        "churn/../etc/passwd",
        "churn/v1/../../x",
        "\0",
        "CHURN/v1/x",
        "s3://bucket/x",
        "a\nb/v1/x",
        "churn/v1/%00",
    ):
        with pytest.raises((ModelHubError, OSError)) as caught:
            fs.open(path)
        assert isinstance(caught.value, (ModelHubError, IsADirectoryError))
    with pytest.raises(InvalidURI, match="UTF-8"):
        fs.info("model://churn/v1/%ff")
    with pytest.raises(InvalidName, match="registry"):
        fsspec.filesystem("model", registry=7)


def test_writing_is_refused(filled: Registry, tmp_path: Path) -> None:
    """Every way to write says that what is registered never changes, and how to register."""
    fs = fsspec.filesystem("model")
    (tmp_path / "x").write_text("x")
    for act in (
        lambda: fs.open("churn/v1/new", "wb"), lambda: fs.pipe("churn/v1/new", b"x"), lambda: fs.rm("churn/v1", recursive=True),
        lambda: fs.put(str(tmp_path / "x"), "churn/v1/x"), lambda: fs.mkdir("other"), lambda: fs.touch("churn/v1/m.bin"),
        lambda: fs.mv("churn/v1/m.bin", "churn/v1/n.bin"), lambda: fs.cp_file("churn/v1/m.bin", "churn/v1/n.bin"),
        lambda: fs.open("churn/v1/m.bin", "ab"), lambda: fs.delete("churn/v1/m.bin"),
    ):  # fmt: skip
        with pytest.raises(NotAllowed, match="reg.register"):
            act()
    assert fs.cat("churn/v1/m.bin") == FILES["m.bin"]


def test_get(filled: Registry, tmp_path: Path) -> None:
    """`get` copies a file, or a whole version, verified; nothing half-written appears under a name."""
    fs = fsspec.filesystem("model")
    fs.get("churn/v1", str(tmp_path / "all"), recursive=True)
    assert {
        str(p.relative_to(tmp_path / "all")): p.read_bytes()
        for p in (tmp_path / "all").rglob("*")
        if p.is_file()
    } == FILES
    fs.get_file("churn/v1/m.bin", str(tmp_path / "one" / "m.bin"))
    assert (tmp_path / "one" / "m.bin").read_bytes() == FILES["m.bin"]
    assert os.listdir(tmp_path / "one") == ["m.bin"]
    mapper = fsspec.get_mapper("dataset://clicks/v7")
    assert mapper["p/1.csv"] == b"a,b\n3,4\n"
    assert sorted(mapper) == ["p/0.csv", "p/1.csv"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(start=st.none() | st.integers(-900, 900), end=st.none() | st.integers(-900, 900))
def test_ranges_are_slices(filled: Registry, start: int | None, end: int | None) -> None:
    """Any range of a file is the same slice of its bytes."""
    fs = fsspec.filesystem("model")
    assert fs.cat_file("churn/v1/m.bin", start, end) == FILES["m.bin"][start:end]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as large: nothing is fetched whole."""
    monkeypatch.setattr(filesystem, "WHOLE", -1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(start=st.none() | st.integers(-900, 900), end=st.none() | st.integers(-900, 900))
def test_ranges_of_large_files_are_slices(
    filled: Registry, large: None, start: int | None, end: int | None
) -> None:
    """So it is for files of which only ranges are fetched."""
    fs = fsspec.filesystem("model")
    assert fs.cat_file("churn/v1/m.bin", start, end) == FILES["m.bin"][start:end]
    with fs.open("churn/v1/m.bin", block_size=64) as file:
        first, last, _ = slice(start, end).indices(700)
        file.seek(first)
        assert file.read(max(0, last - first)) == FILES["m.bin"][start:end]


def test_a_large_file_is_a_file(filled: Registry, large: None) -> None:
    """It seeks, reads into buffers and lines, pickles with its place, and stays with its version."""
    fs = fsspec.filesystem("model")
    with fs.open("churn/latest/m.bin", block_size=64) as file:
        assert file.read(7) == b"weights"
        again = pickle.loads(pickle.dumps(file))
        filled.approve("churn/v2")
        assert again.read(7) == file.read(7) == b"weights"
        assert again.path == "churn/v1/m.bin"
        file.seek(-3, io.SEEK_END)
        buffer = bytearray(10)
        assert file.readinto(buffer) == 3
    assert filled._core.cache().info().blobs == 0


def _blob(reg: Registry, ref: str) -> Path:
    digest = reg.version(ref).files[0].digest[7:]
    (found,) = Path(str(reg._core.artifacts().root)).rglob(digest[2:])
    found.chmod(0o644)
    return found


def test_wrong_bytes_are_found(filled: Registry, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was read from start to end is checked, however it was read; a fetched one before the first byte."""
    _blob(filled, "churn/v1").write_bytes(b"W" + FILES["m.bin"][1:])
    fs = fsspec.filesystem("model")
    with pytest.raises(DigestMismatch), fs.open("churn/v1/m.bin", block_size=64) as file:
        while file.read(50):
            pass
    with pytest.raises(DigestMismatch):
        fs.cat_file("churn/v1/m.bin")
    monkeypatch.setattr(filesystem, "WHOLE", 1 << 20)
    with pytest.raises(DigestMismatch):
        fs.open("churn/v1/m.bin")


def _read_elsewhere(packed: bytes, answer: Any) -> None:
    one = pickle.loads(packed)
    with one as file:
        answer.put(file.read())


def test_open_files_travel_to_other_processes(tmp_path: Path) -> None:
    """An OpenFile is pickled, as dask does it, and reads in a process of its own; an instance too."""
    url = f"sqlite:///{tmp_path / 'm.db'}"
    with hub.open(url) as reg:
        reg.register("churn", FILES)
        for given_registry in (url, reg):
            one = fsspec.open("model://churn/v1/m.bin", registry=given_registry)
            context = multiprocessing.get_context("spawn")
            answer = context.Queue()
            process = context.Process(target=_read_elsewhere, args=(pickle.dumps(one), answer))
            process.start()
            assert answer.get(timeout=60) == FILES["m.bin"]
            process.join()
        fs = pickle.loads(pickle.dumps(fsspec.filesystem("model", registry=reg)))
        assert fs.ls("churn", detail=False) == ["churn/v1"]


def test_chains(filled: Registry, tmp_path: Path) -> None:
    """fsspec's own caches may stand before it."""
    with fsspec.open(
        "simplecache::model://churn/v1/m.bin", simplecache={"cache_storage": str(tmp_path / "c")}
    ) as file:
        assert file.read() == FILES["m.bin"]


def test_pruned_before_it_is_open(filled: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that another process prunes between its fetch and its opening is fetched again, or read from the store."""
    local, times = filesystem.ModelFileSystem._local, iter([1, 2] + [100] * 20)

    def and_gone(self: Any, tree: Any, file: Any) -> Any:
        path = local(self, tree, file)
        if next(times) != 2:
            self.registry._core.cache().clear()
        return path

    monkeypatch.setattr(filesystem.ModelFileSystem, "_local", and_gone)
    fs = fsspec.filesystem("model")
    assert fs.cat_file("churn/v1/m.bin") == FILES["m.bin"]
    assert fs.cat_file("churn/v1/m.bin", 1, 4) == FILES["m.bin"][1:4]
    with fs.open("churn/v1/m.bin") as file:
        assert file.read() == FILES["m.bin"]
    fs.get_file("churn/v1/m.bin", str(tmp_path / "here"))
    assert (tmp_path / "here").read_bytes() == FILES["m.bin"]


def test_ranges_on_s3_fetch_ranges(s3_bucket: Bucket, s3_proxy: S3Proxy, tmp_path: Path, large: None) -> None:
    """From an object store only the bytes that are asked for travel, and nothing is fetched to look at names."""
    content = bytes(range(256)) * 4096
    with hub.open(f"{s3_bucket.url}/reg", create=True, cache_dir=tmp_path / "c") as reg, hub.use(reg):
        reg.register("big", {"x.bin": content})
        fs = fsspec.filesystem("model")
        before = len(s3_proxy.seen())
        assert fs.info("big/v1/x.bin")["size"] == 1 << 20
        assert fs.cat_file("big/v1/x.bin", 1000, 1010) == content[1000:1010]
        fs.cat_file("big/v1/x.bin", -8, None)
        of_blob = [one for one in s3_proxy.seen()[before:] if "/sha256/" in one.path]
        assert [one.method for one in of_blob] == ["GET", "GET"]
        assert [one.headers["range"] for one in of_blob] == ["bytes=1000-1009", "bytes=1048568-1048575"]
        assert reg._core.cache().info().blobs == 0
