"""One version on its way to another registry: directly, and as a zip file that nobody is trusted with."""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.errors import (
    Conflict,
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
from tests.support.homes import ALL, Home, check_sound
from tests.support.threads import at_once

MakeHome = Callable[[str], Home]
RECORD = "modelhub-bundle.json"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Registry]:
    with hub.open("sqlite:///lab.db", user="ann", cache_dir=tmp_path / "cache") as reg:
        yield reg


@pytest.fixture
def prod(tmp_path: Path) -> Iterator[Registry]:
    with hub.open("sqlite:///prod.db", user="ops", cache_dir=tmp_path / "cache") as reg:
        yield reg


def trained(reg: Registry) -> Any:
    """A version of a run, with all that can be beside it."""
    reg.create_dataset_version("clicks/v7", {"a.csv": b"data"})
    with reg.start_run("train", id="job", params={"lr": 0.1}, inputs={"x": "dataset://clicks/v7"}) as run:
        run.log({"auc": 0.9, "worst": float("-inf")})
        made = run.register("churn", {"m.bin": b"weights", "sub/größe.txt": b""}, note="for Jane", tags=["b"])
    reg.attach(made, "roc.txt", b"curve")
    reg.add_evaluation(made, {"acc": 0.8}, note="on holdout", files={"e.txt": b"x"})
    reg.approve(made, "good enough")
    return reg.version("churn/v1")


def entries(reg: Registry) -> int:
    return reg.audit(limit=1)[0].seq


def check_arrived(there: Registry, arrived: Any, original: Any, number: int) -> None:
    assert (arrived.number, arrived.status, arrived.run_id) == (number, "pending", None)
    for name in (
        "digest", "size", "files", "metrics", "params", "tags", "note", "description", "fields", "inputs", "duration",
    ):  # fmt: skip
        assert getattr(arrived, name) == getattr(original, name), name
    assert [(a.name, a.digest) for a in arrived.attachments] == [
        (a.name, a.digest) for a in original.attachments
    ]
    assert [(e.metrics, e.note, e.files) for e in arrived.evaluations] == [
        (e.metrics, e.note, e.files) for e in original.evaluations
    ]
    assert arrived.origin.uri == original.uri
    assert there.version(arrived) == arrived


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ALL)
def test_from_and_to_every_backend(kind: str, make_home: MakeHome, lab: Registry) -> None:
    """A version keeps digest, metrics, lineage and audit, wherever it comes from and goes to; twice changes nothing."""
    with make_home(kind).opened() as other:
        other.register("churn", {"own": b"was here first"})
        original = trained(lab)
        arrived = lab.copy_to(other, ref="churn/latest")
        check_arrived(other, arrived, original, 2)
        known = entries(other)
        assert lab.copy_to(other, ref=original) == arrived
        assert other.import_bundle(lab.export_bundle("churn/v1", "there.zip")) == arrived
        assert entries(other) == known
        lineage = other.lineage(arrived)
        assert lineage.origin == arrived.origin
        assert (lineage.run.id, lineage.datasets) == ("job", ("dataset://clicks/v7",))  # type: ignore[union-attr]
        assert lineage.inputs == lab.lineage(original).inputs
        assert [one.action for one in lineage.history][:2] == ["version.approved", "version.evaluated"]
        labels = [node.label for node in other.upstream(arrived).nodes]
        assert labels[:3] == ["churn/v2", "churn/v1", "#1 train"]
        assert "clicks/v7" in labels
        assert other.upstream(arrived, depth=1).cut
        assert len(other.upstream(arrived, depth=1).nodes) == 2
        back = lab.import_bundle(other.export_bundle(arrived, "back.zip"))
        check_arrived(lab, back, arrived, 2)
        assert [node.label for node in lab.upstream(back).nodes][:3] == ["churn/v2", "churn/v2", "churn/v1"]
        assert [one.action for one in lab.lineage(back).history].count("version.registered") == 2
        check_sound(other)
        check_sound(lab)


def test_by_url_and_read_only(lab: Registry, tmp_path: Path) -> None:
    """Another registry may be named by its URL, and is made where there is none; a read-only one refuses."""
    trained(lab)
    assert lab.copy_to("sqlite:///new.db", ref="churn/v1").number == 1
    with hub.open("sqlite:///new.db", read_only=True) as there:
        assert there.audit(action="version.registered")[0].actor == "ann"
        with pytest.raises(NotAllowed, match="read-only"):
            lab.copy_to(there, ref="churn/v1")


