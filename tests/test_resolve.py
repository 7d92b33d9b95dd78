"""From a URI to files: what it may mean, what lands on the disk, and who is told."""

from __future__ import annotations

import json
import logging
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.errors import StoreUnavailable

FILES = {
    "model.safetensors": b"weights",
    "optimizer.safetensors": b"optimizer",
    "config/model.json": b"{}",
    "config/deep/notes (1).txt": b"notes",
}
EVERY = pytest.mark.parametrize("reg", ["memory", "sqlite", "folder"], indirect=True)


@pytest.fixture
def churn(reg: Registry) -> Registry:
    """A model `churn`: v1 approved, v2 pending, v3 rejected."""
    reg.register("churn", FILES)
    reg.register("churn", {"model.safetensors": b"second"})
    reg.register("churn", {"model.safetensors": b"third"})
    reg.approve("churn/v1", "good")
    reg.reject("churn/v3", "overfits")
    return reg


def tree(folder: Any) -> dict[str, bytes]:
    root = Path(folder)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


# --- what lands where


@EVERY
def test_without_into_nothing_is_copied(churn: Registry):
    """The files stand in a read-only folder of the cache, the same one each time."""
    got = churn.resolve("model://churn/latest")
    assert tree(got) == FILES
    assert got.uri == "model://churn/v1"
    assert sorted(got.files) == sorted(FILES)
    assert got.version == churn.version("churn/v1")
    assert os.fspath(got) == str(got) == got.path
    assert Path(got.path).is_relative_to(churn._core.cache().path)
    assert churn.resolve("churn/v1").path == got.path
    for path in Path(got).rglob("*"):
        if path.is_file():
            assert not path.stat().st_mode & 0o222


@EVERY
def test_into_makes_the_inputs_directory(churn: Registry, tmp_path: Path):
    """The folder appears with exactly the files; the user may write to them without harm to cache or store."""
    target = tmp_path / "inputs" / "model"
    got = churn.resolve("churn/latest", into=target)
    assert got.path == str(target)
    assert tree(target) == FILES
    (target / "model.safetensors").chmod(0o600)
    (target / "model.safetensors").write_bytes(b"scribbled over")
    assert tree(churn.resolve("churn/v1"))["model.safetensors"] == b"weights"
    assert churn.verify("churn/v1")


def test_into_again_changes_nothing(churn: Registry, tmp_path: Path):
    """A target that is right already is left as it is, and one of an older version is replaced whole."""
    target = tmp_path / "in"
    churn.resolve("churn/v1", into=target)
    before = {p: p.stat().st_ino for p in target.rglob("*")}
    churn.resolve("churn/v1", into=target)
    assert {p: p.stat().st_ino for p in target.rglob("*")} == before
    churn.resolve("churn/v2", into=target)
    assert tree(target) == {"model.safetensors": b"second"}


