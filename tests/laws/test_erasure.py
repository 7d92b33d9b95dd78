"""An erasure whose process was killed, wherever that was, is finished by whoever writes next."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import modelhub_sdk as hub
from modelhub_sdk import Registry
from modelhub_sdk.blobs.store import BlobStore
from modelhub_sdk.domain import rules
from modelhub_sdk.stores import sql as sql_store
from modelhub_sdk.stores.files import Disk, FileStore, Objects
from modelhub_sdk.stores.private import PrivateLedger
from modelhub_sdk.stores.sql import SharedLedger, SqliteStore, SqlStore
from tests.support.homes import ALL, LOCAL, Home, home

THOROUGH = bool(os.environ.get("THOROUGH_TESTS"))
MOST = 40  # steps of an erasure: far more than it has

_STEPS: tuple[tuple[type, str], ...] = (
    (SqlStore, "erase"),
    (SqlStore, "erase_many"),
    (SqlStore, "confirm_erased"),
    (SqlStore, "forget"),
    (SqlStore, "insert"),
    (SharedLedger, "erased"),
    (PrivateLedger, "erased"),
    (sql_store._SharedSession, "commit"),
    (FileStore, "append"),
    *((medium, step) for medium in (Disk, Objects) for step in ("create", "replace", "delete")),
    (BlobStore, "delete"),
)
"""What an erasure does that changes something."""


@contextlib.contextmanager
def dying(n: int, *, after: bool) -> Iterator[None]:
    """Let this process die at its *n*-th step, before or after it."""
    left = n

    def deadly(step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if not left and not after:
                os._exit(9)
            result = step(*args, **options)
            if not left:
                os._exit(9)
            return result

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in _STEPS:
            patch.setattr(owner, name, deadly(getattr(owner, name)))
        yield


def killed(n: int, action: Callable[[], Any], *, after: bool = False) -> bool:
    """Run *action* in a child that dies at its *n*-th step; return False when it came to its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            with dying(n, after=after):
                action()
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), code
    return code == 9


def steps(place: Home, far: int) -> tuple[int, ...]:
    """Return at which steps to die, all of them where that is quick, else at step *far*; the last one is none."""
    return tuple(range(1, MOST)) if THOROUGH or place.kind in LOCAL else (far, MOST)


def stored(reg: Registry) -> bytes:
    """Return all that the store of *reg* holds of texts: private parts, index, inbox, and what is derived."""
    store = reg._core.place.store
    parts = [record.body + record.private for record in store.read(0)]
    parts += [note.body for note in store.notes(10_000)]
    with reg._core.view() as view:
        parts += [text.encode() for (text,) in view.sql.all("SELECT body FROM @text")]
    return b"\n".join(parts)


def on_disk(*folders: Path) -> bytes:
    """Return all bytes of all files in *folders*."""
    return b"\n".join(path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=ALL)
def place(request: pytest.FixtureRequest, make_home: Any) -> Home:
    """Return a place of each kind."""
    return make_home(request.param)


def test_a_killed_redaction_is_finished_by_the_next_writer(place: Home, tmp_path: Path) -> None:
    """Killed before or after any of its steps, a redaction is done when somebody else has written anything."""
    others = Home(place.kind, place.url, place.folder, tmp_path / "cache of others", place.artifacts)
    with place.opened() as reg:
        reg.register("m", {"w": b"1"}, note="SECRET-0 phone")
        reg.comment("m/v1", "SECRET-0 again")
    n = 0
    for after in (False, True) if THOROUGH or place.kind in LOCAL else (False,):
        for step in steps(place, 6 if place.kind == "s3" else 3):
            n += 1
            with place.opened() as reg:
                reg.edit_version("m/v1", note=f"SECRET-{n} phone")

            def redact() -> None:
                with place.opened() as reg:
                    reg.redact("m/v1", "all", "asked to")

            died = killed(step, redact, after=after)
            with others.opened() as other:
                other.register("m", {"w": b"1"})
                redacted = other.version("m/v1").note is None
                left = stored(other)
            if place.kind in LOCAL:
                left += on_disk(place.folder, others.cache)
            if redacted:
                assert f"SECRET-{n}".encode() not in left, (step, after)
            if not died:
                assert redacted
                break
        else:
            pytest.fail("it never came to its end")
    with place.opened() as reg:
        verification = reg.verify()
        assert verification.ok, verification.problems