def test_many_files(lab: Registry, prod: Registry) -> None:
    """A version whose manifest is a document of its own arrives with all of its files."""
    lab.register("churn", {f"{n}": b"%d" % n for n in range(1010)})
    arrived = prod.import_bundle(lab.export_bundle("churn/v1", "many.zip"))
    assert len(arrived.files) == 1010
    assert arrived == prod.version("churn/v1")
    assert Path(prod.resolve("churn/v1").path, "7").read_bytes() == b"7"
    assert not prod.collect_garbage().unneeded
    check_sound(prod)


def test_the_same_bytes(lab: Registry) -> None:
    """A bundle of the same version has the same bytes, and names neither the time nor the one who asked."""
    trained(lab)
    first = Path(lab.export_bundle("churn/v1", "one.zip")).read_bytes()
    lab.resolve("churn/v1")
    time.sleep(1.1)
    with hub.open("sqlite:///lab.db", user="other") as again:
        assert Path(again.export_bundle("churn/v1", "two.zip")).read_bytes() == first
        assert {use.actor for use in again.uses("churn/v1")} == {"ann", "other"}  # taking it out is a use


def test_a_copy_that_went_its_own_way(lab: Registry) -> None:
    """What two registries share from before their ways parted is the same version; what came later is not."""
    trained(lab)
    lab.copy_to("sqlite:///copy.db")
    with hub.open("sqlite:///copy.db") as copy:
        assert lab.copy_to(copy, ref="churn/v1").origin is None
        lab.register("churn", {"m": b"lab's"})
        copy.register("churn", {"m": b"copy's"})
        assert lab.copy_to(copy, ref="churn/v2").number == 3
        assert lab.copy_to(copy, ref="churn/v2").number == 3
        assert lab.import_bundle(lab.export_bundle("churn/v2", "own.zip")).number == 2
        check_sound(copy)


def test_rules_of_the_other(lab: Registry, prod: Registry) -> None:
    """Names, fields and freezes of the other registry hold; nothing is stored there before they were asked."""
    trained(lab)
    lab.export_bundle("churn/v1", "b.zip")
    prod.configure(model_names="fraud-.*")
    with pytest.raises(InvalidName, match="fraud"):
        prod.import_bundle("b.zip")
    prod.configure(model_names="", required_fields=["ticket"])
    with pytest.raises(InvalidDocument, match="ticket"):
        lab.copy_to(prod, ref="churn/v1")
    prod.configure(required_fields=[])
    prod.freeze("moved")
    with pytest.raises(NotAllowed, match="moved"):
        prod.import_bundle("b.zip")
    prod.unfreeze("not yet")
    assert prod.import_bundle("b.zip").number == 1


def test_what_cannot_be_exported(lab: Registry, tmp_path: Path) -> None:
    """What is not there, not whole or no model version is refused; a file in the way stays as it is."""
    original = trained(lab)
    with pytest.raises(NotFound, match="v9"):
        lab.export_bundle("churn/v9", "b.zip")
    for ref in ("dataset://clicks/v7", "churn"):
        with pytest.raises((InvalidURI, InvalidName)):
            lab.export_bundle(ref, "b.zip")
    Path("b.zip").write_bytes(b"mine")
    os.symlink("nowhere", "link.zip")
    os.mkdir("folder.zip")
    for name in ("b.zip", "link.zip", "folder.zip"):
        with pytest.raises(Conflict, match=name):
            lab.export_bundle(original, name)
    with pytest.raises(Conflict, match="folder"):
        lab.export_bundle(original, "folder.zip", overwrite=True)
    with pytest.raises(Conflict, match="is a folder"):
        lab.export_bundle(original, "folder.zip")
    with pytest.raises(StoreUnavailable, match="gone.*Make the folder first"):
        lab.export_bundle(original, "gone/b.zip")
    assert not lab.uses(original)  # nothing was taken out
    assert Path("b.zip").read_bytes() == b"mine"
    lab.export_bundle(original, "b.zip", overwrite=True)
    assert zipfile.is_zipfile("b.zip")
    for damage in (b"weightZ", b"short"):
        path = blob(lab, original.files[0].digest)
        os.chmod(path, 0o644)
        path.write_bytes(damage)
        with pytest.raises(DigestMismatch):
            lab.export_bundle(original, "damaged.zip")
        assert not os.path.exists("damaged.zip")
    lab.purge(original, "space", files=["m.bin"], force=True)
    with pytest.raises(Purged, match="space"):
        lab.export_bundle(original, "c.zip")
    with pytest.raises(Purged, match="space"):
        lab.copy_to("sqlite:///none.db", ref=original)
    assert not [name for name in os.listdir() if "modelhub" in name or name == "none.db"]