def test_an_unusable_target_costs_no_transfer(
    churn: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A target with foreign files, a file, or a link in its place is refused before a byte is fetched."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(foreign)
    fetched = []
    monkeypatch.setattr(type(churn._core.artifacts()), "fetch", lambda *a, **k: fetched.append(a))
    for target, said in ((foreign, r"mine\.txt"), (tmp_path / "file", "file"), (tmp_path / "link", "link")):
        with pytest.raises(hub.Conflict, match=said):
            churn.resolve("churn/v1", into=target)
    assert fetched == []
    assert tree(foreign) == {"mine.txt": b"mine"}
    assert sorted(os.listdir(tmp_path)) == sorted({"foreign", "file", "link", *os.listdir(tmp_path)})


def test_overwrite_replaces_what_is_in_the_way(churn: Registry, tmp_path: Path):
    """With overwrite=True files of the same names are replaced, and others stay."""
    target = tmp_path / "in"
    target.mkdir()
    (target / "model.safetensors").write_text("old")
    (target / "mine.txt").write_text("mine")
    churn.resolve("churn/v1", into=target, overwrite=True)
    assert tree(target) | {".modelhub.json": b""} == FILES | {"mine.txt": b"mine", ".modelhub.json": b""}


def test_several_things_in_one_folder(churn: Registry, tmp_path: Path):
    """A model and its scaler, or two files of a version, share a folder; each goes on to its next version alone."""
    churn.register("scaler", {"scaler.pkl": b"s"})
    target = tmp_path / "in"
    paths = [
        churn.resolve(ref, into=target).path
        for ref in ("model://churn/v1/config", "model://churn/v1/model.safetensors", "scaler/v1")
    ]
    assert all(Path(path).exists() for path in paths)
    churn.resolve("churn/v2", into=target)
    assert {k: v for k, v in tree(target).items() if k != ".modelhub.json"} == {
        "model.safetensors": b"second",
        "scaler.pkl": b"s",
    }


def test_the_working_directory_as_the_target(
    churn: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """into="." fills the folder that we stand in, version after version."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = os.stat(".").st_ino
    churn.resolve("model://churn/v1/model.safetensors", into=".")
    churn.resolve("churn/v2", into=".")
    assert os.stat(".").st_ino == before
    assert Path("model.safetensors").read_bytes() == b"second"


def test_a_cache_that_is_emptied_meanwhile(churn: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What was pruned between the fetch and the placing is fetched again."""
    cache = churn._core.cache()
    real, turns = type(cache).fetch_all, []

    def losing(self: Any, files: Any, *args: Any, **kwargs: Any) -> Any:
        found = real(self, files, *args, **kwargs)
        turns.append(len(found))
        if len(turns) == 1:
            self.drop([files[0].digest])
        return found

    monkeypatch.setattr(type(cache), "fetch_all", losing)
    churn.resolve("churn/v1", into=tmp_path / "in")
    assert tree(tmp_path / "in") == FILES
    assert len(turns) == 2


def test_always_verified_means_in_the_target_too(churn: Registry, tmp_path: Path):
    """With verify="always" wrong bytes in the target are replaced, though size and time tell nothing."""
    churn.resolve("churn/v2", into=tmp_path / "in")
    path = tmp_path / "in" / "model.safetensors"
    info = path.stat()
    path.write_bytes(b"seconD")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    churn.resolve("churn/v2", into=tmp_path / "in", verify="always")
    assert path.read_bytes() == b"second"


@pytest.mark.parametrize("into", ["", "s3://bucket/x", "a\0b", "\ud800x"])
def test_targets_that_are_no_folders(churn: Registry, into: str):
    """An empty text, a URL, a NUL: InvalidName."""
    with pytest.raises(hub.InvalidName):
        churn.resolve("churn/v1", into=into)


@pytest.mark.parametrize("link", ["copy", "reflink", "hard", "auto"])
def test_ways_of_linking(churn: Registry, tmp_path: Path, link: str):
    """Every way gives the same bytes; where a disk cannot reflink, it is said or copied."""
    try:
        churn.resolve("churn/v1", into=tmp_path / "in", link=link)
    except hub.StoreUnavailable:
        assert link == "reflink"
        assert not (tmp_path / "in").exists()
    else:
        assert tree(tmp_path / "in") == FILES


def test_link_comes_from_the_environment(churn: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """$MODELHUB_LINK is what link= would say, and a wrong value is refused."""
    monkeypatch.setenv("MODELHUB_LINK", "hard")
    churn.resolve("churn/v1", into=tmp_path / "in")
    assert (tmp_path / "in" / "model.safetensors").stat().st_nlink > 1
    monkeypatch.setenv("MODELHUB_LINK", "symlink")
    with pytest.raises(hub.ModelHubError, match="symlink"):
        churn.resolve("churn/v1", into=tmp_path / "other")


# --- which files


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ("*.safetensors", {"model.safetensors", "optimizer.safetensors"}),
        (["*.safetensors", "!optimizer*"], {"model.safetensors"}),
        (["!*.safetensors"], {"config/model.json", "config/deep/notes (1).txt"}),
        (["config/*"], {"config/model.json", "config/deep/notes (1).txt"}),
        (["model.*"], {"model.safetensors", "config/model.json"}),
        (["*"], set(FILES)),
        (["**/*.safetensors"], {"model.safetensors", "optimizer.safetensors"}),
        (["!**/*.safetensors"], {"config/model.json", "config/deep/notes (1).txt"}),
        (["config/**/*.txt"], {"config/deep/notes (1).txt"}),
        (["**/model.json"], {"config/model.json"}),
        ("config", {"config/model.json", "config/deep/notes (1).txt"}),
        ("config/", {"config/model.json", "config/deep/notes (1).txt"}),
        (["!config"], {"model.safetensors", "optimizer.safetensors"}),
        (["!./config/"], {"model.safetensors", "optimizer.safetensors"}),
        (["./model.safetensors"], {"model.safetensors"}),
        (Path("config/deep"), {"config/deep/notes (1).txt"}),
        ([Path("model.safetensors"), "*.onnx"], {"model.safetensors"}),
    ],
)
def test_patterns(churn: Registry, tmp_path: Path, patterns: Any, chosen: set[str]):
    """Paths, folders and globs choose files; ! excludes; without a slash a glob fits names in every folder."""
    got = churn.resolve("churn/v1", into=tmp_path / "in", files=patterns)
    assert set(got.files) == set(tree(tmp_path / "in")) == chosen
    assert tree(churn.resolve("churn/v1", files=patterns)).keys() == chosen


@pytest.mark.parametrize(
    "patterns",
    ["*.onnx", ["!*"], ["*", "!config", "!*.safetensors"], ["model.safetensors", "tokenizer.json"]],
)
def test_patterns_that_fit_nothing(churn: Registry, patterns: Any, tmp_path: Path):
    """No file fits, or a name that is no glob is of no file: NotFound with what there is, and no folder."""
    with pytest.raises(hub.NotFound, match=r"model\.safetensors|config"):
        churn.resolve("churn/v1", files=patterns, into=tmp_path / "in")
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize("patterns", ["", "!", [""], 7, [7], [None], [], (), "/", "./"])
def test_patterns_that_are_none(churn: Registry, patterns: Any):
    """An empty pattern, or another type, is an error of ours."""
    with pytest.raises(hub.ModelHubError):
        churn.resolve("churn/v1", files=patterns)


def test_names_with_special_letters(reg: Registry):
    """A name is a name also with brackets in it, and however its accents are composed."""
    reg.register("m", {"w[1].bin": b"1", "w1.bin": b"2", "caf\u00e9.txt": b"3"})
    assert reg.resolve("m/v1", files="w[1].bin").files == ("w[1].bin",)
    assert reg.resolve("m/v1", files=["*", "!w[1].bin"]).files == ("caf\u00e9.txt", "w1.bin")
    assert reg.resolve("m/v1", files="w[12].bin").files == ("w1.bin",)
    assert reg.resolve("m/v1", files="cafe\u0301.txt").files == ("caf\u00e9.txt",)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_folder_outlives_the_cache(kind: str, many: bool, tmp_path: Path):
    """On a volume that a new pod finds, what an old one placed is replaced: the registry knows those bytes."""
    more = {f"part/{n}": b"%d" % n for n in range(1001)} if many else {}
    target = tmp_path / "volume"
    with hub.open(f"sqlite:///{tmp_path}/r.db", cache_dir=tmp_path / "pod1") as reg:
        for number, files in enumerate(
            ({"shard-1": b"1", "shard-2": b"1b", "config": b"v1"} | more, {"model": b"2", "config": b"v2"}), 1
        ):
            if kind == "model":
                reg.register("churn", files)
            else:
                reg.create_dataset_version(f"churn/v{number}", files)
        reg.resolve(f"{kind}://churn/v1", into=target)
    with hub.open(f"sqlite:///{tmp_path}/r.db", cache_dir=tmp_path / "pod2") as reg:
        reg.resolve(f"{kind}://churn/v2", into=target)
        assert {p: c for p, c in tree(target).items() if p != ".modelhub.json"} == {
            "model": b"2",
            "config": b"v2",
        }
    (target / "config").write_bytes(b"mine")
    with hub.open(f"sqlite:///{tmp_path}/r.db", cache_dir=tmp_path / "pod3") as reg:
        with pytest.raises(hub.Conflict, match="config"):
            reg.resolve(f"{kind}://churn/v1", into=target)
        assert (target / "config").read_bytes() == b"mine"


@pytest.mark.parametrize("many", [False, True])
def test_what_was_purged_is_in_the_way(many: bool, tmp_path: Path):
    """A file whose only other copy was given up is somebody's last one: nothing of it is touched."""
    more = {f"part/{n}": b"%d" % n for n in range(1001)} if many else {}
    target = tmp_path / "mine"
    with hub.open(f"sqlite:///{tmp_path}/r.db", cache_dir=tmp_path / "c1") as reg:
        reg.register("m", {"w.bin": b"oldold", "extra.txt": b"e"} | more)
        reg.register("m", {"w.bin": b"newnew"})
        reg.resolve("m/v1", into=target)
        reg.purge("m/v1", "space", force=True)
    with hub.open(f"sqlite:///{tmp_path}/r.db", cache_dir=tmp_path / "c2") as reg:
        with pytest.raises(hub.Conflict, match="extra"):
            reg.resolve("m/v2", into=target)
    assert (target / "w.bin").read_bytes() == b"oldold"
    assert (target / "extra.txt").read_bytes() == b"e"


def test_a_right_folder_is_noted_again(tmp_path: Path):
    """After the cache was lost, what is found right is known once more: another model may come beside it."""
    url, target = f"sqlite:///{tmp_path}/r.db", tmp_path / "in"
    with hub.open(url, cache_dir=tmp_path / "c1") as reg:
        reg.register("m", {"m.bin": b"model"})
        reg.register("scaler", {"s.bin": b"scaler"})
        reg.resolve("m/v1", into=target)
    with hub.open(url, cache_dir=tmp_path / "c2") as reg:
        reg.resolve("m/v1", into=target)
        reg.resolve("scaler/v1", into=target)
        assert {path for path in tree(target) if path != ".modelhub.json"} == {"m.bin", "s.bin"}


def test_patterns_begin_where_the_path_ends(churn: Registry):
    """Below a folder that the URI names, patterns are of what is below it."""
    got = churn.resolve("model://churn/v1/config", files="deep/*")
    assert got.files == ("deep/notes (1).txt",)
    with pytest.raises(hub.NotFound):
        churn.resolve("model://churn/v1/config", files="config/model.json")
    one = churn.resolve("model://churn/v1/config/model.json", files="*.json")
    assert one.files == ("model.json",)


@pytest.mark.parametrize("given", [None, "no", 1, "yes"])
def test_what_is_no_bool_decides_nothing(churn: Registry, tmp_path: Path, given: Any):
    """A text that reads like no would have been taken for yes."""
    with pytest.raises(hub.InvalidDocument, match="overwrite is True or False"):
        churn.resolve("churn/v1", into=tmp_path / "in", overwrite=given)
    assert not (tmp_path / "in").exists()


def test_what_is_no_bool_deletes_nothing(churn: Registry, tmp_path: Path):
    """None, text and numbers are refused where True would delete, overwrite or keep bytes elsewhere."""
    for call in (
        lambda: churn.collect_garbage(dry_run=None),
        lambda: churn.purge("churn/v2", "x", force="no"),
        lambda: churn.export_bundle("churn/v1", tmp_path / "b.zip", overwrite="no"),
        lambda: churn.register("churn", {"f": b"1"}, copy="no"),
    ):
        with pytest.raises(hub.InvalidDocument, match="is True or False, not"):
            call()
    assert churn.model("churn").last_number == 3
    assert not (tmp_path / "b.zip").exists()


@pytest.mark.parametrize("wrong", [{"link": "symlink"}, {"verify": "never"}])
def test_options_are_checked_also_where_they_do_nothing(churn: Registry, wrong: dict[str, Any]):
    """Without into= nothing is linked, and a wrong word is a mistake all the same."""
    with pytest.raises(hub.InvalidName):
        churn.resolve("churn/v1", **wrong)


def test_a_path_in_the_uri(churn: Registry, tmp_path: Path):
    """One file is that file; a folder is what is below it; escapes are decoded once."""
    one = churn.resolve("model://churn/v1/config/deep/notes%20%281%29.txt")
    assert Path(one).read_bytes() == b"notes"
    assert one.files == ("notes (1).txt",)
    folder = churn.resolve("model://churn/latest/config", into=tmp_path / "in")
    assert tree(folder.path) == {"model.json": b"{}", "deep/notes (1).txt": b"notes"}
    assert set(folder.files) == {"model.json", "deep/notes (1).txt"}
    assert folder.path == str(tmp_path / "in" / "config")
    with pytest.raises(hub.NotFound) as caught:
        churn.resolve("model://churn/v1/config/modle.json")
    assert caught.value.nearest == ("config/model.json",)


# --- what may be resolved


def test_selectors(churn: Registry):
    """A number with and without v, latest, an alias, a digest, a value: each pinned to its version."""
    churn.set_alias("churn", "production", 2)
    digest = churn.version("churn/v2").digest
    for ref, number in [
        ("churn/1", 1),
        ("model://churn/v2", 2),
        ("churn/latest", 1),
        ("churn/production", 2),
        (f"churn/{digest}", 2),
        (churn.version("churn/v2"), 2),
        (churn.alias("churn/production"), 2),
        (churn.resolve("churn/v2"), 2),
    ]:
        got = churn.resolve(ref)
        assert (got.uri, got.version.number) == (f"model://churn/v{number}", number)


def test_rejected_by_alias_and_by_number(churn: Registry, caplog: pytest.LogCaptureFixture):
    """Rejected after the alias was set: NotApproved by alias and digest; by number with a warning."""
    churn.set_alias("churn", "canary", 2)
    churn.reject("churn/v2", "drifts\x1b[2J")
    for ref in ("churn/canary", f"churn/{churn.version('churn/v2').digest}"):
        with pytest.raises(hub.NotApproved, match="drifts") as caught:
            churn.resolve(ref)
        assert (caught.value.uri, caught.value.status) == ("model://churn/v2", "rejected")
        assert "\x1b" not in str(caught.value)
    with caplog.at_level(logging.WARNING, "modelhub_sdk"):
        assert tree(churn.resolve("churn/v2")) == {"model.safetensors": b"second"}
    assert "rejected" in caplog.text
    assert "\x1b" not in caplog.text


def test_archived_by_alias_and_by_number(churn: Registry, caplog: pytest.LogCaptureFixture):
    """An archived version is out of reach of aliases and latest; by number it resolves with a warning."""
    churn.set_alias("churn", "production", 1)
    churn.archive("churn/v1", "old")
    with pytest.raises(hub.NotApproved, match="archived"):
        churn.resolve("churn/production")
    with pytest.raises(hub.NoApprovedVersion, match="v2"):
        churn.resolve("churn/latest")
    with caplog.at_level(logging.WARNING, "modelhub_sdk"):
        assert tree(churn.resolve("churn/v1")) == FILES
    assert "archived" in caplog.text


def test_require_approved(churn: Registry):
    """require="approved", in the call or in the settings, lets nothing else through; a call may not loosen it by None."""
    assert churn.resolve("churn/v2").version.status == "pending"
    with pytest.raises(hub.NotApproved, match="pending"):
        churn.resolve("churn/v2", require="approved")
    churn.configure(require="approved")
    with pytest.raises(hub.NotApproved):
        churn.resolve("churn/v2")
    assert churn.resolve("churn/v1").uri == "model://churn/v1"
    with pytest.raises(hub.InvalidDocument, match="approved"):
        churn.resolve("churn/v1", require="Approved")


def test_route_keys(churn: Registry):
    """A weighted alias routes the same key to the same version, and keys by their weights."""
    churn.set_alias("churn", "ab", {"v1": 70, "v2": 30})
    numbers = [churn.version("churn/v1").number, 2]
    found = [churn.resolve("churn/ab", route_key=f"user-{i}").version.number for i in range(40)]
    assert found == [churn.resolve("churn/ab", route_key=f"user-{i}").version.number for i in range(40)]
    assert set(found) == set(numbers)
    assert churn.resolve("churn/ab").version.number == 1


def test_purged_is_purged_offline_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who was told once that files are gone is told so without the registry, also where equal bytes are cached."""
    url = f"sqlite:///{tmp_path}/r.db"
    with hub.open(url) as reg:
        reg.register("churn", {"a": b"1", "b": b"2"})
        reg.register("churn", {"a": b"1", "b": b"2"})
        reg.register("churn", {"a": b"1", "b": b"2", "c": b"3"})
        for number in (1, 2, 3):
            reg.resolve(f"churn/v{number}")
        reg.purge("churn/v1", "customer 17", force=True)
        reg.purge("churn/v3", "customer 17", files=["a"], force=True)
        for gone in ("v1", "v3"):
            with pytest.raises(hub.Purged, match="customer 17"):
                reg.resolve(f"churn/{gone}")
    monkeypatch.setenv("MODELHUB_OFFLINE", "1")
    with hub.open(url) as reg:
        assert reg.resolve("churn/v2").files == ("a", "b")
        for gone in ("v1", "v3"):
            with pytest.raises(
                hub.Purged, match=r"were purged before .*, when the registry was asked last"
            ) as caught:
                reg.resolve(f"churn/{gone}")
            assert "customer" not in str(caught.value)  # what people typed is in no cache
        assert reg.resolve("churn/v3", files="b").files == ("b",)


@EVERY
def test_purged_says_who_when_and_why(churn: Registry, tmp_path: Path):
    """A purged version resolves to an error with the person, the day and the reason; no folder appears."""
    churn.purge("churn/v2", "GDPR request 17")
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    with pytest.raises(hub.Purged, match=rf"v2.*tester.*{today}.*GDPR request 17"):
        churn.resolve("churn/v2", into=tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_of_the_past(churn: Registry):
    """at(...).resolve pins what a name meant then."""
    then = churn.audit(limit=1)[0].seq
    churn.approve("churn/v2")
    assert churn.resolve("churn/latest").uri == "model://churn/v2"
    assert churn.at(then).resolve("churn/latest").uri == "model://churn/v1"


# --- bytes that are wrong


def blob(reg: Registry, content: bytes) -> Path:
    root = Path(reg._core.artifacts().root or "")
    (found,) = [p for p in root.rglob("*") if p.is_file() and p.read_bytes() == content]
    return found


def test_wrong_bytes_in_the_store(churn: Registry, tmp_path: Path):
    """DigestMismatch, and the target is as it was."""
    target = tmp_path / "in"
    churn.resolve("churn/v2", into=target)
    bad = blob(churn, b"third")
    bad.chmod(0o600)
    bad.write_bytes(b"thirD")
    with pytest.raises(hub.DigestMismatch) as caught:
        churn.resolve("churn/v3", into=target)
    assert caught.value.expected == churn.version("churn/v3").files[0].digest
    assert tree(target) == {"model.safetensors": b"second"}
    assert os.listdir(tmp_path / "in") == ["model.safetensors"]


def test_missing_bytes_in_the_store(churn: Registry, tmp_path: Path):
    """A blob that is gone is an error of ours that names the file's digest; nothing appears."""
    blob(churn, b"third").unlink()
    with pytest.raises(hub.ModelHubError):
        churn.resolve("churn/v3", into=tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_wrong_bytes_in_the_cache_heal(churn: Registry, tmp_path: Path):
    """A cache entry that was changed is fetched anew; verify="always" finds it even with size and time kept."""
    folder = Path(churn.resolve("churn/v2").path)
    for path in Path(churn._core.cache().path).rglob("*"):
        if path.is_file() and path.read_bytes() == b"second":
            info = path.stat()
            path.chmod(0o600)
            path.write_bytes(b"seconD")
            os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
            path.chmod(stat.S_IMODE(info.st_mode))
    assert tree(churn.resolve("churn/v2", verify="always")) == {"model.safetensors": b"second"}
    churn.resolve("churn/v2", into=tmp_path / "in", verify="always")
    assert tree(tmp_path / "in") == {"model.safetensors": b"second"}
    assert folder.exists()


# --- offline


@contextmanager
def no_store(reg: Registry, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """The journal and the artifacts of *reg* answer nothing within this block."""

    def dead(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("The network is unreachable.")

    with patch.context() as inside:
        for method in ("read", "append", "note", "notes", "now"):
            inside.setattr(type(reg._core.place.store), method, dead)
        inside.setattr(type(reg._core.ledger), "reading", dead)
        for method in ("fetch", "read", "open", "has"):
            inside.setattr(type(reg._core.artifacts()), method, dead)
        yield


@EVERY
def test_offline_rules(churn: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without the store numbers and digests resolve from the cache; moving names need stale_ok, and tell their age."""
    churn.set_alias("churn", "production", 1)
    online = churn.resolve("churn/latest")
    churn.resolve("churn/production")
    with no_store(churn, monkeypatch):
        for ref in ("churn/v1", f"churn/{online.version.digest}"):
            got = churn.resolve(ref)
            assert tree(got) == FILES
            assert got.as_of <= datetime.now(UTC)
        assert tree(churn.resolve("churn/v1", into=tmp_path / "in").path) == FILES
        for ref in ("churn/latest", "churn/production"):
            with pytest.raises(hub.Offline, match=r"v1.*stale_ok"):
                churn.resolve(ref)
            stale = churn.resolve(ref, stale_ok=timedelta(hours=1))
            assert stale.uri == "model://churn/v1"
            assert timedelta(0) <= datetime.now(UTC) - stale.as_of < timedelta(minutes=2)
            with pytest.raises(hub.Offline):
                churn.resolve(ref, stale_ok=timedelta(0))
        with pytest.raises(hub.Offline, match="never resolved"):
            churn.resolve("churn/v2")
        with pytest.raises(hub.Offline):
            churn.resolve("churn/staging", stale_ok=timedelta(days=1))
        with pytest.raises(hub.InvalidURI):
            churn.resolve("model://churn/../x")
    with pytest.raises(hub.InvalidDocument, match="timedelta"):
        churn.resolve("churn/latest", stale_ok=3600)


def test_offline_keeps_to_the_rules(churn: Registry, monkeypatch: pytest.MonkeyPatch):
    """What was known of status and settings holds offline: no rejected alias, no pending where approval is required."""
    churn.resolve("churn/v2")
    with no_store(churn, monkeypatch), pytest.raises(hub.NotApproved):
        churn.resolve("churn/v2", require="approved")
    churn.configure(require="approved")
    with pytest.raises(hub.NotApproved):
        churn.resolve("churn/v2")
    churn.resolve("churn/v1")
    with no_store(churn, monkeypatch):
        assert churn.resolve("churn/v1").uri == "model://churn/v1"


def test_offline_the_cache_is_not_whole(churn: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A version known but not completely in the cache is Offline, and nothing appears."""
    churn.resolve("churn/v1", files="model.safetensors")
    with no_store(churn, monkeypatch):
        with pytest.raises(hub.Offline, match="not completely"):
            churn.resolve("churn/v1", into=tmp_path / "in")
        assert tree(churn.resolve("churn/v1", files="model.safetensors")) == {"model.safetensors": b"weights"}
    assert not (tmp_path / "in").exists()


def test_opening_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """A process that starts without the network opens the registry for what its cache holds, and nothing else."""
    url = f"sqlite:///{tmp_path}/r.db"
    with hub.open(url) as reg:
        reg.register("churn", FILES)
        reg.resolve("churn/v1")
    monkeypatch.setenv("MODELHUB_OFFLINE", "1")
    with hub.open(url) as reg:
        assert tree(reg.resolve("churn/v1")) == FILES
        for call in (
            reg.models,
            lambda: reg.approve("churn/v1"),
            lambda: reg.register("m", {"f": b"1"}),
            reg.verify,
        ):
            with pytest.raises(hub.ModelHubError) as caught:
                call()
            assert isinstance(caught.value, hub.Offline | hub.NotAllowed)
    with pytest.raises(hub.Offline, match="MODELHUB_OFFLINE"):
        hub.open(f"sqlite:///{tmp_path}/other.db")
    assert not (tmp_path / "other.db").exists()


def test_opening_without_a_database_server(postgres_db: str, pg_proxy: Any, tmp_path: Path):
    """PostgreSQL is unreachable: by number from the cache, latest only with stale_ok, anything else says why."""
    with hub.open(pg_proxy.url, artifacts=tmp_path / "art", create=True) as reg:
        reg.register("churn", FILES)
        reg.approve("churn/v1")
        reg.resolve("churn/latest")
        with pg_proxy.away():
            assert tree(reg.resolve("churn/v1")) == FILES
    with pg_proxy.away(), hub.open(pg_proxy.url) as reg:
        assert tree(reg.resolve("churn/v1")) == FILES
        with pytest.raises(hub.Offline, match="stale_ok"):
            reg.resolve("churn/latest")
        assert reg.resolve("churn/latest", stale_ok=timedelta(hours=1)).uri == "model://churn/v1"
        with pytest.raises(hub.Offline):
            reg.models()


# --- uses


def waiting(reg: Registry, count: int) -> None:
    """Wait until *count* uses are in the inbox: they are delivered beside the transfer."""
    deadline = time.monotonic() + 10
    while len(reg._core.place.store.notes(100)) < count and time.monotonic() < deadline:
        time.sleep(0.01)


@EVERY
def test_uses_are_recorded(churn: Registry, monkeypatch: pytest.MonkeyPatch):
    """Who resolved what under which name stands in the inbox at once, and in the journal after a later commit."""
    monkeypatch.setenv("VH_EXECUTION_ID", "exec-7")
    churn.resolve("churn/latest")
    churn.resolve("churn/v1")
    waiting(churn, 2)
    first = churn.uses("churn/v1")
    assert [use.asked for use in first] == ["model://churn/latest", "model://churn/v1"]
    assert {(use.uri, use.actor, use.run_id) for use in first} == {("model://churn/v1", "tester", "exec-7")}
    assert [r for r in churn.audit() if r.action == "uses.recorded"] == []
    churn._core.drained = -1e9  # as if the handle had not looked for long
    churn.comment("churn/v1", "a later commit")
    assert [r.detail for r in churn.audit(action="uses")] == ["recorded 2 uses"]
    assert churn.uses("churn/v1") == first
    churn._core.drained = -1e9
    churn.comment("churn/v1", "another")
    assert churn.audit(action="uses").total == 1
    assert churn.uses("churn/v2").total == 0
    assert churn.verify()


def test_uses_are_spooled(churn: Registry, monkeypatch: pytest.MonkeyPatch):
    """A use that cannot be delivered waits in the cache and travels with the next one; the inference goes on."""

    def dead(*_: Any) -> None:
        raise StoreUnavailable("No.")

    with monkeypatch.context() as patch:
        patch.setattr(type(churn._core.place.store), "note", dead)
        started = time.monotonic()
        assert tree(churn.resolve("churn/v1")) == FILES
        assert time.monotonic() - started < 5
        assert list(churn.uses("churn/v1")) == []
    churn.resolve("churn/v1")
    waiting(churn, 2)
    assert churn.uses("churn/v1").total == 2
    spool = Path(churn._core.cache().path) / "spool"
    assert list(spool.rglob("*.json")) == []


def test_a_slow_store_does_not_delay_an_inference(churn: Registry, monkeypatch: pytest.MonkeyPatch):
    """Recording a use takes at most half a second of a resolve; what is delivered and spooled is still one use."""
    real = type(churn._core.place.store).note

    def slow(store: Any, notes: Any) -> None:
        time.sleep(1.5)
        real(store, notes)

    with monkeypatch.context() as patch:
        patch.setattr(type(churn._core.place.store), "note", slow)
        started = time.monotonic()
        churn.resolve("churn/v1")
        assert time.monotonic() - started < 1.4
        waiting(churn, 1)
    churn.resolve("churn/v1")
    waiting(churn, 2)
    assert churn.uses("churn/v1").total == 2


def test_uses_that_cannot_be_kept_warn_once(churn: Registry, monkeypatch: pytest.MonkeyPatch):
    """Neither store nor cache can be written: a warning, once, and the files are there."""
    from modelhub_sdk import resolver

    def dead(*_: Any) -> None:
        raise StoreUnavailable("No.")

    monkeypatch.setattr(type(churn._core.place.store), "note", dead)
    monkeypatch.setattr(resolver, "_spool", dead)
    monkeypatch.setattr(resolver._Use, "_lost", 0)
    with pytest.warns(RuntimeWarning, match="could not be recorded"):
        assert tree(churn.resolve("churn/v1")) == FILES
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        churn.resolve("churn/v1")


@pytest.mark.parametrize("reg", ["sqlite", "folder"], indirect=True)
def test_a_read_only_registry_resolves(churn: Registry, tmp_path: Path):
    """Opened read-only the registry resolves, its use is spooled, and nothing of the registry is written."""
    place = churn.url.removeprefix("file://")
    with hub.open(place, read_only=True) as reading:
        assert tree(reading.resolve("churn/latest", into=tmp_path / "in").path) == FILES
        with pytest.raises(hub.NotAllowed, match="read-only"):
            reading.approve("churn/v2")
        with pytest.raises(hub.NotAllowed, match="read-only"):
            reading.register("churn", {"f": b"never"})
    assert not any(p.is_file() and p.read_bytes() == b"never" for p in tmp_path.rglob("*"))


def test_bad_notes_in_the_inbox(churn: Registry):
    """Rubbish in the inbox, and uses of versions that do not exist, harm neither reads nor commits."""
    from modelhub_sdk.ports import Note

    good = {
        "kind": "use",
        "uri": "model://churn/v1",
        "asked": "model://churn/v1",
        "at": "2026-03-01T12:00:00.000000Z",
    }
    churn._core.place.store.note(
        [
            Note("0" * 32, b"\xff not json"),
            Note("1" * 32, b"[]"),
            Note("2" * 32, json.dumps(good | {"uri": "model://churn/v99"}).encode()),
            Note("3" * 32, json.dumps(good | {"uri": "model://nothing/v1"}).encode()),
            Note("4" * 32, json.dumps(good | {"actor": "a\nb"}).encode()),
            Note("5" * 32, json.dumps(good | {"asked": "\ud800"}).encode()),
            Note("6" * 32, json.dumps(good | {"at": "yesterday"}).encode()),
            Note("7" * 32, json.dumps(good).encode()),
        ]
    )
    assert [use.id for use in churn.uses("churn/v1")] == ["7" * 32]
    churn._core.drained = -1e9
    churn.comment("churn/v1", "drains")
    assert [use.id for use in churn.uses("churn/v1")] == ["7" * 32]
    assert churn.verify()


def test_progress_is_silent_without_a_watcher(
    churn: Registry, capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    """No bar where nobody is watching; one on stderr when it is asked for."""
    churn.resolve("churn/v1", into=tmp_path / "a")
    assert capfd.readouterr() == ("", "")
    churn.resolve("churn/v2", into=tmp_path / "b", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "churn" in err or "%" in err


CALLS: list[tuple[str, Callable[[Registry], Any]]] = [
    ("require", lambda reg: reg.resolve("churn/v1", require=True)),
    ("link", lambda reg: reg.resolve("churn/v1", into="x", link="soft")),
    ("verify", lambda reg: reg.resolve("churn/v1", verify="sometimes")),
    ("into", lambda reg: reg.resolve("churn/v1", into=7)),
    ("stale_ok", lambda reg: reg.resolve("churn/v1", stale_ok="1h")),
    ("route_key", lambda reg: reg.resolve("churn/v1", route_key=[7])),
]


@pytest.mark.parametrize(("name", "call"), CALLS, ids=[name for name, _ in CALLS])
def test_wrong_arguments(
    churn: Registry, name: str, call: Callable[[Registry], Any], tmp_path: Path, monkeypatch
):
    """An argument of another kind is an error of ours that names it, before anything is fetched."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(hub.ModelHubError, match=name.split("_")[0]):
        call(churn)
    assert not (tmp_path / "x").exists()
