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
    InvalidName,
    InvalidURI,
    MissingExtra,
    ModelHubError,
    NotAllowed,
    NotFound,
)
from modelhub_sdk.run import inputs
from modelhub_sdk.run.inputs import InputSpec

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
        inputs.lay_out(reg, [InputSpec("x", uris, **options)], into, {}, tmp_path / "work")
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
                reg, [InputSpec("x", ("memory://shop/d/deep/*",), keep="suffix")], tmp_path / into, {}, tmp_path / "w"
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
    inputs.lay_out(reg, wanted[:1], into, {}, tmp_path / "w")
    (into / "full").mkdir()
    (into / "full" / "mine").write_text("mine")
    with pytest.raises(Conflict, match="mine"):
        inputs.lay_out(reg, wanted, into, {}, tmp_path / "w")
    assert sorted(path.name for path in into.iterdir()) == ["full", "kept"]
    fresh = tmp_path / "fresh"
    with pytest.raises(ModelHubError):
        inputs.lay_out(reg, [wanted[1], InputSpec("bad", ("s3://",))], fresh, {}, tmp_path / "w")
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
