"""A journal in this process's memory, for tests and for trying things out. Gone with the process."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime

from attrs import evolve

from modelhub_sdk.ports import MAX_NOTE, Note, Record, SequenceTaken


class MemoryStore:
    """A `Store` in memory."""

    def __init__(self, url: str = "memory://") -> None:
        self.url = url
        self._lock = threading.Lock()
        self._records: list[Record] = []
        self._notes: dict[str, Note] = {}
        self._erased_until = 0

    def append(self, record: Record) -> None:
        """Store *record* if its seq is the next one."""
        with self._lock:
            if record.seq != len(self._records) + 1:
                raise SequenceTaken(record.seq)
            self._records.append(record)

    def read(self, after: int, limit: int | None = None) -> Iterator[Record]:
        """Yield the records after *after*."""
        with self._lock:
            found = self._records[after : None if limit is None else after + limit]
        yield from found

    def erase(self, seq: int, private: bytes) -> None:
        """Replace the private part of record *seq*."""
        with self._lock:
            self._records[seq - 1] = evolve(self._records[seq - 1], private=private)

    def erase_many(self, parts: Mapping[int, bytes]) -> None:
        """Replace the private parts of some records."""
        for seq, private in parts.items():
            self.erase(seq, private)

    def erased_until(self) -> int:
        """Return the entry up to which all erasures are complete."""
        return self._erased_until

    def confirm_erased(self, seq: int) -> None:
        """Keep that entry."""
        self._erased_until = max(self._erased_until, seq)

    def note(self, notes: Sequence[Note]) -> None:
        """Put *notes* into the inbox."""
        with self._lock:
            for note in notes:
                self._notes.setdefault(note.id, note)

    def notes(self, limit: int, *, after: str = "", skip: Collection[str] = ()) -> list[Note]:
        """Return up to *limit* notes in the order of their ids."""
        with self._lock:
            ids = [note_id for note_id in sorted(self._notes) if note_id > after and note_id not in skip]
            notes = [self._notes[note_id] for note_id in ids[:limit]]
        return [note if 0 < len(note.body) <= MAX_NOTE else Note(note.id, b"", junk=True) for note in notes]

    def forget(self, ids: Sequence[str]) -> None:
        """Remove notes."""
        with self._lock:
            for one in ids:
                self._notes.pop(one, None)

    def now(self) -> datetime | None:
        """None: this process's clock is the only one."""
        return None

    def close(self) -> None:
        """Nothing to release; the journal stays while somebody holds the store."""
