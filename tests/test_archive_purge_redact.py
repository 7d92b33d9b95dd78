"""Putting away, giving up and erasing: what each takes away, what it guards, and what stays for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.uses import drain

ALL = pytest.mark.parametrize("reg", ["memory", "sqlite", "folder"], indirect=True)


@pytest.fixture(autouse=True)
def _three(request: pytest.FixtureRequest) -> None:
    """Give most tests a model `churn` with v1 (a, shared), v2 (b, shared) and v3 (c)."""
    if "reg" in request.fixturenames:
        reg = request.getfixturevalue("reg")
        reg.register("churn", {"own.bin": b"one", "shared.bin": b"shared"})
        reg.register("churn", {"own.bin": b"two", "shared.bin": b"shared"})
        reg.register("churn", {"own.bin": b"three"})


def blobs(reg: Registry) -> set[bytes]:
    """What the store holds, content by content."""
    root = Path(reg._core.artifacts().root or "")
    return {path.read_bytes() for path in root.rglob("*") if path.is_file()}


# --- archive


def test_an_archived_version_is_out_of_sight(reg: Registry):
    """It leaves listings, counts and latest, can still be read, and comes back by restore."""
    reg.approve("churn/v2")
    reg.approve("churn/v3")
    archived = reg.archive("churn/v3", "superseded")
    assert archived.archived
    assert reg.latest("churn").number == 2
    assert [v.number for v in reg.versions("churn")] == [2, 1]
    assert [v.number for v in reg.versions("churn", where="archived = true")] == [3]
    assert reg.model("churn").counts == {"pending": 1, "approved": 1, "rejected": 0}
    assert reg.version("churn/v3").status == "approved"
    restored = reg.restore("churn/v3", "needed after all")
    assert not restored.archived
    assert reg.latest("churn").number == 3


def test_archiving_twice_adds_nothing(reg: Registry):
    """What is archived already, or not archived, leaves no second event."""
    first = reg.archive("churn/v1")
    assert reg.archive("churn/v1", "again") == first
    reg.restore("churn/v1")
    before = reg.audit().total
    reg.restore("churn/v1")
    assert reg.audit().total == before


def test_an_archived_model_is_out_of_sight(reg: Registry):
    """A whole model leaves the listing of models; its name stays taken; restore brings it back."""
    assert reg.archive("churn").archived
    assert list(reg.models()) == []
    assert [m.name for m in reg.models(where="archived = true")] == ["churn"]
    with pytest.raises(hub.Conflict):
        reg.create_model("churn")
    assert not reg.restore("churn").archived
    assert [m.name for m in reg.models()] == ["churn"]


def test_archived_cannot_be_approved(reg: Registry):
    """An archived version has to be taken out of the archive first."""
    reg.archive("churn/v1")
    with pytest.raises(hub.NotAllowed, match="restore"):
        reg.approve("churn/v1")


def test_a_forgotten_number_does_not_archive_the_model(reg: Registry):
    """``model://churn/`` could be a version whose number was left out: archive and redact refuse it."""
    for call in (reg.archive, reg.restore):
        with pytest.raises(hub.InvalidURI, match="churn/v1"):
            call("model://churn/", "oops")
    with pytest.raises(hub.InvalidURI):
        reg.redact("model://churn/", "all", "oops")


# --- purge


@ALL
def test_purge_frees_the_bytes_that_nobody_needs(reg: Registry):
    """The version's own bytes go, those that another version has stay, and the record stays."""
    before = reg.version("churn/v1")
    purged = reg.purge("churn/v1", "customer's request")
    assert purged.purged
    assert (purged.files, purged.digest, purged.metrics) == (before.files, before.digest, before.metrics)
    assert blobs(reg) == {b"two", b"three", b"shared"}
    reg.purge("churn/v2", "customer's request")
    assert blobs(reg) == {b"three"}
    assert reg.verify()