def test_taking_out_is_a_use(lab: Registry, prod: Registry) -> None:
    """A version that was taken out is used; when that failed it is not, and nothing keeps it from being purged."""
    lab.register("churn", {"m.bin": b"weights"})
    prod.freeze("moved")
    with pytest.raises(NotAllowed, match="moved"):
        lab.copy_to(prod, ref="churn/v1")
    assert not lab.uses("churn/v1")
    prod.unfreeze("back")
    lab.copy_to(prod, ref="churn/v1")
    lab.export_bundle("churn/v1", "b.zip")
    assert len(lab.uses("churn/v1")) == 2
    with pytest.raises(NotAllowed, match="used 2 times"):
        lab.purge("churn/v1", "space")


def test_a_frozen_registry_takes_no_bytes(lab: Registry, prod: Registry) -> None:
    """What a frozen registry will refuse is refused before anything is stored."""
    lab.register("churn", {"m.bin": b"weights"})
    lab.export_bundle("churn/v1", "b.zip")
    prod.register("before", {"m.bin": b"before"}, idempotency_key="a job")
    prod.freeze("moved")
    assert prod.register("before", {"m.bin": b"before"}, idempotency_key="a job").number == 1
    for change in (
        lambda: prod.import_bundle("b.zip"),
        lambda: lab.copy_to(prod, ref="churn/v1"),
        lambda: prod.register("churn", {"m.bin": b"other"}),
    ):
        with pytest.raises(NotAllowed, match="moved"):
            change()
    assert prod.stats().blobs == 1


def test_a_bundle_takes_no_others_place(lab: Registry, prod: Registry) -> None:
    """What claims the origin of another version is never taken for it, and no user's key can stand for an origin."""
    lab.register("churn", {"m.bin": b"good"})
    good = members(lab.export_bundle("churn/v1", "good.zip"))
    origin = json.loads(good[RECORD])["origin"]
    with hub.open("sqlite:///evil.db") as evil:
        evil.register("churn", {"m.bin": b"evil"})
        bad = members(evil.export_bundle("churn/v1", "evil.zip"))
    raw = json.loads(bad[RECORD]) | {"origin": origin}
    written({**bad, RECORD: json.dumps(raw).encode()})
    assert prod.import_bundle("bad.zip").number == 1
    with pytest.raises(Conflict, match="not what it says"):
        prod.import_bundle("good.zip")
    with pytest.raises(Conflict, match="not what it says"):
        lab.import_bundle("bad.zip")
    for call in (
        lambda key: prod.register("churn", {"m.bin": b"x"}, idempotency_key=key),
        lambda key: prod.ingest(os.fspath(Path.cwd()), idempotency_key=key),
    ):
        with pytest.raises(InvalidName, match="origin:"):
            call(f"origin:{origin['chain']}:{origin['uri']}")


def test_what_was_purged_does_not_come_back(lab: Registry, prod: Registry) -> None:
    """A version that arrived and was purged since is not told as if it were here; nor one that was purged at home."""
    lab.register("churn", {"m.bin": b"weights", "n": b"n"})
    lab.export_bundle("churn/v1", "b.zip")
    arrived = prod.import_bundle("b.zip")
    prod.purge(arrived, "customer's request", files=["n"])
    with pytest.raises(Purged, match=r"'n' of it.*customer's request"):
        prod.import_bundle("b.zip")
    prod.purge(arrived, "all of it")
    with pytest.raises(Purged, match="The files of it.*all of it"):
        lab.copy_to(prod, ref="churn/v1")
    lab.purge("churn/v1", "at home", force=True)
    with pytest.raises(Purged, match="at home"):
        lab.import_bundle("b.zip")


