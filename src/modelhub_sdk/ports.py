"""The small protocols between the registry and the world.

A backend is a `Store`: a journal (`append`, `read`, `erase`) and an inbox (`note`, `notes`,
`forget`). It knows nothing of models. Third parties register theirs under the entry-point group
``modelhub_sdk.stores`` (scheme -> factory ``(url, **options) -> Store``) and get the private
index for free; `modelhub_sdk.testing.StoreConformance` says whether it keeps the laws:

1. *Once.* For a given seq exactly one `append` succeeds, over all threads, processes and hosts.
2. *Whole.* A record is visible complete or not at all, also after SIGKILL at any moment.
3. *Faithful.* `read` gives back the bytes, in order, and never jumps over a missing number: it ends there, or
   raises InvalidDocument when it sees that a later record exists (see `SupportsGapCheck`).
4. *Prompt.* After `append` has returned, every later `read` anywhere sees the record.
5. *Inbox.* A noted id is listed until it is forgotten; noting it again changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import IO, Protocol, runtime_checkable

from attrs import frozen

MAX_NOTE = 64 << 10
"""Bytes of a note. Of one that has more, no byte is read."""

NOTE_ID = re.compile(r"[0-9a-f]{32}")
"""What the id of a note looks like: a uuid, as hex."""


class SequenceTaken(Exception):
    """Raised by `append`: that number exists already. Caught by the commit loop, never seen by users."""


@frozen
class Record:
    """One journal entry as bytes, as a store keeps it.

    `body` is what the chain covers; `private` lies beside it and can be erased; `chain` is the
    hex digest that links this record to the one before (see ``formats.codec.chain``).
    """

    seq: int
    scope: str
    chain: str
    body: bytes
    private: bytes


@frozen
class Note:
    """One message for the inbox: a unique id (a uuid, as hex) and its bytes, at most `MAX_NOTE` of them.

    Where a note should be anybody who may note a use can leave anything. A store returns what it cannot read as a
    note with an empty `body`; `junk` says that no note of any release can be there (too large, empty, no file, no
    bytes), and not only that this user may not read it.
    Whoever reads the inbox passes over what is no note.
    """

    id: str
    body: bytes
    junk: bool = False


@frozen
class Checkpoint:
    """An index that was folded up to entry `seq`, whose chain digest is `chain`, with the tables of `schema`."""

    seq: int
    schema: int
    chain: str
    name: str = ""


class Derived(Protocol):
    """What some stores keep beside the journal, so that a fresh machine is ready at once. All of it may be lost."""

    read_only: bool

    def checkpoints(self) -> list[Checkpoint]:
        """Return those that may be read, newest first."""

    def checkpoint(self, one: Checkpoint) -> Iterator[bytes]:
        """Yield the bytes of one, piece by piece; fewer when it is damaged."""

    def bad_checkpoint(self, one: Checkpoint) -> None:
        """Delete one that does not fit the journal."""

    def publish(self, wanted: int, make: Callable[[], tuple[Checkpoint, IO[bytes]] | None]) -> None:
        """Keep what *make* makes, unless there is one of entry *wanted* or later."""


@runtime_checkable
class Shelved(Protocol):
    """A `Store` that keeps something `Derived`."""

    every: int
    """Entries between two checkpoints."""

    shelf: Derived

    def entries(self, after: int) -> Iterator[Record]:
        """Yield the records after *after* from the entries themselves, never from anything derived."""

    def packed(self) -> Iterator[Record]:
        """Yield the records in whatever is derived for readers of the journal, as they stand there."""

    def tidy(self, seq: int) -> None:
        """Derive what helps to read the entries before *seq*. Never fails."""


@runtime_checkable
class SupportsGapCheck(Protocol):
    """A `Store` that can tell that its journal lost a record. Without it, a journal with a gap seems to end there."""

    def check_gaps(self, after: int = 0) -> None:
        """Look for a number after *after* that is missing although a later record exists.

        Raises:
            InvalidDocument: there is one; the message names it.
        """


@runtime_checkable
class RemembersErasures(Protocol):
    """A `Store` that keeps, for all who write, up to which entry all that was to be erased is known to be gone.

    Without it every handle looks for itself, once, before it has written.
    """

    def erased_until(self) -> int:
        """Return that entry; 0 when nothing is known, or what is kept is damaged."""

    def confirm_erased(self, seq: int) -> None:
        """Keep that all that entries up to *seq* erase is gone."""

    def erase_many(self, parts: Mapping[int, bytes]) -> None:
        """Do what `erase` does for each record, also when one has that private part already.

        Then nothing that is derived from these records keeps a text that they lost, not even after an `erase`
        that was killed half way.
        """


@runtime_checkable
class Inspectable(Protocol):
    """A `Store` whose inbox may hold things under names that are none of a note."""

    def strange_notes(self) -> list[str]:
        """Return the names of what lies in the inbox and is no note by its name. `notes` passes over it."""


@runtime_checkable
class Store(Protocol):
    """Where the journal and the inbox live. All methods are safe to call from several threads."""

    url: str
    """The canonical place, without any secret."""

    def append(self, record: Record) -> None:
        """Store *record*, durably and whole, if its seq is free.

        Raises:
            SequenceTaken: a record with that seq exists (it may be this very one, when an answer was lost).
            StoreUnavailable: it is unknown whether the record was stored.
        """

    def read(self, after: int, limit: int | None = None) -> Iterator[Record]:
        """Yield the records after seq *after*, in order, up to *limit*, ending at the first gap.

        Raises:
            InvalidDocument: the next record is damaged, or it is missing and the store sees that a later one exists;
                those before it were yielded.
        """

    def erase(self, seq: int, private: bytes) -> None:
        """Replace the private part of record *seq* by *private*, durably. The body stays."""

    def note(self, notes: Sequence[Note]) -> None:
        """Put *notes* into the inbox. May be called by thousands of processes at once."""

    def notes(self, limit: int, *, after: str = "", skip: Collection[str] = ()) -> list[Note]:
        """Return up to *limit* notes in the order of their ids: those after *after* that are not in *skip*.

        None only when there are no more. What is too large or unreadable comes with an empty body.
        """

    def forget(self, ids: Sequence[str]) -> None:
        """Remove notes; unknown ids are fine."""

    def now(self) -> datetime | None:
        """Return the store's own clock, aware UTC, or None where it has none."""

    def close(self) -> None:
        """Release connections. The store is not used again."""
