"""A store together with its index: what the registry reads and commits through.

Two ways to keep the two in step. `SharedLedger`: the index lives in the store's own database, and a
commit changes both in one transaction. `PrivateLedger`: the store is any `Store`; the index is a
private SQLite database, caught up from the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol

from modelhub_sdk.domain.events import Entry
from modelhub_sdk.errors import InvalidDocument, shown
from modelhub_sdk.formats import codec
from modelhub_sdk.index import fold
from modelhub_sdk.index.sql import Sql
from modelhub_sdk.ports import Record, Store, SupportsGapCheck

Fold = Callable[[Sql], None]


class Session(Protocol):
    """One attempt to commit: read the index through `sql`, decide, then `commit` once."""

    sql: Sql
    now: datetime | None
    """The store's own clock at the start of the attempt, where it has one."""

    def commit(self, record: Record, entry: Entry) -> None:
        """Append *record* and fold *entry*.

        Raises:
            SequenceTaken: look again.
            StoreUnavailable: it is unknown whether the record was stored.
        """


class Ledger(Protocol):
    """A store with an index that is never behind what it has seen."""

    @property
    def store(self) -> Store:
        """Where the journal is."""

    def reading(self, *, probe: bool = True, trusting: bool = False) -> AbstractContextManager[Sql]:
        """A consistent view of the index, caught up first.

        Without *probe* it holds at least what this handle has seen or written, and the journal is not asked.
        With *trusting*, an index whose head is not that of the journal is shown as it is, for `verify` to report.

        Raises:
            InvalidDocument: the journal has a gap, a wrong link, or not the entry that a shared index ends at.
        """

    def writing(self) -> AbstractContextManager[Session]:
        """One attempt to commit. Leave it by an exception and nothing happened.

        Raises:
            InvalidDocument: the journal has a gap or a wrong last link: nothing is added to such a journal.
        """

    def erased(self, *, patient: bool = True) -> bool:
        """Private texts were erased from the store: nothing may keep them. False when others hinder it now."""

    def rebuild(self) -> None:
        """Drop the index and fold it again from the journal.

        Raises:
            InvalidDocument: the journal has a gap or a wrong link. The index stays as it is.
        """

    def damage(self) -> list[str]:
        """Return what the database of the index says is wrong inside it, with its pages and their order."""

    def close(self) -> None:
        """Release everything."""


Head = tuple[int, str]
"""The seq and the chain digest of the last folded entry."""

HeadRow = tuple[Any, ...]


def read_head(sql: Sql) -> Head:
    """Return what the index was folded up to; ``(0, GENESIS)`` when it is empty."""
    row = sql.one("SELECT seq, chain FROM @head WHERE one = 1")
    return (row[0], row[1]) if row else (0, codec.GENESIS)


def head_row(sql: Sql) -> HeadRow | None:
    """Return seq, chain digest and time of the last folded entry as they stand; None when the index is empty."""
    return sql.one("SELECT seq, chain, at FROM @head WHERE one = 1")


def has_types(row: HeadRow) -> bool:
    """Return whether *row* may be a head at all; SQLite keeps any value in any column."""
    seq, chain, at = row
    return type(seq) is int and seq > 0 and codec.is_link(chain) and type(at) is int


def is_head(row: HeadRow | None, record: Record) -> bool:
    """Return whether *row*, the head of an index, is what folding *record* last makes it, its time included.

    The next entry links to the head and is never earlier, so a damaged head would damage the journal.
    """
    return row == (record.seq, record.chain, fold.micros(codec.time_of(record)))


def missing_entry(url: str, missing: int, later: int) -> InvalidDocument:
    """Return the error for a journal that lacks entry *missing* and has entry *later*."""
    return InvalidDocument(
        f"The journal of {shown(url, 200)} has no entry {missing}, and it has entry {later}: entry {missing} was lost.",
        hint="Nothing is written to it as long as the gap is there. Restore the missing entries from a backup or a"
        " copy.",
    )


def check_gaps(store: Store, after: int = 0) -> None:
    """Raise InvalidDocument if *store* can tell that its journal lacks an entry after *after* and has a later one."""
    if isinstance(store, SupportsGapCheck):
        store.check_gaps(after)


def check_chain(head: Head, records: Sequence[Record]) -> None:
    """Raise InvalidDocument unless *records* follow *head* without a gap and their digests link up."""
    seq, digest = head
    for record in records:
        seq += 1
        if record.seq != seq:
            raise InvalidDocument(
                f"The journal has no entry {seq}: the next one that it gives is {record.seq}."
            )
        digest = codec.chain(digest, record.seq, record.scope, record.body)
        if digest != record.chain:
            raise InvalidDocument(
                f"Entry {seq} of the journal does not follow the entry before it: it was changed or replaced.",
                hint="Run reg.verify(), and restore the journal from a backup.",
            )


def apply(
    sql: Sql, head: Head, records: Sequence[Record], entries: Sequence[Entry] | None = None
) -> Head | None:
    """Fold *records* into the index, moving its head by compare-and-swap.

    Returns:
        The new head; None when somebody else moved the head first (the caller rolls back).
    """
    check_chain(head, records)
    last = records[-1]
    folded = entries if entries is not None else [codec.decode(record) for record in records]
    at = fold.micros(folded[-1].at)
    if head[0] == 0:
        registry = getattr(folded[0].events[0], "id", "")
        if not sql.run(
            "INSERT INTO @head VALUES (1, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            last.seq,
            last.chain,
            at,
            registry,
        ):
            return None
    elif not sql.run(
        "UPDATE @head SET seq = ?, chain = ?, at = ? WHERE one = 1 AND seq = ? AND chain = ?",
        last.seq,
        last.chain,
        at,
        *head,
    ):
        return None
    fold.apply(sql, folded)
    return last.seq, last.chain