def blob(reg: Registry, digest: str) -> Path:
    root = Path(reg.stats().artifacts)
    (found,) = (path for path in root.rglob("*") if path.name == digest[9:])
    return found


def test_a_damaged_store_arrives_nowhere(lab: Registry, prod: Registry) -> None:
    """Bytes that went wrong in the store are noticed before the other registry believes them."""
    original = trained(lab)
    path = blob(lab, original.files[0].digest)
    os.chmod(path, 0o644)
    path.write_bytes(b"weightZ")
    with pytest.raises(DigestMismatch):
        lab.copy_to(prod, ref=original)
    assert not prod.models()
    path.write_bytes(b"weights")
    check_arrived(prod, lab.copy_to(prod, ref=original), original, 1)


def test_redacting_what_arrived(lab: Registry, prod: Registry) -> None:
    """Erasing any text of a version that arrived erases its history too, where the same words may stand."""
    arrived = lab.copy_to(prod, ref=trained(lab))
    assert b"Jane" in b"".join(record.private for record in prod._core.place.store.read(0))
    prod.redact(arrived, "note", "a name")
    assert b"Jane" not in b"".join(record.private for record in prod._core.place.store.read(0))
    lineage = prod.lineage(arrived)
    assert (lineage.run, lineage.history, lineage.origin) == (None, (), arrived.origin)
    assert [node.label for node in prod.upstream(arrived).nodes] == ["churn/v1", "churn/v1"]
    assert prod.import_bundle(prod.export_bundle(arrived, "again.zip")) == prod.version(arrived)
    check_sound(prod)


def test_views(lab: Registry, prod: Registry) -> None:
    """A person sees where a version came from, and what was decided there."""
    arrived = lab.copy_to(prod, ref=trained(lab))
    assert f"model://churn/v1 of registry {arrived.origin.registry}" in prod.audit()[2].detail  # type: ignore[union-attr]
    shown = arrived._repr_html_() + prod.lineage(arrived)._repr_html_()
    assert "good enough" in shown or "approved" in shown
    assert "of registry" in shown
    from modelhub_sdk.views import text

    assert "of registry" in text.render(arrived)
    assert "before it came here" in text.render(prod.lineage(arrived))


def test_racing_imports(lab: Registry, prod: Registry, tmp_path: Path) -> None:
    """Eight at once make one version."""
    trained(lab)
    lab.export_bundle("churn/v1", "b.zip")
    found = []

    def once(_n: int) -> None:
        with hub.open("sqlite:///prod.db", cache_dir=tmp_path / "cache") as reg:
            found.append(reg.import_bundle("b.zip").number)

    at_once(8, once)
    assert found == [1] * 8
    assert prod.model("churn").last_number == 1


KILLED = """
    import os, signal, sys, threading, time
    import modelhub_sdk as hub
    with hub.open("sqlite:///lab.db") as reg:
        reg.version("big/v1")
        print("on", flush=True)
        reg.export_bundle("big/v1", "big.zip")
        print("done", flush=True)
"""


def test_killed_while_exporting(lab: Registry) -> None:
    """The file is there whole or not at all, whenever the exporter is killed, and can be written again."""
    lab.register("big", {"a": os.urandom(30 << 20), "b": b"small"})
    for delay in (0.01, 0.03, 0.06, 0.1):
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.kill()
        child.wait()
        child.stdout.close()
        if os.path.exists("big.zip"):
            assert zipfile.ZipFile("big.zip").testzip() is None
            os.unlink("big.zip")
    lab.export_bundle("big/v1", "big.zip")
    assert lab.import_bundle("big.zip").number == 1


# --- hostile files --------------------------------------------------------------------------------------


def members(path: str) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def written(
    content: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED, modes: dict[str, int] | None = None
) -> None:
    with zipfile.ZipFile("bad.zip", "w", compression) as archive:
        for name, data in content.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(info, data)


def edited(change: Callable[[Any], Any]) -> Callable[[dict[str, bytes]], None]:
    """A bundle whose record was changed by *change*."""

    def make(good: dict[str, bytes]) -> None:
        raw = json.loads(good[RECORD])
        changed = change(raw)
        written({**good, RECORD: json.dumps(raw if changed is None else changed).encode()})

    return make


