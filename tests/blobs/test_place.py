"""Placing files into somebody's folder: whole or not at all, through no link, over nobody's work."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhub_sdk.blobs import disk, place, staging
from modelhub_sdk.blobs import link as links
from modelhub_sdk.blobs.cache import Cache
from modelhub_sdk.blobs.place import RECORD, Plan, into, plan
from modelhub_sdk.blobs.sources import from_bytes
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.domain.entities import File
from modelhub_sdk.errors import (
    Conflict,
    DigestMismatch,
    InvalidName,
    ModelHubError,
    NotFound,
    StoreUnavailable,
)
from tests.support.disks import mounted


def pattern(size: int, seed: int = 0) -> bytes:
    return (hashlib.sha256(bytes([seed])).digest() * (size // 32 + 1))[:size]


class Model:
    """Two versions in a store, and a cache."""

    def __init__(self, folder: Path) -> None:
        self.store = BlobStore(folder / "store", registry_id="r1")
        self.cache = Cache(folder / "cache")
        self.one = self.store.put_all(
            [
                from_bytes(b"one", "model.pkl"),
                from_bytes(pattern(5000), "weights/w.bin"),
                from_bytes(b"", "empty"),
            ]
        )
        self.two = self.store.put_all(
            [
                from_bytes(b"two", "model.pkl"),
                from_bytes(pattern(5000), "weights/w.bin"),
                from_bytes(b"x", "new/x"),
            ]
        )

    def get(self, file: File) -> Path:
        return self.cache.fetch(file, self.store)

    def into(self, target: Any, files: tuple[File, ...] | None = None, **options: Any) -> bool:
        records = options.pop("records", self.cache.records)
        return into(
            target, self.one if files is None else files, self.get, records=records, **options
        ).changed


ONE = {"empty": b"", "model.pkl": b"one", "weights": None, "weights/w.bin": pattern(5000)}
TWO = {"model.pkl": b"two", "new": None, "new/x": b"x", "weights": None, "weights/w.bin": pattern(5000)}


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path / "base")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "inputs" / "model"


def siblings(target: Path) -> list[str]:
    return sorted(os.listdir(target.parent)) if target.parent.exists() else []


# --- the plan


def f(path: str) -> File:
    return File(path, 1, "sha256:" + "a" * 64)


@pytest.mark.parametrize(
    ("found", "options", "expected"),
    [
        ({}, {}, Plan("replace", write=(f("a"), f("b")))),
        ({}, {"replaceable": False}, Plan("inside", write=(f("a"), f("b")))),
        ({"a": "right", "b": "right"}, {}, Plan("leave")),
        ({"a": "right", "b": "right", "c": "foreign"}, {}, Plan("leave")),
        ({"a": "right"}, {}, Plan("replace", write=(f("a"), f("b")))),
        ({"a": "right"}, {"replaceable": False}, Plan("inside", write=(f("b"),))),
        ({"a": "right", "b": "right", "c": "ours"}, {}, Plan("replace", write=(f("a"), f("b")))),
        (
            {"a": "ours", "c": "ours"},
            {"replaceable": False},
            Plan("inside", write=(f("a"), f("b")), remove=("c",)),
        ),
        ({"a": "foreign"}, {}, Plan("inside", in_the_way=("a",))),
        ({"c": "foreign"}, {}, Plan("inside", in_the_way=("c",))),
        ({"a": "foreign"}, {"overwrite": True}, Plan("inside", write=(f("a"), f("b")))),
        (
            {"c": "foreign", "d": "ours"},
            {"overwrite": True},
            Plan("inside", write=(f("a"), f("b")), remove=("d",)),
        ),
    ],
)
def test_the_plan_is_pure(found: Any, options: Any, expected: Plan) -> None:
    """What is done follows from what is there alone."""
    assert plan([f("a"), f("b")], found, **options) == expected


@given(
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["right", "ours", "foreign"])),
    st.booleans(),
    st.booleans(),
)
def test_the_plan_never_takes_foreign_files(
    found: dict[str, Any], overwrite: bool, replaceable: bool
) -> None:
    """Foreign files are never removed; without overwrite they are never replaced either, nor the folder they are in."""
    files = [f("a"), f("b")]
    todo = plan(files, found, overwrite=overwrite, replaceable=replaceable)
    foreign = {path for path, state in found.items() if state == "foreign"}
    assert not foreign & set(todo.remove)
    if foreign:
        assert todo.how != "replace"
    if not overwrite:
        assert not foreign & {file.path for file in todo.write} or todo.in_the_way
    if not todo.in_the_way and todo.how == "inside":
        after = {p for p, s in found.items() if s == "right"} | {file.path for file in todo.write}
        assert {"a", "b"} <= after


# --- a folder of our own


def test_a_new_folder_appears_whole(model: Model, target: Path, look: Any) -> None:
    """Folders above are made; nothing but the files is there, writable by their owner."""
    told: list[int] = []
    assert model.into(target, watch=lambda total: nullcontext(told.append))
    assert look(target) == ONE
    assert siblings(target) == ["model"]
    assert (target / "model.pkl").stat().st_mode & 0o200
    assert sum(told) == 5003


def test_what_is_right_is_left_alone(model: Model, target: Path) -> None:
    """A second call rewrites nothing, with and without the record, also if the files are read-only."""
    model.into(target)
    os.chmod(target / "model.pkl", 0o444)

    def facts() -> dict[Path, tuple[int, ...]]:  # all but when they were read
        found = {p: p.stat() for p in target.rglob("*")}
        return {p: (i.st_ino, i.st_mode, i.st_mtime_ns, i.st_ctime_ns) for p, i in found.items()}

    before = facts()
    for records in (model.cache.records, None):
        assert not model.into(target, records=records, watch=lambda total: pytest.fail("nothing is moved"))
    assert facts() == before


def test_an_empty_folder_is_taken(model: Model, target: Path, look: Any) -> None:
    """An existing empty folder becomes the target."""
    target.mkdir(parents=True)
    assert model.into(target)
    assert look(target) == ONE


def test_the_next_version_replaces_the_last(model: Model, target: Path, look: Any) -> None:
    """What was placed before and is unchanged is replaced as a whole, in one step; stale files go."""
    model.into(target)
    assert model.into(target, model.two)
    assert look(target) == TWO
    assert model.into(target)
    assert look(target) == ONE
    assert siblings(target) == ["model"]


def test_without_exchange_it_takes_two_steps(
    model: Model, target: Path, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two folders cannot be swapped, the old one is moved aside, and back if the second step fails."""
    monkeypatch.setattr(place, "exchange", lambda one, other: False)
    model.into(target)
    assert model.into(target, model.two)
    assert look(target) == TWO
    real = os.rename
    calls = []

    def failing(source: Any, to: Any, **kwargs: Any) -> None:
        calls.append(to)
        if len(calls) == 3:
            raise OSError(errno.EIO, "broken")
        real(source, to, **kwargs)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(StoreUnavailable):
        model.into(target)
    assert look(target) == TWO
    assert siblings(target) == ["model"]