def test_purge_of_some_files(reg: Registry):
    """Only the named files go; the others still resolve."""
    version = reg.purge("churn/v1", "private data", files=["own.bin"])
    assert [file.path for file in version.files] == ["own.bin", "shared.bin"]
    assert b"one" not in blobs(reg)
    got = reg.resolve("churn/v1", files="shared.bin")
    assert Path(got, "shared.bin").read_bytes() == b"shared"
    with pytest.raises(hub.Purged, match=r"own\.bin.*tester.*private data"):
        reg.resolve("churn/v1")
    with pytest.raises(hub.Purged, match=r"own\.bin"):
        reg.resolve("model://churn/v1/own.bin")
    assert reg.verify()


def test_purge_needs_a_reason_and_known_files(reg: Registry):
    """No reason, an unknown file, an unknown version: refused, and all bytes stay."""
    before = blobs(reg)
    with pytest.raises(hub.InvalidDocument, match="reason"):
        reg.purge("churn/v1", "")
    with pytest.raises(hub.NotFound) as caught:
        reg.purge("churn/v1", "x", files=["own.bim"])
    assert caught.value.nearest == ("own.bin",)
    with pytest.raises(hub.NotFound):
        reg.purge("churn/v9", "x")
    assert blobs(reg) == before


@ALL
@pytest.mark.parametrize("guard", ["approved", "aliased", "weighted", "used"])
def test_guards_of_purge(reg: Registry, guard: str):
    """What is approved, has an alias or was used is purged only with force=True; the error says what guards it."""
    if guard == "approved":
        reg.approve("churn/v3")
    elif guard == "aliased":
        reg.set_alias("churn", "champion", 3)
    elif guard == "weighted":
        reg.set_alias("churn", "champion", {"v1": 99, "v3": 1})
    else:
        reg.resolve("churn/v3")
    said = {"approved": "approved", "aliased": "champion", "weighted": "champion", "used": "used once"}[guard]
    with pytest.raises(hub.NotAllowed, match=said):
        reg.purge("churn/v3", "x")
    assert b"three" in blobs(reg)
    assert reg.purge("churn/v3", "x", force=True).purged
    assert b"three" not in blobs(reg)


def test_purge_refuses_moving_names(reg: Registry):
    """latest, an alias and a digest may move: decide on what you saw."""
    reg.approve("churn/v3")
    reg.set_alias("churn", "champion", 3)
    for ref in ("churn/latest", "churn/champion", f"churn/{reg.version('churn/v3').digest}"):
        with pytest.raises(hub.NotAllowed, match="number"):
            reg.purge(ref, "x", force=True)


def test_purged_versions_stay_what_they_are(reg: Registry):
    """A purged version cannot be approved or aliased; purging it again adds nothing and finishes the deletion."""
    reg.purge("churn/v3", "x")
    with pytest.raises(hub.Purged):
        reg.approve("churn/v3")
    with pytest.raises(hub.NotAllowed, match="purged"):
        reg.set_alias("churn", "champion", 3)
    reg._core.artifacts().put_bytes(b"three")  # as if the process had died before it deleted
    before = reg.audit().total
    reg.purge("churn/v3", "x")
    assert b"three" not in blobs(reg)
    assert [one.action for one in reg.audit(limit=2)] == ["blobs.deleted", "blobs.deleting"]
    reg.purge("churn/v3", "x")
    assert reg.audit().total == before + 2


def test_purge_keeps_what_stands_beside_versions(reg: Registry):
    """Bytes that are also an attachment or a file of an evaluation, of any version, are kept."""
    reg.attach("churn/v1", "three.bin", b"three")
    reg.add_evaluation("churn/v2", {"auc": 1}, files={"own.bin": b"one"})
    reg.purge("churn/v3", "x")
    reg.purge("churn/v1", "x")
    assert {b"three", b"one"} <= blobs(reg)
    assert reg.attachment("churn/v1", "three.bin") == b"three"
    assert reg.verify()