@pytest.mark.parametrize("kind", LOCAL)
def test_a_killed_redaction_of_a_traceback_is_finished_by_a_collector(kind: str, tmp_path: Path) -> None:
    """Nothing of an exception and its traceback is left when a redaction was killed and garbage is collected."""
    place = home(kind, tmp_path)
    step = 0
    for step in range(1, MOST):
        with place.opened() as reg:
            with contextlib.suppress(ValueError), reg.start_run("t", id=f"r{step}", outputs=None):
                raise ValueError(f"SECRET-{step}")
            assert reg.run(f"r{step}").traceback

        def redact(run: str = f"run:r{step}") -> None:
            with place.opened() as reg:
                reg.redact(run, "exception", "asked to")

        died = killed(step, redact)
        with place.opened() as reg, pytest.MonkeyPatch.context() as patch:
            patch.setattr("modelhub_sdk.core.DELETING", 0.1)  # the dead one would be waited for
            reg.collect_garbage(dry_run=False)
            redacted = reg.run(f"r{step}").exception is None
        if redacted:
            assert f"SECRET-{step}".encode() not in on_disk(place.folder, place.cache), step
        if not died:
            break
    assert 4 < step < MOST
    with place.opened() as reg:
        assert reg.verify().ok


def test_a_killed_forgetting_is_finished_by_the_next_writer(place: Home, monkeypatch: Any) -> None:
    """Killed at any step, `forget_user` is done when somebody else wrote, with one pseudonym for all texts."""
    monkeypatch.setattr(rules, "FORGOTTEN_AT_ONCE", 2)  # so that it takes several entries
    with place.opened() as reg:
        reg.create_model("m")
    step = 0
    for n, step in enumerate(steps(place, 10), 1):
        name = f"kim{n}"
        with place.opened() as reg:
            reg._core.actor = name
            for m in range(3):
                reg.create_model(f"m{n}-{m}", owner=name)
            reg.register("m", {"w": b"1"})
            reg.resolve("m/v1")

        def forget(name: str = name) -> None:
            with place.opened() as reg:
                reg.forget_user(name, f"{name} asked")

        died = killed(step, forget)
        with place.opened() as reg:
            reg.comment("m/v1", "anything")
            models = [reg.model(f"m{n}-{m}") for m in range(3)]
            shown = {model.owner for model in models} | {model.created_by for model in models}
            left = stored(reg)
        assert len(shown) == 1, step  # either it did not begin, or it is complete
        if place.kind in LOCAL:
            left += on_disk(place.folder, place.cache)
        if shown != {name}:
            assert name.encode() not in left, step
        if not died:
            assert shown != {name}
            break
    assert step > 4
    with place.opened() as reg:
        verification = reg.verify()
        assert verification.ok, verification.problems
        with reg._core.view() as view:
            before = view.sql.all("SELECT seal, body FROM @text ORDER BY seal")
        reg.rebuild_index()
        with reg._core.view() as view:
            assert view.sql.all("SELECT seal, body FROM @text ORDER BY seal") == before


def test_a_reader_finishes_nothing(tmp_path: Path) -> None:
    """A handle that is read-only leaves an unfinished erasure alone; `verify` tells of it."""
    place = home("sqlite", tmp_path)
    with place.opened() as reg:
        reg.register("m", {"w": b"1"}, note="SECRET")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SqliteStore, "erase", lambda *_: os._exit(9))

        def redact() -> None:
            with place.opened() as reg:
                reg.redact("m/v1", "note", "asked to")

        assert killed(MOST, redact)
    with place.opened(read_only=True, create=None) as reg:
        assert reg.version("m/v1").note is None
        assert "still stored" in reg.verify().problems[0]
    with place.opened() as reg:
        assert "still stored" in reg.verify().problems[0]
        reg.comment("m/v1", "anything")
        assert reg.verify().ok


def test_a_writer_that_may_not_erase_still_writes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where an erasure cannot be finished a write succeeds, and one warning says what is left."""
    place = home("sqlite", tmp_path)

    def refused(*_: Any) -> None:
        raise hub.NotAllowed("no right to change anything")

    with place.opened() as reg, pytest.MonkeyPatch.context() as patch:
        reg.register("m", {"w": b"1"}, note="SECRET")
        patch.setattr(SqliteStore, "erase", refused)
        with pytest.raises(hub.NotAllowed):
            reg.redact("m/v1", "note", "asked to")
        with place.opened() as other:
            assert other.register("m", {"w": b"2"}).number == 2
            assert other.register("m", {"w": b"3"}).number == 3
    assert caplog.text.count("could not erase them") == 1


@pytest.mark.parametrize("kind", LOCAL)
def test_a_killed_copier_is_followed_by_the_next(kind: str, tmp_path: Path) -> None:
    """A copier that is killed after any step leaves nothing that the next copy does not erase."""
    place = home("sqlite", tmp_path)
    copy = home(kind, tmp_path / "copy")
    shutil.rmtree(copy.folder)
    with place.opened() as reg:
        reg.register("m", {"w": b"1"})
        for step in range(1, MOST):
            reg.edit_version("m/v1", note=f"SECRET-{step}")
            reg.copy_to(copy.url)
            reg.redact("m/v1", "note", "asked to")

            def copied() -> None:
                with place.opened() as reg:
                    reg.copy_to(copy.url)

            died = killed(step, copied)
            reg.copy_to(copy.url)
            assert f"SECRET-{step}".encode() not in on_disk(copy.folder), step
            if not died:
                break
    assert 2 < step < MOST