def test_a_part_that_is_right_can_be_completed(model: Model, target: Path, look: Any) -> None:
    """Some right files and nothing else: the rest is added, without a record."""
    (target / "weights").mkdir(parents=True)
    (target / "weights" / "w.bin").write_bytes(pattern(5000))
    assert model.into(target, records=None)
    assert look(target) == ONE


def test_relative_targets_and_the_current_folder(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Any
) -> None:
    """A relative path is taken from the current folder, and that folder itself may be the target."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    model.into("in")
    assert look(tmp_path / "cwd" / "in") == ONE
    (tmp_path / "cwd2").mkdir()
    monkeypatch.chdir(tmp_path / "cwd2")
    model.into(".")
    found = look(tmp_path / "cwd2")
    assert found.pop(RECORD)
    assert found == ONE


@pytest.mark.parametrize("below", [".", "notebooks"])
def test_the_folder_that_we_work_in_is_not_replaced(
    model: Model, target: Path, monkeypatch: pytest.MonkeyPatch, look: Any, below: str
) -> None:
    """Whoever stands in the target, or below it, stands there afterwards too, and sees the next version."""
    model.into(target)
    (target / below).mkdir(exist_ok=True)
    monkeypatch.chdir(target / below)
    model.into(target, model.two)
    assert os.path.samefile(".", target / below)
    found = look(target)
    assert found.pop(RECORD)
    assert found == (TWO if below == "." else TWO | {below: None})


def test_a_replaced_folder_keeps_its_permissions(model: Model, target: Path) -> None:
    """What the user made private, or set-group-id, is so after the next version, and in an empty folder too."""
    target.mkdir(parents=True)
    for mode, files in ((0o700, model.one), (0o2750, model.two), (0o555, model.one)):
        os.chmod(target, mode)
        inode = target.stat().st_ino
        model.into(target, files)
        assert target.stat().st_ino != inode
        assert stat.S_IMODE(target.stat().st_mode) == mode
    os.chmod(target, 0o755)


def test_a_folder_of_another_user_is_not_replaced(
    model: Model, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner would change: the files are put inside."""
    model.into(target)
    inode, other = target.stat().st_ino, os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    model.into(target, model.two)
    assert target.stat().st_ino == inode
    assert (target / "model.pkl").read_bytes() == b"two"


def test_empty_folders_of_the_user_stay(model: Model, target: Path, look: Any) -> None:
    """Folders without files that the user made inside are there after the next version."""
    model.into(target)
    (target / "logs" / "run1").mkdir(parents=True)
    model.into(target, model.two)
    found = look(target)
    assert found.pop(RECORD)
    assert found == TWO | {"logs": None, "logs/run1": None}


def test_an_empty_folder_that_is_made_meanwhile_stays(model: Model, target: Path) -> None:
    """Also one that appears while the files are staged."""
    model.into(target)

    def get(file: File) -> Path:
        (target / "logs").mkdir(exist_ok=True)
        return model.get(file)

    into(target, model.two, get, records=model.cache.records)
    assert (target / "logs").is_dir()
    assert (target / "model.pkl").read_bytes() == b"two"


@pytest.mark.parametrize("bad", ["", "a\0b", "s3://bucket/x", "file:///x", "\ud800x"])
def test_odd_targets_are_refused(model: Model, bad: str) -> None:
    """An empty path, a NUL, a URL, no text: InvalidName."""
    with pytest.raises(InvalidName):
        model.into(bad)


def test_the_cache_is_no_target(model: Model) -> None:
    """Nothing is placed into what the cache itself writes and removes."""
    for inside in ("v1", "v1/blobs", "v1/tmp/x"):
        with pytest.raises(InvalidName, match="cache"):
            model.into(Path(model.cache.path, inside))