def renamed(to: str) -> Callable[[dict[str, bytes]], None]:
    """A bundle that calls a file *to*, consistently, with the digest of its manifest made to fit."""

    def make(good: dict[str, bytes]) -> None:
        import hashlib

        raw = json.loads(good[RECORD])
        for file in raw["version"]["files"]:
            if file["path"] == "m.bin":
                file["path"] = to
        raw["version"]["files"].sort(key=lambda one: one["path"])
        digest = hashlib.sha256()
        for file in raw["version"]["files"]:
            digest.update(bytes.fromhex(file["digest"][7:]))
        raw["version"]["digest"] = "sha256:" + digest.hexdigest()
        content = {(f"files/{to}" if name == "files/m.bin" else name): data for name, data in good.items()}
        written({**content, RECORD: json.dumps(raw).encode()})

    return make


def overlapping(good: dict[str, bytes]) -> None:
    """Two entries of the directory that share the same bytes."""
    written(good)
    data = bytearray(Path("bad.zip").read_bytes())
    with zipfile.ZipFile("bad.zip") as archive:
        infos = archive.infolist()
    start = data.rfind(b"PK\x01\x02" + data[data.find(b"PK\x01\x02") + 4 : data.find(b"PK\x01\x02") + 6])
    struct.pack_into("<I", data, start + 42, infos[-2].header_offset)
    Path("bad.zip").write_bytes(data)


def two_names(good: dict[str, bytes]) -> None:
    """A member that is called one thing in its header and another in the directory."""
    written(good)
    data = Path("bad.zip").read_bytes()
    Path("bad.zip").write_bytes(data.replace(b"files/m.bin", b"files/x.bin", 1))


def doubled(good: dict[str, bytes]) -> None:
    with zipfile.ZipFile("bad.zip", "w") as archive:
        for name, data in good.items():
            archive.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("files/m.bin", b"weightZ")


def encrypted(good: dict[str, bytes]) -> None:
    written(good)
    data = bytearray(Path("bad.zip").read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 8] |= 1
    Path("bad.zip").write_bytes(data)


def a_tar(good: dict[str, bytes]) -> None:
    import io
    import tarfile

    with tarfile.open("bad.zip", "w") as archive:
        info = tarfile.TarInfo("../evil")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))


