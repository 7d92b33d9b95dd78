"""Inputs from paths, web and stores: their names stay inside their folder, their bytes are the caller's own."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelhub_sdk import Registry
from modelhub_sdk.errors import (
    Conflict,
    InvalidDocument,
    InvalidName,
    InvalidURI,
    MissingExtra,
    ModelHubError,
    NotAllowed,
    NotFound,
)
from modelhub_sdk.run import inputs
from modelhub_sdk.run.inputs import InputSpec
from tests.support.web import Quiet, serving

Lay = Callable[..., list[str]]


@pytest.fixture
def reg() -> Iterator[Registry]:
    """Yield a registry in memory: what is tested here does not depend on the store."""
    import modelhub_sdk as hub

    with hub.open("memory://") as registry:
        yield registry


@pytest.fixture
def lay(reg: Registry, tmp_path: Path) -> Lay:
    """Return a function that lays out one input in a new folder, and gives the paths of its files."""
    count = iter(range(100))

    def laid(*uris: str, **options: Any) -> list[str]:
        into = tmp_path / f"in{next(count)}"
        inputs.lay_out(reg, [InputSpec("x", uris, **options)], into, {})
        return sorted(path.relative_to(into / "x").as_posix() for path in into.rglob("*") if path.is_file())

    return laid


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of one name at two depths; the working folder is beside it."""
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "a.csv").write_text("top")
    (tmp_path / "data" / "sub" / "a.csv").write_text("deep")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "data"


@pytest.mark.parametrize(
    "pattern", ["{}/**", "file://{}/**.csv", "../data/**/*.csv", "./../data/**", "{}", "{}/"]
)
def test_suffix_of_paths(lay: Lay, data: Path, pattern: str) -> None:
    """However a path is written, suffix keeps what follows the folder where its wildcard begins."""
    assert lay(pattern.format(data), keep="suffix") == ["a.csv", "sub/a.csv"]