def test_a_working_directory_that_is_gone_is_typed(
    model: Model, tmp_path: Path, target: Path, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a deleted working directory a relative target is StoreUnavailable; an absolute one works."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(StoreUnavailable, match="absolute"):
        model.into("in")
    model.into(target)
    model.into(target, model.two)
    assert look(target) == TWO


def test_an_unusable_target_is_told_before_anything_is_fetched(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a file, below /proc, with a name that is too long, without permission: typed, and no folder is left."""
    (tmp_path / "file").write_bytes(b"x")
    bad = [
        tmp_path / "file" / "x" / "y",
        tmp_path / "new" / ("n" * 300),
        tmp_path / "new" / ("n" * 300) / "x",
    ]
    bad += [Path("/proc/x")] if sys.platform.startswith("linux") else []
    for target in bad:
        with pytest.raises(StoreUnavailable, match="folder|look at"):
            model.into(target, before=lambda files: pytest.fail("it was fetched in vain"))
        assert not (tmp_path / "new").exists()
    real = os.mkdir

    def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        if ".partial" in os.fsdecode(path):
            raise PermissionError(errno.EACCES, "")
        real(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", mkdir)
    (tmp_path / "in").mkdir()
    for target in (tmp_path / "in", tmp_path / "new" / "in"):
        with pytest.raises(StoreUnavailable, match="permissions"):
            model.into(target, before=lambda files: pytest.fail("it was fetched in vain"))
    assert not (tmp_path / "new").exists()
    assert os.listdir(tmp_path / "in") == []


def test_paths_longer_than_the_system_allows(model: Model, tmp_path: Path) -> None:
    """Target and path in it are longer than PATH_MAX together: it is placed, seen to be right, and replaced."""
    inner = "/".join(["s" * 200] * 4) + "/f.bin"
    one, two = (model.store.put_all([from_bytes(data, inner)]) for data in (b"1", b"2"))
    target = tmp_path
    while len(str(target)) < os.pathconf("/", "PC_PATH_MAX") - 700:
        target /= "t" * 200
    try:
        assert model.into(target, one)
        assert not model.into(target, one)
        assert model.into(target, two)
        assert not model.into(target, two, verify="always")
    finally:
        subprocess.run(["rm", "-rf", tmp_path / ("t" * 200)], check=True)


def test_an_unknown_link_is_refused(model: Model, target: Path) -> None:
    """link= has four values."""
    with pytest.raises(InvalidName, match="reflink"):
        model.into(target, link="soft")
    assert not target.exists()


def test_no_files_make_an_empty_folder(model: Model, target: Path) -> None:
    """A version without files is an empty folder."""
    model.into(target, ())
    assert os.listdir(target) == []


# --- somebody else's files


def test_foreign_files_are_in_the_way(model: Model, target: Path, look: Any) -> None:
    """A folder with other files is refused, they are named, and nothing is changed."""
    target.mkdir(parents=True)
    (target / "notes\n.txt").write_bytes(b"mine")
    (target / "model.pkl").write_bytes(b"mine too")
    before = look(target)
    with pytest.raises(Conflict, match=r"notes\\n\.txt") as caught:
        model.into(target)
    assert "model.pkl" in str(caught.value)
    assert look(target) == before
    assert siblings(target) == ["model"]


def test_a_placed_file_that_was_edited_is_foreign(model: Model, target: Path) -> None:
    """What somebody changed since it was placed is theirs now."""
    model.into(target)
    (target / "model.pkl").write_bytes(b"ONE")
    with pytest.raises(Conflict, match=r"model\.pkl"):
        model.into(target, model.two)
    assert (target / "model.pkl").read_bytes() == b"ONE"


def test_an_added_file_does_not_disturb_what_is_right(model: Model, target: Path) -> None:
    """Beside right files another one may stand, as long as nothing has to be written."""
    model.into(target)
    (target / "notes").write_bytes(b"mine")
    assert not model.into(target)
    with pytest.raises(Conflict, match="notes"):
        model.into(target, model.two)


def test_overwrite_replaces_same_names_only(model: Model, target: Path, look: Any) -> None:
    """With overwrite=True files of the version's names are replaced, by rename, and all others stay."""
    outside = target.parent / "outside"
    (target / "weights").mkdir(parents=True)
    outside.write_bytes(b"precious")
    os.link(outside, target / "model.pkl")
    (target / "weights" / "w.bin").symlink_to(outside)
    os.mkfifo(target / "empty")
    (target / "weights" / "mine").write_bytes(b"mine")
    assert model.into(target, overwrite=True)
    found = look(target)
    assert found.pop(RECORD)
    assert found == ONE | {"weights/mine": b"mine"}
    assert outside.read_bytes() == b"precious"
    assert model.into(target, model.two, overwrite=True)
    found = look(target)
    assert found.pop(RECORD)
    assert found == TWO | {"weights/mine": b"mine"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_links_are_never_written_through(model: Model, target: Path, tmp_path: Path, overwrite: bool) -> None:
    """The target, or a folder in it, as a link to elsewhere: refused, and elsewhere is untouched."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target.parent.mkdir()
    target.symlink_to(elsewhere)
    with pytest.raises(Conflict, match="link"):
        model.into(target, overwrite=overwrite)
    target.unlink()
    target.mkdir()
    (target / "weights").symlink_to(elsewhere)
    with pytest.raises(Conflict, match="weights"):
        model.into(target, overwrite=overwrite)
    assert os.listdir(elsewhere) == []
    assert os.listdir(target) == ["weights"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_and_folders_do_not_replace_each_other(model: Model, target: Path, overwrite: bool) -> None:
    """A file as the target or in place of a folder, and a folder in place of a file: refused."""
    target.parent.mkdir()
    target.write_bytes(b"file")
    with pytest.raises(Conflict, match="not a folder"):
        model.into(target, overwrite=overwrite)
    target.unlink()
    target.mkdir()
    (target / "weights").write_bytes(b"file")
    with pytest.raises(Conflict, match="weights"):
        model.into(target, overwrite=overwrite)
    (target / "weights").unlink()
    (target / "model.pkl").mkdir()
    (target / "model.pkl" / "x").write_bytes(b"x")
    with pytest.raises(Conflict, match=r"model\.pkl"):
        model.into(target, overwrite=overwrite)
    assert (target / "model.pkl" / "x").read_bytes() == b"x"


def test_a_fifo_in_the_way_does_not_block(model: Model, target: Path) -> None:
    """A FIFO of a file's name is refused at once."""
    target.mkdir(parents=True)
    os.mkfifo(target / "model.pkl")
    with pytest.raises(Conflict, match=r"model\.pkl"):
        model.into(target)


def test_a_home_folder_is_not_walked_through(model: Model, target: Path) -> None:
    """A folder with very many files, passed by mistake, is refused without looking at all of them."""
    target.mkdir(parents=True)
    for n in range(10_100):
        (target / str(n)).touch()
    with pytest.raises(Conflict, match="…"):
        model.into(target)


# --- several things in one folder

V1, V2, OTHER = "model://churn/v1", "model://churn/v2", "model://scaler/v1"


def files_of(model: Model, **content: bytes) -> tuple[File, ...]:
    return model.store.put_all([from_bytes(data, name) for name, data in content.items()])


def test_another_thing_in_the_same_folder_stays(model: Model, target: Path, look: Any) -> None:
    """A model and its scaler in one folder: each goes to its next version by itself."""
    model.into(target, files_of(model, a=b"1", b=b"1", lic=b"L"), source=V1)
    model.into(target, files_of(model, s=b"s", lic=b"L"), source=OTHER)
    found = look(target)
    assert found.pop(RECORD)
    assert found == {"a": b"1", "b": b"1", "lic": b"L", "s": b"s"}
    model.into(target, files_of(model, a=b"2"), source=V2)
    found = look(target)
    found.pop(RECORD)
    assert found == {"a": b"2", "s": b"s", "lic": b"L"}
    model.into(target, files_of(model, s=b"t"), source="model://scaler/v2")
    found = look(target)
    found.pop(RECORD)
    assert found == {"a": b"2", "s": b"t"}


def test_files_of_one_version_one_after_the_other(model: Model, target: Path, look: Any) -> None:
    """What was placed of the same version before stays; the next version takes all of it away."""
    one = files_of(model, a=b"1", b=b"1")
    model.into(target, one[:1], source=V1)
    model.into(target, one[1:], source=V1)
    assert not model.into(target, one, source=V1)
    model.into(target, files_of(model, c=b"2"), source=V2)
    found = look(target)
    found.pop(RECORD, None)
    assert found == {"c": b"2"}


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_that_is_right_already_belongs_to_both(
    model: Model, target: Path, look: Any, inside: bool
) -> None:
    """A file that another version or thing needs as well is not taken away as if it were the first one's alone."""
    if inside:
        model.into(target, files_of(model, x=b"x"), source="model://x/v1")
    model.into(target, files_of(model, a=b"1", b=b"1"), source=V1)
    assert not model.into(target, files_of(model, a=b"1"), source=OTHER)
    assert not model.into(target, files_of(model, a=b"1"), source=OTHER)
    model.into(target, files_of(model, c=b"2"), source=V2)
    found = look(target)
    assert found["a"] == b"1"
    assert "b" not in found


def test_a_file_of_two_things_goes_with_the_last_of_them(model: Model, target: Path, look: Any) -> None:
    """What both need stays until neither does, also when the folder was replaced as a whole meanwhile."""
    model.into(target, files_of(model, lic=b"L"), source=OTHER)
    model.into(target, files_of(model, a=b"1", lic=b"L"), source=V1)
    assert look(target) == {"a": b"1", "lic": b"L"}
    model.into(target, files_of(model, a=b"2"), source=V2)
    assert look(target)["lic"] == b"L"
    model.into(target, files_of(model, b=b"2"), source="model://scaler/v2")
    found = look(target)
    found.pop(RECORD)
    assert found == {"a": b"2", "b": b"2"}


def test_two_things_that_want_the_same_name(model: Model, target: Path, look: Any) -> None:
    """The second is refused by name, also where the record would let the first be replaced; overwrite replaces it."""
    model.into(target, files_of(model, a=b"1", b=b"1"), source=V1)
    for known in (None, lambda path: {file.digest for file in files_of(model, a=b"1")}):
        with pytest.raises(Conflict, match="'a'"):
            model.into(target, files_of(model, a=b"s"), source=OTHER, known=known)
    model.into(target, files_of(model, a=b"s"), source=OTHER, overwrite=True)
    found = look(target)
    assert found.pop(RECORD)
    assert found == {"a": b"s", "b": b"1"}


def test_data_have_no_versions(model: Model, target: Path, look: Any) -> None:
    """Two data in one folder both stay; of one name, the later replaces the earlier."""
    model.into(target, files_of(model, a=b"1"), source="datum://1")
    model.into(target, files_of(model, b=b"1"), source="datum://2")
    model.into(target, files_of(model, a=b"2"), source="datum://3")
    found = look(target)
    assert found.pop(RECORD)
    assert found == {"a": b"2", "b": b"1"}


def test_records_without_sources_are_read(model: Model, target: Path, look: Any) -> None:
    """What an earlier release placed, which noted no sources, is replaced by any version."""
    model.into(target, source=V1)
    (record,) = model.cache.records.glob("*.json")
    body = json.loads(record.read_bytes())
    assert set(body.pop("sources")) == {"empty", "model.pkl", "weights/w.bin"}
    record.write_text(json.dumps(body))
    model.into(target, model.two, source=V2)
    assert look(target) == TWO
    model.into(target, model.one)
    assert look(target) == ONE


# --- without a record


def test_what_the_registry_knows_is_replaced_without_a_record(
    model: Model, target: Path, tmp_path: Path, look: Any
) -> None:
    """A new cache, the folder of before: files of an earlier version are replaced, and those of nobody are not."""
    versions = {file.path: {file.digest} for file in (*model.two, *model.one)}
    model.into(target)
    with pytest.raises(Conflict):
        model.into(target, model.two, records=tmp_path / "new" / "records")
    asked: list[str] = []

    def known(path: str) -> set[str]:
        asked.append(path)
        return versions.get(path, set())

    assert not model.into(target, records=tmp_path / "new" / "records", known=known)
    assert asked == []
    (target / "notes").write_bytes(b"mine")
    with pytest.raises(Conflict) as caught:
        model.into(target, model.two, records=tmp_path / "new" / "records", known=known)
    assert "notes" in str(caught.value)
    assert "model.pkl" not in str(caught.value)
    (target / "empty").write_bytes(b"edited")
    with pytest.raises(Conflict, match="empty"):
        model.into(target, model.two, records=tmp_path / "new" / "records", known=known)
    (target / "empty").write_bytes(b"")
    model.into(target, model.two, records=tmp_path / "new" / "records", known=known, overwrite=True)
    found = look(target)
    assert found.pop(RECORD)
    assert found == TWO | {"notes": b"mine"}


def test_always_verified_means_in_the_target_too(model: Model, target: Path, look: Any) -> None:
    """With verify="always" bytes that changed while size and mtime did not are replaced."""
    model.into(target)
    info = (target / "model.pkl").stat()
    (target / "model.pkl").write_bytes(b"bad")
    os.utime(target / "model.pkl", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert not model.into(target)
    assert model.into(target, verify="always")
    assert look(target) == ONE
    assert not model.into(target, verify="always")
    with pytest.raises(InvalidName, match="verify"):
        model.into(target, verify="sometimes")


# --- a cache that loses what was fetched


@pytest.mark.parametrize("how", ["auto", "copy", "hard"])
def test_a_source_that_vanished_is_fetched_again(model: Model, target: Path, look: Any, how: str) -> None:
    """A file that was pruned between the fetch and the placing is fetched once more; for ever, and it is an error."""
    paths: dict[str, Path] = {}
    turns: list[int] = []
    losses = 1

    def before(files: Any) -> None:
        turns.append(len(files))
        paths.update((file.digest, model.get(file)) for file in files)
        if len(turns) <= losses:
            model.cache.drop([files[0].digest])

    def get(file: File) -> Path:
        return paths[file.digest]

    assert into(target, model.one, get, link=how, before=before).changed
    assert look(target) == ONE
    assert turns == [3, 3]
    losses = 100
    with pytest.raises(StoreUnavailable) as caught:
        into(target, model.two, get, link=how, before=before, overwrite=True)
    assert caught.value.errno == errno.ENOENT
    assert look(target) == ONE
    with pytest.raises(StoreUnavailable):
        into(target, model.two, get, link=how, overwrite=True)


# --- others at work


@pytest.fixture
def held(model: Model, target: Path) -> Iterator[Path]:
    """Yield the staging folder of another process that places into the target, and is stopped."""
    model.into(target)
    (record,) = model.cache.records.glob("*.json")
    staged = target.parent / (disk.temporary(".model") + ".partial")
    staged.mkdir()
    fd = os.open(f"{record}.lock", disk.LOCK, 0o600)
    assert disk.try_lock(fd)
    yield staged
    os.close(fd)


def test_a_placer_that_hangs_is_not_waited_for(
    model: Model, target: Path, held: Path, look: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Whoever finds the folder right does not wait at all; others go on when nothing happens for a while."""
    monkeypatch.setattr(place, "_STALLED", 60.0)
    assert not model.into(target)
    monkeypatch.setattr(place, "_STALLED", 0.05)
    caplog.set_level("INFO")
    assert model.into(target, model.two)
    assert look(target) == TWO
    assert "not waited for" in caplog.text
    assert held.exists()


def test_a_placer_that_gets_on_is_waited_for(
    model: Model, target: Path, held: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as its files grow, its turn lasts."""
    monkeypatch.setattr(place, "_STALLED", 0.2)
    real, naps = time.sleep, 0

    def sleep(seconds: float) -> None:
        nonlocal naps
        naps += 1
        if naps < 40:
            with open(held / "w.bin", "ab") as file:
                file.write(b"x")
        real(min(seconds, 0.02))

    monkeypatch.setattr(time, "sleep", sleep)
    assert model.into(target, model.two)
    assert naps >= 40


def test_records_of_folders_that_are_gone_are_forgotten(model: Model, tmp_path: Path, look: Any) -> None:
    """After a week, or when the cache is cleared; those of folders that are there stay."""
    for name in ("a", "b"):
        model.into(tmp_path / name)
        (tmp_path / name).rename(tmp_path / f"{name}-moved")
    model.into(tmp_path / "c")
    model.cache.sweep()
    assert len(list(model.cache.records.iterdir())) == 3  # the locks are gone
    for record in model.cache.records.glob("*.json"):
        if json.loads(record.read_bytes())["target"] != str(tmp_path / "b"):
            os.utime(record, (time.time() - 8 * 86400,) * 2)
    model.cache.sweep()
    assert len(list(model.cache.records.iterdir())) == 2
    model.cache.clear()
    assert len(list(model.cache.records.iterdir())) == 1
    assert model.into(tmp_path / "c", model.two)
    assert look(tmp_path / "c") == TWO


def test_ctrl_c_between_two_moves_leaves_no_mixture(
    model: Model, target: Path, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files are moved one by one, an interruption is raised before the first or after the last of them."""
    monkeypatch.setattr(place, "_replaceable", lambda path: False)
    target.mkdir(parents=True)
    real = os.replace
    interrupted = 0
    for stop in range(1, 40):
        model.into(target)
        count = 0

        def replace(source: Any, to: Any, stop: int = stop, **kwargs: Any) -> None:
            nonlocal count
            count += 1
            if count == stop // 2 + 1 and stop % 2:
                raise KeyboardInterrupt
            real(source, to, **kwargs)
            if count == stop // 2 + 1:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                model.into(target, model.two, records=None)
            except KeyboardInterrupt:
                interrupted += 1
            else:
                break
        found = look(target)
        found.pop(RECORD)
        assert found in (ONE, TWO)
        assert not [name for name in os.listdir(target) if name.endswith(".partial")]
    assert interrupted >= 6


def test_files_beside_the_target_that_only_look_like_ours_stay(model: Model, target: Path, look: Any) -> None:
    """However old they are: what others name .model.….partial is theirs; our own leftovers go."""
    target.mkdir(parents=True)
    old = (time.time() - 3 * 86400,) * 2
    theirs = [
        ".model.tar.gz.partial",
        ".model.backup.partial",
        ".model.0123456789ab.1.abc.partial",
        ".model.2.0123456789ab.1.abcdefabcdef.partial",  # of a target that is called model.2
    ]
    ours = [f".model.0123456789ab.1.abcdefabcdef{end}.partial" for end in ("", "-old")]
    for name in theirs + ours:
        (target.parent / name).mkdir()
        (target.parent / name / "thesis.tex").write_bytes(b"mine")
        os.utime(target.parent / name, old)
    (target / ".modelhub-partial-mine").write_bytes(b"mine")
    os.utime(target / ".modelhub-partial-mine", old)
    model.into(target, overwrite=True)
    assert siblings(target) == sorted([*theirs, "model"])
    assert disk.sweep(target, older_than=0) == 0  # nor where the age alone decides
    assert look(target)[".modelhub-partial-mine"] == b"mine"


def test_a_long_name_leaves_room_for_ours_beside_it(model: Model, tmp_path: Path, look: Any) -> None:
    """A name is cut by its bytes, between characters."""
    target = tmp_path / ("\N{GRINNING FACE}" * 60)
    model.into(target)
    assert look(target) == ONE


def test_many_place_into_one_folder(model: Model, target: Path, look: Any) -> None:
    """Threads that resolve the same, or two versions, into one folder at once: no error, and one of them whole."""
    import threading

    failed: list[BaseException] = []

    def work(files: tuple[File, ...]) -> None:
        try:
            model.into(target, files)
        except BaseException as exc:
            failed.append(exc)

    for round_ in range(6):
        both = (model.one, model.one if round_ % 2 else model.two)
        threads = [threading.Thread(target=work, args=(both[n % 2],)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert look(target) in (ONE, TWO)
        assert siblings(target) == ["model"]
    assert failed == []


def test_a_write_meanwhile_is_kept(
    model: Model, target: Path, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that appears in the target between the look and the swap is not thrown away."""
    model.into(target)
    real = place.exchange

    def late(one: str, other: str) -> bool:
        if not (target / "late").exists() and not Path(one, "late").exists():
            (target / "late").write_bytes(b"mine")
        return real(one, other)

    monkeypatch.setattr(place, "exchange", late)
    with pytest.raises(Conflict, match="late"):
        model.into(target, model.two)
    assert look(target) == ONE | {"late": b"mine"}


def test_what_is_replaced_while_it_is_looked_at_is_looked_at_again(
    model: Model, target: Path, look: Any
) -> None:
    """A folder that another process replaces meanwhile, where there are no locks, is not somebody's in the way."""
    model.into(target)
    versions = {file.path: {file.digest} for file in (*model.one, *model.two)}
    turns: list[str] = []

    def known(path: str) -> set[str]:
        if not turns:
            model.into(target, (), records=model.cache.records)
        turns.append(path)
        return versions[path]

    other = model.cache.records.parent / "other" / "records"
    assert into(target, model.two, model.get, records=other, known=known).changed
    assert look(target) == TWO


# --- names that collide


def test_case_twins_on_a_case_insensitive_disk(
    model: Model, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two names that the disk takes for one are refused before the first byte, files and folders alike."""
    monkeypatch.setattr(staging, "folds_case", lambda root: True)
    for names in (("Model.pkl", "model.pkl"), ("A/x", "a/y"), ("stra\u00dfe", "strasse")):
        files = model.store.put_all([from_bytes(b"1", names[0]), from_bytes(b"2", names[1])])
        with pytest.raises(Conflict, match="apart"):
            model.into(target, files)
        assert siblings(target) == []
    monkeypatch.undo()
    if not os.path.exists(str(target.parent.parent).swapcase()):
        files = model.store.put_all([from_bytes(b"1", "Model.pkl"), from_bytes(b"2", "model.pkl")])
        model.into(target, files)
        assert (target / "Model.pkl").read_bytes() == b"1"


def test_our_own_names_are_reserved(model: Model, target: Path) -> None:
    """A version cannot place a file that would pass for our record."""
    for name in (RECORD, ".modelhub-partial/x"):
        with pytest.raises(InvalidName, match="modelhub"):
            model.into(target, model.store.put_all([from_bytes(b"{}", name)]))


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_names_do_not_depend_on_the_locale(model: Model, target: Path, locale: str) -> None:
    """A file named é語 is placed under its UTF-8 name, whatever the locale."""
    file = model.store.put(from_bytes(b"x", "d/é語.bin"))
    path = model.get(file)
    code = (
        "import sys; from modelhub_sdk.blobs.place import into; from modelhub_sdk.domain.entities import File\n"
        "into(sys.argv[1], [File('d/\\u00e9\\u8a9e.bin', 1, sys.argv[3])], lambda f: sys.argv[2])"
    )
    environment = {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "LC_ALL": locale,
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    subprocess.run(
        [sys.executable, "-c", code, str(target), str(path), file.digest], env=environment, check=True
    )
    assert os.listdir(os.fsencode(target / "d")) == ["é語.bin".encode()]


# --- bytes


def test_bytes_that_change_while_they_are_copied_are_not_handed_out(
    model: Model, target: Path, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verified bytes are copied as they are; if their file changes meanwhile, they are fetched again."""
    path, step = model.get(model.one[1]), disk._step
    path.chmod(0o644)

    def changing(source: int, fd: int, *rest: Any) -> int:
        got = step(source, fd, *rest)
        if os.path.sameopenfile(source, watched):
            path.write_bytes(pattern(5000, 9))
            os.utime(path, ns=(1, 1))
        return got

    with open(path, "rb") as file:
        watched = file.fileno()
        monkeypatch.setattr(disk, "_step", changing)
        with pytest.raises(DigestMismatch):
            model.into(target, link="copy")
        assert siblings(target) == []

        def heal(file: File) -> Path:
            monkeypatch.setattr(disk, "_step", step)
            return model.cache.fetch(file, model.store, verify="always")

        model.into(target, link="copy", heal=heal)
    assert look(target) == ONE


@pytest.mark.parametrize("length", [0, 4999, 5001])
def test_a_cut_or_longer_file_is_not_copied(model: Model, target: Path, length: int) -> None:
    """What is not as long as it should be is refused by name, and nothing stays."""
    path = model.get(model.one[1])
    path.chmod(0o644)
    path.write_bytes(pattern(length))
    with pytest.raises(DigestMismatch, match=f"{length} bytes instead of 5000"):
        into(target, model.one, lambda file: path if file.size == 5000 else model.get(file), link="copy")
    assert siblings(target) == []


@pytest.mark.parametrize("size", [0, 1, (8 << 20) + 1, (40 << 20) + 3])
@pytest.mark.parametrize("kernel", [True, False])
def test_copies_have_all_the_bytes(
    model: Model, target: Path, size: int, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied by the kernel or, on file systems where that cannot be, by us; the progress adds up to the size."""
    if not kernel:

        def refuse(*args: Any) -> int:
            raise OSError(errno.EINVAL, "not here")

        monkeypatch.setattr(os, "sendfile", refuse)
    data, told = pattern(size, 7), []
    files = model.store.put_all([from_bytes(data, "big.bin")])
    model.get(files[0])
    model.into(target, files, link="copy", watch=lambda total: nullcontext(told.append))
    assert (target / "big.bin").read_bytes() == data
    assert sum(told) == size
    assert size < 9 << 20 or len(told) > 3


@pytest.mark.parametrize("flush", [False, True])
def test_a_copy_that_cannot_be_written_leaves_nothing(
    model: Model, target: Path, flush: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the disk says so only while what was written is flushed."""

    def refuse(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    files = model.store.put_all([from_bytes(pattern(80 << 20), "big.bin")])
    model.get(files[0])
    monkeypatch.setattr(os, "fdatasync" if flush else "sendfile", refuse)
    with pytest.raises(StoreUnavailable, match="Cannot write .*big.bin"):
        model.into(target, files, link="copy")
    assert siblings(target) == []


def test_links_to_the_cache_only_on_request(model: Model, target: Path) -> None:
    """By default files are copies; with link="hard" they are the cache's own, read-only."""
    model.into(target)
    assert not (target / "model.pkl").samefile(model.get(model.one[0]))
    with open(target / "model.pkl", "ab") as file:
        file.write(b"changed")
    assert model.get(model.one[0]).read_bytes() == b"one"
    model.into(target.parent / "hard", link="hard")
    assert (target.parent / "hard" / "model.pkl").samefile(model.get(model.one[0]))
    assert model.cache.get(model.one[0].digest) is not None


def test_a_cache_that_we_cannot_write_may_be_linked(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links to a cache of somebody else cannot hurt it; where the system forbids them, copies are made."""
    monkeypatch.setattr(links, "writable", lambda info: False)
    model.into(tmp_path / "a")
    assert (tmp_path / "a" / "model.pkl").samefile(model.get(model.one[0]))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EPERM, "protected_hardlinks")

    monkeypatch.setattr(os, "link", refuse)
    model.into(tmp_path / "b")
    assert not (tmp_path / "b" / "model.pkl").samefile(model.get(model.one[0]))


def test_mode_and_ownership_decide_what_is_writable(tmp_path: Path, as_nobody: Callable[..., Any]) -> None:
    """Owners, root, and whoever the mode allows can write; others cannot."""
    path = tmp_path / "x"
    path.touch()
    for mode, expected in ((0o444, False), (0o644, False), (0o666, True)):
        os.chmod(path, mode)
        assert links.writable(path.stat())
        if os.geteuid() == 0:
            assert as_nobody(lambda: links.writable(os.stat(path))) is expected


def test_another_file_system_gets_copies(small_disk: Path, model: Model, look: Any) -> None:
    """Cache and target on different disks: neither links nor renames reach across, and all is well."""
    for how in ("auto", "hard", "reflink", "copy"):
        model.into(small_disk / "in" / how, link=how)
        assert look(small_disk / "in" / how) == ONE


def test_a_full_disk_leaves_nothing(small_disk: Path, model: Model, look: Any) -> None:
    """ENOSPC: typed, no file under its final name, no leftovers; the version before stays."""
    target = small_disk / "in" / "model"
    big = model.store.put_all(
        [from_bytes(pattern(20 << 20), "big"), *[from_bytes(pattern(9), f"f{n}") for n in range(5)]]
    )
    with pytest.raises(StoreUnavailable) as caught:
        model.into(target, big)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(small_disk) == []
    model.into(target)
    with pytest.raises(StoreUnavailable):
        model.into(target, big)
    assert look(target) == ONE
    assert siblings(target) == ["model"]


def test_a_limit_on_file_sizes_is_typed(model: Model, target: Path, forked: Callable[..., Any]) -> None:
    """RLIMIT_FSIZE: typed, nothing under the final name."""
    big = model.store.put_all([from_bytes(pattern(6 << 20), "big")])
    model.get(big[0])

    def work() -> int | None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        try:
            model.into(target, big)
        except StoreUnavailable as exc:
            return exc.errno
        return 0

    assert forked(work) == errno.EFBIG
    assert siblings(target) == []


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(), NotFound("gone"), StoreUnavailable("off")]
)
def test_an_interruption_leaves_nothing(model: Model, target: Path, look: Any, error: BaseException) -> None:
    """Ctrl-C, exit or an error while files are fetched: the target is as it was, and so are the folders above it."""

    def get(file: File) -> Path:
        if file.path == "weights/w.bin":
            raise error
        return model.get(file)

    with pytest.raises(type(error)):
        into(target, model.one, get)
    assert not target.parent.exists()
    model.into(target)
    with pytest.raises(type(error)):
        into(target, model.two, get, records=model.cache.records)
    assert look(target) == ONE
    assert siblings(target) == ["model"]


def test_a_target_removed_meanwhile_is_typed(
    model: Model, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody deletes the inputs while files are placed: typed error, and the cache stays good."""
    import shutil

    target.parent.mkdir(parents=True)

    def get(file: File) -> Path:
        shutil.rmtree(target.parent, ignore_errors=True)
        return model.get(file)

    with pytest.raises(ModelHubError):
        into(target, model.one, get)
    assert model.cache.get(model.one[0].digest, verify="always")
    model.into(target)


@pytest.mark.parametrize("umask", [0o777, 0o077, 0o002])
def test_any_umask_works(model: Model, tmp_path: Path, as_nobody: Callable[..., Any], umask: int) -> None:
    """The owner can read back what was placed, whatever the umask."""
    os.chmod(tmp_path, 0o777)
    paths = {file.digest: tmp_path / f"src{n}" for n, file in enumerate(model.one)}
    for file in model.one:
        paths[file.digest].write_bytes(model.get(file).read_bytes())

    def work() -> bytes:
        os.umask(umask)
        into(tmp_path / "in" / "m", model.one, lambda file: paths[file.digest])
        return (tmp_path / "in" / "m" / "weights" / "w.bin").read_bytes()

    assert as_nobody(work) == pattern(5000)


def test_mode_bits_are_those_of_new_files(model: Model, target: Path) -> None:
    """Placed files are plain files: no set-id, no executable bits, the umask applies."""
    old = os.umask(0o027)
    try:
        model.into(target)
    finally:
        os.umask(old)
    assert stat.S_IMODE((target / "model.pkl").stat().st_mode) == 0o640
    assert stat.S_IMODE((target / "weights").stat().st_mode) == 0o750


# --- folders that cannot be replaced


@pytest.fixture(params=["mount point", "read-only parent", "refusing rename"])
def fixed(request: pytest.FixtureRequest, target: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a target that exists and cannot be replaced as a whole."""
    target.mkdir(parents=True)
    if request.param == "mount point":
        with mounted(target, "size=8m"):
            yield target
    elif request.param == "read-only parent":
        real = os.mkdir

        def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
            if isinstance(path, str) and os.path.dirname(path) == str(target.parent):
                raise PermissionError(errno.EACCES, "read-only parent")
            real(path, *args, **kwargs)

        monkeypatch.setattr(os, "mkdir", mkdir)
        yield target
    else:  # a bind mount looks like any folder until it is renamed
        real_rename = os.rename

        def rename(source: Any, to: Any, **kwargs: Any) -> None:
            if str(target) in (source, to):
                raise OSError(errno.EBUSY, "mount point")
            real_rename(source, to, **kwargs)

        monkeypatch.setattr(os, "rename", rename)
        monkeypatch.setattr(place, "exchange", lambda one, other: False)
        yield target


def test_fixed_targets_are_filled_with_a_record(model: Model, fixed: Path, look: Any) -> None:
    """Files are staged inside, moved, and the record comes last; a second call writes nothing."""
    assert model.into(fixed)
    found = look(fixed)
    record = found.pop(RECORD)
    assert found == ONE
    assert b'"whole":true' in record
    assert not model.into(fixed)
    assert not model.into(fixed, records=None)
    assert siblings(fixed) == ["model"]


def test_fixed_targets_go_to_the_next_version(model: Model, fixed: Path, look: Any) -> None:
    """What was placed is replaced, stale files and folders go, and unchanged files are not written again."""
    model.into(fixed)
    inode = (fixed / "weights" / "w.bin").stat().st_ino
    model.into(fixed, model.two)
    found = look(fixed)
    found.pop(RECORD)
    assert found == TWO
    assert (fixed / "weights" / "w.bin").stat().st_ino == inode
    model.into(fixed, model.one)
    found = look(fixed)
    found.pop(RECORD)
    assert found == ONE


def test_fixed_targets_refuse_foreign_files(model: Model, fixed: Path, look: Any) -> None:
    """Also there somebody else's files are in the way, unless overwrite says otherwise."""
    (fixed / "notes").write_bytes(b"mine")
    with pytest.raises(Conflict, match="notes"):
        model.into(fixed)
    assert look(fixed) == {"notes": b"mine"}
    model.into(fixed, overwrite=True)
    found = look(fixed)
    found.pop(RECORD)
    assert found == ONE | {"notes": b"mine"}


def test_fixed_targets_survive_a_break_anywhere(model: Model, fixed: Path, look: Any) -> None:
    """Stopped between any two moves, the next call sees its own files and finishes the work."""
    real = os.replace
    for file in (*model.one, *model.two):
        model.get(file)
    for stop in range(1, 30):
        model.into(fixed)
        count = 0

        def replace(source: Any, to: Any, stop: int = stop, **kwargs: Any) -> None:
            nonlocal count
            count += 1
            if count == stop:
                raise OSError(errno.EIO, "broken")
            real(source, to, **kwargs)

        os.replace = replace  # type: ignore[assignment]
        try:
            model.into(fixed, model.two, records=None)
            done = True
        except StoreUnavailable:
            done = False
        finally:
            os.replace = real  # type: ignore[assignment]
        model.into(fixed, model.two)
        found = look(fixed)
        found.pop(RECORD)
        assert found == TWO
        if done:
            assert stop > 3
            return
    pytest.fail("it never finished")


def test_a_torn_record_is_no_record(model: Model, fixed: Path, look: Any) -> None:
    """Right files need no record; with a broken one, files that are not wanted count as somebody else's."""
    model.into(fixed)
    for content in (
        b"",
        b"{",
        b"[]",
        b'{"format":1}',
        b'{"format":9,"files":{}}',
        b"\xff",
        b'{"format":1,"target":null,"files":{"model.pkl":[["a",1,2,3]]}}',
    ):
        (fixed / RECORD).write_bytes(content)
        assert not model.into(fixed)
        with pytest.raises(Conflict):
            model.into(fixed, model.two)
    found = look(fixed)
    found.pop(RECORD)
    assert found == ONE


def test_a_parent_that_cannot_be_written(model: Model, target: Path, as_nobody: Callable[..., Any]) -> None:
    """Without rights above: an existing writable folder is filled, a missing one is a typed error."""
    target.mkdir(parents=True)
    paths = {}
    for n, file in enumerate(model.one):
        paths[file.digest] = target.parent.parent / f"src{n}"
        paths[file.digest].write_bytes(model.get(file).read_bytes())
    os.chmod(target, 0o777)
    os.chmod(target.parent, 0o555)
    try:
        as_nobody(lambda: into(target, model.one, lambda file: paths[file.digest]).changed)
        assert (target / "weights" / "w.bin").read_bytes() == pattern(5000)
        assert (target / RECORD).exists()
        with pytest.raises(StoreUnavailable):
            as_nobody(
                lambda: into(target.parent / "other", model.one, lambda file: paths[file.digest]).changed
            )
    finally:
        os.chmod(target.parent, 0o755)


# --- killed

_PLACER = """
import sys
from modelhub_sdk.blobs.place import into
from modelhub_sdk.domain.entities import File
target, records, *rest = sys.argv[1:]
files = {}
for n in range(0, len(rest), 4):
    files[File(rest[n], int(rest[n + 1]), rest[n + 2])] = rest[n + 3]
print("ready", flush=True)
sys.stdin.readline()
into(target, list(files), lambda file: files[file], records=records)
"""


def test_killed_placers_leave_the_folder_whole(model: Model, target: Path, look: Any, kill: Any) -> None:
    """kill -9 at many moments: the old version or the new one, never a mixture; the next call removes the leftovers."""
    versions = [
        model.store.put_all([from_bytes(pattern(3 << 20, n * 8 + k), f"f{k}") for k in range(6)])
        for n in range(2)
    ]
    model.into(target, versions[0])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    left = 0
    for round_ in range(16):
        wanted = versions[(round_ + 1) % 2]
        words = [str(w) for f in wanted for w in (f.path, f.size, f.digest, model.get(f))]
        process = subprocess.Popen(
            [sys.executable, "-c", _PLACER, str(target), str(model.cache.records), *words],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.stdin.write("go\n")
        process.stdin.flush()
        kill(process, lambda: len(siblings(target)) > 1, 0.003 * round_)
        found = look(target)
        assert found in [{f.path: model.get(f).read_bytes() for f in version} for version in versions]
        left += len(siblings(target)) > 1
        model.into(target, versions[0])
        model.into(target, wanted)
        assert look(target) == {f.path: model.get(f).read_bytes() for f in wanted}
        assert siblings(target) == ["model"]
    assert left, "no kill came in the middle: the test proves nothing"