def test_purge_of_a_version_with_many_files(reg: Registry):
    """A version whose manifest is a document: its bytes go, and bytes it shares are kept for it."""
    many = {f"f{i:04}": b"%d" % (i % 7) for i in range(1200)}
    reg.register("big", many)
    reg.register("small", {"same": b"3", "other": b"other"})
    reg.purge("small/v1", "x")
    assert b"3" in blobs(reg)
    assert b"other" not in blobs(reg)
    reg.purge("big/v1", "x")
    assert not {b"%d" % i for i in range(7)} & blobs(reg)
    assert reg.version("big/v1").purged
    with pytest.raises(hub.Purged):
        reg.resolve("big/v1")
    assert reg.verify()


def test_a_purged_content_can_be_registered_again(reg: Registry):
    """The same bytes as a new version are stored anew; the old version stays purged."""
    reg.purge("churn/v3", "x")
    again = reg.register("churn", {"own.bin": b"three"})
    assert Path(reg.resolve(again), "own.bin").read_bytes() == b"three"
    with pytest.raises(hub.Purged):
        reg.resolve("churn/v3", into=Path(reg._core.cache().path) / "never")


def test_who_purged_a_file_and_why(reg: Registry):
    """Each file that was given up says its own who and why, also when others were given up later, or all."""
    reg.register("pair", {"a": b"a", "b": b"b", "c": b"c"})
    reg.purge("pair/v1", "personal data", files=["a"])
    reg.purge("pair/v1", "too large", files=["b"])
    with pytest.raises(hub.Purged, match=r"'a' of .* personal data$"):
        reg.resolve("model://pair/v1/a")
    with pytest.raises(hub.Purged, match=r"'b' of .* too large$"):
        reg.resolve("model://pair/v1/b")
    with pytest.raises(hub.Purged, match=r"'a'.*personal data; 'b'.*too large$"):
        reg.resolve("pair/v1")
    reg.purge("pair/v1", "all of it")
    with pytest.raises(hub.Purged, match="personal data$"):
        reg.resolve("model://pair/v1/a")
    with pytest.raises(hub.Purged, match="all of it$"):
        reg.resolve("model://pair/v1/c")


def test_which_files_to_purge(reg: Registry):
    """One path may be passed as it is; none, a pattern and an unknown one are refused, with what there is."""
    before = blobs(reg)
    with pytest.raises(hub.InvalidName, match="names no file"):
        reg.purge("churn/v1", "x", files=[])
    with pytest.raises(hub.InvalidName, match=r"exact paths.*churn/v1"):
        reg.purge("churn/v1", "x", files=["*.bin"])
    with pytest.raises(hub.NotFound, match=r"exact paths.*own\.bin"):
        reg.purge("churn/v1", "x", files="own")
    assert blobs(reg) == before
    assert reg.purge("churn/v1", "x", files="own.bin").purged_files == ("own.bin",)


@pytest.mark.parametrize("files", [["empty", ""], ["", "own.bin"], "a/../b", [".."]])
@pytest.mark.parametrize("ref", ["churn/v1", "churn/v99", "nothing/v1"])
def test_paths_to_purge_are_checked_before_anything_is_looked_up(reg: Registry, ref: str, files: list[str]):
    """A path that is none is refused as a name, also beside one that is not there and where no version is."""
    with pytest.raises(hub.InvalidName):
        reg.purge(ref, "x", files=files)


