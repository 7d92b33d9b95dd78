"""The laws of the port as tests: subclass `StoreConformance`, give it a place, and run pytest.

::

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def place(self, tmp_path):
            return f"mystore://{tmp_path}/registry"

        def open(self, place):
            return MyStore(place)

Every law is tried with handles of its own on the same place, several with real processes. `open` must
work in a child process, too: it is called there with what `place` returned.
"""

from __future__ import annotations

import base64
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from modelhub_sdk.errors import InvalidDocument
from modelhub_sdk.formats import codec
from modelhub_sdk.ports import Note, Record, SequenceTaken, Store, SupportsGapCheck

if TYPE_CHECKING:
    from modelhub_sdk.registry import Registry


def record(seq: int, text: str = "", *, size: int = 0, private: bytes = b"{}") -> Record:
    """Return a record with this seq, recognisable by *text*, its body at least *size* bytes long."""
    body = codec.dumps({"seq": seq, "text": text, "pad": "é" * (size // 2), "line": "a\nb\u2028c\\"})
    return Record(seq, "model:größe", codec.chain(codec.GENESIS, seq, "model:größe", body), body, private)


class StoreConformance:
    """The laws of ``modelhub_sdk.ports``; see the module for how to use it."""

    shared = True
    """Whether several processes can open one place (the memory store cannot)."""

    kills = 8
    """How many writers are killed."""

    long = 100
    """How many entries a long journal has."""

    @pytest.fixture
    def place(self) -> Any:
        """A fresh place, as something that can be pickled. To be overridden."""
        raise NotImplementedError("override the fixture `place`")

    def open(self, place: Any) -> Store:
        """Return a new handle on the store at *place*. To be overridden."""
        raise NotImplementedError("override `open`")

    def raw(self, place: Any) -> bytes | None:
        """Return all bytes on the medium at *place*, read without the store. None: they cannot be looked at."""
        return None

    @pytest.fixture
    def store(self, place: Any) -> Iterator[Store]:
        """One handle, closed in the end."""
        with self.opened(place) as store:
            yield store

    @contextmanager
    def opened(self, place: Any) -> Iterator[Store]:
        """Lend a handle of its own."""
        store = self.open(place)
        try:
            yield store
        finally:
            store.close()

    # --- the journal ---------------------------------------------------------------------------

    def test_an_empty_journal_reads_as_nothing(self, store: Store) -> None:
        """`read` of a fresh place yields nothing, wherever it is asked to begin."""
        assert list(store.read(0)) == []
        assert list(store.read(7)) == []

    def test_read_gives_back_the_bytes_in_order(self, store: Store, place: Any) -> None:
        """*Faithful*: what was appended comes back byte for byte, in order, through this handle and another."""
        written = [record(seq, "x" * seq, private=b"{}" if seq % 2 else b"") for seq in range(1, 41)]
        for one in written:
            store.append(one)
        assert list(store.read(0)) == written
        assert list(store.read(38)) == written[38:]
        assert list(store.read(40)) == []
        assert list(store.read(0, limit=3)) == written[:3]
        assert list(store.read(20, limit=18)) == written[20:38]
        with self.opened(place) as other:
            assert list(other.read(0)) == written

    def test_a_long_journal_comes_back_whole(self, store: Store) -> None:
        """*Faithful*, where a store reads in batches: every entry once and in order, from anywhere, up to any limit."""
        written = [record(seq, str(seq)) for seq in range(1, self.long + 1)]
        for one in written:
            store.append(one)
        middle = self.long // 2
        assert list(store.read(0)) == written
        assert list(store.read(1)) == written[1:]
        assert list(store.read(middle - 5)) == written[middle - 5 :]
        assert list(store.read(3, limit=middle)) == written[3 : middle + 3]
        assert list(store.read(self.long - 1, limit=50)) == written[-1:]
        reading = store.read(0)
        assert next(reading) == written[0]  # a reader may stop early, and the store goes on
        del reading
        assert list(store.read(self.long)) == []

    def test_what_was_appended_is_on_the_medium(self, place: Any) -> None:
        """A body is on the medium when `append` has returned, not only in this process; found without the store."""
        with self.opened(place) as store:
            store.append(record(1, "marked-once"))
            found = self.raw(place)
            if found is None:
                pytest.skip("the medium cannot be looked at")
            assert _encoded(b"marked-once", found)

    def test_a_large_record_comes_back_whole(self, store: Store) -> None:
        """An entry of the largest size allowed is kept like any other."""
        large = record(1, size=codec.MAX_BODY, private=b'{"a":"' + b"p" * 200_000 + b'"}')
        store.append(large)
        assert list(store.read(0)) == [large]

    def test_a_number_is_given_once(self, store: Store, place: Any) -> None:
        """*Once*: a second append of a seq is SequenceTaken, through any handle, and changes nothing."""
        store.append(record(1, "first"))
        with pytest.raises(SequenceTaken):
            store.append(record(1, "second"))
        with self.opened(place) as other, pytest.raises(SequenceTaken):
            other.append(record(1, "third"))
        assert list(store.read(0)) == [record(1, "first")]

    def test_a_record_is_seen_at_once(self, store: Store, place: Any) -> None:
        """*Prompt*: after `append` has returned, another handle that had already read sees the record."""
        with self.opened(place) as other:
            for seq in range(1, 31):
                assert list(other.read(seq - 1)) == []
                store.append(record(seq))
                assert [one.seq for one in other.read(seq - 1)] == [seq]

    def test_reading_stops_at_a_gap(self, store: Store) -> None:
        """`read` never jumps over a missing number: it ends there, or names the number that is missing."""
        for seq in (1, 2):
            store.append(record(seq))
        with suppress(SequenceTaken):  # a store may refuse to leave a gap at all
            store.append(record(4))
        for after, expected in ((0, [1, 2]), (2, [])):
            seen: list[Record] = []
            with suppress(InvalidDocument):
                seen.extend(store.read(after))
            assert [one.seq for one in seen] == expected

    def test_a_gap_is_named(self, store: Store) -> None:
        """A store that can look for gaps names the first missing number, and says nothing of a whole journal."""
        if not isinstance(store, SupportsGapCheck):
            pytest.skip("this store cannot look for gaps")
        store.check_gaps()
        for seq in range(1, 6):
            store.append(record(seq))
            store.check_gaps()
        store.check_gaps(5)
        for seq in (8, 9):
            store.append(record(seq))
        for after in (0, 3, 5):
            with pytest.raises(InvalidDocument, match="no entry 6"):
                store.check_gaps(after)

    def test_threads_never_share_a_number(self, store: Store) -> None:
        """*Once*, among eight threads of one handle: forty numbers, each with one winner."""

        def compete(who: int) -> list[int]:
            won = []
            for seq in range(1, 41):
                with suppress(SequenceTaken):
                    while len(list(store.read(seq - 2, limit=1))) < (seq > 1):
                        time.sleep(0.001)
                    store.append(record(seq, str(who)))
                    won.append(seq)
            return won

        with ThreadPoolExecutor(8) as threads:
            won = list(threads.map(compete, range(8)))
        assert sorted(seq for many in won for seq in many) == list(range(1, 41))
        for found in store.read(0):
            assert [who for who in range(8) if record(found.seq, str(who)) == found and found.seq in won[who]]

    def test_processes_never_share_a_number(self, place: Any) -> None:
        """*Once*, among four processes that append as fast as they can."""
        self._needs_processes()
        with _children(4, self, place, _append_many, 15) as children:
            won = [child.result() for child in children]
        numbers = sorted(seq for many in won for seq in many)
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) == 60
        with self.opened(place) as store:
            owners = {one.seq: one for one in store.read(0)}
        for who, many in enumerate(won):
            assert all(owners[seq] == record(seq, str(who), size=2000) for seq in many)

    def test_a_killed_writer_leaves_whole_records_only(self, place: Any) -> None:
        """*Whole*: after SIGKILL at any moment the journal reads, holds all that was acknowledged, and goes on."""
        self._needs_processes()
        with self.opened(place) as store:
            for attempt in range(self.kills):
                before = [one.seq for one in store.read(0)]
                with _children(1, self, place, _append_for_ever, len(before)) as (child,):
                    child.wait_for_first()
                    time.sleep(0.002 * attempt)
                    child.kill()
                    acknowledged = child.said()
                found = list(store.read(0))
                assert [one.seq for one in found] == list(range(1, len(found) + 1))
                assert all(one == record(one.seq, "0", size=2000) for one in found)
                assert set(acknowledged) <= {one.seq for one in found}

    # --- private parts -------------------------------------------------------------------------

    def test_erasing_leaves_the_body(self, store: Store, place: Any) -> None:
        """`erase` replaces the private part, everywhere, and nothing else; again is fine."""
        for seq in (1, 2, 3):
            store.append(record(seq, private=b'{"a":["00","secret"],"b":["00","kept"]}'))
        store.erase(2, b'{"b":["00","kept"]}')
        store.erase(2, b'{"b":["00","kept"]}')
        with self.opened(place) as other:
            found = list(other.read(0))
        assert [one.private for one in found] == [
            b'{"a":["00","secret"],"b":["00","kept"]}',
            b'{"b":["00","kept"]}',
            b'{"a":["00","secret"],"b":["00","kept"]}',
        ]
        assert [(one.seq, one.body, one.chain) for one in found] == [
            (seq, record(seq).body, record(seq).chain) for seq in (1, 2, 3)
        ]

    def test_what_was_erased_is_gone_from_the_medium(self, place: Any) -> None:
        """After `erase` the old private part is nowhere on the medium: not in a log, a free page or a copy."""
        if self.raw(place) is None:
            pytest.skip("the medium cannot be looked at")
        secret = {seq: b"%d-typed-" % seq * 4 for seq in (1, 2, 3)}
        with self.opened(place) as store:
            for seq in (1, 2, 3):
                padding = b"x" * 6000 * (seq == 2)  # a large one, where a database keeps it elsewhere
                store.append(record(seq, private=b'{"a":["00","%s%s"]}' % (secret[seq], padding)))
            store.erase(2, b"{}")
            store.erase(3, b"")
            found = self.raw(place) or b""
            assert [seq for seq in secret if _encoded(secret[seq], found)] == [1]
            assert [one.private[:8] for one in store.read(0)] == [b'{"a":["0', b"{}", b""]

    def test_erasing_while_others_append(self, store: Store, place: Any) -> None:
        """An `erase` loses no entry that is appended meanwhile, and none brings a private part back."""
        for seq in range(1, 11):
            store.append(record(seq, private=b'{"old":[]}'))

        def erasing() -> None:
            with self.opened(place) as other:
                for seq in range(1, 11):
                    other.erase(seq, b"{}")

        with ThreadPoolExecutor(1) as thread:
            done = thread.submit(erasing)
            for seq in range(11, 31):
                store.append(record(seq, private=b'{"new":[]}'))
            done.result()
        assert list(store.read(0)) == [
            record(seq, private=b"{}" if seq < 11 else b'{"new":[]}') for seq in range(1, 31)
        ]

    # --- the inbox -----------------------------------------------------------------------------

    def test_notes_are_kept_until_they_are_forgotten(self, store: Store, place: Any) -> None:
        """*Inbox*: notes come back in the order of their ids; again changes nothing; unknown ids are fine."""
        notes = [Note(f"{number:032x}", f'{{"n": {number}}}'.encode()) for number in (5, 1, 3)]
        store.note(notes)
        store.note([Note(notes[0].id, b"another body")])
        with self.opened(place) as other:
            assert other.notes(10) == sorted(notes, key=lambda note: note.id)
            assert [note.id for note in other.notes(2)] == [notes[1].id, notes[2].id]
            assert [note.id for note in other.notes(10, after=notes[1].id)] == [notes[2].id, notes[0].id]
            assert [note.id for note in other.notes(10, skip={notes[2].id})] == [notes[1].id, notes[0].id]
            other.forget([notes[1].id, "f" * 32])
        assert [note.id for note in store.notes(10)] == [notes[2].id, notes[0].id]

    def test_notes_of_many_processes_all_arrive(self, place: Any) -> None:
        """*Inbox*, written by four processes at once: nothing is lost, nothing is there twice."""
        self._needs_processes()
        with _children(4, self, place, _note_many, 15) as children:
            noted = [child.result() for child in children]
        with self.opened(place) as store:
            found = [int(note.id, 16) for note in store.notes(1000)]
        assert sorted(found) == sorted(number for many in noted for number in many)
        assert len(found) == 60

    def test_notes_and_entries_do_not_disturb_each_other(self, store: Store) -> None:
        """Eight threads note while one appends: everything arrives."""
        stop = threading.Event()

        def noting(who: int) -> int:
            count = 0
            while not stop.is_set() and count < 50:
                store.note([Note(f"{who:016x}{count:016x}", b"{}")])
                count += 1
            return count

        with ThreadPoolExecutor(4) as threads:
            counts = [threads.submit(noting, who) for who in range(4)]
            for seq in range(1, 16):
                store.append(record(seq))
            stop.set()
            total = sum(count.result() for count in counts)
        assert len(store.notes(1000)) == total
        assert len(list(store.read(0))) == 15

    # --- processes -----------------------------------------------------------------------------

    def test_a_forked_child_and_its_parent_go_on(self, place: Any) -> None:
        """A handle that was open before a fork works in the child and, after the child has ended, in the parent."""
        self._needs_processes()
        if not hasattr(os, "fork"):
            pytest.skip("this system does not fork")
        with self.opened(place) as store:
            store.append(record(1))
            list(store.read(0))
            child = os.fork()
            if child == 0:
                status = 1
                with suppress(BaseException):
                    store.append(record(2, "child"))
                    status = 0 if [one.seq for one in store.read(0)] == [1, 2] else 2
                os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            store.append(record(3))
            assert [one.seq for one in store.read(0)] == [1, 2, 3]

    def test_a_reader_never_sees_a_part(self, place: Any) -> None:
        """*Whole*, while another process writes: a reader sees complete entries, without a gap, and never fewer."""
        self._needs_processes()
        with self.opened(place) as store, _children(1, self, place, _append_for_ever, 0) as (child,):
            child.wait_for_first()
            seen = 1
            end = time.monotonic() + 1
            while time.monotonic() < end:
                found = list(store.read(seen - 1, limit=25))
                assert [one.seq for one in found] == list(range(seen, seen + len(found)))
                assert all(one == record(one.seq, "0", size=2000) for one in found)
                assert found
                seen = found[-1].seq

    def test_closing_one_handle_leaves_the_others(self, store: Store, place: Any) -> None:
        """`close` ends one handle; others on the same place go on, and what was written stays."""
        store.append(record(1))
        for _ in range(20):
            with self.opened(place) as other:
                assert [one.seq for one in other.read(0)] == [1]
        store.append(record(2))
        with self.opened(place) as other:
            assert [one.seq for one in other.read(0)] == [1, 2]

    def test_handles_leave_no_files_open(self, place: Any) -> None:
        """Opening and closing many handles uses up no file descriptors."""
        if not os.path.isdir("/proc/self/fd"):
            pytest.skip("this system does not tell which files are open")
        counts = []
        for number in range(12):
            with self.opened(place) as store:
                if number == 0:
                    store.append(record(1))
                list(store.read(0))
            if number in (3, 11):
                counts.append(len(os.listdir("/proc/self/fd")))
        assert counts[1] <= counts[0] + 2

    def test_a_registry_lives_on_it(self, place: Any, tmp_path: Path) -> None:
        """Two handles of one registry agree about a version, its approval and its erased note; `verify` finds no fault."""
        first, second = self._registry(place, tmp_path), self._registry(place, tmp_path)
        with first, second:
            version = first.register("churn", {"model.bin": b"weights"}, metrics={"auc": 0.91}, note="a name")
            assert second.version("churn/v1") == version
            second.approve(version, "recall +5 %")
            assert str(first.latest("churn")) == "model://churn/v1"
            first.redact(version, "note", "asked to")
            assert second.version("churn/v1").note is None
            second.rebuild_index()
            assert second.versions(where="metrics.auc > 0.9") == first.versions("churn")
            assert first.verify().ok
            assert second.verify().ok

    def _registry(self, place: Any, folder: Path) -> Registry:
        """Return a registry on a handle of its own, whatever the store's scheme and however it is registered."""
        from modelhub_sdk import core
        from modelhub_sdk.blobs.store import BlobStore
        from modelhub_sdk.domain.events import RegistryCreated
        from modelhub_sdk.registry import Registry
        from modelhub_sdk.stores.opening import Place

        artifacts, cache = str(folder / "artifacts"), str(folder / "cache")
        at = Place(self.open(place), artifacts)
        first = core._first(
            at, create=True, read_only=False, artifacts=artifacts, actor="tester", host="host"
        )
        born = codec.decode(first).events[0]
        registry_id = born.id if isinstance(born, RegistryCreated) else ""
        return Registry(
            core.Core(
                place=at,
                ledger=core._ledger(at, registry_id, False, cache),
                registry_id=registry_id,
                blobs=BlobStore(artifacts, registry_id=registry_id),
                actor="tester",
                host="host",
                project=None,
                read_only=False,
                cache_dir=cache,
            )
        )

    def test_the_clock_is_aware(self, store: Store) -> None:
        """`now` is an aware time, or None."""
        now = store.now()
        assert now is None or now.utcoffset() is not None

    def test_the_url_shows_no_secret(self, store: Store) -> None:
        """A store's `url` is text without a password."""
        assert isinstance(store.url, str)
        assert store.url
        assert ":" not in store.url.partition("://")[2].partition("@")[0] or "@" not in store.url

    def _needs_processes(self) -> None:
        if not self.shared:
            pytest.skip("this store lives in one process")


# --- children -------------------------------------------------------------------------------------------


def _append_many(store: Store, who: int, count: int, say: Any) -> list[int]:
    won: list[int] = []
    seq = 0
    while len(won) < count:
        seq = next(reversed([0, *(one.seq for one in store.read(seq))]), seq) or seq
        with suppress(SequenceTaken):
            store.append(record(seq + 1, str(who), size=2000))
            won.append(seq + 1)
    return won


def _append_for_ever(store: Store, who: int, seq: int, say: Any) -> None:
    while True:
        seq += 1
        store.append(record(seq, str(who), size=2000))
        say(seq)


def _note_many(store: Store, who: int, count: int, say: Any) -> list[int]:
    numbers = [who << 32 | n for n in range(count)]
    for number in numbers:
        store.note([Note(f"{number:032x}", b"{}"), Note(f"{numbers[0]:032x}", b"{}")])
    return numbers


def _encoded(secret: bytes, data: bytes) -> bool:
    """Return whether *secret* is in *data*: as it is, or somewhere inside base64 or hex."""
    coded = [secret, secret.hex().encode()]
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + secret)
        coded.append(whole[4 if shift else 0 : len(whole) // 4 * 4 - 4])
    return any(piece in data for piece in coded)


class _Child:
    """A process with a handle of its own; what it says and returns comes through a pipe."""

    def __init__(self, who: int, suite: type, place: Any, work: Any, argument: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run, args=(suite, place, work, who, argument, theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        self._heard: list[int] = []

    def wait_for_first(self) -> None:
        assert self._pipe.poll(60), "the child said nothing"
        self._heard.append(self._pipe.recv())

    def said(self) -> list[int]:
        with suppress(EOFError):
            while True:
                self._heard.append(self._pipe.recv())
        return self._heard

    def result(self) -> list[int]:
        assert self._pipe.poll(120), "the child did not end"
        found: list[int] = self._pipe.recv()
        return found

    def kill(self) -> None:
        if self._process.is_alive() and self._process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        self._process.join(30)


def _run(suite: type, place: Any, work: Any, who: int, argument: int, pipe: Any) -> None:
    store = suite().open(place)
    pipe.send(work(store, who, argument, pipe.send))


@contextmanager
def _children(
    count: int, suite: StoreConformance, place: Any, work: Any, argument: int
) -> Iterator[list[_Child]]:
    children = [_Child(who, type(suite), place, work, argument) for who in range(count)]
    try:
        yield children
    finally:
        for child in children:
            child.kill()


__all__ = ["StoreConformance", "record"]
