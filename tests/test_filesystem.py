"""model://, dataset:// and datum:// for everything that opens files through fsspec."""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator
from datetime import timedelta
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
    Offline,
    Purged,
    StoreUnavailable,
)
from modelhub_sdk.hub import default
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


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    """Close what was opened by URL."""
    yield
    for one in filesystem._registries.values():
        one.close()
    filesystem._registries.clear()


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


def _approving(reg: Registry, name: str, version: str) -> Any:
    """A callback of fsspec that approves a version just before the file *name* is copied."""

    class Approving(fsspec.Callback):  # type: ignore[misc]
        def branched(self, path_1: str, path_2: str, **kwargs: Any) -> Any:
            if path_1.endswith(name):
                reg.approve(version)
            return super().branched(path_1, path_2, **kwargs)

    return Approving()


def test_one_call_sees_one_version(filled: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever somebody approves meanwhile, the files that one call brings are of one version."""
    for content in (b"one", b"two"):
        filled.register("pair", {"a.bin": content, "s/z.bin": content})
    filled.approve("pair/v1")
    fs = fsspec.filesystem("model")
    fs.get(
        "pair/latest", str(tmp_path / "got"), recursive=True, callback=_approving(filled, "z.bin", "pair/v2")
    )
    assert {path.read_bytes() for path in (tmp_path / "got").rglob("*.bin")} == {b"one"}
    assert fs.cat("pair/latest/a.bin") == b"two"  # the next call looks again

    moved = iter(range(3, 100))
    cat_file = type(fs).cat_file

    def and_move(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        found = cat_file(self, path, *args, **kwargs)
        number = next(moved)
        filled.register("pair", {"a.bin": b"%d" % number, "s/z.bin": b"%d" % number})
        filled.approve(f"pair/v{number}")
        return found

    monkeypatch.setattr(type(fs), "cat_file", and_move)
    assert set(fs.cat(["pair/latest/a.bin", "pair/latest/s/z.bin"]).values()) == {b"two"}
    assert set(fs.cat("pair/latest/**/*.bin").values()) == {b"4"}
    assert set(fs.cat_ranges(["pair/latest/a.bin", "pair/latest/s/z.bin"], 0, 10)) == {b"6"}


def test_a_walk_sees_one_version(filled: Registry) -> None:
    """So does a walk, between its steps; what is read meanwhile is the newest."""
    filled.register("pair", {"a": b"1", "s/b": b"1"})
    filled.register("pair", {"a": b"2"})
    filled.approve("pair/v1")
    fs = fsspec.filesystem("model")
    steps = fs.walk("pair/latest")
    assert next(steps) == ("pair/latest", ["s"], ["a"])
    filled.approve("pair/v2")
    assert fs.cat("pair/latest/a") == b"2"
    assert list(steps) == [("pair/latest/s", [], ["b"])]


def test_ranges_ask_the_registry_once(filled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many ranges of one version cost one question."""
    asked = []
    view = type(filled._core).view

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(args)
        return view(self, *args, **kwargs)

    fs = fsspec.filesystem("model")
    fs.cat_file("churn/v1/m.bin")  # recorded as a use, and cached
    monkeypatch.setattr(type(filled._core), "view", counting)
    assert fs.cat_ranges(["churn/v1/m.bin"] * 50, list(range(50)), 60)[49] == FILES["m.bin"][49:60]
    assert len(asked) <= 2


def test_uses_and_inputs(filled: Registry) -> None:
    """A version is recorded as used once by a process, not for each instance; and as an input of the run that is on."""
    with filled.start_run("score", outputs=None) as run:
        for _ in range(3):
            fsspec.filesystem("model").cat("churn/latest/m.bin")
    assert "model://churn/v1" in [one.uri for one in filled.run(run.id).inputs]
    assert [use.uri for use in filled.lineage("churn/v1").used_by] == ["model://churn/v1"]


def test_a_use_that_goes_on_is_recorded_again(filled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an hour it is told once more that the version is used."""
    fs = fsspec.filesystem("model")
    for _ in range(2):
        fs.cat("churn/v1/m.bin")
    monkeypatch.setattr(filesystem, "_AGAIN", -1.0)
    fs.cat("churn/v1/m.bin")
    assert len(filled.lineage("churn/v1").used_by) == 2


def test_a_run_has_the_inputs_of_its_own_registry(tmp_path: Path) -> None:
    """What is opened in another registry is an input under its id; its own registry may be named by URL."""
    urls = [f"sqlite:///{tmp_path / name}.db" for name in ("mine", "other")]
    with hub.open(urls[0]) as mine, hub.open(urls[1]) as other:
        mine.register("here", {"a": b"1"})
        other.register("there", {"a": b"2"})
        with mine.start_run("score", outputs=None) as run:
            fsspec.filesystem("model", registry=other).cat("there/v1/a")
            fsspec.filesystem("model", registry=urls[1]).cat("there/v1/a")
            fsspec.filesystem("model", registry=urls[0]).cat("here/v1/a")
        found = [one.uri for one in mine.run(run.id).inputs]
        assert found == [f"origin:{other.id}/model://there/v1", "model://here/v1"]


def test_a_run_has_each_file_that_it_opened(filled: Registry) -> None:
    """Files of one version that are opened one by one are one input, with all of them and no others."""
    with filled.start_run("score", outputs=None) as run:
        for name in ("m.bin", "sub/deep/c.csv"):
            fsspec.filesystem("model").cat(f"churn/v1/{name}")
    (found,) = [one for one in filled.run(run.id).inputs if one.uri == "model://churn/v1"]
    assert [file.path for file in found.files] == ["m.bin", "sub/deep/c.csv"]


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
    for folder in ("churn/v1/sub", "churn/v1", "churn", ""):
        with pytest.raises(ModelHubError, match="folder") as folded:
            fs.open(folder)
        assert isinstance(folded.value, IsADirectoryError)


def test_what_is_missing_says_where(filled: Registry) -> None:
    """An error about what is missing names the registry: it may be the wrong one."""
    for act in (
        lambda: fsspec.filesystem("model").open("nope/v1/x"),
        lambda: fsspec.filesystem("model").ls("nope"),
        lambda: fsspec.filesystem("model").open("churn/v1/none"),
        lambda: fsspec.filesystem("dataset").ls("nope"),
    ):
        with pytest.raises(FileNotFoundError, match="The registry is") as caught:
            act()
        assert filled.url in str(caught.value)


@pytest.mark.parametrize(
    "path", ["new/latest", "nope/v1", "nope", "churn/v9", "churn/v1/none", "CHURN/v1", "churn//v1", "churn//v1/x", "a/../b"]
)  # fmt: skip
def test_nothing_there_is_one_answer(filled: Registry, path: str) -> None:
    """All ways to look agree on what is not there: also a latest that nobody approved, a bad name, a doubled slash."""
    filled.register("new", {"a": b"1"})
    fs = fsspec.filesystem("model")
    assert not (fs.exists(path) or fs.isdir(path) or fs.isfile(path))
    assert fs.glob(path) == fs.glob(f"{path}/*") == fs.find(path) == list(fs.walk(path)) == []
    assert list(fs.get_mapper(path)) == []
    for act in (fs.open, fs.info, fs.ls):
        with pytest.raises((FileNotFoundError, InvalidURI, InvalidName)):
            act(path)


LOOKS: dict[str, Callable[[Any, str], Any]] = {
    "exists": lambda fs, path: fs.exists(path),
    "isdir": lambda fs, path: fs.isdir(path),
    "isfile": lambda fs, path: fs.isfile(path),
    "find": lambda fs, path: fs.find(path),
    "glob": lambda fs, path: fs.glob(f"{path}/*"),
    "walk": lambda fs, path: list(fs.walk(path)),
    "du": lambda fs, path: fs.du(path),
    "mapper": lambda fs, path: list(fs.get_mapper(path)),
    "get": lambda fs, path: fs.get(path, "nowhere", recursive=True),
    "open_files": lambda fs, path: fsspec.open_files(f"model://{path}/*", registry=fs.registry),
}


@pytest.mark.parametrize("look", LOOKS)
def test_an_outage_is_no_empty_folder(filled: Registry, look: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that does not answer, that is closed, or an alias that is refused, is an error for whoever looks."""
    fs = fsspec.filesystem("model", registry=filled)
    filled.set_alias("churn", "champion", 2)
    filled.reject("churn/v2", "overfits")
    with pytest.raises(NotApproved):
        LOOKS[look](fs, "churn/champion")

    def down(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("No answer.")

    with monkeypatch.context() as patch:
        patch.setattr(type(filled._core), "view", down)
        with pytest.raises(OSError, match="No answer"):
            LOOKS[look](fs, "churn/latest")
    filled.close()
    with pytest.raises(NotAllowed, match="closed"):
        LOOKS[look](fs, "churn/v1")


@pytest.mark.parametrize("look", LOOKS)
def test_no_registry_is_no_answer(tmp_path: Path, look: str) -> None:
    """Where there is no registry, nothing is said about a path, and none is made."""
    fs = fsspec.filesystem("model", registry=f"sqlite:///{tmp_path / 'typo.db'}")
    with pytest.raises(NotFound, match="no registry"):
        LOOKS[look](fs, "churn/v1")
    assert not list(tmp_path.iterdir())


def test_errors_of_a_walk(filled: Registry) -> None:
    """A walk raises every error if it is told to, or hands it over."""
    fs = fsspec.filesystem("model")
    with pytest.raises(FileNotFoundError):
        list(fs.walk("nope/v1", on_error="raise"))
    told: list[Exception] = []
    assert list(fs.walk("nope/v1", on_error=told.append)) == []
    assert [type(one).__name__ for one in told] == ["NoSuchFile"]


def test_above_versions_what_may_not_be_read_is_left_out(filled: Registry) -> None:
    """Whoever walks over all models sees the versions that may be read; who asks for another one is told why not."""
    filled.configure(require="approved")
    fs = fsspec.filesystem("model")
    assert {name.split("/")[1] for name in fs.find("")} == {"v1"}
    assert {name.split("/")[1] for name in fs.glob("churn/*/m.bin")} == {"v1"}
    with pytest.raises(NotApproved):
        fs.find("churn/v2")


def test_a_large_version_that_was_purged(filled: Registry) -> None:
    """Also when not even the names of its files are left, it is said that they were purged."""
    filled.register("big", {f"{n}": b"x" for n in range(1100)})
    filled.purge("big/v1", "asked to", force=True)
    fs = fsspec.filesystem("model")
    for act in (fs.ls, fs.find, lambda path: fs.open(f"{path}/7"), lambda path: fs.info(f"{path}/7")):
        with pytest.raises(Purged, match="asked to"):
            act("big/v1")
    assert not [name for name in fs.find("") if name.startswith("big")]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regsitry": "sqlite:////nowhere.db"}, "Did you mean registry"),
        ({"colour": 1}, "registry, storage_options, cache_dir"),
        ({"stale_ok": timedelta(1)}, "resolve"),
        ({"cache_dir": "c"}, "registry="),
        ({"storage_options": {"key": "secret"}}, "registry="),
    ],
)  # fmt: skip
def test_options(options: dict[str, Any], message: str) -> None:
    """An option that would be ignored is refused: it may have named the registry."""
    with pytest.raises(InvalidName, match=message) as caught:
        fsspec.filesystem("model", **options)
    assert "secret" not in str(caught.value)
    fsspec.filesystem("model", skip_instance_cache=True, use_listings_cache=False, asynchronous=False)


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
    out = io.BytesIO()
    fs.get_file("churn/v1/m.bin", out)
    fs.get_file("churn/v1/sub/deep/c.csv", None, outfile=out)
    assert out.getvalue() == FILES["m.bin"] + FILES["sub/deep/c.csv"]
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


def test_parts_of_files_that_are_not_small(filled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a file costs no more than that part; small ones, and those that are opened, are fetched whole."""
    monkeypatch.setattr(filesystem, "PART", 100)
    fs, cache = fsspec.filesystem("model"), filled._core.cache()
    assert fs.cat_file("churn/v1/m.bin", 7, 14) == fs.cat_ranges(["churn/v1/m.bin"], 7, 14)[0] == b"weights"
    assert cache.info().blobs == 0
    assert fs.cat_file("churn/v1/sub/deep/c.csv", 0, 1) == b"x"
    assert cache.info().blobs == 1
    with fs.open("churn/v1/m.bin"):
        assert cache.info().blobs == 2


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of fsspec's own cache
@pytest.mark.parametrize("size", [-1, 1 << 20])
def test_files_are_alike(
    filled: Registry, size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is opened has the same members and can be pickled, whether it is cached or read in ranges."""
    monkeypatch.setattr(filesystem, "WHOLE", size)
    fs = fsspec.filesystem("model")
    with fs.open("churn/latest/m.bin", block_size=64) as file:
        assert (file.path, file.size, file.mode, file.blocksize, file.fs) == (
            "churn/v1/m.bin",
            700,
            "rb",
            64,
            fs,
        )
        assert file.details == file.info() == fs.info("churn/v1/m.bin")
        file.seek(7)
        filled.approve("churn/v2")
        again = pickle.loads(pickle.dumps(file))
        assert (again.read(7), again.path, again.blocksize) == (b"weights", "churn/v1/m.bin", 64)
        again.close()
    assert file.closed
    assert fs.read_block("churn/v1/sub/deep/c.csv", 0, 5, b"\n") == b"x,y\n1,2\n"
    with fsspec.filesystem("blockcache", fs=fs, cache_storage=str(tmp_path)).open("churn/v1/m.bin") as cached:
        assert cached.read(3) == b"wei"
    assert io.TextIOWrapper(fs.open("churn/v1/sub/deep/c.csv")).readlines() == ["x,y\n", "1,2\n"]


def test_a_large_file_is_a_file(filled: Registry, large: None) -> None:
    """It seeks, reads into buffers and lines, pickles with its place, and stays with its version."""
    fs = fsspec.filesystem("model")
    with fs.open("churn/latest/m.bin", block_size=64) as file:
        assert file.read(7) == b"weights"
        again = pickle.loads(pickle.dumps(file))
        filled.approve("churn/v2")
        assert again.read(7) == file.read(7) == b"weights"
        assert again.path == "churn/v1/m.bin"
        with hub.open("memory://") as other, hub.use(other):
            assert file.read(70) == b"weights" * 10
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
        fs.get_file("churn/v1/m.bin", io.BytesIO())
    with pytest.raises(DigestMismatch):
        fs.cat_file("churn/v1/m.bin")
    monkeypatch.setattr(filesystem, "WHOLE", 1 << 20)
    with pytest.raises(DigestMismatch):
        fs.open("churn/v1/m.bin")


def _lines(file: Any) -> None:
    while file.readline():
        pass


READERS: dict[str, Callable[[Any], Any]] = {
    "all": lambda file: file.read(),
    "lines": list,
    "readline": _lines,
    "sniffed": lambda file: (file.read(4), file.seek(0), file.read()),
    "the middle twice": lambda file: (file.read(300), file.seek(100), file.read()),
    "the end first": lambda file: (file.seek(-50, 2), file.read(), file.seek(0), file.read()),
    "text": lambda file: io.TextIOWrapper(file).read(),
    "buffered": lambda file: io.BufferedReader(file).read(),
    "into a buffer": lambda file: file.readinto(bytearray(10_000)),
}


@pytest.mark.parametrize("how", READERS)
def test_wrong_bytes_are_found_by_every_reader(filled: Registry, large: None, how: str) -> None:
    """In whatever pieces a large file is read, once all of it was, wrong bytes are an error, also later."""
    content = b"".join(b"line %d\n" % n for n in range(100))
    filled.register("lines", {"l.txt": content})
    _blob(filled, "lines/v1").write_bytes(b"L" + content[1:])
    file = fsspec.filesystem("model").open("lines/v1/l.txt", block_size=128)
    with pytest.raises(DigestMismatch) as caught:
        READERS[how](file)
    assert "Nothing was handed out" not in str(caught.value)
    if not file.closed:
        file.seek(0)
        with pytest.raises(DigestMismatch):
            file.read(1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 800), st.integers(0, 800))))