def test_full_of_paths(lay: Lay, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """full keeps a path whole: from the working folder on when it lies there, else from the root of the disk."""
    root = str(data).lstrip("/")
    assert lay(f"{data}/**", keep="full") == [f"{root}/a.csv", f"{root}/sub/a.csv"]
    monkeypatch.chdir(data.parent)
    assert lay("data/**", keep="full") == ["data/a.csv", "data/sub/a.csv"]
    assert lay(str(data), keep="full") == ["data/a.csv", "data/sub/a.csv"]
    monkeypatch.chdir(data)
    assert lay("*.csv", keep="full") == lay("*.csv", keep="suffix") == ["a.csv"]


@pytest.mark.parametrize("name", ["x[1].csv", "st*r.csv", "w?y.csv", "10:30.csv", "é 𝛼.csv"])
def test_names_that_look_like_wildcards(lay: Lay, data: Path, name: str) -> None:
    """A file that is there is meant, whatever its name looks like."""
    (data / name).write_text("x")
    assert lay(f"{data}/{name}") == [name]


@pytest.mark.parametrize("keep", ["none", "suffix", "full"])
@pytest.mark.parametrize("key", ["../../../evil.txt", "a/../../evil.txt", "./evil.txt", ".."])
def test_no_key_leads_out_of_the_folder(lay: Lay, tmp_path: Path, key: str, keep: str) -> None:
    """A store may hold keys with .. in them: none makes a file outside the input's folder."""
    from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

    path = f"/bucket/{key}"
    MemoryFileSystem.store[path] = MemoryFile(MemoryFileSystem(), path, b"evil")
    try:
        if keep == "full" or key == "..":
            with pytest.raises(ModelHubError, match="The input 'x' cannot be had"):
                lay(f"memory://bucket/{key}", keep=keep)
        else:
            assert lay(f"memory://bucket/{key}", keep=keep) == ["evil.txt"]
    finally:
        del MemoryFileSystem.store[path]
    outside = [one for one in tmp_path.rglob("evil.txt") if one.parent.name != "x"]
    assert outside == []


def test_urls_that_are_not_followed(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine's metadata service, chained URLs, protocols without a driver, URLs of no file: refused in our words."""
    for driver in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, driver, None)  # as where the extra is not installed
    for url, error, match in (
        ("http://169.254.0.1/x", NotAllowed, "link-local"),
        ("http://[::ffff:169.254.169.254]/x", NotAllowed, "link-local"),
        ("http://[fd00:ec2::254]/x", NotAllowed, "service for the machine itself"),
        ("http://169%2e254%2e169%2e254/x", InvalidURI, "percent-encoded"),
        ("http://host.invalid/\udcff.bin", InvalidURI, "control character"),
        ("simplecache::file:///etc/passwd", ModelHubError, "cannot be had"),
        ("zip://x::file:///etc/passwd", InvalidName, "chains URLs"),
        ("swift://project/container/key", InvalidName, "unknown"),
        ("https://host.invalid/", InvalidURI, "names no file"),
        ("gs://bucket/key", MissingExtra, r"modelhub-sdk\[gcs\]"),
        ("azure://account/container/key", MissingExtra, r"modelhub-sdk\[azure\]"),
        ("memory://nothing/there", NotFound, "There is nothing"),
        ("memory://nothing/*", NotFound, "Nothing fits"),
    ):
        with pytest.raises(error, match=match):
            lay(url)


def test_azure_as_valohai_writes_it() -> None:
    """azure://account/container/blob is the driver's container and blob, with the account as an option."""
    assert inputs._driver("azure://acme/data/a/b.csv") == (
        "abfs://data/a/b.csv", {"account_name": "acme"}, "acme",
    )  # fmt: skip
    assert inputs._driver("s3://data/a.csv") == ("s3://data/a.csv", {}, "")


def test_a_store_s_files(lay: Lay, reg: Registry, tmp_path: Path) -> None:
    """Wildcards on a store take files, not folders; sizes and digests are those of the bytes; twice is no trouble."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe({"/shop/d/a.csv": b"1", "/shop/d/deep/b.csv": b"22", "/shop/d/deep/c.txt": b""})
    try:
        assert lay("memory://shop/d/**") == ["a.csv", "b.csv", "c.txt"]
        for into in ("one", "two"):
            (placed,) = inputs.lay_out(
                reg, [InputSpec("x", ("memory://shop/d/deep/*",), keep="suffix")], tmp_path / into, {}
            )  # fmt: skip
        assert [(file.name, file.size, file.digest) for file in placed.files] == [
            ("b.csv", 2, "sha256:" + hashlib.sha256(b"22").hexdigest()),
            ("c.txt", 0, "sha256:" + hashlib.sha256(b"").hexdigest()),
        ]
    finally:
        fs.rm("/shop", recursive=True)


def test_nothing_stays_when_a_later_input_cannot_be_placed(reg: Registry, data: Path, tmp_path: Path) -> None:
    """Folders that had appeared go again; what was there before stays, also that of an earlier call."""
    into = tmp_path / "in"
    wanted = [InputSpec(name, (str(data / "a.csv"),)) for name in ("kept", "new", "full")]
    inputs.lay_out(reg, wanted[:1], into, {})
    (into / "full").mkdir()
    (into / "full" / "mine").write_text("mine")
    with pytest.raises(Conflict, match="mine"):
        inputs.lay_out(reg, wanted, into, {})
    assert sorted(path.name for path in into.iterdir()) == ["full", "kept"]
    fresh = tmp_path / "fresh"
    with pytest.raises(ModelHubError):
        inputs.lay_out(reg, [wanted[1], InputSpec("bad", ("s3://",))], fresh, {})
    assert not fresh.exists()


def test_a_read_only_source_is_copied(lay: Lay, data: Path, tmp_path: Path) -> None:
    """An input may be written, whatever the rights of what it came from; that one is not touched."""
    os.chmod(data / "a.csv", 0o444)
    assert lay(str(data / "a.csv")) == ["a.csv"]
    copy = tmp_path / "in0" / "x" / "a.csv"
    assert copy.stat().st_nlink == 1
    assert copy.stat().st_mode & 0o200
    copy.write_text("changed")
    assert (data / "a.csv").read_text() == "top"


def test_checksums_as_valohai_writes_them(data: Path) -> None:
    """All three digests of what is on the disk; of what is not, the one that is known."""
    content = (data / "a.csv").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    file = inputs.InputFile("a.csv", "a.csv", "file:a.csv", 3, f"sha256:{digest}", data / "a.csv")
    assert inputs.checksums(file) == {
        "sha256": digest,
        "md5": hashlib.md5(content).hexdigest(),
        "sha1": hashlib.sha1(content).hexdigest(),
    }
    gone = inputs.InputFile("a.csv", "a.csv", "file:a.csv", 3, f"sha256:{digest}", data / "gone")
    assert inputs.checksums(gone) == {"sha256": digest}


# --- files and folders of a version


@pytest.mark.parametrize(
    ("inner", "found"),
    [
        ("", {"a.csv": "top", "sub/a.csv": "deep", "x/sub/a.csv": "deeper"}),
        ("/a.csv", {"a.csv": "top"}),
        ("/sub", {"sub/a.csv": "deep"}),
        ("/sub/a.csv", {"sub/a.csv": "deep"}),
        ("/x", {"x/sub/a.csv": "deeper"}),
        ("/x/sub/a.csv", {"x/sub/a.csv": "deeper"}),
    ],
)
@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_a_part_of_a_version(
    reg: Registry, tmp_path: Path, kind: str, inner: str, found: dict[str, str]
) -> None:
    """Of files of one name at several depths it is the one that was asked for, under its own path."""
    files = {"a.csv": b"top", "sub/a.csv": b"deep", "x/sub/a.csv": b"deeper"}
    if kind == "dataset":
        reg.create_dataset_version("d/v1", files)
    else:
        reg.register("d", files)
    placed = reg.resolve_inputs({"x": f"{kind}://d/v1{inner}"}, tmp_path / "in")["x"]
    assert {file.name: file.path.read_text() for file in placed.files} == found
    assert [file.uri for file in placed.files] == [f"{kind}://d/v1/{name}" for name in sorted(found)]
    (recorded,) = placed.run_inputs()
    assert (recorded.uri, [file.path for file in recorded.files]) == (f"{kind}://d/v1", sorted(found))
    assert placed.uris == (f"{kind}://d/v1",)


def test_a_datum(reg: Registry, tmp_path: Path) -> None:
    """A datum is one file, by id and by alias; what is known of it comes with it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m.bin").write_text("weights")
    (tmp_path / "out" / "m.bin.metadata.json").write_text('{"valohai.alias": "best", "score": 1}')
    (uri,) = reg.ingest(tmp_path / "out").datums
    placed = reg.resolve_inputs({"x": "datum://best", "y": uri}, tmp_path / "in")
    for one in placed.values():
        (file,) = one.files
        assert (file.name, file.uri, file.path.read_text()) == ("m.bin", uri, "weights")
        assert file.datum_id == uri.removeprefix("datum://")
        assert [dict(known) for known in file.metadata] == [{"score": 1}]


# --- what is asked for


def test_specs_are_checked(reg: Registry, tmp_path: Path, data: Path) -> None:
    """What stands in a spec is checked as what is given without one, and the input is named."""
    for spec, error, match in (
        (InputSpec("x", (7,)), InvalidURI, "The input 'x' is 7"),
        (InputSpec("x", ("a\0",)), InvalidName, "The input 'x'"),
        (InputSpec("x", ("../data/a.csv",), keep="some"), InvalidName, "keep of the input 'x' is 'some'"),
        (
            InputSpec("x", ("../data/a.csv",), filename="../b"),
            InvalidName,
            "The input 'x' cannot be had: The filename",
        ),
        (
            InputSpec("x", ("../data/a.csv",), filename=7),
            InvalidName,
            "The input 'x' cannot be had: The filename",
        ),
        (InputSpec("x", ("../data/a.csv",), filename=".modelhub-x"), InvalidName, r"\.modelhub-x"),
    ):
        with pytest.raises(error, match=match):
            reg.resolve_inputs({"good": "../data/a.csv", "x": spec}, tmp_path / "in")
        assert not (tmp_path / "in").exists()
    found = reg.resolve_inputs(
        {"y": InputSpec("x", "../data/a.csv", filename="new/name.csv")}, tmp_path / "in"
    )
    assert (found["y"].name, [file.name for file in found["y"].files]) == ("y", ["new/name.csv"])


@pytest.mark.parametrize("name", ["..", "../evil", "/proc/evil", "a/b", ""])
def test_no_name_leads_out(reg: Registry, tmp_path: Path, data: Path, name: str) -> None:
    """Whoever lays out: the name of an input is no path, and nothing is fetched before that is known."""
    with pytest.raises(InvalidName, match="not the name of an input"):
        inputs.lay_out(reg, [InputSpec(name, (str(data / "a.csv"),))], tmp_path / "in" / "deep", {})
    assert not (tmp_path / "in").exists()


def test_a_file_and_a_folder_of_one_name(reg: Registry, tmp_path: Path, data: Path) -> None:
    """They cannot stand in one folder: the input is named, and nothing appears, of others neither."""
    (tmp_path / "more" / "a.csv").mkdir(parents=True)
    (tmp_path / "more" / "a.csv" / "b").write_text("b")
    spec = InputSpec("x", (f"{data}/*.csv", f"{tmp_path}/more/**"), keep="suffix")
    with pytest.raises(
        InvalidName, match="The input 'x' cannot be had: .*'a.csv' is a file and also the folder"
    ):
        reg.resolve_inputs({"good": str(data / "a.csv"), "x": spec}, tmp_path / "in")
    assert not (tmp_path / "in").exists()
    spec = InputSpec("x", (f"{data}/**",))
    with pytest.raises(InvalidDocument, match=r"two files 'a\.csv': 'file:a\.csv' and 'file:a\.csv'"):
        reg.resolve_inputs({"x": spec}, tmp_path / "in")


def test_secrets_in_messages(reg: Registry, tmp_path: Path) -> None:
    """A password, or a signature, of a URL stands in no message, whatever is wrong with it."""
    for uri in (
        "https://me:hunter2@host.invalid/{parameter:x}", "http://[bad/x?sig=hunter2", "http://me:hunter2@h:99999999/x",
        "https://me:hunter2@127.0.0.1:9/x", "s3://me:hunter2@b/x\0", "https://me:hunter2@127.0.0.1:9/",
    ):  # fmt: skip
        with pytest.raises(ModelHubError, match="x") as caught:
            inputs.lay_out(reg, [InputSpec("x", (uri,))], tmp_path / "in", {})
        assert "hunter2" not in str(caught.value) + repr(caught.value)


# --- paths


def test_file_urls(lay: Lay, data: Path) -> None:
    """In file:// a ? is a wildcard and a # a letter; the host is this one; encoded letters are those that they mean."""
    (data / "b#1.csv").write_text("1")
    assert lay(f"file://{data}/b#?.csv") == ["b#1.csv"]
    assert lay(f"file://{data}/b%231.csv") == ["b#1.csv"]
    assert lay(f"file://localhost{data}/a.csv") == ["a.csv"]
    with pytest.raises(InvalidURI, match="is on the host 'data'"):
        lay("file://data/a.csv")


def test_what_a_record_says_can_be_had_again(lay: Lay, reg: Registry, data: Path, tmp_path: Path) -> None:
    """The URI of a file below the working folder, as a run records it, is a URI of that file."""
    Path("mine.csv").write_text("mine")
    (file,) = reg.resolve_inputs({"x": "mine.csv"}, tmp_path / "in")["x"].files
    assert file.uri == "file:mine.csv"
    assert lay(file.uri) == ["mine.csv"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_text(lay: Lay, data: Path) -> None:
    """A file whose name is not UTF-8 is refused: no record could name it."""
    Path(os.fsdecode(os.fsencode(data) + b"/z\xff.dat")).write_text("x")
    with pytest.raises(InvalidName, match="The input 'x' cannot be had: .* is not UTF-8"):
        lay(f"{data}/z*.dat")


def test_a_nul_from_a_parameter(reg: Registry, tmp_path: Path) -> None:
    """It is refused before the disk or a store is asked."""
    for uri in ("{parameter:p}", "file:///{parameter:p}", "memory://{parameter:p}/*"):
        with pytest.raises(InvalidURI, match="holds a NUL"):
            inputs.lay_out(reg, [InputSpec("x", (uri,))], tmp_path / "in", {"p": "a\0b"})


@pytest.mark.parametrize("path", ["a%00b.csv", "%2e%2e", "x/%2e"])
def test_names_of_the_web(lay: Lay, path: str) -> None:
    """A URL whose last part, decoded, is no file's name is refused."""

    class Any200(Quiet):
        def answer(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

    with serving(Any200) as url:
        with pytest.raises(InvalidURI, match="names no file that can be put into a folder"):
            lay(f"{url}/{path}")
        assert lay(f"{url}/deep/%C3%A9%20x.csv", keep="full") == ["deep/é x.csv"]


def test_a_target_that_cannot_be_made(reg: Registry, data: Path, tmp_path: Path) -> None:
    """A file in the way of the folder is an error of ours, and stays."""
    (tmp_path / "in").write_text("mine")
    with pytest.raises(ModelHubError, match="Not a directory"):
        reg.resolve_inputs({"x": str(data / "a.csv")}, tmp_path / "in")
    assert (tmp_path / "in").read_text() == "mine"


def test_an_error_names_the_input_once(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However an input is had, the message begins with its name, once."""
    monkeypatch.chdir(tmp_path)
    with reg.start_run("train") as run, pytest.raises(NotFound) as error:
        run.input("x", "none.csv")
    assert str(error.value).count("The input 'x' cannot be had") == 1
    with pytest.raises(NotFound) as error:
        reg.start_run("train", inputs={"x": "none.csv"})
    assert str(error.value).count("The input 'x' cannot be had") == 1


def test_hints_that_help(reg: Registry, data: Path) -> None:
    """What is in the way of inputs cannot be overwritten by an argument that there is not; names that clash can be kept apart."""
    reg.resolve_inputs({"x": str(data / "a.csv")}, "in")
    Path("in/x/a.csv").write_text("changed")
    with pytest.raises(Conflict, match="in the way") as conflict:
        reg.resolve_inputs({"x": str(data / "a.csv")}, "in")
    assert "overwrite" not in str(conflict.value)
    with pytest.raises(InvalidDocument, match="two inputs; in a step of valohai.yaml"):
        reg.resolve_inputs({"x": [str(data / "a.csv"), str(data / "sub/a.csv")]}, "other")


def test_uris_of_files_are_uris(reg: Registry, tmp_path: Path) -> None:
    """The URI of a file of a version can be resolved, whatever its name has in it."""
    reg.register("m", {"my model.bin": b"1", "50%/x.bin": b"22"})
    reg.create_dataset_version("dataset://d/v1", {"a b.csv": b"3"})
    placed = reg.resolve_inputs({"m": "model://m/v1", "d": "dataset://d/v1"}, tmp_path / "in")
    files = [*placed["m"].files, *placed["d"].files]
    assert [file.uri for file in files] == [
        "model://m/v1/50%25/x.bin", "model://m/v1/my%20model.bin", "dataset://d/v1/a%20b.csv"
    ]  # fmt: skip
    for file in files:
        assert Path(reg.resolve(file.uri).path).stat().st_size == file.size
    assert [one.uri for one in placed["m"].run_inputs()] == ["model://m/v1"]