HOSTILE: dict[str, Callable[[dict[str, bytes]], Any]] = {
    "empty": lambda good: Path("bad.zip").write_bytes(b""),
    "text": lambda good: Path("bad.zip").write_bytes(b"not a zip"),
    "tar": a_tar,
    "nothing in it": lambda good: written({}),
    "no record": lambda good: written({k: v for k, v in good.items() if k != RECORD}),
    "a file is missing": lambda good: written({k: v for k, v in good.items() if k != "files/m.bin"}),
    "a file too many": lambda good: written({**good, "files/extra": b""}),
    "a folder": lambda good: written({**good, "files/": b""}),
    "climbs out": lambda good: written({**good, "../evil": b"x"}),
    "absolute": lambda good: written({**good, "/etc/cron.d/x": b"x"}),
    "other bytes": lambda good: written({**good, "files/m.bin": b"weightZ"}),
    "fewer bytes": lambda good: written({**good, "files/m.bin": b"w"}),
    "other attachment": lambda good: written({**good, "attachments/roc.txt": b"curvE"}),
    "other evaluation": lambda good: written({**good, "evaluations/1/e.txt": b"y"}),
    "compressed": lambda good: written(good, compression=zipfile.ZIP_DEFLATED),
    "a bomb": lambda good: written({**good, "files/m.bin": bytes(50 << 20)}, compression=zipfile.ZIP_DEFLATED),
    "a link": lambda good: written(good, modes={"files/m.bin": stat.S_IFLNK | 0o777}),
    "a pipe": lambda good: written(good, modes={"files/m.bin": stat.S_IFIFO | 0o644}),
    "twice": doubled,
    "overlapping": overlapping,
    "two names": two_names,
    "encrypted": encrypted,
    "cut": lambda good: (written(good), os.truncate("bad.zip", 3000)),
    "record is no JSON": lambda good: written({**good, RECORD: b"{"}),
    "record is a list": edited(lambda raw: []),
    "record is deep": lambda good: written({**good, RECORD: b"[" * 100_000}),
    "of a later format": edited(lambda raw: raw.update(format=2)),
    "no version": edited(lambda raw: raw.pop("version")),
    "no origin": edited(lambda raw: raw.pop("origin")),
    "origin is elsewhere": edited(lambda raw: raw["origin"].update(uri="model://other/v1")),
    "origin moves": edited(lambda raw: raw["origin"].update(uri="model://churn/latest")),
    "chain is no digest": edited(lambda raw: raw["origin"].update(chain="../" * 20)),
    "chain is a number": edited(lambda raw: raw["origin"].update(chain=7)),
    "entry zero": edited(lambda raw: raw["origin"].update(seq=0)),
    "entry is a text": edited(lambda raw: raw["origin"].update(seq="1")),
    "bad model name": edited(lambda raw: raw["version"].update(model="../churn")),
    "manifest of others": edited(lambda raw: raw["version"].update(digest="sha256:" + "0" * 64)),
    "size of others": edited(lambda raw: raw["version"]["files"][0].update(size=8)),
    "negative size": edited(lambda raw: raw["version"]["files"][0].update(size=-7)),
    "no files": edited(lambda raw: raw["version"].update(files=[])),
    "metrics are texts": edited(lambda raw: raw["version"].update(metrics=[1])),
    "tag is long": edited(lambda raw: raw["version"].update(tags=["x" * 100_000])),
    "note is long": edited(lambda raw: raw["version"].update(note="x" * 50_000_000)),
    "time is none": edited(lambda raw: raw["version"].update(created_at="yesterday")),
    "input is none": edited(lambda raw: raw["version"].update(inputs=["javascript:alert(1)"])),
    "past is none": edited(lambda raw: raw.update(past=7)),
    "attachment climbs": edited(lambda raw: raw["version"]["attachments"][0].update(name="../roc.txt")),
    "half a character": edited(lambda raw: raw["past"]["history"][0].update(actor="\ud800")),
    "a past without a number": edited(lambda raw: raw["past"]["run"].update(duration=float("nan"))),
    "no duration": edited(lambda raw: raw["version"].update(duration=float("nan"))),
    "an endless duration": edited(lambda raw: raw["version"].update(duration=float("inf"))),
    "file is ..": renamed("../evil"),
    "file is absolute": renamed("/etc/passwd"),
    "file is reserved": renamed("CON"),
    "file has a backslash": renamed("a\\b"),
    "file is a drive": renamed("C:evil"),
}  # fmt: skip


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_bundles(how: str, lab: Registry, prod: Registry, tmp_path: Path) -> None:
    """A file that is not exactly what an export writes is refused with one sentence, and changes nothing."""
    trained(lab)
    good = members(lab.export_bundle("churn/v1", "good.zip"))
    HOSTILE[how](good)
    known, around = entries(prod), set(os.listdir())
    with pytest.raises((InvalidDocument, InvalidName, InvalidURI, DigestMismatch)) as error:
        prod.import_bundle("bad.zip")
    assert len(str(error.value)) < 1500
    assert entries(prod) == known
    assert set(os.listdir()) - around <= {"prod.db.artifacts"}  # bytes that nothing names, for the collector
    assert prod.import_bundle("good.zip").number == 1
    check_sound(prod)


def test_no_bundle(prod: Registry) -> None:
    """A path with nothing there, or a folder, is told as what it is."""
    os.mkdir("folder")
    for name in ("none.zip", "folder", "folder/x/y"):
        with pytest.raises(NotFound, match="no bundle"):
            prod.import_bundle(name)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage(data: st.DataObject, damaged: tuple[Registry, bytes, Any]) -> None:
    """Whatever bytes of a bundle are changed: an error of ours, or the very version with its digest."""
    reg, good, original = damaged
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del bad[data.draw(st.integers(0, len(bad))) :]
    Path("any.zip").write_bytes(bad)
    try:
        arrived = reg.import_bundle("any.zip")
    except ModelHubError:
        return
    assert arrived.digest == original.digest


@pytest.fixture
def damaged(lab: Registry, prod: Registry) -> tuple[Registry, bytes, Any]:
    original = trained(lab)
    return prod, Path(lab.export_bundle("churn/v1", "good.zip")).read_bytes(), original