def test_right_bytes_are_never_an_error(filled: Registry, large: None, steps: list[tuple[int, int]]) -> None:
    """However somebody moves about in a file, its digest is not mistaken."""
    with fsspec.filesystem("model").open("churn/v1/m.bin", block_size=64) as file:
        for at, length in steps:
            file.seek(at)
            assert file.read(length) == FILES["m.bin"][at : at + length]
        file.seek(0)
        assert file.read() == FILES["m.bin"]


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


def _carried(one: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return *one*, pickled here and unpickled as in another process."""
    packed = pickle.dumps(one)
    monkeypatch.setattr(filesystem, "_pickled", {})
    return pickle.loads(packed)


def test_a_worker_reads_the_same_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pickled takes the default registry of this moment along: a worker's own default may be another one."""
    urls = [f"sqlite:///{tmp_path / name}.db" for name in ("team", "own")]
    for url in urls:
        with hub.open(url) as reg:
            reg.register("churn", {"m.bin": url.encode()})
    with hub.open(urls[0], cache_dir=tmp_path / "c") as reg:
        with hub.use(reg):
            one = _carried(fsspec.open("model://churn/v1/m.bin"), monkeypatch)
        monkeypatch.setenv("MODELHUB_REGISTRY", urls[1])
        with one as file:
            assert file.read() == urls[0].encode()
        assert one.fs.registry._core.cache().path == str(tmp_path / "c")
    fs = _carried(filesystem.ModelFileSystem(urls[0]), monkeypatch)
    assert fs.cat("churn/v1/m.bin") == urls[0].encode()


def test_nothing_is_opened_to_pickle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where no registry was needed yet, none is opened, and a worker has its own default."""
    fs = _carried(fsspec.filesystem("model"), monkeypatch)
    with hub.open(f"sqlite:///{tmp_path / 'm.db'}") as reg, hub.use(reg):
        assert fs.registry is reg


def test_a_registry_in_memory_travels_within_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it is an error, not another registry."""
    with hub.open("memory://") as reg, hub.open("memory://") as other:
        reg.register("churn", FILES)
        fs = fsspec.filesystem("model", registry=reg)
        with hub.use(other):
            assert pickle.loads(pickle.dumps(fs)).exists("churn/v1/m.bin")
            with pytest.raises(NotFound, match="no registry"):
                _carried(fs, monkeypatch).exists("churn/v1/m.bin")


def test_a_worker_has_the_password_of_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickled URL has no password; the one that $MODELHUB_REGISTRY has for the same place is used."""
    opened: list[str] = []

    def note(url: str, **_: Any) -> Any:
        opened.append(url)
        raise NotFound("noted")

    monkeypatch.setattr(Registry, "open", note)
    monkeypatch.setenv("MODELHUB_REGISTRY", "postgresql://ana:pw@db.example:5432/models")
    for url in ("postgresql://ana@db.example:5432/models", "postgresql://ana@db.example:5432/others"):
        with pytest.raises(NotFound, match="noted"):
            fsspec.filesystem("model", registry=url).exists("churn/v1")
    assert opened == ["postgresql://ana:pw@db.example:5432/models", "postgresql://ana@db.example:5432/others"]


def test_what_is_the_same(tmp_path: Path) -> None:
    """File systems are equal if they read the same registry; dask tells registries apart by what they are."""
    with hub.open("memory://") as reg, hub.open("memory://") as other:
        first, second = (fsspec.filesystem("model", registry=one) for one in (reg, other))
        assert first == fsspec.filesystem("model", registry=reg) == pickle.loads(pickle.dumps(first))
        assert first != second
        assert first != fsspec.filesystem("dataset", registry=reg)
        assert first.__dask_tokenize__() == fsspec.filesystem("model", registry=reg).__dask_tokenize__()
        assert reg.__dask_tokenize__() != other.__dask_tokenize__()


def test_a_url_is_opened_once(tmp_path: Path) -> None:
    """Instances with the same URL and options share an open registry; one that was closed is opened again."""
    url = f"sqlite:///{tmp_path / 'm.db'}"
    with hub.open(url) as reg:
        reg.register("churn", FILES)
    several = [fsspec.filesystem(kind, registry=url) for kind in ("model", "dataset", "model")]
    assert len({id(one.registry) for one in several}) == 1
    mine = fsspec.filesystem("model", registry=url, cache_dir=tmp_path / "c")
    assert mine.registry is not several[0].registry
    assert mine.cat("churn/v1/m.bin") == FILES["m.bin"]
    assert (tmp_path / "c").is_dir()
    several[0].registry.close()
    assert several[0].exists("churn/v1/m.bin")
    for _ in range(3):
        with fsspec.open("model://churn/v1/m.bin", registry=url) as file:
            file.read()
    with hub.open(url) as reg:
        assert len(reg.lineage("churn/v1").used_by) == 2  # by two caches


def test_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was resolved before is read without the registry, which is tried now and then, not by each step of a call."""
    place = tmp_path / "m.db"
    monkeypatch.setattr("modelhub_sdk.hub._default", None)
    monkeypatch.setenv("MODELHUB_REGISTRY", f"sqlite:///{place}")
    with hub.open() as reg:
        reg.approve(reg.register("churn", FILES))
        reg.resolve("model://churn/v1")
    place.rename(tmp_path / "away")
    tried: list[str] = []
    opening = Registry.open

    def counting(url: Any = None, **options: Any) -> Registry:
        tried.append(url)
        return opening(url, **options)

    monkeypatch.setattr(Registry, "open", counting)
    by_default, by_url = fsspec.filesystem("model"), fsspec.filesystem("model", registry=f"sqlite:///{place}")
    for fs in (by_default, by_url, by_url):
        with fs.open("churn/v1/m.bin") as file:
            assert file.read() == FILES["m.bin"]
    assert len(tried) == 2
    with pytest.raises(Offline):
        by_url.open("churn/latest/m.bin")
    (tmp_path / "away").rename(place)
    monkeypatch.setattr(filesystem, "_OUT_OF_REACH", -1.0)
    assert by_url.cat("churn/latest/m.bin") == by_default.cat("churn/latest/m.bin") == FILES["m.bin"]
    default().close()


def test_what_nobody_reads_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that was opened by URL is closed when neither a file system nor this process's memory has it."""
    url = f"sqlite:///{tmp_path / 'm.db'}"
    with hub.open(url) as reg:
        reg.register("churn", FILES)
    monkeypatch.setattr(filesystem, "_KEPT", 0)
    fs = fsspec.filesystem("model", registry=url)
    core = fs.registry._core
    with fs.open("churn/v1/m.bin") as file:
        del fs
        gc.collect()
        assert not core.closed
    del file
    gc.collect()
    assert core.closed


def test_times_and_checksums(filled: Registry) -> None:
    """What is in a version is as old as the version; a folder's checksum changes with what is in it."""
    fs = fsspec.filesystem("model")
    made = filled.version("churn/v1").created_at
    assert fs.modified("churn/v1/m.bin") == fs.created("churn/latest/sub") == made
    with pytest.raises(FileNotFoundError):
        fs.modified("churn/v1/none")
    with pytest.raises(IsADirectoryError):
        fs.modified("churn")
    assert fs.checksum("churn/v1") == fs.ukey("churn/latest") == filled.version("churn/v1").digest
    before = fs.ukey("churn/latest/sub"), fs.ukey("churn")
    filled.register("churn", FILES | {"sub/more": b""})
    filled.approve("churn/v3")
    assert fs.ukey("churn/latest/sub") != before[0]


def test_chains(filled: Registry, tmp_path: Path) -> None:
    """fsspec's own caches may stand before it."""
    with fsspec.open(
        "simplecache::model://churn/v1/m.bin", simplecache={"cache_storage": str(tmp_path / "c")}
    ) as file:
        assert file.read() == FILES["m.bin"]


def test_pruned_before_it_is_open(filled: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that another process prunes between its fetch and its opening is fetched again, or read from the store."""
    local, times = filesystem.ModelFileSystem._local, iter([1, 2] + [100] * 20)

    def and_gone(self: Any, *asked: Any) -> Any:
        path = local(self, *asked)
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