@ALL
def test_a_version_that_is_not_whole_goes_nowhere(reg: Registry):
    """Of a version that lost a file it shows which; it cannot be approved, nor can an alias point at it."""
    assert reg.version("churn/v1").purged_files == ()
    version = reg.purge("churn/v1", "private data", files=["own.bin"])
    assert (version.purged, version.purged_files) == (False, ("own.bin",))
    assert "some files removed" in version._repr_html_()
    from modelhub_sdk.views import text

    assert "own.bin" in text.render(version)
    with pytest.raises(hub.Purged, match=r"own\.bin"):
        reg.approve("churn/v1")
    for target in (1, {"v1": 10, "v2": 90}):
        with pytest.raises(hub.NotAllowed, match="purged in part"):
            reg.set_alias("churn", "champion", target)
    assert reg.reject("churn/v1", "not whole").status == "rejected"
    assert reg.purge("churn/v1", "the rest").purged_files == ()
    assert "files removed" in text.render(reg.version("churn/v1"))


# --- redact

SECRET = "Jane Doe, born 1 April"


def everything_on_disk(*roots: Path) -> Iterator[tuple[Path, bytes]]:
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                yield path, path.read_bytes()


def holders(text: str, *roots: Path) -> list[str]:
    """The files below *roots* that hold *text*, in the encodings that we write."""
    needles = {text.encode(), text.encode("utf-16-le"), text.encode().hex().encode()}
    return [str(path) for path, body in everything_on_disk(*roots) if any(n in body for n in needles)]


WHERE = {
    "note": lambda reg: reg.register("m", {"f": b"1"}, note=SECRET),
    "description": lambda reg: reg.edit_version("churn/v1", description=SECRET),
    "reasons": lambda reg: reg.reject("churn/v1", SECRET),
    "comments": lambda reg: reg.comment("churn/v1", SECRET),
    "evaluations": lambda reg: reg.add_evaluation("churn/v1", {"auc": 0.5}, note=SECRET),
    "fields.name": lambda reg: reg.edit_version("churn/v1", fields={"name": SECRET}),
    "all": lambda reg: reg.edit_version(
        "churn/v1", fields={"a": SECRET}, note=SECRET, description=f"x {SECRET}"
    ),
}


@pytest.mark.parametrize("what", WHERE)
@pytest.mark.parametrize("reg", ["sqlite", "folder"], indirect=True)
def test_redaction_reaches_every_file(
    reg: Registry, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """After redact the text is in no file: database, write-ahead log, journal, private index, cache, spool."""
    version = WHERE[what](reg)
    home = Path(reg._core.cache().path).parent
    reg.resolve(version)  # pins in the cache know the version
    reg.rebuild_index()  # deleted rows of the old index lie in free pages
    assert holders(SECRET, tmp_path)  # the test would see it
    with hub.open(reg.url.removeprefix("file://")) as other:  # another handle, with its connections open
        assert SECRET in repr(other.version(version))
        left = reg.redact(version, what, "asked for by the person")
        assert SECRET not in repr(left)
        assert SECRET not in repr(other.version(version))
        assert SECRET not in repr(list(other.audit()))
        assert holders(SECRET, tmp_path, home) == []
        assert other.verify()
    assert reg.verify()
    (record, *_) = reg.audit(version)
    assert record.action == "text.redacted"
    assert what in record.detail
    assert "asked for by the person" in record.detail
    assert record.actor == "tester"


def test_redaction_of_a_model(reg: Registry):
    """A model's title, description, owner and fields are erased one by one, through all of their history."""
    reg.edit_model(
        "churn", title=SECRET, description=SECRET, owner=SECRET, fields={"k": SECRET, "other": "stays"}
    )
    reg.edit_model("churn", title="new title", fields={"k": "new"})
    reg.redact("churn", "title", "x")
    reg.redact("churn", "owner", "x")
    reg.redact("churn", "fields.k", "x")
    model = reg.redact("churn", "description", "x")
    assert (model.title, model.owner, model.description) == (None, None, None)
    assert model.fields.get("other") == "stays"
    assert SECRET not in repr(list(reg.audit(limit=1000)))
    assert SECRET not in repr(reg.at(5).model("churn"))
    assert "(redacted)" in repr(list(reg.audit("churn")))
    assert reg.verify()


def test_redaction_of_one_thing_leaves_the_others(reg: Registry):
    """Only what was named is erased: other texts, other versions, status and decisions stay."""
    reg.edit_version("churn/v1", note="stays", description=SECRET)
    reg.edit_version("churn/v2", description="also stays")
    reg.reject("churn/v1", "stays too")
    version = reg.redact("churn/v1", "description", "x")
    assert (version.note, version.reason, version.status) == ("stays", "stays too", "rejected")
    assert reg.version("churn/v2").description == "also stays"


def test_redacted_reasons_keep_the_decision(reg: Registry):
    """Who decided what and when stays, only the words go; also for a purge."""
    reg.reject("churn/v1", SECRET)
    reg.purge("churn/v1", SECRET)
    version = reg.redact("churn/v1", "reasons", "x")
    assert (version.status, version.decided_by, version.reason) == ("rejected", "tester", None)
    with pytest.raises(hub.Purged, match="no reason kept") as caught:
        reg.resolve("churn/v1")
    assert SECRET not in str(caught.value)


def test_redaction_can_be_repeated(reg: Registry):
    """Again with nothing new adds no event; a text that came after is erased by the next one."""
    reg.comment("churn/v1", SECRET)
    reg.redact("churn/v1", "comments", "x")
    before = reg.audit().total
    reg.redact("churn/v1", "comments", "x")
    assert reg.audit().total == before
    reg.comment("churn/v1", "second " + SECRET)
    version = reg.redact("churn/v1", "comments", "x")
    assert [comment.text for comment in version.comments] == [None, None]


def test_what_cannot_be_redacted(reg: Registry):
    """A text that is not there, an unknown kind, no reason: refused, and nothing changes."""
    before = reg.audit().total
    with pytest.raises(hub.NotFound, match="note"):
        reg.redact("churn/v1", "note", "x")
    with pytest.raises(hub.InvalidName, match="comments"):
        reg.redact("churn/v1", "metrics", "x")
    with pytest.raises(hub.InvalidDocument, match="reason"):
        reg.redact("churn/v1", "note", "")
    with pytest.raises(hub.NotFound):
        reg.redact("churn/v9", "note", "x")
    assert reg.audit().total == before


def test_an_unfinished_redaction_is_found(reg: Registry, monkeypatch: pytest.MonkeyPatch):
    """When the process dies between the event and the erasure, verify says so, and redacting again finishes."""
    reg.edit_version("churn/v1", note=SECRET)

    def died(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(reg._core.place.store), "erase", died)
        with pytest.raises(KeyboardInterrupt):
            reg.redact("churn/v1", "note", "x")
    found = reg.verify()
    assert not found
    assert "was redacted, and is still stored" in found.problems[0]
    assert reg.version("churn/v1").note is None
    reg.redact("churn/v1", "note", "x")
    assert reg.verify()


def test_users_and_hosts_can_be_redacted(reg: Registry):
    """``user`` and ``host`` erase who did or used anything of a version, or ran a run, and where; nothing else goes."""
    reg._core.actor, reg._core.host = "jane.doe@x", "jane-laptop"
    reg.register("m", {"w": b"1"}, note="stays")
    reg.approve("m/v1", "good")
    reg.resolve("m/v1")
    drain(reg._core)
    with reg.start_run("t", id="r1", outputs=None):
        pass
    reg._core.actor, reg._core.host = "bob", "vm"
    for what in ("user", "host"):
        reg.redact("m/v1", what, "gdpr")
        reg.redact("run:r1", what, "gdpr")
    version, run = reg.version("m/v1"), reg.run("r1")
    assert (version.created_by, version.decided_by, version.status, version.note) == (
        None,
        None,
        "approved",
        "stays",
    )
    assert (run.user, run.host) == (None, None)
    assert [(use.actor, use.host) for use in reg.uses("m/v1")] == [(None, None)]
    assert reg.verify().ok
